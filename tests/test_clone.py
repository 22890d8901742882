"""Clones: each form from each form, what the entropy term is for, and what a clone leaves alone."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.learn import Program, initial_state, learn, make_keys
from segue.core.model import Adam, Model
from segue.core.phases import Phase, check
from segue.core.types import Batch, Spec
from segue.errors import UserError
from segue.methods.clone import Clone, PolicyForm
from segue.nets.networks import Orthogonal
from segue.nets.policies import DeterministicPolicy, GaussianPolicy, TanhGaussianPolicy, action_of

SPEC = Spec(2, 2)
ROWS, UPDATES, STD = 512, 1600, 0.2
FORMS: tuple[PolicyForm, ...] = get_args(PolicyForm)
SMALL: dict[str, Any] = {"batch_size": 128, "hidden_sizes": (32, 32), "actor_learning_rate": 5e-3}
SMALL |= {"multiplier_learning_rate": 5e-3}


def teacher(form: PolicyForm, std: float = STD) -> Model:
    """A policy whose greedy action is tanh of a linear map of the state, or that map; its std is known.

    The actions stay away from the box's edges, where a squashed Gaussian cannot be a clipped one.
    """
    kernel = jnp.array([[0.5, -0.2], [0.1, 0.4]])
    layer = {"kernel": kernel, "bias": jnp.array([0.1, -0.2])}
    log_std = jnp.full(2, np.log(std), jnp.float32)
    if form == "deterministic":
        net: Any = DeterministicPolicy(*SPEC, ())
        params: Any = {"layers_0": layer}
    elif form == "gaussian":
        net, params = GaussianPolicy(*SPEC, (), tanh_mean=True), {"layers_0": layer, "log_std": log_std}
    else:
        net = TanhGaussianPolicy(*SPEC, ())
        wide = {"kernel": jnp.concatenate([kernel, jnp.zeros((2, 2))], 1)}
        params = {"layers_0": wide | {"bias": jnp.concatenate([layer["bias"], log_std])}}
    return Model(params, None, (), net, Adam(3e-4))


def rows() -> Batch:
    rng = np.random.default_rng(0)
    obs: Any = rng.uniform(-1, 1, (ROWS, 2)).astype(np.float32)
    zeros: Any = np.zeros(ROWS, np.float32)
    action: Any = np.tile(np.asarray([0.9, -0.9], np.float32), (ROWS, 1))  # nobody's
    return Batch(obs, action, zeros, obs, zeros, {})


def cloned(algorithm: Clone, data: Batch, policy: Model | None = None, updates: int = UPDATES) -> tuple[Any, Any]:
    """State and metrics (means over the last quarter) after `updates` updates."""
    keys = make_keys((0,), 0)
    models = {} if policy is None else {"actor": jax.tree.map(lambda x: x[None], policy)}
    state = initial_state(algorithm, models, SPEC, keys)
    program = Program(algorithm, "offline", SPEC)
    last = updates // 4
    for begin, count in ((0, updates - last), (updates - last, last)):
        state, metrics = learn(program, state, {}, keys.learn, data, np.int32(begin), np.int32(count))
    return jax.tree.map(lambda x: x[0], state), {name: float(x[0]) for name, x in metrics.items()}


def greedy(policy: Model, obs: Any) -> jax.Array:
    return action_of(policy, obs, jnp.zeros((len(obs), 2)))


@cache
def pair(form: PolicyForm, of: PolicyForm) -> tuple[Any, Any]:
    return cloned(Clone(form, **SMALL), rows(), teacher(of))


@pytest.mark.parametrize("of", FORMS)
@pytest.mark.parametrize("form", FORMS)
def test_a_clone_does_what_its_teacher_does(form: PolicyForm, of: PolicyForm) -> None:
    """Its greedy actions, and the width of a teacher that is wider than the entropy's bound asks."""
    state, metrics = pair(form, of)
    obs = rows().obs
    error = jnp.sqrt(jnp.square(greedy(state.actor, obs) - greedy(teacher(of), obs)).mean())
    assert error < 0.06, error
    assert state.actor.net.kind == form
    noise = {"deterministic": 0.0, "gaussian": STD, "tanh_gaussian": 0.9 * STD}[of]  # 0.9: a mean slope of tanh
    if form == "deterministic":
        noise = 0.0  # it learns from greedy actions
    assert metrics["clone_error"] == pytest.approx(noise, abs=0.05)
    if form != "deterministic" and of != "deterministic":
        spread = action_of(state.actor, obs, jnp.ones((ROWS, 2))) - greedy(state.actor, obs)
        wanted = action_of(teacher(of), obs, jnp.ones((ROWS, 2))) - greedy(teacher(of), obs)
        assert float(spread.mean()) == pytest.approx(float(wanted.mean()), rel=0.25)


@pytest.mark.parametrize("form", ["tanh_gaussian", "gaussian"])
def test_the_entropy_term_keeps_the_std_from_collapsing(form: PolicyForm) -> None:
    """A deterministic teacher's likelihood grows without bound as the clone orthogonals."""
    _, held = pair(form, "deterministic")
    assert held["entropy"] == pytest.approx(-2, abs=0.3)
    without = Clone(form, **SMALL | {"initial_multiplier": 1e-12, "multiplier_learning_rate": 1e-12})
    _, free = cloned(without, rows(), teacher("deterministic"))
    assert free["entropy"] < -4


def test_the_weight_of_the_entropy_falls_where_there_is_enough() -> None:
    _, metrics = pair("gaussian", "gaussian")  # of entropy 2 (log 0.2 + 1.42) = -0.4 > -2
    assert metrics["entropy"] > -1.2
    assert metrics["entropy_weight"] < 0.05 < pair("gaussian", "deterministic")[1]["entropy_weight"]


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_the_actions_of_the_data(form: PolicyForm) -> None:
    data = rows()
    data = data._replace(action=greedy(teacher("deterministic"), data.obs))
    state, metrics = cloned(Clone(form, "labels", **SMALL), data)
    assert state.teacher is None
    assert metrics["clone_error"] < 0.06
    np.testing.assert_allclose(greedy(state.actor, data.obs), data.action, atol=0.2)


def test_labels_on_the_edge_of_the_box_are_scored_a_little_inside() -> None:
    """Under a squashed density they would be infinitely far out."""
    data = rows()
    data = data._replace(action=jnp.sign(data.action))
    state, metrics = cloned(Clone("tanh_gaussian", "labels", **SMALL), data, updates=40)
    assert np.isfinite(list(metrics.values())).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.parametrize("form", FORMS)
def test_the_teacher_stays_as_it_is(form: PolicyForm) -> None:
    algorithm, key = Clone(form, **SMALL), jax.random.key(0)
    state = algorithm.init({"actor": teacher("tanh_gaussian")}, SPEC, key)
    assert state.teacher.opt_state == ()
    batch = jax.tree.map(lambda x: jnp.asarray(x[:128]), rows())
    after, _ = jax.jit(algorithm.update, static_argnums=3)(state, batch, algorithm.draw(key, SPEC), True)
    for before, now in zip(jax.tree.leaves(teacher("tanh_gaussian")), jax.tree.leaves(after.teacher), strict=True):
        np.testing.assert_array_equal(before, now)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(state.actor), jax.tree.leaves(after.actor), strict=True))


def test_the_next_phase_gets_the_clone_and_a_fresh_count() -> None:
    state, _ = pair("gaussian", "tanh_gaussian")
    models = Clone("gaussian", **SMALL).export(state)
    assert set(models) == {"actor", "updates"} and int(models["updates"]) == 0 and int(state.updates) == UPDATES
    assert models["actor"] is state.actor


def test_a_policy_is_needed_unless_the_data_are_labelled() -> None:
    with pytest.raises(UserError, match="needs actor"):
        check((Phase("clone", Clone(), 1),), set(), None)
    check((Phase("clone", Clone(teacher="labels"), 1),), set(), None)


def test_networks_are_those_of_the_methods_that_go_on() -> None:
    """The table of ../spec/ocr_cft.md 2.1."""
    squashed = Clone("tanh_gaussian").policy(SPEC)
    assert squashed.hidden_sizes == (256, 256, 256) and squashed.trained_scale  # type: ignore[union-attr]
    last = squashed.init(jax.random.key(0))["layers_3"]
    assert np.abs(last["kernel"]).max() <= 0.01 * (6 / 260) ** 0.5 and not last["bias"].any()
    orthogonal = Orthogonal(1.0)
    assert Clone("deterministic").policy(SPEC) == DeterministicPolicy(*SPEC, (256, 256), initializer=orthogonal)
    assert Clone("gaussian").policy(SPEC) == GaussianPolicy(*SPEC, (256, 256), tanh_mean=True, initializer=orthogonal)
