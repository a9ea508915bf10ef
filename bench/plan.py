"""The memory that plan.py predicts beside the memory that runs take: random Qwen3 and Llama models on the CPU, float32.

    python bench/plan.py [--only train score rollouts] [--case N]
    python bench/plan.py --random 10 --seed 0         # shapes drawn at random, in place of the chosen ones

Each case is a fresh process.  It runs a tiny model once, so that libraries have their buffers, notes what is resident,
makes the models, sets the high-water mark (VmHWM) back, runs, and reads the mark: two optimiser steps of two
micro-batches each (`train`; with a teacher that scores first), one micro-batch scored (`score`), or sampling to full
length (`rollouts`), with the stages' own functions.  As on a GPU, the sampler makes no second layout of the weights
(linears.packed_weights), and glibc is told to give every larger block back when it is freed.  ratio = measured /
predicted; the last line has the extremes.
"""
import argparse
import gc
import json
import os
import random
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import plan  # noqa: E402
from common import FlagParser, completion_logprobs, sample  # noqa: E402
from engine import sampler  # noqa: E402
from engine.attention import same_attention_again  # noqa: E402
from engine.logprobs import WORKSPACE_BYTES  # noqa: E402
from engine.rollouts import Rollouts  # noqa: E402
from plan import GIB, Model, Stage, Wave, moments, peak, shape, worst_moment  # noqa: E402
from processes import memory  # noqa: E402

plan.WORKSPACE = WORKSPACE_BYTES["cpu"]                     # where these cases run

SMALL = shape("qwen3", 8192, 256, 768, 6, 8, 4, 32, tied=True)
WIDE = shape("qwen3", 4096, 768, 2048, 4, 12, 4, 64)
DEEP = shape("qwen3", 2048, 192, 576, 16, 6, 2, 32)
MANY_WORDS = shape("qwen3", 120_000, 128, 384, 3, 4, 2, 32, tied=True)
MANY_WORDS_UNTIED = shape("qwen3", 120_000, 128, 384, 3, 4, 2, 32)
LLAMA = shape("llama", 8192, 320, 864, 6, 5, 5, 64)
MANY_HEADS = shape("qwen3", 8192, 128, 256, 6, 16, 2, 64)
TINY = shape("qwen3", 64, 32, 64, 2, 2, 1, 16, tied=True)


def stage(name: str, model: Model, batch: int, prompt: int, new: int, **others) -> Stage:
    return Stage(name, model, width=4, micro_batch_size=batch, max_prompt=prompt, max_new=new, **others)


def train(model: Model, batch: int, prompt: int, new: int, **others) -> Stage:
    return stage("train", model, batch, prompt, new, trained=model, **others)


def rollouts(model: Model, prompts: int, samples: int, prompt: int, new: int, **others) -> Stage:
    return stage("rollouts", model, 1, prompt, new, waves=(Wave(prompts, samples),), **others)


CASES = [
    train(SMALL, 8, 64, 192), train(SMALL, 2, 256, 768), train(SMALL, 1, 256, 1792),
    train(SMALL, 8, 64, 192, activation_checkpointing=True), train(SMALL, 2, 128, 2176, activation_checkpointing=True),
    train(WIDE, 4, 32, 96), train(WIDE, 2, 256, 512), train(WIDE, 8, 64, 192, activation_checkpointing=True),
    train(DEEP, 16, 16, 48), train(DEEP, 4, 128, 384), train(DEEP, 4, 256, 768, activation_checkpointing=True),
    train(MANY_WORDS, 4, 32, 96), train(MANY_WORDS, 8, 64, 448), train(MANY_WORDS_UNTIED, 8, 64, 192),
    train(LLAMA, 4, 128, 384), train(LLAMA, 1, 256, 768), train(LLAMA, 8, 64, 448, activation_checkpointing=True),
    train(MANY_HEADS, 4, 64, 448), train(MANY_HEADS, 2, 512, 1024, activation_checkpointing=True),
    train(SMALL, 8, 256, 64, samples=8), train(WIDE, 8, 192, 96, samples=4), train(LLAMA, 16, 256, 64, samples=8),
    train(MANY_HEADS, 8, 448, 64, samples=8), train(DEEP, 16, 192, 64, samples=16, activation_checkpointing=True),
    train(SMALL, 4, 128, 384, readers=(WIDE,)), train(SMALL, 8, 192, 64, samples=4, readers=(LLAMA,)),
    train(DEEP, 8, 64, 192, readers=(LLAMA,), activation_checkpointing=True),
    stage("score", SMALL, 8, 128, 896, readers=(WIDE,)), stage("score", LLAMA, 16, 64, 448, readers=(LLAMA,)),
    stage("score", SMALL, 32, 256, 64, samples=16, readers=(WIDE,)),
    rollouts(SMALL, 16, 8, 64, 256), rollouts(WIDE, 8, 8, 128, 256), rollouts(DEEP, 8, 4, 256, 256),
    rollouts(MANY_WORDS, 16, 8, 32, 64), rollouts(LLAMA, 64, 1, 256, 64), rollouts(MANY_HEADS, 8, 8, 256, 256),
    rollouts(SMALL, 32, 8, 64, 128, rollout_tokens=18_000),
]


def random_case(seed: int) -> Stage:
    """Any shape and batch of a size that a laptop takes."""
    rng = random.Random(seed)
    kv_heads, hidden = rng.choice((1, 2, 4)), 32 * rng.randint(3, 16)
    sizes = (rng.randint(500, 60_000), hidden, 32 * round(hidden * rng.uniform(1, 4) / 32), rng.randint(2, 10),
             kv_heads * rng.choice((1, 2, 4)), kv_heads, rng.choice((16, 32, 64)), rng.random() < 0.5)
    model = shape("qwen3" if rng.random() < 0.5 else "llama", *sizes)
    prompt, new = rng.randint(8, 256), rng.randint(64, 512)
    if rng.random() < 0.3:
        return rollouts(model, rng.randint(2, 16), rng.choice((1, 4, 8)), prompt, new // 4)
    samples = rng.choice((1, 2, 4, 8))
    return train(model, samples * rng.randint(1, max(1, 3000 // (samples * (prompt + new)))), prompt, new,
                 samples=samples, activation_checkpointing=rng.random() < 0.4)


# ================================================================ a case, in a process of its own


def build(model: Model, seed: int):
    """A random model of transformers' own class, in float32."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(
        "qwen3" if model.qk_norm else "llama", vocab_size=model.vocab, hidden_size=model.hidden,
        intermediate_size=model.intermediate, num_hidden_layers=model.layers, num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads, head_dim=model.head_dim, tie_word_embeddings=model.tied,
        max_position_embeddings=16384)).eval()


def random_rollouts(stage: Stage):
    """A micro-batch of groups; where it has several prompts or rollouts, the first of each is a little shorter."""
    vocab, rows = min(model.vocab for model in (stage.sampler, *stage.readers)), stage.micro_batch_size
    prompts = torch.randint(0, vocab, (rows // stage.samples, stage.max_prompt)).repeat_interleave(stage.samples, 0)
    completions = torch.randint(0, vocab, (rows, stage.max_new))
    prompt_mask, mask = (torch.ones_like(ids, dtype=torch.bool) for ids in (prompts, completions))
    prompt_mask[:stage.samples, :3] = rows == stage.samples
    mask[0, -3:] = rows == 1
    return Rollouts(prompts, prompt_mask, completions, mask, torch.ones(rows, dtype=torch.bool))


def run(stage: Stage) -> None:
    sampler.packed_weights = nullcontext
    model, readers = build(stage.sampler, 0), [build(reader, 1) for reader in stage.readers]
    for each in [model, *readers]:
        each.requires_grad_(bool(stage.trained) and each is model)
    Path("/proc/self/clear_refs").write_text("5")       # the mark falls to what is resident: building took more
    if stage.waves:
        wave, = stage.waves
        prompts = torch.randint(0, stage.sampler.vocab, (wave.prompts, stage.max_prompt)).tolist()
        sample(model, prompts, samples_per_prompt=wave.samples, max_new_tokens=stage.max_new, eos_ids=[], pad_id=0,
               rollout_tokens=stage.rollout_tokens)
    if not stage.trained:
        for reader in readers:
            score(reader, random_rollouts(stage))
        return
    if stage.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": same_attention_again})
        model.train()                                   # transformers checkpoints in training mode only; no dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    for _ in range(2):
        for _ in range(2):
            micro = random_rollouts(stage)
            for reader in readers:
                score(reader, micro)
            (-completion_logprobs(model, micro).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def score(model, rollouts) -> None:
    completion_logprobs(model, rollouts)


def measure(stage: Stage) -> int:
    """The bytes that a case adds to its process at the most."""
    torch.set_num_threads(1)
    run(replace(stage, sampler=TINY, trained=stage.trained and TINY, readers=(TINY,) * len(stage.readers),
                max_prompt=16, max_new=16, micro_batch_size=2, samples=1, rollout_tokens=0,
                waves=(Wave(2, 2),) if stage.waves else ()))
    gc.collect()
    before = memory("VmRSS")
    run(stage)
    return memory("VmHWM") - before


# ================================================================ all cases


def describe(stage: Stage) -> str:
    model = stage.sampler
    shape = (f"{'Qwen3' if model.qk_norm else 'Llama'} {model.layers}x{model.hidden}, MLP {model.intermediate}, "
             f"heads {model.heads}/{model.kv_heads}, V {model.vocab}{' tied' if model.tied else ''}")
    prompts = stage.micro_batch_size // stage.samples
    batch = f"{prompts} x ({stage.max_prompt} + {stage.samples} x {stage.max_new})"
    if stage.waves:
        batch = f"{stage.waves[0].prompts} x ({stage.max_prompt} + {stage.waves[0].samples} x {stage.max_new})"
    extras = ["checkpointing"] * stage.activation_checkpointing + ["teacher"] * bool(stage.readers)
    extras += [f"rollout tokens {stage.rollout_tokens}"] * bool(stage.rollout_tokens)
    return f"{stage.name:8} {shape}; {', '.join([batch, *extras])}"


def main(args) -> None:
    cases = dict(enumerate(CASES))
    if args.random:
        cases = {number: random_case(number) for number in range(args.seed, args.seed + args.random)}
    if args.measure:
        return print(measure(cases[args.case]))
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "HF_HUB_OFFLINE": "1"}
    chosen = {number: case for number, case in cases.items()
              if args.case in (None, number) and (args.only is None or case.name in args.only)}
    ratios = []
    for number, case in chosen.items():
        command = [sys.executable, __file__, "--measure", "--case", str(number)]
        command += ["--random", "1", "--seed", str(number)] * bool(args.random)
        measured = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        ratios.append(measured / peak(case))
        moment, parts = worst_moment(case)
        largest = max(parts, key=parts.get)
        print(f"{number:2} {describe(case):98} predicted {peak(case) / GIB:6.3f} GiB ({moment}, most of it {largest}), "
              f"measured {measured / GIB:6.3f}, ratio {ratios[-1]:.3f}", flush=True)
        if args.case is not None:
            print(json.dumps({name: {part: round(size / GIB, 3) for part, size in parts.items() if size}
                              for name, parts in moments(case).items()}, indent=2))
    print(f"{len(ratios)} cases, ratios {min(ratios):.3f} to {max(ratios):.3f}")


def parse_args(argv=None):
    parser = FlagParser(__doc__)
    parser.add_argument("--only", nargs="+", choices=["train", "score", "rollouts"], help="these kinds of cases")
    parser.add_argument("--case", type=int, help="this case only, with the parts of every moment")
    parser.add_argument("--random", type=int, default=0, help="as many cases of random shapes")
    parser.add_argument("--seed", type=int, default=0, help="number of the first random case")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse_args())
