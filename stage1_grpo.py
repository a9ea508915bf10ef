"""Stage 1: GRPO with a verifiable 0/1 reward, on any causal LM.

Spend the sparse reward where exploration is productive: on the larger teacher.  The same script trains the student
alone (direct GRPO, the baseline to beat) and, on held-out labels, the bridged student.

    1. r(x, y) = 1 if the final answer in y is equivalent to the gold answer, else 0            eval.grade
    2. A_i = (r_i − mean(r)) / (std(r) + ε) within the completions of one prompt                group_advantages
    3. L = −(1/N) Σ_i Σ_t min(ρ A_i, clip(ρ, 1 − 0.2, 1 + 0.28) A_i),  ρ = π(y_t|s_t) / π_old(y_t|s_t),
       N = all completion tokens of the optimiser step, over every rank; where A_i < 0 the term is at least
       c·A_i, c = 10 (dual clip)                                                                clipped_surrogate

Departures from the paper: none in the loss.  Off by default, there to be tried: --loss-mean sequence, --kl-coef
(exact KL to the model that training began from), --entropy-coef, --mask-truncated.

    python stage1_grpo.py --model toy/teacher --problems toy/train.jsonl --out runs/teacher
    torchrun --nproc_per_node=8 stage1_grpo.py --model Qwen3-8B --problems train.jsonl --out runs/teacher

Reads a checkpoint directory and problems; writes a run directory, whose model/ the next stages read.
"""
import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from common import (
    INSTRUCTION,
    batch_indices,
    check_context,
    completion_divergence,
    completion_logprobs,
    encode_prompts,
    load_model,
    load_problems,
    load_tokenizer,
    sample,
    sampler_gap,
    stop_ids,
)
from engine.files import write_json
from engine.ranks import all_sum, balanced_share, fail, random_generator, rank, say, setup_distributed
from engine.rollouts import even_micro_batches
from engine.runs import (
    find_model,
    finish_run,
    load_rollouts,
    load_state,
    log_metrics,
    log_nonfinite,
    log_samples,
    open_run,
    save_model,
    save_or_leave,
    take_step,
)
from engine.sharding import sampling_weights
from eval import accuracy
from judge.answers import counts, grade
from stage4_distill import reverse_kl

# ---------------------------------------------------------------- equations


def group_advantages(rewards: Tensor, group_size: int, eps: float = 1e-4) -> Tensor:
    """Standardise each reward within its prompt's group (equation 2).  (B,) -> (B,), dimensionless.

    The rollouts of one prompt are adjacent.  A group whose rewards are all equal prefers nothing:
    its advantages are exactly 0, and so is its gradient: `main` leaves it out of the passes, but not of the token mean.
    """
    groups = rewards.float().view(-1, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    return (centred / (groups.std(dim=1, keepdim=True, correction=0) + eps)).view(-1)


def clipped_surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor,
                      clip_low: float, clip_high: float, dual_clip: float) -> Tensor:
    """The objective of each token (equation 3), to be maximised.  2 x (B, C) nats, (B,) -> (B, C).

    The lower clip is tighter than the upper one: a rare right token may grow faster than others may shrink.
    """
    ratio = (logprobs - old_logprobs).exp()                     # 1 on the first pass
    advantage = advantages[:, None]                             # one per rollout, over its tokens
    objective = torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)
    return torch.where(advantage < 0, torch.maximum(objective, dual_clip * advantage), objective)


def token_weights(mask: Tensor, loss_mean: str, num_tokens: float, num_sequences: float) -> Tensor:
    """What each token weighs in the loss; all weights of an optimiser step, over all ranks, sum to 1.  (B, C) -> (B, C)

    token mean: long completions weigh more, every token the same (the default).  sequence mean: the other way round.
    """
    if loss_mean == "token":
        return mask / num_tokens
    return mask / mask.sum(1, keepdim=True).clamp(min=1) / num_sequences


# ---------------------------------------------------------------- rollouts


def make_rollouts(policy, tokenizer, problems, prompts, args, stop: list[int], batch: int) -> tuple:
    """Sample and grade this rank's share of one rollout batch; advantages within each group.

    -> Rollouts; the places of their prompts in the batch of all ranks.
    """
    num_prompts = args.prompts_per_step * args.steps_per_rollout
    batch_of_all = batch_indices(len(problems), num_prompts, batch, args.seed)
    places = balanced_share([len(prompts[i]) for i in batch_of_all])                 # of this rank's
    chosen = [batch_of_all[place] for place in places]
    with sampling_weights(policy, args.dtype, args.sample_on_shards) as sampler:
        rollouts = sample(sampler, [prompts[i] for i in chosen], samples_per_prompt=args.samples_per_prompt,
                          max_new_tokens=args.max_new_tokens, temperature=args.temperature, eos_ids=stop,
                          pad_id=tokenizer.pad_token_id, generator=random_generator(args.seed, "rollouts", batch),
                          indices=places, rollout_tokens=args.rollout_tokens)
    texts = tokenizer.batch_decode(rollouts.completions(), skip_special_tokens=True)
    golds = [problems[i].answer for i in chosen for _ in range(args.samples_per_prompt)]
    rewards = [float(grade(text, gold)) for text, gold in zip(texts, golds)]         # equation 1
    rollouts.rewards = torch.tensor(rewards, device=policy.device)
    rollouts.advantages = group_advantages(rollouts.rewards, args.samples_per_prompt)
    return rollouts, places


def cut_into_steps(rollouts, places: list[int], args, batch: int) -> list:
    """Whole groups in random order, cut into one part for each optimiser step of this rollout batch.

    The order is of all ranks' groups: a step takes the same groups however many ranks share them.
    """
    order = torch.randperm(args.prompts_per_step * args.steps_per_rollout,
                           generator=random_generator(args.seed, "groups", batch))
    rows = torch.arange(len(rollouts)).view(-1, args.samples_per_prompt)
    rows_at = dict(zip(places, rows))
    steps = [[rows_at[place] for place in part.tolist() if place in rows_at]
             for part in order.split(args.prompts_per_step)]
    return [rollouts.select(torch.cat([rows[:0].flatten(), *step])) for step in steps]


def rollout_figures(rollouts, args) -> dict:
    """What the log says of a rollout batch, over all ranks."""
    groups = rollouts.rewards.view(-1, args.samples_per_prompt)
    mixed = (groups.amax(1) != groups.amin(1)).sum() if len(groups) else 0
    count, right, cut, tokens, num_groups, num_mixed, surprise = all_sum(
        len(rollouts), rollouts.rewards.sum(), (~rollouts.finished).sum(), rollouts.completion_mask.sum(), len(groups),
        mixed, -rollouts.sampler_logprobs.sum())
    return {"reward_mean": right / count, "mixed_groups_fraction": num_mixed / num_groups,
            "truncated_fraction": cut / count, "mean_length_tokens": tokens / count,
            "entropy_estimate_nats": surprise / tokens, "sampled_tokens": int(tokens)}


def nothing_to_learn(recent: list[dict], patience: int) -> bool:
    """So many rollout batches in a row nearly all cut off and without a single mixed group: the gradient is zero."""
    return 0 < patience <= len(recent) and all(
        figures["truncated_fraction"] > 0.9 and figures["mixed_groups_fraction"] == 0 for figures in recent[-patience:])


# ---------------------------------------------------------------- flags and the loop


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory or finished run to train")
    parser.add_argument("--problems", type=Path, required=True, help="training problems, JSON lines")
    parser.add_argument("--out", type=Path, required=True, help="run directory to write")
    group = parser.add_argument_group("sampling")
    group.add_argument("--samples-per-prompt", type=int, default=8, help="G, completions per prompt")
    group.add_argument("--max-new-tokens", type=int, default=8192, help="longest completion, tokens")
    group.add_argument("--temperature", type=float, default=1.0, help="of sampling and of every logprob")
    group.add_argument("--rollout-tokens", type=int, default=0, help="tokens of cache at a time; 0: what memory holds")
    group.add_argument("--sample-on-shards", action="store_true", help="for a model that one rank cannot hold whole")
    group.add_argument("--instruction", default=INSTRUCTION, help="end of the user message (chat models)")
    group.add_argument("--enable-thinking", action="store_true", help="passed to the chat template")
    group = parser.add_argument_group("optimisation")
    group.add_argument("--max-steps", type=int, default=500, help="optimiser steps")
    group.add_argument("--prompts-per-step", type=int, default=128, help="prompts per optimiser step, over all ranks")
    group.add_argument("--steps-per-rollout", type=int, default=4,
                       help="optimiser steps per rollout batch, which has as many times --prompts-per-step prompts")
    group.add_argument("--micro-batch-size", type=int, default=8, help="rollouts per forward pass; memory only")
    group.add_argument("--activation-checkpointing", action="store_true", help="less memory, a third more compute")
    group.add_argument("--lr", type=float, default=1e-6, help="constant learning rate of AdamW")
    group.add_argument("--weight-decay", type=float, default=0.1)
    group.add_argument("--max-grad-norm", type=float, default=1.0, help="gradient clip")
    group.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32",
                       help="of forward and backward; weights and AdamW's state stay float32")
    group = parser.add_argument_group("objective")
    group.add_argument("--clip-low", type=float, default=0.2, help="ratio clip, downwards")
    group.add_argument("--clip-high", type=float, default=0.28, help="ratio clip, upwards")
    group.add_argument("--dual-clip", type=float, default=10.0, help="c: bound where the advantage is negative")
    group.add_argument("--loss-mean", choices=["token", "sequence"], default="token", help="the loss is their mean")
    group.add_argument("--kl-coef", type=float, default=0.0, help="of the exact KL(policy || starting model)")
    group.add_argument("--entropy-coef", type=float, default=0.0, help="of the entropy bonus")
    group.add_argument("--mask-truncated", action="store_true",
                       help="leave out completions that were cut at --max-new-tokens, instead of giving them reward 0")
    group = parser.add_argument_group("run")
    group.add_argument("--give-up-after", type=int, default=5,
                       help="stop after N rollout batches in a row that are cut off and teach nothing; 0: never")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--save-every", type=int, default=20, help="optimiser steps between saved states; 0: never")
    group.add_argument("--keep-states", type=int, default=2, help="saved states to keep, the newest")
    group.add_argument("--eval-problems", type=Path, help="problems to evaluate on while training")
    group.add_argument("--eval-every", type=int, default=0, help="optimiser steps between evaluations; 0: never")
    group.add_argument("--eval-samples", type=int, default=4, help="completions per evaluation problem")
    group.add_argument("--allow-failed-certificate", action="store_true", help="take a parent whose certificate failed")
    group.add_argument("--overwrite", action="store_true", help="start anew in an existing --out")
    return parser.parse_args(argv)


def check_flags(args) -> None:
    if args.samples_per_prompt < 2:
        fail(f"--samples-per-prompt {args.samples_per_prompt}: an advantage compares completions of one prompt; "
             "give 2 or more")
    if args.temperature <= 0:
        fail(f"--temperature {args.temperature}: training samples at a temperature above 0")
    if args.eval_every and not args.eval_problems:
        fail("--eval-every needs --eval-problems")
    for flag in ("prompts_per_step", "steps_per_rollout", "micro_batch_size", "max_new_tokens", "max_steps"):
        if getattr(args, flag) < 1:
            fail(f"--{flag.replace('_', '-')} {getattr(args, flag)}: give 1 or more")


def main(args) -> None:
    check_flags(args)
    device = setup_distributed()
    problems = load_problems(args.problems)
    parent = find_model(args.model, args.allow_failed_certificate)
    model_dir = Path(parent["path"])
    tokenizer = load_tokenizer(model_dir)
    stop = stop_ids(model_dir, tokenizer)
    prompts = encode_prompts(tokenizer, problems, args)
    check_context(model_dir, problems, prompts, args.max_new_tokens)
    eval_problems = load_problems(args.eval_problems) if args.eval_problems else []
    eval_prompts = encode_prompts(tokenizer, eval_problems, args)
    check_context(model_dir, eval_problems, eval_prompts, args.max_new_tokens)
    if not open_run(args, {"model": parent}):
        return

    policy = load_model(model_dir, tokenizer, getattr(torch, args.dtype), device, trainable=True,
                        activation_checkpointing=args.activation_checkpointing)
    reference = load_model(model_dir, tokenizer, getattr(torch, args.dtype), device) if args.kl_coef else None
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=args.weight_decay)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16")
    done, memory = load_state(args.out, policy, optimizer)
    totals = memory.get("totals") or {"optimiser_steps": 0, "nonfinite_steps": 0, "labels_seen": 0, "tokens_sampled": 0,
                                     "seconds": 0.0, "grader_gave_up": 0}
    recent = memory.get("recent", [])                           # figures of the last rollout batches
    denominators = memory.get("denominators", [])               # of each step: its tokens and sequences, over all ranks
    micro_batches_of = load_rollouts(args.out, done, device)    # step -> what the last of them still has for it
    gave_up_before = totals["grader_gave_up"] - counts["timeout"] - counts["failed"]    # counts are of the process
    say(f"first prompt: {tokenizer.decode(prompts[0])!r}")

    bar = tqdm(range(done + 1, args.max_steps + 1), initial=done, total=args.max_steps, unit="step",
               desc=args.out.name, disable=rank() > 0)
    for step in bar:
        start = time.perf_counter()
        sample_seconds = 0.0

        # sample, grade; for the steps after an update, the trainer's own logprobs, in the micro-batches of training
        fresh = (step - 1) % args.steps_per_rollout == 0
        if fresh:
            batch_number = (step - 1) // args.steps_per_rollout
            rollouts, places = make_rollouts(policy, tokenizer, problems, prompts, args, stop, batch_number)
            sample_seconds = time.perf_counter() - start
            recent.append(rollout_figures(rollouts, args))
            if nothing_to_learn(recent, args.give_up_after):
                raise SystemExit(
                    f"{args.out}: stopped at step {step}: in {args.give_up_after} rollout batches over 90% of the "
                    f"completions were cut off at --max-new-tokens {args.max_new_tokens} and no group had both "
                    "outcomes; nothing is learnt")
            log_samples(args.out, step, tokenizer, rollouts)
            if args.mask_truncated:                             # out of the loss and out of the token count
                rollouts.completion_mask &= rollouts.finished[:, None]
            parts = cut_into_steps(rollouts, places, args, batch_number)
            # one denominator a step: every rank, every micro-batch, and the groups that the next lines leave out
            denominators = [all_sum(part.completion_mask.sum(), part.completion_mask.any(1).sum()) for part in parts]
            if not (args.kl_coef or args.entropy_coef):         # without advantage no gradient: no need to compute it
                parts = [part.select(part.advantages.nonzero()[:, 0]) for part in parts]
            micro_batches_of = {step + i: even_micro_batches(part, args.micro_batch_size)
                                for i, part in enumerate(parts)}
            with torch.no_grad(), autocast:
                for later_step in range(step + 1, step + len(parts)):
                    for micro in micro_batches_of[later_step]:
                        micro.old_logprobs = completion_logprobs(policy, micro, args.temperature)
            totals["labels_seen"] += args.prompts_per_step * args.steps_per_rollout
            totals["tokens_sampled"] += recent[-1]["sampled_tokens"]

        micro_batches, losses, clipped_sum = micro_batches_of.pop(step), [], 0.0
        num_tokens, num_sequences = denominators[(step - 1) % args.steps_per_rollout]
        for micro in micro_batches:
            with autocast:
                logprobs, entropy = completion_logprobs(policy, micro, args.temperature, entropy=True)   # (B, C) nats
                if fresh:                                       # the policy is still the one that sampled: ratio 1
                    micro.old_logprobs = logprobs.detach()
                objective = clipped_surrogate(logprobs, micro.old_logprobs, micro.advantages,
                                              args.clip_low, args.clip_high, args.dual_clip)
                if args.entropy_coef:
                    objective = objective + args.entropy_coef * entropy
                weights = token_weights(micro.completion_mask, args.loss_mean, max(num_tokens, 1),
                                        max(num_sequences, 1))
                loss = -(objective * weights).sum()
                if args.kl_coef:                                # exact over the vocabulary, as stage 4's reverse_kl
                    loss = loss + completion_divergence(policy, reference, micro, reverse_kl, args.temperature,
                                                        args.kl_coef * weights)[0]
            loss.backward()

            losses.append(loss.item())
            ratio = (logprobs - micro.old_logprobs).detach().exp()
            sign = micro.advantages.sign()[:, None]
            clipped = (ratio < 1 - args.clip_low) & (sign < 0) | (ratio > 1 + args.clip_high) & (sign > 0)
            clipped_sum += (clipped & micro.completion_mask).sum().item()
        if fresh:
            recent[-1] |= sampler_gap([micro.old_logprobs for micro in micro_batches], micro_batches)
        grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), args.max_grad_norm)
        grad_norm, taken = take_step(optimizer, grad_norm, losses)
        if not taken:
            totals["nonfinite_steps"] += 1
            log_nonfinite(args.out, step, tokenizer, micro_batches, losses)

        seconds = time.perf_counter() - start
        totals["optimiser_steps"], totals["seconds"] = step, totals["seconds"] + seconds
        totals["grader_gave_up"] = gave_up_before + counts["timeout"] + counts["failed"]
        loss, clipped = all_sum(sum(losses), clipped_sum)
        figures = {**recent[-1], "loss": loss, "grad_norm": grad_norm, "num_tokens": int(num_tokens),
                   "clipped_fraction": clipped / max(num_tokens, 1),
                   "sample_seconds": sample_seconds, "train_seconds": seconds - sample_seconds,
                   "tokens_per_second": num_tokens / seconds, **totals}
        if args.eval_every and (step % args.eval_every == 0 or step == args.max_steps):
            figures["eval_accuracy"] = accuracy(policy, tokenizer, eval_problems, eval_prompts, args, stop)
        log_metrics(args.out, step, **figures)
        bar.set_postfix_str(f"reward {figures['reward_mean']:.3f}, mixed {figures['mixed_groups_fraction']:.2f}, "
                            f"{figures['tokens_per_second']:.0f} tokens/s")
        memory = {"totals": totals, "recent": recent[-max(args.give_up_after, 1):], "denominators": denominators}
        save_or_leave(args, step, policy, optimizer, memory, micro_batches_of)

    save_model(policy, tokenizer, stop, args.out / "model")
    if rank() == 0:
        seen = {problems[i].id for i in trained_indices(len(problems), args)}
        write_json(args.out / "trained_problems.json", sorted(seen))
    finish_run(args.out, **totals)
    say(f"{args.out}: {totals}")


def trained_indices(num_problems: int, args) -> set[int]:
    """The problems whose labels this run has seen; stage 2 certifies on others."""
    num_prompts = args.prompts_per_step * args.steps_per_rollout
    return {i for batch in range(-(-args.max_steps // args.steps_per_rollout))
            for i in batch_indices(num_problems, num_prompts, batch, args.seed)}


if __name__ == "__main__":
    main(parse_args())
