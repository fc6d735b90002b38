"""Time several things alternately, so that a busy machine slows them all alike.

A ratio is taken within a round, in which each thing ran once, and summed up over the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from helpers.device import synchronise

Name = TypeVar("Name")  # what a run is called: a text, a size


def interleaved(
    runs: Mapping[Name, Callable[[], Any]],
    repeats: int,
    *,
    warm: bool = True,
    before: Callable[[], Any] | None = None,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Seconds of each run in each of `repeats` rounds, by name.

    Every second round goes backwards (A B, B A, …), so that effects of the order cancel.
    `warm` runs each once before, untimed; `before` is called, untimed, before every run; on a
    GPU the clock is read only after the device has finished.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    for round_ in range(-1 if warm else 0, repeats):
        names = list(runs) if round_ % 2 == 0 else list(reversed(runs))
        for name in names:
            if before:
                before()
            taken = once(runs[name], device, clock)
            if round_ >= 0:
                seconds[name].append(taken)
    return seconds


def once(
    run: Callable[[], Any],
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measure the seconds of one call, the device's work included."""
    synchronise(device)
    started = clock()
    run()
    synchronise(device)
    return clock() - started


def summary(values: Sequence[float]) -> dict[str, float | int]:
    """Summarise measurements: median, quartiles, extremes and their number."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {
        "median": float(middle),
        "q1": float(low),
        "q3": float(high),
        "min": float(min(values)),
        "max": float(max(values)),
        "repeats": len(values),
    }


def ratio(
    seconds: Mapping[Name, Sequence[float]], above: Name, *below: Name
) -> dict[str, float | int]:
    """Summarise above / (sum of below), one ratio for each round."""
    bottoms = zip(*(seconds[name] for name in below), strict=True)
    pairs = zip(seconds[above], bottoms, strict=True)
    return summary([top / sum(bottom) for top, bottom in pairs])
