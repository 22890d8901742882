"""The online loop on the host: environments step, the device stores, learns and acts. One environment a seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue.core.learn import Keys, Past, Program, Turn, act, act_first, online_turn, policy_flags
from segue.core.phases import Online
from segue.core.replay import fill_in, store
from segue.core.sampling import Sampling
from segue.core.types import Batch, Metrics, PyTree
from segue.environment import Environment
from segue.episode_returns import EpisodeReturns, ReturnRule
from segue.guard import Watch
from segue.preparation import Preparation
from segue.reward_scaling import RunningReturn


class OnlineLoop:
    """State of one online phase; `advance` takes environment steps. All arrays carry a leading seed axis."""

    def __init__(
        self,
        program: Program,
        schedule: Online,
        environments: list[Environment],
        preparation: Preparation,
        state: PyTree,
        rows: Batch,
        columns: dict[str, jax.Array],
        offline: Batch | None,
        keys: Keys,
        seeds: tuple[int, ...],
        new_row_extras: Callable[[int], dict[str, np.ndarray]] = lambda step: {},
        return_rule: ReturnRule | None = None,
        watch: Watch | None = None,
        running_return: RunningReturn | None = None,
        priorities: Sampling | None = None,
    ):
        self.program, self.schedule, self.environments, self.preparation = program, schedule, environments, preparation
        self.state, self.rows, self.columns, self.offline, self.keys = state, rows, columns, offline, keys
        self.seeds, self.new_row_extras = seeds, new_row_extras
        self.priorities = priorities
        self.env_step = 0
        self.updates = int(state.updates[0])  # goes on from earlier phases of the same algorithm
        self.obs = np.zeros((len(seeds), program.spec.observation_dim), np.float32)  # raw
        self.prepared = self.preparation.observation(self.obs)  # as the networks see it
        self.action = np.zeros((len(seeds), program.spec.action_dim), np.float32)
        self.episode_return = np.zeros(len(seeds))
        self.episode_length = np.zeros(len(seeds), np.int64)
        self.returns = EpisodeReturns(return_rule, len(seeds)) if return_rule else None
        self.scaling = [replace(running_return) for _ in seeds] if running_return else []
        self.watch = watch
        self.contexts: PyTree = None  # what acting remembers of each seed's episode, leaves [seeds, ...], if anything
        self.ended: list[int] = []  # seeds whose episode the latest step ended
        self.host_seconds = 0.0  # environment, storing, logging: everything but the device's work

    def begin(self) -> None:
        """Reset every environment with its seed and choose the first actions."""
        self.obs = np.stack([env.reset(seed) for env, seed in zip(self.environments, self.seeds, strict=True)])
        self.prepared = self.preparation.observation(self.obs)
        self.action, self.contexts = self._first_action()

    def _first_action(self) -> tuple[np.ndarray, PyTree]:
        """Where every environment begins an episode, and the contexts after that."""
        if self._random(self.env_step):
            return self._random_action(self.env_step), None
        step = jnp.int32(self.env_step)
        if self.program.algorithm.context(self.program.spec) is None:
            return np.asarray(act(self.program.algorithm, True, self.state, self.prepared, self.keys.act, step)), None
        action, contexts = act_first(self.program, self.state, self.prepared, self.keys.act, step)
        return np.array(action), contexts

    def _random(self, step: int) -> bool:
        return self.schedule.random_warmup and step < self.schedule.warmup_steps

    def _random_action(self, step: int) -> np.ndarray:
        draws = [np.random.default_rng([seed, step]).uniform(-1, 1, self.action.shape[1]) for seed in self.seeds]
        return np.stack(draws).astype(np.float32)

    def _updates_due(self) -> int:
        """Updates to make after environment step `env_step` (from 1): the ratio's whole part so far, less made."""
        learned = self.env_step - self.schedule.warmup_steps
        ratio = self.schedule.updates_per_step
        return int(learned * ratio + 1e-9) - int((learned - 1) * ratio + 1e-9) if learned > 0 else 0

    def advance(self, stop: Callable[[], bool], until: int) -> tuple[list[Metrics], list[dict[str, Any]]]:
        """Take environment steps until number `until`, `stop()`, or an action that is no number.

        Returns the metrics of the policy steps, and the episodes that ended with what the guard then did.
        """
        metrics: list[Metrics] = []
        episodes: list[dict[str, Any]] = []
        interval = self.program.algorithm.policy_update_interval
        while self.env_step < until and not stop() and np.isfinite(self.action).all():
            clock = time.perf_counter()
            row = self._interact(episodes)
            self.env_step += 1
            held = self._guard(self.watch, episodes) if self.watch else None
            updates_due = 0 if held is not None and held.all() else self._updates_due()
            flags = policy_flags(interval, self.updates, updates_due)
            capacity = self.rows.reward.shape[1]
            filled = self.schedule.ring_start + self.env_step
            slot = (filled - 1) % capacity
            self.rows = store(self.rows, row, slot)
            if self.returns:
                self._note_returns(self.returns, np.asarray(row.reward), slot)
            turn: dict[str, Any] = {
                "obs": self.prepared,
                "size": np.int32(min(filled, capacity)),
                "slot": np.int32(slot),
                "env_step": np.int32(self.env_step),
                "updates": np.int32(self.updates),
                "held": held,
            }
            self.host_seconds += time.perf_counter() - clock
            if self.contexts is not None:
                begins = np.isin(np.arange(len(self.seeds)), self.ended)
                past: dict[str, Any] = {"context": self.contexts, "reward": np.asarray(row.reward), "begins": begins}
                turn["past"] = Past(**past)
            self.state, self.priorities, action, self.contexts, info = online_turn(
                self.program, flags, self.state, self.priorities, self.rows, self.columns, self.keys, Turn(**turn),
                self.offline,
            )  # fmt: skip
            self.updates += len(flags)
            self.action = self._random_action(self.env_step) if self._random(self.env_step) else np.asarray(action)
            if flags and flags[-1]:
                metrics.append(info)
        return metrics, episodes

    def _guard(self, watch: Watch, episodes: list[dict[str, Any]]) -> np.ndarray | None:
        """Show the guard the episodes that the latest step ended, and add what it did; who acts without learning."""
        for k, episode in zip(self.ended, episodes[len(episodes) - len(self.ended) :], strict=True):
            self.state, events = watch.episode(k, episode["return"], self.env_step, self.state)
            episodes += events
        return watch.mask

    def _note_returns(self, returns: EpisodeReturns, rewards: np.ndarray, slot: int) -> None:
        """An episode's returns-to-go are filled in when it has ended."""
        returns.add(rewards, slot)
        for k in self.ended:
            self.rows = fill_in(self.rows, "return_to_go", k, *returns.close(k))

    def _interact(self, episodes: list[dict[str, Any]]) -> Batch:
        """Step every environment with the action chosen for it, move on to where to act next; the rows to store.

        An observation is prepared once: as the next one of this row, then as the first one of the next row.
        """
        before, time_step = self.prepared, self.episode_length.copy()
        action = np.clip(self.action, -1, 1)  # what is executed is what is stored
        reward, terminal = np.empty(len(self.seeds), np.float32), np.empty(len(self.seeds), np.float32)
        self.ended = []
        self.obs = np.empty_like(self.obs)
        for k, env in enumerate(self.environments):
            self.obs[k], raw, terminated, truncated = env.step(action[k])
            prepared = float(self.preparation.reward(raw))
            reward[k] = self.scaling[k].scaled(prepared) if self.scaling else prepared
            # A step that hits the time limit bootstraps even if the environment ended there too (../spec/ssar.md 2.9).
            terminal[k] = terminated and not truncated
            self.episode_return[k] += raw
            self.episode_length[k] += 1
            if terminated or truncated:
                self.ended.append(k)
        after = self.prepared = self.preparation.observation(self.obs)
        for k in self.ended:  # same-step reset: no row mixes two episodes
            episode = {"step": self.env_step + 1, "seed": self.seeds[k], "return": float(self.episode_return[k])}
            episodes.append(episode | {"length": int(self.episode_length[k])})
            self.episode_return[k], self.episode_length[k] = 0.0, 0
            self.obs[k] = self.environments[k].reset()
            if self.scaling:
                self.scaling[k].restart()
        if self.ended:
            self.prepared = self.preparation.observation(self.obs)
        row: dict[str, Any] = {"obs": before, "action": action, "reward": reward, "next_obs": after}
        extras = self.new_row_extras(self.env_step)
        if "last" in extras:
            extras = extras | {"last": np.isin(np.arange(len(self.seeds)), self.ended).astype(np.float32)}
        if "time_step" in extras:
            extras = extras | {"time_step": time_step}
        row |= {"terminal": terminal, "extras": extras}
        return Batch(**row)

    def host_state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the arrays on the device."""
        return {
            "env_step": self.env_step,
            "obs": self.obs.tolist(),
            "action": self.action.tolist(),
            "episode_return": self.episode_return.tolist(),
            "episode_length": self.episode_length.tolist(),
            "environments": [env.snapshot() for env in self.environments],
            "returns": self.returns.as_dict() if self.returns else None,
            "guard": self.watch.host_state() if self.watch else None,
            "scaling": [one.as_dict() for one in self.scaling],
            "contexts": [np.asarray(x).tolist() for x in jax.tree.leaves(self.contexts)],
        }

    def restore(self, host: dict[str, Any]) -> None:
        """Go on from `host_state`; an environment whose state could not be saved starts a new episode."""
        self.env_step = host["env_step"]
        self.obs = np.asarray(host["obs"], np.float32)
        self.action = np.asarray(host["action"], np.float32)
        self.episode_return = np.asarray(host["episode_return"])
        self.episode_length = np.asarray(host["episode_length"])
        self.updates = int(self.state.updates[0])
        if self.returns:
            self.returns.restore(host["returns"])
        if self.scaling:
            self.scaling = [RunningReturn(**one) for one in host["scaling"]]
        leaves, structure = jax.tree.flatten(self.program.algorithm.context(self.program.spec))
        saved = host.get("contexts", [])  # runs of the first version had none
        contexts = [jnp.asarray(x, like.dtype) for x, like in zip(saved, leaves, strict=True)]
        self.contexts = jax.tree.unflatten(structure, contexts)
        for k, (env, snapshot) in enumerate(zip(self.environments, host["environments"], strict=True)):
            if snapshot is not None:
                env.restore(snapshot)
                continue
            seed = int(np.random.SeedSequence([self.seeds[k], self.env_step]).generate_state(1)[0])
            self.obs[k] = env.reset(seed)
            self.episode_return[k], self.episode_length[k] = 0.0, 0
            if self.returns:
                self.returns.forget(k)
            if self.scaling:
                self.scaling[k].restart()
            self.prepared = self.preparation.observation(self.obs)
            action, contexts = self._first_action()
            self.action[k] = action[k]
            self.contexts = jax.tree.map(lambda x, new, k=k: x.at[k].set(new[k]), self.contexts, contexts)
        self.prepared = self.preparation.observation(self.obs)
