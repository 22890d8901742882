"""Rows and noise of made-up numbers, and whether two trees are the same, for tests of single updates."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from segue.core.types import Batch, PyTree


def rows_of(seed: int, rows: int = 8) -> Batch:
    """Observations [rows, 3], actions [rows, 2] in [-1, 1]; about half of the rows end an episode."""
    rng: Any = np.random.default_rng(seed)  # Any: a Batch of NumPy arrays, with nothing to compile
    return Batch(
        obs=rng.normal(size=(rows, 3)),
        action=rng.uniform(-1, 1, (rows, 2)),
        reward=rng.normal(size=rows),
        next_obs=rng.normal(size=(rows, 3)),
        terminal=rng.integers(0, 2, rows).astype(float),
        extras={},
    )


def noise(seed: int, *shape: int) -> Any:
    """Standard normal numbers, others than those of the rows."""
    return np.random.default_rng(100 + seed).normal(size=shape)


def assert_close(a: PyTree, b: PyTree, tolerance: float = 1e-6) -> None:
    """Every entry."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


def differ(a: PyTree, b: PyTree) -> bool:
    """Some entry does, visibly."""
    return any(not np.allclose(x, y, atol=1e-6) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
