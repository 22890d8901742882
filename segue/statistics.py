"""Statistics over seeds and tasks: the few that Segue reports, on NumPy and SciPy alone.

A *stratum* is one task (dataset and environment); its scores are one number per seed. Seeds are resampled within
their stratum, never across strata, so that an interval speaks of "the same tasks, other seeds".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import trim_mean

BOOTSTRAP_SAMPLES = 5_000
SEEDS_FOR_INTERVAL = 3  # with fewer, a bootstrap interval only repeats the two values
CONFIDENCE = 0.95
CUT = 0.25  # from either end, for the interquartile mean


def standard_error(values: ArrayLike) -> float:
    """Standard error of the mean of independent values [K]: their sample standard deviation / √K.

    It needs two values at least: of one value nothing can be said, and 0 would be a lie.
    """
    x = _vector(values)
    if x.size < 2:
        raise ValueError(f"a standard error needs at least 2 values, got {x.size}")
    return float(x.std(ddof=1) / np.sqrt(x.size))


def standard_error_of_mean(errors: ArrayLike) -> float:
    """Standard error of the plain mean of K independent estimates with these standard errors [K]: √(Σ eᵢ²) / K."""
    e = _vector(errors)
    return float(np.sqrt(np.sum(e**2)) / e.size)


def interquartile_mean(values: ArrayLike) -> float:
    """Mean of the values [K] that remain when the lowest and the highest quarter, ⌊K/4⌋ each, are cut off.

    Agarwal et al. 2021, arXiv 2108.13264; with fewer than four values nothing is cut.
    """
    return float(trim_mean(_vector(values), proportiontocut=CUT))


def bootstrap_interval(strata: Sequence[ArrayLike], *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the interquartile mean by stratified bootstrap (arXiv 2108.13264, section 4.1).

    `strata` holds one array of seed scores per task. Each of the 5,000 resamples draws, with replacement, as many
    seeds from every task as it has, and takes the mean over all of them together. Equal `seed`, equal interval.
    """
    groups = [_vector(stratum) for stratum in strata]
    if not groups:
        raise ValueError("a bootstrap interval needs at least one task")
    rng = np.random.default_rng(seed)
    draws = np.concatenate(
        [g[rng.integers(g.size, size=(BOOTSTRAP_SAMPLES, g.size))] for g in groups], axis=1
    )  # [BOOTSTRAP_SAMPLES, all seeds]
    estimates = trim_mean(draws, proportiontocut=CUT, axis=1)  # all at once: one by one it takes half a second
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return float(low), float(high)


def _vector(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"expected a non-empty vector of scores, got shape {x.shape}")
    return x
