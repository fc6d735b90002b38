"""Folders, safe replacement of files, devices."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path

import pytest
import torch

from helpers import device, paths
from helpers.device import all_finite, fast_products, memory_growth
from helpers.errors import BadParameter, RecordError


def test_folders_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PRUNING_CACHE", "PRUNING_RESULTS", "PRUNING_RUNS"):
        monkeypatch.setenv(name, str(tmp_path / name))
    assert paths.cache_dir() == tmp_path / "PRUNING_CACHE"
    assert paths.results_dir("laptop") == tmp_path / "PRUNING_RESULTS" / "laptop"
    assert paths.runs_dir("smoke") == tmp_path / "PRUNING_RUNS" / "smoke"
    # the committed reference never moves with the results
    assert paths.reference_dir("full") == paths.root() / "results" / "reference" / "full"


def test_folders_without_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNING_CACHE", "  ")  # empty counts as unset
    monkeypatch.delenv("PRUNING_RESULTS", raising=False)
    monkeypatch.delenv("PRUNING_RUNS", raising=False)
    assert paths.cache_dir() == Path.home() / ".cache" / "pruning-reproduction"
    assert (paths.root() / "helpers" / "paths.py").is_file()
    assert paths.results_dir("t4") == paths.root() / "results" / "t4"
    assert paths.runs_dir("t4") == paths.root() / "runs" / "t4"
    assert paths.notebooks_dir() == paths.root() / "notebooks"


def test_a_relative_cache_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNING_CACHE", "here")
    assert paths.cache_dir() == tmp_path / "here"


def test_replace_file_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.json"
    assert paths.replace_file(path, "één\n") == path
    assert path.read_bytes() == "één\n".encode()
    paths.replace_file(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]
    # readable by others like any file made with open()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_replace_file_below_a_file_is_one_line(tmp_path: Path) -> None:
    blocker = tmp_path / "blocker"
    blocker.write_text("a file, not a folder")
    with pytest.raises(RecordError) as caught:
        paths.replace_file(blocker / "record.json", "{}")
    assert "record.json" in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [blocker]


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_replace_file_keeps_the_old_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failing: str
) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")

    def refuse(*arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(paths.os, failing, refuse)
    with pytest.raises(RecordError, match="Read-only file system"):
        paths.replace_file(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_an_interrupt_leaves_no_partial_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(paths.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        paths.replace_file(tmp_path / "record.json", "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root ignores modes")
def test_replace_file_in_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RecordError, match="cannot write"):
        paths.replace_file(tmp_path / "record.json", "{}")


def test_pick_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device.pick_device() == torch.device("cpu")
    assert device.pick_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(BadParameter, match="0 CUDA devices"):
        device.pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.pick_device("auto").type == "cuda"
    assert device.pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(BadParameter, match="2 CUDA devices"):
        device.pick_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "", "mps", "cuda:", "cuda:x", "cpu:1", None])
def test_pick_device_refuses(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(BadParameter, match='choose "auto"'):
        device.pick_device(name)  # type: ignore[arg-type]


def test_pick_dtype() -> None:
    assert device.pick_dtype(None, "cpu") is torch.float32
    assert device.pick_dtype(None, torch.device("cuda", 0)) is torch.float16
    assert device.pick_dtype("bfloat16", "cpu") is torch.bfloat16
    assert device.pick_dtype(torch.float16, "cpu") is torch.float16
    for wrong in ("float64", "fp16", torch.int8):
        with pytest.raises(BadParameter, match="bfloat16, float16, float32"):
            device.pick_dtype(wrong, "cpu")


def test_describe_device_counts_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert device.describe_device("cpu") == "cpu, 2 threads"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert device.describe_device("cpu") == "cpu, 1 thread"


def test_peak_memory_is_in_bytes() -> None:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("the kernel's own figure is only to be had on Linux")
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    high_water = int(fields["VmHWM"].split()[0]) * 1024  # given in kB
    # the upper end is wide because a process starts with its parent's peak
    assert 0.9 * high_water < device.peak_memory_bytes("cpu") < 50 * high_water


def test_all_finite_looks_at_every_part() -> None:
    for shape in ((), (5,), (3000, 1000), (2, 2_000_000)):
        tensor = torch.ones(shape)
        assert all_finite(tensor)
        for bad in (math.nan, math.inf, -math.inf):
            spoiled = tensor.clone()
            spoiled.view(-1)[-1] = bad
            assert not all_finite(spoiled)
    assert all_finite(torch.ones(0, 3)) and not all_finite(torch.full((4, 4), math.inf).T)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no account of the peak")
def test_memory_growth_is_that_of_the_stretch_alone() -> None:
    torch.ones(30_000_000)  # an earlier, higher peak
    with memory_growth("cpu") as growth:
        torch.ones(10_000_000)
    assert 38e6 < growth.bytes < 60e6
    with memory_growth("cpu") as growth:
        pass
    assert growth.bytes < 5e6


def test_products_on_a_cpu_stay_as_they_are() -> None:
    before = torch.get_float32_matmul_precision()
    with fast_products("cpu", True):
        assert torch.get_float32_matmul_precision() == before
