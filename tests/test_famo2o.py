"""FamO2O: the code of the coefficient, its range, who sees whose loss, where it is IQL and CQL, its phases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.model import Adam, Model
from segue.core.types import Batch, Models, PyTree, Spec
from segue.errors import UserError
from segue.methods import cql as host_cql
from segue.methods.cql import CQL
from segue.methods.famo2o_cql import FamO2OCQL
from segue.methods.famo2o_iql import FamO2OIQL
from segue.methods.iql import IQL
from segue.nets.balance import CODE_WIDTH, PolicyFamily, sinusoidal_code
from segue.nets.policies import GaussianPolicy, TanhGaussianPolicy, action_of
from segue.recipes import METHODS, preset_recipe
from segue.recipes.datasets import ANTMAZE, LOCOMOTION
from segue.settings import flat, with_changes

SPEC, KEY = Spec(3, 2), jax.random.key(0)
SMALL: dict[str, Any] = {"batch_size": 16, "hidden_sizes": (8,)}
SMALL_CQL: dict[str, Any] = SMALL | {"critic_hidden_sizes": (8,), "num_sampled_actions": 2}
FAMILY: dict[str, Any] = {"balance_hidden_sizes": (8,)}
NARROW = 1e-9  # half the width of a range that is all but one number
UPDATE = jax.jit(lambda algorithm, *rest: algorithm.update(*rest), static_argnums=(0, 4))
both = pytest.mark.parametrize("kind", [FamO2OIQL, FamO2OCQL])


def made(kind: Any, **settings: Any) -> Any:
    return kind(**(SMALL_CQL if kind is FamO2OCQL else SMALL) | FAMILY | settings)


def started(algorithm: Any) -> tuple[Any, Any]:
    """A fresh state and one update's draws."""
    return jax.jit(lambda: (algorithm.init({}, SPEC, KEY), algorithm.draw(KEY, SPEC)))()  # one program, not hundreds


def rows(seed: int = 0) -> Batch:
    rng: Any = np.random.default_rng(seed)
    obs, next_obs = rng.normal(size=(2, 16, 3))
    zeros: Any = np.zeros(16)
    return Batch(obs, rng.uniform(-1, 1, (16, 2)), rng.normal(size=16), next_obs, zeros, {})


def test_the_code_by_hand() -> None:
    """10,000^(1/3) is 21.5443, 10,000^(2/3) 464.159."""
    angles = np.array([10.0, 10 / 21.54434690, 10 / 464.1588834])
    want = np.stack([np.sin(angles), np.cos(angles)], axis=1).reshape(-1)
    at_zero = np.array([0.0, 1.0] * 3)
    np.testing.assert_allclose(sinusoidal_code(jnp.array([0.0, 10.0])), np.stack([at_zero, want]), atol=1e-6)


def family(low: float, high: float) -> tuple[PolicyFamily, PyTree]:
    """Networks without hidden layers; g's number before its tanh is the observation, with a std of 1/2."""
    net = PolicyFamily(GaussianPolicy(7, 1, (), tanh_mean=True), GaussianPolicy(1, 1, (), tanh_mean=False), low, high)
    params = net.init(KEY)
    layer = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
    return net, params | {"balance": {"layers_0": layer, "log_std": jnp.log(jnp.full(1, 0.5))}}


def test_the_coefficient_and_its_density() -> None:
    """c in its range; log g(c) is the density of c itself: that of the noise over the slope of c in it."""
    net, params = family(8.0, 14.0)
    obs, noise = jnp.array([[-20.0], [20.0], [0.3]]), jnp.array([0.0, 0.0, 0.7])
    c, log_density = net.coefficient(params["balance"], obs, noise)
    np.testing.assert_allclose(c, [8, 14, 11 + 3 * np.tanh(0.3 + 0.35)], atol=1e-5)
    slope = 3 * (1 - np.tanh(0.65) ** 2) * 0.5
    np.testing.assert_allclose(log_density[2], -0.5 * 0.49 - 0.5 * np.log(2 * np.pi) - np.log(slope), atol=1e-5)


@pytest.mark.parametrize(("released", "low"), [(False, 0.5), (True, -0.5)])
def test_the_released_range_goes_below_zero(released: bool, low: float) -> None:
    """Trap 9: the released program's learned coefficient covers (-0.5, 1.5); the uniform one (0.5, 1.5) either way."""
    algorithm = made(FamO2OCQL, released_range=released)
    net = jax.eval_shape(lambda: algorithm.init({}, SPEC, KEY)).actor.net
    assert (net.low, net.high) == (low, 1.5)
    assert (algorithm.coefficient_min, algorithm.coefficient_max) == (0.5, 1.5)


def test_the_coefficient_weighs_q_not_the_entropy() -> None:
    """And below zero the policy would seek the worst actions, not the best."""
    algorithm, batch = made(FamO2OCQL), rows()
    s, draws = started(algorithm)

    @jax.jit
    def loss(c: float, alpha: float) -> jax.Array:
        return algorithm.family_loss(fixed, s.critic, batch, jnp.full(16, c), alpha, draws)[0]

    kernel = s.actor.params["family"]["layers_0"]["kernel"].at[3:].set(0.0)  # blind to c
    family = s.actor.params["family"]
    layer = family["layers_0"] | {"kernel": kernel}
    fixed = replace(s.actor, params=s.actor.params | {"family": family | {"layers_0": layer}})
    entropy = loss(0.0, 1.0)
    np.testing.assert_allclose(loss(1.5, 1.0) - entropy, 1.5 * loss(1.0, 0.0), rtol=1e-4)
    np.testing.assert_allclose(loss(-0.5, 0.0), -0.5 * loss(1.0, 0.0), rtol=1e-4)


@pytest.mark.parametrize("source", ["uniform", "balance"])
def test_the_weights_of_the_family_by_hand(source: Any) -> None:
    """w = min(exp(c A), 100), c = 8 + 6 u or g's."""
    net, params = family(8.0, 14.0)
    algorithm = FamO2OIQL(source)
    actor = replace(Model.create(net, Adam(1e-3), KEY), params=params)
    obs, advantage = jnp.array([[0.2], [-0.4]]), jnp.array([0.1, 1.0])
    uniform, noise = jnp.array([0.5, 0.25]), jnp.array([0.5, -1.0])
    draws = algorithm.draw(KEY, Spec(1, 1))._replace(uniform=uniform, coefficient_noise=noise)
    batch = Batch(obs, jnp.array([[0.3], [-0.6]]), jnp.zeros(2), obs, jnp.zeros(2), {})
    c = np.array([11.0, 9.5]) if source == "uniform" else 11 + 3 * np.tanh(np.array([0.2 + 0.25, -0.4 - 0.5]))
    layer = params["family"]["layers_0"]
    mean = np.tanh(np.concatenate([obs, sinusoidal_code(jnp.asarray(c))], axis=1) @ layer["kernel"] + layer["bias"])
    likelihood = -0.5 * (np.asarray(batch.action) - mean)[:, 0] ** 2 - 0.5 * np.log(2 * np.pi)
    weight = np.array([np.exp(0.1 * c[0]), 100.0])
    loss, used, clipped = algorithm.family_loss(actor, batch, advantage, draws)
    np.testing.assert_allclose(used, c, rtol=1e-5)
    np.testing.assert_allclose(loss, -(weight * likelihood).mean(), rtol=1e-5)
    assert clipped == 1


@both
@pytest.mark.parametrize("source", ["uniform", "balance"])
def test_each_policy_sees_only_its_own_loss(kind: Any, source: str) -> None:
    algorithm, batch = made(kind, coefficient_source=source), rows()
    s, draws = started(algorithm)

    def losses(params: PyTree) -> tuple[jax.Array, jax.Array]:
        actor = replace(s.actor, params=params)
        if kind is FamO2OIQL:
            of_family = algorithm.family_loss(actor, batch, jnp.linspace(-0.2, 0.2, 16), draws)[0]
            return of_family, algorithm.balance_loss(actor, s.critic, batch, jnp.ones(()), draws)[0]
        of_family = algorithm.family_loss(actor, s.critic, batch, jnp.ones(16), jnp.ones(()), draws)[0]
        return of_family, algorithm.balance_loss(actor, s.critic, batch, draws)

    gradients = jax.jit(jax.jacrev(losses))(s.actor.params)
    for gradient, own, other in zip(gradients, ("family", "balance"), ("balance", "family"), strict=True):
        assert all(not np.any(x) for x in jax.tree.leaves(gradient[other]))
        assert any(np.any(x) for x in jax.tree.leaves(gradient[own]))


def test_next_actions_are_chosen_at_the_current_state() -> None:
    """The target's coefficient is g of the state before, offline too."""
    algorithm, batch = made(FamO2OCQL), rows()
    s, draws = started(algorithm)
    params = jax.tree.map(lambda x: 20 * x if x.ndim == 2 else x, s.actor.params)  # policies that say more
    s = replace(s, actor=replace(s.actor, params=params))
    found = UPDATE(algorithm, s, batch, draws, False)[1]["target_value_mean"]

    @jax.jit
    def value_mean(where: Any) -> jax.Array:
        c = s.actor.net.coefficient(params["balance"], where, draws.coefficient_noise)[0]
        mean, log_std = s.actor.net.member(params["family"], batch.next_obs, c)
        action = jnp.tanh(mean + jnp.exp(log_std) * draws.target_noise)
        return s.critic.slow(batch.next_obs, action).min(0).mean()

    np.testing.assert_allclose(found, value_mean(batch.obs), rtol=1e-5)
    assert abs(found - value_mean(batch.next_obs)) > 1e-4


@pytest.mark.slow
@both
def test_the_balance_policy_learns_what_is_better(kind: Any) -> None:
    """Where the action rises with c, and Q with the action, c rises; the family stands still."""
    low, high, coded = 0.5, 1.5, 3 + CODE_WIDTH
    algorithm: Any = made(kind, coefficient_min=low, coefficient_max=high)
    s, _ = started(algorithm)
    policy = GaussianPolicy(coded, 2, (), tanh_mean=False)
    if kind is FamO2OCQL:
        policy = TanhGaussianPolicy(coded, 2, ())  # type: ignore[assignment]
    net = replace(s.actor.net, policy=policy)
    params = s.actor.params | {"family": jax.tree.map(jnp.zeros_like, policy.init(KEY))}
    params["family"]["layers_0"]["kernel"] = params["family"]["layers_0"]["kernel"].at[3, :2].set(1.0)  # sin c
    actor = Model(params, None, Adam(1e-2).transform().init(params), net, Adam(1e-2))
    critic = replace(s.critic.settled(), net=SumOfActions())
    batch, draws = rows(), algorithm.draw(KEY, SPEC)

    def loss(actor: Model) -> tuple[jax.Array, None]:
        if kind is FamO2OIQL:
            return algorithm.balance_loss(actor, critic, batch, jnp.zeros(()), draws)[0], None
        return algorithm.balance_loss(actor, critic, batch, draws), None

    step = jax.jit(lambda actor: actor.descend(loss)[0])
    trained = actor
    for _ in range(100):
        trained = step(trained)
    before, after = (net.coefficient(a.params["balance"], batch.obs, jnp.zeros(16))[0] for a in (actor, trained))
    assert np.all(np.asarray(after) > np.asarray(before) + 0.2)
    kernels = [a.params["family"]["layers_0"]["kernel"] for a in (trained, actor)]
    np.testing.assert_array_equal(*kernels)


class SumOfActions:
    """Q(s, a) = sum_j a_j, of two critics."""

    def apply(self, params: PyTree, obs: jax.Array, action: jax.Array) -> jax.Array:
        return jnp.stack([action.sum(-1), action.sum(-1)])


@dataclass(frozen=True)
class Coded:
    """A policy whose observations have the code of one coefficient appended: what a family of one member is."""

    policy: Any
    c: float

    @property
    def kind(self) -> str:
        return str(self.policy.kind)

    def apply(self, params: PyTree, obs: jax.Array) -> Any:
        code = jnp.broadcast_to(sinusoidal_code(jnp.asarray(self.c)), (*obs.shape[:-1], CODE_WIDTH))
        return self.policy.apply(params, jnp.concatenate([obs, code], axis=-1))


def of_one_member(family: Any, host: Any, c: float) -> tuple[Any, Any]:
    """States of a family whose range is all but c and of its host, from the same parameters."""
    s, _ = started(family)
    models: Models = family.export(s)
    params = models["actor"].params["family"]
    alone = Coded(models["actor"].net.policy, c)
    optimizer = Adam(family.actor_learning_rate)
    models |= {"actor": Model(params, None, optimizer.transform().init(params), alone, optimizer)}
    return s, jax.jit(lambda: host.init(models, SPEC, KEY))()


def assert_same(s: Any, host: Any, roles: tuple[str, ...]) -> None:
    pairs = [(s.actor.params["family"], host.actor.params)]
    pairs += [(getattr(s, role), getattr(host, role)) for role in roles]
    for ours, theirs in pairs:
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_with_one_coefficient_it_is_iql() -> None:
    """With inverse temperature c, to 1e-6 after 10 updates."""
    c = 3.0
    rates: dict[str, Any] = dict.fromkeys(("actor_learning_rate", "critic_learning_rate", "value_learning_rate"), 1e-2)
    own = made(FamO2OIQL, coefficient_min=c - NARROW, coefficient_max=c + NARROW, **rates)
    host = IQL(0.9, c, actor_schedule="constant", log_std_min=-5.0, **SMALL, **rates)
    with jax.enable_x64(True):
        s, of_host = of_one_member(own, host, c)
        start, draw = s.actor.params["family"], jax.jit(lambda key: own.draw(key, SPEC))
        for i in range(10):
            s = UPDATE(own, s, rows(i), draw(jax.random.key(i)), True)[0]
            of_host = UPDATE(host, of_host, rows(i), (), True)[0]
        assert_same(s, of_host, ("critic", "value"))
        kernel = s.actor.params["family"]["layers_0"]["kernel"]
        assert np.abs(kernel - start["layers_0"]["kernel"]).max() > 1e-2


@pytest.mark.slow
def test_with_the_coefficient_one_it_is_cql() -> None:
    """To 1e-6 after 10 updates, the draws being the same."""
    rates: dict[str, Any] = dict.fromkeys(("actor_learning_rate", "critic_learning_rate"), 1e-2)
    low, high = 1 - NARROW, 1 + NARROW
    own = made(FamO2OCQL, coefficient_source="balance", coefficient_min=low, coefficient_max=high, **rates)
    host = CQL(conservative_weight=1.0, critic_layer_norm=True, **SMALL_CQL, **rates)
    with jax.enable_x64(True):
        s, of_host = of_one_member(own, host, 1.0)
        start, draw = s.actor.params["family"], jax.jit(lambda key: own.draw(key, SPEC))
        for i in range(10):
            draws = draw(jax.random.key(i))
            shared = (draws.uniform_actions, draws.current_policy_noise, draws.next_policy_noise)
            of_cql = host_cql.Draws(draws.policy_noise, draws.target_noise[:, None], *shared)
            s = UPDATE(own, s, rows(i), draws, True)[0]
            of_host = UPDATE(host, of_host, rows(i), of_cql, True)[0]
        assert_same(s, of_host, ("critic", "temperature"))
        assert np.abs(s.actor.params["family"]["layers_0"]["kernel"] - start["layers_0"]["kernel"]).max() > 1e-2


@both
def test_it_acts_by_the_mode_and_others_can_use_it(kind: Any) -> None:
    """Greedily always the same; what a clone asks of it is what it does."""
    algorithm = made(kind)
    s, obs = algorithm.init({}, SPEC, KEY), jnp.asarray(rows().obs[0], jnp.float32)
    greedy = [algorithm.act(s, obs, jax.random.key(i), False) for i in (0, 1)]
    np.testing.assert_array_equal(*greedy)
    np.testing.assert_allclose(action_of(algorithm.export(s)["actor"], obs, jnp.zeros(2)), greedy[0], atol=1e-6)
    assert np.abs(algorithm.act(s, obs, KEY, True) - greedy[0]).max() > 1e-3


@pytest.mark.parametrize("method", ["famo2o_iql", "famo2o_cql"])
def test_its_phases(method: str) -> None:
    """Offline all coefficients, online the chosen ones; no other policy goes on with it."""
    recipe: Any = METHODS[method]()
    (offline,), online = recipe.offline_phases(5), recipe.online_phase(7)
    assert offline.algorithm.coefficient_source == "uniform" and online.algorithm.coefficient_source == "balance"
    assert replace(online.algorithm, coefficient_source="uniform") == offline.algorithm
    assert online.online.replay == "all" and online.online.warmup_steps == 0
    with pytest.raises(UserError, match="famo2o_iql or famo2o_cql from the dataset"):
        recipe.handover_phases("gaussian")
    with pytest.raises(UserError, match=r"--coefficient-max 0\.1: give more than"):
        with_changes(recipe, {"coefficient_max": 0.1}).offline_phases(5)


def test_presets() -> None:
    """../spec/baselines_hparams.yaml, famo2o_iql and famo2o_cql."""
    for name in ANTMAZE:
        settings = dict(flat(preset_recipe("famo2o_iql", name)))
        assert settings["reward_bias"] == -1.0 and not settings["normalize_observations"]
    for name in LOCOMOTION:
        settings = dict(flat(preset_recipe("famo2o_cql", name)))
        assert settings["conservative_weight"] == 1.0 and settings["critic_layer_norm"]
        assert METHODS["famo2o_cql"].preset_updates[name] == 2_000_000
