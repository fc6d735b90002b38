"""Explorer of one layer's solve: the curve, the optimum, which outputs are hurt, and the mask."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from helpers.admm import exact_least_squares
from helpers.errors import check_real
from helpers.explore.controls import Explorer, View, Worker, choice, row, slider
from helpers.explore.source import SCHEDULES, LayerOutputs, Solve, choose_layer
from helpers.finish import finish
from helpers.report import short_error, solve_figure

MASK_SHARE = 0.75  # of the iterations change a gradual mask: 15 of 20 in the paper
TOLERANCE = 1e-3  # of the optimum's error, to which it is certified
ITERATIONS = 150  # of conjugate gradients at most, until it is
HINT = (
    "Look at how few iterations bring the curve to the optimum of its mask, how unequally the "
    "outputs suffer, and what another ρ or schedule changes."
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
    where, get = choose_layer(network, tokens, outputs, block, layer)
    how = {
        "schedule": choice(SCHEDULES, schedule, "schedule"),
        "sparsity": slider("sparsity", sparsity, 0.05, 0.95, step=0.05),
        "rho": slider("ρ", rho, 0.01, 100, step=0.25, log=True),
        "iterations": slider("iterations", iterations, 1, 60),
    }
    last: tuple[Any, ...] = ()  # layer, damping, mask and optimum of the last picture

    def draw(worker: Worker, *, schedule: str, iterations: int, **values: Any) -> View:
        nonlocal last
        part = get(worker.progress, *(values.pop(name) for name in where))
        steps = 0 if schedule == "one-shot" else max(1, round(MASK_SHARE * iterations))
        values |= {"iterations": iterations, "damping": damping}
        solve = part.solve(worker.check, schedule=schedule, mask_steps=steps, **values)
        used, keep = solve.solution.damping, solve.solution.keep
        # another rho, or more iterations, may leave the mask as it is
        if not (last and last[:2] == (part, used) and torch.equal(last[2], keep)):
            best = certified_optimum(part, keep, solve.solution.weight, used)
            last = (part, used, keep, best)
        words = f"{100 * values['sparsity']:.0f} % pruned, ρ = {values['rho']:.3g}"
        if used != damping:
            words += f", damping {used:g} (with less the gram cannot be factored)"
        return _view(part, solve, last[3], words, steps)

    first, *others = how.values()
    rows = [row(*where.values(), first), row(*others)]
    return Explorer(where | how, draw, rows=rows, hint=HINT)


def certified_optimum(
    part: LayerOutputs, keep: Tensor, start: Tensor, damping: float
) -> tuple[float, float]:
    """The relative error of the exact optimum on a mask, and how far off it may be, relative to it.

    From `start` as `helpers.finish` does it, with its bound e on the damped objective's excess over
    the optimum. The undamped norm ‖XŴ − XŴ*‖² is no larger than the damped one, which is at most
    e, so the square roots of the two relative errors differ by √(e/‖XW‖²) at most. Without damping
    there is no such bound: each output is solved in float64, and 0 is returned for it.
    """
    if damping == 0:
        exact = exact_least_squares(part.weight, part.gram, keep, damping=0.0)
        return part.error(exact), 0.0
    settings = dict(start=start, damping=damping, iterations=ITERATIONS)
    # an excess of ε² allows the errors to differ by 2ε. The objective, which the tolerance of
    # `finish` is relative to, holds the ridge beside the error: hence 4 and not 2
    solved = finish(part.weight, part.gram, keep, tolerance=(TOLERANCE / 4) ** 2, **settings)
    error, size = part.error(solved.weight), part.sizes.sum().item()
    gap = math.sqrt(solved.excess / size) if size > 0 else 0.0
    return error, (2 * gap * math.sqrt(error) + gap**2) / max(error, 1e-30)


def _view(
    part: LayerOutputs, solve: Solve, optimum: tuple[float, float], words: str, mask_steps: int
) -> View:
    """The picture of a solve, and the same in words."""
    weight, keep = solve.solution.weight, solve.solution.keep
    best, within = optimum
    bare, hurt = part.weight * keep, part.errors(weight)
    untouched, final = part.error(bare), short_error(solve.errors[-1])
    name = "optimum of this mask" + (f" (to within {within:.1%})" if within > TOLERANCE else "")
    figure = solve_figure(
        solve.errors,
        keep,
        references={"no update": untouched, name: best},
        before=part.errors(bare).tolist(),
        after=hurt.tolist(),
        title=f"{part.title}\n{words}: error {final}".strip(),
        mask_steps=mask_steps,
    )
    worst = hurt.argsort(descending=True, stable=True)[:3]
    caption = (
        f"The error is {final} after {len(solve.errors)} iterations. The optimum for this mask is "
        f"{short_error(best)} (certified to {max(100 * within, 1e-3):.1g} %), without an update "
        f"{short_error(untouched)}. The outputs that suffer most are "
        f"{', '.join(map(str, worst.tolist()))}, with errors of "
        f"{', '.join(map(short_error, hurt[worst].tolist()))}; the median output has "
        f"{short_error(hurt.median().item())}."
    )
    return View(figure, caption)
