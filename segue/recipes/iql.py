"""IQL. Sources: ../spec/baselines.md 5, baselines_hparams.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from segue.core.phases import Phase
from segue.methods.iql import IQL
from segue.recipes.base import Recipe
from segue.recipes.datasets import ANTMAZE, LOCOMOTION

ON_HOPPER: dict[str, Any] = {
    "deterministic_actor": True,
    "reward_scale_by_return_range": True,
    "target_update_rate": 0.001,
}
ON_ANTMAZE: dict[str, Any] = {"inverse_temperature": 10.0, "expectile": 0.9, "reward_bias": -1.0}
DEFAULTS: dict[str, Any] = {}
PRESETS: dict[str, dict[str, Any]] = (
    dict.fromkeys(LOCOMOTION, DEFAULTS)
    | dict.fromkeys(ANTMAZE, ON_ANTMAZE)
    | dict.fromkeys(("hopper-medium-v2", "hopper-medium-replay-v2"), ON_HOPPER)
    | {"hopper-medium-expert-v2": {"inverse_temperature": 6.0, "expectile": 0.5}}
)


@dataclass(frozen=True, kw_only=True)
class IQLRecipe(Recipe):
    """IQL."""

    summary: ClassVar[str] = "values of the data's own good actions by expectiles, the policy cloned by their advantage"
    choose_when: ClassVar[str] = "on sparse rewards and AntMaze, and as a safe start online, where it improves slowly"
    paper: ClassVar[str] = "Kostrikov et al. 2021, arXiv:2110.06169"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    algorithm: IQL = IQL(cosine_updates=None)
    online_actor_schedule: Literal["constant", "torch_cosine_continue", "frozen"] = "constant"  # [baselines.md 5]
    normalize_observations: bool = True  # (s - mean) / (std + 0.001) of the dataset [baselines.md 5]
    warmup_steps: int = 0  # online steps that only act and store [baselines.md 5: none]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """One phase, as long as the actor's cosine."""
        horizon = self.algorithm.cosine_updates or updates
        return (Phase("offline", replace(self.algorithm, cosine_updates=horizon), updates),)

    def online_phase(self, env_steps: int) -> Phase:
        """The same losses on the growing data; the actor's learning rate on a schedule of its own."""
        algorithm = self.algorithm
        if self.online_actor_schedule == "constant":
            algorithm = replace(algorithm, actor_schedule="constant")
        if self.online_actor_schedule == "torch_cosine_continue":
            algorithm = replace(algorithm, actor_schedule="cosine")
        if self.online_actor_schedule == "frozen":
            algorithm = replace(algorithm, actor_schedule="constant", actor_learning_rate=0.0)
        schedule = self.schedule(env_steps)
        return Phase("online", algorithm, online=schedule)
