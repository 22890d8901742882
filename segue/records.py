"""What a run remembers of its phases, and what its summary makes of that."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segue.data import Dataset


@dataclass
class Record:
    """What is known of a phase so far; part of every checkpoint."""

    name: str
    kind: str
    steps: int
    next_evaluation: int
    wall_time_s: float = 0.0
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    final: list[dict[str, Any]] = field(default_factory=list)
    handover: list[dict[str, Any]] = field(default_factory=list)
    guard: list[dict[str, Any]] = field(default_factory=list)  # what it did
    critic_check: list[dict[str, Any]] = field(default_factory=list)  # at the end, and at the start of an online phase
    selection: dict[str, Any] | None = None


def short(line: dict[str, Any]) -> str:
    """An evaluation's score and its standard error, for the terminal."""
    value, error = line["normalised_mean"], line["normalised_standard_error"]
    if value is None:
        value, error = line["return_mean"], line["return_standard_error"]
    return f"{value:.1f}±{error:.1f}"


def drops(record: Record) -> list[dict[str, Any]]:
    """Per seed: the lowest score in the first tenth of the online phase minus the score at the hand-over."""
    drops = []
    for start in record.handover:
        early = [e for e in record.evaluations if e["seed"] == start["seed"] and 0 < e["step"] <= record.steps // 10]
        if not early:
            continue
        lowest = min(early, key=lambda e: e["return_mean"])
        drop = {"seed": start["seed"], "drop_return": lowest["return_mean"] - start["return_mean"]}
        drop["drop_normalised"] = None
        if start["normalised_mean"] is not None:
            drop["drop_normalised"] = lowest["normalised_mean"] - start["normalised_mean"]
        drops.append(drop)
    return drops


def behaviour(dataset: Dataset) -> dict[str, Any]:
    """The returns of the policy that made the data."""
    returns = dataset.episode_returns
    counts, edges = np.histogram(returns, bins=min(50, max(1, len(returns))))
    normalised = dataset.normalised(returns.mean())
    return {
        "return_mean": returns.mean(),
        "return_min": returns.min(),
        "return_max": returns.max(),
        "normalised_mean": None if normalised is None else float(normalised),
        "episodes": len(returns),
        "histogram": {"edges": edges, "counts": counts},
    }
