"""Draw a figure with matplotlib into a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from segue.report.plot import MUTED, Band, Bars, Boxes, Dots, Figure, Item, Level, Line, Panel

PIXELS_PER_INCH = 100
WIDTH = 960
LEGEND = 130  # characters that fit beside each other
INK = "#24292f"
GRID = "#e4e7eb"
ONLINE = "#f1f4f8"  # ground of online phases
SYMBOLS = {"dot": "o", "bar": "|", "up": "^", "down": "v", "cross": "X", "square": "s"}
LINE_STYLES = {"solid": "-", "dot": (0, (1.5, 1.5)), "dashdot": "-."}


def draw_png(figure: Figure, path: Path) -> None:
    """Write the figure to `path`, 960 pixels wide at twice that resolution, on white."""
    names = [item.label for panel in figure.panels for item in panel.items if item.label]
    columns = max(1, min(3, LEGEND // (6 + max(map(len, names), default=0))))
    rows = -(-len(names) // columns)
    canvas = matplotlib.figure.Figure(
        figsize=(WIDTH / PIXELS_PER_INCH, (figure.height + 20 * rows) / PIXELS_PER_INCH), layout="constrained"
    )
    canvas.suptitle(_plain(figure.title), x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    grid = canvas.subplots(
        len(figure.panels), 1, sharex=True, squeeze=False, height_ratios=[panel.share for panel in figure.panels]
    )
    axes: list[Axes] = list(grid[:, 0])
    for panel, ax in zip(figure.panels, axes, strict=True):
        _panel(figure, panel, ax, top=ax is axes[0])
    bottom = axes[-1]
    bottom.set_xlabel(_plain(figure.x_label), color=INK)
    if figure.x_range:
        bottom.set_xlim(*figure.x_range)
    if figure.x_ticks:
        bottom.set_xticks([x for x, _ in figure.x_ticks], [text for _, text in figure.x_ticks])
    if names:
        canvas.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=9, labelcolor=INK)
    canvas.savefig(path, dpi=2 * PIXELS_PER_INCH, facecolor="white", metadata={"Software": None})


def _panel(figure: Figure, panel: Panel, ax: Axes, top: bool) -> None:
    ax.grid(True, color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#9aa3ad")
    ax.tick_params(colors=INK, labelsize=9, length=3)
    ax.set_ylabel(_plain(panel.y_label), color=INK, fontsize=9)
    for span in figure.spans:
        if span.shaded:
            ax.axvspan(span.start, span.end, color=ONLINE, zorder=0, linewidth=0)
        if span.border:
            ax.axvline(span.start, color=INK, linewidth=1.0, zorder=1)
        if top:
            text = f"{span.border} ▸ {span.label}" if span.border.strip() else span.label
            ax.annotate(
                _plain(text),
                (span.start, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=9,
                color=INK,
            )
    for item in panel.items:
        _item(item, ax)
    if panel.rows:
        ax.set_yticks(range(len(panel.rows)), [_plain(row) for row in panel.rows])
        ax.set_ylim(len(panel.rows) - 0.5, -0.5)
    if panel.y_range:
        ax.set_ylim(*panel.y_range)


def _item(item: Item, ax: Axes) -> None:
    match item:
        case Line():
            ax.plot(
                np.asarray(item.x),
                np.asarray(item.y),
                color=item.colour,
                linewidth=item.width,
                linestyle=LINE_STYLES[item.dash],
                alpha=item.opacity,
                drawstyle="steps-post" if item.stairs else "default",
                label=_plain(item.label),
                marker="o" if np.size(item.x) == 1 else None,
            )
        case Band():
            ax.fill_between(
                np.asarray(item.x),
                np.asarray(item.low),
                np.asarray(item.high),
                color=item.colour,
                alpha=item.opacity,
                linewidth=0,
                label=_plain(item.label),
            )
        case Bars():
            ax.stairs(item.heights, item.edges, fill=True, color=item.colour, alpha=0.55, label=_plain(item.label))
        case Dots():
            bar, event = item.symbol == "bar", item.symbol not in ("bar", "dot")
            ax.scatter(
                np.asarray(item.x),
                np.asarray(item.y),
                color=item.colour,
                marker=SYMBOLS[item.symbol],
                s=520 if bar else 60 if event else 16,
                linewidth=3 if bar else 0,
                alpha=1.0 if bar or event else 0.5,
                label=_plain(item.label) or None,
                zorder=3 if event else None,
            )
        case Boxes():
            stats = [
                {"whislo": q[0], "q1": q[1], "med": q[2], "q3": q[3], "whishi": q[4]}
                for q in np.asarray(item.quantiles)
            ]
            line: dict[str, Any] = {"color": item.colour, "linewidth": 1.6}
            face: dict[str, Any] = {"facecolor": (*to_rgb(item.colour), 0.35), "edgecolor": item.colour}
            ax.bxp(
                stats,
                positions=np.asarray(item.x),
                widths=item.width,
                showfliers=False,
                patch_artist=True,
                manage_ticks=False,
                boxprops=face | {"linewidth": 1.6},
                whiskerprops=line,
                capprops=line,
                medianprops=line | {"linewidth": 2.6},
            )
            ax.fill([], [], linewidth=1.6, **face, label=_plain(item.label))  # one entry in the legend, not one a box
        case Level():
            draw = ax.axvline if item.upright else ax.axhline
            colour = INK if item.upright else MUTED
            draw(item.at, color=colour, linestyle="--", linewidth=1.6, label=_plain(item.label))


def _plain(text: str) -> str:
    """Text as it stands: without this, matplotlib reads what stands between dollar signs as a formula."""
    return text.replace("$", r"\$")
