"""What a machine has and needs: memory, hours, Colab, the doctor."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "colab": (
            "finish",
            "prepare",
        ),
        "doctor": ("running_plans",),
        "footprint": ("checkpoint_memory",),
        "memory": (
            "memory_watch",
            "ram",
            "room",
        ),
        "presets": (
            "check_room",
            "choose",
        ),
    },
)
