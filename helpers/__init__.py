"""Prune a language model layer by layer and refit the surviving weights.

The public names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "admm": ("admm_grad", "exact_least_squares", "refit"),
    "capture": ("layer_gram",),
    "checkpoint": ("prune_checkpoint",),
    "corpora": ("calibration_tokens", "corpus_identity", "evaluation_tokens"),
    "errors": ("HelpersError",),
    "evaluate": ("perplexity", "zero_shot"),
    "footprint": ("checkpoint_memory",),
    "gram": ("gram_of", "relative_error"),
    "hub": ("fetch_checkpoint",),
    "masks": ("cubic_schedule", "select", "top_k", "top_nm"),
    "methods": ("METHODS", "LayerResult", "register"),
    "models": ("load_model", "model_identity"),
    "packed": (
        "apply_masks",
        "check_masks",
        "load_masks",
        "masks_of",
        "pack_mask",
        "save_masks",
        "size_report",
        "unpack_mask",
    ),
    "prune": ("prune_model",),
    "records": ("check_parameters", "make_record", "read_records", "write_record"),
    "streaming": ("load_streamed",),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'helpers' has no attribute {name!r}")
    return getattr(import_module(f"helpers.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
