"""Whole optimiser steps of stage 1 beside TRL's GRPOTrainer on the same work, taking turns.

    python bench/grpo.py --model DIR --problems FILE [--shapes 2x4x64 4x8x192] [--dtype float32 bfloat16] [--rounds 2]

The same checkpoint, prompts in each step, group size, length of completions, loss (token mean over the step, clips 0.2
and 0.28, no KL), AdamW, dtype of forward and backward over float32 weights, no activation checkpointing.  The reward is
1 for every other completion, so that each group has an advantage and each token is trained on; sampling is at
temperature 1 and no token ends a completion, so that all are as long.  TRL takes all rollouts of a step in one batch,
as is its default, and in micro-batches as ours.

Each measurement is a fresh process with --threads threads, its first step not counted; memory is the process's highest.
The two last columns compare each method's best round: what else runs on a machine only slows.
"""
import itertools
from pathlib import Path

from steps import Work, all_as_long, parser_for, prompts_in_our_order, run


def ours(args, work: Work, out: str) -> None:
    import common
    import stage1_grpo

    verdicts = itertools.cycle([False, True])
    common.grade = lambda text, gold: next(verdicts)
    all_as_long(work)
    stage1_grpo.main(stage1_grpo.parse_args([
        "--model", str(args.model), "--problems", str(args.problems), "--out", out, "--steps-per-rollout", "1",
        *work.flags()]))


def trl(args, work: Work, out: str) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokens = []                                                 # of each step

    class Steps(TrainerCallback):
        def on_step_end(self, *rest, **more):
            work.step(sum(tokens))

    def reward(completions, completion_ids, **rest) -> list[float]:
        tokens.append(sum(map(len, completion_ids)))
        return [float(i % 2) for i in range(len(completions))]

    tokenizer, prompts = prompts_in_our_order(args.model, args.problems, work)
    config = GRPOConfig(out, num_generations=work.samples, beta=0.0, epsilon=0.2, epsilon_high=0.28, loss_type="dapo",
                        **work.config())
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    GRPOTrainer(model, reward, config, train_dataset=Dataset.from_dict({"prompt": prompts}),
                processing_class=tokenizer, callbacks=[Steps()]).train()


if __name__ == "__main__":
    parser = parser_for(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory")
    run(parser.parse_args(), ours, trl)
