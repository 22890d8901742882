"""d3rlpy's algorithm beside each of ours, set as ours is as far as its API allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from benchmarks.subjects import Subject
from segue.core.types import Spec
from segue.methods.cql import CQL
from segue.nets.networks import Critics

PEERS = {  # method -> name in benchmarks/d3rlpy_updates.py
    "awac": "awac",
    "bc": "bc",
    "cal_ql": "cal_ql",
    "cql": "cql",
    "cql_ssar": "cql",
    "iql": "iql",
    "td3_bc": "td3_bc",
    "td3_bc_ssar": "td3_bc",
}
NO_SUCH = {"cql_ssar": "d3rlpy has no SSAR: CQL", "td3_bc_ssar": "d3rlpy has no SSAR: TD3+BC"}


@dataclass(frozen=True)
class Peer:
    """What stands beside one of our methods."""

    algorithm: str
    settings: dict[str, Any]  # of its Config, where hidden layers stand for an encoder factory
    differences: tuple[str, ...]


def peer_of(subject: Subject, spec: Spec) -> Peer | None:
    """The algorithm and settings that come nearest, or None where d3rlpy has nothing."""
    if subject.name not in PEERS:
        return None
    name, algorithm = PEERS[subject.name], subject.phase.algorithm
    state = jax.eval_shape(lambda: algorithm.init({}, spec, jax.random.key(0)))
    differences = [NO_SUCH[subject.name]] if subject.name in NO_SUCH else []
    settings: dict[str, Any] = {"batch_size": algorithm.batch_size, "gamma": algorithm.discount}
    if name == "bc":
        settings["encoder_factory"] = hidden_layers(state.actor.net)
        return Peer(name, settings, tuple(differences))
    critics: Critics = state.critic.net
    settings["actor_encoder_factory"] = hidden_layers(state.actor.net)
    settings["critic_encoder_factory"] = hidden_layers(critics)
    settings["n_critics"] = critics.count
    if critics.layer_norm:
        differences.append("no LayerNorm there")
    if critics.later_hidden_sizes:
        differences.append(f"the second critic's layers there are the first one's, here {critics.later_hidden_sizes}")
    if name == "iql":
        settings["value_encoder_factory"] = hidden_layers(state.value.net)
    if isinstance(algorithm, CQL):
        settings |= {
            "n_action_samples": algorithm.num_sampled_actions,
            "max_q_backup": algorithm.max_target_backup,
            "soft_q_backup": algorithm.backup_entropy,
            "alpha_learning_rate": 0.0,  # no Lagrange multiplier
        }
        differences.append("the target's action is the policy's mean there, a sample here")
    if name == "td3_bc":
        settings["update_actor_interval"] = algorithm.policy_update_interval
    return Peer(name, settings, tuple(differences))


def hidden_layers(net: Any) -> list[int]:
    """Widths between input and output."""
    return list(net.hidden_sizes if hasattr(net, "hidden_sizes") else net.sizes[1:-1])
