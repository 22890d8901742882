"""OCR-CFT: O2SAC, O2TD3, O2PPO. Sources: ../spec/ocr_cft.md, ocr_cft_hparams.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from segue.core.phases import Phase, ReplayStart
from segue.methods.o2ppo import O2PPO
from segue.methods.o2sac import ConstrainedSAC
from segue.methods.o2td3 import ConstrainedTD3
from segue.recipes.base import Recipe
from segue.recipes.handover import Handover, ValueHandover, ppo_handover, sac_handover, td3_handover
from segue.recipes.ocr_cft_presets import O2PPO_PRESETS, O2SAC_PRESETS, O2TD3_PRESETS
from segue.recipes.ppo import rollouts

PAPER = "Optimistic Critic Reconstruction and Constrained Fine-Tuning, NeurIPS 2024, arXiv:2412.18855"


@dataclass(frozen=True, kw_only=True)
class _OffPolicy(Recipe):
    """What O2SAC and O2TD3 have in common."""

    paper: ClassVar[str] = PAPER
    needs_dataset: ClassVar[bool] = False

    handover: Handover = Handover(clone_updates=100_000, reevaluation_updates=500_000, alignment_updates=500_000)
    replay: ReplayStart = "half"  # online batches: all the dataset, half of each, its best part, none [ocr_cft.md 2.5]
    part_trajectories: int = 50  # kept by "part" [ocr_cft.md 2.5]
    warmup_steps: int = 1_000  # online steps that only act and store [ocr_cft.md 2.2 e; 5,000 for O2SAC on AntMaze]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """None: another method learns the policy."""
        return ()


@dataclass(frozen=True, kw_only=True)
class O2SACRecipe(_OffPolicy):
    """O2SAC."""

    summary: ClassVar[str] = "any policy to SAC: a fresh soft critic, alignment, then SAC near the best policy so far"
    choose_when: ClassVar[str] = "to fine-tune CQL, or any other method by a clone, with the least fall at the switch"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = O2SAC_PRESETS

    algorithm: ConstrainedSAC = ConstrainedSAC()

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """Clone where needed, policy re-evaluation, value alignment."""
        temperature = self.algorithm.initial_temperature
        return sac_handover(self.handover, before, self.algorithm, initial_temperature=temperature)

    def online_phase(self, env_steps: int) -> Phase:
        """Constrained fine-tuning, which the paper evaluates every 1,000 steps."""
        return Phase("online", self.algorithm, online=self.schedule(env_steps), evaluation_interval=1_000)


@dataclass(frozen=True, kw_only=True)
class O2TD3Recipe(_OffPolicy):
    """O2TD3."""

    summary: ClassVar[str] = "any policy to TD3: a fresh critic, alignment, then TD3 near the best policy so far"
    choose_when: ClassVar[str] = "to fine-tune TD3+BC, or any other method by a clone, with the least fall"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = O2TD3_PRESETS

    algorithm: ConstrainedTD3 = ConstrainedTD3()

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """Clone where needed, policy re-evaluation, value alignment."""
        return td3_handover(self.handover, before, self.algorithm)

    def online_phase(self, env_steps: int) -> Phase:
        """Constrained fine-tuning, which the paper evaluates every 1,000 steps."""
        return Phase("online", self.algorithm, online=self.schedule(env_steps), evaluation_interval=1_000)


@dataclass(frozen=True, kw_only=True)
class O2PPORecipe(Recipe):
    """O2PPO."""

    summary: ClassVar[str] = "any policy to PPO: V fitted to the data's returns, an advantage for staying near it"
    choose_when: ClassVar[str] = "after IQL, when many environment steps are cheap and on-policy learning is wanted"
    paper: ClassVar[str] = PAPER
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = O2PPO_PRESETS
    needs_dataset: ClassVar[bool] = False

    algorithm: O2PPO = O2PPO()
    handover: ValueHandover = ValueHandover(clone_updates=100_000, reevaluation_updates=1_000_000)
    scale_rewards_by_running_return: bool = False  # as the running std of returns says [ocr_cft.md D6: HalfCheetah]
    replay: ReplayStart = "none"  # it learns from its own latest steps only [ocr_cft.md 2.4]
    warmup_steps: int = 0  # fixed: it learns from every step [ocr_cft.md 2.4 c]
    updates_per_step: float = 0.0  # fixed: it learns after every --batch-size steps [ocr_cft.md 2.4 c]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """None: another method learns the policy."""
        return ()

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """Clone where needed, then V."""
        return ppo_handover(self.handover, before, self.algorithm, self.scale_rewards_by_running_return)

    def online_phase(self, env_steps: int) -> Phase:
        """PPO with the auxiliary advantage, which the paper evaluates every 2,500 steps."""
        return Phase(
            "online",
            self.algorithm,
            online=rollouts(self, self.algorithm.batch_size, env_steps),
            scale_rewards_by_running_return=self.scale_rewards_by_running_return,
            evaluation_interval=2_500,
        )
