"""The bridge to Gymnasium: flat float32 observations, actions in [-1, 1], restorable simulator state."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from segue.data.environments import make_environment
from segue.errors import UserError

EnvironmentMaker = str | Callable[[], gym.Env]
GOAL_KEYS = ("observation", "desired_goal")  # "achieved_goal" repeats a part of "observation"


def make_gym_environment(maker: EnvironmentMaker, kwargs: dict[str, Any] | None = None) -> gym.Env:
    """A Gymnasium environment from an id or a function of no arguments.

    Raises UserError if the id is unknown or the environment cannot be built.
    """
    return maker() if callable(maker) else make_environment(maker, **(kwargs or {}))


def flatten(observation: Any) -> np.ndarray:
    """A Box or goal-Dict observation as one float32 vector [S]."""
    if isinstance(observation, dict):
        keys = GOAL_KEYS if all(key in observation for key in GOAL_KEYS) else sorted(observation)
        return np.concatenate([np.ravel(observation[key]) for key in keys]).astype(np.float32)
    return np.ravel(observation).astype(np.float32)


def observation_dim_of(space: gym.Space) -> int:
    """Length of the flattened observation. Raises UserError for a space that is not Box or Dict of Box."""
    if isinstance(space, gym.spaces.Dict):
        keys = GOAL_KEYS if all(key in space.spaces for key in GOAL_KEYS) else sorted(space.spaces)
        return sum(observation_dim_of(space.spaces[key]) for key in keys)
    if isinstance(space, gym.spaces.Box):
        return int(np.prod(space.shape))
    raise UserError(f"observation space {space}: only Box, and Dict of Box, are supported")


class Environment:
    """One environment of one seed, as the learning core sees it."""

    def __init__(self, maker: EnvironmentMaker, kwargs: dict[str, Any] | None = None):
        self.gym = make_gym_environment(maker, kwargs)
        space = self.gym.action_space
        if not isinstance(space, gym.spaces.Box):
            raise UserError(f"action space {space}: only Box actions are supported")
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise UserError(f"action space {space}: actions need finite bounds (wrap it in gymnasium's RescaleAction)")
        self.observation_dim = observation_dim_of(self.gym.observation_space)
        self.action_shape, self.action_dtype = space.shape, space.dtype
        self.action_dim = int(np.prod(space.shape))
        self.action_low = space.low.ravel().astype(np.float64)
        self.action_high = space.high.ravel().astype(np.float64)
        self.id = self.gym.spec.id if self.gym.spec is not None else type(self.gym.unwrapped).__name__
        self.max_episode_steps = self.gym.spec.max_episode_steps if self.gym.spec is not None else None

    def reset(self, seed: int | None = None) -> np.ndarray:
        """The first observation [S] of a new episode; `seed` restarts the environment's own random numbers."""
        return flatten(self.gym.reset(seed=seed)[0])

    def to_bounds(self, action: np.ndarray) -> np.ndarray:
        """[-1, 1] -> the environment's own units, clipped to its bounds; [..., A]."""
        fraction = (np.clip(action, -1, 1) + 1) / 2
        return self.action_low + fraction * (self.action_high - self.action_low)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """Act with `action [A]` in [-1, 1]; observation [S], raw reward, terminated, truncated."""
        native = self.to_bounds(action).astype(self.action_dtype).reshape(self.action_shape)
        observation, reward, terminated, truncated, _ = self.gym.step(native)
        return flatten(observation), float(reward), bool(terminated), bool(truncated)

    def snapshot(self) -> dict[str, Any] | None:
        """Everything that decides the environment's future, or None where it cannot be read (no MuJoCo)."""
        base = self.gym.unwrapped
        if not (hasattr(base, "model") and hasattr(base, "data")):
            return None
        import mujoco

        size = mujoco.mj_stateSize(base.model, mujoco.mjtState.mjSTATE_INTEGRATION)
        physics = np.empty(size, np.float64)
        mujoco.mj_getState(base.model, base.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        return {
            "physics": physics.tolist(),
            "random": json.dumps(base.np_random.bit_generator.state, default=int),
            "elapsed": [w._elapsed_steps for w in self._layers() if hasattr(w, "_elapsed_steps")],
            "goal": base.goal.tolist() if hasattr(base, "goal") and isinstance(base.goal, np.ndarray) else None,
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from `snapshot`, which another process may have taken of the same environment."""
        import mujoco

        self.gym.reset()
        base = self.gym.unwrapped
        state = mujoco.mjtState.mjSTATE_INTEGRATION
        mujoco.mj_setState(base.model, base.data, np.asarray(snapshot["physics"]), state)
        mujoco.mj_forward(base.model, base.data)
        mujoco.mj_setState(base.model, base.data, np.asarray(snapshot["physics"]), state)  # forward moved the warm start
        base.np_random.bit_generator.state = json.loads(snapshot["random"])
        layers = [w for w in self._layers() if hasattr(w, "_elapsed_steps")]
        for layer, elapsed in zip(layers, snapshot["elapsed"], strict=True):
            layer._elapsed_steps = elapsed
        if snapshot["goal"] is not None:
            base.goal = np.asarray(snapshot["goal"])

    def _layers(self) -> list[gym.Env]:
        layers, env = [], self.gym
        while isinstance(env, gym.Wrapper):
            layers.append(env)
            env = env.env
        return layers

    def close(self) -> None:
        """Release the environment."""
        self.gym.close()
