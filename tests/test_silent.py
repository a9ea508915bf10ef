"""What went wrong without a word elsewhere, and must be right or refused here: each kind by its principle."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import EOS

import eval
from common import completion_logprobs, load_model, load_tokenizer, sample
from engine import checkpoints, models, problems
from pages import card

ROOT = Path(__file__).parent.parent
SMALL = dict(vocab_size=16, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
             max_position_embeddings=64, initializer_range=0.3, pad_token_id=0, bos_token_id=None, eos_token_id=EOS)
PHI3 = dict(original_max_position_embeddings=24, rope_parameters={
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [2.0**i for i in range(8)]})
LLAMA4 = dict(floor_scale=24, attn_scale=0.5, no_rope_layers=[0, 0], num_local_experts=2, intermediate_size_mlp=48, head_dim=16)
FACTOR = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 24}


def saved(toy, path, family, **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL | changes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(toy / "student" / name, path)
    return path


def loaded(path, **more):
    return load_model(path, load_tokenizer(path), "float32", "cpu", **more)


def draw(model, longest):
    return sample(model, [[5, 6, 7], [8, 9]], samples_per_prompt=3, max_new_tokens=longest, eos_ids=[15], pad_id=0,
                  generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rope, longest", [({"rope_type": "dynamic"} | FACTOR, 64), ({"rope_type": "yarn"} | FACTOR, 64), (PHI3, 24), (None, 23)])
def test_no_row_is_longer_than_the_model_is_one_function(toy, tmp_path, rope, longest, capsys):
    family, changes = {24: ("Phi3", PHI3), 23: ("Llama4Text", LLAMA4)}.get(longest, ("Llama", {"rope_parameters": rope}))
    model = loaded(saved(toy, tmp_path / "model", family, **changes))
    assert model.longest_row == longest
    rollouts = draw(model, longest - 3)
    with torch.no_grad():
        assert (completion_logprobs(model, rollouts) - rollouts.sampler_logprobs).abs().max() < 1e-4
    with pytest.raises(SystemExit):
        draw(model, longest - 2)
    assert f"up to {longest}" in capsys.readouterr().err


def test_what_a_row_is_worth_must_not_depend_on_a_longer_row_beside_it(toy, tmp_path, monkeypatch, capsys):
    """Found by trying, too, where no table tells it."""
    path = saved(toy, tmp_path / "model", "Phi3", **PHI3)
    monkeypatch.setattr(models, "longest_row", lambda directory: 64)
    with pytest.raises(SystemExit):
        loaded(path)
    assert "beside a row of late positions" in capsys.readouterr().err


@pytest.mark.parametrize("family, noise", [("Mixtral", {"router_jitter_noise": 0.3}), ("Phimoe", {"router_jitter_noise": 0.3, "input_jitter_noise": 0.3}), ("OPT", {"layerdrop": 0.5})])
def test_noise_of_any_name_is_off_in_training(toy, tmp_path, family, noise):
    model = loaded(saved(toy, tmp_path / "model", family, num_local_experts=4, **noise), trainable=True, activation_checkpointing=True)
    assert any(module.training for module in model.modules()) and not model.training
    rollouts = draw(model, 12)
    first, second = (completion_logprobs(model, rollouts) for _ in range(2))
    assert torch.equal(first, second) and (first - rollouts.sampler_logprobs).abs().max() < 1e-4


def test_noise_that_stays_is_refused(toy, tmp_path, monkeypatch, capsys):
    mlp = transformers.models.llama.modeling_llama.LlamaMLP
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, x: forward(self, x * (1 + 0.01 * torch.randn_like(x))))
    with pytest.raises(SystemExit):
        loaded(saved(toy, tmp_path / "model", "Llama"))
    assert "in a second pass" in capsys.readouterr().err


def test_attention_named_in_config_is_not_needed(toy, copy_of):
    path = copy_of(toy / "student", config={"_attn_implementation": "flash_attention_2", "attn_implementation": "flash_attention_2"})
    checkpoints.find_model(path)
    ids = torch.arange(5, 9)[None]
    assert torch.equal(loaded(path)(ids).logits, loaded(toy / "student")(ids).logits)


YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 32}
GEMMA = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}, "sliding_attention": {"rope_type": "default", "rope_theta": 123.0}}


@pytest.mark.parametrize("family, changes, named", [
    ("Qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope_theta": 5e5, "rope_scaling": None}),
    ("Llama", {"rope_parameters": YARN}, {"rope_theta": 5e5, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}),
    ("Granite", {"rope_parameters": YARN}, {"rope_theta": 5e5, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}),
    ("Olmo2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}}, {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}, {"num_experts": 4}),
    ("Phi3", PHI3, {"rope_theta": 1e4, "rope_scaling": {"type": "longrope"} | {name: PHI3["rope_parameters"][name] for name in ("long_factor", "short_factor")}}),
    ("GPTNeoX", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5}}, {"rotary_emb_base": 5e5, "rotary_pct": 0.5}),
    ("Gemma3Text", {"rope_parameters": GEMMA, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 16},
     {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 123.0})])
def test_a_saved_model_says_what_transformers_4_asks_for(toy, tmp_path, family, changes, named):
    """Tried with 4.57: these names, and these alone, give the same logits there; the card says that it is so."""
    path = saved(toy, tmp_path / "base", family, **changes)
    model, tokenizer = loaded(path), load_tokenizer(path)
    checkpoints.save_model(model, tokenizer, [EOS], tmp_path / "model")
    checkpoints.find_model(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert {name: config[name] for name in named} == named
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and not isinstance(settings.get("extra_special_tokens"), list)
    assert settings["model_input_names"] == ["input_ids", "attention_mask"] and settings["padding_side"] == tokenizer.padding_side
    assert card.readers(tmp_path / "model").endswith("an older vLLM with it, read it, too.")
    again, ids = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model"), torch.arange(3, 14)[None]
    assert torch.equal(again(ids).logits, model(ids).logits), "version 5 reads it as it did"
    assert load_tokenizer(tmp_path / "model").all_special_tokens == tokenizer.all_special_tokens


TWO_SCALED = {"full_attention": YARN, "sliding_attention": YARN | {"rope_theta": 123.0}}


@pytest.mark.parametrize("family, changes, file, why", [
    ("Gemma4Text", {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 16, "global_head_dim": 16, "vocab_size_per_layer_input": 16,
                    "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}, None, "no model of type gemma4_text was seen to be"),
    ("Olmo2", {"rope_parameters": YARN}, None, "they have no words for its rope_parameters"),
    ("Gemma3Text", {"rope_parameters": TWO_SCALED, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 16}, None, "rope_parameters"),
    ("Llama", {}, "tokenizer.json", "it has no tokenizer.json")])
def test_the_card_says_what_transformers_4_does_not_read(toy, tmp_path, family, changes, file, why):
    """Tried with 4.57: the first three are refused or give other logits there."""
    model = loaded(path := saved(toy, tmp_path / "base", family, **changes))
    checkpoints.save_model(model, load_tokenizer(path), [EOS], tmp_path / "model")
    if file:
        (tmp_path / "model" / file).unlink()
    said = card.readers(tmp_path / "model")
    assert "an older vLLM with it, are not known to read it right (" in said and why in said
    assert said.startswith("Transformers 5 reads it, and vLLM from 0.24 on")


# ================================================================ prompts, golds, texts of other engines


def rows_of(tmp_path, *lines, name="rows.jsonl"):
    (tmp_path / name).write_text("".join(line + "\n" for line in lines))
    return tmp_path / name


@pytest.mark.parametrize("eaten", [r'\frac{1}{2}', r'\theta', r'3\times 4', r'\beta', r'x \neq 3', r'\rho', r'\boxed{3}', r'\tan x', r'\nsubseteq', 'rac{1}{2}', '3 imes 4', r'5\u0007'])
def test_backslashes_that_json_has_eaten_are_named(tmp_path, capsys, eaten):
    path = rows_of(tmp_path, '{"problem": "1 + 1", "answer": "2"}', f'{{"problem": "Which?", "answer": "{eaten}"}}')
    assert len(problems.with_readable_golds(problems.load_problems(path), skip=True)) == 1
    assert "line 2" in (said := capsys.readouterr().out) and "written twice" in said


@pytest.mark.parametrize("whole", [r'\\frac{1}{2}', r'\\theta', r'\\begin{pmatrix} 1 \\\\ 2\\end{pmatrix}', r'\\begin{pmatrix}\n1\n\\end{pmatrix}', 'x_{1}', '5 notes', r'\\text{no}'])
def test_whole_backslashes_are_not(whole):
    assert not problems.eaten(json.loads(f'"{whole}"'))


@pytest.mark.parametrize("number, gold", [("12345678901234567890.0", "12345678901234567890.0"), ("1e20", "1" + "0" * 20),
                                          ("12345678901234567891", "12345678901234567891"), ("2.50", "2.5"), ("0.1", "0.1"), ("1e-7", "0.0000001"), ("123456789012.12345678901234", "123456789012.12345678901234")])
def test_numbers_keep_their_digits(tmp_path, number, gold):
    assert problems.load_problems(rows_of(tmp_path, f'{{"problem": "x", "answer": {number}}}'))[0].answer == gold


def test_a_number_that_has_lost_digits_is_refused(tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pytest.importorskip("pyarrow").table({"problem": ["x"], "answer": [12345678901234567890.0]}), tmp_path / "rows.parquet")
    with pytest.raises(SystemExit):
        problems.load_problems(tmp_path / "rows.parquet")
    assert "row 1" in (said := capsys.readouterr().err) and "as text" in said


def test_content_in_parts_and_tab_separated_values(tmp_path, capsys):
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "1 + 2?"}]
    row = {"prompt": [{"role": "user", "content": parts}], "answer": "3"}
    assert problems.load_problems(rows_of(tmp_path, json.dumps(row)))[0].text == "What is 1 + 2?"
    parts[0] = {"type": "image_url", "image_url": "x"}
    with pytest.raises(SystemExit):
        problems.load_problems(rows_of(tmp_path, json.dumps(row)))
    assert "image_url" in capsys.readouterr().err
    (table,) = problems.load_problems(rows_of(tmp_path, "problem\tanswer", "1, 2, ?\t3", name="rows.tsv"))
    assert (table.text, table.answer) == ("1, 2, ?", "3")


def test_what_a_tokenizer_appends_is_left_out(toy, copy_of, capsys):
    path = copy_of(toy / "student")
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    end = transformers.AutoTokenizer.from_pretrained(path).eos_token
    tokenizer["post_processor"] = {"type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                                   "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end, "type_id": 0}}],
                                   "special_tokens": {end: {"id": end, "ids": [EOS], "tokens": [end]}}}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    appending, plain = load_tokenizer(path), load_tokenizer(toy / "student")
    assert appending("12")["input_ids"] == [*plain("12")["input_ids"], EOS]
    assert problems.plain_ids(appending, "12") == plain("12")["input_ids"] and "without it" in capsys.readouterr().out


def test_a_problem_that_stands_again_counts_once(tmp_path, capsys):
    rows = [f'{{"problem": "{n}", "answer": "{n}"}}' for n in range(3)] * 4
    found = problems.distinct(problems.load_problems(rows_of(tmp_path, *rows, '{"problem": "0", "answer": "7"}')))
    assert [problem.answer for problem in found] == ["0", "1", "2", "7"] and "13 rows are 4 problems" in capsys.readouterr().out


class Decoder:
    """A tokenizer of words, in which the ends of thinking are special, as in some models."""
    added_tokens_decoder = dict.fromkeys([0, 1, 2, 5])

    def __init__(self, end):
        self.words = ["<eos>", "<think>", end, "\\boxed{3}", "\\boxed{4}", "<|box|>"]

    def get_vocab(self):
        return {word: id for id, word in enumerate(self.words)}

    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(self.words[id] for id in ids if id not in self.added_tokens_decoder) for ids in rows]


@pytest.mark.parametrize("end", ["</think>", "[/THINK]", "<|END_THINKING|>", "</longcat_think>", "<|think_end|>"])
def test_the_judge_sees_where_thinking_ends(end):
    texts = models.completion_texts(Decoder(end), [[1, 3, 2, 5, 4, 0], [4, 0], []])
    assert texts == [f"\\boxed{{3}}{end}\\boxed{{4}}", "\\boxed{4}", ""] and eval.extract_answer(texts[0]) == "4"


@pytest.mark.parametrize("end", ["<|im_end|>", "<|eot_id|>\n", "</s>", "<｜end▁of▁sentence｜>", "<|endoftext|><|endoftext|>", "<end_of_turn>\n", "<turn|>", "[|endofturn|]", "[e~["])
def test_an_end_token_left_in_a_text_is_not_of_the_answer(tmp_path, end):
    texts = [text + end for text in ("\\boxed{5}", "$\\boxed{5}$", "So \\boxed{5}.", "#### 5")]
    rows = eval.grade_rows(eval.read_graded_rows(rows_of(tmp_path, json.dumps({"problem": "p", "answer": "5", "completions": texts}))))
    assert rows[0]["verdicts"] == [True] * 4


@pytest.mark.parametrize("reason, right", [("length", False), ("stop", True), ("max_tokens", False), ({"type": "length"}, False), ("STOP", True)])
def test_a_text_that_was_cut_off_is_wrong_whoever_sampled_it(tmp_path, reason, right, capsys):
    row = {"problem": "p", "answer": "5", "completion": "\\boxed{5}", "finish_reason": reason}
    assert eval.grade_rows(eval.read_graded_rows(rows_of(tmp_path, json.dumps(row))))[0]["verdicts"] == [right]
    names = [name for name in ("done_reason", "stop_reason") if isinstance(reason, str)]
    for name, value in [*((name, reason) for name in names), ("stop_reason", 151645)]:      # vLLM names the token
        other = {key: value for key, value in row.items() if key != "finish_reason"} | {name: value}
        expected = right or value == 151645
        assert eval.grade_rows(eval.read_graded_rows(rows_of(tmp_path, json.dumps(other))))[0]["verdicts"] == [expected]
    with pytest.raises(SystemExit):
        eval.read_graded_rows(rows_of(tmp_path, json.dumps(row | {"finish_reason": "odd"})))
    assert "line 1" in (said := capsys.readouterr().err) and "'odd'" in said


def test_a_terminal_without_unicode_ends_nothing(tmp_path):
    path = rows_of(tmp_path, json.dumps({"problem": "a", "answer": "∬ f", "completion": "\\boxed{1}"}))
    for flags in (["--grade", path, "--out", tmp_path / "out"], ["--help"]):
        done = subprocess.run([sys.executable, ROOT / "eval.py", *map(str, flags)], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
        assert done.returncode == 0, done.stderr.decode()
