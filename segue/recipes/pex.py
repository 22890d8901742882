"""PEX. Sources: ../spec/baselines.md 10, baselines_hparams.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from segue.core.phases import Phase, ReplayStart
from segue.methods.iql import IQL
from segue.methods.pex import PEX
from segue.recipes.base import Recipe
from segue.recipes.datasets import ANTMAZE, LOCOMOTION

ON_ANTMAZE: dict[str, Any] = {"reward_bias": -1.0}
DEFAULTS: dict[str, Any] = {}
PRESETS = dict.fromkeys(LOCOMOTION, DEFAULTS) | dict.fromkeys(ANTMAZE, ON_ANTMAZE)


@dataclass(frozen=True, kw_only=True)
class PEXRecipe(Recipe):
    """PEX."""

    summary: ClassVar[str] = "any policy kept as it is, beside a new one; the critics choose between their actions"
    choose_when: ClassVar[str] = "so that the offline policy's skill is not unlearned; after a method that has a V"
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2302.00935"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    algorithm: PEX = PEX()
    replay: ReplayStart = "half"  # online batches: all the dataset, half of each, its best part, none [baselines.md 10]
    warmup_steps: int = 5_000  # online steps that only act and store [baselines_hparams.yaml, pex]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """IQL with the same settings, and the cosine that the online phase does without."""
        own = self.algorithm
        iql = IQL(
            expectile=own.expectile,
            inverse_temperature=own.inverse_temperature,
            advantage_weight_max=own.advantage_weight_max,
            log_std_min=own.log_std_min,
            cosine_updates=updates,
            batch_size=own.batch_size,
            discount=own.discount,
            target_update_rate=own.target_update_rate,
            policy_update_interval=own.policy_update_interval,
            actor_learning_rate=own.actor_learning_rate,
            critic_learning_rate=own.critic_learning_rate,
            value_learning_rate=own.value_learning_rate,
            hidden_sizes=own.hidden_sizes,
        )
        return (Phase("offline", iql, updates),)

    def online_phase(self, env_steps: int) -> Phase:
        """Expansion; after another method's run that run's policy is the frozen one, whatever was frozen before it."""
        return Phase("online", self.algorithm, online=self.schedule(env_steps), fresh=("offline_actor",))
