"""Explorer of one layer's solve: the curve, the optimum, which outputs are hurt, and the mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from helpers.admm import exact_least_squares
from helpers.explore.controls import Explorer, View, Worker, choice, row, slider
from helpers.explore.source import SCHEDULES, LayerOutputs, ModelLayers, Solve
from helpers.gradient_methods import conjugate_gradients
from helpers.layer import LayerResult
from helpers.report import short_error, solve_figure

CHANGING = 0.75  # of the iterations change a gradual mask: 15 of 20 in the paper
PAPERS_DAMPING = 0.1
HINT = (
    "Look at how few iterations bring the curve to the optimum of its mask, how unequally the "
    "outputs suffer, and what another ρ or schedule changes."
)


def layer_solve_explorer(
    network: nn.Module,
    tokens: Tensor,
    *,
    block: int | None = None,
    layer: str | None = None,
    sparsity: float = 0.6,
    rho: float = 1.0,
    iterations: int = 20,
    damping: float = PAPERS_DAMPING,
) -> Explorer:
    """Choose a layer and how ADMM solves it; see the error by iteration and output, and the mask.

    Of a large layer only the first outputs are solved, as a layer of their own; the title says so.
    In a gradual schedule the mask changes during the first three quarters of the iterations, as in
    the paper. A block's grams are collected when it is first chosen, which can be stopped.

    Args:
        network, tokens: a model and calibration tokens (sequences, length).
        block: where the list of blocks starts, by default at the middle one.
        layer: where the list of layers starts, by default at the block's first.
        sparsity, rho, iterations: where the sliders start.
        damping: of all solves; it has no control.
    """
    source = ModelLayers(network, tokens)
    where = source.controls(block, layer)
    how = {
        "schedule": choice(SCHEDULES, "one-shot", "schedule"),
        "sparsity": slider("sparsity", sparsity, 0.05, 0.95, step=0.05),
        "rho": slider("ρ", rho, 0.01, 100, step=0.25, log=True),
        "iterations": slider("iterations", iterations, 1, 60),
    }
    # layer, damping, mask, and the optimum's error for these: another rho, or more iterations, may
    # leave them as they are
    last: tuple[LayerOutputs, float, Tensor, float] | None = None

    def draw(worker: Worker, *, schedule: str, iterations: int, **values: Any) -> View:
        nonlocal last
        part = source.get(worker.progress, *(values.pop(name) for name in where))
        steps = 0 if schedule == "one-shot" else max(1, round(CHANGING * iterations))
        values |= {"iterations": iterations, "damping": damping}
        solve = part.solve(worker.check, schedule=schedule, mask_steps=steps, **values)
        used, keep = solve.result.damping, solve.result.keep
        if last is None or last[:2] != (part, used) or not torch.equal(last[2], keep):
            last = (part, used, keep, optimal_error(part, solve.result))
        words = f"{100 * values['sparsity']:.0f} % pruned, ρ = {values['rho']:.3g}"
        if used != damping:
            words += f", damping {used:g} (with less the gram cannot be factored)"
        return _view(part, solve, last[3], words, steps)

    first, *others = how.values()
    rows = [row(*where.values(), first), row(*others)]
    return Explorer(where | how, draw, rows=rows, hint=HINT)


def optimal_error(part: LayerOutputs, result: LayerResult) -> float:
    """The relative error of the optimum on the mask that ADMM has chosen."""
    case = (part.weight, part.gram.matrix, result.keep)
    if result.damping < PAPERS_DAMPING:  # badly conditioned: exact, but slow
        return part.error(exact_least_squares(*case, damping=result.damping))
    # from where ADMM has come to, 20 steps leave an error that is right to three digits or more:
    # it changes with the square of the distance to the optimum
    settings = dict(start=result.weight, damping=result.damping, iterations=20)
    return part.error(conjugate_gradients(*case, **settings).weight)


def _view(
    part: LayerOutputs, solve: Solve, best: float, words: str, mask_steps: int
) -> View:
    """The picture of a solve, and the same in words."""
    keep = solve.result.keep
    bare, hurt = part.weight * keep, part.errors(solve.result.weight)
    untouched, final = part.error(bare), short_error(solve.errors[-1])
    figure = solve_figure(
        solve.errors,
        keep,
        references={"no update": untouched, "optimum of this mask": best},
        before=part.errors(bare).tolist(),
        after=hurt.tolist(),
        title=f"{part.title}\n{words}: error {final}",
        mask_steps=mask_steps,
    )
    worst = hurt.argsort(descending=True, stable=True)[:3]
    caption = (
        f"The error is {final} after {len(solve.errors)} iterations. The optimum for this mask is "
        f"{short_error(best)}, without an update {short_error(untouched)}. The outputs that suffer "
        f"most are {', '.join(map(str, worst.tolist()))}, with errors of "
        f"{', '.join(map(short_error, hurt[worst].tolist()))}; the median output has "
        f"{short_error(hurt.median().item())}."
    )
    return View(figure, caption)
