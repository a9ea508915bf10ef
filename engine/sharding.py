"""One model over many processes: PyTorch's FSDP2 (`fully_shard`), and the little that a sampling trainer adds to it.

Every rank holds 1/N of each parameter, of its gradient and of AdamW's state.  A block's weights are gathered just
before the block runs and dropped after it; its gradient is summed over the ranks as soon as it is known.  Each loss is
divided by the tokens of all ranks beforehand, so the sum is the gradient.

    files ── each rank reads its rows ──► shards ──┬─ training: gathered block by block        (FSDP2's hooks)
                                                   ├─ sampling: gathered once for many steps   sampling_weights
                                                   └─ saving: gathered to rank 0               whole_state

The collectives of FSDP2 happen inside forward and backward, so every rank must call the model equally often: see
`even_micro_batches` and `lockstep`.  With one process nothing is sharded, and the same loops run on a plain model.
"""
import copy
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


def is_sharded(model) -> bool:
    return isinstance(model, FSDPModule)


def shard(model, compute_dtype: torch.dtype, trainable: bool):
    """Spread parameters over all ranks, in place.  Weights are gathered in compute_dtype, gradients summed in float32.

    The transformer blocks are units of their own; embeddings, final norm and head are the root's, which is kept whole
    from the forward pass to the backward pass, where there is one.
    """
    mesh = torch.distributed.device_mesh.init_device_mesh(
        "cuda" if dist.get_backend() == "nccl" else "cpu", (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # Of a frozen bf16 model some weights may stay float32 (a router's), which a unit of one dtype cannot hold.
    odd = {parameter for parameter in model.parameters() if parameter.dtype != model.dtype}
    whole_on_each = {"ignored_params": odd} if odd else {}
    for module in [*blocks(model), model]:
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=module is not model or not trainable,
                    **whole_on_each)
        module.set_gradient_divide_factor(1.0)                  # a sum, not a mean
        module.set_force_sum_reduction_for_comms(True)          # by a plain sum: gloo has no other
    return model


def blocks(model) -> list[nn.Module]:
    """The modules that the architecture names as not to be split: its transformer blocks, not also their parts."""
    names, found, inside = set(model._no_split_modules or ()), [], set()
    for module in model.modules():                              # a module comes before what is inside of it
        if type(module).__name__ in names and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found


# ================================================================ using

@contextmanager
def sampling_weights(model, dtype: str, on_shards: bool = False):
    """The model to sample with, for the time of a `with`.

    One process: the model itself in float32, a bf16 copy of it in bf16 (what is trained stays float32).
    Many: the same model with all weights gathered on every rank, once, until the end; or with `on_shards`, for a model
    that does not fit whole, gathered block by block at every step, the ranks in lockstep.
    """
    with evaluating(model):                                     # else activation checkpointing switches caches off
        if not is_sharded(model):
            twin = model
            if model.dtype != getattr(torch, dtype):
                twin = copy.deepcopy(model).requires_grad_(False)
                # Not the buffers: a rotary frequency that is rounded turns far positions elsewhere.
                for parameter in twin.parameters():
                    parameter.data = parameter.data.to(getattr(torch, dtype))
            yield twin
        else:
            with lockstep(model) if on_shards else gathered(model):
                yield model


@contextmanager
def evaluating(model):
    """Every module in evaluation mode; afterwards each in its own again: of a model that is trained only the
    checkpointed blocks are in training mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def gathered(model):
    """All weights whole on every rank; inside, forward passes need no communication and may differ in number."""
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    trainable = any(parameter.requires_grad for parameter in model.parameters())
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not model or not trainable, recurse=False)
            unit.reshard()


@contextmanager
def lockstep(model):
    """Ranks may call the model unequally often: those that are done keep it company with calls of one token."""
    def announce(module, args) -> None:
        calling(1)

    handle = model.register_forward_pre_hook(announce, prepend=True)        # before FSDP's, which gathers
    try:
        yield
    finally:
        handle.remove()
    while calling(0):
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False)


def calling(mine: int) -> int:
    """How many ranks are about to call the model."""
    count = torch.tensor(mine, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(count)
    return int(count)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(model) -> dict[str, Tensor] | None:
    """All weights on rank 0's CPU (an empty dict on the others); None where nothing is sharded."""
    if not is_sharded(model):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()
    return {name: tensor for name, tensor in state.items() if name not in tied}         # a tied weight is saved once
