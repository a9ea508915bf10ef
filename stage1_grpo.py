"""Stage 1: GRPO with a verifiable 0/1 reward, on any causal LM.

Spend the sparse reward where exploration is productive: on the larger teacher.  The same script trains the student
alone (direct GRPO, the baseline to beat) and, on held-out labels, the bridged student.

    1. r(x, y) = 1 if the final answer in y is equivalent to the gold answer, else 0            common.grade_rollouts
    2. A_i = (r_i − mean(r)) / (std(r) + ε) within the completions of one prompt                group_advantages
    3. L = −(1/N) Σ_i Σ_t min(ρ A_i, clip(ρ, 1 − 0.2, 1 + 0.28) A_i),  ρ = π(y_t|s_t) / π_old(y_t|s_t),
       N = all completion tokens of the optimiser step, over every rank; where A_i < 0 the term is at least
       c·A_i, c = 10 (dual clip)                                                                clipped_surrogate

Departures from the paper: none in the loss.  Off by default, there to be tried: --loss-mean sequence, --kl-coef
(exact KL to the model that training began from), --entropy-coef, --no-baseline, --mask-truncated.

    python stage1_grpo.py --model toy/teacher --problems toy/train.jsonl --out runs/teacher
    torchrun --nproc_per_node=8 stage1_grpo.py --model Qwen/Qwen3-8B --problems train.jsonl --out runs/teacher

Reads a checkpoint directory and problems; writes a run directory, whose model/ the next stages read.
"""
import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from common import (
    FlagParser, above_zero, batch_indices, completion_divergence, completion_logprobs, finite, from_zero,
    grade_rollouts, load_graded_problems, load_prepared, natural, positive, prepare, sample_share, sampler_gap,
    share_of_one,
)
from engine.checkpoints import save_model
from engine.files import write_json
from engine.problems import INSTRUCTION, distinct, template_arguments
from engine.ranks import all_sum, fail, random_generator, rank, setup_distributed, stop, together
from engine.rollouts import cut_groups, even_micro_batches
from engine.runs import (
    all_finite, finish_run, load_state, log_metrics, log_nonfinite, log_samples, open_run, save_or_leave,
)
from engine.sharding import whole
from eval import accuracy
from judge.answers import counts
from pages.run import draw_page
from stage4_distill import reverse_kl

# ---------------------------------------------------------------- equations


def group_advantages(rewards: Tensor, group_size: int, eps: float = 1e-4, baseline: bool = True) -> Tensor:
    """Standardise each reward within its prompt's group (equation 2).  (B,) -> (B,), dimensionless.

    The rollouts of one prompt are adjacent.  A group whose rewards are all equal prefers nothing:
    its advantages are exactly 0, and so is its gradient: `main` leaves it out of the passes, but not of the token mean.
    Without the baseline a right answer pulls and a wrong one does nothing; a group of right answers alone pulls by 1/ε.
    """
    groups = rewards.float().view(-1, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    if not baseline:
        centred = groups
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
        return mask / max(num_tokens, 1)
    return mask / mask.sum(1, keepdim=True).clamp(min=1) / max(num_sequences, 1)


# ---------------------------------------------------------------- rollouts


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


def stop_if_nothing_is_learnt(recent: list[dict], args, step: int) -> None:
    """So many rollout batches in a row nearly all cut off and without a single mixed group: the gradient is zero."""
    if 0 < args.give_up_after <= len(recent) and all(
            figures["truncated_fraction"] > 0.9 and figures["mixed_groups_fraction"] == 0
            for figures in recent[-args.give_up_after:]):
        stop(
            f"{args.out}: stopped at step {step}: in {args.give_up_after} rollout batches over 90% of the completions "
            f"were cut off at --max-new-tokens {args.max_new_tokens} and no group had both outcomes; nothing is learnt")


# ---------------------------------------------------------------- flags and the loop


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="to train: run, directory or hub name[@revision]")
    parser.add_argument("--problems", type=Path, nargs="+", required=True, help="training problems, with answers")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out golds that the judge cannot read")
    parser.add_argument("--out", type=Path, required=True, help="run directory to write")
    group = parser.add_argument_group("sampling")
    group.add_argument("--samples-per-prompt", type=positive, default=8, help="G, completions per prompt, 2 or more")
    group.add_argument("--max-new-tokens", type=positive, help="tokens (default: what the context leaves, up to 8192)")
    group.add_argument("--temperature", type=above_zero, default=1.0, help="of sampling and of every logprob")
    group.add_argument("--rollout-tokens", type=natural, default=0, help="of cache at a time; 0: what memory holds")
    group.add_argument("--sample-on-shards", action="store_true", help="for a model that one rank cannot hold whole")
    group.add_argument("--instruction", help=f"end of the user message (default, of chat models: {INSTRUCTION})")
    group.add_argument("--enable-thinking", action="store_true", help="passed to the chat template")
    group.add_argument("--template-args", type=template_arguments, metavar="JSON", help="more for the chat template")
    group = parser.add_argument_group("optimisation")
    group.add_argument("--max-steps", type=positive, default=500, help="optimiser steps")
    group.add_argument("--prompts-per-step", type=positive, default=128, help="per optimiser step, over all ranks")
    group.add_argument("--steps-per-rollout", type=positive, default=4, help="optimiser steps per rollout batch")
    group.add_argument("--micro-batch-size", type=positive, default=8, help="rollouts per forward pass; memory only")
    group.add_argument("--activation-checkpointing", action="store_true", help="less memory, a third more compute")
    group.add_argument("--lr", type=from_zero, default=1e-6, help="constant learning rate of AdamW")
    group.add_argument("--weight-decay", type=from_zero, default=0.1, help="of AdamW")
    group.add_argument("--max-grad-norm", type=above_zero, default=1.0, help="gradient clip")
    group.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32",
                       help="of forward and backward; weights and AdamW's state stay float32")
    group = parser.add_argument_group("objective")
    group.add_argument("--clip-low", type=share_of_one, default=0.2, help="ratio clip, downwards")
    group.add_argument("--clip-high", type=from_zero, default=0.28, help="ratio clip, upwards")
    group.add_argument("--dual-clip", type=above_zero, default=10.0, help="c: bound where the advantage is negative")
    group.add_argument("--loss-mean", choices=["token", "sequence"], default="token", help="the loss is their mean")
    group.add_argument("--kl-coef", type=from_zero, default=0.0, help="of the exact KL(policy || starting model)")
    group.add_argument("--entropy-coef", type=finite, default=0.0, help="of the entropy bonus")
    group.add_argument("--no-baseline", action="store_true", help="advantages without the group's mean taken off")
    group.add_argument("--mask-truncated", action="store_true", help="leave out what was cut off, in place of reward 0")
    group = parser.add_argument_group("run")
    group.add_argument("--give-up-after", type=natural, default=5,
                       help="stop after N rollout batches in a row that are cut off and teach nothing; 0: never")
    group.add_argument("--seed", type=natural, default=0, help="of all that is random")
    group.add_argument("--save-every", type=natural, default=20, help="optimiser steps between states; 0: never")
    group.add_argument("--eval-problems", type=Path, nargs="+", help="problems to evaluate on while training")
    group.add_argument("--eval-every", type=natural, default=0, help="optimiser steps between evaluations; 0: never")
    group.add_argument("--eval-samples", type=positive, default=4, help="completions per evaluation problem")
    group.add_argument("--allow-failed-certificate", action="store_true", help="take a parent whose certificate failed")
    group.add_argument("--overwrite", action="store_true", help="start anew in an existing --out")
    return parser.parse_args(argv)


def main(args) -> None:
    if args.samples_per_prompt < 2:
        fail(f"--samples-per-prompt {args.samples_per_prompt}: an advantage compares completions of one prompt; "
             "give 2 or more")
    if bool(args.eval_every) != bool(args.eval_problems):
        fail("--eval-every and --eval-problems go together: give both, or neither")
    if args.dual_clip <= 1:
        fail(f"--dual-clip {args.dual_clip:g}: give more than 1, else no wrong answer has its whole gradient")
    device = setup_distributed()
    problems = load_graded_problems(args.problems, args)
    eval_problems = distinct(load_graded_problems(args.eval_problems, args))
    ready = prepare(args, ["model"], problems=problems, eval_problems=eval_problems)
    tokenizer, eos_ids, (prompts, eval_prompts) = ready.tokenizer, ready.eos_ids, ready.prompts
    if not open_run(args, ready.parents, ready.inputs):
        return

    policy = load_prepared(ready, "model", args, device, trainable=True)
    reference = load_prepared(ready, "model", args, device) if args.kl_coef else None
    optimizer = torch.optim.AdamW(policy.parameters(), args.lr, (0.9, 0.95), 1e-8, args.weight_decay, fused=True)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16")
    done, progress = load_state(args.out, policy, optimizer)
    totals = {"grader_gave_up": 0, **progress["totals"]}
    recent = progress.get("recent", [])                         # figures of the last rollout batches
    bar = tqdm(initial=done, total=args.max_steps, unit="step", desc=args.out.name, disable=rank() > 0)

    for batch in range(done // args.steps_per_rollout, -(-args.max_steps // args.steps_per_rollout)):
        # sample: the prompts of several optimiser steps, shared out over the ranks
        start, first = time.perf_counter(), batch * args.steps_per_rollout + 1
        chosen = batch_indices(len(prompts), args.prompts_per_step * args.steps_per_rollout, batch, args.seed)
        rollouts, places = sample_share(
            policy, tokenizer, [prompts[i] for i in chosen], args, eos_ids, "rollouts", batch)
        sample_seconds = time.perf_counter() - start

        # score
        gave_up_before = counts["timeout"] + counts["failed"]
        golds = [problems[chosen[place]].answer for place in places]
        rollouts.rewards = together(grade_rollouts, rollouts, golds, tokenizer)
        rollouts.advantages = group_advantages(rollouts.rewards, args.samples_per_prompt, baseline=not args.no_baseline)
        recent = [*recent, rollout_figures(rollouts, args)][-max(args.give_up_after, 1):]
        stop_if_nothing_is_learnt(recent, args, first)
        log_samples(args.out, first, tokenizer, rollouts)

        # count: one denominator a step, of every rank, every micro-batch and the groups that are left out below
        if args.mask_truncated:                                 # out of the loss and out of the token count
            rollouts.completion_mask &= rollouts.finished[:, None]
        parts = cut_groups(rollouts, places, len(chosen), args.samples_per_prompt, args.prompts_per_step,
                           random_generator(args.seed, "groups", batch))[:args.max_steps - first + 1]
        sizes = [all_sum(part.completion_mask.sum(), part.completion_mask.any(1).sum()) for part in parts]
        totals["labels_seen"] += len(chosen)
        totals["tokens_sampled"] += recent[-1]["sampled_tokens"]
        totals["grader_gave_up"] += int(all_sum(counts["timeout"] + counts["failed"] - gave_up_before)[0])

        # update
        if not (args.kl_coef or args.entropy_coef):             # without advantage no gradient: no need to compute it
            parts = [part.select(part.advantages.nonzero()[:, 0]) for part in parts]
        micro_batches_of = [even_micro_batches(part, args.micro_batch_size) for part in parts]
        with torch.no_grad(), autocast:                         # what the later steps will have moved away from
            for micro in sum(micro_batches_of[1:], []):
                micro.old_logprobs = completion_logprobs(policy, micro, args.temperature)
        for step, (micro_batches, (num_tokens, num_sequences)) in enumerate(zip(micro_batches_of, sizes), first):
            losses, clipped_sum = [], 0.0
            for micro in micro_batches:
                with autocast:
                    if args.entropy_coef:
                        logprobs, entropy = completion_logprobs(policy, micro, args.temperature, entropy=True)
                    else:
                        logprobs, entropy = completion_logprobs(policy, micro, args.temperature), 0.0   # (B, C) nats
                    if step == first:                           # the policy is still the one that sampled: ratio 1
                        micro.old_logprobs = logprobs.detach()
                    objective = clipped_surrogate(logprobs, micro.old_logprobs, micro.advantages,
                                                  args.clip_low, args.clip_high, args.dual_clip)
                    weights = token_weights(micro.completion_mask, args.loss_mean, num_tokens, num_sequences)
                    loss = -((objective + args.entropy_coef * entropy) * weights).sum()
                    if args.kl_coef:                            # exact over the vocabulary
                        loss = loss + completion_divergence(policy, reference, micro, reverse_kl, args.temperature,
                                                            args.kl_coef * weights)[0]
                loss.backward()
                losses.append(loss.detach())
                ratio, sign = (logprobs - micro.old_logprobs).detach().exp(), micro.advantages.sign()[:, None]
                clipped = (ratio < 1 - args.clip_low) & (sign < 0) | (ratio > 1 + args.clip_high) & (sign > 0)
                clipped_sum += (clipped & micro.completion_mask).sum()
            grad_norm = float(whole(torch.nn.utils.clip_grad_norm_(policy.parameters(), args.max_grad_norm)))
            if all_finite(grad_norm, losses):                   # on every rank
                optimizer.step()
            else:
                totals["nonfinite_steps"] += 1
                log_nonfinite(args.out, step, tokenizer, micro_batches, losses)
            optimizer.zero_grad()

            # log
            seconds = time.perf_counter() - start
            totals["optimiser_steps"], totals["seconds"] = step, totals["seconds"] + seconds
            if step == first:
                recent[-1] |= sampler_gap([micro.old_logprobs for micro in micro_batches], micro_batches)
            loss, clipped = all_sum(sum(losses), clipped_sum)
            figures = {**recent[-1], "loss": loss, "grad_norm": grad_norm, "num_tokens": int(num_tokens),
                       "clipped_fraction": clipped / max(num_tokens, 1), "tokens_per_second": num_tokens / seconds,
                       "sample_seconds": sample_seconds, "train_seconds": seconds - sample_seconds, **totals}
            if args.eval_every and (step % args.eval_every == 0 or step == args.max_steps):
                figures["eval_accuracy"] = accuracy(policy, tokenizer, eval_problems, eval_prompts, args, eos_ids)
            log_metrics(args.out, step, **figures)
            bar.set_postfix_str(f"reward {figures['reward_mean']:.3f}, mixed {figures['mixed_groups_fraction']:.2f}, "
                                f"{figures['tokens_per_second']:.0f} tokens/s", refresh=False)
            bar.update()
            start, sample_seconds = time.perf_counter(), 0.0

        # save
        save_or_leave(args, step, policy, optimizer, {"totals": totals, "recent": recent}, args.steps_per_rollout)

    save_model(policy, tokenizer, eos_ids, args.out / "model")
    if rank() == 0:
        seen = {problems[i].id for i in trained_indices(len(problems), args)}
        write_json(args.out / "trained_problems.json", sorted(seen))
    finish_run(args.out, **totals)
    draw_page(args.out)


def trained_indices(num_problems: int, args) -> set[int]:
    """The problems whose labels this run has seen; stage 2 certifies on others."""
    steps = -(-args.max_steps // args.steps_per_rollout) * args.steps_per_rollout       # whole rollout batches
    return set(batch_indices(num_problems, args.prompts_per_step * steps, 0, args.seed))


if __name__ == "__main__":
    main(parse_args())
