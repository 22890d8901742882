"""A policy of one form cloned from a teacher of any form, or from actions that label the data (../spec/ocr_cft.md 3).

Stochastic (Eq. 52 of OCR-CFT, arXiv:2412.18855; the dual variable is that of Zheng et al. 2022, arXiv:2202.05607):

    L_pi     = E [ -log pi(a|s) - w H(pi(.|s)) ]          a ~ pi_teacher(.|s), or the label
    w        = sg lambda exp(3 (H_min - E H) / A)          the factor is ours: a damper, 1 at the bound
    L_lambda = lambda sg( E H - H_min )                    in log lambda: holds E H >= H_min = -A
    H        = -log pi(a~|s), a~ ~ pi(.|s), of a squashed Gaussian; in closed form of another

Deterministic:

    L_pi     = E (pi(s) - a)^2     a = the teacher's greedy action, or the label; mean over rows and dimensions
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model, Scalar
from segue.core.types import Batch, Metrics, Models, Spec
from segue.nets.networks import Orthogonal, XavierUniform
from segue.nets.policies import (
    BoundedGaussianPolicy,
    DeterministicPolicy,
    GaussianPolicy,
    TanhGaussianPolicy,
    action_of,
    data_log_density,
    gaussian_log_density,
    sample_tanh_gaussian,
)

PolicyForm = Literal["deterministic", "tanh_gaussian", "gaussian"]
# Per nat of entropy and dimension. With lambda alone the entropy of a deterministic teacher's clone swings for ever
# about its bound, between -6 and 1 about -2; with it, it stays within 0.05 [measured: 2 dimensions, 8,000 updates].
DAMPING = 3.0
DAMPING_REACH = 3.0  # nats below the bound from which on w grows no more: its exponential must stay finite


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes, and the teacher, which it does not."""

    actor: Model
    teacher: Any  # a frozen Model, None where the data are labelled
    multiplier: Any  # Model of log lambda, None of a deterministic clone
    updates: jax.Array  # [] int32


class Draws(NamedTuple):
    """Standard normal numbers of one update."""

    teacher_noise: jax.Array  # [B, A]
    policy_noise: jax.Array  # [B, A]


@dataclass(frozen=True)
class Clone(Algorithm[State]):
    """Cloning into the form that a method of fine-tuning continues."""

    form: PolicyForm = "tanh_gaussian"  # of the clone [ocr_cft.md 3: what O2SAC needs]
    teacher: Literal["actor", "labels"] = "actor"  # the policy so far, or the data's actions [ocr_cft.md 3]
    batch_size: int = 256  # rows per update [ocr_cft.md 3 R iv]
    discount: float = 0.99  # of estimates of the policy's value; cloning looks at no future [the papers' on every task]
    actor_learning_rate: float = 3e-4  # Adam [ocr_cft.md 3 R iv]
    bounded_std: bool = False  # a Gaussian's std is bounded, as Uni-O4's [off in ocr_cft.md 2.1; baselines.md 15]
    hidden_sizes: tuple[int, ...] | None = None  # [None: 3 x 256 if squashed, else 2 x 256, ocr_cft.md 2.1]
    target_entropy_per_dimension: float = -1.0  # H_min = this times A [ocr_cft.md 3 R ii]
    initial_multiplier: float = 1.0  # lambda at the start [ours: what a deterministic teacher's clone ends at]
    multiplier_learning_rate: float = 3e-4  # Adam on log lambda [ours: as the actor's; ocr_cft.md 3 names none]
    policy_update_interval: int = 1  # there is no critic [every update is a policy step]

    gives = ("actor", "updates")
    new_policy = True

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]  # what it needs depends on the teacher
        """A policy, unless the data are labelled."""
        return ("actor",) if self.teacher == "actor" else ()

    @property
    def policy_kind(self) -> str:
        """The clone's form."""
        return self.form

    def policy(self, spec: Spec) -> DeterministicPolicy | TanhGaussianPolicy | GaussianPolicy | BoundedGaussianPolicy:
        """The clone's network, as the fine-tuning methods make it (ocr_cft.md 2.1)."""
        if self.form == "tanh_gaussian":
            sizes = self.hidden_sizes or (256, 256, 256)
            return TanhGaussianPolicy(*spec, sizes, trained_scale=True, last_initializer=XavierUniform(0.01))
        sizes = self.hidden_sizes or (256, 256)
        if self.form == "deterministic":
            return DeterministicPolicy(*spec, sizes, initializer=Orthogonal(1.0))
        if self.bounded_std:
            return BoundedGaussianPolicy(*spec, sizes, initializer=Orthogonal(1.0))
        return GaussianPolicy(*spec, sizes, tanh_mean=True, initializer=Orthogonal(1.0))

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """A fresh clone; the policy so far, if it is the teacher, stays as it is."""
        actor_key, teacher_key = jax.random.split(key)
        policy, adam = self.policy(spec), Adam(self.actor_learning_rate)
        teacher = multiplier = None
        if self.teacher == "actor":
            teacher = Model.take(models, "actor", policy, adam, teacher_key).frozen()
        if self.form != "deterministic":
            log_lambda = Scalar(math.log(self.initial_multiplier))
            multiplier = Model.create(log_lambda, Adam(self.multiplier_learning_rate), key)
        return State(Model.create(policy, adam, actor_key), teacher, multiplier, jnp.int32(0))

    def draw(self, key: jax.Array, spec: Spec) -> Draws:
        """The noise of the teacher's and of the clone's own actions."""
        return Draws(*jax.random.normal(key, (2, self.batch_size, spec.action_dim)))

    def update(self, s: State, batch: Batch, draws: Draws, policy_step: bool) -> tuple[State, Metrics]:
        """The clone, then the dual variable by the entropy from before that step."""
        label = batch.action  # [B, A]
        if s.teacher is not None:
            greedy = jnp.zeros_like(draws.teacher_noise)
            noise = greedy if self.form == "deterministic" else draws.teacher_noise
            label = action_of(s.teacher, batch.obs, noise)

        def distance(actor: Model) -> jax.Array:
            return jnp.square(action_of(actor, batch.obs, jnp.zeros_like(label)) - label).mean()

        if self.form == "deterministic":
            actor, loss, _ = s.actor.descend(lambda actor: (distance(actor), None))
            return State(actor, s.teacher, None, s.updates + 1), {"actor_loss": loss, "clone_error": jnp.sqrt(loss)}
        bound = self.target_entropy_per_dimension

        def likelihood_loss(actor: Model) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            mean, log_std = actor(batch.obs)
            if self.form == "tanh_gaussian":
                log_density = data_log_density(label, mean, log_std).sum(-1)  # [B]
                entropy = -sample_tanh_gaussian(mean, log_std, draws.policy_noise)[1].mean()
            else:
                log_density = gaussian_log_density(label, mean, log_std).sum(-1)  # [B]
                entropy = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1).mean()
            short = bound - jax.lax.stop_gradient(entropy) / label.shape[-1]  # [] nats per dimension below the bound
            weight = jnp.exp(s.multiplier() + DAMPING * jnp.minimum(short, DAMPING_REACH))  # [] w
            return -log_density.mean() - weight * entropy, (entropy, weight)

        error = jnp.sqrt(distance(s.actor))
        actor, loss, (entropy, weight) = s.actor.descend(likelihood_loss)
        slack = entropy - bound * label.shape[-1]  # [] E H - H_min
        multiplier, _, _ = s.multiplier.descend(lambda log_lambda: (jnp.exp(log_lambda()) * slack, None))
        metrics = {"actor_loss": loss, "clone_error": error, "entropy": entropy, "entropy_weight": weight}
        return State(actor, s.teacher, multiplier, s.updates + 1), metrics

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """The clone's: a sample while exploring, if it is stochastic; else its greedy action."""
        noise = jax.random.normal(key, (s.actor.net.action_dim,), obs.dtype)
        return action_of(s.actor, obs, noise if explore else jnp.zeros_like(noise))

    def export(self, s: State) -> Models:
        """The clone; updates count afresh, as a schedule of the method that goes on begins with it."""
        return {"actor": s.actor, "updates": jnp.zeros_like(s.updates)}
