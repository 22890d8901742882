"""OCR-CFT for SAC, "O2SAC" (NeurIPS 2024, arXiv:2412.18855; ../spec/ocr_cft.md 2.2): three phases, three algorithms.

SACReevaluation: fresh critics of the frozen offline policy pi_off, optimistic where the offline ones are not (Eq. 3)

    y     = r + gamma (1 - d) [ min_j Qbar_j(s', a') - alpha_0 log pi_off(a'|s') ]      a' ~ pi_off(.|s')
    L_Q   = sum_j E (Q_j(s, a) - y)^2

SACAlignment: no action may be worth more than pi_off's own preference for it permits (Eqs 12, 13); Qbar stands still

    v     = min_j Qbar_j(s, a_dot)                     a_dot = tanh(mean of pi_off), the anchor
    y     = min( v - alpha_0 (log pi_off(a_dot|s) - log pi_off(a|s)), min_j Qbar_j(s, a) )      a ~ pi(.|s)
    L_Q   = sum_j E (Q_j(s, a) - y)^2 + sum_j E (Q_j(s, a_dot) - v)^2
    L_pi  = E [ alpha_0 log pi(a|s) - min_j Q_j(s, a) ]

ConstrainedSAC: soft actor-critic near a reference policy; lambda and its threshold: core/constraint.py (Eqs 36 to 39)

    f     = log pi(a|s) - max(log pi_ref(a|s), -50)    a ~ pi(.|s); in expectation the KL divergence
    L_pi  = E [ alpha log pi(a|s) - min_j Q_j(s, a) + lambda f ]
    y     = r + gamma (1 - d) [ min_j Qbar_j(s', a') - alpha log pi(a'|s') - lambda f' ]      a' ~ pi(.|s')
    L_alpha = -E [ log alpha (log pi(a|s) + H) ]

Every loss uses the parameters from before the update. (Dn): ../spec/ocr_cft.md 4a.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.constraint import Constraint, ConstraintState
from segue.core.model import Adam, Model, Scalar
from segue.core.reference import NO_SCORE, Reference, chosen, starting_reference
from segue.core.types import Batch, Metrics, Models, Spec
from segue.losses import lowest, td_target
from segue.nets.networks import Critics, Orthogonal, XavierUniform
from segue.nets.policies import (
    DATA_ACTION_LIMIT,
    TanhGaussianPolicy,
    act_tanh_gaussian,
    data_log_density,
    sample_tanh_gaussian,
    tanh_gaussian_log_density,
)

REFERENCE_FLOOR = -50.0  # of log pi_ref in fine-tuning, where one far action would rule the loss [ocr_cft.md 2.2 d]
AT_REST = Adam(0.0)  # of what a phase does not train

S = TypeVar("S")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Of re-evaluation and alignment."""

    actor: Model
    critic: Model  # with target
    temperature: Model  # log alpha_0, frozen
    reference: Reference  # pi_off
    updates: jax.Array  # [] int32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConstrainedState:
    """Of constrained fine-tuning."""

    actor: Model
    critic: Model  # with target
    temperature: Model  # log alpha
    constraint: ConstraintState
    updates: jax.Array  # [] int32


class AlignmentDraws(NamedTuple):
    """Standard normal noises."""

    alignment_noise: jax.Array  # [B, A] of the actions whose values are aligned
    policy_noise: jax.Array  # [B, A]


class ConstrainedDraws(NamedTuple):
    """Standard normal noises."""

    policy_noise: jax.Array  # [B, A]
    next_policy_noise: jax.Array  # [B, A]


def fresh_policy(spec: Spec, hidden_sizes: tuple[int, ...]) -> TanhGaussianPolicy:
    """The policy of CQL, as which every pi_off of this method is formed [ocr_cft.md 2.1]."""
    return TanhGaussianPolicy(*spec, hidden_sizes, trained_scale=True, last_initializer=XavierUniform(1e-2))


def fresh_critics(spec: Spec, hidden_sizes: tuple[int, ...], layer_norm: bool, count: int) -> Critics:
    """All layers orthogonal [ocr_cft.md 2.1]."""
    return Critics(*spec, hidden_sizes, layer_norm, count, initializer=Orthogonal(1.0))


def critic_step(critic: Model, batch: Batch, y: jax.Array) -> tuple[Model, Metrics]:
    """One step of every critic towards `y` [B] at the batch's actions; the target is as it was."""

    def loss(critic: Model) -> tuple[jax.Array, jax.Array]:
        q = critic(batch.obs, batch.action)  # [critics, B]
        return jnp.square(q - y).mean(-1).sum(), q[0].mean()

    critic, value, q_mean = critic.descend(loss)
    return critic, {"critic_loss": value, "critic_1_mean": q_mean, "target_value_mean": y.mean()}


def best_action(policy: Model, obs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """a_dot [B, A], and the policy's mean and log-std there [B, A]. Not the mode of the squashed density (D24)."""
    mean, log_std = policy(obs)
    return jnp.clip(jnp.tanh(mean), -DATA_ACTION_LIMIT, DATA_ACTION_LIMIT), mean, log_std


class SoftActorCritic(Algorithm[S]):
    """What the three phases have in common: their states hold a squashed-Gaussian actor and critics."""

    policy_kind = "tanh_gaussian"

    def act(self, s: Any, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """A sample while exploring, tanh(mean) otherwise."""
        mean, log_std = s.actor(obs)
        return act_tanh_gaussian(mean, log_std, key, explore)

    def diagnose(self, s: Any, batch: Batch) -> Metrics:
        """Q on data."""
        return {"critic_1_probe_mean": s.critic(batch.obs, batch.action)[0].mean()}


@dataclass(frozen=True)
class SACReevaluation(SoftActorCritic[State]):
    """Values of the policy that an offline phase made, from the dataset alone. Only critics are trained."""

    num_critics: int = 2  # 2 or 1 [ocr_cft_hparams.yaml, o2sac; 1 on AntMaze]
    batch_size: int = 256  # rows per update [ocr_cft_hparams.yaml, o2sac]
    discount: float = 0.99  # gamma [ocr_cft_hparams.yaml, o2sac]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [ocr_cft_hparams.yaml, o2sac]
    critic_learning_rate: float = 3e-4  # Adam [ocr_cft_hparams.yaml, o2sac]
    initial_temperature: float = 0.2  # alpha_0 [ocr_cft.md 2.2 a; 0.5 on medium-expert, expert, larger AntMaze]
    hidden_sizes: tuple[int, ...] = (256, 256, 256)  # of the actor, where none is continued [ocr_cft.md 2.1]
    critic_hidden_sizes: tuple[int, ...] = (256, 256, 256)  # [ocr_cft.md 2.1; five layers on AntMaze]
    critic_layer_norm: bool = True  # LayerNorm in the critics [ocr_cft.md 2.1]
    policy_update_interval = 1  # there is no policy step

    needs = ("actor",)
    gives = ("actor", "critic", "temperature", "reference", "reference_score", "updates")
    keeps_policy = True

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """The policy as it is; critics and temperature anew, whatever critics the offline phase left."""
        actor_key, critic_key = jax.random.split(key)
        policy = fresh_policy(spec, self.hidden_sizes)
        actor = Model.take(models, "actor", policy, AT_REST, actor_key).frozen()
        critics = fresh_critics(spec, self.critic_hidden_sizes, self.critic_layer_norm, self.num_critics)
        log_alpha = Scalar(math.log(self.initial_temperature))
        return State(
            actor=actor,
            critic=Model.create(critics, Adam(self.critic_learning_rate), critic_key, target=True),
            temperature=Model.create(log_alpha, AT_REST, key).frozen(),
            reference=Reference(actor.frozen(), jnp.float32(NO_SCORE)),
            updates=jnp.int32(0),
        )

    def draw(self, key: jax.Array, spec: Spec) -> jax.Array:
        """Standard normal noise of the next actions [B, A]."""
        return jax.random.normal(key, (self.batch_size, spec.action_dim))

    def update(self, s: State, batch: Batch, draws: jax.Array, policy_step: bool) -> tuple[State, Metrics]:
        """Critics, then their targets."""
        alpha = jnp.exp(s.temperature())  # []
        mean, log_std = s.actor(batch.next_obs)  # [B, A]
        action, log_prob = sample_tanh_gaussian(mean, log_std, draws)  # [B, A], [B]
        next_value = s.critic.slow(batch.next_obs, action).min(0) - alpha * log_prob  # [B]
        critic, metrics = critic_step(s.critic, batch, td_target(batch, self.discount, next_value))
        s = replace(s, critic=critic.track(self.target_update_rate), updates=s.updates + 1)
        return s, metrics | {"entropy": -log_prob.mean(), "temperature": alpha}

    def scored(self, s: State, score: jax.Array) -> State:
        """The score of pi_off, which a later policy has to beat."""
        return replace(s, reference=s.reference._replace(score=score))

    def export(self, s: State) -> Models:
        """Policy, critics with their lagging targets: the anchors of the alignment. Counts begin anew after it."""
        return {
            "actor": s.actor,
            "critic": s.critic,
            "temperature": s.temperature,
            "reference": s.reference.policy,
            "reference_score": s.reference.score,
            "updates": jnp.zeros_like(s.updates),
        }


@dataclass(frozen=True)
class SACAlignment(SoftActorCritic[State]):
    """Critics pushed down to what pi_off prefers, where an actor that maximises them finds them higher."""

    num_critics: int = 2  # where none are continued [ocr_cft_hparams.yaml, o2sac; 1 on AntMaze]
    batch_size: int = 256  # rows per update [ocr_cft_hparams.yaml, o2sac]
    discount: float = 0.99  # gamma, of the run's values [ocr_cft_hparams.yaml, o2sac]
    actor_learning_rate: float = 1e-4  # Adam [ocr_cft.md 2.2 b]
    critic_learning_rate: float = 3e-4  # Adam [ocr_cft_hparams.yaml, o2sac]
    initial_temperature: float = 0.2  # alpha_0, where none is continued [ocr_cft.md 2.2 a]
    hidden_sizes: tuple[int, ...] = (256, 256, 256)  # of the actor, where none is continued [ocr_cft.md 2.1]
    critic_hidden_sizes: tuple[int, ...] = (256, 256, 256)  # where none are continued [ocr_cft.md 2.1]
    critic_layer_norm: bool = True  # LayerNorm in the critics, where none are continued [ocr_cft.md 2.1]
    policy_update_interval: int = 1  # critic updates per actor update [ocr_cft.md 2.2 b: simultaneous]

    needs = ("actor", "critic")
    gives = ("actor", "critic", "temperature", "reference", "reference_score", "updates")

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """The policy under a new optimizer, critics and their targets as they were left."""
        actor_key, critic_key = jax.random.split(key)
        actor_adam, critic_adam = Adam(self.actor_learning_rate), Adam(self.critic_learning_rate)
        policy = fresh_policy(spec, self.hidden_sizes)
        critics = fresh_critics(spec, self.critic_hidden_sizes, self.critic_layer_norm, self.num_critics)
        log_alpha = Scalar(math.log(self.initial_temperature))
        actor = Model.take(models, "actor", policy, actor_adam, actor_key, keep_moments=False)
        return State(
            actor=actor,
            critic=Model.take(models, "critic", critics, critic_adam, critic_key, target=True),
            temperature=Model.take(models, "temperature", log_alpha, AT_REST, key).frozen(),
            reference=starting_reference(models, actor),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> AlignmentDraws:
        """The noise of both policy samples."""
        return AlignmentDraws(*jax.random.normal(key, (2, self.batch_size, spec.action_dim)))

    def update(self, s: State, batch: Batch, draws: AlignmentDraws, policy_step: bool) -> tuple[State, Metrics]:
        """Critics and, on policy steps, the actor, each against the other as it was; the targets stand still."""
        alpha = jnp.exp(s.temperature())  # []
        mean, log_std = s.actor(batch.obs)  # [B, A]
        action, _ = sample_tanh_gaussian(mean, log_std, draws.alignment_noise)  # [B, A]
        best, anchor, y = self.targets(s, batch.obs, action)  # [B, A], [B], [B]
        pair = jax.lax.stop_gradient(jnp.stack([best, action], axis=1))  # [B, 2, A]
        wanted = jax.lax.stop_gradient(jnp.stack([anchor, y], axis=1))  # [B, 2]

        def critic_loss(critic: Model) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            q = critic.net.of_several(critic.params, batch.obs, pair)  # [critics, B, 2]
            parts = jnp.square(q - wanted).mean(1).sum(0)  # [2]
            return parts.sum(), (parts, q[0].mean(0))

        critic, loss, (parts, q_means) = s.critic.descend(critic_loss)
        metrics = {
            "critic_loss": loss,
            "anchor_loss": parts[0],
            "alignment_loss": parts[1],
            "critic_1_anchor_mean": q_means[0],
            "critic_1_mean": q_means[1],
            "target_value_mean": y.mean(),
            "temperature": alpha,
        }
        after = replace(s, critic=critic, updates=s.updates + 1)
        if not policy_step:
            return after, metrics

        def actor_loss(actor: Model) -> tuple[jax.Array, jax.Array]:
            mean, log_std = actor(batch.obs)  # [B, A]
            action, log_prob = sample_tanh_gaussian(mean, log_std, draws.policy_noise)  # [B, A], [B]
            q = lowest(s.critic(batch.obs, action))  # [B]
            return (alpha * log_prob - q).mean(), log_prob.mean()

        actor, loss, log_prob = s.actor.descend(actor_loss)
        return replace(after, actor=actor), metrics | {"actor_loss": loss, "entropy": -log_prob}

    def targets(self, s: State, obs: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """a_dot [B, A], v [B], and y [B] at `action` [B, A]. No floor of the log-densities (D22)."""
        best, mean, log_std = best_action(s.reference.policy, obs)
        preference = data_log_density(best, mean, log_std) - data_log_density(action, mean, log_std)  # [B, A]
        pair = jnp.stack([best, action], axis=1)  # [B, 2, A]
        anchor, value = s.critic.net.of_several(s.critic.target, obs, pair).min(0).T  # [B] each
        return best, anchor, jnp.minimum(anchor - jnp.exp(s.temperature()) * preference.sum(-1), value)

    def export(self, s: State) -> Models:
        """Actor, critics whose targets have caught up, and the reference as it was handed on."""
        return {
            "actor": s.actor,
            "critic": s.critic.settled(),
            "temperature": s.temperature,
            "reference": s.reference.policy,
            "reference_score": s.reference.score,
            "updates": s.updates,
        }


@dataclass(frozen=True)
class ConstrainedSAC(SoftActorCritic[ConstrainedState]):
    """Constrained fine-tuning, of the aligned pair or of any squashed-Gaussian policy with its critics."""

    constraint: Constraint = Constraint(threshold_start=0.125, threshold_end=2.0)  # [ocr_cft.md 2.2 d]
    exact_reference_density: bool = False  # pi_ref at the action before its tanh [ocr_cft.md 2.2 d, R: off in the code]
    actor_gradient_clip: float | None = None  # of its L2 norm [ocr_cft.md 2.6: 0.25 on hopper expert by interval]
    num_critics: int = 2  # where none are continued [ocr_cft_hparams.yaml, o2sac; 1 on AntMaze]
    batch_size: int = 256  # rows per update [ocr_cft_hparams.yaml, o2sac]
    discount: float = 0.99  # gamma [ocr_cft_hparams.yaml, o2sac]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [ocr_cft_hparams.yaml, o2sac]
    target_update_interval: int = 1  # updates between its steps [ocr_cft_hparams.yaml, o2sac]
    policy_update_interval: int = 1  # critic updates per actor update [ocr_cft.md 2.2 d: simultaneous]
    actor_learning_rate: float = 1e-4  # Adam [ocr_cft_hparams.yaml, o2sac]
    critic_learning_rate: float = 3e-4  # Adam [ocr_cft_hparams.yaml, o2sac]
    temperature_learning_rate: float = 3e-4  # Adam on log alpha [ocr_cft.md 2.2 d]
    initial_temperature: float = 0.2  # alpha, where none is continued [ocr_cft.md 2.2 a]
    hidden_sizes: tuple[int, ...] = (256, 256, 256)  # of the actor, where none is continued [ocr_cft.md 2.1]
    critic_hidden_sizes: tuple[int, ...] = (256, 256, 256)  # where none are continued [ocr_cft.md 2.1]
    critic_layer_norm: bool = True  # LayerNorm in the critics, where none are continued [ocr_cft.md 2.1]

    gives = (
        "actor",
        "critic",
        "temperature",
        "constraint_multiplier",
        "reference",
        "reference_score",
        "updates",
    )

    def init(self, models: Models, spec: Spec, key: jax.Array) -> ConstrainedState:
        """What earlier phases made goes on with its moments; the rest is fresh."""
        actor_key, critic_key = jax.random.split(key)
        actor_adam = Adam(self.actor_learning_rate, self.actor_gradient_clip)
        critic_adam, temperature_adam = Adam(self.critic_learning_rate), Adam(self.temperature_learning_rate)
        policy = fresh_policy(spec, self.hidden_sizes)
        critics = fresh_critics(spec, self.critic_hidden_sizes, self.critic_layer_norm, self.num_critics)
        log_alpha = Scalar(math.log(self.initial_temperature))
        actor = Model.take(models, "actor", policy, actor_adam, actor_key)
        return ConstrainedState(
            actor=actor,
            critic=Model.take(models, "critic", critics, critic_adam, critic_key, target=True),
            temperature=Model.take(models, "temperature", log_alpha, temperature_adam, key),
            constraint=self.constraint.init(models, actor, key),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> ConstrainedDraws:
        """The noise of both policy samples."""
        return ConstrainedDraws(*jax.random.normal(key, (2, self.batch_size, spec.action_dim)))

    def begin_step(self, s: ConstrainedState, env_step: jax.Array) -> ConstrainedState:
        """The multiplier may step again; the threshold grows."""
        return replace(s, constraint=self.constraint.begin_step(s.constraint, s.actor, env_step))

    def scored(self, s: ConstrainedState, score: jax.Array) -> ConstrainedState:
        """The best evaluated policy is the reference."""
        return replace(s, constraint=self.constraint.scored(s.constraint, s.actor, score))

    def tightened(self, s: ConstrainedState) -> ConstrainedState:
        """Closer to the reference, for a guard that went back."""
        return replace(s, constraint=self.constraint.tightened(s.constraint))

    def update(
        self, s: ConstrainedState, batch: Batch, draws: ConstrainedDraws, policy_step: bool
    ) -> tuple[ConstrainedState, Metrics]:
        """Critics and targets; on policy steps also actor, temperature and multiplier. All from what was before."""
        alpha, multiplier = jnp.exp(s.temperature()), s.constraint.multiplier  # []
        reference = s.constraint.reference.policy
        action, log_prob, penalty = self.sample(s.actor, reference, batch.next_obs, draws.next_policy_noise)
        next_value = s.critic.slow(batch.next_obs, action).min(0) - alpha * log_prob - multiplier * penalty  # [B]
        critic, metrics = critic_step(s.critic, batch, td_target(batch, self.discount, next_value))
        after = replace(s, critic=self._tracked(critic, s.updates + 1), updates=s.updates + 1)
        if not policy_step:
            return after, metrics

        def actor_loss(actor: Model) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            action, log_prob, penalty = self.sample(actor, reference, batch.obs, draws.policy_noise)
            q = lowest(s.critic(batch.obs, action))  # [B]
            return (alpha * log_prob - q + multiplier * penalty).mean(), (log_prob.mean(), penalty)

        actor, loss, (log_prob, penalty) = s.actor.descend(actor_loss)
        slack = log_prob - batch.action.shape[-1]  # H is minus the number of the action's dimensions
        temperature, _, _ = s.temperature.descend(lambda log_alpha: (-log_alpha() * slack, None))
        constraint, info = self.constraint.update(s.constraint, penalty)
        metrics |= info | {"actor_loss": loss, "entropy": -log_prob, "temperature": alpha}
        return replace(after, actor=actor, temperature=temperature, constraint=constraint), metrics

    def sample(
        self, actor: Model, reference: Model, obs: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """An action of the actor [B, A], its log-density [B], and f [B], through which gradients reach the actor too.

        As released, log pi_ref takes the atanh of the clipped action, so that f is off where the action is at a bound.
        """
        mean, log_std = actor(obs)
        action, log_prob = sample_tanh_gaussian(mean, log_std, noise)
        where: tuple[jax.Array, jax.Array] = reference(obs)
        if self.exact_reference_density:
            density = tanh_gaussian_log_density(mean + jnp.exp(log_std) * noise, *where)  # [B, A]
        else:
            density = data_log_density(action, *where)
        return action, log_prob, log_prob - jnp.maximum(density.sum(-1), REFERENCE_FLOOR)

    def _tracked(self, critic: Model, updates: jax.Array) -> Model:
        """The target critics, every `target_update_interval`-th update."""
        tracked = critic.track(self.target_update_rate)
        if self.target_update_interval == 1:
            return tracked
        return chosen(updates % self.target_update_interval == 0, tracked, critic)

    def export(self, s: ConstrainedState) -> Models:
        """Networks, scalars, reference and the count of updates."""
        own = {"actor": s.actor, "critic": s.critic, "temperature": s.temperature, "updates": s.updates}
        return own | self.constraint.export(s.constraint)
