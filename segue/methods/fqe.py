"""Fitted Q evaluation of a frozen policy from data alone (Le, Voloshin & Yue 2019, arXiv:1903.08738, Alg. 3).

    y   = r + gamma (1 - d) Qbar(s', pi(s'))
    L_Q = E w (Q(s, a) - y)^2                w = how often a bootstrap replicate drew the row's episode
    V   = E Q(s_0, pi(s_0))

Batches are drawn uniformly and rows weighed, so that replicates share one copy of the data. There is one critic: the
smaller of two would be a lower value than the policy's own. The policy is never stepped, so there is no delay either:
the target moves on every update (../spec/baselines.md, 20).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, Models, PyTree, Spec
from segue.losses import td_target
from segue.nets.networks import Critics

ROWS_AT_ONCE = 1024  # of the initial states: there may be a million of them


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes, and the policy's state, which it does not."""

    critic: Model  # with target
    policy: PyTree
    updates: jax.Array  # [] int32


@dataclass(frozen=True)
class FQE(Algorithm[State]):
    """Any algorithm's policy, evaluated."""

    policy: Algorithm  # whose `act` is evaluated; its state is made of the models that it exported
    stochastic: bool = False  # actions as it explores, instead of the greedy ones [ours: exported ones act greedily]
    batch_size: int = 256  # rows per update [baselines.md 20, re-evaluation]
    discount: float = 0.99  # gamma [the papers' on every task]
    target_update_rate: float = 0.05  # Polyak rate of the target [ours: at 0.005 a value needs 100,000 updates to grow]
    critic_learning_rate: float = 3e-4  # Adam [baselines.md 20, re-evaluation]
    hidden_sizes: tuple[int, ...] = (256, 256)  # of the critic [baselines.md 20, re-evaluation]
    critic_layer_norm: bool = True  # LayerNorm in the critic [baselines.md 20, re-evaluation]
    policy_update_interval: int = 1  # there is no policy step [every update counts as a round]

    gives = ("evaluation_critic",)
    columns = ("weight",)

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """A fresh critic beside the policy that `models` hold."""
        critic_key, policy_key = jax.random.split(key)
        net = Critics(*spec, self.hidden_sizes, self.critic_layer_norm, count=1)
        critic = Model.create(net, Adam(self.critic_learning_rate), critic_key, target=True)
        return State(critic, self.policy.init(models, spec, policy_key), jnp.int32(0))

    def draw(self, key: jax.Array, spec: Spec) -> jax.Array:
        """A key for every next action [B]."""
        return jax.random.split(key, self.batch_size)

    def update(self, s: State, batch: Batch, draws: jax.Array, policy_step: bool) -> tuple[State, Metrics]:
        """The critic, then its target."""
        y = td_target(batch, self.discount, self.value(s, batch.next_obs, draws))  # [B]

        def loss(critic: Model) -> tuple[jax.Array, jax.Array]:
            q = critic(batch.obs, batch.action)[0]  # [B]
            return (batch.extras["weight"] * jnp.square(q - y)).mean(), q.mean()

        critic, value, q_mean = s.critic.descend(loss)
        s = replace(s, critic=critic.track(self.target_update_rate), updates=s.updates + 1)
        return s, {"critic_loss": value, "critic_1_mean": q_mean}

    def diagnose(self, s: State, batch: Batch) -> Metrics:
        """The estimate: the weighed mean value of initial states, the rows of `batch`."""
        keys = jax.random.split(jax.random.key(0), len(batch.reward))

        def of_row(row: tuple[jax.Array, jax.Array]) -> jax.Array:
            return self.value(s, row[0][None], row[1][None])[0]

        values = jax.lax.map(of_row, (batch.obs, keys), batch_size=ROWS_AT_ONCE)  # [B]
        weight = batch.extras["weight"]
        return {"estimate": (weight * values).sum() / weight.sum()}

    def value(self, s: State, obs: jax.Array, keys: jax.Array) -> jax.Array:
        """Qbar(s, pi(s)), the target's, which averages over the last updates: [B, S], keys [B] -> [B]."""
        action = jax.vmap(lambda o, key: self.policy.act(s.policy, o, key, self.stochastic))(obs, keys)  # [B, A]
        return s.critic.slow(obs, action)[0]

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """It makes no policy. Raises NotImplementedError."""
        raise NotImplementedError("fitted Q evaluation judges a policy and makes none")

    def export(self, s: State) -> Models:
        """The critic, under a name that no policy phase continues."""
        return {"evaluation_critic": s.critic}
