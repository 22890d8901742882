"""ReBRAC: TD3+BC with cloning in the critic too (Tarasov et al. 2023, arXiv:2305.09836).

    a~   = clip(pibar(s') + clip(sigma eps, -c, c), -1, 1)
    y    = r + gamma (1 - d) [ min_i Qbar_i(s', a~) - beta_2 |a~ - a'|^2 ]       a' = what the data did next
    L_Q  = sum_i E (Q_i(s, a) - y)^2
    L_pi = E [ beta_1 |pi(s) - a|^2 - lambda min_i Q_i(s, pi(s)) ]               lambda = 1 / sg E|min_i Q_i(s, pi(s))|

|.|^2 sums over dimensions. Critics have layer norms, all networks three hidden layers. a' is unknown after the newest
row and where a time limit or the log's end cut the episode: such rows carry no penalty. That min_i stands in L_pi, and
what else is marked "to be checked" below, is from memory of the paper and its appendix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, Models, Spec
from segue.losses import lowest, td_target
from segue.nets.networks import Critics
from segue.nets.policies import DeterministicPolicy


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    actor: Model  # with target
    critic: Model  # with target
    updates: jax.Array  # [] int32


@dataclass(frozen=True)
class ReBRAC(Algorithm[State]):
    """TD3+BC with decoupled penalties, offline and online."""

    actor_penalty: float = 0.01  # beta_1 [middle of the paper's grid; presets by dataset]
    critic_penalty: float = 0.01  # beta_2 [middle of the paper's grid; presets by dataset]
    normalize_q: bool = True  # lambda as in TD3+BC; else 1 [the paper's appendix: on; to be checked]
    batch_size: int = 1024  # rows per update [the paper's table of changes; 256 on AntMaze]
    discount: float = 0.99  # gamma [the paper's table of changes; 0.999 on AntMaze]
    target_update_rate: float = 0.005  # Polyak rate of all targets [as TD3]
    target_noise_std: float = 0.2  # sigma of the target action's noise [as TD3]
    target_noise_clip: float = 0.5  # c [as TD3]
    online_action_noise: float = 0.1  # std added to executed actions online [ours: TD3's]
    policy_update_interval: int = 2  # critic updates per actor and target update [as TD3]
    actor_learning_rate: float = 1e-3  # Adam [the paper's appendix; 3e-4 on AntMaze; to be checked]
    critic_learning_rate: float = 1e-3  # Adam [as above]
    hidden_sizes: tuple[int, ...] = (256, 256, 256)  # of actor and critics [the paper's table of changes]
    critic_layer_norm: bool = True  # LayerNorm in the critics [the paper's table of changes]

    gives = ("actor", "critic", "updates")
    policy_kind = "deterministic"
    columns = ("next_action", "next_action_known")

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Fresh or continued actor and critics."""
        actor_key, critic_key = jax.random.split(key)
        actor_adam, critic_adam = Adam(self.actor_learning_rate), Adam(self.critic_learning_rate)
        policy = DeterministicPolicy(*spec, self.hidden_sizes)
        critics = Critics(*spec, self.hidden_sizes, self.critic_layer_norm)
        return State(
            actor=Model.take(models, "actor", policy, actor_adam, actor_key, target=True),
            critic=Model.take(models, "critic", critics, critic_adam, critic_key, target=True),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> jax.Array:
        """Standard normal noise of the target action [B, A]."""
        return jax.random.normal(key, (self.batch_size, spec.action_dim))

    def update(self, s: State, batch: Batch, draws: jax.Array, policy_step: bool) -> tuple[State, Metrics]:
        """Critics; on policy steps also the actor against the new critics, and the targets."""
        shift = jnp.clip(self.target_noise_std * draws, -self.target_noise_clip, self.target_noise_clip)
        next_action = jnp.clip(s.actor.slow(batch.next_obs) + shift, -1, 1)  # [B, A]
        known = batch.extras["next_action_known"]  # [B]
        next_error = known * jnp.square(next_action - batch.extras["next_action"]).sum(-1)  # [B]
        next_value = s.critic.slow(batch.next_obs, next_action).min(0) - self.critic_penalty * next_error
        y = td_target(batch, self.discount, next_value)  # [B]

        def critic_loss(critic: Model) -> tuple[jax.Array, jax.Array]:
            q = critic(batch.obs, batch.action)  # [2, B]
            return jnp.square(q - y).mean(-1).sum(), q[0].mean()

        critic, loss, q_mean = s.critic.descend(critic_loss)
        metrics = {"critic_loss": loss, "critic_1_mean": q_mean, "next_error_mean": next_error.mean()}
        metrics["next_action_known"] = known.mean()
        s = replace(s, critic=critic, updates=s.updates + 1)
        if not policy_step:
            return s, metrics

        def actor_loss(actor: Model) -> tuple[jax.Array, jax.Array]:
            action = actor(batch.obs)  # [B, A]
            q = lowest(critic(batch.obs, action))  # [B]
            error = jnp.square(action - batch.action).sum(-1)  # [B]
            scale = jax.lax.stop_gradient(jnp.abs(q).mean()) if self.normalize_q else 1.0
            return self.actor_penalty * error.mean() - q.mean() / scale, error.mean()

        actor, loss, error = s.actor.descend(actor_loss)
        s = replace(s, actor=actor.track(self.target_update_rate), critic=critic.track(self.target_update_rate))
        return s, metrics | {"actor_loss": loss, "action_error_mean": error}

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """pi(s), with Gaussian noise while exploring."""
        action = s.actor(obs)
        if not explore:
            return action
        return jnp.clip(action + self.online_action_noise * jax.random.normal(key, action.shape), -1, 1)

    def export(self, s: State) -> Models:
        """Actor, critics and the count of updates."""
        return {"actor": s.actor, "critic": s.critic, "updates": s.updates}

    def diagnose(self, s: State, batch: Batch) -> Metrics:
        """Q on data."""
        return {"critic_1_probe_mean": s.critic(batch.obs, batch.action)[0].mean()}
