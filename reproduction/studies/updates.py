"""Notebook 02's question: how fast does a weight update converge on a fixed mask?

The paper says that a few cheap iterations of ADMM reach what gradient methods need hundreds for.
`update_study` compares the solvers on the calibration gram and on the gram of other text.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from helpers.device import synchronise
from helpers.errors import BadParameter, NonFinite
from helpers.paper import sparsegpt
from helpers.paper.admm import exact_least_squares, refit
from helpers.paper.gradient_methods import conjugate_gradients, gradient_refit
from helpers.paper.gram import damp, normalise, relative_error
from helpers.paper.masks import Pattern, check_sparsity, select
from helpers.progress import Progress, as_progress

DIRECT_ITERATIONS = 50  # of ADMM and conjugate gradients, which need few
RHOS = (0.1, 0.3, 1.0, 3.0, 10.0)  # around the paper's 1
LIGHT_DAMPING = 0.01  # SparseGPT's; the paper's ADMM uses 0.1
# in the units of `gradient_refit`. A momentum works best with the largest learning rate, since no
# direction then is slower than the momentum lets it be: 0.92 of that at which SGD diverges
RIVALS = [
    *(dict(solver="adam", learning_rate=rate) for rate in (0.01, 0.03, 0.1, 0.3)),
    *(
        dict(
            solver="sgd",
            learning_rate=round(1.84 * (1 + momentum), 2),
            momentum=momentum,
        )
        for momentum in (0.5, 0.7, 0.8, 0.9, 0.95)
    ),
]
SOLVERS = {
    "admm": refit,
    "cg": conjugate_gradients,
    "adam": functools.partial(gradient_refit, optimiser="adam"),
    "sgd": functools.partial(gradient_refit, optimiser="sgd"),
}
EVERY_ITERATION_TO = 20
POINTS_A_DECADE = 8
ADMM_ROWS = (5, 10, 20, 50)


def update_study(
    weight: Tensor,
    gram: Tensor,
    heldout: Tensor,
    *,
    sparsities: Sequence[float] = (0.5, 0.6, 0.7, 0.8),
    iterations: int = 200,
    damping: float = 0.1,
    progress: Progress | bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """Every weight update on the same masks of one layer, by Wanda's score in the whole matrix.

    Args:
        weight: (d_out, d_in).
        gram, heldout: (d_in, d_in), of the calibration text and of other text.
        iterations: of the gradient methods; ADMM and conjugate gradients stop at 50.
        damping: of all solvers but where a row says otherwise, and of the objective f that "excess"
            measures.
        progress: True for a bar, False for none, or a function called after each solver.

    Returns "update", a row for a solver, its settings and an iteration: "error" and "heldout" are
    ‖XW − XŴ‖²/‖XW‖² on either gram; "excess" is (f − f*)/f*, f* of exact least squares; "seconds"
    is the solver's time with its factorisations and without the measuring. And "curves": error,
    excess and seconds by iteration, at 1 to 20 and then about 8 a decade. Where a gradient method
    diverged its curve ends early and its later rows are missing.

    Raises BadParameter for a sparsity outside (0, 1), and what the solvers raise.
    """
    for sparsity in sparsities:
        if check_sparsity(sparsity) == 0:
            raise BadParameter(
                "sparsity 0 leaves nothing to update: give numbers in (0, 1)"
            )
    progress = as_progress(progress)
    study = {"update": [], "curves": []}
    variants = _variants(damping)
    total = len(sparsities) * len(variants)
    for sparsity in sparsities:
        case = _Case(weight.float(), gram.float(), heldout.float(), sparsity, damping)
        study["update"] += case.references()
        for settings in variants:
            # only gradient methods, which have a learning rate, need many iterations
            last = iterations if settings["learning_rate"] else DIRECT_ITERATIONS
            rows, curve = case.run(settings, last)
            study["update"] += rows
            study["curves"].append(curve)
            name = f"{settings['solver']} at {sparsity:.0%}"
            progress(len(study["curves"]), total, name)
    return study


def _settings(**settings: Any) -> dict:
    """A solver and its settings in the order of the rows; None where it has no such setting."""
    names = ("solver", "rho", "precondition", "damping", "learning_rate", "momentum")
    return dict.fromkeys(names) | settings


def _variants(damping: float) -> list[dict]:
    """The settings of every solver with iterations; ADMM's options are changed one at a time."""
    variants = []
    # with the paper's scaling of inputs to unit norm, and without it
    for scaled in (True, False):
        for rho in RHOS:
            variants.append(dict(solver="admm", rho=rho, precondition=scaled))
    if damping != LIGHT_DAMPING:
        light = dict(solver="admm", rho=1.0, precondition=True, damping=LIGHT_DAMPING)
        variants.append(light)
    for scaled in (True, False):
        variants.append(dict(solver="cg", precondition=scaled))
    for scaled in (False, True):
        variants += [dict(rival, precondition=scaled) for rival in RIVALS]
    return [_settings(**dict(damping=damping) | variant) for variant in variants]


def trace_points(last: int) -> list[int]:
    """The iterations at which a curve has a point: 1 to 20, about 8 a decade, and the last."""
    # round(10^(k/8)) for whole k: equal distances on a logarithmic axis
    powers = range(math.ceil(POINTS_A_DECADE * math.log10(last)))
    spread = (round(10 ** (power / POINTS_A_DECADE)) for power in powers)
    return sorted({*range(1, min(last, EVERY_ITERATION_TO) + 1), *spread, last})


class _Case:
    """One layer at one sparsity: its mask, its optimum, and how far a weight is from it."""

    def __init__(
        self,
        weight: Tensor,
        gram: Tensor,
        heldout: Tensor,
        sparsity: float,
        damping: float,
    ) -> None:
        self.weight = weight
        self.gram = gram
        self.heldout = heldout
        self.sparsity = float(sparsity)
        self.damping = damping
        # Wanda's score |W|·‖x‖, since gram_ii = ‖x_i‖²: one mask for all solvers, which then differ
        # in their updates only
        self.keep = select(
            weight.abs() * gram.diagonal().sqrt(), sparsity, "unstructured"
        )
        # All solvers minimise f(Ŵ) = tr((Ŵ − W) D (Ŵ − W)ᵀ) with D = gram + diag(ridge). The
        # damping is added to the diagonal of the gram of inputs of unit norm; with inputs as they
        # are that is n_i² times as much for input i
        scaled, norms = normalise(gram)
        self.ridge = (damp(scaled, damping) - scaled).diagonal() * norms.square()
        # ‖XW‖² = tr(W gram Wᵀ): the inputs X themselves are never needed
        self.total = _inner(weight @ gram, weight)
        # f*, the least of any Ŵ on this mask; in float64, since every excess is relative to it
        optimum, self.optimum_seconds = self.timed(
            exact_least_squares, weight.double(), gram, self.keep, damping=damping
        )
        change = weight.double() - optimum
        image = change @ gram.double() + change * self.ridge.double()
        self.best = _inner(image, change)
        self.optimum = optimum.float()

    def now(self) -> float:
        """Read a clock, in seconds, once the GPU has finished its work."""
        synchronise(self.weight.device)
        return time.perf_counter()

    def timed(self, solve: Callable, *given: Any, **options: Any) -> tuple[Any, float]:
        """Call a solver; return its result and the seconds it took."""
        started = self.now()
        # Python evaluates a tuple from the left, so the clock is read again after the solve
        return solve(*given, **options), self.now() - started

    def measure(self, new: Tensor) -> dict[str, float]:
        """Relative error and excess of a weight (d_out, d_in) that is zero outside the mask."""
        # Near the optimum f(Ŵ) and f* agree in most of their digits, and float32 would return the
        # rounding of their difference. So it is factored first, as a² − b² = (a − b)(a + b):
        #     f(Ŵ) − f* = tr((Ŵ − Ŵ*) D (Ŵ + Ŵ* − 2W)ᵀ)
        #               = tr((Ŵ − Ŵ*) D (Ŵ − W)ᵀ) + tr((Ŵ − Ŵ*) D (Ŵ* − W)ᵀ).
        # The last term is 0: D (Ŵ* − W)ᵀ is half the gradient at the optimum, which is zero on the
        # mask, and Ŵ − Ŵ* is zero outside it. And (Ŵ − W) gram is needed for the error anyway, so
        # one product with a (d_in, d_in) matrix serves both.
        change = new - self.weight
        image = change @ self.gram
        error = _inner(image, change) / self.total if self.total > 0 else 0.0
        image.add_(change * self.ridge)  # now (Ŵ − W) D
        excess = _inner(image, new - self.optimum) / self.best if self.best > 0 else 0.0
        # neither can be negative but by rounding
        return {"error": max(0.0, error), "excess": max(0.0, excess)}

    def row(
        self,
        settings: dict,
        iteration: int | None,
        new: Tensor,
        seconds: float,
    ) -> dict:
        """One row of "update"."""
        measured = self.measure(new)
        return {
            "sparsity": self.sparsity,
            **settings,
            "iterations": iteration,
            "error": measured["error"],
            "heldout": relative_error(self.weight, new, self.heldout),
            "excess": measured["excess"],
            "seconds": seconds,
        }

    def references(self) -> list[dict]:
        """The rows without iterations: no update, SparseGPT, and exact least squares."""
        # the two ends of the scale are the masked weight without an update and the optimum
        masked = self.weight * self.keep
        rows = [self.row(_settings(solver="none"), None, masked, 0.0)]
        # the solver itself: the checks and the error of METHODS would count as its time
        (new, _, used), seconds = self.timed(
            sparsegpt.solve,
            self.weight,
            self.gram,
            keep=self.keep,
            sparsity=self.sparsity,
            pattern=Pattern(),
            damping=LIGHT_DAMPING,
            block_size=128,
        )
        settings = _settings(solver="sparsegpt", damping=used)
        rows.append(self.row(settings, None, new, seconds))
        answers = {self.damping: (self.optimum, self.optimum_seconds)}
        for damping in (LIGHT_DAMPING, 0.0):
            if damping != self.damping:
                answers[damping] = self.timed(
                    exact_least_squares,
                    self.weight,
                    self.gram,
                    self.keep,
                    damping=damping,
                )
        for damping, answer in answers.items():
            settings = _settings(solver="exact", damping=damping)
            rows.append(self.row(settings, None, *answer))
        return rows

    def run(self, settings: dict, last: int) -> tuple[list[dict], dict]:
        """Solve once with `last` iterations: the rows, and the curve, of a solver with settings."""
        solver = settings["solver"]
        # fewer rows than points: a row also has the error on other text, which costs a product
        # 20: what the paper gives ADMM
        early = ADMM_ROWS if solver == "admm" else (20,)
        rows_at = {at for at in early if at <= last} | {last}
        # one run gives all rows: what a solver has after 20 of 200 iterations is what 20 would give
        points = rows_at.union(trace_points(last))
        rows = []
        curve = {"iterations": [], "seconds": [], "error": [], "excess": []}

        def trace(iteration: int, new: Tensor, _: Tensor):
            nonlocal started
            if iteration not in points:
                return
            stopped = self.now()
            seconds, measured = stopped - started, self.measure(new)
            if not all(math.isfinite(value) for value in measured.values()):
                raise NonFinite(f"{solver} diverged at iteration {iteration}")
            if iteration in rows_at:
                rows.append(self.row(settings, iteration, new, seconds))
            curve["iterations"].append(iteration)
            for name, value in {"seconds": seconds, **measured}.items():
                # five digits: a curve is drawn, and a record should stay small
                curve[name].append(float(f"{value:.5g}"))
            # the clock goes on while the solver works, and not while its weight is measured
            started += self.now() - stopped

        options = {k: v for k, v in settings.items() if k != "solver" and v is not None}
        started = self.now()
        try:
            SOLVERS[solver](
                self.weight,
                self.gram,
                self.keep,
                iterations=last,
                trace=trace,
                **options,
            )
        except NonFinite:
            # only a learning rate can be too large; elsewhere it would be a mistake of ours
            if settings["learning_rate"] is None:
                raise
        return rows, {"sparsity": self.sparsity, **settings, **curve}


def _inner(left: Tensor, right: Tensor) -> float:
    """tr(left rightᵀ), the sum of the products of the entries."""
    # up to 10⁷ terms of both signs: in float32 the rounding of the sum would hide a small excess
    return (left * right).sum(dtype=torch.float64).item()
