"""docs/ladder/: each rung runs alone on the toy, and the last one's gradient is that of stage1_grpo.py."""
import ast
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import run
from forks import Fork

import stage1_grpo

LADDER = Path(__file__).parent.parent / "docs" / "ladder"
RUNGS = sorted(LADDER.glob("*.py"))
SMALLER = "import sys; sys.path.insert(0, {ladder!r}); import {name} as rung, rung1_policy_gradient as first; first.GROUP = rung.GROUP = 4; rung.STEPS, rung.PROMPTS = 2, 4; rung.main({model!r}, {problems!r})"


@pytest.fixture
def rungs(monkeypatch):
    monkeypatch.syspath_prepend(str(LADDER))
    import rung1_policy_gradient
    import rung2_clipped_ratio
    yield rung1_policy_gradient, rung2_clipped_ratio
    for path in RUNGS:
        del sys.modules[path.stem]


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.stem)
def test_a_rung_runs_alone(rung, toy):
    text = rung.read_text()
    assert len(text.splitlines()) <= 120
    imported = {name.split(".")[0] for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)
                for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])}
    assert imported - sys.stdlib_module_names <= {"torch", "transformers", "rung1_policy_gradient"}
    code = SMALLER.format(ladder=str(LADDER), name=rung.stem, model=str(toy / "teacher"), problems=str(toy / "few_train.jsonl"))
    fork = Fork(code)
    assert fork.wait() == 0 and len(re.findall(r"^step [12]: reward [01]\.\d{3}, ", fork.said(), re.M)) == 2, fork.said()


def test_the_gradient_is_that_of_stage_1(rungs, toy, tmp_path, monkeypatch):
    """On the rollouts of a run of stage 1: at its first step with ρ = 1, and at its second, where ρ is clipped."""
    first, second = rungs
    parts, weights, gradients = [], [], []
    cut, clip = stage1_grpo.cut_groups, torch.nn.utils.clip_grad_norm_

    def noted_cut(*args, **more):
        parts.extend(cut(*args, **more))
        return list(parts)

    def noted_clip(parameters, max_norm):
        parameters = list(parameters)
        weights.append([parameter.detach().clone() for parameter in parameters])
        gradients.append([parameter.grad.clone() for parameter in parameters])
        return clip(parameters, max_norm)

    monkeypatch.setattr(stage1_grpo, "cut_groups", noted_cut)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted_clip)
    run(stage1_grpo, "--model", toy / "teacher", "--problems", toy / "few_train.jsonl", "--max-steps", 2, "--steps-per-rollout", 2, "--prompts-per-step", 8,
        "--lr", "1e-2", "--max-new-tokens", 16, "--micro-batch-size", 8, "--out", tmp_path / "run")

    policy, _ = first.load(str(toy / "teacher"))
    old_logprobs = []

    for part in parts:                                  # before the first step, of all of them
        with torch.no_grad():
            old_logprobs.append(first.completion_logprobs(policy, part.prompt_ids, part.completion_ids))
    for step, (part, old, now, expected) in enumerate(zip(parts, old_logprobs, weights, gradients, strict=True)):
        with torch.no_grad():
            for parameter, value in zip(policy.parameters(), now, strict=True):
                parameter.copy_(value)
        advantages, mask = first.group_advantages(part.rewards), part.completion_mask
        assert torch.equal(advantages, part.advantages) and advantages.any()
        logprobs = first.completion_logprobs(policy, part.prompt_ids, part.completion_ids)
        clipped = torch.autograd.grad(second.clipped_loss(logprobs, old, advantages, mask), list(policy.parameters()), retain_graph=True)
        plain = torch.autograd.grad(first.policy_gradient_loss(logprobs, advantages, mask), list(policy.parameters()))
        assert distance(clipped, expected) < 1e-5
        assert (distance(plain, expected) < 1e-5) == (step == 0), "rung 1 is right as long as the policy is the one that sampled"


def distance(found, expected) -> float:
    """The norm of the difference over the norm."""
    return float(sum((a - b).square().sum() for a, b in zip(found, expected)).sqrt() / sum(b.square().sum() for b in expected).sqrt())
