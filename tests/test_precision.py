"""Products in bfloat16: in the passes of the text, and nowhere else."""

import contextlib
import copy

import families as fam
import pytest
import torch

from helpers import METHODS, prune_model
from helpers.device import products
from helpers.errors import BadParameter
from helpers.paper.admm import exact_least_squares, refit
from helpers.paper.fast import fused
from helpers.paper.gradient_methods import conjugate_gradients, gradient_refit
from helpers.paper.gram import gram_of, relative_error
from helpers.paper.masks import top_k

SETTINGS = dict(method="wanda", sparsity=0.5, batch=2)


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


@contextlib.contextmanager
def rounding_switch():
    """With this a processor that can rounds the factors of products to bfloat16."""
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


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
    assert near > max(far, 0.995)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_model_in_half_precision_has_its_own(one_line_error):
    model = fam.build().half()
    with one_line_error(BadParameter, "precision", "float16"):
        prune_model(model, fam.random_tokens(), precision="bfloat16", **SETTINGS)


def by_gradient(optimiser, rate):
    return lambda *layer: gradient_refit(
        *layer, optimiser=optimiser, learning_rate=rate, iterations=5
    )


SOLVERS = {
    name: lambda weight, gram, _, name=name: METHODS[name](weight, gram, sparsity=0.5)
    for name in ("sparsegpt", "admm-grad", "alps")
} | {
    "refit": refit,
    "cg": lambda *layer: conjugate_gradients(*layer, iterations=5),
    "adam": by_gradient("adam", 0.1),
    "sgd": by_gradient("sgd", 1.0),
}


@pytest.mark.parametrize("lowered", [rounding_switch, autocast])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_callers_precision_does_not_reach_grams_solvers_and_errors(solver, lowered):
    inputs = torch.randn(600, 256)
    weight = torch.randn(192, 256)
    keep = top_k(weight.abs(), 0.5)

    def solve():
        gram = gram_of(inputs)
        result = SOLVERS[solver](weight, gram, keep)
        again = relative_error(weight, result.weight, gram)
        exact = exact_least_squares(weight[:4], gram, keep[:4])
        return gram, result.weight, exact, torch.tensor([again, result.error or 0.0])

    expected = solve()
    with lowered():
        found = solve()
    assert all(map(torch.equal, found, expected))


def test_the_first_iterations_of_admm_alone_may_round(monkeypatch):
    precisions = []
    seen = []

    @contextlib.contextmanager
    def noted(precision, _device):
        precisions.append(precision)
        yield
        precisions.pop()

    def note(*_):
        seen.append(precisions[-1])

    monkeypatch.setattr(fused, "products", noted)
    start, matrix = torch.randn(3, 4), torch.eye(4)
    fused.admm(start, matrix, iterations=7, choose=note, trace=note)
    # of an iteration, and of what its trace computes
    assert seen == 2 * ["tf32", "exact"] + 5 * ["exact", "exact"]


def test_tf32_is_for_a_gpu_that_is_asked_for_it():
    switches = torch.backends.cuda.matmul
    before = switches.fp32_precision
    # a model's passes keep what the caller has set
    wanted = {"tf32": "tf32", "exact": "ieee", "float32": before}
    for precision, value in wanted.items():
        with products(precision, "cuda"):
            assert switches.fp32_precision == value
        assert switches.fp32_precision == before
