"""Plans and the processes that run them."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "notebook": ("NotebookRun", "open_run"),
        "plan": (
            "Run",
            "TABLES_NOTEBOOK",
            "is_done",
            "read_parameters_cell",
            "record_id",
        ),
        "run": ("main",),
    },
)
