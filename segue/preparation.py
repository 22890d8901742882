"""The one owner of observation normalisation and reward scaling: the same map offline, online and in evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segue.data.prepare import observation_statistics


@dataclass(frozen=True)
class Preparation:
    """x -> (x - mean) / std for observations, r -> scale r + bias for rewards; frozen for a whole run."""

    mean: np.ndarray  # [S] float32
    std: np.ndarray  # [S] float32, epsilon included
    reward_scale: float = 1.0
    reward_bias: float = 0.0
    action_limit: float = 1.0  # of the dataset's actions, in [-1, 1]

    @classmethod
    def identity(cls, observation_dim: int) -> Preparation:
        """Leaves everything as it is."""
        return cls(np.zeros(observation_dim, np.float32), np.ones(observation_dim, np.float32))

    @classmethod
    def of_dataset(cls, observations: np.ndarray, normalize: bool, scale: float, bias: float) -> Preparation:
        """The map of a dataset with `observations [N, S]`."""
        if not normalize:
            return replace(cls.identity(observations.shape[1]), reward_scale=scale, reward_bias=bias)
        return cls(*observation_statistics(observations), scale, bias)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()} | {
            "reward_scale": self.reward_scale,
            "reward_bias": self.reward_bias,
            "action_limit": self.action_limit,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preparation:
        """The inverse of `as_dict`, exact."""
        mean, std = np.asarray(values["mean"], np.float32), np.asarray(values["std"], np.float32)
        limit = values.get("action_limit", 1.0)  # runs of the first version had none
        return cls(mean, std, values["reward_scale"], values["reward_bias"], limit)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """[..., S] as the networks see it, float32."""
        return ((observation - self.mean) / self.std).astype(np.float32)

    def reward(self, reward: np.ndarray | float) -> np.ndarray | float:
        """The stored reward of a raw one."""
        return reward * self.reward_scale + self.reward_bias
