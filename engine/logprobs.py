"""From final hidden states and the head to logprobs and divergences, without ever holding the (N, V) logits.

Logits are the largest tensor of every stage: at 8,192 tokens and V = 151,936 one float32 copy takes 5 GB, and a plain
log_softmax keeps three.  Here they are made a piece at a time, turned into a few numbers a token, and forgotten.

    linear_logprobs      cuts the vocabulary into tiles.  A running maximum and sum go from tile to tile (an online
                         softmax); the backward pass makes each tile again: 8 N D V flops where the plain way takes 6.
    linear_divergence    cuts the tokens into chunks, which have whole rows.  For each it calls the function that the
                         stage handed down on both sides' logits and lets autograd differentiate that chunk alone, with
                         each token's weight in the loss: 6 N D V flops, nothing made twice.  Any function will do.

What is done to a tile stands in tiles.py.  On a GPU it is logprobs.cu, by way of cuda_logprobs.py, if that can be
built; a kernel stands in for a divergence only after it agreed with it (cuda_logprobs.kind_of).
"""
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine import hardware, linears
from engine.tiles import add_tile, divergence_of, new_state, read_state, to_gradient, widened

WORKSPACE_BYTES = {"cpu": 2**26, "cuda": 2**29}         # of logits alive at a time
PIECE_BYTES = 2**23                                     # on a CPU: of a product or a cast weight


class Head(NamedTuple):
    """From hidden states to logits: cap · tanh((hidden @ weight.T + bias) / cap).

    weight (V, D), or None where what is called hidden are the products already.  bias (V,), softcap above 0.
    """
    weight: Tensor | None
    bias: Tensor | None = None
    softcap: float | None = None

    def logits(self, hidden: Tensor, tile: slice = slice(None), out: Tensor | None = None) -> Tensor:
        """(n, D) -> (n, width of the tile), in `out` or a new tensor"""
        weight = hidden.T[tile] if self.weight is None else self.weight[tile]
        logits = hidden.new_empty(len(hidden), len(weight)) if out is None else out
        if self.weight is None:
            logits.copy_(weight.T)
        elif linears.chosen(self.weight, hidden.dtype):       # oneDNN fills no tensor that is there already
            for piece in _slices(len(weight), 4 * max(hidden.shape), hidden.device, PIECE_BYTES):
                logits[:, piece] = linears.onednn(hidden, weight[piece].to(hidden.dtype))
        elif weight.dtype == hidden.dtype:
            _product(hidden, weight.T, logits)
        else:
            for piece in _slices(len(weight), 4 * weight.shape[1], hidden.device, PIECE_BYTES):
                _product(hidden, weight[piece].to(hidden.dtype).T, logits[:, piece])
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
    For backward, autograd keeps the arguments and two float32 numbers a token, three with the entropy.
    Raises ValueError if shapes, dtypes or the temperature will not do or, on a CPU, an id is beyond the vocabulary (on
    a GPU, where looking would mean waiting, that token's logprob is NaN).
    """
    hidden, head, token_ids, shape = _checked(hidden, weight, temperature, token_ids)
    logprobs, entropies = _LinearLogprobs.apply(hidden, head.weight, head.bias, head.softcap, token_ids, temperature,
                                                _compute_dtype(hidden), entropy)
    return (logprobs.view(shape), entropies.view(shape)) if entropy else logprobs.view(shape)


def linear_divergence(student_hidden: Tensor, student_weight: Tensor | Head, teacher_hidden: Tensor,
                      teacher_weight: Tensor | Head, divergence, token_weights: Tensor, token_ids: Tensor,
                      temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The loss Σ token_weights · divergence(student_logits, teacher_logits), its gradient made on the way.

    student_hidden (..., D), teacher_hidden (..., D') and a weight or Head for each, of one V; width, dtype, bias and
    soft cap are each side's own.  token_weights (...), constants; token_ids (...) int64.  divergence: a differentiable
    function of logits at the temperature, 2 x (n, V) float32 -> (n,) nats, each row's figure a function of that row.
    -> the loss, a scalar to call backward() on once; the divergences and the student's logprobs of token_ids, both
    (...) float32, nats, without gradient.  A token of weight 0 adds nothing, not even an infinity.
    For backward, autograd keeps the gradients of the student's tensors, and nothing of the teacher, whose weight may
    be gone by then.  Raises ValueError as linear_logprobs does, and if the two sides do not fit each other.
    """
    hidden, head, token_ids, shape = _checked(student_hidden, student_weight, temperature, token_ids)
    teacher_hidden, teacher_head, _, _ = _checked(teacher_hidden.detach(), teacher_weight, temperature,
                                                  token_ids.view(shape))
    if head.columns(hidden) != teacher_head.columns(teacher_hidden):
        raise ValueError(f"a student of {head.columns(hidden)} tokens and a teacher of "
                         f"{teacher_head.columns(teacher_hidden)} have different vocabularies")
    if token_weights.shape != shape:
        raise ValueError(f"token_weights {tuple(token_weights.shape)} for tokens {tuple(shape)}")
    token_weights = token_weights.detach().flatten().to(widened(_compute_dtype(hidden)))
    wanted = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
              for tensor in (hidden, head.weight, head.bias)]
    divergences, logprobs, gradients = _walk(hidden, head, teacher_hidden, teacher_head, divergence, token_weights,
                                             token_ids, temperature, wanted)
    loss = (divergences.masked_fill(token_weights == 0, 0.0) * token_weights).sum()
    loss = _WithGradients.apply(loss, hidden, head.weight, head.bias, gradients)
    return loss, divergences.view(shape), logprobs.view(shape)


@torch.no_grad()
def _walk(hidden, head: Head, teacher_hidden, teacher_head: Head, divergence, token_weights, token_ids, temperature,
          wanted: list[bool]) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Chunk after chunk of tokens.  -> divergences and logprobs (N,), gradients of hidden states, weight and bias

    Both sides' logits have one place each, in which every chunk's are made.
    """
    dtype, teacher_dtype = _compute_dtype(hidden), _compute_dtype(teacher_hidden)
    states, cast_head, teacher_head = hidden.to(dtype), head.on_gpu_as(dtype), teacher_head.on_gpu_as(teacher_dtype)
    divergences, logprobs = token_weights.new_zeros(2, len(hidden)).unbind()
    gradients = _Gradients(hidden, cast_head, dtype, wanted)
    chunks = _slices(len(hidden), 2 * head.columns(hidden) * dtype.itemsize, hidden.device)
    shape = chunks[0].stop if chunks else 0, head.columns(hidden)
    places = [hidden.new_empty(shape, dtype=dtype), hidden.new_empty(shape, dtype=teacher_dtype)]
    for rows in chunks:
        logits, teacher_logits = (place[:rows.stop - rows.start] for place in places)
        cast_head.logits(states[rows], out=logits)
        teacher_head.logits(teacher_hidden[rows].to(teacher_dtype), out=teacher_logits)
        slope = cast_head.slope(logits) if any(wanted) else None
        divergences[rows], logprobs[rows] = divergence_of(
            logits, teacher_logits, divergence, temperature, token_ids[rows], token_weights[rows], any(wanted))
        if any(wanted):
            gradients.add(logits if slope is None else logits.mul_(slope), states[rows], rows=rows)
    places.clear()
    logits = teacher_logits = slope = None              # make room for what is cast
    return divergences, logprobs, gradients.cast_like(hidden, head.weight, head.bias)


# ---------------------------------------------------------------- arguments


def _checked(hidden: Tensor, weight: Tensor | Head, temperature: float, token_ids: Tensor):
    """-> hidden (N, D), the head, token_ids (N,), the shape of token_ids"""
    head = weight if isinstance(weight, Head) else Head(weight)
    columns = head.columns(hidden)
    fits = (hidden.shape[:-1] == token_ids.shape and columns > 0
            and (head.weight is None or head.weight.shape == (columns, hidden.shape[-1]))
            and (head.bias is None or head.bias.shape == (columns,)))
    if not fits:
        shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (head.weight, head.bias)]
        raise ValueError(f"hidden {tuple(hidden.shape)}, token_ids {tuple(token_ids.shape)} and a head with weight "
                         f"{shapes[0]} and bias {shapes[1]} do not fit")
    if not hidden.is_floating_point() or token_ids.dtype != torch.int64:
        raise ValueError(f"hidden {hidden.dtype}, token_ids {token_ids.dtype}: a floating dtype and int64 are needed")
    for name, number in (("temperature", temperature), ("softcap", head.softcap)):
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"a {name} above 0 is needed, not {number}")
    if token_ids.device.type == "cpu" and token_ids.numel() and int(token_ids.max()) >= columns:
        raise ValueError(f"token id {int(token_ids.max())} is beyond the vocabulary of {columns}")
    return hidden.reshape(-1, hidden.shape[-1]), head, token_ids.flatten().contiguous(), token_ids.shape


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """Of the logits.  Settled before the forward pass, for the backward pass too: autocast ends in between."""
    device, dtype = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    slow = device == "cpu" and (dtype == torch.float16 or dtype == torch.bfloat16 and not hardware.cpu_has_bfloat16())
    return torch.float32 if slow else dtype


def _product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """In the dtype of its factors, also under autocast."""
    with torch.autocast(left.device.type, enabled=False):
        return torch.mm(left, right, out=out)


def _slices(total: int, bytes_each: int, device: torch.device, workspace: int | None = None) -> list[slice]:
    """Cut `total` columns or rows so that a piece fits the workspace; in multiples of 64, which suit the hardware."""
    size = (workspace or WORKSPACE_BYTES.get(device.type, 2**26)) // max(bytes_each, 1)
    size = max(size // 64 * 64, 64) if size >= 64 else max(size, 1)
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


# ---------------------------------------------------------------- gradients


class _LinearLogprobs(torch.autograd.Function):
    """Tile after tile of the vocabulary, forward and backward."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, softcap, token_ids, temperature, dtype, entropy):
        states, head = hidden.to(dtype), Head(weight, bias, softcap).on_gpu_as(dtype)
        state = new_state(states)
        ctx.tiles = _slices(head.columns(hidden), len(hidden) * dtype.itemsize, hidden.device)
        for tile in ctx.tiles:
            add_tile(state, head.logits(states, tile), token_ids, tile.start, temperature, entropy)
        logprobs, entropies, maximum, log_total = read_state(state, token_ids, temperature, entropy)
        ctx.save_for_backward(hidden, weight, bias, token_ids, maximum, log_total, entropies)
        ctx.softcap, ctx.temperature, ctx.dtype = softcap, temperature, dtype
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprobs, grad_entropies):
        hidden, weight, bias, token_ids, maximum, log_total, entropies = ctx.saved_tensors
        states, head = hidden.to(ctx.dtype), Head(weight, bias, ctx.softcap).on_gpu_as(ctx.dtype)
        grad_logprobs = torch.zeros_like(maximum) if grad_logprobs is None else grad_logprobs
        gradients = _Gradients(hidden, head, ctx.dtype, ctx.needs_input_grad, None if weight is None else weight.dtype)
        for tile in ctx.tiles:
            logits = head.logits(states, tile)
            slope = head.slope(logits)
            to_gradient(logits, token_ids, tile.start, ctx.temperature, maximum, log_total, entropies,
                         grad_logprobs, grad_entropies)
            gradients.add(logits if slope is None else logits.mul_(slope), states, columns=tile)
            del logits, slope                           # before the next ones are made
        return *gradients.cast_like(hidden, weight, bias), *[None] * 5


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
    """Of hidden states, weight and bias, None where not wanted; what is summed over pieces is so in widened(dtype)."""

    def __init__(self, hidden: Tensor, head: Head, dtype: torch.dtype, wanted, weight_dtype: torch.dtype | None = None):
        wide = widened(dtype)
        dtypes = (hidden.dtype if head.weight is None else wide, weight_dtype or wide, wide)
        self.head, self.by_onednn = head, head.weight is not None and linears.chosen(head.weight, dtype)
        self.hidden, self.weight, self.bias = (
            torch.zeros(tensor.shape, dtype=dtype, device=hidden.device) if want and tensor is not None else None
            for tensor, dtype, want in zip((hidden, head.weight, head.bias), dtypes, wanted))

    def add(self, gradient: Tensor, states: Tensor, rows: slice = slice(None), columns: slice = slice(None)) -> None:
        """Of the logits (n, width) in `rows` and `columns`, made from states (n, D)."""
        if self.hidden is not None and self.head.weight is None:
            self.hidden[rows, columns] = gradient
        elif self.hidden is not None:
            _add_product(self.hidden[rows], gradient, self.head.weight[columns], self.by_onednn)
        if self.weight is not None:
            _add_product(self.weight[columns], gradient.T, states, self.by_onednn)
        if self.bias is not None:
            self.bias[columns] += gradient.sum(0, dtype=self.bias.dtype)

    def cast_like(self, *tensors: Tensor | None) -> list[Tensor | None]:
        return [gradient if gradient is None else gradient.to(tensor.dtype)
                for gradient, tensor in zip((self.hidden, self.weight, self.bias), tensors)]


def _add_product(total: Tensor, left: Tensor, right: Tensor, by_onednn: bool) -> None:
    """total += left @ right.  A bfloat16 product is added in float32; only a GPU keeps it from being rounded first."""
    if total.dtype == left.dtype == right.dtype and not by_onednn:
        total.addmm_(left, right)
    elif left.is_cuda and hasattr(torch.ops.aten.addmm, "dtype_out"):               # torch >= 2.8
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:                                               # pieces: a product, a copy or a cast of all is memory, too
        for rows in _slices(len(left), 4 * max(right.shape[1], 2048 * by_onednn), left.device, PIECE_BYTES):
            for inner in _slices(len(right), 4 * right.shape[1], left.device, PIECE_BYTES):
                factors = left[rows, inner], right[inner].to(left.dtype)
                if by_onednn:
                    total[rows] += linears.onednn(factors[0], factors[1].T)
                elif total.dtype == left.dtype:
                    total[rows].addmm_(*factors)
                else:
                    total[rows] += _product(*factors)
