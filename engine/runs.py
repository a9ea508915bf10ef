"""A run directory: what a script writes, what the next one reads, and what can happen to it on the way.

    args.json         the run's flags, versions and parents; written first
    metrics.jsonl     a line of figures a step; samples.jsonl: a few rollouts as text
    nonfinite.jsonl   steps that were not taken, with their rollouts
    state/step_000020/    the last two: torch.distributed.checkpoint's files, progress.json, manifest.json
    partial_*.jsonl   while rollouts are written or a model is evaluated: what each rank has done
    model/            what the next stage reads; its README.md is pages/card.py's, as is scores.jsonl beside it
    DONE              what the run cost; written last, only with it is the directory a parent

What can happen, and what then (bench/faults.py kills runs at any moment and compares):

    killed, power off   the same command goes on from the last state, to the same bits; logs are cut back to that state.
                        States are saved between rollout batches, so they hold no rollouts
    a torn state        its manifest does not match; it is named and set aside, and the one before is taken; where none
                        is sound the run says so and begins anew
    the disk is full    one sentence, exit code 1; the last good state is as it was
    SIGTERM, SIGINT     the step is finished (in stage 1 those of its rollout batch) and a state saved; exit code 143 or
                        130.  torchrun gives its ranks 30 s for that, then kills them: the last state is as it was
    a rank dies         the others' next collective fails; torchrun stops them, --max-restarts starts all again
    loss or gradient    NaN or infinite on any rank: no rank takes the step; three in a row end the run
    --max-steps raised  the run goes on from its last state, a finished one, too: its end is that of a run which had the
                        larger number from the start; where no state was kept, one sentence says so
    a second run        is refused while the first one lives: rank 0 holds a lock on .lock, which dies with it
"""
import fcntl
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from engine.files import (
    FULL, empty_directory, file_digest, put_in_place, read_jsonl, read_record, saving, stop_on_write_error, sync,
    write_json, write_text,
)
from engine.ranks import all_sum, barrier, fail, from_rank_0, gather_list, rank, say, share, stop, world_size
from engine.rollouts import Rollouts

# ================================================================ begin and finish

VOLATILE_FLAGS = {"out", "overwrite", "save_every", "allow_failed_certificate"}         # may differ in a run's command
OWN_FILES = {".lock", "args.json.tmp"}                          # all that a run leaves that was killed as it began
_lock = None                                                    # the open .lock of this process's run


def open_run(args, parents: dict | None = None, inputs: dict | None = None) -> bool:
    """Begin the run directory args.out, or take it up again.  -> False if it is done already.

    parents: flag -> what `find_model` returned.  inputs: name -> {what it is of: digest}, of all else that decides
    prompts, rewards or weights; a flag that names files has its own name there.  Refuses a directory of another run,
    naming what differs, and one that a living run is writing.  From here on signals wait for the end of a step.
    """
    if problem := from_rank_0(lambda: lock(args.out) or prepare_directory(args, parents or {}, inputs or {})):
        fail(problem)
    if from_rank_0((args.out / "DONE").is_file):
        drop_kept(args.out)
        say(f"{args.out} is done already (--overwrite starts anew)")
        return False
    catch_signals()
    return True


def lock(out: Path) -> str | None:
    """Be the only run in `out` for as long as this process lives.  -> what is wrong, or None."""
    global _lock
    try:
        if set(os.listdir(out) if os.path.isdir(out) else ()) - OWN_FILES and read_record(out) is None:
            return f"--out {out} holds files that are not of a run; choose another (--overwrite does not delete them)"
        if _lock is not None:
            _lock.close()                                       # of an earlier run in this process
        out.mkdir(parents=True, exist_ok=True)
        _lock = open(out / ".lock", "w")
    except OSError as error:
        if error.errno in FULL:
            stop_on_write_error(out, error.strerror)
        return f"--out {out} cannot be made or written to ({error.strerror}); choose another directory"
    try:
        fcntl.flock(_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)       # the kernel lets go of it, however the process ends
    except BlockingIOError:
        return f"--out {out}: another run is writing there; wait for it, or choose another directory"
    except OSError as error:
        say(f"{out}: this file system has no locks ({error.strerror}): see to it that no second run writes there")
    return None


def prepare_directory(args, parents: dict, inputs: dict) -> str | None:
    """Rank 0's part of open_run.  -> what is wrong, or None."""
    out, flags = args.out, json.loads(json.dumps(vars(args), default=str))        # paths as text
    record = {"args": flags, "parents": parents, "inputs": inputs, "world_size": world_size(),
              "command": " ".join(sys.argv), "git_commit": git_commit(), "versions": versions(),
              "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    old, restarted = read_record(out), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    if old and (restarted or not args.overwrite):               # torchrun's restart takes up what it began itself
        return take_up(out, old, record)
    given = [value if isinstance(value, list) else [value] for flag, value in vars(args).items() if flag != "out"]
    for path in (path for paths in given for path in paths if isinstance(path, Path)):
        if path.exists() and out.resolve() in [path.resolve(), *path.resolve().parents]:
            return f"--out {out} holds {path}, which this run reads; choose another directory"
    for path in sorted(out.iterdir(), key=lambda path: path.name != "DONE"):       # no longer a parent, first of all
        if path.name not in (".lock", "args.json"):             # as long as args.json stands, this is a run's directory
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    write_json(out / "args.json", record)
    return None


def take_up(out: Path, old: dict, record: dict) -> str | None:
    """Compare a directory's record with that of the command that goes on with it.  -> what is wrong, or None."""
    before, now = (each["args"].get("max_steps") for each in (old, record))
    longer = None not in (before, now) and before < now
    if differing := differences(old | {"args": old["args"] | {"max_steps": now}} if longer else old, record):
        return (f"--out {out} is of a run with other flags or inputs ({differing}); choose another directory or "
                "--overwrite")
    for name in ("world_size", "versions", "git_commit"):
        if name in old and old[name] != record[name]:
            say(f"{out}: begun with {name} {old[name]}, goes on with {record[name]}")
    if longer:
        if (out / "DONE").is_file() and not states(out):
            return (f"--out {out} has ended after --max-steps {before} and has no state to go on from (--save-every "
                    "keeps them); choose another directory, whose run may begin from the model/ here, or --overwrite")
        (out / "DONE").unlink(missing_ok=True)                  # no longer a parent, first of all
        write_json(out / "args.json", old | {"args": old["args"] | {"max_steps": now}})
        say(f"{out}: --max-steps {now} in place of {before}; the run goes on from its last state")
    return None


def differences(old: dict, new: dict) -> str:
    """The flags, parents and inputs in which two args.json differ, for a message.

    A flag whose files are among parents or inputs is what they hold, wherever they lie.
    """
    old_inputs, new_inputs = old.get("inputs", {}), new["inputs"]
    pairs = [("--" + key.replace("_", "-"), old.get("args", {}).get(key), new["args"].get(key))
             for key in new["args"] if key not in VOLATILE_FLAGS and key not in {**new["parents"], **new_inputs}]
    pairs += [(f"weights of the {name}", old["parents"].get(name, {}).get("sha256"), parent["sha256"])
              for name, parent in new["parents"].items()]
    pairs += [(f"{name.replace('_', ' ')} ({is_of or was_of})", was, now) for name in {**old_inputs, **new_inputs}
              for (was_of, was), (is_of, now) in zip_longest(old_inputs.get(name, {}).items(),
                                                             new_inputs.get(name, {}).items(), fillvalue=(None, None))]
    return "; ".join(f"{name}: {was} there, {now} now" for name, was, now in pairs if was != now)


def git_commit() -> str | None:
    """Of the code, with -dirty behind it where a file was changed since."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    except OSError:                                             # no git here
        return None
    return answer.stdout.strip() or None


def short_commit(commit: str) -> str:
    return re.sub("([0-9a-f]{10})[0-9a-f]*", r"\1", commit)


def versions() -> dict:
    """What the results depend on, and the device."""
    packages = {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy", "sympy")}
    return {"python": platform.python_version(), **packages,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"}


def finish_run(out: Path, **totals) -> None:
    """Write DONE, last: only now is the directory a parent."""
    if rank() == 0:
        write_json(out / "DONE", totals)
    barrier()
    drop_kept(out)
    release_signals()
    if totals:
        say(f"{out}: {totals}")


# ================================================================ logs

LOGS = ("metrics.jsonl", "samples.jsonl", "nonfinite.jsonl")     # rows of increasing `step`


def append_rows(path: Path, rows: list[dict]) -> None:
    with saving(path), open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def log_metrics(out: Path, step: int, **figures) -> None:
    """Append one object to metrics.jsonl; the unit stands in each key.  What is not finite is null, as JSON has it."""
    if rank() == 0:
        figures = {name: None if isinstance(value, float) and not math.isfinite(value) else value
                   for name, value in figures.items()}
        append_rows(out / "metrics.jsonl", [{"step": step, **figures}])


def log_samples(out: Path, step: int, tokenizer, rollouts: Rollouts, count: int = 2) -> None:
    """Append a few decoded rollouts to samples.jsonl."""
    if rank() == 0:
        append_rows(out / "samples.jsonl", as_text(step, tokenizer, rollouts.select(slice(0, count))))


def as_text(step: int, tokenizer, rollouts: Rollouts) -> list[dict]:
    rewards = [None] * len(rollouts) if rollouts.rewards is None else rollouts.rewards.tolist()
    return [{"step": step, "prompt": tokenizer.decode(prompt), "completion": tokenizer.decode(completion),
             "finished": finished, "reward": reward}
            for prompt, completion, finished, reward
            in zip(rollouts.prompts(), rollouts.completions(), rollouts.finished.tolist(), rewards)]


def cut_logs(out: Path, step: int) -> None:
    """Forget what was logged after the state that the run goes on from; a run without one begins its logs anew."""
    for path in (out / name for name in LOGS):
        if path.is_file():
            rows = [row for row in read_jsonl(path) if row["step"] <= step and step > 0]
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


# ================================================================ steps that cannot be taken


def all_finite(grad_norm: float, losses: list[Tensor]) -> bool:
    """Whether the gradient and every micro-batch's loss are finite on every rank: else no rank takes the step."""
    return all_sum(not math.isfinite(grad_norm), (~torch.stack(losses).isfinite()).sum()) == [0, 0]


def log_nonfinite(out: Path, step: int, tokenizer, micro_batches: list[Rollouts], losses: list[Tensor]) -> None:
    """Write the rollouts behind a step that was not taken to nonfinite.jsonl; end the run at the third in a row.

    They are those of the micro-batches whose loss is not finite; of all, where only the gradient is not.
    """
    losses = torch.stack(losses).tolist()
    blamed = [not math.isfinite(loss) for loss in losses]
    everything = all_sum(sum(blamed))[0] == 0
    rows = [row | {"loss": repr(loss)} for micro, loss, bad in zip(micro_batches, losses, blamed) if bad or everything
            for row in as_text(step, tokenizer, micro) if micro.completion_mask.any()]
    rows = sum(gather_list([rows]), [])
    if rank() == 0:
        append_rows(out / "nonfinite.jsonl", rows or [{"step": step}])
    say(f"{out}: step {step} is not taken, loss or gradient is not finite; its rollouts are in nonfinite.jsonl")
    steps = from_rank_0(lambda: {row["step"] for row in read_jsonl(out / "nonfinite.jsonl")})
    if {step - 1, step - 2} <= steps:
        sentence = (f"{out}: stopped at step {step}: loss or gradient was not finite three steps in a row; "
                    "nonfinite.jsonl has their rollouts; a lower --lr or --dtype float32 may help")
        stop(sentence)


# ================================================================ states
# A state is the run's own: .metadata, of torch.distributed.checkpoint, is a pickle, and is read only after its hash was
# found in the manifest that this run wrote.  Nothing of another's making is ever unpickled.

TOTALS = ("optimiser_steps", "nonfinite_steps", "labels_seen", "tokens_sampled", "seconds")    # what a run has cost
KEPT_STATES = 2                                                 # the newest, and one for the case that it is damaged


def save_or_leave(args, step: int, model, optimizer, progress: dict, steps_per_batch: int = 1) -> None:
    """The end of a rollout batch, of `steps_per_batch` optimiser steps: save a state at the first such end at which
    --save-every steps have gone by, and where a signal asked any rank to end; then leave."""
    asked = asked_of_any_rank()
    due = args.save_every and step % args.save_every < steps_per_batch
    if step < args.max_steps and (asked or due):
        save_state(args.out, step, model, optimizer, progress)
        if asked := asked_of_any_rank():                        # or while it was saved
            leave(asked, f"{args.out}: saved after step {step}")


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
    step, progress, found = 0, {"totals": dict.fromkeys(TOTALS, 0)}, from_rank_0(lambda: states(out))
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


# ================================================================ signals

_asked = 0                                               # the signal that asked this process to end, 0 for none
_handlers: dict = {}                                     # signal -> what handled it before the run


def catch_signals() -> None:
    """Let SIGTERM and SIGINT wait for the end of the step."""
    global _asked
    _asked = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) not in (note_signal, signal.SIG_IGN):       # as nohup and `… &` in a script have it
            _handlers[number] = signal.signal(number, note_signal)


def note_signal(number, frame) -> None:
    global _asked
    _asked = number
    if world_size() == 1:                                # a second one ends the run at once; torchrun may pass on what
        signal.signal(number, _handlers[number])         # the rank has had from the terminal already


def release_signals() -> None:
    while _handlers:
        signal.signal(*_handlers.popitem())


def asked_of_any_rank() -> int:
    """The signal that asked any rank to end; all ranks get the same answer."""
    terminate, interrupt = all_sum(_asked == signal.SIGTERM, _asked == signal.SIGINT)
    return signal.SIGTERM if terminate else signal.SIGINT if interrupt else 0


def leave_if_asked(out: Path, done: str, together: bool = True) -> None:
    """Leave if a signal asked any rank (not together: this one).  done: what has just ended, for the message."""
    if asked := asked_of_any_rank() if together else _asked:
        leave(asked, f"{out}: {done}")


def leave(number: int, message: str) -> None:
    say(f"{message}, then stopped by {signal.Signals(number).name}; the same command goes on from there "
        "(without --overwrite)")
    raise SystemExit(128 + number)


# ================================================================ rollouts and verdicts as they come


def keep_rows(out: Path, name: str, places: list[int], rows: list, **more) -> None:
    """Write down what a batch of problems came to, `rows[i]` of the problem at `places[i]`."""
    append_rows(kept_file(out, name), [{"places": places, "rows": rows, **more}])


def kept_rows(out: Path, name: str) -> tuple[dict, list[dict]]:
    """What an interrupted run has done already.  -> place -> rows, of all ranks' files; this rank's lines.

    The files may be those of more or fewer ranks than there are now.
    """
    own = kept_file(out, name)
    if own.is_file():
        os.truncate(own, own.read_bytes().rfind(b"\n") + 1)      # a line that was torn as its writer died
    done = {}
    for path in sorted(out.glob(kept_file(out, name, "*").name)):
        for line in read_jsonl(path):
            done |= zip(line["places"], line["rows"])
    return done, read_jsonl(own)


def kept_file(out: Path, name: str, of_rank: int | str | None = None) -> Path:
    return out / f"partial_{name.replace(' ', '_')}_rank{rank() if of_rank is None else of_rank}.jsonl"


def drop_kept(out: Path) -> None:
    """After DONE nothing partial is of use."""
    if rank() == 0:
        for path in out.glob("partial_*.jsonl"):
            path.unlink()
