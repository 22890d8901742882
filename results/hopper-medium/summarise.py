"""Copy the runs' small files beside this one and print the table: python results/hopper-medium/summarise.py RUNS."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(runs: Path) -> None:
    """One line a run: behaviour, offline, hand-over, lowest score of the online phase's first tenth, end."""
    print(f"{'run':<28}{'offline':>14}{'first tenth, lowest':>22}{'online end':>14}{'online mean':>13}")
    for folder in sorted(path for path in runs.iterdir() if (path / "summary.json").is_file()):
        kept = HERE / "runs" / folder.name
        kept.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "summary.json", "metrics.jsonl"):
            shutil.copyfile(folder / name, kept / name)
        summary = json.loads((folder / "summary.json").read_text())
        phases = {phase["name"]: phase for phase in summary["phases"]}

        def cell(entry: dict) -> str:
            return f"{entry['normalised_mean']:.1f} ± {entry['normalised_standard_error']:.1f}"

        line = f"{folder.name:<28}{cell(phases['offline']['final'][0]):>14}"
        if "online" in phases:
            online = phases["online"]
            later = [e["normalised_mean"] for e in online["evaluations"] if e["step"] > 5_000]
            lowest = online["handover"][0]["normalised_mean"] + online["drop"][0]["drop_normalised"]
            line += f"{lowest:>22.1f}{cell(online['final'][0]):>14}{sum(later) / len(later):>13.1f}"
        print(line)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
