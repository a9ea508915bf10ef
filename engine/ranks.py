"""One process or many: under torchrun each rank works on its share of the prompts; one process is the plain case.

What goes over all ranks (all_sum, gather_list, from_rank_0) is the value itself where there is only one.  A model that
is spread over the ranks is sharding.py's.
"""
import atexit
import hashlib
import os
import sys
import time

import torch
import torch.distributed as dist


def setup_distributed() -> torch.device:
    """Join torchrun's process group, if this is one of its processes.  -> the device of this rank."""
    check_environment()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", **store_of_this_start())
        atexit.register(leave_process_group)
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def check_environment() -> None:
    """RANK alone, as some schedulers and notebooks leave it, is no torchrun."""
    if "RANK" not in os.environ:
        return
    if missing := [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        fail(f"RANK is set in the environment, but not {', '.join(missing)}: start with torchrun, or `unset RANK` for "
             "one process")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        if not os.environ.get(name, "0").isdecimal():
            fail(f"{name}={os.environ[name]} in the environment is not a number: start with torchrun, or `unset RANK` "
                 "for one process")
    if int(os.environ["RANK"]) >= int(os.environ["WORLD_SIZE"]):        # it would wait for the others for half an hour
        fail(f"RANK={os.environ['RANK']} in the environment is not below WORLD_SIZE={os.environ['WORLD_SIZE']}: start "
             "with torchrun, or `unset RANK` for one process")


def leave_process_group() -> None:
    """As the process ends: gloo's threads may not outlive Python with the last collective's tensor in their hands.

    To drop it they need Python's lock, and a thread that asks for it too late aborts the process.  The threads do not
    end with the group, which DTensor's caches hold.
    """
    dist.destroy_process_group()
    time.sleep(0.2)                                     # releases the lock


def store_of_this_start() -> dict:
    """Where the ranks find each other, if torchrun may start them again; as arguments of init_process_group.

    torchrun keeps one store for all its starts: without a prefix, new ranks find the addresses of the dead ones there,
    and hang (pytorch issue 135712).
    """
    if not int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) or os.environ["TORCHELASTIC_USE_AGENT_STORE"] != "True":
        return {}
    if int(os.environ["GROUP_WORLD_SIZE"]) > 1:                 # each node counts its own restarts
        fail("torchrun --max-restarts over several nodes needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's "
             "environment: otherwise the new ranks find the addresses of the dead ones and hang (pytorch issue 135712)")
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return {"store": dist.PrefixStore(f"start{os.environ['TORCHELASTIC_RESTART_COUNT']}", store),
            "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def share(items: list) -> list:
    """This rank's part of a list that all ranks hold."""
    return items[rank()::world_size()]


def balanced_share(sizes: list[int]) -> list[int]:
    """This rank's part of items of these sizes: the largest first, each to the rank that has least.  -> their places"""
    loads, places = [0] * world_size(), []
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        least = loads.index(min(loads))
        loads[least] += sizes[place]
        places += [place] if least == rank() else []
    return sorted(places)


def all_sum(*values) -> list[float]:
    """The sum over all ranks of each number, which may be on the device still: one wait for all of them."""
    device = next((value.device for value in values if torch.is_tensor(value)), "cpu")
    total = torch.stack([torch.as_tensor(value, device=device).double() for value in values])
    if dist.is_initialized():
        total = total.cuda() if dist.get_backend() == "nccl" else total
        dist.all_reduce(total)
    return total.tolist()


def gather_list(items: list) -> list:
    """The items of all ranks, in the order of the list that `share` cut up; every rank gets them."""
    if not dist.is_initialized():
        return items
    parts: list = [None] * world_size()
    dist.all_gather_object(parts, items)
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


def from_rank_0(function):
    """What the function returns on rank 0, on every rank: work on files that one should do.  If it raises, all end."""
    return together(lambda: function() if rank() == 0 else None, of_rank_0=True)


def together(function, of_rank_0: bool = False):
    """What the function returns on this rank, or that of rank 0; where it raises on any rank, all ranks end."""
    answer, error = None, None
    try:
        answer = function()
    except (Exception, SystemExit) as raised:
        error = raised
    answers = [(answer if of_rank_0 else None, error is not None)] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(answers, answers[0])
    if error is not None:
        raise error
    if any(failed for _, failed in answers):
        raise SystemExit(1)                             # the rank that failed says why
    return answers[0][0] if of_rank_0 else answer


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def say(message: str) -> None:
    """Print, once and not once for each rank."""
    if rank() == 0:
        print(message, flush=True)


def fail(sentence: str) -> None:
    """End on bad input: one sentence on stderr, exit code 2."""
    if rank():
        time.sleep(2)                                   # where all fail, rank 0 says it and torchrun ends this one
    print(f"error{f' on rank {rank()}' if rank() else ''}: {sentence}", file=sys.stderr, flush=True)
    raise SystemExit(2)


def stop(sentence: str) -> None:
    """End a run that cannot or need not go on, on all ranks: the sentence once, on stderr, and exit code 1."""
    raise SystemExit(sentence if rank() == 0 else 1)


def first_line(error: BaseException) -> str:
    """An error of a library for a sentence of ours: its type and the beginning of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]]).rstrip(".:")


def random_generator(*key, device="cpu") -> torch.Generator:
    """A random stream that is a function of its key, such as (seed, "rollouts", step).

    Nothing random has a state that outlives a step: this is why a resumed run is the same to the bit.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "little"))
