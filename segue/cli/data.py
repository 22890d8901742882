"""`segue data`: list, info, validate, convert."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from segue.errors import UserError

if TYPE_CHECKING:
    from segue.data import Dataset

REFERENCE_HELP = "segue/NAME, minari:ID, d4rl:PATH, ogbench:PATH, or a .npz, .parquet or .csv file"


class _Parser(argparse.ArgumentParser):
    """argparse, but a wrong option is a one-line user error like every other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` shows the options")


def main(argv: list[str]) -> int:
    """Run `segue data ARGV`; the exit code: 0, or 2 after one line on stderr that says what to mend."""
    try:
        options = _parser().parse_args(argv)
        options.run(options)
    except UserError as error:
        print(f"segue data: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="segue data", description="Look at, check and convert datasets.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    listing = commands.add_parser("list", help="the built-in datasets")
    listing.set_defaults(run=_list)

    info = commands.add_parser("info", help="size, returns, lengths, endings, action saturation, coverage")
    info.add_argument("--plot", metavar="FILE", type=Path, help="draw a histogram of the returns")
    info.set_defaults(run=_info)

    validate = commands.add_parser("validate", help="run every check")
    validate.set_defaults(run=_validate)

    convert = commands.add_parser("convert", help="write as .npz, .parquet, .csv or .hdf5 (D4RL's layout)")
    convert.set_defaults(run=_convert)

    for command in (info, validate, convert):
        command.add_argument("reference", metavar="REF", help=REFERENCE_HELP)
        command.add_argument(
            "--env", metavar="ID", help="Gymnasium id the data belongs to; gives the action bounds too"
        )
        command.add_argument("--transitions", metavar="N", type=int, help="size to generate, or first rows to keep")
    convert.add_argument("out", metavar="OUT", type=Path, help="file to write")
    for command in (listing, info, validate):
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _list(options: argparse.Namespace) -> None:
    from segue.data import list_datasets

    records = list_datasets()
    if options.json:
        print(json.dumps(records, indent=2))
        return
    rows = [
        (str(r["reference"]), f"{r['transitions']:,}", "yes" if r["cached"] else "no", str(r["environment_id"]))
        for r in records
    ]
    _print_table([("dataset", "transitions", "generated", "environment"), *rows])
    print(f"\nOther data: {REFERENCE_HELP.replace('segue/NAME, ', '')}.")


def _info(options: argparse.Namespace) -> None:
    from segue.data.summary import plot_returns, summarise

    dataset = _load(options)
    summary = summarise(dataset)
    if options.plot:
        plot_returns(dataset, options.plot)
    if options.json:
        print(json.dumps(summary, indent=2))
        return
    _print_table([(label, value) for label, value in _info_rows(summary)])
    if options.plot:
        print(f"\nhistogram of returns: {options.plot}")


def _validate(options: argparse.Namespace) -> None:
    dataset = _load(options)
    checked = "columns, values, episode ends, action bounds"
    if options.env:
        from segue.data.environments import make_environment
        from segue.data.validate import check_environment

        environment = make_environment(options.env, **dataset.environment_kwargs)
        try:
            check_environment(dataset, environment)
        finally:
            environment.close()
        checked += f", spaces of {options.env}"
    if options.json:
        print(json.dumps({"source": dataset.source, "valid": True, "transitions": len(dataset), "checked": checked}))
        return
    print(f"valid: {len(dataset):,} transitions in {len(dataset.episode_ends):,} episodes (checked: {checked})")


def _convert(options: argparse.Namespace) -> None:
    from segue.data.convert import WRITERS, convert

    if options.out.suffix.lower() not in WRITERS:  # before minutes of generating
        raise UserError(f"{options.out}: cannot write '{options.out.suffix}' files; choose one of {', '.join(WRITERS)}")
    dataset = _load(options)
    convert(dataset, options.out)
    print(f"{options.out}: {len(dataset):,} transitions in {len(dataset.episode_ends):,} episodes")


def _load(options: argparse.Namespace) -> Dataset:
    from segue.data import load_dataset

    with shown_progress(f"generating {options.reference}") as progress:
        return load_dataset(
            options.reference, transitions=options.transitions, environment_id=options.env, progress=progress
        )


@contextmanager
def shown_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress callback for `load_dataset`: a bar on a terminal, else a plain line on stderr for every tenth."""
    if not sys.stderr.isatty():
        tenths = [0]

        def line(done: int, total: int) -> None:
            if done * 10 // total > tenths[0]:
                tenths[0] = done * 10 // total
                print(f"{label}: {done:,} of {total:,} transitions", file=sys.stderr)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def _info_rows(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    saturation = summary["action_saturation"]
    per_dimension = " ".join(f"{100 * share:.1f}" for share in saturation["per_dimension"])
    limit = f" (limit {summary['max_episode_steps']})" if summary["max_episode_steps"] else ""
    yield "dataset", summary["source"]
    yield "environment", summary["environment_id"] or "not known (name one with --env)"
    yield "transitions", f"{summary['transitions']:,}"
    yield "episodes", f"{summary['episodes']:,}"
    yield "observation, action", f"{summary['observation_dim']}, {summary['action_dim']} values"
    yield "return", _spread(summary["returns"])
    if summary["normalised_returns"]:
        yield "normalised return", _spread(summary["normalised_returns"])
    yield "episode length", _spread(summary["lengths"]) + limit
    yield "endings", f"{summary['terminated']:,} terminated, {summary['truncated']:,} truncated"
    yield "saturated actions", f"{100 * saturation['overall']:.1f} % of values (per dimension: {per_dimension})"
    yield "coverage", f"{100 * summary['coverage']:.0f} % of a grid over the two main directions of the observations"


def _spread(values: dict[str, float]) -> str:
    return f"min {values['min']:,.1f}   mean {values['mean']:,.1f}   max {values['max']:,.1f}"


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
