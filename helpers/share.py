"""`save_pruned`: a folder that plain transformers loads, and that says what was done to the model.

    save_pruned(model, tokenizer, "my-model", record=record)
    AutoModelForCausalLM.from_pretrained("my-model")  # needs nothing of this package

The folder also has README.md, a model card as the Hugging Face Hub shows it, and record.json, the
record of the run that pruned the model. There is no file of masks: a weight that is zero was
pruned. There always is an index of the tensors' files, which some programs take for a list of what
to read.
"""

import json
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM

from helpers.data.assets import MODELS
from helpers.data.corpora import check_tokenizer
from helpers.errors import BadParameter, FileError, UnsupportedModel, join_names
from helpers.large import write_index
from helpers.model.block_loop import PruneReport
from helpers.model.checks import hash_of_masks
from helpers.model.models import (
    check_in_memory,
    check_model,
    layer_key,
    model_identity,
    model_layers,
    no_progress_bars,
    state_of,
)
from helpers.paths import replace_file, writing

RECORD_FIELDS = {"notebook", "parameters", "metrics", "data", "versions"}
# as Jinja2 reads it
CARD = """\
---
{{ card_data }}
---

# {{ name }}

{% if ours -%}
The 4-bit file of {{ base_model }} (GGUF, {{ "Q4_1" if model == "embedded" else "Q4_K_M" }}),
converted back to float32 and then pruned
{%- else -%}
{{ base_model or "A language model" }}, pruned
{%- endif %}: {{ facts.sparsity }} of the weights in its blocks are
zero. It is stored dense: it loads like any other model, and is neither smaller in memory nor
faster.
{%- if ours and model == "embedded-gemma" %}

Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms.
This is a modified version of it.
{%- endif %}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{{ name }}")  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained("{{ name }}")
```

| | |
|---|--:|
{% for row in ["method", "pattern", "sparsity"] if row in facts -%}
| {{ row }} | {{ facts[row] }} |
{% endfor -%}
{% if facts.keep %}| masks | {{ facts.masks }} |
| masks given, hash | {{ facts.keep }} |
{% endif -%}
{% for metric in
  ["perplexity_dense", "perplexity", "perplexity_web", "mean_layer_error", "mean_acc"]
  if record and metric in record.metrics -%}
| {{ metric.replace("_", " ") }} | {{ "%.4g" % record.metrics[metric].value }} |
{% endfor -%}
{% if record %}
Texts:

{% for use, text in (record.data or {}).items() -%}
- {{ use }}: {{ text.name }}{% if text.package %}, {{ text.package }}{% endif %}
{% endfor %}
To make it again:

    {{ command }}

Made with {% for package, version in record.versions.items() -%}
{{ package }} {{ version }}
{{- ", " if not loop.last }}{% endfor %}. All of it is in `record.json`.
{% endif %}
"""


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

    Raises BadParameter (nothing is pruned, the folder is in use, the record is not one), FileError
    (it cannot be written), and UnsupportedModel if transformers loads other weights than were
    saved.
    """
    check_model(model)
    check_in_memory(model)
    check_tokenizer(tokenizer, "save_pretrained")
    facts = {"pattern": pattern}
    report = state_of(model).report  # of what pruned this model here
    if report is not None:
        facts |= vars(report)
    if record is not None:
        if lacking := RECORD_FIELDS - record.keys():
            raise BadParameter(
                f"record lacks {join_names(lacking)}: give one that a run has written"
            )
        record = without_paths(record)
        facts |= record["parameters"]
    if report is not None and report.keep:
        facts |= on_given_masks(report, model)
    weights = [layer.weight for layer in model_layers(model).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    if zeros == 0:
        raise BadParameter("no weight of this model is zero: prune it first")
    facts["sparsity"] = f"{100 * zeros / sum(map(torch.numel, weights)):.1f} %"
    folder = check_new_folder(folder)
    card = model_card(folder.name, model_identity(model), facts, record)
    # the latter from saving a model on a full disk
    with writing(folder, SafetensorError):
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
                text = json.dumps(record, indent=1, ensure_ascii=False)
                replace_file(unfinished / "record.json", text)
            check_same(model, unfinished)
            unfinished.replace(folder)
    return folder


def without_paths(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose parameters name folders and files of this machine without their paths."""
    parameters = dict(record["parameters"])
    for name, value in parameters.items():
        # where a name of the hub is a folder too, the folder was loaded
        if isinstance(value, str) and "/" in value:
            path = Path(value).expanduser()
            parameters[name] = path.name if path.exists() else value
    return {**record, "parameters": parameters}


def on_given_masks(report: PruneReport, model: nn.Module) -> dict[str, str]:
    """What a method did on masks that were given: its name there, and what became of them."""
    chosen = {layer_key(row.block, row.name): row.mask for row in report.layers}
    pruned = {key: chosen[key] for key in model_layers(model, report.ignored)}
    if hash_of_masks(pruned) != report.keep:
        return {"masks": "within those given, with more zeros"}
    # on one mask ADMM1 and ADMM-Grad are ADMM: they differ in how they choose it
    name = "admm" if report.method in ("admm1", "admm-grad") else report.method
    return {"method": name, "masks": "as given"}


def check_new_folder(folder: str | Path) -> Path:
    """The absolute path of a folder that is new or empty. Raises BadParameter if it is neither."""
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadParameter(
            f"{folder} is in use already: give a new folder, or empty this one"
        )
    return folder


def check_room(folder: str | Path, needed: int) -> None:
    """Raise FileError unless so many bytes can be written to a folder; nothing stays there.

    Before a long run, since what cannot be saved is lost. What the folder holds counts as written.
    """
    folder = Path(folder).expanduser().resolve()
    above = next(each for each in (folder, *folder.parents) if each.exists())
    with writing(folder):
        # a name in the parent is new, whatever its rights say
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=above):
            free = shutil.disk_usage(above).free
        # no hidden ones, which another process may be about to take away
        free += sum(path.stat().st_size for path in folder.glob("[!.]*"))
    if free < needed:
        raise FileError(
            f"{folder} has {free / 1e9:.2f} GB free and the model takes {needed / 1e9:.2f} GB: "
            "free some space there, or choose another folder"
        )


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


def model_card(
    name: str,
    identity: Mapping[str, Any],
    facts: Mapping[str, Any],
    record: Mapping[str, Any] | None,
) -> str:
    """The card of a pruned model: what the hub reads in front, what people read below.

    A model that comes neither from the hub nor with this package gets no base model. facts: its
    method, if that is known, pattern and sparsity.
    """
    dense = identity["name"]
    base = licence = None
    # a folder may have the name of a pinned model
    ours = dense in MODELS and identity.get("sha256") == MODELS[dense].sha256
    if ours:
        base, licence = MODELS[dense].hub
    elif identity["revision"]:
        base = dense
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=licence,
        base_model=base,
        tags=["pruned", *([facts["method"]] if "method" in facts else [])],
    )
    command = []
    if record is not None:
        notebook = f"notebooks/{record['notebook']}.ipynb"
        given = json.dumps(record["parameters"])
        command = ["papermill", notebook, "again.ipynb", "-y", given]
    card = ModelCard.from_template(
        data,
        template_str=CARD,
        name=name,
        model=dense,
        ours=ours,
        record=record,
        facts=facts,
        command=shlex.join(command),  # a parameter may hold what a shell would run
    )
    return str(card)
