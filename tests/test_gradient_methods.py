"""Gradient methods against exact least squares, torch's own optimisers and autograd."""

from __future__ import annotations

import pytest
import torch
from layers import layer, objective, random_keep

from helpers.errors import NonFinite
from helpers.paper.admm import exact_least_squares
from helpers.paper.gradient_methods import conjugate_gradients, gradient_refit


def problem():
    """Weight (6, 12), gram of correlated inputs of unequal scale, and a mask; all float64."""
    inputs, weight = (tensor.double() for tensor in layer(6, 12, 60))
    return weight, inputs.T @ inputs, random_keep(weight.shape)


def torch_path(optimiser, rate, steps, precondition, damping, momentum):
    """The weights after each step of torch's own optimiser on autograd's gradient.

    The parameter is scaled by n or, without preconditioning, by the root of mean(n²).
    """
    weight, gram, keep = problem()
    norms = gram.diagonal().sqrt()
    scale = norms if precondition else norms.square().mean().sqrt()
    current = (weight * scale * keep).requires_grad_()
    if optimiser == "adam":
        typical = current.detach()[keep].square().mean().sqrt().item()
        solver = torch.optim.Adam([current], lr=rate * typical)
    else:
        matrix = gram + damping * torch.diag(gram.diagonal())  # no input is dead
        matrix = matrix / scale / (scale[:, None] if precondition else scale)
        largest = 2 * torch.linalg.eigvalsh(matrix)[-1].item()
        solver = torch.optim.SGD([current], lr=rate / largest, momentum=momentum)
    path = []
    for _ in range(steps):
        solver.zero_grad()
        objective(weight, current * keep / scale, gram, damping).backward()
        solver.step()
        path.append((current.detach() / scale).clone())
    return path


@pytest.mark.parametrize("precondition", [True, False])
@pytest.mark.parametrize(
    "optimiser, rate, damping, momentum",
    [("adam", 0.05, 0.1, 0.9), ("sgd", 1.0, 0.1, 0.9), ("sgd", 1.0, 0.0, 0.5)],
)
def test_every_step_is_torchs_own(optimiser, rate, damping, momentum, precondition):
    (weight, gram, keep) = problem()
    seen = []
    options = dict(optimiser=optimiser, learning_rate=rate, precondition=precondition)
    options |= dict(
        momentum=momentum, trace=lambda _, new, __: seen.append(new.clone())
    )
    options |= dict(damping=damping)
    solved = gradient_refit(weight, gram, keep, iterations=30, **options)
    assert solved.damping == damping
    assert not solved.weight[~keep].any()
    torch.testing.assert_close(solved.weight, seen[-1])
    expected = torch_path(optimiser, rate, 30, precondition, damping, momentum)
    # for "sgd" within what 100 power iterations leave of the largest eigenvalue
    tolerance = 1e-9 if optimiser == "adam" else 1e-6
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("precondition, damping", [(True, 0.1), (False, 0.0)])
def test_conjugate_gradients_finish_in_as_many_steps_as_weights_survive(
    precondition, damping
):
    weight, gram, keep = problem()
    # an output with nothing left, one that lost nothing
    keep[0] = False
    keep[1] = True
    options = dict(damping=damping, precondition=precondition)
    expected = exact_least_squares(weight, gram, keep, damping=damping)
    steps = int(keep.sum(1).max())
    # past the end nothing may break: residuals of 0 are divided by each other
    for iterations in (steps, 20 * steps):
        options["iterations"] = iterations
        found = conjugate_gradients(weight, gram, keep, **options).weight
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_a_learning_rate_that_is_too_large(one_line_error):
    options = dict(optimiser="sgd", learning_rate=100.0, iterations=2000)
    with one_line_error(NonFinite, "sgd", "learning rate"):
        gradient_refit(*problem(), **options)
