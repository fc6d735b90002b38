"""The explorers of the notebooks, to be used by themselves too; each has a static twin."""

from __future__ import annotations

from helpers.explore_calibration import calibration_explorer
from helpers.explore_layer import layer_solve_explorer
from helpers.explore_mask import mask_schedule_explorer
from helpers.explore_models import TryIt, pruned_copy, try_it
from helpers.explore_results import ResultsExplorer, results_explorer
from helpers.explorer import Explorer, Task, progress_bar

__all__ = [
    "Explorer",
    "ResultsExplorer",
    "Task",
    "TryIt",
    "calibration_explorer",
    "layer_solve_explorer",
    "mask_schedule_explorer",
    "progress_bar",
    "pruned_copy",
    "results_explorer",
    "try_it",
]
