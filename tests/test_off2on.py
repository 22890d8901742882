"""Off2On: moment matching, the ensemble's losses, its host SAC, balanced replay, independent agents, the recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core import sampling, sum_tree
from segue.core.independent import Independent
from segue.core.model import Adam, Model
from segue.core.phases import check
from segue.core.replay import Memory, Ring, empty_rows
from segue.core.types import Batch, PyTree, Spec
from segue.errors import UserError
from segue.methods.balanced_replay import BalancedReplay, DensityRatio, Pairs, Ratio
from segue.methods.cql import CQL
from segue.methods.off2on import Draws, Off2On
from segue.methods.sac import SAC
from segue.methods.sac import Draws as SACDraws
from segue.nets.ensemble import MomentMatchedPolicy, joined_critics
from segue.nets.networks import Critics
from segue.nets.policies import TanhGaussianPolicy
from segue.recipes import preset_recipe
from segue.recipes.off2on import JOINS, Off2OnRecipe
from tests.made_up import assert_close, differ, noise, rows_of

pytestmark = pytest.mark.usefixtures("float64")

SPEC = Spec(3, 2)
SMALL: dict[str, Any] = {"batch_size": 8, "hidden_sizes": (6,)}
FITTED = jax.jit(BalancedReplay().fitted)
UPDATE = jax.jit(lambda algorithm, *rest: algorithm.update(*rest), static_argnums=(0, 4))


def constant_policy(mean: float, log_std: float) -> PyTree:
    """Parameters of a policy of one action that is the same everywhere."""
    zeros = jnp.zeros((3, 2))
    return {"layers_0": {"kernel": zeros, "bias": jnp.array([mean, log_std])}}


def matched(*members: tuple[float, float]) -> tuple[float, float]:
    policy = MomentMatchedPolicy(TanhGaussianPolicy(3, 1, ()), len(members))
    mean, log_std = policy.apply(tuple(constant_policy(m, float(np.log(s))) for m, s in members), jnp.zeros(3))
    return float(mean[0]), float(jnp.exp(log_std[0]))


def test_two_moments_of_the_mixture() -> None:
    """Means 1 and 3, standard deviations 1 and 2: mean 2, variance (1 + 4) / 2 + 1; not a mean of deviations."""
    assert matched((1.0, 1.0), (3.0, 2.0)) == pytest.approx((2.0, 3.5**0.5))
    assert matched((0.7, 0.3)) == pytest.approx((0.7, 0.3))


def test_the_variance_of_narrow_members_far_from_0_is_no_rounding_error() -> None:
    """Where the usual difference of squares is: in single precision 100^2 swallows 0.001^2."""
    with jax.enable_x64(False):
        assert matched((100.0, 1e-3), (100.0, 1e-3))[1] == pytest.approx(1e-3, rel=1e-4)


def test_a_draw_is_of_the_match_and_not_of_a_member() -> None:
    """Two members at -2 and 2 that hardly vary: the match reaches 0, which neither does."""
    algorithm = Off2On(hidden_sizes=())
    net = MomentMatchedPolicy(TanhGaussianPolicy(3, 1, ()), 2)
    params = (constant_policy(-2.0, -5.0), constant_policy(2.0, -5.0))
    s = algorithm.init({}, Spec(3, 1), jax.random.key(0))
    s = replace(s, actor=Model(params, None, (), net, Adam(1e-3)))
    act = jax.jit(jax.vmap(lambda key: algorithm.act(s, jnp.zeros(3), key, True)))
    drawn = np.asarray(act(jax.random.split(jax.random.key(1), 200)))
    assert (np.abs(drawn) < 0.5).mean() > 0.1
    assert float(algorithm.act(s, jnp.zeros(3), jax.random.key(1), False)[0]) == 0.0


def test_one_member_that_sees_the_new_critics_is_sac() -> None:
    """With uniform rows the sampler is absent, and ten updates are SAC's. (The record has the released order.)"""
    sac, off2on = SAC(**SMALL), Off2On(actor_sees="new", **SMALL)
    theirs = sac.init({}, SPEC, jax.random.key(0))
    params, net = theirs.actor.params, theirs.actor.net
    single = Model((params,), None, (), MomentMatchedPolicy(net, 1), Adam(3e-4))  # the match of one is itself
    mine = off2on.init({"actor": single, "critic": theirs.critic}, SPEC, jax.random.key(0))
    for i in range(10):
        drawn, batch = noise(i, 2, 8, 2), rows_of(i)
        theirs, _ = UPDATE(sac, theirs, batch, SACDraws(*drawn), True)
        mine, _ = UPDATE(off2on, mine, batch, Draws(*drawn), True)
    assert_close(mine.actor.params, (theirs.actor.params,))
    assert differ(mine.actor.params, (params,))
    assert_close((mine.critic.params, mine.critic.target), (theirs.critic.params, theirs.critic.target))
    assert_close(mine.temperature.params, theirs.temperature.params)


def test_members_have_targets_of_their_own_and_the_actor_their_mean() -> None:
    """Of three members; a minimum over all of them would be another loss."""
    algorithm, batch, drawn = Off2On(**SMALL), rows_of(0), Draws(*noise(0, 2, 8, 2))
    net = Critics(*SPEC, (6,), count=6)
    critic = Model.create(net, Adam(1e-3), jax.random.key(1), target=True)
    critic = replace(critic, target=net.init(jax.random.key(2)))
    s = algorithm.init({"critic": critic}, SPEC, jax.random.key(0))
    _, metrics = UPDATE(algorithm, s, batch, drawn, True)

    def sampled(obs: Any, noise: Any) -> tuple[Any, np.ndarray]:
        mean, log_std = s.actor(obs)
        x = np.asarray(mean + jnp.exp(log_std) * noise)
        density = -0.5 * np.square(noise) - np.asarray(log_std) - 0.5 * np.log(2 * np.pi) - np.log(1 - np.tanh(x) ** 2)
        return jnp.tanh(x), density.sum(-1)

    action, log_prob = sampled(batch.next_obs, drawn.next_policy_noise)
    slow, here = np.asarray(critic.slow(batch.next_obs, action)), np.asarray(critic(batch.obs, batch.action))

    def critic_loss(lowest: list[np.ndarray]) -> float:
        y = [batch.reward + 0.99 * (1 - batch.terminal) * (low - log_prob) for low in lowest]
        return float(sum(np.square(here[2 * i + k] - y[i]).mean() for i in range(3) for k in range(2)))

    own = [np.minimum(slow[2 * i], slow[2 * i + 1]) for i in range(3)]
    assert float(metrics["critic_loss"]) == pytest.approx(critic_loss(own), abs=1e-9)
    assert abs(critic_loss([slow.min(0)] * 3) - critic_loss(own)) > 1e-3
    action, log_prob = sampled(batch.obs, drawn.policy_noise)
    q = np.asarray(critic(batch.obs, action))
    want = (log_prob - np.mean([np.minimum(q[2 * i], q[2 * i + 1]) for i in range(3)], 0)).mean()
    assert float(metrics["actor_loss"]) == pytest.approx(float(want), abs=1e-9)


def test_three_critics_are_refused() -> None:
    algorithm = Off2On(**SMALL)
    critic = Model.create(Critics(*SPEC, (6,), count=3), Adam(1e-3), jax.random.key(1), target=True)
    s = algorithm.init({"critic": critic}, SPEC, jax.random.key(0))
    with pytest.raises(AssertionError, match="two critics of every member"):
        algorithm.update(s, rows_of(0), Draws(*noise(0, 2, 8, 2)), True)


# Balanced replay


class Reading:
    """A network whose ratio is the first entry of the observation."""

    def init(self, key: jax.Array) -> PyTree:
        return jnp.asarray(1.0)

    def apply(self, params: PyTree, obs: jax.Array, action: jax.Array) -> jax.Array:
        return params * obs[..., 0]


def pairs(*ratios: float) -> Pairs:
    return Pairs(jnp.array(ratios)[:, None], jnp.zeros((len(ratios), 1)))


def rows_with(*ratios: float) -> Batch:
    obs, action = pairs(*ratios)
    return Batch(obs, action, jnp.zeros(len(ratios)), obs, jnp.zeros(len(ratios)), {})


def reading() -> Ratio:
    return Ratio(Model.create(Reading(), Adam(0.1), jax.random.key(0)), jnp.asarray(2.0))


def test_priorities_by_hand() -> None:
    """Powers of 1/5 in both: data rows of ratios 1 and 32 are typically (1 + 2) / 2, not (33 / 2)^(1/5) = 1.75."""
    data = pairs(1.0, 32.0)
    own, priority, metrics = FITTED(reading(), rows_with(32.0, 0.0, 243.0), data, pairs(1.0))
    np.testing.assert_allclose(priority, [2 / 1.5, 1e-3, 2.0], rtol=1e-9)
    want = np.log(2 / 2) + np.mean([np.log((1 + 1) / 2), np.log((32 + 1) / 2)]) - np.log(2 * 1 / 2)
    assert float(metrics["ratio_loss"]) == pytest.approx(want, abs=1e-8)
    assert float(own.network.params) != 1.0  # the priorities are of before that step


def test_new_rows_begin_with_the_largest_priority_so_far() -> None:
    own, _, _ = FITTED(reading(), rows_with(1.0), pairs(1.0), pairs(1.0))
    assert float(own.largest) == 2.0  # it never falls
    own, _, _ = FITTED(reading(), rows_with(4.0**5), pairs(1.0), pairs(1.0))
    assert float(BalancedReplay().of_new(own, rows_with(1.0))) == pytest.approx(4.0)


def memory_of(data: Batch, capacity: int, size: int) -> Memory:
    spec = Spec(data.obs.shape[1], data.action.shape[1])
    return Memory(data, {}, Ring(empty_rows(spec, capacity), jnp.int32(size)))


def test_a_share_f_of_the_draws_falls_on_the_first_thousand_new_rows() -> None:
    memory, share = memory_of(rows_with(*np.ones(4000)), 1000, 1000), 0.75
    sampler = BalancedReplay(initial_online_share=share, ratio_hidden_sizes=(4,))
    begun = jax.jit(lambda: sampling.begin(sampler, {}, memory, 1000, jax.random.key(0)))()
    assert float(begun.own.largest) == pytest.approx(4 * share / (1 - share))
    drawn = jax.jit(lambda tree: sum_tree.draw(tree, jax.random.key(1), 1000, sampler.stratified))(begun.tree)
    assert abs(int((drawn >= 4000).sum()) - 1000 * share) <= 1  # stratified: exact but for the part at the border


def test_the_ratio_begins_where_it_has_a_gradient() -> None:
    net = DensityRatio(3, 2, (8, 8))
    params = net.init(jax.random.key(0))
    assert float(params["layers_2"]["bias"][0]) == 1.0
    assert (net.apply(params, jnp.asarray(rows_of(0, 200).obs), jnp.asarray(rows_of(1, 200).action)) > 0).mean() > 0.9


def test_the_ratio_becomes_that_of_the_densities() -> None:
    """Four of five data rows and one of five new rows are of the first kind: w is 1/4 there, 4 on the others."""
    first, second = 4 * [-0.5] + [0.5], [-0.5] + 4 * [0.5]
    data, new = (rows_with(*np.repeat(kinds, 40)) for kinds in (first, second))
    sampler = BalancedReplay(ratio_hidden_sizes=(16, 16), ratio_batch_size=64, ratio_learning_rate=3e-3)
    memory = Memory(data, {}, Ring(new, jnp.int32(200)))
    own = sampler.init({}, memory, jax.random.key(0))

    @jax.jit
    def learned(own: Ratio) -> Ratio:
        def body(own: Ratio, key: jax.Array) -> tuple[Ratio, None]:
            return sampler.learned(own, memory, data, key)[0], None

        return jax.lax.scan(body, own, jax.random.split(jax.random.key(1), 1500))[0]

    found = learned(own).network(*pairs(-0.5, 0.5))
    np.testing.assert_allclose(found, [0.25, 4.0], rtol=0.25)


# Independent agents


AGENTS = Independent(SAC(**SMALL), 2, JOINS)


def of_agent(k: int, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[k], tree)


def test_each_agent_learns_as_it_would_alone() -> None:
    """From its own start, on its own half of the batch, with its own noise."""
    assert AGENTS.batch_size == 16 and AGENTS.policy_kind == "tanh_gaussian"
    s, draws, batch = AGENTS.init({}, SPEC, jax.random.key(0)), AGENTS.draw(jax.random.key(1), SPEC), rows_of(0, 16)
    after, metrics = UPDATE(AGENTS, s, batch, draws, True)
    losses = []
    for k in (0, 1):
        part = jax.tree.map(lambda x, k=k: x[8 * k : 8 * k + 8], batch)
        alone, info = UPDATE(AGENTS.member, of_agent(k, s.members), part, of_agent(k, draws), True)
        assert_close(of_agent(k, after.members), alone, 1e-9)
        losses.append(float(info["critic_loss"]))
    assert float(metrics["critic_loss"]) == pytest.approx(np.mean(losses)) and abs(losses[0] - losses[1]) > 1e-6
    assert int(after.updates) == 1
    assert differ(of_agent(0, s.members.critic.params), of_agent(1, s.members.critic.params))
    assert differ(of_agent(0, draws), of_agent(1, draws))


def test_what_agents_hand_on() -> None:
    """The match of their policies; their critics and targets, each agent's two beside each other."""
    s = AGENTS.init({}, SPEC, jax.random.key(0))
    critic = s.members.critic
    critic = replace(critic, target=jax.tree.map(lambda x: 0.5 * x, critic.params))
    s = replace(s, members=replace(s.members, critic=critic))
    models = AGENTS.export(s)
    obs, action = jnp.asarray(rows_of(2).obs), jnp.asarray(rows_of(2).action)
    own = [of_agent(k, AGENTS.member.export(s.members)) for k in (0, 1)]
    assert_close(models["critic"](obs, action), jnp.concatenate([x["critic"](obs, action) for x in own]), 1e-12)
    slow = jnp.concatenate([x["critic"].slow(obs, action) for x in own])
    assert_close(models["critic"].slow(obs, action), slow, 1e-12)
    assert differ(models["critic"](obs, action), slow)
    means, log_stds = zip(*(x["actor"](obs) for x in own), strict=True)
    mean, log_std = models["actor"](obs)
    assert_close(mean, (means[0] + means[1]) / 2, 1e-12)
    second = sum(jnp.square(m) + jnp.exp(2 * log) for m, log in zip(means, log_stds, strict=True)) / 2
    assert_close(jnp.exp(2 * log_std), second - jnp.square(mean), 1e-9)
    assert_close(AGENTS.act(s, obs[0], jax.random.key(0), False), jnp.tanh(mean[0]), 1e-12)
    of_seeds = AGENTS.export(jax.tree.map(lambda x: jnp.stack([x, x]), s))
    assert_close(of_agent(1, of_seeds), models, 0.0)
    online = Off2On(**SMALL).init(models, SPEC, jax.random.key(3))
    assert len(online.critic.params) == 4 and len(online.actor.params) == 2
    assert_close(online.critic.target, models["critic"].target, 0.0)
    uneven = replace(critic, net=replace(critic.net, later_hidden_sizes=(7,)))
    with pytest.raises(AssertionError, match="several sizes"):
        joined_critics(uneven)


# The recipe


def test_the_phases_and_their_settings() -> None:
    recipe = Off2OnRecipe()
    (offline,) = recipe.offline_phases(100)
    agents: Any = offline.algorithm
    assert isinstance(agents, Independent) and agents.count == 5 and isinstance(agents.member, CQL)
    assert agents.member.hidden_sizes == agents.member.critic_hidden_sizes == (256, 256)
    assert agents.member.actor_learning_rate == 3e-5 and agents.batch_size == 5 * 256
    online = recipe.online_phase(50)
    assert online.online is not None and online.mix == "joined" and online.online.sampler == BalancedReplay()
    assert online.fresh == ("temperature",) and online.online.updates_per_step == 1
    check((offline, online), set(), None)


def test_one_member_is_cql_and_uniform_rows_have_no_sampler() -> None:
    recipe = replace(preset_recipe("off2on", "baq"), sampling="uniform")
    assert isinstance(recipe.offline_phases(10)[0].algorithm, CQL)
    online = recipe.online_phase(10).online
    assert online is not None and online.sampler is None


def test_balanced_rows_need_one_pool() -> None:
    recipe = replace(Off2OnRecipe(), replay="half")
    with pytest.raises(UserError, match="--replay all or part, or --sampling uniform"):
        check((recipe.online_phase(10),), {"actor", "critic"}, "tanh_gaussian")


def test_the_temperature_begins_anew() -> None:
    """At 1, though CQL left another."""
    phase = replace(Off2OnRecipe(), algorithm=Off2On(**SMALL)).online_phase(10)
    cql = CQL(batch_size=8, hidden_sizes=(6,), critic_hidden_sizes=(5,))
    models = cql.export(cql.init({}, SPEC, jax.random.key(0)))
    left = replace(models["temperature"], params=jnp.asarray(-3.0))
    s = phase.algorithm.init(phase.continued(models | {"temperature": left}), SPEC, jax.random.key(1))
    assert float(s.temperature()) == 0.0
    assert_close(s.actor.params, models["actor"].params, 0.0)
