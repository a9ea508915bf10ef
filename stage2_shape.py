"""Stage 2: is the teacher reward-shaped?  The certificate C1, and the teacher rollouts that stage 3 learns from.

RL leaves a dense reward behind: at the optimum of the KL-regularised objective the log-ratio of the shaped teacher to
the model that its RL began from is the reward, up to a constant of the prompt.  Whether that happened can be tested.

    4. R(x, y) = Σ_t log π_T*(y_t|s_t) − log π_ref(y_t|s_t)                                      implicit_reward
    5. C1: R ranks right above wrong completions of the same prompt                              within_prompt_auc
       (prompts with both outcomes only), beside the pooled AUC and the per-token variant (length confounds the sum)

C1 is certified on problems that RL did not train on: those of --problems that the teacher's run has not seen, or those
of --certify-problems.  It holds if the lower end of the 95% interval of the within-prompt AUC, bootstrapped over
prompts, is above --min-auc.  A teacher equal to the reference has R = 0 everywhere and AUC 0.5, and fails.

The rollouts written for stage 3 are selected by nothing; --keep right selects by the label, --weight reward weighs
each rollout by its reward over its prompt's mean reward, so that each solved prompt counts the same.

    python stage2_shape.py --teacher runs/teacher --reference toy/teacher --problems toy/heldout.jsonl --out runs/shape
    torchrun --nproc_per_node=8 stage2_shape.py …                          # the ranks share the problems

Reads two models and problems; writes rollouts.jsonl (token ids, reward, logprob sums), certificate.json and, for
reading, dense_rewards.jsonl (every token with its reward).  Exit code 1 if C1 does not hold.
"""
import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from common import (
    INSTRUCTION,
    bootstrap_interval,
    check_context,
    check_pair,
    completion_logprobs,
    encode_prompts,
    load_model,
    load_problems,
    load_tokenizer,
    sample,
    stop_ids,
)
from engine.files import write_json, write_text
from engine.ranks import all_sum, even_batches, fail, gather_list, random_generator, rank, say, setup_distributed, share
from engine.rollouts import even_micro_batches
from engine.runs import find_model, finish_run, keep_rows, kept_rows, leave_if_asked, open_run
from engine.sharding import sampling_weights
from judge.answers import grade

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


def rollout_weight(reward: float, mean_reward: float, args) -> float:
    """What a rollout weighs in the bridge's loss."""
    if args.keep == "right" and reward == 0:
        return 0.0
    return reward / mean_reward if args.weight == "reward" and mean_reward > 0 else float(args.weight == "uniform")


# ---------------------------------------------------------------- sampling and scoring


@torch.no_grad()
def score_rollouts(model, rollouts, args) -> Tensor:
    """Logprobs of the completions, micro-batch by micro-batch.  -> (B, C) float32 nats"""
    rows = [row for micro in even_micro_batches(rollouts, args.micro_batch_size)
            for row in completion_logprobs(model, micro, args.temperature)][:len(rollouts)]
    length = rollouts.completion_ids.shape[1]
    return torch.stack([F.pad(row, (0, length - len(row))) for row in rows]) if rows else torch.zeros(0, length)


def shape(writer, teacher, reference, tokenizer, problems, prompts, args, stop: list[int],
          name: str) -> tuple[list[dict], float]:
    """Let `writer` sample each problem, grade, and score every rollout with teacher and reference.

    Ranks share the problems.  -> a row a rollout, the rollouts of one problem adjacent, on every rank; this rank's
    seconds, those before an interruption included.
    """
    groups, own_lines = kept_rows(args.out, name)               # of problems that an interrupted run has done
    seconds = sum(line["seconds"] for line in own_lines)
    bar = tqdm(total=len(share(problems)), unit="prompt", desc=name, disable=rank() > 0)
    for batch in even_batches(list(range(len(problems))), args.prompts_per_step):
        bar.update(len(batch))
        start, rows, batch = time.perf_counter(), [], [i for i in batch if i not in groups]
        if not all_sum(len(batch))[0]:                          # no rank has work: they call the models together
            continue
        with sampling_weights(writer, args.dtype, args.sample_on_shards) as sampler:
            rollouts = sample(sampler, [prompts[i] for i in batch], samples_per_prompt=args.samples_per_prompt,
                              max_new_tokens=args.max_new_tokens, temperature=args.temperature, eos_ids=stop,
                              pad_id=tokenizer.pad_token_id, generator=random_generator(args.seed, name),
                              indices=batch, rollout_tokens=args.rollout_tokens)
        teacher_logprobs = score_rollouts(teacher, rollouts, args)
        reference_logprobs = score_rollouts(reference, rollouts, args)
        dense = (teacher_logprobs - reference_logprobs).tolist()
        scores = implicit_reward(teacher_logprobs, reference_logprobs, rollouts.completion_mask).tolist()
        completions = rollouts.completions()
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        for i, (completion, text) in enumerate(zip(completions, texts)):
            place = batch[i // args.samples_per_prompt]
            problem = problems[place]
            rows.append({"id": problem.id, "prompt_ids": prompts[place], "completion_ids": completion,
                         "finished": bool(rollouts.finished[i]), "reward": float(grade(text, problem.answer)),
                         "teacher_logprob_nats": float(teacher_logprobs[i].sum()),
                         "reference_logprob_nats": float(reference_logprobs[i].sum()),
                         "implicit_reward_nats": scores[i], "dense_rewards_nats": dense[i][:len(completion)]})
        batch_groups = [rows[i:i + args.samples_per_prompt] for i in range(0, len(rows), args.samples_per_prompt)]
        batch_seconds = time.perf_counter() - start
        keep_rows(args.out, name, batch, batch_groups, seconds=batch_seconds)
        leave_if_asked(args.out, together=True)
        groups |= zip(batch, batch_groups)
        seconds += batch_seconds
        bar.set_postfix_str(f"right {sum(row['reward'] for row in rows) / max(len(rows), 1):.3f}")
    bar.close()
    mine = [groups[i] for i in share(list(range(len(problems))))]
    return [row for group in gather_list(mine) for row in group], seconds


def certificate_of(rows: list[dict], args) -> dict:
    scores, lengths, rewards = (np.array(column).reshape(-1, args.samples_per_prompt) for column in zip(
        *((row["implicit_reward_nats"], len(row["completion_ids"]), row["reward"]) for row in rows)))
    return certify(scores, lengths, rewards > 0, args.min_auc)


def verdict(certificate: dict) -> str:
    """The certificate in one sentence."""
    within = certificate["sum"]["within_prompt_auc"]
    if within["value"] is None:
        return (f"C1 does not hold: none of {certificate['num_prompts']} prompts has both a right and a wrong "
                "completion, so nothing can be ranked; take harder or easier problems or more --samples-per-prompt")
    low, high = within["interval"]
    figures = (f"within-prompt AUC {within['value']:.3f}, 95% interval [{low:.3f}, {high:.3f}], "
               f"{within['prompts']} prompts with both outcomes")
    if certificate["passed"]:
        return f"C1 holds: the teacher's log-ratio ranks right above wrong completions ({figures})"
    return (f"C1 does not hold ({figures}; the lower end must exceed {certificate['min_auc']}): RL has not shaped this "
            "teacher towards the reward, so its dense reward would teach the student style but not to be right")


# ---------------------------------------------------------------- the script


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="teacher after RL: run or checkpoint directory")
    parser.add_argument("--reference", type=Path, required=True, help="the model that the teacher's RL began from")
    parser.add_argument("--problems", type=Path, required=True, help="problems to sample, JSON lines")
    parser.add_argument("--certify-problems", type=Path,
                        help="problems for C1 alone (default: those of --problems that RL has not seen)")
    parser.add_argument("--out", type=Path, required=True, help="run directory to write")
    group = parser.add_argument_group("sampling")
    group.add_argument("--samples-per-prompt", type=int, default=8, help="completions per prompt")
    group.add_argument("--max-new-tokens", type=int, default=8192, help="longest completion, tokens")
    group.add_argument("--temperature", type=float, default=1.0, help="of sampling and of every logprob")
    group.add_argument("--rollout-tokens", type=int, default=0, help="tokens of cache at a time; 0: what memory holds")
    group.add_argument("--sample-on-shards", action="store_true", help="for a model that one rank cannot hold whole")
    group.add_argument("--instruction", default=INSTRUCTION, help="end of the user message (chat models)")
    group.add_argument("--enable-thinking", action="store_true", help="passed to the chat template")
    group.add_argument("--num-problems", type=int, default=0, help="sample the first N of --problems only; 0: all")
    group.add_argument("--prompts-per-step", type=int, default=64, help="prompts sampled at a time on each rank")
    group.add_argument("--micro-batch-size", type=int, default=8, help="rollouts scored at a time; memory only")
    group.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of both models")
    group = parser.add_argument_group("certificate and rollouts")
    group.add_argument("--min-auc", type=float, default=0.5, help="C1: the interval of the within-prompt AUC is above")
    group.add_argument("--num-certify-problems", type=int, default=0, help="certify on the first N only; 0: all")
    group.add_argument("--certify-on", choices=["teacher", "reference"], default="teacher",
                       help="whose completions are ranked; the reference's where the teacher is nearly always right")
    group.add_argument("--keep", choices=["all", "right"], default="all", help="which rollouts stage 3 gets")
    group.add_argument("--weight", choices=["uniform", "reward"], default="uniform", help="in stage 3's loss")
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--allow-failed-certificate", action="store_true", 
                       help="exit with 0 where C1 does not hold; take a parent whose certificate failed")
    group.add_argument("--overwrite", action="store_true", help="start anew in an existing --out")
    return parser.parse_args(argv)


def check_reference(teacher: dict, reference: dict, args) -> list[str]:
    """Refuse a reference that the teacher's RL did not begin from.  -> ids of the problems that RL has seen."""
    if "run" not in teacher:
        return []                                               # a bare checkpoint tells nothing of where it came from
    run = Path(teacher["run"])
    parent = json.loads((run / "args.json").read_text())["parents"].get("model")
    if parent is not None and parent["sha256"] != reference["sha256"]:
        fail(f"--reference {args.reference} is not the model that the RL of {args.teacher} began from: "
             f"that was {parent['path']}")
    seen = run / "trained_problems.json"
    return json.loads(seen.read_text()) if seen.is_file() else []


def main(args) -> None:
    if args.samples_per_prompt < 2:
        fail(f"--samples-per-prompt {args.samples_per_prompt}: C1 ranks completions of one prompt; give 2 or more")
    device = setup_distributed()
    problems = load_problems(args.problems)[:args.num_problems or None]
    teacher_parent = find_model(args.teacher, args.allow_failed_certificate)
    reference_parent = find_model(args.reference, args.allow_failed_certificate)
    teacher_dir, reference_dir = Path(teacher_parent["path"]), Path(reference_parent["path"])
    seen = set(check_reference(teacher_parent, reference_parent, args))
    certify_problems = load_problems(args.certify_problems) if args.certify_problems else problems
    unseen = [i for i, problem in enumerate(certify_problems) if problem.id not in seen]
    unseen = unseen[:args.num_certify_problems or None]
    if not unseen:
        fail(f"the teacher's RL has trained on every problem of {args.certify_problems or args.problems}: C1 is "
             "certified on others; name them with --certify-problems")
    tokenizer = load_tokenizer(teacher_dir)
    check_pair(reference_dir, load_tokenizer(reference_dir), teacher_dir, tokenizer)
    prompts, certify_prompts = (encode_prompts(tokenizer, rows, args) for rows in (problems, certify_problems))
    check_context(teacher_dir, problems + certify_problems, prompts + certify_prompts, args.max_new_tokens)
    if not open_run(args, {"teacher": teacher_parent, "reference": reference_parent}):
        return conclude(json.loads((args.out / "certificate.json").read_text()), args)

    stop = stop_ids(teacher_dir, tokenizer)
    teacher = load_model(teacher_dir, tokenizer, getattr(torch, args.dtype), device)
    reference = load_model(reference_dir, tokenizer, getattr(torch, args.dtype), device)
    say(f"first prompt: {tokenizer.decode(prompts[0])!r}")
    rows, seconds = shape(teacher, teacher, reference, tokenizer, problems, prompts, args, stop, "teacher rollouts")
    separate = args.certify_problems is not None or args.certify_on == "reference"
    if separate:
        chosen, chosen_prompts = [certify_problems[i] for i in unseen], [certify_prompts[i] for i in unseen]
        writer = teacher if args.certify_on == "teacher" else reference
        certify_rows, more_seconds = shape(writer, teacher, reference, tokenizer, chosen, chosen_prompts, args, stop,
                                           "certificate rollouts")
        seconds += more_seconds
    else:
        chosen = {certify_problems[i].id for i in unseen}
        certify_rows = [row for row in rows if row["id"] in chosen]
    certificate = certificate_of(certify_rows, args) | {
        "certified_on": args.certify_on,
        "problems_left_out_as_seen_by_rl": sum(problem.id in seen for problem in certify_problems),
        "rollouts_selected_by": "nothing" if args.keep == "all" and args.weight == "uniform" else "reward",
        "also_in_rollouts_jsonl": not separate}
    if rank() == 0:
        write_samples(args.out / "samples.jsonl", rows, tokenizer)
        write_rollouts(args.out / "rollouts.jsonl", rows, args)
        write_dense_rewards(args.out / "dense_rewards.jsonl", certify_rows, tokenizer, args)
        write_json(args.out / "certificate.json", certificate)
    selects = certificate["rollouts_selected_by"] == "reward"
    finish_run(args.out, optimiser_steps=0, labels_seen=len(unseen) + (len(problems) if selects and separate else 0),
               tokens_sampled=sum(len(row["completion_ids"]) for row in rows + (certify_rows if separate else [])),
               seconds=seconds)
    conclude(certificate, args)


def conclude(certificate: dict, args) -> None:
    """Say the verdict.  The run is whole either way, but where C1 does not hold it ends with exit code 1."""
    if not certificate["passed"] and not args.allow_failed_certificate:
        raise SystemExit(verdict(certificate) if rank() == 0 else 1)
    say(verdict(certificate))


def write_rollouts(path: Path, rows: list[dict], args) -> None:
    """rollouts.jsonl, what stage 3 reads; those of weight 0 are left out."""
    lines = []
    for start in range(0, len(rows), args.samples_per_prompt):
        group = rows[start:start + args.samples_per_prompt]
        mean_reward = sum(row["reward"] for row in group) / len(group)
        for row in group:
            if (weight := rollout_weight(row["reward"], mean_reward, args)) > 0:
                kept = {key: value for key, value in row.items() if key != "dense_rewards_nats"}
                lines.append(json.dumps(kept | {"weight": weight}) + "\n")
    write_text(path, "".join(lines))


def write_samples(path: Path, rows: list[dict], tokenizer, count: int = 8) -> None:
    """A few of the teacher's rollouts as text."""
    write_text(path, "".join(json.dumps({
        "step": 0, "prompt": tokenizer.decode(row["prompt_ids"]), "completion": tokenizer.decode(row["completion_ids"]),
        "finished": row["finished"], "reward": row["reward"]}) + "\n" for row in rows[:count]))


def write_dense_rewards(path: Path, rows: list[dict], tokenizer, args, count: int = 8) -> None:
    """For reading: prompts with both outcomes first, each token of a right and a wrong completion beside its reward."""
    groups = [rows[i:i + args.samples_per_prompt] for i in range(0, len(rows), args.samples_per_prompt)]
    groups.sort(key=lambda group: len({row["reward"] for row in group}), reverse=True)
    lines = []
    for group in groups[:count]:
        for row in {row["reward"]: row for row in group}.values():
            lines.append(json.dumps({
                "prompt": tokenizer.decode(row["prompt_ids"]), "reward": row["reward"],
                "tokens": [tokenizer.decode([token]) for token in row["completion_ids"]],
                "dense_rewards_nats": row["dense_rewards_nats"],
                "implicit_reward_nats": row["implicit_reward_nats"]}) + "\n")
    write_text(path, "".join(lines))


if __name__ == "__main__":
    main(parse_args())
