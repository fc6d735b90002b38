"""Devices and dtypes by name, and what is measured of memory."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import device
from helpers.device import all_finite, bit_sum
from helpers.errors import BadParameter
from helpers.paths import root


def test_pick_device(monkeypatch: pytest.MonkeyPatch, one_line_error) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device.pick_device() == torch.device("cpu")
    assert device.pick_device(torch.device("cpu")) == torch.device("cpu")
    with one_line_error(BadParameter, "CUDA devices on this machine: 0"):
        device.pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.pick_device("auto").type == "cuda"
    assert device.pick_device("cuda:1") == torch.device("cuda", 1)
    with one_line_error(BadParameter, "CUDA devices on this machine: 2"):
        device.pick_device("cuda:2")
    for name in ("gpu", "", "cuda:", "cpu:1", None):
        with one_line_error(BadParameter, str(name), 'choose "auto"'):
            device.pick_device(name)


def test_pick_dtype(one_line_error) -> None:
    assert device.pick_dtype(None, "cpu") is torch.float32
    assert device.pick_dtype(None, torch.device("cuda", 0)) is torch.float16
    assert device.pick_dtype("bfloat16", "cpu") is torch.bfloat16
    assert device.pick_dtype(torch.float16, "cpu") is torch.float16
    for wrong in ("float64", "fp16", torch.int8):
        with one_line_error(BadParameter, "bfloat16, float16, float32"):
            device.pick_dtype(wrong, "cpu")


def test_all_finite_looks_at_every_part() -> None:
    for shape in ((), (5,), (3000, 1000), (2, 2_000_000)):
        tensor = torch.ones(shape)
        assert all_finite(tensor)
        for bad in (math.nan, math.inf, -math.inf):
            spoiled = tensor.clone()
            spoiled.view(-1)[-1] = bad
            assert not all_finite(spoiled)
    assert all_finite(torch.ones(0, 3)) and not all_finite(torch.full((4, 4), math.inf).T)


def test_the_sum_of_bits_sees_the_smallest_change() -> None:
    tensor = torch.randn(300, 200)
    changed = tensor.clone()
    changed[7, 9] = torch.nextafter(changed[7, 9], torch.tensor(math.inf))
    assert bit_sum(tensor) == bit_sum(tensor.clone()) != bit_sum(changed)


GROWTH = """
import gc, torch
from helpers.device import memory_growth

torch.ones(30_000_000)  # an earlier, higher peak
litter = [torch.ones(20_000_000)]
litter.append(litter)
del litter  # held by a cycle alone, as a model is that an error has left behind
torch.ones(5_000_000)  # from here on glibc takes pieces of 20 MB from its heap
pieces = [torch.ones(4_900_000) for _ in range(8)]
del pieces[:-1]  # below the last one, so that they stay with the process
with memory_growth("cpu") as growth:
    gc.collect()
    torch.ones(10_000_000)
with memory_growth("cpu") as nothing:
    pass
print(growth.bytes, nothing.bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no report of the peak")
def test_memory_growth_is_that_of_the_stretch_alone() -> None:
    # in a process of its own, whose heap no other test has filled
    asked = dict(cwd=root(), capture_output=True, text=True, check=True)
    growth, nothing = map(
        int, subprocess.run([sys.executable, "-c", GROWTH], **asked).stdout.split()
    )
    assert 38e6 < growth < 60e6 and nothing < 5e6


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no report of the peak")
def test_peak_memory_is_in_bytes() -> None:
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM"))
    high_water = int(line.split()[1]) * 1024
    # the upper end is wide because a process starts with its parent's peak
    assert 0.9 * high_water < device.peak_memory_bytes("cpu") < 50 * high_water
