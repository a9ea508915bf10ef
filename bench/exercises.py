"""The exercises of docs/exercises.md: each change put into a copy of the code, its commands run, the outcomes shown.

    python bench/exercises.py [--only 3 9] [--seeds 3] [--jobs 2] [--work DIR] [--write]

A `bash plain` block runs in the code as it is; the others in the copy.  Runs that are done are kept in DIR: an
interrupted evening goes on.  --write puts the tables into the page.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from common import FlagParser, positive  # noqa: E402
from engine.files import read_jsonl, write_text  # noqa: E402

PAGE = ROOT / "docs" / "exercises.md"
CODE = ("*.py", "experiments", "engine", "judge", "toy_base")


@dataclass
class Exercise:
    number: int
    title: str
    change: str                         # the diff block, empty where the commands say it all
    blocks: list[tuple[bool, str]]      # (whether the code is plain, commands)
    outcome: str                        # "figure of run, run; figure of run"


def exercises(text: str) -> list[Exercise]:
    found = []
    for number, title, body in re.findall(r"^## (\d+)\. (.*?)\n(.*?)(?=^## |\Z)", text, re.M | re.S):
        change = "\n".join(re.findall(r"```diff\n(.*?)```", body, re.S))
        blocks = [(bool(plain), commands) for plain, commands in re.findall(r"```bash( plain)?\n(.*?)```", body, re.S)]
        found.append(Exercise(int(number), title, change, blocks, re.search(r"<!-- outcome: (.*?) -->", body)[1]))
    return found


def apply_change(change: str, tree: Path) -> None:
    """Take out and put in: each lot of `-` lines stands once in its file."""
    for name, body in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", change, re.M | re.S):
        text = (tree / name).read_text()
        for lot in re.findall(r"(?:^-.*\n)+(?:^\+.*\n?)*", body, re.M):
            old, new = ("".join(line[1:] for line in lot.splitlines(keepends=True) if line[0] == sign) for sign in "-+")
            if text.count(old) != 1:
                raise ValueError(f"{name} holds these lines {text.count(old)} times, not once:\n{old}")
            text = text.replace(old, new)
        (tree / name).write_text(text)


def copy_of_the_code(place: Path, change: str = "") -> Path:
    for pattern in CODE:
        for source in ROOT.glob(pattern):
            copy = shutil.copytree if source.is_dir() else shutil.copy
            place.mkdir(parents=True, exist_ok=True)
            copy(source, place / source.name)
    apply_change(change, place)
    return place


def commands_of(block: str) -> list[str]:
    return [line for line in block.splitlines() if line.strip()]


def run_exercise(exercise: Exercise, before: str, seed: int, work: Path) -> None:
    """Its commands, in a shell that has the variables of exercise 0; WORK/seedN/{toy,runs} hold what they write."""
    place = work / f"seed{seed}"
    for name in ("toy", "runs"):
        (place / name).mkdir(parents=True, exist_ok=True)
    variables = "\n".join(line for line in commands_of(before) if re.match(r"[A-Z]+=", line))
    with tempfile.TemporaryDirectory() as folder:
        changed = copy_of_the_code(Path(folder) / "code", exercise.change)
        for name in ("toy", "runs"):
            (changed / name).symlink_to(place / name)
        for plain, block in exercise.blocks:
            tree = copy_of_the_code(Path(folder) / "plain") if plain else changed
            for name in ("toy", "runs"):
                (tree / name).is_symlink() or (tree / name).symlink_to(place / name)
            for line in commands_of(block):
                out = re.search(r"--out (\S+)", line)
                if line.startswith("python") and not (place / out[1] / "DONE").is_file():
                    command = f"{variables}\n{line.replace('python', sys.executable, 1)}"
                    with open(place / "log", "a") as log:
                        subprocess.run(["bash", "-c", command], cwd=tree, check=True, stdout=log, stderr=log,
                                       env=os.environ | {"SEED": str(seed), "OMP_NUM_THREADS": "1"})


# ---------------------------------------------------------------- what came out

def last(key: str, count: int = 1):
    def figure(run: Path) -> float:
        values = [row[key] for row in read_jsonl(run / "metrics.jsonl") if row.get(key) is not None]
        return float(np.mean(values[-count:]))
    return figure


def certificate(variant: str):
    return lambda run: json.loads((run / "certificate.json").read_text())[variant]["within_prompt_auc"]["value"]


def scores(key: str):
    def figure(run: Path) -> float:
        found = json.loads((run / "scores.json").read_text())
        return found[f"avg@{found['samples']}" if key == "avg" else key]["value"]
    return figure


FIGURES = {
    "held-out accuracy": last("eval_accuracy"), "reward": last("reward_mean", 5),
    "entropy": last("entropy_estimate_nats", 5), "clipped": last("clipped_fraction", 20),
    "gradient norm": last("grad_norm", 10), "sampler gap": last("sampler_gap_mean_nats", 10),
    "last reverse KL": last("reverse_kl_nats"),
    "first reverse KL": lambda run: read_jsonl(run / "metrics.jsonl")[0]["reverse_kl_nats"],
    "auc": certificate("sum"), "AUC per token": certificate("per_token"),
    "C1": lambda run: json.loads((run / "certificate.json").read_text())["passed"],
    "score": scores("avg"), "length": scores("mean_length_tokens")}


def shown(value) -> str:
    if isinstance(value, bool):
        return "holds" if value else "fails"
    return f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:.3f}"


def table(exercise: Exercise, seeds: int, work: Path) -> str:
    head = " | ".join(f"seed {seed}" for seed in range(seeds))
    lines = [f"| figure | run | {head} |", "| --- | --- |" + " ---: |" * seeds]
    for part in exercise.outcome.split("; "):
        figure, runs = part.split(" of ")
        for run in runs.split(", "):
            cells = [shown(FIGURES[figure](work / f"seed{seed}" / "runs" / run)) for seed in range(seeds)]
            lines.append(f"| {figure[0].upper() + figure[1:]} | {run} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(args) -> None:
    text, args.work = PAGE.read_text(), args.work.resolve()
    found = exercises(text)
    first, chosen = found[0], [each for each in found if each.number in (args.only or range(len(found)))]
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(run_seed, first, chosen, seed, args.work) for seed in range(args.seeds)]
        for job in jobs:
            job.result()
    for exercise in chosen:
        rows = table(exercise, args.seeds, args.work)
        print(f"## {exercise.number}. {exercise.title}\n{rows}")
        before, after = text.split(f"<!-- outcome: {exercise.outcome} -->\n", 1)
        text = f"{before}<!-- outcome: {exercise.outcome} -->\n{rows}{after[after.index('<!-- end -->'):]}"
    if args.write:
        write_text(PAGE, text)


def run_seed(first: Exercise, chosen: list[Exercise], seed: int, work: Path) -> None:
    for exercise in [first, *chosen]:
        run_exercise(exercise, first.blocks[0][1], seed, work)


if __name__ == "__main__":
    parser = FlagParser(__doc__)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of exercises (default: all)")
    parser.add_argument("--seeds", type=positive, default=3, help="0 to N - 1")
    parser.add_argument("--jobs", type=positive, default=1, help="seeds side by side")
    parser.add_argument("--work", type=Path, default=Path("runs/exercises"), help="where the runs are kept")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/exercises.md")
    main(parser.parse_args())
