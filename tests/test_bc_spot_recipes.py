"""BC's choice of episodes, and what the recipes of BC, SPOT and ReBRAC make of their settings and presets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.phases import Phase, check
from segue.core.types import Spec
from segue.data import Dataset
from segue.errors import UserError
from segue.methods.bc import BC
from segue.methods.spot import OFFLINE, SPOT
from segue.methods.td3_bc import TD3BC
from segue.preparation import Preparation
from segue.recipes import preset_recipe
from segue.recipes.bc import BCRecipe
from segue.recipes.rebrac import PENALTIES, ReBRACRecipe
from segue.recipes.spot import SUPPORT_WEIGHT, SPOTRecipe
from segue.replay_start import phase_data


def episodes() -> Dataset:
    """Ten episodes of 1 to 10 rows; all rewards of one are its number, so that the last has the highest return."""
    lengths = np.arange(1, 11)
    number: Any = np.repeat(lengths, lengths).astype(np.float32)
    ends = np.zeros(len(number), bool)
    ends[np.cumsum(lengths) - 1] = True
    obs: Any = np.stack([number, np.arange(len(number))], 1).astype(np.float32)
    return Dataset.from_arrays(obs, number[:, None] / 10, number, ends & (number < 5), ends & (number >= 5), obs + 1)


@pytest.mark.parametrize(
    ("fraction", "numbers"),
    [(1.0, list(range(1, 11))), (0.1, [10]), (0.25, [9, 10]), (0.01, [10])],  # a tenth; rounded down; at least one
)
def test_bc_learns_from_the_best_episodes(fraction: float, numbers: list[int]) -> None:
    """Episodes as the log says, whole, terminated or cut. Observations are normalised as of all the data."""
    (phase,) = BCRecipe(top_fraction=fraction).offline_phases(10)
    data = phase_data(phase, episodes(), Preparation.identity(2), {}, seeds=1)
    assert data.rows is not None and data.probe is not None
    found, counts = np.unique(data.rows.reward, return_counts=True)
    assert found.tolist() == numbers and counts.tolist() == numbers
    np.testing.assert_allclose(data.rows.action[:, 0], data.rows.reward / 10, rtol=1e-6)
    assert len(np.unique(data.probe.reward)) == 10  # diagnostics look at all the data


def test_bc_goes_on_as_td3_bc_with_fresh_critics() -> None:
    recipe = BCRecipe(online=TD3BC(hidden_sizes=(6,), batch_size=32))
    offline, online = recipe.offline_phases(10)[0], recipe.online_phase(10)
    check((offline, online), set(), None)
    cloning, spec, key = offline.algorithm, Spec(3, 2), jax.random.key(0)
    assert isinstance(cloning, BC) and cloning.hidden_sizes == (6,) and cloning.batch_size == 32
    models = cloning.export(cloning.init({}, spec, key))
    state = online.algorithm.init(models, spec, jax.random.key(1))
    for begun in (state.actor.params, state.actor.target):
        for mine, given in zip(jax.tree.leaves(begun), jax.tree.leaves(models["actor"].params), strict=True):
            np.testing.assert_array_equal(mine, given)
    assert online.top_fraction == 1.0


def test_rebrac_stores_no_column() -> None:
    """Its next actions are read off the rows, offline and online."""
    recipe = ReBRACRecipe()
    for phase in (*recipe.offline_phases(10), recipe.online_phase(10)):
        data = phase_data(phase, episodes(), Preparation.identity(2), {}, seeds=2)
        assert data.columns == {} and data.new_row_extras(0) == {}


def test_every_preset_of_spot_and_rebrac_is_read() -> None:
    for name, weight in SUPPORT_WEIGHT.items():
        spot: Any = preset_recipe("spot", name)
        antmaze = name.startswith("antmaze")
        assert spot.algorithm.support_weight == weight
        assert (spot.reward_bias, spot.normalize_observations) == ((-1.0, False) if antmaze else (0.0, True))
        assert spot.algorithm.actor_learning_rate == (1e-4 if antmaze else 3e-4)
        assert spot.algorithm.actor_dropout == (0.0 if antmaze else 0.1)
        assert spot.algorithm.actor_last_bound == (1e-3 if antmaze else None)
    for name, penalties in PENALTIES.items():
        rebrac: Any = preset_recipe("rebrac", name)
        assert (rebrac.algorithm.actor_penalty, rebrac.algorithm.critic_penalty) == penalties
        assert rebrac.algorithm.discount == (0.999 if name.startswith("antmaze") else 0.99)
    assert preset_recipe("bc", "10-percent") == BCRecipe(top_fraction=0.1)


def test_spot_needs_its_auto_encoder() -> None:
    recipe = SPOTRecipe()
    check((*recipe.offline_phases(10), recipe.online_phase(10)), set(), None)
    with pytest.raises(UserError, match="phase 'online' needs vae"):
        check((Phase("offline", TD3BC(), 10), recipe.online_phase(10)), set(), None)


def test_spots_penalty_cools_online_alone() -> None:
    """lambda 0.5, over 10 online updates, to a fifth: 0.5 offline; 0.45 on the first online update, in the end 0.1."""
    algorithm, spec, key = SPOT(support_weight=0.5, cooling_steps=10, hidden_sizes=(6,)), Spec(3, 2), jax.random.key(0)
    offline = algorithm.init({}, spec, key)
    assert int(offline.online_origin) == OFFLINE

    def weights(state: Any, updates: list[int]) -> list[float]:
        return [float(algorithm.weight(replace(state, updates=jnp.int32(n)))) for n in updates]

    np.testing.assert_allclose(weights(offline, [1, 1000]), [0.5, 0.5], rtol=1e-6)
    online = algorithm.init(algorithm.export(offline) | {"updates": jnp.int32(1000)}, spec, key)
    np.testing.assert_allclose(weights(online, [1001, 1005, 1008, 1009, 2000]), [0.45, 0.25, 0.1, 0.1, 0.1], rtol=1e-6)


def test_dropout_acts_in_the_actors_loss_alone() -> None:
    """At rate 0.5 half of the units drop; what is kept counts double; acting uses all."""
    algorithm, spec = SPOT(actor_dropout=0.5, hidden_sizes=(400,), batch_size=8, vae_hidden_sizes=(4,)), Spec(3, 2)
    (mask,) = algorithm.draw(jax.random.key(0), spec).dropout
    assert mask.shape == (8, 400) and set(np.unique(mask)) == {0.0, 1.0} and abs(float(mask.mean()) - 0.5) < 0.05
    state = algorithm.init({}, spec, jax.random.key(1))
    obs = jnp.ones((8, 3))
    whole = state.actor.net.mlp.apply(state.actor.params, obs)
    halves = [state.actor.net.mlp.apply(state.actor.params, obs, 2 * m) for m in (mask, 1 - mask)]
    np.testing.assert_allclose((halves[0] + halves[1]) / 2, whole, atol=1e-5)
    acted = algorithm.act(state, obs[0], jax.random.key(2), False)
    np.testing.assert_allclose(acted, jnp.tanh(whole[0]), atol=1e-6)
