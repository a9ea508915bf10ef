"""What a table is made of, and what makes it: runs, each a command that may name other runs; up to --jobs at a time.

A table is a plain function of `run` and the settings of its scale:

    teacher = run("teacher", "stage1_grpo.py --model", s.teacher, "--problems", s.rl, s.grpo, "--max-steps", 100)
    direct = run("direct", "stage1_grpo.py --model", s.student, s.grpo, "--max-steps", steps_of(teacher, bridge))

`run` starts nothing: it notes the command.  A run stands for its directory, `run / "file"` for a file there, and
`steps_of(...)` for a number that is known when these runs are done.

Every run is kept in CELLS by what it depends on: its command, the runs that it names and what the files of --data and
--models hold.  So a table goes on where it was interrupted, and tables share what they have in common.
"""
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tqdm import tqdm

from engine.files import file_digest, lock
from engine.ranks import fail, say

HERE = Path(__file__).parent.parent
REFRESH_SECONDS = 60

# ---------------------------------------------------------------- what a table's function works with


@dataclass(frozen=True, eq=False)
class Run:
    name: str
    words: tuple            # the script and its flags: texts as a shell reads them, runs, files of runs, numbers

    def __truediv__(self, name: str) -> "File":
        return File(self, name)


@dataclass(frozen=True, eq=False)
class File:
    run: Run
    name: str


@dataclass(frozen=True, eq=False)
class Number:
    """A number of optimiser steps, at least 1, that other runs decide."""
    text: str
    runs: tuple[Run, ...]
    value: Callable[[dict], float]          # totals: run's name -> what its DONE says

    def __sub__(self, other: "Number") -> "Number":
        return Number(f"{self.text} less {other.text}", self.runs + other.runs,
                      lambda totals: self.value(totals) - other.value(totals))


def steps_of(*runs: Run) -> Number:
    return Number(f"steps of {' '.join(run.name for run in runs)}", runs,
                  lambda totals: sum(totals[run.name]["optimiser_steps"] for run in runs))


def steps_in_the_time_of(run: Run, others: list[Run]) -> Number:
    """As many steps as `run` would take in the seconds of the others."""
    def value(totals: dict) -> float:
        seconds = sum(totals[other.name]["seconds"] for other in others)
        return round(totals[run.name]["optimiser_steps"] * seconds / totals[run.name]["seconds"])
    names = " ".join(other.name for other in others)
    return Number(f"steps of {run.name} in the time of {names}", (run, *others), value)


@dataclass
class Given:
    """What the command line gives a scale; paths as a shell reads them."""
    seed: int = 0
    data: str = "DATA"
    models: str = "models"
    dtype: str = "float32"
    gpus: int = 8


@dataclass
class Settings:
    """What a scale gives the tables: models, problems, flags of each stage, steps.  Flags are words of a command."""
    teacher: Run | File | str
    student: Run | File | str
    labels: int | str
    rl: object                              # labelled problems of the teacher's RL,
    certify: object                         # of C1,
    labelled: object                        # of direct GRPO: both together
    more: object                            # as many others
    prompts: object                         # problems without answers
    heldout: object
    test: object
    grpo: list
    shape: list
    bridge: list
    opd: list
    eval: list
    grpo_steps: int
    opd_steps: int
    plateau_steps: int
    student_rl_steps: int
    tuned: str = ""                         # direct GRPO's own flags, as the sweep chose them
    point: str = ""                         # a point of a sweep: flags of direct GRPO, of RL, bridge, distillation
    rl_point: str = ""
    bridge_point: str = ""
    opd_point: str = ""
    sweep_steps: int = 400
    expert_steps: int = 20
    if_failed: str = "--allow-failed-certificate"
    distributed: bool = False               # by torchrun, over --gpus processes
    shapes: dict = field(default_factory=dict)      # for plan.py: teacher, student -> the model they are made of


@dataclass
class Scale:
    settings: Callable                      # (run, given, **changed) -> Settings
    over: dict[str, dict[str, dict]]        # what tables go through -> setting -> what it changes in `settings`
    without: tuple[str, ...] = ()           # rows that it does without
    data: tuple[str, ...] = ()              # files of --data


def budgets(*numbers: int) -> dict[str, dict]:
    return {f"{number:,} labels": {"labels": number} for number in numbers}


def labelled_problems(run, problems, labels: int, seed: int) -> dict:
    """What `prepare.py labels` writes, by the names in Settings."""
    drawn = run("labels", "prepare.py labels --problems", problems, "--num-labels", labels, "--seed", seed)
    names = ("rl", "certify", "labelled", "more", "prompts")
    return {name: drawn / f"{name}.jsonl" for name in names} | {"labels": labels}


# ---------------------------------------------------------------- one seed at one setting


def flat(words) -> list:
    return [word for each in words for word in (flat(each) if isinstance(each, list | tuple) else [each]) if word != ""]


def slug(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def quoted(path) -> str:
    return shlex.quote(str(path))


def text_of(run: Run, place: Callable[[Run], str], number: Callable[[Number], str]) -> str:
    """A run's command, with a text in place of each run that it names, and of each number."""
    def text(word) -> str:
        if isinstance(word, File):
            return f"{place(word.run)}/{word.name}"
        return place(word) if isinstance(word, Run) else number(word) if isinstance(word, Number) else str(word)
    return " ".join(map(text, run.words))


def needs(run: Run) -> list[Run]:
    """The runs that must be done before this one can begin."""
    return [other for word in run.words for other in
            ([word] if isinstance(word, Run) else [word.run] if isinstance(word, File) else getattr(word, "runs", ()))]


class Scope:
    """The runs of one seed at one setting of what the table goes through."""

    def __init__(self, table, scale, given: Given, setting: str, changed: dict, directory: Path = Path(), outside=(),
                 test=None, first: bool = True):
        self.given, self.setting, self.directory, self.outside = given, setting, directory, outside
        self.runs, self.cells = {}, {}      # name -> run; name -> directory, once it is known
        self.lost: dict[str, str] = {}      # name of a run that failed -> why; of one that needs it -> nothing
        self.settings = scale.settings(self.run, given, **changed)
        self.settings.test = test or self.settings.test
        self.rows = {name: row for name, row in table.rows(self.run, self.settings).items()
                     if name not in scale.without and (first or name not in table.once)}
        for name, (model, _) in self.rows.items():
            self.run(f"eval_{slug(name)}", "eval.py --model", model, "--problems", self.settings.test,
                     self.settings.eval, "--seed", given.seed, "--allow-failed-certificate")
        self.names = self.wanted()

    def run(self, name: str, *words) -> Run:
        self.runs[name] = Run(name, tuple(flat(words)))
        return self.runs[name]

    def wanted(self) -> list[str]:
        """The evaluations of the rows and all that they need, each behind what it needs; what is prepared, first."""
        order: dict[str, None] = {}

        def add(run: Run) -> None:
            for other in needs(run):
                add(other)
            order.setdefault(run.name)
        for row in self.rows:
            add(self.runs[f"eval_{slug(row)}"])
        return sorted(order, key=lambda name: not self.runs[name].words[0].startswith("prepare.py"))

    def resolve(self, name: str, cells: Path) -> tuple[Path, str] | None:
        """The run's directory and command; None while it waits for others."""
        run = self.runs[name]
        if any(not is_done(self.cells.get(other.name)) for other in needs(run)):
            return None
        totals = {other.name: read_of(self.cells[other.name], "DONE") for other in needs(run)}

        def command(place) -> str:
            return text_of(run, lambda other: place(self.cells[other.name]),
                           lambda number: str(max(int(number.value(totals)), 1)))
        key = command(lambda cell: cell.name)
        held = "".join(held_by(word) for word in shlex.split(key) if self.outside and word.startswith(self.outside))
        self.cells[name] = cells / f"{name}-{hashlib.sha256((key + held).encode()).hexdigest()[:8]}"
        link(self.directory / name, self.cells[name])
        return self.cells[name], f"{command(quoted)} --out {quoted(self.cells[name])}"

    def printed(self) -> list[str]:
        """The exact commands, in an order in which they can be run; <…> is filled in when the runs there are done."""
        lines = []
        for name in self.names:
            script, flags = text_of(self.runs[name], lambda run: quoted(self.directory / run.name),
                                    lambda number: f"'<{number.text}>'").split(" ", 1)
            lines.append(f"$ {self.launch(script)} {script} {flags} --out {quoted(self.directory / name)}")
        return lines

    def launch(self, script: str) -> str:
        together = self.settings.distributed and script != "prepare.py"
        return f"torchrun --nproc_per_node={self.given.gpus}" if together else "python"


@cache
def held_by(path: str) -> str:
    """What a file, or a folder's files, hold: SHA-256; for weights, which take minutes to read, size and time."""
    files = [Path(path)] if Path(path).is_file() else sorted(file for file in Path(path).rglob("*") if file.is_file())
    facts = [(file, file.stat()) for file in files]
    return "".join(f" {file.name} {file_digest(file) if stat.st_size < 2**28 else (stat.st_size, stat.st_mtime_ns)}"
                   for file, stat in facts)


def is_done(run: Path | None) -> bool:
    return run is not None and (run / "DONE").is_file()


def read_of(run: Path, name: str, *keys: str) -> dict:
    """A JSON file of a run that is done."""
    try:
        content = json.loads((run / name).read_text(encoding="utf-8"))
        if all(key in content for key in keys):
            return content
    except (OSError, ValueError):
        pass
    fail(f"{run}: its {name} is gone or damaged; delete that directory and run this again, it is made anew")


def link(place: Path, target: Path) -> None:
    make_directory(place.parent, "--out")
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        fail(f"--out: {place} is in the way of a link to {target}; move it, or choose another directory")
    place.symlink_to(os.path.relpath(target.resolve(), place.parent.resolve()))


def make_directory(path: Path, flag: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"{flag}: {path} cannot be made ({error.strerror}); choose another directory")


# ---------------------------------------------------------------- running


def run_all(scopes: list[Scope], cells: Path, jobs: int, threads: int | None, when_evaluated=lambda: None) -> list[str]:
    """Every wanted run of every scope, up to `jobs` at a time; one that another table is making is waited for.

    when_evaluated() is called after evaluations, at most once in REFRESH_SECONDS.  Where a run fails, such as one that
    gave up, those that do not need it go on.  Whatever ends the table, the runs save their states.
    -> a sentence for each that failed
    """
    todo = [(scope, name) for scope in scopes for name in scope.names]
    running: dict[Path, subprocess.Popen] = {}
    failed: dict[Path, str] = {}
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    evaluated, last_call = False, -1e9
    make_directory(cells, "--cells")
    bar = tqdm(total=len(todo), unit="run", desc="table", disable=jobs == 1)
    try:
        while todo or running:
            for scope, name in list(todo):
                run, command = scope.resolve(name, cells) or (None, "")
                if is_done(run):
                    todo.remove((scope, name))
                    evaluated |= name.startswith("eval_")
                    bar.update()
                elif run and run not in running and len(running) < jobs:
                    process = start(run, command, scope, environment, to_log=jobs > 1)
                    running |= {run: process} if process else {}
            bar.set_postfix_str(", ".join(run.name for run in running))
            if todo or running:
                wait(running.values())
            for run in [run for run, process in running.items() if process.poll() is not None]:
                if code := running.pop(run).returncode:
                    failed[run] = last_words(run, code, with_log=jobs > 1)
                else:
                    shutil.rmtree(run / "state", ignore_errors=True)            # only an unfinished run needs it
            todo = [(scope, name) for scope, name in todo if not (failed and is_lost(scope, name, failed))]
            if evaluated and todo and time.monotonic() > last_call + REFRESH_SECONDS:
                when_evaluated()
                evaluated, last_call = False, time.monotonic()
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        bar.close()
    return list(failed.values())


def is_lost(scope: Scope, name: str, failed: dict[Path, str]) -> bool:
    """Has this run failed, or one that it needs?"""
    if (cell := scope.cells.get(name)) in failed:
        gave_up = (cell / "metrics.jsonl").is_file() and "nothing is learnt" in failed[cell]
        scope.lost[name] = "as nothing was learnt any more" if gave_up else "with an error"
    elif any(run.name in scope.lost for run in needs(scope.runs[name])):
        scope.lost[name] = ""
    return name in scope.lost


def wait(processes, seconds: float = 5.0) -> None:
    """Until one of them has ended; not longer, for another table may have done what this one waits for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and all(process.poll() is None for process in processes):
        time.sleep(0.05)


def start(run: Path, command: str, scope: Scope, environment: dict, to_log: bool) -> subprocess.Popen | None:
    """None if it is running already, for another table: whose process holds the lock, and dies with it."""
    script, flags = command.split(" ", 1)
    program, *options = scope.launch(script).split()
    program = [sys.executable, *(["-m", "torch.distributed.run"] if program == "torchrun" else []), *options]
    try:
        held = lock(run.with_suffix(".lock"))
    except BlockingIOError:
        return None
    except OSError:                                     # no locks on this file system, as the run will say
        held = None
    with held or nullcontext():
        if is_done(run):                                # since it was looked for
            return None
        output = open(run.with_suffix(".log"), "a") if to_log else None
        if not to_log:
            print("$", scope.launch(script), command, flush=True)
        return subprocess.Popen([*program, str(HERE / script), *shlex.split(flags)], env=environment, stdout=output,
                                stderr=output, pass_fds=[held.fileno()] * (held is not None),
                                start_new_session=True)         # Ctrl-C comes once, from here: a second one is not kind


def last_words(run: Path, code: int, with_log: bool) -> str:
    log = run.with_suffix(".log")
    said = f"; {log} ends with: {log.read_text(errors='replace').strip()[-500:]}" if with_log else ""
    return f"{run.name} ended with exit code {code}; mend what it says and run this again: it goes on there{said}"


def catch_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:          # as nohup has it
            signal.signal(number, leave)


def leave(number, frame) -> None:
    say(f"Stopped by {signal.Signals(number).name}; the runs end their steps, and the same command goes on from there.")
    raise SystemExit(128 + number)
