"""The counting and the loop on which the benchmark's shares rest."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.matrix_rate import Product, matrix_rate, products_of_td3_bc, repeat

# By hand, batch 8: an actor 2-4-4-1 has 28 products of numbers a row and a critic 3-4-4-1 has 32, of which 20 each
# above the first layer; times 2 x 8 they are 448, 512 and 320 FLOP.
CRITIC_STEP = (448 + 2 * 512) + 2 * (512 + 512 + 320)
POLICY_STEP = (448 + 448 + 320) + (512 + 320 + 2 * 8 * 4 * 1)
COEFFICIENT = 2 * 8 * (27 + 27 + 21)  # 2-3-3-3-1 has 27, of which 21 above the first layer


@pytest.mark.parametrize(("width", "policy_step"), [(None, POLICY_STEP), (3, POLICY_STEP + COEFFICIENT)])
def test_counted_flop_of_an_update(width, policy_step):
    products = products_of_td3_bc(2, 1, hidden=(4, 4), batch=8, coefficient_width=width, policy_interval=2)
    assert sum(p.flop for p in products) == CRITIC_STEP + policy_step / 2


@pytest.mark.parametrize("role", ["forward", "weight_gradient", "input_gradient"])
def test_the_loop_makes_every_product(role):
    left, right = np.random.default_rng(0).uniform(size=(2, 3, 3)).astype(np.float32)
    expected, x = np.zeros((3, 3), np.float32), left.copy()
    for _ in range(4):
        x[0, 0] = expected[0, 0]
        expected = {"forward": x @ right, "weight_gradient": x.T @ right, "input_gradient": x @ right.T}[role]
    out = repeat(role, jnp.asarray(left), jnp.asarray(right), jnp.zeros((3, 3)), jnp.int32(4))
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_the_rate_of_a_mix_is_its_flop_over_its_time():
    rate = matrix_rate([Product(8, 8, 8, count=2.0), Product(8, 8, 8), Product(8, 4, 8, "weight_gradient")])
    assert len(rate.timings) == 2  # equal products are measured once
    assert rate.flop == 3 * 2 * 8**3 + 2 * 8 * 4 * 8
    assert rate.flop_per_second == pytest.approx(rate.flop / sum(t.product.count * t.seconds for t in rate.timings))
