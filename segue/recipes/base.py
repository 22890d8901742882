"""What a method is on the command line: settings, and the phases that they make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from segue.core.phases import Online, Phase, ReplayStart
from segue.core.sampling import Sampler
from segue.methods.balanced_replay import BalancedReplay
from segue.methods.baq import BehaviourPriority
from segue.recipes.behaviour import Behaviour

Rows = Literal["uniform", "behaviour", "balanced"]


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """Fields are settings; every one is an option with its default and source."""

    summary: ClassVar[str]  # one line: what it does
    choose_when: ClassVar[str]  # one line: when to choose it, and when not; continues "choose it ..."
    paper: ClassVar[str]
    needs_dataset: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # name -> flat settings that differ from the defaults
    preset_updates: ClassVar[Mapping[str, int]] = {}  # name -> default number of offline updates, where it is another

    normalize_observations: bool = False  # (s - mean) / (std + 0.001) with the dataset's statistics [ours: off]
    reward_scale: float = 1.0  # rewards are stored as reward * scale + bias [1 on MuJoCo, ssar.md 2.1]
    reward_scale_by_return_range: bool = False  # times episode limit / range of the data's returns [baselines.md 0.4]
    reward_bias: float = 0.0  # rewards are stored as reward * scale + bias [0 on MuJoCo, -1 on AntMaze, ssar.md 2.1]
    action_limit: float = 1.0  # dataset actions, in [-1, 1], are clipped to plus and minus this [1: they are not]
    replay: ReplayStart = "all"  # online batches: all the dataset, half of each, its best part, none [ssar.md 2.9]
    warmup_steps: int = 5_000  # online steps that only act and store [ssar.md 2.9]
    updates_per_step: float = 1.0  # online gradient updates per environment step [1 in the papers]
    sampling: Rows = "uniform"  # of "all" or "part": every row alike, or by BAQ's or Off2On's priority [uniform]
    behaviour: Behaviour = Behaviour()

    def schedule(self, env_steps: int, **changes: Any) -> Online:
        """The online schedule that these settings make; `changes` go before them."""
        names = ("warmup_steps", "random_warmup", "updates_per_step", "replay", "part_trajectories", "online_share",
                 "online_share_of_all", "offline_rows", "ring_start")  # fmt: skip
        values = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return Online(env_steps, **({"sampler": self.sampler} | values | changes))

    @property
    def sampler(self) -> Sampler | None:
        """In whose proportion online rows are drawn."""
        if self.sampling == "uniform":
            return None
        return BehaviourPriority() if self.sampling == "behaviour" else BalancedReplay()

    def continuing(self) -> Recipe:
        """These settings for going on from another method's policy, where they were made for beginning without one."""
        return self

    def adapted(self, before: str | None) -> Recipe:
        """These settings for going on from a policy of form `before`; of None there is none, or none that is known."""
        return self

    def behaviour_phases(self) -> tuple[Phase, ...]:
        """Phases that make a model of the data's behaviour, for sampling or weighing by it, where none is there."""
        return self.behaviour.phases() if self.sampling == "behaviour" else ()

    @abstractmethod
    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """The phases on the dataset, the last of them `updates` gradient steps long; () if it has none."""

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """Phases on the dataset between another method's policy and `online_phase`.

        `before` is that policy's form, None for an outside policy that is known by its actions alone.
        """
        return ()

    @abstractmethod
    def online_phase(self, env_steps: int) -> Phase:
        """The phase in the environment."""
