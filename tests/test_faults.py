"""Whatever happens to a run, the same command ends it as if nothing had: kills, torn files, full disks, signals, NaNs."""
import fcntl
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import metrics, on_log, run
from forks import Fork, begin_ranks

import common
from engine import checkpoints, files, ranks, runs, states
from engine.signals import Signals
import eval as judge
import stage1_grpo
import stage2_shape
import stage3_kl
import stage4_distill

ROOT = Path(__file__).parent.parent
CLOCK = {"seconds", "sample_seconds", "train_seconds", "tokens_per_second"}
TRAINERS = ["stage1_grpo", "stage3_kl", "stage4_distill"]


@pytest.fixture(scope="module")
def flags_of(toy, tmp_path_factory):
    """Six steps of each trainer; stage 1 samples for three steps at a time, so that a kill may fall between."""
    rollouts = tmp_path_factory.mktemp("shape") / "shape"
    shape = ["--teacher", toy / "teacher", "--reference", toy / "teacher", "--problems", toy / "few_heldout.jsonl", "--max-new-tokens", 16,
             "--certify-problems", toy / "few_train.jsonl", "--num-certify-problems", 8, "--samples-per-prompt", 2, "--prompts-per-step", 5, "--allow-failed-certificate"]
    run(stage2_shape, *shape, "--out", rollouts)
    shared = ["--max-new-tokens", 16, "--max-steps", 6, "--lr", 1e-3, "--save-every", 2, "--micro-batch-size", 4]
    pair = ["--student", toy / "student", "--teacher", toy / "teacher"]
    return {
        "stage1_grpo": [*shared, "--prompts-per-step", 4, "--model", toy / "student", "--problems", toy / "few_train.jsonl", "--samples-per-prompt", 4,
                        "--steps-per-rollout", 3],
        "stage2_shape": shape,
        "stage3_kl": [*shared, "--rollouts-per-step", 4, *pair, "--rollouts", rollouts / "rollouts.jsonl", "--problems", toy / "few_heldout.jsonl", "--max-kl", -1,
                      "--eval-every", 4, "--allow-failed-certificate"],
        "stage4_distill": [*shared, "--prompts-per-step", 4, *pair, "--problems", toy / "few_train.jsonl"],
        "eval": ["--model", toy / "student", "--problems", toy / "few_heldout.jsonl", "--samples", 4, "--batch-size", 16, "--max-new-tokens", 16]}


@pytest.fixture(scope="module")
def undisturbed(flags_of, tmp_path_factory):
    """name of a script -> the run directory that it leaves when nothing happens."""
    done = {}

    def make(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp(name) / "run"
            run(sys.modules[name], *flags_of[name], "--out", done[name])
        return done[name]
    return make


def assert_alike(one: Path, other: Path) -> None:
    """Every file but args.json, the page and the card, and in metrics.jsonl and DONE all but the clock."""
    def content(out):
        files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        files = {name: text for name, text in files.items() if not name.startswith(("state/", "args.json", "report.html", ".lock", "model/README"))}
        for name in {"metrics.jsonl", "DONE"} & set(files):
            rows = [json.loads(line) for line in (files[name].splitlines() if name == "metrics.jsonl" else [files[name]])]
            files[name] = [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]
        return files
    assert content(one) == content(other)


def at_step(patch, step: int, action) -> None:
    """Do something where that step is logged."""
    on_log(patch, lambda number, figures: action() if number == step else None)


@pytest.fixture
def patch():
    """A monkeypatch of its own: to undo it leaves conftest's alone."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


class Crash(Exception):
    pass


def crash():
    raise Crash


# ---------------------------------------------------------------- kills


def test_killed_runs_end_as_if_nothing_had_happened():
    """One SIGKILL for each script, in a process of its own; the benchmark does it fifty times."""
    fork = Fork(ROOT / "bench" / "faults.py", "--kills", 5, "--seed", 1)
    assert fork.wait() == 0 and "5 of 5 outcomes identical" in fork.said(), fork.said()
    assert sum("going on after" in line for line in fork.said().splitlines()) >= 1


def test_a_bridge_killed_between_its_last_state_and_done_does_not_train_on(flags_of, tmp_path, patch):
    """C2 holds at a step that is saved too: the state must know."""
    flags = [*flags_of["stage3_kl"], "--max-kl", 50, "--eval-every", 2]
    measure, values = stage3_kl.measure_c2, iter([100.0, 1.0])
    patch.setattr(stage3_kl, "measure_c2", lambda *args: measure(*args) | {"c2_reverse_kl_nats": next(values)})
    patch.setattr(runs, "save_model", lambda *args: crash())
    with pytest.raises(Crash):
        run(stage3_kl, *flags, "--out", tmp_path / "run")
    patch.undo()
    patch.setattr(stage3_kl, "measure_c2", lambda *args: crash())
    run(stage3_kl, *flags, "--out", tmp_path / "run")
    certificate = json.loads((tmp_path / "run" / "certificate.json").read_text())
    assert certificate["passed"] and certificate["optimiser_steps"] == 2 and len(metrics(tmp_path / "run")) == 3


def test_giving_up_remembers_what_was_before_the_interruption(toy, tmp_path, patch):
    flags = ["--model", toy / "teacher", "--problems", toy / "few_train.jsonl", "--out", tmp_path / "run", "--max-steps", 9, "--save-every", 1,
             "--steps-per-rollout", 1, "--max-new-tokens", 2, "--samples-per-prompt", 4, "--prompts-per-step", 4]
    at_step(patch, 4, crash)
    with pytest.raises(Crash):
        run(stage1_grpo, *flags)
    patch.undo()
    with pytest.raises(SystemExit, match="stopped at step 5"):
        run(stage1_grpo, *flags)


# ---------------------------------------------------------------- states


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": lambda state: flip(state / "__0_0.distcp"),
    "a cut file": lambda state: os.truncate(state / "__0_0.distcp", 1000),
    "a missing file": lambda state: (state / "progress.json").unlink(),
    "a flipped bit in the pickle": lambda state: flip(state / ".metadata"),
    "a cut manifest": lambda state: os.truncate(path := state / "manifest.json", path.stat().st_size - 1),
    "an empty manifest": lambda state: (state / "manifest.json").write_text("{}")}


@pytest.fixture(scope="module")
def crashed_at_step_5(flags_of, tmp_path_factory):
    out = tmp_path_factory.mktemp("crashed") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        at_step(patch, 5, crash)
        run(stage4_distill, *flags_of["stage4_distill"], "--out", out)
    return out


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_named_and_the_one_before_is_taken(flags_of, undisturbed, crashed_at_step_5, tmp_path, capsys, damage):
    shutil.copytree(crashed_at_step_5, tmp_path / "run")
    assert [state.name for state in states.states(tmp_path / "run")] == ["step_000004", "step_000002"]
    DAMAGES[damage](tmp_path / "run" / "state" / "step_000004")
    words = take_up(flags_of, tmp_path / "run", capsys)
    assert "step_000004 is damaged" in words and "going on after step 2" in words
    assert_alike(tmp_path / "run", undisturbed("stage4_distill"))


def take_up(flags_of, out, capsys) -> str:
    """Run stage 4 again, in a directory that was copied; -> what it says."""
    run(stage4_distill, *flags_of["stage4_distill"], "--out", out)
    return capsys.readouterr().out


def test_with_every_state_damaged_the_run_begins_anew(flags_of, undisturbed, crashed_at_step_5, tmp_path, capsys):
    shutil.copytree(crashed_at_step_5, tmp_path / "run")
    for state in states.states(tmp_path / "run"):
        flip(state / "__0_0.distcp")
    words = take_up(flags_of, tmp_path / "run", capsys)
    assert "step_000004 is damaged" in words and "going on" not in words
    assert "step_000002 is damaged" in words and "there is none before it: the run begins anew" in words
    assert_alike(tmp_path / "run", undisturbed("stage4_distill"))


def test_the_last_two_states_are_kept(flags_of, tmp_path):
    run(stage4_distill, *flags_of["stage4_distill"], "--save-every", 1, "--out", tmp_path / "run")
    assert [path.name for path in sorted((tmp_path / "run" / "state").iterdir())] == ["step_000004", "step_000005"]


@pytest.mark.parametrize("save_every, steps_per_rollout, expected", [(2, 1, [2, 4]), (1, 3, [3]), (3, 2, [4]), (5, 2, []), (4, 2, [4]), (0, 1, [])])
def test_states_lie_at_the_first_end_of_a_batch_at_which_so_many_steps_have_gone_by(patch, tmp_path, save_every, steps_per_rollout, expected):
    saved = []
    patch.setattr(runs, "save_state", lambda out, step, *rest: saved.append(step))
    here = runs.Run(SimpleNamespace(save_every=save_every, max_steps=6, out=tmp_path))
    for step in range(steps_per_rollout, 7, steps_per_rollout):
        here.save_or_leave(step, None, None, steps_per_rollout)
    assert saved == expected


def test_a_pickle_in_a_state_is_not_opened_before_its_hash_is_checked(flags_of, crashed_at_step_5, tmp_path, capsys):
    shutil.copytree(crashed_at_step_5, tmp_path / "run")
    for state in states.states(tmp_path / "run"):                 # builtins.open("…/opened", "w") when unpickled
        (state / ".metadata").write_bytes(f"cbuiltins\nopen\n(V{tmp_path / 'opened'}\nVw\ntR.".encode())
    take_up(flags_of, tmp_path / "run", capsys)
    assert not (tmp_path / "opened").exists()


# ---------------------------------------------------------------- full disks


@pytest.fixture
def file_limit():
    """Files may not grow beyond so many bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("step, what, left", [(3, "step_000004", ["step_000002"]), (6, "model", ["step_000002", "step_000004"])])
def test_disk_full_while_a_state_or_the_model_is_saved(flags_of, undisturbed, tmp_path, patch, capsys, file_limit, step, what, left):
    at_step(patch, step, lambda: file_limit(200_000))
    with pytest.raises(SystemExit) as stop:
        run(stage4_distill, *flags_of["stage4_distill"], "--out", tmp_path / "run")
    file_limit(resource.RLIM_INFINITY)
    words = capsys.readouterr().err.split("error: ", 1)[1].split("\n")[0]
    assert stop.value.code == 1 and f"{what} could not be written" in words and "run the same command again" in words
    assert [path.name for path in sorted((tmp_path / "run" / "state").iterdir())] == left
    assert all(states.what_is_wrong(state) is None for state in states.states(tmp_path / "run"))
    patch.undo()
    run(stage4_distill, *flags_of["stage4_distill"], "--out", tmp_path / "run")
    assert_alike(tmp_path / "run", undisturbed("stage4_distill"))


def test_disk_full_under_the_tokenizer(tmp_path, capsys):
    """Its library raises a bare Exception; one that tells of something else is not taken for it."""
    with pytest.raises(SystemExit) as stop, files.saving(tmp_path / "model"):
        raise Exception("No space left on device (os error 28)")
    assert stop.value.code == 1 and "model could not be written (No space left" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError), files.saving(tmp_path / "model"):
        print(1 / 0)


def test_disk_full_under_a_log(tmp_path, capsys, file_limit):
    file_limit(100)
    with pytest.raises(SystemExit) as stop:
        for step in range(20):
            files.append_rows(tmp_path / "metrics.jsonl", [{"step": step, "loss": 0.5}])
    file_limit(resource.RLIM_INFINITY)
    assert stop.value.code == 1 and "metrics.jsonl could not be written" in capsys.readouterr().err
    states.cut_logs(tmp_path, 2)                                  # the torn line is no obstacle
    assert [row["step"] for row in metrics(tmp_path)] == [0, 1, 2]


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("stage, step, state", [("stage1_grpo", 2, "step_000003"), ("stage3_kl", 5, "step_000005"), ("stage4_distill", 5, "step_000005")])
def test_a_signal_lets_the_step_end_and_leaves(flags_of, undisturbed, tmp_path, patch, stage, step, state, number, code):
    """It alone makes the run save.  Step 2 lies in the middle of stage 1's first rollout batch, which ends with step 3."""
    module = sys.modules[stage]
    at_step(patch, step, lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stop:
        run(module, *flags_of[stage], "--save-every", 0, "--out", tmp_path / "run")
    assert stop.value.code == code and states.states(tmp_path / "run")[0].name == state
    assert metrics(tmp_path / "run")[-1]["step"] == int(state[-1]), "the step was taken"
    patch.undo()
    run(module, *flags_of[stage], "--out", tmp_path / "run")
    assert_alike(tmp_path / "run", undisturbed(stage))
    assert not isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), Signals), "a finished run gives the signals back"


@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_kill_in_the_middle_of_a_rollout_batch(flags_of, undisturbed, tmp_path, patch, step):
    """In the first batch nothing was saved yet; in the second, the state of the first one's end is there."""
    at_step(patch, step, crash)
    with pytest.raises(Crash):
        run(stage1_grpo, *flags_of["stage1_grpo"], "--out", tmp_path / "run")
    assert [state.name for state in states.states(tmp_path / "run")] == (["step_000003"] if step > 3 else [])
    patch.undo()
    run(stage1_grpo, *flags_of["stage1_grpo"], "--out", tmp_path / "run")
    assert_alike(tmp_path / "run", undisturbed("stage1_grpo"))


def test_a_state_before_the_first_step_counts_none(tmp_path):
    """torch fills an optimiser's empty state by a step of zeros, after which Adam's correction of its bias would be off."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    states.save_state(tmp_path, 1, model, optimizer, {})
    assert all(state["step"] == 0 for state in optimizer.state.values())
    loaded = torch.optim.AdamW(model.parameters())
    states.load_state(tmp_path, model, loaded)
    assert len(loaded.state) == 2 and all(state["step"] == 0 for state in loaded.state.values())


def test_the_newest_state_is_that_of_the_most_steps(tmp_path):
    for step in (5, 999_999, 1_000_000):
        states.state_directory(tmp_path, step).mkdir(parents=True)
    assert [path.name for path in states.states(tmp_path)] == ["step_1000000", "step_999999", "step_000005"]


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)       # as `… &` in a script has it
    try:
        caught = Signals().catch()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN and signal.getsignal(signal.SIGTERM) == caught.note
    finally:
        caught.release()
        signal.signal(signal.SIGINT, before)


def test_a_signal_while_a_state_is_saved_asks_for_no_further_step(flags_of, tmp_path, patch):
    put_in_place = states.put_in_place
    patch.setattr(states, "put_in_place", lambda *args: (os.kill(os.getpid(), signal.SIGTERM), put_in_place(*args)))
    with pytest.raises(SystemExit) as stop:
        run(stage4_distill, *flags_of["stage4_distill"], "--out", tmp_path / "run")
    assert stop.value.code == 143 and states.states(tmp_path / "run")[0].name == "step_000002"


@pytest.mark.parametrize("module, name", [(stage2_shape, "stage2_shape"), (judge, "eval")])
def test_a_signal_lets_the_batch_end_and_what_is_done_is_not_done_again(flags_of, undisturbed, tmp_path, patch, module, name):
    expected = undisturbed(name)
    home = common if module is judge else runs
    sample, calls = home.sample, []

    def signal_in_the_second_batch(*args, **kwargs):
        calls.append(kwargs["indices"])
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return sample(*args, **kwargs)

    patch.setattr(home, "sample", signal_in_the_second_batch)
    with pytest.raises(SystemExit) as stop:
        run(module, *flags_of[name], "--out", tmp_path / "run")
    assert stop.value.code == 143 and len(calls) == 2
    part, = (tmp_path / "run").glob("partial_*_rank0.jsonl")
    part.write_bytes(part.read_bytes() + b'{"places": [11, 12], "ro')          # torn
    shutil.copytree(tmp_path / "run", tmp_path / "fewer")
    run(module, *flags_of[name], "--out", tmp_path / "run")
    assert len(calls) == (4 if module is judge else 6) and sorted(sum(calls[:4], [])) == list(range(16))
    assert_alike(tmp_path / "run", expected)

    # the same, had rank 3 of four ranks done these batches; there is one rank now
    (tmp_path / "fewer" / part.name).rename(tmp_path / "fewer" / part.name.replace("rank0", "rank3"))
    run(module, *flags_of[name], "--out", tmp_path / "fewer")
    assert len(calls) == (6 if module is judge else 10)
    assert_alike(tmp_path / "fewer", expected)


# ---------------------------------------------------------------- ranks


def begin_two_ranks(flags, code: str = "") -> list[Fork]:
    """code: to run before stage 4"""
    return begin_ranks(2, f"{code}\nimport stage4_distill\nstage4_distill.main(stage4_distill.parse_args())", *flags)


def wait_for_steps(out: Path, step: int, ranks) -> None:
    while not (out / "metrics.jsonl").is_file() or not any(row["step"] >= step for row in runs.read_jsonl(out / "metrics.jsonl")):
        assert all(rank.process.exitcode is None for rank in ranks), ranks[0].said()
        time.sleep(0.05)


def test_ranks_agree_to_leave_a_dead_rank_ends_the_others_and_one_rank_takes_the_run_up(flags_of, tmp_path, capsys):
    out = tmp_path / "run"
    flags = [*flags_of["stage4_distill"], "--prompts-per-step", 2, "--max-steps", 60, "--out", out]
    ranks = begin_two_ranks(flags)
    wait_for_steps(out, 3, ranks)
    ranks[1].process.terminate()                                # one of them only
    assert [rank.wait() for rank in ranks] == [143, 143], ranks[0].said()
    step = json.loads((states.states(out)[0] / "progress.json").read_text())["step"]
    assert f"saved after step {step}, then stopped by SIGTERM" in ranks[0].said() and metrics(out)[-1]["step"] == step

    ranks = begin_two_ranks(flags)
    wait_for_steps(out, step + 3, ranks)
    ranks[1].process.kill()
    assert ranks[0].wait() not in (0, 143) and "Error" in ranks[0].said()
    assert not (out / "DONE").exists()

    run(stage4_distill, *flags)
    words = capsys.readouterr().out
    assert "begun with world_size 2, goes on with 1" in words and "going on after step" in words
    assert [row["step"] for row in metrics(out)] == list(range(61)) and (out / "DONE").is_file()


# name -> the rank that dies, and the function in which it does: on its call in the second save, before or behind it
DEATHS = {"as its part of the weights is written": (1, "torch.distributed.checkpoint.FileSystemWriter", "write_data", "before"),
          "while the others wait for its hashes": (1, "engine.states", "share", "before"),
          "before the state has its name": (0, "engine.states", "put_in_place", "before"),
          "when the state has its name": (0, "engine.states", "put_in_place", "behind")}
DIE = """
import importlib, os, pkgutil, signal
place = pkgutil.resolve_name({place!r})
function, calls = getattr(place, {name!r}), []
def die(*arguments, **more):
    calls.append(os.path.isdir(os.path.join({out!r}, "state", "step_000002")))
    dies = os.environ["RANK"] == "{rank}" and calls[-1]
    result = os.kill(os.getpid(), signal.SIGKILL) if dies and {when!r} == "before" else function(*arguments, **more)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(place, {name!r}, die)
"""


@pytest.fixture(scope="module")
def undisturbed_on_two_ranks(flags_of, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks") / "run"
    ranks = begin_two_ranks([*flags_of["stage4_distill"], "--out", out])
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].said()
    return out


@pytest.mark.parametrize("death", DEATHS)
def test_a_rank_killed_while_a_state_is_saved(flags_of, undisturbed_on_two_ranks, tmp_path, death):
    out, (rank, place, name, when) = tmp_path / "run", DEATHS[death]
    flags = [*flags_of["stage4_distill"], "--out", out]
    codes = [each.wait() for each in begin_two_ranks(flags, DIE.format(place=place, name=name, out=str(out), rank=rank, when=when))]
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] not in (0, -signal.SIGKILL), "the other one must not wait for ever"
    step = 4 if death == "when the state has its name" else 2
    assert [int(state.name[5:]) for state in states.states(out)][0] == step and not (out / "DONE").exists()

    ranks = begin_two_ranks(flags)
    assert [rank.wait() for rank in ranks] == [0, 0] and f"going on after step {step}" in ranks[0].said(), ranks[0].said()
    assert_alike(out, undisturbed_on_two_ranks)
    assert not list((out / "state").glob("*.tmp"))


def test_a_restart_by_torchrun_does_not_overwrite_what_it_began(flags_of, crashed_at_step_5, tmp_path, patch, capsys):
    shutil.copytree(crashed_at_step_5, tmp_path / "run")
    patch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    run(stage4_distill, *flags_of["stage4_distill"], "--out", tmp_path / "run", "--overwrite")
    assert "going on after step 4" in capsys.readouterr().out


def test_ranks_that_torchrun_starts_again_find_each_other(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, signal, sys\nfrom engine import ranks\nranks.setup_distributed()\nranks.barrier()\n"
                      "if ranks.rank() == 1 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n    os.kill(os.getpid(), signal.SIGKILL)\n"
                      "sys.stdout.write(f'together {ranks.all_sum(1)}\\n')\n")     # one write: the ranks share a pipe
    answer = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1", script],
                            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
    assert answer.returncode == 0 and answer.stdout.count("together [2.0]") == 2, answer.stderr[-2000:]


def test_torchrun_restarts_over_nodes_are_refused_where_they_would_hang(patch, capsys):
    for name, value in {"MAX_RESTARTS": "3", "USE_AGENT_STORE": "True"}.items():
        patch.setenv(f"TORCHELASTIC_{name}", value)
    patch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stop:
        ranks.store_of_this_start()
    assert stop.value.code == 2 and "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in capsys.readouterr().err
    patch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert ranks.store_of_this_start() == {}


# ---------------------------------------------------------------- steps that are not taken


@pytest.mark.parametrize("stage", TRAINERS)
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_logged(flags_of, tmp_path, patch, stage):
    module, clip, check, calls, before, frozen = sys.modules[stage], torch.nn.utils.clip_grad_norm_, runs.Run.all_finite, [], [], []

    def everything(optimizer):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        return [value.clone() for parameter in parameters for value in (parameter, *optimizer.state[parameter].values())]

    def break_a_gradient(parameters, most):
        parameters = list(parameters)
        calls.append(1)
        if len(calls) in (2, 3, 5):
            parameters[3].grad.view(-1)[7] = math.inf if len(calls) == 2 else math.nan
        return clip(parameters, most)

    def look_before(*given):
        before[:] = everything(optimizers[0])
        return check(*given)

    def look_behind(optimizer, *rest, **more):
        after = everything(optimizer)
        frozen.append(len(before) == len(after) and all(map(torch.equal, before, after)))
        return zero_grad(optimizer, *rest, **more)

    optimizers, make, zero_grad = [], torch.optim.AdamW.__init__, torch.optim.AdamW.zero_grad
    patch.setattr(torch.optim.AdamW, "__init__", lambda self, *rest, **more: (optimizers.append(self), make(self, *rest, **more))[1])
    patch.setattr(torch.optim.AdamW, "zero_grad", look_behind)
    patch.setattr(torch.nn.utils, "clip_grad_norm_", break_a_gradient)
    patch.setattr(runs.Run, "all_finite", look_before)
    every_group = ["--entropy-coef", 1e-3] if stage == "stage1_grpo" else []        # passed, also without advantage
    run(module, *flags_of[stage], *every_group, "--out", tmp_path / "run")
    assert frozen == [False, True, True, False, True, False]
    rows = {row["step"]: row for row in metrics(tmp_path / "run") if row["step"]}
    assert [rows[i]["nonfinite_steps"] for i in range(1, 7)] == [0, 1, 2, 2, 3, 3]
    assert rows[3]["grad_norm"] is None and rows[4]["grad_norm"] > 0
    assert json.loads((tmp_path / "run" / "DONE").read_text())["nonfinite_steps"] == 3
    logged = files.read_jsonl(tmp_path / "run" / "nonfinite.jsonl")
    assert [row["step"] for row in logged] == sorted([2, 3, 5] * (16 if stage == "stage1_grpo" else 4))
    assert all(row["prompt"] and row["completion"] for row in logged)


def test_the_rollouts_of_the_micro_batch_with_the_bad_loss_are_logged(flags_of, tmp_path, patch):
    completion_divergence, calls = stage4_distill.completion_divergence, []

    def sometimes_nan(*args):
        calls.append(1)
        loss, divergence, logprobs = completion_divergence(*args)
        return loss * (math.nan if len(calls) == 2 else 1.0), divergence, logprobs

    patch.setattr(stage4_distill, "completion_divergence", sometimes_nan)
    run(stage4_distill, *flags_of["stage4_distill"], "--micro-batch-size", 1, "--out", tmp_path / "run")
    row, = files.read_jsonl(tmp_path / "run" / "nonfinite.jsonl")
    assert row["step"] == 1 and row["loss"] == "nan"
    assert row["completion"] == files.read_jsonl(tmp_path / "run" / "samples.jsonl")[1]["completion"]
    assert metrics(tmp_path / "run")[1]["loss"] is None


def test_three_in_a_row_end_the_run_also_across_an_interruption(flags_of, tmp_path, patch):
    clip, flags = torch.nn.utils.clip_grad_norm_, [*flags_of["stage4_distill"], "--save-every", 1, "--out", tmp_path / "run"]
    patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args: clip(*args) * math.nan)
    at_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        run(stage4_distill, *flags)
    with pytest.raises(SystemExit, match="stopped at step 3: loss or gradient was not finite three steps in a row"):
        run(stage4_distill, *flags)


# ---------------------------------------------------------------- what a run refuses


def test_a_second_run_is_refused_while_the_first_one_lives(flags_of, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    holder = subprocess.Popen([sys.executable, "-c", "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
                               "print('held', flush=True); time.sleep(600)", str(tmp_path / "run" / ".lock")], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        with pytest.raises(SystemExit) as stop:
            run(stage4_distill, *flags_of["stage4_distill"], "--out", tmp_path / "run")
        assert stop.value.code == 2 and "another run is writing there" in capsys.readouterr().err
    finally:
        holder.kill()
        holder.communicate()
    run(stage4_distill, *flags_of["stage4_distill"], "--out", tmp_path / "run")
    with open(tmp_path / "run" / ".lock") as file:
        pytest.raises(BlockingIOError, fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_overwriting_is_never_half_a_parent(undisturbed, flags_of, tmp_path, patch, capsys):
    """Killed while it deletes the old run: no DONE any more, still known as a run, and the same command goes through."""
    shutil.copytree(undisturbed("stage4_distill"), tmp_path / "run")
    patch.setattr(shutil, "rmtree", lambda *args, **kwargs: crash())
    with pytest.raises(Crash):
        run(stage4_distill, *flags_of["stage4_distill"], "--out", tmp_path / "run", "--overwrite")
    patch.undo()
    with pytest.raises(SystemExit):
        checkpoints.find_model(tmp_path / "run")
    assert "no DONE" in capsys.readouterr().err
    run(stage4_distill, *flags_of["stage4_distill"], "--out", tmp_path / "run", "--overwrite")
    assert_alike(tmp_path / "run", undisturbed("stage4_distill"))


def test_a_parent_whose_weights_are_not_as_written_is_refused(undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed("stage4_distill"), tmp_path / "run")
    (tmp_path / "run" / "model" / "generation_config.json").write_text('{"eos_token_id": 1}')     # people may edit this one
    assert checkpoints.find_model(tmp_path / "run")["sha256"] == checkpoints.find_model(undisturbed("stage4_distill"))["sha256"]
    flip(tmp_path / "run" / "model" / "model.safetensors")
    with pytest.raises(SystemExit):
        checkpoints.find_model(tmp_path / "run")
    assert "model.safetensors is not as the run wrote it" in capsys.readouterr().err


def test_nothing_in_a_model_directory_is_unpickled_or_run(toy, copy_of, patch, capsys):
    """A pickle beside the safetensors is not touched; code that a config names is not imported."""
    code = {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model", "AutoTokenizer": ["trap.Tokenizer", None]}
    model_dir = copy_of(toy / "student", config={"auto_map": code}, tokenizer_config={"auto_map": code})
    (model_dir / "trap.py").write_text(f"open({str(model_dir / 'sprung')!r}, 'w')\n")
    (model_dir / "pytorch_model.bin").write_bytes(f"cbuiltins\nopen\n(V{model_dir / 'sprung'}\nVw\ntR.".encode())
    for module, name in ((torch, "load"), (__import__("pickle"), "load"), (__import__("pickle"), "loads")):
        patch.setattr(module, name, lambda *args, **kwargs: pytest.fail("something was unpickled"))
    found = checkpoints.find_model(model_dir)
    tokenizer = common.load_tokenizer(Path(found["path"]))
    common.load_model(model_dir, tokenizer, "float32", "cpu")
    assert not (model_dir / "sprung").exists()

    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps(config | {"model_type": "trap"}))
    with pytest.raises(SystemExit) as stop:
        checkpoints.find_model(model_dir)
    assert stop.value.code == 2 and "code of its own" in capsys.readouterr().err and not (model_dir / "sprung").exists()


def test_no_script_trusts_remote_code():
    for path in ROOT.glob("*.py"):
        assert "trust_remote_code=True" not in path.read_text().replace(" ", ""), path
