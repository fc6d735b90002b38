"""Plans of notebook runs, and the processes that run them."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "commands": ("accept", "list_runs", "reproduce", "tables"),
        "fingerprint": ("is_done",),
        "notebook": ("NotebookRun", "open_run"),
        "parameters": ("read_parameters_cell",),
        "plan": ("Run", "plan_names", "read_plan"),
        "schedule": ("run_plan",),
    },
)
