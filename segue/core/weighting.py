"""The socket of papers about *how much* a transition counts in the losses of the values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from segue.core.types import Batch, Metrics, Models, PyTree, Spec


class Weighting(ABC):
    """A per-row weight of the host's temporal-difference losses, constant while they are differentiated."""

    needs: ClassVar[tuple[str, ...]] = ()  # roles that earlier phases must have made

    @property
    @abstractmethod
    def weighs_conservatism(self) -> bool:
        """Whether CQL's conservative term is weighted too."""

    @abstractmethod
    def init(self, models: Models, spec: Spec, key: jax.Array) -> PyTree:
        """What it reads the weights off; nothing of it is trained by the host."""

    @abstractmethod
    def __call__(self, w: PyTree, batch: Batch) -> tuple[jax.Array, Metrics]:
        """The weights [B], without gradient, and what the log should say of them."""


class RowWeights(NamedTuple):
    """Factors of one batch's losses."""

    temporal: jax.Array | None  # [B] of the squared temporal differences; None: all count alike
    conservative: jax.Array | None  # [B] of the conservative term


def row_weights(weighting: Weighting | None, w: PyTree, batch: Batch) -> tuple[RowWeights, Metrics]:
    """The weights of `batch`'s rows: `weighting`'s, and everywhere the sampler's correction "importance", if any."""
    correction = batch.extras.get("importance")
    if weighting is None:
        return RowWeights(correction, correction), {}
    weight, metrics = weighting(w, batch)
    assert weight.shape == batch.reward.shape, (weight.shape, batch.reward.shape)
    temporal = weight if correction is None else weight * correction
    return RowWeights(temporal, temporal if weighting.weighs_conservatism else correction), metrics


def effective_share(weight: jax.Array) -> jax.Array:
    """(sum w)^2 / (N sum w^2) of weights [N]: which share of the rows, all counting alike, would say as much."""
    return jnp.square(weight.sum()) / (len(weight) * jnp.square(weight).sum())
