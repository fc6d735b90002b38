"""How many threads a notebook takes: cores that others keep busy are left to them."""

import itertools
from types import SimpleNamespace

import psutil
import pytest
import torch

from helpers.machine import leave_busy_cores, threads


@pytest.mark.parametrize(
    ("busy", "own", "cores", "expected", "words"),
    [
        ([3.0, 20.0, 5.0, 4.0], 0, 4, 4, "4 of 4"),  # a browser, an idle Jupyter server
        ([99.0, 80.0, 30.0, 2.0], 0, 4, 2, "2 of 4: other programs keep 2 busy"),
        ([100.0] * 4, 0, 4, 1, "1 of 4: other programs keep 4 busy"),
        ([0.0] * 4 + [100.0] * 60, 0, 4, 4, "4 of 4"),  # cores that this process may not use
        ([99.0, 98.0, 97.0, 3.0], 2, 4, 3, "3 of 4: other programs keep 1 busy"),  # an explorer
        ([2.0, 3.0, 1.0, 0.0], 1, 4, 4, "4 of 4"),  # two clocks that differ
        ([100.0] * 4 + [0.0] * 4, 0, 8, 2, "2 of 4: other programs keep 4 busy"),  # hyperthreads
    ],
)
def test_busy_cores_are_left(
    busy: list[float], own: int, cores: int, expected: int, words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in threads.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "cpus", lambda: list(range(cores)))
    monkeypatch.setattr(threads, "_usual_threads", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds, percpu: busy)
    clock = itertools.count(step=own * threads.LOOK_SECONDS)  # seconds that this process computes
    monkeypatch.setattr(threads, "time", SimpleNamespace(process_time=clock.__next__))
    for _ in range(2):  # a second run in the same kernel
        assert leave_busy_cores() == words and torch.get_num_threads() == expected


def test_a_number_that_somebody_has_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(psutil, "cpu_percent", None)  # not even asked
    assert leave_busy_cores() == f"{torch.get_num_threads()}, as the environment says"
