"""TD3+BC (Fujimoto & Gu 2021, arXiv:2106.06860). SSAR (arXiv:2505.19923) enters as `coefficient`.

    y    = r + gamma (1 - d) min_i Qbar_i(s', a~)        a~ = clip(pibar(s') + clip(sigma eps, -c, c), -1, 1)
    L_Q  = sum_i E (Q_i(s, a) - y)^2                                                 (S2)
    L_pi = -alpha E Q_1(s, pi(s)) / sg E|Q_1(s, pi(s))| + E (pi(s) - a)^2            plain (Eq. 5 with its lambda)
    L_pi = -E Q_1(s, pi(s)) / sg E|Q_1(s, pi(s))| + E [ beta(s) (pi(s) - a)^2 ]      with a coefficient (S3)

The second is the first divided by alpha where beta = 1 / alpha. (Sn): ../spec/ssar.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.coefficient import Coefficient
from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, Models, Spec
from segue.methods.td3 import critic_step
from segue.nets.networks import Critics
from segue.nets.policies import DeterministicPolicy

SQUARED_ERROR_CAP = 1.0  # (10 delta)^2 for delta = 0.1, the analogue of CQL's floor at ten deviations (S4)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    actor: Model  # with target
    critic: Model  # with target
    beta: Any  # the coefficient's state, () without one
    updates: jax.Array  # [] int32


@dataclass(frozen=True)
class TD3BC(Algorithm[State]):
    """TD3+BC, offline and online."""

    coefficient: Coefficient | None = None
    alpha: float = 2.5  # weight of the Q term [Fujimoto & Gu 2021, Table 4]; with SSAR only 1 / beta_0 [ssar.md 2.3]
    batch_size: int = 256  # rows per update [Table 4]
    discount: float = 0.99  # gamma [Table 4]
    target_update_rate: float = 0.005  # Polyak rate of all targets [Table 4]
    target_noise_std: float = 0.2  # sigma of the target action's noise [Table 4]
    target_noise_clip: float = 0.5  # c [Table 4]
    exploration_noise: float = 0.1  # SSAR's delta, the unit of its threshold [TD3's exploration std; ssar.md 2.4]
    online_action_noise: float = 0.1  # std added to executed actions online [Table 4; 0 in SSAR, ssar.md B19]
    policy_update_interval: int = 2  # critic updates per actor and target update [Table 4]
    actor_learning_rate: float = 3e-4  # Adam [Table 4]
    critic_learning_rate: float = 3e-4  # Adam [Table 4]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of actor and critics [Table 4]
    critic_layer_norm: bool = False  # LayerNorm in the critics [off in TD3+BC, on in SSAR (ssar.md B28)]

    gives = ("actor", "critic", "beta", "updates")
    policy_kind = "deterministic"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Fresh or continued actor, critics and coefficient."""
        actor_key, critic_key, beta_key = jax.random.split(key, 3)
        actor_adam, critic_adam = Adam(self.actor_learning_rate), Adam(self.critic_learning_rate)
        policy = DeterministicPolicy(*spec, self.hidden_sizes)
        critics = Critics(*spec, self.hidden_sizes, self.critic_layer_norm)
        beta = models.get("beta", ())
        if self.coefficient and not beta:
            beta = self.coefficient.init(spec, beta_key, 1 / self.alpha)
        updates = models.get("updates", jnp.int32(0))
        if "updates" in models and self.coefficient:
            beta = self.coefficient.begin_online(beta, updates)
        return State(
            actor=Model.take(models, "actor", policy, actor_adam, actor_key, target=True),
            critic=Model.take(models, "critic", critics, critic_adam, critic_key, target=True),
            beta=beta,
            updates=updates,
        )

    def draw(self, key: jax.Array, spec: Spec) -> jax.Array:
        """Standard normal noise of the target action [B, A]."""
        return jax.random.normal(key, (self.batch_size, spec.action_dim))

    def update(self, s: State, batch: Batch, draws: jax.Array, policy_step: bool) -> tuple[State, Metrics]:
        """Critics; on policy steps also actor, coefficient (from the old actor's error) and targets (2.8)."""
        noise = (draws, self.target_noise_std, self.target_noise_clip)
        critic, metrics = critic_step(s, batch, *noise, self.discount)
        s = replace(s, critic=critic, updates=s.updates + 1)
        if not policy_step:
            return s, metrics
        if self.coefficient is None:
            q_weight, beta = self.alpha, jnp.ones_like(batch.reward)
        else:
            q_weight, beta = 1.0, self.coefficient(s.beta, batch, s.updates)  # [B]

        def actor_loss(actor: Model) -> tuple[jax.Array, jax.Array]:
            action = actor(batch.obs)  # [B, A]
            q = critic.net.first(critic.params, batch.obs, action)  # [B]
            error = jnp.square(action - batch.action)  # [B, A]
            scale = jax.lax.stop_gradient(jnp.abs(q).mean())
            return -q_weight * q.mean() / scale + (beta * error.mean(-1)).mean(), error

        actor, loss, error = s.actor.descend(actor_loss)
        metrics |= {
            "actor_loss": loss,
            "action_squared_error_mean": error.mean(),
            "action_squared_error_max_mean": error.max(-1).mean(),
        }
        beta_state = s.beta
        if self.coefficient is not None:
            capped = jnp.minimum(error, SQUARED_ERROR_CAP).mean(-1)  # [B], the old actor's (S4)

            def slack(n: jax.Array) -> jax.Array:
                return jnp.square(n * self.exploration_noise) - capped

            beta_state, info = self.coefficient.update(s.beta, batch, s.updates, slack)
            metrics |= info
        actor, critic = actor.track(self.target_update_rate), critic.track(self.target_update_rate)
        return replace(s, actor=actor, critic=critic, beta=beta_state), metrics

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """pi(s), with Gaussian noise while exploring."""
        action = s.actor(obs)
        if not explore or self.online_action_noise == 0:
            return action
        return jnp.clip(action + self.online_action_noise * jax.random.normal(key, action.shape), -1, 1)

    def export(self, s: State) -> Models:
        """Actor, critics, coefficient and the count of updates."""
        return {"actor": s.actor, "critic": s.critic, "beta": s.beta, "updates": s.updates}

    def diagnose(self, s: State, batch: Batch) -> Metrics:
        """Q on data, and the coefficient's distribution."""
        metrics = {"critic_1_probe_mean": s.critic(batch.obs, batch.action)[0].mean()}
        if self.coefficient is not None:
            metrics |= self.coefficient.diagnose(s.beta, batch, s.updates)
        return metrics
