r"""The sampler beside transformers' generate(), interleaved in one run, and beside the roofline that the run measures.

    python bench/sampler.py --model DIR --problems FILE [--dtype float32 bfloat16] [--quick]

Two cases.  GSM8K: the prompts of 8 problems with 8 samples each at temperature 1, up to 64 and up to 256 new tokens
with EOS on; generate() gets the 8 prompts, num_return_sequences 8, and the cache (dynamic or static) that wins a short
trial.  Fixed length: decoding alone at batch 1, 16 and 64, EOS off, prompts of 32 tokens; the time of many new tokens
less the time of one, so that no prefill is in it.  Tokens are those up to EOS; padding of ended rows counts nothing.

The roofline of a step: every nn.Linear of the model alone on a batch of that size, and once through the cached keys and
values at the bandwidth that a sum over a large buffer reaches.
"""
import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from sampler import has_plain_attention, pad, sample  # noqa: E402


CLOCK = time.perf_counter


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--problems", type=Path, required=True, help="jsonl with `question`")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], help="one or more")
    parser.add_argument("--new-tokens", nargs="+", type=int, default=[64, 256], help="of the GSM8K case")
    parser.add_argument("--rounds", type=int, default=1, help="how often each pair of the GSM8K case is run")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's own choice)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                        help="cpu: seconds of processor time, with --threads 1 on a machine that others use too")
    parser.add_argument("--no-fixed", action="store_true", help="leave the fixed-length case out")
    parser.add_argument("--quick", action="store_true", help="2 problems, 4 samples, up to 16 tokens, batch 1 and 8")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- the two samplers

def ours(model, tokenizer, prompts, samples, new_tokens, eos_ids, cache=None) -> int:
    """-> tokens drawn"""
    rollouts = sample(model, prompts, samples_per_prompt=samples, max_new_tokens=new_tokens, eos_ids=eos_ids,
                      pad_id=tokenizer.pad_token_id, generator=torch.Generator().manual_seed(0))
    return int(rollouts.completion_mask.sum())


def theirs(model, tokenizer, prompts, samples, new_tokens, eos_ids, cache) -> int:
    ids, mask = pad(prompts, tokenizer.pad_token_id, model.device, left=True)
    torch.manual_seed(0)
    options = {"cache_implementation": "static"} if cache == "static" else {}
    with torch.no_grad():
        out = model.generate(ids, attention_mask=mask.long(), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                             repetition_penalty=1.0, num_return_sequences=samples, max_new_tokens=new_tokens,
                             eos_token_id=eos_ids or [-1], pad_token_id=tokenizer.pad_token_id, **options)
    ended = torch.isin(out[:, ids.shape[1]:], torch.tensor(eos_ids, dtype=torch.int64, device=out.device))
    return int((ended.cumsum(1) - ended.long() == 0).sum())         # up to the first EOS and with it


def measure(function, *args) -> tuple[float, int, float]:
    """-> seconds, tokens, peak memory in GB (of the process, with the weights; of the GPU's allocator there)."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")               # the high-water mark falls to what is held now
    start = CLOCK()
    tokens = function(*args)
    if cuda:
        torch.cuda.synchronize()
    seconds = CLOCK() - start
    if cuda:
        return seconds, tokens, torch.cuda.max_memory_allocated() / 1e9
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return seconds, tokens, int(line.split()[1]) * 1024 / 1e9


# ---------------------------------------------------------------- the roofline

def best_seconds(function, repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = CLOCK()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(CLOCK() - start)
    return sorted(times)[len(times) // 2]


@torch.no_grad()
def roofline(model, batch: int, cached_tokens: int) -> tuple[float, float]:
    """Median seconds of a step's matmuls, and of reading the cache.  cached_tokens: of all rows, prefixes once."""
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    options = {"dtype": model.dtype, "device": model.device}
    inputs = {width: torch.randn(batch, width, **options) for width in {module.in_features for module in linears}}
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * model.dtype.itemsize
    buffer = torch.ones(2**26, device=model.device)
    bandwidth = buffer.nbytes / best_seconds(buffer.sum)
    matmuls = best_seconds(lambda: [module(inputs[module.in_features]) for module in linears])
    return matmuls, cached_tokens * token_bytes / bandwidth


# ---------------------------------------------------------------- the two cases

def faster_cache(model, tokenizer, prompts) -> str:
    seconds = {}
    for cache in ("dynamic", "static"):
        try:
            theirs(model, tokenizer, prompts[:1], 8, 2, [], cache)
            seconds[cache] = measure(theirs, model, tokenizer, prompts[:1], 8, 12, [], cache)[0]
        except Exception as error:
            print(f"generate() with a {cache} cache does not run: {type(error).__name__}: {error}", flush=True)
    print("generate(), 8 rows, 12 tokens: " + ", ".join(f"{name} cache {s:.2f} s" for name, s in seconds.items()))
    return min(seconds, key=seconds.get)


def gsm8k(model, tokenizer, prompts, samples: int, new_tokens: int, eos_ids, cache: str) -> None:
    results = {}
    for name, function in (("ours", ours), ("generate()", theirs)):
        seconds, tokens, peak = measure(function, model, tokenizer, prompts, samples, new_tokens, eos_ids, cache)
        results[name] = tokens / seconds
        print(f"  {name:11} {tokens:6} tokens {seconds:7.1f} s {tokens / seconds:7.1f} tokens/s  peak {peak:.2f} GB",
              flush=True)
    print(f"  ratio {results['ours'] / results['generate()']:.2f}", flush=True)


def fixed_length(model, tokenizer, prompts, samples: int, steps: int, cache: str) -> None:
    prompts, batch = [prompt[:32] for prompt in prompts], len(prompts) * samples
    speeds = {}
    for name, function in (("ours", ours), ("generate()", theirs)):
        one, many = (measure(function, model, tokenizer, prompts, samples, count, [], cache)[0]
                     for count in (1, steps + 1))
        speeds[name] = batch * steps / (many - one)
    matmuls, reading = roofline(model, batch, 32 * len(prompts) + batch * steps // 2)
    print(f"  batch {batch:3}: ours {speeds['ours']:7.1f} tokens/s, generate() {speeds['generate()']:7.1f}, "
          f"ratio {speeds['ours'] / speeds['generate()']:.2f}; roofline {batch / (matmuls + reading):7.1f} "
          f"(a step: matmuls {1e3 * matmuls:.1f} ms, cache {1e3 * reading:.1f} ms), "
          f"share {speeds['ours'] * (matmuls + reading) / batch:.0%}", flush=True)


def main(args) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    warnings.filterwarnings("ignore")
    if args.clock == "cpu":
        global CLOCK
        CLOCK = time.process_time
    torch.set_num_threads(args.threads or torch.get_num_threads())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    questions = [json.loads(line)["question"] for line in args.problems.read_text().splitlines()[100:108]]
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True,
                                             return_dict=True)["input_ids"] for question in questions]
    samples, lengths, batches = 8, args.new_tokens, [(1, 1), (2, 8), (8, 8)]
    if args.quick:
        prompts, samples, lengths, batches = prompts[:2], 4, [16], [(1, 1), (2, 4)]
    print(f"{device}, {torch.get_num_threads()} threads, {args.clock} clock, load {os.getloadavg()[0]:.1f}, "
          f"prompts of {', '.join(str(len(prompt)) for prompt in prompts)} tokens")
    for dtype in args.dtype:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, dtype)).to(device).eval()
        print(f"\n{dtype}; attention {'shared' if has_plain_attention(model) else 'plain'}")
        cache = faster_cache(model, tokenizer, prompts)
        if not args.no_fixed:
            print("fixed length, decoding alone")
        for count, each in [] if args.no_fixed else batches:
            fixed_length(model, tokenizer, prompts[:count], each, 8 if args.quick else 16, cache)
        for new_tokens in lengths:
            print(f"GSM8K, {len(prompts)} prompts x {samples}, up to {new_tokens} tokens; generate(): {cache} cache")
            for _ in range(args.rounds):
                gsm8k(model, tokenizer, prompts, samples, new_tokens, [tokenizer.eos_token_id], cache)


if __name__ == "__main__":
    main(parse_args())
