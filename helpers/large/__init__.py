"""Models larger than memory: pruned file to file, resumed, by several processes."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "file_to_file": ("prune_checkpoint",),
        "shards": ("write_index",),
        "streaming": ("load_streamed",),
        "torchrun": ("torchrun_team",),
    },
)
