"""The explorers of the notebooks, their figures, and the progress bar.

Each explorer has a static twin for pages without a kernel, as `figure` or `still`.
`twin(explorer, figure)` puts both into one output: with a kernel the page shows the explorer, in
the book or on GitHub the figure.
"""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "calibration": ("calibration_explorer",),
        "controls": ("Explorer", "View", "Worker", "progress_bar", "twin"),
        "generate": ("TryIt",),
        "layer": ("layer_solve_explorer", "mask_schedule_explorer"),
        "touch": ("touch_admm",),
    },
)
