"""A run on disk: `config.json`, `metrics.jsonl`, `checkpoints/`, `models/PHASE/`, `summary.json`."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from segue import checkpoint
from segue.core.types import PyTree
from segue.errors import UserError

KEPT_CHECKPOINTS = 2  # the newest, and the one before it should the newest be unreadable


def as_json(value: Any) -> Any:
    """NumPy and JAX values as JSON ones; what is not finite becomes a string, which JSON can hold."""
    if isinstance(value, dict):
        return {key: as_json(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(x) for x in value]
    if isinstance(value, np.generic) or hasattr(value, "dtype"):
        return as_json(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


class RunFolder:
    """Reads and writes one run's files."""

    def __init__(self, path: Path):
        self.path = path
        self.config_path, self.metrics_path = path / "config.json", path / "metrics.jsonl"
        self.summary_path, self.checkpoints = path / "summary.json", path / "checkpoints"

    @classmethod
    def create(cls, path: Path, config: dict[str, Any]) -> RunFolder:
        """A new run. Raises UserError if `path` already holds something."""
        if path.exists() and any(path.iterdir()):
            raise UserError(f"{path} is not empty: choose another --out, or go on with it: segue resume {path}")
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        folder.metrics_path.touch()
        checkpoint.write_atomically(folder.config_path, json.dumps(as_json(config), indent=1) + "\n")
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run. Raises UserError if it is none."""
        if not (path / "config.json").is_file():
            raise UserError(f"{path} is not a run folder: it has no config.json")
        return cls(path)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved settings. Raises UserError if the file is damaged."""
        try:
            config: dict[str, Any] = json.loads(self.config_path.read_text())
        except ValueError as error:
            raise UserError(f"{self.config_path}: not valid JSON ({error})") from None
        return config

    @property
    def summary(self) -> dict[str, Any] | None:
        """The results so far, None before the first phase ended."""
        return json.loads(self.summary_path.read_text()) if self.summary_path.is_file() else None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace `summary.json`."""
        checkpoint.write_atomically(self.summary_path, json.dumps(as_json(summary), indent=1) + "\n")

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        with self.metrics_path.open("a") as file:
            file.write(json.dumps(as_json(record)) + "\n")

    def save(self, number: int, tree: PyTree, manifest: dict[str, Any]) -> None:
        """Write checkpoint `number`, with the length of the metrics that belong to it; drop all but the last two."""
        with self.metrics_path.open("a") as file:
            os.fsync(file.fileno())
            manifest = manifest | {"metrics_bytes": file.tell()}
        self.checkpoints.mkdir(exist_ok=True)
        checkpoint.save(self.checkpoints / f"{number:06d}", tree, as_json(manifest))
        for old in self._numbered()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def _numbered(self) -> list[Path]:
        return sorted(p for p in self.checkpoints.glob("[0-9]*") if (p / checkpoint.MANIFEST).is_file())

    def latest(self) -> Path | None:
        """The newest whole checkpoint."""
        found = self._numbered()
        return found[-1] if found else None

    def forget_after(self, metrics_bytes: int) -> None:
        """Cut `metrics.jsonl` back to what a checkpoint knew; the steps after it are taken again."""
        with self.metrics_path.open("a") as file:
            file.truncate(metrics_bytes)

    def models_path(self, phase: str) -> Path:
        """Where the models lie that a finished phase handed on."""
        return self.path / "models" / phase
