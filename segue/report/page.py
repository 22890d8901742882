"""The page: one HTML file that needs nothing else, with plotly.js inside. All text from runs is escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from segue.errors import UserError
from segue.report.draw_html import draw_html
from segue.report.figures import behaviour_of, normalised
from segue.report.group import Group
from segue.report.plot import Figure
from segue.report.read import Run
from segue.report.scores import Estimate, Overall, Result, Row, overall, table
from segue.report.style import CSS, SCRIPT

OPEN_RUNS = 4  # with more runs, their commands start folded
NAMES_IN_TITLE = 4
HEADS = (
    "Method", "Dataset", "Seeds", "Behaviour", "After offline", "After online", "Drop", "Lowest / start", "Wall time",
)  # fmt: skip
GUARD_HEADS = ("Method", "Seed", "Phase", "Step", "What the guard did", "Return", "Return at the start", "Bound")
GUARD_WORDS = {
    "warning": "warned",
    "restored": "went back to the last good policy, learns on with a tighter constraint",
    "held": "went back to the last good policy, which acts on without learning",
}
GUARD_ROWS = 40  # of the table; the others are counted
OFFLINE_HEADS = ("Method", "Data", "Seed", "Discount", "Behaviour policy", "Policy", "Warnings")
# The browser itself then refuses whatever this page, or plotly, might ask of a network.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'none'"
)


@dataclass(frozen=True)
class Section:
    """A dataset's part of the page."""

    dataset: str
    figures: list[Figure]
    groups: list[Group]


def page(runs: Sequence[Run], groups: Sequence[Group], sections: Sequence[Section], notes: Sequence[str]) -> str:
    """The whole page as text."""
    from plotly.offline import get_plotlyjs

    figures = {figure.name: draw_html(figure) for section in sections for figure in section.figures}
    datasets = list(dict.fromkeys(group.dataset for group in groups))
    methods = list(dict.fromkeys(group.runs[0].method for group in groups))
    title = f"{_joined(methods, 'methods')} on {_joined(datasets, 'datasets')}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{_amount(len(runs), "run")}, {_amount(sum(len(g.seeds) for g in groups), "seed")} in all</p>',
        _notes(notes),
        _what_was_run(runs),
        "<h2>Final scores</h2>",
        _table(groups),
        _overall(overall(groups)),
        _offline_evaluations(runs),
        *(_section(section) for section in sections),
        "<footer>Written by <code>segue report</code>. The figures lie beside this page as PNG, the final scores of "
        "every seed in <code>report.csv</code>.</footer>",
    ]
    # "<" could end the script element, so JSON carries it as an escape.
    data = json.dumps(figures, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>Segue: {escape(title)}</title>",
            f"<style>{CSS}</style>",
            "</head>",
            "<body>",
            *parts,
            f'<script type="application/json" id="figures">{data}</script>',
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{SCRIPT}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.dataset)}</h2>"]
    for figure in section.figures:
        parts.append(
            f'<h3>{escape(figure.title)}</h3><p class="reading">{escape(figure.reading)}</p>'
            f'<div class="figure" id="{figure.name}" role="img" aria-label="{escape(figure.title)}"></div>'
            f"<noscript><p>This figure needs JavaScript; the same one is in {figure.name}.png.</p></noscript>"
        )
    parts.append(_guard_events(section.groups))
    if not section.figures:
        parts.append("<p>Nothing has been measured yet: no evaluation, no training metric.</p>")
    return "\n".join(parts)


def _guard_events(groups: Sequence[Group]) -> str:
    """What the guards of these groups' online phases did, if any did something."""
    rows = [
        (group.label, str(e.seed), name, f"{e.step:,}", GUARD_WORDS.get(e.event, e.event),
         _number(e.return_mean), _number(e.start_return), _number(e.bound))
        for group in groups for name in group.phase_names() for phase in group.phases(name) for e in phase.guard_events
    ]  # fmt: skip
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in GUARD_HEADS)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[:GUARD_ROWS])
    more = f" {len(rows) - GUARD_ROWS:,} more are in the runs' metrics.jsonl." if len(rows) > GUARD_ROWS else ""
    return (
        "<h3>What the guard did</h3>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        '<p class="reading">The guard holds the mean return of the latest training episodes against the greedy '
        "policy's at the start: it warns where it is low, and goes back to the last good policy where it is below the "
        f"bound.{more}</p>"
    )


def _offline_evaluations(runs: Sequence[Run]) -> str:
    """Values from data alone (`segue evaluate --offline`), where a run has them."""
    rows = []
    for run in runs:
        found = run.offline_evaluation
        if found is None:
            continue
        try:
            behaviour = found["behaviour"]
            for one in found["estimates"]:
                cells = (
                    run.method, found["dataset"], str(one["seed"]), f"{found['discount']:g}",
                    _bracketed(behaviour), _bracketed(one), "; ".join(one["warnings"]) or "none",
                )  # fmt: skip
                rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{run.folder}: offline_evaluation.json is not as Segue writes it ({type(error).__name__}: {error}); "
                "make it anew: segue evaluate RUN --offline"
            ) from error
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in OFFLINE_HEADS)
    return (
        "<h2>Values from data alone</h2>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        '<p class="reading">Fitted Q evaluation: sums of discounted raw rewards from initial states of the data, not '
        "to be compared with the undiscounted scores above. In brackets a bootstrap interval over its episodes; "
        "it does not cover the error of a policy that leaves the data.</p>"
    )


def _bracketed(found: dict[str, Any]) -> str:
    return f"{found['value']:.4g} [{found['low']:.4g}, {found['high']:.4g}]"


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<div class="notes" role="note"><ul>{items}</ul></div>'


def _what_was_run(given: Sequence[Run]) -> str:
    """Commands, versions and settings of these runs and of those that they were fine-tuned from."""
    everyone: dict[Path, Run] = {}
    for run in given:
        ancestor: Run | None = run
        while ancestor:
            everyone.setdefault(ancestor.folder.resolve(), ancestor)
            ancestor = ancestor.parent
    runs = list(everyone.values())
    shared = all(_versions(run) == _versions(runs[0]) for run in runs)
    blocks = [_versions(runs[0])] if shared else []
    for run in runs:
        config = json.dumps(run.config, indent=2, ensure_ascii=False)
        blocks.append(
            f'<div class="run"><strong>{escape(str(run.folder))}</strong>'
            f" <span class='soft'>{escape(run.method)} on {escape(run.dataset)}, {escape(run.environment)}, "
            f"{'seed' if len(run.seeds) == 1 else 'seeds'} {escape(', '.join(map(str, run.seeds)))}</span>"
            f"<pre>{escape(str(run.config.get('command') or 'command not recorded'))}</pre>"
            f"{'' if shared else _versions(run)}"
            f"<details><summary>Configuration</summary><pre>{escape(config)}</pre></details></div>"
        )
    unfold = " open" if len(runs) <= OPEN_RUNS else ""
    return f"<details{unfold}><summary>What was run</summary>{''.join(blocks)}</details>"


def _versions(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in (run.config.get("versions") or {}).items())
    return f'<p class="soft">{escape(versions or "versions not recorded")}</p>'


def _table(groups: Sequence[Group]) -> str:
    rows = table(groups)
    head = "".join(f'<th scope="col">{name}</th>' for name in HEADS)
    body = "".join(_row(row, [g for g in groups if g.dataset == row.group.dataset]) for row in rows)
    results = [result for row in rows for result in (row.offline, row.online) if result]
    legend = []
    if any(result.normalised for result in results):
        legend.append("Scores in bold are normalised (0 = random policy, 100 = expert), returns are below them.")
    if results:
        least = min(result.episodes for result in results)
        legend.append(
            f"Each is the mean over seeds, at least {least} evaluation episodes a seed, ± one standard error."
        )
        if any(result.raw.error_seeds is not None for result in results):
            legend.append(
                "“Over episodes” is the uncertainty of scoring these very policies; “over seeds” that of training anew."
            )
    if any(result.raw.interval for result in results):
        legend.append("IQM: mean of the middle half of the seeds, with its 95 % bootstrap interval.")
    legend.append("Drop: lowest score in the first tenth of online learning minus the score at hand-over.")
    if any(row.lowest_over_start for row in rows):
        legend.append(
            "Lowest / start: lowest score at any evaluation of the whole online phase, in percent of that at hand-over "
            "(below 90 %: it lost more than a tenth)."
        )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="reading">{" ".join(legend)}</p>'
    )


def _row(row: Row, same_dataset: Sequence[Group]) -> str:
    group = row.group
    selection = next((run.selection for run in group.runs if run.selection), None)
    trusted = ""
    if selection and isinstance(selection.get("trusted_fraction"), int | float):
        rule = f", {selection['rule']}" if selection.get("rule") else ""
        trusted = f"<small>{selection['trusted_fraction']:.1%} of the data trusted{escape(rule)}</small>"
    behaviour, norm = behaviour_of(same_dataset), normalised(same_dataset)
    times = [
        f"{stage} {_duration(t)}"
        for stage, t in (("offline", row.offline_time_s), ("online", row.online_time_s))
        if t is not None
    ]
    cells = [
        f'<span class="swatch" style="background:{group.colour}"></span>{escape(group.label)}{trusted}',
        f"{escape(group.dataset)}<small>{escape(group.runs[0].environment)}</small>",
        str(len(group.seeds)),
        _value(behaviour.normalised_mean if norm else None, behaviour.return_mean) if behaviour else "–",
        _result(row.offline),
        _result(row.online),
        _value(row.drop_normalised if norm else None, row.drop_return, sign="+")
        if row.drop_return is not None
        else "–",
        _lowest(row),
        f'<span class="even">{"<br>".join(times) or "–"}</span>',
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _lowest(row: Row) -> str:
    if row.lowest_over_start is None:
        return "–"
    mean, worst = (f"{100 * share:.0f} %".replace("-", "−") for share in row.lowest_over_start)
    several = len(row.group.seeds) > 1
    return f"<strong>{mean}</strong>" + (f"<small>worst seed {worst}</small>" if several else "")


def _value(normalised: float | None, raw: float | None, sign: str = "") -> str:
    if normalised is None:
        return f"<strong>{_number(raw, sign)}</strong>"
    return f"<strong>{normalised:{sign}.1f}</strong><small>return {_number(raw, sign)}</small>".replace("-", "−")


def _result(result: Result | None) -> str:
    if not result:
        return "–"
    shown = result.normalised or result.raw
    errors = [
        f"<small>± {_number(error)} {over}</small>"
        for error, over in ((shown.error_episodes, "over episodes"), (shown.error_seeds, "over seeds"))
        if error is not None
    ]
    mean = _value(result.normalised.mean if result.normalised else None, result.raw.mean)
    return mean + "".join(errors) + _iqm(shown)


def _iqm(estimate: Estimate) -> str:
    if estimate.iqm is None or estimate.interval is None:
        return ""
    low, high = estimate.interval
    return f"<small>IQM {_number(estimate.iqm)} [{_number(low)}, {_number(high)}]</small>"


def _overall(rows: Sequence[Overall]) -> str:
    if not rows:
        return ""
    body = "".join(
        f"<tr><td>{escape(row.label)}</td><td>{'online' if row.online else 'offline'}</td><td>{row.datasets}</td>"
        f"<td>{row.seeds}</td><td><strong>{row.iqm:.1f}</strong></td>"
        f"<td>{row.interval[0]:.1f} to {row.interval[1]:.1f}</td></tr>"
        for row in rows
    )
    heads = ("Method", "After", "Datasets", "Seeds in all", "IQM", "95 % interval")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        "<h3>Over the datasets that all methods share</h3>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        '<p class="reading">Interquartile mean of the normalised scores of all seeds, with an interval from resampling '
        "seeds within each dataset.</p>"
    )


def _number(x: float | None, sign: str = "") -> str:
    """Three significant digits, more of a large one: 1,843 and 420 and 52.3 and 0.71."""
    if x is None:
        return "–"
    digits = 0 if abs(x) >= 100 else 1 if abs(x) >= 10 else 2
    return f"{x:{sign},.{digits}f}".replace("-", "−")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _joined(names: Sequence[str], things: str) -> str:
    if len(names) > NAMES_IN_TITLE:
        return f"{len(names)} {things}"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _amount(n: int, thing: str) -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
