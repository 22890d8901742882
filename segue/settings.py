"""Settings as plain data and back: what `config.json` holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from segue.core.coefficient import Coefficient
from segue.core.weighting import Weighting
from segue.errors import UserError

SOCKETS: dict[str, type] = {"coefficient": Coefficient, "weighting": Weighting}
# What values make sense: names of settings, the test, and its words.
RULES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        ("batch_size", "policy_update_interval", "policy_update_interval_online", "iql_steps", "part_trajectories",
         "n_num_increments", "threshold_update_interval", "anneal_steps", "eval_interval", "online_eval_interval",
         "eval_episodes", "result_episodes", "log_interval", "guard_episodes",
         "num_sampled_actions", "target_update_interval", "cosine_updates",
         "baseline_updates", "alignment_fall_updates", "pretraining_updates", "learning_rate_warmup_updates",
         "context_length", "acting_context_length", "width", "num_layers", "num_heads",
         "cooling_steps", "density_samples", "vae_steps", "num_critics", "threshold_ramp_steps",
         "ensemble_size", "ratio_batch_size",
         "target_critics", "critic_minibatches",
         "minibatch_size", "epochs", "learning_rate_decay_steps", "auxiliary_decay_steps", "reference_interval",
         "proximal_horizon", "offline_rows", "behaviour_check_interval", "behaviour_patience", "behaviour_batch_size"),
        lambda x: x >= 1,
        "at least 1",
    ),
    (
        ("hidden_sizes", "critic_hidden_sizes", "second_critic_hidden_sizes", "coefficient_hidden_sizes",
         "vae_hidden_sizes", "balance_hidden_sizes", "ratio_hidden_sizes", "value_hidden_sizes",
         "behaviour_hidden_sizes"),
        lambda x: len(x) > 0 and min(x) >= 1,
        "widths of at least 1",
    ),
    (("discount", "discount_online", "actor_dropout"), lambda x: 0 <= x < 1, "from 0 to below 1"),
    (
        ("target_update_rate", "top_fraction", "action_limit", "ratio_clip", "online_share_of_all"),
        lambda x: 0 < x <= 1,
        "above 0 and up to 1",
    ),
    (("log_std_min",), lambda x: x < 2, "below 2, the largest log-std"),
    (
        ("return_quantile", "support_weight_floor", "gae_lambda", "proximal_decay", "reference_update_rate",
         "online_share"),
        lambda x: 0 <= x <= 1,
        "from 0 to 1",
    ),
    (
        ("expectile", "iql_expectile", "violation_weight", "initial_online_share"),
        lambda x: 0 < x < 1,
        "between 0 and 1",
    ),
    (
        ("alpha", "conservative_temperature", "temperature_multiplier",
         "actor_learning_rate", "critic_learning_rate", "temperature_learning_rate", "initial_temperature",
         "balance_temperature_learning_rate",
         "temperature", "priority_temperature", "priority_min", "priority_max", "ratio_learning_rate",
         "offline_actor_learning_rate",
         "value_learning_rate", "inverse_temperature", "advantage_temperature", "advantage_weight_max",
         "initial_multiplier", "threshold_start", "threshold_end", "actor_gradient_clip", "distance_weight",
         "value_weight", "baseline_learning_rate", "density_floor_deviations",
         "return_scale", "exploration_return_factor",
         "reward_scale", "vae_learning_rate", "vae_kl_weight", "actor_last_bound", "critic_last_bound",
         "gradient_clip_norm", "selection_inverse_temperature", "initial_std_cap", "value_clip",
         "value_temperature", "gumbel_clip", "weight_scale", "divergence_scale", "behaviour_learning_rate"),
        lambda x: x > 0,
        "above 0",
    ),
    (
        ("conservative_weight", "conservative_weight_online", "cloning_weight", "cloning_warmup_updates",
         "clone_updates", "reevaluation_updates", "alignment_updates", "multiplier_learning_rate",
         "warmup_steps", "updates_per_step", "target_noise_std", "target_noise_clip", "exploration_noise",
         "online_action_noise", "coefficient_learning_rate", "n_start", "n_end", "checkpoint_seconds",
         "alignment_weight", "alignment_weight_floor", "weight_decay",
         "support_weight", "online_action_noise_clip", "actor_penalty", "critic_penalty",
         "entropy_coefficient", "auxiliary_weight", "guard_warning", "guard_bound",
         "proximal_weight", "exploration_noise_clip", "ring_start",
         "behaviour_updates", "priority_exponent", "importance_exponent"),
        lambda x: x >= 0,
        "not below 0",
    ),
)  # fmt: skip


def check_values(settings: dict[str, Any]) -> None:
    """Raise UserError for the first value of (name, value) `settings` that makes no sense; None means off."""
    for name, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{option(name)} {value}: give a finite number")
        for names, test, words in RULES:
            if name in names and value is not None and not test(value):
                shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
                raise UserError(f"{option(name)} {shown}: give {words}")
    if settings.get("batch_size", 0) % settings.get("critic_minibatches", 1):
        parts = settings["critic_minibatches"]
        raise UserError(f"--batch-size {settings['batch_size']}: give a multiple of --critic-minibatches, {parts}")


def option(name: str) -> str:
    """How a setting is written on the command line."""
    return "--" + name.replace("_", "-")


def as_dict(settings: Any) -> dict[str, Any]:
    """A nested dataclass of settings as nested plain values; sockets that a recipe fills itself are left out."""
    result: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_socket(field.name, value):
            continue
        result[field.name] = as_dict(value) if is_dataclass(value) else value
    return result


def is_socket(name: str, value: Any) -> bool:
    """Fields that are parts of an algorithm rather than numbers that a user sets."""
    kind = SOCKETS.get(name)
    return kind is not None and (value is None or isinstance(value, kind))


def from_dict(default: Any, values: dict[str, Any]) -> Any:
    """`default` with the `values` of `as_dict`. Raises UserError for a name that it does not have."""
    names = {field.name for field in fields(default)}
    changes = {}
    for name, value in values.items():
        if name not in names:
            raise UserError(f"setting '{name}' is unknown to {type(default).__name__}; it is of another version")
        current = getattr(default, name)
        if is_dataclass(current):
            changes[name] = from_dict(current, value)
        else:
            changes[name] = tuple(value) if isinstance(value, list) else value
    return replace(default, **changes)


def flat(settings: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of every setting, groups opened."""
    for name, value in as_dict(settings).items():
        if isinstance(value, dict):
            yield from flat(getattr(settings, name))
        else:
            yield name, value


def with_changes(settings: Any, changes: dict[str, Any]) -> Any:
    """`settings` with flat `changes`, in whichever group a name lives. Raises UserError for an unknown name."""
    known = dict(flat(settings))
    unknown = [name for name in changes if name not in known]
    if unknown:
        from difflib import get_close_matches

        near = get_close_matches(unknown[0], known, n=3) or sorted(known)
        raise UserError(f"setting '{unknown[0]}' is unknown; did you mean {', '.join(near)}?")

    def apply(group: Any) -> Any:
        own = {}
        for field in fields(group):
            value = getattr(group, field.name)
            if is_dataclass(value) and not is_socket(field.name, value):
                own[field.name] = apply(value)
            elif field.name in changes:
                own[field.name] = changes[field.name]
        return replace(group, **own)

    return apply(settings)
