"""Off2On's pessimistic ensemble (Lee et al. 2021, arXiv:2107.00591; ../spec/baselines.md 9): soft actor-critic of N
agents that conservative offline learning made independently, without any conservatism of its own.

    y_i     = r + gamma (1 - d) [ min_k Qbar_ik(s', a') - alpha log pi(a'|s') ]     a' ~ pi(.|s'), k = 1, 2
    L_Q     = sum_i sum_k E (Q_ik(s, a) - y_i)^2                                    each member its own target
    L_pi    = E [ alpha log pi(a|s) - 1/N sum_i min_k Q_ik(s, a) ]                  a ~ pi(.|s)
    L_alpha = -E [ log alpha (log pi(a|s) + H) ]

pi is one squashed Gaussian, which all members' policies make together (segue.nets.ensemble): none of them is sampled.
Member i's critics are numbers 2 i and 2 i + 1. All losses use the parameters from before the update. Which rows a batch
holds is `balanced_replay`'s part of the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model, Scalar
from segue.core.types import Batch, Metrics, Models, Spec
from segue.losses import lowest, td_target
from segue.nets.networks import Critics
from segue.nets.policies import TanhGaussianPolicy, act_tanh_gaussian, sample_tanh_gaussian


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    actor: Model
    critic: Model  # with target
    temperature: Model  # log alpha
    updates: jax.Array  # [] int32


class Draws(NamedTuple):
    """Standard normal numbers of one update."""

    next_policy_noise: jax.Array  # [B, A]
    policy_noise: jax.Array  # [B, A]


def in_pairs(q: jax.Array) -> jax.Array:
    """[2 N, B] -> [N, 2, B]: the critics of each member."""
    assert q.shape[0] % 2 == 0, f"off2on needs two critics of every member, and there are {q.shape[0]} in all"
    return q.reshape(-1, 2, q.shape[1])


@dataclass(frozen=True)
class Off2On(Algorithm[State]):
    """The online phase, of as many members as there are critics for."""

    actor_sees: Literal["old", "new"] = "old"  # critics, of before or after their step [baselines.md 9: before]
    batch_size: int = 256  # rows per update [baselines.md 9]
    discount: float = 0.99  # gamma [baselines_hparams.yaml, off2on]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [baselines.md 9]
    policy_update_interval: int = 1  # critic updates per actor update [baselines.md 9]
    actor_learning_rate: float = 3e-4  # Adam [baselines.md 9]
    critic_learning_rate: float = 3e-4  # Adam [baselines.md 9]
    temperature_learning_rate: float = 3e-4  # Adam [baselines.md 9]
    initial_temperature: float = 1.0  # alpha at the start [baselines.md 9]
    target_entropy_per_dimension: float = -1.0  # H = this times A [baselines.md 9]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of actor and critics, where none are continued [baselines.md 9]

    gives = ("actor", "critic", "temperature", "updates")
    policy_kind = "tanh_gaussian"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Continued members, or a fresh single one."""
        actor_key, critic_key = jax.random.split(key)
        actor_adam, critic_adam = Adam(self.actor_learning_rate), Adam(self.critic_learning_rate)
        temperature_adam = Adam(self.temperature_learning_rate)
        policy, critics = TanhGaussianPolicy(*spec, self.hidden_sizes), Critics(*spec, self.hidden_sizes)
        log_alpha = Scalar(math.log(self.initial_temperature))
        return State(
            actor=Model.take(models, "actor", policy, actor_adam, actor_key),
            critic=Model.take(models, "critic", critics, critic_adam, critic_key, target=True),
            temperature=Model.take(models, "temperature", log_alpha, temperature_adam, key),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> Draws:
        """The noise of both policy samples."""
        return Draws(*jax.random.normal(key, (2, self.batch_size, spec.action_dim)))

    def update(self, s: State, batch: Batch, draws: Draws, policy_step: bool) -> tuple[State, Metrics]:
        """Critics and targets; on policy steps also actor and temperature. All from what was before."""
        alpha = jnp.exp(s.temperature())  # []
        mean, log_std = s.actor(batch.next_obs)  # [B, A]
        next_action, next_log_prob = sample_tanh_gaussian(mean, log_std, draws.next_policy_noise)
        next_value = in_pairs(s.critic.slow(batch.next_obs, next_action)).min(1) - alpha * next_log_prob  # [N, B]
        y = jax.vmap(lambda own: td_target(batch, self.discount, own))(next_value)  # [N, B]

        def critic_loss(critic: Model) -> tuple[jax.Array, jax.Array]:
            q = in_pairs(critic(batch.obs, batch.action))  # [N, 2, B]
            return jnp.square(q - y[:, None]).mean(-1).sum(), q[0, 0].mean()

        critic, loss, q_mean = s.critic.descend(critic_loss)
        metrics = {"critic_loss": loss, "critic_1_mean": q_mean, "target_spread": y.std(0).mean()}
        after = replace(s, critic=critic.track(self.target_update_rate), updates=s.updates + 1)
        if not policy_step:
            return after, metrics
        seen = critic if self.actor_sees == "new" else s.critic

        def actor_loss(actor: Model) -> tuple[jax.Array, jax.Array]:
            mean, log_std = actor(batch.obs)  # [B, A]
            action, log_prob = sample_tanh_gaussian(mean, log_std, draws.policy_noise)  # [B, A], [B]
            q = lowest(in_pairs(seen(batch.obs, action)).swapaxes(0, 1)).mean(0)  # [B]
            return (alpha * log_prob - q).mean(), log_prob.mean()

        actor, loss, log_prob = s.actor.descend(actor_loss)
        slack = jax.lax.stop_gradient(log_prob + self.target_entropy_per_dimension * batch.action.shape[-1])
        temperature, _, _ = s.temperature.descend(lambda log_alpha: (-log_alpha() * slack, None))
        metrics |= {"actor_loss": loss, "entropy": -log_prob, "temperature": alpha}
        return replace(after, actor=actor, temperature=temperature), metrics

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """A sample while exploring, tanh(mean) otherwise."""
        mean, log_std = s.actor(obs)
        return act_tanh_gaussian(mean, log_std, key, explore)

    def export(self, s: State) -> Models:
        """Actor, critics, temperature and the count of updates."""
        return {"actor": s.actor, "critic": s.critic, "temperature": s.temperature, "updates": s.updates}
