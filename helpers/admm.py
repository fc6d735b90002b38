"""The paper's solver: refit the surviving weights of one layer by ADMM.

Boža, "Fast and Effective Weight Update for Pruned Large Language Models", TMLR 2024
(arXiv 2401.02938). The problem of a layer is min ‖XW − XŴ‖² with Ŵ zero outside `keep`.

The paper writes W as (d_in, d_out). Here W, Z, U are stored as `torch.nn.Linear` stores its
weight, (d_out, d_in); since the gram is symmetric each formula is the paper's transposed, and
no copy is turned around.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from helpers.device import all_finite, fast_products
from helpers.errors import (
    BadParameter,
    NonFinite,
    NotPositiveDefinite,
    check_choice,
    check_real,
    check_switch,
    check_whole,
)
from helpers.gram import (
    add_ridge,
    check_gram,
    check_shape,
    damp,
    damping_ladder,
    dead_inputs,
    normalise,
)
from helpers.masks import check_keep, check_target, cubic_schedule, select

# iterations at the end whose products a GPU does in full float32: on one mask they wear off the
# rounding of those before. A mask that is still growing then may differ from that of a CPU as it
# does between two batch sizes; the error reached does not change (tests/test_admm.py)
EXACT = 5
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
    Raises BadMask, BadParameter, NonFinite, NotPositiveDefinite.
    """
    check_keep(keep, weight.shape, None, "unstructured")
    check_steps(iterations, 0)
    layer = _Layer(weight, gram, rho=rho, damping=damping, precondition=precondition)
    layer.kept.copy_(keep)
    keep = keep.to(weight.device)
    for iteration in range(1, iterations + 1):
        with fast_products(weight.device, iteration <= iterations - EXACT):
            layer.step()
        if trace:
            trace(iteration, layer.solution(keep), keep)
    return layer.finish()


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
    if mask_steps == 0:
        select(layer.score(), final, pattern, budget, out=layer.kept)
    for iteration in range(1, iterations + 1):
        if iteration <= mask_steps:
            now = final if shortcut else cubic_schedule(final, iteration, mask_steps)
            select(layer.score(), now, pattern, budget, out=layer.kept)
        with fast_products(weight.device, iteration <= iterations - EXACT):
            layer.step()
        if trace:
            keep = layer.kept.bool()
            trace(iteration, layer.solution(keep), keep)
    return layer.finish()


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
    damped, norms = normalise(gram)
    add_ridge(damped, damping)
    if precondition:
        return damped, norms
    dead = dead_inputs(gram)
    typical = norms.square()[~dead].mean() if not dead.all() else norms.new_ones(())
    return damped.mul_(norms).mul_(norms[:, None] / typical), typical.sqrt()


@dataclass(frozen=True)
class _System:
    """What all layers that read one input share: the scaled, damped gram's inverse and scales.

    matrix: ρ(G + ρI)⁻¹ − ½I, see `_Layer.step`; norms: the solver's scale, (d_in,) or (); damping:
    the one used; to_score: what a score is multiplied by, None for 1; alive: 0 for
    dead inputs, None if there are none.
    """

    matrix: Tensor
    norms: Tensor
    damping: float
    to_score: Tensor | None
    alive: Tensor | None


# the last system of the innermost `shared_systems`: its options and gram, and the system
_SHARED: contextvars.ContextVar[dict[tuple[Any, ...], tuple[Tensor, _System]] | None] = (
    contextvars.ContextVar("shared_systems", default=None)
)


@contextlib.contextmanager
def shared_systems() -> Iterator[None]:
    """Inside, layers solved one after another with the same gram tensor share its factorisation.

    The grams must not change inside. Memory: one (d_in, d_in) float32 matrix, and the last gram,
    which is held until the next is factored.
    """
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def _system(gram: Tensor, rho: float, damping: float, precondition: bool) -> _System:
    """The system of a gram, from the active `shared_systems` if it is there."""
    known = _SHARED.get()
    key = (id(gram), rho, damping, precondition)
    if known is None:
        return _factored(gram, rho, damping, precondition)
    if key not in known:
        known.clear()  # before the next is made, so that two never lie in memory
        # with the gram itself, whose id could be given to another tensor once it is gone
        known[key] = (gram, _factored(gram, rho, damping, precondition))
    return known[key][1]


def _factored(gram: Tensor, rho: float, damping: float, precondition: bool) -> _System:
    """Factor the damped system + ρI, climbing the same ladder as `helpers.gram.factor`, but with
    the damping always in the scaled metric.
    """
    check_gram(gram, len(gram))
    for rung in damping_ladder(damping):
        shifted, norms = damped_system(gram.float(), rung, precondition=precondition)
        shifted.diagonal().add_(rho)
        lower, info = torch.linalg.cholesky_ex(shifted)
        del shifted  # as large as the gram, and not needed any more
        if info.item() == 0 and all_finite(lower):
            matrix = torch.cholesky_inverse(lower).mul_(rho)
            matrix.diagonal().sub_(0.5)
            to_score = None if precondition else normalise(gram)[1] / norms
            dead = dead_inputs(gram)
            return _System(matrix, norms, rung, to_score, ~dead if dead.any() else None)
    raise NotPositiveDefinite(
        f"gram cannot be factored with damping from {damping:g} up to {rung:g}: "
        "it is not positive semi-definite; recompute it from the layer's inputs"
    )


class _Layer:
    """The ADMM state of one layer, with its inputs scaled to unit norm.

    Scaled, |W| is Wanda's score |W|·‖x‖, and one rho suits every layer. Without
    `precondition` all inputs share one scale, and the score is scaled instead.
    Memory: four (d_out, d_in) and one (d_in, d_in) float32 matrices; while it is factored, four
    of the latter and none of the former.
    """

    def __init__(
        self, weight: Tensor, gram: Tensor, *, rho: float, damping: float, precondition: bool
    ) -> None:
        check_real("rho", rho, above=0)
        check_real("damping", damping)
        check_switch("precondition", precondition)
        check_shape(gram, weight.shape[1])
        if not all_finite(weight):
            raise NonFinite("weight holds NaN or infinity: check the checkpoint it comes from")
        self.system = _system(gram, rho, damping, precondition)
        self.damping = self.system.damping
        self.total = (weight.float() * self.system.norms).contiguous()  # W + U, with U = 0
        # 2 G W₀ (G + ρI)⁻¹ = 2 (W₀ − ρ W₀ (G + ρI)⁻¹) = W₀ − 2 W₀ matrix
        self.offset = torch.addmm(self.total, self.total, self.system.matrix, alpha=-2)
        self.scratch = torch.empty_like(self.total)
        self.kept = torch.ones_like(self.total)  # the mask as 1 and 0

    def score(self) -> Tensor:
        """|W + U| in units of output, and 0 for dead inputs, whose weights therefore fall first."""
        torch.abs(self.total, out=self.scratch)
        if self.system.to_score is not None:
            self.scratch.mul_(self.system.to_score)
        if self.system.alive is not None:
            self.scratch.mul_(self.system.alive)
        return self.scratch

    def step(self) -> None:
        """Z = (W + U) ⊙ keep;  U = U + W − Z;  W = (G W₀ + ρ (Z − U)) (G + ρI)⁻¹.

        In terms of T = W + U alone: Z − U =: V is T where a weight is kept and −T where not, and
        U = (T − V)/2, so that

            T ← G W₀ (G + ρI)⁻¹ + T/2 + V matrix,  matrix = ρ (G + ρI)⁻¹ − ½I,

        which is one product that adds in place, and three passes over memory.
        """
        torch.mul(self.total, self.kept, out=self.scratch)
        torch.sub(self.total, self.scratch, alpha=2, out=self.scratch)  # −V
        self.total.add_(self.offset)
        self.total.addmm_(self.scratch, self.system.matrix, beta=0.5, alpha=-1)

    def solution(self, keep: Tensor) -> Tensor:
        """Z' = (W + U) ⊙ keep in the units of the original weight."""
        return (self.total * keep).div_(self.system.norms)

    def finish(self) -> Solution:
        """The last solution and its mask, in the state's own memory: it is at its end."""
        keep = self.kept.bool()
        return Solution(self.total.mul_(keep).div_(self.system.norms), keep, self.damping)


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


def check_steps(iterations: int, mask_steps: int) -> None:
    """Raise BadParameter unless 1 ≤ iterations and 0 ≤ mask_steps ≤ iterations."""
    check_whole("iterations", iterations)
    if check_whole("mask_steps", mask_steps, least=0) > iterations:
        raise BadParameter(
            f"mask_steps {mask_steps!r} is more than the {iterations} iterations: "
            "give 0 to iterations"
        )
