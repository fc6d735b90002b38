"""Products in bfloat16: in the passes of the text, and nowhere else."""

import contextlib
import copy

import families as fam
import pytest
import torch

from helpers import METHODS, prune_model, register
from helpers.admm import exact_least_squares, refit
from helpers.device import products
from helpers.errors import BadParameter
from helpers.gradient_methods import conjugate_gradients, gradient_refit
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


@pytest.mark.parametrize("method", ["sparsegpt", "admm-grad", "alps", "wanda"])
@pytest.mark.parametrize("allowed", ["medium", "autocast"])
def test_a_callers_precision_does_not_reach_grams_and_solvers(allowed, method):
    """With "medium" a processor that can rounds the factors of products to bfloat16."""
    inputs = torch.randn(600, 256)
    weight = torch.randn(192, 256)
    expected = METHODS[method](weight, gram_of(inputs), sparsity=0.5)
    with lowered(allowed):
        found = METHODS[method](weight, gram_of(inputs), sparsity=0.5)
    assert torch.equal(found.weight, expected.weight)
    assert found.error == expected.error


FIXED = {
    "error": lambda weight, gram, keep: relative_error(weight, weight * keep, gram),
    "refit": lambda *given: refit(*given).weight,
    "exact": exact_least_squares,
    "cg": lambda *given: conjugate_gradients(*given, iterations=5).weight,
    "adam": lambda *given: (
        gradient_refit(*given, optimiser="adam", learning_rate=0.1, iterations=5).weight
    ),
    "sgd": lambda *given: (
        gradient_refit(*given, optimiser="sgd", learning_rate=1.0, iterations=5).weight
    ),
}


@pytest.mark.parametrize("allowed", ["medium", "autocast"])
@pytest.mark.parametrize("what", FIXED)
def test_nor_errors_and_solvers_on_one_mask(what, allowed):
    """As they are called by a notebook, or by the block loop where outputs are weighted."""
    weight = torch.randn(96, 128)
    given = weight, gram_of(torch.randn(300, 128)), top_k(weight.abs(), 0.5)
    expected = torch.as_tensor(FIXED[what](*given))
    with lowered(allowed):
        assert torch.equal(torch.as_tensor(FIXED[what](*given)), expected)


def test_tf32_is_for_a_gpu_that_is_asked_for_it():
    switches = torch.backends.cuda.matmul
    before = switches.fp32_precision
    for precision, value in (("tf32", "tf32"), ("exact", "ieee"), ("float32", before)):
        with products(precision, "cuda"):
            assert switches.fp32_precision == value
        assert switches.fp32_precision == before
