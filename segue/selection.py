"""Which rows of a dataset are trusted: the flags that SSAR's coefficient learns from (../spec/ssar.md 2.2)."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue.core.phases import Selection
from segue.core.types import Batch, Models
from segue.data.prepare import trust_by_return, trust_by_success
from segue.errors import UserError
from segue.methods.iql import advantage_selected

DEFAULT_EPISODE_LIMIT = 1000  # of the papers' tasks, where the dataset does not say
CHUNK = 65_536  # rows a call of the selecting critics


def trust_flags(
    selection: Selection, rows: Batch, episode_returns: np.ndarray, max_steps: int | None, models: Models, seeds: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Flags [seeds, N] float32 (1: trusted) of the prepared `rows`, and what to tell: rule and share per seed.

    Raises UserError if the selection is empty or everything and `selection.strict`; else it warns.
    """
    limit = max_steps or DEFAULT_EPISODE_LIMIT
    n = rows.reward.shape[0]
    if selection.rule == "none":
        return np.ones((seeds, n), np.float32), {"rule": "all rows", "trusted_fraction": 1.0}
    columns = (np.asarray(rows.obs), np.asarray(rows.next_obs), np.asarray(rows.reward), np.asarray(rows.terminal) > 0)
    if selection.rule == "return":
        threshold = selection.threshold
        if threshold is None:
            assert selection.quantile is not None
            threshold = float(np.quantile(episode_returns, selection.quantile))
        mask, rule = trust_by_return(*columns, threshold, limit), f"return > {threshold:.1f}"
        flags = np.broadcast_to(mask, (seeds, n))
    elif selection.rule == "success":
        mask = trust_by_success(*columns, limit, selection.failure_reward)
        flags = np.broadcast_to(mask, (seeds, n))
        rule = f"last reward of the trajectory is not {selection.failure_reward}"
    else:
        flags, rule = _by_advantage(rows, models, seeds), "IQL advantage >= 0"
    shares = flags.mean(-1)
    if ((shares == 0) | (shares == 1)).any():
        share = "none" if shares.min() == 0 else "all"
        text = f"selection '{rule}' trusts {share} of the {n} rows; {_remedy(selection, episode_returns)}"
        if selection.strict:
            raise UserError(text)
        warnings.warn(text, stacklevel=2)
    return flags.astype(np.float32), {"rule": rule, "trusted_fraction": float(shares.mean())}


def _remedy(selection: Selection, episode_returns: np.ndarray) -> str:
    if selection.rule == "success":
        return "give the last reward of a trajectory that failed with --failure-reward, or choose --selection return"
    if selection.rule == "iql_advantage":
        return "choose another --iql-expectile, more --iql-steps, or --selection return"
    low, high = episode_returns.min(), episode_returns.max()
    return (
        f"choose --return-threshold between {low:.0f} and {high:.0f} (the dataset's returns), another "
        "--return-quantile, or --selection none"
    )


def _by_advantage(rows: Batch, models: Models, seeds: int) -> np.ndarray:
    select = jax.jit(advantage_selected)
    flags = np.empty((seeds, rows.reward.shape[0]), bool)
    for k in range(seeds):
        pair = (models["selector_critic"], models["selector_value"])
        critic, value = jax.tree.map(lambda x, k=k: jnp.asarray(x)[k], pair)
        for start in range(0, flags.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            flags[k, part] = select(critic, value, rows.obs[part], rows.action[part])
    return flags
