"""The model of the data's behaviour as settings. Source: ../spec/baq.md 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segue.core.phases import Phase
from segue.errors import UserError
from segue.methods.behaviour import BehaviourModel


@dataclass(frozen=True)
class Behaviour:
    """The model of the data's policy, which weights and priorities are read off."""

    behaviour_updates: int = 100_000  # at most; it stops early on trajectories held out [ours, baq.md 2]
    behaviour_check_interval: int = 2_000  # updates between its checks on those [ours, baq.md 2]
    behaviour_patience: int = 10  # checks without a gain after which it stops [ours, baq.md 2]
    behaviour_kind: Literal["deterministic", "tanh_gaussian"] = "deterministic"  # its form [ours, baq.md 2]
    behaviour_hidden_sizes: tuple[int, ...] = (256, 256)  # [ours, baq.md 2: as the hosts' actors]
    behaviour_learning_rate: float = 3e-4  # Adam [ours, baq.md 2]
    behaviour_batch_size: int = 256  # rows per update [ours, baq.md 2]

    def phases(self) -> tuple[Phase, ...]:
        """Its phase on the dataset. Raises UserError if it would end before a trained model was checked once."""
        if self.behaviour_updates == 0:
            return ()
        if self.behaviour_updates < 2 * self.behaviour_check_interval:
            raise UserError(
                f"--behaviour-updates {self.behaviour_updates}: give at least twice --behaviour-check-interval "
                f"({self.behaviour_check_interval}): a model's error is measured while the next one learns"
            )
        model = BehaviourModel(
            kind=self.behaviour_kind,
            hidden_sizes=self.behaviour_hidden_sizes,
            learning_rate=self.behaviour_learning_rate,
            batch_size=self.behaviour_batch_size,
            check_interval=self.behaviour_check_interval,
            patience=self.behaviour_patience,
        )
        return (Phase("behaviour", model, self.behaviour_updates),)
