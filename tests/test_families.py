"""Every family is pruned faithfully or refused; results/families.md is computed from the models.

Write the page again with `python tests/test_families.py > results/families.md`.
"""

import functools

import families as fam
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from helpers import prune_model
from helpers.errors import UnsupportedModel
from helpers.model.blocks import check_parity, record_calls
from helpers.model.models import find_blocks, find_layers
from helpers.paths import root

AGAIN = "python tests/test_families.py > results/families.md"
COLUMNS = ("family", "model", "layer", "layers in a block", "replay", "result")


@functools.cache
def row(name):
    """A line of the page: what kind of model the family is, and what became of it."""
    model = fam.build(name)
    layers = find_layers(find_blocks(model)[0])
    tokens = fam.random_tokens(2)
    difference = check_parity(model, record_calls(model, tokens), tokens.flip(1))
    wanted = {f"{layer}.weight" for layer in fam.pruned_names(name)}
    before = fam.snapshot(model)
    prune_model(model, fam.random_tokens(), method="wanda", pattern="2:4")
    changed = fam.changed(model, before)
    others = f" and {len(changed - wanted)} others" if changed - wanted else ""
    return (
        name,
        type(model).__name__,
        "Conv1D" if isinstance(next(iter(layers.values())), Conv1D) else "Linear",
        str(len(layers)),
        "exact" if difference == 0 else f"{difference:.0e}",
        f"pruned {len(changed & wanted)} of {len(wanted)}{others}",
    )


@functools.cache
def refusal(name):
    """Name and error of a model that is refused; its weights are as before."""
    model = fam.build(name)
    before = fam.snapshot(model)
    with pytest.raises(UnsupportedModel) as caught:
        prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.5)
    assert not fam.changed(model, before)
    return type(model).__name__, str(caught.value)


def markdown(*rows):
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + " :-- |" * len(rows[0]), *rest])


def page():
    """results/families.md: the families that are pruned, then those that are refused."""
    pruned = [row(name) for name in sorted(fam.FAMILIES)]
    refused = []
    for name in sorted(fam.REFUSED):
        kind, error = refusal(name)
        refused.append((name, kind, error.partition(":")[0]))
    return f"""# Families

Tests compute this page from a tiny random model of each family; the columns describe those models.
`{AGAIN}` writes it again.

## Pruned: {len({family.kind for family in fam.FAMILIES.values()})} families

Each model was pruned to 2:4 by Wanda; LLaMA appears twice, with and without its own output head.
*Replay* compares the model's own logits with those of its blocks run one by one. *Result* counts
the layers that changed, out of a list written by hand, and names anything else that changed.

{markdown(COLUMNS, *pruned)}

## Refused: {len(refused)} families

Some of their weights belong to no linear layer and would stay dense. The model is left unchanged.

{markdown(("family", "model", "reason"), *refused)}
"""


def test_the_committed_page_is_what_the_models_give():
    committed = (root() / "results" / "families.md").read_text("utf-8")
    assert page() == committed, f"families.md is stale: {AGAIN}"


@pytest.mark.parametrize("name", sorted(fam.FAMILIES))
def test_every_family_is_pruned_faithfully(name):
    count = len(fam.pruned_names(name))
    assert row(name)[-2:] == ("exact", f"pruned {count} of {count}")


@pytest.mark.parametrize("name", sorted(fam.REFUSED))
def test_a_refusal_names_the_matrix_that_would_stay_dense(name):
    assert fam.REFUSED[name].parameter + " " in refusal(name)[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(page(), end="")
