"""Draws by priority: what the tree's tables say of every row's probability, and what is drawn."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core import sum_tree
from segue.core.sum_tree import FAN_OUT, LARGEST, SumTree, Words

ROWS = 2_000_000
draw = jax.jit(sum_tree.draw, static_argnums=(2, 3))


def whole(number: Words) -> np.ndarray:
    """As 64-bit integers, on the host."""
    return (np.asarray(number.high, np.uint64) << np.uint64(32)) + np.asarray(number.low, np.uint64)


def words(numbers: np.ndarray) -> Words:
    high, low = numbers >> np.uint64(32), numbers & np.uint64(0xFFFFFFFF)
    return Words(jnp.asarray(high.astype(np.uint32)), jnp.asarray(low.astype(np.uint32)))


def tables(tree: SumTree, rows: int) -> np.ndarray:
    """The probability of every row by the differences of the running sum."""
    stored = whole(tree[0]).reshape(-1)[:rows]
    assert int(whole(sum_tree.total(tree))) == int(stored.sum(dtype=np.uint64))
    return stored / float(stored.sum(dtype=np.uint64))


@pytest.fixture(scope="module")
def large() -> tuple[np.ndarray, SumTree]:
    priorities = np.random.default_rng(0).uniform(1, 4, ROWS).astype(np.float32)
    return priorities, jax.jit(sum_tree.build)(priorities)


def test_probabilities_are_exact_at_two_million_rows(large: Any) -> None:
    """baq.md 8.7: to 1e-6 of each; a running sum in float32 fails by far."""
    priorities, tree = large
    want = priorities / priorities.sum(dtype=np.float64)
    assert np.abs(tables(tree, ROWS) / want - 1).max() < 1e-6
    single = np.cumsum(priorities, dtype=np.float32)
    wrong = np.diff(single, prepend=np.float32(0)) / single[-1]
    assert np.abs(wrong / want - 1).max() > 1e-2


def test_every_target_finds_its_row(large: Any) -> None:
    """The first and the last number of a row's part, in the front, the middle and the end."""
    _, tree = large
    sums = np.cumsum(whole(tree[0]).reshape(-1)[:ROWS], dtype=np.uint64)
    rows = np.concatenate([np.arange(1, 300), np.arange(ROWS // 2, ROWS // 2 + 300), np.arange(ROWS - 300, ROWS)])
    find = jax.jit(sum_tree.find)
    np.testing.assert_array_equal(find(tree, words(sums[rows - 1])), rows)
    np.testing.assert_array_equal(find(tree, words(sums[rows] - np.uint64(1))), rows)


def test_replaced_priorities_equal_those_of_a_new_tree() -> None:
    rng = np.random.default_rng(1)
    priorities = rng.uniform(1e-3, 1e3, 5000).astype(np.float32)
    rows: Any = rng.integers(0, 5000, 64)
    changed: Any = priorities.copy()
    changed[rows] = np.float32(rows % 7) * np.float32(0.3)
    tree = jax.jit(sum_tree.replaced)(sum_tree.build(jnp.asarray(priorities)), rows, changed[rows])
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(sum_tree.build(jnp.asarray(changed))), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(sum_tree.priorities_at(tree, rows), changed[rows], rtol=1e-6, atol=1e-9)


def test_small_priorities_keep_their_proportion_beside_large_ones() -> None:
    """0.001 beside 1000, the ends of balanced replay's range."""
    priorities = np.tile(np.asarray([1e-3, 1e3], np.float32), 8 * FAN_OUT)
    share = tables(sum_tree.build(jnp.asarray(priorities)), len(priorities))
    np.testing.assert_allclose(share[0] / share[1], 1e-6, rtol=4e-6)


def test_draws_have_the_probabilities_of_their_priorities() -> None:
    """baq.md 8.3: (1, 2, 5), within 4 standard errors of 1,000,000 draws; a row without a priority is never drawn."""
    tree = sum_tree.build(jnp.asarray([1.0, 2.0, 0.0, 5.0]))
    n = 1_000_000
    drawn = np.bincount(np.asarray(draw(tree, jax.random.key(0), n)), minlength=4) / n
    want = np.array([0.125, 0.25, 0, 0.625])
    assert (np.abs(drawn - want) <= 4 * np.sqrt(want * (1 - want) / n)).all(), drawn


def test_stratified_draws_take_one_of_each_part() -> None:
    """Of equal priorities, as many parts as rows: each row once. Of independent draws that is next to impossible."""
    tree = sum_tree.build(jnp.ones(100))
    for seed in range(3):
        np.testing.assert_array_equal(draw(tree, jax.random.key(seed), 100, True), np.arange(100))
        assert len(np.unique(draw(tree, jax.random.key(seed), 100))) < 100
    assert draw(tree, jax.random.key(0), 1, True).shape == (1,)


@pytest.mark.parametrize("priority", [LARGEST, 1e6])
def test_four_million_of_the_largest_priority_do_not_overflow(priority: float) -> None:
    assert 4_000_000 * int(LARGEST) * 2**sum_tree.FRACTION_BITS < 2**64
    tree = sum_tree.build(jnp.full(3, priority))
    assert float(sum_tree.as_float(sum_tree.total(tree))) == 3 * LARGEST


def test_products_have_all_their_bits() -> None:
    numbers = np.random.default_rng(0).integers(0, 2**32, (2, 1000), dtype=np.uint64)
    numbers[:, 0] = 2**32 - 1
    a, b = (jnp.asarray(x.astype(np.uint32)) for x in numbers)
    np.testing.assert_array_equal(whole(sum_tree._product(a, b)), numbers[0] * numbers[1])
