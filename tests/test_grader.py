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


def rows(table: str) -> list[tuple[str, str]]:
    """The first answer of each line with each other one on it."""
    lines = [[part.strip() for part in line.split(" | ")] for line in table.strip().splitlines()]
    return [(first, other) for first, *others in lines for other in others]


def problems(name: str) -> list[dict]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {path}")
    return [json.loads(line) for line in path.read_text().splitlines()]


def golds() -> set[str]:
    return {row["answer"] for row in problems("math500.jsonl")}


# -------------------------------------------------- extraction --------------------------------------------------

EXTRACTIONS = [
    (r"so \boxed{42}.", "42"),
    (r"first \boxed{1}, then \boxed{\frac{1}{2}} holds", r"\frac{1}{2}"),
    (r"\fbox{7}", "7"),
    (r"\boxed {8}", "8"),
    (r"$\boxed 3$", "3"),
    (r"\boxed 3 but rather \boxed{7}", "7"),
    (r"\boxed{7} but rather \boxed 3", "3"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\boxed{5}}", r"\boxed{5}"),
    (r"\boxed{\text{if } \{x\}}", r"\text{if } \{x\}"),
    ("\\boxed{\n5\n}", "5"),
    (r"<think>\boxed{4}</think> so it is four", "4"),
    (r"<think>\boxed{4}</think> \boxed{5}", "5"),
    (r"\boxed{5} and then \boxed{6", "5"),  # truncated: the last closed box counts
    (r"\boxed{6", None),
    (r"\boxed{\frac{1}{2}", None),
    (r"put it in \boxed{}: \boxed{9}", "9"),
    (r"\boxed{9}, as asked, in a \boxed{}", "9"),
    (r"\boxedtext{5}", None),
    ("Answer: 5", "5"),
    ("**Answer:** 5", "5"),
    ("**Answer**: $5$", "$5$"),
    ("Final answer: 5\nthanks", "5"),
    ("The final answer is: **12 and 14**", "12 and 14"),
    ("### Answer:\n\n17", "17"),
    ("Answer: 1\nAnswer: 2", "2"),
    (r"\textbf{Answer:} 6", "6"),
    (r"\textbf{Answer: 6}", "6"),
    (r"Answer: \{6\}", r"\{6\}"),
    ("__Answer:__ 6", "6"),
    ("Answer: **6**.", "6"),
    ("Answer:\n\\[\n7\n\\]", "7"),
    (r"\boxed{3}" + "\nAnswer: 4", "3"),
    ("it is 18\n#### 18", "18"),
    ("#### 1,000\n", "1,000"),
    ("Answer: 5\n#### 6", "5"),
    ("The answer is 5", None),
    ("so we get 42", None),
    ("##### 5", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "answer"), EXTRACTIONS)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize("text", [r"\boxed{" * 200_000, r"\boxed{" * 200_000 + "}" * 200_000, "{" * 10**6,
                                  r"\boxed{1}" * 100_000, "answer" * 200_000, "Answer: " * 100_000, "#" * 10**6,
                                  "answer is\n" * 100_000, "\\" * 10**6, "<answer>" * 100_000,
                                  r"\boxed{1} and " * 100_000, r"x = \boxed{1}, " * 100_000, "</think>" * 100_000,
                                  "Answer: 5" + " (because" * 100_000, r"\boxed{1} + " * 100_000, "not " * 10**5 + r"\boxed{1}",
                                  r"\boxed{1}" + " (not" * 10**5, r"\boxed{1}, not " * 10**5, r"\boxed{1}" + "$ " * 10**5])  # fmt: skip
def test_extraction_is_linear(text):
    began = time.monotonic()
    extract_answer(text)
    assert time.monotonic() - began < SOON


# --------------------------------------------------- equality ---------------------------------------------------

EQUAL = rows(r"""
\frac{14}{3} | 14/3 | \dfrac {14} 3 | 4\frac{2}{3} | 4 2/3 | 4{\frac{2}{3}} | 14 \over 3 | \nicefrac{14}{3} | 4.\bar6
\frac{14}{3} | 4.\dot{6}
\frac43 | \dfrac 43
\frac{9}{19} | \frac9{19}
3\sqrt{13} | \sqrt{117} | 3√13 | 3 \cdot \sqrt{13} | 3*sqrt(13) | 3sqrt13
90^\circ | 90 | 90° | 90 degrees | 90^{\circ} | 90 \text{ degrees} | 90\degree | 90^o | 90\deg
6 - 5i | -5i + 6 | 6-5\mathrm{i} | 6 - i \cdot 5
6+9i | 3(2+3i) | 6+i\cdot 9 | 9 i+6 | 6+9\textit{i} | z = 6+9i | 6 + 9 \cdot i | 6+9\,\mathrm{i}
x=5 | 5 | x = 5.0 | x = 5 | x = \frac{10}{2}
1,-2 | -2, 1 | x = 1, x=-2 | x = 1 or x = -2 | x = 1 \text{ or } x = -2 | 1 and -2 | \{1,-2\} | x=1,-2
1,-2 | x_1 = 1, x_2 = -2 | 1, \text{ and } -2 | \{-2, 1\} | \left\{ -2, 1 \right\} | x = -2 \text{ and } x = 1
1,-2 | x=1\quad\text{or}\quad x=-2 | (x=1), (x=-2)
52_8 | 52_{8} | 52_{\text{eight}} | 52_{eight} | 52 \text{ base } 8 | 52 (base 8) | 52_{(8)} | 52₈ | 52_{\text{base }8}
52_8 | {52}_{8} | 52 \text{ in base } 8 | 52_{base 8}
11\sqrt2 | 11\sqrt{2} | \sqrt{242} | \sqrt{2}\cdot 11 | 11 * √2 | 11 \sqrt {2} | 11\cdot 2^{1/2} | 11\cdot2^{0.5}
11\sqrt2 | \frac{22}{\sqrt{2}}
\frac{3\sqrt{3}}{4} | 3\sqrt3/4 | \frac{3}{4}\sqrt{3} | \frac{9}{4\sqrt3}
\cot x | \frac{\cos x}{\sin x} | \cot(x) | cot x | \frac{1}{\tan x} | \cot{x} | {\cot x} | \cot\left(x\right)
\cot x | \frac{\cos(x)}{\sin(x)}
1 \pm \sqrt{19} | 1+\sqrt{19}, 1-\sqrt{19} | 1±√19 | x = 1 \pm \sqrt{19} | \{1-\sqrt{19}, 1+\sqrt{19}\}
1 \pm \sqrt{19} | \frac{2 \pm \sqrt{76}}{2} | 1 + \sqrt{19} \text{ and } 1 - \sqrt{19} | 1 - \sqrt{19}, 1 + \sqrt{19}
1 \pm \sqrt{19} | \pm\sqrt{19}+1 | 1 \mp \sqrt{19} | x_{1,2} = 1 +/- \sqrt{19}
\text{east} | east | East | \mathrm{east} | {east} | ``east''
\text{Evelyn} | Evelyn | \text{ evelyn}
\text{(C)} | C | (C) | \text{C} | \textbf{(C)} | \mathrm{(C)} | (\text{C}) | C. | \text{Option (C)} | \boxed{\text{C}}
\text{(C)} | \text{C.} | \textbf{C}
\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix} | \begin{bmatrix} -\frac13 \\ \frac23 \\[2pt] \frac53 \\\end{bmatrix}
\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix} | \frac{1}{3}\begin{pmatrix} -1 \\ 2 \\ 5 \end{pmatrix}
\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix} | \left(\begin{array}{c} -1/3 \\ 2/3 \\ 5/3 \end{array}\right)
\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix} | \begin{pmatrix} -1/3 & 2/3 & 5/3 \end{pmatrix}^T
(a+5)(b+2) | ab+2a+5b+10 | (b+2)(a+5)
(3,4] | 3 < x \le 4 | x \leq 4 \wedge 3 < x | x > 3 and x <= 4 | 3<x≤4 | x \in (3,4] | 4 \geq x > 3 | \left(3, 4\right]
(3,4] | \{ x| 3 < x \le 4 \} | \{x \in \mathbb{R}| 3 < x \le 4\}
(2,\infty) | (2, oo) | x > 2 | x - 2 > 0 | (2, +\infty)
(-\infty, 0] | x \le 0 | (-∞,0] | 0 \ge x | (-\infty,0] | \left(-\infty, 0\right] | x \leq 0 | \{x \mid x \le 0\}
(-\infty, 0] | \{x : x \le 0\} | \{ x \in \mathbb{R} \mid x \leq 0 \} | -\infty < x \le 0 | x \in (-\infty, 0]
(-\infty, 0] | (-infinity, 0]
(-\infty, 2) \cup (3, \infty) | x < 2 \text{ or } x > 3 | (3,\infty) \cup (-\infty,2) | (-∞,2)∪(3,∞)
(-\infty, 2) \cup (3, \infty) | (-\infty, 2) U (3, \infty) | x<2 or x>3 | x < 2, x > 3
(-\infty, 2) \cup (3, \infty) | x \in (-\infty,2) \text{ or } x \in (3,\infty)
x \in [-2,7] | -2 \le x \le 7 | [-2,7]
(0,9) \cup (9,36) | (9,36)\cup(0,9) | 0<x<9 \text{ or } 9<x<36 | x\in(0,9)\cup(9,36)
(0,9) \cup (9,36) | \left(0,9\right) \cup \left(9,36\right)
(-\sqrt{3}, \sqrt{3}) | -\sqrt{3} < m < \sqrt{3}
5x - 7y + 11z + 4 = 0 | 10x-14y+22z+8=0 | 4 + 5x - 7y + 11z = 0 | -5x + 7y - 11z = 4
y = 2x + 3 | 2x+3 | 2x - y + 3 = 0 | y=3+2x | y-2x-3=0 | 2x-y=-3
y = -2x | 2x + y = 0
10,\!080 | 10080 | 10,080 | 10{,}080 | 10\,080 | 10~080 | 10\text{,}080 | 1.008 x 10^4
11,\! 111,\! 111,\! 100 | 11111111100 | 11,111,111,100 | 11{,}111{,}111{,}100 | 11\,111\,111\,100 | 11,\!111,\!111,\!100
11,\! 111,\! 111,\! 100 | 11 111 111 100 | 11,\,111,\,111,\,100
13535 | 13\,535 | 13,535 | 13 535 | 13535. | 013535
\$32,\!348 | 32348 | $32,348 | \$32,348.00 | 32348 USD | \$32{,}348 | \text{\$32,348} | $\$32348$
\$18.90 | 18.9 | 18.90 dollars | 18.90 \text{ dollars}
864 \mbox{ inches}^2 | 864 | 864 \text{ in}^2 | 864 \text{ square inches} | 864 in^2 | 864 \text{ sq in}
864 \mbox{ inches}^2 | 864 \text{ inches squared} | 864\ \text{in}^2 | 864\,in^2 | 864 \text{ square inches}.
864 \mbox{ inches}^2 | 864\text{ inches}²
15\mbox{ cm}^2 | 15 | 15 cm² | 15\,\mathrm{cm}^2 | 15 \text{ cm}^{2} | 15 square centimeters | 15 \mathrm{~cm}^2
15\mbox{ cm}^2 | 15\text{ cm$^2$} | 15 \, \text{cm}^2
5.4 \text{ cents} | 5.4 | \frac{27}{5} \text{ cents} | 5.4¢ | 5.4 cents | 5.40\text{ cents per unit}
\frac{270}7\text{ degrees} | \frac{270}{7} | \frac{270}{7}^\circ | 38\frac{4}{7} | 38\tfrac{4}{7}^\circ | \frac{270}{7}°
1\frac{4}{5} | 1.8 | 9/5 | \frac{9}{5} | 1 4/5 | 1⅘
137 \frac{1}{2} | 137.5 | 137½ | 137 1/2 | 137\tfrac12 | \frac{275}{2} | 137 + \frac{1}{2}
.0000672 | 6.72 \times 10^{-5} | 6.72e-5 | 6.72·10⁻⁵ | 0.0000672 | 6.72\times10^{-5} | 6.72 × 10^-5 | 6.72*10^(-5)
.0000672 | 6.72E-5 | \frac{672}{10000000}
.35625 | \frac{57}{160}
28 | 28\%
28\% | 0.28
25\% | \frac14
25 \text{ percent} | 25%
3R^2 | 3 R^{2} | 3R²
5r^5 | 5 \cdot r^5 | 5{r}^{5}
\frac{11+9a}{20} | \frac{9a + 11}{20} | 0.55+0.45a | \frac{11}{20} + \frac{9}{20}a
\frac{20000}{\pi} | 20000/π | \frac{2\times10^4}{\pi} | 20,000/\pi | \frac{20{,}000}{\pi}
\left( 3, \frac{\pi}{2} \right) | (3, π/2) | (r,\theta) = (3, \pi/2) | (3, \frac{1}{2}\pi) | (3, 0.5\pi)
\{1\pm\sqrt{5},-2\} | 1+\sqrt5, 1-\sqrt5, -2 | -2, 1\pm\sqrt5 | \left\{1+\sqrt{5}, 1-\sqrt{5}, -2\right\}
\{1\pm\sqrt{5},-2\} | x = 1 \pm \sqrt{5}, x = -2 | x=-2, x=1+\sqrt5, x=1-\sqrt5
\left[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} \right] | [\pi^2/8, 5\pi^2/4] | \frac{\pi^2}{8} \le y \le \frac{5\pi^2}{4}
\left[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} \right] | [\frac{1}{8}\pi^2,\frac{5}{4}\pi^2] | [0.125\pi^2, 1.25\pi^2]
x^5 - x^4 + x^3 - x^2 + x - 1 | (x-1)(x^4+x^2+1)
6r^2-4r-24 | 2(3r^2-2r-12)
12 and 14 | 14, 12
12\text{ and }14 | \{12,14\}
\frac{1}{2} | ½ | 0.5 | \color{red}{\frac12} | {\color{blue} \frac{1}{2}} | \textcolor{red}{\frac12}
\frac{1}{2} | \displaystyle\frac{1}{2} | \left(\frac{1}{2}\right) | $\frac{1}{2}$ | \(\frac{1}{2}\) | \[\frac{1}{2}\]
\frac{1}{2} | 1/2. | 2^{-1} | \frac{1}{2} = 0.5 | x = \frac{2}{4} = \frac12
\sqrt{2} | \sqrt{2} \approx 1.414
5! | 120
\binom{5}{2} | 10
\log_2 8 | 3
\sin 30^\circ | 1/2
|{-3}| | 3
\lfloor 3.7 \rfloor | 3
f(x) = x^2 + 1 | x^2+1
P(A) = 1/2 | 0.5
2\cdot 3 | 6
2×3 | 6
0.\overline{3} | 1/3
\infty | ∞
-\frac{\pi}{6} | -π/6 | \frac{-\pi}{6} | \frac{\pi}{-6}
−5 | -5
42 | 42 apples
18 | 18 dollars per day | \$18
70000 | $70,000
\text{even} | even | \text{Even} | \textit{even} | "even" | \text{even.} | \textbf{even} | \operatorname{even}
\text{ellipse} | an ellipse | \text{Ellipse} | \text{an ellipse}
e^{2x} | (e^x)^2
\sqrt{5+2\sqrt{6}} | \sqrt{2}+\sqrt{3}
2^{98} | 4^{49}
AB = 5 | 5
\angle ABC = 30^\circ | 30
5 | \boxed{5} | 5\text{ hours} | \text{5 hours}
\text{Monday} | Monday | monday | Monday.
-1 | (-1)
2k+2 | 2(k+1) | 2\left(k+1\right) | 2 + 2k
p - q | -q + p | p + (-q) | -(q-p)
\sqrt[3]{8} | 2
(1,2),(3,4) | (3,4), (1,2)
8n^2 + 4n + 1 | 8n^2+4n+1 | 1+4n+8n^2 | 8n²+4n+1
3 \pm 2 \sqrt{2} | 3 \pm \sqrt{8} | 3 + 2\sqrt{2} \text{ or } 3 - 2\sqrt{2}
x \ne 2 | (-\infty,2)\cup(2,\infty)
k \ge 5 | [5,\infty)
30^\circ | \angle ABC = 30° | 30\,^{\circ} | 30{}^\circ | 30 ^ \circ | 030^\circ
\frac{\sqrt{3}}{3} | \frac{1}{\sqrt3} | \frac{\sqrt 3}3 | \sqrt{\frac13} | \sqrt{3}/3 | 3^{-1/2}
-\frac{35}{9} | \frac{-35}{9} | -35/9 | -3\frac{8}{9} | - \dfrac{35}{9} | -\left(\frac{35}{9}\right) | {-}\frac{35}{9}
-\frac{35}{9} | \frac{35}{-9}
2000 | 2 \times 10^3 | 2e3 | 2,000.0 | 2\cdot 1000 | \mathbf{2000} | \text{2000} | \text{2,000} | 2000\%
2000 | \underline{2000} | N = 2000 | \textbf{2000} | {2000} | \boldsymbol{2000} | \mathbf{2,000} | \large{2000}
2000 | 2000\text{ people} | 2000 people | \text{2000 people} | \mathrm{2000} | \quad 2000 | \hspace{1em}2000
2000 | {\rm 2000} | \bf 2000 | 2000\ \text{ways} | \phantom{x}2000 | 2000 \,. | a = 2000 | n = 2{,}000
2000 | \text{Total} = 2000
-2+7i | -2 + i \cdot 7 | -2+i7
(-1,6) | -1 < x < 6
3, 5, 7 | 7,5,3 | \{3, 5, 7\} | 3, 5, \text{ and } 7 | 3, 5, and 7 | x = 3, 5, 7 | x \in \{3,5,7\} | 3 ; 5 ; 7
3, 5, 7 | 3,\,5,\,7 | $3$, $5$, $7$ | 3,5\text{ and }7
15x - 80 | 5(3x-16) | 15 \cdot x - 80
x^3+3x-6 | f(x) = x^3+3x-6 | p(x)=x^3+3x-6 | x(x^2+3)-6 | x^3 + 3 \cdot x - 6
-13x+3 | 3-13x
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} | -\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} | \begin{bmatrix}-1&0\\0&-1\end{bmatrix}
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} | \left[ \begin{array}{cc} -1 & 0 \\ 0 & -1 \end{array} \right]
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} | \left[\begin{matrix} -1 & 0 \\ 0 & -1 \end{matrix}\right]
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} | M = \begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} | \mathbf{M} = \begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}
\begin{pmatrix} 16/49 \\ 48/49 \end{pmatrix} | \begin{pmatrix}\frac{16}{49}\\\frac{48}{49}\end{pmatrix}
\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix} | \begin{pmatrix} 0.2 \\ -3.6 \end{pmatrix}
\text{Navin} | \mbox{Navin} | Navin. | \text{navin}
4210_{5} | 4210_5 | 4210_{five} | 4210_{\mathrm{five}} | 4210_{\text{five}} | (4210)_5 | 4210 \text{ base 5}
4210_{5} | 4210_{(5)} | 4{,}210_5 | 4210\,_5
18+2\pi | 2\pi+18 | 2(9+\pi) | 18 + 2 \cdot \pi | 18+2π
1+2\sqrt{3} | 2\sqrt3+1 | 1+\sqrt{12}
(1,-16,-4,43) | (a,b,c,d) = (1,-16,-4,43) | \left(1,\ -16,\ -4,\ 43\right) | (1, -16, -4, 43)
(8,-2) | (x,y)=(8,-2) | P = (8,-2) | (8.0,-2.0) | \langle 8,-2 \rangle
\frac{1}{2^{98}} | 2^{-98} | 1/2^{98} | 0.5^{98}
33 | 33\%
0.15 | 15\%
\frac{17}{50} | 34\%
\frac14 | 25 \%
144 | 12^2
288 \pi | 288\cdot\pi | 288 \pi \text{ cubic units} | V = 288\pi | 288\pi cm^3
7\pi | 7 pi
\sqrt{53} | \sqrt{53} \text{ units} | 53^{\frac{1}{2}}
\frac{2}{1005} | \frac{2}{1{,}005}
\frac{3}{5} | \frac{3}{5}\text{ of the cake}
\frac{11}{2} | 5\frac{1}{2} | 5.50 | \frac{11}{2}\,. | $$\frac{11}{2}$$ | \frac {11}{2} | \frac{11}2 | {11 \over 2}
\frac{11}{2} | (11)/(2) | 11⁄2 | \left.\frac{11}{2}\right. | \cfrac{11}{2} | \frac{\text{11}}{\text{2}} | \tfrac{11}{2}
7i | i \cdot 7 | 7\mathrm{i} | 7 \cdot \mathrm{i}
(2,4) | \left(2, 4\right) | (2;4) | ( 2 , 4 ) | $(2,4)$.
x^2+1 | 1 + x^{2} | x²+1 | x*x+1 | x**2+1
[-2,7] | x\in\left[-2,7\right] | -2 \leq x \leq 7 | 7 \ge x \ge -2 | -2≤x≤7
(5,\infty) | x \gt 5 | 5 \lt x | x>5 | (5, \infty )
\text{yes} | Yes
\text{no solution} | No solution
\text{(A), (B)} | A, B
\text{A and C} | A, C | C and A
1000000 | 1{,}000{,}000 | 10^6 | 1 \times 10^{6} | 1\,000\,000 | 1e6
-7 | {-7} | -7.0 | - 7 | (-7) | −7
0 | -0 | 0.0 | \frac{0}{5}
\sqrt{2}/2 | \frac{1}{\sqrt{2}} | \sin 45^\circ | \cos\frac{\pi}{4}
2^{10} | 1024
\log_{10} 100 | 2
\ln e | 1
e^{i\pi} | -1
|x| | \sqrt{x^2}
\lfloor \pi \rfloor | 3
10! | 3628800
\frac{10!}{3!7!} | 120
\binom{10}{3} | 120
\dbinom{10}{3} | 120
{10 \choose 3} | 120
\sin^2 x + \cos^2 x | 1
2\sin x\cos x | \sin 2x | \sin(2x)
a^2-b^2 | (a-b)(a+b)
\frac{1}{x-1} - \frac{1}{x+1} | \frac{2}{x^2-1}
\frac{x^2-1}{x-1} | x+1
\theta | θ
\alpha+\beta | β + α
2\pi r | 2πr
\pi r^2 | r^2 \pi
A = \pi r^2 | \pi r^2
S_n = n^2 | n^2
a_n = 2n+1 | 2n+1
f(x)=2x | 2x
f^{-1}(x) = 2x | 2x
(x-1)^2+(y+2)^2=9 | (y+2)^2 + (x-1)^2 = 9 | x^2-2x+y^2+4y-4=0
0.1\overline{6} | 1/6
0.\overline{09} | 1/11
3:00 | 3:00
5:3 | 5 : 3
10\text{ m/s} | 10
60 \text{ mph} | 60
98.6^\circ\text{F} | 98.6
25\text{ feet} | 25 ft
\text{2 hours} | 2
3\sqrt{2}\text{ units} | 3\sqrt2
1:2 | 1:2
70 | $70 per week | 70 of them | m + n = 70 | m + n = 49 + 21 = 70 | |PQ| = 70 | [ABC] = 70 | \overline{AB} = 70
70 | f(-3) = 70 | \therefore x = 70 | The answer is 70 | \text{Answer: } 70 | US\$70 | USD 70 | 70 km/h
70 | 70 \text{ sq. units} | **70** | \mathbf{70}\text{.} | \mathtt{70} | {\Huge 70}
\$70 | \$70 per week
x + y = 5 | y = 5 - x
\frac{2+\sqrt{5}}{3} | {2 + \sqrt{5} \over 3}
(-5,5) | |x| < 5
(15,-29) | x = 15, y = -29
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \vec{v} = \begin{pmatrix} 1 \cr 2 \end{pmatrix}
\text{no} | No
\log_2 3 | \log_e 3/\log_e 2
|x-3| | \vert 3-x \vert
""")
DIFFERENT = rows(r"""
0.33 | 1/3
12 | 12 and 14
5 | \{5\} | 5 million | 5 or more | \text{at least } 5 | -5 | 5\sqrt{1+10^{-50}} | 5x^0+0.1 | 5 - 1 | 6 \text{ or } 5
5 | \pm 5 | 5, -5 | |5| + 1 | 5 = 6 | 4 = 5 | 5 \ne 5 | x = 5 = 6 | 5 \text{ squared} | 5 \text{ tenths}
5 | 5 \text{ degrees below zero} | 2x = 5 | x - y = 5
1,-2 | 1 | 1,2 | 1,-2,3 | (1,-2) | -1, 2 | 1-2 | 1.-2
(1,2) | (2,1)
(-2,1) | -2,1
(3,4] | [3,4] | (3,4) | 3 \le x < 4 | 3 < x < 4 | (3,4 | 3,4 | x > 3 or x <= 4 | x > 3 and y <= 4
52_8 | 52_9 | 52 | 42
3R^2 | 3r^2 | 3R^3
\frac{1}{2^{98}} | \frac{1}{2^{99}}
\text{east} | west
\text{(C)} | B | c | \text{(C) or (D)} | \text{(B)} | 3
6-5i | 6+5i | -6-5i
\cot x | \tan x | \cot y | \cot 2x | \cot^2 x | -\cot x | \coth x | \frac{\sin x}{\cos x}
1 \pm \sqrt{19} | 1 + \sqrt{19} | -1 \pm \sqrt{19}
x=5 | y=5 | x \ne 5 | x>5 | x^2=25 | -5
y = 2x+3 | y=2x-3 | x=2y+3
5.4 \text{ cents} | 5.4 \text{ dollars}
10080 | 1008
58,500 | 58500.5 | 58, 501
\sqrt{51} | 7.14 | 7.14142842854285
\pi | 3.14 | 3.14159265358979 | \frac{22}{7}
\pi | 3.141592653589793238462643383279502884197169399375105820974944592307816406286208998628034825342117068
90^\circ | \pi/2 | 90^2 | 9^\circ | 90 \text{ radians}
2x | 2xyz
ab | ba+1
x^2 | x^3 | 2x
\sin x | \sin 2x
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 2 \\ 1 \end{pmatrix} | \begin{pmatrix} 1 & 2 \end{pmatrix}
(-\infty, 2) \cup (3, \infty) | (-\infty, 2] \cup (3, \infty)
(0,9) \cup (9,36) | (0,36) | (0,9),(9,36) | [0,9) \cup (9,36) | (0,9) \cap (9,36) | (0,9) \cup (9,35) | (0,9)
x > 5 | x < 5 | y > 5 | x \ge 5
x=1, y=2 | 2, 1
\log 2 | \ln 2
\sqrt{x^2} | x
28\% | 2.8
5x - 7y + 11z + 4 = 0 | 5x - 7y + 11z - 4 = 0
1,000 | 1
1,234 | 1,235
2+3=6 | 6
\sqrt{10^{100}+1} | 10^{50}
\pi + 10^{-400} | \pi
100 | 1{,}00 | 1 00
864 \mbox{ inches}^2 | 864 \text{ feet}^2 | 864 \text{ inches}^3 | 846 \mbox{ inches}^2
15\mbox{ cm}^2 | 15 \text{ m}^2
\frac{1}{2} | \frac{2}{1} | \frac{1}{3}
\frac{1}{3} | 0.333333333333333 | 0.3333... | 0.33333333333333333333333333333333333333333333
(8,-2) | (8,2) | (8,-2,0) | 8 | \{8,-2\} | [8,-2] | 8,-2
3, 5, 7 | 3, 5 | 3, 5, 7, 9 | 357 | 15
4210_{5} | 4210_6 | 4210 | 42105 | 555 | 4210^5
\text{even} | \text{odd} | \text{not even} | \text{even or odd}
\sqrt{53} | 53 | \sqrt{35} | \sqrt[3]{53} | -\sqrt{53} | \pm\sqrt{53} | 7.28
7\pi | 7 | 21.99 | 22 | 7p
6r^2-4r-24 | 6r^2+4r-24 | 6R^2-4R-24 | 6x^2-4x-24 | r=6
2k | 2K | k | k^2 | 2
p - q | q - p | P - Q | p + q
y = 2x + 3 | y = 2x - 3 | y = 3x + 2 | y > 2x + 3 | y = -2x
(-\infty, 0] | (-\infty, 0) | [0, \infty) | (\infty, 0]
x \in [-2,7] | x \in (-2,7) | -2, 7
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} | \begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} | \begin{pmatrix} 0 & -1 \\ -1 & 0 \end{pmatrix} | -1
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} | \begin{vmatrix} -1 & 0 \\ 0 & -1 \end{vmatrix}
\{1\pm\sqrt{5},-2\} | \{1+\sqrt{5},-2\} | \{1\pm\sqrt{5},2\}
30^\circ | \frac{\pi}{6}
13535 | 13,53,5 | 1,3535 | 13.535
2000 | 2,00 | 2.000 | 2000 \text{ thousand} | 2000 million | < 2000 | \approx 2000 | 2000! | -2000 | 20,00 | 2000x
2000 | 2000i | 2000 \text{ or } 2001 | \text{more than } 2000 | not 2000 | 2000 - 2001 | 1999.9999999
2000 | 2000.0000000000000000001 | two thousand and one
25\% | \frac{1}{2} | 2.5 | 0.0025
1\frac{4}{5} | \frac{4}{5} | 1\cdot\frac{4}{5} | \frac{14}{5}
\frac{243}{625} | 0.389 | 0.3889
\{4\} | 4
e^2 | 7.389
i | -i | 1
\ln 2 | 0.693
(2,4) | 2,4 | [2,4] | \{2,4\} | (4,2)
7i | 7 | -7i
x^2+1 | x^2-1 | y^2+1 | X^2+1
\text{A and C} | \text{A and B} | A | AC
1000000 | 100000 | 1,000,00 | 10^7
70\sqrt{2} | 7\ 0\sqrt{2}
34 | 3\,4 | 3\ 4 | 3 4
\sqrt{2}/2 | 0.7071067811865475 | 0.70710678118654752440084436210484903928483593768847
2\pi r | 2\pi R | \pi r^2
a^2-b^2 | a^2+b^2 | A^2-B^2
|x| | x | -x
\ln x^2 | \ln x
3:2 | 2:3 | 6
f(x)=2x | f(x)=3x
(x-1)^2+(y+2)^2=9 | (x-1)^2+(y+2)^2=3 | (x+1)^2+(y+2)^2=9
25\text{ feet} | 25 \text{ inches}
60 \text{ mph} | 60 \text{ km}
98.6 | 98.6 \text{ thousand}
\text{yes} | \text{no}
x = 3 \text{ or } x=4 | x=3
x = 3 | x = 3 \text{ or } x=4
0.1\overline{6} | 0.16 | 0.1666
4 | 2+3 = 4
1/2 | 1/2x | 1/2\pi
2^{100} | 2^{100}+1
10^{50} | 10^{50}+1
|x-3| | 3-x
|x-100| | 100-x
\lfloor x \rfloor | \lfloor x + 10^{-3} \rfloor
(0,5) | \{x \in \mathbb{Z} \mid 0 < x < 5\} | \{x^2 : 0 < x < 5\}
10^{600} | \sqrt{10^{1200}+1}
\sqrt{2} | \sqrt{2+10^{-400}}
\frac{8}{3} | 4{\frac{2}{3}}
m + n = 5 | p + q = 5
70 | m + n = 49 + 20 = 70
(15,-29) | x = -29, y = 15 | y = 15, x = -29
\text{AB} | BA
(1,2),(3,4) | (1,2)\cup(3,4)
""")


# What stands behind a value (units, scales, directions), options, sets, systems: what real models and data sets write.

EQUAL_AS_WRITTEN = rows(r"""
two and one-half | 2.5
\frac{5}{6} \text{ of a cup} | \frac56
7 ans | 7
3 千克 | 3 \text{ kg}
\det \begin{pmatrix} 2 & 0 \\ 0 & 2 \end{pmatrix} | 4
750 \text{ million} | 0.75 \text{ billion}
x < 4, x \ne 0 | (-\infty,0)\cup(0,4)
\mathbb{R} \setminus [0, 1] | (-\infty, 0) \cup (1, \infty)
z=1, x=2, y=3 | (x,y,z)=(2,3,1)
5 \text{ and } \frac12 | 5.5
5 and 1/2 | \frac12, 5
3 and 1/4 cups | 3.25 cups
(x,y,z,w) = (1,-16,-4,43) | (1,-16,-4,43)
f(x) = \begin{cases} x & x>0 \\ 2 & x \le 0 \end{cases} | \begin{cases} x & x>0 \\ 2 & x \le 0 \end{cases}
(0,\infty) | \mathbb{R}^+ | \mathbb{R}_{>0}
\text{three and a half} | \frac72 | \frac{7}{2}
\text{negative one half} | -\frac12
(E)\ 12 | 12
\text{(B) } 3\sqrt{2} | B
B. 3\sqrt{2} | 3\sqrt{2}
\textbf{(D) } \frac{1}{2} | \text{(D)}
D) 7 | D
(A) 5 | \text{A}
\mathrm{(C)}\ 60^\circ | 60
C: 10 | C
Option B: 12 | B
ABD | A, B, D
A,C,D | ACD
3.5 \text{ million} | 3{,}500{,}000
3.5 million | 3500000
\$2.1 \text{ billion} | 2100000000
\text{two hundred} | 200
\text{twenty-one} | 21
twelve | 12
two and three quarters | 2.75
two thirds | \frac{2}{3}
\text{one half} | 0.5
three quarters | 3/4
\text{five and two thirds hours} | 5\frac{2}{3}
3\text{ dozen} | 36
\text{one hundred and five} | 105
a dozen | 12
3:00 \text{ PM} | 3 \text{ PM}
3:30 p.m. | 3:30 \text{ PM}
20\text{ m}^3 | 20 cubic meters
20\, \mathrm{m}^{2} | 20
5 \text{ seconds} | 5s
100\ \mathrm{km\,h^{-1}} | 100 \text{ km/h}
6 Stunden | 6 \text{ hours}
12 metros | 12
42 元 | 42
8 euros | 8
15 個 | 15
15个 | 15
30 岁 | 30
3 часа | 3
25 рублей | 25
4 jours | 4 \text{ days}
५ | 5
٣٫٥ | 3.5
１２ | 12
三十五 | 35
\sqrt{3} \approx 1.732 | \sqrt{3}
1.732 \approx \sqrt{3} | \sqrt{3}
\frac{22}{7} \approx 3.14 | \frac{22}{7}
x = \frac{1}{3} \approx 0.33 | \frac{1}{3}
2\pi (\approx 6.28) | 2\pi
2\pi \text{ (approximately 6.28)} | 2\pi
2\pi \text{ or about } 6.28 | 2\pi
\mathbb{R}\setminus\{2\} | x \ne 2
\mathbb{R} \setminus \{2\} | (-\infty,2)\cup(2,\infty)
\mathbb{R} - \{1, 3\} | (-\infty,1)\cup(1,3)\cup(3,\infty)
x \in \mathbb{R}, x \ne 2 | \mathbb{R}\setminus\{2\}
\text{all real numbers except } 2 | (-\infty,2)\cup(2,\infty)
all reals except x = 2 | x \neq 2
\text{all real } x | \mathbb{R}
x \in \mathbb{R} | \text{all real numbers}
x \neq 0, 1 | \mathbb{R} \setminus \{0,1\}
\{x \in \mathbb{R} : x \neq 3\} | x \neq 3
]-\infty, 3] | (-\infty, 3]
]3,4] | (3,4]
[0,1[ \cup ]1,2] | [0,1) \cup (1,2]
\left]0,1\right[ | (0,1)
0 \le x < 5 | [0,5[
(1,2] \cup \{5\} | \{5\} \cup (1,2]
\varnothing | \{\}
\text{no solution} | \emptyset
\text{no solutions} | \varnothing
\text{empty set} | \emptyset
\text{all positive real numbers} | (0,\infty)
y=-3, x=2 | x=2, y=-3
y=-3 \text{ and } x=2 | (x,y)=(2,-3)
b=1, a=4, c=0 | (4,1,0)
x=1,\ z=3,\ y=2 | (1,2,3)
\begin{cases} y=-3 \\ x=2 \end{cases} | (2,-3)
\left\{\begin{array}{l} x=2 \\ y=-3 \end{array}\right. | (2,-3)
(x, y) = (1, 2), (3, 4) | (1,2), (3,4)
(x,y) = (1,2) \text{ or } (x,y) = (3,4) | (1,2),(3,4)
\begin{vmatrix} 1 & 2 \\ 3 & 5 \end{vmatrix} | -1
{10 \choose 3} | \binom{10}{7}
\frac{10!}{3!7!} | \binom{10}{3}
\frac{n!}{(n-2)!} | n(n-1)
(n+1)! | (n+1) \cdot n!
\binom{n}{2} | \frac{n(n-1)}{2}
\binom{n}{k} | \frac{n!}{k!(n-k)!}
4! | 24
\sqrt[3]{-27} | -3
\sqrt[5]{-32} | -2
-\sqrt[3]{2} | \sqrt[3]{-2}
\sqrt{-4} | 2i
x \equiv 3 \pmod 7 | 3 \pmod{7}
10 \pmod 7 | 3 \pmod 7
n \equiv 3 \bmod 7 | n \equiv 3 \pmod{7}
x \equiv 1, 4 \pmod{5} | x \equiv 4, 1 \pmod 5
-1 \pmod{5} | 4 \pmod 5
1,2,3,\ldots,n | 1,2,3,\dots,n
1+2+\cdots+n | 1+2+\dots+n
1, 2, ..., n | 1,2,\ldots,n
1a3f_{16} | 1A3F_{16}
0b101 | 101_2
ff_{16} | FF_{16}
2B_{16} | 2b_{16}
3 : 4 | 3:4
3 \text{ to } 4 | 3:4
3/4 | 0.75
540 m | 540 \text{ m} | 540
12 cm | 12
5 kg | 5 \text{ kilograms}
\frac{1}{2} \text{ hour} | 0.5
1 \text{ hour and } 30 \text{ minutes} | 1 \text{ hour } 30 \text{ minutes}
2:30 \text{ pm} | 14:30
5 \text{ hundredths} | 0.05
x=3 \text{ and } x=4 | 3, 4
12\text{ students} | 12
12 \text{ ways} | 12
3 \text{ halves} | 1.5
\text{four fifths} | 0.8
7 \text{ tenths} | 0.7
12 hundred | 1200
5 lakh | 500000
\text{1.5 crore} | 15000000
\text{one thousand two hundred thirty-four} | 1234
minus seven | -7
20 \text{ percent} | 0.2
£5 | 5
5 \text{ pounds} | 5 lb
72 \text{ km per hour} | 72 km/h
72 \frac{\text{km}}{\text{h}} | 72
9.8\ \text{m s}^{-2} | 9.8 \text{ m/s}^2
5 \text{ square feet} | 5 \text{ ft}^2
5 sq ft | 5
5\ \text{cu. in.} | 5 \text{ in}^3
12 Äpfel | 12
12 Euro | 12
7 Tage | 7 \text{ days}
100 円 | 100
20 分 | 20
5 小时 | 5 \text{ hours}
10 кг | 10 \text{ kg}
3 万 | 30000
五 | 5
二十 | 20
百分之二十 | 20\%
三分之二 | \frac{2}{3}
১২ | 12
\sqrt{2}\approx1.41 | \sqrt{2}
2\sqrt{5} ≈ 4.47 | 2\sqrt5
y = 2\sqrt{5} \approx 4.47 | 2\sqrt5
\pi \approx 3.14159 | \pi
\frac{\ln 2}{\ln 3} \approx 0.63 | \log_3 2
\mathbb{R} | (-\infty, \infty)
\mathbb{R}\backslash\{0\} | x\neq0
\mathbb{R} - \{0\} | x\neq0
\mathbb R | \text{all real numbers}
x \in \mathbb{R} \setminus \{1\} | x \neq 1
x\neq 1 \text{ and } x \neq 2 | \mathbb{R}\setminus\{1,2\}
x \ne \pm 1 | \mathbb{R}\setminus\{-1,1\}
\{x \mid x \in \mathbb{R}, x \neq \pm 1\} | x \ne 1, -1
\text{all real numbers except 0 and 1} | \mathbb{R} \setminus \{0, 1\}
\text{All real numbers} | \mathbb{R}
\text{the set of all real numbers} | \mathbb{R}
x < 2 \text{ or } x > 2 | x \ne 2
x > 0 | \mathbb{R}^+
[1, 3] \cup [2, 5] | [1,5]
1 < x < 3 \text{ or } x > 5 | (1,3)\cup(5,\infty)
-2 < x \text{ and } x < 2 | |x| < 2
|x - 1| \le 3 | [-2, 4]
(a, b] | ]a, b]
[a, b[ | [a, b)
x \in (2, 3) | 2 < x < 3
x \in \{2, 3\} | 2, 3
c=1, b=2, a=3 | a=3, b=2, c=1 | (a,b,c)=(3,2,1)
(b,a) = (2,3) | (a,b) = (3,2)
(p,q) = (2,3) | p=2, q=3
m=2; n=3 | (2,3)
\begin{cases} x = 1, \\ y = 2 \end{cases} | x = 1,\ y = 2
\left\{ \begin{aligned} x &= 1 \\ y &= 2 \end{aligned} \right. | (1,2)
x_1 = 1, x_2 = 2 | 1, 2
\alpha = 1, \beta = 2 | (1,2)
\begin{cases} x & x>0 \\ -x & x \le 0 \end{cases} | f(x) = \begin{cases} x & x>0 \\ -x & x \le 0 \end{cases}
\begin{vmatrix} a & b \\ c & d \end{vmatrix} | ad - bc
\dbinom{6}{2} | 15
\binom{n}{0} | 1
\frac{(2n)!}{n!n!} | \binom{2n}{n}
n \cdot (n-1)! | n!
\sqrt[3]{-54} | -3\sqrt[3]{2}
x \equiv 5 \pmod{8} | 5 \pmod 8
x \equiv 13 \pmod{8} | x \equiv 5 \pmod 8
x \equiv -3 \pmod{8} | x \equiv 5 \pmod 8
x \equiv 5 \ (\text{mod } 8) | x \equiv 5 \pmod 8
x = 8k + 5 | x=5+8k
0,1,1,2,\ldots | 0,1,1,2,\dots
2, 4, \ldots, 2n | 2,4,\cdots,2n
0xFF | FF_{16}
\text{FF}_{16} | FF_{16}
\texttt{FF}_{16} | ff_{16}
101_{\text{two}} | 101_2
3:30\text{ P.M.} | 3:30 pm
\text{noon} | noon
540 km | 540
540 s | 540 \text{ seconds}
\text{C) } 7 | C
\textbf{(C) }7 | 7
\text{(A) Yes} | A | \text{Yes}
\text{(C) both A and B} | C
f^{-1}(x) = x + 1 | x+1
\{(1,2),(3,4)\} | (1,2),(3,4)
0.1\overline{6} | \frac16
0.\overline{142857} | 1/7
4\frac{1}{2} \text{ hours} | 4.5 \text{ hours}
4\frac{1}{2} | \text{four and one half}
3 \times 10^5 \text{ m} | 300000
3 \text{ out of } 5 | \frac{3}{5}
""")

DIFFERENT_AS_WRITTEN = rows(r"""
12 \text{ in debt} | 12
5 \text{ overdrawn} | 5
3 千克 | 3 克
\frac{5}{6} \text{ of a cup} | \frac{5}{6} \text{ of a gallon}
two and one-third | 2.5
\det \begin{pmatrix} 2 & 0 \\ 0 & 2 \end{pmatrix} | \begin{pmatrix} 2 & 0 \\ 0 & 2 \end{pmatrix}
x=2 \lor y=3 | (2,3)
x < 4, x \ne 0 | (-\infty, 4)
3 \text{ a day} | 3 \text{ a week}
5 and 3/2 | 6.5
5 and 1 2 | 5.5
5 \text{ and } \frac12 | \frac52
(w,x,y,z) = (1,2,3,4) | (4,1,2,3)
f(x) = \begin{cases} x & x>0 \\ 2 & x \le 0 \end{cases} | \begin{cases} x & x>0 \\ 3 & x \le 0 \end{cases}
[0,\infty) | \mathbb{R}^+
3.7 \approx 4 | 4
(E) 12 | D | 13
\textbf{(A)}\ 3 | \textbf{(B)}\ 3 | \textbf{(A)}\ 4
A, B | A
(A) or (B) | A | (A)
A and D | AC
3 \text{ dozen} | 3
\text{two thirds} | \frac{3}{2}
\text{five thirds} | 5
2.5 \text{ million} | 2.5 | 2.5 \text{ billion}
\text{twenty-one} | 20
\text{third} | 3
3\text{rd} | 3\text{ thirds}
12 \text{ pounds} | 12 \text{ ounces}
3 \text{ PM} | 3 \text{ AM}
3:30 | 3.3
12 \text{ AM} | 12 \text{ PM}
10:15 \text{ AM} | 10:15 \text{ PM}
5 \text{ hours ago} | 5 \text{ hours later}
40^\circ \text{N} | 40^\circ \text{S}
3 \text{ boys} | 3 \text{ girls}
\$5 \text{ profit} | \$5 \text{ loss}
5 \text{ loss} | 5
10\% \text{ gain} | 10\% \text{ loss}
5 \text{ less than } x | 5
7 \text{ above} | 7 \text{ below}
4 \text{ times as many} | 4 \text{ fewer}
3 \text{ euros} | 3 \text{ dollars}
100 \text{ cents} | 100 \text{ dollars}
3 \text{ percentage points} | 4 \text{ percentage points}
5\text{ mm} | 5\text{ cm}
5\ \mathrm{kg} | 5\ \mathrm{g}
20\text{ km/h} | 20\text{ m/s}
20\text{ m}^3 | 20\text{ m}^2
三十五 | 53
12 米 | 12 \text{ cm}
1.732 | \sqrt{3}
\sqrt{3} \approx 1.732 | 1.732
\sqrt{2} \approx 1.732 | \sqrt{3}
\approx 7 | 7
\frac{1}{3}\approx 0.33 | 0.33
\mathbb{R}\setminus\{2\} | \mathbb{R} | \mathbb{R}\setminus\{3\}
x \ne 2 | x = 2 | 2
[2,5[ | [2,5]
]2,5] | [2,5) | [2,5]
\text{all real numbers} | \text{all integers} | \text{all positive real numbers}
\text{all positive real numbers} | \mathbb{R}
\{0\} | \emptyset
0 | \emptyset
\text{all real numbers except } 2 | \text{all real numbers except } -2
y=2, x=-3 | (2,-3)
x=15 \text{ or } y=-29 | (15,-29) | x=15, y=-29
x=2, y=-3 | \{2,-3\} | x=-3, y=2
x=2 | x=2, y=3
(1,2),(3,4) | (1,4),(3,2)
\begin{vmatrix} 1 & 2 \\ 3 & 5 \end{vmatrix} | 1
\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix} | -1
\binom{10}{3} | \binom{10}{4}
(n+1)! | n!+1
\binom{n}{2} | \frac{n(n+1)}{2}
{}_{10}P_3 | 120
\sqrt[3]{-27} | 3
\sqrt{-4} | -2
3 \pmod 7 | 3 \pmod 5 | 4 \pmod 7 | 3
1,2,\ldots,n | 1,2,\ldots,m
1,2,\dots,n | 1,2,n
1A3F_{16} | 1A3E_{16}
11_2 | 3
0x10 | 10
3:4 | 4:3
540 m | 540 \text{ km} | 540 n
1 \text{ hour } 30 \text{ minutes} | 1 \text{ hour } 20 \text{ minutes}
2 \text{ hours } 5 \text{ minutes} | 2
5 \text{ ft } 3 \text{ in} | 5 \text{ ft } 4 \text{ in}
\text{June } 5 | \text{July } 5 | 5
5 \text{ fifths} | 5
5 \text{ hundredths} | 5
half of 6 | 6
-3 \text{ or } 3 | 3
\text{at most } 5 | \text{at least } 5
\text{between 3 and 5} | 3, 5
3 \text{ feet deep} | 3 \text{ feet high}
90^\circ \text{ clockwise} | 90^\circ \text{ counterclockwise}
2 \text{ heads} | 2 \text{ tails}
5 \text{ right} | 5 \text{ left}
6 \text{ even numbers} | 6 \text{ odd numbers}
3\text{ kHz} | 3\text{ Hz}
5 \text{ megabytes} | 5 \text{ gigabytes}
4 \text{ nm} | 4 \text{ mm}
4 \mu\text{m} | 4 \text{ m}
3 \text{ (mod } 7) | 3
5^\circ\text{C} | 5^\circ\text{F}
-5 | 5 \text{ below zero}
5 \text{ thousandths} | 5 \text{ thousand}
2 \text{ score} | 2
7 \text{ tens} | 7
3 \text{ halves} | 3
\text{four fifths} | 4.5
\text{one thousand two hundred} | 1000
\text{one or two} | 1
20 \text{ percent} | 20 \text{ permille}
20\% \text{ off} | 20\% \text{ more}
20\% \text{ above cost} | 20\% \text{ below cost}
3 \text{ up} | 3 \text{ down}
3 \text{ steps forward} | 3 \text{ steps backward}
100 \text{ BC} | 100 \text{ AD} | 100
5 \text{ wins} | 5 \text{ losses}
2 \text{ hot dogs} | 2 \text{ burgers}
6 \text{ minutes} | 6 \text{ seconds}
6 \text{ min} | 6 \text{ sec}
6 \text{ ft} | 6 \text{ in}
6 ft | 6 in
3 \text{ quarts} | 3 \text{ pints}
3 \text{ tablespoons} | 3 \text{ teaspoons}
3 \text{ tons} | 3 \text{ pounds}
3\ \Omega | 3\ \mathrm{V}
3\ \mathrm{MPa} | 3\ \mathrm{kPa}
3\ \mathrm{mA} | 3\ \mathrm{A}
3\ \mathrm{kW} | 3\ \mathrm{W}
3\ \mathrm{eV} | 3\ \mathrm{J}
3 \text{ km}^2 | 3 \text{ km}
£5 | €5
\$5 | €5
¥5 | \$5
5 \text{ pounds} | 5 \text{ kilograms}
72 \frac{\text{km}}{\text{h}} | 72 \frac{\text{km}}{\text{s}}
5 \text{ square feet} | 5 \text{ cubic feet} | 5 \text{ feet}
5 小时 | 5 \text{ minutes}
3 万 | 3
10 \approx 9.9 | 9.9
\frac{22}{7} \approx \pi | \pi
x \ne 1, 2 | x \ne 1
x \ne \pm 1 | x \ne 1
\mathbb{R} \setminus \mathbb{Z} | \mathbb{R}
\mathbb{R} \setminus \{1,2\} | \mathbb{R} \setminus [1,2]
\mathbb{Z} | \mathbb{R}
\mathbb{Q} | \mathbb{R}
\mathbb{N} | \mathbb{Z}
1 < x < 3 \text{ and } x > 5 | (1,3)\cup(5,\infty)
|x - 1| \le 3 | [-3, 3]
|x - 1| < 3 | [-2, 4]
]a, b[ | [a, b]
x \in \{2, 3\} | (2, 3)
\begin{cases} x = 1 \\ y = 2 \end{cases} | (2,1)
x = 1 \text{ or } y = 2 | (1, 2)
x = 1, x = 2 | (1, 2)
x = 1, y = 2 | 1
f(x) = \begin{cases} x & x>0 \\ -x & x \le 0 \end{cases} | x
\begin{vmatrix} a & b \\ c & d \end{vmatrix} | ab - cd
(2n)! | 2 \cdot n!
n!! | (n!)!
3!! | 720
\sqrt[4]{16} | -2
x \equiv 5 \pmod 8 | 5 | x \equiv 5 \pmod{16}
2,4,\dots | 2,4
2,4,\dots,2n | 2,4,\dots,4n
101_2 | 101
21_3 | 12_3
3:30 \text{ PM} | 3:30 \text{ AM} | 3:31 \text{ PM} | 3.5
15:30 | 3:30
12 \text{ noon} | 12 \text{ midnight}
540 s | 540 \text{ m}
5a | 5
5x | 5
5n | 5
\text{C) } 7 | \text{C) } 8
\text{(A) Yes} | \text{No}
\text{neither (A) nor (B)} | A
\text{not (A)} | A
\text{A or B} | A
\text{AB} | A
0.\overline{12} | 0.12
4\frac{1}{2} | \text{four halves}
\text{five and a half} | 5
\text{half of a dozen} | 12
3 \text{ times } 10^5 | 3
5 \text{ choose } 2 | 5
3 \text{ out of } 5 | 3
1 \text{ in } 5 | 1
5 \text{ to the power of } 2 | 5
5 \text{ squared} | 25
\text{the square root of 5} | 5
6 \text{ divided by } 2 | 6
\text{undefined} | 0
1 | \text{true}
\text{no} | \text{none}
\text{increasing} | \text{decreasing}
\text{not odd} | \text{odd}
""")

# Money (a lone dollar sign, too), dates (no difference and no quotient), binomials, odd roots, lists of options, families:
# each kind with what looks like it and is something else.

EQUAL_BY_KIND = rows(r"""
$5 | 5 dollars | 5
$x=5 | 5
2024-05-01 | 2024-05-01
1/2/2020 | 1/2/2020
C(10,3) | 120
{}_{10}C_3 | 120
{}^{10}C_{3} | \binom{10}{3}
^{10}C_3 | 120
^nC_2 | \frac{n(n-1)}{2}
C_{10}^3 | 120
C^2_7 | 21
{}^7\mathrm{C}_2 | 21
2 \cdot C(4,2) | 12
\frac{C(4,2)}{C(6,2)} | \frac25
7 \text{ choose } 2 | 21
P(5,2) | 20
{}_5P_2 | 20
\sqrt[3]{-x} | -\sqrt[3]{x}
\sqrt[3]{1-x} | -\sqrt[3]{x-1}
\sqrt[5]{-x} | -\sqrt[5]{x}
(-8)^{1/3} | -2
(-27)^{\frac{2}{3}} | 9
\sqrt[3]{-\frac{1}{8}} | -\frac12
\mathbf{R}\setminus\{0\} | x \ne 0
\mathbf R | \mathbb{R}
\text{all real numbers greater than 2} | (2,\infty)
\text{all real numbers less than or equal to 2} | (-\infty,2]
\text{all real numbers } x \text{ such that } x > 2 | (2,\infty)
\text{no real solutions} | \emptyset
one thousand, two hundred and thirty-four | 1234
\text{two million, three hundred thousand} | 2300000
half a million | 500000
a quarter of a million | 250000
one, two | 1, 2
\text{June } 5 | June 5
\text{June 5th} | June 5
\text{Row } 3 | row 3
A、C | A, C | AC
\text{A}, \text{C} | AC
(A), (B), (D) | ABD
A B D | ABD
5 m·s⁻¹ | 5 \text{ m/s}
12 cc | 12
(0,2) \cup [2,3) | (0,3)
\{1\} \cup \{2\} | \{1,2\}
(2,3) \cup (0,1) | (0,1) \cup (2,3)
Rs. 500 | ₹500
-5 (not 5) | -5
12 cm, not 12 m | 12 \text{ cm}
B (not C) | B
5 (five) | 5
5 (5) | 5
\frac34 (0.75) | 0.75
0.6\text{ (i.e. }60\%) | 0.6
\overrightarrow{AB} = (1,2) | (1,2)
\pi/2+k\pi, k\in\mathbb{Z} | x = \frac{\pi}{2} + n\pi \ (n \in \mathbb{Z})
x = 2k\pi \text{ for } k \in \mathbb{Z} | 2\pi k, k\in\mathbb{Z}
\begin{cases} x = 1 \\ y = 2 \end{cases} \text{ or } \begin{cases} x = 3 \\ y = 4 \end{cases} | (1,2),(3,4)
\left\{\begin{matrix} x=1 \\ y=2 \end{matrix}\right. | (1,2)
\begin{cases} x & \text{if } x > 0 \\ 2 & \text{if } x \le 0 \end{cases} | \begin{cases} x, & x > 0 \\ 2, & x \le 0 \end{cases}
""")

DIFFERENT_BY_KIND = rows(r"""
5€ | 5$
$500 | ₹500
$5.50 | €5.50
2024-05-01 | 2018
1/2/2020 | 1/4040
C(10,3) | P(10,3) | 30
C_7 | 7
C_7^2 | 49
x^2C_3 | x \cdot \binom{2}{3}
{}_7C_2 | 14
(0,1) \cup (2,3) | (0,1) \cup [2,3)
(0,2) \cup [2,3) | (0,2) \cup (2,3)
(3,1) \cup (5,6) | (1,3) \cup (5,6)
\sqrt[3]{-x} | \sqrt[3]{x}
\sqrt[3]{1-x} | \sqrt[3]{x-1}
\sqrt{-x} | -\sqrt{x}
(-27)^{2/3} | -9
(-4)^{1/2} | -2
\mathbf{R} | R
\mathbf{R}\setminus\{0\} | x \ne 1
\text{all real numbers greater than 2} | \text{all real numbers less than 2} | [2,\infty)
one thousand, two | 1, 2
two thousand, one thousand | 3000
twenty, one | 21
five hundred, two | 502
half a million | \frac12
5 \text{ grand} | 5
['Day' 3] | Day 3
\text{June } 5 | June 6 | May 5
\text{Day } 7 | 7
\text{dollars } 7 | \text{Day } 7
A、C | A、B | A
A or C | A, C
\text{Alice or Bob} | \text{Alice and Bob}
-5 (not 5) | 5
5 (not 6) | 6
not 5 | 5
5 (five) | 25
5 (5) | 25
3 (2) | 6
2k\pi, k\in\mathbb{Z} | k\pi, k\in\mathbb{Z}
k, k\in\mathbb{Z} | k
x > 0, x \in \mathbb{Z} | x > 0
\begin{cases} 2 & x=1\\ 3 & x=4 \end{cases} | \begin{cases} 2x=1\\ 3x=4 \end{cases}
\begin{aligned} &2\\ &x=3 \end{aligned} | 2x=3
\begin{cases} 2 x \\ = 3 \end{cases} | x = 3
\begin{cases} 2 \\ 3 \end{cases} | 6
\begin{pmatrix} 1 , 2 \end{pmatrix} | \begin{pmatrix} 1 & 2 \end{pmatrix}
\begin{pmatrix} 1 = 2 \end{pmatrix} | \begin{pmatrix} 1 & 2 \end{pmatrix}
2 \; 3 | 23
2  3 | 23
3 \times 4 \text{ matrix} | 12
5 \text{ stories underground} | 5
""")

AROUND_THE_BOX = [  # completion, gold, right?  What stands around a box belongs to the answer or denies it
    (r"-\boxed{5}", "5", False),
    (r"-\boxed{5}", "-5", True),
    (r"The answer is $-\boxed{5}$.", "5", False),
    (r"so −\boxed{5}", "-5", True),
    (r"=-$\boxed{4}$", "4", False),
    (r"-\left(\boxed{4}\right)", "-4", True),
    (r"(-1)\boxed{4}", "4", False),
    (r"$x = \pm \boxed{5}$", "5", False),
    (r"$x = \pm \boxed{5}$", r"\pm 5", True),
    (r"$x \ne \boxed{3}$", "3", False),
    (r"$x \ne \boxed{3}$", r"x \ne 3", True),
    (r"$x \not= \boxed{3}$", "3", False),
    (r"x != \boxed{3}", "3", False),
    (r"x ≥ \boxed{3}", "3", False),
    (r"$x > \boxed{3}$", r"(3,\infty)", True),
    (r"$x \notin \boxed{\{3\}}$", r"\{3\}", False),
    (r"$x \in \boxed{(0,1)}$", "(0,1)", True),
    (r"$\neg \boxed{p}$", "p", False),
    (r"The answer is not \boxed{3}.", "3", False),
    (r"The answer isn't \boxed{3}", "3", False),
    (r"is **not** $\boxed{3}$", "3", False),
    (r"\text{not }\boxed{3}", "3", False),
    (r"It cannot be \boxed{3}", "3", False),
    (r"any number other than \boxed{3}", "3", False),
    (r"答案不是\boxed{3}", "3", False),
    (r"答案是 $\boxed{3}$。", "3", True),
    (r"It is not 3 but \boxed{4}", "4", True),
    (r"greater than \boxed{3}", "3", False),
    (r"twice \boxed{3}", "3", False),
    (r"the square root of \boxed{9}", "9", False),
    (r"$2 \cdot \boxed{3}$", "3", False),
    (r"$2 \cdot \boxed{3}$", "6", True),
    (r"$1\boxed{2}$", "2", False),
    (r"$\sqrt{\boxed{3}}$", r"\sqrt 3", True),
    (r"$\frac{1}{\boxed{3}}$", "3", False),
    (r"$\frac{\boxed{3}}{\boxed{4}}$", "0.75", True),
    (r"$\boxed{3}\sqrt{\boxed{2}}$", r"\sqrt{18}", True),
    (r"$\boxed{3}^2$", "3", False),
    (r"$\boxed{3}!$", "3", False),
    (r"The answer is \boxed{3}!", "3", True),
    (r"There are $4! = \boxed{24}$ ways", "24", True),
    (r"$\boxed{x^2} + C$", "x^2 + C", True),
    (r"$|\boxed{-2}|$", "-2", False),
    (r"$f(\boxed{2})$", "2", False),
    (r"\boxed{3} + \boxed{4}", "4", False),
    (r"\boxed{3} + \boxed{4}", "7", True),
    (r"\boxed{3} + \boxed{4}", "3,4", False),
    (r"\boxed{3} plus \boxed{4}", "4", False),
    (r"\boxed{2}:\boxed{3}", "3", False),
    (r"\boxed{2}:\boxed{3}", "2:3", True),
    (r"$\boxed{2}$ to $\boxed{3}$", "3", False),
    (r"\boxed{2}-\boxed{3}", "3", False),
    (r"\boxed{2} < x < \boxed{3}", "(2,3)", True),
    (r"$(\boxed{3}, \boxed{4})$", "(3,4)", True),
    (r"$(\boxed{3}, \boxed{4})$", "3,4", False),
    (r"$\left(\boxed{3}, 4\right)$", "3", False),
    (r"\boxed{(0,1)} \cup \boxed{(2,3)}", r"(0,1)\cup(2,3)", True),
    (r"\boxed{(0,1)} \cup \boxed{(2,3)}", "(2,3)", False),
    (r"\boxed{2\sqrt{2}} \approx \boxed{2.83}", r"2\sqrt 2", True),
    (r"\boxed{3}\boxed{4}", "4", False),
    ("\\boxed{3}\n\\boxed{4}", "4", False),
    ("- \\boxed{3}\n- \\boxed{4}", "4", False),
    ("- \\boxed{3}\n- \\boxed{4}", "3,4", True),
    (r"(a) \boxed{3} (b) \boxed{4}", "4", False),
    (r"i) \boxed{3} ii) \boxed{4}", "4", False),
    ("Step 1: \\boxed{3}\nStep 2: \\boxed{4}", "4", True),
    ("The result:\n\n- \\boxed{3}\n", "3", True),
    (r"1) \boxed{4}", "4", True),
    (r"\boxed{3} cm and \boxed{4} cm", "4", False),
    (r"\boxed{3} cm and \boxed{4} cm", "3, 4", True),
    (r"\boxed{3} (or \boxed{4})", "4", False),
    (r"\boxed{3} и \boxed{4}", "4", False),
    (r"\boxed{5} (not \boxed{6})", "5", True),
    (r"\boxed{5}, not \boxed{6}", "6", False),
    (r"\boxed{5} rather than \boxed{6}", "6", False),
    (r"3 or \boxed{4}", "4", False),
    (r"x = 3 and x = \boxed{4}", "4", False),
    (r"x = 3 and x = \boxed{4}", "3, 4", True),
    (r"$360 + 2x = 600$, or $x = \boxed{120}$", "120", True),
    (r"which is $0.75$ or $\boxed{\frac34}$", "0.75", True),
    (r"\boxed{3} or 4", "3", False),
    (r"\boxed{3}, 4", "3", False),
    (r"\boxed{A} or B", "A", False),
    (r"\boxed{3} or more", "3", False),
    (r"\boxed{3} million", "3", False),
    (r"\boxed{3} million", "3000000", True),
    (r"$\boxed{3} \times 10^5$", "300000", True),
    (r"$\boxed{12}$ cm", "12", True),
    (r"$\boxed{12}$ cm", "12 m", False),
    (r"\boxed{60} miles per hour", "60 mph", True),
    (r"$\boxed{60}^\circ$", "60", True),
    (r"$\$\boxed{25}$", "25", True),
    (r"She has \boxed{5} more apples.", "5", True),
    (r"$\equiv \boxed{3} \pmod 7$", "3", True),
    (r"$\boxed{\text{(B)}} 3(1 + r)^x = 7$", "B", True),
    (r"\boxed{1/6}, i.e. about 17%", "1/6", True),
    (r"\boxed{4} is wrong.", "4", False),
    (r"\boxed{4} is not the answer", "4", False),
    (r"\boxed{4}. Wait, that is wrong.", "4", False),
    (r"\boxed{4} (wrong)", "4", False),
    (r"\boxed{4}. This is not trivial.", "4", True),
    ("<answer>3</answer> or <answer>4</answer>", "4", False),
    ("<answer>4</answer>\n<answer>4</answer>", "4", True),
    ("Answer: -5 (not 5)", "-5", True),
    ("Answer: 12, not 13.", "13", False),
    ("Answer = 5", "5", True),
    ("his answer = 24*2 = 48 is less.\n#### 66", "66", True),
    (r"$2 : \boxed{3}$", "3", False),
    ("so:\n| x | \\boxed{3} |", "3", True),
    (r"= | \boxed{-2} |", "-2", False),
    ("### Final Answer\n\n5", "5", True),
    (r"9777151521\boxed{21}", "21", True),  # digits of the working, as the toy world writes it
    (r"9777151521\boxed{21}", "977715152121", False),
    (r"$9777151521\boxed{21}$", "21", False),
]


GRADES = [  # completion, gold, right?
    (r"so \boxed{3} and \boxed{7}", "7", False),
    (r"so \boxed{3} and \boxed{7}", "3,7", True),
    (r"$\boxed{3}$ and $\boxed{7}$.", "3, 7", True),
    (r"\boxed{3} or \boxed{7}", "7", False),
    (r"\boxed{3} or $\boxed{7}$", "7, 3", True),
    (r"\boxed{3}, \boxed{5} and \boxed{7}", "7", False),
    (r"\boxed{3}, \boxed{5}, and \boxed{7}", "3,5,7", True),
    (r"\boxed{3},\quad \boxed{7}", "3,7", True),
    (r"x = \boxed{3} \text{ and } y = \boxed{7}", "(3,7)", True),
    (r"x = \boxed{3} \text{ and } y = \boxed{7}", "(7,3)", False),
    (r"x = \boxed{3} \text{ and } y = \boxed{7}", "7", False),
    (r"The solutions are $x=\boxed{3}$ and $x=\boxed{7}$", "3,7", True),
    (r"First \boxed{3}. Then \boxed{7}", "7", True),
    (r"\boxed{3}, so \boxed{7}", "7", True),
    (r"\boxed{3} and therefore \boxed{7}", "7", True),
    (r"\boxed{A} and \boxed{C}", "A, C", True),
    (r"\boxed{A} and \boxed{C}", "C", False),
    (r"**\boxed{3}** and **\boxed{7}**", "7", False),
    (r"\boxed{3} \quad\text{and}\quad \boxed{7}", "7", False),
    (r"\boxed{3} \text{ or } \boxed{7}", "7", False),
    (r"\boxed{3} und \boxed{7}", "7", False),
    (r"\boxed{3} et \boxed{7}", "3,7", True),
    (r"\boxed{3}和\boxed{7}", "3,7", True),
    (r"\boxed{3}、\boxed{7}", "7", False),
    (r"\boxed{3} as well as \boxed{7}", "7", False),
    (r"\boxed{3} & \boxed{7}", "7", False),
    (r"\boxed{3}; \boxed{7}", "7", False),
    ("\\boxed{3}\n\nand\n\n\\boxed{7}", "7", False),
    (r"either \boxed{3} or else \boxed{7}", "7", False),
    (r"\boxed{5} or equivalently \boxed{5.0}", "5", True),
    (r"\boxed{\frac{1}{2}} or \boxed{0.5}", "0.5", True),
    (r"\boxed{5} = \boxed{5}", "5", True),
    (r"\boxed{1/2} = \boxed{0.5}", "0.5", True),
    (r"<think>\boxed{4}</think> The answer is \boxed{5}", "4", False),
    (r"<think>\boxed{4}</think> Answer: 5", "5", True),
    (r"<think>\boxed{4}</think> Answer: 5", "4", False),
    (r"<think>\boxed{4}</think> The answer is 5.", "4", False),
    (r"<think>\boxed{4}</think>", "4", True),
    (r"<think>a</think>\boxed{4}<think>\boxed{5}</think> so it is \boxed{4}", "5", False),
    (r"<thought>\boxed{4}</thought>\boxed{5}", "4", False),
    ("<reasoning>Answer: 4</reasoning>Answer: 5", "5", True),
    ("<answer>5</answer>", "5", True),
    (r"<answer> $\frac12$ </answer>", "0.5", True),
    ("<answer>\n5\n</answer>", "5", True),
    ("<answer>5 cm</answer>", "5", True),
    ("<answer>5</answer> <answer>6</answer>", "5", False),
    ("<answer>Answer: 5</answer>", "5", True),
    ("<answer>The answer is 5.</answer>", "5", True),
    ("<answer>5</answer><answer></answer>", "5", True),
    (r"\boxed{4} <answer>5</answer>", "5", True),
    ("<ANSWER>5</ANSWER>", "5", True),
    ("Answer: 5 (since 2+3=5)", "5", True),
    ("Answer: 5, because 2+3=5", "5", True),
    ("Answer: 5 — the least", "5", True),
    ("Answer: 5. This holds.", "5", True),
    ("Answer: 5 apples", "5", True),
    ("Answer: 5 not 6", "5", False),
    ("Answer: 5, wait, 6", "5", False),
    ("Answer: 5 ✅", "5", True),
    ("Answer: (3, 5)", "(3,5)", True),
    ("Answer: 5 or 6", "5", False),
    ("Answer: 5; 6", "5", False),
    ("Answer: (B) 12", "12", True),
    ("Answer: (B) because 12", "B", True),
    ("Answer: B, since it is greatest", "B", True),
    ("Answer: B. 12", "B", True),
    ("Answer: B", "B", True),
    ("Answer: x = 5, where x is the number", "5", True),
    ("Answer: 5 units, where x", "5", True),
    ("Answer: 5, 6, and 7", "5,6,7", True),
    ("Answer: yes, because it is", "yes", True),
    ("Answer: $x=3$ or $x=4$, which are both valid", "3,4", True),
    ("Answer: 3.14. Rounded.", "3.14", True),
    ("Answer: 72 (i.e., 6 dozen)", "72", True),
    ("Answer: 3 hours. So", "3", True),
    ("Réponse : 42", "42", True),
    ("Respuesta: 42", "42", True),
    ("Antwort: 42", "42", True),
    ("答案：42", "42", True),
    ("答案是：42", "42", True),
    (r"**Final Answer:** $\boxed{42}$", "42", True),
    ("Final Answer: The final answer is $42$. I hope it is correct.", "42", True),
    (r"The final answer is: $\boxed{42}$", "42", True),
    ("Answer: 42\n\nI hope this helps!", "42", True),
    ("#### 42 apples", "42", True),
    ("#### 42. Done", "42", True),
    ("Answer: 5 < x < 6", "(5,6)", True),
    ("Answer: No, 5", "5", False),
    ("Answer: none of these", "5", False),
    ("Answer: -5 (not 5)", "5", False),
]


@pytest.mark.parametrize(("a", "b"), EQUAL + EQUAL_AS_WRITTEN + EQUAL_BY_KIND)
def test_equal(a, b):
    assert is_equal(a, b) and is_equal(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT + DIFFERENT_AS_WRITTEN + DIFFERENT_BY_KIND)
def test_different(a, b):
    assert not is_equal(a, b) and not is_equal(b, a)


@pytest.mark.parametrize(("completion", "gold", "right"), GRADES + AROUND_THE_BOX)
def test_the_answer_is_where_it_was_given(completion, gold, right):
    assert grade(completion, gold) == right


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
         r"3 \pmod 7", "x + y < 2", r"5 and 1/2", r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"2k, k \in \mathbb{Z}", "x + 1 = y"]


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
