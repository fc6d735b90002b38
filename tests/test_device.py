"""Devices and dtypes by name, and numbers that are not finite."""

import math

import pytest
import torch

from helpers import device
from helpers.device import all_finite
from helpers.errors import BadParameter


def test_devices_and_dtypes_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.pick_device("auto").type == "cuda"
    assert device.pick_device("cuda:1") == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (
        device.pick_device()
        == device.pick_device(torch.device("cpu"))
        == torch.device("cpu")
    )
    assert device.pick_dtype(None, "cpu") is torch.float32
    assert device.pick_dtype(None, torch.device("cuda", 0)) is torch.float16
    assert device.pick_dtype("bfloat16", "cpu") is torch.bfloat16


@pytest.mark.parametrize(
    "name, allowed",
    [("cuda:2", "2"), ("gpu", '"auto"'), ("cuda:", '"auto"'), ("cpu:1", '"auto"')],
)
def test_a_device_that_is_not_there(name, allowed, one_line_error, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with one_line_error(BadParameter, "device", name, allowed):
        device.pick_device(name)


def test_all_finite_looks_at_every_part():
    for shape in ((), (5,), (3000, 1000), (1, 2, 2_000_000)):
        tensor = torch.ones(shape)
        assert all_finite(tensor)
        for bad in (math.nan, -math.inf):
            spoiled = tensor.clone()
            spoiled.view(-1)[-1] = bad
            assert not all_finite(spoiled)
    assert all_finite(torch.ones(0, 3))
    assert not all_finite(torch.full((4, 4), math.inf).T)
