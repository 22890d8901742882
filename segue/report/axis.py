"""One x-axis for all phases: each phase keeps its own scale of steps, the next one starts where it ends.

Offline steps are gradient updates, online steps are environment steps, and there are often ten times as many of the
former: on one common scale the online phase would be a sliver. So each phase gets a share of the width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from segue.report.group import Array, Group, Series
from segue.report.plot import Span

TICKS = 10  # at most, over the whole width


@dataclass(frozen=True)
class Stretch:
    """A phase's place on the axis."""

    name: str
    online: bool
    steps: float
    start: float
    width: float


@dataclass(frozen=True)
class PhaseAxis:
    """Where the steps of each phase lie between 0 and 1."""

    stretches: list[Stretch]

    @property
    def label(self) -> str:
        units = {s.name: "environment steps" if s.online else "gradient updates" for s in self.stretches}
        return "Steps within each phase (" + ", ".join(f"{name}: {unit}" for name, unit in units.items()) + ")"

    def place(self, name: str, steps: ArrayLike) -> Array:
        stretch = next(s for s in self.stretches if s.name == name)
        return np.asarray(stretch.start + np.asarray(steps, dtype=np.float64) / stretch.steps * stretch.width)

    def ticks(self) -> list[tuple[float, str]]:
        marks: list[tuple[float, str]] = []
        for number, stretch in enumerate(self.stretches):
            every = _round_up(stretch.steps / (TICKS * stretch.width))
            # A phase's last tick makes way for the 0 of the next one.
            end = stretch.steps * (1.0 if number == len(self.stretches) - 1 else 1 - 0.05 / stretch.width)
            steps = np.arange(0, end * (1 + 1e-9), every)
            marks += [(float(self.place(stretch.name, s)), count(float(s))) for s in steps]
        return marks

    def spans(self) -> list[Span]:
        spans = []
        for before, stretch in zip([None, *self.stretches], self.stretches, strict=False):
            border = "hand-over" if before and stretch.online and not before.online else ""
            if before and not border:
                border = " "  # a line without a name
            spans.append(
                Span(stretch.start, stretch.start + stretch.width, stretch.name, shaded=stretch.online, border=border)
            )
        return spans


def phase_axis(groups: Sequence[Group], data: Sequence[dict[str, Series]]) -> PhaseAxis:
    """The axis for these groups, `data` being each one's series by phase; phases without data get no place."""
    reach: dict[str, float] = {}
    for group, by_phase in zip(groups, data, strict=True):
        for name in group.phase_names():
            for steps, _ in by_phase.get(name, {}).values():
                reach[name] = max(reach.get(name, 1.0), float(steps[-1]))
    online = {name: phases[0].online for g in groups for name in reach if (phases := g.phases(name))}
    names = _in_order(sorted(reach, key=lambda name: online[name]), groups)
    steps = np.array([reach[name] for name in names])
    least = 0.6 / max(len(names), 1)
    widths = least + (1 - least * len(names)) * steps / steps.sum() if names else steps
    starts = np.concatenate([[0.0], np.cumsum(widths)])
    return PhaseAxis(
        [
            Stretch(name, online[name], float(n), float(start), float(width))
            for name, n, start, width in zip(names, steps, starts, widths, strict=False)
        ]
    )


def _in_order(names: list[str], groups: Sequence[Group]) -> list[str]:
    """These phases such that every group's own order holds; as they are given where no group says, or two disagree."""
    sorter: TopologicalSorter[str] = TopologicalSorter({name: () for name in names})
    for group in groups:
        mine = [name for name in group.phase_names() if name in names]
        for before, after in pairwise(mine):
            sorter.add(after, before)
    try:
        return list(sorter.static_order())
    except CycleError:
        return names


def count(steps: float) -> str:
    """A number of steps for people: 0, 500, 20k, 1.5M."""
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if steps >= unit:
            return f"{steps / unit:g}{suffix}"
    return f"{steps:g}"


def _round_up(x: float) -> float:
    """The next of 1, 2, 5 times a power of ten, at least 1."""
    power = 10.0 ** np.floor(np.log10(max(x, 1.0)))
    return next(float(m * power) for m in (1, 2, 5, 10) if m * power >= max(x, 1.0))
