"""The package's layer methods, each behind the door of `helpers.registry`."""

from __future__ import annotations

from helpers import admm, sparsegpt
from helpers.beyond.alps import alps
from helpers.errors import (
    BadParameter,
    Count,
    CountFromZero,
    NotNegative,
    Positive,
    Switch,
    one_of,
)
from helpers.layer import Layer, LayerResult
from helpers.masks import BUDGETS, select
from helpers.registry import METHODS, get_method, register

# taken from here the registry holds the methods below
__all__ = ["METHODS", "get_method", "register"]

Budget = one_of(*BUDGETS)
Schedule = one_of(*admm.SCHEDULES)


@register("magnitude", needs_calibration=False)
def magnitude(weight, gram, *, sparsity, pattern, keep=None, budget: Budget = "matrix"):
    """Keep the largest |W|; weights are not updated (Han et al. 2015)."""
    if keep is None:
        # without ‖x‖: a weight on a large input counts for no more than another
        keep = select(weight.abs(), sparsity, pattern, budget)
    return LayerResult(weight * keep, keep)


@register("wanda")
def wanda(weight, gram, *, sparsity, pattern, keep=None, budget: Budget = "output"):
    """Keep the largest |W|·‖x‖ in each output; weights are not updated (Sun et al. 2024)."""
    if keep is None:
        # gram_jj = ‖x_j‖²: the score's column j is multiplied by ‖x_j‖
        keep = select(weight.abs().mul_(gram.diagonal().sqrt()), sparsity, pattern, budget)
    return LayerResult(weight * keep, keep)


@register("admm1", shares_factor=True)
def admm1(
    weight,
    gram,
    *,
    sparsity,
    pattern,
    keep=None,
    rho: Positive = 1.0,
    iterations: Count = 20,
    damping: NotNegative = 0.1,
    budget: Budget = "matrix",
    precondition: Switch = True,
):
    """One mask from |W|·‖x‖, then ADMM on it (the paper's ADMM1)."""
    if keep is None:
        # this is |W₀| of the solver, so the mask is that of ADMM-Grad with mask_steps=0
        norms = gram.matrix.diagonal().sqrt()
        keep = select(weight.abs().mul_(norms), sparsity, pattern, budget)
    return admm.solve(
        Layer(weight, gram, keep),
        rho=rho,
        iterations=iterations,
        damping=damping,
        precondition=precondition,
    )


@register("admm-grad", shares_factor=True)
def admm_grad(
    weight,
    gram,
    *,
    sparsity,
    pattern,
    keep=None,
    schedule: Schedule = "paper",
    rho: Positive = 1.0,
    iterations: Count = 20,
    mask_steps: CountFromZero = 15,
    damping: NotNegative = 0.1,
    budget: Budget = "matrix",
    precondition: Switch = True,
    trace=None,
):
    """ADMM with a gradually growing mask (the paper's ADMM-Grad); with `keep`, on that mask.

    trace(iteration, weight, keep) is called after each iteration.
    """
    if mask_steps > iterations:
        raise BadParameter(
            f"mask_steps {mask_steps!r} is more than the {iterations} iterations: "
            f"give mask_steps from 0 to {iterations}, or more iterations"
        )
    return admm.solve(
        Layer(weight, gram, keep, sparsity, pattern),
        schedule=schedule,
        rho=rho,
        iterations=iterations,
        mask_steps=mask_steps,
        damping=damping,
        budget=budget,
        precondition=precondition,
        trace=trace,
    )


@register("sparsegpt")
def sparse_gpt(
    weight,
    gram,
    *,
    sparsity,
    pattern,
    keep=None,
    damping: NotNegative = 0.01,
    block_size: Count = 128,
):
    """Column by column, later columns making up for earlier ones (Frantar & Alistarh 2023)."""
    options = dict(keep=keep, damping=damping, block_size=block_size)
    # mask and update are one pass: a column's mask depends on the updates of the columns before it
    new, keep, used = sparsegpt.solve(weight, gram, sparsity=sparsity, pattern=pattern, **options)
    return LayerResult(new, keep, damping=used)


# a peer of ADMM-Grad, see `helpers.beyond.alps`
register("alps", shares_factor=True)(alps)
