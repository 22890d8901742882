"""Datasets of the local Minari store, through the minari library."""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np

from segue.data.dataset import Dataset
from segue.data.environments import known_bounds
from segue.data.errors import DataError
from segue.data.successors import first_rows
from segue.data.validate import action_bounds, flattened_keys
from segue.errors import UserError


def load(name: str, transitions: int | None, environment_id: str | None, source: str) -> Dataset:
    """Read the Minari dataset `name`, which must have been downloaded or made on this machine.

    Dict observations are flattened as environments' are. Raises `DataError`, or `UserError` if minari is not installed.
    """
    try:
        import minari
    except ImportError:
        raise UserError(
            f'minari:{name} needs the minari library; install it with: pip install "segue[minari]"'
        ) from None
    store = _open(minari, name)
    parts: list[dict[str, np.ndarray]] = []
    rows = 0
    for episode in store.iterate_episodes():
        part = _columns(episode)
        parts.append(part)
        rows += len(part["rewards"])
        if transitions is not None and rows >= transitions:
            break
    if rows == 0:
        raise DataError(f"minari:{name}: the dataset is empty; choose another one")
    columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    spec = store.spec.env_spec
    low, high = known_bounds(environment_id) if environment_id else action_bounds(store.spec.action_space, name)
    return Dataset.from_arrays(
        **first_rows(columns, transitions),
        action_low=low,
        action_high=high,
        environment_id=environment_id or (spec.id if spec else None),
        environment_kwargs=dict(spec.kwargs) if spec and not environment_id else {},
        reference_scores=_reference_scores(store.storage.metadata),
        max_episode_steps=spec.max_episode_steps if spec else None,
        source=source,
    )


def _open(minari: Any, name: str) -> Any:
    """The store's dataset, or a `DataError` naming the nearest local ones."""
    local = list(minari.list_local_datasets())
    if name in local:
        return minari.load_dataset(name)
    nearest = difflib.get_close_matches(name, local, n=3)
    hint = f" (nearest there: {', '.join(nearest)})" if nearest else ""
    raise DataError(f"minari:{name}: not in the local Minari store{hint}; fetch it with: minari download {name}")


def _columns(episode: Any) -> dict[str, np.ndarray]:
    """One episode of T steps, which holds T + 1 observations, as columns of T rows."""
    observations = _flat(episode.observations)
    terminated = np.array(episode.terminations, bool)
    truncated = np.array(episode.truncations, bool)
    if len(terminated) and not (terminated[-1] or truncated[-1]):
        truncated[-1] = True  # Minari ends an episode here, whatever the flags say
    return {
        "observations": observations[:-1],
        "actions": _flat(episode.actions),
        "rewards": np.asarray(episode.rewards, np.float32),
        "next_observations": observations[1:],
        "terminated": terminated,
        "truncated": truncated,
    }


def _flat(values: Any) -> np.ndarray:
    """Values of T steps, arrays of any shape or Dicts of them, as float32 [T, K]."""
    if isinstance(values, dict):
        return np.concatenate([_flat(values[key]) for key in flattened_keys(values)], axis=1)
    array = np.asarray(values, np.float32)
    return array.reshape(len(array), -1)


def _reference_scores(metadata: dict[str, Any]) -> tuple[float, float] | None:
    """Minari's own reference returns, where the dataset's author recorded them."""
    scores = [metadata.get(key) for key in ("ref_min_score", "ref_max_score")]
    return None if None in scores else (float(scores[0]), float(scores[1]))  # type: ignore[arg-type]
