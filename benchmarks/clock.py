"""Timing on a machine that may do other things as well."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

Clock = Literal["wall", "cpu"]

# "cpu" is the processor time of all threads of this process. For work on a single thread it equals wall time on an
# idle machine, and does not grow while other processes hold the core. It means nothing for several threads or a GPU.
CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def best_of(trials: int, run: Callable[[], object], clock: Clock) -> float:
    """Seconds of the fastest of several trials: what else the machine does can only slow one down.

    `run` must return only when the work is really done.
    """
    now = CLOCKS[clock]
    seconds = []
    for _ in range(trials):
        start = now()
        run()
        seconds.append(now() - start)
    return min(seconds)
