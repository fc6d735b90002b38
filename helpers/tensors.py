"""Checks and sums of tensors that need no model."""

import torch

from helpers.errors import BadParameter, described

PART = 1 << 20  # numbers checked at a time
# what torch can compute with on any device
FLOATS = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
)


def holds_floats(value: object) -> bool:
    """Whether a value is a tensor of real floats in memory: not sparse, meta, complex or 8-bit."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return False
    return value.dtype in FLOATS and not value.is_meta


def check_matrix(what: str, value: object) -> None:
    """Raise BadParameter unless a value is a matrix of floats with one entry or more."""
    if not holds_floats(value) or value.ndim != 2 or value.numel() == 0:
        raise BadParameter(
            f"{what} {described(value)}: give a dense floating-point torch tensor, weight "
            "(d_out, d_in) and gram (d_in, d_in)"
        )


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity.

    A part at a time: `torch.isfinite` of a whole one takes more memory than the tensor itself.
    """
    if tensor.is_contiguous():
        tensor = tensor.flatten()  # a view, whose parts may begin and end anywhere
    # rows of the first dimension that hold about PART numbers together
    rows = max(1, PART * len(tensor) // max(1, tensor.numel()))
    parts = [torch.isfinite(part).all() for part in tensor.split(rows)]
    # one bool for all parts: each would make the host wait for a GPU
    return bool(torch.stack(parts).all())


def bit_sum(tensor: torch.Tensor) -> int:
    """The sum of a float32 tensor's bits, read as whole numbers.

    It is exact, so any change of one entry changes it; an exchange of two entries does not.
    """
    # whole numbers add up exactly in any order; floats would round, and a small change could vanish
    return int(tensor.view(torch.int32).sum(dtype=torch.int64))
