"""What is done for one kind of machine: free memory, what a CPU can do, captured steps on CUDA.
"""
import copy
import ctypes
import functools
import os
from pathlib import Path

import torch
from torch import Tensor


def free_bytes(device: torch.device) -> int | None:
    """Memory that a process of this rank may still take; None where the system does not say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.exists():
        return None
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


# ================================================================ CPU

@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 (avx512_bf16, amx_bf16; Arm: bf16).  Without, float32 is 3 times faster."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "bf16" in cpuinfo.read_text()


def give_back_freed_memory() -> None:
    """To the system.  glibc keeps what was freed amid what is in use: of a step's gradients or packed weights, most."""
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


# ================================================================ CUDA: a step as a captured graph
#
# On a GPU a step of some thousand small kernels costs more in launching than in computing.  A graph replays the same
# kernels on the same addresses, so shapes come in buckets (rows, and seats of a prompt, padded to powers of two; the
# suffix as wide as it is allocated), and what a step changes is copied into fixed tensors.  Padded rows are rows of
# prompt 0 that have written nothing and see only themselves; nobody reads their logits.

PER_ROW = ("slot", "place", "written")


def step_in_bucket(cache, tokens: Tensor) -> Tensor:
    """`cache.step(tokens)` through a graph, captured when its bucket is first met.  (B,) -> logits (B, V)"""
    key = power_of_two(len(tokens)), power_of_two(cache.grid.shape[1])
    cache.reserve(key[0], cache.width)                  # empties cache.buckets where it has to move the suffix
    if key not in cache.buckets:
        cache.buckets[key] = Bucket(cache, *key)
    return cache.buckets[key](cache, tokens)[:len(tokens)]


def power_of_two(number: int) -> int:
    """The least power of two that is not less."""
    return 1 << (number - 1).bit_length()


class Bucket:
    """Fixed tensors for steps of one shape, and the graph that reads them."""

    def __init__(self, cache, rows: int, seats: int):
        self.fixed = fixed = copy.copy(cache)           # the same prefix and suffix; what a step changes is its own
        fixed.buckets = {}                              # no reference to itself, so that memory is freed at once
        for name in PER_ROW:
            setattr(fixed, name, getattr(cache, name).new_zeros(rows))
        fixed.grid = cache.grid.new_zeros(len(cache.grid), seats)
        fixed.column = cache.slot.new_zeros(1)
        fixed.width = cache.suffix[0][0].shape[2]
        self.tokens = fixed.column.new_zeros(rows)
        self.replay = None

    def __call__(self, cache, tokens: Tensor) -> Tensor:
        self.tokens[:len(tokens)] = tokens
        for name in PER_ROW:
            getattr(self.fixed, name).zero_()[:len(tokens)] = getattr(cache, name)
        self.fixed.grid.zero_()[:, :cache.grid.shape[1]] = cache.grid
        self.fixed.column.fill_(cache.column)
        if self.replay is None:
            self.replay = cache.capture(lambda: self.fixed.step(self.tokens))
        return self.replay()


def capture_graph(function):
    """-> a function that replays what `function` does on the GPU and returns the same tensor each time, filled anew."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):                     # libraries allocate their workspaces before the capture
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
