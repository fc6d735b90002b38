"""How every figure looks: colours, markers, axes and their labels, and how it becomes a file.

Every figure is a `matplotlib.figure.Figure` of its own: pyplot and its global state are never
touched, so nothing needs closing. Lines, grids and fonts are those of house.mplstyle. A colour
means one thing in all figures. Methods have Okabe and Ito's, which colour-blind users can tell
apart; markers and dashes differ too, for print in grey.
"""

import io
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from helpers.explore.names import display_name

# of curves that have no look of their own: a user's methods, variants, benchmarks
COLOURS = ("#332288", "#882255", "#661100", "#8B83C4", "#5E8CA8", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
DENSE_COLOUR = "#555555"  # the dense model, and notes on a figure
KEPT = "#3D4653"
PRUNED = "#F4F4F4"
# colour, marker and dash: which mask ADMM refits, and ADMM on a fixed one
GRADUAL = ("#0072B2", "o", "-")
ONE_SHOT = ("#009E73", "^", "-.")
RELEASED = ("#56B4E9", "s", "--")
ADMM = ("#6A2C91", "o", "-")
LOOKS = {
    # methods, and the schedules of a mask
    "dense": (DENSE_COLOUR, "o", "--"),
    "magnitude": ("#CC79A7", "D", ":"),
    "wanda": ("#E69F00", "v", "-"),
    "sparsegpt": ("#D55E00", "s", "--"),
    "admm1": ONE_SHOT,
    "admm-grad": GRADUAL,
    "alps": ("#000000", "P", "--"),
    "one-shot": ONE_SHOT,
    "paper": GRADUAL,
    "released": RELEASED,
    # ADMM on one fixed mask, with each ρ
    "ADMM": ADMM,
    "ρ = 1": ADMM,
    "ρ = 0.1": ("#B37BD3", "v", ":"),
    "ρ = 0.3": ("#9C63BF", "^", "-."),
    "ρ = 3": ("#421A5C", "s", "-."),
    "ρ = 10": ("#12061B", "D", ":"),
    # layers: attention in browns, the feed-forward part in blue-greens
    "q_proj": ("#4A2C0F", "o", "-"),
    "k_proj": ("#7D5226", "s", "--"),
    "v_proj": ("#B07D4B", "^", "-."),
    "o_proj": ("#C9A27A", "D", "--"),
    "gate_proj": ("#123B3F", "v", "-."),
    "up_proj": ("#2F6F75", "P", "--"),
    "down_proj": ("#6FAFB4", "X", ":"),
    "the others": ("#999999", "d", ":"),
}
# by the inches that a decade has at least: first digits of numbers with a label on a log axis
LABELLED = {0.9: "25", 1.1: "235", 1.55: "2345", 3.7: "123456789"}
# a method of one's own, among those that have a look
OWN = {
    "color": "#D1006C",
    "marker": "*",
    "markersize": 15,
    "linestyle": "-",
    "linewidth": 3,
    "zorder": 4,
}
# of a name: with a white rim instead of a box, lines go on behind it
AMONG_LINES = {
    "bbox": None,
    "path_effects": [withStroke(linewidth=3, foreground="white")],
    "zorder": 5,
}
RELATIVE_ERROR = "relative error ‖XW − XŴ‖² / ‖XW‖²"
HOUSE = Path(__file__).with_name("house.mplstyle")
# matplotlib's settings are global, and explorers draw in a thread
_STYLING = threading.RLock()


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the settings of house.mplstyle within a `with` block, in one thread at a time."""
    with _STYLING, matplotlib.style.context(HOUSE):
        yield


class Picture(Figure):
    """A Figure that Jupyter can show without pyplot."""

    def _repr_png_(self) -> bytes:
        return to_png(self, dpi=100)


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG bytes, the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


@house_style()
def new_figure(
    columns: int = 1,
    *,
    size: tuple[float, float],
    margins: Mapping[str, float] | None = None,
    **layout: Any,
) -> tuple[Picture, Any]:
    """A new figure in the house style, with its axes as `Figure.subplots` returns them.

    With `margins` the axes stay where they are from one picture to the next; else they are laid out
    around their labels.
    """
    figure = Picture(figsize=size, layout=None if margins else "constrained")
    return figure, figure.subplots(1, columns, gridspec_kw=margins, **layout)


def line_style(label: str, position: int = 0) -> dict[str, str]:
    """Colour, marker and dash of a label that has them in every figure, or of the n-th curve.

    A method with other options does not look like the method.
    """
    # the mean of several, such as "q_proj, k_proj", looks like the first
    look = LOOKS.get(label.partition(",")[0])
    if look is None:
        look = [some[position % len(some)] for some in (COLOURS, MARKERS, DASHES)]
    colour, marker, dash = look
    return {"color": colour, "marker": marker, "linestyle": dash}


def short_error(value: float) -> str:
    """A relative error as text: four places, or two digits of a small one."""
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.2g}"


def above_zero(values: Any) -> np.ndarray:
    """The values; what is zero or below (round-off, a dead input) leaves a gap in a log plot."""
    values = np.asarray(values, float)
    return np.where(values > 0, values, np.nan)


@house_style()
def set_up_axes(
    ax: Axes,
    title: str,
    *,
    log: bool = False,
    whole: int = 0,
    legend: Mapping[str, Any] | None = None,
    **labels: Any,
) -> None:
    """What every panel needs: a title, labels and limits (`Axes.set`), ticks, a legend.

    Args:
        log: whether the y axis is a log one, with plain numbers, or all as powers where it goes
            below 0.0001.
        whole: the most intervals of the x axis between ticks at whole numbers.
        legend: its arguments; None for no legend.
    """
    if log:
        ax.set_yscale("log")
    ax.set(title=title, **labels)
    if whole:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=whole))
    if log:
        # as many labels as do not touch: more, the more inches a decade has
        low, high = ax.get_ylim()
        inches = ax.bbox.height / ax.figure.dpi / np.log10(high / low)
        if ax.figure.get_layout_engine():  # which will make it about so much higher
            inches *= 1.1
        digits = ""
        for least, labelled in LABELLED.items():
            if inches > least:
                digits = labelled
        form = ".6g" if low >= 1e-4 else ".0e"
        ax.yaxis.set_major_formatter(f"{{x:{form}}}")
        ax.yaxis.set_minor_formatter(
            lambda y, _: f"{y:{form}}" if f"{y:.0e}"[0] in digits else ""
        )
    if legend is not None:
        ax.legend(**legend)


def label_line_ends(ax: Axes) -> None:
    """The name of each line at its right end instead of a legend, above those it would overlap.

    A single point that others go beyond has its name beside it, apart from those of its neighbours.
    """
    low, _ = ax.get_ylim()  # settles the limits
    to_axes = ax.transScale + ax.transLimits
    places = {}  # of each line's end, as a part of the axis
    for line in ax.lines:
        finite = [y for y in line.get_ydata(orig=False) if np.isfinite(y)]
        if finite and line.get_linestyle() != "None":
            _, places[line] = to_axes.transform((1, max(finite[-1], low)))
    points = defaultdict(list)  # by their x
    free = 0.0
    for line in sorted(places, key=places.get):
        x, *more = line.get_xdata()
        if not more and x < ax.dataLim.x1:
            points[x].append(line)
            continue
        place = max(min(places[line], 0.9), free)
        free = place + 0.07
        name = line.get_label()
        if places[line] > 1:
            name = f"↑ {name}"  # off the scale
        _name(ax, line, name, (1.01, place), xycoords="axes fraction")
    points_high = 72 * ax.bbox.height / ax.figure.dpi
    for lines in points.values():
        heights = points_high * np.array([places[line] for line in lines])
        shifts = _apart(heights, 13) - heights
        for line, shift in zip(lines, shifts, strict=True):
            (point,) = line.get_xydata()
            _name(ax, line, line.get_label(), point, (10, shift), **AMONG_LINES)


def _name(
    ax: Axes, line: Line2D, name: str, xy: Any, offset: Any = (0, 0), **options: Any
) -> None:
    """Write the name of a line in its colour, at a place with an offset in points."""
    ax.annotate(
        name,
        tuple(xy),
        xytext=offset,
        textcoords="offset points",
        color=line.get_color(),
        fontsize=9,
        fontweight="bold",
        va="center",
        **{"bbox": {"color": "white", "pad": 0}, **options},
    )


def _apart(places: np.ndarray, least: float) -> np.ndarray:
    """Ascending places with at least so much between them, moved up and down alike."""
    steps = least * np.arange(len(places))
    up = np.maximum.accumulate(places - steps)
    down = np.minimum.accumulate((places - steps)[::-1])[::-1]
    return (up + down) / 2 + steps


def draw_references(ax: Axes, references: Mapping[str, float]) -> None:
    """Horizontal lines, with names and values for the legend."""
    dashes = cycle(DASHES[1:])
    for name, value in references.items():
        colour, *_ = LOOKS.get(name.partition(" (")[0], ["black"])
        ax.axhline(
            value,
            color=colour,
            linestyle=next(dashes),
            linewidth=1.2,
            label=f"{display_name(name)}: {short_error(value)}",
        )


def draw_ring(ax: Axes, x: float, y: float, label: str | None = None) -> None:
    """Ring one point of a line."""
    ax.plot(
        x,
        y,
        "o",
        markersize=12,
        color="none",
        markeredgecolor="black",
        markeredgewidth=1.6,
        label=label,
    )
