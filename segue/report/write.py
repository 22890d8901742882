"""Write a report: read the runs, draw everything, then write page, pictures and table."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from segue.errors import UserError
from segue.report.draw_png import draw_png
from segue.report.figures import dataset_figures, slug
from segue.report.group import Group, group_runs
from segue.report.handover_figures import handover_figures
from segue.report.page import Section, page
from segue.report.read import read_run
from segue.report.scores import final_scores_csv


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Report on these run folders in the folder `out`; returns the path of its page, `out/report.html`.

    Besides the page, `out` gets each figure as a PNG and all final scores as `report.csv`. Files of an earlier report
    there are overwritten, others left alone. If a run cannot be read, nothing is written.
    """
    out = Path(out)
    if not runs:
        raise UserError("a report needs at least one run folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"cannot write the report to {out}: there is a file of that name")
    folders = list({Path(run).resolve(): Path(run) for run in runs}.values())
    loaded = [read_run(folder) for folder in folders]
    notes = list(dict.fromkeys(note for run in loaded for note in run.notes))
    groups = group_runs(loaded, notes)

    by_dataset: dict[str, list[Group]] = {}
    for group in groups:
        by_dataset.setdefault(group.dataset, []).append(group)
    sections = [
        Section(dataset, dataset_figures(dataset, members, suffix) + handover_figures(members, suffix), members)
        for dataset, members in by_dataset.items()
        for suffix in [f"-{slug(dataset)}" if len(by_dataset) > 1 else ""]
    ]
    _name_apart(sections)
    html = page(loaded, groups, sections, notes)

    try:
        out.mkdir(parents=True, exist_ok=True)
        for section in sections:
            for figure in section.figures:
                draw_png(figure, out / f"{figure.name}.png")
        _write(out / "report.csv", final_scores_csv(groups))
        _write(out / "report.html", html)
    except OSError as error:
        raise UserError(f"cannot write the report to {out}: {error.strerror or error}") from error
    return out / "report.html"


def _name_apart(sections: Sequence[Section]) -> None:
    """Two labels may give one file name (lr=0.1 and lr=0-1): the second such figure gets a number."""
    taken: dict[str, int] = {}
    for section in sections:
        for place, figure in enumerate(section.figures):
            taken[figure.name] = taken.get(figure.name, 0) + 1
            if taken[figure.name] > 1:
                section.figures[place] = replace(figure, name=f"{figure.name}--{taken[figure.name]}")


def _write(path: Path, text: str) -> None:
    """Write by renaming, so that a reader (or a browser) never meets half a page."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
