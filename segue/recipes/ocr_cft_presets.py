"""Settings of O2SAC, O2TD3 and O2PPO for each dataset of the paper (../spec/ocr_cft_hparams.yaml).

NAME-fixed-interval is the variant whose reference is a snapshot now and then, where evaluation is not possible.
"""

from __future__ import annotations

from typing import Any

from segue.recipes.datasets import ANTMAZE, LOCOMOTION

Settings = dict[str, Any]
EXPERT = ("halfcheetah-expert-v2", "hopper-expert-v2", "walker2d-expert-v2")
NARROW = (*(name for name in LOCOMOTION if "expert" in name), *EXPERT)  # data of one good policy
SNAPSHOTS: Settings = {"reference": "fixed_interval"}
SLOW_SNAPSHOTS: Settings = SNAPSHOTS | {"reference_interval": 10_000}


def _with_fixed_interval(presets: dict[str, Settings], wide: float, slow: tuple[str, ...]) -> dict[str, Settings]:
    """The variants beside `presets`: the threshold ends at a quarter of its value (D25), `wide` where none is named."""
    variants = {}
    for name, settings in presets.items():
        variant = settings | SNAPSHOTS | {"threshold_end": settings.get("threshold_end", wide) / 4}
        if name in slow:
            variant |= SLOW_SNAPSHOTS | {"actor_gradient_clip": 0.25}
        if name in ANTMAZE:
            variant |= {"reference_interval": 5_000}
        variants[f"{name}-fixed-interval"] = variant
    return presets | variants


def _o2sac(name: str) -> Settings:
    if name in NARROW:
        return {"initial_temperature": 0.5, "threshold_start": 0.005, "threshold_end": 0.125}
    if name not in ANTMAZE:
        return {}
    maze: Settings = {
        "alignment_updates": 1_000_000,
        "warmup_steps": 5_000,
        "critic_hidden_sizes": (256,) * 5,
        "num_critics": 1,
        "reward_scale": 10.0,
        "reward_bias": -5.0,
    }
    return maze if "umaze" in name else maze | {"initial_temperature": 0.5, "initial_multiplier": 2.0}


def _o2td3(name: str) -> Settings:
    if name in NARROW:
        return {"exploration_noise": 0.05, "threshold_start": 2.5e-5, "threshold_end": 6.25e-4}
    if name not in ANTMAZE:
        return {}
    return {"alignment_updates": 1_000_000, "critic_layer_norm": False, "reward_bias": -1.0}


def _o2ppo(name: str) -> Settings:
    settings: Settings = {"scale_rewards_by_running_return": True} if name.startswith("halfcheetah") else {}
    if name in NARROW:
        settings |= {"auxiliary_decay_steps": 500_000}
    if name in NARROW and name.startswith("hopper"):
        settings |= {"epochs": 5, "initial_std_cap": 0.05}
    return settings


HOPPER_NARROW = tuple(name for name in NARROW if name.startswith("hopper"))
O2SAC_PRESETS = _with_fixed_interval({name: _o2sac(name) for name in LOCOMOTION + EXPERT + ANTMAZE}, 2.0, HOPPER_NARROW)
UMAZE = tuple(name for name in ANTMAZE if "umaze" in name)  # TD3+BC fails on the larger mazes
O2TD3_PRESETS = _with_fixed_interval(
    {name: _o2td3(name) for name in LOCOMOTION + EXPERT + UMAZE}, 0.04, (*HOPPER_NARROW, "walker2d-expert-v2")
)
O2PPO_PRESETS = {name: _o2ppo(name) for name in LOCOMOTION + EXPERT + ANTMAZE}
O2PPO_PRESETS |= {
    f"{name}-fixed-interval": settings | (SLOW_SNAPSHOTS if name in HOPPER_NARROW else SNAPSHOTS)
    for name, settings in O2PPO_PRESETS.items()
}
