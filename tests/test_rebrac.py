"""ReBRAC against numbers worked out by hand (no recording of it exists), and the next actions that it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.model import Adam, Model
from segue.core.replay import Memory, Mix, Ring, gather
from segue.core.types import Batch, Metrics, PyTree, Spec
from segue.methods.rebrac import ReBRAC, State
from segue.preparation import Preparation
from segue.replay_start import prepared_rows
from tests.small import pendulum_data

pytestmark = pytest.mark.usefixtures("float64")

RATE = 0.1  # Adam's first step is the learning rate in the direction of the gradient's sign


@dataclass(frozen=True)
class Actions:
    """pi(s) = s w, with S = A = 2."""

    def apply(self, w: jax.Array, obs: jax.Array) -> jax.Array:
        return obs * w


@dataclass(frozen=True)
class Values:
    """Q_i(s, a) = c_i + sum_j a_j."""

    def apply(self, c: jax.Array, obs: jax.Array, action: jax.Array) -> jax.Array:
        return c[:, None] + action.sum(-1)


def model(net: Any, params: PyTree, target: PyTree) -> Model:
    optimizer = Adam(RATE)
    params = jnp.asarray(params)
    return Model(params, jnp.asarray(target), optimizer.transform().init(params), net, optimizer)


def start() -> State:
    return State(
        actor=model(Actions(), 0.5, 0.25),
        critic=model(Values(), [3.0, 1.0], [5.0, 4.0]),
        updates=jnp.int32(0),
    )


def batch(known: tuple[float, float] = (1.0, 1.0)) -> Batch:
    """Two rows; the second is terminal."""
    return Batch(
        obs=jnp.array([[1.0, 0.0], [0.0, 2.0]]),
        action=jnp.array([[0.5, 0.5], [0.0, 0.0]]),
        reward=jnp.array([1.0, 2.0]),
        next_obs=jnp.array([[2.0, -2.0], [1.0, 1.0]]),
        terminal=jnp.array([0.0, 1.0]),
        extras={"next_action": jnp.array([[0.5, 0.5], [1.0, 1.0]]), "next_action_known": jnp.array(known)},
    )


def update(
    algorithm: ReBRAC, rows: Batch, noise: float = 0.0, policy_step: bool = False
) -> tuple[State, Metrics]:
    return algorithm.update(start(), rows, jnp.full((2, 2), noise), policy_step)


BASE: dict[str, Any] = {"discount": 0.5, "actor_penalty": 2.0, "critic_penalty": 3.0, "target_update_rate": 0.1}


@pytest.mark.parametrize(
    ("changes", "known", "noise", "loss", "error"),
    [
        # pibar(s') = 0.25 s' = (0.5, -0.5); |a~ - a'|^2 = 0 + 1 = 1; min Qbar = min(5, 4) + 0 = 4
        # y_1 = 1 + 0.5 (4 - 3 x 1) = 1.5, y_2 = 2 (terminal)
        # Q(s, a) = (4, 3) and (2, 1); errors (2.5, 1) and (0.5, -1): means (6.25 + 1) / 2 + (0.25 + 1) / 2 = 4.25
        # second row's error, in the log alone: pibar = (0.25, 0.25), 2 x 0.5625 = 1.125; mean (1 + 1.125) / 2
        ({}, (1.0, 1.0), 0.0, 4.25, 1.0625),
        # without a known next action: y_1 = 1 + 0.5 x 4 = 3; errors (1, 1), (-1, -1): 1 + 1
        ({}, (0.0, 0.0), 0.0, 2.0, 0.0),
        # the same without a penalty, but the error is logged
        ({"critic_penalty": 0.0}, (1.0, 1.0), 0.0, 2.0, 1.0625),
        # noise 0.2 x 1 = 0.2: a~ = (0.7, -0.3), error 0.04 + 0.64 = 0.68, min Qbar = 4.4; y_1 = 1 + 0.5 (4.4 - 2.04)
        # = 2.18; errors (1.82, 1), (-0.18, -1): (3.3124 + 1) / 2 + (0.0324 + 1) / 2 = 2.6724
        # second row: (0.45, 0.45), 2 x 0.3025 = 0.605; mean (0.68 + 0.605) / 2 = 0.6425
        ({}, (1.0, 1.0), 1.0, 2.6724, 0.6425),
        # noise 2, clipped at 0.5: a~ = (1, 0), error 0.25 + 0.25 = 0.5, min Qbar = 5; y_1 = 1 + 0.5 (5 - 1.5) = 2.75
        # errors (1.25, 1), (-0.75, -1): (1.5625 + 1) / 2 + (0.5625 + 1) / 2 = 2.0625
        # second row: (0.75, 0.75), 2 x 0.0625 = 0.125; mean 0.3125
        ({}, (1.0, 1.0), 10.0, 2.0625, 0.3125),
    ],
)
def test_the_critic_loss(
    changes: dict[str, Any], known: tuple[float, float], noise: float, loss: float, error: float
) -> None:
    s, metrics = update(ReBRAC(**BASE | changes), batch(known), noise)
    np.testing.assert_allclose(metrics["critic_loss"], loss, rtol=1e-12)
    np.testing.assert_allclose(metrics["next_error_mean"], error, rtol=1e-12)
    np.testing.assert_allclose(metrics["next_action_known"], np.mean(known))
    np.testing.assert_allclose(metrics["critic_1_mean"], 3.5)  # Q_1 is 4 and 3
    # Nothing else moves, and the targets stand.
    assert float(s.actor.params) == 0.5 and s.critic.target.tolist() == [5.0, 4.0] and int(s.updates) == 1


def test_the_actor_loss_uses_the_new_critics() -> None:
    """The critics step first: gradients of c are 2 mean(error) = (3.5, -0.5), so c = (2.9, 1.1).

    pi(s) = (0.5, 0) and (0, 1); min Q = 1.1 + (0.5, 1) = 1.6, 2.1: mean 1.85, which is its own scale: -1.
    |pi(s) - a|^2 = 0.25 and 1: mean 0.625, times beta_1 = 2: 1.25.
    """
    s, metrics = update(ReBRAC(**BASE), batch(), policy_step=True)
    np.testing.assert_allclose(s.critic.params, [2.9, 1.1], atol=1e-7)  # Adam's epsilon
    np.testing.assert_allclose(metrics["actor_loss"], 1.25 - 1.0, rtol=1e-12)
    np.testing.assert_allclose(metrics["action_error_mean"], 0.625, rtol=1e-12)


def test_the_actor_loss_with_raw_values() -> None:
    """lambda = 1: 1.25 - 1.85."""
    _, metrics = update(ReBRAC(**BASE, normalize_q=False), batch(), policy_step=True)
    np.testing.assert_allclose(metrics["actor_loss"], 1.25 - 1.85, atol=1e-7)


@pytest.mark.parametrize(
    ("beta", "direction"),
    [
        # d/dw: the penalty's is beta mean(2 (0.5 - 0.5) 1, 2 (1 - 0) 2) = 2 beta; the values' -mean(1, 2) / 1.85, -0.81
        (2.0, -1),
        (0.3, 1),
    ],
)
def test_the_actor_goes_down_its_loss(beta: float, direction: int) -> None:
    """And on policy steps the targets follow by a tenth, the actor's 0.25 and the critics' (5, 4)."""
    s, _ = update(ReBRAC(**BASE | {"actor_penalty": beta}), batch(), policy_step=True)
    new = 0.5 + direction * RATE
    np.testing.assert_allclose(s.actor.params, new, atol=1e-7)
    np.testing.assert_allclose(s.actor.target, 0.9 * 0.25 + 0.1 * new, atol=1e-7)
    np.testing.assert_allclose(s.critic.target, [0.9 * 5 + 0.1 * 2.9, 0.9 * 4 + 0.1 * 1.1], atol=1e-7)


def test_the_networks_are_the_papers() -> None:
    """Three hidden layers of 256, layer norm in the critics alone."""
    state = jax.eval_shape(lambda: ReBRAC().init({}, Spec(5, 2), jax.random.key(0)))
    assert [x["kernel"].shape for x in state.actor.params.values()] == [(5, 256), (256, 256), (256, 256), (256, 2)]
    assert sorted(state.critic.params[1]) == [*(f"layers_{i}" for i in range(4)), *(f"norm_{i}" for i in range(3))]


# -- the action that followed


def walk() -> Batch:
    """Rows 0, 1, 2 are an episode that a time limit cuts at state 3; rows 3, 4 one that ends at state 9."""
    columns: Any = {
        "obs": np.array([[0.0], [1.0], [2.0], [7.0], [8.0]]),
        "action": np.array([[0.0], [0.1], [0.2], [0.3], [0.4]]),
        "next_obs": np.array([[1.0], [2.0], [3.0], [8.0], [9.0]]),
        "reward": np.zeros(5),
        "terminal": np.array([0.0, 0.0, 0.0, 0.0, 1.0]),
    }
    return Batch(**columns, extras={})


@pytest.mark.parametrize("mix", ["offline", "online", "joined"])
def test_the_next_action_is_the_following_rows_if_it_goes_on_there(mix: Mix) -> None:
    """In the dataset, and in a ring that has room for more: its newest row's is not known yet."""
    ring_rows = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x)]), walk())
    memory = Memory(walk(), {}, Ring(ring_rows, jnp.int32(5)))
    first = 5 if mix == "joined" else 0
    batch = gather(mix, memory, jnp.arange(first, first + 5), next_actions=True)
    assert batch.extras["next_action_known"].tolist() == [1, 1, 0, 1, 0]
    np.testing.assert_allclose(batch.extras["next_action"][:, 0][np.array([0, 1, 3])], [0.1, 0.2, 0.4])


def test_the_newest_row_of_a_ring_learns_of_its_next_action_with_the_next_step() -> None:
    rows = jax.tree.map(np.asarray, walk())
    for size, known in ((1, 0), (2, 1)):
        batch = gather("online", Memory(None, {}, Ring(rows, jnp.int32(size))), jnp.array([0]), next_actions=True)
        assert batch.extras["next_action_known"].tolist() == [known]
    assert batch.extras["next_action"].tolist() == [[0.1]]


def test_the_next_action_of_a_real_log_is_the_episodes() -> None:
    """Known of every row but the last ones of episodes."""
    data = pendulum_data()
    rows = prepared_rows(data, Preparation.of_dataset(data.observations, True, 1.0, 0.0))
    batch = gather("offline", Memory(rows, {}), jnp.arange(len(data)), next_actions=True)
    last = np.zeros(len(data), bool)
    last[data.episode_ends] = True
    np.testing.assert_array_equal(batch.extras["next_action_known"], ~last)
    inner = np.flatnonzero(~last)
    np.testing.assert_array_equal(batch.extras["next_action"][inner], rows.action[inner + 1])
