"""The table at the end of a sweep: a row for each method on each dataset, and its figures over the seeds."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.files import written_atomically
from segue.progress import duration
from segue.statistics import SEEDS_FOR_INTERVAL, bootstrap_interval, interquartile_mean
from segue.sweep.cells import short_dataset
from segue.sweep.entry import Entry
from segue.sweep.results import Result, scores

ALL_DATASETS = "all"
NOTE = (
    "Score: mean over the evaluation episodes of each seed's last policy (normalised where the dataset has reference "
    "scores: 0 random, 100 expert; else the return), then over the seeds. std: sample standard deviation over the "
    f"seeds. IQM: interquartile mean; its 95 % interval: stratified bootstrap over seeds, from {SEEDS_FOR_INTERVAL} "
    "seeds on. Before: the score at the hand-over, before the online phase. Behaviour: the policy that made the data. "
    "Time and speed: means over runs, evaluations included."
)


@dataclass(frozen=True)
class Row:
    """One method on one dataset; None where it is not known."""

    dataset: str
    label: str
    planned: int  # seeds
    done: int  # of them
    scores: dict[int, float]  # by seed, of the finished ones
    normalised: bool
    before: float | None
    behaviour: float | None
    mean: float | None
    std: float | None
    iqm: float | None
    interval: tuple[float, float] | None
    wall_time_s: float | None
    speed: float | None
    unit: str


def rows(entries: list[Entry]) -> list[Row]:
    """A row for each method on each dataset, then, if there are several datasets, one for each method over them."""
    datasets = list(dict.fromkeys(entry.cell.dataset for entry in entries))
    labels = list(dict.fromkeys(entry.cell.label for entry in entries))
    made = [
        _row(dataset, label, [e for e in entries if (e.cell.dataset, e.cell.label) == (dataset, label)])
        for dataset in datasets
        for label in labels
    ]
    if len(datasets) > 1:
        made += [_overall([row for row in made if row.label == label]) for label in labels]
    return made


def _row(dataset: str, label: str, entries: list[Entry]) -> Row:
    results = [Result.read(entry.cell.folder) for entry in entries if entry.status == "finished"]
    normalised = bool(results) and all(result.is_normalised for result in results)
    reached = {seed: x for result in results for seed, x in scores(result.final, normalised).items()}
    before = [x for result in results for x in scores(result.handover, normalised).values()]
    behaviour = [result.behaviour.get("normalised_mean" if normalised else "return_mean") for result in results]
    speeds = [result.speed for result in results if result.speed is not None]
    return Row(
        dataset=short_dataset(dataset),
        label=label,
        planned=sum(len(entry.cell.seeds) for entry in entries),
        done=sum(len(entry.cell.seeds) for entry in entries if entry.status == "finished"),
        scores=reached,
        normalised=normalised,
        before=_mean(before),
        behaviour=_mean([x for x in behaviour if x is not None]),
        **_figures([list(reached.values())] if reached else []),
        wall_time_s=_mean([result.wall_time_s for result in results]),
        speed=_mean(speeds),
        unit=results[0].unit if results else "",
    )


def _overall(of_method: list[Row]) -> Row:
    """One method over all datasets: only where every one of them has normalised scores, which alone can be averaged."""
    complete = all(row.scores and row.normalised for row in of_method)
    befores, behaviours = [row.before for row in of_method], [row.behaviour for row in of_method]
    return Row(
        dataset=ALL_DATASETS,
        label=of_method[0].label,
        planned=sum(row.planned for row in of_method),
        done=sum(row.done for row in of_method),
        scores={},
        normalised=complete,
        before=_mean([x for x in befores if x is not None]) if complete and None not in befores else None,
        behaviour=_mean([x for x in behaviours if x is not None]) if complete and None not in behaviours else None,
        **_figures([list(row.scores.values()) for row in of_method] if complete else []),
        wall_time_s=None,
        speed=None,
        unit="",
    )


def _figures(strata: list[list[float]]) -> dict[str, Any]:
    """Mean, std, IQM and its interval of the scores of every dataset; std over seeds is known of one dataset only."""
    values = [x for stratum in strata for x in stratum]
    enough = bool(strata) and all(len(stratum) >= SEEDS_FOR_INTERVAL for stratum in strata)
    return {
        "mean": float(np.mean(values)) if values else None,
        "std": float(np.std(values, ddof=1)) if len(strata) == 1 and len(values) > 1 else None,
        "iqm": interquartile_mean(values) if values else None,
        "interval": bootstrap_interval(strata) if enough else None,
    }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


# -- as text, and as files


def lines(table: list[Row]) -> list[list[str]]:
    """The table's head and its rows, as a person reads them."""
    online = any(row.before is not None for row in table)
    head = ["dataset", "method", "seeds", "behaviour", *(["before"] if online else [])]
    head += ["score", "std", "IQM", "95 % interval", "time", "speed"]
    body = []
    for row in table:
        seeds = str(row.done) if row.done == row.planned else f"{row.done} of {row.planned}"
        interval = f"{row.interval[0]:.1f} to {row.interval[1]:.1f}" if row.interval else "-"
        time = "-" if row.wall_time_s is None else duration(row.wall_time_s)
        speed = "-" if row.speed is None else f"{row.speed:,.0f} {row.unit}"
        figures = [_number(row.mean) + ("" if row.normalised or row.mean is None else " (return)"), _number(row.std)]
        before = [_number(row.before)] if online else []
        body.append(
            [row.dataset, row.label, seeds, _number(row.behaviour), *before, *figures, _number(row.iqm), interval,
             time, speed]
        )  # fmt: skip
    return [head, *body]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def write(folder: Path, entries: list[Entry], made: dict[str, Any]) -> list[Row]:
    """`table.csv`, `table.md` and `results.json` in the sweep's folder; `made` says how the sweep was run."""
    table = rows(entries)
    failed = [entry for entry in entries if entry.status == "failed"]
    text = _markdown(lines(table)) + f"\n{NOTE}\n"
    if failed:
        text += "\nFailed:\n\n" + "".join(f"- {entry.cell.title}: {entry.error}\n" for entry in failed)
    with written_atomically(folder / "table.md") as path:
        path.write_text(text)
    with written_atomically(folder / "table.csv") as path, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV)
        writer.writerows([_plain(row)[name] for name in CSV] for row in table)
    content = {"sweep": made, "rows": [_plain(row) for row in table], "runs": [_run(entry) for entry in entries]}
    with written_atomically(folder / "results.json") as path:
        path.write_text(json.dumps(content, indent=1) + "\n")
    return table


CSV = (
    "dataset", "method", "seeds_planned", "seeds", "unit", "behaviour", "before", "mean", "std", "iqm", "interval_low",
    "interval_high", "wall_time_s", "steps_per_second", "steps",
)  # fmt: skip


def _plain(row: Row) -> dict[str, Any]:
    low, high = row.interval or (None, None)
    return {
        "dataset": row.dataset,
        "method": row.label,
        "seeds_planned": row.planned,
        "seeds": row.done,
        "unit": "normalised" if row.normalised else "return",
        "behaviour": row.behaviour,
        "before": row.before,
        "mean": row.mean,
        "std": row.std,
        "iqm": row.iqm,
        "interval_low": low,
        "interval_high": high,
        "wall_time_s": row.wall_time_s,
        "steps_per_second": row.speed,
        "steps": row.unit.removesuffix("/s"),
        "scores": row.scores,
    }


def _run(entry: Entry) -> dict[str, Any]:
    cell = entry.cell
    run: dict[str, Any] = {
        "method": cell.label,
        "dataset": cell.dataset,
        "seeds": list(cell.seeds),
        "status": entry.status,
        "folder": str(cell.folder),
        "command": ["segue", *cell.words()],
    }
    if entry.status == "failed":
        return run | {"error": entry.error, "log": str(cell.log)}
    if entry.status != "finished":
        return run
    result = Result.read(cell.folder)
    return run | {
        "final": result.final,
        "handover": result.handover,
        "wall_time_s": result.wall_time_s,
        "steps_per_second": result.speed,
        "unit": result.unit,
    }


def _markdown(table: list[list[str]]) -> str:
    head, *body = table
    rule = ["---", "---", *["---:"] * (len(head) - 2)]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *body])
