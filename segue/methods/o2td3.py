"""OCR-CFT for TD3, "O2TD3" (NeurIPS 2024, arXiv:2412.18855; ../spec/ocr_cft.md 2.3): three phases, three algorithms.

TD3Reevaluation: fresh critics of the frozen offline policy pi_off (Eq. 6); the targets move at every step

    a~    = clip(pi_off(s') + clip(sigma eps, -c, c), -1, 1)
    y     = r + gamma (1 - d) min_j Qbar_j(s', a~)
    L_Q   = sum_j E (Q_j(s, a) - y)^2

TD3Alignment: Q falls like a Gaussian around pi_off's action (Eqs 15, 16, 43, 44); Qbar stands still

    v     = min_j Qbar_j(s, a_dot)                     a_dot = pi_off(s), the anchor
    a~    = clip(pi(s) + clip(sigma eps, -c, c), -1, 1)
    delta = min(|a~ - a_dot| / sqrt(K), sigma)         K: action dimensions
    y_j   = min( v / (1 + k delta^2), Qbar_j(s, a~) )  where v >= 0;   v (1 + k delta^2) in its place where v < 0
    L_Q   = sum_j E (Q_j(s, a~) - y_j)^2 + sum_j E (Q_j(s, a_dot) - v)^2
    L_pi  = -E Q_1(s, pi(s))                           every step

ConstrainedTD3: TD3 near a reference policy; lambda and its threshold: core/constraint.py (Eqs 45 to 47)

    y     = r + gamma (1 - d) [ min_j Qbar_j(s', a~) - lambda p(s') ]    p = mean over dimensions of (pi - pi_ref)^2
    f     = (pi(s) - pi_ref(s))^2                      for every row and dimension
    L_pi  = -E Q_1(s, pi(s)) / sg E |Q_1(s, pi(s))| + lambda E f         every second step

(Dn): ../spec/ocr_cft.md 4a.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.constraint import Constraint, ConstraintState
from segue.core.model import Adam, Model
from segue.core.reference import NO_SCORE, Reference, starting_reference
from segue.core.types import Batch, Metrics, Models, Spec
from segue.losses import td_target
from segue.methods.o2sac import critic_step
from segue.nets.networks import Critics, Orthogonal
from segue.nets.policies import DeterministicPolicy

AT_REST = Adam(0.0)  # of what a phase does not train

S = TypeVar("S")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Of re-evaluation and alignment."""

    actor: Model  # in alignment with target
    critic: Model  # with target
    reference: Reference  # pi_off
    updates: jax.Array  # [] int32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConstrainedState:
    """Of constrained fine-tuning."""

    actor: Model  # with target
    critic: Model  # with target
    constraint: ConstraintState
    updates: jax.Array  # [] int32


def fresh_policy(spec: Spec, hidden_sizes: tuple[int, ...]) -> DeterministicPolicy:
    """All layers orthogonal [ocr_cft.md 2.1]."""
    return DeterministicPolicy(*spec, hidden_sizes, initializer=Orthogonal(1.0))


def fresh_critics(spec: Spec, hidden_sizes: tuple[int, ...], layer_norm: bool) -> Critics:
    """All layers orthogonal [ocr_cft.md 2.1]."""
    return Critics(*spec, hidden_sizes, layer_norm, initializer=Orthogonal(1.0))


def smoothed(action: jax.Array, noise: jax.Array, std: float, clip: float) -> jax.Array:
    """`action` with clipped noise, in [-1, 1]; `noise` is standard normal. All [B, A]."""
    return jnp.clip(action + jnp.clip(std * noise, -clip, clip), -1, 1)


class DeterministicActorCritic(Algorithm[S]):
    """What the three phases have in common: their states hold a deterministic actor and critics."""

    policy_kind = "deterministic"

    def draw(self, key: jax.Array, spec: Spec) -> jax.Array:
        """Standard normal noise of the smoothed action [B, A]."""
        return jax.random.normal(key, (self.batch_size, spec.action_dim))

    def act(self, s: Any, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """pi(s)."""
        action: jax.Array = s.actor(obs)
        return action

    def diagnose(self, s: Any, batch: Batch) -> Metrics:
        """Q on data."""
        return {"critic_1_probe_mean": s.critic(batch.obs, batch.action)[0].mean()}


@dataclass(frozen=True)
class TD3Reevaluation(DeterministicActorCritic[State]):
    """Values of the policy that an offline phase made, from the dataset alone. Only critics are trained."""

    batch_size: int = 256  # rows per update [ocr_cft_hparams.yaml, o2td3]
    discount: float = 0.99  # gamma [ocr_cft_hparams.yaml, o2td3]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [ocr_cft_hparams.yaml, o2td3]
    target_noise_std: float = 0.2  # sigma of the target action's noise [ocr_cft.md 2.3 a]
    target_noise_clip: float = 0.5  # c [ocr_cft.md 2.3 a]
    critic_learning_rate: float = 3e-4  # Adam [ocr_cft_hparams.yaml, o2td3]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of the actor, where none is continued [ocr_cft.md 2.1]
    critic_hidden_sizes: tuple[int, ...] = (256, 256)  # [ocr_cft.md 2.1]
    critic_layer_norm: bool = True  # LayerNorm in the critics [ocr_cft.md 2.1; none on AntMaze]
    policy_update_interval = 1  # there is no policy step

    needs = ("actor",)
    gives = ("actor", "critic", "reference", "reference_score", "updates")
    keeps_policy = True

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """The policy as it is; critics anew, whatever critics the offline phase left."""
        actor_key, critic_key = jax.random.split(key)
        policy = fresh_policy(spec, self.hidden_sizes)
        actor = Model.take(models, "actor", policy, AT_REST, actor_key).frozen()
        critics = fresh_critics(spec, self.critic_hidden_sizes, self.critic_layer_norm)
        return State(
            actor=actor,
            critic=Model.create(critics, Adam(self.critic_learning_rate), critic_key, target=True),
            reference=Reference(actor.frozen(), jnp.float32(NO_SCORE)),
            updates=jnp.int32(0),
        )

    def update(self, s: State, batch: Batch, draws: jax.Array, policy_step: bool) -> tuple[State, Metrics]:
        """Critics, then their targets."""
        action = smoothed(s.actor(batch.next_obs), draws, self.target_noise_std, self.target_noise_clip)  # [B, A]
        y = td_target(batch, self.discount, s.critic.slow(batch.next_obs, action).min(0))
        critic, metrics = critic_step(s.critic, batch, y)
        return replace(s, critic=critic.track(self.target_update_rate), updates=s.updates + 1), metrics

    def scored(self, s: State, score: jax.Array) -> State:
        """The score of pi_off, which a later policy has to beat."""
        return replace(s, reference=s.reference._replace(score=score))

    def export(self, s: State) -> Models:
        """Policy, critics with their lagging targets: the anchors of the alignment. Counts begin anew after it."""
        return {
            "actor": s.actor,
            "critic": s.critic,
            "reference": s.reference.policy,
            "reference_score": s.reference.score,
            "updates": jnp.zeros_like(s.updates),
        }


@dataclass(frozen=True)
class TD3Alignment(DeterministicActorCritic[State]):
    """Critics pushed below a ceiling around pi_off's action, where an actor that maximises them finds them higher."""

    distance_weight: float = 1.0  # k [ocr_cft.md 2.3 b]
    batch_size: int = 256  # rows per update [ocr_cft_hparams.yaml, o2td3]
    discount: float = 0.99  # gamma, of the run's values [ocr_cft_hparams.yaml, o2td3]
    target_noise_std: float = 0.2  # sigma, also the largest delta [ocr_cft.md 2.3 b]
    target_noise_clip: float = 0.5  # c [ocr_cft.md 2.3 b]
    actor_learning_rate: float = 1e-4  # Adam [ocr_cft.md 2.3 b]
    critic_learning_rate: float = 3e-4  # Adam [ocr_cft_hparams.yaml, o2td3]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of the actor, where none is continued [ocr_cft.md 2.1]
    critic_hidden_sizes: tuple[int, ...] = (256, 256)  # where none are continued [ocr_cft.md 2.1]
    critic_layer_norm: bool = True  # LayerNorm in the critics, where none are continued [ocr_cft.md 2.1]
    policy_update_interval: int = 1  # critic updates per actor update [ocr_cft.md 2.3 b: every step]

    needs = ("actor", "critic")
    gives = ("actor", "critic", "reference", "reference_score", "updates")

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """The policy under a new optimizer, critics and their targets as they were left."""
        actor_key, critic_key = jax.random.split(key)
        actor_adam, critic_adam = Adam(self.actor_learning_rate), Adam(self.critic_learning_rate)
        policy = fresh_policy(spec, self.hidden_sizes)
        critics = fresh_critics(spec, self.critic_hidden_sizes, self.critic_layer_norm)
        actor = Model.take(models, "actor", policy, actor_adam, actor_key, target=True, keep_moments=False)
        return State(
            actor=actor,
            critic=Model.take(models, "critic", critics, critic_adam, critic_key, target=True),
            reference=starting_reference(models, actor),
            updates=models.get("updates", jnp.int32(0)),
        )

    def update(self, s: State, batch: Batch, draws: jax.Array, policy_step: bool) -> tuple[State, Metrics]:
        """Critics and, on policy steps, the actor, each against the other as it was; the targets stand still."""
        action = smoothed(s.actor(batch.obs), draws, self.target_noise_std, self.target_noise_clip)  # [B, A]
        best, anchor, y = jax.lax.stop_gradient(self.targets(s, batch.obs, action))  # [B, A], [B], [2, B]
        pair = jax.lax.stop_gradient(jnp.stack([best, action], axis=1))  # [B, 2, A]
        wanted = jnp.stack([jnp.broadcast_to(anchor, y.shape), y], axis=-1)  # [2, B, 2]

        def critic_loss(critic: Model) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            q = critic.net.of_several(critic.params, batch.obs, pair)  # [2, B, 2]
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
            "policy_shift": jnp.sqrt(jnp.square(s.actor(batch.obs) - best).mean()),
        }
        after = replace(s, critic=critic, updates=s.updates + 1)
        if not policy_step:
            return after, metrics

        def actor_loss(actor: Model) -> tuple[jax.Array, None]:
            return -s.critic.net.first(s.critic.params, batch.obs, actor(batch.obs)).mean(), None

        actor, loss, _ = s.actor.descend(actor_loss)
        return replace(after, actor=actor), metrics | {"actor_loss": loss}

    def distance(self, action: jax.Array, best: jax.Array) -> jax.Array:
        """delta [B] of actions [B, A]: root mean square over dimensions, capped (D14)."""
        return jnp.minimum(jnp.sqrt(jnp.square(action - best).mean(-1)), self.target_noise_std)

    def ceiling(self, anchor: jax.Array, distance: jax.Array) -> jax.Array:
        """What an action at `distance` may be worth, next to the anchor, all [B]; lower for either sign (D15)."""
        factor = 1 + self.distance_weight * jnp.square(distance)
        return jnp.where(anchor >= 0, anchor / factor, anchor * factor)

    def targets(self, s: State, obs: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """a_dot [B, A], v [B], and y_j [2, B] at `action` [B, A]: the ceiling is shared, the last minimum is not."""
        best = s.reference.policy(obs)
        pair = jnp.stack([best, action], axis=1)  # [B, 2, A]
        q = s.critic.net.of_several(s.critic.target, obs, pair)  # [2, B, 2]
        anchor = q[..., 0].min(0)  # [B]
        return best, anchor, jnp.minimum(self.ceiling(anchor, self.distance(action, best)), q[..., 1])

    def export(self, s: State) -> Models:
        """Actor and critics whose targets have caught up, and the reference as it was handed on."""
        return {
            "actor": s.actor.settled(),
            "critic": s.critic.settled(),
            "reference": s.reference.policy,
            "reference_score": s.reference.score,
            "updates": s.updates,
        }


@dataclass(frozen=True)
class ConstrainedTD3(DeterministicActorCritic[ConstrainedState]):
    """Constrained fine-tuning, of the aligned pair or of any deterministic policy with its critics."""

    constraint: Constraint = Constraint(threshold_start=0.0025, threshold_end=0.04)  # [ocr_cft.md 2.3 d]
    penalty_over_batch: bool = False  # p is one number for all rows, as released, instead of the row's own [D10]
    actor_gradient_clip: float | None = None  # of its L2 norm [ocr_cft.md 2.6: 0.25 on two experts' data by interval]
    batch_size: int = 256  # rows per update [ocr_cft_hparams.yaml, o2td3]
    discount: float = 0.99  # gamma [ocr_cft_hparams.yaml, o2td3]
    target_update_rate: float = 0.005  # Polyak rate of all targets [ocr_cft_hparams.yaml, o2td3]
    target_noise_std: float = 0.2  # sigma of the target action's noise [ocr_cft.md 2.3 a]
    target_noise_clip: float = 0.5  # c [ocr_cft.md 2.3 a]
    exploration_noise: float = 0.1  # std added to executed actions [ocr_cft.md 2.3 e; 0.05 on experts' data]
    policy_update_interval: int = 2  # critic updates per update of actor, multiplier, targets [ocr_cft.md 2.3 d]
    actor_learning_rate: float = 1e-4  # Adam [ocr_cft_hparams.yaml, o2td3]
    critic_learning_rate: float = 3e-4  # Adam [ocr_cft_hparams.yaml, o2td3]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of the actor, where none is continued [ocr_cft.md 2.1]
    critic_hidden_sizes: tuple[int, ...] = (256, 256)  # where none are continued [ocr_cft.md 2.1]
    critic_layer_norm: bool = True  # LayerNorm in the critics, where none are continued [ocr_cft.md 2.1]

    gives = ("actor", "critic", "constraint_multiplier", "reference", "reference_score", "updates")

    def init(self, models: Models, spec: Spec, key: jax.Array) -> ConstrainedState:
        """What earlier phases made goes on with its moments; the rest is fresh."""
        actor_key, critic_key = jax.random.split(key)
        actor_adam = Adam(self.actor_learning_rate, self.actor_gradient_clip)
        critic_adam = Adam(self.critic_learning_rate)
        policy = fresh_policy(spec, self.hidden_sizes)
        critics = fresh_critics(spec, self.critic_hidden_sizes, self.critic_layer_norm)
        actor = Model.take(models, "actor", policy, actor_adam, actor_key, target=True)
        return ConstrainedState(
            actor=actor,
            critic=Model.take(models, "critic", critics, critic_adam, critic_key, target=True),
            constraint=self.constraint.init(models, actor, key),
            updates=models.get("updates", jnp.int32(0)),
        )

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
        self, s: ConstrainedState, batch: Batch, draws: jax.Array, policy_step: bool
    ) -> tuple[ConstrainedState, Metrics]:
        """Critics; on policy steps multiplier and actor against the new critic, with the multiplier from before."""
        multiplier, reference = s.constraint.multiplier, s.constraint.reference.policy
        noise = (draws, self.target_noise_std, self.target_noise_clip)
        action = smoothed(s.actor.slow(batch.next_obs), *noise)  # [B, A]
        penalty = self.penalty(s.actor, reference, batch.next_obs)  # [B], at the live policy without noise
        next_value = s.critic.slow(batch.next_obs, action).min(0) - multiplier * penalty  # [B]
        critic, metrics = critic_step(s.critic, batch, td_target(batch, self.discount, next_value))
        s = replace(s, critic=critic, updates=s.updates + 1)
        if not policy_step:
            return s, metrics
        wanted = reference(batch.obs)  # [B, A]

        def actor_loss(actor: Model) -> tuple[jax.Array, jax.Array]:
            action = actor(batch.obs)  # [B, A]
            q = critic.net.first(critic.params, batch.obs, action)  # [B]
            divergence = jnp.square(action - wanted)  # [B, A]
            scale = jax.lax.stop_gradient(jnp.abs(q).mean())
            return -q.mean() / scale + multiplier * divergence.mean(), divergence

        actor, loss, divergence = s.actor.descend(actor_loss)
        constraint, info = self.constraint.update(s.constraint, divergence)
        rate = self.target_update_rate
        s = replace(s, actor=actor.track(rate), critic=critic.track(rate), constraint=constraint)
        return s, metrics | info | {"actor_loss": loss}

    def penalty(self, actor: Model, reference: Model, obs: jax.Array) -> jax.Array:
        """p [B] of Eq. 46."""
        p = jnp.square(actor(obs) - reference(obs)).mean(-1)  # [B]
        return jnp.full_like(p, p.mean()) if self.penalty_over_batch else p

    def act(self, s: ConstrainedState, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """pi(s), with Gaussian noise while exploring."""
        action: jax.Array = s.actor(obs)
        if not explore:
            return action
        return jnp.clip(action + self.exploration_noise * jax.random.normal(key, action.shape), -1, 1)

    def export(self, s: ConstrainedState) -> Models:
        """Networks, multiplier, reference and the count of updates."""
        own = {"actor": s.actor, "critic": s.critic, "updates": s.updates}
        return own | self.constraint.export(s.constraint)
