"""The data functions against golden records of the original programs.

The folder comes from SEGUE_GOLDEN (default tests/golden); every `data_*.npz` in it is a case.
"""

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from segue.data import load_dataset, prepare

GOLDEN = Path(os.environ.get("SEGUE_GOLDEN", "tests/golden"))
CASES = sorted(GOLDEN.glob("data_*.npz"))
BUFFER = GOLDEN / "buffer_start.npz"

Record = dict[str, Any]


def close32(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def close64(actual: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


def loaded(path: Path) -> Record:
    """A record's arrays, with the hyper-parameters parsed."""
    record: Record = dict(np.load(path))
    record["hparams"] = json.loads(str(record["hparams"]))
    record["sparse"] = "antmaze" in path.stem
    return record


def columns_of(record: Record) -> Record:
    """Columns of the prepared transitions, as the selection functions take them."""
    return {
        "observations": record["normalised/observations"],
        "next_observations": record["normalised/next_observations"],
        "rewards": record["transitions/rewards"],
        "terminated": record["transitions/terminals"].astype(bool),
    }


def check_transitions(record: Record, folder: Path) -> None:
    path = folder / "raw.hdf5"
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
            file[name] = record[f"raw/{name}"]
    dataset = load_dataset(f"d4rl:{path}")
    for name in ("observations", "actions", "rewards", "next_observations"):
        np.testing.assert_array_equal(getattr(dataset, name), record[f"transitions/{name}"])
    np.testing.assert_array_equal(dataset.terminated, record["transitions/terminals"].astype(bool))


def check_normalisation(record: Record) -> None:
    mean, std = prepare.observation_statistics(record["transitions/observations"])
    close32(mean, record["normalisation/mean"])
    close32(std, record["normalisation/std"])
    np.testing.assert_allclose(mean, record["normalisation/mean_float64"], rtol=1e-6)
    np.testing.assert_allclose(std, record["normalisation/std_float64"], rtol=1e-6)
    for name in ("observations", "next_observations"):
        close32(prepare.normalise(record[f"transitions/{name}"], mean, std), record[f"normalised/{name}"])


def check_clipped_actions(record: Record) -> None:
    close32(prepare.clip_actions(record["transitions/actions"]), record["clipped_actions"])


def check_rewards(record: Record, cap: int) -> None:
    columns, hparams, online = columns_of(record), record["hparams"], record["online_rewards/raw"]
    rewards = columns["rewards"]
    scales = {
        "td3bc": (1.0, -1.0 if record["sparse"] else 0.0),
        "cql": (hparams["cql_reward_scale"], hparams["cql_reward_bias"]),
    }
    factor = 1.0
    if not record["sparse"]:
        close64(prepare.return_range(rewards, columns["terminated"], cap), record[f"return_range/max_steps_{cap}"])
        factor = prepare.return_range_scale(rewards, columns["terminated"], cap)
    for name, (scale, bias) in scales.items():
        scaled = prepare.scale_rewards(rewards, factor * scale, bias)
        close32(scaled, record[f"rewards_scaled/{name}_max_steps_{cap}"])
        close64(prepare.scale_rewards(online, factor * scale, bias), record[f"online_rewards/{name}_max_steps_{cap}"])


def check_success(record: Record, cap: int) -> None:
    columns = columns_of(record)
    for name, (scale, bias) in record["hparams"]["selection_reward_scale_bias"].items():
        rewards = prepare.scale_rewards(columns["rewards"], scale, bias)
        mask = prepare.trust_by_success(**{**columns, "rewards": rewards}, max_steps=cap, failure_reward=bias)
        np.testing.assert_array_equal(mask, record[f"selection/{name}_mask_max_steps_{cap}"].astype(bool))


def check_returns(record: Record, cap: int) -> None:
    columns = columns_of(record)
    expected = record[f"selection/mask_max_steps_{cap}"].astype(bool)
    for threshold, mask in zip(record["selection/thresholds"], expected, strict=True):
        np.testing.assert_array_equal(prepare.trust_by_return(**columns, threshold=threshold, max_steps=cap), mask)


def check_trajectory_returns(record: Record) -> None:
    columns = columns_of(record)
    rewards = columns.pop("rewards")
    ends = prepare.trajectory_ends(**columns, max_steps=1000)
    starts = np.concatenate([[0], ends[:-1] + 1])
    close64(np.add.reduceat(rewards.astype(np.float64), starts), record["selection/trajectory_returns"])


def check_top_fraction(record: Record, number: int) -> None:
    columns = columns_of(record)
    fraction, discount, cap = record[f"top_fraction_{number}/arguments"]
    rows = prepare.top_fraction(columns["rewards"], columns["terminated"], fraction, discount, int(cap))
    for column in ("observations", "actions", "next_observations", "rewards", "terminals"):
        expected = record[f"top_fraction_{number}/{column}"]
        np.testing.assert_array_equal(record[f"transitions/{column}"][rows], expected)


def check_return_to_go(record: Record, discount: float) -> None:
    arguments = {
        "observations": record["transitions/observations"],
        "next_observations": record["transitions/next_observations"],
        "rewards": record["return_to_go/rewards"],
        "terminated": record["transitions/terminals"].astype(bool),
        "discount": discount,
        "max_steps": record["hparams"]["max_episode_steps"],
    }
    close64(prepare.return_to_go(**arguments), record[f"return_to_go/dense_discount_{discount}"])
    failure = record["hparams"]["cql_reward_bias"]
    sparse = prepare.return_to_go(**arguments, failure_reward=failure)
    close64(sparse, record[f"return_to_go/sparse_discount_{discount}"])


def test_there_are_cases() -> None:
    assert CASES, f"no data_*.npz in {GOLDEN}"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden_data(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = loaded(path)
    check_transitions(record, tmp_path)
    check_normalisation(record)
    check_clipped_actions(record)
    for cap in (1000, 9):
        check_rewards(record, cap)
    for cap in (1000, 4):
        if record["sparse"]:
            check_success(record, cap)
        else:
            check_returns(record, cap)
    if not record["sparse"]:
        check_trajectory_returns(record)
        for number in range(3):
            check_top_fraction(record, number)
    for discount in (0.99, 0.9):
        check_return_to_go(record, discount)
    with capsys.disabled():
        print(f"\ngolden case passed: {path.stem}")


@pytest.mark.skipif(not BUFFER.exists(), reason="no buffer_start record in this folder")
@pytest.mark.parametrize("name, count", (("part", 50), ("part_top_1", 1), ("part_top_3", 3)))
def test_golden_top_trajectories(name: str, count: int) -> None:
    record = np.load(BUFFER)
    rows = prepare.top_trajectories(
        record["offline/observations"],
        record["offline/next_observations"],
        record["offline/rewards"],
        record["offline/terminals"].astype(bool),
        count,
        drop_last=True,
    )
    for column in ("observations", "actions", "rewards", "terminals", "subset_mask"):
        np.testing.assert_array_equal(record[f"offline/{column}"][rows], record[f"{name}/start/{column}"])
