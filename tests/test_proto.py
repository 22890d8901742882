"""XQL and PROTO: hand-computed numbers, the settings that make it its host, and whose policies it goes on with."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segue
from segue.core.model import Adam, Model, Scalar
from segue.core.phases import check
from segue.core.proximal import Proximal, ProximalState
from segue.core.types import Batch, Metrics, Models, PyTree, Spec
from segue.errors import UserError
from segue.experiment import form_after, load_models
from segue.methods.cql import CQL
from segue.methods.proto_sac import Draws as SACDraws
from segue.methods.proto_sac import ProtoSAC, target_value
from segue.methods.proto_sac import State as SACState
from segue.methods.proto_td3 import Draws as TD3Draws
from segue.methods.proto_td3 import ProtoTD3
from segue.methods.proto_td3 import State as TD3State
from segue.methods.sac import SAC
from segue.methods.sac import Draws as HostDraws
from segue.methods.td3 import TD3, critic_step
from segue.methods.td3_bc import TD3BC
from segue.methods.xql import XQL, gumbel_loss
from segue.recipes import METHODS, preset_recipe
from segue.recipes.datasets import ANTMAZE, LOCOMOTION
from segue.recipes.proto import ProtoSACRecipe, ProtoTD3Recipe
from segue.settings import flat, with_changes
from tests.small import ENVIRONMENT, pendulum_data
from tests.test_every_method import SCARCE, small

pytestmark = pytest.mark.usefixtures("float64")

SPEC, KEY = Spec(3, 2), jax.random.key(0)
SMALL: dict[str, Any] = {"batch_size": 8, "hidden_sizes": (6,)}
UPDATES = 10


@partial(jax.jit, static_argnums=(0, 4))
def updated(algorithm: Any, s: Any, batch: Batch, draws: Any, policy_step: bool) -> tuple[Any, Metrics]:
    return algorithm.update(s, batch, draws, policy_step)


def made(algorithm: Any) -> Any:
    """A state of the algorithm's shapes with random parameters, targets and first moments, without a compilation."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: algorithm.init({}, SPEC, KEY))

    def numbers(x: Any) -> Any:
        return rng.normal(0, 0.3, x.shape) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.zeros(x.shape, x.dtype)

    def filled(x: Any) -> Any:
        if not isinstance(x, Model):
            return numbers(x)
        x = replace(x, params=jax.tree.map(numbers, x.params), target=jax.tree.map(numbers, x.target))
        if x.opt_state == ():
            return x
        adam, *rest = x.optimizer.transform().init(x.params)
        return replace(x, opt_state=(adam._replace(mu=jax.tree.map(numbers, adam.mu), nu=adam.nu), *rest))

    return jax.tree.map(filled, shapes, is_leaf=lambda x: isinstance(x, Model))


def exported(algorithm: Any) -> Models:
    """What a run of it hands on."""
    return algorithm.export(replace(made(algorithm), updates=jnp.int32(2)))


def begun(algorithm: Any, models: Models) -> Any:
    return algorithm.init(models, SPEC, KEY)


def moments(model: Model) -> PyTree:
    return jax.tree.leaves(model.opt_state[0].mu)


def batches(count: int) -> list[Batch]:
    rng: Any = np.random.default_rng(0)
    return [
        Batch(
            obs=rng.normal(size=(8, 3)),
            action=rng.uniform(-1, 1, (8, 2)),
            reward=rng.normal(size=8),
            next_obs=rng.normal(size=(8, 3)),
            terminal=(rng.random(8) < 0.2).astype(float),
            extras={},
        )
        for _ in range(count)
    ]


def distance(a: PyTree, b: PyTree) -> float:
    return max(
        float(np.abs(np.asarray(x) - np.asarray(y)).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


# XQL


def test_the_gumbel_loss_by_hand() -> None:
    """exp(z) - z - 1, which is 0 and e - 2, over exp(1), for the largest z is 1."""
    assert float(gumbel_loss(jnp.array([0.0, 1.0]), 7.0)) == pytest.approx((1 - 2 * math.exp(-1)) / 2)
    far = gumbel_loss(jnp.array([-5.0, -3.0]), 7.0)  # the shift stays at -1
    assert float(far) == pytest.approx((math.exp(-4) + 4 * math.e + math.exp(-2) + 2 * math.e) / 2)


def test_the_gumbel_loss_is_least_at_the_soft_maximum() -> None:
    """V = T log mean exp(q / T), above the mean of q; the clipped z has no gradient."""
    q, temperature = jnp.array([0.0, 1.0, 3.0]), 0.5
    best = temperature * jnp.log(jnp.exp(q / temperature).mean())
    slope = jax.jit(jax.grad(lambda v, largest: gumbel_loss((q - v) / temperature, largest)))
    assert abs(slope(best, 7.0)) < 1e-12 and best > 2
    assert abs(slope(best, 1.0)) > 1e-3
    assert slope(jnp.array(-100.0), 7.0) == 0


# The trust region


def test_the_weight_falls_linearly_and_not_below_zero() -> None:
    p = ProximalState(policy=Model(jnp.zeros(()), None, (), None, Adam(0.0)), origin=jnp.int32(1_000))
    weights = [float(Proximal().weight(p, jnp.int32(1_000 + t))) for t in (0, 500_000, 1_000_000, 1_500_000)]
    assert weights == pytest.approx([2.0, 1.1, 0.2, 0.0])


def test_the_reference_follows_the_actor() -> None:
    reference, actor = (Model(jnp.asarray(x), None, (), None, Adam(0.0)) for x in (1.0, 3.0))
    after = Proximal(reference_update_rate=0.25).followed(ProximalState(reference, jnp.int32(0)), actor)
    assert float(after.policy.params) == 1.5 and after.policy.target is None


def test_which_target_critic() -> None:
    values = jnp.array([[1.0, 4.0], [2.0, 3.0]])
    assert target_value(values, "min", jnp.array(0.9)).tolist() == [1.0, 3.0]
    assert target_value(values, "random", jnp.array(0.49)).tolist() == [1.0, 4.0]
    assert target_value(values, "random", jnp.array(0.51)).tolist() == [2.0, 3.0]


# Hand-computed updates: pi(s) = p s, Q_i(s, a) = offset_i + slope_i . a


@dataclass(frozen=True)
class Proportional:
    """Params times the observation, in as many dimensions; of a Gaussian policy with std 1 its mean."""

    kind: str
    action_dim: int = 2

    def apply(self, params: jax.Array, obs: jax.Array) -> Any:
        mean = params * obs
        return mean if self.kind == "deterministic" else (mean, jnp.zeros(2))


@dataclass(frozen=True)
class Linear:
    def apply(self, params: PyTree, obs: jax.Array, action: jax.Array) -> jax.Array:
        return jnp.stack([offset + action @ jnp.asarray(slope) for offset, slope in params])


def stub(net: Any, params: PyTree, target: bool = False) -> Model:
    params = jax.tree.map(jnp.asarray, params)
    return Model(params, params if target else None, Adam(0.0).transform().init(params), net, Adam(0.0))


CRITIC = stub(Linear(), ((1.0, [1.0, 1.0]), (0.0, [2.0, 0.0])), target=True)
ONES, NOUGHT, COUNT = jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.int32(0)
ROW = Batch(ONES, NOUGHT, jnp.ones(1), ONES, jnp.zeros(1), {})


def test_a_soft_update_by_hand() -> None:
    """Mean 1/2, of the reference 1/4, noise (1, -1): log pi = -1 - log 2 pi, f = 1/16, a = (3/2, -1/2)."""
    net = Proportional("gaussian")
    s = SACState(stub(net, 0.5), CRITIC, stub(Scalar(0.0), math.log(0.5)), ProximalState(stub(net, 0.25), COUNT), COUNT)
    noise = jnp.array([[1.0, -1.0]])
    algorithm = ProtoSAC(Proximal(2.0), discount=0.9)
    _, found = updated(algorithm, s, ROW, SACDraws(jnp.zeros(()), noise, noise), True)
    log_prob = -1 - math.log(2 * math.pi)
    y = 1 + 0.9 * (2 - 0.5 * log_prob - 2 / 16)  # values 2 and 3: the smaller
    assert float(found["critic_loss"]) == pytest.approx(((1 - y) ** 2 + y**2) / 2)
    assert float(found["actor_loss"]) == pytest.approx(-2.5 + 0.5 * log_prob + 2 / 16)  # of the values the mean
    assert float(found["temperature_loss"]) == pytest.approx(0.5 * (-log_prob + 1))  # H = -A / 2
    assert float(found["reference_divergence"]) == pytest.approx(1 / 16)
    _, found = updated(replace(algorithm, backup_entropy=False, target_critic="random"), s, ROW,
                       SACDraws(jnp.asarray(0.7), noise, noise), True)  # fmt: skip
    y = 1 + 0.9 * 3
    assert float(found["critic_loss"]) == pytest.approx(((1 - y) ** 2 + y**2) / 2)


def hard_draws(**noises: jax.Array) -> TD3Draws:
    return TD3Draws(**({name: NOUGHT for name in TD3Draws._fields} | {"target_critic": jnp.zeros(())} | noises))


def test_a_hard_update_by_hand() -> None:
    """Action 1/2, of the reference 1/4, so that D = 1/16 without noise; values of the reference 3/2 and 1/2."""
    net = Proportional("deterministic")
    s = TD3State(stub(net, 0.5), CRITIC, ProximalState(stub(net, 0.25), COUNT), COUNT)
    algorithm = ProtoTD3(Proximal(2.0), form="deterministic", discount=0.9)
    after, found = updated(algorithm, s, ROW, hard_draws(), True)
    y = 1 + 0.9 * (0.5 - 2 / 16)
    assert float(found["critic_loss"]) == pytest.approx(((1 - y) ** 2 + y**2) / 2)
    assert float(found["actor_loss"]) == pytest.approx(-2.5 + 2 / 16)
    # Of the second critic, whose value at (1/2, 1/2) is 1 and grows by 2 with p, where the first grows by 2 from 2.
    assert float(after.actor.opt_state[0].mu) / 0.1 == pytest.approx(-2.5 * 2 / 1 + 2 * 2 * 0.25)
    noisy = hard_draws(target_noise=jnp.array([[10.0, 0.0]]))  # 0.2 of it, clipped at 0.5: to 1 and 1/2
    y = 1 + 0.9 * (0.5 - 2 * (0.75**2 + 0.25**2) / 2)  # and the action whose value counts has none
    _, found = updated(algorithm, s, ROW, noisy, True)
    assert float(found["critic_loss"]) == pytest.approx(((1 - y) ** 2 + y**2) / 2)
    in_mazes = replace(algorithm, target_action="noisy_actor", backup_distance=False)
    y = 1 + 0.9 * 2  # values 5/2 and 2 at (1, 1/2)
    _, found = updated(in_mazes, s, ROW, noisy, True)
    assert float(found["critic_loss"]) == pytest.approx(((1 - y) ** 2 + y**2) / 2)


def test_a_gaussian_policy_counts_by_its_mean_unless_as_released() -> None:
    net = Proportional("gaussian")
    s = TD3State(stub(net, 0.5), CRITIC, ProximalState(stub(net, 0.25), COUNT), COUNT)
    names = ("next_policy_noise", "next_reference_noise", "policy_noise", "reference_noise")
    draws = hard_draws(**{name: ONES * (i + 1) for i, name in enumerate(names)})
    algorithm = ProtoTD3(Proximal(2.0))
    of_mean = updated(algorithm, s, ROW, hard_draws(), True)[1]
    assert distance(updated(algorithm, s, ROW, draws, True)[1], of_mean) == 0
    released = updated(replace(algorithm, loss_actions="sample"), s, ROW, draws, True)[1]
    assert float(released["reference_distance"]) == pytest.approx((0.5 + 3 - 0.25 - 4) ** 2)


# The hosts


def with_fresh_moments(models: Models) -> Models:
    return {role: x.continued(x.optimizer, keep_moments=False) if isinstance(x, Model) else x
            for role, x in models.items()}  # fmt: skip


def test_with_no_pull_it_is_sac() -> None:
    """That climbs the mean of its critics. Adam does not see that one loss is the sum over them, the other the mean."""
    rates: dict[str, Any] = {"temperature_learning_rate": 0.0, "initial_temperature": 0.3, **SMALL}
    host, ours = SAC(actor_value="mean", **rates), ProtoSAC(Proximal(0.0), form="tanh_gaussian", **rates)
    start = with_fresh_moments(exported(host))
    a, b = begun(host, start), begun(ours, start)
    for batch, key in zip(batches(UPDATES), jax.random.split(KEY, UPDATES), strict=True):
        noise = jax.random.normal(key, (2, 8, 2))
        a, _ = updated(host, a, batch, HostDraws(*noise), True)
        b, _ = updated(ours, b, batch, SACDraws(jnp.zeros(()), *noise), True)
    parts = [(s.actor.params, s.critic.params, s.critic.target, s.temperature.params) for s in (a, b)]
    assert distance(*parts) < 1e-6 < 1e-4 < distance(parts[0][0], start["actor"].params)


def test_with_no_pull_it_is_td3() -> None:
    """TD3 without noise on its target's action, up the second critic over the size of its values."""
    host = TD3(target_noise_std=0.0, **SMALL)
    ours = ProtoTD3(Proximal(0.0), form="deterministic", critic_layer_norm=False, **SMALL)
    start = with_fresh_moments(exported(host))
    start["actor"] = start["actor"].settled()
    a, b = begun(host, start), begun(ours, start)

    @jax.jit
    def stepped(actor: Model, critic: Model, batch: Batch) -> Model:
        def loss(actor: Model) -> tuple[jax.Array, None]:
            q = critic(batch.obs, actor(batch.obs))[1]
            return -2.5 * q.mean() / jax.lax.stop_gradient(jnp.abs(q).mean()), None

        return actor.descend(loss)[0]

    for i, batch in enumerate(batches(UPDATES)):
        critic, _ = jax.jit(critic_step, static_argnums=(3, 4, 5))(a, batch, jnp.zeros((8, 2)), 0.0, 0.5, 0.99)
        a = replace(a, critic=critic)
        if i % 2:
            a = replace(a, actor=stepped(a.actor, critic, batch).track(0.005), critic=critic.track(0.005))
        b, _ = updated(ours, b, batch, ours.draw(KEY, SPEC), i % 2 == 1)
    mine = (b.actor.params, b.proximal.policy.params, b.critic.params, b.critic.target)
    theirs = (a.actor.params, a.actor.target, a.critic.params, a.critic.target)
    assert distance(mine, theirs) < 1e-6 < 1e-4 < distance(a.actor.params, start["actor"].params)


# What it goes on with


OFFLINE: dict[str, tuple[Any, Any]] = {
    "cql": (CQL(critic_hidden_sizes=(7,), num_sampled_actions=2, **SMALL), ProtoSAC(form="tanh_gaussian", **SMALL)),
    "td3_bc": (TD3BC(**SMALL), ProtoTD3(form="deterministic", **SMALL)),
    "xql": (XQL(**SMALL), ProtoSAC(**SMALL)),
}


@pytest.mark.parametrize("name", OFFLINE)
def test_the_reference_starts_at_the_policy_and_goes_on_with_the_run(name: str) -> None:
    """Not at a lagging target of it; the actor's moments are new, the critics' are not. The second time all go on."""
    host, ours = OFFLINE[name]
    before = exported(host)
    s = begun(ours, before)
    assert s.actor.net == before["actor"].net and s.critic.net == before["critic"].net
    assert distance(s.proximal.policy.params, before["actor"].params) == 0 and s.actor.target is None
    assert not any(np.asarray(x).any() for x in moments(s.actor))
    assert distance(moments(s.critic), moments(before["critic"])) == 0
    assert distance(s.critic.target, before["critic"].target) == 0
    assert int(s.proximal.origin) == int(s.updates) == 2
    after = exported(ours) | {"updates": jnp.int32(5), "proximal_origin": jnp.int32(2)}
    again = begun(ours, after)
    assert int(again.proximal.origin) == 2 and int(again.updates) == 5
    assert distance(again.proximal.policy.params, after["proximal_reference"].params) == 0
    assert distance(again.proximal.policy.params, again.actor.params) > 0
    assert distance(moments(again.actor), moments(after["actor"])) == 0


def test_a_reference_of_another_form_is_not_gone_on_with() -> None:
    models = exported(ProtoTD3(form="deterministic", **SMALL))
    policy = made(SAC(**SMALL)).actor
    s = begun(ProtoSAC(form="tanh_gaussian", **SMALL), models | {"actor": policy})
    assert s.proximal.policy.net == policy.net and int(s.proximal.origin) == 2


@pytest.mark.parametrize("name", OFFLINE)
def test_it_acts_within_the_box_and_greedily_without_chance(name: str) -> None:
    _, ours = OFFLINE[name]
    ours = replace(ours, exploration_noise=100.0) if isinstance(ours, ProtoTD3) else ours
    s, obs = made(ours), jnp.ones(3)
    keys = jax.random.split(KEY, 20)
    act = jax.jit(jax.vmap(ours.act, (None, None, 0, None)), static_argnums=3)
    greedy, noisy = (np.asarray(act(s, obs, keys, explore)) for explore in (False, True))
    assert np.ptp(greedy, axis=0).max() == 0 and np.abs(noisy).max() <= 1 and np.ptp(noisy, axis=0).min() > 0
    if isinstance(ours, ProtoTD3):
        np.testing.assert_allclose(np.abs(noisy - greedy), 0.5)


# The recipes


def phases(recipe: Any, before: str | None) -> tuple[Any, ...]:
    recipe = recipe.adapted(before)
    return (*recipe.handover_phases(before), recipe.online_phase(10))


def test_its_own_run_begins_with_xql() -> None:
    for recipe in (ProtoSACRecipe(), ProtoTD3Recipe()):
        changed = with_changes(recipe, {"value_temperature": 0.5, "hidden_sizes": (8,), "critic_layer_norm": False})
        (offline,) = changed.offline_phases(7)
        assert offline.algorithm == XQL(value_temperature=0.5, hidden_sizes=(8,), critic_layer_norm=False)
        assert recipe.offline_phases(7)[0].algorithm == XQL() and form_after((offline,), None) == "gaussian"
        check((offline, *phases(changed, "gaussian")), set(), None)


def test_the_data_online() -> None:
    sac, td3 = (recipe.online_phase(10).online for recipe in (ProtoSACRecipe(), ProtoTD3Recipe()))
    assert sac is not None and td3 is not None
    assert (sac.replay, sac.ring_start, sac.offline_rows) == ("half", 10_000, None)
    assert (td3.replay, td3.ring_start, td3.offline_rows) == ("all", 0, 25_000)


@pytest.mark.parametrize(
    ("method", "before", "form"),
    [("proto_sac", "tanh_gaussian", "tanh_gaussian"), ("proto_sac", "gaussian", "gaussian"),
     ("proto_td3", "deterministic", "deterministic"), ("proto_td3", "gaussian", "gaussian")],
)  # fmt: skip
def test_it_adapts_to_the_policy(method: str, before: str, form: str) -> None:
    chain = phases(METHODS[method](), before)
    assert chain[-1].algorithm.policy_kind == form and len(chain) == 1
    check(chain, {"actor", "critic"}, before)


@pytest.mark.parametrize(("method", "before"), [("proto_sac", "deterministic"), ("proto_td3", "tanh_gaussian")])
def test_another_form_is_cloned_or_refused(method: str, before: str) -> None:
    with pytest.raises(UserError, match="continues a gaussian policy"):
        check(phases(METHODS[method](), before), {"actor", "critic"}, before)
    chain = phases(with_changes(METHODS[method](), {"clone_updates": 5}), before)
    check(chain, {"actor", "critic"}, before)
    assert [phase.name for phase in chain] == ["clone", "online"]
    with pytest.raises(UserError, match="clone it first"):
        phases(METHODS[method](), None)


def test_presets() -> None:
    maze = {"value_temperature": 0.5, "proximal_weight": 0.5, "reference_update_rate": 5e-5, "target_critic": "random",
            "reward_bias": -1.0, "reward_scale_by_return_range": False}  # fmt: skip
    walk = {"value_temperature": 2.0, "proximal_weight": 2.0, "reference_update_rate": 0.005, "target_critic": "min",
            "reward_bias": 0.0, "reward_scale_by_return_range": True}  # fmt: skip
    own: dict[str, Any] = {"proto_sac": ({"backup_entropy": True}, {"backup_entropy": False}),
                           "proto_td3": ({"target_action": "reference", "backup_distance": True},
                                         {"target_action": "noisy_actor", "backup_distance": False})}  # fmt: skip
    for method, (walking, in_mazes) in own.items():
        for name in (*LOCOMOTION, *ANTMAZE):
            settings = dict(flat(preset_recipe(method, name)))
            wanted = (maze | in_mazes if name in ANTMAZE else walk | walking) | {
                "critic_layer_norm": "halfcheetah" not in name, "proximal_decay": 0.9, "proximal_horizon": 1_000_000,
            }  # fmt: skip
            assert {key: settings[key] for key in wanted} == wanted
            assert METHODS[method].preset_updates[name] == (200_000 if name in ANTMAZE else 100_000)
    assert own.keys() <= METHODS.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("offline", "method"), [("cql", "proto_sac"), ("td3_bc", "proto_td3")])
def test_as_ocr_cft_ran_it_and_gone_on_with(offline: str, method: str, tmp_path: Path) -> None:
    """From other methods' runs; a second run goes on with the reference, and the weight falls from where it was."""
    with jax.enable_x64(False):
        quietly: dict[str, Any] = {"evaluation": SCARCE, "quiet": True}
        settings = small(method) | {"policy_update_interval": 1}
        run = segue.run(
            method, pendulum_data(), ENVIRONMENT, offline=offline, out=tmp_path / "first", steps=8, online_steps=20,
            settings=settings, offline_settings=small(offline), **quietly,
        )  # fmt: skip
        runs = [run]
        if method == "proto_td3":
            runs.append(segue.finetune(run, out=tmp_path / "then", steps=20, **quietly))
        for run in runs:
            models = load_models(run.folder)[0]
            assert int(models["proximal_origin"][0]) == 8 and int(models["updates"][0]) > 8
            assert np.isfinite(run.summary["phases"][-1]["final"][0]["return_mean"])
