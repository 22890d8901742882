"""AWAC. Sources: ../spec/baselines.md 6, baselines_hparams.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from segue.core.phases import Phase
from segue.methods.awac import AWAC
from segue.recipes.base import Recipe
from segue.recipes.datasets import ANTMAZE, LOCOMOTION

ON_ANTMAZE: dict[str, Any] = {"advantage_temperature": 0.1, "reward_bias": -1.0}
DEFAULTS: dict[str, Any] = {}
PRESETS = dict.fromkeys(LOCOMOTION, DEFAULTS) | dict.fromkeys(ANTMAZE, ON_ANTMAZE)


@dataclass(frozen=True, kw_only=True)
class AWACRecipe(Recipe):
    """AWAC."""

    summary: ClassVar[str] = "actor-critic whose policy clones actions, weighted by their advantage over its own"
    choose_when: ClassVar[str] = "for a simple method that goes on online unchanged; not on AntMaze, weak on poor data"
    paper: ClassVar[str] = "Nair et al. 2020, arXiv:2006.09359"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    algorithm: AWAC = AWAC()
    normalize_observations: bool = True  # (s - mean) / (std + 0.001) of the dataset [baselines.md 6]
    warmup_steps: int = 0  # online steps that only act and store [baselines.md 6: none]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """One phase."""
        return (Phase("offline", self.algorithm, updates),)

    def online_phase(self, env_steps: int) -> Phase:
        """The same losses on the growing data."""
        schedule = self.schedule(env_steps)
        return Phase("online", self.algorithm, online=schedule)
