"""BAQ on CQL and on IQL. Source: ../spec/baq.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from segue.core.phases import Phase
from segue.core.sampling import Sampler
from segue.core.weighting import Weighting
from segue.methods.baq import BehaviourPriority, BehaviourWeight
from segue.methods.cql import CQL
from segue.methods.iql import IQL
from segue.recipes.base import Rows
from segue.recipes.cql import FAST, CQLRecipe
from segue.recipes.datasets import LOCOMOTION
from segue.recipes.iql import IQLRecipe

PAPER = "Behavior Adaption Q-Learning, OpenReview d159zNCmOq"
SAME: dict[str, Any] = {}  # the paper names no setting, so none of a dataset either


@dataclass(frozen=True, kw_only=True)
class BAQCQLRecipe(CQLRecipe):
    """BAQ on CQL."""

    summary: ClassVar[str] = "CQL whose rows online count by nearness to the data's policy, and are drawn by distance"
    choose_when: ClassVar[str] = "after CQL, for few online steps without a fall; --preset fast on a CPU"
    paper: ClassVar[str] = PAPER
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"fast": FAST} | dict.fromkeys(LOCOMOTION, SAME)

    algorithm: CQL = CQL(
        conservative_weight=5.0,
        initialization="plain",
        hidden_sizes=(256, 256),
        critic_hidden_sizes=(256, 256),
        actor_learning_rate=3e-4,
    )
    weight: BehaviourWeight = BehaviourWeight()
    priority: BehaviourPriority = BehaviourPriority()
    use_weight: bool = True  # weigh squared errors; off: Our-S [paper]
    sampling: Rows = "behaviour"  # of "all" or "part": by BAQ's priority; uniform: Our-Q; or by Off2On's [paper]
    conservative_weight_online: float = 5.0  # the conservative term stays on, as offline [ours, baq.md 5]
    normalize_observations: bool = False  # (s - mean) / (std + 0.001) of the dataset [ours, baq.md 5: none]
    action_limit: float = 0.999  # dataset actions, in [-1, 1], are clipped to plus and minus this [ours, baq.md 5]

    @property
    def sampler(self) -> Sampler | None:
        """With the settings of BAQ's priority."""
        return self.priority if self.sampling == "behaviour" else super().sampler

    def behaviour_phases(self) -> tuple[Phase, ...]:
        """Between the offline phase and the online one, if anything reads it."""
        return self.behaviour.phases() if self.use_weight else super().behaviour_phases()

    def online_phase(self, env_steps: int) -> Phase:
        """CQL as offline, its rows weighted and drawn by priority."""
        return _adapted(self, super().online_phase(env_steps))


@dataclass(frozen=True, kw_only=True)
class BAQIQLRecipe(IQLRecipe):
    """BAQ on IQL."""

    summary: ClassVar[str] = "IQL whose rows online count by nearness to the data's policy, and are drawn by distance"
    choose_when: ClassVar[str] = "after IQL, for few online steps without a fall"
    paper: ClassVar[str] = PAPER
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = dict.fromkeys(LOCOMOTION, SAME)

    algorithm: IQL = IQL(cosine_updates=None)
    weight: BehaviourWeight = BehaviourWeight()
    priority: BehaviourPriority = BehaviourPriority()
    use_weight: bool = True  # weigh squared errors; off: Our-S [paper]
    sampling: Rows = "behaviour"  # of "all" or "part": by BAQ's priority; uniform: Our-Q; or by Off2On's [paper]
    normalize_observations: bool = False  # (s - mean) / (std + 0.001) of the dataset [ours, baq.md 5: none]
    reward_scale_by_return_range: bool = True  # times episode limit / range of the data's returns [ours, baq.md 5]

    @property
    def sampler(self) -> Sampler | None:
        """With the settings of BAQ's priority."""
        return self.priority if self.sampling == "behaviour" else super().sampler

    def behaviour_phases(self) -> tuple[Phase, ...]:
        """Between the offline phase and the online one, if anything reads it."""
        return self.behaviour.phases() if self.use_weight else super().behaviour_phases()

    def online_phase(self, env_steps: int) -> Phase:
        """IQL as offline, its rows weighted and drawn by priority."""
        return _adapted(self, super().online_phase(env_steps))


def _adapted(recipe: BAQCQLRecipe | BAQIQLRecipe, host: Phase) -> Phase:
    """The host's online phase with BAQ's weights; the paper's window is 30,000 steps."""
    weighting: Weighting | None = recipe.weight if recipe.use_weight else None
    algorithm: Any = host.algorithm
    return replace(host, algorithm=replace(algorithm, weighting=weighting), evaluation_interval=1_000)
