"""SparseGPT: prune column by column and let the later columns make up for it.

Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023.
With H the damped Gram matrix (`gram`) and H⁻¹ = RᵀR (R upper triangular), pruning the weight w of
column j adds w²/R[j,j]² to the layer's error if the columns after j change by
−(w/R[j,j]) · R[j, j:]. R holds these rows for every j, so H⁻¹ need not be updated as columns are
done.
"""

import torch
from torch import Tensor

from helpers.errors import BadParameter
from helpers.paper.gram import cholesky, climb_damping, damp, dead_inputs
from helpers.paper.masks import Pattern, keep_largest, top_nm


def solve(
    weight: Tensor,
    gram: Tensor,
    *,
    sparsity: float,
    pattern: Pattern,
    keep: Tensor | None,
    damping: float,
    block_size: int,
) -> tuple[Tensor, Tensor, float]:
    """The pruned weight (d_out, d_in), its mask (d_out, d_in), and the damping that was used.

    gram: (d_in, d_in).

    The mask is chosen for `block_size` columns at a time (N:M: for each group of M) by
    w²/R[j,j]², from weights that already carry the updates of the columns before; or it is `keep`.
    `METHODS` has checked the options, but for how they fit the pattern.
    Raises BadParameter, NotPositiveDefinite.
    """
    if pattern.grouped and block_size % pattern.m:
        raise BadParameter(
            f"block_size {block_size!r} is not allowed with pattern '{pattern}': give a multiple "
            f"of the group size, for example {16 * pattern.m}"
        )
    R, used = _inverse_factor(gram, damping)
    alive = ~dead_inputs(gram)
    rows, d_in = weight.shape
    # a copy, because the columns are updated in place and the caller's weight must stay as it is
    W = weight.clone()
    chosen = torch.ones_like(weight, dtype=torch.bool)
    for start in range(0, d_in, block_size):
        stop = min(start + block_size, d_in)
        block = slice(start, stop)
        # Three ways to a block's mask: given, chosen for the whole block now, or (N:M) group by
        # group inside _prune_columns
        if keep is not None:
            chosen[:, block] = keep[:, block]
        elif not pattern.grouped:
            # (d_out, block): what pruning each weight would add to the error, from weights already
            # updated. A dead input adds nothing, so its weights are pruned first. One row: all
            # outputs compete within the block
            score = (W[:, block] / R[block, block].diagonal()) ** 2 * alive[block]
            # counted from the left, so that rounding does not add up over the blocks
            zeros = round(sparsity * rows * stop) - round(sparsity * rows * start)
            chosen[:, block] = keep_largest(score.reshape(1, -1), zeros).view(rows, -1)
        choose = pattern if keep is None and pattern.grouped else None
        # Column by column inside the block, on views that fit the cache. Updating all later columns
        # at each step would read the whole matrix d_in times
        errors = _prune_columns(
            W[:, block], chosen[:, block], R[block, block], alive[block], choose
        )
        # the columns after the block change by all its errors in one product
        W[:, stop:] -= errors @ R[block, stop:]
    # w − (w/R[j,j]) · R[j,j] is 0 only up to rounding, so the zeros are made exact
    return W * chosen, chosen, used


def _prune_columns(
    W: Tensor,
    keep: Tensor,
    R: Tensor,
    alive: Tensor,
    pattern: Pattern | None,
) -> Tensor:
    """Prune one block of columns, in place on the views W and keep (d_out, block).

    With a pattern the mask of each group is chosen when its first column is reached.
    Returns the errors w/R[j,j] of the pruned weights (d_out, block), 0 for those that stay.
    """
    # R[j,j]² is the entry j,j of (H restricted to columns j and later)⁻¹: the columns before are
    # done and may not change any more. This is why the inverse's Cholesky factor holds all that is
    # needed
    diagonal = R.diagonal()
    errors = torch.zeros_like(W)
    for j in range(W.shape[1]):
        # j counts from the block's start; groups never cross it, as block_size is a multiple of M
        if pattern and j % pattern.m == 0:
            group = slice(j, j + pattern.m)
            score = (W[:, group] / diagonal[group]) ** 2 * alive[group]
            keep[:, group] = top_nm(score, pattern.n, pattern.m)
        errors[:, j] = W[:, j] * ~keep[:, j] / diagonal[j]
        # A rank-one update, (d_out, 1) · (1, block − j): column j becomes zero where it is pruned,
        # the columns after it make up for that, and rows with error 0 stay as they are
        W[:, j:] -= errors[:, j : j + 1] * R[j, j:]
    return errors


def _inverse_factor(gram: Tensor, damping: float) -> tuple[Tensor, float]:
    """R, the upper Cholesky factor of the damped gram's inverse, and the damping used.

    A dead input gets a unit diagonal before damping, so that it touches no other.
    """
    # a copy, because other layers may share the gram
    H = gram.clone()
    H.diagonal().add_(dead_inputs(gram))

    def attempt(rung: float) -> tuple[Tensor, float] | None:
        lower = cholesky(damp(H, rung))
        if lower is None:
            return None
        # the inverse of a barely positive matrix need not be positive after rounding
        R = cholesky(torch.cholesky_inverse(lower), upper=True)
        return None if R is None else (R, rung)

    return climb_damping(damping, attempt)
