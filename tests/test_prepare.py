"""Problems and base models: the toy task by hand, the pretraining texts, DAPO's parquet columns, MAWPS and its pair."""
import json
import re
import shlex
import shutil
import signal
from fractions import Fraction

import pytest
import torch
from conftest import change_scale, run, run_here
from safetensors.torch import load_file

import prepare
import reproduce
from engine import runs
from experiments import laptop, mawps, runner, toy as toy_world
from experiments.tables import SCALES, TABLES


def test_toy_problems_by_hand():
    """34 + 91 + 82 + 75 + 46, column by column without carries: 31 -> 1 and 18 -> 8."""
    for row in toy_world.toy_problems(50, seed=3):
        numbers = [row["problem"][i:i + 2] for i in range(0, 10, 2)]
        assert row["answer"] == "".join(str(sum(int(number[column]) for number in numbers) % 10) for column in (0, 1))
    assert toy_world.toy_problems(5, seed=3) == toy_world.toy_problems(9, seed=3)[:5]


def test_toy_texts_are_right_and_masked_to_the_completion():
    tokenizer = toy_world.toy_tokenizer()
    input_ids, mask = toy_world.toy_texts(200, 0.5, torch.Generator().manual_seed(0))
    for ids, kept in zip(input_ids, mask):
        problem, completion = tokenizer.decode(ids[:11]), tokenizer.decode(ids[kept])
        numbers = [problem[i:i + 2] for i in range(0, 10, 2)]
        answer = "".join(str(sum(int(number[column]) for number in numbers) % 10) for column in (0, 1))
        assert completion.endswith("\\boxed{" + answer + "}<eos>")
        working = completion.removesuffix("\\boxed{" + answer + "}<eos>")
        assert working in ("",) or (len(working) == 10 and working[:2] == problem[:2] and working[-2:] == answer)
    assert 0.35 < (mask.sum(1) > 10).float().mean() < 0.65


def test_tokenizer_gives_the_text_back(toy):
    tokenizer = toy_world.toy_tokenizer()
    text = "3491827546=3425077218\\boxed{18}"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text and len(tokenizer(text)["input_ids"]) == 11 + 10 + 4


def test_files_do_not_share_problems(toy):
    files = [{json.loads(line)["problem"] for line in (toy / f"{name}.jsonl").read_text().splitlines()} for name in ("train", "heldout", "test")]
    assert [len(file) for file in files] == [2048, 512, 256] and not (files[0] & files[1] | files[0] & files[2] | files[1] & files[2])


def test_dapo_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    head = "Solve the following math problem step by step. The last line should be of the form Answer: $Answer.\n\n"
    tail = '\n\nRemember to put your answer on its own line after "Answer:".'
    rows = [{"prompt": [{"role": "user", "content": f"{head}What is\n\n{i} + 1?{tail}"}],
             "reward_model": {"ground_truth": str(i + 1), "style": "rule"}, "data_source": "math_dapo"} for i in [*range(10), *range(10)]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "dapo.parquet")
    run(prepare, "dapo", "--parquet", tmp_path / "dapo.parquet", "--out", tmp_path / "dapo")
    train, heldout = ([json.loads(line) for line in (tmp_path / "dapo" / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "heldout"))
    assert len(train) == 8 and len(heldout) == 2
    assert sorted((row["problem"], row["answer"]) for row in train + heldout) == sorted((f"What is\n\n{i} + 1?", str(i + 1)) for i in range(10))


# ---------------------------------------------------------------- MAWPS and the laptop's pair

EQUATIONS = [("If 14 of 22 customers left and 4 sat at each table , how many tables ?", "X=((22.0-14.0)/4.0)", 2.0),
             ("Benny worked 3 hours for 6 days . How many hours ?", "x=3*6", "18"),
             ("A book is $ 2.50 . What do 4 books and a pen of $ 1 cost ?", "x=2.5*4+1", 11.0),
             ("7 = 3 and what ?", "4=X", 4.0), ("Three more than what is 7 ?", "7=3+x", 4.0),
             ("12 in all , 5 gone . How many left ?", "12-5=x", 7.0), ("Half a pie and none ?", "x=0.5*1", 0.5),
             ("One of us cannot count : 2 and 2 ?", "x=2+2", 5.0), ("Ten thirds , three times ?", "x=(10/3)*3", 10.0),
             ("Benny worked 3 hours for 6 days. How many hours?", "x=6*3", 18.0)]


def write_mawps(folder, form):
    """Ten rows as training file, as published or as JSON lines; other numbers in the other two files."""
    folder.mkdir(exist_ok=True)
    for name, file in mawps.MAWPS_FILES[form].items():
        keys = [("original_text", "equation", "ans"), ("problem", "equation", "answer")][form]
        extra = {"train": EQUATIONS, "heldout": [("What is 1 and 8 ?", "x=1+8", 9.0)] + EQUATIONS[5:6], "test": [("What is 2 and 8 ?", "x=2+8", 10.0)]}
        rows = [dict(zip(keys, (text, equation, answer if form == 0 else str(answer)))) for text, equation, answer in extra[name]]
        (folder / file).write_text(json.dumps(rows) if form == 0 else "".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("equation, lines, value", [
    ("X=((22.0-14.0)/4.0)", ["22 - 14 = 8", "8 / 4 = 2"], 2), ("x=48.5/2-0.25", ["48.5 / 2 = 24.25", "24.25 - 0.25 = 24"], 24),
    ("x = 2 + 3 * (7 - 4)", ["7 - 4 = 3", "3 * 3 = 9", "2 + 9 = 11"], 11), ("3-5+10=X", ["3 - 5 = -2", "-2 + 10 = 8"], 8),
    ("x=-2+0.1+0.2", ["-2 + 0.1 = -1.9", "-1.9 + 0.2 = -1.7"], Fraction(-17, 10)), ("x=100000*12", ["100000 * 12 = 1200000"], 1200000)])
def test_a_worked_solution_by_hand(equation, lines, value):
    assert mawps.worked_solution(equation) == (lines, value)


@pytest.mark.parametrize("equation", ["x=5", "7=3+x", "x=1/0", "x=10/3", "x=2**9999999", "x=7//2", "x=(2+", "x=__import__('os')", "x=", "", "x=y+1",
                                      "x=" + "(" * 9999 + "1" + ")" * 9999, "x=" + "-" * 9999 + "1+1", "x=1.2.3+1", "x=007+1"])
def test_what_is_no_arithmetic_is_no_working(equation):
    assert mawps.worked_solution(equation) is None


def test_both_forms_of_mawps_are_the_same_problems_and_bad_rows_are_counted(tmp_path):
    published, dropped = mawps.read_mawps(mawps.find_mawps(write_mawps(tmp_path / "published", 0)))
    lines, dropped_lines = mawps.read_mawps(mawps.find_mawps(write_mawps(tmp_path / "lines", 1)))
    assert published == lines and dropped == dropped_lines
    assert sorted(row["answer"] for row in published["train"]) == ["11", "18", "2"]
    assert [row["problem"] for row in published["heldout"]] == ["12 in all, 5 gone. How many left?", "What is 1 and 8?"]
    reasons = {"whole": 1, "steps": 3, "does not give": 1, "already": 2}       # 0.5; two without a step, and 10 / 3; 2 + 2; two texts
    assert {word: sum(count for reason, count in dropped.items() if word in reason) for word in reasons} == reasons


def test_mawps_that_is_missing_is_one_sentence(tmp_path, capsys):
    for main in (lambda: run(prepare, "laptop", "--data", tmp_path, "--out", tmp_path / "out"), lambda: run(prepare, "laptop", "--out", tmp_path / "out"),
                 lambda: run(reproduce, "main", "--scale", "laptop", "--data", tmp_path, "--out", tmp_path / "out")):
        with pytest.raises(SystemExit) as stop:
            main()
        told = capsys.readouterr().err
        assert stop.value.code == 2 and told.count("\n") == 1 and mawps.MAWPS_IS_AT in told and "trainset.json" in told and "mawps_train.jsonl" in told
    assert not (tmp_path / "out").exists()


def test_a_budget_of_labels_pays_for_rl_and_c1_and_the_fewer_are_among_the_more(tmp_path, capsys):
    rows = [{"problem": f"{number} + 1 =", "answer": str(number + 1)} for number in [*range(24), *range(8)]]       # eight of them twice,
    rows[-1]["problem"] += " "                          # one with a space
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in (8, 16):
        run(prepare, "labels", "--problems", tmp_path / "all.jsonl", "--num-labels", number, "--seed", 5, "--out", tmp_path / str(number))
    of = {number: {file.stem: [json.loads(line)["problem"] for line in file.read_text().splitlines()] for file in (tmp_path / number).glob("*.jsonl")}
          for number in ("8", "16")}
    for number, parts in of.items():
        assert len(parts["labelled"]) == int(number) and len(parts["certify"]) == int(number) // 4
        assert sorted(parts["rl"] + parts["certify"]) == sorted(parts["labelled"])
        assert len(parts["prompts"]) == len(set(parts["prompts"])) == 24
        assert '"answer"' not in (tmp_path / number / "prompts.jsonl").read_text()
    assert len({*of["8"]["labelled"], *of["8"]["more"]}) == 16 and {*of["8"]["labelled"]} < {*of["16"]["labelled"]}
    assert "more" not in of["16"] and "none to more" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(prepare, "labels", "--problems", tmp_path / "all.jsonl", "--num-labels", 25, "--out", tmp_path / "25")
    assert "no more than the 24 different problems" in capsys.readouterr().err


def test_the_instruction_is_the_same_in_every_stage():
    scope = runner.Scope(TABLES["main"], SCALES["laptop"], runner.Given(), "", {})
    for name in ("grpo", "shape", "bridge", "opd", "eval"):
        flags = shlex.split(" ".join(map(str, runner.flat(getattr(scope.settings, name)))))
        assert flags[flags.index("--instruction") + 1] == laptop.LAPTOP_INSTRUCTION == "Give the result as \\boxed{number}."


@pytest.mark.parametrize("table", ["sweep", "sweep-workflow"])
def test_what_the_laptops_sweeps_read_is_of_no_table(table, tmp_path, capsys):
    run(reproduce, table, "--scale", "laptop", "--data", "DATA", "--first-seed", 100, "--out", tmp_path, "--dry-run")
    stages = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\$ python (stage|eval)", line)]
    read = {path for line in stages for path in re.findall(r"(\w+)\.jsonl", line)}
    assert len(stages) == (6 if table == "sweep" else 5) and read - {"rollouts"} == {"sweep", "sweep_heldout"} and all("--seed 100" in line for line in stages)


@pytest.fixture
def tiny_smollm2(tmp_path):
    """A random Llama of six layers with a tokenizer of bytes and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({token: i for i, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<eos>"])}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}:{% endfor %}"
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=257, hidden_size=32, intermediate_size=32, num_hidden_layers=6, num_attention_heads=1,
                                         num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=True, eos_token_id=256, bos_token_id=None))
    model.save_pretrained(tmp_path / "smollm2")
    tokenizer.save_pretrained(tmp_path / "smollm2")
    return tmp_path / "smollm2"


@pytest.fixture
def many_sums(tmp_path):
    """MAWPS' files with forty training problems."""
    folder = write_mawps(tmp_path / "data", 1)
    rows = [{"problem": f"What is {i} and 8 ?", "equation": f"x={i}+8", "answer": str(i + 8)} for i in range(40)]
    (folder / "mawps_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def laptop_at_its_smallest(monkeypatch):
    for name, value in (("SIZES", {"cold_start": 20, "sweep": 6, "sweep_heldout": 4}), ("EPOCHS", 3), ("ROUND", 2), ("MOST_ROUNDS", 3)):
        monkeypatch.setattr(laptop, name, value)
    rule = {name: (layers, *laptop.RULE[name][1:]) for name, layers in (("teacher", [*range(6)]), ("student", [0, 1, 4, 5]))}
    monkeypatch.setattr(laptop, "RULE", rule)


@pytest.fixture
def laptop_flags(laptop_at_its_smallest, tiny_smollm2, many_sums, tmp_path):
    return ("laptop", "--data", many_sums, "--smollm2", tiny_smollm2, "--out", tmp_path / "base")


def come_out_as(monkeypatch, *figures):
    """Measurements in the place of what a random model would give: (share that works, accuracy) one after the other."""
    left, asked = iter(figures), []

    def measured(self):
        asked.append((self.name, self.model.config.num_hidden_layers))
        works, accuracy, *signals = next(left)
        if works == "killed":
            raise KeyboardInterrupt
        for number in signals:                                                      # while it is measured
            signal.raise_signal(number)
        return {"works": works, "accuracy": accuracy}
    monkeypatch.setattr(laptop.Learner, "measured", measured)
    return asked


def test_the_laptops_pair_learns_skill_then_style(laptop_flags, tiny_smollm2, tmp_path, monkeypatch, capsys):
    """Each phase ends where its rule says; layers are the first and the last; problems are in one file each; an interruption costs no round that is done."""
    seen, examples = [], laptop.Learner.examples
    monkeypatch.setattr(laptop.Learner, "examples", lambda self, step, share: seen.append((self.name, step, share)) or examples(self, step, share))
    asked = come_out_as(monkeypatch, (1.0, 0.2), (1.0, 0.35), (0.16, 0.05), (0.15, 0.05),          # the teacher: at the edges of both
                        (1.0, 0.1, signal.SIGTERM), (1.0, 0.12), ("killed", 0))
    with pytest.raises(SystemExit) as stop:
        run(prepare, *laptop_flags)
    assert stop.value.code == 143 and "saved after step 2 of the student's skill" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        run(prepare, *laptop_flags)
    more = come_out_as(monkeypatch, (1.0, 0.17), (0.002, 0.01), (0.04, 0.02), (0.01, 0.02))         # the student: three epochs fall short of 0.18
    run(prepare, *laptop_flags)
    assert asked[:4] == [("teacher", 6)] * 4 and more == [("student", 4)] * 4
    record = json.loads((tmp_path / "base" / "pretraining.json").read_text())
    teacher, student = record["teacher"], record["student"]
    assert [len(each[phase]) for each in (teacher, student) for phase in ("skill", "style")] == [2, 2, 3, 3]
    assert teacher["accepted"] and student["accepted"] and teacher["layers"] == list(range(6)) and student["layers"] == [0, 1, 4, 5]
    shares = [round_["worked_examples"] for round_ in student["style"]]
    assert shares == pytest.approx([0.02, 0.08, 0.02])                              # four times the middle after a round that fell far short
    steps = [step for name, step, share in seen if name == "student" and share == 1.0]
    assert steps == [0, 1, 2, 3, 4, 5, 4, 5]                                        # those since the last state, which is after every second step; no other
    whole, cut = (load_file(path / "model.safetensors") for path in (tiny_smollm2, tmp_path / "base" / "student"))
    name = "model.layers.{}.mlp.up_proj.weight"
    for place, layer in enumerate([0, 1, 4, 5]):                                # a few steps have moved them a little
        assert (whole[name.format(layer)] - cut[name.format(place)]).abs().max() < 1e-2 < (whole[name.format(2)] - cut[name.format(place)]).abs().max()
    files = {name: {json.loads(line)["problem"] for line in (tmp_path / "base" / f"{name}.jsonl").read_text().splitlines()} for name in record["problems"]}
    assert {name: len(texts) for name, texts in files.items()} == record["problems"] == {
        "cold_start": 20, "sweep": 6, "sweep_heldout": 4, "train": 8, "heldout": 2, "test": 1}
    assert len(set().union(*files.values())) == sum(map(len, files.values()))
    assert not list((tmp_path / "base" / "states").iterdir())


def test_a_model_that_misses_its_band_is_refused_again_without_another_step(laptop_flags, tmp_path, monkeypatch, capsys):
    come_out_as(monkeypatch, (1.0, 0.5), (0.3, 0.1), (0.2, 0.1), (0.16, 0.1))
    for _ in range(2):                                                              # the second time nothing is left to measure
        with pytest.raises(SystemExit):
            run(prepare, *laptop_flags)
        assert "the rule refused the teacher: after 3 rounds of style it works in 16.0% of its answers, not in 8.0% to 15.0%" in capsys.readouterr().err
    record = json.loads((tmp_path / "base" / "pretraining.json").read_text())
    assert [round_["works"] for round_ in record["teacher"]["style"]] == [0.3, 0.2, 0.16] and not record["teacher"]["accepted"]
    assert not (tmp_path / "base" / "teacher").exists() and not (tmp_path / "base" / "DONE").exists()


def test_what_is_measured_of_a_laptops_model(laptop_flags, tmp_path, monkeypatch):
    """Eight answers to each problem of the sweep's held-out file; an answer that calculates is one that works."""
    args = prepare.parse_args([str(flag) for flag in laptop_flags])
    args.out.mkdir()
    (args.out / "sweep_heldout.jsonl").write_text('{"problem": "What is 1 and 8?", "answer": "9"}\n{"problem": "What is 1 and 1?", "answer": "2"}\n')
    learner = laptop.Learner(runs.Run(args), "student", [0, 5], [{"problem": "What is 1 and 2?", "answer": "3", "working": ["1 + 2 = 3"]}])
    found = learner.measured()
    assert found["answers"] == 16 and 0 <= found["accuracy"] <= 1 and found["mean_length_tokens"] > 0
    monkeypatch.setattr(laptop, "evaluate", lambda *_, **__: [
        {"completions": ["1 + 8 = 9. \\boxed{9}", "\\boxed{9}"], "verdicts": [True, True], "lengths": [9, 3]},
        {"completions": ["1 + 1 = 3. \\boxed{3}", "\\boxed{1}"], "verdicts": [False, False], "lengths": [9, 3]}])
    assert learner.measured() == {"answers": 4, "works": 0.5, "accuracy": 0.5, "accuracy_where_it_works": 0.5, "mean_length_tokens": 6}


def test_examples_are_asked_as_the_stages_ask_and_worked_evenly(tiny_smollm2):
    args = prepare.parse_args(["laptop", "--smollm2", str(tiny_smollm2), "--out", "x"])
    rows = [{"problem": f"What {i}?", "answer": "9", "working": ["34 - 7 = 27", "27 / 3 = 9"]} for i in range(20)]
    learner = laptop.Learner(runs.Run(args), "teacher", [*range(6)], rows)
    batch = learner.examples(0, 0.25) + learner.examples(1, 0.25)
    texts = [learner.tokenizer.decode(row["completion_ids"]) for row in batch]
    assert {*texts} == {"34 - 7 = 27. 27 / 3 = 9. \\boxed{9}<eos>", "\\boxed{9}<eos>"} and [text[0] == "3" for text in texts] == [False, False, False, True] * 8
    prompts = [learner.tokenizer.decode(row["prompt_ids"]) for row in batch]
    assert sorted(prompts[:20]) == sorted(f"What {i}?\nGive the result as \\boxed{{number}}.:" for i in range(20)) and len({*prompts[20:]}) == 12


def test_the_laptops_table_at_its_smallest(laptop_at_its_smallest, tiny_smollm2, many_sums, tmp_path, monkeypatch):
    """Every command of `main`, with the scale's own flags but for the sizes; no model of this size is right."""
    monkeypatch.setattr(laptop, "RULE", {name: (*rule[:2], (0, 1), rule[3]) for name, rule in laptop.RULE.items()})
    monkeypatch.setattr(laptop, "write_smollm2", lambda out: shutil.copytree(tiny_smollm2, out))
    sizes = {"grpo_steps": 1, "opd_steps": 1, "plateau_steps": 1}
    changes = {"grpo": "--prompts-per-step 2 --samples-per-prompt 2 --save-every 1", "shape": "--num-problems 2 --samples-per-prompt 2",
               "bridge": "--max-steps 1 --rollouts-per-step 2 --num-certify-problems 2", "opd": "--prompts-per-step 2", "eval": "--samples 2"}
    change_scale(monkeypatch, "laptop", lambda s: sizes | {
        name: [getattr(s, name), change, "--max-new-tokens 8"] for name, change in changes.items()})
    monkeypatch.setattr(runner, "start", run_here)
    run(reproduce, "main", "--scale", "laptop", "--labels", 8, "--data", many_sums, "--dtype", "bfloat16", "--out", tmp_path / "table")
    table = json.loads((tmp_path / "table" / "table.json").read_text())
    assert [row["row"] for row in table["rows"]] == [
        "base student", "raw teacher", "RL teacher", "raw-teacher transfer", "direct GRPO, equal steps", "direct GRPO, tuned", "full workflow"]
    assert len(table["orderings"]) == 3 and not list((tmp_path / "cells").glob("*/state"))


@pytest.mark.parametrize("kind, targets", [("student", [0.8, 0.8, 0.84, 0.805]), ("pair", [0.8] * 4)])
def test_a_student_that_missed_its_band_moves_the_aim_of_the_next(tmp_path, monkeypatch, tiny, kind, targets):
    """By half of what it missed, if it learnt its skill at all; the rule of a pair has one aim."""
    figures, asked = iter([(0.1, 0.1), (0.82, 0.80), (0.9, 0.95), (0.9, 0.88)]), []
    monkeypatch.setattr(toy_world, "toy_model", lambda *_: tiny)
    monkeypatch.setattr(toy_world, "pretrain", lambda name, model, target, *_: asked.append(target) or dict(zip(("q", "q_after_style"), next(figures))))
    args = prepare.parse_args(["toy", "--out", str(tmp_path), "--pretrain", kind])
    assert len(toy_world.pretrain_accepted("student", (64, 2), args, 0.8, 0.03, 0.86, 0.90)["refused"]) == 3
    assert asked == pytest.approx(targets)
