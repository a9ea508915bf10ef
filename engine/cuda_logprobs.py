"""logprobs.cu for PyTorch: built by nvcc on first use, loaded by ctypes.

A plain C interface needs no header of PyTorch or Python: one library serves every version of both, and compiling takes
seconds.  Without nvcc or a driver tiles.py does the same in PyTorch's own operations; a line on stderr says so once.
They work on the current stream of their tensors' device.
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

SOURCE = Path(__file__).resolve().with_name("logprobs.cu")
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


def available() -> bool:
    return library() is not None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels for this machine's GPUs, or None, which is said once."""
    try:
        loaded = open_library(build())
        try_out(loaded)
        return loaded
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        why = [*(getattr(error, "stderr", None) or "").split("\n"), str(error)]
        say(f"plain PyTorch in place of the CUDA kernels ({next(line.strip() for line in why if line.strip())})")
        return None


def say(message: str) -> None:
    print(f"logprobs: {message}", file=sys.stderr, flush=True)


def open_library(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    for name, arguments in ARGUMENTS.items():
        getattr(loaded, name).argtypes = arguments
    return loaded


def try_out(loaded: ctypes.CDLL) -> None:
    """One row of one column: a driver too old for the compiler's CUDA shows here, not in the middle of training."""
    numbers = torch.zeros(4, device="cuda")             # as logits, as an id, and as its state
    stream = torch.cuda.current_stream().cuda_stream
    code = loaded.add_tile(numbers.data_ptr(), 0, 1, 1, 1, numbers.data_ptr(), 0, 1.0, numbers.data_ptr(), stream)
    if code:
        raise RuntimeError(f"CUDA error {code}: see what nvidia-smi and nvcc --version say of CUDA's version")


def build() -> Path:
    """Compile for the architectures of this machine's GPUs, unless the cache has it.  -> the shared library

    The name tells the source, the compiler and the architectures.  The file appears whole, by a rename, so that of two
    processes that build at once each finds a good one; its last bytes are the digest of the others, as loading a file
    that a full disk or a crash cut off could kill the process.
    """
    nvcc = shutil.which("nvcc") or os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    if not os.path.exists(nvcc):
        raise RuntimeError("no nvcc in PATH or CUDA_HOME")
    gpus = range(torch.cuda.device_count())
    architectures = sorted({"{}{}".format(*torch.cuda.get_device_capability(gpu)) for gpu in gpus})
    flags = [*NVCC_FLAGS, *(f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures)]
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256(SOURCE.read_bytes() + version.encode() + " ".join(flags).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sparse-to-dense"
    target = cache / f"logprobs-{key}-sm_{'_'.join(architectures)}.so"
    if not is_whole(target):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            fresh = Path(directory) / target.name
            subprocess.run([nvcc, *flags, str(SOURCE), "-o", str(fresh)], capture_output=True, text=True, check=True)
            with open(fresh, "ab") as file:
                file.write(hashlib.sha256(fresh.read_bytes()).digest())
            fresh.replace(target)
    return target


def is_whole(path: Path) -> bool:
    if not path.is_file():
        return False
    content = path.read_bytes()
    whole = hashlib.sha256(content[:-32]).digest() == content[-32:]
    if not whole:
        say(f"{path} is damaged; it is built anew")
    return whole


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


def check(logits: Tensor, vectors: tuple = (), ids: Tensor | None = None, table: Tensor | None = None, width: int = 0):
    """What the kernels take on trust.  vectors: of float32, one number a row, or None; table: `width` numbers a row"""
    rows = len(logits)
    if logits.dtype not in DTYPES or logits.dim() != 2 or logits.stride(1) != 1 and logits.shape[1] > 1:
        raise ValueError(f"logits {tuple(logits.shape)}, {logits.dtype}: rows of float32, bfloat16 or float16 it is")
    for tensor, shape, dtype in [*((vector, (rows,), torch.float32) for vector in vectors),
                                 (table, (rows, width), torch.float32), (ids, (rows,), torch.int64)]:
        if tensor is not None and (tensor.shape != shape or tensor.dtype != dtype or tensor.device != logits.device
                                   or not tensor.is_contiguous() or tensor.data_ptr() % 16 and tensor is table):
            raise ValueError(f"{shape} contiguous {dtype} on {logits.device} are needed, not {tuple(tensor.shape)} "
                             f"{tensor.dtype} on {tensor.device}")


# ---------------------------------------------------------------- the kernels
# What each does, and how in PyTorch, stands in tiles.py; a divergence's is the stage's own function.


def add_tile(state: Tensor, logits: Tensor, token_ids: Tensor, start: int, inverse_temperature: float) -> None:
    check(logits, ids=token_ids, table=state, width=4)
    call("add_tile", logits, logits, DTYPES[logits.dtype], logits.stride(0), *logits.shape, token_ids, start,
         inverse_temperature, state)


def to_gradient(logits: Tensor, token_ids: Tensor, start: int, inverse_temperature: float, maximum: Tensor,
                log_total: Tensor, grad_logprobs: Tensor, entropies: Tensor | None,
                grad_entropies: Tensor | None) -> None:
    check(logits, (maximum, log_total, grad_logprobs, entropies, grad_entropies), token_ids)
    call("to_gradient", logits, logits, DTYPES[logits.dtype], logits.stride(0), *logits.shape, token_ids, start,
         inverse_temperature, maximum, log_total, grad_logprobs, entropies, grad_entropies)


def divergence(student: Tensor, teacher: Tensor, kind: int, inverse_temperature: float) -> tuple[Tensor, Tensor]:
    """-> values (n,), and for the gradient (n, 5): each side's maximum and log of its sum, and the centre"""
    check_pair(student, teacher)
    values = student.new_empty(len(student), dtype=torch.float32)
    figures = student.new_empty(len(student), 5, dtype=torch.float32)
    call("divergence", student, student, student.stride(0), teacher, teacher.stride(0), DTYPES[student.dtype],
         *student.shape, kind, inverse_temperature, values, figures)
    return values, figures


def divergence_to_gradient(student: Tensor, teacher: Tensor, kind: int, inverse_temperature: float, figures: Tensor,
                           weights: Tensor) -> None:
    """Overwrite the student's logits by weights (n,) · d divergence / d logits."""
    check_pair(student, teacher)
    check(student, (weights,), table=figures, width=5)
    call("divergence_to_gradient", student, student, student.stride(0), teacher, teacher.stride(0),
         DTYPES[student.dtype], *student.shape, kind, inverse_temperature, figures, weights)


def check_pair(student: Tensor, teacher: Tensor) -> None:
    check(student)
    check(teacher)
    if student.shape != teacher.shape or student.dtype != teacher.dtype or student.device != teacher.device:
        raise ValueError(f"logits of student {tuple(student.shape)} {student.dtype} and teacher {tuple(teacher.shape)} "
                         f"{teacher.dtype} differ")


# ---------------------------------------------------------------- in place of a stage's function

KINDS = ("reverse KL", "forward KL", "Jensen-Shannon divergence")      # as logprobs.cu counts them


@functools.lru_cache(maxsize=64)
def kind_of(function, device: torch.device) -> int | None:
    """Which kernel computes this function of student and teacher logits, or None.  Asked once for each function.

    Each is compared with it on rows from near-equal to far apart, values and gradients at a temperature of 0.7: a
    function that somebody has edited is not what any of them computes, and then it runs itself.
    """
    generator = torch.Generator().manual_seed(0)
    apart = torch.tensor([0.01, 0.3, 3.0, 30.0])[:, None]
    student = 3 * torch.randn(4, 1000, generator=generator)
    teacher = student + apart * torch.randn(4, 1000, generator=generator)
    student, teacher, weights = student.to(device), teacher.to(device), torch.linspace(1, 2, 4, device=device)
    logits = student.clone().requires_grad_()
    with torch.enable_grad():
        expected = function(logits / 0.7, teacher / 0.7)
        slopes, = torch.autograd.grad(expected, logits, weights.to(expected.dtype), materialize_grads=True)
    for kind in range(len(KINDS)):
        values, figures = divergence(student, teacher, kind, 1 / 0.7)
        gradient = student.clone()
        divergence_to_gradient(gradient, teacher, kind, 1 / 0.7, figures, weights)
        if torch.allclose(values, expected, rtol=1e-4, atol=1e-6) and near(gradient, slopes):
            return kind
    say(f"{getattr(function, '__name__', function)} runs as plain PyTorch: no CUDA kernel computes what it computes")
    return None


def near(gradient: Tensor, expected: Tensor) -> bool:
    """Row by row: a near-equal pair has a gradient a thousand times smaller than one far apart."""
    return bool(((gradient - expected).norm(dim=1) <= 1e-3 * expected.norm(dim=1) + 1e-7).all())


def divergence_of_kind(student: Tensor, teacher: Tensor, kind: int, temperature: float, token_ids: Tensor,
                       weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """From logits 2 x (n, V) to divergences and the student's logprobs of token_ids, 2 x (n,).

    With weights (n,), the student's logits are overwritten by weights · d divergence / d logits.
    """
    logits, common = student, torch.promote_types(student.dtype, teacher.dtype)
    student, teacher = student.to(common), teacher.to(common)
    values, figures = divergence(student, teacher, kind, 1 / temperature)
    target = student.gather(1, token_ids[:, None])[:, 0]
    logprobs = (target - figures[:, 0]) / temperature - figures[:, 1]
    if weights is not None:
        divergence_to_gradient(student, teacher, kind, 1 / temperature, figures, weights.contiguous())
        logits.copy_(student)                           # no work where both had one dtype
    return values, logprobs
