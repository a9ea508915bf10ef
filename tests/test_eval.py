"""The evaluator as a tool: figures, files of other engines, interruption, the page of failures."""
import json

import pytest
from conftest import run

import common
import eval as judge


def test_pass_at_k_and_majority_by_hand():
    assert judge.pass_at_k(4, 1, 1) == 0.25 and judge.pass_at_k(4, 1, 4) == 1
    assert judge.pass_at_k(4, 2, 2) == pytest.approx(1 - 1 / 6)
    assert judge.majority_is_right(["1/2", "3", "0.5", None], [True, False, True, False]) == 1, "1/2 and 0.5 vote together"
    assert judge.majority_is_right(["3", "3", "0.5"], [False, False, True]) == 0
    assert judge.majority_is_right([None, None], [False, False]) == 0


def rows_of(verdicts):
    return [{"id": str(i), "completions": [""] * len(v), "verdicts": v, "lengths": [1] * len(v), "finished": [True] * len(v)}
            for i, v in enumerate(verdicts)]


def test_two_intervals():
    """All problems alike: no spread over problems; each always or never right: none over samples."""
    alike = judge.score(rows_of([[True, False, True, False]] * 20))["avg@4"]
    assert alike["interval_over_problems"] == [0.5, 0.5]
    assert alike["interval_over_samples"][0] < 0.5 < alike["interval_over_samples"][1]
    extreme = judge.score(rows_of([[True] * 4, [False] * 4] * 10))["avg@4"]
    assert extreme["interval_over_samples"] == [0.5, 0.5] and extreme["interval_over_problems"][0] < 0.5


def test_completions_of_another_engine(tmp_path, capsys):
    file = tmp_path / "theirs.jsonl"
    rows = [{"completion": "so\u2028\\boxed{\\frac12}", "answer": "0.5", "problem": "half?", "level": 1, "subject": "Algebra"},
            {"completion": r"so \boxed{<b>3}", "answer": "0.5", "problem": "half?", "level": 1, "subject": "Algebra"},
            {"completions": ["#### 7", "no idea \ud83d"], "answer": "3 + 4 = 7\n#### 7", "id": 9, "level": 2}]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8", errors="backslashreplace")
    run(judge, "--grade", file, "--out", tmp_path / "out")
    kept = [json.loads(line) for line in (tmp_path / "out" / "completions.jsonl").read_text().strip().split("\n")]
    assert [row["verdicts"] for row in kept] == [[True, False], [True, False]]
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["avg@2"]["value"] == 0.5 and scores["pass@2"]["value"] == 1 and "truncated_fraction" not in scores
    assert scores["by"]["level"] == {"1": {"problems": 1, "value": 0.5}, "2": {"problems": 1, "value": 0.5}}
    assert scores["by"]["subject"] == {"Algebra": {"problems": 1, "value": 0.5}} and scores["grader"]["without_answer"] == 1
    page = (tmp_path / "out" / "failures.html").read_text()
    assert "no answer found" in page and "&lt;b&gt;3" in page and "<b>3" not in page and "half?" in page
    run(judge, "--grade", tmp_path / "out" / "completions.jsonl", "--out", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "scores.json").read_text())["avg@2"] == scores["avg@2"], "our own file, judged again"


@pytest.mark.parametrize("line", ['{"completion": "x"}', '{"answer": "1"}', "[1]", "{", '{"completion": 5, "answer": "1"}',
                                  '{"completions": "abc", "answer": "1"}', '{"completion": "x", "answer": null}'])
def test_a_bad_row_is_named(tmp_path, capsys, line):
    (tmp_path / "theirs.jsonl").write_text('{"completion": "x", "answer": "1"}\n' + line + "\n")
    with pytest.raises(SystemExit) as stop:
        run(judge, "--grade", tmp_path / "theirs.jsonl", "--out", tmp_path / "out")
    assert stop.value.code == 2 and "theirs.jsonl, line 2" in capsys.readouterr().err


def test_model_or_file_but_not_both(toy, tmp_path, capsys):
    for flags in ((), ("--model", toy / "student"), ("--model", toy / "student", "--problems", "p", "--grade", "g")):
        with pytest.raises(SystemExit) as stop:
            run(judge, *flags, "--out", tmp_path / "out")
        assert stop.value.code == 2 and "--grade" in capsys.readouterr().err


def test_an_interrupted_evaluation_goes_on(toy, tmp_path, monkeypatch):
    flags = ("--model", toy / "student", "--problems", toy / "few_heldout.jsonl", "--samples", 4, "--batch-size", 16, "--max-new-tokens", 16)
    run(judge, *flags, "--out", tmp_path / "whole")
    sample, calls = common.sample, []

    def crash_at_the_third_batch(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(*args, **kwargs)

    monkeypatch.setattr(common, "sample", crash_at_the_third_batch)
    with pytest.raises(KeyboardInterrupt):
        run(judge, *flags, "--out", tmp_path / "broken")
    partial = tmp_path / "broken" / "partial_evaluation_rank0.jsonl"
    partial.write_bytes(partial.read_bytes() + b'[{"id": "torn')
    run(judge, *flags, "--out", tmp_path / "broken")
    assert len(calls) == 3 + 2, "of four batches two were done, and are not done again"
    assert (tmp_path / "whole" / "completions.jsonl").read_text() == (tmp_path / "broken" / "completions.jsonl").read_text()
    assert not partial.exists() and (tmp_path / "broken" / "DONE").is_file()
