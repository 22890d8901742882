"""Running the cells of a grid: as many processes at once as there are places for, each on its own cores."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from segue.stop import Interrupted
from segue.sweep.cells import Cell, clear_left_over, is_locked, state
from segue.sweep.entry import Entry, Status
from segue.sweep.machine import GB, free_memory, resident
from segue.sweep.show import Show

POLL_SECONDS = 0.2
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Schedule:
    """The grid being worked off."""

    def __init__(self, cells: list[Cell], places: list[list[int]], memory_gb_per_job: float, show: Show, remedy: str):
        """`remedy` says how to go on after an interruption."""
        self.entries = [Entry(cell, "finished" if state(cell.folder) == "finished" else "waiting") for cell in cells]
        self.of = {entry.cell: entry for entry in self.entries}
        self.free, self.memory, self.show, self.remedy = places, memory_gb_per_job * GB, show, remedy
        self.signals: list[int] = []

    def run(self, after_each: Callable[[], object]) -> list[Entry]:
        """Work until nothing is left; the entries, each finished or failed. `after_each` is called when one ended.

        Raises Interrupted after a signal: the runs were asked to save and have ended; a second signal kills them.
        """
        with _noted(self.signals), self.show:
            while self._with("waiting", "running"):
                self._pass_signals_on()
                if self._reap():
                    after_each()
                if self.signals and not self._with("running"):
                    done, number = len(self._with("finished")), self.signals[0]
                    raise Interrupted(
                        f"stopped; {done} of {len(self.entries)} runs are finished, the others are saved as far as "
                        f"they came. Go on with: {self.remedy}",
                        128 + number,
                    )
                if not self.signals:
                    self._begin_what_can()
                self.show.tick(self.entries)
                time.sleep(POLL_SECONDS)
        return self.entries

    def _with(self, *statuses: Status) -> list[Entry]:
        return [entry for entry in self.entries if entry.status in statuses]

    # -- beginning

    def _begin_what_can(self) -> None:
        for entry in self._with("waiting"):
            parent = self.of[entry.cell.parent] if entry.cell.parent else None
            if parent is not None and parent.status == "failed":
                entry.status, entry.error = "failed", f"not begun: {parent.cell.title} failed, which it goes on from"
                self.show.ended(entry, self.entries)
            elif parent is None or parent.status == "finished":
                if not self.free or not self._memory_is_there():
                    return
                if not is_locked(entry.cell.folder):
                    self._begin(entry)

    def _memory_is_there(self) -> bool:
        """Enough for one more, with what the running ones have yet to take set aside. The first one always begins."""
        running = [entry.process.pid for entry in self._with("running") if entry.process]
        reserved = sum(max(0.0, self.memory - resident(pid)) for pid in running)
        return not running or free_memory() - reserved >= self.memory

    def _begin(self, entry: Entry) -> None:
        cell = entry.cell
        clear_left_over(cell.folder)
        if state(cell.folder) == "finished":  # by the process that had locked it
            entry.status = "finished"
            self.show.ended(entry, self.entries)
            return
        words = cell.to_do()
        cell.log.parent.mkdir(parents=True, exist_ok=True)
        entry.cores, entry.began, entry.status = self.free.pop(0), time.monotonic(), "running"
        with cell.log.open("ab") as log, _pinned(entry.cores):
            log.write(f"$ {shlex.join(['segue', *words])}\n".encode())
            log.flush()
            entry.process = _process(words, log)
        self.show.began(entry, self.entries)

    # -- ending

    def _reap(self) -> bool:
        """Take note of what has ended; whether anything has."""
        ended = False
        for entry in self._with("running"):
            assert entry.process is not None
            code = entry.process.poll()
            if code is None:
                continue
            ended = True
            self.free.insert(0, entry.cores)
            if code == 0 and state(entry.cell.folder) == "finished":
                entry.status = "finished"
            elif self.signals and code in (130, 143, -signal.SIGTERM, -signal.SIGKILL):
                entry.status = "waiting"
            else:
                entry.status, entry.error = "failed", _last_words(entry.cell, code)
            self.show.ended(entry, self.entries)
        return ended

    def _pass_signals_on(self) -> None:
        """The first asks the runs to save and end, the second kills them."""
        for entry in self._with("running"):
            if entry.process and entry.signals < len(self.signals):
                entry.signals = len(self.signals)
                entry.process.send_signal(signal.SIGTERM if entry.signals == 1 else signal.SIGKILL)


def _process(words: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "segue.sweep.child", str(os.getpid()), *words],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ,  # a GPU's memory is for all
        start_new_session=True,  # Ctrl-C reaches the sweep alone, which then asks its runs to stop
    )


def _last_words(cell: Cell, code: int) -> str:
    """Why a run failed, in one line."""
    if code == -signal.SIGKILL:
        return "killed by the system: out of memory? `memory_gb_per_job` says how much a run needs"
    lines = [line.strip() for line in cell.log.read_text(errors="replace").splitlines() if line.strip()]
    return f"exit code {code}, without a word" if lines[-1].startswith("$ segue ") else lines[-1]


@contextmanager
def _pinned(cores: list[int]) -> Iterator[None]:
    """Processes begun inside may use these cores; [] leaves it as it is."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


@contextmanager
def _noted(signals: list[int]) -> Iterator[None]:
    """Signals that would end the sweep are put into the list instead."""
    previous = {number: signal.signal(number, lambda sent, _: signals.append(sent)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
