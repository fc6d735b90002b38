"""Finish a layer: go to the optimum of a mask, with a proof of how near it is.

A method that chose a mask seldom ends at the best weights for it: Wanda updates none, SparseGPT
looks at each column once, and ADMM stops after 20 iterations. With the mask fixed the problem is
least squares, and conjugate gradients solve it from wherever the method ended.

The proof costs one product. Let f(Ŵ) = tr((Ŵ − W) D (Ŵ − W)ᵀ) be the damped objective (see
`helpers.admm.damped_system`), Ŵ* its optimum on the mask, and R = (W − Ŵ) D on the mask: half the
negative gradient, which is 0 at the optimum. For an output with support S and row r of R,

    f(ŵ) − f(ŵ*) = (ŵ − ŵ*) D_SS (ŵ − ŵ*)ᵀ = r D_SS⁻¹ rᵀ ≤ ‖r‖²/δ,

since ŵ − ŵ* = −r D_SS⁻¹ and no eigenvalue of D is below δ, the ridge that damping adds to a gram,
whose own eigenvalues are 0 or more. So f* lies between f − ‖R‖²/δ and f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.admm import Solution
from helpers.errors import check_real, check_whole
from helpers.gradient_methods import MaskedLeastSquares, conjugate_steps

TOLERANCE = 1e-4  # of the optimum: far below the difference between any two methods
ITERATIONS = 150
# A bound needs the residual itself, which the steps only update: it is computed anew after so many
# iterations, then after twice as many and so on. The restart also ends the drift of rounding
FIRST_ROUND = 10
STALLED = 0.9  # a round that leaves more of the bound than that has reached float32's rounding


@dataclass(frozen=True)
class Finished(Solution):
    """A solved layer with its certificate; weight, keep and damping as in `Solution`.

    objective: f(Ŵ), in the units of the gram, summed over outputs; excess: what f(Ŵ) − f(Ŵ*) is
    at most, infinite without damping; iterations: of conjugate gradients, 0 for none.
    """

    objective: float
    excess: float
    iterations: int

    @property
    def gap(self) -> float | None:
        """What (f(Ŵ) − f*)/f* is at most; None where nothing is proved."""
        gap = _ratio(self.objective, self.excess)
        return gap if math.isfinite(gap) else None


def finish(
    weight: Tensor,
    gram: Tensor,
    keep: Tensor,
    *,
    start: Tensor | None = None,
    damping: float = 0.1,
    tolerance: float = TOLERANCE,
    iterations: int = ITERATIONS,
) -> Finished:
    """The optimum of the damped objective on a mask, by preconditioned conjugate gradients.

    Args: weight (d_out, d_in), the dense one; gram (d_in, d_in); keep (d_out, d_in) bool; start
    (d_out, d_in), where to begin on the support, such as a method's answer (by default the masked
    weight); damping, a ridge as a fraction of mean(diag G), G the gram of inputs of unit norm. It
    stops once the gap is proved to be `tolerance` or less, after `iterations`, or where float32
    allows no more; so read `gap` in the answer. With damping 0 nothing can be proved, and all
    iterations are made.

    The bound holds but for rounding: of the product that it is computed from, in float64 for a
    float64 weight and else in float32, and of the gram, whose least eigenvalue may be below 0 by
    10⁻⁷ of the largest, so that a damping near that proves nothing. Scaling the
    inputs to unit norm is Jacobi's preconditioner.
    Cost: O(d_out · d_in²) an iteration, as ADMM's, and no factorisation.
    Raises BadParameter, NonFinite.
    """
    check_real("tolerance", tolerance)
    check_whole("iterations", iterations, least=0)
    problem, current = _problem(weight, gram, keep, start, damping)
    best, (objective, excess) = current.clone(), _certify(problem, current)
    done, steps = 0, FIRST_ROUND
    while done < iterations and _ratio(objective, excess) > tolerance:
        steps = min(steps, iterations - done)
        conjugate_steps(problem, current, steps)
        done += steps
        before, (now, bound) = excess, _certify(problem, current)
        # without damping every bound is infinite, and only the steps themselves can be trusted
        if bound < excess or damping == 0:
            best, (objective, excess) = current.clone(), (now, bound)
        # residuals may rise for a while, so the first round proves nothing
        if damping and done > FIRST_ROUND and bound > STALLED * before:
            break
        steps *= 2
    solved = problem.solution(best, "conjugate gradients", "more damping")
    return Finished(solved.weight, keep, solved.damping, objective, excess, done)


def certify(
    weight: Tensor, gram: Tensor, keep: Tensor, new: Tensor, *, damping: float = 0.1
) -> Finished:
    """`new`, (d_out, d_in), as it is, with its certificate. Arguments and errors as `finish`."""
    return finish(weight, gram, keep, start=new, damping=damping, iterations=0)


def _problem(
    weight: Tensor, gram: Tensor, keep: Tensor, start: Tensor | None, damping: float
) -> tuple[MaskedLeastSquares, Tensor]:
    """The problem in scaled inputs, and where to begin in its coordinates."""
    settings = dict(iterations=1, damping=damping, precondition=True)
    problem = MaskedLeastSquares(weight, gram, keep, **settings)
    return problem, problem.begin(start)


def _ratio(objective: float, excess: float) -> float:
    """The bound on (f − f*)/f* that follows from f* ≥ f − excess; infinite if that may be 0."""
    if excess == 0:
        return 0.0
    return excess / (objective - excess) if excess < objective else math.inf


def _certify(problem: MaskedLeastSquares, current: Tensor) -> tuple[float, float]:
    """f of a point in the problem's coordinates, and its excess over the optimum at most."""
    change = current - problem.dense
    # not `problem.gradient`, which subtracts two large products: near the dense weights the
    # rounding of their difference would be all that is left
    image = change @ problem.D
    objective = (image * change).sum(dtype=torch.float64).item()
    residual = image.mul_(problem.keep).square_().sum(dtype=torch.float64).item()
    # D's diagonal is that of G times 1 + damping, and the ridge is damping times G's mean
    diagonal = problem.D.diagonal().mean().item()
    ridge = problem.damping / (1 + problem.damping) * diagonal
    if residual == 0:
        return max(0.0, objective), 0.0
    return max(0.0, objective), residual / ridge if ridge > 0 else math.inf
