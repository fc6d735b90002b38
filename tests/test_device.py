"""Devices and dtypes by name, and what is measured of memory."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import device
from helpers.device import all_finite
from helpers.errors import BadParameter
from helpers.paths import root


def test_devices_and_dtypes_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.pick_device("auto").type == "cuda"
    assert device.pick_device("cuda:1") == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.pick_device() == device.pick_device(torch.device("cpu")) == torch.device("cpu")
    assert device.pick_dtype(None, "cpu") is torch.float32
    assert device.pick_dtype(None, torch.device("cuda", 0)) is torch.float16
    assert device.pick_dtype("bfloat16", "cpu") is torch.bfloat16


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("cuda:2", "2"), ("gpu", '"auto"'), ("cuda:", '"auto"'), ("cpu:1", '"auto"')],
)
def test_a_device_that_is_not_there(name, allowed, one_line_error, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with one_line_error(BadParameter, "device", name, allowed):
        device.pick_device(name)


@pytest.mark.parametrize("name", ["float64", "fp16", torch.int8])
def test_a_dtype_that_no_model_is_loaded_in(name, one_line_error) -> None:
    with one_line_error(BadParameter, "dtype", "bfloat16, float16, float32"):
        device.pick_dtype(name, "cpu")


def test_all_finite_looks_at_every_part() -> None:
    for shape in ((), (5,), (3000, 1000), (2, 2_000_000)):
        tensor = torch.ones(shape)
        assert all_finite(tensor)
        for bad in (math.nan, -math.inf):
            spoiled = tensor.clone()
            spoiled.view(-1)[-1] = bad
            assert not all_finite(spoiled)
    assert all_finite(torch.ones(0, 3)) and not all_finite(torch.full((4, 4), math.inf).T)


GROWTH = """
import gc, torch
from helpers.device import memory_growth

torch.ones(30_000_000)  # an earlier, higher peak
litter = [torch.ones(20_000_000)]
litter.append(litter)
del litter  # held by a cycle alone, as a model is that an error has left behind
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
    options = dict(cwd=root(), capture_output=True, text=True, check=True)
    printed = subprocess.run([sys.executable, "-c", GROWTH], **options).stdout
    growth, nothing = map(int, printed.split())
    assert 38e6 < growth < 60e6 and nothing < 5e6


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no report of the peak")
def test_peak_memory_is_in_bytes() -> None:
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM"))
    high_water = int(line.split()[1]) * 1024
    # the upper end is wide because a process starts with its parent's peak
    assert 0.9 * high_water < device.peak_memory_bytes("cpu") < 50 * high_water
