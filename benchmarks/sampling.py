"""What drawing rows by priority costs beside drawing them alike, on a pool of 2,000,000 transitions of Hopper's size.

    python -m benchmarks.sampling --out bench/sampling.json

SAC at its paper's size, one update a step. Two samplers: one whose priorities stay (as BAQ's), one that gives every row
of each batch a new one (as balanced replay, without its network, which is that method's and not the sampling's).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.clock import Clock, best_of
from segue.core import sampling
from segue.core.learn import Program, initial_state, make_keys, several_updates
from segue.core.replay import Memory, Ring
from segue.core.sampling import Sampler
from segue.core.types import Batch, Metrics, Models, PyTree, Spec
from segue.methods.sac import SAC

OFFLINE, ONLINE = 2_000_000, 30_000
UPDATES, TRIALS = 200, 5
SPEC = Spec(11, 3)
TARGET = 0.1  # of an update's time


@dataclass(frozen=True)
class Lasting(Sampler):
    """Priorities that depend on the row alone."""

    def init(self, models: Models, memory: Memory, key: jax.Array) -> tuple[()]:
        """Nothing."""
        return ()

    def of_dataset(self, own: tuple[()], rows: Batch) -> jax.Array:
        """[n]."""
        return 1 + jnp.abs(rows.reward)

    def of_new(self, own: tuple[()], row: Batch) -> jax.Array:
        """[]."""
        return 1 + jnp.abs(row.reward)


@dataclass(frozen=True)
class Changing(Lasting):
    """A new priority for every row of a batch."""

    stratified = True

    def learned(
        self, own: tuple[()], memory: Memory, batch: Batch, key: jax.Array
    ) -> tuple[PyTree, jax.Array | None, Metrics]:
        """[B] from the rows."""
        return own, 1 + jnp.square(batch.reward), {}


def rows(count: int, key: jax.Array) -> Batch:
    """Random transitions."""
    obs, following, reward = (jax.random.normal(k, (count, SPEC[0])) for k in jax.random.split(key, 3))
    action = jax.random.uniform(key, (count, SPEC[1]), minval=-1)
    return Batch(obs, action, reward[:, 0], following, jnp.zeros(count), {})


def seconds_per_update(sampler: Sampler | None, memory: Memory, clock: Clock) -> float:
    """In one fused call of UPDATES."""
    program = Program(SAC(), "joined", SPEC, sampler=sampler)
    keys = make_keys((0,), 0)
    state = jax.tree.map(lambda x: x[0], initial_state(program.algorithm, {}, SPEC, keys))
    priorities = None
    if sampler is not None:
        priorities = jax.jit(partial(sampling.begin, sampler), static_argnums=2)({}, memory, 0, keys.learn[0])

    @partial(jax.jit, donate_argnums=(0, 1))
    def call(state: Any, priorities: Any, memory: Memory, start: jax.Array) -> Any:
        held = memory._replace(sampling=priorities)
        state, held, _ = several_updates(program, (True,) * UPDATES, state, held, keys.learn[0], start)
        return state, held.sampling

    carried = [call(state, priorities, memory, jnp.int32(0))]

    def again() -> None:
        carried[0] = jax.block_until_ready(call(*carried[0], memory, jnp.int32(0)))

    again()
    run: Callable[[], object] = again
    return best_of(TRIALS, run, clock) / UPDATES


def main() -> None:
    """Three rows and two ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/sampling.json"))
    options = parser.parse_args()
    clock: Clock = "wall" if jax.default_backend() != "cpu" else "cpu"
    ring = Ring(rows(ONLINE, jax.random.key(1)), jnp.int32(ONLINE))
    memory = Memory(rows(OFFLINE, jax.random.key(0)), {}, ring)
    alike = seconds_per_update(None, memory, clock)
    found: dict[str, Any] = {"transitions": OFFLINE, "clock": clock, "backend": jax.default_backend(), "alike_s": alike}
    print(f"rows alike: {1e3 * alike:.2f} ms an update ({clock} time)")
    for name, sampler in (("lasting", Lasting()), ("changing", Changing())):
        seconds = seconds_per_update(sampler, memory, clock)
        found |= {f"{name}_s": seconds, f"{name}_ratio": seconds / alike}
        verdict = "within" if seconds / alike <= 1 + TARGET else "ABOVE"
        print(f"{name} priorities: {1e3 * seconds:.2f} ms, ratio {seconds / alike:.3f}, {verdict} {1 + TARGET}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
