"""The sampler and the forward passes that score what it drew."""
import json

import pytest
import torch
from conftest import EOS, PAD

import common
from common import completion_logits, completion_logprobs, load_model, load_tokenizer, pad, sample
from sampler import draw


def draw_many(model, prompts, count=1, **changes):
    options = {"samples_per_prompt": count, "max_new_tokens": 6, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "eos_ids": [EOS],
               "pad_id": PAD, "generator": torch.Generator().manual_seed(0)}
    return sample(model, prompts, **(options | changes))


def one_rollout(prompt, completion, extra_pads=0):
    """A rollout alone, its prompt left-padded and its completion right-padded by hand."""
    prompt_ids, prompt_mask = pad([prompt, [PAD] * (len(prompt) + extra_pads)], PAD, "cpu", left=True)
    completion_ids, completion_mask = pad([completion, [PAD] * (len(completion) + extra_pads)], PAD, "cpu", left=False)
    return common.Rollouts(prompt_ids[:1], prompt_mask[:1], completion_ids[:1], completion_mask[:1], torch.tensor([True]))


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
    plain, with_config = (load_model(path, tokenizer, torch.float32, "cpu") for path in (toy / "student", changed))
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
    sizes = []
    forward = tiny.forward
    monkeypatch.setattr(tiny, "forward", lambda ids, **kwargs: (sizes.append(tuple(ids.shape)), forward(ids, **kwargs))[1])
    rollouts = draw_many(tiny, [[5, 6, 2], [7, 8, 2], [5, 6, 2]], 4)
    assert sizes[0] == (2, 3) and len(rollouts) == 12
    assert rollouts.prompts() == [[5, 6, 2]] * 4 + [[7, 8, 2]] * 4 + [[5, 6, 2]] * 4


def test_finished_rows_leave_the_batch(tiny, monkeypatch):
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
        tokens, logprobs = draw(logits, torch.tensor([u]), 1.0, 1.0, 0)
        assert tokens.item() in (0, 1) and torch.isfinite(logprobs).all()


def test_padded_vocabulary_is_cut(toy, copy_of):
    """64 untrained columns with large logits: never sampled, in no softmax."""
    tokenizer = load_tokenizer(toy / "teacher")
    model = load_model(toy / "teacher", tokenizer, torch.float32, "cpu")
    padded = load_model(toy / "teacher", tokenizer, torch.float32, "cpu")
    padded.resize_token_embeddings(15 + 64, mean_resizing=False)
    with torch.no_grad():
        padded.get_output_embeddings().weight[15:] = 10 * padded.get_output_embeddings().weight[:1]
    directory = copy_of(toy / "teacher")
    padded.save_pretrained(directory)
    assert json.loads((directory / "config.json").read_text())["vocab_size"] == 79
    cut = load_model(directory, tokenizer, torch.float32, "cpu")
    rollouts = draw_many(cut, [[5, 6, 2]], 50)
    assert rollouts.completion_ids.max() < 15
    torch.testing.assert_close(completion_logits(cut, rollouts), completion_logits(model, rollouts))


def test_dropout_is_off_in_a_loaded_model(toy, copy_of):
    model = load_model(copy_of(toy / "student", config={"attention_dropout": 0.5}), load_tokenizer(toy / "student"),
                       torch.float32, "cpu", trainable=True).train()
    ids = torch.arange(5, 15)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_tied_embeddings_stay_tied(toy, tmp_path):
    tokenizer = load_tokenizer(toy / "student")
    model = load_model(toy / "student", tokenizer, torch.float32, "cpu")
    common.save_model(model, tokenizer, [EOS], tmp_path / "model")
    again = load_model(tmp_path / "model", tokenizer, torch.float32, "cpu")
    assert again.get_output_embeddings().weight.data_ptr() == again.get_input_embeddings().weight.data_ptr()
