"""On a stand-in device: nothing mixes devices, and the host waits for the device no more often than is said here.

PyTorch cannot forget a device: test_device.py runs this in a process of its own.
"""
import collections

import pytest
import torch
from conftest import metrics, on_log, run
from standin import MixedDevices, StandIn, install, waits

import eval as judge
import stage1_grpo
import stage2_shape
import stage3_kl
import stage4_distill
from engine import runs, sampler

SHORT = ("--max-new-tokens", 12, "--micro-batch-size", 8)


@pytest.fixture
def device(monkeypatch):
    """The scripts run on the stand-in device; `device.draws` counts the decoding steps."""
    place, draw = install(), sampler.draw
    place_and_count = collections.namedtuple("Device", "place draws")(place, [])
    monkeypatch.setattr(runs, "setup_distributed", lambda: place)
    monkeypatch.setattr(sampler, "draw", lambda *args: (place_and_count.draws.append(1), draw(*args))[1])
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)     # tied weights stay tied on their way to the device
    waits.clear()
    with torch.autograd.set_multithreading_enabled(False):          # a backend in Python has no threads of its own
        yield place_and_count
    torch.__future__.set_swap_module_params_on_conversion(swap)


def steps_of(monkeypatch, device) -> list[tuple[collections.Counter, int]]:
    """-> filled while it runs: the waits, by file, and the decoding steps of each optimiser step."""
    steps = []

    def snapshot(step, figures):
        steps.append((collections.Counter(waits), len(device.draws)))
        waits.clear()
        device.draws.clear()

    on_log(monkeypatch, snapshot)
    return steps


def in_the_sampler(step: collections.Counter) -> int:
    return sum(count for (file, _, _), count in step.items() if file == "sampler.py")


def test_the_device_catches_what_a_gpu_would(device):
    there, here = torch.arange(4, device=device.place), torch.arange(4)
    assert isinstance(there + 1, StandIn) and (there + 1).device == device.place and (there + 1).tolist() == [1, 2, 3, 4]
    for mixed in (lambda: there + here, lambda: there[here], lambda: torch.cat([here, there])):
        with pytest.raises(MixedDevices):
            mixed()
    weight = torch.ones(4, device=device.place, requires_grad=True)
    (weight * there).sum().backward()
    assert weight.grad.tolist() == [0, 1, 2, 3]


# Outside of the sampler a step of stage 1 waits 21 times (2 of these to know which prompts its rollouts answer), and 9 more for each micro-batch (of it 2 for each pass of a
# model: how many tokens there are, and where); however many tokens.
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_stage_1(toy, tmp_path, monkeypatch, device, micro_batches):
    steps = steps_of(monkeypatch, device)
    run(stage1_grpo, "--model", toy / "teacher", "--problems", toy / "few_train.jsonl", "--out", tmp_path / "run", "--kl-coef", 0.1, "--max-steps", 3,
        "--prompts-per-step", 2 * micro_batches, "--samples-per-prompt", 4, "--steps-per-rollout", 1, *SHORT)
    assert len(metrics(tmp_path / "run")) == 3 and max(row["grad_norm"] for row in metrics(tmp_path / "run")) > 0
    for step, draws in steps[1:]:                                   # the first compares ways with one another, once a model
        assert in_the_sampler(step) <= draws + 1, step              # one in a decoding step, one in a prefill
        assert sum(step.values()) - in_the_sampler(step) <= 21 + 9 * micro_batches, step


def test_stage_2_3_and_evaluation(toy, tmp_path, monkeypatch, device):
    run(stage2_shape, "--teacher", toy / "teacher", "--reference", toy / "teacher", "--problems", toy / "few_train.jsonl", "--out", tmp_path / "shape",
        "--certify-problems", toy / "few_heldout.jsonl", "--samples-per-prompt", 2, "--allow-failed-certificate", *SHORT)
    steps = steps_of(monkeypatch, device)
    run(stage3_kl, "--student", toy / "student", "--teacher", toy / "teacher", "--rollouts", tmp_path / "shape" / "rollouts.jsonl", "--out", tmp_path / "bridge",
        "--problems", toy / "few_heldout.jsonl", "--max-kl", 1e-9, "--max-steps", 3, "--rollouts-per-step", 8, "--eval-every", 0,
        "--allow-failed-certificate", *SHORT)
    for step, _ in steps[2:3]:                                      # of a step that measures nothing
        assert sum(step.values()) <= 12, step
    waits.clear()
    device.draws.clear()
    run(judge, "--model", tmp_path / "bridge" / "model", "--problems", toy / "few_test.jsonl", "--samples", 2, "--max-new-tokens", 12, "--out", tmp_path / "eval",
        "--top-k", 5, "--top-p", 0.9, "--allow-failed-certificate")
    assert in_the_sampler(collections.Counter(waits)) <= len(device.draws) + 12, collections.Counter(waits)     # a first use compares


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_stage_4(toy, tmp_path, monkeypatch, device, estimator):
    steps = steps_of(monkeypatch, device)
    run(stage4_distill, "--student", toy / "student", "--teacher", toy / "teacher", "--problems", toy / "few_train.jsonl", "--out", tmp_path / "run",
        "--max-steps", 3, "--prompts-per-step", 8, "--estimator", estimator, *SHORT)
    for step, draws in steps[2:]:
        assert in_the_sampler(step) <= draws + 1 and sum(step.values()) - in_the_sampler(step) <= 15, step
