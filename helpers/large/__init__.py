"""Models larger than memory: pruned file to file, resumed, by several processes."""

from helpers import lazy_names

MASKS = ("apply_masks", "check_masks", "load_masks", "masks_of", "pack_mask", "save_masks")

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "checkpoint": ("prune_checkpoint",),
        "hub": ("fetch_checkpoint",),
        "mask_files": (*MASKS, "size_report", "unpack_mask"),
        "shards": ("write_index", "write_shard", "writing"),
        "streaming": ("load_streamed",),
    },
)
