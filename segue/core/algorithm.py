"""What an algorithm is: a frozen dataclass whose fields are its hyper-parameters, and five pure functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import jax

from segue.core.types import Batch, Metrics, Models, PyTree, Spec

S = TypeVar("S")


class Algorithm(ABC, Generic[S]):
    """Sampling, compiling, logging, saving and environments are not its business.

    `updates` counts gradient steps since the algorithm's first phase and is part of every state. On each one the
    driver says whether it is a policy step: with `policy_update_interval` F every F-th is, else every one. The flag
    is static, because a `cond` on it would run both branches once seeds are vmapped.
    """

    needs: ClassVar[tuple[str, ...]] = ()  # roles that earlier phases must have made
    gives: ClassVar[tuple[str, ...]] = ()  # roles that `export` returns
    columns: ClassVar[tuple[str, ...]] = ()  # entries of `Batch.extras` that it reads
    on_policy: ClassVar[bool] = False  # a batch is the latest `batch_size` steps in their order, not a sample
    new_policy: ClassVar[bool] = False  # it makes a policy of its own form, whatever the form of the one before
    keeps_policy: ClassVar[bool] = False  # its policy is the one that it was given: scored once, not along the way
    undiscounted: ClassVar[bool] = False  # the returns-to-go that it reads are plain sums, whatever its discount

    batch_size: int
    discount: float
    policy_update_interval: int

    @property
    def policy_kind(self) -> str | None:
        """Form of the "actor" that it makes and continues."""
        return None

    @property
    def window(self) -> int | None:
        """Steps of its episode, itself the last, that a batch holds for every row drawn; None: that row alone."""
        return None

    @abstractmethod
    def init(self, models: Models, spec: Spec, key: jax.Array) -> S:
        """A state; roles present in `models` go on, missing ones are made fresh."""

    @abstractmethod
    def draw(self, key: jax.Array, spec: Spec) -> Any:
        """Every random number of one update, so that tests can supply their own."""

    @abstractmethod
    def update(self, s: S, batch: Batch, draws: Any, policy_step: bool) -> tuple[S, Metrics]:
        """One gradient step on `batch`."""

    @abstractmethod
    def act(self, s: S, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """[S] -> action [A] in [-1, 1]."""

    @abstractmethod
    def export(self, s: S) -> Models:
        """What the next phase may continue."""

    def context(self, spec: Spec) -> PyTree:
        """What acting remembers of an episode, as it begins; None: nothing, it acts by the observation alone."""
        return None

    def act_in(
        self, s: S, context: PyTree, obs: jax.Array, reward: jax.Array, key: jax.Array, explore: bool
    ) -> tuple[jax.Array, PyTree]:
        """As `act`, in an episode of which `context` is remembered; also what is remembered after the action.

        `reward` [] is the stored one of the step before, 0 at an episode's start. The action is executed as it is.
        """
        return self.act(s, obs, key, explore), context

    def begin_step(self, s: S, env_step: jax.Array) -> S:
        """Online, after environment step number `env_step` [] (from 1) and before the updates that follow it."""
        return s

    def scored(self, s: S, score: jax.Array) -> S:
        """After every evaluation of the greedy policy: its mean return [], of raw rewards."""
        return s

    def finished(self, s: S) -> jax.Array | None:
        """Offline: whether nothing more is learned [] bool, so that the phase may end early; None: it never does."""
        return None

    def diagnose(self, s: S, batch: Batch) -> Metrics:
        """Quantities for the log that are too dear for every update, on a fixed sample of rows."""
        return {}
