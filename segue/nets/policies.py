"""Policies as networks with named outputs. Actions lie in [-1, 1]; the environment adapter knows the real bounds."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from segue.core.model import Model
from segue.core.types import PyTree
from segue.nets.networks import MLP, Initializer, fan_in_uniform

BOUNDED_LOG_STD_MIN = -5.0  # of Uni-O4's actor, which has 0 above [baselines_hparams.yaml, uni_o4_ppo]
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0  # Haarnoja et al. 2018 (arXiv:1812.05905), public implementation
DATA_ACTION_LIMIT = 1 - 1e-4  # beyond it the data's actions count as this: the atanh of 1 is infinite (ssar.md 2.1)


@dataclass(frozen=True)
class DeterministicPolicy:
    """pi(s) = tanh(MLP(s))."""

    observation_dim: int
    action_dim: int
    hidden_sizes: tuple[int, ...]
    last_initializer: Initializer | None = None
    initializer: Initializer = fan_in_uniform
    kind = "deterministic"

    @property
    def mlp(self) -> MLP:
        """The network under the tanh."""
        sizes = (self.observation_dim, *self.hidden_sizes, self.action_dim)
        return MLP(sizes, initializer=self.initializer, last_initializer=self.last_initializer)

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters."""
        return self.mlp.init(key)

    def apply(self, params: PyTree, obs: jax.Array, *dropout: jax.Array) -> jax.Array:
        """[..., S] -> [..., A]; `dropout` as in MLP."""
        return jnp.tanh(self.mlp.apply(params, obs, *dropout))


@dataclass(frozen=True)
class GaussianPolicy:
    """a = mean(s) + std * noise, a diagonal Gaussian that is not squashed; its log-std [A] is the same everywhere."""

    observation_dim: int
    action_dim: int
    hidden_sizes: tuple[int, ...]
    tanh_mean: bool  # keeps the mean, though not the sample, in [-1, 1]
    initializer: Initializer = fan_in_uniform
    log_std_min: float = LOG_STD_MIN
    kind = "gaussian"

    @property
    def mlp(self) -> MLP:
        """The network of the mean, before its tanh."""
        return MLP((self.observation_dim, *self.hidden_sizes, self.action_dim), initializer=self.initializer)

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters; the std starts at 1."""
        return self.mlp.init(key) | {"log_std": jnp.zeros(self.action_dim)}

    def apply(self, params: PyTree, obs: jax.Array, *dropout: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[..., S] -> mean [..., A], log-std [A]; `dropout` as in MLP."""
        mean = self.mlp.apply(params, obs, *dropout)
        return jnp.tanh(mean) if self.tanh_mean else mean, jnp.clip(params["log_std"], self.log_std_min, LOG_STD_MAX)


@dataclass(frozen=True)
class BoundedGaussianPolicy:
    """a = mean(s) + std(s) * noise, not squashed; mean and log-std are halves of one network's output, under a tanh.

    The log-std's half is mapped from (-1, 1) to (-5, 0), with `second_tanh` after another tanh, which leaves it (-4.40,
    -0.60): Uni-O4's actor, as it learns offline and as its program goes on with it (../spec/baselines.md 15).
    """

    observation_dim: int
    action_dim: int
    hidden_sizes: tuple[int, ...]
    second_tanh: bool = False
    initializer: Initializer = fan_in_uniform
    kind = "gaussian"

    @property
    def mlp(self) -> MLP:
        """The network under the tanh."""
        sizes = (self.observation_dim, *self.hidden_sizes, 2 * self.action_dim)
        return MLP(sizes, initializer=self.initializer)

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters."""
        return self.mlp.init(key)

    def apply(self, params: PyTree, obs: jax.Array, *dropout: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[..., S] -> mean [..., A], log-std [..., A]; `dropout` as in MLP."""
        mean, x = jnp.split(jnp.tanh(self.mlp.apply(params, obs, *dropout)), 2, axis=-1)
        return mean, BOUNDED_LOG_STD_MIN / 2 * (1 - (jnp.tanh(x) if self.second_tanh else x))


@dataclass(frozen=True)
class TanhGaussianPolicy:
    """a = tanh(mean(s) + std(s) * noise), a diagonal Gaussian squashed into [-1, 1].

    With `trained_scale` the log-std is multiplier x raw + offset, two trained scalars that start at 1 and -1, as in
    CQL's policy (../spec/ssar.md 2.5).
    """

    observation_dim: int
    action_dim: int
    hidden_sizes: tuple[int, ...]
    trained_scale: bool = False
    initializer: Initializer = fan_in_uniform
    last_initializer: Initializer | None = None
    layer_norm: bool = False
    kind = "tanh_gaussian"

    @property
    def mlp(self) -> MLP:
        """The network of mean and raw log-std, halves of its last layer."""
        sizes = (self.observation_dim, *self.hidden_sizes, 2 * self.action_dim)
        return MLP(sizes, self.layer_norm, self.initializer, self.last_initializer)

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters."""
        params = self.mlp.init(key)
        if not self.trained_scale:
            return params
        return params | {"log_std_multiplier": jnp.asarray(1.0), "log_std_offset": jnp.asarray(-1.0)}

    def apply(self, params: PyTree, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[..., S] -> mean before the tanh [..., A], log-std [..., A]."""
        mean, log_std = jnp.split(self.mlp.apply(params, obs), 2, axis=-1)
        if self.trained_scale:
            log_std = params["log_std_multiplier"] * log_std + params["log_std_offset"]
        return mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)


def sample_tanh_gaussian(mean: jax.Array, log_std: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Action tanh(x) [..., A] and its log-density [...], with x = mean + std * noise.

    The density uses the known x: log N(x) - sum log(1 - tanh(x)^2), the slope in its stable form.
    """
    x = mean + jnp.exp(log_std) * noise
    log_normal = -0.5 * jnp.square(noise) - log_std - 0.5 * jnp.log(2 * jnp.pi)
    return jnp.tanh(x), (log_normal - tanh_log_slope(x)).sum(-1)


def act_tanh_gaussian(mean: jax.Array, log_std: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
    """An action: a sample while exploring, tanh(mean) otherwise."""
    if not explore:
        return jnp.tanh(mean)
    return jnp.tanh(mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape))


def tanh_log_slope(x: jax.Array) -> jax.Array:
    """log(1 - tanh(x)^2), in its stable form."""
    return 2 * (jnp.log(2.0) - x - jax.nn.softplus(-2 * x))


def sample_in_box(mean: jax.Array, log_std: jax.Array, noise: jax.Array) -> jax.Array:
    """mean + std * noise, clipped to [-1, 1]: the action of a Gaussian that is not squashed, [..., A]."""
    return jnp.clip(mean + jnp.exp(log_std) * noise, -1, 1)


def action_of(policy: Model, obs: jax.Array, noise: jax.Array) -> jax.Array:
    """Action [..., A] in [-1, 1] of a policy of any form under normal `noise` [..., A]; at 0 the greedy one."""
    if policy.net.kind == "deterministic":
        return policy(obs)
    mean, log_std = policy(obs)
    if policy.net.kind == "tanh_gaussian":
        return jnp.tanh(mean + jnp.exp(log_std) * noise)
    return sample_in_box(mean, log_std, noise)


def gaussian_log_density(x: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """Log-density of x under a Gaussian, in each dimension: [..., A]."""
    return -0.5 * jnp.square((x - mean) * jnp.exp(-log_std)) - log_std - 0.5 * jnp.log(2 * jnp.pi)


def tanh_gaussian_log_density(x: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """Log-density of the action tanh(x) in each dimension, [..., A], given its value x before the tanh."""
    return gaussian_log_density(x, mean, log_std) - tanh_log_slope(x)


def data_log_density(action: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """Log-density of an action that was given, not sampled here, in each dimension: [..., A]."""
    inside = jnp.clip(action, -DATA_ACTION_LIMIT, DATA_ACTION_LIMIT)
    return tanh_gaussian_log_density(jnp.arctanh(inside), mean, log_std)
