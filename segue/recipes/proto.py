"""PROTO on SAC and on TD3. Sources: ../spec/baselines.md 12, baselines_hparams.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from segue.core.phases import Phase, ReplayStart
from segue.methods.proto_sac import ProtoSAC
from segue.methods.proto_td3 import ProtoTD3
from segue.methods.xql import XQL
from segue.recipes.base import Recipe
from segue.recipes.datasets import ANTMAZE, LOCOMOTION
from segue.recipes.handover import cloning, like

IN_MAZES: dict[str, Any] = {
    "value_temperature": 0.5,
    "proximal_weight": 0.5,
    "reference_update_rate": 5e-5,
    "target_critic": "random",
    "reward_bias": -1.0,
}
WALKING: dict[str, dict[str, Any]] = {
    name: {"reward_scale_by_return_range": True} | ({"critic_layer_norm": False} if "halfcheetah" in name else {})
    for name in LOCOMOTION
}


@dataclass(frozen=True, kw_only=True)
class _Proto(Recipe):
    """What does not depend on the host."""

    paper: ClassVar[str] = "Li et al. 2023, arXiv:2305.15669"
    forms: ClassVar[tuple[str, ...]]  # of the policies that the host goes on with
    preset_updates: ClassVar[Mapping[str, int]] = (
        dict.fromkeys(LOCOMOTION, 100_000) | dict.fromkeys(ANTMAZE, 200_000)
    )

    algorithm: ProtoSAC | ProtoTD3
    value_temperature: float = 2.0  # XQL's T [baselines.md 12; 0.5 on AntMaze]
    gumbel_clip: float = 7.0  # XQL's z_max [baselines.md 12]
    advantage_weight_max: float = 100.0  # of XQL's exponential weights [baselines.md 12]
    value_learning_rate: float = 3e-4  # Adam, of XQL's V [baselines.md 12]
    clone_updates: int = 0  # of a clone of a policy of another form; 0: such a one is refused [ocr_cft.md 3 R iv]
    warmup_steps: int = 0  # online steps that only act and store [baselines.md 12: none]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """XQL, from which the paper goes on with either host."""
        own = {
            "value_temperature": self.value_temperature,
            "gumbel_clip": self.gumbel_clip,
            "advantage_weight_max": self.advantage_weight_max,
            "value_learning_rate": self.value_learning_rate,
            "actor_learning_rate": self.algorithm.actor_learning_rate,
        }
        return (Phase("offline", like(XQL, self.algorithm, own), updates),)

    def adapted(self, before: str | None) -> Recipe:
        """A policy of either form that the host knows is gone on with as it is."""
        algorithm: Any = self.algorithm
        return replace(self, algorithm=replace(algorithm, form=before)) if before in self.forms else self

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """A clone where it is asked for; the critics go on as they are."""
        return cloning(self.algorithm.form, before, self.clone_updates, self.algorithm.batch_size)

    def online_phase(self, env_steps: int) -> Phase:
        """The host near a reference that starts at the policy so far; a soft method's temperature starts anew."""
        fresh = ("temperature", "proximal_reference", "proximal_origin")
        return Phase("online", self.algorithm, online=self.schedule(env_steps), fresh=fresh)


@dataclass(frozen=True, kw_only=True)
class ProtoSACRecipe(_Proto):
    """PROTO on SAC."""

    summary: ClassVar[str] = "SAC near a policy that follows it slowly: the pull is strong at first and falls linearly"
    choose_when: ClassVar[str] = "after XQL (its own offline phase), IQL or CQL, for a steady rise over a long budget"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = WALKING | dict.fromkeys(
        ANTMAZE, IN_MAZES | {"backup_entropy": False}
    )
    forms: ClassVar[tuple[str, ...]] = ("gaussian", "tanh_gaussian")

    algorithm: ProtoSAC = ProtoSAC()
    replay: ReplayStart = "half"  # online batches: all the dataset, half of each, its best part, none [baselines.md 12]
    ring_start: int = 10_000  # rows of the dataset, at random, among the new ones from the start [baselines.md 12]


@dataclass(frozen=True, kw_only=True)
class ProtoTD3Recipe(_Proto):
    """PROTO on TD3."""

    summary: ClassVar[str] = "TD3 near a policy that follows it slowly: the pull is strong at first and falls linearly"
    choose_when: ClassVar[str] = "after TD3+BC, or XQL (its own offline phase), by whose mean it acts; less steady"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = WALKING | dict.fromkeys(
        ANTMAZE, IN_MAZES | {"target_action": "noisy_actor", "backup_distance": False}
    )
    forms: ClassVar[tuple[str, ...]] = ("gaussian", "deterministic")

    algorithm: ProtoTD3 = ProtoTD3()
    replay: ReplayStart = "all"  # online batches: all the dataset, half of each, its best part, none [baselines.md 12]
    offline_rows: int | None = 25_000  # of the dataset, at random, that take part online [baselines.md 12]
