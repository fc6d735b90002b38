"""What a machine has and what a run needs: memory, presets, Colab, the doctor."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "colab": ("prepare_kernel",),
        "doctor": ("examine",),
        "memory": ("ram",),
        "nvidia": ("has_nvidia_driver",),
        "presets": ("check_memory", "choose"),
        "threads": ("THREAD_VARIABLES", "cpus"),
    },
)
