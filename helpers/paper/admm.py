"""The paper's solver: refit the surviving weights of one layer by ADMM.

Boža, "Fast and Effective Weight Update for Pruned Large Language Models", TMLR 2024
(arXiv 2401.02938). A layer's problem is

    minimise ‖XW − XŴ‖²  over Ŵ that is zero outside `keep`.

ADMM splits it in two that are easy: W, free of the mask, fits the outputs (a ridge regression
with one matrix for all outputs and iterations), and Z, a copy of it, obeys the mask: it is W + U
projected onto what is allowed. U is the scaled dual variable: it adds up how far the two are apart
and pulls them together, with a strength ρ. `admm` below is that loop. It stands here to be read,
and the projection is an argument: `fixed_mask`, `gradual_mask` (either also N:M), or one's own.
`admm_grad` runs the same loop as `helpers.paper.fast.fused` writes it, with options, for a whole
model.

The paper writes W as (d_in, d_out). Here W, Z and U have the shape of `torch.nn.Linear`'s weight,
(d_out, d_in): every formula is the paper's transposed, so (G + ρI)⁻¹ multiplies from the right.
Nothing else changes, since G is symmetric.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from helpers.device import all_finite
from helpers.errors import BadParameter, NonFinite
from helpers.options import (
    Count,
    CountFromZero,
    NotNegative,
    Positive,
    Switch,
    check_whole,
    one_of,
    validated,
)
from helpers.paper.fast import fused
from helpers.paper.gram import (
    Gram,
    add_ridge,
    cholesky,
    climb_damping,
    damp,
    dead_inputs,
    normalise,
)
from helpers.paper.layer import Layer, LayerResult
from helpers.paper.masks import (
    BUDGETS,
    Pattern,
    choose_mask,
    cubic_schedule,
    only_within,
    select,
    sparsity_of,
)

# project(T, t): of all weights that iteration t allows, those nearest to T = W + U, (d_out, d_in)
Projection = Callable[[Tensor, int], Tensor]
# trace(iteration, weight, keep): called after each iteration with the un-scaled masked solution
Trace = Callable[[int, Tensor, Tensor], None]
# where the weights come from in the end: the iterations, or the optimum on their mask
FINISHES = ("admm", "exact")


def admm(
    W0: Tensor,
    G: Tensor,
    project: Projection,
    *,
    rho: float = 1.0,
    iterations: int = 20,
) -> Tensor:
    """The paper's algorithm, written to be read; returns Z, which obeys `project`.

    Args: W0 (d_out, d_in), the dense weights with each column multiplied by the norm of its input;
    G (d_in, d_in), the gram of inputs of unit norm, damped. `damped_system` gives both scales.
    """
    _check_steps("steps", getattr(project, "steps", 0), iterations)
    # (G + ρI)⁻¹. One inverse, O(d_in³), serves all outputs and iterations, since neither G nor ρ
    # changes. This is what makes ADMM cheap: an iteration is then matrix products only,
    # O(d_out · d_in²)
    inverse = torch.cholesky_inverse(
        torch.linalg.cholesky(G + rho * torch.eye(len(G)).to(G))
    )
    # W₀ solves the W step without a mask, so the loop can begin with the Z step
    W, U = W0, torch.zeros_like(W0)
    for t in range(1, iterations + 1):
        # Z step: minimise ‖W + U − Z‖² over the Z that are allowed, which is a projection
        Z = project(W + U, t)
        # U step: the sum of all gaps W − Z so far. Where a weight is pruned Z is 0, and U changes
        # until the W step below makes W nearly 0 there too
        U = U + W - Z  # add up what the projection removed
        # W step: minimise ½‖X(W − W₀)‖² + ρ/2 ‖W − Z + U‖². Its gradient is 0 where
        #     W (G + ρI) = W₀ G + ρ (Z − U),     the paper's formula transposed
        # refit the outputs, pulled towards Z − U
        W = (W0 @ G + rho * (Z - U)) @ inverse
    # one more Z step, so that what is returned is allowed. On a mask U is 0 where a weight is kept
    # (there Z = W + U), so this is W on the mask
    return project(W + U, iterations + 1)


def fixed_mask(keep: Tensor) -> Projection:
    """Onto one mask (d_out, d_in), True where a weight stays.

    ADMM1 is `admm` with a mask that is chosen from W0: `fixed_mask(top_k(W0.abs(), 0.6))`, or
    `fixed_mask(top_nm(W0.abs(), 2, 4))`.
    """
    # the entries are independent, so the nearest weights are copied where kept, and 0 elsewhere
    return lambda T, t: T * keep


def gradual_mask(
    sparsity: float, pattern: str | Pattern = "unstructured", steps: int = 15
) -> Projection:
    """ADMM-Grad: a new mask in each of the first `steps` iterations, with more zeros each time.

    steps: at least 1, and no more than there are iterations. Make one for each layer, since it
    remembers its mask. Raises BadParameter for others, and `admm` for more than it has iterations.
    """
    check_whole("steps", steps)
    keep = None

    def project(T: Tensor, t: int) -> Tensor:
        nonlocal keep
        if t <= steps:
            # The inputs have unit norm, so |W + U| is Wanda's score |W|·‖x‖. A pruned weight may
            # return, since U remembers its score
            keep = select(T.abs(), cubic_schedule(sparsity, t, steps), pattern)
        return T * keep

    project.steps = steps  # which `admm` compares
    return project


@validated
def refit(
    weight: Tensor,
    gram: Tensor | Gram,
    keep: Tensor,
    *,
    rho: Positive = 1.0,
    iterations: Count = 20,
    damping: NotNegative = 0.1,
    precondition: Switch = True,
    trace: Trace | None = None,
) -> LayerResult:
    """ADMM on a fixed mask.

    Args:
        weight: (d_out, d_in).
        gram: (d_in, d_in), see `helpers.paper.gram`.
        keep: (d_out, d_in), bool; its sparsity is the caller's choice.
        rho: the penalty. The inputs are scaled to unit norm, so 1 suits every layer.
        iterations: of Z, U and W step.
        damping: a ridge as a fraction of mean(diag G), which pulls towards the dense weights.
        precondition: False to solve the same problem without that scaling, see `damped_system`.
        trace: called after each iteration.
    Raises BadParameter, NonFinite, NotPositiveDefinite.
    """
    layer = Layer.of(weight, gram, keep)
    return admm_grad(
        weight,
        layer.gram,
        sparsity=layer.sparsity,
        pattern=layer.pattern,
        keep=keep,
        rho=rho,
        iterations=iterations,
        mask_steps=0,
        damping=damping,
        precondition=precondition,
        trace=trace,
    )


def admm_grad(
    weight: Tensor,
    gram: Gram,
    *,
    sparsity: float,
    pattern: Pattern,
    keep: Tensor | None = None,
    within: Tensor | None = None,
    schedule: one_of("paper", "released") = "paper",
    rho: Positive = 1.0,
    iterations: Count = 20,
    mask_steps: CountFromZero = 15,
    damping: NotNegative = 0.1,
    budget: one_of(*BUDGETS) = "matrix",
    precondition: Switch = True,
    finish: one_of(*FINISHES) = "admm",
    trace: Trace | None = None,
) -> LayerResult:
    """ADMM with a gradual mask (the paper's ADMM-Grad): `admm` in its fast form.

    With `keep` it runs on that mask. Otherwise in each of the first `mask_steps` iterations `keep`
    is chosen again from |W + U| at the sparsity of the cubic schedule; the remaining iterations
    refit on the final mask. `schedule="released"` does what the published code does instead of what
    the paper says: unstructured pruning with a budget per matrix selects at the full target
    sparsity in every mask step (its other paths follow the cubic schedule, and so do ours). With
    `mask_steps=0` the mask is chosen once from the dense weights (that is `admm1`). With a mask
    `within` every mask lies in that one, and the schedule begins at its sparsity.
    `finish="exact"` replaces the weights by the optimum on the same mask (`exact_least_squares`
    with the same damping): how far 20 iterations are from it, and slow.
    trace(iteration, weight, keep) is called after each iteration.

    weight and keep are (d_out, d_in), gram is (d_in, d_in). Layer and options are trusted: `refit`
    and `METHODS` check them. The result is checked here. Layers that share a Gram share its
    factorisation.
    """
    if keep is None:
        _check_steps("mask_steps", mask_steps, iterations)
    # The mask has no part in it: ADMM inverts one matrix for all masks, where exact least squares
    # needs a matrix for each output
    system = gram.derived(_factor, rho, damping, precondition)
    # pruned to the full sparsity in each mask step, without the cubic schedule
    one_shot = mask_steps == 0
    if schedule == "released" and not pattern.grouped and budget == "matrix":
        one_shot = True

    # where the schedule begins (Zhu & Gupta's s_i)
    first = 0.0 if within is None else sparsity_of(within)

    def choose(iteration: int, T: Tensor, scratch: Tensor, out: Tensor):
        """Write the mask of this iteration, chosen from T = W + U, to `out` as 1 and 0."""
        if keep is not None:
            # `out` keeps what was written there, so a fixed mask is written once
            if iteration == 1:
                out.copy_(keep)
            return
        # mask_steps = 0 too needs one choice: in iteration 1 U is 0 and T is W₀, as ADMM1 wants it
        if iteration > max(mask_steps, 1):
            return
        # in the solver's own scratch memory: at this size a new tensor in each iteration is
        # slow. The score covers pruned weights too, so one may return in a later step
        score = torch.abs(T, out=scratch)
        if system.importance is not None:
            score.mul_(system.importance)
        now = sparsity
        if not one_shot:
            now = first + cubic_schedule(sparsity - first, iteration, mask_steps)
        choose_mask(only_within(score, within), now, pattern, budget, out=out)
        if within is not None:
            # with a budget per output, one that has more zeros than this step asks for
            out.mul_(within)

    def unscaled(iteration: int, Z: Tensor, kept: Tensor):
        # Z was made for the trace alone, so it may be changed in place
        trace(iteration, Z.div_(system.norms), kept)

    # A new tensor, as `fused.admm` overwrites it. The product broadcasts along the inputs: column j
    # is multiplied by n_j. Conv1D's weight comes as a transposed view, hence `contiguous`
    W0 = (weight.detach().float() * system.norms).contiguous()
    Z, kept = fused.admm(
        W0,
        system.M,
        iterations=iterations,
        choose=choose,
        trace=unscaled if trace else None,
    )
    if finish == "exact":
        new = _exact(weight, gram.matrix, kept, system.damping)
    else:
        new = Z.div_(system.norms)
    # also what a NaN on the way would have done to the mask ends here
    if not all_finite(new):
        raise NonFinite(
            "the refitted weight holds NaN or infinity: weights or activations are too large for "
            "float32; check the checkpoint"
        )
    return LayerResult(new, kept, damping=system.damping)


def _check_steps(name: str, steps: int, iterations: int) -> None:
    """Raise BadParameter if a mask would not be done: it grows for more steps than there are."""
    if steps > iterations:
        raise BadParameter(
            f"{name} {steps!r} is more than the {iterations} iterations: give at most "
            f"{iterations}, or more iterations"
        )


class _System(NamedTuple):
    """The factored matrix of a gram, shared by all layers that read its input.

    M: see `helpers.paper.fast.fused`; norms: the factor from weights to the solver's coordinates,
    (d_in,) or (); damping: the one that was used; importance: what |W + U| is multiplied by to
    be a score, None for 1.
    """

    M: Tensor
    norms: Tensor
    damping: float
    importance: Tensor | None


def _factor(gram: Tensor, rho: float, damping: float, precondition: bool) -> _System:
    """Factor the scaled and damped gram + ρI, with more damping where that fails.

    Memory: while it is factored four matrices of the gram's size, then one.
    """

    def attempt(rung: float) -> _System | None:
        # computed again on each rung, since the rung before has written into its own copy
        shifted, norms = damped_system(gram.float(), rung, precondition=precondition)
        shifted.diagonal().add_(rho)
        lower = cholesky(shifted)
        del shifted  # as large as the gram, and not needed any more
        if lower is None:
            return None
        # An explicit inverse loses a few digits against two triangular solves an iteration, but
        # damping and ρ keep G + ρI well conditioned, and one product is quicker than two solves
        M = fused.step_matrix(torch.cholesky_inverse(lower), rho)
        # a score is in units of the output: without preconditioning it has to be scaled; and
        # a dead input's weights, whose score is 0, are pruned first
        # (|s·w| · n/s = |n·w|, which is Wanda's)
        importance = None if precondition else normalise(gram)[1] / norms
        # `normalise` gives a dead input the norm 1, so its |w| would be taken for a real score
        alive = ~dead_inputs(gram)
        if not alive.all():
            importance = alive if importance is None else importance * alive
        return _System(M, norms, rung, importance)

    return climb_damping(damping, attempt)


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
    # damped after normalising, so that every input gets the same share of ridge, large or small
    damped, norms = normalise(gram)
    add_ridge(damped, damping)
    if precondition:
        return damped, norms
    dead = dead_inputs(gram)
    # gram = N G N, so multiplying by n on both sides undoes `normalise`; the ridge of input i is
    # then damping · mean(diag G) · n_i², the same problem in other coordinates
    typical = norms.square()[~dead].mean() if not dead.all() else norms.new_ones(())
    return damped.mul_(norms).mul_(norms[:, None] / typical), typical.sqrt()


@validated
def exact_least_squares(
    weight: Tensor, gram: Tensor, keep: Tensor, *, damping: NotNegative = 0.0
) -> Tensor:
    """The optimum that ADMM converges to: least squares on each output's own support.

    Solves, in float64 and for each output, G[S,S] ŵ[S] = (G w)[S] over the kept inputs S, where
    G is the scaled gram with the same damping as the solver's. A singular system gives the
    solution of least norm. Cost: for each output, one dense solve of the size of its support.
    Returns (d_out, d_in) in the weight's type. Raises the same errors as `refit`.
    """
    Layer.of(weight, gram, keep)
    return _exact(weight, gram, keep, damping)


def _exact(weight: Tensor, gram: Tensor, keep: Tensor, damping: float) -> Tensor:
    """`exact_least_squares` without its checks."""
    # from the gram as it was given, and float64: the reference has to be far more exact than the
    # solvers it judges
    scaled, norms = normalise(gram.double())
    damped = damp(scaled, damping)
    dense = weight.double() * norms
    # (G w)[S] needs all of w: the kept weights also stand in for the pruned ones
    target = dense @ damped
    exact = torch.zeros_like(dense)
    # Each output has a support of its own, hence a matrix of its own: O(d_out · d_in³) in all. This
    # cost is why the paper uses ADMM
    for row in range(dense.shape[0]):
        support = keep[row].nonzero().squeeze(1)
        if not len(support):
            continue
        # the rows and columns of the support, (k, k), and its k right-hand sides
        system = damped[support[:, None], support]
        right = target[row, support]
        lower, info = torch.linalg.cholesky_ex(system)
        if info.item() == 0:
            exact[row, support] = torch.cholesky_solve(right[:, None], lower).squeeze(1)
        else:
            # without damping, inputs that are linearly dependent or dead leave no unique solution
            exact[row, support] = torch.linalg.pinv(system, hermitian=True) @ right
    return (exact / norms).to(weight.dtype)
