"""The memory that is free, of a machine and of a container, and the watch over it."""

from __future__ import annotations

import time
from collections.abc import Callable
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


@pytest.mark.parametrize("limit", [GIB, "max"])
@pytest.mark.parametrize(
    ("version", "line", "folder"),
    [
        (2, "0::/jobs/one", "jobs/one"),
        (2, "0::/jobs/one", "jobs"),  # the group around it
        (2, "0::/of/the/host", ""),  # seen from inside a container
        (1, "5:cpuset,memory:/docker/abc", "memory/docker/abc"),
    ],
)
def test_ram_is_the_containers_or_without_a_limit_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, version, line, folder, limit
) -> None:
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    total = psutil.virtual_memory().total
    assert ram()[1] == total  # no control groups, as on macOS
    (tmp_path / "own").write_text(f"3:cpu:/x\n{line}\n")
    limit_file, used_file, cache = FILES[version]
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / limit_file).write_text(f"{limit}\n")
    (tmp_path / folder / used_file).write_text(f"{GIB // 2}\n")  # half of it is file cache
    (tmp_path / folder / "memory.stat").write_text(f"anon 1\n{cache} {GIB // 4}\n")
    assert ram() == (GIB - GIB // 2 + GIB // 4, GIB) if limit == GIB else ram()[1] == total


def test_the_watch_stops_work_before_the_kernel_is_killed(
    monkeypatch: pytest.MonkeyPatch, one_line_error: Callable
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


def test_the_watch_needs_the_main_thread(one_line_error: Callable) -> None:
    def work() -> None:
        with memory_watch():
            pass

    with ThreadPoolExecutor() as pool, one_line_error(BadParameter, "main thread"):
        pool.submit(work).result()
    with one_line_error(BadParameter, "least"), memory_watch(least=0):
        pass
