"""One pass of the text through each block: against a model that is run anew for every layer."""

import copy
from collections.abc import Callable

import families as fam
import pytest
import torch
from greenlet import getcurrent
from torch import Tensor, nn

from helpers import METHODS, prune_model
from helpers import capture as cap
from helpers.capture import Call
from helpers.errors import NonFinite, OutOfMemory, UnsupportedModel
from helpers.gram import gram_of
from helpers.loop import Loop, Team
from helpers.models import find_blocks, find_layers
from helpers.one_pass import Batch, one_pass

REQUEST = dict(method="wanda", sparsity=0.5, passes=1, batch=2)


def in_running_order(model: nn.Module, family: str, tokens: Tensor) -> list[str]:
    """The names of a model's layers in the order in which it calls them."""
    return list(fam.inputs_by_hook(model, fam.pruned_names(family), tokens))


@pytest.mark.parametrize("family", fam.FAMILIES)
def test_each_layer_is_fitted_to_what_the_pruned_layers_before_it_give(family: str) -> None:
    model, tokens = fam.build(family), fam.random_tokens(6)
    by_hand, twice = copy.deepcopy(model), copy.deepcopy(model)
    report = prune_model(model, tokens, **REQUEST)
    for name in in_running_order(by_hand, family, tokens):
        # a whole run of the model for this layer alone, with all before it pruned
        weight = fam.matrix_of(by_hand.get_submodule(name)).detach()
        gram = gram_of(fam.inputs_by_hook(by_hand, [name], tokens)[name])
        with torch.no_grad():
            weight.copy_(METHODS["wanda"](weight.clone(), gram, sparsity=0.5).weight)
    prune_model(twice, tokens, **REQUEST | {"passes": 2})
    differ = 0
    for name in fam.pruned_names(family):
        ours, wanted, other = (m.get_submodule(name).weight != 0 for m in (model, by_hand, twice))
        # summing batch by batch moves the last bits
        assert (ours == wanted).float().mean() > 0.995, name
        differ += int((ours != other).sum())
    assert differ > 20  # two passes fit to the layers of a block as they were
    assert len(report.layers) == len(fam.pruned_names(family)) and not report.halved
    assert fam.hook_count(model) == 0


def test_the_batch_size_does_not_change_the_answer() -> None:
    masks = []
    for batch in (1, 3):
        model = fam.build("gemma3")
        prune_model(model, fam.random_tokens(6), **REQUEST | {"batch": batch})
        masks.append(torch.cat([p.flatten() != 0 for p in model.parameters()]))
    assert (masks[0] == masks[1]).float().mean() > 0.999


class Steps(nn.Module):
    """A block whose forward pass is a function of its layers and its input."""

    def __init__(self, run: Callable, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.layers, x)


def halves(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """Two experts of two layers, of which a sequence takes the one that its sign says."""
    chosen = x[:, 0, 0] > 0
    out = x.clone()
    for rows, (first, last) in ((chosen, layers[:2]), (~chosen, layers[2:])):
        if rows.any():
            out[rows] = x[rows] + last(torch.relu(first(x[rows])))
    return out


def test_a_batch_waits_only_where_it_goes() -> None:
    # sequences in turn, so that each batch reaches one expert only
    block, stream = Steps(halves), torch.randn(4, 5, 8)
    stream[:, 0, 0] = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    expected, before, order = copy.deepcopy(block), stream.clone(), []
    for grams, _ in one_pass(block, stream, Call((), {}), 1, "block 0"):
        ((name, gram),) = grams.items()
        order.append(name)
        rows = before[1::2] if name in ("layers.0", "layers.1") else before[::2]
        if name in ("layers.1", "layers.3"):
            rows = torch.relu(expected.get_submodule(order[-2])(rows))
        torch.testing.assert_close(gram.matrix, gram_of(rows.detach()))
        for model in (block, expected):
            with torch.no_grad():
                model.get_submodule(name).weight.mul_(0.5)
    assert order == ["layers.0", "layers.1", "layers.2", "layers.3"]
    torch.testing.assert_close(stream, expected(before).detach())


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda layers, x: layers[0](x) + layers[1](x), ["block 0 layers.2", "more calibration"]),
        (lambda layers, x: layers[0](x) + layers[1](x) + layers[2](x[:0]).sum() + layers[3](x),
         ["block 0 layers.2", "more calibration"]),
        # what was recorded says that 0 and 1 share an input
        (lambda layers, x: layers[0](x) + layers[1](2 * x), ["block 0 layers.1", "passes=2"]),
        # called again, with rows that its gram lacks
        (lambda layers, x: layers[0](layers[0](x)), ["block 0 layers.0", "passes=2"]),
    ],
    ids=["idle", "empty", "not shared", "twice"],
)  # fmt: skip
def test_a_block_that_cannot_be_taken_in_turn(
    run: Callable, words: list[str], one_line_error
) -> None:
    block, stream = Steps(run), torch.randn(4, 5, 8)
    before, call = stream.clone(), Call((), {}, inputs=(("layers.0", "layers.1"),))
    with one_line_error(UnsupportedModel, *words):
        list(one_pass(block, stream, call, 2, "block 0"))
    assert torch.equal(stream, before) and fam.hook_count(block) == 0


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("done", [2, 9])
def test_an_interrupt_leaves_the_model_and_gradients_as_they_were(done: int) -> None:
    model = fam.build()

    def stop(layers: int, *_: object) -> None:
        assert torch.is_grad_enabled()  # outside the block nothing has changed
        if layers == done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        prune_model(model, fam.random_tokens(), progress=stop, **REQUEST)
    assert torch.is_grad_enabled() and fam.hook_count(model) == 0
    assert caught.value is not None  # and with it all frames, which must not hold a hook


@pytest.mark.parametrize("layer", ["self_attn.q_proj", "mlp.down_proj"])
def test_two_passes_where_the_waiting_text_does_not_fit(layer: str) -> None:
    tokens, model, expected = fam.random_tokens(8), fam.build(), fam.build()
    fails = iter([False, True])

    def fail(*_: object) -> None:
        if isinstance(getcurrent(), Batch) and next(fails, False):
            raise MemoryError

    handle = find_blocks(model)[1].get_submodule(layer).register_forward_pre_hook(fail)
    report = prune_model(model, tokens, **REQUEST)
    handle.remove()
    assert len(report.halved) == 1 and "block 1: two passes" in report.halved[0]
    names = fam.pruned_names("llama")
    prune_model(expected, tokens, **REQUEST)
    for name in names[:7]:  # block 0 had been done in one
        assert torch.equal(*(m.get_submodule(name).weight for m in (model, expected))), name
    zeros = [(model.get_submodule(name).weight == 0).float().mean().item() for name in names]
    assert zeros == pytest.approx([0.5] * len(names), abs=0.02)


def test_processes_do_not_each_choose_their_passes(one_line_error, monkeypatch) -> None:
    model, tokens = fam.build(), fam.random_tokens(4)

    def fail(*_: object) -> None:
        raise MemoryError

    team = Team()
    team.size, team.gather = 2, lambda value: [value, value]
    loop = Loop(model, "wanda", {"sparsity": 0.5, "pattern": "unstructured"}, passes=1, team=team)
    find_layers(find_blocks(model)[1])["mlp.down_proj"].register_forward_pre_hook(
        lambda *_: fail() if loop.report.layers else None
    )
    with one_line_error(OutOfMemory, "block 1", "passes=2"):
        loop.run(tokens, 2)


def test_bad_numbers_name_the_layer_or_the_block(one_line_error) -> None:
    for place, name in (("post_attention_layernorm", "mlp.gate_proj"), (None, "after block 0")):
        model, tokens = fam.build(), fam.random_tokens(2)
        captured = cap.capture(model, tokens)
        block = find_blocks(model)[0]
        weight = (block.get_submodule(place) if place else block.mlp.down_proj).weight
        with torch.no_grad():
            weight.view(-1)[3] = float("inf")
        with one_line_error(NonFinite, "block 0", name):
            list(one_pass(block, captured.stream, captured.calls[0], 2, "block 0"))
