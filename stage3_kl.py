"""Stage 3: the bridge.  Forward KL on teacher rollouts, until the student is near the teacher.

A student far from its teacher samples what the teacher would never write; the teacher's judgement of it says
little.  So the student first imitates the teacher's own rollouts, and stops when C2 says that it is near.

    6. L = (1/N) Σ KL(π_T*(·|s_t) ‖ π_S(·|s_t)), exact over the vocabulary, on teacher rollouts   forward_kl
    7. C2: mean token KL(π_S ‖ π_T*) on fresh student rollouts of held-out prompts ≤ δ            measure_c2

The two are not the same: a student that covers the teacher's every mode and more has a small forward KL on
teacher rollouts and a large reverse KL on its own.  Both are reported; C2 is decided on the second.

Departures from the paper: rollouts may carry weights (stage2_shape.py --weight); by default all weigh 1.
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

from common import (
    FlagParser, accuracy, batch_indices, bootstrap_interval, completion_divergence, completion_logprobs,
    load_eval_problems, number,
)
from engine.problems import load_problems, read_rollouts
from engine.ranks import all_sum, balanced_share, fail, gather_list, say, setup_distributed, share
from engine.rollouts import even_micro_batches, from_rows
from engine.runs import Run
from pages.card import c2_in_words
from pages.run import draw_page

# ---------------------------------------------------------------- equations


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) at each position, exact over the vocabulary.  2 x (B, C, V) -> (B, C), nats.

    float32 is not optional: near convergence bf16 makes four tokens in ten negative.
    """
    log_p, log_q = p_logits.float().log_softmax(dim=-1), q_logits.float().log_softmax(dim=-1)
    p, q = log_p.exp(), log_q.exp()
    # − p + q sums to 0, but where the two are near it cancels what rounding both normalisers does to the
    # rest: 5e-7 nats, which is 1% of a KL that matters.
    return (p * (log_p - log_q) - p + q).sum(dim=-1)


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student), the bridge's loss (equation 6).  2 x (B, C, V) -> (B, C), nats."""
    return kl(teacher_logits, student_logits)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(student || teacher), which C2 bounds (equation 7).  2 x (B, C, V) -> (B, C), nats."""
    return kl(student_logits, teacher_logits)


@torch.no_grad()
def measure_c2(student, teacher, run, step: int, autocast) -> dict:
    """Mean token KL(student || teacher) on fresh student rollouts (equation 7), nats, and its interval."""
    args, prompts = run.args, run.prompts["problems"]
    sums: list[tuple[int, float, int]] = []             # of each of this rank's prompts: index, nats, tokens
    for start in range(0, len(prompts), args.rollouts_per_step):
        if args.offload_teacher:
            teacher.to("cpu")
        rollouts = run.sample(student, prompts[start:start + args.rollouts_per_step], "c2", step, start)
        teacher.to(student.device)
        if start == 0:
            run.log_samples(step, rollouts)
        nats = []
        for micro in even_micro_batches(rollouts, args.micro_batch_size):
            with autocast:
                _, of_tokens, _ = completion_divergence(student, teacher, micro, reverse_kl, args.temperature)
            nats += of_tokens.sum(1).tolist()
        nats, tokens = (np.reshape(figure, (-1, args.samples_per_prompt)).sum(1).tolist()
                        for figure in (nats[:len(rollouts)], rollouts.completion_mask.sum(1).tolist()))
        sums += zip((rollouts.prompt_index[::args.samples_per_prompt] + start).tolist(), nats, tokens)
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
    add = parser.add_argument
    add("--student", type=Path, required=True, help="to train: run, directory or hub name[@revision]")
    add("--teacher", type=Path, required=True, help="shaped teacher: run, directory or hub name")
    add("--rollouts", type=Path, required=True, help="stage 2's rollouts.jsonl")
    add("--problems", type=Path, nargs="+", required=True, help="held out, for C2; no answers needed")
    add("--max-kl", type=number(float), required=True, help="δ of C2, nats per token")
    add = parser.sampling_flags().add_argument
    add("--num-certify-problems", type=number(int, least=1), default=128, help="of --problems, the first N")
    add("--samples-per-prompt", type=number(int, least=1), default=1, help="completions per held-out prompt")
    add = parser.optimisation_flags(max_steps=200).add_argument
    add("--estimator", choices=["exact", "sampled"], default="exact", help="equation 6 or cross-entropy")
    add("--rollouts-per-step", type=number(int, least=1), default=64, help="of an optimiser step, all ranks")
    add("--offload-teacher", action="store_true", help="keep it on the CPU while the student samples")
    parser.training_run_flags(eval_every=5, what="measurements of C2; 0: at the end")
    return parser.parse_args(argv)


def main(args) -> None:
    setup_distributed()
    problems = load_problems(args.problems, need_answers=False)[:args.num_certify_problems]
    eval_problems = load_eval_problems(args, with_every=False)
    run = Run(args, ["student", "teacher"], problems=problems, eval_problems=eval_problems)
    rows = read_rollouts(args, run)
    if run.begin().is_done:
        return
    student, teacher = run.load("student", trainable=True), run.load("teacher")
    optimizer = torch.optim.AdamW(
        student.parameters(), args.lr, betas=(0.9, 0.95), weight_decay=args.weight_decay, fused=True)
    autocast = torch.autocast(run.device.type, torch.bfloat16, enabled=args.dtype == "bfloat16")
    step, progress = run.resume(student, optimizer)
    certificate = progress.get("certificate", {})               # as last measured; it may hold already
    rollouts = from_rows(rows, run.tokenizer.pad_token_id)
    probe = from_rows(share(rows[:args.num_certify_problems]), run.tokenizer.pad_token_id).to(run.device)

    def certify() -> dict:
        """C2, the forward KL beside it; counted in the run's seconds and tokens, as the method needs them."""
        start = time.perf_counter()
        figures = measure_c2(student, teacher, run, step, autocast)
        if np.isnan(figures["c2_reverse_kl_nats"]):
            fail(f"{run.out}: C2 is not a number at step {step}: a logit of --student or --teacher is not")
        forward_kl_nats = measure_forward_kl(student, teacher, probe, args, autocast)
        figures["forward_kl_on_teacher_rollouts_nats"] = forward_kl_nats
        run.totals.update(tokens_sampled=figures["c2_tokens"], seconds=time.perf_counter() - start)
        certificate.update(figures)
        return figures

    if not certificate:
        run.log(0, **certify())
    while certificate["c2_reverse_kl_nats"] > args.max_kl and step < args.max_steps:
        # sample: the teacher has, in stage 2
        run.start_clock()
        step += 1
        batch = batch_indices(len(rows), args.rollouts_per_step, step - 1, args.seed)
        mine = [batch[place] for place in balanced_share([len(rows[i]["completion_ids"]) for i in batch])]
        mine = rollouts.select(torch.tensor(mine, dtype=torch.int64)).to(run.device)
        micro_batches = even_micro_batches(mine, args.micro_batch_size)

        # score: what a rollout weighs, stage 2 has said; each of its tokens weighs as much
        weights_of = [micro.completion_mask * micro.weights[:, None] for micro in micro_batches]

        # count: one denominator, of every rank and every micro-batch
        num_tokens, total_weight = all_sum(
            mine.completion_mask.sum(), sum(weights.sum() for weights in weights_of))

        # update
        losses, forward_kl_sum = [], 0.0
        for micro, weights in zip(micro_batches, weights_of):
            with autocast:                              # Σ weights · forward_kl, without the (B, C, V) logits
                with torch.set_grad_enabled(args.estimator == "exact"):
                    loss, forward_kl_nats, _ = completion_divergence(
                        student, teacher, micro, forward_kl, args.temperature, weights / total_weight)
                if args.estimator == "sampled":
                    logprobs = completion_logprobs(student, micro, args.temperature)
                    loss = -(logprobs * weights).sum() / total_weight
            loss.backward()
            losses.append(loss.detach())
            forward_kl_sum += forward_kl_nats.sum()
        grad_norm = torch.nn.utils.clip_grad_norm_(student.parameters(), args.max_grad_norm)
        if run.all_finite(step, grad_norm, micro_batches, losses):              # on every rank
            optimizer.step()
        optimizer.zero_grad()

        # log
        forward_kl_nats = all_sum(forward_kl_sum)[0] / num_tokens
        run.log(step, forward_kl_nats=forward_kl_nats, grad_norm=grad_norm, num_tokens=int(num_tokens),
                evaluate=lambda: certify() | accuracy(student, run),
                bar=f"forward KL {forward_kl_nats:.4f}, C2 {certificate['c2_reverse_kl_nats']:.4f} nats")

        # save
        run.save_or_leave(step, student, optimizer, certificate=certificate)

    certificate |= {"condition": "C2", "passed": certificate["c2_reverse_kl_nats"] <= args.max_kl,
                    "max_kl_nats": args.max_kl, "optimiser_steps": step}
    run.finish(student, certificate=certificate)
    say(c2_in_words(certificate))
    draw_page(run.out)


if __name__ == "__main__":
    main(parse_args())
