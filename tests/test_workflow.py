"""The four mains in a row, the evaluator, and the list of commands that is a table."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import metrics, run
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import eval as judge
import reproduce
import stage1_grpo
import stage2_shape
import stage3_kl
import stage4_distill


@pytest.mark.pages
def test_four_stages_in_a_row(toy, tmp_path):
    shared = ("--max-new-tokens", 16, "--micro-batch-size", 32)
    run(stage1_grpo, "--model", toy / "teacher", "--problems", toy / "few_train.jsonl", "--out", tmp_path / "teacher",
        "--max-steps", 2, "--steps-per-rollout", 2, "--lr", 3e-4, "--eval-problems", toy / "few_test.jsonl", "--eval-every", 1, "--prompts-per-step", 8, *shared)
    run(stage2_shape, "--teacher", tmp_path / "teacher", "--reference", toy / "teacher", "--problems", toy / "few_heldout.jsonl",
        "--certify-problems", toy / "few_heldout.jsonl", "--out", tmp_path / "shape", "--allow-failed-certificate", *shared)
    run(stage3_kl, "--student", toy / "student", "--teacher", tmp_path / "teacher", "--rollouts", tmp_path / "shape" / "rollouts.jsonl",
        "--problems", toy / "few_heldout.jsonl", "--max-kl", 100, "--out", tmp_path / "bridge", "--allow-failed-certificate", *shared)
    run(stage4_distill, "--student", tmp_path / "bridge", "--teacher", tmp_path / "teacher", "--problems", toy / "few_train.jsonl",
        "--out", tmp_path / "student", "--max-steps", 2, "--lr", 1e-3, "--prompts-per-step", 8, *shared)
    run(judge, "--model", tmp_path / "student", "--problems", toy / "few_test.jsonl", "--samples", 4, "--max-new-tokens", 16,
        "--out", tmp_path / "eval")

    for stage in ("teacher", "shape", "bridge", "student", "eval"):
        record = json.loads((tmp_path / stage / "args.json").read_text())
        assert (tmp_path / stage / "DONE").is_file() and record["parents"] and record["versions"]["torch"] == torch.__version__
    for stage in ("teacher", "bridge", "student"):
        assert not list((tmp_path / stage).glob("*.tmp"))
        model = AutoModelForCausalLM.from_pretrained(tmp_path / stage / "model")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / stage / "model")
        output = model.generate(**tokenizer("3491827546=", return_tensors="pt", return_token_type_ids=False), max_new_tokens=4)
        assert tokenizer.decode(output[0]).startswith("3491827546=")
    for stage in ("teacher", "shape", "bridge", "student"):
        page = (tmp_path / stage / "report.html").read_text()
        assert "<svg" in page and "What ran" in page and "nan" not in page.lower().replace("finan", "")
    parents = json.loads((tmp_path / "student" / "args.json").read_text())["parents"]
    assert parents["student"]["run"] == str(tmp_path / "bridge") and parents["teacher"]["run"] == str(tmp_path / "teacher")
    done = json.loads((tmp_path / "teacher" / "DONE").read_text())
    assert done["optimiser_steps"] == 2 and done["labels_seen"] == 16
    scores = json.loads((tmp_path / "eval" / "scores.json").read_text())
    assert scores["num_problems"] == 8 and {"avg@4", "pass@2", "pass@4", "maj@4", "truncated_fraction", "mean_length_tokens"} <= set(scores)
    rows = [json.loads(line) for line in (tmp_path / "eval" / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(len(row["completions"]) == len(row["verdicts"]) == 4 for row in rows)
    assert scores["avg@4"]["value"] == pytest.approx(sum(sum(row["verdicts"]) for row in rows) / 32)
    assert [judge.grade(text, row["answer"]) for row in rows for text in row["completions"]] == [v for row in rows for v in row["verdicts"]]


@pytest.mark.parametrize("divergence", [(), ("--divergence", "forward"), ("--divergence", "jsd"), ("--estimator", "sampled")])
def test_stage4_brings_a_disturbed_student_back_to_its_teacher(toy, copy_of, tmp_path, divergence):
    disturbed = copy_of(toy / "teacher")
    weights = load_file(disturbed / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, value in weights.items():
        weights[name] = value + 0.5 * value.std(correction=0) * torch.randn(value.shape, generator=generator)
    save_file(weights, disturbed / "model.safetensors", metadata={"format": "pt"})
    run(stage4_distill, "--student", disturbed, "--teacher", toy / "teacher", "--problems", toy / "train.jsonl", "--out", tmp_path / "run",
        "--max-new-tokens", 16, "--micro-batch-size", 64, "--prompts-per-step", 64, "--max-steps", 15, "--lr", 1e-3, *divergence)
    rows = [row["reverse_kl_nats"] for row in metrics(tmp_path / "run")]
    assert rows[0] > 0.25 and sum(rows[-3:]) / 3 < rows[0] * (0.8 if "sampled" in divergence else 0.3)


@pytest.mark.parametrize("scale", ["toy", "smollm2", "paper"])
def test_every_printed_command_parses(scale, tmp_path, capsys):
    """--dry-run prints the exact commands; each is one that its script's own flags accept."""
    reproduce.main(reproduce.parse_args(["main", "--scale", scale, "--out", str(tmp_path / "out"), "--dry-run"]))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    modules = {"stage1_grpo.py": stage1_grpo, "stage2_shape.py": stage2_shape, "stage3_kl.py": stage3_kl, "stage4_distill.py": stage4_distill,
               "eval.py": judge}
    lines = [line for line in lines if "prepare.py" not in line]
    assert len(lines) == 9 + 7 and not (tmp_path / "out").exists()
    for line in lines:
        words = line.replace("<steps of the workflow less those of raw_bridge>", "1").replace("<steps of the workflow>", "1")
        words = words.replace("<steps in the workflow's seconds>", "1").split()
        script = next(word for word in words if word.endswith(".py"))
        modules[script].parse_args(words[words.index(script) + 1:])


def test_an_unknown_table_or_missing_data_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        reproduce.main(reproduce.parse_args(["main", "--scale", "smollm2", "--out", str(tmp_path / "out"), "--data", str(tmp_path)]))
    assert stop.value.code == 2 and "--data" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["stage1_grpo", "stage2_shape", "stage3_kl", "stage4_distill", "eval", "prepare", "reproduce"])
def test_help_is_there_for_a_newcomer(script):
    root = Path(__file__).parent.parent
    answer = subprocess.run([sys.executable, str(root / f"{script}.py"), "--help"], capture_output=True, text=True, env=os.environ)
    assert answer.returncode == 0 and "--out" in answer.stdout and "python " in answer.stdout
