"""The paper's solver: refit the surviving weights of one layer by ADMM.

Boža, "Fast and Effective Weight Update for Pruned Large Language Models", TMLR 2024
(arXiv 2401.02938). The problem of a layer is min ‖XW − XŴ‖² with Ŵ zero outside `keep`.

The paper writes W as (d_in, d_out). Here W, Z, U are stored as `torch.nn.Linear` stores its
weight, (d_out, d_in); since the gram is symmetric each formula is the paper's transposed, and
no copy is turned around.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.errors import (
    BadParameter,
    NonFinite,
    NotPositiveDefinite,
    check_choice,
    check_real,
    check_whole,
)
from helpers.gram import check_gram, damp, damping_ladder, dead_inputs, normalise
from helpers.masks import check_target, cubic_schedule, select

SCHEDULES = ("paper", "released")

# trace(iteration, weight, keep): called after each iteration with the un-scaled masked solution
Trace = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Solution:
    """A solved layer: `weight` (d_out, d_in) zero outside `keep`, and the damping used."""

    weight: Tensor
    keep: Tensor
    damping: float


def refit(
    weight: Tensor,
    gram: Tensor,
    keep: Tensor,
    *,
    rho: float = 1.0,
    iterations: int = 20,
    damping: float = 0.1,
    precondition: bool = True,
    trace: Trace | None = None,
) -> Solution:
    """ADMM on a fixed mask.

    Args: weight (d_out, d_in); gram (d_in, d_in), see `helpers.gram`; keep (d_out, d_in) bool;
    rho, the penalty (the inputs are scaled to unit norm, so 1 suits every layer); damping, a
    ridge as a fraction of mean(diag G) that pulls towards the dense weights; precondition,
    False to solve the same problem without the paper's scaling, see `damped_system`.
    Raises BadParameter, NonFinite, NotPositiveDefinite.
    """
    layer = _Layer(weight, gram, rho=rho, damping=damping, precondition=precondition)
    check_steps(iterations, 0)
    for iteration in range(1, iterations + 1):
        layer.step(keep)
        if trace:
            trace(iteration, layer.solution(keep), keep)
    return Solution(layer.solution(keep), keep, layer.damping)


def admm_grad(
    weight: Tensor,
    gram: Tensor,
    *,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    schedule: str = "paper",
    rho: float = 1.0,
    iterations: int = 20,
    mask_steps: int = 15,
    damping: float = 0.1,
    budget: str = "matrix",
    precondition: bool = True,
    trace: Trace | None = None,
) -> Solution:
    """ADMM with a gradually growing mask (the paper's "ADMM-Grad").

    In each of the first `mask_steps` iterations `keep` is chosen anew from |W + U| at the
    sparsity of the cubic schedule; the remaining iterations refit on the final mask.
    `schedule="released"` does what the published code does instead of what the paper says:
    unstructured pruning with a budget per matrix selects at the full target sparsity in every
    mask step (its other paths follow the cubic schedule, and so do ours). With `mask_steps=0`
    the mask is chosen once from the dense weights (that is `admm1`).

    Shapes, other arguments and errors as in `refit`.
    """
    check_choice("schedule", schedule, SCHEDULES)
    final = check_target(sparsity, pattern)
    check_steps(iterations, mask_steps)
    shortcut = schedule == "released" and pattern == "unstructured" and budget == "matrix"
    layer = _Layer(weight, gram, rho=rho, damping=damping, precondition=precondition)
    keep = select(layer.score(), final, pattern, budget) if mask_steps == 0 else None
    for iteration in range(1, iterations + 1):
        if iteration <= mask_steps:
            now = final if shortcut else cubic_schedule(final, iteration, mask_steps)
            keep = select(layer.score(), now, pattern, budget)
        layer.step(keep)
        if trace:
            trace(iteration, layer.solution(keep), keep)
    return Solution(layer.solution(keep), keep, layer.damping)


def damped_system(
    gram: Tensor, damping: float, *, precondition: bool = True
) -> tuple[Tensor, Tensor]:
    """The quadratic of a layer's objective in a solver's coordinates: (matrix, scale).

    With scale s the solver works on s·weight, and the objective is
    f(Ŵ) = tr(s(Ŵ − W) matrix (Ŵ − W)ᵀs) = tr((Ŵ − W) D (Ŵ − W)ᵀ),
    where D = N (G + damping · mean(diag G) · I) N, N = diag(n), and (G, n) is the scaled gram.

    - precondition: s = n, shape (d_in,), and the matrix is the damped G (the paper's choice).
    - else: s is one number for all inputs, shape (), such that the gram/s² has a mean diagonal
      of 1 over the inputs that are not dead. The objective and its optimum are the same; only
      the path of a solver differs, and a rho of 1 still means "as large as a typical input".
    """
    scaled, norms = normalise(gram)
    damped = damp(scaled, damping)
    if precondition:
        return damped, norms
    dead = dead_inputs(gram)
    typical = norms.square()[~dead].mean() if not dead.all() else norms.new_ones(())
    return damped * norms * (norms[:, None] / typical), typical.sqrt()


class _Layer:
    """The ADMM state of one layer, with its inputs scaled to unit norm.

    Scaled, |W| is Wanda's score |W|·‖x‖, and one rho suits every layer. Without
    `precondition` all inputs share one scale, and the score is scaled instead.
    Memory: four (d_out, d_in) and three (d_in, d_in) float32 matrices.
    """

    def __init__(
        self, weight: Tensor, gram: Tensor, *, rho: float, damping: float, precondition: bool
    ) -> None:
        check_real("rho", rho, above=0)
        check_real("damping", damping)
        check_switch("precondition", precondition)
        check_gram(gram, weight.shape[1])
        if not torch.isfinite(weight).all():
            raise NonFinite("weight holds NaN or infinity: check the checkpoint it comes from")
        self.rho = rho
        self.alive = ~dead_inputs(gram)
        damped, lower = self._factor(gram.float(), damping, precondition)
        self.inverse = torch.cholesky_inverse(lower)
        scaled_weight = weight.float() * self.norms
        # G W₀ (G + ρI)⁻¹ is the same in every iteration, which leaves one product for each
        self.base = scaled_weight @ damped @ self.inverse
        self.total = scaled_weight  # W + U, with U = 0
        self.Z, self.U = torch.empty_like(self.total), torch.empty_like(self.total)

    def _factor(self, gram: Tensor, damping: float, precondition: bool) -> tuple[Tensor, Tensor]:
        """The damped system, and the lower Cholesky factor of it + ρI.

        Climbs the same ladder as `helpers.gram.factor`, but with the damping always in the
        scaled metric; sets `norms`, `damping` and the scale of the score.
        """
        for rung in damping_ladder(damping):
            damped, self.norms = damped_system(gram, rung, precondition=precondition)
            shifted = damped.clone()
            shifted.diagonal().add_(self.rho)
            lower, info = torch.linalg.cholesky_ex(shifted)
            if info.item() == 0 and torch.isfinite(lower).all():
                self.damping = rung
                self.to_score = None if precondition else normalise(gram)[1] / self.norms
                return damped, lower
        raise NotPositiveDefinite(
            f"gram cannot be factored with damping from {damping:g} up to {rung:g}: "
            "it is not positive semi-definite; recompute it from the layer's inputs"
        )

    def score(self) -> Tensor:
        """|W + U| in units of output, and 0 for dead inputs, whose weights therefore fall first."""
        score = self.total.abs()
        if self.to_score is not None:
            score *= self.to_score
        return score if self.alive.all() else score * self.alive

    def step(self, keep: Tensor) -> None:
        """Z = (W + U) ⊙ keep;  U = U + W − Z;  W = (G W₀ + ρ (Z − U)) (G + ρI)⁻¹.

        W and U are only ever needed as their sum, `total`; everything is done in place, since
        fresh memory for each term costs more than the term.
        """
        torch.mul(self.total, keep, out=self.Z)
        torch.sub(self.total, self.Z, out=self.U)
        self.Z.sub_(self.U)
        torch.addmm(self.base, self.Z, self.inverse, alpha=self.rho, out=self.total)
        self.total.add_(self.U)

    def solution(self, keep: Tensor) -> Tensor:
        """Z' = (W + U) ⊙ keep in the units of the original weight."""
        return self.total * keep / self.norms


def exact_least_squares(
    weight: Tensor, gram: Tensor, keep: Tensor, *, damping: float = 0.0
) -> Tensor:
    """The optimum that ADMM converges to: least squares on each output's own support.

    Solves, in float64 and for each output, G[S,S] ŵ[S] = (G w)[S] over the kept inputs S, where
    G is the scaled gram with the same damping as the solver's. A singular system gives the
    solution of least norm. Cost: one dense solve of its support's size an output.
    Returns (d_out, d_in) in the weight's type.
    """
    check_gram(gram, weight.shape[1])
    scaled, norms = normalise(gram.double())
    damped = damp(scaled, damping)
    dense = weight.double() * norms
    target = dense @ damped
    exact = torch.zeros_like(dense)
    for row in range(dense.shape[0]):
        support = keep[row].nonzero().squeeze(1)
        if len(support):
            system = damped[support[:, None], support]
            exact[row, support] = _solve_symmetric(system, target[row, support])
    return (exact / norms).to(weight.dtype)


def _solve_symmetric(system: Tensor, right: Tensor) -> Tensor:
    """Solution of a symmetric positive semi-definite system, of least norm where singular."""
    lower, info = torch.linalg.cholesky_ex(system)
    if info.item() == 0:
        return torch.cholesky_solve(right[:, None], lower).squeeze(1)
    return torch.linalg.pinv(system, hermitian=True) @ right


def check_switch(what: str, value: object) -> bool:
    """Return `value` if it is True or False, else raise BadParameter."""
    if isinstance(value, bool):
        return value
    raise BadParameter(f"{what} {value!r} is not allowed: give True or False")


def check_steps(iterations: int, mask_steps: int) -> None:
    """Raise BadParameter unless 1 ≤ iterations and 0 ≤ mask_steps ≤ iterations."""
    check_whole("iterations", iterations)
    if check_whole("mask_steps", mask_steps, least=0) > iterations:
        raise BadParameter(
            f"mask_steps {mask_steps!r} is more than the {iterations} iterations: "
            "give 0 to iterations"
        )
