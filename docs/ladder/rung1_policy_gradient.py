"""Rung 1: stage 1 without anything around it.  A policy gradient on a 0/1 reward, one file, no import of ours.

    1. r(x, y) = 1 if the answer in the box of y is the gold answer, else 0                       reward
    2. A_i = (r_i − mean(r)) / (std(r) + ε) within the completions of one prompt                  group_advantages
    3. L = −(1/N) Σ_i Σ_t A_i log π(y_t|s_t),  N = all completion tokens of the step              policy_gradient_loss

One process, two paths and no other flag, nothing to resume, no evaluation.  Each optimiser step samples anew, so that
the policy that is trained is the one that sampled.  The next rung takes several steps on the same rollouts.

    python prepare.py toy --out toy
    python docs/ladder/rung1_policy_gradient.py toy/teacher toy/train.jsonl

The toy's prompts all have one length.  Others would be padded on the left, with an attention mask and positions.
"""
import json
import random
import re
import sys

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS = 40                  # optimiser steps
PROMPTS, GROUP = 16, 8      # prompts of a step, and completions of each prompt (G)
MAX_NEW_TOKENS = 16
LR = 3e-4


@torch.no_grad()
def sample(policy, prompt_ids: Tensor, eos_id: int) -> tuple[Tensor, Tensor]:
    """One completion behind each prompt, at temperature 1.  (B, P) -> completion_ids (B, C) int64, mask (B, C) bool.

    The mask covers the EOS that ended a completion, and nothing after it.
    """
    ids = prompt_ids
    for _ in range(MAX_NEW_TOKENS):
        probs = policy(ids, use_cache=False).logits[:, -1].softmax(-1)      # (B, V); it reads all tokens anew each time
        ids = torch.cat([ids, torch.multinomial(probs, 1)], 1)
    completion_ids = ids[:, prompt_ids.shape[1]:]
    is_eos = (completion_ids == eos_id).long()
    return completion_ids, is_eos.cumsum(1) - is_eos == 0


def reward(text: str, finished: bool, gold: str) -> float:
    """1 if the last box holds the gold answer, else 0 (equation 1); a completion that was cut off is wrong."""
    boxes = re.findall(r"\\boxed\{(.*?)\}", text)
    return float(finished and boxes[-1:] == [gold])


def group_advantages(rewards: Tensor, eps: float = 1e-4) -> Tensor:
    """Standardise each reward within its group (equation 2).  (B,) -> (B,); the rollouts of a group are adjacent."""
    groups = rewards.view(-1, GROUP)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True, correction=0) + eps)).view(-1)


def completion_logprobs(policy, prompt_ids: Tensor, completion_ids: Tensor) -> Tensor:
    """What the policy gives to each completion token.  (B, P), (B, C) -> (B, C) nats."""
    logits = policy(torch.cat([prompt_ids, completion_ids], 1)).logits      # (B, P + C, V); row t predicts token t + 1
    logits = logits[:, prompt_ids.shape[1] - 1:-1]                          # (B, C, V)
    return logits.log_softmax(-1).gather(-1, completion_ids[..., None])[..., 0]


def policy_gradient_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Raise the tokens of completions that were better than their group, lower the others (equation 3).

    (B, C) nats, (B,), (B, C) bool -> a scalar.
    """
    return -(advantages[:, None] * logprobs * mask).sum() / mask.sum()


def load(path: str):
    """-> the policy, ready to be trained, and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)


def roll_out(policy, tokenizer, problems: list[dict]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sample and score.  -> prompt_ids (B, P), completion_ids (B, C), mask (B, C), rewards (B,); B = problems · G."""
    prompt_ids = torch.tensor(tokenizer([problem["problem"] for problem in problems])["input_ids"])
    prompt_ids = prompt_ids.repeat_interleave(GROUP, 0)
    completion_ids, mask = sample(policy, prompt_ids, tokenizer.eos_token_id)
    finished = ((completion_ids == tokenizer.eos_token_id) & mask).any(1).tolist()
    texts = [tokenizer.decode(ids[own], skip_special_tokens=True) for ids, own in zip(completion_ids, mask)]
    golds = [problem["answer"] for problem in problems for _ in range(GROUP)]
    return prompt_ids, completion_ids, mask, torch.tensor([*map(reward, texts, finished, golds)])


def main(model_path: str, problems_path: str) -> None:
    torch.manual_seed(0)
    policy, tokenizer = load(model_path)
    problems = [json.loads(line) for line in open(problems_path, encoding="utf-8")]
    optimizer = torch.optim.AdamW(policy.parameters(), LR, (0.9, 0.95), 1e-8, weight_decay=0)
    draw = random.Random(0)
    for step in range(1, STEPS + 1):
        prompt_ids, completion_ids, mask, rewards = roll_out(policy, tokenizer, draw.sample(problems, PROMPTS))
        advantages = group_advantages(rewards)
        loss = policy_gradient_loss(completion_logprobs(policy, prompt_ids, completion_ids), advantages, mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: reward {rewards.mean():.3f}, mean length {mask.sum() / len(mask):.1f} tokens", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
