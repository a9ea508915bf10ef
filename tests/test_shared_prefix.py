"""A group's prompt goes through the model once, and the figures are those of a row a rollout."""
import itertools
from pathlib import Path

import pytest
import torch
from conftest import assert_rounded
from forks import run_ranks
from test_sampler import FAMILIES, random_model
from torch.overrides import TorchFunctionMode

from common import completion_divergence, completion_logprobs
from engine import attention, heads, packed, ranks, sharding
from engine.packed import Packed, Padded
from engine.rollouts import Rollouts, even_micro_batches, pad, without_tokens
from stage3_kl import forward_kl
from stage4_distill import reverse_kl

CHANGES = {"Gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 5, "attn_logit_softcapping": None}}
MORE_FAMILIES = ["Qwen2", "Gemma2", "Phi3", "Olmo2", "Cohere", "StableLm", "Starcoder2", "GPT2"]
PROMPTS = [[5, 6, 7]] * 3 + [[8] * 7] + [[9, 10]] * 4 + [[9, 11]]
LENGTHS = [5, 1, 9, 3, 11, 2, 12, 7, 4]


class Wide(TorchFunctionMode):
    """What a model does in float32 whatever its dtype, such as its norms, is done in float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def wide(x):
            return torch.float64 if x is torch.float32 else x

        args, kwargs = [wide(x) for x in args], {name: wide(x) for name, x in (kwargs or {}).items()}
        return args[0].double() if function is torch.Tensor.float else function(*args, **kwargs)


def model_of(family: str):
    if family != "GPT2":
        return random_model(family, **CHANGES.get(family, {}))
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 40, "initializer_range": 0.4}
    none = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "bos_token_id": None, "eos_token_id": 3}
    return GPT2LMHeadModel(GPT2Config(**sizes, **none)).eval()


def ragged_rollouts() -> Rollouts:
    """Groups of 3, 1, 4 and 1; prompts of 2 to 7 tokens; one rollout without a token in the loss."""
    generator = torch.Generator().manual_seed(0)
    completions = [torch.randint(5, 40, (length,), generator=generator).tolist() for length in LENGTHS]
    rollouts = Rollouts(*pad(PROMPTS, 0, "cpu", True), *pad(completions, 0, "cpu", False), torch.ones(9, dtype=torch.bool))
    rollouts.completion_mask[5] = False
    return rollouts


@pytest.fixture(params=["whole rows", "parts"])
def form(request, monkeypatch):
    """Both forms of attention; the rollouts here are so few that the rule would take whole rows."""
    monkeypatch.setattr(packed, "LEAST_WORK", 0 if request.param == "parts" else 2**62)


def only_padded(monkeypatch):
    monkeypatch.setattr(heads, "layout", lambda model, rollouts: Padded(rollouts))


def gradient(model) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def logprobs_and_gradient(model, rollouts) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a loss in which each token's logprob and entropy has another weight."""
    model.zero_grad()
    logprobs, entropy = completion_logprobs(model, rollouts, 0.7, entropy=True)
    weights = torch.linspace(-1, 1, logprobs.numel(), dtype=logprobs.dtype).view_as(logprobs)
    (logprobs * weights + entropy * weights.flip(0)).sum().backward()
    return logprobs.detach(), gradient(model)


def divergence_and_gradient(model, teacher, rollouts, divergence) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    loss, nats, _ = completion_divergence(model, teacher, rollouts, divergence, 0.7)
    loss.backward()
    return nats, gradient(model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES + MORE_FAMILIES)
def test_as_a_row_a_rollout_in_float64(family, form, monkeypatch):
    model, rollouts = model_of(family).double(), ragged_rollouts()
    with Wide():
        assert isinstance(packed.layout(model, rollouts), Packed)
        shared = logprobs_and_gradient(model, rollouts)
        only_padded(monkeypatch)
        plain = logprobs_and_gradient(model, rollouts)
    for got, expected in zip(shared, plain):
        assert got.dtype == torch.float64 and expected.abs().max() > 0.1
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("divergence", [reverse_kl, forward_kl])
def test_divergences_of_two_models_that_are_both_packed(divergence, form, monkeypatch):
    student, teacher, rollouts = model_of("Qwen3"), model_of("Gemma3").requires_grad_(False), ragged_rollouts()
    assert all(isinstance(packed.layout(model, rollouts), Packed) for model in (student, teacher))
    shared = divergence_and_gradient(student, teacher, rollouts, divergence)
    only_padded(monkeypatch)
    for got, expected in zip(shared, divergence_and_gradient(student, teacher, rollouts, divergence)):
        torch.testing.assert_close(got, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", ["Qwen3", "Gemma2", "GPT2"])
def test_a_model_that_only_scores_is_packed_too(family, capsys):
    """The comparison at first use has no gradient to look at there."""
    model, rollouts = model_of(family).requires_grad_(False), ragged_rollouts()
    assert isinstance(packed.layout(model, rollouts), Packed) and not capsys.readouterr().out
    with torch.no_grad():
        padded = packed.Padded(rollouts)
        expected = padded.predicting(model(**padded.inputs).logits.float()).log_softmax(-1)
        ids = rollouts.completion_ids[rollouts.completion_mask]
        got = completion_logprobs(model, rollouts)[rollouts.completion_mask]
    torch.testing.assert_close(got, expected.gather(1, ids[:, None])[:, 0], atol=2e-4, rtol=2e-4)


def test_a_literal_row():
    """The example of the module's docstring."""
    prompts, completions = [[1, 2, 3], [1, 2, 3], [4, 5], [4, 5]], [[6], [7, 8], [9], [10, 11]]
    rollouts = Rollouts(*pad(prompts, 0, "cpu", True), *pad(completions, 0, "cpu", False), torch.ones(4, dtype=torch.bool))
    row = Packed(rollouts)
    assert row.inputs["input_ids"].tolist() == [[1, 2, 3, 6, 7, 8, 4, 5, 9, 10, 11]]
    assert row.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 3, 4, 0, 1, 2, 2, 3]]
    ends = [4, 5, 3, 4]
    assert [places[:end] for places, end in zip(row.rows.tolist(), ends)] == [[0, 1, 2, 3], [0, 1, 2, 4, 5], [6, 7, 8], [6, 7, 9, 10]]
    assert row.rows.flatten()[row.seats].tolist() == list(range(11))
    assert row.predictors.tolist() == [2, 2, 4, 7, 7, 9]


def test_each_token_goes_through_the_model_once():
    model, rollouts = model_of("Qwen3"), ragged_rollouts()
    packed.layout(model, rollouts), heads.has_known_head(model)           # their own forward passes are not counted
    tokens = []
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: tokens.append(inputs[0].shape[:2].numel()))
    completion_logprobs(model, rollouts)
    assert sum(tokens) == 3 + 7 + 2 + 2 + sum(LENGTHS) - LENGTHS[5]


def test_the_comparison_leaves_no_gradient_behind():
    model = model_of("Llama")
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    attention.VERDICTS.clear()
    packed.layout(model, ragged_rollouts())
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name != "lm_head.weight")
    assert (model.lm_head.weight.grad == 1).all()


@pytest.mark.parametrize("heads, key_heads", [(6, 3), (4, 4), (3, 1)])
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_parts_attend_as_whole_rows(heads, key_heads, dtype, bound):
    """With scores of up to some hundreds, where a softmax has all its weight in one place."""
    generator, rollouts = torch.Generator().manual_seed(0), ragged_rollouts()
    forms = [Packed(rollouts, least_work) for least_work in (2**62, 0)]
    tokens = forms[0].inputs["input_ids"].shape[1]
    query, key, value, grad = (torch.randn(1, count, tokens, 8, generator=generator, dtype=torch.float64).mul(4).to(dtype)
                               .requires_grad_() for count in (heads, key_heads, key_heads, heads))
    assert [form.shares_prompts(query, key, value) for form in forms] == [False, True]
    results = []
    for form in forms:
        seen = form.attend(None, query, key, value, None, scaling=0.7)[0]
        results.append((seen, *torch.autograd.grad(seen, (query, key, value), grad.transpose(1, 2))))
    for expected, got in zip(*results):
        assert got.dtype == dtype and got.shape == expected.shape
        assert (got.double() - expected.double()).norm() < bound * expected.double().norm()


def test_what_is_copied_and_kept_in_parts_is_less():
    """A part is a slice of the packed row: autograd keeps queries, keys, values and output of each token once."""
    rollouts, kept = ragged_rollouts(), {}
    for name, least_work in (("whole rows", 2**62), ("parts", 0)):
        form, sizes = Packed(rollouts, least_work), []
        tokens = form.inputs["input_ids"].shape[1]
        query, key, value = (torch.randn(1, tokens, heads, 8).transpose(1, 2).requires_grad_() for heads in (6, 3, 3))
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.untyped_storage().nbytes()) or x, lambda x: x):
            form.attend(None, query, key, value, None)
        kept[name] = sum(sizes)
    assert kept["parts"] < kept["whole rows"]


def test_the_rule_between_the_forms():
    """The toy world, up to its longest context, keeps whole rows and its figures to the bit; a GPU and values of another
    width too."""
    def chosen(samples, prompt, new, heads, width, dtype=torch.float32, value_width=None):
        rollouts = Rollouts(*pad([[5] * prompt] * samples, 0, "cpu", True), *pad([[6] * new] * samples, 0, "cpu", False),
                            torch.ones(samples, dtype=torch.bool))
        form = Packed(rollouts)
        query = torch.zeros(1, heads, 1, 1, dtype=dtype).expand(-1, -1, -1, width)
        return form.shares_prompts(query, query, query[..., :value_width])

    assert not any(chosen(samples, 64, 64, 3, 32) for samples in (1, 8, 64))
    assert chosen(8, 80, 20, 9, 64) and chosen(8, 110, 192, 9, 64) and chosen(4, 100, 2000, 9, 64)
    assert chosen(4, 32, 32, 9, 64, torch.bfloat16) and not chosen(4, 32, 32, 9, 64)
    assert not chosen(8, 110, 192, 9, 64, value_width=32)


@pytest.mark.parametrize("wrong", ["values", "gradient"])
def test_what_differs_takes_the_plain_way_and_says_so(wrong, monkeypatch, capsys):
    attend = Packed.attend

    def altered(self, module, query, key, value, *rest, **more):
        value = value * 1.01 if wrong == "values" else value + 0.1 * (value - value.detach())
        return attend(self, module, query, key, value, *rest, **more)

    model, rollouts = model_of("Llama"), ragged_rollouts()
    expected = logprobs_and_gradient(model, rollouts)
    attention.VERDICTS.clear(), attention.TOLD.clear()
    monkeypatch.setattr(Packed, "attend", altered)
    for got, right in zip(logprobs_and_gradient(model, rollouts), expected):
        torch.testing.assert_close(got, right, atol=1e-4, rtol=1e-4)
    logprobs_and_gradient(model, rollouts)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and f"its {'logits' if wrong == 'values' else 'gradient'} differ" in lines[0]
    attention.VERDICTS.clear()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family, changes", [("Gemma2", {"query_pre_attn_scalar": 8, "sliding_window": 5}), ("Falcon", {"alibi": True}),
                                             ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 5})])
def test_other_attention_takes_the_plain_way(family, changes):
    model, rollouts = random_model(family, **changes), ragged_rollouts()
    assert isinstance(packed.layout(model, rollouts), Padded)
    before = model.config._attn_implementation
    completion_logprobs(model, rollouts)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("family", ["Qwen3", "Gemma3", "GPTNeoX"])
def test_activation_checkpointing_attends_twice_alike(family, form):
    """The second forward pass of a block runs in the backward pass, when the exchange of attention is over."""
    model, rollouts = model_of(family), ragged_rollouts()
    expected = logprobs_and_gradient(model, rollouts)
    model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": attention.same_attention_again})
    model.train()
    attention.VERDICTS.clear()
    assert isinstance(packed.layout(model, rollouts), Packed)
    for got, right in zip(logprobs_and_gradient(model, rollouts), expected):
        torch.testing.assert_close(got, right)
    assert not attention.IN_FORCE and model.config._attn_implementation == "sdpa"


def test_bfloat16_autocast(form, monkeypatch):
    model, rollouts = model_of("Qwen3"), ragged_rollouts()
    attention.VERDICTS.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(packed.layout(model, rollouts), Packed)
        shared = logprobs_and_gradient(model, rollouts)
        only_padded(monkeypatch)
        plain = logprobs_and_gradient(model, rollouts)
    exact = logprobs_and_gradient(model, rollouts)
    for got, beside, right in zip(shared, plain, exact):
        assert (got - right).norm() < 1.5 * (beside - right).norm()         # rounded as often as the plain pass


def test_windows_longer_than_all_rollouts_need_no_mask():
    row = Packed(ragged_rollouts())
    assert row.mask(None) is None and row.mask(14) is None
    mask = row.mask(3)
    assert mask.shape == (14, 14) and mask.sum(1).tolist() == [1, 2] + [3] * 12


# ---------------------------------------------------------------- micro-batches along groups


@pytest.mark.parametrize("size, expected", [(1, [1] * 9), (2, [2, 2, 2, 2, 1]), (3, [3, 1, 3, 2]), (4, [4, 4, 1]), (5, [4, 5]),
                                            (8, [8, 1]), (9, [9])])
def test_micro_batches_are_cut_between_groups(size, expected):
    rollouts = ragged_rollouts()
    parts = rollouts.split(size)
    assert [len(part) for part in parts] == expected
    assert sum([part.completions() for part in parts], []) == rollouts.completions()
    assert sum([part.prompts() for part in parts], []) == rollouts.prompts()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_any_micro_batch_size_gives_one_gradient(size, form):
    model, rollouts = model_of("Mistral"), ragged_rollouts()
    expected = divergence_and_gradient(model, model_of("Llama").requires_grad_(False), rollouts, reverse_kl)[1]
    model.zero_grad()
    for part in rollouts.split(size):
        completion_divergence(model, model_of("Llama").requires_grad_(False), part, reverse_kl, 0.7)[0].backward()
    assert ((gradient(model) - expected).norm() / expected.norm()) < 1e-5


def test_rollouts_without_a_token_add_nothing(form):
    model, rollouts = model_of("Qwen3"), ragged_rollouts()
    assert rollouts.select(slice(0)).split(4) == []
    for nothing in (without_tokens(rollouts), even_micro_batches(rollouts.select(slice(0)), 4)[0], rollouts.select(slice(5, 6))):
        model.zero_grad()
        logprobs = completion_logprobs(model, nothing)
        logprobs.sum().backward()
        assert logprobs.abs().sum() == 0 and gradient(model).abs().sum() == 0


def test_padding_is_left_out_wherever_it_stands(form):
    model = model_of("Qwen3").double()
    rollouts = ragged_rollouts()
    with torch.no_grad():
        together = completion_logprobs(model, rollouts)
        alone = [completion_logprobs(model, rollouts.select(slice(i, i + 1)))[0] for i in range(9)]
    for row, own, length in zip(together, alone, LENGTHS):
        assert_rounded(row[:len(own)].float(), own, 200)
        assert (row[length:] == 0).all()


# ---------------------------------------------------------------- many ranks


def test_sharded_over_two_ranks():
    """Ranks with other numbers of groups and tokens, and blocks that are computed twice: the gradient of one process."""
    said = run_ranks(2, Path(__file__))
    assert said.count("as one process") == 16 and "plain way" not in said, said


def compare_two_ranks_with_one() -> None:
    ranks.setup_distributed()
    rollouts = ragged_rollouts()
    mine = even_micro_batches(rollouts.select(slice(0, 7) if ranks.rank() == 0 else slice(7, 9)), 4)
    for checkpointing, least_work in itertools.product((False, True), (2**62, 0)):
        packed.LEAST_WORK = least_work
        for family in ("Qwen3", "Gemma3"):
            alone, model = model_of(family), sharding.shard(model_of(family), torch.float32, trainable=True)
            if checkpointing:
                model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": attention.same_attention_again})
                model.train()
            assert isinstance(packed.layout(model, mine[0]), Packed)
            for part in mine:
                completion_logprobs(model, part, 0.7).square().sum().backward()
            completion_logprobs(alone, rollouts, 0.7).square().sum().backward()
            for (name, expected), got in zip(alone.named_parameters(), model.parameters()):
                torch.testing.assert_close(sharding.whole(got.grad), expected.grad, rtol=1e-4, atol=2e-4, msg=name)
            print("as one process", flush=True)


if __name__ == "__main__":
    compare_two_ranks_with_one()
