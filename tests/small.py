"""A tiny task, dataset and settings, and the command as a process, for tests of whole runs."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from segue.data import Dataset
from segue.data.convert import convert

ENVIRONMENT = "InvertedPendulum-v5"
NETWORKS: dict[str, Any] = {"hidden_sizes": (16, 16), "batch_size": 32}
SSAR: dict[str, Any] = NETWORKS | {"coefficient_hidden_sizes": (16, 16, 16), "return_quantile": 0.7}


@cache
def pendulum_data(rows: int = 600) -> Dataset:
    """Uniformly random actions on InvertedPendulum."""
    env = gym.make(ENVIRONMENT)
    rng = np.random.default_rng(0)
    obs = env.reset(seed=0)[0]
    steps: list[tuple[Any, ...]] = []
    for i in range(rows):
        action = rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32)  # type: ignore[attr-defined]
        next_obs, reward, terminated, truncated, _ = env.step(action)
        truncated = truncated or (i == rows - 1 and not terminated)
        steps.append((obs, action, reward, terminated, truncated, next_obs))
        obs = env.reset()[0] if terminated or truncated else next_obs
    env.close()
    columns = [np.asarray(column) for column in zip(*steps, strict=True)]
    return Dataset.from_arrays(
        *columns,
        action_low=[-3],
        action_high=[3],
        environment_id=ENVIRONMENT,
        reference_scores=(5.0, 1000.0),
        max_episode_steps=1000,
    )


def write_pendulum_data(folder: Path, environment: bool = True) -> Path:
    """The dataset as a plain file, with or without the name of its environment."""
    data = pendulum_data()
    path = folder / "pendulum.npz"
    convert(data, path)
    if not environment:
        with np.load(path) as file:
            columns = dict(file)
        metadata = json.loads(str(columns["segue"]))
        columns["segue"] = np.array(json.dumps(metadata | {"environment_id": None}))
        np.savez(path, **columns)
    return path


def options(settings: dict[str, Any]) -> list[str]:
    """Settings as words of a command line."""
    words: list[str] = []
    for name, value in settings.items():
        words.append("--" + name.replace("_", "-"))
        words += map(str, value) if isinstance(value, tuple) else [str(value)]
    return words


@cache
def process_environment() -> dict[str, str]:
    """Programs that one process compiled are read by the next: half a test's time would go into compiling."""
    folder = tempfile.mkdtemp(prefix="segue-test-programs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def start(*words: str | Path, module: str = "segue.cli.main") -> subprocess.Popen[str]:
    """`segue WORDS` as a process under way."""
    command = [sys.executable, "-m", module, *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=process_environment())


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for the process and check its exit code; its standard error."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, f"exit code {process.returncode}: {errors}"
    return errors


def assert_same_lines(a: Path, b: Path) -> None:
    """The runs logged the same, but for the last bits of means: their sums are cut into calls as time allows."""
    assert len(lines(a)) == len(lines(b))
    for of_a, of_b in zip(lines(a), lines(b), strict=True):
        assert of_a.keys() == of_b.keys()
        for name, value in of_a.items():
            want = pytest.approx(value, rel=1e-5, abs=1e-6) if isinstance(value, float) else value
            if isinstance(value, list) and isinstance(value[0], float):
                want = pytest.approx(value, rel=1e-5, abs=1e-6)
            assert of_b[name] == want, (name, of_a["step"])


def lines(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """`metrics.jsonl` without wall times; a last line that is not whole is left out."""
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    found = [json.loads(line) for line in text.split("\n")[:-1]]
    return [{k: v for k, v in one.items() if k != "wall_time_s"} for one in found if kind in (None, one["kind"])]
