"""Stage 3: the bridge.  Forward KL on teacher rollouts, until the student is near the teacher.

A student far from its teacher samples what the teacher would never write; the teacher's judgement of it says little.
So the student first imitates the teacher's own rollouts, and stops when C2 says that it is near.

    6. L = (1/N) Σ KL(π_T*(·|s_t) ‖ π_S(·|s_t)), exact over the vocabulary, on teacher rollouts   forward_kl
    7. C2: mean token KL(π_S ‖ π_T*) on fresh student rollouts of held-out prompts ≤ δ            measure_c2

The two are not the same: a student that covers the teacher's every mode and more has a small forward KL on teacher
rollouts and a large reverse KL on its own.  Both are reported; C2 is decided on the second.

Departures from the paper: rollouts may carry weights (stage2_shape.py --weight); by default all weigh the same.
--estimator sampled takes the teacher's token alone, which is plain cross-entropy.

    python stage3_kl.py --student toy/student --teacher runs/teacher --rollouts runs/shape/rollouts.jsonl \
        --problems toy/heldout.jsonl --max-kl 0.3 --out runs/bridge
    torchrun --nproc_per_node=8 stage3_kl.py …

Reads two models, stage 2's rollouts and held-out prompts (no answers needed); writes a run directory with
certificate.json.  The run ends when C2 holds, or at --max-steps; stage 4 refuses it in the second case.
"""
import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common import (
    FlagParser, above_zero, batch_indices, bootstrap_interval, completion_divergence, completion_logprobs, finite,
    from_zero, load_graded_problems, load_prepared, natural, positive, prepare, sample_share,
)
from engine.checkpoints import save_model
from engine.files import write_json
from engine.problems import (
    INSTRUCTION, check_runs_prompts, digest, distinct, load_problems, read_rollouts, template_arguments,
)
from engine.ranks import all_sum, balanced_share, fail, gather_list, rank, say, setup_distributed, share
from engine.rollouts import even_micro_batches, from_rows
from engine.runs import (
    all_finite, finish_run, load_state, log_metrics, log_nonfinite, log_samples, open_run, save_or_leave,
)
from engine.sharding import whole
from eval import accuracy
from pages.card import c2_in_words
from pages.run import draw_page

# ---------------------------------------------------------------- equations


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) at each position, exact over the vocabulary (equation 6).  2 x (B, C, V) -> (B, C), nats.

    float32 is not optional: near convergence bf16 makes four tokens in ten negative.
    """
    student = student_logits.float().log_softmax(dim=-1)
    teacher = teacher_logits.float().log_softmax(dim=-1)
    p, q = teacher.exp(), student.exp()
    # − p + q sums to 0, but where the two are near it cancels what rounding both normalisers does to the rest: 5e-7
    # nats, which is 1% of a KL that matters.
    return (p * (teacher - student) - p + q).sum(dim=-1)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(student || teacher), which C2 bounds (equation 7): the same with the sides exchanged.  -> (B, C), nats."""
    return forward_kl(teacher_logits, student_logits)


@torch.no_grad()
def measure_c2(student, teacher, tokenizer, prompts, args, eos_ids: list[int], step: int, autocast) -> dict:
    """Mean token KL(student || teacher) on fresh student rollouts (equation 7), nats; its interval over prompts."""
    sums: list[tuple[int, float, int]] = []                     # of each of this rank's prompts: place, nats, tokens
    for start in range(0, len(prompts), args.rollouts_per_step):
        if args.offload_teacher:
            teacher.to("cpu")
        rollouts, places = sample_share(
            student, tokenizer, prompts[start:start + args.rollouts_per_step], args, eos_ids, "c2", step, start)
        teacher.to(student.device)
        if start == 0:
            log_samples(args.out, step, tokenizer, rollouts)
        with autocast:
            nats = sum((completion_divergence(student, teacher, micro, reverse_kl, args.temperature)[1].sum(1).tolist()
                        for micro in even_micro_batches(rollouts, args.micro_batch_size)), [])
        nats, tokens = (np.reshape(figure, (-1, args.samples_per_prompt)).sum(1).tolist()
                        for figure in (nats[:len(rollouts)], rollouts.completion_mask.sum(1).tolist()))
        sums += zip((start + place for place in places), nats, tokens)
    _, nats, tokens = np.array(sorted(sum(gather_list([sums]), []))).T
    return {"c2_reverse_kl_nats": float(nats.sum() / tokens.sum()), "c2_prompts": len(tokens),
            "c2_interval_nats": bootstrap_interval(lambda i: nats[i].sum() / tokens[i].sum(), len(tokens)),
            "c2_tokens": int(tokens.sum())}


@torch.no_grad()
def measure_forward_kl(student, teacher, rollouts, args, autocast) -> float:
    """Mean token KL(teacher || student) on teacher rollouts, nats: reported beside C2."""
    with autocast:
        nats = sum(completion_divergence(student, teacher, micro, forward_kl, args.temperature)[1].sum()
                   for micro in even_micro_batches(rollouts, args.micro_batch_size))
    nats, num_tokens = all_sum(nats, rollouts.completion_mask.sum())
    return nats / num_tokens


# ---------------------------------------------------------------- flags and the loop


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    parser.add_argument("--student", type=Path, required=True, help="to train: run, directory or hub name[@revision]")
    parser.add_argument("--teacher", type=Path, required=True, help="shaped teacher: run, directory or hub name")
    parser.add_argument("--rollouts", type=Path, required=True, help="stage 2's rollouts.jsonl")
    parser.add_argument("--problems", type=Path, nargs="+", required=True, help="held out, for C2; no answers needed")
    parser.add_argument("--max-kl", type=finite, required=True, help="δ of C2, nats per token")
    parser.add_argument("--out", type=Path, required=True, help="run directory to write")
    group = parser.add_argument_group("C2 on fresh student rollouts")
    group.add_argument("--num-certify-problems", type=positive, default=128, help="of --problems, the first N")
    group.add_argument("--samples-per-prompt", type=positive, default=1, help="completions per held-out prompt")
    group.add_argument("--max-new-tokens", type=positive, help="tokens (default: what the context leaves, up to 8192)")
    group.add_argument("--temperature", type=above_zero, default=1.0, help="of sampling and of every logit")
    group.add_argument("--rollout-tokens", type=natural, default=0, help="of cache at a time; 0: what memory holds")
    group.add_argument("--sample-on-shards", action="store_true", help="for a model that one rank cannot hold whole")
    group.add_argument("--instruction", help=f"end of the user message (default, of chat models: {INSTRUCTION})")
    group.add_argument("--enable-thinking", action="store_true", help="passed to the chat template")
    group.add_argument("--template-args", type=template_arguments, metavar="JSON", help="more for the chat template")
    group = parser.add_argument_group("optimisation")
    group.add_argument("--estimator", choices=["exact", "sampled"], default="exact", help="equation 6 or cross-entropy")
    group.add_argument("--max-steps", type=positive, default=200, help="optimiser steps at most")
    group.add_argument("--rollouts-per-step", type=positive, default=64, help="per optimiser step, over all ranks")
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
    group.add_argument("--eval-every", type=natural, default=5, help="steps between measurements of C2; 0: at the end")
    group.add_argument("--eval-samples", type=positive, default=4, help="completions per evaluation problem")
    group.add_argument("--allow-failed-certificate", action="store_true", help="take a parent whose certificate failed")
    group.add_argument("--overwrite", action="store_true", help="start anew in an existing --out")
    return parser.parse_args(argv)


def main(args) -> None:
    device = setup_distributed()
    problems = load_problems(args.problems, need_answers=False)[:args.num_certify_problems]
    eval_problems = distinct(load_graded_problems(args.eval_problems, args))
    ready = prepare(args, ["student", "teacher"], problems=problems, eval_problems=eval_problems)
    tokenizer, eos_ids, (prompts, eval_prompts) = ready.tokenizer, ready.eos_ids, ready.prompts
    rows = read_rollouts(args, ready)
    check_runs_prompts(tokenizer, args, {"rollouts": {"run": args.rollouts.parent}})
    if not open_run(args, ready.parents, {**ready.inputs, "rollouts": {str(args.rollouts): digest(rows)}}):
        return

    student = load_prepared(ready, "student", args, device, trainable=True)
    teacher = load_prepared(ready, "teacher", args, device)
    optimizer = torch.optim.AdamW(student.parameters(), args.lr, (0.9, 0.95), 1e-8, args.weight_decay, fused=True)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16")
    step, progress = load_state(args.out, student, optimizer)
    totals = progress["totals"]
    rollouts = from_rows(rows, tokenizer.pad_token_id)
    probe = from_rows(share(rows[:args.num_certify_problems]), tokenizer.pad_token_id).to(device)

    def certify(step: int) -> dict:
        """C2, the forward KL beside it; counted in the run's seconds and tokens, as the method needs them."""
        start = time.perf_counter()
        certificate = measure_c2(student, teacher, tokenizer, prompts, args, eos_ids, step, autocast)
        if np.isnan(certificate["c2_reverse_kl_nats"]):
            fail(f"{args.out}: C2 is not a number at step {step}: the logits of --student or --teacher are not")
        forward_kl_nats = measure_forward_kl(student, teacher, probe, args, autocast)
        totals["tokens_sampled"] += certificate["c2_tokens"]
        totals["seconds"] += time.perf_counter() - start
        return certificate | {"forward_kl_on_teacher_rollouts_nats": forward_kl_nats}

    if not (certificate := progress.get("certificate")):        # as last measured; it may hold already
        certificate = certify(0)
        log_metrics(args.out, 0, **certificate, **totals)
    bar = tqdm(initial=step, total=args.max_steps, unit="step", desc=args.out.name, disable=rank() > 0)
    while certificate["c2_reverse_kl_nats"] > args.max_kl and step < args.max_steps:
        # sample: the teacher has, in stage 2
        step, start = step + 1, time.perf_counter()
        batch = batch_indices(len(rows), args.rollouts_per_step, step - 1, args.seed)
        places = balanced_share([len(rows[i]["completion_ids"]) for i in batch])
        mine = rollouts.select(torch.tensor([batch[place] for place in places], dtype=torch.int64)).to(device)
        micro_batches = even_micro_batches(mine, args.micro_batch_size)

        # score: what a rollout weighs, stage 2 has said; each of its tokens weighs as much
        weights_of = [micro.completion_mask * micro.weights[:, None] for micro in micro_batches]

        # count: one denominator, of every rank and every micro-batch
        num_tokens, total_weight = all_sum(mine.completion_mask.sum(), sum(weights.sum() for weights in weights_of))

        # update
        losses, forward_kl_sum = [], 0.0
        for micro, weights in zip(micro_batches, weights_of):
            with autocast:                              # Σ weights · forward_kl, without the (B, C, V) logits
                with torch.set_grad_enabled(args.estimator == "exact"):
                    loss, forward_kl_nats, _ = completion_divergence(
                        student, teacher, micro, forward_kl, args.temperature, weights / total_weight)
                if args.estimator == "sampled":
                    loss = -(completion_logprobs(student, micro, args.temperature) * weights).sum() / total_weight
            loss.backward()
            losses.append(loss.detach())
            forward_kl_sum += forward_kl_nats.sum()
        grad_norm = float(whole(torch.nn.utils.clip_grad_norm_(student.parameters(), args.max_grad_norm)))
        if all_finite(grad_norm, losses):               # on every rank
            optimizer.step()
        else:
            totals["nonfinite_steps"] += 1
            log_nonfinite(args.out, step, tokenizer, micro_batches, losses)
        optimizer.zero_grad()

        # log
        seconds = time.perf_counter() - start
        totals["optimiser_steps"], totals["seconds"] = step, totals["seconds"] + seconds
        figures = {"forward_kl_nats": all_sum(forward_kl_sum)[0] / num_tokens, "grad_norm": grad_norm,
                   "num_tokens": int(num_tokens), "train_seconds": seconds, "tokens_per_second": num_tokens / seconds}
        if args.eval_every and step % args.eval_every == 0 or step == args.max_steps:
            certificate = certify(step)
            figures |= certificate
            if eval_problems:
                figures["eval_accuracy"] = accuracy(student, tokenizer, eval_problems, eval_prompts, args, eos_ids)
        log_metrics(args.out, step, **figures, **totals)
        bar.set_postfix_str(f"forward KL {figures['forward_kl_nats']:.4f}, C2 {certificate['c2_reverse_kl_nats']:.4f} "
                            f"nats, {figures['tokens_per_second']:.0f} tokens/s", refresh=False)
        bar.update()

        # save
        save_or_leave(args, step, student, optimizer, {"totals": totals, "certificate": certificate})

    certificate |= {"condition": "C2", "passed": certificate["c2_reverse_kl_nats"] <= args.max_kl,
                    "max_kl_nats": args.max_kl, "optimiser_steps": step}
    if rank() == 0:
        write_json(args.out / "certificate.json", certificate)
    save_model(student, tokenizer, eos_ids, args.out / "model")
    finish_run(args.out, **totals)
    say(c2_in_words(certificate))
    draw_page(args.out)


if __name__ == "__main__":
    main(parse_args())
