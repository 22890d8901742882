"""The Online Decision Transformer. Sources: ../spec/baselines.md 16, baselines_hparams.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from segue.core.phases import Phase, ReplayStart
from segue.errors import UserError
from segue.methods.odt import ODT
from segue.recipes.base import Recipe
from segue.recipes.datasets import ANTMAZE, LOCOMOTION

# Not the paper's: a hundredth of its parameters and shorter stretches, for work on a CPU.
FAST: dict[str, Any] = {
    "width": 64,
    "num_layers": 2,
    "num_heads": 2,
    "context_length": 10,
    "batch_size": 64,
    "actor_learning_rate": 2e-3,
    "learning_rate_warmup_updates": 500,
    "pretraining_updates": 5_000,
}
TASKS: dict[str, dict[str, Any]] = {  # the return that evaluation asks for, in the task's own units
    "halfcheetah": {"target_return": 6000.0},
    "hopper": {"target_return": 3600.0, "ordering": True},
    "walker2d": {"target_return": 5000.0, "pretraining_updates": 10_000},
}
WALKER: dict[str, Any] = {"actor_learning_rate": 1e-3, "weight_decay": 1e-3}
ON_DATASET: dict[str, dict[str, Any]] = {
    "hopper-medium-replay-v2": {"actor_learning_rate": 2e-3, "weight_decay": 1e-4},
    "walker2d-medium-v2": WALKER,
    "walker2d-medium-replay-v2": WALKER,
}
ON_ANTMAZE: dict[str, Any] = {
    "target_return": 1.0,
    "return_scale": 1.0,
    "width": 1024,
    "ordering": True,
    "actor_learning_rate": 1e-3,
    "weight_decay": 0.0,
    "pretraining_updates": 7_000,
    "part_trajectories": 1_500,
}
PRESETS: dict[str, dict[str, Any]] = (
    {"fast": FAST}
    | {name: TASKS[name.partition("-")[0]] | ON_DATASET.get(name, {}) for name in LOCOMOTION}
    | dict.fromkeys(ANTMAZE, ON_ANTMAZE)
)


@dataclass(frozen=True, kw_only=True)
class ODTRecipe(Recipe):
    """Online Decision Transformer."""

    summary: ClassVar[str] = "a transformer that acts on its last steps and the return still wanted; no values"
    choose_when: ClassVar[str] = "for a baseline without critics; wants an accelerator, --preset fast on a CPU"
    paper: ClassVar[str] = "Zheng et al. 2022, arXiv:2202.05607"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    preset_updates: ClassVar[Mapping[str, int]] = {"": 5_000} | {  # "": without a preset
        name: preset.get("pretraining_updates", 5_000) for name, preset in PRESETS.items()
    }

    algorithm: ODT = ODT()
    normalize_observations: bool = True  # (s - mean) / (std + 0.001) of the dataset [baselines.md 0.3: 1e-6, not 0.001]
    replay: ReplayStart = "part"  # online batches: the best of the dataset and the new rows [baselines.md 16]
    part_trajectories: int = 1_000  # how many of the best; they stay, where the paper's leave first [baselines.md 16]
    warmup_steps: int = 1_000  # online steps that only act and store [the first of the paper's iterations: one episode]
    updates_per_step: float = 0.3  # 300 after an episode of 1,000 steps; here spread over its steps [baselines.md 16]
    pretraining_updates: int = 5_000  # on the dataset, where it goes on from another method's run [baselines.md 16]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """One phase."""
        self._check()
        return (Phase("offline", self.algorithm, updates),)

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """A fresh transformer from the data: no other method makes a policy that acts on a history."""
        fresh = ("actor", "temperature", "best_return", "updates")
        return (Phase("pre-training", self.algorithm, self.pretraining_updates, fresh=fresh),)

    def online_phase(self, env_steps: int) -> Phase:
        """The same losses on the best of the data and the new episodes."""
        self._check()
        return Phase("online", self.algorithm, online=self.schedule(env_steps))

    def _check(self) -> None:
        algorithm = self.algorithm
        if algorithm.width % algorithm.num_heads:
            raise UserError(
                f"--width {algorithm.width} with --num-heads {algorithm.num_heads}: give a multiple of the heads"
            )
        if algorithm.acting_context_length > algorithm.context_length:
            raise UserError(
                f"--acting-context-length {algorithm.acting_context_length}: give at most --context-length, "
                f"{algorithm.context_length}"
            )
