"""The pages that people read: RUN/report.html for a run, OUT/report.html for a table of reproduce.py.

Each is one self-contained file: plots as inline SVG, no script, nothing from the network.  Every figure on it comes
from the files of the directory.  Needs matplotlib; the stages and reproduce.py do without it where it is missing.

    python report.py runs/teacher                   # the page of a run anew (any stage), finished or not
    python report.py runs/main                      # the page of a table anew, and those of its runs that have none
    python report.py runs/a runs/b --out ab.html    # the curves of several runs, finished or not, side by side
"""
import argparse
import importlib.util
from pathlib import Path

from common import FlagParser
from engine.files import NotJson
from engine.ranks import fail
from pages import card, run, table


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    parser.add_argument("directories", metavar="DIRECTORY", type=Path, nargs="+",
                        help="a run, or the --out of reproduce.py: its report.html; or several runs: one page of all")
    parser.add_argument("--out", type=Path, help="file to write for several runs (default: report.html, here)")
    return parser.parse_args(argv)


def main(args) -> None:
    if not importlib.util.find_spec("matplotlib"):
        fail("the pages need matplotlib: pip install matplotlib")
    first, *others = args.directories
    if args.out and not others:
        fail(f"--out is for several runs; the page of one directory is {first / 'report.html'}")
    out = (args.out or Path("report.html")) if others else first / "report.html"
    for directory in args.directories:
        if not directory.is_dir():
            fail(f"{directory}: there is no such directory")
    if out.is_dir() or not out.parent.is_dir():
        fail(f"--out {out}: give a file in a directory that is there")
    is_table = not others and (first / "table.json").is_file()
    for directory in args.directories:
        if not is_table and not run.is_run(directory):
            fail(f"{directory}: neither the run of a stage (args.json, metrics or a certificate) nor, alone, a table")
    try:
        if others:
            run.write_runs_page(args.directories, out)
        else:
            table.write_table_files(first) if is_table else run.write_run_page(first)
            card.write_card(first)
    except NotJson as error:
        fail(f"{error}; mend it or delete it")
    print(out)


if __name__ == "__main__":
    main(parse_args())
