"""Peak memory of a run on 1,000,000 Hopper transitions, one seed: offline training, then fine-tuning online.

    python -m benchmarks.memory --out bench/memory.json

The dataset is generated first (into Segue's cache), so that the run measured is the second one that a user makes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

DATASET, ENVIRONMENT, TRANSITIONS = "segue/hopper-medium", "Hopper-v5", 1_000_000
TARGET_BYTES = 2e9
RUSAGE_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of one ru_maxrss


def peak_bytes(command: list[str]) -> int:
    """The largest resident size that `command` reached. Exits with its output if it fails."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{output.read().decode()}")
    return usage.ru_maxrss * RUSAGE_UNIT


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/memory.json"))
    parser.add_argument("--method", default="td3_bc_ssar")
    parser.add_argument("--steps", type=int, default=2_000, help="updates offline")
    parser.add_argument("--online-steps", type=int, default=7_000, help="past a warm-up of 5,000")
    options = parser.parse_args()

    segue = [str(Path(sys.executable).parent / "segue")]
    data = ["--transitions", str(TRANSITIONS)]
    subprocess.run([*segue, "data", "info", DATASET, *data], stdout=subprocess.DEVNULL, check=True)
    with tempfile.TemporaryDirectory() as folder:
        lengths = ["--steps", str(options.steps), "--online-steps", str(options.online_steps)]
        command = [*segue, "run", options.method, "--dataset", DATASET, "--env", ENVIRONMENT, "--seeds", "0", *lengths]
        peak = peak_bytes([*command, "--out", str(Path(folder) / "run")])
    result = {"method": options.method, "dataset": DATASET, "transitions": TRANSITIONS, "peak_bytes": peak}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"peak memory of {options.method} on {TRANSITIONS:,} transitions of {DATASET}, offline and online: "
          f"{peak / 1e9:.2f} GB (at most {TARGET_BYTES / 1e9:.0f} wanted)")
    print(options.out)


if __name__ == "__main__":
    main()
