"""The figure of size and speed against sparsity: a pure function of the benchmark's result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from helpers.explore.style import (
    DENSE_COLOUR,
    label_line_ends,
    line_style,
    new_figure,
    set_up_axes,
    to_png,
)

STORED = ("float16, zstd", "mask + float16", "int8, zstd", "mask + int8")


def use_figure(result: Mapping[str, Any]) -> bytes:
    """Draw a PNG: bytes over dense float16, then tokens a second over dense matmuls, by sparsity.

    In the two panels of speed a point above 1 is a gain. The title says from which sparsity on
    matmuls that skip zeros (CSR) gain.
    """
    figure, axes = new_figure(3, size=(11.0, 3.4))
    bytes_, *speeds = axes
    sizes = result["sizes"]
    percent = [100 * row["sparsity"] for row in sizes]
    for index, form in enumerate(STORED):
        look = line_style("", index) | {"label": form}
        bytes_.plot(percent, [row["share"][form] for row in sizes], **look)
    measured = [row for row in result["speeds"] if "2:4" not in row["products"]]
    kinds = dict.fromkeys(
        row["products"] for row in measured if row["products"] != "dense"
    )
    gains = []
    for ax, what in zip(speeds, ("prefill", "generation"), strict=True):
        dense = {
            row["sparsity"]: row[what] for row in measured if row["products"] == "dense"
        }
        for index, kind in enumerate(kinds):
            rows = [row for row in measured if row["products"] == kind]
            look = line_style("", index) | {
                "label": "CSR (skips zeros)" if kind == "csr" else kind
            }
            ratios = {
                100 * row["sparsity"]: row[what] / dense[row["sparsity"]]
                for row in rows
            }
            ax.plot(list(ratios), list(ratios.values()), **look)
            if kind == "csr":
                gain = next((at for at, ratio in ratios.items() if ratio > 1), None)
                gains.append(f"from {gain:.0f} % zeros on" if gain else "never")
    titles = ("bytes of the file\n(dense float16 = 1)",
              "tokens a second, reading the prompt (prefill)\n(dense float32 = 1)",
              "tokens a second, writing new text (generation)\n(dense float32 = 1)")  # fmt: skip
    for ax, title in zip(axes, titles, strict=True):
        ax.axhline(1, color=DENSE_COLOUR, linestyle="--", linewidth=1, label="Dense")
        set_up_axes(ax, title, xlabel="zeros in linear layers (%)", ylim=(0, None))
        label_line_ends(ax)
    title = "Zeros make a file smaller; products that skip them are faster than dense ones: "
    title += f"{gains[0]} in reading, {gains[1]} in writing"
    figure.suptitle(title, fontsize=11)
    return to_png(figure)
