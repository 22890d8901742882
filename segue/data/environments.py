"""Making the Gymnasium environments that data comes from or is checked against."""

from __future__ import annotations

import contextlib
import difflib
import io
from typing import Any

import numpy as np

from segue.data.errors import DataError
from segue.data.validate import action_bounds
from segue.errors import UserError


def make_environment(environment_id: str, **kwargs: Any) -> Any:
    """`gymnasium.make`, without its checker, with gymnasium-robotics' environments registered if it is installed.

    Raises `DataError` for an unknown id, with the nearest known ones, or when the environment cannot be made.
    """
    import gymnasium

    robotics = environment_id in gymnasium.registry or _register_robotics()
    try:
        return gymnasium.make(environment_id, disable_env_checker=True, **kwargs)
    except gymnasium.error.Error as error:
        if environment_id in gymnasium.registry:
            raise DataError(f"environment '{environment_id}' cannot be made: {_one_line(error)}") from None
        nearest = difflib.get_close_matches(environment_id, gymnasium.registry, n=3)
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else "; `gymnasium.pprint_registry()` lists them"
        extra = "" if robotics else ' (gymnasium-robotics is not installed: pip install "segue[robotics]")'
        raise DataError(f"unknown environment '{environment_id}'{hint}{extra}") from None
    except ImportError as error:
        raise DataError(f"environment '{environment_id}' needs a library that is missing: {_one_line(error)}") from None


def require_robotics() -> None:
    """Register gymnasium-robotics' environments; raise `UserError` if it is not installed."""
    if not _register_robotics():
        raise UserError('this dataset needs gymnasium-robotics; install it with: pip install "segue[robotics]"')


def known_bounds(environment_id: str | None) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Action bounds [A] of the environment the user named; (None, None) when none was named."""
    if environment_id is None:
        return None, None
    environment = make_environment(environment_id)
    try:
        return action_bounds(environment.action_space, environment_id)
    finally:
        environment.close()


def episode_limit(environment_id: str | None) -> int | None:
    """Time limit of a registered environment in steps, None if unknown."""
    if environment_id is None:
        return None
    import gymnasium

    if environment_id not in gymnasium.registry:
        _register_robotics()
    spec = gymnasium.registry.get(environment_id)
    return None if spec is None else spec.max_episode_steps


def _register_robotics() -> bool:
    try:
        # Its import prints notes about environments that nobody asked for, which would spoil machine-readable output.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            import gymnasium
            import gymnasium_robotics

            gymnasium.register_envs(gymnasium_robotics)
    except ImportError:
        return False
    return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
