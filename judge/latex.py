r"""Read a short answer, LaTeX or plain text, into a value: `read(r"\frac12, 3")` is a Bag of 1/2 and 3.

Nothing here is ever evaluated as code.  The text becomes tokens (tokens.py), the tokens a statement, that is, a list,
an interval or an equation, and its expressions become sympy objects (expressions.py):

    read -> tokens_of -> read_statement -> read_item -> read_value -> read_quantity -> read_expression

Run by `python -m judge.latex`, it is the worker of answers.py: see `serve`.
"""

import contextlib
import json
import re
import resource
import sys
import time
from functools import lru_cache

import sympy
from sympy.functions.elementary.trigonometric import TrigonometricFunction

from judge.expressions import CONSTANTS, GREEK, number, read_expression
from judge.sets import combine, interval, letter_of
from judge.tokens import Unreadable, is_enclosed, split, tokens_of
from judge.values import Bag, Equation, Option, Quantity, Range, Ratio, Text, Tuple, same
from judge.words import MONEY, NO_NOUNS, NUMBERS, UNITS, read_units

MAX_BYTES = 2**30  # of address space, and
MAX_SECONDS = 5  # of processor time for one comparison, where nobody kills the worker earlier

UNREADABLE = (TypeError, ValueError, IndexError, ArithmeticError, AttributeError, RecursionError, sympy.SympifyError)

OPTION = re.compile(  # (E) 12, \textbf{(E)}\ 12, E: a graph, Option E. 12; but not (E), (F) nor (E)^2 nor A:B
    r"[\s$*]*(?P<macro>\\(?:text|math)?(?:bf|rm|it|text)?\s*\{)?\s*(?:(?i:option|choice|answer)\s+)?"
    r"(?:\((?P<a>[A-J])\)|(?P<b>[A-J])[).:](?!\S))(?P<end>[\s*]*\}|)(?=[\s\\~$*0-9])"
    r"(?P<content>"
    r"(?!\s*[-+=<>^_,;/|!&])(?!\s*\\(?:cdot|times|c[ua]p|[lg]e|ne|in|text\w*\s*\{\s*(?:and|or)\s*\}|\\)(?![a-zA-Z]))"
    r"(?!\s*(?:and|or|is|not|only|wrong|false)(?![a-z]))(?!\s*\(?[A-J][).]?\s*\}?\$?$).*\w.*)",
    re.DOTALL,
)
DATE = re.compile(r"(?<!\S)(?:[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{1,2}/[0-9]{1,2}/[0-9]{4})(?!\S)")
PLAIN = re.compile(r"[0-9]{1,99}(?:\.[0-9]{1,99})?", re.ASCII)  # nothing to look for


@lru_cache(maxsize=256)  # a gold is read once for all the completions of its problem
def read(text: str):
    """The value of an answer (see values.py); raises Unreadable for whatever is not surely understood."""
    if option := OPTION.fullmatch(text):
        return read_option(option)
    if DATE.search(text):
        raise Unreadable("a date, which is no difference and no quotient")
    try:
        if PLAIN.fullmatch(text):
            return number(text)
        return read_statement(tokens_of(text))
    except UNREADABLE as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def read_option(option: re.Match) -> Option:
    """The letter and what stands beside it."""
    text = option["content"].strip()
    if option["macro"] and not option["end"]:
        text = option["macro"] + text  # \text{(E) a graph}: its brace closes later
    try:
        return Option(option["a"] or option["b"], read(text))
    except Unreadable:
        return Option(option["a"] or option["b"], Text((text,)))


# ------------------------------------ statements: lists, relations, intervals ------------------------------------

REAL_LINE = ["(", "-", r"\infty", ",", r"\infty", ")"]
REALS = Range(interval(-sympy.oo, sympy.oo))
NAME = re.compile(
    r"(?:'\w+)+|[a-df-hj-zA-Z](?:_(?:\w|\{[\w,]+\}))?|[f-hp-rF-HP-TV](?:(?:\^\{-1\}|_\w)?\(-?\w+\))"
    r"|P\([^()=]*\)|\\(?:det|dim|deg|gcd|max|min|Pr)\(?[\w,]+\)?|[a-zA-Z]{1,2}(?::[a-zA-Z]{1,2})+|\((?:\\?[a-z]+,)+\\?[a-z]+\)"
    r"|(?:m?\\angle)?[A-Z]{1,4}|\[[A-Z]{3,4}\]|\\lvert[A-Z]{1,2}\\rvert|\\overline\{[A-Z]{2}\}|\\vec\{?\w{1,2}\}?|"
    + "|".join(map(re.escape, sorted(GREEK, reverse=True)))
)
NO_NAMES = NO_NOUNS | set("wrong incorrect false never nicht pas non and when unless where since because".split())
NUMERAL = re.compile(r"-?[0-9.]+")
NUMERAL_IN_BASE = re.compile(
    r"(-?)(?:\\overline)?[({]?'?([0-9A-Fa-f]*(?:[0-9]|[A-F]|[a-f]{2})[0-9A-Fa-f]*)[)}]?"
    r"(?:_|(?=\(?(?:'in)?'base))(?:[{(]|'in|'?base)*'?(\w+)[)}]*", re.ASCII
)  # fmt: skip
LETTERS = re.compile(r"\(([a-z](?:,[a-z])+)\)")
SUM = re.compile(r"(?:[a-z]\+)+[a-z]")  # x + y = 70 names its value, too
UNIT = re.compile(r"(?: '\S+(?: \^ (?:\{ )?(?:- )?[1-9](?: \})?)?| %| /(?= ')| \\cdot(?= '))+$")
BASES = {**NUMBERS, "hex": 16, "binary": 2, "octal": 8}
RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\ne", r"\in"}
ALIGNED = re.compile(rf"(?: &)* ({'|'.join(map(re.escape, RELATIONS))}) (?:& )*|^ &|& $")  # beside a relation or an end
BRACED = re.compile(r"(?<!\S)\{ (\S+) \}(?!\S)")  # a group of one token


def read_rows(tokens: list[str]) -> list[str] | None:
    r"""The rows of \begin{cases} or aligned, which relate something, as a list with commas; None for a matrix, say."""
    if not RELATIONS & set(tokens) or not is_enclosed(tokens, tokens[0], tokens[-1]):
        return None
    if not tokens[0].startswith(r"\begin") or tokens[0][-8:-1] in ("pmatrix", "bmatrix", "vmatrix"):
        return None
    rows = [ALIGNED.sub(r" \1 ", f" {' '.join(row)} ").strip(" ,") for row in split(tokens[1:-1], {r"\\"})[0]]
    if any(row and not RELATIONS & set(row.split()) or " & " in row for row in rows):
        raise Unreadable("a row of two columns, or one that relates nothing")
    return " , ".join(filter(None, rows)).replace(" , = ", " = ").split()


def read_statement(tokens: list[str]):
    """One value, or a Bag of several: "12 and 14", "1, -2", "x = 3 or x = 4", "1 \\pm \\sqrt 2"; or sets joined."""
    tokens = read_rows(tokens) or tokens
    pieces, separators = split(tokens, {",", "'and", "'or"})
    values = [value for piece in pieces if piece for value in read_item(piece)]
    if not values:
        raise Unreadable("nothing there")
    if len(values) == 1:
        return values[0]
    if "'or" in separators and all(isinstance(value, Text) or re.fullmatch("[A-J]", str(value)) for value in values):
        raise Unreadable("A or C, which are not A and C")
    ranges = [value for value in values if isinstance(value, Range)]
    if ranges and (any(map(letter_of, ranges)) or set(separators) == {"'or"}):
        return join_ranges(values, separators, r"\ne" in tokens)
    values = drop_names(values, "'or" in separators)
    if set(separators) == {"'or"} and all(same(values[0], value) for value in values[1:]):
        return values[0]  # 3/2 or 1.5
    return Bag(tuple(values))


def join_ranges(values: list, separators: list[str], excludes: bool):
    """x > 2 and x < 7, x < 2 or x > 7; a comma is "and" where that leaves anything, else "or"."""
    if {"'and", "'or"} <= set(separators) or excludes and "'or" in separators:
        raise Unreadable("which of them hold together?")
    both = [] if "'or" in separators else combine(values, [r"\cap"] * (len(values) - 1))
    if both not in ([], Bag(())) or "'and" in separators or excludes:
        return both
    return combine(values, [r"\cup"] * (len(values) - 1))


def drop_names(values: list, alternatives: bool) -> list:
    """x = 1, x = -2 is the list 1, -2; so is x = 1, -2; but x = 1, y = 2 stays as it is."""
    equations = [value for value in values if isinstance(value, Equation)]
    names = [str(value.left) for value in equations if value.named]
    letters = {name.split("_")[0] for name in names}
    if len(letters) == 1 and isinstance(values[0], Equation):
        return [value.right if isinstance(value, Equation) and value.named else value for value in values]
    if len(letters) > 1 and (alternatives or len(set(names)) < len(names)):
        raise Unreadable("which of them hold together?")
    return [value._replace(named=False) if isinstance(value, Equation) else value for value in values]


def read_item(tokens: list[str]) -> list:
    """The one value of an item, or the two of one with a plus-minus."""
    if tokens in ([r"\emptyset"], [r"\{", r"\}"]):
        return [Bag(())]
    if is_enclosed(tokens, "{", "}"):
        return [read_statement(tokens[1:-1])]
    if is_enclosed(tokens, r"\{", r"\}"):
        inner, condition = [*split(tokens[1:-1], {r"\mid", ":"})[0], []][:2]
        if condition and inner[1:] not in ([], [r"\in", *REAL_LINE]):  # of integers, of squares, ...
            raise Unreadable("a set of what?")
        if condition:
            return [read_statement(condition)]
        pieces, _ = split(inner, {",", "'and", "'or"})
        return [Bag(tuple(value for piece in pieces if piece for value in read_item(piece)))]
    signs = [token for token in tokens if token in (r"\pm", r"\mp")]
    if not signs:
        return [read_value(tokens)]
    if signs.count(r"\pm") > 1 or len(signs) > 2:
        raise Unreadable("are those signs the same?")
    return [read_value([{r"\pm": plus, r"\mp": minus}.get(token, token) for token in tokens])
            for plus, minus in ("+-", "-+")]  # fmt: skip


def read_value(tokens: list[str]):
    """Sets joined, a relation, or a quantity; of an exact form and its rounding the exact one."""
    if r"\approx" in tokens:
        return read_value(exact_side(split(tokens, {r"\approx"})[0]))
    parts, operators = split(tokens, {r"\cup", r"\cap", r"\setminus"})
    if operators:
        return combine([read_item(part)[0] for part in parts], operators)
    sides, operators = split(tokens, RELATIONS)
    if set(operators) == {"="}:
        return read_equation(sides)
    return read_relation(sides, operators) if operators else read_quantity(tokens)


def exact_side(sides: list[list[str]]) -> list[str]:
    r"""5\sqrt 2 of 5\sqrt 2 \approx 7.07, and of 7.07 \approx 5\sqrt 2; x = 7.07 of x \approx 7.07."""
    if not all(sides):
        raise Unreadable("about what?")
    if NAME.fullmatch("".join(sides[0])):
        return [*sides[0], "=", *exact_side(sides[1:])]
    exact = [side for side in sides if not ("." in side[-1] and side[:-1] in ([], ["-"]))]
    if len(sides) > 1 and all(NUMERAL.fullmatch("".join(side)) for side in sides):  # 3.7 \approx 4
        raise Unreadable("which of them is exact?")
    return (exact or sides)[0]


def read_side(tokens: list[str]):
    """One side of a relation, and whether it only names something: x, f(x), (x, y), AB, \\angle A, Area, m + n."""
    text = "".join(tokens)
    if NAME.fullmatch(text) and not denies(tokens):
        return sympy.Symbol(text.replace("{", "").replace("}", "")), True
    return read_item(tokens)[0], SUM.fullmatch(text) is not None


def denies(tokens: list[str]) -> bool:
    """Does one of the words say more than a name: not x, at least f(2)?"""
    return any(token in (r"\not", r"\neg") or token[0] == "'" and token[1:].lower() in NO_NAMES for token in tokens)


def read_left(tokens: list[str]):
    """The left side of an equation whose right side is a number: may it be any expression that names its value?

    Not one in one letter or in x and y, which may be what was to be solved: 2x = 5, x - y = 5.
    """
    try:
        value, named = read_side(tokens)
    except UNREADABLE:  # \\lim_{x \\to 0} f(x), lcm(4, 6)
        text = "".join(tokens)
        if not tokens or not text.isascii() or denies(tokens):
            raise
        return sympy.Symbol(text), True
    letters = set(map(str, getattr(value, "free_symbols", ())))
    is_solved = len(letters) < 2 or len(letters & set("xyz")) > 1
    return value, named or not is_solved or bool(letters) and value.has(TrigonometricFunction)


def read_equation(sides: list[list[str]]):
    """left = right, or the value of a chain (x = 6/4 = 3/2, 1/4 = 25%), which must be true all along."""
    right = [read_side(side) for side in sides[1:]]
    constant = all(getattr(value, "is_number", isinstance(value, Quantity)) for value, _ in right)
    values, named = zip(*[(read_left if constant else read_side)(sides[0]), *right], strict=True)
    letters = LETTERS.fullmatch("".join(sides[0]))
    if letters and len(values) == 2 and isinstance(values[1], Tuple):  # (x, y) = (2, -3) is x = 2, y = -3
        pairs = zip(letters[1].split(","), values[1].items, strict=True)
        return Bag(tuple(Equation(sympy.Symbol(letter), value, False) for letter, value in pairs))
    if len(values) == 2 and any(getattr(value, "free_symbols", None) for value in values):
        return Equation(*values[::-1], True) if named[1] and not named[0] else Equation(*values, named[0])
    chain = values[1:] if named[0] else values
    if not all(same(chain[0], value) for value in chain[1:]):
        raise Unreadable("a chain of equations that is false")
    return Equation(values[0], values[-1], True) if named[0] else values[-1]


def read_relation(sides: list[list[str]], operators: list[str]):
    """What x may be, of x \\in S, x \\ne 5, x < 5, 2 < x \\le 5 or |x| < 5."""
    if operators in ([r"\in"], [r"\ne"]):
        (name, named), right = read_side(sides[0]), read_item(sides[1])[0]
        if not named:
            raise Unreadable("what is in there?")
        return right if operators == [r"\in"] else combine([REALS._replace(letter=str(name)), right], [r"\setminus"])
    if set(operators) <= {">", r"\ge"}:
        sides, operators = sides[::-1], [{">": "<"}.get(operator, r"\le") for operator in operators[::-1]]
    if not set(operators) <= {"<", r"\le"} or len(sides) > 3:
        raise Unreadable("a mixed chain")
    ends, strict = [read_side(side)[0] for side in sides], [operator == "<" for operator in operators]
    if len(ends) == 2 and isinstance(ends[0], sympy.Symbol | sympy.Abs):
        ends, strict = [-sympy.oo, *ends], [True, *strict]
    elif len(ends) == 2:
        ends, strict = [*ends, sympy.oo], [*strict, True]
    low, middle, high = ends
    if isinstance(middle, sympy.Symbol):
        return Range(interval(low, high, *strict), str(middle))
    if not isinstance(middle, sympy.Abs) or not isinstance(middle.args[0], sympy.Symbol):
        raise Unreadable("an inequality that bounds no letter")
    letter = str(middle.args[0])
    if low == -sympy.oo:
        return Range(interval(-high, high, strict[1], strict[1]), letter)
    inner = Range(interval(-low, low, not strict[0], not strict[0]), letter)
    return combine([REALS, inner, Range(interval(-high, high), letter)], [r"\setminus", r"\cap"])


def read_quantity(tokens: list[str]):
    """A bracket, text, numeral, time, ratio or expression, with the words that may stand before or after it."""
    if tokens and tokens[0].lower() in ("'option", "'choice", "'graph"):
        tokens = tokens[1:]
    if is_text(tokens):
        words = [token.strip("'") for token in tokens if token != "'th"]
        return Text(tuple(words[1:] if words[0].lower() in ("a", "an", "the") else words))
    if numeral := read_numeral(tokens):
        return numeral
    parts, colons = split(tokens, {":"})
    if colons:
        return Ratio(tuple(map(read_quantity, parts)))
    tokens, units, words = strip_words(list(tokens))
    value = read_bracket(tokens)
    if value is None:
        value = read_expression(tokens)
        if value.has(CONSTANTS["°"]):
            value, units = value.subs(CONSTANTS["°"], 1), (("degree", 1), *units)
    return Quantity(value, units, words) if units or words else value


def is_text(tokens: list[str]) -> bool:
    """Words and letters alone, or words with numbers behind them: June 5, but not dollar 5."""
    words = [token for token in tokens if token[0] == "'" and token != "'"]  # a lone one is a quotation mark
    numbers = tokens[:1] == words[:1] and UNITS.get(words[0][1:].lower()) not in MONEY if words else False
    return bool(words) and all(token in words or token.isalpha() or numbers and token.isdigit() for token in tokens)


def strip_words(tokens: list[str]) -> tuple[list[str], tuple, tuple]:
    """Take off the words, units and the % after a value and the currency before it: tokens, units, other words."""
    money = ()
    for i in (0, 1):
        unit = UNITS.get(tokens[i][1:].lower()) if len(tokens) > i + 1 and tokens[i][0] == "'" else None
        if unit in MONEY and tokens[:i] in ([], ["-"]):
            tokens.pop(i)
            money = ((unit, 1),)
    text = " ".join(tokens)
    if not (found := UNIT.search(text)):
        return tokens, money, ()
    units, words = read_units(found[0])
    return text[: found.start()].split(), tuple(sorted({*units, *money})), words


def read_bracket(tokens: list[str]):
    """(a, b), (a, b, c), [a, b) or (a); None where tokens are not one bracket."""
    if not is_enclosed(tokens, r"( [ \langle", r") ] \rangle"):
        return None
    pieces, _ = split(tokens[1:-1], {","})
    if len(pieces) == 1:
        return read_value(pieces[0])
    items = tuple(read_value(piece) for piece in pieces)
    if tokens[0] != "[" and tokens[-1] != "]" and not {sympy.oo, -sympy.oo} & set(items):
        return Tuple(items)
    if len(items) != 2:
        raise Unreadable("a list in square brackets")
    return Range(interval(*items, tokens[0] == "(", tokens[-1] == ")"))


def read_numeral(tokens: list[str]) -> Text | sympy.Rational | None:
    """52_8, 52_{eight}, (52)_{8}, 52 base 8, 52 (in base 8); None for anything else."""
    text = "".join(tokens)
    if prefixed := re.fullmatch(r"(-?)0([xob])([0-9a-fA-F]+)", text):
        sign, digits, base = prefixed[1], prefixed[3], {"x": 16, "o": 8, "b": 2}[prefixed[2]]
    elif found := NUMERAL_IN_BASE.fullmatch(text):
        sign, digits, word = found[1], found[2], found[3].lower()
        base = BASES.get(word, int(word) if word.isdigit() else 0)
    else:
        return None
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        return None
    return number(sign + digits) if base == 10 else Text((sign + (digits.lstrip("0") or "0"), "base", str(base)))


# --------------------------------------------------- the worker ---------------------------------------------------


def serve():
    """Answer each line [answer, gold] on stdin with "equal", "different", "unreadable" or "failed" on stdout."""
    with contextlib.suppress(ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    compare(r"\sqrt{x^2} + \sin 1", "|x|")  # what sympy loads late
    compare("(0, 1)", "x < 1 or x > 2")
    print("ready", flush=True)
    for line in sys.stdin:
        used = int(time.process_time())  # a worker whose caller was killed must not go on for ever
        resource.setrlimit(resource.RLIMIT_CPU, (used + MAX_SECONDS, resource.RLIM_INFINITY))
        try:
            print(compare(*json.loads(line)), flush=True)
        except MemoryError:
            return


def compare(answer: str, gold: str) -> str:
    """The verdict on one pair; "failed" for whatever sympy trips over, so that the caller can count it."""
    try:
        return "equal" if same(read(answer), read(gold)) else "different"
    except Unreadable:
        return "equal" if are_spelled_alike(answer, gold) else "unreadable"
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001
        return "failed"


def are_spelled_alike(answer: str, gold: str) -> bool:
    r"""Are two texts that cannot be read the same but for their looks: f(n) = \sum_{k=1}^n k and \sum_{k=1}^{n} k?"""
    try:
        left, right = (BRACED.sub(r"\1", " ".join(tokens_of(text))).split() for text in (answer, gold))
    except UNREADABLE:
        return False
    return left == right != [] or drop_name(left) == right or left == drop_name(right)


def drop_name(tokens: list[str]) -> list[str] | None:
    """What f(n) = ... names; None where no name stands there."""
    sides, operators = split(tokens, {"="})
    return sides[1] if operators == ["="] and NAME.fullmatch("".join(sides[0])) and not denies(sides[0]) else None


if __name__ == "__main__":
    serve()
