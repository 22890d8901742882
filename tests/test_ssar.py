"""SSAR on TD3+BC against the hand-computed numbers of ../spec/ssar.md, section 6; test names give their numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.coefficient import Coefficient
from segue.core.learn import Program, act_greedily, initial_state, learn, make_keys, policy_flags
from segue.core.model import Adam, Model
from segue.core.phases import Selection
from segue.core.types import Batch, Metrics, PyTree, Spec
from segue.errors import UserError
from segue.methods.iql import IQLCritics, NoDraws
from segue.methods.iql import State as IQLState
from segue.methods.ssar import Annealed, CoefficientNet, CoefficientState, StateAdaptive
from segue.methods.td3_bc import TD3BC, State
from segue.selection import trust_flags

QUICK = StateAdaptive(coefficient_hidden_sizes=(16, 16), coefficient_learning_rate=1e-3)
UPDATE = jax.jit(lambda algorithm, *rest: algorithm.update(*rest), static_argnums=(0, 4))
COEFFICIENT_UPDATE = jax.jit(
    lambda coefficient, slack, *rest: coefficient.update(*rest, slack), static_argnums=(0, 1)
)


@dataclass(frozen=True)
class SameAction:
    """A policy whose parameters are its action everywhere."""

    def apply(self, params: jax.Array, obs: jax.Array) -> jax.Array:
        return jnp.broadcast_to(params, (*obs.shape[:-1], params.shape[-1]))


@dataclass(frozen=True)
class FirstColumn:
    """Critics that read Q from the observation's first column; the parameter scales it."""

    def apply(self, params: jax.Array, obs: jax.Array, action: jax.Array) -> jax.Array:
        return jnp.stack([self.first(params, obs, action)] * 2)

    def first(self, params: jax.Array, obs: jax.Array, action: jax.Array) -> jax.Array:
        return params * obs[..., 0]


@dataclass(frozen=True)
class Value:
    """V(s) = the parameter."""

    def apply(self, params: jax.Array, obs: jax.Array) -> jax.Array:
        return jnp.broadcast_to(params, (*obs.shape[:-1], 1))


@dataclass(frozen=True)
class Fixed(Coefficient):
    """The same strength everywhere."""

    strength: float

    @property
    def columns(self) -> tuple[str, ...]:
        return ()

    def init(self, spec: Spec, key: jax.Array, beta_0: float) -> PyTree:
        return ()

    def __call__(self, c: PyTree, batch: Batch, updates: jax.Array) -> jax.Array:
        return jnp.full(batch.reward.shape, self.strength)

    def update(self, c: PyTree, batch: Batch, updates: jax.Array, slack: Callable) -> tuple[PyTree, Metrics]:
        return c, {"slack": slack(1.0).mean(), "slack_at_3": slack(3.0).mean()}

    def begin_online(self, c: PyTree, updates: jax.Array) -> PyTree:
        return c

    def diagnose(self, c: PyTree, batch: Batch, updates: jax.Array) -> Metrics:
        return {}


def still(net: Any, params: PyTree, rate: float = 0.0) -> Model:
    """A model that an update leaves as it is."""
    params, optimizer = jnp.asarray(params), Adam(rate)
    return Model(params, params, optimizer.transform().init(params), net, optimizer)


def batch_of(obs: Any, action: Any, trust: Any = None) -> Batch:
    obs, action = np.asarray(obs, np.float32), np.asarray(action, np.float32)
    n = len(obs)
    zeros: Any = np.zeros(n, np.float32)
    extras = {"trust": np.ones(n, np.float32) if trust is None else np.asarray(trust, np.float32)}
    return Batch(obs, action, zeros, obs, zeros + 1, extras)  # type: ignore[arg-type]


def policy_step(coefficient: Coefficient, action: Any, batch: Batch, q_scale: float = 1.0) -> Metrics:
    """Metrics of one policy step with the fixed policy `action` and Q read from the observation."""
    state = State(still(SameAction(), np.float32(action)), still(FirstColumn(), np.float32(q_scale)), (), jnp.int32(0))
    noise = jnp.zeros(batch.action.shape)
    return jax.device_get(UPDATE(TD3BC(coefficient), state, batch, noise, True)[1])


def far(n: jax.Array, value: float) -> jax.Array:
    """A slack that is `value` on every one of four rows."""
    return jnp.full(4, value)


FAR, NEAR = partial(far, value=-1.0), partial(far, value=1.0)


@cache
def fresh(adaptive: StateAdaptive) -> CoefficientState:
    """A new coefficient of two state dimensions, beta_0 = 0.4."""
    state: CoefficientState = jax.device_get(jax.jit(lambda: adaptive.init(Spec(2, 1), jax.random.key(0), 0.4))())
    return state


def schedule(adaptive: StateAdaptive, steps: int, slack: Any, trust: Any = None, start: Any = None) -> list[Any]:
    """The coefficient's states after updates 1 ... `steps`."""
    state = start or fresh(adaptive)
    batch = batch_of(np.eye(4, 2), np.zeros((4, 1)), trust)
    states = []
    for t in range(1, steps + 1):
        state = COEFFICIENT_UPDATE(adaptive, slack, state, batch, jnp.int32(t))[0]
        states.append(state)
    return states


# -- the coefficient network


def full_net(scale: float) -> tuple[CoefficientNet, PyTree]:
    net = CoefficientNet(11, (512, 512, 512), scale)
    return net, jax.jit(net.init)(jax.random.key(0))


def test_1_2_3_the_coefficient_starts_near_beta_0_and_stays_in_range() -> None:
    net, params = full_net(1.0)
    assert sum(x.size for x in jax.tree.leaves(params)) == 531_969
    rng = np.random.default_rng(0)
    states = rng.normal(size=(64, 11)).astype(np.float32)
    states[:32] *= 1e6
    flat = params | {"layers_3": params["layers_3"] | {"kernel": np.zeros((512, 1), np.float32)}}
    for scale in (0.4, 5.0, 10.0):
        apply = jax.jit(replace(net, scale=scale).apply)
        assert abs(float(apply(params, np.zeros((64, 11), np.float32))[0]) / scale - 0.9999843) < 2e-6
        np.testing.assert_allclose(np.asarray(apply(flat, states)) / scale, 0.9999843, rtol=0, atol=2e-6)
        beta = np.asarray(apply(params, states))
        assert (beta >= 0).all() and (beta <= 1.5 * scale).all()
        assert (beta[32:] > 0).all() and (beta[32:] < 1.5 * scale).all()


def test_4_the_first_step_of_phi_has_length_lr_and_the_bias_is_at_floats_end() -> None:
    def step(rate: float) -> tuple[PyTree, PyTree]:
        adaptive = replace(QUICK, coefficient_learning_rate=rate)
        before = fresh(adaptive)
        return before.net.params, schedule(adaptive, 1, NEAR, start=before)[0].net.params

    before, after = step(1e-3)
    gradient_reached = 0
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        change = np.abs(np.asarray(b) - np.asarray(a))
        assert ((change == 0) | (np.abs(change - 1e-3) < 1e-5)).all()  # 0: a dead unit has no gradient
        gradient_reached += int((change > 0).sum())
    assert gradient_reached > 50
    for rate, moves in ((1e-8, 0.0), (3e-8, 5.9604645e-08)):
        before, after = step(rate)
        a, b = (np.asarray(x["layers_2"]["bias"], np.float64) for x in (before, after))
        np.testing.assert_allclose(np.abs(a - b), moves, rtol=1e-6)


def test_5_the_sign_of_w_decides_where_beta_goes() -> None:
    def beta(state: CoefficientState) -> np.ndarray:
        return np.asarray(state.net(np.eye(4, 2, dtype=np.float32)))  # type: ignore[arg-type]

    start = fresh(QUICK)
    falling, rising = schedule(QUICK, 20, NEAR, start=start), schedule(QUICK, 20, FAR, start=start)
    assert beta(falling[-1]).mean() < beta(falling[0]).mean() < beta(start).mean()
    assert beta(rising[-1]).mean() > beta(rising[0]).mean() > beta(start).mean()
    split = schedule(QUICK, 200, by_row, start=start)[-1]
    assert beta(split)[0] < beta(start)[0] and beta(split)[1] > beta(start)[1]


def by_row(n: jax.Array) -> jax.Array:
    """Covered in the first state, not in the second."""
    return jnp.asarray([1.0, -1.0, 0.0, 0.0])


def test_6_no_loss_reaches_what_is_not_its_own() -> None:
    """Actor and critic losses leave phi alone; with all w = 0 phi's own gradient is 0 though the policy moves."""
    spec = Spec(2, 1)
    algorithm = TD3BC(QUICK, hidden_sizes=(8,))
    state = jax.jit(lambda: algorithm.init({}, spec, jax.random.key(0)))()
    batch = batch_of(np.eye(4, 2), np.zeros((4, 1)))

    def losses(params: PyTree) -> jax.Array:
        beta = replace(state.beta, net=replace(state.beta.net, params=params))
        _, metrics = algorithm.update(replace(state, beta=beta), batch, jnp.zeros((4, 1)), True)
        return metrics["actor_loss"] + metrics["critic_loss"]

    grads = jax.jit(jax.grad(losses))(state.beta.net.params)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(grads))

    def coefficient_loss(params: PyTree) -> jax.Array:
        """As a function of what the slack is made of: the actor."""
        actor = replace(state.actor, params=params)
        return algorithm.update(replace(state, actor=actor), batch, jnp.zeros((4, 1)), True)[1]["coefficient_loss"]

    grads = jax.jit(jax.grad(coefficient_loss))(state.actor.params)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(grads))


def test_7_phis_gradient_is_clipped_to_half() -> None:
    state = schedule(QUICK, 1, partial(far, value=1e6))[0]
    mean = state.net.opt_state[0].mu  # Adam's first moment: a tenth of what it was given
    norm = np.sqrt(sum(float(np.square(np.asarray(x, np.float64)).sum()) for x in jax.tree.leaves(mean)))
    assert abs(norm / 0.1 - 0.5) < 1e-5


# -- losses


def test_8_9_11_losses_by_hand() -> None:
    inside = policy_step(Fixed(0.4), (0.3, -0.2), batch_of([[1.0]], [[0.35, -0.25]]))
    outside = policy_step(Fixed(0.4), (0.3, -0.2), batch_of([[1.0]], [[0.35, 0.9]]))
    np.testing.assert_allclose(inside["slack"], 0.0075, atol=1e-6)
    np.testing.assert_allclose(outside["slack"], -0.49125, atol=1e-6)
    for metrics in (inside, outside):
        np.testing.assert_allclose(metrics["slack_at_3"] - metrics["slack"], 0.08, atol=1e-6)
    np.testing.assert_allclose(outside["actor_loss"], -1 + 0.2425, atol=1e-6)  # Q / |Q| is 1; the error is not capped
    two = batch_of([[-3.0], [5.0]], [[0.3, -0.2]] * 2)
    for scale in (1.0, 1000.0):
        np.testing.assert_allclose(policy_step(Fixed(0.4), (0.3, -0.2), two, scale)["actor_loss"], -0.25, atol=1e-6)


def test_10_w_is_a_difference_of_gaussian_log_densities() -> None:
    delta, error = 0.1, np.array([0.05, 0.05])
    w = float(policy_step(Fixed(0.4), (0.3, -0.2), batch_of([[1.0]], [[0.35, -0.25]]))["slack"])
    log_ratio = (-(error**2) / (2 * delta**2) + delta**2 / (2 * delta**2)).sum()
    np.testing.assert_allclose([w * 2 / (2 * delta**2), log_ratio], 0.75, atol=1e-4)


@cache
def fresh_host() -> State:
    """TD3+BC without a coefficient."""
    host = TD3BC(hidden_sizes=(8,))
    state: State = jax.device_get(jax.jit(lambda: host.init({}, Spec(2, 1), jax.random.key(0)))())
    return state


def actor_gradient(coefficient: Coefficient | None, trust: Any) -> PyTree:
    """The gradient of the actor's loss, read from Adam's first moment; the same networks and batch every time."""
    algorithm = TD3BC(coefficient, hidden_sizes=(8,))
    beta: Any = fresh(coefficient) if isinstance(coefficient, StateAdaptive) else ()
    state = replace(fresh_host(), beta=beta)
    rng = np.random.default_rng(0)
    batch = batch_of(rng.normal(size=(4, 2)), rng.uniform(-1, 1, (4, 1)), trust)
    after = UPDATE(algorithm, state, batch, jnp.zeros((4, 1)), True)[0]
    return jax.tree.map(lambda x: 10 * np.asarray(x, np.float64), after.actor.opt_state[0].mu)


def assert_close(a: PyTree, b: PyTree) -> None:
    scale = max(np.abs(x).max() for x in jax.tree.leaves(b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-6 * scale)


def test_12_13_reductions() -> None:
    """A constant 0.4 is TD3+BC divided by 2.5; masking touches untrusted rows only."""
    plain, none = actor_gradient(None, np.ones(4)), actor_gradient(Fixed(0.0), np.ones(4))
    assert_close(actor_gradient(Fixed(0.4), np.ones(4)), jax.tree.map(lambda x: x / 2.5, plain))
    masked, unmasked = replace(QUICK, mask_regularizer=True), QUICK
    assert_close(actor_gradient(masked, np.ones(4)), actor_gradient(unmasked, np.ones(4)))
    assert_close(actor_gradient(masked, np.zeros(4)), none)
    one, other = actor_gradient(masked, [1, 1, 0, 0]), actor_gradient(masked, [0, 0, 1, 1])
    whole = jax.tree.map(lambda a, b, q: a + b - q, one, other, none)  # each holds the Q term once
    assert_close(whole, actor_gradient(unmasked, np.ones(4)))


# -- the schedule of n


def test_25_n_grows_by_tenths_to_its_end() -> None:
    ns = [float(s.n) for s in schedule(replace(QUICK, threshold_update_interval=2), 26, FAR)]
    np.testing.assert_allclose(ns[:4], [1.0, 1.2, 1.2, 1.4], atol=1e-6)
    assert ns == sorted(ns) and max(ns) == 3.0 and ns[19:] == [3.0] * 7  # from the tenth check on


def test_26_coverage_freezes_n_for_good() -> None:
    adaptive = replace(QUICK, threshold_update_interval=2)
    states = schedule(adaptive, 2, NEAR)
    assert [bool(s.frozen) for s in states] == [False, True]
    later = schedule(adaptive, 6, FAR, start=states[-1])
    assert all(bool(s.frozen) and float(s.n) == 1.0 for s in later)


def test_27_equal_ends_are_constant_and_an_untrusted_batch_grows_n() -> None:
    flat = replace(QUICK, threshold_update_interval=1, n_start=5.0, n_end=5.0)
    assert {float(s.n) for s in schedule(flat, 3, FAR)} == {5.0}
    last = schedule(replace(QUICK, threshold_update_interval=1), 2, NEAR, trust=np.zeros(4))[-1]
    assert abs(float(last.n) - 1.4) < 1e-6 and not bool(last.frozen)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(last.net.params)))


def test_28_the_check_and_the_step_use_the_old_n() -> None:
    adaptive = replace(QUICK, threshold_update_interval=1)
    state = fresh(adaptive)
    batch = batch_of(np.eye(4, 2), np.zeros((4, 1)))
    after, metrics = COEFFICIENT_UPDATE(adaptive, minus_ten, state, batch, jnp.int32(1))
    assert float(metrics["threshold_gap_mean"]) == -9.0 and abs(float(after.n) - 1.2) < 1e-6


def minus_ten(n: jax.Array) -> jax.Array:
    """Tells which n it was asked with."""
    return jnp.full(4, 1.0) * n - 10


# -- selection


def test_33_expectile_loss_by_hand() -> None:
    for expectile, wanted in ((0.7, 1.55), (0.5, 1.25)):
        state = IQLState(still(FirstColumn(), np.float32(1)), still(Value(), np.zeros(1, np.float32)), jnp.int32(0))
        batch = batch_of([[2.0], [-1.0]], [[0.0], [0.0]])
        metrics = UPDATE(IQLCritics(expectile=expectile), state, batch, NoDraws(), True)[1]
        np.testing.assert_allclose(metrics["value_loss"], wanted, rtol=1e-6)


@pytest.mark.parametrize("threshold, share", [(10.0, "none"), (-10.0, "all")])
def test_34_an_empty_or_full_selection_is_an_error_or_a_warning(threshold: float, share: str) -> None:
    """`paper` and `released` profile."""
    rng = np.random.default_rng(0)
    rows = batch_of(rng.normal(size=(6, 2)), np.zeros((6, 1)))
    arguments: Any = (rows, np.zeros(3), 2, {}, 1)
    with pytest.raises(UserError, match=f"trusts {share}"):
        trust_flags(Selection("return", threshold), *arguments)
    with pytest.warns(UserWarning, match=f"trusts {share}"):
        flags, _ = trust_flags(Selection("return", threshold, strict=False), *arguments)
    assert set(flags.ravel()) == {0.0 if share == "none" else 1.0}


# -- online


def test_29_39_40_online_phi_and_n_stand_still_and_the_strength_anneals() -> None:
    state = fresh(QUICK)
    annealed = Annealed(QUICK)
    begun = annealed.begin_online(state, jnp.int32(1_000_000))
    batch = batch_of(np.eye(4, 2), np.zeros((4, 1)))
    after, metrics = annealed.update(begun, batch, jnp.int32(1_050_000), FAR)
    assert after is begun and metrics == {}
    for online, wanted in ((1, 0.9999975), (100_000, 0.75), (200_000, 0.5), (245_000, 0.3875)):
        assert abs(float(annealed.factor(begun, jnp.int32(1_000_000 + online))) - wanted) < 1e-6
    assert replace(annealed, anneal_steps=None).factor(begun, jnp.int32(2_000_000)) == 1
    past = jnp.int32(1_500_000)
    assert float(annealed.factor(begun, past)) == 0
    assert float(replace(annealed, floor_at_zero=False).factor(begun, past)) == -0.25


def test_41_one_policy_step_in_a_hundred() -> None:
    flags = policy_flags(100, 1_000_037, 1000)
    assert sum(flags) == 10 and flags[62] and not any(flags[:62])


# -- behaviour


def bandit(mask: bool, trust_all: bool) -> float:
    """The policy after training on one state and two clusters of actions: 70 % at -0.6, 30 % slightly better at 0.6.

    The clusters overlap a little and cloning is strong (alpha 0.25): with a critic this small, its errors between the
    clusters would else steer the policy more than the rewards do.
    """
    adaptive = replace(QUICK, mask_regularizer=mask, coefficient_learning_rate=3e-8)
    rates = {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3}
    algorithm = TD3BC(adaptive, 0.25, critic_layer_norm=True, batch_size=64, hidden_sizes=(32, 32), **rates)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    good = np.arange(1000) % 10 < 3
    action = np.clip(np.where(good, 0.6, -0.6) + rng.normal(0, 0.25, 1000), -1, 1)
    rows = batch_of(np.zeros((1000, 1)), action[:, None])
    reward: Any = np.where(good, 1.0, 0.9).astype(np.float32)
    rows = rows._replace(reward=reward, extras={})
    trust: Any = {"trust": (good | trust_all)[None].astype(np.float32)}
    keys, spec = make_keys((0,), 0), Spec(1, 1)
    state = jax.jit(lambda: initial_state(algorithm, {}, spec, keys))()
    program = Program(algorithm, "offline", spec)
    state, _ = learn(program, state, trust, keys.learn, rows, np.int32(0), np.int32(500))
    one = jax.tree.map(lambda x: x[0], state)
    return float(act_greedily(algorithm, one, jnp.zeros((1, 1)))[0, 0])


@pytest.mark.slow
def test_44_the_mask_chooses_the_trusted_cluster() -> None:
    assert abs(bandit(mask=True, trust_all=False) - 0.6) < 0.2
    assert bandit(mask=False, trust_all=True) < 0


def test_45_three_regimes_of_the_data_around_the_policy() -> None:
    """Noise of 0.05 is inside one deviation of 0.1: beta falls; 0.3 is outside: beta rises; at n = 3 they balance."""
    noise = np.random.default_rng(0).normal(size=(100_000, 1)).astype(np.float32)
    state = np.eye(100_000, 1)
    for std, at_one in ((0.05, 0.01 - 0.0025), (0.3, 0.01 - 0.0899)):
        metrics = policy_step(Fixed(0.4), (0.0,), batch_of(state, std * noise))
        np.testing.assert_allclose(metrics["slack"], at_one, atol=1e-3)
    assert abs(float(metrics["slack_at_3"])) < 0.005
