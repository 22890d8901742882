"""What a run has reached, finished or under way, as its folder says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segue.sweep.cells import read_json

TAIL = 1 << 16  # bytes of metrics.jsonl that are looked at: some tens of lines


@dataclass(frozen=True)
class Result:
    """A finished run."""

    final: list[dict[str, Any]]  # for each seed: the score of its last policy
    handover: list[dict[str, Any]]  # for each seed: the score at the start of the online phase; [] without one
    behaviour: dict[str, Any]  # returns of the policy that made the data
    wall_time_s: float  # of all its phases, evaluations included
    speed: float | None  # steps a second of the last phase, evaluations included
    unit: Literal["updates/s", "env steps/s"]

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Of a finished run's folder."""
        summary = read_json(folder / "summary.json")
        phases = summary["phases"]
        return cls(
            final=phases[-1].get("final", []),
            handover=phases[-1].get("handover", []),
            behaviour=summary.get("behaviour") or {},
            wall_time_s=sum(phase["wall_time_s"] for phase in phases),
            speed=phases[-1]["steps_per_second"],
            unit="env steps/s" if phases[-1]["kind"] == "online" else "updates/s",
        )

    @property
    def is_normalised(self) -> bool:
        """Its scores are there in normalised units too."""
        return bool(self.final) and all(entry.get("normalised_mean") is not None for entry in self.final)


def scores(entries: list[dict[str, Any]], normalised: bool) -> dict[int, float]:
    """Seed -> score, of the entries of a summary."""
    return {entry["seed"]: float(entry["normalised_mean" if normalised else "return_mean"]) for entry in entries}


@dataclass(frozen=True)
class Position:
    """Where a run stands."""

    phase: str
    step: int
    steps: int  # of the phase
    share: float  # of all its phases' steps
    speed: float | None  # steps a second
    score: float | None  # the last one: normalised, or a return


def position(folder: Path) -> Position | None:
    """Where the run in `folder` stands, by the end of its metrics; None if it has not logged yet."""
    planned = read_json(folder / "config.json").get("phases", [])
    steps = {phase["name"]: phase["steps"] for phase in planned}
    lines = [line for line in _tail(folder / "metrics.jsonl") if line.get("phase") in steps and "step" in line]
    if not lines:
        return None
    phase, step = lines[-1]["phase"], lines[-1]["step"]
    before = sum(steps[name] for name in list(steps)[: list(steps).index(phase)])
    speed = score = None
    for line in lines:
        if line["kind"] == "train" and line["wall_time_s"] and line["phase"] == phase:
            speed = line["step"] / line["wall_time_s"]
        elif line["kind"] == "evaluation":
            score = float(line["return_mean"] if line["normalised_mean"] is None else line["normalised_mean"])
    return Position(phase, step, steps[phase], (before + step) / max(1, sum(steps.values())), speed, score)


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last whole lines of a file of JSON objects."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            start = max(0, file.tell() - TAIL)
            file.seek(start)
            pieces = file.read().split(b"\n")
    except OSError:
        return []
    return [json.loads(piece) for piece in pieces[bool(start) : -1]]
