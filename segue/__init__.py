"""Segue: offline-to-online reinforcement learning in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from segue.api import Run, finetune, open_run, resume, run, train
    from segue.data import Dataset, load_dataset
    from segue.report import write_report

__all__ = ["Dataset", "Run", "finetune", "load_dataset", "open_run", "resume", "run", "train", "write_report"]

_HOMES = {"Dataset": "segue.data", "load_dataset": "segue.data", "write_report": "segue.report"}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are asked for: `segue --help` must not wait for JAX."""
    if name not in __all__:
        raise AttributeError(f"module 'segue' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "segue.api")), name)
