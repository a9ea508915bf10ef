"""Short sweeps of learning rate and batch for the laptop scale, on problems and a seed that no table has.

    python bench/laptop_sweep.py --base BASE --out runs/sweep [--dtype bfloat16] [--seed 100] [--steps 20]

BASE is what `prepare.py laptop` wrote: the stages learn from its sweep.jsonl and are measured on sweep_heldout.jsonl.
Each cell is one command of a stage, the scale's own but for what is swept, with few steps.  The teacher's and the
student's RL come first; from the teacher that is right most often the rollouts are sampled and the bridges are built;
from the bridge that is nearest to it the students are distilled.  Writes OUT/sweep.md, commands and outcomes.  A cell
that is done is not run again; one that was interrupted goes on.
"""
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from common import FlagParser, positive  # noqa: E402
from engine.files import read_jsonl, write_text  # noqa: E402
from reproduce import fill  # noqa: E402
from tables import SCALES  # noqa: E402

RL_CELLS = [f"--lr {lr} --prompts-per-step {prompts}"
            for lr, prompts in (("5e-6", 16), ("1e-5", 16), ("2e-5", 16), ("1e-5", 32))]
BRIDGE_CELLS = [f"--lr {lr}" for lr in ("1e-5", "3e-5", "1e-4")]
DISTILL_CELLS = [f"--lr {lr} --prompts-per-step {prompts}"
                 for lr, prompts in (("5e-6", 64), ("1e-5", 64), ("3e-5", 64), ("1e-5", 32))]
COMMANDS = {
    "teacher": "stage1_grpo.py --model {teacher} --problems {sweep} {grpo} --max-steps {steps}",
    "student": "stage1_grpo.py --model {student} --problems {sweep} {grpo} --max-steps {steps}",
    "shape": "stage2_shape.py --teacher @teacher --reference {teacher} --problems {sweep} --certify-problems {heldout} "
             "{shape} --num-certify-problems 32 --allow-failed-certificate",
    "bridge": "stage3_kl.py --student {student} --teacher @teacher --rollouts @shape/rollouts.jsonl "
              "--problems {heldout} {bridge} --max-kl 1e-9 --max-steps {steps} --allow-failed-certificate",
    "distill": "stage4_distill.py --student @bridge --teacher @teacher --problems {sweep} {opd} --max-steps {steps} "
               "--allow-failed-certificate",
}


def settings(args) -> dict:
    base = {"teacher": args.base / "teacher", "student": args.base / "student", "sweep": args.base / "sweep.jsonl",
            "heldout": args.base / "sweep_heldout.jsonl"}
    return {**SCALES["laptop"], **base, "dtype": args.dtype, "seed": args.seed, "steps": args.steps}


def run_cell(args, stage: str, change: str, chosen: dict[str, Path]) -> dict:
    """One command, unless it is done.  -> its name, command, directory and figures."""
    name = "_".join([stage, *(word for word in change.split() if not word.startswith("--"))])
    command = f"{fill(COMMANDS[stage], settings(args))} {change}".strip()
    for other, run in chosen.items():
        command = command.replace(f"@{other}", str(run))
    command += f" --out {args.out / name}"
    if not (args.out / name / "DONE").is_file():
        print("$ python", command, flush=True)
        script, flags = command.split(" ", 1)
        subprocess.run([sys.executable, str(ROOT / script), *shlex.split(flags)], check=True, env=os.environ)
    return {"name": name, "command": command, "out": args.out / name, **figures(args.out / name)}


def figures(run: Path) -> dict:
    """Of the run's end: accuracy on sweep_heldout.jsonl, and means over its last five steps."""
    lines, totals = read_jsonl(run / "metrics.jsonl"), json.loads((run / "DONE").read_text())
    found = {key: value for line in lines for key, value in line.items()
             if key in ("eval_accuracy", "c2_reverse_kl_nats") and value is not None}
    for key in ("reward_mean", "mean_length_tokens", "reverse_kl_nats"):
        values = [line[key] for line in lines if line.get(key) is not None][-5:]
        found |= {key: sum(values) / len(values)} if values else {}
    if totals.get("optimiser_steps"):
        found["seconds_per_step"] = totals["seconds"] / totals["optimiser_steps"]
    return found


def as_markdown(cells: list[dict]) -> str:
    keys = {"eval_accuracy": "held-out accuracy", "reward_mean": "reward", "mean_length_tokens": "tokens",
            "reverse_kl_nats": "reverse KL, nats", "c2_reverse_kl_nats": "C2, nats",
            "seconds_per_step": "seconds a step"}
    lines = ["| cell | " + " | ".join(keys.values()) + " |", "| --- |" + " ---: |" * len(keys)]
    for cell in cells:
        numbers = [f"{cell[key]:.3f}" if key in cell else "" for key in keys]
        lines.append(f"| {' | '.join([cell['name'], *numbers])} |")
    return "\n".join([*lines, "", "Reward, tokens and reverse KL are means over the last five steps.", "", "```",
                      *(f"python {cell['command']}" for cell in cells), "```", ""])


def main(args) -> None:
    chosen: dict[str, Path] = {}
    cells: list[dict] = []
    for stage, changes in (("teacher", RL_CELLS), ("student", RL_CELLS), ("shape", [""]), ("bridge", BRIDGE_CELLS),
                           ("distill", DISTILL_CELLS)):
        of_stage = []
        for change in changes:
            of_stage.append(run_cell(args, stage, change, chosen))
            write_text(args.out / "sweep.md", as_markdown(cells + of_stage))
        if stage == "teacher":
            chosen[stage] = max(of_stage, key=lambda cell: cell["eval_accuracy"])["out"]
        elif stage == "bridge":
            chosen[stage] = min(of_stage, key=lambda cell: cell["c2_reverse_kl_nats"])["out"]
        elif stage == "shape":
            chosen[stage] = of_stage[0]["out"]
        cells += of_stage
    print((args.out / "sweep.md").read_text())


if __name__ == "__main__":
    parser = FlagParser(__doc__)
    parser.add_argument("--base", type=Path, required=True, help="what `prepare.py laptop` wrote")
    parser.add_argument("--out", type=Path, required=True, help="directory of the cells and of sweep.md")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="compute dtype")
    parser.add_argument("--seed", type=int, default=100, help="of all cells")
    parser.add_argument("--steps", type=positive, default=20, help="optimiser steps of a cell")
    main(parser.parse_args())
