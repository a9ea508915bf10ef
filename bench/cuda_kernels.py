"""The CUDA kernels on a GPU: bytes a second beside a device copy, PyTorch and TRL's Triton kernels; whole functions.

    python bench/cuda_kernels.py [--rows 8192 --vocab 151936 --width 2048] [--dtype bfloat16 float32]

Kernels: each row of logits counts as often as its result needs it read or written (`passes`: forward 1, gradient in
place 2, divergence 2, its gradient 3; the JSD's second reading counts against it), over the median time; the share is
of what a device-to-device copy of the same tensor reaches in the same run.  Whole functions: forward and backward
from hidden states, beside the matrix products alone (`floor`: logits once, two products for the gradients; twice the
logits where they are made again).  Medians of CUDA events; a buffer larger than the L2 cache is written in between, and
the methods take turns.  TRL and Liger are there if installed (`pip install -e '.[bench]'`).
"""
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import FlagParser  # noqa: E402
from engine import cuda_logprobs, tiles  # noqa: E402
from engine.logprobs import linear_divergence, linear_logprobs  # noqa: E402
from stage4_distill import jsd, reverse_kl  # noqa: E402


def parse_args(argv=None):
    parser = FlagParser(__doc__)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--width", type=int, default=2048, help="D of the whole functions")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=30)
    return parser.parse_args(argv)


def medians(methods: dict, rounds: int, device: str = "cuda") -> dict[str, float]:
    """Median milliseconds of each function; one that fails is left out, and said."""
    flush = torch.empty(2**28, dtype=torch.uint8, device=device)
    times: dict[str, list[float]] = {}
    for name, function in methods.items():
        try:
            for _ in range(3):
                function()
            times[name] = []
        except Exception as error:                      # of other people's code, anything
            print(f"{name}: not measured ({type(error).__name__}: {str(error)[:200]})", file=sys.stderr)
    for _ in range(rounds):
        for name in times:
            flush.zero_()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            methods[name]()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end))
    return {name: sorted(values)[len(values) // 2] for name, values in times.items()}


# ---------------------------------------------------------------- kernels


def kernel_methods(rows: int, vocab: int, dtype: torch.dtype, device: str = "cuda") -> dict[str, tuple]:
    """name -> (passes over rows · vocab elements, function)"""
    student, teacher = (torch.randn(rows, vocab, dtype=dtype, device=device) for _ in range(2))
    target = torch.empty_like(student)
    ids = torch.randint(0, vocab, (rows,), device=device)
    ones = torch.ones(rows, device=device)
    state = tiles.new_state(student)
    cuda_logprobs.add_tile(state, student, ids, 0, 1.0)
    _, entropies, maximum, log_total = tiles.read_state(state, ids, 1.0)

    # a gradient overwrites its logits: those that it leaves are as good to measure on
    methods = {"device copy": (2, lambda: target.copy_(student)),
               "add_tile: logprob and entropy": (1, lambda: cuda_logprobs.add_tile(state, student, ids, 0, 1.0)),
               "to_gradient, of logprob": (2, lambda: cuda_logprobs.to_gradient(
                   target, ids, 0, 1.0, maximum, log_total, ones, None, None)),
               "to_gradient, of both": (2, lambda: cuda_logprobs.to_gradient(
                   target, ids, 0, 1.0, maximum, log_total, ones, entropies, ones))}
    for number, kind in enumerate(cuda_logprobs.KINDS):
        figures = cuda_logprobs.divergence(student, teacher, number, 1.0)[1]
        methods[f"divergence, {kind}"] = (2, lambda number=number: cuda_logprobs.divergence(
            student, teacher, number, 1.0))
        methods[f"divergence_to_gradient, {kind}"] = (3, lambda number=number, figures=figures: (
            cuda_logprobs.divergence_to_gradient(target, teacher, number, 1.0, figures, ones)))

    def torch_logprobs():
        for part in student.split(1024):                # whole, its float32 copies would not fit beside the rest
            part.float().log_softmax(-1).gather(1, ids[:len(part), None])

    def trl_logprobs_and_entropy():
        from trl.kernels.logprob_entropy import selective_log_softmax_and_entropy
        with torch.no_grad():
            selective_log_softmax_and_entropy(student, ids)

    return methods | {"torch log_softmax + gather": (1, torch_logprobs),
                      "TRL selective_log_softmax_and_entropy": (1, trl_logprobs_and_entropy)}


def bench_kernels(args, dtype: torch.dtype) -> None:
    methods = kernel_methods(args.rows, args.vocab, dtype)
    times = medians({name: function for name, (_, function) in methods.items()}, args.rounds)
    print(f"\n| {args.rows} x {args.vocab}, {dtype} | ms | GB/s | of a copy |\n| --- | --- | --- | --- |")
    bandwidth = {name: methods[name][0] * args.rows * args.vocab * dtype.itemsize / time / 1e6
                 for name, time in times.items()}
    for name, time in times.items():
        print(f"| {name} | {time:.3f} | {bandwidth[name]:.0f} | {bandwidth[name] / bandwidth['device copy']:.2f} |")


# ---------------------------------------------------------------- whole functions


def whole_methods(rows: int, vocab: int, width: int, dtype: torch.dtype, device: str = "cuda") -> dict:
    """name -> a function of no arguments: forward and backward"""
    def random(*shape):
        return torch.randn(*shape, dtype=dtype, device=device) * shape[-1]**-0.5

    hidden, weight = random(rows, width).requires_grad_(), random(vocab, width).requires_grad_()
    teacher_hidden, teacher_weight = random(rows, width), random(vocab, width)
    ids, weights = torch.randint(0, vocab, (rows,), device=device), torch.full((rows,), 1 / rows, device=device)

    def products(makings: int):
        """The matrix products of forward and backward, `makings` times the logits, in chunks of 2,048 tokens."""
        with torch.no_grad():
            for states in hidden.split(2048):
                for _ in range(makings):
                    logits = states @ weight.T
                logits @ weight, logits.T @ states

    def backward(loss):
        hidden.grad = weight.grad = None
        loss.backward()

    def trl_logprobs():
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction
        backward(ChunkedLogProbFunction.apply(hidden, weight, None, ids, 1.0, 32768, None, 1.0, ())[0].sum() / rows)

    def trl_divergence():
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
        divergence = ChunkedDivergenceFunction.apply(hidden, weight, None, teacher_hidden, teacher_weight, None, 1.0)[0]
        backward(divergence.sum() / rows)

    def liger_cross_entropy():
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
        backward(LigerFusedLinearCrossEntropyLoss()(weight, hidden, ids))

    def liger_jsd():
        from liger_kernel.transformers import LigerFusedLinearJSD
        backward(LigerFusedLinearJSD(jsd_beta=0.5)(hidden, weight, teacher_hidden, teacher_weight, None))

    pair = (hidden, weight, teacher_hidden, teacher_weight)
    return {
        "floor: products, logits once": lambda: products(1),
        "Liger fused linear cross entropy": liger_cross_entropy,
        "F.cross_entropy of the logits": lambda: backward(F.cross_entropy((hidden @ weight.T).float(), ids)),
        "floor: products, logits twice": lambda: products(2),
        "linear_logprobs": lambda: backward(-linear_logprobs(hidden, weight, ids).sum() / rows),
        "TRL ChunkedLogProbFunction": trl_logprobs,
        "linear_divergence, reverse": lambda: backward(linear_divergence(*pair, reverse_kl, weights, ids)[0]),
        "TRL ChunkedDivergenceFunction, reverse": trl_divergence,
        "linear_divergence, jsd": lambda: backward(linear_divergence(*pair, jsd, weights, ids)[0]),
        "Liger fused linear JSD": liger_jsd,
    }


def bench_whole(args, dtype: torch.dtype) -> None:
    methods = whole_methods(args.rows, args.vocab, args.width, dtype)
    times = medians(methods, max(args.rounds // 3, 1))
    print(f"\n| N = {args.rows}, D = {args.width}, V = {args.vocab}, {dtype} | ms | of the products once | peak GB |")
    print("| --- | --- | --- | --- |")
    for name, time in times.items():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        methods[name]()
        peak = (torch.cuda.max_memory_allocated() - before) / 1e9
        print(f"| {name} | {time:.2f} | {time / times['floor: products, logits once']:.2f} | {peak:.2f} |")


def main(args) -> None:
    if not torch.cuda.is_available():
        print("error: bench/cuda_kernels.py measures on a GPU, and there is none here; bench/logprobs.py is for CPUs",
              file=sys.stderr)
        raise SystemExit(2)
    if cuda_logprobs.library() is None:
        raise SystemExit(2)                             # why has been said
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for dtype in args.dtype:
        bench_kernels(args, getattr(torch, dtype))
        torch.cuda.empty_cache()
    bench_whole(args, torch.bfloat16)


if __name__ == "__main__":
    main(parse_args())
