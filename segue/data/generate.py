"""Rolling a behaviour out in real environments to make a dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_ENVIRONMENTS = 32  # beyond this the policy's forward pass is no longer what costs
STEPS_PER_ENVIRONMENT = 10_000  # each environment makes at least so many, so that unfinished episodes waste little
PROGRESS_EVERY = 2_000  # rows between two calls of the progress callback

# (observations [E, S] float32, generator) -> actions [E, A] float32 in the environment's units
Behaviour = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Task:
    """An environment to roll out in."""

    make: Callable[[], Any]  # a bare Gymnasium environment, without wrappers
    flatten: Callable[[Any], np.ndarray]  # its observation as a vector [S]
    max_episode_steps: int


@dataclass(frozen=True)
class _Episode:
    """Rows [start, end) of one environment's log."""

    start: int
    environment: int
    end: int
    terminated: bool


def collect(
    task: Task,
    behaviour: Behaviour,
    transitions: int,
    seed: tuple[int, ...],
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, np.ndarray]:
    """Exactly `transitions` rows in columns, the same for the same arguments.

    Episodes come in the order in which they began, whole but for the last one, so their lengths and returns are those
    of the behaviour. Environments run in lockstep, one policy call for all; each is reset as soon as its episode ends.
    """
    count = min(max(transitions // STEPS_PER_ENVIRONMENT, 1), MAX_ENVIRONMENTS)
    environments = [task.make() for _ in range(count)]
    try:
        log, episodes = _run(environments, task, behaviour, transitions, seed, progress)
    finally:
        for environment in environments:
            environment.close()
    return _assemble(log, episodes, transitions)


def _run(
    environments: list[Any],
    task: Task,
    behaviour: Behaviour,
    transitions: int,
    seed: tuple[int, ...],
    progress: Callable[[int], None],
) -> tuple[dict[str, np.ndarray], list[_Episode]]:
    """Logs [E, T, ...] and the episodes in them; T is one time limit longer than the rows need."""
    count, limit = len(environments), task.max_episode_steps
    seeds = np.random.SeedSequence(seed).generate_state(count + 1)
    rng = np.random.default_rng(seeds[-1])
    observations = np.stack(
        [task.flatten(env.reset(seed=int(s))[0]) for env, s in zip(environments, seeds[:-1], strict=True)]
    ).astype(np.float32)
    actions = behaviour(observations, np.random.default_rng(0))  # only for its shape
    capacity = -(-transitions // count) + limit
    log = {
        "observations": np.zeros((count, capacity, observations.shape[1]), np.float32),
        "next_observations": np.zeros((count, capacity, observations.shape[1]), np.float32),
        "actions": np.zeros((count, capacity, actions.shape[1]), np.float32),
        "rewards": np.zeros((count, capacity), np.float32),
    }
    next_log, reward_log = log["next_observations"], log["rewards"]
    flatten = task.flatten
    starts = [0] * count
    running = list(range(count))
    episodes: list[_Episode] = []
    step = reported = 0
    while running:
        # An episode that begins once the wanted number of rows is logged would lie beyond them.
        enough = (step + 1) * count >= transitions
        actions = behaviour(observations, rng)
        log["observations"][:, step] = observations
        log["actions"][:, step] = actions
        still_running = []
        for e in running:
            environment = environments[e]
            raw, reward, terminated, _, _ = environment.step(actions[e])
            observations[e] = next_log[e, step] = flatten(raw)
            reward_log[e, step] = reward
            if terminated or step + 1 - starts[e] == limit:
                episodes.append(_Episode(starts[e], e, step + 1, bool(terminated)))
                if enough:
                    continue
                starts[e] = step + 1
                observations[e] = flatten(environment.reset()[0])
            still_running.append(e)
        running = still_running
        step += 1
        if step * count - reported >= PROGRESS_EVERY and step * count < transitions:
            reported = step * count
            progress(reported)
    return log, sorted(episodes, key=lambda episode: (episode.start, episode.environment))


def _assemble(log: dict[str, np.ndarray], episodes: list[_Episode], transitions: int) -> dict[str, np.ndarray]:
    """The first `transitions` rows of the episodes, one after the other."""
    columns = {name: np.empty((transitions, *column.shape[2:]), np.float32) for name, column in log.items()}
    terminated = np.zeros(transitions, bool)
    truncated = np.zeros(transitions, bool)
    row = 0
    for episode in episodes:
        length = min(episode.end - episode.start, transitions - row)
        if length == 0:
            break
        for name, column in log.items():
            columns[name][row : row + length] = column[episode.environment, episode.start : episode.start + length]
        row += length
        whole = length == episode.end - episode.start
        terminated[row - 1] = whole and episode.terminated
        truncated[row - 1] = not terminated[row - 1]
    return {**columns, "terminated": terminated, "truncated": truncated}
