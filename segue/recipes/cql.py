"""CQL and Cal-QL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from segue.core.phases import Phase, ReplayStart
from segue.methods.cql import CQL
from segue.recipes.base import Recipe
from segue.recipes.datasets import ANTMAZE

# Not the paper's: about a tenth of its arithmetic, for work on a CPU.
FAST: dict[str, Any] = {
    "num_sampled_actions": 4,
    "hidden_sizes": (256, 256),
    "critic_hidden_sizes": (128, 128),
    "actor_learning_rate": 1e-4,
}
SPARSE: dict[str, Any] = {
    "conservative_weight": 5.0,
    "critic_hidden_sizes": (256,) * 5,
    "actor_learning_rate": 1e-4,
    "lagrange": True,
    "max_target_backup": True,
    "gap_clip_min": -200.0,
    "normalize_observations": False,
    "reward_scale": 10.0,
    "reward_bias": -5.0,
}
CQL_PRESETS: dict[str, dict[str, Any]] = {"fast": FAST} | {name: SPARSE for name in ANTMAZE}
CAL_QL_PRESETS: dict[str, dict[str, Any]] = {"fast": FAST} | {
    name: SPARSE | {"return_to_go_failure_reward": -5.0} for name in ANTMAZE
}


@dataclass(frozen=True, kw_only=True)
class CQLRecipe(Recipe):
    """CQL."""

    summary: ClassVar[str] = "SAC whose critics are pushed down on actions that the data do not show"
    choose_when: ClassVar[str] = "on mixed data and sparse rewards; far dearer than TD3+BC, --preset fast on a CPU"
    paper: ClassVar[str] = "Kumar et al. 2020, arXiv:2006.04779"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = CQL_PRESETS

    algorithm: CQL = CQL()
    normalize_observations: bool = True  # (s - mean) / (std + 0.001) of the dataset [baselines.md 3; off on AntMaze]
    conservative_weight_online: float = 5.0  # the conservative term stays on [baselines.md 3, online]
    warmup_steps: int = 0  # online steps that only act and store [CORL learns from the first on]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """One phase."""
        return (Phase("offline", self.algorithm, updates),)

    def online_phase(self, env_steps: int) -> Phase:
        """The same losses on the growing data."""
        algorithm = replace(self.algorithm, conservative_weight=self.conservative_weight_online)
        schedule = self.schedule(env_steps)
        return Phase("online", algorithm, online=schedule)


@dataclass(frozen=True, kw_only=True)
class CalQLRecipe(Recipe):
    """Cal-QL."""

    summary: ClassVar[str] = "CQL whose push stops at the data's returns, so that Q goes online at the right scale"
    choose_when: ClassVar[str] = "instead of CQL when the policy will be fine-tuned; --preset fast on a CPU"
    paper: ClassVar[str] = "Nakamoto et al. 2023, arXiv:2303.05479"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = CAL_QL_PRESETS

    algorithm: CQL = CQL(calibrate=True, initialization="finetune", critic_hidden_sizes=(256, 256))
    normalize_observations: bool = True  # (s - mean) / (std + 0.001) of the dataset [ours on MuJoCo, baselines.md 4]
    conservative_weight_online: float = 5.0  # the conservative term stays on [baselines.md 4]
    warmup_steps: int = 0  # online steps that only act and store [CORL learns from the first on]
    replay: ReplayStart = "half"  # online batches: half of the data's, half of the new [baselines.md 4]
    online_calibration: bool = True  # with the true returns of finished episodes [authors' program, baselines.md 4]
    return_to_go_failure_reward: float | None = None  # an episode that ends with it fails for ever [-5 on AntMaze]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """One phase."""
        return (Phase("offline", self.algorithm, updates, failure_reward=self.return_to_go_failure_reward),)

    def online_phase(self, env_steps: int) -> Phase:
        """The same losses on half and half; without online calibration as CORL does it."""
        weight = self.conservative_weight_online
        algorithm = replace(self.algorithm, conservative_weight=weight, calibrate=self.online_calibration)
        schedule = self.schedule(env_steps)
        return Phase("online", algorithm, online=schedule, failure_reward=self.return_to_go_failure_reward)
