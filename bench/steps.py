"""What grpo.py and distill.py have in common: the shapes, fresh processes that take turns, the clock, the table."""
import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from common import FlagParser  # noqa: E402
from processes import in_a_fresh_process, memory  # noqa: E402

NO_TOKEN = 2**30                                                # an end token that no model draws


def parser_for(docstring: str) -> argparse.ArgumentParser:
    parser = FlagParser(docstring)
    parser.add_argument("--problems", type=Path, required=True, help="problems, JSON lines")
    parser.add_argument("--shapes", nargs="+", default=["2x4x64", "4x8x64", "2x4x192", "4x8x192"],
                        help="prompts x samples x new tokens of a step")
    parser.add_argument("--micro-batch-size", type=int, help="rollouts (default: a group, the samples of a prompt)")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--rounds", type=int, default=2, help="fresh processes per method")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1, help="steps that are measured, after the first")
    parser.add_argument("--methods", nargs="+", default=["ours", "TRL", "TRL in micro-batches"], help="which of them")
    parser.add_argument("--only", help=argparse.SUPPRESS)       # method, shape and dtype that a fresh process measures
    return parser


class Work:
    """What one process measures, and its clock: seconds a step, without the first."""

    def __init__(self, args):
        self.method, shape, self.dtype = json.loads(args.only)
        self.prompts, self.samples, self.new_tokens = map(int, shape.split("x"))
        self.rollouts = self.prompts * self.samples
        micro = args.micro_batch_size or self.samples
        self.micro_batch_size = self.rollouts if self.method == "TRL" else micro
        self.steps, self.ends = 1 + args.steps, []              # of each step: the time, the tokens sampled so far
        if self.rollouts % micro:
            sys.exit(f"--micro-batch-size {micro} does not divide the {self.rollouts} rollouts of a step, as TRL wants")

    def step(self, tokens: int) -> None:
        self.ends.append((time.perf_counter(), tokens))

    def measured(self) -> dict:
        (start, before), (end, after) = self.ends[0], self.ends[-1]
        count = self.steps - 1
        return {"seconds": (end - start) / count, "tokens": (after - before) / count,
                "gigabytes": memory("VmHWM") / 1024e6}

    def flags(self) -> list[str]:
        """Of our stages."""
        return ["--dtype", self.dtype, "--prompts-per-step", str(self.prompts), "--samples-per-prompt",
                str(self.samples), "--micro-batch-size", str(self.micro_batch_size), "--max-new-tokens",
                str(self.new_tokens), "--max-steps", str(self.steps), "--save-every", "0"]

    def config(self) -> dict:
        """Of TRL's trainers."""
        import torch
        return dict(
            use_cpu=not torch.cuda.is_available(), bf16=self.dtype == "bfloat16", max_steps=self.steps,
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            gradient_checkpointing=False, learning_rate=1e-6, lr_scheduler_type="constant", weight_decay=0.1,
            adam_beta2=0.95, max_grad_norm=1.0, per_device_train_batch_size=self.micro_batch_size,
            gradient_accumulation_steps=self.rollouts // self.micro_batch_size, temperature=1.0,
            max_completion_length=self.new_tokens, shuffle_dataset=False,
            generation_kwargs={"min_new_tokens": self.new_tokens})


def all_as_long(work: Work) -> None:
    """Patch the run: no token ends a completion, none counts as cut off, and each step is told to the clock."""
    from engine import runs

    sample, run_log = runs.sample, runs.Run.log

    def sample_as_finished(*rest, **more):
        rollouts = sample(*rest, **more)
        rollouts.finished[:] = True
        return rollouts

    def log(run, step, **figures) -> None:
        run_log(run, step, **figures)
        if step:
            work.step(run.totals["tokens_sampled"])

    runs.sample, runs.eos_ids, runs.Run.log = sample_as_finished, lambda *_: [NO_TOKEN], log


def prompts_in_our_order(model: Path, problems: Path, work: Work) -> tuple:
    """-> the tokenizer and the text of each step's prompts, once each"""
    from common import batch_indices, encode_prompts, load_problems, load_tokenizer

    tokenizer = load_tokenizer(model)
    chat = argparse.Namespace(instruction=None, enable_thinking=False, template_args=None)
    prompts = [tokenizer.decode(ids) for ids in encode_prompts(tokenizer, load_problems([problems]), chat)]
    return tokenizer, [prompts[i] for step in range(work.steps)
                       for i in batch_indices(len(prompts), work.prompts, step, seed=0)]


def run(args, ours, trl) -> None:
    """Measure in this process, or start the processes that do and print their table."""
    if args.only:
        return measure_here(args, ours, trl)
    for dtype in args.dtype:
        print(f"{dtype}, {args.threads} threads\n| rollouts x new tokens | | s a step | tokens a step | GB | time over "
              "ours | memory over ours |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |")
        for shape in args.shapes:
            answers: dict = {method: [] for method in args.methods}
            for _ in range(args.rounds):
                for method in answers:
                    answers[method].append(in_a_fresh_process([method, shape, dtype], args.threads))
            print_rows(shape, answers)


def print_rows(shape: str, answers: dict) -> None:
    best = {method: {key: min(row[key] for row in rows) for key in rows[0]} for method, rows in answers.items()}
    first = next(iter(best.values()))
    for method, rows in answers.items():
        seconds, gigabytes = (", ".join(f"{row[key]:.{places}f}" for row in rows)
                              for key, places in (("seconds", 1), ("gigabytes", 2)))
        print(f"| {shape} | {method} | {seconds} | {best[method]['tokens']:.0f} | {gigabytes} | "
              f"{best[method]['seconds'] / first['seconds']:.2f} | "
              f"{best[method]['gigabytes'] / first['gigabytes']:.2f} |", flush=True)


def measure_here(args, ours, trl) -> None:
    import torch

    torch.set_num_threads(args.threads)
    work = Work(args)
    with tempfile.TemporaryDirectory() as folder:
        (ours if work.method == "ours" else trl)(args, work, str(Path(folder) / "run"))
    print(json.dumps(work.measured()))
