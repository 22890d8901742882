"""IQL: implicit Q-learning (Kostrikov et al. 2021, arXiv:2110.06169).

    L_V  = E |tau - 1{A < 0}| A^2         A = min_i Qbar_i(s, a) - V(s)                      (Eq. 5)
    L_Q  = 1/2 sum_i E (Q_i(s, a) - y)^2  y = r + gamma (1 - d) V(s'), V from before its step  (Eq. 6)
    L_pi = -E [ w log pi(a|s) ]           w = min(exp(beta A), w_max), A as in L_V           (Eq. 7)
    L_pi =  E [ w |pi(s) - a|^2 ]         for a deterministic actor
    L_pi =  E [ alpha log pi(a~|s) - min_i Q_i(s, a~) ]      a~ ~ pi(.|s), for `actor_objective` "soft_q": SUF's, ours

A `weighting` (segue.core.weighting) multiplies each row's part of L_V and L_Q, not of L_pi. The actor's learning rate
falls by a cosine (App. B). SSAR takes the critics alone: a transition is selected if min_i Q_i(s, a) >= V(s)
(../spec/ssar.md 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model, Scalar
from segue.core.types import Batch, Metrics, Models, Spec
from segue.core.weighting import Weighting, row_weights
from segue.losses import lowest, td_target
from segue.nets.networks import MLP, Critics, dropout_masks
from segue.nets.policies import (
    LOG_STD_MIN,
    DeterministicPolicy,
    GaussianPolicy,
    gaussian_log_density,
    sample_in_box,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """What learning the values changes."""

    critic: Model  # with target
    value: Model
    updates: jax.Array  # [] int32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class IQLState(State):
    """Everything that learning changes."""

    actor: Model
    origin: jax.Array  # [] int32 updates made before this phase
    weighting: Any = ()  # the weighting's state, () without one
    temperature: Any = ()  # log alpha of "soft_q", () otherwise


class NoDraws(NamedTuple):
    """The update is deterministic."""


class Values(Protocol):
    """A state that holds what `learn_values` changes."""

    @property
    def critic(self) -> Model:
        """With target."""

    @property
    def value(self) -> Model:
        """V."""


def learn_values(
    s: Values,
    batch: Batch,
    expectile: float,
    discount: float,
    target_update_rate: float,
    weight: jax.Array | None = None,
) -> tuple[Model, Model, jax.Array, Metrics]:
    """V, then the critics with the old V's next values, then the targets; rows count as `weight` [B] says, if given.

    Returns critic, value and the advantages A [B], from before the step.
    """

    def weighted(errors: jax.Array) -> jax.Array:  # [..., B]
        return errors if weight is None else weight * errors

    next_value = s.value(batch.next_obs)[..., 0]  # [B], before V moves
    q = s.critic.slow(batch.obs, batch.action).min(0)  # [2, B] -> [B]

    def value_loss(value: Model) -> tuple[jax.Array, jax.Array]:
        advantage = q - value(batch.obs)[..., 0]  # [B]
        return weighted(jnp.abs(expectile - (advantage < 0)) * jnp.square(advantage)).mean(), advantage

    value, v_loss, advantage = s.value.descend(value_loss)
    y = td_target(batch, discount, next_value)

    def critic_loss(critic: Model) -> tuple[jax.Array, jax.Array]:
        values = critic(batch.obs, batch.action)  # [2, B]
        return 0.5 * weighted(jnp.square(values - y)).mean(-1).sum(), values[0].mean()

    critic, q_loss, q_mean = s.critic.descend(critic_loss)
    metrics = {"value_loss": v_loss, "critic_loss": q_loss, "critic_1_mean": q_mean}
    return critic.track(target_update_rate), value, advantage, metrics


@dataclass(frozen=True)
class IQL(Algorithm[IQLState]):
    """IQL, offline and online."""

    expectile: float = 0.7  # tau [Kostrikov et al. 2021, App. B; 0.9 on AntMaze]
    inverse_temperature: float = 3.0  # beta [App. B; 10 on AntMaze]
    advantage_weight_max: float = 100.0  # w_max, of the exponential [baselines.md 5]
    actor_objective: Literal["advantage_weighted", "soft_q"] = "advantage_weighted"  # L_pi [Eq. 7; baselines.md 14]
    target_entropy_per_dimension: float = -1.0  # of "soft_q": H = this times A [baselines.md 14]
    deterministic_actor: bool = False  # instead of a Gaussian one [baselines.md 5; presets for Hopper]
    log_std_min: float = LOG_STD_MIN  # of a Gaussian actor's log-std [baselines.md 5; the original's -5 is PEX's too]
    actor_dropout: float = 0.0  # rate after the actor's hidden layers [off in baselines_hparams.yaml]
    actor_schedule: Literal["cosine", "constant"] = "cosine"  # of its learning rate, offline [App. B]
    cosine_updates: int | None = 1_000_000  # until that rate is 0 [App. B]; None: the length of the offline phase
    online_action_noise: float = 0.03  # std on a deterministic actor's executed actions online [baselines.md 5]
    online_action_noise_clip: float = 0.5  # largest such noise [baselines.md 5]
    batch_size: int = 256  # rows per update [App. B]
    discount: float = 0.99  # gamma [App. B]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [App. B]
    policy_update_interval: int = 1  # critic updates per actor update [App. B]
    actor_learning_rate: float = 3e-4  # Adam [App. B]
    critic_learning_rate: float = 3e-4  # Adam [App. B]
    value_learning_rate: float = 3e-4  # Adam [App. B]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of actor, critics and value [App. B]
    weighting: Weighting | None = None

    @property
    def gives(self) -> tuple[str, ...]:  # type: ignore[override]  # what there is depends on the objective
        """With a temperature, where there is one."""
        roles = ("actor", "critic", "value", "updates")
        return (*roles, "temperature") if self.actor_objective == "soft_q" else roles

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]  # what it needs depends on the weighting
        """What the weighting reads."""
        return self.weighting.needs if self.weighting else ()

    @property
    def policy_kind(self) -> str:
        """Of the two forms."""
        return "deterministic" if self.deterministic_actor else "gaussian"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> IQLState:
        """Fresh or continued actor, critics and value."""
        actor_key, critic_key, value_key = jax.random.split(key, 3)
        policy = GaussianPolicy(*spec, self.hidden_sizes, tanh_mean=True, log_std_min=self.log_std_min)
        actor = DeterministicPolicy(*spec, self.hidden_sizes) if self.deterministic_actor else policy
        critics = Critics(*spec, self.hidden_sizes)
        value = MLP((spec.observation_dim, *self.hidden_sizes, 1))
        updates = models.get("updates", jnp.int32(0))
        return IQLState(
            actor=Model.take(models, "actor", actor, Adam(self.actor_learning_rate), actor_key),
            critic=Model.take(models, "critic", critics, Adam(self.critic_learning_rate), critic_key, target=True),
            value=Model.take(models, "value", value, Adam(self.value_learning_rate), value_key),
            updates=updates,
            origin=updates,
            weighting=self.weighting.init(models, spec, key) if self.weighting else (),
            temperature=(
                Model.take(models, "temperature", Scalar(0.0), Adam(self.actor_learning_rate), key)
                if self.actor_objective == "soft_q"
                else ()
            ),
        )

    def draw(self, key: jax.Array, spec: Spec) -> tuple[jax.Array, ...]:
        """Which outputs [B, H] of the actor's hidden layers dropout keeps; of "soft_q" normal noise [B, A]."""
        if self.actor_objective == "soft_q":
            return (jax.random.normal(key, (self.batch_size, spec.action_dim)),)
        return dropout_masks(key, self.actor_dropout, self.batch_size, self.hidden_sizes)

    def actor_rate(self, s: IQLState, like: jax.Array) -> jax.Array | float:
        """The factor of the actor's learning rate in the next update; of the type of `like`.

        The cosine's horizon, where it is not set, is the length of the phases before: gone on with online it rises
        again, as the papers' programs let it (baselines.md 5).
        """
        if self.actor_schedule == "constant":
            return 1.0
        horizon = s.origin if self.cosine_updates is None else self.cosine_updates
        done = s.updates.astype(like.dtype) / horizon
        return 0.5 * (1 + jnp.cos(jnp.pi * done))

    def update(
        self, s: IQLState, batch: Batch, draws: tuple[jax.Array, ...], policy_step: bool
    ) -> tuple[IQLState, Metrics]:
        """Value, critics, targets; on policy steps the actor, by the advantages from before all of these."""
        rate = self.actor_rate(s, batch.reward)
        weights, info = row_weights(self.weighting, s.weighting, batch)
        critic, value, advantage, metrics = learn_values(
            s, batch, self.expectile, self.discount, self.target_update_rate, weights.temporal
        )
        metrics |= info
        s = replace(s, critic=critic, value=value, updates=s.updates + 1)
        if not policy_step:
            return s, metrics
        if self.actor_objective == "soft_q":
            return self._soft_actor_step(s, batch, draws[0], metrics)
        weight = jnp.minimum(jnp.exp(self.inverse_temperature * advantage), self.advantage_weight_max)  # [B]
        dropout = tuple(keep / (1 - self.actor_dropout) for keep in draws)

        def actor_loss(actor: Model) -> tuple[jax.Array, None]:
            if self.deterministic_actor:
                return (weight * jnp.square(actor(batch.obs, *dropout) - batch.action).sum(-1)).mean(), None
            mean, log_std = actor(batch.obs, *dropout)  # [B, A], [A]
            return -(weight * gaussian_log_density(batch.action, mean, log_std).sum(-1)).mean(), None

        actor, loss, _ = s.actor.descend(actor_loss, rate)
        metrics |= {
            "actor_loss": loss,
            "num_clipped_weights": (weight >= self.advantage_weight_max).sum().astype(weight.dtype),
            "actor_learning_rate": jnp.asarray(self.actor_learning_rate * rate, weight.dtype),
        }
        return replace(s, actor=actor), metrics

    def _soft_actor_step(
        self, s: IQLState, batch: Batch, noise: jax.Array, metrics: Metrics
    ) -> tuple[IQLState, Metrics]:
        """The actor up the new critics, then the temperature towards its entropy; `noise` [B, A]."""
        alpha = jnp.exp(s.temperature())  # []

        def actor_loss(actor: Model) -> tuple[jax.Array, jax.Array]:
            mean, log_std = actor(batch.obs)  # [B, A], [A]
            action = sample_in_box(mean, log_std, noise)  # [B, A]
            log_prob = gaussian_log_density(mean + jnp.exp(log_std) * noise, mean, log_std).sum(-1)  # [B]
            return (alpha * log_prob - lowest(s.critic(batch.obs, action))).mean(), log_prob.mean()

        actor, loss, log_prob = s.actor.descend(actor_loss)
        slack = jax.lax.stop_gradient(log_prob + self.target_entropy_per_dimension * noise.shape[-1])
        temperature, _, _ = s.temperature.descend(lambda log_alpha: (-log_alpha() * slack, None))
        metrics = metrics | {"actor_loss": loss, "entropy": -log_prob, "temperature": alpha}
        return replace(s, actor=actor, temperature=temperature), metrics

    def act(self, s: IQLState, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """The mean, or pi(s); while exploring a sample, or pi(s) with clipped noise. In [-1, 1]."""
        mean, log_std = (s.actor(obs), None) if self.deterministic_actor else s.actor(obs)
        noise = jax.random.normal(key, mean.shape) if explore else jnp.zeros_like(mean)
        if log_std is not None:
            return sample_in_box(mean, log_std, noise)
        clip = self.online_action_noise_clip
        return jnp.clip(mean + jnp.clip(self.online_action_noise * noise, -clip, clip), -1, 1)

    def export(self, s: IQLState) -> Models:
        """Actor, critics, value and the count of updates."""
        models = {"actor": s.actor, "critic": s.critic, "value": s.value, "updates": s.updates}
        return models | {"temperature": s.temperature} if self.actor_objective == "soft_q" else models

    def diagnose(self, s: IQLState, batch: Batch) -> Metrics:
        """Q and V on data, how they are weighed, and the width of a Gaussian actor."""
        value, q = s.value(batch.obs)[..., 0], s.critic(batch.obs, batch.action)
        metrics = {"critic_1_probe_mean": q[0].mean(), "value_probe_mean": value.mean()}
        metrics["positive_advantage_fraction"] = (q.min(0) > value).mean()
        if not self.deterministic_actor:
            metrics["policy_std_mean"] = jnp.exp(s.actor(batch.obs)[1]).mean()
        _, info = row_weights(self.weighting, s.weighting, batch)
        return metrics | {f"{name}_probe": value for name, value in info.items()}


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
        """Value, critics, targets."""
        critic, value, _, metrics = learn_values(s, batch, self.expectile, self.discount, self.target_update_rate)
        return State(critic, value, s.updates + 1), metrics

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """There is no policy. Raises NotImplementedError."""
        raise NotImplementedError("IQL's critics alone do not act")

    def export(self, s: State) -> Models:
        """Critics and value, under names that no policy phase continues."""
        return {"selector_critic": s.critic, "selector_value": s.value}


def advantage_selected(critic: Model, value: Model, obs: jax.Array, action: jax.Array) -> jax.Array:
    """min_i Q_i(s, a) >= V(s), with the online critics; ties are members. [N, S], [N, A] -> bool [N]."""
    return critic(obs, action).min(0) >= value(obs)[..., 0]
