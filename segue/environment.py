"""The bridge to Gymnasium: flat float32 observations, actions in [-1, 1], restorable simulator state."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import (
    ClipAction,
    DtypeObservation,
    FilterObservation,
    FlattenObservation,
    OrderEnforcing,
    PassiveEnvChecker,
    RescaleAction,
    TimeLimit,
    TransformAction,
    TransformObservation,
    TransformReward,
)

from segue.data.environments import make_environment
from segue.errors import UserError

EnvironmentMaker = str | Callable[[], gym.Env]
GOAL_KEYS = ("observation", "desired_goal")  # "achieved_goal" repeats a part of "observation"
STATELESS_WRAPPERS = (
    ClipAction,
    DtypeObservation,
    FilterObservation,
    FlattenObservation,
    OrderEnforcing,
    PassiveEnvChecker,
    RescaleAction,
    TimeLimit,  # but for its count, which a snapshot holds
    TransformAction,
    TransformObservation,
    TransformReward,
)
# What MuJoCo computes on the way and environments read before the next step, when it is a substep old.
DERIVED_BY_PHYSICS = (
    "xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "subtree_com",
    "cinert", "cvel", "cfrc_ext", "qacc", "qfrc_actuator", "actuator_force", "sensordata",
)  # fmt: skip
MOVED_BY_RESETS = ("body_pos", "body_quat", "site_pos")  # of the model: goals and obstacles of manipulation tasks


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
        """Everything that decides the environment's future, or None where it cannot be read.

        It can for MuJoCo environments, the mazes' nested ones too, under wrappers that keep no state of their own.
        """
        wrappers, base = self._layers()
        model, data = getattr(base, "model", None), getattr(base, "data", None)
        if model is None or data is None or not all(type(layer) in STATELESS_WRAPPERS for layer in wrappers):
            return None
        import mujoco

        if not isinstance(data, mujoco.MjData):
            return None
        physics = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION), np.float64)
        mujoco.mj_getState(model, data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        return {
            "physics": physics.tolist(),
            "derived": {name: getattr(data, name).tolist() for name in DERIVED_BY_PHYSICS},
            "model": {name: getattr(model, name).tolist() for name in MOVED_BY_RESETS},
            "random": [json.dumps(part.np_random.bit_generator.state, default=int) for part in _parts(base)],
            "fields": [_plain_fields(part) for part in _parts(base)],
            "elapsed": [layer._elapsed_steps for layer in wrappers if isinstance(layer, TimeLimit)],
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from `snapshot`, which another process may have taken of the same environment."""
        import mujoco

        self.gym.reset()
        wrappers, base = self._layers()
        model, data = base.model, base.data  # type: ignore[attr-defined]
        for name, values in snapshot["model"].items():
            getattr(model, name)[:] = np.asarray(values).reshape(getattr(model, name).shape)
        physics, kind = np.asarray(snapshot["physics"]), mujoco.mjtState.mjSTATE_INTEGRATION
        mujoco.mj_setState(model, data, physics, kind)
        mujoco.mj_forward(model, data)
        mujoco.mj_setState(model, data, physics, kind)  # forward moved the warm start
        for name, values in snapshot["derived"].items():  # of the substep before: some rewards read them as they are
            getattr(data, name)[:] = np.asarray(values).reshape(getattr(data, name).shape)
        for part, state, fields in zip(_parts(base), snapshot["random"], snapshot["fields"], strict=True):
            part.np_random.bit_generator.state = json.loads(state)
            for name, value in fields.items():
                setattr(part, name, np.asarray(value) if isinstance(value, list) else value)
        limits = [layer for layer in wrappers if isinstance(layer, TimeLimit)]
        for limit, elapsed in zip(limits, snapshot["elapsed"], strict=True):
            limit._elapsed_steps = elapsed

    def _layers(self) -> tuple[list[gym.Wrapper], gym.Env]:
        """The wrappers from the outside in, and what they wrap."""
        wrappers, env = [], self.gym
        while isinstance(env, gym.Wrapper):
            wrappers.append(env)
            env = env.env
        return wrappers, env

    def close(self) -> None:
        """Release the environment."""
        self.gym.close()


def _parts(base: gym.Env) -> list[gym.Env]:
    """An environment and those nested in it, each with random numbers of its own."""
    return [base, *(value for value in vars(base).values() if isinstance(value, gym.Env))]


def _plain_fields(env: gym.Env) -> dict[str, Any]:
    """Numbers and arrays among its attributes, such as the goal of an episode, as JSON."""
    fields = {}
    for name, value in vars(env).items():
        if isinstance(value, bool | int | float) or (isinstance(value, np.ndarray) and value.dtype == np.float64):
            fields[name] = value.tolist() if isinstance(value, np.ndarray) else value
    return fields
