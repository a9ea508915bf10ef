"""What an answer can be, and when two answers are the same.

A value is a sympy expression or matrix, or one of the few containers below.  `same` is exact where it can be
(rational numbers, polynomials, rational functions) and otherwise compares very many digits; in doubt it says no.
latex.py makes the values; both run in the worker process of answers.py, which ends whatever takes too long.
"""

import random
from typing import Any, NamedTuple

import sympy

from judge.words import DESCRIBES, MONEY, UNITS

DIGITS = 2500  # significant digits in which two irrational numbers must agree: more than latex.MAX_BITS can hold
POINTS, POINT_DIGITS = 9, 250  # for expressions that are not rational functions
SHARES = {"%": 100, "permille": 1000}  # of how many
TINY = sympy.Float(10) ** -100  # what may be a hidden 0: sympy must prove it


class Text(NamedTuple):
    """What is compared word by word: (even), (no, solution); 52_8 is (52, base, 8)."""

    words: tuple[str, ...]


class Tuple(NamedTuple):
    """(3, 4): the order counts."""

    items: tuple


class Bag(NamedTuple):
    """A set or a list of roots: the order does not count, how often a value stands there does."""

    items: tuple


class Range(NamedTuple):
    """Intervals, and points beside them, which are never empty; an inequality also names its letter."""

    set: sympy.Set
    letter: str | None = None


class Equation(NamedTuple):
    """left = right.  Where the left side only names the answer (x = 5, f(x) = 2x), it may be dropped."""

    left: Any
    right: Any
    named: bool


class Quantity(NamedTuple):
    """A value with its units, each with its power (m/s is meter 1, second -1), and words that may change it."""

    value: Any
    units: tuple[tuple[str, int], ...] = ()
    words: tuple[str, ...] = ()


class Ratio(NamedTuple):
    """3 : 5, as written; 7:30, too."""

    items: tuple


class Option(NamedTuple):
    """(E) 12: a letter and what stands beside it."""

    letter: str
    content: Any


def same(a: Any, b: Any) -> bool:
    """Would a careful marker take value a for value b?  Symmetric: each rule sees its own kind first.

    No rule compares one of the containers with a sympy object by ==, which would have sympy evaluate the text in it.
    """
    for kind, rule in RULES.items():
        if isinstance(a, kind):
            return rule(a, b)
        if isinstance(b, kind):
            return rule(b, a)
    return same_expression(a, b)


def same_option(a: Option, b: Any) -> bool:
    """The letter or what it stands for; two options must agree in both."""
    if isinstance(b, Option):
        return a.letter == b.letter and same(a.content, b.content)
    return same(sympy.Symbol(a.letter), b) or same(a.content, b)


def same_quantity(a: Quantity, b: Any) -> bool:
    """Units and words may be missing on one side, not differ.  25% is 25 and 1/4; 5 m may have been read as 5 * m."""
    if not isinstance(b, Quantity):
        return is_product(a, b) or same_quantity(a, Quantity(b))
    if not same_words(a, b):
        return False
    wholes = [next((SHARES[name] for name, power in quantity.units if name in SHARES), 1) for quantity in (a, b)]
    if wholes[0] == wholes[1]:
        return same(a.value, b.value)
    if same(a.value, b.value) and min(wholes) == 1:
        return True
    return isinstance(a.value, sympy.Expr) and same(a.value / wholes[0], b.value / wholes[1])


def is_product(a: Quantity, b: Any) -> bool:
    """Is b the product of a's value and its unit's letter, 5*m for 5 metres?"""
    letters = [letter for letter in getattr(b, "free_symbols", ()) if ((UNITS.get(str(letter)), 1),) == a.units]
    return len(letters) == 1 and isinstance(b, sympy.Expr) and same(a.value, sympy.cancel(b / letters[0]))


def same_words(a: Quantity, b: Quantity) -> bool:
    """Do the units not contradict each other, and are the words that may change the value said on both sides?"""
    more, fewer = sorted((a.units, b.units), key=len, reverse=True)
    described = set(fewer) <= set(more) and {name for name, _ in set(more) - set(fewer)} <= DESCRIBES
    return a.words == b.words and (not fewer or described or is_rate_of(more, fewer))


def is_rate_of(rate: tuple, money: tuple) -> bool:
    """Is rate the money per something?  18 dollars per day are called 18 dollars, too."""
    if len(money) != 1 or money[0][0] not in MONEY or money[0] not in rate:
        return False
    return all(power < 0 for _, power in set(rate) - set(money))


def same_equation(a: Equation, b: Any) -> bool:
    """Two equations are the same up to a constant factor; one that names its value is also that value."""
    if not isinstance(b, Equation):
        return a.named and same(a.right, b)
    if same(a.left, b.left):
        return same(a.right, b.right)
    sides = (a.left, a.right, b.left, b.right)
    if not all(isinstance(side, sympy.Expr) for side in sides):
        return False
    return constant_factor(a.left - a.right, b.left - b.right) is not None


def constant_factor(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr | None:
    """The number a / b, or None where that is no number but 0."""
    factor = sympy.nan if b == 0 else sympy.cancel(a / b)
    return factor if factor.is_number and factor.is_finite and factor != 0 else None


def same_bag(a: Bag, b: Any) -> bool:
    """Each item of one has its own partner in the other, in any order; x = 2, y = -3 is also (2, -3)."""
    if isinstance(b, Tuple) and all(isinstance(item, Equation) and item.left.is_Symbol for item in a.items):
        names = {str(item.left).lstrip("\\"): item.right for item in a.items}
        return same(Tuple(tuple(names[name] for name in sorted(names, key=lambda name: (name == "w", name)))), b)
    if not isinstance(b, Bag) or len(a.items) != len(b.items):
        return False
    left = list(b.items)
    for item in a.items:
        partner = next((i for i, other in enumerate(left) if same(item, other)), None)
        if partner is None:
            return False
        del left[partner]
    return True


def same_range(a: Range, b: Any) -> bool:
    """The same parts, end by end.  A pair is also an open interval; x > 5 is (5, oo), but not y > 5."""
    if not isinstance(b, Range | Tuple) or len({a.letter, getattr(b, "letter", None), None}) > 2:
        return False
    return same(parts(a), parts(b))


def parts(value: Range | Tuple) -> Bag:
    """Each interval as its ends and whether they are open; a point is [5, 5]."""
    if isinstance(value, Tuple):
        return Bag((Tuple((*value.items, sympy.true, sympy.true)),))
    pieces = sympy.Union.make_args(value.set)
    points = [(point, point, sympy.false, sympy.false) for piece in pieces if piece.is_FiniteSet for point in piece]
    return Bag(tuple(map(Tuple, points + [piece.args for piece in pieces if piece.is_Interval])))


def same_items(a: Tuple | Ratio, b: Any) -> bool:
    """Item by item: the ratio 2:4 is not in lowest terms."""
    return type(a) is type(b) and len(a.items) == len(b.items) and all(map(same, a.items, b.items))


def same_text(a: Text, b: Any) -> bool:
    """Words without regard to case; a single letter may also be a symbol."""
    if isinstance(b, Text):
        return [word.lower() for word in a.words] == [word.lower() for word in b.words]
    return len(a.words) == 1 and len(a.words[0]) == 1 and isinstance(b, sympy.Symbol) and str(b) == a.words[0]


RULES = {
    Option: same_option,
    Equation: same_equation,
    Quantity: same_quantity,
    Bag: same_bag,
    Range: same_range,
    Ratio: same_items,
    Tuple: same_items,
    Text: same_text,
}


def same_expression(a: Any, b: Any) -> bool:
    """Two sympy objects: matrices entry by entry, rational functions exactly, anything else to DIGITS digits."""
    if isinstance(a, sympy.MatrixBase) or isinstance(b, sympy.MatrixBase):
        return getattr(a, "shape", 0) == getattr(b, "shape", 1) and all(map(same_expression, a, b))
    if a == b:
        return True
    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)) or a.has(sympy.oo) or b.has(sympy.oo):
        return False
    if a.is_Rational and b.is_Rational:
        return False
    if agreements(a, b, points=2, digits=30) is None:
        return False  # most of what differs, before anything is expanded
    difference = sympy.expand(a - b)
    if difference.is_Rational:
        return difference == 0
    irrational = any(part.is_number and not part.is_Rational for part in sympy.preorder_traversal(difference))
    if difference.is_rational_function() and not irrational:
        return sympy.cancel(difference) == 0
    if not difference.free_symbols:
        return bool(agreements(a, b, points=1, digits=DIGITS))
    steps = difference.has(sympy.floor, sympy.ceiling)  # which points cannot tell apart
    return not steps and bool(agreements(a, b, points=POINTS, digits=POINT_DIGITS))


def agreements(a: sympy.Expr, b: sympy.Expr, points: int, digits: int) -> int | None:
    """At how many of some fixed random points, where both are defined, do a and b agree?  None if they once do not.

    Points of three sizes, at each once with a negative letter: |x - 3| is 3 - x for small x only.
    """
    letters = sorted(a.free_symbols | b.free_symbols, key=str)
    real_only = roots_and_logs(a, b) if not (a.has(sympy.I) or b.has(sympy.I)) else []
    chance = random.Random(0)
    agreed = 0
    for i in range(points if letters else 1):
        scale = sympy.Rational((1, 10, 100)[i % 3], 211)
        point = {letter: chance.randint(40, 400) * scale for letter in letters}
        if i in (3, 5, 7):
            point[letters[i // 2 % len(letters)]] *= -1
        if letters and any(sympy.N(part.xreplace(point), 20).is_negative for part in real_only):
            continue
        values = [sympy.N(value.xreplace(point), digits + 20, maxn=digits + 100) for value in (a, b)]
        size = max(map(abs, values))
        if not size.is_finite:
            continue
        if size > TINY and abs(values[0] - values[1]) > size * sympy.Float(10) ** -digits:
            return None
        agreed += bool(size > TINY or sympy.simplify(a - b) == 0)
    return agreed


def roots_and_logs(*expressions: sympy.Expr) -> list[sympy.Expr]:
    """What must not be negative for these to be real: sqrt(ab) and sqrt(a) sqrt(b) are the same where both are real."""
    powers = [power for expression in expressions for power in expression.atoms(sympy.Pow, sympy.log)]
    return [power.args[0] for power in powers if isinstance(power, sympy.log) or getattr(power.exp, "q", 1) % 2 == 0]
