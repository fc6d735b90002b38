"""Which weights stay: scores, top-k, N:M groups, the cubic sparsity schedule.

A score is a (d_out, d_in) tensor; `keep` is boolean of the same shape, True where the weight
stays. Every selection is exact: the number of zeros is round(sparsity · weights), counted over the
whole matrix or in each output, and ties are broken by position, the earlier weight staying.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import numbers
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.errors import BadMask, BadParameter, BadPattern, BadSparsity, check_choice

BUDGETS = ("matrix", "output")
FEW, GUESSES = 2048, 4
SAMPLE = 4096  # of a large matrix, from which a threshold is guessed

# the clock of the innermost `selection_clock`, so that methods need not pass one around
_CLOCK: contextvars.ContextVar[SelectionClock | None] = contextvars.ContextVar(
    "selection_clock", default=None
)


class SelectionClock:
    """Seconds spent in choosing masks, see `selection_clock`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._running = False

    def time(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Call a selection; one that is called by another selection is not counted twice."""
        if self._running:
            return function(*args, **kwargs)
        self._running, started = True, time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            self._running = False
            self.seconds += time.perf_counter() - started


@contextlib.contextmanager
def selection_clock() -> Iterator[SelectionClock]:
    """Count the seconds that `select`, `keep_largest` and `top_nm` take inside, on a CPU.

    On a GPU these calls return before the work is done, so their seconds mean nothing there.
    """
    clock = SelectionClock()
    token = _CLOCK.set(clock)
    try:
        yield clock
    finally:
        _CLOCK.reset(token)


def _selection(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let the active `selection_clock`, if there is one, count this function's seconds."""

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Tensor:
        clock = _CLOCK.get()
        return clock.time(function, *args, **kwargs) if clock else function(*args, **kwargs)

    return timed


def parse_pattern(pattern: str) -> tuple[int, int] | None:
    """None for "unstructured", (N, M) for "N:M": keep N of every M along the input.

    Raises BadPattern.
    """
    if pattern == "unstructured":
        return None
    match = re.fullmatch(r"(\d+):(\d+)", pattern) if isinstance(pattern, str) else None
    if match and 0 < int(match[1]) < int(match[2]):
        return int(match[1]), int(match[2])
    raise BadPattern(
        f'pattern {pattern!r} is not allowed: use "unstructured" or "N:M" with 0 < N < M, '
        'for example "2:4"'
    )


def check_sparsity(sparsity: object) -> float:
    """Return `sparsity` as a float in [0, 1), else raise BadSparsity."""
    number = isinstance(sparsity, numbers.Real) and not isinstance(sparsity, bool)
    if number and 0 <= float(sparsity) < 1:
        return float(sparsity)
    hint = ""
    if number and 1 < float(sparsity) < 100:
        hint = f"; for {sparsity} % write {float(sparsity) / 100:g}"
    raise BadSparsity(
        f"sparsity {sparsity!r} is not allowed: give the fraction of weights set to zero, "
        f"a number in [0, 1){hint}"
    )


def check_target(sparsity: float | None, pattern: str) -> float:
    """The final sparsity that `sparsity` and `pattern` ask for together.

    With N:M the sparsity is 1 − N/M and may be left out.
    Raises BadPattern, BadSparsity.
    """
    groups = parse_pattern(pattern)
    if groups is None:
        if sparsity is None:
            raise BadSparsity("sparsity is missing: unstructured pruning needs a number in [0, 1)")
        return check_sparsity(sparsity)
    implied = 1 - groups[0] / groups[1]
    if sparsity is not None and not math.isclose(check_sparsity(sparsity), implied, abs_tol=1e-6):
        raise BadSparsity(
            f"sparsity {sparsity!r} contradicts pattern {pattern!r}, which gives {implied:g}: "
            "leave sparsity out or change the pattern"
        )
    return implied


def check_divides(pattern: str, d_in: int) -> None:
    """Raise BadPattern unless the groups of an N:M pattern divide the d_in inputs."""
    groups = parse_pattern(pattern)
    if groups and d_in % groups[1]:
        raise BadPattern(
            f"pattern {pattern!r} does not fit a layer with {d_in} inputs: "
            f"the group size {groups[1]} must divide the number of inputs"
        )


def check_keep(keep: Tensor, shape: torch.Size, sparsity: float | None, pattern: str) -> float:
    """The sparsity of a mask given by the caller, after checking that it fits what was asked.

    Raises BadMask if it is not boolean, has another shape, keeps more than N in a group of M,
    or contradicts a given `sparsity` (by more than half a weight).
    """
    given = f"{getattr(keep, 'dtype', type(keep).__name__)} of {tuple(getattr(keep, 'shape', ()))}"
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool or keep.shape != shape:
        raise BadMask(
            f"keep is {given}: give a torch.bool mask of the weight's shape {tuple(shape)}, "
            "True where a weight stays"
        )
    if parse_pattern(pattern):
        _check_groups(keep, pattern)
    zeros = int((~keep).sum())
    if sparsity is not None and zeros != round(check_target(sparsity, pattern) * keep.numel()):
        raise BadMask(
            f"keep has sparsity {_sparsity_of(keep):.6g} but sparsity={sparsity!r} was asked for: "
            "leave sparsity out when you give a mask"
        )
    return _sparsity_of(keep)


def _check_groups(keep: Tensor, pattern: str) -> None:
    """Raise BadMask if a group of M holds more than N."""
    n, m = parse_pattern(pattern)
    check_divides(pattern, keep.shape[1])
    fullest = int(keep.unflatten(1, (-1, m)).sum(-1).max())
    if fullest > n:
        raise BadMask(
            f"keep has a group with {fullest} weights, pattern {pattern} allows {n}: "
            "mend the mask or leave the pattern unstructured"
        )


def _sparsity_of(keep: Tensor) -> float:
    return 1 - int(keep.sum()) / keep.numel()


def top_k(
    score: Tensor, sparsity: float, budget: str = "matrix", out: Tensor | None = None
) -> Tensor:
    """Keep the largest scores, with round(sparsity · n) zeros.

    `budget` says where the zeros are counted: over the whole "matrix" or in each "output" row.
    The k-th value is found by selection, not by sorting, and compared with.
    """
    check_choice("budget", budget, BUDGETS, BadParameter)
    rows = score.reshape(1, -1) if budget == "matrix" else score
    if out is not None:
        out = out.view(rows.shape)
    return keep_largest(rows, round(sparsity * rows.shape[1]), out).view(score.shape)


@_selection
def keep_largest(rows: Tensor, zeros: int, out: Tensor | None = None) -> Tensor:
    """In each row keep all but the `zeros` smallest; of equal values the earlier stay.

    With `out`, a tensor of the scores' shape and type, the mask is written there as 1 and 0.
    """
    if out is None:
        out = torch.empty_like(rows, dtype=torch.bool)
    if zeros == 0:
        return out.fill_(1)
    threshold, tied = _threshold(rows, zeros)
    torch.gt(rows, threshold, out=out)
    if tied:
        missing = rows.shape[1] - zeros - (rows > threshold).sum(1, keepdim=True)
        if rows.device.type == "cpu":  # a GPU would have to be waited for
            short = missing.flatten().nonzero().flatten()
            if not len(short):
                return out
            if len(short) < len(rows):
                out[short] = out[short] + _earlier(rows[short], threshold[short], missing[short])
                return out
        out += _earlier(rows, threshold, missing)
    return out


def _earlier(rows: Tensor, threshold: Tensor | float, missing: Tensor) -> Tensor:
    """The first `missing` of the values in each row that are as large as the threshold."""
    ties = rows == threshold
    return ties & (ties.cumsum(1, dtype=torch.int32) <= missing)


def _threshold(rows: Tensor, zeros: int) -> tuple[Tensor | float, bool]:
    """The largest value to fall in each row, (rows, 1) or one number for one row; and whether as
    large a value may have to stay.

    On a CPU NumPy selects, several times faster than torch; on a GPU nothing waits for the answer.
    """
    if rows.dtype != torch.float32:
        return rows.kthvalue(zeros, dim=1, keepdim=True).values, True
    if rows.device.type != "cpu":
        return bisect(rows, zeros), True
    if len(rows) == 1:
        return _select_one(rows.detach().numpy()[0], zeros - 1)
    values = np.partition(rows.detach().numpy(), zeros - 1, axis=1)
    return torch.from_numpy(values[:, zeros - 1 : zeros].copy()), True


def bisect(rows: Tensor, zeros: int) -> Tensor:
    """The largest value to fall in each row of a float32 matrix, (rows, 1), without a sort.

    Bit patterns of floats, read as whole numbers (of negative ones all bits but the sign turned
    around), are in the order of the floats. So 32 counts over the rows find the value bit by bit,
    whatever the values are; a GPU does them without its host waiting, and over a whole matrix.
    """
    order = rows.contiguous().view(torch.int32)
    order = torch.where(order < 0, order ^ 0x7FFFFFFF, order)
    found = torch.full((len(rows), 1), -(2**31), dtype=torch.int64, device=rows.device)
    for bit in range(31, -1, -1):
        higher = found + (1 << bit)
        below = (order < higher).sum(1, keepdim=True)
        found = torch.where(below < zeros, higher, found)
    found = found.to(torch.int32)
    return torch.where(found < 0, found ^ 0x7FFFFFFF, found).view(torch.float32)


def _select_one(values: np.ndarray, place: int) -> tuple[float, bool]:
    """The value at `place` (from 0) in sorted order, and whether one behind it is as large.

    Exact. A sample gives two bounds that the value lies between but for one case in thousands;
    then only the values between them are selected from, else all.
    """
    between, rest = _between(values, place)
    if not 0 <= rest < len(between):
        between, rest = values.copy(), place
    between.partition(rest)
    return float(between[rest]), bool((between[rest + 1 :] == between[rest]).any())


def _between(values: np.ndarray, place: int) -> tuple[np.ndarray, int]:
    """A copy of the values near `place` in sorted order, and the place among them.

    Counting the values up to a guess is several times faster than copying some of them out, so
    the bounds are drawn together before that, by the rule of false position.
    """
    if len(values) < 4 * SAMPLE:
        return values.copy(), place
    low, high = _bounds(values, place)
    smaller, other = np.empty(len(values), bool), np.empty(len(values), bool)

    def count(bound: np.float32) -> int:
        return np.count_nonzero(np.less_equal(values, bound, out=smaller))

    counts = [count(low), count(high)]
    for _ in range(GUESSES):
        if counts[1] - counts[0] <= FEW or not counts[0] <= place < counts[1]:
            break
        share = (place + 0.5 - counts[0]) / (counts[1] - counts[0])
        guess = low + (high - low) * np.float32(share)
        found = count(guess)
        if found <= place:
            low, counts[0] = guess, found
        else:
            high, counts[1] = guess, found
    np.less_equal(values, low, out=other)
    between = np.logical_xor(np.less_equal(values, high, out=smaller), other, out=other)
    return values[np.flatnonzero(between)], place - counts[0]


def _bounds(values: np.ndarray, place: int) -> tuple[np.float32, np.float32]:
    """Two values that the one at `place` lies between but for one case in thousands."""
    # a prime stride does not run down a few columns only, as a divisor of the row length would
    sample = values[:: _prime_from(len(values) // SAMPLE)].copy()
    share = (place + 0.5) / len(values)
    margin = 4 * math.sqrt(len(sample) * share * (1 - share)) + 2
    ends = [int(share * len(sample) - margin), int(share * len(sample) + margin)]
    ends = [min(max(end, 0), len(sample) - 1) for end in ends]
    sample.partition(ends)
    return sample[ends[0]], sample[ends[1]]


def _prime_from(number: int) -> int:
    """The smallest prime that is at least `number`."""
    while number < 2 or any(number % d == 0 for d in range(2, math.isqrt(number) + 1)):
        number += 1
    return number


@_selection
def top_nm(score: Tensor, n: int, m: int) -> Tensor:
    """Keep the n largest of every m neighbours along the input (the last dimension).

    A weight's rank is the number of weights in its group that beat it, so equal scores are
    settled by position and nothing is sorted.
    """
    # members side by side in memory: comparing strided ones takes several times longer
    members = score.unflatten(-1, (-1, m)).movedim(-1, 0).contiguous()
    rank = torch.zeros(members.shape, dtype=torch.int16, device=score.device)
    for i in range(m - 1):
        beaten = members[i] >= members[i + 1 :]  # the earlier wins a tie
        rank[i + 1 :] += beaten
        rank[i] += (m - 1 - i) - beaten.sum(0, dtype=torch.int16)
    return (rank < n).movedim(0, -1).reshape(score.shape)


def cubic_schedule(final: float, step: int, steps: int) -> float:
    """Sparsity after `step` of `steps`: s_f − s_f (1 − step/steps)³ (Zhu & Gupta 2017)."""
    return final - final * (1 - min(step, steps) / steps) ** 3


@_selection
def select(
    score: Tensor,
    sparsity: float,
    pattern: str,
    budget: str = "matrix",
    out: Tensor | None = None,
) -> Tensor:
    """The mask at `sparsity` on the way to `pattern`.

    Unstructured: top-k. N:M: the top N of each group always stay and the rest fall by the given
    sparsity, so that at 1 − N/M each group holds exactly N. With `out`, a tensor of the score's
    shape and type, the mask is written there as 1 and 0, which a CPU multiplies by much faster
    than by a boolean mask.
    """
    check_choice("budget", budget, BUDGETS, BadParameter)
    groups = parse_pattern(pattern)
    if groups is None:
        return top_k(score, sparsity, budget, out)
    check_divides(pattern, score.shape[1])
    protected = top_nm(score, *groups)
    if sparsity >= 1 - groups[0] / groups[1]:
        return protected if out is None else out.copy_(protected)
    return top_k(score.masked_fill(protected, math.inf), sparsity, budget, out)
