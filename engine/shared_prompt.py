"""Attention of rollouts that share prompts, in parts of which none is computed twice.

    P P P a a b b b         P P P on P P P             causal, once a group
                            a a b b b on P P P         all of a prompt is before all of a completion: no mask
                            a a on a a, b b b on b b b     causal

Each part is a softmax of its own.  The log of its denominator says how much of the whole softmax it is, so two parts
make one exactly; and a part's gradient is that of the kernel, given the output and the denominator of the whole (as
ring attention has it, arXiv 2310.01889).  Parts are slices of the packed row: nothing is copied, nothing padded.

The kernel is a CPU's, and it computes in float32 also what is bfloat16: its own bfloat16 takes twice the time where
there are instructions for it, six times where there are none.  What is kept for the backward pass stays bfloat16.
"""
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.rollouts import Rollouts
from engine.tiles import widened

kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu     # -> output, log of the denominator
kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Parts:
    """Slices of the packed row, of each group: its prompt; its completions, one behind the other; each of them."""

    def __init__(self, rollouts: Rollouts):
        self.groups: list[tuple[slice, slice, list[slice]]] = []
        place = 0
        for begins, prompt, length in zip(*(numbers.tolist() for numbers in (
                rollouts.begins_group(), rollouts.prompt_mask.sum(1), rollouts.completion_mask.sum(1)))):
            if begins:
                self.groups.append((slice(place, place + prompt), slice(place + prompt, place + prompt), []))
                place += prompt
            own = slice(place, place := place + length)
            shared, before, each = self.groups[-1]
            self.groups[-1] = shared, slice(before.start, place), each + [own] * (length > 0)
        self.calls = sum(2 + len(each) for _, _, each in self.groups)      # of the kernel, in a layer


def attend_in_parts(query: Tensor, key: Tensor, value: Tensor, parts: Parts, scale: float | None) -> Tensor:
    """(1, Hq, T, D), 2 x (1, Hk, T, D) -> (1, Hq, T, D), in memory (1, T, Hq, D)"""
    return _Attention.apply(query, key, value, parts, query.shape[-1] ** -0.5 if scale is None else scale)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, parts, scale):
        tensors = [x.to(widened(x.dtype)) for x in (query, key, value)]
        out, log_total = empty_like_tokens(tensors[0]), tensors[0].new_empty(query.shape[:3])

        def attend(tokens: slice, to: slice, causal: bool) -> tuple[Tensor, Tensor]:
            return kernel(tensors[0][:, :, tokens], *(x[:, :, to] for x in tensors[1:]), 0.0, causal, scale=scale)

        for prompt, completions, each in parts.groups:
            out[:, :, prompt], log_total[:, :, prompt] = attend(prompt, prompt, True)
            if each:
                seen, total = attend(completions, prompt, False)
                for own in each:
                    out[:, :, own], log_total[:, :, own] = attend(own, own, True)
                own, own_total = out[:, :, completions], log_total[:, :, completions]
                own.lerp_(seen, (total - own_total).sigmoid()[..., None])           # the prompt's share
                torch.logaddexp(own_total, total, out=own_total)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, log_total)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *kept, log_total = ctx.saved_tensors
        grad, *tensors, out = (x.to(widened(x.dtype)) for x in (grad, *kept))
        grads = [empty_like_tokens(x) for x in tensors]

        def gradients(tokens: slice, to: slice, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            return kernel_backward(
                grad[:, :, tokens], tensors[0][:, :, tokens], *(x[:, :, to] for x in tensors[1:]), out[:, :, tokens],
                log_total[:, :, tokens], 0.0, causal, scale=ctx.scale)

        for prompt, completions, each in ctx.parts.groups:
            for own, causal_part in ((tokens, gradients(tokens, tokens, True)) for tokens in (prompt, *each)):
                for whole, part in zip(grads, causal_part):
                    whole[:, :, own] = part
            if each:
                places, parts = (completions, prompt, prompt), gradients(completions, prompt, False)
                for whole, place, part in zip(grads, places, parts):
                    whole[:, :, place] += part
        return *(whole.to(x.dtype) for whole, x in zip(grads, kept)), None, None


def empty_like_tokens(x: Tensor) -> Tensor:
    """(1, H, T, D), in memory (1, T, H, D)"""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)
