"""What at least two of the scripts use and no equation needs: flags, batches of data, grading, evaluation, scoring.

What one script alone uses stands in that script.  What works without knowing the method stands in engine/.
"""
import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine.heads import forward_with_head
from engine.logprobs import linear_divergence, linear_logprobs
from engine.models import completion_texts, load_model, load_tokenizer  # noqa: F401, handed on
from engine.packed import Padded
from engine.problems import INSTRUCTION, Problem, distinct, load_problems, template_arguments, with_readable_golds
from engine.ranks import fail, gather_list, random_generator, rank, share, together
from engine.rollouts import Rollouts
from engine.sampler import sample
from engine.sharding import sampling_weights
from judge.answers import counts, grade

# ================================================================ flags


def number(kind: type, least=None, above=None, most=None):
    """The type of a flag: a finite int or float within these bounds."""
    wanted = ("a number" if least is above is None else f"{least} or more" if kind is int else
              f"a number above {above}" if least is None else f"a number of {least} or more")
    wanted += f", {most} at most" if most is not None else ""
    low, high = (bound if bound is not None else end for bound, end in ((least, -math.inf), (most, math.inf)))

    def number(text: str):
        value = kind(text)
        if not (low <= value <= high and (above is None or value > above) and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text}: give {wanted}")
        return value

    return number


positive = number(int, least=1)                         # of what there must be
natural = number(int, least=0)                          # of a flag whose 0 means none, never or all


class FlagParser(argparse.ArgumentParser):
    """--help shows the docstring as it is written and what every flag is by default; a wrong flag is one sentence.

    Its methods add the flags that several scripts have, and return the group to which the script adds its own.
    """

    def __init__(self, docstring: str, **more):
        if hasattr(sys.stdout, "reconfigure"):          # a container without a locale has an ASCII one
            sys.stdout.reconfigure(errors="backslashreplace")
        super().__init__(description=docstring, formatter_class=WithDefaults, **more)

    def error(self, message: str) -> None:
        fail(f"{message} ({self.prog} --help lists the flags)")

    def sampling_flags(self, temperature: float = 1.0, greedy: bool = False):
        """How prompts are written and completions are sampled.  greedy: a temperature of 0 is taken, too."""
        add = (group := self.add_argument_group("sampling")).add_argument
        add("--temperature", type=number(float, least=0) if greedy else number(float, above=0), default=temperature,
            help="0 is greedy" if greedy else "of sampling, and of every logit and logprob")
        add("--max-new-tokens", type=positive, help="tokens (default: what the context leaves, up to 8192)")
        add("--rollout-tokens", type=natural, default=0, help="of cache at a time; 0: what memory holds")
        add("--sample-on-shards", action="store_true", help="for a model that one rank cannot hold whole")
        add("--instruction", help=f"end of the user message (default, of chat models: {INSTRUCTION})")
        add("--enable-thinking", action="store_true", help="passed to the chat template")
        add("--template-args", type=template_arguments, metavar="JSON", help="more for the chat template")
        return group

    def optimisation_flags(self, max_steps: int):
        """How a stage trains, max_steps optimiser steps if --max-steps is not given."""
        add = (group := self.add_argument_group("optimisation")).add_argument
        add("--max-steps", type=positive, default=max_steps, help="optimiser steps, at most")
        add("--micro-batch-size", type=positive, default=8, help="rollouts per forward pass; memory only")
        add("--activation-checkpointing", action="store_true", help="less memory, a third more compute")
        add("--lr", type=number(float, least=0), default=1e-6, help="constant learning rate of AdamW")
        add("--weight-decay", type=number(float, least=0), default=0.1, help="of AdamW")
        add("--max-grad-norm", type=number(float, above=0), default=1.0, help="gradient clip")
        add("--dtype", choices=["float32", "bfloat16"], default="float32",
            help="of forward and backward; trained weights and AdamW's state stay float32")
        return group

    def run_flags(self):
        """What a run directory is made with."""
        self.add_argument("--out", type=Path, required=True, help="run directory to write")
        add = (group := self.add_argument_group("run")).add_argument
        add("--seed", type=natural, default=0, help="of all that is random")
        add("--skip-unreadable", action="store_true", help="leave out golds that the judge cannot read")
        add("--allow-failed-certificate", action="store_true", help="take a parent whose certificate failed")
        add("--overwrite", action="store_true", help="start anew in an existing --out")
        return group

    def training_run_flags(self, eval_every: int = 0, what: str = "evaluations; 0: never"):
        """Of a run that saves states and evaluates on its way.  eval_every: the default of that flag."""
        add = (group := self.run_flags()).add_argument
        add("--save-every", type=natural, default=20, help="optimiser steps between states; 0: never")
        add("--eval-problems", type=Path, nargs="+", help="problems to evaluate on while training")
        add("--eval-every", type=natural, default=eval_every, help=f"optimiser steps between {what}")
        add("--eval-samples", type=positive, default=4, help="completions per evaluation problem")
        return group


class WithDefaults(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action) -> str:
        if not action.option_strings or action.dest == "help" or "default" in (action.help or ""):
            return action.help
        default = "none" if action.default is None else "off" if action.default is False else action.default
        default = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{action.help or ''} ({'required' if action.required else f'default: {default}'})".lstrip()


# ================================================================ data


def load_graded_problems(paths: list[Path] | None, args) -> list[Problem]:
    """Problems with golds that the judge can read, or whose unreadable ones have been named (--skip-unreadable)."""
    return with_readable_golds(load_problems(paths or []), args.skip_unreadable)


def load_eval_problems(args, with_every: bool = True) -> list[Problem]:
    """--eval-problems, each once; none where the flag is not given.

    with_every: --eval-every says when to evaluate on them, and nothing else.
    """
    if with_every and bool(args.eval_every) != bool(args.eval_problems):
        fail("--eval-every and --eval-problems go together: give both, or neither")
    return distinct(load_graded_problems(args.eval_problems, args))


def batch_indices(num_items: int, batch_size: int, batch: int, seed: int) -> list[int]:
    """Items of the batch-th batch (from 0): epoch after epoch, each shuffled anew.  No state but the arguments."""
    positions = range(batch * batch_size, (batch + 1) * batch_size)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(num_items)
              for epoch in {position // num_items for position in positions}}
    return [int(orders[position // num_items][position % num_items]) for position in positions]


def bootstrap_interval(statistic, count: int, num_resamples: int = 1000) -> list[float]:
    """95% interval of `statistic(indices)` when the `count` items behind it are resampled with replacement."""
    rng = np.random.default_rng(0)
    values = np.array([statistic(rng.integers(0, count, count)) for _ in range(num_resamples)])
    known = values[~np.isnan(values)]                   # an AUC needs both outcomes among those drawn
    return [float(bound) for bound in np.percentile(known, [2.5, 97.5])] if len(known) else [float("nan")] * 2


# ================================================================ grading and evaluation


def verdicts_of(texts: list[str], finished: list[bool], golds: list[str | None]) -> list[bool]:
    """Whether each completion is right: it ended, and its final answer is equivalent to its gold answer.

    A completion that was cut off is wrong, even behind its box.  Without a gold (None) nothing is right.
    """
    return [bool(ended and gold is not None and grade(text, gold))
            for text, ended, gold in zip(texts, finished, golds)]


def grade_rollouts(rollouts: Rollouts, golds: list[str | None], tokenizer) -> tuple[Tensor, int]:
    """1 where the final answer is equivalent to the gold answer, else 0 (equation 1).  All ranks call it together.

    golds: one for each rollout, None where there is no label.
    -> rewards (B,) float32; how many comparisons the judge gave up on this rank, whose reward is 0.
    """
    before = counts["timeout"] + counts["failed"]
    texts, finished = completion_texts(tokenizer, rollouts.completions()), rollouts.finished.tolist()
    verdicts = together(lambda: verdicts_of(texts, finished, golds))
    rewards = torch.tensor(verdicts, dtype=torch.float32, device=rollouts.finished.device)
    return rewards, counts["timeout"] + counts["failed"] - before


@dataclass
class Sampling:
    """How an evaluation samples.  top_p 1 and top_k 0 are off; a temperature of 0 is greedy."""
    samples: int                        # completions of each problem
    max_new_tokens: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    batch_size: int = 256               # completions sampled at a time
    rollout_tokens: int = 0             # tokens of cache at a time; 0: what memory holds
    dtype: str = "float32"
    on_shards: bool = False             # for a model that one rank cannot hold whole


def evaluate(model, tokenizer, problems: list[Problem], prompts: list[list[int]], eos_ids: list[int],
             sampling: Sampling, run=None, progress: bool = False) -> list[dict]:
    """Sample and grade each problem; ranks share the problems.  -> completions.jsonl's rows.

    A problem's completions depend on the seed and its index, on nothing else.
    run: keeps each batch that is done; what it holds already is not done again.
    """
    indices, tokens, start = share(list(range(len(problems)))), 0, time.perf_counter()
    per_batch = max(1, sampling.batch_size // sampling.samples)
    rows, own_lines = run.kept_rows("evaluation") if run else ({}, [])
    for line in own_lines:
        add_counts(line["counts"])

    def do(todo: list[int]) -> int:
        """Sample and grade these problems.  -> tokens"""
        before = dict(counts)
        rollouts = sample(
            whole_model, [prompts[i] for i in todo], samples_per_prompt=sampling.samples,
            max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature, top_p=sampling.top_p,
            top_k=sampling.top_k, eos_ids=eos_ids, pad_id=tokenizer.pad_token_id,
            generator=random_generator(sampling.seed, "evaluate"), indices=todo,
            rollout_tokens=sampling.rollout_tokens)
        judged = judged_rows(rollouts, [problems[i] for i in todo], tokenizer)
        rows.update(zip(todo, judged))
        if run:
            more = {name: counts[name] - before[name] for name in counts}
            run.keep_rows("evaluation", todo, judged, together=False, counts=more)
        return int(rollouts.completion_mask.sum())

    bar = tqdm(total=len(indices) * sampling.samples, unit="completion", desc="evaluate",
               disable=not progress or rank() > 0)
    with sampling_weights(model, sampling.dtype, sampling.on_shards) as whole_model:
        for batch in (indices[i:i + per_batch] for i in range(0, len(indices), per_batch)):
            if todo := [i for i in batch if i not in rows]:
                tokens += do(todo)
            average = np.mean([rows[i]["verdicts"] for i in indices if i in rows])
            speed = tokens / (time.perf_counter() - start)
            bar.set_postfix_str(f"avg {average:.3f}, {speed:.0f} tokens/s", refresh=False)
            bar.update(len(batch) * sampling.samples)
    bar.close()
    return gather_list([rows[i] for i in indices])


def add_counts(more: dict) -> None:
    for name, count in more.items():
        counts[name] += count


def judged_rows(rollouts: Rollouts, problems: list[Problem], tokenizer) -> list[dict]:
    """Grade the rollouts of some problems, equally many adjacent ones each.  -> a row a problem."""
    samples, texts = len(rollouts) // len(problems), completion_texts(tokenizer, rollouts.completions())
    finished, lengths = rollouts.finished.tolist(), rollouts.completion_mask.sum(1).tolist()
    verdicts = verdicts_of(texts, finished, [problem.answer for problem in problems for _ in range(samples)])
    rows = []
    for start, problem in zip(range(0, len(texts), samples), problems):
        part = slice(start, start + samples)
        rows.append({"id": problem.id, "problem": problem.text, "answer": problem.answer, **problem.tags,
                     "completions": texts[part], "verdicts": verdicts[part], "lengths": lengths[part],
                     "finished": finished[part]})
    return rows


def accuracy(model, run) -> dict[str, float]:
    """avg@k on --eval-problems: --eval-samples completions a problem at the training temperature, no truncation.

    Empty where there are no such problems.
    """
    args, problems = run.args, run.problems["eval_problems"]
    if not problems:
        return {}
    sampling = Sampling(args.eval_samples, run.max_new_tokens, args.temperature, seed=args.seed, dtype=args.dtype,
                        rollout_tokens=args.rollout_tokens, on_shards=args.sample_on_shards)
    rows = evaluate(model, run.tokenizer, problems, run.prompts["eval_problems"], run.eos_ids, sampling)
    return {"eval_accuracy": float(np.mean([row["verdicts"] for row in rows]))}


# ================================================================ scoring


def completion_logits(model, rollouts: Rollouts, temperature: float = 1.0) -> Tensor:
    """Logits at the one sampling temperature.  -> (B, C, V); row t predicts completion_ids[:, t].

    For trying an equation out and for tests: what follows does without the whole logits.
    """
    length = rollouts.completion_ids.shape[1]
    logits = model(**Padded(rollouts).inputs, logits_to_keep=length + 1).logits[:, -length - 1:-1]
    return logits if temperature == 1.0 else logits / temperature


def completion_logprobs(model, rollouts: Rollouts, temperature: float = 1.0, entropy: bool = False):
    """Logprobs of the completions under `model`.  -> (B, C) float32, nats, 0 where masked; two with the entropy."""
    mask, token_ids = rollouts.completion_mask, rollouts.completion_ids
    figures = forward_with_head(model, rollouts, lambda hidden, head: linear_logprobs(
        hidden, head, token_ids[mask], temperature, entropy=entropy))
    return tuple(spread(figure, mask) for figure in figures) if entropy else spread(figures, mask)


def completion_divergence(student, teacher, rollouts: Rollouts, divergence, temperature: float = 1.0,
                          token_weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The loss Σ token_weights · divergence over the completions, ready for one backward().

    divergence: a stage's function of student_logits and teacher_logits, called on the logits of some tokens at a time;
    token_weights (B, C), default 1.
    -> the loss; the divergence and the student's logprobs, (B, C) float32, nats, without gradient, 0 where masked.
    """
    mask, with_gradient = rollouts.completion_mask, torch.is_grad_enabled()
    weights = torch.ones(int(mask.sum()), device=mask.device) if token_weights is None else token_weights[mask]

    def in_both(teacher_hidden, teacher_head):          # while the teacher's head is whole, too
        with torch.set_grad_enabled(with_gradient):
            return forward_with_head(student, rollouts, lambda hidden, head: linear_divergence(
                hidden, head, teacher_hidden, teacher_head, divergence, weights, rollouts.completion_ids[mask],
                temperature))

    with torch.no_grad():
        loss, nats, logprobs = forward_with_head(teacher, rollouts, in_both)
    return loss, spread(nats, mask), spread(logprobs, mask)


def spread(figures: Tensor, mask: Tensor) -> Tensor:
    """A figure of each token under the mask, in its place.  (T,) -> (B, C), 0 where masked"""
    return torch.zeros(mask.shape, dtype=figures.dtype, device=mask.device).masked_scatter(mask, figures)


def sampler_gap(logprobs: list[Tensor], rollouts: list[Rollouts]) -> dict:
    """How far the sampler's logprobs are from those that the trainer recomputes, over this rank's tokens, nats.

    Another kernel, dtype or batch shape is another policy: a gap that grows makes the policy gradient biased.
    Without a token nothing is measured, and the answer is empty.
    """
    gaps = [(mine - part.sampler_logprobs).abs()[part.completion_mask] for mine, part in zip(logprobs, rollouts)]
    gaps = torch.cat([gap.detach().float() for gap in gaps]).cpu().sort().values
    if not len(gaps):
        return {}
    return {"sampler_gap_mean_nats": gaps.mean().item(), "sampler_gap_max_nats": gaps[-1].item(),
            "sampler_gap_p99_nats": gaps[int(0.99 * (len(gaps) - 1))].item()}
