"""`Dataset`: construction, episode bounds, selection, successors."""

from typing import Any

import numpy as np
import pytest

from segue.data import DataError, Dataset
from segue.data.successors import first_rows

Columns = dict[str, Any]


def test_episodes(columns: Columns) -> None:
    dataset = Dataset.from_arrays(**columns, reference_scores=(1.0, 3.0))
    assert len(dataset) == 12
    assert (dataset.observation_dim, dataset.action_dim) == (3, 2)
    assert dataset.episode_starts.tolist() == [0, 5, 9]
    assert dataset.episode_ends.tolist() == [4, 8, 11]
    assert dataset.episode_lengths.tolist() == [5, 4, 3]
    assert dataset.episode_ends.dtype == np.int64
    np.testing.assert_allclose(dataset.episode_returns[1], columns["rewards"][5:9].astype(float).sum())
    scores = dataset.normalised([1.0, 2.0, 3.0])
    assert scores is not None
    np.testing.assert_allclose(scores, [0, 50, 100])
    assert Dataset.from_arrays(**columns).normalised([1.0]) is None


def test_types_are_cast_and_column_vectors_accepted(columns: Columns) -> None:
    columns["rewards"] = columns["rewards"].astype(float)[:, None]
    columns["terminated"] = columns["terminated"].astype(int)
    dataset = Dataset.from_arrays(**columns)
    assert dataset.rewards.shape == (12,)
    assert dataset.rewards.dtype == np.float32
    assert dataset.terminated.dtype == bool


def test_derived_successors_drop_only_rows_whose_successor_is_unknown(columns: Columns) -> None:
    expected = columns.pop("next_observations")
    dataset = Dataset.from_arrays(**columns)
    kept = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]  # 8 and 11 were truncated: nothing is known about what followed
    np.testing.assert_array_equal(dataset.observations, columns["observations"][kept])
    alive = ~dataset.terminated
    np.testing.assert_array_equal(dataset.next_observations[alive], expected[kept][alive])
    assert dataset.episode_ends.tolist() == [4, 7, 9]
    assert np.flatnonzero(dataset.truncated).tolist() == [7, 9]


def test_successors_beside_terminated_rows() -> None:
    terminated, truncated = np.array([0, 1, 0, 0, 1], bool), np.array([0, 0, 1, 0, 1], bool)
    dataset = Dataset.from_arrays(np.arange(5)[:, None], np.zeros((5, 1)), np.arange(5), terminated, truncated)
    assert dataset.rewards.tolist() == [0, 1, 3, 4], "row 2 is a whole episode without successor; row 4 terminated"
    assert dataset.terminated.tolist() == [False, True, False, True]
    assert not dataset.truncated[1], "row 1 terminated: that the next row was dropped changes nothing"


def test_single_row_episodes_without_successors_leave_nothing() -> None:
    with pytest.raises(DataError, match="no transition is left"):
        Dataset.from_arrays(np.zeros((2, 1)), np.zeros((2, 1)), np.zeros(2), np.zeros(2), np.ones(2))


def test_select_by_mask_ends_broken_episodes(columns: Columns) -> None:
    dataset = Dataset.from_arrays(**columns)
    mask = np.ones(12, bool)
    mask[[2, 11]] = False
    selected = dataset.select(mask)
    assert np.flatnonzero(selected.truncated).tolist() == [1, 7, 9]
    assert np.flatnonzero(selected.terminated).tolist() == [3]
    np.testing.assert_array_equal(selected.rewards, columns["rewards"][mask])


def test_select_by_index_keeps_the_order(columns: Columns) -> None:
    dataset = Dataset.from_arrays(**columns)
    selected = dataset.select([9, 10, 11, 0, 1, 2, 3, 4])
    assert selected.episode_lengths.tolist() == [3, 5]
    assert not selected.truncated[-1], "its last row terminated"
    np.testing.assert_array_equal(selected.rewards[:3], columns["rewards"][9:])
    with pytest.raises(DataError, match="no row"):
        dataset.select([])


def test_first_rows_ends_the_cut_episode(columns: Columns) -> None:
    kept = first_rows(columns, 7)
    assert kept["truncated"].tolist() == [False] * 6 + [True]
    assert not columns["truncated"][6], "the original is left alone"
    assert not first_rows(columns, 5)["truncated"][4], "that row is terminated: nothing to add"
    assert first_rows(columns, 100) is columns


def test_bounds(columns: Columns) -> None:
    columns["actions"] = columns["actions"] * 2
    with pytest.raises(DataError, match="outside the bounds"):
        Dataset.from_arrays(**columns)
    dataset = Dataset.from_arrays(**columns, action_low=-2, action_high=[2, 2])
    assert dataset.action_low.tolist() == [-2, -2]
    for low, high in ((-2, [2, 2, 2]), (2, -2), (-2, np.inf)):
        with pytest.raises(DataError, match="action_"):
            Dataset.from_arrays(**columns, action_low=low, action_high=high)
