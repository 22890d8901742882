"""Whole runs of methods against the record, from the raw dataset to the last environment step.

The environment replays the recorded observations, rewards and endings; the algorithm acts as recorded and writes down
what reaches it. What the networks then learn is the stepping cases' business (test_golden_td3bc.py and its like).

Two of the records' buffers are not ours. Cal-QL's batches hold a quarter of the dataset, in front: ours half, behind;
so its rows are looked up and put in order. Fine-tuned CQL's buffer overwrites the dataset when it is full: ours never
does; so its slots are translated to rows that were written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.algorithm import Algorithm
from segue.core.learn import Program, initial_state, make_keys
from segue.core.phases import MIXES, Online, Phase, Selection
from segue.core.replay import Memory, Ring, empty_rows, gather
from segue.core.types import Batch, Metrics, Models, Spec
from segue.data import Dataset, load_dataset
from segue.data.prepare import return_range_scale
from segue.environment import Environment
from segue.methods.awac import AWAC
from segue.methods.cql import CQL
from segue.methods.iql import IQL
from segue.methods.spot import SPOT
from segue.methods.ssar import Annealed, StateAdaptive
from segue.methods.td3_bc import TD3BC
from segue.online import OnlineLoop
from segue.preparation import Preparation
from segue.recipes.awac import AWACRecipe
from segue.recipes.cql import CalQLRecipe, CQLRecipe
from segue.recipes.iql import IQLRecipe
from segue.recipes.spot import SPOTRecipe
from segue.recipes.ssar import SSARCQLRecipe
from segue.replay_start import PhaseData, phase_data
from tests.golden_files import FIELDS, Record, assert_batch, cases, explored, recorded_batch

FLOAT32 = 1e-5  # relative, as the record's README asks of float32 quantities
SPEC = Spec(5, 2)
UPDATES = 32  # room for more updates than any record has
LEARNING_RATE = "actor_learning_rate"
GATHER = jax.jit(gather, static_argnums=0)


class Script(gym.Env):
    """The recorded course of the environment, in raw observations; it says nothing of time limits."""

    def __init__(self, record: Record, preparation: Preparation):
        def raw(name: str) -> np.ndarray:
            return record[f"online/{name}"] * preparation.std.astype(np.float64) + preparation.mean

        self.before, self.after = raw("observation"), raw("next_observation")
        self.rewards, self.terminated = record["online/raw_reward"], record["online/terminated"] > 0
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (5,), np.float64)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.taken: list[np.ndarray] = []

    def reset(self, **_: Any) -> tuple[np.ndarray, dict]:
        return self.before[min(len(self.taken), len(self.before) - 1)], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        k = len(self.taken)
        self.taken.append(action)
        return self.after[k], float(self.rewards[k]), bool(self.terminated[k]), False, {}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Diary:
    """What the recording algorithm saw, and what it has to do."""

    obs: jax.Array  # [T, S] the recorded observations
    action: jax.Array  # [T, A] and the actions taken there
    host: Any  # the state that the method would have
    seen: dict[str, jax.Array]  # [UPDATES, ...]
    updates: jax.Array


@dataclass(frozen=True)
class Recorder(Algorithm[Diary]):
    """Acts by the record, learns nothing."""

    host: Algorithm
    steps: int
    factor: Callable[[Any, jax.Array], jax.Array]  # of the method's state at update t (from 1): what its schedule says
    batch_size: int = 4
    discount: float = 0.99
    policy_update_interval: int = 1

    @property
    def coefficient(self) -> Any:
        """The method's, which asks for columns of the rows."""
        return getattr(self.host, "coefficient", None)

    def init(self, models: Models, spec: Spec, key: jax.Array) -> Diary:
        seen = {
            "policy_step": jnp.zeros(UPDATES, bool),
            "factor": jnp.zeros(UPDATES),
            "reward": jnp.zeros((UPDATES, self.batch_size)),
        }
        obs, action = jnp.zeros((self.steps, *spec[:1])), jnp.zeros((self.steps, spec.action_dim))
        host = self.host.init({"updates": models["updates"]}, spec, key)
        return Diary(obs, action, host, seen, models["updates"])

    def draw(self, key: jax.Array, spec: Spec) -> tuple[()]:
        return ()

    def update(self, s: Diary, batch: Batch, draws: Any, policy_step: bool) -> tuple[Diary, Metrics]:
        k, updates = s.updates - s.host.updates, s.updates + 1
        entry = {"policy_step": policy_step, "reward": batch.reward, "factor": self.factor(s.host, updates)}
        seen = {name: column.at[k].set(entry[name]) for name, column in s.seen.items()}
        return replace(s, seen=seen, updates=updates), {}

    def act(self, s: Diary, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        return s.action[jnp.argmin(jnp.abs(s.obs - obs).sum(-1))]

    def export(self, s: Diary) -> Models:
        return {}


def load(record: Record, folder: Path) -> Dataset:
    path = folder / "raw.hdf5"
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
            file[name] = record.file[f"raw/{name}"]
    return replace(load_dataset(f"d4rl:{path}"), max_episode_steps=record.hparams["max_episode_steps"])


def prepare(record: Record, dataset: Dataset) -> Preparation:
    """Rewards as the record scales them: by the range of returns, or shifted where they are sparse."""
    h = record.hparams
    scale, bias = h.get("reward_scale", 1.0), h.get("reward_bias", -1.0)
    if h["environment"] != "antmaze":
        scale, bias = return_range_scale(dataset.rewards, dataset.terminated, 1000), 0.0
    preparation = Preparation.of_dataset(dataset.observations, h["normalise_observations"], scale, bias)
    if h["normalise_observations"]:
        np.testing.assert_allclose(preparation.mean, record["normalisation/mean"], rtol=FLOAT32, atol=FLOAT32 / 10)
        np.testing.assert_allclose(preparation.std, record["normalisation/std"], rtol=FLOAT32)
    return replace(preparation, action_limit=SSARCQLRecipe().action_limit) if of_cql_sa(record) else preparation


def of_cql_sa(record: Record) -> bool:
    """Is it SSAR on CQL?"""
    return "num_sampled_actions" in record.hparams


def ssar_phases(record: Record, inherit: bool) -> tuple[Phase, Phase]:
    """The recorded run as we would ask for it."""
    h = record.hparams
    selection = Selection("success", failure_reward=h.get("reward_bias", -1.0))
    if h["environment"] != "antmaze":
        selection = Selection("return", threshold=float(record["return_threshold"]))
    adaptive = StateAdaptive(coefficient_hidden_sizes=(4,))
    annealed = Annealed(adaptive, h["decay_steps"] if h["decay_steps"] > 0 else None, floor_at_zero=False)
    host: TD3BC | CQL = TD3BC(adaptive, hidden_sizes=(4,))
    if of_cql_sa(record):
        annealed = replace(annealed, shape=SSARCQLRecipe().anneal_shape)
        host = CQL(adaptive, hidden_sizes=(16, 16, 16), critic_hidden_sizes=(4,))
    online = Online(
        h["online_steps"], h["warmup_steps"], replay=h["buffer_start"], part_trajectories=50, inherit_trust=inherit
    )
    algorithm: Any = Recorder(
        host=replace(host, coefficient=annealed),
        steps=h["online_steps"],
        batch_size=h["batch_size"],
        policy_update_interval=h.get("policy_update_interval_online", 1),
        factor=lambda s, updates: jnp.asarray(annealed.factor(s.beta, updates)),
    )
    return (
        Phase("offline", host, h["offline_steps"], selection=selection),
        Phase("online", algorithm, online=online, selection=selection, replay_drop_last=True),
    )


def iql_phases(record: Record) -> tuple[Phase, Phase]:
    """As recorded, with the cosine that goes on; the factor is the actor's learning rate."""
    h = record.hparams
    algorithm = IQL(
        cosine_updates=None,
        deterministic_actor=h["deterministic_actor"],
        actor_learning_rate=h["actor_lr"],
        online_action_noise=h["exploration_noise_std"],
        online_action_noise_clip=h["exploration_noise_clip"],
        hidden_sizes=(16, 16),
    )
    recipe = IQLRecipe(algorithm=algorithm, online_actor_schedule="torch_cosine_continue")
    host: Any = recipe.online_phase(h["online_steps"]).algorithm

    def factor(s: Any, updates: jax.Array) -> jax.Array:
        return h["actor_lr"] * host.actor_rate(replace(s, updates=updates - 1), jnp.zeros(1))

    return watched(record, recipe.offline_phases(h["offline_steps"])[0], recipe.online_phase(h["online_steps"]), factor)


def awac_phases(record: Record) -> tuple[Phase, Phase]:
    """As recorded."""
    h, recipe = record.hparams, AWACRecipe(algorithm=AWAC(hidden_sizes=(16, 16, 16)))
    return watched(record, recipe.offline_phases(h["offline_steps"])[0], recipe.online_phase(h["online_steps"]))


def spot_phases(record: Record) -> tuple[Phase, Phase]:
    """As recorded; the factor is the count of online updates, by which the penalty cools."""
    h = record.hparams
    algorithm = SPOT(
        support_weight=h["support_weight"],
        support_weight_floor=h["support_weight_floor_fraction"],
        vae_hidden_sizes=(4,),
        discount=h["discount"],
        online_action_noise=h["exploration_noise_std"],
        online_action_noise_clip=h["exploration_noise_clip"],
        hidden_sizes=(16, 16),
        actor_dropout=0.0,
    )
    recipe = SPOTRecipe(algorithm=algorithm, vae_steps=h["vae_pretraining_steps"], discount_online=h["online_discount"])
    behaviour, offline = recipe.offline_phases(h["offline_steps"])
    assert behaviour.updates == h["vae_pretraining_steps"]
    online = recipe.online_phase(h["online_steps"])
    assert set(record["updates/offline/discount"]) == {offline.algorithm.discount}
    assert set(record["updates/online/discount"]) == {online.algorithm.discount}
    return watched(record, offline, online, lambda s, updates: (updates - s.online_origin).astype(float))


def cql_phases(record: Record) -> tuple[Phase, Phase]:
    """As recorded: Cal-QL's bound is off online, where the conservative term is another."""
    h = record.hparams
    algorithm = CQL(conservative_weight=h["conservative_weight_offline"], hidden_sizes=(16, 16, 16))
    settings: dict[str, Any] = {"conservative_weight_online": h["conservative_weight_online"], "warmup_steps": 0}
    recipe: CQLRecipe | CalQLRecipe = CQLRecipe(algorithm=algorithm, **settings)
    if "sparse_return_to_go" in h:
        settings |= {"online_calibration": False, "return_to_go_failure_reward": h["reward_bias"]}
        recipe = CalQLRecipe(algorithm=replace(algorithm, calibrate=True, discount=h["discount"]), **settings)
    offline, online = recipe.offline_phases(h["offline_steps"])[0], recipe.online_phase(h["online_steps"])
    for phase in (offline, online):
        at, its = f"updates/{phase.name}", phase.algorithm
        assert isinstance(its, CQL)
        assert set(record[f"{at}/conservative_weight"]) == {its.conservative_weight}
        if "sparse_return_to_go" in h:
            assert set(record[f"{at}/calibrated"]) == {its.calibrate}
    return watched(record, offline, online)


PHASES = {"iql": iql_phases, "awac": awac_phases, "spot": spot_phases}


def updates_before(record: Record) -> int:
    """Of the online phase; the record counts the auto-encoder's too (its README, surprise 22)."""
    return int(record.hparams["offline_steps"]) + int(record.hparams.get("vae_pretraining_steps", 0))


def watched(
    record: Record,
    offline: Phase,
    online: Phase,
    factor: Callable[[Any, jax.Array], jax.Array] = lambda s, updates: jnp.ones(()),
) -> tuple[Phase, Phase]:
    """A recipe's phases, the online one's algorithm replaced by the recorder."""
    h: dict[str, Any] = record.hparams
    recorder: Any = Recorder(
        online.algorithm, h["online_steps"], factor, h["batch_size"], 0.99, online.algorithm.policy_update_interval
    )
    return offline, replace(online, algorithm=recorder)


def loop_of(record: Record, phase: Phase, data: PhaseData, preparation: Preparation) -> OnlineLoop:
    h, keys = record.hparams, make_keys((0,), 1)
    models = {"updates": jnp.full(1, updates_before(record), jnp.int32)}
    state = initial_state(phase.algorithm, models, SPEC, keys)
    names = {"obs": "observation", "action": "action"}
    script = {name: jnp.asarray(record.file[f"online/{key}"])[None] for name, key in names.items()}
    assert phase.online is not None
    return OnlineLoop(
        program=Program(phase.algorithm, phase.mix, SPEC),
        schedule=phase.online,
        environments=[Environment(lambda: gym.wrappers.TimeLimit(Script(record, preparation), h["max_episode_steps"]))],
        preparation=preparation,
        state=replace(state, **script),
        rows=jax.tree.map(lambda x: x[None], empty_rows(SPEC, h["online_steps"], tuple(data.columns))),
        columns={name: jnp.asarray(flags) for name, flags in data.columns.items()},
        offline=data.rows,
        keys=keys,
        seeds=(0,),
        new_row_extras=data.new_row_extras,
    )


def of_seed_0(data: PhaseData) -> dict[str, Any]:
    """Its columns of the offline rows."""
    return {name: flags[0] for name, flags in data.columns.items()}


def pooled(data: PhaseData, rows: Batch, size: int) -> Batch:
    """Offline rows, then the ring's live ones."""
    live = jax.tree.map(lambda x: np.asarray(x[0, :size]), rows)
    if data.rows is None:
        return live
    offline = data.rows._replace(extras=of_seed_0(data))
    return jax.tree.map(lambda a, b: np.concatenate([a, b]), offline, live)


def check_stored_row(record: Record, loop: OnlineLoop, step: int) -> None:
    """Row `step` of the ring is what the record stored, and its action is the one that was executed."""
    stored = ("observation", "stored_action", "stored_reward", "next_observation", "stored_terminal")
    want = (record[f"online/{name}"][step] for name in stored)
    row = jax.tree.map(lambda x: np.asarray(x[0, step]), loop.rows)
    for name, got, expected in zip(FIELDS, row[:5], want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=FLOAT32, atol=FLOAT32 / 10, err_msg=f"step {step} {name}")
    script: Any = loop.environments[0].gym.unwrapped
    np.testing.assert_allclose(script.taken[step], record["online/action"][step], rtol=0, atol=1e-7)


def check_batch(record: Record, phase: Phase, loop: OnlineLoop, data: PhaseData, k: int) -> None:
    """The recorded indices of online update `k` name the recorded batch, out of as many rows as recorded."""
    at = "updates/online"
    assert phase.online is not None
    replay = phase.online.replay
    size = np.int32(loop.env_step)
    offline = 0 if data.rows is None else len(data.rows.reward)
    ranges = {"half": [size, offline], "none": [size]}.get(replay, [size + offline])
    assert record[f"{at}/index_range"][k].tolist() == ranges
    ring = Ring(jax.tree.map(lambda x: x[0], loop.rows), jnp.asarray(size))
    memory = Memory(data.rows, {name: jnp.asarray(flags) for name, flags in of_seed_0(data).items()}, ring)
    indices = [record[f"{at}/{name}"][k] for name in ("indices_0", "indices_1") if f"{at}/{name}" in record.file.files]
    same_rows(GATHER(MIXES[replay], memory, np.concatenate(indices)), record, at, k)


def same_rows(batch: Batch, record: Record, at: str, k: int) -> None:
    """`batch` is the recorded one of update `k`."""
    want = jax.tree.map(lambda x: x[k], recorded_batch(record, f"{at}/batch"))
    for got, expected in zip(jax.tree.leaves(batch), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, expected, rtol=FLOAT32, atol=FLOAT32 / 10, err_msg=f"{at} {k}")


@pytest.mark.parametrize("name", cases("loop_td3bc_sa_*", "loop_cql_sa_*"))
def test_loop_equals_the_record(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(name)
    h = record.hparams
    dataset = load(record, tmp_path)
    preparation = prepare(record, dataset)
    offline, online = ssar_phases(record, inherit=True)
    start = phase_data(offline, dataset, preparation, {}, seeds=1)
    assert start.rows is not None
    flagged = start.rows._replace(extras=of_seed_0(start))
    assert_batch(start.rows, record, "prepared", FLOAT32)
    assert_batch(flagged, record, "offline_start/buffer", FLOAT32)

    data = phase_data(online, dataset, preparation, {}, seeds=1)
    loop = loop_of(record, online, data, preparation)
    if h["buffer_start"] != "half":  # there the record's is the online buffer, empty like our ring
        assert_batch(pooled(data, loop.rows, 0), record, "online_start/buffer", FLOAT32)

    if of_cql_sa(record):
        check_first_action(record, online)
    updates = check_course(record, online, loop, data)
    np.testing.assert_array_equal(loop.rows.extras["trust"][0], record["online/subset_mask"])
    final = pooled(data, loop.rows, 0 if h["buffer_start"] in ("half", "none") else h["online_steps"])
    if h["buffer_start"] == "none":  # the untouched offline buffer, which we drop
        final = flagged
    assert_batch(final, record, "final/offline_buffer", FLOAT32)
    steps = record["updates/online/online_steps_argument"]
    factors = 1 - steps / h["decay_steps"] if h["decay_steps"] > 0 else np.ones(len(updates))
    flags = np.ones(len(updates), bool)
    if of_cql_sa(record):
        factors = np.cos(np.pi / 2 * np.minimum(steps / h["decay_steps"], 1))
    else:
        total = h["offline_steps"] + np.arange(1, len(updates) + 1)  # the switch does not shift policy steps
        flags = total % record["updates/online/policy_update_interval"] == 0
    check_what_the_algorithm_saw(record, loop.state, factors, flags, pooled(data, loop.rows, h["online_steps"]))
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


def check_course(
    record: Record, phase: Phase, loop: OnlineLoop, data: PhaseData, check: Callable[..., None] = check_batch
) -> list[int]:
    """Every step's row and every update's batch are the record's; the environment steps at which it updates."""
    loop.begin()
    updates: list[int] = record["updates/online/env_steps_so_far"].tolist()
    for step in range(record.hparams["online_steps"]):
        made = loop.updates
        loop.advance(lambda: False, step + 1)
        check_stored_row(record, loop, step)
        due = updates.count(step + 1)
        assert loop.updates - made == due
        if due:
            check(record, phase, loop, data, updates.index(step + 1))
    return updates


def check_what_the_algorithm_saw(
    record: Record, diary: Diary, factors: np.ndarray, policy_steps: np.ndarray, rows: Batch
) -> None:
    """Number of updates, factor of the schedule, policy steps, and that batches hold stored rows."""
    count = len(factors)
    seen = {name: np.asarray(x[0]) for name, x in diary.seen.items()}
    assert int(diary.updates[0]) == updates_before(record) + count
    np.testing.assert_allclose(seen["factor"][:count], factors, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(seen["policy_step"][:count], policy_steps)
    assert np.isin(seen["reward"][:count], np.asarray(rows.reward)).all()


@pytest.mark.parametrize("name", cases("loop_iql_*", "loop_awac_*", "loop_spot_*"))
def test_baseline_loop_equals_the_record(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One buffer of all the data and the new rows, an update at every step, no warm-up."""
    record = Record(name)
    h = record.hparams
    dataset = load(record, tmp_path)
    preparation = prepare(record, dataset)
    offline, online = PHASES[name.split("_")[1]](record)
    start = phase_data(offline, dataset, preparation, {}, seeds=1)
    assert start.rows is not None
    assert_batch(start.rows, record, "prepared", FLOAT32)
    rates = record[f"updates/offline/{LEARNING_RATE}"] if "iql" in name else np.ones(h["offline_steps"])
    for at in {key.rpartition("/")[0] for key in record.file.files if key.endswith("/indices_0")} - {"updates/online"}:
        for k, indices in enumerate(record[f"{at}/indices_0"]):
            assert record[f"{at}/index_range"][k].tolist() == [len(start.rows.reward)]
            same_rows(GATHER("offline", Memory(start.rows, {}), indices), record, at, k)
    if isinstance(offline.algorithm, IQL):
        state = offline.algorithm.init({}, SPEC, jax.random.key(0))
        found = [offline.algorithm.actor_rate(replace(state, updates=jnp.int32(k)), jnp.zeros(1)) for k in range(3)]
        np.testing.assert_allclose(h["actor_lr"] * np.asarray(found), rates, rtol=0, atol=1e-9)

    data = phase_data(online, dataset, preparation, {}, seeds=1)
    loop = loop_of(record, online, data, preparation)
    check_first_action(record, online)
    updates = check_course(record, online, loop, data)
    rows = pooled(data, loop.rows, h["online_steps"])
    assert_batch(rows, record, "final/offline_buffer", FLOAT32)
    assert len(rows.reward) == record["final/offline_buffer/size"] == record["final/offline_buffer/write_index"]
    factors, flags = np.ones(len(updates)), np.ones(len(updates), bool)
    if "iql" in name:
        factors = record[f"updates/online/{LEARNING_RATE}"]
    elif "spot" in name:
        factors = record["updates/online/online_steps_before"] + 1
        steps = record["updates/online/actor_optimizer_steps_before"]
        flags = np.append(np.diff(steps) > 0, len(steps) // 2 > steps[-1])
    check_what_the_algorithm_saw(record, loop.state, factors, flags, rows)
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


def check_quarter(record: Record, phase: Phase, loop: OnlineLoop, data: PhaseData, k: int) -> None:
    """One row of the dataset, then three of the ring: a batch of ours of six, but for two rows, in their order."""
    at, size = "updates/online", np.int32(loop.env_step)
    assert data.rows is not None
    assert record[f"{at}/index_range"][k].tolist() == [len(data.rows.reward), size]
    offline, online = (record[f"{at}/indices_{i}"][k] for i in (0, 1))
    memory = Memory(data.rows, {}, Ring(jax.tree.map(lambda x: x[0], loop.rows), jnp.asarray(size)))
    batch = GATHER("half", memory, np.concatenate([online, np.repeat(offline, len(online))]))
    order = [len(online), *range(len(online))]
    same_rows(jax.tree.map(lambda x: np.asarray(x)[order], batch), record, at, k)


def slots(record: Record, written: int) -> np.ndarray:
    """Our row of every slot of the record's buffer, after `written` online ones: the dataset's, or the latest there."""
    offline, capacity = len(record["prepared/rewards"]), int(record["capacity"])
    rows = np.arange(min(offline + written, capacity))
    rows[record["online/write_index"][:written]] = offline + np.arange(written)  # the last of equal ones stays
    return rows


def check_slots(record: Record, phase: Phase, loop: OnlineLoop, data: PhaseData, k: int) -> None:
    """Their buffer is full after three steps; what it holds is among what ours does."""
    at, size = "updates/online", np.int32(loop.env_step)
    rows = slots(record, loop.env_step)
    assert record[f"{at}/index_range"][k].tolist() == [len(rows)]
    memory = Memory(data.rows, {}, Ring(jax.tree.map(lambda x: x[0], loop.rows), jnp.asarray(size)))
    same_rows(GATHER("joined", memory, rows[record[f"{at}/indices_0"][k]]), record, at, k)


@pytest.mark.parametrize("name", cases("loop_calql_*", "loop_cql_finetune_*"))
def test_cql_loop_equals_the_record(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, sparse = Record(name), "calql" in name
    h = record.hparams
    dataset = load(record, tmp_path)
    preparation = prepare(record, dataset)
    offline, online = cql_phases(record)
    start = phase_data(offline, dataset, preparation, {}, seeds=1)
    assert start.rows is not None
    assert_batch(start.rows, record, "prepared", FLOAT32)
    if sparse:
        bounds = of_seed_0(start)["return_to_go"]
        np.testing.assert_allclose(bounds, record["prepared/return_lower_bounds"], rtol=1e-6)
    for k, indices in enumerate(record["updates/offline/indices_0"]):
        same_rows(GATHER("offline", Memory(start.rows, {}), indices), record, "updates/offline", k)

    data = phase_data(online, dataset, preparation, {}, seeds=1)
    assert data.columns == {}
    loop = loop_of(record, online, data, preparation)
    check_first_action(record, online)
    updates = check_course(record, online, loop, data, check_quarter if sparse else check_slots)
    rows = pooled(data, loop.rows, h["online_steps"])
    kept = np.arange(len(start.rows.reward)) if sparse else slots(record, h["online_steps"])
    assert_batch(jax.tree.map(lambda x: x[kept], rows), record, "final/offline_buffer", FLOAT32)
    check_what_the_algorithm_saw(record, loop.state, np.ones(len(updates)), np.ones(len(updates), bool), rows)
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


def check_first_action(record: Record, phase: Phase) -> None:
    """The policy at the start of the online phase explores as recorded."""
    recorder: Any = phase.algorithm
    obs, noise = (record.file[f"online/{key}"][0] for key in ("observation", "standard_normal"))
    action = explored(recorder.host, record.tree("online_start/actor"), obs, noise)
    np.testing.assert_allclose(action, record["online/action"][0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", cases("loop_td3bc_sa_part"))
def test_new_rows_are_trusted_in_the_paper_profile(name: str, tmp_path: Path) -> None:
    """The record inherits flags of old rows (ssar.md B17); the paper profile writes 1 with every new row."""
    record = Record(name)
    dataset = load(record, tmp_path)
    preparation = prepare(record, dataset)
    phase = ssar_phases(record, inherit=False)[1]
    data = phase_data(phase, dataset, preparation, {}, seeds=1)
    flags = [data.new_row_extras(step)["trust"][0] for step in range(record.hparams["online_steps"])]
    assert set(flags) == {1.0} and set(record["online/subset_mask"]) == {0.0, 1.0}


def test_there_are_cases() -> None:
    assert len(cases("loop_iql_*", "loop_awac_*", "loop_spot_*")) == 4
    assert len(cases("loop_cql_sa_*")) == 2 and len(cases("loop_calql_*", "loop_cql_finetune_*")) == 2
    assert cases("loop_td3bc_sa_*"), "no loop_td3bc_sa_*.npz in the folder that SEGUE_GOLDEN names"
