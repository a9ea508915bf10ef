"""plan.py's formulas beside transformers: parameters exactly, kept activations to the byte; what fits and what does not."""
import json
import math
from dataclasses import replace

import pytest
import torch
from forks import ROOT, Fork
from transformers import (
    AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, Qwen2Config, Qwen3Config, Qwen3ForCausalLM,
)

import plan
from engine.packed import Packed
from engine.rollouts import Rollouts
from experiments.tables import SCALES, TABLES
from plan import MODELS, Model, Stage, Wave, find, moments, peak, remedy, total, usable

def config_of(model: Model, config_class, **others):
    return config_class(vocab_size=model.vocab, hidden_size=model.hidden, intermediate_size=model.intermediate,
                        num_hidden_layers=model.layers, num_attention_heads=model.heads, num_key_value_heads=model.kv_heads,
                        head_dim=model.head_dim, tie_word_embeddings=model.tied, **others)


def count_on_meta(config) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())


# The numbers that the models' own cards and index files give.
PUBLISHED = {"Qwen3-0.6B": 596_049_920, "Qwen3-1.7B": 1_720_574_976, "Qwen3-4B": 4_022_468_096, "Qwen3-8B": 8_190_735_360,
             "Qwen3-14B": 14_768_307_200, "Qwen3-32B": 32_762_123_264, "Llama-3.1-8B-Instruct": 8_030_261_248,
             "Llama-3.3-70B-Instruct": 70_553_706_496, "Llama-3.2-1B-Instruct": 1_235_814_400, "Llama-3.2-3B-Instruct": 3_212_749_824,
             "SmolLM2-135M": 134_515_008}


@pytest.mark.parametrize("name", list(MODELS))
def test_the_papers_models_have_as_many_parameters_as_their_cards_say(name):
    assert find(name).params == PUBLISHED[name]


@pytest.mark.parametrize("table", [name for name, table in TABLES.items() if not table.over or table.over in SCALES["small"].over])
def test_every_table_of_the_small_scale_fits_one_gpu(table):
    for setting in SCALES["small"].over.get(TABLES[table].over, [None]):
        args = plan.parse_args(["--scale", "small", "--table", table, "--gpus", "1", "--gpu", "H100", *(["--setting", setting] if setting else [])])
        planned = plan.plan_table(args)
        assert len(planned) > 8 and all(peak(each) <= usable("H100") for each in planned), setting
        assert next(each for each in planned if each.name == "shape").steps <= 16, "C1 is paid from the labels"


@pytest.mark.parametrize("config", [
    Qwen2Config(vocab_size=99, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2),
    MistralConfig(vocab_size=99, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1),
    LlamaConfig(vocab_size=99, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, attention_bias=True),
    Qwen3Config(vocab_size=99, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                head_dim=8, tie_word_embeddings=True)], ids=lambda config: config.model_type)
def test_a_users_config_is_counted_exactly(config, tmp_path):
    config.save_pretrained(tmp_path)
    assert find(str(tmp_path)).params == find(str(tmp_path / "config.json")).params == count_on_meta(config)


@pytest.mark.parametrize("model_class, config_class", [(Qwen3ForCausalLM, Qwen3Config), (LlamaForCausalLM, LlamaConfig)])
@pytest.mark.parametrize("dtype, autocast", [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)])
@pytest.mark.parametrize("prompts", [1, 2, 4])
def test_activations_are_what_autograd_keeps(model_class, config_class, dtype, autocast, prompts):
    """To the byte: every storage that a saved tensor lies in, less the parameters' and the copies that autocast makes of them."""
    shape = plan.shape(config_class.model_type, 96, 48, 112, 3, 4, 2, 16, tied=True)
    model = model_class(config_of(shape, config_class)).to(dtype)
    stage = Stage("", shape, shape, width=2 if autocast else dtype.itemsize, micro_batch_size=4, samples=4 // prompts,
                  max_prompt=13, max_new=17, gpus=1 if dtype == torch.float32 else 2)
    own, kept = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}, {}
    weights = {parameter.mT.shape for parameter in model.parameters() if parameter.dim() == 2}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.shape not in weights:   # no matrix of activations has a weight's shape
            kept[storage.data_ptr()] = storage              # held, so that no address is used twice
        return tensor

    prompt_ids = torch.arange(prompts).repeat_interleave(stage.samples)[:, None].expand(-1, stage.max_prompt)
    ids = torch.zeros(4, stage.max_new, dtype=torch.int64)
    packed = Packed(Rollouts(prompt_ids, torch.ones_like(prompt_ids, dtype=torch.bool), ids, torch.ones_like(ids, dtype=torch.bool),
                             torch.ones(4, dtype=torch.bool)))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, autocast):
        packed.call(model, model.base_model, **packed.inputs)
    assert sum(storage.nbytes() for storage in kept.values()) == plan.activations(stage)


def test_the_cache_is_what_the_sampler_allocates():
    from engine.sampler import SharedPrefixCache
    shape = plan.shape("qwen3", 96, 48, 112, 3, 4, 2, 16, tied=True)
    model = Qwen3ForCausalLM(config_of(shape, Qwen3Config)).eval()
    stage = Stage("", shape, width=4, max_prompt=5, max_new=64)
    cache = SharedPrefixCache(model, stage.max_prompt, stage.max_new)
    with torch.no_grad():
        cache.join([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], [3, 3])
        cache.forward(torch.arange(6))
    nbytes = sum(tensor.nbytes for pair in cache.prefix + cache.suffix for tensor in pair)
    assert nbytes == plan.kv_per_token(shape, 4) * plan.cached_tokens(stage, Wave(2, 3))


def teacher_stage(**changes) -> Stage:
    model = find("Qwen3-8B")
    return replace(Stage("teacher", model, model, steps=10, rollouts=1024, scored_by_sampler=1024, waves=(Wave(512, 8, 0.25),), gpus=8,
                         micro_batch_size=2), **changes)


def test_states_are_sharded_and_add_up():
    one, eight = (plan.standing(teacher_stage(gpus=gpus), training=True) for gpus in (1, 8))
    size = find("Qwen3-8B").params
    assert one["weights"] == one["gradients"] == 4 * size and one["optimiser"] == 8 * size
    assert total(one) == pytest.approx(8 * total(eight))
    assert "gradients" in moments(teacher_stage())["block"] and not moments(teacher_stage())["rollouts"]["gradients"]


def test_each_flag_saves_the_part_that_it_is_for():
    stage = teacher_stage(readers=(find("Qwen3-14B"),))
    before = moments(stage)
    for change, moment, part in (({"micro_batch_size": 1}, "block", "activations"),
                                 ({"activation_checkpointing": True}, "block", "activations"),
                                 ({"rollout_tokens": 100_000}, "rollouts", "cache"),
                                 ({"sample_on_shards": True}, "rollouts", "gathered"),
                                 ({"gpus": 16}, "head", "optimiser")):
        assert moments(replace(stage, **change))[moment][part] < 0.75 * before[moment][part], change
    offloaded = moments(replace(stage, offload_teacher=True))
    assert "teacher" not in offloaded["rollouts"] and offloaded["head"]["teacher"] == before["rollouts"]["teacher"] > 0


def test_what_is_proposed_fits_and_what_fits_is_left_alone():
    stage, gpu = teacher_stage(), "H100"
    proposed = remedy(stage, gpu)
    assert peak(stage) > usable(gpu) >= peak(proposed)
    assert remedy(proposed, gpu) is proposed
    assert any(change.startswith("--rollout-tokens") for change in plan.changes(stage, proposed))
    larger = replace(proposed, rollout_tokens=proposed.rollout_tokens + 2000)       # the largest cache that fits
    assert peak(larger) > usable(gpu)
    assert remedy(teacher_stage(gpus=1), "L40S") is None                      # 131 GB of states on 44


def test_a_table_is_planned_from_its_own_commands(capsys):
    args = plan.parse_args(["--scale", "paper", "--gpus", "8", "--gpu", "H100"])
    planned = {each.name: each for each in plan.plan_table(args)}
    teacher, student = find("Qwen3-8B"), find("Qwen3-1.7B")
    assert planned["teacher"].trained == teacher and planned["teacher"].rollouts == 1024
    assert planned["teacher"].waves[0] == Wave(512, 8, 0.25)                   # every 4 steps
    assert planned["student"].trained == student and planned["student"].readers == (teacher,)
    assert planned["direct"].steps == 1600 + 200 + 800                        # the workflow's
    workflow = sum(plan.seconds(planned[name], args) for name in ("teacher", "shape", "bridge", "student"))
    assert plan.seconds(planned["direct_equal_time"], args) == pytest.approx(workflow, rel=0.01)
    plan.main(args)
    out = capsys.readouterr().out
    assert "yes" in out and "NO" not in out                                         # the paper's scale is made for this


@pytest.mark.parametrize("gpus, gpu, remedy", [("8", "A100-40GB", "fits with --rollout-tokens"), ("1", "L40S", "fits with --gpus 8 --rollout-tokens")])
def test_what_does_not_fit_is_said_with_its_remedy(gpus, gpu, remedy, capsys):
    plan.main(plan.parse_args(["--gpus", gpus, "--gpu", gpu]))
    out = capsys.readouterr().out
    assert "NO" in out and remedy in out


def test_times_follow_the_work():
    stage, gpu = teacher_stage(waves=(Wave(512, 8, 0.25),), readers=(find("Qwen3-14B"),), scored_by_readers=1024), "H100"
    seconds = plan.step_seconds(stage, gpu, 0.15)
    size, tokens = find("Qwen3-8B").params, stage.mean_prompt + stage.mean_new
    rate = 0.15 * 989e12                                                            # of one of the eight GPUs
    assert seconds["train"] == pytest.approx(6 * size * 128 * tokens / rate)
    assert seconds["sample"] == pytest.approx(2 * size * 128 * tokens / rate)
    assert seconds["score"] == pytest.approx(2 * (size + find("Qwen3-14B").params) * 128 * tokens / rate)
    assert plan.step_seconds(stage, gpu, 0.3)["train"] == pytest.approx(seconds["train"] / 2)
    checkpointed = plan.step_seconds(replace(stage, activation_checkpointing=True), gpu, 0.15)
    assert checkpointed["train"] == pytest.approx(seconds["train"] * 4 / 3)


def test_a_model_or_gpu_that_is_not_known_is_one_sentence(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    for flag, name, words in (("--model", str(tmp_path), "gpt2"), ("--model", "Qwen9", "--teacher"), ("--gpu", "H900", "RTX4090")):
        with pytest.raises(SystemExit) as stop:
            plan.main(plan.parse_args([flag, name]))
        sentence = capsys.readouterr().err
        assert stop.value.code == 2 and words in sentence and sentence.count("\n") == 1


def test_the_bench_measures_one_small_case_within_its_tolerance():
    """One case of bench/plan.py, in a process of its own: memory, no time."""
    fork = Fork(ROOT / "bench" / "plan.py", "--case", 8)
    assert fork.wait() == 0 and math.isclose(float(fork.said().split("ratio ")[1].split()[0]), 1, abs_tol=0.15), fork.said()
