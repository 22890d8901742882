"""AWAC: advantage-weighted actor-critic (Nair et al. 2020, arXiv:2006.09359).

    L_Q  = sum_i E (Q_i(s, a) - y)^2      y = r + gamma (1 - d) min_i Qbar_i(s', a'), a' ~ pi(.|s')
    L_pi = -E [ w log pi(a|s) ]           w = min(exp(A / lambda), w_max)
    A    = min_i Q_i(s, a) - min_i Q_i(s, a~), a~ ~ pi(.|s)

The weights are not normalised over the batch (../spec/baselines.md 6). Executed actions and a' are clipped to the box.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, Models, Spec
from segue.losses import td_target
from segue.nets.networks import Critics
from segue.nets.policies import GaussianPolicy, gaussian_log_density, sample_in_box


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    actor: Model
    critic: Model  # with target
    updates: jax.Array  # [] int32


class Draws(NamedTuple):
    """Standard normal numbers of one update."""

    next_policy_noise: jax.Array  # [B, A]
    policy_noise: jax.Array  # [B, A]


@dataclass(frozen=True)
class AWAC(Algorithm[State]):
    """AWAC, offline and online."""

    advantage_temperature: float = 0.3333  # lambda [baselines.md 6; 0.1 on AntMaze]
    advantage_weight_max: float = 100.0  # w_max, of the exponential [baselines.md 6]
    batch_size: int = 256  # rows per update [baselines.md 6]
    discount: float = 0.99  # gamma [baselines.md 6]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [baselines.md 6]
    policy_update_interval: int = 1  # critic updates per actor update [baselines.md 6]
    actor_learning_rate: float = 3e-4  # Adam [baselines.md 6]
    critic_learning_rate: float = 3e-4  # Adam [baselines.md 6]
    hidden_sizes: tuple[int, ...] = (256, 256, 256)  # of actor and critics [baselines.md 6]

    gives = ("actor", "critic", "updates")
    policy_kind = "gaussian"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Fresh or continued actor and critics."""
        actor_key, critic_key = jax.random.split(key)
        policy = GaussianPolicy(*spec, self.hidden_sizes, tanh_mean=False)
        critics = Critics(*spec, self.hidden_sizes)
        return State(
            actor=Model.take(models, "actor", policy, Adam(self.actor_learning_rate), actor_key),
            critic=Model.take(models, "critic", critics, Adam(self.critic_learning_rate), critic_key, target=True),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> Draws:
        """The noise of both policy samples."""
        return Draws(*jax.random.normal(key, (2, self.batch_size, spec.action_dim)))

    def update(self, s: State, batch: Batch, draws: Draws, policy_step: bool) -> tuple[State, Metrics]:
        """Critics, then (on policy steps) the actor by the new critics' advantages, then the targets."""
        mean, log_std = s.actor(batch.next_obs)  # [B, A], [A]
        next_action = sample_in_box(mean, log_std, draws.next_policy_noise)  # [B, A]
        y = td_target(batch, self.discount, s.critic.slow(batch.next_obs, next_action).min(0))  # [2, B] -> [B]

        def critic_loss(critic: Model) -> tuple[jax.Array, jax.Array]:
            q = critic(batch.obs, batch.action)  # [2, B]
            return jnp.square(q - y).mean(-1).sum(), q[0].mean()

        critic, loss, q_mean = s.critic.descend(critic_loss)
        metrics = {"critic_loss": loss, "critic_1_mean": q_mean}
        s = replace(s, critic=critic.track(self.target_update_rate), updates=s.updates + 1)
        if not policy_step:
            return s, metrics
        mean, log_std = s.actor(batch.obs)
        own = sample_in_box(mean, log_std, draws.policy_noise)  # [B, A]
        advantage = critic(batch.obs, batch.action).min(0) - critic(batch.obs, own).min(0)  # [B]
        weight = jnp.minimum(jnp.exp(advantage / self.advantage_temperature), self.advantage_weight_max)  # [B]

        def actor_loss(actor: Model) -> tuple[jax.Array, None]:
            mean, log_std = actor(batch.obs)  # [B, A], [A]
            return -(weight * gaussian_log_density(batch.action, mean, log_std).sum(-1)).mean(), None

        actor, loss, _ = s.actor.descend(actor_loss)
        clipped = (weight >= self.advantage_weight_max).sum().astype(weight.dtype)
        return replace(s, actor=actor), metrics | {"actor_loss": loss, "num_clipped_weights": clipped}

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """The mean, or a sample while exploring; in [-1, 1]."""
        mean, log_std = s.actor(obs)
        return sample_in_box(mean, log_std, jax.random.normal(key, mean.shape) if explore else jnp.zeros_like(mean))

    def export(self, s: State) -> Models:
        """Actor, critics and the count of updates."""
        return {"actor": s.actor, "critic": s.critic, "updates": s.updates}

    def diagnose(self, s: State, batch: Batch) -> Metrics:
        """Q on data, and the width of the policy."""
        std = jnp.exp(s.actor(batch.obs)[1]).mean()
        return {"critic_1_probe_mean": s.critic(batch.obs, batch.action)[0].mean(), "policy_std_mean": std}
