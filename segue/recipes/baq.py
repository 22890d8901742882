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
from segue.recipes.behaviour import Behaviour
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
    behaviour: Behaviour = Behaviour()
    weight: BehaviourWeight = BehaviourWeight()
    priority: BehaviourPriority = BehaviourPriority()
    use_weight: bool = True  # weigh squared errors; off: Our-S [paper]
    use_priority: bool = True  # draw rows by priority; off: Our-Q [paper]
    conservative_weight_online: float = 5.0  # the conservative term stays on, as offline [ours, baq.md 5]
    normalize_observations: bool = False  # (s - mean) / (std + 0.001) of the dataset [ours, baq.md 5: none]
    action_limit: float = 0.999  # dataset actions, in [-1, 1], are clipped to plus and minus this [ours, baq.md 5]

    def behaviour_phases(self) -> tuple[Phase, ...]:
        """Between the offline phase and the online one."""
        return _behaviour(self)

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
    behaviour: Behaviour = Behaviour()
    weight: BehaviourWeight = BehaviourWeight()
    priority: BehaviourPriority = BehaviourPriority()
    use_weight: bool = True  # weigh squared errors; off: Our-S [paper]
    use_priority: bool = True  # draw rows by priority; off: Our-Q [paper]
    normalize_observations: bool = False  # (s - mean) / (std + 0.001) of the dataset [ours, baq.md 5: none]
    reward_scale_by_return_range: bool = True  # times episode limit / range of the data's returns [ours, baq.md 5]

    def behaviour_phases(self) -> tuple[Phase, ...]:
        """Between the offline phase and the online one."""
        return _behaviour(self)

    def online_phase(self, env_steps: int) -> Phase:
        """IQL as offline, its rows weighted and drawn by priority."""
        return _adapted(self, super().online_phase(env_steps))


def _behaviour(recipe: BAQCQLRecipe | BAQIQLRecipe) -> tuple[Phase, ...]:
    """The model's phase, if anything reads it."""
    return recipe.behaviour.phases() if recipe.use_weight or recipe.use_priority else ()


def _adapted(recipe: BAQCQLRecipe | BAQIQLRecipe, host: Phase) -> Phase:
    """The host's online phase with BAQ's weights and sampler; the paper's window is 30,000 steps."""
    assert host.online is not None
    weighting: Weighting | None = recipe.weight if recipe.use_weight else None
    sampler: Sampler | None = recipe.priority if recipe.use_priority else host.online.sampler
    algorithm: Any = host.algorithm
    return replace(
        host,
        algorithm=replace(algorithm, weighting=weighting),
        online=replace(host.online, sampler=sampler),
        evaluation_interval=1_000,
    )
