"""The socket of papers about *which* rows a batch holds: priorities over one pool of dataset rows and online rows.

The pool numbers the dataset's rows first, then the ring's. A sampler says what a row's priority is; that rows are
drawn in exactly that proportion, with replacement, is `segue.core.sum_tree`'s business and stands here once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from segue.core import sum_tree
from segue.core.replay import Memory, gather
from segue.core.types import Batch, Metrics, Models, PyTree

ROWS_AT_ONCE = 16_384  # of a dataset whose priorities are computed [../spec/baq.md 4.4]


class Sampling(NamedTuple):
    """What sampling remembers: the sampler's own state and the tree of priorities over the pool."""

    own: PyTree
    tree: sum_tree.SumTree


class Sampler(ABC):
    """A frozen dataclass, as algorithms are. One seed's view throughout."""

    needs: ClassVar[tuple[str, ...]] = ()  # roles that earlier phases must have made
    stratified: ClassVar[bool] = False  # one draw from each of equal parts of the total, instead of independent ones
    importance_exponent: float = 0.0  # above 0: batches carry extras["importance"], (N P)^-this over its maximum

    @abstractmethod
    def init(self, models: Models, memory: Memory, key: jax.Array) -> Any:
        """A fresh state of its own."""

    @abstractmethod
    def of_dataset(self, own: Any, rows: Batch) -> jax.Array:
        """Priorities [n], above 0, of dataset rows at the phase's start."""

    @abstractmethod
    def of_new(self, own: Any, row: Batch) -> jax.Array:
        """Priority [] of a row (leaves without a batch axis) that has just come into the ring."""

    def learned(
        self, own: Any, memory: Memory, batch: Batch, key: jax.Array
    ) -> tuple[Any, jax.Array | None, Metrics]:
        """After the algorithm's update on `batch`: the state, new priorities [B] of the batch's rows or None, metrics.

        Rows that stand twice in the batch must get the same priority twice.
        """
        return own, None, {}


def begin(sampler: Sampler, models: Models, memory: Memory, start: int, key: jax.Array) -> Sampling:
    """At a phase's start, when the first `start` rows of the ring are filled."""
    assert memory.ring is not None
    own = sampler.init(models, memory, key)
    capacity = memory.ring.rows.reward.shape[0]
    new = jax.vmap(lambda row: sampler.of_new(own, row))(jax.tree.map(lambda x: x[:start], memory.ring.rows))
    parts = [new, jnp.zeros(capacity - start)]
    if memory.offline is not None:
        parts.insert(0, _of_dataset(sampler, own, memory.offline._replace(extras=memory.columns)))
    return Sampling(own, sum_tree.build(jnp.concatenate(parts)))


def _of_dataset(sampler: Sampler, own: Any, rows: Batch) -> jax.Array:
    """[N], in pieces: all rows' activations at once would not fit."""
    n = rows.reward.shape[0]
    whole = n // ROWS_AT_ONCE * ROWS_AT_ONCE
    pieces = jax.tree.map(lambda x: x[:whole].reshape(-1, ROWS_AT_ONCE, *x.shape[1:]), rows)
    of_pieces = jax.lax.map(lambda piece: sampler.of_dataset(own, piece), pieces).reshape(-1)
    rest = sampler.of_dataset(own, jax.tree.map(lambda x: x[whole:], rows))
    return jnp.concatenate([of_pieces, rest])


def stored(sampler: Sampler, memory: Memory, slot: jax.Array) -> Memory:
    """`memory` whose ring got a new row at `slot` []."""
    assert memory.ring is not None
    row = jax.tree.map(lambda x: x[slot], memory.ring.rows)
    own, tree = memory.sampling
    priority = sampler.of_new(own, row)
    tree = sum_tree.replaced(tree, (_offline_rows(memory) + slot)[None], priority[None])
    return memory._replace(sampling=Sampling(own, tree))


def sampled(
    sampler: Sampler, memory: Memory, key: jax.Array, n: int, next_actions: bool = False
) -> tuple[Batch, jax.Array]:
    """A batch [n] and its rows' indices in the pool [n]."""
    tree = memory.sampling.tree
    indices = sum_tree.draw(tree, key, n, sampler.stratified)
    batch = gather("joined", memory, indices, next_actions)
    if sampler.importance_exponent:
        assert memory.ring is not None
        share = sum_tree.priorities_at(tree, indices) / sum_tree.as_float(sum_tree.total(tree))  # P [n]
        weight = (share * (_offline_rows(memory) + memory.ring.size)) ** -sampler.importance_exponent
        batch = batch._replace(extras=batch.extras | {"importance": weight / weight.max()})
    return batch, indices


def learned(
    sampler: Sampler, memory: Memory, batch: Batch, indices: jax.Array, key: jax.Array
) -> tuple[Memory, Metrics]:
    """After an update on `batch`, whose rows had the `indices` [n] in the pool."""
    own, priorities, metrics = sampler.learned(memory.sampling.own, memory, batch, key)
    tree = memory.sampling.tree
    if priorities is not None:
        tree = sum_tree.replaced(tree, indices, priorities)
    metrics |= {"online_fraction": (indices >= _offline_rows(memory)).mean(dtype=batch.reward.dtype)}
    return memory._replace(sampling=Sampling(own, tree)), metrics


def _offline_rows(memory: Memory) -> int:
    return 0 if memory.offline is None else memory.offline.reward.shape[0]
