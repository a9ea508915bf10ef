"""MAWPS, one- and two-step word problems in English, with their solutions worked out from the equations."""
import ast
import operator
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

from engine.problems import placed_rows
from engine.ranks import fail

MAWPS_IS_AT = "https://github.com/LYH-YF/MWPToolkit/tree/master/dataset/mawps"
MAWPS_FILES = ({"train": "trainset.json", "heldout": "validset.json", "test": "testset.json"},          # as published
               {"train": "mawps_train.jsonl", "heldout": "mawps_heldout.jsonl", "test": "mawps_test.jsonl"})
OPERATORS = {ast.Add: ("+", operator.add), ast.Sub: ("-", operator.sub), ast.Mult: ("*", operator.mul),
             ast.Div: ("/", operator.truediv)}


def find_mawps(data: Path | None) -> dict[str, Path]:
    """MAWPS' three files under --data, as they are published or as JSON lines."""
    for form in MAWPS_FILES:
        if data and all((data / file).is_file() for file in form.values()):
            return {name: data / file for name, file in form.items()}
    published, lines = (", ".join(form.values()) for form in MAWPS_FILES)
    fail(f"--data {data or ''}: give a folder that holds MAWPS, which is published at {MAWPS_IS_AT} ({published}), or "
         f"its rows as JSON lines with problem, answer and equation ({lines})")


def read_mawps(files: dict[str, Path]) -> tuple[dict[str, list[dict]], dict[str, int]]:
    """-> name -> rows of {"problem", "answer", "working"}, in an order that depends on the texts alone; why others were
    dropped -> how many."""
    problems, dropped, seen = {}, Counter(), set()
    for name in ("test", "heldout", "train"):           # a text that stands twice stays in the first of them
        rows = []
        for place, row in placed_rows(files[name]):
            text, equation, answer = mawps_fields(row, f"{files[name]}, {place}")
            working = worked_solution(equation)
            if not re.fullmatch(r"\d+(\.0*)?", answer):
                dropped["the answer is not a whole number of 0 or more"] += 1
            elif working is None:
                dropped["the equation is not one that a few steps of arithmetic solve"] += 1
            elif working[1] != Fraction(answer):
                dropped["the equation does not give the answer"] += 1
            elif text.lower() in seen:
                dropped["the text stands there already"] += 1
            else:
                seen.add(text.lower())
                rows.append({"problem": text, "answer": str(working[1]), "working": working[0]})
        problems[name] = sorted(rows, key=lambda row: row["problem"])
    return problems, dict(dropped)


def mawps_fields(row: dict, source: str) -> tuple[str, str, str]:
    """Text, equation and answer of a row: of MWPToolkit's columns, or of JSON lines."""
    for names in (("original_text", "equation", "ans"), ("problem", "equation", "answer")):
        if all(name in row for name in names):
            text, equation, answer = (str(row[name]) for name in names)
            return re.sub(r" (?=[,.?!;:%]|['’]s\b)", "", " ".join(text.split())), equation, answer
    fail(f"{source}: no row of MAWPS; original_text, equation and ans are expected (columns: {', '.join(row)})")


def worked_solution(equation: str) -> tuple[list[str], Fraction] | None:
    """`X=((22.0-14.0)/4.0)` -> ["22 - 14 = 8", "8 / 4 = 2"], 2.  None where the unknown does not stand alone, where
    nothing is to be calculated, or where a number has more than four decimals."""
    found = re.fullmatch(r"[xX]=([\d.+*/()-]+)|([\d.+*/()-]+)=[xX]", equation.replace(" ", ""))
    lines: list[str] = []

    def calculate(node) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(str(node.value))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -calculate(node.operand)
        sign, apply = OPERATORS[type(node.op)]          # KeyError: ** or //
        left, right = calculate(node.left), calculate(node.right)
        lines.append(f"{decimal(left)} {sign} {decimal(right)} = {decimal(apply(left, right))}")
        return apply(left, right)

    try:
        value = calculate(ast.parse(found[1] or found[2], mode="eval").body) if found else None
    except (SyntaxError, ValueError, KeyError, AttributeError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return (lines, value) if lines else None


def decimal(number: Fraction) -> str:
    if (number * 10**4).denominator > 1:
        raise ValueError("more than four decimals")
    return str(number) if number.denominator == 1 else f"{float(number):.4f}".rstrip("0")
