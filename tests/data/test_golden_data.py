"""The data functions against golden records of the original programs.

The folder comes from SEGUE_GOLDEN (default tests/golden); every `data_*.npz` in it is a case.
"""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from segue.data import load_dataset, prepare

GOLDEN = Path(os.environ.get("SEGUE_GOLDEN", "tests/golden"))
CASES = sorted(GOLDEN.glob("data_*.npz"))
CAPS = (1000, 9)


def close32(actual, expected):
    assert np.asarray(actual).dtype == expected.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def close64(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def record(request):
    """One record as a dict of arrays, with its hyper-parameters parsed and its case's name printed."""
    arrays = dict(np.load(request.param))
    arrays["hparams"] = json.loads(str(arrays["hparams"]))
    arrays["sparse"] = "antmaze" in request.param.stem
    yield arrays
    print(f"golden case passed: {request.param.stem}")


@pytest.fixture
def columns(record):
    """Positional columns of the prepared transitions, as the selection functions take them."""
    return {
        "observations": record["normalised/observations"],
        "next_observations": record["normalised/next_observations"],
        "rewards": record["transitions/rewards"],
        "terminated": record["transitions/terminals"].astype(bool),
    }


def test_there_are_cases():
    assert CASES, f"no data_*.npz in {GOLDEN}"


def test_transitions(record, tmp_path):
    path = tmp_path / "raw.hdf5"
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
            file[name] = record[f"raw/{name}"]
    dataset = load_dataset(f"d4rl:{path}")
    for name in ("observations", "actions", "rewards", "next_observations"):
        np.testing.assert_array_equal(getattr(dataset, name), record[f"transitions/{name}"])
    np.testing.assert_array_equal(dataset.terminated, record["transitions/terminals"].astype(bool))


def test_normalisation(record):
    observations = record["transitions/observations"]
    mean, std = prepare.observation_statistics(observations)
    close32(mean, record["normalisation/mean"])
    close32(std, record["normalisation/std"])
    np.testing.assert_allclose(mean, record["normalisation/mean_float64"], rtol=1e-6)
    np.testing.assert_allclose(std, record["normalisation/std_float64"], rtol=1e-6)
    for name in ("observations", "next_observations"):
        close32(prepare.normalise(record[f"transitions/{name}"], mean, std), record[f"normalised/{name}"])


def test_clipped_actions(record):
    close32(prepare.clip_actions(record["transitions/actions"]), record["clipped_actions"])


@pytest.mark.parametrize("cap", CAPS)
def test_rewards(record, columns, cap):
    rewards, online = columns["rewards"], record["online_rewards/raw"]
    hparams = record["hparams"]
    scales = {"td3bc": (1.0, -1.0 if record["sparse"] else 0.0)}
    scales["cql"] = (hparams["cql_reward_scale"], hparams["cql_reward_bias"])
    factor = 1.0
    if not record["sparse"]:
        close64(prepare.return_range(rewards, columns["terminated"], cap), record[f"return_range/max_steps_{cap}"])
        factor = prepare.return_range_scale(rewards, columns["terminated"], cap)
    for name, (scale, bias) in scales.items():
        scaled = prepare.scale_rewards(rewards, factor * scale, bias)
        close32(scaled, record[f"rewards_scaled/{name}_max_steps_{cap}"])
        close64(prepare.scale_rewards(online, factor * scale, bias), record[f"online_rewards/{name}_max_steps_{cap}"])


@pytest.mark.parametrize("cap", (1000, 4))
def test_selection(record, columns, cap):
    if record["sparse"]:
        for name, (scale, bias) in record["hparams"]["selection_reward_scale_bias"].items():
            rewards = prepare.scale_rewards(columns["rewards"], scale, bias)
            mask = prepare.trust_by_success(**{**columns, "rewards": rewards}, max_steps=cap, failure_reward=bias)
            np.testing.assert_array_equal(mask, record[f"selection/{name}_mask_max_steps_{cap}"].astype(bool))
        return
    for threshold, expected in zip(
        record["selection/thresholds"], record[f"selection/mask_max_steps_{cap}"], strict=True
    ):
        mask = prepare.trust_by_return(**columns, threshold=threshold, max_steps=cap)
        np.testing.assert_array_equal(mask, expected.astype(bool))


def test_trajectory_returns(record, columns):
    if record["sparse"]:
        pytest.skip("not recorded for sparse rewards")
    ends = prepare.trajectory_ends(columns["observations"], columns["next_observations"], columns["terminated"], 1000)
    starts = np.concatenate([[0], ends[:-1] + 1])
    returns = np.add.reduceat(columns["rewards"].astype(np.float64), starts)
    close64(returns, record["selection/trajectory_returns"])


def test_top_fraction(record, columns):
    cases = [name for name in record if name.startswith("top_fraction_") and name.endswith("/arguments")]
    if not cases:
        assert record["sparse"]
    for name in cases:
        fraction, discount, cap = record[name]
        rows = prepare.top_fraction(columns["rewards"], columns["terminated"], fraction, discount, int(cap))
        for column in ("observations", "actions", "next_observations", "rewards", "terminals"):
            expected = record[name.replace("arguments", column)]
            np.testing.assert_array_equal(record[f"transitions/{column}"][rows], expected)


@pytest.mark.parametrize("discount", (0.99, 0.9))
def test_return_to_go(record, discount):
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


@pytest.mark.skipif(not (GOLDEN / "buffer_start.npz").exists(), reason="no buffer record in this folder")
@pytest.mark.parametrize("name, count", (("part", 50), ("part_top_1", 1), ("part_top_3", 3)))
def test_top_trajectories(name, count):
    record = np.load(GOLDEN / "buffer_start.npz")
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
