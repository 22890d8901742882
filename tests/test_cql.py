"""CQL, Cal-QL and SSAR on CQL: the hand-computed numbers of ../spec/ssar.md, section 6, whose numbers the tests' names
give, and what conservatism and calibration are for, on data whose values are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.coefficient import Coefficient
from segue.core.learn import Program, initial_state, learn, make_keys
from segue.core.model import Model, Scalar
from segue.core.types import Batch, Metrics, PyTree, Spec
from segue.methods.cql import CQL, Draws, State, threshold_log_density
from segue.methods.ssar import Annealed, StateAdaptive
from segue.nets.policies import data_log_density, sample_tanh_gaussian
from tests.test_ssar import UPDATE, batch_of, still


@dataclass(frozen=True)
class SamePolicy:
    """The same Gaussian before the tanh in every state: the parameters are its mean and log-std [A]."""

    def apply(self, params: PyTree, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, log_std = (jnp.broadcast_to(x, (*obs.shape[:-1], x.shape[-1])) for x in params)
        return mean, log_std


@dataclass(frozen=True)
class Critics:
    """Q_1 and Q_2 as given functions of observation and action; the parameter scales both."""

    functions: tuple[Callable[[jax.Array, jax.Array], jax.Array], ...]

    def apply(self, params: jax.Array, obs: jax.Array, action: jax.Array) -> jax.Array:
        return params * jnp.stack([f(obs, action) for f in self.functions])

    def of_several(self, params: jax.Array, obs: jax.Array, actions: jax.Array) -> jax.Array:
        return self.apply(params, jnp.broadcast_to(obs[:, None], (*actions.shape[:2], obs.shape[1])), actions)


@dataclass(frozen=True)
class Strength(Coefficient):
    """The same strength everywhere, or on trusted rows; its update tells the slack at n = 1."""

    strength: float
    masked: bool = False
    columns = ("trust",)

    def init(self, spec: Spec, key: jax.Array, beta_0: float) -> PyTree:
        return ()

    def __call__(self, c: PyTree, batch: Batch, updates: jax.Array) -> jax.Array:
        return jnp.full_like(batch.reward, self.strength) * (batch.extras["trust"] if self.masked else 1)

    def update(self, c: PyTree, batch: Batch, updates: jax.Array, slack: Callable) -> tuple[PyTree, Metrics]:
        return c, {"slack": slack(1.0).mean()}

    def begin_online(self, c: PyTree, updates: jax.Array) -> PyTree:
        return c

    def diagnose(self, c: PyTree, batch: Batch, updates: jax.Array) -> Metrics:
        return {}


@dataclass(frozen=True)
class UniformPolicy(CQL):
    """CQL whose policy's actions are as likely as a uniform one's."""

    def _samples(self, batch: Batch, draws: Draws, current: Any, following: Any) -> tuple[jax.Array, jax.Array]:
        actions, log_density = super()._samples(batch, draws, current, following)
        uniform = -batch.action.shape[-1] * jnp.log(2.0)
        return actions, log_density.at[:, self.num_sampled_actions :].set(uniform)


def zero(obs: jax.Array, action: jax.Array) -> jax.Array:
    return 0 * action[..., 0]


def first(obs: jax.Array, action: jax.Array) -> jax.Array:
    """Q is the observation's first entry, but 0 for actions beyond 2, as the data's are in some tests."""
    return jnp.where(action[..., 0] > 2, 0.0, obs[..., 0])


def draws_of(rows: int, k: int, action_dim: int, policy: float = 0.0, target: Any = ((0.0,),)) -> Draws:
    """Sampled actions of the policy are its mean's; `target` are the noises [K, A] of the next ones."""
    none = np.zeros((rows, k, action_dim), np.float32)
    one: Any = np.full((rows, action_dim), policy, np.float32)
    targets: Any = np.tile(np.asarray(target, np.float32), (rows, 1, 1))
    return Draws(one, targets, none, none, none)  # type: ignore[arg-type]


def metrics_of(algorithm: CQL, batch: Batch, functions: Any, mean: Any = None, draws: Draws | None = None) -> Metrics:
    """Of one update with a fixed policy of std 1/e, or `mean` and log-std -1, and fixed critics."""
    action_dim = batch.action.shape[1]
    middle = np.float32(np.zeros(action_dim) if mean is None else mean)
    policy: Any = still(SamePolicy(), np.stack([middle, np.full(action_dim, -1, np.float32)]))
    state = State(
        actor=policy,
        critic=still(Critics(functions), np.float32(1)),
        temperature=still(Scalar(0.0), np.float32(0)),
        multiplier=still(Scalar(1.0), np.float32(1)),
        beta=(),
        updates=jnp.int32(0),
    )
    draws = draws or draws_of(len(batch.reward), algorithm.num_sampled_actions, action_dim)
    metrics: Metrics = jax.device_get(UPDATE(algorithm, state, batch, draws, True)[1])
    return metrics


# -- the threshold and the coefficient's weight


def thresholds(mean: float, log_std: float, *ns: float) -> list[float]:
    shape = jnp.full((len(ns), 1), 1.0)
    n = jnp.asarray(ns)[:, None]
    return threshold_log_density(mean * shape, log_std * shape, n)[:, 0].tolist()


def test_14_15_thresholds_by_hand() -> None:
    for (mean, log_std), wanted in {
        (0.0, -1.0): (0.053918, -0.178572),
        (0.5, -1.0): (0.167816, -0.310495),
        (0.5, -3.0): (1.777255, -2.298431),
        (2.0, -1.0): (1.534035, -3.704483),
    }.items():
        np.testing.assert_allclose(thresholds(mean, log_std, 1, 3), wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(thresholds(0.0, -1.0, 10), -43.946, rtol=0, atol=1e-2)
    np.testing.assert_allclose(thresholds(0.5, -3.0, 10), -47.919, rtol=0, atol=1e-2)
    falling = (0.82405, 0.32723, -0.37590, -2.69066, -10.27028)
    np.testing.assert_allclose(thresholds(0.5, -2.0, 1, 1.5, 2, 3, 5), falling, rtol=0, atol=1e-5)


def test_15_the_threshold_falls_with_n_for_narrow_policies() -> None:
    rng = np.random.default_rng(0)
    mean, log_std = rng.uniform(-2, 2, 10_000), rng.uniform(-5, -1, 10_000)
    ns = np.linspace(0.5, 5, 10)[:, None]
    with jax.enable_x64(True):
        found = np.asarray(threshold_log_density(jnp.asarray(mean), jnp.asarray(log_std), jnp.asarray(ns)))
    assert (np.diff(found, axis=0) <= 1e-9).all()


def test_16_the_weight_by_hand_and_its_floor() -> None:
    """Per dimension, floored at ten deviations, and a mean over dimensions. At the bounds it is finite."""
    ssar = CQL(Strength(0.0), num_sampled_actions=1)

    def slack(second: float) -> float:
        batch = batch_of([[0.0]], [[0.05, second]])
        return float(metrics_of(ssar, batch, (zero, zero), (0.0, 0.5))["slack"])

    assert abs(slack(-0.9) + 6.388023) < 1e-5
    assert abs(slack(-0.9999) + 21.5476) < 1e-2
    assert slack(-1.0) == slack(-0.9999)
    found = data_log_density(jnp.asarray([0.05, -0.9]), jnp.asarray([0.0, 0.5]), -jnp.ones(2))
    np.testing.assert_allclose(found, (0.074313, -12.628624), rtol=0, atol=1e-4)


def test_17_the_threshold_takes_the_less_likely_side_of_each_dimension() -> None:
    mean, log_std, centre = jnp.asarray(0.5), jnp.asarray(-1.0), np.tanh(0.5)
    plus, minus = (float(data_log_density(jnp.asarray(centre + side), mean, log_std)) for side in (0.1, -0.1))
    np.testing.assert_allclose([plus, minus], [0.392567, 0.167816], rtol=0, atol=1e-5)
    one, two = thresholds(0.5, -1.0, 1)[0], threshold_log_density(jnp.asarray([0.5, -0.5]), -jnp.ones(2), 1.0)
    assert abs(one - minus) < 1e-5
    np.testing.assert_allclose(two, [minus, minus], rtol=0, atol=1e-5)  # each its own side


# -- the conservative term


@pytest.mark.parametrize("action_dim, wanted", [(3, 5.480639), (6, 7.560080)])
def test_18_z_of_zero_values_is_the_volume_times_the_samples(action_dim: int, wanted: float) -> None:
    metrics = metrics_of(UniformPolicy(), batch_of([[0.0]], np.zeros((1, action_dim))), (zero, zero))
    for i in (1, 2):
        assert abs(metrics[f"critic_{i}_conservative_gap_mean"] - wanted) < 1e-5


def with_gaps(gaps: list[float], trust: list[float], **settings: Any) -> Metrics:
    """Of rows whose D is as given: one action dimension, one sample of each kind, Q of the data's action 0."""
    rows = [[gap - np.log(2) - np.log(3)] for gap in gaps]
    algorithm = UniformPolicy(num_sampled_actions=1, **settings)
    return metrics_of(algorithm, batch_of(rows, [[3.0]] * len(gaps), trust), (first, first))


def test_19_masks_and_the_multiplier_by_hand() -> None:
    for masked, wanted in ((True, 10.0), (False, 35.0)):
        metrics = with_gaps([2.0, 5.0], [1, 0], coefficient=Strength(10.0, masked))
        assert abs(metrics["critic_1_conservative_loss"] - wanted) < 1e-4
        assert abs(metrics["critic_loss"] - 2 * wanted) < 2e-4 + metrics["critic_1_td_loss"] * 2
    metrics = with_gaps([2.0, 5.0], [1, 0], coefficient=Strength(10.0, masked=True), lagrange=True)
    assert abs(metrics["critic_2_conservative_loss"] - 16.309691) < 1e-4
    assert abs(metrics["lagrange_multiplier"] - np.e) < 1e-6
    assert abs(metrics["lagrange_loss"] + 16.309691) < 1e-4  # -1/2 of both critics': more gap, more multiplier


def test_20_the_gap_is_clipped_from_below_where_asked() -> None:
    for clip, wanted in ((-200.0, -200.0), (None, -250.0)):
        metrics = with_gaps([-250.0], [1], gap_clip_min=clip)
        assert abs(metrics["critic_1_conservative_gap_mean"] - wanted) < 1e-4


def test_21_the_target_is_the_best_of_the_smaller_values() -> None:
    """Over two samples Q_1 is (1, 4), Q_2 (3, 2): 2, not the 3 of the other order. Without it the first sample's."""

    def rising(obs: jax.Array, action: jax.Array) -> jax.Array:
        return 2.5 + 1.5 * jnp.sign(action[..., 0])

    def falling(obs: jax.Array, action: jax.Array) -> jax.Array:
        return 2.5 - 0.5 * jnp.sign(action[..., 0])

    batch, both = batch_of([[0.0]], [[0.0]]), (rising, falling)
    for several, target, wanted in ((True, ((-1,), (1,)), 2.0), (True, ((1,), (-1,)), 2.0), (False, ((-1,),), 1.0)):
        algorithm = CQL(num_sampled_actions=2, max_target_backup=several)
        metrics = metrics_of(algorithm, batch, both, draws=draws_of(1, 2, 1, target=target))
        assert metrics["target_value_mean"] == wanted


def test_23_the_antmaze_switch() -> None:
    batch = batch_of([[0.0]], np.tanh([[0.3, -0.1]]) - np.array([[0.2, -0.4]]))
    off, on = (metrics_of(CQL(cloning_weight=w), batch, (zero, zero), (0.3, -0.1)) for w in (0.0, 0.5))
    assert abs(on["actor_loss"] - off["actor_loss"] - 0.1) < 1e-6


def test_24_log_densities_of_samples_both_ways() -> None:
    """From the known x, and from the action through atanh, where float32 allows that; far out only the first."""
    rng = np.random.default_rng(0)
    mean, log_std = rng.uniform(-1, 1, (2000, 1)), rng.uniform(np.log(0.05), 0, (2000, 1))
    single: Any = [np.float32(x) for x in (mean, log_std, rng.normal(size=(2000, 1)))]
    action, log_prob = sample_tanh_gaussian(*single)
    inner = np.abs(action[:, 0]) < 0.999
    assert inner.mean() > 0.9
    other = data_log_density(action, *single[:2])[:, 0]
    np.testing.assert_allclose(np.asarray(other)[inner], np.asarray(log_prob)[inner], rtol=0, atol=1e-2)
    far = sample_tanh_gaussian(jnp.asarray([[15.0], [-15.0]]), jnp.zeros((2, 1)), jnp.zeros((2, 1)))
    assert np.isfinite(far[1]).all() and np.isfinite(other).all()


def test_39_the_cosine() -> None:
    with jax.enable_x64(True):
        annealed = Annealed(StateAdaptive(coefficient_hidden_sizes=(4,)), shape="cosine")
        state = annealed.begin_online(annealed.init(Spec(1, 1), jax.random.key(0), 10.0), jnp.int32(1_000_000))
        wanted = {1: 1 - 7.7e-12, 100_000: 0.923880, 200_000: 0.707107, 245_000: 0.571788, 400_000: 0, 900_000: 0}
        for online, value in wanted.items():
            tolerance = 1e-13 if online == 1 else 1e-6
            assert abs(float(annealed.factor(state, jnp.int32(1_000_000 + online))) - value) < tolerance


# -- reductions: real networks, one update


SMALL: dict[str, Any] = {"num_sampled_actions": 2, "batch_size": 8, "hidden_sizes": (6,), "critic_hidden_sizes": (6,)}
LAYER_NORM: dict[str, Any] = SMALL | {"critic_layer_norm": True}


@cache
def beginning() -> tuple[State, Draws]:
    """A fresh state of CQL, and random numbers for an update."""
    spec, key = Spec(2, 2), jax.random.key(0)
    algorithm = CQL(**LAYER_NORM)
    both: tuple[State, Draws] = jax.jit(lambda: (algorithm.init({}, spec, key), algorithm.draw(key, spec)))()
    return both


def one_update(algorithm: CQL, **extras: float) -> tuple[State, Metrics]:
    """In float64, from the same state, which holds no coefficient's."""
    rng = np.random.default_rng(0)
    batch = batch_of(rng.normal(size=(8, 2)), rng.uniform(-0.9, 0.9, (8, 2)))
    batch = batch._replace(extras={name: jnp.full(8, value) for name, value in extras.items()})
    state, draws = beginning()
    result: tuple[State, Metrics] = jax.device_get(UPDATE(algorithm, state, batch, draws, True))
    return result


def assert_same(a: tuple[State, Metrics], b: tuple[State, Metrics]) -> None:
    for name in a[1].keys() & b[1].keys():
        np.testing.assert_allclose(a[1][name], b[1][name], rtol=0, atol=1e-10, err_msg=name)
    for role in ("actor", "critic", "temperature"):
        for x, y in zip(jax.tree.leaves(getattr(a[0], role)), jax.tree.leaves(getattr(b[0], role)), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-10, err_msg=role)


def test_22_a_constant_coefficient_is_cql_and_an_unknown_return_is_no_calibration(float64: None) -> None:
    """SSAR with beta = 10 on trusted rows alone; Cal-QL with a bound of minus infinity; without trust, no penalty."""
    plain = one_update(CQL(**LAYER_NORM))
    assert_same(one_update(CQL(Strength(10.0, masked=True), **LAYER_NORM), trust=1.0), plain)
    calibrated = CQL(calibrate=True, **LAYER_NORM)
    assert_same(one_update(calibrated, return_to_go=-np.inf), plain)
    none = one_update(CQL(Strength(10.0, masked=True), **LAYER_NORM), trust=0.0)[1]
    assert none["critic_1_conservative_loss"] == 0 != plain[1]["critic_1_conservative_loss"]
    high = one_update(calibrated, return_to_go=100.0)[1]  # all of the policy's values are the bound
    for group in ("current", "next"):
        assert high[f"critic_1_{group}_policy_below_bound_rate"] == 1
        assert abs(high[f"critic_1_{group}_policy_mean"] - 100) < 1e-9
    for unbound in ("uniform_mean", "mean", "td_loss"):
        assert high[f"critic_1_{unbound}"] == pytest.approx(plain[1][f"critic_1_{unbound}"], abs=1e-10)


def test_rows_in_parts_are_the_same_update(float64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The critics' gradient is summed over parts that fit a processor's cache."""
    algorithm = CQL(calibrate=True, **LAYER_NORM)
    whole = one_update(algorithm, return_to_go=0.1)
    monkeypatch.setattr("segue.methods.cql.parts_for_cache", lambda rows, floats: 4)
    again = replace(algorithm, gap_clip_max=1e9)  # clips nothing, but is another program
    assert_same(one_update(again, return_to_go=0.1), whole)


# -- behaviour: one state, reward 1 for every action that the data show


@dataclass(frozen=True)
class Given(Coefficient):
    """The strength is the state: one program serves every strength."""

    columns = ()

    def init(self, spec: Spec, key: jax.Array, beta_0: float) -> jax.Array:
        return jnp.asarray(beta_0)

    def __call__(self, c: jax.Array, batch: Batch, updates: jax.Array) -> jax.Array:
        return jnp.full_like(batch.reward, 1.0) * c

    def update(self, c: PyTree, batch: Batch, updates: jax.Array, slack: Callable) -> tuple[PyTree, Metrics]:
        return c, {}

    def begin_online(self, c: PyTree, updates: jax.Array) -> PyTree:
        return c

    def diagnose(self, c: PyTree, batch: Batch, updates: jax.Array) -> Metrics:
        return {}


# The policy stays as it begins, around 0 with a std of 0.33; an unknown return turns Cal-QL into CQL.
TOY = CQL(
    Given(),
    calibrate=True,
    num_sampled_actions=4,
    batch_size=64,
    hidden_sizes=(16,),
    critic_hidden_sizes=(32, 32),
    actor_learning_rate=0.0,
    critic_learning_rate=1e-3,
    target_update_rate=0.05,
)


@cache
def toy() -> State:
    """A fresh state, on the host: `learn` eats what it is given."""
    state: State = jax.device_get(jax.jit(lambda: initial_state(TOY, {}, Spec(1, 1), make_keys((0,), 0)))())
    return state


@cache
def critics(low: float, high: float, strength: float, bound: float = -np.inf) -> Model:
    """After 500 updates on 1,000 actions from low to high."""
    n, spec = 1000, Spec(1, 1)
    rows = batch_of(np.zeros((n, 1)), np.random.default_rng(0).uniform(low, high, (n, 1)))
    ones: Any = np.ones(n, np.float32)
    rows = rows._replace(reward=ones, extras={})
    state = replace(jax.tree.map(jnp.asarray, toy()), beta=jnp.full(1, strength))
    columns, keys = {"return_to_go": jnp.full((1, n), bound)}, make_keys((0,), 0).learn
    state, _ = learn(Program(TOY, "offline", spec), state, columns, keys, rows, np.int32(0), np.int32(500))
    model: Model = jax.tree.map(lambda x: x[0], state).critic
    return model


def values(model: Model, actions: np.ndarray) -> np.ndarray:
    action = jnp.asarray(actions, jnp.float32)[:, None]
    return np.asarray(model(jnp.zeros_like(action), action)).mean(0)


def pushes_down(strength: float) -> bool:
    """Is an action far from the data's, -0.5 to 0, worth clearly less than theirs, which keep their reward of 1?"""
    shown, unseen = values(critics(-0.5, 0.0, strength), np.array([-0.25, 0.8]))
    return bool(unseen < shown - 2 and shown > 0.8)


def test_unseen_actions_are_worth_less_than_the_datas() -> None:
    assert pushes_down(1.0) and pushes_down(5.0)
    assert not pushes_down(0.0) and not pushes_down(-5.0)


def test_calibration_stops_the_push_at_the_returns() -> None:
    """Data everywhere, denser policy in the middle: CQL pushes its values below their return of 1, Cal-QL does not."""
    noise = np.random.default_rng(0).normal(size=512)
    actions = np.tanh(np.exp(-1) * noise)
    bounded, below, wrong = (
        values(critics(-1.0, 1.0, *settings), actions).mean() for settings in ((10.0, 1.0), (10.0,), (-10.0, 1.0))
    )
    assert below < 0.93 and wrong < 0.93
    assert 0.98 < bounded < 1.2
