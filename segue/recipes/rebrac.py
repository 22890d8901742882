"""ReBRAC (Tarasov et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from segue.core.phases import Phase
from segue.methods.rebrac import ReBRAC
from segue.recipes.base import Recipe

# All numbers below are from memory of the paper's appendix, and to be checked against it; of AntMaze's the learning
# rates and the scale of the rewards are the least sure.
ANTMAZE: dict[str, Any] = {
    "batch_size": 256,
    "discount": 0.999,
    "actor_learning_rate": 3e-4,
    "critic_learning_rate": 3e-4,
    "reward_scale": 100.0,
}
PENALTIES = {  # (beta_1, beta_2) of each dataset
    "halfcheetah-random-v2": (0.001, 0.1),
    "halfcheetah-medium-v2": (0.001, 0.01),
    "halfcheetah-medium-replay-v2": (0.01, 0.001),
    "halfcheetah-medium-expert-v2": (0.01, 0.1),
    "halfcheetah-expert-v2": (0.01, 0.01),
    "hopper-random-v2": (0.001, 0.01),
    "hopper-medium-v2": (0.01, 0.001),
    "hopper-medium-replay-v2": (0.05, 0.5),
    "hopper-medium-expert-v2": (0.1, 0.01),
    "hopper-expert-v2": (0.1, 0.001),
    "walker2d-random-v2": (0.01, 0.0),
    "walker2d-medium-v2": (0.05, 0.1),
    "walker2d-medium-replay-v2": (0.05, 0.01),
    "walker2d-medium-expert-v2": (0.01, 0.01),
    "walker2d-expert-v2": (0.01, 0.5),
    "antmaze-umaze-v2": (0.003, 0.002),
    "antmaze-umaze-diverse-v2": (0.003, 0.001),
    "antmaze-medium-play-v2": (0.001, 0.0005),
    "antmaze-medium-diverse-v2": (0.001, 0.0),
    "antmaze-large-play-v2": (0.002, 0.001),
    "antmaze-large-diverse-v2": (0.002, 0.002),
}
PRESETS = {
    name: {"actor_penalty": actor, "critic_penalty": critic} | (ANTMAZE if name.startswith("antmaze") else {})
    for name, (actor, critic) in PENALTIES.items()
}


@dataclass(frozen=True, kw_only=True)
class ReBRACRecipe(Recipe):
    """ReBRAC."""

    summary: ClassVar[str] = "TD3+BC with separate cloning penalties in policy and values, deeper and normalised"
    choose_when: ClassVar[str] = "where TD3+BC is too weak and two strengths can be tuned; several times its price"
    paper: ClassVar[str] = "Tarasov et al. 2023, arXiv:2305.09836"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    algorithm: ReBRAC = ReBRAC()

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """One phase."""
        return (Phase("offline", self.algorithm, updates),)

    def online_phase(self, env_steps: int) -> Phase:
        """The same losses on the growing data."""
        schedule = self.schedule(env_steps)
        return Phase("online", self.algorithm, online=schedule)
