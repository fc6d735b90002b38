"""ALPS against the paper's loop in numpy."""

import numpy as np
import pytest
from layers import layer, masked, objective

from helpers.paper.admm import exact_least_squares
from helpers.paper.gram import gram_of
from helpers.paper.methods import METHODS


def plain_alps(
    inputs,
    weight,
    sparsity=0.5,
    pattern="unstructured",
    rho=0.1,
    iterations=300,
    damping=0.01,
):
    """The mask (d_out, d_in) and the iterations made; W, D and V are (d_in, d_out) as in the paper.

    Each iteration solves with H + ρI; no eigenvectors.
    """
    x = inputs.double().numpy()
    norms = np.sqrt((x**2).sum(0))
    x = x / norms
    H = x.T @ x + damping * np.eye(len(norms))
    dense = (weight.double().numpy() * norms).T

    def project(point):
        return masked(np.abs(point.T), sparsity, pattern).T

    support = project(dense)
    D = dense * support
    V = np.zeros_like(dense)
    old = support
    for t in range(1, iterations + 1):
        W = np.linalg.solve(H + rho * np.eye(len(H)), H @ dense - V + rho * D)
        support = project(W + V / rho)
        D = (W + V / rho) * support
        V = V + rho * (W - D)
        if t % 3 == 0:
            change = int((support != old).sum())
            k = int(support.sum())
            if change == 0:
                break
            rho *= 1.3 if change >= 0.1 * k else 1.2 if change >= 0.005 * k else 1.1
            old = support
    return support.T, t


@pytest.mark.parametrize(
    "options",
    [
        dict(sparsity=0.6),
        dict(pattern="2:4"),
        dict(sparsity=0.8, rho=0.02),
        dict(sparsity=0.6, iterations=7),
        dict(sparsity=0.6, damping=0.2),
    ],
    ids=str,
)
def test_the_mask_is_that_of_the_papers_loop(options):
    inputs, weight = layer(24, 32, 200)
    gram = gram_of(inputs)
    result = METHODS["alps"](weight, gram, **options)
    expected, made = plain_alps(inputs, weight, **options)
    assert np.array_equal(result.keep.numpy(), expected)
    if "iterations" in options:
        assert made == options["iterations"]
    else:
        assert made > 20, "the penalty has to rise"
    damping = options.get("damping", 0.01)
    solved = exact_least_squares(weight, gram, result.keep, damping=damping)
    best = objective(weight, solved, gram, damping)
    assert objective(weight, result.weight, gram, damping) <= 1.001 * best
    assert result.damping == damping
