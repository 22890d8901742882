"""A family of policies and the choice within it: one number a state says how much the policy improves on the data.

FamO2O's networks (arXiv:2310.17966; ../spec/baselines.md 8). The balance coefficient c enters the policy beside s, by
a code of sines and cosines, and is chosen by a balance policy g(c|s), a tanh-squashed Gaussian mapped to a range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from segue.core.types import PyTree
from segue.nets.policies import sample_tanh_gaussian

CODE_WIDTH, CODE_BASE = 6, 10_000.0  # [baselines_hparams.yaml, famo2o_iql and famo2o_cql]


def sinusoidal_code(c: jax.Array) -> jax.Array:
    """sin(c / n^(2 i / w)), cos(c / n^(2 i / w)) for i = 0, 1, 2, with n and the width w: [...] -> [..., 6]."""
    frequencies = CODE_BASE ** (-jnp.arange(0, CODE_WIDTH, 2) / CODE_WIDTH)  # [3]
    angle = c[..., None] * frequencies
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*c.shape, CODE_WIDTH)


@dataclass(frozen=True)
class PolicyFamily:
    """pi(.|s, c) and g(c|s), which `apply` composes: what other methods see is a policy of s like any other.

    Parameters: {"family": of `policy`, "balance": of `balance`}.
    """

    policy: Any  # of the family: a policy network over [S + 6]
    balance: Any  # a network whose output is mean [..., 1] and log-std of the number under the tanh
    low: float  # of g's range
    high: float

    @property
    def kind(self) -> str:
        """The form of the family's members."""
        return str(self.policy.kind)

    @property
    def action_dim(self) -> int:
        """A."""
        return int(self.policy.action_dim)

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters."""
        family_key, balance_key = jax.random.split(key)
        return {"family": self.policy.init(family_key), "balance": self.balance.init(balance_key)}

    def apply(self, params: PyTree, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The policy of g's mode: [..., S] -> mean [..., A], log-std [..., A] or [A]."""
        mean, _ = self.balance.apply(params["balance"], obs)
        return self.member(params["family"], obs, self._mapped(jnp.tanh(mean[..., 0])))

    def member(self, family: PyTree, obs: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        """pi(.|s, c): [..., S], [...] -> mean [..., A], log-std [..., A] or [A]."""
        assert c.shape == obs.shape[:-1], (c.shape, obs.shape)
        mean, log_std = self.policy.apply(family, jnp.concatenate([obs, sinusoidal_code(c)], axis=-1))
        return mean, log_std

    def coefficient(self, balance: PyTree, obs: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """c ~ g(.|s) under normal `noise`, and log g(c|s), the density of c itself: [..., S], [...] -> [...], [...]."""
        mean, log_std = self.balance.apply(balance, obs)
        y, log_density = sample_tanh_gaussian(mean, log_std, noise[..., None])
        return self._mapped(y[..., 0]), log_density - jnp.log((self.high - self.low) / 2)

    def _mapped(self, y: jax.Array) -> jax.Array:
        """From (-1, 1) to g's range."""
        return self.low + (self.high - self.low) * (y + 1) / 2
