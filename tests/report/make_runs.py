"""Run folders as `segue` writes them, made up: for tests of the report, and to look at it.

Run it, `python tests/report/make_runs.py FOLDER`, to make a few and print their paths.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

RANDOM, EXPERT = -20.3, 3234.3  # Hopper's reference returns
QUANTILES = np.array([-1.64, -0.67, 0.0, 0.67, 1.64])


def make_run(
    folder: Path,
    *,
    method: str = "td3_bc",
    dataset: str = "segue/hopper-medium",
    seeds: tuple[int, ...] = (0, 1),
    offline_steps: int = 150_000,
    online_steps: int = 30_000,
    offline_end: float = 1700.0,
    online_end: float = 2500.0,
    normalised: bool = True,
    parent: Path | None = None,
    settings: dict[str, Any] | None = None,
    finished: bool = True,
    training_every: int = 1_000,
) -> Path:
    """Write one run; `offline_steps` or `online_steps` of 0 leaves that phase out."""
    rng = np.random.default_rng(list(map(ord, f"{folder.name} {method} {seeds}")))
    plan: list[dict[str, Any]] = []
    if offline_steps:
        plan.append({"name": "offline", "kind": "offline", "steps": offline_steps})
    if online_steps:
        plan.append({"name": "online", "kind": "online", "steps": online_steps})
    folder.mkdir(parents=True)
    config = {
        "method": method,
        "dataset": dataset,
        "environment": "Hopper-v5",
        "seeds": list(seeds),
        "phases": plan,
        "settings": {"batch_size": 256, "alpha": 2.5, **(settings or {})},
        "versions": {"segue": "0.1.0", "jax": "0.10.2", "numpy": "2.4.6", "python": "3.11.7"},
        "command": f"segue run {method} --dataset {dataset} --env Hopper-v5 --seeds {' '.join(map(str, seeds))}",
    }
    if parent:
        config["parent"] = str(parent)
    (folder / "config.json").write_text(json.dumps(config, indent=2))

    def reference(value: float) -> float | None:
        return (value - RANDOM) / (EXPERT - RANDOM) * 100 if normalised else None

    def score(seed: int, mean: float, episodes: int) -> dict[str, Any]:
        returns = np.clip(rng.normal(mean, 350, episodes), 5, 3400)
        error = float(returns.std(ddof=1) / np.sqrt(episodes))
        return {
            "seed": seed,
            "episodes": episodes,
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std(ddof=1)),
            "return_standard_error": error,
            "normalised_mean": reference(float(returns.mean())),
            "normalised_standard_error": error / (EXPERT - RANDOM) * 100 if normalised else None,
            "length_mean": 480.0,
            "returns": returns.tolist(),
        }

    lines: list[dict[str, Any]] = []
    phases: list[dict[str, Any]] = []
    for phase in plan:
        online = phase["kind"] == "online"
        start, end = (offline_end, online_end) if online else (100.0, offline_end)
        evaluations = []
        steps = phase["steps"] if finished or not online else phase["steps"] // 3
        luck = {seed: rng.normal(0, 120) for seed in seeds}
        for step in range(training_every, steps + 1, training_every):
            for seed in seeds:
                lines.append(_training_line(rng, method, phase, step, seed))
        for step in range(0 if online else steps // 20, steps + 1, max(1, phase["steps"] // 20)):
            for seed in seeds:
                way = 1 - np.exp(-4 * step / phase["steps"])
                dip = 500 * np.exp(-(((step / phase["steps"] - 0.05) / 0.04) ** 2)) if online else 0.0
                record = score(seed, max(20, start + (end - start) * way - dip + luck[seed]), 10)
                evaluations.append({"kind": "evaluation", "phase": phase["name"], "step": step, **record})
        lines += evaluations
        if finished or not online:
            phases.append(
                {
                    **phase,
                    "wall_time_s": steps / (60 if online else 400),
                    "steps_per_second": 60 if online else 400,
                    "evaluations": [{k: v for k, v in e.items() if k != "returns"} for e in evaluations],
                    "final": [_without_returns(score(seed, end + luck[seed], 50)) for seed in seeds],
                }
            )
            if online:
                phases[-1]["handover"] = [_without_returns(score(seed, start, 50)) for seed in seeds]
                phases[-1]["drop"] = [{"seed": s, "drop_return": -420.0, "drop_normalised": -12.9} for s in seeds]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (folder / "summary.json").write_text(json.dumps(_summary(config, rng, reference, phases), indent=2))
    return folder


def _training_line(
    rng: np.random.Generator, method: str, phase: dict[str, Any], step: int, seed: int
) -> dict[str, Any]:
    online = phase["kind"] == "online"
    way = 1 - np.exp(-5 * step / phase["steps"])
    line: dict[str, Any] = {
        "kind": "train",
        "phase": phase["name"],
        "step": step,
        "seed": seed,
        "wall_time_s": step / 400,
        "critic_1_mean": 150 + 40 * way + rng.normal(0, 3) if online else 150 * way + rng.normal(0, 3),
        "critic_loss": 4.0 + rng.normal(0, 0.2),
        "actor_loss": -1.0 + rng.normal(0, 0.05),
    }
    if "ssar" in method:
        centre, width = (
            (0.9 - 0.5 * way, 0.05 + 0.13 * way) if not online else (0.4 - 0.15 * way, 0.18 * (1 - 0.4 * way))
        )
        quantiles = np.clip(centre + width * QUANTILES + rng.normal(0, 0.01), 0, 1)
        line |= {
            "coefficient_mean": float(centre),
            "coefficient_min": float(quantiles[0]),
            "coefficient_max": float(quantiles[-1]),
            "coefficient_quantiles": quantiles.tolist(),
            "trusted_fraction": 0.31,
        }
        if not online:
            line["threshold_n"] = 1.0 + 0.2 * min(step // 50_000, 2)
    return line


def _summary(config: dict[str, Any], rng: np.random.Generator, reference: Any, phases: Any) -> dict[str, Any]:
    returns = np.concatenate([rng.normal(1450, 220, 700), rng.normal(800, 250, 300)]).clip(10)
    counts, edges = np.histogram(returns, bins=40)
    summary = {key: config[key] for key in ("method", "dataset", "environment", "seeds")} | {
        "behaviour": {
            "return_mean": float(returns.mean()),
            "return_min": float(returns.min()),
            "return_max": float(returns.max()),
            "normalised_mean": reference(float(returns.mean())),
            "episodes": returns.size,
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        },
        "phases": phases,
    }
    if "ssar" in config["method"]:
        summary["selection"] = {"trusted_fraction": 0.31, "rule": "return > 1600"}
    return summary


def _without_returns(score: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in score.items() if key not in ("returns", "length_mean", "return_std")}


def make_comparison(root: Path) -> list[Path]:
    """TD3+BC, SSAR with and without the mask, and an unfinished run: what the report is for."""
    ssar = "td3_bc_ssar"
    return [
        make_run(root / "td3_bc", seeds=(0, 1)),
        make_run(root / "ssar-masked", method=ssar, online_end=2900, settings={"mask_regularizer": True}),
        make_run(
            root / "ssar-all", method=ssar, offline_end=1900, settings={"mask_regularizer": False}, finished=False
        ),
    ]


if __name__ == "__main__":
    for path in make_comparison(Path(sys.argv[1])):
        print(path)
