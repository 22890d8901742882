"""Every offline method as a user runs it: offline, then online on its own, then handed over to another method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segue
from segue.experiment import load_models
from segue.recipes import METHODS
from segue.session import Evaluation
from segue.settings import flat
from tests.small import ENVIRONMENT, pendulum_data

SCARCE = Evaluation(eval_interval=1000, online_eval_interval=1000, eval_episodes=1, result_episodes=1, log_interval=10)
SMALL: dict[str, Any] = {
    "batch_size": 8,
    "hidden_sizes": (8,),
    "critic_hidden_sizes": (8,),
    "balance_hidden_sizes": (8,),
    "coefficient_hidden_sizes": (8,),
    "vae_hidden_sizes": (8,),
    "vae_steps": 10,
    "behaviour_updates": 12,
    "behaviour_check_interval": 4,
    "behaviour_hidden_sizes": (8,),
    "behaviour_batch_size": 64,
    "ensemble_size": 2,
    "ratio_hidden_sizes": (8,),
    "ratio_batch_size": 8,
    "num_sampled_actions": 2,
    "return_quantile": 0.7,
    "warmup_steps": 5,
    "ring_start": 10,
    "context_length": 4,
    "acting_context_length": 2,
    "width": 8,
    "num_layers": 1,
    "num_heads": 2,
    "pretraining_updates": 4,
}
OFFLINE = [name for name, recipe in METHODS.items() if recipe.needs_dataset]
# Who goes on with a policy of each form.
NEXT = {"deterministic": "td3", "tanh_gaussian": "sac", "gaussian": "awac", "sequence": "odt"}


def small(method: str) -> dict[str, Any]:
    """Those of SMALL that the method knows."""
    known = dict(flat(METHODS[method]()))
    return {name: value for name, value in SMALL.items() if name in known}


# Whole runs of these, too, are in tests of their own.
DEAR = ("off2on", "odt", "famo2o_iql", "famo2o_cql", "baq_cql", "proto_sac", "aca", "cql_ssar", "cal_ql", "rebrac",
        "pex", "proto_td3", "baq_iql", "spot", "cql", "td3_bc_ssar", "awac", "bc")  # fmt: skip


@pytest.mark.parametrize(
    "method", [pytest.param(method, marks=pytest.mark.slow) if method in DEAR else method for method in OFFLINE]
)
def test_offline_then_online_then_handed_over(method: str, tmp_path: Path) -> None:
    quietly: dict[str, Any] = {"environment": ENVIRONMENT, "evaluation": SCARCE, "quiet": True}
    own = segue.run(
        method, pendulum_data(), out=tmp_path / "own", steps=12, online_steps=20, settings=small(method), **quietly
    )
    kind = load_models(own.folder)[1].algorithm.policy_kind
    assert kind is not None
    successor = "iql" if method == "awac" else NEXT[kind]
    after = segue.finetune(
        own, out=tmp_path / "after", steps=20, method=successor, settings=small(successor), **quietly
    )
    for run in (own, after):
        phase = run.summary["phases"][-1]
        assert phase["kind"] == "online" and np.isfinite(phase["final"][0]["return_mean"])
        action = run.policy()(np.zeros(4, np.float32))
        assert action.shape == (1,) and -3 <= action[0] <= 3
