"""Devices and dtypes, the precision of matrix products, and checks of tensors.

Only this module knows what kind of device it is that computes.
"""

import contextlib
import functools
import re
import resource
import sys
from collections.abc import Iterator

import torch

from helpers.errors import BadParameter, described
from helpers.options import check_choice

DTYPES = ("float32", "float16", "bfloat16")
# what a user may choose for the products of a model's passes
PRECISIONS = ("float32", "bfloat16")
# what torch can compute with on any device
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PART = 1 << 20  # numbers checked at a time

# --- devices ---------------------------------------------------------------------------------


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device called `name`: "auto" is CUDA where there is one, else the CPU.

    Raises BadParameter for another name and for a CUDA device that this machine lacks.
    """
    text = str(name)
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", text):
        raise BadParameter(
            f'device {text!r} is unknown: choose "auto", "cpu", "cuda" or "cuda:N"'
        )
    # "cuda" alone is device 0
    count = torch.cuda.device_count()
    if text != "cpu" and int(text.partition(":")[2] or 0) >= count:
        raise BadParameter(
            f'device {text!r} does not exist (CUDA devices on this machine: {count}): use "auto"'
        )
    return torch.device(text)


def pick_dtype(
    name: str | torch.dtype | None, device: torch.device | str
) -> torch.dtype:
    """The dtype called `name`; None is float32 on a CPU and float16 on CUDA.

    Raises BadParameter for anything but float32, float16 and bfloat16.
    """
    if name is None:
        return torch.float16 if torch.device(device).type == "cuda" else torch.float32
    name = check_choice("dtype", str(name).removeprefix("torch."), DTYPES)
    return getattr(torch, name)


def describe_device(device: torch.device | str) -> str:
    """The device for a record: the GPU's name, or for a CPU the threads torch uses."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"


def synchronise(device: torch.device | str) -> None:
    """Wait for a GPU to finish: its calls return before the work is done."""
    # a clock that is read without this measures how fast work is queued
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_bytes(device: torch.device | str) -> int:
    """Peak memory so far, in bytes: what torch allocated on a GPU, else the resident process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # the kernel counts in kibibytes on Linux and in bytes on macOS
    return int(peak if sys.platform == "darwin" else peak * 1024)


# --- the precision of products ---------------------------------------------------------------


@contextlib.contextmanager
def products(precision: str, device: torch.device | str) -> Iterator[None]:
    """Compute the matrix products of float32 tensors on a device in one precision.

    - "exact": factors in float32, for Gram matrices, solvers and errors.
    - "tf32": on a GPU with factors rounded to TF32, on a CPU as "exact".
    - one of PRECISIONS, for a model's passes: in bfloat16 by autocast, or without autocast.
      Weights stay in float32, and so do the hidden states between blocks.

    A caller may have allowed less than float32 in two ways, and this overrules both: autocast, and
    torch's switch for TF32 (a CPU has one for bfloat16). A model's passes keep the caller's switch.
    No synchronisation.
    """
    device = torch.device(device)
    # without the cache, whose copies of the weights in bfloat16 would outlive a step: all later
    # steps would see the weights of the first
    autocast = torch.autocast(
        device.type,
        torch.bfloat16,
        enabled=precision == "bfloat16",
        cache_enabled=False,
    )
    # autocast belongs to a thread and the switch to the process: batches that wait for each other,
    # a thread each, could not all set it and restore it
    if precision in PRECISIONS:
        switch = contextlib.nullcontext()
    else:
        switch = _matmul_switch(device, tf32=precision == "tf32")
    with autocast, switch:
        yield


@contextlib.contextmanager
def _matmul_switch(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """Set torch's switch: factors of products in float32, or on a GPU in TF32 if that is wanted."""
    on_gpu = device.type == "cuda"
    # TF32 has float32's range and 10 bits of mantissa instead of 23: about three digits
    tf32 = tf32 and on_gpu
    backend = torch.backends.cuda if on_gpu else torch.backends.mkldnn
    matmul = getattr(backend, "matmul", None)
    # newer versions of torch refuse the older switch once a caller has used the new one
    if hasattr(matmul, "fp32_precision"):
        before = matmul.fp32_precision
        value = "tf32" if tf32 else "ieee"
        switch = functools.partial(setattr, matmul, "fp32_precision")
    else:
        before = torch.get_float32_matmul_precision()
        value = "high" if tf32 else "highest"
        switch = torch.set_float32_matmul_precision
    switch(value)
    try:
        yield
    finally:  # after an error too, since the switch holds for the whole process
        switch(before)


def check_precision(precision: str, dtype: torch.dtype) -> None:
    """Raise BadParameter unless weights of this dtype can be used in this precision."""
    check_choice("precision", precision, PRECISIONS)
    if precision == "bfloat16" and dtype != torch.float32:
        raise BadParameter(
            f"precision 'bfloat16' is for a model in float32, and this one is {dtype}: leave it out"
        )


# --- checks and sums of tensors --------------------------------------------------------------


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
