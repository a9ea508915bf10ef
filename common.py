"""What at least two scripts use and no equation of the method needs: flags, data, model, sampling and scoring.
Anything else stays in the stage that brings it in, or is the engine's.
"""
import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.checkpoints import find_model
from engine.heads import forward_with_head
from engine.logprobs import linear_divergence, linear_logprobs
from engine.models import check_pair, completion_texts, eos_ids, load_model, load_tokenizer
from engine.packed import Padded
from engine.problems import (
    Problem, check_prompt_ids, check_runs_prompts, check_teacher_prompts, contents, encode_prompts, load_problems,
    longest_completion, prompt_inputs, with_readable_golds,
)
from engine.ranks import balanced_share, fail, random_generator, say
from engine.rollouts import Rollouts
from engine.sampler import sample
from engine.sharding import sampling_weights
from judge.answers import grade

# ================================================================ flags


class FlagParser(argparse.ArgumentParser):
    """--help shows the docstring as it is written and what every flag is by default; a wrong flag is one sentence."""

    def __init__(self, docstring: str, **more):
        if hasattr(sys.stdout, "reconfigure"):          # a container without a locale has an ASCII one
            sys.stdout.reconfigure(errors="backslashreplace")
        super().__init__(description=docstring, formatter_class=WithDefaults, **more)

    def error(self, message: str) -> None:
        fail(f"{message} ({self.prog} --help lists the flags)")


class WithDefaults(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action) -> str:
        if not action.option_strings or action.dest == "help" or "default" in (action.help or ""):
            return action.help
        default = "none" if action.default is None else "off" if action.default is False else action.default
        default = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{action.help or ''} ({'required' if action.required else f'default: {default}'})".lstrip()


def positive(text: str) -> int:
    """The type of a flag that counts what there must be: 1 or more."""
    return bounded(int(text), int(text) >= 1, "give 1 or more")


def natural(text: str) -> int:
    """The type of a flag whose 0 means none, never or all."""
    return bounded(int(text), int(text) >= 0, "give 0 or more")


def above_zero(text: str) -> float:
    """The type of --temperature, among others: training samples, it does not decode greedily."""
    return bounded(float(text), 0 < float(text) < float("inf"), "give a number above 0")


def from_zero(text: str) -> float:
    return bounded(float(text), 0 <= float(text) < float("inf"), "give a number of 0 or more")


def share_of_one(text: str) -> float:
    return bounded(float(text), 0 <= float(text) <= 1, "give a number from 0 to 1")


def finite(text: str) -> float:
    return bounded(float(text), abs(float(text)) < float("inf"), "give a number")


def bounded(number, holds: bool, wanted: str):
    if not holds:
        raise argparse.ArgumentTypeError(f"{number}: {wanted}")
    return number


# ================================================================ data


def load_graded_problems(paths: list[Path] | None, args) -> list[Problem]:
    """Problems with golds that the judge can read, or whose unreadable ones have been named (--skip-unreadable)."""
    return with_readable_golds(load_problems(paths or []), args.skip_unreadable)


@dataclass
class Prepared:
    """What a script knows before any weights load."""
    parents: dict[str, dict]            # flag -> what find_model returned
    tokenizer: object                   # of the first, which samples
    vocab_size: int                     # ids that all of them have rows for
    eos_ids: list[int]                  # ids that end a completion
    prompts: list[list[list[int]]]      # of each group of problems, their token ids
    inputs: dict[str, dict]             # digests of all that decides prompts and rewards, for open_run


def prepare(args, flags: list[str], **groups: list[Problem]) -> Prepared:
    """Find the models that `flags` name and check all that can be checked before weights load: that files are whole,
    that a pair's vocabularies and prompts agree, that prompts leave room for completions.

    groups: problems, by the name of their flag.  Sets args.max_new_tokens where it was not given.
    """
    parents = {flag: find_model(getattr(args, flag), args.allow_failed_certificate) for flag in flags}
    dirs = [Path(parent["path"]) for parent in parents.values()]
    tokenizer, other = load_tokenizer(dirs[0]), load_tokenizer(dirs[-1])
    vocab_size, ends = check_pair(dirs[0], tokenizer, dirs[-1], other), eos_ids(dirs[0], tokenizer)
    prompts = [encode_prompts(tokenizer, problems, args) for problems in groups.values()]
    every_problem, every_prompt = sum(groups.values(), []), sum(prompts, [])
    check_prompt_ids(every_problem, every_prompt, vocab_size)
    args.max_new_tokens = longest_completion(dirs, every_problem, every_prompt, args.max_new_tokens)
    if "student" in flags:
        check_teacher_prompts(tokenizer, other, every_problem, every_prompt, args)
        check_runs_prompts(tokenizer, args, parents)
    inputs = {name: contents(problems) for name, problems in groups.items()}
    say(f"first prompt: {tokenizer.decode(every_prompt[0])!r}")
    return Prepared(parents, tokenizer, vocab_size, ends, prompts,
                    inputs | prompt_inputs(tokenizer, args, every_prompt, ends))


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


# ================================================================ model


def load_prepared(ready: Prepared, flag: str, args, device, trainable: bool = False):
    """The model that a flag names, with the vocabulary that it has in common with the others."""
    return load_model(Path(ready.parents[flag]["path"]), ready.tokenizer, args.dtype, device, trainable=trainable,
                      activation_checkpointing=trainable and args.activation_checkpointing, vocab_size=ready.vocab_size)


# ================================================================ sampling and scoring


def sample_share(model, tokenizer, prompts: list[list[int]], args, eos_ids: list[int], *purpose,
                 indices: list[int] | None = None) -> tuple[Rollouts, list[int]]:
    """Sample this rank's share of prompts that all ranks hold, with the model's weights gathered for that time.

    -> --samples-per-prompt completions of each, adjacent; the places of these prompts in `prompts`.
    What is drawn hangs on (--seed, *purpose) and each prompt's index (default: its place), not on how many ranks share.
    """
    places, indices = balanced_share([len(prompt) for prompt in prompts]), indices or range(len(prompts))
    with sampling_weights(model, args.dtype, args.sample_on_shards) as whole_model:
        rollouts = sample(whole_model, [prompts[place] for place in places],
                          samples_per_prompt=args.samples_per_prompt, max_new_tokens=args.max_new_tokens,
                          temperature=args.temperature, eos_ids=eos_ids, pad_id=tokenizer.pad_token_id,
                          generator=random_generator(args.seed, *purpose), indices=[indices[place] for place in places],
                          rollout_tokens=args.rollout_tokens)
    return rollouts, places


def grade_rollouts(rollouts: Rollouts, golds: list[str], tokenizer) -> Tensor:
    """1 where the final answer is equivalent to the gold answer, else 0 (equation 1).  -> (B,) float32

    golds: one for each prompt, whose rollouts are adjacent; None, where there is no label, makes 0.  A completion that
    was cut off is wrong, even behind its box: it did not end.
    """
    texts = completion_texts(tokenizer, rollouts.completions())
    each = [gold for gold in golds for _ in range(len(texts) // len(golds))]
    verdicts = [ended and gold is not None and grade(text, gold)
                for text, ended, gold in zip(texts, rollouts.finished.tolist(), each)]
    return torch.tensor(verdicts, dtype=torch.float32, device=rollouts.finished.device)


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
