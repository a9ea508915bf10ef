"""engine/logprobs.cu against float64 closed forms: on a GPU if there is one, and by a C++ compiler over tests/simt_shim.h.

    python -m pytest tests/test_kernels.py                                          both
    compute-sanitizer --tool memcheck python -m pytest tests/test_kernels.py -k cuda
    compute-sanitizer --tool racecheck python -m pytest tests/test_kernels.py -k cuda
"""
import re
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stage3_kl import forward_kl
from stage4_distill import jsd, reverse_kl
from engine.logprobs import Head, linear_divergence, linear_logprobs
from engine import cuda_logprobs, logprobs, tiles
from engine.tiles import new_state, read_state

TESTS = Path(__file__).parent
EQUATIONS = {"reverse": reverse_kl, "forward": forward_kl, "jsd": jsd}       # in the order of logprobs.cu
KINDS = tuple(EQUATIONS)
SOURCE = cuda_logprobs.SOURCE.read_text()
GXX = shutil.which("g++")
ORDERS = {"ascending": (0, 0), "descending": (1, 0), "random": (2, 7)}


def emulate(source: str, directory: Path, *flags: str):
    """Compile the kernels' source for the CPU.  -> the library"""
    (directory / "logprobs.cpp").write_text(source)
    subprocess.run([GXX, *flags, "-std=c++17", "-w", "-shared", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE",
                    f"-I{TESTS}", "logprobs.cpp", "-o", "emulated.so"], cwd=directory, check=True)
    return cuda_logprobs.open_library(directory / "emulated.so")


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    if not GXX:
        pytest.skip("no g++")
    return emulate(SOURCE, tmp_path_factory.mktemp("kernels"), "-O2")


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))])
def device(request, monkeypatch):
    """Where tensors live; the operators find their library."""
    if request.param == "cuda":
        return "cuda"
    library = request.getfixturevalue("emulator")
    monkeypatch.setattr(cuda_logprobs, "library", lambda: library)
    return "cpu"


# ---------------------------------------------------------------- closed forms, float64


def log_softmax(logits, temperature):
    return (logits.double().cpu() / temperature).log_softmax(-1)


def times(p, logs):
    return torch.where(p == 0, 0.0, p * logs)


def expected_logprobs(logits, ids, temperature):
    """-> logprobs, entropy and their gradients' matrices d/d logits"""
    log_p = log_softmax(logits, temperature)
    p, own = log_p.exp(), torch.nn.functional.one_hot(ids.clamp(min=0), logits.shape[1])
    entropy = -times(p, log_p).sum(-1)
    live, weights = (ids >= 0)[:, None], token_weights(log_p)[:, None]
    return (torch.where(live, log_p, 0.0).gather(1, ids.clamp(min=0)[:, None])[:, 0], entropy * live[:, 0],
            weights * live * (own - p) / temperature, weights * live * times(p, log_p + entropy[:, None]) / -temperature)


def expected_divergence(student, teacher, kind, temperature):
    """-> value and its gradient d/d student logits"""
    s, t = log_softmax(student, temperature), log_softmax(teacher, temperature)
    p, q, scale = s.exp(), t.exp(), token_weights(s)[:, None] / temperature
    if kind == "forward":
        return times(q, t - s).sum(-1), (p - q) * scale
    if kind == "reverse":
        value = times(p, s - t).sum(-1)
        return value, times(p, s - t - value[:, None]) * scale
    mixture = ((p + q) / 2).log()
    to_mixture = times(p, s - mixture)
    gradient = 0.5 * (to_mixture - p * to_mixture.sum(-1, keepdim=True)) * scale
    return 0.5 * (to_mixture + times(q, t - mixture)).sum(-1), gradient


# ---------------------------------------------------------------- the kernels on given logits


def run_logprobs(logits, ids, temperature, num_tiles=1):
    """-> logprobs, entropy and the gradients of each alone, by the operators"""
    ids = ids.to(logits.device)
    edges = [round(i * logits.shape[1] / num_tiles) for i in range(num_tiles + 1)]
    state = new_state(logits)
    for start, stop in zip(edges, edges[1:]):
        cuda_logprobs.add_tile(state, logits[:, start:stop], ids, start, 1 / temperature)
        assert torch.equal(state[:, 3].isnan(), (ids < 0) | (ids >= stop)), "a token's logit comes with its own tile"
    values, entropies, maximum, log_total = read_state(state, ids, temperature)
    gradients = []
    for of_logprobs, of_entropies in ((1.0, None), (0.0, 1.0)):
        gradient = copy_of_rows(logits)
        weights = [None if x is None else x * token_weights(logits) for x in (of_logprobs, of_entropies)]
        for start, stop in zip(edges, edges[1:]):
            cuda_logprobs.to_gradient(gradient[:, start:stop], ids, start, 1 / temperature, maximum, log_total, weights[0],
                                      None if of_entropies is None else entropies, weights[1])
        assert surroundings(gradient).isnan().all()
        gradients.append(gradient)
    return values, entropies, *gradients


def run_divergence(student, teacher, kind, temperature):
    values, figures = cuda_logprobs.divergence(student, teacher, KINDS.index(kind), 1 / temperature)
    gradient = copy_of_rows(student)
    cuda_logprobs.divergence_to_gradient(gradient, teacher, KINDS.index(kind), 1 / temperature, figures, token_weights(student))
    assert surroundings(gradient).isnan().all()
    return values, gradient


def token_weights(logits):
    """Of each row's figure in the loss that is differentiated; another for each."""
    return torch.linspace(0.5, 2, len(logits), device=logits.device)


def copy_of_rows(rows):
    """A copy with the same strides and alignment, and NaN around it."""
    storage = torch.full((rows.storage_offset() + rows.stride(0) * len(rows),), torch.nan, dtype=rows.dtype, device=rows.device)
    return storage.as_strided(rows.shape, rows.stride(), rows.storage_offset()).copy_(rows)


def surroundings(rows):
    """What lies in memory before, between and behind them."""
    storage = rows.as_strided((rows.storage_offset() + rows.stride(0) * len(rows),), (1,), 0)
    outside = torch.ones_like(storage, dtype=torch.bool)
    outside.as_strided(rows.shape, rows.stride(), rows.storage_offset()).fill_(False)
    return storage[outside]


def make_logits(vocab, dtype=torch.float32, rows=4, scale=3.0, offset=0.0, infinite=0.0, stride=None, shift=0, seed=0, device="cpu"):
    """Random logits; `infinite` is the share that is −inf, `shift` and `stride` (elements) say how rows lie in memory, NaN around them."""
    generator = torch.Generator().manual_seed(seed)
    storage = torch.full((shift + rows * (stride or vocab),), torch.nan, dtype=dtype, device=device)
    logits = storage[shift:].view(rows, stride or vocab)[:, :vocab]
    values = scale * torch.randn(rows, vocab, generator=generator) + offset
    values[torch.rand(rows, vocab, generator=generator) < infinite] = -torch.inf
    values[:, [0, vocab // 2]] = offset                 # of which a token is one
    return logits.copy_(values)


CASES = {
    "one column": dict(vocab=1), "few columns": dict(vocab=40), "odd": dict(vocab=1237),
    "padded rows": dict(vocab=1237, stride=1240), "unaligned": dict(vocab=1240, shift=3),
    "several loads a thread": dict(vocab=8456), "mostly -inf": dict(vocab=1237, infinite=0.99),
    "some -inf": dict(vocab=1240, infinite=0.3), "offset 10,000": dict(vocab=1237, offset=1e4),
    "offset -10,000": dict(vocab=1240, offset=-1e4), "far apart": dict(vocab=4301, scale=100.0),
    "teacher's rows lie otherwise": dict(vocab=1240), "no rows": dict(vocab=40, rows=0),
}
LIMITS = {torch.float32: 5e-6, torch.bfloat16: 5e-3, torch.float16: 7e-4}       # of gradients, of the largest: half an ulp


def close(got, expected, limit, name, floor=3e-7):
    """Values: absolute, but in units of a value that is large.  Gradients: of the row's largest, or `floor`."""
    expected = expected.to(got.device)
    assert torch.isfinite(got).all(), name
    error = (got.double() - expected).abs()
    scale = expected.abs().amax(-1, keepdim=True) if got.dim() == 2 else expected.abs().clamp(min=10) / 10
    assert (error <= limit * scale + floor).all(), f"{name}: {error.max().item():.2e}"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype, temperature", [(torch.float32, 0.7), (torch.float32, 1.7), (torch.bfloat16, 1.0), (torch.float16, 1.0)], ids=str)
def test_logprobs_entropy_and_gradients(device, dtype, temperature, case):
    logits = make_logits(**CASES[case], dtype=dtype, device=device)
    vocab = logits.shape[1]
    ids = torch.tensor([0, vocab - 1, -1, vocab // 2])[:len(logits)]           # -1: masked; the middle is where tiles meet
    if "infinite" in CASES[case]:
        ids[1:2] = 0
    for num_tiles in (1, 2, 3) if vocab > 3 else (1,):
        got = run_logprobs(logits, ids, temperature, num_tiles)
        for name, limit, mine, wanted in zip(("logprob", "entropy", "gradient", "entropy's gradient"), (5e-6, 5e-6, LIMITS[dtype], LIMITS[dtype]),
                                             got, expected_logprobs(logits, ids, temperature)):
            close(mine, wanted, limit, f"{name}, {num_tiles} tiles")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, temperature", [(torch.float32, 0.7), (torch.bfloat16, 1.0), (torch.float16, 1.0)], ids=str)
def test_divergences_and_gradients(device, dtype, temperature, kind, case):
    student = make_logits(**CASES[case], dtype=dtype, device=device)
    layout = dict(stride=1243, shift=1) if "otherwise" in case else {}
    teacher = make_logits(**CASES[case] | layout, dtype=dtype, seed=0 if "infinite" in CASES[case] else 1, device=device)
    if "infinite" in CASES[case]:                       # the same support, else a KL is infinite
        teacher += torch.linspace(-1, 1, teacher.shape[1], device=device).to(dtype)
    value, gradient = expected_divergence(student, teacher, kind, temperature)
    got, got_gradient = run_divergence(student, teacher, kind, temperature)
    close(got, value, 5e-6, "value")
    floor = 1e-6 * value.clamp(min=1)[:, None].to(device)                      # it is relative to the value
    close(got_gradient, gradient, LIMITS[dtype], "gradient", floor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_infinite_divergence_is_infinite_and_a_nan_is_seen(device, dtype):
    student, teacher = (make_logits(40, dtype, seed=seed, device=device) for seed in (0, 1))
    teacher[0, 3] = -torch.inf
    student[1, 5] = torch.nan
    student[2, :16], teacher[2, 0] = -200, -torch.inf   # what the student never says is no matter
    for kind in KINDS:
        values, gradient = run_divergence(student, teacher, kind, 1.0)
        assert values[0].isposinf() == (kind == "reverse") and values[1].isnan() and values[2:].isfinite().all()
        assert gradient[1].isnan().all() and gradient[2:].isfinite().all()
        figures = cuda_logprobs.divergence(student, teacher, KINDS.index(kind), 1.0)[1]
        cuda_logprobs.divergence_to_gradient(gradient, teacher, KINDS.index(kind), 1.0, figures, torch.zeros(4, device=device))
        assert (gradient == 0).all(), "a token of weight 0 has no gradient"
    got = run_logprobs(student, torch.zeros(4, dtype=torch.int64), 1.0)
    assert got[0].isnan().tolist() == [False, True, False, False] and got[2][1].isnan().all()


@pytest.mark.parametrize("offset", [0, 100, 1000])
def test_a_small_divergence_at_a_large_offset(device, offset):
    """C2 is read there: 4e-5 nats between near-equal models within 1%, whatever is added to all logits."""
    student, teacher = near_equal_models(offset)
    expected = expected_divergence(student, teacher, "reverse", 1.0)[0]
    assert 3e-5 < expected.mean() < 5e-5
    got, _ = run_divergence(student.to(device), teacher.to(device), "reverse", 1.0)
    assert (got.double().cpu() / expected - 1).abs().max() < 0.01


def near_equal_models(offset, rows=4, vocab=5000):
    generator = torch.Generator().manual_seed(0)
    student = 2 * torch.randn(rows, vocab, generator=generator) + offset
    return student, student + 0.009 * torch.randn(rows, vocab, generator=generator)


@pytest.mark.parametrize("device", ["emulated"], indirect=True)
def test_rows_beyond_two_to_the_31_elements(device):
    """Only the pages that are touched exist.  In 32 bits, the second row would be the first."""
    stride = 2**32
    memory = torch.empty(stride + 128, dtype=torch.bfloat16)
    student, teacher = (memory[start:].as_strided((2, 64), (stride, 1)) for start in (0, 64))
    student.copy_(make_logits(64, torch.bfloat16, rows=2)), teacher.copy_(make_logits(64, torch.bfloat16, rows=2, seed=1))
    ids, state, expected = torch.tensor([1, 2]), new_state(student), expected_logprobs(student, torch.tensor([1, 2]), 1.0)
    value, gradient = expected_divergence(student, teacher, "reverse", 1.0)
    cuda_logprobs.add_tile(state, student, ids, 0, 1.0)
    got, _, maximum, log_total = read_state(state, ids, 1.0)
    close(got, expected[0], 5e-6, "logprob")
    got, figures = cuda_logprobs.divergence(student, teacher, 0, 1.0)
    close(got, value, 5e-6, "divergence")
    before = student.clone()
    cuda_logprobs.divergence_to_gradient(student, teacher, 0, 1.0, figures, token_weights(student))
    close(student, gradient, LIMITS[torch.bfloat16], "divergence's gradient")
    student.copy_(before)
    cuda_logprobs.to_gradient(student, ids, 0, 1.0, maximum, log_total, token_weights(student), None, None)
    close(student, expected[2], LIMITS[torch.bfloat16], "logprob's gradient")


# ---------------------------------------------------------------- schedules and mutants


def everything(dtype=torch.float32):
    """All results of all kernels, on rows that reach every branch: head, tail, two loads, threads with only −inf or nothing, a mask, two tiles."""
    for case in (dict(vocab=4301, infinite=0.9), dict(vocab=40), dict(vocab=1)):
        vocab = case["vocab"]
        student, teacher = make_logits(**case, dtype=dtype), make_logits(**case, stride=vocab + 3, shift=1, dtype=dtype)
        teacher += torch.linspace(-1, 1, vocab).to(dtype)
        ids = torch.tensor([0, vocab - 1, -1, vocab // 2])
        if "infinite" in case:
            ids[1] = int(student[1].argmax())
        expected = expected_logprobs(student, ids, 0.7)
        yield from zip(run_logprobs(student, ids, 0.7, num_tiles=2 if vocab > 1 else 1), expected)
        for kind in KINDS:
            yield from zip(run_divergence(student, teacher, kind, 0.7), expected_divergence(student, teacher, kind, 0.7))


@pytest.mark.parametrize("device", ["emulated"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_schedule_gives_the_same_bits(device, dtype):
    results = []
    for order in ORDERS.values():
        cuda_logprobs.library().simt_order(*order)
        results.append([])
        for got, expected in everything(dtype):
            close(got, expected, LIMITS[dtype] if got.dim() == 2 else 5e-6, "unmutated")
            results[-1].append(got.clone())
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_a_gpu_gives_the_same_bits_every_run():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    logits = make_logits(151936, torch.bfloat16, rows=256, device="cuda")
    runs = [run_logprobs(logits, torch.arange(256), 0.7) for _ in range(5)]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run))


MUTANTS = {
    "first barrier gone": ("of_warp[warp] = state;\n  __syncthreads();", "of_warp[warp] = state;"),
    "second barrier gone": ("  }\n  __syncthreads();\n  return of_warp[0];", "  }\n  return of_warp[0];"),
    "a barrier for one warp": ("  }\n  __syncthreads();\n  return", "  }\n  if (warp == 0) __syncthreads();\n  return"),
    "a shuffle too short": ("unroll\n  for (int distance = 16;", "unroll\n  for (int distance = 8;"),
    "tail dropped": ("j < head + width - tail", "j < head"),
    "head moved": ("j < head ? j :", "j < head ? j + 1 :"),
    "second load dropped": ("if (vector >= vectors) break;", "if (l || vector >= vectors) break;"),
    "sum not rescaled": ("    total *= scale;\n", ""),
    "gaps not rescaled": ("scale * (gap_total - gap * total)", "scale * gap_total"),
    "sums of two threads not added": ("    gap_total += other.gap_total;\n  }\n  template <int K> __device__ __forceinline__ void add(const float (&x)", "  }\n  template <int K> __device__ __forceinline__ void add(const float (&x)"),
    "maximum from -inf": ("return {-FLT_MAX, 0, 0}", "return {-INFINITY, 0, 0}"),
    "gap unbounded": ("weight * fmaxf(gap, -FAR)", "weight * gap"),
    "-inf minus -inf": ("weight == 0 ? 0 : weight * (a_gap - b_gap)", "weight * (a_gap - b_gap)"),
    "another token": ("to_float(rows[0][own])", "to_float(rows[0][own / 2])"),
    "old tiles forgotten": ("all.merge(tile, c);", "all = tile;"),
    "masked row": ("live ? gradient : 0", "gradient"),
    "half the warps": ("lane < WARPS ?", "lane < WARPS / 2 ?"),
    "a shuffle of half a warp": ("0xffffffffu", "0x0000ffffu"),
    "the next row read": ("j < head + width - tail;", "j < head + width - tail + 1;"),
    "rows taken for aligned": ("int64_t head = (16 - (uintptr_t)rows[0] % 16) % 16 / sizeof(T);", "int64_t head = 0;"),
    "teacher taken for aligned like student": ("if ((uintptr_t)rows[r] % 16 != (uintptr_t)rows[0] % 16) head = width;", ";"),
    "a new maximum, nothing rescaled": ("if (highest > maximum) raise(highest, c);", "if (highest > maximum) maximum = highest;"),
    "the next tile's first token": ("own < width ?", "own <= width ?"),
    "a gradient without its temperature": ("weight = weights[row] * inv_t", "weight = weights[row]"),
    "teacher and student exchanged": ("constexpr int A = KIND == FORWARD ? 1 : 0", "constexpr int A = KIND == FORWARD ? 0 : 1"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant, tmp_path, monkeypatch):
    """Each of these mistakes is seen by the comparisons above, under one schedule or another."""
    if not GXX:
        pytest.skip("no g++")
    old, new = MUTANTS[mutant]
    assert SOURCE.count(old) == 1, f"the source has changed: {old!r}"
    library = emulate(SOURCE.replace(old, new), tmp_path, "-O0")
    monkeypatch.setattr(cuda_logprobs, "library", lambda: library)
    for order in ORDERS.values():
        library.simt_order(*order)
        try:
            for got, expected in everything():
                close(got, expected, 5e-6, mutant)
        except (AssertionError, RuntimeError):          # a wrong result, or a barrier that not all threads reach
            return
    pytest.fail("nothing noticed")


# ---------------------------------------------------------------- operators, whole functions, building


def test_a_kernel_stands_in_only_for_a_function_that_it_computes(device, capfd):
    """Which one is found by comparing, not by name: an edited equation runs itself, and a line says so once."""
    where = torch.device(device)
    cuda_logprobs.kind_of.cache_clear()
    assert [cuda_logprobs.kind_of(function, where) for function in EQUATIONS.values()] == [0, 1, 2]
    assert cuda_logprobs.kind_of(lambda student, teacher: forward_kl(teacher, student), where) == 0
    assert capfd.readouterr().err == ""

    def scaled(student, teacher):
        return 1.01 * reverse_kl(student, teacher)

    def clipped(student, teacher):
        return reverse_kl(student, teacher).clamp(max=10)

    def same_value_other_gradient(student, teacher):
        return reverse_kl(student, teacher).detach() + 0 * student.sum(-1)

    def top_100(student, teacher):
        ids = teacher.topk(100).indices
        return reverse_kl(student.gather(-1, ids), teacher.gather(-1, ids))

    for function in (scaled, clipped, same_value_other_gradient, top_100):
        for _ in range(2):
            assert cuda_logprobs.kind_of(function, where) is None
        assert capfd.readouterr().err.count(f"{function.__name__} runs as plain PyTorch") == 1
    cuda_logprobs.kind_of.cache_clear()


def test_bad_arguments_are_refused(device):
    logits = make_logits(40, device=device)
    with pytest.raises(ValueError, match="float64"):
        cuda_logprobs.divergence(logits.double(), logits.double(), 0, 1.0)
    with pytest.raises(ValueError, match="int64"):
        cuda_logprobs.add_tile(new_state(logits), logits, torch.zeros(2, dtype=torch.int64, device=device), 0, 1.0)
    with pytest.raises(RuntimeError, match="bad argument"):
        cuda_logprobs.divergence(logits, logits, 7, 1.0)


def test_the_functions_are_the_same_with_and_without_kernels(device, monkeypatch):
    """linear_* by way of the operators and in plain PyTorch: values and gradients, soft cap, bias and all."""
    monkeypatch.setattr(logprobs, "WORKSPACE_BYTES", {"cpu": 4 * 11 * 64, "cuda": 4 * 11 * 64})
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias, teacher_hidden, teacher_weight = (
        torch.randn(*shape, generator=generator).to(device) for shape in ((11, 16), (150, 16), (150,), (11, 8), (150, 8)))
    ids = torch.randint(0, 150, (11,), generator=generator).to(device)
    wanted = [hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]

    def results():
        head = Head(weight, bias, softcap=5.0)
        values, entropy = linear_logprobs(hidden, head, ids, 0.7, entropy=True)
        figures = [(values * entropy).sum(), values.sum() + entropy.sum(), linear_logprobs(hidden, head, ids, 0.7).exp().sum()]
        for function in EQUATIONS.values():
            figures += linear_divergence(hidden, head, teacher_hidden, teacher_weight, function, ids / 150, ids, 0.7)
        gradients = [torch.autograd.grad(loss, wanted, retain_graph=True) for loss in figures if loss.requires_grad]
        return [*(figure.detach() for figure in figures), *sum(gradients, ())]

    monkeypatch.setattr(tiles, "kernels_for", lambda logits: cuda_logprobs)
    with_kernels = results()
    monkeypatch.setattr(tiles, "kernels_for", lambda logits: None)
    for got, expected in zip(with_kernels, results(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_nvcc_spills_nothing_and_warns_of_nothing(tmp_path):
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("no nvcc")
    done = subprocess.run([nvcc, *cuda_logprobs.NVCC_FLAGS, "-arch=sm_90", "-Xptxas", "-v", "-Werror", "all-warnings", "-keep", "-keep-dir", str(tmp_path),
                           str(cuda_logprobs.SOURCE), "-o", str(tmp_path / "kernels.so")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(spills) == 24 and {figure for kernel in spills for figure in kernel} == {"0"}
    ptx = (tmp_path / "logprobs.ptx").read_text()
    assert ptx.count("ld.global.v4") >= 60 and ptx.count("st.global.v4") >= 40 and ".global.u8" not in ptx, "16 bytes at a time"
    cuda_logprobs.open_library(tmp_path / "kernels.so")         # loads without a driver


@pytest.fixture
def fake_nvcc(tmp_path, monkeypatch):
    """A compiler that takes a while, writes a file in two halves, and counts."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"""#!/bin/sh
if [ "$1" = --version ]; then echo 13.0; exit; fi
echo >> {tmp_path}/builds
for last; do :; done
printf first > "$last"; sleep 0.3; printf second >> "$last"
""")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(nvcc.parent), prepend=":")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (9, 0) if gpu else (8, 0))
    return tmp_path


def test_a_build_is_kept_and_two_at_once_do_not_clash(fake_nvcc, monkeypatch, capfd):
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(cuda_logprobs.build().read_bytes()[:-32])) for _ in range(3)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert seen == [b"firstsecond"] * 3 and len(list((fake_nvcc / "cache/sparse-to-dense").iterdir())) == 1
    builds = (fake_nvcc / "builds").read_text()
    first = cuda_logprobs.build()
    assert (fake_nvcc / "builds").read_text() == builds and "sm_80_90" in first.name, "found, not built"
    first.write_bytes(first.read_bytes()[:20])          # cut off
    assert cuda_logprobs.build() == first and cuda_logprobs.is_whole(first) and capfd.readouterr().err.count("\n") == 1
    changed = fake_nvcc / "changed.cu"
    changed.write_text(SOURCE + "\n")
    monkeypatch.setattr(cuda_logprobs, "SOURCE", changed)
    assert cuda_logprobs.build() != first


@pytest.mark.parametrize("trouble, said", {"no compiler": "no nvcc", "it fails": "cannot compile", "no cache": "ot a directory",
                                           "not a library": "logprobs-", "an old driver": "CUDA error 35"}.items())
def test_without_a_library_it_is_said_once(fake_nvcc, monkeypatch, capfd, trouble, said):
    if trouble == "no compiler":
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.setenv("CUDA_HOME", "/nowhere")
    elif trouble == "it fails":
        (fake_nvcc / "bin/nvcc").write_text("#!/bin/sh\n[ $1 = --version ] || { echo; echo cannot compile; echo 1 error; exit 1; } >&2\n")
    elif trouble == "no cache":
        (fake_nvcc / "cache").write_text("a file")
    elif trouble == "an old driver":
        monkeypatch.setattr(cuda_logprobs, "open_library", lambda path: SimpleNamespace(add_tile=lambda *arguments: 35))
        monkeypatch.setattr(torch, "zeros", lambda *shape, device: torch.ones(shape))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    cuda_logprobs.library.cache_clear()
    assert cuda_logprobs.library() is None and not cuda_logprobs.available()
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and said in err and "plain PyTorch" in err
    cuda_logprobs.library.cache_clear()
