"""What a person sees while a run works: phase, step, speed, time left, last score."""

from __future__ import annotations

import sys
import time
from types import TracebackType

PLAIN_INTERVAL_S = 15.0  # between lines where the output is no terminal


def duration(seconds: float) -> str:
    """3723.0 -> "1:02:03"."""
    minutes, s = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"


class Progress:
    """One phase's progress on standard error: a live bar on a terminal, plain lines elsewhere, nothing if quiet."""

    def __init__(self, phase: str, total: int, unit: str, start: int = 0, quiet: bool = False):
        self.phase, self.total, self.unit, self.start, self.quiet = phase, total, unit, start, quiet
        self.began = time.perf_counter()
        self.last_line = self.began
        self.note = ""
        self.step = start
        self.bar = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            self.bar = RichProgress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[line]}"),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task(phase, total=total, completed=start, line="compiling")

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def line(self) -> str:
        """Step, speed, time left, last note."""
        seconds = time.perf_counter() - self.began
        speed = (self.step - self.start) / seconds if seconds > 0 else 0.0
        left = duration((self.total - self.step) / speed) if speed > 0 else "?"
        text = f"{self.step:,}/{self.total:,} {self.unit}  {speed:,.0f}/s  {left} left"
        return f"{text}  {self.note}" if self.note else text

    def at(self, step: int) -> None:
        """Show that `step` was reached."""
        self.step = step
        if self.bar:
            self.bar.update(self.task, completed=step, line=self.line())
        elif not self.quiet and (step == self.total or time.perf_counter() - self.last_line > PLAIN_INTERVAL_S):
            self._print()

    def say(self, note: str) -> None:
        """Remember a short note, such as the last score, and show it now."""
        self.note = note
        if self.bar:
            self.bar.update(self.task, line=self.line())
        elif not self.quiet:
            self._print()

    def _print(self) -> None:
        self.last_line = time.perf_counter()
        print(f"{self.phase}: {self.line()}", file=sys.stderr, flush=True)
