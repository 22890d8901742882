"""PROTO on SAC (Li et al. 2023, arXiv:2305.15669): soft actor-critic near a reference policy that follows it.

    f    = log pi(a|s) - log pi_ref(a|s)                        a ~ pi(.|s)
    y    = r + gamma (1 - d) [ min_i Qbar_i(s', a') - alpha log pi(a'|s') - beta_t f' ]        a' ~ pi(.|s')
    L_Q  = mean_i E (Q_i(s, a) - y)^2
    L_pi = E [ -mean_i Q_i(s, a) + alpha log pi(a|s) + beta_t f ]
    L_alpha = alpha E [ -log pi(a|s) - H ]                      in log alpha

pi_ref and beta_t: core/proximal.py. The policy's samples are squashed or, as in the paper, not; these are clipped to
the box where they are executed, not in the losses (golden record). Sources: ../spec/baselines.md 12.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model, Scalar
from segue.core.proximal import Proximal, ProximalState
from segue.core.types import Batch, Metrics, Models, Spec
from segue.losses import td_target
from segue.nets.networks import Critics
from segue.nets.policies import (
    GaussianPolicy,
    TanhGaussianPolicy,
    action_of,
    gaussian_log_density,
    tanh_gaussian_log_density,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    actor: Model
    critic: Model  # with target
    temperature: Model  # log alpha
    proximal: ProximalState
    updates: jax.Array  # [] int32


class Draws(NamedTuple):
    """Random numbers of one update: one from U(0, 1), and standard normal ones."""

    target_critic: jax.Array  # [] which one, where one is chosen at random
    next_policy_noise: jax.Array  # [B, A]
    policy_noise: jax.Array  # [B, A]


def target_value(values: jax.Array, rule: Literal["min", "random"], uniform: jax.Array) -> jax.Array:
    """Of the target critics' values [critics, B] the smallest [B], or all of the one that `uniform` [] picks."""
    if rule == "min":
        return values.min(0)
    return values[(uniform * values.shape[0]).astype(int)]


@dataclass(frozen=True)
class ProtoSAC(Algorithm[State]):
    """PROTO's online phase on a stochastic policy and its critics."""

    proximal: Proximal = Proximal()
    form: Literal["gaussian", "tanh_gaussian"] = "gaussian"  # of the policy [the paper's; OCR-CFT's is squashed]
    backup_entropy: bool = True  # alpha log pi and beta_t f in y also [baselines.md 12; off on AntMaze]
    target_critic: Literal["min", "random"] = "min"  # in y [baselines.md 12; one at random on AntMaze]
    initial_temperature: float = 0.01  # alpha at the start [baselines.md 12]
    target_entropy_per_dimension: float = -0.5  # H = this times A [baselines.md 12]
    batch_size: int = 256  # rows per update [baselines.md 12]
    discount: float = 0.99  # gamma [baselines.md 12]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [baselines.md 12]
    policy_update_interval: int = 1  # critic updates per actor update [baselines.md 12]
    actor_learning_rate: float = 3e-4  # Adam [baselines.md 12]
    critic_learning_rate: float = 3e-4  # Adam [baselines.md 12]
    temperature_learning_rate: float = 3e-4  # Adam on log alpha [baselines.md 12]
    hidden_sizes: tuple[int, ...] = (256, 256)  # where none are continued [baselines.md 12]
    critic_layer_norm: bool = True  # LayerNorm in the critics, where none are continued [baselines.md 12]

    gives = ("actor", "critic", "temperature", "proximal_reference", "proximal_origin", "updates")

    @property
    def policy_kind(self) -> str:
        """Of the two forms."""
        return self.form

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """What earlier phases made goes on, the actor under a fresh optimizer unless PROTO itself goes on."""
        actor_key, critic_key = jax.random.split(key)
        policy: GaussianPolicy | TanhGaussianPolicy = TanhGaussianPolicy(*spec, self.hidden_sizes)
        if self.form == "gaussian":
            policy = GaussianPolicy(*spec, self.hidden_sizes, tanh_mean=True)
        critics = Critics(*spec, self.hidden_sizes, self.critic_layer_norm)
        log_alpha, adam = Scalar(math.log(self.initial_temperature)), Adam(self.actor_learning_rate)
        resumed, updates = self.proximal.resumed(models, self.form), models.get("updates", jnp.int32(0))
        actor = Model.take(models, "actor", policy, adam, actor_key, keep_moments=resumed)
        return State(
            actor=actor,
            critic=Model.take(models, "critic", critics, Adam(self.critic_learning_rate), critic_key, target=True),
            temperature=Model.take(models, "temperature", log_alpha, Adam(self.temperature_learning_rate), key),
            proximal=self.proximal.init(models, actor, updates),
            updates=updates,
        )

    def draw(self, key: jax.Array, spec: Spec) -> Draws:
        """The noise of both policy samples, and the choice of a critic."""
        noise_key, critic_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (2, self.batch_size, spec.action_dim))
        return Draws(jax.random.uniform(critic_key), *noise)

    def sample(
        self, actor: Model, reference: Model, obs: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """An action of the actor [B, A], its log-density and f [B], through all of which gradients reach the actor."""
        density = gaussian_log_density if self.form == "gaussian" else tanh_gaussian_log_density
        mean, log_std = actor(obs)
        x = mean + jnp.exp(log_std) * noise  # [B, A], before the tanh if there is one
        log_prob = density(x, mean, log_std).sum(-1)  # [B]
        action = x if self.form == "gaussian" else jnp.tanh(x)
        return action, log_prob, log_prob - density(x, *reference(obs)).sum(-1)

    def update(self, s: State, batch: Batch, draws: Draws, policy_step: bool) -> tuple[State, Metrics]:
        """Critics and targets; on policy steps the actor against the new critics, the temperature, the reference."""
        alpha, reference = jnp.exp(s.temperature()), s.proximal.policy  # []
        beta = self.proximal.weight(s.proximal, s.updates)  # []
        action, log_prob, excess = self.sample(s.actor, reference, batch.next_obs, draws.next_policy_noise)
        values = s.critic.slow(batch.next_obs, action)  # [critics, B]
        next_value = target_value(values, self.target_critic, draws.target_critic)  # [B]
        if self.backup_entropy:
            next_value = next_value - alpha * log_prob - beta * excess
        y = td_target(batch, self.discount, next_value)  # [B]

        def critic_loss(critic: Model) -> tuple[jax.Array, jax.Array]:
            q = critic(batch.obs, batch.action)  # [critics, B]
            return jnp.square(q - y).mean(), q[0].mean()

        critic, loss, q_mean = s.critic.descend(critic_loss)
        metrics = {"critic_loss": loss, "critic_1_mean": q_mean, "proximal_weight": beta}
        s = replace(s, critic=critic.track(self.target_update_rate), updates=s.updates + 1)
        if not policy_step:
            return s, metrics

        def actor_loss(actor: Model) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            action, log_prob, excess = self.sample(actor, reference, batch.obs, draws.policy_noise)
            q = critic(batch.obs, action).mean(0)  # [B]
            return (-q + alpha * log_prob + beta * excess).mean(), (log_prob.mean(), excess.mean())

        actor, loss, (log_prob, excess) = s.actor.descend(actor_loss)
        slack = -log_prob - self.target_entropy_per_dimension * batch.action.shape[-1]  # [] entropy above H
        temperature, alpha_loss, _ = s.temperature.descend(lambda log_alpha: (jnp.exp(log_alpha()) * slack, None))
        s = replace(s, actor=actor, temperature=temperature, proximal=self.proximal.followed(s.proximal, actor))
        metrics |= {"actor_loss": loss, "entropy": -log_prob, "temperature": alpha}
        return s, metrics | {"temperature_loss": alpha_loss, "reference_divergence": excess}

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """A sample while exploring, else the mean, or its tanh; in [-1, 1]."""
        noise = jax.random.normal(key, (s.actor.net.action_dim,), obs.dtype)
        return action_of(s.actor, obs, noise if explore else jnp.zeros_like(noise))

    def export(self, s: State) -> Models:
        """Actor, critics, temperature, reference and the count of updates."""
        own = {"actor": s.actor, "critic": s.critic, "temperature": s.temperature, "updates": s.updates}
        return own | self.proximal.export(s.proximal)

    def diagnose(self, s: State, batch: Batch) -> Metrics:
        """Q on data."""
        return {"critic_1_probe_mean": s.critic(batch.obs, batch.action)[0].mean()}
