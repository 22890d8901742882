"""Scores of a policy in environments of their own, never the training ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from segue.core.algorithm import Algorithm
from segue.core.learn import act_greedily, act_greedily_in
from segue.core.types import PyTree, Spec
from segue.environment import Environment, EnvironmentMaker
from segue.preparation import Preparation

SEED_OFFSET = 1_000_000  # evaluation episodes never share a seed with training episodes


@dataclass(frozen=True)
class Trace:
    """Every step of whole episodes, one after another, in the networks' units; T is the sum of their lengths."""

    obs: np.ndarray  # [T, S] prepared
    action: np.ndarray  # [T, A] as executed, in [-1, 1]
    reward: np.ndarray  # [T] prepared
    episode: np.ndarray  # [T] number of the episode, ascending
    terminated: np.ndarray  # [episodes] True where the MDP ended, False where a time limit cut the episode


@dataclass(frozen=True)
class Score:
    """Returns of whole episodes, undiscounted, on raw rewards."""

    returns: np.ndarray  # [episodes]
    lengths: np.ndarray  # [episodes]
    trace: Trace | None = None  # where it was asked for

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean; 0 for a single episode."""
        n = len(self.returns)
        return float(self.returns.std(ddof=1) / n**0.5) if n > 1 else 0.0


class Player:
    """One seed's greedy policy, which remembers what it needs of every episode that it plays side by side."""

    def __init__(self, algorithm: Algorithm, state: PyTree, spec: Spec):
        self.algorithm, self.state, self.begin = algorithm, state, algorithm.context(spec)
        self.reset()

    def reset(self) -> None:
        """New episodes begin."""
        self.contexts: PyTree = None
        self.rewards = np.zeros(0, np.float32)

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        """Prepared observations [n, S], one of each episode -> actions [n, A] in [-1, 1]."""
        if self.begin is None:
            return np.asarray(act_greedily(self.algorithm, self.state, jnp.asarray(obs)))
        if len(self.rewards) != len(obs):
            self.contexts = jax.tree.map(lambda x: jnp.repeat(x[None], len(obs), 0), self.begin)
            self.rewards = np.zeros(len(obs), np.float32)
        actions, self.contexts = act_greedily_in(self.algorithm, self.state, self.contexts, obs, self.rewards)
        self.rewards = np.zeros(len(obs), np.float32)
        return np.asarray(actions)

    def rewarded(self, rewards: np.ndarray) -> None:
        """What the actions [n, A] that it chose last have earned: stored rewards [n]."""
        self.rewards = np.asarray(rewards, np.float32)


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
        trace: bool = False,
    ) -> Score | None:
        """`policy` maps prepared observations [n, S] to actions [n, A] in [-1, 1]. None if interrupted.

        With `trace` every step is kept, too.
        """
        while len(self.environments) < episodes:
            self.environments.append(Environment(self.maker, self.kwargs))
        seeds = np.random.SeedSequence([SEED_OFFSET, seed]).generate_state(episodes)
        obs = np.stack([env.reset(int(s)) for env, s in zip(self.environments, seeds, strict=False)])
        returns, lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
        live, ended = np.arange(episodes), np.zeros(episodes, bool)
        if isinstance(policy, Player):
            policy.reset()
        steps: list[tuple[np.ndarray, ...]] = []
        while live.size:
            if interrupted():
                return None
            prepared, playing, rewards = self.preparation.observation(obs), live, np.zeros(episodes)
            actions = policy(prepared)
            for i in playing:
                obs[i], rewards[i], ended[i], truncated = self.environments[i].step(actions[i])
                returns[i] += rewards[i]
                lengths[i] += 1
                if ended[i] or truncated:
                    live = live[live != i]
            stored = np.asarray(self.preparation.reward(rewards))
            if isinstance(policy, Player):
                policy.rewarded(stored)
            if trace:
                steps.append((prepared[playing], actions[playing], stored[playing], playing))
        return Score(returns, lengths, self._trace(steps, ended) if trace else None)

    @staticmethod
    def _trace(steps: list[tuple[np.ndarray, ...]], ended: np.ndarray) -> Trace:
        """From `steps`, each those of the episodes still under way."""
        obs, actions, rewards, episode = (np.concatenate(column) for column in zip(*steps, strict=True))
        order = np.argsort(episode, kind="stable")
        actions = np.clip(actions[order], -1, 1).astype(np.float32)
        return Trace(obs[order], actions, rewards[order], episode[order], ended)
