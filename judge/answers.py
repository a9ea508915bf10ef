r"""Is a completion right?  The reward (equation 1) of every stage, the judge of the certificates and of the tables.

    extract_answer(text) -> str | None        is_equal(answer, gold) -> bool        grade(completion, gold) -> bool

When in doubt the judge says no: a false "right" corrupts a reward, a false "wrong" only thins it.
"""
import atexit
import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

from judge.boxes import NOT_SPACE, joint, last_boxes

# ================================================================ reading

SPECIAL = re.compile(  # special tokens: of a turn, a message, padding
    r"<[|｜][^<>\s]{1,40}[|｜]>|</?s>|<(?:eos|bos|pad|unk|(?:start|end)_of_turn)>|\[(?:/?INST|EOS|BOS)\]",
    re.IGNORECASE,
)
THOUGHT_ENDS = re.compile(
    r"[<\[◁](?:\|?(?:/|end_(?:of_)?)(?:\w{1,20}[:_])?(?:think|thinking|thought|reason|reasoning|reflection|scratchpad)"
    r"\|?[>\]▷]|\|think_end\|>|\|channel\|>final<\|message\|>)", re.IGNORECASE
)
TAGGED = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.IGNORECASE | re.DOTALL)
ANSWER_LINE = re.compile(
    r"(?:(?:(?<![a-zA-Z0-9])(?:answer(?:\s{1,3}is)?|r[ée]ponse|respuesta|resposta|risposta|antwort|ответ)|答案|答え|정답)"
    r"[ *_]{0,4}[:：]|答案[是为為][:：]?|(?:^|\n)[#*_ ]{0,8}(?:final )?answer[*_ ]{0,4}[\n=])"
    r"[\s*_}]{0,6}(?:\\\[|\$\$)?\s{0,3}",
    re.IGNORECASE,
)
GSM8K_LINE = re.compile(r"(?<!#)####(?!#)")
REMARK = re.compile(  # 5, because ...; 5 (since ...); 5. This is ...; 5 — the least
    r"(?<=\S)(?:[\s,;:.(*–—-]*[\s,;(](?:(?:because|since|as|which|so|where|hence|thus|this|that|note|rounded|checked|"
    r"obtained|using)\b|(?:i\.?e|e\.?g)\.)"
    r"|\s*[,(]\s*(?:altogether|total|in (?:total|all))\b|(?:(?<=\b[A-J])|(?<=\b[A-J]\)))\s*\([a-z]"
    r"|(?:(?<=[0-9$)}*%])|(?<=[a-z]{3}))\.\**\s+(?=[A-Z])|\s+(?:—|--)\s+(?=[A-Za-z]{3})|\s*[✀-➿\U0001F300-\U0001FAFF]).*",
    re.IGNORECASE,
)
RETRACTS = re.compile(
    r"\b(?:wait|no|not|wrong|incorrect|actually|rather|instead|except|unless|but|however)\b", re.IGNORECASE
)


def extract_answer(text: str) -> str | None:
    r"""The answer that a completion gives, or None; never just the last number in it.

    Of the text after the thinking, where that says anything with a sign of mathematics; of <answer> tags, where there
    are any.  There the last closed, not empty \boxed{} or \fbox{}, together with those that "and", "or" or a comma join
    to it; with none, what the tags hold; then the last "Answer: ..." line; with none, the last GSM8K "#### ..." line.
    A box that never closes, as in a truncated completion, is no answer and hides no earlier one.  Takes time linear in
    the text, whatever it is.
    """
    text = text.replace("assistantfinal", "</think>")  # of gpt-oss, without its special tokens
    ends = [match.end() for match in THOUGHT_ENDS.finditer(text)] if "/" in text or "|>" in text else []
    said = plain(text[ends[-1] :]) if ends else ""
    if NOT_SPACE.search(said) and (answer := answer_in(said)):
        return answer
    return None if re.search(r"[0-9$\\]", said) else answer_in(plain(text[: ends[-1]] if ends else text))


def plain(text: str) -> str:
    """The text without its special tokens."""
    return SPECIAL.sub("\n", text) if "<" in text or "T]" in text or "S]" in text else text


def answer_in(text: str) -> str | None:
    """The answer of a text without its thinking."""
    tags = [tag for tag in TAGGED.finditer(text) if tag[1].strip()] if "</" in text else []
    inner = tags[-1][1].strip() if tags else None
    if len(tags) > 1 and tags[-2][1].strip() != inner and joint(text[tags[-2].end() : tags[-1].start()]):
        return None  # two answers
    boxed = last_boxes(text[tags[-1].start() :] if tags else text)
    tagged = inner and (last_line(inner, ANSWER_LINE) or inner)
    return boxed or tagged or last_line(text, ANSWER_LINE) or last_line(text, GSM8K_LINE)


def last_line(text: str, marker: re.Pattern) -> str | None:
    """What follows the last marker on its line, without Markdown's emphasis and without a remark."""
    ends = [match.end() for match in marker.finditer(text)]
    if not ends:
        return None
    line = text[ends[-1] :].split("\n", 1)[0]
    remark = REMARK.search(line[:MAX_LENGTH])
    if remark and not RETRACTS.search(line):
        line = line[: remark.start()]
    line = line.strip(" \t\r*_`").removesuffix("**.")
    if line.count("}") > line.count("{"):  # \textbf{Answer: 5}
        line = line.removesuffix("}")
    if re.fullmatch(r"[A-J]\)", line):  # C) is an option's letter
        line = line[0]
    return line or None


# ================================================================ equality

MAX_LENGTH = 1000  # characters; a longer answer is right only if it is the gold, letter by letter
COMPARE_SECONDS = 1.2  # after which the worker is killed; with its restart, an answer costs less than 2 s
START_SECONDS = 60  # for importing sympy on a busy machine

counts = {"sympy": 0, "unreadable": 0, "timeout": 0, "failed": 0}  # comparisons that reached the worker, for the log

CHOICES = re.compile(r"(?:(?:\\[a-z]+\{|[($])*[A-J][)}$]*[,;、，；\s]*){2,}\.?")  # A, C and AC
DECIMAL = re.compile(r"[+-]?(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)?(?:\.[0-9]*)?")
FRACTION = re.compile(
    r"([+-]?)(?:([0-9]+)/([0-9]+)|\\[dt]?frac *(?:([0-9])|\{([+-]?[0-9]+)\}) *(?:([0-9])|\{([0-9]+)\}))"
)


def grade(completion: str, gold: str) -> bool:
    """Does the completion give an answer that is the gold's equal?"""
    answer = extract_answer(completion)
    return answer is not None and is_equal(answer, gold)


def is_equal(answer: str, gold: str) -> bool:
    """Would a careful marker take the answer for the gold?  Symmetric; False for whatever is not understood.

    The cheapest test that decides comes first: the text, plain numbers (exactly), and only then the worker, which reads
    both with latex.py and compares them with sympy.  Costs at most 2 s.
    """
    if answer == gold:
        return bool(gold.strip())
    if max(len(answer), len(gold)) > MAX_LENGTH or not answer.strip() or not gold.strip():
        return False
    if CHOICES.fullmatch(answer) and CHOICES.fullmatch(gold):
        letters = [re.findall("[A-J]", text) for text in (answer, gold)]
        listed = [re.search("[A-J][^A-J]+[A-J]", text) is not None for text in (answer, gold)]
        if listed[0] != listed[1] or min(map(len, letters)) > 2:  # "AB" and "BA" may be segments
            return sorted(letters[0]) == sorted(letters[1])
    numbers = plain_number(answer), plain_number(gold)
    return numbers[0] == numbers[1] if None not in numbers else WORKER.compare(answer, gold)


def is_readable(gold: str) -> bool:
    """Can the judge read this gold?  If not, an answer is right only where the text is the same."""
    return 0 < len(gold) <= MAX_LENGTH and (plain_number(gold) is not None or WORKER.can_read(gold))


def plain_number(text: str) -> Fraction | None:
    r"""The value of 42, 1,000, -.5, 3/4, \frac{3}{4} or \frac34; None for anything else."""
    if DECIMAL.fullmatch(text) and text[-1:] not in ("+", "-", ".", ""):
        return Fraction(text.replace(",", ""))
    if not (parts := FRACTION.fullmatch(text)):
        return None
    top, bottom = (int(parts[2] or parts[4] or parts[5]), int(parts[3] or parts[6] or parts[7]))
    return Fraction(-top if parts[1] == "-" else top, bottom) if bottom else None


class Worker:
    """A process that runs judge/latex.py (see `latex.serve`): started when first needed, killed when it takes too long.

    It is a fresh interpreter (neither a fork nor an import of the caller's main module), limits its own memory, and
    ends when its stdin closes, that is, at the latest with its caller.  Threads take turns.
    """

    def __init__(self):
        self.process, self.ready, self.ever_ready, self.lock = None, False, False, threading.Lock()

    def compare(self, answer: str, gold: str) -> bool:
        """Are the two equal?  What fails or takes too long is counted, and not equal."""
        with self.lock:
            verdict = self.verdict(answer, gold)
            counts["sympy"] += 1
            if verdict not in ("equal", "different"):
                counts[verdict or "failed"] += 1
        return verdict == "equal"

    def can_read(self, gold: str) -> bool:
        """Does the worker get as far as to compare?  With a word: that costs little.  Not counted, as no run asked."""
        with self.lock:
            return self.verdict("\\text{word}", gold) in ("equal", "different")

    def verdict(self, answer: str, gold: str) -> str:
        """The worker's; where it may have died before, asked once more on what is left of the time."""
        request = json.dumps([answer, gold]).encode() + b"\n"
        began = time.monotonic()
        return self.ask(request, COMPARE_SECONDS) or self.ask(request, COMPARE_SECONDS - (time.monotonic() - began))

    def ask(self, request: bytes, seconds: float) -> str:
        """The worker's verdict; "timeout", or "" where it died: then the next one is starting already."""
        verdict = ""
        try:
            if self.start():
                self.process.stdin.write(request)
                verdict = self.receive(seconds)
        except OSError:  # a broken pipe
            pass
        except BaseException:  # Ctrl-C, say: a reply that nobody waits for must not answer the next question
            self.stop()
            raise
        if verdict in ("", "timeout"):
            self.stop()
            self.launch()
        return verdict

    def start(self) -> bool:
        """Wait until a worker is ready, and say whether it is; raises RuntimeError where none ever was."""
        if self.process is None:
            self.launch()
        self.ready = self.ready or self.receive(START_SECONDS) == "ready"
        self.ever_ready = self.ever_ready or self.ready
        if not self.ever_ready:
            raise RuntimeError("the grader's worker does not start: does `python -m judge.latex` say why?")
        return self.ready

    def launch(self):
        """Start a process, without waiting for it."""
        self.ready = False
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        command, root = [sys.executable, "-m", "judge.latex"], Path(__file__).resolve().parent.parent
        self.process = subprocess.Popen(command, cwd=root, bufsize=0, start_new_session=True, **pipes)

    def receive(self, seconds: float) -> str:
        """One line from the worker, "timeout" after so many seconds, "" where it has died."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            arrived = selector.select(max(seconds, 0))
            return self.process.stdout.readline().decode().strip() if arrived else "timeout"

    def stop(self):
        """Kill the process, if there is one, and leave no zombie."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()  # closes the pipes and waits
            self.process = None


WORKER = Worker()
atexit.register(WORKER.stop)
os.register_at_fork(after_in_child=WORKER.__init__)  # a forked child (a data loader) starts a worker of its own
