"""Returns-to-go of online episodes: by hand, by the dataset's rule, through the loop, and across a resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.algorithm import Algorithm
from segue.core.learn import Program, initial_state, make_keys
from segue.core.phases import Online
from segue.core.replay import empty_rows, fill_in
from segue.core.types import Batch, Metrics, Models, Spec
from segue.data.prepare import return_to_go
from segue.environment import Environment
from segue.episode_returns import EpisodeReturns, ReturnRule
from segue.online import OnlineLoop
from segue.preparation import Preparation
from segue.replay_start import NEW_ROW_VALUES

UNKNOWN = -np.inf  # bounds nothing
HALF = ReturnRule(0.5)


def closed(rule: ReturnRule, rewards: Any) -> list[float]:
    """Returns-to-go of one episode of one seed."""
    returns = EpisodeReturns(rule, 1)
    for slot, reward in enumerate(rewards):
        returns.add(np.float32([reward]), slot)  # type: ignore[arg-type]
    slots, values = returns.close(0)
    assert slots.tolist() == list(range(len(rewards)))
    return values.tolist()


def test_by_hand() -> None:
    assert closed(HALF, [1, 2, 4]) == [1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4]
    assert closed(HALF, [3]) == [3]


def test_an_episode_that_fails_does_so_for_ever() -> None:
    """On sparse tasks: its last reward is a failing step's, which is then worth -5 / (1 - discount) everywhere."""
    sparse = replace(HALF, failure_reward=-5.0)
    assert closed(sparse, [-5, 5, -5]) == [-10, -10, -10]
    assert closed(sparse, [-5, -5, 5]) == [-5 - 2.5 + 1.25, -5 + 2.5, 5]
    assert closed(HALF, [-5, -5]) == [-7.5, -5]  # dense: nothing is special
    assert closed(ReturnRule(0.5, 0.1), [0.0, 0.1]) == pytest.approx([0.2, 0.2])  # as stored, in float32


@pytest.mark.parametrize("failure", [None, -1.0])
def test_as_of_the_dataset(failure: float | None) -> None:
    rng = np.random.default_rng(0)
    lengths = [1, 4, 7]
    rewards = rng.choice([-1.0, 0.5, 2.0], sum(lengths)).astype(np.float32)
    ends = np.isin(np.arange(sum(lengths)), np.cumsum(lengths) - 1)
    rewards[ends] = [-1.0, 2.0, -1.0]
    obs = np.arange(sum(lengths))[:, None].astype(float)
    want = return_to_go(obs, obs + 1, rewards, ends, 0.9, 1000, failure)
    episodes = np.split(rewards, np.cumsum(lengths)[:-1])
    found = np.concatenate([closed(ReturnRule(0.9, failure), episode) for episode in episodes])
    np.testing.assert_allclose(found, want, rtol=1e-12)


def test_seeds_are_kept_apart_and_survive_json() -> None:
    returns = EpisodeReturns(HALF, 2)
    returns.add(np.float32([1, 10]), 0)  # type: ignore[arg-type]
    assert returns.close(0)[1].tolist() == [1]
    returns.add(np.float32([2, 20]), 1)  # type: ignore[arg-type]
    other = EpisodeReturns(HALF, 2)
    other.restore(json.loads(json.dumps(returns.as_dict())))
    for one in (returns, other):
        one.add(np.float32([4, 40]), 2)  # type: ignore[arg-type]
        found = [[x.tolist() for x in one.close(k)] for k in (0, 1)]
        assert found == [[[1, 2], [4, 4]], [[0, 1, 2], [10 + 10 + 10, 20 + 20, 40]]]
    other.add(np.float32([7, 70]), 3)  # type: ignore[arg-type]
    other.forget(0)
    other.add(np.float32([8, 80]), 4)  # type: ignore[arg-type]
    assert [x.tolist() for x in other.close(0)] == [[4], [8]]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
def test_fill_in_writes_one_seeds_slots_and_no_others(length: int) -> None:
    rows = jax.tree.map(lambda x: jnp.repeat(x[None], 2, 0), empty_rows(Spec(1, 1), 8, ("return_to_go", "trust")))
    want = np.zeros((2, 8))
    slots = np.arange(8)[::-1][:length]
    want[1, slots] = np.arange(length) + 1
    rows = fill_in(rows, "return_to_go", 1, slots, np.arange(length) + 1)
    np.testing.assert_array_equal(rows.extras["return_to_go"], want)
    assert not np.asarray(rows.extras["trust"]).any()


# -- through the loop


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Count:
    """Updates made."""

    updates: jax.Array


@dataclass(frozen=True)
class Idle(Algorithm[Count]):
    """Does nothing, but asks for returns."""

    columns = ("return_to_go",)
    batch_size: int = 8
    discount: float = 0.5
    policy_update_interval: int = 1

    def init(self, models: Models, spec: Spec, key: jax.Array) -> Count:
        return Count(jnp.int32(0))

    def draw(self, key: jax.Array, spec: Spec) -> tuple[()]:
        return ()

    def update(self, s: Count, batch: Batch, draws: Any, policy_step: bool) -> tuple[Count, Metrics]:
        return Count(s.updates + 1), {}

    def act(self, s: Count, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        return jnp.zeros(1)

    def export(self, s: Count) -> Models:
        return {}


class Payday(gym.Env):
    """Rewards 1, 2, 3, ... of an episode; it ends after `length` steps."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length: int):
        self.length, self.steps = length, 0

    def reset(self, **_: Any) -> tuple[np.ndarray, dict]:
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        return np.zeros(1, np.float32), float(self.steps), self.steps == self.length, False, {}


def loop_of(makers: list[Callable[[], gym.Env]], observation_dim: int, steps: int, rows: Batch | None = None) -> Any:
    """A loop of one environment a seed; `rows` are those of a loop that was interrupted."""
    seeds, spec = tuple(range(len(makers))), Spec(observation_dim, 1)
    keys = make_keys(seeds, 0)
    fresh = empty_rows(spec, steps, ("return_to_go",))
    row = {name: np.full(len(seeds), NEW_ROW_VALUES[name], np.float32) for name in ("return_to_go",)}
    return OnlineLoop(
        program=Program(Idle(), "online", spec),
        schedule=Online(steps),
        environments=[Environment(maker) for maker in makers],
        preparation=Preparation.identity(observation_dim),
        state=initial_state(Idle(), {}, spec, keys),
        rows=rows or jax.tree.map(lambda x: jnp.repeat(x[None], len(seeds), 0), fresh),
        columns={},
        offline=None,
        keys=keys,
        seeds=seeds,
        new_row_extras=lambda step: row,
        return_rule=ReturnRule(0.5),
    )


def known(loop: OnlineLoop) -> np.ndarray:
    return np.asarray(loop.rows.extras["return_to_go"])


def test_two_seeds_whose_episodes_end_at_different_steps() -> None:
    """Three steps that end, four that a time limit cuts: an unfinished episode's rows are unknown, bound nothing."""
    makers: list[Callable[[], gym.Env]] = [lambda: Payday(3), lambda: gym.wrappers.TimeLimit(Payday(99), 4)]
    loop = loop_of(makers, 1, 10)
    loop.begin()
    three, four = [2.75, 3.5, 3.0], [1 + 1 + 0.75 + 0.5, 2 + 1.5 + 1, 3 + 2, 4.0]
    for step, seed_0, seed_1 in ((2, [], []), (3, three, []), (4, three, four), (10, three * 3, four * 2)):
        loop.advance(lambda: False, step)
        for k, want in enumerate((seed_0, seed_1)):
            np.testing.assert_array_equal(known(loop)[k, :step], want + [UNKNOWN] * (step - len(want)))
        assert (known(loop)[:, step:] == 0).all()  # not written yet, never sampled


def pendulums() -> list[Callable[[], gym.Env]]:
    return [lambda n=n: gym.make("InvertedPendulum-v5", max_episode_steps=n) for n in (5, 7)]  # type: ignore[misc]


def test_an_interrupted_run_goes_on_in_the_middle_of_an_episode() -> None:
    whole = loop_of(pendulums(), 4, 20)
    whole.begin()
    whole.advance(lambda: False, 20)
    broken = loop_of(pendulums(), 4, 20)
    broken.begin()
    broken.advance(lambda: False, 8)
    assert (known(broken)[0, 5:8] == UNKNOWN).all() and (known(broken)[1, 7:8] == UNKNOWN).all()
    host = json.loads(json.dumps(broken.host_state()))
    resumed = loop_of(pendulums(), 4, 20, broken.rows)
    resumed.restore(host)
    resumed.advance(lambda: False, 20)
    for a, b in zip(jax.tree.leaves(resumed.rows), jax.tree.leaves(whole.rows), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isfinite(known(whole)[0]).all() and np.isfinite(known(whole)[1, :14]).all()


def test_an_episode_that_was_lost_stays_unknown() -> None:
    """An environment whose state cannot be saved begins anew: what was stored of its episode has no return."""
    broken = loop_of([lambda: Payday(3)], 1, 10)
    broken.begin()
    broken.advance(lambda: False, 5)
    resumed = loop_of([lambda: Payday(3)], 1, 10, broken.rows)
    resumed.restore(json.loads(json.dumps(broken.host_state())))
    resumed.advance(lambda: False, 9)
    three = [2.75, 3.5, 3.0]
    np.testing.assert_array_equal(known(resumed)[0, :9], [*three, UNKNOWN, UNKNOWN, *three, UNKNOWN])
