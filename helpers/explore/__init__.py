"""The explorers of the notebooks, which can be used by themselves too, and the progress bar.

Each explorer has a static twin for readers without a kernel, as `figure` or `still`.
`twin(explorer, figure)` puts both into one output: with a kernel the page shows the explorer, in
the book or on GitHub the figure.
"""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "calibration": ("calibration_explorer",),
        "controls": ("Explorer", "View", "Worker", "progress_bar", "twin"),
        "generate": ("TryIt", "pruned_copy", "try_it"),
        "layer": ("layer_solve_explorer",),
        "mask": ("mask_schedule_explorer",),
        "results": ("results_explorer",),
        "trade_off": ("trade_off_explorer",),
    },
)
