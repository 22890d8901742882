"""Actor-critic alignment. Sources: ../spec/baselines.md 11, baselines_hparams.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from segue.core.phases import Phase, ReplayStart
from segue.methods.aca import ACA
from segue.methods.sac_ml import SACML, StateBaseline
from segue.recipes.base import Recipe
from segue.recipes.datasets import ANTMAZE
from segue.recipes.handover import Form, cloning

BEST_ROWS: dict[str, Any] = {"replay": "part", "part_trajectories": 50}
NARROW: dict[str, Any] = BEST_ROWS | {"density_floor_deviations": 15.0, "alignment_fall_updates": 100_000,
                                      "alignment_weight_floor": 1.0}  # fmt: skip
QUALITY: dict[str, dict[str, Any]] = {
    "medium": {},
    "medium-replay": BEST_ROWS,
    "medium-expert": NARROW,
    "expert": NARROW,
    "random": {"alignment_fall_updates": 10_000, "alignment_weight_floor": 0.0},
}
IN_MAZES: dict[str, Any] = {
    "squashed_policy": False,
    "density_floor_deviations": 3.0,
    "target_entropy_per_dimension": -0.5,
    "alignment_fall_updates": 200_000,
    "reward_bias": -1.0,
}
PRESETS = dict.fromkeys(ANTMAZE, IN_MAZES) | {
    f"{body}-{quality}-v2": settings for body in ("halfcheetah", "hopper", "walker2d")
    for quality, settings in QUALITY.items()
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ACARecipe(Recipe):
    """ACA."""

    summary: ClassVar[str] = "SAC from critics rebuilt out of the policy's own preferences, which then fade"
    choose_when: ClassVar[str] = "after SAC+ML, its own offline phase, or CQL, where the old critics mislead the policy"
    paper: ClassVar[str] = "Yu and Zhang, Actor-Critic Alignment for Offline-to-Online RL, ICML 2023"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    preset_updates: ClassVar[Mapping[str, int]] = dict.fromkeys(PRESETS, 500_000)

    algorithm: ACA = ACA()
    value_weight: float = 30.0  # offline: of the value in the actor's loss, over the mean |Q| [baselines.md 11]
    baseline_learning_rate: float = 3e-4  # Adam, of the baseline [baselines_hparams.yaml, aca]
    baseline_updates: int = 50_000  # of Z of another method's policy [ours: a tenth of SAC+ML's, as it stands still]
    clone_updates: int = 100_000  # of a clone of a policy of another form; 0: such a one is refused [ocr_cft.md 3]
    replay: ReplayStart = "none"  # online batches: all the dataset, half of each, its best part, none [aca: medium]
    part_trajectories: int = 50  # kept by "part" [baselines_hparams.yaml, aca]
    warmup_steps: int = 1_000  # online steps that only act and store [ours: a batch of 256 needs rows to choose from]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """SAC+ML."""
        online = self.algorithm
        algorithm = SACML(
            value_weight=self.value_weight,
            squashed_policy=online.squashed_policy,
            batch_size=online.batch_size,
            discount=online.discount,
            target_update_rate=online.target_update_rate,
            actor_learning_rate=online.actor_learning_rate,
            critic_learning_rate=online.critic_learning_rate,
            baseline_learning_rate=self.baseline_learning_rate,
            temperature_learning_rate=online.temperature_learning_rate,
            initial_temperature=online.initial_temperature,
            target_entropy_per_dimension=online.target_entropy_per_dimension,
            hidden_sizes=online.hidden_sizes,
            policy_update_interval=online.policy_update_interval,
        )
        return (Phase("offline", algorithm, updates),)

    def adapted(self, before: str | None) -> Recipe:
        """Either Gaussian is gone on with as it is."""
        squashed = {"tanh_gaussian": True, "gaussian": False}.get(before or "", self.algorithm.squashed_policy)
        return replace(self, algorithm=replace(self.algorithm, squashed_policy=squashed))

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """Clone where needed, then the baseline that SAC+ML would have made."""
        online = self.algorithm
        form: Form = "tanh_gaussian" if online.squashed_policy else "gaussian"
        clone = cloning(form, before, self.clone_updates, online.batch_size)
        baseline = StateBaseline(
            batch_size=online.batch_size,
            discount=online.discount,
            learning_rate=self.baseline_learning_rate,
            temperature=online.initial_temperature,
            hidden_sizes=online.hidden_sizes,
        )
        return (*clone, Phase("baseline", baseline, self.baseline_updates))

    def online_phase(self, env_steps: int) -> Phase:
        """Aligned fine-tuning, which the paper evaluates every 1,000 steps."""
        return Phase("online", self.algorithm, online=self.schedule(env_steps), evaluation_interval=1_000)
