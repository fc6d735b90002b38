"""Save a pruned model as a folder that others can load, and compare storage formats."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "folder": ("check_new_folder", "save_pruned"),
        "sizes": ("rounded_to_int8", "storage_report"),
    },
)
