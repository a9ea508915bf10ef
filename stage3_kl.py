"""Stage 3: the bridge.  Forward KL on teacher rollouts, until the student is near the teacher.

A student far from its teacher samples what the teacher would never write; the teacher's judgement of it says little.
So the student first imitates the teacher's own rollouts, and stops when C2 says that it is near.

    6. L = (1/N) Σ KL(π_T*(·|s_t) ‖ π_S(·|s_t)), exact over the vocabulary, on teacher rollouts   forward_kl
    7. C2: mean token KL(π_S ‖ π_T*) on fresh student rollouts of held-out prompts ≤ δ            measure_c2

The two are not the same: a student that covers the teacher's every mode and more has a small forward KL on teacher
rollouts and a large reverse KL on its own.  Both are reported; C2 is decided on the second.

Departure from the paper: rollouts may carry weights (stage2_shape.py --weight); by default all weigh the same.

    python stage3_kl.py --student toy/student --teacher runs/teacher --rollouts runs/shape/rollouts.jsonl \
        --problems toy/heldout.jsonl --max-kl 0.3 --out runs/bridge
    torchrun --nproc_per_node=8 stage3_kl.py …

Reads two models, stage 2's rollouts and held-out prompts (no answers needed); writes a run directory with
certificate.json.  The run ends when C2 holds, or at --max-steps; stage 4 refuses it in the second case.
"""
import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common import (
    INSTRUCTION,
    batch_indices,
    bootstrap_interval,
    check_context,
    check_pair,
    completion_divergence,
    encode_prompts,
    load_model,
    load_problems,
    load_tokenizer,
    sample,
    stop_ids,
    vocabulary_size,
)
from engine.files import read_jsonl, write_json
from engine.ranks import (
    all_sum,
    balanced_share,
    even_batches,
    fail,
    gather_list,
    random_generator,
    rank,
    say,
    setup_distributed,
    share,
)
from engine.rollouts import Rollouts, even_micro_batches, pad
from engine.runs import (
    check_parent_run,
    find_model,
    finish_run,
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
def measure_c2(student, teacher, tokenizer, prompts, args, stop: list[int], step: int, autocast) -> dict:
    """Mean token KL(student || teacher) on fresh student rollouts (equation 7), nats; its interval over prompts."""
    sums: list[tuple[float, float]] = []
    for batch in even_batches(list(range(len(prompts))), args.prompts_per_step):
        if args.offload_teacher:
            teacher.to("cpu")
        with sampling_weights(student, args.dtype, args.sample_on_shards) as sampler:
            rollouts = sample(sampler, [prompts[i] for i in batch], samples_per_prompt=args.samples_per_prompt,
                              max_new_tokens=args.max_new_tokens, temperature=args.temperature, eos_ids=stop,
                              pad_id=tokenizer.pad_token_id, generator=random_generator(args.seed, "c2", step),
                              indices=batch, rollout_tokens=args.rollout_tokens)
        teacher.to(student.device)
        if batch[:1] == [0]:
            log_samples(args.out, step, tokenizer, rollouts)
        kl_sums = []
        for micro in even_micro_batches(rollouts, args.micro_batch_size):
            with autocast:
                _, kl, _ = completion_divergence(student, teacher, micro, reverse_kl, args.temperature)
            kl_sums.append(kl.sum(1))
        kl_sums = torch.cat(kl_sums)[:len(rollouts)].view(-1, args.samples_per_prompt).sum(1).tolist()
        tokens = rollouts.completion_mask.sum(1).view(-1, args.samples_per_prompt).sum(1).tolist()
        sums += zip(kl_sums, tokens)
    kl_sums, tokens = np.array(gather_list(sums), dtype=float).T
    return {"value": float(kl_sums.sum() / tokens.sum()), "prompts": len(tokens), "tokens": int(tokens.sum()),
            "interval": bootstrap_interval(lambda i: kl_sums[i].sum() / tokens[i].sum(), len(tokens))}


@torch.no_grad()
def measure_forward_kl(student, teacher, rollouts, args, autocast) -> float:
    """Mean token KL(teacher || student) on teacher rollouts, nats: reported beside C2."""
    kl_sum = 0.0
    for micro in even_micro_batches(rollouts, args.micro_batch_size):
        with autocast:
            _, kl, _ = completion_divergence(student, teacher, micro, forward_kl, args.temperature)
        kl_sum += kl.sum().item()
    kl_sum, num_tokens = all_sum(kl_sum, rollouts.completion_mask.sum())
    return kl_sum / num_tokens


# ---------------------------------------------------------------- teacher rollouts


def read_rollouts(path: Path, teacher: dict, allow_failed_certificate: bool) -> list[dict]:
    """The rows of stage 2's rollouts.jsonl, after checking that they are this teacher's and certified."""
    if not path.is_file():
        fail(f"--rollouts {path}: no such file")
    if (path.parent / "args.json").is_file():
        check_parent_run(path.parent, allow_failed_certificate)
        sampled_by = json.loads((path.parent / "args.json").read_text())["parents"].get("teacher")
        if sampled_by is None:
            fail(f"--rollouts {path}: {path.parent} is not a run of stage2_shape.py, whose rollouts.jsonl is meant")
        if sampled_by["sha256"] != teacher["sha256"]:
            fail(f"--rollouts {path} were sampled by {sampled_by['path']}, which is not --teacher {teacher['path']}")
    rows = read_jsonl(path)
    if not rows:
        fail(f"--rollouts {path}: the file holds no rollouts")
    return rows


def check_rollouts(path: Path, rows: list[dict], vocab_size: int, stop: list[int]) -> None:
    """Token ids cross between stages: they must be the student's, and end as the student ends."""
    for number, row in enumerate(rows, 1):
        if not row["completion_ids"] or max(row["prompt_ids"] + row["completion_ids"]) >= vocab_size:
            fail(f"{path}, line {number}: an empty completion, or token ids beyond the student's vocabulary of "
                 f"{vocab_size}")
        if row["finished"] and row["completion_ids"][-1] not in stop:
            fail(f"{path}, line {number}: a finished rollout ends with id {row['completion_ids'][-1]}, the student "
                 f"ends with {stop}")


def as_rollouts(rows: list[dict], pad_id: int, device) -> Rollouts:
    prompt_ids, prompt_mask = pad([row["prompt_ids"] for row in rows], pad_id, device, left=True)
    completion_ids, completion_mask = pad([row["completion_ids"] for row in rows], pad_id, device, left=False)
    return Rollouts(prompt_ids, prompt_mask, completion_ids, completion_mask,
                    finished=torch.tensor([row["finished"] for row in rows], dtype=torch.bool, device=device),
                    rewards=torch.tensor([row["reward"] for row in rows], device=device),
                    weights=torch.tensor([row["weight"] for row in rows], device=device))


# ---------------------------------------------------------------- the script


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, required=True, help="checkpoint directory or finished run to train")
    parser.add_argument("--teacher", type=Path, required=True, help="shaped teacher: run or checkpoint directory")
    parser.add_argument("--rollouts", type=Path, required=True, help="stage 2's rollouts.jsonl")
    parser.add_argument("--problems", type=Path, required=True, help="held-out problems for C2, JSON lines")
    parser.add_argument("--max-kl", type=float, required=True, help="δ of C2, nats per token")
    parser.add_argument("--out", type=Path, required=True, help="run directory to write")
    group = parser.add_argument_group("C2 on fresh student rollouts")
    group.add_argument("--certify-problems", type=int, default=128, help="of --problems, the first N")
    group.add_argument("--samples-per-prompt", type=int, default=1, help="completions per held-out prompt")
    group.add_argument("--max-new-tokens", type=int, default=8192, help="longest completion, tokens")
    group.add_argument("--temperature", type=float, default=1.0, help="of sampling and of every logit")
    group.add_argument("--rollout-tokens", type=int, default=0, help="tokens of cache at a time; 0: what memory holds")
    group.add_argument("--sample-on-shards", action="store_true", help="for a model that one rank cannot hold whole")
    group.add_argument("--instruction", default=INSTRUCTION, help="end of the user message (chat models)")
    group.add_argument("--enable-thinking", action="store_true", help="passed to the chat template")
    group = parser.add_argument_group("optimisation")
    group.add_argument("--max-steps", type=int, default=200, help="optimiser steps at most")
    group.add_argument("--prompts-per-step", type=int, default=64, help="teacher rollouts per optimiser step")
    group.add_argument("--micro-batch-size", type=int, default=8, help="rollouts per forward pass; memory only")
    group.add_argument("--activation-checkpointing", action="store_true", help="less memory, a third more compute")
    group.add_argument("--offload-teacher", action="store_true", help="keep it on the CPU while the student samples")
    group.add_argument("--lr", type=float, default=1e-6, help="constant learning rate of AdamW")
    group.add_argument("--weight-decay", type=float, default=0.1)
    group.add_argument("--max-grad-norm", type=float, default=1.0, help="gradient clip")
    group.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32",
                       help="of compute and of the teacher; the student's weights and AdamW's state stay float32")
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--save-every", type=int, default=20, help="optimiser steps between saved states; 0: never")
    group.add_argument("--keep-states", type=int, default=2, help="saved states to keep, the newest")
    group.add_argument("--eval-problems", type=Path, help="problems to evaluate on while training")
    group.add_argument("--eval-every", type=int, default=5,
                       help="optimiser steps between measurements of C2 (and evaluations); 0: at the end only")
    group.add_argument("--eval-samples", type=int, default=4, help="completions per evaluation problem")
    group.add_argument("--allow-failed-certificate", action="store_true", help="take a parent whose certificate failed")
    group.add_argument("--overwrite", action="store_true", help="start anew in an existing --out")
    return parser.parse_args(argv)


def main(args) -> None:
    device = setup_distributed()
    problems = load_problems(args.problems, need_answers=False)[:args.certify_problems]
    student_parent = find_model(args.student, args.allow_failed_certificate)
    teacher_parent = find_model(args.teacher, args.allow_failed_certificate)
    student_dir, teacher_dir = Path(student_parent["path"]), Path(teacher_parent["path"])
    rows = read_rollouts(args.rollouts, teacher_parent, args.allow_failed_certificate)
    tokenizer = load_tokenizer(student_dir)
    check_pair(student_dir, tokenizer, teacher_dir, load_tokenizer(teacher_dir))
    stop = stop_ids(student_dir, tokenizer)
    check_rollouts(args.rollouts, rows, vocabulary_size(tokenizer), stop)
    prompts = encode_prompts(tokenizer, problems, args)
    eval_problems = load_problems(args.eval_problems) if args.eval_problems else []
    eval_prompts = encode_prompts(tokenizer, eval_problems, args)
    check_context(student_dir, problems + eval_problems, prompts + eval_prompts, args.max_new_tokens)
    if not open_run(args, {"student": student_parent, "teacher": teacher_parent}):
        return

    student = load_model(student_dir, tokenizer, getattr(torch, args.dtype), device, trainable=True,
                         activation_checkpointing=args.activation_checkpointing)
    teacher = load_model(teacher_dir, tokenizer, getattr(torch, args.dtype), device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=args.weight_decay)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16")
    step, memory = load_state(args.out, student, optimizer)
    totals = memory.get("totals") or {"optimiser_steps": 0, "nonfinite_steps": 0, "labels_seen": 0, "tokens_sampled": 0,
                                     "seconds": 0.0}
    rollouts = as_rollouts(rows, tokenizer.pad_token_id, "cpu")
    probe = as_rollouts(share(rows[:args.certify_problems]), tokenizer.pad_token_id, device)

    def certify(step: int) -> dict:
        """C2, the forward KL beside it; counted in the run's seconds and tokens, as the method needs them."""
        start = time.perf_counter()
        c2 = measure_c2(student, teacher, tokenizer, prompts, args, stop, step, autocast)
        forward = measure_forward_kl(student, teacher, probe, args, autocast)
        totals["tokens_sampled"] += c2["tokens"]
        totals["seconds"] += time.perf_counter() - start
        return {"c2_reverse_kl_nats": c2["value"], "c2_interval_nats": c2["interval"], "c2_prompts": c2["prompts"],
                "c2_tokens": c2["tokens"], "forward_kl_on_teacher_rollouts_nats": forward}

    if step == 0:
        certificate = certify(0)
        log_metrics(args.out, 0, **certificate, **totals)
    else:
        certificate = memory["certificate"]                     # as last measured; it may hold already
    bar = tqdm(initial=step, total=args.max_steps, unit="step", desc=args.out.name, disable=rank() > 0)
    while certificate["c2_reverse_kl_nats"] > args.max_kl and step < args.max_steps:
        step, start = step + 1, time.perf_counter()
        batch = batch_indices(len(rollouts), args.prompts_per_step, step - 1, args.seed)
        places = balanced_share([len(rows[i]["completion_ids"]) for i in batch])
        mine = rollouts.select(torch.tensor([batch[place] for place in places], dtype=torch.int64)).to(device)
        micro_batches = even_micro_batches(mine, args.micro_batch_size)

        # one denominator: every rank, every micro-batch
        num_tokens, total_weight = all_sum(
            sum(micro.completion_mask.sum() for micro in micro_batches),
            sum((micro.completion_mask * micro.weights[:, None]).sum() for micro in micro_batches))
        losses, kl_sum = [], 0.0
        for micro in micro_batches:
            weights = micro.completion_mask * micro.weights[:, None] / total_weight
            with autocast:                              # Σ weights · forward_kl, without the (B, C, V) logits
                loss, kl, _ = completion_divergence(student, teacher, micro, forward_kl, args.temperature, weights)
            loss.backward()
            losses.append(loss.item())
            kl_sum += kl.sum().item()
        grad_norm = torch.nn.utils.clip_grad_norm_(student.parameters(), args.max_grad_norm)
        grad_norm, taken = take_step(optimizer, grad_norm, losses)
        if not taken:
            totals["nonfinite_steps"] += 1
            log_nonfinite(args.out, step, tokenizer, micro_batches, losses)

        seconds = time.perf_counter() - start
        totals["optimiser_steps"], totals["seconds"] = step, totals["seconds"] + seconds
        figures = {"forward_kl_nats": all_sum(kl_sum)[0] / num_tokens, "grad_norm": grad_norm,
                   "num_tokens": int(num_tokens), "train_seconds": seconds, "tokens_per_second": num_tokens / seconds}
        due = args.eval_every and step % args.eval_every == 0 or step == args.max_steps
        if due:
            certificate = certify(step)
            figures |= certificate
            if eval_problems:
                figures["eval_accuracy"] = accuracy(student, tokenizer, eval_problems, eval_prompts, args, stop)
        log_metrics(args.out, step, **figures, **totals)
        bar.update()
        bar.set_postfix_str(f"forward KL {figures['forward_kl_nats']:.4f} nats, "
                            f"C2 {certificate['c2_reverse_kl_nats']:.4f} nats, "
                            f"{figures['tokens_per_second']:.0f} tokens/s")
        save_or_leave(args, step, student, optimizer, {"totals": totals, "certificate": certificate})
    bar.close()

    passed = certificate["c2_reverse_kl_nats"] <= args.max_kl
    if rank() == 0:
        write_json(args.out / "certificate.json", {"condition": "C2", "passed": passed, "max_kl_nats": args.max_kl,
                                                   "optimiser_steps": step, **certificate})
    save_model(student, tokenizer, stop, args.out / "model")
    finish_run(args.out, **totals)
    kl = certificate["c2_reverse_kl_nats"]
    figures = f"KL(student || teacher) on fresh student rollouts is {kl:.4f} nats per token"
    say(f"C2 holds after {step} steps: {figures}, at most {args.max_kl}" if passed else
        f"stopped at --max-steps {step}, C2 does not hold: {figures}, not {args.max_kl}; stage 4 will refuse this run")


if __name__ == "__main__":
    main(parse_args())
