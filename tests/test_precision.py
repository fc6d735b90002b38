"""Products in bfloat16: in the passes of the text, and nowhere else."""

import contextlib
import copy

import families as fam
import pytest
import torch

from helpers import METHODS, prune_model, register
from helpers.device import float32_products
from helpers.errors import BadParameter
from helpers.gram import Gram, gram_of, relative_error
from helpers.masks import top_k

SETTINGS = dict(method="wanda", sparsity=0.5, batch=2)


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_are_fitted_to_what_bfloat16_gives(family, passes):
    tokens = fam.random_tokens(8)
    model = fam.build(family)
    by_hand = copy.deepcopy(model)
    exact = copy.deepcopy(model)
    prune_model(model, tokens, passes=passes, precision="bfloat16", **SETTINGS)
    prune_model(exact, tokens, passes=passes, **SETTINGS)
    groups = fam.blocks_of(family)
    if passes == 1:  # each layer after those that the model calls before it
        names = fam.pruned_names(family)
        groups = [[name] for name in fam.inputs_by_hook(by_hand, names, tokens)]
    fam.prune_by_hand(by_hand, groups, tokens, forward=autocast)
    masks = [fam.kept(m, family) for m in (model, by_hand, exact)]
    near, far = ((masks[0] == other).float().mean() for other in masks[1:])
    assert near > 0.995
    assert near > far
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("passes", [1, 2])
def test_grams_and_methods_are_in_float32(passes, registry):
    seen = []

    @register("test-only")
    def method(weight, gram, *, sparsity, pattern, keep=None):
        seen.append(torch.is_autocast_enabled("cpu"))
        return METHODS["wanda"].__wrapped__(
            weight, gram, sparsity=sparsity, pattern=pattern
        )

    settings = SETTINGS | dict(method="test-only", passes=passes)
    prune_model(fam.build(), fam.random_tokens(), precision="bfloat16", **settings)
    assert len(seen) > 14
    assert not any(seen)
    assert not torch.is_autocast_enabled("cpu")
    rows = torch.randn(50, 20)
    gram = Gram(20)
    with autocast():
        gram.add(rows)
    torch.testing.assert_close(gram.matrix, rows.T @ rows)


def test_a_model_in_half_precision_has_its_own(one_line_error):
    model = fam.build().half()
    with one_line_error(BadParameter, "precision", "float16"):
        prune_model(model, fam.random_tokens(), precision="bfloat16", **SETTINGS)


@pytest.mark.parametrize("method", ["sparsegpt", "admm-grad", "alps", "wanda"])
def test_a_callers_precision_does_not_reach_grams_and_solvers(method):
    """With "medium" a processor that can rounds the factors of products to bfloat16."""
    inputs = torch.randn(600, 256)
    weight = torch.randn(192, 256)
    expected = METHODS[method](weight, gram_of(inputs), sparsity=0.5)
    torch.set_float32_matmul_precision("medium")
    try:
        rounded = inputs.T @ inputs
        found = METHODS[method](weight, gram_of(inputs), sparsity=0.5)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found.weight, expected.weight)
    assert found.error == expected.error
    if torch.equal(rounded, inputs.T @ inputs):
        pytest.skip("this processor does its products in float32 with any setting")


@pytest.mark.parametrize("allowed", ["medium", "autocast"])
def test_a_callers_precision_does_not_reach_the_error_of_a_layer(allowed):
    weight = torch.randn(512, 512)
    new = weight * top_k(weight.abs(), 0.5)
    gram = gram_of(torch.randn(600, 512))
    expected = relative_error(weight, new, gram)
    with lowered(allowed):
        assert relative_error(weight, new, gram) == expected


@contextlib.contextmanager
def lowered(allowed):
    """What a caller may have allowed for a model: the switch of the process, or autocast."""
    if allowed == "autocast":
        with autocast():
            yield
        return
    torch.set_float32_matmul_precision(allowed)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tf32_is_for_a_gpu_that_is_asked_for_it():
    switches = torch.backends.cuda.matmul
    before = switches.fp32_precision
    for tf32, value in ((True, "tf32"), (False, "ieee")):
        with float32_products("cuda", tf32=tf32):
            assert switches.fp32_precision == value
        assert switches.fp32_precision == before
