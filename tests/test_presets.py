"""The presets hold the SSAR paper's settings, value by value (tests/ssar_presets.json: facts of its configuration)."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from segue.cli.main import main
from segue.errors import UserError
from segue.methods import cql
from segue.methods.ssar import BETA_MAX_FACTOR, GRADIENT_CLIP, OUTPUT_BIAS
from segue.nets.policies import LOG_STD_MAX, LOG_STD_MIN
from segue.recipes import METHODS, preset_recipe
from segue.recipes.ssar import SSARRecipe
from segue.recipes.ssar_presets import OFFLINE_UPDATES
from segue.settings import flat

FACTS: dict[str, Any] = json.loads((Path(__file__).parent / "ssar_presets.json").read_text())
# The configuration's name -> where the recipe keeps it.
BOTH_HOSTS = {
    "batch_size": "batch_size",
    "discount": "discount",
    "target_update_rate": "target_update_rate",
    "actor_learning_rate": "actor_learning_rate",
    "critic_learning_rate": "critic_learning_rate",
    "actor_hidden_sizes": "hidden_sizes",
    "critic_layer_norm": "critic_layer_norm",
}
HOST: dict[str, dict[str, str]] = {
    "td3_bc_ssar": BOTH_HOSTS
    | {
        "exploration_noise": "exploration_noise",
        "policy_update_interval_offline": "policy_update_interval",
        "online_action_noise": "online_action_noise",
        "target_policy_noise": "target_noise_std",
        "target_noise_clip": "target_noise_clip",
        "critic_hidden_sizes": "hidden_sizes",
    },
    "cql_ssar": BOTH_HOSTS
    | {
        "beta_init": "conservative_weight",
        "target_update_interval": "target_update_interval",
        "entropy_learning_rate": "actor_learning_rate",
        "auto_entropy": "automatic_temperature",
        "entropy_multiplier": "temperature_multiplier",
        "backup_entropy": "backup_entropy",
        "num_sampled_actions": "num_sampled_actions",
        "importance_sampling": "importance_sampling",
        "logsumexp_temperature": "conservative_temperature",
        "use_lagrange": "lagrange",
        "max_target_backup": "max_target_backup",
        "regularizer_diff_clip_min": "gap_clip_min",
        "regularizer_diff_clip_max": "gap_clip_max",
        "bc_warmstart_steps": "cloning_warmup_updates",
        "policy_bc_weight": "cloning_weight",
    },
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
FIXED = {
    "beta_max_factor": BETA_MAX_FACTOR,
    "beta_output_bias": OUTPUT_BIAS,
    "beta_grad_clip_norm": GRADIENT_CLIP,
    "threshold_action_clip": cql.THRESHOLD_ACTION_LIMIT,
    "threshold_width_cap_per_n": cql.THRESHOLD_WIDTH_PER_N,
    "log_prob_floor_n": cql.FLOOR_N,
    "policy_log_std_min": LOG_STD_MIN,
    "policy_log_std_max": LOG_STD_MAX,
}
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
    "beta_anneal", "target_entropy", "lagrange_gap", "critic_1_hidden_layers", "critic_2_hidden_layers",
    "critic_hidden_width",
}  # fmt: skip
# Of fresh networks: see test_golden_networks.py.
INITIAL = {
    "critic_orthogonal_init", "lagrange_init_log", "policy_log_std_multiplier_init", "policy_log_std_offset_init",
}  # fmt: skip


def effective(method: str, name: str) -> dict[str, Any]:
    return FACTS[method]["common"] | FACTS[method]["datasets"][name]


def same(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("method", FACTS)
def test_every_dataset_of_the_paper_has_a_preset(method: str) -> None:
    assert len(FACTS[method]["datasets"]) == 18
    assert set(METHODS[method].presets) - {"fast"} == set(FACTS[method]["datasets"])


@pytest.mark.parametrize("method", FACTS)
def test_every_fact_is_looked_at(method: str) -> None:
    looked_at = set(HOST[method]) | set(ADAPTIVE) | set(OWN) | set(FIXED) | set(SELECTOR) | ELSEWHERE | INITIAL
    facts = set(FACTS[method]["common"]) | {key for entry in FACTS[method]["datasets"].values() for key in entry}
    assert facts <= looked_at


@pytest.mark.parametrize("method, name", [(method, name) for method in FACTS for name in FACTS[method]["datasets"]])
def test_preset_equals_the_configuration(method: str, name: str) -> None:
    recipe: Any = preset_recipe(method, name)
    want = effective(method, name)
    for names, part in ((HOST[method], recipe.host), (ADAPTIVE, recipe.adaptive), (OWN, recipe)):
        for fact in names.keys() & want.keys():
            assert getattr(part, names[fact]) == same(want[fact]), fact
    for fact in FIXED.keys() & want.keys():
        assert FIXED[fact] == want[fact], fact
    assert OFFLINE_UPDATES[name] == want["offline_steps"]
    if want["selection"] == "iql_advantage":
        assert recipe.iql_expectile == want["iql_expectile"]
        selector, main = recipe.offline_phases(OFFLINE_UPDATES[name])
        assert selector.updates == want["iql_steps"]
        for fact, setting in SELECTOR.items():
            assert getattr(selector.algorithm, setting) == same(want[fact]), fact
    else:
        (main,) = recipe.offline_phases(OFFLINE_UPDATES[name])
    if want["selection"] == "success":  # the reward of a step that failed, 0, as it is stored
        assert main.selection.failure_reward == want["reward_bias"]
    assert main.updates == want["offline_steps"]
    online = recipe.online_phase(want["online_steps"])
    assert online.online is not None
    assert online.online.env_steps == want["online_steps"]
    assert (recipe.anneal_steps is None) == (want["beta_anneal"] == "none")
    assert want["beta_anneal"] in ("none", online.algorithm.coefficient.shape)
    if method == "td3_bc_ssar":
        assert 1 / recipe.host.alpha == pytest.approx(want["beta_init"])
        assert online.algorithm.policy_update_interval == want["policy_update_interval_online"]
        return
    assert 1 - recipe.action_limit == pytest.approx(want["dataset_action_clip"])
    assert want["target_entropy"] == "minus_action_dim" and main.algorithm.target_entropy_per_dimension == -1
    if want["use_lagrange"]:
        assert recipe.host.lagrange_gap == want["lagrange_gap"]
    depths = {"paper": (want["critic_1_hidden_layers"],) * 2}  # equal ones (ssar.md B23)
    depths["released"] = want["critic_1_hidden_layers"], want["critic_2_hidden_layers"]
    for profile, (first, second) in depths.items():
        algorithm = preset_with(method, name, profile).offline_phases(1)[-1].algorithm
        assert algorithm.critic_hidden_sizes == (want["critic_hidden_width"],) * first
        assert (algorithm.second_critic_hidden_sizes or algorithm.critic_hidden_sizes) == (256,) * second


def preset_with(method: str, name: str, profile: str) -> Any:
    return replace(preset_recipe(method, name), profile=profile)  # type: ignore[call-arg]


@pytest.mark.parametrize("method, settings", [("cql", "algorithm"), ("cal_ql", "algorithm"), ("cql_ssar", "host")])
def test_fast_is_less_work_and_joins_with_a_dataset(
    method: str, settings: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fast, paper, own = preset_recipe(method, "fast"), METHODS[method](), METHODS[method].presets["fast"]
    assert {key for key, value in flat(fast) if value != dict(flat(paper))[key]} <= set(own)
    name = "antmaze-umaze-v2"
    joined, full = preset_recipe(method, f"{name},fast"), preset_recipe(method, name)
    assert {key: value for key, value in flat(joined) if key in own} == own
    assert {key: value for key, value in flat(joined) if key not in own} == {
        key: value for key, value in flat(full) if key not in own
    }
    for one, other in ((fast, paper), (joined, full)):
        assert work(getattr(one, settings)) < work(getattr(other, settings)) / 5
    with pytest.raises(SystemExit):
        main(["train", method, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "'fast' is not a paper's: less work, for a CPU; NAME,fast joins both." in said


def work(algorithm: cql.CQL) -> int:
    """About the multiplications of the critics on one row."""
    sizes = (20, *algorithm.critic_hidden_sizes, 1)
    weights = sum(a * b for a, b in pairwise(sizes))
    return weights * (3 * algorithm.num_sampled_actions + 1)


def test_updates_are_the_datasets_in_whichever_order_presets_are_joined(capsys: pytest.CaptureFixture[str]) -> None:
    for preset in ("antmaze-umaze-v2,fast", "fast,antmaze-umaze-v2"):
        with pytest.raises(SystemExit):
            main(["train", "cql_ssar", "--preset", preset, "--help"])
        assert "2000000" in capsys.readouterr().out


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean hopper-medium-v2"):
        preset_recipe("td3_bc_ssar", "hopper-medum-v2")


def test_the_default_recipe_differs_from_a_preset_in_the_selection_only() -> None:
    default, preset = SSARRecipe(), preset_recipe("td3_bc_ssar", "hopper-medium-v2")
    assert isinstance(preset, SSARRecipe)
    assert default.host == preset.host
    assert default.return_threshold is None and preset.return_threshold == 1800.0
