"""Fitted Q evaluation: a task whose values are known, its bootstrap interval, and `segue evaluate --offline`.

Three one-hot states in a row and an action that decides about the way:

    start --reward 1--> middle --reward 2 a--> last --reward 4--> end

The log cuts every third episode after `middle` (a time limit). Policy a = 0.5: 1 + gamma 1 + gamma^2 4.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segue
from segue.cli.main import main
from segue.core.algorithm import Algorithm
from segue.core.types import Batch, Metrics, Models, Spec
from segue.data import Dataset
from segue.errors import UserError
from segue.methods.fqe import FQE
from segue.offline_evaluation import Estimate, Evaluator, OfflineEvaluation, episode_counts, interval, returns_to_go
from segue.preparation import Preparation
from segue.session import Evaluation
from segue.stop import Diverged
from tests.small import NETWORKS, pendulum_data, write_pendulum_data

DISCOUNT, ACTION = 0.9, 0.5
TRUTH = 1 + DISCOUNT * 2 * ACTION + DISCOUNT**2 * 4
SETTINGS: dict[str, Any] = {"hidden_sizes": (32, 32), "batch_size": 128, "critic_learning_rate": 1e-3}
OPTIONS = OfflineEvaluation(updates=1000, replicates=6)
QUICK = replace(OPTIONS, replicates=2)


@dataclass(frozen=True)
class Fixed(Algorithm[jax.Array]):
    """One action everywhere, and half of it while exploring; its state is that action."""

    action: float = ACTION
    batch_size: int = 1
    discount: float = DISCOUNT
    policy_update_interval: int = 1

    def init(self, models: Models, spec: Spec, key: jax.Array) -> jax.Array:
        return jnp.full(spec.action_dim, self.action)

    def draw(self, key: jax.Array, spec: Spec) -> None:
        return None

    def update(self, s: jax.Array, batch: Batch, draws: None, policy_step: bool) -> tuple[jax.Array, Metrics]:
        raise AssertionError("a policy that is evaluated does not learn")

    def act(self, s: jax.Array, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        return s / 2 if explore else s

    def export(self, s: jax.Array) -> Models:
        return {}


@cache
def chain(episodes: int = 300, noise: float = 0.5, scale: float = 1.0) -> Dataset:
    """`noise` is the standard deviation that each episode's rewards have in common: what the bootstrap must see."""
    rng = np.random.default_rng(0)
    state, action, reward, terminated, truncated = [], [], [], [], []
    for episode in range(episodes):
        luck, cut = rng.normal() * noise, episode % 3 == 2
        for step in range(2 if cut else 3):
            a = rng.uniform(-1, 1)
            state.append(step)
            action.append([a])
            reward.append(scale * ((1.0, 2 * a, 4.0)[step] + luck))
            terminated.append(step == 2)
            truncated.append(cut and step == 1)
    hot = np.eye(4, dtype=np.float32)
    at = np.asarray(state)
    return Dataset.from_arrays(hot[at], action, reward, terminated, truncated, hot[at + 1])


def evaluator(dataset: Dataset, options: OfflineEvaluation = OPTIONS, discount: float = DISCOUNT) -> Evaluator:
    return Evaluator(dataset, Preparation.identity(dataset.observation_dim), options, discount, SETTINGS)


@cache
def estimate(scale: float = 1.0, **options: Any) -> Estimate:
    found = evaluator(chain(scale=scale), replace(OPTIONS, **options))
    return found.evaluate(Fixed(), {}, 0, quiet=True)


def sampled_truth(dataset: Dataset) -> float:
    """What these data say, their luck included: each reward's mean over the rows that show it."""
    at = dataset.observations.argmax(1)
    r = [(dataset.rewards - 2 * dataset.actions[:, 0] * (at == 1))[at == k].mean() for k in range(3)]
    return float(r[0] + DISCOUNT * (r[1] + 2 * ACTION) + DISCOUNT**2 * r[2])


def test_the_value_of_a_known_task() -> None:
    """To 2 %, past the time limits; the policy is not the data's, whose mean action is 0."""
    found = estimate()
    assert abs(found.value - sampled_truth(chain())) < 0.02 * TRUTH, found
    assert not found.warnings
    assert abs(found.course[-1] - found.course[-5]) < 0.02 * TRUTH


def test_the_interval_covers_the_truth_and_has_the_width_of_chance() -> None:
    """Independent episodes of common luck sigma: the standard error is near 2.7 sigma / sqrt(episodes)."""
    found = estimate()
    assert found.low < TRUTH < found.high
    assert len(set(found.replicates)) == OPTIONS.replicates
    error = 0.5 * (1 + DISCOUNT + DISCOUNT**2) / 300**0.5
    assert 0.3 * error < np.std(found.replicates, ddof=1) < 3 * error


def test_without_chance_the_interval_is_narrow() -> None:
    found = evaluator(chain(noise=0.0), QUICK).evaluate(Fixed(), {}, 0, quiet=True)
    assert np.std(found.replicates, ddof=1) < 0.5 * np.std(estimate().replicates, ddof=1)


def test_values_are_in_units_of_raw_rewards() -> None:
    """Rewards a thousandth as large: the same fit, so a thousandth of the value, to float32."""
    np.testing.assert_allclose(estimate(scale=0.001).value, 0.001 * estimate().value, rtol=1e-3)


def test_the_exploring_policy_on_demand() -> None:
    assert abs(estimate(stochastic=True).value - (sampled_truth(chain()) - DISCOUNT * ACTION)) < 0.02 * TRUTH


@dataclass(frozen=True)
class NoEnd(FQE):
    """Broken: bootstraps past the end of the task."""

    def update(self, s: Any, batch: Batch, draws: Any, policy_step: bool) -> Any:
        return super().update(s, batch._replace(terminal=0 * batch.terminal), draws, policy_step)


@dataclass(frozen=True)
class SameState(FQE):
    """Broken: the target is of the state itself, not of its successor."""

    def update(self, s: Any, batch: Batch, draws: Any, policy_step: bool) -> Any:
        return super().update(s, batch._replace(next_obs=batch.obs), draws, policy_step)


@dataclass(frozen=True)
class DataAction(FQE):
    """Broken: the data's policy instead of the one in question (the action of a row of the same kind: 0)."""

    def value(self, s: Any, obs: jax.Array, keys: jax.Array) -> jax.Array:
        return s.critic.slow(obs, jnp.zeros((len(obs), 1)))[0]


@pytest.mark.parametrize("broken", [NoEnd, SameState, DataAction])
def test_a_broken_target_is_seen(broken: type[FQE], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segue.offline_evaluation.FQE", broken)
    try:
        found = evaluator(chain(), QUICK).evaluate(Fixed(), {}, 0, quiet=True)
    except Diverged:
        return
    assert abs(found.value - sampled_truth(chain())) > 0.05 * TRUTH


def test_a_wrong_discount_is_seen() -> None:
    found = evaluator(chain(), QUICK, discount=0.7).evaluate(Fixed(), {}, 0, True)
    assert abs(found.value - TRUTH) > 0.05 * TRUTH


@dataclass(frozen=True)
class TooMuch(FQE):
    """Broken: values of ten times what the rewards allow, as bootstrapping on itself can make them."""

    def update(self, s: Any, batch: Batch, draws: Any, policy_step: bool) -> Any:
        return super().update(s, batch._replace(reward=batch.reward + 100), draws, policy_step)


@pytest.mark.parametrize(("algorithm", "rate"), [(TooMuch, 0.03), (FQE, 1e38)])
def test_no_estimate_where_the_fit_diverges(
    algorithm: type[FQE], rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Impossible values, and none at all (NaN)."""
    monkeypatch.setattr("segue.offline_evaluation.FQE", algorithm)
    settings = SETTINGS | {"critic_learning_rate": rate}
    found = Evaluator(chain(), Preparation.identity(4), QUICK, DISCOUNT, settings)
    with pytest.raises(Diverged, match=r"the fit diverged by update .*; there is no estimate"):
        found.evaluate(Fixed(), {}, 0, quiet=True)


def test_the_behaviour_policy_by_hand() -> None:
    """Discounted returns of two episodes; the second is cut after two steps, 10 gamma^2 / (1 - gamma) at most later."""
    data = Dataset.from_arrays(
        np.zeros((5, 1)), np.zeros((5, 1)), [1.0, 2, 3, 4, 10], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1], np.zeros((5, 1))
    )
    to_go = returns_to_go(data, 0.5)
    np.testing.assert_allclose(to_go, [2.75, 3.5, 3, 9, 10])
    found = evaluator(data, discount=0.5).behaviour
    assert (found.value, found.best, found.cut_episodes, found.cut_bound) == ((2.75 + 9) / 2, 9, 1, 0.5 * 0.25 * 20)


def test_bootstrap_counts_draw_whole_episodes() -> None:
    counts = episode_counts(100, 20)
    assert (counts[0] == 1).all() and (counts.sum(1) == 100).all() and counts.shape == (21, 100)
    assert abs((counts[1:] == 0).mean() - np.exp(-1)) < 0.03


def test_the_interval_is_students() -> None:
    low, high = interval(10.0, 2.0, 7, 0.95)
    np.testing.assert_allclose([low, high], [10 - 2 * 2.3646, 10 + 2 * 2.3646], atol=1e-3)


def test_the_weights_of_a_replicate_lie_on_its_rows() -> None:
    found = evaluator(chain())
    rows, starts = np.asarray(found.weights["weight"]), np.asarray(found.start_weights["weight"])
    np.testing.assert_array_equal(rows[:, chain().episode_starts], starts)
    np.testing.assert_array_equal(rows[:, chain().episode_ends], starts)


def test_a_policy_far_from_the_data_is_warned_of() -> None:
    data = chain()
    near = replace(data, actions=np.full_like(data.actions, -0.9) + 0.01 * data.actions)
    found = evaluator(near, replace(QUICK, updates=100)).evaluate(Fixed(), {}, 0, quiet=True)
    assert found.far_fraction == 1 and any("extrapolated" in text for text in found.warnings)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the pendulum, with a reward scale and bias that must not matter."""
    folder = tmp_path_factory.mktemp("fqe")
    path = folder / "run"
    segue.train(
        "td3_bc", str(write_pendulum_data(folder)), out=path, steps=40, seeds=(0, 1),
        settings=NETWORKS | {"reward_scale": 7.0, "reward_bias": -1.0},
        evaluation=Evaluation(eval_interval=1000, result_episodes=1), quiet=True,
    )  # fmt: skip
    return path


SMALL = ["--steps", "60", "--replicates", "2"]


def test_from_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--offline", *SMALL, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert all(part in out for part in ("policy of seed 0", "policy of seed 1", "95 % interval", "discounted at 0.99"))
    assert "behaviour policy" in out and "does not cover" in out
    written = json.loads((run / "offline_evaluation.json").read_text())
    assert [e["seed"] for e in written["estimates"]] == [0, 1]
    data = pendulum_data()
    np.testing.assert_allclose(written["behaviour"]["value"], returns_to_go(data, 0.99)[data.episode_starts].mean())
    assert (written["updates"], written["transitions"]) == (60, len(data))
    page = segue.write_report([run], tmp_path / "report").read_text()
    assert "Values from data alone" in page and f"{written['estimates'][1]['value']:.4g}" in page


def test_another_dataset_one_seed_as_json(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_pendulum_data(tmp_path)
    words = f"--dataset {other} --transitions 300 --seeds 1 --discount 0.5 --confidence 0.5 --json".split()
    assert main(["evaluate", str(run), "--offline", *SMALL, *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [e["seed"] for e in found["estimates"]] == [1]
    assert found["discount"] == 0.5 and found["confidence"] == 0.5 and "pendulum.npz" in found["dataset"]
    assert found["transitions"] <= 300


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--replicates 3", "--replicates needs --offline"),
        ("--stochastic", "--stochastic needs --offline"),
        ("--offline --episodes 3", "--episodes does not go with --offline"),
        ("--offline --replicates 1", "--replicates 1: an interval needs at least 2"),
        ("--offline --steps 5", "--steps 5: give at least 20"),
        ("--offline --confidence 95", "--confidence 95.0: give a share between 0 and 1"),
        ("--offline --discount 1", "--discount 1.0: give from 0 to below 1"),
        ("--offline --seeds 7", "has no seed 7; it has 0 1"),
        ("--offline --transitions 100", "--transitions says how much of --dataset to use"),
        ("--offline --dataset {narrow}", "narrow.npz has 3 observations and 1 actions, the policy 4 and 1"),
        ("--offline --dataset nowhere.npz", "nowhere.npz"),
    ],
)
def test_wrong_input_is_one_line(
    words: str, message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from segue.data.convert import convert

    data, narrow = pendulum_data(), np.zeros((len(pendulum_data()), 3), np.float32)
    convert(replace(data, observations=narrow, next_observations=narrow, environment_id=None), tmp_path / "narrow.npz")
    line = words.format(narrow=tmp_path / "narrow.npz").split()
    before = sorted(path.name for path in run.iterdir())
    assert main(["evaluate", str(run), *line]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1, error
    assert sorted(path.name for path in run.iterdir()) == before


def test_data_with_other_action_bounds_are_refused(run: Path) -> None:
    """The policy's actions would mean something else in them."""
    other = replace(pendulum_data(), action_high=np.full(1, 4, np.float32))
    with pytest.raises(UserError, match=r"actions between \(-3\) and \(4\), the policy between \(-3\) and \(3\)"):
        segue.open_run(run).evaluate_offline(other)


def test_a_single_episode_is_refused(run: Path) -> None:
    end = int(pendulum_data().episode_ends[0]) + 1
    with pytest.raises(UserError, match="holds a single episode"):
        segue.open_run(run).evaluate_offline(pendulum_data().select(np.arange(end)))


def test_a_run_without_data_asks_for_some(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"dataset": "none"}))
    with pytest.raises(UserError, match=r"the run has no dataset; give one \(--dataset\)"):
        segue.open_run(tmp_path / "run").evaluate_offline()
