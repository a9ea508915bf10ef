"""Tokens per second of each training stage on one rank and on several, and the share of time in communication.

    python bench/scaling.py                         # the toy world, 1 and 2 ranks, one thread each
    python bench/scaling.py --student DIR --teacher DIR --problems FILE --ranks 1 2 --max-new-tokens 64

Runs are interleaved: every stage on 1, 2, … ranks, then all again.  The first step of a run is left out.  A moment is
in communication when a collective is under way on rank 0, waiting for a slower rank included.
"""
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from common import FlagParser  # noqa: E402
from engine.ranks import rank  # noqa: E402
from engine.runs import Run  # noqa: E402

STAGES = ("stage1_grpo", "stage3_kl", "stage4_distill")


def parse_args(argv=None):
    parser = FlagParser(__doc__)
    parser.add_argument("--student", type=Path, help="checkpoint directory (default: the toy world's)")
    parser.add_argument("--teacher", type=Path, help="checkpoint directory (default: the toy world's)")
    parser.add_argument("--problems", type=Path, help="problems, JSON lines (default: the toy world's)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="optimiser steps of a run")
    parser.add_argument("--prompts-per-step", type=int, default=32)
    parser.add_argument("--samples-per-prompt", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--micro-batch-size", type=int, default=64)
    return parser.parse_args(argv)


def main(args) -> None:
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        flags_of = prepare(args, folder)
        results: dict = {(stage, ranks): [] for stage in STAGES for ranks in args.ranks}
        with tqdm(total=args.rounds * len(results), unit="run") as bar:
            for number, (stage, ranks) in product(range(args.rounds), results):
                out = folder / f"{stage}_{ranks}_{number}"
                launch(ranks, [__file__, "--worker", stage, str(out), *map(str, flags_of[stage])])
                results[stage, ranks].append(json.loads(out.with_suffix(".json").read_text()))
                bar.update()
    print(f"{'stage':16s} {'ranks':>5s} {'tokens/s':>9s} {'ratio':>6s} {'in communication':>17s}")
    for (stage, ranks), runs in results.items():
        speed = median(run["tokens"] / run["seconds"] for run in runs)
        alone = median(run["tokens"] / run["seconds"] for run in results[stage, args.ranks[0]])
        share = median(run["communication"] / run["seconds"] for run in runs)
        print(f"{stage:16s} {ranks:5d} {speed:9.0f} {speed / alone:6.2f} {share:17.0%}")


def prepare(args, folder: Path) -> dict[str, list]:
    """Models, problems and teacher rollouts.  -> the flags of each stage"""
    student, teacher, problems = args.student, args.teacher, args.problems
    if not student:
        launch(1, [ROOT / "prepare.py", "toy", "--out", folder / "toy"])
        student, teacher, problems = (folder / "toy" / name for name in ("student", "teacher", "train.jsonl"))
    shared = ["--max-new-tokens", args.max_new_tokens, "--micro-batch-size", args.micro_batch_size]
    launch(1, [ROOT / "stage2_shape.py", "--teacher", teacher, "--reference", teacher, "--problems", problems,
               "--certify-problems", problems, "--num-certify-problems", 8, "--num-problems", 64,
               "--out", folder / "shape", "--allow-failed-certificate", *shared])
    shared += ["--max-steps", args.steps, "--problems", problems]
    pair = ["--student", student, "--teacher", teacher]
    batch = ["--prompts-per-step", args.prompts_per_step, "--samples-per-prompt", args.samples_per_prompt]
    return {"stage1_grpo": ["--model", student, "--steps-per-rollout", 1, "--give-up-after", 0, *batch, *shared],
            "stage3_kl": [*pair, "--rollouts", folder / "shape" / "rollouts.jsonl", "--max-kl", -1, "--eval-every", 0,
                          "--num-certify-problems", 8, "--allow-failed-certificate", "--rollouts-per-step",
                          args.prompts_per_step * args.samples_per_prompt, *shared],
            "stage4_distill": [*pair, *batch, *shared]}


def launch(ranks: int, command: list) -> None:
    """Run a Python command on so many ranks, one thread each."""
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    answer = subprocess.run([*start, *map(str, command)], capture_output=True, text=True, cwd=ROOT,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    if answer.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{answer.stderr}")


def worker(stage: str, out: str, *flags: str) -> None:
    """One run in this process (or on this rank), its collectives recorded from the second step to the last."""
    module, profiler = importlib.import_module(stage), torch.profiler.profile()
    run_log, measured = Run.log, {"tokens": 0}

    def log(run, step, **figures) -> None:
        run_log(run, step, **figures)
        if step > 1:
            measured["tokens"] += figures["num_tokens"]
            measured["end"] = time.perf_counter()
        elif step == 1:
            measured["start"] = time.perf_counter()
            profiler.start()

    Run.log = log
    module.main(module.parse_args([*flags, "--out", out]))
    profiler.stop()
    if rank() == 0:
        Path(out).with_suffix(".json").write_text(json.dumps({
            "tokens": measured["tokens"], "seconds": measured["end"] - measured["start"],
            "communication": in_flight(profiler)}))


def in_flight(profiler) -> float:
    """Seconds in which at least one collective was under way."""
    spans = sorted((event.time_range.start, event.time_range.end) for event in profiler.events()
                   if event.name.startswith(("gloo:", "nccl:")))
    total = last = 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total / 1e6


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--worker":
        worker(*sys.argv[2:])
    else:
        main(parse_args())
