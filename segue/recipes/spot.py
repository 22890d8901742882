"""SPOT (../spec/baselines.md 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from segue.core.phases import Phase
from segue.methods.spot import SPOT
from segue.methods.spot_vae import BehaviourVAE
from segue.recipes.base import Recipe

ANTMAZE: dict[str, Any] = {
    "actor_learning_rate": 1e-4,
    "actor_dropout": 0.0,
    "actor_last_bound": 1e-3,
    "critic_last_bound": 3e-3,
    "normalize_observations": False,
    "reward_bias": -1.0,
}
SUPPORT_WEIGHT = {  # lambda of each dataset
    "halfcheetah-medium-v2": 0.05,
    "halfcheetah-medium-replay-v2": 0.05,
    "halfcheetah-medium-expert-v2": 1.0,
    "hopper-medium-v2": 0.1,
    "hopper-medium-replay-v2": 0.1,
    "hopper-medium-expert-v2": 0.2,
    "walker2d-medium-v2": 0.2,
    "walker2d-medium-replay-v2": 0.2,
    "walker2d-medium-expert-v2": 0.5,
    "antmaze-umaze-v2": 0.25,
    "antmaze-umaze-diverse-v2": 0.25,
    "antmaze-medium-play-v2": 0.05,
    "antmaze-medium-diverse-v2": 0.025,
    "antmaze-large-play-v2": 0.025,
    "antmaze-large-diverse-v2": 0.025,
}
PRESETS = {
    name: {"support_weight": weight} | (ANTMAZE if name.startswith("antmaze") else {})
    for name, weight in SUPPORT_WEIGHT.items()
}


@dataclass(frozen=True, kw_only=True)
class SPOTRecipe(Recipe):
    """SPOT."""

    summary: ClassVar[str] = "TD3 that pays for leaving the data's support, which an auto-encoder has learned"
    choose_when: ClassVar[str] = "on sparse rewards, and data of mixed behaviour, whose average action nobody took"
    paper: ClassVar[str] = "Wu et al. 2022, arXiv:2202.06239"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    algorithm: SPOT = SPOT()
    vae_steps: int = 100_000  # updates of the auto-encoder before the policy's [baselines.md 7]
    vae_learning_rate: float = 1e-3  # Adam, of the auto-encoder [baselines.md 7]
    discount_online: float = 0.995  # gamma online [baselines.md 7: CORL on every task; the paper on large mazes only]
    normalize_observations: bool = True  # (s - mean) / (std + 0.001) of the dataset [baselines.md 7; off on AntMaze]
    warmup_steps: int = 0  # online steps that only act and store [golden record: none]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """The auto-encoder, then the policy."""
        vae = BehaviourVAE(
            kl_weight=self.algorithm.vae_kl_weight,
            batch_size=self.algorithm.batch_size,
            learning_rate=self.vae_learning_rate,
            hidden_sizes=self.algorithm.vae_hidden_sizes,
        )
        return (Phase("vae", vae, self.vae_steps), Phase("offline", self.algorithm, updates))

    def online_phase(self, env_steps: int) -> Phase:
        """The same losses with a cooling penalty."""
        schedule = self.schedule(env_steps)
        return Phase("online", replace(self.algorithm, discount=self.discount_online), online=schedule)
