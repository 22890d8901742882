"""The reference policy of a constraint: the best that was evaluated, or a snapshot now and then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from segue.core.model import Model
from segue.core.types import Models, PyTree

NO_SCORE = -1e30  # below every return, but a number: a state that holds an infinity counts as diverged


class Reference(NamedTuple):
    """A frozen copy of a policy, and the mean return that it was evaluated with."""

    policy: Model
    score: jax.Array  # [] NO_SCORE before its first evaluation


def starting_reference(models: Models, actor: Model) -> Reference:
    """The one that an earlier phase handed on, if it is of the actor's form; else the actor as it begins."""
    if "reference" in models and models["reference"].net.kind == actor.net.kind:
        return Reference(models["reference"], models["reference_score"])
    return Reference(actor.frozen(), jnp.float32(NO_SCORE))


@dataclass(frozen=True)
class ReferenceRule:
    """When the reference is replaced by the policy being trained."""

    reference: Literal["best_evaluated", "fixed_interval"] = "best_evaluated"  # which pi_ref [ocr_cft.md 1.7]
    reference_interval: int = 1_000  # environment steps between "fixed_interval"'s snapshots [ocr_cft.md 2.6]

    def scored(self, reference: Reference, actor: Model, score: jax.Array) -> Reference:
        """After an evaluation of `actor`: it becomes the reference if it beat every earlier one, strictly."""
        if self.reference == "fixed_interval":
            return reference
        better = score > reference.score
        policy = chosen(better, actor.frozen(), reference.policy)
        return Reference(policy, jnp.where(better, score, reference.score))

    def begin_step(self, reference: Reference, actor: Model, env_step: jax.Array) -> Reference:
        """Before the updates of `env_step` [] (from 1): a snapshot if those of a multiple of the interval are done."""
        if self.reference == "best_evaluated":
            return reference
        due = ((env_step - 1) % self.reference_interval == 0) & (env_step > 1)
        return Reference(chosen(due, actor.frozen(), reference.policy), reference.score)


def chosen(condition: jax.Array, a: PyTree, b: PyTree) -> PyTree:
    """`a` where `condition` [] holds, else `b`, trees of one structure but for static parts, which are b's."""
    leaves, structure = jax.tree.flatten(b)
    pairs = zip(jax.tree.leaves(a), leaves, strict=True)
    return jax.tree.unflatten(structure, [jnp.where(condition, x, y) for x, y in pairs])
