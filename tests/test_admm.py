"""The solver against exact restricted least squares and against the paper's formulas in numpy.

Everything on the right-hand side of a comparison is written here, in float64, from the
mathematics: nothing is shared with the package.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from helpers.admm import admm_grad, exact_least_squares, refit
from helpers.errors import (
    BadMask,
    BadParameter,
    BadSparsity,
    NonFinite,
    NotPositiveDefinite,
)
from helpers.fast import fused
from helpers.gram import Gram, gram_of


def layer(
    d_out: int = 12, d_in: int = 16, tokens: int = 80, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated inputs of unequal scale (tokens, d_in), and a weight (d_out, d_in)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d_in, d_in, generator=generator) / math.sqrt(d_in)
    scales = torch.logspace(-1, 1, d_in)[torch.randperm(d_in, generator=generator)]
    inputs = torch.randn(tokens, d_in, generator=generator) @ (torch.eye(d_in) + mixing)
    return inputs * scales, torch.randn(d_out, d_in, generator=generator)


def random_keep(shape: torch.Size, sparsity: float = 0.5, seed: int = 3) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) >= sparsity


def restricted_lstsq(
    inputs: torch.Tensor, weight: torch.Tensor, keep: torch.Tensor, damping: float
) -> np.ndarray:
    """min ‖X(w − ŵ)‖² + damping·‖n ⊙ (w − ŵ)‖², ŵ zero outside keep, one output at a time.

    In inputs scaled to unit norm n the damped gram is G + damping·mean(diag G)·I with
    diag G = 1; in the original units that ridge weighs input i by n_i². It is written here as
    extra rows sqrt(damping)·diag(n) of X, and solved by numpy's lstsq on X itself, not on XᵀX.
    """
    x, w, kept = inputs.double().numpy(), weight.double().numpy(), keep.numpy()
    norms = np.sqrt((x**2).sum(0))
    stacked = np.vstack([x, math.sqrt(damping) * np.diag(norms)])
    solved = np.zeros_like(w)
    for row in range(len(w)):
        support = np.flatnonzero(kept[row])
        answer = np.linalg.lstsq(stacked[:, support], stacked @ w[row], rcond=None)[0]
        solved[row, support] = answer
    return solved


def eight_lines(
    weight: np.ndarray, gram: np.ndarray, keep: np.ndarray, iterations: int, damping: float = 0.1
) -> np.ndarray:
    """The paper's loop as the design spells it, W, Z, U of shape (d_in, d_out)."""
    n = np.sqrt(np.diag(gram))
    G = gram / np.outer(n, n)
    G = G + damping * np.diag(G).mean() * np.eye(len(n))
    W0 = W = n[:, None] * weight.T
    U, inverse = np.zeros_like(W), np.linalg.inv(G + np.eye(len(n)))
    for _ in range(iterations):
        Z = (W + U) * keep.T
        U = U + W - Z
        W = inverse @ (G @ W0 + 1.0 * (Z - U))
    return ((W + U) * keep.T / n[:, None]).T


def outputs_error(inputs: torch.Tensor, weight: torch.Tensor, new: torch.Tensor) -> float:
    x = inputs.double()
    dense = x @ weight.double().T
    return ((x @ new.double().T - dense).norm() ** 2 / dense.norm() ** 2).item()


# ---------------------------------------------------------------- exact least squares


@pytest.mark.parametrize("damping", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_many_iterations_reach_the_exact_restricted_optimum(
    damping: float, sparsity: float
) -> None:
    inputs, weight = layer()
    keep = random_keep(weight.shape, sparsity)
    solved = refit(weight, gram_of(inputs), keep, iterations=3000, damping=damping)
    expected = restricted_lstsq(inputs, weight, keep, damping)
    norms = inputs.double().norm(dim=0).numpy()
    largest = np.abs(expected * norms).max()
    assert np.abs((solved.weight.double().numpy() - expected) * norms).max() < 3e-4 * largest
    assert not solved.weight[~keep].any()
    assert solved.damping == damping


def test_the_damped_optimum_is_not_the_plain_one() -> None:
    # Guards the test above: it could not tell a missing damping term if these were close.
    inputs, weight = layer()
    keep = random_keep(weight.shape)
    plain, damped = (restricted_lstsq(inputs, weight, keep, d) for d in (0.0, 0.1))
    norms = inputs.double().norm(dim=0).numpy()
    assert np.abs((plain - damped) * norms).max() > 1e-2 * np.abs(plain * norms).max()


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_exact_least_squares_is_exact(damping: float) -> None:
    inputs, weight = layer()
    keep = random_keep(weight.shape, 0.6)
    keep[0], keep[1] = False, True  # an output with nothing left, and one with everything
    gram = inputs.double().T @ inputs.double()
    solved = exact_least_squares(weight.double(), gram, keep, damping=damping)
    expected = restricted_lstsq(inputs, weight, keep, damping)
    np.testing.assert_allclose(solved.double().numpy(), expected, rtol=1e-6, atol=1e-8)
    assert not solved[~keep].any()
    torch.testing.assert_close(solved[1], weight[1].double(), rtol=1e-6, atol=1e-8)


def test_exact_least_squares_survives_singular_grams() -> None:
    inputs, weight = layer(tokens=5)  # fewer tokens than inputs
    inputs[:, 2] = 0
    keep = random_keep(weight.shape)
    solved = exact_least_squares(weight, gram_of(inputs), keep)
    assert torch.isfinite(solved).all()
    expected = torch.from_numpy(restricted_lstsq(inputs, weight, keep, 0.0))
    best = outputs_error(inputs, weight, expected)
    assert outputs_error(inputs, weight, solved) <= best + 1e-3


@pytest.mark.parametrize("rho", [0.3, 1.0, 4.0])
def test_the_optimum_does_not_depend_on_rho(rho: float) -> None:
    inputs, weight = layer()
    keep = random_keep(weight.shape)
    solved = refit(weight, gram_of(inputs), keep, rho=rho, iterations=4000)
    expected = restricted_lstsq(inputs, weight, keep, 0.1)
    norms = inputs.double().norm(dim=0).numpy()
    gap = np.abs((solved.weight.double().numpy() - expected) * norms).max()
    assert gap < 1e-3 * np.abs(expected * norms).max()


def test_rho_sets_the_pace() -> None:
    # With few iterations the path does depend on rho; a rho that is ignored would not show above.
    inputs, weight = layer()
    keep, gram = random_keep(weight.shape), gram_of(inputs)
    slow, fast = (refit(weight, gram, keep, rho=rho, iterations=3).weight for rho in (0.1, 10.0))
    assert not torch.allclose(slow, fast, rtol=1e-2)


def test_default_iterations_lie_between_masking_and_the_optimum() -> None:
    inputs, weight = layer(d_out=24, d_in=32, tokens=200)
    keep, gram = random_keep(weight.shape, 0.6), gram_of(inputs)
    masked = outputs_error(inputs, weight, weight * keep)
    refitted = outputs_error(inputs, weight, refit(weight, gram, keep).weight)
    best = outputs_error(
        inputs, weight, torch.from_numpy(restricted_lstsq(inputs, weight, keep, 0))
    )
    assert best <= refitted < 0.9 * masked


def test_keeping_everything_returns_the_dense_weight() -> None:
    inputs, weight = layer()
    keep = torch.ones_like(weight, dtype=torch.bool)
    torch.testing.assert_close(
        refit(weight, gram_of(inputs), keep).weight, weight, rtol=1e-4, atol=1e-4
    )


def test_keeping_nothing_returns_zero() -> None:
    inputs, weight = layer()
    keep = torch.zeros_like(weight, dtype=torch.bool)
    assert not refit(weight, gram_of(inputs), keep).weight.any()


# ---------------------------------------------------------------- the paper's formulas


@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_refit_is_the_eight_line_loop(iterations: int) -> None:
    inputs, weight = layer(d_out=20, d_in=24, tokens=120)
    keep = random_keep(weight.shape, 0.6)
    gram = inputs.double().T @ inputs.double()
    expected = eight_lines(weight.double().numpy(), gram.numpy(), keep.numpy(), iterations)
    solved = refit(weight, gram.float(), keep, iterations=iterations)
    # W is of size n·w; compare in those units, within float32 rounding of the products
    norms = inputs.double().norm(dim=0).numpy()
    gap = np.abs((solved.weight.double().numpy() - expected) * norms).max()
    assert gap < 2e-5 * np.abs(expected * norms).max()


def lowest(score: np.ndarray, zeros: int) -> np.ndarray:
    keep = np.ones(score.size, dtype=bool)
    keep[np.argsort(score, axis=None, kind="stable")[:zeros]] = False
    return keep.reshape(score.shape)


def gradual_keep(score: np.ndarray, sparsity: float, groups: tuple[int, int] | None) -> np.ndarray:
    """score (d_in, d_out); N:M runs down the input, the first dimension here."""
    if groups:
        score = score.copy()
        n, m = groups
        for start in range(0, len(score), m):
            top = np.argsort(score[start : start + m], axis=0)[-n:]
            np.put_along_axis(score[start : start + m], top, np.inf, axis=0)
    return lowest(score, round(sparsity * score.size))


def gradual_numpy(
    weight: np.ndarray,
    gram: np.ndarray,
    final: float,
    *,
    groups: tuple[int, int] | None = None,
    released: bool = False,
    iterations: int = 20,
    mask_steps: int = 15,
) -> tuple[np.ndarray, np.ndarray]:
    n = np.sqrt(np.diag(gram))
    G = gram / np.outer(n, n) + 0.1 * np.eye(len(n))  # diag G = 1 without dead inputs
    W0 = W = n[:, None] * weight.T
    U, inverse = np.zeros_like(W), np.linalg.inv(G + np.eye(len(n)))
    for t in range(1, iterations + 1):
        if t <= mask_steps:
            now = final if released else final - final * (1 - t / mask_steps) ** 3
            keep = gradual_keep(np.abs(W + U), now, groups)
        Z = (W + U) * keep
        U = U + W - Z
        W = inverse @ (G @ W0 + Z - U)
    return ((W + U) * keep / n[:, None]).T, keep.T


@pytest.mark.parametrize(
    ("sparsity", "pattern", "groups", "schedule"),
    [
        (0.5, "unstructured", None, "paper"),
        (0.7, "unstructured", None, "paper"),
        (0.7, "unstructured", None, "released"),
        (0.5, "2:4", (2, 4), "paper"),
        (0.5, "4:8", (4, 8), "paper"),
        (0.75, "1:4", (1, 4), "paper"),
    ],
)
def test_admm_grad_is_the_paper_loop_with_a_growing_mask(
    sparsity: float, pattern: str, groups: tuple[int, int] | None, schedule: str
) -> None:
    inputs, weight = layer(d_out=20, d_in=32, tokens=160)
    gram = inputs.double().T @ inputs.double()
    expected, keep = gradual_numpy(
        weight.double().numpy(), gram.numpy(), sparsity, groups=groups,
        released=schedule == "released",
    )  # fmt: skip
    solved = admm_grad(weight, gram.float(), sparsity=sparsity, pattern=pattern, schedule=schedule)
    assert np.array_equal(solved.keep.numpy(), keep)
    norms = inputs.double().norm(dim=0).numpy()
    gap = np.abs((solved.weight.double().numpy() - expected) * norms).max()
    assert gap < 3e-5 * np.abs(expected * norms).max()


def test_paper_and_released_schedules_choose_differently() -> None:
    inputs, weight = layer(d_out=20, d_in=32, tokens=160)
    gram = gram_of(inputs)
    paper, released = (
        admm_grad(weight, gram, sparsity=0.7, schedule=name) for name in ("paper", "released")
    )
    assert not torch.equal(paper.keep, released.keep)


def zeros_per_iteration(**options: object) -> list[tuple[int, int]]:
    """(iteration, zeros) as seen by the trace of a 20 x 32 layer: 640 weights."""
    inputs, weight = layer(d_out=20, d_in=32, tokens=160)
    seen: list[tuple[int, int]] = []

    def trace(iteration: int, solution: torch.Tensor, keep: torch.Tensor) -> None:
        assert solution.shape == weight.shape
        assert not solution[~keep].any()
        seen.append((iteration, int((~keep).sum())))

    admm_grad(weight, gram_of(inputs), trace=trace, **options)
    return seen


def test_trace_sees_the_cubic_schedule_of_the_paper() -> None:
    seen = zeros_per_iteration(sparsity=0.6)
    assert [iteration for iteration, _ in seen] == list(range(1, 21))
    # by hand: 640·0.6 = 384; t = 1: 384·631/3375 = 71.8; t = 5: 384·19/27 = 270.2;
    # t = 10: 384·26/27 = 369.8; from t = 15 all 384
    zeros = [count for _, count in seen]
    assert (zeros[0], zeros[4], zeros[9]) == (72, 270, 370)
    assert zeros[14:] == [384] * 6
    assert zeros == sorted(zeros)


def test_trace_sees_the_released_schedule_at_full_sparsity_from_the_start() -> None:
    assert {count for _, count in zeros_per_iteration(sparsity=0.6, schedule="released")} == {384}


def test_trace_sees_nm_grow_by_the_same_schedule() -> None:
    zeros = [count for _, count in zeros_per_iteration(pattern="2:4")]
    # 640/2 = 320: t = 1: 59.8, t = 5: 225.2
    assert (zeros[0], zeros[4]) == (60, 225)
    assert zeros[14:] == [320] * 6


def test_mask_is_fixed_after_the_mask_steps_and_trace_ends_at_the_solution() -> None:
    inputs, weight = layer(d_out=20, d_in=32, tokens=160)
    masks, weights = [], []

    def trace(_: int, solution: torch.Tensor, keep: torch.Tensor) -> None:
        masks.append(keep.clone())
        weights.append(solution.clone())

    solved = admm_grad(
        weight, gram_of(inputs), sparsity=0.6, iterations=12, mask_steps=5, trace=trace
    )
    assert len(masks) == 12
    assert not torch.equal(masks[3], masks[4])
    assert all(torch.equal(mask, masks[4]) for mask in masks[5:])
    assert torch.equal(masks[-1], solved.keep)
    assert torch.equal(weights[-1], solved.weight)


def test_trace_of_refit_descends_to_the_optimum() -> None:
    inputs, weight = layer()
    keep, gram = random_keep(weight.shape), gram_of(inputs)
    best = torch.from_numpy(restricted_lstsq(inputs, weight, keep, 0.1))
    norms, gaps = inputs.double().norm(dim=0), []

    def trace(_: int, solution: torch.Tensor, __: torch.Tensor) -> None:
        gaps.append(((solution.double() - best) * norms).norm().item())

    refit(weight, gram, keep, iterations=200, trace=trace)
    assert gaps[-1] < 0.02 * gaps[0]


# ---------------------------------------------------------------- symmetries


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_rescaling_an_input_channel_changes_nothing(pattern: str) -> None:
    # x → 16·x and w → w/16 is the same function; powers of two make it so in float32 as well.
    inputs, weight = layer(d_out=20, d_in=32, tokens=160)
    factors = torch.ones(32)
    factors[3], factors[10] = 16.0, 1 / 64
    gram = gram_of(inputs)
    scaled_gram = gram * factors * factors[:, None]
    sparsity = 0.6 if pattern == "unstructured" else None
    plain = admm_grad(weight, gram, sparsity=sparsity, pattern=pattern)
    scaled = admm_grad(weight / factors, scaled_gram, sparsity=sparsity, pattern=pattern)
    assert torch.equal(plain.keep, scaled.keep)
    torch.testing.assert_close(scaled.weight * factors, plain.weight, rtol=1e-5, atol=1e-6)


def test_scaling_weights_or_tokens_scales_along() -> None:
    inputs, weight = layer()
    gram = gram_of(inputs)
    plain = admm_grad(weight, gram, sparsity=0.5)
    doubled = admm_grad(2 * weight, gram, sparsity=0.5)
    more_text = admm_grad(weight, 16 * gram, sparsity=0.5)
    for other, factor in ((doubled, 2), (more_text, 1)):
        assert torch.equal(plain.keep, other.keep)
        torch.testing.assert_close(other.weight, factor * plain.weight, rtol=1e-5, atol=1e-6)


def test_outputs_are_solved_independently_on_a_given_mask() -> None:
    inputs, weight = layer()
    keep, gram = random_keep(weight.shape), gram_of(inputs)
    order = torch.randperm(len(weight))
    together = refit(weight, gram, keep).weight
    shuffled = refit(weight[order], gram, keep[order]).weight
    torch.testing.assert_close(shuffled, together[order], rtol=1e-4, atol=1e-5)


def test_inputs_are_not_modified() -> None:
    inputs, weight = layer()
    gram, keep = gram_of(inputs), random_keep(weight.shape)
    copies = weight.clone(), gram.clone(), keep.clone()
    refit(weight, gram, keep)
    admm_grad(weight, gram, sparsity=0.5)
    exact_least_squares(weight, gram, keep)
    for now, before in zip((weight, gram, keep), copies, strict=True):
        assert torch.equal(now, before)


# ---------------------------------------------------------------- without preconditioning


def unscaled_lines(
    weight: np.ndarray, gram: np.ndarray, keep: np.ndarray, iterations: int, damping: float
) -> np.ndarray:
    """The paper's loop on the gram as it is, but for one number that makes its mean diagonal 1."""
    c2 = np.diag(gram).mean()
    G = (gram + damping * np.diag(np.diag(gram))) / c2
    W0 = W = weight.T
    U, inverse = np.zeros_like(W), np.linalg.inv(G + np.eye(len(G)))
    for _ in range(iterations):
        Z = (W + U) * keep.T
        U = U + W - Z
        W = inverse @ (G @ W0 + Z - U)
    return ((W + U) * keep.T).T


@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_without_preconditioning_it_is_the_same_loop_on_the_plain_gram(iterations: int) -> None:
    inputs, weight = layer(d_out=20, d_in=24, tokens=120)
    keep = random_keep(weight.shape, 0.6)
    gram = inputs.double().T @ inputs.double()
    expected = unscaled_lines(weight.double().numpy(), gram.numpy(), keep.numpy(), iterations, 0.1)
    solved = refit(weight, gram.float(), keep, iterations=iterations, precondition=False)
    gap = np.abs(solved.weight.double().numpy() - expected).max()
    assert gap < 2e-4 * np.abs(expected).max()
    scaled = refit(weight, gram.float(), keep, iterations=iterations).weight
    assert not torch.allclose(scaled, solved.weight, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_without_preconditioning_the_optimum_is_the_same(damping: float) -> None:
    inputs, weight = layer()
    inputs[:, 2] = 0  # a dead input must not count towards the common scale
    keep, gram = random_keep(weight.shape), gram_of(inputs)
    solved = refit(
        weight, gram, keep, rho=0.3, iterations=20000, damping=damping, precondition=False
    )
    # the ridge is a fraction of mean(diag G), which is 15/16 with one dead input of sixteen
    expected = restricted_lstsq(inputs, weight, keep, damping * 15 / 16)
    alive = np.arange(16) != 2
    norms = inputs.double().norm(dim=0).numpy()[alive]
    gap = np.abs((solved.weight.double().numpy() - expected)[:, alive] * norms).max()
    assert gap < 2e-3 * np.abs(expected[:, alive] * norms).max()


def test_without_preconditioning_masks_still_go_by_output() -> None:
    # Wanda's score, whatever coordinates the solve is in; with |W| alone they would differ
    inputs, weight = layer(d_out=20, d_in=32, tokens=160)
    gram = gram_of(inputs)
    settings = {"sparsity": 0.6, "mask_steps": 0}
    plain = admm_grad(weight, gram, precondition=False, **settings).keep
    assert torch.equal(plain, admm_grad(weight, gram, **settings).keep)
    sizes = weight.abs().flatten()
    by_size = torch.ones_like(sizes, dtype=torch.bool)
    by_size[sizes.argsort()[: round(0.6 * sizes.numel())]] = False
    assert (plain.flatten() != by_size).float().mean() > 0.1
    dead = inputs.clone()
    dead[:, 5] = 0
    grown = admm_grad(weight, gram_of(dead), sparsity=0.6, precondition=False)
    assert not grown.keep[:, 5].any(), "weights of a dead input fall first"
    assert not torch.equal(grown.keep, admm_grad(weight, gram_of(dead), sparsity=0.6).keep)


def test_without_preconditioning_rho_means_the_same_in_every_layer() -> None:
    inputs, weight = layer()
    inputs[:, 2] = 0  # whose norm of 0 is replaced by 1, which must not count
    keep, gram = random_keep(weight.shape), gram_of(inputs)
    plain = refit(weight, gram, keep, iterations=5, precondition=False).weight
    alive = torch.arange(16) != 2
    for factor in (1e-6, 1e3):
        other = refit(weight, factor * gram, keep, iterations=5, precondition=False).weight
        torch.testing.assert_close(other[:, alive], plain[:, alive], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options",
    [
        {"rho": 0}, {"rho": -1.0}, {"rho": float("nan")}, {"rho": float("inf")}, {"rho": "1"},
        {"iterations": 0}, {"iterations": -3}, {"iterations": 20.5}, {"iterations": "20"},
        {"iterations": True}, {"damping": -0.1}, {"damping": float("nan")},
        {"damping": float("inf")}, {"damping": "0.1"}, {"damping": None},
        {"mask_steps": -1}, {"mask_steps": 21}, {"mask_steps": 1.5}, {"schedule": "papr"},
        {"schedule": None}, {"budget": "column"}, {"precondition": 1}, {"precondition": "no"},
    ],
    ids=str,
)  # fmt: skip
def test_bad_options(options: dict, one_line_error) -> None:
    inputs, weight = layer()
    with one_line_error(BadParameter, next(iter(options))):
        admm_grad(weight, gram_of(inputs), sparsity=0.5, **options)


def test_a_typo_in_the_schedule_gets_a_suggestion(one_line_error) -> None:
    inputs, weight = layer()
    with one_line_error(BadParameter, "papr", "paper", "released"):
        admm_grad(weight, gram_of(inputs), sparsity=0.5, schedule="papr")


def test_bad_numbers_and_shapes(one_line_error) -> None:
    inputs, weight = layer()
    gram, keep = gram_of(inputs), random_keep(weight.shape)
    broken_weight, broken_gram = weight.clone(), gram.clone()
    broken_weight[2, 3] = float("nan")
    broken_gram[4, 4] = float("inf")
    with one_line_error(NonFinite, "weight"):
        refit(broken_weight, gram, keep)
    with one_line_error(NonFinite, "gram"):
        refit(weight, broken_gram, keep)
    with one_line_error(BadParameter, "gram"):
        refit(weight, gram[:-1, :-1], keep)
    with one_line_error(BadSparsity):
        admm_grad(weight, gram, sparsity=1.0)
    with one_line_error(BadSparsity):
        admm_grad(weight, gram)
    with one_line_error(NotPositiveDefinite):
        refit(weight, 6 * torch.eye(16) - 5, keep)  # diagonal 1, smallest eigenvalue 6 − 80


# ---------------------------------------------------------------- rounding and sharing


def test_growing_masks_reach_the_plain_loops_error() -> None:
    inputs, weight = layer(128, 96, tokens=300)
    numpy_weight, _ = gradual_numpy(
        weight.double().numpy(), (inputs.double().T @ inputs.double()).numpy(), 0.6
    )
    fast = admm_grad(weight, gram_of(inputs), sparsity=0.6).weight
    errors = [outputs_error(inputs, weight, w) for w in (fast, torch.from_numpy(numpy_weight))]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_layers_of_one_input_share_one_factorisation(monkeypatch) -> None:
    inputs, weight = layer(12, 16)
    other = layer(20, 16, seed=4)[1]
    matrix, count = gram_of(inputs), []
    alone = [admm_grad(w, matrix, sparsity=0.5).weight for w in (weight, other)]
    factor = torch.linalg.cholesky_ex
    monkeypatch.setattr(
        torch.linalg, "cholesky_ex", lambda *a, **k: (count.append(1), factor(*a, **k))[1]
    )
    gram = Gram.of(matrix)
    together = [admm_grad(w, gram, sparsity=0.5).weight for w in (weight, other)]
    assert len(count) == 1 and all(map(torch.equal, alone, together))
    admm_grad(weight, gram, sparsity=0.5, damping=0.2)  # another damping is another system
    admm_grad(weight, matrix, sparsity=0.5)  # a matrix shares nothing
    assert len(count) == 3
    gram.add(inputs)  # with more text it is another gram
    more = admm_grad(weight, gram, sparsity=0.5, damping=0.2).weight
    assert len(count) == 4
    assert torch.equal(more, admm_grad(weight, gram.matrix, sparsity=0.5, damping=0.2).weight)


def tf32(tensor: torch.Tensor) -> torch.Tensor:
    """Rounded to the 10 bits of mantissa that TF32 keeps of a factor."""
    return ((tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.fixture
def coarse_products(monkeypatch):
    """Make the solver's fast products round as a GPU's do; the value sets how many are exact."""
    product, state = torch.Tensor.addmm_, {"fast": False}

    def coarse(self: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **how: float) -> torch.Tensor:
        return product(self, *((tf32(a), tf32(b)) if state["fast"] else (a, b)), **how)

    @contextlib.contextmanager
    def pretend(_device: object, fast: bool) -> Iterator[None]:
        state["fast"] = fast
        yield
        state["fast"] = False

    monkeypatch.setattr(fused, "fast_products", pretend)
    monkeypatch.setattr(torch.Tensor, "addmm_", coarse)
    return lambda exact: monkeypatch.setattr(fused, "EXACT_ITERATIONS", exact)


def test_tensor_float_products_before_the_last_iterations_do_not_change_the_error(
    coarse_products,
) -> None:
    inputs, weight = layer(160, 128, tokens=600)
    gram, errors = gram_of(inputs), {}
    for exact in (20, fused.EXACT_ITERATIONS):
        coarse_products(exact)
        errors[exact] = outputs_error(inputs, weight, admm_grad(weight, gram, sparsity=0.6).weight)
    assert errors[5] == pytest.approx(errors[20], rel=2e-3)


def test_the_last_exact_iterations_remove_earlier_rounding(coarse_products) -> None:
    inputs, weight = layer(160, 128, tokens=600)
    gram, keep, found = gram_of(inputs), random_keep(weight.shape, 0.6), {}
    for exact in (20, 5, 0):
        coarse_products(exact)
        found[exact] = refit(weight, gram, keep).weight * gram.diagonal().sqrt()
    gaps = {exact: (solved - found[20]).norm() for exact, solved in found.items()}
    assert 0 < gaps[5] < 0.25 * gaps[0]
    assert gaps[5] < 2e-3 * found[20].norm()


@pytest.mark.parametrize("spoil", ["float", "one row", "scores"])
def test_refit_takes_masks_only(spoil: str, one_line_error) -> None:
    inputs, weight = layer()
    keep = random_keep(weight.shape)
    given = {"float": keep.float(), "one row": keep[0], "scores": weight.abs()}[spoil]
    with one_line_error(BadMask, "mask"):
        refit(weight, gram_of(inputs), given)
