"""What is IQL's and AWAC's own: schedules, presets, reward scaling, and that signs and targets matter."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.algorithm import Algorithm
from segue.core.learn import act_greedily
from segue.core.types import Batch, PyTree, Spec
from segue.data import Dataset
from segue.data.prepare import return_range_scale
from segue.errors import UserError
from segue.experiment import preparation_of
from segue.methods.iql import IQL, IQLState
from segue.recipes import preset_recipe
from segue.recipes.datasets import ANTMAZE, LOCOMOTION
from segue.recipes.iql import IQLRecipe
from segue.settings import with_changes
from tests import test_probes as probes
from tests.small import pendulum_data

SPEC = Spec(3, 2)


def state_after(algorithm: Algorithm, updates: int, before: int = 0) -> Any:
    """A state of which only the counts matter."""
    state = algorithm.init({"updates": jnp.int32(before)} if before else {}, SPEC, jax.random.key(0))
    return replace(state, updates=jnp.int32(updates))


def rate(algorithm: Any, updates: int, before: int = 0) -> float:
    return float(algorithm.actor_rate(state_after(algorithm, updates, before), jnp.zeros(1)))


def test_the_actor_rate_falls_to_zero_over_the_offline_phase() -> None:
    (phase,) = IQLRecipe().offline_phases(2_000)
    found = [rate(phase.algorithm, done) for done in (0, 500, 1000, 2000)]
    np.testing.assert_allclose(found, [1, 0.5 + 0.5**1.5, 0.5, 0], atol=1e-6)


def test_a_horizon_of_its_own() -> None:
    (phase,) = IQLRecipe(algorithm=IQL(cosine_updates=1_000)).offline_phases(10)
    assert rate(phase.algorithm, 500) == pytest.approx(0.5)


def test_a_constant_rate() -> None:
    (phase,) = IQLRecipe(algorithm=IQL(actor_schedule="constant")).offline_phases(10)
    assert rate(phase.algorithm, 9) == 1


def online(schedule: Any) -> Any:
    return IQLRecipe(online_actor_schedule=schedule).online_phase(10).algorithm


def test_online_the_rate_is_constant_unless_asked_otherwise() -> None:
    assert IQLRecipe().online_phase(10).algorithm == online("constant")
    assert rate(online("constant"), 1_000_007, before=1_000_000) == 1


def test_online_the_papers_program_lets_it_rise_again() -> None:
    """The specification's own figures, of 3e-4 after an offline million (baselines_hparams.yaml)."""
    wanted = {30_000: 6.7e-7, 100_000: 7.3e-6, 250_000: 4.4e-5, 500_000: 1.5e-4, 1_000_000: 3e-4}
    algorithm = online("torch_cosine_continue")
    for step, value in wanted.items():
        assert 3e-4 * rate(algorithm, 1_000_000 + step, before=1_000_000) == pytest.approx(value, rel=0.02)


def test_online_frozen_the_policy_stays() -> None:
    """And the values go on."""
    algorithm: IQL = replace(online("frozen"), batch_size=8, hidden_sizes=(6,))
    offline = replace(algorithm, actor_learning_rate=3e-4)
    models = offline.export(offline.init({}, SPEC, jax.random.key(0))) | {"updates": jnp.int32(5)}
    state = algorithm.init(models, SPEC, jax.random.key(1))
    rng: Any = np.random.default_rng(0)
    noise = jnp.asarray(rng.normal(size=(8, 10)), jnp.float32)
    batch = Batch(noise[:, :3], jnp.tanh(noise[:, 3:5]), noise[:, 5], noise[:, 6:9], jnp.zeros(8), {})
    after, _ = jax.jit(lambda s: algorithm.update(s, batch, (), True))(state)
    assert same(after.actor.params, state.actor.params) and not same(after.critic.params, state.critic.params)


def same(a: PyTree, b: PyTree) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# What baselines_hparams.yaml says of each dataset.
IQL_COMMON: dict[str, Any] = {
    "hidden_sizes": (256, 256), "actor_learning_rate": 3e-4, "critic_learning_rate": 3e-4, "value_learning_rate": 3e-4,
    "batch_size": 256, "discount": 0.99, "target_update_rate": 0.005, "advantage_weight_max": 100.0,
    "inverse_temperature": 3.0, "expectile": 0.7, "deterministic_actor": False, "actor_schedule": "cosine",
    "actor_dropout": 0.0, "online_action_noise": 0.03, "online_action_noise_clip": 0.5, "policy_update_interval": 1,
}  # fmt: skip
IQL_OF: dict[str, dict[str, Any]] = {
    "hopper-medium-v2": {"deterministic_actor": True, "target_update_rate": 0.001},
    "hopper-medium-replay-v2": {"deterministic_actor": True, "target_update_rate": 0.001},
    "hopper-medium-expert-v2": {"inverse_temperature": 6.0, "expectile": 0.5},
} | {name: {"inverse_temperature": 10.0, "expectile": 0.9} for name in ANTMAZE}
AWAC_COMMON: dict[str, Any] = {
    "hidden_sizes": (256, 256, 256), "actor_learning_rate": 3e-4, "critic_learning_rate": 3e-4, "batch_size": 256,
    "discount": 0.99, "target_update_rate": 0.005, "advantage_weight_max": 100.0, "advantage_temperature": 0.3333,
    "policy_update_interval": 1,
}  # fmt: skip
AWAC_OF: dict[str, dict[str, Any]] = {name: {"advantage_temperature": 0.1} for name in ANTMAZE}


@pytest.mark.parametrize("name", LOCOMOTION + ANTMAZE)
@pytest.mark.parametrize("method", ["iql", "awac"])
def test_presets_are_the_specification(method: str, name: str) -> None:
    recipe = preset_recipe(method, name)
    common, own = (IQL_COMMON, IQL_OF) if method == "iql" else (AWAC_COMMON, AWAC_OF)
    (offline,) = recipe.offline_phases(1_000_000)
    phase = recipe.online_phase(1_000_000)
    for setting, value in (common | own.get(name, {})).items():
        assert getattr(offline.algorithm, setting) == value, setting
        assert getattr(phase.algorithm, setting) == value or setting == "actor_schedule", setting
    assert recipe.normalize_observations and recipe.reward_scale == 1
    assert recipe.reward_bias == (-1 if name in ANTMAZE else 0)
    scaled = method == "iql" and name in ("hopper-medium-v2", "hopper-medium-replay-v2")
    assert recipe.reward_scale_by_return_range == scaled
    assert phase.online is not None
    assert (phase.online.replay, phase.online.updates_per_step, phase.online.warmup_steps) == ("all", 1, 0)


def episodes(*rewards: tuple[float, ...], limit: int = 1000) -> Dataset:
    """A dataset of these episodes, each of which ends."""
    reward = np.concatenate([np.asarray(r, np.float32) for r in rewards])
    n = len(reward)
    ends = np.zeros(n, bool)
    ends[np.cumsum([len(r) for r in rewards]) - 1] = True
    rng = np.random.default_rng(0)
    obs, after, action = rng.normal(size=(n, 3)), rng.normal(size=(n, 3)), rng.uniform(-1, 1, (n, 2))
    columns = (obs.astype(np.float32), action.astype(np.float32), reward, ends, np.zeros(n, bool))
    data = Dataset.from_arrays(*columns, after.astype(np.float32), action_low=[-1, -1], action_high=[1, 1])
    return replace(data, max_episode_steps=limit)


def test_rewards_are_scaled_by_the_range_of_returns() -> None:
    """Returns -3 ... 5 under a limit of 40: times 40 / 8; factor and shift of the recipe apply on top."""
    data = episodes((1.0, -4.0), (2.0, 3.0), (0.5,), limit=40)
    recipe = with_changes(IQLRecipe(), {"reward_scale_by_return_range": True, "reward_bias": -1.0})
    preparation = preparation_of(recipe, data, SPEC)
    assert (preparation.reward_scale, preparation.reward_bias) == (5.0, -1.0)
    assert preparation_of(replace(recipe, reward_scale=2.0), data, SPEC).reward_scale == 10.0
    assert preparation_of(IQLRecipe(), data, SPEC).reward_scale == 1.0
    real = pendulum_data()
    scale = preparation_of(recipe, real, Spec(4, 1)).reward_scale
    assert scale == return_range_scale(real.rewards, real.terminated, 1000) > 1


def test_no_range_of_returns_is_said_in_one_line() -> None:
    recipe = replace(IQLRecipe(), reward_scale_by_return_range=True)
    for data in (episodes((1.0, 1.0), (2.0,)), replace(episodes((1.0,)), terminated=np.zeros(1, bool))):
        with pytest.raises(UserError, match="no two whole episodes of different returns: set --reward-scale"):
            preparation_of(recipe, data, SPEC)
    with pytest.raises(UserError, match="needs a dataset"):
        preparation_of(recipe, None, SPEC)


@cache
def trained(name: str, **changes: Any) -> PyTree:
    """A probe's algorithm with changes, after the probes' training."""
    original: Any = probes.ALGORITHMS[name]
    algorithm: Algorithm = replace(original, **changes)
    return probes.learned(algorithm, probes.rows(), probes.SPEC, {})


def expectile_of(x: np.ndarray, tau: float) -> float:
    """The v at which tau E (x - v)+ = (1 - tau) E (v - x)+."""
    low, high = x.min(), x.max()
    for _ in range(60):
        v = (low + high) / 2
        over = tau * np.maximum(x - v, 0).mean() > (1 - tau) * np.maximum(v - x, 0).mean()
        low, high = (v, high) if over else (low, v)
    return float(v)


def test_v_is_the_expectile_of_q() -> None:
    """Over actions, whose rewards in the context "choice" are known: 0.82 at 0.9, -0.28 at 0.1."""
    data = probes.rows()
    chosen = data.obs[:, probes.CONTEXTS.index("choice")] == 1
    wanted, wrong = (expectile_of(np.asarray(data.reward[chosen]), tau) for tau in (0.9, 0.1))
    assert wanted - wrong > 1
    obs: Any = np.eye(6, dtype=np.float32)[probes.CONTEXTS.index("choice")]
    found = float(trained("iql", expectile=0.9).value(obs)[0])
    assert abs(found - wanted) < 0.08, (found, wanted)


def test_a_broken_sign_of_the_advantage_picks_the_worst_action() -> None:
    """What `test_the_policy_picks_the_best_action` would see: the probe tells the signs apart."""
    state: IQLState = trained("iql", inverse_temperature=-10.0)
    obs: Any = np.eye(6, dtype=np.float32)
    action = act_greedily(probes.ALGORITHMS["iql"], state, obs)
    assert float(action[probes.CONTEXTS.index("choice"), 0]) < 0


@pytest.mark.parametrize("name", ["iql", "awac"])
def test_values_are_bootstrapped_from_the_target_critics(name: str) -> None:
    """Targets that never move leave the later reward's value where they began, and what needs none as it was."""
    critic = trained(name, target_update_rate=0.0).critic
    of = {context: np.eye(6, dtype=np.float32)[i : i + 1] for i, context in enumerate(probes.CONTEXTS)}
    action: Any = np.zeros((1, 1), np.float32)
    at = {context: float(critic(of[context], action)[0, 0]) for context in ("first", "second", "good")}
    assert abs(at["good"] - 1) < 0.1 and abs(at["second"] - 1) < 0.1
    assert abs(at["first"]) < 0.5, "the target network is not used"
