"""From final hidden states and the head's weight to logprobs, without ever holding the (N, V) logits.

Logits are the largest tensor of every stage: at 8,192 tokens and V = 151,936 one float32 copy takes 5 GB, and
log_softmax keeps three.  Here the vocabulary is walked in tiles.  The forward pass carries a running maximum and sum
across them (an online softmax); the backward pass computes each tile's logits again and turns them into gradients in
place.  What autograd keeps is the inputs and two float32 numbers a token.
"""
import torch
from torch import Tensor

TILE_ELEMENTS = 2**24        # float32 logits alive at a time: 64 MiB


def linear_logprobs(hidden: Tensor, weight: Tensor, token_ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(hidden @ weight.T / temperature) at token_ids.

    hidden (..., D), weight (V, D), both of one floating dtype; token_ids (...) int64 in [0, V).
    -> (...) float32, nats.  Differentiable in hidden and weight; products are summed in float32.
    Raises ValueError if shapes do not fit or an id is outside the vocabulary.
    """
    if hidden.shape[:-1] != token_ids.shape or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and token_ids "
                         f"{tuple(token_ids.shape)} do not fit")
    if token_ids.numel() and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < weight.shape[0]:
        raise ValueError(f"token_ids must be in [0, {weight.shape[0]})")
    device = hidden.device.type
    if torch.is_autocast_enabled(device):               # the same dtype forward and backward: autocast ends in between
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    logprobs = _LinearLogprobs.apply(hidden.flatten(0, -2), weight, token_ids.flatten(), temperature)
    return logprobs.view(token_ids.shape)


def _tiles(num_tokens: int, vocab_size: int) -> list[slice]:
    width = max(1, min(vocab_size, TILE_ELEMENTS // max(num_tokens, 1)))
    return [slice(start, min(start + width, vocab_size)) for start in range(0, vocab_size, width)]


def _tile_logits(hidden: Tensor, weight: Tensor, tile: slice, temperature: float) -> Tensor:
    logits = (hidden @ weight[tile].T).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, token_ids, temperature):
        tiles = _tiles(len(hidden), len(weight))
        maximum = torch.full((len(hidden),), -torch.inf, device=hidden.device)
        total, target = torch.zeros_like(maximum), torch.zeros_like(maximum)
        for tile in tiles:
            logits = _tile_logits(hidden, weight, tile, temperature)
            rows, columns = _targets_in(tile, token_ids)
            target[rows] = logits[rows, columns]
            new_maximum = torch.maximum(maximum, logits.amax(-1))
            total *= (maximum - new_maximum).exp()      # rescale what was summed under the old maximum
            total += logits.sub_(new_maximum[:, None]).exp_().sum(-1)
            maximum = new_maximum
        log_total = total.log()                          # kept apart from the maximum: their sum would lose digits
        ctx.save_for_backward(hidden, weight, token_ids, maximum, log_total)
        ctx.tiles, ctx.temperature = tiles, temperature
        return (target - maximum) - log_total

    @staticmethod
    def backward(ctx, grad_logprobs):
        """d logprob / d logits = one-hot(token) − softmax, a tile at a time."""
        hidden, weight, token_ids, maximum, log_total = ctx.saved_tensors
        grad_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        scale = grad_logprobs / ctx.temperature
        for tile in ctx.tiles:
            logits = _tile_logits(hidden, weight, tile, ctx.temperature)
            grad_logits = logits.sub_(maximum[:, None]).sub_(log_total[:, None]).exp_().mul_(-scale[:, None])
            rows, columns = _targets_in(tile, token_ids)
            grad_logits[rows, columns] += scale[rows]
            grad_logits = grad_logits.to(hidden.dtype)
            grad_hidden += grad_logits @ weight[tile]
            if grad_weight is not None:                  # each tile's rows are one product, finished
                grad_weight[tile] = grad_logits.T @ hidden
        return grad_hidden.to(hidden.dtype), grad_weight, None, None


def _targets_in(tile: slice, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The rows whose token lies in the tile, and its column there."""
    rows = ((token_ids >= tile.start) & (token_ids < tile.stop)).nonzero()[:, 0]
    return rows, token_ids[rows] - tile.start
