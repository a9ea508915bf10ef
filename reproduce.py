"""Reproduce a table: run its commands, then write the table, a figure and a page to read.

    python reproduce.py main --scale toy --out runs/main                 # minutes on a laptop's CPU
    python reproduce.py labels --scale toy --seeds 5 --out runs/labels   # accuracy against labels, about an hour
    python reproduce.py main --scale laptop --data DATA --out runs/laptop --dtype bfloat16   # a real model, on a CPU
    python reproduce.py main --scale smollm2 --data DATA --out runs/smollm2    # a few steps on a real 135M model
    python reproduce.py main --scale paper --data DATA --out runs/paper --dry-run      # print the paper's own commands

What the tables compare stands in experiments/tables.py, the settings in the modules beside it.  Every run is kept in
CELLS by what it depends on: its command, the runs that it takes and what the files of --data and --models hold.  An
interrupted table goes on, tables share what they have in common, also while both are running, and a command that was
changed is another run.  Changed code is not: for that, delete CELLS or name another.  OUT/seed0/NAME links to the run
of that name.  Commands that do not wait for one another run side by side (--jobs); a run's output is then in
CELLS/NAME-….log.  Ctrl-C and SIGTERM let every run end its step.

Every row says what it cost, the teacher's RL included: optimiser steps, labels seen, tokens sampled, seconds of its
runs (loading and evaluation apart).  pages/statistics.py says how rows are compared.

Writes OUT/table.json, OUT/table.md, OUT/figure.svg, OUT/report.html, anew each time that a row has come in; at the end
with --results also DIR/TABLE-SCALE/, to be kept.
"""
import argparse
import os
import platform
import re
import shutil
from pathlib import Path

import numpy as np

from common import FlagParser, natural, positive
from engine.files import read_json, read_jsonl, write_json
from engine.ranks import fail, say
from experiments.mawps import find_mawps
from experiments.runner import (
    Given, Scale, Scope, budgets, catch_signals, is_done, make_directory, quoted, read_of, run_all, slug,
)
from experiments.tables import SCALES, TABLES, Table, settings_of
from pages.run import TOTALS
from pages.table import write_table_files

WORKED_TOKENS = 4           # a completion of the toy that is longer has worked

# ---------------------------------------------------------------- the table


def result_of(scope: Scope, row: str, unit: str) -> dict:
    """A row of one seed: its score with its interval over problems, what it cost, and how it went."""
    evaluation, runs = scope.cells[f"eval_{slug(row)}"], [run.name for run in scope.rows[row][1]]
    scores = read_of(evaluation, "scores.json", "samples")
    costs = [read_of(scope.cells[run], "DONE") for run in runs]
    metrics = read_jsonl(scope.cells[runs[-1]] / "metrics.jsonl") if runs else []
    on_the_way = [line["eval_accuracy"] for line in metrics if line.get("eval_accuracy") is not None]
    rewards = [line["reward_mean"] for line in metrics if line.get("reward_mean") is not None]
    key = f"avg@{scores['samples']}"
    found = {"seed": scope.given.seed, "metric": key, "value": scores[key]["value"],
             "interval": scores[key]["interval_over_problems"],
             "truncated_fraction": scores["truncated_fraction"]["value"],
             "cells": [scope.cells[run].name for run in runs] or [evaluation.name],
             **{name: sum(totals[name] for totals in costs) for name in TOTALS}}
    if unit != "seed":
        found["unit"] = (f"{scope.setting}, " if unit == "student" else "") + f"{unit} {scope.given.seed}"
    if on_the_way and rewards:                                  # of RL
        found |= {"best_on_the_way": max(on_the_way), "training_reward": float(np.mean(rewards[-5:]))}
    for run in runs:
        if scope.runs[run].words[0].startswith(("stage2", "stage3")):
            certificate = read_of(scope.cells[run], "certificate.json", "condition", "passed")
            found[f"{certificate['condition'].lower()}_passed"] = certificate["passed"]
            if certificate["condition"] == "C1":
                found["c1_auc"] = certificate["sum"]["within_prompt_auc"]["value"]
                found |= worked_auc(read_jsonl(scope.cells[run] / "implicit_rewards.jsonl"))
    return found


def worked_auc(rows: list[dict]) -> dict:
    """C1's AUC within prompts among the completions that work, where a style is not what tells right from wrong."""
    found = []
    for row in rows if rows and "length_tokens" in rows[0] else ():
        scores, right, length = map(np.array, (row["implicit_reward_nats"], row["reward"], row["length_tokens"]))
        worked = length > WORKED_TOKENS + 1                     # the token that ends it counts, too
        above = scores[worked & (right > 0), None] - scores[worked & (right <= 0)]
        found += [float(np.mean((above > 0) + 0.5 * (above == 0)))] if above.size else []
    return {"c1_auc_worked": float(np.mean(found)), "c1_mixed_worked": len(found)} if found else {}


def collect(table: Table, scopes: list[Scope]) -> list[dict]:
    """table.json's rows, each at a setting, with the seeds that are done."""
    rows = []
    for setting in dict.fromkeys(scope.setting for scope in scopes):
        at = [scope for scope in scopes if scope.setting == setting]
        for name, (_, runs) in at[0].rows.items():
            if whole := [scope for scope in at if is_done(scope.cells.get(f"eval_{slug(name)}"))]:
                seeds, once = [result_of(scope, name, table.unit) for scope in whole], name in table.once
                rows.append({"row": name, "setting": None if once else setting,
                             "labels": None if once else whole[0].settings.labels, "runs": [run.name for run in runs],
                             "metric": seeds[0]["metric"], "seeds": seeds})
    return rows


def provenance(args, scopes: list[Scope]) -> dict:
    """The command, the commits, the versions and the day that the runs are of, and the machine that this is."""
    records = [read_of(run, "args.json") for scope in scopes for run in scope.cells.values() if is_done(run)]
    commits, versions = dict.fromkeys(record.get("git_commit") for record in records), {}
    for name, version in dict.fromkeys(pair for record in records for pair in record.get("versions", {}).items()):
        versions.setdefault(name, []).append(version)
    cpuinfo = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.is_file() else "")
    defaults = vars(parse_args([args.table, "--scale", args.scale, "--out", "DIR"]))
    flags = [f"--{name.replace('_', '-')} {quoted(value)} " for name, value in vars(args).items()
             if value != defaults[name] and name not in ("out", "cells", "results")]
    return {"command": f"python reproduce.py {args.table} --scale {args.scale} {''.join(flags)}--out DIR",
            "commit": ", ".join(filter(None, commits)) or "unknown",
            "machine": f"{os.cpu_count()} cores of {cpu[1] if cpu else platform.processor()}",
            "versions": versions, "date": max(record.get("started", "") for record in records)[:10]}


def given_up(scopes: list[Scope]) -> list[str]:
    """A sentence for each run that failed, such as one that gave up, and for the rows that are missing for it."""
    return [f"Without {scope.setting or 'this row'} on seed {scope.given.seed}: {name} ended early, {said}."
            for scope in scopes for name, said in scope.lost.items() if said]


def write_table(args, scopes: list[Scope], running: bool = False) -> None:
    """All that is written in --out; of a table that is running, what has come in so far."""
    table = TABLES[args.table]
    if not (rows := collect(table, scopes)):
        return
    write_json(args.out / "table.json", {
        **identity(args), **provenance(args, scopes), "finished": not running, "about": table.about, "unit": table.unit,
        "shared": [*table.shared, *given_up(scopes)], "rows": rows,
        "orderings": [{"lower": lower, "higher": higher} for lower, higher in table.orderings
                      if {lower, higher} <= {row["row"] for row in rows}],
        "scopes": [place_of(scope) | {"directory": str(scope.directory.relative_to(args.out))} for scope in scopes]})
    write_table_files(args.out)
    if running:
        return
    say("\n" + (args.out / "table.md").read_text())
    say(f"Read {args.out / 'report.html'}: the figure, learning curves, the teacher's dense reward token by token."
        if (args.out / "report.html").is_file() else
        "No figure and no report.html: they need matplotlib (pip install 'sparse-to-dense[report]').")
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


def check_inputs(args, scale: Scale) -> None:
    """Refuse to begin without the files that the table reads."""
    if args.test and not args.test.is_file():
        fail(f"--test {args.test}: no such file")
    if scale.data and args.data is None:
        fail(f"--data: give the folder that holds {' and '.join(scale.data)}")
    for name in scale.data:
        if not (args.data / name).is_file():
            fail(f"--data {args.data}: no {name} there; this scale reads {' and '.join(scale.data)}")
    if args.scale == "laptop":
        find_mawps(args.data)


def identity(args) -> dict:
    """What may not differ between two commands that write the same --out."""
    return {"table": args.table, "scale": args.scale, "test": args.test and str(args.test), "dtype": args.dtype}


def place_of(scope: Scope) -> dict:
    return {"seed": scope.given.seed, "setting": scope.setting, "labels": scope.settings.labels}


def check_out(args, scopes: list[Scope]) -> None:
    """Refuse to write over another table, or over one that has more."""
    asked, places = identity(args), [place_of(scope) for scope in scopes]
    try:
        old = read_json(args.out / "table.json")
        held = {key: old.get(key, value) for key, value in asked.items()}
        kept = [{key: part[key] for key in places[0]} for part in old.get("scopes", ())]
    except (AttributeError, KeyError, TypeError):
        fail(f"--out {args.out}: its table.json is damaged; delete it, and this command writes it anew from the runs")
    if held != asked:
        other = ", ".join(f"{key} {held[key]}, not {asked[key]}" for key in asked if held[key] != asked[key])
        fail(f"--out {args.out} holds another table ({other}); choose another directory")
    for place in kept:
        if place not in places:
            fail(f"--out {args.out} has {', '.join(f'{key} {value}' for key, value in place.items() if value != '')}, "
                 "which this command leaves out; ask for it, too, or choose another directory")


def scopes_of(args) -> list[Scope]:
    """A scope a seed and setting."""
    table, scale = TABLES[args.table], SCALES[args.scale]
    settings = settings_of(args.table, args.scale)
    if args.labels and table.over == "budgets":
        settings = budgets(args.labels)
    scopes = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        given = Given(seed, quoted(args.data or "DATA"), quoted(args.models), args.dtype, args.gpus)
        for setting, changed in settings.items():
            changed = changed | ({"labels": args.labels} if args.labels else {})
            scopes.append(Scope(table, scale, given, setting, changed, args.out / slug(setting) / f"seed{seed}",
                                tuple(str(path) for path in (args.data, args.models, args.test) if path),
                                args.test and quoted(args.test), first=setting == next(iter(settings))))
    return scopes


def main(args) -> None:
    scopes = scopes_of(args)
    if args.dry_run:
        for scope in scopes:
            print(f"\n# {scope.directory}", *scope.printed(), sep="\n")
        return
    check_inputs(args, SCALES[args.scale])
    check_out(args, scopes)
    for flag, directory in (("--out", args.out), ("--results", args.results)):
        if directory:
            make_directory(directory, flag)
    threads = 1 if args.scale == "toy" else max(1, (os.cpu_count() or 1) // args.jobs) if args.jobs > 1 else None
    failed = run_all(scopes, args.cells or args.out.parent / "cells", args.jobs, threads,   # tiny matrices: no threads
                     when_evaluated=lambda: write_table(args, scopes, running=True))
    write_table(args, scopes)
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    catch_signals()
    main(parse_args())
