"""A guard for the hand-over: goes back to the last good policy where what is learned online earns too little.

For systems that are real. Its yardstick is the evaluation of the greedy policy at online step 0: the mean return m
and the standard deviation d of its episodes, for every seed. What it measures is what the system received: the
returns of `guard_episodes` training episodes that followed each other, a window. With M = max(|m|, d), so that a
start near 0 is judged by its own spread, a window's mean is

    good                 from  m - guard_warning M  on: the state in which the window began is the last good one
    a warning            below that
    the way back         below m - guard_bound M: all that the seed learned is again as in the last good state, at
                         first that of the hand-over; what the replay holds stays

Where nothing was learned since the last good state, there is nothing to go back from: such a window only warns.
Training episodes hold exploration noise and earn less than greedy ones, and the mean of few episodes is noisy: the
shares have to leave room for both. Warnings in the warm-up, when the policy is the offline one still, say that they
do not.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from segue.core.phases import Phase
from segue.core.types import PyTree
from segue.errors import UserError
from segue.settings import option


@dataclass(frozen=True)
class Guard:
    """Settings of the guard."""

    guard: bool = False  # go back to the last good policy where online returns fall [ours: off, a run may explore]
    guard_warning: float = 0.1  # warn this share of the start's return below it [ours: the fall that users ask about]
    guard_bound: float = 0.3  # go back this share of the start's return below it [ours: thrice the warning's]
    guard_episodes: int = 5  # training episodes that are measured together [ours: one alone says little]
    guard_continue: bool = False  # learn on after going back, tighter (o2sac, o2td3) [ours: off, what fell may again]


@runtime_checkable
class Tightens(Protocol):
    """An algorithm that a constraint holds near a reference policy."""

    def tightened(self, s: Any) -> Any:
        """The state `s` of one seed with a tighter constraint."""


def check_guard(guard: Guard, phase: Phase) -> None:
    """Refuse, before anything compiles, what the guard cannot do in `phase`."""
    if not guard.guard:
        idle = [field.name for field in fields(guard) if getattr(guard, field.name) != field.default]
        if idle:
            raise UserError(f"{option(idle[0])} does nothing without the guard: add --guard")
        return
    if guard.guard_bound < guard.guard_warning:
        raise UserError(
            f"--guard-bound {guard.guard_bound}: give at least --guard-warning's share, {guard.guard_warning}"
        )
    if phase.online is None:
        return
    name = f"phase '{phase.name}' ({type(phase.algorithm).__name__})"
    if phase.online.random_warmup and phase.online.warmup_steps:
        raise UserError(
            f"{name} begins with random actions, which are no policy's to be guarded: leave --guard out, or add "
            "--no-random-warmup"
        )
    if guard.guard_continue and not isinstance(phase.algorithm, Tightens):
        raise UserError(f"{name} has no constraint to tighten: leave --guard-continue out, or choose o2sac or o2td3")


class Lines(NamedTuple):
    """What a seed's online returns are held against."""

    start: float  # mean return of the evaluation at step 0
    warning: float  # below it a window is not good
    bound: float  # below it the seed goes back

    @classmethod
    def of(cls, returns: np.ndarray, guard: Guard) -> Lines:
        """From the `returns` [episodes] of the evaluation at step 0."""
        start = float(np.mean(returns))
        unit = max(abs(start), float(np.std(returns)))
        return cls(start, start - guard.guard_warning * unit, start - guard.guard_bound * unit)


class Watch:
    """What the guard remembers of an online phase, for every seed by itself; part of every checkpoint."""

    def __init__(self, guard: Guard, algorithm: Any, state: PyTree, seeds: tuple[int, ...]):
        """`state` has leaves [seeds, ...], as everywhere here."""
        self.guard, self.algorithm, self.seeds = guard, algorithm, seeds
        self.lines: list[Lines] = []  # none before `begin`
        self.windows: list[list[float]] = [[] for _ in seeds]  # returns of the window under way
        self.held = np.zeros(len(seeds), bool)  # went back, and act on without learning
        self.candidate_step = [0 for _ in seeds]  # when the window under way began
        self.good_step = [0 for _ in seeds]
        self.candidate, self.good = _copied(state), _copied(state)

    def begin(self, returns: list[np.ndarray], state: PyTree) -> None:
        """At step 0, when each seed's greedy policy has earned `returns` [episodes]."""
        self.lines = [Lines.of(of_seed, self.guard) for of_seed in returns]
        self.candidate, self.good = _copied(state), _copied(state)

    @property
    def mask(self) -> np.ndarray | None:
        """Who acts without learning [seeds]; None while nobody does, which costs nothing."""
        return self.held if self.held.any() else None

    def episode(self, k: int, episode_return: float, step: int, state: PyTree) -> tuple[PyTree, list[dict[str, Any]]]:
        """Training episode of seed number `k` that ended with environment step `step`, before the step's updates.

        Returns the state to go on with and what happened, as lines for the log (one at most, for their order by step).
        """
        self.windows[k].append(episode_return)
        if len(self.windows[k]) < self.guard.guard_episodes:
            return state, []
        mean, self.windows[k] = float(np.mean(self.windows[k])), []
        lines = self.lines[k]
        if mean >= lines.warning:
            _put(self.good, k, _row(self.candidate, k))
            self.good_step[k] = self.candidate_step[k]
        learned = not self.held[k] and int(state.updates[k]) > int(self.good.updates[k])
        fell = learned and not mean >= lines.bound  # a return that is no number is a fall
        if fell:
            state = self._back(k, state)
        _put(self.candidate, k, _row(state, k))
        self.candidate_step[k] = self.good_step[k] if fell else step
        if mean >= lines.warning:
            return state, []
        event = {"kind": "guard", "step": step, "seed": self.seeds[k], "event": "warning", "return_mean": mean}
        event |= {"start_return": lines.start, "bound": lines.bound}
        if fell:
            event |= {"event": "held" if self.held[k] else "restored", "good_step": self.good_step[k]}
        return state, [event]

    def _back(self, k: int, state: PyTree) -> PyTree:
        """`state` with seed number `k` in its last good state, but for the count of updates, which all seeds share."""
        if self.guard.guard_continue:  # kept tightened: a second fall from there tightens it further
            _put(self.good, k, self.algorithm.tightened(jax.tree.map(jnp.array, _row(self.good, k))))
        else:
            self.held[k] = True
        rows = _copied(state)
        _put(rows, k, _row(self.good, k))
        rows = replace(rows, updates=np.array(state.updates))
        _put(self.good, k, _row(rows, k))
        restored: PyTree = jax.tree.map(jnp.array, rows)
        return restored

    def tree(self) -> PyTree:
        """The arrays of a checkpoint."""
        return {"good": self.good, "candidate": self.candidate}

    def host_state(self) -> dict[str, Any]:
        """What a checkpoint needs beside them, as JSON."""
        return {
            "lines": self.lines,
            "windows": self.windows,
            "held": self.held.tolist(),
            "candidate_step": self.candidate_step,
            "good_step": self.good_step,
        }

    def restore(self, tree: PyTree, host: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.good, self.candidate = _copied(tree["good"]), _copied(tree["candidate"])
        self.lines = [Lines(*of_seed) for of_seed in host["lines"]]
        self.windows, self.held = host["windows"], np.asarray(host["held"])
        self.candidate_step, self.good_step = host["candidate_step"], host["good_step"]


def told(event: dict[str, Any], guard: Guard) -> str:
    """An event of the guard as a line for a person."""
    ends = {
        "warning": "warning",
        "restored": "back to the last good policy (step {good_step:,}), learning on with a tighter constraint",
        "held": "back to the last good policy (step {good_step:,}), which acts on without learning",
    }
    text = (
        "{phase}, step {step:,}, seed {seed}: guard: the latest {episodes} episodes returned {return_mean:.1f} on "
        "average, the start {start_return:.1f}, the bound is {bound:.1f}: "
    )
    return (text + ends[event["event"]]).format(episodes=guard.guard_episodes, **event)


def _copied(state: PyTree) -> PyTree:
    """On the host, where the state's donation to the next call does not reach it."""
    return jax.tree.map(np.array, state)


def _row(state: PyTree, k: int) -> PyTree:
    return jax.tree.map(lambda x: np.asarray(x)[k], state)


def _put(state: PyTree, k: int, row: PyTree) -> None:
    """Write `row` over seed number `k` of a state on the host."""
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(row), strict=True):
        x[k] = y
