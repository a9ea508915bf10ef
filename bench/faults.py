r"""Kill runs at seeded moments, run the same command again, and count how often the outcome is the same to the bit.

    python bench/faults.py [--kills 50] [--seed 0]

Five scripts on the toy world (stage 1, 2, 3, 4 and eval.py, one process each) run once undisturbed.  Then each kill:
SIGKILL at one of three kinds of moment, in turn, and the same command until its end:

    save    at a drawn one of the file operations (open, rename, mkdir, …) with which states, models and parts are saved
    file    at a drawn one of all file operations in the run directory
    clock   after a drawn share of the time that the undisturbed run took

Compared: every file of model/ but the card (which like the page is written after DONE), metrics.jsonl and DONE without
their clock (CLOCK below), samples, rollouts, dense rewards, certificates, completions, scores, failures.html.  Not
compared: args.json (when it began), state/ and .lock.  Exit code 1 if any outcome differs.  No run page is drawn.
"""
import hashlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import FlagParser  # noqa: E402

# Imported once, here; each run is a fork.  This process itself computes nothing, so that forking it is safe.
import numpy.random  # noqa: E402, F401
import safetensors.torch  # noqa: E402, F401
import torch._dynamo  # noqa: E402, F401
import torch.distributed.checkpoint.state_dict  # noqa: E402, F401
import transformers.modeling_utils  # noqa: E402, F401
import transformers.models.auto.tokenization_auto  # noqa: E402, F401
import transformers.models.qwen3.modeling_qwen3  # noqa: E402, F401

import eval as judge  # noqa: E402
import pages.run  # noqa: E402
import prepare  # noqa: E402
import stage1_grpo  # noqa: E402
import stage2_shape  # noqa: E402
import stage3_kl  # noqa: E402
import stage4_distill  # noqa: E402

CLOCK = {"seconds", "sample_seconds", "train_seconds", "tokens_per_second"}      # the only keys that may differ
SAVES = re.compile(r"^(state|model|partial_)")


def cases(toy: Path) -> dict:
    """name -> module, flags.  Kills fall in the middle of a rollout batch, between measurements of C2, …"""
    short = ["--max-new-tokens", "16", "--seed", "3"]
    train = [*short, "--save-every", "2", "--lr", "1e-3", "--max-steps", "7"]
    pair = ["--student", toy / "student", "--teacher", toy / "teacher"]
    problems, other = ["--problems", toy / "few.jsonl"], ["--problems", toy / "other.jsonl"]
    return {
        "stage1": (stage1_grpo, [*train, "--prompts-per-step", "4", *problems, "--model", toy / "teacher",
                                 "--samples-per-prompt", "4", "--steps-per-rollout", "3"]),
        "stage2": (stage2_shape, [*short, *problems, "--teacher", toy / "teacher", "--reference", toy / "student",
                                  "--samples-per-prompt", "2", "--prompts-per-step", "6",
                                  "--certify-problems", toy / "other.jsonl", "--allow-failed-certificate"]),
        "stage3": (stage3_kl, [*train, "--rollouts-per-step", "4", *pair, *other, "--rollouts",
                               toy.parent / "rollouts.jsonl", "--max-kl", "-1", "--eval-every", "3"]),
        "stage4": (stage4_distill, [*train, "--prompts-per-step", "4", *pair, *problems]),
        "eval": (judge, [*short, *problems, "--model", toy / "student", "--samples", "4", "--batch-size", "16"])}


def in_fork(function) -> int:
    """Begin `function` in a process of its own.  -> its pid"""
    if pid := os.fork():
        return pid
    code = 70                                                   # of an exception that nobody foresaw
    try:
        function()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        os._exit(code)


def execute(module, flags, out: Path, log: Path, kill_at_event: int = 0, kill_after: float = 0.0) -> tuple[int, float]:
    """Run a script's main in a fork, its words and its file operations in `log`.  -> wait status, seconds"""
    def child():
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        pages.run.write_run_page = lambda run: None
        events = 0

        def watch(event, details):
            nonlocal events
            if event in FILE_EVENTS and isinstance(details[0], str) and details[0].startswith(f"{out}/"):
                events += 1
                os.write(descriptor, f"\nEVENT {event} {details[0][len(str(out)) + 1:]}\n".encode())
                if events == kill_at_event:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        module.main(module.parse_args([str(flag) for flag in (*flags, "--out", out)]))

    start, pid = time.perf_counter(), in_fork(child)
    if kill_after:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)                            # does nothing if it has ended already
    return os.waitpid(pid, 0)[1], time.perf_counter() - start


FILE_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}


def events_of(log: Path) -> list[str]:
    return [line[6:] for line in log.read_text(errors="replace").splitlines() if line.startswith("EVENT ")]


def outcome(out: Path) -> dict:
    """What a run came to: file -> its content's hash, without the clock."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if not path.is_file() or name in ("args.json", ".lock", "model/README.md") or name.startswith("state/"):
            continue
        content = path.read_bytes()
        if name in ("metrics.jsonl", "DONE"):
            rows = [json.loads(line) for line in (content.splitlines() if name == "metrics.jsonl" else [content])]
            content = json.dumps([{key: row[key] for key in row if key not in CLOCK} for row in rows]).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def prepare_toy(toy: Path) -> None:
    """The toy world, two small files of problems, and rollouts for stage 3."""
    prepare.main(prepare.parse_args(["toy", "--out", str(toy)]))
    for name, source, count in (("few", "train", 24), ("other", "heldout", 16)):
        lines = (toy / f"{source}.jsonl").read_text().splitlines(keepends=True)
        (toy / f"{name}.jsonl").write_text("".join(lines[:count]))
    module, flags = cases(toy)["stage2"]
    module.main(module.parse_args([str(flag) for flag in (*flags, "--out", toy.parent / "rollouts")]))
    (toy.parent / "rollouts.jsonl").write_bytes((toy.parent / "rollouts" / "rollouts.jsonl").read_bytes())


def main(args) -> None:
    random_moment = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if os.waitpid(in_fork(lambda: prepare_toy(folder / "toy")), 0)[1]:
            raise SystemExit("the toy world could not be made")
        every, whole = cases(folder / "toy"), {}
        for name, (module, flags) in every.items():
            out, log = folder / f"{name}_whole", folder / f"{name}_whole.log"
            status, seconds = execute(module, flags, out, log)
            if status:
                raise SystemExit(f"{name} does not run:\n{log.read_text()}")
            whole[name] = outcome(out), events_of(log), seconds
            print(f"{name:7} undisturbed: {len(whole[name][1])} file operations, {seconds:.1f} s", flush=True)

        kills = identical = attempts = 0
        while kills < args.kills:
            name = list(every)[kills % len(every)]
            kind = ("save", "file", "clock")[(kills // len(every) + kills % len(every)) % 3]
            (module, flags), (expected, events, seconds) = every[name], whole[name]
            out, log = folder / f"{name}_{attempts}", folder / f"{name}_{attempts}.log"
            attempts += 1
            places = [n for n, event in enumerate(events, 1) if kind == "file" or SAVES.match(event.split(" ", 1)[1])]
            if kind == "clock":
                moment = random_moment.uniform(0, seconds)
                status, _ = execute(module, flags, out, log, kill_after=moment)
                where = f"after {moment:.2f} s"
            else:
                place = random_moment.choice(places)
                status, _ = execute(module, flags, out, log, kill_at_event=place)
                where = f"at {events[place - 1]}"
            if not os.WIFSIGNALED(status):                      # it was through before the clock said so
                continue
            kills += 1
            parts = sum(path.read_bytes().count(b"\n") for path in out.glob("partial_*"))
            status, _ = execute(module, flags, out, log)
            went_on = re.findall(r"going on after step \d+", log.read_text(errors="replace"))
            went_on += [f"going on after {parts} batches"] if parts else []
            found = outcome(out)
            differing = sorted(file for file in {**expected, **found} if expected.get(file) != found.get(file))
            identical += not differing and status == 0
            print(f"{kills:3} {name:7} {kind:6} killed {where}; {went_on[0] if went_on else 'began anew'}: "
                  + (f"DIFFERENT: {', '.join(differing)} (status {status})\n{log.read_text()[-2000:]}"
                     if differing or status else "identical"), flush=True)
    print(f"{identical} of {kills} outcomes identical")
    raise SystemExit(identical < kills)


def parse_args(argv=None):
    parser = FlagParser(__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse_args())
