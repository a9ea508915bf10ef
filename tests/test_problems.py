"""Problems as users have them: files, columns, golds, prompts; and that a run goes on only with what it began with."""
import argparse
import gzip
import io
import json
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import metrics, run

import common
import eval as judge
from experiments.toy import toy_tokenizer
import stage1_grpo
import stage2_shape
import stage3_kl
import stage4_distill
from engine import problems, ranks
from judge import answers

ROWS = [{"problem": "1 + 1?\n(dry)", "answer": "2"}, {"problem": "ein\u2028Halbes", "answer": "\\frac{1}{2}"}]


@pytest.fixture
def sentence(capsys):
    """Call what must refuse; -> its one sentence."""
    def check(function, *arguments) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            function(*arguments)
        told = capsys.readouterr().err
        assert stop.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1
        return told
    return check


def lines(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path: Path, rows) -> Path:
    path.write_text(lines(rows), encoding="utf-8")
    return path


def parquet(rows) -> bytes:
    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


def as_csv(rows) -> str:
    import csv

    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


# ---------------------------------------------------------------- files

FILES = {
    "a.jsonl": lines(ROWS).encode(), "bom.jsonl": b"\xef\xbb\xbf" + lines(ROWS).encode(), "array.json": json.dumps(ROWS, indent=1).encode(),
    "crlf.jsonl": lines(ROWS).replace("}\n", "}\r\n").encode(), "mac.jsonl": lines(ROWS).replace("}\n", "}\r").encode(),
    "lines.json": lines(ROWS).encode(), "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(), "noname": lines(ROWS).encode(),
    "t.csv": as_csv(ROWS).encode(), "bom.csv": b"\xef\xbb\xbf" + as_csv(ROWS).encode(), "T.CSV": as_csv(ROWS).encode(),
    "gaps.csv": b"\n\n" + as_csv(ROWS).replace("2\r\n", "2\r\n\r\n").encode() + b"\n\n", "p.parquet": parquet(ROWS)}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_problems(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(FILES[name], mtime=0))
    for path in (tmp_path / name, tmp_path / f"{name}.gz"):
        found = problems.load_problems(path)
        assert [(problem.text, problem.answer) for problem in found] == [tuple(row.values()) for row in ROWS]
        assert list(problems.contents(found)) == [str(path)]
        assert list(problems.contents(found).values()) == list(problems.contents(problems.load_problems([write(tmp_path / "same.jsonl", ROWS)])).values())


def test_several_files_one_after_the_other(tmp_path):
    paths = [write(tmp_path / f"{i}.jsonl", [{"problem": f"{i}?", "answer": i}]) for i in range(3)]
    found = problems.load_problems(paths)
    assert [problem.text for problem in found] == ["0?", "1?", "2?"] and found[2].source == f"{paths[2]}, line 1"
    assert list(problems.contents(found)) == list(map(str, paths))


def twice() -> bytes:
    """Parquet with two columns of one name."""
    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["p"])] * 2 + [pyarrow.array(["1"])], names=["problem", "problem", "answer"]), stream)
    return stream.getvalue()


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("problems.jsonl", lines(ROWS))
    return stream.getvalue()


@pytest.mark.parametrize("name, content, told", [
    ("a.zip", zipped(), "a zip archive or a spreadsheet"), ("a.xlsx", zipped(), "spreadsheet"), ("a.jsonl", zipped(), "zip archive"),
    ("a.pdf", b"%PDF-1.7\n...", "a PDF"), ("a.jsonl", b"\n<!DOCTYPE html><html>", "HTML"), ("a.parquet", b"<html>", "HTML"),
    ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ("a.pkl", pickle.dumps(ROWS), "a pickle, which is never loaded"), ("a.jsonl", pickle.dumps(ROWS, 2), "never loaded"),
    ("a.arrow", b"ARROW1\0\0", "an Arrow file"), ("a.txt", b"What is 1 + 1?\n", "plain text"), ("a.parquet", b"\1\0\2", "binary data"),
    ("a.csv", "problem,answer\n1,2\n".encode("utf-16"), "UTF-16"), ("a.jsonl.zst", b"\x28\xb5\x2f\xfd123", "zstd"),
    ("a.jsonl.gz", gzip.compress(lines(ROWS).encode(), mtime=0)[:-9], "cannot be read"), ("a.gz", b"\x1f\x8b\x08nonsense-----", "cannot be read"),
    ("a.parquet", twice(), "a name stands twice"), ("a.gz", gzip.compress(gzip.compress(lines(ROWS).encode(), mtime=0), mtime=0), "gzipped twice"),
    ("a.parquet", parquet(ROWS)[:-20], "this parquet file cannot be read"), ("a.jsonl", b"", "holds no problems"),
    ("a.csv", b"problem,answer\n", "holds no problems"), ("a.json", b"[]", "holds no problems"), ("a.json", b"[{},]", "line 1: not JSON"),
    ("a.json", b'[\n{"problem": "1"},\n{"problem" "2"}]', "line 3: not JSON"), ("a.json", b'"text"', "one JSON str"),
    ("a.json", b"[1]", "item 1: one JSON object"), ("a.csv", b"problem,answer\n1,2,3\n", "line 2: 3 cells"),
    ("a.csv", b'problem,answer\n"1\n\n?",2\n"open,2\n', "line 5: not CSV"), ("a.csv", b"problem,answer\ncaf\xe9,2\n", "line 2: not UTF-8"),
    ("a.csv", b"problem;answer\n1;2\n", "columns: problem;answer"), ("a.jsonl", b'{"problem": "1", "problem": "2"}\n', "stands twice"),
    ("a.csv", b"problem,Problem,answer\n1,2,3\n", "several columns are named `problem`")])
def test_a_file_of_another_kind_is_named(tmp_path, sentence, name, content, told):
    (tmp_path / name).write_bytes(content)
    words = sentence(problems.load_problems, tmp_path / name)
    assert told in words and name in words


def test_no_file_and_a_directory(tmp_path, sentence):
    assert "no such file" in sentence(problems.load_problems, tmp_path / "none.jsonl")
    assert "is a directory" in sentence(problems.load_problems, tmp_path)


def test_parquet_without_pyarrow(tmp_path, sentence, monkeypatch):
    (tmp_path / "p.parquet").write_bytes(parquet(ROWS))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in sentence(problems.load_problems, tmp_path / "p.parquet")


# ---------------------------------------------------------------- columns and golds


def verl(text, gold, **more) -> dict:
    return {"prompt": [{"role": "user", "content": text}], "reward_model": {"ground_truth": gold, "style": "rule"}, **more}


@pytest.mark.parametrize("row, text, answer", [
    ({"Question": "q", "ANSWER": 7}, "q", "7"), ({"problem": "p", "answer": 0.5}, "p", "0.5"), ({"problem": "p", "answer": 0}, "p", "0"),
    ({"problem": "p", "answer": ["3"]}, "p", "3"), ({"problem": "p", "answer": "6 * 2\n#### 1,200"}, "p", "1,200"), ({"problem": "p", "answer": "#### 5\n\n(checked)"}, "p", "5"),
    ({"problem": "p", "solution": "first \\boxed{1}, then \\boxed{\\frac{1}{2}}."}, "p", "\\frac{1}{2}"),
    ({"problem": "p", "solution": "so\n#### 5", "answer": None}, "p", "5"), ({"problem": "p", "answer": "2", "solution": "\\boxed{3}"}, "p", "2"),
    (verl("v", "34"), "v", "34"), (verl("v", 34), "v", "34"), (verl("v", ["34"]), "v", "34"), (verl("v", "34", problem="p"), "p", "34"),
    ({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "answer": "1"}, "u", "1")])
def test_columns(tmp_path, row, text, answer):
    problem, = problems.load_problems(write(tmp_path / "a.jsonl", [row]))
    assert (problem.text, problem.answer) == (text, answer)


def test_verls_parquet_and_tags(tmp_path):
    rows = [verl("v", "34", level="Level 5", type="Algebra", id=f"aime-{i}", data_source="x", Subject=None) for i in range(3)]
    (tmp_path / "verl.parquet").write_bytes(parquet(rows))
    found = problems.load_problems(tmp_path / "verl.parquet")
    assert [problem.tags for problem in found] == [{"id": f"aime-{i}", "level": "Level 5", "type": "Algebra"} for i in range(3)]
    assert found[2].source.endswith("verl.parquet, row 3")


@pytest.mark.parametrize("gold", [["3", "4"], [], [["3"]], {"value": 3}, True, False, float("nan"), float("inf"), "nan", "None", "null", [True]])
def test_a_gold_that_is_no_text_or_number_is_refused(tmp_path, sentence, gold):
    for row in ({"problem": "p", "answer": gold, "solution": "\\boxed{1}"}, verl("p", gold)):
        words = sentence(problems.load_problems, write(tmp_path / "a.jsonl", [ROWS[0], row]))
        assert "a.jsonl, line 2: the answer is" in words


@pytest.mark.parametrize("row, told", [
    ({"text": "p", "gold": "1"}, "no text under `problem` or `question`, nor as the user's message under `prompt` (columns: text, gold)"),
    ({"problem": "p", "gold": "1"}, "(columns: problem, gold)"), ({"problem": "p", "answer": ""}, "no answer"), ({"problem": " ", "answer": "1"}, "no text"),
    ({"problem": 5, "answer": "1"}, "no text"), ({"problem": "p", "solution": "it is 5"}, "no answer"),
    ({"prompt": "p", "answer": "1"}, "`prompt` holds chat messages"), ({"prompt": [], "answer": "1"}, "one of the user"),
    ({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "answer": "1"}, "none of an assistant"),
    ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "1"}, "parts of ['image']; only parts of text"),
    ({"prompt": [{"role": "user", "content": "a"}, {"role": ["tool"], "content": "b"}], "answer": "1"}, "one of the user"),
    ({"problem": "half \ud83d", "answer": "1"}, "surrogate")])
def test_what_is_missing_is_named_with_the_columns_found(tmp_path, sentence, row, told):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert told in sentence(problems.load_problems, tmp_path / "a.jsonl")


def test_the_same_problem_has_the_same_id_in_every_file(tmp_path):
    found = problems.load_problems(write(tmp_path / "a.jsonl", [{"problem": text, "answer": 1} for text in ("a  b\n", "a b", "ab")]))
    assert found[0].id == found[1].id != found[2].id and found[0].text == "a  b\n"


# ---------------------------------------------------------------- golds that the judge cannot read


def test_readable():
    for gold in ("7", "1,200", "\\frac{1}{2}", "x^2+1", "(1,2]", "\\text{June}", "A"):
        assert answers.is_readable(gold), gold
    for gold in ("", " ", "7" * 5000, "\\frac{1}{", "['3']", "\\begin{foo}", "see page 3 (b) of ["):
        assert not answers.is_readable(gold), gold


def test_asking_is_counted_as_no_comparison():
    before = dict(answers.counts)
    assert not answers.is_readable("\\frac{1}{")
    assert answers.counts == before


def test_unreadable_golds_are_named_and_left_out_on_demand(tmp_path, capsys, sentence):
    rows = [{"problem": f"{i}", "answer": gold} for i, gold in enumerate(("7", "\\frac{1}{", "x^2", "['3']"))]
    found = problems.load_problems(write(tmp_path / "a.jsonl", rows))
    assert problems.with_readable_golds(found, skip=False) == found
    told = capsys.readouterr().out
    assert "2 of 4 golds cannot be read" in told and "a.jsonl, line 2: " in told and "a.jsonl, line 4: " in told and told.count("\n") == 1
    assert [problem.answer for problem in problems.with_readable_golds(found, skip=True)] == ["7", "x^2"]
    assert problems.with_readable_golds(found[::2], skip=True) == found[::2] and problems.with_readable_golds([], skip=True) == []
    assert "leaves no problem" in sentence(problems.with_readable_golds, found[1::2], True)


def test_a_problem_with_two_answers_is_named(tmp_path, capsys):
    rows = [{"problem": text, "answer": gold} for text, gold in (("a b", "7"), ("c", "1"), ("a  b", "8"), ("c", "1"), ("a b", "9"))]
    assert len(problems.load_problems(write(tmp_path / "a.jsonl", rows))) == 5
    told = capsys.readouterr().out
    assert "twice with different answers, 2 times" in told and "line 1: '7' and " in told and "line 3: '8'" in told and "line 2" not in told
    problems.load_problems(write(tmp_path / "a.jsonl", rows), need_answers=False)
    assert capsys.readouterr().out == ""


def test_stage_1_names_them_before_the_first_step(toy, tmp_path, capsys):
    rows = [json.loads(line) for line in (toy / "few_train.jsonl").read_text().splitlines()[:4]]
    write(tmp_path / "a.jsonl", [*rows, {"problem": "12=", "answer": "\\frac{1}{"}])
    flags = ["--model", toy / "student", "--problems", tmp_path / "a.jsonl", "--max-new-tokens", 4, "--max-steps", 1, "--prompts-per-step", 5,
             "--steps-per-rollout", 1, "--samples-per-prompt", 2]
    run(stage1_grpo, *flags, "--out", tmp_path / "with")
    told = capsys.readouterr().out
    assert "1 of 5 golds" in told and "line 5" in told and told.index("golds") < told.index("first prompt")
    run(stage1_grpo, *flags, "--out", tmp_path / "without", "--skip-unreadable")
    trained = [json.loads((tmp_path / name / "trained_problems.json").read_text()) for name in ("with", "without")]
    assert len(trained[0]) == 5 and len(trained[1]) == 4


# ---------------------------------------------------------------- prompts

TEMPLATE = "{{ '9' if enable_thinking else '' }}{{ shift if shift is defined else '' }}={{ messages[0].content.replace('\\n', '') }}="


def with_template(copy_of, source: Path, name: str, template: str = TEMPLATE) -> Path:
    return copy_of(source, name, tokenizer_config={"chat_template": template})


def flags_of(toy, out, **changes) -> list:
    """Stage 4's, or, with a teacher alone, stage 1's."""
    flags = {"--problems": toy / "few_train.jsonl", "--out": out, "--max-new-tokens": 4, "--max-steps": 1,
             "--rollouts-per-step" if "rollouts" in changes else "--prompts-per-step": 2}
    flags |= {f"--{key.replace('_', '-')}": value for key, value in changes.items()}
    return [part for pair in flags.items() for part in pair]


def prompt_of(tokenizer, **changes) -> str:
    args = argparse.Namespace(**{"instruction": None, "enable_thinking": False, "template_args": None} | changes)
    found = problems.Problem("", "12", "3", "f", "line 1", {})
    return tokenizer.decode(problems.encode_prompts(tokenizer, [found], args)[0])


def test_instruction_with_and_without_a_template(sentence):
    tokenizer = toy_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = __import__("tokenizers").pre_tokenizers.Split(__import__("tokenizers").Regex(r"\n"), "removed")
    tokenizer.backend_tokenizer.add_tokens(["12", "34", "="])
    assert prompt_of(tokenizer) == "12", "a base model's default: the text alone"
    assert prompt_of(tokenizer, instruction="34") == "1234", "used where it was given"
    tokenizer.chat_template = TEMPLATE
    assert prompt_of(tokenizer, instruction="34") == "=1234=" and prompt_of(tokenizer, instruction="") == "=12="
    assert prompt_of(tokenizer, instruction="", template_args={"shift": "34"}) == "34=12="


@pytest.mark.parametrize("call", ['strftime_now("%d%m%Y")', "strftime_now( '%d%m%Y' )"])
def test_a_template_is_told_the_same_date_every_day(call):
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = "{% set today = " + call + " if strftime_now is defined %}{{ today }}={{ messages[0].content[:2] }}="
    assert prompt_of(tokenizer) == "01012025=12=" and call in tokenizer.chat_template, "a model is saved with its own template"


def test_a_template_that_loses_the_problem(toy, tmp_path, copy_of, sentence):
    """One for messages of parts goes over the letters of a text, none of which is a part."""
    parts = "={% for part in messages[0].content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}="
    model = with_template(copy_of, toy / "teacher", "parts", parts)
    assert "the same prompt of every problem" in sentence(run, stage1_grpo, *flags_of(toy, tmp_path / "run", model=model, samples_per_prompt=2))


def test_the_context_under_the_name_that_the_class_has_for_it(toy, tmp_path, sentence):
    import transformers
    config = transformers.GPT2Config(vocab_size=15, n_embd=8, n_layer=1, n_head=1, n_positions=40, eos_token_id=1, bos_token_id=None)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    toy_tokenizer().save_pretrained(tmp_path / "gpt2")
    flags = ["--model", tmp_path / "gpt2", "--problems", toy / "few_test.jsonl", "--samples", 1, "--num-problems", 1, "--out", tmp_path / "out"]
    assert "exceed the 40 tokens of context" in sentence(run, judge, *flags, "--max-new-tokens", 39)
    run(judge, *flags)
    assert json.loads((tmp_path / "out" / "args.json").read_text())["args"]["max_new_tokens"] == 40 - 11


def test_template_arguments(toy, tmp_path, copy_of, sentence):
    chat = with_template(copy_of, toy / "teacher", "chat")
    flags = [*flags_of(toy, tmp_path / "run", model=chat, samples_per_prompt=2, instruction=""), "--template-args"]
    for text in ("{shift: 7}", "[1]", ""):
        assert f"--template-args {text!r}: a JSON object is expected" in sentence(run, stage1_grpo, *flags, text)
    assert "no chat template that asks for shifft" in sentence(run, stage1_grpo, *flags, '{"shifft": "7"}')
    flags[1] = toy / "few_train.jsonl"
    assert "makes no prompt of it" in sentence(run, stage1_grpo, *flags, '{"messages": 1}')
    plain = [*flags_of(toy, tmp_path / "run", model=toy / "teacher", samples_per_prompt=2)]
    assert "no chat template" in sentence(run, stage1_grpo, *plain, "--template-args", '{"shift": "7"}')
    assert "--enable-thinking" in sentence(run, stage1_grpo, *plain, "--enable-thinking")
    assert not (tmp_path / "run").exists()
    run(stage1_grpo, *flags, '{"shift": "7"}')
    record = json.loads((tmp_path / "run" / "args.json").read_text())
    assert record["args"]["template_args"] == {"shift": "7"}
    assert json.loads((tmp_path / "run" / "samples.jsonl").read_text().splitlines()[0])["prompt"].startswith("7=")


def test_a_template_that_refuses_and_a_tokenizer_that_cannot(toy, tmp_path, copy_of, sentence):
    angry = with_template(copy_of, toy / "teacher", "angry", "{{ raise_exception('no\nchat') }}")
    words = sentence(run, stage1_grpo, *flags_of(toy, tmp_path / "run", model=angry, samples_per_prompt=2))
    assert "few_train.jsonl, line 1" in words and "no chat" in words
    write(tmp_path / "letters.jsonl", [{"problem": "12=", "answer": "1"}, {"problem": "abc", "answer": "1"}])
    words = sentence(run, stage1_grpo, *flags_of(toy, tmp_path / "run", model=toy / "teacher", samples_per_prompt=2, problems=tmp_path / "letters.jsonl"))
    assert "letters.jsonl, line 2" in words


def shaped(toy, tmp_path, teacher, *flags) -> Path:
    run(stage2_shape, "--teacher", teacher, "--reference", teacher, "--problems", toy / "few_train.jsonl", "--num-problems", 4, "--samples-per-prompt", 2,
        "--certify-problems", toy / "few_heldout.jsonl", "--num-certify-problems", 4, "--max-new-tokens", 4, "--allow-failed-certificate", "--out", tmp_path / "shape", *flags)
    return tmp_path / "shape" / "rollouts.jsonl"


def test_teacher_and_student_must_render_alike(toy, tmp_path, copy_of, sentence):
    teacher, student = with_template(copy_of, toy / "teacher", "teacher"), with_template(copy_of, toy / "student", "student")
    other = with_template(copy_of, toy / "student", "other", TEMPLATE + "=")
    pair = {"teacher": teacher, "student": student, "instruction": ""}
    assert "to different ids" in sentence(run, stage4_distill, *flags_of(toy, tmp_path / "run", **pair | {"student": other}))
    run(stage1_grpo, *flags_of(toy, tmp_path / "rl", model=teacher, samples_per_prompt=2, steps_per_rollout=1, instruction=""))
    assert "--teacher" in sentence(shaped, toy, tmp_path, tmp_path / "rl", "--reference", teacher, "--instruction", "", "--enable-thinking")
    rollouts = shaped(toy, tmp_path, teacher, "--instruction", "", "--enable-thinking")
    pair |= {"allow_failed_certificate": None}
    flags = [flag for flag in flags_of(toy, tmp_path / "bridge", **pair, rollouts=rollouts, max_kl=100) if flag is not None]
    words = sentence(run, stage3_kl, *flags)
    assert "--rollouts" in words and "'9=1='" in words and "'=1='" in words
    assert "to different ids" in sentence(run, stage3_kl, *["--enable-thinking" if flag is None else flag for flag in flags], "--student", other, "--enable-thinking")
    run(stage3_kl, *flags, "--enable-thinking")
    bridged = [flag for flag in flags_of(toy, tmp_path / "run", **pair | {"student": tmp_path / "bridge"}) if flag is not None]
    assert "--student" in sentence(run, stage4_distill, *bridged)
    run(stage4_distill, *bridged, "--enable-thinking")


# ---------------------------------------------------------------- identity


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def evaluation(toy, tmp_path, model) -> list:
    file = tmp_path / "mine.jsonl"
    if not file.exists():
        file.write_text((toy / "few_test.jsonl").read_text())
    return ["--model", model, "--problems", file, "--samples", 1, "--max-new-tokens", 4, "--instruction", "", "--out", tmp_path / "out"]


def edit_a_gold(tmp_path, model):
    rows = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
    write(tmp_path / "mine.jsonl", [*rows[:-1], rows[-1] | {"answer": "00"}])


def delete_a_problem(tmp_path, model):
    write(tmp_path / "mine.jsonl", [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()[1:]])


@pytest.mark.parametrize("change, named", [
    (edit_a_gold, "mine.jsonl"), (delete_a_problem, "mine.jsonl"),
    (lambda tmp_path, model: replace(model / "tokenizer_config.json", "messages[0]", "'5' + messages[0]"), "rendering"),
    (lambda tmp_path, model: replace(model / "generation_config.json", '"eos_token_id": 1', '"eos_token_id": [1, 4]'), "end tokens"),
    (lambda tmp_path, model: replace(model / "tokenizer_config.json", '"eos_token"', '"clean_up_tokenization_spaces": true, "eos_token"'), "tokenizer"),
    (lambda tmp_path, model: replace(model / "tokenizer.json", '"type": "Fuse"', '"type": "ByteFallback"'), "tokenizer")])
def test_a_run_goes_on_only_with_what_it_began_with(toy, tmp_path, copy_of, sentence, change, named):
    model = with_template(copy_of, toy / "student", "chat")
    flags = evaluation(toy, tmp_path, model)
    run(judge, *flags)
    (tmp_path / "out" / "DONE").unlink()
    change(tmp_path, model)
    words = sentence(run, judge, *flags)
    assert named in words and " there, " in words and "--overwrite" in words


def test_a_moved_file_is_the_same_file(toy, tmp_path, copy_of, capsys):
    model = with_template(copy_of, toy / "student", "chat")
    flags = evaluation(toy, tmp_path, model)
    run(judge, *flags)
    (tmp_path / "elsewhere").mkdir()
    rows = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
    (tmp_path / "elsewhere" / "other.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    (tmp_path / "mine.jsonl").unlink()
    model.rename(tmp_path / "elsewhere" / "chat")
    flags[1], flags[3] = tmp_path / "elsewhere" / "chat", tmp_path / "elsewhere" / "other.json.gz"
    run(judge, *flags)
    assert "is done already" in capsys.readouterr().out


def test_a_training_run_refuses_an_edited_problem_file(toy, tmp_path, sentence):
    """Else trained_problems.json would name problems that were not trained on, and C1 certify on some that were."""
    (tmp_path / "train.jsonl").write_text((toy / "few_train.jsonl").read_text())
    (tmp_path / "dev.jsonl").write_text((toy / "few_heldout.jsonl").read_text())
    flags = flags_of(toy, tmp_path / "run", model=toy / "student", problems=tmp_path / "train.jsonl", eval_problems=tmp_path / "dev.jsonl",
                     samples_per_prompt=2, steps_per_rollout=1, eval_every=1)
    run(stage1_grpo, *flags)
    (tmp_path / "run" / "DONE").unlink()
    delete_a_problem_of = (tmp_path / "dev.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "dev.jsonl").write_text("".join(delete_a_problem_of[1:]))
    assert "eval problems" in sentence(run, stage1_grpo, *flags)
    (tmp_path / "dev.jsonl").write_text("".join(delete_a_problem_of))
    (tmp_path / "train.jsonl").write_text((toy / "few_test.jsonl").read_text())
    assert "train.jsonl" in sentence(run, stage1_grpo, *flags)


def test_edited_rollouts_are_refused(toy, tmp_path, sentence):
    rollouts = shaped(toy, tmp_path, toy / "teacher")
    flags = [*flags_of(toy, tmp_path / "bridge", student=toy / "student", teacher=toy / "teacher", rollouts=rollouts, max_kl=100), "--allow-failed-certificate"]
    run(stage3_kl, *flags)
    rows = [json.loads(line) for line in rollouts.read_text().splitlines()]
    write(rollouts, [rows[0] | {"weight": 0.5}, *rows[1:]])
    assert "rollouts.jsonl" in sentence(run, stage3_kl, *flags)


@pytest.mark.parametrize("module", [stage1_grpo, stage2_shape, stage3_kl, stage4_distill, judge])
def test_several_files_of_problems_are_taken_everywhere(module):
    known = {stage1_grpo: "--model m", stage2_shape: "--teacher t --reference r --certify-problems c", stage3_kl: "--teacher t --student s --rollouts x --max-kl 1",
             stage4_distill: "--teacher t --student s", judge: "--model m"}[module]
    args = module.parse_args([*known.split(), "--problems", "a.jsonl", "b.csv", "--out", "o"])
    assert args.problems == [Path("a.jsonl"), Path("b.csv")] and args.instruction is None and args.template_args is None


# ---------------------------------------------------------------- completions that were cut


def test_a_completion_that_was_cut_is_wrong(toy, tmp_path, monkeypatch):
    """The raw teacher guesses, `\\boxed{18}`: three tokens to the box's end, and the fourth would have been the EOS."""
    monkeypatch.setattr(common, "grade", lambda text, gold: True)
    run(judge, "--model", toy / "student", "--problems", toy / "few_test.jsonl", "--samples", 4, "--max-new-tokens", 4, "--out", tmp_path / "eval")
    scores = json.loads((tmp_path / "eval" / "scores.json").read_text())
    assert scores["avg@4"]["value"] == 0 and scores["truncated_fraction"]["value"] == 1 and scores["maj@4"]["value"] == 0
    run(stage1_grpo, *flags_of(toy, tmp_path / "rl", model=toy / "student", samples_per_prompt=2, steps_per_rollout=1))
    assert metrics(tmp_path / "rl")[0]["reward_mean"] == 0 and metrics(tmp_path / "rl")[0]["truncated_fraction"] == 1
    rows = [json.loads(line) for line in shaped(toy, tmp_path, toy / "teacher").read_text().splitlines()]
    assert rows and all(row["reward"] is None and not row["finished"] for row in rows), "no label was read for these"
    assert json.loads((tmp_path / "shape" / "certificate.json").read_text())["accuracy"] == 0


def test_graded_rows_that_were_cut_are_wrong(tmp_path):
    rows = [{"problem": "p", "answer": "3", "completions": ["\\boxed{3}", "\\boxed{3}"], "finished": [True, False]},
            {"problem": "q", "answer": "3", "completion": "\\boxed{3}", "finished": False}, {"problem": "q", "answer": "3", "completion": "\\boxed{3}", "finished": True}]
    run(judge, "--grade", write(tmp_path / "g.jsonl", rows), "--out", tmp_path / "out")
    assert judge.joined([judge.graded_row(row, "1", "f") for row in (rows[1], {name: rows[2][name] for name in ("problem", "answer", "completion")})]
                        )["finished"] == [False, True], "a row that does not say so was not cut; the other one was"
    kept = [json.loads(line) for line in (tmp_path / "out" / "completions.jsonl").read_text().splitlines()]
    assert [row["verdicts"] for row in kept] == [[True, False], [False, True]]
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["truncated_fraction"]["value"] == 0.5 and scores["maj@2"]["value"] == 1, "what was cut has no vote"


# ---------------------------------------------------------------- joins


def test_rows_are_joined_by_problem_and_gold_not_by_id(tmp_path):
    rows = [{"id": 0, "problem": "aime?", "answer": "3", "completion": "\\boxed{3}"}, {"id": 0, "problem": "amc?", "answer": "4", "completion": "\\boxed{4}"},
            {"id": 0, "problem": "aime?", "answer": "3", "completion": "\\boxed{5}"}, {"id": 9, "problem": "amc?", "answer": "4", "completion": "no"},
            {"id": 1, "answer": "5", "completion": "\\boxed{5}"}, {"id": 1, "answer": "6", "completion": "\\boxed{6}"}, {"id": 1, "answer": "6", "completion": "no"},
            {"answer": "5", "completion": "\\boxed{5}"}, {"answer": "5", "completion": "\\boxed{5}"}]
    joined = judge.grade_rows(judge.read_graded_rows(write(tmp_path / "g.jsonl", rows)))
    assert [row["verdicts"] for row in joined] == [[True, False], [True, False], [True], [True, False], [True], [True]]


@pytest.mark.parametrize("row, told", [
    ({"completions": [], "answer": "1"}, "`completions`"), ({"completion": "x", "answer": ["1", "2"]}, "the answer is"), ({"completion": "x", "answer": True}, "the answer is"),
    ({"completions": ["x"], "answer": "1", "finished": [True, True]}, "2 finished for 1 completions"), ({"completion": "x", "answer": "1", "finished": "yes"}, "`finished`")])
def test_a_graded_row_that_cannot_be_right(tmp_path, sentence, row, told):
    words = sentence(judge.read_graded_rows, write(tmp_path / "g.jsonl", [{"completion": "x", "answer": "1"}, row]))
    assert told in words and "line 2" in words


def test_completions_as_csv_and_parquet(tmp_path):
    rows = [{"problem": "p", "answer": "3", "completion": f"\\boxed{{{i}}}"} for i in (3, 4)]
    (tmp_path / "g.csv").write_text(as_csv(rows))
    (tmp_path / "g.parquet").write_bytes(parquet(rows))
    for name in ("g.csv", "g.parquet"):
        assert [row["verdicts"] for row in judge.grade_rows(judge.read_graded_rows(tmp_path / name))] == [[True, False]]


# ---------------------------------------------------------------- --out and the environment


def test_an_out_that_cannot_be_made(toy, tmp_path, sentence):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/nothing/run")):
        words = sentence(run, stage1_grpo, *flags_of(toy, out, model=toy / "student", samples_per_prompt=2))
        assert str(out) in words and "cannot be made" in words and "make room" not in words
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("content", ["{", "[]", '{"lr": 0.1}'])
def test_an_out_with_the_args_json_of_another_program(toy, tmp_path, sentence, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "args.json").write_text(content)
    for more in ((), ("--overwrite",)):
        words = sentence(run, stage1_grpo, *flags_of(toy, tmp_path / "run", model=toy / "student", samples_per_prompt=2), *more)
        assert "holds files that are not of a run" in words
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["args.json"]


@pytest.mark.parametrize("environment, told", [
    ({"RANK": "0"}, "WORLD_SIZE, MASTER_ADDR, MASTER_PORT"), ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "1"}, "not MASTER_ADDR"),
    ({"RANK": "x", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "RANK=x"),
    ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "RANK=2 in the environment is not below WORLD_SIZE=2")])
def test_rank_without_torchrun(monkeypatch, sentence, environment, told):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    words = sentence(ranks.setup_distributed)
    assert told in words and "torchrun" in words
