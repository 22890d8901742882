"""Between one method's policy and another method's online phase: clone, re-evaluate, align (../spec/ocr_cft.md 2, 3).

Each is left out where its number of updates is 0; a clone also where the policy is of the right form already.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from segue.core.algorithm import Algorithm
from segue.core.phases import Phase
from segue.errors import UserError
from segue.methods.clone import Clone
from segue.methods.o2ppo import O2PPO
from segue.methods.o2sac import SACAlignment, SACReevaluation
from segue.methods.o2td3 import TD3Alignment, TD3Reevaluation
from segue.methods.ppo import PPO
from segue.methods.return_value import ReturnValue

CLONE_ROWS = Clone().batch_size  # of a clone for a method whose own batches are rollouts


@dataclass(frozen=True)
class ValueHandover:
    """Updates on the dataset before the online phase of a method that learns V alone."""

    clone_updates: int = 0  # of a clone of a policy of another form; 0: such a one is refused [ocr_cft.md 3 R iv]
    reevaluation_updates: int = 0  # of a fresh V or Q of the policy; 0: none, what there is goes on [ocr_cft.md 2]


@dataclass(frozen=True)
class Handover(ValueHandover):
    """Updates on the dataset before the online phase of a method that learns Q."""

    alignment_updates: int = 0  # of bringing Q and policy in line; 0: none [ocr_cft.md 2.2 b, 2.3 b]


Form = Literal["deterministic", "tanh_gaussian", "gaussian"]


def cloning(form: Form, before: str | None, updates: int, batch_size: int, **settings: Any) -> tuple[Phase, ...]:
    """A clone of the policy so far, of form `before`; None: an outside policy, known by its actions alone.

    `settings` are further ones of the clone. Raises UserError where such a one is not to be cloned.
    """
    if before == form:
        return ()
    if updates:
        teacher: Literal["labels", "actor"] = "labels" if before is None else "actor"
        clone = Clone(form=form, teacher=teacher, batch_size=batch_size, **settings)
        return (Phase("clone", clone, updates, relabel=not before),)
    if before is None:
        raise UserError("phase 'online' cannot begin from a policy that is known by its actions alone: clone it first, "
                        "with --clone-updates 100000")  # fmt: skip
    return ()  # left to segue.core.phases.check, which refuses what does not fit


def sac_handover(handover: Handover, before: str | None, algorithm: Algorithm, **settings: Any) -> tuple[Phase, ...]:
    """To a method with a squashed Gaussian policy and soft critics; `settings` go before what `algorithm` shares."""
    clone = cloning("tanh_gaussian", before, handover.clone_updates, algorithm.batch_size)
    return clone + _aligned(handover, SACReevaluation, SACAlignment, algorithm, settings)


def td3_handover(handover: Handover, before: str | None, algorithm: Algorithm, **settings: Any) -> tuple[Phase, ...]:
    """To a method with a deterministic policy; `settings` go before what `algorithm` shares."""
    clone = cloning("deterministic", before, handover.clone_updates, algorithm.batch_size)
    return clone + _aligned(handover, TD3Reevaluation, TD3Alignment, algorithm, settings)


def _aligned(
    handover: Handover, evaluation: Any, alignment: Any, algorithm: Algorithm, settings: dict[str, Any]
) -> tuple[Phase, ...]:
    steps = (
        ("re-evaluation", evaluation, handover.reevaluation_updates),
        ("alignment", alignment, handover.alignment_updates),
    )
    return tuple(Phase(name, like(kind, algorithm, settings), updates) for name, kind, updates in steps if updates)


def ppo_handover(
    handover: ValueHandover, before: str | None, algorithm: PPO | O2PPO, scaled: bool
) -> tuple[Phase, ...]:
    """To a method with an unsquashed Gaussian policy and a value of states; `scaled` by the running return."""
    phases = cloning("gaussian", before, handover.clone_updates, CLONE_ROWS)
    if handover.reevaluation_updates:
        value = ReturnValue(discount=algorithm.discount, hidden_sizes=algorithm.value_hidden_sizes)
        updates = handover.reevaluation_updates
        phases += (Phase("re-evaluation", value, updates, scale_rewards_by_running_return=scaled),)
    return phases


def like(kind: Any, algorithm: Algorithm, settings: dict[str, Any]) -> Any:
    """A `kind` with the settings that it shares with the online algorithm, so that the networks fit each other."""
    shared = ("batch_size", "discount", "target_update_rate", "critic_learning_rate", "hidden_sizes",
              "critic_hidden_sizes", "critic_layer_norm", "num_critics", "target_noise_std",
              "target_noise_clip")  # fmt: skip
    known = {field.name for field in fields(kind)}
    values = {name: getattr(algorithm, name) for name in shared if hasattr(algorithm, name)} | settings
    return kind(**{name: value for name, value in values.items() if name in known})
