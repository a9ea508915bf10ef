"""Problems and base models: the toy task by hand, the pretraining texts, DAPO's parquet columns."""
import json

import torch
from conftest import run

import prepare


def test_toy_problems_by_hand():
    """34 + 91 + 82 + 75 + 46, column by column without carries: 31 -> 1 and 18 -> 8."""
    for row in prepare.toy_problems(50, seed=3):
        numbers = [row["problem"][i:i + 2] for i in range(0, 10, 2)]
        assert row["answer"] == "".join(str(sum(int(number[column]) for number in numbers) % 10) for column in (0, 1))
    assert prepare.toy_problems(5, seed=3) == prepare.toy_problems(9, seed=3)[:5]


def test_toy_texts_are_right_and_masked_to_the_completion():
    tokenizer = prepare.toy_tokenizer()
    input_ids, mask = prepare.toy_texts(200, 0.5, torch.Generator().manual_seed(0))
    for ids, kept in zip(input_ids, mask):
        problem, completion = tokenizer.decode(ids[:11]), tokenizer.decode(ids[kept])
        numbers = [problem[i:i + 2] for i in range(0, 10, 2)]
        answer = "".join(str(sum(int(number[column]) for number in numbers) % 10) for column in (0, 1))
        assert completion.endswith("\\boxed{" + answer + "}<eos>")
        working = completion.removesuffix("\\boxed{" + answer + "}<eos>")
        assert working in ("",) or (len(working) == 10 and working[:2] == problem[:2] and working[-2:] == answer)
    assert 0.35 < (mask.sum(1) > 10).float().mean() < 0.65


def test_tokenizer_gives_the_text_back(toy):
    tokenizer = prepare.toy_tokenizer()
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
