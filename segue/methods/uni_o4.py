"""Uni-O4's fine-tuning: PPO with small steps (Lei et al. 2024, arXiv:2311.03351; ../spec/baselines.md 15).

PPO (arXiv:1707.06347) goes on from a policy that was learned offline, with nothing to hold it there but the small
ratio clip:

    L_pi = -E min(rho A^, clip(rho, 1 - eps, 1 + eps) A^) - c E H(pi(.|s))        rho, A^ and y as in ppo.py
    L_V  =  E (y - V(s))^2

The released program clips the value's step, in raw units of the value, and applies a second tanh to the log-std of
the policy that it goes on with:

    L_V  =  E max{ (y - V(s))^2, (y - V_old(s) - clip(V(s) - V_old(s), -eps_V, eps_V))^2 }
    log sigma = -5 + 2.5 (1 + x), or online -5 + 2.5 (1 + tanh(x))                x: the network's output, under a tanh

The first makes V slow where returns are large and the second changes the policy at the switch: both are off here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, Models, Spec
from segue.methods.ppo import learn_from_rollout
from segue.nets.networks import MLP, Orthogonal
from segue.nets.policies import BoundedGaussianPolicy, sample_in_box

ADAM_EPSILON = 1e-5  # [baselines_hparams.yaml, uni_o4_ppo]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes, and where in the phase it is."""

    actor: Model
    value: Model
    env_step: jax.Array  # [] int32 environment steps taken
    learned_at: jax.Array  # [] int32 what env_step was at the latest update
    updates: jax.Array  # [] int32 rollouts learned from


@dataclass(frozen=True)
class UniO4(Algorithm[State]):
    """PPO from a Gaussian policy, with or without a value that an earlier phase learned."""

    value_clip: float | None = None  # eps_V [None: ours, baselines.md 15 advises it; 0.05 as released]
    second_tanh: bool = False  # of a policy whose std its own network bounds [baselines.md 15; on as released]
    batch_size: int = 2_048  # T: environment steps of a rollout [baselines_hparams.yaml, uni_o4_ppo]
    minibatch_size: int = 128  # rows of a minibatch; an epoch's last may be shorter [baselines_hparams.yaml]
    epochs: int = 30  # passes over a rollout [baselines_hparams.yaml, uni_o4_ppo; 5 to 30 by dataset]
    discount: float = 0.99  # gamma [baselines_hparams.yaml, uni_o4_ppo]
    gae_lambda: float = 0.95  # lambda of the advantages [baselines_hparams.yaml, uni_o4_ppo]
    ratio_clip: float = 0.05  # eps [baselines_hparams.yaml, uni_o4_ppo]
    entropy_coefficient: float = 0.01  # c [baselines_hparams.yaml, uni_o4_ppo]
    gradient_clip_norm: float = 0.5  # of actor and value, each by itself [baselines_hparams.yaml, uni_o4_ppo]
    actor_learning_rate: float = 2e-5  # Adam, at the start [baselines_hparams.yaml; 6e-6 to 3e-5 by dataset]
    value_learning_rate: float = 2e-4  # Adam, at the start [baselines_hparams.yaml, uni_o4_ppo]
    learning_rate_decay_steps: int = 3_000_000  # linear to 0 at this environment step [baselines_hparams.yaml]
    hidden_sizes: tuple[int, ...] = (256, 256, 256)  # of the actor, where none is continued [baselines_hparams.yaml]
    value_hidden_sizes: tuple[int, ...] = (256, 256, 256)  # of the value, ReLU [baselines_hparams.yaml, uni_o4_ppo]
    policy_update_interval = 1  # every rollout moves the policy

    needs = ("actor",)
    gives = ("actor", "value", "updates")
    columns = ("last",)
    on_policy = True
    policy_kind = "gaussian"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Continued actor and value, under new optimizers; a fresh value where there is none."""
        actor_key, value_key = jax.random.split(key)
        policy = BoundedGaussianPolicy(*spec, self.hidden_sizes, self.second_tanh, Orthogonal(1.0))
        value = MLP((spec.observation_dim, *self.value_hidden_sizes, 1))
        actor_adam = Adam(self.actor_learning_rate, self.gradient_clip_norm, ADAM_EPSILON)
        value_adam = Adam(self.value_learning_rate, self.gradient_clip_norm, ADAM_EPSILON)
        actor = Model.take(models, "actor", policy, actor_adam, actor_key, keep_moments=False)
        if isinstance(actor.net, BoundedGaussianPolicy):
            actor = replace(actor, net=replace(actor.net, second_tanh=self.second_tanh))
        return State(
            actor=actor,
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

        def value_error(v: jax.Array, obs: jax.Array, y: jax.Array) -> jax.Array:
            if self.value_clip is None:
                return jnp.square(y - v)
            return clipped_error(v, s.value(obs)[..., 0], y, self.value_clip)

        rate = self.rate(s.learned_at)
        actor, value, metrics = learn_from_rollout(self, s.actor, s.value, batch, draws, rate, value_error=value_error)
        s = replace(s, actor=actor, value=value, learned_at=s.env_step, updates=s.updates + 1)
        return s, metrics | {"learning_rate_factor": rate}

    def rate(self, env_step: jax.Array) -> jax.Array:
        """Factor of the learning rates [] once `env_step` [] is learned from."""
        return jnp.maximum(1 - env_step.astype(float) / self.learning_rate_decay_steps, 0)

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """The mean, or a sample while exploring; in [-1, 1]."""
        mean, log_std = s.actor(obs)
        return sample_in_box(mean, log_std, jax.random.normal(key, mean.shape) if explore else jnp.zeros_like(mean))

    def export(self, s: State) -> Models:
        """Actor, value and the count of updates."""
        return {"actor": s.actor, "value": s.value, "updates": s.updates}


def clipped_error(v: jax.Array, old: jax.Array, y: jax.Array, value_clip: float) -> jax.Array:
    """The larger of the squared errors of V [M] and of V at most `value_clip` from `old` V_old [M], [M].

    Raises AssertionError if they are not of one shape: they would broadcast silently.
    """
    assert v.shape == old.shape == y.shape, (v.shape, old.shape, y.shape)
    near = old + jnp.clip(v - old, -value_clip, value_clip)
    return jnp.maximum(jnp.square(y - v), jnp.square(y - near))
