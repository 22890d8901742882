"""Statistics against numbers computed by hand."""

import numpy as np
import pytest
from numpy.typing import ArrayLike

from segue.statistics import bootstrap_interval, interquartile_mean, standard_error, standard_error_of_mean


def test_standard_error_by_hand() -> None:
    # mean 4, squared deviations 4 + 0 + 4 = 8, variance 8 / 2 = 4, s = 2
    assert standard_error([2.0, 4.0, 6.0]) == pytest.approx(2 / np.sqrt(3))


def test_standard_error_divides_by_n_minus_1() -> None:
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)  # with n it would be 1 / √2
    with pytest.raises(ValueError, match="at least 2"):
        standard_error([1.0])


def test_standard_error_of_mean_by_hand() -> None:
    assert standard_error_of_mean([3.0, 4.0]) == pytest.approx(2.5)  # √(9 + 16) / 2


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean([100.0, 1.0, 2.0, 3.0, 4.0, -50.0, 5.0, 6.0]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert interquartile_mean([1.0, 2.0, 9.0]) == pytest.approx(4.0)  # ⌊3/4⌋ = 0: nothing is cut


def test_bootstrap_of_equal_seeds_has_no_width() -> None:
    assert bootstrap_interval([[5.0, 5.0, 5.0], [9.0, 9.0, 9.0]]) == (7.0, 7.0)


def test_bootstrap_resamples_within_tasks() -> None:
    # Across tasks, a resample could hold only the bad task; within, the mean stays between 49.5 and 51.5.
    low, high = bootstrap_interval([[0.0, 1.0, 2.0], [99.0, 100.0, 101.0]])
    assert 49.5 <= low < 50.5 < high <= 51.5


def test_bootstrap_of_two_values_by_hand() -> None:
    # Resamples of {0, 1}: mean 0, ½, 1 with probabilities ¼, ½, ¼, so both 2.5 % tails lie at the ends.
    assert bootstrap_interval([[0.0, 1.0]]) == (0.0, 1.0)


def test_bootstrap_agrees_with_the_normal_interval_on_many_seeds() -> None:
    x = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_interval([x])
    # For normal data the variance of the 25 % trimmed mean is 1.195 times that of the mean.
    half = 1.96 * np.sqrt(1.195) * standard_error(x)
    assert low == pytest.approx(interquartile_mean(x) - half, abs=0.015)
    assert high == pytest.approx(interquartile_mean(x) + half, abs=0.015)


def test_bootstrap_is_seeded() -> None:
    scores = [np.random.default_rng(0).normal(size=20)]
    assert bootstrap_interval(scores) == bootstrap_interval(scores, seed=0)
    assert bootstrap_interval(scores) != bootstrap_interval(scores, seed=3)


@pytest.mark.parametrize("bad", [[], [[1.0, 2.0]]])
def test_scores_must_be_a_vector(bad: ArrayLike) -> None:
    with pytest.raises(ValueError, match="vector"):
        interquartile_mean(bad)
    with pytest.raises(ValueError, match="task"):
        bootstrap_interval([])
