"""What the report says of a hand-over: constraint, critics beside returns, ranks, guard, lowest score."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segue.errors import UserError
from segue.report import write_report
from segue.report.draw_html import draw_html
from segue.report.figures import dataset_figures
from segue.report.group import Group, group_runs
from segue.report.handover_figures import handover_figures, stages
from segue.report.plot import MUTED, Boxes, Dots, Figure, Line
from segue.report.read import read_run
from segue.report.scores import final_scores_csv, table

from .make_runs import EXPERT, RANDOM, make_handover, make_run

STAGES = ["offline", "re-evaluation", "alignment", "online, start", "online, end"]


def group_of(folder: Path) -> Group:
    (group,) = group_runs([read_run(folder)], [])
    return group


def figures_of(folder: Path) -> dict[str, Figure]:
    return {figure.name: figure for figure in handover_figures([group_of(folder)], "")}


def change_lines(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Pass every line of the metrics through `change`, which works in place."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        change(line)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_constraint_beside_its_threshold(tmp_path: Path) -> None:
    folder = make_handover(tmp_path / "a")
    figure = figures_of(folder)["constraint"]
    above, below = figure.panels
    assert (above.y_label, below.y_label) == ("Penalty", "Multiplier λ")
    assert [span.label for span in figure.spans] == ["online"]  # where there is none, there is no place for it
    thresholds = [item for item in above.items if isinstance(item, Line) and item.colour == MUTED]
    assert [line.label for line in thresholds] == ["threshold", ""]  # a seed each, one entry of the legend
    assert np.asarray(thresholds[0].y)[-1] == pytest.approx(0.04)
    (marks,) = [item for item in above.items if isinstance(item, Dots)]
    np.testing.assert_allclose(np.asarray(marks.x) * 30_000, [7_000, 15_000, 23_000] * 2)  # not the first, at 2,000
    assert "Triangles" in figure.reading
    assert len([i for i in below.items if isinstance(i, Line)]) == 3 and not any(i.label for i in below.items)


def test_a_rise_seen_in_two_lines_is_one_reference(tmp_path: Path) -> None:
    folder = make_handover(tmp_path / "a", seeds=(0,))

    def rise(line: dict[str, Any]) -> None:
        if "reference_score" in line:
            line["reference_score"] = float(np.interp(line["step"], [10_000, 12_000], [1700, 1900]))

    change_lines(folder, rise)
    (marks,) = [item for item in figures_of(folder)["constraint"].panels[0].items if isinstance(item, Dots)]
    np.testing.assert_allclose(np.asarray(marks.x) * 30_000, [10_000])


def test_penalty_without_a_constraint(tmp_path: Path) -> None:
    folder = make_handover(tmp_path / "a")

    def as_ppo(line: dict[str, Any]) -> None:
        if line.pop("threshold", None):
            line["auxiliary_weight"] = line.pop("multiplier")
            del line["reference_score"]

    change_lines(folder, as_ppo)
    figure = figures_of(folder)["constraint"]
    assert "auxiliary" in figure.panels[1].y_label
    assert "threshold" not in figure.reading and "Triangles" not in figure.reading


def test_critic_beside_returns_stage_by_stage(tmp_path: Path) -> None:
    folder = make_handover(tmp_path / "a")
    group = group_of(folder)
    assert [stage.name for stage in stages(group)] == STAGES
    figure = figures_of(folder)["calibration"]
    assert [text.split("\n")[0] for _, text in figure.x_ticks] == STAGES
    critic, returns = figure.panels[0].items
    assert isinstance(critic, Boxes) and isinstance(returns, Boxes)
    assert np.shape(critic.quantiles) == np.shape(returns.quantiles) == (5, 5)
    checks = [check for phase in group.phases("alignment") for check in phase.critic_checks]
    assert len(checks) == 2
    expected = np.mean([check.estimate_quantiles for check in checks], axis=0)
    np.testing.assert_allclose(np.asarray(critic.quantiles)[2], expected)
    assert np.asarray(critic.quantiles)[0, 2] < np.asarray(returns.quantiles)[0, 2] - 30  # made pessimistic offline
    assert "entropy" not in figure.reading
    boxes = [trace for trace in draw_html(figure)["data"] if trace["type"] == "box"]
    assert [len(trace["median"]) for trace in boxes] == [5, 5]


def test_what_a_soft_critic_and_a_value_mean_is_said(tmp_path: Path) -> None:
    folder = make_handover(tmp_path / "a")
    change_lines(folder, lambda line: line.update(policy="tanh_gaussian") if "policy" in line else None)
    assert "entropy" in figures_of(folder)["calibration"].reading

    def as_value(line: dict[str, Any]) -> None:
        if line["kind"] == "critic_check" and line["phase"] == "online":
            line |= {"estimate": "V", "correlation": None}
            for name in [name for name in line if name.startswith("rank")]:
                del line[name]

    change_lines(folder, as_value)
    figures = figures_of(folder)
    assert "PPO's V" in figures["calibration"].reading and "r =" not in figures["calibration"].x_ticks[-1][1]
    assert len(figures["ranks"].panels[0].items) == 3  # a V ranks no actions


def test_ranks_are_percent_of_states(tmp_path: Path) -> None:
    folder = make_handover(tmp_path / "a")
    figure = figures_of(folder)["ranks"]
    uniform, nearby = ([item for item in panel.items if isinstance(item, Line)] for panel in figure.panels)
    assert [line.label.split(":")[0] for line in uniform] == STAGES and not any(line.label for line in nearby)
    for line in [*uniform, *nearby]:
        assert np.asarray(line.y)[:-1].sum() == pytest.approx(100) and np.size(line.x) == 21
    checks = [c for phase in group_of(folder).phases("offline") for c in phase.critic_checks]
    means = [np.mean([check.rank_means[kind] for check in checks]) for kind in ("uniform", "nearby")]
    assert uniform[0].label == f"offline: mean {means[0]:.2f} / {means[1]:.2f}"


def test_runs_without_any_of_it_have_no_such_figures(tmp_path: Path) -> None:
    assert figures_of(make_run(tmp_path / "a")) == {}
    page = write_report([tmp_path / "a"], tmp_path / "out").read_text()
    assert "What the guard did" not in page


def test_guard_is_in_curve_and_table(tmp_path: Path) -> None:
    folder = make_handover(tmp_path / "a")
    (curve,) = [f for f in dataset_figures("d", [group_of(folder)], "") if f.name == "learning-curves"]
    warned, restored = [item for item in curve.panels[0].items if isinstance(item, Dots)]
    assert (warned.label, restored.label) == ("guard: warning", "guard: restored")
    assert np.asarray(restored.y)[0] == pytest.approx(100 * (1210 - RANDOM) / (EXPERT - RANDOM))
    online = curve.spans[-1]
    assert np.asarray(restored.x)[0] == pytest.approx(online.start + 0.1 * (online.end - online.start))
    page = write_report([folder], tmp_path / "out").read_text()
    assert "<td>went back to the last good policy, learns on with a tighter constraint</td><td>1,210</td>" in page
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} >= {"constraint", "calibration", "ranks"}


def test_guard_without_normalised_scores(tmp_path: Path) -> None:
    folder = make_handover(tmp_path / "a", normalised=False)
    (curve,) = [f for f in dataset_figures("d", [group_of(folder)], "") if f.name == "learning-curves"]
    warned = next(item for item in curve.panels[0].items if isinstance(item, Dots))
    assert list(np.asarray(warned.y)) == [1500.0]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"kind": "guard", "event": "held", "return_mean": 1.0, "start_return": 2.0}, "'bound' is missing"),
        ({"kind": "critic_check", "estimate": "Q"}, "is missing"),
    ],
)
def test_damaged_line_is_named(tmp_path: Path, line: dict[str, Any], told: str) -> None:
    folder = make_handover(tmp_path / "a")
    text = json.dumps(line | {"phase": "online", "step": 40_000, "seed": 0}) + "\n"
    (folder / "metrics.jsonl").write_text(text + (folder / "metrics.jsonl").read_text())
    with pytest.raises(UserError, match=f"line 1.*{told}"):
        read_run(folder)


def test_lowest_online_score_in_percent_of_the_start(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    summary = json.loads((folder / "summary.json").read_text())
    starts = {start["seed"]: start for start in summary["phases"][1]["handover"]}
    starts[0]["normalised_mean"], starts[1]["normalised_mean"] = 50.0, 40.0

    def score(line: dict[str, Any]) -> None:
        if line["kind"] == "evaluation" and line["phase"] == "online":
            line["normalised_mean"] = {0: 1.0, 1_500: 47.0, 24_000: 45.0 if line["seed"] == 0 else 20.0}.get(
                line["step"], 60.0
            )  # the score at step 0 is the start itself, here over fewer episodes

    change_lines(folder, score)
    (folder / "summary.json").write_text(json.dumps(summary))
    (row,) = table([group_of(folder)])
    assert row.lowest_over_start == pytest.approx((0.7, 0.5))
    rows = list(csv.DictReader(io.StringIO(final_scores_csv([group_of(folder)]))))
    assert [r["lowest_over_start"] for r in rows] == ["", "", "0.9", "0.5"]
    page = write_report([folder], tmp_path / "out").read_text()
    assert "<strong>70 %</strong><small>worst seed 50 %</small>" in page

    starts[0]["normalised_mean"] = starts[1]["normalised_mean"] = -3.0  # a share of what is below 0 says nothing
    (folder / "summary.json").write_text(json.dumps(summary))
    assert table([group_of(folder)])[0].lowest_over_start is None
