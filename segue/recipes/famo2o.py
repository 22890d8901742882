"""FamO2O on IQL and on CQL. Sources: ../spec/baselines.md 8, baselines_hparams.yaml (famo2o_iql, famo2o_cql)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from segue.core.phases import Phase
from segue.errors import UserError
from segue.methods.famo2o_cql import FamO2OCQL
from segue.methods.famo2o_iql import FamO2OIQL
from segue.recipes.base import Recipe
from segue.recipes.datasets import ANTMAZE, LOCOMOTION

PAPER = "Wang et al. 2023, arXiv:2310.17966"


@dataclass(frozen=True, kw_only=True)
class _Family(Recipe):
    """What both have in common: an offline phase over all coefficients, then an online one over those chosen."""

    paper: ClassVar[str] = PAPER

    algorithm: FamO2OIQL | FamO2OCQL
    warmup_steps: int = 0  # online steps that only act and store [baselines.md 8: none]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """One phase. Raises UserError for a range of coefficients that is none."""
        low, high = self.algorithm.coefficient_min, self.algorithm.coefficient_max
        if low >= high:
            raise UserError(f"--coefficient-max {high}: give more than --coefficient-min, which is {low}")
        return (Phase("offline", self.algorithm, updates),)

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """None fits: another method's policy is no family. Raises UserError."""
        raise UserError("phase 'online' needs a family of policies, which FamO2O's own offline phase makes: start "
                        "with famo2o_iql or famo2o_cql from the dataset, or choose another method")  # fmt: skip

    def online_phase(self, env_steps: int) -> Phase:
        """The same losses on the growing data, at the coefficients that the balance policy chooses."""
        algorithm = replace(self.algorithm, coefficient_source="balance")
        return Phase("online", algorithm, online=self.schedule(env_steps))


@dataclass(frozen=True, kw_only=True)
class FamO2OIQLRecipe(_Family):
    """FamO2O on IQL."""

    summary: ClassVar[str] = "IQL with a family of policies, and a second policy that picks one at each state"
    choose_when: ClassVar[str] = "instead of IQL on AntMaze; elsewhere set the range of coefficients about IQL's own"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {name: {"reward_bias": -1.0} for name in ANTMAZE}

    algorithm: FamO2OIQL = FamO2OIQL()
    action_limit: float = 0.99999  # dataset actions are clipped to plus and minus this [baselines_hparams.yaml]


@dataclass(frozen=True, kw_only=True)
class FamO2OCQLRecipe(_Family):
    """FamO2O on CQL."""

    summary: ClassVar[str] = "CQL with a family of policies, and a second policy that picks one at each state"
    choose_when: ClassVar[str] = "instead of CQL on locomotion, where updates are cheap: twice as many, and dearer ones"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {name: {} for name in LOCOMOTION}
    preset_updates: ClassVar[Mapping[str, int]] = dict.fromkeys(LOCOMOTION, 2_000_000)

    algorithm: FamO2OCQL = FamO2OCQL()
    action_limit: float = 0.999  # dataset actions are clipped to plus and minus this [baselines_hparams.yaml]
