"""What a phase finds when it begins: the prepared rows, their trust flags, and how new online rows are flagged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue.core.phases import Phase
from segue.core.replay import DERIVED
from segue.core.types import Batch, Models
from segue.data import Dataset
from segue.data.prepare import (
    best_episodes,
    episode_tails,
    held_out_rows,
    return_to_go,
    time_steps,
    top_trajectories,
)
from segue.episode_returns import ReturnRule
from segue.errors import UserError
from segue.preparation import Preparation
from segue.reward_scaling import RunningReturn
from segue.selection import DEFAULT_EPISODE_LIMIT, trust_flags

PROBE_ROWS = 1024  # fixed sample of the dataset for diagnostics
# A new online row's extras: it is trusted; its return is not known before its episode ends, and bounds nothing; the
# loop says which rows end an episode, and how far into one each is.
NEW_ROW_VALUES = {"trust": 1.0, "return_to_go": -np.inf, "last": 0.0, "time_step": 0.0}


@dataclass(frozen=True)
class PhaseData:
    """The offline side of a phase's memory."""

    rows: Batch | None  # leaves [N, ...] on the device
    columns: dict[str, np.ndarray]  # [seeds, N]
    selection: dict[str, Any] | None  # rule and share of the trusted rows
    probe: Batch | None  # a fixed sample for diagnostics
    probe_columns: dict[str, np.ndarray]
    reward_scale: float | None  # largest |reward| of the dataset
    new_row_extras: Callable[[int], dict[str, np.ndarray]]  # number of online rows so far -> columns of the next
    running_return: RunningReturn | None = None  # by which the rewards were scaled, and online ones have to be
    ring_start: Batch | None = None  # rows with which every seed's ring begins, leaves [seeds, n, ...]


def prepared_rows(dataset: Dataset, preparation: Preparation, actions: np.ndarray | None = None) -> Batch:
    """The dataset as the networks see it, on the device; actions (others than its own, if given) in [-1, 1]."""
    # In float64, or actions that already lie in [-1, 1] would lose their last bits.
    low, high = dataset.action_low.astype(np.float64), dataset.action_high.astype(np.float64)
    limit = preparation.action_limit
    actions = dataset.actions if actions is None else actions
    return Batch(
        obs=jnp.asarray(preparation.observation(dataset.observations)),
        action=jnp.asarray(np.clip(2 * (actions - low) / (high - low) - 1, -limit, limit), jnp.float32),
        reward=jnp.asarray(preparation.reward(dataset.rewards), jnp.float32),
        next_obs=jnp.asarray(preparation.observation(dataset.next_observations)),
        terminal=jnp.asarray(dataset.terminated, jnp.float32),
        extras={},
    )


def phase_data(
    phase: Phase,
    dataset: Dataset | None,
    preparation: Preparation,
    models: Models,
    seeds: int,
    labels: np.ndarray | None = None,
) -> PhaseData:
    """Prepare the rows and flags of `phase`. Raises UserError if it needs a dataset and there is none.

    `labels` [N, A] are the actions of an outside policy, in the environment's units, for a phase that wants them.
    """
    wanted = columns_of(phase)
    wants_flags = "trust" in wanted
    first = {name: np.full(seeds, NEW_ROW_VALUES[name], np.float32) for name in wanted if phase.online}
    running = RunningReturn(phase.algorithm.discount) if phase.scale_rewards_by_running_return else None

    def of_new_rows(step: int) -> dict[str, np.ndarray]:
        return first

    nothing = {name: np.ones((seeds, 0), np.float32) for name in wanted}
    if dataset is None:
        if phase.mix not in ("online", "rollout") or (phase.online and phase.online.ring_start):
            raise UserError(f"phase '{phase.name}' learns from a dataset: give one with --dataset, or --replay none")
        return PhaseData(None, nothing, None, None, {}, None, of_new_rows, running)
    rows = prepared_rows(dataset, preparation, labels if phase.relabel else None)
    if running:
        ended = dataset.terminated | dataset.truncated
        scaled = running.over_dataset(np.asarray(rows.reward, np.float64), dataset.terminated, ended)
        rows = rows._replace(reward=jnp.asarray(scaled, jnp.float32))
    columns: dict[str, np.ndarray] = {}
    selection = None
    if wants_flags:
        limit = dataset.max_episode_steps
        scaled_returns = _scaled_returns(dataset, preparation)
        columns["trust"], selection = trust_flags(phase.selection, rows, scaled_returns, limit, models, seeds)
    if "return_to_go" in wanted:
        columns["return_to_go"] = np.tile(_returns_to_go(phase, dataset, rows), (seeds, 1))
    if "time_step" in wanted:
        columns["time_step"] = np.tile(_time_steps(dataset, rows), (seeds, 1))
    if "rows_to_end" in wanted:
        columns |= {name: np.tile(x, (seeds, 1)) for name, x in _episode_tails(phase, dataset, rows).items()}
    if "held_out" in wanted:
        columns["held_out"] = np.tile(held_out_rows(dataset.episode_ends), (seeds, 1)).astype(np.float32)
    scale = float(np.abs(np.asarray(rows.reward)).max())
    sample = np.random.default_rng(0).integers(0, len(dataset), min(PROBE_ROWS, len(dataset)))
    probe = jax.tree.map(lambda x: x[sample], rows)
    probe_columns = {name: flags[:, sample] for name, flags in columns.items()}
    extras: Callable[[int], dict[str, np.ndarray]] = of_new_rows
    if phase.online and phase.online.replay == "part":
        kept = _best_rows(phase, rows)
        if phase.online.inherit_trust and wants_flags:
            extras = inherited(columns["trust"], len(kept))
        rows = jax.tree.map(lambda x: x[kept], rows)
        columns = {name: flags[:, kept] for name, flags in columns.items()}
    elif phase.top_fraction < 1:
        kept = best_episodes(dataset.episode_ends, dataset.episode_returns, phase.top_fraction)
        rows = jax.tree.map(lambda x: x[kept], rows)
        columns = {name: flags[:, kept] for name, flags in columns.items()}
    start = _ring_start(phase, rows, columns, seeds)
    if phase.online and phase.online.offline_rows is not None:
        kept = _some_rows(rows, phase.online.offline_rows)
        rows = jax.tree.map(lambda x: x[kept], rows)
        columns = {name: flags[:, kept] for name, flags in columns.items()}
    used: Batch | None = rows
    if phase.mix in ("online", "rollout"):
        used, columns = None, nothing
    return PhaseData(used, columns, selection, probe, probe_columns, scale, extras, running, start)


def _some_rows(rows: Batch, count: int) -> np.ndarray:
    """Up to `count` different rows at random, in their order."""
    n = rows.reward.shape[0]
    return np.sort(np.random.default_rng(1).permutation(n)[:count])


def _ring_start(phase: Phase, rows: Batch, columns: dict[str, np.ndarray], seeds: int) -> Batch | None:
    """The rows with which the ring begins. Raises UserError if the dataset has not as many."""
    count, n = phase.online.ring_start if phase.online else 0, rows.reward.shape[0]
    if count == 0:
        return None
    if count > n:
        raise UserError(f"phase '{phase.name}': --ring-start {count}: the dataset has only {n} rows; give fewer")
    chosen = _some_rows(rows, count)
    start = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x)[chosen], (seeds, count, *x.shape[1:])), rows)
    return start._replace(extras={name: flags[:, chosen] for name, flags in columns.items()})


def columns_of(phase: Phase) -> tuple[str, ...]:
    """Extras that the phase's algorithm reads and that are stored with the rows."""
    coefficient = getattr(phase.algorithm, "coefficient", None)
    columns = phase.algorithm.columns + (coefficient.columns if coefficient is not None else ())
    return tuple(name for name in columns if name not in DERIVED)


def _scaled_returns(dataset: Dataset, preparation: Preparation) -> np.ndarray:
    """Returns of the stored rewards, which is what a return threshold is about (../spec/ssar.md 2.2)."""
    return dataset.episode_returns * preparation.reward_scale + preparation.reward_bias * dataset.episode_lengths


def return_rule(phase: Phase) -> ReturnRule:
    """What a return-to-go is to the phase's algorithm."""
    return ReturnRule(1.0 if phase.algorithm.undiscounted else phase.algorithm.discount, phase.failure_reward)


def _returns_to_go(phase: Phase, dataset: Dataset, rows: Batch) -> np.ndarray:
    """Of the stored rewards [N]."""
    rule = return_rule(phase)
    return return_to_go(
        np.asarray(rows.obs),
        np.asarray(rows.next_obs),
        np.asarray(rows.reward),
        np.asarray(rows.terminal) > 0,
        rule.discount,
        dataset.max_episode_steps or DEFAULT_EPISODE_LIMIT,
        rule.failure_reward,
    ).astype(np.float32)


def _time_steps(dataset: Dataset, rows: Batch) -> np.ndarray:
    """How far into its episode each row is [N]."""
    return time_steps(
        np.asarray(rows.obs),
        np.asarray(rows.next_obs),
        np.asarray(rows.terminal) > 0,
        dataset.max_episode_steps or DEFAULT_EPISODE_LIMIT,
    ).astype(np.float32)


def _episode_tails(phase: Phase, dataset: Dataset, rows: Batch) -> dict[str, np.ndarray]:
    """The columns "rows_to_end" and "end_discount" [N], which complete a return-to-go that a time limit cut."""
    rows_to_end, end_discount = episode_tails(
        np.asarray(rows.obs),
        np.asarray(rows.next_obs),
        np.asarray(rows.terminal) > 0,
        phase.algorithm.discount,
        dataset.max_episode_steps or DEFAULT_EPISODE_LIMIT,
    )
    return {"rows_to_end": rows_to_end.astype(np.float32), "end_discount": end_discount.astype(np.float32)}


def _best_rows(phase: Phase, rows: Batch) -> np.ndarray:
    assert phase.online is not None
    return top_trajectories(
        np.asarray(rows.obs),
        np.asarray(rows.next_obs),
        np.asarray(rows.reward),
        np.asarray(rows.terminal) > 0,
        phase.online.part_trajectories,
        drop_last=phase.replay_drop_last,
    )


def inherited(flags: np.ndarray, kept: int) -> Callable[[int], dict[str, np.ndarray]]:
    """The released program's flags of new rows after "part": those left behind in the slots they fill (B17)."""

    def extras(step: int) -> dict[str, np.ndarray]:
        slot = kept + step
        return {"trust": flags[:, slot] if slot < flags.shape[1] else np.ones(len(flags), np.float32)}

    return extras
