"""SUF as we read it: unconstrained fine-tuning by other update ratios. Source: ../spec/baselines.md 14.

Its text is not public; every number is ours. The equations are those of the host without its offline constraint: SAC
for CQL's policies, TD3 for TD3+BC's, IQL's values with an actor that climbs Q for IQL's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from segue.core.phases import Phase
from segue.errors import UserError
from segue.methods.iql import IQL
from segue.methods.sac import SAC
from segue.methods.td3 import TD3
from segue.recipes.base import Recipe

Host = Literal["sac", "td3", "iql"]
HOSTS: dict[str, Host] = {"tanh_gaussian": "sac", "deterministic": "td3", "gaussian": "iql"}  # by the policy's form
KINDS: dict[str, type[SAC] | type[TD3] | type[IQL]] = {"sac": SAC, "td3": TD3, "iql": IQL}


@dataclass(frozen=True, kw_only=True)
class SUFRecipe(Recipe):
    """SUF."""

    summary: ClassVar[str] = "no offline constraint; critics learn ten times a step, the actor every other step"
    choose_when: ClassVar[str] = "as the yardstick of what update ratios alone can do; after CQL, TD3+BC or IQL"
    paper: ClassVar[str] = "Feng et al. 2024, AAAI, 10.1609/aaai.v38i11.29083 (our reading: its text is not public)"
    needs_dataset: ClassVar[bool] = False

    host: Host | None = None  # whose losses; None: by the policy's form [ours, baselines.md 14]
    policy_update_interval: int = 20  # critic updates per actor update: one every other step [ours, baselines.md 14]
    updates_per_step: float = 10.0  # critic updates per environment step [ours, baselines.md 14]
    warmup_steps: int = 0  # online steps that only act and store [ours: as BAQ's window, which it is compared in]
    batch_size: int = 256  # rows per update [ours, baselines.md 14]
    discount: float = 0.99  # gamma [as the hosts']
    expectile: float = 0.7  # tau, of IQL's values [Kostrikov et al. 2021, App. B; 0.9 on AntMaze]
    actor_learning_rate: float = 3e-4  # Adam [as the hosts']
    critic_learning_rate: float = 3e-4  # Adam [as the hosts']
    hidden_sizes: tuple[int, ...] = (256, 256)  # where no network is continued [as the hosts']

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """None: another method learns the policy."""
        return ()

    def adapted(self, before: str | None) -> Recipe:
        """With the host of the policy's form."""
        return self if self.host or before is None else replace(self, host=HOSTS.get(before))

    def online_phase(self, env_steps: int) -> Phase:
        """The host's losses at other ratios. Raises UserError without a policy to go on from."""
        if self.host is None:
            raise UserError("suf goes on from a policy of CQL, TD3+BC or IQL: name its run, or choose --host")
        names = ("policy_update_interval", "batch_size", "discount", "actor_learning_rate", "critic_learning_rate",
                 "hidden_sizes")  # fmt: skip
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.host == "iql":
            settings |= {"expectile": self.expectile, "actor_objective": "soft_q"}
        return Phase("online", KINDS[self.host](**settings), online=self.schedule(env_steps))
