"""Several agents of one algorithm, learned side by side on the same rows and joined into one at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Model
from segue.core.types import Batch, Metrics, Models, PyTree, Spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    members: PyTree  # the member's state, leaves [count, ...]
    updates: jax.Array  # [] int32


@dataclass(frozen=True)
class Independent(Algorithm[State]):
    """`count` agents that differ in their start, their batches and their noise, and know nothing of each other.

    Its batch is theirs in a row. `joins` says of each role how the members' models (leaves [count, ...]) become the one
    that the next phase goes on with; "actor" must be among them, for the ensemble acts by it.
    """

    member: Algorithm[Any]
    count: int
    joins: tuple[tuple[str, Callable[[Model], Model]], ...]

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """Rows of all members."""
        return self.count * self.member.batch_size

    @property
    def discount(self) -> float:  # type: ignore[override]
        """The member's."""
        return self.member.discount

    @property
    def policy_update_interval(self) -> int:  # type: ignore[override]
        """The member's."""
        return self.member.policy_update_interval

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """The member's."""
        return self.member.columns

    @property
    def gives(self) -> tuple[str, ...]:  # type: ignore[override]
        """What is joined."""
        return (*(role for role, _ in self.joins), "updates")

    @property
    def policy_kind(self) -> str | None:
        """The member's."""
        return self.member.policy_kind

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """Fresh members: earlier phases' models, being of one agent, would make them all the same."""
        keys = jax.random.split(key, self.count)
        return State(jax.vmap(lambda own: self.member.init({}, spec, own))(keys), models.get("updates", jnp.int32(0)))

    def draw(self, key: jax.Array, spec: Spec) -> Any:
        """The members' draws, leaves [count, ...]."""
        return jax.vmap(lambda own: self.member.draw(own, spec))(jax.random.split(key, self.count))

    def update(self, s: State, batch: Batch, draws: Any, policy_step: bool) -> tuple[State, Metrics]:
        """One update of every member on its part of the batch; metrics are their means."""
        parts = jax.tree.map(lambda x: x.reshape(self.count, -1, *x.shape[1:]), batch)
        update = jax.vmap(lambda own, part, drawn: self.member.update(own, part, drawn, policy_step))
        members, metrics = update(s.members, parts, draws)
        return State(members, s.updates + 1), jax.tree.map(lambda x: x.mean(0), metrics)

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """As a member would with the joined policy."""
        first = jax.tree.map(lambda x: x[0], s.members)
        return self.member.act(replace(first, actor=self.export(s)["actor"]), obs, key, explore)

    def export(self, s: State) -> Models:
        """The joined models and the count of updates."""
        if s.updates.ndim:  # of several seeds at once, as a session asks for them
            by_seed: Models = jax.vmap(self.export)(s)
            return by_seed
        models = self.member.export(s.members)
        return {role: join(models[role]) for role, join in self.joins} | {"updates": s.updates}

    def diagnose(self, s: State, batch: Batch) -> Metrics:
        """Means of the members' diagnostics."""
        metrics = jax.vmap(lambda own: self.member.diagnose(own, batch))(s.members)
        return {name: value.mean(0) for name, value in metrics.items()}
