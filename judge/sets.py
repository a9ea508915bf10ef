"""Unions, intersections and differences of intervals and finite sets, by sympy.

So (0, 1) with (1, 2], 0 < x <= 2 without 1, and "x > 0, x <= 2 and x != 1" are one value.
"""

from itertools import pairwise

import sympy

from judge.values import Bag, Equation, Interval, Tuple, Union

JOIN = {r"\cup": sympy.Union, r"\cap": sympy.Intersection, r"\setminus": sympy.Complement}


def combine(values: list, operators: list[str]):
    """values[0] operators[0] values[1] ..., from left to right; raises ValueError where one is no set of numbers."""
    names = {name for value in values if (name := variable(value))}
    if len(names) > 1:
        raise ValueError("sets of different letters")
    if set(operators) == {r"\cup"} and (not all(map(has_real_ends, values)) or are_apart(values)):  # nothing to merge
        return Union(tuple(map(as_interval, values)))
    joined = to_set(values[0])
    for operator, value in zip(operators, values[1:], strict=True):
        joined = JOIN[operator](joined, to_set(value))
    return from_set(joined, *names)


def variable(value) -> str | None:
    """The letter that an inequality bounds or an equation names."""
    if isinstance(value, Union):
        return variable(value.parts[0])
    return str(value.left) if isinstance(value, Equation) else getattr(value, "variable", None)


def has_real_ends(value) -> bool:
    """Are the ends of an interval numbers, so that two can be merged?"""
    if isinstance(value, Union):
        return all(map(has_real_ends, value.parts))
    ends = value.items if isinstance(value, Tuple) else value[:2] if isinstance(value, Interval) else ()
    return all(isinstance(end, sympy.Expr) and end.is_extended_real for end in ends)


def are_apart(values: list) -> bool:
    """Intervals of numbers, each below the next and not joined to it: sympy would take long to see that."""
    if not all(isinstance(value, Tuple | Interval) for value in values):
        return False
    parts = list(map(as_interval, values))
    return all(low < high for low, high, *_ in parts) and all(
        a.high < b.low or (a.high == b.low and a.high_open and b.low_open) for a, b in pairwise(parts)
    )


def as_interval(value) -> Interval:
    """A part of a union: a pair is an open interval, {5} and x = 5 are [5, 5]."""
    if isinstance(value, Bag) and len(value.items) == 1:
        return Interval(*value.items * 2, False, False)
    if isinstance(value, Equation) and value.named:
        return Interval(value.right, value.right, False, False, str(value.left))
    if isinstance(value, Tuple) and len(value.items) == 2:
        return Interval(*value.items, True, True)
    if not isinstance(value, Interval):
        raise ValueError("a union of what?")
    return value


def to_set(value) -> sympy.Set:
    """A finite set, an interval or several; a lone number is the set of it."""
    if isinstance(value, Bag):
        return sympy.FiniteSet(*value.items)
    if isinstance(value, Union):
        return sympy.Union(*map(to_set, value.parts))
    if isinstance(value, sympy.Expr):
        return sympy.FiniteSet(value)
    return sympy.Interval(*as_interval(value)[:4])


def from_set(found: sympy.Set, name: str | None = None) -> Bag | Interval | Union:
    """The value of what to_set and sympy made."""
    if isinstance(found, sympy.FiniteSet | sympy.sets.sets.EmptySet):
        return Bag(tuple(found))
    if isinstance(found, sympy.Interval):
        return Interval(found.start, found.end, bool(found.left_open), bool(found.right_open), name)
    if isinstance(found, sympy.Union):
        parts = [sympy.FiniteSet(item) for part in found.args if part.is_FiniteSet for item in part]
        parts += [part for part in found.args if not part.is_FiniteSet]
        return Union(tuple(as_interval(from_set(part, name)) for part in parts))
    raise ValueError("a set of what?")
