"""SO2. Sources: ../spec/baselines.md 13, baselines_hparams.yaml; on IQL ../spec/baq.md 6."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from segue.core.phases import Phase, ReplayStart
from segue.methods.so2 import SO2, SO2OnIQL
from segue.recipes.base import Recipe
from segue.recipes.datasets import LOCOMOTION
from segue.recipes.handover import Handover, sac_handover

# Not the paper's: a hundredth of its arithmetic, for work on a CPU.
FAST: dict[str, Any] = {
    "batch_size": 256,
    "num_critics": 2,
    "hidden_sizes": (256, 256),
    "actor_learning_rate": 3e-4,
    "critic_learning_rate": 3e-4,
}
# "Without an ensemble" in BAQ's tables: the offline method's own batch and rates. Our reading; its text has none.
BAQ: dict[str, Any] = {"batch_size": 256, "actor_learning_rate": 3e-4, "critic_learning_rate": 3e-4}
PRESETS: dict[str, dict[str, Any]] = {"fast": FAST, "baq": BAQ} | {
    name: {"num_critics": 50 if name.startswith("hopper") else 10} for name in LOCOMOTION
}


@dataclass(frozen=True, kw_only=True)
class SO2Recipe(Recipe):
    """SO2: of a squashed Gaussian policy on SAC, of an unsquashed one on IQL."""

    summary: ClassVar[str] = "SAC or IQL whose values are learned ten times as often, at actions blurred by noise"
    choose_when: ClassVar[str] = "after CQL or IQL, when environment steps are dear; --preset fast on a CPU"
    paper: ClassVar[str] = "Zhang et al. 2024, arXiv:2312.07685"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    needs_dataset: ClassVar[bool] = False

    algorithm: SO2 = SO2()
    handover: Handover = Handover()
    expectile: float = 0.7  # tau, on IQL [Kostrikov et al. 2021, App. B; 0.9 on AntMaze]
    inverse_temperature: float = 3.0  # beta, on IQL [App. B; 10 on AntMaze]
    advantage_weight_max: float = 100.0  # of the exponential weights, on IQL [baselines.md 5]
    online_share_of_all: float | None = 0.1  # of a batch from the new rows, the rest from all [baselines.md 13]
    replay: ReplayStart = "all"  # online batches: all the dataset, half of each, its best part, none [baselines.md 13]
    warmup_steps: int = 5_000  # online steps that only act and store [baselines.md 13]
    updates_per_step: float = 10.0  # online updates per environment step [baselines.md 13, trap 15]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """None: another method learns the policy."""
        return ()

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """As SAC's, if asked for: `reevaluation_updates` make `num_critics` new critics of a run that has but two."""
        return sac_handover(
            self.handover,
            before,
            self.algorithm,
            critic_hidden_sizes=self.algorithm.hidden_sizes,
            critic_layer_norm=False,
            initial_temperature=self.algorithm.temperature,
        )

    def adapted(self, before: str | None) -> Recipe:
        """On IQL where the policy is an unsquashed Gaussian."""
        if before != "gaussian" or self.handover.clone_updates:
            return self
        return OnIQL(**{field.name: getattr(self, field.name) for field in fields(self)})

    def online_phase(self, env_steps: int) -> Phase:
        """Perturbed soft actor-critic."""
        return Phase("online", self.algorithm, online=self.schedule(env_steps))


@dataclass(frozen=True, kw_only=True)
class OnIQL(SO2Recipe):
    """The same settings on IQL; what the two have in common is that of `algorithm`."""

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """None: the values go on as they are."""
        return ()

    def online_phase(self, env_steps: int) -> Phase:
        """Perturbed expectile regression."""
        names = ("expectile", "inverse_temperature", "advantage_weight_max")
        own = {name: getattr(self, name) for name in names}
        shared = {f.name for f in fields(SO2OnIQL)} & {f.name for f in fields(SO2)}
        algorithm = SO2OnIQL(**{name: getattr(self.algorithm, name) for name in shared}, **own)
        return Phase("online", algorithm, online=self.schedule(env_steps))
