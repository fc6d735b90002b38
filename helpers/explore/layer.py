"""Explorer of one layer's solve: the curve, the optimum, which outputs are hurt, and the mask."""

from __future__ import annotations

import math
from typing import Any

import ipywidgets
import torch
from torch import Tensor, nn

from helpers.admm import Solution, admm_grad, damped_system, exact_least_squares
from helpers.errors import check_real
from helpers.explore.controls import Explorer, View, Worker, choice, row, slider
from helpers.explore.source import LayerOutputs, find_source
from helpers.gradient_methods import conjugate_gradients
from helpers.results import short_error, solve_figure

SCHEDULES = {
    "one-shot": "one-shot mask (ADMM1)",
    "paper": "gradual mask, as in the paper",
    "released": "gradual mask, as in the released code",
}
MASK_SHARE = 0.75  # of the iterations change a gradual mask: 15 of 20 in the paper
TOLERANCE = 1e-3  # of the optimum's error, to which it is certified
STEPS = (10, 20, 40, 80)  # of conjugate gradients, until it is
HINT = (
    "Look at: how few iterations bring the curve to the optimum of its mask; how unequally the "
    "outputs are hurt; what another ρ or schedule changes."
)


def layer_solve_explorer(
    network: nn.Module | Tensor | str = "embedded",
    tokens: Tensor | None = None,
    *,
    block: int | None = None,
    layer: str | None = None,
    schedule: str = "one-shot",
    sparsity: float = 0.6,
    rho: float = 1.0,
    iterations: int = 20,
    damping: float = 0.1,
    outputs: int | None = None,
) -> Explorer:
    """Choose a layer and how ADMM solves it; see the error by iteration and output, and the mask.

    Args: network and tokens, a model and calibration tokens (sequences, length); or its name, to
    have both loaded; or the weight (d_out, d_in) and the gram (d_in, d_in) of one layer. block
    (the middle one), layer (the block's first), schedule ("one-shot", "paper", "released"),
    sparsity, rho and iterations are where the controls start. outputs: only so many are solved,
    as a layer of their own; by default all of a layer up to 1152 x 576, and of a larger one as
    many as take as long; the title says so. In a gradual schedule the mask changes during the
    first three quarters of the iterations, as in the paper.

    A block's grams are collected when it is first chosen, which can be stopped.
    Raises BadParameter.
    """
    damping = check_real("damping", damping)
    source = find_source(network, tokens, outputs)
    where = source.controls(block, layer)
    options = [(label, name) for name, label in SCHEDULES.items()]
    real, whole, decades = ipywidgets.FloatSlider, ipywidgets.IntSlider, ipywidgets.FloatLogSlider
    how = {
        "schedule": choice(options, schedule, "schedule"),
        "sparsity": slider(real, sparsity, "sparsity", min=0.05, max=0.95, step=0.05),
        "rho": slider(decades, rho, "ρ", base=10, min=-2, max=2, step=0.25),
        "iterations": slider(whole, iterations, "iterations", min=1, max=60),
    }
    last: tuple[Any, ...] = ()  # layer, damping, mask and optimum of the last picture

    def draw(worker: Worker, **values: Any) -> View:
        nonlocal last
        part = source.get(worker.progress, **{name: values.pop(name) for name in where})
        solved, curve, mask_steps = _solve(worker, part, damping=damping, **values)
        same = last and last[:2] == (part, solved.damping) and torch.equal(last[2], solved.keep)
        if not same:  # another rho, or more iterations, may leave the mask as it is
            best = certified_optimum(part, solved.keep, solved.weight, solved.damping)
            last = (part, solved.damping, solved.keep, best)
        settings = f"{100 * values['sparsity']:.0f} % pruned, ρ = {values['rho']:.3g}"
        if solved.damping != damping:
            settings += f", damping {solved.damping:g} (with less the gram cannot be factored)"
        return _view(part, solved, curve, last[3], settings, mask_steps)

    first, *others = how.values()
    rows = [row(*where.values(), first), row(*others)]
    return Explorer(where | how, draw, rows=rows, hint=HINT)


def _solve(
    worker: Worker, part: LayerOutputs, *, schedule: str, iterations: int, **settings: Any
) -> tuple[Solution, list[float], int]:
    """The solution, its error after each iteration, and how many of these chose the mask anew."""
    curve: list[float] = []

    def trace(_iteration: int, weight: Tensor, _keep: Tensor) -> None:
        worker.check()
        curve.append(part.error(weight))

    mask_steps = 0
    if schedule != "one-shot":
        mask_steps, settings["schedule"] = max(1, round(MASK_SHARE * iterations)), schedule
    settings |= {"iterations": iterations, "mask_steps": mask_steps}
    solved = admm_grad(part.weight, part.gram, **settings, trace=trace)
    return solved, curve, mask_steps


def certified_optimum(
    part: LayerOutputs, keep: Tensor, start: Tensor, damping: float
) -> tuple[float, float]:
    """The relative error of the exact optimum on a mask, and how far off it may be, relative to it.

    Conjugate gradients from `start` until the bound is below `TOLERANCE`, or as far as float32
    goes. Let x be the point reached, x* the optimum, r the residual on the mask, in the solver's
    coordinates with the damped matrix D ≥ δI, δ = damping · mean(diag G). Then
    ‖x − x*‖_D² = rᵀD⁻¹r ≤ ‖r‖²/δ, and since the undamped norm is no larger than that of D, the
    square roots of the two errors differ by ‖r‖/√δ at most. Without damping there is no such
    bound: each output is solved in float64, and 0 is returned for it.
    """
    if damping == 0:
        exact = exact_least_squares(part.weight, part.gram, keep, damping=0.0)
        return part.error(exact), 0.0
    damped, scale = damped_system(part.gram, damping)
    ridge = damping / (1 + damping) * damped.diagonal().mean().item()
    size = ridge * part.sizes.sum().item()
    current, within = start, math.inf
    for count in STEPS:
        steps = {"iterations": count, "damping": damping, "start": current}
        current = conjugate_gradients(part.weight, part.gram, keep, **steps).weight
        residual = ((current - part.weight) * scale @ damped).mul_(keep).norm().item()
        error = part.error(current)
        gap = residual / math.sqrt(size) if size > 0 else 0.0
        before, within = within, (2 * gap * math.sqrt(error) + gap**2) / max(error, 1e-30)
        if within <= TOLERANCE or within > 0.9 * before:  # the last: rounding is all that is left
            break
    return error, min(within, before)


def _view(
    part: LayerOutputs,
    solved: Solution,
    curve: list[float],
    optimum: tuple[float, float],
    settings: str,
    mask_steps: int,
) -> View:
    """The picture of a solve, and the same in words."""
    best, within = optimum
    bare, hurt = part.weight * solved.keep, part.errors(solved.weight)
    untouched = part.error(bare)
    title = f"{part.title}\n{settings}: error {short_error(curve[-1])}".strip()
    name = "optimum of this mask" + (f" (to within {within:.1%})" if within > TOLERANCE else "")
    figure = solve_figure(
        curve,
        solved.keep,
        references={"no update": untouched, name: best},
        outputs={"no update": part.errors(bare).tolist(), "after ADMM": hurt.tolist()},
        title=title,
        mask_steps=mask_steps,
    )
    worst = hurt.argsort(descending=True, stable=True)[:3]
    caption = (
        f"Error {short_error(curve[-1])} after {len(curve)} iterations. Optimum of this mask: "
        f"{short_error(best)} (certified to {max(100 * within, 1e-3):.1g} %); without an update: "
        f"{short_error(untouched)}. Hurt most: outputs {', '.join(map(str, worst.tolist()))}, "
        f"with errors of {', '.join(map(short_error, hurt[worst].tolist()))}; the median output "
        f"has {short_error(hurt.median().item())}."
    )
    return View(figure, caption)
