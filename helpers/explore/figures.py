"""Figures of one layer, mask or run, which notebooks and explorers draw while a user looks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from helpers.explore.names import display_name
from helpers.explore.style import (
    ADMM,
    COLOURS,
    DENSE_COLOUR,
    GRADUAL,
    KEPT,
    ONE_SHOT,
    PRUNED,
    RELATIVE_ERROR,
    above_zero,
    draw_references,
    draw_ring,
    label_line_ends,
    line_style,
    new_figure,
    set_up_axes,
)

# explorers redraw while a slider is dragged: nothing may jump, and laying out takes time
MARGINS = {"left": 0.09, "right": 0.985, "top": 0.86, "bottom": 0.2, "wspace": 0.36}
# the line at the iteration or block that a slider has chosen
CHOSEN = {"color": "black", "linewidth": 1, "linestyle": (0, (4, 2))}
# lines of the variables of ADMM, after that of the optimum
VARIABLES = {
    ":": "black",
    "o-": ADMM[0],
    "^-.": "#9C63BF",
    "-": DENSE_COLOUR,
    "--": "#882255",
}
MANY = 60  # points of a line; more are drawn without markers


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
    figure, ax = new_figure(size=(7.0, 4.2))
    for position, label in enumerate(table):
        values = table[label].dropna()
        look = line_style(label, position)
        if len(values) > MANY:
            look["marker"] = ""
        ax.plot(values.index, above_zero(values), label=display_name(label), **look)
    if marked is not None:
        draw_ring(ax, marked, values[marked], label="kept")
    set_up_axes(
        ax,
        display_name(title),
        log=True,
        whole=10,
        xlabel=xlabel,
        ylabel=ylabel,
    )
    label_line_ends(ax)
    return figure


def mask_figure(keep: Any, title: str, *, size: int = 48) -> Figure:
    """The corner of a mask, `size` outputs by twice as many inputs; kept weights are dark."""
    figure, ax = new_figure(size=(6.4, 3.6))
    _draw_mask(ax, keep[:size, : 2 * size], title)
    return figure


def _draw_mask(
    ax: Axes,
    mask: Any,
    title: str,
    colours: Sequence[str] = (PRUNED, KEPT),
    **labels: Any,
) -> None:
    """Each entry of a mask in the colour of its number."""
    ax.imshow(
        np.asarray(mask.cpu()),
        cmap=ListedColormap(colours),
        vmin=0,
        vmax=len(colours) - 1,
        interpolation="nearest",
    )
    ax.grid(False)
    set_up_axes(ax, title, xlabel="input", ylabel="output", **labels)


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
    a new mask; references, horizontal lines {name: error}; before and after, the relative error of
    each output without an update and after the solve.
    """
    figure, (left, middle, right) = new_figure(
        3, size=(10.5, 3.9), margins=MARGINS, width_ratios=[1.25, 1.1, 1]
    )
    left.plot(range(1, len(errors) + 1), above_zero(errors), **line_style("ADMM"))
    draw_references(left, {name: v for name, v in references.items() if v > 0})
    if mask_steps:
        left.axvspan(0.5, mask_steps + 0.5, zorder=0, color="#EEEEEE")
        # on fewer and fewer weights the error rises, with as many it falls
        what = "more is pruned" if errors[-1] > errors[0] else "a new mask"
        left.text(
            0.6 * mask_steps,
            0.3,
            f"{what}\nat each step",
            transform=left.get_xaxis_transform(),
            ha="center",
        )
    set_up_axes(
        left,
        title,
        log=True,
        whole=8,
        xlabel="iteration",
        ylabel=RELATIVE_ERROR,
        xlim=(0.5, len(errors) + 0.5),
        legend={},
    )
    # the error of every output, the solve's worst first; three are named
    order = np.argsort(-np.asarray(after), kind="stable")
    ranks = range(1, len(order) + 1)
    unsolved = above_zero(before)[order]
    solved = above_zero(after)[order]
    middle.plot(ranks, unsolved, ".", color="#999999", markersize=3, label="no update")
    middle.plot(ranks, solved, color=ADMM[0], linewidth=2, label="after ADMM")
    set_up_axes(
        middle,
        f"hurt most: outputs {', '.join(map(str, order[:3]))}",
        log=True,
        legend={"markerscale": 3},
        xlabel="output, most hurt first",
        ylabel="relative error of an output",
    )
    outputs, inputs = keep.shape
    share = f"{100 * keep.float().mean():.0f} % of {outputs} × {inputs}"
    _draw_mask(right, keep[:48, :48], f"kept (dark): {share}")
    return figure


def gradual_mask_figure(
    pruned: Sequence[float],
    errors: Sequence[float],
    keep: Any,
    one_shot: Any,
    *,
    iteration: int,
    group: int | None,
    name: str,
) -> Figure:
    """One gradual solve at one of its iterations: sparsity, error, and the mask against one-shot's.

    Args: pruned (in percent) and errors, one number an iteration; iteration, the one shown, from 1;
    keep, the mask then, and one_shot, the one-shot mask of the final sparsity, both (d_out, d_in),
    of which the top left corner is drawn; group, the M of an N:M pattern; name, the layer's, for
    the title.
    """
    figure, (left, middle, right) = new_figure(
        3,
        size=(10.5, 4.3),
        margins=MARGINS | {"bottom": 0.26},
        width_ratios=[1, 1, 1.3],
    )
    here = f"iteration {iteration}:"
    _draw_history(
        left,
        pruned,
        iteration,
        "paper",
        title=f"{name}\n{here} {pruned[iteration - 1]:.1f} % pruned",
        ylabel="sparsity of the mask (%)",
        ylim=(0, 100),
    )
    _draw_history(
        middle,
        errors,
        iteration,
        "ADMM",
        title=f"{here} error {errors[iteration - 1]:.4f}",
        ylabel=RELATIVE_ERROR,
        ylim=(0, 1.08 * max(errors) or 1),
    )
    _draw_mask_change(right, keep, one_shot, group)
    return figure


def _draw_history(
    ax: Axes, values: Sequence[float], iteration: int, look: str, **labels: Any
) -> None:
    """A number by iteration, with a line and a ring at one of them."""
    ax.plot(range(1, len(values) + 1), values, **line_style(look))
    ax.axvline(iteration, **CHOSEN)
    draw_ring(ax, iteration, values[iteration - 1])
    set_up_axes(ax, whole=8, xlabel="iteration", **labels)


def _draw_mask_change(ax: Axes, keep: Any, one_shot: Any, group: int | None) -> None:
    """Kept by both, by neither, or by one of two masks, with the share that moved."""
    colours = {
        "pruned by both": PRUNED,
        "kept by one-shot only": ONE_SHOT[0],
        "kept here only": GRADUAL[0],
        "kept by both": "#B5BBC4",
    }
    rows, columns = 40, 60
    if group:  # few groups, each of which can be counted
        rows, columns = 16, 3 * max(8, group)
    kinds = (2 * keep.int() + one_shot.int())[:rows, :columns]  # as the colours
    moved = ~one_shot[keep]
    title = f"{100 * moved.float().mean():.1f} % of those kept are not one-shot's"
    legend = {
        "handles": [
            Patch(facecolor=colour, edgecolor="#999999", label=name)
            for name, colour in colours.items()
        ],
        "ncols": 2,
        "loc": "upper center",
        "bbox_to_anchor": (0.45, -0.16),
    }
    _draw_mask(ax, kinds, title, list(colours.values()), aspect="auto", legend=legend)
    if group:  # lines between groups of M along the input
        outputs, inputs = kinds.shape
        edges = np.arange(group - 0.5, inputs - 1, group)
        ax.vlines(edges, -0.5, outputs - 0.5, color="black", linewidth=2)


def hidden_states_figure(
    norms: np.ndarray, block: int, top: Sequence[int], *, sequence: int
) -> Figure:
    """The norms of one sequence's hidden states: by position at one block, and by block.

    Args: norms, (blocks + 1, tokens): entering each block, and leaving the last; block, the one
    shown; top, positions of its largest tokens, largest first; sequence, its number for the title.
    """
    here = norms[block]
    medians = np.median(norms, axis=1)
    figure, (left, right) = new_figure(
        2,
        size=(10.5, 3.7),
        margins=MARGINS | {"left": 0.085, "wspace": 0.2},
        width_ratios=[1.4, 1],
    )
    left.plot(here, color=COLOURS[0], linewidth=1)
    left.axhline(medians[block], label="median", **CHOSEN | {"color": DENSE_COLOUR})
    for rank, position in enumerate(top, 1):
        point = (position, here[position])
        left.plot(*point, "o", color=COLOURS[1], markersize=5)
        left.annotate(str(rank), point, (4, 3), textcoords="offset points")
    set_up_axes(
        left,
        f"sequence {sequence}, {block_name(block, len(norms))}",
        log=True,
        legend={},
        xlabel="position in the sequence",
        ylabel="norm of a token's stream",
    )
    right.plot(norms.max(axis=1), label="largest token", **line_style("", 1))
    right.plot(medians, label="median token", **line_style("", 0))
    right.axvline(block, **CHOSEN)
    median = max(medians[block], 1e-30)
    set_up_axes(
        right,
        f"largest is {here.max() / median:.3g} × the median here",
        log=True,
        whole=10,
        legend={},
        xlabel="entering block (the last: leaving them all)",
    )
    return figure


def block_name(block: int, places: int) -> str:
    """Where the hidden states are on their way: `places` is one more than there are blocks."""
    return f"entering block {block}" if block < places - 1 else "leaving the last block"


def two_inputs_figure(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """ADMM on two correlated inputs, by iteration: a panel for each table, with its title.

    The columns are the lines. The gap between the third and the fourth is grey.
    """
    figure, axes = new_figure(2, size=(8.4, 3.7), sharey=True)
    for ax, (title, table) in zip(axes, panels.items(), strict=True):
        for label, (line, colour) in zip(table, VARIABLES.items(), strict=True):
            ax.plot(table[label], line, color=colour, label=label)
        ax.fill_between(table.index, *table.T.values[2:4], color="#E6E6E6")
        set_up_axes(ax, title, xlabel="iteration", ylabel="weight", whole=6)
        label_line_ends(ax)
    return figure
