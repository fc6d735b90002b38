"""`save_pruned`: a folder that plain transformers loads, and that says what was done to the model.

    save_pruned(model, tokenizer, "my-model", record=record)
    AutoModelForCausalLM.from_pretrained("my-model")  # needs nothing of this package

Beside the model and its tokenizer lie the record of the run that pruned it and README.md, a model
card as the Hugging Face Hub shows it. There is no file of masks: a weight that is zero was pruned.
There always is an index of the tensors' files, which some programs take for a list of what to read.
"""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from torch import nn
from transformers import AutoModelForCausalLM

from helpers.data.assets import MODELS
from helpers.errors import BadParameter, UnsupportedModel
from helpers.large import write_index, writing
from helpers.model_state import state_of
from helpers.models import check_model, model_identity, model_layers, no_progress_bars
from helpers.paths import replace_file
from helpers.report import check_record, write_record

RECORD = "record.json"
# of a record's metrics, those that the card shows
SHOWN = (
    "perplexity_dense",
    "perplexity",
    "perplexity_web",
    "mean_layer_error",
    "mean_acc",
)


def save_pruned(
    model: nn.Module,
    tokenizer: Any,
    folder: str | os.PathLike[str],
    *,
    record: Mapping[str, Any] | None = None,
    pattern: str = "unstructured",
) -> Path:
    """Write a pruned model, whole or not at all, once a copy loaded back is the same.

    Args:
        folder: a new or an empty one.
        record: of the run that pruned the model; the card has its method, pattern and numbers.
        pattern: "N:M" of a model that was pruned so elsewhere. Without a record the card says
            otherwise what `prune_model` has done to this model.

    Raises BadParameter (nothing is pruned, the folder is in use), FileError (it cannot be written,
    the record is not one), and UnsupportedModel if transformers loads other weights than were
    saved.
    """
    check_model(model)
    # what pruned this model here, by the names of a record's parameters
    report = state_of(model).report
    asked = {"pattern": pattern} | (vars(report) if report else {})
    if record is not None:
        asked |= check_record(dict(record))["parameters"]
    weights = [layer.weight for layer in model_layers(model).values()]
    sparsity = sum(int((w == 0).sum()) for w in weights) / sum(
        w.numel() for w in weights
    )
    if sparsity == 0:
        raise BadParameter("no weight of this model is zero: prune it first")
    folder = check_new_folder(folder)
    rows = {name: asked[name] for name in ("method", "pattern") if name in asked}
    rows["sparsity"] = f"{100 * sparsity:.1f} %"
    card = _card(folder.name, model_identity(model), record, rows)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # beside it, because a rename works within one file system only
        with tempfile.TemporaryDirectory(
            prefix=".saving-", dir=folder.parent
        ) as scratch:
            made = Path(scratch, folder.name)
            with no_progress_bars():
                model.save_pretrained(made)
            write_index(made)
            tokenizer.save_pretrained(made)
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
        raise BadParameter(
            f"{folder} is in use already: give a new folder, or empty this one"
        )
    return folder


def check_same(model: nn.Module, folder: Path) -> None:
    """Load a saved model as anybody would; raise UnsupportedModel unless every bit is there."""
    dtype = next(model.parameters()).dtype
    with no_progress_bars():
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict()
    for name, tensor in model.state_dict().items():
        if name not in again or not torch.equal(again[name], tensor.cpu()):
            raise UnsupportedModel(
                f"transformers does not load {name} as it was saved, so others would get another "
                "model: choose another version of transformers, or another model"
            )


def _card(
    name: str,
    identity: Mapping[str, Any],
    record: Mapping[str, Any] | None,
    rows: Mapping[str, str],
) -> str:
    """The card of a pruned model: what the hub reads in front, what people read below.

    Of a model that comes neither from the hub nor with this package it names no base. rows: of its
    table, before the numbers of the record.
    """
    dense, revision = identity["name"], identity["revision"]
    base, licence = (
        MODELS[dense].hub if dense in MODELS else (dense if revision else None, None)
    )
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=licence,
        base_model=base,
        tags=["pruned"],
    )
    data.tags += [rows["method"]] if "method" in rows else []
    values: dict[str, Any] = dict(
        name=name, model=identity["name"], record=record, rows=rows
    )
    if record is not None:
        parameters, metrics = record["parameters"], record["metrics"]
        values["numbers"] = {
            key: metrics[key]["value"] for key in SHOWN if key in metrics
        }
        notebook = f"notebooks/{record['notebook']}.ipynb"
        # quoted, since a parameter may hold what a shell would run
        command = ["papermill", notebook, "again.ipynb", "-y", json.dumps(parameters)]
        values["command"] = shlex.join(command)
    template = Path(__file__).parent / "card.md"
    return str(ModelCard.from_template(data, template_path=str(template), **values))
