"""PPO: proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347; ../spec/ocr_cft.md 2.4 c).

After every rollout of T steps, with d true terminals and e ends of episodes (terminals and time limits):

    delta_t = r_t + gamma (1 - d_t) V(s'_t) - V(s_t)
    A_t     = delta_t + gamma lambda (1 - e_t) A_{t+1}       (0 beyond the rollout)      y = A + V(s)
    A^      = (A - mean A) / (std A + 1e-5)

and in minibatches, epoch by epoch, the actor before the value of each:

    rho  = pi(a|s) / pi_old(a|s)                             a: the executed action, clipped to the box
    L_pi = -E min(rho A^, clip(rho, 1 - eps, 1 + eps) A^) - c E H(pi(.|s))
    L_V  = E (y - V(s))^2

Parameters stand still within a rollout, so pi_old is the policy at the update's beginning and nothing is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, Models, Spec
from segue.nets.networks import MLP
from segue.nets.policies import GaussianPolicy, gaussian_log_density, sample_in_box

STD_EPSILON = 1e-5  # of the normalised advantages [ocr_cft.md 2.4 c]
ADAM_EPSILON = 1e-5  # [ocr_cft_hparams.yaml, o2ppo]

RowError = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # V(s) [M], s [M, S], y [M] -> [M]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes, and where in the phase it is."""

    actor: Model
    value: Model
    env_step: jax.Array  # [] int32 environment steps taken
    learned_at: jax.Array  # [] int32 what env_step was at the latest update
    updates: jax.Array  # [] int32 rollouts learned from


class Settings(Protocol):
    """What an algorithm that learns from rollouts has to say."""

    @property
    def discount(self) -> float:
        """gamma."""

    @property
    def gae_lambda(self) -> float:
        """lambda."""

    @property
    def ratio_clip(self) -> float:
        """eps."""

    @property
    def entropy_coefficient(self) -> float:
        """c."""

    @property
    def minibatch_size(self) -> int:
        """Rows of a minibatch."""


class Steps(NamedTuple):
    """What a minibatch [M] knows of its steps."""

    obs: jax.Array  # [M, S]
    action: jax.Array  # [M, A]
    old_log_density: jax.Array  # [M] log pi_old(a|s)
    advantage: jax.Array  # [M] A^
    value_target: jax.Array  # [M] y


@dataclass(frozen=True)
class PPO(Algorithm[State]):
    """PPO, from scratch or from a Gaussian policy, with or without a value that an earlier phase fitted."""

    batch_size: int = 2_048  # T: environment steps of a rollout [Table 3]
    minibatch_size: int = 64  # rows of a minibatch; an epoch's last may be shorter [Table 3]
    epochs: int = 10  # passes over a rollout [Table 3]
    discount: float = 0.99  # gamma [Table 3]
    gae_lambda: float = 0.95  # lambda [Table 3]
    ratio_clip: float = 0.2  # eps [Table 1]
    entropy_coefficient: float = 0.01  # c [ocr_cft_hparams.yaml, o2ppo; Sec. 6.1 has none]
    gradient_clip_norm: float = 0.5  # of actor and value, each by itself [ocr_cft_hparams.yaml, o2ppo]
    actor_learning_rate: float = 3e-4  # Adam, at the start [Table 3; 3e-5 for fine-tuning, ocr_cft_hparams.yaml]
    value_learning_rate: float = 3e-4  # Adam, at the start [Table 3; 2e-4 for fine-tuning, ocr_cft_hparams.yaml]
    learning_rate_decay_steps: int | None = None  # linear to 0 at this step; None: at the phase's last [Table 5]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of the actor, ReLU [ocr_cft_hparams.yaml, o2ppo; 64 in Sec. 6.1]
    value_hidden_sizes: tuple[int, ...] = (256, 256, 256)  # of the value, tanh [ocr_cft_hparams.yaml, o2ppo]
    policy_update_interval = 1  # every rollout moves the policy

    gives = ("actor", "value", "updates")
    columns = ("last",)
    on_policy = True
    policy_kind = "gaussian"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Fresh or continued actor and value, under new optimizers."""
        actor_key, value_key = jax.random.split(key)
        policy = GaussianPolicy(*spec, self.hidden_sizes, tanh_mean=True)
        value = MLP((spec.observation_dim, *self.value_hidden_sizes, 1), activation="tanh")
        actor_adam = Adam(self.actor_learning_rate, self.gradient_clip_norm, ADAM_EPSILON)
        value_adam = Adam(self.value_learning_rate, self.gradient_clip_norm, ADAM_EPSILON)
        return State(
            actor=Model.take(models, "actor", policy, actor_adam, actor_key, keep_moments=False),
            value=Model.take(models, "value", value, value_adam, value_key, keep_moments=False),
            env_step=jnp.int32(0),
            learned_at=jnp.int32(0),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> jax.Array:
        """An order of the rollout's steps for every epoch [epochs, T]."""
        return jax.vmap(lambda k: jax.random.permutation(k, self.batch_size))(jax.random.split(key, self.epochs))

    def begin_step(self, s: State, env_step: jax.Array) -> State:
        """It counts, for the learning rates."""
        return replace(s, env_step=env_step)

    def update(self, s: State, batch: Batch, draws: jax.Array, policy_step: bool) -> tuple[State, Metrics]:
        """All epochs over one rollout."""
        rate = self.rate(s.learned_at)
        actor, value, metrics = learn_from_rollout(self, s.actor, s.value, batch, draws, rate)
        s = replace(s, actor=actor, value=value, learned_at=s.env_step, updates=s.updates + 1)
        return s, metrics | {"learning_rate_factor": rate}

    def rate(self, env_step: jax.Array) -> jax.Array:
        """Factor of the learning rates [] once `env_step` [] is learned from; 1 where nobody named the last step."""
        if self.learning_rate_decay_steps is None:
            return jnp.ones(())
        return jnp.maximum(1 - env_step.astype(float) / self.learning_rate_decay_steps, 0)

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """The mean, or a sample while exploring; in [-1, 1]."""
        mean, log_std = s.actor(obs)
        return sample_in_box(mean, log_std, jax.random.normal(key, mean.shape) if explore else jnp.zeros_like(mean))

    def export(self, s: State) -> Models:
        """Actor, value and the count of updates."""
        return {"actor": s.actor, "value": s.value, "updates": s.updates}


def squared_error(v: jax.Array, obs: jax.Array, y: jax.Array) -> jax.Array:
    """(y - V(s))^2 [M], whatever the states."""
    return jnp.square(y - v)


def learn_from_rollout(
    settings: Settings,
    actor: Model,
    value: Model,
    batch: Batch,
    permutations: jax.Array,
    rate: jax.Array,
    steer: Callable[[jax.Array], jax.Array] = lambda advantage: advantage,
    value_error: RowError = squared_error,
) -> tuple[Model, Model, Metrics]:
    """Actor and value after `permutations` [epochs, T] of a rollout `batch` [T]; metrics are means over minibatches.

    `rate` [] multiplies the learning rates. `steer` [T] -> [T] makes of the plain advantage the one that the actor
    follows, before it is normalised; value targets know nothing of it. `value_error` is what L_V is the mean of: a
    function of V(s) [M], s [M, S] and y [M].
    """
    advantage, value_target = generalized_advantages(settings, value, batch)
    mean, log_std = actor(batch.obs)
    old_log_density = gaussian_log_density(batch.action, mean, log_std).sum(-1)
    steps = Steps(batch.obs, batch.action, old_log_density, normalised(steer(advantage)), value_target)
    own = {"value_mean": (value_target - advantage).mean(), "policy_std": jnp.exp(log_std).mean()}

    def learn(models: tuple[Model, Model], minibatch: Steps) -> tuple[tuple[Model, Model], Metrics]:
        actor, value, metrics = minibatch_step(settings, *models, minibatch, rate, value_error)
        return (actor, value), metrics

    def epoch(models: tuple[Model, Model], cut: tuple[Steps, Steps]) -> tuple[tuple[Model, Model], Metrics]:
        whole, rest = cut
        models, metrics = jax.lax.scan(learn, models, whole)
        if rest.advantage.shape[0] > 0:
            models, last = learn(models, rest)
            metrics = jax.tree.map(lambda x, one: jnp.append(x, one), metrics, last)
        return models, metrics

    epochs, size = permutations.shape[0], settings.minibatch_size
    count = permutations.shape[1] // size  # of whole minibatches
    shuffled = jax.tree.map(lambda x: jnp.asarray(x)[permutations], steps)  # leaves [epochs, T, ...]
    whole = jax.tree.map(lambda x: x[:, : count * size].reshape(epochs, count, size, *x.shape[2:]), shuffled)
    rest = jax.tree.map(lambda x: x[:, count * size :], shuffled)
    (actor, value), metrics = jax.lax.scan(epoch, (actor, value), (whole, rest))
    return actor, value, jax.tree.map(jnp.mean, metrics) | own


def generalized_advantages(settings: Settings, value: Model, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """A and y, each [T], of a rollout in its order."""
    v, next_v = value(batch.obs)[..., 0], value(batch.next_obs)[..., 0]  # [T]
    delta = batch.reward + settings.discount * (1 - batch.terminal) * next_v - v
    decay = settings.discount * settings.gae_lambda * (1 - batch.extras["last"])

    def back(following: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        advantage = step[0] + step[1] * following
        return advantage, advantage

    _, advantage = jax.lax.scan(back, jnp.zeros_like(delta[0]), (delta, decay), reverse=True)
    return advantage, advantage + v


def normalised(advantage: jax.Array) -> jax.Array:
    """A^ of A [T]; the std is that of a sample (T - 1 in its denominator)."""
    return (advantage - advantage.mean()) / (advantage.std(ddof=1) + STD_EPSILON)


def minibatch_step(
    settings: Settings,
    actor: Model,
    value: Model,
    steps: Steps,
    rate: jax.Array,
    value_error: RowError = squared_error,
) -> tuple[Model, Model, Metrics]:
    """One step of the actor, then one of the value."""

    def actor_loss(actor: Model) -> tuple[jax.Array, jax.Array]:
        mean, log_std = actor(steps.obs)  # [M, A], [A] or [M, A]
        log_ratio = gaussian_log_density(steps.action, mean, log_std).sum(-1) - steps.old_log_density  # [M]
        gain = clipped_gain(jnp.exp(log_ratio), steps.advantage, settings.ratio_clip)  # [M]
        entropy = (log_std + 0.5 * jnp.log(2 * jnp.pi * jnp.e)).sum(-1).mean()  # []
        return -gain.mean() - settings.entropy_coefficient * entropy, log_ratio

    def value_loss(value: Model) -> tuple[jax.Array, None]:
        return value_error(value(steps.obs)[..., 0], steps.obs, steps.value_target).mean(), None

    actor, of_actor, log_ratio = actor.descend(actor_loss, rate)
    value, of_value, _ = value.descend(value_loss, rate)
    ratio = jnp.exp(log_ratio)
    return actor, value, {
        "actor_loss": of_actor,
        "value_loss": of_value,
        "clip_fraction": (jnp.abs(ratio - 1) > settings.ratio_clip).mean(dtype=ratio.dtype),
        "approximate_kl": (ratio - 1 - log_ratio).mean(),  # KL(pi_old, pi), never below 0
    }


def clipped_gain(ratio: jax.Array, advantage: jax.Array, ratio_clip: float) -> jax.Array:
    """min(rho A^, clip(rho, 1 - eps, 1 + eps) A^) [M].

    Raises AssertionError if the advantage is not [M] too: it would broadcast silently (../spec/ocr_cft.md D1).
    """
    assert advantage.shape == ratio.shape, (advantage.shape, ratio.shape)
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - ratio_clip, 1 + ratio_clip) * advantage)
