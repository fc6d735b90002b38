"""Notebook 03's question: how should the mask of ADMM-Grad grow?"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from helpers.paper.gram import relative_error
from helpers.paper.masks import Pattern, target_sparsity
from helpers.paper.methods import METHODS
from helpers.progress import Progress, as_progress

MASK_DEFAULT = {"mask_steps": 15, "schedule": "paper", "budget": "matrix"}


def mask_study(
    weight: Tensor,
    gram: Tensor,
    heldout: Tensor,
    *,
    sparsities: Sequence[float] = (0.5, 0.6, 0.7, 0.8),
    patterns: Sequence[str] = ("unstructured", "2:4", "4:8"),
    iterations: int = 20,
    progress: Progress | bool = True,
) -> list[dict[str, Any]]:
    """ADMM-Grad on one layer with one of its mask rules changed at a time.

    The default is the paper's: 15 mask steps, the cubic schedule, a budget per matrix. Changed
    are the mask steps (0, 5, 10; 0 is ADMM1) and, for unstructured pruning, the schedule
    ("released") and the budget ("output"); the released code's schedule for N:M is the paper's.
    `sparsities` are those of unstructured pruning, N:M implies its own. progress is called after
    each solve.

    Returns rows with "error" and "heldout", ‖XW − XŴ‖²/‖XW‖² on the calibration gram and on the
    gram of other text. Shapes as in `update_study`; raises what "admm-grad" raises, such as
    BadParameter for fewer than 15 iterations.
    """
    progress = as_progress(progress)
    cases = []
    for pattern in patterns:
        grouped = Pattern.parse(pattern).grouped
        changes = [{"mask_steps": steps} for steps in (0, 5, 10, 15)]
        if not grouped:
            changes += [{"schedule": "released"}, {"budget": "output"}]
        for sparsity in [target_sparsity(None, pattern)] if grouped else sparsities:
            for change in changes:
                cases.append((pattern, float(sparsity), MASK_DEFAULT | change))
    rows = []
    for pattern, sparsity, rules in cases:
        solved = METHODS["admm-grad"](
            weight,
            gram,
            sparsity=sparsity,
            pattern=pattern,
            iterations=iterations,
            **rules,
        )
        # on text that neither mask nor weights have seen: a budget or schedule may fit the
        # calibration text better and other text worse
        rows.append(
            {
                "pattern": pattern,
                "sparsity": sparsity,
                **rules,
                "iterations": iterations,
                "error": solved.error,
                "heldout": relative_error(weight, solved.weight, heldout),
            }
        )
        progress(len(rows), len(cases), f"{pattern} at {sparsity:.0%}")
    return rows
