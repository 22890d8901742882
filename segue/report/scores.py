"""Final scores: one row per group for the table, one row per run, phase and seed for `report.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segue.report.group import Group
from segue.report.read import Phase, Run, Score
from segue.statistics import (
    SEEDS_FOR_INTERVAL,
    bootstrap_interval,
    interquartile_mean,
    standard_error,
    standard_error_of_mean,
)


@dataclass(frozen=True)
class Estimate:
    """A score over seeds: mean, its standard errors over episodes and over seeds, IQM with a 95 % interval."""

    seeds: int
    mean: float
    error_episodes: float | None
    error_seeds: float | None
    iqm: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Result:
    """The same scores in raw and, if known, in normalised units."""

    episodes: int
    raw: Estimate
    normalised: Estimate | None


@dataclass(frozen=True)
class Row:
    """A group's line in the table; None where there is no such phase or it is not finished."""

    group: Group
    offline: Result | None
    online: Result | None
    drop_return: float | None
    drop_normalised: float | None
    lowest_over_start: tuple[float, float] | None  # mean over seeds and worst seed
    offline_time_s: float | None
    online_time_s: float | None


@dataclass(frozen=True)
class Overall:
    """One method's scores at one stage over several datasets."""

    label: str
    online: bool
    datasets: int
    seeds: int
    iqm: float
    interval: tuple[float, float]


def table(groups: Sequence[Group]) -> list[Row]:
    """One row per group, in their order."""
    return [
        Row(
            group=group,
            offline=_result(group.finals(online=False)),
            online=_result(group.finals(online=True)),
            drop_return=_mean_drop(group, "drop_return"),
            drop_normalised=_mean_drop(group, "drop_normalised"),
            lowest_over_start=_lowest(group),
            offline_time_s=_wall_time(group, online=False),
            online_time_s=_wall_time(group, online=True),
        )
        for group in groups
    ]


def estimate(values: Sequence[float], errors: Sequence[float | None]) -> Estimate:
    """Summary of one score per seed and each one's standard error over its episodes."""
    known = [error for error in errors if error is not None]
    enough = len(values) >= SEEDS_FOR_INTERVAL
    return Estimate(
        seeds=len(values),
        mean=float(np.mean(values)),
        error_episodes=standard_error_of_mean(known) if len(known) == len(values) else None,
        error_seeds=standard_error(values) if len(values) >= 2 else None,
        iqm=interquartile_mean(values) if enough else None,
        interval=bootstrap_interval([values]) if enough else None,
    )


def overall(groups: Sequence[Group]) -> list[Overall]:
    """IQM over all seeds of all datasets, for methods that were scored on at least two, in normalised units.

    Methods are compared on the datasets that all of them have, for a mean over other tasks says nothing.
    """
    rows = []
    for online in (False, True):
        scores: dict[str, dict[str, list[float]]] = {}
        for group in groups:
            values = [s.normalised_mean for s in group.finals(online) if s.normalised_mean is not None]
            if values:
                scores.setdefault(group.label, {}).setdefault(group.dataset, []).extend(values)
        common = set.intersection(*(set(by_dataset) for by_dataset in scores.values())) if scores else set()
        if len(common) < 2:
            continue
        for label, by_dataset in scores.items():
            strata = [by_dataset[dataset] for dataset in sorted(common)]
            pooled = [value for stratum in strata for value in stratum]
            interval = bootstrap_interval(strata)
            rows.append(Overall(label, online, len(common), len(pooled), interquartile_mean(pooled), interval))
    return rows


CSV_COLUMNS = (
    "run",
    "method",
    "label",
    "dataset",
    "environment",
    "phase",
    "kind",
    "steps",
    "seed",
    "episodes",
    "return_mean",
    "return_standard_error",
    "normalised_mean",
    "normalised_standard_error",
    "drop_return",
    "drop_normalised",
    "lowest_over_start",
    "phase_wall_time_s",
)


def final_scores_csv(groups: Sequence[Group]) -> str:
    """All final scores as CSV; empty cells where a value is unknown."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for group in groups:
        for run in group.runs:
            writer.writerows(_csv_rows(group, run))
    return text.getvalue()


def _csv_rows(group: Group, run: Run) -> list[list[object]]:
    rows: list[list[object]] = []
    for phase in run.phases:
        for score in phase.final:
            drop = phase.drop.get(score.seed, {})
            rows.append(
                [
                    run.folder,
                    run.method,
                    group.label,
                    run.dataset,
                    run.environment,
                    phase.name,
                    "online" if phase.online else "offline",
                    phase.steps,
                    score.seed,
                    score.episodes,
                    score.return_mean,
                    score.return_error,
                    score.normalised_mean,
                    score.normalised_error,
                    drop.get("drop_return"),
                    drop.get("drop_normalised"),
                    lowest_over_start(phase, score.seed) if phase.online else None,
                    phase.wall_time_s,
                ]
            )
    return rows


def _result(scores: Sequence[Score]) -> Result | None:
    if not scores:
        return None
    normalised = [score.normalised_mean for score in scores if score.normalised_mean is not None]
    return Result(
        episodes=min(score.episodes for score in scores),
        raw=estimate([score.return_mean for score in scores], [score.return_error for score in scores]),
        normalised=estimate(normalised, [score.normalised_error for score in scores])
        if len(normalised) == len(scores)
        else None,
    )


def _mean_drop(group: Group, key: str) -> float | None:
    """Mean over seeds of the first online phase's drop."""
    drops = []
    for run in group.runs:
        first = next((phase for phase in run.phases if phase.online), None)
        drops += [d[key] for d in first.drop.values() if d.get(key) is not None] if first else []
    return float(np.mean([d for d in drops if d is not None])) if drops else None


def lowest_over_start(phase: Phase, seed: int) -> float | None:
    """The lowest score after the start of an online phase as a share of that at its start, in normalised units where
    they are known; None where there is no start, or one that is not above 0."""
    start = next((score for score in phase.handover if score.seed == seed), None)
    if start is None:
        return None
    norm = start.normalised_mean is not None
    later = [score.value(norm) for score in phase.evaluations if score.seed == seed and (score.step or 0) > 0]
    known, base = [value for value in later if value is not None], start.value(norm)
    return min(known) / base if known and base is not None and base > 0 else None


def _lowest(group: Group) -> tuple[float, float] | None:
    """Over the seeds, of the first online phase."""
    shares: list[float] = []
    for run in group.runs:
        first = next((phase for phase in run.phases if phase.online), None)
        found = [lowest_over_start(first, score.seed) for score in first.handover] if first else []
        shares += [share for share in found if share is not None]
    return (float(np.mean(shares)), min(shares)) if shares else None


def _wall_time(group: Group, online: bool) -> float | None:
    """Time of all offline (online) phases of all runs; runs side by side count each."""
    times = [
        phase.wall_time_s
        for run in group.runs
        for phase in run.phases
        if phase.online == online and phase.wall_time_s is not None
    ]
    return sum(times) if times else None
