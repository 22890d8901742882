"""Updates per second of one method and size, and the matrix rate under the same conditions; one line of JSON.

`benchmarks.offline` runs this in a process of its own for every row of its table.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import jax

from benchmarks.clock import Clock, best_of
from benchmarks.matrix_rate import matrix_rate
from benchmarks.subjects import Job, subjects
from segue.core.types import Spec

SECONDS_PER_TRIAL = 0.7
TRIALS = 3


def updates_per_second(job: Job, clock: Clock, trial_seconds: float = SECONDS_PER_TRIAL) -> float:
    """Of all seeds together, in one fused call of about `trial_seconds`, sampling included."""
    job.train(1)  # compiles
    start = time.perf_counter()
    job.train(2)
    rounds = max(1, round(2 * trial_seconds / (time.perf_counter() - start)))
    updates = rounds * job.program.algorithm.policy_update_interval * job.keys.learn.shape[0]
    return updates / best_of(TRIALS, lambda: job.train(rounds), clock)


def measure(name: str, spec: Spec, seeds: int, clock: Clock) -> dict[str, Any]:
    """One row: the products are counted, then the update and its products are timed."""
    job = Job.prepare(subjects()[name], spec, seeds)
    products = job.products()
    rate = updates_per_second(job, clock)
    mix = matrix_rate(products, seeds, clock)
    return {
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "clock": clock,
        "updates_per_second": rate,
        "flop_per_update": mix.flop,
        "matrix_flop_per_second": mix.flop_per_second,
    }


def main() -> None:
    """Measure one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=subjects())
    parser.add_argument("--observation-dim", type=int, default=11)
    parser.add_argument("--action-dim", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="that this process was given; 1: count processor time")
    options = parser.parse_args()

    clock: Clock = "cpu" if options.threads == 1 and jax.default_backend() == "cpu" else "wall"
    row = measure(options.method, Spec(options.observation_dim, options.action_dim), options.seeds, clock)
    print(json.dumps(row | {"threads": options.threads}))


if __name__ == "__main__":
    main()
