"""Runs that differ in their seeds alone become one group: one curve, one row of the table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segue.report.read import Phase, Run, Score

Array = NDArray[np.float64]
Series = dict[int, tuple[Array, Array]]  # by seed: steps [T], values [T]

# Okabe and Ito's colours, told apart by colour-blind readers, without black and yellow: both schemes must show them.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dot", "dashdot")  # for the seventh group on, colours come again with another dash
NAMED_SETTINGS = 3


@dataclass(frozen=True)
class Group:
    """Runs of one method with one set of settings on one dataset."""

    label: str
    colour: str
    dash: str
    dataset: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({seed for run in self.runs for seed in run.seeds}))

    def phase_names(self) -> list[str]:
        return _unique([name for run in self.runs for name, _ in named_phases(run)])

    def phases(self, name: str) -> list[Phase]:
        """The phase of this name in each run that has it."""
        return [phase for run in self.runs for n, phase in named_phases(run) if n == name]

    def evaluations(self, name: str, normalised: bool) -> Series:
        """Evaluation scores over the steps of a phase; an online phase starts with the score at hand-over."""
        points: dict[int, dict[int, float]] = {}
        for phase in self.phases(name):
            for score in [*phase.evaluations, *phase.handover]:  # the latter is over more episodes
                value = score.value(normalised)
                if value is not None and np.isfinite(value):
                    points.setdefault(score.seed, {})[score.step or 0] = value
        return _series(points)

    def metric(self, name: str, read: Callable[[dict[str, Any]], Any]) -> Series:
        """A training metric over the steps of a phase; `read` takes it from a line, None where there is none."""
        points: dict[int, dict[int, float]] = {}
        for phase in self.phases(name):
            for record in phase.training:
                value = read(record)
                if isinstance(value, int | float) and np.isfinite(value):
                    points.setdefault(int(record["seed"]), {})[int(record["step"])] = float(value)
        return _series(points)

    def finals(self, online: bool) -> list[Score]:
        """Scores at the end of the last online (or offline) phase that has such scores, one per seed."""
        scores: list[Score] = []
        for run in self.runs:
            ends = [phase.final for phase in run.phases if phase.online == online and phase.final]
            scores += ends[-1] if ends else []
        return scores


def named_phases(run: Run) -> list[tuple[str, Phase]]:
    """A run's phases under names of their own: a second "online" (a run fine-tuned twice) becomes "online 2"."""
    seen: dict[str, int] = {}
    named = []
    for phase in run.phases:
        seen[phase.name] = seen.get(phase.name, 0) + 1
        named.append((phase.name if seen[phase.name] == 1 else f"{phase.name} {seen[phase.name]}", phase))
    return named


def group_runs(runs: Sequence[Run], notes: list[str]) -> list[Group]:
    """Group runs by method, dataset, environment and settings; labels name the settings that tell groups apart."""
    parents = {run.parent.folder.resolve() for run in runs if run.parent}
    buckets: dict[tuple[str, str, str, str], list[Run]] = {}
    for run in runs:
        if run.folder.resolve() in parents:
            notes.append(f"{run.folder} was fine-tuned by another run in this report; its curve is the start of that.")
            continue
        key = (run.method, run.dataset, run.environment, json.dumps(run.settings, sort_keys=True, default=str))
        bucket = buckets.setdefault(key, [])
        twice = sorted({seed for other in bucket for seed in other.seeds} & set(run.seeds))
        if twice:
            notes.append(
                f"{run.folder} repeats seed {', '.join(map(str, twice))} of {bucket[0].folder} with the same settings: "
                "not another sample, so it is left out."
            )
            continue
        bucket.append(run)

    labels = {key: _label(members[0], [m[0] for m in buckets.values()]) for key, members in buckets.items()}
    order = _unique(labels.values())
    groups = []
    for key, members in buckets.items():
        place = order.index(labels[key])
        groups.append(
            Group(
                label=labels[key],
                colour=PALETTE[place % len(PALETTE)],
                dash=DASHES[place // len(PALETTE) % len(DASHES)],
                dataset=members[0].dataset,
                runs=tuple(members),
            )
        )
    return groups


def _label(run: Run, others: Sequence[Run]) -> str:
    """The method and, where the same method stands on the same dataset with other settings, what differs."""
    rivals = [o for o in others if o.method == run.method and o.dataset == run.dataset]
    absent = object()
    differing = [
        f"{key}={run.settings[key]}"
        for key in run.settings
        if any(rival.settings.get(key, absent) != run.settings[key] for rival in rivals)
    ]
    if len({rival.environment for rival in rivals}) > 1:
        differing.insert(0, run.environment)
    if len(differing) > NAMED_SETTINGS:
        differing = [*differing[:NAMED_SETTINGS], f"{len(differing) - NAMED_SETTINGS} more"]
    return f"{run.method} ({', '.join(differing)})" if differing else run.method


def spread(series: Series) -> tuple[Array, Array, Array, Array]:
    """Steps, mean, lowest and highest value over the seeds [T], where all of them have values.

    Seeds log at the same steps as a rule, and then this is exact; elsewhere it interpolates between a seed's values.
    """
    first = max(steps[0] for steps, _ in series.values())
    last = min(steps[-1] for steps, _ in series.values())
    grid = np.unique(np.concatenate([steps for steps, _ in series.values()]))
    grid = grid[(grid >= first) & (grid <= last)]
    values = np.stack([np.interp(grid, steps, v) for steps, v in series.values()])  # [seeds, T]
    return grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def _series(points: dict[int, dict[int, float]]) -> Series:
    return {
        seed: (np.array(sorted(values), dtype=np.float64), np.array([values[s] for s in sorted(values)]))
        for seed, values in sorted(points.items())
    }


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
