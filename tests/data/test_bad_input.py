"""Everything that can be wrong with data: one clear line, exit code 2, no traceback, nothing written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from segue.cli.data import main
from segue.data import DataError, Dataset

Columns = dict[str, Any]
Change = Callable[[Columns], Any]


def without(name: str) -> Change:
    return lambda columns: columns.pop(name)


def put(name: str, index: Any, value: float) -> Change:
    def change(columns: Columns) -> None:
        columns[name] = columns[name].copy()
        columns[name][index] = value

    return change


def replaced(name: str, make: Callable[[np.ndarray], Any]) -> Change:
    return lambda columns: columns.update({name: make(columns[name])})


def emptied(columns: Columns) -> None:
    columns.update({name: column[:0] for name, column in columns.items()})


# What is wrong, and the words that the message must hold beside the file's name.
COLUMNS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "no observations": (without("observations"), ("'observations'", "missing", "add it")),
    "no actions": (without("actions"), ("'actions'", "missing")),
    "no rewards": (without("rewards"), ("'rewards'", "missing")),
    "no terminated": (without("terminated"), ("'terminated'", "missing", "true where the task itself ended")),
    "no truncated": (without("truncated"), ("'truncated'", "missing", "last row of an episode")),
    "flat observations": (replaced("observations", lambda a: a[:, 0]), ("'observations'", "[12]", "[rows, values]")),
    "deep actions": (replaced("actions", lambda a: a[None]), ("'actions'", "[1, 12, 2]", "[rows, values]")),
    "wide rewards": (replaced("rewards", lambda a: np.stack([a, a], 1)), ("'rewards'", "[12, 2]", "[rows]")),
    "short rewards": (replaced("rewards", lambda a: a[:7]), ("'rewards'", "7 rows", "12", "same number")),
    "other successors": (
        replaced("next_observations", lambda a: a[:, :2]),
        ("'next_observations'", "2 values", "3", "agree"),
    ),
    "no values": (replaced("actions", lambda a: a[:, :0]), ("'actions'", "no values")),
    "text": (replaced("rewards", lambda a: a.astype(str)), ("'rewards'", "must hold numbers")),
    "NaN": (put("observations", (3, 1), np.nan), ("'observations'", "row 3", "dimension 1", "nan", "repair")),
    "infinite reward": (put("rewards", 5, np.inf), ("'rewards'", "row 5", "inf")),
    "too large": (replaced("rewards", lambda a: np.full(len(a), 1e300)), ("'rewards'", "row 0", "inf")),
    "no flag": (replaced("terminated", lambda a: np.arange(len(a))), ("'terminated'", "row 2", "0/1")),
    "outside": (put("actions", (4, 0), 1.5), ("'actions'", "row 4", "dimension 0", "1.5", "[-1, 1]", "clip")),
    "no end": (put("truncated", 11, 0), ("'truncated'", "row 11", "an episode with no end", "set 'truncated'")),
    "empty": (emptied, ("empty", "at least one")),
}


def one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], words: tuple[str, ...]) -> str:
    """Run the command, check how it fails, and give its message."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    for word in words:
        assert word in printed.err
    return printed.err


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))


@pytest.mark.parametrize("case", COLUMNS)
def test_columns(case: str, columns: Columns, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, words = COLUMNS[case]
    change(columns)
    path = tmp_path / "bad.npz"
    np.savez(path, **columns)
    before = files(tmp_path)
    for arguments in (["validate", str(path)], ["convert", str(path), str(tmp_path / "out.npz")]):
        one_line(capsys, arguments, (str(path), *words))
    assert main(["info", str(path), "--plot", str(tmp_path / "out.png")]) == 2
    assert files(tmp_path) == before


@pytest.mark.parametrize("case", ("no actions", "short rewards", "NaN", "outside", "empty", "flat observations"))
def test_d4rl_columns(case: str, columns: Columns, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, words = COLUMNS[case]
    change(columns)
    names = {"terminated": "terminals", "truncated": "timeouts"}
    path = tmp_path / "bad.hdf5"
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file[names.get(name, name)] = column
    one_line(capsys, ["validate", f"d4rl:{path}"], (str(path), *words[:1]))


BYTES: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "pickle by name": ("{}a.pkl", b"anything", ("pickle files are refused", "numpy.savez")),
    "pickle by content": ("{}a.npz", b"\x80\x04\x95abc", ("pickle files are refused",)),
    "pickle as HDF5": ("d4rl:{}a.hdf5", b"\x80\x05\x95abc", ("pickle files are refused",)),
    "pickle of OGBench": ("ogbench:{}a.pickle", b"abc", ("pickle files are refused",)),
    "not HDF5": ("d4rl:{}a.hdf5", b"<html>not found</html>", ("no complete HDF5 file", "fetch it again")),
    "empty file": ("d4rl:{}a.hdf5", b"", ("empty", "again")),
    "not npz": ("{}a.npz", b"<html>not found</html>", ("no complete .npz file", "numpy.savez")),
    "damaged npz": ("{}a.npz", b"PK\x03\x04 and no more", ("no complete .npz file",)),
    "not parquet": ("{}a.parquet", b"<html>", ("no complete Parquet file",)),
    "unknown ending": ("{}a.json", b"{}", ("'.json'", "d4rl:PATH")),
    "no header": ("{}a.csv", b"\n1,2\n", ("first line names no columns",)),
    "words in a table": (
        "{}a.csv",
        b"observation_0,action_0,reward,terminated,truncated\n1,0,1,0,0\n1,x,1,0,1\n",
        ("row 1", "column 2", "'x'", "write a number"),
    ),
    "odd flag in a table": (
        "{}a.csv",
        b"observation_0,action_0,reward,terminated,truncated\n1,0,1,perhaps,0\n",
        ("row 0", "column 4", "'perhaps'"),
    ),
    "ragged table": (
        "{}a.csv",
        b"observation_0,action_0,reward,terminated,truncated\n1,0,1,0,0\n1,0,1,0\n",
        ("row 1", "4 values", "5"),
    ),
    "narrow table": (
        "{}a.csv",
        b"observation_0,action_0,reward,terminated,truncated\n1,0,1,0\n",
        ("4 values", "names more columns"),
    ),
    "only a header": ("{}a.csv", b"observation_0,action_0,reward,terminated,truncated\n", ("empty",)),
    "gap in a vector": (
        "{}a.csv",
        b"observation_0,observation_2,action_0,reward,terminated,truncated\n1,1,0,1,0,1\n",
        ("'observation_1'", "missing", "add it"),
    ),
    "not UTF-8": ("{}a.csv", b"\xff\xfe\x00\x00", ("UTF-8",)),
}


@pytest.mark.parametrize("case", BYTES)
def test_files(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template, content, words = BYTES[case]
    reference = template.format(f"{tmp_path}/")
    path = Path(reference.rpartition(":")[2])
    path.write_bytes(content)
    one_line(capsys, ["convert", reference, str(tmp_path / "out.npz")], (path.name, *words))
    assert files(tmp_path) == {path}


def test_truncated_hdf5(columns: Columns, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hopper_medium-v2.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((1000, 11))
    path.write_bytes(path.read_bytes()[:20_000])
    one_line(capsys, ["info", f"d4rl:{path}"], (str(path), "no complete HDF5 file", "truncated"))


def test_objects_in_npz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, observations=np.array([{}, {}], dtype=object))
    one_line(capsys, ["info", str(path)], (str(path), "pickle files are refused"))


def test_gaps_in_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    for column, words in (([[1.0], [1.0, 2.0]], ("row 1", "2 values")), ([[1.0], None], ("row 1", "no value"))):
        parquet.write_table(pyarrow.table({"observations": column}), path)
        one_line(capsys, ["info", str(path)], (str(path), "'observations'", *words))


def test_ogbench_without_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pointmaze-medium-navigate-v0.npz"
    arrays: Columns = {"observations": np.zeros((3, 1)), "actions": np.zeros((3, 1)), "terminals": [0, 0, 1]}
    np.savez(path, **arrays)
    one_line(capsys, ["info", f"ogbench:{path}"], (str(path), "'rewards'", "singletask"))
    np.savez(path, **arrays, rewards=np.zeros(3))
    one_line(capsys, ["info", f"ogbench:{path}"], (str(path), "'masks'"))
    del arrays["terminals"]
    np.savez(path, **arrays)
    one_line(capsys, ["info", f"ogbench:{path}"], (str(path), "'terminals'"))


REFERENCES = {
    "hopper-medium": ("unknown dataset", "segue/hopper-"),
    "segue/hoper-random": ("unknown dataset", "did you mean segue/hopper-random"),
    "segue/zzz": ("unknown dataset", "segue data list"),
    "nowhere/a.npz": ("no such file", "check the path"),
    "d4rl:nowhere/a.hdf5": ("no such file",),
    "ogbench:nowhere/a.npz": ("no such file",),
    "segue/hopper-random?transitions=0": ("transitions", "at least 1"),
}


@pytest.mark.parametrize("reference", REFERENCES)
def test_references(reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_line(capsys, ["convert", reference, str(tmp_path / "out.npz")], REFERENCES[reference])
    assert not files(tmp_path)


def test_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_line(capsys, ["info", f"d4rl:{tmp_path}"], (str(tmp_path), "folder"))


@pytest.fixture
def good(columns: Columns, tmp_path: Path) -> Path:
    path = tmp_path / "good.npz"
    np.savez(path, **columns)
    return path


ENVIRONMENTS = {
    "Pendulum-v1": ("'actions'", "2 values", "choose"),
    "Hoper-v5": ("unknown environment", "Hopper-v5"),
    "CartPole-v1": ("CartPole-v1", "action space", "continuous"),
    "Swimmer-v5": ("'observations'", "3 values", "Swimmer-v5 gives 8", "choose"),
}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_environment_that_does_not_fit(
    environment: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_line(capsys, ["validate", str(good), "--env", environment], ENVIRONMENTS[environment])
    assert files(tmp_path) == {good}


def test_environment_with_other_bounds(columns: Columns) -> None:
    import gymnasium

    from segue.data.validate import check_environment

    environment = gymnasium.make("Pendulum-v1")
    columns["actions"] = columns["actions"][:, :1]
    with pytest.raises(DataError, match="action bounds"):
        check_environment(Dataset.from_arrays(**columns), environment)
    check_environment(Dataset.from_arrays(**columns, action_low=-2, action_high=2), environment)
    columns["actions"] = columns["actions"] + 5
    with pytest.raises(DataError, match=r"row 0.*bounds of environment Pendulum-v1"):
        check_environment(Dataset.from_arrays(**columns, action_low=-9, action_high=9), environment)


def test_flattened_dict_observations() -> None:
    from gymnasium.spaces import Box, Dict, Discrete

    from segue.data.validate import observation_size

    box = Box(-1, 1, (2, 3))
    assert observation_size(box, "E") == 6
    goal: Columns = {
        "observation": Box(-1, 1, (4,)),
        "desired_goal": Box(-1, 1, (2,)),
        "achieved_goal": Box(-1, 1, (2,)),
    }
    assert observation_size(Dict(goal), "E") == 6
    assert observation_size(Dict({"b": box, "a": Dict({"c": Box(-1, 1, (1,))})}), "E") == 7
    with pytest.raises(DataError, match="neither a Box nor a Dict of Boxes"):
        observation_size(Dict({"a": Discrete(3)}), "E")


COMMANDS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "no command": ([], ("COMMAND", "--help")),
    "unknown command": (["show"], ("show", "--help")),
    "no reference": (["info"], ("REF", "--help")),
    "unknown option": (["info", "GOOD", "--colour"], ("--colour",)),
    "wrong number": (["info", "GOOD", "--transitions", "many"], ("--transitions", "many")),
    "unknown format": (["convert", "GOOD", "out.xlsx"], ("'.xlsx'", ".parquet")),
    "unknown picture": (["info", "GOOD", "--plot", "out.xyz"], ("'.xyz'", ".png")),
    "no place": (["convert", "GOOD", "GOOD/out.npz"], ("cannot be written",)),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_commands(case: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = COMMANDS[case]
    one_line(capsys, [argument.replace("GOOD", str(good)) for argument in arguments], words)
    assert files(tmp_path) == {good}
