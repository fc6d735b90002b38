"""`allocate`: the budget is met to the weight, and each rule says what it should by hand."""

import math

import families as fam
import pytest
import torch
from torch import Tensor, nn

from helpers import prune_model
from helpers.beyond import survey
from helpers.beyond.allocate import RULES, allocate, guide, levels_of, share_out, shifted
from helpers.errors import (
    BadParameter,
    HelpersError,
    NonFinite,
)
from helpers.models import find_blocks, find_layers, read_weight

OWL = dict(rule="owl", outliers=2.5)  # tiny random layers have no score of 5 times the mean
REQUESTS = [dict(rule="uniform"), OWL, *(dict(rule=r) for r in ("icp", "measured", "fisher"))]
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def names(request: dict) -> str:
    return request["rule"]


def keys_of(family: str) -> list[str]:
    layers = fam.FAMILIES[family].layers
    return [f"{index}.{name}" for index in range(fam.FAMILIES[family].depth) for name in layers]


def float64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# ---------------------------------------------------------------- the budget


@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "phi"])
@pytest.mark.parametrize("request_", REQUESTS, ids=names)
def test_the_zeros_of_the_pruned_model_are_the_budget(family: str, request_: dict) -> None:
    model, tokens = fam.build(family), fam.random_tokens()
    # a dimension that nothing divides, so that every layer's share is rounded
    sparsity = 0.6180339
    before = fam.snapshot(model)
    found = allocate(model, tokens, sparsity=sparsity, spread=0.1, **request_)
    assert not fam.changed(model, before)
    assert set(found) == set(keys_of(family)) and len(set(found.values())) > 1
    prune_model(model, tokens, method="admm1", sparsity=found, iterations=2)
    zeros = total = 0
    for key, name in zip(keys_of(family), fam.pruned_names(family), strict=True):
        weight = model.get_submodule(name).weight
        gone = int((weight == 0).sum())
        assert gone == round(found[key] * weight.numel()), key
        assert abs(gone - sparsity * weight.numel()) < 0.1 * weight.numel() + 1
        zeros, total = zeros + gone, total + weight.numel()
    assert zeros == round(sparsity * total)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "admm-grad"])
def test_every_method_meets_the_budget(method: str) -> None:
    model, tokens = fam.build("llama"), fam.random_tokens()
    found = allocate(model, tokens, sparsity=0.55, **OWL)
    options = dict(budget="matrix") if method == "wanda" else {}
    prune_model(model, tokens, method=method, sparsity=found, **options)
    weights = [model.get_submodule(name).weight for name in fam.pruned_names("llama")]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros == round(0.55 * sum(weight.numel() for weight in weights))


def test_uniform_needs_no_text_and_is_one_number_where_that_divides() -> None:
    found = allocate(fam.build("llama"), None, sparsity=0.5, rule="uniform")
    assert set(found.values()) == {0.5} and list(found) == keys_of("llama")


def test_sharing_out_by_hand() -> None:
    sizes, none = float64(10, 10, 5), float64(0, 0, 0)
    # 4.5 + 2.5 + 1.75 zeros and t = 0.01: of 4.6, 2.6 and 1.8 two are rounded up
    wishes = shifted(float64(0.45, 0.25, 0.35))
    assert share_out(sizes, wishes, 9, none, sizes - 1) == [4, 3, 2]
    # the second layer may not lose more than 3: the others make up for it
    assert share_out(sizes, wishes, 16, none, float64(9, 3, 4)) == [9, 3, 4]
    # a curve that jumps past the budget: all layers go the same part of the way
    jump = lambda t: float64(0.2, 0.2, 0.2) if t < 1 else float64(0.8, 0.8, 0.8)  # noqa: E731
    assert share_out(sizes, jump, 12, none, sizes - 1) == [5, 5, 2]


# ---------------------------------------------------------------- the rules, by hand


def test_owl_by_hand() -> None:
    model, tokens = fam.build("llama"), fam.random_tokens()
    layers, prefix = fam.FAMILIES["llama"].layers, "model.layers"
    inputs = fam.inputs_by_hook(model, fam.pruned_names("llama"), tokens)
    ratios = []
    for index in range(2):
        scores = [
            model.get_submodule(name).weight.abs() * inputs[name].norm(dim=0)
            for name in (f"{prefix}.{index}.{layer}" for layer in layers)
        ]
        block = torch.cat([score.flatten() for score in scores])
        ratios.append((block > 2.5 * block.mean()).float().mean().item())
    found = allocate(model, tokens, sparsity=0.6, **OWL)
    # blocks of one size: the one with more outliers is at 0.6 − 0.08, the other at 0.6 + 0.08
    sign = 1 if ratios[0] > ratios[1] else -1
    for key, value in found.items():
        expected = 0.6 - 0.08 * sign * (1 if key.startswith("0.") else -1)
        assert value == pytest.approx(expected, abs=1 / 512), key


def test_owls_ratio_on_a_small_matrix() -> None:
    # three blocks of one layer; inputs of norms 1 and 2 make these scores, of which above twice
    # their mean are 3.2 > 3.1, one in four; none; and 3.1 > 2.525, one in eight
    weights = {
        "0.a": [[1.0, 0.5], [-1.0, -1.6]],  # 1, 1, 1, 3.2
        "1.a": [[1.0, -0.5], [1.0, 0.5]],  # 1, 1, 1, 1
        "2.a": [[1.0, -0.5], [-1.0, 0.5], [1.0, 0.5], [3.1, 0.5]],
    }
    layers = {}
    for key, rows in weights.items():
        layers[key] = nn.Linear(2, len(rows))
        layers[key].weight.data = torch.tensor(rows)
    norms, inputs = dict.fromkeys(layers, torch.tensor([1.0, 2.0])), dict.fromkeys(layers, 0)
    seen = survey.Survey(None, None, layers, [[key] for key in layers], norms, inputs, None)
    curve = RULES["owl"][0](seen, 0.5, 0.1, outliers=2.0)
    torch.testing.assert_close(curve(0.1), float64(0.4, 0.6, 0.5))


@pytest.mark.parametrize(
    ("family", "first", "last", "more"),
    [
        # weights: q 32 · 32, k and v 16 · 32, down 32 · 64
        ("llama", QKV, "mlp.down_proj", 0.12 * 2048 / 2048),
        ("opt", QKV, "fc2", 0.12 * 3072 / 2048),  # k, v, q of 32 · 32
        ("gpt2", ("attn.c_attn",), "mlp.c_proj", 0.12 * 3072 / 4096),  # 32 · 96, 128 · 32
    ],
)
def test_icp_by_hand(family: str, first: tuple[str, ...], last: str, more: float) -> None:
    model = fam.build(family)
    found = allocate(model, fam.random_tokens(), sparsity=0.6, rule="icp", spread=0.3)
    for key, value in found.items():
        name = key.partition(".")[2]
        expected = 0.48 if name in first else 0.6 + more * (name == last)
        assert value == pytest.approx(expected, abs=1 / 512), key


@pytest.mark.parametrize("rule", ["measured", "fisher"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_layer_whose_output_is_ignored_loses_most(rule: str, family: str) -> None:
    # the MLP of block 1 is multiplied by zero: what feeds it costs nothing
    model, tokens = fam.build(family), fam.random_tokens()
    block = model.get_submodule(fam.FAMILIES[family].blocks)[1]
    down, feeding = {
        "llama": ("mlp.down_proj", ("mlp.gate_proj", "mlp.up_proj")),
        "gpt2": ("mlp.c_proj", ("mlp.c_fc",)),
    }[family]
    with torch.no_grad():
        block.get_submodule(down).weight.zero_()
    found = allocate(model, tokens, sparsity=0.5, rule=rule, spread=0.2)
    ignored = {f"1.{name}" for name in feeding}
    for key, value in found.items():
        if key in ignored:
            assert value == pytest.approx(0.7, abs=1 / 256), key
    others = [value for key, value in found.items() if key not in ignored | {f"1.{down}"}]
    assert min(others) < 0.4


def test_measured_makes_the_cost_of_the_next_weight_equal(monkeypatch) -> None:
    # divergences of 1, 2, 4 … for the groups of one block: within the range, all layers' next
    # weight costs c/n · q(s)², q the normal quantile of (1 + s)/2
    calls = iter(range(1000))
    monkeypatch.setattr(
        "helpers.beyond.allocate.divergence_and_gradient",
        lambda *_: (2.0 ** (next(calls) // 2 % 4), None),
    )
    model, tokens = fam.build("llama"), fam.random_tokens()
    found = allocate(model, tokens, sparsity=0.5, rule="measured", spread=0.49, windows=2, bands=1)
    groups = {0: QKV, 1: ("self_attn.o_proj",), 2: ("mlp.gate_proj", "mlp.up_proj"),
              3: ("mlp.down_proj",)}  # fmt: skip
    sizes = {0: 2048, 1: 1024, 2: 4096, 3: 2048}
    margins = []
    for key, value in found.items():
        group = next(g for g, members in groups.items() if key.partition(".")[2] in members)
        quantile = torch.distributions.Normal(0, 1).icdf(torch.tensor((1 + value) / 2)).item()
        margins.append(2.0**group / sizes[group] * quantile**2)
    assert max(margins) == pytest.approx(min(margins), rel=0.02)


# a matrix of 32 · 32 too, whose transpose has the same shape
@pytest.mark.parametrize("name", ["mlp.c_fc", "attn.c_proj"])
def test_fishers_costs_are_those_of_the_gradients(name: str) -> None:
    model, tokens = fam.build("gpt2"), fam.random_tokens(3)
    parameter = model.transformer.h[1].get_submodule(name).weight
    squares = torch.zeros_like(parameter)
    for row in tokens:
        loss = model(row[None], labels=row[None]).loss * (len(row) - 1)
        squares += torch.autograd.grad(loss, parameter)[0] ** 2
    layers, blocks = survey.layers_of(model)
    seen = survey.survey(model, tokens, layers, blocks, lambda *_: None)
    curve, at = RULES["fisher"][0](seen, 0.5, 0.1), list(layers).index(f"1.{name}")
    order = seen.score(f"1.{name}").flatten().argsort(stable=True)
    terms = (squares * parameter.detach() ** 2).T.flatten()[order].double()
    # a place of the order belongs to the part place · 100 // places; the cost of a part is never
    # below that of the parts before it
    logs, compared = [], 0
    for part in range(100):
        members = [i for i in range(len(order)) if i * 100 // len(order) == part]
        log = math.log(terms[members].sum().item() / len(order))
        logs.append(max([log, *logs[-1:]]))
    for part in range(1, 100):
        if logs[part] > logs[part - 1] + 0.01:
            # halfway between the costs of two parts the curve is halfway between their middles
            compared += 1
            middle = curve((logs[part] + logs[part - 1]) / 2)[at]
            assert middle == pytest.approx(part / 100, abs=2e-4)
    assert compared > 5


def test_levels_are_equal_parts_of_the_order() -> None:
    score = torch.randperm(1000).reshape(20, 50)
    assert torch.equal(levels_of(score), (score // 10).to(torch.uint8))


def test_inputs_are_numbered_by_who_shares_them() -> None:
    model = fam.build("phi")  # attention and MLP side by side: fc1 reads what q, k and v read
    layers, blocks = survey.layers_of(model)
    seen = survey.survey(model, fam.random_tokens(), layers, blocks, lambda *_: None)
    parts = dict(zip(fam.FAMILIES["phi"].layers, (0, 0, 0, 1, 0, 2), strict=True))
    assert seen.inputs == {f"{i}.{name}": number for i in (0, 1) for name, number in parts.items()}


# ---------------------------------------------------------------- the model stays as it was


class Stop(Exception):
    """Made up."""


@pytest.mark.parametrize("request_", REQUESTS[1:], ids=names)
@pytest.mark.parametrize("stopped", [False, True])
def test_the_model_is_left_as_it_was(request_: dict, stopped: bool) -> None:
    model, tokens = fam.build("gpt2").train(), fam.random_tokens()
    before = fam.snapshot(model)
    frozen, kept = model.transformer.wpe.weight, model.transformer.h[0].mlp.c_fc.weight
    frozen.requires_grad_(False)
    kept.grad = torch.ones_like(kept)
    state, steps = torch.get_rng_state(), []

    def step(done: int, total: int, name: str) -> None:
        steps.append((done, total, name))
        if stopped and (name != "calibration text" or request_["rule"] in ("owl", "icp")):
            raise Stop

    if stopped:
        with pytest.raises(Stop):
            allocate(model, tokens, sparsity=0.5, progress=step, **request_)
    else:
        with torch.no_grad():  # as a caller may have set it
            allocate(model, tokens, sparsity=0.5, progress=step, **request_)
        assert steps[-1][0] == steps[-1][1]
    assert not fam.changed(model, before) and fam.hook_count(model) == 0
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter is not frozen), name
        assert (parameter.grad is not None) == (parameter is kept), name
        assert not parameter._post_accumulate_grad_hooks, name
    assert torch.equal(kept.grad, torch.ones_like(kept))


def test_an_error_inside_a_trial_leaves_the_weights(monkeypatch) -> None:
    def fail(*_: object) -> float:
        raise Stop

    model = fam.build("llama")
    before = fam.snapshot(model)
    monkeypatch.setattr("helpers.beyond.allocate.divergence_and_gradient", fail)
    with pytest.raises(Stop):
        allocate(model, fam.random_tokens(), sparsity=0.5, rule="measured")
    assert not fam.changed(model, before)


def test_gradients_lie_in_memory_one_at_a_time(monkeypatch) -> None:
    model, most = fam.build("llama"), 0
    count = torch.bincount

    def look(*arguments: object) -> Tensor:
        nonlocal most
        most = max(most, sum(p.grad is not None for p in model.parameters()))
        return count(*arguments)

    monkeypatch.setattr("torch.bincount", look)
    allocate(model, fam.random_tokens(), sparsity=0.5, rule="fisher")
    assert most == 1


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("error", "words", "request_"),
    [
        (BadParameter, ["rule 'olw'", "'owl'"], dict(rule="olw")),
        (BadParameter, ["no option 'windows'", "outliers"], dict(rule="owl", windows=3)),
        (BadParameter, ["no option 'less'", "none"], dict(rule="fisher", less=0.1)),
        (BadParameter, ["outliers 0", "above 0"], dict(rule="owl", outliers=0)),
        (BadParameter, ["less 2", "from 0 to 1"], dict(rule="icp", less=2)),
        (BadParameter, ["windows 0", "whole"], dict(rule="measured", windows=0)),
        (BadParameter, ["bands 1.5", "whole"], dict(rule="measured", bands=1.5)),
        (BadParameter, ["spread -1", "0 or more"], dict(rule="icp", spread=-1)),
        (BadParameter, ["2 tokens"], dict(rule="fisher", tokens=torch.full((2, 1), 5))),
        (BadParameter, ["tokens"], dict(rule="owl", tokens=None)),
        (BadParameter, ["at least one"], dict(rule="owl", tokens=torch.ones(0, 4).long())),
        (BadParameter, ["'2:4'", "nothing to share out"], dict(rule="owl", pattern="2:4")),
        (BadParameter, ["5:4"], dict(rule="owl", pattern="5:4")),
        (BadParameter, ["60 % write 0.6"], dict(rule="uniform", sparsity=60)),
        (BadParameter, ["no weight in some layer"], dict(rule="uniform", sparsity=0.9999)),
    ],
    ids=str,
)
def test_bad_requests(error: type[HelpersError], words: list, request_: dict,
                      one_line_error) -> None:  # fmt: skip
    model = fam.build("llama")
    with one_line_error(error, *words):
        request_ = dict(dict(tokens=fam.random_tokens(), sparsity=0.5), **request_)
        allocate(model, request_.pop("tokens"), **request_)


def test_models_that_are_refused(one_line_error) -> None:
    tokens = fam.random_tokens()
    with one_line_error(BadParameter, "no language model"):
        allocate(None, tokens, sparsity=0.5, rule="owl")
    model = fam.build("llama")
    prune_model(model, tokens, method="wanda", sparsity=0.5)
    with one_line_error(BadParameter, "pruned this model before"):
        allocate(model, tokens, sparsity=0.5, rule="owl")
    for weight, words in (("mlp.down_proj", ["block 1"]), ("input_layernorm", ["1.self_attn.q"])):
        model = fam.build("llama")
        with torch.no_grad():
            model.model.layers[1].get_submodule(weight).weight.fill_(math.nan)
        with one_line_error(NonFinite, *words):
            allocate(model, tokens, sparsity=0.5, rule="owl")


# ---------------------------------------------------------------- the guide


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_guide_is_the_fisher_rule_and_the_slope_of_each_output(family: str) -> None:
    model, tokens = fam.build(family), fam.random_tokens(sequences=3)
    before = fam.snapshot(model)
    found = guide(model, tokens, sparsity=0.6, spread=0.2)
    assert not fam.changed(model, before)
    assert found.sparsity == allocate(model, tokens, sparsity=0.6, rule="fisher", spread=0.2)
    # one layer by hand, from autograd's own gradients of each sequence
    block, name = (1, "mlp.up_proj") if family == "llama" else (1, "mlp.c_fc")
    layer = find_layers(find_blocks(model)[block])[name]
    inputs, slopes = [], torch.zeros(read_weight(layer).shape[0])
    hook = layer.register_forward_pre_hook(lambda _l, args: inputs.append(args[0].detach()))
    gradients = []
    for row in tokens:
        loss = torch.nn.functional.cross_entropy(
            model(input_ids=row[None]).logits[0, :-1], row[1:], reduction="sum"
        )
        (gradient,) = torch.autograd.grad(loss, layer.weight)
        gradients.append(gradient.T if family == "gpt2" else gradient)
    hook.remove()
    norms = torch.cat(inputs).flatten(0, 1).norm(dim=0)
    for gradient in gradients:
        slopes += (gradient / norms).square().mean(1)
    expected = slopes.sqrt().sqrt()  # r to the power 0.5
    torch.testing.assert_close(
        found.importance[f"{block}.{name}"], expected / expected.mean(), rtol=1e-3, atol=1e-4
    )


def test_an_output_that_nothing_reads_is_the_least_important() -> None:
    model, tokens = fam.build(), fam.random_tokens(sequences=3)
    with torch.no_grad():
        find_layers(find_blocks(model)[0])["mlp.down_proj"].weight[:, 5] = 0
    found = guide(model, tokens, sparsity=0.5)
    for name in ("0.mlp.up_proj", "0.mlp.gate_proj"):
        importance = found.importance[name]
        assert importance.argmin() == 5 and importance[5] < 0.1 and importance.min() > 0
        assert importance.mean() == pytest.approx(1.0, rel=1e-5)
    # and prune_model takes both as they are
    report = prune_model(
        model, tokens, method="admm-grad", sparsity=found.sparsity, importance=found.importance
    )
    assert report.sparsity == pytest.approx(0.5, abs=1e-4)


def test_the_guide_refuses_what_allocate_refuses() -> None:
    model, tokens = fam.build(), fam.random_tokens(sequences=3)
    for change, message in (
        ({"pattern": "2:4"}, "nothing to share out"),
        ({"power": -1}, "power"),
        ({"sparsity": 1.0}, "sparsity"),
    ):
        with pytest.raises(HelpersError, match=message):
            guide(model, tokens, **{"sparsity": 0.5} | change)
