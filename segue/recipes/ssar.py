"""SSAR on TD3+BC and on CQL."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from segue.core.coefficient import Coefficient
from segue.core.phases import Phase, ReplayStart, Selection
from segue.methods.cql import CQL
from segue.methods.iql import IQLCritics
from segue.methods.ssar import Annealed, StateAdaptive
from segue.methods.td3_bc import TD3BC
from segue.recipes.base import Recipe
from segue.recipes.cql import FAST
from segue.recipes.ssar_presets import OFFLINE_UPDATES, SSAR_CQL, SSAR_TD3_BC


@dataclass(frozen=True, kw_only=True)
class _SSAR(Recipe):
    """What does not depend on the host. Sources: ../spec/ssar.md, ssar_hparams.yaml."""

    paper: ClassVar[str] = "Selective State-Adaptive Regularization, ICML 2025, arXiv:2505.19923"
    preset_updates: ClassVar[Mapping[str, int]] = OFFLINE_UPDATES

    profile: Literal["paper", "released"] = "paper"  # as described, or as the released program acts [ssar.md 3]
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

    @abstractmethod
    def _host(self, coefficient: Coefficient, online: bool) -> TD3BC | CQL:
        """The host algorithm with the coefficient in its socket."""

    @property
    def _annealing_shape(self) -> Literal["linear", "cosine"]:
        return "linear"

    def _selection(self) -> Selection:
        return Selection(
            self.selection,
            self.return_threshold,
            self.return_quantile,
            self.failure_reward,
            strict=self.profile == "paper",
        )

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """The selector's pre-training where it is asked for, then the host with the learned coefficient."""
        main = Phase("offline", self._host(self.adaptive, online=False), updates, selection=self._selection())
        if self.selection != "iql_advantage":
            return (main,)
        return (Phase("selection", IQLCritics(expectile=self.iql_expectile), self.iql_steps), main)

    def online_phase(self, env_steps: int) -> Phase:
        """The coefficient frozen and annealed."""
        released = self.profile == "released"
        annealed = Annealed(
            self.adaptive, self.anneal_steps, floor_at_zero=not released, shape=self._annealing_shape
        )  # fmt: skip
        schedule = self.schedule(env_steps, inherit_trust=released)
        algorithm = self._host(annealed, online=True)
        return Phase("online", algorithm, online=schedule, selection=self._selection(), replay_drop_last=released)


@dataclass(frozen=True, kw_only=True)
class SSARRecipe(_SSAR):
    """SSAR on TD3+BC."""

    summary: ClassVar[str] = "TD3+BC with a learned, state-dependent strength of cloning on selected data"
    choose_when: ClassVar[str] = "to go on online: cloning is strong on good data, and its strength fades on the way"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = SSAR_TD3_BC

    host: TD3BC = TD3BC(critic_layer_norm=True, online_action_noise=0.0)
    policy_update_interval_online: int = 2  # F online [ssar.md 2.9; 20 to 100 on hard AntMaze]

    def _host(self, coefficient: Coefficient, online: bool) -> TD3BC:
        interval = self.policy_update_interval_online if online else self.host.policy_update_interval
        return replace(self.host, coefficient=coefficient, policy_update_interval=interval)


@dataclass(frozen=True, kw_only=True)
class SSARCQLRecipe(_SSAR):
    """SSAR on CQL."""

    summary: ClassVar[str] = "CQL with a learned, state-dependent strength of the conservative term on selected data"
    choose_when: ClassVar[str] = "where CQL is good and is to go on online; as dear as CQL, --preset fast on a CPU"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "fast": FAST | {"coefficient_hidden_sizes": (128, 128, 128)}
    } | SSAR_CQL

    host: CQL = CQL(critic_layer_norm=True)
    adaptive: StateAdaptive = StateAdaptive(coefficient_learning_rate=1e-8)
    anneal_shape: Literal["cosine", "linear"] = "cosine"  # of the fading [ssar.md B13: linear in the paper's text]
    action_limit: float = 1 - 1e-4  # dataset actions are clipped to this, for the atanh [ssar.md 2.1]

    @property
    def _annealing_shape(self) -> Literal["linear", "cosine"]:
        return self.anneal_shape

    def _host(self, coefficient: Coefficient, online: bool) -> CQL:
        """The released program's second critic never has more than three hidden layers (ssar.md B23)."""
        second = self.host.critic_hidden_sizes[:3] if self.profile == "released" else None
        return replace(self.host, coefficient=coefficient, second_critic_hidden_sizes=second)
