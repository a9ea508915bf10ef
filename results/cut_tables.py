"""Put the tables of results/ into the pages that show them: python results/cut_tables.py

A page shows a table between <!-- results/main-toy/table.md --> and <!-- end -->: the rows of that file, as they are.
"""
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "results" / "README.md"]


def with_tables(text: str) -> str:
    """The page with each table as its file has it."""
    def cut(match) -> str:
        lines = (ROOT / match[1]).read_text(encoding="utf-8").splitlines(keepends=True)
        return f"<!-- {match[1]} -->\n{''.join(line for line in lines if line.startswith('|'))}<!-- end -->"
    return re.sub(r"<!-- (results/\S+/table\.md) -->\n.*?<!-- end -->", cut, text, flags=re.S)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
