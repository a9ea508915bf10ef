"""The pages that people read: RUN/report.html for a run, OUT/report.html for a table of reproduce.py.

Each is one self-contained file: plots as inline SVG, no script, nothing from the network.  Every figure on it comes
from the files of the directory.  Needs matplotlib; the stages and reproduce.py do without it where it is missing.

    python report.py runs/teacher                   # the page of a run anew (any stage), finished or not
    python report.py runs/main                      # the page of a table anew, and those of its runs that have none
    python report.py runs/a runs/b --out ab.html    # the curves of several runs, finished or not, side by side
    python report.py --tensorboard runs/a runs/b    # their metrics as TensorBoard reads them: RUN/tensorboard/
    python report.py --tensorboard --every 10 runs/a        # the same while the run goes on, every ten seconds

--tensorboard needs the package tensorboard; what it writes is made of metrics.jsonl anew each time, and can be deleted.
"""
import argparse
import importlib.util
from pathlib import Path

from common import FlagParser, natural
from engine.ranks import fail
from pages import card, run, table, tensorboard


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    parser.add_argument("directories", metavar="DIRECTORY", type=Path, nargs="+",
                        help="a run, or the --out of reproduce.py: its report.html; or several runs: one page of all")
    parser.add_argument("--out", type=Path, help="file to write for several runs (default: report.html, here)")
    parser.add_argument("--tensorboard", action="store_true", help="write the metrics of runs for TensorBoard instead")
    parser.add_argument("--every", type=natural, default=0,
                        help="seconds after which --tensorboard writes what is new, until the runs are done; 0: once")
    return parser.parse_args(argv)


def main(args) -> None:
    first, *others = args.directories
    needed = "tensorboard" if args.tensorboard else "matplotlib"
    if not importlib.util.find_spec(needed):
        fail(f"{'--tensorboard needs' if args.tensorboard else 'the pages need'} {needed}: pip install {needed}")
    if args.every and not args.tensorboard:
        fail("--every goes with --tensorboard")
    out = first / ("tensorboard" if args.tensorboard else "report.html")
    if args.out and (args.tensorboard or not others):
        fail(f"--out is for the page of several runs; what is asked for is written to {out}")
    is_table = not others and not args.tensorboard and (first / "table.json").is_file()
    for directory in args.directories:
        if not directory.is_dir():
            fail(f"{directory}: there is no such directory")
        if not is_table and not run.is_run(directory):
            fail(f"{directory}: neither the run of a stage (args.json, metrics or a certificate) nor, alone, a table")
    if others:
        out = args.out or Path("report.html")
    if out.is_dir() and not args.tensorboard or not out.parent.is_dir():
        fail(f"--out {out}: give a file in a directory that is there")
    if args.tensorboard:
        try:
            return tensorboard.export(args.directories, args.every)
        except KeyboardInterrupt:                               # the end of --every
            raise SystemExit(130) from None
    if others:
        run.write_runs_page(args.directories, out)
    else:
        table.write_table_files(first) if is_table else run.write_run_page(first)
        card.write_card(first)
    print(out)


if __name__ == "__main__":
    main(parse_args())
