"""What every foreign policy is, whatever it was read from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue.core.model import Adam, Model
from segue.core.types import PyTree
from segue.errors import UserError

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class ForeignPolicy:
    """A policy that another program trained, in the environment's own units."""

    name: str  # its file or function, for messages
    description: str  # what it is, in a few words
    action_low: np.ndarray  # [A] the environment's bounds
    action_high: np.ndarray  # [A]
    respond: Callable[[np.ndarray], np.ndarray]  # observations [n, S] float32 -> greedy actions [n, A], as they come
    observation_dim: int | None = None  # S; None where it is not known before it is asked
    network: tuple[Any, PyTree] | None = None  # one of our policy networks and its parameters (NumPy), if it is one

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Greedy actions [n, A] float32 for raw observations [n, S], clipped to the bounds as an environment does it.

        Raises UserError if sizes do not fit or an action is not finite.
        """
        observations = np.asarray(observations, np.float32)
        self.check_observations(observations.shape[1])
        actions = self.respond(observations)
        given, taken = actions.shape[1], len(self.action_low)
        if given != taken:
            raise UserError(
                f"policy {self.name} gives actions of {given} numbers, the environment takes {taken}: "
                "give a policy of this environment"
            )
        broken = np.flatnonzero(~np.isfinite(actions).all(1))
        if broken.size:
            shown = ", ".join(f"{x:.4g}" for x in observations[broken[0], :8])
            more = ", ..." if observations.shape[1] > 8 else ""
            raise UserError(
                f"policy {self.name}: its action is not finite at the observation [{shown}{more}] (and at "
                f"{broken.size - 1} others of {len(observations)}): the policy or the data are damaged"
            )
        return np.clip(actions, self.action_low, self.action_high).astype(np.float32)

    def check_observations(self, observation_dim: int) -> None:
        """Raise UserError if it is known to take observations of another size than `observation_dim`."""
        if self.observation_dim not in (None, observation_dim):
            raise UserError(
                f"policy {self.name} takes observations of {self.observation_dim} numbers, the environment gives "
                f"{observation_dim}: give a policy of this environment"
            )

    def native(self) -> Model | None:
        """The same policy as an "actor" that our methods continue (its optimizer has no state), if it is one.

        It takes raw observations and gives actions in [-1, 1].
        """
        if self.network is None:
            return None
        net, params = self.network
        return Model(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), None, (), net, Adam(3e-4))


def labels(policy: ForeignPolicy, observations: np.ndarray, chunk: int = ROWS_AT_ONCE) -> np.ndarray:
    """What the policy would do in each of the raw `observations` [N, S], in their order: [N, A] float32."""
    actions = np.empty((len(observations), len(policy.action_low)), np.float32)
    for begin in range(0, len(observations), chunk):
        actions[begin : begin + chunk] = policy.act(observations[begin : begin + chunk])
    return actions


def as_rows(name: str, actions: Any, count: int) -> np.ndarray:
    """What a policy gave for `count` observations as [count, A]. Raises UserError if it cannot be."""
    rows = np.asarray(actions)
    if rows.dtype.kind not in "fiu" or rows.ndim == 0 or len(rows) != count:
        raise UserError(
            f"policy {name} gives {rows.dtype} of shape {rows.shape} for {count} observations: "
            "it must give one row of numbers each"
        )
    return rows.reshape(count, -1)


def unpackable(name: str, error: Exception) -> str:
    """What another program says of a file, as part of one line."""
    words = " ".join(str(error).split())
    return f"{name} ({type(error).__name__}: {words[:160]})"
