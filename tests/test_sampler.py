"""The sampler and the forward passes that score what it drew."""
import json

import pytest
import torch
from conftest import EOS, PAD

from engine import attention, checkpoints, hardware, linears, rollouts, sampler
from common import completion_logits, completion_logprobs, load_model, load_tokenizer, sample
from engine.heads import has_known_head
from engine.rollouts import pad
from engine.sampler import draw
from engine.sharding import sampling_weights


def draw_many(model, prompts, count=1, **changes):
    options = {"samples_per_prompt": count, "max_new_tokens": 6, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "eos_ids": [EOS],
               "pad_id": PAD, "generator": torch.Generator().manual_seed(0)}
    return sample(model, prompts, **(options | changes))


def one_rollout(prompt, completion, extra_pads=0):
    """A rollout alone, its prompt left-padded and its completion right-padded by hand."""
    prompt_ids, prompt_mask = pad([prompt, [PAD] * (len(prompt) + extra_pads)], PAD, "cpu", left=True)
    completion_ids, completion_mask = pad([completion, [PAD] * (len(completion) + extra_pads)], PAD, "cpu", left=False)
    return rollouts.Rollouts(prompt_ids[:1], prompt_mask[:1], completion_ids[:1], completion_mask[:1], torch.tensor([True]))


@pytest.mark.parametrize("pads", [1, 17])
def test_padding_changes_no_logprob_and_no_next_token(tiny, pads):
    prompt, completion = [5, 6, 7, 2], [8, 9, 3, EOS]
    alone, padded = one_rollout(prompt, completion), one_rollout(prompt, completion, pads)
    expected, got = completion_logprobs(tiny, alone), completion_logprobs(tiny, padded)[:, :4]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert torch.equal(completion_logits(tiny, alone).argmax(-1), completion_logits(tiny, padded)[:, :4].argmax(-1))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_sampler_logprobs_are_those_of_the_trainer(tiny, temperature):
    """Ragged prompts, rows that leave, one temperature for both."""
    rollouts = draw_many(tiny, [[5, 6, 2], [7] * 9, [8]], 40, temperature=temperature, max_new_tokens=20)
    assert rollouts.finished.any() and not rollouts.finished.all()
    recomputed = completion_logprobs(tiny, rollouts, temperature)
    torch.testing.assert_close(rollouts.sampler_logprobs, recomputed, atol=2e-5, rtol=0)
    assert (rollouts.sampler_logprobs[~rollouts.completion_mask] == 0).all()


def test_mask_covers_the_eos_and_nothing_after(tiny):
    rollouts = draw_many(tiny, [[5, 6, 2]], 200, max_new_tokens=30)
    for completion, finished in zip(rollouts.completions(), rollouts.finished.tolist()):
        assert completion.count(EOS) == int(finished)
        assert completion[-1] == EOS if finished else len(completion) == 30
    assert (rollouts.completion_ids[~rollouts.completion_mask] == PAD).all()


def test_gradient_reaches_the_eos_logit(tiny):
    rollouts = one_rollout([5, 2], [5, 7, EOS])
    logits = completion_logits(tiny, rollouts).detach().requires_grad_()
    logprobs = logits.log_softmax(-1).gather(-1, rollouts.completion_ids[..., None])[..., 0]
    (logprobs * rollouts.completion_mask).sum().backward()
    assert logits.grad[0, 2, EOS].abs() > 1e-3


def chi_square(counts, probs) -> float:
    expected = probs * counts.sum()
    kept = expected > 0
    assert (counts[~kept] == 0).all()
    return float(((counts - expected)[kept] ** 2 / expected[kept]).sum())


@pytest.mark.parametrize("temperature, top_p, top_k", [(1.0, 1.0, 0), (0.7, 1.0, 0), (1.0, 0.6, 0), (1.0, 1.0, 3), (1.3, 0.8, 5)])
def test_frequencies_match_the_softmax(tiny, temperature, top_p, top_k):
    prompt = [5, 6, 7, 2]
    with torch.no_grad():
        probs = (tiny(torch.tensor([prompt])).logits[0, -1].float() * 3 / temperature).softmax(-1)
    tiny.lm_head.register_forward_hook(lambda module, inputs, logits: logits * 3)         # a less even distribution
    if top_k:
        probs[probs.argsort(descending=True)[top_k:]] = 0
    order = probs.argsort(descending=True)
    mass_before = probs[order].cumsum(0) - probs[order]
    probs[order[mass_before >= top_p * probs.sum()]] = 0
    probs = probs / probs.sum()
    rollouts = draw_many(tiny, [prompt], 4000, max_new_tokens=1, temperature=temperature, top_p=top_p, top_k=top_k)
    counts = torch.bincount(rollouts.completion_ids[:, 0], minlength=len(probs)).float()
    assert chi_square(counts, probs) < 45, "15 tokens: chi-square with 14 degrees exceeds 45 once in 25,000 runs"


def test_generation_config_has_no_say(toy, copy_of):
    changed = copy_of(toy / "student", generation_config={"top_k": 1, "do_sample": True, "repetition_penalty": 5.0, "temperature": 0.01})
    tokenizer = load_tokenizer(changed)
    plain, with_config = (load_model(path, tokenizer, "float32", "cpu") for path in (toy / "student", changed))
    prompts = [tokenizer("3491827546=")["input_ids"]]
    expected, got = draw_many(plain, prompts, 16), draw_many(with_config, prompts, 16)
    assert expected.completions() == got.completions()
    assert len(set(map(tuple, got.completions()))) >= 2


@pytest.mark.filterwarnings("ignore")
def test_greedy_equals_generate(tiny):
    """Token by token, with ragged prompts, after rows have left."""
    prompts = [[5, 6, 2], [7] * 9, [8, 8], [9, 10, 11, 2]]
    rollouts = draw_many(tiny, prompts, temperature=0, max_new_tokens=24)
    for prompt, completion in zip(prompts, rollouts.completions()):
        expected = tiny.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24, eos_token_id=EOS, pad_token_id=PAD)
        assert completion == expected[0, len(prompt):].tolist()


def test_each_distinct_prompt_is_prefilled_once(tiny, monkeypatch):
    sampler.has_plain_attention(tiny)                    # its own forward passes are not counted
    sizes = []
    forward = tiny.forward
    monkeypatch.setattr(tiny, "forward", lambda ids, **kwargs: (sizes.append(tuple(ids.shape)), forward(ids, **kwargs))[1])
    rollouts = draw_many(tiny, [[5, 6, 2], [7, 8, 2], [5, 6, 2]], 4)
    assert sizes[0] == (2, 3) and len(rollouts) == 12
    assert rollouts.prompts() == [[5, 6, 2]] * 4 + [[7, 8, 2]] * 4 + [[5, 6, 2]] * 4


def test_finished_rows_leave_the_batch(tiny, monkeypatch):
    sampler.has_plain_attention(tiny)                    # its own forward passes are not counted
    sizes = []
    forward = tiny.forward
    monkeypatch.setattr(tiny, "forward", lambda ids, **kwargs: (sizes.append(len(ids)), forward(ids, **kwargs))[1])
    rollouts = draw_many(tiny, [[5, 6, 2]], 50, max_new_tokens=40)
    lengths = rollouts.completion_mask.sum(1)
    assert sizes[1:] == [int(((lengths > t)).sum()) for t in range(1, 40) if (lengths > t).any()]


def test_edges(tiny):
    assert len(draw_many(tiny, [])) == 0
    one = draw_many(tiny, [[5]], 3, max_new_tokens=1)
    assert one.completion_ids.shape == (3, 1)
    always = draw_many(tiny, [[5]], 3, eos_ids=list(range(15)))
    assert always.finished.all() and always.completion_ids.shape == (3, 1)


def test_the_last_uniform_draws_a_token_that_is_possible():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    for u in (0.0, 1 - 2**-24):
        tokens, logprobs = draw(logits, torch.tensor([[u, u]]), 1.0, 1.0, 0)
        assert tokens.item() in (0, 1) and torch.isfinite(logprobs).all()


def test_padded_vocabulary_is_cut(toy, copy_of):
    """64 untrained columns with large logits: never sampled, in no softmax."""
    tokenizer = load_tokenizer(toy / "teacher")
    model = load_model(toy / "teacher", tokenizer, "float32", "cpu")
    padded = load_model(toy / "teacher", tokenizer, "float32", "cpu")
    padded.resize_token_embeddings(15 + 64, mean_resizing=False)
    with torch.no_grad():
        padded.get_output_embeddings().weight[15:] = 10 * padded.get_output_embeddings().weight[:1]
    directory = copy_of(toy / "teacher")
    padded.save_pretrained(directory)
    assert json.loads((directory / "config.json").read_text())["vocab_size"] == 79
    cut = load_model(directory, tokenizer, "float32", "cpu")
    rollouts = draw_many(cut, [[5, 6, 2]], 50)
    assert rollouts.completion_ids.max() < 15
    torch.testing.assert_close(completion_logits(cut, rollouts), completion_logits(model, rollouts))


def test_dropout_is_off_in_a_loaded_model(toy, copy_of):
    model = load_model(copy_of(toy / "student", config={"attention_dropout": 0.5}), load_tokenizer(toy / "student"),
                       "float32", "cpu", trainable=True).train()
    ids = torch.arange(5, 15)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_tied_embeddings_stay_tied(toy, tmp_path):
    tokenizer = load_tokenizer(toy / "student")
    model = load_model(toy / "student", tokenizer, "float32", "cpu")
    checkpoints.save_model(model, tokenizer, [EOS], tmp_path / "model")
    again = load_model(tmp_path / "model", tokenizer, "float32", "cpu")
    assert again.get_output_embeddings().weight.data_ptr() == again.get_input_embeddings().weight.data_ptr()


def test_the_bfloat16_copy_that_samples_is_the_policy_that_trains():
    """Its weights are rounded, its rotary frequencies are not: positions would turn elsewhere, the further out the more."""
    model = random_model("Qwen3")
    with sampling_weights(model, "bfloat16") as twin:
        assert {parameter.dtype for parameter in twin.parameters()} == {torch.bfloat16} and model.dtype == torch.float32
        assert all(torch.equal(one, other) for one, other in zip(model.buffers(), twin.buffers(), strict=True)) and [*twin.buffers()]
        rollouts = sample(twin, [[5, 6, 7], [8, 9]], samples_per_prompt=2, max_new_tokens=12, eos_ids=[EOS], pad_id=PAD)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert has_known_head(model), "asked for under autocast, as a stage does first"
        logprobs = completion_logprobs(model, rollouts)
    assert (logprobs - rollouts.sampler_logprobs)[rollouts.completion_mask].abs().mean() < 0.1


# ---------------------------------------------------------------- every architecture, beside generate()


def random_model(family: str, **changes):
    """Two or four layers of Hugging Face's own class with weights large enough that attention matters."""
    import transformers

    torch.manual_seed(1)
    options = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
               "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.4,
               "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None, "tie_word_embeddings": False}
    if family == "Falcon":
        del options["head_dim"]
    if family in ("Gemma3", "Mistral"):
        options["sliding_window"] = 5                   # shorter than prompts and completions
    if family == "Gemma3":
        options |= {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "query_pre_attn_scalar": 8}
    text = "Text" if family == "Gemma3" else ""
    config = getattr(transformers, f"{family}{text}Config")(**(options | changes))
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


FAMILIES = ["Qwen3", "Llama", "Gemma3", "Mistral", "GPTNeoX"]
RAGGED = [[5, 6, 2], [7] * 9, [8], [9, 10, 11, 2], [5, 6, 2], [30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 3, 4]]


def assert_greedy_equals_generate(model, rollouts, prompts, max_new_tokens, eos=EOS):
    for prompt, completion in zip(prompts, rollouts.completions()):
        expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=eos,
                                  pad_token_id=PAD, repetition_penalty=1.0)
        assert completion == expected[0, len(prompt):].tolist()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rollout_tokens", [None, 90])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate_in_every_family(family, rollout_tokens):
    """With ragged prompts; with room for two or three rows, so that rows leave and join at different times."""
    model = random_model(family)
    assert sampler.has_plain_attention(model)
    unended = draw_many(model, RAGGED, temperature=0, max_new_tokens=24, eos_ids=[]).completion_ids
    eos = int(unended[0, 5])                             # an id that some rows draw sooner than others
    rollouts = draw_many(model, RAGGED, temperature=0, max_new_tokens=24, eos_ids=[eos], rollout_tokens=rollout_tokens)
    assert len(set(rollouts.completion_mask.sum(1).tolist())) > 1
    assert_greedy_equals_generate(model, rollouts, RAGGED, 24, eos)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rollout_tokens", [None, 200])
def test_sampled_logprobs_are_those_of_a_whole_forward_pass(family, rollout_tokens):
    model = random_model(family)
    rollouts = draw_many(model, RAGGED, 5, max_new_tokens=20, eos_ids=[1, 2, 3], rollout_tokens=rollout_tokens)
    assert len(set(rollouts.completion_mask.sum(1).tolist())) > 4
    with torch.no_grad():
        recomputed = completion_logprobs(model, rollouts)
    torch.testing.assert_close(rollouts.sampler_logprobs, recomputed, atol=5e-5, rtol=1e-5)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_change_no_result_and_leave_nothing(dtype):
    """A product is rounded once, to the model's dtype; after sampling the model is as it was."""
    model = random_model("GPTNeoX").to(dtype)                # has biases
    before = {name: (parameter, parameter.stride()) for name, parameter in model.named_parameters()}
    layer, x = model.gpt_neox.layers[0].attention.dense, torch.randn(3, 1, 32).to(dtype)
    expected = layer(x)
    with torch.no_grad(), linears.packed_weights(model):
        torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=2 * torch.finfo(dtype).eps)
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(parameter is before[name][0] and parameter.stride() == before[name][1]
               for name, parameter in model.named_parameters())


def test_shards_and_quantised_weights_keep_their_own_matmul():
    class Quantised(torch.nn.Parameter):
        pass

    layer = torch.nn.Linear(3, 4)
    layer.weight = Quantised(layer.weight.detach())
    with linears.packed_weights(layer):
        assert "forward" not in vars(layer)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_models_share_prefixes(family):
    assert sampler.has_plain_attention(random_model(family).bfloat16())


def test_prefill_wastes_little_on_padding():
    lengths = sorted([131, 109, 96, 94, 79, 62, 74, 151])
    batches = sampler.similar_lengths([[5] * length for length in lengths])
    assert [len(prompt) for batch in batches for prompt in batch] == lengths
    assert sum(len(batch) * len(batch[-1]) for batch in batches) < 1.1 * sum(lengths)
    assert len(sampler.similar_lengths([[5] * 3] * 40)) == 1
    assert max(len(batch) for batch in sampler.similar_lengths([[5] * 1000] * 40)) == 9


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family, changes", [("Gemma2", {"num_hidden_layers": 2, "query_pre_attn_scalar": 8, "sliding_window": 5}),
                                             ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 5}),
                                             ("Falcon", {"alibi": True})])
def test_other_attention_takes_the_plain_way(family, changes):
    """Soft caps, sinks, ALiBi."""
    model = random_model(family, **changes)
    assert not sampler.has_plain_attention(model)
    before = model.config._attn_implementation
    for rollout_tokens in (None, 80):
        assert_greedy_equals_generate(model, draw_many(model, RAGGED, temperature=0, max_new_tokens=12,
                                                       rollout_tokens=rollout_tokens), RAGGED, 12)
    assert model.config._attn_implementation == before


def test_the_attention_function_is_put_back(tiny, monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before, known = tiny.config._attn_implementation, set(ALL_ATTENTION_FUNCTIONS)
    sampler.has_plain_attention(tiny)
    monkeypatch.setattr(sampler.SharedPrefixCache, "attend", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw_many(tiny, [[5, 6]])
    assert tiny.config._attn_implementation == before and set(ALL_ATTENTION_FUNCTIONS) == known
    tiny(torch.tensor([[5, 6]]), use_cache=False).logits.sum().backward()          # and it trains as before


def test_sampled_tensors_can_enter_a_loss(tiny):
    rollouts = draw_many(tiny, [[5, 6, 2]], 4)
    (completion_logprobs(tiny, rollouts) * rollouts.sampler_logprobs).sum().backward()


def test_a_prompt_that_fills_the_context(tiny):
    context = tiny.config.max_position_embeddings
    prompts = [[5 + i % 10 for i in range(context - 1)], [5, 6]]
    rollouts = draw_many(tiny, prompts, 3, max_new_tokens=1)
    assert rollouts.prompt_ids.shape == (6, context - 1) and rollouts.completion_ids.shape == (6, 1)
    torch.testing.assert_close(rollouts.sampler_logprobs, completion_logprobs(tiny, rollouts).detach(), atol=2e-5, rtol=0)


# ---------------------------------------------------------------- waves, and what a rollout depends on


def test_the_cache_keeps_within_its_bound(tiny, monkeypatch, capsys):
    alive = []
    forward = sampler.SharedPrefixCache.forward

    def watched(cache, tokens):
        alive.append(cache.prefix[0][0].shape[0] * cache.prefix[0][0].shape[2] + len(tokens) * cache.max_columns)
        return forward(cache, tokens)

    sampler.has_plain_attention(tiny)
    attention.TOLD.clear()
    monkeypatch.setattr(sampler.SharedPrefixCache, "forward", watched)
    prompts = [[5 + i, 6, 7, 2] for i in range(8)]
    bounded = draw_many(tiny, prompts, 10, max_new_tokens=20, rollout_tokens=500)
    assert max(alive) <= 500 and max(alive) > 400
    assert capsys.readouterr().out.count("--rollout-tokens") == 1
    assert bounded.completions() == draw_many(tiny, prompts, 10, max_new_tokens=20).completions()
    too_small = draw_many(tiny, prompts[:2], 3, max_new_tokens=20, rollout_tokens=1)
    assert too_small.completions() == draw_many(tiny, prompts[:2], 3, max_new_tokens=20).completions()


def test_a_batch_that_memory_does_not_hold_runs_in_waves(tiny, monkeypatch, capsys):
    """With no bound given, and only then, and only if it does not fit."""
    assert 0 < hardware.free_bytes(torch.device("cpu")) and hardware.free_bytes(torch.device("meta")) is None
    token_bytes = 2 * 2 * tiny.config.num_hidden_layers * tiny.config.num_key_value_heads * tiny.config.head_dim * 2
    bounds = []
    take = sampler.take
    monkeypatch.setattr(sampler, "take", lambda *args: (bounds.append(args[3]), take(*args))[1])
    prompts = [[5 + i, 6, 7, 2] for i in range(8)]               # 8 * 4 + 80 * 20 = 1,632 tokens

    def run(free_tokens, **options):
        bounds.clear(), attention.TOLD.clear()
        monkeypatch.setattr(hardware, "free_bytes", lambda device: free_tokens * token_bytes)
        rollouts = draw_many(tiny, prompts, 10, max_new_tokens=20, **options)
        return rollouts.completions(), set(bounds), capsys.readouterr().out

    whole, bound, out = run(3000)
    assert bound == {2**62} and out == ""
    waves, bound, out = run(1500)
    assert bound == {1024} and waves == whole and "does not fit" in out and "1024 tokens" in out
    assert run(1500, rollout_tokens=600)[1] == {600}


PROMPTS = [[5 + i % 9, 6 + i % 7, *[7 + i % 5] * (i % 4)] for i in range(64)]


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9, "top_k": 9}])
def test_a_rollout_depends_on_nothing_else_in_the_batch(tiny, options):
    """The same out of batches of 8 or 64, in any order, on 1 rank or 4, in waves, bit by bit."""
    options = {"count": 3, "max_new_tokens": 16} | options
    whole = draw_many(tiny, PROMPTS, **options)
    completions = whole.completions()
    assert len(set(map(tuple, completions))) > 64

    def check(indices, **more):
        part = draw_many(tiny, [PROMPTS[i] for i in indices], indices=list(indices), **options, **more)
        rows = [3 * i + j for i in indices for j in range(3)]
        assert part.completions() == [completions[row] for row in rows]
        width = part.sampler_logprobs.shape[1]
        torch.testing.assert_close(part.sampler_logprobs, whole.sampler_logprobs[rows, :width], atol=1e-5, rtol=0)

    for start in range(0, 64, 8):
        check(range(start, start + 8))
    for rank in range(4):
        check(range(rank, 64, 4))
    check(torch.randperm(64, generator=torch.Generator().manual_seed(3)).tolist())
    check(range(64), rollout_tokens=600)
    check([17])


def test_samples_and_steps_have_streams_of_their_own():
    index, step = torch.arange(512)[:, None], torch.arange(512)[None]
    numbers, second = sampler.uniforms(2**61 + 12345, index, step).unbind(-1)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.003 and abs(numbers.var() - 1 / 12) < 0.001
    counts = torch.histc(numbers, 256, 0, 1)
    assert chi_square(counts, torch.full((256,), 1 / 256)) < 360, "255 degrees: exceeded once in 50,000 runs"
    for other in (numbers.roll(1, 0), numbers.roll(1, 1), second, sampler.uniforms(2**61 + 12346, index, step)[..., 0]):
        assert abs(torch.corrcoef(torch.stack([numbers.flatten(), other.flatten()]))[0, 1]) < 0.01
    # splitmix64's reference: the first output of seed 0
    assert sampler.mix(torch.tensor([sampler.GOLDEN])).item() % 2**64 == 0xE220A8397B1DCDAF


# ---------------------------------------------------------------- steps in buckets, as a CUDA graph replays them


class StandIn:
    """What CUDA would do, on a CPU: run the captured function again, on tensors that must not have moved."""

    def __init__(self):
        self.captures, self.replays = [], 0

    def __call__(self, function):
        bucket = function.__closure__[0].cell_contents
        self.captures.append((bucket.tokens.shape[0], bucket.fixed.grid.shape, bucket.fixed.width))
        addresses = self.addresses(bucket)

        def replay():
            self.replays += 1
            assert self.addresses(bucket) == addresses
            return function()
        return replay

    @staticmethod
    def addresses(bucket):
        fixed = bucket.fixed
        tensors = [bucket.tokens, fixed.slot, fixed.place, fixed.written, fixed.grid, fixed.column, fixed.lengths]
        tensors += [tensor for layers in (fixed.prefix, fixed.suffix) for pair in layers for tensor in pair]
        return [(tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in tensors]


@pytest.mark.parametrize("rollout_tokens", [None, 300])
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_in_buckets_sample_the_same(family, rollout_tokens, monkeypatch):
    """Rows leave and join, the suffix grows past its first 64 columns and the ring wraps around."""
    model = random_model(family, max_position_embeddings=128)
    options = {"count": 5, "max_new_tokens": 90, "eos_ids": [1], "rollout_tokens": rollout_tokens}
    expected = draw_many(model, RAGGED, **options)
    stand_in = StandIn()
    init = sampler.SharedPrefixCache.__init__

    def with_stand_in(cache, *args):
        init(cache, *args)
        cache.capture = stand_in

    monkeypatch.setattr(sampler.SharedPrefixCache, "__init__", with_stand_in)
    got = draw_many(model, RAGGED, **options)
    assert got.completions() == expected.completions()
    torch.testing.assert_close(got.sampler_logprobs, expected.sampler_logprobs, atol=5e-5, rtol=1e-5)
    assert len(stand_in.captures) < stand_in.replays / 5, "a capture serves many steps"
    assert {width for _, _, width in stand_in.captures} == {64, 90}
    assert all(rows & (rows - 1) == 0 and seats & (seats - 1) == 0 for rows, (_, seats), _ in stand_in.captures)


# ---------------------------------------------------------------- the drawn token


@pytest.mark.parametrize("top_p, top_k", [(1.0, 0), (0.5, 0), (0.95, 0), (1.0, 300), (0.8, 700), (1e-6, 0)])
def test_draws_from_a_large_vocabulary(top_p, top_k):
    """Flat rows need the full sort, steep ones do not; -inf and truncated ids never come out."""
    torch.manual_seed(0)
    logits = torch.randn(6, 2000) * torch.tensor([0.0, 0.01, 1, 3, 10, 30])[:, None]
    logits[:, 1500:] = -torch.inf
    logits[1, :4] = logits[1].max() + 1                  # ties at the top
    probs = logits.softmax(-1)
    for u in torch.rand(50).tolist() + [0.0, 1 - 2**-24]:
        tokens, logprobs = draw(logits, torch.full((6, 2), u), 1.0, top_p, top_k)
        torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0], atol=1e-5, rtol=1e-5)
        for row, token in enumerate(tokens.tolist()):
            likelier = probs[row][probs[row] > probs[row, token]]
            assert probs[row, token] > 0
            assert not top_k or len(likelier) < top_k
            assert top_p == 1 or likelier.sum() < top_p + 1e-5


def test_frequencies_over_several_blocks():
    torch.manual_seed(0)
    logits = torch.randn(700).sort().values * 2          # three blocks of 256, the last one short
    tokens, _ = draw(logits.expand(40000, -1), torch.rand(40000, 2), 1.0, 1.0, 0)
    probs, counts = logits.softmax(-1), torch.bincount(tokens, minlength=700).float()
    frequent = probs * 40000 > 5
    assert counts[~frequent].sum() < 3 * probs[~frequent].sum() * 40000 + 10
    assert chi_square(counts[frequent], probs[frequent] / probs[frequent].sum()) < 1.4 * frequent.sum()


def test_ties_share_alike():
    tokens = draw(torch.tensor([[0.0, 1, 1, 1]]).expand(6000, 4), torch.rand(6000, 2, generator=torch.Generator().manual_seed(0)), 1.0, 0.5, 0)[0]
    kept = tokens.unique()
    assert len(kept) == 2 and set(kept.tolist()) <= {1, 2, 3}        # the fewest tokens that hold half
    assert abs((tokens == kept[0]).float().mean() - 0.5) < 0.03
