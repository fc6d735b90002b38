"""`save_pruned`: a folder that plain transformers loads, and that says what was done to the model.

    save_pruned(model, tokenizer, "my-model", record=record)
    AutoModelForCausalLM.from_pretrained("my-model")  # needs nothing of this package

The folder also has the record of the run that pruned the model and README.md, a model card as the
Hugging Face Hub shows it. There is no file of masks: a weight that is zero was pruned.
There always is an index of the tensors' files, which some programs take for a list of what to read.
"""

import json
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
from helpers.models import (
    check_in_memory,
    check_model,
    model_identity,
    model_layers,
    no_progress_bars,
)
from helpers.paths import replace_file
from helpers.report import check_record, write_record


def save_pruned(
    model: nn.Module,
    tokenizer: Any,
    folder: str | Path,
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
    check_in_memory(model)
    facts = {"pattern": pattern}
    report = state_of(model).report  # of what pruned this model here
    if report is not None:
        facts |= vars(report)
    if record is not None:
        facts |= check_record(dict(record))["parameters"]
    weights = [layer.weight for layer in model_layers(model).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    if zeros == 0:
        raise BadParameter("no weight of this model is zero: prune it first")
    facts["sparsity"] = f"{100 * zeros / sum(map(torch.numel, weights)):.1f} %"
    folder = check_new_folder(folder)
    card = _card(folder.name, model_identity(model), record, facts)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # in the same parent, because a rename works within one file system only
        with tempfile.TemporaryDirectory(
            prefix=".saving-", dir=folder.parent
        ) as parent:
            unfinished = Path(parent, folder.name)
            with no_progress_bars():
                model.save_pretrained(unfinished)
            write_index(unfinished)
            tokenizer.save_pretrained(unfinished)
            replace_file(unfinished / "README.md", card)
            if record is not None:
                write_record(unfinished / "record.json", record)
            check_same(model, unfinished)
            unfinished.replace(folder)
    return folder


def check_new_folder(folder: str | Path) -> Path:
    """The absolute path of a folder that is new or empty. Raises BadParameter if it is neither."""
    folder = Path(folder).expanduser().resolve()
    if folder.is_file() or any(folder.glob("*")):
        raise BadParameter(
            f"{folder} is in use already: give a new folder, or empty this one"
        )
    return folder


def check_same(model: nn.Module, folder: Path) -> None:
    """Load a saved model with transformers; raise UnsupportedModel unless every bit is there."""
    with no_progress_bars():
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    tensors = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in tensors or not torch.equal(tensors[name], tensor.cpu()):
            raise UnsupportedModel(
                f"transformers does not load {name} as it was saved, so others would get another "
                "model: choose another version of transformers, or another model"
            )


def _card(
    name: str,
    identity: Mapping[str, Any],
    record: Mapping[str, Any] | None,
    facts: Mapping[str, str],
) -> str:
    """The card of a pruned model: what the hub reads in front, what people read below.

    A model that comes neither from the hub nor with this package gets no base model. facts: its
    method, if that is known, pattern and sparsity.
    """
    dense = identity["name"]
    base = licence = None
    if dense in MODELS:
        base, licence = MODELS[dense].hub
    elif identity["revision"]:
        base = dense
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=licence,
        base_model=base,
        tags=["pruned"],
    )
    if "method" in facts:
        data.tags.append(facts["method"])
    command = []
    if record is not None:
        notebook = f"notebooks/{record['notebook']}.ipynb"
        command = ["papermill", notebook, "again.ipynb", "-y"]
        command.append(json.dumps(record["parameters"]))
    card = ModelCard.from_template(
        data,
        template_path=Path(__file__).with_name("card.md"),
        name=name,
        model=dense,
        record=record,
        facts=facts,
        command=shlex.join(command),  # a parameter may hold what a shell would run
    )
    return str(card)
