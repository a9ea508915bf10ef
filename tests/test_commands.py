"""Every command that a docstring or the README shows is one that its script accepts; flags that cannot be are a sentence."""
import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
from conftest import metrics, run

import stage1_grpo
import stage2_shape
import stage3_kl
import stage4_distill

ROOT = Path(__file__).parent.parent
SCRIPTS = ["stage1_grpo", "stage2_shape", "stage3_kl", "stage4_distill", "eval", "prepare", "reproduce", "plan", "report"]


def commands():
    """(where it stands, script, its flags)"""
    for path in [ROOT / "README.md", *(ROOT / f"{name}.py" for name in SCRIPTS)]:
        text = path.read_text() if path.suffix == ".md" else importlib.import_module(path.stem).__doc__
        spans = [span for line in text.replace("\\\n", " ").splitlines()
                 for span in (re.findall(r"`([^`]+)`", line) if path.suffix == ".md" and "`" in line else [line])]
        for span in spans:
            found = re.search(r"^ *(?:python|torchrun).*?(\w+)\.py +([^#]*)", span)
            if found and found[1] in SCRIPTS and "…" not in span:
                yield path.name, found[1], re.sub(r"\bN\b", "3", found[2].strip())


@pytest.mark.parametrize("where, script, flags", list(commands()))
def test_a_command_that_is_shown_parses(where, script, flags):
    importlib.import_module(script).parse_args(shlex.split(flags))


def test_the_flags_of_the_benchmarks_in_their_tables_exist():
    """In bench/README.md; those of a helper that a benchmark shares with another are its, too."""
    text = " ".join((ROOT / "bench" / "README.md").read_text().split())
    shown = re.findall(r"`python bench/(\w+)\.py([^`]*)`", text)
    for name, flags in shown:
        source = (ROOT / "bench" / f"{name}.py").read_text() + (ROOT / "bench" / "steps.py").read_text()
        missing = [flag for flag in re.findall(r"--[a-z-]+", flags) if f'"{flag}"' not in source]
        assert not missing, (name, missing)
    assert {name for name, _ in shown} >= {"grader", "sampler", "grpo", "logprobs", "plan", "faults"}


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "bench").glob("*.py")))
def test_a_benchmark_finds_the_project(name):
    """`python bench/NAME.py` has bench/ alone on its path; a test has the root, too, and would not notice."""
    ours = {path.stem for path in ROOT.glob("*.py")} | {"experiments", "engine", "judge"}
    needs, paths = [], []
    for node in ast.parse((ROOT / "bench" / f"{name}.py").read_text()).body:
        imported = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in getattr(node, "names", [])]
        needs += [node.lineno] * bool({module.split(".")[0] for module in imported} & ours)
        paths += [node.lineno] * ast.unparse(node).startswith("sys.path.insert(0, str(")
    assert not needs or paths and paths[0] < needs[0]


def test_the_commands_were_found():
    shown = list(commands())
    assert {script for _, script, _ in shown} == set(SCRIPTS) and sum(where == "README.md" for where, *_ in shown) >= 7


def test_the_first_command_of_stage_1_runs_as_it_is_shown(toy, tmp_path, capsys):
    """But for its length: without --max-new-tokens it takes what the context leaves, and says so."""
    flags = next(flags for where, script, flags in commands() if where == "stage1_grpo.py")
    flags = flags.replace("toy/teacher", str(toy / "teacher")).replace("toy/train", str(toy / "few_train")).replace("runs/teacher", str(tmp_path / "run"))
    run(stage1_grpo, *shlex.split(flags), "--max-steps", 1, "--prompts-per-step", 2, "--steps-per-rollout", 1)
    assert "--max-new-tokens 117: the context of 128 tokens" in capsys.readouterr().out and len(metrics(tmp_path / "run")) == 1


@pytest.mark.parametrize("module, flag", [(stage1_grpo, "--prompts-per-step"), (stage2_shape, "--prompts-per-step"), (stage3_kl, "--rollouts-per-step"),
                                          (stage4_distill, "--prompts-per-step"), (stage4_distill, "--temperature"), (stage1_grpo, "--max-steps")])
def test_a_zero_that_cannot_be_is_one_sentence(module, flag, capsys):
    with pytest.raises(SystemExit) as stop:
        module.parse_args([flag, "0"])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.count("\n") == 1 and told.startswith("error: ") and flag in told and "give" in told


@pytest.mark.parametrize("module", [stage1_grpo, stage2_shape, stage3_kl, stage4_distill])
def test_help_tells_every_default(module, capsys):
    with pytest.raises(SystemExit):
        module.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split("options:")[1].split())
    entries = re.split(r"(?<=\)) (?=--[a-z])", text)
    assert len(entries) > 20 and all("default" in entry or "(required)" in entry for entry in entries if entry.startswith("--"))


@pytest.mark.parametrize("module, name, flags", [(stage4_distill, "reverse_kl", ()), (stage3_kl, "forward_kl", None)])
def test_what_stands_in_the_stage_is_what_trains(toy, tmp_path, monkeypatch, module, name, flags):
    """A divergence of three lines in place of the stage's own: the log's figure and the gradient are its."""
    def twice(student_logits, teacher_logits):
        return 2 * equation(student_logits, teacher_logits)

    equation = getattr(module, name)
    shared = ["--student", toy / "student", "--teacher", toy / "teacher", "--max-new-tokens", 16, "--max-steps", 1]
    if module is stage3_kl:
        run(stage2_shape, "--teacher", toy / "teacher", "--reference", toy / "teacher", "--problems", toy / "few_train.jsonl", "--num-problems", 4,
            "--certify-problems", toy / "few_heldout.jsonl", "--num-certify-problems", 2, "--max-new-tokens", 16, "--samples-per-prompt", 2,
            "--allow-failed-certificate", "--out", tmp_path / "shape")
        shared += ["--rollouts", tmp_path / "shape" / "rollouts.jsonl", "--problems", toy / "few_heldout.jsonl", "--max-kl", -1, "--rollouts-per-step", 4,
                   "--num-certify-problems", 2, "--allow-failed-certificate"]
    else:
        shared += ["--problems", toy / "few_train.jsonl", "--prompts-per-step", 4]
    run(module, *shared, "--out", tmp_path / "one")
    monkeypatch.setattr(module, name, twice)
    if module is stage4_distill:
        monkeypatch.setitem(module.DIVERGENCES, "reverse", twice)
    run(module, *shared, "--out", tmp_path / "two")
    one, two = metrics(tmp_path / "one")[1], metrics(tmp_path / "two")[1]
    assert two["grad_norm"] == pytest.approx(2 * one["grad_norm"], rel=1e-4)
    assert two[f"{name}_nats"] == pytest.approx(2 * one[f"{name}_nats"], rel=1e-4)
