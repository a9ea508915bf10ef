"""Rung 2: several optimiser steps on the same rollouts, and what that asks for: the ratio and its clip.

    3. L = −(1/N) Σ_i Σ_t min(ρ A_i, clip(ρ, 1 − 0.2, 1 + 0.28) A_i),  ρ = π(y_t|s_t) / π_old(y_t|s_t),
       N = all completion tokens of the step; where A_i < 0 the term is at least 10 A_i                  clipped_loss

Sampling is most of the work, so one rollout batch serves several steps.  After the first of them the policy is no
longer π_old, the one that sampled: the ratio corrects for that, and the clip takes the gradient from tokens that have
moved far.  At ρ = 1 the gradient is that of rung 1.  All else is imported from there.

This is the loss of stage1_grpo.py: a test holds that both give the same gradient on the same rollouts.  What stage 1
adds is no mathematics: many processes, runs that go on after a stop, micro-batches, any tokenizer and problem file, a
judge that knows mathematics, evaluation, logs.

    python docs/ladder/rung2_clipped_ratio.py toy/teacher toy/train.jsonl
"""
import json
import random
import sys

import torch
from rung1_policy_gradient import GROUP, LR, PROMPTS, STEPS, completion_logprobs, group_advantages, load, roll_out
from torch import Tensor

STEPS_PER_ROLLOUT = 2


def clipped_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor,
                 clip_low: float = 0.2, clip_high: float = 0.28, dual_clip: float = 10.0) -> Tensor:
    """The clipped surrogate of each token, averaged over all tokens (equation 3).

    2 x (B, C) nats, (B,), (B, C) bool -> a scalar.
    """
    ratio, advantage = (logprobs - old_logprobs).exp(), advantages[:, None]
    objective = torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)
    objective = torch.where(advantage < 0, torch.maximum(objective, dual_clip * advantage), objective)
    return -(objective * mask).sum() / mask.sum()


def main(model_path: str, problems_path: str) -> None:
    torch.manual_seed(0)
    policy, tokenizer = load(model_path)
    problems = [json.loads(line) for line in open(problems_path, encoding="utf-8")]
    optimizer = torch.optim.AdamW(policy.parameters(), LR, (0.9, 0.95), 1e-8, weight_decay=0)
    draw = random.Random(0)
    for first in range(1, STEPS + 1, STEPS_PER_ROLLOUT):
        chosen = draw.sample(problems, PROMPTS * STEPS_PER_ROLLOUT)
        prompt_ids, completion_ids, mask, rewards = roll_out(policy, tokenizer, chosen)
        advantages = group_advantages(rewards)
        with torch.no_grad():                               # before the first step: by the policy that sampled
            old_logprobs = completion_logprobs(policy, prompt_ids, completion_ids)
        parts = torch.arange(len(rewards)).split(PROMPTS * GROUP)           # whole groups, a part for each step
        for step, part in enumerate(parts, first):
            logprobs = completion_logprobs(policy, prompt_ids[part], completion_ids[part])
            clipped_loss(logprobs, old_logprobs[part], advantages[part], mask[part]).backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            moved = (logprobs - old_logprobs[part]).abs()[mask[part]].mean()
            print(f"step {step}: reward {rewards.mean():.3f}, |log ρ| {moved:.4f} nats", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
