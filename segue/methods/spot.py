"""SPOT: supported policy optimization (Wu et al. 2022, arXiv:2202.06239; ../spec/baselines.md 7). TD3 in the support.

    y    = r + gamma (1 - d) min_i Qbar_i(s', a~)        a~ = clip(pibar(s') + clip(sigma eps, -c, c), -1, 1)
    L_Q  = sum_i E (Q_i(s, a) - y)^2
    L_pi = -E Q_1(s, pi(s)) / sg E|Q_1(s, pi(s))| + lambda E p(s, pi(s))
    p    = mean_z mean_A (dec(s, z) - a)^2 + beta KL(q(z|s,a), N(0, 1))        z ~ q(.|s,a)
    p    = -log mean_z [ N(a; dec(s, z), beta / 4) N(z; 0, 1) / q(z|s,a) ]     the tighter bound, `iwae`
    online: lambda max(floor, 1 - N / steps) after N online updates

p bounds -log of the data's density at a, by the frozen auto-encoder of `spot_vae`; its gradient reaches pi through
encoder and decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, Models, PyTree, Spec
from segue.methods.td3 import critic_step
from segue.nets.networks import BoundedUniform, Critics, dropout_masks
from segue.nets.policies import DeterministicPolicy
from segue.nets.vae import ActionVAE, code_divergence

OFFLINE = -1  # `online_origin` of a phase that continues nothing


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes, and the auto-encoder, which it does not."""

    actor: Model  # with target
    critic: Model  # with target
    vae: PyTree  # its parameters
    online_origin: jax.Array  # [] int32 updates made before the online phase, or OFFLINE
    updates: jax.Array  # [] int32


class Draws(NamedTuple):
    """Random numbers of one update."""

    target_noise: jax.Array  # [B, A] standard normal
    code_noise: jax.Array  # [B, n, Z] standard normal
    dropout: tuple[jax.Array, ...]  # 1 for each output [B, H] of the actor's hidden layers that is kept; () without


@dataclass(frozen=True)
class SPOT(Algorithm[State]):
    """TD3 with a density penalty. A phase that continues another policy's is the online one: lambda cools there."""

    support_weight: float = 0.1  # lambda, the strength of the penalty [baselines_hparams.yaml; 0.025 to 1 by dataset]
    support_weight_floor: float = 0.2  # online its share of lambda is never below this [baselines.md 7]
    cooling_steps: int | None = 1_000_000  # online updates in which that share falls to 0; None: it stays 1 [as above]
    density_samples: int = 1  # codes per action in the penalty [baselines.md 7]
    iwae: bool = False  # the tighter, importance-weighted bound of the density [Wu et al. 2022, App.; off in spec 7]
    vae_kl_weight: float = 0.5  # beta, in the auto-encoder's training and in the penalty [baselines.md 7]
    vae_hidden_sizes: tuple[int, ...] = (750, 750)  # of the auto-encoder [baselines.md 7]
    batch_size: int = 256  # rows per update [baselines_hparams.yaml]
    discount: float = 0.99  # gamma [baselines_hparams.yaml]
    target_update_rate: float = 0.005  # Polyak rate of all targets [baselines_hparams.yaml]
    target_noise_std: float = 0.2  # sigma of the target action's noise [baselines_hparams.yaml]
    target_noise_clip: float = 0.5  # c [baselines_hparams.yaml]
    online_action_noise: float = 0.1  # std of what is added to executed actions online [baselines_hparams.yaml]
    online_action_noise_clip: float = 0.5  # its bound [authors' program; golden record]
    policy_update_interval: int = 2  # critic updates per actor and target update [baselines_hparams.yaml]
    actor_learning_rate: float = 3e-4  # Adam [baselines_hparams.yaml; 1e-4 on AntMaze]
    critic_learning_rate: float = 3e-4  # Adam [baselines_hparams.yaml]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of actor and critics [baselines_hparams.yaml]
    actor_dropout: float = 0.1  # rate in the actor's loss alone [baselines_hparams.yaml; 0 on AntMaze]
    actor_last_bound: float | None = None  # last layer from U(-b, b) [PyTorch's rule; 0.001 on AntMaze]
    critic_last_bound: float | None = None  # last layer from U(-b, b) [PyTorch's rule; 0.003 on AntMaze]

    needs = ("vae",)
    gives = ("actor", "critic", "updates")
    policy_kind = "deterministic"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Fresh or continued actor and critics, their optimizers anew (baselines.md 7)."""
        actor_key, critic_key, vae_key = jax.random.split(key, 3)
        actor_adam, critic_adam = Adam(self.actor_learning_rate), Adam(self.critic_learning_rate)
        policy = DeterministicPolicy(*spec, self.hidden_sizes, _bounded(self.actor_last_bound))
        critics = Critics(*spec, self.hidden_sizes, last_initializer=_bounded(self.critic_last_bound))
        vae = models["vae"].params if "vae" in models else ActionVAE(*spec, self.vae_hidden_sizes).init(vae_key)
        updates = models.get("updates", jnp.int32(0))
        return State(
            actor=Model.take(models, "actor", policy, actor_adam, actor_key, target=True, keep_moments=False),
            critic=Model.take(models, "critic", critics, critic_adam, critic_key, target=True, keep_moments=False),
            vae=vae,
            online_origin=updates if "updates" in models else jnp.int32(OFFLINE),
            updates=updates,
        )

    def draw(self, key: jax.Array, spec: Spec) -> Draws:
        """Noise of the target action and of the codes, and which of the actor's units drop out."""
        target_key, code_key, dropout_key = jax.random.split(key, 3)
        latent_dim = ActionVAE(*spec, self.vae_hidden_sizes).latent_dim
        return Draws(
            target_noise=jax.random.normal(target_key, (self.batch_size, spec.action_dim)),
            code_noise=jax.random.normal(code_key, (self.batch_size, self.density_samples, latent_dim)),
            dropout=dropout_masks(dropout_key, self.actor_dropout, self.batch_size, self.hidden_sizes),
        )

    def update(self, s: State, batch: Batch, draws: Draws, policy_step: bool) -> tuple[State, Metrics]:
        """Critics; on policy steps also the actor against the new critic, and the targets."""
        noise = (draws.target_noise, self.target_noise_std, self.target_noise_clip)
        critic, metrics = critic_step(s, batch, *noise, self.discount)
        s = replace(s, critic=critic, updates=s.updates + 1)
        if not policy_step:
            return s, metrics
        weight = self.weight(s)
        dropout = [mask / (1 - self.actor_dropout) for mask in draws.dropout]

        def actor_loss(actor: Model) -> tuple[jax.Array, jax.Array]:
            action = actor(batch.obs, *dropout)  # [B, A]
            q = critic.net.first(critic.params, batch.obs, action)  # [B]
            penalty = self.penalty(s.vae, batch.obs, action, draws.code_noise)  # [B]
            return -q.mean() / jax.lax.stop_gradient(jnp.abs(q).mean()) + weight * penalty.mean(), penalty

        actor, loss, penalty = s.actor.descend(actor_loss)
        metrics |= {
            "actor_loss": loss,
            "support_weight": weight,
            "support_penalty_mean": penalty.mean(),
            "support_penalty_max": penalty.max(),
        }
        s = replace(s, actor=actor.track(self.target_update_rate), critic=critic.track(self.target_update_rate))
        return s, metrics

    def weight(self, s: State) -> jax.Array:
        """lambda, cooled online; N = 1 on the first online update. []."""
        share = jnp.asarray(1.0)
        if self.cooling_steps is not None:
            online_updates = (s.updates - s.online_origin).astype(share.dtype)
            cooled = jnp.maximum(self.support_weight_floor, 1 - online_updates / self.cooling_steps)
            share = jnp.where(s.online_origin == OFFLINE, share, cooled)
        return self.support_weight * share

    def penalty(self, vae: PyTree, obs: jax.Array, action: jax.Array, noise: jax.Array) -> jax.Array:
        """p(s, a) [B] with the codes that `noise` [B, n, Z] makes."""
        net = ActionVAE(obs.shape[-1], action.shape[-1], self.vae_hidden_sizes)
        decoded, code, mean, log_std = net.apply(vae, obs, action, noise)
        error = jnp.square(decoded - action[:, None])  # [B, n, A]
        if not self.iwae:
            return error.mean((1, 2)) + self.vae_kl_weight * code_divergence(mean, log_std)
        variance = self.vae_kl_weight / 4  # with it -log N + KL is 2 A / beta times the penalty above, and a constant
        log_decoder = -0.5 * (error / variance + math.log(2 * math.pi * variance)).sum(-1)  # [B, n]
        # log N(z; 0, 1) - log q(z|s,a): the constants cancel.
        log_prior_ratio = (0.5 * jnp.square(noise) + log_std[:, None] - 0.5 * jnp.square(code)).sum(-1)
        log_weights = log_decoder + log_prior_ratio
        return math.log(noise.shape[1]) - jax.nn.logsumexp(log_weights, axis=-1)

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """pi(s), with clipped Gaussian noise while exploring."""
        action = s.actor(obs)
        if not explore:
            return action
        bound = self.online_action_noise_clip
        noise = jnp.clip(self.online_action_noise * jax.random.normal(key, action.shape), -bound, bound)
        return jnp.clip(action + noise, -1, 1)

    def export(self, s: State) -> Models:
        """Actor, critics and the count of updates."""
        return {"actor": s.actor, "critic": s.critic, "updates": s.updates}

    def diagnose(self, s: State, batch: Batch) -> Metrics:
        """Q on data."""
        return {"critic_1_probe_mean": s.critic(batch.obs, batch.action)[0].mean()}


def _bounded(bound: float | None) -> BoundedUniform | None:
    return None if bound is None else BoundedUniform(bound)
