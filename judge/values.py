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
    """A value with its units, each with its power (m/s is meter 1, second -1), and words that may change it."""

    value: Any
    units: tuple[tuple[str, int], ...] = ()
    words: tuple[str, ...] = ()


class System(NamedTuple):
    """x = 2, y = -3, in the order of a pair, which is the alphabet's: each letter has one value, and all hold."""

    names: tuple[str, ...]
    values: tuple


class Ratio(NamedTuple):
    """3 : 5, as written; 7:30, too."""

    items: tuple


class Option(NamedTuple):
    """(E) 12: a letter and what stands beside it, whose value is None where it could not be read."""

    letter: str
    content: Any
    text: str


class Either(NamedTuple):
    """What can be read in more than one way: 5 and 1/2 is two numbers or 5.5."""

    readings: tuple


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


def same_either(a: Either, b: Any) -> bool:
    """Any reading will do."""
    return any(same(reading, b) for reading in a.readings)


def same_option(a: Option, b: Any) -> bool:
    """The letter or what it stands for; two options must agree in both."""
    if isinstance(b, Option):
        unread = a.content is None or b.content is None
        return a.letter == b.letter and (a.text == b.text if unread else same(a.content, b.content))
    return same(sympy.Symbol(a.letter), b) or (a.content is not None and same(a.content, b))


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


def same_system(a: System, b: Any) -> bool:
    """The same values of the same letters; those of (x, y) may be given as a pair, in the order of the alphabet."""
    if isinstance(b, Tuple):
        return same(Tuple(a.values), b)
    if not isinstance(b, System) or set(a.names) != set(b.names):
        return False
    others = dict(zip(b.names, b.values, strict=True))
    return all(same(value, others[name]) for name, value in zip(a.names, a.values, strict=True))


def same_bag(a: Bag | Union, b: Any) -> bool:
    """Each item of one has its own partner in the other, in any order."""
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


def same_items(a: Tuple | Ratio, b: Any) -> bool:
    """Item by item: the ratio 2:4 is not in lowest terms."""
    return type(a) is type(b) and len(a.items) == len(b.items) and all(map(same, a.items, b.items))


def same_numeral(a: Numeral, b: Any) -> bool:
    """52_8 is neither 52 nor 42: the question asked for that base."""
    return isinstance(b, Numeral) and a == b


def same_text(a: Text, b: Any) -> bool:
    """Words without regard to case; a single letter may also be a symbol."""
    if isinstance(b, Text):
        return [word.lower() for word in a.words] == [word.lower() for word in b.words]
    return len(a.words) == 1 and len(a.words[0]) == 1 and isinstance(b, sympy.Symbol) and str(b) == a.words[0]


RULES = {
    Either: same_either,
    Option: same_option,
    Equation: same_equation,
    Quantity: same_quantity,
    System: same_system,
    Bag: same_bag,
    Union: same_bag,
    Interval: same_interval,
    Ratio: same_items,
    Tuple: same_items,
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

    Points of both signs and of three sizes: |x - 3| is 3 - x for small x only.
    """
    letters = sorted(a.free_symbols | b.free_symbols, key=str)
    real_only = roots_and_logs(a, b) if not (a.has(sympy.I) or b.has(sympy.I)) else []
    chance = random.Random(0)
    agreed = 0
    for i in range(points if letters else 1):
        scale = sympy.Rational((1, 10, 100)[i % 3], 211)
        signs = (1,) if i % 2 else (-1, 1)
        point = {letter: chance.choice(signs) * chance.randint(40, 400) * scale for letter in letters}
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
