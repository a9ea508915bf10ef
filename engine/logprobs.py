"""From final hidden states and the head to logprobs, entropies and divergences, without ever holding the (N, V) logits.

Logits are the largest tensor of every stage: at 8,192 tokens and V = 151,936 one float32 copy takes 5 GB, and a plain
log_softmax keeps three.  Here they are made a piece at a time, turned into a few numbers a token, and made again where
the gradient needs them.  There are two ways to cut them:

    tiles of the vocabulary   linear_logprobs.  A running maximum and sum go from tile to tile (an online softmax).  The
                              backward pass makes each tile again, 8 N D V flops where the plain way takes 6, and each
                              tile's share of the weight's gradient is one finished product.
    chunks of tokens          the others.  A chunk has whole rows, so where each token's loss is known (the _loss forms)
                              its gradient is made while its logits are there: 6 N D V flops, nothing made twice.

What is done to a piece of logits is plain PyTorch in this file; on a GPU it is logprobs.cu, by way of
cuda_logprobs.py, if that can be built.  In both the row's maximum and the log of its sum stay two numbers: at a maximum
of 1000 the float32 nearest to their sum is up to 3e-5 off, and so would be every logprob.
"""
import functools
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine import cuda_logprobs

KINDS = ("reverse", "forward", "jsd")
WORKSPACE_BYTES = {"cpu": 2**26, "cuda": 2**29}         # of logits alive at a time
PIECE_BYTES = 2**23                                     # on a CPU: of a product or a cast weight
CACHED_ELEMENTS = 2**18                                 # on a CPU: logits to work on while they are in its cache


class Head(NamedTuple):
    """From hidden states to logits: the first vocab_size columns of cap · tanh((hidden @ weight.T + bias) / cap).

    weight (V, D), or None where what is called hidden are the products already.  bias (V,), softcap above 0.  Columns
    beyond vocab_size are padding: they are in no softmax and get no gradient.
    """
    weight: Tensor | None
    bias: Tensor | None = None
    softcap: float | None = None
    vocab_size: int | None = None

    def logits(self, hidden: Tensor, tile: slice = slice(None)) -> Tensor:
        """(n, D) -> (n, width of the tile), a new tensor"""
        if self.weight is None:
            logits = hidden[:, tile].clone(memory_format=torch.contiguous_format)
        elif self.weight.dtype == hidden.dtype:
            logits = _product(hidden, self.weight[tile].T)
        else:
            weight = self.weight[tile]
            logits = hidden.new_empty(len(hidden), len(weight))
            for piece in _slices(len(weight), 4 * weight.shape[1], hidden.device, PIECE_BYTES):
                logits[:, piece] = _product(hidden, weight[piece].to(hidden.dtype).T)
        if self.bias is not None:
            logits += self.bias[tile]
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def slope(self, logits: Tensor) -> Tensor | None:
        """d logits / d (hidden @ weight.T + bias), None where that is 1."""
        return None if self.softcap is None else 1 - (logits / self.softcap).square()

    def on_gpu_as(self, dtype: torch.dtype) -> "Head":
        """On a GPU the weight is cast once; on a CPU, where memory is what counts, piece by piece as it is used."""
        return self._replace(weight=self.weight.to(dtype)) if self.weight is not None and self.weight.is_cuda else self

    def columns(self, hidden: Tensor) -> int:
        return hidden.shape[-1] if self.weight is None else len(self.weight)


# ---------------------------------------------------------------- what the stages call


def linear_logprobs(hidden: Tensor, weight: Tensor | Head, token_ids: Tensor, temperature: float = 1.0, *,
                    entropy: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """log softmax(logits / temperature) at token_ids; with entropy=True also the entropy of that softmax.

    hidden (..., D) of a floating dtype, weight (V, D) or a Head, token_ids (...) int64, negative where masked.
    -> (...) float32, nats, 0 where masked (or two of them).  Differentiable in hidden, weight and bias, once.
    Logits have the dtype of hidden, or autocast's (float32 on a CPU that does not multiply it); softmax and sums are
    float32.  Where hidden is float64, all of this is.
    For backward, autograd keeps the arguments and three float32 numbers a token.
    Raises ValueError if shapes, dtypes or the temperature will not do or, on a CPU, an id is beyond the vocabulary (on
    a GPU, where looking would mean waiting, and under torch.compile, that token's logprob is NaN).
    """
    hidden, head, token_ids, shape = _checked(hidden, weight, temperature, token_ids)
    logprobs, entropies = _LinearLogprobs.apply(hidden, head.weight, head.bias, head.softcap, token_ids, temperature,
                                                _compute_dtype(hidden), entropy)
    return (logprobs.view(shape), entropies.view(shape)) if entropy else logprobs.view(shape)


def linear_token_loss(hidden: Tensor, weight: Tensor | Head, token_ids: Tensor, token_loss,
                      temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The sum over tokens of token_loss(logprobs, rows), its gradient made on the way: 6 N D V flops.

    hidden (..., D), weight and token_ids (...) as for linear_logprobs.  token_loss gets the logprobs (n,) of the tokens
    `rows`, a slice of all N in their order, and returns their losses (n,) by differentiable operations; masked tokens
    have none.
    -> the loss, a scalar to call backward() on once, and logprobs (...) float32, nats, without gradient.
    For backward, autograd keeps the gradients of hidden, weight and bias.  Raises as linear_logprobs.
    """
    hidden, head, token_ids, shape = _checked(hidden, weight, temperature, token_ids)
    dtype = _compute_dtype(hidden)
    logprobs, losses = torch.zeros(2, len(hidden), dtype=_wide(dtype), device=hidden.device).unbind()

    def logits_to_gradient(logits: Tensor, rows: slice, wanted: bool) -> None:
        ids, state = token_ids[rows], _new_state(logits)
        _add_tile(state, logits, ids, 0, temperature, entropy=False)
        logprobs[rows], _, maximum, log_total = _read_state(state, ids, temperature)
        with torch.set_grad_enabled(wanted):
            values = logprobs[rows].detach().requires_grad_(wanted)
            loss = token_loss(values, rows)
            if loss.shape != values.shape:
                raise ValueError(f"token_loss made {tuple(loss.shape)} losses of {len(values)} logprobs")
            loss = loss.masked_fill(ids < 0, 0.0)
            total = loss.sum()
        losses[rows] = loss.detach()
        if wanted:
            weights, = torch.autograd.grad(total, values)
            _to_gradient(logits, ids, 0, temperature, maximum, log_total, None, weights, None)

    gradients = _walk(hidden, head, dtype, _wanted(hidden, head), logits_to_gradient)
    return _WithGradients.apply(losses.sum(), hidden, head.weight, head.bias, gradients), logprobs.view(shape)


def linear_divergence(student_hidden: Tensor, student_weight: Tensor | Head, teacher_hidden: Tensor,
                      teacher_weight: Tensor | Head, kind: str, temperature: float = 1.0) -> Tensor:
    """The divergence of student and teacher at each token, exact over the vocabulary.

    kind: "reverse" KL(student || teacher), "forward" KL(teacher || student), or "jsd", the mean KL of both to their
    mixture.  student_hidden (..., D), teacher_hidden (..., D') and a weight or Head for each, of one V; width, dtype,
    bias and soft cap are each side's own.
    -> (...) float32, nats; float64 where student_hidden is.  Differentiable in the student's tensors, once; the
    teacher's are constants.
    For backward, autograd keeps the arguments alone (on a GPU the teacher's weight in the dtype of its products, if it
    has another) and the logits of both are made again; linear_divergence_loss makes them once.
    Raises ValueError if shapes or vocabularies do not fit, and for another kind.
    """
    hidden, head, _, shape, to_teacher = _checked_pair(student_hidden, student_weight, teacher_hidden, teacher_weight,
                                                       kind, temperature)
    return _LinearDivergence.apply(hidden, head.weight, head.bias, head.softcap, _compute_dtype(hidden),
                                   to_teacher).view(shape)


def linear_divergence_loss(student_hidden: Tensor, student_weight: Tensor | Head, teacher_hidden: Tensor,
                           teacher_weight: Tensor | Head, kind: str, token_weights: Tensor, token_ids: Tensor,
                           temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The sum over tokens of token_weights · divergence, its gradient made on the way: 6 N D V flops of the student.

    As linear_divergence, with token_weights (...), constants, and token_ids (...) int64, negative where masked.
    -> the loss, a scalar to call backward() on once; the divergences and the student's logprobs of token_ids, both
    (...) float32, nats, without gradient, 0 where masked.  A token of weight 0 adds nothing, not even an infinity.
    For backward, autograd keeps the gradients of the student's tensors, and nothing of the teacher, whose weight may
    be gone by then.
    """
    hidden, head, token_ids, shape, to_teacher = _checked_pair(student_hidden, student_weight, teacher_hidden,
                                                               teacher_weight, kind, temperature, token_ids)
    if token_weights.shape != shape:
        raise ValueError(f"token_weights {tuple(token_weights.shape)} for tokens {tuple(shape)}")
    dtype = _compute_dtype(hidden)
    divergences, logprobs = torch.zeros(2, len(hidden), dtype=_wide(dtype), device=hidden.device).unbind()
    token_weights = token_weights.detach().flatten().to(divergences.dtype).masked_fill(token_ids < 0, 0.0)

    def logits_to_gradient(logits: Tensor, rows: slice, wanted: bool) -> None:
        weights = token_weights[rows] if wanted else None
        divergences[rows], logprobs[rows] = to_teacher(logits, rows, weights, token_ids[rows])

    gradients = _walk(hidden, head, dtype, _wanted(hidden, head), logits_to_gradient, sides=2)
    for figures in (divergences, logprobs):
        figures.masked_fill_(token_ids < 0, 0.0)
    loss = (divergences.masked_fill(token_weights == 0, 0.0) * token_weights).sum()
    loss = _WithGradients.apply(loss, hidden, head.weight, head.bias, gradients)
    return loss, divergences.view(shape), logprobs.view(shape)


# ---------------------------------------------------------------- arguments


def _checked(hidden: Tensor, weight: Tensor | Head, temperature: float, token_ids: Tensor):
    """-> hidden (N, D), the head without padding columns, token_ids (N,), the shape of token_ids"""
    head = weight if isinstance(weight, Head) else Head(weight)
    columns = head.columns(hidden)
    vocab_size = columns if head.vocab_size is None else head.vocab_size
    fits = (hidden.shape[:-1] == token_ids.shape and 0 < vocab_size <= columns
            and (head.weight is None or head.weight.shape == (columns, hidden.shape[-1]))
            and (head.bias is None or head.bias.shape == (columns,)))
    if not fits:
        shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (head.weight, head.bias)]
        raise ValueError(f"hidden {tuple(hidden.shape)}, token_ids {tuple(token_ids.shape)} and a head with weight "
                         f"{shapes[0]}, bias {shapes[1]} and vocab_size {head.vocab_size} do not fit")
    if not hidden.is_floating_point() or token_ids.dtype != torch.int64:
        raise ValueError(f"hidden {hidden.dtype}, token_ids {token_ids.dtype}: a floating dtype and int64 are needed")
    for name, number in (("temperature", temperature), ("softcap", head.softcap)):
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"a {name} above 0 is needed, not {number}")
    looks = not token_ids.is_cuda and not torch.compiler.is_compiling()
    if looks and token_ids.numel() and int(token_ids.max()) >= vocab_size:
        raise ValueError(f"token id {int(token_ids.max())} is beyond the vocabulary of {vocab_size}")
    if head.weight is None:
        hidden = hidden[..., :vocab_size]
    elif vocab_size < columns:
        head = head._replace(weight=head.weight[:vocab_size])
    if head.bias is not None and vocab_size < columns:
        head = head._replace(bias=head.bias[:vocab_size])
    return hidden.reshape(-1, hidden.shape[-1]), head, token_ids.flatten().contiguous(), token_ids.shape


def _checked_pair(student_hidden, student_weight, teacher_hidden, teacher_weight, kind: str, temperature: float,
                  token_ids: Tensor | None = None):
    """-> the student's hidden (N, D), its head, token_ids (N,), their shape, what compares chunks to the teacher's"""
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    if student_hidden.shape[:-1] != teacher_hidden.shape[:-1]:
        raise ValueError(f"hidden states of student {tuple(student_hidden.shape)} and teacher "
                         f"{tuple(teacher_hidden.shape)} are of different tokens")
    if token_ids is None:
        token_ids = torch.full(student_hidden.shape[:-1], -1, device=student_hidden.device)
    hidden, head, ids, shape = _checked(student_hidden, student_weight, temperature, token_ids)
    teacher_hidden, teacher_head, _, _ = _checked(teacher_hidden.detach(), teacher_weight, temperature, token_ids)
    if head.columns(hidden) != teacher_head.columns(teacher_hidden):
        raise ValueError(f"a student of {head.columns(hidden)} tokens and a teacher of "
                         f"{teacher_head.columns(teacher_hidden)} have different vocabularies")
    dtype = _compute_dtype(teacher_hidden)
    with torch.no_grad():
        teacher_head = teacher_head.on_gpu_as(dtype)

    @torch.no_grad()
    def to_teacher(logits: Tensor, rows: slice, weights: Tensor | None, token_ids: Tensor | None = None):
        teacher_logits = teacher_head.logits(teacher_hidden[rows].to(dtype))
        return _divergence(logits, teacher_logits, kind, temperature, weights, token_ids)

    return hidden, head, ids, shape, to_teacher


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """Of the logits.  Settled before the forward pass, for the backward pass too: autocast ends in between."""
    device, dtype = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    slow = device == "cpu" and (dtype == torch.float16 or dtype == torch.bfloat16 and not _cpu_has_bfloat16())
    return torch.float32 if slow else dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Of softmax, sums and results: float32, or float64 where the logits are."""
    return torch.promote_types(dtype, torch.float32)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """In the dtype of its factors, also under autocast."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


@torch.compiler.assume_constant_result
@functools.cache
def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 (avx512_bf16, amx_bf16; Arm: bf16).  Without, float32 is 3 times faster."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "bf16" in cpuinfo.read_text()


def _wanted(hidden: Tensor, head: Head) -> list[bool]:
    """Whether hidden, weight and bias want a gradient."""
    return [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
            for tensor in (hidden, head.weight, head.bias)]


# ---------------------------------------------------------------- the two walks


class _LinearLogprobs(torch.autograd.Function):
    """Tile after tile of the vocabulary, forward and backward."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, softcap, token_ids, temperature, dtype, entropy):
        states, head = hidden.to(dtype), Head(weight, bias, softcap).on_gpu_as(dtype)
        state = _new_state(states)
        ctx.tiles = _slices(head.columns(hidden), len(hidden) * dtype.itemsize, hidden.device)
        for tile in ctx.tiles:
            _add_tile(state, head.logits(states, tile), token_ids, tile.start, temperature, entropy)
        logprobs, entropies, maximum, log_total = _read_state(state, token_ids, temperature)
        ctx.save_for_backward(hidden, weight, bias, token_ids, maximum, log_total, entropies if entropy else None)
        ctx.softcap, ctx.temperature, ctx.dtype = softcap, temperature, dtype
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprobs, grad_entropies):
        hidden, weight, bias, token_ids, maximum, log_total, entropies = ctx.saved_tensors
        states, head = hidden.to(ctx.dtype), Head(weight, bias, ctx.softcap).on_gpu_as(ctx.dtype)
        grad_logprobs = torch.zeros_like(maximum) if grad_logprobs is None else grad_logprobs
        grad_entropies = None if entropies is None else grad_entropies          # torch.compile makes zeros of None
        gradients = _Gradients(hidden, head, ctx.dtype, ctx.needs_input_grad, None if weight is None else weight.dtype)
        for tile in ctx.tiles:
            logits = head.logits(states, tile)
            slope = head.slope(logits)
            _to_gradient(logits, token_ids, tile.start, ctx.temperature, maximum, log_total, entropies,
                         grad_logprobs, grad_entropies)
            gradients.add(logits if slope is None else logits.mul_(slope), states, columns=tile)
            del logits, slope                           # before the next ones are made
        return *gradients.cast_like(hidden, weight, bias), *[None] * 5


@torch.no_grad()
def _walk(hidden: Tensor, head: Head, dtype: torch.dtype, wanted, logits_to_gradient, sides: int = 1):
    """Chunk after chunk of tokens: call logits_to_gradient(logits, rows, whether to leave d loss / d logits there).

    sides: 2 where as many logits of a teacher are alive beside them.  -> d loss / d hidden, weight and bias
    """
    states, cast_head = hidden.to(dtype), head.on_gpu_as(dtype)
    gradients = _Gradients(hidden, cast_head, dtype, wanted)
    for rows in _slices(len(hidden), sides * head.columns(hidden) * dtype.itemsize, hidden.device):
        logits = cast_head.logits(states[rows])
        slope = head.slope(logits) if any(wanted) else None
        logits_to_gradient(logits, rows, any(wanted))
        if any(wanted):
            gradients.add(logits if slope is None else logits.mul_(slope), states[rows], rows=rows)
        del logits, slope                               # before the next ones are made
    return gradients.cast_like(hidden, head.weight, head.bias)


class _LinearDivergence(torch.autograd.Function):
    """The backward pass is the forward pass once more, now that each token's weight in the loss is known."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, softcap, dtype, to_teacher):
        divergences = torch.zeros(len(hidden), dtype=_wide(dtype), device=hidden.device)

        def to_value(logits, rows, _):
            divergences[rows], _ = to_teacher(logits, rows, None)

        _walk(hidden, Head(weight, bias, softcap), dtype, [False] * 3, to_value, sides=2)
        ctx.save_for_backward(hidden, weight, bias)
        ctx.softcap, ctx.dtype, ctx.to_teacher = softcap, dtype, to_teacher
        return divergences

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_divergences):
        hidden, weight, bias = ctx.saved_tensors

        def logits_to_gradient(logits, rows, _):
            ctx.to_teacher(logits, rows, grad_divergences[rows])

        gradients = _walk(hidden, Head(weight, bias, ctx.softcap), ctx.dtype, ctx.needs_input_grad[:3],
                          logits_to_gradient, sides=2)
        return *gradients, *[None] * 3


class _WithGradients(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx, loss, hidden, weight, bias, gradients):
        ctx.save_for_backward(*gradients)
        ctx.used = False
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        if ctx.used:                                    # a second pass would need a second copy of them
            raise RuntimeError("backward() of this loss can be called once: its gradients have been given away")
        ctx.used = True
        return None, *(None if gradient is None else gradient.mul_(grad_loss) for gradient in ctx.saved_tensors), None


class _Gradients:
    """Of hidden states, weight and bias, None where not wanted; what is summed over pieces is so in _wide(dtype)."""

    def __init__(self, hidden: Tensor, head: Head, dtype: torch.dtype, wanted, weight_dtype: torch.dtype | None = None):
        wide = _wide(dtype)
        dtypes = (hidden.dtype if head.weight is None else wide, weight_dtype or wide, wide)
        self.head = head
        self.hidden, self.weight, self.bias = (
            torch.zeros(tensor.shape, dtype=dtype, device=hidden.device) if want and tensor is not None else None
            for tensor, dtype, want in zip((hidden, head.weight, head.bias), dtypes, wanted))

    def add(self, gradient: Tensor, states: Tensor, rows: slice = slice(None), columns: slice = slice(None)) -> None:
        """Of the logits (n, width) in `rows` and `columns`, made from states (n, D)."""
        if self.hidden is not None and self.head.weight is None:
            self.hidden[rows, columns] = gradient
        elif self.hidden is not None:
            _add_product(self.hidden[rows], gradient, self.head.weight[columns])
        if self.weight is not None:
            _add_product(self.weight[columns], gradient.T, states)
        if self.bias is not None:
            self.bias[columns] += gradient.sum(0, dtype=self.bias.dtype)

    def cast_like(self, *tensors: Tensor | None) -> list[Tensor | None]:
        return [gradient if gradient is None else gradient.to(tensor.dtype)
                for gradient, tensor in zip((self.hidden, self.weight, self.bias), tensors)]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right.  A bfloat16 product is added in float32; only a GPU keeps it from being rounded first."""
    if total.dtype == left.dtype == right.dtype:
        total.addmm_(left, right)
    elif left.is_cuda and hasattr(torch.ops.aten.addmm, "dtype_out"):               # torch >= 2.8
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:                                               # pieces: a product or a cast of all of it is memory, too
        for rows in _slices(len(left), 4 * right.shape[1], left.device, PIECE_BYTES):
            for inner in _slices(len(right), 4 * right.shape[1], left.device, PIECE_BYTES):
                factors = left[rows, inner], right[inner].to(left.dtype)
                if total.dtype == left.dtype:
                    total[rows].addmm_(*factors)
                else:
                    total[rows] += _product(*factors)


def _slices(total: int, bytes_each: int, device: torch.device, workspace: int | None = None) -> list[slice]:
    """Cut `total` columns or rows so that a piece fits the workspace; in multiples of 64, which suit the hardware."""
    size = (workspace or WORKSPACE_BYTES.get(device.type, 2**26)) // max(bytes_each, 1)
    size = max(size // 64 * 64, 64) if size >= 64 else max(size, 1)
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


# ---------------------------------------------------------------- a piece of logits
# Each of these is one kernel of logprobs.cu, or plain PyTorch on a few rows at a time.


def _kernels(logits: Tensor):
    served = logits.is_cuda and logits.dtype in cuda_logprobs.DTYPES
    return cuda_logprobs if served and cuda_logprobs.available() else None


def _blocks(logits: Tensor) -> list[slice]:
    """A few rows, which stay in a CPU's cache from one operation to the next; all rows on a GPU."""
    height = len(logits) if logits.is_cuda else max(1, CACHED_ELEMENTS // logits.shape[1])
    return [slice(start, start + height) for start in range(0, len(logits), max(height, 1))]


def _new_state(hidden: Tensor) -> Tensor:
    """What the online softmax carries from tile to tile, (N, 4): the largest logit m so far, the sums of
    e^((x − m) / T) and of e^((x − m) / T) (x − m), and the token's own logit, NaN until its tile has come.

    m starts finite, as −inf minus −inf would be no number.  Filled in place: for numbers from the host a GPU's queue
    would have to wait, and a graph could not capture it.
    """
    state = torch.zeros(len(hidden), 4, dtype=_wide(hidden.dtype), device=hidden.device)
    state[:, 0].fill_(torch.finfo(torch.float32).min)
    state[:, 3].fill_(torch.nan)
    return state


def _add_tile(state: Tensor, logits: Tensor, token_ids: Tensor, start: int, temperature: float, entropy: bool) -> None:
    """Take in the logits (N, width) of the vocabulary from `start` on; without `entropy` the last sum may stay 0."""
    if kernels := _kernels(logits):
        return kernels.add_tile(state, logits, token_ids, start, 1 / temperature)
    for rows in _blocks(logits):
        old_maximum, total, gap_total, target = state[rows].unbind(1)
        maximum = torch.maximum(old_maximum, logits[rows].amax(1).to(state.dtype))
        drop = old_maximum - maximum                    # what was summed under the old maximum is scaled to the new one
        scale = (drop / temperature).exp()
        gaps = logits[rows] - maximum[:, None]
        weights = gaps.exp() if temperature == 1.0 else (gaps / temperature).exp_()
        if entropy:
            gap_total = scale * (gap_total + drop * total) + (weights * gaps.clamp_(min=-1e30)).sum(1)
        mine, column = _own_column(logits[rows], token_ids[rows], start)
        target = torch.where(mine, logits[rows].gather(1, column)[:, 0], target)
        state[rows] = torch.stack([maximum, scale * total + weights.sum(1), gap_total, target], 1)


def _read_state(state: Tensor, token_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> logprobs and entropy, 0 where masked, and for the gradient the row's maximum and the log of its sum.  (N,)"""
    maximum, total, gap_total, target = state.unbind(1)
    log_total, masked = total.log(), token_ids < 0
    logprobs = ((target - maximum) / temperature - log_total).masked_fill(masked, 0.0)
    entropies = (log_total - gap_total / (total * temperature)).masked_fill(masked, 0.0)
    return logprobs, entropies, maximum.contiguous(), log_total


def _to_gradient(logits: Tensor, token_ids: Tensor, start: int, temperature: float, maximum: Tensor, log_total: Tensor,
                 entropies: Tensor | None, grad_logprobs: Tensor, grad_entropies: Tensor | None) -> None:
    """Overwrite a tile of logits x by d loss / d x = (g (1[own] − p) − h p (log p + H)) / T; 0 where masked.

    g and h are the gradients of loss in the token's logprob and in its entropy H.
    """
    if kernels := _kernels(logits):
        grad_entropies = None if grad_entropies is None else grad_entropies.contiguous()
        return kernels.to_gradient(logits, token_ids, start, 1 / temperature, maximum, log_total,
                                   grad_logprobs.contiguous(), entropies, grad_entropies)
    for rows in _blocks(logits):
        own_share = grad_logprobs[rows, None] / temperature
        gradient = logits[rows] - maximum[rows, None]
        gradient = (gradient if temperature == 1.0 else gradient.div_(temperature)).sub_(log_total[rows, None])
        if grad_entropies is None:
            gradient.exp_().mul_(-own_share)
        else:
            probabilities = gradient.exp()
            gradient.clamp_(min=-1e30).add_(entropies[rows, None]).mul_(grad_entropies[rows, None] / temperature)
            gradient.add_(own_share).mul_(probabilities).neg_()
        mine, column = _own_column(logits[rows], token_ids[rows], start)
        gradient.scatter_add_(1, column, own_share * mine[:, None])
        logits[rows] = gradient.masked_fill_(token_ids[rows, None] < 0, 0.0)


def _own_column(logits: Tensor, token_ids: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Whether the row's token is in this tile, (n,), and its column there (n, 1), or else any."""
    column = token_ids - start
    return (column >= 0) & (column < logits.shape[1]), column.clamp(0, logits.shape[1] - 1)[:, None]


def _divergence(student: Tensor, teacher: Tensor, kind: str, temperature: float, weights: Tensor | None,
                token_ids: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """From logits 2 x (n, V) to the divergence (n,) and the student's logprobs (n,) of token_ids, if there are any.

    With weights (n,), the student's logits are overwritten by weights · d divergence / d logits.
    """
    if kernels := _kernels(student):
        return _divergence_by_kernels(kernels, student, teacher, kind, temperature, weights, token_ids)
    wide = _wide(student.dtype)
    values, logprobs = torch.zeros(2, len(student), dtype=wide, device=student.device).unbind()
    for rows in _blocks(student):
        mine, other = ((logits[rows].to(wide) / temperature).log_softmax(1) for logits in (student, teacher))
        values[rows], gradient = _value_and_gradient(mine, other, kind, weights is not None)
        if token_ids is not None:
            logprobs[rows] = mine.gather(1, token_ids[rows, None].clamp(min=0))[:, 0]
        if weights is not None:
            student[rows] = gradient.mul_(weights[rows, None] / temperature)
    if weights is not None:
        student[weights == 0] = 0                       # even where the gradient is infinite
    return values, logprobs


def _value_and_gradient(student: Tensor, teacher: Tensor, kind: str, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """From log-probabilities 2 x (n, V): the divergence (n,), its gradient in the student's logits (n, V) if wanted.

    A KL is summed as Σ p (log p − log q) − p + q.  The last two add nothing, but where p and q are near each other they
    cancel what the rounding of both normalisers does to the first: 5e-7 nats, as much as 1% of a KL that matters.
    """
    p, q = student.exp(), teacher.exp()
    if kind == "forward":
        value = (_times(q, teacher - student) - q + p).sum(1)
        return value, p - q if wanted else None
    if kind == "reverse":
        gap = student - teacher
        value = (_times(p, gap) - p + q).sum(1)
        return value, _times(p, gap - value[:, None]) if wanted else None
    mixture = torch.logaddexp(student, teacher) - math.log(2)
    to_mixture = _times(p, student - mixture)
    value = 0.5 * (to_mixture + _times(q, teacher - mixture)).sum(1)
    centre = to_mixture.sum(1, keepdim=True)
    return value, 0.5 * (to_mixture - p * centre) if wanted else None


def _times(probabilities: Tensor, logs: Tensor) -> Tensor:
    """The product, 0 where the probability is 0 and the log infinite."""
    return (probabilities * logs).masked_fill_(probabilities == 0, 0.0)


def _divergence_by_kernels(kernels, student, teacher, kind, temperature, weights, token_ids):
    logits, common = student, torch.promote_types(student.dtype, teacher.dtype)
    student, teacher = student.to(common), teacher.to(common)
    values, row_figures = kernels.divergence(student, teacher, KINDS.index(kind), 1 / temperature)
    logprobs = None
    if token_ids is not None:
        target = student.gather(1, token_ids[:, None].clamp(min=0))[:, 0]
        logprobs = (target - row_figures[:, 0]) / temperature - row_figures[:, 1]
    if weights is not None:
        kernels.divergence_to_gradient(student, teacher, KINDS.index(kind), 1 / temperature, row_figures,
                                       weights.contiguous())
        logits.copy_(student)                           # no work where both had one dtype
    return values, logprobs
