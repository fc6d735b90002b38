"""The k smallest of many scores fall, without a sort.

`keep_largest` answers what a stable sort would (`helpers.masks.keep_largest_by_sorting`), bit for
bit. A mask needs no order, only the largest score that falls (the threshold) and a comparison
with it. Three tricks find the threshold:

- Over a whole matrix on a CPU: a sample of 4,096 scores gives two bounds that the threshold lies
  between but for one case in thousands; counting draws the bounds together; the few scores
  between them are selected from.
- In each row on a CPU: NumPy's `partition`, several times faster than `torch.kthvalue`.
- On a GPU: the threshold is found bit by bit (`bisect`), and the host never waits.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# stop narrowing at so few scores between the bounds, or after so many counts
FEW, GUESSES = 2048, 4
SAMPLE = 4096  # scores of a large matrix from which the bounds are guessed


def keep_largest(rows: Tensor, zeros: int, out: Tensor | None = None) -> Tensor:
    """In each row of (rows, n) keep all but the `zeros` smallest; of equal scores the earlier stay.

    Returns a boolean mask. With `out`, a tensor of the scores' shape and type, the mask is written
    there as 1 and 0: a CPU multiplies by that several times faster than by booleans.
    """
    if out is None:
        out = torch.empty_like(rows, dtype=torch.bool)
    # no score falls, so there is no threshold
    if zeros == 0:
        return out.fill_(1)
    threshold, tied = _threshold(rows, zeros)
    # the threshold itself falls, so strictly larger ones stay; a float `out` receives 1 and 0
    torch.gt(rows, threshold, out=out)
    if not tied:
        return out
    # scores equal to the threshold: as many as are missing stay, the earlier ones
    missing = rows.shape[1] - zeros - (rows > threshold).sum(1, keepdim=True)
    if rows.device.type == "cpu":  # a GPU would have to be waited for
        short = missing.flatten().nonzero().flatten()
        if not len(short):
            return out
        if len(short) < len(rows):
            out[short] = out[short] + _first_ties(rows[short], threshold[short], missing[short])
            return out
    out += _first_ties(rows, threshold, missing)
    return out


def _first_ties(rows: Tensor, threshold: Tensor | float, missing: Tensor) -> Tensor:
    """The first `missing` of the scores in each row that equal the threshold."""
    # counting along the row numbers the ties 1, 2, 3 …, so the first `missing` of them can be kept
    ties = rows == threshold
    return ties & (ties.cumsum(1, dtype=torch.int32) <= missing)


def _threshold(rows: Tensor, zeros: int) -> tuple[Tensor | float, bool]:
    """The largest score to fall in each row, (rows, 1) or a number for one row, and whether an
    equal score may have to stay.
    """
    # the scores of the package's methods are float32; other types take torch's own way
    if rows.dtype != torch.float32:
        return rows.kthvalue(zeros, dim=1, keepdim=True).values, True
    if rows.device.type != "cpu":
        return bisect(rows, zeros), True
    if len(rows) == 1:
        # `numpy` shares the tensor's memory. Places count from 0: the last to fall is zeros − 1
        return _select_in_one_row(rows.detach().numpy()[0], zeros - 1)
    # after a partition the entry at that place is the one a sort would put there; the copy of one
    # column lets go of the rest
    values = np.partition(rows.detach().numpy(), zeros - 1, axis=1)
    return torch.from_numpy(values[:, zeros - 1 : zeros].copy()), True


def bisect(rows: Tensor, zeros: int) -> Tensor:
    """The largest score to fall in each row of a float32 matrix, (rows, 1), bit by bit.

    The bits of positive floats, read as whole numbers, are in the order of the floats; so are
    those of negative floats once all bits but the sign are inverted. The answer is therefore a
    32-bit number that 32 counts find from its highest bit down, whatever the scores are.
    """
    # the same bytes read as int32; the highest bit is the sign of either type
    order = rows.contiguous().view(torch.int32)
    order = torch.where(order < 0, order ^ 0x7FFFFFFF, order)
    # int64, because 2³¹, the value of the highest bit, is no int32
    found = torch.full((len(rows), 1), -(2**31), dtype=torch.int64, device=rows.device)
    for bit in range(31, -1, -1):
        higher = found + (1 << bit)
        # fewer than `zeros` scores lie below `higher`: the answer is not below it, the bit is set
        below = (order < higher).sum(1, keepdim=True)
        # `where` and not `if`: a decision on the host would wait for the GPU 32 times
        found = torch.where(below < zeros, higher, found)
    found = found.to(torch.int32)
    return torch.where(found < 0, found ^ 0x7FFFFFFF, found).view(torch.float32)


def _select_in_one_row(scores: np.ndarray, place: int) -> tuple[float, bool]:
    """The score at `place` (from 0) in sorted order, and whether a later one equals it. Exact."""
    between, rest = _narrowed(scores, place)
    if not 0 <= rest < len(between):  # the sample misled: select from all of them
        between, rest = scores.copy(), place
    between.partition(rest)
    # equal scores would lie after that place, where a partition puts all that are not smaller
    return float(between[rest]), bool((between[rest + 1 :] == between[rest]).any())


def _narrowed(scores: np.ndarray, place: int) -> tuple[np.ndarray, int]:
    """A copy of the scores near `place` in sorted order, and the place among them.

    Counting the scores up to a bound is several times faster than copying some of them out, so
    the bounds are drawn together by the rule of false position before anything is copied.
    """
    if len(scores) < 4 * SAMPLE:
        return scores.copy(), place
    low, high = _bounds(scores, place)
    # allocated once and written by every count
    below_high, below_low = np.empty(len(scores), bool), np.empty(len(scores), bool)

    def count(bound: np.float32) -> int:
        return np.count_nonzero(np.less_equal(scores, bound, out=below_high))

    # the place is between the bounds exactly if count_low <= place < count_high
    count_low, count_high = count(low), count(high)
    for _ in range(GUESSES):
        # if the sample misled, narrowing is of no use: the caller then selects from all scores
        if count_high - count_low <= FEW or not count_low <= place < count_high:
            break
        # false position: as if the scores between the bounds were spread evenly
        share = (place + 0.5 - count_low) / (count_high - count_low)
        guess = low + (high - low) * np.float32(share)
        found = count(guess)
        if found <= place:
            low, count_low = guess, found
        else:
            high, count_high = guess, found
    np.less_equal(scores, low, out=below_low)
    # low < score <= high: below_low implies below_high, so "one but not both" is their difference
    between = np.logical_xor(np.less_equal(scores, high, out=below_high), below_low, out=below_low)
    return scores[np.flatnonzero(between)], place - count_low


def _bounds(scores: np.ndarray, place: int) -> tuple[np.float32, np.float32]:
    """Two scores that the one at `place` lies between but for one case in thousands.

    In a random sample the place's rank is spread with the binomial's standard deviation; four of
    them on either side are taken.
    """
    # a prime stride does not run down a few columns only, as a divisor of the row length would
    stride = len(scores) // SAMPLE
    while stride < 2 or any(stride % d == 0 for d in range(2, math.isqrt(stride) + 1)):
        stride += 1
    sample = scores[::stride].copy()
    # the number of sampled scores below the place is binomial (n, share): variance n · share · (1 −
    # share)
    share = (place + 0.5) / len(scores)
    margin = 4 * math.sqrt(len(sample) * share * (1 - share)) + 2
    ends = [int(share * len(sample) - margin), int(share * len(sample) + margin)]
    ends = [min(max(end, 0), len(sample) - 1) for end in ends]
    sample.partition(ends)
    return sample[ends[0]], sample[ends[1]]


def top_nm(score: Tensor, n: int, m: int) -> Tensor:
    """The n largest of every m neighbours along the last dimension, without sorting the groups.

    A weight's rank is the number of weights in its group that beat it, and m(m-1)/2 comparisons
    of whole columns give all ranks. Ties go to the earlier weight.
    """
    # members side by side in memory: comparing strided ones takes several times longer
    members = score.unflatten(-1, (-1, m)).movedim(-1, 0).contiguous()
    rank = torch.zeros(members.shape, dtype=torch.int16, device=score.device)
    for i in range(m - 1):
        beaten = members[i] >= members[i + 1 :]  # the earlier wins a tie
        rank[i + 1 :] += beaten
        # of the m − 1 − i later members, those that i has not beaten beat i
        rank[i] += (m - 1 - i) - beaten.sum(0, dtype=torch.int16)
    return (rank < n).movedim(0, -1).reshape(score.shape)
