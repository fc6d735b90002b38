"""Explorer of a gradual mask: go through the iterations and watch which weights are removed."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import ipywidgets
from torch import Tensor, nn

from helpers.explore.controls import Explorer, View, Worker, choice, row, slider
from helpers.explore.source import SCHEDULES, LayerOutputs, ModelLayers, Solve
from helpers.masks import Pattern
from helpers.report import gradual_mask_figure, short_error

FINAL_ITERATIONS = 5  # on the final mask, as in the paper
INTERVAL = 500  # milliseconds between two iterations that are played
HINT = (
    "Press ▶ or drag the iteration. Look at when most weights are removed, which ones the gradual "
    "mask gives up (green) for others (blue), and how with 2:4 and 4:8 every group ends up with "
    "the same number of weights."
)


def mask_schedule_explorer(
    network: nn.Module,
    tokens: Tensor,
    *,
    block: int | None = None,
    layer: str | None = None,
    sparsity: float = 0.6,
    mask_steps: int = 15,
) -> Explorer:
    """Choose schedule, pattern, sparsity and mask steps; watch the weights disappear.

    The mask of the iteration shown is drawn with its difference to the one-shot mask of the final
    sparsity. Five iterations on the final mask follow the mask steps; 0 steps is one-shot. The
    explorer starts at the last iteration. Arguments as in `helpers.explore.layer_solve_explorer`.
    """
    source = ModelLayers(network, tokens)
    where = source.controls(block, layer)
    last = mask_steps + FINAL_ITERATIONS
    how = {
        "schedule": choice(SCHEDULES, "paper", "schedule"),
        "pattern": choice(["unstructured", "2:4", "4:8"], "unstructured", "pattern"),
        "sparsity": slider("sparsity", sparsity, 0.05, 0.95, step=0.05),
        "mask_steps": slider("mask steps", mask_steps, 0, 30),
        "iteration": slider("iteration", last, 1, last),
    }

    @lru_cache(maxsize=3)  # scrubbing, and going back to a setting, solve nothing
    def solve(
        check: Callable[[], None], part: LayerOutputs, **values: Any
    ) -> tuple[Solve, Tensor]:
        """The solve, and the one-shot mask of its final sparsity."""
        settings = values | {"iterations": values["mask_steps"] + FINAL_ITERATIONS}
        if values["pattern"] != "unstructured":
            settings["sparsity"] = None
        once = part.solve(check, **settings | {"schedule": "one-shot", "iterations": 1})
        return part.solve(check, **settings), once.keeps[0]

    def draw(worker: Worker, *, iteration: int, **values: Any) -> View:
        part = source.get(worker.progress, *(values.pop(name) for name in where))
        solved, one_shot = solve(worker.check, part, **values)
        shown = min(iteration, len(solved.keeps))
        return _view(
            part.title, Pattern.parse(values["pattern"]), solved, one_shot, shown
        )

    rows = [
        row(*where.values(), how["schedule"], how["pattern"]),
        row(how["sparsity"], how["mask_steps"]),
        row(_connect(how), how["iteration"]),
    ]
    return Explorer(where | how, draw, rows=rows, hint=HINT)


def _connect(controls: dict[str, ipywidgets.Widget]) -> ipywidgets.Play:
    """The Play button of the iteration, and what one control means for another."""
    iteration, steps = controls["iteration"], controls["mask_steps"]
    play = ipywidgets.Play(
        min=1, max=iteration.max, value=iteration.value, interval=INTERVAL
    )
    # at the end it starts again: pressed there it would only switch itself off
    setattr(
        play, "repeat" if hasattr(play, "repeat") else "_repeat", True
    )  # ipywidgets 8 and 7
    ipywidgets.jslink(
        (play, "value"), (iteration, "value")
    )  # in the browser: no round trip

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


def _view(
    title: str, pattern: Pattern, solve: Solve, one_shot: Tensor, iteration: int
) -> View:
    """The picture of an iteration, counted from 1, and the same in words."""
    keep = solve.keeps[iteration - 1]
    sparsities = [1 - mask.float().mean().item() for mask in solve.keeps]
    figure = gradual_mask_figure(
        sparsities,
        solve.errors,
        keep,
        one_shot,
        iteration=iteration,
        group=pattern.m,
        name=title,
    )
    gone = int((one_shot & ~keep).sum()) / max(1, int(one_shot.sum()))
    caption = (
        f"Iteration {iteration} of {len(solve.keeps)}: "
        f"{100 * sparsities[iteration - 1]:.1f} % pruned, error "
        f"{short_error(solve.errors[iteration - 1])}. Of the weights that the one-shot mask keeps "
        f"{100 * gone:.1f} % are removed here."
    )
    if pattern.grouped:
        full = keep.unflatten(1, (-1, pattern.m)).sum(-1) == pattern.n
        share = 100 * full.float().mean().item()
        caption += (
            f" {share:.1f} % of the groups of {pattern.m} keep exactly {pattern.n}."
        )
    return View(figure, caption)
