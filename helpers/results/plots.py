"""Figures as pure functions of records (and of the series that a record holds).

Every figure is a `matplotlib.figure.Figure` of its own: pyplot and its global state are never
touched, so nothing needs closing. Colours are Okabe and Ito's, which colour-blind readers can
tell apart; markers and dashes differ too, for print in grey.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from helpers.paths import replace_file
from helpers.results.tables import (
    PRUNE_NOTEBOOK,
    PRUNE_PARTS,
    USUAL,
    column_of,
    cost_table,
    labelled,
    plain_runs,
    variant_table,
    zero_shot_table,
)

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")

# the order of tables and legends, with the look of each method in every figure
METHOD_LOOK = {"magnitude": 3, "wanda": 4, "sparsegpt": 1, "admm1": 2, "admm-grad": 0}
KEPT, PRUNED = "#0072B2", "#F4F4F4"
DENSE = "#555555"
THIN = "thin lines: other learning rates"
# the solvers that have curves, in the order of legends
RACERS = {"admm": "ADMM", "cg": "CG", "adam": "Adam", "sgd": "SGD"}
Record = Mapping[str, Any]


class Picture(Figure):
    """A Figure that Jupyter can show without pyplot."""

    def _repr_png_(self) -> bytes:
        return to_png(self, dpi=100)


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG bytes."""
    return _render(figure, "png", dpi)


def to_svg(figure: Figure) -> str:
    """The figure as SVG text."""
    return _render(figure, "svg", 150).decode("utf-8")


def _render(figure: Figure, kind: str, dpi: int) -> bytes:
    """The figure as a file's bytes, the same bytes each time: no date, fixed SVG ids."""
    buffer = io.BytesIO()
    if kind == "png":  # without a context of settings: explorers draw in a thread of their own
        figure.savefig(buffer, format=kind, dpi=dpi, metadata={"Software": None})
        return buffer.getvalue()
    with matplotlib.rc_context({"svg.hashsalt": "figure", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata={"Date": None})
    return buffer.getvalue()


def _picture(columns: int = 1, *, size: tuple[float, float], **layout: Any) -> tuple[Picture, Any]:
    """A new figure and its axes, in the house style."""
    figure = Picture(figsize=size, layout="constrained")
    axes = figure.subplots(1, columns, **layout)
    for ax in axes if columns > 1 else [axes]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, which="major", color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


OWN_LOOK = {
    "marker": "*",
    "markersize": 15,
    "color": "black",
    "markerfacecolor": "gold",
    "zorder": 5,
}


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


# ------------------------------------------------------------------ records of 04_prune_model


def prune_records(records: Iterable[Record]) -> list[tuple[Record, str]]:
    """The records of 04_prune_model with their label, which is their row in the tables.

    Plain methods come first, in the order of METHOD_LOOK, and lower seeds before higher ones;
    variants are left to their own figure.
    """
    chosen = plain_runs([r for r in records if r["notebook"] == PRUNE_NOTEBOOK])
    return sorted(labelled(chosen), key=lambda pair: (_rank(pair[1]), _seed(pair[0])))


def _rank(label: str) -> tuple[int, str]:
    order = list(METHOD_LOOK)
    return order.index(label) if label in order else len(order), label


def _seed(record: Record) -> int:
    return record["parameters"].get("calibration_seed", 0)


def _model_of(record: Record) -> str:
    return str(record["parameters"].get("model", ""))


def _perplexities(records: Iterable[tuple[Record, str]]) -> dict[str, dict[str, list[float]]]:
    """Perplexities by method label and target, one for each seed."""
    table: dict[str, dict[str, list[float]]] = {}
    for record, label in records:
        cell = table.setdefault(label, {}).setdefault(column_of(record) or "dense", [])
        cell.append(record["metrics"]["perplexity"]["value"])
    return table


def _note(ax: Axes, text: str) -> None:
    """Say why a panel is empty."""
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, color=DENSE)


def perplexity_figure(records: Iterable[Record], own: str = "") -> Figure:
    """Perplexity against sparsity, and of the N:M patterns, on a log axis with the dense line.

    Points are means over seeds, as in the table; a whisker spans the seeds. Only the
    records of `04_prune_model` count; several models are drawn in several figures by the caller.
    The method `own` stands out from the others, with its numbers beside it.
    """
    table = _perplexities(prune_records(records))
    dense = [value for cell in table.pop("dense", {}).values() for value in cell]
    targets = {target for cells in table.values() for target in cells}
    patterns = sorted((t for t in targets if ":" in t), key=_by_group)
    ratio = [3, 0.5 + 0.5 * max(1, len(patterns))]
    layout = {"sharey": True, "gridspec_kw": {"width_ratios": ratio}}
    figure, (left, right) = _picture(2, size=(8.0, 4.2), **layout)
    for position, (label, cells) in enumerate(table.items()):
        style = style_of(label, position) | (
            OWN_LOOK if own and label.partition(" (")[0] == own else {}
        )
        _draw_targets(left, cells, [t for t in cells if ":" not in t], style, label)
        shift = 0.12 * (position - (len(table) - 1) / 2)
        _draw_targets(right, cells, patterns, style | {"linestyle": "none"}, None, shift)
    if own:
        _write_numbers((left, right))
    for ax in (left, right):
        if dense:
            ax.axhline(dense[0], color=DENSE, linestyle=(0, (4, 3)), linewidth=1.2)
    left.set_xticks(sorted(float(t.split()[0]) for t in targets if ":" not in t))
    _finish_perplexity(left, right, dense, patterns)
    return figure


def _write_numbers(axes: Iterable[Axes]) -> None:
    """The numbers of the points that stand out, beside them."""
    for ax in axes:
        for line in ax.lines:
            if line.get_markerfacecolor() == OWN_LOOK["markerfacecolor"]:
                for x, y in zip(*line.get_data(), strict=True):
                    ax.annotate(f"{y:.1f}", (x, y), (9, -3), textcoords="offset points",
                                va="top", fontweight="bold", zorder=OWN_LOOK["zorder"])  # fmt: skip


def _by_group(pattern: str) -> int:
    return int(pattern.split(":")[1])


def _draw_targets(
    ax: Axes,
    cells: Mapping[str, Sequence[float]],
    targets: Sequence[str],
    style: Mapping[str, Any],
    label: str | None,
    shift: float = 0.0,
) -> None:
    """One method's points: at its sparsity in %, or at a pattern's position moved by `shift`."""
    points = []
    for position, target in enumerate(targets):
        if target in cells:
            x = position + shift if ":" in target else float(target.split()[0])
            values = cells[target]
            points.append((x, sum(values) / len(values), min(values), max(values)))
    points.sort()
    if not points:
        return
    x, y, low, high = zip(*points, strict=True)
    ax.plot(x, y, **style, label=label)
    ax.vlines(x, low, high, color=style["color"], linewidth=2.5, alpha=0.5)


def _finish_perplexity(left: Axes, right: Axes, dense: list[float], patterns: list[str]) -> None:
    left.set_yscale("log")
    left.set(xlabel="sparsity (% of the pruned layers' weights)", ylabel="perplexity (log scale)")
    left.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f} %"))
    plain = FuncFormatter(lambda y, _: f"{y:,.0f}" if y >= 10 else f"{y:g}")
    left.yaxis.set_major_formatter(plain)
    left.yaxis.set_minor_formatter(NullFormatter())
    right.set(xlabel="pattern", xlim=(-0.5, max(1, len(patterns)) - 0.5))
    right.set_xticks(range(len(patterns)), patterns)
    right.tick_params(axis="y", labelleft=False)
    if not patterns:
        _note(right, "no N:M\nruns")
    if dense:
        right.annotate(
            f"dense {dense[0]:.1f}",
            (1, dense[0]),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            color=DENSE,
            fontsize=9,
        )
    if left.get_legend_handles_labels()[1]:
        left.legend(frameon=False, fontsize=8.5, labelspacing=0.35)


def layer_error_figure(records: Iterable[Record], sparsity: float = 0.6) -> Figure:
    """Mean relative error of a block's layers by depth, one curve per method, log axis.

    Takes the unstructured runs at `sparsity` with the lowest seed. Methods that saw no
    calibration text have no errors and are left out.
    """
    figure, ax = _picture(size=(7.0, 4.0))
    seen: set[str] = set()
    for record, label in prune_records(records):
        errors = block_errors(record.get("layers") or [])
        if column_of(record) == f"{100 * sparsity:.4g} %" and errors and label not in seen:
            ax.plot(list(errors), list(errors.values()), label=label, **style_of(label, len(seen)))
            seen.add(label)
    _finish_depth(ax, f"mean relative error of a block at {100 * sparsity:.0f} %")
    if not seen:
        _note(ax, f"no layer errors recorded at {100 * sparsity:.0f} %")
    return figure


def block_errors(layers: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Mean relative error by block, of the layers that have one."""
    blocks: dict[int, list[float]] = {}
    for layer in layers:
        if layer.get("error") is not None:
            blocks.setdefault(layer["block"], []).append(layer["error"])
    return {block: sum(errors) / len(errors) for block, errors in sorted(blocks.items())}


def _finish_depth(ax: Axes, ylabel: str) -> None:
    ax.set(xlabel="block (0 is next to the embedding)", ylabel=f"{ylabel}\n‖XW − XŴ‖² / ‖XW‖²")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if ax.get_legend_handles_labels()[1]:
        ax.set_yscale("log")
        _plain_log(ax.yaxis)
        ax.legend(frameon=False, ncols=2, fontsize=9)


def _plain_log(axis: Axis) -> None:
    """Label a log axis in plain numbers, also between decades where it spans few of them."""
    low, high = axis.get_view_interval()
    span = high / max(low, 1e-300)
    digits = "23456789" if span < 5 else "235" if span < 30 else "25" if span < 100 else ""
    plain = FuncFormatter(lambda y, _: f"{y:.3g}")
    between = FuncFormatter(lambda y, _: f"{y:.3g}" if f"{y:.1e}"[0] in digits else "")
    axis.set_major_formatter(plain)
    axis.set_minor_formatter(between if digits else NullFormatter())


def depth_figure(layers: Iterable[Mapping[str, Any]], title: str = "") -> Figure:
    """Relative error by depth of one run, a curve for each kind of layer; log axis.

    Args: layers, rows with "block", "name" and "error" as a record holds them.
    """
    figure, ax = _picture(size=(7.0, 4.0))
    kinds: dict[str, dict[int, float]] = {}
    for layer in layers:
        if layer.get("error") is not None:
            kind = str(layer["name"]).split(".")[-1]
            kinds.setdefault(kind, {})[layer["block"]] = layer["error"]
    for position, (kind, errors) in enumerate(kinds.items()):
        ax.plot(list(errors), list(errors.values()), label=kind, **style_of("", position))
    _finish_depth(ax, "relative error of a layer")
    ax.set_title(title or "error by depth")
    if not kinds:
        _note(ax, "no layer errors recorded")
    return figure


# ------------------------------------------------------------------ the story in one picture


def summary_figure(records: Sequence[Record]) -> Figure | None:
    """The paper's three steps side by side: refit a layer, let its mask grow, prune the model.

    From a record of notebook 02, one of 03 and the plain runs of 04 on one model; None if one of
    the three is missing.
    """
    parts = [_first_series(records, name) for name in ("convergence", "schedule")]
    runs = [r for r, _ in prune_records(records)]
    if None in parts or not runs:
        return None
    common = [r for r in runs if _model_of(r) == _model_of(runs[0])]
    figure, (left, middle, right) = _picture(
        3, size=(12.0, 4.0), gridspec_kw={"width_ratios": [1.15, 0.75, 1.3]}
    )
    _draw_refit(left, parts[0])
    _draw_growth_gain(middle, parts[1])
    _draw_story(right, _perplexities(prune_records(common)))
    return figure


def _first_series(records: Iterable[Record], name: str) -> Mapping[str, Any] | None:
    """The first series of that name: of the record "default" if there is one."""
    found = [r for r in records if name in (r.get("series") or {})]
    found.sort(key=lambda record: record.get("name") != "default")
    return found[0]["series"][name] if found else None


def _draw_refit(ax: Axes, series: Mapping[str, Any]) -> None:
    """ADMM on a fixed mask, from no update to the optimum, each line with its name on it."""
    names = list(series["error"])
    chosen = "ρ = 1" if "ρ = 1" in names else names[0]
    before = max(series["references"].values())
    steps = [0, *series["iterations"]]
    colour = style_of("admm-grad")["color"]
    ax.plot(steps, [before, *series["error"][chosen]], color=colour, linewidth=2.2, zorder=3)
    for name, value in series["references"].items():
        ax.axhline(value, color=DENSE, linestyle=(0, (4, 3)), linewidth=1)
        _at_line(
            ax, name.partition(",")[0], value, below=value == min(series["references"].values())
        )
    ax.annotate("ADMM", (2, series["error"][chosen][1]), (6, 6), textcoords="offset points",
                color=colour, fontweight="bold")  # fmt: skip
    ax.set(xlabel="iteration", ylabel="relative error of the layer", xlim=(0, steps[-1]))
    ax.set_ylim(0, 1.12 * before)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    where = f"{series['layer'].replace('self_attn.', '').replace('mlp.', '')}"
    _headline(ax, "1  Refit the weights that stay", f"{where} at {100 * series['sparsity']:.0f} %")


def _at_line(
    ax: Axes, text: str, value: float, *, below: bool, inset: int = 3, **look: Any
) -> None:
    """The name of a horizontal line at its right end, so many points from it."""
    ax.annotate(
        text,
        (1, value),
        xycoords=("axes fraction", "data"),
        xytext=(-inset, -inset if below else 3),
        textcoords="offset points",
        ha="right",
        va="top" if below else "bottom",
        **{"color": DENSE, "fontsize": 9, **look},
    )


def _draw_growth_gain(ax: Axes, series: Mapping[str, Any]) -> None:
    """The error of the gradual mask as a share of the one-shot mask's, by pattern."""
    shares = {p: 100 * ratio["paper"] for p, ratio in series["ratio"].items() if "paper" in ratio}
    target = 100 * series["sparsity"]["one-shot"][-1]
    names = [f"{target:.0f} %" if name == "unstructured" else name for name in shares]
    bars = ax.bar(names, list(shares.values()), color=style_of("admm-grad")["color"], width=0.6)
    ax.bar_label(bars, [f"{share:.0f} %" for share in shares.values()], padding=2, fontsize=9)
    ax.axhline(100, color=DENSE, linestyle=(0, (4, 3)), linewidth=1)
    _at_line(ax, "mask chosen once", 100, below=False)
    ax.set(ylim=(0, 118), ylabel="error, % of the one-shot mask's")
    _headline(ax, "2  Let the mask grow", "while refitting; layers of one block")


def _draw_story(ax: Axes, table: dict[str, dict[str, list[float]]]) -> None:
    """Perplexity by sparsity, one line for a method, named at its end."""
    dense = [value for cell in table.pop("dense", {}).values() for value in cell]
    for position, (label, cells) in enumerate(table.items()):
        style = style_of(label, position)
        _draw_targets(ax, cells, [t for t in cells if ":" not in t], style, label)
    if dense:
        ax.axhline(dense[0], color=DENSE, linestyle=(0, (4, 3)), linewidth=1)
        _at_line(ax, f"dense {dense[0]:.1f}", dense[0], below=True)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f} %"))
    ax.set_xticks(sorted({line.get_xdata()[i] for line in ax.lines[: len(table)]
                          for i in range(len(line.get_xdata()))}))  # fmt: skip
    # magnitude pruning leaves the chart, so that the others can be told apart
    values = {label: max(max(cell) for cell in cells.values()) for label, cells in table.items()}
    others = [value for label, value in values.items() if label != "magnitude"]
    ax.set_ylim(ax.get_ylim()[0] / 1.5, 2 * max(others or values.values()))
    _name_curves(ax, ax.lines[: len(table)])
    ax.set(xlabel="weights set to zero", ylabel="perplexity (log scale, lower is better)")
    _headline(ax, "3  Prune the whole model", "block by block; a bar is the range over seeds")


def _name_curves(ax: Axes, lines: Sequence[Line2D]) -> None:
    """The names of curves at their ends, kept apart; beside the first point of one that leaves."""
    low, high = map(math.log, ax.get_ylim())
    ends = sorted((math.log(line.get_ydata()[-1]), line.get_label(), line) for line in lines)
    free = 0.0  # where the next name may stand, as a fraction of the axis
    for end, name, line in ends:
        look = {"color": line.get_color(), "fontsize": 9, "fontweight": "bold"}
        if end > high:
            first = line.get_xdata()[0], line.get_ydata()[0]
            ax.annotate(name, first, (8, 2), textcoords="offset points", va="top", **look)
            continue
        height = max((end - low) / (high - low), free)
        ax.annotate(name, (1.01, height), xycoords="axes fraction", va="center", **look)
        free = height + 0.055


def _headline(ax: Axes, title: str, note: str) -> None:
    """A panel's title in bold, and below it what the panel shows."""
    ax.set_title(f"{title}\n", loc="left", fontsize=11, fontweight="bold")
    ax.annotate(note, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points",
                fontsize=9, color=DENSE)  # fmt: skip


# ------------------------------------------------------------------ series of 01, 02 and 03


def convergence_figure(series: Mapping[str, Any]) -> Figure:
    """How ADMM on a fixed mask approaches the optimum (series "convergence" of notebook 02).

    Left: relative error after each iteration, with the other solvers as lines. Right: distance
    of the weights to the exact least-squares optimum on the same mask, log axis.
    Series: "iterations" [n], "error" and "distance" {curve: [n]}, "references" {name: error},
    "layer", "sparsity".
    """
    figure, (left, right) = _picture(2, size=(9.0, 3.9))
    steps = series["iterations"]
    for position, (name, errors) in enumerate(series["error"].items()):
        style = style_of("", position)
        left.plot(steps, errors, label=name, **style)
        right.plot(steps, series["distance"][name], label=name, **style)
    _draw_references(left, series["references"])
    left.set(xlabel="iteration", ylabel="relative error ‖XW − XŴ‖² / ‖XW‖²", yscale="log")
    right.set(xlabel="iteration", ylabel="‖Ŵ − Ŵ*‖ / ‖Ŵ*‖ (to the optimum)", yscale="log")
    left.set_title(f"{series['layer']} at {100 * series['sparsity']:.0f} %", fontsize=10)
    right.set_title("distance to exact least squares", fontsize=10)
    _leave_room(left)
    _plain_log(left.yaxis)
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(frameon=False, fontsize=9)
    return figure


def _draw_references(ax: Axes, references: Mapping[str, float]) -> None:
    """Horizontal lines with their names: the lowest below its line, the others above."""
    dashes = cycle([(0, (4, 2)), (0, (1, 1.5)), (0, (6, 1, 1, 1))])
    lowest = min(references.values(), default=None)
    for (name, value), dash in zip(references.items(), dashes, strict=False):
        ax.axhline(value, color="black", linestyle=dash, linewidth=1.2)
        below = value == lowest and len(references) > 1
        text, look = f"{name}: {short_error(value)}", {"color": "black", "fontsize": 8.5}
        _at_line(ax, text, value, below=below, inset=4, **look)


def short_error(value: float) -> str:
    """A relative error as text: four places, or two digits of a small one."""
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.2g}"


def _leave_room(ax: Axes) -> None:
    """Widen a log axis by a tenth of its height at both ends, for labels beside the curves."""
    low, high = ax.get_ylim()
    room = (high / low) ** 0.1
    ax.set_ylim(low / room, high * room)


def schedule_figure(series: Mapping[str, Any]) -> Figure:
    """What growing the mask gradually buys (series "schedule" of notebook 03).

    Left: the sparsity of the mask at each iteration. Right: relative error by pattern, as a
    share of the one-shot mask's, averaged (geometrically) over the layers.
    Series: "sparsity" {schedule: [n]}, "ratio" {pattern: {schedule: ratio to one-shot}}.
    """
    figure, (left, right) = _picture(2, size=(9.0, 3.9))
    for position, (name, values) in enumerate(series["sparsity"].items()):
        percent = [100 * value for value in values]
        style = style_of("", position) | {"markersize": 4}
        if position == 0:  # a broad band, so that a curve on top of it does not hide it
            style |= {"marker": "", "linestyle": "-", "linewidth": 7, "alpha": 0.35}
        left.plot(range(1, len(values) + 1), percent, label=name, **style)
    left.set(xlabel="iteration", ylabel="sparsity of the mask (%)", ylim=(0, None))
    left.set_title("the mask grows", fontsize=10)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(frameon=False, fontsize=9, loc="lower right")
    _draw_bars(right, series["ratio"], list(series["sparsity"]))
    right.set(ylabel="relative error (% of one-shot's)")
    right.set_title("and the error falls", fontsize=10)
    return figure


def _draw_bars(ax: Axes, ratios: Mapping[str, Mapping[str, float]], names: list[str]) -> None:
    """Grouped bars, each with its number: a group for every pattern, a bar for every schedule."""
    width = 0.8 / max(1, len(names))
    hatches = ("", "//", "..", "xx")
    for position, name in enumerate(names):
        for group, values in enumerate(ratios.values()):
            if name not in values:
                continue
            x = group + (position - (len(names) - 1) / 2) * width
            look = {
                "color": COLOURS[position],
                "hatch": hatches[position % 4],
                "edgecolor": "white",
            }
            ax.bar(x, 100 * values[name], width * 0.95, **look)
            ax.annotate(
                f"{100 * values[name]:.0f}",
                (x, 100 * values[name]),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    ax.set_xticks(range(len(ratios)), list(ratios))
    ax.grid(False, axis="x")


def spectrum_figure(series: Mapping[str, Any]) -> Figure:
    """What a gram looks like (series "spectrum" of notebook 01).

    Left: eigenvalues of the gram, largest first, as a share of the largest. Right: the norm of
    every input over the calibration text, largest first, as a multiple of the median.
    Series: "eigenvalues" and "norms", each {layer: [values, largest first]}.
    """
    figure, (left, right) = _picture(2, size=(9.0, 3.9))
    for position, name in enumerate(series["eigenvalues"]):
        style = style_of("", position) | {"marker": ""}
        values = series["eigenvalues"][name]
        left.plot(_percent_of(values), _positive(values, values[0]), label=name, **style)
        norms = series["norms"][name]
        median = sorted(norms)[len(norms) // 2]
        right.plot(_percent_of(norms), _positive(norms, median), label=name, **style)
    left.set(xlabel="eigenvalue, largest first (%)", ylabel="eigenvalue / largest", yscale="log")
    right.set(xlabel="input, largest first (%)", ylabel="input norm / median", yscale="log")
    left.set_title("spectrum of XᵀX", fontsize=10)
    right.set_title("norm of each input", fontsize=10)
    right.legend(frameon=False, fontsize=9)
    return figure


def _percent_of(values: Sequence[float]) -> list[float]:
    return [100 * index / max(1, len(values) - 1) for index in range(len(values))]


def _positive(values: Sequence[float], unit: float) -> list[float]:
    """values / unit; what is zero or below (round-off, a dead input) leaves a gap in a log plot."""
    unit = unit if unit > 0 else 1.0
    return [value / unit if value > 0 else float("nan") for value in values]


# ------------------------------------------------------------------ masks and single solves


def draw_mask(ax: Axes, keep: Any, title: str = "") -> None:
    """A mask as an image: kept weights dark, pruned ones pale. keep is (d_out, d_in)."""
    colours = ListedColormap([PRUNED, KEPT])
    ax.imshow(_array(keep), cmap=colours, vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    ax.grid(False)
    ax.set(xlabel="input", ylabel="output")
    ax.set_title(title, fontsize=10, y=1.0)


def mask_picture(keep: Any, *, size: int = 48, title: str = "") -> Figure:
    """The corner of a mask, `size` outputs by twice as many inputs; kept weights are dark."""
    figure, ax = _picture(size=(6.4, 3.6))
    corner = keep[:size, : 2 * size]
    draw_mask(ax, corner, title or f"kept weights (dark), {_kept(keep)}")
    return figure


def _array(keep: Any) -> np.ndarray:
    """A mask as a numpy array, wherever the tensor lies."""
    return keep.cpu().numpy() if hasattr(keep, "cpu") else np.asarray(keep)


def _kept(keep: Any) -> str:
    rows, columns = keep.shape
    return f"{100 * float(keep.sum()) / (rows * columns):.0f} % of {rows} × {columns}"


# ------------------------------------------------------------------ pictures of the explorers


def _panels(
    ratios: Sequence[float], size: tuple[float, float], **room: float
) -> tuple[Picture, Any]:
    """A new figure whose axes stay where they are from one picture to the next.

    Explorers redraw while a slider is dragged: nothing may jump, and laying out takes time. So
    does the search for a title's place, which titles that are told it (y=1.0) are spared.
    """
    figure = Picture(figsize=size)
    room = {"left": 0.07, "right": 0.985, "top": 0.86, "bottom": 0.2, "wspace": 0.3} | room
    axes = figure.subplots(1, len(ratios), gridspec_kw={"width_ratios": ratios, **room})
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, which="major", color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def solve_figure(
    errors: Sequence[float],
    keep: Any,
    *,
    references: Mapping[str, float],
    outputs: Mapping[str, Sequence[float]],
    title: str,
    mask_steps: int = 0,
    size: int = 48,
) -> Figure:
    """One solve: its error by iteration and by output, and the corner of the mask it ended with.

    Args: errors, the relative error after each iteration, the first `mask_steps` of which chose
    the mask anew; references, horizontal lines {name: error}; outputs, {name: the relative error
    of each output}, of which the last is the solve's.
    """
    figure, (left, middle, right) = _panels([1.25, 1.1, 1], (12.0, 3.9))
    steps = range(1, len(errors) + 1)
    left.plot(steps, _positive(errors, 1.0), **style_of("admm-grad") | {"markersize": 4})
    _draw_references(left, {name: value for name, value in references.items() if value > 0})
    if mask_steps:
        left.axvspan(0.5, mask_steps + 0.5, color="#EEEEEE", zorder=0)
        left.annotate("mask still changes", (0.5, 0.02), xycoords=("data", "axes fraction"))
        left.texts[-1].set(fontsize=8.5, color=DENSE, position=(4, 0), anncoords="offset points")
    left.set(xlabel="iteration", ylabel="relative error ‖XW − XŴ‖² / ‖XW‖²", yscale="log")
    left.set_title(title, fontsize=10, y=1.0)
    left.set_xlim(0.5, len(errors) + 0.5)
    left.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    _leave_room(left)
    _plain_log(left.yaxis)
    _draw_outputs(middle, outputs)
    draw_mask(right, keep[:size, :size], f"kept (dark): {_kept(keep)}")
    return figure


def _draw_outputs(ax: Axes, outputs: Mapping[str, Sequence[float]]) -> None:
    """The error of every output, in the order of the last series, worst first; three are named."""
    *others, (name, last) = outputs.items()
    order = np.argsort(-np.asarray(last), kind="stable")
    ranks = range(1, len(order) + 1)
    for position, (label, values) in enumerate(others):
        look = {"color": COLOURS[1 + position], "marker": ".", "markersize": 3}
        ax.plot(ranks, _positive(np.asarray(values)[order], 1.0), ls="", label=label, **look)
    ax.plot(ranks, _positive(np.asarray(last)[order], 1.0), color=COLOURS[0], lw=2, label=name)
    ax.set(xlabel="output, most hurt first", ylabel="relative error of an output", yscale="log")
    worst = ", ".join(str(index) for index in order[:3])
    ax.set_title(f"hurt most: outputs {worst}", fontsize=10, y=1.0)
    _plain_log(ax.yaxis)
    ax.legend(frameon=False, fontsize=8.5, loc="best", markerscale=3)


def growth_figure(
    sparsity: Sequence[float],
    errors: Sequence[float],
    keep: Any,
    one_shot: Any,
    *,
    iteration: int | None = None,
    pattern: tuple[int, int] | None = None,
    name: str = "",
    size: int = 40,
) -> Figure:
    """One gradual solve at one of its iterations: sparsity, error, and the mask against one-shot's.

    Args: sparsity and errors, one number an iteration; iteration, the one shown, from 1 (the last
    by default); keep, the mask then, and one_shot, the one-shot mask of the final sparsity, both
    (d_out, d_in), of which the top left corner is drawn; pattern, (N, M) to draw the groups; name,
    the layer's, for the title.
    """
    shown = iteration or len(errors)
    figure, (left, middle, right) = _panels([1, 1, 1.3], (12.0, 4.3), bottom=0.26)
    steps = range(1, len(errors) + 1)
    left.plot(steps, [100 * value for value in sparsity], **style_of("", 0) | {"markersize": 4})
    left.set(xlabel="iteration", ylabel="sparsity of the mask (%)", ylim=(0, 100))
    title = [name] if name else []
    title += [f"iteration {shown}: {100 * sparsity[shown - 1]:.1f} % pruned"]
    left.set_title("\n".join(title), fontsize=10, y=1.0, loc="left")
    middle.plot(steps, errors, **style_of("", 1) | {"markersize": 4})
    middle.set(xlabel="iteration", ylabel="relative error ‖XW − XŴ‖² / ‖XW‖²")
    middle.set_ylim(0, 1.08 * max(errors) or 1)
    middle.set_title(f"iteration {shown}: error {errors[shown - 1]:.4f}", fontsize=10, y=1.0)
    for ax, value in ((left, 100 * sparsity[shown - 1]), (middle, errors[shown - 1])):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        ax.axvline(shown, color="black", linewidth=1, linestyle=(0, (4, 2)))
        ax.plot([shown], [value], "o", color="black", markersize=9, fillstyle="none", mew=1.6)
    _draw_mask_change(right, keep, one_shot, size, pattern)
    return figure


def _draw_mask_change(
    ax: Axes, keep: Any, one_shot: Any, size: int, pattern: tuple[int, int] | None
) -> None:
    """Kept by both, by neither, or by one of two masks, with the share that moved."""
    names = ("pruned by both", "kept by one-shot only", "kept here only", "kept by both")
    colours = (PRUNED, COLOURS[1], "black", COLOURS[5])
    width = 3 * size // 2
    if pattern:  # few groups, each of which can be counted
        size, width = 16, 3 * max(8, pattern[1])
    corner, other = _array(keep)[:size, :width], _array(one_shot)[:size, :width]
    kind = 2 * corner.astype(np.int8) + other  # 0 neither, 1 one-shot only, 2 here only, 3 both
    look = ListedColormap(colours)
    ax.imshow(kind, cmap=look, vmin=0, vmax=3, interpolation="nearest", aspect="auto")
    ax.grid(False)
    if pattern:
        _draw_groups(ax, kind.shape, pattern[1])
    ax.set(xlabel="input", ylabel="output")
    moved = 100 * float((keep & ~one_shot).sum()) / max(1, int(keep.sum()))
    ax.set_title(f"{moved:.1f} % of the weights kept are not one-shot's", fontsize=10, y=1.0)
    patches = [
        Patch(facecolor=colour, edgecolor="#999999", label=name)
        for colour, name in zip(colours, names, strict=True)
    ]
    place = {"loc": "upper center", "bbox_to_anchor": (0.45, -0.16)}
    ax.legend(handles=patches, fontsize=8.5, ncols=2, frameon=False, **place)


def _draw_groups(ax: Axes, shape: tuple[int, int], group: int) -> None:
    """Lines between weights, and broad ones between groups of M along the input."""
    rows, columns = shape
    ax.vlines(np.arange(0.5, columns - 1), -0.5, rows - 0.5, color="white", linewidth=0.8)
    ax.hlines(np.arange(0.5, rows - 1), -0.5, columns - 0.5, color="white", linewidth=1.5)
    edges = np.arange(group - 0.5, columns - 1, group)
    ax.vlines(edges, -0.5, rows - 0.5, color="white", linewidth=5)
    ax.vlines(edges, -0.5, rows - 0.5, color="black", linewidth=1.2)
    ax.set_xticks(np.arange(0, columns, group))


def stream_figure(
    norms: Sequence[Sequence[float]], block: int, top: Sequence[int], *, window: int
) -> Figure:
    """The norms of one window's stream: by position at one block, and by block.

    Args: norms, (blocks + 1, tokens): entering each block, and leaving the last; block, the one
    shown; top, positions of its largest tokens, largest first; window, its number for the title.
    """
    table = np.asarray(norms)
    here, medians = table[block], np.median(table, axis=1)
    figure, (left, right) = _panels([1.4, 1], (12.0, 3.7), left=0.075, wspace=0.2)
    left.plot(here, color=COLOURS[0], linewidth=1)
    left.axhline(medians[block], color=DENSE, linestyle=(0, (4, 2)), linewidth=1, label="median")
    for rank, position in enumerate(top, 1):
        left.plot([position], [here[position]], "o", color=COLOURS[1], markersize=5)
        left.annotate(str(rank), (position, here[position]), (4, 3), textcoords="offset points")
    left.set(xlabel="position in the window", ylabel="norm of a token's stream", yscale="log")
    left.set_title(f"window {window}, {block_name(block, len(table))}", fontsize=10, y=1.0)
    right.plot(table.max(axis=1), **style_of("", 1) | {"markersize": 4}, label="largest token")
    right.plot(medians, **style_of("", 0) | {"markersize": 4}, label="median token")
    right.axvline(block, color="black", linewidth=1, linestyle=(0, (4, 2)))
    ratio = here.max() / max(medians[block], 1e-30)
    right.set(xlabel="entering block (the last: leaving the model's blocks)", yscale="log")
    right.set_title(f"largest is {ratio:.3g} × the median here", fontsize=10, y=1.0)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in (left, right):
        _leave_room(ax)
        _plain_log(ax.yaxis)
        ax.yaxis.set_major_formatter(
            FuncFormatter(lambda y, _: f"{y:,.0f}" if y >= 1 else f"{y:g}")
        )
        ax.legend(frameon=False, fontsize=8.5)
    return figure


def block_name(block: int, places: int) -> str:
    """Where on its way the stream is: `places` is one more than there are blocks."""
    return f"entering block {block}" if block < places - 1 else "leaving the last block"


# ------------------------------------------------------------------ the update study


def update_figure(
    rows: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, Any]],
    sparsity: float,
    title: str = "",
) -> Figure:
    """How fast each way of refitting gets to the optimum of one layer on a fixed mask.

    Relative error against iterations (left) and against seconds (right), log axes; the exact
    optimum is the floor; SparseGPT, which sweeps once over the columns, is a star, put at
    iteration 1. Adam and SGD are drawn at the rate that arrives first, their other rates as thin
    lines. Args: rows and curves as
    `helpers.study.update_study` returns them; sparsity, one that is in them.
    """
    figure, axes = _picture(2, size=(9.5, 4.0), sharey=True)
    _draw_update(axes, rows, curves, sparsity)
    axes[0].set_ylabel("relative error ‖XW − XŴ‖² / ‖XW‖²")
    title = title or f"one fixed mask at {100 * sparsity:.4g} %"
    figure.suptitle(f"{title}; {THIN}", fontsize=10)
    _legend_below(figure, axes[0])
    return figure


def update_grid_figure(records: Sequence[Record], sparsity: float) -> Figure:
    """The panels of `update_figure` for several layers: one column a record of notebook 02."""
    if len(records) == 1:
        series, asked = records[0]["series"], records[0]["parameters"]
        title = f"block {asked['block']} {asked['layer']} at {100 * sparsity:.4g} %"
        return update_figure(series["update"], series["curves"], sparsity, title)
    figure = Picture(figsize=(3.1 * len(records) + 0.6, 5.6), layout="constrained")
    grid = figure.subplots(2, len(records), squeeze=False)
    for column, record in enumerate(records):
        series, asked = record["series"], record["parameters"]
        axes = grid[:, column]
        _draw_update(axes, series["update"], series["curves"], sparsity)
        axes[0].set_title(f"block {asked['block']} {asked['layer'].split('.')[-1]}", fontsize=10)
    for ax in grid.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, which="major", color="#DDDDDD", linewidth=0.6)
    for ax in grid[:, 0]:
        ax.set_ylabel("relative error")
    figure.suptitle(f"one fixed mask at {100 * sparsity:.4g} %; {THIN}", fontsize=10)
    _legend_below(figure, grid[0, 0], 4 if len(records) > 2 else 2)
    return figure


def _draw_update(
    axes: Sequence[Axes],
    rows: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, Any]],
    sparsity: float,
) -> None:
    """Error by iterations in the first of two axes, by seconds in the second."""
    best = _best_curves(curves, sparsity)
    for position, (label, curve) in enumerate(best.items()):
        _draw_other_rates(axes, [c for c in curves if c["sparsity"] == sparsity], curve, position)
        look = style_of("", position) | {"markersize": 3}
        if label != "ADMM":
            look |= {"marker": "", "linewidth": 1.3}
        for ax, x in zip(axes, ("iterations", "seconds"), strict=True):
            ax.plot(curve[x], curve["error"], label=label, **look)
    at = [row for row in rows if row["sparsity"] == sparsity]
    damping = _study_damping(curves)
    floor = [r["error"] for r in at if r["solver"] == "exact" and r["damping"] == damping]
    dots = [row for row in at if row["solver"] == "sparsegpt"]
    for ax, x in zip(axes, ("iterations", "seconds"), strict=True):
        for error in floor:
            ax.axhline(error, color="black", linestyle=(0, (4, 2)), linewidth=1, label="optimum")
        for row in dots:
            place = row["seconds"] if x == "seconds" else 1
            ax.plot(place, row["error"], "k*", markersize=9, label="SparseGPT (one sweep)")
        ax.set(xscale="log", yscale="log", xlabel={"iterations": "iteration"}.get(x, x))
        _plain_log(ax.xaxis)
    _fit_to(axes, at)


def _draw_other_rates(
    axes: Sequence[Axes],
    curves: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any],
    position: int,
) -> None:
    """The same solver at the learning rates that arrive later, thin and without a name."""
    look = {"color": style_of("", position)["color"], "linewidth": 0.7, "alpha": 0.35}
    for curve in curves:
        same = all(curve[key] == best[key] for key in ("solver", "precondition", "damping"))
        if same and curve["learning_rate"] != best["learning_rate"]:
            for ax, x in zip(axes, ("iterations", "seconds"), strict=True):
                ax.plot(curve[x], curve["error"], **look)


def _best_curves(
    curves: Sequence[Mapping[str, Any]], sparsity: float
) -> dict[str, Mapping[str, Any]]:
    """The curves worth a line: ADMM with and without preconditioning, and each rival's best."""
    found: dict[str, Mapping[str, Any]] = {}
    usual = (USUAL["rho"], _study_damping(curves))
    at = [c for c in curves if c["sparsity"] == sparsity and c["error"] and c["solver"] in RACERS]
    for curve in sorted(at, key=lambda c: list(RACERS).index(c["solver"])):
        if curve["solver"] == "admm" and (curve["rho"], curve["damping"]) != usual:
            continue
        label = _racer(curve)
        if label not in found or _arrival(curve) < _arrival(found[label]):
            found[label] = curve
    return found


def _racer(curve: Mapping[str, Any]) -> str:
    """A solver's name, with its coordinates where they are not the ones it usually has."""
    scaled = curve["precondition"]
    if scaled == (curve["solver"] in ("admm", "cg")):
        return RACERS[curve["solver"]]
    return f"{RACERS[curve['solver']]}, {'' if scaled else 'not '}preconditioned"


def _study_damping(curves: Iterable[Mapping[str, Any]]) -> float | None:
    """The damping of a study: that of its gradient methods, which have no other."""
    return next((c["damping"] for c in curves if c["solver"] != "admm"), USUAL["damping"])


def update_median_figure(records: Sequence[Record]) -> Figure:
    """Excess over the optimum: the median over all layers and sparsities studied.

    Left: ADMM beside its rivals by iteration, each at the learning rate that arrives first on its
    problem. Middle: the same by time, in units of what 20 iterations of ADMM take on the problem,
    because layers differ in size. Right: ADMM at every ρ by iteration (an iteration takes the same
    time whatever ρ is), with preconditioning (solid) and without (dashed).
    """
    figure, (left, middle, right) = _picture(3, size=(13.0, 4.4), sharey=True)
    rivals: dict[str, list[Mapping[str, Any]]] = {}
    settings: dict[tuple[bool, float], list[Mapping[str, Any]]] = {}
    for record in records:
        curves = record["series"]["curves"]
        damping = _study_damping(curves)
        for sparsity in sorted({curve["sparsity"] for curve in curves}):
            best = _best_curves(curves, sparsity)
            for label, curve in best.items():
                relative = _in_units_of(best.get("ADMM"), curve)
                rivals.setdefault(label, []).append(curve | {"relative": relative})
        for curve in curves:
            if curve["solver"] == "admm" and curve["damping"] == damping:
                key = (not curve["precondition"], curve["rho"])
                settings.setdefault(key, []).append(curve)
    for position, (label, found) in enumerate(rivals.items()):
        look = style_of("", position) | {"marker": ""}
        left.plot(*_median_curve(found), label=label, **look)
        middle.plot(*_median_in_time(found), **look)
    rhos = sorted({rho for _, rho in settings})
    for (plain, rho), found in sorted(settings.items()):
        look = style_of("", rhos.index(rho)) | {"linestyle": "--" if plain else "-"}
        look |= {"markevery": 4, "markersize": 4}
        right.plot(*_median_curve(found), label=None if plain else f"ρ = {rho:g}", **look)
    _finish_median(left, middle, right, sum(map(len, rivals.values())) // max(1, len(rivals)))
    return figure


def _in_units_of(ours: Mapping[str, Any] | None, curve: Mapping[str, Any]) -> list[float]:
    """The seconds of a curve as multiples of ADMM's after 20 iterations; [] without that."""
    if ours is None or 20 not in ours["iterations"]:
        return []
    unit = ours["seconds"][ours["iterations"].index(20)]
    return [seconds / unit for seconds in curve["seconds"]]


def _median_in_time(curves: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Relative times that all curves cover, and the median excess at each, between points."""
    timed = [curve for curve in curves if curve["relative"]]
    if not timed:
        return [], []
    first = max(curve["relative"][0] for curve in timed)
    last = min(curve["relative"][-1] for curve in timed)
    times = np.geomspace(first, last, 60) if first < last else np.array([])
    found = [
        np.interp(np.log(times), np.log(c["relative"]), np.log(np.maximum(c["excess"], 1e-12)))
        for c in timed
    ]
    return list(times), list(np.exp(np.median(found, axis=0)))


def _median_curve(curves: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[float]]:
    """Iterations that all curves have, and the median excess at each."""
    shared = set.intersection(*(set(curve["iterations"]) for curve in curves))
    steps = sorted(shared)
    by_step = [dict(zip(curve["iterations"], curve["excess"], strict=True)) for curve in curves]
    return steps, [float(np.median([found[step] for found in by_step])) for step in steps]


def _finish_median(left: Axes, middle: Axes, right: Axes, problems: int) -> None:
    for ax in (left, middle, right):
        ax.axhline(0.01, color=DENSE, linewidth=0.8, linestyle=(0, (1, 2)))
        ax.set(xscale="log", yscale="log", xlabel="iteration", ylim=(1e-9, None))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    for ax in (left, right):
        ax.legend(frameon=False, fontsize=8.5)
    amount = f"\n(median of {problems} problems)" if problems > 1 else ""
    left.set_ylabel(f"excess over the optimum{amount}")
    left.set_title("ADMM and its rivals; dotted: 1 %", fontsize=10)
    _plain_log(middle.xaxis)
    middle.set_xlabel("time (1: 20 iterations of ADMM)")
    middle.set_title("the same by time", fontsize=10)
    right.set_title("ADMM; dashed: not preconditioned", fontsize=10)


def _arrival(curve: Mapping[str, Any]) -> tuple[float, float]:
    """Iterations until a curve is within 1 % of the optimum; the last error decides a tie."""
    points = zip(curve["iterations"], curve["excess"], strict=True)
    return min((step for step, e in points if e <= 0.01), default=np.inf), curve["error"][-1]


def _fit_to(axes: Sequence[Axes], rows: Iterable[Mapping[str, Any]]) -> None:
    """Cut the error axis at what a reader compares: from the optimum to "no update"."""
    errors = {row["solver"]: row["error"] for row in rows if row["error"] > 0}
    if not errors:
        return
    low, high = min(errors.values()), errors.get("none", max(errors.values()))
    ticks = [float(f"{value:.2g}") for value in np.geomspace(low, high, 5)]
    for ax in axes:
        ax.set_ylim(low * 0.95, 1.15 * high)
        ax.yaxis.set_major_locator(FixedLocator(ticks))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
        ax.yaxis.set_minor_locator(NullLocator())


def _legend_below(figure: Figure, ax: Axes, columns: int = 4) -> None:
    """One legend for the whole figure, under its panels."""
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    place = {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": 9}
    figure.legend(unique.values(), unique.keys(), **place)


# ------------------------------------------------------------------ variants and zero-shot


def variant_figure(records: Sequence[Record]) -> Figure:
    """What each changed option does to perplexity, in percent of the defaults' (a bar each).

    The line on a bar is one standard error of the mean over seeds.
    """
    table = variant_table(records)
    figure, ax = _picture(size=(7.0, 1.2 + 0.34 * len(table)))
    names = [
        name.removeprefix("admm-grad ").strip("()") + (" (one seed)" if seeds == 1 else "")
        for name, seeds in zip(table.index, table["seeds"], strict=True)
    ][::-1]
    changes = list(table["change (%)"])[::-1]
    colours = [COLOURS[1] if change > 0 else COLOURS[2] for change in changes]
    errors = table["± (%)"].fillna(0).to_numpy()[::-1]
    ax.barh(range(len(names)), changes, xerr=errors, color=colours, ecolor=DENSE)
    for place, (change, error) in enumerate(zip(changes, errors, strict=True)):
        side = "left" if change >= 0 else "right"
        ax.annotate(
            f"{change:+.1f} %",
            (change + (error if change >= 0 else -error), place),
            xytext=(3 if change >= 0 else -3, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=8.5,
        )
    ax.axvline(0, color=DENSE, linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.grid(False, axis="y")
    ax.margins(x=0.15)
    ax.set_xlabel("change of perplexity against the defaults (%); to the left is better")
    return figure


def zero_shot_figure(records: Sequence[Record]) -> Figure:
    """Accuracy of each model on each task with one standard error."""
    frame, spread = zero_shot_table(records)
    figure, ax = _picture(size=(9.0, 4.0))
    width = 0.8 / len(frame)
    for position, label in enumerate(frame.index):
        look = style_of(label.partition(",")[0], position)
        places = [c + (position - (len(frame) - 1) / 2) * width for c in range(len(frame.columns))]
        colour = DENSE if label == "dense" else look["color"]
        errors = {"yerr": spread.loc[label], "error_kw": {"linewidth": 0.9}}
        ax.bar(places, frame.loc[label], width * 0.92, color=colour, label=label, **errors)
    ax.set_xticks(range(len(frame.columns)), list(frame.columns))
    ax.set_ylabel("accuracy, ± one standard error")
    ax.grid(False, axis="x")
    ax.legend(frameon=False, ncols=4, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 1.13))
    return figure


def cost_figure(records: Sequence[Record]) -> Figure:
    """Where the seconds of pruning go, a bar a method."""
    table = cost_table(records).drop(index="dense", errors="ignore")
    figure, ax = _picture(size=(7.5, 1.4 + 0.42 * len(table)))
    left = np.zeros(len(table))
    for position, part in enumerate(PRUNE_PARTS):
        column = table[f"{part} (s)"]
        if column.isna().all():  # on a GPU it is not timed apart
            continue
        within = {"forward": "gram", "solve": "selection"}.get(part)
        alone = within is None or table[f"{within} (s)"].notna().any()
        seconds = column.fillna(0).to_numpy()
        look = {"color": COLOURS[position], "hatch": ("", "//", "..", "xx")[position]}
        look |= {"label": part if alone else f"{part} and {within}", "edgecolor": "white"}
        ax.barh(list(table.index), seconds, left=left, **look)
        left += seconds
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.set_xlabel("seconds to prune the whole model")
    ax.legend(frameon=False, fontsize=9, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
    return figure


# ------------------------------------------------------------------ files


def write_figures(records: Iterable[Record], folder: str | Path) -> list[Path]:
    """Draw every figure that the records allow into `folder`, as PNG (150 dpi) and SVG.

    Returns the paths written. A figure whose records are missing is not drawn.
    Raises RecordError when the folder cannot be written.
    """
    paths = []
    for name, figure in figures(list(records)).items():
        for kind in ("png", "svg"):
            path = Path(folder) / f"{name}.{kind}"
            paths.append(replace_file(path, _render(figure, kind, 150)))
    return paths


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Every figure that the records allow, by file name without its ending."""
    drawn: dict[str, Figure] = {}
    models: dict[str, list[Record]] = {}
    for record, _ in prune_records(records):
        models.setdefault(_model_of(record), []).append(record)
    for model, runs in models.items():
        suffix = "" if len(models) == 1 else "_" + model.rsplit("/", 1)[-1].lower()
        drawn[f"perplexity{suffix}"] = perplexity_figure(runs)
        sparsity = common_sparsity(runs)
        if sparsity is not None:
            drawn[f"layer_error{suffix}"] = layer_error_figure(runs, sparsity)
    drawn |= _study_figures(records)
    drawers = {
        "spectrum": spectrum_figure,
        "convergence": convergence_figure,
        "schedule": schedule_figure,
    }
    for name, draw in drawers.items():
        found = [record for record in records if name in (record.get("series") or {})]
        if found:
            drawn[name] = draw(found[0]["series"][name])
    summary = summary_figure(records)
    return drawn if summary is None else {"summary": summary, **drawn}


def _study_figures(records: Sequence[Record]) -> dict[str, Figure]:
    """The figures of studies, variants, cost and zero-shot, as far as there are records."""
    drawn: dict[str, Figure] = {}
    studied = [record for record in records if "curves" in (record.get("series") or {})]
    if studied:
        drawn["weight_update"] = update_grid_figure(*choose_layers(studied))
        drawn["weight_update_median"] = update_median_figure(studied)
    if any("forward_seconds" in record["metrics"] for record in records):
        drawn["cost"] = cost_figure(records)
    if variant_table(records) is not None:
        drawn["variants"] = variant_figure(records)
    if zero_shot_table(records) is not None:
        drawn["zero_shot"] = zero_shot_figure(records)
    return drawn


def choose_layers(studied: Sequence[Record]) -> tuple[list[Record], float]:
    """At most four layers, those of the middle block among the blocks studied, and a sparsity."""
    blocks = sorted({record["parameters"]["block"] for record in studied})
    middle = blocks[len(blocks) // 2]
    counts = {b: sum(r["parameters"]["block"] == b for r in studied) for b in blocks}
    block = middle if counts[middle] == max(counts.values()) else max(counts, key=counts.get)
    chosen = [record for record in studied if record["parameters"]["block"] == block][:4]
    shared = set.intersection(*({row["sparsity"] for row in r["series"]["update"]} for r in chosen))
    return chosen, 0.6 if 0.6 in shared else min(shared)


def common_sparsity(runs: Iterable[Record]) -> float | None:
    """The sparsity to compare layers at: 0.6 where it was run, else the first there is."""
    found = {
        run["parameters"]["sparsity"]
        for run in runs
        if run["parameters"]["pattern"] == "unstructured" and block_errors(run.get("layers") or [])
    }
    return 0.6 if 0.6 in found else min(found, default=None)
