"""linear_* in plain PyTorch: against closed forms in float64, the function that runs, and what they keep in memory."""
import os
import functools
import weakref

import pytest
import torch
from conftest import assert_rounded

from engine.logprobs import Head, linear_divergence, linear_logprobs
from stage3_kl import forward_kl
from stage3_kl import reverse_kl as c2_kl
from stage4_distill import jsd, reverse_kl
from test_kernels import near_equal_models
from engine import hardware, logprobs, tiles

EQUATIONS = {"reverse": reverse_kl, "forward": forward_kl, "jsd": jsd}
HEADS = {"plain": {}, "bias": {"bias": True}, "soft cap": {"softcap": 5.0}, "bias and soft cap": {"bias": True, "softcap": 5.0},
         "two hundred words": {"vocab": 200}}


@pytest.fixture(autouse=True, params=["mkl", "onednn"])
def library(request, monkeypatch):
    """Every number here by both of the CPU's libraries for float32."""
    monkeypatch.setenv("FLOAT32_MATMUL", request.param)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(num_tokens=9, width=16, vocab=301, dtype=torch.float32, bias=False, softcap=None):
    """-> hidden, head, ids; leaves that want gradients"""
    hidden, weight = random(num_tokens, width, dtype=dtype).requires_grad_(), random(vocab, width, seed=1, dtype=dtype).requires_grad_()
    head = Head(weight, random(vocab, seed=2, dtype=dtype).requires_grad_() if bias else None, softcap)
    return hidden, head, torch.randint(0, vocab, (num_tokens,), generator=torch.Generator().manual_seed(3))


def leaves(hidden, head):
    return [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None]


def plain_logits(hidden, head):
    """The whole logits, as a model makes them, in float64."""
    logits = hidden.double() @ head.weight.double().T
    logits = logits if head.bias is None else logits + head.bias.double()
    logits = logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
    return logits


def compare(got, got_loss, expected, expected_loss, tensors, tolerance=1e-5):
    if os.environ["FLOAT32_MATMUL"] == "onednn":         # its products are up to twice as far from float64 as MKL's
        tolerance *= 2
    for mine, wanted in zip(got, expected):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), wanted, rtol=tolerance, atol=tolerance)
    for mine, wanted in zip(torch.autograd.grad(got_loss, tensors, retain_graph=True), torch.autograd.grad(expected_loss, tensors, retain_graph=True)):
        assert (mine.double() - wanted.double()).norm() <= tolerance * wanted.double().norm()


@pytest.fixture(params=[2**26, 4 * 9 * 64, 40], ids=["one piece", "pieces", "one column or token a piece"])
def pieces(request, monkeypatch):
    monkeypatch.setattr(logprobs, "WORKSPACE_BYTES", {"cpu": request.param})
    monkeypatch.setattr(logprobs, "PIECE_BYTES", request.param)
    monkeypatch.setattr(tiles, "CACHED_ELEMENTS", request.param)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("kind_of_head", HEADS)
def test_logprobs_and_entropy_match_float64(pieces, kind_of_head, temperature):
    hidden, head, ids = inputs(**HEADS[kind_of_head])
    ids[2] = -100                                       # masked
    log_p = (plain_logits(hidden, head) / temperature).log_softmax(-1)
    live, scale = ids >= 0, torch.linspace(-1, 2, 9)
    expected = log_p.gather(-1, ids.clamp(min=0)[:, None])[:, 0] * live, -(log_p.exp() * log_p).sum(-1) * live
    got = linear_logprobs(hidden, head, ids, temperature, entropy=True)
    assert got[0][2] == got[1][2] == 0
    compare(got, ((got[0] + 0.3 * got[1]) * scale).sum(), expected, ((expected[0] + 0.3 * expected[1]) * scale).sum(), leaves(hidden, head))
    alone = linear_logprobs(hidden, head, ids, temperature)
    compare([alone], (alone * scale).sum(), expected[:1], (expected[0] * scale).sum(), leaves(hidden, head))


@pytest.mark.parametrize("kind", EQUATIONS)
@pytest.mark.parametrize("kind_of_head", HEADS)
def test_divergences_match_the_equations_of_the_stages(pieces, kind_of_head, kind):
    """Student and teacher of different width; the teacher has a head of its own kind."""
    hidden, head, ids = inputs(**HEADS[kind_of_head])
    vocab = len(head.weight)
    teacher_hidden, teacher_head = random(9, 24, seed=4), Head(random(vocab, 24, seed=5), softcap=9.0)
    student_logits, teacher_logits = plain_logits(hidden, head) / 0.7, plain_logits(teacher_hidden, teacher_head) / 0.7
    expected, scale = float64_equation(kind, student_logits, teacher_logits), torch.linspace(-1, 2, 9)
    loss, values, chosen = linear_divergence(hidden, head, teacher_hidden, teacher_head, EQUATIONS[kind], scale, ids, 0.7)
    assert not values.requires_grad and not chosen.requires_grad
    expected_chosen = student_logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    compare([values, chosen], 3 * loss, [expected, expected_chosen], 3 * (expected * scale).sum(), leaves(hidden, head))
    with torch.no_grad():
        assert not linear_divergence(hidden, head, teacher_hidden, teacher_head, EQUATIONS[kind], scale, ids)[0].requires_grad


def test_any_function_of_a_row_of_logits_is_a_divergence(pieces):
    """Total variation, in three lines: no name that the engine knows."""
    def total_variation(student_logits, teacher_logits):
        return (student_logits.softmax(-1) - teacher_logits.softmax(-1)).abs().sum(-1) / 2

    hidden, head, ids = inputs(bias=True)
    teacher_hidden, teacher_weight, scale = random(9, 24, seed=4), random(301, 24, seed=5), torch.linspace(-1, 2, 9)
    expected = total_variation(plain_logits(hidden, head), plain_logits(teacher_hidden, Head(teacher_weight)))
    loss, values, _ = linear_divergence(hidden, head, teacher_hidden, teacher_weight, total_variation, scale, ids)
    compare([values], loss, [expected], (expected * scale).sum(), leaves(hidden, head))


def float64_equation(kind, student, teacher):
    s, t = student.log_softmax(-1), teacher.log_softmax(-1)
    mixture = ((s.exp() + t.exp()) / 2).log()
    return {"reverse": (s.exp() * (s - t)).sum(-1), "forward": (t.exp() * (t - s)).sum(-1),
            "jsd": 0.5 * (s.exp() * (s - mixture) + t.exp() * (t - mixture)).sum(-1)}[kind]


def test_without_a_weight_the_states_are_the_logits():
    """What a head that cannot be described comes to."""
    hidden, head, ids = inputs()
    logits = plain_logits(hidden, head).float().detach().requires_grad_()
    expected = logits.double().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    got = linear_logprobs(logits, Head(None), ids)
    compare([got], got.square().sum(), [expected], expected.square().sum(), [logits], 1e-5)
    teacher = logits.detach() + random(9, 301)
    got = linear_divergence(logits, Head(None), teacher, Head(None), reverse_kl, torch.ones(9), ids)[0]
    expected = float64_equation("reverse", logits.double(), teacher.double()).sum()
    compare([got], got, [expected], expected, [logits], 1e-5)


@pytest.mark.parametrize("offset", [0, 100, 1000])
def test_a_small_reverse_kl_at_a_large_offset(offset):
    """C2 is read there: 4e-5 nats between near-equal models within 1%, whatever is added to all logits."""
    student, teacher = near_equal_models(offset)
    expected = float64_equation("reverse", student.double(), teacher.double())
    ids = torch.zeros(len(student), dtype=torch.int64)
    _, got, _ = linear_divergence(student, Head(None), teacher, Head(None), reverse_kl, torch.ones(len(ids)), ids)
    assert 3e-5 < expected.mean() < 5e-5
    for figures in (got, reverse_kl(student, teacher), c2_kl(student, teacher), forward_kl(teacher, student)):
        assert (figures.double() / expected - 1).abs().max() < 0.01


def test_logits_of_minus_infinity():
    student, teacher = random(2, 50), random(2, 50, seed=1)
    student[:, 10:40], teacher[:, 20:40] = -torch.inf, -torch.inf
    student.requires_grad_()
    s, t = student.double()[:, [*range(10), *range(40, 50)]].log_softmax(-1), teacher.double().log_softmax(-1)[:, [*range(10), *range(40, 50)]]
    ids = torch.tensor([0, 9])
    loss, got, chosen = linear_divergence(student, Head(None), teacher, Head(None), reverse_kl, torch.ones(2), ids)
    assert_rounded(got, (s.exp() * (s - t)).sum(-1), operations=50)
    values, entropy = linear_logprobs(student, Head(None), ids, entropy=True)
    assert_rounded(chosen, values.double(), operations=50)
    assert_rounded(entropy, -(s.exp() * s).sum(-1), operations=50)
    for figure in (loss, values, entropy):
        assert torch.autograd.grad(figure.sum(), student, retain_graph=True)[0].isfinite().all()


# ---------------------------------------------------------------- dtypes


def test_float64_is_float64_throughout():
    hidden, head, ids = inputs(dtype=torch.float64, bias=True, softcap=3.0)
    teacher, scale = (random(9, 4, seed=4).double(), random(301, 4, seed=5).double()), torch.linspace(-1, 2, 9).double()
    log_p = (plain_logits(hidden, head) / 0.7).log_softmax(-1)
    expected = log_p.gather(-1, ids[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    results = [(linear_logprobs(hidden, head, ids, 0.7, entropy=True), expected)]
    for kind in EQUATIONS:
        equation = functools.partial(float64_equation, kind)
        expected = equation(plain_logits(hidden, head) / 0.7, plain_logits(teacher[0], Head(teacher[1])) / 0.7)
        results.append((linear_divergence(hidden, head, *teacher, equation, scale, ids, 0.7)[:1], [(expected * scale).sum()]))
    for got, expected in results:
        for mine, wanted in zip(got, expected):
            torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12)
            gradients = [torch.autograd.grad(figure.sum(), leaves(hidden, head), retain_graph=True) for figure in (mine, wanted)]
            torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)


def test_autocast_on_a_cpu_without_bfloat16_is_float32(monkeypatch):
    monkeypatch.setattr(hardware, "cpu_has_bfloat16", lambda: False)
    hidden, head, ids = inputs()
    def both():
        return linear_logprobs(hidden, head, ids), linear_divergence(hidden, head, hidden.detach() / 2, head.weight, jsd, torch.ones(9), ids)[1]
    expected = both()
    with torch.autocast("cpu", torch.bfloat16):
        got = both()
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_bfloat16_on_cpus_with_and_without_it(monkeypatch, has_bfloat16, pieces):
    monkeypatch.setattr(hardware, "cpu_has_bfloat16", lambda: has_bfloat16)
    hidden, head, ids = inputs(dtype=torch.bfloat16)
    teacher_hidden, teacher_weight = random(9, 24, seed=4, dtype=torch.bfloat16), random(301, 24, seed=5, dtype=torch.bfloat16)
    log_p = plain_logits(hidden, head).log_softmax(-1)
    expected = log_p.gather(-1, ids[:, None])[:, 0]
    got = linear_logprobs(hidden, head, ids)
    compare([got], got.square().sum(), [expected], expected.square().sum(), leaves(hidden, head), 3e-2)
    expected = float64_equation("reverse", plain_logits(hidden, head), plain_logits(teacher_hidden, Head(teacher_weight)))
    loss, values, _ = linear_divergence(hidden, head, teacher_hidden, teacher_weight, reverse_kl, torch.ones(9), ids)
    compare([values], loss, [expected], expected.sum(), leaves(hidden, head), 3e-2)


def test_autocast_uses_one_dtype_forward_and_backward(monkeypatch):
    """The softmax that the gradient recomputes is that of the forward pass, and weights' gradients stay float32."""
    monkeypatch.setattr(hardware, "cpu_has_bfloat16", lambda: True)
    hidden, head, ids = inputs(num_tokens=5)
    rounded_hidden, rounded_head, _ = inputs(num_tokens=5, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_logprobs(hidden, head, ids)
    expected = linear_logprobs(rounded_hidden, rounded_head, ids)
    assert torch.equal(got, expected)
    got.sum().backward(), expected.sum().backward()
    assert head.weight.grad.dtype == torch.float32
    torch.testing.assert_close(hidden.grad, rounded_hidden.grad.float(), rtol=2e-2, atol=2e-2)


# ---------------------------------------------------------------- memory


class Kept:
    """A tensor that autograd has saved; gone when the graph that wanted it is."""
    def __init__(self, tensor):
        self.tensor = tensor


def kept_bytes(function):
    """What autograd keeps for backward."""
    kept = weakref.WeakSet()

    def keep(tensor):
        kept.add(packed := Kept(tensor))
        return packed

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda packed: packed.tensor):
        result = function()
    assert (result[0] if isinstance(result, tuple) else result).requires_grad
    return sum({packed.tensor.data_ptr(): packed.tensor.nbytes for packed in kept}.values())


def test_what_is_kept_for_backward_is_not_the_logits():
    """The arguments and a few numbers a token, or for a divergence the gradients: nothing of N·V."""
    n, vocab, width = 64, 5000, 16
    hidden, head, ids = inputs(num_tokens=n, vocab=vocab)
    teacher_hidden, teacher_weight, ones = random(n, 8, seed=4), random(vocab, 8, seed=5), torch.ones(n)
    arguments = 4 * (n * width + vocab * width)
    assert kept_bytes(lambda: linear_logprobs(hidden, head, ids)) == arguments + 8 * n + 2 * 4 * n
    assert kept_bytes(lambda: linear_logprobs(hidden, head, ids, entropy=True)) == arguments + 8 * n + 3 * 4 * n
    assert kept_bytes(lambda: linear_divergence(hidden, head, teacher_hidden, teacher_weight, jsd, ones, ids)) == arguments
    assert arguments + 20 * n < 4 * n * vocab / 3


def test_no_tensor_of_all_logits_is_ever_alive(monkeypatch):
    """On neither pass: each piece of logits is at most the workspace, or half of it beside the teacher's."""
    monkeypatch.setattr(logprobs, "WORKSPACE_BYTES", {"cpu": 4 * 64 * 128})
    sizes, make = [], Head.logits
    monkeypatch.setattr(Head, "logits", lambda *args, **kwargs: (sizes.append((out := make(*args, **kwargs)).numel()), out)[1])
    hidden, head, ids = inputs(num_tokens=64, vocab=512)
    linear_logprobs(hidden, head, ids).sum().backward()
    assert len(sizes) == 8 and max(sizes) <= 64 * 128
    sizes.clear()
    linear_divergence(hidden, head, hidden.detach(), head.weight, forward_kl, torch.ones(64), ids)[0].backward()
    assert len(sizes) == 16 and max(sizes) <= 32 * 128


# ---------------------------------------------------------------- arguments


def test_batches_of_rows_and_tokens_that_do_not_count():
    """(B, C, D) is as (B · C, D); a token that is masked, or has weight 0, adds nothing, whatever its states are."""
    hidden, head, ids = inputs(num_tokens=6)
    hidden.data[4] = torch.nan
    teacher, weights, batch = (random(6, 8, seed=4), random(301, 8, seed=5)), torch.ones(6), (2, 3)
    weights[4] = 0
    loss, *figures = linear_divergence(hidden.view(2, 3, 16), head, teacher[0].view(2, 3, 8), teacher[1], reverse_kl, weights.view(batch), ids.view(batch))
    assert all(figure.shape == batch for figure in figures)
    gradient, = torch.autograd.grad(loss, hidden, retain_graph=True)
    assert loss.isfinite() and (gradient[4] == 0).all() and gradient.isfinite().all()
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()
    ids[4] = -1
    logprobs = linear_logprobs(hidden.view(2, 3, 16), head, ids.view(batch))
    gradient, = torch.autograd.grad(logprobs.sum(), hidden, retain_graph=True)
    assert logprobs.shape == batch and logprobs[1, 1] == 0 and (gradient[4] == 0).all() and gradient.isfinite().all()
    strided = torch.stack([ids, ids], 1)[:, 0]
    assert torch.equal(linear_logprobs(hidden, head, strided), logprobs.flatten())


def test_no_tokens_at_all():
    hidden, head, ids = inputs(num_tokens=0)
    for loss in (linear_logprobs(hidden, head, ids).sum(),
                 linear_divergence(hidden, head, hidden, head, jsd, torch.ones(0), ids)[0]):
        assert loss == 0 and (torch.autograd.grad(loss, head.weight)[0] == 0).all()


def test_what_does_not_fit_is_refused():
    hidden, head, ids = inputs()
    ones = torch.ones(9)
    with pytest.raises(ValueError, match="301"):
        linear_logprobs(hidden, head, ids + 301)
    with pytest.raises(ValueError, match="do not fit"):
        linear_logprobs(hidden[:, :3], head, ids)
    with pytest.raises(ValueError, match="vocabular"):
        linear_divergence(hidden, head, hidden, head.weight[:300], jsd, ones, ids.clamp(max=299))
    with pytest.raises(ValueError, match="do not fit"):
        linear_divergence(hidden, head, hidden[:5], head, jsd, ones, ids)
    for temperature in (0.0, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            linear_logprobs(hidden, head, ids, temperature)
    for bad in (head._replace(bias=torch.ones(1)), Head(head.weight[0])):
        with pytest.raises(ValueError, match="do not fit"):
            linear_logprobs(hidden, bad, ids)
    with pytest.raises(ValueError, match="softcap"):
        linear_logprobs(hidden, head._replace(softcap=0.0), ids)
    with pytest.raises(ValueError, match="int64"):
        linear_logprobs(hidden, head, ids.float())
    with pytest.raises(ValueError, match="token_weights"):
        linear_divergence(hidden, head, hidden, head, jsd, torch.ones(1), ids)
