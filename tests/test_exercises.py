"""docs/exercises.md cannot go stale: its blocks are pasted into bash and zsh, and the commands that come of it run, at the smallest size."""
import json
import os
import pty
import re
import select
import shlex
import shutil
import sys
import time

import pytest
from conftest import run
from forks import Fork

from bench.exercises import PAGE, ROOT, copy_of_the_code, exercises, make_change
import stage1_grpo
import stage2_shape
import stage3_kl

FOUND = exercises(PAGE.read_text())
OPENING = FOUND[0].blocks[0]                            # what is pasted into each new terminal
SHELLS = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}
SMALLEST = {"stage1_grpo.py": "--max-steps 1 --prompts-per-step 4 --samples-per-prompt 4 --eval-every 1", "eval.py": "--num-problems 4 --samples 2",
            "stage2_shape.py": "--num-problems 4 --num-certify-problems 4 --samples-per-prompt 2",
            "stage3_kl.py": "--max-steps 1 --rollouts-per-step 4 --num-certify-problems 4 --eval-every 0",
            "stage4_distill.py": "--max-steps 1 --prompts-per-step 4 --eval-every 1"}
# The python of the pasted commands: it makes changes and puts them back, and writes down what else it is asked to run.
PYTHON = f"""#!/bin/sh
[ "$1" = bench/exercises.py ] && exec {sys.executable} "$@"
exec {sys.executable} -S -E .venv/note.py "$@"
"""
NOTE = f"""
import json, sys
names = ("common.py", "stage1_grpo.py", "stage4_distill.py", "engine/runs.py")
changed = any(open(name).read() != open("{ROOT}/" + name).read() for name in names)
with open(".venv/noted", "a") as file:
    file.write(json.dumps([changed, sys.argv[1:]]) + "\\n")
"""
# One process for several commands: each argument is a script and its flags.
RUNNER = """
import importlib, shlex, sys
for line in sys.argv[1:]:
    script, *flags = shlex.split(line)
    module = importlib.import_module(script.removesuffix(".py"))
    module.main(module.parse_args(flags))
"""


def paste(shell: str, tree, blocks: list[str], bracketed: bool = True) -> list:
    """Paste blocks into an interactive shell in `tree`, one after the other.  -> [whether the code was changed, argv] of each command

    bracketed: as terminals do today, a block at a time between two marks; else its characters as if they were typed.
    """
    activate, said = tree / ".venv" / "bin" / "activate", b""
    activate.write_text(f'PATH="{tree}/.venv/bin:$PATH"\n')
    (tree / ".venv" / "note.py").write_text(NOTE)
    (tree / ".venv" / "noted").write_text("")
    (activate.parent / "python").write_text(PYTHON)
    (activate.parent / "python").chmod(0o755)
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tree)
        os.execvpe(shell, SHELLS[shell], {"PATH": "/usr/bin:/bin", "HOME": str(tree), "TERM": "xterm"})
    try:
        for number, block in enumerate(["", OPENING, *blocks]):
            block = f"\x1b[200~{block}\x1b[201~" if block and bracketed else block
            os.write(terminal, f"{block}\necho pasted $(({number} + 100))\n".encode())
            deadline = time.time() + 60
            while f"pasted {number + 100}".encode() not in said:
                assert select.select([terminal], [], [], max(deadline - time.time(), 0))[0], said.decode(errors="replace")
                said += os.read(terminal, 4096)
    finally:
        os.close(terminal)                              # which hangs up on the shell
        os.waitpid(process, 0)
    return [json.loads(line) for line in (tree / ".venv" / "noted").read_text().splitlines()]


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


def in_text(exercise) -> list:
    """What its blocks say: [whether the code is changed there, --out] of each command."""
    lines = "".join(exercise.blocks[exercise.number == 0:]).splitlines()
    changed = [sum(line.startswith("change ") for line in lines[:i]) > sum(line.startswith("put_back ") for line in lines[:i]) for i in range(len(lines))]
    return [[there, re.search(r"--out (\S+)", line)[1]] for there, line in zip(changed, lines) if "--out" in line]


@pytest.mark.parametrize("exercise", FOUND, ids=lambda exercise: exercise.title)
def test_every_exercise_runs_as_it_is_pasted(exercise, before, tmp_path):
    code = copy_of_the_code(tmp_path / "code")
    blocks = exercise.blocks[exercise.number == 0:]
    noted = {shell: paste(shell, code, blocks) for shell in SHELLS if shutil.which(shell)}
    assert [[changed, argv[argv.index("--out") + 1]] for changed, argv in noted["bash"]] == in_text(exercise)
    assert all(commands == noted["bash"] for commands in noted.values()), noted

    changed_code = copy_of_the_code(tmp_path / "changed")
    make_change(exercise.change, changed_code)
    for tree in (code, changed_code):
        (tree / "toy").symlink_to(before / "toy")
        (tree / "runs").symlink_to(tmp_path / "runs")
    (tmp_path / "runs").mkdir()
    for name in os.listdir(before / "runs"):
        (tmp_path / "runs" / name).symlink_to(before / "runs" / name)
    for changed, (script, *flags) in noted["bash"]:
        if exercise.number or script == "stage4_distill.py":        # the fixture has made the others
            line = f"{shlex.join([script, *flags])} {SMALLEST.get(script, '')}".replace("--num-labels 16", "--num-labels 8")
            fork = Fork(RUNNER, line.replace("runs/direct ", "runs/bridge "), cwd=changed_code if changed else code)
            assert fork.wait() == 0, fork.said()[-3000:]


def test_a_terminal_that_types_what_is_pasted(tmp_path):
    nine = FOUND[9]
    noted = paste("bash", copy_of_the_code(tmp_path / "code"), nine.blocks, bracketed=False)
    assert [[changed, argv[argv.index("--out") + 1]] for changed, argv in noted] == in_text(nine) == [[True, "runs/flipped"], [False, "runs/shape_flipped"]]


def test_a_change_there_and_back(tmp_path):
    file, change = tmp_path / "a.py", "--- a.py\n-x = 1\n+x = 1\n+z = 3\n"
    file.write_text("x = 1\ny = 2\n")
    for _ in range(2):                                  # the second time there is nothing to do
        make_change(change, tmp_path)
        assert file.read_text() == "x = 1\nz = 3\ny = 2\n"
    for _ in range(2):
        make_change(change, tmp_path, back=True)
        assert file.read_text() == "x = 1\ny = 2\n"
    file.write_text("if y:\n    x = 1\nx = 1\n")        # whole lines are compared
    make_change(change, tmp_path)
    assert file.read_text() == "if y:\n    x = 1\nx = 1\nz = 3\n"
    file.write_text("x = 4\n")
    for back in (False, True):
        with pytest.raises(ValueError, match="git checkout a.py"):
            make_change(change, tmp_path, back)
    assert file.read_text() == "x = 4\n"


def test_what_does_not_fit_is_not_run(tmp_path):
    """A change over another one is refused, and the command behind it does not run in code that is neither."""
    code = copy_of_the_code(tmp_path / "code")
    noted = paste("bash", code, ["change 13\n", FOUND[9].blocks[0]])
    assert noted == []
    assert "gold in text" in (code / "common.py").read_text()


def test_every_exercise_shows_what_came_out_and_folds_it_away():
    text = PAGE.read_text()
    assert text.count("<details>\n<summary>") == text.count("</details>") == len(FOUND)
    assert re.findall(r"^\| \[(\d+)\]\(#.*\| +\d+ \|$", text, re.M) == [str(exercise.number) for exercise in FOUND], "each has its minutes"
    for exercise in FOUND:
        rows = re.search(rf"<summary>.*?</summary>\n\n<!-- outcome: {re.escape(exercise.outcome)} -->\n(.*?)<!-- end -->", text, re.S)[1].splitlines()
        assert len(rows) == 2 + exercise.outcome.count(",") + exercise.outcome.count(";") + 1, exercise.title
        assert all(re.search(r"\d\.\d|holds|fails", cell) for row in rows[2:] for cell in row.strip("| ").split(" | ")[2:])
