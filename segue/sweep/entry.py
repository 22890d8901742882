"""A run of a sweep and how it stands."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field
from typing import Literal

from segue.sweep.cells import Cell

Status = Literal["waiting", "running", "finished", "failed"]


@dataclass(eq=False)
class Entry:
    """A cell and how it stands."""

    cell: Cell
    status: Status = "waiting"
    error: str = ""  # of a failed one: the last line that it said
    began: float = 0.0  # of a running one, on the monotonic clock
    process: subprocess.Popen[bytes] | None = None
    cores: list[int] = field(default_factory=list)
    signals: int = 0  # that were passed on to it

    @property
    def seconds(self) -> float:
        """Since its process began."""
        return time.monotonic() - self.began
