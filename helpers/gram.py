"""The gram XᵀX of a layer's inputs: accumulate, normalise, damp, factor.

A gram is (d_in, d_in), float32, summed over calibration tokens and not averaged. It is all
that the layer-wise problem min ‖XW − XŴ‖² needs to know about the data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from helpers.device import all_finite
from helpers.errors import BadParameter, NonFinite, NotPositiveDefinite

SYMMETRY_TOLERANCE = 1e-4
PANELS = 4
PRODUCT_SIZE = 1 << 22  # numbers of a product made at a time
CHECKED_ROWS = 512  # at a time, so that checking takes little memory


class Gram:
    """Running XᵀX over batches of inputs.

    Memory: 4·d_in² bytes. `tokens` counts the rows added so far. Only the upper triangle is
    summed, in panels of columns, which saves three eighths of the products.
    """

    def __init__(self, d_in: int, device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(d_in, d_in, dtype=torch.float32, device=device)
        self._mirrored = True
        self.tokens = 0
        ends = [round(d_in * panel / PANELS) for panel in range(PANELS + 1)]
        self._panels = [slice(*ends[panel : panel + 2]) for panel in range(PANELS)]

    def add(self, inputs: Tensor) -> None:
        """Add inputs of shape (..., d_in), any float type; the sum is kept in float32."""
        rows = inputs.detach().reshape(-1, self._sum.shape[0]).float()
        for panel in self._panels:
            self._sum[: panel.stop, panel].addmm_(rows[:, : panel.stop].T, rows[:, panel])
        self._mirrored = False
        self.tokens += rows.shape[0]

    @property
    def matrix(self) -> Tensor:
        """The sum so far, (d_in, d_in). It is the sum itself: later inputs change it."""
        if not self._mirrored:
            for panel in self._panels:
                self._sum[panel, : panel.start] = self._sum[: panel.start, panel].T
            self._mirrored = True
        return self._sum


def gram_of(inputs: Tensor) -> Tensor:
    """XᵀX of inputs (..., d_in) in one go, float32 (d_in, d_in)."""
    gram = Gram(inputs.shape[-1], inputs.device)
    gram.add(inputs)
    return gram.matrix


def check_gram(gram: Tensor, d_in: int) -> None:
    """Raise unless `gram` is a finite, symmetric (d_in, d_in) matrix with diagonal ≥ 0.

    Raises BadParameter (shape, symmetry), NonFinite, NotPositiveDefinite (negative diagonal).
    """
    check_shape(gram, d_in)
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


def check_shape(gram: Tensor, d_in: int) -> None:
    """Raise BadParameter unless `gram` is a (d_in, d_in) matrix."""
    if gram.shape != (d_in, d_in):
        raise BadParameter(
            f"gram has shape {tuple(gram.shape)} but the weight has {d_in} inputs: "
            f"give XᵀX of that layer, shape ({d_in}, {d_in})"
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


def factor(matrix: Tensor, damping: float, *, shift: float = 0.0) -> tuple[Tensor, float]:
    """Lower Cholesky factor of damp(matrix, damping) + shift·I, and the damping that was used.

    A matrix that cannot be factored is retried with ten times the damping (from 0: with 1e-4),
    up to 1. The damping that succeeded is returned so that it can be recorded.

    Raises NotPositiveDefinite past the top of the ladder.
    """
    for rung in damping_ladder(damping):
        damped = damp(matrix, rung)
        damped.diagonal().add_(shift)
        lower, info = torch.linalg.cholesky_ex(damped)
        if info.item() == 0 and all_finite(lower):
            return lower, rung
    raise NotPositiveDefinite(
        f"gram cannot be factored with damping from {damping:g} up to {rung:g}: "
        "it is not positive semi-definite; recompute it from the layer's inputs"
    )


def damping_ladder(damping: float) -> list[float]:
    """The dampings to try in order: the one asked for, then ten times more each, up to 1."""
    rungs = [damping]
    while rungs[-1] < 1.0:
        rungs.append(min(1.0, rungs[-1] * 10 if rungs[-1] > 0 else 1e-4))
    return rungs


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
        sums.append(torch.stack([(part @ gram).mul_(part).sum() for part in (dense, change)]))
    total, lost = torch.stack(sums).sum(0).tolist()
    if not (math.isfinite(total) and math.isfinite(lost)):
        raise NonFinite("the layer's error overflows float32: its activations are far too large")
    return max(0.0, lost / total) if total > 0 else 0.0
