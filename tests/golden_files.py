"""Reading the recorded numbers of the authors' programs. The folder comes from SEGUE_GOLDEN (default tests/golden)."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from segue.core.algorithm import Algorithm
from segue.core.model import Model, Optimizer
from segue.core.types import Batch, PyTree, Spec

FOLDER = Path(os.environ.get("SEGUE_GOLDEN", Path(__file__).parent / "golden"))
SCALAR_TOLERANCE, PARAMETER_TOLERANCE = 1e-8, 1e-9  # float64, as the record's README asks
OCR_CFT_TOLERANCE = 1e-9  # of that folder's README: parameters absolutely, others over max(1, largest)


def cases(*patterns: str) -> list[str]:
    """Names of the records in the folder that match any of the patterns."""
    return sorted({path.stem for pattern in patterns for path in FOLDER.glob(f"{pattern}.npz")})


class Record:
    """One file; arrays come as float64 (indices as they are)."""

    def __init__(self, name: str):
        self.file = np.load(FOLDER / f"{name}.npz")
        self.hparams: dict[str, Any] = json.loads(str(self.file["hparams"])) if "hparams" in self.file.files else {}

    def __getitem__(self, key: str) -> np.ndarray:
        array = self.file[key]
        return array.astype(np.float64) if array.dtype.kind == "f" else array

    def names(self, prefix: str) -> list[str]:
        """Keys below `prefix/`, without it."""
        return [key.removeprefix(prefix + "/") for key in self.file.files if key.startswith(prefix + "/")]

    def tree(self, prefix: str) -> dict[str, Any]:
        """Everything below `prefix/` as nested dicts."""
        tree: dict[str, Any] = {}
        for name in self.names(prefix):
            *path, leaf = name.replace("layer_norms_", "norm_").split("/")  # as one record calls them, and we
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[leaf] = jnp.asarray(self[f"{prefix}/{name}"])
        return tree


FIELDS = ("observations", "actions", "rewards", "next_observations", "terminals")  # in the order of Batch


def batch_of(record: Record, step: int) -> Batch:
    """The transitions of update `step`, in float64."""
    at = f"step_{step}/batch"
    obs, action, reward, next_obs, terminal = (jnp.asarray(record[f"{at}/{field}"], float) for field in FIELDS)
    return Batch(obs, action, reward, next_obs, terminal, {})


def draws_of(record: Record, step: int) -> dict[str, jax.Array]:
    """The random numbers of update `step`, by the record's names."""
    at = f"step_{step}/draws"
    return {name: jnp.asarray(record[f"{at}/{name}"]) for name in record.names(at)}


def recorded_batch(record: Record, prefix: str) -> Batch:
    """Recorded transitions in float32, as the buffers hold them; with trust flags where they are recorded."""
    obs, action, reward, next_obs, terminal = (record.file[f"{prefix}/{name}"].astype(np.float32) for name in FIELDS)
    mask = f"{prefix}/subset_mask"
    extras = {"trust": record.file[mask].astype(np.float32)} if mask in record.file.files else {}
    return Batch(obs, action, reward, next_obs, terminal, extras)  # NumPy: nothing to compile


def assert_batch(got: Batch, record: Record, prefix: str, rtol: float = 0.0) -> None:
    """Transitions equal the recorded ones: to the bit, or float columns to `rtol`; terminals and flags always."""
    want = recorded_batch(record, prefix)
    for name in ("obs", "action", "reward", "next_obs"):
        a, b = np.asarray(getattr(got, name)), getattr(want, name)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol / 10, err_msg=f"{prefix} {name}")
    np.testing.assert_array_equal(got.terminal, want.terminal, f"{prefix} terminal")
    for name, flags in want.extras.items():
        np.testing.assert_array_equal(got.extras[name], flags, f"{prefix} {name}")


def twin(tree: dict[str, Any], name: str) -> tuple[PyTree, PyTree]:
    """Parameters of critics 1 and 2."""
    return tree[f"{name}_1"], tree[f"{name}_2"]


def hidden_sizes(params: PyTree) -> tuple[int, ...]:
    """Hidden widths of a recorded network."""
    layers = sum(name.startswith("layers_") for name in params)
    return tuple(params[f"layers_{i}"]["kernel"].shape[1] for i in range(layers - 1))


def model(net: Any, params: PyTree, optimizer: Optimizer, target: PyTree = None) -> Model:
    """A model in the recorded start state, with an empty optimizer."""
    return Model(params, target, optimizer.transform().init(params), net, optimizer)


def acting_state(algorithm: Algorithm, params: PyTree) -> Any:
    """A state with recorded parameters of the actor, in float32, and zeros everywhere else."""
    shapes = jax.eval_shape(lambda: algorithm.init({}, Spec(5, 2), jax.random.key(0)))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return replace(zeros, actor=replace(zeros.actor, params=jax.tree.map(lambda x: x.astype(jnp.float32), params)))


def explored(algorithm: Algorithm, params: PyTree, obs: np.ndarray, noise: np.ndarray) -> jax.Array:
    """What the algorithm does online with recorded parameters of its actor and a recorded draw, in float32."""
    with patch.object(jax.random, "normal", lambda key, shape: jnp.asarray(noise).reshape(shape)):
        return algorithm.act(acting_state(algorithm, params), jnp.asarray(obs), jax.random.key(0), True)


def assert_scalars(record: Record, prefix: str, metrics: dict[str, Any], names: list[str] | None = None) -> None:
    """Every recorded scalar below `prefix` (or those named) is met."""
    for name in record.names(prefix) if names is None else names:
        want, got = float(record[f"{prefix}/{name}"]), float(metrics[name])
        assert abs(got - want) / (abs(want) + 0.01) <= SCALAR_TOLERANCE, (prefix, name, got, want)


def assert_parameters(got: PyTree, want: PyTree, where: str) -> None:
    """Every parameter is met."""
    structure: Any = jax.tree.structure(got)
    assert structure == jax.tree.structure(want), where
    for path, (a, b) in zip(
        jax.tree_util.tree_leaves_with_path(got), zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True),
        strict=True,
    ):
        difference = float(np.abs(np.asarray(a) - np.asarray(b)).max())  # NumPy: nothing to compile
        assert difference <= PARAMETER_TOLERANCE, (where, path[0], difference)


def assert_near(got: Any, want: Any, where: str) -> None:
    """As near as the README of the folder ocr_cft asks."""
    assert np.shape(got) == np.shape(want), where
    scale = max(1.0, np.abs(np.asarray(want)).max())
    assert np.abs(np.asarray(got) - np.asarray(want)).max() / scale <= OCR_CFT_TOLERANCE, where


def assert_gradient(stepped: Model, want: PyTree, b1: float, where: str) -> None:
    """What a model's first step was given: 1 - b1 of it is Adam's first moment."""
    moments = stepped.opt_state[0].mu
    structure: Any = jax.tree.structure(moments)
    assert structure == jax.tree.structure(want), where
    for m, gradient in zip(jax.tree.leaves(moments), jax.tree.leaves(want), strict=True):
        assert_near(m / (1 - b1), gradient, f"gradient of {where}")
