"""Rewards divided by the running std of the discounted sum of rewards so far (../spec/ocr_cft.md 2.4 a).

    R <- gamma R + r        r <- r / (std of all R so far + 1e-8)

The sum of squares begins at 1 (so the std is too large at first), and the std of a single R counts as 1. One object
walks the dataset and goes on online, where R begins anew with every episode.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

STD_EPSILON = 1e-8  # [ocr_cft.md 2.4 a]


@dataclass
class RunningReturn:
    """What is known of the discounted sums so far."""

    discount: float
    total: float = 0.0  # R
    count: int = 0
    mean: float = 0.0
    squares: float = 1.0  # sum of squared differences from the mean, and 1

    def scaled(self, reward: float) -> float:
        """The next reward, scaled by all sums up to its own."""
        self.total = self.discount * self.total + reward
        self.count += 1
        before, self.mean = self.mean, self.mean + (self.total - self.mean) / self.count
        if self.count == 1:
            return reward / (1 + STD_EPSILON)
        self.squares += (self.total - before) * (self.total - self.mean)
        return reward / (math.sqrt(self.squares / self.count) + STD_EPSILON)

    def restart(self) -> None:
        """An episode has ended."""
        self.total = 0.0

    def over_dataset(self, rewards: np.ndarray, terminated: np.ndarray, ended: np.ndarray) -> np.ndarray:
        """`rewards` [N] in their order, scaled: float64. R begins anew after rows where `ended` [N].

        As in the released program a terminated row keeps its reward, and does not count. There R runs on through time
        limits.
        """
        result = np.empty(len(rewards))
        rows = zip(rewards.tolist(), terminated.tolist(), ended.tolist(), strict=True)
        for i, (reward, terminal, last) in enumerate(rows):
            result[i] = reward if terminal else self.scaled(reward)
            if terminal or last:
                self.restart()
        return result

    def as_dict(self) -> dict[str, Any]:
        """For JSON, exact."""
        return asdict(self)
