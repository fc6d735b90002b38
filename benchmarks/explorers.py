"""Seconds from a changed control of an explorer to its new picture, the gram being known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

from benchmarks.problems import random_gram, random_weight
from benchmarks.timing import interleaved, summary
from helpers.explore import Explorer, layer_solve_explorer, mask_schedule_explorer

# seconds within which a picture follows a control, and a frame the slider that is scrubbed
TARGET, SCRUB_TARGET = 0.5, 0.25
# explorer and control, with the values that it changes between; each change is a new solve, but
# for those of the iteration that is shown
SOLVE: dict[str, Sequence[Any]] = {
    "sparsity": (0.5, 0.6),
    "rho": (0.1, 1.0),
    "iterations": (19, 20),
    "schedule": ("one-shot", "paper", "released"),
}
MASK: dict[str, Sequence[Any]] = {
    "iteration": tuple(range(1, 20)),
    # more settings than are kept, so that each is solved anew
    "sparsity": (0.4, 0.45, 0.5, 0.55, 0.6),
}


def measure(quick: bool = False) -> dict[str, Any]:
    """A row for each control of the two explorers of a layer, by turns.

    Raises ValueError if a change of a control leaves the picture as it was.
    """
    width = 64 if quick else 576
    weight, gram = random_weight(width, width), random_gram(width)
    explorers = {
        "layer_solve_explorer": (layer_solve_explorer(weight, gram), SOLVE),
        "mask_schedule_explorer": (mask_schedule_explorer(weight, gram), MASK),
    }
    runs: dict[tuple[str, str], Callable[[], None]] = {}
    for name, (explorer, controls) in explorers.items():
        explorer.worker.wait()
        runs |= {(name, key): answer(explorer, key, values) for key, values in controls.items()}
    # a round is a change of each control, so a change meets no answer that is still kept
    seconds = interleaved(runs, 1 if quick else 20)
    for explorer, _ in explorers.values():
        explorer.close()
    rows = [
        {
            "case": f"{explorer}, {control}",
            "device": "cpu",
            "layer": f"{width} x {width}",
            "target": SCRUB_TARGET if control == "iteration" else TARGET,
            "seconds": summary(values),
        }
        for (explorer, control), values in seconds.items()
    ]
    return {"rows": rows}


def answer(explorer: Explorer, control: str, values: Sequence[Any]) -> Callable[[], None]:
    """A function that gives a control its next value and returns when the picture is new."""
    coming = cycle(values)

    def run() -> None:
        value = next(coming)
        while value == explorer.controls[control].value:
            value = next(coming)
        before = explorer.png
        explorer.controls[control].value = value
        explorer.worker.wait()
        if explorer.png == before:
            raise ValueError(
                f"{control} {value}: the picture is as before, {explorer.worker.message.value}"
            )

    return run
