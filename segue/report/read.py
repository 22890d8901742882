"""Read a run folder: `config.json`, `metrics.jsonl`, `summary.json` and, for a fine-tuned run, its parent's folder.

Runs may be unfinished: `summary.json` may be missing or lack phases, and the last line of `metrics.jsonl` may be cut
off by a kill. What is there is read; what is missing is told in `Run.notes`. Anything else that does not fit is an
error that names file and line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segue.errors import UserError

OFFLINE = "offline_evaluation.json"


@dataclass(frozen=True)
class Score:
    """Returns of one policy (one seed), over `episodes` evaluation episodes; None where it is not known."""

    seed: int
    step: int | None
    episodes: int
    return_mean: float
    return_error: float | None
    normalised_mean: float | None
    normalised_error: float | None
    returns: tuple[float, ...] = ()

    def value(self, normalised: bool) -> float | None:
        return self.normalised_mean if normalised else self.return_mean

    def error(self, normalised: bool) -> float | None:
        return self.normalised_error if normalised else self.return_error


@dataclass(frozen=True)
class CriticCheck:
    """One seed's critic beside the Monte-Carlo returns of its policy's episodes; quantiles are 5, 25, 50, 75, 95 %."""

    seed: int
    step: int
    estimate: str  # "Q", or "V" of a method without a Q
    policy: str  # its form
    difference_mean: float
    correlation: float | None
    estimate_quantiles: tuple[float, ...]
    return_quantiles: tuple[float, ...]
    rank_means: dict[str, float]  # by kind of sampled actions, "uniform" and "nearby"; empty of a V
    rank_counts: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class GuardEvent:
    """What the guard of a hand-over did."""

    seed: int
    step: int
    event: str  # "warning", "restored" or "held"
    return_mean: float
    start_return: float
    bound: float


@dataclass(frozen=True)
class Phase:
    """One phase of a run: what was planned (config), what was measured (metrics) and what it ended with (summary)."""

    name: str
    online: bool  # steps are environment steps; otherwise gradient updates
    steps: int
    evaluations: list[Score]
    training: list[dict[str, Any]]  # the training lines of metrics.jsonl
    finished: bool
    wall_time_s: float | None = None
    final: list[Score] = field(default_factory=list)
    handover: list[Score] = field(default_factory=list)
    drop: dict[int, dict[str, float | None]] = field(default_factory=dict)  # by seed
    critic_checks: list[CriticCheck] = field(default_factory=list)
    guard_events: list[GuardEvent] = field(default_factory=list)  # in the order of steps


@dataclass(frozen=True)
class Behaviour:
    """Returns of the policy that collected the dataset."""

    return_mean: float
    normalised_mean: float | None
    episodes: int | None
    edges: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """One run folder, its phases preceded by those of the runs that it was fine-tuned from."""

    folder: Path
    config: dict[str, Any]
    method: str  # with the parents' methods in front: "td3_bc → sac"
    dataset: str
    environment: str
    seeds: tuple[int, ...]
    settings: dict[str, Any]  # with the parents' settings under "parent."
    phases: list[Phase]
    behaviour: Behaviour | None
    selection: dict[str, Any] | None
    parent: Run | None
    notes: list[str]
    offline_evaluation: dict[str, Any] | None = None  # what `segue evaluate --offline` found


def read_run(folder: Path, ancestors: tuple[Path, ...] = ()) -> Run:
    """Read one run folder and the chain of its parents."""
    if not folder.exists():
        raise UserError(f"no run at {folder}: there is no such folder")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.json")
    config = _object(folder / "config.json")
    missing = [key for key in ("method", "dataset") if not isinstance(config.get(key), str)]
    if missing:
        raise UserError(f"{folder / 'config.json'}: it does not say its {' and '.join(missing)}")
    summary = _object(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    notes: list[str] = []
    records = list(_records(folder / "metrics.jsonl", notes)) if (folder / "metrics.jsonl").is_file() else []
    try:
        phases = _phases(config, summary, records)
        behaviour = _behaviour(summary["behaviour"]) if summary.get("behaviour") else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder}: config.json or summary.json is not as Segue writes it ({type(error).__name__}: {error})"
        ) from error
    notes += _unfinished(folder, phases)

    method, settings = config["method"], _settings(config)
    selection = summary.get("selection")
    parent = _parent(folder, config, ancestors, notes)
    if parent:
        phases = parent.phases + phases
        method = f"{parent.method} → {method}"
        settings |= {f"parent.{key}": value for key, value in parent.settings.items()}
        behaviour, selection = behaviour or parent.behaviour, selection or parent.selection
        notes = parent.notes + notes
    return Run(
        folder=folder,
        config=config,
        method=method,
        dataset=config["dataset"],
        environment=str(config.get("environment") or "no environment"),
        seeds=tuple(config.get("seeds") or ()),
        settings=settings,
        phases=phases,
        behaviour=behaviour,
        selection=selection,
        parent=parent,
        notes=notes,
        offline_evaluation=_object(folder / OFFLINE) if (folder / OFFLINE).is_file() else None,
    )


def _parent(folder: Path, config: dict[str, Any], ancestors: tuple[Path, ...], notes: list[str]) -> Run | None:
    """The run that this one was fine-tuned from; relative paths count from here or from beside the run folder."""
    if not config.get("parent"):
        return None
    chain = (*ancestors, folder.resolve())
    for path in (Path(config["parent"]), folder.parent / config["parent"], folder.parent / Path(config["parent"]).name):
        if (path / "config.json").is_file() and path.resolve() not in chain:
            return read_run(path, chain)
    notes.append(f"{folder}: its parent run {config['parent']} was not found, so its offline curve is missing.")
    return None


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Everything that makes a curve what it is; seeds excluded, for they are what a curve is averaged over."""
    settings = {key: value for key, value in (config.get("settings") or {}).items() if key not in ("seed", "seeds")}
    for phase in config.get("phases") or []:
        settings[f"{phase['name']}.steps"] = phase.get("steps")
    return settings


def _phases(config: dict[str, Any], summary: dict[str, Any], records: list[dict[str, Any]]) -> list[Phase]:
    """Phases in the order of the config; a phase that only the summary knows comes last."""
    results = {phase["name"]: phase for phase in summary.get("phases") or []}
    planned = {phase["name"]: phase for phase in config.get("phases") or []}
    phases = []
    for name, plan in {**results, **planned}.items():
        result = results.get(name, {})
        mine = [r for r in records if r.get("phase") == name]
        evaluations = [_score(r) for r in mine if r["kind"] == "evaluation"]
        phases.append(
            Phase(
                name=name,
                online=plan.get("kind", name) == "online",
                steps=int(plan.get("steps") or 0),
                evaluations=evaluations or [_score(e) for e in result.get("evaluations") or []],
                training=[r for r in mine if r["kind"] == "train"],
                finished=bool(result) and (result.get("steps") or 0) >= (plan.get("steps") or 0),
                wall_time_s=_finite(result.get("wall_time_s")),
                final=[_score(s) for s in result.get("final") or []],
                handover=[_score(s) for s in result.get("handover") or []],
                drop={
                    int(d["seed"]): {key: _finite(d.get(key)) for key in ("drop_return", "drop_normalised")}
                    for d in result.get("drop") or []
                },
                critic_checks=[_critic_check(r) for r in mine if r["kind"] == "critic_check"],
                guard_events=sorted(
                    (_guard_event(r) for r in mine if r["kind"] == "guard"), key=lambda e: (e.step, e.seed)
                ),
            )
        )
    order = list(planned) + [name for name in results if name not in planned]
    return sorted(phases, key=lambda phase: order.index(phase.name))


def _unfinished(folder: Path, phases: list[Phase]) -> Iterator[str]:
    for phase in phases:
        reached = max([0, *(r["step"] for r in phase.training), *(e.step or 0 for e in phase.evaluations)])
        if not phase.finished and (reached < phase.steps or phase is phases[-1]):
            yield (
                f"{folder}: unfinished. Its {phase.name} phase stands at step {reached:,} of {phase.steps:,}; "
                f"the report shows what is there (to go on: segue resume {folder})."
            )
            return


def _score(record: dict[str, Any]) -> Score:
    return Score(
        seed=int(record["seed"]),
        step=record.get("step"),
        episodes=int(record.get("episodes") or 0),
        return_mean=float(record["return_mean"]),
        return_error=_finite(record.get("return_standard_error")),
        normalised_mean=_finite(record.get("normalised_mean")),
        normalised_error=_finite(record.get("normalised_standard_error")),
        returns=tuple(record.get("returns") or ()),
    )


def _critic_check(record: dict[str, Any]) -> CriticCheck:
    kinds = [kind for kind in ("uniform", "nearby") if f"rank_{kind}_mean" in record]
    return CriticCheck(
        seed=int(record["seed"]),
        step=int(record["step"]),
        estimate=str(record["estimate"]),
        policy=str(record["policy"]),
        difference_mean=float(record["difference_mean"]),
        correlation=_finite(record["correlation"]),
        estimate_quantiles=tuple(map(float, record["estimate_quantiles"])),
        return_quantiles=tuple(map(float, record["return_quantiles"])),
        rank_means={kind: float(record[f"rank_{kind}_mean"]) for kind in kinds},
        rank_counts={kind: tuple(map(float, record[f"rank_{kind}_histogram"])) for kind in kinds},
    )


def _guard_event(record: dict[str, Any]) -> GuardEvent:
    returns = {name: float(record[name]) for name in ("return_mean", "start_return", "bound")}
    return GuardEvent(seed=int(record["seed"]), step=int(record["step"]), event=str(record["event"]), **returns)


PARSERS = {"evaluation": _score, "critic_check": _critic_check, "guard": _guard_event}


def _behaviour(record: dict[str, Any]) -> Behaviour | None:
    if _finite(record["return_mean"]) is None:
        return None
    histogram = record.get("histogram") or {}
    return Behaviour(
        return_mean=float(record["return_mean"]),
        normalised_mean=_finite(record.get("normalised_mean")),
        episodes=record.get("episodes"),
        edges=tuple(histogram.get("edges") or ()),
        counts=tuple(histogram.get("counts") or ()),
    )


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return content


def _records(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, each kind, phase and seed in ascending order of steps."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            key = (record["kind"], record["phase"], int(record["seed"]))
            step = int(record["step"])
            if record["kind"] in PARSERS:
                PARSERS[record["kind"]](record)
        except (ValueError, KeyError, TypeError) as error:
            # Every complete line ends with a newline, so only a line that a kill cut off is the last piece.
            if number == len(lines):
                notes.append(f"{path}: the last line is cut off (the run was killed while writing it); it is left out.")
                break
            what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path}, line {number}: damaged ({what}); remove that line to report the rest") from error
        # A resumed run repeats what it had done after its last checkpoint: the later telling holds.
        series = records.setdefault(key, [])
        while series and series[-1]["step"] >= step:
            series.pop()
        series.append(record)
    return [record for series in records.values() for record in series]
