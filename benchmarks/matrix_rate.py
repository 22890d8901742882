"""The float32 rate that this machine's JAX backend reaches on the matrix products of a training update.

A product alone, its operands warm in the cache, is as fast as the backend can be. The rate of the whole mix,
total FLOP / total time, is therefore a fair upper bound on what an update made of these products can reach.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.clock import Clock, best_of
from benchmarks.products import CONTRACTED, Product, Role, merged

SECONDS_PER_TRIAL = 0.04
TRIALS = 3


@dataclass(frozen=True)
class Timing:
    """One product and how long it takes, once."""

    product: Product
    seconds: float


@dataclass(frozen=True)
class MixRate:
    """The rate over a whole mix of products, and what it is made of."""

    timings: tuple[Timing, ...]

    @property
    def flop(self) -> float:
        """Of one update of one seed."""
        return sum(t.product.flop for t in self.timings)

    @property
    def seconds(self) -> float:
        """That one update's products take for one seed, one after another and nothing else."""
        return sum(t.product.count * t.seconds for t in self.timings)

    @property
    def flop_per_second(self) -> float:
        """Total FLOP over total time."""
        return self.flop / self.seconds


def matrix_rate(products: Iterable[Product], seeds: int = 1, clock: Clock = "wall") -> MixRate:
    """Measure every product, batched over `seeds` as vmap would, and return the rate of their mix for one seed.

    The process's own XLA flags and threads apply: measure in the process that runs the update.
    """
    return MixRate(tuple(Timing(p, _seconds(p, seeds, clock) / seeds) for p in merged(products)))


@partial(jax.jit, static_argnums=0)
def repeat(role: Role, left: jax.Array, right: jax.Array, out: jax.Array, times: jax.Array) -> jax.Array:
    """`times` products, one after another; with three axes the first counts those of one batched call.

    One element of each product goes into the next one's operand, so that none can be left out or hoisted out of the
    loop. It travels as a scalar and is written in place: anything read from a whole carried array would cost a copy
    of it an iteration. `times` is an argument, so that one program serves every length.
    """
    stacked_axes = tuple(range(left.ndim - 2))
    left_axis, right_axis = CONTRACTED[role]
    dims = (((left_axis + len(stacked_axes),), (right_axis + len(stacked_axes),)), (stacked_axes, stacked_axes))
    first = (slice(1),) * left.ndim

    def body(_: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        left, _, element = carry
        left = lax.dynamic_update_slice(left, element, (0,) * left.ndim)
        out = lax.dot_general(left, right, dims)
        return left, out, out[first]

    return lax.fori_loop(0, times, body, (left, out, out[first]))[1]


def _seconds(product: Product, seeds: int, clock: Clock) -> float:
    """Of one product of all seeds."""
    m, k, n = product.m, product.k, product.n
    left_axis, right_axis = CONTRACTED[product.role]
    stack = seeds * product.stack
    lead = (stack,) if stack > 1 else ()  # a leading axis of one costs copies in the loop
    left_shape = (*lead, k, m) if left_axis == 0 else (*lead, m, k)
    right_shape = (*lead, n, k) if right_axis == 1 else (*lead, k, n)
    # Of order 1 and 1/k, so that the fed-back element, and with it everything, stays finite and normal.
    rng = np.random.default_rng(0)
    left = jnp.asarray(rng.uniform(0.5, 1.0, left_shape), jnp.float32)
    right = jnp.asarray(rng.uniform(0.5, 1.0, right_shape) / k, jnp.float32)
    out = jnp.zeros((*lead, m, n))

    def seconds(times: int, trials: int = 1) -> float:
        return best_of(
            trials, lambda: repeat(product.role, left, right, out, jnp.int32(times)).block_until_ready(), clock
        )

    seconds(1)  # compiles
    times = 1
    while seconds(times) < SECONDS_PER_TRIAL / 4:
        times *= 2
    times *= 4
    return seconds(times, TRIALS) / times
