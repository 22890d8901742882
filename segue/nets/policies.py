"""Policies as networks with named outputs. Actions lie in [-1, 1]; the environment adapter knows the real bounds."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from segue.core.types import PyTree
from segue.nets.networks import MLP

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0  # Haarnoja et al. 2018 (arXiv:1812.05905), public implementation


@dataclass(frozen=True)
class DeterministicPolicy:
    """pi(s) = tanh(MLP(s))."""

    observation_dim: int
    action_dim: int
    hidden_sizes: tuple[int, ...]
    kind = "deterministic"

    @property
    def mlp(self) -> MLP:
        """The network under the tanh."""
        return MLP((self.observation_dim, *self.hidden_sizes, self.action_dim))

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters."""
        return self.mlp.init(key)

    def apply(self, params: PyTree, obs: jax.Array) -> jax.Array:
        """[..., S] -> [..., A]."""
        return jnp.tanh(self.mlp.apply(params, obs))


@dataclass(frozen=True)
class TanhGaussianPolicy:
    """a = tanh(mean(s) + std(s) * noise), a diagonal Gaussian squashed into [-1, 1]."""

    observation_dim: int
    action_dim: int
    hidden_sizes: tuple[int, ...]
    kind = "tanh_gaussian"

    @property
    def mlp(self) -> MLP:
        """The network of mean and log-std, halves of its last layer."""
        return MLP((self.observation_dim, *self.hidden_sizes, 2 * self.action_dim))

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters."""
        return self.mlp.init(key)

    def apply(self, params: PyTree, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[..., S] -> mean before the tanh [..., A], log-std [..., A]."""
        mean, log_std = jnp.split(self.mlp.apply(params, obs), 2, axis=-1)
        return mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)


def sample_tanh_gaussian(mean: jax.Array, log_std: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Action tanh(x) [..., A] and its log-density [...], with x = mean + std * noise.

    The density uses the known x: log N(x) - sum log(1 - tanh(x)^2), the slope in its stable form.
    """
    x = mean + jnp.exp(log_std) * noise
    log_normal = -0.5 * jnp.square(noise) - log_std - 0.5 * jnp.log(2 * jnp.pi)
    log_slope = 2 * (jnp.log(2.0) - x - jax.nn.softplus(-2 * x))
    return jnp.tanh(x), (log_normal - log_slope).sum(-1)
