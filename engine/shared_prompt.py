"""Attention of rollouts that share prompts, in parts of which none is computed twice.

    P P P a a b b b         P P P on P P P             causal, once a group
                            a a b b b on P P P         all of a prompt is before all of a completion: no mask
                            a a on a a, b b b on b b b     causal; completions side by side, padded on the right

Each part is a softmax of its own.  The log of its denominator says how much of the whole softmax it is, so two parts make
one exactly; and a part's gradient is that of the kernel, given the output and the denominator of the whole (as ring
attention has it, arXiv 2310.01889).  Parts are slices of the packed row, so keys and values of a prompt are never copied.

The kernel is a CPU's, and it computes in float32 also what is bfloat16: its own bfloat16 takes twice the time where there
are instructions for it, six times where there are none, and is less exact.  What is kept for the backward pass stays short.
"""
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.rollouts import Rollouts
from engine.tiles import widened

kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu                 # -> the output, log of the denominator
kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
BEYOND = 1e30                                           # log of a denominator beside which every weight is 0


class Parts:
    """Where the parts stand in the packed row of T tokens, N of them in completions.  C: the longest completion.

    on_prompts  slices of the tokens that attend to a prompt, slices of that prompt, whether they are the prompt itself
    own         (B, C) a completion's tokens; behind its end, any
    padding     (B, C) bool, behind its end
    completion  (N,) the completions' tokens
    seats       (N,) where each stands in `own`, flattened
    """

    def __init__(self, rollouts: Rollouts):
        begins, lengths = rollouts.begins_group(), rollouts.completion_mask.sum(1)
        prompts = rollouts.prompt_mask.sum(1) * begins
        ends = (prompts + lengths).cumsum(0)
        place = torch.arange(rollouts.completion_mask.shape[1], device=ends.device)
        self.padding = place >= lengths[:, None]
        self.own = ((ends - lengths)[:, None] + place).masked_fill(self.padding, 0)
        self.completion, self.seats = self.own[~self.padding], (~self.padding).flatten().nonzero()[:, 0]
        first = begins.nonzero()[:, 0].tolist() + [len(begins)]
        ends, prompts = ends.tolist(), prompts.tolist()
        groups = [(begin := ends[row - 1] if row else 0, begin + prompts[row], ends[after - 1])
                  for row, after in zip(first, first[1:])]
        self.on_prompts = [(slice(*tokens), slice(begin, middle), causal) for begin, middle, end in groups
                           for tokens, causal in (((begin, middle), True), ((middle, end), False)) if end > tokens[0]]
        # of a head, with the causal half of the squares; whole rows would make those of a prompt for each completion
        self.scores_saved = sum((after - row - 1) * prompts[row] ** 2 // 2 for row, after in zip(first, first[1:]))
        self.scores = sum((middle - begin) * (end - (begin + middle) // 2) for begin, middle, end in groups)

    def side_by_side(self, x: Tensor) -> Tensor:
        """(1, H, T, ...) -> (B, H, C, ...)"""
        return x[0].transpose(0, 1)[self.own].transpose(1, 2)

    def in_a_row(self, x: Tensor) -> Tensor:
        """The way back.  (B, H, C, ...) -> (1, H, N, ...)"""
        return x.transpose(1, 2).flatten(0, 1)[self.seats].transpose(0, 1)[None]


def attend_in_parts(query: Tensor, key: Tensor, value: Tensor, parts: Parts, scale: float | None) -> Tensor:
    """(1, Hq, T, D), 2 x (1, Hk, T, D) -> (1, Hq, T, D), in memory (1, T, Hq, D)"""
    return _Attention.apply(query, key, value, parts, query.shape[-1] ** -0.5 if scale is None else scale)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, parts, scale):
        query_, key_, value_ = (x.to(widened(x.dtype)) for x in (query, key, value))
        out, log_total = empty_like_tokens(query_), query_.new_empty(query.shape[:3])
        for tokens, prompt, causal in parts.on_prompts:
            out[:, :, tokens], log_total[:, :, tokens] = kernel(
                query_[:, :, tokens], key_[:, :, prompt], value_[:, :, prompt], 0.0, causal, scale=scale)
        own = kernel(*map(parts.side_by_side, (query_, key_, value_)), 0.0, True, scale=scale)
        (seen, total), at = map(parts.in_a_row, own), parts.completion
        before = log_total[:, :, at]
        out[:, :, at] = torch.lerp(out[:, :, at], seen, (total - before).sigmoid()[..., None])     # the part's share
        log_total[:, :, at] = torch.logaddexp(before, total)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, log_total)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *tensors, log_total = ctx.saved_tensors
        parts, scale, at = ctx.parts, ctx.scale, ctx.parts.completion
        grad, query, key, value, out = (x.to(widened(x.dtype)) for x in (grad, *tensors))
        grads = [empty_like_tokens(x).zero_() for x in (query, key, value)]
        for tokens, prompt, causal in parts.on_prompts:
            places = tokens, prompt, prompt
            for total, place, part in zip(grads, places, kernel_backward(
                    grad[:, :, tokens], query[:, :, tokens], key[:, :, prompt], value[:, :, prompt], out[:, :, tokens],
                    log_total[:, :, tokens], 0.0, causal, scale=scale)):
                total[:, :, place] += part
        own = parts.side_by_side(log_total).masked_fill(parts.padding[:, None], BEYOND)
        for total, part in zip(grads, kernel_backward(
                *map(parts.side_by_side, (grad, query, key, value, out)), own, 0.0, True, scale=scale)):
            total[:, :, at] += parts.in_a_row(part)
        return *(total.to(x.dtype) for total, x in zip(grads, tensors)), None, None


def empty_like_tokens(x: Tensor) -> Tensor:
    """(1, H, T, D), in memory (1, T, H, D)"""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)
