"""SAC and TD3: online from scratch, or from a policy of their kind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from segue.core.phases import Phase, ReplayStart
from segue.methods.sac import SAC
from segue.methods.td3 import TD3
from segue.recipes.base import Recipe
from segue.recipes.handover import Handover, sac_handover, td3_handover


@dataclass(frozen=True, kw_only=True)
class _OnlineRecipe(Recipe):
    needs_dataset: ClassVar[bool] = False

    handover: Handover = Handover()
    normalize_observations: bool = False  # (s - mean) / (std + 0.001), dataset's statistics [neither paper does]
    replay: ReplayStart = "none"  # online batches: all the dataset, half of each, its best part, none [no dataset here]
    warmup_steps: int = 10_000  # steps that only act and store [public SAC implementations; 25,000 in TD3's paper]
    random_warmup: bool = True  # uniform actions in the warm-up [both papers]; off when a policy is continued

    def continuing(self) -> Recipe:
        """It acts by the policy that it was given from the first step, and learns from the dataset too."""
        return replace(self, random_warmup=False, warmup_steps=5_000, replay="all")

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """None: these methods learn online."""
        return ()


@dataclass(frozen=True, kw_only=True)
class SACRecipe(_OnlineRecipe):
    """Soft actor-critic."""

    summary: ClassVar[str] = "soft actor-critic: a stochastic policy that is paid for entropy, online"
    choose_when: ClassVar[str] = "without a dataset: the strong default from scratch, and the maker of built-in data"
    paper: ClassVar[str] = "Haarnoja et al. 2018, arXiv:1801.01290, arXiv:1812.05905"

    algorithm: SAC = SAC()

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """As O2SAC's, if asked for."""
        return sac_handover(self.handover, before, self.algorithm, critic_hidden_sizes=self.algorithm.hidden_sizes)

    def online_phase(self, env_steps: int) -> Phase:
        """SAC in the environment."""
        return Phase("online", self.algorithm, online=self.schedule(env_steps))


@dataclass(frozen=True, kw_only=True)
class TD3Recipe(_OnlineRecipe):
    """TD3."""

    summary: ClassVar[str] = "TD3: deterministic policy, twin critics, delayed policy steps, online"
    choose_when: ClassVar[str] = "to fine-tune a TD3+BC policy with no further cloning, or from scratch beside SAC"
    paper: ClassVar[str] = "Fujimoto et al. 2018, arXiv:1802.09477"

    algorithm: TD3 = TD3()

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """As O2TD3's, if asked for."""
        return td3_handover(self.handover, before, self.algorithm, critic_hidden_sizes=self.algorithm.hidden_sizes)

    def online_phase(self, env_steps: int) -> Phase:
        """TD3 in the environment."""
        return Phase("online", self.algorithm, online=self.schedule(env_steps))
