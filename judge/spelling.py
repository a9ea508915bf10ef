r"""One spelling for what LaTeX and Unicode spell in several ways: `clean(r"90^{\circ}, 1{,}000")` is `90°, 1000`."""

import re
from unicodedata import category, decimal, name, normalize

from judge.words import UNITS

UNICODE = {
    **dict.fromkeys("−–—‐‑﹣负", "-"), **dict.fromkeys("×·⋅∙∗•", r"\cdot "), **dict.fromkeys("≤⩽", r"\le "),
    **dict.fromkeys("≥⩾", r"\ge "), **dict.fromkeys("≈≃≅", r"\approx "), **dict.fromkeys("º˚", "°"),
    **dict.fromkeys("÷∕⁄", "/"), "∞": r"\infty ", "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∈": r"\in ", "≠": r"\ne ",
    "∩": r"\cap ", "∖": r"\setminus ", "≡": r"\equiv ", "∣": r"\mid ", **dict.fromkeys("…⋯", r"\dots "),
    "∛": r"\sqrt[3]", "∠": r"\angle ", "∅": r"\emptyset ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "£": r"\pounds ",
    "¢": r"\text{ cents}", "‰": r"\text{ permille}", "约": r"\approx ", "′": "'", "″": "''", "∀": r"\forall ",
    **{letter: rf"\mathbb{{{normalize('NFKC', letter)}}}" for letter in "ℝℤℕℚℂ"},
    **dict.fromkeys("、；", ","), "٫": ".", "٬": ",", "和": r"\text{ and }", "或": r"\text{ or }",
    **dict.fromkeys("\"“”\u200b\ufeff。", ""), **dict.fromkeys("\xa0\u202f\u2009", " "),
}  # fmt: skip


def compiled(*rules: tuple) -> list[tuple]:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


SIGNS = compiled(  # one sign for one thing: x², 52₈, ½, m², the table above, the numerals of other scripts
    (r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda run: "^{" + normalize("NFKC", run[0]) + "}"),
    (r"[₀₁₂₃₄₅₆₇₈₉]+", lambda run: "_{" + normalize("NFKC", run[0]) + "}"),
    (r"√\s*([0-9]*)", lambda root: rf"\sqrt{{{root[1]}}}" if root[1] else r"\sqrt "),
    (r"[¼½¾⅐-⅞]", lambda sign: r"\frac{" + normalize("NFKC", sign[0]).replace("⁄", "}{") + "}"),
    ("[" + "".join(UNICODE) + "]", lambda sign: UNICODE[sign[0]]),
    (r"平方", " square "),
    (r"(?<=[0-9])\s*([十百千万萬亿億천만억])(?![克米])", r"\\text{ \1 }"),
)

ONE_UNIT = "|".join(sorted((re.escape(unit) for unit in UNITS if unit.isascii()), key=len, reverse=True))
BARE = rf"(?:{ONE_UNIT})(?![a-zA-Z])(?:\s*\^\s*(?:[1-9]|\{{-?[1-9]\}}))?"
IN_TEXT = r"\\(?:text|mathrm)\s*\{([^{}]*)\}"
ABOUT = "(?:approx(?:imately)?|about|roughly|around)"
REALS = r"(?:\\math(?:bb|bf)\s*(?:\{\s*R\s*\}|R)|\\(?:R|reals|Reals)(?![a-zA-Z]))"



MONEY_SCALES = {"K": "thousand", "M": "million", "B": "billion"}  # $80k

REWRITES = compiled(
    # what only changes the looks
    (r"\\left\s*\\(?:\{|lbrace(?![a-z]))\s*(\\begin\{(\w+)\}.*?\\end\{\2\})\s*\\right\s*\.", r"\1"),
    (r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*(?:\.(?![0-9]))?", " "),
    (r"\\(?:displaystyle|textstyle|scriptstyle|limits|boxed|fbox|underline|boldsymbol|bm|pmb)(?![a-zA-Z])", " "),
    (r"\\(?:q?quad|normalsize|small|[lL]arge|LARGE|[hH]uge|bf|rm|it)(?![a-zA-Z])", " "),
    (r"\\(?:(?:text)?color(?:box)?(?:\[\w+\])?|[hv]space\*?|[hv]?phantom|tag\*?|label)\s*\{[^{}]*\}", " "),
    (r"\\(?:checkmark|blacksquare|square|Box|qed|therefore|implies|Rightarrow)(?![a-zA-Z])"
     r"|(?:\\\\|[✀-➿\U0001F300-\U0001FAFF]|\s)+$", ""),
    (r"^\s*([*_`'\"]{1,3})(.*)\1[\s.]*$", r"\2"),
    # thousands: 1{,}000, 10,\!080, 13\,535 and 13 535; 58,\,500 is as good as 58,500, but 58, 500 is a list
    (r"(?<=[0-9])(?:\{,\}(?:\\!)?|,?\s*\\!|,\\,|(?<!,)(?:\\[,;:]|\\thinspace|~))\s*(?=[0-9]{3}(?![0-9]))", ""),
    (r"(?<![0-9.])([0-9]{1,3})((?: [0-9]{3})+)(?![0-9/]|\.[0-9]*\s|\s*\\frac)",
     lambda number: number[0].replace(" ", "")),
    (r"(\\\$\s*[0-9.,]+)\s?([kKMB])(?![a-zA-Z])", lambda m: m[1] + rf"\text{{ {MONEY_SCALES[m[2].upper()]}}}"),
    (r"(?<![a-zA-Z])(?:USD(?![a-zA-Z])|(?:US|HK|NT|[ACR])\s*\\?\$(?=\s*[0-9]))", r"\\$"),
    (r"^\s*(?:Rs|INR)\b\.?\s*(?=[0-9])", r"\\text{rupee }"),
    # spacing (but not \\ and a space, which end a matrix's row), dollars and \( \) \[ \]
    (r"(?<!\\)(?:\$|\\[,;:!()\[\] ])|~", " "),
    # units in fractions and packages, 5th, a bare "540 m"
    (rf"\\frac\s*\{{\s*{IN_TEXT}\s*\}}\s*\{{\s*{IN_TEXT}\s*\}}", r"\\text{ \1/\2}"),
    (r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{([^{}]*)\}",
     r"\1\\text{ \2}"),
    (r"\\ang\s*\{([^{};]*)\}", r"\1°"),
    (r"\\num\s*\{([^{}]*)\}", r"{\1}"),
    (r"(?<![0-9.a-zA-Z])([0-9]+)\s*(?:\^\s*)?(\{\s*)?(?:\\(?:text|mathrm|textsuperscript|textrm|rm)\s*(\{\s*)?|(?<=[0-9])|"
     r"(?<=\{)|(?<=-))(?:st|nd|rd|th)(?(3)\s*\})(?(2)\s*\})(?=\s*[.}$]*\s*(?:$|\s|\\text))", r"\1\\text{ th}"),
    (rf"^(\s*[-+]?[0-9.,]*[0-9])(?:\s+|\s*(?=[a-zA-Z]+\s*/))({BARE}(?:\s*(?:/|\\cdot)\s*{BARE})?)(?=[\s.]*$)",
     r"\1\\text{ \2}"),
    # macros that have a twin, 2 x 10^3, and 4{\frac12}
    (r"\\(?:[dtc]|nice|s)frac(?![a-zA-Z])", r"\\frac"),
    (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
    (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
    (r"(?<=[0-9])\s*[xX]\s*(?=10\s*\^)", r"\\cdot "),
    (r"(?<=[0-9])\{(\\frac\s*(?:\{[0-9]+\}|[0-9])\s*(?:\{[0-9]+\}|[0-9]))\}", r"\1"),
    (r"(?<=[0-9.])\\(?:overline|bar|dot)\s*(?:\{\s*([0-9])\s*\}|([0-9]))", r"\\overline{\1\2}"),
    (r"(?<![0-9])\.(?=\\overline)", "0."),
    (r"(?<=\.)([0-9]*)\(([0-9]+)\)(?![0-9])", r"\1\\overline{\2}"),
    (r"(?<=\.)([0-9]*?)([0-9]+?)(\2{2,}|(?<=[0-9]{2})\2)(?:\.\.\.|\\[lc]?dots)", r"\1\\overline{\2}"),
    (r"\+/-", r"\\pm "),
    (r"(?<=,)\s*\.\.\.(?=\s*,|\s*$|\s*\\\})|(?<=\+)\s*\.\.\.(?=\s*\+|\s*$)", r"\\dots "),
    (r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*(?:\\circ|o)\s*\}|[°o](?![a-zA-Z]))|\\(?:text)?deg(?:ree)?(?![a-zA-Z])", "°"),
    (r"°\s*([0-9]+)\s*'(?!')(?:\s*([0-9]+)\s*'')?|°\s*([0-9]+)\s*\^\s*\{?\s*\\prime\s*\}?",
     lambda m: f" + ({m[1] or m[3]} + {m[2] or 0}/60)/60°"),
    (r"°\s*(?:\\(?:text|mathrm)\s*\{\s*C\s*\}|C(?![a-zA-Z]))", r"°\\text{ celsius}"),
    (r"°\s*(?:\\(?:text|mathrm)\s*\{\s*F\s*\}|F(?![a-zA-Z]))", r"°\\text{ fahrenheit}"),
    (REALS, r"(-\\infty,\\infty)"),
    (r"(?<=\\infty\))\s*(?:-|/|\\backslash(?![a-z]))\s*(?=\\\{)", r"\\setminus "),
    # ]2,5[ and [2,5[: brackets that look away
    (r"(?:^|(?<=[=(]|\s)|(?<=\\cup|\\cap)|(?<=\\in))\s*\](?=[^\[\]]*[,;][^\[\]]*[\[\]])", "("),
    (r"(?<![\[\]])\[(?=\s*(?:$|\\cup|\\cap|\\text|\\setminus|or(?![a-z])|and(?![a-z])|[.)}]))", ")"),
    # { x | x > 2 }
    (r"(\\\{\s*[^|:{},]*[a-zA-Z0-9]\s*(?:\\in[^|:{}]*|\\in\s*\\mathbb\s*\{\w\}\s*)?)[|:]", r"\1\\mid "),
    # an exact form (or 1.5), a rounding (about 1.4)
    (r"\(\s*(\\text\s*\{\s*)?(?:or\s|i\.?e\.?,?\s|that is,?\s|=)\s*(?(1)\}?)([^()]*?)(?(1)\}?)\s*\)",
     r"\\text{ or }\2"),
    (rf"\(\s*(?:\\text\s*\{{\s*)?(?:\\approx|{ABOUT}\.?)\s*([^()]*?)\}}?\s*\)", r"\\approx \1"),
    (rf"^\s*(?:\\text\s*\{{\s*{ABOUT}\s*\}}|{ABOUT}\b|\\approx|\\sim|~)\s*(?=[-0-9\\$])", ""),
    (r"^\s*(\\text\s*\{\s*)?(?i:exactly|only|just|precisely|a total of)\s*(?(1)\})(?=\s*[-0-9\\$])", ""),
    (r"(?i)\bp(?:er|our|or) (?:cent|ciento)\b", "percent"),
    # 3/4 (0.75)
    (r"(?<=[0-9}%])\s+\(\s*(-?[0-9.,/]+|\\frac\{\w+\}\{\w+\})\s*\)[\s.]*$", r"\\text{ or }\1"),
    # "The answer is", abbreviations (sq. in.), one final period, empty groups and lone signs in groups
    (r"^\s*(\\text\s*\{\s*)?(?:=|(?i:(?:the )?(?:final )?answer(?: is)?|therefore|thus|hence|so)(?![a-z])[\s,:]*"
     r"(?(1)\}))|(?<=\{)Answer:|\\text\{Answer:?\s*\}", ""),
    (r"(?<=[a-zA-Z])\.(?![0-9])|(?<!\.)\.(?=[\s}]*$)|\s+$", ""),
    (r"(?:\\(?:text|mathrm)\s*|(?<!\\))\{\s*([-+=<>]?)\s*\}", r"\1"),
)  # fmt: skip


def clean(text: str) -> str:
    """One spelling for what LaTeX and Unicode can spell in several ways; spacing, colours and sizes go."""
    if text.count("$") - text.count(r"\$") == 1:           # no formula's begin or end: money
        text = re.sub(r"(?<!\\)\$(?=\s?[0-9])|(?<=[0-9])\$", r"\\$", text)
    if not text.isascii():
        for pattern, replacement in SIGNS:
            text = pattern.sub(replacement, text)
        text = "".join(map(plain, normalize("NFKC", text)))
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    if "," in text and not re.search(r"[(\[]|\\\{", text):  # (1,000) is a pair, but 1,000 is a number
        text = re.sub(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])", lambda n: n[0].replace(",", ""), text)
    return text


def plain(char: str) -> str:
    r"""θ is \theta, ₹ the word rupee, ٤ is 4; other characters stay."""
    if char.isascii():
        return char
    words = name(char, "").split()
    if words[:1] == ["GREEK"] and words[2:3] == ["LETTER"]:
        return f"\\{words[-1].lower() if words[1] == 'SMALL' else words[-1].capitalize()} "
    if category(char) == "Sc":
        return rf"\text{{ {words[words.index('SIGN') - 1].lower() if 'SIGN' in words else 'currency'} }}"
    return str(decimal(char, char))
