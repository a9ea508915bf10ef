"""The chunked logprob function against float64, and what it keeps in memory."""
import pytest
import torch

import logprobs
from logprobs import linear_logprobs


def inputs(num_tokens=9, hidden_size=16, vocab=301, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, hidden_size, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab, hidden_size, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, vocab, (num_tokens,), generator=generator)


def reference(hidden, weight, ids, temperature):
    logits = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    values = (logits[0] @ logits[1].T / temperature).log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    scale = torch.linspace(-1, 2, len(ids), dtype=torch.float64)
    return values, torch.autograd.grad((values * scale).sum(), logits), scale


@pytest.mark.parametrize("tile_elements", [10, 9 * 50, 2**24], ids=["one column a tile", "ragged tiles", "one tile"])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_values_and_gradients_match_float64(monkeypatch, tile_elements, temperature, dtype, tolerance):
    monkeypatch.setattr(logprobs, "TILE_ELEMENTS", tile_elements)
    hidden, weight, ids = inputs(dtype=dtype)
    expected, expected_grads, scale = reference(hidden, weight, ids, temperature)
    got = linear_logprobs(hidden, weight, ids, temperature)
    assert got.dtype == torch.float32
    grads = torch.autograd.grad((got * scale.float()).sum(), (hidden, weight))
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance * 10)
    for grad, wanted in zip(grads, expected_grads):
        assert (grad.double() - wanted).norm() < tolerance * wanted.norm()


def test_a_large_offset_costs_no_digits():
    """Near-equal logits of 1000: the maximum is taken off before anything is summed."""
    weight = torch.tensor([[1000.0], [1000.25], [999.5]])
    got = linear_logprobs(torch.ones(3, 1), weight, torch.arange(3))
    torch.testing.assert_close(got.double(), weight.double()[:, 0].log_softmax(0), atol=1e-6, rtol=0)


def test_what_is_kept_for_backward_is_not_the_logits():
    hidden, weight, ids = inputs(num_tokens=64, vocab=5000)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel() * tensor.element_size()), lambda _: None):
        linear_logprobs(hidden, weight, ids)
    inputs_and_two_numbers = 4 * (hidden.numel() + weight.numel()) + 8 * 64 + 2 * 4 * 64
    assert sum(kept) == inputs_and_two_numbers < 4 * 64 * 5000


def test_no_tensor_of_all_logits_is_ever_alive(monkeypatch):
    """On neither pass: every float32 tensor of logits is at most a tile."""
    monkeypatch.setattr(logprobs, "TILE_ELEMENTS", 64 * 100)
    sizes = []
    tile_logits = logprobs._tile_logits
    monkeypatch.setattr(logprobs, "_tile_logits", lambda *args: (sizes.append((out := tile_logits(*args)).numel()), out)[1])
    hidden, weight, ids = inputs(num_tokens=64, vocab=5000)
    linear_logprobs(hidden, weight, ids).sum().backward()
    assert len(sizes) == 100 and max(sizes) <= 64 * 100


def test_autocast_uses_one_dtype_forward_and_backward():
    """Under bf16 autocast the softmax that the gradient recomputes is that of the forward pass: it sums to one."""
    hidden, weight, ids = inputs(num_tokens=5, vocab=50)
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_logprobs(hidden, weight, ids)
    got.sum().backward()
    rounded = inputs(num_tokens=5, vocab=50, dtype=torch.bfloat16)
    expected = linear_logprobs(*rounded)
    expected.sum().backward()
    assert torch.equal(got, expected)
    torch.testing.assert_close(hidden.grad, rounded[0].grad.float())


@pytest.mark.parametrize("ids", [[0, 301], [-1, 0]])
def test_ids_outside_the_vocabulary_are_refused(ids):
    hidden, weight, _ = inputs(num_tokens=2)
    with pytest.raises(ValueError, match="301"):
        linear_logprobs(hidden, weight, torch.tensor(ids))
