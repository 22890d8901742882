"""What every algorithm has to do, whatever its equations. In float64, where equal means equal to 1e-9."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue import checkpoint
from segue.core.algorithm import Algorithm
from segue.core.independent import Independent
from segue.core.learn import Program, initial_state, learn, learn_singly, make_keys, policy_flags
from segue.core.replay import Memory, gather
from segue.core.types import Models, PyTree, Spec
from segue.methods.aca import ACA
from segue.methods.awac import AWAC
from segue.methods.baq import BehaviourWeight
from segue.methods.bc import BC
from segue.methods.behaviour import BehaviourModel
from segue.methods.clone import Clone
from segue.methods.cql import CQL
from segue.methods.famo2o_cql import FamO2OCQL
from segue.methods.famo2o_iql import FamO2OIQL
from segue.methods.fqe import FQE
from segue.methods.iql import IQL, IQLCritics
from segue.methods.o2ppo import O2PPO
from segue.methods.o2sac import ConstrainedSAC, SACAlignment, SACReevaluation
from segue.methods.o2td3 import ConstrainedTD3, TD3Alignment, TD3Reevaluation
from segue.methods.odt import ODT
from segue.methods.off2on import Off2On
from segue.methods.pex import PEX
from segue.methods.ppo import PPO
from segue.methods.proto_sac import ProtoSAC
from segue.methods.proto_td3 import ProtoTD3
from segue.methods.rebrac import ReBRAC
from segue.methods.return_value import ReturnValue
from segue.methods.sac import SAC
from segue.methods.sac_ml import SACML, StateBaseline
from segue.methods.so2 import SO2, SO2OnIQL
from segue.methods.spot import SPOT
from segue.methods.spot_vae import BehaviourVAE
from segue.methods.ssar import Annealed, StateAdaptive
from segue.methods.td3 import TD3
from segue.methods.td3_bc import TD3BC
from segue.methods.uni_o4 import UniO4
from segue.methods.xql import XQL
from segue.recipes.off2on import JOINS
from tests.made_up import assert_close, rows_of

pytestmark = pytest.mark.usefixtures("float64")

SPEC, TOLERANCE = Spec(3, 2), 1e-9
ROWS, SEEDS, ROUNDS = 12, (0, 1, 2), 2
# Learning rates at which every entry visibly moves; the coefficient's own 3e-8 is below a float's last bit in places.
ADAPTIVE = StateAdaptive(coefficient_hidden_sizes=(5,), coefficient_learning_rate=1e-3)
SMALL: dict[str, Any] = {"batch_size": 8, "hidden_sizes": (6,)}
SMALL_PPO: dict[str, Any] = SMALL | {"minibatch_size": 3, "epochs": 2, "value_hidden_sizes": (6,)}
SMALL_CQL: dict[str, Any] = SMALL | {"critic_hidden_sizes": (6,), "num_sampled_actions": 2}
SMALL_O2: dict[str, Any] = SMALL | {"critic_hidden_sizes": (6,)}
LAGRANGE: dict[str, Any] = SMALL_CQL | {"lagrange": True, "max_target_backup": True, "gap_clip_min": -200.0}
ALGORITHMS: dict[str, Algorithm] = {
    "td3_bc": TD3BC(**SMALL),
    "ssar_masked": TD3BC(replace(ADAPTIVE, mask_regularizer=True), critic_layer_norm=True, **SMALL),
    "ssar_unmasked": TD3BC(ADAPTIVE, critic_layer_norm=True, **SMALL),
    "ssar_online": TD3BC(Annealed(ADAPTIVE), critic_layer_norm=True, **SMALL),
    "bc": BC(policy_update_interval=2, **SMALL),
    "behaviour_vae": BehaviourVAE(**SMALL),
    "behaviour_model": BehaviourModel(**SMALL),
    "spot": SPOT(vae_hidden_sizes=(6,), density_samples=2, **SMALL),
    "rebrac": ReBRAC(**SMALL),
    "cql": CQL(policy_update_interval=2, **SMALL_CQL),
    "cql_lagrange_max_backup": CQL(**LAGRANGE),
    "baq_cql": CQL(weighting=BehaviourWeight(0.5, "td_and_conservative"), **SMALL_CQL),
    "cql_ssar_masked": CQL(replace(ADAPTIVE, mask_regularizer=True), critic_layer_norm=True, **SMALL_CQL),
    "cql_ssar_online": CQL(Annealed(ADAPTIVE, shape="cosine"), critic_layer_norm=True, **SMALL_CQL),
    "cal_ql": CQL(calibrate=True, initialization="finetune", **SMALL_CQL),
    "td3": TD3(**SMALL),
    "sac": SAC(policy_update_interval=2, **SMALL),
    "so2": SO2(**SMALL | {"policy_update_interval": 2, "num_critics": 3}),
    "so2_on_iql": SO2OnIQL(**SMALL | {"policy_update_interval": 2}),
    "sac_ml": SACML(**SMALL | {"policy_update_interval": 2}),
    "state_baseline": StateBaseline(**SMALL),
    "aca": ACA(**SMALL | {"policy_update_interval": 2}),
    "aca_unsquashed": ACA(squashed_policy=False, **SMALL),
    "off2on": Off2On(policy_update_interval=2, **SMALL),
    "independent": Independent(CQL(policy_update_interval=2, **SMALL_CQL | {"batch_size": 4}), 2, JOINS),
    "sac_many_critics": SAC(num_critics=3, target_critics=2, actor_value="mean", backup_entropy=False, **SMALL),
    "sac_parts": SAC(critic_minibatches=2, target_critics=1, repeat_target_critics=True, **SMALL),
    "iql_soft_q": IQL(actor_objective="soft_q", policy_update_interval=2, **SMALL),
    "iql": IQL(actor_dropout=0.25, policy_update_interval=2, **SMALL),
    "iql_deterministic": IQL(deterministic_actor=True, policy_update_interval=2, **SMALL),
    "baq_iql": IQL(weighting=BehaviourWeight(0.5), policy_update_interval=2, **SMALL),
    "awac": AWAC(policy_update_interval=2, **SMALL),
    "famo2o_iql": FamO2OIQL(balance_hidden_sizes=(6,), policy_update_interval=2, **SMALL),
    "famo2o_iql_online": FamO2OIQL("balance", balance_hidden_sizes=(6,), **SMALL),
    "famo2o_cql": FamO2OCQL(balance_hidden_sizes=(6,), policy_update_interval=2, **SMALL_CQL),
    "iql_critics": IQLCritics(policy_update_interval=2, **SMALL),
    "pex": PEX(policy_update_interval=2, **SMALL),
    "ppo": PPO(**SMALL_PPO),
    "o2ppo": O2PPO(initial_std_cap=0.5, **SMALL_PPO),
    "uni_o4": UniO4(value_clip=0.05, **SMALL_PPO),
    "return_value": ReturnValue(**SMALL),
    "sac_reevaluation": SACReevaluation(**SMALL_O2),
    "sac_alignment": SACAlignment(policy_update_interval=2, **SMALL_O2),
    "constrained_sac": ConstrainedSAC(policy_update_interval=2, **SMALL_O2),
    "td3_reevaluation": TD3Reevaluation(**SMALL_O2),
    "td3_alignment": TD3Alignment(policy_update_interval=2, **SMALL_O2),
    "constrained_td3": ConstrainedTD3(**SMALL_O2),
    "clone": Clone(policy_update_interval=2, **SMALL),
    "clone_gaussian": Clone("gaussian", "labels", **SMALL),
    "clone_bounded_gaussian": Clone("gaussian", bounded_std=True, **SMALL),
    "clone_deterministic": Clone("deterministic", **SMALL),
    "xql": XQL(clone_behaviour=True, policy_update_interval=2, **SMALL),
    "proto_sac": ProtoSAC(policy_update_interval=2, **SMALL),
    "proto_sac_squashed": ProtoSAC(form="tanh_gaussian", target_critic="random", backup_entropy=False, **SMALL),
    "proto_td3": ProtoTD3(loss_actions="sample", **SMALL),
    "proto_td3_deterministic": ProtoTD3(form="deterministic", target_action="noisy_actor", **SMALL),
    "fqe": FQE(SAC(**SMALL), stochastic=True, policy_update_interval=2, **SMALL),
    "odt": ODT(
        batch_size=8, context_length=3, acting_context_length=2, width=6, num_layers=1, num_heads=2, ordering=True
    ),
}
ACTOR, TARGET_ACTOR = (".actor.params", ".actor.opt_state"), ".actor.target"
CRITIC, TARGET_CRITIC = (".critic.params", ".critic.opt_state", ".updates"), ".critic.target"
BETA = (".beta.net.params", ".beta.net.opt_state")
BASELINE = (".baseline.params", ".baseline.opt_state")
TEMPERATURE = (".temperature.params", ".temperature.opt_state")
MULTIPLIER = (".multiplier.params", ".multiplier.opt_state")
CONSTRAINT = (".constraint.log_multiplier.params", ".constraint.log_multiplier.opt_state", ".constraint.due")
VALUE = (".value.params", ".value.opt_state")
BALANCE = (".balance_temperature.params", ".balance_temperature.opt_state")
PROXIMAL = ".proximal.policy.params"
# What moves on an update that is not a policy step, and what moves on one beside that. All else is frozen.
MOVES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "td3_bc": (CRITIC, (*ACTOR, TARGET_ACTOR, TARGET_CRITIC)),
    "ssar_masked": (CRITIC, (*ACTOR, TARGET_ACTOR, TARGET_CRITIC, *BETA)),
    "ssar_unmasked": (CRITIC, (*ACTOR, TARGET_ACTOR, TARGET_CRITIC, *BETA)),
    "ssar_online": (CRITIC, (*ACTOR, TARGET_ACTOR, TARGET_CRITIC)),
    "bc": ((*ACTOR, ".updates"), ()),
    "behaviour_vae": ((".vae.params", ".vae.opt_state", ".updates"), ()),
    "behaviour_model": ((".model.params", ".model.opt_state", ".sums", ".rows", ".updates"), ()),
    "spot": (CRITIC, (*ACTOR, TARGET_ACTOR, TARGET_CRITIC)),
    "rebrac": (CRITIC, (*ACTOR, TARGET_ACTOR, TARGET_CRITIC)),
    "cql": ((*CRITIC, TARGET_CRITIC), (*ACTOR, *TEMPERATURE)),
    "cql_lagrange_max_backup": ((*CRITIC, TARGET_CRITIC, *MULTIPLIER), (*ACTOR, *TEMPERATURE)),
    "baq_cql": ((*CRITIC, TARGET_CRITIC, *ACTOR, *TEMPERATURE), ()),
    "cql_ssar_masked": ((*CRITIC, TARGET_CRITIC), (*ACTOR, *TEMPERATURE, *BETA)),
    "cql_ssar_online": ((*CRITIC, TARGET_CRITIC), (*ACTOR, *TEMPERATURE)),
    "cal_ql": ((*CRITIC, TARGET_CRITIC), (*ACTOR, *TEMPERATURE)),
    "td3": (CRITIC, (*ACTOR, TARGET_ACTOR, TARGET_CRITIC)),
    "sac": ((*CRITIC, TARGET_CRITIC), (*ACTOR, *TEMPERATURE)),
    "so2": ((*CRITIC, TARGET_CRITIC), ACTOR),
    "so2_on_iql": ((*CRITIC, TARGET_CRITIC, *VALUE), ACTOR),
    "sac_ml": ((*CRITIC, TARGET_CRITIC, *BASELINE), (*ACTOR, *TEMPERATURE)),
    "state_baseline": ((*BASELINE, ".updates"), ()),
    "aca": ((*CRITIC, TARGET_CRITIC, ".aligned_updates"), (*ACTOR, *TEMPERATURE)),
    "aca_unsquashed": ((*CRITIC, TARGET_CRITIC, ".aligned_updates"), (*ACTOR, *TEMPERATURE)),
    "off2on": ((*CRITIC, TARGET_CRITIC), (*ACTOR, *TEMPERATURE)),
    "independent": (
        (".updates", *(f".members{path}" for path in (*CRITIC, TARGET_CRITIC))),
        tuple(f".members{path}" for path in (*ACTOR, *TEMPERATURE)),
    ),
    "sac_many_critics": ((*CRITIC, TARGET_CRITIC, *ACTOR, *TEMPERATURE), ()),
    "sac_parts": ((*CRITIC, TARGET_CRITIC, *ACTOR, *TEMPERATURE), ()),
    "iql_soft_q": ((*CRITIC, TARGET_CRITIC, *VALUE), (*ACTOR, *TEMPERATURE)),
    "iql": ((*CRITIC, TARGET_CRITIC, *VALUE), ACTOR),
    "iql_deterministic": ((*CRITIC, TARGET_CRITIC, *VALUE), ACTOR),
    "baq_iql": ((*CRITIC, TARGET_CRITIC, *VALUE), ACTOR),
    "awac": ((*CRITIC, TARGET_CRITIC), ACTOR),
    "famo2o_iql": ((*CRITIC, TARGET_CRITIC, *VALUE), (*ACTOR, *BALANCE)),
    "famo2o_iql_online": ((*CRITIC, TARGET_CRITIC, *VALUE), (*ACTOR, *BALANCE)),
    "famo2o_cql": ((*CRITIC, TARGET_CRITIC), (*ACTOR, *TEMPERATURE)),
    "iql_critics": ((*CRITIC, TARGET_CRITIC, *VALUE), ()),
    "pex": ((*CRITIC, TARGET_CRITIC, *VALUE), ACTOR),
    "ppo": ((*ACTOR, *VALUE, ".updates"), ()),
    "o2ppo": ((*ACTOR, *VALUE, ".updates"), ()),
    "uni_o4": ((*ACTOR, *VALUE, ".updates"), ()),
    "return_value": ((*VALUE, ".updates"), ()),
    "sac_reevaluation": ((*CRITIC, TARGET_CRITIC), ()),
    "sac_alignment": (CRITIC, ACTOR),
    "constrained_sac": ((*CRITIC, TARGET_CRITIC), (*ACTOR, *TEMPERATURE, *CONSTRAINT)),
    "td3_reevaluation": ((*CRITIC, TARGET_CRITIC), ()),
    "td3_alignment": (CRITIC, ACTOR),
    "constrained_td3": (CRITIC, (*ACTOR, TARGET_ACTOR, TARGET_CRITIC, *CONSTRAINT)),
    "clone": ((*ACTOR, *MULTIPLIER, ".updates"), ()),
    "clone_gaussian": ((*ACTOR, *MULTIPLIER, ".updates"), ()),
    "clone_bounded_gaussian": ((*ACTOR, *MULTIPLIER, ".updates"), ()),
    "clone_deterministic": ((*ACTOR, ".updates"), ()),
    "xql": ((*CRITIC, TARGET_CRITIC, *VALUE), (*ACTOR, ".behaviour.params", ".behaviour.opt_state")),
    "proto_sac": ((*CRITIC, TARGET_CRITIC), (*ACTOR, *TEMPERATURE, PROXIMAL)),
    "proto_sac_squashed": ((*CRITIC, TARGET_CRITIC), (*ACTOR, *TEMPERATURE, PROXIMAL)),
    "proto_td3": (CRITIC, (*ACTOR, TARGET_CRITIC, PROXIMAL)),
    "proto_td3_deterministic": (CRITIC, (*ACTOR, TARGET_CRITIC, PROXIMAL)),
    "fqe": ((*CRITIC, TARGET_CRITIC), ()),
    "odt": ((*ACTOR, *TEMPERATURE, ".best_return", ".updates"), ()),
}
every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)
# In `make test`: one of each kind of machinery (coefficients and columns, a multiplier, temperatures, values of states,
# rollouts, a constraint). `make test-all` compiles the others; golden records hold most of them as well.
COMPILED = ("ssar_masked", "cql_lagrange_max_backup", "sac", "iql", "o2ppo", "constrained_td3")


def quickly(names: Iterable[str], quick: tuple[str, ...] = COMPILED) -> Any:
    """Those names, all but a few marked slow."""
    return pytest.mark.parametrize(
        "name", [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]
    )


every_compiled = quickly(ALGORITHMS)
# Programs take seconds to compile: where the algorithm's class decides, one of each is enough.
CLASSES = (
    "ssar_masked", "td3", "spot", "rebrac", "cql_lagrange_max_backup", "baq_cql", "sac", "so2", "so2_on_iql",
    "off2on", "independent", "sac_ml", "aca", "iql", "baq_iql", "awac", "famo2o_iql", "famo2o_cql", "iql_critics",
    "behaviour_model", "pex", "o2ppo", "uni_o4", "clone", "sac_reevaluation", "sac_alignment", "constrained_sac",
    "td3_reevaluation", "td3_alignment", "constrained_td3", "xql", "proto_sac", "proto_td3", "fqe", "odt",
)  # fmt: skip
one_of_each_class = quickly(CLASSES)
# Three seeds are another program.
two_of_the_classes = quickly(CLASSES, ("ssar_masked", "sac"))


def columns(name: str, seeds: int) -> dict[str, np.ndarray]:
    """Two thirds of the rows trusted (or weighed), for algorithms that ask."""
    coefficient = getattr(ALGORITHMS[name], "coefficient", None)
    wanted = ALGORITHMS[name].columns + (coefficient.columns if coefficient is not None else ())
    return {column: np.tile(np.arange(ROWS) % 3 > 0, (seeds, 1)).astype(float) for column in wanted}


def program(name: str) -> Program:
    return Program(ALGORITHMS[name], "offline", SPEC)


@cache
def given(name: str) -> Models:
    """What the phase before has to make, for those that cannot begin without it: a model of the behaviour."""
    if getattr(ALGORITHMS[name], "weighting", None) is None:
        return {}
    model = BehaviourModel(**SMALL)
    return jax.device_get(jax.jit(lambda key: model.export(model.init({}, SPEC, key)))(jax.random.key(1)))


@cache
def start(name: str) -> PyTree:
    """Fresh states [SEEDS], on the host: `learn` eats what it is given."""
    keys, models = make_keys(SEEDS, 0), jax.tree.map(lambda x: np.stack([x] * len(SEEDS)), given(name))
    return jax.device_get(jax.jit(lambda keys: initial_state(ALGORITHMS[name], models, SPEC, keys))(keys))


def of_seed(tree: PyTree, k: int) -> PyTree:
    """One seed's part, its axis kept."""
    return jax.tree.map(lambda x: x[k : k + 1], tree)


def rounds(name: str, state: PyTree, first: int, count: int, seeds: tuple[int, ...] = SEEDS[:1]) -> PyTree:
    """`count` rounds in one fused call, after `first` rounds."""
    keys, interval = make_keys(seeds, 0).learn, ALGORITHMS[name].policy_update_interval
    at = np.int32(first * interval)
    state, metrics = learn(program(name), state, columns(name, len(seeds)), keys, rows_of(0, ROWS), at, np.int32(count))
    assert all(np.isfinite(x).all() and x.shape == (len(seeds),) for x in metrics.values())
    return jax.device_get(state)


def single(name: str, state: PyTree, number: int) -> PyTree:
    """Update `number` (from 0) alone."""
    flags = policy_flags(ALGORITHMS[name].policy_update_interval, number, 1)
    keys = make_keys(SEEDS[:1], 0).learn
    return jax.device_get(
        learn_singly(program(name), flags, state, columns(name, 1), keys, rows_of(0, ROWS), np.int32(number))[0]
    )


@cache
def learned(name: str) -> PyTree:
    """Seed 0 after ROUNDS rounds in one call."""
    return rounds(name, of_seed(start(name), 0), 0, ROUNDS)


def moved(before: PyTree, after: PyTree) -> dict[str, bool]:
    """Leaf's path -> did it change?"""
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    return {jax.tree_util.keystr(path): not np.array_equal(a, b) for (path, a), b in pairs}


def assert_same(a: PyTree, b: PyTree) -> None:
    assert not any(moved(a, b).values()), moved(a, b)


@every_algorithm
def test_shapes(name: str) -> None:
    """`init`, `draw`, `update`, `act`, `export`, and a second `init` from the exported models."""
    algorithm, earlier, key = ALGORITHMS[name], given(name), jax.random.key(0)
    state = jax.eval_shape(lambda: algorithm.init(earlier, SPEC, key))
    memory = Memory(rows_of(0, ROWS), {name: column[0] for name, column in columns(name, 1).items()})
    picked, wants_next = jnp.arange(algorithm.batch_size), "next_action" in algorithm.columns
    batch = gather("offline", memory, picked, wants_next, window=algorithm.window)

    def described(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    for policy_step in (False, True):
        step = lambda s, flag=policy_step: algorithm.update(s, batch, algorithm.draw(key, SPEC), flag)  # noqa: E731
        after, metrics = jax.eval_shape(step, state)
        assert described(after) == described(state)
        assert all(x.shape == () for x in metrics.values())
        assert "critic_1_mean" in metrics or not hasattr(state, "critic")  # by which a session sees divergence
    models = jax.eval_shape(algorithm.export, state)
    assert set(models) == set(algorithm.gives)
    if algorithm.policy_kind is None:
        with pytest.raises(NotImplementedError):
            algorithm.act(state, jnp.zeros(3), key, False)
        return
    assert models["actor"].net.kind == algorithm.policy_kind
    for explore in (False, True):
        act = lambda s, flag=explore: algorithm.act(s, jnp.zeros(3), key, flag)  # noqa: E731
        assert jax.eval_shape(act, state).shape == (2,)
    again = jax.eval_shape(lambda models: algorithm.init(earlier | models, SPEC, key), models)
    assert described(again) == described(state)


@every_compiled
def test_an_update_moves_what_is_trained_and_nothing_else(name: str) -> None:
    """On an update that is no policy step, if there are such, and over a round, which ends with one."""
    fresh = of_seed(start(name), 0)
    always, on_policy_steps = MOVES[name]
    cases = [(rounds(name, fresh, 0, 1), always + on_policy_steps)]
    if ALGORITHMS[name].policy_update_interval > 1:
        cases.append((single(name, fresh, 0), always))
    for after, wanted in cases:
        for leaf, did in moved(fresh, after).items():
            assert did == leaf.startswith(wanted), f"{leaf} {'moved' if did else 'stood still'}"


@every_compiled
def test_a_fused_call_equals_single_ones(name: str) -> None:
    """The same program cut into calls: to the bit."""
    state = of_seed(start(name), 0)
    for done in range(ROUNDS):
        state = rounds(name, state, done, 1)
    assert_same(state, learned(name))


@one_of_each_class
def test_a_fused_call_equals_one_call_an_update(name: str) -> None:
    """Other programs: to 1e-9 (float64)."""
    state = of_seed(start(name), 0)
    for number in range(ROUNDS * ALGORITHMS[name].policy_update_interval):
        state = single(name, state, number)
    assert_close(state, learned(name), TOLERANCE)


@two_of_the_classes
def test_seeds_side_by_side_equal_each_alone(name: str) -> None:
    together = rounds(name, start(name), 0, ROUNDS, SEEDS)
    assert_close(of_seed(together, 0), learned(name), TOLERANCE)
    for k in (1, 2):
        alone = rounds(name, of_seed(start(name), k), 0, ROUNDS, SEEDS[k : k + 1])
        assert_close(of_seed(together, k), alone, TOLERANCE)


@every_compiled
def test_seeds_differ_and_do_not_depend_on_their_company(name: str) -> None:
    for network in ("critic", "actor", "value"):
        model = getattr(start(name), network, None)
        if model is not None:
            kernels = [x for path, x in jax.tree_util.tree_leaves_with_path(model.params) if "kernel" in str(path)]
            assert all(not np.array_equal(x[0], x[k]) for x in kernels for k in (1, 2))
    data = jax.random.key_data
    for together, alone in zip(make_keys((4, 5), 3), make_keys((5,), 3), strict=True):
        np.testing.assert_array_equal(data(together)[1:], data(alone))
    streams = [data(key) for phase in (0, 1) for key in make_keys(SEEDS, phase)]
    assert len(np.unique(np.concatenate(streams), axis=0)) == 2 * 3 * len(SEEDS)


@every_compiled
def test_a_saved_state_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "saved", learned(name), {})
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), learned(name))
    loaded = checkpoint.load(tmp_path / "saved", template)
    assert_same(loaded, learned(name))
    assert_same(rounds(name, loaded, ROUNDS, 1), rounds(name, learned(name), ROUNDS, 1))
