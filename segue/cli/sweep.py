"""`segue sweep FILE`: a grid of runs on one machine."""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segue.cli.options import Parser
from segue.errors import UserError

if TYPE_CHECKING:
    from segue.sweep.cells import Cell
    from segue.sweep.file import Sweep
    from segue.sweep.table import Row

EXAMPLE = Path(__file__).parent.parent / "sweep" / "example.toml"
DESCRIPTION = """Methods x datasets x seeds x settings on one machine, as many runs at once as cores and memory allow.

Each run is an ordinary run folder, OUT/METHOD/DATASET/seed-N, made by an ordinary `segue` command; its messages are in
seed-N.log beside it. Finished runs are skipped, interrupted ones gone on with, and a failed one stops nothing: begin
the sweep again as often as you like, it takes up what is left. At the end: OUT/table.md, table.csv, results.json."""


def main(argv: list[str]) -> int:
    """Run what is left of the sweep; 0, or 1 if runs failed."""
    parser = Parser(
        prog="segue sweep",
        description=DESCRIPTION,
        epilog="a complete FILE:\n\n" + "".join(f"  {line}\n" for line in EXAMPLE.read_text().splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a TOML file; paths in it count from where you are")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once, instead of the file's `jobs`")
    parser.add_argument("--dry-run", action="store_true", help="check all, list runs and commands, and begin nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress on the terminal")
    options = parser.parse_args(argv)
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: give at least 1")

    from segue.sweep.before import check
    from segue.sweep.cells import cells, check_same, state
    from segue.sweep.file import read

    sweep = read(options.file)
    grid = cells(sweep)
    for cell in grid:
        check_same(cell)
    left = [cell for cell in grid if state(cell.folder) != "finished"]
    if options.dry_run:
        check(left, str(sweep.path), make_data=False)
        return _list(grid)
    with _locked(sweep):
        if left:
            check(left, str(sweep.path), make_data=True)
        return _run(sweep, grid, options)


def _list(grid: list[Cell]) -> int:
    from segue.sweep.cells import state

    for cell in grid:
        print(f"{state(cell.folder):<10}{shlex.join(['segue', *cell.words()])}")
    return 0


@contextmanager
def _locked(sweep: Sweep) -> Iterator[None]:
    """Only one process works on a sweep's folder. The file is copied to it: what made the results is beside them."""
    from segue.data.files import written_atomically

    try:
        sweep.out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f'{sweep.path}: out = "{sweep.out}" is a file: name a folder') from None
    folder = os.open(sweep.out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(folder)
        raise UserError(f"{sweep.out}: another sweep is at work in this folder; wait for its end") from None
    try:
        with written_atomically(sweep.out / "sweep.toml") as copy:
            copy.write_bytes(sweep.path.read_bytes())
        yield
    finally:
        os.close(folder)


def _run(sweep: Sweep, grid: list[Cell], options: argparse.Namespace) -> int:
    from segue.sweep.machine import GB, free_memory, places, share, usable_cores
    from segue.sweep.schedule import Schedule
    from segue.sweep.show import Show
    from segue.sweep.table import write

    cores = usable_cores()
    memory = free_memory() / (sweep.memory_gb_per_job * GB)
    jobs, cores_per_job = share(options.jobs or sweep.jobs, sweep.cores_per_job, len(cores), memory)
    again = shlex.join(["segue", "sweep", str(sweep.path)])
    made: dict[str, Any] = {"command": again, "jobs": jobs, "cores_per_job": cores_per_job, "cores": len(cores)}
    where = places(jobs, cores_per_job, cores)
    schedule = Schedule(grid, where, sweep.memory_gb_per_job, Show(jobs, options.quiet), again)
    if not options.quiet:
        done = sum(entry.status == "finished" for entry in schedule.entries)
        plan = f"{len(grid)} runs, {done} finished; {jobs} at once with {cores_per_job} of {len(cores)} cores each"
        print(f"{sweep.out}: {plan}", file=sys.stderr, flush=True)
    try:
        schedule.run(after_each=lambda: write(sweep.out, schedule.entries, made))
    finally:
        _print(write(sweep.out, schedule.entries, made), sweep.out)
    failed = [entry for entry in schedule.entries if entry.status == "failed"]
    if failed:
        print(f"{len(failed)} of {len(grid)} runs failed (again with: {again}):", file=sys.stderr)
        for entry in failed:
            print(f"  {entry.cell.title}: {entry.error}\n    log: {entry.cell.log}", file=sys.stderr)
    return 1 if failed else 0


def _print(table: list[Row], out: Path) -> None:
    from segue.sweep.table import lines

    if not any(row.done for row in table):
        return
    text = lines(table)
    widths = [max(len(line[i]) for line in text) for i in range(len(text[0]))]
    for line in text:
        padded = [
            word.rjust(width) if i > 1 else word.ljust(width)
            for i, (word, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(padded).rstrip())
    print(f"table: {out / 'table.md'}, {out / 'table.csv'}; every score: {out / 'results.json'}")
