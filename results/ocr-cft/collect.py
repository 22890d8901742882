"""Copy what is worth keeping of the runs, draw their curves, and print the tables of the README.

    python results/ocr-cft/collect.py runs
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # the backend comes first

HERE = Path(__file__).parent
DATASET = "hopper-medium"
GROUPS = {  # title -> label: (folder of the sweep, folder of the method)
    "from TD3+BC, 50,000 steps": {
        "TD3 direct": ("ocr-cft-td3", "td3-direct"),
        "SSAR": ("ocr-cft-td3", "ssar"),
        "O2TD3": ("ocr-cft-o2td3", "o2td3"),
    },
    "from fast CQL, 50,000 steps": {
        "SAC direct": ("ocr-cft-sac", "sac-direct"),
        "O2SAC": ("ocr-cft-o2sac", "o2sac-from-cql"),
    },
    "from IQL, O2SAC by a clone": {
        "O2SAC": ("ocr-cft-o2sac", "o2sac-from-iql"),
        "PPO direct, 100,000 steps": ("ocr-cft-ppo", "ppo-direct"),
        "O2PPO, 100,000 steps": ("ocr-cft-o2sac", "o2ppo"),
    },
}
COLOURS = ("tab:red", "tab:purple", "tab:blue")


def runs_of(runs: Path, sweep: str, method: str) -> list[Path]:
    """The finished runs of a method, of all seeds; those of O2SAC and O2PPO lie in a folder for each seed."""
    found = [p for folder in sorted(runs.glob(f"{sweep}*")) for p in sorted(folder.glob(f"{method}/{DATASET}/seed-?"))]
    return [path for path in found if (path / "summary.json").exists() and ends_online(path)]


def ends_online(path: Path) -> bool:
    """The online phase is finished."""
    last = json.loads((path / "summary.json").read_text())["phases"][-1]
    return last["kind"] == "online" and "final" in last


def keep(run: Path, method: str) -> None:
    """Its settings, scores and metrics, without the training episodes."""
    kept = HERE / "runs" / method / run.name
    kept.mkdir(parents=True, exist_ok=True)
    here = f"{Path.cwd()}/"  # of the parent's path, which is absolute in a run
    for name in ("config.json", "summary.json"):
        (kept / name).write_text((run / name).read_text().replace(here, ""))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (kept / "metrics.jsonl").write_text("".join(f"{x}\n" for x in lines if json.loads(x)["kind"] != "episode"))


def described(run: Path) -> dict[str, Any]:
    """Scores before, along and after the online phase, normalised."""
    phases = json.loads((run / "summary.json").read_text())["phases"]
    parent = Path(json.loads((run / "config.json").read_text())["parent"])
    source = json.loads((parent / "summary.json").read_text())["phases"][-1]["final"][0]["normalised_mean"]
    online = phases[-1]
    points = [(e["step"], e["normalised_mean"]) for e in online["evaluations"]]
    later = [score for step, score in points if step > 0]
    return {
        "source": source,
        "phases": {p["name"]: p["final"][0]["normalised_mean"] for p in phases[:-1] if p.get("final")},
        "start": points[0][1],
        "points": points,
        "lowest": min(later),
        "below": sum(score < 0.9 * points[0][1] for score in later),
        "count": len(later),
        "mean": sum(later) / len(later),
        "end": online["final"][0]["normalised_mean"],
        "error": online["final"][0]["normalised_standard_error"],
        "seconds": sum(p["wall_time_s"] for p in phases),
    }


def main() -> None:
    """A table a group, and the picture."""
    runs = Path(sys.argv[1])
    figure, axes = plt.subplots(1, len(GROUPS), figsize=(15, 4.2), sharey=True, layout="constrained")
    for axis, (title, methods) in zip(axes, GROUPS.items(), strict=True):
        print(f"\n### {title}\n")
        print("| method | seed | offline policy | at the hand-over | lowest / start | points below 90 % of the start "
              "| mean | end | minutes |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
        for (label, (sweep, method)), colour in zip(methods.items(), COLOURS, strict=False):
            for i, run in enumerate(runs_of(runs, sweep, method)):
                keep(run, method)
                d = described(run)
                print(
                    f"| {label} | {run.name[-1]} | {d['source']:.1f} | {d['start']:.1f} | {d['lowest']:.1f} = "
                    f"{100 * d['lowest'] / d['start']:.0f} % | {d['below']} of {d['count']} | {d['mean']:.1f} | "
                    f"{d['end']:.1f} ± {d['error']:.1f} | {d['seconds'] / 60:.0f} |"
                )
                axis.plot(*zip(*d["points"], strict=True), color=colour, alpha=0.7, label=None if i else label)
        axis.set(title=title, xlabel="environment steps")
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    axes[0].set_ylabel("normalised score")
    figure.savefig(HERE / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
