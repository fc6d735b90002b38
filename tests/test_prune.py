"""`prune_model` on many tiny families: what must change, what must not, and in which order."""

from __future__ import annotations

import copy
import json

import families as fam
import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from helpers import prune_model
from helpers.errors import (
    BadParameter,
    BadPattern,
    BadSparsity,
    CalibrationTooShort,
    HelpersError,
    NonFinite,
    NotPositiveDefinite,
    ParityError,
    UnknownMethod,
    UnsupportedModel,
)
from helpers.gram import gram_of
from helpers.methods import METHODS, LayerResult, register

EVERY = sorted(fam.FAMILIES)
METHOD_NAMES = ("magnitude", "wanda", "sparsegpt", "admm1", "admm-grad")


def zero_fractions(model: nn.Module, family: str) -> dict[str, float]:
    weights = {n: model.get_submodule(n).weight for n in fam.pruned_names(family)}
    return {name: (w == 0).float().mean().item() for name, w in weights.items()}


# ---------------------------------------------------------------- what changes, what does not


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize(("method", "pattern"), [("wanda", "unstructured"), ("admm-grad", "4:8")])
def test_all_that_should_be_pruned_is_and_nothing_else(
    family: str, method: str, pattern: str
) -> None:
    model, tokens = fam.build(family), fam.random_tokens()
    before = fam.snapshot(model)
    report = prune_model(model, tokens, method=method, sparsity=0.5, pattern=pattern)
    names = fam.pruned_names(family)
    assert zero_fractions(model, family) == dict.fromkeys(names, 0.5)
    # embeddings, norms, biases, head, projections outside the blocks: the same bits
    assert fam.changed(model, before) == {f"{name}.weight" for name in names}
    prefix = fam.FAMILIES[family].blocks
    assert {f"{prefix}.{layer.block}.{layer.name}" for layer in report.layers} == set(names)
    assert len(report.layers) == len(names)
    assert fam.hook_count(model) == 0
    with torch.no_grad():
        assert torch.isfinite(model(tokens).logits).all()
    for name in names if pattern == "4:8" else ():
        weight = fam.matrix_of(model.get_submodule(name))
        assert ((weight != 0).unflatten(1, (-1, 8)).sum(-1) == 4).all(), name


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_every_method_prunes_every_layer_to_the_target(method: str, sparsity: float) -> None:
    model = fam.build("llama")
    prune_model(model, fam.random_tokens(), method=method, sparsity=sparsity)
    for name, fraction in zero_fractions(model, "llama").items():
        rows, columns = model.get_submodule(name).weight.shape
        # Wanda rounds once an output, the others once a matrix
        rounding = 0.5 * rows if method == "wanda" else 0.5
        assert abs(fraction - sparsity) * rows * columns <= rounding + 1e-2, name


def test_a_tied_head_stays_tied_and_dense() -> None:
    model = fam.build("llama-tied")
    before = model.lm_head.weight.clone()
    prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.5)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, before)


def test_refitting_beats_masking_in_the_models_outputs() -> None:
    tokens = fam.random_tokens(32)
    dense = fam.build("llama")
    with torch.no_grad():
        expected = dense(tokens).logits
    distance = {}
    for method in METHOD_NAMES:
        model = copy.deepcopy(dense)
        prune_model(model, tokens, method=method, sparsity=0.5)
        with torch.no_grad():
            distance[method] = (model(tokens).logits - expected).norm().item()
    assert distance["admm-grad"] < distance["wanda"]
    assert distance["admm-grad"] < distance["magnitude"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_stay_so(dtype: torch.dtype) -> None:
    model = fam.build("llama").to(dtype)
    prune_model(model, fam.random_tokens(), method="admm-grad", sparsity=0.5)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert set(zero_fractions(model, "llama").values()) == {0.5}


def test_the_model_is_left_as_it_was_found_apart_from_its_weights() -> None:
    model, tokens = fam.build("opt"), fam.random_tokens()
    parameters = dict(model.named_parameters())
    config = copy.deepcopy(model.config.to_dict())
    model.train()
    before = tokens.clone()
    prune_model(model, tokens, method="admm1", sparsity=0.5)
    assert model.training and all(module.training for module in model.modules())
    assert model.config.to_dict() == config
    assert torch.equal(tokens, before)
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name] and parameter.requires_grad
        assert parameter.is_leaf and parameter.grad is None


def test_dropout_does_not_reach_the_statistics() -> None:
    calm, training = fam.build("opt"), fam.build("opt").train()
    for model in (calm, training):
        prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.5)
    assert not fam.changed(training, fam.snapshot(calm))


# ---------------------------------------------------------------- the order of things


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bloom", "opt"])
@pytest.mark.parametrize("method", ["wanda", "admm1"])
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


@pytest.mark.parametrize("family", ["llama", "bloom", "mpt", "falcon", "gemma3"])
def test_the_batch_size_does_not_change_the_answer(family: str) -> None:
    tokens = fam.random_tokens(6)
    masks = []
    for batch in (1, 2, 4, 100):
        model = fam.build(family)
        prune_model(model, tokens, method="wanda", sparsity=0.5, batch=batch)
        weights = [model.get_submodule(name).weight for name in fam.pruned_names(family)]
        masks.append(torch.cat([(weight == 0).flatten() for weight in weights]))
    for mask in masks[1:]:
        assert (mask == masks[0]).float().mean() > 0.999  # summing order moves the last bits


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_same_seed_same_bits(method: str) -> None:
    models = []
    for _ in range(2):
        model = fam.build("llama", seed=5)
        prune_model(model, fam.random_tokens(seed=9), method=method, sparsity=0.6)
        models.append(model)
    assert not fam.changed(models[1], fam.snapshot(models[0]))


def test_pruning_does_not_touch_the_random_state() -> None:
    model, tokens = fam.build("llama"), fam.random_tokens()
    state = torch.get_rng_state()
    prune_model(model, tokens, method="admm-grad", sparsity=0.5)
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------- report and hooks


def test_the_report_adds_up() -> None:
    model, tokens = fam.build("llama"), fam.random_tokens()
    dense = copy.deepcopy(model)
    report = prune_model(model, tokens, method="admm-grad", sparsity=0.6)
    zeros = total = 0
    for layer in report.layers:
        weight = model.get_submodule(f"model.layers.{layer.block}.{layer.name}").weight
        assert layer.shape == tuple(weight.shape)
        assert layer.sparsity == pytest.approx((weight == 0).double().mean().item(), abs=1e-12)
        assert 0 < layer.error < 1 and layer.damping == 0.1 and layer.dead_inputs == 0
        assert layer.seconds >= 0
        zeros, total = zeros + int((weight == 0).sum()), total + weight.numel()
    assert report.sparsity == pytest.approx(zeros / total, abs=1e-12)
    mean = sum(layer.error for layer in report.layers) / len(report.layers)
    assert report.error == pytest.approx(mean)
    assert (report.method, report.pattern) == ("admm-grad", "unstructured")
    spent = report.seconds
    assert {"total", "forward", "gram", "solve"} <= set(spent)
    assert 0 < spent["forward"] + spent["gram"] + spent["solve"] <= spent["total"]
    # the error of block 0, whose inputs are the dense model's: ‖XW − XŴ‖²/‖XW‖² by hand
    name = "model.layers.0.mlp.down_proj"
    x = fam.inputs_by_hook(dense, [name], tokens)[name].double()
    old, new = (x @ m.get_submodule(name).weight.double().T for m in (dense, model))
    expected = ((old - new).norm() ** 2 / old.norm() ** 2).item()
    reported = {(layer.block, layer.name): layer.error for layer in report.layers}
    assert reported[0, "mlp.down_proj"] == pytest.approx(expected, rel=1e-3)


def test_the_report_is_plain_json() -> None:
    model = fam.build("gpt2")
    for method, tokens in (("wanda", fam.random_tokens()), ("magnitude", None)):
        report = prune_model(model, tokens, method=method, pattern="2:4")
        values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert values["method"] == method and values["pattern"] == "2:4"
        assert values["sparsity"] == 0.5 and len(values["layers"]) == 8
        assert {"block", "name", "sparsity", "error", "damping", "seconds"} <= set(
            values["layers"][0]
        )


def test_progress_counts_every_layer_once_and_names_it() -> None:
    seen = []
    report = prune_model(
        fam.build("llama"), fam.random_tokens(), method="wanda", sparsity=0.5,
        progress=lambda done, total, name: seen.append((done, total, name)),
    )  # fmt: skip
    assert [done for done, _, _ in seen] == list(range(1, 15))
    assert {total for _, total, _ in seen} == {14}
    for (_, _, text), layer in zip(seen, report.layers, strict=True):
        assert layer.name in text and str(layer.block) in text


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


def test_a_method_of_ones_own_goes_through_the_whole_model() -> None:
    @register("test-only")
    def every_other(weight, gram, *, sparsity, pattern, keep=None, first=0):
        keep = torch.zeros_like(weight, dtype=torch.bool)
        keep[:, first::2] = True
        return LayerResult(weight * keep, keep)

    try:
        model = fam.build("gpt2")
        prune_model(model, fam.random_tokens(), method="test-only", sparsity=0.5, first=1)
    finally:
        METHODS.pop("test-only")
    for name in fam.pruned_names("gpt2"):
        weight = fam.matrix_of(model.get_submodule(name))
        assert not weight[:, ::2].any() and weight[:, 1::2].all()


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
    model = fam.build("llama")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(type(model), "forward", refuse)
    for block in model.model.layers:
        monkeypatch.setattr(block, "forward", refuse)
    report = prune_model(model, method="magnitude", sparsity=0.5)
    assert set(zero_fractions(model, "llama").values()) == {0.5}
    assert report.error is None and report.sparsity == 0.5
    assert all(layer.error is None and layer.damping is None for layer in report.layers)
    prune_model(model, None, method="magnitude", pattern="2:4")


def test_magnitude_prunes_the_smallest_of_each_matrix() -> None:
    model = fam.build("gpt2")
    dense = copy.deepcopy(model)
    prune_model(model, method="magnitude", sparsity=0.25)
    for name in fam.pruned_names("gpt2"):
        old, new = (m.get_submodule(name).weight.detach() for m in (dense, model))
        gone = new == 0
        assert old[gone].abs().max() <= old[~gone].abs().min()
        assert torch.equal(new[~gone], old[~gone])


# ---------------------------------------------------------------- bad input


def refused(model: nn.Module, tokens: object, **arguments: object) -> HelpersError:
    """The error of a call that must be refused, after checking that nothing has changed."""
    before = fam.snapshot(model)
    with pytest.raises(HelpersError) as caught:
        prune_model(model, tokens, **arguments)
    assert not fam.changed(model, before)
    assert fam.hook_count(model) == 0
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (dict(method="wnada", sparsity=0.5), UnknownMethod),
        (dict(method=None, sparsity=0.5), UnknownMethod),
        (dict(method="wanda"), BadSparsity),
        *((dict(method="wanda", sparsity=s), BadSparsity)
          for s in (1.0, -0.1, "half", 60, float("nan"), True)),
        *((dict(method="wanda", sparsity=0.5, pattern=p), BadPattern)
          for p in ("5:4", "2:0", "2-4", 3, None)),
        (dict(method="wanda", sparsity=0.6, pattern="2:4"), BadSparsity),
        (dict(method="wanda", pattern="2:5"), BadPattern),  # 5 does not divide 32
        (dict(method="admm-grad", sparsity=0.5, itrations=30), BadParameter),
        (dict(method="admm-grad", sparsity=0.5, rho=-1.0), BadParameter),
        (dict(method="admm-grad", sparsity=0.5, rho="1"), BadParameter),
        (dict(method="admm-grad", sparsity=0.5, schedule="papr"), BadParameter),
        (dict(method="admm-grad", sparsity=0.5, iterations=0), BadParameter),
        (dict(method="sparsegpt", sparsity=0.5, block_size=0), BadParameter),
        (dict(method="wanda", sparsity=0.5, damping=0.1), BadParameter),
        (dict(method="admm1", sparsity=0.5, keep=torch.ones(32, 32)), BadParameter),
        (dict(method="wanda", sparsity=0.5, batch=0), BadParameter),
        (dict(method="wanda", sparsity=0.5, batch=-2), BadParameter),
        (dict(method="wanda", sparsity=0.5, batch="4"), BadParameter),
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_request_changes_nothing(arguments: dict, error: type[HelpersError]) -> None:
    assert isinstance(refused(fam.build("llama"), fam.random_tokens(), **arguments), error)


@pytest.mark.parametrize(
    "case", ["none", "vector", "float", "empty", "outside", "negative", "list"]
)
def test_bad_calibration_changes_nothing(case: str) -> None:
    good = fam.random_tokens()
    tokens = {
        "none": None, "vector": good[0], "float": good.float(), "empty": good[:0],
        "outside": good + 90, "negative": good - 50, "list": good.tolist(),
    }[case]  # fmt: skip
    error = refused(fam.build("llama"), tokens, method="wanda", sparsity=0.5)
    assert isinstance(error, BadParameter | CalibrationTooShort)


@pytest.mark.parametrize("family", ["gpt2", "opt", "mpt"])
def test_sequences_longer_than_the_model_can_take_are_refused(family: str) -> None:
    # Learned positions have no row for token 129; MPT, which names its limit otherwise
    # (max_seq_len), has no column in its attention bias.
    tokens = fam.random_tokens(2, 200)
    error = refused(fam.build(family), tokens, method="wanda", sparsity=0.5)
    assert isinstance(error, BadParameter) and "128" in str(error)


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_fused_experts_are_refused_before_anything_changes(method: str) -> None:
    error = refused(fam.build_mixture(), fam.random_tokens(), method=method, sparsity=0.5)
    assert isinstance(error, UnsupportedModel) and "experts" in str(error)


def test_fused_experts_in_a_late_block_only() -> None:
    model = fam.build("llama")
    model.model.layers[1].mlp = fam.build_mixture().model.layers[0].mlp
    error = refused(model, fam.random_tokens(), method="magnitude", sparsity=0.5)
    assert isinstance(error, UnsupportedModel)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "admm-grad"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_number_in_a_weight_names_the_layer(method: str, value: float) -> None:
    model = fam.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    error = refused_nan(model, method)
    assert "block 1" in error and "mlp.down_proj" in error


def refused_nan(model: nn.Module, method: str) -> str:
    before = {k: torch.nan_to_num(v, nan=7.0) for k, v in fam.snapshot(model).items()}
    with pytest.raises(NonFinite) as caught:
        prune_model(model, fam.random_tokens(), method=method, sparsity=0.5)
    now = model.state_dict()
    assert all(torch.equal(torch.nan_to_num(now[k], nan=7.0), v) for k, v in before.items())
    assert "\n" not in str(caught.value) and fam.hook_count(model) == 0
    return str(caught.value)


@pytest.mark.parametrize(
    ("place", "named"),
    [("embedding", "block 0"), ("bias of block 0", "block 0"), ("norm of block 1", "block 1"),
     ("final norm", "logits")],
)  # fmt: skip
def test_bad_numbers_in_the_stream_stop_the_run(place: str, named: str) -> None:
    model = fam.build("qwen2")
    target = {
        "embedding": model.model.embed_tokens.weight,
        "norm of block 1": model.model.layers[1].input_layernorm.weight,
        "bias of block 0": model.model.layers[0].self_attn.q_proj.bias,
        "final norm": model.model.norm.weight,
    }[place]
    with torch.no_grad():
        target[int(fam.random_tokens()[0, 0]) if place == "embedding" else 3] = float("nan")
    assert named in refused_nan(model, "wanda")


def test_a_stream_that_overflows_on_late_text_only(one_line_error) -> None:
    # The first batch is harmless; a token of the last sequence overflows float16 on its way.
    model, tokens = fam.build("llama").half(), fam.random_tokens(4)
    tokens[tokens == 50] = 51
    tokens[3, 7] = 50
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = float("inf")
    with one_line_error(NonFinite):
        prune_model(model, tokens, method="wanda", sparsity=0.5, batch=1)


def test_a_model_that_fails_the_parity_gate_is_left_alone() -> None:
    # One capture replayed on the same batch would look fine: the gate must use other text.
    model = fam.build("llama")
    fam.let_rotations_depend_on_the_text(model)
    before = fam.snapshot(model)
    with pytest.raises(ParityError):
        prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.5)
    assert not fam.changed(model, before)


def test_an_error_in_a_late_layer_names_it_and_says_what_is_pruned_already() -> None:
    @register("test-only")
    def fails_late(weight, gram, *, sparsity, pattern, keep=None):
        calls.append(1)
        if len(calls) == 10:
            raise NotPositiveDefinite("gram cannot be factored")
        return METHODS["wanda"].__wrapped__(weight, gram, sparsity=sparsity, pattern=pattern)

    calls: list[int] = []
    try:
        with pytest.raises(NotPositiveDefinite) as caught:
            prune_model(fam.build("llama"), fam.random_tokens(), method="test-only", sparsity=0.5)
    finally:
        METHODS.pop("test-only")
    # the tenth layer is the third of block 1
    assert "block 1 self_attn.v_proj" in str(caught.value)
    assert "9 layers before it are already pruned" in str(caught.value) and "\n" not in str(
        caught.value
    )


def test_an_interrupt_leaves_no_hooks_and_the_models_mode() -> None:
    model = fam.build("llama").train()

    def stop(done: int, total: int, name: str) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.5, progress=stop)
    assert fam.hook_count(model) == 0 and model.training


def test_after_block_without_blocks_to_run_is_refused() -> None:
    error = refused(
        fam.build("llama"), None, method="magnitude", sparsity=0.5, after_block=lambda *_: None
    )
    assert isinstance(error, BadParameter) and "after_block" in str(error)
