"""What comes out serves elsewhere: the final directory's card, and the files that other programs look for."""
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

import conftest
import eval as evaluation
import stage1_grpo
import stage2_shape
import stage3_kl
import stage4_distill
from engine.checkpoints import find_model
from pages import card

SHORT = ["--max-new-tokens", "16", "--max-steps", "1", "--seed", "0"]


def run(module, *flags) -> None:
    """As from a command line, which the card shows."""
    before, sys.argv = sys.argv, [module.__file__, *map(str, flags)]
    conftest.run(module, *flags)
    sys.argv = before


@pytest.fixture(scope="module")
def chain(toy, tmp_path_factory) -> Path:
    """The four stages at their smallest, and an evaluation of the last one's model."""
    out, problems = tmp_path_factory.mktemp("secret_place"), ["--problems", toy / "few_train.jsonl"]
    run(stage1_grpo, "--model", toy / "teacher", *problems, *SHORT, "--prompts-per-step", 4, "--out", out / "teacher")
    run(stage2_shape, "--teacher", out / "teacher", "--reference", toy / "teacher", *problems, "--certify-problems", toy / "few_heldout.jsonl",
        "--max-new-tokens", 16, "--samples-per-prompt", 2, "--allow-failed-certificate", "--out", out / "shape")
    run(stage3_kl, "--student", toy / "student", "--teacher", out / "teacher", "--rollouts", out / "shape" / "rollouts.jsonl", "--problems",
        toy / "few_heldout.jsonl", "--max-kl", 9, *SHORT, "--allow-failed-certificate", "--out", out / "bridge")
    run(stage4_distill, "--student", out / "bridge", "--teacher", out / "teacher", *problems, *SHORT, "--prompts-per-step", 4, "--out", out / "student")
    run(evaluation, "--model", out / "student", "--problems", toy / "few_test.jsonl", "--samples", 2, "--max-new-tokens", 16, "--out", out / "scores")
    return out


def test_the_card_says_where_the_model_comes_from(chain, toy):
    text = (chain / "student" / "model" / "README.md").read_text()
    assert text.startswith("---\nlicense: mit\n")
    assert [line[4:] for line in text.splitlines() if line.startswith("### ")] == ["teacher", "shape", "bridge", "student"]
    for command in ("stage1_grpo.py --model teacher --problems few_train.jsonl --max-new", "stage2_shape.py --teacher teacher --reference teacher --problems",
                    "stage3_kl.py --student student --teacher teacher --rollouts rollouts.jsonl", "stage4_distill.py --student bridge --teacher teacher"):
        assert f"`{command}" in text
    assert "C1 " in text and "C2 holds after 0 optimiser steps" in text and "1 optimiser steps, 16 labels seen" in text
    inputs = json.loads((chain / "teacher" / "args.json").read_text())["inputs"]
    assert f"few_train.jsonl, digest of the contents {next(iter(inputs['problems'].values()))}" in text
    for name in ("teacher", "student"):
        assert find_model(toy / name)["sha256"][:16] in text
    assert "older vLLM with it, read it, too." in text
    assert "secret_place" not in text and str(toy) not in text, "where it was made is nobody's concern"


def test_scores_are_added_once(chain, toy):
    model, scores = chain / "student" / "model", json.loads((chain / "scores" / "scores.json").read_text())
    low, high = scores["avg@2"]["interval_over_problems"]
    line = f"| 8 of few_test.jsonl | avg@2 | {scores['avg@2']['value']:.3f} [{low:.3f}, {high:.3f}] | temperature 0.7, top-p 0.8, "
    assert (model / "README.md").read_text().count(line) == 1
    card.add_scores(chain / "scores")
    assert (model / "README.md").read_text().count(line) == 1
    find_model(chain / "student")                       # the card is not among what the manifest holds


def test_scores_of_a_run_that_may_not_be_written(chain, monkeypatch, capsys):
    def refuse(path, text):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(card, "write_text", refuse)
    card.add_scores(chain / "scores")
    assert "does not have these scores (Permission denied)" in capsys.readouterr().out


def test_scores_that_cannot_be_written_cost_no_evaluation(chain, tmp_path, capsys):
    evaluation, run = tmp_path / "scores", tmp_path / "run"
    shutil.copytree(chain / "scores", evaluation)
    (run / "scores.jsonl").mkdir(parents=True)          # in the way
    record = json.loads((evaluation / "args.json").read_text())
    record["parents"]["model"]["run"] = str(run)
    (evaluation / "args.json").write_text(json.dumps(record))
    card.add_scores(evaluation)
    told = capsys.readouterr()
    assert "could not be written" in told.err and "does not have these scores (see above)" in told.out


@pytest.mark.parametrize("command, script, flags", [
    ("/home/u/sparse.pytorch/stage1_grpo.py --out a.py.d", "stage1_grpo.py", " --out a.py.d"), ("/u/.pyenv/x/eval.py", "eval.py", ""), ("", ".py", "")])
def test_a_command_and_its_script(command, script, flags):
    assert card.split_command(command) == (script, flags)


def test_a_parent_that_is_gone_costs_no_card(chain, tmp_path):
    copy = tmp_path / "student"
    (copy / "model").mkdir(parents=True)
    record = json.loads((chain / "student" / "args.json").read_text())
    record["parents"]["student"]["run"] = str(tmp_path / "gone")
    (copy / "args.json").write_text(json.dumps(record))
    card.write_card(copy)
    assert "### gone\n\nIts directory is no longer there." in (copy / "model" / "README.md").read_text()


def test_other_programs_find_what_they_look_for(chain):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model = chain / "student" / "model"
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "README.md"} <= set(os.listdir(model))
    loaded, config = AutoModelForCausalLM.from_pretrained(model), AutoConfig.from_pretrained(model)
    assert config.architectures == [type(loaded).__name__] and config.dtype == torch.float32
    tokenizer, settings = AutoTokenizer.from_pretrained(model), GenerationConfig.from_pretrained(model)
    assert settings.eos_token_id == tokenizer.eos_token_id and settings.pad_token_id == tokenizer.pad_token_id


def test_llama_cpps_converter_finds_its_tokens_and_template(chain, tmp_path):
    gguf = pytest.importorskip("gguf")
    from transformers import AutoTokenizer

    from engine.checkpoints import save_model
    from experiments.toy import toy_model
    tokenizer = AutoTokenizer.from_pretrained(chain / "student" / "model")
    tokenizer.chat_template = "{{ messages[0].content }}"
    save_model(toy_model(32, 1, 0), tokenizer, [tokenizer.eos_token_id], tmp_path / "model")
    vocabulary = gguf.SpecialVocab(tmp_path / "model", load_merges=False)
    assert vocabulary.special_token_ids["eos"] == tokenizer.eos_token_id and vocabulary.chat_template == tokenizer.chat_template
