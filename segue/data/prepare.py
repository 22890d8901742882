"""What is computed from a dataset before training: statistics, scalings, trajectory selection, returns to go.

Pure NumPy on columns of N rows. Rules and their numbers follow the SSAR study and the programs it compares with;
where those disagree with good sense the docstring says so.
"""

from __future__ import annotations

import numpy as np

STD_OFFSET = 1e-3  # added to every standard deviation, so that constant dimensions stay finite
ACTION_MARGIN = 1e-4  # keeps the inverse tanh of stored actions finite
JUMP = 1e-6  # a successor further than this from the next row's state shows a new trajectory


def observation_statistics(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and (population standard deviation + 0.001) of observations [N, S]: two float32 [S]."""
    mean = observations.mean(axis=0, dtype=np.float64)
    std = observations.std(axis=0, dtype=np.float64) + STD_OFFSET
    return mean.astype(np.float32), std.astype(np.float32)


def normalise(observations: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """(observations - mean) / std, [..., S]."""
    return (observations - mean) / std


def clip_actions(actions: np.ndarray, margin: float = ACTION_MARGIN) -> np.ndarray:
    """Actions in [-1, 1] kept `margin` away from both ends."""
    return np.clip(actions, -1 + margin, 1 - margin)


def scale_rewards(rewards: np.ndarray, scale: float, bias: float) -> np.ndarray:
    """scale x reward + bias, in the rewards' own precision."""
    return rewards * rewards.dtype.type(scale) + rewards.dtype.type(bias)


def return_range(rewards: np.ndarray, terminated: np.ndarray, max_steps: int) -> tuple[float, float]:
    """Lowest and highest undiscounted return, counting an episode at a terminal or after `max_steps` rows.

    In the papers' view time-out rows are gone, so a timed-out episode runs on into the next one; a trailing piece does
    not count. Raises ValueError if no episode counts.
    """
    ends, _ = _counted_ends(terminated, max_steps)
    if len(ends) == 0:
        raise ValueError(f"no episode terminates or lasts {max_steps} steps, so there is no range of returns")
    returns = _segment_sums(rewards[: ends[-1] + 1], ends)
    return float(returns.min()), float(returns.max())


def return_range_scale(rewards: np.ndarray, terminated: np.ndarray, max_steps: int) -> float:
    """Factor that makes the range of returns as wide as an episode is long: max_steps / (highest - lowest)."""
    lowest, highest = return_range(rewards, terminated, max_steps)
    return max_steps / (highest - lowest)


def trajectory_ends(
    observations: np.ndarray,
    next_observations: np.ndarray,
    terminated: np.ndarray,
    max_steps: int | None = None,
    tolerance: float = JUMP,
) -> np.ndarray:
    """Index of each trajectory's last row, int64.

    A trajectory ends at a terminated row, at the last row, where the next row's state is further than `tolerance` (L2)
    from the stored successor, and where its length reaches `max_steps`. NaN counts as a jump.
    """
    step = observations[1:] - next_observations[:-1]
    same = np.einsum("ns,ns->n", step, step, dtype=np.float64) <= tolerance**2
    hard = np.append(~same, True) | np.asarray(terminated, bool)
    return np.flatnonzero(_cap_lengths(hard, max_steps))


def trust_by_return(
    observations: np.ndarray,
    next_observations: np.ndarray,
    rewards: np.ndarray,
    terminated: np.ndarray,
    threshold: float,
    max_steps: int,
    tolerance: float = JUMP,
) -> np.ndarray:
    """Mask [N] of the rows whose trajectory's summed rewards are strictly above `threshold`."""
    ends = trajectory_ends(observations, next_observations, terminated, max_steps, tolerance)
    return np.repeat(_segment_sums(rewards, ends) > threshold, _lengths(ends))


def trust_by_success(
    observations: np.ndarray,
    next_observations: np.ndarray,
    rewards: np.ndarray,
    terminated: np.ndarray,
    max_steps: int,
    failure_reward: float,
    tolerance: float = JUMP,
) -> np.ndarray:
    """Mask [N] of the rows whose trajectory's last reward is not `failure_reward`, the reward of a failing step."""
    ends = trajectory_ends(observations, next_observations, terminated, max_steps, tolerance)
    return np.repeat(rewards[ends] != rewards.dtype.type(failure_reward), _lengths(ends))


def top_trajectories(
    observations: np.ndarray,
    next_observations: np.ndarray,
    rewards: np.ndarray,
    terminated: np.ndarray,
    count: int,
    tolerance: float = 1e-4,
    drop_last: bool = False,
) -> np.ndarray:
    """Row indices of the `count` trajectories with the highest returns, best first (equal ones in data order).

    `drop_last` leaves out the data's last trajectory, as the SSAR authors' program does (it never looks at the last
    row).
    """
    ends = trajectory_ends(observations, next_observations, terminated, None, tolerance)
    returns = _segment_sums(rewards, ends)
    if drop_last:
        ends, returns = ends[:-1], returns[:-1]
    return _rows_of_best(ends, returns, count)


def top_fraction(
    rewards: np.ndarray, terminated: np.ndarray, fraction: float, discount: float, max_steps: int
) -> np.ndarray:
    """Row indices of the best `fraction` of trajectories (at least one) by discounted return, best first.

    The selection of "BC-10%": an episode counts at a terminal or after `max_steps` rows, a trailing piece is left out.
    """
    ends, positions = _counted_ends(terminated, max_steps)
    if len(ends) == 0:
        return np.empty(0, np.int64)
    counted = slice(0, ends[-1] + 1)
    discounted = rewards[counted].astype(np.float64) * discount ** positions[counted].astype(np.float64)
    return best_episodes(ends, _segment_sums(discounted, ends), fraction)


def best_episodes(ends: np.ndarray, returns: np.ndarray, fraction: float) -> np.ndarray:
    """Row indices of the best `fraction` of episodes (at least one), best first.

    `ends` [E] is the last row of each, `returns` [E] its return.
    """
    return _rows_of_best(ends, returns, max(1, int(fraction * len(ends))))


def held_out_rows(ends: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Mask [N] of whole episodes, a random `share` of them (at least one), for measuring what never saw them.

    `ends` [E] is the last row of each. A single episode gives its last rows.
    """
    n = ends[-1] + 1
    if len(ends) == 1:
        return np.arange(n) >= n - max(1, int(share * n))
    count = max(1, round(share * len(ends)))
    chosen = np.random.default_rng(0).permutation(len(ends))[:count]
    return np.repeat(np.isin(np.arange(len(ends)), chosen), _lengths(ends))


def return_to_go(
    observations: np.ndarray,
    next_observations: np.ndarray,
    rewards: np.ndarray,
    terminated: np.ndarray,
    discount: float,
    max_steps: int,
    failure_reward: float | None = None,
) -> np.ndarray:
    """Discounted sum of rewards from each row to its trajectory's end: [N] float64.

    With `failure_reward` (sparse tasks) a trajectory whose last reward equals it never succeeded: all its rows get
    failure_reward / (1 - discount), the value of failing for ever.
    """
    ends = trajectory_ends(observations, next_observations, terminated, max_steps)
    lengths = _lengths(ends)
    result = rewards.astype(np.float64)
    # All trajectories at once, one step back at a time: at most max_steps vector operations, longest first.
    order = np.argsort(-lengths, kind="stable")
    last, sorted_lengths = ends[order], lengths[order]
    for back in range(1, int(sorted_lengths[0])):
        rows = last[: np.searchsorted(-sorted_lengths, -back)] - back
        result[rows] += discount * result[rows + 1]
    if failure_reward is not None:
        last_rewards = rewards[ends]
        failed = last_rewards == rewards.dtype.type(failure_reward)
        for_ever = last_rewards.astype(np.float64) / (1 - discount)
        result = np.where(np.repeat(failed, lengths), np.repeat(for_ever, lengths), result)
    return result


def time_steps(
    observations: np.ndarray, next_observations: np.ndarray, terminated: np.ndarray, max_steps: int
) -> np.ndarray:
    """For each row how many rows of its trajectory come before it, [N] int64."""
    ends = trajectory_ends(observations, next_observations, terminated, max_steps)
    lengths = _lengths(ends)
    return np.arange(len(terminated)) - np.repeat(ends - lengths + 1, lengths)


def episode_tails(
    observations: np.ndarray, next_observations: np.ndarray, terminated: np.ndarray, discount: float, max_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each row how many rows of its trajectory follow, [N] int64, and the share of the end's value, [N] float64.

    The share is what the value of the state after the trajectory's last row counts in the row's return: `discount` to
    the power of the steps until there; 0 if it is a terminal.
    """
    ends = trajectory_ends(observations, next_observations, terminated, max_steps)
    end_row = np.repeat(ends, _lengths(ends))
    rows_to_end = end_row - np.arange(len(end_row))
    terminal = np.asarray(terminated, bool)[end_row]
    return rows_to_end, np.where(terminal, 0.0, float(discount) ** (rows_to_end + 1))


def _cap_lengths(hard: np.ndarray, max_steps: int | None) -> np.ndarray:
    """Mask of ends: the `hard` ones and every `max_steps`-th row counted from the row after the last hard end."""
    if max_steps is None:
        return hard
    return hard | ((_positions(hard) + 1) % max_steps == 0)


def _positions(ends: np.ndarray) -> np.ndarray:
    """Number of rows since the latest end of the mask [N], 0 for the first row of a segment."""
    rows = np.arange(len(ends))
    starts = np.concatenate([[True], ends[:-1]])
    return rows - np.maximum.accumulate(np.where(starts, rows, 0))


def _counted_ends(terminated: np.ndarray, max_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Ends by terminal or length alone, without a trailing piece, and every row's position in its segment."""
    mask = _cap_lengths(np.asarray(terminated, bool), max_steps)
    return np.flatnonzero(mask), _positions(mask)


def _lengths(ends: np.ndarray) -> np.ndarray:
    return np.diff(ends, prepend=-1)


def _segment_sums(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Sum of `values` [N] within each segment, in float64; the last end must be row N - 1."""
    starts = ends - _lengths(ends) + 1
    return np.add.reduceat(values.astype(np.float64), starts)


def _rows_of_best(ends: np.ndarray, returns: np.ndarray, count: int) -> np.ndarray:
    """Rows of the `count` segments with the highest returns, best segment first."""
    best = np.argsort(-returns, kind="stable")[:count]
    starts = (ends - _lengths(ends) + 1)[best]
    lengths = _lengths(ends)[best]
    if len(best) == 0:
        return np.empty(0, np.int64)
    offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + offsets
