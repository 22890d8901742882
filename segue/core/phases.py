"""Phases: an algorithm running on data. A run is a tuple of them; what one makes, the next may continue."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from segue.core.algorithm import Algorithm
from segue.core.replay import Mix
from segue.core.sampling import Sampler
from segue.core.types import Models
from segue.errors import UserError

FITTING = {  # methods that continue a policy of each form, for the message that refuses another
    "deterministic": "td3, td3_bc, rebrac, proto_td3 or iql --deterministic-actor",
    "tanh_gaussian": "sac, cql, cal_ql, off2on, so2, wsrl or proto_sac",
    "gaussian": "ppo, iql, awac, proto_sac or uni_o4",
}
CLONING = "pex, or o2sac, o2td3 or o2ppo, which clone it (as sac, td3 and ppo do with --clone-updates 100000)"
ReplayStart = Literal["all", "half", "part", "none"]
MIXES: dict[ReplayStart, Mix] = {"all": "joined", "part": "joined", "half": "half", "none": "online"}


@dataclass(frozen=True)
class Online:
    """The schedule of an online phase, in environment steps."""

    env_steps: int
    warmup_steps: int = 0  # act and store, do not learn
    random_warmup: bool = False  # uniform actions during the warm-up instead of the policy's
    updates_per_step: float = 1.0  # the update-to-data ratio
    replay: ReplayStart = "none"  # what of the dataset online batches may hold
    part_trajectories: int = 50  # how many of the best trajectories "part" keeps
    online_share: float = 0.5  # of each batch from the ring, with replay "half"
    online_share_of_all: float | None = None  # the same with replay "all" or "part"; None: every row of both alike
    offline_rows: int | None = None  # of the dataset, at random; None: all
    ring_start: int = 0  # rows of the dataset, at random, with which the ring begins
    sampler: Sampler | None = None  # in whose proportion the rows of "all" or "part" are drawn; None: every row alike
    inherit_trust: bool = False  # released SSAR: new rows take the flags of the rows whose slots they fill


@dataclass(frozen=True)
class Selection:
    """How the sub-dataset of trusted rows is chosen (../spec/ssar.md 2.2)."""

    rule: Literal["return", "iql_advantage", "success", "none"] = "none"
    threshold: float | None = None  # of the return
    quantile: float | None = None  # of the dataset's returns, where no threshold is given
    failure_reward: float = -1.0  # last reward of an unsuccessful trajectory, after scaling
    strict: bool = True  # an empty or a full selection is an error, not a warning


@dataclass(frozen=True)
class Phase:
    """`updates` gradient steps on the dataset, or an online schedule."""

    name: str
    algorithm: Algorithm
    updates: int = 0
    online: Online | None = None
    selection: Selection = Selection()
    replay_drop_last: bool = False  # released "part" always loses the data's last trajectory
    failure_reward: float | None = None  # stored; an episode that ends with it has the return-to-go of failing for ever
    scale_rewards_by_running_return: bool = False  # by the std of the discounted sum so far, segue.reward_scaling
    relabel: bool = False  # the dataset's actions are those that an outside policy would take
    evaluation_interval: int | None = None  # steps between evaluations, where the user names none
    top_fraction: float = 1.0  # of the dataset's episodes, those of the highest returns, are all that it learns from
    fresh: tuple[str, ...] = ()  # roles that it makes anew although an earlier phase made them

    @property
    def steps(self) -> int:
        """Gradient updates offline, environment steps online."""
        return self.online.env_steps if self.online else self.updates

    @property
    def mix(self) -> Mix:
        """Where its batches come from."""
        if self.online is None:
            return "offline"
        if self.algorithm.on_policy:
            return "rollout"
        mix = MIXES[self.online.replay]
        if mix == "half" and self.online.online_share == 1:
            return "online"
        return "boosted" if mix == "joined" and self.online.online_share_of_all is not None else mix

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles that must exist before it starts."""
        selector = ("selector_critic", "selector_value") if self.selection.rule == "iql_advantage" else ()
        sampler = self.online.sampler.needs if self.online and self.online.sampler else ()
        return self.algorithm.needs + selector + sampler

    def continued(self, models: Models) -> Models:
        """Those of `models` that it goes on with."""
        return {role: model for role, model in models.items() if role not in self.fresh}


def check(phases: Iterable[Phase], roles: set[str], policy_kind: str | None) -> None:
    """Refuse what cannot compose before anything compiles.

    `roles` and `policy_kind` describe what exists before the first phase. Raises UserError that names the phase, what
    it lacks, and the remedy.
    """
    for phase in phases:
        algorithm = phase.algorithm
        roles = roles - set(phase.fresh)
        policy_kind = None if "actor" in phase.fresh else policy_kind
        missing = [role for role in phase.needs if role not in roles]
        if missing:
            remedy = "start from a run whose method makes them"
            if missing == ["critic"]:
                remedy = "keep --reevaluation-updates above 0, which makes one"
            if "actor" in missing:
                remedy = "start from a policy: segue run METHOD --offline METHOD, or segue finetune RUN"
            if missing == ["behaviour"]:
                remedy = "keep --behaviour-updates above 0, which make one"
            if "selector_critic" in missing:
                remedy = "choose --selection return, or start from a run that selected by IQL's advantage"
            lacking = " and ".join(missing)
            raise UserError(f"phase '{phase.name}' needs {lacking}, which no earlier phase made: {remedy}")
        other = algorithm.policy_kind and policy_kind and algorithm.policy_kind != policy_kind
        if policy_kind == "sequence" and other and ("actor" in phase.needs or not algorithm.new_policy):
            raise UserError(
                f"phase '{phase.name}' ({type(algorithm).__name__}) cannot go on from a policy that acts on an "
                "episode's history: go on with odt"
            )
        if policy_kind and other and not algorithm.new_policy:
            fitting = FITTING[policy_kind]
            raise UserError(
                f"phase '{phase.name}' ({type(algorithm).__name__}) continues a {algorithm.policy_kind} policy, but "
                f"the policy so far is {policy_kind}: go on with {fitting}, or with {CLONING}"
            )
        if phase.mix == "rollout" and phase.online and phase.online.replay != "none":
            raise UserError(
                f"phase '{phase.name}' ({type(algorithm).__name__}) learns from its own latest steps and has no "
                "replay: leave --replay out, or choose o2sac or o2td3"
            )
        if phase.online and phase.online.sampler and (phase.mix != "joined" or algorithm.window):
            raise UserError(
                f"phase '{phase.name}' ({type(algorithm).__name__}) cannot draw rows by priority, which takes one pool "
                "of dataset and new rows, each by itself: choose --replay all or part, or --sampling uniform"
            )
        if phase.steps < 1:
            raise UserError(f"phase '{phase.name}' has {phase.steps} steps; it needs at least 1")
        roles = roles | set(algorithm.gives)
        policy_kind = algorithm.policy_kind or policy_kind
