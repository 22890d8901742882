"""Groups, rows of the table and the CSV, against numbers computed by hand."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from segue.report.group import group_runs, spread
from segue.report.read import read_run
from segue.report.scores import estimate, final_scores_csv, overall, table

from .make_runs import make_run


def test_runs_that_differ_in_seeds_are_one_group(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / str(s), seeds=(s,))) for s in range(3)]
    (group,) = group_runs(runs, [])
    assert group.label == "td3_bc" and group.seeds == (0, 1, 2)
    (row,) = table([group])
    assert row.online and row.online.raw.seeds == 3 and row.online.raw.interval
    assert row.offline_time_s == pytest.approx(3 * 150_000 / 400)


def test_labels_tell_what_differs(tmp_path: Path) -> None:
    runs = [
        read_run(make_run(tmp_path / "a", settings={"mask": True})),
        read_run(make_run(tmp_path / "b", settings={"mask": False})),
        read_run(make_run(tmp_path / "c", method="sac")),
    ]
    assert [g.label for g in group_runs(runs, [])] == ["td3_bc (mask=True)", "td3_bc (mask=False)", "sac"]


def test_same_seed_twice_is_not_another_sample(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / name, seeds=(0,))) for name in "ab"]
    notes: list[str] = []
    (group,) = group_runs(runs, notes)
    assert len(group.runs) == 1 and "repeats seed 0" in notes[0]


def test_parent_given_beside_its_child_is_one_curve(tmp_path: Path) -> None:
    parent = make_run(tmp_path / "parent", online_steps=0)
    child = make_run(tmp_path / "child", offline_steps=0, parent=parent)
    notes: list[str] = []
    (group,) = group_runs([read_run(parent), read_run(child)], notes)
    assert group.phase_names() == ["offline", "online"] and len(notes) == 1


def test_estimate_by_hand() -> None:
    two = estimate([40.0, 50.0], [3.0, 4.0])
    assert (two.mean, two.error_episodes) == (45.0, 2.5)
    assert two.error_seeds == pytest.approx(5.0)
    assert two.iqm is None and two.interval is None
    one = estimate([40.0], [None])
    assert (one.error_episodes, one.error_seeds) == (None, None)


def test_table_takes_means_of_the_summary(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    final = json.loads((folder / "summary.json").read_text())["phases"][1]["final"]
    (row,) = table(group_runs([read_run(folder)], []))
    assert row.online and row.online.normalised
    assert row.online.raw.mean == pytest.approx(np.mean([f["return_mean"] for f in final]))
    assert row.online.normalised.mean == pytest.approx(np.mean([f["normalised_mean"] for f in final]))
    assert row.drop_return == -420.0


def test_unfinished_run_has_no_final_scores(tmp_path: Path) -> None:
    (row,) = table(group_runs([read_run(make_run(tmp_path / "a", finished=False))], []))
    assert row.offline is None and row.online is None and row.drop_return is None


def test_spread_where_all_seeds_have_values() -> None:
    series = {
        0: (np.array([0.0, 10.0, 20.0]), np.array([0.0, 1.0, 2.0])),
        1: (np.array([0.0, 10.0]), np.array([4.0, 5.0])),
    }
    steps, mean, low, high = spread(series)
    np.testing.assert_array_equal(steps, [0, 10])  # one seed alone, at 20, is not a mean
    np.testing.assert_array_equal(mean, [2, 3])
    np.testing.assert_array_equal(low, [0, 1])
    np.testing.assert_array_equal(high, [4, 5])


def test_csv_has_a_row_per_phase_and_seed(tmp_path: Path) -> None:
    groups = group_runs([read_run(make_run(tmp_path / "a", normalised=False))], [])
    rows = list(csv.DictReader(io.StringIO(final_scores_csv(groups))))
    assert [(r["phase"], r["seed"]) for r in rows] == [
        ("offline", "0"),
        ("offline", "1"),
        ("online", "0"),
        ("online", "1"),
    ]
    assert rows[0]["normalised_mean"] == "" and float(rows[3]["return_mean"]) > 0
    assert (rows[0]["drop_return"], rows[3]["drop_return"]) == ("", "-420.0")


def test_overall_compares_on_shared_datasets(tmp_path: Path) -> None:
    runs = [
        read_run(make_run(tmp_path / f"{method}{number}", method=method, dataset=f"d{number}"))
        for method, numbers in (("td3_bc", (1, 2, 3)), ("sac", (1, 2)))
        for number in numbers
    ]
    rows = overall(group_runs(runs, []))
    assert [(r.label, r.online, r.datasets, r.seeds) for r in rows] == [
        ("td3_bc", False, 2, 4),
        ("sac", False, 2, 4),
        ("td3_bc", True, 2, 4),
        ("sac", True, 2, 4),
    ]
    assert all(r.interval[0] <= r.iqm <= r.interval[1] for r in rows)
    assert overall(group_runs(runs[:1], [])) == []
