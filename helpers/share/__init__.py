"""A pruned model to keep and to share: as a folder, as one GGUF file, and what it takes."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "folder": ("check_new_folder", "model_card", "save_pruned"),
        "gguf_file": ("check_gguf", "load_gguf", "save_gguf"),
        "upload": ("push",),
        "sizes": ("rounded_to_int8", "storage_report"),
        "speed": ("possible_products", "tokens_per_second", "with_products"),
    },
)
