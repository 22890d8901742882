"""Built-in datasets: exact size, determinism, whole episodes, cache and its invalidation."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from segue.data import builtin, cache
from segue.data.dataset import Dataset
from segue.data.errors import DataError
from segue.data.generate import Task, collect
from segue.data.pointmaze import next_cells
from segue.data.policy import FOLDER, load_policy, provenance
from segue.data.recipes import KINDS, TASKS, names, recipe, scaled, uniform
from segue.errors import UserError


def load(name: str, rows: int, snapshots: Path, folder: Path) -> Dataset:
    return builtin.load(name, rows, cache_dir=folder, snapshots=snapshots)


def assert_consistent(dataset: Dataset, rows: int) -> None:
    assert len(dataset) == rows
    assert dataset.terminated[-1] or dataset.truncated[-1]
    assert not (dataset.terminated & dataset.truncated).any()
    inside = ~(dataset.terminated | dataset.truncated)[:-1]
    np.testing.assert_array_equal(dataset.next_observations[:-1][inside], dataset.observations[1:][inside])
    broken = dataset.next_observations[:-1][~inside] != dataset.observations[1:][~inside]
    assert broken.any(axis=1).all(), "an episode's last successor is its own final state, not the next reset"
    assert (np.abs(dataset.actions) <= 1).all()


@pytest.mark.parametrize("quality", ("random", "medium", "medium-replay", "medium-expert", "expert"))
def test_locomotion(quality: str, snapshots: Path, tmp_path: Path) -> None:
    dataset = load(f"hopper-{quality}", 501, snapshots, tmp_path / "a")
    assert_consistent(dataset, 501)
    assert dataset.environment_id == "Hopper-v5"
    assert dataset.reference_scores == (20.0, 3000.0)
    assert dataset.source == f"segue/hopper-{quality}?transitions=501"
    assert dataset.max_episode_steps == 1000
    again = load(f"hopper-{quality}", 501, snapshots, tmp_path / "b")
    for column in ("observations", "actions", "rewards", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(again, column), getattr(dataset, column))


def test_stored_rows_are_what_the_environment_does(snapshots: Path, tmp_path: Path) -> None:
    dataset = load("hopper-medium", 200, snapshots, tmp_path)
    environment = gymnasium.make("Hopper-v5")
    environment.reset()
    bare: Any = environment.unwrapped
    # The hidden x position does not matter; the observation holds the rest of the state.
    row = dataset.observations[0].astype(np.float64)
    bare.set_state(np.concatenate([[0.0], row[:5]]), row[5:])
    for i in range(int(dataset.episode_ends[0]) + 1):
        observation, reward, terminated, _, _ = environment.step(dataset.actions[i])
        np.testing.assert_allclose(observation, dataset.next_observations[i], atol=1e-2)
        np.testing.assert_allclose(float(reward), dataset.rewards[i], atol=1e-2)
        assert terminated == dataset.terminated[i]
    environment.close()


def test_cache_is_used_and_follows_the_provenance(snapshots: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def fetch() -> Dataset:
        calls.clear()
        return builtin.load("hopper-medium", 100, None, tmp_path, lambda *done: calls.append(done), snapshots)

    first = fetch()
    assert calls[-1] == (100, 100)
    (path,) = (tmp_path / "data").iterdir()
    np.testing.assert_array_equal(fetch().observations, first.observations)
    assert not calls, "the second time comes from the cache"

    path.write_bytes(path.read_bytes()[:500])
    np.testing.assert_array_equal(fetch().observations, first.observations)
    assert calls, "a damaged file is made again"

    record = snapshots / "hopper" / "provenance.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "medium": "step_1.safetensors"}))
    assert not np.array_equal(fetch().observations, first.observations)
    assert len(list((tmp_path / "data").iterdir())) == 2


def test_interrupted_generation_leaves_nothing(snapshots: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        builtin.load("hopper-medium", 100, None, tmp_path, interrupt, snapshots)
    assert not (tmp_path / "data").exists()


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    assert cache.cache_folder() == tmp_path
    monkeypatch.delenv("SEGUE_CACHE")
    assert cache.cache_folder().name == "segue"


def test_policy_forward(snapshots: Path) -> None:
    policy = load_policy(snapshots / "hopper" / "step_1.safetensors")
    observations = np.random.default_rng(0).normal(size=(5, 11)).astype(np.float32)
    hidden = observations.astype(float)
    for kernel, bias in policy.layers[:-1]:
        hidden = np.maximum(hidden @ kernel + bias, 0)
    raw = hidden @ policy.layers[-1][0] + policy.layers[-1][1]
    noise = np.random.default_rng(7).standard_normal((5, 3), np.float32)
    expected = np.tanh(raw[:, :3] + np.exp(np.clip(raw[:, 3:], -5, 2)) * noise)
    np.testing.assert_allclose(policy.sample(observations, np.random.default_rng(7)), expected, rtol=1e-5, atol=1e-6)


def test_actions_are_scaled_to_the_bounds(snapshots: Path) -> None:
    low, high = np.array([-2, 0, -1], np.float32), np.array([6, 1, 1], np.float32)
    policy = load_policy(snapshots / "hopper" / "step_1.safetensors")
    observations = np.ones((4, 11), np.float32)
    actions = scaled(policy, low, high)(observations, np.random.default_rng(0))
    expected = (policy.sample(observations, np.random.default_rng(0)) + 1) / 2
    np.testing.assert_allclose((actions - low) / (high - low), expected, rtol=1e-5)
    drawn = uniform(low, high)(np.ones((5000, 11), np.float32), np.random.default_rng(0))
    np.testing.assert_allclose(drawn.min(axis=0), low, atol=0.01)
    np.testing.assert_allclose(drawn.max(axis=0), high, atol=0.01)


@pytest.mark.parametrize(("task", "expert"), [("hopper", 90), ("halfcheetah", 70), ("walker2d", 70)])
def test_the_shipped_policies(task: str, expert: float, tmp_path: Path) -> None:
    """Every quality can be made of what is in the package, and the policies were as good as their names."""
    record = provenance(task, FOLDER)
    assert record is not None
    low, high = record.reference_scores
    told = json.loads(record.text)
    returns = {entry["file"]: entry["return_mean"] for entry in told["snapshots"]}
    score = {role: 100 * (returns[told[role]] - low) / (high - low) for role in ("medium", "expert")}
    assert score["expert"] > expert and 20 < score["medium"] < 60
    for quality in KINDS:
        dataset = builtin.load(f"{task}-{quality}", 100, cache_dir=tmp_path)
        assert_consistent(dataset, 100)
        assert dataset.environment_id == TASKS[task]


def test_names_depend_on_what_is_installed(snapshots: Path, tmp_path: Path) -> None:
    assert {"hopper-medium", "hopper-random", "walker2d-random"} <= set(names(snapshots))
    assert "walker2d-medium" not in names(snapshots)
    with pytest.raises(DataError, match="no policies for walker2d"):
        recipe("walker2d-medium", snapshots)
    with pytest.raises(DataError, match="did you mean segue/hopper-medium"):
        recipe("hoper-medium", snapshots)
    broken = snapshots / "hopper" / "step_2.safetensors"
    broken.write_bytes(b"nothing")
    with pytest.raises(DataError, match="no policy snapshot"):
        builtin.load("hopper-medium", 10, cache_dir=tmp_path, snapshots=snapshots)


class Counter(gymnasium.Env):
    """Ends after a number of steps drawn at reset; observes (episode's length, step, steps since it was made)."""

    total = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.length, self.now = int(self.np_random.integers(1, 40)), 0
        return np.array([self.length, 0, self.total]), {}

    def step(self, action: Any) -> Any:
        self.now += 1
        self.total += 1
        return np.array([self.length, self.now, self.total]), 1.0, self.now == self.length, False, {}


@pytest.mark.parametrize("rows", (1, 30, 25_000, 60_000))
def test_episodes_are_whole_and_in_order(rows: int) -> None:
    task = Task(Counter, np.asarray, max_episode_steps=30)
    columns = collect(task, lambda states, rng: np.zeros((len(states), 1), np.float32), rows, seed=(1, 2))
    ends = np.flatnonzero(columns["terminated"] | columns["truncated"])
    lengths = np.diff(ends, prepend=-1)
    drawn = columns["observations"][ends, 0]
    assert len(columns["rewards"]) == rows
    np.testing.assert_array_equal(lengths[:-1], np.minimum(drawn, 30)[:-1])
    np.testing.assert_array_equal(columns["terminated"][ends[:-1]], drawn[:-1] <= 30)
    began = columns["observations"][ends - lengths + 1, 2]
    assert (np.diff(began) >= 0).all()
    if rows > 10_000:
        # Filling up with whatever ends first would favour short episodes.
        assert abs(lengths.mean() - np.minimum(np.arange(1, 40), 30).mean()) < 0.5


def test_pointmaze(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium_robotics")
    dataset = builtin.load("pointmaze-umaze", 1500, cache_dir=tmp_path)
    assert_consistent(dataset, 1500)
    assert dataset.observation_dim == 6
    assert dataset.environment_kwargs == {"continuing_task": False}
    assert dataset.reference_scores == (0.0, 1.0)
    np.testing.assert_array_equal(dataset.terminated, dataset.rewards == 1)
    assert dataset.episode_returns[:-1].mean() > 0.9, "the controller finds its way"
    assert dataset.observations[:, 4:].std() > 0.3, "goals vary"


def test_pointmaze_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gymnasium_robotics", None)
    with pytest.raises(UserError, match=r'pip install "segue\[robotics\]"'):
        recipe("pointmaze-umaze")


def test_shortest_way_round_the_wall() -> None:
    free = np.array([[1, 1, 1], [0, 0, 1], [1, 1, 1]], bool)
    table = next_cells(free)
    cell, path = (0, 0), []
    while cell != (2, 0):
        cell = tuple(table[(*cell, 2, 0)])
        path.append(cell)
    assert path == [(0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0)]
