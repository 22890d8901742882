"""D4RL's HDF5 layout, in the view that the papers train on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.dataset import Dataset
from segue.data.environments import episode_limit, known_bounds
from segue.data.errors import DataError
from segue.data.files import check_readable
from segue.data.successors import Columns, drop_rows, first_rows
from segue.data.validate import check_columns

# Returns (random, expert) that D4RL's normalised scores are defined by, and the time limit of the recorded episodes.
LOCOMOTION = {
    "halfcheetah": ("HalfCheetah-v5", (-280.178953, 12135.0)),
    "hopper": ("Hopper-v5", (-20.272305, 3234.3)),
    "walker2d": ("Walker2d-v5", (1.629008, 4592.3)),
}
LOCOMOTION_LIMIT = 1000
ANTMAZE_LIMITS = {"umaze": 700, "larger": 1000}
REQUIRED = ("observations", "actions", "rewards", "terminals")


def load(path: Path, transitions: int | None, environment_id: str | None, source: str) -> Dataset:
    """Read a D4RL file in the q-learning view (see `q_learning_view`).

    Environment, reference scores and time limit are guessed from names like `hopper_medium-v2.hdf5`. Raises
    `DataError`.
    """
    task = recognise(path.stem)
    limit = episode_limit(environment_id) or task["max_episode_steps"]
    raw = _read(path)
    if "timeouts" not in raw:
        raw["timeouts"] = _timeouts_by_length(np.asarray(raw["terminals"]), limit, path)
    renamed = {"terminals": "terminated", "timeouts": "truncated"}
    # The last row is only looked at as a successor: an unfinished last episode is no fault in this layout.
    raw["timeouts"] = np.array(raw["timeouts"], copy=True)
    if raw["timeouts"].ndim == 1 and len(raw["timeouts"]):
        last_flagged = raw["timeouts"][-1]
        raw["timeouts"][-1] = 1
    columns = check_columns({renamed.get(name, name): value for name, value in raw.items()}, str(path))
    columns["truncated"][-1] = last_flagged
    columns = first_rows(q_learning_view(columns), transitions)
    if len(columns["rewards"]) == 0:
        raise DataError(f"{path}: the dataset is empty once its last row and every time-out row are left out")
    low, high = known_bounds(environment_id)
    return Dataset.from_arrays(
        **columns,
        action_low=low,
        action_high=high,
        environment_id=environment_id or task["environment_id"],
        reference_scores=task["reference_scores"],
        max_episode_steps=limit,
        source=source,
    )


def q_learning_view(columns: Columns) -> Columns:
    """The transitions [M, ...] that the papers train on, from raw rows [N, ...].

    The successor of a row is the next row's observation, even where the file has a column of successors; rows with the
    time-out flag and the last row are dropped. A terminal row thus points into the next episode, which its flag masks.
    """
    observations = columns["observations"]
    dropped = columns["truncated"].copy()
    dropped[-1] = True
    following = np.concatenate([observations[1:], observations[-1:]])
    return drop_rows({**columns, "next_observations": following}, dropped)


def recognise(name: str) -> dict[str, Any]:
    """Environment id, reference scores and time limit that a D4RL file or dataset name implies (None if unknown)."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    if words[0] in LOCOMOTION:
        environment_id, scores = LOCOMOTION[words[0]]
        return {
            "environment_id": environment_id,
            "reference_scores": scores,
            "max_episode_steps": LOCOMOTION_LIMIT,
        }
    if words[0] in ("antmaze", "ant") and "maze" in name.lower():
        # No environment: gymnasium-robotics' AntMaze flattens to 29 numbers too, but others (a goal, no x and y).
        return {
            "environment_id": None,
            "reference_scores": (0.0, 1.0),
            "max_episode_steps": ANTMAZE_LIMITS["umaze" if re.search(r"u-?maze", name.lower()) else "larger"],
        }
    return {"environment_id": None, "reference_scores": None, "max_episode_steps": None}


def _read(path: Path) -> dict[str, np.ndarray]:
    """The raw columns of the file, `timeouts` only if present."""
    import h5py

    check_readable(path)
    try:
        with h5py.File(path, "r") as file:
            for name in REQUIRED:
                if not isinstance(file.get(name), h5py.Dataset):
                    present = ", ".join(sorted(file)) or "nothing"
                    raise DataError(f"{path}: column '{name}' is missing; add it (it has: {present})")
            names = [name for name in (*REQUIRED, "timeouts") if name in file]
            return {name: file[name][()] for name in names}
    except OSError as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: this is no complete HDF5 file ({reason}); fetch it again and compare its size"
        ) from None


def _timeouts_by_length(terminals: np.ndarray, limit: int | None, path: Path) -> np.ndarray:
    """Time-out flags [N] for old files that lack them: the row that reaches the time limit."""
    if limit is None:
        raise DataError(
            f"{path}: column 'timeouts' is missing and no time limit is known; add the column, or name the "
            "environment with --env"
        )
    timeouts = np.zeros(len(terminals), bool)
    start = 0
    for end in [*np.flatnonzero(terminals), len(terminals) - 1]:
        timeouts[start + limit - 1 : end + 1 : limit] = True
        start = end + 1
    return timeouts
