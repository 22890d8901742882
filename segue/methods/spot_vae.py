"""SPOT's first stage: a model of the data's actions (Wu et al. 2022, arXiv:2202.06239, Sec. 3; ../spec/baselines.md 7).

    L = E (dec(s, z) - a)^2 + beta KL(q(z|s,a), N(0, 1))          z ~ q(.|s,a); means over rows and dimensions
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, Models, Spec
from segue.nets.vae import ActionVAE, code_divergence


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    vae: Model
    updates: jax.Array  # [] int32


@dataclass(frozen=True)
class BehaviourVAE(Algorithm[State]):
    """The auto-encoder alone. It exports no count of updates: it is nothing that a policy's phase continues."""

    kl_weight: float = 0.5  # beta [baselines.md 7]
    batch_size: int = 256  # rows per update [baselines.md 7]
    learning_rate: float = 1e-3  # Adam [baselines.md 7]
    hidden_sizes: tuple[int, ...] = (750, 750)  # of encoder and decoder [baselines.md 7]
    discount = 0.0  # it looks at no future
    policy_update_interval = 1  # there is no policy: every update counts as a round

    gives = ("vae",)

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """A fresh auto-encoder."""
        net = ActionVAE(*spec, self.hidden_sizes)
        return State(Model.take(models, "vae", net, Adam(self.learning_rate), key), jnp.int32(0))

    def draw(self, key: jax.Array, spec: Spec) -> jax.Array:
        """Standard normal noise of the codes, one a row [B, 1, Z]."""
        return jax.random.normal(key, (self.batch_size, 1, ActionVAE(*spec, self.hidden_sizes).latent_dim))

    def update(self, s: State, batch: Batch, draws: jax.Array, policy_step: bool) -> tuple[State, Metrics]:
        """One step of encoder and decoder."""

        def loss(vae: Model) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            decoded, _, mean, log_std = vae(batch.obs, batch.action, draws)
            error = jnp.square(decoded[:, 0] - batch.action).mean()
            divergence = code_divergence(mean, log_std).mean()
            return error + self.kl_weight * divergence, (error, divergence)

        vae, value, (error, divergence) = s.vae.descend(loss)
        metrics = {"vae_loss": value, "vae_reconstruction_loss": error, "vae_kl": divergence}
        return State(vae, s.updates + 1), metrics

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """There is no policy. Raises NotImplementedError."""
        raise NotImplementedError("the auto-encoder alone does not act")

    def export(self, s: State) -> Models:
        """The auto-encoder."""
        return {"vae": s.vae}
