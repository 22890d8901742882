"""A state value fitted to the dataset's returns: the start of O2PPO's (../spec/ocr_cft.md 2.4 a).

    L_V = E (y - V(s))^2          y = G + c V(s_end), no gradient through the second term

G is the discounted sum of rewards from s to its episode's end at s_end. c is 0 where that was a terminal and gamma to
the power of the steps in between where a time limit cut the episode: what lies beyond is bootstrapped. The released
program lets the returns of cut episodes run on into the next episode of the file (D5).

It is the value of the policy that made the data, whatever policy goes on with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, Models, Spec
from segue.nets.networks import MLP


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    value: Model
    updates: jax.Array  # [] int32


@dataclass(frozen=True)
class ReturnValue(Algorithm[State]):
    """The fit. It exports no count of updates: it is nothing that a policy's phase continues."""

    batch_size: int = 512  # rows per update [ocr_cft.md 2.4 a]
    discount: float = 0.99  # gamma [ocr_cft.md 2.4 a]
    learning_rate: float = 1e-4  # Adam [ocr_cft.md 2.4 a]
    hidden_sizes: tuple[int, ...] = (256, 256, 256)  # [ocr_cft.md 2.1]
    activation: Literal["relu", "tanh"] = "tanh"  # [ocr_cft.md 2.1]
    policy_update_interval = 1  # there is no policy: every update counts as a round

    gives = ("value",)
    columns = ("return_to_go", "rows_to_end", "end_discount", "end_obs")

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """A fresh value, whatever value the offline method had: that one is another policy's, or an expectile."""
        net = MLP((spec.observation_dim, *self.hidden_sizes, 1), activation=self.activation)
        return State(Model.create(net, Adam(self.learning_rate), key), jnp.int32(0))

    def draw(self, key: jax.Array, spec: Spec) -> tuple[()]:
        """Nothing: the update is deterministic."""
        return ()

    def update(self, s: State, batch: Batch, draws: tuple[()], policy_step: bool) -> tuple[State, Metrics]:
        """One step towards the returns."""
        beyond = s.value(batch.extras["end_obs"])[..., 0]  # [B]
        y = batch.extras["return_to_go"] + batch.extras["end_discount"] * beyond  # [B] outside what is differentiated

        def loss(value: Model) -> tuple[jax.Array, jax.Array]:
            v = value(batch.obs)[..., 0]  # [B]
            return jnp.square(y - v).mean(), v.mean()

        value, error, mean = s.value.descend(loss)
        return State(value, s.updates + 1), {"value_loss": error, "value_mean": mean}

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """There is no policy. Raises NotImplementedError."""
        raise NotImplementedError("a value alone does not act")

    def export(self, s: State) -> Models:
        """The value."""
        return {"value": s.value}
