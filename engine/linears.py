"""Float32 products on a CPU by the faster of the two libraries that PyTorch brings for them: MKL or oneDNN.

PyTorch asks MKL, which serves an AMD CPU as if that had AVX2 only: where it has AVX-512, oneDNN does more than twice
as much.  Where an AMD has AVX2 only, MKL is as fast or faster.  So nobody guesses: `choose` times both on each shape of
weight that a model has, some milliseconds each, and compares both with float64, and what was found goes for

    the passes     nn.Linear, forward and both gradients    `forward`, set on the model's own modules
    the head       tiles of logits and their gradients       logprobs.py asks `chosen`
    sampling       few rows, weights packed beforehand       `packed_weights`

The choice is kept in ~/.cache/sparse-to-dense/, by CPU, threads and version of torch: a run that is taken up again,
and every later run on the machine, computes the same bits, whatever else the machine was doing while it was measured.
All ranks take rank 0's.  FLOAT32_MATMUL=mkl or =onednn in the environment decides without measuring.  Small weights
stay with MKL, which is faster there.  Another dtype, autocast, another device: all as if this file were not there.

oneDNN is called directly, and computes in float32.  The switches by which it may round float32 to less
(torch.set_float32_matmul_precision, torch.backends.mkldnn.matmul.fp32_precision) are never set here; where a user has
set one, products are left to PyTorch, which then does as it was told.
"""
import functools
import json
import os
import time
import types
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from engine.files import write_json
from engine.hardware import cpu_has_bfloat16, give_back_freed_memory
from engine.ranks import fail, from_rank_0, world_size

LEAST_WEIGHT = 2**16                                    # numbers; a smaller one stays with MKL
TIMED_WEIGHT = 2**20                                    # numbers of a weight that are timed
ROWS = {"passes": 128, "sampling": 64}
MARGIN = 1.15                                           # by so much must oneDNN be faster: less may be noise
CHOSEN: dict[str, str] = {}                             # use and shape -> library, as far as they were asked for

# ================================================================ the two libraries


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias in float32.  (..., in), (out, in) of any strides, (out,) -> (..., out); no autograd"""
    if may_round():
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def mkl(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def pack_onednn(weight: Tensor, bias: Tensor | None):
    """-> a function of x (..., in), in any dtype, that returns x @ weight.T + bias (..., out) in that dtype"""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS["sampling"])
    return lambda x: torch.ops.mkldnn._linear_pointwise(x.float(), packed, bias, "none", [], "").to(x.dtype)


def pack_mkl(weight: Tensor, bias: Tensor | None):
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), ROWS["sampling"])
    shape = torch.zeros(1).expand(weight.shape)         # the weight itself is not read
    return lambda x: torch.ops.mkl._mkl_linear(x.float(), packed, shape, bias, x.numel() // x.shape[-1]).to(x.dtype)


LIBRARIES = {"MKL": (mkl, pack_mkl), "oneDNN": (onednn, pack_onednn)}


def both_are_here() -> bool:
    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkl, "_mkl_linear") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def may_round() -> bool:
    """Whether the user has set a switch by which oneDNN may take float32 for something shorter."""
    getter = getattr(torch._C, "_get_fp32_precision_getter", None)                      # torch >= 2.9
    precision = getter("mkldnn", "matmul") if getter else torch.get_float32_matmul_precision()
    return precision not in ("none", "ieee", "highest") or ONEDNN_ROUNDS


ONEDNN_ROUNDS = any(os.environ.get(f"{name}_DEFAULT_FPMATH_MODE", "STRICT").upper() != "STRICT"
                    for name in ("ONEDNN", "DNNL"))

# ================================================================ the choice


def library(shape: tuple[int, int], use: str) -> str:
    """MKL or oneDNN, for weights of this shape (out, in) in one of ROWS' two uses."""
    if may_round() or not both_are_here():
        return "MKL"
    return forced() or CHOSEN.get(key_of(shape, use), "MKL")


def forced() -> str | None:
    if name := os.environ.get("FLOAT32_MATMUL"):
        if name not in ("mkl", "onednn"):
            fail(f"FLOAT32_MATMUL={name} in the environment: give mkl or onednn, or unset it and have both timed")
        return {"mkl": "MKL", "onednn": "oneDNN"}[name]
    return None


def chosen(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether products of this dtype with the weight, and their gradients, are oneDNN's part."""
    return (dtype == torch.float32 and weight.device.type == "cpu"
            and library(tuple(weight.shape), "passes") == "oneDNN")


def key_of(shape: tuple[int, int], use: str) -> str:
    return f"{use} {shape[0]} x {shape[1]}"


def choose(model) -> None:
    """Settle which library multiplies by this model's weights, and set `forward` where it is not MKL.

    Every rank calls this with the same model.
    """
    linears = plain_linears(model)
    if both_are_here() and not may_round() and not forced():
        keys = {key_of(shape, use): (shape, use) for module in linears for use in ROWS
                if (shape := tuple(module.weight.shape))[0] * shape[1] >= LEAST_WEIGHT}
        if new := keys.keys() - CHOSEN.keys():
            CHOSEN.update(from_rank_0(lambda: recorded({key: keys[key] for key in sorted(new)})))
    for module in linears:
        vars(module).pop("forward", None)
        if module.weight.dtype == torch.float32 and library(tuple(module.weight.shape), "passes") == "oneDNN":
            module.forward = types.MethodType(forward, module)          # a copy of the model has its copy bound


def plain_linears(model) -> list[nn.Linear]:
    """Neither quantised nor somebody else's by now; their weights may be shards."""
    return [module for module in model.modules()
            if type(module) is nn.Linear and type(module.weight) in (nn.Parameter, DTensor)
            and module.weight.device.type == "cpu" and module.weight.dtype in (torch.float32, torch.bfloat16)
            and is_ours(vars(module).get("forward"))]


def is_ours(method) -> bool:
    return method is None or getattr(method, "__func__", None) is forward


def recorded(wanted: dict[str, tuple]) -> dict[str, str]:
    """What the file of this machine says, measured where it says nothing."""
    file = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sparse-to-dense" / "float32_products.json"
    try:
        everything = json.loads(file.read_text())
        mine = dict(everything.get(machine(), {}))
    except (OSError, ValueError, TypeError, AttributeError):      # not written whole by anybody: begun anew
        everything, mine = {}, {}
    known = {key: mine[key] for key in wanted if mine.get(key) in LIBRARIES}
    if len(known) == len(wanted):
        return known
    known |= {key: measured(*wanted[key]) for key in wanted.keys() - known.keys()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, everything | {machine(): mine | known})
    except (OSError, SystemExit):                       # no home to write to: measured again by the next process
        pass
    return known


@functools.cache
def machine() -> str:
    """All that the faster library depends on, but the shape."""
    cpuinfo, facts = Path("/proc/cpuinfo"), {}
    if cpuinfo.is_file():
        facts = dict(line.split("\t", 1) for line in cpuinfo.read_text().split("\n\n")[0].splitlines() if "\t" in line)
    names = [facts[name].strip("\t: ") for name in ("vendor_id", "cpu family", "model", "model name") if name in facts]
    return ", ".join([*names, torch.backends.cpu.get_cpu_capability(), f"torch {torch.__version__}",
                      f"{torch.get_num_threads()} threads"])


@torch.no_grad()
def measured(shape: tuple[int, int], use: str) -> str:
    """The library that is faster, in processor time: what else runs on the machine takes none of that."""
    (out, width), rows, generator = shape, ROWS[use], torch.Generator().manual_seed(0)
    out = min(out, max(TIMED_WEIGHT // width, 64))
    sizes = (rows, width), (out, width), (rows, out)
    x, weight, gradient = (torch.randn(size, generator=generator) for size in sizes)
    ways, errors = {}, {}
    for name, (product, pack) in LIBRARIES.items():
        packed = pack(weight, None)
        ways[name] = functools.partial(packed, x) if use == "sampling" else functools.partial(
            three_products, product, x, weight, gradient)
        errors[name] = (packed(x) - x.double() @ weight.double().T).norm()
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(5):                                  # in turns
        for name, way in ways.items():
            start = time.process_time()
            way()
            seconds[name] = min(seconds[name], time.process_time() - start)
    faster = seconds["MKL"] > MARGIN * seconds["oneDNN"]
    return "oneDNN" if faster and errors["oneDNN"] <= 4 * errors["MKL"] else "MKL"


# ================================================================ the passes


def three_products(product, x: Tensor, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's output and the gradients of its input and weight.  (n, in), (out, in), (n, out)"""
    return product(x, weight), product(gradient, weight.T), product(gradient.T, x.T)


def forward(self: nn.Linear, x: Tensor) -> Tensor:
    """In place of nn.Linear.forward."""
    weight = self.weight
    ours = (x.dtype == weight.dtype == torch.float32 and x.numel() and type(weight) is nn.Parameter
            and x.device.type == weight.device.type == "cpu" and not torch.is_autocast_enabled("cpu"))
    return OneDnnLinear.apply(x, weight, self.bias) if ours else F.linear(x, weight, self.bias)


class OneDnnLinear(torch.autograd.Function):
    """x @ weight.T + bias.  (..., in), (out, in), (out,) or None -> (..., out)"""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x, weight), wanted = ctx.saved_tensors, ctx.needs_input_grad
        rows, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        return (onednn(rows, weight.T).view(x.shape) if wanted[0] else None,
                onednn(rows.T, inputs.T) if wanted[1] else None,
                rows.sum(0) if wanted[2] else None)


# ================================================================ sampling


@contextmanager
def packed_weights(model):
    """While sampling, nn.Linear multiplies by a float32 copy of its weight that the faster library has packed.

    A library otherwise packs the weight anew in each product (a third of the time at 1 row, 3 to 25% at 8 to 64); and a
    CPU without bf16 instructions takes bf16 to pieces, four times slower than float32 at 64 rows.  The products are the
    same but for their rounding.  Where there are bf16 instructions a bf16 model stays as it is.
    """
    if world_size() == 1:                               # a model that load_model did not make
        choose(model)
    dtypes = {torch.float32} if cpu_has_bfloat16() else {torch.float32, torch.bfloat16}
    changed = {module: vars(module).get("forward") for module in plain_linears(model) if both_are_here()
               and type(module.weight) is nn.Parameter and module.weight.dtype in dtypes}
    give_back_freed_memory()
    try:
        for module in changed:
            module.forward = packed_forward(module)
        yield
    finally:
        for module, before in changed.items():
            vars(module).pop("forward", None)
            if before is not None:
                module.forward = before
        give_back_freed_memory()


def packed_forward(module: nn.Linear):
    weight, bias = (x if x is None else x.detach().float() for x in (module.weight, module.bias))
    return LIBRARIES[library(tuple(weight.shape), "sampling")][1](weight, bias)
