"""Every layout that can be read, from small files of exactly that layout, and the way back from `convert`."""

from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest

from segue.data import DataError, Dataset, load_dataset
from segue.data.convert import convert
from segue.data.d4rl import recognise
from segue.errors import UserError

Columns = dict[str, Any]
COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")


def assert_same(actual: Dataset, expected: Dataset) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), err_msg=name)


@pytest.fixture
def dataset(columns: Columns) -> Dataset:
    columns["actions"] = columns["actions"] * 2
    return Dataset.from_arrays(
        **columns,
        action_low=[-2, -3],
        action_high=[2, 2],
        environment_id="Hopper-v5",
        environment_kwargs={"frame_skip": 4},
        reference_scores=(1.0, 5.0),
        max_episode_steps=4,
    )


@pytest.mark.parametrize("suffix", (".npz", ".parquet"))
def test_convert_and_back_keeps_everything(dataset: Dataset, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    convert(dataset, path)
    back = load_dataset(str(path))
    assert_same(back, dataset)
    assert back.action_low.tolist() == [-2, -3]
    for name in ("environment_id", "environment_kwargs", "reference_scores", "max_episode_steps"):
        assert getattr(back, name) == getattr(dataset, name)
    assert list(tmp_path.iterdir()) == [path]


def test_csv_and_back_keeps_the_columns(columns: Columns, tmp_path: Path) -> None:
    dataset = Dataset.from_arrays(**columns)
    convert(dataset, tmp_path / "out.csv")
    assert_same(load_dataset(str(tmp_path / "out.csv")), dataset)


def test_hdf5_and_back_is_the_papers_view(columns: Columns, tmp_path: Path) -> None:
    dataset = Dataset.from_arrays(**columns)
    convert(dataset, tmp_path / "out.hdf5")
    with h5py.File(tmp_path / "out.hdf5") as file:
        np.testing.assert_array_equal(file["terminals"][()], dataset.terminated)
        np.testing.assert_array_equal(file["timeouts"][()], dataset.truncated)
    back = load_dataset(f"d4rl:{tmp_path / 'out.hdf5'}")
    assert len(back) == 10  # the row before each time-out ends its episode
    assert back.episode_ends.tolist() == [4, 7, 9]


def test_csv_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "truncated,observation_1,observation_0,action_0,reward,terminated,note_7\n"
        "0, 10, 1, 0.5, 1.5, false, 0\n"
        "0, 20, 2, -0.5, 2.5, true, 0\n"
        "0, 30, 3, 0, 3.5, False, 0\n"
        "0, 40, 4, 0, 4.5, False, 0\n"
        "1, 50, 5, 1, 5.5, 0, 0\n"
    )
    dataset = load_dataset(str(path))
    assert dataset.observations.tolist() == [[1, 10], [2, 20], [3, 30], [4, 40]]
    assert dataset.next_observations[2:].tolist() == [[4, 40], [5, 50]]
    assert dataset.terminated.tolist() == [False, True, False, False]
    assert dataset.truncated.tolist() == [False, False, False, True]
    assert dataset.source == str(path)


def test_parquet_with_list_columns(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table(
        {
            "observations": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
            "action_0": [0.1, 0.2, 0.3],
            "rewards": [1, 2, 3],
            "terminated": [False, False, True],
            "truncated": [False, False, False],
        }
    )
    parquet.write_table(table, tmp_path / "log.parquet")
    dataset = load_dataset(str(tmp_path / "log.parquet"))
    assert dataset.observations.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert dataset.actions.shape == (3, 1)


def test_transitions_and_environment_travel_in_the_source(columns: Columns, tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    convert(Dataset.from_arrays(**columns), path)
    dataset = load_dataset(str(path), transitions=7, environment_id="Swimmer-v5")
    assert len(dataset) == 7
    assert dataset.truncated[-1]
    assert dataset.environment_id == "Swimmer-v5"
    assert dataset.max_episode_steps == 1000
    assert dataset.source == f"{path}?transitions=7&env=Swimmer-v5"
    again = load_dataset(dataset.source)
    assert_same(again, dataset)
    assert again.environment_id == "Swimmer-v5"
    for wrong in (0, -3, "many"):
        with pytest.raises(DataError, match="at least 1"):
            load_dataset(f"{path}?transitions={wrong}")


def write_d4rl(path: Path, **columns: Any) -> str:
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file[name] = column
        file["infos/qpos"] = np.zeros((3, 2))  # nested groups occur in real files and do not matter
    return f"d4rl:{path}"


def d4rl_rows(rows: int = 8) -> Columns:
    return {
        "observations": np.arange(rows, dtype=np.float32)[:, None] * 10,
        "actions": np.zeros((rows, 1), np.float32),
        "rewards": np.arange(rows, dtype=np.float32),
        "terminals": np.array([0, 0, 1, 0, 0, 0, 0, 0][:rows], bool),
        "timeouts": np.array([0, 0, 0, 0, 0, 1, 0, 0][:rows], bool),
    }


@pytest.mark.parametrize("with_successors", (False, True))
def test_d4rl_view(tmp_path: Path, with_successors: bool) -> None:
    raw = d4rl_rows()
    extra = {"next_observations": np.full((8, 1), -1.0)} if with_successors else {}
    dataset = load_dataset(write_d4rl(tmp_path / "hopper_medium-v2.hdf5", **raw, **extra))
    assert dataset.rewards.tolist() == [0, 1, 2, 3, 4, 6]  # without the time-out (5) and the last row (7)
    assert dataset.next_observations[:, 0].tolist() == [10, 20, 30, 40, 50, 70]
    assert np.flatnonzero(dataset.terminated).tolist() == [2]
    assert np.flatnonzero(dataset.truncated).tolist() == [4, 5]
    assert dataset.environment_id == "Hopper-v5"
    assert dataset.reference_scores == (-20.272305, 3234.3)


def test_d4rl_without_timeouts_needs_a_limit(tmp_path: Path) -> None:
    raw = d4rl_rows()
    del raw["timeouts"]
    with pytest.raises(DataError, match="'timeouts' is missing"):
        load_dataset(write_d4rl(tmp_path / "mine.hdf5", **raw))
    dataset = load_dataset(write_d4rl(tmp_path / "hopper-medium-v0.hdf5", **raw))
    assert len(dataset) == 7


def test_d4rl_counts_the_time_limit_in_old_files(tmp_path: Path) -> None:
    rows = 2500
    raw = {
        "observations": np.zeros((rows, 1)),
        "actions": np.zeros((rows, 1)),
        "rewards": np.arange(rows),
        "terminals": np.arange(rows) == 99,
    }
    dataset = load_dataset(write_d4rl(tmp_path / "walker2d-medium-v0.hdf5", **raw))
    dropped = set(range(rows)) - set(dataset.rewards.astype(int).tolist())
    assert dropped == {1099, 2099, 2499}


@pytest.mark.parametrize(
    "name, environment_id, scores, limit",
    (
        ("halfcheetah-medium-expert-v2", "HalfCheetah-v5", (-280.178953, 12135.0), 1000),
        ("walker2d_random-v2", "Walker2d-v5", (1.629008, 4592.3), 1000),
        ("antmaze-umaze-diverse-v2", None, (0.0, 1.0), 700),
        ("Ant_maze_u-maze_noisy_multistart_True_multigoal_False_sparse_fixed", None, (0.0, 1.0), 700),
        ("Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse_fixed", None, (0.0, 1.0), 1000),
        ("antmaze-large-play-v2", None, (0.0, 1.0), 1000),
        ("robot-arm", None, None, None),
    ),
)
def test_d4rl_names(name: str, environment_id: str | None, scores: Any, limit: int | None) -> None:
    assert recognise(name) == {
        "environment_id": environment_id,
        "reference_scores": scores,
        "max_episode_steps": limit,
    }


def ogbench_rows() -> Columns:
    """Two trajectories of three observations each: two transitions and a final state."""
    return {
        "observations": np.arange(6, dtype=np.float32)[:, None],
        "actions": np.zeros((6, 1), np.float32),
        "terminals": np.array([0, 0, 1, 0, 0, 1], np.float32),
        "qpos": np.zeros((6, 3)),
    }


def test_ogbench_raw_with_rewards(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **ogbench_rows(), rewards=np.array([-1, 0, 9, -1, -1, 9.0]), masks=[1, 0, 9, 1, 1, 9])
    dataset = load_dataset(f"ogbench:{tmp_path / 'a.npz'}")
    assert dataset.rewards.tolist() == [-1, 0, -1, -1]
    assert dataset.next_observations[:, 0].tolist() == [1, 2, 4, 5]
    assert dataset.terminated.tolist() == [False, True, False, False]
    assert dataset.truncated.tolist() == [False, False, False, True]


def test_ogbench_with_successors_drops_nothing(tmp_path: Path) -> None:
    rows = ogbench_rows()
    np.savez(
        tmp_path / "a.npz", **rows, next_observations=rows["observations"] + 1, rewards=-np.ones(6), masks=np.ones(6)
    )
    dataset = load_dataset(f"ogbench:{tmp_path / 'a.npz'}")
    assert len(dataset) == 6
    assert np.flatnonzero(dataset.truncated).tolist() == [2, 5]
    assert not dataset.terminated.any()


def test_ogbench_compact_form(tmp_path: Path) -> None:
    rows = {**ogbench_rows(), "terminals": np.array([0, 1, 1, 0, 1, 1.0]), "valids": np.array([1, 1, 0, 1, 1, 0.0])}
    np.savez(tmp_path / "a.npz", **rows, rewards=-np.ones(6), masks=np.ones(6))
    dataset = load_dataset(f"ogbench:{tmp_path / 'a.npz'}")
    assert dataset.next_observations[:, 0].tolist() == [1, 2, 4, 5]
    assert np.flatnonzero(dataset.truncated).tolist() == [1, 3]


@pytest.fixture
def minari_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return minari


@pytest.mark.filterwarnings("ignore")  # minari's own, about metadata that a tiny dataset does without
def test_minari(minari_store: Any) -> None:
    collector = minari_store.DataCollector(gymnasium.make("Pendulum-v1", max_episode_steps=5))
    observations = []
    for seed in range(2):
        observations.append(collector.reset(seed=seed)[0])
        ended = False
        while not ended:
            observation, _, terminated, truncated, _ = collector.step(np.array([1.5], np.float32))
            observations.append(observation)
            ended = terminated or truncated
    collector.create_dataset("pendulum/tiny-v0", algorithm_name="constant", ref_min_score=-9.0, ref_max_score=-1.0)
    collector.close()

    dataset = load_dataset("minari:pendulum/tiny-v0")
    np.testing.assert_allclose(dataset.observations[:5], np.array(observations[:5]))
    np.testing.assert_allclose(dataset.next_observations[:5], np.array(observations[1:6]))
    assert dataset.episode_lengths.tolist() == [5, 5]
    assert dataset.truncated[4]
    assert (dataset.action_low.item(), dataset.action_high.item()) == (-2, 2)
    assert dataset.environment_id == "Pendulum-v1"
    assert dataset.reference_scores == (-9.0, -1.0)
    assert len(load_dataset("minari:pendulum/tiny-v0", transitions=7)) == 7
    with pytest.raises(DataError, match=r"nearest there: pendulum/tiny-v0.*minari download"):
        load_dataset("minari:pendulum/tinny-v0")


@pytest.mark.parametrize("reference, extra", (("minari:a/b-v0", "minari"), ("{folder}/a.parquet", "parquet")))
def test_missing_extra_is_named(reference: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for module in ("minari", "pyarrow"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match=rf'pip install "segue\[{extra}\]"'):
        load_dataset(reference.format(folder=tmp_path))
