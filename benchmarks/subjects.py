"""What is measured: the algorithm of every phase of every method, at the paper's sizes, on synthetic rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.products import Product, products_of
from segue.core.learn import Keys, Program, initial_state, learn, make_keys
from segue.core.phases import Phase
from segue.core.replay import Memory
from segue.core.types import Batch, Models, PyTree, Spec
from segue.recipes import METHODS
from segue.replay_start import columns_of

ROWS = 100_000


@dataclass(frozen=True)
class Subject:
    """One phase of a method, and the phases whose models it needs."""

    name: str  # the method's, and where the phase only prepares it also the phase's
    method: str
    phase: Phase
    before: tuple[Phase, ...] = ()


def subjects() -> dict[str, Subject]:
    """By name. A method's last offline phase bears the method's name; one without any is measured as it learns online.

    Earlier phases are rows of their own, each algorithm once.
    """
    found: dict[str, Subject] = {}
    for method, recipe in METHODS.items():
        made = recipe()
        phases = made.offline_phases(1) or (made.adapted("tanh_gaussian").online_phase(1),)
        for i, phase in enumerate(phases):
            known = [subject.phase.algorithm for subject in found.values()]
            last = i == len(phases) - 1
            if last or phase.algorithm not in known:
                name = method if last else f"{method}: {phase.name}"
                found[name] = Subject(name, method, phase, phases[:i])
    return found


@dataclass
class Job:
    """A subject with everything that its compiled call takes, for some seeds."""

    program: Program
    state: PyTree  # donated to each call
    columns: dict[str, jax.Array]
    keys: Keys
    offline: Batch

    @classmethod
    def prepare(cls, subject: Subject, spec: Spec, seeds: int) -> Job:
        """Fresh networks, random rows (the loop itself looks up which action followed)."""
        keys = make_keys(tuple(range(seeds)), 0)
        models: Models = {}
        for phase in subject.before:
            models = models | phase.algorithm.export(initial_state(phase.algorithm, models, spec, keys))
        algorithm = subject.phase.algorithm
        return cls(
            Program(algorithm, "offline", spec),
            initial_state(algorithm, models, spec, keys),
            {name: synthetic_column(name, seeds) for name in columns_of(subject.phase) if name != "next_action"},
            keys,
            synthetic_rows(spec),
        )

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Those of `learn` but for the number of rounds."""
        return self.program, self.state, self.columns, self.keys.learn, self.offline, jnp.int32(0)

    def products(self) -> list[Product]:
        """Those of one update of one seed."""
        state, columns = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (self.state, self.columns)
        )
        return products_of(self.program, state, Memory(self.offline, columns))

    def train(self, rounds: int) -> None:
        """`rounds` rounds of `policy_update_interval` updates of every seed in one fused call; returns when done."""
        self.state, metrics = learn(*self.arguments, jnp.int32(rounds))
        jax.block_until_ready((self.state, metrics))


def synthetic_rows(spec: Spec) -> Batch:
    """100,000 random transitions on the device."""
    keys = jax.random.split(jax.random.key(0), 4)
    return Batch(
        obs=jax.random.normal(keys[0], (ROWS, spec.observation_dim)),
        action=jax.random.uniform(keys[1], (ROWS, spec.action_dim), minval=-1.0),
        reward=jax.random.normal(keys[2], (ROWS,)),
        next_obs=jax.random.normal(keys[3], (ROWS, spec.observation_dim)),
        terminal=jnp.zeros(ROWS),
        extras={},
    )


def synthetic_column(name: str, seeds: int) -> jax.Array:
    """An extra column [seeds, ROWS]: flags for "trust", of which a third is set, else random numbers."""
    if name == "trust":
        column = (jnp.arange(ROWS) % 3 == 0).astype(jnp.float32)
    else:
        column = jax.random.normal(jax.random.key(1), (ROWS,))
    return jnp.tile(column, (seeds, 1))
