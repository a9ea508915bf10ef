"""The loops: whatever splits a batch leaves the gradient alone, and a resumed run is the same to the bit."""
import json

import gradients as gradients_script
import pytest
import torch
import transformers
from conftest import metrics, on_log, run
from safetensors.torch import load_file

import common
from engine import ranks, runs
from engine.rollouts import cut_groups
import stage1_grpo
import stage2_shape
import stage3_kl
import stage4_distill


@pytest.fixture(scope="module")
def rollouts_file(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("shape") / "shape"
    run(stage2_shape, "--teacher", toy / "teacher", "--reference", toy / "teacher", "--problems", toy / "few_train.jsonl", "--out", out,
        "--certify-problems", toy / "few_heldout.jsonl", "--max-new-tokens", 16, "--samples-per-prompt", 2, "--allow-failed-certificate")
    return out / "rollouts.jsonl"


@pytest.fixture(scope="module")
def flags_of(toy, rollouts_file):
    """One optimiser step of 6 prompts for each stage; the clipped gradient norm would hide a wrong scale: no clip."""
    shared = ["--max-new-tokens", "12", "--max-grad-norm", "1e9"]
    pair = ["--student", toy / "student", "--teacher", toy / "teacher"]
    return {
        "stage1_grpo": [*shared, "--prompts-per-step", "6", "--model", toy / "student", "--problems", toy / "few_train.jsonl", "--samples-per-prompt", "3",
                        "--steps-per-rollout", "1", "--max-steps", "1"],
        "stage3_kl": [*shared, "--rollouts-per-step", "6", *pair, "--rollouts", rollouts_file, "--problems", toy / "few_heldout.jsonl", "--max-kl", "-1",
                      "--allow-failed-certificate", "--max-steps", "1"],
        "stage4_distill": [*shared, "--prompts-per-step", "6", *pair, "--problems", toy / "few_train.jsonl", "--max-steps", "1"]}


@pytest.fixture
def gradient_here(tmp_path, monkeypatch):
    """The same in this process, which saves the imports.  .run: the directory of the last run"""
    def compute(stage, flags):
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.pt"
        monkeypatch.setattr(torch.optim.AdamW, "step", torch.optim.AdamW.step)
        for module, name in ((common, "sample"), (runs, "sample"), (common, "grade")):
            monkeypatch.setattr(module, name, getattr(module, name))
        compute.run = file.with_suffix("")
        gradients_script.main(file, stage, *map(str, flags), "--out", str(compute.run))
        return torch.load(file)[0]
    return compute


def assert_same(got, expected):
    scale = max(tensor.abs().max() for tensor in expected)
    assert scale > 0
    for one, other in zip(got, expected, strict=True):
        assert (one - other).abs().max() <= 1e-6 * max(scale, 1)


@pytest.mark.parametrize("stage", ["stage1_grpo", "stage3_kl", "stage4_distill"])
def test_gradient_is_the_same_under_any_micro_batch_split(gradient_here, flags_of, stage):
    whole = gradient_here(stage, [*flags_of[stage], "--micro-batch-size", 100])
    for size in (1, 2, 3, 5):
        assert_same(gradient_here(stage, [*flags_of[stage], "--micro-batch-size", size]), whole)


def test_any_number_of_ranks_draws_the_same_rollouts_and_takes_the_same_steps(toy, monkeypatch):
    """Stage 1's rollout batch of 8 prompts in 2 steps, on one rank and shared by three."""
    args = stage1_grpo.parse_args(["--model", "-", "--problems", "-", "--out", "-", "--prompts-per-step", "4", "--steps-per-rollout", "2",
                                   "--samples-per-prompt", "3", "--max-new-tokens", "16"])
    args.model, problems = toy / "student", common.load_problems(toy / "few_train.jsonl")
    here = runs.Run(args, ["model"], problems=problems)
    policy, prompts = common.load_model(args.model, here.tokenizer, "float32", "cpu"), here.prompts["problems"]

    def steps_of(rank, world_size):
        monkeypatch.setattr(ranks, "rank", lambda: rank)
        monkeypatch.setattr(ranks, "world_size", lambda: world_size)
        rollouts = here.sample(policy, prompts[:8], "rollouts", 5)
        rollouts.rewards, _ = common.grade_rollouts(rollouts, [problems[i].answer for i in rollouts.prompt_index.tolist()], here.tokenizer)
        rollouts.advantages = stage1_grpo.group_advantages(rollouts.rewards, 3)
        parts = cut_groups(rollouts, 8, 4, ranks.random_generator(0, "groups", 5))
        return [sorted(zip(map(tuple, part.prompts()), map(tuple, part.completions()), part.advantages.tolist())) for part in parts]

    alone, shared = steps_of(0, 1), [steps_of(rank, 3) for rank in range(3)]
    assert [len(step) for step in alone] == [12, 12]
    for number in (0, 1):
        assert alone[number] == sorted(row for part in shared for row in part[number])


@pytest.mark.parametrize("loss_mean", ["token", "sequence"])
def test_groups_without_advantage_are_left_out_of_the_passes_and_not_of_the_mean(gradient_here, flags_of, monkeypatch, loss_mean):
    """Against all rollouts, which an entropy bonus of next to nothing makes the stage pass."""
    passed, forward = [], stage1_grpo.completion_logprobs
    monkeypatch.setattr(stage1_grpo, "completion_logprobs",
                        lambda policy, micro, *rest, **more: (passed.append(len(micro)), forward(policy, micro, *rest, **more))[1])
    flags = [*flags_of["stage1_grpo"], "--micro-batch-size", 2, "--loss-mean", loss_mean]
    every = gradient_here("stage1_grpo", [*flags, "--entropy-coef", 1e-30])
    assert sum(passed) == 18
    passed.clear()
    mixed = gradient_here("stage1_grpo", flags)
    assert 0 < sum(passed) < 18 and sum(passed) % 3 == 0    # groups of 3
    assert_same(mixed, every)


def test_a_batch_without_any_advantage_has_gradient_zero_and_still_counts(toy, tmp_path, monkeypatch):
    """AdamW takes its step (decay, momentum), and the log does not call a gap measured that was not."""
    monkeypatch.setattr(common, "grade", lambda completion, gold: False)
    run(stage1_grpo, "--model", toy / "teacher", "--problems", toy / "few_train.jsonl", "--out", tmp_path / "run", "--max-steps", 2,
        "--steps-per-rollout", 2, *GRPO, "--weight-decay", 10)
    rows = metrics(tmp_path / "run")
    assert [row["grad_norm"] for row in rows] == [0, 0] and all(row["num_tokens"] > 16 for row in rows)
    assert sum(row["num_tokens"] for row in rows) == rows[0]["sampled_tokens"]
    assert not any(name.startswith("sampler_gap") for row in rows for name in row)
    before, after = (load_file(path / "model.safetensors") for path in (toy / "teacher", tmp_path / "run" / "model"))
    for name in before:
        assert torch.allclose(after[name], before[name] * (1 - 1e-3 * 10)**2, rtol=1e-6)


def test_masked_truncated_rows_are_as_if_they_were_not_there(gradient_here, flags_of, monkeypatch):
    """Numerator and denominator: the gradient is that of the batch without these rows, their rewards still counted."""
    flags = [*flags_of["stage1_grpo"], "--micro-batch-size", 100]
    sample = gradients_script.canned_sample

    def some_cut(*args, **kwargs):
        rollouts = sample(*args, **kwargs)
        rollouts.finished[::4] = False
        return rollouts

    monkeypatch.setattr(gradients_script, "canned_sample", some_cut)
    masked = gradient_here("stage1_grpo", [*flags, "--mask-truncated"])
    monkeypatch.setattr(stage1_grpo, "cut_groups", lambda rollouts, *rest: [rollouts.select(rollouts.finished)])
    removed = gradient_here("stage1_grpo", flags)
    assert_same(masked, removed)


# ---------------------------------------------------------------- a whole step, beside plain float64


TEMPERATURE = 0.7


def plain_logprobs(directory, prompts, completions):
    """By the whole model in float64, each row alone.  -> its weights, and log π at each of a row's tokens (C, V)"""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    logits = [model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1:-1] for prompt, completion in zip(prompts, completions, strict=True)]
    return list(model.parameters()), [each.div(TEMPERATURE).log_softmax(-1) for each in logits]


def of_tokens(logprobs, completions):
    return [each.gather(1, torch.tensor(ids)[:, None])[:, 0] for each, ids in zip(logprobs, completions, strict=True)]


def assert_is_gradient(got, loss, weights):
    expected = torch.autograd.grad(loss, weights)
    scale = max(gradient.abs().max() for gradient in expected)
    for one, other in zip(got, expected, strict=True):
        assert (one - other).abs().max() <= 1e-5 * scale


def assert_figures(run, rollouts, **expected):
    """What the log says of the step."""
    lengths = torch.tensor([len(completion) for completion in rollouts.completions()], dtype=torch.float64)
    expected |= {"num_tokens": lengths.sum(), "mean_length_tokens": lengths.mean(), "truncated_fraction": (~rollouts.finished).double().mean()}
    row = metrics(run)[-1]
    for name, value in expected.items():
        assert row[name] == pytest.approx(float(torch.as_tensor(value).detach()), rel=1e-4, abs=1e-6), name


@pytest.fixture
def taken(monkeypatch):
    """The canned rollouts that a stage was given."""
    taken, sample = [], gradients_script.canned_sample
    monkeypatch.setattr(gradients_script, "canned_sample", lambda *args, **more: (taken.append(sample(*args, **more)), taken[-1])[1])
    return taken


@pytest.mark.parametrize("loss_mean", ["token", "sequence"])
def test_stage_1s_gradient_is_plain(gradient_here, flags_of, toy, taken, loss_mean):
    """On the first pass, the ratio 1: − A · ratio − 0.1 · the entropy, of every token or sequence alike."""
    got = gradient_here("stage1_grpo", [*flags_of["stage1_grpo"], "--temperature", TEMPERATURE, "--loss-mean", loss_mean, "--entropy-coef", 0.1])
    prompts, completions, finished = taken[0].prompts(), taken[0].completions(), taken[0].finished.tolist()
    texts = common.load_tokenizer(toy / "student").batch_decode(completions, skip_special_tokens=True)
    groups = torch.tensor([float(ended and len(text) % 2 == 0) for text, ended in zip(texts, finished)], dtype=torch.float64).view(6, 3)
    advantages = (groups - groups.mean(1, keepdim=True)) / (groups.var(1, keepdim=True, correction=0).sqrt() + 1e-4)
    assert 1 < advantages.any(1).sum() < 6, "groups with and without variance"
    weights, logprobs = plain_logprobs(toy / "student", prompts, completions)
    rows = [-advantage * (1 + tokens - tokens.detach()) + 0.1 * (each.exp() * each).sum(1)
            for advantage, tokens, each in zip(advantages.flatten(), of_tokens(logprobs, completions), logprobs)]
    loss = torch.cat(rows).mean() if loss_mean == "token" else sum(row.mean() for row in rows) / len(rows)
    assert_is_gradient(got, loss, weights)
    assert_figures(gradient_here.run, taken[0], loss=loss, reward_mean=groups.mean(), clipped_fraction=0,
                   mixed_groups_fraction=advantages.any(1).double().mean(), sampled_tokens=sum(map(len, completions)),
                   sampler_gap_max_nats=torch.cat(of_tokens(logprobs, completions)).abs().max())


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_stage_3s_gradient_is_plain(gradient_here, toy, tmp_path, monkeypatch, estimator):
    """KL(teacher || student), or cross-entropy, of rollouts that stage 2 has given several weights."""
    monkeypatch.setattr(common, "grade", lambda completion, gold: sum(map(ord, completion)) % 2 == 0)
    run(stage2_shape, "--teacher", toy / "teacher", "--reference", toy / "teacher", "--problems", toy / "few_train.jsonl", "--num-problems", 8,
        "--certify-problems", toy / "few_heldout.jsonl", "--max-new-tokens", 16, "--samples-per-prompt", 4, "--weight", "reward", "--temperature", TEMPERATURE,
        "--out", tmp_path / "shape", "--allow-failed-certificate")
    rollouts = tmp_path / "shape" / "rollouts.jsonl"
    rows = [json.loads(line) for line in rollouts.read_text().splitlines()]
    assert len({row["weight"] for row in rows}) > 1
    got = gradient_here("stage3_kl", [
        "--student", toy / "student", "--teacher", toy / "teacher", "--rollouts", rollouts, "--problems", toy / "few_heldout.jsonl", "--max-kl", -1,
        "--allow-failed-certificate", "--max-steps", 1, "--rollouts-per-step", len(rows), "--temperature", TEMPERATURE, "--estimator", estimator,
        "--max-grad-norm", 1e9, "--max-new-tokens", 12])
    prompts, completions = ([row[name] for row in rows] for name in ("prompt_ids", "completion_ids"))
    weights, student = plain_logprobs(toy / "student", prompts, completions)
    teacher = [each.detach() for each in plain_logprobs(toy / "teacher", prompts, completions)[1]]
    each = [(q.exp() * (q - p)).sum(1) for p, q in zip(student, teacher)] if estimator == "exact" else [-tokens for tokens in of_tokens(student, completions)]
    loss = sum(row["weight"] * tokens.sum() for row, tokens in zip(rows, each)) / sum(row["weight"] * len(row["completion_ids"]) for row in rows)
    assert_is_gradient(got, loss, weights)


@pytest.mark.parametrize("flags", ["--divergence reverse", "--divergence forward", "--divergence jsd", "--estimator sampled"])
def test_stage_4s_gradient_is_plain(gradient_here, flags_of, toy, taken, flags):
    """The divergence, or − (log q − log p) · ratio of the sampled tokens, of the student's own samples."""
    got = gradient_here("stage4_distill", [*flags_of["stage4_distill"], "--temperature", TEMPERATURE, *flags.split()])
    prompts, completions = taken[0].prompts(), taken[0].completions()
    weights, student = plain_logprobs(toy / "student", prompts, completions)
    teacher = [each.detach() for each in plain_logprobs(toy / "teacher", prompts, completions)[1]]
    p, q = torch.cat(student), torch.cat(teacher)
    middle = ((p.exp() + q.exp()) / 2).log()
    sampled_p, sampled_q = (torch.cat(of_tokens(each, completions)) for each in (student, teacher))
    loss = {"reverse": (p.exp() * (p - q)).sum(1), "forward": (q.exp() * (q - p)).sum(1),
            "jsd": ((p.exp() * (p - middle)).sum(1) + (q.exp() * (q - middle)).sum(1)) / 2,
            "sampled": -(sampled_q - sampled_p).detach() * (1 + sampled_p - sampled_p.detach())}[flags.split()[1]]
    assert_is_gradient(got, loss.mean(), weights)
    assert_figures(gradient_here.run, taken[0], loss=loss.mean(), reverse_kl_nats=loss.mean() if "sampled" in flags else (p.exp() * (p - q)).sum(1).mean(),
                   sampler_gap_max_nats=sampled_p.abs().max())


GRPO = ("--max-new-tokens", 16, "--samples-per-prompt", 4, "--prompts-per-step", 4, "--micro-batch-size", 64, "--lr", 1e-3)


def test_first_step_has_ratio_one_and_old_logprobs_are_the_trainers(toy, tmp_path):
    run(stage1_grpo, "--model", toy / "teacher", "--problems", toy / "few_train.jsonl", "--out", tmp_path / "run", "--max-steps", 4,
        "--steps-per-rollout", 2, *GRPO)
    first, second = metrics(tmp_path / "run")[:2]
    assert first["clipped_fraction"] == 0 and 0 <= first["sampler_gap_max_nats"] < 1e-4
    assert second["loss"] != first["loss"]


def test_sampler_gap_by_hand():
    """Ten tokens off by 0.1 to 1.0 nats and one masked: mean, 99th percentile and maximum."""
    rollouts = gradients_script.canned_sample(None, [[5]], samples_per_prompt=1, max_new_tokens=12, eos_ids=[1], pad_id=0)
    rollouts.completion_mask = torch.ones(1, 11, dtype=torch.bool)
    rollouts.completion_mask[0, 10] = False
    rollouts.sampler_logprobs = torch.zeros(1, 11)
    figures = common.sampler_gap([-torch.arange(1, 12)[None] / 10], [rollouts])
    assert figures["sampler_gap_mean_nats"] == pytest.approx(0.55) and figures["sampler_gap_max_nats"] == pytest.approx(1.0)
    assert figures["sampler_gap_p99_nats"] == pytest.approx(0.9)


def test_stage4_logs_the_gap(toy, tmp_path):
    run(stage4_distill, "--student", toy / "student", "--teacher", toy / "teacher", "--problems", toy / "few_train.jsonl",
        "--out", tmp_path / "run", "--max-steps", 1, "--prompts-per-step", 8, "--max-new-tokens", 16, "--temperature", 0.7)
    assert 0 < metrics(tmp_path / "run")[1]["sampler_gap_max_nats"] < 1e-4


def test_old_logprobs_equal_the_first_pass_bit_for_bit(toy, tmp_path, monkeypatch):
    """Same model (here the learning rate is 0), same micro-batch: the ratio is 1 and not nearly 1, also in bf16."""
    ratios = []
    surrogate = stage1_grpo.clipped_surrogate
    monkeypatch.setattr(stage1_grpo, "clipped_surrogate",
                        lambda new, old, *rest: (ratios.append((new - old).detach()), surrogate(new, old, *rest))[1])
    for dtype in ("float32", "bfloat16"):
        run(stage1_grpo, "--model", toy / "teacher", "--problems", toy / "few_train.jsonl", "--out", tmp_path / dtype, "--max-steps", 3,
            "--steps-per-rollout", 3, *GRPO, "--micro-batch-size", 3, "--dtype", dtype, "--lr", 0)
        learnt_from = 3 * 16 * metrics(tmp_path / dtype)[0]["mixed_groups_fraction"]
        assert len(ratios) >= learnt_from / 3 > 3 and all((difference == 0).all() for difference in ratios)
        ratios.clear()


def test_master_weights_move_at_a_small_learning_rate_in_bf16(toy, tmp_path):
    """0.02 − 1e-6 is 0.02 in bf16: with bf16 weights nearly nothing would move."""
    run(stage4_distill, "--student", toy / "student", "--teacher", toy / "teacher", "--problems", toy / "few_train.jsonl",
        "--out", tmp_path / "run", "--max-steps", 1, "--prompts-per-step", 8, "--max-new-tokens", 16, "--lr", 1e-6, "--dtype", "bfloat16",
        "--weight-decay", 0)
    before, after = (load_file(path / "model.safetensors") for path in (toy / "student", tmp_path / "run" / "model"))
    moved, total = 0, 0
    for name in before:
        assert after[name].dtype == torch.float32
        moved, total = moved + (before[name] != after[name]).sum().item(), total + before[name].numel()
    assert moved > 0.99 * total


def test_the_teacher_does_not_change(toy, tmp_path, monkeypatch):
    teachers = []
    load = common.load_model

    def remember(*args, **kwargs):
        model = load(*args, **kwargs)
        if not kwargs.get("trainable"):
            teachers.append((model, {name: value.clone() for name, value in model.state_dict().items()}))
        return model

    monkeypatch.setattr(runs, "load_model", remember)
    run(stage4_distill, "--student", toy / "student", "--teacher", toy / "teacher", "--problems", toy / "few_train.jsonl",
        "--out", tmp_path / "run", "--max-steps", 3, "--prompts-per-step", 8, "--max-new-tokens", 16, "--lr", 1e-3)
    (teacher, before), = teachers
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())


class Crash(Exception):
    pass


@pytest.mark.parametrize("module", [stage1_grpo, stage3_kl, stage4_distill])
def test_a_resumed_run_is_the_same_to_the_bit(toy, flags_of, tmp_path, monkeypatch, module):
    flags = [*flags_of[module.__name__], "--max-steps", 6, "--save-every", 2, "--lr", 1e-3, "--micro-batch-size", 4]
    flags += ["--steps-per-rollout", 2] if module is stage1_grpo else []
    run(module, *flags, "--out", tmp_path / "whole")

    def crash_at_step_5(step, figures):
        if step == 5:
            raise Crash

    on_log(monkeypatch, crash_at_step_5)
    with pytest.raises(Crash):
        run(module, *flags, "--out", tmp_path / "broken")
    assert not (tmp_path / "broken" / "DONE").exists()
    monkeypatch.undo()
    taken_up = []
    load = runs.load_state
    monkeypatch.setattr(runs, "load_state", lambda *args: (taken_up.append(load(*args)), taken_up[0])[1])
    run(module, *flags, "--out", tmp_path / "broken")
    assert taken_up[0][0] == 4, "it went on after step 4 and did not begin anew"
    assert_the_same_run(tmp_path / "whole", tmp_path / "broken")


def assert_the_same_run(one, other):
    def without_clock(rows):
        return [{key: value for key, value in row.items() if "second" not in key} for row in rows]

    one_model, other_model = (load_file(run / "model" / "model.safetensors") for run in (one, other))
    assert all(torch.equal(one_model[name], other_model[name]) for name in one_model)
    assert without_clock(metrics(one)) == without_clock(metrics(other))
    assert (one / "samples.jsonl").read_text() == (other / "samples.jsonl").read_text()


@pytest.mark.parametrize("module", [stage1_grpo, stage3_kl, stage4_distill])
def test_a_finished_run_goes_on_when_max_steps_is_raised(toy, flags_of, tmp_path, capsys, module):
    flags = [*flags_of[module.__name__], "--lr", 1e-3, "--micro-batch-size", 4]
    flags += ["--steps-per-rollout", 2] if module is stage1_grpo else []
    run(module, *flags, "--save-every", 2, "--max-steps", 6, "--out", tmp_path / "whole")
    run(module, *flags, "--save-every", 2, "--max-steps", 3, "--out", tmp_path / "longer")
    run(module, *flags, "--save-every", 2, "--max-steps", 6, "--out", tmp_path / "longer")
    assert_the_same_run(tmp_path / "whole", tmp_path / "longer")
    assert json.loads((tmp_path / "longer" / "args.json").read_text())["args"]["max_steps"] == 6
    with pytest.raises(SystemExit):                      # fewer steps are another run
        run(module, *flags, "--save-every", 2, "--max-steps", 4, "--out", tmp_path / "longer")
    assert "--max-steps: 6 there, 4 now" in capsys.readouterr().err

    run(module, *flags, "--save-every", 0, "--max-steps", 1, "--out", tmp_path / "no_state")
    with pytest.raises(SystemExit):
        run(module, *flags, "--save-every", 0, "--max-steps", 2, "--out", tmp_path / "no_state")
    assert "no state to go on from" in capsys.readouterr().err
    assert (tmp_path / "no_state" / "DONE").is_file(), "nothing is lost"


def test_batches_cover_each_epoch_once():
    seen = [i for batch in range(6) for i in common.batch_indices(10, 5, batch, seed=0)]
    assert all(sorted(seen[start:start + 10]) == list(range(10)) for start in (0, 10, 20)) and seen[:10] != seen[10:20]
    across = [i for batch in range(5) for i in common.batch_indices(10, 4, batch, seed=0)]
    assert sorted(across[:10]) == sorted(across[10:]) == list(range(10)), "a batch that crosses the border of two epochs"


def test_a_run_that_cannot_learn_is_stopped(toy, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run(stage1_grpo, "--model", toy / "teacher", "--problems", toy / "few_train.jsonl", "--out", tmp_path / "run", "--max-steps", 9,
            "--steps-per-rollout", 1, *GRPO, "--max-new-tokens", 2)
    assert "were cut off at --max-new-tokens 2" in str(stop.value.code)
    assert len(metrics(tmp_path / "run")) == 4


def test_regularisers_pull_towards_the_reference_and_towards_entropy(toy, tmp_path):
    """With a large coefficient each has the effect that its name says, on the policy's own figures."""
    flags = ("--model", toy / "teacher", "--problems", toy / "few_train.jsonl", "--max-steps", 8, "--steps-per-rollout", 1, *GRPO)
    run(stage1_grpo, *flags, "--out", tmp_path / "plain")
    run(stage1_grpo, *flags, "--out", tmp_path / "entropy", "--entropy-coef", 10)
    run(stage1_grpo, *flags, "--out", tmp_path / "kl", "--kl-coef", 100)
    last = {name: metrics(tmp_path / name)[-1] for name in ("plain", "entropy", "kl")}
    assert last["entropy"]["entropy_estimate_nats"] > last["plain"]["entropy_estimate_nats"] + 0.1
    start = load_file(toy / "teacher" / "model.safetensors")

    def distance(name):
        weights = load_file(tmp_path / name / "model" / "model.safetensors")
        return sum((weights[key] - start[key]).norm() for key in start)
    assert distance("kl") < distance("plain")
