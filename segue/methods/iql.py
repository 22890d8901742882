"""IQL's critics (Kostrikov et al. 2021, arXiv:2110.06169), as SSAR uses them to select a sub-dataset.

    L_V = E |tau - 1{u < 0}| u^2          u = min_i Qbar_i(s, a) - V(s)              (Eq. 5)
    L_Q = 1/2 sum_i E (Q_i(s, a) - y)^2   y = r + gamma (1 - d) V(s'), V from before its step  (Eq. 6)

A transition is selected if min_i Q_i(s, a) >= V(s) (../spec/ssar.md 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, Models, Spec
from segue.losses import td_target
from segue.nets.networks import MLP, Critics


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    critic: Model  # with target
    value: Model
    updates: jax.Array  # [] int32


class NoDraws(NamedTuple):
    """The update is deterministic."""


@dataclass(frozen=True)
class IQLCritics(Algorithm[State]):
    """Expectile regression of V and Q on data, without a policy."""

    expectile: float = 0.7  # tau [ssar.md B8]
    batch_size: int = 256  # rows per update [Kostrikov et al. 2021, App. B; ssar.md 2.2]
    discount: float = 0.99  # gamma [App. B]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [App. B]
    critic_learning_rate: float = 3e-4  # Adam [App. B]
    value_learning_rate: float = 3e-4  # Adam [App. B]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of critics and value [App. B]
    policy_update_interval: int = 1  # there is no policy [every update counts as a round]

    gives = ("selector_critic", "selector_value")

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Fresh critics; they are nobody else's."""
        critic_key, value_key = jax.random.split(key)
        critics = Critics(*spec, self.hidden_sizes)
        value = MLP((spec.observation_dim, *self.hidden_sizes, 1))
        return State(
            critic=Model.create(critics, Adam(self.critic_learning_rate), critic_key, target=True),
            value=Model.create(value, Adam(self.value_learning_rate), value_key),
            updates=jnp.int32(0),
        )

    def draw(self, key: jax.Array, spec: Spec) -> NoDraws:
        """Nothing."""
        return NoDraws()

    def update(self, s: State, batch: Batch, draws: NoDraws, policy_step: bool) -> tuple[State, Metrics]:
        """V, then the critics with the old V's next values, then the targets."""
        next_value = s.value(batch.next_obs)[..., 0]  # [B], before V moves
        q = s.critic.slow(batch.obs, batch.action).min(0)  # [B]

        def value_loss(value: Model) -> tuple[jax.Array, None]:
            u = q - value(batch.obs)[..., 0]  # [B]
            return (jnp.abs(self.expectile - (u < 0)) * jnp.square(u)).mean(), None

        value, v_loss, _ = s.value.descend(value_loss)
        y = td_target(batch, self.discount, next_value)

        def critic_loss(critic: Model) -> tuple[jax.Array, jax.Array]:
            values = critic(batch.obs, batch.action)  # [2, B]
            return 0.5 * jnp.square(values - y).mean(-1).sum(), values[0].mean()

        critic, q_loss, q_mean = s.critic.descend(critic_loss)
        metrics = {"value_loss": v_loss, "critic_loss": q_loss, "critic_1_mean": q_mean}
        return State(critic.track(self.target_update_rate), value, s.updates + 1), metrics

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """There is no policy. Raises NotImplementedError."""
        raise NotImplementedError("IQL's critics alone do not act")

    def export(self, s: State) -> Models:
        """Critics and value, under names that no policy phase continues."""
        return {"selector_critic": s.critic, "selector_value": s.value}


def advantage_selected(critic: Model, value: Model, obs: jax.Array, action: jax.Array) -> jax.Array:
    """min_i Q_i(s, a) >= V(s), with the online critics; ties are members. [N, S], [N, A] -> bool [N]."""
    return critic(obs, action).min(0) >= value(obs)[..., 0]
