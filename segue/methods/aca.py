"""Actor-critic alignment, online (Yu and Zhang, ICML 2023; ../spec/baselines.md 11).

At the switch pi_0 is a frozen copy of the policy, and new critics take its preferences and the baseline Z (sac_ml.py):

    Q_i(s, a) = R_i(s, a) + omega clip_0(log pi_0(a|s)),        R_i(s, .) = Z_i(s) at first
    clip_0(x) = log( exp x + exp c(s) )       c(s) = min of log pi_0 at the points mean + beta std, mean - beta std

so that an actor that maximises Q finds pi_0. From there on soft actor-critic, whatever omega is at an update:

    y      = r + gamma (1 - d) [ min_i Rbar_i(s', a') + omega clip_0(log pi_0(a'|s')) - alpha log pi(a'|s') ]
    L_Q    = sum_i E (Q_i(s, a) - y)^2, for R_i alone                                       a' ~ pi(.|s')
    L_pi   = E [ alpha log pi(a~|s) - min_i Q_i(s, a~) ]                                     a~ ~ pi(.|s)
    L_alpha = -E [ log alpha (log pi(a~|s) + H) ]
    omega  = max( floor, omega_0 (1 - n / N) )      after n updates since the switch

In this order: temperature, critics, actor, targets, omega, each from what the one before left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model, Scalar
from segue.core.types import Batch, Metrics, Models, PyTree, Spec
from segue.losses import lowest, td_target
from segue.methods.sac_ml import temperature_step
from segue.nets.gaussian import (
    Gaussian,
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
    """Everything that learning changes, and pi_0, which it does not."""

    actor: Model
    critic: Model  # R, with target
    temperature: Model  # log alpha
    aligned_policy: Model  # pi_0
    aligned_updates: jax.Array  # [] int32 n, since the switch
    updates: jax.Array  # [] int32


class Draws(NamedTuple):
    """Standard normal numbers of one update."""

    temperature_noise: jax.Array  # [B, A]
    next_policy_noise: jax.Array  # [B, A]
    policy_noise: jax.Array  # [B, A]


def clipped_preference(point: jax.Array, gaussian: Gaussian, deviations: float, squashed: bool) -> jax.Array:
    """clip_0(log pi_0) [...] at `point` [..., A], where pi_0 is `gaussian`: softly bounded below."""
    mean, log_std = gaussian

    def at(sign: int) -> jax.Array:
        return point_log_density(mean + sign * deviations * jnp.exp(log_std), gaussian, squashed)

    return jnp.logaddexp(point_log_density(point, gaussian, squashed), jnp.minimum(at(1), at(-1)))


def reconstructed(baseline: Model, action_dim: int, optimizer: Adam) -> Model:
    """Critics that are the baseline at every action: the weights of the action's inputs are zero. With targets."""

    def widened(params: PyTree) -> PyTree:
        first = params["layers_0"]
        of_action = jnp.zeros((action_dim, first["kernel"].shape[1]), first["kernel"].dtype)
        return params | {"layers_0": first | {"kernel": jnp.concatenate([first["kernel"], of_action])}}

    params = tuple(widened(p) for p in baseline.params)
    net = replace(baseline.net, action_dim=action_dim)
    return Model(params, None, optimizer.transform().init(params), net, optimizer).settled()


@dataclass(frozen=True)
class AlignedCritics:
    """Q = R + omega clip_0(log pi_0) as one net, for a method that goes on from this one.

    Parameters: {"residual": R's, "policy": pi_0's, "omega": []}.
    """

    residual: Critics
    policy: Any  # pi_0's network
    deviations: float

    def preference(self, params: PyTree, obs: jax.Array, action: jax.Array) -> jax.Array:
        """omega clip_0(log pi_0): [..., S], [..., A] -> [...]."""
        squashed, gaussian = is_squashed(self.policy), self.policy.apply(params["policy"], obs)
        return params["omega"] * clipped_preference(point_of(action, squashed), gaussian, self.deviations, squashed)

    def apply(self, params: PyTree, obs: jax.Array, action: jax.Array) -> jax.Array:
        """[..., S], [..., A] -> [critics, ...]."""
        return self.residual.apply(params["residual"], obs, action) + self.preference(params, obs, action)

    def of_several(self, params: PyTree, obs: jax.Array, actions: jax.Array) -> jax.Array:
        """K actions at each observation: [B, S], [B, K, A] -> [critics, B, K]."""
        values = self.residual.of_several(params["residual"], obs, actions)
        return values + self.preference(params, obs[:, None], actions)

    def first(self, params: PyTree, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Q_1 alone: [..., S], [..., A] -> [...]."""
        return self.residual.first(params["residual"], obs, action) + self.preference(params, obs, action)


@dataclass(frozen=True)
class ACA(Algorithm[State]):
    """Soft actor-critic from critics that were made to agree with the policy: it continues that and its baseline."""

    alignment_weight: float = 1.0  # omega_0 [baselines_hparams.yaml, aca: 1 everywhere]
    alignment_fall_updates: int = 40_000  # N, of its fall to 0 [aca: 40,000; 10,000 random, 200,000 AntMaze]
    alignment_weight_floor: float = 0.5  # where it stops [aca: 0.5; 1 medium-expert and expert, 0 random]
    density_floor_deviations: float = 7.0  # beta [aca: 7; 15 medium-expert and expert, 3 AntMaze]
    actor_gradient_clip: float | None = 0.25  # of its L2 norm [baselines.md 11]
    squashed_policy: bool = True  # a tanh after the Gaussian; else it is clipped [baselines.md 11: off on AntMaze]
    batch_size: int = 256  # rows per update [baselines_hparams.yaml, aca]
    discount: float = 0.99  # gamma [baselines_hparams.yaml, aca]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [baselines_hparams.yaml, aca]
    actor_learning_rate: float = 3e-4  # Adam [baselines_hparams.yaml, aca]
    critic_learning_rate: float = 3e-4  # Adam [baselines_hparams.yaml, aca]
    temperature_learning_rate: float = 3e-4  # Adam on log alpha [baselines_hparams.yaml, aca]
    initial_temperature: float = 1.0  # alpha from the switch on [baselines.md 11: its log is reset to 0]
    target_entropy_per_dimension: float = -1.0  # H = this times A [baselines_hparams.yaml, aca; -0.5 on AntMaze]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of actor and baseline, where none are continued [aca]
    policy_update_interval: int = 1  # critic updates per actor update [baselines.md 11: one]

    needs = ("actor", "baseline")
    gives = ("actor", "critic", "temperature", "residual_critic", "aligned_policy", "aligned_updates", "updates")

    @property
    def policy_kind(self) -> str:
        """Which of the two Gaussians."""
        return "tanh_gaussian" if self.squashed_policy else "gaussian"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """The switch, or, where an earlier phase of this method has made it, what that one left.

        The switch takes the policy and the baseline; moments and temperature begin anew [baselines.md 11].
        """
        actor_key, baseline_key = jax.random.split(key)
        form = TanhGaussianPolicy if self.squashed_policy else SigmoidGaussianPolicy
        switched = models.get("aligned_policy") is not None
        actor = Model.take(
            models, "actor", form(*spec, self.hidden_sizes), Adam(self.actor_learning_rate, self.actor_gradient_clip),
            actor_key, keep_moments=switched,
        )  # fmt: skip
        critic_adam, temperature_adam = Adam(self.critic_learning_rate), Adam(self.temperature_learning_rate)
        if switched:
            critic = models["residual_critic"].continued(critic_adam)
            temperature = models["temperature"].continued(temperature_adam)
        else:
            stateful = Critics(spec.observation_dim, 0, self.hidden_sizes)  # as sac_ml.py has it
            baseline = Model.take(models, "baseline", stateful, critic_adam, baseline_key)
            critic = reconstructed(baseline, spec.action_dim, critic_adam)
            temperature = Model.create(Scalar(math.log(self.initial_temperature)), temperature_adam, key)
        return State(
            actor=actor,
            critic=critic,
            temperature=temperature,
            aligned_policy=models["aligned_policy"] if switched else actor.frozen(),
            aligned_updates=models["aligned_updates"] if switched else jnp.int32(0),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> Draws:
        """The noise of every policy sample."""
        return Draws(*jax.random.normal(key, (3, self.batch_size, spec.action_dim)))

    def omega(self, s: State) -> jax.Array:
        """[] the weight of pi_0's preferences in the next update."""
        left = 1 - s.aligned_updates.astype(float) / self.alignment_fall_updates
        return jnp.maximum(self.alignment_weight_floor, self.alignment_weight * left)

    def update(self, s: State, batch: Batch, draws: Draws, policy_step: bool) -> tuple[State, Metrics]:
        """Critics; on policy steps the temperature before them and the actor after them."""
        omega, squashed = self.omega(s), is_squashed(s.actor.net)
        metrics: Metrics = {"alignment_weight": omega}
        if policy_step:
            target_entropy = self.target_entropy_per_dimension * batch.action.shape[-1]
            temperature, info = temperature_step(
                s.temperature, s.actor, batch.obs, draws.temperature_noise, target_entropy
            )
            s, metrics = replace(s, temperature=temperature), metrics | info
        alpha = jnp.exp(s.temperature())  # []
        here, following = s.aligned_policy(batch.obs), s.aligned_policy(batch.next_obs)  # mean and log-std of pi_0

        def preference(point: jax.Array, gaussian: Gaussian) -> jax.Array:
            """[B]."""
            return omega * clipped_preference(point, gaussian, self.density_floor_deviations, squashed)

        point, action, log_prob = sample_point(s.actor(batch.next_obs), draws.next_policy_noise, squashed)
        next_q = s.critic.slow(batch.next_obs, action).min(0) + preference(point, following)  # [B]
        y = td_target(batch, self.discount, next_q - alpha * log_prob)  # [B]
        data_preference = preference(point_of(batch.action, squashed), here)  # [B]

        def critic_loss(critic: Model) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            residual = critic(batch.obs, batch.action)  # [2, B]
            q = residual + data_preference
            return jnp.square(q - y).mean(-1).sum(), (q[0].mean(), residual[0].mean())

        critic, loss, (q_mean, residual_mean) = s.critic.descend(critic_loss)
        metrics |= {"critic_loss": loss, "critic_1_mean": q_mean, "residual_1_mean": residual_mean}
        metrics |= {"preference_mean": data_preference.mean(), "temperature": alpha}
        after = replace(
            s,
            critic=critic.track(self.target_update_rate),
            aligned_updates=s.aligned_updates + 1,
            updates=s.updates + 1,
        )
        if not policy_step:
            return after, metrics

        def actor_loss(actor: Model) -> tuple[jax.Array, None]:
            point, action, log_prob = sample_point(actor(batch.obs), draws.policy_noise, squashed)
            q = lowest(critic(batch.obs, action)) + preference(point, here)  # [B]
            return (alpha * log_prob - q).mean(), None

        actor, loss, _ = s.actor.descend(actor_loss)
        return replace(after, actor=actor), metrics | {"actor_loss": loss}

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """A sample while exploring, the action of the mean otherwise."""
        return act_gaussian(s.actor(obs), key, explore, is_squashed(s.actor.net))

    def aligned_critic(self, s: State) -> Model:
        """Q and its target with the omega of the next update, as a model without moments."""
        net = AlignedCritics(s.critic.net, s.aligned_policy.net, self.density_floor_deviations)

        def whole(residual: PyTree) -> PyTree:
            aligned = {"policy": s.aligned_policy.params, "omega": self.omega(s)}
            return jax.tree.map(jnp.copy, {"residual": residual} | aligned)

        return Model(whole(s.critic.params), whole(s.critic.target), (), net, s.critic.optimizer)

    def export(self, s: State) -> Models:
        """Actor, temperature, counts; Q for other methods, and R with pi_0 for this one."""
        own = ("actor", "temperature", "aligned_policy", "aligned_updates", "updates")
        networks = {"critic": self.aligned_critic(s), "residual_critic": s.critic}
        return {name: getattr(s, name) for name in own} | networks

    def diagnose(self, s: State, batch: Batch) -> Metrics:
        """Q and R on data."""
        q, residual = self.aligned_critic(s)(batch.obs, batch.action), s.critic(batch.obs, batch.action)
        return {"critic_1_probe_mean": q[0].mean(), "residual_1_probe_mean": residual[0].mean()}
