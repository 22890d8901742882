"""Scores of a policy in environments of their own, never the training ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from segue.environment import Environment, EnvironmentMaker
from segue.preparation import Preparation

SEED_OFFSET = 1_000_000  # evaluation episodes never share a seed with training episodes


@dataclass(frozen=True)
class Score:
    """Returns of whole episodes, undiscounted, on raw rewards."""

    returns: np.ndarray  # [episodes]
    lengths: np.ndarray  # [episodes]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean; 0 for a single episode."""
        n = len(self.returns)
        return float(self.returns.std(ddof=1) / n**0.5) if n > 1 else 0.0


class Evaluator:
    """Plays episodes side by side, so that the policy is asked once for all of them.

    `interrupted` is asked between steps: a stop need not wait for the episodes' end.
    """

    def __init__(self, maker: EnvironmentMaker, kwargs: dict | None, preparation: Preparation):
        self.maker, self.kwargs, self.preparation = maker, kwargs, preparation
        self.environments: list[Environment] = []

    def score(
        self,
        policy: Callable[[np.ndarray], np.ndarray],
        episodes: int,
        seed: int,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Score | None:
        """`policy` maps prepared observations [n, S] to actions [n, A] in [-1, 1]. None if interrupted."""
        while len(self.environments) < episodes:
            self.environments.append(Environment(self.maker, self.kwargs))
        seeds = np.random.SeedSequence([SEED_OFFSET, seed]).generate_state(episodes)
        obs = np.stack([env.reset(int(s)) for env, s in zip(self.environments, seeds, strict=False)])
        returns, lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
        live = np.arange(episodes)
        while live.size:
            if interrupted():
                return None
            actions = policy(self.preparation.observation(obs))
            for i in live:
                obs[i], reward, terminated, truncated = self.environments[i].step(actions[i])
                returns[i] += reward
                lengths[i] += 1
                if terminated or truncated:
                    live = live[live != i]
        return Score(returns, lengths)
