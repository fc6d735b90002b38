"""The Gram matrix XᵀX of a layer's inputs: accumulate, check, normalise, damp, factor.

A gram (the H of SparseGPT) is (d_in, d_in), float32, summed over the calibration tokens, which are
the rows of X, and not averaged. It is all that the layer-wise problem min ‖XW − XŴ‖² needs to know
about the data:

    ‖XW − XŴ‖² = tr((W − Ŵ)ᵀ XᵀX (W − Ŵ)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from helpers.device import all_finite, check_matrix, holds_floats, products
from helpers.errors import (
    BadParameter,
    NonFinite,
    NotPositiveDefinite,
    UnsupportedModel,
    described,
)
from helpers.paper.fast import panels

# relative to the largest entry: a gram that someone else computed is symmetric up to rounding only
SYMMETRY_TOLERANCE = 1e-4
PRODUCT_SIZE = 1 << 22  # numbers of a product made at a time
CHECKED_ROWS = 512  # at a time, so that checking takes little memory


class Gram:
    """XᵀX, summed over batches of inputs, with what was derived from it.

    Memory: 4·d_in² bytes. `tokens` counts the rows added so far. Layers that read the same input
    share one Gram, and so its factor (`derived`).
    """

    def __init__(self, d_in: int, device: torch.device | str = "cpu") -> None:
        # float32 in a model of any dtype: the sum over 10⁵ tokens is factored later, and half
        # precision has too few digits for that
        self._sum = torch.zeros(d_in, d_in, dtype=torch.float32, device=device)
        # an empty sum is symmetric and finite: there is nothing to mirror or to check yet
        self._mirrored = self._checked = True
        self._derived = {}  # one entry at most, see `derived`
        self.tokens = 0

    @classmethod
    def of(cls, matrix: Tensor | Gram) -> Gram:
        """The Gram of a matrix (d_in, d_in) that is XᵀX already; a Gram is returned as it is.

        Raises BadParameter for what is no matrix of floats.
        """
        if isinstance(matrix, Gram):
            return matrix
        check_matrix("gram", matrix)
        gram = cls(0)  # its sum is replaced, so it need not hold zeros
        # a float32 matrix is not copied; it comes from the caller, so it has yet to be checked
        gram._sum = matrix.float()
        gram._checked = False
        return gram

    def add(self, inputs: Tensor) -> None:
        """Add inputs of shape (..., d_in), any float type; the sum is kept in float32.

        Raises BadParameter for another shape or type.
        """
        width = len(self._sum)
        # `reshape` below would also take inputs of another width, and mix up their tokens
        if not holds_floats(inputs) or inputs.shape[-1:] != (width,):
            raise BadParameter(
                f"inputs {described(inputs)}: give floating-point inputs of shape (..., {width})"
            )
        # (batch, length, d_in) → (batch · length, d_in): to a gram every token is a row of X.
        # float32 before the product: a sum of squares soon passes float16's largest value, 65504
        rows = inputs.detach().reshape(-1, width).float()
        # in float32 too where the model's own products are done in bfloat16 or TF32
        with products("exact", rows.device):
            # `matrix` fills in the lower half
            panels.add_upper(self._sum, rows)
        self._mirrored = self._checked = False
        # a factor of the sum as it was before these rows
        self._derived.clear()
        self.tokens += len(rows)

    @property
    def matrix(self) -> Tensor:
        """The sum so far, (d_in, d_in). It is the sum itself: later inputs change it."""
        if not self._mirrored:
            panels.mirror(self._sum)
            self._mirrored = True
        return self._sum

    def checked(self, d_in: int) -> Gram:
        """The Gram itself, after `check_gram`, which looks at the same sum only once."""
        if not self._checked or len(self._sum) != d_in:
            check_gram(self.matrix, d_in)
            self._checked = True
        return self

    def derived(self, derive: Callable, *options: Hashable) -> Any:
        """derive(matrix, *options), remembered until another function or other options come.

        So layers with the same input and options are solved with one factorisation.
        """
        key = (derive, options)
        if key not in self._derived:
            # before the next is made, so that two never lie in memory
            self._derived.clear()
            self._derived[key] = derive(self.matrix, *options)
        return self._derived[key]


def gram_of(inputs: Tensor) -> Tensor:
    """XᵀX of inputs (..., d_in) in one go, float32 (d_in, d_in). Raises as `Gram.add`."""
    if not holds_floats(inputs) or inputs.ndim == 0:
        raise BadParameter(
            f"inputs {described(inputs)}: give floating-point inputs (..., d_in)"
        )
    gram = Gram(inputs.shape[-1], inputs.device)
    gram.add(inputs)
    return gram.matrix


def check_measured(sums: Gram | Tensor | None, block: str, layer: str) -> None:
    """Raise unless a layer's gram, or another sum over its inputs, is there and is finite.

    Raises UnsupportedModel, NonFinite.
    """
    if isinstance(sums, Gram):
        # an expert that was called with no rows is as unmeasured as one that was never called
        sums = sums.matrix if sums.tokens else None
    if sums is None:
        raise UnsupportedModel(
            f"{block} {layer} saw no calibration tokens: if it is an expert, give more calibration "
            "text; otherwise choose another model"
        )
    if not all_finite(sums):
        raise NonFinite(
            f"the inputs of {block} {layer} hold NaN or infinity: check the weights of the layers "
            "before it, or use dtype float32"
        )


def check_gram(gram: Tensor, d_in: int) -> None:
    """Raise unless `gram` is a finite, symmetric (d_in, d_in) matrix with diagonal ≥ 0.

    Raises BadParameter (type, shape, symmetry), NonFinite, NotPositiveDefinite (negative diagonal).
    """
    check_matrix("gram", gram)
    if gram.shape != (d_in, d_in):
        raise BadParameter(
            f"gram has shape {tuple(gram.shape)} but the weight has {d_in} inputs: "
            f"give XᵀX of that layer, shape ({d_in}, {d_in})"
        )
    # before symmetry, because every comparison with NaN is false: the test below would let it pass
    if not all_finite(gram):
        raise NonFinite(
            "gram holds NaN or infinity: check the activations it was summed from"
        )
    # a strip of rows against a strip of columns: gram − gramᵀ in one go takes another d_in² numbers
    sizes = []
    gaps = []
    for start in range(0, d_in, CHECKED_ROWS):
        part = slice(start, start + CHECKED_ROWS)
        sizes.append(gram[part].abs().max())
        gaps.append((gram[part] - gram[:, part].T).abs_().max())
    # one `item` for all strips, since each makes the host wait for a GPU
    largest = torch.stack(sizes).max().item()
    lopsided = torch.stack(gaps).max().item()
    if lopsided > SYMMETRY_TOLERANCE * largest:
        raise BadParameter(
            "gram is not symmetric: give XᵀX, for example from gram_of(inputs)"
        )
    # gram_ii = ‖x_i‖². Checked here, because damping would make a Cholesky factor of such a matrix
    # possible and hide that it is no gram at all
    if gram.diagonal().min() < 0:
        raise NotPositiveDefinite(
            "gram has a negative diagonal, so it is not XᵀX of any inputs: recompute it"
        )


def dead_inputs(gram: Tensor) -> Tensor:
    """Boolean (d_in,), True where an input was zero on every calibration token."""
    # gram_ii = Σ x_i² over all tokens: it is 0 only if every x_i is
    return gram.diagonal() == 0


def normalise(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Scale the inputs to unit norm: (G, n) with n = sqrt(diag(gram)), G = gram/(n nᵀ).

    Dead inputs get n = 1, so that nothing is divided by zero; their row and column of G stay 0.
    Source: the paper's preconditioning.
    """
    # gram_ij = x_i·x_j, so G_ij = x_i·x_j / (‖x_i‖ ‖x_j‖) is the cosine of two inputs, and G_ii = 1
    norms = gram.diagonal().sqrt().masked_fill_(dead_inputs(gram), 1)
    # gram / norms divides column j by n_j; the rows are divided in place, so one new matrix is made
    return (gram / norms).div_(norms[:, None]), norms


def damp(matrix: Tensor, damping: float) -> Tensor:
    """matrix + damping · mean(diag(matrix)) · I, (d_in, d_in), as a new tensor."""
    return add_ridge(matrix.clone(), damping)


def add_ridge(matrix: Tensor, damping: float) -> Tensor:
    """`damp` in place."""
    # A ridge shifts every eigenvalue up by the same amount. Relative to the mean of the diagonal
    # one number suits all layers, whose grams differ by orders of magnitude. `diagonal` is a view
    matrix.diagonal().add_(damping * matrix.diagonal().mean())
    return matrix


def cholesky(matrix: Tensor, *, upper: bool = False) -> Tensor | None:
    """The Cholesky factor (n, n), or None if the matrix, as rounded, is not positive definite."""
    # cholesky_ex reports a failure in `info` instead of raising: here a failure is no error but a
    # step up the ladder of damping
    factor, info = torch.linalg.cholesky_ex(matrix, upper=upper)
    return factor if info.item() == 0 and all_finite(factor) else None


def climb_damping(damping: float, factor: Callable[[float], Any]) -> Any:
    """factor(rung) for the first damping that works: the given one, then up the ladder.

    Each rung is ten times the one before it (from 0: 1e-4), the last is 1. The damping that was
    used must be recorded, so it has to be part of the answer.
    Raises NotPositiveDefinite past the top of the ladder.
    """
    rung = damping
    # In exact arithmetic any damping > 0 makes a gram positive definite. Rounding moves the
    # eigenvalues by 10⁻⁷ of the largest or more, in either direction; the ridge must exceed that
    while (answer := factor(rung)) is None:
        # at 1 the ridge is as large as a typical input; what still fails is no gram
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
    nothing to lose: 0. Raises BadParameter for shapes that do not fit, NonFinite where the sums
    overflow float32.
    """
    check_matrix("weight", weight)
    check_matrix("new_weight", new_weight)
    check_matrix("gram", gram)
    if new_weight.shape != weight.shape or gram.shape != (weight.shape[1],) * 2:
        raise BadParameter(
            f"weight {tuple(weight.shape)}, new_weight {tuple(new_weight.shape)} and gram "
            f"{tuple(gram.shape)} do not fit: give (d_out, d_in) twice, and (d_in, d_in)"
        )
    sums = []
    # some rows at a time, so that no matrix of the weight's size is made
    rows = max(1, PRODUCT_SIZE // weight.shape[1])
    parts = zip(weight.split(rows), new_weight.split(rows), strict=True)
    with products("exact", weight.device):
        for dense, new in parts:
            dense = dense.float()
            # float32 before the difference, which float16 would round
            change = dense - new.float()
            # row by row tr(A gram Aᵀ), without the d_out × d_out matrix that the trace is of
            both = [(part @ gram).mul_(part).sum() for part in (dense, change)]
            sums.append(torch.stack(both))
    total, lost = torch.stack(sums).sum(0).tolist()
    if not (math.isfinite(total) and math.isfinite(lost)):
        raise NonFinite(
            "the layer's error overflows float32: its weights or activations are far too large; "
            "check the checkpoint"
        )
    # rounding can make a sum that should be 0 slightly negative
    return max(0.0, lost / total) if total > 0 else 0.0
