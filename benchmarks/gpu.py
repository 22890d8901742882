"""Offline updates on a GPU: seconds for 1,000,000 updates, with 1 and more seeds.

    python -m benchmarks.gpu --methods td3_bc_ssar cql_ssar --precision default highest --out bench/gpu.json

`default` lets the GPU multiply in TF32 (JAX's default there: 10 bits of mantissa), `highest` in float32. What is
measured is one fused call of `--updates` updates, or as many as fit into `--seconds`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.subjects import Job, subjects
from segue.core.learn import learn
from segue.core.types import Spec

HOPPER = Spec(11, 3)
MILLION = 1_000_000
COLUMNS = ("method", "seeds", "precision", "compile s", "updates", "us/update", "updates/s", "1M updates", "vs 1 seed")


@dataclass
class Row:
    """A job, compiled."""

    name: str
    seeds: int
    precision: str
    job: Job
    program: Callable[..., Any]
    compile_seconds: float

    @classmethod
    def compile(cls, name: str, seeds: int, precision: str) -> Row:
        """Prepare and compile for 1,000,000 updates or any other number."""
        with jax.default_matmul_precision(precision):
            job = Job.prepare(subjects()[name], HOPPER, seeds)
            start = time.perf_counter()
            program = learn.lower(*job.arguments, jnp.int32(1)).compile()
        return cls(name, seeds, precision, job, program, time.perf_counter() - start)

    def seconds(self, rounds: int) -> float:
        """Of one call."""
        _, *arguments = self.job.arguments  # the static one is compiled in
        start = time.perf_counter()
        self.job.state, metrics = self.program(*arguments, jnp.int32(rounds))
        jax.block_until_ready((self.job.state, metrics))
        return time.perf_counter() - start

    def measure(self, updates: int, limit: float) -> dict[str, Any]:
        """The row's figures, from `updates` updates a seed, or from as many as take `limit` seconds."""
        job, interval = self.job, self.job.program.algorithm.policy_update_interval
        self.seconds(20)
        quick = self.seconds(100) / 100
        rounds = max(1, min(updates // interval, int(limit / quick)))
        each = self.seconds(rounds) / (rounds * interval)
        return {
            "method": self.name,
            "seeds": self.seeds,
            "precision": self.precision,
            "compile_seconds": self.compile_seconds,
            "measured_updates": rounds * interval,
            "seconds_per_update_of_all_seeds": each,
            "updates_per_second": self.seeds / each,
            "seconds_for_a_million": MILLION * each,
            "flop_per_update": sum(p.flop for p in job.products()),
        }


def main() -> None:
    """Compile, measure, print the table, write the JSON."""
    known = subjects()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/gpu.json"))
    parser.add_argument("--methods", nargs="+", default=list(known), choices=list(known), metavar="METHOD")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 8], help="seeds vmapped in one call")
    parser.add_argument("--precision", nargs="+", default=["default"], choices=["default", "highest"])
    parser.add_argument("--updates", type=int, default=20_000, help="in the measured call")
    parser.add_argument("--seconds", type=float, default=10.0, help="the measured call's limit")
    parser.add_argument("--compile-threads", type=int, default=1, help="programs compiled at once (each then slower)")
    options = parser.parse_args()

    combinations = list(product(options.methods, options.precision, options.seeds))
    with ThreadPoolExecutor(options.compile_threads) as pool:
        compiled = pool.map(lambda c: Row.compile(c[0], c[2], c[1]), combinations)
        rows = [row.measure(options.updates, options.seconds) for row in list(compiled)]
    one = {(r["method"], r["precision"]): r["seconds_per_update_of_all_seeds"] for r in rows if r["seeds"] == 1}
    print("  ".join(name.rjust(11) for name in COLUMNS))
    for row in rows:
        each, single = row["seconds_per_update_of_all_seeds"], one.get((row["method"], row["precision"]))
        row["time_over_one_seed"] = each / single if single else None
        cells = (
            row["method"],
            str(row["seeds"]),
            row["precision"],
            f"{row['compile_seconds']:.1f}",
            str(row["measured_updates"]),
            f"{each * 1e6:.1f}",
            f"{row['updates_per_second']:.0f}",
            f"{row['seconds_for_a_million']:.0f} s",
            f"{each / single:.2f}" if single else "-",
        )
        print("  ".join(cell.rjust(11) for cell in cells), flush=True)
    device = jax.devices()[0]
    machine = {"device": device.device_kind, "backend": jax.default_backend(), "jax": jax.__version__}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine, "compiled_at_once": options.compile_threads, "rows": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{machine['device']}, JAX {machine['jax']}; {options.out}")


if __name__ == "__main__":
    main()
