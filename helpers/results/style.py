"""How every figure looks: colours, markers, axes, and how it becomes a file.

Every figure is a `matplotlib.figure.Figure` of its own: pyplot and its global state are never
touched, so nothing needs closing. Colours are Okabe and Ito's, which colour-blind readers can
tell apart; markers and dashes differ too, for print in grey.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
HATCHES = ("", "//", "..", "xx")
METHOD_LOOK = {"magnitude": 3, "wanda": 4, "sparsegpt": 1, "admm1": 2, "admm-grad": 0}
KEPT, PRUNED = "#0072B2", "#F4F4F4"
DENSE = "#555555"  # the dense model, and notes on a figure
RELATIVE_ERROR = "relative error ‖XW − XŴ‖² / ‖XW‖²"


class Picture(Figure):
    """A Figure that Jupyter can show without pyplot."""

    def _repr_png_(self) -> bytes:
        return to_png(self, dpi=100)


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG bytes, the same bytes each time."""
    buffer = io.BytesIO()  # no context of settings: explorers draw in a thread of their own
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG bytes, the same bytes each time: no date, fixed ids."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "figure", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
    return buffer.getvalue()


def new_figure(
    columns: int = 1,
    *,
    size: tuple[float, float],
    rows: int = 1,
    margins: Mapping[str, float] | None = None,
    **layout: Any,
) -> tuple[Picture, Any]:
    """A new figure in the house style, with its axes as `Figure.subplots` returns them.

    With `margins` the axes stay where they are from one picture to the next; else they are laid
    out around their labels.
    """
    figure = Picture(figsize=size, layout=None if margins else "constrained")
    axes = figure.subplots(rows, columns, gridspec_kw=margins, **layout)
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, which="major", color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def style_of(label: str, position: int = 0) -> dict[str, Any]:
    """Colour, marker and dash of a method (the same in every figure) or of the n-th curve."""
    index = METHOD_LOOK.get(label, position)
    if label.partition(" (")[0] in METHOD_LOOK and label not in METHOD_LOOK:
        index = 5 + len(label) % 3  # a method with other options: not the look of a method
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
        "markersize": 5,
    }


def short_error(value: float) -> str:
    """A relative error as text: four places, or two digits of a small one."""
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.2g}"


def above_zero(values: Any, unit: float = 1.0) -> np.ndarray:
    """values / unit; what is zero or below (round-off, a dead input) leaves a gap in a log plot."""
    values = np.asarray(values, float)
    return np.where(values > 0, values / (unit if unit > 0 else 1.0), np.nan)


def finish(
    ax: Axes,
    title: str = "",
    *,
    log: str = "",
    plain: bool = False,
    wide: bool = False,
    whole: int = 0,
    legend: float | Mapping[str, Any] = 0,
    **labels: Any,
) -> None:
    """What every panel needs: a title, labels and limits (`Axes.set`), log axes, ticks, a legend.

    Args: log, "x", "y" or "xy"; plain, whether the y axis, a log one, has plain numbers; wide,
    whether it is widened by a tenth at both ends, for labels beside the curves; whole, the most
    intervals of the x axis between ticks at whole numbers; legend, its font size or arguments.
    """
    ax.set(**{f"{axis}scale": "log" for axis in log}, **labels)
    if title:  # at a given height: the search for one takes time, and explorers redraw often
        ax.set_title(title, fontsize=10, y=1.0)
    if whole:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=whole))
    if wide:
        low, high = ax.get_ylim()
        ax.set_ylim(low / (high / low) ** 0.1, high * (high / low) ** 0.1)
    if plain:
        plain_log(ax.yaxis)
    if legend:
        ax.legend(frameon=False, **legend if isinstance(legend, dict) else {"fontsize": legend})


def plain_log(axis: Axis) -> None:
    """Label a log axis in plain numbers, also between decades where it spans few of them."""
    low, high = axis.get_view_interval()
    span = high / max(low, 1e-300)
    digits = "23456789" if span < 5 else "235" if span < 30 else "25" if span < 100 else ""
    axis.set_major_formatter("{x:.3g}")
    axis.set_minor_formatter(lambda y, _: f"{y:.3g}" if f"{y:.1e}"[0] in digits else "")


def offset_text(ax: Axes, text: str, xy: Any, by: tuple[float, float], **look: Any) -> None:
    """A text so many points from a place."""
    ax.annotate(text, xy, xytext=by, textcoords="offset points", **look)


def name_line(
    ax: Axes, text: str, value: float, *, below: bool = False, inset: int = 3, **look: Any
) -> None:
    """The name of a horizontal line at its right end."""
    look = {"color": DENSE, "fontsize": 9, "va": "top" if below else "bottom", **look}
    by = (-inset, -inset if below else 3)
    offset_text(ax, text, (1, value), by, xycoords=("axes fraction", "data"), ha="right", **look)


def draw_references(ax: Axes, references: Mapping[str, float]) -> None:
    """Horizontal lines with names and values: the lowest below its line, the others above."""
    dashes = cycle([(0, (4, 2)), (0, (1, 1.5)), (0, (6, 1, 1, 1))])
    lowest = min(references.values(), default=None)
    for (name, value), dash in zip(references.items(), dashes, strict=False):
        ax.axhline(value, color="black", linestyle=dash, linewidth=1.2)
        below = value == lowest and len(references) > 1
        text = f"{name}: {short_error(value)}"
        name_line(ax, text, value, below=below, inset=4, color="black", fontsize=8.5)
