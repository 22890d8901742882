"""What is drawn, and where: the axis of phases and the items of each figure."""

from pathlib import Path

import numpy as np
import pytest

from segue.report.axis import count, phase_axis
from segue.report.draw_html import draw_html
from segue.report.figures import dataset_figures, slug
from segue.report.group import Group, group_runs
from segue.report.plot import Band, Figure, Level, Line
from segue.report.read import read_run

from .make_runs import make_run


def groups_of(*folders: Path) -> list[Group]:
    return group_runs([read_run(folder) for folder in folders], [])


def figures_of(groups: list[Group]) -> dict[str, Figure]:
    return {figure.name: figure for figure in dataset_figures("data", groups, "")}


def test_online_phase_starts_where_offline_ends(tmp_path: Path) -> None:
    groups = groups_of(make_run(tmp_path / "a"))
    axis = phase_axis(groups, [{n: g.evaluations(n, True) for n in g.phase_names()} for g in groups])
    assert axis.place("offline", 0) == 0 and axis.place("online", 30_000) == pytest.approx(1)
    assert axis.place("offline", 150_000) == pytest.approx(axis.place("online", 0))
    # 30,000 of 180,000 steps would be a sixth of the width; every phase is readable instead.
    assert 1 - axis.place("online", 0) > 0.3
    assert [span.border for span in axis.spans()] == ["", "hand-over"]
    places = [x for x, _ in axis.ticks()]
    assert places == sorted(places) and np.diff(places).min() > 0.04


def test_phases_keep_the_order_of_every_run(tmp_path: Path) -> None:
    groups = groups_of(
        make_run(tmp_path / "online", method="sac", offline_steps=0),
        make_run(tmp_path / "both"),
    )
    axis = phase_axis(groups, [{n: g.evaluations(n, True) for n in g.phase_names()} for g in groups])
    assert [s.name for s in axis.stretches] == ["offline", "online"]


def test_curves_hold_the_runs_values(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    curve = figures_of(groups_of(folder))["learning-curves"]
    (panel,) = curve.panels
    means = [item for item in panel.items if isinstance(item, Line) and item.width > 2]
    assert len(means) == 2  # offline and online, not joined across the hand-over
    run = read_run(folder)
    last = [e.normalised_mean for e in run.phases[1].evaluations if e.step == 30_000]
    assert np.asarray(means[1].y)[-1] == pytest.approx(np.mean([x for x in last if x is not None]))
    handover = [s.normalised_mean for s in run.phases[1].handover]
    assert np.asarray(means[1].y)[0] == pytest.approx(np.mean([x for x in handover if x is not None]))
    (level,) = [item for item in panel.items if isinstance(item, Level)]
    assert run.behaviour and level.at == run.behaviour.normalised_mean
    assert sum(isinstance(item, Band) for item in panel.items) == 2


def test_returns_where_there_is_no_reference(tmp_path: Path) -> None:
    curve = figures_of(groups_of(make_run(tmp_path / "a", normalised=False)))["learning-curves"]
    assert curve.panels[0].y_label == "Return per episode"


def test_one_seed_has_no_band(tmp_path: Path) -> None:
    curve = figures_of(groups_of(make_run(tmp_path / "a", seeds=(0,))))["learning-curves"]
    assert not any(isinstance(item, Band) for item in curve.panels[0].items)
    assert "shaded" not in curve.reading


def test_coefficient_only_for_methods_that_have_one(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "a")
    ssar = make_run(tmp_path / "b", method="td3_bc_ssar")
    assert set(figures_of(groups_of(plain))) == {"learning-curves", "returns", "q-values"}
    figure = figures_of(groups_of(plain, ssar))["coefficients"]
    assert [panel.y_label for panel in figure.panels] == ["Coefficient β", "Threshold n"]
    outer, inner = [item for item in figure.panels[0].items if isinstance(item, Band)][:2]
    assert np.all(np.asarray(outer.low) <= np.asarray(inner.low))
    assert np.all(np.asarray(inner.high) <= np.asarray(outer.high))


def test_run_without_any_metric_draws_nothing(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", finished=False)
    (folder / "metrics.jsonl").unlink()
    assert figures_of(groups_of(folder)) == {}


def test_long_curves_are_thinned_but_keep_their_end(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", seeds=(0,), training_every=100, online_steps=0)
    (line,) = figures_of(groups_of(folder))["q-values"].panels[0].items
    assert isinstance(line, Line) and np.size(line.x) <= 601 and np.asarray(line.x)[-1] == pytest.approx(1)


def test_plotly_gets_a_legend_entry_per_group(tmp_path: Path) -> None:
    groups = groups_of(make_run(tmp_path / "a"), make_run(tmp_path / "b", method="td3_bc_ssar"))
    drawn = draw_html(figures_of(groups)["learning-curves"])
    names = [trace["name"] for trace in drawn["data"] if trace.get("showlegend", True)]
    assert names == ["td3_bc", "td3_bc_ssar", "behaviour policy&#x27;s mean"]


@pytest.mark.parametrize(("steps", "text"), [(0, "0"), (500, "500"), (20_000, "20k"), (1_500_000, "1.5M")])
def test_counts_for_people(steps: float, text: str) -> None:
    assert count(steps) == text


def test_slug() -> None:
    assert slug("td3_bc → sac (α=0.5/x)") == "td3-bc-to-sac-0-5-x"
