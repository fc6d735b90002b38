"""Masks: patterns, top-k, N:M groups and the cubic sparsity schedule.

A score is a (d_out, d_in) tensor; `keep` is boolean of the same shape, True where the weight
stays. Every selection is exact: the number of zeros is round(sparsity · weights), counted over the
whole matrix or in each output, and ties are broken by position, the earlier weight staying.
"""

from __future__ import annotations

import hashlib
import math
import numbers
import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from helpers.device import check_matrix
from helpers.errors import BadParameter, NonFinite, described
from helpers.options import check_choice
from helpers.paper.fast import selection
from helpers.paper.fast.selection import keep_largest

BUDGETS = ("matrix", "output")


# --- the target: pattern and sparsity --------------------------------------------------------


@dataclass(frozen=True)
class Pattern:
    """Where zeros may lie: anywhere (n and m are None), or all but n of every m neighbours.

    Neighbours lie along the input. `str(pattern)` is the text it was parsed from.
    """

    n: int | None = None
    m: int | None = None

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" if self.grouped else "unstructured"

    @classmethod
    def parse(cls, pattern: str | Pattern) -> Pattern:
        """The pattern that "unstructured" or "N:M" names; one that is parsed already is returned.

        Raises BadParameter.
        """
        if isinstance(pattern, cls):
            return pattern
        if pattern == "unstructured":
            return cls()
        match = re.fullmatch(r"(\d+):(\d+)", str(pattern))
        # N = M would prune nothing, N = 0 everything
        if match and 0 < int(match[1]) < int(match[2]):
            return cls(int(match[1]), int(match[2]))
        raise BadParameter(
            f'pattern {pattern!r} is not allowed: use "unstructured" or "N:M" with 0 < N < M, '
            'for example "2:4"'
        )

    @property
    def grouped(self) -> bool:
        """Whether this is an N:M pattern."""
        return self.m is not None


def check_sparsity(sparsity: object) -> float:
    """Return `sparsity` as a float in [0, 1), else raise BadParameter."""
    # a bool is an int to Python, and False would pass as 0
    number = isinstance(sparsity, numbers.Real) and not isinstance(sparsity, bool)
    if number and 0 <= float(sparsity) < 1:
        return float(sparsity)
    hint = ""
    # 50 was most likely meant as a percentage; it is refused all the same, not interpreted
    if number and 1 < float(sparsity) < 100:
        hint = f"; for {sparsity} % write {float(sparsity) / 100:g}"
    raise BadParameter(
        f"sparsity {sparsity!r} is not allowed: give the fraction of weights set to zero, "
        f"a number in [0, 1){hint}"
    )


def target_sparsity(sparsity: float | None, pattern: str | Pattern) -> float:
    """Resolve the target sparsity from `sparsity` and `pattern`.

    With N:M it is 1 − N/M, and `sparsity` may be left out.
    Raises BadParameter.
    """
    pattern = Pattern.parse(pattern)
    if not pattern.grouped:
        if sparsity is None:
            raise BadParameter(
                "sparsity is missing: without an N:M pattern give one, such as 0.6"
            )
        return check_sparsity(sparsity)
    # a tolerance, because 1 − N/M need not be exact in binary: 1 − 2/3 is not the float 1/3
    implied = 1 - pattern.n / pattern.m
    if sparsity is not None and not math.isclose(
        check_sparsity(sparsity), implied, abs_tol=1e-6
    ):
        raise BadParameter(
            f"sparsity {sparsity!r} contradicts pattern '{pattern}', which gives {implied:g}: "
            "leave sparsity out or change the pattern"
        )
    return implied


def check_divides(pattern: Pattern, d_in: int) -> None:
    """Raise BadParameter unless the groups of an N:M pattern divide the d_in inputs."""
    if pattern.grouped and d_in % pattern.m:
        raise BadParameter(
            f"pattern '{pattern}' does not fit a layer with {d_in} inputs: "
            f"the group size {pattern.m} must divide the number of inputs"
        )


def check_keep(
    keep: Tensor,
    shape: torch.Size,
    sparsity: float | None = None,
    pattern: str | Pattern = "unstructured",
    budget: str = "matrix",
) -> float:
    """Check a mask that the caller gives against the target; return the sparsity to reach.

    That is the mask's own, or `sparsity` where that asks for more zeros: the mask that a method
    then chooses lies within `keep`. budget: where it counts zeros, see `select`.
    Raises BadParameter if it is not boolean, has another shape, keeps more than N in a group of M,
    or has more zeros than a given `sparsity` asks for.
    """
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool or keep.shape != shape:
        raise BadParameter(
            f"keep {described(keep)}: give a torch.bool mask of the weight's shape "
            f"{tuple(shape)}, True where a weight stays"
        )
    pattern = Pattern.parse(pattern)
    if pattern.grouped:
        check_divides(pattern, keep.shape[1])
        # (d_out, d_in) → (d_out, d_in/M, M); the sum counts the weights kept in each group. A group
        # with fewer than N is allowed: it still fits the pattern
        fullest = int(keep.unflatten(1, (-1, pattern.m)).sum(-1).max())
        if fullest > pattern.n:
            raise BadParameter(
                f"keep leaves {fullest} weights in a group of {pattern.m}, pattern '{pattern}' "
                f'allows {pattern.n}: correct the mask or use pattern "unstructured"'
            )
    own = sparsity_of(keep)
    if sparsity is None:
        return own
    target = target_sparsity(sparsity, pattern)
    # whole numbers are compared, since two fractions could differ by rounding alone
    if round(own * keep.numel()) == round(target * keep.numel()):
        return own
    rows = keep.reshape(1, -1) if budget == "matrix" else keep
    zeros = int((~rows).sum(1).max())
    allowed = round(target * rows.shape[1])
    if zeros > allowed:
        raise BadParameter(
            f"keep has {zeros} zeros {'in all' if budget == 'matrix' else 'in an output'} and "
            f"sparsity={sparsity!r} means {allowed}: give a larger sparsity, or leave it out to "
            "use the mask as it is"
        )
    return target


def sparsity_of(keep: Tensor) -> float:
    """The share of zeros in a mask."""
    return 1 - int(keep.sum()) / keep.numel()


def mask_hash(keep: Tensor) -> str:
    """16 hexadecimal digits that stand for a mask (d_out, d_in): sha256 of its bits, row by row."""
    return hashlib.sha256(np.packbits(keep.cpu().numpy()).tobytes()).hexdigest()[:16]


# --- selection ------------------------------------------------------------------------------


def select(
    score: Tensor, sparsity: float, pattern: str | Pattern, budget: str = "matrix"
) -> Tensor:
    """The mask with `sparsity` zeros where the score (d_out, d_in) is smallest.

    `budget` says where zeros are counted: over the whole "matrix" or in each "output". An N:M
    pattern at a sparsity below 1 − N/M is one on its way there, see `choose_mask`.
    Raises BadParameter, and NonFinite for NaN.
    """
    check_choice("budget", budget, BUDGETS)
    check_sparsity(sparsity)
    check_matrix("score", score)
    pattern = Pattern.parse(pattern)
    check_divides(pattern, score.shape[1])
    _check_numbers(score)
    return choose_mask(score, sparsity, pattern, budget)


def top_k(score: Tensor, sparsity: float, budget: str = "matrix") -> Tensor:
    """Keep the largest scores, wherever they lie: `select` without a pattern."""
    return select(score, sparsity, Pattern(), budget)


def choose_mask(
    score: Tensor,
    sparsity: float,
    pattern: Pattern,
    budget: str,
    out: Tensor | None = None,
) -> Tensor:
    """`select` without its checks, for a solver that chooses a mask in each iteration.

    Unstructured: all but round(sparsity · n) weights stay. N:M: the top N of each group stay, and
    the others are pruned by the sparsity, so that at 1 − N/M each group holds exactly N. With
    `out`, a tensor of the score's shape and type, the mask is written there as 1 and 0.
    """
    if not pattern.grouped:
        return _keep_fraction(score, sparsity, budget, out)
    # The paper's schedule for N:M. A protected weight, whose score is made infinite, is never
    # pruned: below the sparsity 1 − N/M there are fewer zeros to place than unprotected weights.
    # On the way a group may hold any number of weights from N to M
    protected = selection.top_nm(score, pattern.n, pattern.m)
    # at the target what is protected is the mask; a second selection would find the same
    if sparsity >= 1 - pattern.n / pattern.m:
        return protected if out is None else out.copy_(protected)
    return _keep_fraction(score.masked_fill(protected, math.inf), sparsity, budget, out)


def _keep_fraction(
    score: Tensor, sparsity: float, budget: str, out: Tensor | None
) -> Tensor:
    """Keep the largest scores, with round(sparsity · n) zeros in the matrix or in each output."""
    # "matrix": one row of d_out · d_in scores, in which all outputs compete. "output": each row on
    # its own, so that no output can lose nearly all of its weights. Either way a view, not a copy
    rows = score.reshape(1, -1) if budget == "matrix" else score
    # the selection is for float32, which holds half precision exactly, and on a CPU for float64
    if not (rows.dtype == torch.float64 and rows.is_cpu):
        rows = rows.float()
    if out is not None:
        # a view, so that the mask lands in the caller's memory
        out = out.view(rows.shape)
    return keep_largest(rows, round(sparsity * rows.shape[1]), out).view(score.shape)


def only_within(score: Tensor, keep: Tensor | None) -> Tensor:
    """The scores, changed in place to be pruned first outside the mask `keep` (None: nowhere)."""
    # a score is an absolute value, so nothing within the mask is below 0
    return score if keep is None else score.masked_fill_(~keep, -1)


def cubic_schedule(final: float, step: int, steps: int) -> float:
    """Sparsity after `step` of `steps`: s_f − s_f (1 − step/steps)³ (Zhu & Gupta 2017)."""
    # Fast at first, while many weights hardly matter, and slow near the target, where each one
    # counts. For 0.5 in 15 steps: 0.09, 0.17, 0.24, 0.30 … 0.4988, 0.4999, 0.5
    return final - final * (1 - min(step, steps) / steps) ** 3


def top_nm(score: Tensor, n: int, m: int) -> Tensor:
    """Keep the n largest of every m neighbours along the input (the last dimension).

    Raises NonFinite for NaN.
    """
    _check_numbers(score)
    return selection.top_nm(score, n, m)


def _check_numbers(score: Tensor) -> None:
    """Raise NonFinite if a score is NaN, which compares false with every threshold."""
    if score.isnan().any():
        raise NonFinite("score holds NaN: look for a division by zero")


# What `keep_largest` answers (and `top_nm` in each group) is defined by a sort; what runs is
# helpers.paper.fast.selection, which answers the same without one.


def keep_largest_by_sorting(rows: Tensor, zeros: int) -> Tensor:
    """The definition of `keep_largest`: a stable sort leaves the earlier of two equals first."""
    # stable: otherwise the order of equal scores depends on the device and on the size of the row
    order = rows.sort(dim=1, descending=True, stable=True).indices
    kept = order[:, : rows.shape[1] - zeros]
    # from column numbers (rows, n − zeros) to a mask (rows, n)
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, kept, True)
