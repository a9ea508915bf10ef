"""What at least two scripts use and no equation of the method needs: flags, data, model, sampling and scoring.
Anything else stays in the stage that brings it in, or is the engine's.
"""
import argparse
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.attention import same_attention_again
from engine.checkpoints import (
    WeightFiles, allocate_parameters, check_finite, check_served, empty_model, find_model, generation_config,
    load_whole, parameters_on_meta, read_object, text_config,
)
from engine.logprobs import Head, linear_divergence, linear_logprobs
from engine.packed import Padded, layout
from engine.problems import (
    Problem, check_runs_prompts, check_teacher_prompts, contents, encode_prompts, load_problems, longest_completion,
    prompt_inputs, with_readable_golds,
)
from engine.ranks import balanced_share, fail, first_line, random_generator, say, world_size
from engine.rollouts import Rollouts
from engine.sampler import sample
from engine.sharding import sampling_weights, shard
from judge.answers import grade

# ================================================================ flags


class FlagParser(argparse.ArgumentParser):
    """--help shows the docstring as it is written and what every flag is by default; a wrong flag is one sentence."""

    def __init__(self, docstring: str, **more):
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
    stop: list[int]                     # ids that end a completion
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
    vocab_size, stop = check_pair(dirs[0], tokenizer, dirs[-1], other), stop_ids(dirs[0], tokenizer)
    prompts = [encode_prompts(tokenizer, problems, args) for problems in groups.values()]
    every_problem, every_prompt = sum(groups.values(), []), sum(prompts, [])
    check_prompt_ids(every_problem, every_prompt, vocab_size)
    args.max_new_tokens = longest_completion(dirs, every_problem, every_prompt, args.max_new_tokens)
    if "student" in flags:
        check_teacher_prompts(tokenizer, other, every_problem, every_prompt, args)
        check_runs_prompts(tokenizer, args, parents)
    inputs = {name: contents(problems) for name, problems in groups.items()}
    say(f"first prompt: {tokenizer.decode(every_prompt[0])!r}")
    return Prepared(parents, tokenizer, vocab_size, stop, prompts,
                    inputs | prompt_inputs(tokenizer, args, every_prompt, stop))


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

def load_tokenizer(model_dir: Path):
    """The tokenizer of a checkpoint directory; padding is an id that the model has a row for, an EOS if need be."""
    from transformers import AutoTokenizer

    model_dir = Path(model_dir)
    if not any((model_dir / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        fail(f"{model_dir}: the model directory has no tokenizer (tokenizer.json); copy its tokenizer's files there")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (model_dir / name).is_file():
            read_object(model_dir / name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False)
    except Exception as error:
        fail(f"{model_dir}: transformers cannot read the tokenizer there ({first_line(error)}); copy or download its "
             "files again")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= vocabulary_size(tokenizer, model_dir):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(stop_ids(model_dir, tokenizer)[0])
    return tokenizer


def load_model(model_dir: Path, tokenizer, dtype: str, device, trainable: bool = False,
               activation_checkpointing: bool = False, vocab_size: int | None = None):
    """A causal LM from safetensors, without dropout, its vocabulary cut to `vocab_size`, sharded over the ranks.

    It computes in `dtype`, "float32" or "bfloat16".  A model that is trained keeps float32 weights whatever it computes
    in: in bf16, 0.02 − 1e-6 is 0.02.  vocab_size: default its own, with this tokenizer.
    activation_checkpointing: forget a block's activations and compute them again when needed.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()                              # the stages' own bars are the ones to look at
    weights_dtype, compute_dtype = "float32" if trainable else dtype, getattr(torch, dtype)
    vocab_size = vocab_size or vocabulary_size(tokenizer, model_dir)
    files, model = WeightFiles(model_dir), empty_model(model_dir, weights_dtype)
    if sources := files.sources(model):
        with parameters_on_meta():
            model = cut_vocabulary(model, vocab_size)
        model = shard(model, compute_dtype, trainable) if world_size() > 1 else model
        allocate_parameters(model, device)
        files.read_into(model, sources)
        model.generation_config = generation_config(model_dir) or model.generation_config
    else:
        model = cut_vocabulary(load_whole(model_dir, model.config, weights_dtype), vocab_size).to(device)
        model = shard(model, compute_dtype, trainable) if world_size() > 1 else model
    check_finite(model.eval(), model_dir, dtype)
    check_served(model, model_dir, dtype)
    model.requires_grad_(trainable)
    if activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": same_attention_again})
    return model.train(activation_checkpointing)        # without dropout both modes compute the same


def load_prepared(ready: Prepared, flag: str, args, device, trainable: bool = False):
    """The model that a flag names, with the vocabulary that it has in common with the others."""
    return load_model(Path(ready.parents[flag]["path"]), ready.tokenizer, args.dtype, device, trainable=trainable,
                      activation_checkpointing=trainable and args.activation_checkpointing, vocab_size=ready.vocab_size)


def cut_vocabulary(model, vocab_size: int):
    """Padded rows of embeddings and head are untrained: never sampled, in no softmax."""
    if model.get_output_embeddings().weight.shape[0] > vocab_size:
        model.resize_token_embeddings(vocab_size)
    return model


def vocabulary_size(tokenizer, *model_dirs: Path) -> int:
    """How many ids the tokenizer has and each of the models has a row for; the rest no model here samples or reads."""
    rows = [getattr(text_config(Path(model_dir)), "vocab_size", None) for model_dir in model_dirs]
    return min([max(tokenizer.get_vocab().values()) + 1, *filter(None, rows)])


def check_prompt_ids(problems: list[Problem], prompts: list[list[int]], vocab_size: int) -> None:
    """Refuse a prompt with an id that the model has no row for, such as an image's in a model of text."""
    for problem, prompt in zip(problems, prompts):
        if max(prompt, default=0) >= vocab_size:
            fail(f"{problem.source}: its prompt has the id {max(prompt)}, and the model only ids below {vocab_size}")


def stop_ids(model_dir: Path, tokenizer) -> list[int]:
    """The ids that end a completion: those that the checkpoint's generation_config, config and tokenizer name.

    All of them: a base model's configs under a chat model's tokenizer name its <|endoftext|>, not its <|im_end|>.
    config.json's must be a special token: a class's default, often 2, may be a word of this tokenizer.
    """
    rows = vocabulary_size(tokenizer, model_dir)
    generation, config = (named_eos(Path(model_dir) / name) for name in ("generation_config.json", "config.json"))
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ids = [*generation, *(id for id in config if id in special), tokenizer.eos_token_id]
    ids = [id for id in dict.fromkeys(ids) if id is not None and id < rows] or [id for id in config if id < rows]
    if not ids:
        fail(f"{model_dir}: nothing there names an end token that the model has; set eos_token_id, the id that ends a "
             "completion, in generation_config.json")
    return ids


def named_eos(file: Path) -> list[int]:
    ids = read_object(file).get("eos_token_id") if file.is_file() else None
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(type(id) is int and id >= 0 for id in ids):
        fail(f"{file}: eos_token_id is {ids}; an id, or a list of ids, is expected")
    return ids


def check_pair(student_dir: Path, student_tokenizer, teacher_dir: Path, teacher_tokenizer) -> int:
    """A teacher can score a student's ids only where both give every id the same meaning and end alike.

    -> the size of their common vocabulary: the ids that both have rows for.
    """
    size = min(vocabulary_size(student_tokenizer, student_dir), vocabulary_size(teacher_tokenizer, teacher_dir))
    student_vocab, teacher_vocab = ({token: id for token, id in tokenizer.get_vocab().items() if id < size}
                                    for tokenizer in (student_tokenizer, teacher_tokenizer))
    if student_vocab != teacher_vocab:
        token = next(token for token in {**student_vocab, **teacher_vocab}
                     if student_vocab.get(token) != teacher_vocab.get(token))
        fail(f"student {student_dir} and teacher {teacher_dir} have different vocabularies: token {token!r} has id "
             f"{student_vocab.get(token)} in the one and {teacher_vocab.get(token)} in the other")
    student_stop, teacher_stop = stop_ids(student_dir, student_tokenizer), stop_ids(teacher_dir, teacher_tokenizer)
    if not set(student_stop) & set(teacher_stop):
        fail(f"student {student_dir} ends with id {student_stop}, teacher {teacher_dir} with {teacher_stop}: "
             "no end token in common (a base and an instruct model?); set eos_token_id in one generation_config.json")
    return size


# ================================================================ sampling and scoring


def sample_share(model, tokenizer, prompts: list[list[int]], args, stop: list[int], *purpose,
                 indices: list[int] | None = None) -> tuple[Rollouts, list[int]]:
    """Sample this rank's share of prompts that all ranks hold, with the model's weights gathered for that time.

    -> --samples-per-prompt completions of each, adjacent; the places of these prompts in `prompts`.
    What is drawn hangs on (--seed, *purpose) and each prompt's index (default: its place), not on how many ranks share.
    """
    places, indices = balanced_share([len(prompt) for prompt in prompts]), indices or range(len(prompts))
    with sampling_weights(model, args.dtype, args.sample_on_shards) as whole_model:
        rollouts = sample(whole_model, [prompts[place] for place in places],
                          samples_per_prompt=args.samples_per_prompt, max_new_tokens=args.max_new_tokens,
                          temperature=args.temperature, eos_ids=stop, pad_id=tokenizer.pad_token_id,
                          generator=random_generator(args.seed, *purpose), indices=[indices[place] for place in places],
                          rollout_tokens=args.rollout_tokens)
    return rollouts, places


def grade_rollouts(rollouts: Rollouts, golds: list[str], tokenizer) -> Tensor:
    """1 where the final answer is equivalent to the gold answer, else 0 (equation 1).  -> (B,) float32

    golds: one for each prompt, whose rollouts are adjacent; None, where there is no label, makes 0.  A completion that
    was cut off is wrong, even behind its box: it did not end.
    """
    texts = tokenizer.batch_decode(rollouts.completions(), skip_special_tokens=True)
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


def forward_with_head(model, rollouts: Rollouts, function):
    """What function(hidden, head) returns, called inside of the model's own forward pass, where its head would be.

    hidden (T, D) are the states that predict the T completion tokens under the mask, row after row.  Inside, because
    there a sharded model has its weights whole, and because its backward pass begins at what forward returns: function
    returns tensors, and whatever is to be differentiated is among them.
    """
    form, known, plain_forward = layout(model, rollouts), has_known_head(model), model.forward

    def forward(**inputs):
        if known:
            hidden, head = form.call(model, body_of(model), **inputs).last_hidden_state, head_of(model)
        else:                                           # the states are the logits
            inputs |= {"logits_to_keep": form.logits_to_keep}
            hidden, head = form.call(model, plain_forward, **inputs).logits, Head(None)
        return function(form.predicting(hidden), head)

    with replaced_forward(model, forward):
        return model(**form.inputs)


@contextmanager
def replaced_forward(model, forward):
    """model(…) calls this in place of its own forward, between the hooks that sharding has put around it."""
    before = vars(model).get("forward")
    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        if before is not None:
            model.forward = before


def body_of(model):
    """All but the head.  A class whose base_model_prefix names none of its modules is its own base_model."""
    return model.base_model if model.base_model is not model else model.get_decoder()


def head_of(model) -> Head:
    output = model.get_output_embeddings()
    return Head(output.weight, getattr(output, "bias", None), getattr(model.config, "final_logit_softcapping", None))


@torch.no_grad()
def has_known_head(model) -> bool:
    """Whether `head_of` tells all that the model does to its hidden states: some scale.  Tried once, on a few ids."""
    def compare(input_ids, use_cache):
        hidden = body_of(model)(input_ids=input_ids, use_cache=use_cache).last_hidden_state[0]
        expected = plain_forward(input_ids=input_ids, use_cache=use_cache).logits[0]
        got = head_of(model).logits(hidden).to(expected.dtype)
        return torch.tensor(got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-2, atol=1e-3))

    if body_of(model) is model:
        return False
    if not hasattr(model, "_has_known_head"):
        plain_forward = model.forward
        with replaced_forward(model, compare), torch.autocast(model.device.type, enabled=False):      # which rounds
            ids = torch.arange(8, device=model.device)[None]                # id 0 alone may be padding, its state 0
            model._has_known_head = bool(model(input_ids=ids, use_cache=False))
    return model._has_known_head


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
