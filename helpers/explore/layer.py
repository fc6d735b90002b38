"""Explorer of one layer's solve: the curve, the optimum, which outputs are hurt, and the mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from helpers.admm import Solution, admm_grad, damped_system, exact_least_squares
from helpers.errors import check_real
from helpers.explore.controls import Explorer, Task, choice, row, slider
from helpers.explore.source import GivenLayer, Layer, ModelLayers, Problem, Problems, source_of
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
    """Choose a layer and how ADMM solves it; see error by iteration and by output, and the mask.

    Args: network and tokens, a model and calibration tokens (sequences, length); or its name, to
    have both loaded; or the weight (d_out, d_in) and the gram (d_in, d_in) of one layer. block
    (the middle one) and layer (the block's first), schedule ("one-shot", "paper", "released"),
    sparsity, rho and iterations are where the controls start. outputs: only so many are solved,
    as a layer of their own; by default all of a layer up to 1152 x 576, and of a larger one as
    many as take as long; the title says so. In a gradual schedule the mask changes during the
    first three quarters of the iterations, as in the paper.

    A block's grams are collected when it is first chosen, which can be stopped.
    Raises BadParameter.
    """
    source, task = source_of(network, tokens), Task(quiet=True)
    solver = _Solver(check_real("damping", damping), outputs)
    options = [(label, name) for name, label in SCHEDULES.items()]
    kinds = ipywidgets.FloatSlider, ipywidgets.FloatLogSlider, ipywidgets.IntSlider
    layers = layer_controls(source, block, layer)
    controls = {
        "schedule": choice(options, schedule, "schedule"),
        "sparsity": slider(kinds[0], sparsity, "sparsity", min=0.05, max=0.95, step=0.05),
        "rho": slider(kinds[1], rho, "ρ", base=10, min=-2, max=2, step=0.25),
        "iterations": slider(kinds[2], iterations, "iterations", min=1, max=60),
    }

    def draw(block: int | None = None, layer: str | None = None, **settings: Any) -> Figure:
        found = source.get(block, layer, task.progress)
        return solver.picture(found, task.check, **settings)

    first, *others = controls.values()
    rows = [row(*layers.values(), first), row(*others)]
    return Explorer(layers | controls, draw, task=task, rows=rows, hint=HINT)


def layer_controls(
    source: GivenLayer | ModelLayers, block: int | None, layer: str | None
) -> dict[str, ipywidgets.Widget]:
    """Controls "block" and "layer" of a model's layers; none for a layer that was given.

    Raises BadParameter for a block or layer that is not there.
    """
    if isinstance(source, GivenLayer):
        return {}
    block = source.blocks // 2 if block is None else block
    names = source.names(block)
    which = choice(range(source.blocks), block, "block", width="140px")
    what = choice(names, names[0] if layer is None else layer, "layer", width="240px")

    def follow(change: dict[str, Any]) -> None:
        names = source.names(change["new"])
        if list(what.options) != names:  # blocks of some families differ
            kept = what.value if what.value in names else names[0]
            what.options = names
            what.value = kept

    which.observe(follow, names="value")
    return {"block": which, "layer": what}


@dataclass
class _Outcome:
    """A solve with its error after each iteration, and the optimum of the mask it ended with.

    best: the optimum's error; within: how far off that may be, relative to it.
    """

    problem: Problem
    solved: Solution
    damping_asked: float
    curve: list[float]
    best: float
    within: float


class _Solver:
    """Solves what the controls say; the optimum of the last mask is kept."""

    def __init__(self, damping: float, outputs: int | None) -> None:
        self.damping = damping
        self.problems = Problems(outputs)
        self._last: tuple[Problem, float, Tensor, tuple[float, float]] | None = None

    def picture(self, layer: Layer, check: Callable[[], None], **settings: Any) -> Figure:
        """The figure of a setting, with its summary as `caption`."""
        mask_steps = 0
        if settings["schedule"] != "one-shot":
            mask_steps = max(1, round(MASK_SHARE * settings["iterations"]))
        found = self._solve(self.problems.of(layer), check, mask_steps, **settings)
        return _picture(found, mask_steps, settings["sparsity"], settings["rho"])

    def _solve(
        self,
        problem: Problem,
        check: Callable[[], None],
        mask_steps: int,
        *,
        schedule: str,
        **settings: Any,
    ) -> _Outcome:
        """Solve; `check` is called on the way and may end it by raising."""
        curve: list[float] = []

        def trace(_iteration: int, solution: Tensor, _keep: Tensor) -> None:
            check()
            curve.append(problem.error(solution))

        settings |= {"schedule": "paper" if schedule == "one-shot" else schedule}
        settings |= {"mask_steps": mask_steps, "damping": self.damping, "trace": trace}
        solved = admm_grad(problem.rows, problem.gram, **settings)
        return _Outcome(problem, solved, self.damping, curve, *self._optimum(problem, solved))

    def _optimum(self, problem: Problem, solved: Solution) -> tuple[float, float]:
        """`certified_optimum`, or what it said of the same mask before."""
        asked, keep = (problem, solved.damping), solved.keep
        if self._last and self._last[:2] == asked and torch.equal(self._last[2], keep):
            return self._last[3]
        found = certified_optimum(problem, keep, solved.weight, solved.damping)
        self._last = (*asked, keep, found)
        return found


def certified_optimum(
    problem: Problem, keep: Tensor, start: Tensor, damping: float
) -> tuple[float, float]:
    """The relative error of the exact optimum on a mask, and how far off it may be, relative to it.

    Conjugate gradients from `start` until the bound is below `TOLERANCE`, or as far as float32
    goes. Let x be where they are, x* the optimum, r the residual on the mask, in the solver's
    coordinates with the damped matrix D ≥ δI, δ = damping · mean(diag G). Then
    ‖x − x*‖_D² = rᵀD⁻¹r ≤ ‖r‖²/δ, and since the undamped norm is no larger than that of D, the
    square roots of the two errors differ by ‖r‖/√δ at most. Without damping there is no such
    bound: each output is solved in float64, and 0 is returned for it.
    """
    if damping == 0:
        exact = exact_least_squares(problem.rows, problem.gram, keep, damping=0.0)
        return problem.error(exact), 0.0
    matrix, scale = damped_system(problem.gram, damping)
    ridge = damping / (1 + damping) * matrix.diagonal().mean().item()
    size = ridge * problem.sizes.sum().item()
    current, within = start, math.inf
    for count in STEPS:
        steps = {"iterations": count, "damping": damping, "start": current}
        current = conjugate_gradients(problem.rows, problem.gram, keep, **steps).weight
        residual = ((current - problem.rows) * scale @ matrix).mul_(keep).norm().item()
        error = problem.error(current)
        gap = residual / math.sqrt(size) if size > 0 else 0.0
        before, within = within, (2 * gap * math.sqrt(error) + gap**2) / max(error, 1e-30)
        if within <= TOLERANCE or within > 0.9 * before:  # the last: rounding is all that is left
            break
    return error, min(within, before)


def _picture(found: _Outcome, mask_steps: int, sparsity: float, rho: float) -> Figure:
    """An outcome as a figure with a caption."""
    problem, solved = found.problem, found.solved
    bare, hurt = problem.rows * solved.keep, problem.errors(solved.weight)
    untouched = problem.error(bare)
    name = "optimum of this mask"
    if found.within > TOLERANCE:
        name += f" (to within {found.within:.1%})"
    setting = f"{100 * sparsity:.0f} % pruned, ρ = {rho:.3g}: error {short_error(found.curve[-1])}"
    figure = solve_figure(
        found.curve,
        solved.keep,
        references={"no update": untouched, name: found.best},
        outputs={"no update": problem.errors(bare).tolist(), "after ADMM": hurt.tolist()},
        title="\n".join(filter(None, [problem.told(), setting])),
        mask_steps=mask_steps,
    )
    figure.caption = _summary(found, untouched, hurt)
    return figure


def _summary(found: _Outcome, untouched: float, hurt: Tensor) -> str:
    """The picture in words."""
    worst = hurt.argsort(descending=True, stable=True)[:3]
    values = ", ".join(short_error(value) for value in hurt[worst].tolist())
    text = (
        f"Error {short_error(found.curve[-1])} after {len(found.curve)} iterations. Optimum of "
        f"this mask: {short_error(found.best)} (certified to {max(100 * found.within, 1e-3):.1g} "
        f"%); without an update: {short_error(untouched)}. Hurt most: outputs "
        f"{', '.join(map(str, worst.tolist()))}, with errors of {values}; the median output has "
        f"{short_error(hurt.median().item())}."
    )
    if found.solved.damping != found.damping_asked:
        text += f" The gram could only be factored with damping {found.solved.damping:g}."
    return text
