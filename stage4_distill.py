"""Stage 4: on-policy distillation.  The student samples, the shaped teacher scores every token: dense reward.

    8. L = (1/N) Σ KL(π_S(·|s_t) ‖ π_T*(·|s_t)), exact over the vocabulary, y ~ π_S            reverse_kl
       The prefix is a constant: no gradient flows through sampling.
    9. At π = π_old: ∇KL(π ‖ π_T*) = −E_{y~π_old}[∇ log π(y) (log π_T*(y) − log π_old(y))]   sampled_token_loss
       So the sampled-token form is policy gradient with a per-token advantage, log π_T* − log π_old: a local
       trust-region step on the teacher's implicit reward.

Departures from the paper: --divergence forward and jsd, --estimator sampled; the default is equation 8.
No labels are seen.

    python stage4_distill.py --student runs/bridge --teacher runs/teacher --problems toy/train.jsonl --out runs/student
    torchrun --nproc_per_node=8 stage4_distill.py …

Reads two models (the teacher may be larger than the student) and problems; writes a run directory.
"""
import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from common import (
    FlagParser, above_zero, batch_indices, completion_divergence, completion_logprobs, from_zero, load_graded_problems,
    load_prepared, natural, positive, prepare, sample_share, sampler_gap,
)
from engine.checkpoints import save_model
from engine.problems import INSTRUCTION, distinct, load_problems, template_arguments
from engine.ranks import all_sum, fail, rank, setup_distributed
from engine.rollouts import even_micro_batches
from engine.runs import (
    all_finite, finish_run, load_state, log_metrics, log_nonfinite, log_samples, open_run, save_or_leave,
)
from engine.sharding import whole
from eval import accuracy
from pages.run import draw_page
from stage3_kl import forward_kl

# ---------------------------------------------------------------- equations


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(student || teacher) at each position, exact over the vocabulary (equation 8).  2 x (B, C, V) -> (B, C), nats.

    float32 is not optional: near convergence bf16 makes four tokens in ten negative.
    """
    student = student_logits.float().log_softmax(dim=-1)
    teacher = teacher_logits.float().log_softmax(dim=-1)
    p, q = student.exp(), teacher.exp()
    # − p + q sums to 0, but where the two are near it cancels what rounding both normalisers does to the rest: 5e-7
    # nats, which is 1% of a KL that matters.
    return (p * (student - teacher) - p + q).sum(dim=-1)


def jsd(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Jensen–Shannon divergence: the mean KL of both to their mixture.  2 x (B, C, V) -> (B, C), nats, <= log 2."""
    student = student_logits.float().log_softmax(dim=-1)
    teacher = teacher_logits.float().log_softmax(dim=-1)
    mixture = torch.logaddexp(student, teacher) - torch.log(torch.tensor(2.0))
    return 0.5 * ((student.exp() * (student - mixture)).sum(-1) + (teacher.exp() * (teacher - mixture)).sum(-1))


def sampled_token_loss(logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """The sampled-token form (equation 9): policy gradient on log π_T* − log π_old.  2 x (B, C) nats -> (B, C).

    Its value estimates the reverse KL and its gradient is the reverse KL's in expectation.  The KL estimate itself,
    log π − log π_T*, would be wrong as a loss: its gradient is zero in expectation.
    """
    advantage = teacher_logprobs - logprobs.detach()
    ratio = (logprobs - logprobs.detach()).exp()                # 1, with the gradient of log π
    return -ratio * advantage


DIVERGENCES = {"reverse": reverse_kl, "forward": forward_kl, "jsd": jsd}

# ---------------------------------------------------------------- flags and the loop


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    parser.add_argument("--student", type=Path, required=True, help="bridged student: run, directory or hub name")
    parser.add_argument("--teacher", type=Path, required=True, help="shaped teacher: run, directory or hub name")
    parser.add_argument("--problems", type=Path, nargs="+", required=True, help="problems; answers are not needed")
    parser.add_argument("--out", type=Path, required=True, help="run directory to write")
    group = parser.add_argument_group("sampling")
    group.add_argument("--samples-per-prompt", type=positive, default=1, help="completions per prompt")
    group.add_argument("--max-new-tokens", type=positive, help="tokens (default: what the context leaves, up to 8192)")
    group.add_argument("--temperature", type=above_zero, default=1.0, help="of sampling and of every logit")
    group.add_argument("--rollout-tokens", type=natural, default=0, help="of cache at a time; 0: what memory holds")
    group.add_argument("--sample-on-shards", action="store_true", help="for a model that one rank cannot hold whole")
    group.add_argument("--instruction", help=f"end of the user message (default, of chat models: {INSTRUCTION})")
    group.add_argument("--enable-thinking", action="store_true", help="passed to the chat template")
    group.add_argument("--template-args", type=template_arguments, metavar="JSON", help="more for the chat template")
    group = parser.add_argument_group("objective")
    group.add_argument("--estimator", choices=["exact", "sampled"], default="exact",
                       help="exact over the vocabulary (equation 8), or of the sampled token alone (equation 9)")
    group.add_argument("--divergence", choices=list(DIVERGENCES), default="reverse", help="of the exact estimator")
    group = parser.add_argument_group("optimisation")
    group.add_argument("--max-steps", type=positive, default=500, help="optimiser steps")
    group.add_argument("--prompts-per-step", type=positive, default=64, help="per optimiser step, over all ranks")
    group.add_argument("--micro-batch-size", type=positive, default=8, help="rollouts per forward pass; memory only")
    group.add_argument("--activation-checkpointing", action="store_true", help="less memory, a third more compute")
    group.add_argument("--offload-teacher", action="store_true", help="keep it on the CPU while the student samples")
    group.add_argument("--lr", type=from_zero, default=1e-6, help="constant learning rate of AdamW")
    group.add_argument("--weight-decay", type=from_zero, default=0.1, help="of AdamW")
    group.add_argument("--max-grad-norm", type=above_zero, default=1.0, help="gradient clip")
    group.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32",
                       help="of compute and of the teacher; the student's weights and AdamW's state stay float32")
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=natural, default=0, help="of all that is random")
    group.add_argument("--save-every", type=natural, default=20, help="optimiser steps between states; 0: never")
    group.add_argument("--eval-problems", type=Path, nargs="+", help="problems to evaluate on while training")
    group.add_argument("--skip-unreadable", action="store_true", help="leave out golds that the judge cannot read")
    group.add_argument("--eval-every", type=natural, default=0, help="optimiser steps between evaluations; 0: never")
    group.add_argument("--eval-samples", type=positive, default=4, help="completions per evaluation problem")
    group.add_argument("--allow-failed-certificate", action="store_true", help="take a parent whose certificate failed")
    group.add_argument("--overwrite", action="store_true", help="start anew in an existing --out")
    return parser.parse_args(argv)


def main(args) -> None:
    if args.estimator == "sampled" and args.divergence != "reverse":
        fail(f"--estimator sampled is a form of the reverse KL: take exact with --divergence {args.divergence}")
    if bool(args.eval_every) != bool(args.eval_problems):
        fail("--eval-every and --eval-problems go together: give both, or neither")
    device = setup_distributed()
    problems = load_problems(args.problems, need_answers=False)
    eval_problems = distinct(load_graded_problems(args.eval_problems, args))
    ready = prepare(args, ["student", "teacher"], problems=problems, eval_problems=eval_problems)
    tokenizer, eos_ids, (prompts, eval_prompts) = ready.tokenizer, ready.eos_ids, ready.prompts
    if not open_run(args, ready.parents, ready.inputs):
        return

    student = load_prepared(ready, "student", args, device, trainable=True)
    teacher = load_prepared(ready, "teacher", args, device)
    optimizer = torch.optim.AdamW(student.parameters(), args.lr, (0.9, 0.95), 1e-8, args.weight_decay, fused=True)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16")
    done, progress = load_state(args.out, student, optimizer)
    totals = progress["totals"]

    bar = tqdm(range(done + 1, args.max_steps + 1), initial=done, total=args.max_steps, unit="step",
               desc=args.out.name, disable=rank() > 0)
    for step in bar:
        # sample
        start = time.perf_counter()
        chosen = batch_indices(len(prompts), args.prompts_per_step, step - 1, args.seed)
        if args.offload_teacher:
            teacher.to("cpu")
        rollouts, _ = sample_share(student, tokenizer, [prompts[i] for i in chosen], args, eos_ids, "rollouts", step)
        teacher.to(device)
        sample_seconds = time.perf_counter() - start
        if step % 10 == 1:
            log_samples(args.out, step, tokenizer, rollouts)

        # score: token by token, in the update, where both sides' logits are at hand
        micro_batches = even_micro_batches(rollouts, args.micro_batch_size)

        # count: one denominator, of every rank and every micro-batch
        num_tokens, num_rollouts, num_cut = all_sum(
            rollouts.completion_mask.sum(), len(rollouts), (~rollouts.finished).sum())

        # update
        losses, reverse_kl_sum, logprobs_of = [], 0.0, []
        for micro in micro_batches:
            weights = micro.completion_mask / num_tokens
            with autocast:
                if args.estimator == "sampled":
                    with torch.no_grad():
                        teacher_logprobs = completion_logprobs(teacher, micro, args.temperature)
                    logprobs = completion_logprobs(student, micro, args.temperature)
                    reverse_kl_nats = sampled_token_loss(logprobs, teacher_logprobs)                # an estimate of it
                    loss = (reverse_kl_nats * weights).sum()
                else:                                   # Σ weights · divergence, without the (B, C, V) logits
                    loss, reverse_kl_nats, logprobs = completion_divergence(
                        student, teacher, micro, DIVERGENCES[args.divergence], args.temperature, weights)
                if args.divergence != "reverse":
                    with torch.no_grad():                                           # for the log
                        _, reverse_kl_nats, _ = completion_divergence(student, teacher, micro, reverse_kl,
                                                                      args.temperature)
            loss.backward()
            losses.append(loss.detach())
            logprobs_of.append(logprobs.detach())
            reverse_kl_sum += (reverse_kl_nats.detach() * micro.completion_mask).sum()
        grad_norm = float(whole(torch.nn.utils.clip_grad_norm_(student.parameters(), args.max_grad_norm)))
        if all_finite(grad_norm, losses):               # on every rank
            optimizer.step()
        else:
            totals["nonfinite_steps"] += 1
            log_nonfinite(args.out, step, tokenizer, micro_batches, losses)
        optimizer.zero_grad()

        # log
        seconds = time.perf_counter() - start
        loss, reverse_kl_sum = all_sum(sum(losses), reverse_kl_sum)
        if step == 1:                                           # C2 as this stage finds it, before any update
            log_metrics(args.out, 0, reverse_kl_nats=reverse_kl_sum / num_tokens)
        totals["optimiser_steps"], totals["seconds"] = step, totals["seconds"] + seconds
        totals["tokens_sampled"] += int(num_tokens)
        figures = {"loss": loss, "reverse_kl_nats": reverse_kl_sum / num_tokens, "grad_norm": grad_norm,
                   "num_tokens": int(num_tokens), "truncated_fraction": num_cut / num_rollouts,
                   "mean_length_tokens": num_tokens / num_rollouts, "tokens_per_second": num_tokens / seconds,
                   "sample_seconds": sample_seconds, "train_seconds": seconds - sample_seconds,
                   **sampler_gap(logprobs_of, micro_batches), **totals}
        if args.eval_every and (step % args.eval_every == 0 or step == args.max_steps):
            figures["eval_accuracy"] = accuracy(student, tokenizer, eval_problems, eval_prompts, args, eos_ids)
        log_metrics(args.out, step, **figures)
        bar.set_postfix_str(f"reverse KL {figures['reverse_kl_nats']:.4f} nats, "
                            f"{figures['tokens_per_second']:.0f} tokens/s")

        # save
        save_or_leave(args, step, student, optimizer, {"totals": totals})

    save_model(student, tokenizer, eos_ids, args.out / "model")
    finish_run(args.out, **totals)
    draw_page(args.out)


if __name__ == "__main__":
    main(parse_args())
