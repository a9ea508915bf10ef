r"""The grader: extraction, equality, hostile inputs, the worker, and properties over real golds.

Tests that need real golds look for them in $S2D_DATA (default: ../shared/data beside the project) and skip without.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from judge import answers as grader
from judge.answers import counts, extract_answer, grade, is_equal

SOON = 20  # seconds: far above what the cases below take, far below what they would take without limits

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("S2D_DATA", ROOT.parent / "shared" / "data"))


def rows(kind: str) -> list[dict]:
    """Our own cases: answers and completions as models write them, with a careful marker's verdict."""
    lines = (Path(__file__).parent / "grader_rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row.pop("kind") == kind]


def problems(name: str) -> list[dict]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {path}")
    return [json.loads(line) for line in path.read_text().splitlines()]


def golds() -> set[str]:
    return {row["answer"] for row in problems("math500.jsonl")}


# -------------------------------------------------- extraction --------------------------------------------------

@pytest.mark.parametrize(("text", "answer"), [row.values() for row in rows("extraction")])
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize("text", [r"\boxed{" * 200_000, r"\boxed{" * 200_000 + "}" * 200_000, "{" * 10**6,
                                  r"\boxed{1}" * 100_000, "answer" * 200_000, "Answer: " * 100_000, "#" * 10**6,
                                  "answer is\n" * 100_000, "\\" * 10**6, "<answer>" * 100_000,
                                  r"\boxed{1} and " * 100_000, r"x = \boxed{1}, " * 100_000, "</think>" * 100_000,
                                  "Answer: 5" + " (because" * 100_000, r"\boxed{1} + " * 100_000, "not " * 10**5 + r"\boxed{1}",
                                  r"\boxed{1}" + " (not" * 10**5, r"\boxed{1}, not " * 10**5, r"\boxed{1}" + "$ " * 10**5, "<|" * 10**5,
                                  r"\boxed{1}, maybe " * 10**5, "final" * 10**5, r"\boxed{1} but " * 10**5, "[/" * 10**5])  # fmt: skip
def test_extraction_is_linear(text):
    began = time.monotonic()
    extract_answer(text)
    assert time.monotonic() - began < SOON


# --------------------------------------------------- equality ---------------------------------------------------

@pytest.mark.parametrize(("answer", "gold", "right"), [row.values() for row in rows("pair")])
def test_a_careful_marker_would_say_the_same(answer, gold, right):
    assert is_equal(answer, gold) == is_equal(gold, answer) == right


@pytest.mark.parametrize(("completion", "gold", "right"), [row.values() for row in rows("completion")])
def test_the_answer_is_where_it_was_given(completion, gold, right):
    assert grade(completion, gold) == right


@pytest.mark.parametrize("name", ["grading_cases.jsonl", "grading_cases_2.jsonl"])
def test_graded_cases_are_judged_as_a_marker_did_and_none_is_falsely_right(name):
    cases = problems(name)
    wrong = [case for case in cases if case["right"] != (
        is_equal(case["answer"], case["gold"]) if case["kind"] == "pair" else grade(case["completion"], case["gold"]))]
    assert len(wrong) <= 0.02 * len(cases) and all(case["right"] for case in wrong), wrong


def test_grade():
    assert grade(r"so \boxed{\frac{2}{4}}", "0.5")
    assert not grade("so 0.5", "0.5")
    assert not grade(r"\boxed{0.5", "0.5")
    assert not is_equal("", "") and not is_equal(" ", "  ")


# ------------------------------------------------ hostile answers ------------------------------------------------

HOSTILE = [
    "9^{9^{9^{9}}}", "2^{2^{2^{2^{2^{2}}}}}", r"e^{e^{e^{e^{10}}}}", r"\exp(\exp(\exp(\exp(10))))", "x^{x^{x^{x^{x}}}}",
    r"\pi^{\pi^{\pi^{\pi}}}", "{" * 10**5 + "1" + "}" * 10**5, "(" * 400 + "1" + ")" * 400,
    r"\sqrt{" * 150 + "2" + "}" * 150,
    r"\frac{1}{" * 100 + "1" + "}" * 100, "1" * 10**6, "x+" * 500_000 + "1", "1000000000!", "((5!)!)!", "100!!!",
    r"\binom{1000000}{500000}", "9" * 999, "1e999999999", "1e-999", r"10^{-10^{10}}", "{{{{", "}}}}", r"\left(",
    r"\frac{1}",
    r"\frac{1}{0}", "0^{-1}", r"\begin{pmatrix} 1 & 2", r"\begin{pmatrix} 1 & 2 \\ 3 \end{pmatrix}", "\\" * 900,
    "_" * 500,
    "-" * 900 + "1", r"\sin" * 150 + " x", "|" * 201 + "x", r"\pm" * 200 + "1", "(a+b+c+d+f+g)^{300}", "(x+y+z)^{900}",
    "".join(f"(x+{i})" for i in range(120)), "+".join(rf"\frac{{1}}{{x+{i}}}" for i in range(60)),
    r"(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}+\sqrt{11})^{100}", r"\lfloor e^{400} \rfloor", r"\sin(10^{900})",
    "(1+i)^{1000}", "((x^{1000})^{1000})^{1000}", "e^{" * 19 + "x" + "}" * 19, r"\exp(" * 15 + "x" + ")" * 15,
    r"\begin{pmatrix} x & 1 \\ y & 2 \end{pmatrix}^{1000}",
    ",".join(map(str, range(200))), "__import__('os').system('touch hostile')", "\0", "\ud800", "a\u0301" * 300,
    "\ufdfa" * 900,
    "exec(open('x').read())", "x.__class__", "lambda: 0", r"\input{/etc/passwd}", r"\write18{touch hostile}",
]  # fmt: skip


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_cost_little_and_are_not_right(answer):
    is_equal(r"\sqrt{8}", "3")  # the worker is ready
    for gold in ("5", r"x+\sqrt{2}"):
        began = time.monotonic()
        assert not is_equal(answer, gold)
        assert not is_equal(gold, answer)
        assert time.monotonic() - began < SOON
    assert not list(ROOT.rglob("hostile"))


KINDS = [r"\text{exit now}", "52_8", "FF_{16}", "3:30 PM", "7:30", "(E) 12", r"5 \text{ red}", r"5 \text{ red} = x", "x = 52_8",
         "(52_8, 3)", r"\{52_8, 3\}", "x", "5", r"\sqrt 2", "(1,2)", "1,2", "[1,2)", r"x < 2 \text{ or } x > 3", "x=1, y=2",
         r"5 and 1/2", r"\begin{pmatrix} 1 & 2 \end{pmatrix}", "x + 1 = y"]


def test_no_text_is_evaluated(monkeypatch):
    """Comparing a container with a sympy object by == would have sympy parse and evaluate the strings in it."""
    from judge import latex

    evaluated = []
    monkeypatch.setattr("sympy.parsing.sympy_parser.parse_expr", lambda text, *_, **__: evaluated.append(text))
    verdicts = {latex.compare(a, b) for a in KINDS for b in KINDS}
    assert not evaluated and verdicts == {"equal", "different"}


# --------------------------------------------------- the worker ---------------------------------------------------


def test_importing_is_light_and_starts_nothing():
    code = "import sys; from judge import answers; assert not {'torch', 'transformers', 'sympy', 'judge.latex'} & set(sys.modules); print(answers.WORKER.process)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "None", done.stderr
    code = "import sys; from judge import latex; assert not {'torch', 'numpy', 'eval', 'common', 'judge.answers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_a_dead_worker_is_replaced():
    assert is_equal(r"\sqrt{8}", r"2\sqrt{2}")
    os.kill(grader.WORKER.process.pid, signal.SIGKILL)
    assert is_equal(r"\sqrt{8}", r"2\sqrt{2}")
    os.kill(grader.WORKER.process.pid, signal.SIGKILL)
    grader.WORKER.process.wait()
    assert is_equal(r"\sqrt{8}", r"2\sqrt{2}")


def test_the_worker_limits_its_memory():
    assert is_equal(r"\sqrt{8}", r"2\sqrt{2}")
    limits = Path(f"/proc/{grader.WORKER.process.pid}/limits")
    if not limits.exists():
        pytest.skip("no /proc")
    assert str(2**30) in next(line for line in limits.read_text().splitlines() if "address space" in line)


def test_a_slow_comparison_is_killed_and_counted():
    is_equal(r"\sqrt{8}", "3")
    before = dict(counts)
    os.kill(grader.WORKER.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    assert not is_equal(r"\sqrt{8}", r"2\sqrt{2}")
    assert time.monotonic() - began < SOON
    assert counts["timeout"] == before["timeout"] + 1
    assert is_equal(r"\sqrt{8}", r"2\sqrt{2}")


def test_threads_share_the_worker():
    verdicts = {}

    def work(i):
        verdicts[i] = [is_equal(rf"{i}\sqrt{{8}}", rf"{2 * j}\sqrt{{2}}") for j in range(8)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {i: [i == j for j in range(8)] for i in range(8)}


def test_a_forked_child_has_its_own_worker_and_nothing_outlives_its_parent():
    code = r"""
import os
from judge import answers
assert answers.is_equal(r"\sqrt{8}", r"2\sqrt{2}")
parent = answers.WORKER.process.pid
if (child := os.fork()) == 0:
    good = answers.is_equal(r"\sqrt{8}", r"2\sqrt{2}") and answers.WORKER.process.pid != parent
    print(answers.WORKER.process.pid, flush=True)
    os._exit(0 if good else 1)
assert os.waitpid(child, 0)[1] == 0 and answers.is_equal(r"\sqrt{18}", r"3\sqrt{2}")
print(parent)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    pids = [int(pid) for pid in done.stdout.split()]
    assert done.returncode == 0 and len(pids) == 2, done.stderr
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids)


def test_plain_comparisons_never_reach_the_worker():
    """Numbers, fractions, thousands separators and equal text are settled here: bench/grader.py measures how fast."""
    before = dict(counts)
    for i in range(1, 1000):
        assert not is_equal(f"{i},{i % 1000:03d}", rf"\frac{{{i}}}{{7}}")
        assert is_equal(f"{i}.50", rf"\frac{{{2 * i + 1}}}{{2}}") and is_equal(rf"\sqrt{{{i}}} + x", rf"\sqrt{{{i}}} + x")
    assert counts == before


# --------------------------------------------------- properties ---------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-999, 999).map(str),
    st.tuples(st.integers(-99, 99), st.integers(1, 99)).map(lambda ab: rf"\frac{{{ab[0]}}}{{{ab[1]}}}"),
    st.integers(2, 99).map(lambda n: rf"\sqrt{{{n}}}"),
    st.sampled_from([r"\pi", "x", "e", "2i", r"\sin x", "x^2", r"\log_{2} 3"]),
)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda ab: f"{ab[0]} + {ab[1]}"),
        st.tuples(inner, inner).map(lambda ab: rf"\left( {ab[0]} \right) \cdot \left( {ab[1]} \right)"),
        st.tuples(inner, st.integers(1, 9)).map(lambda ab: rf"\frac{{ {ab[0]} }}{{ {ab[1]} }}"),
    ),
    max_leaves=4,
)
ANSWERS = st.one_of(
    EXPRESSIONS,
    st.tuples(EXPRESSIONS, EXPRESSIONS).map(lambda ab: f"( {ab[0]} , {ab[1]} )"),
    st.tuples(EXPRESSIONS, EXPRESSIONS).map(lambda ab: f"{ab[0]} , {ab[1]}"),
)
SPACES = ("", " ", "  ", r"\, ", r"\; ", r"\! ", r"\quad ")


@settings(max_examples=80, deadline=None)
@given(ANSWERS, ANSWERS)
def test_equality_is_symmetric_and_reflexive(a, b):
    assert is_equal(a, b) == is_equal(b, a)
    assert is_equal(a, f"{a} ")


@settings(max_examples=80, deadline=None)
@given(ANSWERS, st.lists(st.sampled_from(SPACES), min_size=80, max_size=80))
def test_spacing_changes_nothing(answer, spaces):
    spaced = "".join(space + part for space, part in zip(spaces, answer.split(" "), strict=False))
    assume(not re.search(r"[0-9],[^0-9]*[0-9]{3}(?![0-9])", spaced))  # 1 , 100 is a list, 1,100 a number
    assert is_equal(answer, spaced)


@settings(max_examples=80, deadline=None)
@given(EXPRESSIONS, st.sampled_from(["1", r"\frac{1}{1000}", r"10^{-80}", r"\sqrt{2}"]))
def test_a_is_never_a_plus_something(a, more):
    assert not is_equal(a, f"{a} + {more}")
    assert not is_equal(f"{a} + {more}", a)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=r"0123xyi\{}()[]^_,.+-=<>|!%$ ab&°√½π", max_size=40))
def test_any_text_gets_a_verdict(text):
    began = time.monotonic()
    assert not is_equal(text, r"\sqrt{1234567}")
    assert time.monotonic() - began < SOON


# --------------------------------------------------- real golds ---------------------------------------------------

REWRITES = [
    lambda gold: gold.replace(r"\frac", r"\dfrac"),
    lambda gold: gold.replace(r"\left", "").replace(r"\right", ""),
    lambda gold: f"${gold}$",
    lambda gold: rf"\({gold}\)",
    lambda gold: rf"\boxed{{{gold}}}",
    lambda gold: rf"{{\color{{red}} {gold}}}",
    lambda gold: rf" {gold} .",
    lambda gold: gold.replace(" ", ""),
    lambda gold: gold.replace(",", ", ") if "(" in gold else gold,
    lambda gold: gold.replace("-", "−").replace(r"\pi", "π").replace(r"\infty", "∞").replace(r"\cup", "∪"),
    lambda gold: gold.replace(r"^\circ", "°"),
    lambda gold: gold.replace("pmatrix", "bmatrix"),
]


def test_math500_golds_equal_themselves_and_their_rewritten_forms():
    assert not [(gold, rewrite(gold)) for gold in golds() for rewrite in REWRITES if not is_equal(rewrite(gold), gold)]


def test_the_last_box_of_a_math500_solution_is_its_gold():
    assert not [row["answer"] for row in problems("math500.jsonl") if not grade(row["solution"], row["answer"])]


def test_math500_numbers_are_not_their_neighbours():
    for gold in filter(str.isdigit, golds()):
        assert not is_equal(gold, str(int(gold) + 1)) and (gold == "0" or not is_equal(f"-{gold}", gold))


def test_gsm8k_solutions_grade_themselves():
    for row in problems("gsm8k_test.jsonl"):
        gold = row["answer"].split("####")[-1].strip()
        assert grade(row["answer"], gold) and not grade(row["answer"], gold + "1")
