"""The pages: what stands on them comes from the files, model text is escaped, and a torn run still has one."""
import argparse
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from forks import ROOT

import report
import stage2_shape
from pages.parts import LINES

pytestmark = pytest.mark.pages


def write_run(run, command, lines, done=True, **files):
    run.mkdir(parents=True)
    args = {"eval_problems": ["p.jsonl"], "eval_samples": 2, "temperature": 1.0, "max_steps": 40}
    (run / "args.json").write_text(json.dumps({"args": args, "parents": {}, "command": command, "versions": {"device": "cpu"}, "world_size": 1}))
    if lines:
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if done:
        (run / "DONE").write_text(json.dumps({"optimiser_steps": len(lines), "labels_seen": 1, "tokens_sampled": 2, "seconds": 10.0}))
    for name, content in files.items():
        (run / f"{name}.json").write_text(json.dumps(content))
    return run


def steps(count, **figures):
    return [{"step": step, **figures, "optimiser_steps": step, "labels_seen": 4 * step, "seconds": 1.0 * step} for step in range(1, count + 1)]


def rollouts(prompts=12, size=4):
    """Rows as stage 2 has them: R is larger for right completions, mostly, and one prompt has no right one."""
    random = np.random.default_rng(0)
    right = random.random((prompts, size)) < 0.5
    right[0] = False
    scores = random.normal(size=(prompts, size)) + 1.5 * right
    return [{"id": str(i // size), "prompt_ids": [3], "completion_ids": [1, 2], "reward": float(reward), "implicit_reward_nats": float(score),
             "dense_rewards_nats": [float(score), 0.0]}
            for i, (score, reward) in enumerate(zip(scores.ravel(), right.ravel()))]


@pytest.fixture
def table(tmp_path):
    """A finished table of two rows and one seed, written by hand."""
    out = tmp_path / "out"
    seed = {"seed": 0, "interval_over_samples": [0.1, 0.2], "truncated_fraction": 0.0, "optimiser_steps": 7, "labels_seen": 1, "tokens_sampled": 2,
            "seconds": 3.0}
    rows = [{"row": name, "runs": runs.split(), "metric": "avg@4", "setting": "", "labels": 8,
             "seeds": [{"value": value, "interval": [value - 0.01, value + 0.01], **seed}]}
            for name, runs, value in (("low", "direct", 0.1), ("high", "teacher shape bridge student", 0.9))]
    first = out / "seed0"
    run = write_run(first / "direct", "stage1_grpo.py --lr 1", steps(2, reward_mean=0.5, eval_accuracy=0.25, grad_norm=float("nan"),
                                                                     sample_seconds=3.0, train_seconds=2.0))
    (run / "samples.jsonl").write_text(json.dumps({"step": 1, "prompt": "p", "completion": "<script>alert(1)</script>" + "x" * 9000,
                                                   "finished": False, "reward": None}) + "\n")
    lengths = {"eval_accuracy": 0.5, "mean_length_tokens": 7.0, "truncated_fraction": 0.0}
    write_run(first / "teacher", "stage1_grpo.py", steps(2, **lengths))
    shape = write_run(first / "shape", "stage2_shape.py", [], certificate={
        **stage2_shape.certificate_of(rollouts(), argparse.Namespace(samples_per_prompt=4, min_auc=0.5)), "certified_on": "reference"})
    stage2_shape.write_rewards(SimpleNamespace(out=shape, args=argparse.Namespace(samples_per_prompt=4), tokenizer=SimpleNamespace(decode=str)), rollouts())
    dense = {"prompt": "1=", "reward": 1.0, "tokens": ["<b>", "7"], "dense_rewards_nats": [-0.5, 1.25], "implicit_reward_nats": 0.75}
    (shape / "dense_rewards.jsonl").write_text(json.dumps(dense) + "\n")
    c2 = {"c2_reverse_kl_nats": 0.125, "c2_interval_nats": [0.1, 0.2], "c2_tokens": 9, "c2_prompts": 3, "forward_kl_on_teacher_rollouts_nats": 0.3}
    write_run(first / "bridge", "stage3_kl.py", [{"step": 0, **c2, "c2_reverse_kl_nats": 2.5, "c2_interval_nats": [2.25, 2.75]}, *steps(2, forward_kl_nats=0.5)],
              certificate={**c2, "condition": "C2", "passed": True, "max_kl_nats": 0.3, "optimiser_steps": 2})
    write_run(first / "student", "stage4_distill.py", steps(3, reverse_kl_nats=0.1, **lengths))
    (out / "table.json").write_text(json.dumps({
        "table": "main", "scale": "toy", "about": "What it is.", "rows": rows, "orderings": [{"lower": "low", "higher": "high"}], "command": "python reproduce.py main",
        "commit": "abc", "machine": "2 cores", "date": "2026-11-30", "shared": ["They share a pair."],
        "scopes": [{"seed": 0, "setting": "", "labels": 8, "directory": "seed0"}]}))
    return out


def page_of(*flags):
    report.main(report.parse_args([str(flag) for flag in flags]))
    out = flags[flags.index("--out") + 1] if "--out" in flags else flags[0] / "report.html"
    return out.read_text()


def test_table_page(table, capsys):
    page = page_of(table)
    assert "avg@4" in (table / "figure.svg").read_text() and (table / "figure.svg").read_text().startswith("<svg")
    assert "low &lt; high: the difference is +0.800 on the only seed, and one cannot be tested." in page and "They share a pair." in page
    assert "[0.890, 0.910]" in page and "seed0/direct/report.html" in page and "over 1 seed." in page
    assert page.index("<svg") < page.index("<h2 "), "the figure comes first"
    for title in ("Scores and costs", "Learning curves", "Certificate C1", "Length and truncation",
                  "The teacher’s dense reward", "Runs"):
        assert re.search(f"<h2 id='(.*?)'><a href='#\\1'>{re.escape(title)}</a></h2>", page), "a section has an address"
    for cost in ("optimiser steps", "labels seen", "seconds"):
        assert len(re.findall(f">Held-out accuracy against {cost}<", page)) == 1, "three charts, three titles"
    assert "C1 held on 1 of 1: 0." in page and "C2 held on 1 of 1: 2.500, then 0.125" in page, "before and after the bridge"
    run_page = (table / "seed0" / "direct" / "report.html").read_text()
    assert "<script>" not in run_page and "&lt;script&gt;" in run_page and len(run_page) < 10**6
    assert capsys.readouterr().out.strip() == str(table / "report.html")


@pytest.mark.parametrize("kept", ["ablation-toy", "labels-toy"])
def test_a_table_that_is_kept_without_its_runs_has_a_page(tmp_path, kept):
    shutil.copytree(ROOT / "results" / kept, tmp_path / kept)
    page = page_of(tmp_path / kept)
    assert "Scores and costs" in page and "Learning curves" not in page


def test_pages_need_no_network_and_fit_dark_and_narrow_screens(table):
    for page in (page_of(table), page_of(table / "seed0" / "shape")):
        links = re.findall(r"""(?:src|href)=["']?([^"'> ]*)|(@import|url\((?!#)|<script|<link)""", page)
        assert links and not [link for link, other in links if other or ":" in link or link.startswith("//")]
        assert "prefers-color-scheme:dark" in page and "width=device-width" in page
        assert page.count("<figure>") >= 3 and "overflow-x" not in page and "@media (max-width:700px)" in page
        assert not re.findall("<td(?! class=n data-label=| data-label=)", page), "on a phone a cell says what it is"


def test_what_is_drawn_of_an_arm_can_be_hidden_and_says_what_it_is(table):
    """A checkbox an arm, and whatever carries its class goes with it; a point says row, seed and value."""
    page = page_of(table)
    assert re.findall(r"id='(\w+)'> (\w+)</label>", page) == [("low", "low"), ("high", "high")] and "<script" not in page
    assert "body:has(#high:not(:checked)) .arm-high{display:none}" in page
    marked = page.split('<g class="arm-high">')
    assert len(marked) > 10 and "<title>high, seed 0: 0.900</title>" in page and re.search(r"<title>high, optimiser steps \d: 0.5</title>", page)
    assert re.search(r"<title>step 2: 0.5</title>", (table / "seed0" / "teacher" / "report.html").read_text())


def test_the_distributions_of_c1_are_those_that_were_certified(table):
    """implicit_rewards.jsonl has all that C1 ranked: its AUC is the certificate's, which the page shows."""
    shape = table / "seed0" / "shape"
    rows = [json.loads(line) for line in (shape / "implicit_rewards.jsonl").read_text().splitlines()]
    scores, right = np.array([row["implicit_reward_nats"] for row in rows]), np.array([row["reward"] for row in rows]) > 0
    figures, page = json.loads((shape / "certificate.json").read_text())["sum"], page_of(shape)
    within, pooled = np.nanmean(stage2_shape.within_prompt_auc(scores, right)), stage2_shape.auc(scores.ravel(), right.ravel())
    assert within == pytest.approx(figures["within_prompt_auc"]["value"]) and pooled == pytest.approx(figures["pooled_auc"]["value"])
    assert f"All completions: AUC {pooled:.3g}" in page and f"Of prompts with both outcomes: AUC {within:.3g}" in page and within != pooled
    assert f"right: {right.sum()}" in page and f"wrong: {(~right).sum()}" in page and f"wrong: {(~right[right.any(1) & ~right.all(1)]).sum()}" in page


def test_a_teacher_without_reward_has_a_page(table):
    """R is 0 everywhere, and no prompt has both outcomes."""
    shape = table / "seed0" / "shape"
    rows = [row | {"implicit_reward_nats": 0.0, "reward": 0.0} for row in rollouts()]
    stage2_shape.write_rewards(SimpleNamespace(out=shape, args=argparse.Namespace(samples_per_prompt=4), tokenizer=SimpleNamespace(decode=str)), rows)
    certificate = stage2_shape.certificate_of(rows, argparse.Namespace(samples_per_prompt=4, min_auc=0.5))
    (shape / "certificate.json").write_text(json.dumps(certificate))
    assert "All completions: AUC –" in page_of(shape) and "both outcomes: AUC" not in page_of(shape) and "not defined" in page_of(table)


def test_dense_rewards_are_shown_token_by_token(table):
    page = page_of(table / "seed0" / "shape")
    assert "+1.2500 nats" in page and "-0.5000 nats" in page and "&lt;b&gt;" in page and "R = +0.75 nats" in page


def test_seconds_are_shared_out_over_the_phases(table):
    assert re.findall("<b>([^<]*)</b><span>(of them sampling|scoring and update)", page_of(table / "seed0" / "direct")) == [
        ("6", "of them sampling"), ("4", "scoring and update")]


def test_a_table_that_was_kept_without_its_runs_has_a_page(table, tmp_path):
    kept = json.loads((table / "table.json").read_text())
    kept["rows"].append(kept["rows"][0] | {"row": "base", "runs": []})
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "table.json").write_text(json.dumps(kept))
    assert "cannot be tested" in page_of(tmp_path / "kept") and "base" in page_of(tmp_path / "kept")


def test_an_unfinished_run_says_how_far_it_is(tmp_path):
    begun = write_run(tmp_path / "begun", "stage1_grpo.py", [], done=False)
    assert "Not finished: nothing logged yet" in page_of(begun)
    running = write_run(tmp_path / "running", "stage1_grpo.py", steps(7, reward_mean=0.5), done=False)
    with open(running / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "rewa')                     # is being written
    page = page_of(running)
    assert "Not finished: step 7 of 40" in page and "Mean reward of the rollouts" in page and "<b>7</b>" in page
    (running / "DONE").write_text("{}")
    assert "Not finished" not in page_of(running)


def test_several_runs_share_a_page(table, tmp_path, monkeypatch):
    """A panel a metric, a line a run; runs of the same name in two places are told apart."""
    other = write_run(tmp_path / "out" / "seed1" / "direct", "stage1_grpo.py", steps(5, reward_mean=0.75, entropy_estimate_nats=1.0), done=False)
    runs = [table / "seed0" / "direct", other, table / "seed0" / "shape"]
    page = page_of(*runs, "--out", tmp_path / "all.html")
    assert "seed0/direct" in page and "seed1/direct" in page and "step 5 of 40" in page and "<b>C1" in page
    panels = re.findall(r'aria-label="([^"(]*?) ?\(', page)
    assert panels == ["Held-out accuracy", "Mean reward of the rollouts", "Entropy, estimated"]
    reward = page.split('aria-label="Mean reward')[1].split("</svg>")[0].lower()
    assert LINES[0][0] in reward and LINES[1][0] in reward and LINES[2][0] not in reward
    monkeypatch.chdir(tmp_path)
    report.main(report.parse_args([str(run) for run in runs]))
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("flags, told", [
    (["{out}"], "{out}"), (["{out}/missing"], "missing: there is no such directory"), (["{run}", "{out}/seed0"], "{out}/seed0"), (["{run}", "--out", "x.html"], "--out"),
    (["{run}", "{run}", "--out", "{out}/missing/x.html"], "missing/x.html"), (["{broken}"], "{broken}/metrics.jsonl, line 1: not JSON")])
def test_bad_input_is_one_sentence(tmp_path, capsys, flags, told):
    places = {"out": tmp_path, "run": write_run(tmp_path / "run", "stage1_grpo.py", steps(1)), "broken": write_run(tmp_path / "broken", "stage1_grpo.py", [])}
    (tmp_path / "broken" / "metrics.jsonl").write_text("{}}\n{}\n")
    with pytest.raises(SystemExit) as stop:
        report.main(report.parse_args([flag.format(**places) for flag in flags]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and told.format(**places) in error and error.count("\n") == 1
