"""What a machine has and what a run needs: memory, disk, time, presets, Colab, the doctor."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "colab": ("describe_colab", "finish", "prepare_kernel", "use_drive"),
        "estimates": (
            "Estimate",
            "Machine",
            "checkpoint_memory",
            "downloads",
            "estimate",
            "gigabytes",
            "machine_named",
            "missing",
            "this_machine",
        ),
        "memory": ("free_memory", "memory_watch", "ram"),
        "presets": ("check_memory", "choose"),
        "threads": ("THREAD_VARIABLES", "cpus", "leave_busy_cores"),
    },
)
