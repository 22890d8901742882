"""The table at the end of a run."""

from __future__ import annotations

from typing import Any

from segue.api import Run


def _cell(entries: list[dict[str, Any]]) -> str:
    """Mean over seeds of a result, with the standard error over its episodes."""
    if not entries:
        return "-"
    key = "normalised" if entries[0].get("normalised_mean") is not None else "return"
    mean = sum(e[f"{key}_mean"] for e in entries) / len(entries)
    error = sum(e[f"{key}_standard_error"] ** 2 for e in entries) ** 0.5 / len(entries)
    return f"{mean:.1f} ± {error:.1f}"


def print_result(run: Run) -> int:
    """Print what was reached and where it lies; 0."""
    from rich.console import Console
    from rich.table import Table

    summary = run.summary
    phases = summary.get("phases", [])
    scored = [entry for phase in phases for entry in phase.get("final", [])]
    normalised = bool(scored) and scored[0].get("normalised_mean") is not None
    table = Table(title=f"{summary.get('method')} on {summary.get('dataset')}", title_justify="left")
    unit = "normalised score" if normalised else "return"
    for column in ("", "steps", "seconds", "steps/s", f"{unit}, {scored[0]['episodes']} episodes" if scored else unit):
        table.add_column(column, justify="left" if not column else "right")
    behaviour = summary.get("behaviour")
    if behaviour:
        value = behaviour["normalised_mean"] if normalised else behaviour["return_mean"]
        table.add_row("behaviour policy", "", "", "", f"{value:.1f}")
    for phase in phases:
        if phase["kind"] == "online" and phase.get("handover"):
            table.add_row("at the hand-over", "", "", "", _cell(phase["handover"]))
        speed = phase["steps_per_second"]
        row = (f"{phase['steps']:,}", f"{phase['wall_time_s']:.0f}", f"{speed:.0f}" if speed else "-")
        table.add_row(phase["name"], *row, _cell(phase.get("final", [])))
    Console().print(table)
    print(f"run folder: {run.path}\nreport:     segue report {run.path} --out {run.path}/report")
    return 0
