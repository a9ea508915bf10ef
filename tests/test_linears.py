"""Float32 products by either library: the same numbers, one choice, and everything else as it was."""
import copy
import json
from pathlib import Path

import pytest
import torch
from forks import run_ranks
from test_sampler import draw_many, random_model
from test_shared_prefix import logprobs_and_gradient, ragged_rollouts
from torch import nn

from engine import linears, ranks
from engine.attention import same_attention_again
from engine.logprobs import Head, linear_logprobs

SHAPES = {"2-D": (7, 24), "3-D": (3, 5, 24), "one row": (24,), "one token a step": (6, 1, 24)}


@pytest.fixture
def onednn(monkeypatch):
    if not linears.both_are_here():
        pytest.skip("this PyTorch has one of the two libraries only")
    monkeypatch.setenv("FLOAT32_MATMUL", "onednn")


@pytest.fixture
def measuring(monkeypatch, tmp_path):
    """No weight is too small, nothing is known yet, and a measurement is quick: -> what was measured; it finds oneDNN."""
    done = []
    monkeypatch.delenv("FLOAT32_MATMUL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(linears, "LEAST_WEIGHT", 0)
    monkeypatch.setattr(linears, "CHOSEN", {})
    monkeypatch.setattr(linears, "both_are_here", lambda: True)
    monkeypatch.setattr(linears, "measured", lambda shape, use: done.append((shape, use)) or "oneDNN")
    return done


def is_chosen(module) -> bool:
    return getattr(vars(module).get("forward"), "__func__", None) is linears.forward


def figures(layer, x) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_forward_and_gradients_beside_float64(shape, bias, onednn):
    torch.manual_seed(0)
    layer = nn.Linear(24, 80, bias)
    expected, x = copy.deepcopy(layer).double(), torch.randn(*shape[:-1], 48)[..., ::2]             # not contiguous
    linears.choose(layer)
    assert is_chosen(layer)
    for got, right in zip(figures(layer, x), figures(expected, x.double())):
        assert got.dtype == torch.float32 and got.shape == right.shape and got.is_contiguous()
        torch.testing.assert_close(got.double(), right, rtol=3e-6, atol=3e-6)


def test_what_is_no_float32_product_is_as_it_was(onednn):
    layer, x = nn.Linear(24, 80), torch.randn(5, 24)
    own = copy.deepcopy(layer)
    linears.choose(layer)
    assert layer(x[:0]).shape == (0, 80) and copy.deepcopy(layer).forward.__self__ is not layer
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), own(x)) and layer(x).dtype == torch.bfloat16
    assert torch.equal(copy.deepcopy(layer).double()(x.double()), own.double()(x.double()))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x).double(), own(x.double()), rtol=1e-5, atol=1e-6)
    layer.requires_grad_(False)
    assert not layer(x).requires_grad and layer(x.requires_grad_()).requires_grad
    assert layer.state_dict().keys() == own.state_dict().keys()


@pytest.mark.parametrize("switch", [lambda: torch.set_float32_matmul_precision("medium"),
                                    lambda: torch.set_float32_matmul_precision("high"),
                                    lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
                                    lambda: setattr(torch.backends.mkldnn, "fp32_precision", "bf16"),
                                    lambda: setattr(torch.backends, "fp32_precision", "tf32")])
def test_where_a_user_lets_float32_be_rounded_pytorch_multiplies(switch, onednn, monkeypatch):
    """oneDNN called directly would obey the switch, too, and a layer's neighbours would not."""
    layer, x = nn.Linear(24, 80), torch.randn(5, 24)
    own = copy.deepcopy(layer)
    linears.choose(layer)
    assert not linears.may_round()
    before = torch.get_float32_matmul_precision()
    try:
        switch()
        assert linears.may_round() and linears.library((80, 24), "passes") == "MKL"
        assert all(torch.equal(got, expected) for got, expected in zip(figures(layer, x), figures(own, x)))
    finally:
        for place in (torch.backends, torch.backends.mkldnn, torch.backends.mkldnn.matmul):
            place.fp32_precision = "none"
        torch.set_float32_matmul_precision(before)
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    assert not linears.may_round()


@pytest.mark.parametrize("family", ["Qwen3", "GPTNeoX", "Mixtral"])
def test_a_model_trains_and_samples_by_either(family, monkeypatch):
    """GPTNeoX has biases; of Mixtral's experts some see no token."""
    changes = {"num_local_experts": 4, "num_experts_per_tok": 1} if family == "Mixtral" else {}
    results = {}
    for name in ("mkl", "onednn"):
        monkeypatch.setenv("FLOAT32_MATMUL", name)
        model = random_model(family, **changes)
        linears.choose(model)
        assert any(map(is_chosen, model.modules())) == (name == "onednn" and linears.both_are_here())
        before = [vars(module).get("forward") for module in model.modules()]
        rollouts = draw_many(model, [[5, 6, 7], [8, 9]], 3)
        assert before == [vars(module).get("forward") for module in model.modules()]
        results[name] = [rollouts.sampler_logprobs, *logprobs_and_gradient(model, ragged_rollouts())]
    for got, expected in zip(*results.values()):
        assert (got - expected).norm() < 1e-4 * expected.norm()


def test_checkpointed_blocks_compute_the_same_twice(onednn):
    model, rollouts = random_model("Qwen3"), ragged_rollouts()
    linears.choose(model)
    expected = logprobs_and_gradient(model, rollouts)
    model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": same_attention_again})
    model.train()
    assert all(torch.equal(got, right) for got, right in zip(logprobs_and_gradient(model, rollouts), expected))


def test_a_head_in_pieces_is_oneDNNs_part_too(onednn, monkeypatch):
    """More tokens and ids than a piece holds; a head in bfloat16 is cast piece by piece."""
    monkeypatch.setattr("engine.logprobs.PIECE_BYTES", 2**12)
    calls, own = [], linears.onednn
    monkeypatch.setattr(linears, "onednn", lambda *tensors: calls.append(1) or own(*tensors))
    for dtype in (torch.float32, torch.bfloat16):
        hidden, weight = torch.randn(70, 24).requires_grad_(), torch.randn(301, 24).to(dtype).requires_grad_()
        ids = torch.randint(0, 301, (70,))
        expected = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, ids[:, None])[:, 0]
        right = torch.autograd.grad(expected.square().sum(), (hidden, weight))
        calls.clear()
        got = linear_logprobs(hidden, Head(weight), ids)
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
        for mine, other in zip(torch.autograd.grad(got.square().sum(), (hidden, weight)), right):
            assert (mine.double() - other.double()).norm() < (1e-5 if mine.dtype == torch.float32 else 1e-2) * other.double().norm()
        assert len(calls) > 20


# ---------------------------------------------------------------- the choice


def test_small_models_are_never_measured_nor_changed(tiny, monkeypatch):
    """The toy's figures are the same to the bit on every machine with the same MKL."""
    monkeypatch.delenv("FLOAT32_MATMUL", raising=False)
    monkeypatch.setattr(linears, "measured", lambda *_: pytest.fail("measured"))
    linears.choose(tiny)
    assert not any(map(is_chosen, tiny.modules()))


def test_a_choice_is_kept_for_the_machine(measuring, tmp_path, monkeypatch):
    layers = nn.Sequential(nn.Linear(24, 80), nn.Linear(80, 24), nn.Linear(24, 80))
    linears.choose(layers)
    assert sorted(measuring) == sorted((shape, use) for shape in ((80, 24), (24, 80)) for use in ("passes", "sampling"))
    assert all(map(is_chosen, layers))
    linears.choose(nn.Linear(24, 80))                                   # in the same process
    linears.CHOSEN.clear()                                              # in another one, where MKL would be found now
    monkeypatch.setattr(linears, "measured", lambda *_: "MKL")
    again = nn.Linear(24, 80)
    linears.choose(again)
    assert is_chosen(again) and len(measuring) == 4
    linears.CHOSEN.clear()
    monkeypatch.setattr(linears, "machine", lambda: "another CPU, another number of threads or another torch")
    linears.choose(again)
    assert not is_chosen(again)
    file = tmp_path / "sparse-to-dense" / "float32_products.json"
    assert len(json.loads(file.read_text())) == 2                       # and the first machine's choice is still there


@pytest.mark.parametrize("content", ["{torn", "[1, 2]", '{"MACHINE": {"passes 80 x 24": "a library"}}', '{"MACHINE": 3}'])
def test_a_file_that_was_spoilt_is_measured_anew(content, measuring, tmp_path):
    file = tmp_path / "sparse-to-dense" / "float32_products.json"
    file.parent.mkdir()
    file.write_text(content.replace("MACHINE", linears.machine()))
    linears.choose(nn.Linear(24, 80))
    assert len(measuring) == 2 and json.loads(file.read_text())[linears.machine()]["passes 80 x 24"] == "oneDNN"


def test_without_a_place_to_keep_it_the_choice_is_the_process_s(measuring, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    layer = nn.Linear(24, 80)
    linears.choose(layer), linears.choose(layer)
    assert is_chosen(layer) and len(measuring) == 2


def test_an_unknown_library_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("FLOAT32_MATMUL", "blas")
    with pytest.raises(SystemExit):
        linears.choose(nn.Linear(24, 80))
    assert "FLOAT32_MATMUL=blas in the environment: give mkl or onednn" in capsys.readouterr().err


@pytest.mark.parametrize("use", linears.ROWS)
@pytest.mark.parametrize("factor, slow, expected", [(1, 0, "oneDNN"), (1 + 1e-3, 0, "MKL"), (1, 1, "MKL")])
def test_the_faster_one_is_taken_if_it_does_not_round(use, factor, slow, expected, monkeypatch):
    """A library that does nothing but look up its results: fast; fast and off by what bfloat16 loses; slow."""
    if not linears.both_are_here():
        pytest.skip("this PyTorch has one of the two libraries only")
    clock = [0.0]
    monkeypatch.setattr(linears.time, "process_time", lambda: clock[0])

    def library(rate, factor):
        def product(x, weight, bias=None):
            clock[0] += rate
            return factor * (x @ weight.T)
        return product, lambda weight, bias: lambda x: product(x, weight)

    monkeypatch.setattr(linears, "LIBRARIES", {"MKL": library(1.0, 1), "oneDNN": library(0.5 + slow, factor)})
    assert linears.measured((80, 24), use) == expected


def test_measuring_leaves_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    if linears.both_are_here():
        assert linears.measured((80, 24), "passes") in linears.LIBRARIES
    assert torch.equal(torch.rand(3), expected)


def test_all_ranks_take_rank_0s_choice():
    said = run_ranks(2, Path(__file__))
    assert said.count("oneDNN chosen") == 2, said


def choose_on_two_ranks() -> None:
    """Each has measured something else."""
    ranks.setup_distributed()
    linears.LEAST_WEIGHT, linears.both_are_here = 0, lambda: True
    linears.recorded = lambda wanted: dict.fromkeys(wanted, ["oneDNN", "MKL"][ranks.rank()])
    layer = nn.Linear(24, 80)
    linears.choose(layer)
    print("oneDNN chosen" if is_chosen(layer) else "MKL chosen", flush=True)


if __name__ == "__main__":
    choose_on_two_ranks()
