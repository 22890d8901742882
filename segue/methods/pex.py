"""PEX: policy expansion (Zhang, Xu & Yu 2023, arXiv:2302.00935; ../spec/baselines.md 10).

The offline policy pi_off stands still; a new one, pi, begins at random beside it. Both offer an action everywhere,
and the critics choose:

    a_1 = mode of pi_off(.|s)      a_2 ~ pi(.|s)
    P(k|s) = exp(kappa q_k) / sum_i exp(kappa q_i)      q_k = min_i Q_i(s, a_k), kappa an inverse temperature
    a~ = a_k,  k ~ P(.|s)                               what is done online

V and Q learn as IQL's do from the batch's own actions. Then the new policy learns, not from those, but from actions
chosen afresh at the batch's observations, of which a_1 draws it towards pi_off:

    L_pi = -E [ w log pi(a~|s) ]   w = min(exp(beta A), w_max), A = min_i Qbar_i(s, a~) - V(s), after their steps

Actions are clipped to [-1, 1] only where they are done, as released. The greedy action is the better one of a_1 and
pi's mode. [ours: the released evaluation still draws one time in ten, from pi and from P; here an evaluation and a
policy in use have to repeat themselves.]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, Models, Spec
from segue.methods.iql import learn_values
from segue.nets.networks import MLP, Critics
from segue.nets.policies import GaussianPolicy, action_of, gaussian_log_density

EVEN = 0.5  # the draw that gives the choice to the better action: its probability is the larger one


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes, and the offline policy, which it does not."""

    actor: Model  # pi
    offline_actor: Model  # pi_off, frozen, of any form
    critic: Model  # with target
    value: Model
    updates: jax.Array  # [] int32


class Draws(NamedTuple):
    """The random numbers of a choice, everywhere in a batch or at one observation."""

    policy_noise: jax.Array  # [..., A] standard normal; 0: the new policy's mode
    selection_uniform: jax.Array  # [...] in [0, 1); EVEN: the better action


class Choice(NamedTuple):
    """What was chosen, and of what."""

    action: jax.Array  # [..., A] a~, not clipped
    candidates: jax.Array  # [2, ..., A] a_1 and a_2
    logits: jax.Array  # [2, ...] kappa q
    is_new: jax.Array  # [...] bool: a_2 was chosen


@dataclass(frozen=True)
class PEX(Algorithm[State]):
    """PEX, from any policy; critics and V go on where there are such, else they begin anew."""

    selection_inverse_temperature: float = 10.0  # kappa, which multiplies the values [baselines_hparams.yaml, pex]
    expectile: float = 0.9  # tau [baselines_hparams.yaml, pex]
    inverse_temperature: float = 10.0  # beta, of the advantages [baselines_hparams.yaml, pex]
    advantage_weight_max: float = 100.0  # w_max, of the exponential [baselines_hparams.yaml, pex]
    log_std_min: float = -5.0  # of the new policy's log-std [baselines_hparams.yaml, pex]
    batch_size: int = 256  # rows per update [baselines_hparams.yaml, pex]
    discount: float = 0.99  # gamma [baselines_hparams.yaml, pex]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [baselines_hparams.yaml, pex]
    policy_update_interval: int = 1  # critic updates per actor update [baselines.md 10]
    actor_learning_rate: float = 3e-4  # Adam, constant [baselines_hparams.yaml, pex]
    critic_learning_rate: float = 3e-4  # Adam [baselines_hparams.yaml, pex]
    value_learning_rate: float = 3e-4  # Adam [baselines_hparams.yaml, pex]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of every new network [baselines_hparams.yaml, pex]

    needs = ("actor",)
    gives = ("actor", "offline_actor", "critic", "value", "updates")
    new_policy = True
    policy_kind = "gaussian"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """The policy so far becomes the offline one, beside a fresh one; where PEX was at work, both go on."""
        actor_key, offline_key, critic_key, value_key = jax.random.split(key, 4)
        adam = Adam(self.actor_learning_rate)
        policy = GaussianPolicy(*spec, self.hidden_sizes, tanh_mean=True, log_std_min=self.log_std_min)
        critics, critic_adam = Critics(*spec, self.hidden_sizes), Adam(self.critic_learning_rate)
        value = MLP((spec.observation_dim, *self.hidden_sizes, 1))
        expanded = "offline_actor" in models
        return State(
            actor=Model.take(models if expanded else {}, "actor", policy, adam, actor_key),
            offline_actor=Model.take(
                models, "offline_actor" if expanded else "actor", policy, adam, offline_key
            ).frozen(),
            critic=Model.take(models, "critic", critics, critic_adam, critic_key, target=True),
            value=Model.take(models, "value", value, Adam(self.value_learning_rate), value_key),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> Draws:
        """Those of the actions that the new policy learns from."""
        return _drawn(key, (self.batch_size,), spec.action_dim)

    def update(self, s: State, batch: Batch, draws: Draws, policy_step: bool) -> tuple[State, Metrics]:
        """V, critics, targets; on policy steps the new policy, by what all of these have become."""
        critic, value, _, metrics = learn_values(
            s, batch, self.expectile, self.discount, self.target_update_rate
        )
        s = replace(s, critic=critic, value=value, updates=s.updates + 1)
        if not policy_step:
            return s, metrics
        choice = self.choose(s, batch.obs, draws)
        advantage = critic.slow(batch.obs, choice.action).min(0) - value(batch.obs)[..., 0]  # [B]
        weight = jnp.minimum(jnp.exp(self.inverse_temperature * advantage), self.advantage_weight_max)  # [B]

        def actor_loss(actor: Model) -> tuple[jax.Array, jax.Array]:
            mean, log_std = actor(batch.obs)  # [B, A], [A]
            log_density = gaussian_log_density(choice.action, mean, log_std).sum(-1)  # [B]
            return -(weight * log_density).mean(), jnp.exp(log_std).mean()

        actor, loss, std = s.actor.descend(actor_loss)
        metrics |= {
            "actor_loss": loss,
            "num_clipped_weights": (weight >= self.advantage_weight_max).sum().astype(weight.dtype),
            "new_policy_fraction": choice.is_new.mean(),
            "policy_std_mean": std,
        }
        return replace(s, actor=actor), metrics

    def choose(self, s: State, obs: jax.Array, draws: Draws) -> Choice:
        """a~ at `obs` [..., S]."""
        greedy = action_of(s.offline_actor, obs, jnp.zeros_like(draws.policy_noise))
        mean, log_std = s.actor(obs)
        candidates = jnp.stack([greedy, mean + jnp.exp(log_std) * draws.policy_noise])  # [2, ..., A]
        logits = self.selection_inverse_temperature * s.critic(jnp.stack([obs, obs]), candidates).min(0)  # [2, ...]
        is_new = draws.selection_uniform >= jax.nn.softmax(logits, 0)[0]  # [...]
        return Choice(jnp.where(is_new[..., None], candidates[1], candidates[0]), candidates, logits, is_new)

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """a~; without exploration the better one of both modes. In [-1, 1]."""
        draws = _drawn(key, (), s.actor.net.action_dim) if explore else _greedy(obs, s.actor.net.action_dim)
        return jnp.clip(self.choose(s, obs, draws).action, -1, 1)

    def export(self, s: State) -> Models:
        """Both policies, critics, value and the count of updates."""
        return {
            "actor": s.actor,
            "offline_actor": s.offline_actor,
            "critic": s.critic,
            "value": s.value,
            "updates": s.updates,
        }

    def diagnose(self, s: State, batch: Batch) -> Metrics:
        """Q and V on data, and how often the new policy's mode is the better action."""
        choice = self.choose(s, batch.obs, _greedy(batch.obs, s.actor.net.action_dim))
        return {
            "critic_1_probe_mean": s.critic(batch.obs, batch.action)[0].mean(),
            "value_probe_mean": s.value(batch.obs)[..., 0].mean(),
            "new_policy_probe_fraction": choice.is_new.mean(),
        }


def _drawn(key: jax.Array, rows: tuple[int, ...], action_dim: int) -> Draws:
    """Random numbers of choices at `rows` observations."""
    noise_key, uniform_key = jax.random.split(key)
    return Draws(jax.random.normal(noise_key, (*rows, action_dim)), jax.random.uniform(uniform_key, rows))


def _greedy(obs: jax.Array, action_dim: int) -> Draws:
    """No randomness at `obs` [..., S]: the new policy's mode, and the better action."""
    return Draws(jnp.zeros((*obs.shape[:-1], action_dim), obs.dtype), jnp.full(obs.shape[:-1], EVEN, obs.dtype))
