"""The presets hold the SSAR paper's settings, value by value (tests/ssar_presets.json: facts of its configuration)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segue.errors import UserError
from segue.methods.ssar import BETA_MAX_FACTOR, GRADIENT_CLIP, OUTPUT_BIAS
from segue.recipes import preset_recipe
from segue.recipes.ssar import SSARRecipe
from segue.recipes.ssar_presets import OFFLINE_UPDATES, SSAR_TD3_BC

FACTS: dict[str, Any] = json.loads((Path(__file__).parent / "ssar_presets.json").read_text())
# The configuration's name -> where the recipe keeps it.
HOST = {
    "batch_size": "batch_size",
    "discount": "discount",
    "exploration_noise": "exploration_noise",
    "policy_update_interval_offline": "policy_update_interval",
    "online_action_noise": "online_action_noise",
    "target_update_rate": "target_update_rate",
    "target_policy_noise": "target_noise_std",
    "target_noise_clip": "target_noise_clip",
    "actor_learning_rate": "actor_learning_rate",
    "critic_learning_rate": "critic_learning_rate",
    "actor_hidden_sizes": "hidden_sizes",
    "critic_hidden_sizes": "hidden_sizes",
    "critic_layer_norm": "critic_layer_norm",
}
ADAPTIVE = {
    "beta_hidden_sizes": "coefficient_hidden_sizes",
    "beta_learning_rate": "coefficient_learning_rate",
    "n_start": "n_start",
    "n_end": "n_end",
    "n_num_increments": "n_num_increments",
    "threshold_update_interval": "threshold_update_interval",
    "mask_coefficient_loss": "mask_coefficient_loss",
    "mask_regularizer": "mask_regularizer",
}
OWN = {
    "normalize_states": "normalize_observations",
    "reward_scale": "reward_scale",
    "reward_bias": "reward_bias",
    "selection": "selection",
    "return_threshold": "return_threshold",
    "iql_steps": "iql_steps",
    "buffer_init": "replay",
    "part_num_trajectories": "part_trajectories",
    "beta_anneal_steps": "anneal_steps",
    "policy_update_interval_online": "policy_update_interval_online",
    "online_warmup_steps": "warmup_steps",
}
FIXED = {"beta_max_factor": BETA_MAX_FACTOR, "beta_output_bias": OUTPUT_BIAS, "beta_grad_clip_norm": GRADIENT_CLIP}
SELECTOR = {
    "iql_batch_size": "batch_size",
    "iql_learning_rate": "value_learning_rate",
    "iql_discount": "discount",
    "iql_target_update_rate": "target_update_rate",
    "iql_hidden_sizes": "hidden_sizes",
}
# Facts about the protocol, or said by another setting: see the tests below.
ELSEWHERE = {
    "offline_steps", "online_steps", "eval_interval_steps", "eval_episodes", "num_seeds_stated_in_paper",
    "replay_capacity", "state_std_epsilon", "dataset_action_clip", "beta_init", "coef_sq_error_clip", "iql_expectile",
    "beta_anneal",
}  # fmt: skip


def effective(name: str) -> dict[str, Any]:
    return FACTS["common"] | FACTS["datasets"][name]


def same(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def test_every_dataset_of_the_paper_has_a_preset() -> None:
    assert len(SSAR_TD3_BC) == 18
    assert set(SSAR_TD3_BC) == set(FACTS["datasets"])


def test_every_fact_is_looked_at() -> None:
    looked_at = set(HOST) | set(ADAPTIVE) | set(OWN) | set(FIXED) | set(SELECTOR) | ELSEWHERE
    assert looked_at == set(FACTS["common"]) | {key for entry in FACTS["datasets"].values() for key in entry}


@pytest.mark.parametrize("name", sorted(FACTS["datasets"]))
def test_preset_equals_the_configuration(name: str) -> None:
    recipe, want = preset_recipe("td3_bc_ssar", name), effective(name)
    for names, part in ((HOST, recipe.host), (ADAPTIVE, recipe.adaptive), (OWN, recipe)):
        for fact, setting in names.items():
            assert getattr(part, setting) == same(want[fact]), fact
    for fact, constant in FIXED.items():
        assert constant == want[fact], fact
    assert 1 / recipe.host.alpha == pytest.approx(want["beta_init"])
    assert OFFLINE_UPDATES[name] == want["offline_steps"]
    assert (recipe.anneal_steps is None) == (want["beta_anneal"] == "none")
    if want["selection"] == "iql_advantage":
        assert recipe.iql_expectile == want["iql_expectile"]
        selector, main = recipe.offline_phases(OFFLINE_UPDATES[name])
        assert selector.updates == want["iql_steps"]
        for fact, setting in SELECTOR.items():
            assert getattr(selector.algorithm, setting) == same(want[fact]), fact
    else:
        (main,) = recipe.offline_phases(OFFLINE_UPDATES[name])
    assert main.updates == want["offline_steps"]
    online = recipe.online_phase(want["online_steps"])
    assert online.online is not None
    assert online.online.env_steps == want["online_steps"]
    assert online.algorithm.policy_update_interval == want["policy_update_interval_online"]


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean hopper-medium-v2"):
        preset_recipe("td3_bc_ssar", "hopper-medum-v2")


def test_the_default_recipe_differs_from_a_preset_in_the_selection_only() -> None:
    default, preset = SSARRecipe(), preset_recipe("td3_bc_ssar", "hopper-medium-v2")
    assert default.host == preset.host
    assert default.return_threshold is None and preset.return_threshold == 1800.0
