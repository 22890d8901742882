"""Offline updates per second, beside what the machine's matrix products allow and beside d3rlpy.

    python -m benchmarks.offline --out bench/offline.json

Every figure is measured in a process of its own (threads and XLA's flags are fixed once a process), one after
another. With one thread the process is pinned to one core and times are processor time, so that other work on the
machine disturbs little; with more they are wall time. Of several thread counts each side's best is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PEER_PYTHON = ROOT / ".venv" / "d3rlpy" / "bin" / "python"
METHODS = ("td3_bc", "td3_bc_ssar")
TARGET_SHARE, TARGET_RATIO = 0.6, 2.5  # what the project asks for: SSAR's share of the rate, TD3+BC over d3rlpy


@dataclass(frozen=True)
class Size:
    """A task's dimensions."""

    name: str
    observation_dim: int
    action_dim: int

    @property
    def arguments(self) -> list[str]:
        """As the measuring programs take it."""
        return ["--observation-dim", str(self.observation_dim), "--action-dim", str(self.action_dim)]


COLUMNS = (
    "method", "size", "seeds", "threads", "updates/s", "GFLOP/update", "matrix GFLOP/s", "share", "d3rlpy/s", "ratio",
)
WIDTHS = [max(len(name), 11) for name in COLUMNS]
SIZES = (Size("Hopper", 11, 3), Size("HalfCheetah", 17, 6))


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def run(command: list[str], threads: int) -> dict[str, Any]:
    """The JSON that `command` prints on its last line, run on the first `threads` cores."""
    environment = dict(os.environ)
    if threads == 1:
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    allowed = cores()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, allowed[:threads])  # a child inherits it
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    finally:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, allowed)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure_peer(size: Size, thread_counts: list[int]) -> dict[str, Any] | None:
    """d3rlpy's TD3+BC at its best thread count, or None where its environment was not made."""
    if not PEER_PYTHON.exists():
        return None
    best: dict[str, Any] | None = None
    for threads in thread_counts:
        command = [str(PEER_PYTHON), "benchmarks/d3rlpy_td3_bc.py", *size.arguments, "--threads", str(threads)]
        result = run(command, threads)
        clock = "cpu" if threads == 1 else "wall"
        result["updates_per_second"] = {name: rate[clock] for name, rate in result["updates_per_second"].items()}
        if best is None or result["updates_per_second"]["fit"] > best["updates_per_second"]["fit"]:
            best = result
    return best


def measure_segue(method: str, size: Size, seeds: int, thread_counts: list[int]) -> dict[str, Any]:
    """Segue's updates per second at its best thread count, with the matrix rate under the same conditions."""
    results = []
    for threads in thread_counts:
        command = [sys.executable, "-m", "benchmarks.updates", method, *size.arguments]
        results.append(run([*command, "--seeds", str(seeds), "--threads", str(threads)], threads))
    best: dict[str, Any] = max(results, key=lambda result: result["updates_per_second"])
    return best


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table_line(cells: list[str]) -> str:
    """Right-aligned columns."""
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, WIDTHS, strict=True))


def cells_of(row: dict[str, Any]) -> list[str]:
    """One measured row as text."""
    peer = row["d3rlpy"]
    return [
        row["method"],
        row["size"],
        str(row["seeds"]),
        str(row["threads"]),
        f"{row['updates_per_second']:.0f}",
        f"{row['flop_per_update'] / 1e9:.3f}",
        f"{row['matrix_flop_per_second'] / 1e9:.0f}",
        f"{row['share']:.2f}",
        f"{peer['updates_per_second']['fit']:.0f}" if peer else "-",
        f"{row['ratio']:.2f}" if peer else "-",
    ]


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/offline.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="seeds vmapped in one process")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(cores())}), help="counts to try")
    options = parser.parse_args()

    machine = {"processor": processor(), "cores": len(cores()), "load_at_start": os.getloadavg()[0]}
    rows = []
    print(table_line(list(COLUMNS)))
    for size in SIZES:
        peer = measure_peer(size, options.threads)
        for method, seeds in product(METHODS, options.seeds):
            row = {"method": method, "size": size.name, "seeds": seeds, "d3rlpy": peer}
            row |= measure_segue(method, size, seeds, options.threads)
            row["share"] = row["updates_per_second"] * row["flop_per_update"] / row["matrix_flop_per_second"]
            row["ratio"] = row["updates_per_second"] / peer["updates_per_second"]["fit"] if peer else None
            rows.append(row)
            print(table_line(cells_of(row)), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    print(f"\nshare: counted FLOP/s over the matrix rate (td3_bc_ssar is to reach {TARGET_SHARE}, better 0.8)")
    print(f"ratio: updates/s over d3rlpy's TD3+BC, sampling included in both (td3_bc is to reach {TARGET_RATIO})")
    print(options.out)


if __name__ == "__main__":
    main()
