"""Draws in proportion to priorities, exact at millions of rows: a tree of sums in 64-bit integers.

A float32 running sum is too coarse for this: at 1,000,000 its spacing is 0.06, against increments of 1 to 3
(../spec/baq.md 4.4), and JAX's other floats and integers have 32 bits, too. So a number here is two words of 32 bits,
and a priority is stored as a whole number of 2^-28. Sums are exact, whatever their order, and do not drift; a row is
drawn with the probability of its stored priority to 1 part in 2^62 of the total.

Level 0 holds the priorities, level k + 1 the sums of level k's blocks of FAN_OUT, the last level is one block.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FAN_OUT = 16  # a draw reads 6 blocks of it at 16,000,000 rows
FRACTION_BITS = 28  # a priority is right to 4e-9: to 4e-6 of one of 0.001
LARGEST = 16384.0  # priorities above count as it: the sum of 4,000,000 of them still fits


class Words(NamedTuple):
    """Whole numbers below 2^64, in two uint32 of one shape."""

    high: jax.Array
    low: jax.Array


SumTree = tuple[Words, ...]  # levels [blocks, FAN_OUT]


def build(priorities: jax.Array) -> SumTree:
    """The tree of `priorities` [N]; rows without one yet get 0, and are not drawn."""
    numbers, levels = _words(priorities), []
    while True:
        padding = -numbers.high.shape[0] % FAN_OUT
        block = Words(*(jnp.pad(x, (0, padding)).reshape(-1, FAN_OUT) for x in numbers))
        levels.append(block)
        if block.high.shape[0] == 1:
            return tuple(levels)
        numbers = _sums(block)


def replaced(tree: SumTree, indices: jax.Array, priorities: jax.Array) -> SumTree:
    """The tree with other `priorities` [n] at `indices` [n]; an index that stands there twice needs the same twice."""
    levels, numbers = [], _words(priorities)
    for level in tree:
        block, slot = indices // FAN_OUT, indices % FAN_OUT
        changed = Words(*(x.at[block, slot].set(number) for x, number in zip(level, numbers, strict=True)))
        levels.append(changed)
        indices, numbers = block, _sums(_rows(changed, block))
    return tuple(levels)


def total(tree: SumTree) -> Words:
    """The sum of all priorities []."""
    return _rows(_sums(tree[-1]), jnp.int32(0))


def priorities_at(tree: SumTree, indices: jax.Array) -> jax.Array:
    """The priorities [n] at `indices` [n], as floats."""
    return as_float(Words(*(x[indices // FAN_OUT, indices % FAN_OUT] for x in tree[0])))


def as_float(number: Words) -> jax.Array:
    """The priority that a stored number means."""
    high, low = number.high.astype(float), number.low.astype(float)
    return high * 2.0 ** (32 - FRACTION_BITS) + low * 2.0**-FRACTION_BITS


def draw(tree: SumTree, key: jax.Array, n: int, stratified: bool = False) -> jax.Array:
    """[n] indices, independent, or `stratified`: one from each of n equal parts of the total, in their order."""
    first, rest = jax.random.bits(key, (2, n), jnp.uint32)
    if stratified:
        edges = np.arange(n + 1, dtype=np.uint64) * (1 << 32) // n
        width = np.minimum(np.diff(edges), (1 << 32) - 1).astype(np.uint32)
        first = edges[:-1].astype(np.uint32) + _product(jnp.asarray(width), first).high
    return find(tree, at_fraction(tree, first, rest))


def at_fraction(tree: SumTree, first: jax.Array, rest: jax.Array) -> Words:
    """The part (first + rest / 2^32) / 2^32 of the total [n], rounded down; uint32 [n] each."""
    whole = total(tree)
    nothing = jnp.zeros_like(first)
    small, finer = _product(whole.low, first).high, _product(whole.high, rest).high
    return _add(_add(_product(whole.high, first), Words(nothing, small)), Words(nothing, finer))


def find(tree: SumTree, target: Words) -> jax.Array:
    """The first rows [n] whose running sum of priorities exceeds `target` [n], which lies below the total."""
    node = jnp.zeros(target.high.shape[0], jnp.int32)
    for level in reversed(tree):
        running = _running(_rows(level, node))  # [n, FAN_OUT]
        beyond = _at_most(running, Words(target.high[:, None], target.low[:, None]))
        # A sum over an axis, so that XLA on a CPU does not work it all out again for everything that reads the result.
        passed = beyond[:, :-1].sum(1, dtype=jnp.int32)  # if none of these is beyond, it is the last one
        last = jnp.maximum(passed - 1, 0)[:, None]
        before = Words(*(jnp.where(passed > 0, jnp.take_along_axis(x, last, 1)[:, 0], 0) for x in running))
        target = _subtract(target, before)
        node = node * FAN_OUT + passed
    return node


def _words(priorities: jax.Array) -> Words:
    """Exact: the high word and the remainder are parts of one float."""
    clipped = jnp.clip(priorities, 0, LARGEST)
    unit = 2.0 ** (32 - FRACTION_BITS)
    high = jnp.floor(clipped / unit)
    low = jnp.floor((clipped - high * unit) * 2.0**FRACTION_BITS)
    return Words(high.astype(jnp.uint32), low.astype(jnp.uint32))


def _rows(number: Words, at: jax.Array) -> Words:
    return Words(number.high[at], number.low[at])


def _add(a: Words, b: Words) -> Words:
    low = a.low + b.low
    return Words(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def _subtract(a: Words, b: Words) -> Words:
    return Words(a.high - b.high - (a.low < b.low).astype(jnp.uint32), a.low - b.low)


def _at_most(a: Words, b: Words) -> jax.Array:
    """a <= b."""
    return (a.high < b.high) | ((a.high == b.high) & (a.low <= b.low))


def _running(block: Words) -> Words:
    """Sums of [n, FAN_OUT] up to each entry."""
    shift = 1
    while shift < FAN_OUT:
        block = _add(block, Words(*(jnp.pad(x[:, :-shift], ((0, 0), (shift, 0))) for x in block)))
        shift *= 2
    return block


def _sums(block: Words) -> Words:
    """[n, FAN_OUT] -> [n]."""
    while block.high.shape[1] > 1:
        block = _add(Words(block.high[:, ::2], block.low[:, ::2]), Words(block.high[:, 1::2], block.low[:, 1::2]))
    return Words(block.high[:, 0], block.low[:, 0])


def _product(a: jax.Array, b: jax.Array) -> Words:
    """a b of uint32, all 64 bits of it."""
    half = jnp.uint32(0xFFFF)
    a_high, a_low, b_high, b_low = a >> 16, a & half, b >> 16, b & half
    lowest, middle = a_low * b_low, a_high * b_low
    cross = (lowest >> 16) + (middle & half) + a_low * b_high
    return Words(a_high * b_high + (middle >> 16) + (cross >> 16), (cross << 16) | (lowest & half))
