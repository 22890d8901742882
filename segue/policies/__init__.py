"""Policies that other programs trained: Stable-Baselines3, ONNX and TorchScript files, and Python functions.

`load_foreign_policy` reads one, `labels` asks it what it would do in every state of a dataset.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from segue.errors import UserError
from segue.policies import function, onnx, sb3, torchscript
from segue.policies.foreign import ForeignPolicy, labels

__all__ = ["ForeignPolicy", "labels", "load_foreign_policy"]

READERS: dict[str, Callable[[Path, np.ndarray, np.ndarray], ForeignPolicy]] = {
    ".zip": sb3.load,
    ".onnx": onnx.load,
    ".pt": torchscript.load,
    ".pth": torchscript.load,
    ".ts": torchscript.load,
}
KINDS = "a Stable-Baselines3 .zip, .onnx, TorchScript .pt, or package.module:function or FILE.py:function"


def load_foreign_policy(
    reference: str | Path | Callable[..., Any], action_low: ArrayLike, action_high: ArrayLike
) -> ForeignPolicy:
    """The policy that `reference` names, for an environment with the action bounds `action_low` and `action_high` [A].

    `reference` is a file (.zip of Stable-Baselines3, .onnx, TorchScript .pt), a function `observation -> action`, or
    where one is found: `package.module:function` or `path/to/file.py:function`. Files are read as data: nothing in
    them is run, but for the programs that ONNX and TorchScript files are; a function is of course.
    Raises UserError for what is no policy that can be read.
    """
    low = np.atleast_1d(np.asarray(action_low, np.float64))
    high = np.atleast_1d(np.asarray(action_high, np.float64))
    if callable(reference):
        return function.load(reference, getattr(reference, "__qualname__", type(reference).__name__), low, high)
    path = Path(reference)
    if not path.exists() and function.is_reference(str(reference)):
        return function.load(function.find(str(reference)), str(reference), low, high)
    if path.suffix == ".py":
        raise UserError(f"{path}: name the function in it, as in {path}:policy")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; a policy is {KINDS}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: the ending '{path.suffix}' is no policy's that can be read; give {KINDS}")
    return reader(path, low, high)
