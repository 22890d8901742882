"""A conditional variational auto-encoder of actions: what a dataset does in a state."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from segue.core.types import PyTree
from segue.nets.networks import MLP

LOG_STD_MIN, LOG_STD_MAX = -4.0, 15.0  # of the latent code (../spec/baselines.md 7)


@dataclass(frozen=True)
class ActionVAE:
    """q(z|s,a) = N(mean, std), a diagonal Gaussian of Z = 2 A numbers; dec(s,z) = tanh(MLP(s, z))."""

    observation_dim: int
    action_dim: int
    hidden_sizes: tuple[int, ...]

    @property
    def latent_dim(self) -> int:
        """Z."""
        return 2 * self.action_dim

    @property
    def mlps(self) -> dict[str, MLP]:
        """Its parts: a trunk, two heads on it, the decoder under its tanh."""
        width = self.hidden_sizes[-1]
        return {
            "encoder": MLP((self.observation_dim + self.action_dim, *self.hidden_sizes)),
            "encoder_mean": MLP((width, self.latent_dim)),
            "encoder_log_std": MLP((width, self.latent_dim)),
            "decoder": MLP((self.observation_dim + self.latent_dim, *self.hidden_sizes, self.action_dim)),
        }

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters."""
        keys = jax.random.split(key, len(self.mlps))
        return {name: mlp.init(k) for (name, mlp), k in zip(self.mlps.items(), keys, strict=True)}

    def encode(self, params: PyTree, obs: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[..., S], [..., A] -> mean and log-std of the code, [..., Z] each."""
        mlps = self.mlps
        trunk = jax.nn.relu(mlps["encoder"].apply(params["encoder"], jnp.concatenate([obs, action], axis=-1)))
        log_std = mlps["encoder_log_std"].apply(params["encoder_log_std"], trunk)
        mean = mlps["encoder_mean"].apply(params["encoder_mean"], trunk)
        return mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)

    def decode(self, params: PyTree, obs: jax.Array, code: jax.Array) -> jax.Array:
        """[..., S], [..., Z] -> [..., A]."""
        return jnp.tanh(self.mlps["decoder"].apply(params["decoder"], jnp.concatenate([obs, code], axis=-1)))

    def apply(
        self, params: PyTree, obs: jax.Array, action: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """n codes z = mean + std * noise of each action: [B, S], [B, A], standard normal [B, n, Z].

        Returns the actions that they decode to [B, n, A], the codes [B, n, Z], their mean and log-std [B, Z].
        """
        mean, log_std = self.encode(params, obs, action)
        code = mean[:, None] + jnp.exp(log_std)[:, None] * noise
        states = jnp.broadcast_to(obs[:, None], (*code.shape[:2], self.observation_dim))
        return self.decode(params, states, code), code, mean, log_std


def code_divergence(mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """KL of the code from N(0, 1), averaged (not summed) over its numbers: [..., Z] -> [...]."""
    return -0.5 * (1 + 2 * log_std - jnp.square(mean) - jnp.exp(2 * log_std)).mean(-1)
