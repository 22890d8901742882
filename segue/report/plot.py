"""A figure as data, drawn twice: by `draw_png` with matplotlib and by `draw_html` with plotly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from numpy.typing import ArrayLike

MUTED = "#808890"  # the dataset and the behaviour policy: a grey that shows on white and on black

Symbol = Literal["dot", "bar", "up", "down", "cross", "square"]


@dataclass(frozen=True)
class Line:
    """A curve. Items of one `group` share a legend entry, that of the one with a label, and hide together.

    In the page, pointing at a point shows `what` it is, its step of `steps` (or its x) and its value.
    """

    x: ArrayLike
    y: ArrayLike
    colour: str
    group: str
    label: str = ""
    width: float = 2.2
    dash: str = "solid"
    opacity: float = 1.0
    stairs: bool = False  # the value holds until the next point
    what: str = ""
    steps: ArrayLike = ()


@dataclass(frozen=True)
class Band:
    """The area between two curves."""

    x: ArrayLike
    low: ArrayLike
    high: ArrayLike
    colour: str
    group: str
    label: str = ""
    opacity: float = 0.18


@dataclass(frozen=True)
class Bars:
    """A histogram: edges [K + 1], heights [K]."""

    edges: ArrayLike
    heights: ArrayLike
    colour: str
    label: str


@dataclass(frozen=True)
class Dots:
    """Points without a line; `symbol` is "dot" for single episodes, "bar" for a mean, the others mark events."""

    x: ArrayLike
    y: ArrayLike
    colour: str
    symbol: Symbol = "dot"
    hover: list[str] = field(default_factory=list)
    label: str = ""


@dataclass(frozen=True)
class Boxes:
    """Distributions as boxes: at each x [n] the 5, 25, 50, 75 and 95 % quantiles [n, 5]."""

    x: ArrayLike
    quantiles: ArrayLike
    colour: str
    label: str
    width: float = 0.3


@dataclass(frozen=True)
class Level:
    """A dashed line at a value of y (or of x, if `upright`) that matters, named in the legend or beside it."""

    at: float
    label: str
    upright: bool = False


@dataclass(frozen=True)
class Span:
    """A stretch of the x-axis with its name on top; `border` names the line at which it starts, if there is one."""

    start: float
    end: float
    label: str
    shaded: bool
    border: str = ""


Item = Line | Band | Bars | Dots | Boxes | Level


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `share` is its part of the figure's height."""

    y_label: str
    items: list[Item]
    share: float = 1.0
    rows: list[str] = field(default_factory=list)  # names instead of numbers on the y-axis: row i stands at y = i
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Figure:
    """Panels on top of each other over one x-axis. `name` is the file's stem, `reading` says how to read it."""

    name: str
    title: str
    reading: str
    x_label: str
    panels: list[Panel]
    x_range: tuple[float, float] | None = None
    x_ticks: list[tuple[float, str]] = field(default_factory=list)  # empty: numbers as they are
    spans: list[Span] = field(default_factory=list)
    height: int = 400  # pixels
