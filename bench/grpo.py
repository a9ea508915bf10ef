"""Whole optimiser steps of stage 1 beside TRL's GRPOTrainer on the same work, the two taking turns.

    python bench/grpo.py --model DIR --problems FILE [--dtype float32 bfloat16] [--rounds 2]

The same checkpoint, prompts in each rollout batch, group size, longest completion, micro-batch, loss (token mean over
the step, clips 0.2 and 0.28, no KL), AdamW, dtype of forward and backward over float32 weights, no activation
checkpointing.  The reward is 1 for every other completion, so that each group has an advantage and each token is
trained on; sampling is at temperature 1 and no token ends a completion, so that all are as long.

Each measurement is a fresh process with --threads threads, its first rollout batch not counted; memory is the process's
highest.  The last line of each block compares the medians over the rounds.
"""
import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from common import FlagParser  # noqa: E402


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--problems", type=Path, required=True, help="problems, JSON lines")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=2, help="fresh processes per method")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts-per-step", type=int, default=4)
    parser.add_argument("--samples-per-prompt", type=int, default=8)
    parser.add_argument("--steps-per-rollout", type=int, default=2)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, default=2, help="rollout batches that are measured, after the first")
    parser.add_argument("--only", help=argparse.SUPPRESS)       # method and dtype that a fresh process measures
    args = parser.parse_args(argv)
    if args.prompts_per_step * args.samples_per_prompt % args.micro_batch_size:
        parser.error(f"--micro-batch-size {args.micro_batch_size} does not divide a step's rollouts, as TRL wants it: "
                     "--prompts-per-step times --samples-per-prompt")
    return args


# ---------------------------------------------------------------- the two

def ours(args, dtype: str, out: str, clock: "Clock") -> None:
    import stage1_grpo

    log_metrics, verdicts = stage1_grpo.log_metrics, itertools.cycle([False, True])

    def log(out, step, **figures) -> None:
        log_metrics(out, step, **figures)
        clock.step(figures["tokens_sampled"])

    stage1_grpo.log_metrics, stage1_grpo.grade = log, lambda text, gold: next(verdicts)
    stage1_grpo.stop_ids = lambda model_dir, tokenizer: []
    sample = stage1_grpo.sample

    def sample_as_finished(*rest, **more):              # without an end token all are cut, and a cut one is wrong
        rollouts = sample(*rest, **more)
        rollouts.finished[:] = True
        return rollouts

    stage1_grpo.sample = sample_as_finished
    stage1_grpo.main(stage1_grpo.parse_args([
        "--model", str(args.model), "--problems", str(args.problems), "--out", out, "--dtype", dtype,
        "--prompts-per-step", str(args.prompts_per_step), "--samples-per-prompt", str(args.samples_per_prompt),
        "--steps-per-rollout", str(args.steps_per_rollout), "--micro-batch-size", str(args.micro_batch_size),
        "--max-new-tokens", str(args.max_new_tokens), "--max-steps", str(clock.steps), "--save-every", "0"]))


def trl(args, dtype: str, out: str, clock: "Clock") -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from common import batch_indices, encode_prompts, load_problems, load_tokenizer

    tokens = []                                                 # of each rollout batch

    class Steps(TrainerCallback):
        def on_step_end(self, *rest, **more):
            clock.step(sum(tokens))

    def reward(completions, completion_ids, **rest) -> list[float]:
        tokens.append(sum(map(len, completion_ids)))
        return [float(i % 2) for i in range(len(completions))]

    tokenizer = load_tokenizer(args.model)
    chat = argparse.Namespace(instruction=None, enable_thinking=False, template_args=None)
    prompts = [tokenizer.decode(ids) for ids in encode_prompts(tokenizer, load_problems(args.problems), chat)]
    in_our_order = [prompts[i] for batch in range(1 + args.batches)
                    for i in batch_indices(len(prompts), args.prompts_per_step * args.steps_per_rollout, batch, seed=0)]
    micro_batches = args.prompts_per_step * args.samples_per_prompt // args.micro_batch_size
    config = GRPOConfig(
        out, use_cpu=not torch.cuda.is_available(), bf16=dtype == "bfloat16", max_steps=clock.steps, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
        learning_rate=1e-6, lr_scheduler_type="constant", weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0,
        per_device_train_batch_size=args.micro_batch_size, gradient_accumulation_steps=micro_batches,
        steps_per_generation=micro_batches * args.steps_per_rollout, num_generations=args.samples_per_prompt,
        max_completion_length=args.max_new_tokens, temperature=1.0, beta=0.0, epsilon=0.2, epsilon_high=0.28,
        loss_type="dapo", shuffle_dataset=False, generation_kwargs={"min_new_tokens": args.max_new_tokens})
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    GRPOTrainer(model, reward, config, train_dataset=Dataset.from_dict({"prompt": in_our_order}),
                processing_class=tokenizer, callbacks=[Steps()]).train()


# ---------------------------------------------------------------- measuring

class Clock:
    """Seconds and completion tokens a step, without the first rollout batch's steps."""

    def __init__(self, args):
        self.warm_up, self.steps = args.steps_per_rollout, args.steps_per_rollout * (1 + args.batches)
        self.ends = []                                          # of each step: the time, the tokens sampled so far

    def step(self, tokens: int) -> None:
        self.ends.append((time.perf_counter(), tokens))

    def measured(self) -> dict:
        (start, before), (end, after) = self.ends[self.warm_up - 1], self.ends[-1]
        steps = self.steps - self.warm_up
        return {"seconds": (end - start) / steps, "tokens": (after - before) / steps}


def worker(args) -> None:
    import torch

    torch.set_num_threads(args.threads)
    method, dtype = json.loads(args.only)
    clock = Clock(args)
    with tempfile.TemporaryDirectory() as folder:
        {"ours": ours, "TRL": trl}[method](args, dtype, str(Path(folder) / "run"), clock)
    print(json.dumps({**clock.measured(), "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}))


def main(args) -> None:
    if args.only:
        return worker(args)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(args.threads)}
    for dtype in args.dtype:
        print(f"{dtype}: {args.prompts_per_step} prompts x {args.samples_per_prompt} samples a step, "
              f"{args.steps_per_rollout} steps a rollout batch, up to {args.max_new_tokens} new tokens, "
              f"{args.threads} threads")
        answers: dict = {"ours": [], "TRL": []}
        for number in range(args.rounds):
            for method in answers:
                command = [sys.executable, __file__, *sys.argv[1:], "--only", json.dumps([method, dtype])]
                answer = subprocess.run(command, capture_output=True, text=True, env=environment)
                if answer.returncode:
                    sys.exit(f"{method} failed:\n{answer.stderr[-3000:]}")
                measured = json.loads(answer.stdout.splitlines()[-1])
                answers[method].append(measured)
                print(f"  round {number + 1}  {method:<5} {measured['seconds']:8.2f} s a step  "
                      f"{measured['tokens']:7.0f} tokens a step  {measured['gigabytes']:6.2f} GB", flush=True)
        time_ratio, memory_ratio = (statistics.median(row[key] for row in answers["TRL"])
                                    / statistics.median(row[key] for row in answers["ours"])
                                    for key in ("seconds", "gigabytes"))
        print(f"  TRL takes {time_ratio:.2f} times our time and {memory_ratio:.2f} times our memory")


if __name__ == "__main__":
    main(parse_args())
