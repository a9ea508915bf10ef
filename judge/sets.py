"""Unions, intersections and differences of intervals and finite sets, by sympy.

So (0, 1) with (1, 2], 0 < x <= 2 without 1, and "x > 0, x <= 2 and x != 1" are one value.
"""

import sympy

from judge.values import Bag, Equation, Range, Tuple

JOIN = {r"\cup": sympy.Union, r"\cap": sympy.Intersection, r"\setminus": sympy.Complement}


def interval(low, high, low_open: bool = True, high_open: bool = True) -> sympy.Interval:
    """Raises ValueError where it is empty, a point, or closed at infinity, or where an end is no expression."""
    found = sympy.Interval(*expressions([low, high]), low_open, high_open)
    if not found.is_Interval or (found.left_open, found.right_open) != (low_open, high_open):
        raise ValueError("an interval of what?")
    return found


def combine(values: list, operators: list[str]) -> Bag | Range:
    """values[0] operators[0] values[1] ..., from left to right; raises ValueError where one is no set of numbers."""
    letters = {letter for value in values if (letter := letter_of(value))}
    if len(letters) > 1:
        raise ValueError("sets of different letters")
    found, *others = map(to_set, values)
    for operator, other in zip(operators, others, strict=True):
        found = JOIN[operator](found, other)
    if found.is_FiniteSet or found.is_empty:
        return Bag(tuple(found))
    if not all(part.is_Interval or part.is_FiniteSet for part in sympy.Union.make_args(found)):
        raise ValueError("a set that depends on a letter")
    return Range(found, *letters)


def letter_of(value) -> str | None:
    """What an inequality bounds or an equation names."""
    return str(value.left) if isinstance(value, Equation) else getattr(value, "letter", None)


def to_set(value) -> sympy.Set:
    """A pair is an open interval, x = 5 the set of 5, and so is 5."""
    if isinstance(value, Range):
        return value.set
    if isinstance(value, Tuple) and len(value.items) == 2:
        return interval(*value.items)
    if isinstance(value, Equation) and value.named:
        return to_set(value.right)
    return sympy.FiniteSet(*expressions(value.items if isinstance(value, Bag) else [value]))


def expressions(values) -> list[sympy.Expr]:
    """The same values; text among them must not reach sympy, which would evaluate it."""
    if not all(isinstance(value, sympy.Expr) for value in values):
        raise ValueError("a set of what?")
    return list(values)
