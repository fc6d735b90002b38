"""The memory that is free, of a machine and of a container."""

import psutil
import pytest

from helpers.machine import memory, ram

GIB = 1 << 30
FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


@pytest.mark.parametrize("limit", [GIB, "max"])
@pytest.mark.parametrize(
    "version, line, folder",
    [
        (2, "0::/jobs/one", "jobs/one"),
        (2, "0::/jobs/one", "jobs"),  # the group around it
        (2, "0::/of/the/host", ""),  # seen from inside a container
        (1, "5:cpuset,memory:/docker/abc", "memory/docker/abc"),
    ],
)
def test_ram_is_the_containers_or_without_a_limit_the_machines(
    tmp_path, monkeypatch, *, version, line, folder, limit
):
    groups = tmp_path / "own"
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUPS", groups)
    total = psutil.virtual_memory().total
    assert ram()[1] == total  # no control groups, as on macOS
    groups.write_text(f"3:cpu:/x\n{line}\n")
    limit_file, used_file, cache = FILES[version]
    group = tmp_path / folder
    group.mkdir(parents=True, exist_ok=True)
    (group / limit_file).write_text(f"{limit}\n")
    (group / used_file).write_text(f"{GIB // 2}\n")  # half of it is file cache
    (group / "memory.stat").write_text(f"anon 1\n{cache} {GIB // 4}\n")
    if limit == GIB:
        assert ram() == (GIB * 3 // 4, GIB)
    else:
        assert ram()[1] == total
