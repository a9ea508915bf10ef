"""What at least two scripts use and no equation of the method needs, in three sections: data, model, scoring.
Anything else stays in the stage that brings it in, or is the engine's.
"""
import copy
import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.logprobs import Head, linear_divergence, linear_logprobs
from engine.ranks import fail, world_size
from engine.rollouts import Rollouts, positions
from engine.sampler import sample  # noqa: F401  (the stages import it from here)
from engine.sharding import WeightFiles, allocate_parameters, parameters_on_meta, shard

# ================================================================ data

INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."


@dataclass
class Problem:
    id: str              # of its text: the same problem has the same id in every file
    text: str
    answer: str | None
    source: str          # "file, line 12", for messages
    tags: dict           # level, subject, … where the row has them


def load_problems(path: Path, need_answers: bool = True) -> list[Problem]:
    """Read problems in JSON lines: `problem` or `question`, and `answer` (GSM8K's: what stands after `####`)."""
    path = Path(path)
    if not path.is_file():
        fail(f"{path}: no such file of problems")
    problems = [read_problem(row, f"{path}, line {number}", need_answers) for number, row in numbered_rows(path)]
    if not problems:
        fail(f"{path}: the file holds no problems")
    return problems


def numbered_rows(path: Path):
    """(line number, object) of a user's file of JSON lines; refuses a line that is no JSON object."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):       # not splitlines: text may hold U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:                       # also of bytes that are not UTF-8
            reason = getattr(error, "msg", error)
            fail(f"{path}, line {number}: not JSON ({reason}); one object a line is expected")
        if not isinstance(row, dict):
            fail(f"{path}, line {number}: one JSON object a line is expected, this is a {type(row).__name__}")
        yield number, row


def read_problem(row: dict, source: str, need_answer: bool) -> Problem:
    text = row.get("problem", row.get("question"))
    if not isinstance(text, str) or not text.strip():
        fail(f"{source}: no text under `problem` or `question`")
    answer = row.get("answer")
    answer = None if answer is None else str(answer).split("####")[-1].strip()
    if need_answer and not answer:
        fail(f"{source}: no answer under `answer`; the reward needs one for each problem")
    tags = {key: row[key] for key in ("level", "subject") if key in row}
    return Problem(hashlib.sha256(text.encode()).hexdigest()[:16], text, answer, source, tags)


def encode_prompts(tokenizer, problems: list[Problem], args) -> list[list[int]]:
    """Token ids of each problem's prompt.

    With a chat template: one user message, the problem and --instruction.  Without one: the problem's text as it is.
    Ids come straight from the template; rendering text and tokenising that would add a second BOS.
    """
    if not tokenizer.chat_template or not problems:
        return [tokenizer(problem.text)["input_ids"] for problem in problems]
    messages = [[{"role": "user", "content": f"{problem.text}\n{args.instruction}"}] for problem in problems]
    return tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True,
                                         enable_thinking=args.enable_thinking)["input_ids"]


def check_context(model_dir: Path, problems: list[Problem], prompts: list[list[int]], max_new_tokens: int) -> None:
    """Refuse a prompt that leaves no room for its completion, before any weights load."""
    context = json.loads((model_dir / "config.json").read_text()).get("max_position_embeddings")
    for problem, prompt in zip(problems, prompts):
        if context and len(prompt) + max_new_tokens > context:
            fail(f"{problem.source}: a prompt of {len(prompt)} tokens and --max-new-tokens {max_new_tokens} exceed "
                 f"the {context} tokens of context of {model_dir}")


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
    """The tokenizer of a checkpoint directory; its padding token is its EOS where it has none of its own."""
    from transformers import AutoTokenizer

    if not any((Path(model_dir) / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        fail(f"{model_dir}: the model directory has no tokenizer (tokenizer.json); copy its tokenizer's files there")
    tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model_dir: Path, tokenizer, dtype: torch.dtype, device, trainable: bool = False,
               activation_checkpointing: bool = False):
    """A causal LM from safetensors, without dropout, its vocabulary cut to the tokenizer's, sharded over the ranks.

    It computes in `dtype`.  A model that is trained keeps float32 weights whatever it computes in: in bf16,
    0.02 − 1e-6 is 0.02.  activation_checkpointing: forget a block's activations and compute them again when needed.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()                              # the stages' own bars are the ones to look at
    config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False)
    for name in [name for name in config.to_dict() if "dropout" in name or "pdrop" in name]:
        setattr(config, name, 0.0)                      # the policy that sampled is the policy that is scored
    weights_dtype, files = torch.float32 if trainable else dtype, WeightFiles(model_dir)
    with parameters_on_meta():
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=weights_dtype, trust_remote_code=False)
        model = cut_vocabulary(model, model_dir, tokenizer)
    if files.fit(model):
        model = shard(model, dtype, trainable) if world_size() > 1 else model
        allocate_parameters(model, device)
        files.read_into(model)
        if (model_dir / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(model_dir)
    else:                                               # its tensors have other names than its modules: read it whole
        model = AutoModelForCausalLM.from_pretrained(model_dir, config=config, dtype=weights_dtype,
                                                     use_safetensors=True, trust_remote_code=False)
        model = cut_vocabulary(model, model_dir, tokenizer).to(device)
        model = shard(model, dtype, trainable) if world_size() > 1 else model
    model.requires_grad_(trainable)
    if activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train(activation_checkpointing)        # without dropout both modes compute the same


def cut_vocabulary(model, model_dir: Path, tokenizer):
    """Padded rows of embeddings and head are untrained: never sampled, in no softmax."""
    vocab_size, columns = vocabulary_size(tokenizer), model.get_output_embeddings().weight.shape[0]
    if columns < vocab_size:
        fail(f"{model_dir}: the tokenizer has {vocab_size} tokens and the model only {columns}")
    if columns > vocab_size:
        model.resize_token_embeddings(vocab_size)
    return model


def vocabulary_size(tokenizer) -> int:
    return max(tokenizer.get_vocab().values()) + 1


def stop_ids(model_dir: Path, tokenizer) -> list[int]:
    """The ids that end a completion: the checkpoint's generation_config, else its config, else its tokenizer."""
    for name in ("generation_config.json", "config.json"):
        file = Path(model_dir) / name
        ids = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        if ids is not None:
            return [ids] if isinstance(ids, int) else list(ids)
    return [tokenizer.eos_token_id]


def check_pair(student_dir: Path, student_tokenizer, teacher_dir: Path, teacher_tokenizer) -> None:
    """A teacher can score a student's ids only where both give every id the same meaning and end alike."""
    student_vocab, teacher_vocab = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    if student_vocab != teacher_vocab:
        token = next(token for token in {**student_vocab, **teacher_vocab}
                     if student_vocab.get(token) != teacher_vocab.get(token))
        fail(f"student {student_dir} and teacher {teacher_dir} have different vocabularies: token {token!r} has id "
             f"{student_vocab.get(token)} in the one and {teacher_vocab.get(token)} in the other")
    student_stop, teacher_stop = stop_ids(student_dir, student_tokenizer), stop_ids(teacher_dir, teacher_tokenizer)
    if not set(student_stop) & set(teacher_stop):
        fail(f"student {student_dir} ends with id {student_stop}, teacher {teacher_dir} with {teacher_stop}: "
             "no end token in common (a base and an instruct model?); set eos_token_id in one generation_config.json")


# ================================================================ scoring
# What was sampled (sampler.py) and its logprobs under a model.


def forward_inputs(rollouts: Rollouts) -> dict:
    """The arguments of one forward pass over prompt and completion."""
    mask = torch.cat([rollouts.prompt_mask, rollouts.completion_mask], 1)
    return {"input_ids": torch.cat([rollouts.prompt_ids, rollouts.completion_ids], 1), "attention_mask": mask,
            "position_ids": positions(mask), "use_cache": False}


def completion_logits(model, rollouts: Rollouts, temperature: float = 1.0) -> Tensor:
    """Logits at the one sampling temperature.  -> (B, C, V); row t predicts completion_ids[:, t].

    For trying an equation out and for tests: what follows does without the whole logits.
    """
    length = rollouts.completion_ids.shape[1]
    logits = model(**forward_inputs(rollouts), logits_to_keep=length + 1).logits[:, -length - 1:-1]
    return logits if temperature == 1.0 else logits / temperature


def forward_with_head(model, rollouts: Rollouts, function):
    """What function(hidden, head) returns, called inside of the model's own forward pass, where its head would be.

    hidden (T, D) are the states that predict the T completion tokens under the mask, row after row.  Inside, because
    there a sharded model has its weights whole, and because its backward pass begins at what forward returns: function
    returns tensors, and whatever is to be differentiated is among them.
    """
    length, known, plain_forward = rollouts.completion_ids.shape[1], has_known_head(model), model.forward

    def forward(**inputs):
        if known:
            hidden, head = model.base_model(**inputs).last_hidden_state, head_of(model)
        else:                                           # the states are the logits
            hidden, head = plain_forward(**inputs, logits_to_keep=length + 1).logits, Head(None)
        return function(hidden[:, -length - 1:-1][rollouts.completion_mask], head)

    with replaced_forward(model, forward):
        return model(**forward_inputs(rollouts))


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


def head_of(model) -> Head:
    output = model.get_output_embeddings()
    return Head(output.weight, getattr(output, "bias", None), getattr(model.config, "final_logit_softcapping", None))


@torch.no_grad()
def has_known_head(model) -> bool:
    """Whether `head_of` tells all that the model does to its hidden states: some scale.  Tried once, on a few ids."""
    def compare(input_ids, use_cache):
        hidden = model.base_model(input_ids=input_ids, use_cache=use_cache).last_hidden_state[0]
        expected = plain_forward(input_ids=input_ids, use_cache=use_cache).logits[0]
        got = head_of(model).logits(hidden).to(expected.dtype)
        return torch.tensor(got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-2, atol=1e-3))

    if not hasattr(model, "_has_known_head"):
        plain_forward = model.forward
        with replaced_forward(model, compare):
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
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, figures)


def sampler_gap(logprobs: list[Tensor], rollouts: list[Rollouts]) -> dict:
    """How far the sampler's logprobs are from those that the trainer recomputes, over this rank's tokens, nats.

    Another kernel, dtype or batch shape is another policy: a gap that grows makes the policy gradient biased.
    Without a token nothing is measured, and the answer is empty.
    """
    gaps = [(mine - part.sampler_logprobs).abs()[part.completion_mask] for mine, part in zip(logprobs, rollouts)]
    gaps = torch.cat([gap.detach().float().cpu() for gap in gaps]).sort().values
    if not len(gaps):
        return {}
    return {"sampler_gap_mean_nats": gaps.mean().item(), "sampler_gap_max_nats": gaps[-1].item(),
            "sampler_gap_p99_nats": gaps[int(0.99 * (len(gaps) - 1))].item()}
