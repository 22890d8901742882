"""Policy snapshots: small squashed-Gaussian networks that built-in data is rolled out with, and their provenance."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.errors import DataError

FOLDER = Path(__file__).parent / "snapshots"  # <task>/provenance.json and <task>/<name>.safetensors
# Rows of one matrix product. OpenBLAS computes 4 x 256 x 256 in the calling thread; for more it wakes other threads:
# that gains nothing at this size, costs a hundredfold on a busy machine, and could let the number of cores decide about
# the last bit of an action.
GROUP = 4


@dataclass(frozen=True)
class Policy:
    """tanh(mean + std x noise) with ReLU hidden layers; actions in [-1, 1]."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]  # (kernel [in, out], bias [out]) float32; the last out is 2A
    log_std_min: float
    log_std_max: float

    def sample(self, observations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Stochastic actions [E, A] float32 for observations [E, S] float32."""
        rows, size = observations.shape
        padded = np.zeros((-(-rows // GROUP) * GROUP, size), np.float32)
        padded[:rows] = observations
        hidden = padded.reshape(-1, GROUP, size)
        for kernel, bias in self.layers[:-1]:
            hidden = np.maximum(hidden @ kernel + bias, 0)
        kernel, bias = self.layers[-1]
        output = (hidden @ kernel + bias).reshape(len(padded), -1)[:rows]
        mean, log_std = np.split(output, 2, axis=-1)
        std = np.exp(np.clip(log_std, self.log_std_min, self.log_std_max))
        return np.tanh(mean + std * rng.standard_normal(mean.shape, np.float32))


@dataclass(frozen=True)
class Provenance:
    """What is recorded beside the snapshots of one task."""

    folder: Path
    record: dict[str, Any]  # the parsed provenance.json
    text: bytes  # its bytes, for fingerprints

    @property
    def reference_scores(self) -> tuple[float, float]:
        """Mean raw returns of (uniformly random actions, the expert)."""
        random, expert = self.record["reference_scores"]
        return float(random), float(expert)

    def files(self, role: str) -> list[Path]:
        """Snapshots of a role: `medium`, `expert` or `medium_replay` (in training order)."""
        named = self.record[role]
        return [self.folder / name for name in ([named] if isinstance(named, str) else named)]


def provenance(task: str, snapshots: Path = FOLDER) -> Provenance | None:
    """The record of the task's snapshots, None if there are none."""
    path = snapshots / task / "provenance.json"
    if not path.exists():
        return None
    text = path.read_bytes()
    return Provenance(path.parent, json.loads(text), text)


def load_policy(path: Path) -> Policy:
    """Read one snapshot. Raises `DataError` if the file is damaged or not a policy."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            count = sum(name.endswith("/kernel") for name in file.keys())  # noqa: SIM118 (no mapping)
            layers = tuple(
                (file.get_tensor(f"layers_{i}/kernel"), file.get_tensor(f"layers_{i}/bias")) for i in range(count)
            )
        return Policy(layers, float(metadata["log_std_min"]), float(metadata["log_std_max"]))
    except (SafetensorError, OSError, KeyError) as error:
        raise DataError(f"{path}: this is no policy snapshot ({error}); install segue again") from None
