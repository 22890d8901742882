"""SO2: perturbed value updates, and more of them (Zhang et al. 2024, arXiv:2312.07685; ../spec/baselines.md 13).

The offline critic's errors make peaks, which a policy climbs. Values are taken at noisy actions, which flatten them,

    a~     = clip(a + clip(sigma n, -c, c), -1, 1)            n ~ N(0, 1)

and the critics make `policy_update_interval` updates for one of the actor. On soft actor-critic, with N critics:

    y_i    = r + gamma (1 - d) [ Qbar_i(s', a~') - alpha log pi(a'|s') ]      a' ~ pi(.|s'), its own entropy
    L_Q    = 1/N sum_i E (Q_i(s, a) - y_i)^2                                  each critic its own target, no minimum
    L_pi   = E [ alpha log pi(a|s) - min_i Q_i(s, a) ]                        a ~ pi(.|s), unperturbed; alpha fixed

On IQL, whose targets hold no action of the policy, V sees the data's action perturbed (our reading, ../spec/baq.md 6):

    L_V    = E |tau - 1{u < 0}| u^2                           u = min_i Qbar_i(s, a~) - V(s)
    L_Q    = 1/2 sum_i E (Q_i(s, a) - y)^2                    y = r + gamma (1 - d) V(s'), V from before its step
    L_pi   = -E [ min(exp(beta A), w_max) log pi(a|s) ]       A = min_i Qbar_i(s, a) - V(s), a as it is
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, Models, Spec
from segue.losses import lowest, td_target
from segue.nets.networks import MLP, Critics
from segue.nets.policies import (
    GaussianPolicy,
    TanhGaussianPolicy,
    act_tanh_gaussian,
    gaussian_log_density,
    sample_in_box,
    sample_tanh_gaussian,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    actor: Model
    critic: Model  # with target
    updates: jax.Array  # [] int32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExpectileState(State):
    """The same on IQL."""

    value: Model


class Draws(NamedTuple):
    """Standard normal numbers of one update."""

    next_policy_noise: jax.Array  # [B, A]
    target_noise: jax.Array  # [B, A]
    policy_noise: jax.Array  # [B, A]


def perturbed(action: jax.Array, noise: jax.Array, std: float, clip: float) -> jax.Array:
    """a~: the action [B, A] with clipped noise on it, in the box. `noise` [B, A] is standard normal."""
    return jnp.clip(action + jnp.clip(std * noise, -clip, clip), -1, 1)


@dataclass(frozen=True)
class SO2(Algorithm[State]):
    """SO2 on soft actor-critic."""

    target_noise_std: float = 0.3  # sigma, of a~ [baselines.md 13]
    target_noise_clip: float = 0.6  # c, the largest such noise [baselines.md 13]
    temperature: float = 0.2  # alpha, fixed [baselines.md 13]
    num_critics: int = 10  # N, where none are continued [baselines.md 13; 50 on Hopper]
    policy_update_interval: int = 10  # critic updates per actor update [baselines.md 13]
    batch_size: int = 2_560  # rows per update [baselines.md 13]
    discount: float = 0.99  # gamma [baselines_hparams.yaml, so2]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [baselines.md 13]
    actor_learning_rate: float = 1e-3  # Adam [baselines.md 13]
    critic_learning_rate: float = 1e-3  # Adam [baselines.md 13]
    hidden_sizes: tuple[int, ...] = (256, 256, 256)  # of actor and critics, where none are continued [baselines.md 13]

    gives = ("actor", "critic", "updates")
    policy_kind = "tanh_gaussian"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Fresh or continued actor and critics, of whatever number."""
        actor_key, critic_key = jax.random.split(key)
        actor_adam, critic_adam = Adam(self.actor_learning_rate), Adam(self.critic_learning_rate)
        policy = TanhGaussianPolicy(*spec, self.hidden_sizes)
        critics = Critics(*spec, self.hidden_sizes, count=self.num_critics)
        return State(
            actor=Model.take(models, "actor", policy, actor_adam, actor_key),
            critic=Model.take(models, "critic", critics, critic_adam, critic_key, target=True),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> Draws:
        """The noise of both policy samples and of the perturbation."""
        return Draws(*jax.random.normal(key, (3, self.batch_size, spec.action_dim)))

    def update(self, s: State, batch: Batch, draws: Draws, policy_step: bool) -> tuple[State, Metrics]:
        """Critics, then (on policy steps) the actor against the new critics, then the targets."""
        mean, log_std = s.actor(batch.next_obs)  # [B, A]
        next_action, next_log_prob = sample_tanh_gaussian(mean, log_std, draws.next_policy_noise)
        tested = perturbed(next_action, draws.target_noise, self.target_noise_std, self.target_noise_clip)
        next_value = s.critic.slow(batch.next_obs, tested) - self.temperature * next_log_prob  # [N, B]
        y = jax.vmap(lambda own: td_target(batch, self.discount, own))(next_value)  # [N, B]

        def critic_loss(critic: Model) -> tuple[jax.Array, jax.Array]:
            q = critic(batch.obs, batch.action)  # [N, B]
            return jnp.square(q - y).mean(), q[0].mean()

        critic, loss, q_mean = s.critic.descend(critic_loss)
        metrics = {"critic_loss": loss, "critic_1_mean": q_mean, "target_spread": y.std(0).mean()}
        s = replace(s, critic=critic.track(self.target_update_rate), updates=s.updates + 1)
        if not policy_step:
            return s, metrics

        def actor_loss(actor: Model) -> tuple[jax.Array, jax.Array]:
            mean, log_std = actor(batch.obs)  # [B, A]
            action, log_prob = sample_tanh_gaussian(mean, log_std, draws.policy_noise)  # [B, A], [B]
            q = lowest(critic(batch.obs, action))  # [B]
            return (self.temperature * log_prob - q).mean(), log_prob.mean()

        actor, loss, log_prob = s.actor.descend(actor_loss)
        return replace(s, actor=actor), metrics | {"actor_loss": loss, "entropy": -log_prob}

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """A sample while exploring, tanh(mean) otherwise."""
        mean, log_std = s.actor(obs)
        return act_tanh_gaussian(mean, log_std, key, explore)

    def export(self, s: State) -> Models:
        """Actor, critics and the count of updates."""
        return {"actor": s.actor, "critic": s.critic, "updates": s.updates}


@dataclass(frozen=True)
class SO2OnIQL(Algorithm[ExpectileState]):
    """SO2 on IQL, online."""

    target_noise_std: float = 0.3  # sigma, of a~ [baselines.md 13]
    target_noise_clip: float = 0.6  # c, the largest such noise [baselines.md 13]
    expectile: float = 0.7  # tau [Kostrikov et al. 2021, App. B; 0.9 on AntMaze]
    inverse_temperature: float = 3.0  # beta [App. B; 10 on AntMaze]
    advantage_weight_max: float = 100.0  # w_max, of the exponential [baselines.md 5]
    policy_update_interval: int = 10  # updates of the values per actor update [baq.md 6]
    batch_size: int = 256  # rows per update [App. B]
    discount: float = 0.99  # gamma [App. B]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [App. B]
    actor_learning_rate: float = 3e-4  # Adam [App. B]
    critic_learning_rate: float = 3e-4  # Adam, of V too [App. B]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of actor, critics and V, where none are continued [App. B]

    gives = ("actor", "critic", "value", "updates")
    policy_kind = "gaussian"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> ExpectileState:
        """Fresh or continued actor, critics and value."""
        actor_key, critic_key, value_key = jax.random.split(key, 3)
        policy = GaussianPolicy(*spec, self.hidden_sizes, tanh_mean=True)
        critics, value = Critics(*spec, self.hidden_sizes), MLP((spec.observation_dim, *self.hidden_sizes, 1))
        adam = Adam(self.critic_learning_rate)
        return ExpectileState(
            actor=Model.take(models, "actor", policy, Adam(self.actor_learning_rate), actor_key),
            critic=Model.take(models, "critic", critics, adam, critic_key, target=True),
            value=Model.take(models, "value", value, adam, value_key),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> jax.Array:
        """Standard normal noise of the perturbation [B, A]."""
        return jax.random.normal(key, (self.batch_size, spec.action_dim))

    def update(
        self, s: ExpectileState, batch: Batch, draws: jax.Array, policy_step: bool
    ) -> tuple[ExpectileState, Metrics]:
        """Value, critics, targets; on policy steps the actor, by the advantages from before all of these."""
        next_value = s.value(batch.next_obs)[..., 0]  # [B], before V moves
        tested = perturbed(batch.action, draws, self.target_noise_std, self.target_noise_clip)
        q = s.critic.slow(batch.obs, tested).min(0)  # [2, B] -> [B]

        def value_loss(value: Model) -> tuple[jax.Array, None]:
            above = q - value(batch.obs)[..., 0]  # [B]
            return (jnp.abs(self.expectile - (above < 0)) * jnp.square(above)).mean(), None

        value, v_loss, _ = s.value.descend(value_loss)
        y = td_target(batch, self.discount, next_value)

        def critic_loss(critic: Model) -> tuple[jax.Array, jax.Array]:
            values = critic(batch.obs, batch.action)  # [2, B]
            return 0.5 * jnp.square(values - y).mean(-1).sum(), values[0].mean()

        critic, q_loss, q_mean = s.critic.descend(critic_loss)
        metrics = {"value_loss": v_loss, "critic_loss": q_loss, "critic_1_mean": q_mean}
        after = replace(s, critic=critic.track(self.target_update_rate), value=value, updates=s.updates + 1)
        if not policy_step:
            return after, metrics
        advantage = s.critic.slow(batch.obs, batch.action).min(0) - s.value(batch.obs)[..., 0]  # [B]
        weight = jnp.minimum(jnp.exp(self.inverse_temperature * advantage), self.advantage_weight_max)  # [B]

        def actor_loss(actor: Model) -> tuple[jax.Array, None]:
            mean, log_std = actor(batch.obs)  # [B, A], [A]
            return -(weight * gaussian_log_density(batch.action, mean, log_std).sum(-1)).mean(), None

        actor, loss, _ = s.actor.descend(actor_loss)
        clipped = (weight >= self.advantage_weight_max).sum().astype(weight.dtype)
        return replace(after, actor=actor), metrics | {"actor_loss": loss, "num_clipped_weights": clipped}

    def act(self, s: ExpectileState, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """The mean, or a sample while exploring; in [-1, 1]."""
        mean, log_std = s.actor(obs)
        return sample_in_box(mean, log_std, jax.random.normal(key, mean.shape) if explore else jnp.zeros_like(mean))

    def export(self, s: ExpectileState) -> Models:
        """Actor, critics, value and the count of updates."""
        return {"actor": s.actor, "critic": s.critic, "value": s.value, "updates": s.updates}
