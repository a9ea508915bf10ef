"""Whole optimiser steps of stage 4 beside TRL's DistillationTrainer on the same work, taking turns.

    python bench/distill.py --student DIR --teacher DIR --problems FILE [--shapes 2x4x64 4x8x192] [--rounds 2]

The same checkpoints, prompts in each step and samples of each, length of completions, loss (the exact reverse KL, token
mean over the step), AdamW, dtype of forward and backward over float32 weights, no activation checkpointing; sampling
is at temperature 1 and no token ends a completion, so that all are as long.  TRL samples once from each line of its
data: a prompt stands there as often as it is sampled from.  It takes all rollouts of a step in one batch, and in
micro-batches as ours.

Each measurement is a fresh process with --threads threads, its first step not counted; memory is the process's highest.
The two last columns compare each method's best round: what else runs on a machine only slows.
"""
from pathlib import Path

from steps import Work, all_as_long, parser_for, prompts_in_our_order, run


def ours(args, work: Work, out: str) -> None:
    import stage4_distill

    all_as_long(work)
    stage4_distill.main(stage4_distill.parse_args([
        "--student", str(args.student), "--teacher", str(args.teacher), "--problems", str(args.problems), "--out", out,
        *work.flags()]))


def trl(args, work: Work, out: str) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    tokens = []                                                 # of each step

    class Steps(TrainerCallback):
        def on_step_end(self, *rest, **more):
            work.step(sum(tokens))

    class Counting(DistillationTrainer):
        def _generate_single_turn(self, *rest, **more):
            answer = super()._generate_single_turn(*rest, **more)
            tokens.append(sum(map(len, answer)))
            return answer

    tokenizer, prompts = prompts_in_our_order(args.student, args.problems, work)
    config = DistillationConfig(out, beta=1.0, **work.config())
    student, teacher = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
                        for path in (args.student, args.teacher))
    repeated = [prompt for prompt in prompts for _ in range(work.samples)]
    Counting(student, teacher, config, train_dataset=Dataset.from_dict({"prompt": repeated}),
             processing_class=tokenizer, callbacks=[Steps()]).train()


if __name__ == "__main__":
    parser = parser_for(__doc__)
    parser.add_argument("--student", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--teacher", type=Path, required=True, help="checkpoint directory of the same vocabulary")
    run(parser.parse_args(), ours, trl)
