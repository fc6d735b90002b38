"""The package's layer methods, registered in `METHODS` (`helpers.registry`)."""

from helpers import admm, sparsegpt
from helpers.alps import alps
from helpers.layer import LayerResult
from helpers.masks import BUDGETS, select
from helpers.options import Count, NotNegative, Positive, Switch, one_of
from helpers.registry import METHODS, get_method, register

# import METHODS from here: this module is what fills it
__all__ = ["METHODS", "get_method", "register"]

Budget = one_of(*BUDGETS)


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
        keep = select(
            weight.abs().mul_(gram.diagonal().sqrt()), sparsity, pattern, budget
        )
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
    # without mask steps the mask is chosen once, from |W₀|, which is Wanda's score
    return admm.admm_grad(
        weight,
        gram,
        sparsity=sparsity,
        pattern=pattern,
        keep=keep,
        rho=rho,
        iterations=iterations,
        mask_steps=0,
        damping=damping,
        budget=budget,
        precondition=precondition,
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
    # mask and update are one pass: a column's mask depends on the updates of the columns before it
    new, keep, used = sparsegpt.solve(
        weight,
        gram,
        sparsity=sparsity,
        pattern=pattern,
        keep=keep,
        damping=damping,
        block_size=block_size,
    )
    return LayerResult(new, keep, damping=used)


admm_grad = register("admm-grad", shares_factor=True)(admm.admm_grad)
# a baseline that is not in the paper
register("alps", shares_factor=True)(alps)
