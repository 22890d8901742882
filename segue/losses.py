"""Pure pieces that several methods' losses are made of."""

from __future__ import annotations

import jax

from segue.core.types import Batch


def td_target(batch: Batch, discount: float, next_value: jax.Array) -> jax.Array:
    """y = r + gamma (1 - d) v', all [B]. No gradient: it is computed outside what is differentiated.

    Raises AssertionError if `next_value` is not [B]: a [B, 1] would broadcast silently.
    """
    assert next_value.shape == batch.reward.shape, (next_value.shape, batch.reward.shape)
    return jax.lax.stop_gradient(batch.reward + discount * (1 - batch.terminal) * next_value)
