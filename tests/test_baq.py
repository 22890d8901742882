"""BAQ: the model of the behaviour, the weight, the priority, and what they do to CQL and IQL (../spec/baq.md 8)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segue
from segue.core import sampling, sum_tree
from segue.core.learn import Program, make_keys, several_updates
from segue.core.model import Adam, Model
from segue.core.phases import check
from segue.core.replay import Memory, Ring, gather
from segue.core.types import Batch, Models, PyTree, Spec
from segue.core.weighting import effective_share
from segue.data.prepare import held_out_rows
from segue.environment import Environment
from segue.errors import UserError
from segue.methods.baq import BehaviourPriority, BehaviourWeight
from segue.methods.behaviour import UNKNOWN, BehaviourModel, Residuals
from segue.methods.cql import CQL
from segue.methods.iql import IQL
from segue.nets.policies import DeterministicPolicy
from segue.online import OnlineLoop
from segue.preparation import Preparation
from segue.recipes import METHODS, preset_recipe
from segue.recipes.baq import BAQCQLRecipe, BAQIQLRecipe
from segue.recipes.behaviour import Behaviour
from segue.settings import with_changes
from tests.small import ENVIRONMENT, pendulum_data
from tests.test_every_method import SCARCE, small

SPEC = Spec(2, 3)
RESIDUAL = (0.3, -0.3, 0.6)
SMALL: dict[str, Any] = {"batch_size": 16, "hidden_sizes": (6,)}
HOSTS: dict[str, Any] = {
    "cql": CQL(critic_hidden_sizes=(6,), num_sampled_actions=2, **SMALL),
    "iql": IQL(**SMALL),
}


def behaviour(spec: Spec = SPEC, zero: bool = True, square: float = 0.0, distance: float = 0.0) -> Models:
    """A model whose action is 0 (or a fresh one), with a held-out error."""
    model = Model.create(DeterministicPolicy(*spec, (6,)), Adam(1.0), jax.random.key(5))
    if zero:
        model = replace(model, params=jax.tree.map(jnp.zeros_like, model.params))
    return {"behaviour": model.frozen(), "behaviour_error": Residuals(jnp.float32(square), jnp.float32(distance))}


def rows_of(actions: Any, seed: int = 0) -> Batch:
    """Rows with `actions` [n, A]."""
    rng: Any = np.random.default_rng(seed)
    actions = np.asarray(actions, np.float32)
    n = len(actions)
    return Batch(
        obs=jnp.asarray(rng.normal(size=(n, 2)), jnp.float32),
        action=jnp.asarray(actions),
        reward=jnp.asarray(rng.normal(size=n), jnp.float32),
        next_obs=jnp.asarray(rng.normal(size=(n, 2)), jnp.float32),
        terminal=jnp.asarray(rng.integers(0, 2, n), jnp.float32),
        extras={},
    )


def some_rows(n: int, seed: int = 0) -> Batch:
    return rows_of(np.random.default_rng(seed + 1).uniform(-1, 1, (n, 3)), seed)


def weights(weight: BehaviourWeight, actions: Any, **error: Any) -> np.ndarray:
    state = weight.init(behaviour(**error), SPEC, jax.random.key(0))
    return np.asarray(weight(state, rows_of(actions))[0])


def close(a: PyTree, b: PyTree, tolerance: float = 1e-6) -> bool:
    """Every entry, to `tolerance`; trees that compute the same may be rounded otherwise."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(x, y, rtol=0, atol=tolerance) for x, y in pairs)


def memory_of(offline: Batch | None, online: Batch) -> Memory:
    return Memory(offline, {}, Ring(online, jnp.int32(online.reward.shape[0])))


begin = jax.jit(sampling.begin, static_argnums=(0, 3))


def begun(priority: BehaviourPriority, offline: Batch | None, online: Batch, **error: Any) -> Memory:
    """The memory with priorities of all its rows."""
    memory, rows = memory_of(offline, online), online.reward.shape[0]
    spec = Spec(online.obs.shape[1], online.action.shape[1])
    return memory._replace(sampling=begin(priority, behaviour(spec, **error), memory, rows, jax.random.key(0)))


def priorities(priority: BehaviourPriority, actions: Any, **error: Any) -> np.ndarray:
    """Of dataset rows."""
    memory = begun(priority, rows_of(actions), rows_of(actions), **error)
    return np.asarray(sum_tree.priorities_at(memory.sampling.tree, jnp.arange(len(actions))))


# -- the weight and the priority


def test_1_the_weight_of_the_specifications_residual() -> None:
    (weight,) = weights(BehaviourWeight(weight_scale=0.2), [RESIDUAL])
    assert weight == pytest.approx(0.406570, abs=1e-6)
    assert weight != pytest.approx(math.exp(-0.54 / 0.2), abs=0.1)  # by the sum over dimensions instead of the mean


def test_2_the_priority_of_the_specifications_residual() -> None:
    for alpha, wanted in ((1.0, 2.469694), (2.0, 6.099387)):
        (found,) = priorities(BehaviourPriority(divergence_scale=0.5, priority_exponent=alpha), [RESIDUAL])
        assert found == pytest.approx(wanted, abs=1e-5)


def test_scales_adapt_to_the_held_out_error() -> None:
    """k_q = max(2 mean square, 0.1), k_rho = max(mean distance, 0.1)."""
    for square, scale in ((0.3, 0.6), (0.01, 0.1)):
        assert weights(BehaviourWeight(), [RESIDUAL], square=square)[0] == pytest.approx(math.exp(-0.18 / scale))
    assert weights(BehaviourWeight(), [RESIDUAL], square=0.18)[0] == pytest.approx(math.exp(-0.5))  # a typical row
    norm = math.sqrt(0.54)
    for distance, scale in ((0.5, 0.5), (0.05, 0.1)):
        assert priorities(BehaviourPriority(), [RESIDUAL], distance=distance)[0] == pytest.approx(norm / scale + 1)


def test_a_given_scale_does_not_adapt() -> None:
    assert weights(BehaviourWeight(0.2), [RESIDUAL], square=9.0)[0] == pytest.approx(0.406570, abs=1e-6)
    assert priorities(BehaviourPriority(0.5), [RESIDUAL], distance=9.0)[0] == pytest.approx(2.469694, abs=1e-5)


def test_what_is_left_of_learning() -> None:
    """(sum w)^2 / (N sum w^2), and the mean, also where the weights are divided by it."""
    actions = [(0, 0, 0), (1, 1, 1)]
    for normalised in (False, True):
        weight = BehaviourWeight(1.0, normalise_weights=normalised)
        state = weight.init(behaviour(), SPEC, jax.random.key(0))
        found, metrics = weight(state, rows_of(actions))
        raw = np.asarray([1, math.exp(-1)])
        np.testing.assert_allclose(found, raw / raw.mean() if normalised else raw, rtol=1e-6)
        assert float(metrics["weight_mean"]) == pytest.approx(raw.mean())
        assert float(metrics["weight_effective_share"]) == pytest.approx(raw.sum() ** 2 / (2 * (raw**2).sum()))
        assert float(metrics["weight_scale"]) == 1
    assert float(effective_share(jnp.ones(7))) == 1
    assert float(effective_share(jnp.asarray([1.0, 0, 0, 0]))) == 0.25


def test_4_without_scale_and_exponent_all_rows_are_alike_to_the_bit() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    assert (weights(BehaviourWeight(math.inf), actions) == 1).all()
    assert (priorities(BehaviourPriority(0.5, priority_exponent=0.0), actions) == 1).all()


def test_5_drawn_more_often_and_counted_less_has_its_peak_where_the_formula_says() -> None:
    """rho w over the length d of the residual, k_rho 0.5, k_q 0.2, A = 3."""
    d = np.linspace(0, 1.5, 15_001)
    actions = np.repeat(d[:, None], 3, 1) / math.sqrt(3)
    priority = BehaviourPriority(0.5)
    own = priority.init(behaviour(), memory_of(None, rows_of(actions)), jax.random.key(0))
    product = priority.of_dataset(own, rows_of(actions)) * weights(BehaviourWeight(0.2), actions)
    assert d[np.argmax(product)] == pytest.approx(0.352080, abs=1e-3)
    assert float(product.max()) == pytest.approx(1.386069, abs=1e-5)


# -- sampling


def test_3_rows_are_drawn_in_proportion_wherever_they_lie() -> None:
    """Priorities 1, 2, 5: of dataset rows alone, and of two dataset rows and a new one; 1,000,000 draws, 4 errors."""
    actions = np.asarray([[0.0], [0.2], [0.8]])
    priority, n = BehaviourPriority(divergence_scale=0.2), 1_000_000
    wanted = np.asarray([0.125, 0.25, 0.625])
    error = 4 * np.sqrt(wanted * (1 - wanted) / n)
    for offline, online in ((rows_of(actions[:2]), rows_of(actions[2:])), (None, rows_of(actions))):
        memory = begun(priority, offline, online)
        found = sum_tree.draw(memory.sampling.tree, jax.random.key(1), n)
        assert (np.abs(np.bincount(found, minlength=3) / n - wanted) < error).all()


def test_a_new_row_gets_its_priority_when_it_is_stored() -> None:
    priority = BehaviourPriority(0.5)
    online = rows_of([RESIDUAL, (0, 0, 0), (0, 0, 0)])
    memory = memory_of(rows_of([(0, 0, 0)] * 2), online)
    empty = begin(priority, behaviour(), memory, 0, jax.random.key(0))  # nothing of the ring is filled
    memory = jax.jit(sampling.stored, static_argnums=0)(priority, memory._replace(sampling=empty), jnp.int32(0))
    found = np.asarray(sum_tree.priorities_at(memory.sampling.tree, jnp.arange(5)))
    np.testing.assert_allclose(found, [1, 1, 2.469694, 0, 0], atol=1e-5)


def test_offline_rows_alike_leaves_the_formula_to_new_ones() -> None:
    memory = begun(BehaviourPriority(0.5, offline_priority="one"), rows_of([RESIDUAL] * 2), rows_of([RESIDUAL]))
    found = np.asarray(sum_tree.priorities_at(memory.sampling.tree, jnp.arange(3)))
    np.testing.assert_allclose(found, [1, 1, 2.469694], atol=1e-5)


def test_7_probabilities_of_two_million_rows_are_right_to_1e_6() -> None:
    """Of every row, by the tree that BAQ's sampler fills in pieces."""
    n = 2_000_000
    rng = np.random.default_rng(0)
    column = rng.uniform(-0.99, 0.99, (n, 1)).astype(np.float32)
    zeros = jnp.zeros((n, 1))
    offline = Batch(zeros, jnp.asarray(column), zeros[:, 0], zeros, zeros[:, 0], {})
    online = jax.tree.map(lambda x: x[:1], offline)
    memory = begun(BehaviourPriority(0.33), offline, online)
    tree = memory.sampling.tree
    share = np.asarray(sum_tree.priorities_at(tree, jnp.arange(n)), np.float64)
    share /= float(sum_tree.as_float(sum_tree.total(tree)))
    rho = np.abs(np.float64(column[:, 0])) / 0.33 + 1
    wanted = rho / (rho.sum() + rho[0])
    assert np.abs(share / wanted - 1).max() < 1e-6


def test_the_correction_is_the_inverse_of_how_often_a_row_comes() -> None:
    priority = BehaviourPriority(0.2, importance_exponent=0.5)
    memory = begun(priority, rows_of([[0.0], [0.2]]), rows_of([[0.8]]))
    batch, indices = jax.jit(sampling.sampled, static_argnums=(0, 3))(priority, memory, jax.random.key(0), 64)
    inverse = (3 * np.asarray([0.125, 0.25, 0.625])) ** -0.5
    np.testing.assert_allclose(batch.extras["importance"], inverse[indices] / inverse[indices].max(), rtol=1e-5)


def test_the_log_says_how_many_rows_were_new() -> None:
    memory = begun(BehaviourPriority(0.2), some_rows(20), some_rows(20, seed=9))
    indices = jnp.asarray([0, 19, 20, 39, 39])
    after, metrics = sampling.learned(BehaviourPriority(0.2), memory, some_rows(5), indices, jax.random.key(0))
    assert float(metrics["online_fraction"]) == pytest.approx(0.6)
    assert float(metrics["divergence_scale"]) == pytest.approx(0.2)
    assert close(after.sampling.tree, memory.sampling.tree, 0)  # priorities are constants of their rows


# -- the weighted losses


@cache
def state_of(algorithm: Any) -> PyTree:
    state = jax.jit(lambda: algorithm.init(behaviour(zero=False), SPEC, jax.random.key(0)))()
    return jax.tree.map(lambda x: jnp.array(x, x.dtype), state)  # typed as an update's result: nothing compiles twice


@partial(jax.jit, static_argnums=0)
def one_update(algorithm: Any, state: PyTree, batch: Batch) -> Any:
    return algorithm.update(state, batch, algorithm.draw(jax.random.key(3), SPEC), True)


def updated(algorithm: Any, batch: Batch) -> tuple[Any, dict[str, Any]]:
    after, metrics = one_update(algorithm, state_of(algorithm), batch)
    return after, {name: float(value) for name, value in metrics.items()}


@cache
def weighed(host: str, **settings: Any) -> Any:
    return replace(HOSTS[host], weighting=BehaviourWeight(0.2, **settings))


def w_of(algorithm: Any, batch: Batch) -> np.ndarray:
    return np.asarray(algorithm.weighting(state_of(algorithm).weighting, batch)[0])


def test_iqls_losses_by_hand() -> None:
    """Every row's error times its weight, then the mean over all rows: V's and both Q's."""
    algorithm, batch = weighed("iql"), some_rows(16)
    state, w = state_of(algorithm), w_of(algorithm, batch)
    _, metrics = updated(algorithm, batch)
    value, next_value = state.value(batch.obs)[..., 0], state.value(batch.next_obs)[..., 0]
    gap = np.asarray(state.critic.slow(batch.obs, batch.action).min(0) - value)
    assert metrics["value_loss"] == pytest.approx((w * np.abs(0.7 - (gap < 0)) * gap**2).mean(), rel=1e-5)
    y = batch.reward + 0.99 * (1 - batch.terminal) * next_value
    errors = np.asarray(jnp.square(state.critic(batch.obs, batch.action) - y))
    assert metrics["critic_loss"] == pytest.approx(0.5 * (w * errors).mean(-1).sum(), rel=1e-5)


def test_cqls_squared_errors_are_weighted_and_its_conservatism_only_if_asked() -> None:
    """And a sampler's correction multiplies both."""
    rows, names = some_rows(16), ("critic_1_td_loss", "critic_1_conservative_loss")

    def losses(algorithm: Any, importance: Any) -> np.ndarray:
        batch = rows._replace(extras={"importance": jnp.asarray(importance, jnp.float32)})
        metrics = updated(algorithm, batch)[1]
        return np.asarray([metrics[name] for name in names])

    each = np.asarray([losses(HOSTS["cql"], 16 * row) for row in np.eye(16)])  # as if no other row counted
    w, ones, factor = w_of(weighed("cql"), rows), np.ones(16), np.linspace(0.1, 1, 16)
    by_weight = (w[:, None] * each).mean(0)
    np.testing.assert_allclose(losses(HOSTS["cql"], ones), each.mean(0), rtol=1e-4)
    np.testing.assert_allclose(losses(HOSTS["cql"], factor), (factor[:, None] * each).mean(0), rtol=1e-4)
    np.testing.assert_allclose(losses(weighed("cql"), ones), [by_weight[0], each.mean(0)[1]], rtol=1e-4)
    both = weighed("cql", weight_terms="td_and_conservative")
    np.testing.assert_allclose(losses(both, ones), by_weight, rtol=1e-4)
    np.testing.assert_allclose(losses(both, factor), ((factor * w)[:, None] * each).mean(0), rtol=1e-4)


def test_a_samplers_correction_multiplies_iqls_weight() -> None:
    batch = some_rows(16)
    half = batch._replace(extras={"importance": jnp.full(16, 0.5)})
    for algorithm in (HOSTS["iql"], weighed("iql")):
        full, halved = updated(algorithm, batch)[1], updated(algorithm, half)[1]
        for name in ("critic_loss", "value_loss"):
            assert halved[name] == pytest.approx(0.5 * full[name], rel=1e-5)
        assert halved["actor_loss"] == pytest.approx(full["actor_loss"])


def test_6_no_gradient_reaches_the_behaviour_model_and_learning_leaves_it() -> None:
    algorithm, batch = weighed("iql"), some_rows(16)
    state = state_of(algorithm)

    def losses(w: Any) -> jax.Array:
        metrics = one_update(algorithm, replace(state, weighting=w), batch)[1]
        return metrics["critic_loss"] + metrics["value_loss"]

    assert all(not np.asarray(x).any() for x in jax.tree.leaves(jax.grad(losses)(state.weighting)))
    assert all(not np.asarray(x).any() for x in jax.tree.leaves(gradient_of_the_weights(batch)))
    assert close(updated(algorithm, batch)[0].weighting, state.weighting, 0)


def gradient_of_the_weights(batch: Batch) -> PyTree:
    state = state_of(weighed("iql")).weighting
    return jax.grad(lambda w: BehaviourWeight()(w, batch)[0].sum())(state)


def test_4_neutral_settings_are_iql() -> None:
    """k_q infinite, alpha 0: parameters after 10 updates, by the loop, from the same draws. And k_q = 0.2 is not it."""
    priority = BehaviourPriority(0.5, priority_exponent=0.0)
    memory = begun(priority, some_rows(30), some_rows(10, seed=4))

    @partial(jax.jit, static_argnums=0)
    def again(algorithm: Any, state: PyTree, t: int) -> PyTree:
        program = Program(algorithm, "joined", SPEC, sampler=priority)
        return several_updates(program, (True,), state, memory, make_keys((0,), 0).learn[0], jnp.int32(t))[0]

    assert_neutral("iql", again)


def test_4_neutral_settings_are_cql() -> None:
    """The same on one batch over and over, which needs no other program than the losses' test."""
    batch = some_rows(16)._replace(extras={"importance": jnp.ones(16)})
    assert_neutral("cql", lambda algorithm, state, t: one_update(algorithm, state, batch)[0])


def assert_neutral(host: str, again: Callable[[Any, PyTree, int], Any]) -> None:
    def learned(algorithm: Any, state: PyTree) -> Any:
        for t in range(10):
            state = again(algorithm, state, t)
        return state

    plain, algorithm = learned(HOSTS[host], state_of(HOSTS[host])), weighed(host)
    for scale, same in ((math.inf, True), (0.2, False)):
        state = state_of(algorithm)
        state = replace(state, weighting=state.weighting._replace(scale=jnp.float32(scale)))
        found = learned(algorithm, state)
        assert close(found.critic, plain.critic, 1e-6) == same
        assert not same or close(found.actor, plain.actor, 1e-6)
        assert close(found.weighting, state.weighting, 0)


# -- the model of the behaviour


def behaviour_batch(n: int = 40, held_out: int = 10, other: float = 0.0) -> Batch:
    """a = tanh of a linear function of s, on held-out rows of another one by `other`."""
    rows = rows_of(np.zeros((n, 3)))
    matrix = np.random.default_rng(2).normal(size=(2, 3))
    last = (np.arange(n) >= n - held_out).astype(np.float32)
    action = jnp.tanh(rows.obs @ matrix + other * last[:, None])
    return rows._replace(action=action, extras={"held_out": jnp.asarray(last)})


@cache
def course(updates: int, other: float = 0.0, **settings: Any) -> list[Any]:
    """The states after 0, 1, ... updates on the same rows."""
    model = BehaviourModel(hidden_sizes=(16,), learning_rate=1e-2, **settings)
    batch = behaviour_batch(other=other)
    step = jax.jit(lambda s: model.update(s, batch, (), True)[0])
    states = [model.init({}, SPEC, jax.random.key(1))]
    for _ in range(updates):
        states.append(step(states[-1]))
    return states


def held_out_error(params: PyTree, like: Model, other: float = 0.0) -> tuple[float, float]:
    batch = behaviour_batch(other=other)
    residual = np.asarray(replace(like, params=params)(batch.obs) - batch.action)[30:]
    return float((residual**2).mean()), float(np.linalg.norm(residual, axis=-1).mean())


def test_held_out_rows_are_not_learned_from() -> None:
    """Other actions on them, the same parameters."""
    assert close(course(10, check_interval=5)[-1].model, course(10, other=1.0, check_interval=5)[-1].model, 0)


def test_the_error_is_that_of_the_candidate_on_held_out_rows() -> None:
    states = course(60, check_interval=20)
    assert float(states[19].error.square) == float(jnp.float32(UNKNOWN))
    for check_at, made in ((20, 0), (40, 20), (60, 40)):
        found = states[check_at].error
        wanted = held_out_error(states[made].model.params, states[0].model)
        np.testing.assert_allclose([found.square, found.distance], wanted, rtol=1e-5)
        assert close(states[check_at].best, states[made].model.params)
    assert states[60].error.square < states[20].error.square / 2


def test_it_stops_at_the_best_and_stands_still() -> None:
    """Held-out rows that teach the opposite: the error falls first (or never) and then rises."""
    settings: dict[str, Any] = {"other": -3.0, "check_interval": 5, "patience": 3}
    states = course(150, **settings)
    stopped = next(i for i, s in enumerate(states) if s.stopped)
    assert bool(BehaviourModel().finished(states[stopped])) and not bool(BehaviourModel().finished(states[0]))
    errors = [held_out_error(states[i].model.params, states[0].model, -3.0)[0] for i in range(0, stopped, 5)]
    best = int(np.argmin(errors))
    assert stopped == 5 * (best + 1 + 3)
    end = states[-1]
    assert float(end.error.square) == pytest.approx(errors[best], rel=1e-5)
    assert close(end.best, states[5 * best].model.params)
    assert close(replace(end, updates=states[stopped].updates), states[stopped], 0)
    assert int(end.updates) == 150
    models = BehaviourModel().export(end)
    assert close(models["behaviour"].params, end.best) and models["behaviour"].opt_state == ()


def test_the_squashed_gaussian_learns_too() -> None:
    states = course(300, kind="tanh_gaussian", check_interval=50)
    assert states[-1].error.square < 0.1 * states[50].error.square
    models = BehaviourModel(kind="tanh_gaussian").export(states[-1])
    weight = BehaviourWeight(0.2)
    batch = behaviour_batch()
    found, _ = weight(weight.init(models, SPEC, jax.random.key(0)), batch)
    mean, _ = models["behaviour"](batch.obs)
    residual = np.asarray(jnp.tanh(mean) - batch.action)
    np.testing.assert_allclose(found, np.exp(-(residual**2).mean(-1) / 0.2), rtol=1e-5)


def test_whole_trajectories_are_held_out() -> None:
    ends = np.cumsum(np.random.default_rng(0).integers(1, 30, 100)) - 1
    mask = held_out_rows(ends)
    assert len(mask) == ends[-1] + 1
    parts = np.split(mask, ends[:-1] + 1)
    assert all(part.all() or not part.any() for part in parts)
    assert sum(part.all() for part in parts) == 5
    assert held_out_rows(np.asarray([9, 19])).sum() == 10  # one of two
    np.testing.assert_array_equal(np.flatnonzero(held_out_rows(np.asarray([99]))), np.arange(95, 100))


# -- recipes


def test_phases() -> None:
    for method, host in (("baq_cql", CQL), ("baq_iql", IQL)):
        recipe = METHODS[method]()
        (offline,) = recipe.offline_phases(1_000)
        (model,) = recipe.behaviour_phases()
        online = recipe.online_phase(30_000)
        assert isinstance(offline.algorithm, host) and offline.algorithm.weighting is None
        assert model.algorithm == BehaviourModel() and model.updates == 100_000
        assert isinstance(online.algorithm, host) and online.algorithm.weighting == BehaviourWeight()
        assert online.online and online.online.sampler == BehaviourPriority() and online.online.warmup_steps == 0
        assert online.online.replay == "all" and online.online.updates_per_step == 1
        assert online.evaluation_interval == 1_000
        check((offline, model, online), set(), None)
        with pytest.raises(UserError, match="phase 'online' needs behaviour"):
            check((offline, online), set(), None)


def test_the_backbones_are_the_specifications() -> None:
    cql = BAQCQLRecipe()
    algorithms: list[Any] = [cql.offline_phases(5)[0].algorithm, cql.online_phase(5).algorithm]
    for algorithm in algorithms:
        assert algorithm.conservative_weight == 5 and algorithm.initialization == "plain"
        assert algorithm.hidden_sizes == algorithm.critic_hidden_sizes == (256, 256)
        assert algorithm.actor_learning_rate == algorithm.critic_learning_rate == 3e-4
        assert algorithm.num_sampled_actions == 10 and not algorithm.backup_entropy and algorithm.importance_sampling
    assert not cql.normalize_observations and cql.action_limit == 0.999
    iql = BAQIQLRecipe()
    assert iql.reward_scale_by_return_range and not iql.normalize_observations
    assert iql.algorithm.inverse_temperature == 3 and iql.algorithm.expectile == 0.7
    online: Any = iql.online_phase(5).algorithm
    assert online.actor_schedule == "constant"
    fast: Any = preset_recipe("baq_cql", "fast,hopper-medium-expert-v2").offline_phases(5)[0].algorithm
    assert fast.critic_hidden_sizes == (128, 128)


@pytest.mark.parametrize("method", ["baq_cql", "baq_iql"])
def test_ablations(method: str) -> None:
    """Our-S: no weight. Our-Q: no priority. Neither: the backbone, which needs no model."""
    for weight, priority in ((False, True), (True, False), (False, False)):
        sampling = "behaviour" if priority else "uniform"
        recipe = with_changes(METHODS[method](), {"use_weight": weight, "sampling": sampling})
        phase = recipe.online_phase(10)
        assert (phase.algorithm.weighting is not None) == weight
        assert phase.online and (phase.online.sampler is not None) == priority
        assert len(recipe.behaviour_phases()) == (weight or priority)
        assert ("behaviour" in phase.needs) == (weight or priority)


def test_a_model_that_would_never_be_checked_is_refused() -> None:
    with pytest.raises(UserError, match="--behaviour-updates 3000: give at least twice --behaviour-check-interval"):
        Behaviour(behaviour_updates=3_000).phases()
    assert Behaviour(behaviour_updates=0).phases() == ()


def test_plain_critics_are_not_orthogonal() -> None:
    """Kernels within the framework's bound, biases not 0."""
    algorithm = CQL(initialization="plain", critic_hidden_sizes=(64, 64), **SMALL)
    (first, _) = algorithm.init({}, SPEC, jax.random.key(0)).critic.params
    for layer, fan_in in (("layers_0", 5), ("layers_1", 64), ("layers_2", 64)):
        kernel, bias = np.asarray(first[layer]["kernel"]), np.asarray(first[layer]["bias"])
        assert 0.7 < np.abs(kernel).max() * fan_in**0.5 <= 1 and np.abs(bias).max() > 0


# -- whole runs


class Short(gym.Env[Any, Any]):
    """Two steps, then the time limit; states 0, 1, 2, actions are ignored."""

    observation_space = gym.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (3,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.full(2, self.t, np.float32), 1.0, False, self.t == 2, {}


@pytest.mark.filterwarnings("ignore")
def test_8_an_episode_cut_by_time_bootstraps_from_its_own_last_state() -> None:
    priority, algorithm = BehaviourPriority(0.5), weighed("iql")
    keys = make_keys((0,), 0)
    state = jax.tree.map(lambda x: jnp.array(x)[None], state_of(algorithm))
    rows = jax.tree.map(lambda x: jnp.zeros((1, 4, *x.shape[1:])), some_rows(1))
    offline = some_rows(5)
    first = begin(priority, behaviour(), memory_of(offline, jax.tree.map(lambda x: x[0], rows)), 0, jax.random.key(0))
    loop = OnlineLoop(
        program=Program(algorithm, "joined", SPEC, sampler=priority),
        schedule=METHODS["baq_iql"]().schedule(4, sampler=priority),
        environments=[Environment(Short, {})],
        preparation=Preparation.identity(2),
        state=state,
        rows=rows,
        priorities=jax.tree.map(lambda x: x[None], first),
        columns={},
        offline=offline,
        keys=keys,
        seeds=(0,),
    )
    loop.begin()
    metrics, _ = loop.advance(lambda: False, 4)
    np.testing.assert_array_equal(np.asarray(loop.rows.obs)[0, :, 0], [0, 1, 0, 1])
    np.testing.assert_array_equal(np.asarray(loop.rows.next_obs)[0, :, 0], [1, 2, 1, 2])
    np.testing.assert_array_equal(loop.rows.terminal[0], [0, 0, 0, 0])
    assert {"weight_mean", "weight_effective_share", "online_fraction"} <= set(metrics[-1])
    assert loop.priorities
    tree = jax.tree.map(lambda x: x[0], loop.priorities.tree)
    distance = np.linalg.norm(np.asarray(loop.rows.action)[0], axis=-1)  # the model's action is 0
    found = np.asarray(sum_tree.priorities_at(tree, jnp.arange(5, 9)))
    np.testing.assert_allclose(found, distance / 0.5 + 1, rtol=1e-5)


@pytest.mark.slow
def test_after_a_cql_run_the_model_is_made_before_the_online_phase(tmp_path: Path) -> None:
    """And continued with everything that CQL handed on; a run of its own goes on with its model."""
    quietly: dict[str, Any] = {"environment": ENVIRONMENT, "evaluation": SCARCE, "quiet": True}
    settings = small("baq_cql") | {"behaviour_updates": 40, "behaviour_check_interval": 4, "behaviour_patience": 2}
    cql = segue.train("cql", pendulum_data(), out=tmp_path / "cql", steps=4, settings=small("cql"), quiet=True)
    run = segue.finetune(cql, method="baq_cql", out=tmp_path / "baq", steps=16, settings=settings, **quietly)
    assert [phase["name"] for phase in run.summary["phases"]] == ["behaviour", "online"]
    again = segue.finetune(run, method="baq_cql", out=tmp_path / "again", steps=8, settings=settings, **quietly)
    assert [phase["name"] for phase in again.summary["phases"]] == ["online"]


def test_gather_keeps_the_column() -> None:
    """A batch of the behaviour's phase knows which of its rows are held out."""
    column = np.asarray([0, 1, 1, 0], np.float32)
    batch = gather("offline", Memory(some_rows(4), {"held_out": jnp.asarray(column)}), jnp.asarray([1, 3]))
    np.testing.assert_array_equal(batch.extras["held_out"], [1, 0])
