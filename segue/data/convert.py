"""Writing a dataset as a plain file or in D4RL's layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.dataset import Dataset
from segue.data.errors import DataError
from segue.data.files import written_atomically
from segue.data.tables import METADATA, SCALARS, VECTORS
from segue.errors import UserError


def convert(dataset: Dataset, path: Path) -> None:
    """Write the dataset to `path`, all or nothing, in the format of its ending: .npz, .parquet, .csv or .hdf5.

    .npz and .parquet keep everything. .csv keeps the columns only. .hdf5 is D4RL's layout with `next_observations`,
    for programs that read it. Raises `DataError` for another ending, `UserError` if the format's library is missing.
    """
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise DataError(f"{path}: cannot write '{path.suffix}' files; choose one of {', '.join(WRITERS)}")
    with written_atomically(path) as temporary:
        writer(dataset, temporary)


def _metadata(dataset: Dataset) -> str:
    """What is known beside the columns, as JSON."""
    return json.dumps(
        {
            "environment_id": dataset.environment_id,
            "environment_kwargs": dataset.environment_kwargs,
            "reference_scores": dataset.reference_scores,
            "max_episode_steps": dataset.max_episode_steps,
            "action_low": dataset.action_low.tolist(),
            "action_high": dataset.action_high.tolist(),
            "converted_from": dataset.source,
        }
    )


def _columns(dataset: Dataset) -> dict[str, np.ndarray]:
    return {name: getattr(dataset, name) for name in (*VECTORS, *SCALARS)}


def _npz(dataset: Dataset, path: Path) -> None:
    arrays: dict[str, Any] = {**_columns(dataset), METADATA: np.array(_metadata(dataset))}
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _hdf5(dataset: Dataset, path: Path) -> None:
    import h5py

    names = {"terminated": "terminals", "truncated": "timeouts"}
    with h5py.File(path, "w") as file:
        for name, column in _columns(dataset).items():
            file[names.get(name, name)] = column
        file.attrs[METADATA] = _metadata(dataset)


def _csv(dataset: Dataset, path: Path) -> None:
    header, blocks, formats = [], [], []
    for name, column in _columns(dataset).items():
        if name in VECTORS:
            header += [f"{VECTORS[name]}_{i}" for i in range(column.shape[1])]
        else:
            header.append(SCALARS[name])
        block = column.reshape(len(column), -1)
        blocks.append(block.astype(np.float32))
        formats += ["%d" if column.dtype == bool else "%.9g"] * block.shape[1]  # 9 digits bring a float32 back exactly
    with path.open("w", encoding="utf-8", newline="") as file:
        np.savetxt(
            file, np.concatenate(blocks, axis=1), fmt=formats, delimiter=",", header=",".join(header), comments=""
        )


def _parquet(dataset: Dataset, path: Path) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f'{path} needs pyarrow; install it with: pip install "segue[parquet]"') from None
    arrays = {}
    for name, column in _columns(dataset).items():
        if name in VECTORS:
            flat = pyarrow.array(column.reshape(-1))
            arrays[name] = pyarrow.FixedSizeListArray.from_arrays(flat, column.shape[1])
        else:
            arrays[SCALARS[name]] = pyarrow.array(column)
    table = pyarrow.table(arrays).replace_schema_metadata({METADATA: _metadata(dataset)})
    pyarrow.parquet.write_table(table, path)


WRITERS: dict[str, Callable[[Dataset, Path], None]] = {".npz": _npz, ".parquet": _parquet, ".csv": _csv, ".hdf5": _hdf5}
