"""What a machine has and what a notebook needs: presets, threads, Colab, the doctor."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "colab": ("prepare_kernel",),
        "doctor": ("examine",),
        "nvidia": ("has_nvidia_driver",),
        "presets": ("check_memory", "choose"),
        "threads": ("THREAD_VARIABLES", "cpus"),
    },
)
