"""A model of the policy that made the data, and how far it is off on trajectories that it has not seen (BAQ, Eq. 2 of
"Behavior Adaption Q-Learning", OpenReview d159zNCmOq; ../spec/baq.md 2).

    L = E (pi(s) - a)^2           mean over rows and dimensions: the likelihood of a Gaussian of fixed width, or
    L = E [ -log pi(a|s) ]        of a squashed Gaussian, whose action is tanh(mean)

Rows of held-out trajectories are not learned from. Every C updates the parameters become the candidate, whose squared
residual is averaged over the held-out rows among the batches of the next C: exact but for sampling, as it stands still
meanwhile. The best candidate is what is handed on; after P of them in a row that were no better, learning ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Model
from segue.core.reference import chosen
from segue.core.types import Batch, Metrics, Models, PyTree, Spec
from segue.nets.policies import DeterministicPolicy, TanhGaussianPolicy, action_of, data_log_density

UNKNOWN = 1e30  # above every error, but a number: a state that holds an infinity counts as diverged


class Residuals(NamedTuple):
    """Of actions from the model's, averaged over rows."""

    square: jax.Array  # [] of each dimension
    distance: jax.Array  # [] L2 norm over the dimensions


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    model: Model
    candidate: PyTree  # parameters
    sums: Residuals  # the candidate's, over the held-out rows so far
    rows: jax.Array  # [] how many of those there were
    best: PyTree  # parameters
    error: Residuals  # theirs, on held-out rows; UNKNOWN before the first check
    stale: jax.Array  # [] int32 checks since then
    stopped: jax.Array  # [] bool
    updates: jax.Array  # [] int32


@dataclass(frozen=True)
class BehaviourModel(Algorithm[State]):
    """Behaviour cloning with early stopping. It exports no count of updates: no policy's phase continues it."""

    kind: Literal["deterministic", "tanh_gaussian"] = "deterministic"  # form of the model [ours, baq.md 2]
    hidden_sizes: tuple[int, ...] = (256, 256)  # ReLU [ours, baq.md 2: as the hosts' actors]
    learning_rate: float = 3e-4  # Adam [ours, baq.md 2]
    batch_size: int = 256  # rows per update [ours, baq.md 2]
    check_interval: int = 2_000  # C [ours, baq.md 2]
    patience: int = 10  # P [ours, baq.md 2]
    discount = 0.0  # it looks at no future
    policy_update_interval = 1  # every update counts as a round

    gives = ("behaviour", "behaviour_error")
    columns = ("held_out",)

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """A fresh model; before the first check it is the best."""
        net = DeterministicPolicy(*spec, self.hidden_sizes)
        squashed = TanhGaussianPolicy(*spec, self.hidden_sizes)
        model = Model.create(net if self.kind == "deterministic" else squashed, Adam(self.learning_rate), key)
        zero, unknown = jnp.zeros(()), jnp.full((), UNKNOWN)
        return State(
            model=model,
            candidate=model.params,
            sums=Residuals(zero, zero),
            rows=zero,
            best=model.params,
            error=Residuals(unknown, unknown),
            stale=jnp.int32(0),
            stopped=jnp.bool_(False),
            updates=jnp.int32(0),
        )

    def draw(self, key: jax.Array, spec: Spec) -> tuple[()]:
        """Nothing."""
        return ()

    def update(self, s: State, batch: Batch, draws: tuple[()], policy_step: bool) -> tuple[State, Metrics]:
        """One step on the rows that are not held out, the candidate on those that are; nothing once it has stopped."""
        held_out = batch.extras["held_out"]  # [B]
        learned = 1 - held_out
        share = learned / jnp.maximum(learned.sum(), 1)  # [B]

        def loss(model: Model) -> tuple[jax.Array, None]:
            if self.kind == "deterministic":
                errors = jnp.square(model(batch.obs) - batch.action).mean(-1)  # [B]
            else:
                errors = -data_log_density(batch.action, *model(batch.obs)).sum(-1)
            return (share * errors).sum(), None

        model, value, _ = s.model.descend(loss)
        candidate = replace(s.model, params=s.candidate)
        residual = action_of(candidate, batch.obs, jnp.zeros_like(batch.action)) - batch.action  # [B, A]
        found = Residuals(jnp.square(residual).mean(-1), jnp.sqrt(jnp.square(residual).sum(-1)))
        sums = Residuals(*(total + (held_out * x).sum() for total, x in zip(s.sums, found, strict=True)))
        after = replace(s, model=model, sums=sums, rows=s.rows + held_out.sum())
        due = (s.updates + 1) % self.check_interval == 0
        after = chosen(due, self._checked(after), after)
        after = replace(chosen(s.stopped, s, after), updates=s.updates + 1)
        in_batch = (held_out * found.square).sum() / jnp.maximum(held_out.sum(), 1)
        metrics = {
            "behaviour_loss": value,
            "behaviour_held_out_error": in_batch,
            "behaviour_checks_without_gain": after.stale.astype(value.dtype),
            "behaviour_stopped": after.stopped.astype(value.dtype),
        }
        return after, metrics

    def _checked(self, s: State) -> State:
        """The candidate judged, the parameters as they are now the next one."""
        error = Residuals(*(total / jnp.maximum(s.rows, 1) for total in s.sums))
        better = (error.square < s.error.square) & (s.rows > 0)
        stale = jnp.where(better, 0, s.stale + 1)
        zero = jnp.zeros_like(s.rows)
        return replace(
            s,
            candidate=s.model.params,
            sums=Residuals(zero, zero),
            rows=zero,
            best=chosen(better, s.candidate, s.best),
            error=chosen(better, error, s.error),
            stale=stale,
            stopped=stale >= self.patience,
        )

    def finished(self, s: State) -> jax.Array:
        """[] bool: no later update changes anything."""
        return s.stopped

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """It is nobody's policy. Raises NotImplementedError."""
        raise NotImplementedError("the behaviour model alone does not act")

    def export(self, s: State) -> Models:
        """The best model, frozen, and its error on held-out trajectories."""
        return {"behaviour": replace(s.model, params=s.best).frozen(), "behaviour_error": s.error}
