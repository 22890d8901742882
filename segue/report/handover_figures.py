"""What the report draws of a hand-over: the constraint, critics beside returns, and their ranks of the actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from segue.report.axis import PhaseAxis, phase_axis
from segue.report.figures import curves, slug, thin
from segue.report.group import DASHES, PALETTE, Group
from segue.report.plot import MUTED, Boxes, Dots, Figure, Item, Line, Panel
from segue.report.read import CriticCheck

RANK_PANELS = {"uniform": "States (%), others\nuniform", "nearby": "States (%), others\nnearby"}
BESIDE = 0.18  # of the boxes of one stage, from its middle


class Stage(NamedTuple):
    """A point of a run at which every seed's critic was checked."""

    name: str
    checks: list[CriticCheck]


def handover_figures(groups: Sequence[Group], suffix: str) -> list[Figure]:
    """Up to three figures of each group, as far as it has their data; `suffix` tells their files from others'."""
    figures = []
    for group in groups:
        ending = suffix + (f"-{slug(group.label)}" if len(groups) > 1 else "")
        figures += [_constraint(group, ending), _calibration(group, ending), _ranks(group, ending)]
    return [figure for figure in figures if figure]


def stages(group: Group) -> list[Stage]:
    """Where the group's critics were checked, in order: the end of each phase, before that an online one's start."""
    found = []
    for name in group.phase_names():
        phases = group.phases(name)
        online = phases[0].online
        for start in (True, False):
            checks = [c for phase in phases for c in phase.critic_checks if (c.step == 0) == start]
            if checks:
                found.append(Stage(f"{name}, {'start' if start else 'end'}" if online else name, checks))
    return found


def _constraint(group: Group, ending: str) -> Figure | None:
    """Penalty with threshold and new references above, what weighs it below."""
    names = group.phase_names()
    penalty, threshold, multiplier, weight = (
        {name: thin(group.metric(name, _reader(key))) for name in names}
        for key in ("penalty", "threshold", "multiplier", "auxiliary_weight")
    )
    axis = phase_axis([group], [penalty])
    if not axis.stretches:
        return None
    above = curves(group, penalty, axis)
    label = "threshold"
    for stretch in axis.stretches:
        for seed, (steps, values) in threshold[stretch.name].items():
            what = f"threshold, seed {seed}, {stretch.name}"
            place = axis.place(stretch.name, steps)
            above.append(Line(place, values, MUTED, "threshold", label, dash="dot", what=what, steps=steps))
            label = ""
    references = _new_references(group, axis)
    above += references
    constrained = any(multiplier.values())
    below = curves(group, multiplier if constrained else weight, axis)
    panels = [Panel("Penalty", above, share=0.6)]
    if below:
        named = "Multiplier λ" if constrained else "Weight of the\nauxiliary advantage"
        panels.append(Panel(named, [_without_label(item) for item in below], share=0.4))
    reading = "Above, the mean penalty on the training batches: how far the policy is from its reference policy"
    if any(threshold.values()):
        reading += "; look whether it stays near or below the dotted threshold"
    if constrained:
        reading += ". Below, the multiplier: it grows while the penalty is above the threshold and falls otherwise"
    elif below:
        reading += ". Below, the weight with which the reference still pulls: it fades by schedule"
    if references:
        reading += ". Triangles: a policy that scored better became the reference, from which the penalty counts anew"
    return Figure(
        name=f"constraint{ending}",
        title=f"How far {group.label} goes from its reference policy",
        reading=reading + ".",
        x_label=axis.label,
        x_range=(0, 1),
        x_ticks=axis.ticks(),
        spans=axis.spans(),
        panels=panels,
        height=480,
    )


def _new_references(group: Group, axis: PhaseAxis) -> list[Item]:
    """A mark where the reference's score rose: at the start of the stretch of steps whose mean shows the rise."""
    x: list[float] = []
    y: list[float] = []
    hover: list[str] = []
    for stretch in axis.stretches:
        penalty = group.metric(stretch.name, _reader("penalty"))
        for seed, (steps, scores) in group.metric(stretch.name, _reader("reference_score")).items():
            rose = np.diff(scores) > 1e-6 * np.abs(scores[1:])
            # A rise within a stretch of averaged steps shows in two lines; it is one.
            first = np.flatnonzero(rose & ~np.append(False, rose[:-1]))
            x += axis.place(stretch.name, steps[first]).tolist()
            y += np.interp(steps[first], *penalty[seed]).tolist()
            hover += [f"seed {seed}, step {steps[i]:,.0f}: new reference" for i in first]
    return [Dots(x, y, group.colour, "up", hover, "new reference")] if x else []


def _calibration(group: Group, ending: str) -> Figure | None:
    """Boxes of the critic's values beside boxes of the returns, stage by stage."""
    found = stages(group)
    if not found:
        return None
    middle = np.arange(len(found), dtype=np.float64)
    names = sorted({check.estimate for stage in found for check in stage.checks})
    estimates, returns = (
        np.array([np.mean([pick(check) for check in stage.checks], axis=0) for stage in found])  # [stages, 5]
        for pick in (lambda check: check.estimate_quantiles, lambda check: check.return_quantiles)
    )
    reading = (
        "On the evaluation episodes of each stage, the critic's value of the policy's actions beside the discounted "
        "return that followed (boxes: the middle half, whiskers: the middle 90 %, each averaged over seeds). Look "
        "whether the coloured box lies level with the grey one: above it the critic over-estimates, far below it is "
        "pessimistic. Under each stage: the mean difference, and the correlation r over states."
    )
    if any(check.policy == "tanh_gaussian" for stage in found for check in stage.checks):
        reading += (
            " A SAC-form critic counts the entropy to come as well, which the returns do not: it may differ from them "
            "by this bonus and be right."
        )
    if "V" in names:
        reading += " PPO's V may be of rescaled rewards: then only its correlation says something."
    return Figure(
        name=f"calibration{ending}",
        title=f"What the critic of {group.label} expects, and what came",
        reading=reading,
        x_label="Stage of the run, mean difference, correlation",
        x_range=(-0.5, len(found) - 0.5),
        x_ticks=[(float(x), _with_figures(stage)) for x, stage in zip(middle, found, strict=True)],
        panels=[
            Panel(
                "Discounted return",
                [
                    Boxes(middle - BESIDE, estimates, group.colour, f"critic: {' or '.join(names)}"),
                    Boxes(middle + BESIDE, returns, MUTED, "Monte-Carlo return"),
                ],
            )
        ],
        height=460,
    )


def _with_figures(stage: Stage) -> str:
    """The name of a stage, the mean difference there, and the correlation where it is known."""
    difference = float(np.mean([check.difference_mean for check in stage.checks]))
    known = [check.correlation for check in stage.checks if check.correlation is not None]
    text = f"{stage.name}\n" + f"{difference:+.3g}".replace("-", "−")
    return text + (f"\nr = {np.mean(known):.2f}".replace("-", "−") if known else "")


def _ranks(group: Group, ending: str) -> Figure | None:
    """Histograms of the policy's actions' ranks, a line per stage."""
    found = [stage for stage in stages(group) if all(check.rank_counts for check in stage.checks)]
    if not found:
        return None
    panels: list[Panel] = []
    for kind, name in RANK_PANELS.items():
        items: list[Item] = []
        for number, stage in enumerate(found):
            counts = np.sum([check.rank_counts[kind] for check in stage.checks], axis=0)  # [bins]
            edges = np.linspace(0, 1, len(counts) + 1)
            percent = 100 * counts / max(counts.sum(), 1)
            means = [np.mean([check.rank_means[k] for check in stage.checks]) for k in RANK_PANELS]
            label = f"{stage.name}: mean {means[0]:.2f} / {means[1]:.2f}"
            items.append(
                Line(
                    edges,
                    np.append(percent, percent[-1]),
                    PALETTE[number % len(PALETTE)],
                    stage.name,
                    label if not panels else "",
                    dash=DASHES[number // len(PALETTE) % len(DASHES)],
                    stairs=True,
                    what=f"{stage.name}, rank from",
                )
            )
        panels.append(Panel(name, items))
    return Figure(
        name=f"ranks{ending}",
        title=f"How the critic of {group.label} ranks the policy's actions",
        reading="Rank: the share of 64 other actions in the same state that the critic thinks worse than the policy's "
        "(above uniformly random ones, below the policy's own with a little noise). At 1 the critic likes the policy's "
        "action best: the two are aligned. Mass at low ranks is the mismatch at which a policy that follows its critic "
        "leaves what it has learned; alignment should move it to the right. In the legend, the means above / below.",
        x_label="Rank of the policy's action (share of other actions with a lower Q)",
        x_range=(0, 1),
        panels=panels,
        height=520,
    )


def _reader(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda record: record.get(key)


def _without_label(item: Item) -> Item:
    """For a second panel: its group is in the legend already."""
    return replace(item, label="")
