"""Checks: columns against each other, actions against bounds, a dataset against an environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from segue.data.errors import DataError
from segue.data.successors import Columns

if TYPE_CHECKING:
    from segue.data.dataset import Dataset

RANKS = {"observations": 2, "actions": 2, "next_observations": 2, "rewards": 1, "terminated": 1, "truncated": 1}
FLAGS = ("terminated", "truncated")
GOAL_KEYS = ("observation", "desired_goal")  # parts of a goal task's observation that a policy sees, in this order
BOUND_SLACK = 1e-5  # rounding of logged actions to float32 or to a few printed digits


def check_columns(columns: Mapping[str, ArrayLike], where: str) -> Columns:
    """The columns as float32 and bool arrays, after checking presence, rank, length, values and episode ends.

    `where` opens every message. Raises `DataError`.
    """
    arrays: Columns = {name: _checked_column(name, value, where) for name, value in columns.items()}
    for name in RANKS:
        if name not in arrays and name != "next_observations":
            raise DataError(f"{where}: column '{name}' is missing; add it (it has: {', '.join(columns)})")
    count = len(arrays["observations"])
    if count == 0:
        raise DataError(f"{where}: the dataset is empty; give a file with at least one transition")
    for name, array in arrays.items():
        if len(array) != count:
            raise DataError(
                f"{where}: column '{name}' has {len(array)} rows but 'observations' has {count}; "
                "give every column the same number of rows"
            )
    successors = arrays.get("next_observations")
    if successors is not None and successors.shape != arrays["observations"].shape:
        raise DataError(
            f"{where}: column 'next_observations' has {successors.shape[1]} values a row but 'observations' has "
            f"{arrays['observations'].shape[1]}; they must agree"
        )
    if not (arrays["terminated"][-1] or arrays["truncated"][-1]):
        raise DataError(
            f"{where}: column 'truncated', row {count - 1}: an episode with no end: the last row is neither terminated "
            "nor truncated; set 'truncated' there if the log simply stops"
        )
    return arrays


def check_bounds(
    actions: np.ndarray, low: ArrayLike | None, high: ArrayLike | None, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds as float32 [A] (default -1 and 1), after checking that actions [N, A] lie within them.

    Raises `DataError`.
    """
    action_dim = actions.shape[1]
    bounds = []
    for name, value, default in (("action_low", low, -1.0), ("action_high", high, 1.0)):
        bound = np.asarray(default if value is None else value, np.float32)
        if bound.shape not in ((), (1,), (action_dim,)) or not np.isfinite(bound).all():
            raise DataError(
                f"{where}: column 'actions' has {action_dim} values a row, so '{name}' must be {action_dim} finite "
                f"numbers, not {bound.tolist()}; give bounds, or an environment, that fit the data"
            )
        bounds.append(np.broadcast_to(bound, (action_dim,)).copy())
    lower, upper = bounds
    if not (lower < upper).all():
        raise DataError(
            f"{where}: action bounds {_interval(lower, upper)}: 'action_low' must be below 'action_high' everywhere"
        )
    slack = BOUND_SLACK * (upper - lower)
    outside = (actions < lower - slack) | (actions > upper + slack)
    if outside.any():
        row, dim = _first(outside)
        raise DataError(
            f"{where}: column 'actions', row {row}, dimension {dim}: {actions[row, dim]:g} is outside the bounds "
            f"[{lower[dim]:g}, {upper[dim]:g}] ({int(outside.any(1).sum())} such rows); rescale or clip the actions, "
            "or give the right bounds (action_low, action_high, or the environment's id)"
        )
    return lower, upper


def check_environment(dataset: Dataset, env: Any) -> None:
    """Raise `DataError` unless the spaces of the Gymnasium environment `env` fit the dataset's columns."""
    name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
    where = dataset.source.partition("?")[0] or "data"
    observation_dim = observation_size(env.observation_space, name)
    if observation_dim != dataset.observation_dim:
        raise DataError(
            f"{where}: column 'observations' has {dataset.observation_dim} values a row but environment {name} gives "
            f"{observation_dim}; choose the environment the data came from"
        )
    low, high = action_bounds(env.action_space, name)
    if len(low) != dataset.action_dim:
        raise DataError(
            f"{where}: column 'actions' has {dataset.action_dim} values a row but environment {name} takes {len(low)}; "
            "choose the environment the data came from"
        )
    try:
        check_bounds(dataset.actions, low, high, where)
    except DataError as error:
        raise DataError(f"{error} (bounds of environment {name})") from None
    if not (np.allclose(low, dataset.action_low) and np.allclose(high, dataset.action_high)):
        raise DataError(
            f"{where}: the data's action bounds {_interval(dataset.action_low, dataset.action_high)} are not those of "
            f"environment {name}, {_interval(low, high)}; rescale the actions, or give the right bounds with the data"
        )


def observation_size(space: Any, name: str) -> int:
    """Length of a flattened observation: a Box, or a Dict of Boxes (see `flattened_keys`). Raises `DataError`."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        return int(np.prod(space.shape))
    if isinstance(space, spaces.Dict):
        return sum(observation_size(space[key], name) for key in flattened_keys(space.spaces))
    raise DataError(
        f"environment {name}: its observation space {space} is neither a Box nor a Dict of Boxes; "
        "wrap it with gymnasium.wrappers.FlattenObservation"
    )


def flattened_keys(observation: Mapping[str, Any]) -> list[str]:
    """Which parts of a Dict observation are put one after the other: those of a goal task, else all, sorted.

    `achieved_goal` of a goal task is left out, because it repeats a part of `observation`.
    """
    goal_task = set(GOAL_KEYS) <= set(observation)
    return list(GOAL_KEYS) if goal_task else sorted(observation)


def action_bounds(space: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds, float32 [A], of a bounded Box, flattened. Raises `DataError`."""
    from gymnasium import spaces

    if not isinstance(space, spaces.Box):
        raise DataError(f"environment {name}: its action space {space} is not a Box; only continuous actions work")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise DataError(
            f"environment {name}: its actions have no bounds; wrap it with gymnasium.wrappers.RescaleAction"
        )
    return space.low.ravel().astype(np.float32), space.high.ravel().astype(np.float32)


def _checked_column(name: str, value: ArrayLike, where: str) -> np.ndarray:
    """One column as float32 or bool, of the right rank and with usable values."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise DataError(f"{where}: column '{name}' has rows of different lengths; make them equal") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: column '{name}' holds {array.dtype} values; it must hold numbers")
    rank = RANKS[name]
    if rank == 1 and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]  # [N, 1] is how many loggers write a scalar column; nothing is ambiguous about it
    if array.ndim != rank:
        shape = "[rows, values]" if rank == 2 else "[rows]"
        raise DataError(f"{where}: column '{name}' has shape {list(array.shape)}; it must be {shape}")
    if rank == 2 and array.shape[1] == 0:
        raise DataError(f"{where}: column '{name}' has no values in its rows")
    if name in FLAGS:
        bad = (array != 0) & (array != 1)
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(f"{where}: column '{name}', row {row}: {array[row]:g} is not a flag; use 0/1 or false/true")
        return array.astype(bool)
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite and is reported below
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        row, *rest = _first(~np.isfinite(array))
        place = f"row {row}" + (f", dimension {rest[0]}" if rest else "")
        raise DataError(
            f"{where}: column '{name}', {place}: {array[(row, *rest)]} is not a finite number; "
            "repair that value or leave out its episode"
        )
    return array


def _interval(low: np.ndarray, high: np.ndarray) -> str:
    """Bounds in one line, as arrays would not be printed."""
    return f"{low.tolist()} to {high.tolist()}"


def _first(mask: np.ndarray) -> tuple[int, ...]:
    """Index of the first true entry."""
    return tuple(int(i) for i in np.unravel_index(np.argmax(mask), mask.shape))
