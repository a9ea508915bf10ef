"""Put the tables of results/ into the pages that show them: python results/cut_tables.py

A page shows a table between <!-- results/main-toy/table.md --> and <!-- end -->: the rows of that file, and which of
its rows stand in another table, too.  <!-- students --> is the comparison over every student that a table has.
"""
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pages.statistics import bootstrap_interval, p_value, sign_flip_p  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "results" / "README.md"]
TABLES = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in ROOT.glob("results/*/table.json")}
# Each is another student: the shipped one is the family table's Qwen3, and the main table has its plateau.
STUDENTS = {"family-toy": {"Qwen3": "shipped", "Llama": "Llama"}, "main-toy": {"": "shipped"}, "regime-toy": None}
PAIRS = (("direct GRPO, equal steps", "full workflow"), ("direct GRPO, plateau", "full workflow"),
         ("raw-teacher transfer", "direct GRPO, equal steps"), ("raw-teacher transfer", "direct GRPO, plateau"))


def same_runs(name: str) -> str:
    """The rows of a table whose runs stand in other tables, too: the same scores, to the last digit."""
    places = defaultdict(list)
    for table, content in sorted(TABLES.items()):
        for row in content["rows"]:
            scores = tuple((seed["seed"], seed["value"], seed["tokens_sampled"]) for seed in row["seeds"])
            places[scores].append((table, row["row"]))
    found = {}
    for rows in places.values():
        others = dict.fromkeys(table.removesuffix("-toy") for table, _ in rows if table != name)
        for table, row in rows:
            if table == name and others:
                found[row] = ", ".join(others)
    places = "; ".join(f"{row} ({other})" for row, other in found.items())
    return f"\nThe same runs stand elsewhere: {places}.\n" if found else ""


def over_students() -> str:
    """Each student once, as the mean of its seeds; exact tests over all of them."""
    lines = ["| lower < higher | students | p | mean difference | median |", "| --- | ---: | ---: | ---: | ---: |"]
    for lower, higher in PAIRS:
        differences = {}
        for table, names in STUDENTS.items():
            means = {(row["row"], row["setting"]): row["mean"] for row in TABLES[table]["rows"]}
            for row, setting in means:
                if row == lower and (higher, setting) in means:
                    student = names[setting] if names else setting
                    differences[student] = means[higher, setting] - means[lower, setting]
        values = list(differences.values())
        low, high = bootstrap_interval(values)
        lines.append(f"| {lower} < {higher} | {sum(value > 0 for value in values)} of {len(values)} | "
                     f"{p_value(sign_flip_p(values))} | {np.mean(values):+.3f} [{low:+.3f}, {high:+.3f}] | "
                     f"{np.median(values):+.3f} |")
    return "\n".join(lines) + "\n"


def with_tables(text: str) -> str:
    """The page with each table as its file has it."""
    def cut(match) -> str:
        lines = (ROOT / match[1]).read_text(encoding="utf-8").splitlines(keepends=True)
        rows = "".join(line for line in lines if line.startswith("|"))
        return f"<!-- {match[1]} -->\n{rows}{same_runs(Path(match[1]).parent.name)}<!-- end -->"
    text = re.sub(r"<!-- (results/\S+/table\.md) -->\n.*?<!-- end -->", cut, text, flags=re.S)
    return re.sub(r"<!-- students -->\n.*?<!-- end -->", lambda _: f"<!-- students -->\n{over_students()}<!-- end -->",
                  text, flags=re.S)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
