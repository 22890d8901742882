"""CQL (Kumar et al. 2020, arXiv:2006.04779), Cal-QL (Nakamoto et al. 2023, arXiv:2303.05479), and SSAR on CQL.

    y      = r + gamma (1 - d) min_i Qbar_i(s', a')            a' ~ pi(.|s'), or the best of K such a' (S8)
    Z_i    = logsumexp { Q_i(s, u) + A ln 2, Q_i(s, a') - log pi(a'|s'), Q_i(s, a) - log pi(a|s) }
             over K uniform u, K a' ~ pi(.|s'), K a ~ pi(.|s)                              (S9; Eq. 4 of CQL, "H")
    D_i    = clip(Z_i - Q_i(s, a_data), lo, hi)
    R_i    = E [ beta D_i ], or with Lagrange multiplier alpha' E [ beta (D_i - gap) ]     (S10)
    L_Q    = sum_i { E (Q_i(s, a_data) - y)^2 + R_i }                                      (S11)
    L_pi   = E [ alpha log pi(a|s) - min_i Q_i(s, a) + kappa |a - a_data|^2 ]              (S7)
    L_alpha = -E [ log alpha (log pi(a|s) + H) ]       L_alpha' = -1/2 sum_i R_i

beta is the constant `conservative_weight`, or SSAR's learned coefficient (arXiv:2505.19923), which asks how likely the
policy makes the data's actions: per dimension, w = max(log pi(a_j), C_10) - C_n (S12, S13). Cal-QL replaces Q of the
policy's actions in Z by max(Q, return-to-go of the data) (Eq. 5.1). A `weighting` (segue.core.weighting) multiplies
each row's squared error, and its D_i if it says so. All losses use the parameters from before the update; only the
coefficient sees the new actor. (Sn): ../spec/ssar.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.coefficient import Coefficient
from segue.core.model import Adam, Model, Scalar, parts_for_cache
from segue.core.types import Batch, Metrics, Models, PyTree, Spec
from segue.core.weighting import Weighting, row_weights
from segue.losses import lowest, td_target
from segue.nets.networks import Critics, Initializer, Orthogonal, XavierUniform, fan_in_uniform
from segue.nets.policies import (
    TanhGaussianPolicy,
    act_tanh_gaussian,
    data_log_density,
    sample_tanh_gaussian,
    tanh_gaussian_log_density,
)

FLOOR_N = 10.0  # the data's log-density is floored at that of ten standard deviations (S13)
THRESHOLD_ACTION_LIMIT = 0.99999  # of the actions at n standard deviations, before their atanh (S12)
THRESHOLD_WIDTH_PER_N = 0.1  # and their largest distance from tanh(mean) (S12)
MULTIPLIER_MAX = 1e6  # of alpha' (S10)

Initialization = Literal["offline", "finetune", "plain"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    actor: Model
    critic: Model  # with target
    temperature: Model  # log alpha
    multiplier: Model  # log alpha'
    beta: Any  # the coefficient's state, () without one
    updates: jax.Array  # [] int32
    weighting: Any = ()  # the weighting's state, () without one


class Draws(NamedTuple):
    """Standard normal noises, but for the uniform actions; K sampled actions."""

    policy_noise: jax.Array  # [B, A]
    target_noise: jax.Array  # [B, 1 or K, A]
    uniform_actions: jax.Array  # [B, K, A]
    current_policy_noise: jax.Array  # [B, K, A]
    next_policy_noise: jax.Array  # [B, K, A]


class Rows(NamedTuple):
    """What the critics' loss reads of each row."""

    obs: jax.Array  # [B, S]
    actions: jax.Array  # [B, 3 K + 1, A] sampled ones, then the data's
    log_density: jax.Array  # [B, 3 K] of the sampled ones
    y: jax.Array  # [B]
    weight: jax.Array  # [B] beta
    bound: Any  # [B] Cal-QL's, or None
    temporal: Any  # [B] the weighting's, of the squared errors, or None


def threshold_log_density(mean: jax.Array, log_std: jax.Array, n: jax.Array | float) -> jax.Array:
    """C_n [..., A]: the smaller log-density of the two actions n standard deviations from the mean (S12)."""
    centre, width = jnp.tanh(mean), THRESHOLD_WIDTH_PER_N * n

    def at(sign: int) -> jax.Array:
        action = jnp.tanh(mean + sign * n * jnp.exp(log_std))
        action = jnp.clip(action, -THRESHOLD_ACTION_LIMIT, THRESHOLD_ACTION_LIMIT)
        return tanh_gaussian_log_density(jnp.arctanh(jnp.clip(action, centre - width, centre + width)), mean, log_std)

    return jnp.minimum(at(1), at(-1))


@dataclass(frozen=True)
class CQL(Algorithm[State]):
    """CQL, offline and online; with `calibrate` Cal-QL, with a coefficient SSAR on CQL."""

    coefficient: Coefficient | None = None
    conservative_weight: float = 10.0  # beta_0 [baselines.md 3: 10 on MuJoCo, 5 on AntMaze]
    calibrate: bool = False  # Cal-QL's bound on Q of the policy's actions [Nakamoto et al. 2023, Eq. 5.1]
    num_sampled_actions: int = 10  # K [baselines.md 3]
    importance_sampling: bool = True  # correct Z for the samples' densities [baselines.md 3: on everywhere]
    conservative_temperature: float = 1.0  # of the log-sum-exp [baselines.md 3]
    max_target_backup: bool = False  # the best of K next actions in the target [baselines.md 3: on in AntMaze]
    backup_entropy: bool = False  # minus alpha log pi in the target [baselines.md 3: off]
    lagrange: bool = False  # learn alpha' so that the gap is lagrange_gap [baselines.md 3: on in AntMaze]
    lagrange_gap: float = 0.8  # of Z over the data's Q, in nats [baselines.md 3, AntMaze]
    gap_clip_min: float | None = None  # lo [baselines.md 3: -200 on AntMaze]
    gap_clip_max: float | None = None  # hi [baselines.md 3: none]
    cloning_weight: float = 0.0  # kappa [ssar.md 2.5: 0.5 for SSAR on AntMaze]
    cloning_warmup_updates: int = 0  # updates whose actor clones instead of maximising Q [0 in all settings]
    automatic_temperature: bool = True  # learn alpha, else it is the multiplier below [baselines.md 3]
    temperature_multiplier: float = 1.0  # of alpha [baselines.md 3]
    target_entropy_per_dimension: float = -1.0  # H = this times A [baselines.md 3]
    batch_size: int = 256  # rows per update [baselines.md 3]
    discount: float = 0.99  # gamma [baselines.md 3]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [baselines.md 3]
    target_update_interval: int = 1  # updates between its steps [ssar_hparams.yaml]
    policy_update_interval: int = 1  # critic updates per actor update [baselines.md 3: one]
    actor_learning_rate: float = 3e-5  # Adam, of the temperature too [baselines.md 3: 3e-5 MuJoCo, 1e-4 AntMaze]
    critic_learning_rate: float = 3e-4  # Adam, of the Lagrange multiplier too [baselines.md 3]
    hidden_sizes: tuple[int, ...] = (256, 256, 256)  # of the actor [baselines.md 3]
    critic_hidden_sizes: tuple[int, ...] = (256, 256, 256)  # [baselines.md 3; five layers on AntMaze]
    second_critic_hidden_sizes: tuple[int, ...] | None = None  # where they differ [released SSAR, ssar.md B23]
    critic_layer_norm: bool = False  # LayerNorm in the critics [off in CQL, on in SSAR (ssar.md B28)]
    initialization: Initialization = "offline"  # orthogonal: critics, all networks, or none [baselines.md 3; baq.md 5]
    weighting: Weighting | None = None

    gives = ("actor", "critic", "temperature", "multiplier", "beta", "updates")
    policy_kind = "tanh_gaussian"

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]  # what it needs depends on the weighting
        """What the weighting reads."""
        return self.weighting.needs if self.weighting else ()

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """Cal-QL reads each row's return-to-go."""
        return ("return_to_go",) if self.calibrate else ()

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Fresh or continued networks."""
        actor_key, critic_key, beta_key = jax.random.split(key, 3)
        everywhere: Initializer = Orthogonal(math.sqrt(2))
        fine, plain = self.initialization == "finetune", self.initialization == "plain"
        policy = TanhGaussianPolicy(
            *spec,
            self.hidden_sizes,
            trained_scale=True,
            initializer=everywhere if fine else fan_in_uniform,
            last_initializer=None if fine else XavierUniform(1e-2),
        )
        critics = Critics(
            *spec,
            self.critic_hidden_sizes,
            self.critic_layer_norm,
            initializer=fan_in_uniform if plain else everywhere,
            last_initializer=None if fine or plain else Orthogonal(1e-2),
            later_hidden_sizes=self.second_critic_hidden_sizes,
        )
        actor_adam, critic_adam = Adam(self.actor_learning_rate), Adam(self.critic_learning_rate)
        beta = models.get("beta", ())
        if self.coefficient and not beta:
            beta = self.coefficient.init(spec, beta_key, self.conservative_weight)
        updates = models.get("updates", jnp.int32(0))
        if "updates" in models and self.coefficient:
            beta = self.coefficient.begin_online(beta, updates)
        return State(
            actor=Model.take(models, "actor", policy, actor_adam, actor_key),
            critic=Model.take(models, "critic", critics, critic_adam, critic_key, target=True),
            temperature=Model.take(models, "temperature", Scalar(0.0), actor_adam, key),
            multiplier=Model.take(models, "multiplier", Scalar(1.0), critic_adam, key),
            beta=beta,
            updates=updates,
            weighting=self.weighting.init(models, spec, key) if self.weighting else (),
        )

    def draw(self, key: jax.Array, spec: Spec) -> Draws:
        """The noise of every sampled action."""
        normal_key, uniform_key = jax.random.split(key)
        b, k, a = self.batch_size, self.num_sampled_actions, spec.action_dim
        targets = k if self.max_target_backup else 1
        noise = jax.random.normal(normal_key, (b, 1 + targets + 2 * k, a))
        policy, target, current, following = jnp.split(noise, [1, 1 + targets, 1 + targets + k], axis=1)
        uniform = jax.random.uniform(uniform_key, (b, k, a), minval=-1.0)
        return Draws(policy[:, 0], target, uniform, current, following)

    def update(self, s: State, batch: Batch, draws: Draws, policy_step: bool) -> tuple[State, Metrics]:
        """Every loss from the old parameters; only the coefficient's from the new actor."""
        alpha = self._alpha(s)
        changed: dict[str, Any] = {"updates": s.updates + 1}
        metrics: Metrics = {"entropy_temperature": alpha}
        if policy_step:
            changed["actor"], current, info = self._actor_step(s, batch, draws, alpha)
            metrics |= info
        else:
            current = s.actor(batch.obs)  # mean and log-std [B, A]
        following = s.actor(batch.next_obs)
        next_value = self._next_value(s, batch, draws, following, alpha)  # [B]
        y = td_target(batch, self.discount, next_value)  # [B]
        actions, log_density = self._samples(batch, draws, current, following)
        if self.coefficient is None:
            weight: jax.Array = jnp.full_like(batch.reward, self.conservative_weight)
        else:
            weight = self.coefficient(s.beta, batch, s.updates + 1)  # [B]
        weights, info = row_weights(self.weighting, s.weighting, batch)
        metrics |= info
        if weights.conservative is not None:
            weight = weight * weights.conservative
        multiplier = jnp.clip(jnp.exp(s.multiplier()), 0, MULTIPLIER_MAX) if self.lagrange else jnp.ones(())

        bound = batch.extras.get("return_to_go")
        rows = Rows(batch.obs, actions, log_density, y, weight, bound, weights.temporal)
        parts = parts_for_cache(len(y), actions.shape[1] * max(self.critic_hidden_sizes))

        def critic_loss(critic: Model, part: Rows) -> tuple[jax.Array, Any]:
            return self._critic_loss(critic, part, multiplier)

        critic, loss, (excess, info) = s.critic.descend_in_parts(critic_loss, rows, parts)
        metrics |= info | {"critic_loss": loss, "target_value_mean": next_value.mean()}
        changed["critic"] = self._track(s, critic)
        if self.lagrange:
            changed["multiplier"], loss = self._multiplier_step(s, excess)
            metrics |= {"lagrange_multiplier": multiplier, "lagrange_loss": loss}
        if policy_step and self.automatic_temperature:
            slack = metrics["policy_log_prob_mean"] + self.target_entropy_per_dimension * batch.action.shape[-1]
            changed["temperature"], loss, _ = s.temperature.descend(lambda log_alpha: (-log_alpha() * slack, None))
            metrics |= {"entropy_temperature_loss": loss}
        s = replace(s, **changed)
        if policy_step and self.coefficient is not None:
            beta, info = self._coefficient_step(s, self.coefficient, batch)
            s, metrics = replace(s, beta=beta), metrics | info
        return s, metrics

    def _alpha(self, s: State) -> jax.Array:
        """[] the temperature."""
        learned = jnp.exp(s.temperature()) if self.automatic_temperature else jnp.ones(())
        return learned * self.temperature_multiplier

    def _actor_step(self, s: State, batch: Batch, draws: Draws, alpha: jax.Array) -> tuple[Model, Any, Metrics]:
        """(S7) against the old critics. Returns the new actor, and the old one's mean and log-std [B, A]."""

        def loss(actor: Model) -> tuple[jax.Array, Any]:
            mean, log_std = actor(batch.obs)  # [B, A]
            action, log_prob = sample_tanh_gaussian(mean, log_std, draws.policy_noise)  # [B, A], [B]
            gain = lowest(s.critic(batch.obs, action))  # [B]
            if self.cloning_warmup_updates:
                cloning = s.updates < self.cloning_warmup_updates
                gain = jnp.where(cloning, self._log_likelihood(mean, log_std, batch), gain)
            value = (alpha * log_prob - gain).mean()
            if self.cloning_weight:
                value += self.cloning_weight * jnp.square(action - batch.action).sum(-1).mean()
            distance = jnp.sqrt(jnp.square(action - batch.action).mean())
            return value, (mean, log_std, log_prob, distance)

        actor, value, (mean, log_std, log_prob, distance) = s.actor.descend(loss)
        metrics = {
            "actor_loss": value,
            "policy_log_prob_mean": log_prob.mean(),
            "policy_std_mean": jnp.exp(log_std).mean(),
            "action_distance": distance,
        }
        return actor, (mean, log_std), metrics

    def _log_likelihood(self, mean: jax.Array, log_std: jax.Array, batch: Batch) -> jax.Array:
        """[B] log pi(a_data|s)."""
        return data_log_density(batch.action, mean, log_std).sum(-1)

    def _next_value(
        self, s: State, batch: Batch, draws: Draws, policy: tuple[jax.Array, jax.Array], alpha: jax.Array
    ) -> jax.Array:
        """[B] (S8): min over the critics, then max over the samples."""
        mean, log_std = (x[:, None] for x in policy)  # [B, 1, A]
        action, log_prob = sample_tanh_gaussian(mean, log_std, draws.target_noise)  # [B, k, A], [B, k]
        values = s.critic.net.of_several(s.critic.target, batch.next_obs, action).min(0)  # [B, k]
        best = values.argmax(-1, keepdims=True)
        value, log_prob = (jnp.take_along_axis(x, best, -1)[:, 0] for x in (values, log_prob))
        return value - alpha * log_prob if self.backup_entropy else value

    def _samples(
        self, batch: Batch, draws: Draws, current: tuple[jax.Array, jax.Array], following: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """The 3 K sampled actions and the data's, without gradient [B, 3 K + 1, A], and the samples' log-densities."""
        groups, densities = [draws.uniform_actions], [jnp.full(draws.uniform_actions.shape[:2], -jnp.log(2.0))]
        densities[0] *= batch.action.shape[-1]
        for (mean, log_std), noise in ((following, draws.next_policy_noise), (current, draws.current_policy_noise)):
            action, log_prob = sample_tanh_gaussian(mean[:, None], log_std[:, None], noise)
            groups.append(action)
            densities.append(log_prob)
        actions = jnp.concatenate([*groups, batch.action[:, None]], axis=1)
        return jax.lax.stop_gradient((actions, jnp.concatenate(densities, axis=1)))

    def _critic_loss(
        self, critic: Model, rows: Rows, multiplier: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Metrics]]:
        """(S9) to (S11); also sum_i R_i / alpha', and what is worth knowing of each critic. All are means over rows."""
        k, temperature = self.num_sampled_actions, self.conservative_temperature
        metrics: Metrics = {}
        total = excess = jnp.zeros(())
        every = critic.net.of_several(critic.params, rows.obs, rows.actions)  # [2, B, 3 K + 1]
        for i in (1, 2):
            q, data = every[i - 1, :, :-1], every[i - 1, :, -1]  # [B, 3 K], [B]
            if self.calibrate:
                bound = rows.bound[:, None]
                for group, part in (("next", q[:, k : 2 * k]), ("current", q[:, 2 * k :])):
                    metrics[f"critic_{i}_{group}_policy_below_bound_rate"] = (part < bound).astype(q.dtype).mean()
                q = jnp.concatenate([q[:, :k], jnp.maximum(q[:, k:], bound)], axis=1)
            if self.importance_sampling:
                values = q - rows.log_density
            else:
                values = jnp.concatenate([q, data[:, None]], axis=1)
            z = temperature * jax.nn.logsumexp(values / temperature, axis=1)  # [B]
            gap = jnp.clip(z - data, self.gap_clip_min, self.gap_clip_max)  # [B]
            conservative = (rows.weight * (gap - self.lagrange_gap if self.lagrange else gap)).mean()
            excess += conservative
            conservative *= multiplier
            error = jnp.square(data - rows.y)  # [B]
            td = (error if rows.temporal is None else rows.temporal * error).mean()
            total += td + conservative
            metrics |= {
                f"critic_{i}_mean": data.mean(),
                f"critic_{i}_td_loss": td,
                f"critic_{i}_conservative_loss": conservative,
                f"critic_{i}_conservative_gap_mean": gap.mean(),
                f"critic_{i}_uniform_mean": q[:, :k].mean(),
                f"critic_{i}_next_policy_mean": q[:, k : 2 * k].mean(),
                f"critic_{i}_current_policy_mean": q[:, 2 * k :].mean(),
                f"critic_{i}_sampled_std_mean": jnp.concatenate([q, data[:, None]], 1).std(1, ddof=1).mean(),
            }
        return total, (excess, metrics)

    def _multiplier_step(self, s: State, excess: jax.Array) -> tuple[Model, jax.Array]:
        """alpha' towards the gap: L_alpha' = -1/2 alpha' `excess`."""

        def loss(log_multiplier: Model) -> tuple[jax.Array, None]:
            return -0.5 * jnp.clip(jnp.exp(log_multiplier()), 0, MULTIPLIER_MAX) * excess, None

        model, value, _ = s.multiplier.descend(loss)
        return model, value

    def _coefficient_step(self, s: State, coefficient: Coefficient, batch: Batch) -> tuple[PyTree, Metrics]:
        """SSAR's coefficient learns from the new actor's densities (S13)."""
        mean, log_std = s.actor(batch.obs)  # [B, A]
        likelihood = data_log_density(batch.action, mean, log_std)  # [B, A]
        floored = jnp.maximum(likelihood, threshold_log_density(mean, log_std, FLOOR_N))

        def slack(n: jax.Array) -> jax.Array:
            return (floored - threshold_log_density(mean, log_std, n)).mean(-1)

        return coefficient.update(s.beta, batch, s.updates, slack)

    def _track(self, s: State, critic: Model) -> Model:
        """The target critics, every `target_update_interval`-th update."""
        tracked = critic.track(self.target_update_rate)
        if self.target_update_interval == 1:
            return tracked
        due = (s.updates + 1) % self.target_update_interval == 0
        return replace(critic, target=jax.tree.map(lambda a, b: jnp.where(due, a, b), tracked.target, critic.target))

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """A sample while exploring, tanh(mean) otherwise."""
        mean, log_std = s.actor(obs)
        return act_tanh_gaussian(mean, log_std, key, explore)

    def export(self, s: State) -> Models:
        """Networks, scalars, coefficient and the count of updates."""
        names = ("actor", "critic", "temperature", "multiplier", "beta", "updates")
        return {name: getattr(s, name) for name in names}

    def diagnose(self, s: State, batch: Batch) -> Metrics:
        """Q on data, and the coefficient's distribution."""
        metrics = {"critic_1_probe_mean": s.critic(batch.obs, batch.action)[0].mean()}
        if self.coefficient is not None:
            metrics |= self.coefficient.diagnose(s.beta, batch, s.updates)
        _, info = row_weights(self.weighting, s.weighting, batch)
        return metrics | {f"{name}_probe": value for name, value in info.items()}
