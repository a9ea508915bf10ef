"""docs/exercises.md cannot go stale: each change still fits the code, and its commands run, at the smallest size."""
import os
import re
import shlex

import pytest
from conftest import run
from forks import Fork

from bench.exercises import PAGE, apply_change, commands_of, copy_of_the_code, exercises
import stage1_grpo
import stage2_shape
import stage3_kl

FOUND = exercises(PAGE.read_text())
SMALLEST = {"stage1_grpo.py": "--max-steps 1 --prompts-per-step 4 --samples-per-prompt 4 --eval-every 1", "eval.py": "--num-problems 4 --samples 2",
            "stage2_shape.py": "--num-problems 4 --num-certify-problems 4 --samples-per-prompt 2", "prepare.py": "",
            "stage3_kl.py": "--max-steps 1 --rollouts-per-step 4 --num-certify-problems 4 --eval-every 0",
            "stage4_distill.py": "--max-steps 1 --prompts-per-step 4 --eval-every 1"}
# One process for an exercise's commands: each argument is a script and its flags.
RUNNER = """
import importlib, shlex, sys
for line in sys.argv[1:]:
    script, *flags = shlex.split(line)
    module = importlib.import_module(script.removesuffix(".py"))
    module.main(module.parse_args(flags))
"""


@pytest.fixture(scope="module")
def before(toy, tmp_path_factory):
    """What exercise 0 makes, in one step each, with few problems.  -> the folder of toy/ and runs/"""
    place = tmp_path_factory.mktemp("exercises")
    (place / "toy").mkdir()
    for name in ("teacher", "student"):
        (place / "toy" / name).symlink_to(toy / name)
    for name in ("train", "heldout", "test"):
        (place / "toy" / f"{name}.jsonl").symlink_to(toy / f"few_{name}.jsonl")
    short = ("--max-new-tokens", 16, "--micro-batch-size", 32)
    run(stage1_grpo, "--model", toy / "teacher", "--problems", toy / "few_train.jsonl", "--max-steps", 1, "--prompts-per-step", 4, "--steps-per-rollout", 1,
        "--out", place / "runs" / "teacher", *short)
    run(stage2_shape, "--teacher", place / "runs" / "teacher", "--reference", toy / "teacher", "--problems", toy / "few_train.jsonl", "--samples-per-prompt", 2,
        "--certify-problems", toy / "few_heldout.jsonl", "--allow-failed-certificate", "--out", place / "runs" / "shape", *short)
    run(stage3_kl, "--student", toy / "student", "--teacher", place / "runs" / "teacher", "--rollouts", place / "runs" / "shape" / "rollouts.jsonl",
        "--problems", toy / "few_heldout.jsonl", "--max-kl", 9, "--allow-failed-certificate", "--out", place / "runs" / "bridge", *short)
    return place


@pytest.mark.parametrize("exercise", FOUND, ids=lambda exercise: exercise.title)
def test_every_exercise_runs(exercise, before, tmp_path):
    variables = dict(re.match(r'([A-Z]+)="?(.*?)"?$', line).groups() for line in commands_of(FOUND[0].blocks[0][1]) if re.match("[A-Z]+=", line))
    code = copy_of_the_code(tmp_path, exercise.change)
    (code / "toy").symlink_to(before / "toy")
    (code / "runs").mkdir()
    for name in os.listdir(before / "runs"):
        (code / "runs" / name).symlink_to(before / "runs" / name)
    lines = []
    for _, block in exercise.blocks:                     # at this size the plain ones may run in the copy, too
        for line in commands_of(block):
            if line.startswith("python") and "--pretrain" not in line:
                for _ in range(3):
                    line = re.sub(r"\$([A-Z]+)", lambda match: {"SEED": "0", **variables}[match[1]], line)
                script = line.split()[1]
                if exercise.number or script == "stage4_distill.py":        # the fixture has made the others
                    lines.append(f"{line.removeprefix('python ')} {SMALLEST[script]}".replace("--num-labels 16", "--num-labels 8"))
    assert lines and all(shlex.split(line) for line in lines)
    lines = [line.replace("runs/direct ", "runs/bridge ") for line in lines]
    fork = Fork(RUNNER, *lines, cwd=code)
    assert fork.wait() == 0, fork.said()[-3000:]


def test_a_change_that_no_longer_fits_is_refused(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\ny = 2\n")
    apply_change("--- a.py\n-x = 1\n+x = 3\n", tmp_path)
    assert (tmp_path / "a.py").read_text() == "x = 3\ny = 2\n"
    with pytest.raises(ValueError, match="0 times, not once"):
        apply_change("--- a.py\n-x = 1\n+x = 3\n", tmp_path)


def test_every_exercise_shows_what_came_out():
    for exercise in FOUND:
        rows = re.search(rf"<!-- outcome: {re.escape(exercise.outcome)} -->\n(.*?)<!-- end -->", PAGE.read_text(), re.S)[1].splitlines()
        assert len(rows) == 2 + exercise.outcome.count(",") + exercise.outcome.count(";") + 1, exercise.title
        assert all(re.search(r"\d\.\d|holds|fails", cell) for row in rows[2:] for cell in row.strip("| ").split(" | ")[2:])
