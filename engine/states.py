"""The states of a run: everything that it needs to go on after a step, to the same bits, on any number of ranks.

    state/step_000020/    torch.distributed.checkpoint's files, progress.json, manifest.json with the hash of each

A state is whole or not there, and is read only after its hashes were found in its manifest: .metadata, of
torch.distributed.checkpoint, is a pickle.  Nothing that another program has made is ever unpickled.
"""
import json
import shutil
import sys
import warnings
from pathlib import Path

from engine.files import (
    empty_directory, file_digest, put_in_place, read_jsonl, saving, stop_on_write_error, sync, write_json, write_text,
)
from engine.ranks import barrier, from_rank_0, gather_list, rank, say, share

LOGS = ("metrics.jsonl", "samples.jsonl", "nonfinite.jsonl")     # rows of increasing `step`
KEPT_STATES = 2                                                 # the newest, and one for the case that it is damaged


def save_state(out: Path, step: int, model, optimizer, progress: dict) -> None:
    """Write state/step_… : what a run needs to go on after `step`; everything random is a function of (seed, step).

    progress: what else the stage must know, as JSON.
    """
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import get_state_dict

    warnings.filterwarnings("ignore", message="torch.distributed is disabled")      # one process is no mistake
    final = state_directory(out, step)
    temporary = final.with_suffix(".tmp")
    if not optimizer.state:                                     # no step was taken: torch takes one, of zeros
        get_state_dict(model, optimizer)
        for of_parameter in optimizer.state.values():
            of_parameter["step"].zero_()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    with saving(temporary):
        from_rank_0(lambda: str(empty_directory(temporary)))
    try:
        checkpoint.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=temporary)
        with saving(final):
            if rank() == 0:
                write_json(temporary / "progress.json", {"step": step, **progress})
            barrier()
            files = sorted(path.name for path in temporary.iterdir())
            manifest = dict(zip(files, gather_list([file_digest(temporary / name) for name in share(files)])))
            if rank() == 0:
                for path in (out / name for name in LOGS if (out / name).is_file()):
                    sync(path)                                  # a state must not outlive its log
                write_json(temporary / "manifest.json", manifest)
                put_in_place(temporary, final)
                for old in [*states(out)[KEPT_STATES:], *final.parent.glob("*.tmp")]:
                    shutil.rmtree(old)
    except BaseException as error:
        try:
            if isinstance(error, CheckpointException):          # on every rank; what failed, by rank, is in it
                causes = [str(cause).splitlines()[0] for cause, _ in error.failures.values()]
                stop_on_write_error(final, causes[0]) if rank() == 0 else sys.exit(1)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)        # make room
    barrier()


def state_directory(out: Path, step: int) -> Path:
    return out / "state" / f"step_{step:06d}"


def states(out: Path) -> list[Path]:
    """The saved states, the newest first."""
    found = [path for path in (out / "state").glob("step_*") if path.suffix == ""]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def load_state(out: Path, model, optimizer) -> tuple[int, dict]:
    """Take up the newest sound state, if there is one, and cut the logs back to it.  -> optimiser steps done, progress.

    A state of any number of ranks serves any other number.
    """
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    step, progress, found = 0, {}, from_rank_0(lambda: states(out))
    for state in found:
        if damage := what_is_wrong(state):
            then = "there is none before it: the run begins anew" if state == found[-1] else "the one before it is next"
            say(f"{state} is damaged ({damage}), set aside as {state.name}.damaged; {then}")
            if rank() == 0:
                shutil.rmtree(state.with_suffix(".damaged"), ignore_errors=True)
                state.rename(state.with_suffix(".damaged"))
            continue
        progress = json.loads((state / "progress.json").read_text())
        step = progress["step"]
        model_state, optimizer_state = get_state_dict(model, optimizer)
        content = {"model": model_state, "optimizer": optimizer_state}
        checkpoint.load(content, checkpoint_id=state)
        set_state_dict(model, optimizer, model_state_dict=content["model"], optim_state_dict=content["optimizer"])
        say(f"{out}: going on after step {step}")
        break
    if rank() == 0:
        cut_logs(out, step)
    barrier()
    return step, progress


def what_is_wrong(state: Path) -> str | None:
    """Compare a state's files with its manifest, each rank some of them."""
    manifest = from_rank_0(lambda: read_manifest(state))
    names = sorted(manifest)
    if "progress.json" not in names:
        return "manifest.json cannot be read"
    found = gather_list([file_digest(state / name) for name in share(names)])
    for name, facts in zip(names, found):
        if facts != manifest[name]:
            return f"{name} is missing" if facts is None else f"{name} is not as it was written"
    return None


def read_manifest(state: Path) -> dict:
    """The manifest if it is whole, to its last newline; else an empty one."""
    try:
        text = (state / "manifest.json").read_text()
        return dict(json.loads(text)) if text.endswith("}\n") else {}
    except (OSError, ValueError, TypeError):
        return {}


def cut_logs(out: Path, step: int) -> None:
    """Forget what was logged after the state that the run goes on from; a run without one begins its logs anew."""
    for path in (out / name for name in LOGS):
        if path.is_file():
            rows = [row for row in read_jsonl(path) if row["step"] <= step and step > 0]
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
