"""Choose policy snapshots of `train_behaviour.py` for the package and measure them.

    python tools/select_snapshots.py --source runs/behaviour/hopper --task hopper --environment Hopper-v5 \
        --medium 110000 --expert 700000 --ladder 10000 20000 30000 ... 110000 \
        --command "python tools/train_behaviour.py --environment Hopper-v5 --steps 700000 --seed 0 ..."

Writes `segue/data/snapshots/TASK/*.safetensors` and `provenance.json`. Returns there are of the sampled policy, the
one that the datasets hold, over 50 episodes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from segue.data.policy import Policy, load_policy
from segue.environment import Environment
from segue.experiment import versions

FOLDER = Path(__file__).parent.parent / "segue" / "data" / "snapshots"
# Returns of D4RL's random and expert policies (D4RL, public constants): scores stay comparable with the papers'.
REFERENCE_SCORES = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
}


def returns_of(policy: Policy, environment: Environment, episodes: int) -> np.ndarray:
    """Returns of the sampled policy, episode by episode."""
    rng = np.random.default_rng(0)
    returns = np.zeros(episodes)
    for episode in range(episodes):
        obs, ended = environment.reset(seed=10_000 + episode), False
        while not ended:
            action = policy.sample(obs[None], rng)[0]
            obs, reward, terminated, truncated = environment.step(action)
            returns[episode] += reward
            ended = terminated or truncated
    return returns


def main() -> None:
    """Copy, measure, describe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--task", required=True, choices=REFERENCE_SCORES)
    parser.add_argument("--environment", required=True)
    parser.add_argument("--medium", type=int, required=True)
    parser.add_argument("--expert", type=int, required=True)
    parser.add_argument("--ladder", type=int, nargs="+", required=True, help="steps on the way to medium")
    parser.add_argument("--command", required=True, help="what made the source")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = FOLDER / arguments.task
    out.mkdir(parents=True, exist_ok=True)
    environment = Environment(arguments.environment)
    curve = [json.loads(line) for line in (arguments.source / "curve.jsonl").read_text().splitlines()]
    snapshots = []
    for step in sorted({arguments.medium, arguments.expert, *arguments.ladder}):
        name = f"step_{step:07d}.safetensors"
        shutil.copyfile(arguments.source / name, out / name)
        returns = returns_of(load_policy(out / name), environment, 50)
        entry = {"return_mean": returns.mean(), "return_std": returns.std(), "episodes": len(returns)}
        snapshots.append({"file": name, "step": step} | {k: round(float(v), 1) for k, v in entry.items()})
        print(snapshots[-1], flush=True)

    def file(step: int) -> str:
        return f"step_{step:07d}.safetensors"

    provenance = {
        "task": arguments.task,
        "environment_id": arguments.environment,
        "command": arguments.command,
        "selected_by": "tools/select_snapshots.py",
        "seed": arguments.seed,
        "steps": curve[-1]["step"],
        "versions": versions(),
        "reference_scores": REFERENCE_SCORES[arguments.task],
        "snapshots": snapshots,
        "medium": file(arguments.medium),
        "expert": file(arguments.expert),
        "medium_replay": [file(step) for step in arguments.ladder],
    }
    (out / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")


if __name__ == "__main__":
    main()
