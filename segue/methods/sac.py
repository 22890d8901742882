"""Soft actor-critic with a learned temperature (Haarnoja et al. 2018, arXiv:1801.01290 and arXiv:1812.05905).

    y      = r + gamma (1 - d) [ min_i Qbar_i(s', a') - alpha log pi(a'|s') ]        a' ~ pi(.|s')
    L_Q    = sum_i E (Q_i(s, a) - y)^2                                               (1812.05905, Eq. 5)
    L_pi   = E [ alpha log pi(a|s) - min_i Q_i(s, a) ]                               (Eq. 7)
    L_alpha = -E [ log alpha (log pi(a|s) + H) ]                                     (Eq. 18, in log alpha)

Its kin differ in settings alone. RLPD (arXiv:2302.02948): ten critics, the minimum in y over a random two of them, the
mean of all in L_pi. WSRL (arXiv:2412.07762): y without entropy, four critic steps on quarters of a batch for each actor
step on the whole. Their losses are means over critics, which Adam cannot tell from sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

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
    critic: Model
    temperature: Model
    updates: jax.Array  # [] int32


class Draws(NamedTuple):
    """Standard normal numbers of one update, and what a random choice of target critics begins from."""

    next_policy_noise: jax.Array  # [B, A]
    policy_noise: jax.Array  # [B, A]
    subset_keys: Any = None  # keys [critic_minibatches], where there is such a choice


@dataclass(frozen=True)
class SAC(Algorithm[State]):
    """Soft actor-critic: online from scratch, or from a squashed-Gaussian policy and its critics."""

    batch_size: int = 256  # rows per update [Haarnoja et al. 2018b, Table 1]
    discount: float = 0.99  # gamma [Table 1]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [Table 1]
    actor_learning_rate: float = 3e-4  # Adam [Table 1]
    critic_learning_rate: float = 3e-4  # Adam [Table 1]
    temperature_learning_rate: float = 3e-4  # Adam [Table 1]
    initial_temperature: float = 1.0  # alpha at the start [authors' public implementation]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of actor and critics [Table 1]
    critic_hidden_sizes: tuple[int, ...] | None = None  # of the critics, where others [as the actor's in Table 1]
    critic_layer_norm: bool = False  # LayerNorm in the critics [ours: off, as in the paper]
    actor_layer_norm: bool = False  # LayerNorm in the actor [off in the paper, on in WSRL, baselines.md 18]
    num_critics: int = 2  # where none are continued [Haarnoja et al. 2018b, Sec. 6; 10 in RLPD and WSRL]
    target_critics: int | None = None  # random ones in the target's minimum; None: all [2 in RLPD, baselines.md 17]
    repeat_target_critics: bool = False  # they are drawn with replacement [baselines.md 18: on in WSRL]
    actor_value: Literal["min", "mean"] = "min"  # of the critics, for the actor [Eq. 7; mean in RLPD, baselines.md 17]
    backup_entropy: bool = True  # minus alpha log pi in the target [Eq. 5; off in WSRL and on RLPD's AntMaze]
    critic_minibatches: int = 1  # equal parts of a batch, one critic step on each [1; 4 in WSRL, baselines.md 18]
    target_entropy_per_dimension: float = -1.0  # H = this times A [Table 1]
    policy_update_interval: int = 1  # critic updates per actor update [Table 1: one gradient step]

    gives = ("actor", "critic", "temperature", "updates")
    policy_kind = "tanh_gaussian"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Fresh or continued actor, critics and temperature."""
        actor_key, critic_key = jax.random.split(key)
        actor_adam, critic_adam = Adam(self.actor_learning_rate), Adam(self.critic_learning_rate)
        temperature_adam = Adam(self.temperature_learning_rate)
        policy = TanhGaussianPolicy(*spec, self.hidden_sizes, layer_norm=self.actor_layer_norm)
        critic_sizes = self.critic_hidden_sizes or self.hidden_sizes
        critics = Critics(*spec, critic_sizes, self.critic_layer_norm, self.num_critics)
        log_alpha = Scalar(math.log(self.initial_temperature))
        return State(
            actor=Model.take(models, "actor", policy, actor_adam, actor_key),
            critic=Model.take(models, "critic", critics, critic_adam, critic_key, target=True),
            temperature=Model.take(models, "temperature", log_alpha, temperature_adam, key),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> Draws:
        """The noise of both policy samples."""
        following, current = jax.random.normal(key, (2, self.batch_size, spec.action_dim))
        if self.target_critics is None:
            return Draws(following, current)
        return Draws(following, current, jax.random.split(jax.random.fold_in(key, 1), self.critic_minibatches))

    def update(self, s: State, batch: Batch, draws: Draws, policy_step: bool) -> tuple[State, Metrics]:
        """Critics, then (on policy steps) actor and temperature against the new critics, then the targets."""
        alpha = jnp.exp(s.temperature())  # []
        parts = self.critic_minibatches
        if parts == 1:
            key = None if draws.subset_keys is None else draws.subset_keys[0]
            critic, metrics = self._critic_step(s, s.critic, batch, draws.next_policy_noise, key)
        else:
            rows = (batch, draws.next_policy_noise)
            cut = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), rows)
            critic, of_parts = jax.lax.scan(
                lambda critic, part: self._critic_step(s, critic, *part), s.critic, (*cut, draws.subset_keys)
            )
            metrics = jax.tree.map(lambda x: x.mean(0), of_parts)
        s = replace(s, critic=critic, updates=s.updates + 1)
        if not policy_step:
            return s, metrics

        def actor_loss(actor: Model) -> tuple[jax.Array, jax.Array]:
            mean, log_std = actor(batch.obs)  # [B, A]
            action, log_prob = sample_tanh_gaussian(mean, log_std, draws.policy_noise)  # [B, A], [B]
            q = critic(batch.obs, action)  # [critics, B]
            value = q.mean(0) if self.actor_value == "mean" else lowest(q)  # [B]
            return (alpha * log_prob - value).mean(), log_prob.mean()

        actor, loss, log_prob = s.actor.descend(actor_loss)
        target_entropy = self.target_entropy_per_dimension * batch.action.shape[-1]
        slack = jax.lax.stop_gradient(log_prob + target_entropy)
        temperature, _, _ = s.temperature.descend(lambda log_alpha: (-log_alpha() * slack, None))
        metrics |= {"actor_loss": loss, "entropy": -log_prob, "temperature": alpha}
        return replace(s, actor=actor, temperature=temperature), metrics

    def _critic_step(
        self, s: State, critic: Model, batch: Batch, noise: jax.Array, key: jax.Array | None
    ) -> tuple[Model, Metrics]:
        """One step of every critic on rows [b], then of the targets; `key` chooses those that the target asks."""
        mean, log_std = s.actor(batch.next_obs)  # [b, A]
        next_action, next_log_prob = sample_tanh_gaussian(mean, log_std, noise)
        q_next = critic.slow(batch.next_obs, next_action)  # [critics, b]
        if key is not None and self.target_critics is not None:
            count = self.target_critics if self.repeat_target_critics else min(self.target_critics, len(q_next))
            q_next = q_next[jax.random.choice(key, len(q_next), (count,), replace=self.repeat_target_critics)]
        next_value = q_next.min(0)  # [b]
        if self.backup_entropy:
            next_value -= jnp.exp(s.temperature()) * next_log_prob
        y = td_target(batch, self.discount, next_value)  # [b]

        def loss(critic: Model) -> tuple[jax.Array, jax.Array]:
            q = critic(batch.obs, batch.action)  # [critics, b]
            return jnp.square(q - y).mean(-1).sum(), q[0].mean()

        critic, value, q_mean = critic.descend(loss)
        return critic.track(self.target_update_rate), {"critic_loss": value, "critic_1_mean": q_mean}

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """A sample while exploring, tanh(mean) otherwise."""
        mean, log_std = s.actor(obs)
        return act_tanh_gaussian(mean, log_std, key, explore)

    def export(self, s: State) -> Models:
        """Actor, critics, temperature and the count of updates."""
        return {"actor": s.actor, "critic": s.critic, "temperature": s.temperature, "updates": s.updates}
