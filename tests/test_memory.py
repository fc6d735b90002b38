"""The memory that is free, of a machine and of a container, and the watch over it."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread

import psutil
import pytest

from helpers.errors import BadParameter, OutOfMemory
from helpers.machine import memory, memory_watch, ram

GIB = 1 << 30
FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def group(folder: Path, version: int, limit: object, used: int, cache: int) -> None:
    """A control group's files."""
    limit_file, used_file, cache_name = FILES[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / used_file).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{cache_name} {cache}\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups instead of this machine's."""
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    return tmp_path


def test_ram_of_the_machine(groups: Path) -> None:
    free, total = ram()
    assert total == psutil.virtual_memory().total
    assert abs(free - psutil.virtual_memory().available) < GIB


@pytest.mark.parametrize(
    ("version", "line", "folder"),
    [
        (2, "0::/jobs/one", "cgroup/jobs/one"),
        (2, "0::/jobs/one", "cgroup/jobs"),  # the group around it
        (2, "0::/of/the/host", "cgroup"),  # seen from inside a container
        (1, "5:cpuset,memory:/docker/abc", "cgroup/memory/docker/abc"),
        (1, "5:memory:/docker/abc", "cgroup/memory"),
    ],
)
def test_ram_of_a_container(groups: Path, version: int, line: str, folder: str) -> None:
    (groups / "own").write_text(f"3:cpu:/x\n{line}\n")
    group(groups / folder, version, GIB, GIB // 2, GIB // 4)
    assert ram() == (GIB - GIB // 2 + GIB // 4, GIB)


def test_a_group_without_a_limit_does_not_count(groups: Path) -> None:
    (groups / "own").write_text("0::/a/b\n")
    group(groups / "cgroup/a/b", 2, "max", GIB, 0)
    group(groups / "cgroup/a", 2, GIB, GIB // 2, 0)
    assert ram() == (GIB // 2, GIB)


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
            raise error


def test_the_watch_needs_the_main_thread(one_line_error) -> None:
    found: list[BaseException] = []

    def work() -> None:
        try:
            with memory_watch():
                pass
        except BadParameter as error:
            found.append(error)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert "main thread" in str(found[0])
    with one_line_error(BadParameter, "least"), memory_watch(least=0):
        pass
