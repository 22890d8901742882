"""TD3+BC, and SSAR on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from segue.core.phases import Online, Phase, ReplayStart, Selection
from segue.methods.iql import IQLCritics
from segue.methods.ssar import Annealed, StateAdaptive
from segue.methods.td3_bc import TD3BC
from segue.recipes.base import Recipe
from segue.recipes.ssar_presets import OFFLINE_UPDATES, SSAR_TD3_BC


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
        schedule = Online(env_steps, self.warmup_steps, False, self.updates_per_step, self.replay)
        return Phase("online", self.algorithm, online=schedule)


@dataclass(frozen=True, kw_only=True)
class SSARRecipe(Recipe):
    """SSAR on TD3+BC. Sources: ../spec/ssar.md, ssar_hparams.yaml."""

    summary: ClassVar[str] = "TD3+BC with a learned, state-dependent strength of cloning on selected data"
    choose_when: ClassVar[str] = "to go on online: cloning is strong on good data, and its strength fades on the way"
    paper: ClassVar[str] = "Selective State-Adaptive Regularization, ICML 2025, arXiv:2505.19923"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = SSAR_TD3_BC
    preset_updates: ClassVar[Mapping[str, int]] = OFFLINE_UPDATES

    profile: Literal["paper", "released"] = "paper"  # as described, or as the released program acts [ssar.md 3]
    host: TD3BC = TD3BC(critic_layer_norm=True, online_action_noise=0.0)
    adaptive: StateAdaptive = StateAdaptive()
    normalize_observations: bool = True  # (s - mean) / (std + 0.001) with the dataset's statistics [ssar.md 2.1]
    selection: Literal["return", "iql_advantage", "success", "none"] = "return"  # the sub-dataset [ssar.md 2.2]
    return_threshold: float | None = None  # trajectories above it are trusted [presets of ssar.md's Table 6]
    return_quantile: float = 0.5  # of the dataset's returns, where no threshold is given [ours]
    failure_reward: float = -1.0  # last reward of a failed trajectory, for "success" [ssar.md 2.2]
    iql_expectile: float = 0.7  # of the selecting IQL critics [ssar.md B8]
    iql_steps: int = 1_000_000  # their gradient steps [ssar.md 2.2]
    replay: ReplayStart = "part"  # all, half, part or none of the data online [ssar.md 2.9: all on AntMaze]
    part_trajectories: int = 50  # kept by "part" [ssar.md 2.9]
    anneal_steps: int | None = 400_000  # online updates until the strength reaches 0; None: never [ssar.md 2.9]
    policy_update_interval_online: int = 2  # F online [ssar.md 2.9; 20 to 100 on hard AntMaze]

    def _selection(self) -> Selection:
        return Selection(
            self.selection,
            self.return_threshold,
            self.return_quantile,
            self.failure_reward,
            strict=self.profile == "paper",
        )

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """The selector's pre-training where it is asked for, then TD3+BC with the learned coefficient."""
        algorithm = replace(self.host, coefficient=self.adaptive)
        main = Phase("offline", algorithm, updates, selection=self._selection())
        if self.selection != "iql_advantage":
            return (main,)
        return (Phase("selection", IQLCritics(expectile=self.iql_expectile), self.iql_steps), main)

    def online_phase(self, env_steps: int) -> Phase:
        """The coefficient frozen and annealed."""
        released = self.profile == "released"
        algorithm = replace(
            self.host,
            coefficient=Annealed(self.adaptive, self.anneal_steps, floor_at_zero=not released),
            policy_update_interval=self.policy_update_interval_online,
        )
        schedule = Online(
            env_steps,
            self.warmup_steps,
            False,
            self.updates_per_step,
            self.replay,
            self.part_trajectories,
            inherit_trust=released,
        )
        return Phase("online", algorithm, online=schedule, selection=self._selection(), replay_drop_last=released)
