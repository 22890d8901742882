"""Problems so small that their values are known. One training per algorithm answers every question about values.

The data holds five contexts side by side, each a one-hot observation (actions are uniform and matter in one only):

    bad     -> end, reward -1                       good -> end, reward 1
    first   -> second, reward 0                     second -> end, reward 1
    forever -> forever, reward 1; the log was cut by a time limit every fifth step
    choice  -> end, reward 1 - (a - 0.5)^2
"""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest

from segue.core.algorithm import Algorithm
from segue.core.learn import Program, act_greedily, initial_state, learn, make_keys
from segue.core.phases import Online
from segue.core.proximal import Proximal
from segue.core.replay import empty_rows
from segue.core.types import Batch, Models, PyTree, Spec
from segue.environment import Environment
from segue.methods.aca import ACA
from segue.methods.awac import AWAC
from segue.methods.baq import BehaviourWeight
from segue.methods.bc import BC
from segue.methods.behaviour import BehaviourModel
from segue.methods.cql import CQL
from segue.methods.famo2o_cql import FamO2OCQL
from segue.methods.famo2o_iql import FamO2OIQL
from segue.methods.iql import IQL, IQLCritics
from segue.methods.off2on import Off2On
from segue.methods.pex import PEX
from segue.methods.proto_sac import ProtoSAC
from segue.methods.proto_td3 import ProtoTD3
from segue.methods.rebrac import ReBRAC
from segue.methods.sac import SAC
from segue.methods.sac_ml import SACML
from segue.methods.so2 import SO2
from segue.methods.spot import SPOT
from segue.methods.spot_vae import BehaviourVAE
from segue.methods.td3 import TD3
from segue.methods.td3_bc import TD3BC
from segue.methods.xql import XQL
from segue.online import OnlineLoop
from segue.preparation import Preparation

CONTEXTS = ("bad", "good", "first", "second", "forever", "choice")
SPEC = Spec(len(CONTEXTS), 1)
DISCOUNT, BEST_ACTION, TIME_LIMIT = 0.9, 0.5, 5
ROWS, UPDATES = 1200, 2000
QUICK: dict[str, Any] = {"batch_size": 64, "hidden_sizes": (32, 32), "discount": DISCOUNT, "target_update_rate": 0.05}
RATES: dict[str, Any] = {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3}
# SAC's entropy bonus would add to the values: a fixed, small temperature leaves them.
FIXED_TEMPERATURE: dict[str, Any] = {"initial_temperature": 1e-3, "temperature_learning_rate": 0.0}
# CQL's conservative term all but off, and its temperature fixed as well.
UNBIASED: dict[str, Any] = {
    "conservative_weight": 1e-3,
    "num_sampled_actions": 2,
    "automatic_temperature": False,
    "temperature_multiplier": 1e-3,
    "critic_hidden_sizes": (32, 32),
}
MANY_CRITICS: dict[str, Any] = {"num_critics": 4, "target_critics": 2, "backup_entropy": False}
SMALL_CQL: dict[str, Any] = {"num_sampled_actions": 2, "critic_hidden_sizes": (32, 32)}
ALGORITHMS: dict[str, Algorithm] = {
    "td3": TD3(**QUICK, **RATES),
    "sac": SAC(policy_update_interval=2, **FIXED_TEMPERATURE, **QUICK, **RATES),
    "so2": SO2(num_critics=2, temperature=1e-3, **QUICK | RATES | {"policy_update_interval": 2}),
    "sac_ml": SACML(policy_update_interval=2, **FIXED_TEMPERATURE, **QUICK, **RATES),
    "td3_bc": TD3BC(alpha=100.0, **QUICK, **RATES),
    "cloning": TD3BC(alpha=1e-3, **QUICK, **RATES),
    "bc": BC(batch_size=64, hidden_sizes=(32, 32), actor_learning_rate=1e-3),
    "spot": SPOT(support_weight=1e-3, vae_hidden_sizes=(32, 32), actor_dropout=0.0, **QUICK, **RATES),
    "rebrac": ReBRAC(actor_penalty=1e-3, critic_penalty=0.0, **QUICK, **RATES),
    "penalized": ReBRAC(actor_penalty=100.0, critic_penalty=1.0, **QUICK, **RATES),
    "iql": IQL(0.5, inverse_temperature=10.0, cosine_updates=UPDATES, value_learning_rate=1e-3, **QUICK, **RATES),
    "cql": CQL(**UNBIASED, **QUICK, **RATES),
    "famo2o_iql": FamO2OIQL(expectile=0.5, value_learning_rate=1e-3, balance_hidden_sizes=(32,), **QUICK, **RATES),
    "famo2o_cql": FamO2OCQL(conservative_weight=1e-3, balance_hidden_sizes=(32,), **SMALL_CQL, **QUICK, **RATES),
    "awac": AWAC(advantage_temperature=0.1, **QUICK, **RATES),
    "baq_iql": IQL(
        0.5, inverse_temperature=10.0, cosine_updates=UPDATES, value_learning_rate=1e-3, weighting=BehaviourWeight(2.0),
        **QUICK, **RATES,
    ),
    "baq_cql": CQL(weighting=BehaviourWeight(2.0), **UNBIASED, **QUICK, **RATES),
    # Q = R + omega clip_0(log pi_0), whose omega falls to 0 here; values() reads R, which then learns anew what the
    # preferences were. At SAC's small temperature a random policy would never come back from where they are largest.
    "aca": ACA(
        alignment_fall_updates=UPDATES // 8, alignment_weight_floor=0.0, policy_update_interval=2,
        **FIXED_TEMPERATURE | {"initial_temperature": 0.02}, **QUICK | RATES | {"critic_learning_rate": 2e-3},
    ),
    "off2on": Off2On(policy_update_interval=2, **FIXED_TEMPERATURE, **QUICK, **RATES),
    "proto_sac": ProtoSAC(
        Proximal(1e-3), "tanh_gaussian", policy_update_interval=2, **FIXED_TEMPERATURE, **QUICK, **RATES
    ),
    "proto_td3": ProtoTD3(Proximal(1e-3), alpha=100.0, critic_layer_norm=False, **QUICK, **RATES),
    "rlpd": SAC(critic_layer_norm=True, policy_update_interval=2, **MANY_CRITICS, **FIXED_TEMPERATURE, **QUICK | RATES),
    "wsrl": SAC(
        **MANY_CRITICS, repeat_target_critics=True, critic_minibatches=2, **FIXED_TEMPERATURE, **QUICK, **RATES
    ),
    "pex": PEX(expectile=0.5, value_learning_rate=1e-3, **QUICK, **RATES),
    "xql": XQL(0.5, critic_layer_norm=False, value_learning_rate=1e-3, **QUICK, **RATES),
    "iql_critics": IQLCritics(expectile=0.5, critic_learning_rate=1e-3, value_learning_rate=1e-3, **QUICK),
}
VALUED = (
    "td3", "sac", "sac_ml", "so2", "td3_bc", "spot", "rebrac", "iql", "awac", "cql", "iql_critics", "xql", "famo2o_iql",
    "famo2o_cql", "baq_iql", "baq_cql", "aca", "off2on", "proto_sac", "proto_td3", "rlpd", "wsrl",
)  # fmt: skip
TRAINED = ("td3", "sac", "iql", "cql", "bc")  # in `make test`; `make test-all` trains the others, too
CLIMBING = (
    "td3", "sac", "td3_bc", "spot", "rebrac", "iql", "cql", "so2", "famo2o_iql",
    "baq_iql", "baq_cql", "aca", "off2on", "proto_sac", "proto_td3", "rlpd", "wsrl",
)  # fmt: skip


def quickly(names: tuple[str, ...], quick: tuple[str, ...] = TRAINED) -> list[Any]:
    """Those names, all but a few marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


every_valued = pytest.mark.parametrize("name", quickly(VALUED))


def rows(time_limits_are_terminal: bool = False) -> Batch:
    rng = np.random.default_rng(0)
    context = np.arange(ROWS) % len(CONTEXTS)
    kind = np.array(CONTEXTS)[context]
    action: Any = rng.uniform(-1, 1, (ROWS, 1)).astype(np.float32)
    reward = np.select(
        [kind == "bad", kind == "first", kind == "choice"], [-1.0, 0.0, 1 - (action[:, 0] - BEST_ACTION) ** 2], 1.0
    )
    terminal = ~np.isin(kind, ("first", "forever"))
    if time_limits_are_terminal:
        step = np.arange(ROWS) // len(CONTEXTS)
        terminal |= (kind == "forever") & (step % TIME_LIMIT == TIME_LIMIT - 1)
    following = np.where(kind == "first", CONTEXTS.index("second"), context)
    hot: Any = np.eye(len(CONTEXTS), dtype=np.float32)
    ends: Any = terminal.astype(np.float32)
    rewards: Any = reward.astype(np.float32)
    return Batch(hot[context], action, rewards, hot[following], ends, {})


@cache
def trained(name: str, wrong: bool = False) -> PyTree:
    algorithm = ALGORITHMS[name]
    models: Models = {}
    if getattr(algorithm, "weighting", None) is not None:  # a model of the behaviour whose actions are nearly 0
        model = BehaviourModel(hidden_sizes=(32, 32))
        models = model.export(model.init({}, SPEC, jax.random.key(1)))
    return learned(algorithm, rows(wrong), SPEC, models)


def learned(algorithm: Algorithm, data: Batch, spec: Spec, models: Models) -> PyTree:
    """The state after UPDATES updates on `data`, from models of earlier phases."""
    keys, models = make_keys((0,), 0), jax.tree.map(lambda x: x[None], models)
    state = jax.jit(lambda: initial_state(algorithm, models, spec, keys))()
    rounds = np.int32(UPDATES // algorithm.policy_update_interval)
    start, program = np.int32(0), Program(algorithm, "offline", spec)
    state, _ = learn(program, state, {}, keys.learn, data, start, rounds)
    return jax.tree.map(lambda x: x[0], state)


@cache
def values(name: str, wrong: bool = False) -> dict[str, np.ndarray]:
    """Q_1 of each context at 21 actions from -1 to 1."""
    actions: Any = np.tile(np.linspace(-1, 1, 21, dtype=np.float32), SPEC[0])[:, None]
    obs: Any = np.repeat(np.eye(SPEC[0], dtype=np.float32), 21, axis=0)
    q = jax.jit(lambda critic: critic(obs, actions)[0])(trained(name, wrong).critic)
    return dict(zip(CONTEXTS, np.asarray(q).reshape(SPEC[0], 21), strict=True))


def policy(name: str) -> dict[str, float]:
    obs: Any = np.eye(SPEC[0], dtype=np.float32)
    actions = act_greedily(ALGORITHMS[name], trained(name), obs)
    return dict(zip(CONTEXTS, np.asarray(actions)[:, 0].tolist(), strict=True))


@every_valued
def test_a_constant_reward_is_its_value(name: str) -> None:
    np.testing.assert_allclose(values(name)["good"], 1.0, atol=0.1)


@every_valued
def test_the_value_depends_on_the_observation(name: str) -> None:
    np.testing.assert_allclose(values(name)["bad"], -1.0, atol=0.1)


@every_valued
def test_the_value_depends_on_the_action(name: str) -> None:
    actions = np.linspace(-1, 1, 21)
    np.testing.assert_allclose(values(name)["choice"], 1 - (actions - BEST_ACTION) ** 2, atol=0.15)


@every_valued
def test_a_later_reward_is_discounted(name: str) -> None:
    np.testing.assert_allclose(values(name)["second"], 1.0, atol=0.1)
    np.testing.assert_allclose(values(name)["first"], DISCOUNT, atol=0.1)


@every_valued
def test_time_limits_do_not_cut_the_value(name: str) -> None:
    """Rewards of 1 for ever are worth 1 / (1 - gamma), though every log of them ends."""
    np.testing.assert_allclose(values(name)["forever"], 1 / (1 - DISCOUNT), rtol=0.05)


@pytest.mark.parametrize("name", quickly(VALUED, ("sac", "iql")))  # another training each
def test_the_wrong_handling_of_time_limits_does(name: str) -> None:
    """Stored as terminal, every fifth row cuts the bootstrap: 1 / (1 - 0.8 gamma).

    Targets are now random, cut or not, and a constant learning rate follows their noise: what counts is that the value
    lies where the wrong rule puts it, on the scale of the distance to the right one.
    """
    right, wrong = 1 / (1 - DISCOUNT), 1 / (1 - DISCOUNT * (1 - 1 / TIME_LIMIT))
    assert abs(values(name, wrong=True)["forever"].mean() - wrong) < 0.15 * (right - wrong)


@pytest.mark.parametrize("name", quickly(CLIMBING))
def test_the_policy_picks_the_best_action(name: str) -> None:
    assert abs(policy(name)["choice"] - BEST_ACTION) < 0.1


@pytest.mark.parametrize("name", quickly(("cloning", "bc", "penalized")))
def test_cloning_keeps_the_policy_at_the_data(name: str) -> None:
    """BC, and others with the Q term all but off: the mean of uniform actions."""
    assert abs(policy(name)["choice"]) < 0.15


@pytest.mark.slow
def test_rebrac_charges_values_for_leaving_the_next_action() -> None:
    """Next actions are known of "first" alone, whose rows "second" ones follow: uniform, of mean square 1/3.

    The cloned policy's target action is 0 and noise of 0.2, clipped at 0.5, whose mean square is 0.039.
    """
    assert abs(values("penalized")["first"].mean() - DISCOUNT * (1 - (1 / 3 + 0.039))) < 0.06
    np.testing.assert_allclose(values("penalized")["forever"], 1 / (1 - DISCOUNT), rtol=0.05)


@pytest.mark.slow
def test_spot_stays_in_the_support() -> None:
    """Actions near -0.6 and 0.6, rewards that rise with them: the best supported one, not their mean, nor 1."""
    rng = np.random.default_rng(0)
    action: Any = (rng.choice([-0.6, 0.6], (ROWS, 1)) + rng.normal(0, 0.03, (ROWS, 1))).astype(np.float32)
    zeros: Any = np.zeros((ROWS, 1), np.float32)
    ends: Any = np.ones(ROWS, np.float32)
    data, spec = Batch(zeros, action, action[:, 0], zeros, ends, {}), Spec(1, 1)
    vae = learned(BehaviourVAE(batch_size=64, hidden_sizes=(32, 32), kl_weight=0.1), data, spec, {}).vae
    algorithm = SPOT(
        support_weight=50.0, vae_kl_weight=0.1, vae_hidden_sizes=(32, 32), actor_dropout=0.0, **QUICK, **RATES
    )
    state = learned(algorithm, data, spec, {"vae": vae})
    assert abs(float(act_greedily(algorithm, state, zeros[:1])[0, 0]) - 0.6) < 0.15


@pytest.mark.slow
def test_awac_clones_by_capped_weights() -> None:
    """Its policy is the mean of uniform actions, weighed by how much better than its own they are.

    Not the best action: one std serves all contexts, and where it is wide the cap makes many actions equally good.
    """
    algorithm: Any = ALGORITHMS["awac"]
    std = np.exp(np.asarray(trained("awac").actor.params["log_std"]))
    actions, noise = np.linspace(-1, 1, 401), np.random.default_rng(0).normal(size=1000)
    mean = 0.0
    for _ in range(30):  # to the fixed point
        own = np.clip(mean + std * noise, -1, 1)
        advantage = (own - BEST_ACTION) ** 2 - (actions[:, None] - BEST_ACTION) ** 2
        weight = np.minimum(np.exp(advantage / algorithm.advantage_temperature), algorithm.advantage_weight_max).mean(1)
        mean = float((weight * actions).sum() / weight.sum())
    assert 0.3 < mean < BEST_ACTION and abs(policy("awac")["choice"] - mean) < 0.08, mean


@pytest.mark.slow
def test_pex_finds_better_actions_than_the_policy_that_it_froze() -> None:
    """A random one near 0. It learns values as IQL does (tests/test_pex.py); its std, one for all contexts, is wide."""
    assert abs(policy("pex")["choice"] - BEST_ACTION) < 0.2


class Choice(gym.Env):
    """One step; reward 1 - (a - 0.5)^2."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, **_: Any) -> tuple[np.ndarray, dict]:
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(1, np.float32), 1 - float(action[0] - BEST_ACTION) ** 2, True, False, {}


class Walk(Choice):
    """Reward 1 for ever."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(1, np.float32), 1.0, False, False, {}


def online(algorithm: Algorithm, env: Any, steps: int, warmup: int, preparation: Preparation) -> OnlineLoop:
    keys, spec = make_keys((0,), 0), Spec(1, 1)
    loop = OnlineLoop(
        program=Program(algorithm, "online", spec),
        schedule=Online(steps, warmup, random_warmup=True, updates_per_step=2.0),
        environments=[Environment(env)],
        preparation=preparation,
        state=jax.jit(lambda: initial_state(algorithm, {}, spec, keys))(),
        rows=jax.tree.map(lambda x: x[None], empty_rows(spec, steps)),
        columns={},
        offline=None,
        keys=keys,
        seeds=(0,),
    )
    loop.begin()
    return loop


@pytest.mark.parametrize("name", [pytest.param("td3", marks=pytest.mark.slow), "sac"])
def test_online_the_policy_finds_the_best_action(name: str) -> None:
    loop = online(ALGORITHMS[name], Choice, 900, 100, Preparation.identity(1))
    loop.advance(lambda: False, 900)
    assert loop.updates == 1600
    state, obs = jax.tree.map(lambda x: x[0], loop.state), jax.numpy.zeros((1, 1))
    action = act_greedily(ALGORITHMS[name], state, obs)
    assert abs(float(action[0, 0]) - BEST_ACTION) < 0.1


def test_online_a_time_limit_is_no_end() -> None:
    """Stored with terminal 0 and the transformed reward; the episode's return is the raw one."""
    preparation = Preparation.of_dataset(np.zeros((1, 1)), False, 2.0, -1.0)
    loop = online(ALGORITHMS["td3"], lambda: gym.wrappers.TimeLimit(Walk(), TIME_LIMIT), 10, 10, preparation)
    episodes = loop.advance(lambda: False, 10)[1]
    assert [(e["step"], e["length"], e["return"]) for e in episodes] == [(5, 5, 5.0), (10, 5, 5.0)]
    assert (np.asarray(loop.rows.terminal) == 0).all() and (np.asarray(loop.rows.reward) == 1).all()
    assert loop.updates == 0
