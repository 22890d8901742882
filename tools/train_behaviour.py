"""Train SAC on a task and keep its policy every so often: the raw material of the built-in datasets.

    python tools/train_behaviour.py --environment Hopper-v5 --steps 700000 --seed 0 --out runs/behaviour/hopper

`tools/select_snapshots.py` then chooses those that go into the package.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from segue.core.learn import Program, act_greedily, initial_state, make_keys
from segue.core.phases import Online
from segue.core.replay import empty_rows
from segue.core.types import Spec
from segue.environment import Environment
from segue.evaluate import Evaluator
from segue.methods.sac import SAC
from segue.nets.policies import LOG_STD_MAX, LOG_STD_MIN
from segue.online import OnlineLoop
from segue.preparation import Preparation


def main() -> None:
    """Train, evaluate and write `step_XXXXXXX.safetensors` and a line of `curve.jsonl` at every interval."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", required=True)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--every", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    environment = Environment(arguments.environment)
    spec = Spec(environment.observation_dim, environment.action_dim)
    preparation = Preparation.identity(spec.observation_dim)
    algorithm, seeds = SAC(), (arguments.seed,)
    keys = make_keys(seeds, 0)
    rows = jax.tree.map(lambda x: x[None], empty_rows(spec, arguments.steps))
    loop = OnlineLoop(
        program=Program(algorithm, "online", spec),
        schedule=Online(arguments.steps, warmup_steps=10_000, random_warmup=True),
        environments=[environment],
        preparation=preparation,
        state=initial_state(algorithm, {}, spec, keys),
        rows=rows,
        columns={},
        offline=None,
        keys=keys,
        seeds=seeds,
    )
    evaluator = Evaluator(arguments.environment, None, preparation)
    loop.begin()
    start = time.perf_counter()
    with (arguments.out / "curve.jsonl").open("w") as curve:
        for step in range(arguments.every, arguments.steps + 1, arguments.every):
            loop.advance(lambda: False, until=step)
            state = jax.tree.map(lambda x: x[0], loop.state)

            def policy(obs: np.ndarray, state: object = state) -> np.ndarray:
                return np.asarray(act_greedily(algorithm, state, jnp.asarray(obs)))

            score = evaluator.score(policy, 10, arguments.seed)
            assert score is not None
            tensors = {
                f"{layer}/{name}": np.asarray(value)
                for layer, parts in state.actor.params.items()
                for name, value in parts.items()
            }
            metadata = {
                "environment_id": arguments.environment,
                "step": str(step),
                "return_mean": f"{score.mean:.1f}",
                "log_std_min": str(LOG_STD_MIN),
                "log_std_max": str(LOG_STD_MAX),
            }
            save_file(tensors, arguments.out / f"step_{step:07d}.safetensors", metadata)
            line = {
                "step": step,
                "return_mean": score.mean,
                "return_standard_error": score.standard_error,
                "episodes": 10,
                "wall_time_s": round(time.perf_counter() - start, 1),
            }
            curve.write(json.dumps(line) + "\n")
            curve.flush()
            print(line, flush=True)


if __name__ == "__main__":
    main()
