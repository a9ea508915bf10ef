"""What an answer can be, and when two answers are the same.

A value is a sympy expression or matrix, or one of the few containers below.  `same` is exact where it can be
(rational numbers, polynomials, rational functions) and otherwise compares very many digits; in doubt it says no.
latex.py makes the values; both run in the worker process of eval.py, which ends whatever takes too long.
"""

import random
from typing import Any, NamedTuple

import sympy

DIGITS = 2500  # significant digits in which two irrational numbers must agree: more than latex.MAX_BITS can hold
POINTS, POINT_DIGITS = 9, 250  # for expressions that are not rational functions
TINY = sympy.Float(10) ** -100  # what may be a hidden 0: sympy must prove it


class Text(NamedTuple):
    """Words: (even), (no, solution)."""

    words: tuple[str, ...]


class Tuple(NamedTuple):
    """(3, 4): the order counts.  A pair is also an open interval."""

    items: tuple


class Bag(NamedTuple):
    """A set or a list of roots: the order does not count, how often a value stands there does."""

    items: tuple


class Interval(NamedTuple):
    """[low, high), or the inequality that means it, which also names its variable."""

    low: Any
    high: Any
    low_open: bool
    high_open: bool
    variable: str | None = None


class Union(NamedTuple):
    """Intervals joined by a cup or an "or"."""

    parts: tuple


class Relation(NamedTuple):
    """An inequality in several letters: difference < 0 (strict) or difference <= 0."""

    difference: sympy.Expr
    strict: bool


class Equation(NamedTuple):
    """left = right.  Where the left side only names the answer (x = 5, f(x) = 2x), it may be dropped."""

    left: Any
    right: Any
    named: bool


class Numeral(NamedTuple):
    """52_8: digits as written, and their base."""

    digits: str
    base: int


class Quantity(NamedTuple):
    """A value with a unit that we know, or with a percent sign."""

    value: Any
    unit: str


def same(a: Any, b: Any) -> bool:
    """Would a careful marker take value a for value b?  Symmetric: each rule sees its own kind first."""
    for kind, rule in RULES.items():
        if isinstance(a, kind):
            return rule(a, b)
        if isinstance(b, kind):
            return rule(b, a)
    return same_expression(a, b)


def same_quantity(a: Quantity, b: Any) -> bool:
    """A unit may be missing, not differ.  25% is 25 and 1/4."""
    if isinstance(b, Quantity):
        return a.unit == b.unit and same(a.value, b.value)
    if a.unit == "%" and isinstance(a.value, sympy.Expr):
        return same(a.value, b) or same(a.value / 100, b)
    return same(a.value, b)


def same_equation(a: Equation, b: Any) -> bool:
    """Two equations are the same up to a constant factor; one that names its value is also that value."""
    if not isinstance(b, Equation):
        return a.named and same(a.right, b)
    if a.left == b.left:
        return same(a.right, b.right)
    sides = (a.left, a.right, b.left, b.right)
    if not all(isinstance(side, sympy.Expr) for side in sides):
        return False
    factor = constant_factor(a.left - a.right, b.left - b.right)
    return factor is not None


def same_relation(a: Relation, b: Any) -> bool:
    """The same up to a positive factor, and both strict or neither."""
    if not isinstance(b, Relation) or a.strict != b.strict:
        return False
    factor = constant_factor(a.difference, b.difference)
    return factor is not None and bool(factor.is_positive)


def constant_factor(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr | None:
    """The number a / b, or None where that is no number but 0."""
    factor = sympy.nan if b == 0 else sympy.cancel(a / b)
    return factor if factor.is_number and factor.is_finite and factor != 0 else None


def same_bag(a: Bag | Union, b: Any) -> bool:
    """Each item of one has its own partner in the other, in any order; x = 15, y = -29 is (15, -29)."""
    if isinstance(b, Tuple) and all(isinstance(item, Equation) for item in a[0]):
        names = [str(item.left).lstrip("\\") for item in a[0]]
        return names == sorted(set(names)) and same(Tuple(tuple(item.right for item in a[0])), b)
    if type(a) is not type(b) or len(a[0]) != len(b[0]):
        return False
    left = list(b[0])
    for item in a[0]:
        partner = next((i for i, other in enumerate(left) if same(item, other)), None)
        if partner is None:
            return False
        del left[partner]
    return True


def same_interval(a: Interval, b: Any) -> bool:
    """Both ends, and whether each belongs to it.  x > 5 is (5, oo), but not y > 5."""
    if isinstance(b, Tuple) and len(b.items) == 2:
        b = Interval(*b.items, True, True)
    if not isinstance(b, Interval) or (a.low_open, a.high_open) != (b.low_open, b.high_open):
        return False
    if a.variable and b.variable and a.variable != b.variable:
        return False
    return same(a.low, b.low) and same(a.high, b.high)


def same_tuple(a: Tuple, b: Any) -> bool:
    """Item by item."""
    return isinstance(b, Tuple) and len(a.items) == len(b.items) and all(map(same, a.items, b.items))


def same_numeral(a: Numeral, b: Any) -> bool:
    """52_8 is neither 52 nor 42: the question asked for that base."""
    return a == b


def same_text(a: Text, b: Any) -> bool:
    """Words without regard to case; a single letter may also be a symbol."""
    if isinstance(b, Text):
        return [word.lower() for word in a.words] == [word.lower() for word in b.words]
    return len(a.words) == 1 and len(a.words[0]) == 1 and b == sympy.Symbol(a.words[0])


RULES = {
    Quantity: same_quantity,
    Equation: same_equation,
    Bag: same_bag,
    Union: same_bag,
    Interval: same_interval,
    Tuple: same_tuple,
    Relation: same_relation,
    Numeral: same_numeral,
    Text: same_text,
}


def same_expression(a: Any, b: Any) -> bool:
    """Two sympy objects: matrices entry by entry, rational functions exactly, anything else to DIGITS digits."""
    if isinstance(a, sympy.MatrixBase) or isinstance(b, sympy.MatrixBase):
        return getattr(a, "shape", 0) == getattr(b, "shape", 1) and all(map(same_expression, a, b))
    if a == b:
        return True
    if a.has(sympy.oo) or b.has(sympy.oo) or (a.is_Rational and b.is_Rational):
        return False
    if agreements(a, b, points=1, digits=30) is None:
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

    Points of both signs and of three sizes: |x - 3| is 3 - x for small x only.
    """
    letters = sorted(a.free_symbols | b.free_symbols, key=str)
    chance = random.Random(0)
    agreed = 0
    for i in range(points):
        scale = sympy.Rational((1, 10, 100)[i % 3], 211)
        point = {letter: chance.choice((-1, 1)) * chance.randint(40, 400) * scale for letter in letters}
        values = [sympy.N(value.subs(point), digits + 20, maxn=digits + 100) for value in (a, b)]
        size = max(map(abs, values))
        if not size.is_finite:
            continue
        if size > TINY and abs(values[0] - values[1]) > size * sympy.Float(10) ** -digits:
            return None
        agreed += bool(size > TINY or sympy.simplify(a - b) == 0)
    return agreed
