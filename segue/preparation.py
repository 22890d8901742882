"""The one owner of observation normalisation and reward scaling: the same map offline, online and in evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Preparation:
    """x -> (x - mean) / std for observations, r -> scale r + bias for rewards; frozen for a whole run."""

    mean: np.ndarray  # [S] float32
    std: np.ndarray  # [S] float32, epsilon included
    reward_scale: float = 1.0
    reward_bias: float = 0.0

    @classmethod
    def identity(cls, observation_dim: int) -> Preparation:
        """Leaves everything as it is."""
        return cls(np.zeros(observation_dim, np.float32), np.ones(observation_dim, np.float32))

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """[..., S] as the networks see it, float32."""
        return ((observation - self.mean) / self.std).astype(np.float32)

    def reward(self, reward: np.ndarray | float) -> np.ndarray | float:
        """The stored reward of a raw one."""
        return reward * self.reward_scale + self.reward_bias
