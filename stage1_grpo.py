"""Stage 1: GRPO with a verifiable 0/1 reward, on any causal LM.

Spend the sparse reward where exploration is productive: on the larger teacher.  The same script trains the
student alone (direct GRPO, the baseline to beat) and, on held-out labels, the bridged student.

    1. r(x, y) = 1 if the final answer in y is equivalent to the gold answer, else 0     common.grade_rollouts
    2. A_i = (r_i − mean(r)) / (std(r) + ε) within the completions of one prompt         group_advantages
    3. L = −(1/N) Σ_i Σ_t min(ρ A_i, clip(ρ, 1 − 0.2, 1 + 0.28) A_i),  ρ = π(y_t|s_t) / π_old(y_t|s_t),
       N = all completion tokens of the optimiser step, over every rank; where A_i < 0 the term is at least
       c·A_i, c = 10 (dual clip)                                                         clipped_surrogate

Departures from the paper: none in the loss.  Off by default, there to be tried: --loss-mean sequence,
--kl-coef (exact KL to the model that training began from), --entropy-coef, --no-baseline, --mask-truncated.

    python stage1_grpo.py --model toy/teacher --problems toy/train.jsonl --out runs/teacher
    torchrun --nproc_per_node=8 stage1_grpo.py --model Qwen/Qwen3-8B --problems train.jsonl --out runs/teacher

Reads a checkpoint directory and problems; writes a run directory, whose model/ the next stages read.
"""
import argparse
from pathlib import Path

import torch
from torch import Tensor

from common import (
    FlagParser, accuracy, batch_indices, completion_divergence, completion_logprobs, grade_rollouts,
    load_eval_problems, load_graded_problems, number, positive, sampler_gap,
)
from engine.ranks import all_sum, random_generator, setup_distributed, stop
from engine.rollouts import cut_groups, even_micro_batches
from engine.runs import open_run
from pages.run import draw_page
from stage3_kl import kl

# ---------------------------------------------------------------- equations


def group_advantages(rewards: Tensor, group_size: int, eps: float = 1e-4, baseline: bool = True) -> Tensor:
    """Standardise each reward within its prompt's group (equation 2).  (B,) -> (B,), dimensionless.

    The rollouts of one prompt are adjacent.  A group whose rewards are all equal prefers nothing: its
    advantages are exactly 0, and so is its gradient: `main` leaves it out of the passes, but not of the token
    mean.  Without the baseline a right answer pulls and a wrong one does nothing; a group of right answers
    alone pulls by 1/ε.
    """
    groups = rewards.float().view(-1, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    if not baseline:
        centred = groups
    return (centred / (groups.std(dim=1, keepdim=True, correction=0) + eps)).view(-1)


def clipped_surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor,
                      clip_low: float, clip_high: float, dual_clip: float) -> tuple[Tensor, Tensor]:
    """The objective of each token (equation 3), to be maximised, and whether the clip took its gradient.

    2 x (B, C) nats, (B,) -> (B, C), (B, C) bool.  The lower clip is tighter than the upper one: a rare right
    token may grow faster than others may shrink.
    """
    ratio = (logprobs - old_logprobs).exp()                     # 1 on the first pass
    advantage = advantages[:, None]                             # one per rollout, over its tokens
    objective = torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)
    clipped = (ratio < 1 - clip_low) & (advantage < 0) | (ratio > 1 + clip_high) & (advantage > 0)
    return torch.where(advantage < 0, torch.maximum(objective, dual_clip * advantage), objective), clipped


def token_weights(mask: Tensor, loss_mean: str, num_tokens: float, num_sequences: float) -> Tensor:
    """What each token weighs in the loss.  (B, C) -> (B, C); over a step and all ranks they sum to 1.

    token mean: every token weighs the same, long completions more (the default).  sequence mean: the reverse.
    """
    if loss_mean == "token":
        return mask / max(num_tokens, 1)
    return mask / mask.sum(1, keepdim=True).clamp(min=1) / max(num_sequences, 1)


# ---------------------------------------------------------------- rollouts


def rollout_figures(rollouts, group_size: int) -> dict:
    """What the log says of a rollout batch, over all ranks."""
    groups = rollouts.rewards.view(-1, group_size)
    mixed = (groups.amax(1) != groups.amin(1)).sum() if len(groups) else 0
    count, right, cut, tokens, num_groups, num_mixed, surprise = all_sum(
        len(rollouts), rollouts.rewards.sum(), (~rollouts.finished).sum(), rollouts.completion_mask.sum(),
        len(groups), mixed, -rollouts.sampler_logprobs.sum())
    return {"reward_mean": right / count, "mixed_groups_fraction": num_mixed / num_groups,
            "truncated_fraction": cut / count, "mean_length_tokens": tokens / count,
            "entropy_estimate_nats": surprise / tokens, "sampled_tokens": int(tokens)}


def stop_if_nothing_is_learnt(recent: list[dict], run, step: int) -> None:
    """Rollout batches in a row were nearly all cut off and had no mixed group: the gradient is zero."""
    count = run.args.give_up_after
    if 0 < count <= len(recent) and all(
            figures["truncated_fraction"] > 0.9 and figures["mixed_groups_fraction"] == 0
            for figures in recent[-count:]):
        stop(f"{run.out}: stopped at step {step}: in {count} rollout batches over 90% of the completions "
             f"were cut off at --max-new-tokens {run.max_new_tokens} and no group had both outcomes; nothing "
             "is learnt")


def trained_indices(num_problems: int, args) -> set[int]:
    """The problems whose labels this run has seen; stage 2 certifies on others."""
    steps = -(-args.max_steps // args.steps_per_rollout) * args.steps_per_rollout   # whole rollout batches
    return set(batch_indices(num_problems, args.prompts_per_step * steps, 0, args.seed))


# ---------------------------------------------------------------- flags and the loop


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="to train: run, directory or hub name[@revision]")
    add("--problems", type=Path, nargs="+", required=True, help="training problems, with answers")
    add = parser.sampling_flags().add_argument
    add("--samples-per-prompt", type=number(int, least=2), default=8, help="G, completions per prompt")
    add = parser.optimisation_flags(max_steps=500).add_argument
    add("--prompts-per-step", type=positive, default=128, help="per optimiser step, over all ranks")
    add("--steps-per-rollout", type=positive, default=4, help="optimiser steps per rollout batch")
    add = parser.add_argument_group("objective").add_argument
    add("--clip-low", type=number(float, 0, most=1), default=0.2, help="ratio clip, downwards")
    add("--clip-high", type=number(float, 0), default=0.28, help="ratio clip, upwards")
    add("--dual-clip", type=number(float, above=1), default=10.0,
        help="c: bound where the advantage is negative; at 1 no wrong answer had its whole gradient")
    add("--loss-mean", choices=["token", "sequence"], default="token", help="the loss is their mean")
    add("--kl-coef", type=number(float, 0), default=0.0, help="of exact KL(policy || starting model)")
    add("--entropy-coef", type=number(float), default=0.0, help="of the entropy bonus")
    add("--no-baseline", action="store_true", help="advantages without the group's mean taken off")
    add("--mask-truncated", action="store_true", help="leave out what was cut off, in place of reward 0")
    add = parser.training_run_flags().add_argument
    add("--give-up-after", type=number(int, least=0), default=5,
        help="stop after N rollout batches in a row that are cut off and teach nothing; 0: never")
    return parser.parse_args(argv)


def main(args) -> None:
    setup_distributed()
    problems = load_graded_problems(args.problems, args)
    run = open_run(args, ["model"], problems=problems, eval_problems=load_eval_problems(args))
    if run.is_done:
        return
    prompts = run.prompts["problems"]
    policy = run.load("model", trainable=True)
    reference = run.load("model") if args.kl_coef else None
    optimizer = torch.optim.AdamW(
        policy.parameters(), args.lr, betas=(0.9, 0.95), weight_decay=args.weight_decay, fused=True)
    autocast = torch.autocast(run.device.type, torch.bfloat16, enabled=args.dtype == "bfloat16")
    done, progress = run.resume(policy, optimizer)
    recent = progress.get("recent", [])                         # figures of the last rollout batches

    for batch in range(done // args.steps_per_rollout, -(-args.max_steps // args.steps_per_rollout)):
        # sample: the prompts of several optimiser steps, shared out over the ranks
        run.start_clock()
        first = batch * args.steps_per_rollout + 1
        chosen = batch_indices(len(prompts), args.prompts_per_step * args.steps_per_rollout, batch, args.seed)
        rollouts = run.sample(policy, [prompts[i] for i in chosen], "rollouts", batch)

        # score
        golds = [problems[chosen[place]].answer for place in rollouts.prompt_index.tolist()]
        rollouts.rewards, gave_up = grade_rollouts(rollouts, golds, run.tokenizer)
        rollouts.advantages = group_advantages(
            rollouts.rewards, args.samples_per_prompt, baseline=not args.no_baseline)
        recent = [*recent, rollout_figures(rollouts, args.samples_per_prompt)][-max(args.give_up_after, 1):]
        stop_if_nothing_is_learnt(recent, run, first)
        run.log_samples(first, rollouts)

        # count: one denominator a step: of every rank, micro-batch and group, also those left out below
        if args.mask_truncated:                                 # out of the loss and out of the token count
            rollouts.completion_mask &= rollouts.finished[:, None]
        parts = cut_groups(rollouts, len(chosen), args.prompts_per_step,
                           random_generator(args.seed, "groups", batch))[:args.max_steps - first + 1]
        sizes = [all_sum(part.completion_mask.sum(), part.completion_mask.any(1).sum()) for part in parts]
        run.totals.update(labels_seen=len(chosen), tokens_sampled=recent[-1]["sampled_tokens"],
                          grader_gave_up=int(all_sum(gave_up)[0]))

        # update
        if not (args.kl_coef or args.entropy_coef):             # without an advantage there is no gradient
            parts = [part.select(part.advantages.nonzero()[:, 0]) for part in parts]
        micro_batches_of = [even_micro_batches(part, args.micro_batch_size) for part in parts]
        with torch.no_grad(), autocast:                         # before the first step moves the policy
            for micro in sum(micro_batches_of[1:], []):
                micro.old_logprobs = completion_logprobs(policy, micro, args.temperature)
        for step, (micro_batches, size) in enumerate(zip(micro_batches_of, sizes), first):
            (num_tokens, num_sequences), losses, clipped_sum = size, [], 0.0
            for micro in micro_batches:
                with autocast:
                    logprobs, entropy = completion_logprobs(policy, micro, args.temperature, entropy=True) \
                        if args.entropy_coef else (completion_logprobs(policy, micro, args.temperature), 0.0)
                    if step == first:                           # the policy is the one that sampled: ratio 1
                        micro.old_logprobs = logprobs.detach()
                    objective, clipped = clipped_surrogate(logprobs, micro.old_logprobs, micro.advantages,
                                                           args.clip_low, args.clip_high, args.dual_clip)
                    weights = token_weights(micro.completion_mask, args.loss_mean, num_tokens, num_sequences)
                    loss = -((objective + args.entropy_coef * entropy) * weights).sum()
                    if args.kl_coef:                            # exact over the vocabulary
                        loss = loss + completion_divergence(
                            policy, reference, micro, kl, args.temperature, args.kl_coef * weights)[0]
                loss.backward()
                losses.append(loss.detach())
                clipped_sum += (clipped & micro.completion_mask).sum()
            grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), args.max_grad_norm)
            if run.all_finite(step, grad_norm, micro_batches, losses):          # on every rank
                optimizer.step()
            optimizer.zero_grad()

            # log
            if step == first:
                recent[-1] |= sampler_gap([micro.old_logprobs for micro in micro_batches], micro_batches)
            loss, clipped = all_sum(sum(losses), clipped_sum)
            run.log(step, **recent[-1], loss=loss, grad_norm=grad_norm, num_tokens=int(num_tokens),
                    clipped_fraction=clipped / max(num_tokens, 1), evaluate=lambda: accuracy(policy, run),
                    bar="reward {reward_mean:.3f}, mixed {mixed_groups_fraction:.2f}".format(**recent[-1]))

        # save
        run.save_or_leave(step, policy, optimizer, args.steps_per_rollout, recent=recent)

    seen = {problems[i].id for i in trained_indices(len(problems), args)}
    run.finish(policy, trained_problems=sorted(seen))
    draw_page(run.out)


if __name__ == "__main__":
    main(parse_args())
