"""Copy what is worth keeping of the sweeps, and print the table of the README.

    python results/value-family/collect.py runs/value-family runs/value-family-*
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
DATASETS = ("hopper-medium", "hopper-medium-replay", "walker2d-medium")


def main() -> None:
    """One line a method: score ± standard error, wall time and updates a second on each dataset."""
    print("| method | " + " | ".join(DATASETS) + " |\n|---|" + "---|" * len(DATASETS))
    for sweep in map(Path, sys.argv[1:]):
        for method in sorted(path for path in sweep.iterdir() if path.is_dir()):
            cells = []
            for dataset in DATASETS:
                run = method / dataset / "seed-0"
                if not (run / "summary.json").exists():
                    cells.append("-")
                    continue
                kept = HERE / sweep.name / method.name / dataset
                kept.mkdir(parents=True, exist_ok=True)
                for name in ("config.json", "summary.json", "metrics.jsonl"):
                    shutil.copyfile(run / name, kept / name)
                phases = json.loads((run / "summary.json").read_text())["phases"]
                final = phases[-1]["final"][0]
                seconds = sum(phase["wall_time_s"] for phase in phases)
                score = f"{final['normalised_mean']:.1f} ± {final['normalised_standard_error']:.1f}"
                steps = sum(phase["steps"] for phase in phases)
                cells.append(f"{score}; {steps:,} in {seconds:.0f} s, {steps / seconds:.0f}/s")
            print(f"| {method.name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
