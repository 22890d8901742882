"""OGBench's npz layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segue.data.dataset import Dataset
from segue.data.environments import episode_limit, known_bounds
from segue.data.errors import DataError
from segue.data.successors import drop_rows, first_rows
from segue.data.tables import read_npz
from segue.data.validate import check_columns

REQUIRED = ("observations", "actions", "terminals")


def load(path: Path, transitions: int | None, environment_id: str | None, source: str) -> Dataset:
    """Read an OGBench file that has rewards.

    `terminals` marks the last row of a trajectory, which the task does not end there; `masks` is 0 where the task is
    completed. Without `next_observations` the last row of a trajectory only holds the final state and is dropped (in
    the compact form, where `terminals` is set on the last two rows, `valids` is 0 there).
    Raises `DataError`.
    """
    arrays = read_npz(path)
    for name in REQUIRED:
        if name not in arrays:
            raise DataError(f"{path}: column '{name}' is missing; it has: {', '.join(arrays)}")
    if "rewards" not in arrays:
        raise DataError(
            f"{path}: column 'rewards' is missing: OGBench's plain files are free of reward. Only its singletask "
            "variants have one: make the dataset of a '...-singletask-...' environment with the ogbench package and "
            "save it with numpy.savez"
        )
    if "masks" not in arrays and "next_observations" not in arrays:
        raise DataError(
            f"{path}: column 'masks' is missing, which says where the task is completed; save the singletask dataset "
            "with all its columns"
        )
    masks = arrays.get("masks", np.ones(len(arrays["rewards"])))
    columns = check_columns(
        {
            **{name: arrays[name] for name in ("observations", "actions", "rewards")},
            "terminated": np.asarray(masks) == 0,
            "truncated": arrays["terminals"],
            **({"next_observations": arrays["next_observations"]} if "next_observations" in arrays else {}),
        },
        str(path),
    )
    if "next_observations" not in columns:
        following = np.concatenate([columns["observations"][1:], columns["observations"][-1:]])
        dropped = np.asarray(arrays["valids"]) == 0 if "valids" in arrays else columns["truncated"]
        columns = drop_rows({**columns, "next_observations": following}, dropped)
    columns["truncated"] &= ~columns["terminated"]
    columns = first_rows(columns, transitions)
    low, high = known_bounds(environment_id)
    return Dataset.from_arrays(
        **columns,
        action_low=low,
        action_high=high,
        environment_id=environment_id,
        max_episode_steps=episode_limit(environment_id),
        source=source,
    )
