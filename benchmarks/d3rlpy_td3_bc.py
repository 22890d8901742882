"""d3rlpy's TD3+BC, updates a second. Runs in d3rlpy's own environment (.venv/d3rlpy) and imports nothing of Segue.

Prints one line of JSON. `fit` is what a user gets (sampling, update, loss bookkeeping, no files, no evaluation);
`update` is the bare update on one batch that is already there.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout

import d3rlpy
import numpy as np
import torch

ROWS = 100_000
EPISODE_LENGTH = 1_000


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


def per_second(run: Callable[[], object], updates: int, trials: int) -> dict[str, float]:
    """Updates per second by the wall clock and per second of processor time, each the best of `trials`."""
    wall, cpu = [], []
    for _ in range(trials):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    return {"wall": updates / min(wall), "cpu": updates / min(cpu)}


def measure(observation_dim: int, action_dim: int, updates: int, trials: int) -> dict[str, dict[str, float]]:
    """Updates per second of `fit` and of `update`."""
    dataset = synthetic_dataset(observation_dim, action_dim)
    # Defaults: two critics, two hidden layers of 256 with ReLU, a policy step every second update, no layer norm.
    algo = d3rlpy.algos.TD3PlusBCConfig(batch_size=256).create(device="cpu:0")
    algo.build_with_dataset(dataset)
    batch = dataset.sample_transition_batch(256)

    def fit() -> None:
        algo.fit(
            dataset,
            n_steps=updates,
            n_steps_per_epoch=updates,
            save_interval=2,  # epochs; there is one
            logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
            show_progress=False,
        )

    def update() -> None:
        for _ in range(updates):
            algo.update(batch)

    return {"fit": per_second(fit, updates, trials), "update": per_second(update, updates, trials)}


def main() -> None:
    """Measure one size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--observation-dim", type=int, default=11)
    parser.add_argument("--action-dim", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--updates", type=int, default=1_000, help="in one trial")
    parser.add_argument("--trials", type=int, default=5)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    with redirect_stdout(sys.stderr):  # d3rlpy logs to stdout, which is for the result
        rates = measure(options.observation_dim, options.action_dim, options.updates, options.trials)
    versions = {"d3rlpy": d3rlpy.__version__, "torch": torch.__version__}
    print(json.dumps({"versions": versions, "threads": options.threads, "updates_per_second": rates}))


if __name__ == "__main__":
    main()
