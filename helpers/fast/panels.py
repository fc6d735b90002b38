"""A symmetric sum XᵀX in five eighths of the products.

XᵀX is its own transpose, so half of it need not be computed. In four panels of columns, each
computed down to the diagonal only, (1 + 2 + 3 + 4)/16 = 5/8 of the products remain. More panels
would save little more, and their products would be too narrow to be fast.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

PANELS = 4


def add_upper(total: Tensor, rows: Tensor) -> None:
    """Add XᵀX of rows (tokens, d_in) to the panels of `total` (d_in, d_in) down to the diagonal."""
    for panel in _panels(len(total)):
        total[: panel.stop, panel].addmm_(rows[:, : panel.stop].T, rows[:, panel])


def mirror(total: Tensor) -> None:
    """Fill what `add_upper` left out."""
    for panel in _panels(len(total)):
        total[panel, : panel.start] = total[: panel.start, panel].T


def _panels(d_in: int) -> list[slice]:
    """The columns of each panel."""
    ends = [round(d_in * panel / PANELS) for panel in range(PANELS + 1)]
    return [slice(*pair) for pair in pairwise(ends)]
