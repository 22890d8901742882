"""The vocabulary of the core. Axes: B batch rows, S observation, A action, K seeds, N dataset rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

PyTree = Any
Metrics = dict[str, jax.Array]  # scalars of one update, averaged over a call on the device
Models = dict[str, PyTree]  # role -> Model or component state: what one phase hands to the next


class Batch(NamedTuple):
    """Transitions. `action` is the executed action in [-1, 1]; `terminal` cuts the bootstrap, a time limit does not."""

    obs: jax.Array  # [B, S]
    action: jax.Array  # [B, A]
    reward: jax.Array  # [B]
    next_obs: jax.Array  # [B, S]
    terminal: jax.Array  # [B] 1 where the MDP ended
    extras: dict[str, jax.Array]  # columns a method declared, such as "trust" [B]


class Spec(NamedTuple):
    """Sizes of the task."""

    observation_dim: int
    action_dim: int
