r"""A text to tokens: `tokens_of(r"\frac12 cm")` is \frac { 1 } { 2 } 'cm.

A token is a numeral, a letter, a command, a sign, or a word with a leading '.
"""

import re
from collections import deque

from judge.spelling import clean
from judge.words import KNOWN, NUMBERS, PRODUCTS, UNITS, say

MAX_LENGTH = 1000  # characters of an answer
MAX_TOKENS = 500
MAX_DEPTH = 20  # brackets in brackets
MAX_FUNCTIONS = 20

DIGITS = tuple("0123456789.")
Tokens = deque[str]


class Unreadable(ValueError):
    """The text is no answer that this reader knows, or lies beyond its limits."""


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
FUNCTION_NAMES = set("""sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh ln log lg exp
cis""".split())


def tokens_of(text: str) -> list[str]:
    """The tokens of an answer, with its number words read."""
    if len(text) > MAX_LENGTH:
        raise Unreadable("too long")
    return say(" ".join(tokenise(clean(text)))).split()


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
        elif token[0] == "\\" and token[1:-1] in FUNCTION_NAMES and token[1:] not in FUNCTION_NAMES:  # \sinx
            tokens.extend((token[:-1], token[-1]))
        elif token:
            tokens.append(balance(token, stack))
        if len(tokens) > MAX_TOKENS or len(stack) > MAX_DEPTH:
            raise Unreadable("too many tokens, or too deep")
    if stack or sum(token[1:] in FUNCTION_NAMES for token in tokens) > MAX_FUNCTIONS:
        raise Unreadable("a bracket is not closed, or sine of sine of sine ...")
    return tokens


def split_letters(run: str, in_text: bool, before: Tokens, spaced: bool) -> list[str]:
    """Is a run of letters a name that we know, a word, or a product of letters?"""
    if run.lower() in WORDS:
        return [WORDS[run.lower()]]
    if run in FUNCTION_NAMES:
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
    if nesting(token) > 0:
        stack.append(token)
    elif nesting(token) < 0:
        opening = stack.pop() if stack else ""
        if token not in PARTNERS.get(opening, (opening.replace("begin", "end"),)):
            raise Unreadable("brackets do not match")
    return token


def nesting(token: str) -> int:
    """1 where a bracket or a matrix begins, -1 where one ends, else 0."""
    return (token in PARTNERS or token.startswith(r"\begin")) - (token in CLOSING or token.startswith(r"\end"))


def split(tokens: Tokens | list[str], separators: set[str]) -> tuple[list[list[str]], list[str]]:
    """The pieces between the separators that stand outside all brackets, and those separators."""
    pieces, found, depth = [[]], [], 0
    for token in tokens:
        depth += nesting(token)
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
        depths.append(depths[-1] + nesting(token))
    return 0 not in depths[1:-1]
