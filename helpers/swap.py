"""Swap: exact local search on a mask, one weight out and one weight in, output by output.

For an output with support S the least that the damped objective can be is

    f(S) = min over ŵ, zero outside S, of (ŵ − w) D (ŵ − w)ᵀ,     b = D wᵀ,

and a swap takes an input j out of S and puts another, i, in. f after each of the |S|·(d_in − |S|)
swaps follows from one table: sweep the matrix [D b] on S (Gauss-Jordan elimination, Goodnight
1979), which solves for the columns in S and leaves, with A = D_SS⁻¹,

    T_SS = −A      T_SP = A D_SP      T_PP = D_PP − D_PS A D_SP      v_S = ŵ      v_P = b − D ŵ.

So v holds the best weights on S, and off S half the negative gradient. Taking j out alone costs
ŵ_j²/A_jj (optimal brain surgeon), and putting i in alone gains v_i²/T_ii. Both at once change f by

    −[v_j v_i] [T_jj T_ji; T_ij T_ii]⁻¹ [v_j v_i]ᵀ
        = (v_j² T_ii − 2 v_j v_i T_ij + v_i² T_jj) / (T_ij² − T_ii T_jj),

which is exact, the refit of all other weights included. And a swap is two sweeps more, on i and on
j: an update of rank one each, where a new inverse would cost O(d_in³).
"""

from __future__ import annotations

import torch
from torch import Tensor

from helpers.admm import Solution, damped_system
from helpers.device import check_weight
from helpers.errors import check_real, check_whole
from helpers.gram import check_gram, cholesky, climb_damping, dead_inputs
from helpers.masks import Pattern, check_keep

TABLE_SIZE = 1 << 24  # numbers in the tables of the outputs that are searched together
LEAST_GAIN = 1e-6  # of an output's f: a swap that gains less ends its search, and none can cycle


def swap(
    weight: Tensor,
    gram: Tensor,
    keep: Tensor,
    *,
    rounds: int = 10,
    pattern: str | Pattern = "unstructured",
    damping: float = 0.1,
) -> Solution:
    """Improve a mask by the best swap of each output, at most `rounds` times, and refit.

    Args: weight (d_out, d_in), the dense one; gram (d_in, d_in); keep (d_out, d_in) bool; pattern,
    an N:M pattern to swap only within its groups; damping, a ridge as a fraction of mean(diag G),
    more where the gram cannot be factored with it. Each output keeps as many weights as before, so
    any budget and pattern stay exact. An output ends early when no swap lowers its f by more than
    `LEAST_GAIN`: its mask is then a local optimum. A dead input is never put in.

    Returns the exact optimum on the final mask, the new mask, and the damping used.
    Cost: O(d_in³) for each output to begin, then O(d_in²) a swap, in float64 on any device. That is
    as much as exact least squares: minutes on a CPU for 1,000 x 1,000, hours for 4,000 x 4,000.
    Memory: some 6 tables of (d_in + 1)² numbers for each output of a part, `TABLE_SIZE` a table.
    Raises BadParameter, BadPattern, BadMask, NonFinite, NotPositiveDefinite.
    """
    check_weight(weight)
    check_gram(gram, weight.shape[1])
    pattern = Pattern.parse(pattern)
    check_keep(keep, weight.shape, None, pattern)
    check_whole("rounds", rounds)

    def attempt(rung: float) -> tuple[Tensor, Tensor, float] | None:
        D, scale = damped_system(gram.double(), rung)
        # a part of a positive definite matrix is positive definite: every output's own follows
        return None if cholesky(D) is None else (D, scale, rung)

    D, scale, used = climb_damping(check_real("damping", damping), attempt)
    dead = dead_inputs(gram)
    # the ridge would put a dead input's weight in for its own sake; as 0 it gains nothing
    dense = weight.detach().double() * scale * ~dead
    allowed = _same_group(pattern, weight.shape[1], weight.device)
    new, chosen = torch.empty_like(dense), keep.clone()
    size = max(1, TABLE_SIZE // (len(D) + 1) ** 2)
    for start in range(0, len(dense), size):
        part = slice(start, start + size)
        new[part] = _search(dense[part], D, chosen[part], allowed, rounds)
    # a dead input that was kept has its own weight again, which is what the ridge asks for
    new = torch.where(dead & chosen, weight.double(), new / scale)
    return Solution(new.to(torch.promote_types(weight.dtype, torch.float32)), chosen, used)


def _same_group(pattern: Pattern, d_in: int, device: torch.device) -> Tensor:
    """(d_in, d_in), True for two inputs that may be swapped."""
    if not pattern.grouped:
        return torch.ones(1, 1, dtype=torch.bool, device=device)
    group = torch.arange(d_in, device=device) // pattern.m
    return group[:, None] == group


def _search(dense: Tensor, D: Tensor, keep: Tensor, allowed: Tensor, rounds: int) -> Tensor:
    """The optimum (outputs, d_in) on the masks `keep`, which are improved in place; scaled."""
    table, loss = _table(dense, D, keep)
    best = table[:, :-1, -1] * keep
    rows = torch.arange(len(dense), device=dense.device)  # those still searched, one table each
    for _ in range(rounds):
        change, out, into = _best_swap(table, keep[rows], allowed)
        better = change < -LEAST_GAIN * loss
        rows, out, into = rows[better], out[better], into[better]
        if not len(rows):
            break
        table, loss = table[better], (loss + change)[better]
        # first in, then out: what is swept is positive definite at every moment
        _sweep(table, into, 1)
        _sweep(table, out, -1)
        keep[rows, into], keep[rows, out] = True, False
        best[rows] = table[:, :-1, -1] * keep[rows]
    return best


def _table(dense: Tensor, D: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """T and v of the module's text, (outputs, d_in + 1, d_in + 1), and f(S), (outputs,)."""
    kept = keep.to(D.dtype)
    inside = kept[:, :, None] * kept[:, None, :]
    # D where both inputs are kept and 1 on the rest of the diagonal: its inverse holds A there
    A = torch.cholesky_inverse(torch.linalg.cholesky(inside * D + torch.diag_embed(1 - kept)))
    A = A * inside
    solved = A @ D  # A D_S: the unit matrix on S, A D_SP off it
    mixed = solved * (kept[:, :, None] * (1 - kept)[:, None, :])
    outside = (1 - kept)[:, :, None] * (1 - kept)[:, None, :]
    table = D.new_zeros(len(dense), len(D) + 1, len(D) + 1)
    table[:, :-1, :-1] = -A + mixed + mixed.mT + outside * (D - D @ solved)
    # what is left of D once S is solved for; b = D w, and v = ŵ on S, b − D ŵ off it
    target = dense @ D
    new = (A @ target[:, :, None]).squeeze(2)
    table[:, :-1, -1] = table[:, -1, :-1] = torch.where(keep, new, target - new @ D)
    # ŵ − w is a small difference, but its square is not one: no digits are lost here
    change = new - dense
    return table, ((change @ D) * change).sum(1)


def _best_swap(table: Tensor, keep: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each output the change of f by its best swap, what goes out, and what comes in."""
    T, v = table[:, :-1, :-1], table[:, :-1, -1]
    diagonal = T.diagonal(dim1=1, dim2=2)
    # (outputs, j, i): T_jj < 0 < T_ii for j kept and i not, so what is divided by is above 0
    first = v.square()[:, :, None] * diagonal[:, None, :]
    change = first + first.mT - 2 * T * v[:, :, None] * v[:, None, :]
    change /= T.square() - diagonal[:, :, None] * diagonal[:, None, :]
    legal = keep[:, :, None] & ~keep[:, None, :] & allowed
    change = change.masked_fill_(~legal, torch.inf).flatten(1)
    least, at = change.min(dim=1)
    return least, at // T.shape[1], at % T.shape[1]


def _sweep(table: Tensor, at: Tensor, sign: int) -> None:
    """Sweep each output's table on its input `at`, in place: 1 puts it in, −1 takes it out."""
    rows = torch.arange(len(table), device=table.device)
    pivot = table[rows, at, at]
    line = table[rows, at]
    scaled = line / pivot[:, None]
    table.sub_(line[:, :, None] * scaled[:, None, :])  # rank one, and symmetric
    table[rows, at] = table[rows, :, at] = sign * scaled
    table[rows, at, at] = -1 / pivot
