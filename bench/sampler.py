r"""The sampler beside transformers' generate() and its continuous batching, interleaved in one run, and beside the
roofline that the run measures.

    python bench/sampler.py --model DIR --problems FILE [--dtype float32 bfloat16] [--quick]
    python bench/sampler.py --shape qwen3-1.7b --dtype bfloat16 --new-tokens 8 --fixed-steps 4
    python bench/sampler.py --model DIR --problems FILE --profile

Two cases.  GSM8K: the prompts of 8 problems with 8 samples each at temperature 1, up to 64 and up to 256 new tokens
with EOS on; generate() gets the 8 prompts, num_return_sequences 8, and the cache (dynamic or static) that wins a short
trial; generate_batch() (transformers' continuous batching, which TRL can use too) gets each prompt 8 times.
Fixed length: decoding alone at batch 1, 16 and 64, EOS off, prompts of 32 tokens; the time of many new tokens less the
time of one, so that no prefill is in it.  Tokens are those up to EOS; padding of ended rows counts nothing.

The roofline of a step: every nn.Linear of the model alone on a batch of that size, by the best of MKL and oneDNN, each
with plain and with packed weights (the run says which), and once through the cached keys and values at the bandwidth
that a sum over a large buffer reaches.  The roofline of the GSM8K case adds up the steps that these rollouts took, with
the rows that were alive in each, and the prompts' own tokens once.  --shape: a model of random weights, with prompts
of random tokens.
"""
import ctypes
import json
import os
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from statistics import median

os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
from torch.profiler import ProfilerActivity  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config  # noqa: E402
from transformers.utils.logging import disable_progress_bar, set_verbosity_error  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from common import FlagParser, sample  # noqa: E402
from engine import linears  # noqa: E402
from engine.rollouts import pad  # noqa: E402
from engine.sampler import has_plain_attention  # noqa: E402
from processes import memory  # noqa: E402

CLOCK = time.perf_counter
SHAPES = {"qwen3-1.7b": dict(vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28,
                             num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True)}
PROMPT_LENGTHS = [131, 109, 96, 94, 79, 62, 74, 151]                # of the 8 GSM8K problems in SmolLM2's tokens


def parse_args(argv=None):
    parser = FlagParser(__doc__)
    parser.add_argument("--model", type=Path, help="checkpoint directory")
    parser.add_argument("--problems", type=Path, help="jsonl with `question`")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="a random model of this shape in place of both")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], help="one or more")
    parser.add_argument("--new-tokens", nargs="+", type=int, default=[64, 256], help="of the GSM8K case")
    parser.add_argument("--rounds", type=int, default=1, help="how often each pair of the GSM8K case is run")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's own choice)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                        help="cpu: seconds of processor time, with --threads 1 on a machine that others use too")
    parser.add_argument("--fixed-steps", type=int, default=16, help="new tokens of the fixed-length case")
    parser.add_argument("--no-batching", action="store_true", help="leave continuous batching out")
    parser.add_argument("--profile", action="store_true", help="only a table of where our time goes, up to 32 tokens")
    parser.add_argument("--no-fixed", action="store_true", help="leave the fixed-length case out")
    parser.add_argument("--quick", action="store_true", help="2 problems, 4 samples, up to 16 tokens, batch 1 and 8")
    args = parser.parse_args(argv)
    if not args.shape and not (args.model and args.problems):
        parser.error("give --model and --problems, or --shape")
    if not args.shape and not (args.model / "config.json").is_file():
        parser.error(f"--model {args.model}: not a checkpoint directory")
    return args


# ---------------------------------------------------------------- the contestants

def ours(model, pad_id, prompts, samples, new_tokens, eos_ids, cache=None) -> list[int]:
    """-> the lengths of the completions"""
    rollouts = sample(model, prompts, samples_per_prompt=samples, max_new_tokens=new_tokens, eos_ids=eos_ids,
                      pad_id=pad_id, generator=torch.Generator().manual_seed(0))
    return rollouts.completion_mask.sum(1).tolist()


def theirs(model, pad_id, prompts, samples, new_tokens, eos_ids, cache) -> list[int]:
    ids, mask = pad(prompts, pad_id, model.device, left=True)
    torch.manual_seed(0)
    options = {"cache_implementation": "static"} if cache == "static" else {}
    with torch.no_grad():
        out = model.generate(ids, attention_mask=mask.long(), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                             repetition_penalty=1.0, num_return_sequences=samples, max_new_tokens=new_tokens,
                             eos_token_id=eos_ids or [-1], pad_token_id=pad_id, **options)
    ended = torch.isin(out[:, ids.shape[1]:], torch.tensor(eos_ids, dtype=torch.int64, device=out.device))
    return (ended.cumsum(1) - ended.long() == 0).sum(1).tolist()    # up to the first EOS and with it


def batching(model, pad_id, prompts, samples, new_tokens, eos_ids, cache) -> list[int]:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    cuda = model.device.type == "cuda"
    prompts = [prompt for prompt in prompts for _ in range(samples)]
    pages = sum(-(-(len(prompt) + new_tokens) // 256) for prompt in prompts)
    torch.manual_seed(0)
    out = model.generate_batch(
        prompts, progress_bar=False, warmup=cuda,
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=None if cuda else pages + 8),
        generation_config=GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=pad_id,
                                           max_new_tokens=new_tokens, eos_token_id=eos_ids or [-1]))
    if errors := [result.error for result in out.values() if result.error] or len(out) < len(prompts):
        raise RuntimeError(f"{errors}")
    return [len(result.generated_tokens) for result in out.values()]


def measure(function, *args) -> tuple[float, list[int], float]:
    """-> seconds, lengths, peak memory in GB (of the process, with the weights; of the GPU's allocator there)."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)                            # what the last contestant freed goes back first,
        Path("/proc/self/clear_refs").write_text("5")               # then the high-water mark falls to what is held
    start = CLOCK()
    lengths = function(*args)
    if cuda:
        torch.cuda.synchronize()
    return CLOCK() - start, lengths, (torch.cuda.max_memory_allocated() if cuda else memory("VmHWM")) / 1e9


# ---------------------------------------------------------------- the roofline

def median_seconds(function, repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = CLOCK()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(CLOCK() - start)
    return median(times)


FASTER: Counter = Counter()                             # which library and layout was the quickest, batch after batch


@torch.no_grad()
def matmul_seconds(model, batch: int, head: bool = True) -> float:
    """Median seconds of every nn.Linear on `batch` rows, in the best of both libraries and of both layouts."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)
              and (head or module is not model.get_output_embeddings())]
    inputs = {width: torch.randn(batch, width, dtype=model.dtype, device=model.device)
              for width in {module.in_features for module in layers}}

    def step():
        for module in layers:
            module(inputs[module.in_features])

    seconds, before = {}, os.environ.get("FLOAT32_MATMUL")
    try:
        for library in ("mkl", "onednn"):
            os.environ["FLOAT32_MATMUL"] = library
            linears.choose(model)
            seconds[f"{library}, plain"] = median_seconds(step)
            with linears.packed_weights(model):
                seconds[f"{library}, packed"] = median_seconds(step)
    finally:
        os.environ.pop("FLOAT32_MATMUL")
        os.environ.update({"FLOAT32_MATMUL": before} if before else {})
        linears.choose(model)
    FASTER[min(seconds, key=seconds.get)] += 1
    return min(seconds.values())


def bandwidth(device) -> float:
    """bytes/s of reading memory"""
    buffer = torch.ones(2**26, device=device)
    return buffer.nbytes / median_seconds(buffer.sum)


def cache_bytes(model, tokens: int) -> int:
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return tokens * 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * model.dtype.itemsize


def weight_bytes(model) -> int:
    return sum(module.weight.nbytes for module in model.modules() if isinstance(module, torch.nn.Linear))


def rollouts_roofline(model, prompts, lengths: list[int]) -> tuple[float, float, float]:
    """Least seconds of prefilling these prompts, of the matmuls of these steps, and of reading the cache in them."""
    alive = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 48, 64, 96, 128) if size < max(alive, default=0)]
    sizes = sorted({*sizes, max(alive, default=1)})
    seconds = {size: matmul_seconds(model, size) for size in sizes}

    def at(rows: int) -> float:                                     # between two measured sizes: a straight line
        below, above = max(s for s in sizes if s <= rows), min(s for s in sizes if s >= rows)
        return seconds[below] + (seconds[above] - seconds[below]) * (rows - below) / max(1, above - below)

    prompt_tokens = sum(map(len, prompts))
    read = sum(prompt_tokens + step * rows for step, rows in enumerate(alive, 1))
    return (matmul_seconds(model, prompt_tokens, head=False), sum(map(at, alive)),
            cache_bytes(model, read) / bandwidth(model.device))


# ---------------------------------------------------------------- the two cases

def faster_cache(model, pad_id, prompts) -> str:
    seconds = {}
    for cache in ("dynamic", "static"):
        try:
            theirs(model, pad_id, prompts[:1], 8, 2, [], cache)
            seconds[cache] = measure(theirs, model, pad_id, prompts[:1], 8, 6, [], cache)[0]
        except Exception as error:
            print(f"generate() with a {cache} cache does not run: {type(error).__name__}: {error}", flush=True)
    print("generate(), 8 rows, 6 tokens: " + ", ".join(f"{name} cache {s:.2f} s" for name, s in seconds.items()))
    return min(seconds, key=seconds.get)


def gsm8k(model, pad_id, prompts, samples: int, new_tokens: int, eos_ids, cache: str, contestants: dict) -> None:
    speeds, times = {}, {}
    for name, function in contestants.items():
        try:
            times[name], lengths, peak = measure(function, model, pad_id, prompts, samples, new_tokens, eos_ids, cache)
        except Exception as error:
            print(f"  {name:16} does not run here: {type(error).__name__}: {str(error)[:90]}", flush=True)
            continue
        speeds[name] = sum(lengths) / times[name]
        if function is ours:
            our_lengths = lengths
        print(f"  {name:16} {sum(lengths):6} tokens {times[name]:7.1f} s {speeds[name]:7.1f} tokens/s  "
              f"peak {peak:.2f} GB  ours / it {speeds['ours'] / speeds[name]:.2f}", flush=True)
    prefill, matmuls, reading = rollouts_roofline(model, prompts, our_lengths)
    least = prefill + matmuls + reading
    print(f"  roofline of these rollouts {least:.1f} s (prefill {prefill:.1f}, matmuls of {max(our_lengths) - 1} steps "
          f"by {FASTER.most_common(1)[0][0]} "
          f"{matmuls:.1f}, cache {reading:.1f}): ours reaches {least / times['ours']:.0%} of it; the ratio to "
          f"generate() would be {sum(our_lengths) / least / speeds['generate()']:.2f} at 100%", flush=True)


def fixed_length(model, pad_id, prompts, samples: int, steps: int, cache: str) -> None:
    prompts, batch = [prompt[:32] for prompt in prompts], len(prompts) * samples
    speeds = {}
    for name, function in (("ours", ours), ("generate()", theirs)):
        one, many = (measure(function, model, pad_id, prompts, samples, count, [], cache)[0]
                     for count in (1, steps + 1))
        speeds[name] = batch * steps / (many - one)
    read = cache_bytes(model, 32 * len(prompts) + batch * steps // 2)
    matmuls, reading = matmul_seconds(model, batch), read / bandwidth(model.device)
    gigabytes = (weight_bytes(model) + read) / 1e9
    print(f"  batch {batch:3}: ours {speeds['ours']:7.1f} tokens/s, generate() {speeds['generate()']:7.1f}, "
          f"ratio {speeds['ours'] / speeds['generate()']:.2f}; roofline {batch / (matmuls + reading):7.1f} "
          f"(a step: matmuls {1e3 * matmuls:.1f} ms, cache {1e3 * reading:.1f} ms), "
          f"share {speeds['ours'] * (matmuls + reading) / batch:.0%}; weights and cache "
          f"{gigabytes * speeds['ours'] / batch:.1f} of {bandwidth(model.device) / 1e9:.1f} GB/s", flush=True)


def profile(model, pad_id, prompts, samples: int) -> None:
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with torch.profiler.profile(activities=kinds) as record:
        ours(model, pad_id, prompts, samples, 32, [])
    on = "device" if torch.cuda.is_available() else "cpu"
    print(record.key_averages().table(sort_by=f"self_{on}_time_total", row_limit=16, max_name_column_width=48))


def main(args) -> None:
    disable_progress_bar()
    set_verbosity_error()
    warnings.filterwarnings("ignore")
    if args.clock == "cpu":
        global CLOCK
        CLOCK = time.process_time
    torch.set_num_threads(args.threads or torch.get_num_threads())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.shape:
        prompts = [torch.randint(1000, (length,)).tolist() for length in PROMPT_LENGTHS]
        pad_id, eos_ids = 0, [0]
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        eos_ids = [tokenizer.eos_token_id]
        pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        questions = [json.loads(line)["question"] for line in args.problems.read_text().splitlines()[100:108]]
        prompts = [tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True,
                                                 return_dict=True)["input_ids"] for question in questions]
    samples, lengths, batches = 8, args.new_tokens, [(1, 1), (2, 8), (8, 8)]
    if args.quick:
        prompts, samples, lengths, batches = prompts[:2], 4, [16], [(1, 1), (2, 4)]
    print(f"{device}, {torch.get_num_threads()} threads, {args.clock} clock, load {os.getloadavg()[0]:.1f}, "
          f"prompts of {', '.join(str(len(prompt)) for prompt in prompts)} tokens")
    contestants = {"ours": ours, "generate()": theirs} | ({} if args.no_batching else {"generate_batch()": batching})
    for dtype in args.dtype:
        if args.shape:
            model = AutoModelForCausalLM.from_config(Qwen3Config(**SHAPES[args.shape]), dtype=getattr(torch, dtype))
        else:
            model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, dtype))
        model = model.to(device).eval()
        print(f"\n{dtype}; attention {'shared' if has_plain_attention(model) else 'plain'}")
        if args.profile:
            profile(model, pad_id, prompts, samples)
            continue
        cache = faster_cache(model, pad_id, prompts)
        if not args.no_fixed:
            print("fixed length, decoding alone")
            for count, each in batches:
                fixed_length(model, pad_id, prompts[:count], each, 8 if args.quick else args.fixed_steps, cache)
        for new_tokens in lengths:
            print(f"GSM8K, {len(prompts)} prompts x {samples}, up to {new_tokens} tokens; generate(): {cache} cache")
            for _ in range(args.rounds):
                gsm8k(model, pad_id, prompts, samples, new_tokens, eos_ids, cache, contestants)


if __name__ == "__main__":
    main(parse_args())
