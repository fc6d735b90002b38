"""The studies of single layers: how fast a weight update converges, and what the mask rules do.

The paper says that a few cheap iterations of ADMM reach on a fixed mask what gradient methods need
hundreds for, and that the mask should grow while ADMM runs. `update_study` and `mask_study` put
numbers to both, on a calibration gram and on the gram of other text. They return plain rows for a
record.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from helpers.admm import exact_least_squares, refit
from helpers.errors import (
    BadSparsity,
    NonFinite,
    check_real,
    check_whole,
)
from helpers.gradient_methods import conjugate_gradients, gradient_refit
from helpers.gram import check_gram, damp, normalise, relative_error
from helpers.masks import check_sparsity, parse_pattern, select
from helpers.methods import METHODS

DIRECT_ITERATIONS = 50  # of ADMM and conjugate gradients, which get far in few
RHOS = (0.1, 0.3, 1.0, 3.0, 10.0)
LIGHT_DAMPING = 0.01
# relative units, see `gradient_refit`; the last of "sgd" is near where it diverges
LEARNING_RATES = {"adam": (0.03, 0.1, 0.3), "sgd": (1.0, 2.0, 3.5)}
EVERY_ITERATION_TO = 20
POINTS_A_DECADE = 8
ADMM_ROWS = (5, 10, 20, 50)

MASK_DEFAULT = {"mask_steps": 15, "schedule": "paper", "budget": "matrix"}
MASK_STEPS = (0, 5, 10, 15)


class Stopwatch:
    """Seconds of work on `device`, with pauses for what must not count."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0.0
        self._started = self._now()

    def _now(self) -> float:
        # a GPU's calls return before the work is done
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start, without the pauses."""
        return self._before + self._now() - self._started

    @contextlib.contextmanager
    def paused(self) -> Iterator[float]:
        """Stand still inside the block; gives the seconds so far."""
        self._before = self.seconds
        try:
            yield self._before
        finally:
            self._started = self._now()


@dataclass(frozen=True)
class _Variant:
    """A solver with its settings; None where a setting does not exist."""

    solver: str
    iterations: int | None = None
    rho: float | None = None
    precondition: bool | None = None
    damping: float | None = None
    learning_rate: float | None = None

    def labels(self) -> dict[str, Any]:
        """The settings in the order of the rows, without the iterations."""
        return {
            "solver": self.solver,
            "rho": self.rho,
            "precondition": self.precondition,
            "damping": self.damping,
            "learning_rate": self.learning_rate,
        }

    def rows_at(self) -> set[int]:
        """The iterations that get a row: ADMM's early ones, else 20 and the last."""
        wanted = ADMM_ROWS if self.solver == "admm" else (20,)
        return {at for at in wanted if at <= self.iterations} | {self.iterations}


def update_study(
    weight: Tensor,
    gram: Tensor,
    heldout: Tensor,
    *,
    sparsities: Sequence[float] = (0.5, 0.6, 0.7, 0.8),
    iterations: int = 200,
    damping: float = 0.1,
) -> dict[str, list[dict[str, Any]]]:
    """Every weight update on the same masks of one layer, by Wanda's score in the whole matrix.

    Args: weight (d_out, d_in); gram and heldout (d_in, d_in), of the calibration text and of other
    text; iterations of the gradient methods (ADMM and conjugate gradients stop at 50); damping of
    all solvers but where a row says otherwise, and of the objective f that "excess" measures.

    Returns "update", a row for a solver, its settings and an iteration: "error" and "heldout" are
    ‖XW − XŴ‖²/‖XW‖² on either gram; "excess" is (f − f*)/f*, f* of exact least squares; "seconds"
    is the solver's time with its factorisations and without the measuring. And "curves": error,
    excess and seconds by iteration, at 1 to 20 and then about 8 a decade. Where a gradient method
    diverged its curve ends early and its later rows are missing.

    Raises BadSparsity for a sparsity outside (0, 1), and what the solvers raise.
    """
    check_whole("iterations", iterations)
    check_real("damping", damping)
    for matrix in (gram, heldout):
        check_gram(matrix, weight.shape[1])
    for sparsity in sparsities:
        if check_sparsity(sparsity) == 0:
            raise BadSparsity("sparsity 0 leaves nothing to update: give numbers in (0, 1)")
    study: dict[str, list[dict[str, Any]]] = {"update": [], "curves": []}
    for sparsity in sparsities:
        case = _Case(weight.float(), gram.float(), heldout.float(), sparsity, damping)
        study["update"] += case.references()
        for variant in [*_direct(damping), *_gradient(iterations, damping)]:
            case.run(variant, study)
    return study


def _direct(damping: float) -> list[_Variant]:
    """ADMM with its options changed one at a time, and conjugate gradients."""
    last = DIRECT_ITERATIONS
    both = (True, False)
    with_rho = [_Variant("admm", last, rho, scaled, damping) for scaled in both for rho in RHOS]
    light = [_Variant("admm", last, 1.0, True, LIGHT_DAMPING)] if damping != LIGHT_DAMPING else []
    exact = [_Variant("cg", last, None, scaled, damping) for scaled in both]
    return [*with_rho, *light, *exact]


def _gradient(iterations: int, damping: float) -> list[_Variant]:
    """The gradient methods with every learning rate, in original and in scaled coordinates."""
    return [
        _Variant(solver, iterations, None, scaled, damping, rate)
        for solver, rates in LEARNING_RATES.items()
        for scaled in (False, True)
        for rate in rates
    ]


def trace_points(last: int) -> list[int]:
    """The iterations at which a curve has a point: 1 to 20, about 8 a decade, and the last."""
    points = set(range(1, min(last, EVERY_ITERATION_TO) + 1)) | {last}
    power = math.ceil(POINTS_A_DECADE * math.log10(EVERY_ITERATION_TO + 1))
    while (at := round(10 ** (power / POINTS_A_DECADE))) < last:
        points.add(at)
        power += 1
    return sorted(points)


class _Case:
    """One layer at one sparsity: its mask, its optimum, and how far a weight is from it."""

    def __init__(
        self, weight: Tensor, gram: Tensor, heldout: Tensor, sparsity: float, damping: float
    ) -> None:
        self.weight, self.gram, self.heldout = weight, gram, heldout
        self.sparsity, self.damping = float(sparsity), damping
        scaled, norms = normalise(gram)
        self.keep = select(weight.abs() * gram.diagonal().sqrt(), sparsity, "unstructured")
        # what the damping adds to the gram's diagonal, in the original units
        added = (damp(scaled, damping) - scaled).diagonal()
        self.ridge = added * norms.square()
        self.total = _inner(weight @ gram, weight)
        watch = Stopwatch(weight.device)
        # in float64, since f* is what everything is measured by
        self.optimum = exact_least_squares(weight.double(), gram, self.keep, damping=damping)
        self.optimum_seconds = watch.seconds
        change = weight.double() - self.optimum
        image = change @ gram.double() + change * self.ridge.double()
        self.best = _inner(image, change)
        self.optimum = self.optimum.float()

    def measure(self, new: Tensor) -> dict[str, float]:
        """Relative error and excess of a weight (d_out, d_in) that is zero outside the mask.

        With Ŵ* optimal on the support, f(Ŵ) − f* = tr((Ŵ − Ŵ*) D (Ŵ − W)ᵀ): the product that
        the error needs anyway gives the excess too, without a difference of two near numbers.
        """
        change = new - self.weight
        image = change @ self.gram
        error = _inner(image, change) / self.total if self.total > 0 else 0.0
        image.add_(change * self.ridge)
        excess = _inner(image, new - self.optimum) / self.best if self.best > 0 else 0.0
        return {"error": max(0.0, error), "excess": max(0.0, excess)}

    def row(
        self, variant: _Variant, iteration: int | None, new: Tensor, seconds: float
    ) -> dict[str, Any]:
        """One row of "update"."""
        measured = self.measure(new)
        return {
            "sparsity": self.sparsity,
            **variant.labels(),
            "iterations": iteration,
            "error": measured["error"],
            "heldout": relative_error(self.weight, new, self.heldout),
            "excess": measured["excess"],
            "seconds": seconds,
        }

    def references(self) -> list[dict[str, Any]]:
        """The rows without iterations: no update, SparseGPT, and exact least squares."""
        rows = [self.row(_Variant("none"), None, self.weight * self.keep, 0.0)]
        watch = Stopwatch(self.weight.device)
        solved = METHODS["sparsegpt"](self.weight, self.gram, keep=self.keep)
        seconds = watch.seconds
        variant = _Variant("sparsegpt", damping=solved.damping)
        rows.append(self.row(variant, None, solved.weight, seconds))
        variant = _Variant("exact", damping=self.damping)
        rows.append(self.row(variant, None, self.optimum, self.optimum_seconds))
        for damping in sorted({LIGHT_DAMPING, 0.0} - {self.damping}, reverse=True):
            watch = Stopwatch(self.weight.device)
            exact = exact_least_squares(self.weight, self.gram, self.keep, damping=damping)
            seconds = watch.seconds
            rows.append(self.row(_Variant("exact", damping=damping), None, exact, seconds))
        return rows

    def run(self, variant: _Variant, study: dict[str, list[dict[str, Any]]]) -> None:
        """Solve once, adding the rows and the curve of a solver with iterations to `study`."""
        points, rows_at = set(trace_points(variant.iterations)), variant.rows_at()
        curve = {name: [] for name in ("iterations", "seconds", "error", "excess")}

        def trace(iteration: int, new: Tensor, _: Tensor) -> None:
            if iteration not in points | rows_at:
                return
            with watch.paused() as seconds:
                measured = self.measure(new)
                if not all(math.isfinite(value) for value in measured.values()):
                    raise NonFinite(f"{variant.solver} diverged at iteration {iteration}")
                if iteration in rows_at:
                    study["update"].append(self.row(variant, iteration, new, seconds))
                point = {"iterations": iteration, "seconds": seconds, **measured}
                for name, value in point.items():
                    curve[name].append(value)

        watch = Stopwatch(self.weight.device)
        try:
            _solve(variant, self.weight, self.gram, self.keep, trace)
        except NonFinite:
            # only a learning rate can be too large; elsewhere it would be a mistake of ours
            if variant.learning_rate is None:
                raise
        study["curves"].append(
            {"sparsity": self.sparsity, **variant.labels()}
            | {name: [_short(value) for value in values] for name, values in curve.items()}
        )


def _solve(
    variant: _Variant,
    weight: Tensor,
    gram: Tensor,
    keep: Tensor,
    trace: Callable[[int, Tensor, Tensor], None],
) -> None:
    """Run the solver of a variant with its trace."""
    common = {
        "iterations": variant.iterations,
        "damping": variant.damping,
        "precondition": variant.precondition,
        "trace": trace,
    }
    if variant.solver == "admm":
        refit(weight, gram, keep, rho=variant.rho, **common)
    elif variant.solver == "cg":
        conjugate_gradients(weight, gram, keep, **common)
    else:
        choice = {"optimiser": variant.solver, "learning_rate": variant.learning_rate}
        gradient_refit(weight, gram, keep, **choice, **common)


def _inner(left: Tensor, right: Tensor) -> float:
    """Sum of the products of two matrices, added up in float64."""
    return (left * right).sum(dtype=torch.float64).item()


def _short(value: float) -> float:
    """Five significant digits of a curve's value: it is drawn, and a record should stay small."""
    return value if isinstance(value, int) else float(f"{value:.5g}")


def mask_study(
    weight: Tensor,
    gram: Tensor,
    heldout: Tensor,
    *,
    sparsities: Sequence[float] = (0.5, 0.6, 0.7, 0.8),
    patterns: Sequence[str] = ("unstructured", "2:4", "4:8"),
    iterations: int = 20,
) -> list[dict[str, Any]]:
    """ADMM-Grad on one layer with one of its mask rules changed at a time.

    The default is the paper's: 15 mask steps, the cubic schedule, a budget per matrix. Changed
    are the mask steps (0, 5, 10; 0 is ADMM1) and, for unstructured pruning, the schedule
    ("released") and the budget ("output"); the released code's schedule for N:M is the paper's.
    `sparsities` are those of unstructured pruning, N:M implies its own.

    Returns rows with "error" and "heldout", ‖XW − XŴ‖²/‖XW‖² on the calibration gram and on the
    gram of other text. Shapes as in `update_study`; raises what "admm-grad" raises, such as
    BadParameter for fewer than 15 iterations.
    """
    check_gram(heldout, weight.shape[1])
    rows = []
    for pattern in patterns:
        nm = parse_pattern(pattern)
        for sparsity in [1 - nm[0] / nm[1]] if nm else sparsities:
            for rule in _mask_rules(unstructured=nm is None):
                target = {"pattern": pattern, "sparsity": float(sparsity)}
                settings = {**rule, "iterations": iterations}
                solved = METHODS["admm-grad"](weight, gram, **target, **settings)
                other = relative_error(weight, solved.weight, heldout)
                rows.append({**target, **settings, "error": solved.error, "heldout": other})
    return rows


def _mask_rules(*, unstructured: bool) -> list[dict[str, Any]]:
    """The default and every rule that differs from it in one factor."""
    changes: list[dict[str, Any]] = [{"mask_steps": steps} for steps in MASK_STEPS]
    if unstructured:
        changes += [{"schedule": "released"}, {"budget": "output"}]
    return [{**MASK_DEFAULT, **change} for change in changes]
