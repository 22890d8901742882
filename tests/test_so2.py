"""SO2: perturbed targets by hand, its hosts SAC and IQL at zero noise, many updates of the values, the recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.phases import check
from segue.core.types import Batch, Spec
from segue.methods.iql import IQL
from segue.methods.sac import SAC
from segue.methods.sac import Draws as SACDraws
from segue.methods.so2 import SO2, Draws, SO2OnIQL, perturbed
from segue.nets.networks import Critics
from segue.nets.policies import sample_tanh_gaussian
from segue.recipes import METHODS, preset_recipe
from segue.recipes.datasets import LOCOMOTION
from segue.recipes.handover import Handover
from segue.recipes.so2 import SO2Recipe
from tests.made_up import assert_close, differ, noise, rows_of

pytestmark = pytest.mark.usefixtures("float64")

SPEC = Spec(3, 2)
SMALL: dict[str, Any] = {"batch_size": 8, "hidden_sizes": (6,)}
RATES: dict[str, Any] = {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3}
QUIET: dict[str, Any] = {"target_noise_std": 0.0, "policy_update_interval": 2}
HOST = IQL(actor_schedule="constant", policy_update_interval=2, **SMALL)
UPDATE = jax.jit(lambda algorithm, *rest: algorithm.update(*rest), static_argnums=(0, 4))


def critics(count: int) -> dict[str, Any]:
    """Critics whose targets are others than they."""
    net = Critics(*SPEC, (6,), count=count)
    model = Model.create(net, Adam(1e-3), jax.random.key(1), target=True)
    return {"critic": replace(model, target=net.init(jax.random.key(2)))}


def test_the_noise_is_clipped_and_then_the_action() -> None:
    found = perturbed(jnp.array([0.0, 0.0, 0.9, -0.5]), jnp.array([1.0, 3.0, 1.0, -9.0]), 0.3, 0.6)
    np.testing.assert_allclose(found, [0.3, 0.6, 1.0, -1.0], atol=1e-12)


def sampled(policy: Model, obs: Any, noise: Any) -> tuple[jax.Array, jax.Array]:
    mean, log_std = policy(obs)
    return sample_tanh_gaussian(mean, log_std, noise)


def soft_targets(s: Any, batch: Batch, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Qbar_i(s', a~') [N, B] and log pi(a'|s') [B], written out."""
    action, log_prob = sampled(s.actor, batch.next_obs, draws.next_policy_noise)
    tested = np.clip(np.asarray(action) + np.clip(0.3 * np.asarray(draws.target_noise), -0.6, 0.6), -1, 1)
    return np.asarray(s.critic.slow(batch.next_obs, jnp.asarray(tested))), np.asarray(log_prob)


def test_each_critic_has_its_own_target_at_the_perturbed_action() -> None:
    """The loss as written out; a minimum, the unperturbed action or the perturbed one's entropy make it another."""
    algorithm, batch, draws = SO2(**SMALL), rows_of(0), Draws(*noise(0, 3, 8, 2))
    s = algorithm.init(critics(3), SPEC, jax.random.key(0))
    q, log_prob = soft_targets(s, batch, draws)
    here = np.asarray(s.critic(batch.obs, batch.action))

    def loss(value: np.ndarray) -> float:
        y = batch.reward + 0.99 * (1 - batch.terminal) * (value - 0.2 * log_prob)
        return float(np.square(here - y).mean())

    after, metrics = UPDATE(algorithm, s, batch, draws, False)
    assert float(metrics["critic_loss"]) == pytest.approx(loss(q), abs=1e-12)
    unperturbed, _ = soft_targets(s, batch, draws._replace(target_noise=jnp.zeros((8, 2))))
    for wrong in (q.min(0), unperturbed):
        assert abs(loss(wrong) - loss(q)) > 1e-4
    assert not differ(after.actor, s.actor) and differ(after.critic.target, s.critic.target)


def test_the_actor_climbs_the_least_of_the_new_critics_without_noise() -> None:
    algorithm, batch, draws = SO2(**SMALL), rows_of(0), Draws(*noise(0, 3, 8, 2))
    s = algorithm.init(critics(3), SPEC, jax.random.key(0))
    after, metrics = UPDATE(algorithm, s, batch, draws, True)
    action, log_prob = sampled(s.actor, batch.obs, draws.policy_noise)
    q = after.critic(batch.obs, action)
    assert float(metrics["actor_loss"]) == pytest.approx(float((0.2 * log_prob - q.min(0)).mean()), abs=1e-12)


def after_updates(algorithm: Algorithm, s: Any, draws: list[Any]) -> Any:
    for i, drawn in enumerate(draws):
        s, _ = UPDATE(algorithm, s, rows_of(i), drawn, i % 2 == 1)
    return s


def test_one_critic_without_noise_is_sac_at_a_fixed_temperature() -> None:
    so2 = SO2(**QUIET, **SMALL, **RATES)
    sac = SAC(
        policy_update_interval=2, initial_temperature=0.2, temperature_learning_rate=0.0, **SMALL, **RATES
    )
    draws = [Draws(*noise(i, 3, 8, 2)) for i in range(10)]
    of_sac = [SACDraws(d.next_policy_noise, d.policy_noise) for d in draws]
    mine = after_updates(so2, so2.init(critics(1), SPEC, jax.random.key(0)), draws)
    theirs = after_updates(sac, sac.init(critics(1), SPEC, jax.random.key(0)), of_sac)
    assert_close(mine.actor.params, theirs.actor.params)
    assert_close((mine.critic.params, mine.critic.target), (theirs.critic.params, theirs.critic.target))


def test_on_iql_without_noise_it_is_iql() -> None:
    so2, iql = SO2OnIQL(**QUIET, **SMALL), HOST
    s = iql.init(critics(2), SPEC, jax.random.key(0))
    theirs = after_updates(iql, s, [()] * 10)
    mine = after_updates(so2, so2.init(iql.export(s), SPEC, jax.random.key(0)), [noise(i, 8, 2) for i in range(10)])
    for role in ("actor", "critic", "value"):
        assert_close(getattr(mine, role).params, getattr(theirs, role).params)


def test_on_iql_only_v_sees_the_noise() -> None:
    """Of one update: V's gradient differs from IQL's; critics and actor, which go by the data's actions, do not."""
    so2, iql = SO2OnIQL(**SMALL), HOST
    s, batch = iql.init(critics(2), SPEC, jax.random.key(0)), rows_of(0)
    theirs, _ = UPDATE(iql, s, batch, (), True)
    start = so2.init(iql.export(s), SPEC, jax.random.key(0))
    mine, metrics = UPDATE(so2, start, batch, noise(0, 8, 2), True)
    assert_close(mine.critic.params, theirs.critic.params, 1e-12)
    assert_close(mine.actor.params, theirs.actor.params, 1e-12)
    assert differ(mine.value.opt_state, theirs.value.opt_state)
    tested = np.clip(batch.action + np.clip(0.3 * noise(0, 8, 2), -0.6, 0.6), -1, 1)
    above = np.asarray(s.critic.slow(batch.obs, jnp.asarray(tested)).min(0) - s.value(batch.obs)[..., 0])
    want = (np.where(above < 0, 0.3, 0.7) * above**2).mean()
    assert float(metrics["value_loss"]) == pytest.approx(want, abs=1e-12)


def test_the_critics_of_the_run_go_on_whatever_their_number() -> None:
    assert len(SO2(**SMALL).init(critics(2), SPEC, jax.random.key(0)).critic.params) == 2
    assert len(SO2(**SMALL).init({}, SPEC, jax.random.key(0)).critic.params) == 10


def test_the_recipe_makes_ten_updates_of_the_values_a_step_and_one_of_the_actor() -> None:
    phase = SO2Recipe().online_phase(100)
    assert phase.online is not None and isinstance(phase.algorithm, SO2)
    assert phase.online.updates_per_step == phase.algorithm.policy_update_interval == 10
    assert (phase.online.warmup_steps, phase.online.random_warmup, phase.mix) == (5_000, False, "boosted")
    assert phase.online.online_share_of_all == 0.1
    assert phase.algorithm.batch_size == 2_560 and phase.algorithm.actor_learning_rate == 1e-3


def test_the_form_of_the_policy_chooses_the_host() -> None:
    recipe = SO2Recipe(algorithm=SO2(**SMALL), expectile=0.9, warmup_steps=7)
    algorithm: Any = recipe.adapted("gaussian").online_phase(10).algorithm
    assert isinstance(algorithm, SO2OnIQL) and algorithm.expectile == 0.9 and algorithm.batch_size == 8
    assert recipe.adapted("gaussian").online_phase(10).online == recipe.online_phase(10).online
    for before in ("tanh_gaussian", "deterministic", None):
        assert isinstance(recipe.adapted(before).online_phase(10).algorithm, SO2)
    cloned = replace(recipe, handover=Handover(clone_updates=5)).adapted("gaussian")
    chain = (*cloned.handover_phases("gaussian"), cloned.online_phase(10))
    check(chain, {"actor", "critic"}, "gaussian")
    assert [phase.name for phase in chain] == ["clone", "online"]


def test_new_critics_of_a_run_by_re_evaluation() -> None:
    recipe = replace(preset_recipe("so2", "hopper-medium-v2"), handover=Handover(reevaluation_updates=5))  # type: ignore[call-arg]
    (phase,) = recipe.handover_phases("tanh_gaussian")
    evaluation: Any = phase.algorithm
    assert evaluation.num_critics == 50 and evaluation.initial_temperature == 0.2 and not evaluation.critic_layer_norm


def test_presets() -> None:
    assert set(LOCOMOTION) < set(METHODS["so2"].presets)
    sizes = {name: preset_recipe("so2", name).algorithm.num_critics for name in LOCOMOTION}  # type: ignore[attr-defined]
    assert all(count == (50 if "hopper" in name else 10) for name, count in sizes.items())
    assert preset_recipe("so2", "fast").algorithm.batch_size == 256  # type: ignore[attr-defined]
