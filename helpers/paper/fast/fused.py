"""ADMM with one matrix product and three passes over memory an iteration.

The plain loop (`helpers.paper.admm.admm`) keeps W, Z and U. Their sum T = W + U is enough:

    Z = T ⊙ keep                      the masked weights
    U ← T − Z                         so U is T where a weight is pruned, and 0 where it is kept
    Z − U = V                         V is T where a weight is kept, and −T where not
    U = (T − V)/2                     the same U, without a mask

With W ← (W₀ G + ρ (Z − U)) (G + ρI)⁻¹ the next T = W + U is

    T ← W₀ G (G + ρI)⁻¹ + T/2 + V (ρ (G + ρI)⁻¹ − ½ I)
        └── constant ──┘           └─ step matrix M ─┘

and since W₀ G (G + ρI)⁻¹ = W₀ − ρ W₀ (G + ρI)⁻¹, twice the constant is W₀ − 2 W₀ M.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.device import products

# A GPU rounds the factors of its products to TF32, except in so many iterations at the end: on one
# mask these remove the rounding of the iterations before. While the mask still changes, the result
# may differ from a CPU's as it does between two batch sizes; the error does not (test_admm.py)
EXACT_ITERATIONS = 5

# choose(iteration, T, scratch, out): write the mask of this iteration to `out` as 1 and 0, or
# leave it; `scratch` is memory of T's shape that may be overwritten
Choose = Callable[[int, Tensor, Tensor, Tensor], object]


def step_matrix(inverse: Tensor, rho: float) -> Tensor:
    """M = ρ (G + ρI)⁻¹ − ½ I, in the memory of `inverse` = (G + ρI)⁻¹, (d_in, d_in)."""
    # `diagonal` is a view, so subtracting from it changes the matrix
    inverse.mul_(rho).diagonal().sub_(0.5)
    return inverse


def admm(
    W0: Tensor,
    M: Tensor,
    *,
    iterations: int,
    choose: Choose,
    trace: Callable[[int, Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """(Z, keep) after some iterations from the dense weights W0 (d_out, d_in), see the module.

    W0 is overwritten with the result. trace(iteration, Z, keep) is called after each iteration.
    Memory: three matrices (d_out, d_in) in addition to W0 and M.
    """
    T = W0  # U = 0, so W + U = W₀
    # twice the constant: it is halved with T below. Its rounding would be in every iteration
    with products("exact", T.device):
        constant = torch.addmm(T, T, M, alpha=-2)
    scratch = torch.empty_like(T)
    kept = torch.ones_like(T)  # the mask as 1 and 0
    rounded = max(0, iterations - EXACT_ITERATIONS)
    first = range(1, rounded + 1)
    last = range(rounded + 1, iterations + 1)
    # one loop over all iterations, in two precisions
    for precision, part in (("tf32", first), ("exact", last)):
        with products(precision, T.device):
            for iteration in part:
                choose(iteration, T, scratch, kept)
                # three passes over memory (mul, sub, add) and the product; W, Z and U need twice
                # as many
                torch.mul(T, kept, out=scratch)  # Z
                # T − 2Z is T where pruned and −T where kept
                torch.sub(T, scratch, alpha=2, out=scratch)  # −V
                T.add_(constant)
                # ½ (T + twice the constant) − (−V) M: the module's formula in one call
                T.addmm_(scratch, M, beta=0.5, alpha=-1)
                if trace:
                    # T is the next iteration's W + U: T ⊙ keep is the result if the loop ends here.
                    # What the trace multiplies, such as for an error, is not to be rounded
                    with products("exact", T.device):
                        trace(iteration, T * kept, kept.bool())
    keep = kept.bool()
    return T.mul_(keep), keep
