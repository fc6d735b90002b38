"""The explorers of the notebooks, to be used by themselves too; each has a static twin."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "calibration": ("calibration_explorer",),
        "controls": ("Explorer", "View", "Worker", "progress_bar"),
        "generate": ("TryIt", "pruned_copy", "try_it"),
        "layer": ("layer_solve_explorer",),
        "mask": ("mask_schedule_explorer",),
        "results": ("results_explorer",),
    },
)
