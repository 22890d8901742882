"""The critic check against critics and returns that are known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segue
from segue.core.model import Adam, Model
from segue.core.types import Models
from segue.critic_check import BINS, ROWS, check_critic, known_rows
from segue.evaluate import Evaluator, Score, Trace
from segue.nets.networks import Critics
from segue.preparation import Preparation
from segue.session import Evaluation
from tests.small import ENVIRONMENT, NETWORKS, lines, pendulum_data

DISCOUNT = 0.9
CRITIC = ("critic",)


@dataclass(frozen=True)
class FarFrom:
    """Two critics, the first [level - |a - centre|^2 + s_0], the second 1 above it."""

    centre: float

    def of_several(self, params: jax.Array, obs: jax.Array, actions: jax.Array) -> jax.Array:
        q = params - jnp.square(actions - self.centre).sum(-1) + obs[:, :1]
        return jnp.stack([q, q + 1])


@dataclass(frozen=True)
class FirstFeature:
    """V(s) = s_0 + level."""

    def apply(self, params: jax.Array, obs: jax.Array) -> jax.Array:
        return obs[..., :1] + params


def model(net: Any, level: float = 0.0) -> Any:
    """Of two seeds; the second's level is 5 above the first's."""
    return SimpleNamespace(net=net, params=jnp.asarray([level, level + 5]))


def toy(action: float = 0.25, lengths: tuple[int, ...] = (6, 3), terminated: tuple[bool, ...] = (True, True)) -> Trace:
    """Reward 1 a step; s_0 is the return of the row, s_1 the number of its episode."""
    returns = [(1 - DISCOUNT**left) / (1 - DISCOUNT) for n in lengths for left in range(n, 0, -1)]
    episode = np.repeat(np.arange(len(lengths)), lengths)
    rows = len(returns)
    obs = np.stack([np.asarray(returns, np.float32), episode.astype(np.float32)], axis=1)
    return Trace(obs, np.full((rows, 2), action, np.float32), np.ones(rows), episode, np.asarray(terminated))


def checked(models: Models, trace: Trace, k: int = 0, made: tuple[str, ...] = CRITIC) -> dict[str, Any]:
    entry = check_critic(models, made, trace, DISCOUNT, seed=0, k=k)
    assert entry is not None
    return entry


def test_values_beside_known_returns() -> None:
    trace = toy()
    entry = checked({"critic": model(FarFrom(0.25), level=2.0)}, trace)
    returns = trace.obs[:, 0]
    assert (entry["estimate"], entry["rows"], entry["discount"]) == ("Q", 9, DISCOUNT)
    assert entry["return_mean"] == pytest.approx(returns.mean(), rel=1e-6)
    assert entry["return_quantiles"] == pytest.approx(np.quantile(returns, [0.05, 0.25, 0.5, 0.75, 0.95]), rel=1e-6)
    assert entry["estimate_mean"] == pytest.approx(returns.mean() + 2, rel=1e-6)  # the least of both critics
    assert entry["difference_mean"] == pytest.approx(2.0, rel=1e-5)
    assert entry["correlation"] == pytest.approx(1.0, abs=1e-6)
    other = checked({"critic": model(FarFrom(0.25), level=2.0)}, trace, k=1)
    assert other["difference_mean"] == pytest.approx(7.0, rel=1e-5)  # the second seed's own parameters


def test_rank_is_one_where_the_critic_likes_the_policys_action_best_and_zero_where_least() -> None:
    best = checked({"critic": model(FarFrom(0.25))}, toy(action=0.25))
    worst = checked({"critic": model(FarFrom(-1.0))}, toy(action=1.0))
    for name in ("uniform", "nearby"):
        assert best[f"rank_{name}_mean"] == 1 and best[f"rank_{name}_histogram"] == [0] * (BINS - 1) + [9]
        # An action on the bound meets itself among the clipped ones, a quarter of them in two dimensions: ties.
        assert worst[f"rank_{name}_mean"] == pytest.approx(0.0 if name == "uniform" else 0.125, abs=0.03)


def test_rank_among_nearby_actions_sees_only_these() -> None:
    """A small peak beside the policy's action hides from uniform samples, not from nearby ones."""
    entry = checked({"critic": model(FarFrom(0.45))}, toy(action=0.25))
    assert entry["rank_uniform_mean"] > 0.9 and entry["rank_nearby_mean"] < 0.75


def test_rank_of_a_critic_without_a_preference() -> None:
    """Fresh networks at the actions of nobody: about as many are better as worse."""
    nets, rng = Critics(2, 2, (16,)), np.random.default_rng(0)
    trace = toy(lengths=(150,) * 10, terminated=(True,) * 10)
    shape = trace.action.shape
    trace = Trace(trace.obs, rng.uniform(-1, 1, shape).astype(np.float32), *list(vars(trace).values())[2:])
    created = Model.create(nets, Adam(1e-3), jax.random.key(0))
    entry = checked({"critic": jax.tree.map(lambda x: x[None], created)}, trace)
    assert entry["rows"] == ROWS
    assert entry["rank_uniform_mean"] == pytest.approx(0.5, abs=0.05)
    assert entry["rank_nearby_mean"] == pytest.approx(0.5, abs=0.1)
    assert sum(entry["rank_uniform_histogram"]) == ROWS


def test_rows_near_a_time_limit_are_left_out() -> None:
    cut = toy(lengths=(40, 3), terminated=(False, True))
    rows = known_rows(cut, DISCOUNT, np.random.default_rng(0))
    hidden = 28  # 0.9^29 <= 0.05 < 0.9^28
    assert len(rows.returns) == 40 - hidden + 3
    known = np.sort(np.r_[cut.obs[: 40 - hidden, 0], cut.obs[40:, 0]])
    np.testing.assert_allclose(np.sort(rows.returns), known, rtol=1e-6)
    unknown = toy(lengths=(20,), terminated=(False,))
    assert check_critic({"critic": model(FarFrom(0.0))}, CRITIC, unknown, DISCOUNT, 0, 0) is None


def test_rows_are_taken_evenly_over_episodes() -> None:
    trace = toy(lengths=(2000, 5, 2000), terminated=(True,) * 3)
    rows = known_rows(trace, DISCOUNT, np.random.default_rng(0))
    counts = np.bincount(rows.obs[:, 1].astype(int))
    assert counts.sum() == ROWS and counts[1] == 5 and abs(counts[0] - counts[2]) <= 1
    again = known_rows(trace, DISCOUNT, np.random.default_rng(0))
    np.testing.assert_array_equal(rows.returns, again.returns)


def test_value_counts_where_the_phase_made_it() -> None:
    models = {"critic": model(FarFrom(0.25)), "value": model(FirstFeature(), level=-1.0)}
    entry = checked(models, toy(), made=("actor", "value"))
    assert entry["estimate"] == "V" and entry["difference_mean"] == pytest.approx(-1.0, rel=1e-5)
    assert not any(name.startswith("rank") for name in entry)
    assert checked(models, toy(), made=("actor",))["estimate"] == "Q"  # an earlier phase's: what a clone meets
    assert check_critic({"actor": None}, ("actor",), toy(), DISCOUNT, 0, 0) is None


def test_no_correlation_of_constants() -> None:
    trace = toy(lengths=(1, 1), terminated=(True, True))
    assert checked({"critic": model(FarFrom(0.25))}, trace)["correlation"] is None


def play(trace: bool) -> Score:
    preparation = Preparation(np.full(4, 0.5, np.float32), np.full(4, 2.0, np.float32), 10.0, -5.0)
    evaluator = Evaluator(ENVIRONMENT, {}, preparation)
    score = evaluator.score(lambda obs: 3 * obs[:, :1], 3, seed=0, trace=trace)
    assert score is not None
    return score


def test_trace_of_an_evaluation() -> None:
    plain, score = play(False), play(True)
    np.testing.assert_array_equal(plain.returns, score.returns)
    assert plain.trace is None and score.trace is not None
    trace = score.trace
    np.testing.assert_array_equal(np.bincount(trace.episode), score.lengths)
    assert (np.diff(trace.episode) >= 0).all() and trace.terminated.all()
    np.testing.assert_array_equal(trace.action, np.clip(3 * trace.obs[:, :1], -1, 1))
    raw = (trace.reward + 5) / 10
    np.testing.assert_allclose([raw[trace.episode == i].sum() for i in range(3)], score.returns)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TD3+BC offline, then online, two seeds."""
    out = tmp_path_factory.mktemp("critic_check") / "run"
    evaluation = Evaluation(1000, 1000, eval_episodes=1, result_episodes=2, log_interval=100)
    segue.run(
        "td3_bc", pendulum_data(), ENVIRONMENT, seeds=(0, 1), steps=40, online_steps=30, out=out, quiet=True,
        evaluation=evaluation, settings=NETWORKS | {"warmup_steps": 10},
    )  # fmt: skip
    return out


def test_a_run_records_it_at_the_end_of_each_phase_and_at_the_hand_over(run: Path) -> None:
    phases = json.loads((run / "summary.json").read_text())["phases"]
    offline, online = (phase["critic_check"] for phase in phases)
    assert [(e["step"], e["seed"]) for e in offline] == [(40, 0), (40, 1)]
    assert [(e["step"], e["seed"]) for e in online] == [(0, 0), (0, 1), (30, 0), (30, 1)]
    assert all(e["policy"] == "deterministic" and e["estimate"] == "Q" and e["rows"] > 2 for e in offline + online)
    found = lines(run, "critic_check")
    assert [{k: v for k, v in line.items() if k not in ("kind", "phase")} for line in found] == offline + online
    assert [line["phase"] for line in found] == ["offline"] * 2 + ["online"] * 4
    assert offline[0]["estimate_mean"] != offline[1]["estimate_mean"]
