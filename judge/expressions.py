r"""Tokens to a sympy expression, by a function for each kind of part, under limits that are checked first:

    read_expression -> read_sum -> read_product -> read_power -> read_atom -> read_number, read_function, ...

Each takes what it reads from the left of tokens.  Nothing here is ever evaluated as code.
"""

from collections import deque
from fractions import Fraction

import sympy

from judge.tokens import DIGITS, FUNCTION_NAMES, Tokens, Unreadable, nesting

MAX_BITS = 8192  # of any number's numerator or denominator
MAX_EXPONENT = 1000  # of anything that is not a rational number, powers of powers multiplied
MAX_FACTORIAL = 500

OTHERS = {
    "ln": sympy.log, "log": lambda x: sympy.log(x, 10), "lg": lambda x: sympy.log(x, 10),
    "exp": lambda x: power(sympy.E, x), "cis": lambda x: sympy.cos(x) + sympy.I * sympy.sin(x),
}  # fmt: skip
FUNCTIONS = {name: OTHERS.get(name) or getattr(sympy, name.replace("arc", "a")) for name in FUNCTION_NAMES}
CONSTANTS = {"e": sympy.E, "i": sympy.I, r"\pi": sympy.pi, r"\infty": sympy.oo, "°": sympy.Symbol("°")}
GREEK = {"\\" + letter for letter in """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda
mu nu xi rho sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell""".split()}


def read_expression(tokens: list[str]):
    """The value of all the tokens."""
    rest = deque(tokens)
    value = read_sum(rest)
    if rest:
        raise Unreadable(f"what is {rest[0]}?")
    return value


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
    while tokens and tokens[0] not in ("+", "-", ",", "&", r"\\", r"\over", r"\choose") and nesting(tokens[0]) >= 0:
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
    r"""A number: 0.5, or a repeating decimal (0.1\overline{6})."""
    value = number("0." if numeral == "." else numeral)
    if "." in numeral and tokens and tokens[0] == r"\overline":
        _, opening, digits, closing = (tokens.popleft() for _ in range(4))
        if opening + closing != "{}":
            raise Unreadable("what repeats?")
        return value + number(digits) / (10 ** len(numeral.partition(".")[2]) * (10 ** len(digits) - 1))
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
    if not (n.free_symbols or k.free_symbols or n.is_Integer and k.is_Integer and 0 <= k <= n <= MAX_FACTORIAL):
        raise Unreadable("too large a binomial")
    return sympy.binomial(n, k)


def absolute(value):
    """|x|, or the determinant of a small matrix."""
    if not isinstance(value, sympy.MatrixBase):
        return sympy.Abs(value)
    if value.rows != value.cols or value.rows > 5:
        raise Unreadable("too large a determinant, or none")
    return limited(sympy.expand(value.det(method="berkowitz")))


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
    return absolute(matrix) if begin == r"\begin{vmatrix}" else matrix


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
