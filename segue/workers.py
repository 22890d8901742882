"""Who does the steps of a phase: one worker offline, one online, with the same face to the driver."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue.core.learn import Keys, Program, learn, learn_singly, policy_flags
from segue.core.types import Batch, Metrics, PyTree
from segue.online import OnlineLoop

CALL_SECONDS = 1.5  # a fused call should not last longer: signals and the progress bar wait for its end
FIRST_CALL_UPDATES = 20  # before the speed is known: several seeds of large networks may make few a second

Averages = dict[str, np.ndarray]  # metric -> [seeds]


class Averager:
    """Weighted means of metrics since the last `drain`."""

    def __init__(self) -> None:
        self.sums: Averages = {}
        self.weight = 0.0
        self.latest: Averages = {}  # of the last `add` alone: what begins to diverge is soon lost in a mean

    def add(self, metrics: Metrics, weight: float) -> None:
        """Count in the mean `metrics` of `weight` rounds."""
        self.latest = {name: np.asarray(value, np.float64) for name, value in jax.device_get(metrics).items()}
        for name, value in self.latest.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * weight
        self.weight += weight

    def peek(self) -> Averages:
        """The means so far."""
        return {name: total / self.weight for name, total in self.sums.items()} if self.weight else {}

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {"sums": {name: total.tolist() for name, total in self.sums.items()}, "weight": self.weight}

    def restore(self, values: dict[str, Any]) -> None:
        """Go on from `as_dict`."""
        self.sums = {name: np.asarray(total) for name, total in values["sums"].items()}
        self.weight = values["weight"]

    def drain(self) -> Averages:
        """The means so far; starts anew."""
        means = self.peek()
        self.sums, self.weight = {}, 0.0
        return means


class Worker(ABC):
    """`step` counts gradient updates offline, environment steps online."""

    step: int
    state: PyTree
    metrics: Averager

    @abstractmethod
    def advance(self, until: int, stop: Callable[[], bool]) -> list[dict[str, Any]]:
        """Go on towards step `until`, at most about `CALL_SECONDS`; episodes that ended, the guard's events."""

    @property
    def finished(self) -> bool:
        """The algorithm learns nothing more, whatever steps are left."""
        return False

    def vitals(self) -> Averages:
        """What must be finite beside the metrics, which are of the state before its last update."""
        leaves = [x for x in jax.tree.leaves(self.state) if jnp.issubdtype(x.dtype, jnp.floating)]
        sizes = [np.abs(np.asarray(x)).reshape(len(x), -1).max(1, initial=0.0) for x in leaves]  # of each, [seeds]
        return {"largest parameter": np.max(sizes, axis=0)}

    def largest_reward(self) -> float:
        """The largest |reward| met beside the dataset's."""
        return 0.0

    @abstractmethod
    def tree(self) -> PyTree:
        """The arrays of a checkpoint."""

    @abstractmethod
    def host_state(self) -> dict[str, Any]:
        """What a checkpoint needs beside them, as JSON."""

    @abstractmethod
    def restore(self, tree: PyTree, host: dict[str, Any]) -> None:
        """Go on from a checkpoint."""


class OfflineWorker(Worker):
    """Fused calls on the dataset."""

    def __init__(
        self, program: Program, state: PyTree, columns: dict[str, jax.Array], keys: Keys, offline: Batch
    ) -> None:
        self.program, self.state, self.columns, self.keys, self.offline = program, state, columns, keys, offline
        self.origin = int(state.updates[0])  # updates that earlier phases of the same algorithm made
        self.step = 0
        self.metrics = Averager()
        self.updates_per_second = 0.0

    def advance(self, until: int, stop: Callable[[], bool]) -> list[dict[str, Any]]:
        """One fused call of whole rounds, or the single updates that do not fill one."""
        interval = self.program.algorithm.policy_update_interval
        done = self.origin + self.step
        left, to_round = until - self.step, -done % interval
        clock = time.perf_counter()
        if to_round or left < interval:
            flags = policy_flags(interval, done, min(to_round or left, left))
            self.state, metrics = learn_singly(
                self.program, flags, self.state, self.columns, self.keys.learn, self.offline, np.int32(done)
            )
            self.step += len(flags)
            if flags[-1]:
                self.metrics.add(metrics, 1)
            return []
        wanted = int(self.updates_per_second * CALL_SECONDS) or FIRST_CALL_UPDATES
        rounds = max(1, min(left, wanted) // interval)
        self.state, metrics = learn(
            self.program,
            self.state,
            self.columns,
            self.keys.learn,
            self.offline,
            np.int32(done),
            np.int32(rounds),
        )
        self.metrics.add(metrics, rounds)  # waits for the call's end
        if self.step:  # the first call compiled
            self.updates_per_second = rounds * interval / (time.perf_counter() - clock)
        self.step += rounds * interval
        return []

    @property
    def finished(self) -> bool:
        """Every seed's algorithm says so."""
        said = self.program.algorithm.finished(self.state)
        return said is not None and bool(np.asarray(said).all())

    def tree(self) -> PyTree:
        """The state."""
        return {"state": self.state}

    def host_state(self) -> dict[str, Any]:
        """The step, and the metrics since the last line of the log."""
        return {"step": self.step, "metrics": self.metrics.as_dict()}

    def restore(self, tree: PyTree, host: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.state, self.step = jax.tree.map(jnp.asarray, tree["state"]), host["step"]
        self.metrics.restore(host["metrics"])


class OnlineWorker(Worker):
    """Steps of the environments and the updates between them."""

    def __init__(self, loop: OnlineLoop) -> None:
        self.loop = loop
        self.metrics = Averager()

    @property
    def step(self) -> int:  # type: ignore[override]
        """Environment steps taken."""
        return self.loop.env_step

    @property
    def state(self) -> PyTree:
        """The algorithm's state."""
        return self.loop.state

    @state.setter
    def state(self, state: PyTree) -> None:
        self.loop.state = state

    def advance(self, until: int, stop: Callable[[], bool]) -> list[dict[str, Any]]:
        """Environment steps for about a call's time."""
        end = time.perf_counter() + CALL_SECONDS
        metrics, episodes = self.loop.advance(lambda: stop() or time.perf_counter() > end, until)
        for one in metrics:
            self.metrics.add(one, 1)
        return episodes

    def vitals(self) -> Averages:
        """The action to execute next: the simulator must not get one that is no number."""
        return super().vitals() | {"action": np.abs(self.loop.action).mean(-1)}

    def largest_reward(self) -> float:
        """Of the environment so far."""
        return float(np.abs(np.asarray(self.loop.rows.reward)).max())

    def _used(self) -> int:
        return min(self.loop.schedule.ring_start + self.loop.env_step, self.loop.rows.reward.shape[1])

    def tree(self) -> PyTree:
        """The state, the priorities, and the rows of the ring that hold something."""
        used = self._used()  # cut on the host: on the device every length would compile a program
        rows = jax.tree.map(lambda x: np.asarray(x)[:, :used], self.loop.rows)
        guard = {"guard": self.loop.watch.tree()} if self.loop.watch else {}
        priorities = {"priorities": self.loop.priorities} if self.loop.priorities else {}
        return {"state": self.loop.state, "rows": rows} | guard | priorities

    def host_state(self) -> dict[str, Any]:
        """Environments, episodes under way, counters."""
        counters = {"step": self.step, "used": self._used(), "metrics": self.metrics.as_dict()}
        return counters | self.loop.host_state()

    def restore(self, tree: PyTree, host: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.loop.state = jax.tree.map(jnp.asarray, tree["state"])
        self.loop.rows = jax.tree.map(lambda rows, x: rows.at[:, : host["used"]].set(x), self.loop.rows, tree["rows"])
        if self.loop.priorities:
            self.loop.priorities = jax.tree.map(jnp.asarray, tree["priorities"])
        self.loop.restore(host)
        if self.loop.watch:
            self.loop.watch.restore(tree["guard"], host["guard"])
        self.metrics.restore(host["metrics"])
