"""O2SAC against numbers worked out by hand, invariants of its phases, and toys (../spec/ocr_cft.md 7.1 to 7.4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.constraint import Constraint
from segue.core.model import Adam, Model, Scalar
from segue.core.phases import Online, Phase, check
from segue.core.reference import Reference, ReferenceRule
from segue.core.types import Batch, Metrics, Models, PyTree, Spec
from segue.errors import UserError
from segue.methods.cql import CQL
from segue.methods.o2sac import (
    AlignmentDraws,
    ConstrainedDraws,
    ConstrainedSAC,
    ConstrainedState,
    SACAlignment,
    SACReevaluation,
    State,
)
from segue.nets.networks import MLP
from segue.nets.policies import (
    TanhGaussianPolicy,
    data_log_density,
    sample_tanh_gaussian,
    tanh_gaussian_log_density,
)

pytestmark = pytest.mark.usefixtures("float64")

HALF_LOG_2_PI = 0.5 * np.log(2 * np.pi)
KEY = jax.random.key(0)
ALPHA = 0.2
TINY: dict[str, Any] = {"batch_size": 4, "hidden_sizes": (8,), "critic_hidden_sizes": (8,)}
UPDATE = jax.jit(lambda algorithm, *rest: algorithm.update(*rest, True), static_argnums=0)
CONSTRAINT = Constraint(threshold_start=0.125, threshold_end=2.0)


@dataclass(frozen=True)
class Everywhere:
    """A policy that is one squashed Gaussian in every state: its parameters are mean and log-std [2, A]."""

    kind = "tanh_gaussian"

    def apply(self, params: jax.Array, obs: jax.Array) -> Any:
        return tuple(jnp.broadcast_to(x, (*obs.shape[:-1], x.shape[-1])) for x in params)


@dataclass(frozen=True)
class Bowl:
    """Q_j = p_j0 + p_j1 x + p_j2 x^2 with x = a - centre, in every state; parameters [critics, 3]."""

    centre: float = 0.0

    def apply(self, params: jax.Array, obs: jax.Array, action: jax.Array) -> jax.Array:
        x = action.sum(-1) - self.centre
        return jnp.stack([p[0] + p[1] * x + p[2] * x**2 for p in params])

    def of_several(self, params: jax.Array, obs: jax.Array, actions: jax.Array) -> jax.Array:
        return self.apply(params, obs, actions)


def model(net: Any, params: Any, target: Any = None, rate: float = 0.1) -> Model:
    params, optimizer = jnp.asarray(params, float), Adam(rate)
    target = None if target is None else jnp.asarray(target, float)
    return Model(params, target, optimizer.transform().init(params), net, optimizer)


def gaussian(mean: float, log_std: float, dimensions: int = 1, rate: float = 1e-4) -> Model:
    return model(Everywhere(), [[mean] * dimensions, [log_std] * dimensions], rate=rate)


def bowls(*params: tuple[float, ...], centre: float = 0.0) -> Model:
    """Critics that are equal to their targets."""
    return model(Bowl(centre), params, params)


def state_of(actor: Model, reference: Model, critic: Model, alpha: float = ALPHA) -> State:
    """Of re-evaluation or alignment."""
    temperature = model(Scalar(0.0), np.log(alpha))
    return State(actor, critic, temperature, Reference(reference.frozen(), jnp.float32(0)), jnp.int32(0))


def constrained_state(
    actor: Model, reference: Model, critic: Model, multiplier: float = 1.0, constraint: Constraint = CONSTRAINT
) -> ConstrainedState:
    models: Models = {"reference": reference.frozen(), "reference_score": jnp.float32(0)}
    models["constraint_multiplier"] = model(Scalar(0.0), np.log(multiplier))
    temperature = model(Scalar(0.0), np.log(ALPHA), rate=3e-4)
    return ConstrainedState(actor, critic, temperature, constraint.init(models, actor, KEY), jnp.int32(0))


def batch_of(rows: int = 1, reward: float = 1.0, terminal: float = 0.0, dimensions: int = 1) -> Batch:
    zeros = jnp.zeros((rows, 2))
    return Batch(zeros, jnp.zeros((rows, dimensions)), jnp.full(rows, reward), zeros, jnp.full(rows, terminal), {})


def density(action: Any, policy: Model) -> jax.Array:
    return data_log_density(jnp.asarray(action), *policy.params).sum(-1)


def equal(a: PyTree, b: PyTree) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# -- densities and pieces


def test_density_of_a_sample() -> None:
    action, log_prob = sample_tanh_gaussian(jnp.zeros(1), jnp.zeros(1), jnp.full(1, 0.5))
    np.testing.assert_allclose([action[0], log_prob], [0.462117, -0.803710], atol=1e-6)
    grid = jnp.linspace(-12, 12, 40_001)  # before the tanh, where da = (1 - tanh^2) dx
    for mean, log_std in ((0.0, 0.0), (1.0, -0.7), (-2.0, 0.3)):
        log_density = tanh_gaussian_log_density(grid, jnp.asarray(mean), jnp.asarray(log_std))
        total = (jnp.exp(log_density) / jnp.cosh(grid) ** 2).sum() * (grid[1] - grid[0])
        assert abs(float(total) - 1) < 1e-6


def test_density_of_a_given_action() -> None:
    noise = jax.random.normal(KEY, (1000, 1))
    mean, log_std = jnp.full((1000, 1), 0.5), jnp.full((1000, 1), -0.5)
    action, log_prob = sample_tanh_gaussian(mean, log_std, noise)
    inside = jnp.abs(action[:, 0]) < 0.999
    assert inside.mean() > 0.9
    given = data_log_density(action, mean, log_std)[:, 0]
    np.testing.assert_allclose(given[inside], log_prob[inside], atol=1e-5)
    far, mean, log_std = jnp.full(1, 6.0), jnp.full(1, 4.0), jnp.log(jnp.full(1, 0.5))
    exact, clipped = tanh_gaussian_log_density(far, mean, log_std), data_log_density(jnp.tanh(far), mean, log_std)
    np.testing.assert_allclose([exact[0], clipped[0]], [2.3879, 6.4799], atol=1e-4)
    np.testing.assert_allclose(jnp.arctanh(0.9999), 4.951719, atol=1e-6)


def test_the_deterministic_action_is_not_the_likeliest() -> None:
    policy = gaussian(1.0, np.log(0.5))
    assert abs(float(density(jnp.tanh(jnp.ones(1)), policy)) - 0.641770) < 1e-6
    assert abs(float(density(jnp.tanh(jnp.full(1, 1.4475)), policy)) - 0.990050) < 1e-6


def test_networks_are_as_specified() -> None:
    """Table of 2.1: widths, layer norms in critics alone and before the ReLU, initial values."""
    s = jax.device_get(jax.jit(lambda: SACReevaluation(num_critics=1).init({}, Spec(5, 2), KEY))())
    critics, policy = s.critic.params, s.actor.params
    assert len(critics) == 1 and not any("norm" in name for name in policy)
    for i in range(3):
        assert sum(x.size for x in jax.tree.leaves(critics[0][f"norm_{i}"])) == 2 * 256
    kernel = critics[0]["layers_1"]["kernel"]
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(256), atol=1e-9)
    assert all((layer["bias"] == 0).all() for name, layer in critics[0].items() if "layers" in name)
    last = policy["layers_3"]["kernel"]
    assert last.shape == (256, 4) and 0 < np.abs(last).max() <= 0.01 * np.sqrt(6 / 260)
    assert (policy["log_std_multiplier"], policy["log_std_offset"]) == (1, -1)

    norm = {"scale": jnp.ones(3), "bias": jnp.zeros(3)}
    first = {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}
    last = {"kernel": jnp.ones((3, 1)), "bias": jnp.zeros(1)}
    params = {"layers_0": first, "norm_0": norm, "layers_1": last}
    found = MLP((3, 3, 1), layer_norm=True).apply(params, jnp.arange(3.0))
    np.testing.assert_allclose(found, [np.sqrt(1.5)], atol=1e-4)  # of -sqrt 1.5, 0, sqrt 1.5; else they sum to 0


def test_targets_lag() -> None:
    critic = model(Scalar(0.0), 1.0, 0.0)
    for _ in range(3):
        critic = critic.track(0.005)
    np.testing.assert_allclose(critic.target, 0.014925125, atol=1e-12)


def test_the_scale_of_the_policy_is_clipped_and_learns() -> None:
    net = TanhGaussianPolicy(2, 1, (4,), trained_scale=True)
    params = net.init(KEY)
    for offset, limit in ((-100.0, -20.0), (100.0, 2.0)):
        assert net.apply(params | {"log_std_offset": jnp.asarray(offset)}, jnp.ones(2))[1] == limit
    policy = Model(params, None, (), net, Adam(0.1))
    obs, noise = jnp.ones((3, 2)), jnp.ones((3, 1))

    def log_prob(params: PyTree) -> jax.Array:
        return ConstrainedSAC().sample(replace(policy, params=params), policy, obs, noise)[1].sum()

    gradient = jax.grad(log_prob)(params)
    assert gradient["log_std_multiplier"] != 0 and gradient["log_std_offset"] != 0


# -- re-evaluation

UNIT = -HALF_LOG_2_PI  # log-density of the mean 0 of a policy whose log-std is 0, A = 1


def test_target_of_reevaluation() -> None:
    policy, critic = gaussian(0.0, 1 + UNIT), bowls((18.0, 0.0, 0.0), (19.0, 0.0, 0.0))  # log pi = -1 at its mean
    s = state_of(policy, policy, critic)
    for terminal, wanted in ((0.0, 19.018), (1.0, 1.0)):
        found = UPDATE(SACReevaluation(), s, batch_of(terminal=terminal), jnp.zeros((1, 1)))[1]
        np.testing.assert_allclose(found["target_value_mean"], wanted, atol=1e-9)
        np.testing.assert_allclose(found["entropy"], 1, atol=1e-9)


@dataclass(frozen=True)
class Table:
    """Q_j of two states, whatever the action; parameters [critics, 2]."""

    def apply(self, params: jax.Array, obs: jax.Array, action: jax.Array) -> jax.Array:
        return params @ obs.T


def test_reevaluation_finds_the_soft_value() -> None:
    """Of a chain 0 -> 1 -> 1 with rewards 1 and 2, of which nothing ends: closed form with the noise's entropy."""
    algorithm, rows = SACReevaluation(discount=0.8, target_update_rate=0.1), 64
    policy = gaussian(0.3, -0.5)
    noise = jax.random.normal(KEY, (2 * rows, 1))
    obs = jnp.repeat(jnp.eye(2), rows, 0)
    following = jnp.broadcast_to(jnp.eye(2)[1], obs.shape)
    batch = Batch(obs, noise, 1 + obs[:, 1], following, jnp.zeros(2 * rows), {})
    s = state_of(policy, policy, model(Table(), np.zeros((2, 2)), np.ones((2, 2)), 0.05))
    s = jax.jit(lambda s: jax.lax.fori_loop(0, 3000, lambda _, s: algorithm.update(s, batch, noise, True)[0], s))(s)
    mean, log_std = policy(following)
    _, log_prob = sample_tanh_gaussian(mean, log_std, noise)
    first, second = (ALPHA * log_prob.reshape(2, rows).mean(1)).tolist()
    q_1 = (2 - 0.8 * second) / (1 - 0.8)
    wanted = [1 + 0.8 * (q_1 - first), q_1]
    np.testing.assert_allclose(s.critic.params, [wanted, wanted], rtol=1e-3)


@cache
def reevaluated() -> tuple[Models, State, Models]:
    """What CQL left, the state of a re-evaluation after two updates, and what it hands on."""
    cql = CQL(num_sampled_actions=2, **TINY)
    spec, phase = Spec(2, 1), SACReevaluation(**TINY)

    def run() -> tuple[Models, State, Models]:
        given = cql.export(cql.init({}, spec, KEY)) | {"updates": jnp.int32(7)}
        s = phase.init(given, spec, jax.random.key(1))
        for _ in range(2):
            s = phase.update(s, batch_of(4), phase.draw(KEY, spec), True)[0]
        s = phase.scored(s, jnp.float32(50))
        return given, s, phase.export(s)

    return jax.jit(run)()


def test_reevaluation_keeps_the_policy_and_hands_on_lagging_targets() -> None:
    given, s, models = reevaluated()
    assert equal(models["actor"].params, given["actor"].params) and models["actor"].opt_state == ()
    assert equal(models["reference"].params, given["actor"].params) and models["reference_score"] == 50
    np.testing.assert_allclose(jnp.exp(models["temperature"]()), ALPHA)
    assert int(s.updates) == 2 and int(models["updates"]) == 0  # whatever CQL had counted
    assert models["critic"].net != given["critic"].net and models["critic"].net.layer_norm
    lag = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), models["critic"].target, models["critic"].params)
    assert max(jax.tree.leaves(lag)) > 1e-4
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(SACReevaluation(**TINY).init(given, Spec(2, 1), KEY)))


# -- alignment


def targets(
    alpha: float, log_densities: tuple[float, float], values: tuple[tuple[float, float], ...]
) -> tuple[float, float]:
    """v and y of an anchor at action 0 and another at 0.5, from log pi_off and each critic's values at both."""
    critic = bowls(*((at_anchor, 2 * (at_other - at_anchor), 0.0) for at_anchor, at_other in values))
    s = state_of(gaussian(0.0, 0.0), gaussian(0.0, 0.0), critic, alpha)
    fixed = lambda action, mean, log_std: jnp.where(action == 0, *log_densities)  # noqa: E731
    with patch("segue.methods.o2sac.data_log_density", fixed):
        _, anchor, y = SACAlignment().targets(s, jnp.zeros((1, 2)), jnp.full((1, 1), 0.5))
    return float(anchor[0]), float(y[0])


@pytest.mark.parametrize(
    ("alpha", "log_density", "value", "wanted"),
    [(0.2, -4.0, 12.0, 9.0), (0.2, -4.0, 8.0, 8.0), (0.5, -4.0, 12.0, 7.5), (0.2, 2.0, 12.0, 10.2)],
)
def test_targets_of_alignment(alpha: float, log_density: float, value: float, wanted: float) -> None:
    found = targets(alpha, (1.0, log_density), ((10.0, value), (10.0, value + 1)))
    np.testing.assert_allclose(found, [10.0, wanted], atol=1e-9)
    found = targets(alpha, (1.0, log_density), ((10.0, value), (11.0, value)))  # one anchor for both critics
    np.testing.assert_allclose(found, [10.0, wanted], atol=1e-9)


def test_the_ceiling_follows_the_preference_and_never_lifts_a_value() -> None:
    reference, actions = gaussian(-0.2, np.log(0.3)), jnp.linspace(-0.95, 0.95, 41)[:, None]
    obs = jnp.zeros((41, 2))
    at_best = float(jnp.tanh(-0.2))
    s = state_of(reference, reference, bowls((10.0, 0.0, 1e4), centre=at_best))  # everything is over-valued
    ceiling = SACAlignment().targets(s, obs, actions)[2] - ALPHA * density(actions, reference)
    np.testing.assert_allclose(ceiling, ceiling[0], atol=1e-9)
    for slope, bend in ((10.0, 0.0), (-3.0, 2.0), (0.5, -7.0)):
        s = state_of(reference, reference, bowls((10.0, slope, bend), (9.0, -slope, bend), centre=at_best))
        assert (SACAlignment().targets(s, obs, actions)[2] <= s.critic.slow(obs, actions).min(0)).all()


def test_what_is_not_over_valued_stays() -> None:
    """Critics that fall faster than the preference are their own targets: no gradient."""
    reference = gaussian(0.0, np.log(0.3))  # 0.2 (x / 0.3)^2 / 2 = 1.1 x^2 and a little more, below 100 x^2
    s = state_of(reference, reference, bowls((10.0, 0.0, -100.0), (10.0, 0.0, -100.0)))
    draws = AlignmentDraws(*jax.random.normal(KEY, (2, 8, 1)))
    after, metrics = UPDATE(SACAlignment(), s, batch_of(8), draws)
    assert metrics["critic_loss"] == 0 and equal(after.critic.params, s.critic.params)
    assert not equal(after.actor.params, s.actor.params)


def test_alignment_hands_on() -> None:
    """Frozen targets until the end, where they become the critics; the reference passes through."""
    _, _, models = reevaluated()
    phase, spec = SACAlignment(**TINY), Spec(2, 1)

    def run(models: Models) -> tuple[State, State, Models]:
        before = phase.init(models, spec, KEY)
        s = before
        for _ in range(2):
            s = phase.update(s, batch_of(4), phase.draw(KEY, spec), True)[0]
        s = phase.scored(s, jnp.float32(90))  # of the actor; nothing to the reference
        return before, s, phase.export(s)

    before, s, after = jax.jit(run)(models)
    assert equal(before.critic.target, s.critic.target) and not equal(s.critic.params, s.critic.target)
    assert equal(after["critic"].target, s.critic.params)
    assert equal(before.critic.opt_state, models["critic"].opt_state)  # never reset
    assert equal(after["reference"].params, models["reference"].params) and after["reference_score"] == 50
    assert not equal(after["actor"].params, models["actor"].params)
    assert equal(after["temperature"].params, models["temperature"].params)
    assert int(after["updates"]) == 2


def test_the_steps_of_alignment_are_each_against_the_other_as_it_was() -> None:
    """Neither network's step sees the other's samples: no gradient crosses."""
    reference = gaussian(0.0, np.log(0.3))
    s = state_of(gaussian(0.1, -1.0), reference, bowls((5.0, 1.0, 0.5), (5.0, 2.0, -0.5)))
    noise = jax.random.normal(KEY, (3, 8, 1))
    first, _ = UPDATE(SACAlignment(), s, batch_of(8), AlignmentDraws(noise[0], noise[1]))
    other_actor, _ = UPDATE(SACAlignment(), s, batch_of(8), AlignmentDraws(noise[0], noise[2]))
    other_critic, _ = UPDATE(SACAlignment(), s, batch_of(8), AlignmentDraws(noise[2], noise[1]))
    assert equal(first.critic, other_actor.critic) and not equal(first.actor.opt_state, other_actor.actor.opt_state)
    assert equal(first.actor, other_critic.actor) and not equal(first.critic.opt_state, other_critic.critic.opt_state)
    assert equal(first.reference, s.reference)


def test_alignment_toy() -> None:
    """Q = 50 + 10 a is pushed down to pi_off's preference above a_dot = -0.2, and kept below it (7.3, 20)."""
    with jax.enable_x64(False):
        sizes: dict[str, Any] = {"hidden_sizes": (32, 32), "critic_hidden_sizes": (32, 32), "batch_size": 64}
        phase, spec = SACAlignment(critic_learning_rate=1e-3, **sizes), Spec(1, 1)
        fitting = SACReevaluation(critic_learning_rate=3e-3, **sizes)
        log_std, mean = np.log(0.3), np.arctanh(-0.2)
        offsets = jnp.asarray([0.0, 0.1, 0.2, 0.4, 0.6, -0.1])[:, None]

        def batch(key: jax.Array) -> Batch:
            obs, action = jax.random.uniform(key, (2, 64, 1), minval=-1.0)
            return Batch(obs, action, 50 + 10 * action[:, 0], obs, jnp.ones(64), {})

        def with_last_bias(model: Model, bias: Any) -> Model:
            """Only the bias is left of a policy's last layer; a critic keeps its kernel."""
            policy = isinstance(model.params, dict)
            trees = (model.params,) if policy else model.params
            lasts = [{"kernel": (not policy) * p["layers_2"]["kernel"], "bias": jnp.asarray(bias)} for p in trees]
            changed = tuple(p | {"layers_2": last} for p, last in zip(trees, lasts, strict=True))
            return replace(model, params=changed[0] if policy else changed)

        def run(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            s = fitting.init({}, spec, key)
            actor = with_last_bias(s.actor, [mean, log_std + 1.0])
            s = replace(s, critic=with_last_bias(s.critic, [50.0]))

            def fit(i: jax.Array, s: State) -> State:
                return fitting.update(s, batch(jax.random.fold_in(key, i)), jnp.zeros((64, 1)), True)[0]

            critic = jax.lax.fori_loop(0, 800, fit, s).critic.settled()
            s = phase.init({"actor": actor, "critic": critic}, spec, key)

            def align(i: jax.Array, s: State) -> State:
                keys = jax.random.split(jax.random.fold_in(key, -i), 2)
                return phase.update(s, batch(keys[0]), phase.draw(keys[1], spec), True)[0]

            s = jax.lax.fori_loop(0, 3000, align, s)
            obs = jnp.zeros_like(offsets)
            values = jnp.stack([critic(obs, offsets - 0.2)[0], s.critic(obs, offsets - 0.2)[0]])
            return values, *s.actor(obs[:1])

        (before, after), mean_on, log_std_on = jax.jit(run)(KEY)
    policy = gaussian(mean, log_std)
    ceilings = ALPHA * (density(np.asarray(offsets) - 0.2, policy) - density(-0.2 * np.ones(1), policy))
    np.testing.assert_allclose(ceilings[1:5], [-0.018, -0.054, -0.183, -0.409], atol=1e-3)
    assert abs(before[0] - 48) < 0.3 and abs(after[0] / before[0] - 1) < 0.01
    assert (before[1:5] - before[0] > 0.5).all()
    np.testing.assert_allclose((after - after[0])[1:5], ceilings[1:5], atol=0.05)
    assert abs(after[5] - after[0] - (before[5] - before[0])) < 0.1
    assert abs(float(mean_on[0, 0]) - mean) < 0.3 and float(log_std_on[0, 0]) <= log_std


# -- constrained fine-tuning


def test_the_penalty_of_the_reference_itself_is_zero() -> None:
    policy, obs, noise = gaussian(0.5, -0.7), jnp.zeros((100_000, 2)), jax.random.normal(KEY, (100_000, 1))

    def penalty(params: jax.Array) -> jax.Array:
        return ConstrainedSAC().sample(replace(policy, params=params), policy, obs, noise)[2]

    np.testing.assert_allclose(penalty(policy.params), 0, atol=1e-9)
    tangent = jax.jvp(penalty, (policy.params,), (jnp.asarray([[1.0], [0.0]]),))[1]
    assert jnp.abs(tangent).mean() > 0.5 and abs(tangent.mean()) < 0.03  # of one sample, of all


def test_at_the_bounds_only_the_exact_density_finds_no_penalty() -> None:
    policy, obs, noise = gaussian(4.0, -1.0, 3), jnp.zeros((100_000, 2)), jax.random.normal(KEY, (100_000, 3))
    phases = ConstrainedSAC(), ConstrainedSAC(exact_reference_density=True)
    found = [phase.sample(policy, policy, obs, noise)[2] for phase in phases]
    assert -0.013 < found[0].mean() < -0.007 and -8 < found[0].min() < -3
    np.testing.assert_allclose(found[1], 0, atol=1e-9)


@pytest.mark.parametrize(("log_density", "wanted"), [(-3.0, 17.038), (-80.0, -29.492)])
def test_target_of_fine_tuning(log_density: float, wanted: float) -> None:
    """Floored at -50; a terminal state's penalty does not count."""
    actor = gaussian(0.0, 1 + UNIT)
    reference = gaussian(np.sqrt(2 * (UNIT - log_density)), 0.0)
    np.testing.assert_allclose(density(np.zeros(1), reference), log_density, atol=1e-9)
    s = constrained_state(actor, reference, bowls((18.0, 0.0, 0.0), (19.0, 0.0, 0.0)))
    draws = ConstrainedDraws(*jnp.zeros((2, 1, 1)))
    for terminal, value in ((0.0, wanted), (1.0, 1.0)):
        found = UPDATE(ConstrainedSAC(), s, batch_of(terminal=terminal), draws)[1]
        np.testing.assert_allclose(found["target_value_mean"], value, atol=1e-6)
    np.testing.assert_allclose(found["penalty"], -1 - max(log_density, -50), atol=1e-6)


def test_the_gradient_runs_through_the_references_density() -> None:
    """By finite differences; where the floor rules, only the policy's own density is left."""
    actor, near, far = gaussian(0.3, -0.5), gaussian(-0.4, -0.3), gaussian(-1.0, -3.5)
    obs, noise = jnp.zeros((3, 2)), jnp.asarray([[-0.5], [0.1], [0.8]])

    def penalty(mean: jax.Array, reference: Model) -> jax.Array:
        params = actor.params.at[0, 0].set(mean)
        return ConstrainedSAC().sample(replace(actor, params=params), reference, obs, noise)[2].sum()

    def own(mean: jax.Array) -> jax.Array:
        return sample_tanh_gaussian(jnp.full((3, 1), mean), jnp.full((3, 1), -0.5), noise)[1].sum()

    at, step = jnp.asarray(0.3), 1e-6
    difference = (penalty(at + step, near) - penalty(at - step, near)) / (2 * step)
    slope, own_slope = jax.grad(penalty)(at, near), jax.grad(own)(at)
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
    assert abs(float(slope - own_slope)) > 1
    assert (ConstrainedSAC().sample(actor, far, obs, noise)[2] > 45).all()
    np.testing.assert_allclose(jax.grad(penalty)(at, far), own_slope, rtol=1e-12)


def test_slack_and_first_step_of_the_multiplier() -> None:
    actor = gaussian(0.0, 0.0)
    c = CONSTRAINT.init({}, actor, KEY)
    assert c.multiplier == 1
    np.testing.assert_allclose(CONSTRAINT.slack(c, jnp.zeros(4)), 0.0375, atol=1e-12)
    np.testing.assert_allclose(CONSTRAINT.slack(c, jnp.asarray([0.0, 0.25])), -0.025, atol=1e-12)
    for divergence, step in ((jnp.zeros(4), -5e-5), (jnp.asarray([0.0, 0.25]), 5e-5)):
        after, _ = CONSTRAINT.update(c, divergence)
        np.testing.assert_allclose(after.log_multiplier(), step, rtol=1e-4)
        again, _ = CONSTRAINT.update(after, divergence)  # of the same environment step
        assert equal(again, after)


def test_a_satisfied_constraint_lets_go_slowly() -> None:
    actor = gaussian(0.0, 0.0)

    def step(_: Any, c: Any) -> Any:
        return CONSTRAINT.update(CONSTRAINT.begin_step(c, actor, jnp.int32(0)), jnp.zeros(4))[0]

    c = jax.jit(lambda c: jax.lax.fori_loop(0, 1000, step, c))(CONSTRAINT.init({}, actor, KEY))
    assert abs(float(c.log_multiplier()) + 0.0495) < 2e-4 and c.multiplier > 0


def test_the_threshold_grows_and_a_guard_tightens_it() -> None:
    actor = gaussian(0.0, 0.0)
    c = CONSTRAINT.init({}, actor, KEY)
    steps = [CONSTRAINT.begin_step(c, actor, jnp.int32(t)) for t in (0, 50_000, 100_000, 200_000)]
    np.testing.assert_allclose([CONSTRAINT.threshold(c) for c in steps], [0.125, 1.0625, 2.0, 2.0], atol=1e-12)
    s = ConstrainedState(actor, bowls((1.0, 0.0, 0.0)), model(Scalar(0.0), 0.0), steps[1], jnp.int32(0))
    tightened = ConstrainedSAC().tightened(s).constraint
    np.testing.assert_allclose(CONSTRAINT.threshold(tightened), 1.0625 / 2)
    np.testing.assert_allclose(tightened.multiplier, 2)


def test_ten_updates_an_environment_step_move_the_multiplier_once() -> None:
    phase = ConstrainedSAC()
    actor = gaussian(0.2, -0.5)
    s = constrained_state(actor, gaussian(0.0, -0.5), bowls((1.0, 1.0, 0.0), (1.0, 2.0, 0.0)))
    multipliers, temperatures = [float(s.constraint.log_multiplier())], [float(s.temperature())]
    for env_step in (1, 2):
        s = phase.begin_step(s, jnp.int32(env_step))
        for i in range(10):
            noise = jax.random.normal(jax.random.key(i), (2, 1, 1))
            s, metrics = UPDATE(phase, s, batch_of(), ConstrainedDraws(*noise))
            multipliers.append(float(s.constraint.log_multiplier()))
            temperatures.append(float(s.temperature()))
    assert (np.diff(multipliers) != 0).tolist() == 2 * [True, *9 * [False]]
    assert (np.diff(temperatures) != 0).all()
    wanted = "critic_1_mean penalty multiplier threshold reference_score temperature entropy"
    assert set(wanted.split()) <= set(metrics)


def test_first_step_of_the_temperature() -> None:
    """log pi = -1 in three dimensions: the gradient of log alpha is 4."""
    actor = gaussian(0.0, 1 / 3 + UNIT, 3)
    s = constrained_state(actor, actor, bowls((1.0, 0.0, 0.0)))
    draws = ConstrainedDraws(*jnp.zeros((2, 1, 3)))
    after, metrics = UPDATE(ConstrainedSAC(), s, batch_of(dimensions=3), draws)
    np.testing.assert_allclose(metrics["entropy"], 1, atol=1e-9)
    np.testing.assert_allclose(after.temperature.opt_state[0].mu / 0.1, 4, atol=1e-9)
    np.testing.assert_allclose(after.temperature() - s.temperature(), -3e-4, rtol=1e-4)


def moved_by(actor: Model, step: float) -> Model:
    return replace(actor, params=actor.params + step)


@pytest.mark.parametrize(
    ("on", "wanted"),
    [(48.0, [0, 0, 0, 3, 3, 5]), (52.0, [0, 1, 1, 1, 1, 5])],  # number of the policy that is the reference
)
def test_the_reference_is_the_best_so_far(on: float, wanted: list[int]) -> None:
    """Strictly: pi_off scores 50, pi_on `on`, later policies 49, 51, 51 and 60."""
    off, critic = gaussian(0.0, 0.0), bowls((1.0, 0.0, 0.0))
    before = state_of(off, off, critic)
    before = SACReevaluation().scored(before, jnp.float32(50))
    found = [float(before.reference.policy.params[0, 0])]
    models = SACAlignment().export(before) | {"actor": moved_by(off, 1.0)}
    phase = ConstrainedSAC()
    s = phase.init(models, Spec(2, 1), KEY)
    for score in (on, 49.0, 51.0, 51.0, 60.0):
        s = phase.scored(s, jnp.float32(score))
        found.append(float(s.constraint.reference.policy.params[0, 0]))
        s = replace(s, actor=moved_by(s.actor, 1.0))  # what it learns does not reach the reference
        assert float(s.constraint.reference.policy.params[0, 0]) == found[-1]
    assert found == wanted
    assert s.constraint.reference.score == 60
    assert equal(phase.export(s)["reference"].params, s.constraint.reference.policy.params)


def test_the_reference_at_intervals() -> None:
    rule = ReferenceRule("fixed_interval", 3)
    phase = ConstrainedSAC(Constraint(threshold_start=0.125, threshold_end=0.5, rule=rule))
    actor = gaussian(0.0, 0.0)
    s = constrained_state(actor, actor, bowls((1.0, 0.0, 0.0)), constraint=phase.constraint)
    found = []
    for env_step in range(1, 9):  # the actor after the updates of environment step t is t
        s = phase.scored(phase.begin_step(s, jnp.int32(env_step)), jnp.float32(1e6 + env_step))
        found.append(float(s.constraint.reference.policy.params[0, 0]))
        s = replace(s, actor=moved_by(actor, float(env_step)))
    assert found == [0, 0, 0, 3, 3, 3, 6, 6]


def test_fine_tuning_alone_continues_what_there_is() -> None:
    """From CQL: actor, critics without layer norm and temperature go on, the reference is the policy as it was."""
    given = reevaluated()[0]
    phase, spec = ConstrainedSAC(**TINY), Spec(2, 1)

    def run(models: Models) -> tuple[ConstrainedState, ConstrainedState, Metrics]:
        s = phase.init(models, spec, KEY)
        return s, *phase.update(s, batch_of(4), phase.draw(KEY, spec), True)

    s, after, metrics = jax.jit(run)(given)
    for role in ("actor", "critic", "temperature"):
        assert getattr(s, role).net == given[role].net and equal(getattr(s, role).params, given[role].params)
    assert equal(s.constraint.reference.policy.params, given["actor"].params)
    assert abs(float(metrics["penalty"])) < 1e-9
    assert equal(after.constraint.reference, s.constraint.reference)
    again = phase.init(phase.export(after), spec, KEY)  # and a phase of its own kind goes on with its multiplier
    assert equal(again.constraint.log_multiplier.params, after.constraint.log_multiplier.params)
    assert s.critic.params[0].keys() == given["critic"].params[0].keys() and int(after.updates) == 8


def test_the_phases_compose() -> None:
    offline = Phase("cql", CQL(), 1)
    phases = (Phase("reevaluation", SACReevaluation(), 1), Phase("alignment", SACAlignment(), 1))
    online = Phase("online", ConstrainedSAC(), online=Online(1))
    check((offline, *phases, online), set(), None)
    check((offline, online), set(), None)
    with pytest.raises(UserError, match="needs actor and critic"):
        check((phases[1], online), set(), None)
    with pytest.raises(UserError, match="deterministic"):
        check((phases[0],), {"actor"}, "deterministic")
