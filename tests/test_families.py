"""The table of families in results/families.md, computed from the tiny models.

Write it again with `python tests/test_families.py > results/families.md`.
"""

from __future__ import annotations

import functools
from dataclasses import astuple, dataclass, fields

import families as fam
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from helpers import prune_model
from helpers.capture import capture, check_parity
from helpers.errors import UnsupportedModel
from helpers.models import find_blocks, find_layers, read_weight
from helpers.paths import root

TABLE = root() / "results" / "families.md"
AGAIN = "python tests/test_families.py > results/families.md"
OUTPUTS = {"o_proj", "out_proj", "dense", "c_proj"}  # of attention, in all families here
HEAD = f"""# Families

Computed by tests from a tiny random model of each family, so the columns describe those models;
`{AGAIN}` writes this page again.

## Pruned: {len(fam.FAMILIES)}

To 2:4 by Wanda. *Replay* compares the model's own logits with those of its blocks run one by one.
*Result* counts the layers that changed against a list written by hand, and whatever else changed.
"""
REFUSED_HEAD = f"""
## Refused: {len(fam.REFUSED)}

Some of their weights belong to no linear layer and would stay dense. The model is left as it was.
"""


@dataclass(frozen=True)
class Row:
    """One family: what kind of model it is, and what became of it."""

    family: str
    model: str
    attention: str
    head: str
    layer: str
    fused: str
    layers_in_a_block: str
    replay: str
    result: str


@dataclass(frozen=True)
class RefusedRow:
    """One family, and the matrix for which it is refused."""

    family: str
    model: str
    reason: str


def input_projections(layers: dict[str, nn.Module]) -> list[nn.Module]:
    """The layers that make queries, keys and values."""
    return [
        layer
        for name, layer in layers.items()
        if "att" in name.split(".")[0] and name.split(".")[-1] not in OUTPUTS
    ]


def key_heads(model: nn.Module, layers: dict[str, nn.Module]) -> int:
    """Heads of the keys, from the shapes: rows of q, k and v = width of a head · (heads + 2·kv)."""
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rows = sum(read_weight(layer).shape[0] for layer in input_projections(layers))
    return (rows // width - config.num_attention_heads) // 2


def attention(model: nn.Module, layers: dict[str, nn.Module]) -> str:
    """How many heads share a key."""
    heads, keys = model.config.num_attention_heads, key_heads(model, layers)
    return {heads: "multi-head", 1: "multi-query"}.get(keys, f"grouped ({heads} on {keys})")


def fused(layers: dict[str, nn.Module]) -> str:
    """Which projections are one matrix, from their number and shapes."""
    mlp = [read_weight(m) for name, m in layers.items() if "att" not in name.split(".")[0]]
    found = ["q, k and v"] if len(input_projections(layers)) == 1 else []
    if len(mlp) == 2 and mlp[0].shape[0] == 2 * mlp[1].shape[1]:
        found.append("gate and up")
    return "; ".join(found) or "–"


def replay(model: nn.Module) -> str:
    """The largest difference of logits, without float noise."""
    tokens = fam.random_tokens(2)
    difference = check_parity(model, capture(model, tokens).calls, tokens.flip(1))
    if difference == 0:
        return "exact"
    return "< 1e-5" if difference < 1e-5 else f"{difference:.0e}"


def pruned(model: nn.Module, name: str) -> str:
    """Prune to 2:4 and say what changed."""
    wanted = {f"{layer}.weight" for layer in fam.pruned_names(name)}
    before = fam.snapshot(model)
    prune_model(model, fam.random_tokens(), method="wanda", pattern="2:4")
    changed = fam.changed(model, before)
    others = changed - wanted
    text = f"pruned {len(changed & wanted)} of {len(wanted)}"
    return f"{text} and {len(others)} others" if others else text


@functools.cache
def row(name: str) -> Row:
    """The row of a family that is pruned."""
    model = fam.build(name)
    layers = find_layers(find_blocks(model)[0])
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return Row(
        name,
        type(model).__name__,
        attention(model, layers),
        "tied" if tied else "untied",
        "Conv1D" if isinstance(next(iter(layers.values())), Conv1D) else "Linear",
        fused(layers),
        str(len(layers)),
        replay(model),
        pruned(model, name),
    )


def refused_row(name: str) -> RefusedRow:
    """The row of a family that is refused, with the parameter that would have stayed dense."""
    model = fam.build_from(fam.REFUSED[name].config())
    before = fam.snapshot(model)
    with pytest.raises(UnsupportedModel) as caught:
        prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.5)
    assert not fam.changed(model, before)
    return RefusedRow(name, type(model).__name__, str(caught.value).partition(":")[0])


def markdown(rows: list[Row] | list[RefusedRow]) -> list[str]:
    """The rows under the names of their fields."""
    names = [field.name.replace("_", " ") for field in fields(rows[0])]
    lines = [names, [":--"] * len(names), *map(astuple, rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def table() -> str:
    """results/families.md: the families that are pruned, then those that are refused."""
    pruned_rows = markdown([row(name) for name in sorted(fam.FAMILIES)])
    refused_rows = markdown([refused_row(name) for name in sorted(fam.REFUSED)])
    return "\n".join([HEAD, *pruned_rows, REFUSED_HEAD, *refused_rows]) + "\n"


# ---------------------------------------------------------------- tests


def test_the_committed_table_is_what_the_models_give() -> None:
    assert table() == TABLE.read_text(encoding="utf-8"), f"families.md is stale: {AGAIN}"


@pytest.mark.parametrize("name", sorted(fam.FAMILIES))
def test_every_row_is_faithful(name: str) -> None:
    count = len(fam.pruned_names(name))
    assert row(name).result == f"pruned {count} of {count}"
    assert row(name).replay == "exact"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", ("grouped (4 on 2)", "untied", "Linear", "–", "7")),
        ("llama-tied", ("grouped (4 on 2)", "tied", "Linear", "–", "7")),
        ("gpt2", ("multi-head", "tied", "Conv1D", "q, k and v", "4")),
        ("falcon", ("multi-query", "tied", "Linear", "q, k and v", "4")),
        ("gpt-bigcode", ("multi-query", "tied", "Linear", "q, k and v", "4")),
        ("gemma", ("multi-query", "tied", "Linear", "–", "7")),
        ("phi3", ("grouped (4 on 2)", "untied", "Linear", "q, k and v; gate and up", "4")),
        ("glm4", ("grouped (4 on 2)", "untied", "Linear", "gate and up", "6")),
        ("gpt-j", ("multi-head", "untied", "Linear", "–", "6")),
    ],
)
def test_what_is_known_of_a_family_by_hand(name: str, expected: tuple[str, ...]) -> None:
    assert astuple(row(name))[2:7] == expected


@pytest.mark.parametrize("name", sorted(fam.FAMILIES))
def test_key_heads_by_shape_are_those_of_the_config(name: str) -> None:
    model = fam.build(name)
    config, layers = model.config, find_layers(find_blocks(model)[0])
    one = getattr(config, "multi_query", False)
    wanted = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    assert key_heads(model, layers) == (1 if one else wanted)


@pytest.mark.parametrize("name", sorted(fam.REFUSED))
def test_a_refusal_names_the_matrix_that_would_stay_dense_and_says_what_to_do(
    name: str, one_line_error
) -> None:
    model, case = fam.build_from(fam.REFUSED[name].config()), fam.REFUSED[name]
    with one_line_error(UnsupportedModel, case.parameter + " ", "choose a model"):
        prune_model(model, method="magnitude", sparsity=0.5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table(), end="")
