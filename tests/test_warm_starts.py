"""RLPD, WSRL and SUF: recipes of known losses. What their settings change, number by number and update by update."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segue
from segue.core.learn import Program, initial_state, learn, make_keys, one_update
from segue.core.phases import check
from segue.core.replay import Memory, Ring
from segue.core.types import Batch, Spec
from segue.errors import UserError
from segue.methods.iql import IQL
from segue.methods.sac import SAC, Draws
from segue.methods.td3 import TD3
from segue.recipes import METHODS, preset_recipe
from segue.recipes.suf import SUFRecipe
from segue.recipes.warm_starts import RLPDRecipe, WSRLRecipe
from segue.settings import check_values, flat, with_changes
from tests.small import ENVIRONMENT, pendulum_data
from tests.test_every_method import SCARCE

pytestmark = pytest.mark.usefixtures("float64")

SPEC = Spec(3, 2)
SMALL: dict[str, Any] = {"batch_size": 8, "hidden_sizes": (6,)}


def rows(n: int = 8) -> Batch:
    rng: Any = np.random.default_rng(0)
    return Batch(
        obs=rng.normal(size=(n, 3)),
        action=rng.uniform(-1, 1, (n, 2)),
        reward=rng.normal(size=n),
        next_obs=rng.normal(size=(n, 3)),
        terminal=(np.arange(n) % 4 == 3).astype(float),
        extras={},
    )


def updated(algorithm: SAC, state: Any, batch: Batch, draws: Draws, policy_step: bool = True) -> Any:
    return jax.jit(lambda s: algorithm.update(s, batch, draws, policy_step))(state)


def constant_targets(state: Any, values: tuple[float, ...]) -> Any:
    """Target critics whose values are the same everywhere."""
    target = tuple(
        jax.tree.map(jnp.zeros_like, params) | {"layers_1": {"kernel": jnp.zeros((6, 1)), "bias": jnp.full(1, value)}}
        for params, value in zip(state.critic.target, values, strict=True)
    )
    return replace(state, critic=replace(state.critic, target=target))


def loss_of(algorithm: SAC, values: tuple[float, ...], key: int) -> tuple[float, float, np.ndarray]:
    """The critics' loss with constant targets; what it is where y is made of each pair's minimum; the state's Q."""
    state = algorithm.init({}, SPEC, jax.random.key(0))
    state, batch, draws = constant_targets(state, values), rows(), algorithm.draw(jax.random.key(key), SPEC)
    q = np.asarray(state.critic(batch.obs, batch.action))
    return float(updated(algorithm, state, batch, draws)[1]["critic_loss"]), 0.0, q


def expected(q: np.ndarray, value: float, discount: float = 0.99) -> float:
    """The loss of critics with values `q` [critics, B] towards a constant next value."""
    batch = rows()
    y = batch.reward + discount * (1 - batch.terminal) * value
    return float(np.square(q - y).mean(-1).sum())


def test_the_target_asks_a_random_two_of_the_critics() -> None:
    """Of constant targets 0, 1, 2, 3 the minimum of two is 0 in half of the draws, 1 in a third, 2 in a sixth."""
    algorithm = SAC(num_critics=4, target_critics=2, backup_entropy=False, **SMALL)
    state = constant_targets(algorithm.init({}, SPEC, jax.random.key(0)), (0.0, 1.0, 2.0, 3.0))
    batch, q = rows(), np.asarray(state.critic(rows().obs, rows().action))
    step = jax.jit(lambda key: algorithm.update(state, batch, algorithm.draw(key, SPEC), False)[1]["critic_loss"])
    losses = np.asarray([step(jax.random.key(k)) for k in range(200)])
    shares = [np.isclose(losses, expected(q, value), rtol=1e-9).mean() for value in (0.0, 1.0, 2.0, 3.0)]
    assert sum(shares) == 1 and shares[3] == 0  # never a single critic
    np.testing.assert_allclose(shares[:3], [1 / 2, 1 / 3, 1 / 6], atol=0.1)
    again = SAC(num_critics=4, target_critics=2, repeat_target_critics=True, backup_entropy=False, **SMALL)
    step = jax.jit(lambda key: again.update(state, batch, again.draw(key, SPEC), False)[1]["critic_loss"])
    losses = np.asarray([step(jax.random.key(k)) for k in range(200)])
    share = np.isclose(losses, expected(q, 3.0), rtol=1e-9).mean()
    assert 0.01 < share < 0.14  # with replacement, both may be the last: 1 in 16


def test_a_target_of_more_critics_than_there_are_asks_all() -> None:
    algorithm = SAC(target_critics=5, backup_entropy=False, **SMALL)
    loss, _, q = loss_of(algorithm, (2.0, 1.0), 0)
    np.testing.assert_allclose(loss, expected(q, 1.0), rtol=1e-9)


@pytest.mark.parametrize("how", ["mean", "min"])
def test_the_actor_climbs_the_mean_or_the_minimum(how: Any) -> None:
    algorithm = SAC(num_critics=3, actor_value=how, critic_learning_rate=0.0, **SMALL)
    state, batch = algorithm.init({}, SPEC, jax.random.key(0)), rows()
    draws = algorithm.draw(jax.random.key(1), SPEC)
    metrics = updated(algorithm, state, batch, draws)[1]
    mean, log_std = state.actor(batch.obs)
    x = mean + np.exp(log_std) * draws.policy_noise
    q = np.asarray(state.critic(batch.obs, jnp.tanh(x)))
    gain = q.mean() if how == "mean" else q.min(0).mean()
    other = q.min(0).mean() if how == "mean" else q.mean()
    log_prob = -float(metrics["entropy"])
    np.testing.assert_allclose(metrics["actor_loss"], log_prob - gain, rtol=1e-9)
    assert abs(gain - other) > 1e-3


def test_entropy_is_backed_up_or_not() -> None:
    for backup in (True, False):
        algorithm = SAC(backup_entropy=backup, initial_temperature=0.5, **SMALL)
        state, batch = constant_targets(algorithm.init({}, SPEC, jax.random.key(0)), (1.0, 1.0)), rows()
        draws = algorithm.draw(jax.random.key(1), SPEC)
        mean, log_std = state.actor(batch.next_obs)
        x = np.asarray(mean + np.exp(log_std) * draws.next_policy_noise)
        log_prob = (-0.5 * np.square(draws.next_policy_noise) - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)
        log_prob -= np.log(1 - np.square(np.tanh(x))).sum(-1)
        y = batch.reward + 0.99 * (1 - batch.terminal) * (1.0 - 0.5 * np.asarray(log_prob) * backup)
        q = np.asarray(state.critic(batch.obs, batch.action))
        loss = updated(algorithm, state, batch, draws)[1]["critic_loss"]
        np.testing.assert_allclose(loss, np.square(q - y).mean(-1).sum(), rtol=1e-9)


def test_four_critic_steps_on_quarters_then_one_actor_step_on_the_whole() -> None:
    """WSRL's update, from SAC's own: critics by four small updates without a policy step, the actor by all rows."""
    whole = SAC(critic_minibatches=4, batch_size=16, hidden_sizes=(6,), target_critics=2, num_critics=3)
    quarter = replace(whole, critic_minibatches=1, batch_size=4)
    state, batch = whole.init({}, SPEC, jax.random.key(0)), rows(16)
    draws = whole.draw(jax.random.key(1), SPEC)
    got, _ = updated(whole, state, batch, draws)
    stepped = state
    for i in range(4):
        part = slice(4 * i, 4 * i + 4)
        some = jax.tree.map(lambda x, part=part: x[part], batch)
        one = Draws(draws.next_policy_noise[part], draws.policy_noise[part], draws.subset_keys[i : i + 1])
        stepped, _ = updated(quarter, stepped, some, one, policy_step=False)
    for a, b in zip(jax.tree.leaves(got.critic), jax.tree.leaves(stepped.critic), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    still = replace(whole, critic_minibatches=1, critic_learning_rate=0.0, target_update_rate=0.0)
    from_new = replace(state, critic=got.critic.continued(replace(got.critic.optimizer, learning_rate=0.0)))
    actor, _ = updated(still, from_new, batch, draws._replace(subset_keys=draws.subset_keys[:1]))
    for a, b in zip(jax.tree.leaves(got.actor.params), jax.tree.leaves(actor.actor.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    with pytest.raises(UserError, match="--batch-size 10: give a multiple of --critic-minibatches, 4"):
        check_values(dict(flat(with_changes(WSRLRecipe(), {"batch_size": 10}))))


def test_rlpd_without_the_dataset_is_sac() -> None:
    """Symmetric fraction 0: the online loop's updates are SAC's to the bit, batches and draws included."""
    settings: dict[str, Any] = {"num_critics": 2, "target_critics": None, "actor_value": "min"}
    settings |= {"critic_layer_norm": False, "policy_update_interval": 1, "target_entropy_per_dimension": -1.0}
    recipe = with_changes(RLPDRecipe(), settings | SMALL | {"online_share": 1.0, "updates_per_step": 1.0})
    phase = recipe.online_phase(10)
    assert phase.mix == "online" and phase.algorithm == SAC(**SMALL)
    keys, data = make_keys((0,), 0), rows(12)
    states, memory = [], Memory(data, {}, Ring(jax.tree.map(jnp.asarray, data), jnp.int32(9)))
    for program in (Program(phase.algorithm, phase.mix, SPEC, 1.0), Program(SAC(**SMALL), "online", SPEC)):
        state = jax.tree.map(lambda x: x[0], initial_state(program.algorithm, {}, SPEC, keys))
        step = jax.jit(lambda s, t, p=program: one_update(p, True, s, memory, keys.learn[0], t)[0])
        for t in range(10):
            state = step(state, jnp.int32(t))
        states.append(state)
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rlpd_steps_its_actor_on_the_last_of_twenty() -> None:
    phase = RLPDRecipe().online_phase(100)
    assert phase.online is not None and phase.mix == "half"
    assert (phase.online.updates_per_step, phase.algorithm.policy_update_interval) == (20.0, 20)
    assert phase.online.random_warmup and "actor" in phase.fresh
    algorithm = SAC(num_critics=3, target_critics=2, policy_update_interval=20, **SMALL)
    keys = make_keys((0,), 0)
    fresh: Any = jax.device_get(initial_state(algorithm, {}, SPEC, keys))
    after, _ = learn(
        Program(algorithm, "offline", SPEC), fresh, {}, keys.learn, rows(12), np.int32(0), np.int32(1)
    )  # fmt: skip
    assert int(after.critic.opt_state[0].count[0]) == 20 and int(after.actor.opt_state[0].count[0]) == 1


def test_rlpd_goes_on_with_a_policy_where_it_is_told_to() -> None:
    """Alignment before RLPD: ten critics, re-evaluated and aligned, and no random actions."""
    settings = {"from_scratch": False, "reevaluation_updates": 3, "alignment_updates": 3}
    recipe = with_changes(RLPDRecipe(), settings)
    phases = (*METHODS["cql"]().offline_phases(5), *recipe.handover_phases("tanh_gaussian"), recipe.online_phase(9))
    check(phases, set(), None)
    assert [phase.name for phase in phases] == ["offline", "re-evaluation", "alignment", "online"]
    assert [getattr(phase.algorithm, "num_critics", None) for phase in phases[1:]] == [10, 10, 10]
    assert phases[-1].online is not None and not phases[-1].online.random_warmup and not phases[-1].fresh


@pytest.mark.parametrize(("form", "kind"), [("tanh_gaussian", SAC), ("deterministic", TD3), ("gaussian", IQL)])
def test_suf_takes_the_host_of_the_policy_and_drops_its_constraint(form: str, kind: type) -> None:
    phase = SUFRecipe().adapted(form).online_phase(100)
    assert type(phase.algorithm) is kind and phase.algorithm.policy_kind == form
    assert phase.online is not None and phase.online.updates_per_step == 10
    assert phase.algorithm.policy_update_interval == 20  # one actor update every second step
    if isinstance(phase.algorithm, IQL):
        assert phase.algorithm.actor_objective == "soft_q"


def test_suf_needs_a_policy() -> None:
    with pytest.raises(UserError, match="suf goes on from a policy"):
        SUFRecipe().online_phase(10)


def test_the_soft_actor_of_iql_climbs_q_and_holds_its_entropy() -> None:
    """Its loss by hand, and its values those of plain IQL."""
    soft, plain = IQL(actor_objective="soft_q", **SMALL), IQL(**SMALL)
    key, batch = jax.random.key(0), rows()
    state, draws = soft.init({}, SPEC, key), soft.draw(jax.random.key(1), SPEC)
    after, metrics = jax.jit(lambda s: soft.update(s, batch, draws, True))(state)
    other, _ = jax.jit(lambda s: plain.update(s, batch, (), True))(plain.init({}, SPEC, key))
    for a, b in zip(jax.tree.leaves((after.critic, after.value)), jax.tree.leaves((other.critic, other.value)),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, atol=1e-12)
    mean, log_std = state.actor(batch.obs)
    noise = np.asarray(draws[0])
    action = np.clip(mean + np.exp(log_std) * noise, -1, 1)
    log_prob = (-0.5 * np.square(noise) - np.asarray(log_std) - 0.5 * np.log(2 * np.pi)).sum(-1)
    q = np.asarray(after.critic(batch.obs, action)).min(0)
    np.testing.assert_allclose(metrics["actor_loss"], (log_prob - q).mean(), rtol=1e-9)
    assert float(after.temperature()) * (float(metrics["entropy"]) + 2) < 0  # alpha falls while entropy is above -A
    assert set(soft.export(after)) == set(soft.gives)


@pytest.mark.parametrize("name", ["fast", "antmaze-umaze-v2", "hopper-medium-v2"])
def test_presets(name: str) -> None:
    recipe: Any = preset_recipe("rlpd", name)
    if name.startswith("antmaze"):
        assert recipe.algorithm.target_critics == 1 and recipe.reward_bias == -1 and not recipe.algorithm.backup_entropy
    assert recipe.updates_per_step == recipe.algorithm.policy_update_interval


WHOLE = [("rlpd", "td3_bc"), ("wsrl", "cql"), ("suf", "iql"), ("suf", "td3_bc")]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "offline"), WHOLE)
def test_whole_runs(method: str, offline: str, tmp_path: Path) -> None:
    """RLPD's online phase forgets the policy that it was given; the others go on with it."""
    tiny: dict[str, Any] = {"batch_size": 8, "hidden_sizes": (8,), "warmup_steps": 5, "num_critics": 3}
    tiny |= {"critic_hidden_sizes": (8,), "num_sampled_actions": 2}

    def known(name: str) -> dict[str, Any]:
        return {key: value for key, value in tiny.items() if key in dict(flat(METHODS[name]()))}

    settings = known(method)
    settings |= {"updates_per_step": 2.0, "policy_update_interval": 2} if method == "rlpd" else {}
    with jax.enable_x64(False):
        finished = segue.run(
            method, pendulum_data(), ENVIRONMENT, offline=offline, out=tmp_path / "run", steps=4, online_steps=12,
            settings=settings, offline_settings=known(offline), evaluation=SCARCE, quiet=True,
        )  # fmt: skip
        assert np.isfinite(finished.summary["phases"][-1]["final"][0]["return_mean"])
        policy = finished.policy()
    kind = {"rlpd": "tanh_gaussian", "wsrl": "tanh_gaussian"}.get(method)
    kind = kind or {"iql": "gaussian", "td3_bc": "deterministic"}[offline]
    assert policy.phase.algorithm.policy_kind == kind and policy.state.actor.net.kind == kind
