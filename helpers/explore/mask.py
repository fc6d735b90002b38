"""Explorer of a growing mask: scrub through the iterations and watch which weights fall."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from helpers.admm import admm_grad
from helpers.errors import check_real
from helpers.explore.controls import Explorer, Task, choice, row, slider
from helpers.explore.layer import SCHEDULES, layer_controls
from helpers.explore.source import Layer, Problem, Problems, source_of
from helpers.masks import check_divides, check_target, parse_pattern
from helpers.results import growth_figure, short_error

PATTERNS = ("unstructured", "2:4", "4:8")
FINAL_ITERATIONS = 5  # on the final mask, as in the paper
INTERVAL = 500  # milliseconds between two frames that are played
FILMS = 3  # settings whose masks are kept
HINT = (
    "Press ▶ or drag the iteration. Look at: when most weights fall; which ones the gradual mask "
    "gives up (orange) for others (black); in 2:4 and 4:8, how every group ends with the same "
    "number."
)


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
    `helpers.explore.layer.layer_solve_explorer`.
    """
    source, task = source_of(network, tokens), Task(quiet=True)
    studio = _Studio(check_real("damping", damping), outputs)
    kinds = ipywidgets.FloatSlider, ipywidgets.IntSlider
    layers = layer_controls(source, block, layer)
    options = [(label, name) for name, label in SCHEDULES.items()]
    controls = {
        "schedule": choice(options, schedule, "schedule"),
        "pattern": choice(PATTERNS, pattern, "pattern"),
        "sparsity": slider(kinds[0], sparsity, "sparsity", min=0.05, max=0.95, step=0.05),
        "mask_steps": slider(kinds[1], mask_steps, "mask steps", min=0, max=30),
    }
    last = mask_steps + FINAL_ITERATIONS
    controls["iteration"] = slider(kinds[1], last, "iteration", min=1, max=last)
    play = _connect(controls)

    def draw(block: int | None = None, layer: str | None = None, **settings: Any) -> Figure:
        found = source.get(block, layer, task.progress)
        return studio.picture(found, task.check, **settings)

    names = ["schedule", "pattern"], ["sparsity", "mask_steps"]
    first, second = ([controls[name] for name in some] for some in names)
    rows = [row(*layers.values(), *first), row(*second), row(play, controls["iteration"])]
    return Explorer(layers | controls, draw, task=task, rows=rows, hint=HINT)


def _connect(controls: dict[str, ipywidgets.Widget]) -> ipywidgets.Play:
    """The Play button of the iteration, and what one control means for another."""
    iteration, steps = controls["iteration"], controls["mask_steps"]
    play = ipywidgets.Play(min=1, max=iteration.max, value=iteration.value, interval=INTERVAL)
    # at the end it starts again: pressed there it would only switch itself off
    setattr(play, "repeat" if hasattr(play, "repeat") else "_repeat", True)
    ipywidgets.jslink((play, "value"), (iteration, "value"))  # in the browser: no round trip

    def resize(_change: Any) -> None:
        at_end = iteration.value == iteration.max
        last = steps.value + FINAL_ITERATIONS
        play.max = iteration.max = last
        if at_end:
            iteration.value = last

    def lock(_change: Any) -> None:
        controls["sparsity"].disabled = controls["pattern"].value != "unstructured"
        steps.disabled = controls["schedule"].value == "one-shot"

    steps.observe(resize, names="value")
    for name in ("pattern", "schedule"):
        controls[name].observe(lock, names="value")
    lock(None)
    return play


@dataclass
class _Film:
    """What a solve showed after each iteration; `one_shot` is the mask of its final sparsity."""

    one_shot: Tensor
    keeps: list[Tensor] = field(default_factory=list)
    growth: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)


class _Studio:
    """Solves once for each setting and draws the frame that is asked for."""

    def __init__(self, damping: float, outputs: int | None) -> None:
        self.damping = damping
        self.problems = Problems(outputs)
        self._films: OrderedDict[tuple[Any, ...], _Film] = OrderedDict()

    def picture(
        self,
        layer: Layer,
        check: Callable[[], None],
        *,
        schedule: str,
        pattern: str,
        sparsity: float,
        mask_steps: int,
        iteration: int,
    ) -> Figure:
        """The figure of an iteration, with its summary as `caption`."""
        problem = self.problems.of(layer)
        wanted = sparsity if pattern == "unstructured" else None
        if schedule == "one-shot":
            schedule, steps = "paper", 0
        else:
            steps = mask_steps
        settings = {"schedule": schedule, "pattern": pattern, "sparsity": wanted}
        settings |= {"mask_steps": steps, "iterations": mask_steps + FINAL_ITERATIONS}
        key = (problem, *settings.values())
        if key not in self._films:
            self._films[key] = self._film(problem, check, settings)
        self._films.move_to_end(key)
        while len(self._films) > FILMS:
            self._films.popitem(last=False)
        film = self._films[key]
        shown = min(iteration, len(film.keeps))
        groups = parse_pattern(pattern)
        figure = growth_figure(
            film.growth,
            film.errors,
            film.keeps[shown - 1],
            film.one_shot,
            iteration=shown,
            pattern=groups,
            name=problem.told(),
        )
        figure.caption = _summary(film, shown, groups)
        return figure

    def _film(self, problem: Problem, check: Callable[[], None], settings: dict[str, Any]) -> _Film:
        """Solve, and keep the mask after every iteration."""
        rows, gram = problem.rows, problem.gram
        check_divides(settings["pattern"], rows.shape[1])
        check_target(settings["sparsity"], settings["pattern"])
        start = settings | {"mask_steps": 0, "iterations": 1, "damping": self.damping}
        film = _Film(admm_grad(rows, gram, **start).keep)

        def trace(_iteration: int, solution: Tensor, keep: Tensor) -> None:
            check()
            film.errors.append(problem.error(solution))
            film.growth.append(1 - int(keep.sum()) / keep.numel())
            # iterations on one mask share it
            same = film.keeps and torch.equal(film.keeps[-1], keep)
            film.keeps.append(film.keeps[-1] if same else keep.cpu())

        admm_grad(rows, gram, **settings, damping=self.damping, trace=trace)
        film.one_shot = film.one_shot.cpu()
        return film


def _summary(film: _Film, shown: int, groups: tuple[int, int] | None) -> str:
    """The picture in words."""
    keep, other = film.keeps[shown - 1], film.one_shot
    text = (
        f"Iteration {shown} of {len(film.keeps)}: {100 * film.growth[shown - 1]:.1f} % pruned, "
        f"error {short_error(film.errors[shown - 1])}. Of the final one-shot mask's weights "
        f"{100 * int((other & ~keep).sum()) / max(1, int(other.sum())):.1f} % are gone here."
    )
    if groups:
        n, m = groups
        share = (keep.unflatten(1, (-1, m)).sum(-1) == n).float().mean().item()
        text += f" Groups of {m} that keep exactly {n}: {100 * share:.1f} %."
    return text
