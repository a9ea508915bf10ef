"""The four mains in a row, the evaluator, and the list of commands that is a table."""
import dataclasses
import json
import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import change_scale, metrics, run, run_here
from forks import ROOT, Fork
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import eval as judge
import prepare
import reproduce
import stage1_grpo
import stage2_shape
import stage3_kl
import stage4_distill
from experiments import runner
from experiments.runner import Run, budgets, steps_in_the_time_of, steps_of
from experiments.tables import SCALES, TABLES, main_rows
from pages import run as run_page


@pytest.mark.pages
def test_four_stages_in_a_row(toy, tmp_path):
    shared = ("--max-new-tokens", 16, "--micro-batch-size", 32)
    run(stage1_grpo, "--model", toy / "teacher", "--problems", toy / "few_train.jsonl", "--out", tmp_path / "teacher",
        "--max-steps", 2, "--steps-per-rollout", 2, "--lr", 3e-4, "--eval-problems", toy / "few_test.jsonl", "--eval-every", 1, "--prompts-per-step", 8, *shared)
    run(stage2_shape, "--teacher", tmp_path / "teacher", "--reference", toy / "teacher", "--problems", toy / "few_heldout.jsonl",
        "--certify-problems", toy / "few_heldout.jsonl", "--out", tmp_path / "shape", "--allow-failed-certificate", *shared)
    run(stage3_kl, "--student", toy / "student", "--teacher", tmp_path / "teacher", "--rollouts", tmp_path / "shape" / "rollouts.jsonl",
        "--problems", toy / "few_heldout.jsonl", "--max-kl", 100, "--out", tmp_path / "bridge", "--allow-failed-certificate", *shared)
    run(stage4_distill, "--student", tmp_path / "bridge", "--teacher", tmp_path / "teacher", "--problems", toy / "few_train.jsonl",
        "--out", tmp_path / "student", "--max-steps", 2, "--lr", 1e-3, "--prompts-per-step", 8, *shared)
    run(judge, "--model", tmp_path / "student", "--problems", toy / "few_test.jsonl", "--samples", 4, "--max-new-tokens", 16,
        "--out", tmp_path / "eval")

    for stage in ("teacher", "shape", "bridge", "student", "eval"):
        record = json.loads((tmp_path / stage / "args.json").read_text())
        assert (tmp_path / stage / "DONE").is_file() and record["parents"] and record["versions"]["torch"] == torch.__version__
    for stage in ("teacher", "bridge", "student"):
        assert not list((tmp_path / stage).glob("*.tmp"))
        model = AutoModelForCausalLM.from_pretrained(tmp_path / stage / "model")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / stage / "model")
        output = model.generate(**tokenizer("3491827546=", return_tensors="pt", return_token_type_ids=False), max_new_tokens=4)
        assert tokenizer.decode(output[0]).startswith("3491827546=")
    for stage in ("teacher", "shape", "bridge", "student"):
        page = (tmp_path / stage / "report.html").read_text()
        assert "<svg" in page and "What ran" in page and "nan" not in page.lower().replace("finan", "")
    certificate = json.loads((tmp_path / "shape" / "certificate.json").read_text())
    ranked = [json.loads(line) for line in (tmp_path / "shape" / "implicit_rewards.jsonl").read_text().splitlines()]
    scores, right = torch.tensor([row["implicit_reward_nats"] for row in ranked]), torch.tensor([row["reward"] for row in ranked]) > 0
    assert scores.shape == (certificate["num_prompts"], certificate["samples_per_prompt"]) and float(scores.mean()) == pytest.approx(certificate["mean_implicit_reward_nats"], rel=1e-5)
    assert stage2_shape.auc(scores.flatten().numpy(), right.flatten().numpy()) == pytest.approx(certificate["sum"]["pooled_auc"]["value"])
    parents = json.loads((tmp_path / "student" / "args.json").read_text())["parents"]
    assert parents["student"]["run"] == str(tmp_path / "bridge") and parents["teacher"]["run"] == str(tmp_path / "teacher")
    done = json.loads((tmp_path / "teacher" / "DONE").read_text())
    assert done["optimiser_steps"] == 2 and done["labels_seen"] == 16
    scores = json.loads((tmp_path / "eval" / "scores.json").read_text())
    assert scores["num_problems"] == 8 and {"avg@4", "pass@2", "pass@4", "maj@4", "truncated_fraction", "mean_length_tokens"} <= set(scores)
    rows = [json.loads(line) for line in (tmp_path / "eval" / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(len(row["completions"]) == len(row["verdicts"]) == 4 for row in rows)
    assert scores["avg@4"]["value"] == pytest.approx(sum(sum(row["verdicts"]) for row in rows) / 32)
    assert [judge.grade(text, row["answer"]) for row in rows for text in row["completions"]] == [v for row in rows for v in row["verdicts"]]


@pytest.mark.parametrize("divergence", [(), ("--divergence", "forward"), ("--divergence", "jsd"), ("--estimator", "sampled")])
def test_stage4_brings_a_disturbed_student_back_to_its_teacher(toy, copy_of, tmp_path, divergence):
    disturbed = copy_of(toy / "teacher")
    weights = load_file(disturbed / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, value in weights.items():
        weights[name] = value + 0.5 * value.std(correction=0) * torch.randn(value.shape, generator=generator)
    save_file(weights, disturbed / "model.safetensors", metadata={"format": "pt"})
    run(stage4_distill, "--student", disturbed, "--teacher", toy / "teacher", "--problems", toy / "train.jsonl", "--out", tmp_path / "run",
        "--max-new-tokens", 16, "--micro-batch-size", 64, "--prompts-per-step", 64, "--max-steps", 15, "--lr", 1e-3, *divergence)
    rows = [row["reverse_kl_nats"] for row in metrics(tmp_path / "run")]
    assert rows[0] > 0.25 and sum(rows[-3:]) / 3 < rows[0] * (0.8 if "sampled" in divergence else 0.3)


@pytest.mark.parametrize("table", list(TABLES))
@pytest.mark.parametrize("scale", list(SCALES))
def test_every_printed_command_parses(table, scale, tmp_path, capsys):
    """--dry-run prints the exact commands; each is one that its script's own flags accept, and comes after what it needs."""
    out, data = tmp_path / "it's mine", tmp_path / "of me@home"
    flags = [table, "--scale", scale, "--out", str(out), "--data", str(data), "--dry-run"]
    if TABLES[table].over and TABLES[table].over not in SCALES[scale].over:
        with pytest.raises(SystemExit):
            reproduce.main(reproduce.parse_args(flags))
        return
    reproduce.main(reproduce.parse_args(flags))
    lines = [line.removeprefix("$ ") for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    modules = {f"{module.__name__}.py": module for module in (stage1_grpo, stage2_shape, stage3_kl, stage4_distill, judge, prepare)}
    assert len(lines) > 3 and not out.exists()
    written = set()
    for line in lines:
        words = shlex.split(re.sub("'<.*?>'", "1", line))
        script = next(word for word in words if word.endswith(".py"))
        args = modules[script].parse_args(words[words.index(script) + 1:])
        used = {re.match(rf"{out}/(\w+/)?seed0/\w+", word)[0] for word in words if word.startswith(str(out))} - {str(args.out)}
        assert used <= written, "a run comes before what it needs"
        assert all(data in (Path(word), Path(word).parent) for word in words if "@home" in word)
        written.add(str(args.out))


def test_numbers_come_from_runs_that_are_done():
    totals = {"a": {"optimiser_steps": 10, "seconds": 20.0}, "b": {"optimiser_steps": 30, "seconds": 60.0}}
    a, b = (Run(name, ("stage1_grpo.py",)) for name in "ab")
    assert steps_of(a, b).value(totals) == 40 and (steps_of(b) - steps_of(a)).value(totals) == 20
    assert steps_in_the_time_of(a, [a, b]).value(totals) == 40
    of_both = Run("c", ("stage1_grpo.py", "--model", a / "model", "--max-steps", steps_of(a, b) - steps_of(b)))
    assert runner.needs(of_both) == [a, a, b, b]
    assert runner.text_of(of_both, lambda run: f"x/{run.name}", lambda number: f"<{number.text}>") == (
        "stage1_grpo.py --model x/a/model --max-steps <steps of a b less steps of b>")


def test_c1_among_the_worked_completions_by_hand():
    row = {"implicit_reward_nats": [3.0, 1.0, 2.0, -9.0], "reward": [1.0, 1.0, 0.0, 0.0], "length_tokens": [15, 15, 15, 5]}
    assert reproduce.worked_auc([row, row | {"length_tokens": [5] * 4}]) == {"c1_auc_worked": 0.5, "c1_mixed_worked": 1}
    assert reproduce.worked_auc([]) == {}


def test_a_small_table_is_made_goes_on_where_it_stopped_and_shares_its_runs(tmp_path, monkeypatch, capsys):
    """Two budgets at the smallest size: everything is run, nothing twice, and the page is drawn."""
    def small(s):
        seed = "--max-new-tokens 16 --seed 0"
        return {"grpo": ["--prompts-per-step 4 --samples-per-prompt 4 --eval-every 1 --eval-samples 1", seed, "--eval-problems", s.certify],
                "shape": ["--num-problems 4 --samples-per-prompt 2", seed], "opd": ["--prompts-per-step 4", seed],
                "bridge": ["--max-kl 9 --max-steps 1 --num-certify-problems 4", seed], "test": s.certify,
                "eval": ["--samples 2 --max-new-tokens 16"], "grpo_steps": 1, "opd_steps": 1, "plateau_steps": 2}
    change_scale(monkeypatch, "toy", small, {"budgets": budgets(8, 16)})
    kept = ("raw teacher", "direct GRPO, plateau", "full workflow")
    for name in ("labels", "main"):
        rows = main_rows(*kept, *(["direct GRPO, equal steps"] * (name == "main")))
        monkeypatch.setitem(TABLES, name, dataclasses.replace(TABLES[name], rows=rows, orderings=(kept[1:],)))
    starts = []

    def start(directory, command, *_, **__):
        starts.append(directory.name)
        return run_here(directory, command)

    monkeypatch.setattr(runner, "start", start)
    monkeypatch.setattr(run_page, "write_run_page", lambda run: (run / "report.html").touch())
    args = reproduce.parse_args(["labels", "--scale", "toy", "--out", str(tmp_path / "labels"), "--jobs", "2", "--results", str(tmp_path / "results")])
    scopes = reproduce.scopes_of(args)
    scopes[0].names = scopes[0].names[:4]
    runner.run_all(scopes[:1], tmp_path / "cells", 2, 1)                # an interruption
    interrupted = len(starts)
    reproduce.write_table(args, scopes, running=True)
    assert "so far" in (tmp_path / "labels" / "table.md").read_text() and (tmp_path / "labels" / "report.html").is_file()
    assert not (tmp_path / "results").exists()
    reproduce.main(args)
    assert len(starts) == len(set(starts)) > interrupted >= 3
    table = json.loads((tmp_path / "labels" / "table.json").read_text())
    assert {row["labels"] for row in table["rows"]} == {None, 8, 16} and len(table["orderings"]) == 2
    paid = {(row["row"], row["labels"]): row["seeds"][0]["labels_seen"] for row in table["rows"]}
    assert paid["full workflow", 8] == 4 * 4 + 2 and paid["direct GRPO, plateau", 8] == 4 * 4, "C1 is counted, too"
    text = (tmp_path / "results" / "labels-toy" / "table.md").read_text()
    assert "so far" not in text
    assert "| 8 labels |" in text and "| 16 labels |" in text and "8 labels: direct GRPO, plateau < full workflow" in text
    page = (tmp_path / "labels" / "report.html").read_text()
    assert page.count("<svg") > 3 and (tmp_path / "labels" / "8_labels" / "seed0" / "teacher" / "report.html").is_file()
    main = reproduce.parse_args(["main", "--scale", "toy", "--labels", "8", "--out", str(tmp_path / "main")])
    before = len(starts)
    reproduce.main(main)
    assert not {name.split("-")[0] for name in starts[before:]} & {"base", "labels", "teacher", "shape", "bridge", "student", "direct_plateau"}


def test_a_run_that_fails_ends_the_table_with_its_own_words(tmp_path, monkeypatch):
    start = runner.start
    monkeypatch.setattr(runner, "start", lambda directory, command, *rest, **more: (
        run_here if command.startswith("prepare.py") else start)(directory, command, *rest, **more))
    change_scale(monkeypatch, "toy", lambda s: {"grpo": ["--samples-per-prompt 1 --max-new-tokens 16"]})
    monkeypatch.setitem(TABLES, "main", dataclasses.replace(TABLES["main"], rows=main_rows("RL teacher")))
    args = reproduce.parse_args(["main", "--scale", "toy", "--labels", "8", "--out", str(tmp_path / "main"), "--jobs", "2"])
    with pytest.raises(SystemExit, match="teacher-.* ended with exit code 2.*--samples-per-prompt: 1"):
        reproduce.main(args)


def until(holds):
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_signal_lets_the_runs_end_and_two_tables_may_want_the_same(tmp_path):
    """The runs hear one SIGTERM, whatever ended the table and wherever Ctrl-C came from; a run is made by one table at a time."""
    (tmp_path / "stub.py").write_text("""if True:
        import pathlib, signal, sys, time
        out = pathlib.Path(sys.argv[2])
        signal.signal(signal.SIGTERM, lambda *_: ((out / "DONE").write_text("{}"), sys.exit(0)))
        out.mkdir()
        (out / "begun").touch()
        time.sleep(100)""")
    code = f"""if True:
        import pathlib, types
        from experiments import runner
        runner.HERE, cells = pathlib.Path({str(tmp_path)!r}), pathlib.Path({str(tmp_path)!r}) / "cells"
        runner.catch_signals()
        scope = types.SimpleNamespace(names=["run"], launch=lambda script: "python",
                                      resolve=lambda name, cells: (cells / "run", f"stub.py --out {{cells / 'run'}}"))
        wait, runner.wait = runner.wait, lambda processes: wait(processes, 0.2)
        runner.run_all([scope], cells, 2, None)"""
    one = Fork(code)
    run = tmp_path / "cells" / "run"
    until(lambda: (run / "begun").is_file())
    other = Fork(code)                                  # whose stub would fail at out.mkdir()
    until(lambda: "0/1" in other.said())
    os.kill(one.process.pid, signal.SIGINT)
    assert one.wait() == 130 and "Stopped by SIGINT" in one.said()
    assert (run / "DONE").is_file(), "its run was let to end"
    assert other.wait() == 0, other.said()


def test_a_cell_hangs_on_what_the_data_hold(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "gsm8k_train.jsonl").write_text("one")

    def cell():
        runner.held_by.cache_clear()
        args = reproduce.parse_args(["main", "--scale", "small", "--data", str(data), "--out", str(tmp_path / "out")])
        directory, command = reproduce.scopes_of(args)[0].resolve("labels", tmp_path / "cells")
        assert shlex.split(command)[3] == f"{data}/gsm8k_train.jsonl"
        return directory

    first = cell()
    assert cell() == first
    (data / "gsm8k_train.jsonl").write_text("two")
    assert cell() != first


def test_a_table_is_not_written_over_another(tmp_path, capsys):
    def refused(*flags):
        with pytest.raises(SystemExit) as stop:
            reproduce.main(reproduce.parse_args([*flags, "--scale", "toy", "--out", str(tmp_path)]))
        assert stop.value.code == 2
        return capsys.readouterr().err

    scopes = [{"seed": 0, "setting": "", "labels": 64}, {"seed": 1, "setting": "", "labels": 64}]
    (tmp_path / "table.json").write_text(json.dumps({"table": "main", "scale": "toy", "scopes": scopes}))
    assert "holds another table (table main, not ablation)" in refused("ablation")
    assert "has seed 1, labels 64, which this command leaves out" in refused("main")
    assert "has seed 0, labels 64" in refused("main", "--seeds", "2", "--labels", "32")
    (tmp_path / "table.json").unlink()
    (tmp_path / "seed0" / "base").mkdir(parents=True)
    assert "seed0/base is in the way" in refused("main")
    (tmp_path / "file").touch()
    assert "--results" in refused("main", "--results", str(tmp_path / "file"))

    (tmp_path / "table.json").write_text(json.dumps({"table": "main", "scale": "toy", "scopes": scopes[:1], "test": None, "dtype": "bfloat16"}))
    assert "(dtype bfloat16, not float32)" in refused("main")
    assert "--test" in refused("main", "--test", str(tmp_path / "missing.jsonl"))
    for damaged in ("{", "[]", json.dumps({"scopes": [1]})):
        (tmp_path / "table.json").write_text(damaged)
        said = refused("main")
        assert "table.json" in said and "delete it" in said


def test_links_hold_where_out_is_one(tmp_path):
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    runner.link(tmp_path / "out" / "seed0" / "run", tmp_path / "out" / "run")
    assert (tmp_path / "out" / "seed0" / "run").is_dir()


@pytest.mark.parametrize("damage", ["", "{", "{}"])
def test_a_cell_that_was_damaged_is_named(tmp_path, damage, capsys):
    (tmp_path / "scores.json").write_text(damage)
    with pytest.raises(SystemExit):
        runner.read_of(tmp_path, "scores.json", "samples")
    assert f"{tmp_path}: its scores.json is gone or damaged; delete that directory" in capsys.readouterr().err


def test_an_unknown_table_or_missing_data_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        reproduce.main(reproduce.parse_args(["main", "--scale", "smollm2", "--out", str(tmp_path / "out"), "--data", str(tmp_path)]))
    assert stop.value.code == 2 and "--data" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["stage1_grpo", "stage2_shape", "stage3_kl", "stage4_distill", "eval", "prepare", "reproduce"])
def test_help_is_there_for_a_newcomer(script):
    fork = Fork(ROOT / f"{script}.py", "--help")
    assert fork.wait() == 0 and "--out" in fork.said() and "python " in fork.said()
