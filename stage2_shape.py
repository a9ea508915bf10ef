"""Stage 2: is the teacher reward-shaped?  The certificate C1, and the teacher rollouts that stage 3 learns from.

RL leaves a dense reward behind: at the optimum of the KL-regularised objective the log-ratio of the shaped teacher to
the model that its RL began from is the reward, up to a constant of the prompt.  Whether that happened can be tested.

    4. R(x, y) = Σ_t log π_T*(y_t|s_t) − log π_ref(y_t|s_t)                                      implicit_reward
    5. C1: R ranks right above wrong completions of the same prompt                              within_prompt_auc
       (prompts with both outcomes only), beside the pooled AUC and the per-token variant (length confounds the sum)

C1 is certified on problems that RL did not train on: those of --certify-problems that the teacher's run has not seen.
It holds if the lower end of the 95% interval of the within-prompt AUC, bootstrapped over prompts, is above --min-auc.
A teacher equal to the reference has R = 0 everywhere and AUC 0.5, and fails.

The rollouts written for stage 3 are selected by nothing, and their prompts need no labels; --keep right selects by the
label, --weight reward weighs a rollout by its reward over its prompt's mean, so that each solved prompt counts as much.

    python stage2_shape.py --teacher runs/teacher --reference toy/teacher --problems toy/train.jsonl \
        --certify-problems toy/heldout.jsonl --out runs/shape
    torchrun --nproc_per_node=8 stage2_shape.py …                          # the ranks share the problems

Reads two models and problems; writes rollouts.jsonl (token ids, reward, logprob sums), certificate.json and, to read,
implicit_rewards.jsonl (what C1 ranked) and dense_rewards.jsonl (some of it by token).  Exit code 1 if C1 does not hold.
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
    FlagParser, above_zero, bootstrap_interval, completion_logprobs, grade_rollouts, load_graded_problems,
    load_prepared, load_problems, natural, positive, prepare, sample_share, share_of_one,
)
from engine.checkpoints import read_object
from engine.files import read_record, write_json, write_jsonl
from engine.problems import INSTRUCTION, check_runs_prompts, digest, distinct, template_arguments
from engine.ranks import fail, from_rank_0, gather_list, rank, say, setup_distributed
from engine.rollouts import even_micro_batches
from engine.runs import finish_run, keep_rows, kept_rows, leave_if_asked, open_run
from pages.card import c1_in_words
from pages.run import draw_page, write_rewards, write_samples

MODELS = ["teacher", "reference"]

# ---------------------------------------------------------------- equations


def implicit_reward(teacher_logprobs: Tensor, reference_logprobs: Tensor, completion_mask: Tensor) -> Tensor:
    """R(x, y), the log-ratio summed over the completion (equation 4).  2 x (B, C) nats, (B, C) -> (B,) nats."""
    return ((teacher_logprobs - reference_logprobs) * completion_mask).sum(dim=1)


def auc(scores: np.ndarray, right: np.ndarray) -> float:
    """The chance that a right completion scores above a wrong one, ties counting half; NaN without both.

    scores, right (bool): (B,).  Ranks instead of pairs: AUC = (mean rank of the right − (n_right + 1) / 2) / n_wrong.
    """
    num_right, num_wrong = int(right.sum()), int((~right).sum())
    if num_right == 0 or num_wrong == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]               # from 1; ties share their mean rank
    return float((ranks[right].mean() - (num_right + 1) / 2) / num_wrong)


def within_prompt_auc(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """AUC within each prompt (equation 5).  2 x (prompts, G) -> (prompts,), NaN where all outcomes are alike."""
    return np.array([auc(score, outcome) for score, outcome in zip(scores, right)])


def certify(scores: np.ndarray, lengths: np.ndarray, right: np.ndarray, min_auc: float) -> dict:
    """The certificate C1.  scores (prompts, G) nats, lengths (prompts, G) tokens, right (prompts, G) bool."""
    figures = {}
    for name, values in (("sum", scores), ("per_token", scores / lengths)):
        within, count = within_prompt_auc(values, right), len(values)
        mixed = within[~np.isnan(within)]
        interval = bootstrap_interval(lambda i, m=mixed: m[i].mean(), len(mixed)) if len(mixed) else [None, None]
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


def shaped_rollouts(name: str, writer: str, models: dict, ready, problems, prompts, args) -> tuple[list[dict], float]:
    """What the writer says to each problem, graded, and scored by teacher and reference.  Ranks share the problems.

    -> a row a rollout, those of one problem adjacent, on every rank; this rank's seconds, also before an interruption.
    """
    kept, own_lines = kept_rows(args.out, name)                 # of problems that an interrupted run has done
    groups = {i: kept[i] for i in from_rank_0(lambda: sorted(kept))}
    todo, size = [i for i in range(len(problems)) if i not in groups], args.samples_per_prompt
    seconds, sampled = sum(line["seconds"] for line in own_lines), {}
    bar = tqdm(total=len(problems), initial=len(groups), unit="prompt", desc=name, disable=rank() > 0)
    for batch in (todo[start:start + args.prompts_per_step] for start in range(0, len(todo), args.prompts_per_step)):
        start = time.perf_counter()
        rollouts, places = sample_share(
            models[writer], ready.tokenizer, [prompts[i] for i in batch], args, ready.eos_ids, name, indices=batch)
        mine = [batch[place] for place in places]
        rollouts.rewards = grade_rollouts(rollouts, [problems[i].answer for i in mine], ready.tokenizer)
        rows = scored_rows(rollouts, [problems[i] for i in mine for _ in range(size)],
                           *(score_rollouts(models[side], rollouts, args) for side in MODELS))
        batch_groups = [rows[start:start + size] for start in range(0, len(rows), size)]
        batch_seconds = time.perf_counter() - start
        keep_rows(args.out, name, mine, batch_groups, seconds=batch_seconds)
        leave_if_asked(args.out, "a batch was finished")
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
    return torch.stack([F.pad(row, (0, length - len(row))) for row in rows]) if rows else torch.zeros(0, length)


def scored_rows(rollouts, problems, teacher_logprobs: Tensor, reference_logprobs: Tensor) -> list[dict]:
    """What is kept of each rollout, whose problem has its place: the dense reward is the log-ratio of every token."""
    columns = (rollouts.finished, rollouts.rewards, teacher_logprobs.sum(1), reference_logprobs.sum(1), implicit_reward(
        teacher_logprobs, reference_logprobs, rollouts.completion_mask), teacher_logprobs - reference_logprobs)
    return [{"id": problem.id, "prompt_ids": prompt, "completion_ids": completion, "finished": finished,
             "reward": reward if problem.answer is not None else None, "teacher_logprob_nats": teacher_logprob,
             "reference_logprob_nats": reference_logprob, "implicit_reward_nats": score,
             "dense_rewards_nats": dense[:len(completion)]}
            for problem, prompt, completion, finished, reward, teacher_logprob, reference_logprob, score, dense
            in zip(problems, rollouts.prompts(), rollouts.completions(), *(column.tolist() for column in columns))]


def certificate_of(rows: list[dict], args) -> dict:
    scores, lengths, rewards = (np.array(column).reshape(-1, args.samples_per_prompt) for column in zip(
        *((row["implicit_reward_nats"], len(row["completion_ids"]), row["reward"]) for row in rows)))
    if not np.isfinite(scores).all():
        fail(f"{args.out}: C1 cannot rank: on some rollouts the logprobs of --teacher or --reference are not finite")
    return certify(scores, lengths, rewards > 0, args.min_auc)


def write_rollouts(path: Path, rows: list[dict], args) -> None:
    """rollouts.jsonl, what stage 3 reads, each with its weight in the bridge's loss; those of weight 0 are left out."""
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


# ---------------------------------------------------------------- flags and the script


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="teacher after RL: run, directory or hub name")
    parser.add_argument("--reference", type=Path, required=True, help="the model that the teacher's RL began from")
    parser.add_argument("--problems", type=Path, nargs="+", required=True, help="prompts for stage 3's rollouts")
    parser.add_argument("--certify-problems", type=Path, nargs="+", required=True,
                        help="for C1, with answers; those that RL has seen are left out")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out golds that the judge cannot read")
    parser.add_argument("--out", type=Path, required=True, help="run directory to write")
    group = parser.add_argument_group("sampling")
    group.add_argument("--samples-per-prompt", type=positive, default=8, help="completions per prompt, 2 or more")
    group.add_argument("--max-new-tokens", type=positive, help="tokens (default: what the context leaves, up to 8192)")
    group.add_argument("--temperature", type=above_zero, default=1.0, help="of sampling and of every logprob")
    group.add_argument("--rollout-tokens", type=natural, default=0, help="of cache at a time; 0: what memory holds")
    group.add_argument("--sample-on-shards", action="store_true", help="for a model that one rank cannot hold whole")
    group.add_argument("--instruction", help=f"end of the user message (default, of chat models: {INSTRUCTION})")
    group.add_argument("--enable-thinking", action="store_true", help="passed to the chat template")
    group.add_argument("--template-args", type=template_arguments, metavar="JSON", help="more for the chat template")
    group.add_argument("--num-problems", type=natural, default=0, help="sample the first N of --problems only; 0: all")
    group.add_argument("--prompts-per-step", type=positive, default=64, help="sampled at a time, over all ranks")
    group.add_argument("--micro-batch-size", type=positive, default=8, help="rollouts scored at a time; memory only")
    group.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of both models")
    group = parser.add_argument_group("certificate and rollouts")
    group.add_argument("--min-auc", type=share_of_one, default=0.5, help="C1: the interval of the AUC is above")
    group.add_argument("--num-certify-problems", type=natural, default=0, help="certify on the first N only; 0: all")
    group.add_argument("--certify-on", choices=MODELS, default="teacher",
                       help="whose completions are ranked; the reference's where the teacher is nearly always right")
    group.add_argument("--keep", choices=["all", "right"], default="all", help="which rollouts stage 3 gets")
    group.add_argument("--weight", choices=["uniform", "reward"], default="uniform", help="in stage 3's loss")
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=natural, default=0, help="of all that is random")
    group.add_argument("--allow-failed-certificate", action="store_true", help="of a parent; exit with 0 without C1")
    group.add_argument("--overwrite", action="store_true", help="start anew in an existing --out")
    return parser.parse_args(argv)


def check_reference(teacher: dict, reference: dict, args) -> list[str]:
    """Refuse a reference that the teacher's RL did not begin from.  -> ids of the problems that RL has seen."""
    if "run" not in teacher:
        return []                                               # a bare checkpoint tells nothing of where it came from
    run = Path(teacher["run"])
    parent = read_record(run)["parents"].get("model")
    if parent is not None and parent["sha256"] != reference["sha256"]:
        fail(f"--reference {args.reference} is not the model that the RL of {args.teacher} began from: "
             f"that was {parent['path']}")
    seen = run / "trained_problems.json"
    if parent is not None and not seen.is_file():               # it may have trained on those that certify it
        fail(f"{seen} is missing, which names what RL has seen and C1 may not be certified on: copy it from where the "
             "run was made, or run stage 1 again")
    return read_object(seen, list) if seen.is_file() else []


def main(args) -> None:
    if args.samples_per_prompt < 2:
        fail(f"--samples-per-prompt {args.samples_per_prompt}: C1 ranks completions of one prompt; give 2 or more")
    device = setup_distributed()
    selected = args.keep == "right" or args.weight == "reward"
    problems = load_graded_problems(args.problems, args) if selected else load_problems(args.problems, False)
    problems = problems[:args.num_problems or None]
    given = distinct(load_graded_problems(args.certify_problems, args))
    ready = prepare(args, MODELS, problems=problems, certify_problems=given)
    check_runs_prompts(ready.tokenizer, args, {"teacher": ready.parents["teacher"]})
    seen = set(check_reference(*ready.parents.values(), args))
    unseen = [i for i, problem in enumerate(given) if problem.id not in seen][:args.num_certify_problems or None]
    if not unseen:
        fail("the teacher's RL has trained on every problem of --certify-problems: name others to certify C1 on")
    certify_problems, certify_prompts = [given[i] for i in unseen], [ready.prompts[1][i] for i in unseen]
    if not open_run(args, ready.parents, ready.inputs | {"seen by RL": {"trained_problems": digest(sorted(seen))}}):
        return conclude(read_object(args.out / "certificate.json"), args)

    models = {flag: load_prepared(ready, flag, args, device) for flag in MODELS}
    rows, seconds = shaped_rollouts("teacher rollouts", "teacher", models, ready, problems, ready.prompts[0], args)
    certify_rows, more_seconds = shaped_rollouts("certificate rollouts", args.certify_on, models, ready,
                                                 certify_problems, certify_prompts, args)
    certificate = certificate_of(certify_rows, args) | {
        "certified_on": args.certify_on, "rollouts_selected_by": "reward" if selected else "nothing",
        "problems_left_out_as_seen_by_rl": sum(problem.id in seen for problem in given)}
    if rank() == 0:
        write_samples(args.out / "samples.jsonl", rows, ready.tokenizer)
        write_rollouts(args.out / "rollouts.jsonl", rows, args)
        write_rewards(args.out, certify_rows, ready.tokenizer, args.samples_per_prompt)
        write_json(args.out / "certificate.json", certificate)
    finish_run(args.out, optimiser_steps=0, labels_seen=len(unseen) + len(problems) * selected,
               tokens_sampled=sum(len(row["completion_ids"]) for row in rows + certify_rows),
               seconds=seconds + more_seconds)
    draw_page(args.out)
    conclude(certificate, args)


def conclude(certificate: dict, args) -> None:
    """Say the verdict.  The run is whole either way, but where C1 does not hold it ends with exit code 1."""
    if not certificate["passed"] and not args.allow_failed_certificate:
        raise SystemExit(c1_in_words(certificate) if rank() == 0 else 1)
    say(c1_in_words(certificate))


if __name__ == "__main__":
    main(parse_args())
