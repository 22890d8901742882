"""PPO, O2PPO, the value of returns and the scaling of rewards: ../spec/ocr_cft.md 7.5, and 11, 12 of 7.2."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segue
from segue.core.learn import Program, initial_state, make_keys
from segue.core.model import Adam, Model
from segue.core.phases import Online, Phase
from segue.core.replay import Memory, empty_rows, gather
from segue.core.types import Batch, Spec
from segue.data import Dataset
from segue.environment import Environment
from segue.errors import UserError
from segue.methods.iql import IQL
from segue.methods.o2ppo import O2PPO, auxiliary_advantage, excess_log_density
from segue.methods.ppo import PPO, clipped_gain, generalized_advantages, normalised
from segue.methods.return_value import ReturnValue
from segue.nets.networks import MLP
from segue.nets.policies import BoundedGaussianPolicy, GaussianPolicy
from segue.online import OnlineLoop
from segue.preparation import Preparation
from segue.recipes.ppo import PPORecipe
from segue.replay_start import phase_data
from segue.reward_scaling import RunningReturn
from segue.session import Evaluation
from segue.settings import with_changes
from tests.small import ENVIRONMENT, lines

TINY: dict[str, Any] = {
    "batch_size": 16, "minibatch_size": 6, "epochs": 2, "hidden_sizes": (8,), "value_hidden_sizes": (8,),
}  # fmt: skip
KEY = jax.random.key(0)
UPDATE = jax.jit(lambda algorithm, *rest: algorithm.update(*rest), static_argnums=(0, 4))


def gaussian(mean: float, std: float, dimensions: int = 1) -> Model:
    """A policy of the same mean and std in every state [1]."""
    net = GaussianPolicy(1, dimensions, (), tanh_mean=False)
    layer = {"kernel": jnp.zeros((1, dimensions)), "bias": jnp.full(dimensions, mean)}
    params = {"layers_0": layer, "log_std": jnp.full(dimensions, np.log(std))}
    return replace(Model.create(net, Adam(1e-2), KEY), params=params)


def value(slope: float) -> Model:
    """V(s) = slope s, s [1]."""
    params = {"layers_0": {"kernel": jnp.full((1, 1), slope), "bias": jnp.zeros(1)}}
    return replace(Model.create(MLP((1, 1)), Adam(1e-2), KEY), params=params)


def rollout(action: Any, reward: Any, **others: Any) -> Batch:
    """Steps in one state [1], the last of which ends an episode by a time limit, unless `others` say otherwise."""
    n = len(reward)
    zeros, last = np.zeros((n, 1)), np.eye(n)[-1]
    columns = {"obs": zeros, "next_obs": zeros, "terminal": np.zeros(n), "last": last} | others
    columns = {name: jnp.asarray(x, jnp.float32) for name, x in columns.items()}
    actions = jnp.asarray(action, jnp.float32).reshape(n, -1)
    extras = {"last": columns.pop("last")}
    return Batch(action=actions, reward=jnp.asarray(reward, jnp.float32), extras=extras, **columns)


@pytest.mark.parametrize(
    ("dimensions", "expected"),
    [(1, (0.511048, 0.018150, -1.421111, -3.306853, -4.0)), (3, (0.5, 0.000002, -1.499816, -3.768951, -4.0))],
)
def test_auxiliary_advantages(dimensions: int, expected: tuple[float, ...]) -> None:
    """Test 38: actions 0, 1, 2, 3 and 10 std from the mean, in every dimension."""
    z = np.tile(np.array([0.0, 1, 2, 3, 10])[:, None], dimensions)
    x = excess_log_density(gaussian(0.3, 0.05, dimensions), rollout(0.3 + 0.05 * z, np.zeros(5)))
    np.testing.assert_allclose(auxiliary_advantage(x, dimensions), expected, atol=2e-5)


@pytest.mark.parametrize(("dimensions", "mean_after"), [(1, 0.028790), (3, 1.9e-5)])
def test_the_excess_is_0_on_average_under_the_reference(dimensions: int, mean_after: float) -> None:
    """Test 39, by quadrature over the radius r = |z|."""
    with jax.enable_x64(True):
        r = np.linspace(0, 15, 20_001)
        density = r ** (dimensions - 1) * np.exp(-(r**2) / 2)
        density /= np.trapezoid(density, r)
        z: Any = np.zeros((len(r), dimensions))
        z[:, 0] = r  # x depends on |z| alone
        none, states = jnp.zeros(()), jnp.zeros((len(r), 1))
        batch = Batch(states, jnp.asarray(0.2 * z), none, states, none, {})
        x: Any = excess_log_density(gaussian(0.0, 0.2, dimensions), batch)
        assert abs(np.trapezoid(density * x, r)) < 1e-8
        after = np.trapezoid(density * auxiliary_advantage(x, dimensions), r)
        assert after == pytest.approx(mean_after, rel=0.03)


def test_combination_is_step_by_step() -> None:
    """Test 40."""
    advantage, auxiliary = jnp.array([1.0, -1, 3]), jnp.array([0.5, -0.5, 0])
    combined = O2PPO().combined(advantage, auxiliary, jnp.ones(()))
    np.testing.assert_allclose(combined, [1.5, -1.5, 1.5], rtol=1e-6)
    np.testing.assert_allclose(normalised(combined), [0.57735, -1.15469, 0.57735], atol=1e-5)
    with pytest.raises(AssertionError):  # what the released program lets through
        clipped_gain(jnp.ones(3), combined[:, None], 0.2)


def excess_under(actor: Model, reference: Model) -> float:
    """E of log pi_ref under pi, but for constants."""
    (mean, log_std), (wanted, width) = actor(jnp.zeros(1)), reference(jnp.zeros(1))
    return float(-((mean - wanted) ** 2 + jnp.exp(2 * log_std)).sum() / (2 * jnp.exp(2 * width)).sum())


def drawn_to_the_reference() -> tuple[Any, Any, Batch, jax.Array]:
    """O2PPO, its start half a std from the reference, a rollout whose rewards say nothing of actions, an order."""
    algorithm = O2PPO(batch_size=64, minibatch_size=64, epochs=1, discount=0.0, actor_learning_rate=1e-2)
    actor, reference = gaussian(0.25, 0.5), gaussian(0.0, 0.5).frozen()
    models = {"actor": actor, "value": value(0.0), "reference": reference, "reference_score": jnp.zeros(())}
    s = algorithm.init(models, Spec(1, 1), KEY)
    action = 0.25 + 0.5 * np.random.default_rng(0).normal(size=32).astype(np.float32)
    batch = rollout(np.tile(action, 2), np.repeat([1.0, -1.0], 32))  # each action once with either reward
    return algorithm, s, batch, jnp.arange(64)[None]


def test_the_auxiliary_advantage_draws_the_policy_to_the_reference() -> None:
    """Test 41, and 43: the value learns the same with it and without."""
    algorithm, s, batch, order = drawn_to_the_reference()
    before = excess_under(s.actor, s.reference.policy)
    drawn, metrics = UPDATE(algorithm, s, batch, order, True)
    assert excess_under(drawn.actor, s.reference.policy) > before + 1e-3
    away = -excess_log_density(s.reference.policy, batch).mean()
    assert metrics["auxiliary_weight"] == 1 and metrics["penalty"] == pytest.approx(away)
    late = replace(s, env_step=jnp.int32(algorithm.auxiliary_decay_steps))
    plain, _ = UPDATE(algorithm, late, batch, order, True)
    assert excess_under(plain.actor, s.reference.policy) < before  # the entropy's bonus alone moved it
    for a, b in zip(jax.tree.leaves(drawn.value), jax.tree.leaves(plain.value), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(drawn.reference.policy.params["log_std"], s.reference.policy.params["log_std"])


def test_generalized_advantages() -> None:
    """Test 42: terminals cut delta and recursion, time limits the recursion alone."""
    advantage, _ = generalized_advantages(PPO(), value(0.0), rollout(np.zeros(3), np.ones(3)))
    np.testing.assert_allclose(advantage, [2.825040, 1.9405, 1], rtol=1e-6)
    batch = rollout(
        np.zeros(4), [1.0, 2, 3, 4], obs=[[0.5], [1], [1.5], [2]], next_obs=[[1.0], [9], [2], [2.5]],
        terminal=[0, 1, 0, 0], last=[0, 1, 0, 1],
    )  # fmt: skip
    advantage, target = generalized_advantages(PPO(), value(1.0), batch)
    np.testing.assert_allclose(advantage, [2.4305, 1, 7.6887375, 4.475], rtol=1e-6)
    np.testing.assert_allclose(target, [2.9305, 2, 9.1887375, 6.475], rtol=1e-6)
    cut = batch._replace(extras={"last": jnp.array([0.0, 1, 1, 1])})
    np.testing.assert_allclose(generalized_advantages(PPO(), value(1.0), cut)[0], [2.4305, 1, 3.48, 4.475], rtol=1e-6)


def test_the_gain_is_clipped_where_it_would_grow() -> None:
    """Test 44."""
    found = clipped_gain(jnp.array([1.3, 1.3, 0.7, 0.7]), jnp.array([1.0, -1, 1, -1]), 0.2)
    np.testing.assert_allclose(found, [1.2, -1.3, 0.7, -0.8], rtol=1e-6)


def test_schedules() -> None:
    """Test 45: the first update has the full rates."""
    algorithm, s, batch, order = drawn_to_the_reference()
    s = algorithm.begin_step(s, jnp.int32(2_048))
    s, metrics = UPDATE(algorithm, s, batch, order, True)
    assert metrics["learning_rate_factor"] == 1
    assert metrics["auxiliary_weight"] == pytest.approx(0.991808)
    assert 3e-5 * algorithm.rate(s.learned_at) == pytest.approx(2.975424e-5)
    assert 2e-4 * algorithm.rate(s.learned_at) == pytest.approx(1.983616e-4)
    slow = O2PPO(auxiliary_decay_steps=500_000)
    steps = [2_048, 250_000, 500_000, 600_000]
    found = [float(slow.auxiliary_share(jnp.int32(t))) for t in steps]
    assert found == pytest.approx([0.995904, 0.5, 0, 0])
    assert float(algorithm.rate(jnp.int32(300_000))) == 0
    phase = PPORecipe().online_phase(10_000)
    assert isinstance(phase.algorithm, PPO) and float(phase.algorithm.rate(jnp.int32(2_500))) == 0.75


def test_the_std_is_capped_once() -> None:
    """Test 46: log-std [0, -4] -> [log 0.05, -4] in both networks; training may raise it again."""
    actor = gaussian(0.0, 1.0, 2)
    actor = replace(actor, params=actor.params | {"log_std": jnp.array([0.0, -4])})
    algorithm = O2PPO(initial_std_cap=0.05, **(TINY | {"actor_learning_rate": 1e-2, "entropy_coefficient": 10.0}))
    for models in ({"actor": actor}, {"actor": actor, "reference": actor.frozen(), "reference_score": jnp.zeros(())}):
        s = algorithm.init(models, Spec(1, 2), KEY)
        for policy in (s.actor, s.reference.policy):
            np.testing.assert_allclose(policy.params["log_std"], [np.log(0.05), -4], rtol=1e-6)
    free = replace(algorithm, initial_std_cap=None).init({"actor": actor}, Spec(1, 2), KEY)
    assert free.actor.params["log_std"].tolist() == [0, -4]
    batch = rollout(np.zeros((16, 2)), np.zeros(16))
    s, _ = UPDATE(algorithm, s, batch, algorithm.draw(KEY, Spec(1, 2)), True)
    assert (s.actor.params["log_std"] > jnp.array([np.log(0.05), -4])).all()


def test_a_std_that_depends_on_the_state_is_not_capped() -> None:
    actor = Model.create(BoundedGaussianPolicy(1, 1, (8,)), Adam(1e-3), KEY)
    with pytest.raises(UserError, match="leave --initial-std-cap out"):
        O2PPO(initial_std_cap=0.05, **TINY).init({"actor": actor}, Spec(1, 1), KEY)


def test_the_reference_is_the_best_evaluated_or_a_snapshot() -> None:
    """A copy, whose score is finite from the start: a state that is not counts as diverged."""
    actor = gaussian(0.0, 1.0)
    best = O2PPO(**TINY)
    s = best.init({"actor": actor}, Spec(1, 1), KEY)
    assert np.isfinite(s.reference.score)
    moved = replace(s, actor=gaussian(0.5, 1.0))
    found = []
    for score in (-50.0, -60.0, -40.0):
        moved = best.scored(moved, jnp.float32(score))
        found.append(float(moved.reference.policy(jnp.zeros(1))[0][0]))
        moved = replace(moved, actor=gaussian(found[-1] + 0.5, 1.0))
    assert found == [0.5, 0.5, 1.0] and float(moved.reference.score) == -40
    snapshots = with_changes(best, {"reference": "fixed_interval"})
    assert snapshots.rule.reference_interval == 2_500
    s = replace(s, actor=gaussian(0.5, 1.0))
    kept, taken = (snapshots.begin_step(s, jnp.int32(t)).reference for t in (2_500, 2_501))
    assert [float(one.policy(jnp.zeros(1))[0][0]) for one in (kept, taken)] == [0, 0.5]


# -- the value of returns


def episodes(rewards: Any, terminated: Any, truncated: Any) -> Dataset:
    """States 0, 1, 2 ...; what follows a time limit lies between them."""
    obs = np.arange(len(rewards), dtype=np.float32)[:, None]
    following = obs + 1 + np.asarray(truncated)[:, None] / 2
    return Dataset.from_arrays(obs, np.zeros_like(obs), rewards, terminated, truncated, following)


def tails(dataset: Dataset, **settings: Any) -> tuple[Batch, dict[str, np.ndarray]]:
    """Every row as the fit sees it, and the columns."""
    phase = Phase("value", ReturnValue(discount=0.5, batch_size=4), updates=1, **settings)
    data = phase_data(phase, dataset, Preparation.identity(1), {}, seeds=1)
    assert data.rows is not None
    columns = {name: jnp.asarray(x[0]) for name, x in data.columns.items()}
    n = len(data.rows.reward)
    return gather("offline", Memory(data.rows, columns), jnp.arange(n)), {k: np.asarray(x) for k, x in columns.items()}


def test_returns_end_at_time_limits_and_bootstrap_there() -> None:
    """Test 11, by our reading of D5."""
    _, columns = tails(episodes([1.0, 2, 3], [False, True, False], [False, False, True]))
    assert columns["return_to_go"].tolist() == [2, 2, 3] and columns["end_discount"].tolist() == [0, 0, 0.5]
    _, columns = tails(episodes([1.0, 2, 3], [False] * 3, [False, False, True]))
    assert columns["return_to_go"].tolist() == [2.75, 3.5, 3] and columns["end_discount"].tolist() == [0.125, 0.25, 0.5]
    both = episodes([1.0, 2, 3, 4], [False, False, False, True], [False, True, False, False])
    batch, columns = tails(both)
    assert columns["return_to_go"].tolist() == [2, 2, 5, 4] and columns["end_discount"].tolist() == [0.25, 0.5, 0, 0]
    assert batch.extras["end_obs"][:, 0].tolist() == [2.5, 2.5, 4, 4]
    batch, columns = tails(both, top_fraction=0.5)  # the second episode: its rows have moved
    assert columns["return_to_go"].tolist() == [5, 4] and batch.extras["end_obs"][:, 0].tolist() == [4, 4]


def test_the_fit_meets_returns_and_what_lies_beyond() -> None:
    algorithm = ReturnValue(batch_size=3, hidden_sizes=(), learning_rate=1e-2)
    s = replace(algorithm.init({"value": value(7.0)}, Spec(1, 1), KEY))
    assert float(s.value(jnp.ones((1, 1)))[0, 0]) != 7  # whatever value there was, it begins anew
    s = replace(s, value=value(2.0))
    batch = rollout(np.zeros(3), np.zeros(3), obs=np.ones((3, 1)))
    extras = {"return_to_go": jnp.array([1.0, 1, 1]), "end_discount": jnp.array([0, 0.5, 1])}
    batch = batch._replace(extras=extras | {"end_obs": jnp.full((3, 1), 3.0)})
    after, metrics = UPDATE(algorithm, s, batch, (), True)
    assert float(metrics["value_loss"]) == pytest.approx(np.mean([(2 - 1) ** 2, (2 - 4) ** 2, (2 - 7) ** 2]))
    beyond = batch._replace(extras=batch.extras | {"end_obs": batch.obs, "end_discount": jnp.ones(3)})
    after, _ = UPDATE(algorithm, s, beyond, (), True)  # y = 1 + V(s): with a gradient through y nothing would move
    assert float(after.value.params["layers_0"]["kernel"][0, 0]) > 2.005


# -- rewards scaled by the running return


def test_rewards_are_scaled_by_the_std_of_returns_so_far() -> None:
    """Test 12: the terminal row keeps its reward."""
    found = RunningReturn(0.99).over_dataset(np.array([1.0, 2, 3, 4]), np.eye(4)[3] > 0, np.eye(4)[3] > 0)
    np.testing.assert_allclose(found, [1, 1.638450, 1.416240, 4], rtol=1e-6)
    running = RunningReturn(0.99)
    running.over_dataset(np.ones(3), np.zeros(3, bool), np.eye(3)[1] > 0)
    assert running.total == 1 and running.count == 3  # R began anew after the second row


class Counting(gym.Env):
    """Pays 1, 2, 3 ...; episodes of three steps, ended by a time limit."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self) -> None:
        self.paid, self.steps = 0, 0

    def reset(self, **_: Any) -> tuple[np.ndarray, dict]:
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.paid, self.steps = self.paid + 1, self.steps + 1
        return np.zeros(1, np.float32), self.reward(action), False, self.steps == 3, {}

    def reward(self, action: np.ndarray) -> float:
        return float(self.paid)


class Target(Counting):
    """Pays for actions near 0.5."""

    def reward(self, action: np.ndarray) -> float:
        return 1 - float(action[0] - 0.5) ** 2


def loop_of(algorithm: PPO, env: gym.Env, steps: int, running: RunningReturn | None = None) -> OnlineLoop:
    spec, keys = Spec(1, 1), make_keys((0,), 0)
    schedule = Online(steps, updates_per_step=1 / algorithm.batch_size)
    data = phase_data(Phase("online", algorithm, online=schedule), None, Preparation.identity(1), {}, seeds=1)
    columns = {name: jnp.asarray(x) for name, x in data.columns.items()}
    rows = jax.tree.map(lambda x: x[None], empty_rows(spec, algorithm.batch_size, tuple(columns)))
    program = Program(algorithm, "rollout", spec)
    loop = OnlineLoop(
        program, schedule, [Environment(lambda: env)], Preparation.identity(1),
        initial_state(algorithm, {}, spec, keys), rows, columns, None, keys, (0,), data.new_row_extras,
        running_return=running,
    )  # fmt: skip
    loop.begin()
    return loop


def test_online_rewards_go_on_with_the_datasets_scale() -> None:
    algorithm = PPO(**TINY)
    dataset = episodes([1.0, 2, 3, 4], [False, False, False, True], [False, True, False, False])
    phase = Phase(
        "online", algorithm, online=Online(9, updates_per_step=1 / 16), scale_rewards_by_running_return=True
    )
    data = phase_data(phase, dataset, Preparation.identity(1), {}, seeds=1)
    assert data.rows is None and {name: x.shape for name, x in data.columns.items()} == {"last": (1, 0)}
    assert data.running_return and data.running_return.count == 3
    by_hand = replace(data.running_return)
    loop = loop_of(algorithm, Counting(), 9, data.running_return)
    loop.advance(lambda: False, 4)
    other = loop_of(algorithm, Counting(), 9, RunningReturn(0.5))
    saved = loop.host_state()
    other.restore(saved | {"environments": [None]})  # this one starts a new episode
    assert other.scaling[0] == replace(loop.scaling[0], total=0.0)
    loop.advance(lambda: False, 9)
    expected = []
    for reward in range(1, 10):
        expected.append(by_hand.scaled(reward))
        if reward % 3 == 0:
            by_hand.restart()
    np.testing.assert_allclose(loop.rows.reward[0, :9], expected, rtol=1e-6)
    assert np.flatnonzero(loop.rows.extras["last"][0]).tolist() == [2, 5, 8] and not loop.rows.terminal.any()
    plain = phase_data(replace(phase, scale_rewards_by_running_return=False), dataset, Preparation.identity(1), {}, 1)
    assert plain.running_return is None


# -- whole


def test_ppo_learns_from_its_own_rollouts() -> None:
    """One update after every 64 steps, from the latest 64; the mean finds the best action."""
    algorithm = PPO(
        batch_size=64, minibatch_size=32, epochs=10, hidden_sizes=(16,), value_hidden_sizes=(16,),
        actor_learning_rate=1e-2, value_learning_rate=1e-2, entropy_coefficient=0.0,
    )  # fmt: skip
    loop = loop_of(algorithm, Target(), 1920)
    metrics, _ = loop.advance(lambda: False, 1920)
    assert loop.updates == int(loop.state.updates[0]) == len(metrics) == 30
    actor = jax.tree.map(lambda x: x[0], loop.state.actor)
    mean, log_std = actor(jnp.zeros(1))
    assert abs(float(mean[0]) - 0.5) < 0.1 and float(log_std[0]) < -0.5


SCARCE = Evaluation(eval_interval=1000, online_eval_interval=24, eval_episodes=1, result_episodes=1, log_interval=16)


def test_it_goes_on_from_the_policy_and_the_value_of_iql() -> None:
    """Whatever their networks are; the optimizers are new."""

    def gone_on(algorithm: Any) -> Any:
        iql = IQL(hidden_sizes=(4, 4), batch_size=8, cosine_updates=10)
        models = iql.export(iql.init({}, Spec(1, 1), KEY))
        start = algorithm.init(models, Spec(1, 1), KEY)
        after, _ = algorithm.update(start, batch, algorithm.draw(KEY, Spec(1, 1)), True)
        return models, start, after

    batch = rollout(np.zeros(16), np.zeros(16))
    for algorithm in (PPO(**TINY), O2PPO(**TINY)):
        models, start, after = jax.eval_shape(partial(gone_on, algorithm))
        for role in ("actor", "value"):
            model = getattr(after, role)
            assert model.net == models[role].net and model.optimizer == Adam(model.optimizer.learning_rate, 0.5, 1e-5)
        structure: Any = jax.tree.structure(after)
        assert structure == jax.tree.structure(start)


def test_a_run_from_scratch(tmp_path: Path) -> None:
    quietly: dict[str, Any] = {"environment": ENVIRONMENT, "evaluation": SCARCE, "quiet": True}
    run = segue.train("ppo", out=tmp_path / "run", steps=48, settings=TINY, **quietly)
    assert np.isfinite(run.summary["phases"][-1]["final"][0]["return_mean"])
    assert run.policy()(np.zeros(4, np.float32)).shape == (1,)
    logged = [line for line in lines(run.path, "train") if "value_loss" in line]
    assert [line["step"] for line in logged] == [16, 32, 48]
    assert [line["learning_rate_factor"] for line in logged] == pytest.approx([1, 2 / 3, 1 / 3])
    with pytest.raises(UserError, match="has no replay"):
        segue.train("ppo", out=tmp_path / "no", steps=48, settings=TINY | {"replay": "all"}, **quietly)
    for setting in ({"warmup_steps": 10}, {"updates_per_step": 2.0}):
        with pytest.raises(UserError, match="leave --warmup-steps and --updates-per-step out"):
            segue.train("ppo", out=tmp_path / "no", steps=48, settings=TINY | setting, **quietly)
