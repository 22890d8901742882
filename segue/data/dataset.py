"""`Dataset`: transitions in columns, with what is known about where they came from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from segue.data.errors import DataError
from segue.data.successors import derive_successors
from segue.data.validate import check_bounds, check_columns


@dataclass(frozen=True, eq=False)
class Dataset:
    """N transitions; the rows of an episode are contiguous and its last row is `terminated` or `truncated`.

    Build one with `from_arrays`, which checks everything; the constructor itself checks nothing.
    """

    observations: np.ndarray  # [N, S] float32
    actions: np.ndarray  # [N, A] float32, in the environment's own units
    rewards: np.ndarray  # [N] float32
    next_observations: np.ndarray  # [N, S] float32
    terminated: np.ndarray  # [N] bool, the MDP ended: no bootstrap
    truncated: np.ndarray  # [N] bool, the episode ends here without termination (time limit, or end of the log)
    action_low: np.ndarray  # [A] float32
    action_high: np.ndarray  # [A] float32
    environment_id: str | None = None  # Gymnasium id
    reference_scores: tuple[float, float] | None = None  # raw returns of (random, expert), for the normalised score
    source: str = ""  # the reference that loads it again
    max_episode_steps: int | None = None
    environment_kwargs: dict[str, Any] = field(default_factory=dict)  # for gymnasium.make, beside the id

    @classmethod
    def from_arrays(
        cls,
        observations: ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike,
        next_observations: ArrayLike | None = None,
        *,
        action_low: ArrayLike | None = None,
        action_high: ArrayLike | None = None,
        environment_id: str | None = None,
        reference_scores: tuple[float, float] | None = None,
        source: str = "",
        max_episode_steps: int | None = None,
        environment_kwargs: dict[str, Any] | None = None,
    ) -> Dataset:
        """Build and check a dataset from columns of N rows (shapes as in the fields; bounds default to -1 and 1).

        Without `next_observations` they are taken from the following row of the same episode. The successor of a
        truncated row is then unknown, so that row is dropped and the one before it becomes the episode's last.
        Raises `DataError`, naming `source`, column and row.
        """
        where = source.partition("?")[0] or "data"
        columns = check_columns(
            {
                "observations": observations,
                "actions": actions,
                "rewards": rewards,
                "terminated": terminated,
                "truncated": truncated,
                **({} if next_observations is None else {"next_observations": next_observations}),
            },
            where,
        )
        low, high = check_bounds(columns["actions"], action_low, action_high, where)
        if next_observations is None:
            columns = derive_successors(columns)
            if len(columns["rewards"]) == 0:
                raise DataError(
                    f"{where}: no transition is left: every episode has a single row and no column "
                    "'next_observations' says what followed; add that column"
                )
        return cls(
            **columns,
            action_low=low,
            action_high=high,
            environment_id=environment_id,
            reference_scores=reference_scores,
            source=source,
            max_episode_steps=max_episode_steps,
            environment_kwargs=dict(environment_kwargs or {}),
        )

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def observation_dim(self) -> int:
        """S."""
        return self.observations.shape[1]

    @property
    def action_dim(self) -> int:
        """A."""
        return self.actions.shape[1]

    @cached_property
    def episode_ends(self) -> np.ndarray:
        """Index of each episode's last row: [E] int64."""
        return np.flatnonzero(self.terminated | self.truncated).astype(np.int64)

    @cached_property
    def episode_starts(self) -> np.ndarray:
        """Index of each episode's first row: [E] int64."""
        return np.concatenate([[0], self.episode_ends[:-1] + 1]).astype(np.int64)

    @cached_property
    def episode_returns(self) -> np.ndarray:
        """Undiscounted sum of each episode's raw rewards: [E] float64."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.episode_starts)

    @property
    def episode_lengths(self) -> np.ndarray:
        """Number of rows of each episode: [E] int64."""
        return self.episode_ends - self.episode_starts + 1

    def normalised(self, returns: ArrayLike) -> np.ndarray | None:
        """Raw returns [...] as scores: 0 is the random reference, 100 the expert; None without references."""
        if self.reference_scores is None:
            return None
        random, expert = self.reference_scores
        return 100.0 * (np.asarray(returns, np.float64) - random) / (expert - random)

    def select(self, rows: ArrayLike) -> Dataset:
        """The dataset of the given rows, in the given order.

        `rows` is an index array [K] or a mask [N]. Wherever the next selected row is not the next row of this dataset,
        the episode is marked `truncated`, so that the result has valid episodes. Raises `DataError` if none is left.
        """
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64) % max(len(self), 1)
        if len(index) == 0:
            raise DataError(f"{self.source or 'data'}: no row is selected")
        broken = np.append(np.diff(index) != 1, True)
        terminated = self.terminated[index]
        return replace(
            self,
            observations=self.observations[index],
            actions=self.actions[index],
            rewards=self.rewards[index],
            next_observations=self.next_observations[index],
            terminated=terminated,
            truncated=self.truncated[index] | (broken & ~terminated),
        )
