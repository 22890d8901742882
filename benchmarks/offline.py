"""Offline updates per second of every method, beside what the machine's matrix products allow and beside d3rlpy.

    python -m benchmarks.offline --out bench/offline.json
    python -m benchmarks.offline --methods cql cql_ssar --sizes Hopper --threads 2

Every row is measured in a process of its own (threads and XLA's flags are fixed once a process), one after another;
d3rlpy's algorithms in one process a size. On one thread times are processor time, so that other work on the machine
disturbs little; with more they are wall time. Each side's best count of threads is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.peer import Peer, peer_of
from benchmarks.subjects import subjects
from segue.core.types import Spec

ROOT = Path(__file__).parent.parent
PEER_PYTHON = ROOT / ".venv" / "d3rlpy" / "bin" / "python"
SIZES = {"Hopper": Spec(11, 3), "HalfCheetah": Spec(17, 6)}
TARGET_SHARE, TARGET_RATIO = 0.7, 2.5  # what the project asks for: of SSAR on CQL; of TD3+BC
COLUMNS = (
    "method", "size", "seeds", "threads", "updates/s", "GFLOP/update", "matrix GFLOP/s", "share", "d3rlpy/s", "ratio",
)


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


def size_arguments(spec: Spec) -> list[str]:
    """A size as the measuring programs take it."""
    return ["--observation-dim", str(spec.observation_dim), "--action-dim", str(spec.action_dim)]


def measure_peers(peers: dict[str, Peer], spec: Spec, thread_counts: list[int]) -> dict[str, dict[str, Any]]:
    """Per method the rate of what stands beside it at its best count of threads; {} where d3rlpy is not installed."""
    if not (peers and thread_counts and PEER_PYTHON.exists()):
        return {}
    jobs = [[peer.algorithm, peer.settings] for peer in peers.values()]
    different = [job for i, job in enumerate(jobs) if job not in jobs[:i]]
    counts = ["--threads", *map(str, thread_counts)]
    command = [str(PEER_PYTHON), "benchmarks/d3rlpy_updates.py", json.dumps(different), *size_arguments(spec), *counts]
    result = run(command, max(thread_counts))
    measured = {}
    for name, job in zip(peers, jobs, strict=True):
        rates: dict[str, float] = result["updates_per_second"][different.index(job)]
        threads = max(rates, key=rates.__getitem__)
        measured[name] = {
            "algorithm": job[0],
            "settings": job[1],
            "threads": int(threads),
            "updates_per_second": rates[threads],
            "versions": result["versions"],
            "differences": peers[name].differences,
        }
    return measured


def measure_segue(name: str, spec: Spec, seeds: int, thread_counts: list[int]) -> dict[str, Any]:
    """Segue's updates per second at its best thread count, with the matrix rate under the same conditions."""
    results = []
    for threads in thread_counts:
        command = [sys.executable, "-m", "benchmarks.updates", name, *size_arguments(spec)]
        results.append(run([*command, "--seeds", str(seeds), "--threads", str(threads)], threads))
    best: dict[str, Any] = max(results, key=lambda result: result["updates_per_second"])
    return best | {"share": best["updates_per_second"] * best["flop_per_update"] / best["matrix_flop_per_second"]}


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def cells_of(row: dict[str, Any]) -> list[str]:
    """One measured row as text."""
    peer = row["d3rlpy"]
    digits = 0 if row["updates_per_second"] >= 100 else 1
    return [
        row["method"],
        row["size"],
        str(row["seeds"]),
        str(row["threads"]),
        f"{row['updates_per_second']:.{digits}f}",
        f"{row['flop_per_update'] / 1e9:.3f}",
        f"{row['matrix_flop_per_second'] / 1e9:.0f}",
        f"{row['share']:.2f}",
        f"{peer['updates_per_second']:.1f}" if peer else "-",
        f"{row['ratio']:.2f}" if peer else "-",
    ]


def main() -> None:
    """Measure, print the table, write the JSON."""
    known = subjects()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/offline.json"))
    parser.add_argument("--methods", nargs="+", default=list(known), choices=list(known), metavar="METHOD", help="rows")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="seeds vmapped in one process")
    parser.add_argument("--threads", type=int, nargs="+", default=[len(cores())], help="counts to try for Segue")
    parser.add_argument(
        "--d3rlpy-threads", type=int, nargs="*", default=sorted({1, len(cores())}), help="counts to try; none: leave it"
    )
    options = parser.parse_args()

    start = time.perf_counter()
    machine = {"processor": processor(), "cores": len(cores()), "load_at_start": os.getloadavg()[0]}
    widths = [max(map(len, known)), *(max(len(name), 11) for name in COLUMNS[1:])]

    def show(cells: list[str]) -> None:
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)), flush=True)

    rows: list[dict[str, Any]] = []
    show(list(COLUMNS))
    for size in options.sizes:
        spec = SIZES[size]
        peers = {name: peer for name in options.methods if (peer := peer_of(known[name], spec))}
        measured = measure_peers(peers, spec, options.d3rlpy_threads)
        for name, seeds in product(options.methods, options.seeds):
            beside = measured.get(name)
            row = {"method": name, "size": size, "seeds": seeds, "d3rlpy": beside}
            row |= measure_segue(name, spec, seeds, options.threads)
            if beside:
                row["ratio"] = row["updates_per_second"] / beside["updates_per_second"]
            rows.append(row)
            show(cells_of(row))
    seconds = time.perf_counter() - start
    result = {"machine": machine, "seconds": seconds, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nshare: counted FLOP/s over the matrix rate (cql_ssar is to reach {TARGET_SHARE})")
    print(f"ratio: updates/s over d3rlpy's, sampling included in both (td3_bc is to reach {TARGET_RATIO})")
    differences = {row["method"]: row["d3rlpy"]["differences"] for row in rows if row["d3rlpy"]}
    for name, texts in differences.items():
        if texts:
            print(f"  {name}: {'; '.join(texts)}")
    print(f"{options.out}, after {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
