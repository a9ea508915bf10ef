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

`python bench/plan.py` holds the formulas against runs on the CPU; tests/test_plan.py holds the activations against
what autograd keeps.  Hours are a textbook count of operations at one share of the GPU's peak, --peak-share, which is an
assumption: nobody has measured it here.
"""
import argparse
import bisect
import importlib
import itertools
import math
import shlex
import textwrap
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from common import FlagParser, number, positive
from engine.checkpoints import read_object
from engine.logprobs import WORKSPACE_BYTES
from engine.problems import LONGEST_COMPLETION
from engine.ranks import fail
from experiments.runner import Given, Run, Scope, text_of
from experiments.tables import SCALES, TABLES, settings_of
from pages.parts import markdown_table

GIB = 2**30
WORKSPACE = WORKSPACE_BYTES["cuda"]             # of logits alive at a time

GPUS = {                    # dense bf16 with float32 sums, FLOP/s; GiB that a process can see
    "A100": (312e12, 79.3), "A100-40GB": (312e12, 39.4), "H100": (989e12, 79.2), "H200": (989e12, 139.8),
    "B200": (2250e12, 178.4), "L40S": (362e12, 44.4),
    "RTX3090": (71e12, 23.6), "RTX4090": (165e12, 23.5), "RTX5090": (209e12, 31.4),
}
RESERVE = 2 * GIB           # CUDA's context and libraries, NCCL's buffers
FRAGMENTATION = 0.05        # share of the memory that the allocator cannot hand out


def usable(gpu: str) -> float:
    return GPUS[gpu][1] * GIB * (1 - FRAGMENTATION) - RESERVE


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
    query: int              # width of all queries of a token,
    key: int                # and of its keys
    tied: bool              # the head is the embedding
    qk_norm: bool           # Qwen3
    block: int              # parameters of one block,
    root: int               # of what is in no block: the embedding, a head of its own, the last norm,
    params: int             # and of all


MODELS = {                  # family, vocabulary, width, MLP, blocks, heads, of keys, their width, is the head tied
    "Qwen3-0.6B": ("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, True),
    "Qwen3-1.7B": ("qwen3", 151936, 2048, 6144, 28, 16, 8, 128, True),
    "Qwen3-4B": ("qwen3", 151936, 2560, 9728, 36, 32, 8, 128, True),
    "Qwen3-8B": ("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, False),
    "Qwen3-14B": ("qwen3", 151936, 5120, 17408, 40, 40, 8, 128, False),
    "Qwen3-32B": ("qwen3", 151936, 5120, 25600, 64, 64, 8, 128, False),
    "SmolLM2-135M": ("llama", 49152, 576, 1536, 30, 9, 3, 64, True),
    "Llama-3.2-1B-Instruct": ("llama", 128256, 2048, 8192, 16, 32, 8, 64, True),
    "Llama-3.2-3B-Instruct": ("llama", 128256, 3072, 8192, 28, 24, 8, 128, True),
    "Llama-3.1-8B-Instruct": ("llama", 128256, 4096, 14336, 32, 32, 8, 128, False),
    "Llama-3.3-70B-Instruct": ("llama", 128256, 8192, 28672, 80, 64, 8, 128, False),
}


@cache
def find(name: str) -> Model:
    """A model by its checkpoint directory, finished run or config.json, else by its name in MODELS."""
    path = Path(name)
    for file in (path, path / "config.json", path / "model" / "config.json"):
        if file.is_file():
            return model_of(read_object(file), str(file))
    known = path.name.split("@")[0]                     # of owner/name@revision
    if known not in MODELS:
        fail(f"{name}: no config.json there, and plan.py knows only {', '.join(MODELS)}; give --teacher and --student "
             "a checkpoint directory or one of these names")
    return shape(*MODELS[known])


def shape(family: str, vocab: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int,
          head_dim: int, tied: bool = False) -> Model:
    return model_of({"model_type": family, "vocab_size": vocab, "hidden_size": hidden, "head_dim": head_dim,
                     "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
                     "num_key_value_heads": kv_heads, "tie_word_embeddings": tied})


def model_of(config: dict, source: str = "config.json") -> Model:
    """What the formulas need of a config.  Its parameters are counted on a block that transformers makes."""
    family = config.get("model_type")
    if family not in ("llama", "mistral", "qwen2", "qwen3") or config.get("mlp_bias"):
        fail(f"{source}: plan.py has no formulas for this model_type, {family}, only for llama, mistral, qwen2 and "
             "qwen3 without biases in the MLP")
    one = AutoConfig.for_model(**{key: value for key, value in config.items() if key != "layer_types"}
                               | {"num_hidden_layers": 1})
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(one)
    block, whole = (sum(parameter.numel() for parameter in part.parameters()) for part in (made.model.layers, made))
    heads, kv_heads, layers = one.num_attention_heads, one.num_key_value_heads, config["num_hidden_layers"]
    head_dim = getattr(one, "head_dim", None) or one.hidden_size // heads
    return Model(one.vocab_size, one.hidden_size, one.intermediate_size, layers, heads, kv_heads, head_dim,
                 heads * head_dim, kv_heads * head_dim, bool(one.tie_word_embeddings), family == "qwen3",
                 block, whole - block, whole + (layers - 1) * block)


# ================================================================ stages


@dataclass(frozen=True)
class Wave:
    """Prompts that are sampled together."""
    prompts: int                            # on all GPUs
    samples: int
    times: float = 1                        # in a step; a fraction: every so many steps
    most: float = math.inf                  # prompts that one GPU takes at once

    def at_once(self, gpus: int) -> int:
        """Prompts on one GPU."""
        return min(math.ceil(self.prompts / gpus), self.most)


@dataclass(frozen=True)
class Stage:
    """What one command does, as far as memory and time depend on it.  Counts are of all GPUs."""
    name: str
    sampler: Model
    trained: Model | None = None            # the sampler itself, or nothing
    readers: tuple[Model, ...] = ()         # teacher, reference: they score and are never updated
    divergence: bool = False                # the loss is over the vocabulary, of student and teacher
    steps: float = 1                        # optimiser steps; of stage 2, batches of rollouts
    rollouts: float = 0                     # trained on in each step
    scored_by_sampler: float = 0            # rollouts that it goes over in each step without learning from them
    scored_by_readers: float = 0
    waves: tuple[Wave, ...] = ()            # sampling
    gpus: int = 1
    width: int = 2                          # bytes of a number in the compute dtype
    micro_batch_size: int = 8               # of one GPU
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

    @property
    def completion(self) -> int:
        """Completion tokens of a micro-batch."""
        return self.micro_batch_size * self.max_new

    @property
    def tokens(self) -> int:
        """Those of a micro-batch as it goes through the model (engine/packed.py): each prompt once."""
        return math.ceil(self.micro_batch_size / self.samples) * self.max_prompt + self.completion

    @property
    def places(self) -> int:
        """Those in the attention alone, where each rollout stands behind its prompt again."""
        return self.micro_batch_size * self.max_prompt + self.completion


# ================================================================ memory
# Every function gives bytes on one GPU.


def saved_in_block(stage: Stage) -> float:
    """What autograd keeps of a micro-batch in one block.

    RMSNorm computes in float32: it keeps its input so, and the normalised input.  Where it hands on another dtype than
    the projections compute in, each of the five keeps a copy of its own.  The MLP keeps gate, its SiLU, up and their
    product; the attention a query and its result, a key and a value, and the softmax's denominator.
    """
    model, width, residual = stage.trained, stage.width, stage.residual
    norms = 2 * ((4 + residual) * model.hidden + 4)
    projected = width * (model.hidden * (2 if residual == width else 5) + model.query)
    head_norms = model.qk_norm * ((4 + width) * (model.query + model.key) + 4 * (model.heads + model.kv_heads))
    attention = width * (2 * model.query + 2 * model.key) + 4 * model.heads
    return stage.tokens * (norms + projected + head_norms + 4 * width * model.intermediate) + stage.places * attention


def activations(stage: Stage) -> float:
    """What autograd keeps of one micro-batch at the end of its forward pass; of a checkpointed block, its input.

    Outside the blocks these are the last norm, RoPE's cosines and sines, and each token's id and place.
    """
    model, residual = stage.trained, stage.residual
    block = stage.tokens * residual * model.hidden if stage.activation_checkpointing else saved_in_block(stage)
    around = (4 + residual) * model.hidden + 4 + 2 * residual * model.head_dim + 16
    return model.layers * block + stage.tokens * around + 8 * stage.places


def forward_work(model: Model, width: int, tokens: float, places: float = 0) -> float:
    """What is alive in a forward pass that keeps nothing: in the MLP, around RoPE, or in the attention.

    Beside it the embedding, the block's input, the residual and its norm: the callers' names hold them.
    """
    around_rope, places_hold = 4 * model.query + 2 * model.key, 2 * model.query + 2 * model.key
    attention = max(tokens * around_rope, tokens * places_hold / 2 + places * places_hold)
    return width * (tokens * 4 * model.hidden + max(tokens * 3 * model.intermediate, attention))


def backward_work(stage: Stage) -> float:
    """Gradients in flight in a block's backward pass, less what of the block is freed by then.

    In the MLP three of its width, its product freed; in attention those of queries, keys, values and the result at all
    places, the MLP, its norm and the input of the output projection freed.
    """
    model, tokens = stage.trained, stage.tokens
    mlp, freed = tokens * 2 * model.intermediate, tokens * (4 * model.intermediate + 3 * model.hidden + model.query)
    attention = stage.places * (2 * model.query + 2 * model.key) - freed
    return stage.width * (tokens * 2 * model.hidden + max(mlp, attention))


def kv_per_token(model: Model, width: int) -> int:
    return 2 * model.layers * model.key * width


def cached_tokens(stage: Stage, wave: Wave) -> int:
    """Tokens of cache at the worst: every completion as long as it may get, the prompts of a group once."""
    tokens = wave.at_once(stage.gpus) * (stage.max_prompt + wave.samples * stage.max_new)
    return max(stage.max_prompt + stage.max_new, min(tokens, stage.rollout_tokens or tokens))


def gathered(model: Model, stage: Stage, blocks_only: bool, gradient: bool = False) -> float:
    """Weights in the compute dtype: of the whole model, or of embedding, head and two blocks (the next comes early).

    gradient: also that of one block, in the compute dtype and in float32 for its reduction.  One process gathers
    nothing: of a model that it trains it holds a copy in bf16; its gradients are added up a parameter at a time.
    """
    if stage.gpus == 1:
        copy = stage.width * model.params if stage.width < 4 and stage.trained else 0
        return copy + 4 * max(model.intermediate, model.query) * model.hidden * gradient
    weights = model.root + 2 * model.block if blocks_only else model.params
    return stage.width * weights + (stage.width + 4) * model.block * gradient


def standing(stage: Stage, training: bool) -> dict:
    """What lies there at every moment, in shards.  While it samples: no gradients, and no teacher that is offloaded.

    FSDP2 keeps a model's root gathered from its forward to its backward pass; a reader has none, so its root stays.
    """
    parts = {"weights": stage.width * stage.sampler.params / stage.gpus}
    if stage.trained:
        shard = 4 * stage.trained.params / stage.gpus
        parts = {"weights": shard, "gradients": shard * training, "optimiser": 2 * shard}
    if training or not stage.offload_teacher:
        parts["teacher"] = stage.width * sum(
            reader.params / stage.gpus + reader.root * (stage.gpus > 1) for reader in stage.readers)
    return parts


def rollouts_moment(stage: Stage, wave: Wave) -> dict:
    """Decoding at its last step, or the prefill of all prompts that fit, whichever is more."""
    model, width = stage.sampler, stage.width
    fitting = int(cached_tokens(stage, wave) / (stage.max_new + stage.max_prompt / wave.samples))
    rows = max(1, min(wave.at_once(stage.gpus) * wave.samples, fitting))            # that the cache holds at a time
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
    forward = {"activations": forward_work(model, stage.width, stage.tokens, stage.places)}
    tiles = {"activations": (stage.tokens + stage.completion) * model.hidden * stage.width,
             "logits": min(stage.completion * model.vocab * stage.width, WORKSPACE)}
    weights = gathered(model, stage, blocks_only=True) if stage.gpus > 1 else 0
    return standing(stage, training=True) | {"gathered": weights} | max(forward, tiles, key=total)


def training_moments(stage: Stage) -> dict[str, dict]:
    """The head's forward pass, and the backward pass in a block and at the embedding."""
    model, width, kept = stage.trained, stage.width, activations(stage)
    blocks, table = gathered(model, stage, blocks_only=True), model.vocab * model.hidden
    tiles = min((1 + stage.divergence) * stage.completion * model.vocab * width, WORKSPACE)     # gradients overwrite
    # The completion's last hidden states, one product and their gradient in float32; the readers' hidden states.
    hidden = stage.completion * (model.hidden * (2 * width + 4) + sum(width * each.hidden for each in stage.readers))
    # The head's gradient, before it is added to what is there; a divergence has summed it in float32.
    head = table * (width + 4 * (width < 4 and bool(stage.divergence)))
    again = stage.activation_checkpointing * saved_in_block(stage)                  # the block that is computed again
    found = {
        "head": {"gathered": blocks, "activations": kept, "logits": tiles + hidden + head},
        "block": {"gathered": gathered(model, stage, blocks_only=True, gradient=True),
                  "activations": kept + again + backward_work(stage),
                  "logits": width * table * model.tied},                            # the head's gradient waits
        # The embedding's gradient is dense.  Tied, the head's waited, and the two are added up in place.
        "root": {"gathered": blocks + 4 * model.root * (stage.gpus > 1), "logits": width * table * (1 + model.tied)}}
    return {name: standing(stage, training=True) | parts for name, parts in found.items()}


def moments(stage: Stage) -> dict[str, dict]:
    """Every moment that may be the peak, the largest wave of rollouts among them.  -> name -> part -> bytes"""
    found = {}
    if stage.waves:
        found["rollouts"] = max((rollouts_moment(stage, wave) for wave in stage.waves), key=total)
    scorers = stage.readers + ((stage.sampler,) if stage.readers and not stage.trained else ())
    if scorers:
        found["scoring"] = max((scoring_moment(stage, model) for model in scorers), key=total)
    return found | (training_moments(stage) if stage.trained else {})


def total(parts: dict) -> float:
    return sum(parts.values())


def worst_moment(stage: Stage) -> tuple[str, dict]:
    """-> its name, its parts"""
    return max(moments(stage).items(), key=lambda item: total(item[1]))


def peak(stage: Stage) -> float:
    return total(worst_moment(stage)[1])


# ================================================================ time


def step_seconds(stage: Stage, gpu: str, peak_share: float) -> dict[str, float]:
    """2 operations a parameter and token forward, 6 with the backward pass, 8 with checkpointing."""
    sampler, passes = stage.sampler.params, 8 if stage.activation_checkpointing else 6
    sampled = sum(wave.times * wave.prompts * wave.samples for wave in stage.waves)
    scored = sum(model.params for model in stage.readers) * stage.scored_by_readers + sampler * stage.scored_by_sampler
    flops = {"sample": 2 * sampler * sampled, "score": 2 * scored, "train": passes * sampler * stage.rollouts}
    length, rate = stage.mean_prompt + stage.mean_new, peak_share * GPUS[gpu][0] * stage.gpus
    return {part: each * length / rate for part, each in flops.items()}


# ================================================================ what would fit

ENGINE_FLAGS = ("micro_batch_size", "rollout_tokens", "activation_checkpointing", "offload_teacher", "sample_on_shards")


def with_largest_cache(stage: Stage, gpu: str) -> Stage:
    """The largest --rollout-tokens, in thousands, with which the rollouts fit; as it is where they do, or never can."""
    def fits(tokens: int) -> bool:
        return total(moments(replace(stage, rollout_tokens=tokens))["rollouts"]) <= usable(gpu)

    one_row = stage.max_prompt + stage.max_new
    most = max((cached_tokens(stage, wave) for wave in stage.waves), default=0)
    if not stage.waves or fits(most) or not fits(one_row):
        return stage
    best = bisect.bisect_left(range(most // 1000), True, key=lambda thousands: not fits(1000 * thousands))
    return replace(stage, rollout_tokens=max(1000 * (best - 1), one_row))


def remedy(stage: Stage, gpu: str) -> Stage | None:
    """On as many GPUs the setting with the fewest changed flags that fits, and the least of them: a smaller cache,
    micro-batches, checkpointing, a teacher on the CPU, rollouts on shards.  None where none fits.
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


def changes(before: Stage, after: Stage) -> list[str]:
    """The flags in which two settings of a stage differ, as a command line would give the second's."""
    pairs = [(name, getattr(before, name), getattr(after, name)) for name in ("gpus", *ENGINE_FLAGS)]
    return [f"--{name.replace('_', '-')}" + ("" if new is True else f" {new}")
            for name, old, new in pairs if old != new]


# ================================================================ from the table's commands to stages


def build(command: str, models: dict[str, Model], args) -> Stage:
    """A Stage from one command of a table, read by the flags of its own script.  Its --out becomes a model's name."""
    script, flags = command.strip().split(" ", 1)
    flags = importlib.import_module(script.removesuffix(".py")).parse_args(shlex.split(flags))
    stage = BUILDERS[script](flags, lambda path: models.get(str(path)) or find(str(path)), args)
    models[str(flags.out)] = stage.sampler
    if getattr(flags, "eval_every", 0) and flags.eval_problems:
        most = max(1, 256 // flags.eval_samples)                                # as common.accuracy does
        evaluation = Wave(args.eval_problems, flags.eval_samples, 1 / flags.eval_every, most)
        stage = replace(stage, waves=(*stage.waves, evaluation))
    longest = flags.max_new_tokens or LONGEST_COMPLETION
    engine = {name: getattr(args, name) or getattr(flags, name, getattr(stage, name)) for name in ENGINE_FLAGS}
    return replace(stage, **engine, name=flags.out.name, gpus=args.gpus, width=4 if flags.dtype == "float32" else 2,
                   max_prompt=args.max_prompt_tokens, max_new=longest, mean_prompt=args.mean_prompt_tokens,
                   mean_new=min(args.mean_new_tokens or longest / 4, longest))


def grpo(flags, model_of, args) -> Stage:
    model, every = model_of(flags.model), flags.steps_per_rollout
    rollouts = flags.prompts_per_step * flags.samples_per_prompt
    return Stage("", model, model, readers=(model,) if flags.kl_coef else (), steps=flags.max_steps,
                 divergence=bool(flags.kl_coef), samples=flags.samples_per_prompt, rollouts=rollouts,
                 scored_by_sampler=rollouts * (1 - 1 / every), scored_by_readers=rollouts,
                 waves=(Wave(flags.prompts_per_step * every, flags.samples_per_prompt, 1 / every),))


def shaping(flags, model_of, args) -> Stage:
    counts = [flags.num_problems or args.problems, flags.num_certify_problems or args.num_certify_problems]
    batches = sum(math.ceil(count / flags.prompts_per_step) for count in counts)
    rollouts = sum(counts) * flags.samples_per_prompt / batches
    return Stage("", model_of(flags.teacher), readers=(model_of(flags.reference),), steps=batches,
                 samples=flags.samples_per_prompt, scored_by_sampler=rollouts, scored_by_readers=rollouts,
                 waves=(Wave(flags.prompts_per_step, flags.samples_per_prompt),))


def bridge(flags, model_of, args) -> Stage:
    student, every, count = model_of(flags.student), flags.eval_every or flags.max_steps, flags.num_certify_problems
    at_once, measured = min(count, flags.rollouts_per_step), 2 * count / every      # C2's rollouts and the teacher's
    return Stage("", student, student, readers=(model_of(flags.teacher),), divergence=True, steps=flags.max_steps,
                 rollouts=flags.rollouts_per_step, scored_by_sampler=measured,
                 scored_by_readers=flags.rollouts_per_step + measured,
                 waves=(Wave(at_once, flags.samples_per_prompt, count / at_once / every),))


def distill(flags, model_of, args) -> Stage:
    student, rollouts = model_of(flags.student), flags.prompts_per_step * flags.samples_per_prompt
    return Stage("", student, student, readers=(model_of(flags.teacher),), divergence=flags.estimator == "exact",
                 steps=flags.max_steps, samples=flags.samples_per_prompt, rollouts=rollouts, scored_by_readers=rollouts,
                 waves=(Wave(flags.prompts_per_step, flags.samples_per_prompt),))


def evaluate(flags, model_of, args) -> Stage:
    prompts, at_once = flags.num_problems or args.eval_problems, max(1, flags.batch_size // flags.samples)
    return Stage("", model_of(flags.model), waves=(Wave(prompts, flags.samples, 1, at_once),))


BUILDERS = {"stage1_grpo.py": grpo, "stage2_shape.py": shaping, "stage3_kl.py": bridge, "stage4_distill.py": distill,
            "eval.py": evaluate}


def plan_table(args) -> list[Stage]:
    """Every command of the table at its scale, in order; figures that come from runs come from the plans before."""
    settings = settings_of(args.table, args.scale)
    if (setting := args.setting or next(iter(settings))) not in settings:
        fail(f"--setting {setting}: `{args.table}` has {', '.join(settings)} at this scale")
    given = Given(0, "data", "models", args.dtype, args.gpus)
    scope = Scope(TABLES[args.table], SCALES[args.scale], given, setting, settings[setting])
    s, found, totals, models = scope.settings, [], {}, {}
    paid = args.problems if s.labels == "all" else s.labels // 4
    args = argparse.Namespace(**vars(args), num_certify_problems=paid)

    def text(run: Run) -> str:
        return text_of(run, lambda other: other.name, lambda number: str(max(int(number.value(totals)), 1)))

    for role in ("teacher", "student"):
        name = text(Run(role, (getattr(s, role),)))
        models[name] = find(getattr(args, role) or args.model or s.shapes.get(role, name))
    for run in (scope.runs[name] for name in scope.names):
        if not run.words[0].startswith("prepare.py"):
            found.append(stage := build(f"{text(run)} --out {run.name}", models, args))
            totals[run.name] = {"optimiser_steps": stage.steps * bool(stage.trained), "seconds": seconds(stage, args)}
    return found


def seconds(stage: Stage, args) -> float:
    return stage.steps * total(step_seconds(stage, args.gpu, args.peak_share))


# ================================================================ what is printed

PARTS = ("weights", "gradients", "optimiser", "gathered", "teacher", "activations", "logits", "cache")


def alike(stages: list[Stage]) -> dict[str, list[Stage]]:
    """Commands that take the same memory and time a step, such as one model's evaluations, by their names."""
    groups: dict[Stage, list[Stage]] = {}
    for stage in stages:
        groups.setdefault(replace(stage, name="", steps=0), []).append(stage)
    names = [[stage.name for stage in group] for group in groups.values()]
    return {", ".join(each) if len(each) < 3 else f"{each[0]} and {len(each) - 1} more": group
            for each, group in zip(names, groups.values())}


def memory_rows(groups: dict[str, list[Stage]], gpu: str) -> list[list[str]]:
    """GiB on one GPU: each stage as its command has it, while it samples and at the worst moment of its training."""
    rows = []
    for name, (stage, *_) in groups.items():
        found = moments(stage)
        others = sorted(found.keys() - {"rollouts"}, key=lambda moment: total(found[moment]))
        for moment in [*(found.keys() & {"rollouts"}), *others[-1:]]:
            parts = found[moment]
            rows.append([name, moment, *(f"{parts.get(part, 0) / GIB:.1f}" for part in PARTS),
                         f"{total(parts) / GIB:.1f}", "yes" if total(parts) <= usable(gpu) else "NO"])
    return rows


def time_rows(groups: dict[str, list[Stage]], args) -> list[list[str]]:
    """The commands as they are, also where they do not fit: the work is the same on more GPUs."""
    rows, all_hours = [], 0.0
    for name, group in groups.items():
        parts = step_seconds(group[0], args.gpu, args.peak_share)
        hours = sum(seconds(each, args) for each in group) / 3600
        rows.append([name, f"{sum(each.steps for each in group):,}",
                     *(f"{value:,.0f}" for value in (*parts.values(), total(parts))), f"{hours:,.1f}",
                     f"{hours * args.gpus:,.0f}"])
        all_hours += hours
    return [*rows, ["all", *[""] * 5, f"{all_hours:,.1f}", f"{all_hours * args.gpus:,.0f}"]]


def verdicts(groups: dict[str, list[Stage]], gpu: str) -> list[str]:
    """A line for each stage that does not fit as it is: what would make it fit, on more GPUs if it must."""
    lines = []
    for name, (stage, *_) in groups.items():
        (moment, parts), most = worst_moment(stage), usable(gpu)
        if total(parts) <= most:
            continue
        largest = max(parts, key=parts.get)
        on_more = (remedy(replace(stage, gpus=stage.gpus * 2**doublings), gpu) for doublings in range(11))
        fitting = next(filter(None, on_more), None)
        cure = (f"fits with {' '.join(changes(stage, fitting))}: {peak(fitting) / GIB:.0f} GiB" if fitting
                else "nothing that plan.py knows makes it fit")
        lines.append(f"{name}: {total(parts) / GIB:,.0f} GiB at the moment `{moment}`, "
                     f"{parts[largest] / GIB:,.0f} of them {largest}; {cure}")
    return lines


def aligned(head: list[str], rows: list[list[str]]) -> str:
    """A markdown table as a terminal shows it: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    head, *rows = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in (head, *rows)]
    return "\n".join(markdown_table(head, rows)) + "\n"


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
    groups = alike(plan_table(args))
    print(f"GiB on each of {args.gpus} {args.gpu}, with the table's own flags; {usable(args.gpu) / GIB:.1f} of "
          f"{GPUS[args.gpu][1]:.1f} can be used\n")
    print(aligned(["stage", "moment", *PARTS, "total", "fits"], memory_rows(groups, args.gpu)))
    if lines := verdicts(groups, args.gpu):
        print(*lines, sep="\n", end="\n\n")
    print("Seconds of a step, and hours in all, of the commands as they are\n")
    head = ["stage", "steps", "sample", "score", "train", "step", "hours", "GPU hours"]
    print(aligned(head, time_rows(groups, args)))
    new = f"{args.mean_new_tokens} tokens" if args.mean_new_tokens else "a quarter of --max-new-tokens"
    print(textwrap.fill(
        f"Memory: prompts of {args.max_prompt_tokens} tokens and completions of --max-new-tokens, all at once; "
        f"{FRAGMENTATION:.0%} of a GPU lost to fragmentation, {RESERVE / GIB:.0f} GiB to CUDA and NCCL.  "
        f"Time: prompts of {args.mean_prompt_tokens} tokens and completions of {new} on average; {args.problems:,} "
        f"training and {args.eval_problems} test problems; {args.peak_share:.0%} of the peak FLOP/s.  That share is an "
        "assumption, for no time was measured on a GPU; not counted: loading, saving, judging, and waiting for the "
        "longest completion.", 118))


if __name__ == "__main__":
    main(parse_args())
