"""`prune_model` on many tiny families: what must change, what must not, and in which order."""

import copy
import hashlib
import io
import json
import math
import sys

import families as fam
import numpy as np
import pytest
import torch
from torch import nn

from helpers import model_identity, perplexity, prune_model, zero_shot
from helpers.errors import (
    BadParameter,
    NonFinite,
    NotPositiveDefinite,
    OutOfMemory,
    UnsupportedModel,
)
from helpers.model.block_grams import layer_problems
from helpers.model.models import PruningState, model_layers, state_of
from helpers.paper.methods import METHODS, register

HALF = dict(method="wanda", sparsity=0.5)


# ---------------------------------------------------------------- what changes, what does not


# test_families.py prunes every family with Wanda; dropout is on in the last two
@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "opt"])
def test_all_that_should_be_pruned_is_and_nothing_else(family):
    model = fam.build(family).train()
    tokens = fam.random_tokens()
    before = fam.snapshot(model)
    parameters = dict(model.named_parameters())
    config = copy.deepcopy(model.config.to_dict())
    state = torch.get_rng_state()
    report = prune_model(model, tokens, method="admm-grad", pattern="4:8")
    names = fam.pruned_names(family)
    # embeddings, norms, biases, head, projections outside the blocks: the same bits
    assert fam.changed(model, before) == {f"{name}.weight" for name in names}
    for name in names:
        weight = fam.matrix_of(model.get_submodule(name))
        assert ((weight != 0).unflatten(1, (-1, 8)).sum(-1) == 4).all(), name
    keys = fam.FAMILIES[family].blocks + ".{0.block}.{0.name}"
    assert sorted(map(keys.format, report.layers)) == sorted(names)
    # all else about the model, the text and the random state is as it was found
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert parameter.requires_grad and parameter.grad is None
    assert fam.hook_count(model) == 0
    assert all(module.training for module in model.modules())
    assert model.config.to_dict() == config
    assert torch.equal(tokens, fam.random_tokens())
    assert torch.equal(torch.get_rng_state(), state)
    # dropout, on in the model that was given, has not reached the statistics
    calm = fam.build(family)
    prune_model(calm, tokens, method="admm-grad", pattern="4:8")
    assert not fam.changed(model, fam.snapshot(calm))


# ---------------------------------------------------------------- the order of things


# calls of block 0 with 8 sequences in batches of 4: 0 arguments, 1 to 4 gate, 5 and 6 embedding,
# 7 and 8 grams, 9 and 10 the second pass
@pytest.mark.parametrize(
    "fails_at, where, error",
    [
        (0, "recording arguments", MemoryError()),
        (4, "the parity gate", torch.OutOfMemoryError("CUDA")),
        (6, "embedding", RuntimeError("can't allocate memory")),
        (8, "block 0", MemoryError()),
        (10, "block 0", RuntimeError("can't allocate memory")),
    ],
)
def test_the_batch_is_halved_where_memory_runs_out(fails_at, where, error):
    # Bloom's blocks are given a bias for each sequence: arguments must be recorded again.
    tokens = fam.random_tokens(8)
    calls = iter(range(10**6))
    model = fam.build("bloom")
    expected = fam.build("bloom")

    def fail(_block, _args):
        if next(calls) == fails_at:
            raise error

    model.transformer.h[0].register_forward_pre_hook(fail)
    report = prune_model(model, tokens, batch=4, **HALF)
    assert len(report.halved) == 1
    assert where in report.halved[0]
    assert report.batch == 2
    assert fam.hook_count(model) == 1  # the one above
    prune_model(expected, tokens, batch=2, **HALF)
    same = fam.kept(model, "bloom") == fam.kept(expected, "bloom")
    assert same.float().mean() > 0.999


@pytest.mark.parametrize("passes, place", [(1, "block 1"), (2, "one sequence")])
def test_memory_that_is_not_enough(passes, place, one_line_error):
    def fail(*_):
        if state_of(model).interrupted:  # once block 0 is pruned
            raise MemoryError

    model = fam.build()
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(fail)
    with one_line_error(OutOfMemory, place, "passes=2" if passes == 1 else "shorter"):
        prune_model(model, fam.random_tokens(), passes=passes, **HALF)


# ---------------------------------------------------------------- the report


def test_the_report_adds_up():
    # no power of two: not every fraction of a layer's weights is exact
    model = fam.build("llama", intermediate_size=41)
    seen = []
    # a norm gain of zero kills an input of q, k and v for every token
    model.model.layers[1].input_layernorm.weight.data[[4, 9]] = 0
    request = dict(method="admm-grad", sparsity=0.48, batch=3)
    show = lambda *step: seen.append(step)  # noqa: E731
    report = prune_model(model, fam.random_tokens(), progress=show, **request)
    names = [f"block {layer.block} {layer.name}" for layer in report.layers]
    assert seen == [(done, 14, name) for done, name in enumerate(names, 1)]
    for layer in report.layers:
        weight = model.get_submodule(f"model.layers.{layer.block}.{layer.name}").weight
        assert layer.shape == tuple(weight.shape)
        assert layer.damping == 0.1
        assert layer.sparsity == (weight == 0).double().mean()
        dead = layer.block == 1 and layer.name in fam.QKVO[:3]
        assert layer.dead_inputs == 2 * dead
        octets = np.packbits(weight.detach() != 0).tobytes()
        assert layer.mask == hashlib.sha256(octets).hexdigest()[:16]
    zeros = ~fam.kept(model, "llama")
    assert report.sparsity == int(zeros.sum()) / zeros.numel()
    assert report.error == pytest.approx(np.mean([row.error for row in report.layers]))
    assert report.batch == 2, "the largest divisor of 4 sequences"
    assert 0 <= report.parity < 1e-6
    spent = report.seconds
    assert set(spent) == {"total", "forward", "solve"}
    assert min(spent.values()) > 0
    assert 2 * spent["total"] >= sum(spent.values())
    json.dumps(report.to_dict(), allow_nan=False)
    unread = prune_model(fam.build(), method="magnitude", sparsity=0.5)
    assert {layer.dead_inputs for layer in unread.layers} == {None}


def test_a_bar_is_drawn_where_somebody_looks(monkeypatch):
    def shown(terminal, progress):
        stream = io.StringIO()
        stream.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stderr", stream)
        prune_model(fam.build(), fam.random_tokens(), progress=progress, **HALF)
        return stream.getvalue()

    assert "14/14" in shown(True, True)
    assert shown(True, False) == shown(False, True) == ""


@pytest.mark.parametrize("passes", [1, 2])
def test_layers_that_are_ignored_stay_dense(passes):
    model, other = fam.build(), fam.build()
    tokens = fam.random_tokens()
    ignored = ["0.mlp.down_proj", "1.self_attn.q_proj", "1.mlp.down_proj"]
    how = {"method": "wanda", "passes": passes}
    patterns = ["*.down_proj", "1.*.q_proj"]
    report = prune_model(model, tokens, sparsity=0.6, ignore=patterns, **how)
    # the same: at sparsity 0 Wanda leaves a layer as it is
    shares = {key: 0.6 * (key not in ignored) for key in model_layers(model)}
    expected = prune_model(other, tokens, sparsity=shares, **how)
    assert not fam.changed(model, fam.snapshot(other))
    assert report.ignored == report.details["ignored"] == ignored
    assert report.sparsity == expected.sparsity
    dense = [f"{row.block}.{row.name}" for row in report.layers if row.error is None]
    assert dense == ignored


# ---------------------------------------------------------------- a model that is not dense

USES = (
    lambda model: prune_model(model, fam.random_tokens(), **HALF),
    lambda model: perplexity(model, fam.random_tokens(1, 80)[0], length=40),
    lambda model: model_identity(model),
    lambda model: zero_shot(model, None, tasks=["rte"], limit=2),
    lambda model: layer_problems(model, fam.random_tokens(), 0, ["mlp.up_proj"]),
)


def test_a_model_is_not_pruned_twice(one_line_error):
    model = fam.build()
    tokens = fam.random_tokens()
    prune_model(model, tokens, **HALF)
    unmarked = fam.build()  # as it is after saving and loading
    unmarked.load_state_dict(model.state_dict())
    for pruned, word in ((copy.deepcopy(model), "before"), (unmarked, "50 %")):
        with one_line_error(BadParameter, word):
            prune_model(pruned, tokens, **HALF)
        more = HALF | {"sparsity": 0.7}
        report = prune_model(pruned, tokens, allow_pruned=True, **more)
        assert report.sparsity == pytest.approx(0.7, abs=1e-2)
    few = fam.build()  # zeros that a dense model may have
    few.model.layers[0].mlp.down_proj.weight.data.zero_()
    prune_model(few, tokens, **HALF)


@pytest.mark.parametrize("done, passes", [(2, 2), (8, 2), (2, 1), (9, 1)])
def test_a_half_pruned_model_is_of_no_use(done, passes, one_line_error):
    def stop(layers, *_):
        assert torch.is_grad_enabled()  # outside a block nothing has changed
        if layers == done:
            raise KeyboardInterrupt

    model = fam.build().train()
    tokens = fam.random_tokens()
    with pytest.raises(KeyboardInterrupt):
        prune_model(model, tokens, progress=stop, passes=passes, **HALF)
    assert fam.hook_count(model) == 0
    assert model.training
    assert torch.is_grad_enabled()
    for use in USES:
        with one_line_error(BadParameter, "interrupted"):
            use(model)
    prune_model(model, tokens, **HALF, allow_pruned=True)
    model_identity(model)


@pytest.mark.parametrize(
    "thing", [None, "embedded", nn.Linear(4, 4), (None, None)], ids=str
)
def test_what_is_no_model(thing, one_line_error):
    for use in USES:
        with one_line_error(BadParameter, type(thing).__name__):
            use(thing)


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def refused(one_line_error):
    """Call prune_model, which must raise an error that says so, and leave the model alone."""

    def call(model, error, word, **request):
        state = lambda: [v.nan_to_num(7.0) for v in fam.snapshot(model).values()]  # noqa: E731
        before = state()
        hooks = fam.hook_count(model)
        with one_line_error(error, word):
            prune_model(model, **{"tokens": GOOD} | HALF | request)
        assert all(map(torch.equal, state(), before))
        assert fam.hook_count(model) == hooks
        assert state_of(model) == PruningState()

    return call


GOOD = fam.random_tokens()


def by_layer(up=0.5):
    """0.5 for each layer of the tiny Llama, or something else for the first, 0.mlp.up_proj."""
    first = {"0.mlp.up_proj": up}
    names = (f"{i}.{name}" for i in (0, 1) for name in fam.LLAMA_LAYERS)
    return first | dict.fromkeys(names, 0.5) | first


@pytest.mark.parametrize(
    "parameter, value, word",
    [
        ("method", "wnada", "'wnada'"),
        ("method", None, "method None"),
        ("sparsity", None, "sparsity"),
        ("sparsity", 60, "sparsity 60"),
        ("sparsity", by_layer(up=1.0), "layer 0.mlp.up_proj"),
        ("sparsity", by_layer(up=None), "layer 0.mlp.up_proj"),
        ("sparsity", by_layer(up=math.nan), "layer 0.mlp.up_proj"),
        ("sparsity", {**by_layer(), "2.mlp.up_proj": 0.5}, "2.mlp.up_proj"),
        ("sparsity", {"0.mlp.up_proj": 0.5}, "0.mlp.down_proj"),
        ("pattern", "5:4", "'5:4'"),
        ("pattern", "2:5", "32 inputs"),
        ("pattern", "1:4", "0.5"),
        ("passes", 3, "passes 3"),
        ("precision", "auto", "precision 'auto'"),
        ("batch", 0, "batch 0"),
        ("batch", "4", "batch '4'"),
        ("allow_pruned", "yes", "'yes'"),
        ("keep", torch.ones(32, 32), "keep"),
        ("damping", 0.1, "damping"),
        ("budget", "row", "'row'"),
        ("ignore", ["0.*", "*.dwn_proj"], "'*.dwn_proj'"),
        ("ignore", ["0.*", "1.*"], "no layer"),
        ("importance", {"9.mlp": torch.ones(1)}, "0.mlp.down_proj"),
        ("importance", by_layer(up=torch.zeros(64)), "above 0"),
        # 0 in float32
        ("importance", by_layer(up=torch.full((64,), 1e-300, dtype=float)), "above 0"),
        ("importance", by_layer(up=torch.ones(3)), "(3,)"),
        ("importance", by_layer(), "type float"),
        ("tokens", None, "calibration"),
        ("tokens", GOOD[0], "(24,)"),
        ("tokens", GOOD.float(), "float32"),
        ("tokens", GOOD[:0], "empty"),
        ("tokens", GOOD.tolist(), "list"),
        ("tokens", GOOD + 90, "vocabulary"),
        ("tokens", GOOD - 50, "vocabulary"),
        ("tokens", fam.random_tokens(2, 200), "128"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_request_changes_nothing(parameter, value, word, refused, monkeypatch):
    model = fam.build()
    # it is refused before the model runs
    monkeypatch.setattr(type(model), "forward", None)
    refused(model, BadParameter, word, **{parameter: value})


GOOD = fam.random_tokens()


@pytest.mark.parametrize(
    "place, named",
    [
        ("model.layers.1.mlp.up_proj", "block 1 mlp.up_proj"),
        ("model.embed_tokens", "entering block 0"),
        ("model.layers.1.input_layernorm", "after block 1"),
        ("model.norm", "logits"),
        ("one token", "entering block 0"),
    ],
)
def test_bad_numbers_stop_the_run(place, named, refused):
    model = fam.build()
    tokens = fam.random_tokens()
    if place == "one token":  # of the last sequence, which the gate does not see
        tokens[tokens == 50] = 51
        tokens[3, 7] = 50
        model.model.embed_tokens.weight.data[50] = math.inf
    else:
        model.get_submodule(place).weight.data[..., 3] = math.nan
    refused(model, NonFinite, named, tokens=tokens, batch=1)


def test_weights_that_cannot_be_pruned(one_line_error):
    model = fam.build()
    layer = model.model.layers[1].mlp.up_proj
    weight = layer.weight.to(torch.float8_e4m3fn)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    with one_line_error(UnsupportedModel, "block 1 mlp.up_proj"):
        prune_model(model, fam.random_tokens(), **HALF)


def test_a_model_that_fails_the_parity_gate_is_left_alone(refused):
    # Arguments replayed on the text that they were recorded with would look fine.
    model = fam.build()
    rotary = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda states, *args, **more: tuple(
        part + states.sum(-1, keepdim=True) for part in rotary(states, *args, **more)
    )
    refused(model, UnsupportedModel, "Llama")


def test_an_error_in_a_late_layer_names_it(own_methods, one_line_error):
    shapes = []

    @register("test-only")
    def fails_late(weight, gram, *, keep=None, **target):
        shapes.append(tuple(weight.shape))
        if len(shapes) == 11:
            raise NotPositiveDefinite("gram cannot be factored")
        return METHODS["wanda"].__wrapped__(weight, gram, **target)

    # the tenth layer is the third of block 1
    with one_line_error(NotPositiveDefinite, "block 1 self_attn.v_proj"):
        prune_model(fam.build(), fam.random_tokens(), method="test-only", sparsity=0.5)
    # the options were tried first, on a layer as the smallest
    assert shapes[0] == (16, 32)
