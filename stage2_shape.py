"""Stage 2: is the teacher reward-shaped?  The certificate C1, and the teacher rollouts for stage 3.

RL leaves a dense reward behind: at the optimum of the KL-regularised objective the log-ratio of the shaped
teacher to the model that its RL began from is the reward, up to a constant of the prompt.  Whether that
happened can be tested.

    4. R(x, y) = Σ_t log π_T*(y_t|s_t) − log π_ref(y_t|s_t)                               implicit_reward
    5. C1: R ranks right above wrong completions of the same prompt                       within_prompt_auc
       (prompts with both outcomes only), beside the pooled AUC and the per-token variant, as length confounds
       the sum

C1 is certified on problems of --certify-problems that the teacher's RL has not seen.  It holds if the lower
end of the 95% interval of the within-prompt AUC, bootstrapped over prompts, is above --min-auc.  A teacher
equal to the reference has R = 0 everywhere and AUC 0.5, and fails.

The rollouts written for stage 3 are selected by nothing, and their prompts need no labels.  --keep right
selects by the label; --weight reward weighs a rollout by its reward over its prompt's mean, so that all solved
prompts weigh the same.

    python stage2_shape.py --teacher runs/teacher --reference toy/teacher --problems toy/train.jsonl \
        --certify-problems toy/heldout.jsonl --out runs/shape
    torchrun --nproc_per_node=8 stage2_shape.py …                          # the ranks share the problems

Reads two models and problems; writes rollouts.jsonl (token ids, reward, logprob sums), certificate.json and,
to read, implicit_rewards.jsonl (what C1 ranked) and dense_rewards.jsonl (some of it by token).  Exit code 1
if C1 does not hold.
"""
import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from common import (
    FlagParser, bootstrap_interval, completion_logprobs, grade_rollouts, load_graded_problems, natural,
    number, positive,
)
from engine.checkpoints import read_object
from engine.files import read_record, write_jsonl
from engine.problems import check_runs_prompts, digest, distinct, load_problems
from engine.ranks import fail, from_rank_0, gather_list, rank, say, setup_distributed
from engine.rollouts import even_micro_batches
from engine.runs import Run
from pages.card import c1_in_words
from pages.run import draw_page

MODELS = ["teacher", "reference"]

# ---------------------------------------------------------------- equations


def implicit_reward(teacher_logprobs: Tensor, reference_logprobs: Tensor, completion_mask: Tensor) -> Tensor:
    """R(x, y), the log-ratio summed over the completion (equation 4).  2 x (B, C) nats, (B, C) -> (B,)."""
    return ((teacher_logprobs - reference_logprobs) * completion_mask).sum(dim=1)


def auc(scores: np.ndarray, right: np.ndarray) -> float:
    """The chance that a right completion scores above a wrong one, ties counting half; NaN without both.

    scores, right (bool): (B,).  By ranks, AUC = (mean rank of the right − (n_right + 1) / 2) / n_wrong.
    """
    num_right, num_wrong = int(right.sum()), int((~right).sum())
    if num_right == 0 or num_wrong == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]               # from 1; ties share their mean rank
    return float((ranks[right].mean() - (num_right + 1) / 2) / num_wrong)


def within_prompt_auc(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """AUC in each prompt (equation 5).  2 x (prompts, G) -> (prompts,), NaN where all outcomes are alike."""
    return np.array([auc(score, outcome) for score, outcome in zip(scores, right)])


def certify(scores: np.ndarray, lengths: np.ndarray, right: np.ndarray, min_auc: float) -> dict:
    """The certificate C1.  scores (prompts, G) nats, lengths (prompts, G) tokens, right (prompts, G) bool."""
    figures = {}
    for name, values in (("sum", scores), ("per_token", scores / lengths)):
        within, count = within_prompt_auc(values, right), len(values)
        mixed = within[~np.isnan(within)]
        interval = [None, None]
        if len(mixed):
            interval = bootstrap_interval(lambda i, m=mixed: m[i].mean(), len(mixed))
        pooled = bootstrap_interval(lambda i, v=values: auc(v[i].ravel(), right[i].ravel()), count, 200)
        figures[name] = {
            "within_prompt_auc": {"value": float(mixed.mean()) if len(mixed) else None, "interval": interval,
                                  "prompts": len(mixed)},
            "pooled_auc": {"value": none_if_nan(auc(values.ravel(), right.ravel())),
                           "interval": [none_if_nan(bound) for bound in pooled], "prompts": count}}
    lower = figures["sum"]["within_prompt_auc"]["interval"][0]
    return {"condition": "C1", "passed": lower is not None and lower > min_auc, "min_auc": min_auc, **figures,
            "num_prompts": len(scores), "samples_per_prompt": scores.shape[1] if len(scores) else 0,
            "accuracy": float(right.mean()), "mean_implicit_reward_nats": float(scores.mean())}


def none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else value


# ---------------------------------------------------------------- sample, grade, score


def shaped_rollouts(name: str, writer: str, models: dict, run, problems, prompts) -> tuple[list[dict], float]:
    """What the writer says to each problem, graded, and scored by teacher and reference.  Ranks share it.

    -> a row a rollout, all of one problem adjacent, on every rank; this rank's seconds, with those before an
    interruption.
    """
    args, size = run.args, run.args.samples_per_prompt
    kept, own_lines = run.kept_rows(name)                       # of problems that an interrupted run has done
    groups = {i: kept[i] for i in from_rank_0(lambda: sorted(kept))}
    todo, sampled = [i for i in range(len(problems)) if i not in groups], {}
    seconds = sum(line["seconds"] for line in own_lines)
    bar = tqdm(total=len(problems), initial=len(groups), unit="prompt", desc=name, disable=rank() > 0)
    for first in range(0, len(todo), args.prompts_per_step):
        start, batch = time.perf_counter(), todo[first:first + args.prompts_per_step]
        rollouts = run.sample(models[writer], [prompts[i] for i in batch], name, indices=batch)
        answered = [problems[i] for i in rollouts.prompt_index.tolist()]
        golds = [problem.answer for problem in answered]
        rollouts.rewards, _ = grade_rollouts(rollouts, golds, run.tokenizer)
        logprobs = [score_rollouts(models[flag], rollouts, args) for flag in MODELS]
        rows = scored_rows(rollouts, answered, *logprobs)
        mine = rollouts.prompt_index[::size].tolist()
        batch_groups = [rows[place:place + size] for place in range(0, len(rows), size)]
        batch_seconds = time.perf_counter() - start
        run.keep_rows(name, mine, batch_groups, seconds=batch_seconds)
        sampled |= zip(mine, batch_groups)
        seconds += batch_seconds
        bar.update(len(batch))
    bar.close()
    for part in gather_list([sampled]):
        groups |= part
    return [row for i in range(len(problems)) for row in groups[i]], seconds


@torch.no_grad()
def score_rollouts(model, rollouts, args) -> Tensor:
    """Logprobs of the completions, micro-batch by micro-batch.  -> (B, C) float32 nats"""
    rows = [row for micro in even_micro_batches(rollouts, args.micro_batch_size)
            for row in completion_logprobs(model, micro, args.temperature)][:len(rollouts)]
    length = rollouts.completion_ids.shape[1]
    padded = [F.pad(row, (0, length - len(row))) for row in rows]
    return torch.stack(padded) if padded else torch.zeros(0, length)


def scored_rows(rollouts, problems, teacher_logprobs: Tensor, reference_logprobs: Tensor) -> list[dict]:
    """What is kept of each rollout, which answers that of `problems`.  Dense reward: a token's log-ratio."""
    columns = (rollouts.finished, rollouts.rewards, teacher_logprobs.sum(1), reference_logprobs.sum(1),
               implicit_reward(teacher_logprobs, reference_logprobs, rollouts.completion_mask),
               teacher_logprobs - reference_logprobs)
    return [{"id": problem.id, "prompt_ids": prompt, "completion_ids": completion, "finished": finished,
             "reward": reward if problem.answer is not None else None,
             "teacher_logprob_nats": teacher_logprob, "reference_logprob_nats": reference_logprob,
             "implicit_reward_nats": score,
             "dense_rewards_nats": dense[:len(completion)]}
            for (problem, prompt, completion,
                 finished, reward, teacher_logprob, reference_logprob, score, dense)
            in zip(problems, rollouts.prompts(), rollouts.completions(),
                   *(column.tolist() for column in columns))]


def certificate_of(rows: list[dict], args) -> dict:
    scores, lengths, rewards = (np.array(column).reshape(-1, args.samples_per_prompt) for column in zip(
        *((row["implicit_reward_nats"], len(row["completion_ids"]), row["reward"]) for row in rows)))
    if not np.isfinite(scores).all():
        fail(f"{args.out}: C1 cannot rank: on some rollouts the logprobs of --teacher or --reference are not "
             "finite")
    return certify(scores, lengths, rewards > 0, args.min_auc)


def write_rollouts(path: Path, rows: list[dict], args) -> None:
    """What stage 3 reads: each rollout with its weight in the bridge's loss, where that is not 0."""
    lines = []
    for start in range(0, len(rows), args.samples_per_prompt):
        group = rows[start:start + args.samples_per_prompt]
        total = sum(row["reward"] for row in group) if args.weight == "reward" else 0.0
        for row in group:
            weight = 1.0 if args.weight == "uniform" else row["reward"] * len(group) / total if total else 0.0
            if weight > 0 and (args.keep == "all" or row["reward"] > 0):
                kept = {key: value for key, value in row.items() if key != "dense_rewards_nats"}
                lines.append(kept | {"weight": weight})
    write_jsonl(path, lines)


def write_samples(run, rows: list[dict], count: int = 8) -> None:
    """The first rollouts as text, in samples.jsonl: what stage 3 learns from, to read."""
    write_jsonl(run.out / "samples.jsonl", [{
        "step": 0, "prompt": run.tokenizer.decode(row["prompt_ids"]), "finished": row["finished"],
        "completion": run.tokenizer.decode(row["completion_ids"]), "reward": row["reward"]}
        for row in rows[:count]])


def write_rewards(run, rows: list[dict], count: int = 8) -> None:
    """What C1 ranked, in implicit_rewards.jsonl: a line a prompt, with R in nats, reward and length of each
    completion; and in dense_rewards.jsonl, token by token, a right and a wrong completion of `count` prompts,
    first of prompts that have both."""
    size, decode = run.args.samples_per_prompt, run.tokenizer.decode
    groups = [rows[start:start + size] for start in range(0, len(rows), size)]
    write_jsonl(run.out / "implicit_rewards.jsonl", [{
        "id": group[0]["id"], "implicit_reward_nats": [row["implicit_reward_nats"] for row in group],
        "reward": [row["reward"] for row in group],
        "length_tokens": [len(row["completion_ids"]) for row in group]} for group in groups])
    groups.sort(key=lambda group: len({row["reward"] for row in group}), reverse=True)
    write_jsonl(run.out / "dense_rewards.jsonl", [{
        "prompt": decode(row["prompt_ids"]), "reward": row["reward"],
        "tokens": [decode([token]) for token in row["completion_ids"]],
        "dense_rewards_nats": row["dense_rewards_nats"], "implicit_reward_nats": row["implicit_reward_nats"]}
        for group in groups[:count] for row in {row["reward"]: row for row in reversed(group)}.values()])


# ---------------------------------------------------------------- flags and the script


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    add = parser.add_argument
    add("--teacher", type=Path, required=True, help="teacher after RL: run, directory or hub name")
    add("--reference", type=Path, required=True, help="the model that the teacher's RL began from")
    add("--problems", type=Path, nargs="+", required=True, help="prompts for stage 3's rollouts")
    add("--certify-problems", type=Path, nargs="+", required=True,
        help="for C1, with answers; those that RL has seen are left out")
    add = parser.sampling_flags().add_argument
    add("--samples-per-prompt", type=number(int, least=2), default=8, help="completions per prompt")
    add("--num-problems", type=natural, default=0, help="sample the first N of --problems only; 0: all")
    add("--prompts-per-step", type=positive, default=64, help="sampled at a time, over all ranks")
    add("--micro-batch-size", type=positive, default=8, help="rollouts scored at a time; memory only")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of both models")
    add = parser.add_argument_group("certificate and rollouts").add_argument
    add("--min-auc", type=number(float, 0, most=1), default=0.5, help="C1: the AUC's interval is above")
    add("--num-certify-problems", type=natural, default=0, help="certify on the first N only; 0: all")
    add("--certify-on", choices=MODELS, default="teacher",
        help="whose completions are ranked; the reference's where the teacher is nearly always right")
    add("--keep", choices=["all", "right"], default="all", help="which rollouts stage 3 gets")
    add("--weight", choices=["uniform", "reward"], default="uniform", help="in stage 3's loss")
    parser.run_flags()
    return parser.parse_args(argv)


def check_reference(teacher: dict, reference: dict, args) -> list[str]:
    """Refuse a reference that the teacher's RL did not begin from.  -> ids of the problems that RL saw."""
    if "run" not in teacher:
        return []                                       # a bare checkpoint does not say where it came from
    run = Path(teacher["run"])
    parent = read_record(run)["parents"].get("model")
    if parent is not None and parent["sha256"] != reference["sha256"]:
        fail(f"--reference {args.reference} is not the model that the RL of {args.teacher} began from: "
             f"that was {parent['path']}")
    seen = run / "trained_problems.json"
    if parent is not None and not seen.is_file():               # it may have trained on those that certify it
        fail(f"{seen} is missing, which names what RL has seen and C1 may not be certified on: copy it from "
             "where the run was made, or run stage 1 again")
    return read_object(seen, list) if seen.is_file() else []


def main(args) -> None:
    setup_distributed()
    selected = args.keep == "right" or args.weight == "reward"
    problems = load_graded_problems(args.problems, args) if selected else load_problems(args.problems, False)
    problems = problems[:args.num_problems or None]
    given = distinct(load_graded_problems(args.certify_problems, args))
    run = Run(args, MODELS, problems=problems, certify_problems=given)
    check_runs_prompts(run.tokenizer, args, {"teacher": run.parents["teacher"]})
    seen = set(check_reference(*run.parents.values(), args))
    unseen = [i for i, problem in enumerate(given) if problem.id not in seen]
    unseen = unseen[:args.num_certify_problems or None]
    if not unseen:
        fail("the teacher's RL has trained on every problem of --certify-problems: name others for C1")
    run.inputs["seen by RL"] = {"trained_problems": digest(sorted(seen))}
    if run.begin().is_done:
        return conclude(read_object(run.out / "certificate.json"), args)

    models = {flag: run.load(flag) for flag in MODELS}
    rows, seconds = shaped_rollouts(
        "teacher rollouts", "teacher", models, run, problems, run.prompts["problems"])
    certify_rows, more_seconds = shaped_rollouts(
        "certificate rollouts", args.certify_on, models, run, [given[i] for i in unseen],
        [run.prompts["certify_problems"][i] for i in unseen])
    certificate = certificate_of(certify_rows, args) | {
        "certified_on": args.certify_on, "rollouts_selected_by": "reward" if selected else "nothing",
        "problems_left_out_as_seen_by_rl": sum(problem.id in seen for problem in given)}
    if rank() == 0:
        write_samples(run, rows)
        write_rollouts(run.out / "rollouts.jsonl", rows, args)
        write_rewards(run, certify_rows)
    run.totals.update(optimiser_steps=0, labels_seen=len(unseen) + len(problems) * selected,
                      tokens_sampled=sum(len(row["completion_ids"]) for row in rows + certify_rows),
                      seconds=seconds + more_seconds)
    run.finish(certificate=certificate)
    draw_page(run.out)
    conclude(certificate, args)


def conclude(certificate: dict, args) -> None:
    """Say the verdict.  The run is whole either way, but where C1 does not hold it ends with exit code 1."""
    if not certificate["passed"] and not args.allow_failed_certificate:
        raise SystemExit(c1_in_words(certificate) if rank() == 0 else 1)
    say(c1_in_words(certificate))


if __name__ == "__main__":
    main(parse_args())
