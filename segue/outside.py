"""A run that begins from a policy of another program: its weights, or its actions as labels, kept with the run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue import checkpoint
from segue.core.model import Adam, Model
from segue.core.types import Models, Spec
from segue.data import Dataset
from segue.environment import EnvironmentMaker
from segue.evaluate import Evaluator
from segue.nets.policies import DeterministicPolicy, GaussianPolicy, TanhGaussianPolicy
from segue.policies import ForeignPolicy, labels, load_foreign_policy
from segue.preparation import Preparation
from segue.run_folder import RunFolder

PolicySource = str | Path | Callable[[np.ndarray], np.ndarray]
FOLDER, LABELS = "policy", "labels.npy"
NETS: dict[str, Any] = {  # as `segue.policies` makes them
    "deterministic": DeterministicPolicy,
    "tanh_gaussian": TanhGaussianPolicy,
    "gaussian": partial(GaussianPolicy, tanh_mean=False),
}


@dataclass(frozen=True)
class Outside:
    """A policy of another program, and its weights where it is exactly one of our networks."""

    policy: ForeignPolicy
    native: Model | None
    low: np.ndarray  # action bounds [A]
    high: np.ndarray

    @property
    def form(self) -> str | None:
        """Of its network; None if it is known by its actions alone."""
        return None if self.native is None else self.native.net.kind

    def as_config(self) -> dict[str, Any]:
        """What `config.json` says of it."""
        sizes = None if self.native is None else list(self.native.net.hidden_sizes)
        return {
            "source": self.policy.name,
            "description": self.policy.description,
            "form": self.form,
            "hidden_sizes": sizes,
        }

    def score(
        self, environment: EnvironmentMaker, kwargs: dict[str, Any], spec: Spec, episodes: int, seed: int
    ) -> tuple[float, float]:
        """Mean return and its standard error of the policy as it came."""
        evaluator = Evaluator(environment, kwargs, Preparation.identity(spec.observation_dim))
        score = evaluator.score(self._in_box, episodes, seed)
        assert score is not None
        return score.mean, score.standard_error

    def _in_box(self, observations: np.ndarray) -> np.ndarray:
        actions = np.asarray(self.policy.act(observations), np.float64)
        return np.clip(2 * (actions - self.low) / (self.high - self.low) - 1, -1, 1).astype(np.float32)

    def keep(self, folder: RunFolder, dataset: Dataset | None) -> None:
        """Put what a resumed run needs into its folder: weights, or the labels of the dataset's observations."""
        path = folder.path / FOLDER
        if self.native is not None:
            checkpoint.save(path, {"params": self.native.params}, {})
            return
        assert dataset is not None
        path.mkdir()
        temporary = path / f".{LABELS}.{os.getpid()}.npy"
        np.save(temporary, labels(self.policy, dataset.observations))
        os.replace(temporary, path / LABELS)


def accept(source: PolicySource, spec: Spec, bounds: list[list[float]]) -> Outside:
    """Read a policy. Raises UserError if it cannot be read, or is not of the sizes of the task."""
    low, high = np.asarray(bounds[0]), np.asarray(bounds[1])
    policy = load_foreign_policy(source, low, high)
    policy.act(np.zeros((1, spec.observation_dim), np.float32))  # which checks both sizes
    return Outside(policy, policy.native(), low, high)


def outside_models(folder: RunFolder, spec: Spec, seeds: int) -> Models:
    """The weights that a run (or the first of its parents) began from, for each of `seeds`; {} if it had none."""
    config = folder.config
    if config["parent"]:
        return outside_models(RunFolder.open(Path(config["parent"])), spec, seeds)
    outside = config.get("policy")
    if not outside or not outside["form"]:
        return {}
    net = NETS[outside["form"]](*spec, tuple(outside["hidden_sizes"]))
    template = jax.eval_shape(lambda: {"params": net.init(jax.random.key(0))})
    params = checkpoint.load(folder.path / FOLDER, template)["params"]
    repeated = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x)[None], seeds, 0), params)
    return {"actor": Model(repeated, None, (), net, Adam(0.0))}


def outside_labels(folder: RunFolder) -> np.ndarray | None:
    """The actions [N, A] that `keep` stored."""
    path = folder.path / FOLDER / LABELS
    return np.load(path) if path.is_file() else None
