"""The memory that is free, of a machine and of a container, and the watch over it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from helpers.errors import BadParameter, OutOfMemory
from helpers.machine import memory, memory_watch, ram

GIB = 1 << 30
FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def group(folder: Path, version: int, limit: object) -> None:
    """A control group's files: half a GiB is used, of which a quarter is file cache."""
    limit_file, used_file, cache_name = FILES[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / used_file).write_text(f"{GIB // 2}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{cache_name} {GIB // 4}\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups instead of this machine's."""
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    return tmp_path


@pytest.mark.parametrize(
    ("version", "line", "folder"),
    [
        (2, "0::/jobs/one", "cgroup/jobs/one"),
        (2, "0::/jobs/one", "cgroup/jobs"),  # the group around it
        (2, "0::/of/the/host", "cgroup"),  # seen from inside a container
        (1, "5:cpuset,memory:/docker/abc", "cgroup/memory/docker/abc"),
    ],
)
def test_ram_of_a_container(groups: Path, version: int, line: str, folder: str) -> None:
    (groups / "own").write_text(f"3:cpu:/x\n{line}\n")
    group(groups / folder, version, GIB)
    assert ram() == (GIB - GIB // 2 + GIB // 4, GIB)


def test_ram_without_a_limit_is_the_machines(groups: Path) -> None:
    assert ram()[1] == psutil.virtual_memory().total  # no control groups, as on macOS
    (groups / "own").write_text("0::/a\n")
    group(groups / "cgroup/a", 2, "max")
    free, total = ram()
    assert total == psutil.virtual_memory().total
    assert abs(free - psutil.virtual_memory().available) < GIB


def test_the_watch_stops_work_before_the_kernel_is_killed(
    monkeypatch: pytest.MonkeyPatch, one_line_error
) -> None:
    monkeypatch.setattr(memory, "ram", lambda: (10**8, 12 * 10**9))
    started = time.monotonic()
    with one_line_error(OutOfMemory, "0.1 GB of 12.0 GB", "smaller model"), memory_watch():
        time.sleep(20)
    assert time.monotonic() - started < 5


def test_the_watch_lets_other_ends_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(memory, "ram", lambda: (10**9, 12 * 10**9))
    with memory_watch():
        time.sleep(0.1)
    for error in (KeyboardInterrupt, ZeroDivisionError):  # a person's, and the work's own
        with pytest.raises(error), memory_watch():
            time.sleep(0.05)
            raise error


def test_the_watch_needs_the_main_thread(one_line_error) -> None:
    def work() -> None:
        with memory_watch():
            pass

    with ThreadPoolExecutor() as pool, one_line_error(BadParameter, "main thread"):
        pool.submit(work).result()
    with one_line_error(BadParameter, "least"), memory_watch(least=0):
        pass
