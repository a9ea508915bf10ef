"""A device that isn't there: tensors that live on the CPU but say `standin:0`, on PyTorch's PrivateUse1 backend.

What a GPU would refuse or be slowed by shows on it without one: an operation on tensors of both devices raises
MixedDevices, and each wait of the host for the device (a number or a shape that hangs on its results, a copy back) is
appended to `waits`, as (file, line, operation) of the project's innermost call.
"""
import traceback
from pathlib import Path

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

ROOT = str(Path(__file__).parent.parent)
aten = torch.ops.aten
waits: list[tuple[str, str, str]] = []

# Operations whose result, or its shape, the host has to have.  In inference mode composite ones arrive whole.
WAITING = {"item", "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive",
           "equal", "allclose", "bincount"}
BY_MASK = {"index", "index_put", "index_put_", "_index_put_impl_"}


class MixedDevices(Exception):
    pass


class StandIn(torch.Tensor):
    """A tensor of the device; `raw` is what it stands for, on the CPU."""

    @staticmethod
    def __new__(cls, raw):
        tensor = torch.Tensor._make_wrapper_subclass(cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(),
                                                     dtype=raw.dtype, device="standin:0")
        tensor.raw = raw
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return call(function, *args, **(kwargs or {}))

    def tolist(self):
        return self.cpu().tolist()

    def untyped_storage(self):                          # by its address transformers knows tied weights
        return self.raw.untyped_storage()


def call(function, *args, **kwargs):
    leaves = tree_leaves((args, kwargs))
    inside = {id(x.raw): x for x in leaves if isinstance(x, StandIn)}
    devices = [x.type for x in leaves if isinstance(x, torch.device)]
    name = function.overloadpacket.__name__
    if inside and name not in ("copy_", "_to_copy", "to"):
        if any(isinstance(x, torch.Tensor) and not isinstance(x, StandIn) and x.dim() for x in leaves):
            raise MixedDevices(f"{function}: tensors on both devices")
    if inside and must_wait(function, name, args, devices):
        calls = [frame for frame in traceback.extract_stack() if frame.filename.startswith(ROOT) and ".venv" not in frame.filename
                 and not frame.filename.startswith(f"{ROOT}/tests")]
        if calls:
            waits.append((Path(calls[-1].filename).name, calls[-1].line, name))
    result = function(*tree_map(bare, args), **tree_map(bare, kwargs))
    for tensor in inside.values():
        assert tensor.raw.shape == tensor.shape, f"{function} resized a tensor, which this device cannot do"
    if devices and "standin" not in devices or not devices and not inside:
        return result
    return tree_map(lambda x: (inside[id(x)] if id(x) in inside else StandIn(x)) if isinstance(x, torch.Tensor) else x, result)


def bare(x):
    if isinstance(x, StandIn):
        return x.raw
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == "standin" else x


def must_wait(function, name: str, args: tuple, devices: list[str]) -> bool:
    back = "cpu" in devices or name == "copy_" and not isinstance(args[0], StandIn)
    by_mask = name in BY_MASK and any(index is not None and index.dtype == torch.bool for index in args[1])
    by_counts = name == "repeat_interleave" and function._schema.arguments[-2].type.isSubtypeOf(torch._C.TensorType.get())
    return back or by_mask or by_counts or name in WAITING


class Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


def install() -> torch.device:
    """Once a process.  -> the device"""
    if torch._C._get_privateuse1_backend_name() != "standin":
        backend_registration._setup_privateuseone_for_python_backend("standin", backend_module=Backend())
        library = torch.library.Library("_", "IMPL")
        library.fallback(call, "PrivateUse1")
        kernels = torch.library.Library("aten", "IMPL")             # these come before the subclass is asked
        for overload in (aten.empty_strided.default, aten.copy_.default, *(getattr(aten.arange, each) for each in aten.arange.overloads()
                                                                           if "out" not in each)):
            kernels.impl(overload, lambda *args, overload=overload, **kwargs: call(overload, *args, **kwargs), "PrivateUse1")
        install.libraries = library, kernels                        # they unregister when they are collected
    return torch.device("standin", 0)
