"""A symmetric sum XᵀX in five eighths of the products.

XᵀX is its own transpose, so half of it need not be computed. In four panels of columns, each
computed down to the diagonal only, (1 + 2 + 3 + 4)/16 = 5/8 of the products remain. More panels
would save little more, and their products would be too narrow to be fast.
"""

from itertools import pairwise

from torch import Tensor

# of n panels (n + 1)/(2n) of the products remain: 5/8 of 4, 9/16 of 8
PANELS = 4


def add_upper(total: Tensor, rows: Tensor) -> None:
    """Add XᵀX of rows (tokens, d_in) to the panels of `total` (d_in, d_in) down to the diagonal."""
    for panel in _panels(len(total)):
        # (stop, tokens) · (tokens, panel's columns), added in place to a view: rows 0 … stop, which
        # end with the diagonal, and this panel's columns. The blocks below it stay as they are
        to_diagonal = slice(panel.stop)
        upper = total[to_diagonal, panel]
        left = rows[:, to_diagonal].T
        right = rows[:, panel]
        upper.addmm_(left, right)


def mirror(total: Tensor) -> None:
    """Fill what `add_upper` left out."""
    for panel in _panels(len(total)):
        # the diagonal block was computed whole; left of it stands the transpose of what is above it
        before = slice(panel.start)
        above = total[before, panel]
        total[panel, before] = above.T


def _panels(d_in: int) -> list[slice]:
    """The columns of each panel."""
    # rounded ends, so that the panels cover d_in also where 4 does not divide it
    numbers = range(PANELS + 1)
    ends = [round(d_in * number / PANELS) for number in numbers]
    return [slice(start, stop) for start, stop in pairwise(ends)]
