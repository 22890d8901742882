"""Replay starts, trust flags of new rows and batch assembly against the authors' recorded buffers (float32)."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest

from segue.core.phases import MIXES, Online, Phase, ReplayStart, Selection
from segue.core.replay import Memory, Ring, draw_indices, empty_rows, gather, store
from segue.core.types import Batch, Spec
from segue.data import Dataset
from segue.methods.ssar import Annealed, StateAdaptive
from segue.methods.td3_bc import TD3BC
from segue.preparation import Preparation
from segue.replay_start import PhaseData, phase_data
from tests.golden_files import Record, assert_batch, cases, recorded_batch

SPEC = Spec(5, 2)
RING = 60  # rows of the online ring; the record's online buffer had 30, which four rows do not fill either
SSAR = TD3BC(coefficient=Annealed(StateAdaptive()))
GATHER = jax.jit(gather, static_argnums=0)


@cache
def record() -> Record:
    return Record("buffer_start")


def dataset() -> Dataset:
    columns = recorded_batch(record(), "transitions")
    last = np.arange(len(columns.reward)) == len(columns.reward) - 1
    terminated = columns.terminal > 0
    return Dataset.from_arrays(
        columns.obs, columns.action, columns.reward, terminated, last & ~terminated, columns.next_obs
    )


def start(replay: ReplayStart, trajectories: int = 50, inherit: bool = True, drop_last: bool = True) -> PhaseData:
    """What our online phase begins with; `inherit` and `drop_last` are the released program's ways."""
    schedule = Online(10, replay=replay, part_trajectories=trajectories, inherit_trust=inherit)
    selection = Selection("return", threshold=float(record()["return_threshold"]))
    phase = Phase("online", SSAR, online=schedule, selection=selection, replay_drop_last=drop_last)
    return phase_data(phase, dataset(), Preparation.identity(5), {}, seeds=1)


def ring_after_adding(data: PhaseData) -> Batch:
    """The ring [1, RING, ...] after the record's four transitions."""
    rows = jax.tree.map(lambda x: x[None], empty_rows(SPEC, RING, ("trust",)))
    added = recorded_batch(record(), "added")
    for step in range(4):
        row = jax.tree.map(lambda x, i=step: x[i][None], added)._replace(extras=data.new_row_extras(step))
        rows = store(rows, row, step)
    return jax.tree.map(np.asarray, rows)


def memory_of(data: PhaseData, rows: Batch, size: int) -> Memory:
    columns = {name: x[0] for name, x in data.columns.items()}
    return Memory(data.rows, columns, Ring(jax.tree.map(lambda x: x[0], rows), np.int32(size)))  # type: ignore[arg-type]


def pooled(data: PhaseData, rows: Batch, size: int) -> Batch:
    """Offline rows, then the ring's live ones: the one buffer that the record describes."""
    live = jax.tree.map(lambda x: np.asarray(x[0, :size]), rows)
    if data.rows is None:
        return live
    offline = data.rows._replace(extras={"trust": data.columns["trust"][0]})
    return jax.tree.map(lambda a, b: np.concatenate([a, b]), offline, live)


def indices_seen(replay: ReplayStart, memory: Memory, n: int = 4096) -> np.ndarray:
    """Many draws of our sampler."""
    draw = jax.jit(partial(draw_indices, MIXES[replay]), static_argnums=2)
    return np.asarray(draw(memory, jax.random.key(0), n))


needs_record = pytest.mark.skipif(not cases("buffer_start"), reason="no buffer_start record in this folder")


@needs_record
@pytest.mark.parametrize("replay", ["all", "half", "part", "none"])
def test_replay_start_equals_the_record(replay: ReplayStart) -> None:
    r, data = record(), start(replay)
    np.testing.assert_array_equal(start("all").columns["trust"][0], r["offline/subset_mask"])
    rows = ring_after_adding(data)
    if replay == "half":  # two buffers: the record's "start" is the online one, empty like our ring
        assert r["half/start/size"] == 0
        assert_batch(pooled(data, rows, 0), r, "offline")
        assert_batch(jax.tree.map(lambda x: x[0, :4], rows), r, "half/after_adding")
    else:
        assert_batch(pooled(data, rows, 0), r, f"{replay}/start")
        assert_batch(pooled(data, rows, 4), r, f"{replay}/after_adding")

    memory = memory_of(data, rows, 4)
    batch = GATHER(MIXES[replay], memory, r[f"{replay}/sample/indices"].ravel())
    assert_batch(batch, r, f"{replay}/sample/batch")
    draws = np.split(indices_seen(replay, memory), len(r[f"{replay}/sample/index_ranges"]))
    for found, (low, high) in zip(draws, r[f"{replay}/sample/index_ranges"], strict=True):
        np.testing.assert_array_equal(np.unique(found), np.arange(low, high))


@needs_record
@pytest.mark.parametrize("trajectories", [1, 3])
def test_best_trajectories_equal_the_record(trajectories: int) -> None:
    data = start("part", trajectories)
    assert data.rows is not None
    got = data.rows._replace(extras={"trust": data.columns["trust"][0]})
    assert_batch(got, record(), f"part_top_{trajectories}/start")


@needs_record
@pytest.mark.parametrize("replay", ["all", "half", "part", "none"])
def test_new_rows_are_trusted_in_the_paper_profile(replay: ReplayStart) -> None:
    """The record's "part" leaves old rows' flags on new ones (ssar.md B17); the paper's reading is 1 everywhere."""
    rows = ring_after_adding(start(replay, inherit=False))
    np.testing.assert_array_equal(rows.extras["trust"][0, :4], np.ones(4))
    if replay == "part":
        np.testing.assert_array_equal(record()["part/after_adding/subset_mask"][-4:], np.zeros(4))


@needs_record
def test_part_keeps_the_last_trajectory_in_the_paper_profile() -> None:
    """The released program loses the data's last trajectory (ssar.md 2.9); unless asked to, ours keeps all."""
    kept, lost = start("part", drop_last=False).rows, start("part").rows
    assert kept is not None and lost is not None
    assert len(kept.reward) == len(dataset()) > len(lost.reward)


@needs_record
def test_wrapping_equals_the_record_and_sampling_does_not() -> None:
    """Contents as recorded. The range is ours on purpose: the released program samples below the write index, which
    hides every old row after the wrap and fails at index 0 (ssar.md B16); we sample every live row."""
    r, capacity = record(), 42
    # In one ring of the record's capacity, because ours keeps the offline rows apart and would not wrap.
    flags = r["offline/subset_mask"]
    rows = jax.tree.map(lambda x: np.array(x[None]), empty_rows(SPEC, capacity, ("trust",)))
    offline = recorded_batch(r, "offline")
    jax.tree.map(lambda column, x: column[0].__setitem__(slice(40), x), rows, offline)
    added = recorded_batch(r, "added")
    slots = np.append(flags, np.ones(2))  # flags that stand in the slots before they are written
    for step, count in enumerate(range(41, 45)):
        slot = (count - 1) % capacity
        trust = {"trust": slots[slot : slot + 1].astype(np.float32)}
        row = jax.tree.map(lambda x, i=step: x[i][None], added)._replace(extras=trust)
        rows = store(jax.tree.map(np.asarray, rows), row, slot)
        live = min(count, capacity)
        memory = Memory(None, {}, Ring(jax.tree.map(lambda x: x[0], rows), np.int32(live)))  # type: ignore[arg-type]
        np.testing.assert_array_equal(np.unique(indices_seen("none", memory)), np.arange(live))
    assert_batch(jax.tree.map(lambda x: x[0], rows), r, "wrap_around/final")
    assert r["wrap_around/sampling_range_after_each_add"].tolist() == [41, 0, 1, 2]


@needs_record
def test_the_record_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Which of its parts the tests above went through, so that a new part does not pass unseen."""
    parts: set[Any] = {key.split("/")[0] for key in record().file.files}
    covered = {"all", "half", "part", "none", "part_top_1", "part_top_3", "wrap_around"}
    inputs = {"transitions", "offline", "added", "return_threshold", "trajectory_returns", "hparams"}
    assert parts == covered | inputs
    with capsys.disabled():
        print(f"\ngolden case passed: buffer_start ({', '.join(sorted(covered))})")
