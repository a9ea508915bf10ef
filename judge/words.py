r"""What words say in an answer: numbers (two and a half), scales (2.5 million), fractions (3 eighths), units, the rest.

A word is a token with a leading ' (see `latex.tokenise`).  `say` turns the words that are numerals, signs or sets into
such tokens; `read_units` reads what is left behind a value.

What is a unit?  A word that is known as one, here in a table, or an English noun in the plural, with an adjective, or
whatever stands behind "of" or "per": they may be missing in one answer.  Any other word may change the value, whatever
its language: both answers must have it.
"""

import re


def table(text: str) -> dict[str, str]:
    """{word: the first word of its row} of rows apart by bars."""
    return {word: row.split()[0] for row in text.replace("\n", "|").split("|") if row.strip() for word in row.split()}


ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = """third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth
sixteenth seventeenth eighteenth nineteenth twentieth hundredth thousandth millionth""".split()
NUMBERS = {word: number for number, word in enumerate(ONES)} | {word: 10 * i for i, word in enumerate(TENS, 2)}
SCALES = {word: int(number) for word, number in table("""
10 tens ten 十|12 dozen dozens dutzend|20 score scores|100 hundred hundreds hundert сотен 百 백|144 gross
1000 thousand thousands grand mil mille tausend тысяча тысячи тысяч 千 천|10000 万 萬 만|100000 lakh lakhs
1000000 million millions mn mln millionen millones миллион миллиона миллионов|10000000 crore crores|100000000 亿 億 억
1000000000 billion billions bn milliard milliards milliarde milliarden миллиард миллиарда миллиардов
1000000000000 trillion trillions tn|1000000000000000 quadrillion
""").items() if not word.isdigit()}  # fmt: skip
FRACTIONS = {word + plural: number for number, word in zip([*range(3, 21), 100, 1000, 10**6], ORDINALS, strict=True)
             for plural in ("", "s")} | {"half": 2, "halves": 2, "quarter": 4, "quarters": 4}  # fmt: skip

# A unit's first spelling is its name.  Single letters are units in text only, or in a bare "540 m" (spelling.py).
UNITS = table("""
dollar dollars usd|cent cents|euro euros eur|sterling gbp|rupee rupees rs inr|yen jpy 円|yuan rmb cny 元|won 원
peso pesos|ruble rubles рубль рубля рублей|zloty zł|franc francs chf|real reais brl
% percent percents pct pourcent prozent процент процента процентов|permille|radian radians rad|degree degrees
inch inches in|foot feet ft|yard yards yd yds|mile miles mi|acre acres|hectare hectares ha
meter meters metre metres m metro metros mètre mètres м 米 公尺|millimeter millimeters millimetre millimetres mm мм 毫米
centimeter centimeters centimetre centimetres cm centímetro centímetros см 厘米 公分|decimeter decimeters dm 分米
kilometer kilometers kilometre kilometres km kms км 千米 公里
gram grams g 克|milligram milligrams mg 毫克|kilogram kilograms kilo kilos kg kgs кг 千克 公斤|ton tons|tonne tonnes 吨
pound pounds lb lbs|ounce ounces oz|liter liters litre litres L l litro litros 升|milliliter milliliters ml mL cc 毫升
gallon gallons gal|quart quarts qt|pint pints pt|cup cups|tablespoon tablespoons tbsp|teaspoon teaspoons tsp
second seconds sec secs s segundo segundos sekunde sekunden 秒 초|millisecond milliseconds ms
minute minutes min mins minuto minutos minuten 分钟|day days d día días jour jours tag tage дня дней 天 일|week weeks 周
hour hours hr hrs h hora horas heure heures stunde stunden час часа часов 小时 時間 시간|month months 个月
year years yr yrs año años jahr jahre ans 年 년|mph|kph kmh kmph|mpg|fps|mps
newton newtons N|joule joules J|kilojoule kilojoules kJ|watt watts W|kilowatt kilowatts kW|volt volts V
ampere amperes amp amps|ohm ohms|pascal pascals Pa|hertz Hz|kelvin kelvins|celsius|fahrenheit|mole moles mol
calorie calories cal|kilocalorie kilocalories kcal|byte bytes|bit bits|unit units 单位
person people persons|child children|man men|woman women|fish|sheep|old|long|wide|tall|high|deep|discount
""")
RATES = {"mph": "mile hour", "kph": "kilometer hour", "mpg": "mile gallon", "fps": "foot second", "mps": "meter second"}
DESCRIBES = set("old long wide tall high deep discount".split())
MONEY = set("dollar cent euro sterling rupee yen yuan won ruble peso zloty franc real".split())
PARTS = {"dollar cent": 100, "euro cent": 100, "hour minute": 60, "minute second": 60, "foot inch": 12,
         "pound ounce": 16, "kilogram gram": 1000, "meter centimeter": 100, "kilometer meter": 1000}  # fmt: skip
COUNTERS = """个 個 名 人 位 只 隻 头 头 条 本 枚 张 張 块 件 台 辆 种 種 次 回 倍 道 题 组 点 分 岁 歳 家 间 层
朵 颗 粒 杯 瓶 盒 袋 箱 步 页 匹 冊 つ 通り 時 개 명 마리 권 장 대 살 번 가지""".split()
BEHIND_A_COUNTER = re.compile(  # 3个苹果, but not 5点半
    r"(?:不同|[^半多余餘以几至零〇一二两三四五六七八九十百千万亿不非错])*"
)
SILENT = set("""the a an all total altogether each every different distinct possible exactly only just precisely and th
remaining overall""".split())
PLURAL = re.compile(  # apples, but no word in -ly, no "upwards", and not the plural of most other languages
    r"(?!(?:m|b|tr)il+(?:i|o|h|j|y|a|e(?!s$))|.*(?:[aiou]s|ss|aines|iers|[hln]ares|enes|wards)$)[a-z]{3,}s"
)
NO_NOUNS = set("""times moins nichts links rechts perhaps always veces vezes yes was has does more less fewer greater
than not no or if for to from at most least about over under above below before after without minus plus""".split())
NO_NOUNS |= {*NUMBERS, *SCALES, *FRACTIONS}
PRODUCTS = set("ha ms rs pt qt pa dm hz kw kj am pm bn mn tn mil real".split())  # units behind "5 ", else products
KNOWN = {"per", "of", "for", "mod", "sq", "cu", *SCALES, *FRACTIONS, *UNITS} - PRODUCTS


# ------------------------------------------------- words to numerals -------------------------------------------------


def words(table: dict) -> str:
    return "|".join(sorted(table, key=len, reverse=True))


PARTS_OF = r"(?:\\frac \{ )?([0-9]+) (?:/|\} \{) ([0-9]+)(?: \})?"
FRACTION, SCALE = words(FRACTIONS), words(SCALES)
PHRASES = [(re.compile(pattern, re.IGNORECASE), replacement) for pattern, replacement in [
    (rf"(?<!\S)(?<!\( )'({words(TENS)})(?: -)? '({words(ONES)})(?!\S)",
     lambda m: str(NUMBERS[m[1].lower()] + NUMBERS[m[2].lower()])),
    (rf"(?<!\S)(?<!\( )'({words(NUMBERS)})(?!\S)", lambda m: str(NUMBERS[m[1].lower()])),
    # 5 and 1/2, 5\frac12 and 5 1/2; 5 feet 3 inches
    (rf"^((?:- )?)([1-9][0-9]*) 'and {PARTS_OF}(?=(?: '\S+| %)*$)", lambda m: mixed(m, m[0])),
    (rf"(?<![\^_.t] )(?<!\S)()([0-9]+) {PARTS_OF}(?!\S)(?! [0-9])", lambda m: mixed(m, "?")),
    (r"^([0-9.]+) '(\S+)(?: 'and| ,)* ([0-9.]+) '(\S+)$", lambda found: with_parts(found)),
    # two and a half, 2 and 3 quarters; 2.5 million, 3 eighths; negative 5
    (rf"(?<!\S)([0-9]+) 'and (?:'?an? |([0-9]+) (?:- )?)'({FRACTION})(?!\S)",
     lambda m: f"( {m[1]} + {m[2] or 1} / {FRACTIONS[m[3].lower()]} )"),
    (rf"(?<=[0-9)}}]) '({SCALE})(?!\S)", lambda m: rf" \cdot {SCALES[m[1].lower()]}"),
    (rf"(?<=[0-9)}}])(?: -)? '({FRACTION})(?!\S)", lambda m: f" / {FRACTIONS[m[1].lower()]}"),
    (r"(?<!\S)'(?:negative|minus) (?=[0-9(\\])", "- "),
    (r"(?: ,)? (?:'for '(?:all|any|every|each)|\\forall)(?: '(?:real|positive|natural|nonnegative|integers?|numbers?))*"
     r" [a-z](?: \\in \S+(?: \S+){0,5})?$", ""),
    (r" ,(?: 'in)? '(?:all|total|altogether)$", ""),
    # sets in words, (mod 7)
    (r"(?:'the 'set 'of )?'all 'reals?(?: 'numbers?)?(?: [a-z](?!\S))?|^'reals?(?: 'numbers)?$",
     r"( - \\infty , \\infty )"),
    (r"^(?:'the )?'empty 'set$|^'no (?:'real )?'(?:solutions?|roots?)$", r"\\emptyset"),
    (r"(?:\( )?(?:'mod(?:ulo)?|\\mod|\\bmod|\\pmod) (?:\{ ([0-9]+|[a-z]) \}|([0-9]+|[a-z]))(?: \))?", r"\\pmod \1\2"),
]]  # fmt: skip


def mixed(found: re.Match, otherwise: str) -> str:
    """5 and 1/2 as their sum, if the fraction is a proper one."""
    sign, whole, top, bottom = found.groups()[-4:]
    return f"{sign}( {whole} + {top} / {bottom} )" if 0 < int(top) < int(bottom) else otherwise


def with_parts(found: re.Match) -> str:
    """5 feet 3 inches as 5 + 3/12 feet."""
    unit, part = UNITS.get(found[2].lower()), UNITS.get(found[4].lower())
    parts = PARTS.get(f"{unit} {part}")
    return f"( {found[1]} + {found[3]} / {parts} ) '{found[2]}" if parts else found[0]


def say(text: str) -> str:
    """Tokens, with a space between them, in which the words that are numerals, signs or sets are such tokens."""
    for pattern, replacement in PHRASES:
        text = pattern.sub(replacement, text)
    return text


# ------------------------------------------------------ units ------------------------------------------------------

UNIT_TOKEN = re.compile(r"'(\S+)|(/)|\^ (?:\{ )?(- )?([1-9])(?: \})?|(%)|\\cdot")


def unit_of(word: str) -> str | None:
    """The name of a unit; of words that only count or point, "" (3个苹果, in total); None for another word."""
    if name := UNITS.get(word, len(word) > 2 and UNITS.get(word.lower())):
        return name
    counter = next((counter for counter in COUNTERS if word.startswith(counter)), None)
    is_silent = word.lower() in SILENT or counter and BEHIND_A_COUNTER.fullmatch(word[len(counter) :])
    return "" if is_silent else None


def is_noun(word: str) -> bool:
    """Is it an English noun in the plural, as far as its letters tell?"""
    return PLURAL.fullmatch(word[:1].lower() + word[1:]) is not None and word.lower() not in NO_NOUNS


def read_units(tail: str) -> tuple[tuple, tuple]:
    """The units behind a value with their powers, and the other words: 'miles / 'hour: ((hour, -1), (mile, 1)), ()."""
    units, others, last, sign, power, is_free = {}, [], "", 1, 1, False
    found = UNIT_TOKEN.findall(tail)
    for i, (word, slash, minus, exponent, percent) in enumerate(found):
        lower, unit = word.lower(), "%" if percent else unit_of(word)
        if slash or lower in ("per", "of"):
            sign, is_free = (-1, True) if lower != "of" else (1, True)
        elif lower in ("square", "sq", "cubic", "cu"):
            power = 2 if lower[0] == "s" else 3
        elif exponent or (lower in ("squared", "cubed") and last):
            factor = int(exponent) if exponent else 2 if lower == "squared" else 3
            units[last] = units.get(last, 0) * factor * (-1 if minus else 1)
        elif unit == "" or lower == "in" and i < len(found) - 1 and found[i + 1][0]:
            continue
        elif unit:
            over, *under = RATES.get(unit, unit).split()
            units[over] = units.get(over, 0) + sign * power
            units |= {name: units.get(name, 0) - 1 for name in under}
            last, power = over, 1
        elif word and lower not in NO_NOUNS and (is_noun(word) or is_free and word.isascii()):
            units[" ".join([*others, lower.removesuffix("s")])] = sign  # red apples
            others = []
        else:
            others.append(lower.removesuffix("s"))
    return tuple(sorted(units.items())), tuple(others + ["square"] * (power != 1))
