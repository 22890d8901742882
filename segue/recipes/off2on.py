"""Off2On. Sources: ../spec/baselines.md 9, baselines_hparams.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from segue.core.independent import Independent
from segue.core.phases import Phase, ReplayStart
from segue.core.sampling import Sampler
from segue.methods.balanced_replay import BalancedReplay
from segue.methods.cql import CQL
from segue.methods.off2on import Off2On
from segue.nets.ensemble import joined_critics, joined_policy
from segue.recipes.base import Recipe, Rows
from segue.recipes.handover import Handover, like, sac_handover

# Not the paper's: two members, and of each about a tenth of CQL's arithmetic, for work on a CPU.
FAST: dict[str, Any] = {
    "ensemble_size": 2,
    "num_sampled_actions": 4,
    "critic_hidden_sizes": (128, 128),
    "offline_actor_learning_rate": 1e-4,
    "ratio_hidden_sizes": (128, 128),
}
PRESETS: dict[str, dict[str, Any]] = {"fast": FAST, "baq": {"ensemble_size": 1}}  # in BAQ's tables: no ensemble
JOINS = (("actor", joined_policy), ("critic", joined_critics))


@dataclass(frozen=True, kw_only=True)
class Off2OnRecipe(Recipe):
    """Off2On: of one CQL run that exists, or of an ensemble of its own.

    The paper takes 1,000 environment steps and then makes 1,000 updates, ten times as many after the first; here, as in
    OCR-CFT's comparison, every step is followed by its update, and there is no such first epoch.
    """

    summary: ClassVar[str] = "CQL agents as one SAC agent, on rows by how likely the policy itself makes them"
    choose_when: ClassVar[str] = "after CQL, to improve fast; its own ensemble costs five times CQL, --preset fast less"
    paper: ClassVar[str] = "Lee et al. 2021, arXiv:2107.00591"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    algorithm: Off2On = Off2On()
    balanced: BalancedReplay = BalancedReplay()
    handover: Handover = Handover()
    sampling: Rows = "balanced"  # of "all" or "part": every row alike, or by BAQ's or Off2On's priority [the paper]
    ensemble_size: int = 5  # N, CQL agents of its offline phase [baselines.md 9; 1 in BAQ's comparison]
    conservative_weight: float = 10.0  # of their CQL [baselines.md 3: 10 on MuJoCo, 5 on AntMaze]
    num_sampled_actions: int = 10  # of their CQL [baselines.md 3]
    critic_hidden_sizes: tuple[int, ...] = (256, 256)  # of their critics [baselines.md 9]
    offline_actor_learning_rate: float = 3e-5  # Adam, of their policies [baselines.md 3: 3e-5 MuJoCo, 1e-4 AntMaze]
    replay: ReplayStart = "all"  # online batches: all the dataset, half of each, its best part, none [baselines.md 9]
    warmup_steps: int = 1_000  # steps that only act and store [baselines.md 9: the first epoch's, whose share f is]

    def offline_phases(self, updates: int) -> tuple[Phase, ...]:
        """CQL, or as many independent ones as there shall be members."""
        cql = like(
            CQL,
            self.algorithm,
            {
                "conservative_weight": self.conservative_weight,
                "num_sampled_actions": self.num_sampled_actions,
                "critic_hidden_sizes": self.critic_hidden_sizes,
                "actor_learning_rate": self.offline_actor_learning_rate,
            },
        )
        agents = cql if self.ensemble_size == 1 else Independent(cql, self.ensemble_size, JOINS)
        return (Phase("offline", agents, updates),)

    def handover_phases(self, before: str | None) -> tuple[Phase, ...]:
        """As SAC's, if asked for."""
        return sac_handover(
            self.handover,
            before,
            self.algorithm,
            critic_hidden_sizes=self.critic_hidden_sizes,
            critic_layer_norm=False,
        )

    def online_phase(self, env_steps: int) -> Phase:
        """Soft actor-critic of all members on balanced rows, the temperature anew."""
        return Phase("online", self.algorithm, online=self.schedule(env_steps), fresh=("temperature",))

    @property
    def sampler(self) -> Sampler | None:
        """With the settings of balanced replay."""
        return self.balanced if self.sampling == "balanced" else super().sampler
