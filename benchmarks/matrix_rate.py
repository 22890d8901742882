"""The float32 rate that this machine's JAX backend reaches on the matrix products of a training update.

A product alone, its operands warm in the cache, is as fast as the backend can be. The rate of the whole mix,
total FLOP / total time, is therefore a fair upper bound on what an update made of these products can reach.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.clock import Clock, best_of

Role = Literal["forward", "weight_gradient", "input_gradient"]

# Which axes of the stored operands are contracted. With a layer y [m, n] = x [m, k] W [k, n] these are the forms in
# which differentiation leaves them: x W contracts (1, 0), xᵀ dy (0, 0) and dy Wᵀ (1, 1).
CONTRACTED: dict[Role, tuple[int, int]] = {"forward": (1, 0), "weight_gradient": (0, 0), "input_gradient": (1, 1)}

SECONDS_PER_TRIAL = 0.05
TRIALS = 5


@dataclass(frozen=True)
class Product:
    """An [m, k] by [k, n] product that an update makes `count` times."""

    m: int
    k: int
    n: int
    role: Role = "forward"
    count: float = 1.0

    @property
    def flop(self) -> float:
        """Multiplications and additions in one update."""
        return 2.0 * self.m * self.k * self.n * self.count


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


def layer_products(widths: tuple[int, ...], batch: int, roles: Iterable[Role], count: float = 1.0) -> list[Product]:
    """The products of an MLP with these widths, input to output.

    An input gradient is listed for all layers but the first, whose input is data.
    """
    made = []
    for role in roles:
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            if role == "forward":
                made.append(Product(batch, inputs, outputs, role, count))
            elif role == "weight_gradient":
                made.append(Product(inputs, batch, outputs, role, count))
            elif layer > 0:
                made.append(Product(batch, outputs, inputs, role, count))
    return made


def products_of_td3_bc(
    observation_dim: int,
    action_dim: int,
    hidden: tuple[int, ...] = (256, 256),
    batch: int = 256,
    coefficient_width: int | None = None,
    policy_interval: int = 2,
) -> list[Product]:
    """The least that one TD3+BC update multiplies, with SSAR's coefficient network if it has a width.

    Critic step: target actor and both target critics forward; both critics forward and backward.
    Policy step, one update in `policy_interval`: actor forward and backward; critic 1 forward, and its gradient
    with respect to the action alone; coefficient network (three hidden layers) forward and backward.
    Layer norms, biases, losses and optimizers are not counted.
    """
    actor = (observation_dim, *hidden, action_dim)
    critic = (observation_dim + action_dim, *hidden, 1)
    learning: tuple[Role, ...] = ("forward", "weight_gradient", "input_gradient")
    part = 1 / policy_interval

    products = layer_products(actor, batch, ("forward",))
    products += layer_products(critic, batch, ("forward",), count=2)
    products += layer_products(critic, batch, learning, count=2)
    products += layer_products(actor, batch, learning, part)
    products += layer_products(critic, batch, ("forward", "input_gradient"), part)
    products.append(Product(batch, hidden[0], action_dim, "input_gradient", part))  # of critic 1's first layer
    if coefficient_width is not None:
        products += layer_products((observation_dim, *[coefficient_width] * 3, 1), batch, learning, part)
    return products


def merged(products: Iterable[Product]) -> list[Product]:
    """Equal products as one, their counts added, so that each is measured once."""
    counts: dict[tuple[int, int, int, Role], float] = {}
    for p in products:
        shape = (p.m, p.k, p.n, p.role)
        counts[shape] = counts.get(shape, 0.0) + p.count
    return [Product(*shape, count) for shape, count in counts.items()]


def matrix_rate(products: Iterable[Product], seeds: int = 1, clock: Clock = "wall") -> MixRate:
    """Measure every product, batched over `seeds` as vmap would, and return the rate of their mix for one seed.

    The process's own XLA flags and threads apply: measure in the process that runs the update.
    """
    return MixRate(tuple(Timing(p, _seconds(p, seeds, clock) / seeds) for p in merged(products)))


@partial(jax.jit, static_argnums=0)
def repeat(role: Role, left: jax.Array, right: jax.Array, out: jax.Array, times: jax.Array) -> jax.Array:
    """`times` products, one after another; with three axes the first is the seeds'.

    One element of each product goes into the next one's operand, so that none can be left out or hoisted out of the
    loop. It travels as a scalar and is written in place: anything read from a whole carried array would cost a copy
    of it an iteration. `times` is an argument, so that one program serves every length.
    """
    seed_axes = tuple(range(left.ndim - 2))
    left_axis, right_axis = CONTRACTED[role]
    dims = (((left_axis + len(seed_axes),), (right_axis + len(seed_axes),)), (seed_axes, seed_axes))
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
    lead = (seeds,) if seeds > 1 else ()  # a leading axis of one costs copies in the loop
    left_shape = (*lead, k, m) if left_axis == 0 else (*lead, m, k)
    right_shape = (*lead, n, k) if right_axis == 1 else (*lead, k, n)
    # Of order 1 and 1/k, so that the fed-back element, and with it everything, stays finite and normal.
    left = jax.random.uniform(jax.random.key(0), left_shape, minval=0.5, maxval=1.0)
    right = jax.random.uniform(jax.random.key(1), right_shape, minval=0.5, maxval=1.0) / k
    out = jnp.zeros((*lead, m, n))

    def seconds(times: int, trials: int = 1) -> float:
        return best_of(
            trials, lambda: repeat(product.role, left, right, out, jnp.int32(times)).block_until_ready(), clock
        )

    seconds(1)  # compiles
    times = 16
    while seconds(times) < SECONDS_PER_TRIAL / 4:
        times *= 2
    times *= 4
    return seconds(times, TRIALS) / times
