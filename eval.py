r"""How often is a model right?  Sample it on problems, or take the completions that another engine made.

    python eval.py --model runs/student --problems test.jsonl --samples 16 --out runs/student_eval
    torchrun --nproc_per_node=2 eval.py …                               # the ranks share the problems
    python eval.py --grade completions.jsonl --out runs/graded          # rows with completion (or completions), answer

Writes OUT/completions.jsonl (a line a problem: completions, verdicts, lengths), OUT/scores.json (avg@k, pass@k, maj@k,
truncation, length, with 95% intervals; by level and subject where rows have them) and OUT/failures.html, for people
who want to read what went wrong.  The same command again goes on where an evaluation was interrupted.

A completion that was cut at --max-new-tokens is wrong, even behind its box, as it is in training.
What is right is decided by judge/answers.py: extract_answer, is_equal and grade can be imported from here, too.
"""
import argparse
import math
import re
from html import escape
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import (
    FlagParser, Sampling, bootstrap_interval, evaluate, load_graded_problems, natural, number, positive, verdicts_of,
)
from engine.files import write_json, write_jsonl, write_text
from engine.problems import Problem, digest, distinct, gold_of, placed_rows, with_readable_golds
from engine.ranks import all_sum, fail, rank, say, setup_distributed
from engine.runs import Run, open_run
from judge.answers import counts, extract_answer, grade, is_equal  # noqa: F401, grade is handed on
from pages.card import add_scores


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Unbiased estimate that at least one of k completions is right: 1 − C(n − c, k) / C(n, k)."""
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def majority_is_right(answers: list[str | None], verdicts: list[bool]) -> float:
    """maj@k of one problem: the answers vote by `is_equal`, not by text; the first of equally large camps wins."""
    camps: list[list[int]] = []
    for i, answer in enumerate(answers):
        if answer is None:
            continue
        camp = next((camp for camp in camps if is_equal(answer, answers[camp[0]])), None)
        camps.append([i]) if camp is None else camp.append(i)
    return float(verdicts[max(camps, key=len)[0]]) if camps else 0.0


def score(rows: list[dict]) -> dict:
    """The figures of an evaluation, from completions.jsonl's rows.

    Intervals are 95%: over problems (bootstrap: had the problems been others), and for avg@k over samples too (had the
    completions for these problems been others).
    """
    right = [np.array(row["verdicts"], dtype=float) for row in rows]
    samples = np.array([len(verdicts) for verdicts in right])
    rates = np.array([verdicts.mean() for verdicts in right])
    k = int(samples.min())
    per_problem = {
        f"avg@{k}" if k == samples.max() else "avg": rates,
        **{f"pass@{n}": np.array([pass_at_k(len(verdicts), int(verdicts.sum()), n) for verdicts in right])
           for n in (2, 4, 8, 16, 32, 64, 128, 256) if n <= k},
        f"maj@{k}" if k == samples.max() else "maj":
            np.array([majority_is_right(answers_of(row), row["verdicts"]) for row in rows])}
    if all("finished" in row for row in rows):
        per_problem["truncated_fraction"] = np.array([1 - np.mean(row["finished"]) for row in rows])
    if all("lengths" in row for row in rows):
        per_problem["mean_length_tokens"] = np.array([np.mean(row["lengths"]) for row in rows])
    scores = {name: {"value": float(values.mean()),
                     "interval_over_problems": bootstrap_interval(lambda i, v=values: v[i].mean(), len(rows))}
              for name, values in per_problem.items()}
    resampled = (np.random.default_rng(0).binomial(samples, rates, (1000, len(rows))) / samples).mean(1)
    average = next(iter(scores.values()))
    average["interval_over_samples"] = [float(bound) for bound in np.percentile(resampled, [2.5, 97.5])]
    without_answer = sum(extract_answer(text) is None for row in rows for text in row["completions"])
    return {"num_problems": len(rows), "samples": k, **scores, "by": score_by_tag(rows),
            "grader": {"without_answer": without_answer, **counts}}


def answers_of(row: dict) -> list[str | None]:
    """What each completion answers; one that was cut answers nothing."""
    finished = row.get("finished", [True] * len(row["completions"]))
    return [extract_answer(text) if ended else None for text, ended in zip(row["completions"], finished)]


def score_by_tag(rows: list[dict]) -> dict:
    """avg@k for each level, subject and type, where rows carry them.  -> {"level": {"3": {"problems", "value"}}}"""
    table: dict = {}
    for tag in ("level", "subject", "type"):
        for value in sorted({str(row[tag]) for row in rows if tag in row}):
            part = [np.mean(row["verdicts"]) for row in rows if str(row.get(tag)) == value]
            table.setdefault(tag, {})[value] = {"problems": len(part), "value": float(np.mean(part))}
    return table


def read_graded_rows(path: Path, skip_unreadable: bool = False) -> list[dict]:
    """Rows of another engine: `completion` or `completions`, and `answer`.

    Those of the same problem and gold are joined; where rows have no text of the problem, those of one id and gold.
    """
    groups, golds = {}, {}
    for place, row in placed_rows(path):
        row = graded_row(row, place, f"--grade {path}, {place}")
        text = next((row[name] for name in ("problem", "question", "prompt") if row.get(name)), None)
        key = repr((" ".join(str(text).split()) if text else None, None if text else row["id"], row["answer"]))
        groups.setdefault(key, []).append(row)
        golds.setdefault(key, Problem(key, "", row["answer"], str(path), place, {}))
    if not groups:
        fail(f"--grade {path}: the file holds no completions")
    return [joined(groups[gold.id]) for gold in with_readable_golds(list(golds.values()), skip_unreadable)]


PER_COMPLETION = {"completions": (str, "a text"), "finished": (bool, "true or false"), "lengths": (int, "a number")}


def graded_row(row: dict, place: str, source: str) -> dict:
    """A row with a list for each of PER_COMPLETION that it has, equally long, and its gold as text."""
    row = {"id": place, **({"id": row["problem"]} if "problem" in row else {}), **row}
    with_finished(row, source)
    if row.get("completions") is None:                  # one completion, with what belongs to it
        row["completions"] = row.pop("completion", None)
        row |= {name: [row[name]] for name in PER_COMPLETION if not isinstance(row.get(name), list | None)}
    for name, (kind, what) in PER_COMPLETION.items():
        values = row.get(name)
        if values is None and name != "completions":
            row.pop(name, None)
        elif not values or not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            fail(f"{source}: under `{name}` {what} is expected for each completion (an object with completion, or a "
                 "list of completions, and answer)")
        elif len(values) != len(row["completions"]):
            fail(f"{source}: {len(values)} {name} for {len(row['completions'])} completions")
    texts = [END_TOKENS.sub("", text) for text in row["completions"]]
    return row | {"completions": texts, "answer": gold_of(row, source)}


# What ends a text where another engine has left its end token in it.
END_TOKENS = re.compile(r"\s*(?:(?:<(?=[^<>\s]*[|｜_])[^<>\s]{1,40}>|</s>|<eos>|<pad>|\[(?:EOS|PAD)\]"
                        r"|\[\|[^][\s]{1,40}\|\]|\[e~\[)\s*)+$")
ENDED = {"stop": True, "eos": True, "eos_token": True, "stop_sequence": True, "end_turn": True, "length": False,
         "max_tokens": False, "model_length": False, "abort": False, "error": False, "content_filter": False}


def with_finished(row: dict, source: str) -> None:
    """`finished` from what an engine calls finish_reason: one that was cut off is wrong here, as where we sample."""
    for name in ("finish_reason", "finish_reasons", "done_reason", "stop_reason"):
        reasons = row.pop(name, None)
        if reasons is None or row.get("finished") is not None:
            continue
        listed = reasons if isinstance(reasons, list) else [reasons]
        words = [str(reason.get("type") if isinstance(reason, dict) else reason).lower() for reason in listed]
        if unknown := [word for word in words if word not in ENDED]:
            if name == "stop_reason":                   # of vLLM: the token or the text that it stopped at
                continue
            fail(f"{source}: {name} is {unknown[0]!r}; known are {', '.join(ENDED)}; or give `finished`")
        finished = [ENDED[word] for word in words]
        row["finished"] = finished if isinstance(reasons, list) else finished[0]


def joined(group: list[dict]) -> dict:
    """One row of rows of the same problem; of PER_COMPLETION what all of them have, and finished where one has it."""
    if any("finished" in row for row in group):
        group = [{"finished": [True] * len(row["completions"]), **row} for row in group]
    of_all = [name for name in PER_COMPLETION if all(name in row for row in group)]
    lists = {name: sum((row[name] for row in group), []) for name in of_all}
    return {name: value for name, value in group[0].items() if name not in PER_COMPLETION} | lists


def grade_rows(rows: list[dict]) -> list[dict]:
    """Judge what another engine sampled.  -> rows as in completions.jsonl"""
    bar, right, done = tqdm(rows, unit="problem", desc="grade"), 0, 0
    for row in bar:
        finished = row.get("finished", [True] * len(row["completions"]))
        row["verdicts"] = verdicts_of(row["completions"], finished, [row["answer"]] * len(finished))
        right, done = right + sum(row["verdicts"]), done + len(row["verdicts"])
        bar.set_postfix_str(f"avg {right / done:.3f}", refresh=False)
    return rows


def failures_page(rows: list[dict], most: int = 200) -> str:
    """HTML: one wrong completion of each problem, the most often failed first: extracted answer, gold, its end."""
    failed = sorted((row for row in rows if not all(row["verdicts"])), key=lambda row: np.mean(row["verdicts"]))
    parts = []
    for row in failed[:most]:
        place = row["verdicts"].index(False)
        text = row["completions"][place]
        end = text if len(text) <= 700 else "… " + text[-700:]
        cut = ", cut off at the longest length" if "finished" in row and not row["finished"][place] else ""
        extracted = extract_answer(text)
        said = "<i>no answer found</i>" if extracted is None else f"<code>{escape(extracted[:300])}</code>"
        parts.append(f"""<section><p><b>{sum(row["verdicts"])} of {len(row["verdicts"])} right.</b>
            Extracted {said}, gold <code>{escape(row["answer"])}</code>{cut}</p>
            <p>{escape(str(row.get("problem", row["id"]))[:1500])}</p><pre>{escape(end)}</pre></section>""")
    style = """body{max-width:900px;margin:2em auto;font:15px/1.5 system-ui;color:#1c2530;padding:0 1em}
        section{border-top:1px solid #dde2e7;padding:.6em 0} pre{white-space:pre-wrap;background:#f6f8f9;padding:.6em}
        code{background:#f0f2f4;padding:0 .3em;overflow-wrap:anywhere}"""
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Failures</title><style>{style}</style>
        <h1>What went wrong</h1><p>{len(failed)} of {len(rows)} problems have a wrong completion; below is one of each
        of the {min(most, len(failed))} most often failed.  The judge gave up on {counts["timeout"] + counts["failed"]}
        comparisons and could not read {counts["unreadable"]}.</p>{"".join(parts)}</html>"""


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    parser.add_argument("--model", type=Path, help="run, checkpoint directory, or hub name[@revision]")
    parser.add_argument("--problems", type=Path, nargs="+", help="problems with answers")
    parser.add_argument("--grade", type=Path, help="judge these completions instead; rows of completion(s), answer")
    group = parser.sampling_flags(temperature=0.7, greedy=True)
    group.add_argument("--samples", type=positive, default=16, help="completions per problem, the k of avg@k")
    group.add_argument("--top-p", type=number(float, above=0, most=1), default=0.8, help="1 is off")
    group.add_argument("--top-k", type=natural, default=20, help="0 is off")
    group.add_argument("--num-problems", type=natural, default=0, help="evaluate on the first N only; 0: all")
    group.add_argument("--batch-size", type=positive, default=256, help="completions sampled at a time")
    group.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    parser.run_flags()
    return parser.parse_args(argv)


def main(args) -> None:
    if (args.grade is None) == (args.model is None) or (args.model is None) != (args.problems is None):
        fail("give --model and --problems to sample and judge, or --grade to judge the completions of a file")
    setup_distributed()
    run, rows = grade_file(args) if args.grade else sample_and_judge(args)
    if run.is_done:
        return
    scores = score(rows)
    if rank() == 0:
        write_jsonl(run.out / "completions.jsonl", rows)
        write_json(run.out / "scores.json", scores)
        write_text(run.out / "failures.html", failures_page(rows))
        add_scores(run.out)                             # to the card of the run's model
    for name, figures in scores.items():
        if isinstance(figures, dict) and "value" in figures:
            low, high = figures["interval_over_problems"]
            say(f"{name:20s} {figures['value']:9.3f}   95% over problems [{low:.3f}, {high:.3f}]")
    say(f"{run.out / 'failures.html'}: what went wrong, to read")
    run.finish()


def grade_file(args) -> tuple[Run, list[dict]]:
    rows = read_graded_rows(args.grade, args.skip_unreadable)
    run = open_run(args, inputs={"grade": {str(args.grade): digest(rows)}})
    return run, [] if run.is_done else grade_rows(rows)


def sample_and_judge(args) -> tuple[Run, list[dict]]:
    problems = distinct(load_graded_problems(args.problems, args))[:args.num_problems or None]
    run = open_run(args, ["model"], problems=problems)
    if run.is_done:
        return run, []
    sampling = Sampling(args.samples, run.max_new_tokens, args.temperature, args.top_p, args.top_k, args.seed,
                        args.batch_size, args.rollout_tokens, args.dtype, args.sample_on_shards)
    rows = evaluate(run.load("model"), run.tokenizer, problems, run.prompts["problems"], run.eos_ids, sampling, run,
                    progress=True)
    counts.update(zip(counts, map(int, all_sum(*counts.values()))))         # of all ranks, for scores.json
    return run, rows


if __name__ == "__main__":
    main(parse_args())
