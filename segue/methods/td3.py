"""TD3: twin delayed deterministic policy gradient (Fujimoto et al. 2018, arXiv:1802.09477).

    a~   = clip(pibar(s') + clip(sigma eps, -c, c), -1, 1)
    y    = r + gamma (1 - d) min_i Qbar_i(s', a~)                                    (Eq. 14)
    L_Q  = sum_i E (Q_i(s, a) - y)^2
    L_pi = -E Q_1(s, pi(s))                                                          every F-th update (Eq. 15)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, Models, Spec
from segue.losses import td_target
from segue.nets.networks import Critics
from segue.nets.policies import DeterministicPolicy


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    actor: Model  # with target
    critic: Model  # with target
    updates: jax.Array  # [] int32


def critic_step(s: Any, batch: Batch, noise: jax.Array, std: float, clip: float, discount: float) -> Any:
    """One step of both critics towards the smoothed, clipped double-Q target; `noise` is standard normal [B, A].

    `s` needs `actor` and `critic` with targets. Returns the critic model, not yet tracked, and metrics.
    """
    shift = jnp.clip(std * noise, -clip, clip)
    next_action = jnp.clip(s.actor.slow(batch.next_obs) + shift, -1, 1)  # [B, A]
    y = td_target(batch, discount, s.critic.slow(batch.next_obs, next_action).min(0))  # [B]

    def loss(critic: Model) -> tuple[jax.Array, jax.Array]:
        q = critic(batch.obs, batch.action)  # [2, B]
        return jnp.square(q - y).mean(-1).sum(), q[0].mean()

    critic, value, q_mean = s.critic.descend(loss)
    return critic, {"critic_loss": value, "critic_1_mean": q_mean}


@dataclass(frozen=True)
class TD3(Algorithm[State]):
    """TD3: online from scratch, or from a deterministic policy and its critics."""

    batch_size: int = 256  # rows per update [Fujimoto & Gu 2021, Table 4; 100 in Fujimoto et al. 2018]
    discount: float = 0.99  # gamma [Fujimoto et al. 2018, Sec. 6.1]
    target_update_rate: float = 0.005  # Polyak rate of all targets [Sec. 6.1]
    target_noise_std: float = 0.2  # sigma of the target action's noise [Sec. 6.1]
    target_noise_clip: float = 0.5  # c [Sec. 6.1]
    exploration_noise: float = 0.1  # std added to executed actions [Sec. 6.1]
    policy_update_interval: int = 2  # F: critic updates per actor and target update [Sec. 6.1]
    actor_learning_rate: float = 3e-4  # Adam [Fujimoto & Gu 2021, Table 4; 1e-3 in Fujimoto et al. 2018]
    critic_learning_rate: float = 3e-4  # Adam [as above]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of actor and critics [Fujimoto & Gu 2021, Table 4]
    critic_layer_norm: bool = False  # LayerNorm in the critics [off in the paper]

    gives = ("actor", "critic", "updates")
    policy_kind = "deterministic"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Fresh or continued actor and critics."""
        actor_key, critic_key = jax.random.split(key)
        actor_adam, critic_adam = Adam(self.actor_learning_rate), Adam(self.critic_learning_rate)
        policy = DeterministicPolicy(*spec, self.hidden_sizes)
        critics = Critics(*spec, self.hidden_sizes, self.critic_layer_norm)
        return State(
            actor=Model.take(models, "actor", policy, actor_adam, actor_key, target=True),
            critic=Model.take(models, "critic", critics, critic_adam, critic_key, target=True),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> jax.Array:
        """Standard normal noise of the target action [B, A]."""
        return jax.random.normal(key, (self.batch_size, spec.action_dim))

    def update(self, s: State, batch: Batch, draws: jax.Array, policy_step: bool) -> tuple[State, Metrics]:
        """Critics; on policy steps also the actor against the new critic, and the targets."""
        noise = (draws, self.target_noise_std, self.target_noise_clip)
        critic, metrics = critic_step(s, batch, *noise, self.discount)
        s = replace(s, critic=critic, updates=s.updates + 1)
        if not policy_step:
            return s, metrics

        def actor_loss(actor: Model) -> tuple[jax.Array, None]:
            return -critic.net.first(critic.params, batch.obs, actor(batch.obs)).mean(), None

        actor, loss, _ = s.actor.descend(actor_loss)
        s = replace(s, actor=actor.track(self.target_update_rate), critic=critic.track(self.target_update_rate))
        return s, metrics | {"actor_loss": loss}

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """pi(s), with Gaussian noise while exploring."""
        action = s.actor(obs)
        if not explore:
            return action
        return jnp.clip(action + self.exploration_noise * jax.random.normal(key, action.shape), -1, 1)

    def export(self, s: State) -> Models:
        """Actor, critics and the count of updates."""
        return {"actor": s.actor, "critic": s.critic, "updates": s.updates}
