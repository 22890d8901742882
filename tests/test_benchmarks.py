"""The counting and the loop on which the benchmark's shares rest, and one row from end to end."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks.matrix_rate import matrix_rate, repeat
from benchmarks.peer import PEERS, peer_of
from benchmarks.products import Product, products_in
from benchmarks.subjects import Job, Subject, subjects
from benchmarks.updates import updates_per_second
from segue.core.phases import Phase
from segue.core.types import Spec
from segue.methods.cql import CQL
from segue.methods.ssar import StateAdaptive
from segue.methods.td3_bc import TD3BC
from segue.recipes import METHODS

# By hand, batch 8: an actor 2-4-4-1 has 28 products of numbers a row and a critic 3-4-4-1 has 32, of which 20 each
# above the first layer; times 2 x 8 they are 448, 512 and 320 FLOP.
CRITIC_STEP = (448 + 2 * 512) + 2 * (512 + 512 + 320)
POLICY_STEP = (448 + 448 + 320) + (512 + 320 + 2 * 8 * 4 * 1)
COEFFICIENT = 2 * 8 * (27 + 27 + 21)  # 2-3-3-3-1 has 27, of which 21 above the first layer
TINY = Spec(2, 1)
SMALL = TD3BC(hidden_sizes=(4, 4), batch_size=8)
SMALL_SSAR = replace(SMALL, critic_layer_norm=True, coefficient=StateAdaptive(coefficient_hidden_sizes=(3, 3, 3)))

# CQL by hand, same batch, two samples of a kind. Actor 2-4-4-2: 32 products a row, 24 above the first layer. Critics
# 3-4-4-1: 32 and 20; with 7 actions a state the first layer takes 8 for the state and 4 for each action.
ACTOR, ACTOR_INPUT, CRITIC, CRITIC_INPUT = (16 * n for n in (32, 24, 32, 20 + 4))
SEVERAL, SEVERAL_INPUT = 16 * (8 + 7 * (4 + 20)), 16 * 7 * 20
CQL_STEP = (
    (2 * ACTOR + ACTOR + ACTOR_INPUT)  # on states and next states; gradients on states
    + 2 * (CRITIC + CRITIC_INPUT)  # the actor's action, and the gradient with respect to it
    + 2 * CRITIC  # targets
    + 2 * (2 * SEVERAL + SEVERAL_INPUT)
)
SMALL_CQL = CQL(hidden_sizes=(4, 4), critic_hidden_sizes=(4, 4), batch_size=8, num_sampled_actions=2)
SMALL_CQL_SSAR = replace(SMALL_CQL, critic_layer_norm=True, coefficient=SMALL_SSAR.coefficient)


def prepare(algorithm, spec=TINY, seeds=1):
    return Job.prepare(Subject("tested", "tested", Phase("offline", algorithm, 1)), spec, seeds)


@pytest.mark.parametrize(
    ("algorithm", "flop"),
    [
        (SMALL, CRITIC_STEP + POLICY_STEP / 2),
        (SMALL_SSAR, CRITIC_STEP + (POLICY_STEP + COEFFICIENT) / 2),
        (SMALL_CQL, CQL_STEP),
        (SMALL_CQL_SSAR, CQL_STEP + ACTOR + COEFFICIENT),  # the coefficient sees the new actor
    ],
    ids=["td3_bc", "td3_bc_ssar", "cql", "cql_ssar"],
)
def test_counted_flop_of_an_update(algorithm, flop):
    assert sum(p.flop for p in prepare(algorithm).products()) == flop


# By hand at the paper's size on Hopper, as published before the counting was automatic.
@pytest.mark.parametrize(
    ("algorithm", "flop"),
    [(TD3BC(), 403_046_400), (TD3BC(critic_layer_norm=True, coefficient=StateAdaptive()), 808_976_384)],
    ids=["td3_bc", "td3_bc_ssar"],
)
def test_counted_flop_at_the_papers_size(algorithm, flop):
    assert sum(p.flop for p in prepare(algorithm, Spec(11, 3)).products()) == flop


def test_forms_of_a_layer():
    def loss(w, x):
        return jax.nn.relu(x @ w).sum()

    x, w = jnp.ones((5, 2)), jnp.ones((2, 3))
    assert set(products_in(jax.grad(loss, argnums=(0, 1)), w, x)) == {
        Product(5, 2, 3, "forward"),
        Product(5, 3, 2, "input_gradient"),
        Product(2, 5, 3, "weight_gradient"),
    }


def test_loops_branches_stacks_and_parts():
    x, w = jnp.ones((4, 5, 2)), jnp.arange(24.0).reshape(4, 2, 3)
    assert products_in(lambda x, w: jnp.einsum("sbi,sio->sbo", x, w), x, w) == [Product(5, 2, 3, stack=4)]
    assert products_in(lambda x, w: x @ w, x, w[0]) == [Product(20, 2, 3)]
    square = jnp.arange(9.0).reshape(3, 3)

    def body(carry, _):
        return carry @ square, None

    assert products_in(lambda x: lax.scan(body, x, None, length=7)[0], square) == [Product(3, 3, 3, count=7)]
    branches = products_in(lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ square @ x, lambda x: x @ square, x), square)
    assert sum(p.count for p in branches) == 2
    assert products_in(lambda x: (x @ w[0])[:, 1:2], x[0]) == [Product(5, 2, 1)]
    assert products_in(lambda x: (x @ square, x @ square), square) == [Product(3, 3, 3)]  # XLA makes equal ones once
    assert products_in(lambda x: x @ jnp.full((3, 1), 1 / 3), square) == []  # a mean in disguise
    with pytest.raises(ValueError, match="while loop"):
        products_in(lambda x: lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, x), square)


@pytest.mark.parametrize("role", ["forward", "weight_gradient", "input_gradient"])
def test_the_loop_makes_every_product(role):
    left, right = np.random.default_rng(0).uniform(size=(2, 3, 3)).astype(np.float32)
    expected, x = np.zeros((3, 3), np.float32), left.copy()
    for _ in range(4):
        x[0, 0] = expected[0, 0]
        expected = {"forward": x @ right, "weight_gradient": x.T @ right, "input_gradient": x @ right.T}[role]
    out = repeat(role, jnp.asarray(left), jnp.asarray(right), jnp.zeros((3, 3)), jnp.int32(4))
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_the_rate_of_a_mix_is_its_flop_over_its_time(monkeypatch):
    monkeypatch.setattr("benchmarks.matrix_rate.SECONDS_PER_TRIAL", 1e-3)
    rate = matrix_rate([Product(8, 8, 8, count=2.0), Product(8, 8, 8), Product(8, 4, 8, "weight_gradient", stack=3)])
    assert len(rate.timings) == 2  # equal products are measured once
    assert rate.flop == 3 * 2 * 8**3 + 3 * 2 * 8 * 4 * 8
    assert rate.flop_per_second == pytest.approx(rate.flop / sum(t.product.count * t.seconds for t in rate.timings))


def test_a_row_end_to_end():
    job = prepare(SMALL_SSAR, seeds=2)
    assert updates_per_second(job, "wall", trial_seconds=0.01) > 0
    assert job.products() == prepare(SMALL_SSAR).products()


def test_every_method_is_measured_and_every_peer_has_a_method():
    found = subjects()
    assert {subject.method for subject in found.values()} == set(METHODS)
    spec = Spec(11, 3)
    for name in PEERS.keys() & found.keys():
        peer = peer_of(found[name], spec)
        assert peer and peer.settings["batch_size"] == found[name].phase.algorithm.batch_size
