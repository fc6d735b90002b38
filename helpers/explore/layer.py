"""Explorers of a layer: how ADMM solves it, and how a gradual mask grows.

The layer's problem is cut down until ADMM solves it as quickly as a slider moves.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import ipywidgets
import torch
from torch import Tensor

from helpers.explore.controls import Explorer, View, Worker, choice, row, slider
from helpers.explore.figures import gradual_mask_figure, solve_figure
from helpers.explore.style import short_error
from helpers.paper.admm import exact_least_squares
from helpers.paper.gradient_methods import conjugate_gradients
from helpers.paper.gram import Gram
from helpers.paper.layer import LayerResult
from helpers.paper.masks import Pattern, mask_hash
from helpers.paper.methods import METHODS

# what `helpers.layer_problems` returns: {layer: (weight (d_out, d_in), gram (d_in, d_in))}
Problems = Mapping[str, tuple[Tensor, Tensor]]

# 1152 outputs of 576 inputs are solved quickly enough to follow a slider; of a layer with more
# inputs as many outputs are taken as make a product with the gram of that cost
MOST_MULTIPLICATIONS = 2 * 576**3
LEAST_OUTPUTS = 32
SCHEDULES = [
    ("one-shot mask (ADMM1)", "one-shot"),
    ("gradual mask, as in the paper", "paper"),
    ("gradual mask, as in the released code", "released"),
]
MASK_STEPS = 0.75  # of the iterations change a gradual mask: 15 of 20 in the paper
PAPERS_DAMPING = 0.1
SOLVE_HINT = (
    "Look at how few iterations bring the curve to the optimum of its mask, how unequally the "
    "outputs suffer, and what another ρ or schedule changes."
)
FINAL_ITERATIONS = 5  # on the final mask, as in the paper
INTERVAL = 500  # milliseconds between two iterations that are played
MASK_HINT = (
    "Press ▶ or drag the iteration. Look at when most weights are removed, which ones the gradual "
    "mask gives up (green) for others (blue), and how with 2:4 and 4:8 every group ends up with "
    "the same number of weights."
)


# --- the problem ------------------------------------------------------------------------------


class Solution(NamedTuple):
    """A layer solved by ADMM, with error and mask after each iteration."""

    result: LayerResult
    errors: list[float]
    keeps: list[Tensor]
    mask_steps: int


class LayerProblem:
    """The weight (outputs, d_in) of a layer and the Gram matrix of its inputs.

    Of a large layer only the first outputs are taken, as `MOST_MULTIPLICATIONS` allows; `title` and
    `part` say so. They are solved as a layer of their own: a mask has one budget for a whole
    matrix, so the masks are not those of the whole layer.
    """

    def __init__(self, name: str, weight: Tensor, gram: Tensor) -> None:
        total, width = weight.shape
        outputs = min(total, max(LEAST_OUTPUTS, MOST_MULTIPLICATIONS // width**2))
        self.weight = weight[:outputs].detach().float()
        self.gram = Gram.of(gram)
        self.squared_norms = self._squared_norms(self.weight)  # ‖Xw‖² of each output
        self.title = name
        self.part = ""
        if outputs < total:
            self.title += f" ({outputs} of its {total} outputs)"
            self.part = (
                f" Only the first {outputs} of the layer's {total} outputs are solved, as if they "
                "were all: so the picture keeps up with the sliders."
            )

    def solve(
        self,
        check: Callable[[], None],
        *,
        schedule: str,
        sparsity: float,
        pattern: str = "unstructured",
        mask_steps: int = 0,
        **settings: Any,
    ) -> Solution:
        """Solve by ADMM with a schedule of `SCHEDULES`; "one-shot" takes no mask steps.

        check() is called after each iteration and may raise to stop. sparsity: of the
        unstructured pattern. settings: of "admm-grad".
        """
        errors = []
        keeps = []

        def trace(_iteration: int, weight: Tensor, keep: Tensor) -> None:
            check()
            errors.append(self.error(weight))
            keeps.append(keep.cpu())

        if schedule == "one-shot":
            mask_steps = 0
        else:
            settings["schedule"] = schedule
        result = METHODS["admm-grad"](
            self.weight,
            self.gram,
            sparsity=sparsity if pattern == "unstructured" else None,
            pattern=pattern,
            mask_steps=mask_steps,
            trace=trace,
            **settings,
        )
        return Solution(result, errors, keeps, mask_steps)

    def errors(self, new: Tensor) -> Tensor:
        """‖Xw − Xŵ‖² / ‖Xw‖² of each output, (outputs,); 0 where the output is always zero."""
        shares = self._squared_norms(self.weight - new) / self.squared_norms
        return torch.where(self.squared_norms > 0, shares, 0.0)

    def error(self, new: Tensor) -> float:
        """The relative error of all outputs together, as `helpers.paper.gram.relative_error`."""
        # which would multiply the dense weight by the gram again in each iteration
        total = self.squared_norms.sum().item()
        lost = self._squared_norms(self.weight - new).sum().item()
        return lost / total if total > 0 else 0.0

    def _squared_norms(self, rows: Tensor) -> Tensor:
        return (rows @ self.gram.matrix).mul_(rows).sum(1).clamp_(min=0)


# --- the solve --------------------------------------------------------------------------------


def layer_solve_explorer(
    problems: Problems,
    *,
    layer: str | None = None,
    sparsity: float = 0.6,
    rho: float = 1.0,
    iterations: int = 20,
    damping: float = PAPERS_DAMPING,
) -> Explorer:
    """Choose a layer and how ADMM solves it; see the error by iteration and output, and the mask.

    Of a large layer only the first outputs are solved, as a layer of their own; the title says so.
    In a gradual schedule the mask changes during the first three quarters of the iterations, as in
    the paper.

    Args:
        problems: {layer: (weight, gram)}, such as `helpers.layer_problems` returns for a block.
        layer: where the list of layers starts, by default at the first.
        sparsity, rho, iterations: where the sliders start.
        damping: of all solves; it has no control.
    """
    layers = {name: LayerProblem(name, *problem) for name, problem in problems.items()}
    controls = {
        "layer": choice(layers, layer or next(iter(layers)), "layer"),
        "schedule": choice(SCHEDULES, "one-shot", "schedule"),
        "sparsity": slider("sparsity", sparsity, 0.05, 0.95, step=0.05),
        "rho": slider("ρ", rho, 0.01, 100, step=0.25, log=True),
        "iterations": slider("iterations", iterations, 1, 60),
    }
    # the optimum's error by layer, damping and mask: another rho may leave all of these as they are
    optima = {}

    def draw(worker: Worker, *, layer: str, **settings: Any) -> View:
        problem = layers[layer]
        steps = max(1, round(MASK_STEPS * settings["iterations"]))
        solution = problem.solve(
            worker.check, mask_steps=steps, damping=damping, **settings
        )
        used = solution.result.damping
        key = (layer, used, mask_hash(solution.result.keep))
        if key not in optima:
            optima[key] = optimal_error(problem, solution.result)
        title = f"{100 * settings['sparsity']:.0f} % pruned, ρ = {settings['rho']:.3g}"
        if used != damping:
            title += f", damping {used:g} (with less the gram cannot be factored)"
        return _solve_view(problem, solution, optima[key], title)

    rows = [
        row(controls["layer"], controls["schedule"]),
        row(controls["sparsity"], controls["rho"], controls["iterations"]),
    ]
    return Explorer(controls, draw, rows=rows, hint=SOLVE_HINT)


def optimal_error(problem: LayerProblem, result: LayerResult) -> float:
    """The relative error of the optimum on the mask that ADMM has chosen."""
    system = (problem.weight, problem.gram.matrix, result.keep)
    damping = result.damping
    if damping < PAPERS_DAMPING:  # badly conditioned: exact, but slow
        return problem.error(exact_least_squares(*system, damping=damping))
    # from where ADMM has come to, 20 steps leave an error that is right to three digits or
    # more: it changes with the square of the distance to the optimum
    nearer = conjugate_gradients(
        *system, start=result.weight, damping=damping, iterations=20
    )
    return problem.error(nearer.weight)


def _solve_view(
    problem: LayerProblem, solution: Solution, optimum: float, title: str
) -> View:
    """The picture of a solve, and the same in words."""
    keep = solution.result.keep
    masked = problem.weight * keep
    after = problem.errors(solution.result.weight)
    no_update = problem.error(masked)
    final = short_error(solution.errors[-1])
    figure = solve_figure(
        solution.errors,
        keep,
        references={"no update": no_update, "optimum of this mask": optimum},
        before=problem.errors(masked).tolist(),
        after=after.tolist(),
        title=f"{problem.title}\n{title}: error {final}",
        mask_steps=solution.mask_steps,
    )
    worst = after.argsort(descending=True, stable=True)[:3]
    caption = (
        f"The error is {final} after {len(solution.errors)} iterations. The optimum for this mask "
        f"is {short_error(optimum)}, without an update {short_error(no_update)}. The outputs that "
        f"suffer most are {', '.join(map(str, worst.tolist()))}, with errors of "
        f"{', '.join(map(short_error, after[worst].tolist()))}; the median output has "
        f"{short_error(after.median().item())}.{problem.part}"
    )
    return View(figure, caption)


# --- the mask ---------------------------------------------------------------------------------


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
        solution = layers[layer].solve(
            check,
            mask_steps=mask_steps,
            iterations=mask_steps + FINAL_ITERATIONS,
            **settings,
        )
        settings["schedule"] = "one-shot"
        one_shot = layers[layer].solve(check, iterations=1, **settings)
        return solution, one_shot.keeps[0]

    def draw(worker: Worker, *, layer: str, iteration: int, **settings: Any) -> View:
        solution, one_shot = solve(worker.check, layer, **settings)
        pattern = Pattern.parse(settings["pattern"])
        iteration = min(iteration, len(solution.keeps))
        return _mask_view(layers[layer], pattern, solution, one_shot, iteration)

    rows = [
        row(controls["layer"], controls["schedule"], controls["pattern"]),
        row(controls["sparsity"], controls["mask_steps"]),
        row(_play_button(controls), controls["iteration"]),
    ]
    return Explorer(controls, draw, rows=rows, hint=MASK_HINT)


def _play_button(controls: dict[str, ipywidgets.Widget]) -> ipywidgets.Play:
    """A button that plays the iterations, whose range follows the other controls."""
    iteration = controls["iteration"]
    mask_steps = controls["mask_steps"]
    play = ipywidgets.Play(
        min=1, max=iteration.max, value=iteration.value, interval=INTERVAL
    )
    # at the end it starts again: pressed there it would only switch itself off
    play.repeat = play._repeat = True  # its names in ipywidgets 8 and 7
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


def _mask_view(
    problem: LayerProblem,
    pattern: Pattern,
    solution: Solution,
    one_shot: Tensor,
    iteration: int,
) -> View:
    """The picture of an iteration, counted from 1, and the same in words."""
    keep = solution.keeps[iteration - 1]
    pruned = [100 - 100 * mask.float().mean().item() for mask in solution.keeps]
    figure = gradual_mask_figure(
        pruned,
        solution.errors,
        keep,
        one_shot,
        iteration=iteration,
        group=pattern.m,
        name=problem.title,
    )
    removed = ~keep[one_shot]
    caption = (
        f"Iteration {iteration} of {len(solution.keeps)}: "
        f"{pruned[iteration - 1]:.1f} % pruned, error "
        f"{short_error(solution.errors[iteration - 1])}. Of the weights that the one-shot mask "
        f"keeps {100 * removed.float().mean():.1f} % are removed here."
    )
    if pattern.grouped:
        exact = keep.unflatten(1, (-1, pattern.m)).sum(-1) == pattern.n
        caption += (
            f" {100 * exact.float().mean():.1f} % of the groups of {pattern.m} keep exactly "
            f"{pattern.n}."
        )
    return View(figure, caption + problem.part)
