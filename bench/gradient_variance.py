"""How noisy is the gradient of each form of the dense reward?  On the same rollouts of one student, at one point.

    python bench/gradient_variance.py --student RUN --teacher RUN --problems FILE [--batches 64] [--max-new-tokens 16]

Each batch is one optimiser step's rollouts of stage 4, sampled by the student; each form's gradient on it is taken, no
step is.  Printed for each form: the norm of the mean gradient (of its square, the noise that K batches leave in it is
taken away), the noise, which is the square root of the trace of the covariance over batches, their ratio, the cosine
of the mean gradient to that of the exact reverse KL, and processor seconds a gradient.
"""
import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import (  # noqa: E402
    FlagParser, batch_indices, completion_divergence, completion_logprobs, positive,
)
from engine.problems import load_problems  # noqa: E402
from engine.rollouts import even_micro_batches  # noqa: E402
from engine.runs import Run  # noqa: E402
from stage4_distill import DIVERGENCES, sampled_token_loss  # noqa: E402


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    parser.add_argument("--student", type=Path, required=True, help="run or checkpoint directory, where stage 4 begins")
    parser.add_argument("--teacher", type=Path, required=True, help="run or checkpoint directory")
    parser.add_argument("--problems", type=Path, nargs="+", required=True, help="prompts; no answers needed")
    parser.add_argument("--batches", type=positive, default=64, help="optimiser steps' rollouts")
    parser.add_argument("--prompts-per-step", type=positive, default=128, help="rollouts of a batch")
    parser.add_argument("--micro-batch-size", type=positive, default=128, help="rollouts per forward pass")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.sampling_flags()
    parser.set_defaults(out=Path("-"), dtype="float32", samples_per_prompt=1, allow_failed_certificate=True,
                        activation_checkpointing=False)
    return parser.parse_args(argv)


FORMS = {"sampled token": None} | {f"exact {name}": divergence for name, divergence in DIVERGENCES.items()}


def loss_of(divergence, student, teacher, micro, weights, temperature: float):
    """As stage 4 computes it; without a divergence, that of the sampled token."""
    if divergence is not None:
        return completion_divergence(student, teacher, micro, divergence, temperature, weights)[0]
    with torch.no_grad():
        teacher_logprobs = completion_logprobs(teacher, micro, temperature)
    return (sampled_token_loss(completion_logprobs(student, micro, temperature), teacher_logprobs) * weights).sum()


def main(args) -> None:
    run = Run(args, ["student", "teacher"], problems=load_problems(args.problems, need_answers=False))
    student, teacher = run.load("student", trainable=True), run.load("teacher")
    prompts, gradients, seconds = run.prompts["problems"], {}, {}
    for batch in range(args.batches):
        chosen = batch_indices(len(prompts), args.prompts_per_step, batch, args.seed)
        rollouts = run.sample(student, [prompts[i] for i in chosen], "rollouts", batch)
        num_tokens, micro_batches = rollouts.completion_mask.sum(), even_micro_batches(rollouts, args.micro_batch_size)
        for form, divergence in FORMS.items():
            start = time.process_time()
            for micro in micro_batches:
                weights = micro.completion_mask / num_tokens
                loss_of(divergence, student, teacher, micro, weights, args.temperature).backward()
            seconds[form] = seconds.get(form, 0.0) + time.process_time() - start
            flat = torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
            gradients.setdefault(form, []).append(flat.double())
            student.zero_grad()
    print(f"{args.batches} batches of {args.prompts_per_step} rollouts\n")
    print("| form | norm of the mean | noise | noise / norm | cosine to exact reverse | seconds |")
    print("| --- |" + " ---: |" * 5)
    means = {form: torch.stack(each).mean(0) for form, each in gradients.items()}
    for form, each in gradients.items():
        trace = sum(float((gradient - means[form]).square().sum()) for gradient in each) / (len(each) - 1)
        norm = max(float(means[form].square().sum()) - trace / len(each), 0.0) ** 0.5
        cosine = float(torch.nn.functional.cosine_similarity(means[form], means["exact reverse"], dim=0))
        ratio = f"{trace ** 0.5 / norm:.2f}" if norm else "–"
        print(f"| {form} | {norm:.4f} | {trace ** 0.5:.4f} | {ratio} | {cosine:.3f} | "
              f"{seconds[form] / len(each):.2f} |")


if __name__ == "__main__":
    main(parse_args())
