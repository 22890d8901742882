"""SAC+ML, the offline phase of actor-critic alignment (Yu and Zhang 2023; ../spec/baselines.md 11).

    y      = r + gamma (1 - d) [ min_i Qbar_i(s', a') - alpha log pi(a'|s') ]                     a' ~ pi(.|s')
    L_Q    = sum_i E (Q_i(s, a) - y)^2
    L_pi   = w E [ alpha log pi(a~|s) - min_i Q_i(s, a~) ] - E log pi(a|s)                        a~ ~ pi(.|s)
    w      = 30 / E |min_i Q_i(s, a~)|, no gradient
    L_alpha = -E [ log alpha (log pi(a~|s) + H) ]

Beside it a baseline Z of states, for which Z(s) + log pi(a|s) is a value of actions:

    y_Z    = r + gamma (1 - d) [ log pi(a''|s') + min_i Z_i(s') - alpha log pi(a''|s') ]          a'' ~ pi(.|s')
    L_Z    = sum_i E (Z_i(s) + log pi(a|s) - y_Z)^2

In this order: temperature, critics, baseline, actor, targets, each from what the one before left. Z has no target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model, Scalar
from segue.core.types import Batch, Metrics, Models, Spec
from segue.losses import lowest, td_target
from segue.nets.gaussian import (
    SigmoidGaussianPolicy,
    act_gaussian,
    is_squashed,
    point_log_density,
    point_of,
    sample_point,
)
from segue.nets.networks import Critics
from segue.nets.policies import TanhGaussianPolicy


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    actor: Model
    critic: Model  # with target
    baseline: Model
    temperature: Model  # log alpha
    updates: jax.Array  # [] int32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BaselineState:
    """Of the baseline alone."""

    actor: Model  # frozen
    baseline: Model
    updates: jax.Array  # [] int32


class Draws(NamedTuple):
    """Standard normal numbers of one update."""

    temperature_noise: jax.Array  # [B, A]
    next_policy_noise: jax.Array  # [B, A]
    baseline_next_policy_noise: jax.Array  # [B, A]
    policy_noise: jax.Array  # [B, A]


def sampled(policy: Model, obs: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Actions [B, A] and their log-densities [B]."""
    _, action, log_prob = sample_point(policy(obs), noise, is_squashed(policy.net))
    return action, log_prob


def log_density(policy: Model, obs: jax.Array, action: jax.Array) -> jax.Array:
    """[B] of actions that were given."""
    squashed = is_squashed(policy.net)
    return point_log_density(point_of(action, squashed), policy(obs), squashed)


def temperature_step(
    temperature: Model, policy: Model, obs: jax.Array, noise: jax.Array, target_entropy: float
) -> tuple[Model, Metrics]:
    """One step of log alpha, by actions of its own. H is negative: at rest log pi is -H."""
    log_prob = sampled(policy, obs, noise)[1].mean()
    slack = log_prob + target_entropy
    temperature, loss, _ = temperature.descend(lambda log_alpha: (-log_alpha() * slack, None))
    return temperature, {"temperature_loss": loss, "entropy": -log_prob}


def baseline_net(spec: Spec, hidden_sizes: tuple[int, ...]) -> Critics:
    """Two functions of the state: critics of actions without a dimension."""
    return Critics(spec.observation_dim, 0, hidden_sizes)


def values(baseline: Model, obs: jax.Array) -> jax.Array:
    """Z: [B, S] -> [2, B]."""
    z: jax.Array = baseline(obs, obs[..., :0])
    return z


def baseline_step(
    baseline: Model, policy: Model, batch: Batch, noise: jax.Array, alpha: jax.Array | float, discount: float
) -> tuple[Model, Metrics]:
    """One step of Z, for the policy as it is."""
    _, next_log_prob = sampled(policy, batch.next_obs, noise)  # [B]
    y = td_target(batch, discount, next_log_prob + values(baseline, batch.next_obs).min(0) - alpha * next_log_prob)
    data_log_prob = log_density(policy, batch.obs, batch.action)  # [B]

    def loss(baseline: Model) -> tuple[jax.Array, jax.Array]:
        z = values(baseline, batch.obs)  # [2, B]
        return jnp.square(z + data_log_prob - y).mean(-1).sum(), z[0].mean()

    baseline, value, mean = baseline.descend(loss)
    return baseline, {"baseline_loss": value, "baseline_1_mean": mean}


@dataclass(frozen=True)
class SACML(Algorithm[State]):
    """SAC on a dataset, held at it by the likelihood of its actions, with the baseline that ACA's critics begin as."""

    value_weight: float = 30.0  # of the value in the actor's loss, over the mean |Q| [baselines.md 11]
    squashed_policy: bool = True  # a tanh after the Gaussian; else it is clipped [baselines.md 11: off on AntMaze]
    batch_size: int = 256  # rows per update [baselines_hparams.yaml, aca]
    discount: float = 0.99  # gamma [baselines_hparams.yaml, aca]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [baselines_hparams.yaml, aca]
    actor_learning_rate: float = 3e-4  # Adam [baselines_hparams.yaml, aca]
    critic_learning_rate: float = 3e-4  # Adam [baselines_hparams.yaml, aca]
    baseline_learning_rate: float = 3e-4  # Adam [baselines_hparams.yaml, aca]
    temperature_learning_rate: float = 3e-4  # Adam on log alpha [baselines_hparams.yaml, aca]
    initial_temperature: float = 1.0  # alpha at the start [ours: as at the switch, baselines.md 11]
    target_entropy_per_dimension: float = -1.0  # H = this times A [baselines_hparams.yaml, aca; -0.5 on AntMaze]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of actor, critics and baseline [baselines_hparams.yaml, aca]
    policy_update_interval: int = 1  # critic updates per actor update [baselines.md 11: one]

    gives = ("actor", "critic", "baseline", "temperature", "updates")

    @property
    def policy_kind(self) -> str:
        """Which of the two Gaussians."""
        return "tanh_gaussian" if self.squashed_policy else "gaussian"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Fresh or continued networks."""
        actor_key, critic_key, baseline_key = jax.random.split(key, 3)
        form = TanhGaussianPolicy if self.squashed_policy else SigmoidGaussianPolicy
        policy, critics = form(*spec, self.hidden_sizes), Critics(*spec, self.hidden_sizes)
        baseline = baseline_net(spec, self.hidden_sizes)
        log_alpha = Scalar(math.log(self.initial_temperature))
        actor_adam, critic_adam = Adam(self.actor_learning_rate), Adam(self.critic_learning_rate)
        return State(
            actor=Model.take(models, "actor", policy, actor_adam, actor_key),
            critic=Model.take(models, "critic", critics, critic_adam, critic_key, target=True),
            baseline=Model.take(models, "baseline", baseline, Adam(self.baseline_learning_rate), baseline_key),
            temperature=Model.take(models, "temperature", log_alpha, Adam(self.temperature_learning_rate), key),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> Draws:
        """The noise of every policy sample."""
        return Draws(*jax.random.normal(key, (4, self.batch_size, spec.action_dim)))

    def update(self, s: State, batch: Batch, draws: Draws, policy_step: bool) -> tuple[State, Metrics]:
        """Critics and baseline; on policy steps the temperature before them and the actor after them."""
        metrics: Metrics = {}
        if policy_step:
            target_entropy = self.target_entropy_per_dimension * batch.action.shape[-1]
            temperature, metrics = temperature_step(
                s.temperature, s.actor, batch.obs, draws.temperature_noise, target_entropy
            )
            s = replace(s, temperature=temperature)
        alpha = jnp.exp(s.temperature())  # []
        next_action, next_log_prob = sampled(s.actor, batch.next_obs, draws.next_policy_noise)  # [B, A], [B]
        next_value = s.critic.slow(batch.next_obs, next_action).min(0) - alpha * next_log_prob  # [B]
        y = td_target(batch, self.discount, next_value)  # [B]

        def critic_loss(critic: Model) -> tuple[jax.Array, jax.Array]:
            q = critic(batch.obs, batch.action)  # [2, B]
            return jnp.square(q - y).mean(-1).sum(), q[0].mean()

        critic, loss, q_mean = s.critic.descend(critic_loss)
        metrics |= {"critic_loss": loss, "critic_1_mean": q_mean, "temperature": alpha}
        noise = draws.baseline_next_policy_noise
        baseline, info = baseline_step(s.baseline, s.actor, batch, noise, alpha, self.discount)
        metrics |= info
        after = replace(s, baseline=baseline, critic=critic.track(self.target_update_rate), updates=s.updates + 1)
        if not policy_step:
            return after, metrics

        def actor_loss(actor: Model) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            action, log_prob = sampled(actor, batch.obs, draws.policy_noise)  # [B, A], [B]
            q = lowest(critic(batch.obs, action))  # [B]
            weight = jax.lax.stop_gradient(self.value_weight / jnp.abs(q).mean())  # [] w
            likelihood = log_density(actor, batch.obs, batch.action).mean()
            return weight * (alpha * log_prob - q).mean() - likelihood, (weight, -likelihood)

        actor, loss, (weight, unlikelihood) = s.actor.descend(actor_loss)
        metrics |= {"actor_loss": loss, "value_weight": weight, "negative_log_likelihood": unlikelihood}
        return replace(after, actor=actor), metrics

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """A sample while exploring, the action of the mean otherwise."""
        return act_gaussian(s.actor(obs), key, explore, is_squashed(s.actor.net))

    def export(self, s: State) -> Models:
        """Networks, temperature and the count of updates."""
        return {name: getattr(s, name) for name in self.gives}

    def diagnose(self, s: State, batch: Batch) -> Metrics:
        """Q and Z on data."""
        q, z = s.critic(batch.obs, batch.action), values(s.baseline, batch.obs)
        return {"critic_1_probe_mean": q[0].mean(), "baseline_1_probe_mean": z[0].mean()}


@dataclass(frozen=True)
class StateBaseline(Algorithm[BaselineState]):
    """The baseline alone, of a policy that another method made and that stands still.

    It exports no count of updates: it is nothing that a policy's phase continues.
    """

    batch_size: int = 256  # rows per update [baselines_hparams.yaml, aca]
    discount: float = 0.99  # gamma [baselines_hparams.yaml, aca]
    learning_rate: float = 3e-4  # Adam [baselines_hparams.yaml, aca]
    temperature: float = 1.0  # alpha [ours: that with which the online phase begins, for which Z is then right]
    hidden_sizes: tuple[int, ...] = (256, 256)  # [baselines_hparams.yaml, aca]
    policy_update_interval = 1  # no policy learns: every update counts as a round

    needs = ("actor",)
    gives = ("baseline", "aligned_policy")

    def init(self, models: Models, spec: Spec, key: jax.Array) -> BaselineState:
        """The policy as it is; a fresh baseline, whatever baseline there was of an earlier policy."""
        actor_key, baseline_key = jax.random.split(key)
        policy = TanhGaussianPolicy(*spec, self.hidden_sizes)  # where there is none to go on with
        actor = Model.take(models, "actor", policy, Adam(0.0), actor_key).frozen()
        net = baseline_net(spec, self.hidden_sizes)
        return BaselineState(actor, Model.create(net, Adam(self.learning_rate), baseline_key), jnp.int32(0))

    def draw(self, key: jax.Array, spec: Spec) -> jax.Array:
        """Standard normal noise of the next actions [B, A]."""
        return jax.random.normal(key, (self.batch_size, spec.action_dim))

    def update(
        self, s: BaselineState, batch: Batch, draws: jax.Array, policy_step: bool
    ) -> tuple[BaselineState, Metrics]:
        """One step of Z."""
        baseline, metrics = baseline_step(s.baseline, s.actor, batch, draws, self.temperature, self.discount)
        return BaselineState(s.actor, baseline, s.updates + 1), metrics

    def act(self, s: BaselineState, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """It makes no policy. Raises NotImplementedError."""
        raise NotImplementedError("a baseline alone does not act")

    def export(self, s: BaselineState) -> Models:
        """The baseline; critics that were aligned with an earlier policy are not to be gone on with."""
        return {"baseline": s.baseline, "aligned_policy": None}
