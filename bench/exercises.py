"""The exercises of docs/exercises.md: a change made and put back; all of them run, their outcomes written to the page.

    python bench/exercises.py --change 3        # what exercise 3 changes, in the code beside this file
    python bench/exercises.py --put-back 3      # and the other way round
    python bench/exercises.py --run [3 9] [--seeds 3] [--jobs 2] [--work DIR] [--write]

--run pastes the blocks of the page into bash, in a copy of the code.  Runs that are done are kept in DIR: an
interrupted evening goes on.  --write puts the tables into the page.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from engine.files import read_jsonl, write_text  # noqa: E402

PAGE = ROOT / "docs" / "exercises.md"
CODE = ("*.py", "engine", "judge", "pages", "experiments", "toy_base", "bench/exercises.py", "docs/exercises.md")


@dataclass
class Exercise:
    number: int
    title: str
    change: str                         # the diff block, empty where the commands say it all
    blocks: list[str]                   # of commands, as a reader pastes them
    outcome: str                        # "figure of run, run; figure of run"


def exercises(text: str) -> list[Exercise]:
    """Those of the page; the first is number 0, whose first block is pasted into every new terminal."""
    found = []
    for number, title, body in re.findall(r"^## (\d+)\. (.*?)\n(.*?)(?=^## |\Z)", text, re.M | re.S):
        change = "\n".join(re.findall(r"```diff\n(.*?)```", body, re.S))
        outcome = re.search(r"<!-- outcome: (.*?) -->", body)[1]
        found.append(Exercise(int(number), title, change, re.findall(r"```bash\n(.*?)```", body, re.S), outcome))
    return found


# ---------------------------------------------------------------- a change, there and back


def make_change(change: str, tree: Path, back: bool = False) -> None:
    """Exchange each lot of `-` lines for its `+` lines, or the other way round; what stands there already is left.

    Raises ValueError, before any file is changed, where a file holds neither of the two once.
    """
    texts = {}
    for name, body in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", change, re.M | re.S):
        text = texts.get(name) or "\n" + (tree / name).read_text()
        for lot in re.findall(r"(?:^-.*\n)+(?:^\+.*\n?)*", body, re.M):
            plain, changed = ("\n".join(["", *(line[1:] for line in lot.splitlines() if line[0] == sign), ""])
                              for sign in "-+")                  # whole lines
            is_changed = text.count(changed) == 1
            if not is_changed and text.count(plain) != 1:
                raise ValueError(f"{name} is neither as it was nor as this exercise changes it (does it hold another "
                                 f"change?): `git diff {name}` shows how, `git checkout {name}` puts the file back")
            if is_changed == back:
                text = text.replace(changed, plain) if back else text.replace(plain, changed)
        texts[name] = text
    for name, text in texts.items():
        write_text(tree / name, text[1:])


# ---------------------------------------------------------------- run them


def copy_of_the_code(place: Path) -> Path:
    for source in (source for pattern in CODE for source in ROOT.glob(pattern)):
        target = place / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    activate = place / ".venv" / "bin" / "activate"              # the page says to
    activate.parent.mkdir(parents=True)
    activate.write_text(f'PATH="{Path(sys.executable).parent}:$PATH"\n')
    return place


def run_exercise(exercise: Exercise, opening: str, seed: int, work: Path) -> None:
    """Its blocks, in a shell that began with the opening; WORK/seedN/{toy,runs} hold what they write."""
    place, began = work / f"seed{seed}", time.time()
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_of_the_code(Path(folder) / "code")
        for name in ("toy", "runs"):
            (place / name).mkdir(parents=True, exist_ok=True)
            (tree / name).symlink_to(place / name)
        script = "".join([opening.replace("SEED=0\n", f"SEED={seed}\n"), *exercise.blocks])
        with open(place / "log", "a") as log:
            subprocess.run(["bash", "-e", "-c", script], cwd=tree, check=True, stdout=log, stderr=log,
                           env=os.environ | {"OMP_NUM_THREADS": "1"})
    print(f"exercise {exercise.number}, seed {seed}: {time.time() - began:.0f} s", flush=True)


# ---------------------------------------------------------------- what came out

def last(key: str, count: int = 1):
    def figure(run: Path) -> float:
        values = [row[key] for row in read_jsonl(run / "metrics.jsonl") if row.get(key) is not None]
        return sum(values[-count:]) / len(values[-count:])
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


def run_all(args) -> None:
    text, work = PAGE.read_text(), args.work.resolve()
    first, *others = exercises(text)
    opening = first.blocks.pop(0)
    chosen = [exercise for exercise in others if exercise.number in args.run or not args.run]
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(lambda seed: [run_exercise(each, opening, seed, work) for each in [first, *chosen]], seed)
                for seed in range(args.seeds)]
        for job in jobs:
            job.result()
    for exercise in [first, *chosen]:
        rows = table(exercise, args.seeds, work)
        print(f"## {exercise.number}. {exercise.title}\n{rows}")
        before, after = text.split(f"<!-- outcome: {exercise.outcome} -->\n", 1)
        text = f"{before}<!-- outcome: {exercise.outcome} -->\n{rows}{after[after.index('<!-- end -->'):]}"
    if args.write:
        write_text(PAGE, text)


def main(args) -> None:
    number = args.change if args.change is not None else args.put_back
    if number is None:
        run_all(args)
        return
    found = {exercise.number: exercise for exercise in exercises(PAGE.read_text()) if exercise.change}
    if number not in found:
        raise SystemExit(f"exercise {number} changes no code; those that do are {', '.join(map(str, found))}")
    try:
        make_change(found[number].change, ROOT, back=args.change is None)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print(f"the code is {'changed' if args.change is not None else 'as it was before the change'}: exercise {number}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--change", type=int, metavar="N", help="make the change of exercise N")
    what.add_argument("--put-back", type=int, metavar="N", help="put the change of exercise N back")
    what.add_argument("--run", type=int, nargs="*", metavar="N", help="run these exercises (none named: all)")
    parser.add_argument("--seeds", type=int, default=3, help="0 to N - 1 (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="seeds side by side (default: 1)")
    parser.add_argument("--work", type=Path, default=Path("runs/exercises"), help="where the runs are kept")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/exercises.md")
    main(parser.parse_args())
