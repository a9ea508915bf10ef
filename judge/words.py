r"""What words say in an answer: numbers (two and a half), scales (2.5 million), fractions (3 eighths), units, the rest.

A word is a token with a leading ' (see `latex.tokenise`).  `say` turns the words that are numerals, signs or sets into
such tokens; `read_units` reads what is left behind a value.
"""

import re

ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = """third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth
sixteenth seventeenth eighteenth nineteenth twentieth""".split()

SCALES = {
    "tens": 10, "dozen": 12, "dozens": 12, "hundred": 100, "thousand": 10**3, "lakh": 10**5, "million": 10**6,
    "mn": 10**6, "crore": 10**7, "billion": 10**9, "bn": 10**9, "trillion": 10**12, "tn": 10**12,
    "quadrillion": 10**15, "gross": 144, "grand": 10**3,
}  # fmt: skip
SCALES |= {scale + "s": SCALES[scale] for scale in "hundred thousand lakh million crore billion trillion".split()}
NUMBERS = {word: number for number, word in enumerate(ONES)} | {word: 10 * i for i, word in enumerate(TENS, 2)}
HAN_NUMBERS = dict(zip("零〇一二两三四五六七八九", (0, 0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9)))
HAN_SCALES = {"十": 10, "百": 100, "千": 10**3, "万": 10**4, "萬": 10**4, "亿": 10**8}
FRACTIONS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4, "hundredth": 100, "hundredths": 100,
             "thousandth": 1000, "thousandths": 1000, "millionth": 10**6, "millionths": 10**6}  # fmt: skip
FRACTIONS |= {word + plural: number for number, word in enumerate(ORDINALS, 3) for plural in ("", "s")}

# A unit's first spelling is its name.  Single letters are units in text only, or in a bare "540 m" (spelling.py).
UNITS = {word: words.split()[0] for words in """
dollar dollars usd|cent cents|euro euros eur|sterling gbp|rupee rupees rs inr|yen jpy|yuan rmb cny 元|won|ruble rubles
peso pesos|%|permille|radian radians rad|degree degrees|unit units 单位
inch inches in|foot feet ft|yard yards yd yds|mile miles mi|acre acres|hectare hectares ha
meter meters metre metres m metro metros mètre mètres м 米 公尺|millimeter millimeters millimetre millimetres mm 毫米
centimeter centimeters centimetre centimetres cm centímetro centímetros см 厘米 公分|decimeter decimeters dm 分米
kilometer kilometers kilometre kilometres km kms км 千米 公里
gram grams g 克|milligram milligrams mg 毫克|kilogram kilograms kilo kilos kg kgs кг 千克 公斤|ton tons|tonne tonnes 吨
pound pounds lb lbs|ounce ounces oz|liter liters litre litres L l litro litros 升|milliliter milliliters ml mL cc 毫升
gallon gallons gal|quart quarts qt|pint pints pt|cup cups|tablespoon tablespoons tbsp|teaspoon teaspoons tsp
second seconds sec secs s segundo segundos Sekunden 秒|millisecond milliseconds ms
minute minutes min mins minuto minutos Minuten 分钟|hour hours hr hrs h hora horas heure heures Stunde Stunden 小时
day days día días jour jours Tag Tage 天
week weeks 周|month months 个月|year years yr yrs año años Jahr Jahre ans 年
newton newtons N|joule joules J|kilojoule kilojoules kJ|watt watts W|kilowatt kilowatts kW|volt volts V
ampere amperes amp amps|ohm ohms|pascal pascals Pa|hertz Hz|kelvin kelvins|mole moles mol|calorie calories cal
kilocalorie kilocalories kcal|byte bytes|bit bits
""".replace("\n", "|").split("|") if words for word in words.split()}  # fmt: skip
RATES = {"mph": "mile hour", "kph": "kilometer hour", "kmh": "kilometer hour", "kmph": "kilometer hour",
         "mpg": "mile gallon", "fps": "foot second", "mps": "meter second"}  # fmt: skip
MONEY = {"dollar", "cent", "euro", "sterling", "rupee", "yen", "yuan", "won", "ruble", "peso"}
SILENT = set("of a an the in all total altogether each every different distinct possible exactly only and th".split())
# Words that change what stands before them: they count, where others may be missing on one side.
CHANGES = set("""or not no non more less fewer greater least most than about approximately except mod modulo base over
from to times fold if below above under beyond beneath before after negative positive opposite where when for factorial
root minus plus squared cubed doubled halved tripled twice thrice double triple score am pm ad bc bce ce ago later
earlier late early north south east west northeast northwest southeast southwest northern southern eastern western
up down upward upwards downward downwards left right forward forwards backward backwards inward outward clockwise
counterclockwise anticlockwise increase increased decrease decreased reduction growth gain loss profit deficit surplus
rise fall drop short debt owed owing overdrawn percentage matrix underground underwater""".split())
CHANGES |= {*SCALES, *FRACTIONS, *NUMBERS}
PRODUCTS = set("ha ms rs pt qt pa dm hz kw kj am pm bn mn tn".split())  # units behind "5 ", else products of letters
KNOWN = {"per", "of", "pct", "mod", "sq", "cu", *(SCALES | FRACTIONS | UNITS | RATES).keys()} - PRODUCTS


# ------------------------------------------------- words to numerals -------------------------------------------------

WORD = "|".join(sorted([*NUMBERS, *SCALES], key=len, reverse=True))
RUN = re.compile(
    r"(?:^|(?<=[-=,(] )|(?<='and )|(?<='or )|(?<='minus )|(?<='negative ))"
    rf"'(?:{WORD})(?:(?: -| 'and|(?:(?<=thousand)|(?<=[mbr]illion)) ,(?: 'and)?)? '(?:{WORD}))*(?!\S)", re.IGNORECASE
)  # fmt: skip
TWICE = re.compile(rf"(?<=[0-9]) \( ('(?:{WORD})(?:(?: -| 'and)? '(?:{WORD}))*) \)(?!\S)", re.IGNORECASE)  # 5 (five)
TEN_AND_OR_ANDS = re.compile(r"'(?:\w+ty|\w+teen|ten|eleven|twelve|zero) 'and|(?:'and.*){2}")  # twenty and one: two


def add_up(pieces: list[tuple[int, bool]]) -> int | None:
    """(2, number), (1000, scale), (3, number), (100, scale) -> 2300; None for what is no number, as one two.

    A scale multiplies what is smaller than it before it; what is added must be smaller than the last digit before it.
    """
    parts: list[int] = []
    for value, is_scale in pieces:
        if is_scale:
            smaller = 0
            while parts and parts[-1] < value:
                smaller += parts.pop()
            value *= smaller or 1
        if parts and (parts[-1] == 0 or parts[-1] % 10 ** len(str(value))):
            return None
        parts.append(value)
    return sum(parts) if pieces else None


def spelled(run: str) -> str:
    """The numeral of a run of number words: 'twenty - 'five is 25; the run itself where it is none."""
    pieces = [(SCALES[word], True) if word in SCALES else (NUMBERS[word], False)
              for word in re.findall(r"'((?!and\b)[a-z]+)", run.lower())]  # fmt: skip
    number = add_up(pieces)
    if number is not None and not TEN_AND_OR_ANDS.search(run.lower()):
        return str(number)
    parts = re.split(r" ('and|,) ", run)
    return run if len(parts) == 1 else " ".join(part if part in ("'and", ",") else spelled(part) for part in parts)


def han_number(run: re.Match) -> str:
    """四十二 is 42; the run itself where it is no number."""
    pieces = [(HAN_SCALES[sign], True) if sign in HAN_SCALES else (HAN_NUMBERS[sign], False)
              for sign in run[0] if sign not in "零〇" or len(run[0]) == 1]  # fmt: skip
    number = add_up(pieces)
    return run[0] if number is None else str(number)


ALL = r"(?:'the 'set 'of )?'(?:all|any|every)(?: 'the)?"
REAL = r"'reals?(?: 'numbers?)?(?: [a-z](?!\S))?"
RAYS = {"positive": "( 0 , \\infty )", "nonnegative": "[ 0 , \\infty )", "negative": "( - \\infty , 0 )",
        "nonpositive": "( - \\infty , 0 ]", "nonzero": "( ( - \\infty , 0 ) \\cup ( 0 , \\infty ) )"}  # fmt: skip
FRACTION, SCALE = ("|".join(sorted(table, key=len, reverse=True)) for table in (FRACTIONS, SCALES))
PHRASES = [(re.compile(pattern, re.IGNORECASE), replacement) for pattern, replacement in [
    # two and a half, 2 and 3 quarters, a half, a million; 2.5 million, 3 eighths; negative 5
    (rf"(?<!\S)([0-9]+) 'and (?:'?an? |([0-9]+) (?:- )?)'({FRACTION})(?!\S)",
     lambda m: f"( {m[1]} + {m[2] or 1} / {FRACTIONS[m[3].lower()]} )"),
    (rf"^(?:'?an? )?'(half|quarter)(?: 'of)? '?an? '({SCALE})(?!\S)",
     lambda m: f"( {SCALES[m[2].lower()]} / {FRACTIONS[m[1].lower()]} )"),
    (rf"^(?:'?an? )?'half(?!\S)|^'?an? '({FRACTION})(?!\S)",
     lambda m: f"( 1 / {FRACTIONS[(m[1] or 'half').lower()]} )"),
    (rf"^'?an? '({SCALE})(?!\S)", lambda m: str(SCALES[m[1].lower()])),
    (rf"(?<=[0-9)}}]) '({SCALE})(?!\S)", lambda m: rf" \cdot {SCALES[m[1].lower()]}"),
    (rf"(?<=[0-9)}}])(?: -)? '({FRACTION})(?!\S)", lambda m: f" / {FRACTIONS[m[1].lower()]}"),
    (r"(?<!\S)'(?:negative|minus) (?=[0-9(\\])", "- "),
    # 1 hour 30 minutes
    (r"(?<=[0-9] )('\w+) (?=[0-9.]+ '\w)", r"\1 'and "),
    # sets in words
    (rf"{ALL} '({'|'.join(RAYS)}) {REAL}", lambda m: RAYS[m[1].lower()]),
    (rf"{ALL} {REAL} (?:'such 'that|'for 'which|'with|'where) ", ""),
    (rf"{ALL} {REAL} (?:'strictly )?'(greater|larger|more|less|smaller) 'than( 'or 'equal 'to)?",
     lambda m: "x " + (r"\le \ge" if m[2] else "< >").split()[m[1].lower() not in ("less", "smaller")]),
    (rf"{ALL} {REAL}|^{REAL}$", "( - \\\\infty , \\\\infty )"),
    (r"'(?:all|any|every) (?:'the )?'integers?", r"\\mathbb { Z }"),
    (r"(?<=\)) (?:, )?'(?:except|excluding)(?: 'for)?(?: '?[a-z] =)? (.+)$", r" \\setminus \\{ \1 \\}"),
    (r"^(?:'the )?'empty 'set$|^'no (?:'real )?'(?:solutions?|roots?)$", r"\\emptyset"),
    (r"(?<!\S)([0-9]+) 'choose ([0-9]+)(?!\S)", r"\\binom { \1 } { \2 }"),
    # 3 out of 5; 3 to 5 is 3 : 5; (mod 7)
    (r"(?<!\S)([0-9]+) 'out 'of ([0-9]+)(?!\S)", r"\1 / \2"),
    (r"(?<=[0-9]) 'to (?=[0-9])", " : "),
    (r"(?:\( )?(?:'mod(?:ulo)?|\\mod|\\bmod|\\pmod) (?:\{ ([0-9]+|[a-z]) \}|([0-9]+|[a-z]))(?: \))?", r"\\pmod \1\2"),
]]  # fmt: skip


def say(text: str) -> str:
    """Tokens, with a space between them, in which the words that are numerals, signs or sets are such tokens."""
    if "'" not in text and "mod" not in text:
        return text
    text = RUN.sub(lambda run: spelled(run[0]), TWICE.sub(r" 'or \1", text))
    for pattern, replacement in PHRASES:
        text = pattern.sub(replacement, text)
    return text


# ------------------------------------------------------ units ------------------------------------------------------

UNIT_TOKEN = re.compile(r"'(\S+)|(/)|\^ (?:\{ )?(- )?([1-9])(?: \})?|(%)|\\cdot")


def read_units(tail: str) -> tuple[tuple, tuple]:
    """The units behind a value with their powers, and the other words: 'miles / 'hour: ((hour, -1), (mile, 1)), ()."""
    units, words, last, sign, power = {}, [], "", 1, 1
    for word, slash, minus, exponent, percent in UNIT_TOKEN.findall(tail):
        lower = word.lower()
        unit = "%" if percent else UNITS.get(word, UNITS.get(lower))
        if slash or lower == "per":
            sign = -1
        elif lower in ("square", "sq", "cubic", "cu"):
            power = 2 if lower[0] == "s" else 3
            words.append("square" if power == 2 else "cubic")
        elif exponent or (lower in ("squared", "cubed") and last):
            factor = int(exponent) if exponent else 2 if lower == "squared" else 3
            units[last] = units.get(last, 0) * factor * (-1 if minus else 1)
        elif unit or lower in RATES:
            if power != 1:
                words.pop()
            over, *under = RATES.get(lower, unit).split()
            units[over] = units.get(over, 0) + sign * power
            units |= {name: units.get(name, 0) - 1 for name in under}
            last, power = over, 1
        elif lower not in SILENT:
            words.append(lower.removesuffix("s"))
    return tuple(sorted(units.items())), tuple(words)


def changes(words: tuple[str, ...]) -> bool:
    """Do words behind a value change it?  8 doubled, 2 miles north, 3 PM."""
    return any(word in CHANGES or word + "s" in CHANGES for word in words) or words[:1] and words[0].endswith("ed")
