"""The socket of papers about *how strong* a regularizer should be at a state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import jax

from segue.core.types import Batch, Metrics, PyTree, Spec


class Coefficient(ABC):
    """A per-row strength of the host's regularizer, with a state of its own."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Entries of `Batch.extras` that it reads."""

    @abstractmethod
    def init(self, spec: Spec, key: jax.Array, beta_0: float) -> PyTree:
        """A fresh state; `beta_0` is the host's own constant strength."""

    @abstractmethod
    def __call__(self, c: PyTree, batch: Batch, updates: jax.Array) -> jax.Array:
        """The strength [B], without gradient; `updates` counts gradient steps, this one included."""

    @abstractmethod
    def update(
        self, c: PyTree, batch: Batch, updates: jax.Array, slack: Callable[[Any], jax.Array]
    ) -> tuple[PyTree, Metrics]:
        """Learn; `slack(n)` [B] is how far inside n standard deviations of the policy each data action lies."""

    @abstractmethod
    def begin_online(self, c: PyTree, updates: jax.Array) -> PyTree:
        """The state at the start of an online phase, after `updates` gradient steps."""

    @abstractmethod
    def diagnose(self, c: PyTree, batch: Batch, updates: jax.Array) -> Metrics:
        """Its distribution over `batch`."""
