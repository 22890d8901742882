"""Copy what is worth keeping of the runs, write table.csv, draw curves.png, and print the tables of the README.

    python results/fine-tuning/collect.py runs/tuning
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # the backend comes first

HERE = Path(__file__).parent
FIELDS = ("dataset", "from", "label", "method", "seed", "handover", "end", "end_standard_error", "mean", "lowest",
          "points", "seconds", "command")  # fmt: skip
ORDER = {"td3_bc": 0, "iql": 1, "cql": 2}
NAMES = {"td3_bc": "TD3+BC", "iql": "IQL", "cql": "fast CQL", "itself": "its own offline phase"}


def rows_of(run: Path, dataset: str, label: str) -> list[dict[str, Any]]:
    """One for each seed of a finished run."""
    config, summary = (json.loads((run / f"{name}.json").read_text()) for name in ("config", "summary"))
    parent = Path(config["parent"]).name if config["parent"] else "itself"
    online = summary["phases"][-1]
    seconds = sum(phase["wall_time_s"] for phase in summary["phases"] if phase["name"] != "offline")
    found = []
    for final in online["final"]:
        seed = final["seed"]
        points = [(e["step"], e["normalised_mean"]) for e in online["evaluations"] if e["seed"] == seed]
        later = [score for step, score in points if step > 0]
        found.append({
            "dataset": dataset, "from": parent, "label": label, "method": config["online"]["method"], "seed": seed,
            "handover": points[0][1], "end": final["normalised_mean"],
            "end_standard_error": final["normalised_standard_error"], "mean": sum(later) / len(later),
            "lowest": min(later), "points": len(later), "seconds": seconds,
            "command": config["command"], "curve": points,
        })  # fmt: skip
    return found


def keep(run: Path, dataset: str, root: Path) -> None:
    """Its settings, scores and metrics, without the training episodes and without this machine's paths."""
    kept = HERE / "runs" / dataset / run.relative_to(root / dataset)
    kept.mkdir(parents=True, exist_ok=True)
    here = f"{root.resolve()}/"
    for name in ("config.json", "summary.json"):
        (kept / name).write_text((run / name).read_text().replace(here, ""))
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [x for x in lines if x["kind"] in ("evaluation", "critic_check")]
    wanted = scores + [x for x in lines if x["kind"] == "train" and x["step"] % 5000 == 0]
    for line in wanted:
        line.pop("returns", None)
    (kept / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in wanted))


def finished(run: Path) -> bool:
    """Its last phase has ended."""
    if not (run / "summary.json").is_file():
        return False
    phases = json.loads((run / "summary.json").read_text())["phases"]
    return bool(phases) and phases[-1]["kind"] == "online" and bool(phases[-1].get("final"))


def both(rows: list[dict[str, Any]], name: str) -> str:
    """The seeds' values."""
    return ", ".join(f"{row[name]:.0f}" for row in rows)


def main() -> None:
    """A table a dataset, and the picture."""
    root = Path(sys.argv[1]).resolve()
    table: list[dict[str, Any]] = []
    datasets = sorted(path.name for path in root.iterdir() if path.is_dir())
    for dataset in datasets:
        for offline in sorted((root / dataset / "offline").iterdir()):
            if (offline / "summary.json").is_file():
                keep(offline, dataset, root)
                final = json.loads((offline / "summary.json").read_text())["phases"][-1]
                scores = [f"{x['normalised_mean']:.1f} ± {x['normalised_standard_error']:.1f}" for x in final["final"]]
                print(f"{dataset} {offline.name}: {final['steps']} updates, {', '.join(scores)}")
        for label in sorted((root / dataset).iterdir()):
            for run in (label, *sorted(label.glob("seed-?"))):  # both seeds in one run, or each in its own
                if label.name != "offline" and finished(run):
                    keep(run, dataset, root)
                    table += rows_of(run, dataset, label.name)
    for row in table:
        row["command"] = row["command"].replace(f"{root}/", "")
    with (HERE / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    size = (18, 4.2 * len(datasets))
    figure, axes = plt.subplots(len(datasets), 4, figsize=size, sharey="row", squeeze=False, layout="constrained")
    for i, dataset in enumerate(datasets):
        print(f"\n### {dataset}\n\n| from | method | hand-over | end | mean | lowest | minutes |")
        print("|---|---|---|---|---|---|---|")
        labels = sorted({(ORDER.get(r["from"], 3), r["from"], r["label"]) for r in table if r["dataset"] == dataset})
        for place, parent, label in labels:
            rows = [r for r in table if (r["dataset"], r["label"]) == (dataset, label)]
            errors = max(r["end_standard_error"] for r in rows)
            cells = [NAMES.get(parent, parent), label, both(rows, "handover"), f"{both(rows, 'end')} (±{errors:.1f})",
                     both(rows, "mean"), both(rows, "lowest"), f"{rows[0]['seconds'] / 60:.0f}"]  # fmt: skip
            print(f"| {' | '.join(cells)} |")
            axis = axes[i][place]
            curve = [sum(r["curve"][j][1] for r in rows) / len(rows) for j in range(len(rows[0]["curve"]))]
            axis.plot([point[0] for point in rows[0]["curve"]], curve, label=label)
            axis.set(title=f"{dataset}, from {NAMES.get(parent, parent)}", xlabel="environment steps")
            axis.legend(fontsize=7)
            axis.grid(alpha=0.3)
    for axis in axes.flat:
        axis.set_visible(bool(axis.lines))
    figure.supylabel("normalised score, mean of the seeds")
    figure.savefig(HERE / "curves.png", dpi=80)


if __name__ == "__main__":
    main()
