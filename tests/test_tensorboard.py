"""report.py --tensorboard: the figures of metrics.jsonl, once or while the run goes on."""
import json
import threading
import time

import pytest
from test_report import steps, write_run

import report
from pages import tensorboard

pytest.importorskip("tensorboard")


def read(run) -> dict:
    """-> tag -> its [(step, value)], as TensorBoard would draw them"""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    try:
        events.Reload()
    except FileNotFoundError:                           # the folder is just being made anew
        return {}
    return {tag: [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def write(run, rows):
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_figure_is_there(tmp_path, capsys):
    runs = [write_run(tmp_path / name, "stage1_grpo.py", steps(3, reward_mean=mean, loss=None), done=name == "a") for name, mean in (("a", 0.5), ("b", 0.25))]
    for _ in range(2):                                  # a second time there is nothing twice
        report.main(report.parse_args(["--tensorboard", *map(str, runs)]))
        assert f"--logdir {tmp_path}" in capsys.readouterr().out
        for run, mean in zip(runs, (0.5, 0.25)):
            found = read(run)
            assert found.keys() == {"metrics/reward_mean", "totals/optimiser_steps", "totals/labels_seen", "totals/seconds"}
            assert found["metrics/reward_mean"] == [(1, mean), (2, mean), (3, mean)] and found["totals/labels_seen"] == [(1, 4), (2, 8), (3, 12)]


def test_a_run_that_goes_on(tmp_path):
    """It adds what is new; where the run went back to a state, the steps behind that are not shown twice; it ends with DONE."""
    run = write_run(tmp_path / "run", "stage1_grpo.py", steps(2, reward_mean=0.5), done=False)
    following = threading.Thread(target=tensorboard.export, args=([run], 0.05), daemon=True)
    following.start()

    def shows(expected):
        deadline = time.time() + 60
        while read(run).get("metrics/reward_mean") != expected and time.time() < deadline:
            time.sleep(0.05)
        assert time.time() < deadline, read(run)

    while not list(run.glob("tensorboard/*")):
        time.sleep(0.05)
    shows([(1, 0.5), (2, 0.5)])
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(steps(3, reward_mean=0.75)[2]) + "\n" + '{"step": 4, "rew')     # as it is being written
    shows([(1, 0.5), (2, 0.5), (3, 0.75)])
    write(run, [*steps(1, reward_mean=0.5), *steps(2, reward_mean=0.25)[1:]])
    shows([(1, 0.5), (2, 0.25)])
    (run / "DONE").write_text("{}")
    following.join(60)
    assert not following.is_alive()


def test_flags_that_do_not_fit_are_refused(tmp_path, capsys):
    run = str(write_run(tmp_path / "run", "stage1_grpo.py", steps(1)))
    for flags, sentence in ((["--every", "3", run], "--every goes with --tensorboard"), (["--tensorboard", run, "--out", "x.html"], "--out is for the page"),
                            (["--tensorboard", str(tmp_path)], "neither the run of a stage")):
        with pytest.raises(SystemExit):
            report.main(report.parse_args(flags))
        assert sentence in capsys.readouterr().err
