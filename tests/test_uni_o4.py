"""Uni-O4's fine-tuning: the value's clip, the tanhs on the log-std, where it is PPO, its hand-over and presets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.model import Adam, Model
from segue.core.types import Batch, Models, Spec
from segue.methods.clone import Clone
from segue.methods.ppo import PPO
from segue.methods.return_value import ReturnValue
from segue.methods.uni_o4 import UniO4, clipped_error
from segue.nets.networks import MLP
from segue.nets.policies import BoundedGaussianPolicy, GaussianPolicy
from segue.recipes import preset_recipe
from segue.recipes.datasets import LOCOMOTION
from segue.recipes.uni_o4 import UniO4Recipe
from segue.settings import flat

SPEC, KEY = Spec(3, 2), jax.random.key(0)
TINY: dict[str, Any] = {"batch_size": 16, "minibatch_size": 6, "epochs": 2, "value_hidden_sizes": (8,)}
UPDATE = jax.jit(lambda algorithm, *rest: algorithm.update(*rest), static_argnums=(0, 4))


def models(net: Any) -> Models:
    """A policy of the given form and a value, fresh."""
    value = MLP((3, 8, 1))
    return {"actor": Model.create(net, Adam(1.0), KEY), "value": Model.create(value, Adam(1.0), KEY)}


def rollout(seed: int, reward: float = 0.0) -> Batch:
    rng: Any = np.random.default_rng(seed)
    obs, next_obs = rng.normal(size=(2, 16, 3)).astype(np.float32)
    action, noise = rng.uniform(-1, 1, (16, 2)).astype(np.float32), rng.normal(size=16).astype(np.float32)
    zeros: Any = np.zeros(16, np.float32)
    return Batch(obs, action, reward + noise, next_obs, zeros, {"last": zeros + (np.arange(16) == 15)})


def after(algorithm: Any, start: Models, updates: int, reward: float = 0.0) -> Any:
    s = algorithm.init(start, SPEC, KEY)
    for i in range(updates):
        draws = algorithm.draw(jax.random.key(i), SPEC)
        s = UPDATE(algorithm, algorithm.begin_step(s, jnp.int32(16 * (i + 1))), rollout(i, reward), draws, True)[0]
    return s


@pytest.mark.parametrize(
    ("v", "expected"),
    [
        (0.5, 0.95**2),  # towards y beyond the clip: it counts as no further than 0.05
        (0.02, 0.98**2),  # within the clip
        (-0.5, 1.5**2),  # away from y: in full
        (3.0, 2.0**2),  # far beyond y: in full
    ],
)
def test_the_clipped_error_by_hand(v: float, expected: float) -> None:
    """V_old = 0, y = 1, eps_V = 0.05."""
    got = clipped_error(jnp.array([v]), jnp.zeros(1), jnp.ones(1), 0.05)
    np.testing.assert_allclose(got, [expected], rtol=1e-6)


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(AssertionError):
        clipped_error(jnp.zeros(4), jnp.zeros((4, 1)), jnp.zeros(4), 0.05)


@pytest.mark.parametrize(("second", "expected"), [(False, (-5.0, -2.5, 0.0)), (True, (-4.404, -2.5, -0.596))])
def test_the_second_tanh_changes_the_std(second: bool, expected: tuple[float, ...]) -> None:
    """Trap 16: the network's output -1, 0 and 1, under its tanh; the mean has one tanh either way."""
    net = BoundedGaussianPolicy(1, 1, (), second)
    params = {"layers_0": {"kernel": jnp.array([[1.0, 1.0]]), "bias": jnp.zeros(2)}}
    mean, log_std = net.apply(params, jnp.array([[-20.0], [0.0], [20.0]]))
    np.testing.assert_allclose(log_std[:, 0], expected, atol=1e-3)
    np.testing.assert_allclose(mean[:, 0], [-1, 0, 1])


def test_a_policy_that_it_goes_on_with_keeps_its_std_unless_asked() -> None:
    start = models(BoundedGaussianPolicy(*SPEC, (8,)))
    obs = rollout(0).obs
    kept = UniO4(**TINY).init(start, SPEC, KEY).actor
    released = UniO4(second_tanh=True, **TINY).init(start, SPEC, KEY).actor
    np.testing.assert_array_equal(kept(obs)[1], start["actor"](obs)[1])
    assert np.abs(released(obs)[1] - start["actor"](obs)[1]).max() > 1e-3
    np.testing.assert_array_equal(released(obs)[0], start["actor"](obs)[0])


def test_without_the_clip_it_is_ppo() -> None:
    """The same policy and value after 10 rollouts as PPO's with its settings."""
    start = models(GaussianPolicy(*SPEC, (8,), tanh_mean=True))
    rates: dict[str, Any] = {"learning_rate_decay_steps": 400, "ratio_clip": 0.05, "actor_learning_rate": 1e-3}
    rates |= {"value_learning_rate": 1e-2}
    host = after(PPO(**TINY, **rates), start, 10)
    own = after(UniO4(**TINY, **rates), start, 10)
    for role in ("actor", "value"):
        for a, b in zip(jax.tree.leaves(getattr(own, role)), jax.tree.leaves(getattr(host, role)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_clip_in_raw_units_holds_large_values_back() -> None:
    """Trap 16: returns of about 100 a step; with the clip the value all but stands still."""
    start = models(BoundedGaussianPolicy(*SPEC, (8,)))
    moved, settings = [], TINY | {"epochs": 30, "value_learning_rate": 1e-2}
    for clip in (None, 0.05):
        s = after(UniO4(value_clip=clip, **settings), start, 1, reward=100.0)
        obs = rollout(0).obs
        moved.append(float(np.abs(s.value(obs) - start["value"](obs)).mean()))
    assert 5 * moved[1] < moved[0], moved


def test_the_hand_over() -> None:
    """A Gaussian policy goes on as it is; another is cloned into Uni-O4's own form. V is fitted, with ReLU."""
    recipe = UniO4Recipe()
    fit = recipe.handover_phases("gaussian")
    assert [phase.name for phase in fit] == ["re-evaluation"] and fit[0].updates == 1_000_000
    assert fit[0].algorithm == ReturnValue(activation="relu")
    clone = recipe.handover_phases("deterministic")[0].algorithm
    assert isinstance(clone, Clone)
    assert clone.policy(SPEC) == replace(UniO4().init({}, SPEC, KEY).actor.net, second_tanh=False)
    assert isinstance(clone.policy(SPEC), BoundedGaussianPolicy)


# ../spec/baselines_hparams.yaml, uni_o4_ppo: actor learning rate, epochs, reward scale; the first of each list.
REWARDS: dict[str, dict[str, Any]] = {
    "dynamic": {"scale_rewards_by_running_return": True, "reward_scale": 1.0},
    "number": {"scale_rewards_by_running_return": False, "reward_scale": 0.1},
    "none": {"scale_rewards_by_running_return": False, "reward_scale": 1.0},
}
FACTS = {
    "halfcheetah-medium-v2": (3e-5, 30, "dynamic"),
    "halfcheetah-medium-replay-v2": (3e-5, 20, "number"),
    "halfcheetah-medium-expert-v2": (2e-5, 10, "dynamic"),
    "hopper-medium-v2": (1e-5, 5, "number"),
    "hopper-medium-replay-v2": (1e-5, 5, "number"),
    "hopper-medium-expert-v2": (6e-6, 5, "number"),
    "walker2d-medium-v2": (1e-5, 20, "none"),
    "walker2d-medium-replay-v2": (1e-5, 20, "none"),
    "walker2d-medium-expert-v2": (1e-5, 20, "none"),
}


@pytest.mark.parametrize("name", LOCOMOTION)
def test_presets_hold_the_released_settings(name: str) -> None:
    settings = dict(flat(preset_recipe("uni_o4", name)))
    rate, epochs, reward = FACTS[name]
    common = {"ratio_clip": 0.05, "minibatch_size": 128, "batch_size": 2048, "learning_rate_decay_steps": 3_000_000}
    want = common | REWARDS[reward] | {"actor_learning_rate": rate, "epochs": epochs, "value_clip": None}
    assert {key: settings[key] for key in want} == want
