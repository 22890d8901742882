"""RLPD and WSRL: soft actor-critic with many critics. Sources: ../spec/baselines.md 17, 18, baselines_hparams.yaml.

Neither is more than a recipe: the equations are SAC's, in `segue.methods.sac`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from segue.core.phases import Phase, ReplayStart
from segue.methods.sac import SAC
from segue.recipes.base import Recipe
from segue.recipes.datasets import ANTMAZE, LOCOMOTION
from segue.recipes.handover import Handover, sac_handover

# Not the paper's: a tenth of its updates, half of its critics, for work on a CPU.
FAST: dict[str, Any] = {"updates_per_step": 2.0, "policy_update_interval": 2, "num_critics": 5}
DEFAULTS: dict[str, Any] = {}
RLPD_ANTMAZE: dict[str, Any] = {
    "hidden_sizes": (256, 256, 256),
    "target_critics": 1,
    "backup_entropy": False,
    "reward_bias": -1.0,
}
WSRL_ANTMAZE: dict[str, Any] = {
    "critic_hidden_sizes": (256, 256, 256, 256),
    "reward_scale": 10.0,
    "reward_bias": -5.0,
}
RLPD_PRESETS = {"fast": FAST} | dict.fromkeys(LOCOMOTION, DEFAULTS) | dict.fromkeys(ANTMAZE, RLPD_ANTMAZE)
WSRL_PRESETS = dict.fromkeys(LOCOMOTION, DEFAULTS) | dict.fromkeys(ANTMAZE, WSRL_ANTMAZE)


@dataclass(frozen=True, kw_only=True)
class _ManyCritics(Recipe):
    needs_dataset: ClassVar[bool] = False

    handover: Handover = Handover()

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """None: they learn online."""
        return ()

    def _handover(self, before: str | None, algorithm: SAC) -> tuple[Phase, ...]:
        critic_sizes = algorithm.critic_hidden_sizes or algorithm.hidden_sizes
        return sac_handover(self.handover, before, algorithm, critic_hidden_sizes=critic_sizes)


@dataclass(frozen=True, kw_only=True)
class RLPDRecipe(_ManyCritics):
    """RLPD."""

    summary: ClassVar[str] = "SAC from scratch, half of each batch from the dataset, ten critics, twenty updates a step"
    choose_when: ClassVar[str] = "when steps are dear, computing is cheap, and a fall at the start does not matter"
    paper: ClassVar[str] = "Ball et al. 2023, arXiv:2302.02948"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = RLPD_PRESETS

    algorithm: SAC = SAC(
        num_critics=10,
        target_critics=2,
        actor_value="mean",
        critic_layer_norm=True,
        target_entropy_per_dimension=-0.5,
        policy_update_interval=20,
    )
    replay: ReplayStart = "half"  # online batches: half of the dataset's, half of the new [baselines.md 17]
    online_share: float = 0.5  # of each batch from the new rows [baselines.md 17; 1 is no dataset at all]
    warmup_steps: int = 5_000  # steps that only act and store [baselines.md 17]
    updates_per_step: float = 20.0  # critic updates per environment step, one actor update after them [baselines.md 17]
    action_limit: float = 1 - 1e-5  # dataset actions are clipped to this [baselines.md 17]
    from_scratch: bool = True  # networks anew, and random actions in the warm-up [the paper]; off goes on with a policy

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """As SAC's, where it goes on with a policy."""
        return () if self.from_scratch else self._handover(before, self.algorithm)

    def online_phase(self, env_steps: int) -> Phase:
        """SAC on half and half."""
        fresh = ("actor", "critic", "temperature", "updates") if self.from_scratch else ()
        online = self.schedule(env_steps, random_warmup=self.from_scratch)
        return Phase("online", self.algorithm, online=online, fresh=fresh)


@dataclass(frozen=True, kw_only=True)
class WSRLRecipe(_ManyCritics):
    """WSRL."""

    summary: ClassVar[str] = "SAC from a policy and its critics without the dataset: a warm-up fills the replay instead"
    choose_when: ClassVar[str] = "after CQL or Cal-QL with many critics, where the dataset may not be kept"
    paper: ClassVar[str] = "Zhou et al. 2024, arXiv:2412.07762"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = WSRL_PRESETS

    algorithm: SAC = SAC(
        num_critics=10,
        target_critics=2,
        repeat_target_critics=True,
        backup_entropy=False,
        critic_layer_norm=True,
        actor_layer_norm=True,
        batch_size=1_024,
        critic_minibatches=4,
        actor_learning_rate=1e-4,
        temperature_learning_rate=1e-4,
    )
    replay: ReplayStart = "none"  # online batches: the new rows alone [baselines.md 18]
    warmup_steps: int = 5_000  # steps by the offline policy that only fill the replay [baselines.md 18]

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """As SAC's, if asked for."""
        return self._handover(before, self.algorithm)

    def online_phase(self, env_steps: int) -> Phase:
        """SAC on what it has seen itself."""
        return Phase("online", self.algorithm, online=self.schedule(env_steps))
