"""ACA's pieces by hand, what its switch keeps, and its place after other methods."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segue
from segue.core.learn import make_keys, models_after
from segue.core.model import Adam, Model
from segue.core.phases import Phase, check
from segue.core.types import Models, Spec
from segue.errors import UserError
from segue.experiment import form_after, load_models
from segue.methods import aca, sac_ml
from segue.methods.aca import ACA, clipped_preference, reconstructed
from segue.methods.sac import SAC
from segue.methods.sac import Draws as SACDraws
from segue.methods.sac_ml import SACML, StateBaseline, baseline_net, temperature_step, values
from segue.nets.gaussian import SigmoidGaussianPolicy, point_log_density, point_of, sample_point
from segue.recipes import METHODS, preset_recipe
from segue.recipes.aca import ACARecipe
from tests.made_up import assert_close, rows_of
from tests.small import ENVIRONMENT, pendulum_data
from tests.test_every_method import SCARCE, small

SPEC, ROWS = Spec(3, 2), 8
TINY: dict[str, Any] = {"batch_size": ROWS, "hidden_sizes": (6,)}
UPDATE = jax.jit(lambda algorithm, *rest: algorithm.update(*rest, True), static_argnums=0)
LOG_ROOT = 0.5 * math.log(2 * math.pi)


def switched(algorithm: ACA, seed: int = 0) -> aca.State:
    """Its state after the switch from a fresh policy and baseline."""
    return algorithm.init({}, SPEC, jax.random.key(seed))


def test_preferences_are_bounded_below_softly() -> None:
    gaussian = jnp.zeros(2), jnp.zeros(2)
    best, bound = -2 * LOG_ROOT, -2 * LOG_ROOT - 2**2  # both dimensions two standard deviations away: 2 x 2^2 / 2
    found = [float(clipped_preference(jnp.full(2, x), gaussian, 2.0, False)) for x in (0.0, 2.0, 9.0)]
    np.testing.assert_allclose(found, [best + math.log1p(math.exp(-4)), bound + math.log(2), bound], atol=1e-5)


def test_the_bound_of_a_squashed_policy_is_the_lesser_of_both_sides() -> None:
    """The tanh's slope is part of it: on the side of the mean its density is higher."""
    gaussian = jnp.array([0.5]), jnp.array([math.log(0.5)])
    sides = [
        math.log(2) - LOG_ROOT - 0.5 * 3**2 - math.log(1 - math.tanh(x) ** 2) for x in (0.5 + 3 * 0.5, 0.5 - 3 * 0.5)
    ]
    far = float(clipped_preference(jnp.array([-30.0]), gaussian, 3.0, True))
    assert sides[1] < sides[0] and far == pytest.approx(sides[1], abs=1e-5)


def test_densities_of_an_unsquashed_policy_are_of_the_clipped_action() -> None:
    point, action, log_prob = sample_point((jnp.array([0.5]), jnp.array([0.0])), jnp.array([3.0]), False)
    assert point == action == 1 and float(log_prob) == pytest.approx(-LOG_ROOT - 0.5 * 0.5**2)
    gaussian = jnp.array([0.5]), jnp.array([-1.0])
    _, action, log_prob = sample_point(gaussian, jnp.array([0.7]), True)
    again = point_log_density(point_of(action, True), gaussian, True)
    assert float(again) == pytest.approx(float(log_prob), abs=1e-5)
    assert np.isfinite(point_of(jnp.array([-1.0, 1.0]), True)).all()


def test_the_sigmoid_keeps_the_log_std_in_its_range() -> None:
    net = SigmoidGaussianPolicy(*SPEC, (6,))
    params = net.init(jax.random.key(0))
    for parameter, want in ((0.0, -2.5), (-99.0, -5.0), (99.0, 0.0)):
        _, log_std = net.apply(params | {"log_std_parameter": jnp.full(2, parameter)}, jnp.zeros((4, 3)))
        np.testing.assert_allclose(log_std, want)


def test_new_critics_are_the_baseline_at_every_action() -> None:
    baseline = Model.create(baseline_net(SPEC, (6,)), Adam(1e-3), jax.random.key(1))
    critic, rows = reconstructed(baseline, 2, Adam(1e-3)), rows_of(0)
    z = values(baseline, jnp.asarray(rows.obs))
    for action in (rows.action, -rows.action):
        np.testing.assert_allclose(critic(rows.obs, action), z, atol=1e-6)
        np.testing.assert_allclose(critic.slow(rows.obs, action), z, atol=1e-6)
    fresh = Model.create(critic.net, Adam(1e-3), jax.random.key(2))  # whose action weights are not 0 (trap 12)
    assert np.abs(fresh(rows.obs, rows.action) - fresh(rows.obs, -rows.action)).max() > 0.01


@pytest.mark.parametrize(
    ("preset", "updates", "floor"),
    [
        ("hopper-medium-v2", 20_000, 0.5),
        ("hopper-random-v2", 10_000, 0.0),
        ("hopper-expert-v2", 0, 1.0),
        ("antmaze-umaze-v2", 100_000, 0.5),
    ],
)
def test_the_weight_falls_to_its_floor(preset: str, updates: int, floor: float) -> None:
    recipe: Any = preset_recipe("aca", preset)
    algorithm = replace(recipe.algorithm, **TINY)
    start = switched(algorithm)
    weights = [algorithm.omega(replace(start, aligned_updates=jnp.int32(n))) for n in (0, updates // 2, updates, 10**6)]
    np.testing.assert_allclose(weights, [1.0, (1 + floor) / 2, floor, floor], atol=1e-6)


def test_the_temperature_holds_the_entropy_at_minus_the_dimensions() -> None:
    """Log pi at rest is +A (trap 12): narrower than that, alpha grows; wider, it falls."""
    start = switched(ACA(squashed_policy=False, **TINY))
    obs, noise = jnp.zeros((ROWS, 3)), jnp.zeros((ROWS, 2))
    for parameter, sign in ((99.0, -1), (-99.0, 1)):  # log pi -1.84 and 8.2 at the mean; 2 is between
        params = start.actor.params | {"log_std_parameter": jnp.full(2, parameter)}
        after, _ = temperature_step(start.temperature, replace(start.actor, params=params), obs, noise, -2.0)
        assert np.sign(float(after() - start.temperature())) == sign
        log_prob = -2 * LOG_ROOT - (0.0 if parameter > 0 else -10.0)  # at the mean, of std 1 and e^-5
        assert float(after.opt_state[0].mu) == pytest.approx(-0.1 * (log_prob - 2), rel=1e-5)  # SAC's gradient


def test_the_actor_is_drawn_to_the_preferences() -> None:
    """By omega alone: the new critics do not tell actions apart. With omega 0 nothing moves it."""
    for weight, moves in ((1.0, True), (0.0, False)):
        algorithm = ACA(
            alignment_weight=weight, alignment_weight_floor=weight, initial_temperature=1e-30,
            critic_learning_rate=0.0, **TINY,
        )  # fmt: skip
        start = switched(algorithm)
        other = switched(algorithm, 1).actor  # not pi_0
        after, _ = UPDATE(algorithm, replace(start, actor=other), rows_of(0), algorithm.draw(jax.random.key(2), SPEC))
        distance = max(float(np.abs(m).max()) for m in jax.tree.leaves(after.actor.opt_state[0].mu))
        assert (distance > 1e-5) == moves


def test_without_a_weight_it_is_sac(float64: None) -> None:
    """To be matched: no clip of the gradient, SAC's start from the new critics, and a temperature that stands still:
    ACA steps it before the critics, by actions of its own, SAC after them."""
    shared: dict[str, Any] = TINY | {"temperature_learning_rate": 0.0, "actor_learning_rate": 1e-2}
    algorithm = ACA(alignment_weight=0.0, alignment_weight_floor=0.0, actor_gradient_clip=None, **shared)
    host, s = SAC(**shared), switched(algorithm)
    of_host = host.init({"actor": s.actor, "critic": s.critic, "temperature": s.temperature}, SPEC, jax.random.key(9))
    for number in range(10):
        draws = algorithm.draw(jax.random.key(number), SPEC)
        s, _ = UPDATE(algorithm, s, rows_of(0), draws)
        of_host, _ = UPDATE(host, of_host, rows_of(0), SACDraws(draws.next_policy_noise, draws.policy_noise))
    for mine, hosts in ((s.actor, of_host.actor), (s.critic, of_host.critic)):
        assert_close((mine.params, mine.target), (hosts.params, hosts.target), 1e-6)


def test_the_switch_begins_anew_and_a_continued_run_goes_on() -> None:
    offline, algorithm = SACML(initial_temperature=0.3, **TINY), ACA(**TINY)
    trained = offline.init({}, SPEC, jax.random.key(0))
    trained, _ = UPDATE(offline, trained, rows_of(0), offline.draw(jax.random.key(1), SPEC))
    models: Models = offline.export(trained)
    s = algorithm.init(models, SPEC, jax.random.key(2))
    assert float(s.temperature()) == 0 and int(s.updates) == 1 and int(s.aligned_updates) == 0
    assert_close(s.aligned_policy.params, trained.actor.params, 0)
    assert not any(np.any(x) for x in jax.tree.leaves((s.actor.opt_state, s.critic.opt_state)))
    after, _ = UPDATE(algorithm, s, rows_of(0), algorithm.draw(jax.random.key(3), SPEC))
    models |= algorithm.export(after)
    assert_close(algorithm.init(models, SPEC, jax.random.key(4)), after, 0)
    fit = StateBaseline(**TINY)  # as after a phase of another method
    models |= fit.export(fit.init(models, SPEC, jax.random.key(5)))
    again = algorithm.init(models, SPEC, jax.random.key(6))
    assert int(again.aligned_updates) == 0 and float(again.temperature()) == 0
    assert_close(again.aligned_policy.params, after.actor.params, 0)


@pytest.mark.parametrize("squashed", [True, False])
def test_another_method_gets_whole_values(squashed: bool) -> None:
    algorithm, rows = ACA(squashed_policy=squashed, **TINY), rows_of(0)
    s = replace(switched(algorithm), aligned_updates=jnp.int32(10_000))
    critic: Model = algorithm.export(s)["critic"]
    policy, point = s.aligned_policy(rows.obs), point_of(jnp.asarray(rows.action), squashed)
    preference = 0.75 * clipped_preference(point, policy, algorithm.density_floor_deviations, squashed)
    want = s.critic(rows.obs, rows.action) + preference
    np.testing.assert_allclose(critic(rows.obs, rows.action), want, atol=1e-5)
    np.testing.assert_allclose(critic.slow(rows.obs, rows.action), want, atol=1e-5)
    np.testing.assert_allclose(critic.net.first(critic.params, rows.obs, rows.action), want[0], atol=1e-5)
    pair = jnp.stack([-rows.action, rows.action], 1)
    np.testing.assert_allclose(critic.net.of_several(critic.params, rows.obs, pair)[..., 1], want, atol=1e-5)


def test_a_policy_that_stands_still_gets_the_same_baseline() -> None:
    """As SAC+ML's step from the same policy, temperature and noise."""
    offline = SACML(temperature_learning_rate=0.0, baseline_learning_rate=1e-2, **TINY)
    fit = StateBaseline(learning_rate=1e-2, **TINY)
    s = offline.init({}, SPEC, jax.random.key(0))
    noise = offline.draw(jax.random.key(1), SPEC)
    of_fit = replace(fit.init({"actor": s.actor}, SPEC, jax.random.key(2)), baseline=s.baseline)
    after, _ = UPDATE(offline, s, rows_of(0), noise)
    alone, _ = UPDATE(fit, of_fit, rows_of(0), noise.baseline_next_policy_noise)
    assert_close(alone.baseline.params, after.baseline.params, 1e-7)
    assert_close(alone.actor.params, s.actor.params, 0)


def test_a_baseline_and_the_densities_are_the_values() -> None:
    """Every row ends with reward 2: Z + log pi(a) is 2 on average over the actions."""
    fit = StateBaseline(learning_rate=1e-2, **TINY)
    s = fit.init({}, SPEC, jax.random.key(0))
    rows = rows_of(0)._replace(obs=jnp.zeros((ROWS, 3)), reward=jnp.full(ROWS, 2.0), terminal=jnp.ones(ROWS))
    for number in range(1000):
        s, _ = UPDATE(fit, s, rows, fit.draw(jax.random.key(number), SPEC))
    density = sac_ml.log_density(s.actor, jnp.asarray(rows.obs), jnp.asarray(rows.action))
    np.testing.assert_allclose((values(s.baseline, jnp.asarray(rows.obs)) + density).mean(-1), 2.0, atol=0.02)


def test_presets() -> None:
    """Settings of the specification, where they are not the defaults."""
    medium, replay, expert, maze = (
        preset_recipe("aca", f"{name}-v2")
        for name in ("walker2d-medium", "hopper-medium-replay", "halfcheetah-medium-expert", "antmaze-large-play")
    )
    assert medium == ACARecipe() and (medium.replay, medium.online_phase(1).mix) == ("none", "online")
    schedule = replay.online_phase(10).online
    assert schedule is not None and (schedule.replay, schedule.part_trajectories) == ("part", 50)
    found: Any = expert.online_phase(1).algorithm
    assert (found.density_floor_deviations, found.alignment_weight_floor, expert.replay) == (15.0, 1.0, "part")
    offline: Any = maze.offline_phases(1)[0].algorithm
    assert (offline.squashed_policy, offline.target_entropy_per_dimension, maze.reward_bias) == (False, -0.5, -1.0)
    assert len(ACARecipe.presets) == 21 and set(ACARecipe.preset_updates.values()) == {500_000}


def test_what_it_does_with_policies_of_each_form() -> None:
    for before, names, squashed in (
        ("tanh_gaussian", ["baseline"], True),
        ("gaussian", ["baseline"], False),
        ("deterministic", ["clone", "baseline"], True),
        (None, ["clone", "baseline"], True),
    ):
        recipe: Any = ACARecipe().adapted(before)
        phases = recipe.handover_phases(before)
        assert [phase.name for phase in phases] == names and recipe.algorithm.squashed_policy == squashed
        assert recipe.online_phase(1).algorithm.policy_kind == ("tanh_gaussian" if squashed else "gaussian")
    with pytest.raises(UserError, match="clone it first"):
        ACARecipe(clone_updates=0).handover_phases(None)


@pytest.mark.parametrize("chain", ["iql aca o2sac", "td3_bc aca sac aca", "cql aca cql", "aca aca"])
def test_it_follows_and_is_followed(chain: str) -> None:
    """Without a compilation: states of every phase, from the models that the one before it hands on."""
    models, keys, before = Models(), make_keys((0,), 0), ""
    phases: tuple[Phase, ...] = ()
    for number, method in enumerate(chain.split()):
        recipe: Any = METHODS[method]()
        if number == 0:
            phases = recipe.offline_phases(4)
        else:
            recipe = recipe.adapted(form_after(phases, None))
            handover = recipe.handover_phases(form_after(phases, None)) if method != before else ()
            phases += (*handover, recipe.online_phase(16))
        before = method
    check(phases, set(), None)
    for phase in phases:
        models = models_after(phase, models, SPEC, keys)
    assert models["actor"].net.kind == form_after(phases, None)


@pytest.mark.slow
def test_after_cql_and_again(tmp_path: Path) -> None:
    """A baseline for CQL's policy, the switch; then the same run goes on."""
    quietly: dict[str, Any] = {"environment": ENVIRONMENT, "evaluation": SCARCE, "quiet": True}
    run = segue.train("cql", pendulum_data(), out=tmp_path / "cql", steps=4, settings=small("cql"), **quietly)
    settings = small("aca") | {"baseline_updates": 4}
    aligned = []
    for number, names in enumerate((["baseline", "online"], ["online"])):
        run = segue.finetune(run, out=tmp_path / str(number), steps=16, method="aca", settings=settings, **quietly)
        assert [phase["name"] for phase in run.summary["phases"]] == names
        aligned.append(int(load_models(run.folder)[0]["aligned_updates"][0]))
    steps = 16 - settings["warmup_steps"]
    assert aligned == [steps, 2 * steps]
