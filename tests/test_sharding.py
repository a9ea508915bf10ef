"""Many ranks: the same rollouts, the same gradients, the same files; and each rank reads only its rows."""
import json
from pathlib import Path

import gradients as gradients_script
import pytest
import torch
from conftest import metrics, run
from forks import run_ranks
from safetensors.torch import load_file

import common
from engine import ranks, sharding
import stage2_shape

GRADIENTS = Path(__file__).with_name("gradients.py")
STAGES = ("stage1_grpo", "stage3_kl", "stage4_distill")
PER_STEP = {"stage1_grpo": "--prompts-per-step", "stage3_kl": "--rollouts-per-step", "stage4_distill": "--prompts-per-step"}


def test_activation_checkpointing_changes_no_gradient(toy):
    tokenizer = common.load_tokenizer(toy / "student")
    rollouts = gradients_script.canned_sample(None, [[5, 6, 7], [8, 9]], samples_per_prompt=2, max_new_tokens=9, eos_ids=[1], pad_id=0)
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = common.load_model(toy / "student", tokenizer, "float32", "cpu", True, checkpointing)
        common.completion_logprobs(model, rollouts).sum().backward()        # a first use compares, with calls of its own
        model.zero_grad()
        model.model.layers[0].self_attn.register_forward_hook(lambda *_, checkpointing=checkpointing: calls.append(checkpointing))
        common.completion_logprobs(model, rollouts).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert calls.count(True) == calls.count(False) + 1   # once more, for the backward pass
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    with sharding.sampling_weights(model, "float32") as sampler:
        assert not sampler.model.layers[0].training                      # a block that is checkpointed has no cache
        common.sample(sampler, [[5, 6]], samples_per_prompt=2, max_new_tokens=4, eos_ids=[1], pad_id=0)
    assert model.model.layers[0].training and not model.training, "the blocks alone, each as it was"


# ---------------------------------------------------------------- several ranks


@pytest.fixture(scope="module")
def flags_of(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("shape") / "shape"
    run(stage2_shape, "--teacher", toy / "teacher", "--reference", toy / "teacher", "--problems", toy / "few_train.jsonl",
        "--certify-problems", toy / "few_heldout.jsonl", "--out", out, "--max-new-tokens", 16, "--samples-per-prompt", 2, "--allow-failed-certificate")
    shared = ["--max-new-tokens", "12", "--max-grad-norm", "1e9", "--lr", "1e-3"]
    pair = ["--student", toy / "student", "--teacher", toy / "teacher"]
    flags = {
        "stage1_grpo": [*shared, "--model", toy / "student", "--problems", toy / "few_train.jsonl", "--samples-per-prompt", "3",
                        "--steps-per-rollout", "1", "--give-up-after", "0"],
        "stage2_shape": ["--teacher", toy / "teacher", "--reference", toy / "student", "--problems", toy / "few_heldout.jsonl",
                         "--certify-problems", toy / "few_train.jsonl", "--samples-per-prompt", "2", "--max-new-tokens", "12", "--prompts-per-step", "3", "--num-problems", "13",
                         "--allow-failed-certificate"],
        "stage3_kl": [*shared, *pair, "--rollouts", out / "rollouts.jsonl", "--problems", toy / "few_heldout.jsonl", "--max-kl", "-1",
                      "--allow-failed-certificate"],
        "stage4_distill": [*shared, *pair, "--problems", toy / "few_train.jsonl"]}
    return {stage: list(map(str, flags[stage])) for stage in flags}


UNEVEN = {"five": (5, "--micro-batch-size", "2"),       # 4 ranks: one has two prompts
          "three": (3, "--micro-batch-size", "100")}     # 4 ranks: one has none
VARIANTS = {"stage1_grpo_three": ["--kl-coef", "0.1", "--loss-mean", "sequence", "--mask-truncated"],
            "stage4_distill_three": ["--estimator", "sampled"]}


@pytest.fixture(scope="module")
def many(flags_of, tmp_path_factory):
    """Every job on 1, 2 and 4 ranks.  -> the folder of each"""
    folders = {}
    for num_ranks in (1, 2, 4):
        folder = folders[num_ranks] = tmp_path_factory.mktemp(f"ranks{num_ranks}")
        jobs = [[str(folder / f"{stage}_{name}.pt"), stage, *flags_of[stage], PER_STEP[stage], str(uneven[0]), *uneven[1:],
                 *VARIANTS.get(f"{stage}_{name}", []), "--max-steps", "1", "--out", str(folder / f"{stage}_{name}")]
                for stage in STAGES for name, uneven in UNEVEN.items()]
        for stage in STAGES:
            steps = ["--max-steps", "3", "--save-every", "2", PER_STEP[stage], "5", "--micro-batch-size", "4"]
            jobs.append(["real", stage, *flags_of[stage], *steps, "--out", str(folder / f"{stage}_real")])
        extra = ["--sample-on-shards", "--activation-checkpointing", "--offload-teacher"]
        jobs.append(["real", "stage4_distill", *flags_of["stage4_distill"], *steps, *extra, "--out", str(folder / "stage4_distill_shards")])
        jobs.append(["real", "stage2_shape", *flags_of["stage2_shape"], "--out", str(folder / "stage2_shape")])
        (folder / "jobs.json").write_text(json.dumps(jobs))
        run_ranks(num_ranks, GRADIENTS, folder / "jobs.json")
    return folders


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", UNEVEN)
@pytest.mark.parametrize("stage", STAGES)
def test_gradient_is_the_same_on_any_number_of_ranks(many, stage, name, ranks):
    alone, shared = (torch.load(many[number] / f"{stage}_{name}.pt")[0] for number in (1, ranks))
    scale = max(gradient.abs().max() for gradient in alone)
    assert scale > 0
    for one, other in zip(alone, shared, strict=True):
        assert (one - other).abs().max() <= 1e-6 * max(scale, 1)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("job", ["stage1_grpo_real", "stage3_kl_real", "stage4_distill_real", "stage4_distill_shards"])
def test_real_steps_are_the_same_on_any_number_of_ranks(many, job, ranks):
    """Sampled in earnest, three steps; gathered for sampling or on shards."""
    alone, shared = metrics(many[1] / job), metrics(many[ranks] / job)
    assert len(alone) == len(shared) >= 3
    for one, other in zip(alone, shared):
        for name in ("loss", "reverse_kl_nats", "forward_kl_nats", "grad_norm", "num_tokens", "reward_mean", "c2_reverse_kl_nats"):
            if name in one or name in other:
                assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6), (name, one, other)
    weights = [load_file(many[number] / job / "model" / "model.safetensors") for number in (1, ranks)]
    assert weights[0].keys() == weights[1].keys() and "lm_head.weight" not in weights[0]        # tied stays tied
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() < 1e-3
    assert json.loads((many[ranks] / job / "model" / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]


@pytest.mark.parametrize("ranks", [2, 4])
def test_certificate_is_the_same_on_any_number_of_ranks(many, ranks):
    rows = [[json.loads(line) for line in open(many[number] / "stage2_shape" / "rollouts.jsonl")] for number in (1, ranks)]
    assert len(rows[0]) == 26
    for one, other in zip(*rows, strict=True):
        assert one["completion_ids"] == other["completion_ids"] and one["id"] == other["id"]
        assert one["teacher_logprob_nats"] == pytest.approx(other["teacher_logprob_nats"], abs=1e-4)


@pytest.mark.parametrize("sizes, world_size", [([5, 1, 1, 1, 2], 2), ([3, 3, 3], 4), ([], 2), ([7], 1)])
def test_shares_are_balanced_and_complete(monkeypatch, sizes, world_size):
    monkeypatch.setattr(ranks, "world_size", lambda: world_size)
    shares = []
    for rank in range(world_size):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        shares.append(ranks.balanced_share(sizes))
    assert sorted(sum(shares, [])) == list(range(len(sizes)))
    loads = [sum(sizes[place] for place in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)
