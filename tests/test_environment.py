"""The bridge to Gymnasium."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces

from segue.core.learn import Program, initial_state, make_keys
from segue.core.phases import Online
from segue.core.replay import empty_rows
from segue.core.types import Batch, Spec
from segue.environment import Environment, flatten, observation_dim_of
from segue.errors import UserError
from segue.evaluate import Evaluator
from segue.methods.td3 import TD3
from segue.online import OnlineLoop
from segue.preparation import Preparation


class Corridor(gym.Env):
    """Walks along a line: the observation is (episode, step); rewards number the steps of all episodes."""

    def __init__(self, terminate_at: int | None = None, low: float = -2.0, high: float = 4.0):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Box(np.array([low, -1.0], np.float32), np.array([high, 1.0], np.float32))
        self.terminate_at, self.episode, self.position, self.taken = terminate_at, 0, 0, 0
        self.executed: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.position = self.episode + 1, 0
        return np.array([self.episode, 0.0]), {}

    def step(self, action: np.ndarray) -> Any:
        self.executed.append(action.copy())
        self.position, self.taken = self.position + 1, self.taken + 1
        observation = np.array([self.episode, self.position], float)
        return observation, float(self.taken), self.position == self.terminate_at, False, {}


class Goals(gym.Env):
    """A goal task, in the usual form."""

    def __init__(self) -> None:
        parts = {"observation": (3,), "achieved_goal": (2,), "desired_goal": (2,)}
        self.observation_space = spaces.Dict({k: spaces.Box(-9, 9, v, np.float64) for k, v in parts.items()})
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def _observe(self) -> dict[str, np.ndarray]:
        return {"observation": np.array([1.0, 2, 3]), "achieved_goal": np.zeros(2), "desired_goal": np.array([4.0, 5])}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> Any:
        return self._observe(), 0.0, False, False, {}


def limited(env: gym.Env, steps: int) -> gym.Env:
    return gym.wrappers.TimeLimit(env, steps)


def test_actions_are_scaled_to_the_box_and_clipped() -> None:
    env = Environment(Corridor)
    np.testing.assert_allclose(env.to_bounds(np.array([-1.0, 0.5])), [-2, 0.5])
    np.testing.assert_allclose(env.to_bounds(np.array([0.0, 9.0])), [1, 1])
    env.reset(0)
    for action in ([1, 1], [-1, -1], [-7, 7]):
        env.step(np.array(action, np.float32))
    executed = env.gym.unwrapped.executed  # type: ignore[attr-defined]
    np.testing.assert_array_equal(executed, [[4, 1], [-2, -1], [-2, 1]])
    assert all(env.gym.action_space.contains(action) for action in executed)


def test_goal_observations_are_flattened_without_the_achieved_goal() -> None:
    env = Environment(Goals)
    assert env.observation_dim == 5
    np.testing.assert_array_equal(env.reset(0), [1, 2, 3, 4, 5])
    assert env.reset(0).dtype == np.float32


def test_other_dict_observations_are_flattened_in_the_order_of_their_names() -> None:
    space = spaces.Dict({"b": spaces.Box(0, 1, (2, 2)), "a": spaces.Box(0, 1, ())})
    assert observation_dim_of(space) == 5
    np.testing.assert_array_equal(flatten({"b": np.array([[1, 2], [3, 4]]), "a": np.array(0)}), [0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Discrete(3), "only Box actions"),
        (spaces.Box(-np.inf, np.inf, (1,), np.float32), "need finite bounds"),
    ],
)
def test_other_action_spaces_are_refused(space: spaces.Space, words: str) -> None:
    env = Goals()
    env.action_space = space
    with pytest.raises(UserError, match=words):
        Environment(lambda: env)


def test_other_observation_spaces_are_refused() -> None:
    env = Goals()
    env.observation_space = spaces.Dict({"a": spaces.Discrete(2)})
    with pytest.raises(UserError, match="only Box, and Dict of Box"):
        Environment(lambda: env)


# -- the online loop's rows


def loop_of(env: gym.Env, steps: int, **schedule: Any) -> OnlineLoop:
    """An online loop that only acts and stores, its policy's noise being large enough to leave [-1, 1]."""
    algorithm = TD3(hidden_sizes=(4,), batch_size=4, exploration_noise=3.0)
    spec, keys = Spec(2, 2), make_keys((0,), 0)
    rows = jax.tree.map(lambda x: x[None], empty_rows(spec, steps))
    return OnlineLoop(
        program=Program(algorithm, "online", spec),
        schedule=Online(steps, warmup_steps=steps, **schedule),
        environments=[Environment(lambda: env)],
        preparation=Preparation(np.zeros(2, np.float32), np.ones(2, np.float32), reward_scale=2.0, reward_bias=1.0),
        state=initial_state(algorithm, {}, spec, keys),
        rows=rows,
        columns={},
        offline=None,
        keys=keys,
        seeds=(0,),
    )


def stored(env: gym.Env, steps: int, **schedule: Any) -> tuple[Batch, list[dict[str, Any]]]:
    loop = loop_of(env, steps, **schedule)
    loop.begin()
    _, episodes = loop.advance(lambda: False, steps)
    return jax.tree.map(lambda x: np.asarray(x)[0], loop.rows), episodes


@pytest.mark.parametrize("random_warmup", [False, True])
def test_the_executed_action_is_stored(random_warmup: bool) -> None:
    env = Corridor(terminate_at=3)
    rows, _ = stored(env, 10, random_warmup=random_warmup)
    native = np.array([-2, -1]) + (rows.action + 1) / 2 * np.array([6, 2])
    np.testing.assert_allclose(env.executed, native, rtol=1e-6, atol=1e-6)
    assert np.abs(rows.action).max() <= 1
    assert len(np.unique(rows.action)) > 5
    np.testing.assert_array_equal(rows.reward, 2 * np.arange(1, 11) + 1)


def test_no_row_stitches_two_episodes_and_every_step_is_stored() -> None:
    rows, episodes = stored(Corridor(terminate_at=3), 8)
    np.testing.assert_array_equal(rows.obs[:, 0], rows.next_obs[:, 0])  # the same episode
    np.testing.assert_array_equal(rows.obs[:, 1] + 1, rows.next_obs[:, 1])
    np.testing.assert_array_equal(rows.obs[:, 1], [0, 1, 2, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(rows.terminal, [0, 0, 1, 0, 0, 1, 0, 0])
    assert [episode["return"] for episode in episodes] == [1 + 2 + 3, 4 + 5 + 6]
    assert [episode["step"] for episode in episodes] == [3, 6]


def test_a_time_limit_bootstraps_and_a_termination_does_not() -> None:
    by_limit, episodes = stored(limited(Corridor(), 3), 8)
    np.testing.assert_array_equal(by_limit.terminal, np.zeros(8))
    np.testing.assert_array_equal(by_limit.obs[:, 1], [0, 1, 2, 0, 1, 2, 0, 1])
    assert [episode["length"] for episode in episodes] == [3, 3]
    both, _ = stored(limited(Corridor(terminate_at=3), 3), 4)  # ssar.md 2.9: the limit wins
    np.testing.assert_array_equal(both.terminal, np.zeros(4))
    ended, _ = stored(limited(Corridor(terminate_at=3), 4), 4)
    np.testing.assert_array_equal(ended.terminal, [0, 0, 1, 0])


@pytest.mark.parametrize(
    ("ratio", "warmup", "want"),
    [
        (1.0, 0, [1, 1, 1, 1, 1, 1]),
        (0.5, 0, [0, 1, 0, 1, 0, 1]),
        (4.0, 2, [0, 0, 4, 4, 4, 4]),
        (0.3, 0, [0, 0, 0, 1, 0, 0]),
    ],
)
def test_updates_per_environment_step(ratio: float, warmup: int, want: list[int]) -> None:
    loop = loop_of(Corridor(), 6)
    loop.schedule = Online(6, warmup_steps=warmup, updates_per_step=ratio)
    due = []
    for step in range(1, 7):
        loop.env_step = step
        due.append(loop._updates_due())
    assert due == want


# -- simulator state


def course(env: Environment, actions: np.ndarray) -> list[Any]:
    """All that a policy could notice."""
    seen: list[Any] = []
    for action in actions:
        obs, reward, terminated, truncated = env.step(action)
        seen.append((obs.tobytes(), reward, terminated, truncated))
        if terminated or truncated:
            seen.append(env.reset().tobytes())
    return seen


def assert_restores_exactly(
    maker: Any, kwargs: dict[str, Any] | None = None, before: int = 23, steps: int = 120
) -> int:
    """A fresh environment goes on from a snapshot bit by bit like the one it was taken of; how many episodes ended."""
    here, there = Environment(maker, kwargs), Environment(maker, kwargs)
    actions = np.random.default_rng(0).uniform(-1, 1, (before + steps, here.action_dim))
    here.reset(3)
    course(here, actions[:before])
    snapshot = json.loads(json.dumps(here.snapshot()))
    there.reset(4)
    course(there, actions[:7])
    there.restore(snapshot)
    of_here, of_there = course(here, actions[before:]), course(there, actions[before:])
    assert of_here == of_there
    here.close()
    there.close()
    return sum(isinstance(seen, bytes) for seen in of_here)


@pytest.mark.parametrize("name", ["Hopper-v5", "Walker2d-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5"])
def test_mujoco_environments_are_restored_exactly_across_resets(name: str) -> None:
    assert assert_restores_exactly(name) > 0


@pytest.mark.parametrize("name", ["HalfCheetah-v5", "Ant-v5", "Swimmer-v5", "Reacher-v5", "Pusher-v5"])
def test_mujoco_environments_are_restored_exactly_across_time_limits(name: str) -> None:
    def maker() -> gym.Env:
        env: gym.Env = gym.make(name, max_episode_steps=60)
        return env

    assert assert_restores_exactly(maker) == 2


@pytest.mark.filterwarnings("ignore:.*settotalmass")
@pytest.mark.parametrize("name", ["Humanoid-v5", "HumanoidStandup-v5"])
def test_humanoids_are_restored_exactly(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where MuJoCo logs that their model is old-fashioned
    assert_restores_exactly(name, steps=50)


def test_mazes_are_restored_with_their_goals_and_nested_random_numbers() -> None:
    from segue.data.environments import require_robotics

    require_robotics()
    assert assert_restores_exactly("PointMaze_UMaze-v3", {"max_episode_steps": 40}) == 3
    assert assert_restores_exactly("PointMaze_UMaze-v3", {"continuing_task": True, "reset_target": True}) == 0


def test_a_moved_model_is_restored() -> None:
    """The door of this task stands elsewhere in every episode, as a part of the model."""
    from segue.data.environments import require_robotics

    require_robotics()
    assert_restores_exactly("AdroitHandDoor-v1", steps=30)


def test_environments_whose_state_cannot_be_read_say_so() -> None:
    assert Environment("Pendulum-v1").snapshot() is None
    assert Environment(Corridor).snapshot() is None

    def stacked() -> gym.Env:
        return gym.wrappers.FrameStackObservation(gym.make("InvertedPendulum-v5"), 2)

    assert Environment(stacked).snapshot() is None


def test_a_loop_without_snapshots_goes_on_with_a_new_episode() -> None:
    loop = loop_of(Corridor(terminate_at=50), 10)
    loop.begin()
    loop.advance(lambda: False, 5)
    again = loop_of(Corridor(terminate_at=50), 10)
    again.restore(json.loads(json.dumps(loop.host_state())))
    assert again.env_step == 5
    assert again.obs[0, 1] == 0
    assert again.episode_length[0] == 0


# -- evaluation


def test_evaluation_leaves_the_training_environment_alone() -> None:
    training = Environment("InvertedPendulum-v5")
    training.reset(0)
    actions = np.random.default_rng(0).uniform(-0.1, 0.1, (30, 1))
    course(training, actions[:10])
    before = training.snapshot()
    evaluator = Evaluator("InvertedPendulum-v5", {}, Preparation.identity(4))

    def policy(obs: np.ndarray) -> np.ndarray:
        return np.zeros((len(obs), 1))

    first, second = evaluator.score(policy, 3, seed=0), evaluator.score(policy, 3, seed=0)
    assert training.snapshot() == before
    assert first is not None and second is not None
    np.testing.assert_array_equal(first.returns, second.returns)  # its own seeds, the same at every point of a curve
    assert len(np.unique(first.returns)) > 1 or len(np.unique(first.lengths)) == 1
    other = evaluator.score(policy, 3, seed=1)
    assert other is not None
    training.close()


def test_evaluation_stops_when_asked() -> None:
    evaluator = Evaluator("InvertedPendulum-v5", {}, Preparation.identity(4))
    assert evaluator.score(lambda obs: np.zeros((len(obs), 1)), 2, 0, interrupted=lambda: True) is None


def test_scores_count_whole_episodes_on_raw_rewards() -> None:
    preparation = Preparation(np.zeros(2, np.float32), np.ones(2, np.float32), reward_scale=10.0, reward_bias=-5.0)
    score = Evaluator(lambda: limited(Corridor(), 4), {}, preparation).score(lambda obs: np.zeros((len(obs), 2)), 2, 0)
    assert score is not None
    np.testing.assert_array_equal(score.returns, [10, 10])
    np.testing.assert_array_equal(score.lengths, [4, 4])
    assert score.standard_error == 0
