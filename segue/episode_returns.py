"""Returns-to-go of online episodes, which are known when an episode ends and then filled into the ring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ReturnRule:
    """How a return-to-go is made from stored rewards, as for the dataset's rows (data.prepare.return_to_go)."""

    discount: float
    failure_reward: float | None = None  # an episode that ends with it counts as failing for ever


class EpisodeReturns:
    """The stored rewards of every seed's episode under way, and the slots that its rows fill."""

    def __init__(self, rule: ReturnRule, seeds: int):
        self.rule = rule
        self.rewards: list[list[float]] = [[] for _ in range(seeds)]
        self.slots: list[list[int]] = [[] for _ in range(seeds)]

    def add(self, rewards: np.ndarray, slot: int) -> None:
        """One step of every seed: stored rewards [seeds], and where they were stored."""
        for k, reward in enumerate(rewards):
            self.rewards[k].append(float(reward))
            self.slots[k].append(slot)

    def close(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Seed `k`'s episode has ended: slots [n] and returns-to-go [n] of its rows."""
        rewards, slots = np.asarray(self.rewards[k]), np.asarray(self.slots[k], np.int64)
        self.forget(k)
        if self.rule.failure_reward is not None and np.float32(rewards[-1]) == np.float32(self.rule.failure_reward):
            return slots, np.full(len(rewards), rewards[-1] / (1 - self.rule.discount))
        returns = np.empty(len(rewards))
        following = 0.0
        for i in reversed(range(len(rewards))):
            following = returns[i] = rewards[i] + self.rule.discount * following
        return slots, returns

    def forget(self, k: int) -> None:
        """Seed `k` begins anew."""
        self.rewards[k], self.slots[k] = [], []

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"rewards": self.rewards, "slots": self.slots}

    def restore(self, values: dict[str, Any]) -> None:
        """The inverse of `as_dict`."""
        self.rewards, self.slots = values["rewards"], values["slots"]
