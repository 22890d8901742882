"""Preparation functions: a plain loop as the reference, and the size they must cope with."""

import time
from typing import Any

import numpy as np
import pytest

from segue.data import prepare

Arrays = dict[str, Any]


def made(rows: int, seed: int = 0, length: int = 20) -> Arrays:
    """Trajectories of random lengths, some ending by a terminal, some by a jump."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(rows + 1, 3)).astype(np.float32)
    ends = rng.random(rows) < 1 / length
    terminated = ends & (rng.random(rows) < 0.5)
    following = states[1:].copy()
    following[ends] += 1
    return {
        "observations": states[:-1],
        "next_observations": following,
        "rewards": rng.integers(0, 2, rows).astype(np.float32),
        "terminated": terminated,
    }


def trajectories(arrays: Arrays, max_steps: int | None, tolerance: float = 1e-6) -> list[list[int]]:
    """Rows of each trajectory, one row at a time."""
    found: list[list[int]] = [[]]
    count = len(arrays["rewards"])
    for i in range(count):
        found[-1].append(i)
        last = i == count - 1
        jump = not last and np.linalg.norm(arrays["observations"][i + 1] - arrays["next_observations"][i]) > tolerance
        if not last and (jump or arrays["terminated"][i] or len(found[-1]) == max_steps):
            found.append([])
    return found


@pytest.mark.parametrize("max_steps", (None, 1, 7, 1000))
def test_trajectory_ends(max_steps: int | None) -> None:
    arrays = made(300)
    without_rewards = {name: column for name, column in arrays.items() if name != "rewards"}
    ends = prepare.trajectory_ends(**without_rewards, max_steps=max_steps)
    assert ends.tolist() == [rows[-1] for rows in trajectories(arrays, max_steps)]


def test_trust_by_return_is_strict() -> None:
    arrays = made(300)
    expected = np.zeros(300, bool)
    for rows in trajectories(arrays, 9):
        expected[rows] = arrays["rewards"][rows].sum() > 3
    mask = prepare.trust_by_return(**arrays, threshold=3, max_steps=9)
    np.testing.assert_array_equal(mask, expected)
    # The wrong rule, "at least", would give something else here.
    assert not np.array_equal(mask, prepare.trust_by_return(**arrays, threshold=3 - 1e-9, max_steps=9))


def test_trust_by_success_looks_at_the_last_reward_only() -> None:
    arrays = made(300)
    expected = np.zeros(300, bool)
    for rows in trajectories(arrays, 9):
        expected[rows] = arrays["rewards"][rows[-1]] != 0
    mask = prepare.trust_by_success(**arrays, max_steps=9, failure_reward=0)
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("drop_last", (False, True))
def test_top_trajectories(drop_last: bool) -> None:
    arrays = made(300)
    found = trajectories(arrays, None, 1e-4)
    if drop_last:
        found = found[:-1]
    best = sorted(found, key=lambda rows: -arrays["rewards"][rows].sum())[:5]
    rows = prepare.top_trajectories(**arrays, count=5, drop_last=drop_last)
    assert rows.tolist() == [row for trajectory in best for row in trajectory]


def test_top_trajectories_keeps_the_last_one_unless_told() -> None:
    arrays = made(100)
    assert set(prepare.top_trajectories(**arrays, count=1000)) == set(range(100))
    assert 99 not in prepare.top_trajectories(**arrays, count=1000, drop_last=True)


@pytest.mark.parametrize("failure_reward", (None, 0.0))
def test_return_to_go(failure_reward: float | None) -> None:
    arrays = made(300)
    expected = np.zeros(300)
    for rows in trajectories(arrays, 50):
        following = 0.0
        for row in reversed(rows):
            following = float(arrays["rewards"][row]) + 0.9 * following
            expected[row] = following
        if failure_reward is not None and arrays["rewards"][rows[-1]] == failure_reward:
            expected[rows] = failure_reward / (1 - 0.9)
    actual = prepare.return_to_go(**arrays, discount=0.9, max_steps=50, failure_reward=failure_reward)
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_return_range_ignores_a_trailing_piece() -> None:
    terminated = np.array([0, 1, 0, 0, 1, 0], bool)
    rewards = np.array([1, 2, 1, 1, -5, 100], np.float32)
    assert prepare.return_range(rewards, terminated, 1000) == (-3.0, 3.0)
    assert prepare.return_range_scale(rewards, terminated, 1000) == pytest.approx(1000 / 6)
    assert prepare.return_range(rewards, terminated, 2) == (-5.0, 3.0)
    with pytest.raises(ValueError, match="no episode"):
        prepare.return_range(rewards[:1], terminated[:1], 1000)


def test_top_fraction_without_a_counted_episode_is_empty() -> None:
    assert len(prepare.top_fraction(np.ones(3, np.float32), np.zeros(3, bool), 0.5, 1.0, 1000)) == 0


def test_actions_stay_off_the_bounds() -> None:
    clipped = prepare.clip_actions(np.array([-1, 0.5, 1], np.float32))
    np.testing.assert_allclose(clipped, [-0.9999, 0.5, 0.9999], rtol=1e-6)


def test_a_million_rows_are_quick() -> None:
    arrays = made(1_000_000, length=500)
    jobs: dict[str, Any] = {
        "trust_by_return": lambda: prepare.trust_by_return(**arrays, threshold=3, max_steps=1000),
        "trust_by_success": lambda: prepare.trust_by_success(**arrays, max_steps=1000, failure_reward=0),
        "top_trajectories": lambda: prepare.top_trajectories(**arrays, count=50),
        "return_to_go": lambda: prepare.return_to_go(**arrays, discount=0.99, max_steps=1000),
        "observation_statistics": lambda: prepare.observation_statistics(arrays["observations"]),
    }
    for name, job in jobs.items():
        start = time.process_time()  # the machine's other work must not fail this test
        job()
        assert time.process_time() - start < 2, name
