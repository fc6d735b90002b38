"""Pictures of one layer, mask or run, which notebooks and explorers draw while a user looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from helpers.report import style
from helpers.report.frame import in_words
from helpers.report.style import set_up, style_of

# explorers redraw while a slider is dragged: nothing may jump, and laying out takes time
MARGINS = {"left": 0.08, "right": 0.985, "top": 0.86, "bottom": 0.2, "wspace": 0.36}
NOW = {"color": "black", "linewidth": 1, "linestyle": (0, (4, 2))}
SMALL = {"markersize": 4}
MANY = 60  # points of a line; more are drawn without markers


def _draw_mask(ax: Axes, keep: Any, shape: tuple[int, int], title: str) -> None:
    """The top left corner of a mask; SHARE in the title stands for how much of all is kept."""
    colours = ListedColormap([style.PRUNED, style.KEPT])
    corner = np.asarray(keep.cpu())[: shape[0], : shape[1]]
    ax.imshow(
        corner, cmap=colours, vmin=0, vmax=1, interpolation="nearest", aspect="equal"
    )
    ax.grid(False)
    share = f"{100 * keep.float().mean().item():.0f} % of {' × '.join(map(str, keep.shape))}"
    set_up(ax, title.replace("SHARE", share), xlabel="input", ylabel="output")


def mask_picture(keep: Any, *, size: int = 48, title: str = "") -> Figure:
    """The corner of a mask, `size` outputs by twice as many inputs; kept weights are dark."""
    figure, ax = style.new_figure(size=(6.4, 3.6))
    _draw_mask(ax, keep, (size, 2 * size), title or "kept weights (dark), SHARE")
    return figure


def lines_figure(
    table: pd.DataFrame,
    title: str = "",
    *,
    xlabel: str,
    ylabel: str,
    marked: Any = None,
) -> Figure:
    """A line for each column of a table against its index, on a log axis, with its name at its end.

    NaN is passed over; what is zero or below leaves a gap.
    Args: marked, the place on the x axis where the last column is ringed.
    """
    figure, ax = style.new_figure(size=(7.0, 4.2))
    for position, label in enumerate(table):
        line = table[label].dropna()
        look = style_of(label, position) | ({"marker": ""} if len(line) > MANY else {})
        ax.plot(line.index, style.above_zero(line), label=in_words(label), **look)
    if marked is not None:
        ax.plot([marked], [line[marked]], "o", label="kept", **style.RING)
    set_up(
        ax, in_words(title), log="y", plain=True, whole=10, xlabel=xlabel, ylabel=ylabel
    )
    style.name_ends(ax)
    return figure


def solve_figure(
    errors: Sequence[float],
    keep: Any,
    *,
    references: Mapping[str, float],
    before: Sequence[float],
    after: Sequence[float],
    title: str,
    mask_steps: int,
) -> Figure:
    """One solve: its error by iteration and by output, and the corner of the mask it ended with.

    Args: errors, the relative error after each iteration, the first `mask_steps` of which chose
    the mask anew; references, horizontal lines {name: error}; before and after, the relative error
    of each output without an update and after the solve.
    """
    figure, (left, middle, right) = style.new_figure(
        3, size=(10.5, 3.9), margins=MARGINS, width_ratios=[1.25, 1.1, 1]
    )
    left.plot(
        range(1, len(errors) + 1), style.above_zero(errors), **style_of("ADMM") | SMALL
    )
    style.draw_references(
        left, {name: value for name, value in references.items() if value > 0}
    )
    if mask_steps:
        left.axvspan(
            0.5, mask_steps + 0.5, color="#EEEEEE", zorder=0, label="mask still changes"
        )
    set_up(left, title, log="y", plain=True, whole=8, xlabel="iteration",
           ylabel=style.RELATIVE_ERROR, xlim=(0.5, len(errors) + 0.5),
           legend={"fontsize": 8.5})  # fmt: skip
    # the error of every output, the solve's worst first; three are named
    order = np.argsort(-np.asarray(after), kind="stable")
    ranks = range(1, len(order) + 1)
    bare, solved = (
        style.above_zero(np.asarray(values)[order]) for values in (before, after)
    )
    middle.plot(ranks, bare, ".", color="#999999", markersize=3, label="no update")
    middle.plot(ranks, solved, color=style.ADMM[0], linewidth=2, label="after ADMM")
    set_up(middle, f"hurt most: outputs {', '.join(map(str, order[:3]))}", log="y", plain=True,
           legend={"fontsize": 8.5, "loc": "best", "markerscale": 3},
           xlabel="output, most hurt first", ylabel="relative error of an output")  # fmt: skip
    _draw_mask(right, keep, (48, 48), "kept (dark): SHARE")
    return figure


def growth_figure(
    sparsity: Sequence[float],
    errors: Sequence[float],
    keep: Any,
    one_shot: Any,
    *,
    iteration: int,
    group: int | None = None,
    name: str = "",
) -> Figure:
    """One gradual solve at one of its iterations: sparsity, error, and the mask against one-shot's.

    Args: sparsity and errors, one number an iteration; iteration, the one shown, from 1; keep,
    the mask then, and one_shot, the one-shot mask of the final sparsity, both (d_out, d_in), of
    which the top left corner is drawn; group, the M of an N:M pattern; name, the layer's, for the
    title.
    """
    figure, (left, middle, right) = style.new_figure(
        3,
        size=(10.5, 4.3),
        margins=MARGINS | {"bottom": 0.26},
        width_ratios=[1, 1, 1.3],
    )
    percent = [100 * value for value in sparsity]
    for ax, values, look in ((left, percent, "paper"), (middle, errors, "ADMM")):
        ax.plot(range(1, len(values) + 1), values, **style_of(look) | SMALL)
        ax.axvline(iteration, **NOW)
        ax.plot([iteration], [values[iteration - 1]], "o", **style.RING)
    title = (
        f"{name}\niteration {iteration}: {percent[iteration - 1]:.1f} % pruned".strip()
    )
    set_up(left, title, whole=8, xlabel="iteration", ylabel="sparsity of the mask (%)",
           ylim=(0, 100))  # fmt: skip
    set_up(middle, f"iteration {iteration}: error {errors[iteration - 1]:.4f}", whole=8,
           xlabel="iteration", ylabel=style.RELATIVE_ERROR,
           ylim=(0, 1.08 * max(errors) or 1))  # fmt: skip
    _draw_mask_change(right, keep, one_shot, group)
    return figure


def _draw_mask_change(ax: Axes, keep: Any, one_shot: Any, group: int | None) -> None:
    """Kept by both, by neither, or by one of two masks, with the share that moved."""
    colours = {"pruned by both": style.PRUNED, "kept by one-shot only": style.ONE_SHOT[0],
               "kept here only": style.GRADUAL[0], "kept by both": "#B5BBC4"}  # fmt: skip
    # few groups, each of which can be counted
    rows, columns = (16, 3 * max(8, group)) if group else (40, 60)
    kind = np.asarray((2 * keep.int() + one_shot.int()).cpu())[
        :rows, :columns
    ]  # as the colours
    look = {"cmap": ListedColormap(list(colours.values())), "interpolation": "nearest"}
    ax.imshow(kind, vmin=0, vmax=3, aspect="auto", **look)
    ax.grid(False)
    if group:  # lines between groups of M along the input
        rows, columns = kind.shape
        edges = np.arange(group - 0.5, columns - 1, group)
        ax.vlines(edges, -0.5, rows - 0.5, color="black", linewidth=2)
    moved = 100 * float((keep & ~one_shot).sum()) / max(1, int(keep.sum()))
    patches = [
        Patch(facecolor=c, edgecolor="#999999", label=name)
        for name, c in colours.items()
    ]
    place = {
        "fontsize": 8.5,
        "ncols": 2,
        "loc": "upper center",
        "bbox_to_anchor": (0.45, -0.16),
    }
    set_up(ax, f"{moved:.1f} % of those kept are not one-shot's",
           legend={"handles": patches, **place}, xlabel="input", ylabel="output")  # fmt: skip


def stream_figure(
    norms: Sequence[Sequence[float]], block: int, top: Sequence[int], *, sequence: int
) -> Figure:
    """The norms of one sequence's stream: by position at one block, and by block.

    Args: norms, (blocks + 1, tokens): entering each block, and leaving the last; block, the one
    shown; top, positions of its largest tokens, largest first; sequence, its number for the title.
    """
    table = np.asarray(norms)
    here, medians = table[block], np.median(table, axis=1)
    figure, (left, right) = style.new_figure(
        2,
        size=(10.5, 3.7),
        margins=MARGINS | {"left": 0.085, "wspace": 0.2},
        width_ratios=[1.4, 1],
    )
    left.plot(here, color=style.COLOURS[0], linewidth=1)
    left.axhline(medians[block], label="median", **NOW | {"color": style.DENSE})
    for rank, position in enumerate(top, 1):
        left.plot(
            [position], [here[position]], "o", color=style.COLOURS[1], markersize=5
        )
        left.annotate(
            str(rank), (position, here[position]), (4, 3), textcoords="offset points"
        )
    right.plot(table.max(axis=1), **style_of("", 1) | SMALL, label="largest token")
    right.plot(medians, **style_of("", 0) | SMALL, label="median token")
    right.axvline(block, **NOW)
    look = {"log": "y", "plain": True, "legend": True}
    set_up(left, f"sequence {sequence}, {block_name(block, len(table))}", **look,
           xlabel="position in the sequence", ylabel="norm of a token's stream")  # fmt: skip
    ratio = here.max() / max(medians[block], 1e-30)
    set_up(right, f"largest is {ratio:.3g} × the median here", whole=10, **look,
           xlabel="entering block (the last: leaving them all)")  # fmt: skip
    return figure


def block_name(block: int, places: int) -> str:
    """Where on its way the stream is: `places` is one more than there are blocks."""
    return f"entering block {block}" if block < places - 1 else "leaving the last block"
