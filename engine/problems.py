"""Problems as users have them: from files to rows, from rows to problems, from problems to prompts.

A row is a line of JSON lines or CSV, an item of a JSON array or a row of parquet; each kind may be gzipped.  Columns,
in any capitals:

    problem or question     the text; or verl's `prompt`: chat messages, of which the user's is the problem
    answer                  GSM8K's: what stands after `####`; or verl's reward_model.ground_truth; or the last box (or
                            `####`) of `solution`
    level, subject, type    tags, for the scores; `id` stays beside them

What is wrong with a file or a row is one sentence that names the place.  At the end: what of all this a run depends on,
as digests for its args.json.
"""
import csv
import functools
import gzip
import hashlib
import io
import json
import math
import re
import zlib
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path

from engine.checkpoints import check_parent_run, longest_row, text_config
from engine.files import read_record
from engine.ranks import fail, from_rank_0, say
from engine.rollouts import is_rollout
from judge.answers import GSM8K_LINE, is_readable, last_boxes, last_line

INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."
LONGEST_COMPLETION = 8192                               # tokens, where --max-new-tokens does not say
TODAY = date(2025, 1, 1)         # for chat templates that ask: a run goes on, and the next stage begins, on another day


@dataclass
class Problem:
    id: str              # of its text: the same problem has the same id in every file
    text: str
    answer: str | None
    file: str
    place: str           # in the file: "line 12"
    tags: dict           # level, subject, type and the row's own id, where it has them

    @property
    def source(self) -> str:
        return f"{self.file}, {self.place}"


def load_problems(paths, need_answers: bool = True) -> list[Problem]:
    """The problems of a file, or of several, one after the other.  Without need_answers no answer is looked at."""
    problems = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        found = [read_problem(row, path, place, need_answers) for place, row in placed_rows(path)]
        if not found:
            fail(f"{path}: the file holds no problems")
        problems += found
    name_contradictions(problems)
    if damaged := [problem for problem in problems if eaten(problem.text)]:
        named = first_few([problem.source for problem in damaged], 10)
        say(f"{len(damaged)} of {len(problems)} texts have lost backslashes or hold control characters: {named}"
            f"{BACKSLASHES}")
    return problems


def distinct(problems: list[Problem]) -> list[Problem]:
    """Each problem once: the same text and gold again is no further problem, by which an interval would be narrower."""
    first = {(problem.id, problem.answer): problem for problem in reversed(problems)}
    once = [problem for problem in problems if first[problem.id, problem.answer] is problem]
    if len(once) < len(problems):
        say(f"{once[0].file}: {len(problems)} rows are {len(once)} problems, each of which counts once")
    return once


def name_contradictions(problems: list[Problem]) -> None:
    """Say which problems stand twice with different answers: one of the two rewards what is wrong."""
    first: dict[str, Problem] = {}
    pairs = [(other, problem) for problem in problems
             if (other := first.setdefault(problem.id, problem)).answer != problem.answer]
    if pairs:
        named = first_few([" and ".join(map(with_gold, pair)) for pair in pairs], 5)
        say(f"the same problem stands twice with different answers, {len(pairs)} times: {named}")


def with_gold(problem: Problem) -> str:
    return f"{problem.source}: {problem.answer[:60]!r}"


def first_few(texts: list[str], most: int) -> str:
    return "; ".join(texts[:most]) + (f"; and {len(texts) - most} more" if len(texts) > most else "")


def with_readable_golds(problems: list[Problem], skip: bool) -> list[Problem]:
    """Name the golds that the judge cannot read.  -> the problems; with skip, those alone whose gold it can read."""
    def look() -> list[int]:
        readable = {gold: not eaten(gold) and is_readable(gold) for gold in {problem.answer for problem in problems}}
        return [i for i, problem in enumerate(problems) if not readable[problem.answer]]

    if unreadable := dict.fromkeys(from_rank_0(look)):
        named = first_few([with_gold(problems[i]) for i in unreadable], 10)
        then = "left out" if skip else "right is what repeats them letter by letter (--skip-unreadable leaves them out)"
        say(f"{len(unreadable)} of {len(problems)} golds cannot be read by the judge, {then}: {named}" + BACKSLASHES
            * any(eaten(problems[i].answer) for i in unreadable))
    if skip and len(unreadable) == len(problems) > 0:
        fail(f"{problems[0].file}: the judge can read none of the golds, so --skip-unreadable leaves no problem")
    return [problem for i, problem in enumerate(problems) if i not in unreadable] if skip else problems


BACKSLASHES = "; in JSON each backslash of LaTeX is written twice, as in \"\\\\frac\": else it and a letter are lost"
EATEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)"                # tab and newline may stand in a text, but not
    r"|\t(?:anh?|au|binom|ext(?:bf|it|tt)?|frac|heta|herefore|ilde|imes|op?|riangle)(?![a-zA-Z])"  # \tau, \ne
    r"|\n(?:abla|atural|cong|eg?|eq|eqslant|i|[lg]eq|mid|ot|otin|parallel|rightarrow|sim|su[bp]seteq|u|warrow)"
    r"(?![a-zA-Z])"
    r"|(?<![\\a-zA-Z])(?:(?:[dt]?frac|rac|ext|qrt|oxed|inom|egin|verline|athrm|athbf)\{|(?:heta|imes|orall|abla)\b)")


def eaten(text: str) -> bool:
    """Whether a text has lost backslashes of LaTeX on its way: "\\frac" in JSON is a form feed and "rac"."""
    return bool(EATEN.search(text))


# ================================================================ files

BINARY = [                                              # (place, bytes there, what the file then is)
    (0, b"PK\x03\x04", "a zip archive or a spreadsheet (.xlsx): unpack it, or save its table as CSV"),
    (0, b"\xd0\xcf\x11\xe0", "an old Excel file: save its table as CSV"),
    (0, b"%PDF", "a PDF"),
    (0, b"<", "HTML or XML: a web page was saved in place of the file"),
    (0, b"version https://git-lfs", "a git-lfs pointer, which stands for the file: `git lfs pull` fetches it"),
    (0, b"\x80", "a pickle, which is never loaded"),
    (0, b"ARROW1", "an Arrow file: `Dataset.to_parquet` writes parquet"),
    (0, b"\xff\xff\xff\xff", "an Arrow stream: `Dataset.to_parquet` writes parquet"),
    (0, b"\xff\xfe", "UTF-16 text: save it as UTF-8"), (0, b"\xfe\xff", "UTF-16 text: save it as UTF-8"),
    (0, b"\x1f\x8b", "gzipped twice: unpack it once"),
    (0, b"\x28\xb5\x2f\xfd", "packed by zstd: unpack it"), (0, b"\xfd7zXZ", "packed by xz: unpack it"),
    (4, b"1AY&SY", "packed by bzip2: unpack it"), (257, b"ustar", "a tar archive: unpack it"),
    (0, b"\x93NUMPY", "a NumPy array"), (0, b"SQLite format 3", "an SQLite database"), (0, b"\x89HDF", "an HDF5 file"),
]


def placed_rows(path: Path):
    """(place in the file, row) of a user's file, the names of the columns in small letters."""
    content = content_of(path)
    names = [name.lower() for name in Path(path).suffixes if name.lower() != ".gz"]
    suffix, start = names[-1] if names else "", content[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    what = next((what for place, magic, what in BINARY if start[place:].startswith(magic)), None)
    rows = ()
    if content.startswith(b"PAR1"):
        rows = parquet_rows(path, content)
    elif what is None and (start[:1] == b"{" or suffix == ".jsonl"):
        rows = json_lines(path, content)
    elif what is None and (start[:1] == b"[" or suffix == ".json"):
        rows = json_array(path, content)
    elif what is None and suffix in (".csv", ".tsv"):
        rows = csv_rows(path, content, "\t" if suffix == ".tsv" else ",")
    elif start:
        what = what or ("binary data of a kind that is not known here" if b"\0" in start else "plain text")
        fail(f"{path}: not JSON lines, a JSON array, CSV, TSV or parquet; it seems to be {what}")
    for place, row in rows:
        yield place, with_small_names(row, f"{path}, {place}")


def content_of(path: Path) -> bytes:
    """The bytes of a file, unpacked where it is gzipped."""
    try:
        content = Path(path).read_bytes()
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:    # the last two: of gzip, cut short or damaged
        fail(f"{path} cannot be read ({(getattr(error, 'strerror', None) or str(error)).lower()})")


def json_lines(path: Path, content: bytes):
    for number, line in enumerate(content.splitlines(), 1):     # bytes: at \n, \r and \r\n, not at U+2028
        if line.strip():
            yield f"line {number}", from_json(line, path, number, "one object a line is expected")


def json_array(path: Path, content: bytes):
    items = from_json(content, path, 1, "an array of objects is expected")
    if not isinstance(items, list):
        fail(f"{path}: one JSON {type(items).__name__}; an array of objects, or an object a line, is expected")
    for number, item in enumerate(items, 1):
        yield f"item {number}", item


def from_json(content: bytes, path: Path, first_line: int, expected: str):
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=with_single_names, parse_float=Written)
    except (ValueError, RecursionError) as error:       # also of bytes that are not UTF-8
        line = first_line + getattr(error, "lineno", 1) - 1
        fail(f"{path}, line {line}: not JSON ({getattr(error, 'msg', error)}); {expected}")


class Written(float):
    """A number of a JSON file that keeps its digits: a float knows 15 to 17 of them."""

    def __init__(self, text: str):
        self.text = text

    def __str__(self) -> str:
        """The float's own digits where they are the number, else those that were written."""
        written, own = Decimal(self.text), super().__str__()
        if not math.isfinite(self):
            return self.text
        return own if Decimal(own) == written and "e" not in own else format(written, "f")


def with_single_names(pairs: list[tuple]) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a name stands twice")
    return row


def csv_rows(path: Path, content: bytes, delimiter: str):
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        fail(f"{path}, line {line}: not UTF-8; save the table as UTF-8")
    csv.field_size_limit(max(len(text), 1))             # its own is 128 KB a cell
    reader, names, number = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), None, 1
    try:
        for cells in reader:
            if names and cells and len(cells) != len(names):
                fail(f"{path}, line {number}: {len(cells)} cells, where the first line names {len(names)} columns")
            if names and cells:
                yield f"line {number}", with_single_names([pair for pair in zip(names, cells) if pair[0].strip()])
            names, number = names or cells, reader.line_num + 1         # a cell may go over several lines
    except (csv.Error, ValueError) as error:
        fail(f"{path}, line {number}: not CSV ({error})")


def parquet_rows(path: Path, content: bytes):
    try:
        import pyarrow.parquet
    except ImportError:
        fail(f"{path} is parquet, which needs pyarrow: `pip install pyarrow`")
    try:
        file, number = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content)), 0
        with_single_names([(name, None) for name in file.schema_arrow.names])
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        fail(f"{path}: this parquet file cannot be read ({str(error).splitlines()[0]})")


# ================================================================ rows

COLUMNS = ("problem", "question", "prompt", "answer", "reward_model", "solution", "completion", "completions")
TAGS = ("id", "level", "subject", "type")
NOTHING = ("None", "nan", "NaN", "null", "<NA>")        # what Python, pandas and JSON write where nothing is


def with_small_names(row, source: str) -> dict:
    if not isinstance(row, dict):
        fail(f"{source}: one JSON object is expected, this is a {type(row).__name__}")
    names = [name.strip().lower() for name in row]
    if twice := [name for name in (*COLUMNS, *TAGS) if names.count(name) > 1]:
        fail(f"{source}: several columns are named `{twice[0]}`, but for capitals; rename all but one")
    return dict(zip(names, row.values()))


def read_problem(row: dict, path: Path, place: str, need_answer: bool) -> Problem:
    source = f"{path}, {place}"
    text = text_of(row, source)
    answer = gold_of(row, source) if need_answer else None
    identity = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]
    return Problem(identity, text, answer, str(path), place, tags_of(row))


def text_of(row: dict, source: str) -> str:
    given = [row[name] for name in ("problem", "question") if row.get(name) not in (None, "")]
    text = given[0] if given else user_message(row["prompt"], source) if row.get("prompt") is not None else None
    if not isinstance(text, str) or not text.strip():
        fail(f"{source}: no text under `problem` or `question`, nor as the user's message under `prompt` "
             f"({columns_of(row)})")
    if re.search("[\ud800-\udfff]", text):
        fail(f"{source}: the text has half a surrogate pair (\\ud800 to \\udfff), which no tokenizer takes")
    return text


def columns_of(row: dict) -> str:
    return " ".join(f"columns: {', '.join(row)}".split())[:300]


def user_message(messages, source: str):
    """The content of the one user message; a system message is left out, and the log says so."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        fail(f"{source}: `prompt` holds chat messages, a list of objects with role and content; a column of plain "
             "text is named `problem`")
    roles = [message.get("role") for message in messages]
    if roles.count("user") != 1 or any(role not in ("user", "system") for role in roles):
        fail(f"{source}: `prompt` with messages of {roles}: one of the user is expected, and none of an assistant")
    if "system" in roles:
        say_once(f"{source.rsplit(', ', 1)[0]}: system messages are left out; --instruction goes with each problem")
    content = messages[roles.index("user")].get("content")
    parts = content if isinstance(content, list) else []
    if parts and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        return "".join(part["text"] for part in parts)
    if parts:
        kinds = [part.get("type") if isinstance(part, dict) else part for part in parts]
        fail(f"{source}: the user's message has parts of {kinds}; only parts of text are read")
    return content


@functools.cache
def say_once(message: str) -> None:
    say(message)


def gold_of(row: dict, source: str) -> str:
    """The gold answer of a row, as text.  Never the text of a list or of nothing: each reward would be 0."""
    reward_model = row.get("reward_model")
    gold = plain_answer(row.get("answer"), source)
    if not gold and isinstance(reward_model, dict):
        gold = plain_answer(reward_model.get("ground_truth"), source)
    if not gold and isinstance(row.get("solution"), str):
        gold = last_boxes(row["solution"]) or last_line(row["solution"], GSM8K_LINE)
    if not gold:
        fail(f"{source}: no answer under `answer` or `reward_model.ground_truth`, nor in a box of `solution`; the "
             f"reward needs one for each problem ({columns_of(row)})")
    return gold


def plain_answer(value, source: str) -> str:
    """The text of a text, a number or a list of one of them; "" where there is none."""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if value is None:
        return ""
    plain = isinstance(value, str | int | float | Decimal) and not isinstance(value, bool)
    if not plain or value in NOTHING or not isinstance(value, str) and not math.isfinite(value):
        fail(f"{source}: the answer is {str(value)[:60]!r}, a {type(value).__name__}; one text or number is expected")
    if type(value) is float and abs(value) >= 2**53:
        fail(f"{source}: the answer {value!r} is a number of more digits than a float keeps; write it as text")
    text = str(value) if eaten(str(value)) else str(value).strip()      # strip would take a form feed for a space
    return last_line(text, GSM8K_LINE) or "" if GSM8K_LINE.search(text) else text


def tags_of(row: dict) -> dict:
    tags = {name: row[name] for name in TAGS if row.get(name) is not None and row[name] == row[name]}      # no NaN
    return {name: value if isinstance(value, str | int | float) else str(value) for name, value in tags.items()}


# ================================================================ prompts


def encode_prompts(tokenizer, problems: list[Problem], args) -> list[list[int]]:
    """Token ids of each problem's prompt.

    With a chat template: one user message, the problem and the instruction.  Without one: the problem's text, and the
    instruction only where it was given.  Ids come straight from the template; rendering text and tokenising that would
    add a second BOS.
    """
    check_template_flags(tokenizer, args)
    prompts = [encode_prompt(tokenizer, problem, args) for problem in problems]
    if len({*map(tuple, prompts)}) == 1 < len({problem.text for problem in problems}):
        fail(f"{tokenizer.name_or_path} makes the same prompt of every problem in {problems[0].file}: their text is "
             "lost; its chat template must take messages whose content is a text")
    return prompts


def encode_prompt(tokenizer, problem: Problem, args) -> list[int]:
    instruction = args.instruction
    if instruction is None:
        instruction = INSTRUCTION if tokenizer.chat_template else ""
    text = f"{problem.text}\n{instruction}" if instruction else problem.text
    template_args = {"enable_thinking": args.enable_thinking, **(args.template_args or {})}
    try:
        ids = plain_ids(tokenizer, text) if not tokenizer.chat_template else tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], chat_template=dated_template(tokenizer), tokenize=True,
            add_generation_prompt=True, return_dict=True, **template_args)["input_ids"]
    except Exception as error:                          # of any template's making; tokenizers raises no other class
        reason = " ".join(str(error).split())
        fail(f"{problem.source}: the tokenizer of {tokenizer.name_or_path} makes no prompt of it ({reason})")
    if not ids:
        fail(f"{problem.source}: a prompt without any token by the tokenizer of {tokenizer.name_or_path}")
    return ids


def plain_ids(tokenizer, text: str) -> list[int]:
    """Ids of a text with what the tokenizer puts before it (BOS), without what it puts behind it: a completion would
    begin after an end."""
    ids, bare = tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
    starts = [start for start in range(len(ids) - len(bare) + 1) if ids[start:start + len(bare)] == bare]
    end = starts[0] + len(bare) if starts else len(ids)
    if end < len(ids):
        say_once(f"{tokenizer.name_or_path} appends {tokenizer.decode(ids[end:])!r} to every text (add_eos_token, or "
                 "its post-processor): prompts are without it")
    return ids[:end]


def dated_template(tokenizer) -> str:
    """The chat template, with TODAY in place of the clock's date."""
    return re.sub(r"""\bstrftime_now\(\s*(["'])(.*?)\1\s*\)""", lambda call: json.dumps(TODAY.strftime(call[2])),
                  tokenizer.get_chat_template())


def check_template_flags(tokenizer, args) -> None:
    """Refuse what would be dropped in silence: arguments for a chat template that does not ask for them."""
    flags = {"enable_thinking": "--enable-thinking"} if args.enable_thinking else {}
    for name, flag in (flags | dict.fromkeys(args.template_args or {}, "--template-args")).items():
        if not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template or "")):
            fail(f"{flag}: {tokenizer.name_or_path} has no chat template that asks for {name}")


def check_prompt_ids(problems: list[Problem], prompts: list[list[int]], vocab_size: int) -> None:
    """Refuse a prompt with an id that the model has no row for, such as an image's in a model of text."""
    for problem, prompt in zip(problems, prompts):
        if max(prompt, default=0) >= vocab_size:
            fail(f"{problem.source}: its prompt has the id {max(prompt)}, and the model only ids below {vocab_size}")


def template_arguments(text: str) -> dict:
    """The value of --template-args."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        fail(f"--template-args {text!r}: a JSON object is expected, as in '{{\"reasoning_effort\": \"low\"}}'")
    return value


def least_context(model_dirs: list[Path]) -> tuple[int | None, Path]:
    """The fewest positions that one of these models has, None where none says; which it is."""
    contexts = [(longest_row(path), path) for path in model_dirs]
    return min((pair for pair in contexts if pair[0]), key=lambda pair: pair[0], default=(None, model_dirs[0]))


def why_less(model_dir: Path, context: int) -> str:
    named = text_config(model_dir).max_position_embeddings
    return "" if named == context else (
        f" (config.json names {named}, but beyond {context} the length of a row changes what it makes of a token: what "
        "scores a row is not what sampled it; with long_factor as short_factor, too, rotary frequencies do not change)")


def longest_completion(model_dirs: list[Path], problems: list[Problem], prompts: list[list[int]],
                       asked: int | None) -> int:
    """--max-new-tokens, or where it was not given what the context leaves, at most LONGEST_COMPLETION.

    Refuses a prompt that leaves no room for it.
    """
    context, model_dir = least_context(model_dirs)
    problem, prompt = max(zip(problems, prompts), key=lambda pair: len(pair[1]))
    longest = asked or min(LONGEST_COMPLETION, context - len(prompt) if context else LONGEST_COMPLETION)
    if context and len(prompt) + max(longest, 1) > context:
        fail(f"{problem.source}: a prompt of {len(prompt)} tokens and --max-new-tokens {max(longest, 1)} exceed the "
             f"{context} tokens of context of {model_dir}{why_less(model_dir, context)}")
    if asked is None:
        say(f"--max-new-tokens {longest}: the context of {context} tokens leaves as many behind the longest prompt"
            if longest < LONGEST_COMPLETION else f"--max-new-tokens {longest}")
    return longest


def check_teacher_prompts(tokenizer, teacher_tokenizer, problems: list[Problem], prompts: list[list[int]],
                          args) -> None:
    """Refuse a teacher that would have been asked otherwise: it scores completions of prompts that it does not know."""
    for problem, mine, theirs in zip(problems, prompts, encode_prompts(teacher_tokenizer, problems, args)):
        if mine != theirs:
            fail(f"student {tokenizer.name_or_path} and teacher {teacher_tokenizer.name_or_path} render one problem to "
                 f"different ids ({problem.source}): {tokenizer.decode(mine)!r} and {tokenizer.decode(theirs)!r}; copy "
                 "the teacher's chat template and tokenizer files to the student")


def check_runs_prompts(tokenizer, args, parents: dict[str, dict]) -> None:
    """Refuse a run behind a flag that rendered its prompts otherwise than this one does.

    parents: flag -> {"run": its directory}, as `find_model` has it; a bare checkpoint tells nothing.
    """
    mine = rendering(tokenizer, args)
    for flag, run in ((flag, Path(parent["run"])) for flag, parent in parents.items() if "run" in parent):
        theirs = (read_record(run) or {}).get("inputs", {}).get("rendering", mine)
        if [*theirs.values()] != [*mine.values()]:
            fail(f"--{flag} {run} rendered its prompts as {[*theirs][0]!r}, this run as {[*mine][0]!r}: give the same "
                 "--instruction, --enable-thinking and --template-args, and the same chat template")


# ================================================================ stage 2's rollouts


def read_rollouts(args, run) -> list[dict]:
    """The rows of stage 2's rollouts.jsonl, after checking that they are this teacher's, certified, and the student's
    to learn: token ids cross between stages, so they must be ids of the student, and end as the student ends.  They
    are among the run's inputs from then on."""
    path, teacher = args.rollouts, run.parents["teacher"]
    if record := read_record(path.parent):
        check_parent_run(path.parent, args.allow_failed_certificate)
        sampled_by = record["parents"].get("teacher")
        if sampled_by is None:
            fail(f"--rollouts {path}: {path.parent} is not a run of stage2_shape.py, whose rollouts.jsonl is meant")
        if sampled_by["sha256"] != teacher["sha256"]:
            fail(f"--rollouts {path} were sampled by {sampled_by['path']}, which is not --teacher {teacher['path']}")
        if (theirs := record.get("args", {}).get("temperature", args.temperature)) != args.temperature:
            fail(f"--rollouts {path} were sampled at --temperature {theirs}: give the same, not {args.temperature}")
    rows = [row for _, row in placed_rows(path)]
    context, model_dir = least_context([Path(parent["path"]) for parent in run.parents.values()])
    for number, row in enumerate(rows, 1):
        if not is_rollout(row):
            fail(f"{path}, line {number}: not a rollout as stage2_shape.py writes them")
        ids = row["prompt_ids"] + row["completion_ids"]
        if max(ids) >= run.vocab_size:
            fail(f"{path}, line {number}: token ids beyond the student's vocabulary of {run.vocab_size}")
        if context and len(ids) > context:
            fail(f"{path}, line {number}: {len(ids)} tokens, more than the {context} of context of {model_dir}")
        if row["finished"] and ids[-1] not in run.eos_ids:
            fail(f"{path}, line {number}: it ends with id {ids[-1]}, the student with {run.eos_ids}")
    rows = [row for row in rows if row["weight"]]
    if not rows:
        fail(f"--rollouts {path}: the file holds no rollouts, or none whose weight is above 0")
    check_runs_prompts(run.tokenizer, args, {"rollouts": {"run": path.parent}})
    run.inputs["rollouts"] = {str(path): digest(rows)}
    return rows


# ================================================================ what a run depends on
# For open_run: name -> {what it is of: digest}.  Compared are the digests: a file may move, but not change.


def contents(problems: list[Problem]) -> dict[str, str]:
    """Of each file, what was read from it."""
    files: dict = {}
    for problem in problems:                            # row by row: a file may have millions
        row = json.dumps([problem.text, problem.answer, problem.tags], sort_keys=True)
        files.setdefault(problem.file, hashlib.sha256()).update(row.encode() + b"\n")
    return {file: read.hexdigest()[:16] for file, read in files.items()}


def rendering(tokenizer, args) -> dict[str, str]:
    """How prompts are made, by that of the problem "1": template and flags."""
    ids = encode_prompts(tokenizer, [Problem("", "1", None, "the problem `1`", "a sample", {})], args)[0]
    return {tokenizer.decode(ids): digest(ids)}


def prompt_inputs(tokenizer, args, prompts: list[list[int]], eos_ids: list[int]) -> dict[str, dict[str, str]]:
    """All that turns problems into prompts and completions into text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    how = [backend.to_str() if backend else sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_ids),
           getattr(tokenizer, "clean_up_tokenization_spaces", None)]
    return {"prompts": {"token ids": digest(prompts)}, "rendering": rendering(tokenizer, args),
            "tokenizer": {str(tokenizer.name_or_path): digest(how)}, "end tokens": {"ids": str(sorted(eos_ids))}}


def digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
