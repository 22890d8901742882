"""Uni-O4's online phase. Sources: ../spec/baselines.md 15, baselines_hparams.yaml (uni_o4_ppo)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from segue.core.phases import Phase, ReplayStart
from segue.methods.return_value import ReturnValue
from segue.methods.uni_o4 import UniO4
from segue.recipes.base import Recipe
from segue.recipes.handover import CLONE_ROWS, ValueHandover, cloning
from segue.recipes.ppo import rollouts

RUNNING: dict[str, Any] = {"scale_rewards_by_running_return": True}  # "dynamic"
TENTH: dict[str, Any] = {"reward_scale": 0.1}  # "number"
# The first entry of every list that the released scripts try.
PRESETS: dict[str, dict[str, Any]] = {
    "halfcheetah-medium-v2": RUNNING | {"actor_learning_rate": 3e-5, "epochs": 30},
    "halfcheetah-medium-replay-v2": TENTH | {"actor_learning_rate": 3e-5, "epochs": 20},
    "halfcheetah-medium-expert-v2": RUNNING | {"actor_learning_rate": 2e-5, "epochs": 10},
    "hopper-medium-v2": TENTH | {"actor_learning_rate": 1e-5, "epochs": 5},
    "hopper-medium-replay-v2": TENTH | {"actor_learning_rate": 1e-5, "epochs": 5},
    "hopper-medium-expert-v2": TENTH | {"actor_learning_rate": 6e-6, "epochs": 5},
    "walker2d-medium-v2": {"actor_learning_rate": 1e-5, "epochs": 20},
    "walker2d-medium-replay-v2": {"actor_learning_rate": 1e-5, "epochs": 20},
    "walker2d-medium-expert-v2": {"actor_learning_rate": 1e-5, "epochs": 20},
}


@dataclass(frozen=True, kw_only=True)
class UniO4Recipe(Recipe):
    """Uni-O4's online phase."""

    summary: ClassVar[str] = "an IQL policy, or a clone of any other, to PPO with a small ratio clip, on-policy"
    choose_when: ClassVar[str] = "after IQL or BC, where millions of steps are cheap and a steady, slow rise is wanted"
    paper: ClassVar[str] = "Lei et al. 2024, arXiv:2311.03351"
    needs_dataset: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    algorithm: UniO4 = UniO4()
    handover: ValueHandover = ValueHandover(clone_updates=100_000, reevaluation_updates=1_000_000)
    scale_rewards_by_running_return: bool = False  # as the running std of returns says [baselines.md 15: HalfCheetah]
    replay: ReplayStart = "none"  # it learns from its own latest steps only [baselines.md 15]
    warmup_steps: int = 0  # fixed: it learns from every step [baselines.md 15]
    updates_per_step: float = 0.0  # fixed: it learns after every --batch-size steps [baselines.md 15]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """None: another method learns the policy."""
        return ()

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """Where needed a clone of the paper's form; then V of the data's returns."""
        own: dict[str, Any] = {"bounded_std": True, "hidden_sizes": self.algorithm.hidden_sizes}
        phases = cloning("gaussian", before, self.handover.clone_updates, CLONE_ROWS, **own)
        if self.handover.reevaluation_updates:
            value = ReturnValue(
                discount=self.algorithm.discount,
                hidden_sizes=self.algorithm.value_hidden_sizes,
                activation="relu",
            )
            scaled = self.scale_rewards_by_running_return
            updates = self.handover.reevaluation_updates
            phases += (Phase("re-evaluation", value, updates, scale_rewards_by_running_return=scaled),)
        return phases

    def online_phase(self, env_steps: int) -> Phase:
        """PPO, which the paper evaluates every 20,000 steps."""
        return Phase(
            "online",
            self.algorithm,
            online=rollouts(self, self.algorithm.batch_size, env_steps),
            scale_rewards_by_running_return=self.scale_rewards_by_running_return,
            evaluation_interval=20_000,
        )
