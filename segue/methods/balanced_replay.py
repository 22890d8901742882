"""Balanced replay (Lee et al. 2021, arXiv:2107.00591, Sec. 4.2; ../spec/baselines.md 9): which rows look on-line.

    w(s, a)  = relu(MLP(s, a)), which learns the density of the new rows over that of the dataset's
    L_w      = E_dataset[ -log(2 / (w + 1) + e) ] - E_new[ log(2 w / (w + 1) + e) ]      its minimum: w = p_new / p_data
    priority = clip( w^(1/T) / (mean over dataset rows of w^(1/T) + e), 1e-3, 1e3 )      of the rows just learned from

Dataset rows begin with priority 1, new rows with the largest priority so far. That begins with M f / ((1 - f) 1000), M
dataset rows: then a share f of draws falls on the first 1,000 new rows. No correction for the draws' frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from segue.core.model import Adam, Model
from segue.core.replay import Memory
from segue.core.sampling import Sampler
from segue.core.types import Batch, Metrics, Models, PyTree
from segue.nets.networks import MLP

FIRST_ROWS = 1_000  # new rows on which a share f of the draws falls [baselines.md 9]
LOG_OFFSET = 1e-10  # e [baselines.md 9]


@dataclass(frozen=True)
class DensityRatio:
    """w(s, a) >= 0. Where the MLP's output is below 0 there is no gradient: its bias begins at 1."""

    observation_dim: int
    action_dim: int
    hidden_sizes: tuple[int, ...]

    @property
    def mlp(self) -> MLP:
        """The network under the relu."""
        return MLP((self.observation_dim + self.action_dim, *self.hidden_sizes, 1))

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters."""
        params = self.mlp.init(key)
        last = f"layers_{len(self.hidden_sizes)}"
        return params | {last: params[last] | {"bias": jnp.ones(1)}}

    def apply(self, params: PyTree, obs: jax.Array, action: jax.Array) -> jax.Array:
        """[..., S], [..., A] -> [...]."""
        return jax.nn.relu(self.mlp.apply(params, jnp.concatenate([obs, action], axis=-1))[..., 0])


class Pairs(NamedTuple):
    """Observations and actions of some rows."""

    obs: jax.Array  # [n, S]
    action: jax.Array  # [n, A]


class Ratio(NamedTuple):
    """What the sampler learns and remembers."""

    network: Model
    largest: jax.Array  # [] the largest priority so far, with which new rows begin


@dataclass(frozen=True)
class BalancedReplay(Sampler):
    """Priorities by how likely a row is under the policy's own experience."""

    initial_online_share: float = 0.5  # f, of the first 1,000 new rows [baselines.md 9; 0.75 in the released command]
    priority_temperature: float = 5.0  # T [baselines.md 9]
    priority_min: float = 1e-3  # the least of a row that was learned from [baselines.md 9]
    priority_max: float = 1e3  # the most of such a row [baselines.md 9]
    ratio_batch_size: int = 256  # uniform rows of the dataset, and as many new ones, per update [baselines.md 9]
    ratio_learning_rate: float = 3e-4  # Adam [baselines.md 9]
    ratio_hidden_sizes: tuple[int, ...] = (256, 256)  # of w [baselines.md 9]

    stratified = True

    def init(self, models: Models, memory: Memory, key: jax.Array) -> Ratio:
        """A fresh network, whatever there was."""
        assert memory.offline is not None
        rows, observation_dim = memory.offline.obs.shape
        net = DensityRatio(observation_dim, memory.offline.action.shape[1], self.ratio_hidden_sizes)
        first = rows * self.initial_online_share / ((1 - self.initial_online_share) * FIRST_ROWS)
        return Ratio(Model.create(net, Adam(self.ratio_learning_rate), key), jnp.asarray(first, float))

    def of_dataset(self, own: Ratio, rows: Batch) -> jax.Array:
        """1 for every row."""
        return jnp.ones_like(rows.reward)

    def of_new(self, own: Ratio, row: Batch) -> jax.Array:
        """The largest so far."""
        return own.largest

    def learned(
        self, own: Ratio, memory: Memory, batch: Batch, key: jax.Array
    ) -> tuple[Ratio, jax.Array | None, Metrics]:
        """A step of w on uniform rows of either kind, and the batch's priorities."""
        assert memory.offline is not None and memory.ring is not None
        data_key, new_key = jax.random.split(key)
        n, data, new = (self.ratio_batch_size,), memory.offline, memory.ring.rows
        i = jax.random.randint(data_key, n, 0, data.reward.shape[0])
        j = jax.random.randint(new_key, n, 0, memory.ring.size)
        return self.fitted(own, batch, Pairs(data.obs[i], data.action[i]), Pairs(new.obs[j], new.action[j]))

    def fitted(self, own: Ratio, batch: Batch, data: Pairs, new: Pairs) -> tuple[Ratio, jax.Array, Metrics]:
        """One step of w, and the batch's priorities [B] by w from before it."""

        def loss(network: Model) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            of_data, of_new = network(*data), network(*new)  # [n]
            by_data = -jnp.log(2 / (of_data + 1) + LOG_OFFSET)
            by_new = jnp.log(2 * of_new / (of_new + 1) + LOG_OFFSET)
            return by_data.mean() - by_new.mean(), (of_data, of_new)

        network, value, (of_data, of_new) = own.network.descend(loss)
        ratio = own.network(batch.obs, batch.action)  # [B]
        typical = (of_data ** (1 / self.priority_temperature)).mean()  # the mean of powers, not the power of the mean
        priority = ratio ** (1 / self.priority_temperature) / (typical + LOG_OFFSET)
        priority = jnp.clip(priority, self.priority_min, self.priority_max)
        metrics: dict[str, Any] = {
            "ratio_loss": value,
            "ratio_of_dataset_mean": of_data.mean(),
            "ratio_of_new_mean": of_new.mean(),
            "priority_mean": priority.mean(),
        }
        return Ratio(network, jnp.maximum(own.largest, priority.max())), priority, metrics
