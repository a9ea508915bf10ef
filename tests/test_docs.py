"""The pages of docs/: their links name the right lines, and the tour's numbers are what the stages compute.

    PYTHONPATH=. python tests/test_docs.py        after code has moved: write the right lines into the pages' links
"""
import ast
import doctest
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import run

from bench import mutations
from results import cut_tables
import stage2_shape
import stage3_kl

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
TOUR = (ROOT / "docs" / "tour.md").read_text()
FIDELITY = (ROOT / "docs" / "fidelity.md").read_text()
LINK = re.compile(r"\[`(\w+)`\]\(\.\./([\w/]+\.py)(#[-L\d]*)\)")        # [`function`](../file.py#L12-L34)


def lines_of(name: str, file: str) -> str:
    """Where a module's function stands, decorators included, as GitHub writes it."""
    found = [node for node in ast.parse((ROOT / file).read_text()).body if getattr(node, "name", None) == name]
    assert found, f"{file} has no function {name}"
    first = min([found[0].lineno, *(decorator.lineno for decorator in found[0].decorator_list)])
    return f"#L{first}-L{found[0].end_lineno}"


def with_right_lines(text: str) -> str:
    return LINK.sub(lambda link: f"[`{link[1]}`](../{link[2]}{lines_of(link[1], link[2])})", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_name_the_lines_of_their_functions(page):
    wrong = [f"{link[0]} should end in {right}" for link in LINK.finditer(page.read_text())
             if link[3] != (right := lines_of(link[1], link[2]))]
    assert not wrong, "\n".join(["PYTHONPATH=. python tests/test_docs.py mends:", *wrong])


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert targets and all((page.parent / target).exists() for target in targets), targets


def test_tables_are_those_of_the_results():
    """`python results/cut_tables.py` cuts them."""
    for page in cut_tables.PAGES:
        text = page.read_text()
        assert cut_tables.with_tables(text) == text and "<!-- end -->" in text, f"{page}: python results/cut_tables.py"
    changed = text.replace("| full workflow ᵃ | ", "| full workflow ᵃ | 1", 1)
    assert changed != text and cut_tables.with_tables(changed) == text
    for figure in (ROOT / "results").glob("*/figure.svg"):
        assert ElementTree.parse(figure).getroot().tag == "{http://www.w3.org/2000/svg}svg", "an <img> shows XML alone"
    shown = set(re.findall(r"<!-- results/(\S+)/table.md -->", text))
    assert shown == {path.parent.name for path in (ROOT / "results").glob("*/table.md")}, "results/README.md shows all"


def test_every_equation_is_on_the_map():
    numbers = re.findall(r"^\*\*\((\d)\)\*\*.*?\n\n(?=\[`)", (ROOT / "docs" / "method.md").read_text(), re.M | re.S)
    assert numbers == list("123456789"), "each followed by the functions that compute it"


def fields(title: str) -> set[str]:
    """The names in the first column of method.md's table of this title."""
    table = (ROOT / "docs" / "method.md").read_text().split(f"| {title} | meaning |")[1].split("\n\n")[0]
    return {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_the_fields_of_both_certificates_are_explained(toy, tmp_path):
    shared = ["--problems", toy / "few_heldout.jsonl", "--num-certify-problems", 2, "--max-new-tokens", 16, "--allow-failed-certificate"]
    run(stage2_shape, "--teacher", toy / "teacher", "--reference", toy / "teacher", "--certify-problems", toy / "few_heldout.jsonl",
        "--num-problems", 2, "--out", tmp_path / "shape", *shared)
    run(stage3_kl, "--student", toy / "student", "--teacher", toy / "teacher", "--rollouts", tmp_path / "shape" / "rollouts.jsonl",
        "--max-kl", 100, "--out", tmp_path / "bridge", *shared)
    c1, c2 = (json.loads((tmp_path / name / "certificate.json").read_text()) for name in ("shape", "bridge"))
    assert fields("stage 2's `certificate.json`") == c1.keys() | c1["sum"].keys()
    assert fields("stage 3's `certificate.json`") == c2.keys()


def test_the_tour_computes_what_it_shows():
    """Each block is typed in, one after the other."""
    blocks = re.findall(r"^```pycon\n(.*?)^```", TOUR, re.M | re.S)
    example = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "docs/tour.md", None, 0)
    assert len(example.examples) > 50
    failures = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=failures.append)
    assert not failures, "".join(failures)


def test_the_tours_text_speaks_of_the_numbers_that_were_computed():
    """A number of four decimals outside of the blocks stands in a block, too."""
    blocks = re.split(r"^```pycon\n", TOUR, flags=re.M)
    shown = " ".join(block.split("```")[0] for block in blocks[1:])
    text = " ".join([blocks[0], *(block.split("```", 1)[1] for block in blocks[1:])])
    numbers = set(re.findall(r"\d\.\d{4}", text)) - {"0.0625", "0.3125", "0.0001"}      # what is put in
    assert len(numbers) > 8 and not {number for number in numbers if number not in shown}


def test_every_test_on_the_page_of_fidelity_is_there():
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", FIDELITY)
    assert len(named) > 50
    for file, name in named:
        lines_of(name, f"tests/{file}")


def test_every_pitfall_has_a_mistake_that_can_still_be_made():
    """That its test then fails, python bench/mutations.py shows."""
    assert {int(mistake.pitfall.split()[0]) for mistake in mutations.MISTAKES} == set(range(1, 25))
    rows = [f"| {mistake.pitfall} | {mistake.mistake} | `{mistake.test}` |" for mistake in mutations.MISTAKES]
    assert FIDELITY.rstrip().splitlines()[-len(rows):] == rows
    for mistake in mutations.MISTAKES:
        compile(mutations.mutated(mistake), mistake.file, "exec")


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_right_lines(page.read_text()))
