"""What is done to a tile of logits: the online softmax that goes from tile to tile, its gradient, a divergence.

Each function is one kernel of logprobs.cu, or plain PyTorch on a few rows at a time.  The row's maximum and the log of
its sum stay two numbers: at a maximum of 1000 the float32 nearest to their sum is up to 3e-5 off, and so would be every
logprob.
"""
import torch
from torch import Tensor

from engine import cuda_logprobs

LOWEST = -1e30                                          # in place of a logit of -inf: times a probability of 0 it is 0
CACHED_ELEMENTS = 2**17                                 # on a CPU: logits to work on while they are in its cache


def widened(dtype: torch.dtype) -> torch.dtype:
    """Of softmax, sums and results: float32, or float64 where the logits are."""
    return torch.promote_types(dtype, torch.float32)


def kernels_for(logits: Tensor):
    served = logits.is_cuda and logits.dtype in cuda_logprobs.DTYPES
    return cuda_logprobs if served and cuda_logprobs.available() else None


def blocks(logits: Tensor) -> list[slice]:
    """A few rows, which stay in a CPU's cache from one operation to the next; all rows on a GPU."""
    height = len(logits) if logits.is_cuda else max(1, CACHED_ELEMENTS // logits.shape[1])
    return [slice(start, start + height) for start in range(0, len(logits), max(height, 1))]


def new_state(hidden: Tensor) -> Tensor:
    """What the online softmax carries from tile to tile, (N, 4): the largest logit m so far, the sums of
    e^((x − m) / T) and of e^((x − m) / T) (x − m), and the token's own logit, NaN until its tile has come.

    m starts finite, as −inf minus −inf would be no number.  Filled in place: for numbers from the host a GPU's queue
    would have to wait, and a graph could not capture it.
    """
    state = torch.zeros(len(hidden), 4, dtype=widened(hidden.dtype), device=hidden.device)
    state[:, 0].fill_(torch.finfo(torch.float32).min)
    state[:, 3].fill_(torch.nan)
    return state


def add_tile(state: Tensor, logits: Tensor, token_ids: Tensor, start: int, temperature: float, entropy: bool) -> None:
    """Take in the logits (N, width) of the vocabulary from `start` on; without `entropy` the last sum may stay 0."""
    if kernels := kernels_for(logits):
        return kernels.add_tile(state, logits, token_ids, start, 1 / temperature)
    for rows in blocks(logits):
        old_maximum, total, gap_total, target = state[rows].unbind(1)
        maximum = torch.maximum(old_maximum, logits[rows].amax(1).to(state.dtype))
        drop = old_maximum - maximum                    # what was summed under the old maximum is scaled to the new one
        scale = (drop / temperature).exp()
        gaps = logits[rows] - maximum[:, None]
        weights = gaps.exp() if temperature == 1.0 else (gaps / temperature).exp_()
        if entropy:
            gap_total = scale * (gap_total + drop * total) + (weights * gaps.clamp_(min=-1e30)).sum(1)
        mine, column = own_column(logits[rows], token_ids[rows], start)
        target = torch.where(mine, logits[rows].gather(1, column)[:, 0], target)
        state[rows] = torch.stack([maximum, scale * total + weights.sum(1), gap_total, target], 1)


def read_state(state: Tensor, token_ids: Tensor, temperature: float,
               entropy: bool = True) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """-> logprobs and entropy, 0 where masked, and for the gradient the row's maximum and the log of its sum.  (N,)"""
    maximum, total, gap_total, target = state.unbind(1)
    log_total, masked = total.log(), token_ids < 0
    logprobs = ((target - maximum) / temperature - log_total).masked_fill(masked, 0.0)
    entropies = (log_total - gap_total / (total * temperature)).masked_fill(masked, 0.0) if entropy else None
    return logprobs, entropies, maximum.contiguous(), log_total


def to_gradient(logits: Tensor, token_ids: Tensor, start: int, temperature: float, maximum: Tensor, log_total: Tensor,
                 entropies: Tensor | None, grad_logprobs: Tensor, grad_entropies: Tensor | None) -> None:
    """Overwrite a tile of logits x by d loss / d x = (g (1[own] − p) − h p (log p + H)) / T; 0 where masked.

    g and h are the gradients of loss in the token's logprob and in its entropy H.
    """
    if kernels := kernels_for(logits):
        grad_entropies = None if grad_entropies is None else grad_entropies.contiguous()
        return kernels.to_gradient(logits, token_ids, start, 1 / temperature, maximum, log_total,
                                   grad_logprobs.contiguous(), entropies, grad_entropies)
    for rows in blocks(logits):
        own_share = grad_logprobs[rows, None] / temperature
        gradient = logits[rows] - maximum[rows, None]
        gradient = (gradient if temperature == 1.0 else gradient.div_(temperature)).sub_(log_total[rows, None])
        if grad_entropies is None:
            gradient.exp_().mul_(-own_share)
        else:
            probabilities = gradient.exp()
            gradient.clamp_(min=-1e30).add_(entropies[rows, None]).mul_(grad_entropies[rows, None] / temperature)
            gradient.add_(own_share).mul_(probabilities).neg_()
        mine, column = own_column(logits[rows], token_ids[rows], start)
        gradient.scatter_add_(1, column, own_share * mine[:, None])
        logits[rows] = gradient.masked_fill_(token_ids[rows, None] < 0, 0.0)


def divergence_of(student: Tensor, teacher: Tensor, divergence, temperature: float, token_ids: Tensor, weights: Tensor,
                  with_gradient: bool) -> tuple[Tensor, Tensor]:
    """From logits 2 x (n, V) to the divergence and the student's logprobs of token_ids, 2 x (n,).

    with_gradient: the student's logits are overwritten by weights · d divergence / d logits.
    """
    kernels = kernels_for(student)
    if kernels and (kind := kernels.kind_of(divergence, student.device)) is not None:
        return kernels.divergence_of_kind(student, teacher, kind, temperature, token_ids,
                                          weights if with_gradient else None)
    values, logprobs = weights.new_zeros(2, len(student)).unbind()
    for rows in blocks(student):
        mine, other = ((side[rows].to(weights.dtype) / temperature).clamp_(min=LOWEST) for side in (student, teacher))
        with torch.set_grad_enabled(with_gradient):
            value = divergence(mine.requires_grad_(with_gradient), other)
        if with_gradient:
            gradient, = torch.autograd.grad(value, mine, weights[rows].to(value.dtype))
            gradient = gradient.div_(temperature)
            student[rows] = gradient.masked_fill_(weights[rows, None] == 0, 0.0)    # 0 times infinity is NaN
        mine, values[rows] = mine.detach(), value.detach()
        logprobs[rows] = mine.gather(1, token_ids[rows, None])[:, 0] - mine.logsumexp(1)
    return values, logprobs


def own_column(logits: Tensor, token_ids: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Whether the row's token is in this tile, (n,), and its column there (n, 1), or else any."""
    column = token_ids - start
    return (column >= 0) & (column < logits.shape[1]), column.clamp(0, logits.shape[1] - 1)[:, None]
