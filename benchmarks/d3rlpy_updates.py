"""d3rlpy's algorithms, updates a second. Runs in d3rlpy's own environment (.venv/d3rlpy), imports nothing of Segue.

`benchmarks.peer` chooses the settings of each. Prints one line of JSON. What is timed is what a
user calls: `fit` without files and evaluation (sampling, update, bookkeeping of losses).
"""

import argparse
import json
import sys
import time
from contextlib import redirect_stdout
from typing import Any

import d3rlpy
import numpy as np
import torch

ROWS = 100_000
EPISODE_LENGTH = 1_000
SECONDS_PER_TRIAL = 0.8
TRIALS = 3
CONFIGS = {
    "awac": d3rlpy.algos.AWACConfig,
    "bc": d3rlpy.algos.BCConfig,
    "cal_ql": d3rlpy.algos.CalQLConfig,
    "cql": d3rlpy.algos.CQLConfig,
    "iql": d3rlpy.algos.IQLConfig,
    "td3_bc": d3rlpy.algos.TD3PlusBCConfig,
}


def synthetic_dataset(observation_dim: int, action_dim: int) -> d3rlpy.dataset.MDPDataset:
    """100,000 random rows in episodes of 1,000."""
    rng = np.random.default_rng(0)
    last = np.arange(1, ROWS + 1) % EPISODE_LENGTH == 0
    return d3rlpy.dataset.MDPDataset(
        observations=rng.standard_normal((ROWS, observation_dim), dtype=np.float32),
        actions=rng.uniform(-1, 1, (ROWS, action_dim)).astype(np.float32),
        rewards=rng.standard_normal(ROWS, dtype=np.float32),
        terminals=np.zeros(ROWS, dtype=np.float32),
        timeouts=last.astype(np.float32),
    )


def create(name: str, settings: dict[str, Any]) -> Any:
    """The algorithm; settings that name networks give their hidden layers."""
    made = {
        key: d3rlpy.models.VectorEncoderFactory(hidden_units=value) if key.endswith("encoder_factory") else value
        for key, value in settings.items()
    }
    return CONFIGS[name](**made).create(device="cpu:0")


def updates_per_second(algorithm: Any, dataset: d3rlpy.dataset.MDPDataset, threads: int) -> float:
    """Of the fastest of a few calls of `fit`; on one thread per second of processor time, else by the wall clock."""
    torch.set_num_threads(threads)
    now = time.process_time if threads == 1 else time.perf_counter

    def seconds(updates: int) -> float:
        start = now()
        algorithm.fit(
            dataset,
            n_steps=updates,
            n_steps_per_epoch=updates,
            save_interval=2,  # epochs; there is one
            logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
            show_progress=False,
        )
        return now() - start

    seconds(4)  # warms up
    updates = max(4, round(SECONDS_PER_TRIAL * 4 / seconds(4)))
    return updates / min(seconds(updates) for _ in range(TRIALS))


def main() -> None:
    """Measure each algorithm with each count of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", type=json.loads, help="[[algorithm, settings], ...]")
    parser.add_argument("--observation-dim", type=int, default=11)
    parser.add_argument("--action-dim", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="counts to try")
    options = parser.parse_args()

    rates: list[dict[int, float]] = []
    with redirect_stdout(sys.stderr):  # d3rlpy logs to stdout, which is for the result
        dataset = synthetic_dataset(options.observation_dim, options.action_dim)
        for name, settings in options.jobs:
            algorithm = create(name, settings)
            algorithm.build_with_dataset(dataset)
            rates.append({threads: updates_per_second(algorithm, dataset, threads) for threads in options.threads})
    versions = {"d3rlpy": d3rlpy.__version__, "torch": torch.__version__}
    print(json.dumps({"versions": versions, "updates_per_second": rates}))


if __name__ == "__main__":
    main()
