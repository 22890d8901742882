"""Gaussian policies of both forms, by the point x that their density is of (../spec/baselines.md 11).

Squashed by a tanh, x is the value before it; not squashed, x is the action itself, after it was clipped to [-1, 1].
A `gaussian` is what a policy's network returns: mean [..., A] and log-std [..., A] or [A].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from segue.core.types import PyTree
from segue.nets.networks import MLP
from segue.nets.policies import gaussian_log_density, sample_in_box, sample_tanh_gaussian, tanh_gaussian_log_density

Gaussian = tuple[jax.Array, jax.Array]
POINT_ACTION_LIMIT = 0.999999  # beyond it an action that was given counts as this: the atanh of 1 is infinite


@dataclass(frozen=True)
class SigmoidGaussianPolicy:
    """a = tanh(MLP(s)) + std * noise, not squashed; a sigmoid keeps the log-std, the same everywhere, in a range."""

    observation_dim: int
    action_dim: int
    hidden_sizes: tuple[int, ...]
    log_std_range: tuple[float, float] = (-5.0, 0.0)  # [baselines_hparams.yaml, aca, antmaze]
    kind = "gaussian"

    @property
    def mlp(self) -> MLP:
        """The network of the mean, before its tanh."""
        return MLP((self.observation_dim, *self.hidden_sizes, self.action_dim))

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters; the log-std starts in the middle of its range."""
        return self.mlp.init(key) | {"log_std_parameter": jnp.zeros(self.action_dim)}

    def apply(self, params: PyTree, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[..., S] -> mean [..., A], log-std [A]."""
        low, high = self.log_std_range
        return jnp.tanh(self.mlp.apply(params, obs)), low + (high - low) * jax.nn.sigmoid(params["log_std_parameter"])


def is_squashed(net: Any) -> bool:
    """Of a policy's network: does a tanh follow its Gaussian?"""
    return bool(net.kind == "tanh_gaussian")


def sample_point(gaussian: Gaussian, noise: jax.Array, squashed: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Point [..., A], action [..., A] and log-density [...] of a sample under normal `noise` [..., A]."""
    mean, log_std = gaussian
    if squashed:
        action, log_prob = sample_tanh_gaussian(mean, log_std, noise)
        return mean + jnp.exp(log_std) * noise, action, log_prob
    action = sample_in_box(mean, log_std, noise)
    return action, action, point_log_density(action, gaussian, squashed)


def point_of(action: jax.Array, squashed: bool) -> jax.Array:
    """The point [..., A] of an action [..., A] that was given, not sampled here."""
    return jnp.arctanh(jnp.clip(action, -POINT_ACTION_LIMIT, POINT_ACTION_LIMIT)) if squashed else action


def point_log_density(point: jax.Array, gaussian: Gaussian, squashed: bool) -> jax.Array:
    """Log-density [...] of the action whose point is `point` [..., A]."""
    density = tanh_gaussian_log_density if squashed else gaussian_log_density
    return density(point, *gaussian).sum(-1)


def act_gaussian(gaussian: Gaussian, key: jax.Array, explore: bool, squashed: bool) -> jax.Array:
    """An action [A]: a sample while exploring, else that of no noise."""
    mean = gaussian[0]
    noise = jax.random.normal(key, mean.shape, mean.dtype) if explore else jnp.zeros_like(mean)
    return sample_point(gaussian, noise, squashed)[1]
