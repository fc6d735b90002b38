"""The gram XᵀX of a layer's inputs: accumulate, check, normalise, damp, factor.

A gram is (d_in, d_in), float32, summed over calibration tokens and not averaged. It is all
that the layer-wise problem min ‖XW − XŴ‖² needs to know about the data:

    ‖XW − XŴ‖² = tr((W − Ŵ)ᵀ XᵀX (W − Ŵ)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from helpers.device import all_finite
from helpers.errors import BadParameter, NonFinite, NotPositiveDefinite
from helpers.fast import panels

SYMMETRY_TOLERANCE = 1e-4
PRODUCT_SIZE = 1 << 22  # numbers of a product made at a time
CHECKED_ROWS = 512  # at a time, so that checking takes little memory

Answer = TypeVar("Answer")


class Gram:
    """XᵀX, summed over batches of inputs, with what was derived from it.

    Memory: 4·d_in² bytes. `tokens` counts the rows added so far. Layers that read the same input
    share one Gram, and so its factor (`derived`).
    """

    def __init__(self, d_in: int, device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(d_in, d_in, dtype=torch.float32, device=device)
        self._mirrored = self._checked = True
        self._derived: tuple[Hashable, Any] | None = None
        self.tokens = 0

    @classmethod
    def of(cls, matrix: Tensor | Gram) -> Gram:
        """The Gram of a matrix (d_in, d_in) that is XᵀX already; a Gram is returned as it is."""
        if isinstance(matrix, Gram):
            return matrix
        gram = cls.__new__(cls)
        gram._sum, gram._mirrored, gram._checked = matrix.float(), True, False
        gram._derived, gram.tokens = None, 0
        return gram

    def add(self, inputs: Tensor) -> None:
        """Add inputs of shape (..., d_in), any float type; the sum is kept in float32."""
        rows = inputs.detach().reshape(-1, self._sum.shape[0]).float()
        panels.add_upper(self._sum, rows)  # the lower half follows when the matrix is asked for
        self._mirrored = self._checked = False
        self._derived = None
        self.tokens += rows.shape[0]

    @property
    def matrix(self) -> Tensor:
        """The sum so far, (d_in, d_in). It is the sum itself: later inputs change it."""
        if not self._mirrored:
            panels.mirror(self._sum)
            self._mirrored = True
        return self._sum

    def checked(self, d_in: int) -> Gram:
        """The Gram itself, after `check_gram`, which looks at the same sum only once."""
        if not self._checked or self._sum.shape[0] != d_in:
            check_gram(self.matrix, d_in)
            self._checked = True
        return self

    def derived(self, key: Hashable, derive: Callable[[Tensor], Answer]) -> Answer:
        """derive(matrix), remembered under `key` until another key is asked for.

        So layers with the same input and options are solved with one factorisation.
        """
        if self._derived is None or self._derived[0] != key:
            self._derived = None  # before the next is made, so that two never lie in memory
            self._derived = (key, derive(self.matrix))
        return self._derived[1]


def gram_of(inputs: Tensor) -> Tensor:
    """XᵀX of inputs (..., d_in) in one go, float32 (d_in, d_in)."""
    gram = Gram(inputs.shape[-1], inputs.device)
    gram.add(inputs)
    return gram.matrix


def check_gram(gram: Tensor, d_in: int) -> None:
    """Raise unless `gram` is a finite, symmetric (d_in, d_in) matrix with diagonal ≥ 0.

    Raises BadParameter (shape, symmetry), NonFinite, NotPositiveDefinite (negative diagonal).
    """
    if gram.shape != (d_in, d_in):
        raise BadParameter(
            f"gram has shape {tuple(gram.shape)} but the weight has {d_in} inputs: "
            f"give XᵀX of that layer, shape ({d_in}, {d_in})"
        )
    if not all_finite(gram):
        raise NonFinite("gram holds NaN or infinity: check the activations it was summed from")
    sizes, gaps = [], []
    for start in range(0, d_in, CHECKED_ROWS):
        part = slice(start, start + CHECKED_ROWS)
        sizes.append(gram[part].abs().max())
        gaps.append((gram[part] - gram[:, part].T).abs_().max())
    largest, lopsided = torch.stack(sizes).max().item(), torch.stack(gaps).max().item()
    if lopsided > SYMMETRY_TOLERANCE * largest:
        raise BadParameter("gram is not symmetric: give XᵀX, for example from gram_of(inputs)")
    if gram.diagonal().min() < 0:
        raise NotPositiveDefinite(
            "gram has a negative diagonal, so it is no XᵀX: recompute it from the inputs"
        )


def dead_inputs(gram: Tensor) -> Tensor:
    """Boolean (d_in,), True where an input was zero on every calibration token."""
    return gram.diagonal() == 0


def normalise(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Scale the inputs to unit norm: (G, n) with n = sqrt(diag(gram)), G = gram/(n nᵀ).

    Dead inputs get n = 1, so that nothing is divided by zero; their row and column of G stay 0.
    Source: the paper's preconditioning.
    """
    norms = gram.diagonal().sqrt()
    norms = torch.where(dead_inputs(gram), torch.ones_like(norms), norms)
    return (gram / norms).div_(norms[:, None]), norms


def damp(matrix: Tensor, damping: float) -> Tensor:
    """matrix + damping · mean(diag(matrix)) · I, as a new tensor."""
    return add_ridge(matrix.clone(), damping)


def add_ridge(matrix: Tensor, damping: float) -> Tensor:
    """`damp` in place."""
    matrix.diagonal().add_(damping * matrix.diagonal().mean())
    return matrix


def cholesky(matrix: Tensor, *, upper: bool = False) -> Tensor | None:
    """The Cholesky factor, or None where rounding leaves the matrix not positive definite."""
    factor, info = torch.linalg.cholesky_ex(matrix, upper=upper)
    return factor if info.item() == 0 and all_finite(factor) else None


def climb_damping(damping: float, factor: Callable[[float], Answer | None]) -> Answer:
    """factor(rung) for the first damping that gives one: the one asked for, then up the ladder.

    Each rung is ten times the one before it (from 0: 1e-4), the last is 1. The damping that was
    used must be recorded, so it has to be part of the answer.
    Raises NotPositiveDefinite past the top of the ladder.
    """
    rung = damping
    while (answer := factor(rung)) is None:
        if rung >= 1.0:
            raise NotPositiveDefinite(
                f"gram cannot be factored with damping from {damping:g} up to {rung:g}: "
                "it is not positive semi-definite; recompute it from the layer's inputs"
            )
        rung = min(1.0, rung * 10 if rung > 0 else 1e-4)
    return answer


def relative_error(weight: Tensor, new_weight: Tensor, gram: Tensor) -> float:
    """‖XW − XŴ‖² / ‖XW‖² from the gram of X; weights are (d_out, d_in).

    1 means that nothing is left of the output. A layer whose output is zero everywhere has
    nothing to lose: 0. Raises NonFinite where the sums overflow float32.
    """
    sums = []
    # some rows at a time, so that no matrix of the weight's size is made
    rows = max(1, PRODUCT_SIZE // weight.shape[1])
    for dense, new in zip(weight.split(rows), new_weight.split(rows), strict=True):
        dense = dense.float()
        change = dense - new.float()
        # row by row tr(A gram Aᵀ), without the d_out × d_out matrix that the trace is of
        sums.append(torch.stack([(part @ gram).mul_(part).sum() for part in (dense, change)]))
    total, lost = torch.stack(sums).sum(0).tolist()
    if not (math.isfinite(total) and math.isfinite(lost)):
        raise NonFinite("the layer's error overflows float32: its activations are far too large")
    return max(0.0, lost / total) if total > 0 else 0.0
