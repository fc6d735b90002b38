"""`guide` and `owl`: the zeros add up to the weight, and each rule says what it should by hand."""

import contextlib
import math

import families as fam
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers import prune_model
from helpers.beyond import allocation
from helpers.beyond.allocation import guide, owl, share_out
from helpers.errors import BadParameter, NonFinite
from helpers.model.models import model_layers, read_weight

OUTLIERS = 2.5  # tiny random layers have no score of 5 times the mean


def shares_of(rule, model, tokens, **target):
    if rule == "owl":
        return owl(model, tokens, outliers=OUTLIERS, **target)
    return guide(model, tokens, **target).sparsity


def float64(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


# ---------------------------------------------------------------- the number of zeros


@pytest.mark.parametrize(
    "family, ignore", [("llama-tied", "1.*.v_proj"), ("gpt2", "0.attn*"), ("phi", "")]
)
@pytest.mark.parametrize("rule", ["owl", "guide"])
def test_the_zeros_of_the_pruned_model_are_as_many_as_wanted(family, ignore, rule):
    model = fam.build(family)
    tokens = fam.random_tokens()
    before = fam.snapshot(model)
    # a sparsity that nothing divides, so that every layer's share is rounded
    sparsity = 0.6180339
    which = {"ignore": [ignore] if ignore else []}
    shares = shares_of(rule, model, tokens, sparsity=sparsity, spread=0.1, **which)
    assert not fam.changed(model, before)
    assert len(set(shares.values())) > 1
    request = dict(method="admm1", iterations=2, **which)
    report = prune_model(model, tokens, sparsity=shares, **request)
    assert not shares.keys() & set(report.ignored)
    assert bool(report.ignored) == bool(ignore)
    weights = {key: read_weight(layer) for key, layer in model_layers(model).items()}
    for key, share in shares.items():
        size = weights[key].numel()
        assert (weights[key] == 0).sum() == round(share * size), key
        assert abs(share - sparsity) < 0.1 + 1 / size
    kept = torch.cat([weights[key].flatten() != 0 for key in shares])
    assert (~kept).sum() == round(sparsity * len(kept))


def test_sharing_out_by_hand():
    sizes = float64(10, 10, 5)
    none = 0 * sizes
    first = float64(0.45, 0.25, 0.35)
    # 4.5 + 2.5 + 1.75 zeros and t = 0.01: of 4.6, 2.6 and 1.8 two are rounded up
    assert share_out(sizes, lambda t: first + t, 9, none, sizes - 1) == [4, 3, 2]
    # past the number: all layers go the same part of the way
    jump = lambda t: none + (0.2 if t < 1 else 0.8)  # noqa: E731
    assert share_out(sizes, jump, 12, none, sizes - 1) == [5, 5, 2]


@settings(deadline=None)
@given(
    layers=st.lists(
        st.tuples(st.integers(2, 500), st.floats(-1, 1)), min_size=1, max_size=6
    ),
    sparsity=st.floats(0, 0.99),
    spread=st.floats(0, 1),
)
def test_zeros_add_up_and_one_number_explains_them_all(layers, sparsity, spread):
    sizes, wishes = (float64(*column) for column in zip(*layers, strict=True))
    high = torch.minimum(sizes * min(1.0, sparsity + spread), sizes - 1)
    low = torch.minimum(sizes * max(0.0, sparsity - spread), high)
    total = round(sparsity * int(sizes.sum()))
    assume(total <= high.sum() + 0.5)
    counts = float64(*share_out(sizes, lambda t: wishes + t, total, low, high))
    assert counts.sum() == total
    assert (low - 1 < counts).all() and (counts < high + 1).all()
    assert (counts < sizes).all()
    # the numbers t for which each layer's share, within its limits, rounds to its count
    least = ((counts - 1) / sizes - wishes)[counts - 1 >= low]
    most = ((counts + 1) / sizes - wishes)[counts + 1 <= high]
    assert max(least, default=-math.inf) < min(most, default=math.inf) + 1e-9


# ---------------------------------------------------------------- the rules, by hand


def test_owl_by_hand():
    model = fam.build()
    tokens = fam.random_tokens()
    inputs = fam.inputs_by_hook(model, fam.pruned_names("llama"), tokens)
    ratios = []
    for names in fam.blocks_of("llama"):
        weights = {name: model.get_submodule(name).weight for name in names}
        scores = [w.abs() * inputs[n].norm(dim=0) for n, w in weights.items()]
        block = torch.cat([score.flatten() for score in scores])
        ratios.append((block > OUTLIERS * block.mean()).float().mean())
    # blocks of one size: the one with more outliers is at 0.6 − 0.08, the other at 0.6 + 0.08
    first, second = (0.52, 0.68) if ratios[0] > ratios[1] else (0.68, 0.52)
    shares = owl(model, tokens, sparsity=0.6, outliers=OUTLIERS).values()
    expected = [first] * 7 + [second] * 7
    assert list(shares) == pytest.approx(expected, abs=1 / 512)


# a matrix of 32 · 32 too, whose transpose has the same shape
@pytest.mark.parametrize("name", ["mlp.c_fc", "attn.c_proj"])
def test_fishers_costs_are_those_of_the_gradients(name):
    model = fam.build("gpt2")
    tokens = fam.random_tokens(3)
    parameter = model.transformer.h[1].get_submodule(name).weight
    squares = torch.zeros_like(parameter)
    for row in tokens:
        loss = model(row[None], labels=row[None]).loss * (len(row) - 1)
        squares += torch.autograd.grad(loss, parameter)[0] ** 2
    with allocation.surveyed(model, tokens) as survey:
        curve, _ = allocation.fisher(survey)
        at = list(survey.layers).index(f"1.{name}")
    order = survey.score(f"1.{name}").flatten().argsort(stable=True)
    terms = (squares * parameter.detach() ** 2).T.flatten()[order].double()
    # a place of the order belongs to the part place · 100 // places; the cost of a part is never
    # below that of the parts before it
    parts = torch.arange(len(order)) * 100 // len(order)
    logs = (parts.bincount(terms) / len(order)).log().cummax(0).values
    rising = [part for part in range(1, 100) if logs[part] > logs[part - 1] + 0.01]
    assert len(rising) > 5
    for part in rising:
        # halfway between the costs of two parts the curve is halfway between their middles
        middle = curve(logs[part - 1 : part + 1].mean().item())[at]
        assert middle == pytest.approx(part / 100, abs=2e-4)


SCORES = torch.rand(40, 60, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "score",
    [SCORES, (7 * SCORES).round(), 0 * SCORES, SCORES[:1]],
    ids=["distinct", "ties", "one value", "fewer than parts"],
)
def test_levels_are_those_of_a_stable_sort(score):
    order = score.flatten().argsort(stable=True)
    expected = torch.empty(len(order), dtype=torch.uint8)
    expected[order] = (torch.arange(len(order)) * 100 // len(order)).to(torch.uint8)
    assert torch.equal(allocation.levels_of(score), expected.view(score.shape))


def test_levels_take_no_memory_for_places():
    """Nothing larger than the scores is made: places, int64, take 8 bytes a weight."""
    score = torch.rand(400, 600)
    with torch.profiler.profile(profile_memory=True) as profile:
        allocation.levels_of(score)
    used = [event.self_cpu_memory_usage for event in profile.events()]
    assert max(used) <= score.nbytes


@pytest.mark.parametrize(
    "family, name", [("llama", "mlp.up_proj"), ("gpt2", "mlp.c_fc")]
)
def test_importance_is_the_slope_of_each_output(family, name):
    # one layer by hand, from autograd's own gradients of each sequence
    model = fam.build(family)
    tokens = fam.random_tokens(sequences=3)
    path = f"{fam.FAMILIES[family].blocks}.1.{name}"
    norms = fam.inputs_by_hook(model, [path], tokens)[path].norm(dim=0)
    layer = model.get_submodule(path)
    slopes = 0
    for row in tokens:
        # the mean over its predictions; a factor does not matter
        loss = model(row[None], labels=row[None]).loss
        (gradient,) = torch.autograd.grad(loss, layer.weight)
        if family == "gpt2":
            gradient = gradient.T
        slopes += (gradient / norms).square().mean(1)
    expected = slopes.sqrt().sqrt()  # r to the power 0.5
    importance = guide(model, tokens, sparsity=0.6).importance[f"1.{name}"]
    expected /= expected.mean()
    torch.testing.assert_close(importance, expected, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- the model stays as it was


@pytest.mark.parametrize("rule", ["owl", "guide"])
@pytest.mark.parametrize("stopped", [False, True])
def test_the_model_is_left_as_it_was(rule, stopped):
    model = fam.build("gpt2").train()
    before = fam.snapshot(model)
    frozen = model.transformer.wpe.weight
    kept = model.transformer.h[0].mlp.c_fc.weight
    frozen.requires_grad_(False)
    kept.grad = torch.ones_like(kept)
    state = torch.get_rng_state()

    def step(_done, _total, name):
        if stopped and (name != "calibration text" or rule == "owl"):
            raise KeyboardInterrupt

    # without gradients, as a caller may have set it
    with contextlib.suppress(KeyboardInterrupt), torch.no_grad():
        shares_of(rule, model, fam.random_tokens(), sparsity=0.5, progress=step)
        assert not stopped
    assert not fam.changed(model, before)
    assert fam.hook_count(model) == 0
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter is not frozen), name
        assert (parameter.grad is not None) == (parameter is kept), name
        assert not parameter._post_accumulate_grad_hooks, name
    assert torch.equal(kept.grad, torch.ones_like(kept))


@pytest.mark.parametrize(
    "rule, change, words",
    [
        (owl, {"outliers": 0}, "outliers 0"),
        # no weight would stay in some layer
        (owl, {"sparsity": 0.9999}, "sparsity 0.9999"),
        (guide, {"tokens": None}, "tokens"),
        (guide, {"tokens": torch.full((2, 1), 5)}, "2 tokens"),
    ],
)
def test_bad_requests(rule, change, words, one_line_error):
    arguments = {"tokens": fam.random_tokens(), "sparsity": 0.5} | change
    with one_line_error(BadParameter, words):
        rule(fam.build(), **arguments)


@pytest.mark.parametrize(
    "rule, sparsity, pattern, words",
    [
        ("guide", None, "2:4", "2:4"),
        ("owl", 0.5, "4:8", "4:8"),
        ("gudie", 0.6, "unstructured", "'guide'"),
        ("", None, "unstructured", "sparsity"),
    ],
)
def test_an_allocation_is_refused_before_a_model_is_loaded(
    rule, sparsity, pattern, words, one_line_error
):
    with one_line_error(BadParameter, words):
        allocation.check_allocation(rule, sparsity, pattern)


@pytest.mark.parametrize(
    "place, named",
    [("mlp.down_proj", "block 1"), ("input_layernorm", "1.self_attn.q")],
)
def test_models_with_numbers_that_are_not_finite(place, named, one_line_error):
    model = fam.build()
    model.model.layers[1].get_submodule(place).weight.data.fill_(math.nan)
    with one_line_error(NonFinite, named):
        guide(model, fam.random_tokens(), sparsity=0.5)
