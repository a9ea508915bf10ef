r"""Read a short answer, LaTeX or plain text, into a value: `read(r"\frac12, 3")` is a Bag of 1/2 and 3.

Nothing here is ever evaluated as code.  The text becomes tokens, the tokens a statement (list, interval, equation), and
its expressions become sympy objects, each built by one function below, under limits that are checked first:

    read -> clean -> tokenise -> say -> read_statement -> read_item -> read_value -> read_quantity
         -> read_sum -> read_product -> read_power -> read_atom

Run by `python -m judge.latex`, it is the worker of answers.py: see `serve`.
"""

import contextlib
import json
import re
import resource
import sys
import time
from collections import deque
from fractions import Fraction
from functools import lru_cache

import sympy

from judge.sets import combine, interval, letter_of
from judge.spelling import clean
from judge.values import Bag, Equation, Option, Quantity, Range, Ratio, Text, Tuple, same
from judge.words import KNOWN, MONEY, NO_NOUNS, NUMBERS, PRODUCTS, UNITS, read_units, say

MAX_LENGTH = 1000  # characters of an answer
MAX_TOKENS = 500
MAX_DEPTH = 20  # brackets in brackets
MAX_FUNCTIONS = 20
MAX_BITS = 8192  # of any number's numerator or denominator
MAX_EXPONENT = 1000  # of anything that is not a rational number, powers of powers multiplied
MAX_FACTORIAL = 500
MAX_BYTES = 2**30  # of address space, and
MAX_SECONDS = 5  # of processor time for one comparison, where nobody kills the worker earlier

DIGITS = tuple("0123456789.")
UNREADABLE = (TypeError, ValueError, IndexError, ArithmeticError, AttributeError, RecursionError, sympy.SympifyError)
Tokens = deque[str]


class Unreadable(ValueError):
    """The text is no answer that this reader knows, or lies beyond its limits."""


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


def tokens_of(text: str) -> list[str]:
    """The tokens of an answer, with its number words read."""
    if len(text) > MAX_LENGTH:
        raise Unreadable("too long")
    return say(" ".join(tokenise(clean(text)))).split()


# ------------------------------------------------- text to tokens -------------------------------------------------

TOKEN = re.compile(
    r"\s*(?:(?P<text>\\(?:text(?:bf|rm|it|sf|tt)?|math(?:bf|rm|it|sf|tt)|[mh]box|emph|operatorname\*?)\s*\{)"
    r"|(?P<matrix>\\(?:begin|end)\{\w+\})(?:\{[lcr|\s]*\})?|(?P<command>\\[a-zA-Z]+|\\.)"
    r"|(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<word>[a-zA-Z]*[^\W\d_a-zA-Z][^\W\d_]*)|(?P<letters>[a-zA-Z]+)|(?P<symbol><=|>=|!=|\*\*|\S))\s*"
)
ONLY_WORDS = re.compile(  # no, red, an ellipse; red, blue
    r"[{\s]*(?:[nN]o|[a-zA-Z]{3}|[a-zA-Z\s]*[a-zA-Z]{4}[a-zA-Z\s,]*|[a-zA-Z]{3,}(?:,\s*[a-zA-Z]{3,})*)[}\s]*"
)
PARTNERS = {
    "(": (")", "]"), "[": (")", "]"), "{": ("}",), r"\{": (r"\}",), r"\lfloor": (r"\rfloor",), r"\lceil": (r"\rceil",),
    r"\langle": (r"\rangle",), r"\lvert": (r"\rvert",),
}  # fmt: skip
CLOSING = {token for partners in PARTNERS.values() for token in partners}
SPELLINGS = {
    r"\leq": r"\le", r"\leqslant": r"\le", "<=": r"\le", r"\geq": r"\ge", r"\geqslant": r"\ge", ">=": r"\ge",
    r"\lt": "<", r"\gt": ">", "!=": r"\ne", r"\neq": r"\ne", r"\times": r"\cdot", r"\ast": r"\cdot", "*": r"\cdot",
    "**": "^", r"\div": "/", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\%": "%",
    r"\varnothing": r"\emptyset", r"\euro": "'euro", r"\pounds": "'sterling", r"\$": "'dollar", r"\simeq": r"\approx",
    r"\textdollar": "'dollar", r"\bigcup": r"\cup", r"\imath": "i", r"\vert": "|", r"\cr": r"\\", r"\&": "'and",
    r"\lor": "'or", r"\vee": "'or", r"\land": "'and", r"\wedge": "'and", ";": ",", r"\bar": r"\overline",
    r"\equiv": "=", r"\bigcap": r"\cap", r"\smallsetminus": r"\setminus", r"\backslash": r"\setminus", r"\colon": ":",
    r"\overrightarrow": r"\vec",
    **dict.fromkeys((r"\ldots", r"\cdots", r"\dotsc", r"\dotsb"), r"\dots"),
}  # fmt: skip
WORDS = {  # what plain letters mean; other runs of letters are words where long, else products
    "and": "'and", "or": "'or", "sqrt": r"\sqrt", "pi": r"\pi", "infinity": r"\infty", "infty": r"\infty",
    "inf": r"\infty", "oo": r"\infty", "percent": "%", "pct": "%", "degrees": "°", "degree": "°", "deg": "°",
    "theta": r"\theta", "union": r"\cup", "not": "'not", "for": "'for",
    **dict.fromkeys(("und", "et", "и"), "'and"), **dict.fromkeys(("oder", "ou", "или"), "'or"),
}  # fmt: skip
FUNCTIONS = {
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec, "csc": sympy.csc,
    "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "sinh": sympy.sinh, "cosh": sympy.cosh,
    "tanh": sympy.tanh, "arccot": sympy.acot, "arcsec": sympy.asec, "arccsc": sympy.acsc, "ln": sympy.log,
    "cis": lambda x: sympy.cos(x) + sympy.I * sympy.sin(x),
    "exp": lambda x: power(sympy.E, x), "log": lambda x: sympy.log(x, 10), "lg": lambda x: sympy.log(x, 10),
}  # fmt: skip
CONSTANTS = {"e": sympy.E, "i": sympy.I, r"\pi": sympy.pi, r"\infty": sympy.oo, "°": sympy.Symbol("°")}
REAL_LINE = ["(", "-", r"\infty", ",", r"\infty", ")"]
REALS = Range(interval(-sympy.oo, sympy.oo))
GREEK = {"\\" + letter for letter in """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda
mu nu xi rho sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell""".split()}
NAME = re.compile(
    r"(?:'\w+)+|[a-df-hj-zA-Z](?:_(?:\w|\{[\w,]+\}))?|[f-hp-rF-HP-TV](?:(?:\^\{-1\}|_\w)?\(-?\w+\))"
    r"|P\([^()=]*\)|\\(?:det|dim|deg|gcd|max|min|Pr)\(?[\w,]+\)?|[a-zA-Z]{1,2}(?::[a-zA-Z]{1,2})+|\((?:\\?[a-z]+,)+\\?[a-z]+\)"
    r"|(?:m?\\angle)?[A-Z]{1,4}|\[[A-Z]{3,4}\]|\\lvert[A-Z]{1,2}\\rvert|\\overline\{[A-Z]{2}\}|\\vec\{?\w{1,2}\}?|"
    + "|".join(map(re.escape, sorted(GREEK, reverse=True)))
)
NO_NAMES = NO_NOUNS | set("wrong incorrect false never nicht pas non and when unless where since because".split())
CALL = re.compile(r"[f-hP]\(")
NUMERAL = re.compile(r"-?[0-9.]+")
NUMERAL_IN_BASE = re.compile(
    r"(-?)(?:\\overline)?[({]?'?([0-9A-Fa-f]*(?:[0-9]|[A-F]|[a-f]{2})[0-9A-Fa-f]*)[)}]?"
    r"(?:_|(?=\(?(?:'in)?'base))(?:[{(]|'in|'?base)*'?(\w+)[)}]*", re.ASCII
)  # fmt: skip
LETTERS = re.compile(r"\(([a-z](?:,[a-z])+)\)")
SUM = re.compile(r"(?:[a-z]\+)+[a-z]")  # x + y = 70 names its value, too
UNIT = re.compile(r"(?: '\S+(?: \^ (?:\{ )?(?:- )?[1-9](?: \})?)?| %| /(?= ')| \\cdot(?= '))+$")
BASES = {**NUMBERS, "hex": 16, "binary": 2, "octal": 8}
MIXED_FRACTION = re.compile(
    r"(?P<top>[0-9]+) / (?P<bottom>[0-9]+)(?!\S)|\\frac \{ (?P<top2>[0-9]+) \} \{ (?P<bottom2>[0-9]+) \}"
)
RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\ne", r"\in"}
ALIGNED = re.compile(rf"(?: &)* ({'|'.join(map(re.escape, RELATIONS))}) (?:& )*|^ &|& $")  # & beside a relation or an end
BRACED = re.compile(r"(?<!\S)\{ (\S+) \}(?!\S)")  # a group of one token


def tokenise(text: str) -> Tokens:
    """Numerals, letters, commands, signs and 'words (with a leading '); brackets must balance, and not too deep."""
    tokens, stack, position = deque(), [], 0
    only_words = ONLY_WORDS.fullmatch(text) is not None
    is_prose = re.match(r"\s*(?:[a-zA-Z]{2,} +[a-zA-Z]{4}|[a-zA-Z]{3,} +[0-9])", text) is not None
    while position < len(text):
        match = TOKEN.match(text, position)
        position, kind = match.end(), match.lastgroup
        token = SPELLINGS.get(match[kind], match[kind])
        if kind == "text":
            stack.append("text")
        elif kind == "word":
            tokens.append(WORDS.get(token, "'" + token))
        elif kind == "letters":
            spaced = text[match.start(kind) - 1] in " \t\n("
            in_text = only_words or "text" in stack or (is_prose and not tokens)
            tokens.extend(split_letters(token, in_text, tokens, spaced))
        elif token == "}" and stack and stack[-1] == "text":
            stack.pop()
        elif token[0] == "\\" and token[1:-1] in FUNCTIONS and token[1:] not in FUNCTIONS:  # \sinx
            tokens.extend((token[:-1], token[-1]))
        elif token:
            tokens.append(balance(token, stack))
        if len(tokens) > MAX_TOKENS or len(stack) > MAX_DEPTH:
            raise Unreadable("too many tokens, or too deep")
    if stack or sum(token[1:] in FUNCTIONS for token in tokens) > MAX_FUNCTIONS:
        raise Unreadable("a bracket is not closed, or sine of sine of sine ...")
    return tokens


def split_letters(run: str, in_text: bool, before: Tokens, spaced: bool) -> list[str]:
    """Is a run of letters a name that we know, a word, or a product of letters?"""
    if run.lower() in WORDS:
        return [WORDS[run.lower()]]
    if run in FUNCTIONS:
        return ["\\" + run]
    if len(run) == 1:
        follows = in_text and before and (before[-1][-1] in "0123456789}/" or before[-1][1:] in UNITS)
        article = run == "a" and in_text and before and before[-1][0] == "'"  # 5/6 of a cup
        return ["'" + run if follows and run in UNITS or article else run]
    known = run.lower() in NUMBERS or before and {run, run.lower()} & KNOWN
    unit = before and run.lower() in PRODUCTS and before[-1][-1] in DIGITS
    if in_text or known or spaced and before and (unit or len(run) > 3 or before[-1][0] == "'"):
        return ["'" + run]
    return list(run)


def balance(token: str, stack: list[str]) -> str:
    """Push or pop a bracket; a bar becomes the left or the right one."""
    if token == "|":
        token = r"\rvert" if stack and stack[-1] == r"\lvert" else r"\lvert"
    if is_opening(token):
        stack.append(token)
    elif is_closing(token):
        opening = stack.pop() if stack else ""
        if token not in PARTNERS.get(opening, (opening.replace("begin", "end"),)):
            raise Unreadable("brackets do not match")
    return token


def is_opening(token: str) -> bool:
    r"""( [ { \{ ... or the beginning of a matrix."""
    return token in PARTNERS or token.startswith(r"\begin")


def is_closing(token: str) -> bool:
    r""") ] } \} ... or the end of a matrix."""
    return token in CLOSING or token.startswith(r"\end")


# ------------------------------------ statements: lists, relations, intervals ------------------------------------


def split(tokens: Tokens | list[str], separators: set[str]) -> tuple[list[list[str]], list[str]]:
    """The pieces between the separators that stand outside all brackets, and those separators."""
    pieces, found, depth = [[]], [], 0
    for token in tokens:
        depth += is_opening(token) - is_closing(token)
        if depth == 0 and token in separators:
            pieces.append([])
            found.append(token)
        else:
            pieces[-1].append(token)
    return pieces, found


def is_enclosed(tokens: list[str], opening: str, closing: str) -> bool:
    """Is the whole of tokens one pair of brackets of these kinds?"""
    if len(tokens) < 2 or tokens[0] not in opening.split() or tokens[-1] not in closing.split():
        return False
    depths = [0]
    for token in tokens:
        depths.append(depths[-1] + is_opening(token) - is_closing(token))
    return 0 not in depths[1:-1]


def read_statement(tokens: list[str]):
    """One value or several; of a system, its rows."""
    return read_list(read_rows(tokens) or tokens)


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


def read_list(tokens: list[str]):
    """One value, or a Bag of several: "12 and 14", "1, -2", "x = 3 or x = 4", "1 \\pm \\sqrt 2"; or sets joined."""
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
    several = len(letters) > 1 and len(letters & set("xyz")) < 2
    one = letters and (value.has(sympy.functions.elementary.trigonometric.TrigonometricFunction)
                       or CALL.search("".join(tokens)))  # fmt: skip
    return value, named or several or bool(one)


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
        rest = deque(tokens)
        value = read_sum(rest)
        if rest:
            raise Unreadable(f"what is {rest[0]}?")
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


# -------------------------------------- expressions: tokens to sympy objects --------------------------------------


def limited(value):
    """The value, if it is finite where it is a number and within MAX_BITS."""
    if isinstance(value, sympy.MatrixBase):
        return value
    if value.is_Rational and max(abs(value.p), value.q).bit_length() > MAX_BITS:
        raise Unreadable("a number with too many digits")
    if value.has(sympy.nan, sympy.zoo):
        raise Unreadable("undefined")
    return value


def power(base, exponent):
    """base ** exponent, refused before it is computed where it, or its value at some point, would be large."""
    if isinstance(base, sympy.MatrixBase) or isinstance(exponent, sympy.MatrixBase):
        raise Unreadable("a matrix as a power")
    if exponent.is_Rational and exponent.q % 2 and exponent.q > 1 and is_negative(base):
        return (-1) ** exponent.p * power(-base, exponent)
    if not exponent.is_number:
        small = not any(inner.exp.free_symbols for inner in exponent.atoms(sympy.Pow, sympy.exp))  # no towers
    elif base.is_Rational:
        small = sympy.N(abs(exponent), 5) * max(abs(base.p), base.q).bit_length() <= MAX_BITS
    else:
        small = sympy.N(abs(exponent), 5) * degree(base) <= MAX_EXPONENT
    if not small:
        raise Unreadable("too large a power")
    return limited(base**exponent)


def is_negative(value) -> bool:
    """Of -8, and of one of x - 1 and 1 - x: their odd roots are real ones, that of -8 is -2."""
    return bool(value.is_negative or value.free_symbols and not value.has(sympy.I) and value.could_extract_minus_sign())


def degree(value) -> sympy.Expr:
    """The largest number among the exponents, those of powers of powers multiplied."""
    if isinstance(value, sympy.Pow) and value.exp.is_number:
        return degree(value.base) * max(sympy.N(abs(value.exp), 5), 1)
    return max(map(degree, value.args), default=sympy.Integer(1))


def factorial(value):
    """value!, of a small natural number or of letters."""
    if value.is_number and not (value.is_Integer and 0 <= value <= MAX_FACTORIAL):
        raise Unreadable("too large a factorial")
    return sympy.factorial(value)


def read_sum(tokens: Tokens):
    """Terms with + and - between them; takes what it reads from the left of tokens, as all functions below."""
    total = read_product(tokens)
    while tokens and tokens[0] in ("+", "-"):
        sign = 1 if tokens.popleft() == "+" else -1
        total = limited(total + sign * read_product(tokens))
    if tokens and tokens[0] in (r"\over", r"\choose"):  # of all that stands in the group before and after it
        return limited(total / read_sum(tokens)) if tokens.popleft() == r"\over" else binomial(total, read_sum(tokens))
    return total


def read_product(tokens: Tokens):
    """Factors with a dot, a slash or nothing between them, from left to right."""
    product = read_signed(tokens)
    while tokens and tokens[0] not in ("+", "-", ",", "&", r"\\", r"\over", r"\choose") and not is_closing(tokens[0]):
        sign = tokens.popleft() if tokens[0] in ("/", r"\cdot") else ""
        factor = read_signed(tokens) if sign else read_power(tokens)
        product = limited(product / factor if sign == "/" else product * factor)
    return product


def read_signed(tokens: Tokens):
    """A power with any number of signs before it."""
    if tokens[0] in ("+", "-"):
        return (1 if tokens.popleft() == "+" else -1) * read_signed(tokens)
    return read_power(tokens)


def read_power(tokens: Tokens):
    """An atom with what may follow it: a power, a factorial, a degree sign."""
    value = read_atom(tokens)
    while tokens and tokens[0] in ("^", "!", "°"):
        sign = tokens.popleft()
        if sign == "°":
            value = value * CONSTANTS["°"]
        elif sign == "!":
            value = factorial(value)
        else:
            value = power(value, read_script(tokens))
        if tokens and tokens[0] == sign:
            raise Unreadable("a double power or factorial")
    return value


def read_script(tokens: Tokens):
    """What stands after ^ or _: a group, a letter or, unlike in TeX, a whole numeral (x^12), maybe with a sign."""
    if tokens[0] == "-":
        tokens.popleft()
        return -read_script(tokens)
    if tokens[0][0] in DIGITS:
        return number(tokens.popleft())
    if tokens[0].isalpha():  # not read_letter: what follows is no part of the script (log_e 2)
        letter = tokens.popleft()
        return CONSTANTS.get(letter, sympy.Symbol(letter))
    return read_atom(tokens)


def read_argument(tokens: Tokens):
    r"""An argument as TeX takes it: a group or one token, of a numeral one digit (\frac43)."""
    token = tokens[0]
    if token.isdigit() and len(token) > 1:
        tokens[0] = token[1:]
        return sympy.Integer(token[0])
    return number(tokens.popleft()) if token.isdigit() else read_atom(tokens)


def read_group(tokens: Tokens, closing: str):
    """A sum and the bracket that closes it."""
    value = read_sum(tokens)
    if tokens.popleft() != closing:
        raise Unreadable(f"no {closing}")
    return value


def read_atom(tokens: Tokens):
    """A numeral, letter, bracket, root, function, matrix, ..."""
    token = tokens.popleft()
    if token[0] in DIGITS:
        return read_number(token, tokens)
    if token in ATOMS:
        return ATOMS[token](tokens)
    if token[1:] in FUNCTIONS and token[0] == "\\":
        return read_function(token[1:], tokens)
    return read_matrix(token, tokens) if token.startswith(r"\begin") else read_letter(token, tokens)


ATOMS = {
    "(": lambda tokens: read_group(tokens, ")"),
    "[": lambda tokens: read_group(tokens, "]"),
    "{": lambda tokens: read_group(tokens, "}"),
    r"\lvert": lambda tokens: absolute(read_group(tokens, r"\rvert")),
    r"\lfloor": lambda tokens: sympy.floor(read_group(tokens, r"\rfloor")),
    r"\lceil": lambda tokens: sympy.ceiling(read_group(tokens, r"\rceil")),
    r"\frac": lambda tokens: limited(read_argument(tokens) / read_argument(tokens)),
    r"\binom": lambda tokens: binomial(read_argument(tokens), read_argument(tokens)),
    r"\sqrt": lambda tokens: read_root(tokens),
}


def number(numeral: str) -> sympy.Rational:
    """The exact value of digits, maybe with a point and a power of ten."""
    mantissa, _, exponent = numeral.lower().partition("e")
    if len(exponent) > 4 or abs(int(exponent or 0)) > MAX_EXPONENT:
        raise Unreadable("too large a power of ten")
    return limited(sympy.Rational(Fraction(mantissa) * Fraction(10) ** int(exponent or 0)))


def read_number(numeral: str, tokens: Tokens):
    r"""A number: 0.5, a mixed number (1\frac45, 1 4/5), a repeating decimal (0.1\overline{6})."""
    value = number("0." if numeral == "." else numeral)
    if "." in numeral and tokens and tokens[0] == r"\overline":
        _, opening, digits, closing = (tokens.popleft() for _ in range(4))
        if opening + closing != "{}":
            raise Unreadable("what repeats?")
        return value + number(digits) / (10 ** len(numeral.partition(".")[2]) * (10 ** len(digits) - 1))
    if numeral.isdigit() and (fraction := MIXED_FRACTION.match(" ".join(list(tokens)[:9]))):
        top, bottom = (int(fraction[name] or fraction[name + "2"]) for name in ("top", "bottom"))
        for _ in fraction[0].split():
            tokens.popleft()
        if top >= bottom:
            raise Unreadable("a mixed number or a product?")
        value += sympy.Rational(top, bottom)
    if tokens and tokens[0][0] in DIGITS:
        raise Unreadable("two numbers side by side")
    return value


def read_root(tokens: Tokens):
    r"""\sqrt{5}, \sqrt5, \sqrt[3]{5}, but not \sqrt13, which TeX prints as a root of 1."""
    degree = sympy.Integer(2)
    if tokens[0] == "[":
        tokens.popleft()
        degree = read_group(tokens, "]")
    if tokens[0].isdigit() and len(tokens[0]) > 1:
        raise Unreadable("how far does the root go?")
    return power(read_argument(tokens), 1 / degree)


def binomial(n, k):
    """n over k, of small numbers or of letters."""
    if k.is_Integer and 0 <= k <= 20 and degree(n) * k <= MAX_EXPONENT:
        return limited(sympy.prod([n - i for i in range(k)]) / sympy.factorial(k))
    if not (n.free_symbols or k.free_symbols or n.is_Integer and k.is_Integer and 0 <= k <= n <= MAX_FACTORIAL):
        raise Unreadable("too large a binomial")
    return sympy.binomial(n, k)


def absolute(value):
    """|x|, or the determinant of a matrix."""
    return determinant(value) if isinstance(value, sympy.MatrixBase) else sympy.Abs(value)


def determinant(matrix):
    """Of a small square matrix."""
    if matrix.rows != matrix.cols or matrix.rows > 5:
        raise Unreadable("too large a determinant, or none")
    return limited(sympy.expand(matrix.det(method="berkowitz")))


def read_function(name: str, tokens: Tokens):
    r"""\sin x, \sin^2 x, \sin^{-1} x, \log_2 8, \cos 2\pi: without brackets the argument is a product of factors."""
    base = exponent = None
    while tokens and tokens[0] in ("_", "^"):
        if tokens.popleft() == "_":
            base = read_script(tokens)
        else:
            exponent = read_script(tokens)
    bracketed = tokens[0] in ("(", "{", "[")
    argument = read_atom(tokens) if bracketed else read_signed(tokens)
    while not bracketed and tokens and (tokens[0].isalnum() or tokens[0] in GREEK | {r"\pi", r"\frac", r"\sqrt"}):
        argument = limited(argument * read_power(tokens))
    argument = argument.subs(CONSTANTS["°"], sympy.pi / 180)
    if exponent == -1 and "arc" + name in FUNCTIONS:
        return limited(FUNCTIONS["arc" + name](argument))
    value = sympy.log(argument, base) if base is not None and name == "log" else FUNCTIONS[name](argument)
    return limited(value) if exponent is None else power(value, exponent)


def read_matrix(begin: str, tokens: Tokens) -> sympy.ImmutableMatrix:
    r"""The rows up to \end{...}, cells apart by &, rows by \\."""
    if begin[7:-1] not in ("vmatrix", "matrix", "pmatrix", "bmatrix", "smallmatrix", "array"):
        raise Unreadable(begin)
    rows, token = [[]], "&"
    while not token.startswith(r"\end"):
        rows[-1].append(read_sum(tokens))
        token = tokens.popleft()
        if token == r"\\" and tokens[0].startswith(r"\end"):
            token = tokens.popleft()
        elif token == r"\\":
            rows.append([])
        elif token != "&" and not token.startswith(r"\end"):
            raise Unreadable("what stands between two cells?")
    matrix = sympy.ImmutableMatrix(rows)
    return determinant(matrix) if begin == r"\begin{vmatrix}" else matrix


def read_letter(token: str, tokens: Tokens):
    """A constant or a letter, with its index if it has one."""
    if not (token.isalpha() and len(token) == 1 or token in GREEK or token in CONSTANTS):
        raise Unreadable(f"what is {token}?")
    if tokens and tokens[0] == "_":
        tokens.popleft()
        return sympy.Symbol(f"{token}_{read_script(tokens)}")
    if tokens and tokens[0][0] in DIGITS and token.isalpha() and token != "i":
        raise Unreadable("x2 may be an index, a power or a product")
    return CONSTANTS.get(token, sympy.Symbol(token))


# --------------------------------------------------- the worker ---------------------------------------------------


def serve():
    """Answer each line [answer, gold] on stdin with "equal", "different", "unreadable" or "failed" on stdout."""
    with contextlib.suppress(ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    compare(r"\sqrt{x^2} + \sin 1", "|x|")  # what sympy loads late
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
