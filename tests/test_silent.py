"""What went wrong without a word elsewhere, and must be right or refused here: each kind by its principle."""
import json
import shutil

import pytest
import torch
import transformers
from conftest import EOS

from common import completion_logprobs, load_model, load_tokenizer, sample
from engine import checkpoints, models

SMALL = dict(vocab_size=16, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
             max_position_embeddings=64, initializer_range=0.3, pad_token_id=0, bos_token_id=None, eos_token_id=EOS)
PHI3 = dict(original_max_position_embeddings=24, rope_parameters={
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [2.0**i for i in range(8)]})
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


@pytest.mark.parametrize("rope, longest", [({"rope_type": "dynamic"} | FACTOR, 64), ({"rope_type": "yarn"} | FACTOR, 64), (PHI3, 24)])
def test_no_row_is_longer_than_the_model_is_one_function(toy, tmp_path, rope, longest, capsys):
    family, changes = ("Phi3", PHI3) if rope is PHI3 else ("Llama", {"rope_parameters": rope})
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


@pytest.mark.parametrize("family, noise", [("Mixtral", {"router_jitter_noise": 0.3}), ("Phimoe", {"router_jitter_noise": 0.3, "input_jitter_noise": 0.3})])
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
    ("Llama", {"rope_parameters": YARN}, {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}),
    ("Phi3", PHI3, {"rope_theta": 1e4, "rope_scaling": {"type": "longrope"} | {name: PHI3["rope_parameters"][name] for name in ("long_factor", "short_factor")}}),
    ("GPTNeoX", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5}}, {"rotary_emb_base": 5e5, "rotary_pct": 0.5}),
    ("Gemma3Text", {"rope_parameters": GEMMA, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 16},
     {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 123.0})])
def test_a_saved_model_says_what_transformers_4_asks_for(toy, tmp_path, family, changes, named):
    """Tried with 4.57: these names, and these alone, give the same logits there (docs/architectures.md)."""
    path = saved(toy, tmp_path / "base", family, **changes)
    model, tokenizer = loaded(path), load_tokenizer(path)
    checkpoints.save_model(model, tokenizer, [EOS], tmp_path / "model")
    checkpoints.find_model(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert {name: config[name] for name in named} == named
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and not isinstance(settings.get("extra_special_tokens"), list)
    again, ids = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model"), torch.arange(3, 14)[None]
    assert torch.equal(again(ids).logits, model(ids).logits), "version 5 reads it as it did"
    assert load_tokenizer(tmp_path / "model").all_special_tokens == tokenizer.all_special_tokens
