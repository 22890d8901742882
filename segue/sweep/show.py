"""What a person sees while a sweep works: a live table on a terminal, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from segue.progress import duration
from segue.sweep.entry import Entry
from segue.sweep.results import Position, Result, position, scores

LIVE_INTERVAL_S, PLAIN_INTERVAL_S = 2.0, 60.0


class Show:
    """A sweep's progress on standard error."""

    def __init__(self, jobs: int, quiet: bool):
        """`jobs`: runs at once."""
        self.jobs, self.quiet = jobs, quiet
        self.last = time.monotonic()
        self.begun_at: dict[Entry, float] = {}  # the share of a run that was done when its process began
        self.took: dict[str, list[float]] = {}  # label -> seconds of its whole runs
        self.live = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)

    def __enter__(self) -> Show:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def began(self, entry: Entry, entries: list[Entry]) -> None:
        """A run's process has begun."""
        found = position(entry.cell.folder)
        self.begun_at[entry] = found.share if found else 0.0
        cores = f" (cores {' '.join(map(str, entry.cores))})" if entry.cores else ""
        verb = "goes on" if found else "begins"
        self._say(f"{_counts(entries)}  {verb}: {entry.cell.title}{cores}")

    def ended(self, entry: Entry, entries: list[Entry]) -> None:
        """A run has finished or failed, or was asked to stop."""
        text = {"finished": "finished", "failed": "FAILED", "waiting": "stopped"}[entry.status]
        if entry.status == "failed":
            self._say(f"{_counts(entries)}  {text}: {entry.cell.title}: {entry.error}")
            return
        if entry.status == "finished" and entry in self.begun_at:
            share = 1 - self.begun_at[entry]
            if share > 0:
                self.took.setdefault(entry.cell.label, []).append(entry.seconds / share)
        reached = _reached(entry) if entry.status == "finished" else ""
        self._say(f"{_counts(entries)}  {text}: {entry.cell.title}{reached}")

    def tick(self, entries: list[Entry]) -> None:
        """Show where the running ones stand, if it is time to."""
        if self.quiet or time.monotonic() - self.last < (LIVE_INTERVAL_S if self.live else PLAIN_INTERVAL_S):
            return
        self.last = time.monotonic()
        running = {entry: position(entry.cell.folder) for entry in entries if entry.status == "running"}
        left = self._left(entries, running)
        head = _counts(entries) + ("" if left is None else f", about {duration(left)} left")
        if not running:
            head += "; waiting for runs that another process works on"
        if self.live is None:
            self._say("; ".join([head, *(f"{entry.cell.title}: {_words(at)}" for entry, at in running.items())]))
            return
        from rich.table import Table

        table = Table(title=head, title_justify="left", show_edge=False, pad_edge=False)
        for column in ("running", "for", "where it stands"):
            table.add_column(column)
        for entry, at in running.items():
            table.add_row(entry.cell.title, duration(entry.seconds), _words(at))
        self.live.update(table, refresh=True)

    def _left(self, entries: list[Entry], running: dict[Entry, Position | None]) -> float | None:
        """Seconds until all is done, as far as runs of the same label, or of any, tell; None before they do."""
        took = {label: list(seconds) for label, seconds in self.took.items()}
        for entry, at in running.items():
            if at is not None and at.share > self.begun_at[entry]:
                took.setdefault(entry.cell.label, []).append(entry.seconds / (at.share - self.begun_at[entry]))
        known = [second for seconds in took.values() for second in seconds]
        if not known:
            return None
        total = longest = 0.0
        for entry in entries:
            if entry.status in ("waiting", "running"):
                of_label = took.get(entry.cell.label, known)
                at = running.get(entry)
                left = (1 - (at.share if at else 0.0)) * sum(of_label) / len(of_label)
                total, longest = total + left, max(longest, left)
        return max(longest, total / self.jobs)

    def _say(self, text: str) -> None:
        if self.live:
            self.live.console.print(text, highlight=False, markup=False)
        elif not self.quiet:
            print(text, file=sys.stderr, flush=True)


def _counts(entries: list[Entry]) -> str:
    failed = sum(entry.status == "failed" for entry in entries)
    done = sum(entry.status == "finished" for entry in entries)
    return f"[{done}/{len(entries)}" + (f", {failed} failed]" if failed else "]")


def _words(at: Position | None) -> str:
    if at is None:
        return "starting"
    speed = f", {at.speed:,.0f}/s" if at.speed else ""
    score = "" if at.score is None else f", score {at.score:.1f}"
    return f"{at.phase} {at.step:,}/{at.steps:,}{speed}{score}"


def _reached(entry: Entry) -> str:
    """The score and the speed of a finished run."""
    result = Result.read(entry.cell.folder)
    values = scores(result.final, result.is_normalised).values()
    text = f", {result.speed:,.0f} {result.unit}" if result.speed else ""
    if values:
        text = f", {'score' if result.is_normalised else 'return'} {sum(values) / len(values):.1f}{text}"
    return text + f", {duration(result.wall_time_s)}"
