"""C1 and C2: what they certify, what confounds them, when they refuse."""
import json
import shutil
import types

import numpy as np
import pytest
import torch
from conftest import metrics, run

import common
import stage1_grpo
import stage2_shape
import stage3_kl
import stage4_distill
from pages import card
from stage2_shape import auc, certify, implicit_reward, within_prompt_auc


def test_implicit_reward_sums_over_the_mask():
    teacher, reference = torch.tensor([[-1.0, -2.0, -5.0]]), torch.tensor([[-2.0, -1.5, 0.0]])
    mask = torch.tensor([[True, True, False]])
    assert implicit_reward(teacher, reference, mask).tolist() == [0.5]


@pytest.mark.parametrize("scores, right, expected", [
    ([1, 2, 3, 4], [0, 0, 1, 1], 1.0), ([4, 3, 2, 1], [0, 0, 1, 1], 0.0), ([1, 1, 1, 1], [0, 1, 0, 1], 0.5),
    ([1, 2, 2, 3], [0, 0, 1, 1], 0.875), ([1, 2], [1, 1], np.nan)])
def test_auc_by_hand(scores, right, expected):
    np.testing.assert_allclose(auc(np.array(scores, float), np.array(right, bool)), expected)


def test_auc_is_the_share_of_pairs():
    rng = np.random.default_rng(0)
    scores, right = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.4
    pairs = scores[right][:, None] - scores[~right][None]
    assert auc(scores, right) == pytest.approx((pairs > 0).mean() + 0.5 * (pairs == 0).mean())


def test_within_prompt_auc_is_blind_to_the_prompt_and_the_pooled_one_is_not():
    """Log Z(x) moves all scores of a prompt; easy prompts score high."""
    right = np.array([[1, 1, 1, 0], [0, 0, 0, 1]], bool)
    scores = np.array([[9.0, 8, 7, 10], [1.0, 2, 3, 0]])
    assert within_prompt_auc(scores, right).tolist() == [0.0, 0.0]
    assert auc(scores.ravel(), right.ravel()) > 0.5


def test_planted_teacher_passes_and_a_random_one_does_not():
    rng = np.random.default_rng(0)
    right, lengths = rng.random((100, 8)) < 0.5, rng.integers(5, 50, (100, 8))
    planted = certify(right * 3.0 + rng.normal(size=right.shape), lengths, right, 0.5)
    assert planted["passed"] and planted["sum"]["within_prompt_auc"]["value"] > 0.9
    random = certify(rng.normal(size=right.shape), lengths, right, 0.5)
    assert not random["passed"] and 0.4 < random["sum"]["within_prompt_auc"]["value"] < 0.6


def test_length_confounds_the_sum_and_the_per_token_figure_shows_it():
    """Every token scores 0.1 and right completions are longer: the sum ranks them, a token does not."""
    right = np.tile([True, False, True, False], (50, 1))
    lengths = np.where(right, 40, 20)
    figures = certify(0.1 * lengths, lengths, right, 0.5)
    assert figures["sum"]["within_prompt_auc"]["value"] == 1.0
    assert figures["per_token"]["within_prompt_auc"]["value"] == pytest.approx(0.5)


def test_no_mixed_prompt_is_no_certificate():
    figures = certify(np.zeros((5, 4)), np.ones((5, 4)), np.zeros((5, 4), bool), 0.5)
    assert not figures["passed"] and figures["sum"]["within_prompt_auc"]["prompts"] == 0
    assert "none of 5 prompts" in card.c1_in_words(figures)


SHAPE = ("--max-new-tokens", 16, "--samples-per-prompt", 4, "--micro-batch-size", 64)


def test_teacher_equal_to_reference_has_no_reward_and_fails(toy, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run(stage2_shape, "--teacher", toy / "teacher", "--reference", toy / "teacher", "--problems", toy / "few_train.jsonl",
            "--certify-problems", toy / "few_heldout.jsonl", "--out", tmp_path / "shape", *SHAPE)
    assert "C1 does not hold" in str(stop.value.code), "a sentence as exit code: printed, and exit code 1"
    certificate = json.loads((tmp_path / "shape" / "certificate.json").read_text())
    assert certificate["mean_implicit_reward_nats"] == 0 and not certificate["passed"]
    assert certificate["sum"]["within_prompt_auc"]["value"] == 0.5 == certificate["sum"]["pooled_auc"]["value"]
    assert (tmp_path / "shape" / "DONE").is_file(), "the run is whole; only its certificate failed"


@pytest.fixture(scope="module")
def teacher(toy, tmp_path_factory):
    """A teacher after two steps of RL on 8 of the 24 training problems."""
    out = tmp_path_factory.mktemp("teacher") / "teacher"
    run(stage1_grpo, "--model", toy / "teacher", "--problems", toy / "few_train.jsonl", "--out", out, "--max-new-tokens", 16,
        "--max-steps", 2, "--prompts-per-step", 4, "--steps-per-rollout", 2, "--micro-batch-size", 64, "--lr", 1e-3)
    return out


def test_reference_must_be_the_model_that_rl_began_from(toy, teacher, copy_of, tmp_path, capsys):
    other = copy_of(toy / "teacher", config={"rope_theta": 12345.0})
    with pytest.raises(SystemExit) as stop:
        run(stage2_shape, "--teacher", teacher, "--reference", other, "--problems", toy / "few_heldout.jsonl",
            "--certify-problems", toy / "few_heldout.jsonl", "--out", tmp_path / "s", *SHAPE)
    assert stop.value.code == 2 and "is not the model that the RL of" in capsys.readouterr().err


def test_c1_is_certified_on_problems_that_rl_has_not_seen(toy, teacher, tmp_path, capsys):
    seen = set(json.loads((teacher / "trained_problems.json").read_text()))
    assert len(seen) == 8
    run(stage2_shape, "--teacher", teacher, "--reference", toy / "teacher", "--problems", toy / "few_heldout.jsonl",
        "--certify-problems", toy / "few_train.jsonl", "--out", tmp_path / "shape", "--allow-failed-certificate", *SHAPE)
    certificate = json.loads((tmp_path / "shape" / "certificate.json").read_text())
    assert certificate["num_prompts"] == 16 and certificate["problems_left_out_as_seen_by_rl"] == 8
    rows = [json.loads(line) for line in (tmp_path / "shape" / "rollouts.jsonl").read_text().splitlines()]
    assert len(rows) == 16 * 4, "all of --problems, selected by nothing"

    all_seen = tmp_path / "all_seen.jsonl"
    ids = [problem.id for problem in common.load_problems(toy / "few_train.jsonl")]
    lines = (toy / "few_train.jsonl").read_text().splitlines(keepends=True)
    all_seen.write_text("".join(line for line, i in zip(lines, ids) if i in seen))
    with pytest.raises(SystemExit) as stop:
        run(stage2_shape, "--teacher", teacher, "--reference", toy / "teacher", "--problems", all_seen, "--certify-problems", all_seen,
            "--out", tmp_path / "s", *SHAPE)
    assert stop.value.code == 2 and "--certify-problems" in capsys.readouterr().err


def test_rollouts_selected_or_weighed_by_reward(toy, teacher, tmp_path):
    flags = ("--teacher", teacher, "--reference", toy / "teacher", "--problems", toy / "few_train.jsonl",
             "--certify-problems", toy / "few_heldout.jsonl", "--allow-failed-certificate", *SHAPE)
    run(stage2_shape, *flags, "--out", tmp_path / "right", "--keep", "right")
    run(stage2_shape, *flags, "--out", tmp_path / "weighed", "--weight", "reward")
    for name in ("right", "weighed"):
        rows = [json.loads(line) for line in (tmp_path / name / "rollouts.jsonl").read_text().splitlines()]
        assert rows and all(row["reward"] == 1 for row in rows)
        assert json.loads((tmp_path / name / "certificate.json").read_text())["rollouts_selected_by"] == "reward"
        by_prompt = {row["id"]: sum(other["weight"] for other in rows if other["id"] == row["id"]) for row in rows}
        assert len(set(by_prompt.values())) == (1 if name == "weighed" else len(set(by_prompt.values())))
    assert set(by_prompt.values()) == {4.0}, "each solved prompt weighs the same, its 4 samples' worth"


def test_the_two_kls_disagree_where_the_student_covers_more():
    """Bimodal: the student spreads over two modes, the teacher has one.  Forward KL is log 2, reverse is large."""
    teacher_logits = torch.tensor([[[0.0, -12.0, -12.0]]])
    student_logits = torch.tensor([[[0.0, 0.0, -12.0]]])
    forward = stage3_kl.forward_kl(student_logits, teacher_logits).item()
    reverse = stage4_distill.reverse_kl(student_logits, teacher_logits).item()
    assert forward == pytest.approx(np.log(2), abs=1e-3) and reverse > 5


def bridge(toy, teacher, out, *flags):
    shape = out.parent / "shape"
    if not shape.exists():
        run(stage2_shape, "--teacher", teacher, "--reference", toy / "teacher", "--problems", toy / "few_train.jsonl", "--out", shape,
            "--certify-problems", toy / "few_heldout.jsonl", "--allow-failed-certificate", *SHAPE)
    run(stage3_kl, "--student", toy / "student", "--teacher", teacher, "--rollouts", shape / "rollouts.jsonl",
        "--problems", toy / "few_heldout.jsonl", "--max-new-tokens", 16, "--rollouts-per-step", 16, "--micro-batch-size", 16,
        "--lr", 1e-3, "--out", out, "--allow-failed-certificate", *flags)
    return json.loads((out / "certificate.json").read_text())


def test_what_is_not_a_number_is_no_certificate(toy, tmp_path, monkeypatch, capsys):
    row = {"implicit_reward_nats": float("nan"), "completion_ids": [1], "reward": 1.0}
    args = types.SimpleNamespace(out=tmp_path, samples_per_prompt=2, min_auc=0.5)
    with pytest.raises(SystemExit):
        stage2_shape.certificate_of([row, row | {"implicit_reward_nats": 0.0, "reward": 0.0}], args)
    assert "C1 cannot rank" in capsys.readouterr().err
    measure = stage3_kl.measure_c2
    monkeypatch.setattr(stage3_kl, "measure_c2", lambda *args: measure(*args) | {"c2_reverse_kl_nats": float("nan")})
    with pytest.raises(SystemExit) as stop:
        bridge(toy, toy / "teacher", tmp_path / "run", "--max-kl", 1)
    assert stop.value.code == 2 and "C2 is not a number at step 0" in capsys.readouterr().err


def test_the_bridge_stops_when_c2_holds_or_at_max_steps_and_says_which(toy, teacher, tmp_path, capsys, monkeypatch):
    failed = bridge(toy, teacher, tmp_path / "short", "--max-kl", 0.0, "--max-steps", 2, "--eval-every", 1)
    assert not failed["passed"] and failed["optimiser_steps"] == 2 and "does not hold" in capsys.readouterr().out
    measured = [row["c2_reverse_kl_nats"] for row in metrics(tmp_path / "short")]
    assert len(measured) == 3 and all("forward_kl_on_teacher_rollouts_nats" in row for row in metrics(tmp_path / "short"))
    at_once = bridge(toy, teacher, tmp_path / "at_once", "--max-kl", measured[0], "--max-steps", 5)
    assert at_once["passed"] and at_once["optimiser_steps"] == 0

    coming = iter([0.5, 0.4, 0.1, 0.0])
    measure = stage3_kl.measure_c2
    monkeypatch.setattr(stage3_kl, "measure_c2", lambda *args: measure(*args) | {"c2_reverse_kl_nats": next(coming)})
    passed = bridge(toy, teacher, tmp_path / "enough", "--max-kl", 0.2, "--max-steps", 20, "--eval-every", 3)
    assert passed["passed"] and passed["optimiser_steps"] == 6 and "C2 holds after 6 optimiser steps" in capsys.readouterr().out
    assert len(metrics(tmp_path / "enough")) == 7


def test_stage4_refuses_a_failed_bridge_and_logs_c2_before_any_update(toy, teacher, tmp_path, capsys):
    bridge(toy, teacher, tmp_path / "bridge", "--max-kl", 0.0, "--max-steps", 1)
    flags = ("--student", tmp_path / "bridge", "--teacher", teacher, "--problems", toy / "few_train.jsonl", "--max-new-tokens", 16,
             "--max-steps", 2, "--prompts-per-step", 8, "--out", tmp_path / "student")
    with pytest.raises(SystemExit) as stop:
        run(stage4_distill, *flags)
    assert stop.value.code == 2 and "certificate" in capsys.readouterr().err
    run(stage4_distill, *flags, "--allow-failed-certificate")
    rows = metrics(tmp_path / "student")
    assert [row["step"] for row in rows] == [0, 1, 2] and rows[0]["reverse_kl_nats"] == rows[1]["reverse_kl_nats"] > 0


def test_a_certificate_of_few_prompts_says_so():
    right, few = np.tile([True, False], (3, 1)), certify(np.tile([1.0, 0.0], (3, 1)), np.ones((3, 2)), np.tile([True, False], (3, 1)), 0.5)
    assert few["passed"] and "chance alone makes C1 hold" in card.c1_in_words(few | {"min_auc": 0.5})
    many = certify(np.tile([1.0, 0.0], (8, 1)), np.ones((8, 2)), np.tile(right[:1], (8, 1)), 0.5)
    assert many["passed"] and "chance" not in card.c1_in_words(many | {"min_auc": 0.5})


def test_a_teacher_that_no_longer_says_what_it_has_seen_is_refused(teacher, tmp_path, capsys):
    """Else C1 would be certified on problems that RL has trained on."""
    copy = shutil.copytree(teacher, tmp_path / "teacher")
    reference = json.loads((copy / "args.json").read_text())["parents"]["model"]
    args, seen = types.SimpleNamespace(teacher=copy, reference="base"), copy / "trained_problems.json"
    assert len(stage2_shape.check_reference({"run": str(copy)}, reference, args)) == 8
    for damage in (lambda: seen.write_text("[1, 2"), seen.unlink):
        damage()
        with pytest.raises(SystemExit):
            stage2_shape.check_reference({"run": str(copy)}, reference, args)
        assert str(seen) in capsys.readouterr().err
