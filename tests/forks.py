"""Processes that start at once: forks of one that has imported the packages, and computed nothing.

A fresh interpreter takes some four seconds to import torch and transformers, and the tests start a hundred.
"""
import atexit
import importlib
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
OURS = {str(ROOT), str(ROOT / "tests"), str(ROOT / "bench"), ""}
forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload([                                 # packages alone: a fork may run a changed copy of the code
    "numpy.random", "safetensors.torch", "sympy", "torch._dynamo", "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp",
    "transformers.modeling_utils", "transformers.models.auto.tokenization_auto", "transformers.models.qwen3.modeling_qwen3"])


class Fork:
    """`python SCRIPT FLAGS…`, begun.  script: a path, or the code itself.  Runs have no pages: drawn, they take longer than a tiny run."""

    def __init__(self, script: Path | str, *flags, cwd: Path = ROOT, **environment):
        self.file = tempfile.NamedTemporaryFile(prefix="fork")
        self.process = forkserver.Process(target=execute, args=(script, [*map(str, flags)], cwd, os.environ | environment, self.file.name), daemon=True)
        self.process.start()

    def said(self) -> str:
        """Its stdout and stderr, as far as it has come."""
        return Path(self.file.name).read_text()

    def wait(self, seconds: float = 200) -> int:
        """-> its exit code; minus the signal that ended it"""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"it has not ended after {seconds} s:\n{self.said()}"
        return self.process.exitcode


def begin_ranks(number: int, script: Path | str, *flags) -> list[Fork]:
    """As torchrun would on one node, but nobody stops those that are left when one has died."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return [Fork(script, *flags, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(number), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            for rank in range(number)]


def run_ranks(number: int, script: Path | str, *flags) -> str:
    """-> what the ranks have said, one after the other"""
    ranks = begin_ranks(number, script, *flags)
    codes = [rank.wait(400) for rank in ranks]
    said = "".join(rank.said() for rank in ranks)
    assert codes == [0] * number, said[-6000:]
    return said


def execute(script: Path | str, flags: list[str], cwd: Path, environment: dict[str, str], file: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = [str(script) if isinstance(script, Path) else "-c", *flags]
    sys.path[:] = [str(cwd), *(place for place in sys.path if place not in OURS)]
    importlib.import_module("pages.run").write_run_page = lambda run: None
    try:
        if isinstance(script, Path):
            sys.path.insert(0, str(script.parent))
            runpy.run_path(str(script), run_name="__main__")
        else:
            exec(script, {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()                                     # Python does it from 3.13 on
