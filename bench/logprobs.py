"""logprobs.py on a CPU, beside what one would write or install instead: processor time and peak memory.

    python bench/logprobs.py [--dtype float32 bfloat16] [--rounds 3] [--tokens 2048 --width 576 --vocab 49152]

Each measurement is forward and backward in a fresh process on one thread; the methods take turns, so that a busy hour
of a shared machine strikes all alike.  CPU seconds are the process's own (best of the rounds), the memory is how far
the high-water mark (VmHWM, set back just before) rises above what was held: gradients of hidden states and weight are
in it.  TRL, where it is installed (`pip install -e '.[bench]'`), is its chunked functions at their own tile sizes.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import FlagParser  # noqa: E402
from processes import memory  # noqa: E402


# ---------------------------------------------------------------- the methods
# Each takes hidden, weight, the teacher's, token ids and the tokens' weights in the loss, and returns the loss.

def log_softmax_and_gather(hidden, weight, teacher_hidden, teacher_weight, token_ids, token_weights):
    logprobs = (hidden @ weight.T).float().log_softmax(-1).gather(-1, token_ids[:, None])[:, 0]
    return -(logprobs * token_weights).sum()


def cross_entropy(hidden, weight, teacher_hidden, teacher_weight, token_ids, token_weights):
    from torch.nn import functional as F
    return (F.cross_entropy((hidden @ weight.T).float(), token_ids, reduction="none") * token_weights).sum()


def trl_logprobs(hidden, weight, teacher_hidden, teacher_weight, token_ids, token_weights):
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    logprobs = ChunkedLogProbFunction.apply(hidden, weight, None, token_ids, 1.0, 32768, None, 1.0, ())[0]
    return -(logprobs * token_weights).sum()


def our_logprobs(hidden, weight, teacher_hidden, teacher_weight, token_ids, token_weights):
    from engine.logprobs import linear_logprobs
    return -(linear_logprobs(hidden, weight, token_ids) * token_weights).sum()


def our_logprobs_entropy(hidden, weight, teacher_hidden, teacher_weight, token_ids, token_weights):
    from engine.logprobs import linear_logprobs
    logprobs, entropy = linear_logprobs(hidden, weight, token_ids, entropy=True)
    return -((logprobs + 0.01 * entropy) * token_weights).sum()


def plain_reverse_kl(hidden, weight, teacher_hidden, teacher_weight, token_ids, token_weights):
    import torch

    from stage4_distill import reverse_kl
    with torch.no_grad():
        teacher_logits = teacher_hidden @ teacher_weight.T
    return (reverse_kl(hidden @ weight.T, teacher_logits) * token_weights).sum()


def trl_reverse_kl(hidden, weight, teacher_hidden, teacher_weight, token_ids, token_weights):
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    divergence = ChunkedDivergenceFunction.apply(hidden, weight, None, teacher_hidden, teacher_weight, None, 1.0)[0]
    return (divergence * token_weights).sum()


def our_reverse_kl(hidden, weight, teacher_hidden, teacher_weight, token_ids, token_weights):
    from engine.logprobs import linear_divergence
    from stage4_distill import reverse_kl
    return linear_divergence(hidden, weight, teacher_hidden, teacher_weight, reverse_kl, token_weights, token_ids)[0]


CASES = {
    "logprobs": {"log_softmax + gather": log_softmax_and_gather, "F.cross_entropy": cross_entropy,
                 "TRL ChunkedLogProbFunction": trl_logprobs, "linear_logprobs": our_logprobs,
                 "linear_logprobs, entropy": our_logprobs_entropy},
    "reverse KL": {"reverse_kl of the logits": plain_reverse_kl, "TRL ChunkedDivergenceFunction": trl_reverse_kl,
                   "linear_divergence": our_reverse_kl},
}


# ---------------------------------------------------------------- measuring

def measure(case: str, method: str, dtype: str, tokens: int, width: int, vocab: int) -> dict:
    """In this process.  -> cpu_seconds, megabytes, and the loss and the gradients' norms, to see that all agree."""
    import torch
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)

    def random(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator) * scale).to(getattr(torch, dtype))

    hidden, weight = random(tokens, width), random(vocab, width, scale=width**-0.5)
    inputs = (hidden.requires_grad_(), weight.requires_grad_(), random(tokens, width),
              random(vocab, width, scale=width**-0.5), torch.randint(0, vocab, (tokens,), generator=generator),
              torch.rand(tokens, generator=generator) / tokens)
    if case == "logprobs":
        inputs = *inputs[:2], None, None, *inputs[4:]
    small = [None if tensor is None else tensor[:2].detach().requires_grad_(i < 2) for i, tensor in enumerate(inputs)]
    small[4] = torch.zeros_like(small[4])
    CASES[case][method](*small).backward()              # imports, thread pools and code caches are not what we measure
    Path("/proc/self/clear_refs").write_text("5")
    before, start = memory("VmRSS"), time.process_time()
    loss = CASES[case][method](*inputs)
    loss.backward()
    seconds = time.process_time() - start
    return {"cpu_seconds": seconds, "megabytes": (memory("VmHWM") - before) / 1024e3, "loss": loss.item(),
            "norms": [hidden.grad.float().norm().item(), weight.grad.float().norm().item()]}


def parse_args(argv=None):
    parser = FlagParser(__doc__)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes per method")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--only", help=argparse.SUPPRESS)       # what a fresh process measures, as JSON
    return parser.parse_args(argv)


def main(args) -> None:
    if args.only:
        print(json.dumps(measure(*json.loads(args.only), args.tokens, args.width, args.vocab)))
        return
    print(f"N = {args.tokens}, D = {args.width}, V = {args.vocab}; one thread, CPU seconds: best of {args.rounds}; "
          "MB above what was held before")
    for case in args.case:
        for dtype in args.dtype:
            results: dict[str, list[dict]] = {method: [] for method in CASES[case]}
            for _ in range(args.rounds):
                for method in results:
                    flags = [f"--{name}={getattr(args, name)}" for name in ("tokens", "width", "vocab")]
                    done = subprocess.run(
                        [sys.executable, __file__, *flags, "--only", json.dumps([case, method, dtype])],
                        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
                    if done.returncode == 0:
                        results[method].append(json.loads(done.stdout.splitlines()[-1]))
                    else:
                        print(f"{method}: not measured ({done.stderr.strip().splitlines()[-1]})", file=sys.stderr)
            print_table(case, dtype, {method: runs for method, runs in results.items() if runs})


def print_table(case: str, dtype: str, results: dict) -> None:
    print(f"\n| {case}, {dtype} | CPU s | of plain | MB | of plain | loss | norms of the gradients |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    best = {method: (min(run["cpu_seconds"] for run in runs), max(run["megabytes"] for run in runs))
            for method, runs in results.items()}
    plain = next(iter(best.values()))
    for method, (seconds, megabytes) in best.items():
        run = results[method][0]
        print(f"| {method} | {seconds:.2f} | {seconds / plain[0]:.2f} | {megabytes:.0f} | {megabytes / plain[1]:.2f} | "
              f"{run['loss']:.6f} | {run['norms'][0]:.5f}, {run['norms'][1]:.5f} |", flush=True)


if __name__ == "__main__":
    main(parse_args())
