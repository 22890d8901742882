"""PROTO on TD3 (Li et al. 2023, arXiv:2305.15669): TD3 near a reference policy that follows it, its target actor too.

    D    = E mean_dims (pi(s') + clip(sigma eps, -c, c) - pi_ref(s'))^2          one number for the batch
    y    = r + gamma (1 - d) [ min_i Qbar_i(s', pi_ref(s')) - beta_t D ]         no noise on the target's action
    L_Q  = mean_i E (Q_i(s, a) - y)^2
    L_pi = -alpha E Q_2(s, pi(s)) / sg E|Q_2(s, pi(s))| + beta_t E mean_dims (pi(s) - pi_ref(s))^2

L_pi, the target critics and pi_ref every F-th update. On AntMaze y has another action and no beta_t D: see the fields.
Of a Gaussian pi and pi_ref the losses take the mean; the released program asks for that too, yet draws samples. pi_ref
and beta_t: core/proximal.py. Sources: ../spec/baselines.md 12.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.proximal import Proximal, ProximalState
from segue.core.types import Batch, Metrics, Models, Spec
from segue.losses import td_target
from segue.methods.proto_sac import target_value
from segue.nets.networks import Critics
from segue.nets.policies import DeterministicPolicy, GaussianPolicy, action_of


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    actor: Model
    critic: Model  # with target
    proximal: ProximalState
    updates: jax.Array  # [] int32


class Draws(NamedTuple):
    """Random numbers of one update: one from U(0, 1), and standard normal ones."""

    target_critic: jax.Array  # [] which one, where one is chosen at random
    target_noise: jax.Array  # [B, A]
    next_policy_noise: jax.Array  # [B, A] this and the following only where the losses take samples
    next_reference_noise: jax.Array  # [B, A]
    policy_noise: jax.Array  # [B, A]
    reference_noise: jax.Array  # [B, A]


@dataclass(frozen=True)
class ProtoTD3(Algorithm[State]):
    """PROTO's online phase on a policy that acts by its mean, and its critics."""

    proximal: Proximal = Proximal()
    form: Literal["gaussian", "deterministic"] = "gaussian"  # of the policy [XQL's; OCR-CFT's is deterministic]
    loss_actions: Literal["mean", "sample"] = "mean"  # of a Gaussian policy [baselines.md 12: the paper's intent]
    target_action: Literal["reference", "noisy_actor"] = "reference"  # in y [baselines.md 12; the other on AntMaze]
    target_critic: Literal["min", "random"] = "min"  # in y [baselines.md 12; one at random on AntMaze]
    backup_distance: bool = True  # beta_t D in y [baselines.md 12; off on AntMaze]
    alpha: float = 2.5  # weight of the Q term [baselines.md 12]
    batch_size: int = 256  # rows per update [baselines.md 12]
    discount: float = 0.99  # gamma [baselines.md 12]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [baselines.md 12]
    target_noise_std: float = 0.2  # sigma [baselines.md 12]
    target_noise_clip: float = 0.5  # c [baselines.md 12]
    exploration_noise: float = 0.2  # std added to executed actions [baselines.md 12]
    exploration_noise_clip: float = 0.5  # largest such noise [baselines.md 12]
    policy_update_interval: int = 2  # F: critic updates per actor and target update [baselines.md 12]
    actor_learning_rate: float = 3e-4  # Adam [baselines.md 12]
    critic_learning_rate: float = 3e-4  # Adam [baselines.md 12]
    hidden_sizes: tuple[int, ...] = (256, 256)  # where none are continued [baselines.md 12]
    critic_layer_norm: bool = True  # LayerNorm in the critics, where none are continued [baselines.md 12]

    gives = ("actor", "critic", "proximal_reference", "proximal_origin", "updates")

    @property
    def policy_kind(self) -> str:
        """Of the two forms."""
        return self.form

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """What earlier phases made goes on, the actor under a fresh optimizer unless PROTO itself goes on."""
        actor_key, critic_key = jax.random.split(key)
        policy: GaussianPolicy | DeterministicPolicy = DeterministicPolicy(*spec, self.hidden_sizes)
        if self.form == "gaussian":
            policy = GaussianPolicy(*spec, self.hidden_sizes, tanh_mean=True)
        critics = Critics(*spec, self.hidden_sizes, self.critic_layer_norm)
        resumed, updates = self.proximal.resumed(models, self.form), models.get("updates", jnp.int32(0))
        adam = Adam(self.actor_learning_rate)
        actor = Model.take(models, "actor", policy, adam, actor_key, keep_moments=resumed)
        return State(
            actor=replace(actor, target=None),  # the reference takes the place of an offline method's target actor
            critic=Model.take(models, "critic", critics, Adam(self.critic_learning_rate), critic_key, target=True),
            proximal=self.proximal.init(models, actor, updates),
            updates=updates,
        )

    def draw(self, key: jax.Array, spec: Spec) -> Draws:
        """All noises, and the choice of a critic."""
        noise_key, critic_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (5, self.batch_size, spec.action_dim))
        return Draws(jax.random.uniform(critic_key), *noise)

    def action(self, policy: Model, obs: jax.Array, noise: jax.Array) -> jax.Array:
        """What the losses take for the policy's action [B, A]; a sample is not clipped to the box (golden record)."""
        if self.form == "deterministic":
            return policy(obs)
        mean, log_std = policy(obs)
        return mean if self.loss_actions == "mean" else mean + jnp.exp(log_std) * noise

    def backup(self, s: State, next_obs: jax.Array, draws: Draws) -> tuple[jax.Array, jax.Array]:
        """The action [B, A] whose value y holds, and D []."""
        shift = jnp.clip(self.target_noise_std * draws.target_noise, -self.target_noise_clip, self.target_noise_clip)
        noisy = self.action(s.actor, next_obs, draws.next_policy_noise) + shift
        kept = self.action(s.proximal.policy, next_obs, draws.next_reference_noise)
        action = kept if self.target_action == "reference" else jnp.clip(noisy, -1, 1)
        return action, jnp.square(noisy - kept).mean()

    def update(self, s: State, batch: Batch, draws: Draws, policy_step: bool) -> tuple[State, Metrics]:
        """Critics; on policy steps also the actor against the new second critic, the targets and the reference."""
        beta = self.proximal.weight(s.proximal, s.updates)  # []
        action, distance = self.backup(s, batch.next_obs, draws)
        values = s.critic.slow(batch.next_obs, action)  # [critics, B]
        next_value = target_value(values, self.target_critic, draws.target_critic)  # [B]
        if self.backup_distance:
            next_value = next_value - beta * distance
        y = td_target(batch, self.discount, next_value)  # [B]

        def critic_loss(critic: Model) -> tuple[jax.Array, jax.Array]:
            q = critic(batch.obs, batch.action)  # [critics, B]
            return jnp.square(q - y).mean(), q[0].mean()

        critic, loss, q_mean = s.critic.descend(critic_loss)
        metrics = {"critic_loss": loss, "critic_1_mean": q_mean, "proximal_weight": beta}
        s = replace(s, critic=critic, updates=s.updates + 1)
        if not policy_step:
            return s, metrics
        kept = self.action(s.proximal.policy, batch.obs, draws.reference_noise)  # [B, A]

        def actor_loss(actor: Model) -> tuple[jax.Array, jax.Array]:
            action = self.action(actor, batch.obs, draws.policy_noise)  # [B, A]
            q = critic(batch.obs, action)[-1]  # [B]
            scale = jax.lax.stop_gradient(jnp.abs(q).mean())
            distance = jnp.square(action - kept).mean()
            return -self.alpha * q.mean() / scale + beta * distance, distance

        actor, loss, distance = s.actor.descend(actor_loss)
        critic, proximal = critic.track(self.target_update_rate), self.proximal.followed(s.proximal, actor)
        metrics |= {"actor_loss": loss, "reference_distance": distance}
        return replace(s, actor=actor, critic=critic, proximal=proximal), metrics

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """pi(s), or its mean, with clipped Gaussian noise while exploring; in [-1, 1]."""
        noise = jax.random.normal(key, (s.actor.net.action_dim,), obs.dtype)
        action = action_of(s.actor, obs, jnp.zeros_like(noise))
        if not explore:
            return action
        clip = self.exploration_noise_clip
        return jnp.clip(action + jnp.clip(self.exploration_noise * noise, -clip, clip), -1, 1)

    def export(self, s: State) -> Models:
        """Actor, critics, reference and the count of updates."""
        own = {"actor": s.actor, "critic": s.critic, "updates": s.updates}
        return own | self.proximal.export(s.proximal)

    def diagnose(self, s: State, batch: Batch) -> Metrics:
        """Q on data."""
        return {"critic_1_probe_mean": s.critic(batch.obs, batch.action)[0].mean()}
