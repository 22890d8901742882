"""XQL, extreme Q-learning (Garg et al. 2023, arXiv:2301.02328), as PROTO (arXiv:2305.15669) learns offline by it.

    z    = min((min_i Qbar_i(s, a) - V(s)) / T, z_max)       m = sg max(max z, -1), over the batch's rows
    L_V  = E [ exp(z - m) - z exp(-m) - exp(-m) ]            Gumbel regression, divided by exp(m)
    L_pi = -E [ w log pi(a|s) ]                              w = min(exp(A / T), w_max), A = min_i Qbar_i(s, a) - V(s)
    L_Q  = 1/2 sum_i E (Q_i(s, a) - y)^2                     y = r + gamma (1 - d) V(s')
    L_b  = -E log b(a|s)                                     the behaviour policy, if it is wanted

V steps first; A and y are the new V's (../spec/baselines.md 12).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, Models, Spec
from segue.losses import td_target
from segue.nets.networks import MLP, Critics
from segue.nets.policies import GaussianPolicy, gaussian_log_density, sample_in_box

NORM_EPSILON = 1e-6  # of the layer norms [golden record]
LOG_STD_MIN = -5.0  # of the policy [baselines.md 12]
SMALLEST_SHIFT = -1.0  # of the exponential [baselines.md 12]: values far above all of Q must not blow the loss up


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    actor: Model
    critic: Model  # with target
    value: Model
    behaviour: Any  # Model, None where it is not learned
    updates: jax.Array  # [] int32


class NoDraws(NamedTuple):
    """The update is deterministic."""


def gumbel_loss(excess: jax.Array, largest: float) -> jax.Array:
    """L_V [] of z [B] before its clip at `largest`."""
    z = jnp.minimum(excess, largest)
    shift = jax.lax.stop_gradient(jnp.maximum(z.max(), SMALLEST_SHIFT))
    return (jnp.exp(z - shift) - z * jnp.exp(-shift) - jnp.exp(-shift)).mean()


@dataclass(frozen=True)
class XQL(Algorithm[State]):
    """XQL, offline."""

    value_temperature: float = 2.0  # T [baselines.md 12; 0.5 on AntMaze]
    gumbel_clip: float = 7.0  # z_max [baselines.md 12]
    advantage_weight_max: float = 100.0  # w_max, of the exponential [baselines.md 12]
    clone_behaviour: bool = False  # learn b as well, which nothing goes on with [golden record; ours: off]
    batch_size: int = 256  # rows per update [baselines.md 12]
    discount: float = 0.99  # gamma [baselines.md 12]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [baselines.md 12]
    policy_update_interval: int = 1  # critic updates per actor update [golden record]
    actor_learning_rate: float = 3e-4  # Adam [baselines.md 12]
    critic_learning_rate: float = 3e-4  # Adam [baselines.md 12]
    value_learning_rate: float = 3e-4  # Adam [baselines.md 12]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of every network [baselines.md 12]
    critic_layer_norm: bool = True  # LayerNorm in critics and V [baselines.md 12; off on HalfCheetah]

    policy_kind = "gaussian"

    @property
    def gives(self) -> tuple[str, ...]:  # type: ignore[override]  # it may learn the behaviour policy
        """What `export` returns."""
        return ("actor", "critic", "value", "updates") + (("behaviour_policy",) if self.clone_behaviour else ())

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Fresh or continued networks."""
        actor_key, critic_key, value_key, behaviour_key = jax.random.split(key, 4)
        policy = GaussianPolicy(*spec, self.hidden_sizes, tanh_mean=True, log_std_min=LOG_STD_MIN)
        critics = Critics(*spec, self.hidden_sizes, self.critic_layer_norm, norm_epsilon=NORM_EPSILON)
        sizes = (spec.observation_dim, *self.hidden_sizes, 1)
        value = MLP(sizes, self.critic_layer_norm, norm_epsilon=NORM_EPSILON)
        actor_adam, behaviour = Adam(self.actor_learning_rate), None
        if self.clone_behaviour:
            behaviour = Model.take(models, "behaviour_policy", policy, actor_adam, behaviour_key)
        return State(
            actor=Model.take(models, "actor", policy, actor_adam, actor_key),
            critic=Model.take(models, "critic", critics, Adam(self.critic_learning_rate), critic_key, target=True),
            value=Model.take(models, "value", value, Adam(self.value_learning_rate), value_key),
            behaviour=behaviour,
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> NoDraws:
        """Nothing."""
        return NoDraws()

    def update(self, s: State, batch: Batch, draws: NoDraws, policy_step: bool) -> tuple[State, Metrics]:
        """V, then (on policy steps) the policies by the new V, then the critics towards it, then their targets."""
        q = s.critic.slow(batch.obs, batch.action).min(0)  # [2, B] -> [B]

        def value_loss(value: Model) -> tuple[jax.Array, jax.Array]:
            v = value(batch.obs)[..., 0]  # [B]
            return gumbel_loss((q - v) / self.value_temperature, self.gumbel_clip), v.mean()

        value, loss, v_mean = s.value.descend(value_loss)
        metrics = {"value_loss": loss, "value_mean": v_mean}
        actor, behaviour = s.actor, s.behaviour
        if policy_step:
            advantage = q - value(batch.obs)[..., 0]  # [B]
            weight = jnp.minimum(jnp.exp(advantage / self.value_temperature), self.advantage_weight_max)  # [B]
            actor, loss = likelihood_step(s.actor, batch, weight)
            metrics |= {"actor_loss": loss, "advantage_mean": advantage.mean()}
            metrics["num_clipped_weights"] = (weight >= self.advantage_weight_max).sum().astype(weight.dtype)
            if behaviour is not None:
                behaviour, metrics["behaviour_loss"] = likelihood_step(behaviour, batch, jnp.ones_like(weight))
        y = td_target(batch, self.discount, value(batch.next_obs)[..., 0])  # [B]

        def critic_loss(critic: Model) -> tuple[jax.Array, jax.Array]:
            values = critic(batch.obs, batch.action)  # [2, B]
            return 0.5 * jnp.square(values - y).mean(-1).sum(), values[0].mean()

        critic, loss, q_mean = s.critic.descend(critic_loss)
        metrics |= {"critic_loss": loss, "critic_1_mean": q_mean}
        return State(actor, critic.track(self.target_update_rate), value, behaviour, s.updates + 1), metrics

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """The mean, or a sample while exploring; in [-1, 1]."""
        mean, log_std = s.actor(obs)
        return sample_in_box(mean, log_std, jax.random.normal(key, mean.shape) if explore else jnp.zeros_like(mean))

    def export(self, s: State) -> Models:
        """Policies, critics, value and the count of updates."""
        own = {"actor": s.actor, "critic": s.critic, "value": s.value, "updates": s.updates}
        return own if s.behaviour is None else own | {"behaviour_policy": s.behaviour}

    def diagnose(self, s: State, batch: Batch) -> Metrics:
        """Q and V on data, how they are weighed, and the width of the policy."""
        value, q = s.value(batch.obs)[..., 0], s.critic(batch.obs, batch.action)
        metrics = {"critic_1_probe_mean": q[0].mean(), "value_probe_mean": value.mean()}
        metrics["positive_advantage_fraction"] = (q.min(0) > value).mean()
        return metrics | {"policy_std_mean": jnp.exp(s.actor(batch.obs)[1]).mean()}


def likelihood_step(policy: Model, batch: Batch, weight: jax.Array) -> tuple[Model, jax.Array]:
    """One step up the log-density of the data's actions, weighed by `weight` [B]; the policy and the loss."""

    def loss(policy: Model) -> tuple[jax.Array, None]:
        mean, log_std = policy(batch.obs)  # [B, A], [A]
        return -(weight * gaussian_log_density(batch.action, mean, log_std).sum(-1)).mean(), None

    policy, value, _ = policy.descend(loss)
    return policy, value
