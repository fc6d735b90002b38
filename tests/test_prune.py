"""`prune_model` on many tiny families: what must change, what must not, and in which order."""

import copy
import hashlib
import json
import math
import re

import families as fam
import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from helpers import model_identity, perplexity, prune_model, refit, zero_shot
from helpers.errors import (
    BadParameter,
    HelpersError,
    NonFinite,
    NotPositiveDefinite,
    UnsupportedModel,
)
from helpers.finish import certify
from helpers.gram import gram_of, relative_error
from helpers.loop import LayerReport
from helpers.masks import select
from helpers.methods import METHODS, LayerResult, register
from helpers.models import STATE, find_blocks, find_layers, read_weight
from helpers.prune import try_method
from helpers.replay import layer_gram


def zero_fractions(model: nn.Module, family: str) -> dict[str, float]:
    weights = {n: model.get_submodule(n).weight for n in fam.pruned_names(family)}
    return {name: (w == 0).float().mean().item() for name, w in weights.items()}


# ---------------------------------------------------------------- what changes, what does not


@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "gemma3", "opt", "falcon", "mpt"])
def test_all_that_should_be_pruned_is_and_nothing_else(family: str) -> None:
    # test_families.py prunes every family with Wanda
    model, tokens = fam.build(family).train(), fam.random_tokens()
    before, parameters = fam.snapshot(model), dict(model.named_parameters())
    config, given = copy.deepcopy(model.config.to_dict()), tokens.clone()
    state = torch.get_rng_state()
    report = prune_model(model, tokens, method="admm-grad", pattern="4:8")
    names = fam.pruned_names(family)
    # embeddings, norms, biases, head, projections outside the blocks: the same bits
    assert fam.changed(model, before) == {f"{name}.weight" for name in names}
    for name in names:
        weight = fam.matrix_of(model.get_submodule(name))
        assert ((weight != 0).unflatten(1, (-1, 8)).sum(-1) == 4).all(), name
    prefix = fam.FAMILIES[family].blocks
    assert [f"{prefix}.{layer.block}.{layer.name}" for layer in report.layers] == sorted(
        names, key=[n for n, _ in model.named_modules()].index
    )
    # all else about the model, the text and the random state is as it was found
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name] and parameter.requires_grad
        assert parameter.is_leaf and parameter.grad is None
    assert fam.hook_count(model) == 0 and all(module.training for module in model.modules())
    assert model.config.to_dict() == config and torch.equal(tokens, given)
    assert torch.equal(torch.get_rng_state(), state)
    # dropout, on in the model that was given, has not reached the statistics
    calm = fam.build(family)
    prune_model(calm, tokens, method="admm-grad", pattern="4:8")
    assert not fam.changed(model, fam.snapshot(calm))
    with torch.no_grad():
        assert torch.isfinite(calm(tokens).logits).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_stay_so(dtype: torch.dtype) -> None:
    model = fam.build("llama").to(dtype)
    prune_model(model, fam.random_tokens(), method="admm-grad", sparsity=0.5)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert set(zero_fractions(model, "llama").values()) == {0.5}


# ---------------------------------------------------------------- the order of things


@pytest.mark.parametrize(
    ("family", "method"),
    [("llama", "wanda"), ("llama", "admm1"), ("gpt2", "admm1"), ("gemma3", "wanda"),
     ("bloom", "wanda")],
)  # fmt: skip
def test_statistics_come_from_the_already_pruned_stream(family: str, method: str) -> None:
    # By hand: the whole model runs once for each block; the inputs of that block's layers, all
    # seen in that one pass, prune it; the next pass goes through the pruned block.
    tokens, model = fam.random_tokens(8), fam.build(family)
    byhand, dense_stats = copy.deepcopy(model), copy.deepcopy(model)
    names = fam.pruned_names(family)
    width = len(fam.FAMILIES[family].layers)
    all_dense = fam.inputs_by_hook(dense_stats, names, tokens)
    for start in range(0, len(names), width):
        part = names[start : start + width]
        inputs = fam.inputs_by_hook(byhand, part, tokens)
        for name in part:
            _prune_one(byhand.get_submodule(name), inputs[name], method)
    for name in names:
        _prune_one(dense_stats.get_submodule(name), all_dense[name], method)
    prune_model(model, tokens, method=method, sparsity=0.5)
    differs = 0
    for name in names:
        ours, expected, one_pass = (
            m.get_submodule(name).weight for m in (model, byhand, dense_stats)
        )
        assert ((ours == 0) == (expected == 0)).float().mean() > 0.995, name
        torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-2 * expected.std().item())
        differs += int(((ours == 0) != (one_pass == 0)).sum())
    assert differs > 20  # statistics of the dense model would have given other masks


def _prune_one(layer: nn.Module, inputs: Tensor, method: str) -> None:
    weight = fam.matrix_of(layer).detach()
    result = METHODS[method](weight.clone(), gram_of(inputs), sparsity=0.5)
    with torch.no_grad():
        weight.copy_(result.weight)


@pytest.mark.parametrize("family", ["llama", "bloom", "mpt", "gemma3"])
def test_the_batch_size_does_not_change_the_answer(family: str) -> None:
    tokens = fam.random_tokens(6)
    masks = []
    for batch in (1, 4, 100):
        model = fam.build(family)
        report = prune_model(model, tokens, method="wanda", sparsity=0.5, batch=batch)
        assert report.batch == {1: 1, 4: 3, 100: 6}[batch] and not report.halved
        weights = [model.get_submodule(name).weight for name in fam.pruned_names(family)]
        masks.append(torch.cat([(weight == 0).flatten() for weight in weights]))
    for mask in masks[1:]:
        assert (mask == masks[0]).float().mean() > 0.999  # summing order moves the last bits


# calls of block 0 with 8 sequences in batches of 4: 0 arguments, 1 to 4 gate, 5 and 6 embedding,
# 7 and 8 grams, 9 and 10 the second pass
@pytest.mark.parametrize(
    ("fails_at", "where", "error"),
    [
        (0, "recording arguments", MemoryError()),
        (4, "the parity gate", torch.OutOfMemoryError("CUDA")),
        (6, "embedding", RuntimeError("can't allocate memory")),
        (8, "block 0", MemoryError()),
        (9, "block 0", MemoryError()),
        (10, "block 0", RuntimeError("can't allocate memory")),
    ],
)
def test_the_batch_is_halved_where_memory_runs_out(
    fails_at: int, where: str, error: Exception
) -> None:
    # Bloom's blocks are given a bias for each sequence: arguments must be recorded anew.
    tokens, calls = fam.random_tokens(8), iter(range(10**6))
    model, expected = fam.build("bloom"), fam.build("bloom")

    def fail(_block: nn.Module, _args: object) -> None:
        if next(calls) == fails_at:
            raise error

    handle = model.transformer.h[0].register_forward_pre_hook(fail)
    report = prune_model(model, tokens, method="wanda", sparsity=0.5, batch=4)
    handle.remove()
    assert report.halved == [f"{where}: batch lowered from 4 to 2, out of memory"]
    assert report.batch == 2
    prune_model(expected, tokens, method="wanda", sparsity=0.5, batch=2)
    for name in fam.pruned_names("bloom"):
        found, wanted = (m.get_submodule(name).weight for m in (model, expected))
        assert ((found == 0) == (wanted == 0)).float().mean() > 0.999, name


# ---------------------------------------------------------------- report and hooks


def test_the_report_adds_up() -> None:
    model, tokens = fam.build("llama"), fam.random_tokens()
    dense = copy.deepcopy(model)
    seen = []
    report = prune_model(
        model, tokens, method="admm-grad", sparsity=0.6, progress=lambda *step: seen.append(step)
    )
    names = [f"block {layer.block} {layer.name}" for layer in report.layers]
    assert seen == [(done, 14, name) for done, name in enumerate(names, 1)]
    zeros = total = 0
    for layer in report.layers:
        weight = model.get_submodule(f"model.layers.{layer.block}.{layer.name}").weight
        assert layer.shape == tuple(weight.shape)
        assert layer.sparsity == pytest.approx((weight == 0).double().mean().item(), abs=1e-12)
        assert 0 < layer.error < 1 and layer.damping == 0.1 and layer.dead_inputs == 0
        assert layer.seconds >= 0
        bits = "".join("01"[int(kept)] for kept in (weight != 0).flatten())
        octets = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
        assert layer.mask == hashlib.sha256(octets).hexdigest()[:16]
        zeros, total = zeros + int((weight == 0).sum()), total + weight.numel()
    assert report.sparsity == pytest.approx(zeros / total, abs=1e-12)
    mean = sum(layer.error for layer in report.layers) / len(report.layers)
    assert report.error == pytest.approx(mean)
    assert (report.method, report.pattern) == ("admm-grad", "unstructured")
    spent = report.seconds
    assert set(spent) == {"total", "forward", "gram", "solve", "selection"}
    assert min(spent.values()) > 0 and 2 * spent["total"] >= sum(spent.values())
    # the error of block 0, whose inputs are the dense model's: ‖XW − XŴ‖²/‖XW‖² by hand
    name = "model.layers.0.mlp.down_proj"
    x = fam.inputs_by_hook(dense, [name], tokens)[name].double()
    old, new = (x @ m.get_submodule(name).weight.double().T for m in (dense, model))
    expected = ((old - new).norm() ** 2 / old.norm() ** 2).item()
    old_line = {k: v for k, v in vars(report.layers[0]).items() if k != "mask"}  # of an older run
    assert LayerReport(**old_line).mask is None
    reported = {(layer.block, layer.name): layer.error for layer in report.layers}
    assert reported[0, "mlp.down_proj"] == pytest.approx(expected, rel=1e-3)
    assert 0 <= report.parity < 1e-6
    names = "method pattern sparsity error dead_inputs parity batch halved precision seconds repair"
    layers = [{**vars(layer), "shape": list(layer.shape)} for layer in report.layers]
    values = {name: getattr(report, name) for name in names.split()} | {"layers": layers}
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False)) == values


def test_after_block_sees_the_pruned_block_and_the_stream_that_enters_it() -> None:
    model, tokens = fam.build("llama"), fam.random_tokens()
    dense, seen = copy.deepcopy(model), []

    def look(index: int, block: nn.Module, stream: Tensor, call: object) -> None:
        assert block is model.model.layers[index]
        assert (block.mlp.down_proj.weight == 0).float().mean() == 0.5
        seen.append((index, stream.clone()))

    prune_model(model, tokens, method="wanda", sparsity=0.5, after_block=look)
    assert [index for index, _ in seen] == [0, 1]
    torch.testing.assert_close(seen[0][1], dense.model.embed_tokens(tokens))
    entering = {}
    model.model.layers[1].register_forward_pre_hook(
        lambda _, args, kwargs: entering.update(stream=args[0]), with_kwargs=True
    )
    model(tokens)
    torch.testing.assert_close(seen[1][1], entering["stream"], rtol=1e-4, atol=1e-5)


def test_dead_inputs_are_reported() -> None:
    # A norm gain of zero kills an input of q, k and v for every token.
    model = fam.build("llama")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[[4, 9]] = 0
    report = prune_model(model, fam.random_tokens(), method="admm-grad", sparsity=0.5)
    dead = {(layer.block, layer.name): layer.dead_inputs for layer in report.layers}
    for part in "qkv":
        assert dead.pop((1, f"self_attn.{part}_proj")) == 2
        assert (
            not model.get_submodule(f"model.layers.1.self_attn.{part}_proj").weight[:, [4, 9]].any()
        )
    assert set(dead.values()) == {0}


def test_a_pruned_model_is_saved_and_loaded_with_its_zeros(tmp_path) -> None:
    for family in ("llama-tied", "gpt2"):
        model, tokens = fam.build(family), fam.random_tokens()
        prune_model(model, tokens, method="admm-grad", sparsity=0.6)
        model.save_pretrained(tmp_path / family)
        again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / family).eval()
        assert zero_fractions(again, family) == zero_fractions(model, family)
        with torch.no_grad():
            assert torch.equal(again(tokens).logits, model(tokens).logits)


# ---------------------------------------------------------------- magnitude without calibration


def test_magnitude_never_runs_the_model(monkeypatch) -> None:
    model = fam.build("gpt2")
    dense = copy.deepcopy(model)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(type(model), "forward", refuse)
    for block in model.transformer.h:
        monkeypatch.setattr(block, "forward", refuse)
    report = prune_model(model, method="magnitude", sparsity=0.25)
    assert report.error is report.parity is report.batch is None and report.sparsity == 0.25
    assert all(layer.error is None and layer.damping is None for layer in report.layers)
    for name in fam.pruned_names("gpt2"):
        old, new = (m.get_submodule(name).weight.detach() for m in (dense, model))
        gone = new == 0
        assert gone.float().mean() == 0.25 and old[gone].abs().max() <= old[~gone].abs().min()
        assert torch.equal(new[~gone], old[~gone])
    json.dumps(report.to_dict(), allow_nan=False)


# ---------------------------------------------------------------- a model that is not dense

HALF = dict(method="wanda", sparsity=0.5)
USES = (
    lambda model: prune_model(model, fam.random_tokens(), **HALF),
    lambda model: perplexity(model, fam.random_tokens(1, 80)[0], length=40),
    lambda model: model_identity(model),
    lambda model: zero_shot(model, None, tasks=["rte"], limit=2),
)


def test_a_model_is_not_pruned_twice(one_line_error) -> None:
    model, tokens = fam.build("llama"), fam.random_tokens()
    prune_model(model, tokens, **HALF)
    unmarked = fam.build("llama")  # as it is after saving and loading
    unmarked.load_state_dict(model.state_dict())
    for pruned, word in ((model, "before"), (copy.deepcopy(model), "before"), (unmarked, "50 %")):
        before = fam.snapshot(pruned)
        for request in (HALF, dict(method="magnitude", sparsity=0.9)):
            with one_line_error(BadParameter, word, "allow_pruned=True"):
                prune_model(pruned, tokens, **request)
        assert not fam.changed(pruned, before)
        report = prune_model(pruned, tokens, method="wanda", sparsity=0.7, allow_pruned=True)
        assert report.sparsity == pytest.approx(0.7, abs=1e-2)
    with one_line_error(BadParameter, "allow_pruned", "True or False"):
        prune_model(fam.build("llama"), tokens, **HALF, allow_pruned="yes")
    few = fam.build("llama")  # zeros that a dense model may have
    with torch.no_grad():
        few.model.layers[0].mlp.down_proj.weight.zero_()
    prune_model(few, tokens, **HALF)


@pytest.mark.parametrize("at", ["progress", "after_block", "second pass"])
def test_a_half_pruned_model_is_of_no_use(at: str, one_line_error, monkeypatch) -> None:
    def stop(*_: object) -> None:
        raise NonFinite("made up") if at == "second pass" else KeyboardInterrupt

    model, tokens = fam.build("llama"), fam.random_tokens()
    options = {} if at == "second pass" else {at: stop}
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, NonFinite)):
        if at == "second pass":
            patch.setattr("helpers.replay.advance", stop)
        prune_model(model, tokens, **HALF, **options)
    for use in USES:
        with one_line_error(BadParameter, "half pruned", "load it anew"):
            use(model)
    prune_model(model, tokens, **HALF, allow_pruned=True)
    for use in USES[1:3]:
        use(model)


@pytest.mark.parametrize("thing", [None, "embedded", nn.Linear(4, 4), (None, None)], ids=str)
def test_what_is_no_model(thing: object, one_line_error) -> None:
    for use in USES:
        with one_line_error(BadParameter, "no language model", "load_model"):
            use(thing)


def test_weights_that_cannot_be_pruned(one_line_error) -> None:
    for change, words in (
        (lambda w: w.to("meta"), ["not in memory", "prune_checkpoint"]),
        (lambda w: w.to(torch.float8_e4m3fn), ["block 1 mlp.up_proj", "float8_e4m3fn"]),
        (lambda w: w.to_sparse(), ["block 1 mlp.up_proj", "sparse"]),
        (lambda w: w[0], ["block 1 mlp.up_proj", "(32,)"]),
        (lambda w: w[:0], ["block 1 mlp.up_proj", "(0, 32)"]),
    ):
        model = fam.build("llama")
        layer = model.model.layers[1].mlp.up_proj
        layer.weight = nn.Parameter(change(layer.weight.detach()), requires_grad=False)
        for method in ("magnitude", "admm-grad"):
            with one_line_error(UnsupportedModel, *words):
                prune_model(model, fam.random_tokens(), method=method, sparsity=0.5)


# ---------------------------------------------------------------- bad input


def refused(model: nn.Module, tokens: object, **arguments: object) -> HelpersError:
    """The error of a call that must be refused, after checking that nothing has changed."""

    def bits() -> dict[str, Tensor]:
        return {key: value.nan_to_num(7.0) for key, value in model.state_dict().items()}

    before = copy.deepcopy(bits())
    with pytest.raises(HelpersError) as caught:
        prune_model(model, tokens, **arguments)
    assert all(torch.equal(value, before[key]) for key, value in bits().items())
    assert fam.hook_count(model) == 0 and not hasattr(model, STATE)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_bad_request_changes_nothing() -> None:
    model, good = fam.build("llama"), fam.random_tokens()
    half = dict(method="wanda", sparsity=0.5)
    for error, *requests in (
        (BadParameter, dict(method="wnada", sparsity=0.5), dict(method=None, sparsity=0.5)),
        (BadParameter, dict(method="wanda"), dict(method="wanda", sparsity=60),
         dict(method="wanda", sparsity=0.6, pattern="2:4")),
        (BadParameter, dict(half, pattern="5:4"), dict(half, pattern=None),
         dict(method="wanda", pattern="2:5")),  # 5 does not divide 32
        (BadParameter, dict(half, damping=0.1), dict(half, keep=torch.ones(32, 32)),
         dict(half, batch=0), dict(half, batch="4")),
    ):  # fmt: skip
        for request in requests:
            assert isinstance(refused(model, good, **request), error), request
    longer = fam.random_tokens(2, 200)  # than the 128 tokens that the model can take
    shapes = (None, good[0], good.float(), good[:0], good.tolist(), longer)
    for tokens in (*shapes, good + 90, good - 50):
        assert isinstance(refused(model, tokens, **half), BadParameter | BadParameter)
    narrow = fam.build("llama", intermediate_size=68)  # 8 divides the inputs of all but down_proj
    assert isinstance(refused(narrow, good, method="wanda", pattern="4:8"), BadParameter)
    error = refused(model, None, method="magnitude", sparsity=0.5, after_block=lambda *_: None)
    assert isinstance(error, BadParameter) and "after_block" in str(error)


# ---------------------------------------------------------------- a sparsity for each layer


def by_layer(value: float = 0.5) -> dict[str, float]:
    """A sparsity for each layer of the tiny Llama."""
    return {f"{i}.{name}": value for i in (0, 1) for name in fam.LLAMA_LAYERS}


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "admm-grad"])
def test_equal_sparsities_by_layer_are_one_sparsity(method: str) -> None:
    models, tokens = (fam.build("llama"), fam.build("llama")), fam.random_tokens()
    for model, sparsity in zip(models, (0.6, by_layer(0.6)), strict=True):
        prune_model(model, tokens, method=method, sparsity=sparsity)
    assert not fam.changed(models[0], fam.snapshot(models[1]))


def test_each_layer_gets_its_own_sparsity() -> None:
    model = fam.build("llama")
    asked = {key: n / 16 for n, key in enumerate(by_layer())}  # from 0 on
    backwards = dict(reversed(asked.items()))  # names decide, not their order
    report = prune_model(model, fam.random_tokens(), method="admm-grad", sparsity=backwards)
    assert {f"{line.block}.{line.name}": line.sparsity for line in report.layers} == asked
    found = zero_fractions(model, "llama")
    assert {name.removeprefix("model.layers."): zeros for name, zeros in found.items()} == asked


def test_sparsities_that_do_not_fit_the_model() -> None:
    model, tokens = fam.build("llama"), fam.random_tokens()
    key = "1.mlp.up_proj"
    missing = {name: 0.5 for name in by_layer() if name != key}  # noqa: C420
    for error, sparsity, *words in (
        (BadParameter, missing, f"lacks {key}:", "one for each of the 14", "0.self_attn.q_proj"),
        (BadParameter, {**by_layer(), "2.mlp.up_proj": 0.5}, "names the unknown 2.mlp.up_proj:"),
        (BadParameter, {**missing, "mlp.up_proj": 0.5}, f"lacks {key}:"),  # and not the other too
        (BadParameter, {**by_layer(), 3: 0.5}, "names the unknown 3:"),
        (BadParameter, {}, "lacks 0.mlp.down_proj, 0.mlp.gate_proj, 0.mlp.up_proj:"),
        (BadParameter, {**by_layer(), key: 1.0}, f"layer {key}: sparsity 1.0"),
        (BadParameter, {**by_layer(), key: 50}, f"layer {key}", "write 0.5"),
        (BadParameter, {**by_layer(), key: None}, f"layer {key}: sparsity is missing"),
        (BadParameter, {**by_layer(), key: math.nan}, f"layer {key}"),
    ):
        caught = refused(model, tokens, method="wanda", sparsity=sparsity)
        assert isinstance(caught, error), sparsity
        assert all(word in str(caught) for word in words), str(caught)
    error = refused(model, tokens, method="wanda", sparsity=by_layer(0.6), pattern="2:4")
    assert isinstance(error, BadParameter) and "contradicts pattern" in str(error)
    prune_model(model, tokens, method="wanda", sparsity=by_layer(0.5), pattern="2:4")


@pytest.mark.parametrize(
    "request_",
    [
        dict(method="admm-grad", sparsity=0.5, rho=-1.0),
        dict(method="admm-grad", sparsity=0.5, schedule="papr"),
        dict(method="admm1", pattern="2:4", iterations=2.5),
        dict(method="sparsegpt", pattern="4:8", block_size=12),
        dict(method="wanda", pattern="8:16", budget="row"),
    ],
    ids=str,
)
def test_values_of_options_are_checked_before_the_model_runs(request_: dict, monkeypatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    model = fam.build("llama")
    monkeypatch.setattr(type(model), "forward", run)
    error = refused(model, fam.random_tokens(), **request_)
    assert isinstance(error, BadParameter) and list(request_)[-1] in str(error)


def test_options_are_tried_on_a_layer_of_the_models_size(registry, monkeypatch) -> None:
    shapes = []

    @register("pairs")
    def pairs(weight, gram, *, sparsity, pattern, keep=None):
        shapes.append(tuple(weight.shape))
        torch.rand(1)  # the caller's random numbers must not depend on it
        keep = select(weight.abs(), sparsity, pattern)
        return LayerResult(weight * keep, keep)

    model = fam.build("llama")
    shapes_there = [tuple(model.get_submodule(n).weight.shape) for n in fam.pruned_names("llama")]
    state = torch.get_rng_state()
    prune_model(model, fam.random_tokens(), method="pairs", sparsity=0.5)
    assert shapes[0] == min(shapes_there, key=math.prod) and shapes[1:] == shapes_there
    drawn = torch.Generator().set_state(state)
    for _ in shapes_there:  # as many as the layers drew: the trial's are not among them
        torch.rand(1, generator=drawn)
    assert torch.equal(drawn.get_state(), torch.get_rng_state())
    # of a large model a small layer is enough, in whole groups
    try_method("pairs", {"sparsity": None, "pattern": "3:5"}, (4096, 1280), torch.device("cpu"))
    assert shapes[-1] == (128, 125)


def test_a_model_that_fails_the_parity_gate_is_left_alone() -> None:
    # Arguments replayed on the text that they were recorded with would look fine.
    model = fam.build("llama")
    fam.let_rotations_depend_on_the_text(model)
    before = fam.snapshot(model)
    with pytest.raises(UnsupportedModel):
        prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.5)
    assert not fam.changed(model, before)


@pytest.mark.parametrize(
    ("method", "value"), [("magnitude", float("nan")), ("admm-grad", float("inf"))]
)
def test_a_bad_number_in_a_weight_names_the_layer(method: str, value: float) -> None:
    model = fam.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    error = refused(model, fam.random_tokens(), method=method, sparsity=0.5)
    assert isinstance(error, NonFinite) and "block 1 mlp.down_proj" in str(error)


@pytest.mark.parametrize(
    ("place", "named"),
    [("embedding", "entering block 0"), ("block 1", "after block 1"), ("final norm", "logits")],
)
def test_bad_numbers_in_the_stream_stop_the_run(place: str, named: str) -> None:
    model = fam.build("llama")
    target = {
        "embedding": model.model.embed_tokens.weight,
        "block 1": model.model.layers[1].input_layernorm.weight,
        "final norm": model.model.norm.weight,
    }[place]
    with torch.no_grad():
        target[int(fam.random_tokens()[0, 0]) if place == "embedding" else 3] = float("nan")
    error = refused(model, fam.random_tokens(), method="wanda", sparsity=0.5)
    assert isinstance(error, NonFinite) and named in str(error)


def test_a_stream_that_is_bad_on_late_text_only(one_line_error) -> None:
    # The first batch, which the gate sees, is harmless; the last sequence is not.
    model, tokens = fam.build("llama").half(), fam.random_tokens(4)
    tokens[tokens == 50] = 51
    tokens[3, 7] = 50
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = float("inf")
    with one_line_error(NonFinite, "entering block 0"):
        prune_model(model, tokens, method="wanda", sparsity=0.5, batch=1)


@pytest.mark.usefixtures("registry")
def test_an_error_in_a_late_layer_names_it_and_says_what_is_pruned_already() -> None:
    @register("test-only")
    def fails_late(weight, gram, *, sparsity, pattern, keep=None):
        calls.append(1)
        if len(calls) == 11:  # the first was a trial
            raise NotPositiveDefinite("gram cannot be factored")
        return METHODS["wanda"].__wrapped__(weight, gram, sparsity=sparsity, pattern=pattern)

    calls: list[int] = []
    with pytest.raises(NotPositiveDefinite) as caught:
        prune_model(fam.build("llama"), fam.random_tokens(), method="test-only", sparsity=0.5)
    # the tenth layer is the third of block 1
    assert "block 1 self_attn.v_proj" in str(caught.value)
    assert "layers already pruned: 9" in str(caught.value) and "\n" not in str(caught.value)


def test_an_interrupt_leaves_no_hooks_and_the_models_mode() -> None:
    model = fam.build("llama").train()

    def stop(done: int, total: int, name: str) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.5, progress=stop)
    assert fam.hook_count(model) == 0 and model.training


# ---------------------------------------------------------------- importance of outputs


def factors(model: nn.Module, value: float = 1.0) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": torch.full((read_weight(layer).shape[0],), value)
        for index, block in enumerate(find_blocks(model))
        for name, layer in find_layers(block).items()
    }


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "admm-grad"])
def test_one_factor_for_all_outputs_changes_nothing(family: str, method: str) -> None:
    model, tokens = fam.build(family), fam.random_tokens()
    other = copy.deepcopy(model)
    plain = prune_model(model, tokens, method=method, sparsity=0.6)
    # a power of two: scaling is exact
    told = prune_model(other, tokens, method=method, sparsity=0.6, importance=factors(other, 4.0))
    assert not fam.changed(other, fam.snapshot(model))
    for one, two in zip(plain.layers, told.layers, strict=True):
        assert (one.mask, one.error) == (two.mask, pytest.approx(two.error, rel=1e-5))


def test_the_weights_of_important_outputs_stay() -> None:
    model, tokens = fam.build(), fam.random_tokens()
    key, layer = "1.mlp.up_proj", find_layers(find_blocks(model)[1])["mlp.up_proj"]
    dense, importance = read_weight(layer).clone(), factors(model)
    importance[key][3] = 2.0**20
    prune_model(model, tokens, method="magnitude", sparsity=0.5, importance=importance)
    # by hand: all of row 3, then the largest of the others
    others = torch.cat([dense[:3], dense[4:]]).abs()
    left = dense.numel() // 2 - dense.shape[1]
    limit = others.flatten().sort(descending=True).values[left - 1]
    expected = dense * (dense.abs() >= limit)
    expected[3] = dense[3]
    assert torch.equal(read_weight(layer), expected)


def test_importance_says_which_weights_stay_and_the_update_is_the_methods() -> None:
    model, tokens = fam.build(), fam.random_tokens()
    importance = {
        key: torch.rand(len(ones), generator=torch.Generator().manual_seed(len(key))) + 0.1
        for key, ones in factors(model).items()
    }
    key = "0.self_attn.q_proj"  # in block 0, whose inputs are those of the dense model
    weight, gram = layer_gram(model, tokens, 0, "self_attn.q_proj")
    prune_model(model, tokens, method="admm1", sparsity=0.5, importance=importance)
    pruned = read_weight(find_layers(find_blocks(model)[0])["self_attn.q_proj"])
    score = weight.abs() * gram.diagonal().sqrt() * importance[key][:, None]
    keep = select(score, 0.5, "unstructured", "matrix")
    assert torch.equal(pruned != 0, keep)
    torch.testing.assert_close(pruned, refit(weight, gram, keep).weight, rtol=1e-3, atol=1e-5)


def test_the_proof_of_an_optimum_is_that_of_the_outputs_as_they_are() -> None:
    model, tokens = fam.build(), fam.random_tokens()
    weight, gram = layer_gram(model, tokens, 0, "self_attn.q_proj")
    importance = factors(model)
    importance["0.self_attn.q_proj"] += torch.arange(len(weight)) * 5.0
    asked = dict(method="wanda", sparsity=0.5, swap=1, importance=importance)
    report = prune_model(model, tokens, **asked)
    pruned = read_weight(find_layers(find_blocks(model)[0])["self_attn.q_proj"])
    proof = certify(weight, gram, pruned != 0, pruned)
    assert report.layers[0].gap == pytest.approx(proof.gap, abs=1e-6)
    assert report.layers[0].error == pytest.approx(relative_error(weight, pruned, gram), rel=1e-5)


def test_importance_cannot_change_a_mask_within_groups_or_outputs() -> None:
    tokens, results = fam.random_tokens(), []
    for given in (False, True):
        masks = []
        for target in ({"pattern": "2:4"}, {"sparsity": 0.5}):  # wanda's budget is per output
            model = fam.build()
            importance = factors(model)
            for number, ones in enumerate(importance.values()):
                ones += torch.arange(len(ones)) * (number + 1)
            chosen = {"importance": importance} if given else {}
            report = prune_model(model, tokens, method="wanda", **target, **chosen)
            masks.append([layer.mask for layer in report.layers])
        results.append(masks)
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("0.mlp.up_proj"), "importance lacks 0.mlp.up_proj"),
        (lambda f: f.update({"9.mlp": torch.ones(1)}), "names the unknown 9.mlp"),
        (lambda f: f.update({"0.mlp.up_proj": torch.ones(3)}), r"0.mlp.up_proj has .* \(3,\)"),
        (lambda f: f["0.mlp.up_proj"].zero_(), "numbers above 0"),
        (lambda f: f["0.mlp.up_proj"].fill_(math.nan), "numbers above 0"),
        # 0 in float32
        (
            lambda f: f.update({"0.mlp.up_proj": torch.full((64,), 1e-300, dtype=torch.float64)}),
            "above 0",
        ),
        (lambda f: f.update({"0.mlp.up_proj": 2.0}), "is of type float"),
    ],
)
def test_bad_importance_is_refused_before_anything_changes(change, message: str) -> None:
    model, tokens = fam.build(), fam.random_tokens()
    before, importance = fam.snapshot(model), factors(model)
    change(importance)
    error = refused(model, tokens, method="wanda", sparsity=0.5, importance=importance)
    assert isinstance(error, BadParameter) and re.search(message, str(error))
    assert not fam.changed(model, before)
