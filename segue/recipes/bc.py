"""Behaviour cloning, and TD3+BC from the cloned policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from segue.core.phases import Phase
from segue.methods.bc import BC
from segue.methods.td3_bc import TD3BC
from segue.recipes.base import Recipe


@dataclass(frozen=True, kw_only=True)
class BCRecipe(Recipe):
    """Behaviour cloning."""

    summary: ClassVar[str] = "behaviour cloning: the policy of the data, or of its best episodes; online TD3+BC from it"
    choose_when: ClassVar[str] = "as the yardstick: what cannot beat it has learned nothing from the rewards"
    paper: ClassVar[str] = "Pomerleau 1988; BC-10% as in CORL, arXiv:2210.07105"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"10-percent": {"top_fraction": 0.1}}

    top_fraction: float = 1.0  # of the episodes, the best by return, are cloned [baselines.md 1; 0.1 is BC-10%]
    online: TD3BC = TD3BC()  # the rates, sizes and batch of cloning are its [baselines.md 1 has the same numbers]
    normalize_observations: bool = True  # (s - mean) / (std + 0.001) with the dataset's statistics [baselines.md 1]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """Cloning."""
        algorithm = BC(
            batch_size=self.online.batch_size,
            discount=self.online.discount,
            actor_learning_rate=self.online.actor_learning_rate,
            hidden_sizes=self.online.hidden_sizes,
        )
        return (Phase("offline", algorithm, updates, top_fraction=self.top_fraction),)

    def online_phase(self, env_steps: int) -> Phase:
        """TD3+BC with fresh critics on all data and the new rows: cloning alone cannot improve [ours]."""
        schedule = self.schedule(env_steps)
        return Phase("online", self.online, online=schedule)
