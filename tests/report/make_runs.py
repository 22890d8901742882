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


def make_handover(folder: Path, guard: bool = True, **options: Any) -> Path:
    """A run as `o2td3` makes it: critics checked in every phase, a constraint online, and what a guard did."""
    make_run(folder, method="o2td3", **options)
    rng = np.random.default_rng(0)
    config, summary = (json.loads((folder / name).read_text()) for name in ("config.json", "summary.json"))
    middle = [{"name": name, "kind": "offline", "steps": 100_000} for name in ("re-evaluation", "alignment")]
    config["phases"][1:1] = middle
    final = summary["phases"][0]["final"]
    summary["phases"][1:1] = [phase | {"wall_time_s": 200.0, "final": final} for phase in middle]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seeds = config["seeds"]
    for line in lines:
        if line["kind"] == "train" and line["phase"] == "online":
            step = line["step"]
            line["threshold"] = 0.01 + 1e-6 * step
            line["penalty"] = line["threshold"] * (0.6 + 0.5 * np.sin(step / 3000) + 0.05 * rng.normal())
            line["multiplier"] = 1.0 + 0.1 * np.sin(step / 4000 - line["seed"])
            line["reference_score"] = "-inf" if step < 2000 else 1700.0 + 150 * (step // 8000)
    plan = (  # name, step, bias of Q, its noise, how high actions rank
        ("offline", config["phases"][0]["steps"], -60, 40, 2),
        ("re-evaluation", 100_000, 10, 25, 1),
        ("alignment", 100_000, -5, 25, 8),
        ("online", 0, -5, 25, 8),
        ("online", config["phases"][3]["steps"], 8, 15, 6),
    )
    for name, step, bias, noise, height in plan:
        for seed in seeds:
            returns = rng.normal(200, 30, 1000)
            q = returns + bias + rng.normal(0, noise, 1000)
            line = {"kind": "critic_check", "phase": name, "step": step, "seed": seed, "policy": "deterministic"}
            line |= {"estimate": "Q", "discount": 0.99, "rows": 1000, "difference_mean": float((q - returns).mean())}
            line |= {"correlation": float(np.corrcoef(q, returns)[0, 1])}
            for key, values in (("estimate", q), ("return", returns)):
                quantiles = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
                line |= {f"{key}_mean": float(values.mean()), f"{key}_quantiles": quantiles.tolist()}
            for kind, power in (("uniform", height), ("nearby", height / 2)):
                ranks = rng.beta(power, 1, 1000)
                line[f"rank_{kind}_mean"] = float(ranks.mean())
                line[f"rank_{kind}_histogram"] = np.histogram(ranks, 20, (0, 1))[0].tolist()
            lines.append(line)
    if guard:
        event = {"kind": "guard", "phase": "online", "seed": seeds[0], "start_return": 1700.0, "bound": 1290.0}
        lines.append(event | {"step": 1500, "event": "warning", "return_mean": 1500.0})
        lines.append(event | {"step": 3000, "event": "restored", "return_mean": 1210.0})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


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
    for path in [*make_comparison(Path(sys.argv[1])), make_handover(Path(sys.argv[1]) / "o2td3")]:
        print(path)
