"""What share of an online phase on Hopper goes into environment, storing and logging.

    python -m benchmarks.online --out bench/online.json

A real run (one update a step) through the whole driver, on one core. The calls to the device (update and acting) are
timed from outside; everything else between two of them is environment, storing, logging and the driver. Compilation
and evaluation are outside the measured window.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATASET, ENVIRONMENT, TRANSITIONS = "segue/hopper-random", "Hopper-v5", 100_000
LOG_INTERVAL = 500
WINDOW_START = 2 * LOG_INTERVAL + 50  # past everything that compiles, the diagnostics of the log too
TARGET_SHARE = 0.15


class TurnTimer:
    """Stands in for the compiled call of one environment step and notes when each begins and ends."""

    def __init__(self, turn: Callable[..., Any], now: Callable[[], float]):
        self.turn, self.now = turn, now
        self.begins: list[float] = []
        self.ends: list[float] = []

    def __call__(self, *arguments: Any) -> Any:
        """The same call, waited for at both ends: what was stored just before is not the update's time."""
        import jax

        jax.block_until_ready(arguments[3])  # the stored rows
        self.begins.append(self.now())
        out = jax.block_until_ready(self.turn(*arguments))
        self.ends.append(self.now())
        return out


def measure(method: str, steps: int) -> dict[str, Any]:
    """Run `steps` environment steps past the window's start; seconds per step, in all and in the compiled call."""
    from benchmarks.clock import CLOCKS, Clock
    from segue import api, online
    from segue.core.learn import online_turn
    from segue.session import Evaluation

    clock: Clock = "cpu" if hasattr(os, "sched_setaffinity") else "wall"
    timer = TurnTimer(online_turn, CLOCKS[clock])
    setattr(online, "online_turn", timer)  # noqa: B010, the module does not offer it for assignment
    never = 10 * (WINDOW_START + steps)
    evaluation = Evaluation(never, never, eval_episodes=1, result_episodes=1, log_interval=LOG_INTERVAL)
    with tempfile.TemporaryDirectory() as folder:
        api.run(
            method,
            DATASET,
            ENVIRONMENT,
            out=Path(folder) / "run",
            steps=10,
            online_steps=WINDOW_START + steps,
            transitions=TRANSITIONS,
            settings={"warmup_steps": 0},
            evaluation=evaluation,
            quiet=True,
        )
    begins, ends = timer.begins[WINDOW_START:], timer.ends[WINDOW_START:]
    wall = begins[-1] - begins[0]
    inside = sum(end - begin for begin, end in zip(begins[:-1], ends[:-1], strict=True))
    turns = len(begins) - 1
    return {
        "method": method,
        "clock": clock,
        "steps": turns,
        "seconds_per_step": wall / turns,
        "seconds_of_update_and_acting": inside / turns,
        "share_of_the_rest": 1 - inside / wall,
    }


def main() -> None:
    """Measure both methods, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/online.json"))
    parser.add_argument("--methods", nargs="+", default=["td3_bc", "td3_bc_ssar"])
    parser.add_argument("--steps", type=int, default=4_000)
    options = parser.parse_args()

    # Before JAX is imported. On one core processor time is wall time, whatever else the machine does.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()

    rows = []
    for method in options.methods:
        row = measure(method, options.steps)
        rows.append(row)
        print(
            f"{method:>12}: {row['seconds_per_step'] * 1e3:.2f} ms a step, of which update and acting "
            f"{row['seconds_of_update_and_acting'] * 1e3:.2f} ms; environment, storing and logging "
            f"{100 * row['share_of_the_rest']:.1f} % (at most {100 * TARGET_SHARE:.0f} % wanted)",
            flush=True,
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    print(options.out)


if __name__ == "__main__":
    main()
