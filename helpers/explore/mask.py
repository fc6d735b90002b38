"""Explorer of a growing mask: scrub through the iterations and watch which weights fall."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import ipywidgets
import torch
from torch import Tensor, nn

from helpers.admm import admm_grad
from helpers.errors import check_real
from helpers.explore.controls import Explorer, View, Worker, choice, row, slider
from helpers.explore.layer import SCHEDULES
from helpers.explore.source import LayerOutputs, find_source
from helpers.masks import Pattern
from helpers.results import growth_figure, short_error

PATTERNS = ("unstructured", "2:4", "4:8")
FINAL_ITERATIONS = 5  # on the final mask, as in the paper
INTERVAL = 500  # milliseconds between two iterations that are played
HINT = (
    "Press ▶ or drag the iteration. Look at: when most weights fall; which ones the gradual mask "
    "gives up (orange) for others (black); in 2:4 and 4:8, how every group ends with the same "
    "number."
)


@dataclass
class _History:
    """A solve, iteration by iteration; `one_shot` is the one-shot mask of its final sparsity."""

    one_shot: Tensor
    keeps: list[Tensor] = field(default_factory=list)
    sparsities: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)


def mask_schedule_explorer(
    network: nn.Module | Tensor | str = "embedded",
    tokens: Tensor | None = None,
    *,
    block: int | None = None,
    layer: str | None = None,
    schedule: str = "paper",
    sparsity: float = 0.6,
    pattern: str = "unstructured",
    mask_steps: int = 15,
    damping: float = 0.1,
    outputs: int | None = None,
) -> Explorer:
    """Choose schedule, pattern, sparsity and mask steps; scrub through the mask as it grows.

    The mask of the iteration shown is drawn with its difference to the one-shot mask of the final
    sparsity. Five iterations on the final mask follow the mask steps; 0 steps is one-shot. The
    explorer starts at the last iteration. Other arguments and errors as in
    `helpers.explore.layer_solve_explorer`.
    """
    damping = check_real("damping", damping)
    source = find_source(network, tokens, outputs)
    where = source.controls(block, layer)
    options = [(label, name) for name, label in SCHEDULES.items()]
    real, whole = ipywidgets.FloatSlider, ipywidgets.IntSlider
    how = {
        "schedule": choice(options, schedule, "schedule"),
        "pattern": choice(PATTERNS, pattern, "pattern"),
        "sparsity": slider(real, sparsity, "sparsity", min=0.05, max=0.95, step=0.05),
        "mask_steps": slider(whole, mask_steps, "mask steps", min=0, max=30),
    }
    last = mask_steps + FINAL_ITERATIONS
    how["iteration"] = slider(whole, last, "iteration", min=1, max=last)
    solve = lru_cache(maxsize=3)(_solve)  # scrubbing, and going back to a setting, solve nothing

    def draw(worker: Worker, *, iteration: int, **values: Any) -> View:
        part = source.get(worker.progress, **{name: values.pop(name) for name in where})
        history = solve(worker, part, damping=damping, **values)
        shown = min(iteration, len(history.keeps))
        return _view(history, part.title, Pattern.parse(values["pattern"]), shown)

    first, second = [how["schedule"], how["pattern"]], [how["sparsity"], how["mask_steps"]]
    third = [_connect(how), how["iteration"]]
    rows = [row(*where.values(), *first), row(*second), row(*third)]
    return Explorer(where | how, draw, rows=rows, hint=HINT)


def _connect(controls: dict[str, ipywidgets.Widget]) -> ipywidgets.Play:
    """The Play button of the iteration, and what one control means for another."""
    iteration, steps = controls["iteration"], controls["mask_steps"]
    play = ipywidgets.Play(min=1, max=iteration.max, value=iteration.value, interval=INTERVAL)
    # at the end it starts again: pressed there it would only switch itself off
    setattr(play, "repeat" if hasattr(play, "repeat") else "_repeat", True)  # ipywidgets 8 and 7
    ipywidgets.jslink((play, "value"), (iteration, "value"))  # in the browser: no round trip

    def follow(_change: Any = None) -> None:
        controls["sparsity"].disabled = controls["pattern"].value != "unstructured"
        steps.disabled = controls["schedule"].value == "one-shot"
        at_end = iteration.value == iteration.max
        play.max = iteration.max = steps.value + FINAL_ITERATIONS
        if at_end:
            iteration.value = iteration.max

    for name in ("pattern", "schedule", "mask_steps"):
        controls[name].observe(follow, names="value")
    follow()
    return play


def _solve(
    worker: Worker,
    part: LayerOutputs,
    *,
    schedule: str,
    pattern: str,
    sparsity: float,
    mask_steps: int,
    damping: float,
) -> _History:
    """Solve, and keep the mask after every iteration."""
    target = {"pattern": pattern, "sparsity": sparsity if pattern == "unstructured" else None}
    once = {"mask_steps": 0, "iterations": 1, "damping": damping}
    history = _History(admm_grad(part.weight, part.gram, **target, **once).keep.cpu())

    def trace(_iteration: int, weight: Tensor, keep: Tensor) -> None:
        worker.check()
        history.errors.append(part.error(weight))
        history.sparsities.append(1 - int(keep.sum()) / keep.numel())
        keep = keep.cpu()
        if history.keeps and torch.equal(history.keeps[-1], keep):
            keep = history.keeps[-1]  # iterations on one mask share it
        history.keeps.append(keep)

    kind = {"schedule": schedule, "mask_steps": mask_steps}
    if schedule == "one-shot":
        kind = {"mask_steps": 0}
    iterations = mask_steps + FINAL_ITERATIONS
    settings = {"iterations": iterations, "damping": damping, **kind, **target}
    admm_grad(part.weight, part.gram, **settings, trace=trace)
    return history


def _view(history: _History, title: str, pattern: Pattern, shown: int) -> View:
    """The picture of an iteration, counted from 1, and the same in words."""
    keep, one_shot = history.keeps[shown - 1], history.one_shot
    figure = growth_figure(
        history.sparsities,
        history.errors,
        keep,
        one_shot,
        iteration=shown,
        pattern=(pattern.n, pattern.m) if pattern.grouped else None,
        name=title,
    )
    gone = int((one_shot & ~keep).sum()) / max(1, int(one_shot.sum()))
    caption = (
        f"Iteration {shown} of {len(history.keeps)}: {100 * history.sparsities[shown - 1]:.1f} % "
        f"pruned, error {short_error(history.errors[shown - 1])}. Of the final one-shot mask's "
        f"weights {100 * gone:.1f} % are gone here."
    )
    if pattern.grouped:
        full = keep.unflatten(1, (-1, pattern.m)).sum(-1) == pattern.n
        share = 100 * full.float().mean().item()
        caption += f" Groups of {pattern.m} that keep exactly {pattern.n}: {share:.1f} %."
    return View(figure, caption)
