"""DAPO-Math-17k, the problems that the paper trains on: out of verl's parquet file, as it is published."""
import random

from engine.files import write_jsonl
from engine.problems import Problem


def prepare(args, published: list[Problem]) -> None:
    """verl's parquet columns -> {"problem", "answer"}: deduplicated, its instruction stripped, shuffled, 80/20."""
    answers = {strip_instruction(problem.text): problem.answer for problem in published}
    problems = [{"problem": text, "answer": answer} for text, answer in answers.items()]
    random.Random(42).shuffle(problems)
    cut = len(problems) * 8 // 10
    for name, rows in (("train", problems[:cut]), ("heldout", problems[cut:])):
        write_jsonl(args.out / f"{name}.jsonl", rows)
    print(f"{len(published)} rows, {len(problems)} different problems: {cut} to train.jsonl, the rest to heldout.jsonl")


def strip_instruction(text: str) -> str:
    """DAPO's own paragraph before the problem (it asks for `Answer: …`) and its reminder after it."""
    if text.startswith("Solve the following math problem"):
        text = text.split("\n\n", 1)[-1]
    return text.split('\n\nRemember to put your answer on its own line after "Answer:"')[0].strip()
