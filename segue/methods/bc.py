"""Behaviour cloning with a deterministic policy (../spec/baselines.md 1).

    L_pi = E (pi(s) - a)^2          mean over rows and dimensions
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, Models, Spec
from segue.nets.policies import DeterministicPolicy


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    actor: Model
    updates: jax.Array  # [] int32


class NoDraws(NamedTuple):
    """The update is deterministic."""


@dataclass(frozen=True)
class BC(Algorithm[State]):
    """Behaviour cloning: it has no values, and nothing that could improve online."""

    batch_size: int = 256  # rows per update [baselines.md 1]
    discount: float = 0.99  # of estimates of the policy's value; cloning looks at no future [the papers' on every task]
    actor_learning_rate: float = 3e-4  # Adam [baselines.md 1]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of the actor [baselines.md 1]
    policy_update_interval: int = 1  # there is no critic [every update is a policy step]

    gives = ("actor", "updates")
    policy_kind = "deterministic"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """A fresh or continued actor."""
        policy = DeterministicPolicy(*spec, self.hidden_sizes)
        return State(
            actor=Model.take(models, "actor", policy, Adam(self.actor_learning_rate), key),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> NoDraws:
        """Nothing."""
        return NoDraws()

    def update(self, s: State, batch: Batch, draws: NoDraws, policy_step: bool) -> tuple[State, Metrics]:
        """One step towards the data's actions."""

        def loss(actor: Model) -> tuple[jax.Array, None]:
            return jnp.square(actor(batch.obs) - batch.action).mean(), None

        actor, value, _ = s.actor.descend(loss)
        return State(actor, s.updates + 1), {"actor_loss": value}

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """pi(s)."""
        return s.actor(obs)

    def export(self, s: State) -> Models:
        """The actor and the count of updates."""
        return {"actor": s.actor, "updates": s.updates}
