"""The k smallest of many scores fall, without a sort.

`keep_largest` answers what a stable sort would (`helpers.masks.keep_largest_by_sorting`), bit for
bit. A mask needs no order, only the largest score that falls (the threshold) and a comparison
with it:

- On a CPU, NumPy's `partition` puts it in its place; it is vectorised where the processor allows
  that, and many times faster than `torch.kthvalue`.
- On a GPU, the threshold is found bit by bit (`bisect`), and the host never waits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def keep_largest(rows: Tensor, zeros: int, out: Tensor | None = None) -> Tensor:
    """In each row of (rows, n), float32, keep all but the `zeros` smallest; of equals the earlier.

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
    if tied:
        # scores equal to the threshold: as many as are missing stay, the earlier ones. Counting
        # along the row numbers them 1, 2, 3 …
        ties = rows == threshold
        missing = rows.shape[1] - zeros - (rows > threshold).sum(1, keepdim=True)
        out += ties & (ties.cumsum(1, dtype=torch.int32) <= missing)
    return out


def _threshold(rows: Tensor, zeros: int) -> tuple[Tensor, bool]:
    """The largest score to fall in each row, (rows, 1), and whether an equal one may have to stay.

    On a GPU the latter is not asked, since the host would have to wait for the answer.
    """
    if rows.device.type != "cpu":
        return bisect(rows, zeros), True
    # after a partition the entry at that place is the one a sort would put there, smaller and equal
    # ones are before it and larger and equal ones after it; places count from 0
    parts = np.partition(rows.detach().numpy(), zeros - 1, axis=1)
    threshold = parts[:, zeros - 1 : zeros].copy()  # which lets go of the rest
    return torch.from_numpy(threshold), bool((parts[:, zeros:] == threshold).any())


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
