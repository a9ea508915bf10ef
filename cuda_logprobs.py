"""csrc/logprobs.cu for PyTorch: built by nvcc on first use, loaded by ctypes, registered as custom operators.

A plain C interface needs no header of PyTorch or Python: one library serves every version of both, and compiling takes
seconds.  Without nvcc or a driver logprobs.py does the same in PyTorch's own operations; a line on stderr says so once.
The operators work on the current stream of their tensors' device; torch.compile takes them as they are.
"""
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).resolve().parent / "csrc" / "logprobs.cu"
NVCC_FLAGS = ["-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

pointer, long, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
ARGUMENTS = {
    "add_tile": [pointer, number, long, long, long, pointer, long, real, pointer, pointer],
    "to_gradient": [pointer, number, long, long, long, pointer, long, real, *[pointer] * 6],
    "divergence": [pointer, long, pointer, long, number, long, long, number, real, *[pointer] * 3],
    "divergence_to_gradient": [pointer, long, pointer, long, number, long, long, number, real, *[pointer] * 3],
}


# ---------------------------------------------------------------- the library


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels for this machine's GPU, or None, which is said once."""
    try:
        return open_library(build())
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        why = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        print(f"logprobs: plain PyTorch in place of the CUDA kernels ({why})", file=sys.stderr, flush=True)
        return None


def open_library(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    for name, arguments in ARGUMENTS.items():
        getattr(loaded, name).argtypes = arguments
    return loaded


def build() -> Path:
    """Compile for the current device's architecture, unless the cache has it.  -> the shared library

    The name tells the source, the compiler and the architecture; the file appears whole, by a rename, so that of two
    processes that build at once each finds a good one.
    """
    nvcc = shutil.which("nvcc") or os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    if not os.path.exists(nvcc):
        raise RuntimeError("no nvcc in PATH or CUDA_HOME")
    architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256(SOURCE.read_bytes() + version.encode() + " ".join(NVCC_FLAGS).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sparse-to-dense"
    target = cache / f"logprobs-{key}-{architecture}.so"
    if not target.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            fresh = Path(directory) / target.name
            subprocess.run([nvcc, *NVCC_FLAGS, f"-arch={architecture}", str(SOURCE), "-o", str(fresh)],
                           capture_output=True, text=True, check=True)
            fresh.replace(target)
    return target


def call(name: str, logits: Tensor, *arguments) -> None:
    """Call a C function; tensors become pointers, and the current stream comes last."""
    values = [value.data_ptr() if isinstance(value, Tensor) else value for value in arguments]
    if logits.is_cuda:
        with torch.cuda.device(logits.device):
            code = getattr(library(), name)(*values, torch.cuda.current_stream().cuda_stream)
    else:
        code = getattr(library(), name)(*values, None)              # the emulator of the tests
    if code:
        raise RuntimeError(f"{name} failed with " + ("a bad argument" if code < 0 else f"CUDA error {code}"))


def check(logits: Tensor, vectors: list[Tensor | None], ids: Tensor | None = None) -> None:
    """What the kernels take on trust."""
    rows = len(logits)
    if logits.dtype not in DTYPES or logits.dim() != 2 or logits.stride(1) != 1 and logits.shape[1] > 1:
        raise ValueError(f"logits {tuple(logits.shape)}, {logits.dtype}: rows of float32, bfloat16 or float16 it is")
    for vector in vectors:
        if vector is not None and (len(vector) != rows or vector.dtype != torch.float32 or not vector.is_contiguous()):
            raise ValueError(f"{rows} contiguous rows of float32 are needed, not {tuple(vector.shape)} {vector.dtype}")
    if ids is not None and (ids.shape != (rows,) or ids.dtype != torch.int64 or not ids.is_contiguous()):
        raise ValueError(f"{rows} contiguous int64 ids are needed, not {tuple(ids.shape)} {ids.dtype}")


# ---------------------------------------------------------------- the operators
# What each does, and how in PyTorch, stands in logprobs.py: _add_tile, _to_gradient, _divergence.


@torch.library.custom_op("sparse_to_dense::add_tile", mutates_args={"state"})
def add_tile(state: Tensor, logits: Tensor, token_ids: Tensor, start: int, inverse_temperature: float) -> None:
    check(logits, [state], token_ids)
    call("add_tile", logits, logits, DTYPES[logits.dtype], logits.stride(0), *logits.shape, token_ids, start,
         inverse_temperature, state)


@torch.library.custom_op("sparse_to_dense::to_gradient", mutates_args={"logits"})
def to_gradient(logits: Tensor, token_ids: Tensor, start: int, inverse_temperature: float, maximum: Tensor,
                log_total: Tensor, grad_logprobs: Tensor, entropies: Tensor | None,
                grad_entropies: Tensor | None) -> None:
    check(logits, [maximum, log_total, grad_logprobs, entropies, grad_entropies], token_ids)
    call("to_gradient", logits, logits, DTYPES[logits.dtype], logits.stride(0), *logits.shape, token_ids, start,
         inverse_temperature, maximum, log_total, grad_logprobs, entropies, grad_entropies)


@torch.library.custom_op("sparse_to_dense::divergence", mutates_args=())
def divergence(student: Tensor, teacher: Tensor, kind: int, inverse_temperature: float) -> tuple[Tensor, Tensor]:
    """-> values (n,), and for the gradient (n, 5): each side's maximum and log of its sum, and the centre"""
    check_pair(student, teacher)
    values = student.new_empty(len(student), dtype=torch.float32)
    figures = student.new_empty(len(student), 5, dtype=torch.float32)
    call("divergence", student, student, student.stride(0), teacher, teacher.stride(0), DTYPES[student.dtype],
         *student.shape, kind, inverse_temperature, values, figures)
    return values, figures


@divergence.register_fake
def _(student, teacher, kind, inverse_temperature):
    return tuple(student.new_empty(shape, dtype=torch.float32) for shape in ((len(student),), (len(student), 5)))


@torch.library.custom_op("sparse_to_dense::divergence_to_gradient", mutates_args={"student"})
def divergence_to_gradient(student: Tensor, teacher: Tensor, kind: int, inverse_temperature: float, figures: Tensor,
                           weights: Tensor) -> None:
    check_pair(student, teacher)
    check(student, [figures, weights])
    call("divergence_to_gradient", student, student, student.stride(0), teacher, teacher.stride(0),
         DTYPES[student.dtype], *student.shape, kind, inverse_temperature, figures, weights)


def check_pair(student: Tensor, teacher: Tensor) -> None:
    check(student, [])
    check(teacher, [])
    if student.shape != teacher.shape or student.dtype != teacher.dtype:
        raise ValueError(f"logits of student {tuple(student.shape)} {student.dtype} and teacher {tuple(teacher.shape)} "
                         f"{teacher.dtype} differ")
