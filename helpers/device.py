"""The only place that knows devices, dtypes, threads and peak memory."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from helpers.errors import BadParameter, check_choice

PART = 1 << 20  # numbers looked at together
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device called `name`: "auto" is CUDA where there is one, else the CPU.

    Raises BadParameter for another name and for a CUDA device that this machine lacks.
    """
    text = str(name)
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", text):
        raise BadParameter(f'device {text!r} is unknown: choose "auto", "cpu", "cuda" or "cuda:N"')
    count = torch.cuda.device_count()
    if text != "cpu" and int(text.partition(":")[2] or 0) >= count:
        raise BadParameter(f'device {text!r} is not here: {count} CUDA devices found; use "auto"')
    return torch.device(text)


def pick_dtype(name: str | torch.dtype | None, device: torch.device | str) -> torch.dtype:
    """The dtype called `name`; None is float32 on a CPU and float16 on CUDA.

    Raises BadParameter for anything but float32, float16 and bfloat16.
    """
    if name is None:
        return torch.float16 if torch.device(device).type == "cuda" else torch.float32
    text = str(name).removeprefix("torch.")
    return DTYPES[check_choice("dtype", text, DTYPES)]


def describe_device(device: torch.device | str) -> str:
    """The device for a record: the GPU's name, or for a CPU the threads torch uses."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"


def synchronise(device: torch.device | str) -> None:
    """Wait until a GPU has done what it was given, so that a clock means something."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity.

    A part at a time: `torch.isfinite` of a whole one takes more memory than the tensor itself.
    """
    if tensor.ndim == 0:
        return bool(torch.isfinite(tensor))
    rows = max(1, PART * len(tensor) // max(1, tensor.numel()))
    parts = [torch.isfinite(part).all() for part in tensor.split(rows)]
    return bool(torch.stack(parts).all())


def bit_sum(tensor: torch.Tensor) -> int:
    """The sum of a float32 tensor's bits, read as whole numbers: exact, so that it moves with
    any change of one entry. Entries that have changed places are not seen."""
    return int(tensor.view(torch.int32).sum(dtype=torch.int64))


@contextlib.contextmanager
def fast_products(device: torch.device | str, fast: bool) -> Iterator[None]:
    """Inside, a GPU may round the factors of float32 matrix products to TF32 if `fast`, else not.

    On a CPU nothing changes. No synchronisation.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    products = torch.backends.cuda.matmul
    # newer versions of torch refuse the older switch once a caller has used the new one
    new = hasattr(products, "fp32_precision")
    name, value = ("fp32_precision", "tf32" if fast else "ieee") if new else ("allow_tf32", fast)
    with attribute(products, name, value):
        yield


@contextlib.contextmanager
def attribute(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute, such as a switch of a library, another value for a while."""
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


class MemoryGrowth:
    """Peak memory of a stretch of work beyond what was in use before it, in bytes.

    On a GPU what torch allocated there, on Linux the resident process; None elsewhere.
    """

    bytes: int | None = None


@contextlib.contextmanager
def memory_growth(device: torch.device | str) -> Iterator[MemoryGrowth]:
    """Measure the growth inside; it is there once the block has ended."""
    growth = MemoryGrowth()
    before = _start_of_peak(torch.device(device))
    yield growth
    if before is not None:
        growth.bytes = max(0, _peak_since(torch.device(device)) - before)


def _start_of_peak(device: torch.device) -> int | None:
    """Forget the peak so far; return the bytes in use, or None where that cannot be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    try:
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5): resets VmHWM
        return _process_status("VmRSS")
    except OSError:
        return None


def _peak_since(device: torch.device) -> int:
    """The peak in bytes since `_start_of_peak`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _process_status("VmHWM")


def _process_status(field: str) -> int:
    """A size in bytes from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def peak_memory_bytes(device: torch.device | str) -> int:
    """Peak memory so far, in bytes: what torch allocated on a GPU, else the resident process."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # the kernel counts in kibibytes on Linux and in bytes on macOS
    return int(peak if sys.platform == "darwin" else peak * 1024)
