"""How much memory and how long, before a machine is rented: every stage of a table, by formulas.

    python plan.py --scale paper --gpus 8 --gpu H100
    python plan.py --scale paper --gpus 1 --gpu H200 --activation-checkpointing --rollout-tokens 200000
    python plan.py --scale paper --gpus 8 --gpu H100 --teacher DIR --student Qwen3-4B

The commands are the table's own, read by each stage's own flags.  The engine that is planned for (sharding.py):
parameters, gradients and AdamW's state in float32, sharded over all GPUs; blocks gathered one at a time in the compute
dtype; the whole policy gathered in it while it samples; teachers and references sharded in it.

Memory is the largest of a few moments, each a sum of parts, in bytes on one GPU:

    rollouts    weights, AdamW's state, the gathered policy, the cache, one step's logits; no gradients
    scoring     a model that only reads goes over a micro-batch
    head        the end of a micro-batch's forward pass: all activations, and a tile of the logits
    block       the beginning of its backward pass through the blocks
    root        its end: the gradient of the embedding (AdamW's step is fused and needs nothing more)

`python bench/plan.py` holds the formulas against runs on the CPU; tests/test_plan.py holds the parameters and the
activations against transformers.  Hours are a textbook count of operations at one share of the GPU's peak,
--peak-share, which is an assumption: nobody has measured it here.
"""
import argparse
import bisect
import importlib
import itertools
import math
import shlex
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

from common import FlagParser, number, positive
from engine.problems import LONGEST_COMPLETION
from engine.checkpoints import read_object
from engine.ranks import fail
from engine.logprobs import WORKSPACE_BYTES
from experiments.runner import File, Given, Scope, text_of
from experiments.tables import SCALES, TABLES

GIB = 2**30
WORKSPACE = WORKSPACE_BYTES["cuda"]             # of logits alive at a time

# ================================================================ GPUs


@dataclass(frozen=True)
class GPU:
    flops: float           # dense bf16 with float32 sums, FLOP/s
    memory: float          # bytes that a process can see


GPUS = {
    "A100": GPU(312e12, 79.3 * GIB),       # SXM, 80 GB
    "A100-40GB": GPU(312e12, 39.4 * GIB),
    "H100": GPU(989e12, 79.2 * GIB),
    "H200": GPU(989e12, 139.8 * GIB),
    "B200": GPU(2250e12, 178.4 * GIB),
    "L40S": GPU(362e12, 44.4 * GIB),
    "RTX3090": GPU(71e12, 23.6 * GIB),
    "RTX4090": GPU(165e12, 23.5 * GIB),
    "RTX5090": GPU(209e12, 31.4 * GIB),
}

RESERVE = 2 * GIB          # CUDA's context and libraries, NCCL's buffers
FRAGMENTATION = 0.05       # share of the memory that the allocator cannot hand out

# ================================================================ models


@dataclass(frozen=True)
class Model:
    """A decoder of the Llama and Qwen families: RMSNorm, grouped-query attention, gated MLP."""
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool = False             # the head is the embedding
    qk_norm: bool = False          # Qwen3
    biases: str = ""               # those of q, k, v and o that the projections have

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        return self.kv_heads * self.head_dim


def qwen3(hidden: int, intermediate: int, layers: int, heads: int, tied: bool = False) -> Model:
    return Model(151936, hidden, intermediate, layers, heads, 8, 128, tied, qk_norm=True)


MODELS = {
    "Qwen3-0.6B": qwen3(1024, 3072, 28, 16, tied=True),
    "Qwen3-1.7B": qwen3(2048, 6144, 28, 16, tied=True),
    "Qwen3-4B": qwen3(2560, 9728, 36, 32, tied=True),
    "Qwen3-8B": qwen3(4096, 12288, 36, 32),
    "Qwen3-14B": qwen3(5120, 17408, 40, 40),
    "Qwen3-32B": qwen3(5120, 25600, 64, 64),
    "SmolLM2-135M": Model(49152, 576, 1536, 30, 9, 3, 64, tied=True),
    "Llama-3.2-1B-Instruct": Model(128256, 2048, 8192, 16, 32, 8, 64, tied=True),
    "Llama-3.2-3B-Instruct": Model(128256, 3072, 8192, 28, 24, 8, 128, tied=True),
    "Llama-3.1-8B-Instruct": Model(128256, 4096, 14336, 32, 32, 8, 128),
    "Llama-3.3-70B-Instruct": Model(128256, 8192, 28672, 80, 64, 8, 128),
}


def find(name: str) -> Model:
    """A model by its checkpoint directory, finished run or config.json, else by its name in MODELS."""
    path = Path(name)
    for file in (path, path / "config.json", path / "model" / "config.json"):
        if file.is_file():
            return read_config(read_object(file), str(file))
    known = path.name.split("@")[0]                     # of owner/name@revision
    if known not in MODELS:
        fail(f"{name}: no config.json there, and plan.py knows only {', '.join(MODELS)}; give --teacher and --student "
             "a checkpoint directory or one of these names")
    return MODELS[known]


def read_config(config: dict, source: str = "config.json") -> Model:
    """transformers' config of a Llama, Mistral, Qwen2 or Qwen3 -> Model."""
    family = config.get("model_type")
    if family not in ("llama", "mistral", "qwen2", "qwen3") or config.get("mlp_bias"):
        fail(f"{source}: plan.py has no formulas for this model_type, {family}, only for llama, mistral, qwen2 and "
             "qwen3 without biases in the MLP")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    biases = "qkv" if family == "qwen2" else "qkvo" if config.get("attention_bias") else ""
    return Model(config["vocab_size"], hidden, config["intermediate_size"], config["num_hidden_layers"], heads,
                 config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // heads,
                 bool(config.get("tie_word_embeddings")), family == "qwen3", biases)


def block_params(model: Model) -> int:
    """Parameters of one block: q and o, k and v, the MLP's three, two norms, Qwen3's norms of a head, biases."""
    matrices = 2 * model.hidden * model.query + 2 * model.hidden * model.key + 3 * model.hidden * model.intermediate
    widths = {"q": model.query, "k": model.key, "v": model.key, "o": model.hidden}
    biases = sum(widths[name] for name in model.biases)
    return matrices + 2 * model.hidden + 2 * model.head_dim * model.qk_norm + biases


def root_params(model: Model) -> int:
    """What is in no block: the embedding, the head where it has its own weight, the last norm."""
    return (1 if model.tied else 2) * model.vocab * model.hidden + model.hidden


def num_params(model: Model) -> int:
    return model.layers * block_params(model) + root_params(model)


# ================================================================ stages


@dataclass(frozen=True)
class Stage:
    """What one command does, as far as memory and time depend on it.  Counts are of all GPUs unless said otherwise."""
    name: str
    sampler: Model
    trained: Model | None = None            # the sampler itself, or nothing
    readers: tuple[Model, ...] = ()         # teacher, reference: they score and are never updated
    divergence: bool = False                # the loss is over the vocabulary, of student and teacher
    steps: float = 1                        # optimiser steps; without `trained`, batches of rollouts
    rollouts: float = 0                     # trained on in each step
    scored_by_sampler: float = 0            # rollouts that it goes over in each step without learning from them
    scored_by_readers: float = 0
    waves: tuple["Wave", ...] = ()          # sampling
    gpus: int = 1
    width: int = 2                          # bytes of a number in the compute dtype
    micro_batch_size: int = 8
    samples: int = 1                        # adjacent rollouts of a prompt, which is computed once for them
    max_prompt: int = 2048                  # tokens
    max_new: int = 8192
    mean_prompt: float = 200
    mean_new: float = 2048
    rollout_tokens: int = 0
    activation_checkpointing: bool = False
    offload_teacher: bool = False
    sample_on_shards: bool = False

    @property
    def residual(self) -> int:
        """Bytes of a number between blocks: one process computes in bf16 by autocast, which keeps these in float32."""
        return 4 if self.gpus == 1 else self.width


@dataclass(frozen=True)
class Wave:
    """Prompts that each GPU samples together, and how often in a step (a fraction: every so many steps)."""
    prompts: int
    samples: int
    times: float = 1


# ================================================================ memory
# Every function gives bytes on one GPU.


def num_tokens(stage: Stage) -> int:
    """Of a micro-batch as it goes through the model (engine/packed.py): each prompt once, and its completions."""
    return math.ceil(stage.micro_batch_size / stage.samples) * stage.max_prompt + stage.micro_batch_size * stage.max_new


def num_places(stage: Stage) -> int:
    """Of a micro-batch in the attention alone, where each rollout stands behind its prompt again."""
    return stage.micro_batch_size * (stage.max_prompt + stage.max_new)


def saved_per_token(model: Model, width: int, residual: int) -> int:
    """Activations that autograd keeps of one token in one block, less the attention's.

    width, residual: bytes of a number inside and between blocks.
    RMSNorm computes in float32: it keeps its input so, and the normalised input.  Where it hands on another dtype than
    the projections compute in, each of the five keeps a copy of its own.
    """
    norms = 2 * ((4 + residual) * model.hidden + 4)
    projected = width * (model.hidden * (2 if residual == width else 5) + model.query)
    head_norms = (4 + width) * (model.query + model.key) + 4 * (model.heads + model.kv_heads)
    mlp = 4 * width * model.intermediate                # gate, its SiLU, up, their product
    return norms + projected + mlp + (head_norms if model.qk_norm else 0)


def saved_per_place(model: Model, width: int) -> int:
    """What the attention of one block keeps: a query and its result, a key and a value, the softmax's denominator."""
    return width * (2 * model.query + 2 * model.key) + 4 * model.heads


def saved_around_blocks(model: Model, residual: int) -> int:
    """Activations of one token outside the blocks: the last norm, RoPE's cosines and sines, its id and its place."""
    return (4 + residual) * model.hidden + 4 + 2 * residual * model.head_dim + 16


def saved_in_blocks(stage: Stage) -> float:
    """Activations of one block over a micro-batch."""
    model, width = stage.trained, stage.width
    return (num_tokens(stage) * saved_per_token(model, width, stage.residual)
            + num_places(stage) * saved_per_place(model, width))


def forward_work(model: Model, width: int, tokens: float, places: float = 0) -> float:
    """What is alive in a forward pass that keeps nothing: in the MLP, around RoPE, or in the attention.

    Beside it the embedding, the block's input, the residual and its norm: the callers' names hold them.
    """
    around_rope, places_hold = 4 * model.query + 2 * model.key, 2 * model.query + 2 * model.key
    attention = max(tokens * around_rope, tokens * places_hold / 2 + places * places_hold)
    return width * (tokens * 4 * model.hidden + max(tokens * 3 * model.intermediate, attention))


def backward_work(model: Model, width: int, tokens: float, places: float) -> float:
    """Gradients in flight in a block's backward pass, less what of the block is freed by then.

    In the MLP three of its width, its product freed; in attention those of queries, keys, values and the result at all
    places, the MLP, its norm and the input of the output projection freed.
    """
    mlp, freed = tokens * 2 * model.intermediate, tokens * (4 * model.intermediate + 3 * model.hidden + model.query)
    attention = places * (2 * model.query + 2 * model.key) - freed
    return width * (tokens * 2 * model.hidden + max(mlp, attention))


def kv_per_token(model: Model, width: int) -> int:
    return 2 * model.layers * model.key * width


def cached_tokens(stage: Stage, wave: Wave) -> int:
    """Tokens of cache at the worst: every completion as long as it may get, the prompts of a group once."""
    tokens = wave.prompts * (stage.max_prompt + wave.samples * stage.max_new)
    return max(stage.max_prompt + stage.max_new, min(tokens, stage.rollout_tokens or tokens))


def rows_at_once(stage: Stage, wave: Wave) -> int:
    """Rollouts of one GPU that its cache holds at a time."""
    rows = wave.prompts * wave.samples
    return max(1, min(rows, int(cached_tokens(stage, wave) / (stage.max_new + stage.max_prompt / wave.samples))))


def gathered(model: Model, stage: Stage, blocks_only: bool, gradient: bool = False) -> float:
    """Weights in the compute dtype: of the whole model, or of embedding, head and two blocks (the next comes early).

    gradient: also that of one block, in the compute dtype and in float32 for its reduction.  One process gathers
    nothing: of a model that it trains it holds a copy in bf16; its gradients are added up a parameter at a time.
    """
    if stage.gpus == 1:
        copy = stage.width * num_params(model) if stage.width < 4 and stage.trained else 0
        return copy + 4 * max(model.intermediate, model.query) * model.hidden * gradient
    weights = root_params(model) + 2 * block_params(model) if blocks_only else num_params(model)
    return stage.width * weights + (stage.width + 4) * block_params(model) * gradient


def standing(stage: Stage, training: bool) -> dict:
    """What lies there at every moment, in shards.  While it samples: no gradients, and no teacher that is offloaded.

    FSDP2 keeps a model's root gathered from its forward to its backward pass; a reader has none, so its root stays.
    """
    parts = {"weights": stage.width * num_params(stage.sampler) / stage.gpus}
    if stage.trained:
        shard = 4 * num_params(stage.trained) / stage.gpus
        parts = {"weights": shard, "gradients": shard * training, "optimiser": 2 * shard}
    if training or not stage.offload_teacher:
        parts["teacher"] = stage.width * sum(
            num_params(reader) / stage.gpus + root_params(reader) * (stage.gpus > 1) for reader in stage.readers)
    return parts


def rollouts_moment(stage: Stage, wave: Wave) -> dict:
    """Decoding at its last step, or the prefill of all prompts that fit, whichever is more."""
    model, width, rows = stage.sampler, stage.width, rows_at_once(stage, wave)
    prefix = math.ceil(rows / wave.samples) * stage.max_prompt
    # Scores of a row against prefix and suffix: two float32 copies, for the softmax.
    attention = rows * model.heads * (stage.max_prompt + stage.max_new) * 8
    # The prefill's own work with its mask, or afterwards a second copy of what it cached.
    prefill = max(forward_work(model, width, prefix) + prefix * stage.max_prompt, prefix * kv_per_token(model, width))
    logits = rows * model.vocab * (2 * width + 8)       # the prefill's, the step's, and two in float32 around softmax
    grown = 1 + 1 / (2 * model.layers)                  # the cache grows a tensor at a time: an old one beside a new
    decoding = {"activations": attention, "logits": logits,
                "cache": kv_per_token(model, width) * cached_tokens(stage, wave) * grown}
    filling = {"activations": prefill, "cache": kv_per_token(model, width) * prefix}
    return standing(stage, training=False) | {
        "gathered": gathered(model, stage, blocks_only=stage.sample_on_shards)} | max(decoding, filling, key=total)


def scoring_moment(stage: Stage, model: Model) -> dict:
    """A forward pass of one micro-batch that keeps nothing, or the tiles of logits after it, whichever is more."""
    tokens, completion = num_tokens(stage), stage.micro_batch_size * stage.max_new
    forward = {"activations": forward_work(model, stage.width, tokens, num_places(stage))}
    tiles = {"activations": (tokens + completion) * model.hidden * stage.width,
             "logits": tile_bytes(model, completion, stage.width)}
    weights = gathered(model, stage, blocks_only=True) if stage.gpus > 1 else 0
    return standing(stage, training=True) | {"gathered": weights} | max(forward, tiles, key=total)


def tile_bytes(model: Model, completion: int, width: int, sides: int = 1) -> float:
    """The logits alive at a time, a student's and a teacher's where there are two `sides`; gradients overwrite them."""
    return min(sides * completion * model.vocab * width, WORKSPACE)


def activations(stage: Stage) -> float:
    """What autograd keeps of one micro-batch at the end of its forward pass."""
    model, tokens = stage.trained, num_tokens(stage)
    block = tokens * stage.residual * model.hidden if stage.activation_checkpointing else saved_in_blocks(stage)
    return model.layers * block + tokens * saved_around_blocks(model, stage.residual) + 8 * num_places(stage)


def head_moment(stage: Stage) -> dict:
    """All activations, the completion's last hidden states and their gradient, tiles of logits, the head's gradient."""
    model, width, completion = stage.trained, stage.width, stage.micro_batch_size * stage.max_new
    hidden = completion * model.hidden * (width + 4 + width)        # kept; its gradient in float32, and one product
    teacher_hidden = sum(completion * reader.hidden * width for reader in stage.readers)
    # the head's gradient, before it is added to what is there; a divergence has summed it in float32
    head = model.vocab * model.hidden * (width + 4 * (width < 4 and bool(stage.divergence)))
    return standing(stage, training=True) | {
        "gathered": gathered(model, stage, blocks_only=True), "activations": activations(stage),
        "logits": tile_bytes(model, completion, width, 2 if stage.divergence else 1) + hidden + teacher_hidden + head}


def block_moment(stage: Stage) -> dict:
    """All activations, and what is in flight in one block; with checkpointing the one block that is computed again."""
    model, width = stage.trained, stage.width
    again = stage.activation_checkpointing * saved_in_blocks(stage)
    work = backward_work(model, width, num_tokens(stage), num_places(stage))
    return standing(stage, training=True) | {
        "gathered": gathered(model, stage, blocks_only=True, gradient=True),
        "activations": activations(stage) + again + work,
        "logits": width * model.vocab * model.hidden * model.tied}              # the head's gradient waits


def root_moment(stage: Stage) -> dict:
    """The embedding's gradient is dense.  Tied, the head's waited, and the two are added up in place."""
    model, width = stage.trained, stage.width
    reduced = 4 * root_params(model) if stage.gpus > 1 else 0
    return standing(stage, training=True) | {
        "gathered": gathered(model, stage, blocks_only=True) + reduced,
        "logits": width * model.vocab * model.hidden * (2 if model.tied else 1)}


def moments(stage: Stage) -> dict[str, dict]:
    """Every moment that may be the peak, the largest wave of rollouts among them.  -> name -> part -> bytes"""
    found = {}
    if stage.waves:
        found["rollouts"] = max((rollouts_moment(stage, wave) for wave in stage.waves), key=total)
    scorers = stage.readers + ((stage.sampler,) if stage.readers and not stage.trained else ())
    if scorers:
        found["scoring"] = max((scoring_moment(stage, model) for model in scorers), key=total)
    if stage.trained:
        found |= {"head": head_moment(stage), "block": block_moment(stage), "root": root_moment(stage)}
    return found


def total(parts: dict) -> float:
    return sum(parts.values())


def worst_moment(stage: Stage) -> tuple[str, dict]:
    """-> its name, its parts"""
    return max(moments(stage).items(), key=lambda item: total(item[1]))


def peak(stage: Stage) -> float:
    return total(worst_moment(stage)[1])


def usable(gpu: GPU) -> float:
    return gpu.memory * (1 - FRAGMENTATION) - RESERVE


# ================================================================ time


def step_flops(stage: Stage) -> dict[str, float]:
    """Operations of one GPU: 2 a parameter and token forward, 6 with the backward pass, 8 with checkpointing."""
    length, sampler = stage.mean_prompt + stage.mean_new, num_params(stage.sampler)
    sampled = sum(wave.times * wave.prompts * wave.samples for wave in stage.waves)
    scored = sum(map(num_params, stage.readers)) * stage.scored_by_readers + sampler * stage.scored_by_sampler
    passes = (8 if stage.activation_checkpointing else 6) * (stage.trained is not None)
    return {"sample": 2 * sampler * sampled * length, "score": 2 * scored * length / stage.gpus,
            "train": passes * sampler * stage.rollouts * length / stage.gpus}      # what is trained samples


def step_seconds(stage: Stage, gpu: GPU, peak_share: float) -> dict[str, float]:
    return {part: flops / (peak_share * gpu.flops) for part, flops in step_flops(stage).items()}


# ================================================================ what would fit


def with_largest_cache(stage: Stage, gpu: GPU) -> Stage:
    """The largest --rollout-tokens, in thousands, with which the rollouts fit; as it is where they do, or never can."""
    def fits(tokens: int) -> bool:
        return total(moments(replace(stage, rollout_tokens=tokens))["rollouts"]) <= usable(gpu)

    one_row = stage.max_prompt + stage.max_new
    most = max((cached_tokens(stage, wave) for wave in stage.waves), default=0)
    if not stage.waves or fits(most) or not fits(one_row):
        return stage
    best = bisect.bisect_left(range(most // 1000), True, key=lambda thousands: not fits(1000 * thousands))
    return replace(stage, rollout_tokens=max(1000 * (best - 1), one_row))


def remedy(stage: Stage, gpu: GPU) -> Stage | None:
    """The setting with the fewest changed flags that fits, and the least of them: a smaller cache, micro-batches,
    checkpointing, a teacher on the CPU, rollouts on shards.  None where none fits.
    """
    if peak(stage) <= usable(gpu):
        return stage
    fitting = []
    for halvings, checkpoint, offload, on_shards in itertools.product(range(8), *[(False, True)] * 3):
        candidate = with_largest_cache(replace(
            stage, micro_batch_size=max(1, stage.micro_batch_size >> halvings),
            activation_checkpointing=stage.activation_checkpointing or checkpoint and stage.trained is not None,
            offload_teacher=stage.offload_teacher or offload and bool(stage.readers and stage.trained),
            sample_on_shards=stage.sample_on_shards or on_shards), gpu)
        if peak(candidate) <= usable(gpu):
            fitting.append(candidate)
    return min(fitting, key=lambda setting: len(changes(stage, setting)), default=None)


ENGINE_FLAGS = ("micro_batch_size", "rollout_tokens", "activation_checkpointing", "offload_teacher", "sample_on_shards")


def changes(before: Stage, after: Stage) -> list[str]:
    """The flags in which two settings of a stage differ, as a command line would give the second's."""
    pairs = [(name, getattr(before, name), getattr(after, name)) for name in ENGINE_FLAGS]
    return [f"--{name.replace('_', '-')}" + ("" if new is True else f" {new}")
            for name, old, new in pairs if old != new]


# ================================================================ from the table's commands to stages


def build(command: str, models: dict[str, Model], gpus: int, args) -> Stage:
    """A Stage from one command of a table, read by the flags of its own script.  Its --out becomes a model's name."""
    script, flags = command.strip().split(" ", 1)
    flags = importlib.import_module(script.removesuffix(".py")).parse_args(shlex.split(flags))
    builder = {"stage1_grpo.py": grpo, "stage2_shape.py": shape, "stage3_kl.py": bridge, "stage4_distill.py": distill,
               "eval.py": evaluate}[script]
    stage = builder(flags, lambda path: models.get(str(path)) or find(str(path)), gpus, args)
    models[str(flags.out)] = stage.sampler
    longest = flags.max_new_tokens or LONGEST_COMPLETION
    engine = {name: getattr(args, name) or getattr(flags, name, getattr(stage, name)) for name in ENGINE_FLAGS}
    return replace(stage, **engine, name=flags.out.name, gpus=gpus, width=4 if flags.dtype == "float32" else 2,
                   max_prompt=args.max_prompt_tokens, max_new=longest, mean_prompt=args.mean_prompt_tokens,
                   mean_new=min(args.mean_new_tokens or longest / 4, longest))


def grpo(flags, model_of, gpus: int, args) -> Stage:
    model, rollouts = model_of(flags.model), flags.prompts_per_step * flags.samples_per_prompt
    prompts = math.ceil(flags.prompts_per_step * flags.steps_per_rollout / gpus)
    return Stage("", model, model, readers=(model,) if flags.kl_coef else (), steps=flags.max_steps,
                 divergence=bool(flags.kl_coef), samples=flags.samples_per_prompt,
                 rollouts=rollouts, scored_by_sampler=rollouts * (1 - 1 / flags.steps_per_rollout),
                 scored_by_readers=rollouts,
                 waves=(Wave(prompts, flags.samples_per_prompt, 1 / flags.steps_per_rollout),
                        *evaluation(flags, gpus, args)))


def shape(flags, model_of, gpus: int, args) -> Stage:
    counts = [flags.num_problems or args.problems, flags.num_certify_problems or args.num_certify_problems]
    batches = sum(math.ceil(count / flags.prompts_per_step) for count in counts)
    rollouts = sum(counts) * flags.samples_per_prompt / batches
    return Stage("", model_of(flags.teacher), readers=(model_of(flags.reference),), steps=batches,
                 samples=flags.samples_per_prompt, scored_by_sampler=rollouts, scored_by_readers=rollouts,
                 waves=(Wave(math.ceil(flags.prompts_per_step / gpus), flags.samples_per_prompt),))


def bridge(flags, model_of, gpus: int, args) -> Stage:
    student, every = model_of(flags.student), flags.eval_every or flags.max_steps
    prompts = math.ceil(flags.num_certify_problems / gpus)
    at_once = min(prompts, math.ceil(flags.rollouts_per_step / gpus))
    measured = 2 * flags.num_certify_problems / every     # C2's rollouts, and as many of the teacher's beside them
    return Stage("", student, student, readers=(model_of(flags.teacher),), divergence=True, steps=flags.max_steps,
                 rollouts=flags.rollouts_per_step, scored_by_sampler=measured,
                 scored_by_readers=flags.rollouts_per_step + measured,
                 waves=(Wave(at_once, flags.samples_per_prompt, prompts / at_once / every),
                        *evaluation(flags, gpus, args)))


def distill(flags, model_of, gpus: int, args) -> Stage:
    student, rollouts = model_of(flags.student), flags.prompts_per_step * flags.samples_per_prompt
    prompts = math.ceil(flags.prompts_per_step / gpus)
    return Stage("", student, student, readers=(model_of(flags.teacher),), divergence=flags.estimator == "exact",
                 steps=flags.max_steps, samples=flags.samples_per_prompt, rollouts=rollouts, scored_by_readers=rollouts,
                 waves=(Wave(prompts, flags.samples_per_prompt), *evaluation(flags, gpus, args)))


def evaluate(flags, model_of, gpus: int, args) -> Stage:
    prompts = math.ceil((flags.num_problems or args.eval_problems) / gpus)
    at_once = min(prompts, max(1, flags.batch_size // flags.samples))
    return Stage("", model_of(flags.model), steps=math.ceil(prompts / at_once), waves=(Wave(at_once, flags.samples),))


def evaluation(flags, gpus: int, args) -> tuple[Wave, ...]:
    """What a stage samples to evaluate while it trains: 256 completions at a time on each GPU (common.accuracy)."""
    if not (flags.eval_every and flags.eval_problems):
        return ()
    prompts = math.ceil(args.eval_problems / gpus)
    at_once = min(prompts, max(1, 256 // flags.eval_samples))
    return (Wave(at_once, flags.eval_samples, prompts / at_once / flags.eval_every),)


@dataclass
class Planned:
    asked: Stage                    # as the command has it
    setting: Stage                  # the same where it or nothing fits, else what fits, on more GPUs if it must
    seconds: float


def plan_command(command: str, models: dict[str, Model], gpu: GPU, args) -> Planned:
    asked = build(command, models, args.gpus, args)
    for gpus in [args.gpus * 2**doublings for doublings in range(11)]:
        if setting := remedy(build(command, models, gpus, args), gpu):
            return planned(asked, setting, gpu, args)
    return planned(asked, asked, gpu, args)


def planned(asked: Stage, setting: Stage, gpu: GPU, args) -> Planned:
    return Planned(asked, setting, setting.steps * sum(step_seconds(setting, gpu, args.peak_share).values()))


def plan_table(args, gpu: GPU) -> list[Planned]:
    """Every command of the table at its scale, in order; figures that come from runs come from the plans before."""
    table, scale = TABLES[args.table], SCALES[args.scale]
    settings = scale.over.get(table.over, {}) if table.over else {"": {}}
    if not settings:
        fail(f"--scale {args.scale} has no {table.over}, which `{args.table}` goes through")
    if (setting := args.setting or next(iter(settings))) not in settings:
        fail(f"--setting {setting}: `{args.table}` has {', '.join(settings)} at this scale")
    scope = Scope(table, scale, Given(0, "data", "models", args.dtype, args.gpus), setting, settings[setting])
    s = scope.settings
    paid = args.problems if s.labels == "all" else s.labels // 4
    args = argparse.Namespace(**vars(args), num_certify_problems=paid)
    models = {}
    for role in ("teacher", "student"):
        given = getattr(s, role)
        name = f"{given.run.name}/{given.name}" if isinstance(given, File) else getattr(given, "name", given)
        models[name] = find(getattr(args, role) or args.model or s.shapes.get(role, name))
    found, totals = {}, {}
    for run in (scope.runs[name] for name in scope.names):
        if not run.words[0].startswith("prepare.py"):
            command = text_of(run, lambda other: other.name, lambda number: str(max(int(number.value(totals)), 1)))
            found[run.name] = each = plan_command(f"{command} --out {run.name}", models, gpu, args)
            totals[run.name] = {"optimiser_steps": each.asked.steps * bool(each.asked.trained), "seconds": each.seconds}
    return list(found.values())


# ================================================================ what is printed

PARTS = ("weights", "gradients", "optimiser", "gathered", "teacher", "activations", "logits", "cache")


def alike(planned: list[Planned]) -> list[list[Planned]]:
    """Commands that take the same memory and time a step: the two direct runs, the evaluations of one model."""
    groups: dict[Stage, list[Planned]] = {}
    for each in planned:
        groups.setdefault(replace(each.asked, name="", steps=0), []).append(each)
    return list(groups.values())


def names(group: list[Planned]) -> str:
    first, *others = (each.asked.name for each in group)
    return f"{first} and {len(others)} more" if len(others) > 1 else ", ".join([first, *others])


def memory_rows(planned: list[Planned], gpu: GPU) -> list[list[str]]:
    """GiB on one GPU: each stage as its command has it, while it samples and at the worst moment of its training."""
    rows = []
    for group in alike(planned):
        found = moments(group[0].asked)
        others = sorted(found.keys() - {"rollouts"}, key=lambda name: total(found[name]))
        for name in [*(found.keys() & {"rollouts"}), *others[-1:]]:
            parts = found[name]
            rows.append([names(group), name, *(f"{parts.get(part, 0) / GIB:.1f}" for part in PARTS),
                         f"{total(parts) / GIB:.1f}", "yes" if total(parts) <= usable(gpu) else "NO"])
    return rows


def time_rows(planned: list[Planned], gpu: GPU, peak_share: float) -> list[list[str]]:
    rows = []
    for group in alike(planned):
        seconds, gpus = step_seconds(group[0].setting, gpu, peak_share), group[0].setting.gpus
        steps, hours = sum(each.setting.steps for each in group), sum(each.seconds for each in group) / 3600
        rows.append([names(group), f"{steps:,}", *(f"{value:,.0f}" for value in seconds.values()),
                     f"{sum(seconds.values()):,.0f}", f"{hours:,.1f}", str(gpus), f"{hours * gpus:,.0f}"])
    hours = sum(each.seconds for each in planned) / 3600
    gpu_hours = sum(each.seconds * each.setting.gpus for each in planned) / 3600
    return [*rows, ["all", *[""] * 5, f"{hours:,.1f}", "", f"{gpu_hours:,.0f}"]]


def as_table(head: list[str], rows: list[list[str]]) -> str:
    """A markdown table, its columns aligned: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [[cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
             for row in [head, *rows]]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verdicts(planned: list[Planned], gpu: GPU) -> list[str]:
    """A line for each stage that does not fit as it is: what would make it fit."""
    lines = []
    for group in alike(planned):
        each = group[0]
        if peak(each.asked) <= usable(gpu):
            continue
        moment, parts = worst_moment(each.asked)
        largest = max(parts, key=parts.get)
        more = [f"--gpus {each.setting.gpus}"] * (each.setting.gpus != each.asked.gpus)
        cure = (f"fits with {' '.join(more + changes(each.asked, each.setting))}: {peak(each.setting) / GIB:.0f} GiB"
                if peak(each.setting) <= usable(gpu) else "nothing that plan.py knows makes it fit")
        lines.append(f"{names(group)}: {total(parts) / GIB:,.0f} GiB at the moment `{moment}`, "
                     f"{parts[largest] / GIB:,.0f} of them {largest}; {cure}")
    return lines


def assumptions(args) -> str:
    new = f"{args.mean_new_tokens} tokens" if args.mean_new_tokens else "a quarter of --max-new-tokens"
    memory = (
        f"Memory: prompts of {args.max_prompt_tokens} tokens and completions of --max-new-tokens, all at once; "
        f"{FRAGMENTATION:.0%} of a GPU lost to fragmentation, {RESERVE / GIB:.0f} GiB to CUDA and NCCL.")
    time = (
        f"Time: prompts of {args.mean_prompt_tokens} tokens and completions of {new} on average; {args.problems:,} "
        f"training and {args.eval_problems} test problems; {args.peak_share:.0%} of the peak FLOP/s.  That "
        "share is an assumption, for no time was measured on a GPU; not counted: loading, saving, judging, and waiting "
        "for the longest completion.")
    return "\n".join(textwrap.fill(text, 118) for text in (memory, time))


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    parser.add_argument("--table", choices=list(TABLES), default="main", help="whose commands")
    parser.add_argument("--scale", choices=list(SCALES), default="paper", help="with which settings")
    parser.add_argument("--setting", help="of what the table goes through, as 14B of teacher-size (default: the first)")
    parser.add_argument("--gpus", type=positive, default=8, help="GPUs, over all nodes of 8")
    parser.add_argument("--gpu", default="H100", help=", ".join(GPUS))
    group = parser.add_argument_group("models: a checkpoint directory, its config.json, or a name that plan.py knows")
    group.add_argument("--model", help="teacher and student in one, for a look at a single model")
    group.add_argument("--teacher", help="in place of the scale's")
    group.add_argument("--student", help="in place of the scale's")
    group = parser.add_argument_group("flags of the stages, in place of the scale's")
    group.add_argument("--micro-batch-size", type=positive, help="rollouts per forward pass")
    group.add_argument("--rollout-tokens", type=positive, help="tokens of cache at a time")
    group.add_argument("--activation-checkpointing", action="store_true", help="keep one tensor a block")
    group.add_argument("--offload-teacher", action="store_true", help="models that only read lie on the CPU")
    group.add_argument("--sample-on-shards", action="store_true", help="gather blocks, not the whole policy")
    group.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="(smollm2, laptop)")
    group = parser.add_argument_group("assumptions")
    group.add_argument("--max-prompt-tokens", type=positive, default=2048, help="for memory")
    group.add_argument("--peak-share", type=number(float, above=0), default=0.15,
                       help="of the peak FLOP/s, in everything")
    group.add_argument("--mean-prompt-tokens", type=positive, default=200, help="for time")
    group.add_argument("--mean-new-tokens", type=positive, help="for time (default: a quarter of --max-new-tokens)")
    group.add_argument("--problems", type=positive, default=14_000, help="training problems (stage 2 samples them all)")
    group.add_argument("--eval-problems", type=positive, default=500, help="test problems")
    return parser.parse_args(argv)


def main(args) -> None:
    if args.gpu not in GPUS:
        fail(f"--gpu {args.gpu}: plan.py knows {', '.join(GPUS)}; another one is a line in its table of GPUs")
    gpu = GPUS[args.gpu]
    planned = plan_table(args, gpu)
    print(f"GiB on each of {args.gpus} {args.gpu}, with the table's own flags; {usable(gpu) / GIB:.1f} of "
          f"{gpu.memory / GIB:.1f} can be used\n")
    print(as_table(["stage", "moment", *PARTS, "total", "fits"], memory_rows(planned, gpu)) + "\n")
    if lines := verdicts(planned, gpu):
        print("\n".join(lines) + "\n")
    print("Seconds of a step, and hours in all; what does not fit is timed with the flags that make it fit\n")
    head = ["stage", "steps", "sample", "score", "train", "step", "hours", "GPUs", "GPU hours"]
    print(as_table(head, time_rows(planned, gpu, args.peak_share)) + "\n")
    print(assumptions(args))


if __name__ == "__main__":
    main(parse_args())
