"""One pass of the text through each block: against a model that is run once for every layer.

And what is refused in a block, however often the text passes it.
"""

import copy

import families as fam
import pytest
import torch
from torch import nn

from helpers import prune_model
from helpers.errors import NonFinite, UnsupportedModel
from helpers.model import blocks as cap
from helpers.model.block_grams import layer_grams
from helpers.model.blocks import Call
from helpers.model.models import find_blocks
from helpers.model.waiting_batches import one_pass
from helpers.paper.gram import check_measured, gram_of

REQUEST = dict(method="wanda", sparsity=0.5, passes=1, batch=2)


@pytest.mark.parametrize("family", fam.FAMILIES)
def test_layers_are_fitted_to_the_already_pruned_stream(family):
    """By hand: a whole run of the model before each layer (one pass) or each block (two)."""
    tokens = fam.random_tokens(6)
    models = [fam.build(family) for _ in range(4)]
    order = fam.inputs_by_hook(models[0], fam.pruned_names(family), tokens)
    for passes in (1, 2):
        prune_model(models[passes - 1], tokens, **REQUEST | {"passes": passes})
    # layers in the order in which the model calls them
    fam.prune_by_hand(models[2], [[name] for name in order], tokens)
    fam.prune_by_hand(models[3], fam.blocks_of(family), tokens)
    one, two, by_layer, by_block = (fam.kept(model, family) for model in models)
    near = max((one != by_layer).sum(), (two != by_block).sum())
    # summing batch by batch moves the last bits
    assert 10 * near < (one != two).sum() > 20


class Steps(nn.Module):
    """A block whose forward pass is a function of its layers and its input."""

    def __init__(self, run):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.run = run

    def forward(self, x):
        return self.run(self.layers, x)


def halves(layers, x):
    """Two experts of two layers, of which a sequence takes the one that its sign says."""
    chosen = x[:, 0, 0] > 0
    out = x.clone()
    for rows, (first, last) in ((chosen, layers[:2]), (~chosen, layers[2:])):
        if rows.any():
            out[rows] = x[rows] + last(torch.relu(first(x[rows])))
    return out


def test_a_batch_waits_only_where_it_goes():
    # sequences in turn, so that each batch reaches one expert only
    block = Steps(halves)
    stream = torch.randn(4, 5, 8)
    stream[:, 0, 0] = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    expected = copy.deepcopy(block)
    before = stream.clone()
    order = []
    for grams in one_pass(block, stream, Call((), {}), 1, "block 0"):
        ((name, gram),) = grams.items()
        order.append(name)
        rows = before[1::2] if name in ("layers.0", "layers.1") else before[::2]
        if name in ("layers.1", "layers.3"):
            rows = torch.relu(expected.get_submodule(order[-2])(rows))
        torch.testing.assert_close(gram.matrix, gram_of(rows.detach()))
        for model in (block, expected):
            model.get_submodule(name).weight.data.mul_(0.5)
    assert order == ["layers.0", "layers.1", "layers.2", "layers.3"]
    torch.testing.assert_close(stream, expected(before).detach())


def through(passes, block, stream, call):
    """Measure a block's layers in one pass of the text, or in two."""
    if passes == 1:
        for grams in one_pass(block, stream, call, 2, "block 0"):
            for name, gram in grams.items():  # as the loop over blocks does
                check_measured(gram, "block 0", name)
    else:
        layer_grams(block, stream, call, 2, "block 0")
        cap.advance(block, stream, call, 2, "block 0")


@pytest.mark.parametrize(
    "run, words",
    [
        # experts without tokens: not called, or called with no rows
        (lambda layers, x: layers[0](x) + layers[1](x), ["layers.2", "more calibration"]),
        (lambda layers, x: layers[0](x) + layers[1](x) + layers[2](x[:0]).sum() + layers[3](x),
         ["layers.2", "more calibration"]),
        # what was recorded says that 0 and 1 share an input
        (lambda layers, x: layers[0](x) + layers[1](2 * x), ["layers.1", "layers.0"]),
        # called again, with rows that its gram lacks
        (lambda layers, x: layers[0](layers[0](x)), ["layers.", "layers.0", "passes=2"]),
    ],
    ids=["idle", "empty", "not shared", "twice"],
)  # fmt: skip
def test_a_layer_whose_inputs_are_not_known_is_named(run, words, one_line_error):
    block = Steps(run)
    stream = torch.randn(4, 5, 8)
    before = stream.clone()
    call = Call((), {}, inputs=(("layers.0", "layers.1"),))
    with one_line_error(UnsupportedModel, "block 0", *words):
        through(1, block, stream, call)
    with one_line_error(UnsupportedModel, "block 0", words[0]):
        through(2, block, stream, call)
    assert torch.equal(stream, before)
    assert fam.hook_count(block) == 0


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize(
    "place, named",
    [
        ("post_attention_layernorm", "block 0 mlp.gate_proj"),
        ("mlp.down_proj", "after block 0"),
    ],
)
def test_bad_numbers_name_the_layer_or_the_block(passes, place, named, one_line_error):
    model = fam.build()
    tokens = fam.random_tokens(2)
    stream = cap.embed(model, tokens, 2)
    call = cap.record_calls(model, tokens)[0]
    block = find_blocks(model)[0]
    block.get_submodule(place).weight.data.view(-1)[3] = float("inf")
    with one_line_error(NonFinite, named):
        through(passes, block, stream, call)
