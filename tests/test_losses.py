"""Pieces that several losses are made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from segue.losses import lowest

VALUES = jnp.asarray([[3.0, 1.0, 2.0, 5.0], [2.0, 4.0, 2.0, 6.0], [9.0, 7.0, 2.0, 5.5]])


def test_lowest_is_the_minimum_over_critics() -> None:
    np.testing.assert_array_equal(lowest(VALUES), [2, 1, 2, 5])
    np.testing.assert_array_equal(lowest(-VALUES[:, :, None])[:, 0], [-9, -7, -2, -6])


def test_its_gradient_is_the_lowest_critics_alone_also_where_several_are_equal() -> None:
    gradient = jax.grad(lambda values: (lowest(values) * jnp.arange(1, 5)).sum())(VALUES)
    np.testing.assert_array_equal(gradient, [[0, 2, 3, 4], [1, 0, 0, 0], [0, 0, 0, 0]])


def test_values_that_are_not_numbers_are_seen() -> None:
    assert np.isnan(lowest(VALUES.at[1, 0].set(jnp.nan))[0])
