"""Top-k mask selection without sorting.

`keep_largest` answers what a stable sort would (`helpers.paper.masks.keep_largest_by_sorting`), bit
for bit. A mask needs no order, only the largest score that is pruned (the threshold) and a
comparison with it:

- Over a whole matrix on a CPU: a sample says between which two scores the threshold lies. Counting,
  which is far cheaper than copying, draws these bounds together, and the few scores that are left
  between them are selected from (`nth_smallest`).
- In each row on a CPU: NumPy's `partition`, many times faster than `torch.kthvalue`.
- On a GPU: the threshold is found bit by bit (`bisect`), and the host never waits.
"""

import math

import numpy as np
import torch
from torch import Tensor

SAMPLE = 4096  # scores of a large matrix that the first bounds come from
NEAR = 1024  # how many scores away from the wanted place a bound is aimed
SHOTS = 2  # at each of the two bounds
LOWEST = -(2**31)  # the smallest int32
ALL_BUT_SIGN = 0x7FFFFFFF  # the bits of an int32


def keep_largest(rows: Tensor, zeros: int, out: Tensor | None = None) -> Tensor:
    """In each row of (rows, n), float32, keep all but the `zeros` smallest; of equals the earlier.

    Returns a boolean mask. With `out`, a tensor of the scores' shape and type, the mask is written
    there as 1 and 0: a CPU multiplies by that several times faster than by booleans.
    """
    if out is None:
        out = torch.empty_like(rows, dtype=torch.bool)
    # nothing is pruned, so there is no threshold
    if zeros == 0:
        return out.fill_(1)
    threshold, tied = _threshold(rows, zeros)
    # the threshold itself is pruned, so strictly larger ones stay; a float `out` receives 1 and 0
    torch.gt(rows, threshold, out=out)
    if tied:
        # scores equal to the threshold: as many as are missing stay, the earlier ones. Counting
        # along the row numbers them 1, 2, 3 …
        ties = rows == threshold
        number = ties.cumsum(1, dtype=torch.int32)
        larger = (rows > threshold).sum(1, keepdim=True)
        missing = rows.shape[1] - zeros - larger
        early = number <= missing
        out += ties & early
    return out


def _threshold(rows: Tensor, zeros: int) -> tuple[Tensor, bool]:
    """The largest score to prune in each row, (rows, 1), and whether an equal one may have to stay.

    On a GPU the latter is taken for granted, since the host would have to wait for the answer.
    """
    if rows.device.type != "cpu":
        return bisect(rows, zeros), True
    scores = rows.detach().numpy()  # in the tensor's memory
    if len(rows) == 1:
        found, tied = nth_smallest(scores[0], zeros - 1)
        return torch.from_numpy(found.reshape(1, 1)), tied
    # after a partition the entry at that place is the one a sort would put there, smaller and equal
    # ones are before it and larger and equal ones after it; places count from 0
    parts = np.partition(scores, zeros - 1, axis=1)
    places = [zeros - 1, zeros]
    _, threshold, later = np.split(parts, places, axis=1)
    tied = (later == threshold).any()
    # a copy, which lets go of the rest
    return torch.from_numpy(threshold.copy()), bool(tied)


def nth_smallest(scores: np.ndarray, place: int) -> tuple[np.ndarray, bool]:
    """The score (1,) at `place`, from 0, of the sorted order, and whether the next one equals it.

    scores: (n,), any float type, left as they are.
    """
    candidates = scores
    rest = place
    if len(scores) >= 4 * SAMPLE:
        near, below = scores_near(scores, place)
        # else the sample misled, and all scores are candidates
        if 0 <= place - below < len(near):
            candidates = near
            rest = place - below
    parts = np.partition(candidates, rest)
    # a partition leaves all that is not smaller behind the place, and equal scores are among that
    _, found, later = np.split(parts, [rest, rest + 1])
    tied = (later == found).any()
    return found.copy(), bool(tied)


def scores_near(scores: np.ndarray, place: int) -> tuple[np.ndarray, int]:
    """Those of the scores that lie near `place` in sorted order, and how many are below them.

    Equal scores are all among them, or none is.
    """
    low, high = bounds_from_sample(scores, place)
    flags = np.empty(len(scores), bool)  # allocated once and written by every count

    def count(bound: np.floating) -> int:
        """How many scores are not above a bound."""
        np.less_equal(scores, bound, out=flags)
        return np.count_nonzero(flags)

    # The place is between the bounds while count_low <= place < count_high. As if the scores there
    # were spread evenly, aim a little below it and a little above it
    count_low = count(low)
    count_high = count(high)
    for aim in SHOTS * (place - NEAR, place + NEAR):
        if count_high - count_low <= 3 * NEAR:
            break
        # the score of a protected weight
        if np.isinf(high):
            break
        if not count_low < aim < count_high:
            continue
        share = (aim - count_low) / (count_high - count_low)
        guess = low + (high - low) * scores.dtype.type(share)
        found = count(guess)
        if found <= place:
            low = guess
            count_low = found
        else:
            high = guess
            count_high = found
    between = (scores > low) & (scores <= high)
    near = scores[np.flatnonzero(between)]
    return near, count_low


def bounds_from_sample(
    scores: np.ndarray, place: int
) -> tuple[np.floating, np.floating]:
    """Two scores between which the one at `place` in sorted order almost surely lies."""
    # an odd stride does not run down a few columns of a matrix only
    stride = len(scores) // SAMPLE | 1
    sample = scores[::stride].copy()
    # The number of sampled scores below the place is binomial: four standard deviations on either
    # side miss it in one case of thousands
    share = (place + 0.5) / len(scores)
    expected = share * len(sample)
    deviation = math.sqrt(expected * (1 - share))
    margin = 4 * deviation + 2
    ends = np.clip(
        [expected - margin, expected + margin],
        0,
        len(sample) - 1,
    ).astype(int)
    sample.partition(ends)
    low, high = sample[ends]
    return low, high


def bisect(rows: Tensor, zeros: int) -> Tensor:
    """The largest score to prune in each row of a float32 matrix, (rows, 1), bit by bit.

    The bits of positive floats, read as whole numbers, are in the order of the floats; so are
    those of negative floats once all bits but the sign are inverted. The answer is therefore a
    32-bit number that 32 counts find from its highest bit down, for any scores.
    """
    # the same bytes read as int32; the highest bit is the sign of either type
    bits = rows.contiguous().view(torch.int32)
    order = flip_negative(bits)
    # int64, because 2³¹, the value of the highest bit, is no int32
    found = torch.full_like(order[:, :1], LOWEST, dtype=torch.int64)
    for bit in reversed(range(32)):
        higher = found + (1 << bit)
        # fewer than `zeros` scores lie below `higher`: the answer is not below it, the bit is set
        below = (order < higher).sum(1, keepdim=True)
        # `where` and not `if`: a decision on the host would wait for the GPU 32 times
        found = torch.where(below < zeros, higher, found)
    bits = flip_negative(found.to(torch.int32))
    return bits.view(torch.float32)


def flip_negative(bits: Tensor) -> Tensor:
    """Invert all bits but the sign of negative int32 numbers; a second time undoes it."""
    flipped = bits ^ ALL_BUT_SIGN
    return torch.where(bits < 0, flipped, bits)


def top_nm(score: Tensor, n: int, m: int) -> Tensor:
    """The n largest of every m neighbours along the last dimension, without sorting the groups.

    A weight's rank is the number of weights in its group that beat it, and m(m-1)/2 comparisons
    of whole columns give all ranks. Ties go to the earlier weight.
    """
    # members side by side in memory: comparing strided ones takes several times longer
    members = score.unflatten(-1, (-1, m)).movedim(-1, 0).contiguous()
    rank = torch.zeros_like(members, dtype=torch.int16)
    for i, member in enumerate(members):
        later = slice(i + 1, m)
        beaten = member >= members[later]  # the earlier wins a tie
        rank[later] += beaten
        # those of the later members that this one has not beaten beat it
        wins = beaten.sum(0, dtype=torch.int16)
        rank[i] += m - 1 - i - wins
    keep = rank < n
    return keep.movedim(0, -1).reshape(score.shape)
