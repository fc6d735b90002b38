"""Gradient methods against exact least squares, torch's own optimisers and autograd."""

from __future__ import annotations

import math

import pytest
import torch

from helpers.admm import exact_least_squares
from helpers.errors import BadParameter, NonFinite
from helpers.gradient_methods import conjugate_gradients, gradient_refit

D_OUT, D_IN = 6, 12


def layer(seed: int = 0, tokens: int = 60) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight (6, 12), gram of correlated inputs of unequal scale, and a mask; all float64."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.eye(D_IN) + torch.randn(D_IN, D_IN, generator=draw) / 5
    scales = torch.logspace(-0.5, 0.5, D_IN)[torch.randperm(D_IN, generator=draw)]
    inputs = (torch.randn(tokens, D_IN, generator=draw) @ mixing * scales).double()
    weight = torch.randn(D_OUT, D_IN, generator=draw).double()
    keep = torch.rand(D_OUT, D_IN, generator=draw) > 0.5
    return weight, inputs.T @ inputs, keep


def damped(gram: torch.Tensor, damping: float) -> torch.Tensor:
    """D without dead inputs, by hand: the ridge weighs input i by n_i² = gram_ii."""
    return gram + damping * torch.diag(gram.diagonal())


def objective(
    new: torch.Tensor, weight: torch.Tensor, gram: torch.Tensor, damping: float
) -> torch.Tensor:
    change = new - weight
    return torch.trace(change @ damped(gram, damping) @ change.T)


def torch_path(
    optimiser: str, rate: float, steps: int, precondition: bool, damping: float = 0.1
) -> list[torch.Tensor]:
    """The weights after each step of torch's own optimiser on autograd's gradient.

    The parameter is scaled by n or, without preconditioning, by the root of mean(n²).
    """
    weight, gram, keep = layer()
    norms = gram.diagonal().sqrt()
    scale = norms if precondition else norms.square().mean().sqrt()
    current = (weight * scale * keep).requires_grad_()
    if optimiser == "adam":
        typical = current.detach()[keep].square().mean().sqrt().item()
        solver = torch.optim.Adam([current], lr=rate * typical)
    else:
        matrix = damped(gram, damping) / scale / (scale[:, None] if precondition else scale)
        largest = 2 * torch.linalg.eigvalsh(matrix)[-1].item()
        solver = torch.optim.SGD([current], lr=rate / largest, momentum=0.9)
    path = []
    for _ in range(steps):
        solver.zero_grad()
        objective(current * keep / scale, weight, gram, damping).backward()
        solver.step()
        path.append((current.detach() / scale).clone())
    return path


@pytest.mark.parametrize("precondition", [True, False])
@pytest.mark.parametrize(("optimiser", "rate"), [("adam", 0.05), ("sgd", 1.0)])
def test_every_step_is_torchs_own(optimiser: str, rate: float, precondition: bool) -> None:
    weight, gram, keep = layer()
    seen: list[torch.Tensor] = []
    gradient_refit(
        weight, gram, keep, optimiser=optimiser, learning_rate=rate, iterations=30,
        precondition=precondition, trace=lambda _, new, __: seen.append(new.clone()),
    )  # fmt: skip
    expected = torch_path(optimiser, rate, 30, precondition)
    assert len(seen) == 30
    # for "sgd" within what 100 power iterations leave of the largest eigenvalue
    tolerance = 1e-9 if optimiser == "adam" else 1e-6
    for found, wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("optimiser", "rate", "precondition", "steps", "damping"),
    # near the promised limit of 2 (1 + momentum) too
    [("adam", 0.01, True, 6000, 0.1), ("sgd", 1.0, False, 6000, 0), ("sgd", 3.7, True, 3000, 0.1)],
)
def test_gradient_methods_arrive_at_exact_least_squares(
    optimiser: str, rate: float, precondition: bool, steps: int, damping: float
) -> None:
    weight, gram, keep = layer()
    solved = gradient_refit(
        weight, gram, keep, optimiser=optimiser, learning_rate=rate, iterations=steps,
        damping=damping, precondition=precondition,
    )  # fmt: skip
    expected = exact_least_squares(weight, gram, keep, damping=damping)
    # Adam's steps do not vanish at the optimum: it stays about a learning rate away
    tolerance = 2 * rate if optimiser == "adam" else 1e-4
    torch.testing.assert_close(solved.weight, expected, rtol=tolerance, atol=tolerance)
    assert not torch.allclose(weight * keep, expected, rtol=0.1, atol=0.1)
    assert not solved.weight[~keep].any() and solved.damping == damping


@pytest.mark.parametrize(("precondition", "damping"), [(True, 0.1), (False, 0.0)])
def test_conjugate_gradients_finish_in_as_many_steps_as_weights_survive(
    precondition: bool, damping: float
) -> None:
    weight, gram, keep = layer()
    keep[0], keep[1] = False, True  # an output with nothing left, and one that lost nothing
    steps = int(keep.sum(1).max())
    expected = exact_least_squares(weight, gram, keep, damping=damping)
    settings = {"damping": damping, "precondition": precondition}
    solved = conjugate_gradients(weight, gram, keep, iterations=steps, **settings)
    torch.testing.assert_close(solved.weight, expected, rtol=1e-6, atol=1e-8)
    early = conjugate_gradients(weight, gram, keep, iterations=2, **settings)
    assert not torch.allclose(early.weight, expected, rtol=1e-2)
    # past the end nothing may break: residuals of 0 are divided by each other
    late = conjugate_gradients(weight, gram, keep, iterations=20 * steps, **settings)
    torch.testing.assert_close(late.weight, expected, rtol=1e-6, atol=1e-8)


def test_conjugate_gradients_are_least_in_their_krylov_space() -> None:
    # after one step the answer is the exact line search along the gradient, by hand
    weight, gram, keep = layer()
    start = (weight * keep).requires_grad_()
    objective(start * keep, weight, gram, 0.1).backward()
    slope, start = start.grad, start.detach()
    image = (slope @ damped(gram, 0.1)) * keep
    length = (slope**2).sum(1) / (2 * (slope * image).sum(1))
    solved = conjugate_gradients(weight, gram, keep, iterations=1, precondition=False)
    torch.testing.assert_close(solved.weight, start - length[:, None] * slope)


@pytest.mark.parametrize("precondition", [True, False])
def test_a_learning_rate_means_the_same_in_every_layer(precondition: bool) -> None:
    # larger weights or more text: the relative path must not change
    weight, gram, keep = layer()
    for optimiser, rate in (("adam", 0.01), ("sgd", 1.0)):
        settings = {"optimiser": optimiser, "learning_rate": rate, "iterations": 15}
        settings |= {"precondition": precondition}
        plain = gradient_refit(weight, gram, keep, **settings).weight
        larger = gradient_refit(8 * weight, gram, keep, **settings).weight
        longer = gradient_refit(weight, 100 * gram, keep, **settings).weight
        torch.testing.assert_close(larger, 8 * plain, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(longer, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("precondition", "damping"), [(True, 0.1), (False, 0.0)])
def test_dead_inputs_and_float32(damping: float, precondition: bool) -> None:
    weight, gram, keep = layer()
    gram[3], gram[:, 3] = 0, 0
    before = weight.clone(), gram.clone(), keep.clone()
    alive = torch.arange(D_IN) != 3
    expected = exact_least_squares(weight, gram, keep, damping=damping)[:, alive].float()
    solved = conjugate_gradients(
        weight.float(), gram.float(), keep, iterations=40, damping=damping,
        precondition=precondition,
    ).weight  # fmt: skip
    assert solved.dtype == torch.float32 and torch.isfinite(solved).all()
    torch.testing.assert_close(solved[:, alive], expected, rtol=1e-3, atol=1e-3)
    gradient_refit(weight, gram, keep, optimiser="sgd", learning_rate=1.0, iterations=3)
    conjugate_gradients(weight, gram, keep, iterations=3)
    assert all(map(torch.equal, (weight, gram, keep), before)), "arguments are left alone"


def test_conjugate_gradients_start_from_a_given_weight(one_line_error) -> None:
    weight, gram, keep = layer()
    expected = exact_least_squares(weight, gram, keep, damping=0.1)
    # one iteration from the optimum stays there, and only the support counts
    solved = conjugate_gradients(weight, gram, keep, iterations=1, start=expected + ~keep)
    torch.testing.assert_close(solved.weight, expected, rtol=1e-6, atol=1e-8)
    with one_line_error(BadParameter, "start"):
        conjugate_gradients(weight, gram, keep, iterations=1, start=weight[:-1])


@pytest.mark.parametrize(
    "options",
    [
        {"optimiser": "adagrad"}, {"learning_rate": 0.0}, {"iterations": 0}, {"damping": -1.0},
        {"precondition": 1}, {"momentum": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_bad_options(options: dict, one_line_error) -> None:
    weight, gram, keep = layer()
    settings = {"optimiser": "sgd", "learning_rate": 1.0, "iterations": 2} | options
    with one_line_error(BadParameter, next(iter(options))):
        gradient_refit(weight, gram, keep, **settings)


def test_bad_numbers_and_masks(one_line_error) -> None:
    weight, gram, keep = layer()
    with one_line_error(NonFinite, "sgd diverged", "learning rate"):
        gradient_refit(weight, gram, keep, optimiser="sgd", learning_rate=100.0, iterations=2000)
    broken = weight.clone()
    broken[0, 0] = math.inf
    with one_line_error(NonFinite, "weight"):
        conjugate_gradients(broken, gram, keep, iterations=2)
    with one_line_error(BadParameter, "keep"):
        conjugate_gradients(weight, gram, keep.float(), iterations=2)
    with one_line_error(BadParameter, "gram"):
        conjugate_gradients(weight, gram[:-1, :-1], keep, iterations=2)
    zero = torch.zeros_like(gram)
    with one_line_error(BadParameter, "gram is zero"):
        gradient_refit(weight, zero, keep, optimiser="sgd", learning_rate=1.0, iterations=2,
                       damping=0.0)  # fmt: skip
