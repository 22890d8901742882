"""PEX: the choice by hand, what learns from what, and what becomes of the policy and critics before it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segue
from segue.core.algorithm import Algorithm
from segue.core.learn import act_greedily, acting_state, make_keys
from segue.core.model import Adam, Model
from segue.core.phases import Phase, check
from segue.core.types import Batch, Models, PyTree, Spec
from segue.errors import UserError
from segue.experiment import load_models
from segue.methods.bc import BC
from segue.methods.cql import CQL
from segue.methods.fqe import FQE
from segue.methods.iql import IQL
from segue.methods.pex import PEX, Draws, State
from segue.methods.td3_bc import TD3BC
from segue.nets.networks import Critics
from segue.nets.policies import DeterministicPolicy, GaussianPolicy, action_of
from segue.recipes import METHODS, preset_recipe
from segue.recipes.iql import IQLRecipe
from segue.recipes.pex import PEXRecipe
from segue.settings import check_values
from tests.small import ENVIRONMENT, pendulum_data
from tests.test_every_method import SCARCE

SPEC, ROWS = Spec(3, 2), 16
SMALL: dict[str, Any] = {"batch_size": ROWS, "hidden_sizes": (8,)}
FAST: dict[str, Any] = SMALL | {"actor_learning_rate": 3e-3}
STANDING: dict[str, Any] = {"critic_learning_rate": 0.0, "value_learning_rate": 0.0, "target_update_rate": 1e-9}
PARENTS: dict[str, Algorithm] = {
    "bc": BC(**SMALL),  # deterministic, no critics
    "td3_bc": TD3BC(**SMALL),  # deterministic, critics, no V
    "cql": CQL(critic_hidden_sizes=(6, 6), **SMALL),  # squashed, critics of another size, no V
    "iql": IQL(**SMALL),  # unsquashed, critics, V
}
KEY = jax.random.key(7)
UPDATE = jax.jit(lambda algorithm, *rest: algorithm.update(*rest), static_argnums=(0, 4))


def batch(seed: int = 0) -> Batch:
    rng: Any = np.random.default_rng(seed)
    obs, next_obs = rng.normal(size=(2, ROWS, 3)).astype(np.float32)
    action = rng.uniform(-1, 1, (ROWS, 2)).astype(np.float32)
    reward, terminal = rng.normal(size=ROWS).astype(np.float32), (rng.random(ROWS) < 0.2).astype(np.float32)
    return Batch(obs, action, reward, next_obs, terminal, {})


@cache
def models_of(parent: str) -> Models:
    """What a method hands on; its critics' targets lag."""
    algorithm = PARENTS[parent]
    models = algorithm.export(algorithm.init({}, SPEC, jax.random.key(1)))
    if "critic" in models:
        critic = models["critic"]
        models["critic"] = replace(critic, target=jax.tree.map(lambda x: x + 0.1, critic.params))
    return models


def begun(algorithm: PEX, models: Models) -> State:
    return algorithm.init(models, SPEC, jax.random.key(2))


def learned(algorithm: PEX, s: State, count: int) -> State:
    for i in range(count):
        s, _ = UPDATE(algorithm, s, batch(i), algorithm.draw(jax.random.key(i), SPEC), True)
    return s


def same(a: PyTree, b: PyTree) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def by_hand(kernels: tuple[float, float], offline: float, mean: float, log_std: float = 0.0) -> State:
    """One dimension, observations of 0: Q_i(s, a) = kernel_i a; both policies the same everywhere."""

    def layer(weight: float, bias: float, inputs: int) -> PyTree:
        return {"layers_0": {"kernel": jnp.full((inputs, 1), weight), "bias": jnp.full(1, bias)}}

    adam = Adam(1e-3)
    old, new = DeterministicPolicy(1, 1, ()), GaussianPolicy(1, 1, (), tanh_mean=False)
    params = layer(0.0, mean, 1) | {"log_std": jnp.full(1, log_std)}
    critics, values = Critics(1, 1, ()), tuple(layer(kernel, 0.0, 2) for kernel in kernels)
    return State(
        actor=Model(params, None, (), new, adam),
        offline_actor=Model(layer(0.0, float(np.arctanh(offline)), 1), None, (), old, adam),
        critic=Model(values, values, (), critics, adam),
        value=Model.create(new, adam, KEY),  # not asked
        updates=jnp.int32(0),
    )


def picked(kappa: float, s: State, uniform: float, noise: float = 0.0) -> float:
    draws = Draws(jnp.full(1, noise), jnp.asarray(uniform))
    return float(PEX(selection_inverse_temperature=kappa).choose(s, jnp.zeros(1), draws).action[0])


def test_the_choice_by_hand() -> None:
    """min_i Q is 1/2 a here. a_1 = 0.4, a_2 = 0.2: softmax(10 x (0.2, 0.1)) = (0.731, 0.269)."""
    s = by_hand((0.5, 2.0), offline=0.4, mean=0.2)
    for uniform, want in ((0.0, 0.4), (0.73, 0.4), (0.732, 0.2), (0.999, 0.2)):
        assert picked(10.0, s, uniform) == pytest.approx(want)
    choice = PEX().choose(s, jnp.zeros(1), Draws(jnp.zeros(1), jnp.asarray(0.0)))
    np.testing.assert_allclose(choice.logits, [2.0, 1.0], rtol=1e-6)
    assert picked(10.0, s, 0.999, noise=1.5) == pytest.approx(1.7)  # a_2 = mean + std x noise, not clipped
    assert picked(0.1, s, 0.6) == pytest.approx(0.2), "values divided by 10 leave 0.5025 to the better action"
    one = by_hand((2.0, 2.0), offline=0.4, mean=0.2)  # the first critic alone or the mean would give 0.98 and 0.92
    assert picked(10.0, one, 0.9) == pytest.approx(0.4) and picked(10.0, s, 0.9) == pytest.approx(0.2)


@pytest.mark.parametrize("kernel", [1.0, -1.0])
def test_the_greedy_action_is_the_better_mode_for_every_key(kernel: float) -> None:
    """Also where the choice is all but even, and where both are so good that the exponential would overflow."""
    for scale in (1e-4, 1.0, 1e4):
        s = by_hand((scale * kernel, scale * kernel), offline=0.4, mean=0.2, log_std=1.0)
        for seed in range(5):
            action = PEX().act(s, jnp.zeros(1), jax.random.key(seed), False)
            assert float(action[0]) == pytest.approx(0.4 if kernel > 0 else 0.2)


def test_exploring_chooses_by_the_probabilities_and_stays_in_the_box() -> None:
    s = by_hand((0.5, 0.5), offline=0.4, mean=0.2, log_std=-20.0)
    keys = jax.random.split(KEY, 4000)
    act = jax.jit(lambda s: jax.vmap(lambda key: PEX().act(s, jnp.zeros(1), key, True))(keys)[:, 0])
    assert abs(float((act(s) > 0.3).mean()) - 0.731) < 0.03
    wide = np.asarray(act(by_hand((0.0, 0.0), offline=0.4, mean=0.2, log_std=2.0)))
    assert np.abs(wide).max() == 1.0 and abs(np.isclose(wide, 0.4, atol=1e-6).mean() - 0.5) < 0.04


@pytest.mark.parametrize("parent", PARENTS)
def test_any_policy_is_frozen_beside_a_new_one(parent: str) -> None:
    models, algorithm = models_of(parent), PEX(**FAST)
    before, s = models["actor"], begun(algorithm, models)
    assert s.offline_actor.net == before.net and same(s.offline_actor.params, before.params)
    assert s.actor.net == GaussianPolicy(*SPEC, (8,), tanh_mean=True, log_std_min=-5.0)
    assert not same(s.actor.params["layers_0"], before.params["layers_0"])
    assert same(s.actor.params["log_std"], jnp.zeros(2))
    assert ("critic" in models) == (parent != "bc") and ("value" in models) == (parent == "iql")
    for role in {"critic", "value"} & models.keys():
        made, had = getattr(s, role), models[role]
        assert made.net == had.net and same(made.params, had.params) and same(made.target, had.target)
    draws = Draws(jnp.ones((ROWS, 2)), jnp.zeros(ROWS))
    greedy = action_of(before, batch().obs, jnp.zeros((ROWS, 2)))
    np.testing.assert_array_equal(algorithm.choose(s, batch().obs, draws).candidates[0], greedy)


def test_values_learn_as_iqls_do() -> None:
    """Whatever is chosen, V and Q are those of IQL on the same batches from the same start."""
    models = models_of("iql")
    algorithm, host = PEX(**FAST), IQL(expectile=0.9, **FAST)
    s, of_host = begun(algorithm, models), host.init(models, SPEC, KEY)
    for i in range(10):
        of_host, _ = UPDATE(host, of_host, batch(i), (), True)
    s = learned(algorithm, s, 10)
    for role in ("critic", "value"):
        for x, y in zip(jax.tree.leaves(getattr(s, role)), jax.tree.leaves(getattr(of_host, role)), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)


def test_the_new_policy_does_not_learn_from_the_batchs_actions() -> None:
    """With values that stand still, other actions of the data change nothing; other choices do."""
    algorithm = PEX(**FAST, **STANDING)
    s, rows, draws = begun(algorithm, models_of("iql")), batch(), algorithm.draw(KEY, SPEC)
    after = UPDATE(algorithm, s, rows, draws, True)[0].actor
    assert same(UPDATE(algorithm, s, rows._replace(action=-rows.action), draws, True)[0].actor, after)
    other = draws._replace(selection_uniform=1 - draws.selection_uniform)
    assert not same(UPDATE(algorithm, s, rows, other, True)[0].actor, after)


def test_offline_actions_draw_the_new_policy_to_the_offline_one() -> None:
    """Chosen everywhere, the offline policy is cloned; new actions of the same weight alone would not."""
    algorithm = PEX(**FAST, **STANDING)
    draws = algorithm.draw(KEY, SPEC)._replace(selection_uniform=jnp.zeros(ROWS))
    rows, s = batch(), begun(algorithm, models_of("iql"))

    def distance(s: State) -> float:
        mine, theirs = (action_of(policy, rows.obs, jnp.zeros((ROWS, 2))) for policy in (s.actor, s.offline_actor))
        return float(jnp.abs(mine - theirs).mean())

    start, kept = distance(s), s
    for _ in range(300):
        s, metrics = UPDATE(algorithm, s, rows, draws, True)
        kept, _ = UPDATE(algorithm, kept, rows, draws._replace(selection_uniform=jnp.ones(ROWS)), True)
    assert metrics["new_policy_fraction"] == 0 and distance(s) < 0.2 * start < distance(kept)
    assert float(s.actor(rows.obs)[1].max()) < -0.5, "the std falls where actions agree"


def test_the_log_std_is_not_below_its_least() -> None:
    params = GaussianPolicy(*SPEC, (8,), tanh_mean=True).init(KEY) | {"log_std": jnp.full(2, -9.0)}
    for algorithm, want in ((PEX(**SMALL), -5.0), (IQL(log_std_min=-5.0, **SMALL), -5.0), (IQL(**SMALL), -9.0)):
        made: Any = algorithm.init({}, SPEC, KEY)
        assert np.all(made.actor.net.apply(params, jnp.zeros(3))[1] == want)


@pytest.mark.parametrize("parent", ["bc", "cql"])
def test_a_loaded_policy_acts_as_the_trained_one(parent: str) -> None:
    """By both policies and the critics: where a run is opened, where PEX goes on, and in fitted Q evaluation."""
    algorithm, before = PEX(**FAST), models_of(parent)
    start = begun(algorithm, before)
    s = learned(algorithm, start, 3)
    assert same(s.offline_actor, start.offline_actor)
    assert not any(same(getattr(s, role).params, getattr(start, role).params) for role in ("actor", "critic", "value"))
    models = before | algorithm.export(s)  # as a run holds them
    seeded = jax.tree.map(lambda x: x[None], models)
    loaded = jax.tree.map(lambda x: x[0], acting_state(algorithm, seeded, SPEC, make_keys((0,), 9)))
    judged = FQE(algorithm, **SMALL).init(models, SPEC, KEY).policy
    assert same(loaded, s) and same(judged, s), "moments, targets and counts go on as well"
    obs: Any = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    np.testing.assert_array_equal(act_greedily(algorithm, loaded, obs), act_greedily(algorithm, s, obs))


def test_after_another_method_its_policy_is_the_frozen_one() -> None:
    phase, again = PEXRecipe().online_phase(10), models_of("iql")
    models = again | {"offline_actor": models_of("bc")["actor"]}  # left by a PEX before
    s = begun(PEX(**SMALL), phase.continued(models))
    assert same(s.offline_actor.params, again["actor"].params)


def test_it_needs_a_policy() -> None:
    with pytest.raises(UserError, match="phase 'online' needs actor, which no earlier phase made: start from a policy"):
        check((PEXRecipe().online_phase(10),), set(), None)
    for form in ("deterministic", "tanh_gaussian", "gaussian"):
        check((PEXRecipe().online_phase(10),), {"actor"}, form)


def test_settings() -> None:
    """Of the specification; the offline phase is IQL with the same ones."""
    recipe = preset_recipe("pex", "hopper-medium-v2")
    assert recipe == PEXRecipe() and not recipe.normalize_observations and recipe.reward_bias == 0
    assert preset_recipe("pex", "antmaze-umaze-v2") == replace(PEXRecipe(), reward_bias=-1.0)
    assert len(METHODS["pex"].presets) == 15
    online = recipe.online_phase(1000).online
    assert online and (online.replay, online.warmup_steps, online.updates_per_step) == ("half", 5000, 1.0)
    assert not online.random_warmup
    (phase,) = recipe.offline_phases(123)
    want = IQL(expectile=0.9, inverse_temperature=10.0, log_std_min=-5.0, cosine_updates=123)
    assert phase == Phase("offline", want, 123)
    assert IQLRecipe().algorithm.log_std_min == -20.0
    for name, value in (("selection_inverse_temperature", 0.0), ("log_std_min", 2.0)):
        with pytest.raises(UserError, match="--" + name.replace("_", "-")):
            check_values({name: value})


@pytest.mark.slow
def test_a_run_from_a_clone_and_on(tmp_path: Path) -> None:
    """BC knows neither critics nor V. The frozen policy is BC's in the run and in the one that goes on with it."""
    tiny: dict[str, Any] = {"hidden_sizes": (8,), "batch_size": 8}
    quietly: dict[str, Any] = {"environment": ENVIRONMENT, "evaluation": SCARCE, "quiet": True}
    run = segue.run(
        "pex", pendulum_data(), offline="bc", out=tmp_path / "run", steps=5, online_steps=20,
        settings=tiny | {"warmup_steps": 10}, offline_settings=tiny, **quietly,
    )  # fmt: skip
    on = segue.finetune(run, out=tmp_path / "on", steps=20, **quietly)
    clone, first, second = (load_models(*at)[0] for at in ((run.folder, "offline"), (run.folder,), (on.folder,)))
    assert same(first["offline_actor"].params, clone["actor"].params)
    assert same(second["offline_actor"].params, clone["actor"].params)
    assert not same(second["actor"].params, first["actor"].params)
    assert on.policy()(np.zeros(4, np.float32)).shape == (1,)
