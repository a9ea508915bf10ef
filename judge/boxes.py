r"""What the last box of a text says, with what stands around it and is a part of the answer, or denies it.

    -\boxed{5} is -{5}; \boxed{3} and \boxed{7} is 3 and 7; x \ne \boxed{3} is x \ne {3}; "not \boxed{3}" is no answer

A box belongs to the formula around it, which begins behind the last equals sign, word or sentence and ends before the
next.  Takes time linear in the text: around a box at most REACH characters are looked at.
"""

import re

from judge.words import FRACTION, FRACTIONS, SCALES, UNITS, is_noun, unit_of

REACH = 80
Box = tuple[int, tuple[int, int], int]  # where it begins, what it holds, where it ends

BRACE = re.compile(
    r"\\\\(?!boxed|fbox)|\\[{}]"  # a line break and escaped braces: nothing to count
    r"|\\(?:boxed|fbox)(?![a-zA-Z])\s*(?:(?P<box>\{)|(?P<bare>-?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|[A-Z](?![a-zA-Z])))"
    r"|(?P<open>\{)|(?P<close>\})"
)
NOT_SPACE = re.compile(r"\S")
LOOKS = re.compile(
    r"\\(?:text|math|mbox|operatorname)[a-z]*\s*(?:\{([^{}]*)\}|\{)?|\\(?:text)?color\s*\{\w+\}|[$~*`\"]"
    r"|\\[()\[\],;:!\\ ]|\\(?:left|right|displaystyle|underline|[lL]arge|huge|bf|q?quad)(?![a-zA-Z])"
)

# Where a formula ends: a line, an equals sign, an arrow, a word, a sentence, a remark.
EDGE = (
    r"\n|\\\\|&|[-=]+>|(?<![<>])(?<![\sa-zA-Z]!)(?<!\\not)=|≈|(?<![\\a-zA-Z])[a-zA-Z]{2,}|(?:[.;?]|(?<!\s):)(?=[\s$*\\])|[\"'`#]|</?\w+>"
    r"|[a-zA-Z]*[^\x00-\x7f−–±∓×·÷⋅≤≥≠√π∪∩°²³∞][^\W\d_]*|\\(?:approx|equiv|therefore|because|implies|iff|to|text|math(?:bf|rm)|mbox|begin|"
    r"end|[pb]?mod|tag|label|\w*square|Box|qed|checkmark|\w*arrow)(?![a-z])(?:\s*\{[^{}]*\})?"
)
BEGINNING = re.compile(rf"(?:(?:\A|(?<=\n))\|[^\n]*\|(?=\s)|{EDGE}|(?<![-+−±])\$+|\\[(\[]|\*\*)\s*")
END = re.compile(rf"{EDGE}|\$|\\[)\]]|\||\*(?![\d(\\])|<(?=[/a-z])|\s\(|\s[-–—]+\s(?=[a-zA-Z])|\s[aI]\s|\bi\.e|\be\.g")
MARK = re.compile(r"\s*(?:[-–—*+>•]\s|\(?(?:[0-9]{1,2}|[a-zA-J]|[ivx]+)[.)])\s*")  # of an item in a list

# What words join boxes, deny one, or change its value.
LIST = {", ", " and ", " or "}
JOINTS = {word: joint for joint, words in {
    " and ": "and also as well along together with y et e und sowie и 和 与 及 以及",
    " or ": "or else either maybe perhaps possibly oder ou o или 或 或者", " + ": "plus", " - ": "minus",
    r" \cdot ": "times", r" \text{ to } ": "to through bis by versus vs between from",
}.items() for word in words.split()}  # fmt: skip
WORD = re.compile(r"(?<![\\\w])(?![ivx]+[.)])[^\W\d_]{2,}")
NAME = r"[a-zA-Z](?:_\{?\w\}?)?"
NAMED = re.compile(rf"(?:^|[\s$({{,])({NAME})\s*=\s*[$\s]*$")
NUMBER = r"-?[0-9][0-9./]*|(?:[0-9]+)?\\frac\{\w+\}\{\w+\}|[A-J]"
LISTED = re.compile(  # 0.75 or \boxed{3/4}; x = 3 and x = \boxed{4}
    rf"(?:\A|[$(,:]|(?<!\\)\b[a-zA-Z]{{2,}}|(?<!\w)(?P<name>{NAME})\s*=)\s*(?P<item>{NUMBER})[\s$*)]*,?\s*"
    r"(?P<joint>and|or|&|und|oder|et|ou|和|或)[\s$*]*(?:(?P=name)\s*=[\s$]*)?\Z"
)
# What words deny before a box, in the languages that models write most: the negations and comparisons.
DENYING = """not never cannot neither nor except excluding unlike impossible than plus minus times negative
over under above below beyond nearly almost hardly barely twice double triple nicht kein keine pas non no
não nie niet inte ikke не нет tidak bukan""".split()
FILLERS = """be equal to the a an actually really simply just necessarily longer of but was answer choice option
result value es est ist ser é è""".split()
COMPARED = r"""no longer|instead of|up to|(?<![a-z] )at (?:least|most)|(?:all|any\w*|every\w*) but|mindestens|höchstens
|wrong:?|incorrect:?|false|mistaken|(?:square|cube|root|reciprocal|inverse|opposite|FRACTION) of
|(?:mehr|weniger|m[áa]s|menos|mais|plus|moins|pi[ùu]|meno|больше|более|меньше|менее) ?(?:als|de|que|di|чем)?"""
DENIED = re.compile(  # in lower case: without IGNORECASE this is five times as fast
    rf"(?:\b(?:{'|'.join(DENYING)}|{COMPARED.replace(chr(10), '').replace('FRACTION', FRACTION)})"
    r"|\b(?:wrong|incorrect|false|not)\b[^.;:!?\n]{0,20}\bis|n['’]t\b[^.;:!?\n]{0,20}\bis"
    r"|n['’]t|[不非没無无]|[大小多少]于|超过|[至最][多少])"
    rf"(?:[\s*$]+(?:{'|'.join(FILLERS)})|[是为到]|等于)*[\s$*~({{\\}})_]*\Z"
)  # fmt: skip
WITHIN = re.compile(r"[0-9]\.")  # 0.\boxed{5}
REJECTS = re.compile(r"[\s$*,;(]*(?:(?:and|but)\s+)?(?:not|rather than|instead of)[\s$*(]*", re.IGNORECASE)
IS = "(?:is|was|are|were|would be|seems|looks|s)"
DOUBT = (
    r"(?:(?:no|not|wrong|incorrect|false|invalid|impossible|rejected|extraneous|mistake|cannot|fails|should|too|almost"
    r"|nearly|close)\b|\w+n['’]t\b|n['’]t\b)"
)
DOUBTED = re.compile(  # 5 or more; 5 to 7; 5, 6; 5 is not it; 5. Wait, it should be 6; but not "5, not 6"
    rf"(?!{REJECTS.pattern}(?:\\boxed|-?[0-9]))(?:[\s$]*,?\s*(?:or\b|and (?:more|less|up|above|below|over)\b)"
    rf"|[\s$]*,?\s*(?:and|to|through)?[\s$]+(?-i:{NUMBER})(?=[\s$.]*(?:\Z|[.,;$\n]))"
    rf"|\W*(?:text\{{\W*)?(?:(?:which|this|that|it)\b\W*)?(?:{IS}\b[ \w]{{0,20}}?)?\b{DOUBT}"
    r"|[^\n]*?(?:\?\W*no\b|[.,–—-]\W*(?:wait|rather|no,? *(?:wait|it|[-0-9$]))"
    rf"|\b(?:wait|actually|oops|hmm|oh|but|hold on)\b[^\n]*?{DOUBT}))", re.IGNORECASE
)  # fmt: skip
OPTION = re.compile(r"(?:\\\w+\{)*\([A-J]\)\}*")
# What may stand behind a box: a part of the number, which is read with it, or words that a sentence goes on with.
BEHIND = {*SCALES, *FRACTIONS, *UNITS, *"per square cubic squared cubed a.m p.m am pm / ° %".split()}
BEHIND -= {"in", "second", "long", "old"}  # which mostly say something else
UNIT = re.compile(
    r"(?:[ \t$*{}~]|\\(?:text|mathrm)\s*\{|\\[,;:! ])*"
    rf"(and (?:(?:an?|one|two|three|[0-9]) )?(?:{FRACTION})|per ?cent|[ap]\.m(?=\.)"
    r"|[^\W\d_]+(?:-[^\W\d_]+)*|[/°%]|\^\{?-?[1-9]\}?)"
)
GOES_ON = set("""therefore thus hence let note now finally is are was were be as in for of to from
on at by each when where which who that with because since so then if after has have had can could
will would must should chance may might it they he she we this these there here such and but gives
left more total altogether remaining indeed exactly only also both respectively the a an units long
old wide tall high deep away apart off minimum maximum different distinct possible works out until
before while within through correct right too です である 입니다 이다""".split())
ENDED = re.compile(r"[,;:][ $*)]*\Z")


def last_boxes(text: str) -> str | None:
    """The answer of the box that closes last, with those that are one with it; None where it is missing or denied."""
    boxes = all_boxes(text)
    if not boxes:
        return None
    while len(boxes) > 1 and REJECTS.fullmatch(text, boxes[-2][2], boxes[-1][0]):
        boxes.pop()  # 5, not 6
    first, joints = len(boxes) - 1, []
    while first and (found := joint(text[boxes[first - 1][2] : boxes[first][0]])):
        joints.append(found)
        first -= 1
    parts = [text[slice(*span)].strip() for _, span, _ in boxes[first:]]
    if joints and len(set(parts)) == 1 and LIST >= set(joints):
        parts, joints, first = parts[:1], [], len(boxes) - 1
    lead, (tail, unit) = before(text, boxes[first - 1][2] if first else 0, boxes[first]), after(text, boxes[-1][2])
    if lead is None or tail is None:
        return None
    if not joints and (OPTION.fullmatch(parts[0]) or not lead.strip("([{ ") and not tail.strip(")]} ")):
        return parts[0] + unit
    if lead or tail or not LIST >= set(joints):
        parts = [f"{{{part}}}" for part in parts]
    else:
        parts = named(text, boxes[first:], parts)
    return lead + "".join(part + glue for part, glue in zip(parts, [*joints[::-1], ""], strict=True)) + tail + unit


def all_boxes(text: str) -> list[Box]:
    r"""Each closed box that holds something, `\boxed 3`, too; of nested ones the outer."""
    boxes, starts = [], []  # starts of the open braces: where a box and its content start, None for other braces
    for brace in BRACE.finditer(text):
        if brace["box"] or brace["open"]:
            starts.append((brace.start(), brace.end()) if brace["box"] else None)
            continue
        opened = starts.pop() if brace["close"] and starts else None
        if brace["bare"]:
            boxes.append((brace.start(), brace.span("bare"), brace.end()))
        elif opened and NOT_SPACE.search(text, opened[1], brace.start()):
            while boxes and boxes[-1][0] > opened[0]:
                boxes.pop()
            boxes.append((opened[0], (opened[1], brace.start()), brace.end()))
    return boxes


def named(text: str, boxes: list[Box], parts: list[str]) -> list[str]:
    """The parts of a list with the names before them, where any has one: x = 3, y = 7."""
    names = [NAMED.search(text[max(0, box[0] - REACH) : box[0]]) for box in boxes]
    return [f"{name[1]} = {part}" if name else part for name, part in zip(names, parts, strict=True)]


def joint(between: str) -> str:
    r"""What makes two boxes one answer: ", ", " and ", " + ", a part of a formula ...; nothing where they are two."""
    if len(between) > REACH:
        return ""
    kinds = [JOINTS.get(word.lower(), "") for word in WORD.findall(between) if word not in UNITS]
    if "" in kinds:
        return ""
    plain = LOOKS.sub(r" \1 ", NAMED.sub("", between)).strip()
    if plain[-1:] in (".", "?", "!"):
        return ""
    if MARK.fullmatch(plain + " ") and ("\n" in between or plain[0] not in "-+>"):
        return ", "
    if plain in JOINTS or not WORD.sub("", plain).strip(" ,;，、&()/|"):
        return max(kinds, default=", ")
    return "" if BEGINNING.search(plain) and not plain.startswith(("=", r"\approx", "≈")) else plain


def before(text: str, limit: int, box: Box) -> str | None:
    """What of a formula stands before its box; None where words deny it, or a digit touches its digits."""
    start, (inside, _), _ = box
    window = text[max(limit, start - REACH) : start]
    if WITHIN.match(window[-2:]) or DENIED.search(window[-40:].lower()):
        return None
    if listed := LISTED.search(window[-40:]):
        return f"{listed['item']} {JOINTS.get(listed['joint'], ' and ')} "
    edges = list(BEGINNING.finditer(window))
    edge, place = (edges[-1][0], edges[-1].end()) if edges else ("\n", 0)
    piece = window[place:]
    if MARK.fullmatch(piece) and "\n" in edge and edge[0] not in "$\\=≈&":  # an item of a list
        return ""
    piece = LOOKS.sub(r"\1", piece).lstrip(" ,;:)]}").rstrip("\\")
    if piece.replace(" ", "").isdigit() and window.count("$") % 2 == 0:
        return ""  # the working goes before, outside of a formula: 9777151521\boxed{21}
    return None if piece[-1:].isdigit() and text[inside].isdigit() or piece.endswith(".") else piece


def after(text: str, end: int) -> tuple[str | None, str]:
    """What of a formula stands behind its box, and the unit or scale after it; None where words deny it."""
    window = text[end : end + REACH]
    if not window.strip(" $.*\n"):
        return "", ""
    if DOUBTED.match(window):
        return None, ""
    edge = END.search(window)
    place = edge.start() if edge else len(window)
    factorial = edge and (edge[0][0] in "$\\" or edge[0][0].islower())  # not "It is \\boxed{3}!"
    piece = LOOKS.sub(r"\1", window[:place]).rstrip(" ,;:.?" if factorial else " ,;:.?!")
    if place == REACH or piece[:1].isdigit():
        return None, ""
    words = []
    while (word := UNIT.match(window, place)) and is_part(word[1]):
        words.append(word[1])
        place = word.end()
    ended = ENDED.search(window[:place]) or window[place:].lstrip().startswith(("$$", r"\]"))
    if words and word and word[1].lower() in ("below", "above"):
        return None, ""
    if not words and not ended and not goes_on(window, place):
        return None, ""
    return piece, rf"\text{{ {' '.join(words)}}}" if words else ""


def is_part(word: str) -> bool:
    """Does it belong to the number: a unit, a scale, a power, "and a half"?"""
    return word in BEHIND or word.lower() in BEHIND or word[0] == "^" or word[:4] == "and " or word == "per cent"


def goes_on(text: str, place: int) -> bool:
    """May a sentence go on with the words there behind its number?  An unknown one may deny or multiply it."""
    words = []
    while len(words) < 4 and (word := UNIT.match(text, place)):
        words.append(word[1])
        place = word.end()
    if not words or words[0].lower() in GOES_ON or is_noun(words[0]) or unit_of(words[0]) is not None:
        return True
    known = [i for i, word in enumerate(words[1:], 1) if is_noun(word) or len(word) > 3 and word in GOES_ON]
    return bool(known) and all(word.isascii() and word.lower() not in DENYING for word in words[: known[0]])
