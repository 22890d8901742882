"""Where batches come from: the offline rows, the online ring, or a mix of both.

The mixes: "offline" (dataset only), "joined" (one pool of both, as after appending), "half" (half of each batch from
either, or another share, online rows first), "boosted" (a share from the ring, the rest from the pool of both),
"online" (ring only), "rollout" (the whole ring in its order). The offline rows are one copy shared by all seeds;
columns that depend on the seed and the ring are a copy a seed.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segue.core.types import Batch, Spec

Mix = Literal["offline", "joined", "half", "boosted", "online", "rollout"]
# Extras of a batch that are read off other rows, and stored nowhere.
DERIVED = ("next_action", "next_action_known", "end_obs", "present")


class Ring(NamedTuple):
    """Online transitions; the oldest are overwritten once there are more than rows for them."""

    rows: Batch  # leaves [capacity, ...]
    size: jax.Array  # [] live rows; one number for all seeds, which step together


class Memory(NamedTuple):
    """What one seed may sample from."""

    offline: Batch | None  # leaves [N, ...], without extras
    columns: dict[str, jax.Array]  # extras of the offline rows [N]
    ring: Ring | None = None
    sampling: Any = None  # segue.core.sampling.Sampling, where rows are drawn by priority


def empty_rows(spec: Spec, capacity: int, columns: tuple[str, ...] = ()) -> Batch:
    """`capacity` zero rows for a ring."""
    zeros = jnp.zeros
    return Batch(
        obs=zeros((capacity, spec.observation_dim)),
        action=zeros((capacity, spec.action_dim)),
        reward=zeros(capacity),
        next_obs=zeros((capacity, spec.observation_dim)),
        terminal=zeros(capacity),
        extras={name: zeros(capacity) for name in columns},
    )


def store(rows: Batch, row: Batch, slot: int) -> Batch:
    """Write one transition of every seed (NumPy leaves [seeds, ...]) at `slot` of a ring's rows [seeds, capacity, ...].

    The row travels to the device as one array: every array of its own would cost a transfer at every step.
    """
    leaves = [np.asarray(x, np.float32).reshape(len(x), -1) for x in jax.tree.leaves(row)]
    return _store(rows, np.concatenate(leaves, axis=1), np.int32(slot))


@partial(jax.jit, donate_argnums=0)
def _store(rows: Batch, packed: jax.Array, slot: jax.Array) -> Batch:
    """A program of its own: fused with a reader of the same rows, XLA copies the whole ring at every step."""
    leaves, structure = jax.tree.flatten(rows)
    written, start = [], 0
    for column in leaves:
        width = column.shape[2] if column.ndim == 3 else 1
        x = packed[:, start : start + width].reshape(column.shape[0], *column.shape[2:])
        written.append(lax.dynamic_update_index_in_dim(column, x, slot, 1))
        start += width
    return jax.tree.unflatten(structure, written)


def fill_in(rows: Batch, name: str, seed: int, slots: np.ndarray, values: np.ndarray) -> Batch:
    """Write extra column `name` of one seed at `slots` [n], for what is known only when an episode has ended.

    Padded to a power of two with slots that do not exist, so that few lengths are ever compiled.
    """
    padding = (1 << max(0, len(slots) - 1).bit_length()) - len(slots)
    capacity = rows.reward.shape[1]
    slots = np.concatenate([slots, np.full(padding, capacity)]).astype(np.int32)
    values = np.concatenate([values, np.zeros(padding)]).astype(np.float32)
    return rows._replace(extras=rows.extras | {name: _fill_in(rows.extras[name], np.int32(seed), slots, values)})


@partial(jax.jit, donate_argnums=0)
def _fill_in(column: jax.Array, seed: jax.Array, slots: jax.Array, values: jax.Array) -> jax.Array:
    return column.at[seed, slots].set(values, mode="drop")


def draw_indices(mix: Mix, memory: Memory, key: jax.Array, n: int, online_share: float = 0.5) -> jax.Array:
    """[n] uniform with replacement over every live row (never below the write index only, ../spec/ssar.md B16).

    "joined" numbers the offline rows first. "half": the first floor(n `online_share`) index the ring, the others the
    offline rows; "boosted": the others are as in "joined".
    """
    rows = 0 if memory.offline is None else memory.offline.reward.shape[0]
    size = jnp.int32(0) if memory.ring is None else memory.ring.size
    if mix == "offline":
        return jax.random.randint(key, (n,), 0, rows)
    if mix == "rollout":
        return jnp.arange(n)
    if mix == "joined":
        return jax.random.randint(key, (n,), 0, rows + size)
    if mix == "online":
        return jax.random.randint(key, (n,), 0, size)
    online_key, offline_key = jax.random.split(key)
    count = int(n * online_share)
    online = jax.random.randint(online_key, (count,), 0, size)
    others = rows if mix == "half" else rows + size
    return jnp.concatenate([online, jax.random.randint(offline_key, (n - count,), 0, others)])


def gather(
    mix: Mix,
    memory: Memory,
    indices: jax.Array,
    next_actions: bool = False,
    online_share: float = 0.5,
    window: int | None = None,
) -> Batch:
    """The rows that `draw_indices` named, leaves [n, ...]; with `next_actions` also what `followed` adds.

    With `window` K not they alone but the stretches of K steps that they end, `stretches`, leaves [n, K, ...].

    Where rows know how many rows of their episode follow, "rows_to_end", there is also "end_obs" [n, S], where that
    episode ended.
    """

    def taken(rows: Batch, size: jax.Array | int, i: jax.Array) -> Batch:
        if window is not None:
            return stretches(rows, i, window)
        batch = jax.tree.map(lambda x: x[i], rows)
        if "rows_to_end" in batch.extras:
            end_obs = rows.next_obs[i + batch.extras["rows_to_end"].astype(i.dtype)]
            batch = batch._replace(extras=batch.extras | {"end_obs": end_obs})
        return followed(batch, rows, (i + 1) % size) if next_actions else batch

    def of_dataset(i: jax.Array) -> Batch:
        assert memory.offline is not None
        return taken(memory.offline._replace(extras=memory.columns), memory.offline.reward.shape[0], i)

    def of_ring(i: jax.Array) -> Batch:
        assert memory.ring is not None
        return taken(memory.ring.rows, memory.ring.size, i)

    if mix == "offline":
        return of_dataset(indices)
    if mix in ("online", "rollout"):
        return of_ring(indices)

    def of_pool(i: jax.Array) -> Batch:
        assert memory.offline is not None
        rows = memory.offline.reward.shape[0]
        is_offline = i < rows
        offline, online = of_dataset(jnp.minimum(i, rows - 1)), of_ring(jnp.maximum(i - rows, 0))
        return jax.tree.map(
            lambda a, b: jnp.where(is_offline.reshape(-1, *[1] * (a.ndim - 1)), a, b), offline, online
        )

    if mix == "joined":
        return of_pool(indices)
    count = int(indices.shape[0] * online_share)
    others = of_dataset if mix == "half" else of_pool
    online, offline = of_ring(indices[:count]), others(indices[count:])
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), online, offline)


def stretches(rows: Batch, last: jax.Array, length: int) -> Batch:
    """Steps of one episode up to rows `last` [n], `length` of them or as many as the episode has: [n, length, ...].

    They stand at the first places, and the extra "present" is 1 there; the last step is repeated after them. Rows are
    in the order of time and say how far into their episode they are, "time_step".
    """
    steps = jnp.minimum(rows.extras["time_step"][last].astype(last.dtype) + 1, length)  # [n]
    place = jnp.arange(length)
    batch = jax.tree.map(lambda x: x[jnp.minimum((last - steps + 1)[:, None] + place, last[:, None])], rows)
    present = (place < steps[:, None]).astype(batch.reward.dtype)
    return batch._replace(extras=batch.extras | {"present": present})


def followed(batch: Batch, rows: Batch, following: jax.Array) -> Batch:
    """`batch` with the DERIVED extras: "next_action" [n, A], and "next_action_known" [n], 1 where there is one.

    It is the action of the `following` row [n] if that row begins where the batch's row ended. Nothing is known of
    what followed the newest row, or a time limit.
    """
    known = (rows.obs[following] == batch.next_obs).all(-1).astype(batch.reward.dtype)
    return batch._replace(
        extras=batch.extras | {"next_action": rows.action[following], "next_action_known": known}
    )
