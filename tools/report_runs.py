"""Write the report of a run, or compare several: slowfast-report OUTPUT_DIR [OUTPUT_DIR ...]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from slowfast.utils.io import Parser, check_output, guarded


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="OUTPUT_DIR", help="output folder of a run")
    parser.add_argument(
        "--out",
        metavar="FILE.html",
        help="page to write; by default OUTPUT_DIR/report.html, or for several runs comparison.html",
    )
    parser.add_argument("--format", choices=("markdown", "csv"), default="markdown", help="format of the table")
    parser.add_argument("--table", metavar="FILE", help="write the table into this file instead of the standard output")
    return parser.parse_args(argv)


def execute(args: argparse.Namespace) -> int:
    """Write the page and the table; return 0.

    Raises:
        ValueError: a folder is not one of a run, or an output cannot be written.
    """
    from slowfast.visualization.compare import FORMATS, comparison_table
    from slowfast.visualization.report import write_comparison, write_report
    from slowfast.visualization.runs import read_runs

    for option, path in (("--out", args.out), ("--table", args.table)):
        if path:
            check_output(path, option)
    runs = read_runs(args.runs)
    if len(runs) == 1:
        check_output(args.out or str(Path(args.runs[0], "report.html")), "--out")
    table = comparison_table(runs)
    if len(runs) == 1:
        page = write_report(args.runs[0], args.out)
    else:
        page = Path(args.out or "comparison.html")
        write_comparison(runs, table, page)
    print(f"written: {page}", file=sys.stderr)
    text = FORMATS[args.format](table)
    if args.table:
        Path(args.table).write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


def main() -> int:
    """Run the command line; return 0, or a code of `guarded`."""
    args = parse_args()
    return guarded(lambda: execute(args))


if __name__ == "__main__":
    sys.exit(main())
