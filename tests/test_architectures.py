"""bench/architectures.py, reduced: what docs/architectures.md says of each architecture is so."""
import contextlib
import json
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forks import run_ranks
from transformers import CONFIG_MAPPING

import common
from bench import architectures
from engine import sharding

ROWS = {cells[0]: cells[1:] for line in architectures.PAGE.read_text().splitlines() if line.startswith("| ")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]] if not line.startswith(("| ---", "| architecture"))}
REFUSED = [name for name, cells in ROWS.items() if "refused" in cells]
SERVED = [name for name in ROWS if name not in REFUSED]


@pytest.fixture(autouse=True)
def known(request):
    name = request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else None
    if name and architectures.ARCHITECTURES[name][0] not in CONFIG_MAPPING:
        pytest.skip("newer than this transformers")


@pytest.fixture
def half_are_right(monkeypatch):
    monkeypatch.setattr(common, "grade", lambda completion, gold: len(completion) % 2 == 0)


def test_the_page_has_a_row_for_each_architecture():
    assert list(ROWS) == list(architectures.ARCHITECTURES)
    assert re.search(r"torch \d+\.\S+, transformers \d+\.", architectures.PAGE.read_text())
    for name in REFUSED:
        assert f"- {name}: a " in architectures.PAGE.read_text(), "in one sentence"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SERVED)
def test_served(name, tmp_path, half_are_right):
    """Sampler beside generate(), both passes beside the model's own, a step of stage 1, and what it saves reloads."""
    directory = architectures.make(name, tmp_path / "student")
    architectures.write_problems(tmp_path / "problems.jsonl")
    with architectures.quiet():
        row = architectures.sampler_and_training(directory)
        gradient, saved = architectures.stage1_with_gradient(directory, tmp_path / "rl")
    assert row["generate"] == "yes" and [row["sampler"], row["training"]] == [ROWS[name][0], ROWS[name][3]]
    assert row["sampler_nats"] < 1e-4 and row["training_nats"] < 1e-4
    assert saved < 1e-6 and max(part.abs().max() for part in gradient) > 0


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name, tmp_path, capsys):
    directory = architectures.make(name, tmp_path / "student")
    architectures.write_problems(tmp_path / "problems.jsonl")
    with architectures.quiet(), pytest.raises(SystemExit) as end:
        architectures.stage1_with_gradient(directory, tmp_path / "rl")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert end.value.code == 2 and len(said) == 1 and "is not served here: its " in said[0]
    assert not (tmp_path / "rl" / "metrics.jsonl").exists()


@pytest.mark.filterwarnings("ignore")
def test_two_ranks(tmp_path, half_are_right):
    """States, blocks that name their parts as blocks, too, experts."""
    folders = {name: tmp_path / str(place) for place, name in enumerate(["Mamba", "DeepSeek-V3"])}
    for name, folder in folders.items():
        directory = architectures.make(name, folder / "student")
        architectures.write_problems(folder / "problems.jsonl")
        with architectures.quiet():
            torch.save(architectures.stage1_with_gradient(directory, folder / "rl")[0], folder / "gradient.pt")
    said = run_ranks(2, Path(architectures.__file__), "--rank-of", json.dumps(folders, default=str))
    answers = architectures.answers_in(said)
    assert all(answers[name] < 1e-5 for name in folders), answers


@contextlib.contextmanager
def group_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_weights_that_stay_float32_are_sharded_beside_bfloat16(tmp_path):
    directory = architectures.make("DeepSeek-V3", tmp_path / "teacher")
    models = [common.load_model(directory, common.load_tokenizer(directory), "bfloat16", "cpu") for _ in range(2)]
    assert {parameter.dtype for parameter in models[0].parameters()} == {torch.float32, torch.bfloat16}
    with group_of_one(), torch.no_grad():
        sharded = sharding.shard(models[1], torch.bfloat16, trainable=False)
        torch.testing.assert_close(sharded(architectures.IDS).logits, models[0](architectures.IDS).logits)
