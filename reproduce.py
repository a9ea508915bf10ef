"""Reproduce a table: run its commands, then write the table, a figure and a page to read.

    python reproduce.py main --scale toy --out runs/main                 # minutes on a laptop's CPU
    python reproduce.py labels --scale toy --seeds 5 --out runs/labels   # accuracy against labels, about an hour
    python reproduce.py main --scale laptop --data DATA --out runs/laptop --dtype bfloat16   # a real model, on a CPU
    python reproduce.py main --scale smollm2 --data DATA --out runs/smollm2    # a few steps on a real 135M model
    python reproduce.py main --scale paper --data DATA --out runs/paper --dry-run      # print the paper's own commands

What the tables compare, and the settings, stand in tables.py.  Every run is kept in CELLS by what it hangs on, its
command, the runs that it takes and what the files of --data and --models hold: an interrupted table goes on, tables
share what they have in common, also while both are running, and a command that was changed is another run.  Changed
code is not: for that, delete CELLS or name another.  OUT/seed0/NAME links to the run of that name.  Commands that do
not wait for one another run side by side (--jobs); a run's output is then in CELLS/NAME-….log.  Ctrl-C and SIGTERM let
every run end its step.

Every row says what it cost, the teacher's RL included: optimiser steps, labels seen, tokens sampled, seconds of its
runs (loading and evaluation apart).  Over several seeds: mean, median and interval, and for each ordering that the paper
claims an exact test on the same seeds (pages/statistics.py).

Writes OUT/table.json, OUT/table.md, OUT/figure.svg, OUT/report.html, anew each time that a row has come in; at the end
with --results also DIR/TABLE-SCALE/, to be kept.
"""
import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import FlagParser, natural, positive
from engine.files import file_digest, read_json, read_jsonl, write_json
from engine.ranks import fail, say
from experiments.mawps import find_mawps
from pages.run import TOTALS
from pages.table import write_table_files
from tables import DRAWN, EVALUATE, SCALES, TABLES, Table, budgets, table_at

HERE = Path(__file__).parent
REFRESH_SECONDS = 60

# ---------------------------------------------------------------- from a table's text to commands

SETTING = r"(?<!\\boxed)\{(\w+)\}"
RUN = r"(?<!\S)@([a-z]\w*)"


def fill(text: str, values: dict) -> str:
    """Replace {name} until none is left: a scale's flags name paths, which name others.  Not what a box holds."""
    while re.search(SETTING, text):
        text = re.sub(SETTING, lambda match: str(values[match[1]]), text)
    return text


def quoted(path) -> str:
    return shlex.quote(str(path))


def slug(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def lines_of(table: Table, values: dict) -> dict[str, str]:
    """name -> command, of the scale's preparation, of the table, and an evaluation of every row."""
    lines = [line.split(None, 1) for line in f"{values['prepare']}\n{table.commands}".splitlines()
             if line.strip() and not line.strip().startswith("#")]
    lines += [(f"eval_{slug(row)}", EVALUATE.replace("{model}", model)) for row, (model, _) in table.rows.items()]
    return {name: fill(command, values).strip() for name, command in lines}


NUMBER = re.compile(r"<steps of ([\w ]+?)(?: (in the seconds of|less those of) ([\w ]+))?>")


def needs(command: str) -> list[str]:
    """The names of the runs that must be done before this command can begin."""
    numbers = [name for first, _, second in NUMBER.findall(command) for name in [*first.split(), *second.split()]]
    return re.findall(RUN, command) + numbers


def with_numbers(command: str, totals: dict[str, dict]) -> str:
    """Put in what <…> stands for.  totals: what each run took."""
    def number(match) -> str:
        first, relation, second = match[1].split(), match[2], (match[3] or "").split()
        steps, seconds = (sum(totals[name][key] for name in first) for key in ("optimiser_steps", "seconds"))
        if relation == "in the seconds of":
            steps = round(steps * sum(totals[name]["seconds"] for name in second) / seconds)
        elif relation == "less those of":
            steps -= sum(totals[name]["optimiser_steps"] for name in second)
        return str(max(int(steps), 1))
    return NUMBER.sub(number, command)


def wanted(lines: dict[str, str], rows: list[str]) -> list[str]:
    """The evaluations of these rows and all that they need, each behind what it needs; what is prepared, first."""
    order: list[str] = []

    def add(name: str) -> None:
        for other in needs(lines[name]):
            add(other)
        if name not in order:
            order.append(name)
    for row in rows:
        add(f"eval_{slug(row)}")
    return sorted(order, key=lambda name: not lines[name].startswith("prepare.py"))


# ---------------------------------------------------------------- running


class Scope:
    """The runs of one seed at one setting of what the table goes through, by name."""

    def __init__(self, table: Table, values: dict, directory: Path, rows: list[str]):
        self.lines, self.values, self.directory, self.cells = lines_of(table, values), values, directory, {}
        self.names = wanted(self.lines, rows)

    def resolve(self, name: str, cells: Path) -> tuple[Path, str] | None:
        """The run's directory and command; None while it waits for others."""
        command = self.lines[name]
        if any(not is_done(self.cells.get(other)) for other in needs(command)):
            return None
        command = with_numbers(command, {other: read_of(self.cells[other], "DONE") for other in needs(command)})
        key = re.sub(RUN, lambda match: self.cells[match[1]].name, command) + "".join(
            held_by(word) for word in shlex.split(command) if word.startswith(self.values["outside"]))
        self.cells[name] = cells / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        command = re.sub(RUN, lambda match: quoted(self.cells[match[1]]), command)
        link(self.directory / name, self.cells[name])
        return self.cells[name], f"{command} --out {quoted(self.cells[name])}"


@cache
def held_by(path: str) -> str:
    """What a file, or a folder's files, hold: SHA-256; of weights, which take minutes to read, size and time."""
    files = [Path(path)] if Path(path).is_file() else sorted(file for file in Path(path).rglob("*") if file.is_file())
    facts = [(file, file.stat()) for file in files]
    return "".join(f" {file.name} {file_digest(file) if of.st_size < 2**28 else (of.st_size, of.st_mtime_ns)}"
                   for file, of in facts)


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


def run_all(scopes: list[Scope], cells: Path, jobs: int, threads: int | None, when_evaluated=lambda: None) -> None:
    """Every wanted run of every scope, up to `jobs` at a time; one that another table is making is waited for.

    Ends the table if one fails.  when_evaluated() is called after evaluations, at most once in REFRESH_SECONDS.
    """
    todo, running = [(scope, name) for scope in scopes for name in scope.names], {}
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    bar, evaluated, last_call = tqdm(total=len(todo), unit="run", desc="table", disable=jobs == 1), False, -1e9
    make_directory(cells, "--cells")
    try:
        while todo or running:
            for scope, name in list(todo):
                ready = scope.resolve(name, cells)
                if ready and is_done(ready[0]):
                    todo.remove((scope, name))
                    evaluated |= name.startswith("eval_")
                    bar.update()
                elif ready and ready[0] not in running and len(running) < jobs:
                    if process := start(*ready, scope.values, environment, to_log=jobs > 1):
                        running[ready[0]] = process
                        bar.set_postfix_str(", ".join(run.name for run in running))
            if todo or running:
                wait(running.values())
            for run, process in list(running.items()):
                if process.poll() is not None:
                    del running[run]
                    if process.returncode:
                        stop(run, process.returncode, with_log=jobs > 1)
                    shutil.rmtree(run / "state", ignore_errors=True)        # only an unfinished run needs it
            if evaluated and todo and time.monotonic() > last_call + REFRESH_SECONDS:
                when_evaluated()
                evaluated, last_call = False, time.monotonic()
    finally:                                            # whatever ends the table: the runs save their states
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        bar.close()


def wait(processes, seconds: float = 5.0) -> None:
    """Until one of them has ended; not longer, for another table may have done what this one waits for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and all(process.poll() is None for process in processes):
        time.sleep(0.05)


def launch_of(script: str, values: dict) -> list[str]:
    return shlex.split(fill("{python}" if script == "prepare.py" else values["launch"], values))


def start(run: Path, command: str, values: dict, environment: dict, to_log: bool) -> subprocess.Popen | None:
    """None if it is running already, for another table: whose process holds the lock, and dies with it."""
    script, flags = command.split(" ", 1)
    launch = launch_of(script, values)
    with open(run.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError:                                 # no locks on this file system, as the run will say
            pass
        if is_done(run):                                # since it was looked for
            return None
        output = open(run.with_suffix(".log"), "a") if to_log else None
        if not to_log:
            print("$", Path(launch[0]).name, *launch[1:], script, flags, flush=True)
        return subprocess.Popen([*launch, str(HERE / script), *shlex.split(flags)], env=environment, stdout=output,
                                stderr=output, pass_fds=[lock.fileno()],
                                start_new_session=True)         # Ctrl-C comes once, from here: a second one is not kind


def stop(run: Path, code: int, with_log: bool) -> None:
    log = run.with_suffix(".log")
    said = f"; {log} ends with: {log.read_text(errors='replace').strip()[-500:]}" if with_log else ""
    raise SystemExit(f"{run.name} ended with exit code {code}; mend what it says and run this again: it goes on "
                     f"there{said}")


def catch_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:          # as nohup has it
            signal.signal(number, leave)


def leave(number, frame) -> None:
    say(f"Stopped by {signal.Signals(number).name}; the runs end their steps, and the same command goes on from there.")
    raise SystemExit(128 + number)


def print_commands(scope: Scope) -> None:
    """The exact commands of a scope, in an order in which they can be run."""
    for name in scope.names:
        command = NUMBER.sub(lambda match: quoted(match[0]), scope.lines[name])         # filled in when these are done
        script, flags = re.sub(RUN, lambda match: quoted(scope.directory / match[1]), command).split(" ", 1)
        print("$", *launch_of(script, scope.values), script, flags, "--out", quoted(scope.directory / name))


# ---------------------------------------------------------------- the table


def result_of(scope: Scope, row: str, runs: list[str]) -> dict:
    """A row of one seed: its score with its interval over problems, what it cost, and how it went."""
    scores = read_of(scope.cells[f"eval_{slug(row)}"], "scores.json", "samples")
    costs = [read_of(scope.cells[run], "DONE") for run in runs]
    metrics = read_jsonl(scope.cells[runs[-1]] / "metrics.jsonl") if runs else []
    on_the_way = [line["eval_accuracy"] for line in metrics if line.get("eval_accuracy") is not None]
    rewards = [line["reward_mean"] for line in metrics if line.get("reward_mean") is not None]
    key = f"avg@{scores['samples']}"
    found = {"seed": scope.values["seed"], "metric": key, "value": scores[key]["value"],
             "interval": scores[key]["interval_over_problems"],
             "interval_over_samples": scores[key]["interval_over_samples"],
             "truncated_fraction": scores["truncated_fraction"]["value"],
             **{name: sum(totals[name] for totals in costs) for name in TOTALS}}
    if on_the_way and rewards:                                  # of RL
        found |= {"best_on_the_way": max(on_the_way), "heldout_at_the_end": on_the_way[-1],
                  "training_reward": float(np.mean(rewards[-5:]))}
    for run in runs:
        if scope.lines[run].startswith(("stage2", "stage3")):
            certificate = read_of(scope.cells[run], "certificate.json", "condition", "passed")
            found[f"{certificate['condition'].lower()}_passed"] = certificate["passed"]
    return found


def collect(table: Table, scopes: list[Scope]) -> list[dict]:
    """table.json's rows, each at a setting, with the seeds that are done."""
    rows = []
    for setting in dict.fromkeys(scope.values["setting"] for scope in scopes):
        for name, (_, runs) in table.rows.items():
            those = [scope for scope in scopes
                     if scope.values["setting"] == setting and is_done(scope.cells.get(f"eval_{slug(name)}"))]
            if those:
                seeds = [result_of(scope, name, runs.split()) for scope in those]
                rows.append({"row": name, "setting": None if name in table.once else setting,
                             "labels": None if name in table.once else those[0].values["labels"], "runs": runs.split(),
                             "metric": seeds[0]["metric"], "seeds": seeds})
    return rows


def provenance(args, scopes: list[Scope]) -> dict:
    """The command, the commits and the day that the runs are of, and the machine that this is."""
    records = [read_json(run / "args.json") for scope in scopes for run in scope.cells.values() if is_done(run)]
    commits = {record["git_commit"]: None for record in records if record.get("git_commit")}
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), "") if Path("/proc/cpuinfo").is_file() else platform.processor()
    flags = [args.table, "--scale", args.scale, "--seeds", str(args.seeds)]
    for flag in ("first_seed", "labels", "data", "test"):
        flags += [f"--{flag.replace('_', '-')}", str(getattr(args, flag))] * bool(getattr(args, flag))
    for flag, default in (("models", Path("models")), ("gpus", 8), ("dtype", "float32")):
        flags += [f"--{flag}", str(getattr(args, flag))] * (getattr(args, flag) != default)
    return {"command": f"python reproduce.py {shlex.join(flags)} --jobs {args.jobs} --out DIR",
            "commit": ", ".join(commits) or "unknown", "machine": f"{os.cpu_count()} cores of {cpu}",
            "date": max(record.get("started", "") for record in records)[:10]}


def write_table(args, table: Table, scopes: list[Scope], running: bool = False) -> None:
    """All that is written in --out; of a table that is running, what has come in so far."""
    if not (rows := collect(table, scopes)):
        return
    write_json(args.out / "table.json", {
        "table": args.table, "scale": args.scale, "finished": not running, "about": table.about,
        **provenance(args, scopes), "test": args.test and str(args.test), "dtype": args.dtype, "rows": rows,
        "orderings": [{"lower": lower, "higher": higher} for lower, higher in table.orderings],
        "scopes": [{**{key: scope.values[key] for key in ("seed", "setting", "labels")},
                    "directory": str(scope.directory.relative_to(args.out))} for scope in scopes]})
    write_table_files(args.out)
    if running:
        return
    say("\n" + (args.out / "table.md").read_text())
    if importlib.util.find_spec("matplotlib"):
        say(f"Read {args.out / 'report.html'}: the figure, learning curves, the teacher's dense reward token by token.")
    else:
        say("No figure and no report.html: they need matplotlib (pip install 'sparse-to-dense[report]').")
    if args.results:
        kept = args.results / f"{args.table}-{args.scale}"
        make_directory(kept, "--results")
        for file in ("table.json", "table.md", "figure.svg"):
            if (args.out / file).is_file():
                shutil.copy(args.out / file, kept / file)
        say(f"Kept in {kept}")


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--scale", choices=list(SCALES), required=True, help="which models, data and settings")
    parser.add_argument("--out", type=Path, required=True, help="directory for the table and the report")
    parser.add_argument("--cells", type=Path, help="directory of the runs (default: `cells` beside --out)")
    parser.add_argument("--seeds", type=positive, default=1, help="how many seeds of the post-training")
    parser.add_argument("--first-seed", type=natural, default=0, help="the first of them")
    parser.add_argument("--labels", type=positive, help="labelled problems, in place of the scale's or of all budgets")
    parser.add_argument("--jobs", type=positive, default=1, help="runs side by side; each has its share of the cores")
    parser.add_argument("--results", type=Path, help="copy table and figure to a directory there")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    parser.add_argument("--data", type=Path,
                        help="folder with gsm8k_train.jsonl, gsm8k_test.jsonl, math500.jsonl (smollm2, small), MAWPS "
                             "(laptop), or dapo-math-17k.parquet and math500.jsonl (paper)")
    parser.add_argument("--test", type=Path,
                        help="problems to evaluate on, in place of the scale's; takes the runs that are there")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder with Qwen3-1.7B, Qwen3-8B (paper)")
    parser.add_argument("--gpus", type=positive, default=8, help="processes on this node (small, paper)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="(smollm2, laptop)")
    return parser.parse_args(argv)


def check_inputs(args, scale: dict) -> None:
    """Refuse to begin without the files that the table reads."""
    if args.test and not args.test.is_file():
        fail(f"--test {args.test}: no such file")
    data = args.data
    files = sorted({name for setting in scale.values() for name in re.findall(r"\{data\}/([\w.-]+)", str(setting))})
    if files and data is None:
        fail(f"--data: give the folder that holds {' and '.join(files)}")
    for name in files:
        if not (data / name).is_file():
            fail(f"--data {data}: no {name} there; this scale reads {' and '.join(files)}")
    if "prepare.py laptop" in scale["prepare"]:
        find_mawps(data)


def check_out(args, scopes: list[Scope]) -> None:
    """Refuse to write over another table, or over one that has more."""
    old = read_json(args.out / "table.json")
    if old and (old["table"], old["scale"]) != (args.table, args.scale):
        fail(f"--out {args.out} holds the table {old['table']} of {old['scale']} scale; choose another directory")
    if old and (old.get("test"), old.get("dtype", args.dtype)) != (args.test and str(args.test), args.dtype):
        fail(f"--out {args.out} holds this table with another --test or --dtype; choose another directory")
    asked = {(scope.values["seed"], scope.values["setting"], scope.values["labels"]) for scope in scopes}
    for kept in old.get("scopes", ()):
        if (kept["seed"], kept["setting"], kept["labels"]) not in asked:
            fail(f"--out {args.out} has seed {kept['seed']}, {kept['setting'] or kept['labels']}, which this command "
                 "leaves out; ask for it, too, or choose another directory")


def scopes_of(args, table: Table, scale: dict) -> list[Scope]:
    for flag, path in (("data", args.data), ("models", args.models), ("test", args.test)):
        if path and re.search(r"[{}]|(?<!\S)@", str(path)):
            fail(f"--{flag} {path}: in a table's commands braces, and @ before a word, mean something else; move it")
    python, torchrun = ("python", "torchrun") if args.dry_run else (
        quoted(sys.executable), f"{quoted(sys.executable)} -m torch.distributed.run")
    values = {**scale, "data": quoted(args.data or "DATA"), "models": quoted(args.models), "gpus": args.gpus,
              "dtype": args.dtype, "python": python, "torchrun": torchrun}
    values["outside"] = tuple(str(path) for path in (args.data, args.models, args.test) if path)
    values |= {"test": quoted(args.test)} if args.test else {}
    settings = scale.get(table.over) if table.over else {"": {}}
    if settings is None:
        fail(f"--scale {args.scale} has no {table.over}, which `{args.table}` goes through; tables.py would name them")
    if args.labels and table.over == "budgets":
        settings = budgets(args.labels)
    found = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for setting, changed in settings.items():
            rows = [row for row in table.rows if setting == next(iter(settings)) or row not in table.once]
            changed = changed | ({"labels": args.labels, **DRAWN} if args.labels else {})
            found.append(Scope(table, {**values, **changed, "setting": setting, "seed": seed},
                               args.out / slug(setting) / f"seed{seed}", rows))
    return found


def main(args) -> None:
    scale, table = SCALES[args.scale], table_at(args.table, args.scale)
    scopes = scopes_of(args, table, scale)
    if args.dry_run:
        for scope in scopes:
            print(f"\n# {scope.directory}")
            print_commands(scope)
        return
    check_inputs(args, scale)
    check_out(args, scopes)
    for flag, directory in (("--out", args.out), ("--results", args.results)):
        if directory:
            make_directory(directory, flag)
    threads = 1 if args.scale == "toy" else max(1, (os.cpu_count() or 1) // args.jobs) if args.jobs > 1 else None
    run_all(scopes, args.cells or args.out.parent / "cells", args.jobs, threads,     # tiny matrices: threads only wait
            when_evaluated=lambda: write_table(args, table, scopes, running=True))
    write_table(args, table, scopes)


if __name__ == "__main__":
    catch_signals()
    main(parse_args())
