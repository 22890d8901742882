"""The presets of O2SAC, O2TD3 and O2PPO hold the effective configurations of the paper's datasets.

`ocr_cft_presets.json` has the facts of the specification's ocr_cft_hparams.yaml: method -> {"common", "datasets"}.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segue.recipes import METHODS, preset_recipe
from segue.settings import flat

FACTS: dict[str, Any] = json.loads((Path(__file__).parent / "ocr_cft_presets.json").read_text())
SETTING = {
    "reevaluation_steps": "reevaluation_updates",
    "alignment_steps": "alignment_updates",
    "update_start_after_steps": "warmup_steps",
    "updates_per_step": "updates_per_step",
    "batch_size": "batch_size",
    "offline_data_use": "replay",
    "part_best_trajectories": "part_trajectories",
    "discount": "discount",
    "target_polyak_rate": "target_update_rate",
    "target_update_period": "target_update_interval",
    "actor_learning_rate": "actor_learning_rate",
    "critic_learning_rate": "critic_learning_rate",
    "entropy_temperature_initial": "initial_temperature",
    "entropy_temperature_learning_rate": "temperature_learning_rate",
    "critic_layer_norm": "critic_layer_norm",
    "divergence_threshold_start": "threshold_start",
    "divergence_threshold_end": "threshold_end",
    "divergence_threshold_ramp_steps": "threshold_ramp_steps",
    "lagrange_multiplier_initial": "initial_multiplier",
    "lagrange_multiplier_learning_rate": "multiplier_learning_rate",
    "lagrange_asymmetry": "violation_weight",
    "reference_policy": "reference",
    "reward_scale": "reward_scale",
    "reward_bias": "reward_bias",
    "policy_delay": "policy_update_interval",
    "target_policy_noise_std": "target_noise_std",
    "target_policy_noise_clip": "target_noise_clip",
    "exploration_noise_std": "exploration_noise",
    "alignment_distance_weight_k": "distance_weight",
    "rollout_steps": "batch_size",
    "minibatch_size": "minibatch_size",
    "epochs": "epochs",
    "gae_lambda": "gae_lambda",
    "clip_epsilon": "ratio_clip",
    "entropy_coefficient": "entropy_coefficient",
    "auxiliary_weight": "auxiliary_weight",
    "auxiliary_weight_decay_steps": "auxiliary_decay_steps",
    "initial_std_cap": "initial_std_cap",
}
# Facts about the protocol, constants of the method (golden vectors hold them), or said by another setting below.
ELSEWHERE = {
    "offline_algorithm", "alignment_log_interval_steps", "interaction_steps", "evaluation_interval_steps",
    "evaluation_episodes", "replay_capacity", "entropy_temperature_automatic", "entropy_temperature_multiplier",
    "target_entropy", "actor_hidden_layers", "critic_hidden_layers", "hidden_width", "layer_norm_epsilon",
    "twin_critics", "log_std_multiplier_initial", "log_std_offset_initial", "log_std_min", "log_std_max",
    "action_clip_margin", "log_prob_floor", "divergence", "nominal_kl_threshold", "normalize_states",
    "state_std_epsilon", "transform_rewards", "fixed_interval_variant", "high_utd_variant", "clip_value_loss",
    "linear_lr_decay", "adam_epsilon", "gradient_clip_norm", "normalize_advantage", "use_auxiliary_advantage",
    "critic_hidden_width", "critic_activation", "slow_policy_copy", "slow_policy_copy_rate",
    "normalize_reward_running", "reward_scaling", "reward_multiplier", "shuffle_offline_buffer", "value_fit",
    "auxiliary_softplus_offset",
}  # fmt: skip
ONE_VALUE = {("o2td3", "alignment_distance_weight_k"), ("o2ppo", "critic_layer_norm")}  # no option; looked at below
EVERY = [(method, name) for method in FACTS for name in FACTS[method]["datasets"]]


def effective(method: str, name: str) -> dict[str, Any]:
    common, own = FACTS[method]["common"], FACTS[method]["datasets"][name]
    variant = common["fixed_interval_variant"] | own.get("fixed_interval_variant", {})
    return common | own | {"fixed_interval_variant": variant}


def settings(method: str, name: str) -> dict[str, Any]:
    return dict(flat(preset_recipe(method, name)))


@pytest.mark.parametrize("method", FACTS)
def test_every_dataset_of_the_paper_has_a_preset_and_every_fact_is_looked_at(method: str) -> None:
    names = set(FACTS[method]["datasets"])
    assert set(METHODS[method].presets) == names | {f"{name}-fixed-interval" for name in names}
    facts = set(FACTS[method]["common"]) | {key for entry in FACTS[method]["datasets"].values() for key in entry}
    assert facts <= set(SETTING) | ELSEWHERE


@pytest.mark.parametrize("method, name", EVERY)
def test_preset_equals_the_configuration(method: str, name: str) -> None:
    want, have = effective(method, name), settings(method, name)
    for fact in SETTING.keys() & want.keys():
        setting = "value_learning_rate" if (method, fact) == ("o2ppo", "critic_learning_rate") else SETTING[fact]
        if setting in have:
            assert have[setting] == want[fact], fact
        else:
            assert (method, fact) in ONE_VALUE, fact
    recipe: Any = preset_recipe(method, name)
    if method == "o2ppo":
        assert have["value_hidden_sizes"] == (want["critic_hidden_width"],) * want["critic_hidden_layers"]
        assert have["reevaluation_updates"] == want["value_fit"]["steps"]
        assert have["scale_rewards_by_running_return"] == (want["reward_scaling"] == "running_return_std")
        assert not want["critic_layer_norm"]  # which its value does not have
        (fit,) = recipe.handover_phases("gaussian")
        assert fit.algorithm.batch_size == want["value_fit"]["batch_size"]
        assert fit.algorithm.learning_rate == want["value_fit"]["learning_rate"]
        online = recipe.online_phase(1)
    else:
        width = want["hidden_width"]
        assert have["critic_hidden_sizes"] == (width,) * want["critic_hidden_layers"]
        evaluation, alignment = recipe.handover_phases(recipe.algorithm.policy_kind)
        online = recipe.online_phase(1)
        for phase in (evaluation, alignment):
            assert phase.algorithm.critic_hidden_sizes == online.algorithm.critic_hidden_sizes
            assert phase.algorithm.critic_layer_norm == want["critic_layer_norm"]
        if method == "o2td3":
            assert alignment.algorithm.distance_weight == want["alignment_distance_weight_k"]
            for phase in (evaluation, alignment):
                assert phase.algorithm.target_noise_std == want["target_policy_noise_std"]
        if method == "o2sac":
            assert have["num_critics"] == evaluation.algorithm.num_critics == 1 + want["twin_critics"]
            for phase in (evaluation, alignment):
                assert phase.algorithm.initial_temperature == want["entropy_temperature_initial"]
    if "antmaze" not in name:  # where the paper evaluates every 5,000 steps
        assert online.evaluation_interval == want["evaluation_interval_steps"]


@pytest.mark.parametrize("method, name", EVERY)
def test_the_variant_without_evaluations(method: str, name: str) -> None:
    want, have = effective(method, name), settings(method, f"{name}-fixed-interval")
    plain, variant = settings(method, name), want["fixed_interval_variant"]
    assert have["reference"] == "fixed_interval"
    if method != "o2ppo" or variant["reference_update_interval_steps"] != 2_500:
        assert have["reference_interval"] == variant["reference_update_interval_steps"]
    if method != "o2ppo":
        assert have["threshold_end"] == variant["divergence_threshold_end"]
        assert have["actor_gradient_clip"] == variant["actor_gradient_clip_norm"]
    changed = {key for key in have if have[key] != plain[key]}
    assert changed <= {"reference", "reference_interval", "threshold_end", "actor_gradient_clip"}
