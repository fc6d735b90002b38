"""Prune a language model layer by layer and refit the surviving weights.

README.md beside this file says what to read first. The modules in this folder and in paper/,
model/, data/ and beyond/ decide the numbers. large/ does for models that are pruned file to file,
own/ for methods of a user's own, and explore/ for none. Public names are loaded on first use, so
that importing the package costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

# first of all: later something that Windows lacks would be missed
if sys.platform == "win32":
    raise ImportError(
        "helpers needs Linux, macOS or WSL: on Windows, install WSL and run it there"
    )


def lazy_names(package: str, homes: Mapping[str, Sequence[str]]) -> tuple:
    """`__getattr__`, `__dir__` and `__all__` of a package that loads its names on first use.

    homes: module of the package (or below it) → the names it gives to the package.
    """
    home_of = {name: module for module, names in homes.items() for name in names}
    names = sorted(home_of)

    def load(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home_of[name]}"), name)

    return load, lambda: names, names


__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "paper.admm": ("exact_least_squares", "refit"),
        "beyond.allocation": ("guide", "owl"),
        "beyond.distil": ("distil",),
        "beyond.recipe": ("prune_and_repair", "windows_of"),
        "beyond.training": ("keep_masks",),
        "data.corpora": ("calibration_tokens", "corpus_identity", "evaluation_tokens"),
        "errors": ("HelpersError",),
        "paper.gram": ("gram_of", "relative_error"),
        "large": ("load_streamed", "prune_checkpoint"),
        "paper.layer": ("LayerResult",),
        "paper.masks": ("cubic_schedule", "select", "top_k"),
        "paper.methods": ("METHODS", "register"),
        "model.perplexity": ("perplexity", "window_losses"),
        "model.zero_shot": ("zero_shot",),
        "model.models": ("load_model", "masks_of", "model_identity"),
        "model.prune": ("prune_model",),
        "pruning": ("prune_loaded", "prune_on_disk"),
        "model.block_grams": ("layer_problems",),
        "share": ("save_pruned",),
    },
)
