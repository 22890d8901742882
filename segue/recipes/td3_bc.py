"""TD3+BC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from segue.core.phases import Phase
from segue.methods.td3_bc import TD3BC
from segue.recipes.base import Recipe


@dataclass(frozen=True, kw_only=True)
class TD3BCRecipe(Recipe):
    """TD3+BC."""

    summary: ClassVar[str] = "TD3 with a behaviour-cloning term in the policy's loss, offline and online"
    choose_when: ClassVar[str] = "first: the cheapest per update, few settings, good on dense rewards; weak on AntMaze"
    paper: ClassVar[str] = "Fujimoto & Gu 2021, arXiv:2106.06860"

    algorithm: TD3BC = TD3BC()
    normalize_observations: bool = True  # (s - mean) / (std + 0.001) of the dataset [Fujimoto & Gu 2021, Sec. 4]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """One phase."""
        return (Phase("offline", self.algorithm, updates),)

    def online_phase(self, env_steps: int) -> Phase:
        """The same losses on the growing data."""
        schedule = self.schedule(env_steps)
        return Phase("online", self.algorithm, online=schedule)
