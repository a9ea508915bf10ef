import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import dataclasses  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import shlex  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import types  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

import prepare  # noqa: E402
from engine import runs  # noqa: E402
from experiments.tables import SCALES  # noqa: E402
from experiments.toy import EOS, PAD, toy_model  # noqa: E402, F401
from pages import run as run_page  # noqa: E402

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)          # ignored where the tests run in the background of a script
write_run_page, run_page.write_run_page = run_page.write_run_page, lambda run: None


@pytest.hookimpl(tryfirst=True)                          # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items):
    """Tests whose fixtures take long stay on one of pytest-xdist's processes, and begin first."""
    slow = ("test_sharding", "test_faults")
    items.sort(key=lambda item: item.path.stem not in slow)
    for item in items:
        if item.path.stem in slow:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_make_parametrize_id(val, argname):
    """A test's name holds no bytes and no megabytes: an archive holds the time, and pytest-xdist wants the same names in each process."""
    return argname if isinstance(val, bytes) or isinstance(val, str) and len(val) > 300 else None


@pytest.fixture(autouse=True)
def pages(monkeypatch, request):
    """Drawing a page takes longer than a tiny run; tests marked `pages` draw theirs."""
    if "pages" in request.keywords:
        monkeypatch.setattr(run_page, "write_run_page", write_run_page)


@pytest.fixture
def tiny():
    """A random Qwen3 of two layers over the toy vocabulary."""
    return toy_model(64, 2, seed=0).eval()


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """The shipped toy world, with small files of problems beside the whole ones."""
    out = tmp_path_factory.mktemp("toy") / "toy"
    prepare.main(prepare.parse_args(["toy", "--out", str(out)]))
    for name, count in (("train", 24), ("heldout", 16), ("test", 8)):
        lines = (out / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (out / f"few_{name}.jsonl").write_text("".join(lines[:count]))
    return out


@pytest.fixture
def copy_of(tmp_path):
    """Copy a checkpoint directory in order to change it."""
    def copy(source: Path, name: str = "changed", **config_changes) -> Path:
        target = tmp_path / name
        shutil.copytree(source, target)
        for file, changes in config_changes.items():
            path = target / f"{file}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return target
    return copy


def assert_rounded(got, expected, operations: int) -> None:
    """got is what `expected`, in float64, comes to after so many roundings in got's dtype, one after the other.

    A number is then off by at most operations · eps · its size; numbers that are sums of larger ones count as 1.  Which
    order of operations a CPU chooses does not matter: vectors of 4, 8 or 16 lanes add up in other orders.
    """
    bound = operations * torch.finfo(got.dtype).eps * expected.double().abs().clamp(min=1)
    error = (got.double() - expected.double()).abs()
    assert (error <= bound).all(), f"off by {error.max():.3g}, where {operations} roundings make {bound.max():.3g}"


def run(module, *flags) -> None:
    """Run a script's main as its command line would."""
    module.main(module.parse_args([str(flag) for flag in flags]))


def change_scale(monkeypatch, name: str, changes, over: dict | None = None) -> None:
    """changes: a scale's settings -> what else they are to be."""
    scale = SCALES[name]

    def settings(*args, **more):
        made = scale.settings(*args, **more)
        return dataclasses.replace(made, **changes(made))
    monkeypatch.setitem(SCALES, name, dataclasses.replace(scale, settings=settings, over=scale.over | (over or {})))


def run_here(directory, command, *_, **__):
    """In place of runner.start: not in a process that imports torch anew."""
    script, *flags = shlex.split(command)
    run(importlib.import_module(script.removesuffix(".py")), *flags)
    return types.SimpleNamespace(poll=lambda: 0, returncode=0)


def on_log(monkeypatch, action) -> None:
    """Call action(step, figures) where a run logs a step, before it does."""
    log = runs.Run.log

    def act_and_log(here, step, **figures):
        action(step, figures)
        log(here, step, **figures)
    monkeypatch.setattr(runs.Run, "log", act_and_log)


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
