"""Constrained fine-tuning's constraint: divergence from a reference policy <= a threshold that grows.

A Lagrange multiplier lambda enforces it (../spec/ocr_cft.md 2.2 d, Eqs 36-39 and 49 of OCR-CFT, arXiv:2412.18855):

    tau(t)     = min(tau_end, tau_start + (tau_end - tau_start) t / ramp)        t: environment steps
    L_lambda   = lambda mean sg( w (tau - f) )    w = 0.7 where f >= tau, 0.3 elsewhere
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from segue.core.model import Adam, Model, Scalar
from segue.core.reference import Reference, ReferenceRule, chosen, starting_reference
from segue.core.types import Metrics, Models


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConstraintState:
    """What a constraint learns and remembers."""

    log_multiplier: Model
    reference: Reference
    env_step: jax.Array  # [] int32 environment steps taken
    due: jax.Array  # [] bool: no multiplier step since the latest environment step
    tightness: jax.Array  # [] factor of the threshold; 1 unless a guard tightened it

    @property
    def multiplier(self) -> jax.Array:
        """lambda [], above 0."""
        return jnp.exp(self.log_multiplier())


@dataclass(frozen=True)
class Constraint:
    """Settings of the constraint."""

    threshold_start: float  # tau at environment step 0 [ocr_cft.md 2.2 d, 2.3 d]
    threshold_end: float  # tau from the ramp's end on [ocr_cft.md 2.2 d, 2.3 d]
    threshold_ramp_steps: int = 100_000  # environment steps from the one to the other [ocr_cft.md 2.2 d]
    initial_multiplier: float = 1.0  # lambda at the start [ocr_cft.md 2.2 d; 2 on medium and large AntMaze]
    multiplier_learning_rate: float = 5e-5  # Adam on log lambda [ocr_cft.md D19]
    violation_weight: float = 0.7  # w of violations; 1 minus this of the others [ocr_cft.md D17]
    rule: ReferenceRule = ReferenceRule()

    def init(self, models: Models, actor: Model, key: jax.Array) -> ConstraintState:
        """A constraint towards the reference handed on or, without one, towards `actor` as it is."""
        scalar, adam = Scalar(math.log(self.initial_multiplier)), Adam(self.multiplier_learning_rate)
        return ConstraintState(
            log_multiplier=Model.take(models, "constraint_multiplier", scalar, adam, key),
            reference=starting_reference(models, actor),
            env_step=jnp.int32(0),
            due=jnp.bool_(True),
            tightness=jnp.ones(()),
        )

    def export(self, c: ConstraintState) -> Models:
        """Multiplier and reference."""
        return {
            "constraint_multiplier": c.log_multiplier,
            "reference": c.reference.policy,
            "reference_score": c.reference.score,
        }

    def begin_step(self, c: ConstraintState, actor: Model, env_step: jax.Array) -> ConstraintState:
        """As Algorithm.begin_step."""
        reference = self.rule.begin_step(c.reference, actor, env_step)
        return replace(c, reference=reference, env_step=env_step, due=jnp.ones_like(c.due))

    def scored(self, c: ConstraintState, actor: Model, score: jax.Array) -> ConstraintState:
        """As Algorithm.scored."""
        return replace(c, reference=self.rule.scored(c.reference, actor, score))

    def threshold(self, c: ConstraintState) -> jax.Array:
        """tau [] now."""
        progress = jnp.minimum(c.env_step.astype(c.tightness.dtype) / self.threshold_ramp_steps, 1.0)
        return c.tightness * (self.threshold_start + (self.threshold_end - self.threshold_start) * progress)

    def slack(self, c: ConstraintState, divergence: jax.Array) -> jax.Array:
        """mean w (tau - f) [] of `divergence` f [B] or [B, A]: below 0 where lambda has to grow. Eq. 49 as in D17."""
        u = self.threshold(c).astype(divergence.dtype) - divergence
        weight = jnp.where(u > 0, 1 - self.violation_weight, self.violation_weight)
        return jax.lax.stop_gradient((weight * u).mean())

    def update(self, c: ConstraintState, divergence: jax.Array) -> tuple[ConstraintState, Metrics]:
        """One multiplier step, the first time after an environment step; nothing on the updates that follow it."""
        slack = self.slack(c, divergence)
        stepped, _, _ = c.log_multiplier.descend(lambda log_multiplier: (jnp.exp(log_multiplier()) * slack, None))
        metrics = {
            "penalty": divergence.mean(),
            "multiplier": c.multiplier,
            "threshold": self.threshold(c),
        }
        if self.rule.reference == "best_evaluated":  # a snapshot has no score
            metrics["reference_score"] = c.reference.score
        log_multiplier = chosen(c.due, stepped, c.log_multiplier)
        return replace(c, log_multiplier=log_multiplier, due=jnp.zeros_like(c.due)), metrics

    def tightened(self, c: ConstraintState) -> ConstraintState:
        """After a fall: the multiplier doubled, the threshold halved [ours]."""
        params = c.log_multiplier.params + math.log(2.0)
        return replace(c, log_multiplier=replace(c.log_multiplier, params=params), tightness=c.tightness / 2)
