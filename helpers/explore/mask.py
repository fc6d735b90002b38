"""Explorer of a gradual mask: go through the iterations and watch which weights are removed."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import ipywidgets
from torch import Tensor

from helpers.explore.controls import Explorer, View, Worker, choice, row, slider
from helpers.explore.problem import SCHEDULES, LayerProblem, Problems, Solution
from helpers.masks import Pattern
from helpers.report import growth_figure, short_error

FINAL_ITERATIONS = 5  # on the final mask, as in the paper
INTERVAL = 500  # milliseconds between two iterations that are played
HINT = (
    "Press ▶ or drag the iteration. Look at when most weights are removed, which ones the gradual "
    "mask gives up (green) for others (blue), and how with 2:4 and 4:8 every group ends up with "
    "the same number of weights."
)


def mask_schedule_explorer(
    problems: Problems,
    *,
    sparsity: float = 0.6,
    mask_steps: int = 15,
) -> Explorer:
    """Choose schedule, pattern, sparsity and mask steps; watch the weights disappear.

    The mask of an iteration is drawn with its difference to the one-shot mask of the final
    sparsity. Five iterations on the final mask follow the mask steps; 0 steps is one-shot. The
    explorer starts at the last iteration. Arguments as in `helpers.explore.layer_solve_explorer`.
    """
    layers = {name: LayerProblem(name, *problem) for name, problem in problems.items()}
    last = mask_steps + FINAL_ITERATIONS
    controls = {
        "layer": choice(layers, next(iter(layers)), "layer"),
        "schedule": choice(SCHEDULES, "paper", "schedule"),
        "pattern": choice(["unstructured", "2:4", "4:8"], "unstructured", "pattern"),
        "sparsity": slider("sparsity", sparsity, 0.05, 0.95, step=0.05),
        "mask_steps": slider("mask steps", mask_steps, 0, 30),
        "iteration": slider("iteration", last, 1, last),
    }

    @lru_cache(maxsize=3)  # dragging the iteration, or going back, solves nothing
    def solve(
        check: Callable[[], None], layer: str, mask_steps: int, **settings: Any
    ) -> tuple[Solution, Tensor]:
        """The solution, and the one-shot mask of its final sparsity."""
        problem = layers[layer]
        solution = problem.solve(
            check,
            mask_steps=mask_steps,
            iterations=mask_steps + FINAL_ITERATIONS,
            **settings,
        )
        settings["schedule"] = "one-shot"
        one_shot = problem.solve(check, iterations=1, **settings)
        return solution, one_shot.keeps[0]

    def draw(worker: Worker, *, layer: str, iteration: int, **settings: Any) -> View:
        solution, one_shot = solve(worker.check, layer, **settings)
        pattern = Pattern.parse(settings["pattern"])
        iteration = min(iteration, len(solution.keeps))
        return _view(layers[layer].title, pattern, solution, one_shot, iteration)

    rows = [
        row(controls["layer"], controls["schedule"], controls["pattern"]),
        row(controls["sparsity"], controls["mask_steps"]),
        row(_play_button(controls), controls["iteration"]),
    ]
    return Explorer(controls, draw, rows=rows, hint=HINT)


def _play_button(controls: dict[str, ipywidgets.Widget]) -> ipywidgets.Play:
    """A button that plays the iterations, whose range follows the other controls."""
    iteration = controls["iteration"]
    mask_steps = controls["mask_steps"]
    play = ipywidgets.Play(
        min=1, max=iteration.max, value=iteration.value, interval=INTERVAL
    )
    # at the end it starts again: pressed there it would only switch itself off
    repeat = "repeat" if hasattr(play, "repeat") else "_repeat"  # ipywidgets 8 and 7
    setattr(play, repeat, True)
    # linked in the browser: no round trip
    ipywidgets.jslink((play, "value"), (iteration, "value"))

    def follow(_change: Any = None) -> None:
        controls["sparsity"].disabled = controls["pattern"].value != "unstructured"
        mask_steps.disabled = controls["schedule"].value == "one-shot"
        at_end = iteration.value == iteration.max
        play.max = iteration.max = mask_steps.value + FINAL_ITERATIONS
        if at_end:
            iteration.value = iteration.max

    for name in ("pattern", "schedule", "mask_steps"):
        controls[name].observe(follow, names="value")
    follow()
    return play


def _view(
    title: str, pattern: Pattern, solution: Solution, one_shot: Tensor, iteration: int
) -> View:
    """The picture of an iteration, counted from 1, and the same in words."""
    keep = solution.keeps[iteration - 1]
    sparsities = [1 - mask.float().mean().item() for mask in solution.keeps]
    figure = growth_figure(
        sparsities,
        solution.errors,
        keep,
        one_shot,
        iteration=iteration,
        group=pattern.m,
        name=title,
    )
    removed = 1 - keep[one_shot].float().mean().item()
    caption = (
        f"Iteration {iteration} of {len(solution.keeps)}: "
        f"{100 * sparsities[iteration - 1]:.1f} % pruned, error "
        f"{short_error(solution.errors[iteration - 1])}. Of the weights that the one-shot mask "
        f"keeps {100 * removed:.1f} % are removed here."
    )
    if pattern.grouped:
        kept = keep.unflatten(1, (-1, pattern.m)).sum(-1)
        share = 100 * (kept == pattern.n).float().mean().item()
        caption += f" {share:.1f} % of the groups of {pattern.m} keep exactly "
        caption += f"{pattern.n}."
    return View(figure, caption)
