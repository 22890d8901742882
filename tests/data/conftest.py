"""Small datasets and policy snapshots that the data tests share."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

Columns = dict[str, Any]


@pytest.fixture
def columns() -> Columns:
    """12 rows in three episodes (5 terminated, 4 truncated, 3 truncated), with true successors."""
    rng = np.random.default_rng(0)
    lengths = (5, 4, 3)
    states = [rng.normal(size=(length + 1, 3)).astype(np.float32) for length in lengths]
    ends = np.cumsum(lengths) - 1
    terminated, truncated = np.zeros(12, bool), np.zeros(12, bool)
    terminated[ends[0]] = True
    truncated[ends[1:]] = True
    return {
        "observations": np.concatenate([s[:-1] for s in states]),
        "actions": rng.uniform(-1, 1, (12, 2)).astype(np.float32),
        "rewards": rng.normal(size=12).astype(np.float32),
        "next_observations": np.concatenate([s[1:] for s in states]),
        "terminated": terminated,
        "truncated": truncated,
    }


@pytest.fixture
def snapshots(tmp_path: Path) -> Path:
    """A folder of tiny untrained Hopper policies in the shipped format."""
    folder = tmp_path / "snapshots" / "hopper"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    sizes = (11, 8, 8, 6)
    for step in (1, 2, 3):
        tensors = {}
        for i in range(3):
            tensors[f"layers_{i}/kernel"] = rng.normal(size=sizes[i : i + 2]).astype(np.float32) * 0.3
            tensors[f"layers_{i}/bias"] = np.full(sizes[i + 1], 0.1 * step, np.float32)
        metadata = {"environment_id": "Hopper-v5", "log_std_min": "-5", "log_std_max": "2", "step": str(step)}
        save_file(tensors, folder / f"step_{step}.safetensors", {**metadata, "return_mean": "0.0"})
    record = {
        "task": "hopper",
        "environment_id": "Hopper-v5",
        "reference_scores": [20.0, 3000.0],
        "medium": "step_2.safetensors",
        "expert": "step_3.safetensors",
        "medium_replay": ["step_1.safetensors", "step_2.safetensors"],
    }
    (folder / "provenance.json").write_text(json.dumps(record))
    return folder.parent
