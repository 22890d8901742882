"""Turn a figure into the data and layout that plotly.js draws in the page.

Colours of ink, grid and ground are set by the page's script, which knows whether it is light or dark.
"""

from __future__ import annotations

from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from segue.report.axis import count
from segue.report.plot import MUTED, Band, Bars, Boxes, Dots, Figure, Item, Level, Line, Panel

GAP = 22  # pixels between panels
SYMBOLS = {
    "dot": "circle",
    "bar": "line-ns-open",
    "up": "triangle-up",
    "down": "triangle-down",
    "cross": "x",
    "square": "square",
}
DASHES = {"solid": "solid", "dot": "dot", "dashdot": "dashdot"}


def draw_html(figure: Figure) -> dict[str, Any]:
    """`{"data": [...], "layout": {...}}` for Plotly.newPlot."""
    xaxis: dict[str, Any] = {
        "title": {"text": escape(figure.x_label), "standoff": 12, "font": {"size": 13}},
        "zeroline": False,
    }
    if figure.x_range:
        xaxis["range"] = list(figure.x_range)
    if figure.x_ticks:
        xaxis |= {
            "tickmode": "array",
            "tickvals": [x for x, _ in figure.x_ticks],
            "ticktext": [_lines(text) for _, text in figure.x_ticks],
        }
    more_lines = max((text.count("\n") for _, text in figure.x_ticks), default=0)
    # The x-axis hangs under the lowest panel; all panels share it.
    layout: dict[str, Any] = {
        "xaxis": xaxis | {"anchor": _y(len(figure.panels) - 1)},
        "height": figure.height,
        "margin": {"l": 70, "r": 16, "t": 30, "b": 64 + 18 * more_lines},  # the page adds room for the legend
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
        "shapes": [],
        "annotations": [],
    }
    data: list[dict[str, Any]] = []
    gap = GAP / figure.height
    top = 1.0
    for number, panel in enumerate(figure.panels):
        share = panel.share / sum(p.share for p in figure.panels) * (1 - gap * (len(figure.panels) - 1))
        layout["yaxis" + _suffix(number)] = _yaxis(panel, [max(0.0, top - share), top])
        top -= share + gap
        for item in panel.items:
            data += _traces(item, number, figure, layout)
    for span in figure.spans:
        _span(span.start, span.end, span.label, span.shaded, span.border, layout)
    return {"data": data, "layout": layout}


def _yaxis(panel: Panel, domain: list[float]) -> dict[str, Any]:
    axis: dict[str, Any] = {
        "domain": domain,
        "title": {"text": _lines(panel.y_label), "standoff": 8, "font": {"size": 13}},
        "zeroline": False,
        "automargin": True,
    }
    if panel.rows:
        axis |= {
            "tickmode": "array",
            "tickvals": list(range(len(panel.rows))),
            "ticktext": [_lines(row) for row in panel.rows],
            "range": [len(panel.rows) - 0.5, -0.5],
        }
    if panel.y_range:
        axis["range"] = list(panel.y_range)
    return axis


def _traces(item: Item, number: int, figure: Figure, layout: dict[str, Any]) -> list[dict[str, Any]]:
    base: dict[str, Any] = {"xaxis": "x", "yaxis": _y(number), "type": "scatter"}
    match item:
        case Line():
            shape = {"width": item.width, "color": item.colour, "dash": DASHES[item.dash]}
            if item.stairs:
                shape["shape"] = "hv"
            trace = base | {
                "x": _numbers(item.x),
                "y": _numbers(item.y),
                "mode": "lines" if np.size(item.x) > 1 else "markers",
                "line": shape,
                "marker": {"color": item.colour, "size": 7},
                "opacity": item.opacity,
                "name": escape(item.label),
                "showlegend": bool(item.label),
                "legendgroup": escape(item.group),
                "customdata": [count(step) for step in np.asarray(item.steps, dtype=np.float64)],
                # With its brace escaped, a name that holds "%{" is not taken for a part of the template.
                "hovertemplate": escape(item.what).replace("{", "&#123;")
                + (" step %{customdata}" if np.size(item.steps) else " at %{x:.2f}")
                + ": %{y:,.4~g}<extra></extra>",
            }
            return [trace]
        case Band():
            low, high, x = _numbers(item.low), _numbers(item.high), _numbers(item.x)
            return [
                base
                | {
                    "x": x + x[::-1],
                    "y": high + low[::-1],
                    "mode": "lines",
                    "line": {"width": 0},
                    "fill": "toself",
                    "fillcolor": _rgba(item.colour, item.opacity),
                    "hoverinfo": "skip",
                    "name": escape(item.label),
                    "showlegend": bool(item.label),
                    "legendgroup": escape(item.group),
                }
            ]
        case Bars():
            edges = np.asarray(item.edges, dtype=np.float64)
            return [
                base
                | {
                    "type": "bar",
                    "x": _numbers((edges[:-1] + edges[1:]) / 2),
                    "y": _numbers(item.heights),
                    "width": _numbers(np.diff(edges)),
                    "marker": {"color": _rgba(item.colour, 0.55), "line": {"width": 0}},
                    "name": escape(item.label),
                    "showlegend": True,
                    "customdata": [f"{a:,.0f} to {b:,.0f}" for a, b in pairwise(edges)],
                    "hovertemplate": "%{customdata}: %{y:.1f} %<extra></extra>",
                }
            ]
        case Dots():
            bar, event = item.symbol == "bar", item.symbol not in ("bar", "dot")
            # Hover texts may hold plotly's own %{...}, so they go in as templates, one per point.
            return [
                base
                | {
                    "x": _numbers(item.x),
                    "y": _numbers(item.y),
                    "mode": "markers",
                    "marker": {
                        "color": item.colour,
                        "size": 26 if bar else 11 if event else 6,
                        "symbol": SYMBOLS[item.symbol],
                        "line": {"width": 3 if bar else 0, "color": item.colour},
                        "opacity": 1.0 if bar or event else 0.5,
                    },
                    "name": escape(item.label),
                    "showlegend": bool(item.label),
                    "hovertemplate": [text + "<extra></extra>" for text in item.hover],
                }
            ]
        case Boxes():
            quantiles = np.asarray(item.quantiles, dtype=np.float64).T
            names = ("lowerfence", "q1", "median", "q3", "upperfence")
            return [
                base
                | {name: _numbers(values) for name, values in zip(names, quantiles, strict=True)}
                | {
                    "type": "box",
                    "x": _numbers(item.x),
                    "width": item.width,
                    "fillcolor": _rgba(item.colour, 0.35),
                    "line": {"width": 1.6, "color": item.colour},
                    "name": escape(item.label),
                    "showlegend": bool(item.label),
                }
            ]
        case Level():
            return [_level(item, number, figure, base, layout)]


def _level(item: Level, number: int, figure: Figure, base: dict[str, Any], layout: dict[str, Any]) -> dict[str, Any]:
    """A shape spans the panel whatever the zoom, an empty trace puts it into the legend."""
    line = {"dash": "dash", "width": 1.8, "color": MUTED}
    across, along = ("x", "y") if item.upright else ("y", "x")
    domain = f"{_y(number)} domain" if item.upright else "x domain"
    layout["shapes"].append(
        {
            "type": "line",
            f"{across}ref": "x" if item.upright else _y(number),
            f"{along}ref": domain,
            f"{across}0": item.at,
            f"{across}1": item.at,
            f"{along}0": 0,
            f"{along}1": 1,
            "line": line,
        }
    )
    # One point outside every zoom would widen the axis; one on the line keeps the line in view.
    point = {across: [item.at, item.at], along: [None, None] if item.upright else list(figure.x_range or (0, 1))}
    return base | point | {"mode": "lines", "line": line, "name": escape(item.label), "hoverinfo": "name"}


def _span(start: float, end: float, label: str, shaded: bool, border: str, layout: dict[str, Any]) -> None:
    whole = {"xref": "x", "yref": "paper", "y0": 0, "y1": 1}
    if shaded:
        layout["shapes"].append(
            whole | {"type": "rect", "x0": start, "x1": end, "layer": "below", "line": {"width": 0}, "name": "ground"}
        )
    if border:
        layout["shapes"].append(
            whole | {"type": "line", "x0": start, "x1": start, "line": {"width": 1.2}, "name": "ink"}
        )
    text = escape(f"{border} ▸ {label}" if border.strip() else label)
    layout["annotations"].append(
        {
            "x": start,
            "xref": "x",
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "xanchor": "left",
            "text": text,
            "showarrow": False,
        }
    )


def _lines(text: str) -> str:
    """Text of one or more lines."""
    return escape(text).replace("\n", "<br>")


def _suffix(number: int) -> str:
    return "" if number == 0 else str(number + 1)


def _y(number: int) -> str:
    return "y" + _suffix(number)


def _numbers(values: ArrayLike) -> list[float | None]:
    """Six digits are more than a screen shows and keep the page small; JSON has no NaN, so that becomes null."""
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in np.asarray(values, dtype=np.float64)]


def _rgba(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
