"""The pages: what stands on them comes from the files, model text is escaped, and a torn run still has one."""
import json

import pytest

import report

pytestmark = pytest.mark.pages


@pytest.fixture
def table(tmp_path):
    """A finished table of two rows and one seed, written by hand."""
    out = tmp_path / "out"
    seed = {"interval_over_samples": [0.1, 0.2], "truncated_fraction": 0.0, "optimiser_steps": 7, "labels_seen": 1, "tokens_sampled": 2,
            "seconds": 3.0}
    rows = [{"row": name, "runs": ["direct"], "metric": "avg@4", "mean": value, "interval": None, "setting": "", "labels": 8,
             "seeds": [{"value": value, "interval": [value - 0.01, value + 0.01], **seed}]} for name, value in (("low", 0.1), ("high", 0.9))]
    run = out / "seed0" / "direct"
    run.mkdir(parents=True)
    (out / "table.json").write_text(json.dumps({
        "table": "main", "scale": "toy", "about": "What it is.", "rows": rows, "orderings": [{"sentence": "It holds."}], "command": "python reproduce.py main",
        "scopes": [{"seed": 0, "setting": "", "labels": 8, "directory": "seed0"}]}))
    (run / "args.json").write_text(json.dumps({"args": {"eval_problems": "p.jsonl", "eval_samples": 2, "temperature": 1.0}, "parents": {},
                                               "command": "stage1_grpo.py --lr 1", "versions": {"device": "cpu"}, "world_size": 1}))
    lines = [{"step": step, "reward_mean": 0.5, "eval_accuracy": 0.25, "grad_norm": float("nan"), "optimiser_steps": step, "seconds": 1.0}
             for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "samples.jsonl").write_text(json.dumps({"step": 1, "prompt": "p", "completion": "<script>alert(1)</script>" + "x" * 9000,
                                                   "finished": False, "reward": None}) + "\n")
    (run / "DONE").write_text(json.dumps({"optimiser_steps": 2, "labels_seen": 1, "tokens_sampled": 2, "seconds": 1.0}))
    return out


def test_table_page(table, capsys):
    report.write_table_figure(table)
    report.main(table)
    assert "avg@4" in (table / "figure.svg").read_text()
    page = (table / "report.html").read_text()
    assert "It holds." in page and "[0.890, 0.910]" in page and "<svg" in page and "seed0/direct/report.html" in page
    run_page = (table / "seed0" / "direct" / "report.html").read_text()
    assert "<script>" not in run_page and "&lt;script&gt;" in run_page and len(run_page) < 10**6
    assert capsys.readouterr().out.strip() == str(table / "report.html")


def test_dense_rewards_are_shown_token_by_token(table):
    run = table / "seed0" / "direct"
    row = {"prompt": "1=", "reward": 1.0, "tokens": ["<b>", "7"], "dense_rewards_nats": [-0.5, 1.25], "implicit_reward_nats": 0.75}
    (run / "dense_rewards.jsonl").write_text(json.dumps(row) + "\n")
    report.main(run)
    page = (run / "report.html").read_text()
    assert "+1.2500 nats" in page and "-0.5000 nats" in page and "&lt;b&gt;" in page and "R = +0.75 nats" in page


def test_a_directory_of_neither_kind_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        report.main(tmp_path)
    assert stop.value.code == 2 and str(tmp_path) in capsys.readouterr().err

