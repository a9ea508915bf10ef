"""Bad input: one clear sentence, exit code 2, before any weights load; and nothing half-written is taken for whole."""
import json
import shutil

import pytest
from conftest import run

import common
from engine import checkpoints, ranks
import eval as judge
from experiments.toy import SHIPPED_PAIR, worked_digit_accuracy
import stage1_grpo
import stage3_kl
import stage4_distill


@pytest.fixture(autouse=True)
def no_weights_load(monkeypatch, request):
    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded before the input was checked")
    if "loads" not in request.keywords:
        monkeypatch.setattr(common, "load_model", refuse)


@pytest.fixture
def refused(capsys):
    """Run a script that must refuse; -> its one sentence."""
    def check(module, *flags) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run(module, *flags)
        assert stop.value.code == 2
        sentence = capsys.readouterr().err
        assert sentence.startswith("error: ") and sentence.count("\n") == 1
        return sentence
    return check


def grpo(toy, out, **changes):
    flags = {"--model": toy / "teacher", "--problems": toy / "few_train.jsonl", "--out": out, "--max-new-tokens": 16,
             "--max-steps": 1, "--prompts-per-step": 2, "--steps-per-rollout": 1}
    flags |= {f"--{key.replace('_', '-')}": value for key, value in changes.items()}
    return [part for pair in flags.items() for part in pair]


@pytest.mark.parametrize("content, sentence", [
    (None, "no such file"), ("", "holds no problems"), ("\n\n", "holds no problems"),
    ('{"problem": "1=", "answer": "1"}\n\n{"problem": "2="}\n', "line 3: no answer"),
    ('{"problem": "1=", "answer": "1"}\n{"problem": ', "line 2: not JSON"),
    ('\udcff\n', "line 1: not JSON"),                   # a byte that is not UTF-8
    ('{"answer": "1"}\n', "line 1: no text"), ("[1]\n", "line 1: one JSON object"),
    ('{"question": "1=", "answer": "so it is ####  "}\n', "line 1: no answer")])
def test_problem_files(toy, tmp_path, refused, content, sentence):
    file = tmp_path / "problems.jsonl"
    if content is not None:
        file.write_text(content, errors="surrogateescape")
    told = refused(stage1_grpo, *grpo(toy, tmp_path / "run", problems=file))
    assert sentence in told and "problems.jsonl" in told
    assert not (tmp_path / "run").exists()


def test_rows_as_users_have_them(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"question": "Q", "answer": "6 * 2 = 12\n#### 1,200"}, {"problem": "P", "answer": 7, "level": 3, "subject": "Algebra"},
            {"problem": "A", "solution": "…", "answer": "\\frac{1}{2}", "unique_id": "x"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    problems = common.load_problems(file)
    assert [problem.answer for problem in problems] == ["1,200", "7", "\\frac{1}{2}"]
    assert problems[1].tags == {"level": 3, "subject": "Algebra"}


def test_problems_without_answers_serve_where_no_label_is_used(toy, tmp_path):
    (tmp_path / "plain.jsonl").write_text('{"problem": "3491827546="}\n')
    assert common.load_problems(tmp_path / "plain.jsonl", need_answers=False)[0].answer is None


def test_model_directories(toy, tmp_path, refused, copy_of):
    assert "config.json is missing" in refused(stage1_grpo, *grpo(toy, tmp_path / "run", model=tmp_path))
    without_tokenizer = copy_of(toy / "teacher", "without_tokenizer")
    (without_tokenizer / "tokenizer.json").unlink()
    assert "no tokenizer" in refused(stage1_grpo, *grpo(toy, tmp_path / "run", model=without_tokenizer))
    pickled = copy_of(toy / "teacher", "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "a pickle is never loaded" in refused(stage1_grpo, *grpo(toy, tmp_path / "run", model=pickled))


def test_group_of_one(toy, tmp_path, refused):
    assert "--samples-per-prompt: 1: give 2 or more" in refused(stage1_grpo, *grpo(toy, tmp_path / "run", samples_per_prompt=1))


def test_evaluation_without_problems(toy, tmp_path, refused):
    assert "--eval-problems" in refused(stage1_grpo, *grpo(toy, tmp_path / "run", eval_every=2))
    flags = [*pair(toy, tmp_path / "run", toy / "student", toy / "teacher"), "--eval-every", 2]
    assert "--eval-problems" in refused(stage4_distill, *flags)


def test_prompt_longer_than_the_context(toy, tmp_path, refused):
    (tmp_path / "long.jsonl").write_text('{"problem": "1=", "answer": "1"}\n{"problem": "' + "7" * 120 + '=", "answer": "1"}\n')
    told = refused(stage1_grpo, *grpo(toy, tmp_path / "run", problems=tmp_path / "long.jsonl"))
    assert "line 2" in told and "121 tokens" in told and "128" in told


def pair(toy, out, student, teacher):
    return ["--student", student, "--teacher", teacher, "--problems", toy / "few_train.jsonl", "--out", out, "--max-new-tokens", 16]


def test_pairs_that_do_not_fit(toy, tmp_path, refused, copy_of):
    swapped = copy_of(toy / "teacher", "swapped")
    text = (swapped / "tokenizer.json").read_text().replace('"0":5', '"0":-1').replace('"0": 5', '"0": -1')
    text = text.replace('"1":6', '"1":5').replace('"1": 6', '"1": 5').replace('"0":-1', '"0":6').replace('"0": -1', '"0": 6')
    (swapped / "tokenizer.json").write_text(text)
    told = refused(stage4_distill, *pair(toy, tmp_path / "run", toy / "student", swapped))
    assert "different vocabularies" in told and "swapped" in told
    other_end = copy_of(toy / "teacher", "other_end", generation_config={"eos_token_id": 4}, config={"eos_token_id": 4},
                        tokenizer_config={"eos_token": "}"})
    told = refused(stage4_distill, *pair(toy, tmp_path / "run", toy / "student", other_end))
    assert "[1]" in told and "[4]" in told


def finished_run(toy, out):
    """A run directory as stage 1 leaves it."""
    (out / "model").parent.mkdir(parents=True)
    shutil.copytree(toy / "teacher", out / "model")
    (out / "args.json").write_text(json.dumps({"args": {}, "parents": {}, "world_size": 1}))
    (out / "DONE").write_text("{}")
    return out


@pytest.mark.parametrize("as_model_dir", [False, True])
def test_parent_without_done(toy, tmp_path, refused, as_model_dir):
    run_dir = finished_run(toy, tmp_path / "parent")
    (run_dir / "DONE").unlink()
    told = refused(stage1_grpo, *grpo(toy, tmp_path / "run", model=run_dir / "model" if as_model_dir else run_dir))
    assert "no DONE" in told and "parent" in told


def test_parent_whose_certificate_failed(toy, tmp_path, refused):
    run_dir = finished_run(toy, tmp_path / "parent")
    (run_dir / "certificate.json").write_text('{"passed": false}')
    assert "--allow-failed-certificate" in refused(stage4_distill, *pair(toy, tmp_path / "run", run_dir, toy / "teacher"))


@pytest.mark.loads
def test_out_of_another_run(toy, tmp_path, refused):
    run(stage1_grpo, *grpo(toy, tmp_path / "run"))
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    told = refused(stage1_grpo, *grpo(toy, tmp_path / "run", lr=0.5, seed=3))
    assert "--lr: 1e-06 there, 0.5 now" in told and "--seed: 0 there, 3 now" in told
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert "not of a run" in refused(stage1_grpo, *grpo(toy, tmp_path / "mine"))
    assert "does not delete" in refused(stage1_grpo, *grpo(toy, tmp_path / "mine"), "--overwrite")
    assert (tmp_path / "mine" / "thesis.tex").is_file() and (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.loads
def test_the_same_command_again_does_nothing_and_overwrite_begins_anew(toy, tmp_path, capsys):
    run(stage1_grpo, *grpo(toy, tmp_path / "run"))
    stamp = (tmp_path / "run" / "DONE").stat().st_mtime_ns
    run(stage1_grpo, *grpo(toy, tmp_path / "run"))
    assert "is done already" in capsys.readouterr().out and (tmp_path / "run" / "DONE").stat().st_mtime_ns == stamp
    run(stage1_grpo, *grpo(toy, tmp_path / "run", lr=0.5), "--overwrite")
    assert (tmp_path / "run" / "DONE").stat().st_mtime_ns > stamp


def test_a_teacher_of_a_shorter_context(toy, tmp_path, refused, copy_of):
    short = copy_of(toy / "teacher", "short", config={"max_position_embeddings": 12})
    flags = [*pair(toy, tmp_path / "run", toy / "student", short), "--problems", toy / "few_train.jsonl", "--max-new-tokens", 16]
    assert f"exceed the 12 tokens of context of {short}" in refused(stage4_distill, *flags)


def test_flags_that_would_do_nothing_or_harm(toy, tmp_path, refused):
    assert "--dual-clip: 1: give a number above 1" in refused(stage1_grpo, *grpo(toy, tmp_path / "run", dual_clip=1))
    assert "go together" in refused(stage1_grpo, *grpo(toy, tmp_path / "run", eval_problems=toy / "few_test.jsonl"))
    assert "--top-p: 0: give a number above 0, 1 at most" in refused(judge, "--model", toy / "student", "--problems", toy / "few_test.jsonl", "--out", tmp_path / "run", "--top-p", 0)


def test_a_failure_of_one_rank_is_said_by_it(monkeypatch, capsys):
    monkeypatch.setattr(ranks, "rank", lambda: 3)
    monkeypatch.setattr(ranks.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit):
        ranks.fail("its disk is not there")
    assert capsys.readouterr().err == "error on rank 3: its disk is not there\n"


def test_rollouts_of_another_teacher(toy, tmp_path, refused, copy_of):
    shape = tmp_path / "shape"
    shape.mkdir()
    other = copy_of(toy / "teacher", "other", config={"rope_theta": 12345.0})
    parents = {"teacher": checkpoints.find_model(toy / "teacher")}
    (shape / "args.json").write_text(json.dumps({"parents": parents}))
    (shape / "DONE").write_text("{}")
    row = {"prompt_ids": [5, 2], "completion_ids": [6, 1], "finished": True, "reward": 1.0, "weight": 1.0}
    (shape / "rollouts.jsonl").write_text(json.dumps(row) + "\n")
    flags = [*pair(toy, tmp_path / "run", toy / "student", other), "--rollouts", shape / "rollouts.jsonl", "--max-kl", 1]
    assert "which is not --teacher" in refused(stage3_kl, *flags)
    (shape / "args.json").write_text(json.dumps({"parents": {}}))
    assert "is not a run of stage2_shape.py" in refused(stage3_kl, *flags)
    (shape / "args.json").write_text(json.dumps({"parents": parents}))
    flags[3] = toy / "teacher"
    (shape / "rollouts.jsonl").write_text(json.dumps(row | {"completion_ids": [6, 7]}) + "\n")
    assert "ends with id 7" in refused(stage3_kl, *flags)
    (shape / "rollouts.jsonl").write_text(json.dumps(row | {"completion_ids": [6] * 200 + [1]}) + "\n")
    assert "line 1: 203 tokens, more than the 128 of context" in refused(stage3_kl, *flags)
    (shape / "args.json").write_text(json.dumps({"parents": parents, "args": {"temperature": 0.5}}))
    assert "were sampled at --temperature 0.5" in refused(stage3_kl, *flags)
    (shape / "args.json").write_text(json.dumps({"parents": parents}))
    (shape / "rollouts.jsonl").write_text(json.dumps(row | {"completion_ids": [99, 1]}) + "\n")
    assert "beyond the student's vocabulary" in refused(stage3_kl, *flags)
    for text in ("", json.dumps(row | {"weight": 0})):
        (shape / "rollouts.jsonl").write_text(text)
        assert "holds no rollouts, or none whose weight" in refused(stage3_kl, *flags)
    for changes in ({"completion_ids": []}, {"completion_ids": "6 1"}, {"prompt_ids": [-1]}, {"weight": None}, {"weight": float("nan")}):
        (shape / "rollouts.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | changes) + "\n")
        assert "line 2: not a rollout" in refused(stage3_kl, *flags)
    (shape / "rollouts.jsonl").write_text(json.dumps(row) + "\n{x\n")
    assert "rollouts.jsonl, line 2: not JSON" in refused(stage3_kl, *flags)


@pytest.mark.loads
def test_shipped_pair_follows_the_rule():
    """q of the shipped student is in the band that experiments/toy.py states, and the pair is small enough to ship."""
    figures = json.loads((SHIPPED_PAIR / "pretraining.json").read_text())
    assert 0.86 <= figures["student"]["q_after_style"] <= 0.90 and figures["teacher"]["q"] >= 0.995
    assert sum(file.stat().st_size for file in SHIPPED_PAIR.rglob("*")) < 2 * 2**20
    tokenizer = common.load_tokenizer(SHIPPED_PAIR / "student")
    model = common.load_model(SHIPPED_PAIR / "student", tokenizer, "float32", "cpu")
    assert worked_digit_accuracy(model) == pytest.approx(figures["student"]["q_after_style"], abs=0.01)


@pytest.mark.parametrize("flag, value", [
    ("lr", -1), ("lr", "nan"), ("lr", "inf"), ("weight_decay", -1), ("weight_decay", "nan"), ("max_grad_norm", 0), ("max_grad_norm", "nan"),
    ("clip_low", -1), ("clip_low", 1.5), ("clip_high", "nan"), ("dual_clip", "nan"), ("kl_coef", -1), ("entropy_coef", "inf"), ("seed", -1)])
def test_a_number_that_means_nothing(toy, tmp_path, refused, flag, value):
    told = refused(stage1_grpo, *grpo(toy, tmp_path / "run", **{flag: value}))
    assert f"argument --{flag.replace('_', '-')}: {'-1' if value == -1 else ''}" in told and not (tmp_path / "run").exists()


def test_overwrite_never_deletes_what_the_run_reads(toy, tmp_path, refused):
    """--out is a prepared folder, or a run that is this one's own parent."""
    folder = tmp_path / "toy"
    shutil.copytree(toy, folder)
    before = sorted(folder.rglob("*"))
    for changes in ({"model": folder / "teacher", "problems": toy / "few_train.jsonl"}, {"problems": folder / "few_train.jsonl"},
                    {"eval_problems": folder / "few_test.jsonl", "eval_every": 1}):
        told = refused(stage1_grpo, *grpo(toy, folder, **changes), "--overwrite")
        assert f"--out {folder} holds {folder}/" in told and "which this run reads" in told
        assert [path for path in sorted(folder.rglob("*")) if path.name != ".lock"] == [path for path in before if path.name != ".lock"]
