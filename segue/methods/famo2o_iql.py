"""FamO2O on IQL: a family of policies, and a balance between data and values state by state (Wang et al. 2023,
arXiv:2310.17966; ../spec/baselines.md 8a).

V and Q are IQL's (arXiv:2110.06169). The policy is told the balance coefficient c that weighs its own advantages, and
a second policy g chooses c at each state by the values alone:

    L_pi    = -E [ w log pi(a|s, c) ]        w = min(exp(c A), w_max), A as in L_V; no gradient reaches g
              c ~ U(low, high) offline, c ~ g(.|s) online
    L_g     =  E [ alpha_c log g(c|s) - min_i Qbar_i(s, a~) ]   c ~ g(.|s), a~ ~ pi(.|s, c), through both draws;
              no gradient reaches pi
    L_alpha = -E [ log alpha_c (log g(c|s) + H) ]               H: g's target entropy

It acts by pi(.|s, c) with c the mode of g(.|s). The two policies' losses share no parameter, so that one optimizer
serves both. Q and V step as in iql.py: the order of the public IQL, where the released FamO2O steps V first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model, Scalar
from segue.core.types import Batch, Metrics, Models, PyTree, Spec
from segue.losses import lowest
from segue.methods.iql import learn_values
from segue.nets.balance import CODE_WIDTH, PolicyFamily
from segue.nets.networks import MLP, Critics
from segue.nets.policies import GaussianPolicy, gaussian_log_density, sample_in_box


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    actor: Model  # pi and g
    critic: Model  # with target
    value: Model
    balance_temperature: Model  # log alpha_c
    updates: jax.Array  # [] int32


class Draws(NamedTuple):
    """The random numbers of one update."""

    uniform: jax.Array  # [B] in [0, 1), of the coefficient offline
    coefficient_noise: jax.Array  # [B] standard normal, of the coefficient that g chooses
    policy_noise: jax.Array  # [B, A] standard normal, of the action that g is judged by


@dataclass(frozen=True)
class FamO2OIQL(Algorithm[State]):
    """FamO2O on IQL, offline and online."""

    coefficient_source: Literal["uniform", "balance"] = "uniform"  # c of L_pi offline; online by g [baselines.md 8a]
    coefficient_min: float = 8.0  # low [baselines_hparams.yaml, famo2o_iql]
    coefficient_max: float = 14.0  # high [baselines_hparams.yaml, famo2o_iql]
    balance_target_entropy: float = -0.5  # H, of the density of c [baselines_hparams.yaml, famo2o_iql]
    balance_temperature_learning_rate: float = 3e-4  # Adam on log alpha_c, from 0 [baselines_hparams.yaml, famo2o_iql]
    expectile: float = 0.9  # tau [baselines_hparams.yaml, famo2o_iql]
    advantage_weight_max: float = 100.0  # w_max, of the exponential [baselines_hparams.yaml, famo2o_iql]
    log_std_min: float = -5.0  # of the policy's log-std [baselines_hparams.yaml, iql_original]
    batch_size: int = 256  # rows per update [baselines.md 5]
    discount: float = 0.99  # gamma [baselines.md 0]
    target_update_rate: float = 0.005  # Polyak rate of the target critics [baselines.md 0]
    policy_update_interval: int = 1  # critic updates per step of both policies [baselines.md 5: one]
    actor_learning_rate: float = 3e-4  # Adam, of pi and g [baselines_hparams.yaml, famo2o_iql]
    critic_learning_rate: float = 3e-4  # Adam [baselines_hparams.yaml, famo2o_iql]
    value_learning_rate: float = 3e-4  # Adam [baselines_hparams.yaml, famo2o_iql]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of pi, critics and value [baselines.md 5]
    balance_hidden_sizes: tuple[int, ...] = (256, 256)  # of g [baselines_hparams.yaml, famo2o_iql]

    gives = ("actor", "critic", "value", "balance_temperature", "updates")
    policy_kind = "gaussian"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Fresh or continued networks; a continued "actor" has to be a family."""
        actor_key, critic_key, value_key = jax.random.split(key, 3)
        coded = Spec(spec.observation_dim + CODE_WIDTH, spec.action_dim)
        policy = GaussianPolicy(*coded, self.hidden_sizes, tanh_mean=True, log_std_min=self.log_std_min)
        balance = GaussianPolicy(spec.observation_dim, 1, self.balance_hidden_sizes, tanh_mean=False)
        actor = PolicyFamily(policy, balance, self.coefficient_min, self.coefficient_max)
        critics = Critics(*spec, self.hidden_sizes)
        value = MLP((spec.observation_dim, *self.hidden_sizes, 1))
        temperature_adam = Adam(self.balance_temperature_learning_rate)
        return State(
            actor=Model.take(models, "actor", actor, Adam(self.actor_learning_rate), actor_key),
            critic=Model.take(models, "critic", critics, Adam(self.critic_learning_rate), critic_key, target=True),
            value=Model.take(models, "value", value, Adam(self.value_learning_rate), value_key),
            balance_temperature=Model.take(models, "balance_temperature", Scalar(0.0), temperature_adam, key),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> Draws:
        """Coefficients and noise."""
        uniform_key, coefficient_key, policy_key = jax.random.split(key, 3)
        return Draws(
            jax.random.uniform(uniform_key, (self.batch_size,)),
            jax.random.normal(coefficient_key, (self.batch_size,)),
            jax.random.normal(policy_key, (self.batch_size, spec.action_dim)),
        )

    def update(self, s: State, batch: Batch, draws: Draws, policy_step: bool) -> tuple[State, Metrics]:
        """Value, critics, targets as IQL; on policy steps pi, g and alpha_c by the values from before all of these."""
        critic, value, advantage, metrics = learn_values(
            s, batch, self.expectile, self.discount, self.target_update_rate
        )
        actor, temperature = s.actor, s.balance_temperature
        if policy_step:
            alpha = jnp.exp(temperature())

            def loss(actor: Model) -> tuple[jax.Array, tuple[Metrics, jax.Array]]:
                of_family, c, clipped = self.family_loss(actor, batch, advantage, draws)
                of_balance, log_density = self.balance_loss(actor, s.critic, batch, alpha, draws)
                info = {
                    "actor_loss": of_family,
                    "balance_loss": of_balance,
                    "coefficient_mean": c.mean(),
                    "num_clipped_weights": clipped,
                }
                return of_family + of_balance, (info, log_density)

            actor, _, (info, log_density) = actor.descend(loss)
            slack = log_density + self.balance_target_entropy
            temperature, _, _ = temperature.descend(lambda log_alpha: (-log_alpha() * slack, None))
            metrics |= info | {"balance_entropy": -log_density, "balance_temperature": alpha}
        return State(actor, critic, value, temperature, s.updates + 1), metrics

    def family_loss(
        self, actor: Model, batch: Batch, advantage: jax.Array, draws: Draws
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """L_pi, its coefficients [B], and how many weights were clipped."""
        net: PolicyFamily = actor.net
        if self.coefficient_source == "uniform":
            c = self.coefficient_min + (self.coefficient_max - self.coefficient_min) * draws.uniform  # [B]
        else:
            c, _ = net.coefficient(jax.lax.stop_gradient(actor.params["balance"]), batch.obs, draws.coefficient_noise)
        weight = jnp.minimum(jnp.exp(c * advantage), self.advantage_weight_max)  # [B]
        mean, log_std = net.member(actor.params["family"], batch.obs, c)  # [B, A], [A]
        log_likelihood = gaussian_log_density(batch.action, mean, log_std).sum(-1)  # [B]
        clipped = (weight >= self.advantage_weight_max).sum().astype(weight.dtype)
        return -(weight * log_likelihood).mean(), c, clipped

    def balance_loss(
        self, actor: Model, critic: Model, batch: Batch, alpha: jax.Array, draws: Draws
    ) -> tuple[jax.Array, jax.Array]:
        """L_g, and the mean of log g(c|s)."""
        net: PolicyFamily = actor.net
        family: PyTree = jax.lax.stop_gradient(actor.params["family"])
        c, log_density = net.coefficient(actor.params["balance"], batch.obs, draws.coefficient_noise)  # [B]
        mean, log_std = net.member(family, batch.obs, c)  # [B, A], [A]
        action = mean + jnp.exp(log_std) * draws.policy_noise  # not clipped: its gradient reaches g everywhere
        q = lowest(critic.slow(batch.obs, action))  # [B]
        return (alpha * log_density - q).mean(), log_density.mean()

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """The mean, or a sample while exploring, of pi(.|s, c) at g's mode; in [-1, 1]."""
        mean, log_std = s.actor(obs)
        return sample_in_box(mean, log_std, jax.random.normal(key, mean.shape) if explore else jnp.zeros_like(mean))

    def export(self, s: State) -> Models:
        """Both policies as one, critics, value, alpha_c and the count of updates."""
        return {name: getattr(s, name) for name in self.gives}

    def diagnose(self, s: State, batch: Batch) -> Metrics:
        """Q and V on data, and where g lies in its range."""
        net: PolicyFamily = s.actor.net
        c, _ = net.coefficient(s.actor.params["balance"], batch.obs, jnp.zeros_like(batch.reward))
        return {
            "critic_1_probe_mean": s.critic(batch.obs, batch.action)[0].mean(),
            "value_probe_mean": s.value(batch.obs).mean(),
            "coefficient_probe_mean": c.mean(),
            "coefficient_probe_std": c.std(),
        }
