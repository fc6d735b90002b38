"""Devices, dtypes, threads and peak memory, which only this module knows about."""

import contextlib
import re
import resource
import sys
from collections.abc import Iterator
from typing import Any

import torch

from helpers.errors import BadParameter
from helpers.options import check_choice

DTYPES = ("float32", "float16", "bfloat16")


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


@contextlib.contextmanager
def float32_products(
    device: torch.device | str, *, tf32: bool = False
) -> Iterator[None]:
    """Compute float32 matmuls in float32, even if the caller has allowed less.

    With `tf32` a GPU may round the factors to TF32. No synchronisation.
    """
    on_gpu = torch.device(device).type == "cuda"
    # TF32 has float32's range and 10 bits of mantissa instead of 23: about three digits. A CPU can
    # be set to round to bfloat16 instead
    products = (
        torch.backends.cuda.matmul
        if on_gpu
        else getattr(torch.backends.mkldnn, "matmul", 0)
    )
    if hasattr(products, "fp32_precision"):
        # newer versions of torch refuse the older switches once a caller has used the new one
        with attribute(
            products, "fp32_precision", "tf32" if tf32 and on_gpu else "ieee"
        ):
            yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 and on_gpu else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def attribute(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Temporarily set an attribute of `holder`, such as a library's switch."""
    # restored after an error too, since the switch holds for the whole process
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


def peak_memory_bytes(device: torch.device | str) -> int:
    """Peak memory so far, in bytes: what torch allocated on a GPU, else the resident process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # the kernel counts in kibibytes on Linux and in bytes on macOS
    return int(peak if sys.platform == "darwin" else peak * 1024)
