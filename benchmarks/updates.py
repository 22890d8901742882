"""Updates per second of one method and size, and the matrix rate under the same conditions; one line of JSON.

`benchmarks.offline` runs this in a process of its own for every row of its table.
"""

from __future__ import annotations

import argparse
import json

import jax
import jax.numpy as jnp

from benchmarks.clock import Clock, best_of
from benchmarks.matrix_rate import matrix_rate, products_of_td3_bc
from segue.core.learn import Program, initial_state, learn, make_keys
from segue.core.types import Batch, Spec
from segue.methods.ssar import StateAdaptive
from segue.methods.td3_bc import TD3BC

ROWS = 100_000
TRIALS = 5
ALGORITHMS = {
    "td3_bc": TD3BC(),
    "td3_bc_ssar": TD3BC(coefficient=StateAdaptive(mask_regularizer=True), critic_layer_norm=True),
}


def synthetic_rows(spec: Spec) -> Batch:
    """100,000 random transitions on the device."""
    keys = jax.random.split(jax.random.key(0), 4)
    return Batch(
        obs=jax.random.normal(keys[0], (ROWS, spec.observation_dim)),
        action=jax.random.uniform(keys[1], (ROWS, spec.action_dim), minval=-1.0),
        reward=jax.random.normal(keys[2], (ROWS,)),
        next_obs=jax.random.normal(keys[3], (ROWS, spec.observation_dim)),
        terminal=jnp.zeros(ROWS),
        extras={},
    )


def segue_updates_per_second(
    method: str, observation_dim: int, action_dim: int, seeds: int, clock: Clock, rounds: int
) -> float:
    """Of all seeds together, in one fused call of `rounds` rounds (a policy step each), sampling included."""
    algorithm, spec = ALGORITHMS[method], Spec(observation_dim, action_dim)
    program = Program(algorithm, "offline", spec)
    keys = make_keys(tuple(range(seeds)), 0)
    offline = synthetic_rows(spec)
    trusted = (jnp.arange(ROWS) % 3 == 0).astype(jnp.float32)
    columns = {"trust": jnp.tile(trusted, (seeds, 1))} if algorithm.coefficient else {}
    state = initial_state(algorithm, {}, spec, keys)

    def train(count: int = rounds) -> None:
        nonlocal state  # donated to each call
        state, metrics = learn(
            program, state, columns, keys.learn, offline, jnp.int32(0), jnp.int32(count)
        )
        jax.block_until_ready((state, metrics))

    train(1)  # compiles
    updates = rounds * algorithm.policy_update_interval * seeds
    return updates / best_of(TRIALS, train, clock)


def main() -> None:
    """Measure one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=ALGORITHMS)
    parser.add_argument("--observation-dim", type=int, default=11)
    parser.add_argument("--action-dim", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="that this process was given; 1: count processor time")
    parser.add_argument("--rounds", type=int, default=300, help="of two updates each, in one trial")
    options = parser.parse_args()

    clock: Clock = "cpu" if options.threads == 1 and jax.default_backend() == "cpu" else "wall"
    algorithm = ALGORITHMS[options.method]
    coefficient = algorithm.coefficient
    products = products_of_td3_bc(
        options.observation_dim,
        options.action_dim,
        hidden=algorithm.hidden_sizes,
        batch=algorithm.batch_size,
        coefficient_width=coefficient.coefficient_hidden_sizes[0] if isinstance(coefficient, StateAdaptive) else None,
        policy_interval=algorithm.policy_update_interval,
    )
    rate = matrix_rate(products, options.seeds, clock)
    updates = segue_updates_per_second(
        options.method, options.observation_dim, options.action_dim, options.seeds, clock, options.rounds
    )
    result = {
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "threads": options.threads,
        "clock": clock,
        "updates_per_second": updates,
        "flop_per_update": rate.flop,
        "matrix_flop_per_second": rate.flop_per_second,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
