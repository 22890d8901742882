"""Copy what is worth keeping of the runs, write table.csv, draw curves.png, and print the tables of the README.

    python results/fine-tuning/collect.py runs/tuning

What an earlier call kept under runs/ counts, too.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # the backend comes first

HERE = Path(__file__).parent
KEPT = HERE / "runs"
FIELDS = ("dataset", "from", "label", "method", "seed", "handover", "end", "end_standard_error", "mean", "lowest",
          "points", "seconds", "command")  # fmt: skip
ORDER = {"td3_bc": 0, "iql": 1, "cql": 2}
NAMES = {"td3_bc": "TD3+BC", "iql": "IQL", "cql": "fast CQL", "itself": "its own offline phase"}


def read(run: Path, name: str) -> dict[str, Any]:
    """One of a run's files."""
    found: dict[str, Any] = json.loads((run / f"{name}.json").read_text())
    return found


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Its metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def rows_of(run: Path, dataset: str) -> list[dict[str, Any]]:
    """One for each seed of a finished run; of one that diverged, with what came before and without an end."""
    config = read(run, "config")
    finals: dict[int, dict[str, Any]] = {}
    if (run / "summary.json").is_file():
        phases = read(run, "summary")["phases"]
        evaluations = phases[-1]["evaluations"]
        finals = {final["seed"]: final for final in phases[-1]["final"]}
        seconds = sum(phase["wall_time_s"] for phase in phases if phase["name"] != "offline")
    else:
        online = [line for line in lines_of(run) if line["phase"] == "online"]
        evaluations = [line for line in online if line["kind"] == "evaluation"]
        seconds = max(line["wall_time_s"] for line in online if line["kind"] == "train")
    found = []
    for seed in config["seeds"]:
        points = [(e["step"], e["normalised_mean"]) for e in evaluations if e["seed"] == seed]
        later = [score for step, score in points if step > 0]
        final = finals.get(seed, {})
        found.append({
            "dataset": dataset, "from": Path(config["parent"]).name if config["parent"] else "itself",
            "label": run.name, "method": config["online"]["method"], "seed": seed,
            "handover": points[0][1], "end": final.get("normalised_mean"),
            "end_standard_error": final.get("normalised_standard_error"), "mean": sum(later) / len(later),
            "lowest": min(later), "points": len(later), "seconds": seconds,
            "command": config["command"], "curve": points,
        })  # fmt: skip
    return found


def end_of(rows: list[dict[str, Any]]) -> str:
    """The seeds' scores and the larger error, or at which step it diverged."""
    if rows[0]["end"] is None:
        return f"diverged after {rows[0]['curve'][-1][0]:,}"
    return f"{both(rows, 'end')} (±{max(row['end_standard_error'] for row in rows):.1f})"


def keep(run: Path, root: Path) -> None:
    """Its settings, scores and metrics, without the training episodes and without this machine's paths.

    An offline policy itself, too: trained again on another kind of processor, it would be another one.
    """
    kept = KEPT / run.relative_to(root)
    kept.mkdir(parents=True, exist_ok=True)
    if run.parent.name == "offline":
        shutil.copytree(run / "models", kept / "models", dirs_exist_ok=True)
    for name in ("config.json", "summary.json", "diverged.txt"):
        (kept / name).unlink(missing_ok=True)  # of an earlier run
        if (run / name).is_file():
            text = (run / name).read_text()
            (kept / name).write_text(text.replace(f"{root}/", "").replace(f"{KEPT.resolve()}/", ""))
    lines = lines_of(run)
    scores = [x for x in lines if x["kind"] in ("evaluation", "critic_check")]
    wanted = scores + [x for x in lines if x["kind"] == "train" and x["step"] % 5000 == 0]
    for line in wanted:
        line.pop("returns", None)
    (kept / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in wanted))


def finished(run: Path) -> bool:
    """Its last phase has ended, or diverged."""
    if (run / "diverged.txt").is_file():
        return True
    if not (run / "summary.json").is_file():
        return False
    phases = read(run, "summary")["phases"]
    kind = "offline" if run.parent.name == "offline" else "online"
    return phases[-1]["kind"] == kind and bool(phases[-1].get("final"))


def both(rows: list[dict[str, Any]], name: str) -> str:
    """The seeds' values."""
    return ", ".join(f"{row[name]:.0f}" for row in rows)


def main() -> None:
    """A table a dataset, and the picture."""
    root = Path(sys.argv[1]).resolve()
    for run in sorted(path.parent for path in root.glob("*/**/config.json")):
        if finished(run):
            keep(run, root)
    table: list[dict[str, Any]] = []
    datasets = sorted(path.name for path in KEPT.iterdir())
    for dataset in datasets:
        for run in sorted((KEPT / dataset / "offline").iterdir()):
            final = read(run, "summary")["phases"][-1]
            scores = [f"{x['normalised_mean']:.1f} ± {x['normalised_standard_error']:.1f}" for x in final["final"]]
            print(f"{dataset} {run.name}: {final['steps']} updates, {', '.join(scores)}")
        for run in sorted((KEPT / dataset).iterdir()):
            if run.name != "offline":
                table += rows_of(run, dataset)
    with (HERE / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    size = (20, 5 * len(datasets))
    figure, axes = plt.subplots(len(datasets), 4, figsize=size, sharey="row", squeeze=False, layout="constrained")
    for i, dataset in enumerate(datasets):
        print(f"\n### {dataset}\n\n| from | method | hand-over | end | mean | lowest | minutes |")
        print("|---|---|---|---|---|---|---|")
        labels = sorted({(ORDER.get(r["from"], 3), r["from"], r["label"]) for r in table if r["dataset"] == dataset})
        for place, parent, label in labels:
            rows = [r for r in table if (r["dataset"], r["label"]) == (dataset, label)]
            cells = [NAMES.get(parent, parent), label, both(rows, "handover"), end_of(rows), both(rows, "mean"),
                     both(rows, "lowest"), f"{rows[0]['seconds'] / 60:.0f}"]  # fmt: skip
            print(f"| {' | '.join(cells)} |")
            axis = axes[i][place]
            curve = [sum(r["curve"][j][1] for r in rows) / len(rows) for j in range(len(rows[0]["curve"]))]
            shown = len(axis.lines)  # ten colours, then others' line styles
            axis.plot([x for x, _ in rows[0]["curve"]], curve, "-" if shown < 10 else "--", label=label)
            axis.set(title=f"{dataset}, from {NAMES.get(parent, parent)}", xlabel="environment steps")
            axis.legend(fontsize=7)
            axis.grid(alpha=0.3)
    for axis in axes.flat:
        axis.set_visible(bool(axis.lines))
    figure.supylabel("normalised score, mean of the seeds")
    figure.savefig(HERE / "curves.png", dpi=80)


if __name__ == "__main__":
    main()
