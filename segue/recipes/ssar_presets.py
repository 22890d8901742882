"""The SSAR paper's settings for its 18 datasets (../spec/ssar_hparams.yaml, td3_bc_sa): defaults, then overrides."""

from __future__ import annotations

from typing import Any

ANTMAZE: dict[str, Any] = {"selection": "success", "reward_bias": -1.0, "replay": "all"}
HARD_ANTMAZE: dict[str, Any] = ANTMAZE | {"n_start": 5.0, "n_end": 5.0, "anneal_steps": None}
BY_IQL: dict[str, Any] = {"selection": "iql_advantage", "iql_expectile": 0.7, "mask_regularizer": True}

SSAR_TD3_BC: dict[str, dict[str, Any]] = {
    "halfcheetah-medium-v2": {"mask_regularizer": True, "return_threshold": 5200.0},
    "halfcheetah-medium-replay-v2": BY_IQL,
    "halfcheetah-medium-expert-v2": BY_IQL | {"n_end": 1.5, "mask_regularizer": False},
    "halfcheetah-expert-v2": {"n_end": 1.5, "mask_regularizer": True, "return_threshold": 10500.0},
    "hopper-medium-v2": {"mask_regularizer": True, "return_threshold": 1800.0},
    "hopper-medium-replay-v2": BY_IQL,
    "hopper-medium-expert-v2": BY_IQL | {"n_end": 1.5, "iql_expectile": 0.5},
    "hopper-expert-v2": {"n_end": 1.5, "mask_regularizer": True, "return_threshold": 3500.0},
    "walker2d-medium-v2": {"mask_regularizer": True, "return_threshold": 2500.0},
    "walker2d-medium-replay-v2": BY_IQL,
    "walker2d-medium-expert-v2": BY_IQL | {"n_end": 1.5},
    "walker2d-expert-v2": {"n_end": 1.5, "mask_regularizer": True, "return_threshold": 4500.0},
    "antmaze-umaze-v2": ANTMAZE | {"n_end": 5.0},
    "antmaze-umaze-diverse-v2": ANTMAZE,
    "antmaze-medium-play-v2": HARD_ANTMAZE | {"policy_update_interval_online": 30},
    "antmaze-medium-diverse-v2": HARD_ANTMAZE | {"policy_update_interval_online": 20},
    "antmaze-large-play-v2": HARD_ANTMAZE | {"policy_update_interval_online": 100},
    "antmaze-large-diverse-v2": HARD_ANTMAZE | {"policy_update_interval_online": 100},
}
OFFLINE_UPDATES = {name: 2_000_000 if name.startswith("antmaze") else 1_000_000 for name in SSAR_TD3_BC}
