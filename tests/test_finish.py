"""The optimum of a mask and its certificate, against exact least squares."""

from __future__ import annotations

import dataclasses
import math

import families as fam
import pytest
import torch
from layers import layer, objective, random_keep

from helpers.admm import exact_least_squares
from helpers.errors import BadParameter, NonFinite
from helpers.finish import Finished, certify, finish
from helpers.gram import gram_of
from helpers.methods import METHODS, check_options, register
from helpers.prune import prune_model


def problem(sparsity: float = 0.6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    inputs, weight = layer(10, 24, 90)
    return weight, gram_of(inputs), random_keep(weight.shape, sparsity)


def true_gap(
    weight: torch.Tensor, gram: torch.Tensor, keep: torch.Tensor, new: torch.Tensor, damping: float
) -> float:
    """(f − f*)/f*, with the optimum solved for in float64."""
    best = exact_least_squares(weight.double(), gram.double(), keep, damping=damping)
    least = objective(weight, best, gram, damping).item()
    return objective(weight, new, gram, damping).item() / least - 1


@pytest.mark.parametrize("damping", [0.01, 0.1])
@pytest.mark.parametrize("sparsity", [0.2, 0.8])
def test_the_answer_is_the_optimum_and_the_proof_holds(sparsity: float, damping: float) -> None:
    weight, gram, keep = problem(sparsity)
    keep[0], keep[1] = False, True  # nothing left, and nothing lost
    solved = finish(weight, gram, keep, damping=damping, tolerance=1e-7)
    expected = exact_least_squares(weight, gram, keep, damping=damping)
    torch.testing.assert_close(solved.weight, expected, rtol=1e-2, atol=1e-3)
    assert not solved.weight[~keep].any() and solved.damping == damping
    gap = true_gap(weight, gram, keep, solved.weight, damping)
    assert gap - 1e-6 <= solved.gap <= 1e-7


@pytest.mark.parametrize("iterations", [0, 1, 3, 10, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_proof_holds_wherever_it_stops(iterations: int, dtype: torch.dtype) -> None:
    weight, gram, keep = problem()
    settings = dict(tolerance=0.0, iterations=iterations)
    solved = finish(weight.to(dtype), gram, keep, damping=0.1, **settings)
    gap = true_gap(weight, gram, keep, solved.weight, 0.1)
    assert solved.weight.dtype == dtype and solved.iterations <= iterations
    found = objective(weight, solved.weight, gram, 0.1).item()
    assert solved.objective == pytest.approx(found, rel=1e-5)
    assert solved.gap is None or solved.gap >= gap - 1e-6
    # no eigenvalue is above d_in + 0.1, so no bound can be further off than that over 0.1
    if solved.gap is not None and gap > 1e-5:
        assert solved.excess <= 250 * gap * found


def test_the_bound_by_hand() -> None:
    # Independent inputs of norm 1: D = 1.1 I, and f is 1.1 times the squared distance. Of
    # w = (3, 4) the second is pruned. At ŵ = (2, 0) f = 1.1 (1 + 16) = 18.7, and the optimum is
    # 17.6. The residual is 1.1 · 1, so the excess of 1.1 is bounded by 1.21/0.1 = 12.1.
    weight, keep = torch.tensor([[3.0, 4.0]]), torch.tensor([[True, False]])
    found = certify(weight, torch.eye(2), keep, torch.tensor([[2.0, 9.0]]))
    assert found.objective == pytest.approx(18.7) and found.excess == pytest.approx(12.1)
    assert found.gap == pytest.approx(12.1 / (18.7 - 12.1))
    assert torch.equal(found.weight, torch.tensor([[2.0, 0.0]])) and found.iterations == 0
    # too far away to prove anything, and nothing lost at all
    assert certify(weight, torch.eye(2), keep, torch.tensor([[0.0, 0.0]])).gap is None
    dense = certify(weight, torch.eye(2), keep | True, weight)
    assert (dense.gap, dense.objective) == (0.0, 0.0)
    assert Finished(weight, keep, 0.0, 2.0, math.inf, 5).gap is None


def test_it_stops_when_it_is_proved_or_when_rounding_is_all_that_is_left() -> None:
    weight, gram, keep = problem()
    assert finish(weight, gram, keep, tolerance=0.1).iterations == 10
    exact = exact_least_squares(weight, gram, keep, damping=0.1)
    arrived = finish(weight, gram, keep, start=exact)
    assert arrived.iterations == 0 and torch.allclose(arrived.weight, exact, rtol=1e-6)
    # 10 + 20 + 40 and so on until rounding is all that is left, not all of a million
    assert finish(weight, gram, keep, tolerance=0.0, iterations=10**6).iterations <= 1000
    # without damping nothing is proved, and the answer is right all the same
    plain = finish(weight, gram, keep, damping=0.0, iterations=100)
    expected = exact_least_squares(weight, gram, keep, damping=0.0)
    torch.testing.assert_close(plain.weight, expected, rtol=1e-3, atol=1e-3)
    assert plain.gap is None and plain.iterations == 100


def test_bad_arguments(one_line_error) -> None:
    weight, gram, keep = problem()
    for options in (dict(tolerance=-1.0), dict(iterations=-1), dict(damping=-0.1)):
        with one_line_error(BadParameter, next(iter(options))):
            finish(weight, gram, keep, **options)
    with one_line_error(BadParameter, "start"):
        finish(weight, gram, keep, start=weight[:-1])
    with one_line_error(BadParameter, "keep"):
        finish(weight, gram, keep.float())
    with one_line_error(NonFinite, "diverged"):
        finish(weight, gram, keep, start=weight * math.nan)


# ---------------------------------------------------------------- an option of every method


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt", "admm1", "admm-grad", "alps"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_every_method_can_be_finished(name: str, pattern: str) -> None:
    inputs, weight = layer(10, 24, 90)
    gram, target = gram_of(inputs), dict(sparsity=0.5, pattern=pattern)
    plain = METHODS[name](weight, gram, **target)
    done = METHODS[name](weight, gram, **target, finish=True)
    swapped = METHODS[name](weight, gram, **target, swap=50, finish=True)
    assert torch.equal(done.keep, plain.keep) and done.damping == (plain.damping or 0.1)
    expected = exact_least_squares(weight, gram, done.keep, damping=done.damping)
    torch.testing.assert_close(done.weight, expected, rtol=1e-2, atol=1e-2)
    assert (plain.gap is None) == (name != "alps") and 0 <= done.gap <= 1e-4
    before, after = (objective(weight, r.weight, gram, r.damping) for r in (done, swapped))
    assert after <= before * (1 + 1e-5) and swapped.gap <= 1e-4
    assert torch.equal(swapped.keep.sum(1), done.keep.sum(1))


def test_options_after_a_method_are_checked(one_line_error) -> None:
    inputs, weight = layer()
    gram = gram_of(inputs)
    for option in (dict(finish=1), dict(swap=-1), dict(swap=True), dict(swap=0.5)):
        with one_line_error(BadParameter, next(iter(option))):
            METHODS["wanda"](weight, gram, sparsity=0.5, **option)
        with one_line_error(BadParameter, next(iter(option))):
            check_options("admm1", option)
    for option in (dict(finish=True), dict(swap=3)):
        with one_line_error(BadParameter, "'magnitude'", "calibration", "finish"):
            METHODS["magnitude"](weight, sparsity=0.5, **option)
    with one_line_error(BadParameter, "finsh", "finish", "swap"):
        METHODS["magnitude"](weight, sparsity=0.5, finsh=True)

    def taken(weight, gram, *, sparsity, pattern, keep=None, swap=3):
        return None

    with one_line_error(BadParameter, "'swap'", "every method"):
        register("taken")(taken)


def test_a_model_is_pruned_and_finished() -> None:
    tokens = fam.random_tokens()
    reports = {}
    for option in ({}, {"finish": True}, {"swap": 5, "finish": True}):
        target = dict(method="sparsegpt", sparsity=0.5)
        reports[str(option)] = prune_model(fam.build("llama"), tokens, **target, **option)
    plain, done, swapped = reports.values()
    assert {layer.gap for layer in plain.layers} == {None}
    assert all(layer["gap"] <= 1e-4 for layer in done.to_dict()["layers"])
    assert swapped.error < done.error < plain.error
    assert swapped.sparsity == plain.sparsity
    model = fam.build("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BadParameter, match="calibration"):
        prune_model(model, method="magnitude", sparsity=0.5, finish=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert dataclasses.asdict(done.layers[0])["gap"] == done.layers[0].gap
