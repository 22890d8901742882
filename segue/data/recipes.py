"""Which built-in datasets there are and what each is made of."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segue.data import pointmaze
from segue.data.environments import require_robotics
from segue.data.errors import DataError
from segue.data.generate import Behaviour
from segue.data.policy import FOLDER, Policy, load_policy, provenance

TASKS = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5", "walker2d": "Walker2d-v5"}
POINTMAZE = "pointmaze-umaze"


@dataclass(frozen=True)
class Kind:
    """One quality of locomotion data."""

    role: tuple[str, ...]  # whose snapshots act, in this order, for equal shares of the rows; () is uniformly random
    transitions: int
    text: str


KINDS = {
    "random": Kind((), 1_000_000, "uniformly random actions"),
    "medium": Kind(("medium",), 1_000_000, "samples of a policy at about a third of the expert's return"),
    "medium-replay": Kind(("medium_replay",), 400_000, "samples of the policies on the way to medium, in equal shares"),
    "medium-expert": Kind(("medium", "expert"), 2_000_000, "half medium, half expert"),
    "expert": Kind(("expert",), 1_000_000, "samples of the policy at the end of training"),
}


@dataclass(frozen=True)
class Recipe:
    """All that determines a built-in dataset, but for its size."""

    name: str
    transitions: int  # default size
    description: str
    environment_id: str
    behaviours: Callable[[np.ndarray, np.ndarray], list[Behaviour]]  # from the action bounds [A]; equal shares of rows
    environment_kwargs: dict[str, Any] = field(default_factory=dict)
    flatten: Callable[[Any], np.ndarray] = np.asarray  # the environment's observation as [S]
    reference_scores: tuple[float, float] | None = None
    fingerprint: bytes = b""  # changes when the policies do


def names(snapshots: Path = FOLDER) -> list[str]:
    """Names of the built-in datasets that this installation can make."""
    found = []
    for task in TASKS:
        trained = provenance(task, snapshots) is not None
        found += [f"{task}-{kind}" for kind in KINDS if trained or not KINDS[kind].role]
    if importlib.util.find_spec("gymnasium_robotics"):
        found.append(POINTMAZE)
    return found


def recipe(name: str, snapshots: Path = FOLDER) -> Recipe:
    """The recipe of `segue/name`.

    Raises `DataError` for an unknown name, with the nearest known ones, or when its policies are not installed, and
    `UserError` if its environment's library is not.
    """
    if name == POINTMAZE:
        require_robotics()
        return Recipe(
            name=name,
            transitions=1_000_000,
            description="a noisy waypoint controller, sparse reward",
            environment_id=pointmaze.ENVIRONMENT_ID,
            behaviours=lambda low, high: [pointmaze.waypoint_behaviour()],
            environment_kwargs=pointmaze.ENVIRONMENT_KWARGS,
            flatten=pointmaze.flatten,
            reference_scores=pointmaze.REFERENCE_SCORES,
        )
    task, _, quality = name.partition("-")
    if task not in TASKS or quality not in KINDS:
        nearest = difflib.get_close_matches(name, names(snapshots), n=3)
        hint = f"did you mean {' or '.join(f'segue/{near}' for near in nearest)}? " if nearest else ""
        raise DataError(f"unknown dataset 'segue/{name}'; {hint}`segue data list` shows all")
    kind = KINDS[quality]
    record = provenance(task, snapshots)
    if kind.role and record is None:
        raise DataError(
            f"segue/{name}: this installation has no policies for {task}; it has: {', '.join(names(snapshots))}"
        )
    files = [file for role in kind.role for file in record.files(role)] if record else []

    def behaviours(low: np.ndarray, high: np.ndarray) -> list[Behaviour]:
        return [scaled(load_policy(file), low, high) for file in files] or [uniform(low, high)]

    return Recipe(
        name=name,
        transitions=kind.transitions,
        description=kind.text,
        environment_id=TASKS[task],
        behaviours=behaviours,
        reference_scores=record.reference_scores if record else None,
        fingerprint=b"".join([record.text if record else b"", *(file.read_bytes() for file in files)]),
    )


def scaled(policy: Policy, low: np.ndarray, high: np.ndarray) -> Behaviour:
    """Samples of the policy, from [-1, 1] to the environment's units."""

    def behave(observations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.clip(low + (policy.sample(observations, rng) + 1) * (0.5 * (high - low)), low, high)

    return behave


def uniform(low: np.ndarray, high: np.ndarray) -> Behaviour:
    """Uniformly random actions."""

    def behave(observations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return low + rng.random((len(observations), len(low)), np.float32) * (high - low)

    return behave
