"""Stage 4: on-policy distillation.  The student samples, the shaped teacher scores every token: dense reward.

    8. L = (1/N) Σ KL(π_S(·|s_t) ‖ π_T*(·|s_t)), exact over the vocabulary, y ~ π_S         reverse_kl
       The prefix is a constant: no gradient flows through sampling.
    9. ∇KL(π ‖ π_T*) = −E_{y~π_old}[∇ log π(y) (log π_T*(y) − log π_old(y))] at π = π_old   sampled_token_loss
       So the sampled-token form is policy gradient with a per-token advantage, log π_T* − log π_old: a local
       trust-region step on the teacher's implicit reward.

Departures from the paper: --divergence forward and jsd, --estimator sampled; the default is equation 8.
No labels are seen.

    python stage4_distill.py --student runs/bridge --teacher runs/teacher --problems toy/train.jsonl \
        --out runs/student
    torchrun --nproc_per_node=8 stage4_distill.py …

Reads two models (the teacher may be larger than the student) and problems; writes a run directory.
"""
import argparse
from pathlib import Path

import torch
from torch import Tensor

from common import (
    FlagParser, accuracy, batch_indices, completion_divergence, completion_logprobs, load_eval_problems,
    positive, sampler_gap,
)
from engine.problems import load_problems
from engine.ranks import all_sum, setup_distributed
from engine.rollouts import even_micro_batches
from engine.runs import open_run
from pages.run import draw_page
from stage3_kl import forward_kl, kl

# ---------------------------------------------------------------- equations


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(student || teacher), exact over the vocabulary (equation 8).  2 x (B, C, V) -> (B, C), nats."""
    return kl(student_logits, teacher_logits)


def jsd(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Jensen–Shannon: the mean KL of both to their mixture.  2 x (B, C, V) -> (B, C), nats, <= log 2."""
    student = student_logits.float().log_softmax(dim=-1)
    teacher = teacher_logits.float().log_softmax(dim=-1)
    mixture = torch.logaddexp(student, teacher) - torch.log(torch.tensor(2.0))
    of_student = (student.exp() * (student - mixture)).sum(-1)
    of_teacher = (teacher.exp() * (teacher - mixture)).sum(-1)
    return 0.5 * (of_student + of_teacher)


def sampled_token_loss(logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """The sampled-token form (equation 9): policy gradient on log π_T* − log π_old.  2 x (B, C) -> (B, C).

    Its value estimates the reverse KL and its gradient is the reverse KL's in expectation.  The KL estimate
    itself, log π − log π_T*, would be wrong as a loss: its gradient is zero in expectation.
    """
    advantage = teacher_logprobs - logprobs.detach()
    ratio = (logprobs - logprobs.detach()).exp()                # 1, with the gradient of log π
    return -ratio * advantage


DIVERGENCES = {"reverse": reverse_kl, "forward": forward_kl, "jsd": jsd}

# ---------------------------------------------------------------- flags and the loop


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    add = parser.add_argument
    add("--student", type=Path, required=True, help="bridged student: run, directory or hub name")
    add("--teacher", type=Path, required=True, help="shaped teacher: run, directory or hub name")
    add("--problems", type=Path, nargs="+", required=True, help="problems; answers are not needed")
    add = parser.sampling_flags().add_argument
    add("--samples-per-prompt", type=positive, default=1, help="completions per prompt")
    add = parser.add_argument_group("objective").add_argument
    add("--estimator", choices=["exact", "sampled"], default="exact",
        help="exact over the vocabulary (equation 8), or of the sampled token alone (equation 9)")
    add("--divergence", choices=list(DIVERGENCES), default="reverse", help="of the exact estimator")
    add = parser.optimisation_flags(max_steps=500).add_argument
    add("--prompts-per-step", type=positive, default=64, help="per optimiser step, over all ranks")
    add("--offload-teacher", action="store_true", help="keep it on the CPU while the student samples")
    parser.training_run_flags()
    args = parser.parse_args(argv)
    if args.estimator == "sampled" and args.divergence != "reverse":
        parser.error(f"--estimator sampled is of the reverse KL, not of --divergence {args.divergence}")
    return args


def main(args) -> None:
    setup_distributed()
    problems = load_problems(args.problems, need_answers=False)
    run = open_run(args, ["student", "teacher"], problems=problems, eval_problems=load_eval_problems(args))
    if run.is_done:
        return
    prompts = run.prompts["problems"]
    student, teacher = run.load("student", trainable=True), run.load("teacher")
    optimizer = torch.optim.AdamW(
        student.parameters(), args.lr, betas=(0.9, 0.95), weight_decay=args.weight_decay, fused=True)
    autocast = torch.autocast(run.device.type, torch.bfloat16, enabled=args.dtype == "bfloat16")
    done, _ = run.resume(student, optimizer)

    for step in range(done + 1, args.max_steps + 1):
        # sample
        run.start_clock()
        chosen = batch_indices(len(prompts), args.prompts_per_step, step - 1, args.seed)
        if args.offload_teacher:
            teacher.to("cpu")
        rollouts = run.sample(student, [prompts[i] for i in chosen], "rollouts", step)
        teacher.to(run.device)
        if step % 10 == 1:
            run.log_samples(step, rollouts)

        # score: token by token, in the update, where both sides' logits are at hand
        micro_batches = even_micro_batches(rollouts, args.micro_batch_size)

        # count: one denominator, of every rank and every micro-batch
        num_tokens, num_rollouts, num_cut = all_sum(
            rollouts.completion_mask.sum(), len(rollouts), (~rollouts.finished).sum())
        run.totals.update(tokens_sampled=int(num_tokens))

        # update
        losses, reverse_kl_sum, logprobs_of = [], 0.0, []
        for micro in micro_batches:
            weights = micro.completion_mask / num_tokens
            with autocast:
                if args.estimator == "sampled":
                    with torch.no_grad():
                        teacher_logprobs = completion_logprobs(teacher, micro, args.temperature)
                    logprobs = completion_logprobs(student, micro, args.temperature)
                    reverse_kl_nats = sampled_token_loss(logprobs, teacher_logprobs)    # an estimate of it
                    loss = (reverse_kl_nats * weights).sum()
                else:                                   # Σ weights · divergence, without the (B, C, V) logits
                    loss, reverse_kl_nats, logprobs = completion_divergence(
                        student, teacher, micro, DIVERGENCES[args.divergence], args.temperature, weights)
                if args.divergence != "reverse":
                    with torch.no_grad():                                           # for the log
                        _, reverse_kl_nats, _ = completion_divergence(
                            student, teacher, micro, reverse_kl, args.temperature)
            loss.backward()
            losses.append(loss.detach())
            logprobs_of.append(logprobs.detach())
            reverse_kl_sum += (reverse_kl_nats.detach() * micro.completion_mask).sum()
        grad_norm = torch.nn.utils.clip_grad_norm_(student.parameters(), args.max_grad_norm)
        if run.all_finite(step, grad_norm, micro_batches, losses):              # on every rank
            optimizer.step()
        optimizer.zero_grad()

        # log
        loss, reverse_kl_sum = all_sum(sum(losses), reverse_kl_sum)
        reverse_kl_nats = reverse_kl_sum / num_tokens
        if step == 1:                                   # C2 as this stage finds it, before any update
            run.log(0, reverse_kl_nats=reverse_kl_nats)
        run.log(step, loss=loss, reverse_kl_nats=reverse_kl_nats, grad_norm=grad_norm,
                num_tokens=int(num_tokens), truncated_fraction=num_cut / num_rollouts,
                mean_length_tokens=num_tokens / num_rollouts, **sampler_gap(logprobs_of, micro_batches),
                evaluate=lambda: accuracy(student, run), bar=f"reverse KL {reverse_kl_nats:.4f} nats")

        # save
        run.save_or_leave(step, student, optimizer)

    run.finish(student)
    draw_page(run.out)


if __name__ == "__main__":
    main(parse_args())
