"""A Python function `observation -> action` as a policy."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import UserError
from segue.policies.foreign import ForeignPolicy, as_rows

REFERENCE = re.compile(r"(?P<place>.+\.py|\w+(\.\w+)*):(?P<name>\w+)")
HOW = "write a function of one observation [S], or of many [n, S], that returns its action"


def is_reference(text: str) -> bool:
    """Does it read `package.module:function` or `path/to/file.py:function`?"""
    return REFERENCE.fullmatch(text) is not None


def find(reference: str) -> Callable[..., Any]:
    """The function that a reference names; its file or module is run. Raises UserError if there is none."""
    match = REFERENCE.fullmatch(reference)
    assert match is not None, reference
    place, name = match["place"], match["name"]
    try:
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise UserError(f"{reference}: there is no file {place}")
            spec = importlib.util.spec_from_file_location(f"segue_policy_{Path(place).stem}", place)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except UserError:
        raise
    except Exception as error:  # whatever a user's file may raise
        words = " ".join(str(error).split())
        raise UserError(
            f"{reference}: {place} cannot be imported ({type(error).__name__}: {words}); a file is written "
            "path/to/file.py:function"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise UserError(f"{reference}: {place} has no function '{name}'")
    return found


def load(function: Callable[..., Any], name: str, low: np.ndarray, high: np.ndarray) -> ForeignPolicy:
    """`function` as a policy, asked for many observations at once if it can take them."""
    return ForeignPolicy(name, f"Python function {name}", low, high, _Caller(function, name))


class _Caller:
    """Calls the function with [n, S], or once for each row."""

    def __init__(self, function: Callable[..., Any], name: str):
        self.function, self.name = function, name
        self.takes_batches: bool | None = None  # None: not tried yet

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        if self.takes_batches is None:
            self.takes_batches = self._try_batch(observations)
        if self.takes_batches:
            return as_rows(self.name, self._call(observations), len(observations))
        rows = [np.ravel(self._call(row)) for row in observations]
        if len({row.shape for row in rows}) != 1:
            raise UserError(f"policy {self.name} gives actions of different lengths: {HOW}")
        return np.stack(rows)

    def _call(self, observations: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(self.function(observations), np.float64)
        except Exception as error:  # whatever a user's function may raise
            words = " ".join(str(error).split())
            raise UserError(f"policy {self.name} failed ({type(error).__name__}: {words}): {HOW}") from error

    def _try_batch(self, observations: np.ndarray) -> bool | None:
        """Does a batch give what its rows give? None where there are no two different rows to tell by."""
        others = np.flatnonzero((observations != observations[0]).any(1))
        if not others.size:
            return None
        # One row more than an observation has numbers: taken for a single observation, such a batch cannot give as
        # many rows as it has, and what takes its first numbers for the action gives itself away.
        pair = observations[[0, others[0]]]
        batch = np.resize(pair, (pair.shape[1] + 1, pair.shape[1]))
        try:
            together = as_rows(self.name, self._call(batch), len(batch))[:2]
        except UserError:
            return False
        try:
            alone = np.stack([np.ravel(self._call(row)) for row in pair])
        except (UserError, ValueError):
            return True
        return together.shape == alone.shape and bool(np.allclose(together, alone, 1e-3, 1e-4, equal_nan=True))
