"""The studies that notebooks 01, 02, 03, 07 and 08 run; no other record depends on them."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "hidden_states": ("stream_norms",),
        "mask_rules": ("mask_study",),
        "method_checks": ("check_method",),
        "pipelines": ("draw_windows", "pipeline_metrics"),
        "updates": ("update_study",),
    },
)
