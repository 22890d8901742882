"""A run on disk: `config.json`, `metrics.jsonl`, `checkpoints/`, `models/PHASE/`, `summary.json`."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from segue import checkpoint
from segue.core.types import PyTree
from segue.errors import UserError

OFFLINE_EVALUATION = "offline_evaluation.json"
KEPT_CHECKPOINTS = 2  # the newest, and the one before it should the newest be unreadable
CONFIG_KEYS = {"method", "dataset", "environment", "seeds", "offline", "online", "updates", "online_steps", "parent"}


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
        cls.check_free(path)
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        folder.metrics_path.touch()
        checkpoint.write_atomically(folder.config_path, json.dumps(as_json(config), indent=1) + "\n")
        return folder

    @staticmethod
    def check_free(path: Path) -> None:
        """Raise UserError if `path` already holds something."""
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file: choose another folder with --out")
        if path.exists() and any(path.iterdir()):
            remedy = f", or go on with it: segue resume {path}" if (path / "config.json").is_file() else ""
            raise UserError(f"{path} is not empty: choose another --out{remedy}")

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
            config = json.loads(self.config_path.read_text())
        except ValueError as error:
            raise UserError(f"{self.config_path}: not valid JSON ({error})") from None
        missing = CONFIG_KEYS - config.keys() if isinstance(config, dict) else CONFIG_KEYS
        if missing:
            raise UserError(f"{self.config_path}: '{min(missing)}' is missing; it is damaged or of another version")
        assert isinstance(config, dict)
        return config

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Executing the run, which only one process may do at a time; what a killed one left half written is removed.

        Raises UserError if another process executes it.
        """
        with self.config_path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{self.path}: another process is working on this run; wait for its end") from None
            for folder in (self.path, self.checkpoints, self.models_path("")):
                for left_over in folder.glob(".*.[0-9]*"):
                    shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
            yield

    def discard_if_unused(self) -> None:
        """Remove the folder of a run that failed before anything was learned."""
        if self.latest() is None and not self.models_path("").exists():
            shutil.rmtree(self.path)

    @property
    def summary(self) -> dict[str, Any] | None:
        """The results so far, None before the first phase ended."""
        if not self.summary_path.is_file():
            return None
        try:
            summary: dict[str, Any] = json.loads(self.summary_path.read_text())
        except ValueError as error:
            raise UserError(f"{self.summary_path}: not valid JSON ({error})") from None
        return summary

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
        return sorted(p for p in self.checkpoints.glob("[0-9]*") if p.is_dir())

    def latest(self) -> Path | None:
        """The newest checkpoint."""
        found = self._numbered()
        return found[-1] if found else None

    def latest_whole(self) -> Path | None:
        """The newest checkpoint that is undamaged, with a warning for each newer one; None if there never was one.

        Raises UserError if all are damaged.
        """
        problem = None
        for path in reversed(self._numbered()):
            try:
                checkpoint.check_whole(path)
                return path
            except UserError as error:
                problem = error
                warnings.warn(f"{error}; going on from the one before it", stacklevel=2)
        if problem is not None:
            raise UserError(f"{problem}, and no other is whole; start the run again with another --out")
        return None

    def forget_after(self, metrics_bytes: int) -> None:
        """Cut `metrics.jsonl` back to what a checkpoint knew; the steps after it are taken again."""
        with self.metrics_path.open("a") as file:
            file.truncate(metrics_bytes)

    def models_path(self, phase: str) -> Path:
        """Where the models lie that a finished phase handed on."""
        return self.path / "models" / phase
