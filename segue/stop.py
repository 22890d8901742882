"""Leaving in good order: SIGTERM and Ctrl-C ask the run to save and go; a second Ctrl-C goes at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType

# How long the command waits for a call that cannot be interrupted, such as the compilation of a large program, before
# it leaves without it: the last checkpoint is there. None, from Python: a notebook must not end with a run.
patience_seconds: float | None = None


class Interrupted(Exception):
    """The run was asked to stop; everything is saved. `exit_code` is what a shell expects of that signal."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class Diverged(Exception):
    """A metric left every sensible range; the last good checkpoint is kept."""


class StopSignals:
    """While entered, `requested()` tells whether a stop was asked for. Outside the main thread it never is."""

    def __init__(self, remedy: str) -> None:
        """`remedy` says how to go on after a stop."""
        self.remedy = remedy
        self.signal: int | None = None
        self.previous: dict[int, object] = {}
        self.left = threading.Event()

    def requested(self) -> bool:
        """A stop was asked for."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + (self.signal or signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number

    def _watch(self, pipe: int, patience: float) -> None:
        """Leave if the main thread does not, once a signal has come: it may be deep in a call for long."""
        received = os.read(pipe, 1)
        if received and not self.left.wait(patience):
            text = f"stopped amid a long call; go on from the last checkpoint: {self.remedy}"
            print(text, file=sys.stderr, flush=True)
            os._exit(128 + received[0])

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGTERM, signal.SIGINT):
            self.previous[number] = signal.signal(number, self._handle)
        if patience_seconds is not None:
            pipe, self.wakeup = os.pipe()
            os.set_blocking(self.wakeup, False)
            signal.set_wakeup_fd(self.wakeup, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(pipe, patience_seconds), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.left.set()
        for number, handler in self.previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self.previous and patience_seconds is not None:
            signal.set_wakeup_fd(-1)
            os.close(self.wakeup)
