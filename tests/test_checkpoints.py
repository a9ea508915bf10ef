"""Checkpoints as users have them: read as from_pretrained reads them, or refused in one sentence; and what is written."""
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
import transformers
from conftest import EOS, PAD, run
from forks import run_ranks
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import common
import eval as evaluation
from experiments.toy import toy_model
import stage1_grpo
import stage4_distill
from engine import checkpoints, models

HERE = Path(__file__).parent
SMALL = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
MLA = {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8,
       "first_k_dense_replace": 1, "moe_intermediate_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "Qwen3": {}, "Qwen2": {}, "Llama": {"tie_word_embeddings": False}, "Mistral": {}, "Phi3": {}, "Olmo2": {}, "StableLm": {}, "Glm": {"head_dim": 8},
    "Cohere": {}, "GPTNeoX": {}, "GPT2": {}, "GPTJ": {"rotary_dim": 4}, "Opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}, "Granite": {}, "Starcoder2": {},
    "Gemma3": {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2}, "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "Qwen3Moe": EXPERTS, "Olmoe": EXPERTS, "DeepseekV3": {**MLA, "n_group": 1, "topk_group": 1}}
NAMES = {"Gemma3": "Gemma3TextConfig", "Opt": "OPTConfig"}


def random_model(family: str):
    torch.manual_seed(0)
    config = getattr(transformers, NAMES.get(family, family + "Config"))(**SMALL | FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():                               # zeros and ones, as biases and norms begin, would hide a mistake
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.05)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_is_from_pretrained(toy, tmp_path, family, dtype):
    random_model(family).save_pretrained(tmp_path / "model", max_shard_size="40KB")         # several files and an index
    checkpoints.find_model(tmp_path / "model")
    tokenizer = common.load_tokenizer(toy / "student")
    loaded = common.load_model(tmp_path / "model", tokenizer, dtype, "cpu")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=getattr(torch, dtype)).eval()
    ids = torch.arange(10)[None]
    assert torch.equal(loaded(ids).logits, expected(ids).logits[..., :15])
    assert loaded.config.vocab_size == 15 and loaded.dtype == getattr(torch, dtype)
    assert all(tensor.device.type == "cpu" for tensor in [*loaded.parameters(), *loaded.buffers()])


def saved(model, path: Path, toy: Path) -> Path:
    """A checkpoint directory with the toy tokenizer."""
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(toy / "student").save_pretrained(path)
    return path


def rewrite(model_dir: Path, change) -> Path:
    """Change the tensors of a directory; they may share memory no more."""
    tensors = change(load_file(model_dir / "model.safetensors"))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, model_dir / "model.safetensors", {"format": "pt"})
    return model_dir


def logits_of(model_dir: Path, dtype: str = "float32"):
    model = common.load_model(model_dir, common.load_tokenizer(model_dir), dtype, "cpu")
    return model(torch.arange(5, 15)[None]).logits


@pytest.mark.parametrize("name", ["teacher", "student"])
@pytest.mark.parametrize("change", [
    lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()},          # of the bare model
    lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]},                 # tied, and stored twice
    lambda tensors: {name.replace("model.embed_tokens", "lm_head"): tensor for name, tensor in tensors.items()},
    lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)},         # as old versions wrote it
    lambda tensors: {name: tensor.double() for name, tensor in tensors.items()}])
def test_the_same_weights_stored_otherwise(toy, copy_of, name, change):
    changed = rewrite(copy_of(toy / name), change)
    checkpoints.find_model(changed)
    assert torch.equal(logits_of(changed), logits_of(toy / name))
    assert torch.equal(logits_of(changed), AutoModelForCausalLM.from_pretrained(changed)(torch.arange(5, 15)[None]).logits)


def test_settings_of_a_call_change_nothing(toy, copy_of):
    changed = copy_of(toy / "teacher", config={"return_dict": False, "output_hidden_states": True, "use_cache": False})
    assert torch.equal(logits_of(changed), logits_of(toy / "teacher"))


def test_stored_buffers_are_read(toy, tmp_path, monkeypatch):
    """A buffer that config.json cannot tell is filled from the file, as a parameter is."""
    attention = transformers.models.qwen3.modeling_qwen3.Qwen3Attention
    build = attention.__init__

    def with_buffer(self, *args, **kwargs):
        build(self, *args, **kwargs)
        self.register_buffer("scale", torch.ones(3))

    monkeypatch.setattr(attention, "__init__", with_buffer)
    model = toy_model(64, 2, seed=0)
    model.model.layers[1].self_attn.scale.fill_(7.0)
    saved(model, tmp_path / "model", toy)
    checkpoints.find_model(tmp_path / "model")
    loaded = common.load_model(tmp_path / "model", common.load_tokenizer(tmp_path / "model"), "float32", "cpu")
    assert loaded.model.layers[1].self_attn.scale.tolist() == [7.0] * 3 and loaded.model.layers[0].self_attn.scale.tolist() == [1.0] * 3
    rewrite(tmp_path / "model", lambda tensors: {name: tensor for name, tensor in tensors.items() if "1.self_attn.scale" not in name})
    with pytest.raises(SystemExit):
        checkpoints.find_model(tmp_path / "model")


def test_a_conversion_in_place_is_left_to_transformers(toy, tmp_path, monkeypatch):
    """Names and shapes fit, and yet transformers computes on the tensor: ours must not copy it raw."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import Transpose, WeightConverter
    original = conversion_mapping.get_model_conversion_mapping
    rule = WeightConverter("self_attn.q_proj.weight", "self_attn.q_proj.weight", operations=[Transpose(0, 1)])
    model_dir = saved(toy_model(64, 2, seed=0), tmp_path / "model", toy)
    for module in (conversion_mapping, transformers.modeling_utils):
        monkeypatch.setattr(module, "get_model_conversion_mapping", lambda model, *args, **kwargs: [rule, *original(model, *args, **kwargs)])
    expected = AutoModelForCausalLM.from_pretrained(model_dir)
    raw = load_file(model_dir / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(expected.model.layers[0].self_attn.q_proj.weight, raw.T) and not torch.equal(raw, raw.T)
    assert torch.equal(logits_of(model_dir), expected(torch.arange(5, 15)[None]).logits)


# ---------------------------------------------------------------- refused


@pytest.fixture
def refused(toy, tmp_path, capfd):
    """Train on a directory that must be refused, before --out is made and before weights load; -> the one sentence."""
    def check(model_dir, *flags, module=stage1_grpo, made: bool = False) -> str:
        capfd.readouterr()
        names = ["--student", toy / "student", "--teacher"] if module is stage4_distill else ["--model"]
        with pytest.raises(SystemExit) as stop:
            run(module, *names, model_dir, "--problems", toy / "few_train.jsonl", "--out", tmp_path / "run", "--max-new-tokens", 8,
                *([] if module is evaluation else ["--max-steps", 1, "--prompts-per-step", 2]), *flags)
        sentence = capfd.readouterr().err
        assert stop.value.code == 2 and sentence.startswith("error: ") and sentence.count("\n") == 1, sentence
        assert (tmp_path / "run").exists() == made
        return sentence
    return check


def in_shards(model_dir: Path, omit: str | None = None) -> Path:
    """The same weights in two files and an index, without one of the three."""
    tensors = load_file(model_dir / "model.safetensors")
    (model_dir / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, model_dir / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    if omit:
        (model_dir / omit).unlink()
    return model_dir


def write(name: str, content: str | bytes):
    def change(model_dir: Path) -> None:
        (model_dir / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return change


def cut(name: str, count: int):
    def change(model_dir: Path) -> None:
        (model_dir / name).write_bytes((model_dir / name).read_bytes()[:-count])
    return change


def setting(name: str, **changes):
    def change(model_dir: Path) -> None:
        file = model_dir / f"{name}.json"
        content = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(content | changes))
    return change


def tensors(function):
    return lambda model_dir: rewrite(model_dir, function)


def nothing_but_an_adapter(model_dir: Path) -> None:
    for file in model_dir.iterdir():
        file.unlink()
    (model_dir / "adapter_config.json").write_text("{}")
    (model_dir / "adapter_model.safetensors").write_bytes(b"")


BLOCK_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "fmt": "e4m3"}
BROKEN = {
    "lfs": (write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), "git lfs pull"),
    "lfs config": (write("config.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), "config.json is a git-lfs pointer"),
    "lfs template": (write("chat_template.jinja", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
                     "chat_template.jinja is a git-lfs pointer"),
    "cut": (cut("model.safetensors", 100), "cut short or damaged"),
    "cut shard": (lambda d: cut("model-00002-of-00002.safetensors", 7)(in_shards(d)), "model-00002-of-00002.safetensors is cut short"),
    "empty": (write("model.safetensors", ""), "model.safetensors is cut short or damaged"),
    "no header": (write("model.safetensors", b"\xff" * 64), "model.safetensors is cut short or damaged"),
    "no shard": (lambda d: in_shards(d, "model-00002-of-00002.safetensors"), "model-00002-of-00002.safetensors) that cannot be found"),
    "no index": (lambda d: in_shards(d, "model.safetensors.index.json"), "neither model.safetensors nor model.safetensors.index.json"),
    "index": (lambda d: write("model.safetensors.index.json", "{")(in_shards(d)), "index.json cannot be read as JSON"),
    "empty index": (lambda d: write("model.safetensors.index.json", "{}")(in_shards(d)), "no weight_map"),
    "config": (write("config.json", "{'a': 1}"), "config.json cannot be read as JSON"),
    "config is a list": (write("config.json", "[]"), "config.json: a JSON object is expected"),
    "config of no model": (setting("config", model_type="no_such_type"), "config.json: transformers makes no causal"),
    "config of an encoder": (setting("config", model_type="t5"), "config.json: transformers makes no causal"),
    "config of nonsense": (setting("config", hidden_size="many"), "config.json: transformers makes no causal"),
    "tokenizer": (write("tokenizer.json", '{"version": "1.0",'), "tokenizer.json cannot be read as JSON"),
    "tokenizer of nothing": (write("tokenizer.json", "{}"), "transformers cannot read the tokenizer"),
    "tokenizer's config": (write("tokenizer_config.json", "x"), "tokenizer_config.json cannot be read as JSON"),
    "chat template": (write("chat_template.jinja", "{% for %}"), "makes no prompt"),
    "generation config": (write("generation_config.json", ""), "generation_config.json cannot be read as JSON"),
    "generation config's end": (setting("generation_config", eos_token_id="</s>"), "generation_config.json: eos_token_id is"),
    "generation config's end is true": (setting("generation_config", eos_token_id=True), "generation_config.json: eos_token_id is"),
    "no end": (lambda d: [setting(name, eos_token_id=None, eos_token=None)(d) for name in ("config", "generation_config", "tokenizer_config")],
               "set eos_token_id"),
    "manifest": (setting("manifest", **{"model.safetensors": {"bytes": 3}}), "model.safetensors is not as the run wrote it"),
    "adapter": (nothing_but_an_adapter, "merge_and_unload"),
    "adapter beside a config": (lambda d: [(d / "model.safetensors").unlink(), write("adapter_config.json", "{}")(d)], "merge_and_unload"),
    "an adapter's weights beside weights": (write("adapter_model.safetensors", "x"), "merge_and_unload"),
    "adapter beside weights": (write("adapter_config.json", "{}"), "merge_and_unload"),
    "fp8 as configured": (setting("config", quantization_config=BLOCK_FP8), "quantised (fp8)"),
    "gptq as configured": (setting("config", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128}), "quantised (gptq)"),
    "awq as configured": (setting("config", quantization_config={"quant_method": "awq", "bits": 4}), "quantised (awq)"),
    "quantised somehow": (setting("config", quantization_config={}), "quantised (quantization_config)"),
    "quantised in a part": (setting("config", text_config={"quantization_config": {"quant_method": "mxfp4"}}), "quantised (mxfp4)"),
    "quantised by a file": (setting("hf_quant_config", producer={"name": "modelopt"}), "quantised (hf_quant_config.json)"),
    "fp8": (tensors(lambda old: {name: tensor.to(torch.float8_e4m3fn) for name, tensor in old.items()}), "stored as F8_E4M3"),
    "integers": (tensors(lambda old: old | {"model.layers.0.mlp.up_proj.weight": torch.ones(192, 96, dtype=torch.int8)}), "stored as I8"),
    "scales": (tensors(lambda old: old | {"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1, 1)}),
               "have 1 tensor (model.layers.0.mlp.up_proj.weight_scale_inv) that"),
    "a bias too many": (tensors(lambda old: old | {"model.layers.0.mlp.up_proj.bias": torch.ones(192)}), "no place for"),
    "a weight missing": (tensors(lambda old: {name: tensor for name, tensor in old.items() if name != "model.norm.weight"}),
                         "lack 1 tensor (model.norm.weight)"),
    "biases missing": (setting("config", attention_bias=True), "lack 12 tensors"),
    "a layer too many": (setting("config", num_hidden_layers=2, layer_types=None), "no place for"),
    "another width": (setting("config", intermediate_size=200), "shape [96, 192] in the weights and [96, 200] by config.json"),
    "no head": (setting("config", tie_word_embeddings=False), "tie_word_embeddings: true"),
    "two heads": (tensors(lambda old: old | {"lm_head.weight": 2 * old["model.embed_tokens.weight"]}), "two different tensors"),
    "another name": (tensors(lambda old: {"module." + name: tensor for name, tensor in old.items()}), "lack 35 tensors"),
    "other files": (setting("config", transformers_weights="model-00001-of-00001.safetensors"), "transformers_weights"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("module", [stage1_grpo, stage4_distill, evaluation], ids=["stage1", "stage4", "eval"])
def test_refused_in_one_sentence(toy, copy_of, refused, case, module):
    change, expected = BROKEN[case]
    model_dir = copy_of(toy / "teacher", "changed")
    change(model_dir)
    sentence = refused(model_dir, module=module)
    assert expected in sentence and "changed" in sentence


def test_a_directory_and_a_file_without_permission(toy, tmp_path, refused, monkeypatch, capfd):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "teacher: no permission to read this directory" in refused(toy / "teacher")
    with pytest.raises(SystemExit):
        checkpoints.check_readable(tmp_path)
    assert f"{tmp_path} cannot be read (Is a directory)" in capfd.readouterr().err


def test_a_foreign_args_json_makes_no_run(toy, copy_of):
    """Other programs write files of that name, beside a checkpoint or above it."""
    model_dir = copy_of(toy / "student", "model")
    for directory in (model_dir, model_dir.parent):
        (directory / "args.json").write_text('{"lr": 0.1}')
    assert checkpoints.find_model(model_dir) == checkpoints.find_model(toy / "student") | {"path": str(model_dir)}


@pytest.mark.parametrize("dtype, change, expected", [
    ("float32", lambda old: old | {"model.norm.weight": old["model.norm.weight"] * torch.nan}, "model.norm.weight) with numbers that are NaN"),
    ("bfloat16", lambda old: old | {"model.norm.weight": torch.full((96,), 3.4e38)}, "infinite in bfloat16"),
    ("float32", lambda old: old | {"model.norm.weight": torch.full((96,), 1e300, dtype=torch.float64)}, "infinite in float32"),
    ("float32", lambda old: old | {"model.norm.weight": torch.full((96,), 3e38)}, "logits are NaN or infinite in float32")])
def test_numbers_that_are_not_finite(toy, copy_of, refused, dtype, change, expected):
    changed = rewrite(copy_of(toy / "teacher", "changed"), change)
    for module, flags in ((stage1_grpo, ()), (stage4_distill, ()), (evaluation, ("--temperature", 0))):
        sentence = refused(changed, "--dtype", dtype, *flags, "--overwrite", module=module, made=True)
        assert expected in sentence and "changed" in sentence


def test_a_missing_expert(toy, tmp_path, refused):
    model_dir = saved(random_model("Qwen3Moe"), tmp_path / "changed", toy)
    rewrite(model_dir, lambda old: {name: tensor for name, tensor in old.items() if "layers.1.mlp.experts.2.up_proj" not in name})
    assert "cannot load these weights" in refused(model_dir, made=True)


# ---------------------------------------------------------------- ids


def test_end_tokens_of_all_files(toy, copy_of):
    """A base model's configs under a chat model's tokenizer; a class's default among the words of the tokenizer."""
    def stop_of(name, generation, config, tokenizer):
        model_dir = copy_of(toy / "student", name, config={"eos_token_id": config}, tokenizer_config={"eos_token": tokenizer})
        setting("generation_config", eos_token_id=generation)(model_dir)
        return models.eos_ids(model_dir, common.load_tokenizer(model_dir))

    assert stop_of("same", 1, 1, "<eos>") == [1]
    assert stop_of("base", 1, 1, "}") == [1, 4]
    assert stop_of("several", [4, 1], 1, "<eos>") == [4, 1]
    assert stop_of("config alone", None, 0, None) == [0]
    assert stop_of("default", 1, 2, "<eos>") == [1]                 # 2 is `=` here
    assert stop_of("default alone", None, 2, None) == [2]
    assert stop_of("beyond the model", [99, 1], 99, "<eos>") == [1]


def test_completions_end_at_every_end_token(toy, copy_of, tmp_path):
    model_dir = copy_of(toy / "teacher", "chat", tokenizer_config={"eos_token": "}"})
    run(evaluation, "--model", model_dir, "--problems", toy / "few_test.jsonl", "--samples", 2, "--max-new-tokens", 20, "--out", tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert all(all(row["finished"]) for row in rows) and {text.count("}") for row in rows for text in row["completions"]} <= {0}


def test_an_id_without_a_row(toy, copy_of, tmp_path, refused):
    """Gemma 3's image token in its models of text: only a prompt that has it is refused; padding takes another id."""
    model_dir = copy_of(toy / "student", "text")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.add_special_tokens({"pad_token": "<image>"})
    tokenizer.save_pretrained(model_dir)
    assert models.vocabulary_size(tokenizer) == 16 and models.vocabulary_size(tokenizer, model_dir) == 15
    assert common.load_tokenizer(model_dir).pad_token_id == EOS
    for name, teacher in (("alone", None), ("pair", toy / "teacher")):
        flags = ["--model", model_dir] if teacher is None else ["--student", model_dir, "--teacher", teacher]
        run(stage1_grpo if teacher is None else stage4_distill, *flags, "--problems", toy / "few_train.jsonl", "--out", tmp_path / name,
            "--max-new-tokens", 8, "--max-steps", 1, "--prompts-per-step", 2)
        checkpoints.find_model(tmp_path / name)
    problems = tmp_path / "image.jsonl"
    problems.write_text('{"problem": "1=", "answer": "1"}\n{"problem": "<image>=", "answer": "1"}\n')
    told = refused(model_dir, "--problems", problems)
    assert "image.jsonl, line 2: its prompt has the id 15, and the model only ids below 15" in told


def test_pairs_share_the_ids_that_both_have_rows_for(toy, tmp_path, copy_of):
    """The teacher has rows for two more tokens than the student."""
    teacher = common.load_model(toy / "teacher", common.load_tokenizer(toy / "teacher"), "float32", "cpu")
    teacher.resize_token_embeddings(17, mean_resizing=False)
    tokenizer = AutoTokenizer.from_pretrained(toy / "teacher")
    tokenizer.add_tokens(["<a>", "<b>"])
    for part in (teacher, tokenizer):
        part.save_pretrained(tmp_path / "wide")
    size = models.check_pair(toy / "student", common.load_tokenizer(toy / "student"), tmp_path / "wide", tokenizer)
    assert size == 15
    run(stage4_distill, "--student", toy / "student", "--teacher", tmp_path / "wide", "--problems", toy / "few_train.jsonl",
        "--out", tmp_path / "run", "--max-new-tokens", 8, "--max-steps", 1, "--prompts-per-step", 2)


# ---------------------------------------------------------------- the hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(toy, tmp_path, monkeypatch) -> Path:
    """A cache that holds owner/small at the branch main."""
    import huggingface_hub.constants
    folder = tmp_path / "cache" / "models--owner--small"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots").mkdir()
    shutil.copytree(toy / "teacher", folder / "snapshots" / COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["owner/small", "owner/small@main", f"owner/small@{COMMIT}"])
def test_a_name_on_the_hub(toy, tmp_path, cache, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(evaluation, "--model", name, "--problems", toy / "few_test.jsonl", "--samples", 1, "--max-new-tokens", 8, "--out", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "args.json").read_text())
    assert record["args"]["model"] == name and record["parents"]["model"]["hub"] == f"owner/small@{COMMIT}"
    assert record["parents"]["model"]["sha256"] == checkpoints.find_model(toy / "teacher")["sha256"]


@pytest.mark.parametrize("name", ["owner/other", "owner/small@v2", "owner/small@" + "f" * 40])
def test_a_name_that_cannot_be_had(tmp_path, cache, refused, name):
    told = refused(name)
    assert name in told and "no such directory" in told and "hub" in told


def test_a_directory_wins_over_the_hub(toy, tmp_path, cache, monkeypatch, copy_of):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    copy_of(toy / "student", "owner/small")
    assert checkpoints.find_model(Path("owner/small"))["path"] == "owner/small"


@pytest.mark.parametrize("name", ["missing", "/no/such/model", "a/b/c", "../models/x"])
def test_a_path_is_not_looked_up(tmp_path, refused, monkeypatch, name):
    monkeypatch.setattr(checkpoints, "snapshot", lambda *args: pytest.fail("a path was asked of the hub"))
    assert f"{name}: no such directory" in refused(name)


def test_one_rank_of_a_node_downloads_first(toy, tmp_path, cache):
    """What is asked for, by rank and in order: rank 0 a branch, then all others its commit; no pickles, no subfolders."""
    script = tmp_path / "ask.py"
    script.write_text(f"""
import json, os
import huggingface_hub
huggingface_hub.constants.HF_HUB_CACHE = {str(cache)!r}
real = huggingface_hub.snapshot_download
def noted(repository, **flags):
    with open({str(tmp_path / "asked")!r}, "a") as file:
        file.write(json.dumps([os.environ["RANK"], repository, flags["revision"], flags["allow_patterns"], flags["ignore_patterns"]]) + "\\n")
    return real(repository, **flags)
huggingface_hub.snapshot_download = noted
from pathlib import Path
from engine import checkpoints, ranks
ranks.setup_distributed()
assert checkpoints.find_model(Path("owner/small@main"))["hub"] == "owner/small@{COMMIT}"
try:
    checkpoints.find_model(Path("owner/none"))
except SystemExit as stop:
    assert stop.code == 2
""")
    assert run_ranks(2, script).count("error: owner/none: no such directory") == 1
    asked = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert [row[:3] for row in asked] == [["0", "owner/small", "main"], ["1", "owner/small", COMMIT], ["0", "owner/none", None]]
    assert asked[0][3] == ["*.safetensors", "README.md", "*.json", "*.jinja", "*.txt", "tokenizer.model"] and "*/*" in asked[0][4]


# ---------------------------------------------------------------- written


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_of_the_umask(toy, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        run(stage1_grpo, "--model", toy / "student", "--problems", toy / "few_train.jsonl", "--out", tmp_path / "run", "--max-new-tokens", 8,
            "--max-steps", 2, "--prompts-per-step", 2, "--steps-per-rollout", 1, "--save-every", 1)
    finally:
        os.umask(before)
    files = [file for folder in ("model", "state") for file in (tmp_path / "run" / folder).rglob("*") if file.is_file()]
    assert len(files) > 6 and {stat.S_IMODE(file.stat().st_mode) for file in files} == {mode}


def test_what_the_final_model_says_is_true(toy, copy_of, tmp_path):
    """From a checkpoint in bf16 with padded rows, an end token of its tokenizer's own, and settings of beam search."""
    model = common.load_model(toy / "student", common.load_tokenizer(toy / "student"), "float32", "cpu")
    model.resize_token_embeddings(32, mean_resizing=False)
    model_dir = copy_of(toy / "student", "padded", tokenizer_config={"eos_token": "}"})
    model.to(torch.bfloat16).save_pretrained(model_dir)
    setting("config", pad_token_id=31)(model_dir)
    setting("generation_config", eos_token_id=1, pad_token_id=31, num_beams=1, length_penalty=2.0, temperature=0.6)(model_dir)
    assert json.loads((model_dir / "config.json").read_text())["dtype"] == "bfloat16"
    run(stage1_grpo, "--model", model_dir, "--problems", toy / "few_train.jsonl", "--out", tmp_path / "run", "--max-new-tokens", 8,
        "--max-steps", 1, "--prompts-per-step", 2, "--dtype", "bfloat16")
    final = tmp_path / "run" / "model"
    config, generation = (json.loads((final / f"{name}.json").read_text()) for name in ("config", "generation_config"))
    assert {key: config[key] for key in ("dtype", "vocab_size", "tie_word_embeddings", "eos_token_id", "pad_token_id")} == {
        "dtype": "float32", "vocab_size": 15, "tie_word_embeddings": True, "eos_token_id": [1, 4], "pad_token_id": None}
    assert generation["eos_token_id"] == [1, 4] and generation["pad_token_id"] == PAD
    written = load_file(final / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float32} and len(written["model.embed_tokens.weight"]) == 15
    checkpoints.find_model(tmp_path / "run")
    assert AutoModelForCausalLM.from_pretrained(final).generation_config.eos_token_id == [1, 4]
    assert models.eos_ids(final, common.load_tokenizer(final)) == [1, 4]
