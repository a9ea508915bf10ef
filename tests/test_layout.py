"""What stands where: imports go down only, top level -> experiments -> common -> pages -> engine -> judge, and nowhere in a circle."""
import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path
         for folder in (".", "experiments", "pages", "engine", "judge") for path in (ROOT / folder).glob("*.py") if path.stem != "__init__"}
SCRIPTS = {name for name in FILES if "." not in name} - {"common"}
STAGES = sorted(name for name in SCRIPTS if name.startswith("stage"))
PACKAGES = {"torch", "transformers", "numpy", "tqdm", "sympy", "safetensors", "huggingface_hub"}     # the last two: transformers brings them


def imports(name):
    """-> all modules that a file imports, wherever in it, and those that it imports as it is itself imported"""
    tree = ast.parse(FILES[name].read_text())
    everywhere, at_once = set(), set()
    for node in ast.walk(tree):
        found = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide where things are"
            found = {node.module} | {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
        everywhere |= found
        at_once |= found if node in tree.body else set()
    return everywhere, at_once


OURS = {name: imports(name)[0] & FILES.keys() for name in FILES}


def level(name):
    return name.split(".")[0] if "." in name else "common" if name == "common" else "top"


def test_imports_go_down_only():
    order = ("top", "experiments", "common", "pages", "engine", "judge")
    below = {level: {*order[place + (level == "common"):]} for place, level in enumerate(order)}
    wrong = [f"{name} imports {other}" for name in FILES for other in OURS[name] if level(other) not in below[level(name)]]
    assert not wrong
    assert {"engine.ranks", "common", "stage3_kl"} <= OURS["stage1_grpo"], "or nothing was read"


def test_there_is_no_circle():
    done = []

    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in sorted(OURS[name]):
                visit(other, [*path, name])
            done.append(name)

    for name in FILES:
        visit(name, [])
    assert len(done) == len(FILES) > 20


def test_every_function_and_flag_is_used():
    """By name, somewhere beside its own body: in the code, a benchmark or a test."""
    trees = {path: ast.parse(path.read_text()) for folder in (".", "experiments", "pages", "engine", "judge", "bench", "tests") for path in (ROOT / folder).glob("*.py")}
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    used = Counter([node.id for node in nodes if isinstance(node, ast.Name)] + [node.attr for node in nodes if isinstance(node, ast.Attribute)])
    flags = [node.args[-1].value for node in nodes if isinstance(node, ast.Call) and node.args and isinstance(node.args[-1], ast.Constant)
             and "add_argument" in (getattr(node.func, "attr", ""), "add_argument" if getattr(node.func, "id", "") == "add" else "")]
    assert len(flags) > 200 and [flag for flag in flags if not used[flag.lstrip("-").replace("-", "_")]] == []
    functions = [node for path in FILES.values() for node in ast.walk(trees[path]) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    inside = {node: sum(isinstance(name, ast.Name) and name.id == node.name for name in ast.walk(node)) for node in functions}
    by_python = {"_get_help_string"}                    # argparse's
    assert [node.name for node in functions if used[node.name] == inside[node] and not node.name.startswith("__")
            and node.name not in by_python] == []


def test_the_run_is_no_trainer():
    """The equations, the denominator, backward and the optimiser's step stay in the stages, where a reader sees them."""
    tree = ast.parse(FILES["engine.runs"].read_text())
    run, = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Run")
    methods = [node.name for node in run.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    assert 8 < len(methods) <= 12, methods
    names = {node.attr for node in ast.walk(run) if isinstance(node, ast.Attribute)} | {node.id for node in ast.walk(run) if isinstance(node, ast.Name)}
    assert not names & {"backward", "zero_grad", "grad", "AdamW", "step_", "clip_grad_norm_", "rewards", "advantages", "grade", "autograd", "weights"}
    assert not any(isinstance(node, ast.Call) and ast.unparse(node.func).startswith("optimizer.") for node in ast.walk(run))
    for stage in set(STAGES) - {"stage2_shape"}:
        text = FILES[stage].read_text()
        assert all(text.count(line) == 1 for line in ("loss.backward()", "optimizer.step()", "optimizer.zero_grad()", "clip_grad_norm_(", "# count:")), stage


@pytest.mark.parametrize("stage, most", [("stage1_grpo", 85), ("stage3_kl", 80), ("stage4_distill", 75)])
def test_a_stage_is_read_in_one_sitting(stage, most):
    """The length of its main, how many names of ours it imports, and lines that fit beside a second window."""
    tree = ast.parse(FILES[stage].read_text())
    main, = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    ours = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) and node.module in FILES for alias in node.names]
    assert main.end_lineno - main.lineno <= most and len(ours) <= (22 if stage == "stage3_kl" else 20), len(ours)
    assert [line for line in FILES[stage].read_text().splitlines() if len(line) > 110] == []


def reachable(name):
    found, todo = set(), [name]
    while todo:
        if (module := todo.pop()) not in found:
            found.add(module)
            todo += OURS[module]
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_needs_five_packages_and_what_they_bring(stage):
    """What is more (matplotlib, pyarrow) is imported where it is used, by those who want it."""
    outside = {module.split(".")[0] for name in reachable(stage) for module in imports(name)[1] - FILES.keys()}
    assert outside - sys.stdlib_module_names - {"pages", "engine", "judge"} <= PACKAGES


def test_the_judge_needs_no_torch():
    names = ", ".join(name for name in FILES if name.startswith("judge."))
    code = f"import sys, {names}; from judge.answers import grade; assert grade('\\\\boxed{{1/2}}', '0.5'); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_scripts_start_from_any_directory_and_through_a_link(tmp_path):
    (tmp_path / "linked.py").symlink_to(ROOT / "plan.py")
    for script in (ROOT / "plan.py", tmp_path / "linked.py"):
        done = subprocess.run([sys.executable, str(script), "--gpu", "none"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and "plan.py knows" in done.stderr
