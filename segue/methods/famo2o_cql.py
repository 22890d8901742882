"""FamO2O on CQL: a family of policies, and a balance between entropy and values state by state (Wang et al. 2023,
arXiv:2310.17966; ../spec/baselines.md 8b).

CQL (arXiv:2006.04779) whose policy is told the balance coefficient c that weighs Q in its own loss, and a second
policy g that chooses c at each state by the values alone:

    L_pi    = E [ alpha log pi(a~|s, c) - c min_i Q_i(s, a~) ]     c ~ U(low, high) offline, c ~ g(.|s) online
    L_g     = -E min_i Q_i(s, a^)     a^ ~ pi(.|s, c_g), c_g ~ g(.|s), through both draws; no gradient reaches pi
    L_alpha = -E [ log alpha (log pi(a~|s, c) + H) ]
    y       = r + gamma (1 - d) min_i Qbar_i(s', a')               a' ~ pi(.|s', c_g): g of the *current* state
    Z_i     = logsumexp { Q_i(s, u) + A ln 2, Q_i(s, a') - log pi(a'|s', c_g), Q_i(s, a) - log pi(a|s, c) }
              over K uniform u, K a' ~ pi(.|s', c_g), K a ~ pi(.|s, c)
    L_Q     = sum_i E [ (Q_i(s, a_data) - y)^2 + beta (Z_i - Q_i(s, a_data)) ]

All losses use the parameters from before the update. It acts by pi(.|s, c) with c the mode of g(.|s). The two
policies' losses share no parameter, so that one optimizer serves both. The released program maps what g draws to
(2 low - high, high) instead of (low, high), where a negative c flips the sign of Q: `released_range`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model, Scalar, parts_for_cache
from segue.core.types import Batch, Metrics, Models, Spec
from segue.losses import lowest, td_target
from segue.nets.balance import CODE_WIDTH, PolicyFamily
from segue.nets.networks import Critics, XavierUniform
from segue.nets.policies import TanhGaussianPolicy, act_tanh_gaussian, sample_tanh_gaussian


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    actor: Model  # pi and g
    critic: Model  # with target
    temperature: Model  # log alpha
    updates: jax.Array  # [] int32


class Draws(NamedTuple):
    """Standard normal noises, but for what is uniform; K sampled actions."""

    uniform: jax.Array  # [B] in [0, 1), of the coefficient offline
    coefficient_noise: jax.Array  # [B] of c_g
    policy_noise: jax.Array  # [B, A]
    balance_noise: jax.Array  # [B, A] of the action that g is judged by
    target_noise: jax.Array  # [B, A]
    uniform_actions: jax.Array  # [B, K, A]
    current_policy_noise: jax.Array  # [B, K, A]
    next_policy_noise: jax.Array  # [B, K, A]


class Rows(NamedTuple):
    """What the critics' loss reads of each row."""

    obs: jax.Array  # [B, S]
    actions: jax.Array  # [B, 3 K + 1, A] sampled ones, then the data's
    log_density: jax.Array  # [B, 3 K] of the sampled ones
    y: jax.Array  # [B]


@dataclass(frozen=True)
class FamO2OCQL(Algorithm[State]):
    """FamO2O on CQL, offline and online."""

    coefficient_source: Literal["uniform", "balance"] = "uniform"  # c of L_pi offline; online by g [baselines.md 8b]
    coefficient_min: float = 0.5  # low [baselines_hparams.yaml, famo2o_cql]
    coefficient_max: float = 1.5  # high [baselines_hparams.yaml, famo2o_cql]
    released_range: bool = False  # g's is (2 low - high, high) [baselines.md 8b: a fault; on as released]
    conservative_weight: float = 1.0  # beta [baselines_hparams.yaml, famo2o_cql]
    num_sampled_actions: int = 10  # K [baselines_hparams.yaml, cql_young_geng]
    target_entropy_per_dimension: float = -1.0  # H = this times A [baselines.md 3]
    batch_size: int = 256  # rows per update [baselines_hparams.yaml, cql_young_geng]
    discount: float = 0.99  # gamma [baselines_hparams.yaml, cql_young_geng]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [baselines_hparams.yaml, cql_young_geng]
    policy_update_interval: int = 1  # critic updates per step of both policies [baselines.md 3: one]
    actor_learning_rate: float = 3e-4  # Adam, of pi, g and the temperature [baselines_hparams.yaml, famo2o_cql]
    critic_learning_rate: float = 3e-4  # Adam [baselines_hparams.yaml, cql_young_geng]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of pi [baselines_hparams.yaml, cql_young_geng]
    balance_hidden_sizes: tuple[int, ...] = (256, 256)  # of g [ours: as pi's]
    critic_hidden_sizes: tuple[int, ...] = (256, 256)  # [baselines_hparams.yaml, cql_young_geng]
    critic_layer_norm: bool = True  # LayerNorm in the critics [baselines_hparams.yaml, famo2o_cql]

    gives = ("actor", "critic", "temperature", "updates")
    policy_kind = "tanh_gaussian"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Fresh or continued networks; a continued "actor" has to be a family."""
        actor_key, critic_key = jax.random.split(key)
        low, high, last = self.coefficient_min, self.coefficient_max, XavierUniform(1e-2)
        sizes, own = (spec.observation_dim + CODE_WIDTH, spec.action_dim), (spec.observation_dim, 1)
        policy = TanhGaussianPolicy(*sizes, self.hidden_sizes, trained_scale=True, last_initializer=last)
        balance = TanhGaussianPolicy(*own, self.balance_hidden_sizes, trained_scale=True, last_initializer=last)
        actor = PolicyFamily(policy, balance, 2 * low - high if self.released_range else low, high)
        critics = Critics(*spec, self.critic_hidden_sizes, self.critic_layer_norm)
        actor_adam, critic_adam = Adam(self.actor_learning_rate), Adam(self.critic_learning_rate)
        return State(
            actor=Model.take(models, "actor", actor, actor_adam, actor_key),
            critic=Model.take(models, "critic", critics, critic_adam, critic_key, target=True),
            temperature=Model.take(models, "temperature", Scalar(0.0), actor_adam, key),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> Draws:
        """Coefficients, noise and uniform actions."""
        uniform_key, coefficient_key, normal_key, action_key = jax.random.split(key, 4)
        b, k, a = self.batch_size, self.num_sampled_actions, spec.action_dim
        noise = jax.random.normal(normal_key, (b, 3 + 2 * k, a))
        return Draws(
            uniform=jax.random.uniform(uniform_key, (b,)),
            coefficient_noise=jax.random.normal(coefficient_key, (b,)),
            policy_noise=noise[:, 0],
            balance_noise=noise[:, 1],
            target_noise=noise[:, 2],
            uniform_actions=jax.random.uniform(action_key, (b, k, a), minval=-1.0),
            current_policy_noise=noise[:, 3 : 3 + k],
            next_policy_noise=noise[:, 3 + k :],
        )

    def update(self, s: State, batch: Batch, draws: Draws, policy_step: bool) -> tuple[State, Metrics]:
        """Every loss from the old parameters: critics and targets; on policy steps pi, g and the temperature."""
        net: PolicyFamily = s.actor.net
        family = s.actor.params["family"]
        chosen, _ = net.coefficient(s.actor.params["balance"], batch.obs, draws.coefficient_noise)  # [B] c_g
        c = chosen
        if self.coefficient_source == "uniform":
            c = self.coefficient_min + (self.coefficient_max - self.coefficient_min) * draws.uniform  # [B]
        current = net.member(family, batch.obs, c)  # mean and log-std [B, A]
        following = net.member(family, batch.next_obs, chosen)  # with g of the state before
        next_action, _ = sample_tanh_gaussian(*following, draws.target_noise)
        next_value = s.critic.slow(batch.next_obs, next_action).min(0)  # [B]
        y = td_target(batch, self.discount, next_value)

        rows = Rows(batch.obs, *samples(batch, draws, current, following), y)
        parts = parts_for_cache(len(y), rows.actions.shape[1] * max(self.critic_hidden_sizes))
        critic, loss, metrics = s.critic.descend_in_parts(self.critic_loss, rows, parts)
        metrics |= {"critic_loss": loss, "target_value_mean": next_value.mean(), "coefficient_mean": c.mean()}
        after = replace(s, critic=critic.track(self.target_update_rate), updates=s.updates + 1)
        if not policy_step:
            return after, metrics
        alpha = jnp.exp(s.temperature())

        def actor_loss(actor: Model) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
            of_family, log_prob = self.family_loss(actor, s.critic, batch, c, alpha, draws)
            of_balance = self.balance_loss(actor, s.critic, batch, draws)
            return of_family + of_balance, (of_family, of_balance, log_prob)

        actor, _, (of_family, of_balance, log_prob) = s.actor.descend(actor_loss)
        slack = log_prob + self.target_entropy_per_dimension * batch.action.shape[-1]
        temperature, _, _ = s.temperature.descend(lambda log_alpha: (-log_alpha() * slack, None))
        metrics |= {
            "actor_loss": of_family,
            "balance_loss": of_balance,
            "policy_log_prob_mean": log_prob,
            "entropy_temperature": alpha,
        }
        return replace(after, actor=actor, temperature=temperature), metrics

    def family_loss(
        self, actor: Model, critic: Model, batch: Batch, c: jax.Array, alpha: jax.Array, draws: Draws
    ) -> tuple[jax.Array, jax.Array]:
        """L_pi at coefficients c [B], and the mean of log pi(a~|s, c)."""
        mean, log_std = actor.net.member(actor.params["family"], batch.obs, c)  # [B, A]
        action, log_prob = sample_tanh_gaussian(mean, log_std, draws.policy_noise)  # [B, A], [B]
        q = lowest(critic(batch.obs, action))  # [B]
        return (alpha * log_prob - c * q).mean(), log_prob.mean()

    def balance_loss(self, actor: Model, critic: Model, batch: Batch, draws: Draws) -> jax.Array:
        """L_g."""
        family = jax.lax.stop_gradient(actor.params["family"])
        c, _ = actor.net.coefficient(actor.params["balance"], batch.obs, draws.coefficient_noise)  # [B]
        mean, log_std = actor.net.member(family, batch.obs, c)  # [B, A]
        action, _ = sample_tanh_gaussian(mean, log_std, draws.balance_noise)
        return -lowest(critic(batch.obs, action)).mean()

    def critic_loss(self, critic: Model, rows: Rows) -> tuple[jax.Array, Metrics]:
        """L_Q, and what is worth knowing of each critic. All are means over rows."""
        every = critic.net.of_several(critic.params, rows.obs, rows.actions)  # [2, B, 3 K + 1]
        q, data = every[..., :-1], every[..., -1]  # [2, B, 3 K], [2, B]
        gap = (jax.nn.logsumexp(q - rows.log_density, axis=-1) - data).mean(-1)  # [2]
        error = jnp.square(data - rows.y).mean(-1)  # [2]
        metrics: Metrics = {}
        for i in (0, 1):
            metrics |= {
                f"critic_{i + 1}_mean": data[i].mean(),
                f"critic_{i + 1}_td_loss": error[i],
                f"critic_{i + 1}_conservative_gap_mean": gap[i],
            }
        return (error + self.conservative_weight * gap).sum(), metrics

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """A sample while exploring, else the mode, of pi(.|s, c) at g's mode."""
        mean, log_std = s.actor(obs)
        return act_tanh_gaussian(mean, log_std, key, explore)

    def export(self, s: State) -> Models:
        """Both policies as one, critics, temperature and the count of updates."""
        return {name: getattr(s, name) for name in self.gives}

    def diagnose(self, s: State, batch: Batch) -> Metrics:
        """Q on data, and where g lies in its range."""
        c, _ = s.actor.net.coefficient(s.actor.params["balance"], batch.obs, jnp.zeros_like(batch.reward))
        q = s.critic(batch.obs, batch.action)[0]
        return {"critic_1_probe_mean": q.mean(), "coefficient_probe_mean": c.mean(), "coefficient_probe_std": c.std()}


def samples(batch: Batch, draws: Draws, current: Any, following: Any) -> tuple[jax.Array, jax.Array]:
    """The 3 K sampled actions and the data's [B, 3 K + 1, A], and the samples' log-densities [B, 3 K].

    `current` and `following` are mean and log-std [B, A] at the state and at the next one.
    """
    even = jnp.full(draws.uniform_actions.shape[:2], -batch.action.shape[-1] * jnp.log(2.0))
    groups, densities = [draws.uniform_actions], [even]
    for (mean, log_std), noise in ((following, draws.next_policy_noise), (current, draws.current_policy_noise)):
        action, log_prob = sample_tanh_gaussian(mean[:, None], log_std[:, None], noise)
        groups.append(action)
        densities.append(log_prob)
    return jnp.concatenate([*groups, batch.action[:, None]], axis=1), jnp.concatenate(densities, axis=1)
