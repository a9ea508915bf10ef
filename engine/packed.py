"""Rollouts as a forward pass takes them: one row without padding, each prompt once, or else a padded row a rollout.

    padded    P P P a a ·        packed   P P P a a b b b Q Q c d d     positions  0 1 2 3 4 3 4 5 0 1 2 2 3
              P P P b b b
              · Q Q c · ·        rows     P P P a a ·    what each rollout's tokens attend to: its prompt and its own,
              · Q Q d d ·                 P P P b b b    put together for the attention alone.  Padding is on the
                                          Q Q c · · ·    right there, where the causal order hides it.
                                          Q Q d d · ·

All but attention works on each token by itself, so a group's prompt goes through the model once, forward and backward,
whatever the size of the group.  Attention has two forms, and takes the one that is quicker (`Packed.shares_prompts`):

    whole rows   each rollout stands alone again, in a row of `rows`: one causal kernel, no mask
    parts        a prompt attends to itself once, the completions of its group to it all together, and each to itself;
                 shared_prompt.py puts the parts together.  Nothing of a prompt is copied or computed twice

Nothing in either grows with the square of the packed row.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.attention import NotPlain, agrees, attention_implementation, check_arguments, check_windows, configs_of
from engine.rollouts import Rollouts, pad, positions
from engine.shared_prompt import Parts, attend_in_parts
from engine.sharding import whole

LEAST_WORK = 2**20                                      # multiplications q k of whole rows for each call of the parts


def layout(model, rollouts: Rollouts) -> "Packed | Padded":
    """The better way in which this model may be served; the rollouts keep it for the next model."""
    purpose = "scoring" if not trained(model) else "training"
    form, kept = Packed if agrees(model, purpose, compare_with_padded) else Padded, vars(rollouts)
    if not isinstance(kept.get("layout"), form):
        kept["layout"] = form(rollouts)
    return kept["layout"]


class Padded:
    """A row a rollout; attention is the model's own."""

    def __init__(self, rollouts: Rollouts):
        mask = torch.cat([rollouts.prompt_mask, rollouts.completion_mask], 1)
        self.completion_mask = rollouts.completion_mask
        self.logits_to_keep = rollouts.completion_ids.shape[1] + 1
        self.inputs = {"input_ids": torch.cat([rollouts.prompt_ids, rollouts.completion_ids], 1),
                       "attention_mask": mask, "position_ids": positions(mask), "use_cache": False}

    def call(self, model, function, **inputs):
        """What `function`, the model or a part of it, makes of these inputs."""
        return function(**inputs)

    def predicting(self, hidden: Tensor) -> Tensor:
        """The states that predict the completions' tokens, row after row.  (B, C + 1 or more, D) -> (N, D)"""
        return hidden[:, -self.logits_to_keep:-1][self.completion_mask]


class Packed:
    """One row for all: T tokens, N of them in completions.  L is the length of the longest rollout.

    inputs      input_ids and position_ids (1, T)
    rows        (B, L) which token stands at each place of each rollout; behind its end, any
    seats       (T,) where each token stands in `rows`, flattened; a prompt's, in the first rollout of its group
    predictors  (N,) which token predicts each of the completions'
    """
    logits_to_keep = 0                                  # all of them

    def __init__(self, rollouts: Rollouts, least_work: int | None = None):
        mask = torch.cat([rollouts.prompt_mask, rollouts.completion_mask], 1)
        ids = torch.cat([rollouts.prompt_ids, rollouts.completion_ids], 1)
        prompt_length, length = rollouts.prompt_ids.shape[1], int(mask.sum(1).max())
        begins, row = rollouts.begins_group(), torch.arange(len(mask), device=mask.device)
        stands = torch.cat([rollouts.prompt_mask & begins[:, None], rollouts.completion_mask], 1)
        token = (stands.flatten().cumsum(0) - 1).clamp(min=0).view_as(ids)      # the number of each that stands
        token[:, :prompt_length] = token[(row * begins).cummax(0).values, :prompt_length]
        to_the_left = (~mask).long().argsort(dim=1, stable=True)[:, :length]
        stands = stands.flatten().nonzero()[:, 0]

        position = positions(mask)
        self.rows = token.gather(1, to_the_left)
        self.seats = (row[:, None] * length + position).flatten()[stands]
        self.predictors = token[:, prompt_length - 1:-1][rollouts.completion_mask]
        self.inputs = {"input_ids": ids.flatten()[stands][None], "position_ids": position.flatten()[stands][None],
                       "use_cache": False}
        self.masks: dict[int | None, Tensor | None] = {}            # of each sliding window that layers ask for
        self.least_work = LEAST_WORK if least_work is None else least_work
        self.parts = Parts(rollouts) if mask.device.type == "cpu" else None   # a GPU takes whole rows

    def call(self, model, function, **inputs):
        with attention_implementation(configs_of(model), "packed", self.attend):
            return function(**inputs)

    def predicting(self, hidden: Tensor) -> Tensor:
        """(1, T, D) -> (N, D)"""
        return hidden[0].index_select(0, self.predictors)

    def attend(self, module, query, key, value, attention_mask, scaling=None, sliding_window=None, dropout=0.0,
               is_causal=True, **others):
        """What transformers calls in place of its own attention.  query (1, Hq, T, D) -> (1, T, Hq, Dv), None."""
        check_arguments(others | {"dropout": dropout or None})
        mask = self.mask(sliding_window)
        if mask is None and self.shares_prompts(query, key, value):
            return attend_in_parts(query, key, value, self.parts, scaling).transpose(1, 2), None
        query, key, value = (put_together(x, self.rows) for x in (query, key, value))
        seen = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scaling,
                                              enable_gqa=key.shape[1] < query.shape[1])
        return seen.transpose(1, 2).flatten(0, 1).index_select(0, self.seats)[None], None

    def shares_prompts(self, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Whether the parts are quicker, on a CPU: they make fewer scores, in more calls.
        In float32 whole rows win where a call has less than LEAST_WORK, in bfloat16 less than a quarter of that;
        `bench/packed.py --attention` measures both.
        """
        if self.parts is None or not query.shape[-1] == key.shape[-1] == value.shape[-1]:
            return False
        work = self.rows.numel() * self.rows.shape[1] // 2 * query.shape[1] * query.shape[-1]
        return work >= self.least_work // (4 if query.dtype == torch.bfloat16 else 1) * self.parts.calls

    def mask(self, window: int | None) -> Tensor | None:
        """(L, L) bool, or None where the causal order says it all."""
        if window not in self.masks:
            place = torch.arange(self.rows.shape[1], device=self.rows.device)
            age = place[:, None] - place
            self.masks[window] = (age >= 0) & (age < window) if window and window < len(place) else None
        return self.masks[window]


def put_together(x: Tensor, rows: Tensor) -> Tensor:
    """(1, H, T, D) -> (B, H, L, D).  An embedding: going back, it adds up what a prompt's tokens get from its rollouts
    in one order, on a GPU too."""
    tokens = x[0].transpose(0, 1)
    return F.embedding(rows, tokens.flatten(1)).unflatten(-1, tokens.shape[1:]).transpose(1, 2)


# ================================================================ the comparison

def trained(model) -> bool:
    return any(parameter.requires_grad for parameter in model.parameters())


class Eager(Padded):
    """As far from Padded as rounding is."""

    def call(self, model, function, **inputs):
        with attention_implementation(configs_of(model), "eager"):
            return function(**inputs)


def compare_with_padded(model) -> None:
    """A few rollouts in both ways: their logits and, of a model that is trained, the gradient."""
    config = model.config.get_text_config()
    rollouts = few_rollouts(config.vocab_size, model.device)
    forms, alone = [Packed(rollouts, least) for least in (0, LEAST_WORK)], rollouts.select(slice(1))   # without padding
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        errors = map(max, *(differences(model, rollouts, form) for form in forms))
        errors, roundings = list(errors), differences(model, alone, Eager(alone))
    finally:
        for parameter, grad in before:
            parameter.grad = grad
    check_windows(config, set(forms[0].masks))
    for name, error, rounding in zip(("logits", "gradient"), errors, roundings):
        if not error <= 4 * rounding + max(3e-4, torch.finfo(model.dtype).eps):
            raise NotPlain(f"its {name} differ by {error:.2g}, and by {rounding:.2g} from those of its eager attention")


def differences(model, rollouts: Rollouts, form: Padded | Packed) -> list[float]:
    """How far logits and gradient are from those of Padded, as shares of their norms."""
    model.zero_grad()
    token_ids, all_logits, norms = rollouts.completion_ids[rollouts.completion_mask], [], []
    with torch.set_grad_enabled(trained(model)):
        for sign, way in ((1, Padded(rollouts)), (-1, form)):               # the second gradient is taken off the first
            logits = way.predicting(way.call(model, model, **way.inputs).logits).float()
            all_logits.append(logits.detach())
            if trained(model):
                (sign * F.cross_entropy(logits, token_ids)).backward()
                norms.append(whole(nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)))
    expected, got = all_logits
    shares = [float((got - expected).norm() / expected.norm())]
    return shares + [float(norms[1] / norms[0])] if norms and norms[0] else shares


def few_rollouts(vocab_size: int, device) -> Rollouts:
    """Two groups, prompts and completions of unequal length."""
    prompts, completions = [[1, 2, 3, 4], [1, 2, 3, 4], [5, 6]], [[7, 8, 9], [10], [11, 12]]
    parts = [pad([[token % vocab_size for token in row] for row in rows], 0, device, left)
             for rows, left in ((prompts, True), (completions, False))]
    return Rollouts(*parts[0], *parts[1], torch.ones(len(prompts), dtype=torch.bool, device=device))
