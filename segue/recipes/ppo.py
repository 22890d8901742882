"""PPO: online from scratch, or from a Gaussian policy. Sources: of PPO, ../spec/ocr_cft_hparams.yaml (o2ppo)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from segue.core.phases import Online, Phase, ReplayStart
from segue.errors import UserError
from segue.methods.ppo import PPO
from segue.recipes.base import Recipe
from segue.recipes.handover import ValueHandover, ppo_handover


@dataclass(frozen=True, kw_only=True)
class PPORecipe(Recipe):
    """Proximal policy optimization."""

    summary: ClassVar[str] = "PPO: a Gaussian policy, careful steps on its own latest rollout, no replay, online"
    choose_when: ClassVar[str] = "where steps are cheap, or to see what O2PPO adds; it learns from each step only once"
    paper: ClassVar[str] = "Schulman et al. 2017, arXiv:1707.06347"
    needs_dataset: ClassVar[bool] = False

    algorithm: PPO = PPO()
    handover: ValueHandover = ValueHandover()
    normalize_observations: bool = False  # (s - mean) / (std + 0.001), dataset's statistics [ours: none from scratch]
    replay: ReplayStart = "none"  # fixed: it learns from its latest rollout alone [Algorithm 1]
    warmup_steps: int = 0  # fixed: it learns from every step [Algorithm 1]
    updates_per_step: float = 0.0  # fixed: it learns after every --batch-size steps [Algorithm 1]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """None: it learns online."""
        return ()

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """As O2PPO's, if asked for."""
        return ppo_handover(self.handover, before, self.algorithm, scaled=False)

    def online_phase(self, env_steps: int) -> Phase:
        """PPO in the environment."""
        last = self.algorithm.learning_rate_decay_steps or env_steps
        algorithm = replace(self.algorithm, learning_rate_decay_steps=last)
        return Phase("online", algorithm, online=rollouts(self, algorithm.batch_size, env_steps))


def rollouts(recipe: Recipe, length: int, env_steps: int) -> Online:
    """One update after every `length` steps. Raises UserError for settings that it has no use for."""
    if recipe.sampling != "uniform":
        raise UserError("PPO learns from its own latest steps and has no replay: leave --sampling out")
    if recipe.warmup_steps or recipe.updates_per_step:
        raise UserError(
            "PPO learns from every step, once every --batch-size steps: leave --warmup-steps and --updates-per-step out"
        )
    return Online(env_steps, updates_per_step=1 / length, replay=recipe.replay)
