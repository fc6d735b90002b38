"""The solver against exact restricted least squares and against the paper's loop in numpy.

Everything on the right-hand side of a comparison is written here, in float64, from the
mathematics: nothing is shared with the package.
"""

import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from layers import layer, masked, outputs_error, random_keep

from helpers.errors import BadParameter, NonFinite
from helpers.paper.admm import (
    admm,
    damped_system,
    exact_least_squares,
    fixed_mask,
    gradual_mask,
    refit,
)
from helpers.paper.gram import Gram, gram_of
from helpers.paper.methods import METHODS

# ---------------------------------------------------------------- exact least squares


def restricted_lstsq(inputs, weight, keep, damping):
    """min ‖X(w − ŵ)‖² + damping·‖n ⊙ (w − ŵ)‖², ŵ zero outside keep, one output at a time.

    In inputs scaled to unit norm n the damped gram is G + damping·mean(diag G)·I with
    diag G = 1; in the original units that ridge weighs input i by n_i². It is written here as
    extra rows sqrt(damping)·diag(n) of X, and solved by numpy's lstsq on X itself, not on XᵀX.
    """
    x = inputs.double().numpy()
    w = weight.double().numpy()
    kept = keep.numpy()
    norms = np.sqrt((x**2).sum(0))
    stacked = np.vstack([x, math.sqrt(damping) * np.diag(norms)])
    solved = np.zeros_like(w)
    for row in range(len(w)):
        support = np.flatnonzero(kept[row])
        answer = np.linalg.lstsq(stacked[:, support], stacked @ w[row], rcond=None)[0]
        solved[row, support] = answer
    return solved


def distance(solved, expected, inputs):
    """The largest difference in units of the output, relative to the largest weight there."""
    norms = inputs.double().norm(dim=0).numpy()
    difference = np.abs((solved.double().numpy() - expected) * norms)
    return difference.max() / np.abs(expected * norms).max()


@pytest.mark.parametrize(
    "damping, rho, sparsity, precondition",
    [
        (0.0, 1.0, 0.3, True),
        (0.1, 4.0, 0.6, True),
        (0.7, 1.0, 0.5, True),
        (0.1, 0.3, 0.5, False),
    ],
)
def test_many_iterations_reach_the_exact_restricted_optimum(
    damping, rho, sparsity, precondition
):
    inputs, weight = layer(12, 16, 80)
    keep = random_keep(weight.shape, sparsity)
    options = dict(rho=rho, damping=damping, precondition=precondition)
    solved = refit(weight, gram_of(inputs), keep, iterations=3000, **options)
    expected = restricted_lstsq(inputs, weight, keep, damping)
    assert distance(solved.weight, expected, inputs) < 1e-3
    assert not solved.weight[~keep].any()
    assert solved.damping == damping


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_exact_least_squares_is_exact(damping):
    inputs, weight = layer(12, 16, 80)
    keep = random_keep(weight.shape, 0.6)
    # an output with nothing left, one with everything
    keep[0] = False
    keep[1] = True
    gram = inputs.double().T @ inputs.double()
    solved = exact_least_squares(weight.double(), gram, keep, damping=damping)
    expected = restricted_lstsq(inputs, weight, keep, damping)
    np.testing.assert_allclose(solved.numpy(), expected, rtol=1e-6, atol=1e-8)
    assert exact_least_squares(weight.half(), gram, keep).dtype == torch.float16


def test_exact_least_squares_survives_singular_grams():
    inputs, weight = layer(12, 16, tokens=5)  # fewer tokens than inputs
    inputs[:, 2] = 0
    keep = random_keep(weight.shape)
    solved = exact_least_squares(weight, gram_of(inputs), keep)
    best = torch.from_numpy(restricted_lstsq(inputs, weight, keep, 0.0))
    least = outputs_error(inputs, weight, best)
    assert outputs_error(inputs, weight, solved) <= least + 1e-3


@pytest.mark.parametrize("name", ["admm1", "admm-grad"])
@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.6},
        {"sparsity": 0.6, "damping": 0.3, "rho": 4.0, "iterations": 16},
        {"sparsity": 0.6, "precondition": False},
        {"pattern": "2:4"},
        {"keep": random_keep((12, 16))},
    ],
    ids=" ".join,
)
def test_a_method_can_finish_at_the_optimum_of_its_mask(name, options):
    inputs, weight = layer(12, 16, 80)
    gram = gram_of(inputs)
    usual = METHODS[name](weight, gram, **options)
    exact = METHODS[name](weight, gram, finish="exact", **options)
    assert torch.equal(exact.keep, usual.keep)
    assert exact.damping == usual.damping == options.get("damping", 0.1)
    expected = restricted_lstsq(inputs, weight, exact.keep, exact.damping)
    assert distance(exact.weight, expected, inputs) < 1e-5
    assert distance(usual.weight, expected, inputs) > 1e-4


# ---------------------------------------------------------------- the paper's loop


def paper_loop(
    weight,
    gram,
    *,
    keep=None,
    sparsity=0.5,
    pattern="unstructured",
    budget="matrix",
    schedule="paper",
    rho=1.0,
    damping=0.1,
    iterations=20,
    mask_steps=15,
    precondition=True,
):
    """The loop with W, Z, U of shape (d_in, d_out), as the paper has them; (Z, keep) transposed."""
    if pattern == "1:4":
        sparsity = 0.75
    # the released code prunes at once where it is unstructured with a budget per matrix only
    released = (schedule, pattern, budget) == ("released", "unstructured", "matrix")
    w = weight.double().numpy()
    g = gram.double().numpy()
    alive = np.diag(g) > 0
    n = np.where(alive, np.sqrt(np.diag(g)), 1.0)
    G = g / np.outer(n, n)
    G = G + damping * np.diag(G).mean() * np.eye(len(n))
    scale = n
    if not precondition:  # one scale for all inputs, and the same quadratic form
        scale = np.full(len(n), math.sqrt((n[alive] ** 2).mean()))
        G = np.diag(n) @ G @ np.diag(n) / scale[0] ** 2
    W0 = W = scale[:, None] * w.T
    U = np.zeros_like(W)
    inverse = np.linalg.inv(G + rho * np.eye(len(n)))
    for t in range(1, iterations + 1):
        if keep is not None:
            now = keep.numpy().T
        elif t <= max(mask_steps, 1):
            s = sparsity
            if mask_steps and not released:
                s -= sparsity * (1 - t / mask_steps) ** 3
            score = np.abs(W + U) * (alive * n / scale)[:, None]
            now = masked(score.T, s, pattern, budget).T
        Z = (W + U) * now
        U = U + W - Z
        W = inverse @ (G @ W0 + rho * (Z - U))
    return ((W + U) * now / scale[:, None]).T, now.T


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("precondition", [True, False])
def test_refit_is_the_papers_loop_on_one_mask(precondition, seed):
    inputs, weight = layer(1 + seed, 8 * (1 + seed % 3), 100, seed)
    inputs *= 10.0 ** (3 * (seed % 3 - 1))
    inputs[:, 3] *= seed % 2  # dead, or not
    keep = random_keep(weight.shape, seed / 11, seed)  # all kept, and none
    options = dict(rho=0.5 + seed / 4, damping=seed / 22, iterations=1 + 2 * seed)
    options |= dict(precondition=precondition, keep=keep)
    gram = gram_of(inputs)
    expected, _ = paper_loop(weight, gram, **options)
    solved = refit(weight, gram, **options)
    assert torch.equal(solved.keep, keep)
    assert not solved.weight[~keep].any()
    np.testing.assert_allclose(solved.weight.numpy(), expected, rtol=1e-3, atol=1e-3)
    # a mask that is given needs no mask steps, however few the iterations are
    for name in ("admm1", "admm-grad"):
        assert torch.equal(METHODS[name](weight, gram, **options).weight, solved.weight)


OPTIONS = [
    {},
    dict(rho=2.0, damping=0.3, iterations=18),
    dict(precondition=False),
    dict(budget="output"),
    dict(pattern="2:4"),
    dict(pattern="4:8", budget="output"),
]
OF_GRAD = [
    dict(mask_steps=5, iterations=12),
    dict(pattern="1:4"),
    *({"schedule": "released"} | options for options in OPTIONS[3:5] + [{}]),
]


@pytest.mark.parametrize(
    "name, options",
    [(name, each) for name in ("admm1", "admm-grad") for each in OPTIONS]
    + [("admm-grad", each) for each in OF_GRAD],
    ids=str,
)
@pytest.mark.parametrize("dead", [False, True])
def test_methods_are_the_papers_loop(name, options, dead):
    inputs, weight = layer(20, 32, 160)
    weight[0] *= 10  # a budget per output is then another one
    if dead:
        inputs[:, 5] = 0
        weight[:, 5] *= 100  # so large that only its input can say that it goes
    gram = gram_of(inputs)
    if "pattern" not in options:
        options = options | dict(sparsity=0.7)
    solved = METHODS[name](weight, gram, **options)
    if name == "admm1":  # one mask, Wanda's
        options = options | dict(mask_steps=0)
    expected, keep = paper_loop(weight, gram, **options)
    assert np.array_equal(solved.keep.numpy(), keep)
    assert not dead or not keep[:, 5].any()
    bound = 1e-4 if "precondition" in options else 3e-5
    assert distance(solved.weight, expected, inputs) < bound
    if dead or not options.keys().isdisjoint(("precondition", "budget", "schedule")):
        return  # which the loop to be read does not have
    # the loop to be read, with the projections that stand beside it
    G, norms = damped_system(gram.double(), options.get("damping", 0.1))
    W0 = weight.double() * norms
    sparsity = options.get("sparsity", 0.75 if "1:4" in options.values() else 0.5)
    of_mask = {k: v for k, v in options.items() if k == "pattern"}
    if "mask_steps" in options:
        of_mask["steps"] = options["mask_steps"]
    of_loop = {k: v for k, v in options.items() if k in ("rho", "iterations")}
    given = random_keep(weight.shape)
    chosen = fixed_mask(torch.from_numpy(keep))
    projections = [
        ({}, chosen if name == "admm1" else gradual_mask(sparsity, **of_mask)),
        ({"keep": given}, fixed_mask(given)),
    ]
    for more, project in projections:
        expected, keep = paper_loop(weight, gram, **options | more)
        new = admm(W0, G, project, **of_loop)
        assert np.array_equal(new != 0, keep)
        np.testing.assert_allclose(new / norms, expected, rtol=1e-8, atol=1e-9)


def test_the_loop_takes_any_projection():
    """Whole numbers: what W is pulled to, and what comes out."""
    inputs, weight = layer(4, 8, 40)
    G, norms = damped_system(gram_of(inputs), 0.1)
    seen = []

    def project(T, t):
        seen.append(t)
        return (T / norms).round() * norms

    W0 = 5 * weight * norms
    Z = admm(W0, G, project, iterations=7) / norms
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]
    torch.testing.assert_close(Z, Z.round())
    assert Z.any()


def test_steps_of_a_gradual_mask_that_cannot_be(one_line_error):
    W0 = torch.randn(4, 8)
    for steps in (0, -1, 1.5, True, "3"):
        with one_line_error(BadParameter, "steps", repr(steps)):
            gradual_mask(0.5, steps=steps)
    for steps, iterations in ((30, 20), (8, 7)):
        with one_line_error(BadParameter, f"steps {steps}", f"{iterations} iterations"):
            admm(
                W0, torch.eye(8), gradual_mask(0.5, steps=steps), iterations=iterations
            )
    Z = admm(W0, torch.eye(8), gradual_mask(0.5, steps=7), iterations=7)
    assert int((Z == 0).sum()) == 16


# ---------------------------------------------------------------- what the trace sees


def test_the_trace_sees_the_schedule():
    inputs, weight = layer(20, 32, 160)
    zeros = []

    def trace(iteration, solution, keep):
        zeros.append(int((~keep).sum()))
        assert iteration == len(zeros)
        assert not solution[~keep].any()
        last[:] = solution.clone(), keep.clone()

    last = []
    solved = METHODS["admm-grad"](weight, gram_of(inputs), sparsity=0.6, trace=trace)
    # by hand for 640 weights: 640·0.6 = 384; t = 1: 384·631/3375 = 71.8;
    # t = 5: 384·19/27 = 270.2; t = 10: 384·26/27 = 369.8
    assert (zeros[0], zeros[4], zeros[9]) == (72, 270, 370)
    assert zeros[14:] == [384] * 6
    assert all(map(torch.equal, last, (solved.weight, solved.keep)))


# ---------------------------------------------------------------- numbers that are too large


@pytest.mark.parametrize("solve", [refit, METHODS["admm-grad"]])
def test_finite_numbers_whose_products_are_not_give_no_answer(solve, one_line_error):
    inputs, weight = layer()
    keep = random_keep(weight.shape)
    with one_line_error(NonFinite, "too large"):
        solve(1e37 * weight, 1e4 * gram_of(inputs), keep=keep)


# ---------------------------------------------------------------- sharing and rounding


def test_layers_of_one_input_share_one_factorisation(monkeypatch):
    inputs, weight = layer(12, 16)
    gram = Gram.of(gram_of(inputs))
    factor = Mock(wraps=torch.linalg.cholesky_ex)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", factor)
    solve = METHODS["admm-grad"]

    def check(factored, **options):
        """Two layers are solved as they are with a gram of their own."""
        factor.reset_mock()
        for each in (weight, weight[:5]):
            shared = solve(each, gram, sparsity=0.5, **options)
            alone = solve(each, gram.matrix.clone(), sparsity=0.5, **options)
            assert torch.equal(shared.weight, alone.weight)
        assert factor.call_count == factored + 2

    check(1)
    check(0)
    # another system, and with more text another gram
    check(1, damping=0.2)
    check(1, rho=2.0)
    check(1, precondition=False)
    gram.add(inputs)
    check(1, precondition=False)
