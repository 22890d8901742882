"""`segue report RUN... --out DIR`: one page, pictures and a table from run folders."""

from __future__ import annotations

from pathlib import Path

from segue.cli.options import Parser


def main(argv: list[str]) -> int:
    """Write the report and say where it is."""
    parser = Parser(
        prog="segue report",
        description="Compare runs: one self-contained page (report.html, no network needed), its figures as PNG, and "
        "all final scores as report.csv. Runs that differ only in their seeds become one curve.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder, finished or not")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the report (made if needed)")
    arguments = parser.parse_args(argv)

    from segue.report import write_report  # here, because matplotlib takes a second to import

    path = write_report(arguments.runs, arguments.out)
    print(f"Report: {path}")
    return 0
