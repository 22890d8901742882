"""O2PPO: PPO that is drawn to a reference policy (OCR-CFT, NeurIPS 2024, arXiv:2412.18855; ../spec/ocr_cft.md 2.4).

There is only V, so the reference policy N(mu, diag sigma^2) comes in through an auxiliary advantage (Eqs 17, 48, 51):

    x     = sum_k [ log N(a_k; mu_k, sigma_k) + log(2 pi e sigma_k^2) / 2 ]        0 on average under the reference
    A_aux = (softplus(x + 4 K) - 4 K) / K                                          K: action dimensions
    A'    = (A + beta w std(A) A_aux) / (1 + beta)         beta = max(1 - t / T_beta, 0), t: environment steps

and PPO follows A'. Step by step, as the paper says: the released program adds every step's A_aux to every step's A,
which cancels out (D1). The clip of x from below is of the sum over dimensions, as released (D2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.reference import Reference, ReferenceRule, starting_reference
from segue.core.types import Batch, Metrics, Models, Spec
from segue.methods.ppo import learn_from_rollout
from segue.nets.networks import MLP
from segue.nets.policies import GaussianPolicy, gaussian_log_density, sample_in_box

SOFTPLUS_OFFSET = 4.0  # a dimension, below which x is clipped [ocr_cft_hparams.yaml, o2ppo]
ADAM_EPSILON = 1e-5  # [ocr_cft_hparams.yaml, o2ppo]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes, and where in the phase it is."""

    actor: Model
    value: Model
    reference: Reference
    env_step: jax.Array  # [] int32 environment steps taken
    learned_at: jax.Array  # [] int32 what env_step was at the latest update
    updates: jax.Array  # [] int32 rollouts learned from


@dataclass(frozen=True)
class O2PPO(Algorithm[State]):
    """PPO with the auxiliary advantage, from a Gaussian policy and a value fitted on the dataset's returns."""

    auxiliary_weight: float = 2.0  # w, times the std of the rollout's advantages [ocr_cft_hparams.yaml, o2ppo]
    auxiliary_decay_steps: int = 250_000  # T_beta [ocr_cft.md 2.4 c; 500,000 on medium-expert and expert]
    initial_std_cap: float | None = None  # of actor and reference, once, at the start [ocr_cft.md 2.4; 0.05 at D8's]
    batch_size: int = 2_048  # T: environment steps of a rollout [ocr_cft_hparams.yaml, o2ppo]
    minibatch_size: int = 128  # rows of a minibatch; an epoch's last may be shorter [ocr_cft_hparams.yaml, o2ppo]
    epochs: int = 10  # passes over a rollout [ocr_cft_hparams.yaml, o2ppo; 5 on hopper medium-expert and expert]
    discount: float = 0.99  # gamma [ocr_cft_hparams.yaml, o2ppo]
    gae_lambda: float = 0.95  # lambda of the advantages [ocr_cft_hparams.yaml, o2ppo]
    ratio_clip: float = 0.2  # eps [ocr_cft_hparams.yaml, o2ppo]
    entropy_coefficient: float = 0.01  # of the policy's entropy in its loss [ocr_cft_hparams.yaml, o2ppo]
    gradient_clip_norm: float = 0.5  # of actor and value, each by itself [ocr_cft_hparams.yaml, o2ppo]
    actor_learning_rate: float = 3e-5  # Adam, at the start [ocr_cft_hparams.yaml, o2ppo]
    value_learning_rate: float = 2e-4  # Adam, at the start [ocr_cft_hparams.yaml, o2ppo]
    learning_rate_decay_steps: int = 250_000  # linear to 0 at this environment step [ocr_cft.md 2.4 c]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of the actor, where none is continued [ocr_cft_hparams.yaml, o2ppo]
    value_hidden_sizes: tuple[int, ...] = (256, 256, 256)  # of the value, tanh [ocr_cft_hparams.yaml, o2ppo]
    rule: ReferenceRule = ReferenceRule(reference_interval=2_500)  # [ocr_cft.md 2.6]
    policy_update_interval = 1  # every rollout moves the policy

    needs = ("actor",)
    gives = ("actor", "value", "reference", "reference_score", "updates")
    columns = ("last",)
    on_policy = True
    policy_kind = "gaussian"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """The actor under a new optimizer, the fitted value likewise or a fresh one, the reference."""
        actor_key, value_key = jax.random.split(key)
        policy = GaussianPolicy(*spec, self.hidden_sizes, tanh_mean=True)
        value = MLP((spec.observation_dim, *self.value_hidden_sizes, 1), activation="tanh")
        actor_adam = Adam(self.actor_learning_rate, self.gradient_clip_norm, ADAM_EPSILON)
        value_adam = Adam(self.value_learning_rate, self.gradient_clip_norm, ADAM_EPSILON)
        actor = self.capped(Model.take(models, "actor", policy, actor_adam, actor_key, keep_moments=False))
        reference = starting_reference(models, actor)
        return State(
            actor=actor,
            value=Model.take(models, "value", value, value_adam, value_key, keep_moments=False),
            reference=reference._replace(policy=self.capped(reference.policy)),
            env_step=jnp.int32(0),
            learned_at=jnp.int32(0),
            updates=models.get("updates", jnp.int32(0)),
        )

    def capped(self, policy: Model) -> Model:
        """`policy` with a std of at most `initial_std_cap`; training may raise it again (D8)."""
        if self.initial_std_cap is None:
            return policy
        log_std = policy.parameter("log_std", "this policy's std depends on the state: leave --initial-std-cap out")
        capped = jnp.minimum(log_std, math.log(self.initial_std_cap))
        return replace(policy, params=policy.params | {"log_std": capped})

    def draw(self, key: jax.Array, spec: Spec) -> jax.Array:
        """An order of the rollout's steps for every epoch [epochs, T]."""
        return jax.vmap(lambda k: jax.random.permutation(k, self.batch_size))(jax.random.split(key, self.epochs))

    def begin_step(self, s: State, env_step: jax.Array) -> State:
        """It counts, for beta, the learning rates and the reference by interval."""
        return replace(s, env_step=env_step, reference=self.rule.begin_step(s.reference, s.actor, env_step))

    def scored(self, s: State, score: jax.Array) -> State:
        """The best evaluated policy is the reference."""
        return replace(s, reference=self.rule.scored(s.reference, s.actor, score))

    def update(self, s: State, batch: Batch, draws: jax.Array, policy_step: bool) -> tuple[State, Metrics]:
        """All epochs over one rollout, by the combined advantage."""
        beta, rate = self.auxiliary_share(s.env_step), self.rate(s.learned_at)
        x = excess_log_density(s.reference.policy, batch)  # [T]

        def steer(advantage: jax.Array) -> jax.Array:
            return self.combined(advantage, auxiliary_advantage(x, batch.action.shape[-1]), beta)

        actor, value, metrics = learn_from_rollout(self, s.actor, s.value, batch, draws, rate, steer)
        s = replace(s, actor=actor, value=value, learned_at=s.env_step, updates=s.updates + 1)
        metrics |= {"auxiliary_weight": beta, "penalty": -x.mean(), "learning_rate_factor": rate}
        if self.rule.reference == "best_evaluated":  # a snapshot has no score
            metrics |= {"reference_score": s.reference.score}
        return s, metrics

    def rate(self, env_step: jax.Array) -> jax.Array:
        """Factor of the learning rates [] once `env_step` [] is learned from."""
        return jnp.maximum(1 - env_step.astype(float) / self.learning_rate_decay_steps, 0)

    def auxiliary_share(self, env_step: jax.Array) -> jax.Array:
        """beta []."""
        return jnp.maximum(1 - env_step.astype(float) / self.auxiliary_decay_steps, 0)

    def combined(self, advantage: jax.Array, auxiliary: jax.Array, beta: jax.Array) -> jax.Array:
        """A' [T] of A [T] and A_aux [T]."""
        weighted = self.auxiliary_weight * advantage.std(ddof=1) * auxiliary
        return (advantage + beta * weighted) / (1 + beta)

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """The mean, or a sample while exploring; in [-1, 1]."""
        mean, log_std = s.actor(obs)
        return sample_in_box(mean, log_std, jax.random.normal(key, mean.shape) if explore else jnp.zeros_like(mean))

    def export(self, s: State) -> Models:
        """Actor, value, reference and the count of updates."""
        return {
            "actor": s.actor,
            "value": s.value,
            "reference": s.reference.policy,
            "reference_score": s.reference.score,
            "updates": s.updates,
        }


def excess_log_density(reference: Model, batch: Batch) -> jax.Array:
    """x [T]: log-density of the actions under the reference, above its mean."""
    mean, log_std = reference(batch.obs)  # [T, A], [A]
    return (gaussian_log_density(batch.action, mean, log_std) + log_std + 0.5 * jnp.log(2 * jnp.pi * jnp.e)).sum(-1)


def auxiliary_advantage(x: jax.Array, dimensions: int) -> jax.Array:
    """A_aux [T] of x [T], above -4."""
    offset = SOFTPLUS_OFFSET * dimensions
    return (jax.nn.softplus(x + offset) - offset) / dimensions
