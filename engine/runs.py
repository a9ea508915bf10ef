"""A run directory: what a script writes, what the next one reads, and what can happen to it on the way.

    args.json         the run's flags, versions and parents; written first
    metrics.jsonl     a line of figures a step; samples.jsonl: a few rollouts as text
    nonfinite.jsonl   steps that were not taken, with their rollouts
    state/step_000020/    the last two: torch.distributed.checkpoint's files, progress.json, manifest.json
    partial_*.jsonl   while rollouts are written or a model is evaluated: what each rank has done
    model/            what the next stage reads; its README.md is the card
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
    a second run        is refused while the first one lives: rank 0 holds a lock on .lock, which dies with it
    --max-steps raised  the run goes on from its last state, a finished one, too: its end is that of a run which had the
                        larger number from the start; where no state was kept, one sentence says so
"""
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from engine.checkpoints import find_model, save_model
from engine.files import FULL, append_rows, lock, read_jsonl, read_record, stop_on_write_error, write_json
from engine.models import check_pair, eos_ids, load_model, load_tokenizer
from engine.problems import (
    Problem, check_prompt_ids, check_runs_prompts, check_teacher_prompts, contents, encode_prompts,
    longest_completion, prompt_inputs,
)
from engine.ranks import (
    all_sum, balanced_share, barrier, fail, from_rank_0, gather_list, random_generator, rank, say, setup_distributed,
    stop, world_size,
)
from engine.rollouts import Rollouts
from engine.sampler import sample
from engine.sharding import sampling_weights, whole
from engine.signals import Signals
from engine.states import load_state, save_state, states

TOTALS = ("optimiser_steps", "nonfinite_steps", "labels_seen", "tokens_sampled", "seconds")    # what a run has cost


def open_run(args, models=(), inputs: dict | None = None, **problems: list[Problem]) -> "Run":
    """Check all that can be checked before weights load, then begin the run directory args.out or take it up again.

    inputs: what decides the outcome besides flags, models and problems, as Run.inputs has it.
    """
    run = Run(args, models, **problems)
    run.inputs |= inputs or {}
    return run.begin()


class Run:
    """A script at work in its directory: what it was asked for, with what, and what has come of it so far.

    It is no trainer: it knows no loss, no reward, and of the optimiser only that it has a state.  args stay as they
    were given.
    """

    def __init__(self, args, models=(), **problems: list[Problem]):
        """Find the models that the flags `models` name; check that files are whole, that a pair's vocabularies and
        prompts agree, that prompts leave room for completions.  problems: those of a flag, by its name."""
        self.args, self.out, self.problems, self.is_done = args, args.out, problems, False
        self.device, self.signals, self.totals = setup_distributed(), Signals(), Counter()
        self.parents = {flag: find_model(getattr(args, flag), args.allow_failed_certificate) for flag in models}
        self.prompts: dict[str, list[list[int]]] = {}           # of each flag's problems, their token ids
        # What decides the outcome besides flags and models: name -> {what it is of: digest}.  A flag that names files
        # has its own name here: not where they lie is compared where the run is taken up again, but what they hold.
        self.inputs: dict[str, dict] = {}
        self.bar = None
        self.max_new_tokens = getattr(args, "max_new_tokens", None)
        self.start_clock()
        if models:
            self._read_prompts()

    def _read_prompts(self) -> None:
        args, dirs = self.args, [Path(parent["path"]) for parent in self.parents.values()]
        self.tokenizer, other = load_tokenizer(dirs[0]), load_tokenizer(dirs[-1])       # of the first, which samples
        self.vocab_size = check_pair(dirs[0], self.tokenizer, dirs[-1], other)          # ids that all have rows for
        self.eos_ids = eos_ids(dirs[0], self.tokenizer)                                 # ids that end a completion
        self.prompts = {name: encode_prompts(self.tokenizer, some, args) for name, some in self.problems.items()}
        problems, prompts = sum(self.problems.values(), []), sum(self.prompts.values(), [])
        check_prompt_ids(problems, prompts, self.vocab_size)
        self.max_new_tokens = longest_completion(dirs, problems, prompts, self.max_new_tokens)
        if "student" in self.parents:
            check_teacher_prompts(self.tokenizer, other, problems, prompts, args)
            check_runs_prompts(self.tokenizer, args, self.parents)
        self.inputs = {name: contents(some) for name, some in self.problems.items()}
        self.inputs |= prompt_inputs(self.tokenizer, args, prompts, self.eos_ids)
        say(f"first prompt: {self.tokenizer.decode(prompts[0])!r}")

    # ---------------------------------------------------------------- begin

    def begin(self) -> "Run":
        """Begin the directory, or take it up again; `is_done` says that nothing is left to do.

        Refuses a directory of another run, naming what differs, and one that a living run is writing.  From here on
        signals wait for the end of a step.
        """
        record = new_record(self)
        if problem := from_rank_0(lambda: hold(self.out) or prepare_directory(self.args, record)):
            fail(problem)
        self.is_done = from_rank_0((self.out / "DONE").is_file)
        if self.is_done:
            drop_kept(self.out)
            say(f"{self.out} is done already (--overwrite starts anew)")
        else:
            self.signals.catch()
        return self

    def load(self, flag: str, trainable: bool = False):
        """The model that a flag names, with the vocabulary that it has in common with the others."""
        return load_model(
            Path(self.parents[flag]["path"]), self.tokenizer, self.args.dtype, self.device, trainable=trainable,
            activation_checkpointing=trainable and self.args.activation_checkpointing, vocab_size=self.vocab_size)

    def resume(self, model, optimizer) -> tuple[int, dict]:
        """Take up the last state, if there is one.  -> optimiser steps done; what the stage had saved with it."""
        step, progress = load_state(self.out, model, optimizer)
        self.totals = Counter(dict.fromkeys(TOTALS, 0) | progress.get("totals", {}))
        self.bar = tqdm(initial=step, total=self.args.max_steps, unit="step", desc=self.out.name, disable=rank() > 0)
        return step, progress

    # ---------------------------------------------------------------- a step

    def start_clock(self) -> None:
        """The seconds of a step begin.  `log` ends them, before it evaluates, and begins those of the next one."""
        self.began, self.sample_seconds = time.perf_counter(), 0.0

    def sample(self, model, prompts: list[list[int]], *purpose, indices: list[int] | None = None) -> Rollouts:
        """Sample this rank's share of prompts that all ranks hold, with the model's weights gathered for that time.

        -> --samples-per-prompt completions of each, adjacent.  prompt_index says which prompt one answers, by `indices`
        (default: its place in `prompts`).  What is drawn depends on (--seed, *purpose) and that index, on no rank.
        """
        start, args = time.perf_counter(), self.args
        mine, indices = balanced_share([len(prompt) for prompt in prompts]), indices or range(len(prompts))
        with sampling_weights(model, args.dtype, args.sample_on_shards) as whole_model:
            rollouts = sample(
                whole_model, [prompts[place] for place in mine], samples_per_prompt=args.samples_per_prompt,
                max_new_tokens=self.max_new_tokens, temperature=args.temperature, eos_ids=self.eos_ids,
                pad_id=self.tokenizer.pad_token_id, generator=random_generator(args.seed, *purpose),
                indices=[indices[place] for place in mine], rollout_tokens=args.rollout_tokens)
        self.sample_seconds += time.perf_counter() - start
        return rollouts

    def all_finite(self, step: int, grad_norm: Tensor, micro_batches: list[Rollouts], losses: list[Tensor]) -> bool:
        """Whether the gradient and every micro-batch's loss are finite on every rank: else no rank takes the step.

        Then the rollouts behind it are written to nonfinite.jsonl: of the micro-batches whose loss is not finite, or of
        all, where only the gradient is not.  The third such step in a row ends the run.
        """
        bad = ~torch.stack(losses).isfinite()
        bad_norms, bad_losses = all_sum(~whole(grad_norm).isfinite(), bad.sum())       # one wait for a GPU
        if not bad_norms and not bad_losses:
            return True
        self.totals["nonfinite_steps"] += 1
        rows = [row | {"loss": repr(loss.item())} for micro, loss, blamed in zip(micro_batches, losses, bad.tolist())
                if (blamed or not bad_losses) and micro.completion_mask.any()
                for row in as_text(step, self.tokenizer, micro)]
        rows, path = sum(gather_list([rows]), []), self.out / "nonfinite.jsonl"
        if rank() == 0:
            append_rows(path, rows or [{"step": step}])
        say(f"{self.out}: step {step} is not taken, loss or gradient is not finite; its rollouts are in {path.name}")
        if {step - 1, step - 2} <= from_rank_0(lambda: {row["step"] for row in read_jsonl(path)}):
            stop(f"{self.out}: stopped at step {step}: loss or gradient was not finite three steps in a row; "
                 f"{path.name} has their rollouts; a lower --lr or --dtype float32 may help")
        return False

    def log(self, step: int, bar: str = "", evaluate=None, **figures) -> None:
        """Append an object to metrics.jsonl, with the totals so far; the unit stands in each key.  After a step, also
        its seconds and tokens per second, and what `evaluate` returns where --eval-every or the last step asks for it.

        Step 0 is what was measured before any.  bar: what the bar on the terminal says.
        """
        if step:
            seconds = time.perf_counter() - self.began
            speed = figures["num_tokens"] / seconds
            figures |= {"sample_seconds": self.sample_seconds} if self.sample_seconds else {}
            figures |= {"train_seconds": seconds - self.sample_seconds, "tokens_per_second": speed}
            self.totals.update(seconds=seconds)
            self.totals["optimiser_steps"] = step
            every = self.args.eval_every
            if evaluate and (step == self.args.max_steps or every and step % every == 0):
                figures |= evaluate()
            self.bar.set_postfix_str(f"{bar}, {speed:.0f} tokens/s", refresh=False)
            self.bar.update()
        figures = {name: float(whole(value)) if torch.is_tensor(value) else value for name, value in figures.items()}
        if rank() == 0:                                         # what is not finite is null, as JSON has it
            append_rows(self.out / "metrics.jsonl", [{"step": step, **{
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in {**figures, **self.totals}.items()}}])
        if step:
            self.start_clock()

    def log_samples(self, step: int, rollouts: Rollouts, count: int = 2) -> None:
        """Append a few decoded rollouts to samples.jsonl."""
        if rank() == 0:
            append_rows(self.out / "samples.jsonl", as_text(step, self.tokenizer, rollouts.select(slice(0, count))))

    def save_or_leave(self, step: int, model, optimizer, steps_per_batch: int = 1, **progress) -> None:
        """The end of a rollout batch, of `steps_per_batch` optimiser steps: save a state at the first such end at which
        --save-every steps have gone by, and where a signal asked any rank to end; then leave.

        progress: what `resume` will return, as JSON.
        """
        asked, every = self.signals.asked(), self.args.save_every
        due = every and step % every < steps_per_batch
        if step < self.args.max_steps and (asked or due):
            save_state(self.out, step, model, optimizer, {"totals": self.totals, **progress})
            self.signals.leave_if_asked(f"{self.out}: saved after step {step}")         # or while it was saved

    # ---------------------------------------------------------------- rollouts and verdicts as they come

    def keep_rows(self, name: str, indices: list[int], rows: list, together: bool = True, **more) -> None:
        """Write down what a batch of problems came to, rows[i] of problem indices[i]; then leave where a signal asked.

        together: all ranks do so at the same time.
        """
        append_rows(kept_file(self.out, name), [{"indices": indices, "rows": rows, **more}])
        self.signals.leave_if_asked(f"{self.out}: a batch was finished", together)

    def kept_rows(self, name: str) -> tuple[dict, list[dict]]:
        """What an interrupted run has done already.  -> index -> rows, of all ranks' files; this rank's lines.

        The files may be those of more or fewer ranks than there are now.
        """
        own, done = kept_file(self.out, name), {}
        if own.is_file():
            os.truncate(own, own.read_bytes().rfind(b"\n") + 1)  # a line that was torn as its writer died
        for path in sorted(self.out.glob(kept_file(self.out, name, "*").name)):
            for line in read_jsonl(path):
                done |= zip(line["indices"], line["rows"])
        return done, read_jsonl(own)

    # ---------------------------------------------------------------- finish

    def finish(self, model=None, **files) -> None:
        """Write each of `files` as NAME.json, then model/, and last of all DONE: only now is the directory a parent."""
        if rank() == 0:
            for name, content in files.items():
                write_json(self.out / f"{name}.json", content)
        if model is not None:
            save_model(model, self.tokenizer, self.eos_ids, self.out / "model")
        if rank() == 0:
            write_json(self.out / "DONE", self.totals)
        barrier()
        drop_kept(self.out)
        self.signals.release()
        if self.bar is not None:
            self.bar.close()
        if self.totals:
            say(f"{self.out}: {dict(self.totals)}")


# ================================================================ the directory

VOLATILE_FLAGS = {"out", "overwrite", "save_every", "allow_failed_certificate"}         # may differ in a run's command
OWN_FILES = {".lock", "args.json.tmp"}                          # all that a run leaves that was killed as it began


def new_record(run: Run) -> dict:
    """What args.json says of a run."""
    flags = json.loads(json.dumps(vars(run.args), default=str))         # paths as text
    flags |= {"max_new_tokens": run.max_new_tokens} if "max_new_tokens" in flags else {}
    return {"args": flags, "parents": run.parents, "inputs": run.inputs, "world_size": world_size(),
            "command": " ".join(sys.argv), "git_commit": git_commit(), "versions": versions(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def hold(out: Path) -> str | None:
    """Be the only run in `out` for as long as this process lives.  -> what is wrong, or None."""
    try:
        if set(os.listdir(out) if os.path.isdir(out) else ()) - OWN_FILES and read_record(out) is None:
            return f"--out {out} holds files that are not of a run; choose another (--overwrite does not delete them)"
        out.mkdir(parents=True, exist_ok=True)
        (out / ".lock").touch()
    except OSError as error:
        if error.errno in FULL:
            stop_on_write_error(out, error.strerror)
        return f"--out {out} cannot be made or written to ({error.strerror}); choose another directory"
    try:
        lock(out / ".lock")
    except BlockingIOError:
        return f"--out {out}: another run is writing there; wait for it, or choose another directory"
    except OSError as error:
        say(f"{out}: this file system has no locks ({error.strerror}): see to it that no second run writes there")
    return None


def prepare_directory(args, record: dict) -> str | None:
    """Rank 0's part of Run.begin, under the lock.  -> what is wrong, or None."""
    out, old = args.out, read_record(args.out)
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
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
    packages = {name: version(name) for name in ("transformers", "tokenizers", "numpy", "sympy")}
    return {"python": platform.python_version(), "torch": torch.__version__, **packages,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"}


# ================================================================ files on the way


def as_text(step: int, tokenizer, rollouts: Rollouts) -> list[dict]:
    rewards = [None] * len(rollouts) if rollouts.rewards is None else rollouts.rewards.tolist()
    return [{"step": step, "prompt": tokenizer.decode(prompt), "completion": tokenizer.decode(completion),
             "finished": finished, "reward": reward}
            for prompt, completion, finished, reward
            in zip(rollouts.prompts(), rollouts.completions(), rollouts.finished.tolist(), rewards)]


def kept_file(out: Path, name: str, of_rank: int | str | None = None) -> Path:
    return out / f"partial_{name.replace(' ', '_')}_rank{rank() if of_rank is None else of_rank}.jsonl"


def drop_kept(out: Path) -> None:
    """After DONE nothing partial is of use."""
    if rank() == 0:
        for path in out.glob("partial_*.jsonl"):
            path.unlink()
