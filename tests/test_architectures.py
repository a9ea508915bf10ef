"""Whatever the architecture: the same greedy tokens, the same logprobs, a step of stage 1, and a model that reloads."""
import re

import pytest
import torch

import stage1_grpo
from bench import architectures
from conftest import run
from engine import sampler

PAGE = architectures.PAGE.read_text()
ONE_OF_A_KIND = ["Gemma 3", "Granite", "GPT-2", "BLOOM", "Mixtral", "gpt-oss", "Qwen3-Next", "LFM2", "Falcon-H1", "Mamba 2"]
REFUSED = {"MiniMax"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_it_is_sampled_scored_trained_and_reloaded(name, tmp_path):
    """The bench's own columns; it runs them on every architecture, and on two ranks."""
    architectures.save_pair(name, tmp_path)
    model = architectures.load(tmp_path / "teacher")
    assert architectures.sampler_column(model).endswith("same tokens")
    assert float(architectures.passes_column(model).split()[1]) < 3e-4
    module, flags = architectures.commands(tmp_path, tmp_path / "one")["stage1_grpo"]
    run(module, *flags)
    assert architectures.reload_column(tmp_path / "one" / "teacher" / "model") == "same logits"


@pytest.mark.filterwarnings("ignore")
def test_a_cache_whose_rows_cannot_be_moved_ends_in_one_sentence(tmp_path, capsys):
    architectures.save_pair("MiniMax", tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(stage1_grpo, "--model", tmp_path / "teacher", "--problems", tmp_path / "problems.jsonl", "--out", tmp_path / "out")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("error: MiniMaxForCausalLM cannot be sampled from here") == 1 and "Traceback" not in said


def test_a_cache_that_changes_the_logits_is_refused(tiny, monkeypatch, capsys):
    """Such as a recurrent state that has seen the padding."""
    monkeypatch.setattr(sampler, "has_plain_attention", lambda model: False)
    monkeypatch.setattr(sampler, "CHECKED", set())
    join = sampler.PlainCache.join

    def forgetful(cache, *args):
        logits = join(cache, *args)
        cache.mask = torch.ones_like(cache.mask)
        return logits
    monkeypatch.setattr(sampler.PlainCache, "join", forgetful)
    with pytest.raises(SystemExit):
        sampler.sample(tiny, [[5, 6], [7]], samples_per_prompt=1, max_new_tokens=2, eos_ids=[1], pad_id=0)
    assert "its logits differ by" in capsys.readouterr().err


def test_the_page_has_a_row_for_each():
    rows = {row.split(" | ")[0].strip("| "): row for row in re.findall(r"^\| .*$", PAGE, re.M)}
    assert rows.keys() - {"model", "---"} == architectures.ARCHITECTURES.keys()
    for name in architectures.ARCHITECTURES.keys() - REFUSED:
        assert "same tokens" in rows[name] and "all four" in rows[name] and "same logits" in rows[name], rows[name]
    assert all("cannot be sampled from here" in rows[name] for name in REFUSED)
