"""From a checkpoint directory to a model and its tokenizer: loaded, tried, with the ids that end a completion.

    directory ──load_tokenizer──► tokenizer ──eos_ids──► the ids that end a completion
    directory ──load_model──► a causal LM without dropout, its vocabulary cut to the ids in use, sharded over the ranks;
                              tried on a few rows, so that what it makes of a row depends on no padding and no cache
"""
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from engine.attention import class_name, same_attention_again
from engine.checkpoints import (
    WeightFiles, empty_model, generation_config, longest_row, parameters_on_meta, quiet_transformers, read_object,
    several, text_config,
)
from engine.linears import choose
from engine.packed import Padded, few_rollouts
from engine.ranks import fail, first_line, gather_list, world_size
from engine.sampler import PlainCache
from engine.sharding import evaluating, is_sharded, shard
from judge.answers import THOUGHT_ENDS

# ================================================================ tokenizers and the ids that end a completion

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
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(eos_ids(model_dir, tokenizer)[0])
    return tokenizer


def vocabulary_size(tokenizer, *model_dirs: Path) -> int:
    """How many ids the tokenizer has and each of the models has a row for; the rest no model here samples or reads."""
    rows = [getattr(text_config(Path(model_dir)), "vocab_size", None) for model_dir in model_dirs]
    return min([max(tokenizer.get_vocab().values()) + 1, *filter(None, rows)])


def eos_ids(model_dir: Path, tokenizer) -> list[int]:
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


def completion_texts(tokenizer, completions: list[list[int]]) -> list[str]:
    """Completions as the judge reads them: without special tokens, but with those that tell thinking from answer, which
    some tokenizers have among their special ones."""
    signs = {id: token for token, id in tokenizer.get_vocab().items() if id in tokenizer.added_tokens_decoder
             and (THOUGHT_ENDS.fullmatch(token) or token in ("<answer>", "</answer>"))}
    texts = []
    for ids in completions:
        ends = [place for place, id in enumerate(ids) if id in signs]
        parts = [ids[start:end] for start, end in zip([0, *(place + 1 for place in ends)], [*ends, len(ids)])]
        decoded = tokenizer.batch_decode(parts, skip_special_tokens=True)
        texts.append("".join(text + sign for text, sign in zip(decoded, [*(signs[ids[place]] for place in ends), ""])))
    return texts


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
    student_stop, teacher_stop = eos_ids(student_dir, student_tokenizer), eos_ids(teacher_dir, teacher_tokenizer)
    if not set(student_stop) & set(teacher_stop):
        fail(f"student {student_dir} ends with id {student_stop}, teacher {teacher_dir} with {teacher_stop}: "
             "no end token in common (a base and an instruct model?); set eos_token_id in one generation_config.json")
    return size


# ================================================================ models


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
    model.eval().requires_grad_(trainable)
    model.longest_row = longest_row(model_dir)          # what `sample` keeps to
    choose(model)
    if activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": same_attention_again})
        for module in model.modules():                  # training mode is the blocks' switch alone: no part adds noise
            module.training = getattr(module, "gradient_checkpointing", False)
    with evaluating(model):
        check_finite(model, model_dir, dtype)
    check_served(model, model_dir, dtype)
    return model


def cut_vocabulary(model, vocab_size: int):
    """Padded rows of embeddings and head are untrained: never sampled, in no softmax."""
    if model.get_output_embeddings().weight.shape[0] > vocab_size:
        model.resize_token_embeddings(vocab_size)
    return model


def allocate_parameters(model, device) -> None:
    """Give the parameters memory, each rank its part; tied ones stay tied.  Buffers go to the device."""
    allocated: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter not in allocated:
                empty = torch.empty_like(parameter, device=device)
                allocated[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            if parameter is not None:
                module._parameters[name] = allocated[parameter]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def load_whole(model_dir: Path, config, dtype: str):
    """By transformers itself, on the CPU, whole on every rank: a checkpoint whose tensors are not the model's own."""
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers():
            model, info = AutoModelForCausalLM.from_pretrained(
                model_dir, config=config, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False,
                output_loading_info=True)
    except Exception as error:
        fail(f"{model_dir}: transformers cannot load these weights ({first_line(error)})")
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"):
        if info.get(kind):
            fail(f"{model_dir}: config.json and the weights do not fit, {several(sorted(map(str, info[kind])), kind)}")
    return model


# ================================================================ trying a model


@torch.no_grad()
def check_finite(model, model_dir: Path, dtype: str) -> None:
    """Refuse weights, or logits of a few ids, that are not finite in the dtype that they are computed in."""
    compute_dtype = getattr(torch, dtype)
    local = {name: p.to_local() if isinstance(p, DTensor) else p for name, p in model.named_parameters()}
    finite = torch.stack([parameter.to(compute_dtype).isfinite().all() for parameter in local.values()]).tolist()
    names = [name for name, is_finite in zip(local, finite) if not is_finite]
    if names := sum(gather_list([names]), []):          # each rank sees its part
        fail(f"{model_dir}: {several(names, 'tensor')} with numbers that are NaN or infinite in {dtype}; "
             "the checkpoint is damaged, or needs another --dtype")
    ids = torch.arange(8, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    autocast = torch.autocast(model.device.type, compute_dtype, enabled=model.dtype != compute_dtype)
    with autocast, served(model, model_dir):
        logits = model(input_ids=ids, use_cache=False).logits
    if is_sharded(model):
        model.reshard()                                 # its root stays gathered after a forward pass
    if not logits.float().logsumexp(-1).isfinite().all():
        fail(f"{model_dir}: the model's logits are NaN or infinite in {dtype}; the checkpoint is damaged, or needs "
             "another --dtype")


@torch.no_grad()
def check_served(model, model_dir: Path, dtype: str) -> None:
    """Refuse a model that makes something else of a row in a batch, padded, with its cache, beside a row at its last
    positions, or a second time as it is trained, than of the row alone.

    These are the plain ways of scoring and of sampling, on which everything falls back; the shared ways are compared
    with them.  A class that has no place for a mask or a cache ignores it, and would train on noise.
    """
    rollouts = few_rollouts(model.config.get_text_config().vocab_size, model.device)
    wide, narrow = (0.02, 1e-4) if dtype == "float32" else (0.2, 0.02)      # wide: rounding may choose another expert
    last = (model.longest_row or 4096) - 16
    for way, logits_of, first, bound in [
            (" in a second pass, as it is trained,", each_alone, 0, narrow), (" in a padded batch", padded, 0, wide),
            (" with its cache", step_by_step, 0, wide), (" beside a row of late positions", padded, last, wide)]:
        with evaluating(model), served(model, model_dir):
            expected = each_alone(model, rollouts, first)
        with nullcontext() if logits_of is each_alone else evaluating(model), served(model, model_dir, way):
            with torch.set_grad_enabled(logits_of is each_alone):           # only then are blocks checkpointed
                logits = logits_of(model, rollouts, first).detach()
        if not (error := distance(logits, expected)) <= bound:
            fail(f"{model_dir}: a {class_name(model)} is not served here: its logits{way} are off by {error:.2%} "
                 "from those of a row alone")
    if is_sharded(model):
        model.reshard()


@contextmanager
def served(model, model_dir: Path, way: str = ""):
    """Whatever a class does not take ends in one sentence; memory that is too small does not, it differs by rank."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        fail(f"{model_dir}: a {class_name(model)} is not served here: its forward pass{way} fails "
             f"({first_line(error)})")


def each_alone(model, rollouts, first: int = 0) -> Tensor:
    """Logits that predict the completions' tokens, by the model's own forward pass of each row by itself.  -> (N, V)

    first: the position at which the last row begins; the others begin at 0.
    """
    rows = []
    for number, (prompt, completion) in enumerate(zip(rollouts.prompts(), rollouts.completions()), 1):
        ids = torch.tensor([prompt + completion], device=model.device)
        late = first > 0 and number == len(rollouts)
        more = {"position_ids": first + torch.arange(ids.shape[1], device=model.device)[None]} if late else {}
        rows.append(model(input_ids=ids, use_cache=False, **more).logits[0, len(prompt) - 1:-1])
    return torch.cat(rows)


def padded(model, rollouts, first: int = 0) -> Tensor:
    """The same in one batch."""
    form = Padded(rollouts)
    form.inputs["position_ids"][-1] += first
    return form.predicting(form.call(model, model, **form.inputs).logits)


def step_by_step(model, rollouts, first: int = 0) -> Tensor:
    """The same by the cache that the plain way samples with; rows leave as they end.  Every row begins at 0."""
    prompts, completions = rollouts.prompts(), rollouts.completions()
    distinct = [list(prompt) for prompt in dict.fromkeys(map(tuple, prompts))]
    cache, rows, logits = PlainCache(model, 0, 0), list(range(len(prompts))), [[] for _ in prompts]
    step = cache.join(distinct, [prompts.count(prompt) for prompt in distinct])
    while True:
        for row, one in zip(rows, step):
            logits[row].append(one)
        stay = [place for place, row in enumerate(rows) if len(logits[row]) < len(completions[row])]
        if not stay:
            return torch.stack(sum(logits, []))
        if len(stay) < len(rows):
            cache.leave(torch.tensor(stay))
        rows = [rows[place] for place in stay]
        tokens = [completions[row][len(logits[row]) - 1] for row in rows]
        step = cache.forward(torch.tensor(tokens, device=model.device))


def distance(got: Tensor, expected: Tensor) -> float:
    """Of the token that is off most, as a share of the norm; what all its logits have in common is in no softmax."""
    got, expected = (x.float() - x.float().mean(-1, keepdim=True) for x in (got, expected))
    return float(((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
