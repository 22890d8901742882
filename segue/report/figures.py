"""What the report draws: learning curves, Q-values, SSAR's coefficient, and returns beside the dataset's."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from segue.report.axis import PhaseAxis, phase_axis
from segue.report.group import Group, Series, spread
from segue.report.plot import MUTED, Band, Bars, Dots, Figure, Item, Level, Line, Panel, Symbol
from segue.report.read import Behaviour, Score

ROW_NAME = 28  # characters a line
BARS_TALL = 170  # pixels
GUARD_MARKS: dict[str, tuple[Symbol, str]] = {
    "warning": ("down", "#E69F00"),
    "restored": ("cross", "#C0392B"),
    "held": ("square", "#C0392B"),
}
POINTS = 400  # a curve with more is thinned to about as many: more than a screen can show


def dataset_figures(dataset: str, groups: Sequence[Group], suffix: str) -> list[Figure]:
    """All figures of one dataset for which there is something to draw; `suffix` tells their files from others'."""
    figures = [
        _learning_curves(dataset, groups, suffix),
        _returns(dataset, groups, suffix),
        _q_values(dataset, groups, suffix),
        *_coefficients(groups, suffix),
    ]
    return [figure for figure in figures if figure]


def behaviour_of(groups: Sequence[Group]) -> Behaviour | None:
    """The dataset's own returns, from the first run that knows them."""
    return next((run.behaviour for group in groups for run in group.runs if run.behaviour), None)


def normalised(groups: Sequence[Group]) -> bool:
    """Whether every score of these groups is known as a normalised one, so that they can share that axis."""
    scores = [
        score
        for group in groups
        for run in group.runs
        for phase in run.phases
        for score in [*phase.evaluations, *phase.final]
    ]
    return bool(scores) and all(score.normalised_mean is not None for score in scores)


def short_name(dataset: str) -> str:
    """A dataset's reference as a title can hold it: without its options and its folders."""
    name = dataset.partition("?")[0]
    return name if name.startswith("segue/") else name.replace("\\", "/").rsplit("/", 1)[-1]


def _learning_curves(dataset: str, groups: Sequence[Group], suffix: str) -> Figure | None:
    norm = normalised(groups)
    data = [{name: g.evaluations(name, norm) for name in g.phase_names()} for g in groups]
    axis = phase_axis(groups, data)
    if not axis.stretches:
        return None
    items = [item for g, by_phase in zip(groups, data, strict=True) for item in curves(g, by_phase, axis)]
    behaviour = behaviour_of(groups)
    level = (behaviour.normalised_mean if norm else behaviour.return_mean) if behaviour else None
    if level is not None:
        items.append(Level(level, "behaviour policy's mean"))
    events = _guard_marks(groups, axis, norm)
    items += events
    unit = "Normalised score (0 random, 100 expert)" if norm else "Return per episode"
    many = any(len(group.seeds) > 1 for group in groups)
    return Figure(
        name=f"learning-curves{suffix}",
        title=f"Score while learning on {short_name(dataset)}",
        reading="Each line is the mean over seeds"
        + (", the shaded area runs from the lowest to the highest seed and thin lines are single seeds" if many else "")
        + "; right of the hand-over the policy goes on learning in the environment, and above the dashed line it is "
        "better than the policy that collected the data."
        + (" Marks show what the guard did, at the mean return of the latest training episodes." if events else ""),
        x_label=axis.label,
        x_range=(0, 1),
        x_ticks=axis.ticks(),
        spans=axis.spans(),
        panels=[Panel(unit, items)],
        height=460,
    )


def _guard_marks(groups: Sequence[Group], axis: PhaseAxis, norm: bool) -> list[Item]:
    """What guards did, at the returns that made them do it."""
    marks: list[Item] = []
    names = [stretch.name for stretch in axis.stretches]
    for event, (symbol, colour) in GUARD_MARKS.items():
        x, y, hover = [], [], []
        for group in groups:
            unit = _unit(group) if norm else (1.0, 0.0)
            for name in group.phase_names():
                found = [e for phase in group.phases(name) for e in phase.guard_events if e.event == event]
                if unit is None or name not in names:
                    continue
                for e in found:
                    x.append(float(axis.place(name, e.step)))
                    y.append(unit[0] * e.return_mean + unit[1])
                    hover.append(f"{_as_template(group.label)}, seed {e.seed}, step {e.step:,}: {event}")
        if x:
            marks.append(Dots(x, y, colour, symbol, hover, f"guard: {event}"))
    return marks


def _unit(group: Group) -> tuple[float, float] | None:
    """(a, b) of normalised score = a return + b; None where too few scores say so."""
    scores = [s for name in group.phase_names() for phase in group.phases(name) for s in phase.evaluations]
    pairs = sorted((s.return_mean, s.normalised_mean) for s in scores if s.normalised_mean is not None)
    if not pairs or pairs[0][0] == pairs[-1][0]:
        return None
    (low, low_normalised), (high, high_normalised) = pairs[0], pairs[-1]
    slope = (high_normalised - low_normalised) / (high - low)
    return slope, low_normalised - slope * low


def _as_template(text: str) -> str:
    """Text of a run, for plotly's templates."""
    return escape(text).replace("{", "&#123;")


def _q_values(dataset: str, groups: Sequence[Group], suffix: str) -> Figure | None:
    data = [
        {name: thin(g.metric(name, lambda record: record.get("critic_1_mean"))) for name in g.phase_names()}
        for g in groups
    ]
    axis = phase_axis(groups, data)
    if not axis.stretches:
        return None
    return Figure(
        name=f"q-values{suffix}",
        title=f"What the critic expects on {short_name(dataset)}",
        reading="The first critic's mean value on the training batches, a discounted return: a jump at the hand-over "
        "or a steep climb without better scores above is over-estimation.",
        x_label=axis.label,
        x_range=(0, 1),
        x_ticks=axis.ticks(),
        spans=axis.spans(),
        panels=[
            Panel(
                "Mean Q-value (discounted return)",
                [item for g, by_phase in zip(groups, data, strict=True) for item in curves(g, by_phase, axis)],
            )
        ],
        height=400,
    )


def _coefficients(groups: Sequence[Group], suffix: str) -> list[Figure]:
    """One figure for each group that has a coefficient, all on the same axis."""
    quantiles = {
        group.label: [{name: thin(group.metric(name, _quantile(i))) for name in group.phase_names()} for i in range(5)]
        for group in groups
    }
    ssar = [group for group in groups if any(quantiles[group.label][2].values())]
    axis = phase_axis(ssar, [quantiles[group.label][2] for group in ssar])
    names = [f"coefficients{suffix}" + (f"-{slug(group.label)}" if len(ssar) > 1 else "") for group in ssar]
    return [_coefficient(g, quantiles[g.label], axis, name) for g, name in zip(ssar, names, strict=True)]


def _coefficient(group: Group, quantiles: list[dict[str, Series]], axis: PhaseAxis, name: str) -> Figure:
    """SSAR's coefficient β over time: its quantiles on the batch, and the threshold n that drives it."""
    bands: list[Item] = []
    steps_of_n: list[Item] = []
    highest = 1.0  # β lies between 0 and 1, unless a method says otherwise
    for stretch in axis.stretches:
        if not quantiles[2].get(stretch.name):
            continue
        levels = [spread(q[stretch.name])[:2] for q in quantiles]  # five quantiles, each averaged over seeds
        x = axis.place(stretch.name, levels[2][0])
        highest = max(highest, float(levels[4][1].max()))
        labels = ["middle 90 % of states", "middle 50 %", "median"] if not bands else ["", "", ""]
        bands += [
            Band(x, levels[0][1], levels[4][1], group.colour, "90", labels[0]),
            Band(x, levels[1][1], levels[3][1], group.colour, "50", labels[1], opacity=0.3),
            Line(
                x, levels[2][1], group.colour, "median", labels[2], what=f"median, {stretch.name}", steps=levels[2][0]
            ),
        ]
        for steps, n in thin(group.metric(stretch.name, lambda r: r.get("threshold_n"))).values():
            place = axis.place(stretch.name, steps)
            steps_of_n.append(
                Line(place, n, MUTED, "n", width=1.8, stairs=True, what=f"n, {stretch.name}", steps=steps)
            )
    panels = [Panel("Coefficient β", bands, share=0.72, y_range=(0, highest * 1.03))]
    if steps_of_n:
        panels.append(Panel("Threshold n", steps_of_n, share=0.28))
    return Figure(
        name=name,
        title=f"How strongly {group.label} holds the policy to the data",
        reading="A high coefficient holds the policy to the dataset's actions, near 0 it is free; the bands show how "
        "differently states are treated"
        + (", and n is how far the policy may stray from the data." if steps_of_n else "."),
        x_label=axis.label,
        x_range=(0, 1),
        x_ticks=axis.ticks(),
        spans=axis.spans(),
        panels=panels,
        height=480,
    )


def _returns(dataset: str, groups: Sequence[Group], suffix: str) -> Figure | None:
    """Above: the dataset's returns. Below, on the same axis: each evaluation episode at the end of a phase."""
    behaviour = behaviour_of(groups)
    rows: list[str] = []
    dots: list[Item] = []
    for group in groups:
        for online, stage in ((False, "offline"), (True, "online")):
            scores = last_scores(group, online)
            if not scores:
                continue
            y = float(len(rows))
            stage += " end" if group.finals(online) else " so far"
            rows.append("\n".join([*textwrap.wrap(group.label, ROW_NAME), stage]))
            episodes = np.array([r for score in scores for r in score.returns])
            hover = [f"seed {score.seed}: %{{x:,.0f}}" for score in scores for _ in score.returns]
            if episodes.size:
                # Spread over a narrow strip by the golden ratio, so that equal returns do not hide each other.
                strip = y + 0.5 * ((np.arange(episodes.size) * 0.618034) % 1 - 0.5)
                dots.append(Dots(episodes, strip, group.colour, hover=hover))
            mean = float(np.mean([score.return_mean for score in scores]))
            dots.append(Dots([mean], [y], group.colour, "bar", ["mean over seeds: %{x:,.0f}"]))
    tall = max((30 + 16 * row.count("\n") for row in rows), default=0) * len(rows)  # pixels
    panels = [Panel("", dots, share=tall, rows=rows)] if rows else []
    if behaviour and len(behaviour.edges) > 1 and len(behaviour.counts) == len(behaviour.edges) - 1:
        total = sum(behaviour.counts) or 1
        percent = np.asarray(behaviour.counts) / total * 100
        bars: list[Item] = [
            Bars(behaviour.edges, percent, MUTED, "dataset's episodes"),
            Level(behaviour.return_mean, "behaviour policy's mean", upright=True),
        ]
        panels.insert(0, Panel("Dataset's episodes (%)", bars, share=BARS_TALL))
    if not panels:
        return None
    return Figure(
        name=f"returns{suffix}",
        title=f"The policy's returns beside the dataset's on {short_name(dataset)}",
        reading="Grey bars are the dataset's episodes; below, each dot is one episode of the last logged evaluation "
        "(all seeds), the upright stroke the mean score: right of the grey is better than anything in the data.",
        x_label="Return per episode (undiscounted sum of rewards)",
        panels=panels,
        height=100 + BARS_TALL + tall,
    )


def last_scores(group: Group, online: bool) -> list[Score]:
    """Per seed the scores at the end of offline (online) training, with single returns where they were logged."""
    logged: dict[int, Score] = {}
    for run in group.runs:
        for phase in run.phases:
            if phase.online == online:
                logged |= {score.seed: score for score in phase.evaluations}  # ascending: the last one stays
    finals = {score.seed: score for score in group.finals(online)}
    scores = []
    for seed in sorted(logged | finals):
        final, last = finals.get(seed), logged.get(seed)
        if final and not final.returns and last:
            final = Score(**{**vars(final), "returns": last.returns})
        score = final or last
        if score:
            scores.append(score)
    return scores


def slug(text: str) -> str:
    """A name for a file: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text.replace("→", "to")).strip("-").lower() or "group"


def curves(group: Group, data: dict[str, Series], axis: PhaseAxis) -> list[Item]:
    """Band, single seeds and mean of one group, phase by phase; not joined across borders, where scores may jump."""
    items: list[Item] = []
    labelled = False
    for stretch in axis.stretches:
        series = data.get(stretch.name)
        if not series:
            continue
        steps, mean, low, high = spread(series)
        x = axis.place(stretch.name, steps)
        if len(series) > 1:
            items.append(Band(x, low, high, group.colour, group.label))
            for seed, (seed_steps, values) in series.items():
                what = f"{group.label}, seed {seed}, {stretch.name}"
                place = axis.place(stretch.name, seed_steps)
                items.append(
                    Line(place, values, group.colour, group.label, width=0.8, opacity=0.45, what=what, steps=seed_steps)
                )
        what = f"{group.label}, mean over seeds, {stretch.name}"
        label = "" if labelled else group.label
        items.append(Line(x, mean, group.colour, group.label, label, dash=group.dash, what=what, steps=steps))
        labelled = True
    return items


def _quantile(i: int) -> Any:
    def read(record: dict[str, Any]) -> Any:
        quantiles = record.get("coefficient_quantiles")
        return quantiles[i] if isinstance(quantiles, list) and len(quantiles) == 5 else None

    return read


def thin(series: Series) -> Series:
    """Every k-th point and the last one, so that about POINTS are left."""
    thinned = {}
    for seed, (steps, values) in series.items():
        keep = np.unique(np.append(np.arange(0, steps.size, -(-steps.size // POINTS)), steps.size - 1))
        thinned[seed] = (steps[keep], values[keep])
    return thinned
