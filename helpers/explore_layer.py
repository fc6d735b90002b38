"""Explorers of one layer: the solve on a fixed mask, and the mask that grows."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import ipywidgets
from matplotlib.figure import Figure
from torch import Tensor

from helpers.admm import admm_grad, exact_least_squares, refit
from helpers.explorer import Explorer
from helpers.gram import dead_inputs, normalise, relative_error
from helpers.masks import select, top_k
from helpers.plots import growth_figure, solve_figure

OUTPUTS = 96  # outputs that an explorer solves: enough for the picture, few enough to drag


def layer_solve_explorer(
    weight: Tensor,
    gram: Tensor,
    *,
    rho: float = 1.0,
    iterations: int = 20,
    sparsity: float = 0.6,
    damping: float = 0.1,
    outputs: int = OUTPUTS,
) -> Explorer:
    """Drag rho, iterations and sparsity of ADMM on a fixed mask; see curve and mask.

    Args: weight (d_out, d_in) and gram (d_in, d_in) of one layer, of which the first `outputs`
    outputs are solved (outputs do not influence one another on a given mask); the others are
    where the controls start.
    """
    rows, score, optimum = _prepare(weight, gram, outputs, damping)

    def draw(rho: float, iterations: int, sparsity: float) -> Figure:
        keep = top_k(score, sparsity)
        errors: list[float] = []
        collect = _collector(rows, gram, errors)
        refit(rows, gram, keep, rho=rho, iterations=iterations, damping=damping, trace=collect)
        references = {
            "no update": relative_error(rows, rows * keep, gram),
            "exact optimum": optimum(sparsity),
        }
        title = f"ρ = {rho:.3g}, {100 * sparsity:.0f} % pruned: error {errors[-1]:.4f}"
        return solve_figure(errors, keep, references=references, title=title)

    controls = {
        "rho": _slider(ipywidgets.FloatLogSlider, rho, "ρ", base=10, min=-2, max=2, step=0.25),
        "iterations": _slider(ipywidgets.IntSlider, iterations, "iterations", min=1, max=60),
        "sparsity": _slider(
            ipywidgets.FloatSlider, sparsity, "sparsity", min=0.1, max=0.9, step=0.05
        ),
    }
    return Explorer(controls, draw)


def mask_schedule_explorer(
    weight: Tensor,
    gram: Tensor,
    *,
    schedule: str = "paper",
    sparsity: float = 0.6,
    pattern: str = "unstructured",
    mask_steps: int = 15,
    damping: float = 0.1,
    outputs: int = OUTPUTS,
) -> Explorer:
    """Choose schedule, pattern, sparsity and mask steps of ADMM-Grad; see how the mask grows.

    The mask is drawn with its difference to the one-shot mask. Five iterations on the final mask
    follow the mask steps; 0 steps is one-shot. Arguments as in `layer_solve_explorer`.
    """
    rows, score, _ = _prepare(weight, gram, outputs, damping)

    def draw(schedule: str, pattern: str, sparsity: float, mask_steps: int) -> Figure:
        controls["sparsity"].disabled = pattern != "unstructured"
        target = {"sparsity": sparsity if pattern == "unstructured" else None, "pattern": pattern}
        growth: list[float] = []
        errors: list[float] = []
        collect = _collector(rows, gram, errors, growth)
        settings = {"iterations": mask_steps + 5, "mask_steps": mask_steps, "damping": damping}
        solved = admm_grad(rows, gram, schedule=schedule, trace=collect, **target, **settings)
        one_shot = select(score, growth[-1], pattern)
        return growth_figure(growth, errors, solved.keep, one_shot)

    controls = {
        "schedule": _choice(["paper", "released"], schedule, "schedule"),
        "pattern": _choice(["unstructured", "2:4", "4:8"], pattern, "pattern"),
        "sparsity": _slider(
            ipywidgets.FloatSlider, sparsity, "sparsity", min=0.1, max=0.9, step=0.05
        ),
        "mask_steps": _slider(ipywidgets.IntSlider, mask_steps, "mask steps", min=0, max=30),
    }
    return Explorer(controls, draw)


def _prepare(
    weight: Tensor, gram: Tensor, outputs: int, damping: float
) -> tuple[Tensor, Tensor, Callable[[float], float]]:
    """The outputs to solve, their scores, and the error of the optimum by sparsity (cached)."""
    rows = weight[:outputs].float()
    score = rows.abs() * normalise(gram)[1] * ~dead_inputs(gram)

    @lru_cache(maxsize=32)
    def optimum(sparsity: float) -> float:
        exact = exact_least_squares(rows, gram, top_k(score, sparsity), damping=damping)
        return relative_error(rows, exact, gram)

    return rows, score, optimum


def _collector(
    rows: Tensor, gram: Tensor, errors: list[float], growth: list[float] | None = None
) -> Callable[[int, Tensor, Tensor], None]:
    """A trace that appends the relative error, and the mask's sparsity, of each iteration."""

    def collect(_iteration: int, solution: Tensor, keep: Tensor) -> None:
        errors.append(relative_error(rows, solution, gram))
        if growth is not None:
            growth.append(1 - int(keep.sum()) / keep.numel())

    return collect


def _slider(kind: type, value: float, description: str, **limits: Any) -> ipywidgets.Widget:
    """A slider that reports while it is dragged."""
    layout = ipywidgets.Layout(width="420px")
    return kind(value=value, description=description, layout=layout, **limits)


def _choice(options: list[str], value: str, description: str) -> ipywidgets.Widget:
    return ipywidgets.ToggleButtons(options=options, value=value, description=description)
