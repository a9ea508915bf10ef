"""Reproduce a table: run its list of commands, then write the table and a page to read.

    python reproduce.py main --scale toy --out runs/main                 # minutes on a laptop's CPU
    python reproduce.py main --scale toy --seeds 3 --out runs/main       # other seeds of the post-training, mean ± sd
    python reproduce.py main --scale smollm2 --data DATA --out runs/smollm2    # a few steps on a real 135M model
    python reproduce.py main --scale paper --data DATA --out runs/paper --dry-run      # print the paper's own commands

A table is a list of the exact commands, one a line, below; each is printed before it runs, and a command whose output
is there already is passed over, so an interrupted table goes on.  Every row says what it cost, the teacher's RL
included: optimiser steps, labels seen, tokens sampled, seconds of its runs (loading and evaluation apart).

main: raw-teacher transfer < direct GRPO < the full workflow.  All three get the same number of optimiser steps; direct
GRPO has a second row with as many as fit in the workflow's seconds.

Writes OUT/table.json, OUT/table.md, OUT/report.html and the runs, OUT/seed0/…
"""
import argparse
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from common import FlagParser, positive
from engine.files import write_json, write_text
from engine.ranks import fail, say
from report import write_table_page

HERE = Path(__file__).parent

# ---------------------------------------------------------------- tables
# {name}: of the scale, of the paths, or a figure of runs that are done by then (see `figures_of`).
# {if_failed}: whether the scale goes on where a certificate does not pass.  A raw teacher's C1 never passes.

MAIN = """
# The teacher learns from the sparse reward; C1; the bridge; on-policy distillation.
stage1_grpo.py --model {teacher} --problems {train} --out {run}/teacher {grpo} --max-steps {grpo_steps}
stage2_shape.py --teacher {run}/teacher --reference {teacher} --problems {train} --certify-problems {heldout} --out {run}/shape {shape} {if_failed}
stage3_kl.py --student {student} --teacher {run}/teacher --rollouts {run}/shape/rollouts.jsonl --problems {heldout} --out {run}/bridge {bridge} {if_failed}
stage4_distill.py --student {run}/bridge --teacher {run}/teacher --problems {train} --out {run}/student {opd} --max-steps {opd_steps} {if_failed}

# Direct GRPO of the student: as many optimiser steps as the workflow took; as many as fit in its time.
stage1_grpo.py --model {student} --problems {train} --out {run}/direct {grpo} --max-steps {workflow_steps}
stage1_grpo.py --model {student} --problems {train} --out {run}/direct_equal_time {grpo} --max-steps {equal_time_steps}

# Raw-teacher transfer: the same distillation from the teacher before RL, with all of the workflow's optimiser steps.
stage2_shape.py --teacher {teacher} --reference {teacher} --problems {train} --certify-problems {heldout} --out {run}/raw_shape {shape} --allow-failed-certificate
stage3_kl.py --student {student} --teacher {teacher} --rollouts {run}/raw_shape/rollouts.jsonl --problems {heldout} --out {run}/raw_bridge {bridge} --allow-failed-certificate
stage4_distill.py --student {run}/raw_bridge --teacher {teacher} --problems {train} --out {run}/raw_student {opd} --max-steps {raw_opd_steps} --allow-failed-certificate
"""

# row -> the model that is evaluated, and the runs that it cost
MAIN_ROWS = {
    "base student": ("{student}", []),
    "raw teacher": ("{teacher}", []),
    "RL teacher": ("{run}/teacher", ["teacher"]),
    "raw-teacher transfer": ("{run}/raw_student", ["raw_shape", "raw_bridge", "raw_student"]),
    "direct GRPO, equal steps": ("{run}/direct", ["direct"]),
    "direct GRPO, equal time": ("{run}/direct_equal_time", ["direct_equal_time"]),
    "full workflow": ("{run}/student", ["teacher", "shape", "bridge", "student"]),
}

TABLES = {"main": (MAIN, MAIN_ROWS)}

EVALUATE = "eval.py --model {model} --problems {test} --out {run}/eval_{slug} {eval} --seed {seed} --allow-failed-certificate"

# ---------------------------------------------------------------- scales

TOY_FLAGS = "--max-new-tokens 16 --micro-batch-size 128 --seed {seed}"
TOY_CURVE = "--weight-decay 0 --eval-problems {heldout} --eval-every 10 --eval-samples 2"
SMOL_FLAGS = "--temperature 0.5 --max-new-tokens 128 --micro-batch-size 4 --dtype {dtype} --seed {seed}"
PAPER_FLAGS = "--max-new-tokens 8192 --micro-batch-size 2 --rollout-tokens 300000 --dtype bfloat16 --seed {seed}"
PAPER_CURVE = "--eval-problems {test} --eval-every 5 --eval-samples 4 --save-every 20"

SCALES = {
    # 128 rollouts in every optimiser step of every arm.
    "toy": {
        "prepare": ["prepare.py toy --out {out}/base"],
        "teacher": "{out}/base/teacher", "student": "{out}/base/student",
        "train": "{out}/base/train.jsonl", "heldout": "{out}/base/heldout.jsonl", "test": "{out}/base/test.jsonl",
        "grpo": f"--prompts-per-step 16 --samples-per-prompt 8 --steps-per-rollout 2 --lr 3e-4 {TOY_FLAGS} {TOY_CURVE}",
        "shape": f"--num-problems 512 --samples-per-prompt 4 --prompts-per-step 128 --certify-on reference {TOY_FLAGS}",
        "bridge": f"--max-kl 0.3 --max-steps 40 --rollouts-per-step 128 --lr 1e-3 {TOY_FLAGS} {TOY_CURVE.replace('-every 10', '-every 5')}",
        "opd": f"--prompts-per-step 128 --lr 1e-3 {TOY_FLAGS} {TOY_CURVE}",
        "eval": "--samples 16 --temperature 0.7 --top-p 1 --top-k 0 --max-new-tokens 16 --batch-size 1024",
        "grpo_steps": 80, "opd_steps": 60, "launch": "{python}", "if_failed": ""},
    # Shows that the code meets a real model, tokenizer and data; a few steps teach nobody anything.  The student is the
    # teacher without its last layers.  A model of 135M hardly ever boxes a right answer: expect rewards of 0.
    "smollm2": {
        "prepare": ["prepare.py smollm2 --out {out}/base/teacher", "prepare.py smollm2 --num-layers 27 --out {out}/base/student"],
        "teacher": "{out}/base/teacher", "student": "{out}/base/student",
        "train": "{data}/gsm8k_train.jsonl", "heldout": "{data}/gsm8k_test.jsonl", "test": "{data}/gsm8k_test.jsonl",
        "grpo": f"--prompts-per-step 2 --samples-per-prompt 4 --steps-per-rollout 2 --lr 1e-5 --give-up-after 0 {SMOL_FLAGS}",
        "shape": f"--num-problems 8 --num-certify-problems 4 --samples-per-prompt 2 --prompts-per-step 8 {SMOL_FLAGS}",
        "bridge": f"--max-kl 0.1 --num-certify-problems 4 --max-steps 3 --rollouts-per-step 8 --lr 1e-4 {SMOL_FLAGS}",
        "opd": f"--prompts-per-step 8 --lr 1e-4 {SMOL_FLAGS}",
        "eval": "--samples 2 --num-problems 4 --temperature 0.5 --max-new-tokens 128 --dtype {dtype}",
        "grpo_steps": 2, "opd_steps": 2, "launch": "{python}", "if_failed": "--allow-failed-certificate"},
    # The paper's settings: 15 epochs of 80% of DAPO-Math-17k; needs a GPU node.  Checkpointing and the bound on the
    # cache change no figure; without them no stage fits 80 GB (plan.py).
    "paper": {
        "prepare": ["prepare.py dapo --parquet {data}/dapo-math-17k.parquet --out {out}/base"],
        "teacher": "{models}/Qwen3-8B", "student": "{models}/Qwen3-1.7B",
        "train": "{out}/base/train.jsonl", "heldout": "{out}/base/heldout.jsonl", "test": "{data}/math500.jsonl",
        "grpo": f"--prompts-per-step 128 --samples-per-prompt 8 --steps-per-rollout 4 --activation-checkpointing --lr 1e-6 {PAPER_FLAGS} {PAPER_CURVE}",
        "shape": f"--samples-per-prompt 2 --num-certify-problems 512 --prompts-per-step 512 {PAPER_FLAGS}",
        "bridge": f"--max-kl 0.1 --max-steps 200 --rollouts-per-step 64 --activation-checkpointing --lr 1e-6 {PAPER_FLAGS} {PAPER_CURVE}",
        "opd": f"--prompts-per-step 64 --activation-checkpointing --lr 1e-6 {PAPER_FLAGS} {PAPER_CURVE}",
        "eval": "--samples 16 --temperature 0.7 --top-p 0.8 --top-k 20 --max-new-tokens 8192 --rollout-tokens 300000 --dtype bfloat16",
        "grpo_steps": 1600, "opd_steps": 800, "launch": "{torchrun} --nproc_per_node={gpus}", "if_failed": ""},
}

# ---------------------------------------------------------------- running


def totals_of(run: Path) -> dict:
    return json.loads((run / "DONE").read_text())


def add_up(runs: list[Path]) -> dict:
    """What runs cost together."""
    every = [totals_of(run) for run in runs]
    return {key: sum(totals[key] for totals in every) for key in ("optimiser_steps", "labels_seen", "tokens_sampled", "seconds")}


def figures_of(run: Path) -> dict:
    """Figures that later commands take from runs that are done; a name in angle brackets where they are not."""
    figures = {"workflow_steps": "<steps of the workflow>", "equal_time_steps": "<steps in the workflow's seconds>",
               "raw_opd_steps": "<steps of the workflow less those of raw_bridge>"}
    if all((run / part / "DONE").is_file() for part in ("teacher", "shape", "bridge", "student")):
        workflow = add_up([run / part for part in ("teacher", "shape", "bridge", "student")])
        figures["workflow_steps"] = workflow["optimiser_steps"]
        if (run / "direct" / "DONE").is_file():
            direct = totals_of(run / "direct")
            figures["equal_time_steps"] = max(1, round(direct["optimiser_steps"] * workflow["seconds"] / direct["seconds"]))
        if (run / "raw_bridge" / "DONE").is_file():
            figures["raw_opd_steps"] = workflow["optimiser_steps"] - totals_of(run / "raw_bridge")["optimiser_steps"]
    return figures


def fill(text: str, values: dict) -> str:
    """Replace {name} until none is left: a scale's flags name paths, which name OUT."""
    while re.search(r"\{\w+\}", text):
        text = re.sub(r"\{(\w+)\}", lambda match: str(values[match[1]]), text)
    return text


def run_command(line: str, values: dict, dry_run: bool) -> None:
    """Print one command and run it.  Ends the table if it fails."""
    if not line or line.startswith("#"):
        return print(line)
    script, flags = fill(line, values).strip().split(" ", 1)
    launch = shlex.split(fill("{python}" if script == "prepare.py" else values["launch"], values))
    print("$", Path(launch[0]).name, *launch[1:], script, flags, flush=True)
    if not dry_run and (code := subprocess.run([*launch, str(HERE / script), *shlex.split(flags)]).returncode):
        raise SystemExit(f"the command above ended with exit code {code}; mend what it says and run this again: it goes on there")


def run_seed(table: str, values: dict, rows: dict, dry_run: bool) -> None:
    """All commands of one seed, then the evaluation of each row."""
    for line in table.strip().splitlines():
        run_command(line, values | figures_of(Path(values["run"])), dry_run)
    print("\n# Evaluation: a line a row of the table.")
    for name, (model, _) in rows.items():
        run_command(EVALUATE, values | {"model": model, "slug": slug(name)}, dry_run)


def slug(name: str) -> str:
    return re.sub(r"\W+", "_", name)


# ---------------------------------------------------------------- the table


def collect(rows: dict, seed_dirs: list[Path]) -> list[dict]:
    """table.json's rows: for each the score of every seed with its interval, and what it cost."""
    table = []
    for name, (_, runs) in rows.items():
        scores = [json.loads((run / f"eval_{slug(name)}" / "scores.json").read_text()) for run in seed_dirs]
        key = f"avg@{scores[0]['samples']}"
        costs = [add_up([run / part for part in runs]) for run in seed_dirs]
        table.append({
            "row": name, "runs": runs, "metric": key, "mean": float(np.mean([score[key]["value"] for score in scores])),
            "sd": float(np.std([score[key]["value"] for score in scores], ddof=1)) if len(scores) > 1 else None,
            "seeds": [{"value": score[key]["value"], "interval": score[key]["interval_over_problems"],
                       "interval_over_samples": score[key]["interval_over_samples"],
                       "truncated_fraction": score["truncated_fraction"]["value"], **cost} for score, cost in zip(scores, costs)]})
    return table


def as_markdown(table: list[dict], title: str) -> str:
    """The table for people: one line a row, one column a seed."""
    num_seeds = len(table[0]["seeds"])
    head = ["row", f"{table[0]['metric']}"] + [f"seed {i}, 95% interval" for i in range(num_seeds)]
    head += ["optimiser steps", "labels seen", "tokens sampled", "seconds"]
    lines = [f"## {title}", "", "| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for row in table:
        spread = "" if row["sd"] is None else f" ± {row['sd']:.3f}"
        cells = [row["row"], f"{row['mean']:.3f}{spread}"]
        cells += [f"{seed['value']:.3f} [{seed['interval'][0]:.3f}, {seed['interval'][1]:.3f}]" for seed in row["seeds"]]
        cells += [f"{np.mean([seed[key] for seed in row['seeds']]):,.0f}"
                  for key in ("optimiser_steps", "labels_seen", "tokens_sampled", "seconds")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def ordering(table: list[dict]) -> str:
    """Whether raw-teacher transfer < direct GRPO < full workflow holds at equal steps, intervals apart, seed by seed."""
    rows = {row["row"]: row["seeds"] for row in table}
    triples = list(zip(rows["raw-teacher transfer"], rows["direct GRPO, equal steps"], rows["full workflow"]))
    apart = [raw["interval"][1] < direct["interval"][0] and direct["interval"][1] < full["interval"][0] for raw, direct, full in triples]
    return (f"Raw-teacher transfer < direct GRPO < full workflow at equal optimiser steps, with disjoint 95% intervals: "
            f"holds on {sum(apart)} of {len(apart)} seed{'s' if len(apart) > 1 else ''}.")


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--scale", choices=list(SCALES), required=True, help="which models, data and settings")
    parser.add_argument("--out", type=Path, required=True, help="directory for the runs, the table and the report")
    parser.add_argument("--seeds", type=positive, default=1, help="how many seeds of the post-training, from 0")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    parser.add_argument("--data", type=Path,
                        help="folder with gsm8k_train.jsonl, gsm8k_test.jsonl, math500.jsonl (smollm2, paper)")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder with Qwen3-1.7B and Qwen3-8B (paper)")
    parser.add_argument("--gpus", type=positive, default=8, help="processes on this node (paper)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="compute dtype (smollm2)")
    return parser.parse_args(argv)


def check_data(scale: dict, data: Path | None) -> None:
    """Refuse to begin without the files that a scale reads from --data."""
    files = sorted({name for setting in [*scale["prepare"], *scale.values()]
                    for name in re.findall(r"\{data\}/([\w.-]+)", str(setting))})
    if data is None:
        fail(f"--data: give the folder that holds {' and '.join(files)}")
    for name in files:
        if not (data / name).is_file():
            fail(f"--data {data}: no {name} there; this scale reads {' and '.join(files)}")


def main(args) -> None:
    scale, (table, rows) = SCALES[args.scale], TABLES[args.table]
    values = {**scale, "out": args.out, "data": args.data or "DATA", "models": args.models, "gpus": args.gpus, "dtype": args.dtype,
              "python": sys.executable, "torchrun": "torchrun"}
    if any("{data}" in str(setting) for setting in scale.values()) and not args.dry_run:
        check_data(scale, args.data)
    os.environ.setdefault("OMP_NUM_THREADS", "1") if args.scale == "toy" else None     # tiny matrices: threads only wait
    seed_dirs = [args.out / f"seed{seed}" for seed in range(args.seeds)]
    for line in scale["prepare"]:
        run_command(line, values, args.dry_run)
    for seed, run in enumerate(seed_dirs):
        print(f"\n# seed {seed}")
        run_seed(table, values | {"seed": seed, "run": run}, rows, args.dry_run)
    if args.dry_run:
        return

    result = collect(rows, seed_dirs)
    title = f"{args.table}, {args.scale} scale"
    write_json(args.out / "table.json", {"table": args.table, "scale": args.scale, "rows": result, "ordering": ordering(result)})
    write_text(args.out / "table.md", as_markdown(result, title) + f"\n{ordering(result)}\n")
    print("\n" + (args.out / "table.md").read_text())
    if importlib.util.find_spec("matplotlib"):
        write_table_page(args.out)
        say(f"Read {args.out / 'report.html'}: the table, the learning curves, the teacher's dense reward token by token.")
    else:
        say("No report.html: it needs matplotlib (pip install 'sparse-to-dense[report]').")
    say(f"Everything is in {args.out}: the table in table.md and table.json, each run in its own directory below seed0/.")


if __name__ == "__main__":
    main(parse_args())
