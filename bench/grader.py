r"""The grader beside math-verify: accuracy, false rights, false wrongs and speed, on rows made from real golds.

    python bench/grader.py --data DIR [--show ours] [--no-hostile]

The rows are written here: rewrites that keep a gold's value, perturbations that change it, completions with the answer
in several places, and hostile answers (each in a process of its own, killed after HANG_SECONDS).  The generator knows
nothing of either grader, but its author wrote ours: a fair comparison needs somebody else's rows too.
"""

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from common import FlagParser  # noqa: E402
from engine.ranks import fail  # noqa: E402

HANG_SECONDS = 10
Row = tuple[str, str, bool]  # answer (or completion), gold, right?


def parse_args(argv=None):
    parser = FlagParser(__doc__)
    parser.add_argument("--data", type=Path, help="folder of gsm8k_test.jsonl, math500.jsonl, aime2[45].jsonl")
    parser.add_argument("--show", choices=("ours", "math-verify"), help="print the rows that this one gets wrong")
    parser.add_argument("--no-hostile", action="store_true", help="leave the hostile rows out")
    parser.add_argument("--one", nargs=2, metavar=("JUDGE", "INDEX"), help="is that hostile answer 5?  Say so and exit")
    return parser.parse_args(argv)


# ------------------------------------------------------ the rows ------------------------------------------------------


def read_golds(data: Path) -> list[str]:
    """Every MATH-500 gold once, the AIME golds, and 150 of GSM8K's."""
    golds = []
    for name in ("math500", "aime24", "aime25", "gsm8k_test"):
        answers = [json.loads(line)["answer"] for line in (data / f"{name}.jsonl").read_text().splitlines()]
        golds += [answer.split("####")[-1].strip() for answer in answers[: 150 if name == "gsm8k_test" else None]]
    return list(dict.fromkeys(golds))


def rewrites(gold: str) -> Iterator[str]:
    """The same answer, written as a model might write it."""
    yield f"${gold}$"
    yield rf"\({gold}\)"
    yield f" {gold}."
    yield rf"\displaystyle {gold}"
    yield rf"\color{{blue}}{{{gold}}}"
    yield gold.replace(r"\left", r"\bigl").replace(r"\right", r"\bigr") if r"\left" in gold else rf"{gold} \,"
    yield re.sub(r"\\d?frac\s*(\d)\s*(\d)(?!\d)", r"\\dfrac{\1}{\2}", gold)
    yield re.sub(r"\\frac\{(\w+)\}\{(\w+)\}", r"\\tfrac{ \1 }{ \2 }", gold)
    yield re.sub(r"\\frac\{([\d\w]+)\}\{([\d\w]+)\}$", r" \1/\2", gold)
    yield gold.replace(r"\pi", "π").replace(r"\infty", "∞").replace(r"\cup", "∪").replace(r"\pm", "±")
    yield re.sub(r"\\sqrt\{(\d+)\}", r"√\1", gold)
    yield re.sub(r"\\sqrt\{(\d)\}", r"\\sqrt\1", gold)
    yield gold.replace("-", "−")
    yield re.sub(r"(?<=[\d\w])\s*([+-])\s*(?=\w)", r" \1 ", gold)
    yield from number_rewrites(gold)
    yield from other_rewrites(gold)


def number_rewrites(gold: str) -> Iterator[str]:
    value = number(gold)
    if value is None:
        return
    yield rf"x = {gold}"
    yield rf"x={gold}"
    yield rf"\mathbf{{{gold}}}"
    if value.denominator == 1:
        n = value.numerator
        yield from (f"{n}.0", f"{n}.00", *(f"{n:,}".replace(",", comma) for comma in (",", "{,}", r",\!", r"\,")))
        yield from (rf"{n} \text{{ units}}", f"{n} apples", rf"\${n:,}", rf"\frac{{{3 * n}}}{{3}}")
        if n > 0:
            yield from (f"0{n}", f"+{n}", rf"\sqrt{{{n * n}}}")
        if n > 99 and n % 100 == 0:
            yield from (rf"{n // 100} \times 10^2", rf"{n / 10 ** (len(str(n)) - 1)} \cdot 10^{{{len(str(n)) - 1}}}")
    else:
        top, bottom = value.numerator, value.denominator
        yield from (f"{top}/{bottom}", rf"\dfrac{{{2 * top}}}{{{2 * bottom}}}", rf"{top} \div {bottom}")
        sign, whole, rest = "-" if top < 0 else "", abs(top) // bottom, abs(top) % bottom
        if whole:
            yield from (rf"{sign}{whole}\frac{{{rest}}}{{{bottom}}}", rf"{sign}{whole} {rest}/{bottom}")
        if not 10**12 % bottom:
            decimal = f"{float(value):.12f}".rstrip("0")
            yield from (decimal, decimal.replace("0.", ".", 1) if abs(value) < 1 else decimal)
            yield rf"{float(100 * value):.10g}\%"


def other_rewrites(gold: str) -> Iterator[str]:
    if match := re.fullmatch(r"(\d+)\^\\circ", gold):
        yield from (f"{match[1]}", f"{match[1]}°", rf"{match[1]}^{{\circ}}", rf"{match[1]} \text{{ degrees}}")
        yield from (rf"\angle A = {gold}", f"{match[1]} degrees", rf"x = {gold}")
    if match := re.fullmatch(r"(-?\d*)\s*\\sqrt\{?(\d+)\}?", gold):
        factor, root = {"": 1, "-": -1}.get(match[1]) or int(match[1]), int(match[2])
        yield from (rf"{'-' if factor < 0 else ''}\sqrt{{{factor**2 * root}}}", rf"{factor} \cdot \sqrt{{{root}}}")
        yield from (rf"{factor}*sqrt({root})", rf"\frac{{{factor * root}}}{{\sqrt{{{root}}}}}")
        yield rf"{factor} \cdot {root}^{{1/2}}"
    if match := re.fullmatch(r"(-?\d+) ?([+-]) ?(\d+)i", gold):
        a, sign, b = match.groups()
        yield from (f"{sign}{b}i + {a}".lstrip("+"), rf"{a} {sign} {b}\mathrm{{i}}")
        yield from (rf"{a} {sign} i \cdot {b}", f"({a}{sign}{b}i)")
    if match := re.fullmatch(r"(\d+)_\{?(\d)\}?", gold):
        word = ("", "", "two", "three", "four", "five", "six", "seven", "eight", "nine")[int(match[2])]
        digits, base = match.groups()
        yield from (f"{digits}_{{{base}}}", rf"{digits}_{{\text{{{word}}}}}", rf"{digits} \text{{ (base {base})}}")
        yield from (f"({digits})_{base}", f"{digits} base {base}", rf"{digits}_{{\text{{base }} {base}}}")
    if match := re.fullmatch(r"\\text\{\(?(\w+)\)?\}", gold):
        word = match[1]
        yield from (word, rf"\text{{ {word} }}", rf"\mathrm{{{word}}}", rf"\textbf{{{word}}}")
        yield from (f"({word})", rf"\text{{Choice {word}}}") if len(word) == 1 else (word.lower(), word.title())
    if match := re.fullmatch(r"\\\$(.*)", gold):
        n = match[1]
        yield from (n, rf"{n} \text{{ dollars}}", f"${n}", f"{n} dollars", f"{n} USD")
    if match := re.fullmatch(r"(\d+) ?\\mbox\{ (\w+)\}\^2", gold):
        n, unit = match.groups()
        other = {"inches": "in", "cm": "centimeters"}[unit]
        yield from (n, rf"{n} \text{{ {unit}}}^2", f"{n} {other}^2", rf"{n}\text{{ square {other}}}")
    yield from list_rewrites(gold)
    yield from function_rewrites(gold)


def list_rewrites(gold: str) -> Iterator[str]:
    if gold.startswith(r"\begin{pmatrix}"):
        cells = gold[15:-13].strip()
        yield from (gold.replace("pmatrix", "bmatrix"), gold.replace(" ", ""), gold.replace(r"\\", "\\\\\n"))
        yield re.sub(r"(-?)(\d+)/(\d+)", r"\1\\frac{\2}{\3}", gold)
        yield rf"\left(\begin{{array}}{{cc}} {cells} \end{{array}}\right)"
    if match := re.fullmatch(r"(?:\\left)?([\[(]) ?(.*?) ?(?:\\right)?([\])])", gold):
        opening, inner, closing = match.groups()
        if any(sign in inner for sign in ")+("):
            return
        parts = [part.strip() for part in inner.split(",")]
        yield opening + ",".join(parts) + closing
        yield rf"\left{opening} " + r" ,\; ".join(parts) + rf" \right{closing}"
        if len(parts) == 2 and (opening + closing != "()" or "infty" in inner or "sqrt" in inner):
            low, high = (r"\le" if sign in "[]" else "<" for sign in (opening, closing))
            left = "" if "infty" in parts[0] else f"{parts[0]} {low} "
            right = "" if "infty" in parts[1] else f" {high} {parts[1]}"
            yield from (f"{left}x{right}", rf"x \in {gold}")
        elif opening + closing == "()":
            yield rf"({','.join('xyzw'[: len(parts)])}) = {gold}"
    if re.fullmatch(r"-?\d(, ?-?\d)+", gold):
        parts = [part.strip() for part in gold.split(",")]
        yield from (", ".join(parts[::-1]), r"\{" + ", ".join(parts[1:] + parts[:1]) + r"\}", " and ".join(parts))
        yield from (", ".join(f"x = {part}" for part in parts), r" \text{ or } ".join(f"x={part}" for part in parts))
        yield ", ".join(f"x_{i} = {part}" for i, part in enumerate(parts, 1))
    if match := re.fullmatch(r"(.*) \\pm (.*)", gold):
        a, b = match.groups()
        yield from (f"{a} + {b}, {a} - {b}", rf"{a} - {b} \text{{ and }} {a} + {b}")
        yield from (rf"\{{{a} - {b}, {a} + {b}\}}", f"x = {gold}")
    if r"\cup" in gold:
        left, right = (part.strip() for part in gold.split(r"\cup"))
        yield from (rf"{right} \cup {left}", f"{left}∪{right}", rf"x \in {gold}")


def function_rewrites(gold: str) -> Iterator[str]:
    if re.fullmatch(r"[-+\d\sa-zA-Z^]+", gold) and re.search("[+-]", gold[1:]) and re.search("[a-hj-z]", gold):
        terms = re.findall(r"[+-]?[^+-]+", gold.replace(" ", ""))
        yield " + ".join(terms[::-1]).replace("+ +", "+ ").replace("+ -", "- ")
        yield re.sub(r"\^(\d)", r"^{\1}", gold)
        yield re.sub(r"(\d)([a-z])", r"\1 \\cdot \2", gold)
        yield re.sub(r"(\d)([a-z])", r"\1*\2", gold)
        yield f"f(x) = {gold}"
        yield re.sub(r"\^(\d)", lambda power: "⁰¹²³⁴⁵⁶⁷⁸⁹"[int(power[1])], gold)
    extra = {
        r"\cot x": [r"\cot(x)", r"\frac{\cos x}{\sin x}", r"\frac{1}{\tan x}", "cot x"],
        "3R^2": ["3R²", r"3 \cdot R^2", "3R^{2}", "3*R^2"],
        "y = 2x + 3": ["2x+3", "y=3+2x", "y = 3 + 2x"],
        "y = -2x": ["y=-2x", "-2x", r"y = -2 \cdot x"],
        "(a+5)(b+2)": ["(b+2)(a+5)", r"(a+5) \cdot (b+2)", "ab+2a+5b+10"],
        r"\frac{11+9a}{20}": [r"\frac{9a+11}{20}", "(11+9a)/20", r"\frac{11}{20} + \frac{9a}{20}", "0.55 + 0.45a"],
        r"5x - 7y + 11z + 4 = 0": ["5x-7y+11z+4=0", "11z + 5x - 7y + 4 = 0", "5x - 7y + 11z = -4"],
        r"\frac{20000}{\pi}": [r"20000/\pi", r"\dfrac{20000}{π}", r"20000 \pi^{-1}", r"\frac{20{,}000}{\pi}"],
        r"x \in [-2,7]": ["[-2,7]", r"-2 \le x \le 7", "-2 ≤ x ≤ 7", r"-2 \leqslant x \leqslant 7"],
        r"\{1\pm\sqrt{5},-2\}": [r"-2, 1+\sqrt5, 1-\sqrt5", r"\{-2, 1 \pm \sqrt{5}\}", r"x=-2, 1\pm\sqrt{5}"],
    }
    yield from extra.get(gold, [])


def perturbations(gold: str, chance: random.Random) -> Iterator[str]:
    """Another answer that looks like it."""
    places = [match.start() for match in re.finditer(r"\d", gold)]
    for place in chance.sample(places, min(2, len(places))):
        digit = "8" if gold[place] == "9" else str((int(gold[place]) + chance.randint(1, 8)) % 9 + 1)
        yield gold[:place] + digit + gold[place + 1 :]
    value = number(gold)
    if value is not None:
        yield from (str(value + 1), str(-value) if value else "1", f"{gold}, {value + 1}")
        yield f"({gold})^2" if value not in (0, 1) else "7"
        yield from (rf"{gold} + \frac{{1}}{{1000}}", f"{float(value) + 0.001:.6f}")
        yield rf"\frac{{{gold}}}{{7}}" if value else "3"
        if value.denominator > 1:
            yield from (f"{value.denominator}/{value.numerator}", f"{value.denominator}", f"{value.numerator}")
            if 10**12 % value.denominator:
                yield from (f"{float(value):.2f}", f"{float(value):.6f}")
    if "sqrt" in gold or "pi" in gold:
        yield from (gold.replace(r"\sqrt", ""), gold.replace(r"\pi", "3.14"), gold.replace("pi", "theta"), f"2({gold})")
    if re.fullmatch(r"(\\left)?[(\[].*[\])]", gold) and r"\cup" not in gold and ")(" not in gold:
        yield gold.translate(str.maketrans("([])", "[()]"))
        inner = re.sub(r"\\left|\\right", "", gold)[1:-1].split(",")
        yield from ("(" + ",".join(inner[::-1]) + ")", inner[0], ",".join(inner))
    if re.fullmatch(r"-?\d(, ?-?\d)+", gold):
        yield from (gold.split(",")[0], f"{gold}, 17", f"({gold})", re.sub(r"-?(\d)$", r"-8\1", gold))
    if r"\pm" in gold:
        yield from (gold.replace(r"\pm", "+"), gold.replace(r"\pm", "-"), f"-({gold})")
    if match := re.fullmatch(r"(\d+)_\{?(\d)\}?", gold):
        digits, base = match[1], int(match[2])
        yield from (f"{digits}_{base + 1}", digits, f"{digits}_{{10}}", str(int(digits, base)))
    if match := re.fullmatch(r"\\text\{\(?(\w+)\)?\}", gold):
        yield from (rf"\text{{not {match[1]}}}", "D", r"\text{neither}", f"{match[1]}s" if len(match[1]) > 1 else "5")
    if re.search(r"[a-zA-Z]\^?|i$", gold) and not re.search(r"\\|_|=", gold):
        yield from (gold.swapcase(), f"{gold} + 1", f"-({gold})", gold.replace("^", "").replace("2k", "k") + "k")
    if r"\cup" in gold:
        yield from (gold.split(r"\cup")[0], gold.replace(r"\cup", r"\cap"))
        yield from (gold.replace("(", "["), gold.replace(r"\cup", ","))
    if "matrix" in gold:
        yield from (gold.replace(r"\\", "&"), gold.replace("-", ""), rf"2 {gold}", gold.replace(r"\\", r"\\ 0 \\", 1))
    if "=" in gold:
        yield from (gold.replace("=", "<"), gold.replace("x", "w"), gold.replace("= ", "= 1 + ").replace("x=", "x=1+"))


def number(gold: str) -> Fraction | None:
    """The value of a plainly written number, for the generator's own arithmetic."""
    text = re.sub(r"\\d?frac\s*\{?(\d+?)\}?\s*\{?(\d+)\}?$", r" \1/\2", gold).strip().replace("- ", "-")
    if match := re.fullmatch(r"(\d+) +(\d+)/(\d+)", text):
        return int(match[1]) + Fraction(int(match[2]), int(match[3]))
    if re.fullmatch(r"\d{1,3}(,(\\! ?)?\d{3})+", gold):
        text = re.sub(r"\D", "", gold)
    return Fraction(text) if re.fullmatch(r"-?(\d+(/\d+)?|\d*\.\d+)", text) else None


def pairs(golds: list[str]) -> list[Row]:
    chance = random.Random(0)
    rows: dict[tuple[str, str], Row] = {}
    for gold in golds:
        same = [gold, *rewrites(gold)]
        for answer in chance.sample(same, min(len(same), 12)):
            rows.setdefault((answer, gold), (answer, gold, True))
        other = [answer for answer in perturbations(gold, chance) if answer not in same and answer != gold]
        for answer in chance.sample(other, min(len(other), 5)):
            rows.setdefault((answer, gold), (answer, gold, False))
    return list(rows.values())


def completions(golds: list[str]) -> list[Row]:
    """Right and wrong completions, with the answer where a model may leave it."""
    chance = random.Random(1)
    rows = []
    for gold in golds:
        wrong = str(chance.randint(1000, 9999)) + ".5"
        forms: list[tuple[str, bool]] = [
            (rf"We get {wrong} and then \boxed{{{gold}}}.", True),
            (rf"First \boxed{{{wrong}}}. No: $\boxed{{{gold}}}$", True),
            (rf"<think>\boxed{{{gold}}}</think> Done.", True),
            (rf"<think>\boxed{{{wrong}}}</think> So \[ \fbox{{{gold}}} \]", True),
            (rf"\boxed {{ {gold} }} is the answer; check: 7 + 8 = 15", True),
            (rf"Put it in \boxed{{}}. \boxed{{{gold}}}", True),
            (f"Thinking of 12.\n\n**Answer:** {gold}", True),
            (f"Final answer: ${gold}$", True),
            (f"Answer: {wrong}\nAnswer: {gold}\n", True),
            (f"It is 3+4.\n#### {gold}", True),
            (rf"\boxed{{{gold}}} no, \boxed{{{wrong}}}", False),
            (rf"The answer is {gold}", False),
            (rf"so we have \boxed{{{gold}", False),
            (rf"<think>\boxed{{{gold}}}</think> \boxed{{{wrong}}}", False),
            (f"Answer: {gold}\nAnswer: {wrong}", False),
            (f"#### {gold}\n#### {wrong}", False),
        ]
        rows += [(text, gold, right) for text, right in chance.sample(forms, 4)]
    return rows


def plain_pairs() -> list[Row]:
    """What most rewards compare: two integers, decimals or fractions."""
    chance = random.Random(2)
    numbers = [(chance.randint(0, 2000), chance.randint(2, 20)) for _ in range(1500)]
    rows = [(f"{n:,}", str(n), True) for n, _ in numbers] + [(str(n + 1), str(n), False) for n, _ in numbers]
    return rows + [(rf"\frac{{{n}}}{{{d}}}", f"{n}/{d}", True) for n, d in numbers]


HOSTILE = [
    "9^{9^{9^{9}}}", "2^{2^{2^{2^{2^{2}}}}}", r"e^{e^{e^{e^{10}}}}", "x^{x^{x^{x^{x}}}}", "1000000000!", "((5!)!)!",
    "9" * 999,
    "{" * 10**4 + "1" + "}" * 10**4, "1" * 10**6, "x+" * 10**5 + "1", r"\binom{1000000}{500000}", "1e999999999", "{{{{",
    r"\sqrt{" * 150 + "2" + "}" * 150, r"\sin" * 150 + " x", "(a+b+c+d+f+g)^{300}", "(x+y+z)^{900}", r"10^{10^{10}}",
    "".join(f"(x+{i})" for i in range(120)), r"\lfloor e^{400} \rfloor", "__import__('os').system('true')", "\0",
    r"\frac{1}{0}",
    r"(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}+\sqrt{11})^{100}",
]  # fmt: skip


# ----------------------------------------------------- the judges -----------------------------------------------------


def load_judges() -> dict:
    """name -> (function for pairs, function for completions)."""
    import math_verify

    from judge.answers import grade, is_equal

    def verify(completion, gold):
        return math_verify.verify(math_verify.parse(f"${gold}$"), math_verify.parse(completion))

    return {"ours": (is_equal, grade), "math-verify": (lambda answer, gold: verify(f"${answer}$", gold), verify)}


def measure(judge, rows: list[Row], show: bool) -> tuple[float, int, int, float]:
    """Accuracy, false rights, false wrongs, and rows per second."""
    false_rights, false_wrongs = 0, 0
    began = time.monotonic()
    for answer, gold, right in rows:
        verdict = judge(answer, gold)
        false_rights += verdict and not right
        false_wrongs += right and not verdict
        if show and verdict != right:
            print(f"  said {verdict}: {answer!r} for {gold!r}")
    seconds = time.monotonic() - began
    return 1 - (false_rights + false_wrongs) / len(rows), false_rights, false_wrongs, len(rows) / seconds


def survives(name: str, index: int) -> tuple[bool, float]:
    """Does a judge say in time that a hostile answer is not 5?  And the seconds that it took, start included."""
    command = [sys.executable, __file__, "--one", name, str(index)]
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False, HANG_SECONDS
    return done.stdout.strip() == "False", time.monotonic() - began


def main(args):
    if args.one:
        name, index = args.one
        return print(bool(load_judges()[name][0](HOSTILE[int(index)], "5")))
    if args.data is None:
        fail("--data: give the folder of gsm8k_test.jsonl, math500.jsonl, aime24.jsonl and aime25.jsonl")
    golds = read_golds(args.data)
    kinds = {"pairs": pairs(golds), "completions": completions(golds), "plain numbers": plain_pairs()}
    print(f"{len(golds)} golds")
    print(f"{'rows':<16}{'judge':<14}{'n':>7}{'negatives':>11}{'accuracy':>10}"
          f"{'false right':>13}{'false wrong':>13}{'rows/s':>10}")  # fmt: skip
    for kind, rows in kinds.items():
        negatives = sum(not right for *_, right in rows)
        for name, judges in load_judges().items():
            judge = judges[kind == "completions"]
            judge("\\sqrt{8}", "3")  # start what has to be started
            accuracy, false_rights, false_wrongs, speed = measure(judge, rows, args.show == name)
            print(f"{kind:<16}{name:<14}{len(rows):>7}{negatives:>11}{accuracy:>10.2%}"
                  f"{false_rights:>13}{false_wrongs:>13}{speed:>10.0f}")  # fmt: skip
    for name in () if args.no_hostile else load_judges():
        results = [survives(name, index) for index in range(len(HOSTILE))]
        hung = sum(not good for good, _ in results)
        print(f"{'hostile':<16}{name:<14}{len(HOSTILE):>7}   no verdict in {HANG_SECONDS} s: {hung}"
              f", slowest {max(seconds for _, seconds in results):.1f} s")  # fmt: skip


if __name__ == "__main__":
    main(parse_args())
