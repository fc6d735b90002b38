"""The method "alps": ADMM that chooses its mask by itself, under a penalty that rises.

Meng, Behdin, Wang & Mazumder, "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for
Large Language Models", NeurIPS 2024 (arXiv 2406.07831). As in `helpers.paper.admm`, W fits the
outputs and Z, a copy of it, is sparse. There zeros are added by a schedule and ρ is constant. Here
Z has the full sparsity from the start, and ρ is small: W may stay far from Z, and the mask still
changes much. While it does ρ rises, quickly at first, until W and Z agree on a mask:

    W = (W₀ G + ρ Z − V) (G + ρI)⁻¹;   Z = the largest entries of W + V/ρ;   V = V + ρ (W − Z)

V is the dual variable itself. `helpers.paper.admm` has U = V/ρ, which would have to be rescaled
each time ρ rises. Conjugate gradients then finish the weights on the mask.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from helpers.options import Count, NotNegative, Positive, one_of
from helpers.paper.admm import damped_system
from helpers.paper.gradient_methods import conjugate_gradients
from helpers.paper.gram import Gram, dead_inputs
from helpers.paper.layer import LayerResult
from helpers.paper.masks import BUDGETS, Pattern, choose_mask, only_within

CG_STEPS = 10  # of conjugate gradients on the final mask
EVERY = 3  # iterations from one look at the mask to the next
# ρ is multiplied by the factor of the first line whose share of the kept weights has changed
RISES = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))


class _Eigen(NamedTuple):
    """The damped gram of inputs of unit norm as vectors diag(values) vectorsᵀ, and their norms."""

    values: Tensor
    vectors: Tensor
    norms: Tensor
    alive: Tensor


def eigen(gram: Tensor, damping: float) -> _Eigen:
    """The decomposition of a gram (d_in, d_in) with inputs scaled to unit norm, O(d_in³)."""
    # (G + ρI)⁻¹ is then vectors diag(1/(values + ρ)) vectorsᵀ for every ρ. A Cholesky factor, which
    # is cheaper, would have to be made again for each
    damped, norms = damped_system(gram.float(), damping)
    values, vectors = torch.linalg.eigh(damped)
    # rounding: no eigenvalue of a gram is below 0
    return _Eigen(values.clamp_(min=0), vectors, norms, ~dead_inputs(gram))


def alps(
    weight: Tensor,
    gram: Gram,
    *,
    sparsity: float,
    pattern: Pattern,
    keep: Tensor | None = None,
    within: Tensor | None = None,
    rho: Positive = 0.1,
    iterations: Count = 300,
    damping: NotNegative = 0.01,
    budget: one_of(*BUDGETS) = "matrix",
) -> LayerResult:
    """l0-constrained ADMM with a rising penalty, then conjugate gradients (ALPS, Meng et al. 2024).

    Args:
        keep: with a mask there is none to find, only weights to solve for.
        within: a mask that the one to be found lies in.
        rho: where the penalty begins.
        iterations: of ADMM at most, as it ends when the mask is stable. CG_STEPS of conjugate
            gradients follow.
    Defaults are the authors'. Their released code also lowers ρ where the mask never changes; here,
    as in their paper, that ends the search. They add the ridge before the inputs are scaled, which
    differs for inputs of unequal size.
    Cost: an eigendecomposition for each gram, then two products, O(d_out · d_in²), an iteration.
    """
    start = None
    if keep is None:
        G = gram.derived(eigen, damping)

        def choose(T: Tensor) -> Tensor:
            # inputs of unit norm: |T| is Wanda's score, and a dead input's weights are pruned first
            score = only_within(T.abs() * G.alive, within)
            return choose_mask(score, sparsity, pattern, budget)

        start, keep = mask_search(
            weight * G.norms, G, choose, rho=rho, iterations=iterations
        )
        start /= G.norms
    return conjugate_gradients(
        weight, gram.matrix, keep, iterations=CG_STEPS, damping=damping, start=start
    )


def mask_search(
    W0: Tensor,
    G: _Eigen,
    choose: Callable[[Tensor], Tensor],
    *,
    rho: float,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """Z (d_out, d_in), in scaled inputs as W0 is, and its mask (d_out, d_in), once that is stable.

    choose: the mask of T = W + V/ρ, (d_out, d_in).
    """
    fit = (W0 @ G.vectors) * G.values  # W₀ G, in the eigenvectors' coordinates
    # the first mask is Wanda's, of the dense weights
    keep = before = choose(W0)
    Z = W0 * keep
    V = torch.zeros_like(W0)
    for iteration in range(1, iterations + 1):
        # W step: W (G + ρI) = W₀ G + ρ Z − V
        W = ((fit + (rho * Z - V) @ G.vectors) / (G.values + rho)) @ G.vectors.T
        T = W + V / rho
        keep = choose(T)
        Z = T * keep  # the nearest weights with so many zeros
        V = rho * (T - Z)  # V + ρ (W − Z), as ρ T = ρ W + V
        # from time to time: has the mask come to rest?
        if iteration % EVERY:
            continue
        changed = int((keep ^ before).sum())
        if not changed:
            break
        share = changed / max(1, int(keep.sum()))
        before = keep
        # a larger ρ ties W to Z, and so settles the mask: quickly at first, while it is far from
        # settled, and then with care
        rho *= next(factor for least, factor in RISES if share >= least)
    return Z, keep
