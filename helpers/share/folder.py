"""`save_pruned`: a folder that plain transformers loads, and that says what was done to the model.

    save_pruned(model, tokenizer, "my-model", record=record)
    AutoModelForCausalLM.from_pretrained("my-model")  # needs nothing of this package

Beside the model and its tokenizer lie the masks (`load_masks`), the record of the run that pruned
it, and README.md, a model card as the Hugging Face Hub shows it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from torch import nn
from transformers import AutoModelForCausalLM

from helpers.errors import BadParameter, UnsupportedModel
from helpers.large import check_masks, masks_of, save_masks, writing
from helpers.models import check_model, model_identity, no_progress_bars
from helpers.paths import replace_file
from helpers.report import check_record, write_record

RECORD = "record.json"
# the dense model's name on the hub, and its licence there
ON_THE_HUB = {"embedded": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
# of a record's metrics, those that a reader of the card asks for
SHOWN = {
    "perplexity_dense": "perplexity of the dense model",
    "perplexity": "perplexity",
    "perplexity_web": "perplexity on web text",
    "mean_layer_error": "mean relative error of a layer",
    "mean_acc": "mean accuracy on the tasks",
}


def save_pruned(
    model: nn.Module,
    tokenizer: Any,
    folder: str | os.PathLike[str],
    *,
    record: Mapping[str, Any] | None = None,
    pattern: str = "unstructured",
    base: str | None = None,
    license: str | None = None,
) -> Path:
    """Write a pruned model, whole or not at all, once a copy loaded back is the same.

    Args: folder, a new or an empty one; record, of the run that pruned the model, from which the
    card has its numbers and the pattern; pattern, without a record, "N:M" if the model was pruned
    so; base and license, the dense model's name on the hub and what the hub calls its licence,
    such as "apache-2.0" (known for the embedded model).

    Raises BadParameter (nothing is pruned, the folder is in use), UnsupportedModel if transformers
    loads other weights than were saved, FileError, BadParameter, FileError (cannot be written).
    """
    check_model(model)
    if record is not None:
        pattern = check_record(dict(record))["parameters"].get("pattern", pattern)
    masks = masks_of(model)
    kept = sum(int(mask.sum()) for mask in masks.values())
    sparsity = 1 - kept / sum(mask.numel() for mask in masks.values())
    if sparsity == 0:
        raise BadParameter("no weight of this model is zero: prune it first")
    folder = check_new_folder(folder)
    known = ON_THE_HUB.get(model_identity(model)["name"], (None, None))
    card = model_card(
        folder.name, record, sparsity=sparsity, pattern=pattern, base=base or known[0],
        license=license or known[1],
    )  # fmt: skip
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # beside it, because a rename works within one file system only
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder.parent) as scratch:
            made = Path(scratch, folder.name)
            with no_progress_bars():
                model.save_pretrained(made)
            tokenizer.save_pretrained(made)
            save_masks(made, masks, pattern=pattern)
            replace_file(made / "README.md", card)
            if record is not None:
                write_record(made / RECORD, record)
            check_same(model, made)
            os.replace(made, folder)
    return folder


def check_new_folder(folder: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder that is new or empty. Raises BadParameter if it is neither."""
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BadParameter(f"{folder} is in use already: give a new folder, or empty this one")
    return folder


def check_same(model: nn.Module, folder: Path) -> None:
    """Load a saved model as anybody would, and raise unless every bit and every zero is there.

    Raises UnsupportedModel, BadParameter, FileError.
    """
    check_masks(folder)
    dtype = next(model.parameters()).dtype
    with no_progress_bars():
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict()
    for name, tensor in model.state_dict().items():
        if name not in again or not torch.equal(again[name], tensor.cpu()):
            raise UnsupportedModel(
                f"transformers does not load {name} as it was saved, so others would get another "
                "model: choose another version of transformers, or another model"
            )


def model_card(
    name: str,
    record: Mapping[str, Any] | None,
    *,
    sparsity: float,
    pattern: str = "unstructured",
    base: str | None = None,
    license: str | None = None,
) -> str:
    """The card of a pruned model: what the hub reads in front, what people read below.

    Args: record, of the run that pruned it, if there is one; sparsity, as it is in the weights; the
    others as `save_pruned` has them.
    """
    asked = record["parameters"] if record else {}
    front = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=license,
        base_model=base,
        tags=["pruned", *([asked["method"]] if "method" in asked else [])],
    )
    groups = "" if pattern == "unstructured" else f" ({pattern} along the input of each layer)"
    text = f"""---
{front.to_yaml()}
---

# {name}

{base or "A language model"}, with {100 * sparsity:.1f} % of the weights in its blocks set to
zero{groups}. It is stored dense: it loads like any other model, and is neither smaller in memory
nor faster. `masks.safetensors` says which weights were kept.
"""
    return text + (_measured(record) if record else "")


def _measured(record: Mapping[str, Any]) -> str:
    """What a record says of a model: numbers, data, and how to make it again."""
    metrics, notebook = record["metrics"], record["notebook"]
    rows = [(words, metrics[name]["value"]) for name, words in SHOWN.items() if name in metrics]
    numbers = "\n".join(f"| {words} | {value:.4g} |" for words, value in rows)
    texts = "\n".join(
        f"- {use}: {text['name']}, {text.get('package', '')}".rstrip(", ")
        for use, text in (record["data"] or {}).items()
    )
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    return f"""
| measured | value |
|---|--:|
{numbers}

Texts:

{texts}

To make it again:

    papermill notebooks/{notebook}.ipynb again.ipynb -y '{json.dumps(record["parameters"])}'

Made with {versions}. All of it is in `{RECORD}`.
"""
