"""The main job as a user does it: data, offline training, fine-tuning, evaluation, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import segue
from segue.cli.main import main
from segue.data import Dataset
from segue.errors import UserError
from segue.session import Evaluation
from tests.small import ENVIRONMENT, NETWORKS, SSAR, lines, options, pendulum_data, write_pendulum_data

SCARCE = Evaluation(eval_interval=1000, online_eval_interval=1000, eval_episodes=2, result_episodes=2, log_interval=50)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`segue train`, two seeds."""
    tmp = tmp_path_factory.mktemp("end_to_end")
    data = write_pendulum_data(tmp)
    command = ["train", "td3_bc_ssar", "--dataset", str(data), "--env", ENVIRONMENT, "--steps", "400"]
    curve = options({"eval_interval": 200, "eval_episodes": 2, "log_interval": 100})
    assert main([*command, "--seeds", "0", "1", "--out", str(tmp / "offline"), *options(SSAR), *curve]) == 0
    return tmp / "offline"


@pytest.fixture(scope="module")
def tuned(trained: Path) -> Path:
    """`segue finetune` of it."""
    out = trained.parent / "online"
    command = ["finetune", str(trained), "--env", ENVIRONMENT, "--steps", "400", "--replay", "part", "--out", str(out)]
    curve = options({"warmup_steps": 50, "online_eval_interval": 40, "eval_episodes": 2, "log_interval": 100})
    assert main([*command, *curve]) == 0
    return out


def summary_of(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return summary


def assert_results(entries: list[dict[str, Any]], steps: int) -> None:
    """Scores that may be reported: at least 50 episodes of each seed, raw and normalised, with errors."""
    assert [entry["seed"] for entry in entries] == [0, 1]
    for entry in entries:
        assert entry["step"] == steps
        assert entry["episodes"] >= 50
        assert entry["normalised_mean"] == pytest.approx(100 * (entry["return_mean"] - 5) / 995)
        assert entry["return_standard_error"] >= 0
        assert entry["normalised_standard_error"] == pytest.approx(entry["return_standard_error"] / 9.95)


def test_summary_of_the_offline_phase(trained: Path) -> None:
    summary = summary_of(trained)
    assert summary["method"] == "td3_bc_ssar"
    assert summary["environment"] == ENVIRONMENT
    assert summary["seeds"] == [0, 1]
    assert 0 < summary["selection"]["trusted_fraction"] < 1
    assert summary["behaviour"]["return_mean"] == pytest.approx(pendulum_data().episode_returns.mean())
    (phase,) = summary["phases"]
    assert (phase["name"], phase["kind"], phase["steps"]) == ("offline", "offline", 400)
    assert phase["steps_per_second"] == pytest.approx(400 / phase["wall_time_s"])
    assert [(e["step"], e["seed"], e["episodes"]) for e in phase["evaluations"][:2]] == [(200, 0, 2), (200, 1, 2)]
    assert_results(phase["final"], 400)
    assert "drop" not in phase


def test_summary_of_the_online_phase(tuned: Path) -> None:
    (phase,) = summary_of(tuned)["phases"]
    assert (phase["kind"], phase["steps"]) == ("online", 400)
    assert_results(phase["handover"], 0)
    assert_results(phase["final"], 400)
    for seed, drop in enumerate(phase["drop"]):
        first_tenth = [e for e in phase["evaluations"] if e["seed"] == seed and 0 < e["step"] <= 40]
        assert all(e["episodes"] >= 50 for e in first_tenth)
        lowest = min(e["return_mean"] for e in first_tenth)
        assert drop["seed"] == seed
        assert drop["drop_return"] == pytest.approx(lowest - phase["handover"][seed]["return_mean"])
        assert drop["drop_normalised"] == pytest.approx(drop["drop_return"] / 9.95)


def test_the_policy_at_the_hand_over_is_the_one_that_was_trained(trained: Path, tuned: Path) -> None:
    offline, online = summary_of(trained)["phases"][0], summary_of(tuned)["phases"][0]
    assert [e["return_mean"] for e in offline["final"]] == [e["return_mean"] for e in online["handover"]]


def test_metrics_have_every_line_once(tuned: Path) -> None:
    train = lines(tuned, "train")
    assert [(line["step"], line["seed"]) for line in train] == [(s, k) for s in (100, 200, 300, 400) for k in (0, 1)]
    assert {"critic_loss", "critic_1_mean", "coefficient_mean", "anneal_factor"} <= set(train[-1])
    for episode in lines(tuned, "episode"):
        assert episode["length"] > 0


def test_evaluate_prints_every_seed(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tuned), "--episodes", "3", "--json"]) == 0
    returns = json.loads(capsys.readouterr().out)
    assert {seed: len(values) for seed, values in returns.items()} == {"0": 3, "1": 3}
    assert main(["evaluate", str(tuned), "--episodes", "3"]) == 0
    assert "seed 1: return" in capsys.readouterr().out


def test_report_of_both(trained: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(trained), str(tuned), "--out", str(tmp_path)]) == 0
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "td3_bc_ssar" in page
    assert list(tmp_path.glob("*.png"))


def test_the_policy_maps_observations_to_actions_within_the_bounds(tuned: Path) -> None:
    run = segue.open_run(tuned)
    policy = run.policy(seed=1)
    rng = np.random.default_rng(0)
    observations = (100 * rng.normal(size=(50, 4))).astype(np.float32)
    actions = policy(observations)
    assert actions.shape == (50, 1)
    assert np.abs(actions).max() <= 3
    assert np.ptp(actions) > 0
    one = policy(observations[0])
    assert one.shape == (1,)
    np.testing.assert_allclose(one, actions[0], rtol=1e-5)
    assert not np.array_equal(run.policy(seed=0)(observations), actions)
    with pytest.raises(UserError, match="no seed 5"):
        run.policy(seed=5)


def test_the_policy_earns_what_evaluation_says(tuned: Path) -> None:
    run = segue.open_run(tuned)
    (score,) = [run.evaluate(2)[0]]
    policy, env = run.policy(seed=0), gym.make(ENVIRONMENT)
    seeds = np.random.SeedSequence([1_000_000, 0]).generate_state(2)
    for seed, want in zip(seeds, score.returns, strict=True):
        obs, total, over = env.reset(seed=int(seed))[0], 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(policy(obs))
            total, over = total + float(reward), terminated or truncated
        assert total == pytest.approx(want, rel=0.2)  # single precision, amplified by the pole
    env.close()


SLOW = pytest.mark.slow


@pytest.mark.parametrize("replay", ["all", pytest.param("half", marks=SLOW), pytest.param("part", marks=SLOW), "none"])
def test_every_replay_start(replay: str, trained: Path, tmp_path: Path) -> None:
    run = segue.finetune(
        trained, out=tmp_path / "run", steps=60, seeds=(1,), evaluation=SCARCE, quiet=True,
        settings={"replay": replay, "warmup_steps": 20},
    )  # fmt: skip
    (phase,) = run.summary["phases"]
    assert [entry["seed"] for entry in phase["final"]] == [1]
    assert lines(run.path, "train")[-1]["critic_loss"] >= 0


@pytest.mark.parametrize(("ratio", "updates"), [(0.5, 20), pytest.param(4.0, 160, marks=SLOW)])
def test_update_to_data_ratios(ratio: float, updates: int, tmp_path: Path) -> None:
    run = segue.train(
        "td3", environment=ENVIRONMENT, out=tmp_path / "run", steps=50, evaluation=SCARCE, quiet=True,
        settings=NETWORKS | {"warmup_steps": 10, "updates_per_step": ratio},
    )  # fmt: skip
    policy = run.policy()
    assert int(policy.state.updates) == updates
    assert "handover" not in run.summary["phases"][0]  # from scratch nothing is handed over


class Reach(gym.Env):
    """A point on a line has to reach a goal: a user's own environment, with a Dict observation."""

    def __init__(self) -> None:
        box = spaces.Box(-10, 10, (1,), np.float64)
        self.observation_space = spaces.Dict({"observation": box, "achieved_goal": box, "desired_goal": box})
        self.action_space = spaces.Box(-0.5, 0.25, (1,), np.float32)
        self.position, self.goal = np.zeros(1), np.zeros(1)

    def _observe(self) -> dict[str, np.ndarray]:
        return {"observation": self.position.copy(), "achieved_goal": self.position.copy(), "desired_goal": self.goal}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.position, self.goal = self.np_random.uniform(-1, 1, 1), self.np_random.uniform(-1, 1, 1)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> Any:
        assert self.action_space.contains(action)
        self.position = self.position + action
        distance = float(np.abs(self.position - self.goal)[0])
        return self._observe(), -distance, distance < 0.05, False, {}


def make_reach() -> gym.Env:
    return gym.wrappers.TimeLimit(Reach(), 20)


def reach_data(rows: int = 300) -> Dataset:
    """A proportional controller with noise, in memory."""
    env, rng = make_reach(), np.random.default_rng(0)
    obs = env.reset(seed=0)[0]
    steps: list[tuple[Any, ...]] = []
    for i in range(rows):
        wanted = 0.5 * (obs["desired_goal"] - obs["observation"]) + 0.1 * rng.normal(size=1)
        action = np.clip(wanted, -0.5, 0.25).astype(np.float32)
        then, reward, terminated, truncated, _ = env.step(action)
        truncated = truncated or (i == rows - 1 and not terminated)
        flat = [np.concatenate([o["observation"], o["desired_goal"]]) for o in (obs, then)]
        steps.append((flat[0], action, reward, terminated, truncated, flat[1]))
        obs = env.reset()[0] if terminated or truncated else then
    columns = [np.asarray(column) for column in zip(*steps, strict=True)]
    return Dataset.from_arrays(*columns, action_low=[-0.5], action_high=[0.25])


def test_own_data_and_own_environment_with_a_dict_observation(tmp_path: Path) -> None:
    run = segue.run(
        "td3_bc", reach_data(), make_reach, out=tmp_path / "run", steps=50, online_steps=60, evaluation=SCARCE,
        settings=NETWORKS | {"warmup_steps": 20}, quiet=True,
    )  # fmt: skip
    assert [phase["name"] for phase in run.summary["phases"]] == ["offline", "online"]
    observation, _ = make_reach().reset(seed=3)
    action = run.policy()(observation)
    assert action.shape == (1,)
    assert -0.5 <= action[0] <= 0.25
    flat = np.concatenate([observation["observation"], observation["desired_goal"]])
    np.testing.assert_array_equal(run.policy()(flat), action)
    assert set(run.evaluate(2, make_reach)) == {0}
    with pytest.raises(UserError, match=r"built by a Python function \('make_reach'\)"):
        run.evaluate(2)
    (tmp_path / "run" / "summary.json").unlink()  # as if it had been stopped before its end
    with pytest.raises(UserError, match="from Python, give it again"):
        segue.resume(run.path)
    segue.resume(run.path, make_reach, quiet=True)
    assert len(run.summary["phases"]) == 2


def test_another_method_goes_on_and_its_run_can_be_tuned_again(trained: Path, tmp_path: Path) -> None:
    first = segue.finetune(
        trained, out=tmp_path / "td3", steps=40, method="td3", seeds=(0,), evaluation=SCARCE, quiet=True,
        settings=NETWORKS | {"warmup_steps": 10, "replay": "none"},
    )  # fmt: skip
    second = segue.finetune(first, out=tmp_path / "again", steps=40, evaluation=SCARCE, quiet=True)
    assert second.folder.config["method"] == "td3"
    assert int(second.policy().state.updates) == 400 + 30 + 30


def test_tensorboard_holds_the_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    segue.train(
        "td3_bc", pendulum_data(), out=tmp_path / "run", steps=100, settings=NETWORKS, quiet=True,
        evaluation=Evaluation(eval_interval=50, eval_episodes=1, result_episodes=1, log_interval=50, tensorboard=True),
    )  # fmt: skip
    (events,) = (tmp_path / "run" / "tensorboard").glob("events.*")
    content = events.read_bytes()
    assert b"train/critic_loss/seed_0" in content
    assert b"evaluation/return_mean/seed_0" in content
