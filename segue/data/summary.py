"""What `segue data info` tells about a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segue.data.dataset import Dataset
from segue.data.files import written_atomically

SATURATED = 0.99  # share of the way from the middle of the bounds to either end
COVERAGE_CELLS = 20  # per side of the coverage grid
COVERAGE_ROWS = 100_000  # evenly spaced rows that coverage looks at


def summarise(dataset: Dataset) -> dict[str, Any]:
    """Figures of the dataset as JSON-ready numbers; what each means is written in docs/data.md."""
    returns, lengths = dataset.episode_returns, dataset.episode_lengths
    scores = dataset.normalised(returns)
    centre = (dataset.action_high + dataset.action_low) / 2
    half = (dataset.action_high - dataset.action_low) / 2
    saturated = np.abs(dataset.actions - centre) >= SATURATED * half
    return {
        "source": dataset.source,
        "environment_id": dataset.environment_id,
        "environment_kwargs": dataset.environment_kwargs,
        "transitions": len(dataset),
        "episodes": len(returns),
        "observation_dim": dataset.observation_dim,
        "action_dim": dataset.action_dim,
        "action_low": [round(float(x), 6) for x in dataset.action_low],
        "action_high": [round(float(x), 6) for x in dataset.action_high],
        "returns": _spread(returns),
        "normalised_returns": None if scores is None else _spread(scores),
        "reference_scores": None if dataset.reference_scores is None else list(dataset.reference_scores),
        "lengths": _spread(lengths),
        "max_episode_steps": dataset.max_episode_steps,
        "terminated": int(dataset.terminated.sum()),
        "truncated": int((dataset.truncated & ~dataset.terminated).sum()),
        "action_saturation": {
            "any": float(saturated.any(axis=1).mean()),
            "overall": float(saturated.mean()),
            "per_dimension": [float(share) for share in saturated.mean(axis=0)],
        },
        "coverage": coverage(dataset.observations),
    }


def coverage(observations: np.ndarray) -> float:
    """Share of a 20 x 20 grid that observations [N, S] visit, in [0, 1].

    The grid lies over the first two principal components of the standardised observations, from the 1st to the 99th
    percentile of each; it looks at no more than 100,000 evenly spaced rows. A single looping trajectory gives little, a
    cloud that fills the box gives 1. With S = 1 the grid is a line.
    """
    rows = observations[:: max(1, len(observations) // COVERAGE_ROWS)].astype(np.float64)
    rows = rows - rows.mean(axis=0)
    rows /= rows.std(axis=0) + 1e-8  # a constant dimension stays 0
    _, directions = np.linalg.eigh(rows.T @ rows)
    projected = rows @ directions[:, ::-1][:, :2]
    low, high = np.percentile(projected, [1, 99], axis=0)
    cell = (projected - low) / np.maximum(high - low, 1e-12) * COVERAGE_CELLS
    inside = ((cell >= 0) & (cell <= COVERAGE_CELLS)).all(axis=1)
    visited = np.unique(np.minimum(cell[inside].astype(int), COVERAGE_CELLS - 1), axis=0)
    return len(visited) / COVERAGE_CELLS ** projected.shape[1]


def plot_returns(dataset: Dataset, path: Path) -> None:
    """Draw a histogram of the episodes' returns, with the normalised score as a second axis, as an image file.

    Raises `DataError` for an ending that is no image format or a place that cannot be written.
    """
    from matplotlib.figure import Figure

    from segue.data.errors import DataError

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    returns = dataset.episode_returns
    axes.hist(returns, bins=min(60, max(10, int(len(returns) ** 0.5) * 2)), color="#4477aa", edgecolor="white", lw=0.4)
    axes.axvline(returns.mean(), color="#cc3311", lw=1.5, label=f"mean {returns.mean():,.4g}")
    axes.set_xlabel("return of an episode (undiscounted)")
    axes.set_ylabel("episodes")
    axes.set_title(dataset.source or dataset.environment_id or "dataset", fontsize=10, wrap=True)
    axes.spines[["right"]].set_visible(False)
    axes.legend(frameon=False)
    if dataset.reference_scores is not None:
        random, expert = dataset.reference_scores
        score = axes.secondary_xaxis(
            "top",
            functions=(
                lambda value: 100 * (np.asarray(value) - random) / (expert - random),
                lambda value: random + np.asarray(value) * (expert - random) / 100,
            ),
        )
        score.set_xlabel("normalised score")
    else:
        axes.spines[["top"]].set_visible(False)
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix.lower().lstrip(".") not in formats:
        raise DataError(f"{path}: '{path.suffix}' is no image format; use one of .png, .svg, .pdf")
    with written_atomically(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())}
