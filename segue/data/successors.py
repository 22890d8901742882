"""Successor states of logs that hold only one observation a row."""

from __future__ import annotations

from typing import Any

import numpy as np

Columns = dict[str, Any]  # of arrays with N rows; Any lets them be unpacked into keyword arguments


def derive_successors(columns: Columns) -> Columns:
    """Add `next_observations` [M, S] from the following rows of the same episode; M <= N rows remain.

    A terminated row keeps its own observation as a stand-in: its target never looks at it. A row that is only truncated
    has no known successor: it is dropped, and the row before it ends the episode instead.
    """
    observations, terminated = columns["observations"], columns["terminated"]
    following = np.concatenate([observations[1:], observations[-1:]])
    next_observations = np.where(terminated[:, None], observations, following)
    dropped = columns["truncated"] & ~terminated
    return drop_rows({**columns, "next_observations": next_observations}, dropped)


def drop_rows(columns: Columns, dropped: np.ndarray) -> Columns:
    """Leave out the rows of the mask `dropped` [N]; the row before one becomes the end of its episode."""
    ends = columns["terminated"] | columns["truncated"]
    before_dropped = np.append(dropped[1:], False)
    truncated = (columns["truncated"] & ~dropped) | (before_dropped & ~ends)
    kept = ~dropped
    return {name: column[kept] for name, column in {**columns, "truncated": truncated}.items()}


def first_rows(columns: Columns, count: int | None) -> Columns:
    """The first `count` rows (all if None); an episode that goes on beyond them is marked truncated."""
    if count is None or count >= len(columns["rewards"]):
        return columns
    kept = {name: column[:count].copy() for name, column in columns.items()}
    kept["truncated"][-1] |= not kept["terminated"][-1]
    return kept
