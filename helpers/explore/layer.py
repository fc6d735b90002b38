"""Explorer of one layer's solve: the curve, the optimum, which outputs are hurt, and the mask."""

from typing import Any

from helpers.admm import exact_least_squares
from helpers.explore.controls import Explorer, View, Worker, choice, row, slider
from helpers.explore.problem import SCHEDULES, LayerProblem, Problems, Solution
from helpers.gradient_methods import conjugate_gradients
from helpers.layer import LayerResult
from helpers.masks import mask_hash
from helpers.report import short_error, solve_figure

MASK_STEPS = 0.75  # of the iterations change a gradual mask: 15 of 20 in the paper
PAPERS_DAMPING = 0.1
HINT = (
    "Look at how few iterations bring the curve to the optimum of its mask, how unequally the "
    "outputs suffer, and what another ρ or schedule changes."
)


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
        return _view(problem, solution, optima[key], title)

    rows = [
        row(controls["layer"], controls["schedule"]),
        row(controls["sparsity"], controls["rho"], controls["iterations"]),
    ]
    return Explorer(controls, draw, rows=rows, hint=HINT)


def optimal_error(problem: LayerProblem, result: LayerResult) -> float:
    """The relative error of the optimum on the mask that ADMM has chosen."""
    weight, gram = problem.weight, problem.gram.matrix
    damping = result.damping
    if damping < PAPERS_DAMPING:  # badly conditioned: exact, but slow
        optimum = exact_least_squares(weight, gram, result.keep, damping=damping)
    else:
        # from where ADMM has come to, 20 steps leave an error that is right to three digits or
        # more: it changes with the square of the distance to the optimum
        optimum = conjugate_gradients(
            weight,
            gram,
            result.keep,
            start=result.weight,
            damping=damping,
            iterations=20,
        ).weight
    return problem.error(optimum)


def _view(
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
        f"{short_error(after.median().item())}."
    )
    return View(figure, caption)
