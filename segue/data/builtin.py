"""Built-in datasets `segue/NAME`: generated on first use from shipped policies, then kept in the cache folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from segue.data import cache
from segue.data.dataset import Dataset
from segue.data.environments import make_environment
from segue.data.generate import Task, collect
from segue.data.policy import FOLDER
from segue.data.recipes import Recipe, names, recipe
from segue.data.validate import action_bounds

GENERATOR_VERSION = 1  # raise it when the same recipe would give other rows: old cache files are then not used


def load(
    name: str,
    transitions: int | None = None,
    environment_id: str | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    snapshots: Path = FOLDER,
) -> Dataset:
    """The built-in dataset `name` with exactly `transitions` rows (default: its usual size).

    Raises `DataError` for an unknown name, and `UserError` if the environment's library is missing.
    """
    made_by = recipe(name, snapshots)
    rows = made_by.transitions if transitions is None else transitions
    environment = make_environment(made_by.environment_id, **made_by.environment_kwargs)
    limit = environment.spec.max_episode_steps
    low, high = action_bounds(environment.action_space, made_by.environment_id)
    environment.close()
    path = _cache_path(made_by, rows, cache_dir)
    columns = cache.read(path)
    if columns is None:
        columns = _generate(made_by, rows, low, high, limit, progress)
        cache.write(path, columns)
    same_environment = environment_id in (None, made_by.environment_id)
    return Dataset(
        **columns,
        action_low=low,
        action_high=high,
        environment_id=environment_id or made_by.environment_id,
        environment_kwargs=dict(made_by.environment_kwargs) if same_environment else {},
        reference_scores=made_by.reference_scores,
        max_episode_steps=limit,
        source=f"segue/{name}?transitions={rows}",
    )


def describe(cache_dir: Path | None = None, snapshots: Path = FOLDER) -> list[dict[str, object]]:
    """One record for each built-in dataset; `cached` says whether its default size is already generated."""
    recipes = [recipe(name, snapshots) for name in names(snapshots)]
    return [
        {
            "reference": f"segue/{one.name}",
            "environment_id": one.environment_id,
            "transitions": one.transitions,
            "cached": _cache_path(one, one.transitions, cache_dir).exists(),
            "description": one.description,
        }
        for one in recipes
    ]


def _generate(
    made_by: Recipe,
    transitions: int,
    low: np.ndarray,
    high: np.ndarray,
    limit: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, np.ndarray]:
    """Roll the recipe's behaviours out, one after the other, for equal shares of the rows."""
    task = Task(
        lambda: make_environment(made_by.environment_id, **made_by.environment_kwargs).unwrapped,
        made_by.flatten,
        limit,
    )
    behaviours = made_by.behaviours(low, high)
    bounds = [transitions * i // len(behaviours) for i in range(len(behaviours) + 1)]
    name_seed = int.from_bytes(hashlib.sha256(made_by.name.encode()).digest()[:4], "big")
    parts = []
    for i, behaviour in enumerate(behaviours):
        done, share = bounds[i], bounds[i + 1] - bounds[i]
        if share == 0:
            continue

        def report(rows: int, done: int = done) -> None:
            if progress is not None:
                progress(done + rows, transitions)

        parts.append(collect(task, behaviour, share, (name_seed, i), report))
        report(share)
    return {column: np.concatenate([part[column] for part in parts]) for column in parts[0]}


def _cache_path(made_by: Recipe, transitions: int, cache_dir: Path | None) -> Path:
    fingerprint = hashlib.sha256(made_by.fingerprint + str(GENERATOR_VERSION).encode()).hexdigest()[:12]
    folder = cache_dir or cache.cache_folder()
    return folder / "data" / f"{made_by.name}-{transitions}-{fingerprint}.safetensors"
