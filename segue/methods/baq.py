"""BAQ: transitions count by how near their action is to the data's policy ("Behavior Adaption Q-Learning", OpenReview
d159zNCmOq; ../spec/baq.md). A weighting of CQL or IQL and a sampler, both by the frozen model of `behaviour`.

    r = pi_BC(s) - a
    w = exp( -mean_A r^2 / k_q )                  of the squared errors of Q, of V too in IQL (Eq. 6 to 9)
    P ~ (|r|_2 / k_rho + 1)^alpha                 of every row in the pool (Eq. 10)

The two work against each other: a row far from the model is drawn more often, and then counts less. Model and action
of a row stay as they are, so both are its constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from segue.core.model import Model
from segue.core.replay import Memory
from segue.core.sampling import Sampler
from segue.core.types import Batch, Metrics, Models, PyTree, Spec
from segue.core.weighting import Weighting, effective_share
from segue.nets.policies import action_of

SMALLEST_SCALE = 0.1  # of the adaptive k_q and k_rho [ours, baq.md 3.4, 4.3]


class Reference(NamedTuple):
    """What w and the priority are read off."""

    behaviour: Model  # frozen
    scale: jax.Array  # [] k_q or k_rho


def residuals(behaviour: Model, obs: jax.Array, action: jax.Array) -> jax.Array:
    """pi_BC(s) - a [..., A], without gradient."""
    return jax.lax.stop_gradient(action_of(behaviour, obs, jnp.zeros_like(action))) - action


@dataclass(frozen=True)
class BehaviourWeight(Weighting):
    """w: rows whose action the data's policy would take count in full."""

    weight_scale: float | None = None  # k_q; None: max(2 x held-out square, 0.1) [ours, baq.md 3.4: the paper has none]
    weight_terms: Literal["td", "td_and_conservative"] = "td"  # of CQL [Eq. 7; its text says the other, baq.md 3.2]
    normalise_weights: bool = False  # divide by the batch's mean [ours: off, Eq. 7 read literally, baq.md 3.2]

    needs = ("behaviour",)

    @property
    def weighs_conservatism(self) -> bool:
        """As asked."""
        return self.weight_terms == "td_and_conservative"

    def init(self, models: Models, spec: Spec, key: jax.Array) -> Reference:
        """The model of the behaviour, and k_q."""
        adaptive = jnp.maximum(2 * models["behaviour_error"].square, SMALLEST_SCALE)
        scale = adaptive if self.weight_scale is None else jnp.full_like(adaptive, self.weight_scale)
        return Reference(models["behaviour"].frozen(), scale)

    def __call__(self, w: Reference, batch: Batch) -> tuple[jax.Array, Metrics]:
        """w [B]; its mean, and how many rows' worth of learning is left."""
        weight = jnp.exp(-jnp.square(residuals(w.behaviour, batch.obs, batch.action)).mean(-1) / w.scale)
        weight = jax.lax.stop_gradient(weight)
        metrics = {
            "weight_mean": weight.mean(),
            "weight_effective_share": effective_share(weight),
            "weight_scale": w.scale,
        }
        return weight / weight.mean() if self.normalise_weights else weight, metrics


@dataclass(frozen=True)
class BehaviourPriority(Sampler):
    """Rows whose action the data's policy would not take are drawn more often; those above 16,384 as if they were that.

    It wants nothing of the algorithm, so that it goes with any.
    """

    divergence_scale: float | None = None  # k_rho; None: max(held-out distance, 0.1) [ours, baq.md 4.3: paper has none]
    priority_exponent: float = 1.0  # alpha [ours, baq.md 4.3: the paper has none]
    offline_priority: Literal["formula", "one"] = "formula"  # of the dataset's rows [ours: Eq. 10 for all, baq.md 4.1]
    importance_exponent: float = 0.0  # of a correction of the losses for the draws [ours: none, baq.md 4.1]

    needs = ("behaviour",)

    def init(self, models: Models, memory: Memory, key: jax.Array) -> Reference:
        """The model of the behaviour, and k_rho."""
        adaptive = jnp.maximum(models["behaviour_error"].distance, SMALLEST_SCALE)
        scale = adaptive if self.divergence_scale is None else jnp.full_like(adaptive, self.divergence_scale)
        return Reference(models["behaviour"].frozen(), scale)

    def of_dataset(self, own: Reference, rows: Batch) -> jax.Array:
        """The formula's [n], or 1."""
        return jnp.ones_like(rows.reward) if self.offline_priority == "one" else self.of_new(own, rows)

    def of_new(self, own: Reference, row: Batch) -> jax.Array:
        """(|r|_2 / k_rho + 1)^alpha, of one row [] or of many [n]."""
        distance = jnp.sqrt(jnp.square(residuals(own.behaviour, row.obs, row.action)).sum(-1))
        return (distance / own.scale + 1) ** self.priority_exponent

    def learned(
        self, own: Reference, memory: Memory, batch: Batch, key: jax.Array
    ) -> tuple[PyTree, jax.Array | None, Metrics]:
        """Priorities stay as they are."""
        return own, None, {"divergence_scale": own.scale}
