"""Plain files for people with logs: .npz, .parquet and .csv with documented column names (docs/data.md)."""

from __future__ import annotations

import csv
import json
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.dataset import Dataset
from segue.data.environments import episode_limit, known_bounds
from segue.data.errors import DataError
from segue.data.files import check_readable, pickle_refused
from segue.data.successors import Columns, first_rows
from segue.data.validate import FLAGS, check_columns
from segue.errors import UserError

VECTORS = {"observations": "observation", "actions": "action", "next_observations": "next_observation"}
SCALARS = {"rewards": "reward", "terminated": "terminated", "truncated": "truncated"}
METADATA = "segue"  # key of a table's JSON metadata
MISSING_FLAG = {
    "terminated": "true where the task itself ended and nothing follows",
    "truncated": "true on the last row of an episode that was cut off (time limit, or the log stops)",
}

Table = tuple[Columns, dict[str, Any]]  # columns, metadata


def load(path: Path, transitions: int | None, environment_id: str | None, source: str) -> Dataset:
    """Read a plain file. Raises `DataError`."""
    check_readable(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: the ending '{path.suffix}' is not a plain table ({', '.join(READERS)}); "
            "for other layouts write d4rl:PATH or ogbench:PATH"
        )
    columns, metadata = reader(path)
    for name in ("observations", "actions", "rewards", *FLAGS):
        if name not in columns:
            hint = f": {MISSING_FLAG[name]}" if name in FLAGS else ""
            raise DataError(
                f"{path}: column '{name}' is missing; add it{hint} (it has: {', '.join(columns) or 'none'})"
            )
    checked = first_rows(check_columns(columns, str(path)), transitions)
    low, high = known_bounds(environment_id)
    scores = metadata.get("reference_scores")
    return Dataset.from_arrays(
        **checked,
        action_low=metadata.get("action_low") if low is None else low,
        action_high=metadata.get("action_high") if high is None else high,
        environment_id=environment_id or metadata.get("environment_id"),
        environment_kwargs=metadata.get("environment_kwargs", {})
        if environment_id in (None, metadata.get("environment_id"))
        else {},
        reference_scores=None if scores is None else (float(scores[0]), float(scores[1])),
        max_episode_steps=episode_limit(environment_id) or metadata.get("max_episode_steps"),
        source=source,
    )


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a .npz file. Raises `DataError` if it is damaged or holds pickled objects."""
    check_readable(path)
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path}: this is no complete .npz file; save named columns with numpy.savez, or fetch it again"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        if "Object arrays" in str(error):
            raise pickle_refused(path) from None
        raise DataError(f"{path}: this is a damaged .npz file ({error}); write or fetch it again") from None


def _npz(path: Path) -> Table:
    arrays = read_npz(path)
    metadata = {}
    if METADATA in arrays:
        metadata = _parsed(str(arrays.pop(METADATA)), path)
    names = (*VECTORS, *SCALARS)
    return {name: array for name, array in arrays.items() if name in names}, metadata


def _parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f'{path} needs pyarrow; install it with: pip install "segue[parquet]"') from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: this is no complete Parquet file ({reason}); write or fetch it again") from None
    lists = {}
    scalars = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if column.null_count:
            row = column.is_null().index(True).as_py()
            raise DataError(f"{path}: column '{name}', row {row}: no value; fill it in or leave out its episode")
        kind = column.type
        if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
            lists[name] = _list_column(column, name, path)
        else:
            scalars[name] = column.to_numpy(zero_copy_only=False)
    metadata = (table.schema.metadata or {}).get(METADATA.encode())
    columns = {**_gathered(scalars, path), **{name: lists[name] for name in VECTORS if name in lists}}
    return columns, _parsed(metadata.decode(), path) if metadata else {}


def _list_column(column: Any, name: str, path: Path) -> np.ndarray:
    """A column of equally long lists as [N, K]."""
    import pyarrow.compute

    lengths = pyarrow.compute.list_value_length(column).to_numpy(zero_copy_only=False)
    values = column.flatten().to_numpy(zero_copy_only=False)
    if len(lengths) == 0:
        return values.reshape(0, 1)
    different = np.flatnonzero(lengths != lengths[0])
    if len(different):
        row = int(different[0])
        raise DataError(
            f"{path}: column '{name}', row {row}: {lengths[row]} values where row 0 has {lengths[0]}; make them equal"
        )
    return values.reshape(len(lengths), int(lengths[0]))


def _csv(path: Path) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = [name.strip() for name in next(csv.reader(file), [])]
            flags: dict[int, Callable[[str], Any]] = {i: _flag for i, name in enumerate(header) if name in FLAGS}
            if not any(header):
                raise DataError(f"{path}: the first line names no columns; write observation_0,action_0,... there")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # an empty table is reported by the checks
                values = np.loadtxt(file, np.float64, delimiter=",", ndmin=2, converters=flags)  # type: ignore[call-overload]
    except UnicodeDecodeError:
        raise DataError(f"{path}: this is not text in UTF-8; save it as a .csv file again") from None
    except ValueError as error:
        raise DataError(f"{path}: {_csv_problem(error)}") from None
    if values.size == 0:
        values = np.empty((0, len(header)))
    if values.shape[1] != len(header):
        raise DataError(
            f"{path}: row 0 has {values.shape[1]} values but the header names {len(header)} columns; make them equal"
        )
    return _gathered({name: values[:, i] for i, name in enumerate(header)}, path), {}


def _flag(text: str) -> float:
    """0, 1, false or true as a number."""
    named = {"true": 1.0, "false": 0.0}.get(text.strip().lower())
    return float(text) if named is None else named


def _csv_problem(error: ValueError) -> str:
    """NumPy's message as row and remedy."""
    text = str(error)
    found = re.search(r"'(.*?)' to \w+ at row (\d+), column (\d+)", text)
    if found:
        return f"row {found[2]}, column {found[3]} (counted from 1): {found[1]!r} is not a number; write a number there"
    found = re.search(r"changed from (\d+) to (\d+) at row (\d+)", text)
    if found:
        return f"row {int(found[3]) - 1} has {found[2]} values but the rows before have {found[1]}; make them equal"
    found = re.search(r"number of fields (\d+)", text)
    if found:
        return f"row 0 has {found[1]} values but the header names more columns; make them equal"
    return f"cannot be read as numbers ({' '.join(text.split())}); write numbers, separated by commas"


def _gathered(scalars: dict[str, np.ndarray], path: Path) -> Columns:
    """Scalar columns `observation_0`, `observation_1`, ... put together as [N, S], and the others renamed."""
    columns: Columns = {}
    for name, single in VECTORS.items():
        numbers = sorted(int(key[len(single) + 1 :]) for key in scalars if re.fullmatch(rf"{single}_\d+", key))
        if not numbers:
            continue
        for expected, number in enumerate(numbers):
            if expected != number:
                raise DataError(
                    f"{path}: column '{single}_{expected}' is missing but '{single}_{number}' is there; add it"
                )
        columns[name] = np.stack([scalars[f"{single}_{i}"] for i in numbers], axis=1)
    for name, single in SCALARS.items():
        for key in (single, name):
            if key in scalars:
                columns[name] = scalars[key]
    return columns


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except json.JSONDecodeError:
        raise DataError(f"{path}: its '{METADATA}' entry is not JSON; convert the data again") from None
    return metadata


READERS: dict[str, Callable[[Path], Table]] = {".npz": _npz, ".parquet": _parquet, ".csv": _csv}
