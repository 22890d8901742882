"""PROTO's trust region: a reference policy that follows the actor slowly, and a weight that falls (arXiv:2305.15669).

    pi_ref <- (1 - rho) pi_ref + rho pi           parameters, after every step of the actor
    beta_t  = beta_0 max(1 - decay t / horizon, 0)      t: updates since the phase began

Sources: ../spec/baselines.md 12.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from segue.core.model import Model
from segue.core.types import Models


class ProximalState(NamedTuple):
    """What the trust region remembers."""

    policy: Model  # pi_ref, frozen
    origin: jax.Array  # [] int32 updates made before it began


@dataclass(frozen=True)
class Proximal:
    """Settings of the trust region."""

    proximal_weight: float = 2.0  # beta_0 [baselines.md 12; 0.5 on AntMaze]
    proximal_decay: float = 0.9  # the part of beta_0 that is gone at the horizon [baselines.md 12]
    proximal_horizon: int = 1_000_000  # updates [baselines.md 12]
    reference_update_rate: float = 0.005  # rho [baselines.md 12; 5e-5 on AntMaze]

    def resumed(self, models: Models, kind: str) -> bool:
        """Whether an earlier phase's trust region about a policy of form `kind` goes on."""
        return "proximal_reference" in models and models["proximal_reference"].net.kind == kind

    def init(self, models: Models, actor: Model, updates: jax.Array) -> ProximalState:
        """The one that goes on, or a new one about `actor` as it is after `updates` [] updates."""
        if self.resumed(models, actor.net.kind):
            return ProximalState(models["proximal_reference"], models["proximal_origin"])
        return ProximalState(actor.frozen(), jnp.copy(updates))  # a donated state may not hold one buffer twice

    def weight(self, p: ProximalState, updates: jax.Array) -> jax.Array:
        """beta_t [] in the update that follows `updates` [] of them."""
        progress = (updates - p.origin) / self.proximal_horizon
        return self.proximal_weight * jnp.maximum(1 - self.proximal_decay * progress, 0.0)

    def followed(self, p: ProximalState, actor: Model) -> ProximalState:
        """After a step of the actor."""
        tracked = replace(actor, target=p.policy.params).track(self.reference_update_rate)
        return p._replace(policy=replace(p.policy, params=tracked.target))

    def export(self, p: ProximalState) -> Models:
        """Reference policy and origin."""
        return {"proximal_reference": p.policy, "proximal_origin": p.origin}
