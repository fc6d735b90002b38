"""What notebooks 02, 03, 07, 08 and 09 measure with; no other record depends on it."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "mask_rules": ("mask_study",),
        "method_checks": ("check_method",),
        "pipelines": ("draw_windows", "pipeline_metrics"),
        "sizes": ("rounded_to_int8", "storage_report"),
        "updates": ("update_study",),
    },
)
