"""How many threads a notebook takes: cores that others keep busy are left to them."""

import psutil
import pytest
import torch

from helpers.machine import leave_busy_cores, threads


@pytest.mark.parametrize(
    ("busy", "expected", "words"),
    [
        ([3.0, 20.0, 5.0, 4.0], 4, "4 of 4"),  # a browser, an idle Jupyter server
        ([99.0, 80.0, 30.0, 2.0], 2, "2 of 4: other programs keep 2 busy"),
        ([100.0] * 4, 1, "1 of 4: other programs keep 4 busy"),
        ([0.0] * 4 + [100.0] * 60, 4, "4 of 4"),  # cores that this process may not use
    ],
)
def test_busy_cores_are_left(
    busy: list[float], expected: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in threads.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "cpus", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(threads, "_usual_threads", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds, percpu: busy)
    for _ in range(2):  # a second run in the same kernel
        assert leave_busy_cores() == words and torch.get_num_threads() == expected


def test_a_number_that_somebody_has_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(psutil, "cpu_percent", None)  # not even asked
    assert leave_busy_cores() == f"{torch.get_num_threads()}, as the environment says"
