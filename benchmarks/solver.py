"""The solver's time over its floor: the matmuls and the factorisation that it cannot avoid.

The floor of a layer (d_out, d_in) is 21 matmuls with a (d_in, d_in) matrix, one an iteration and
one for the constant term; layers that share a gram (Gram matrix) share one Cholesky inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import published
from benchmarks.problems import random_gram, random_weight
from benchmarks.timing import interleaved, once, ratio, summary
from helpers.paper import admm
from helpers.paper.gram import Gram, relative_error
from helpers.paper.masks import Pattern
from helpers.paper.methods import METHODS

SPARSITY, ITERATIONS = 0.6, 20
TARGET = 1.35
TOLERANCE = 1e-3  # between our mean error and the published path's, relative
LARGE = 4096  # inputs from which a layer is measured a few times only

Shape = tuple[int, int]
CASES: dict[str, list[Shape]] = {
    "576x576": [(576, 576)],
    "1536x576": [(1536, 576)],
    "576x1536": [(576, 1536)],
    "q/k/v of 576": [(576, 576), (192, 576), (192, 576)],
    "gate/up of 576": [(1536, 576), (1536, 576)],
    "4096x4096": [(4096, 4096)],
    "11008x4096": [(11008, 4096)],
}
QUICK: dict[str, list[Shape]] = {
    "96x64": [(96, 64)],
    "q/k/v of 64": [(64, 64), (32, 64)],
}


def measure(quick: bool = False) -> dict[str, Any]:
    """Measure each case (a row, see `measure_case`), on the CPU and on a GPU if there is one.

    Raises ValueError if two solvers disagree.
    """
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows = []
    most = torch.get_num_threads()
    for device in devices:
        for name, layers in (QUICK if quick else CASES).items():
            # on a CPU a small layer is also measured with one thread, as plans run it
            both = device == "cpu" and layers[0][1] < LARGE
            for threads in sorted({1, most}) if both else [most]:
                torch.set_num_threads(threads)
                rows.append(measure_case(name, layers, device, threads, quick))
    torch.set_num_threads(most)
    return {"rows": rows}


def admm_grad(weight: Tensor, gram: Tensor | Gram) -> Tensor:
    """Prune a layer (d_out, d_in) by ADMM-Grad without the checks of METHODS; its new weight."""
    solved = admm.admm_grad(
        weight,
        Gram.of(gram),
        sparsity=SPARSITY,
        pattern=Pattern(),
        iterations=ITERATIONS,
    )
    return solved.weight


def measure_case(
    name: str, layers: list[Shape], device: str, threads: int, quick: bool
) -> dict[str, Any]:
    """Time our solver, and less often the published path, over the floor, in alternating order.

    layers: shapes (d_out, d_in) that share one gram. Raises ValueError if the two solvers disagree.
    """
    # on a slow core a 4096-wide solve takes half a minute: it is not warmed up and runs twice only
    small = layers[0][1] < LARGE or device == "cuda"
    repeats = 15 if small else 2
    if quick:
        repeats = 3
    case = Case(layers, device)
    published_ratio = None
    runs: dict[str, Callable[[], Any]] = {"ours": case.ours, "floor": case.floor}
    if small:
        runs["method"] = case.method
    seconds = interleaved(runs, repeats, warm=small, device=device)
    if small:
        runs = {"published": case.published, "floor": case.floor}
        published_ratio = ratio(
            interleaved(runs, 3, device=device), "published", "floor"
        )
    elif layers[0][0] <= LARGE:  # once; the largest layer would take it some minutes
        floor = summary(seconds["floor"])["median"]
        published_ratio = summary([once(case.published, device) / floor])
    return {
        "case": name,
        "threads": threads,
        "layers": [list(shape) for shape in layers],
        "device": device,
        "seconds": {what: summary(values) for what, values in seconds.items()},
        "ratio": ratio(seconds, "ours", "floor"),
        "method": ratio(seconds, "method", "floor") if small else None,
        "published": published_ratio,
        "difference": case.difference() if published_ratio else None,
    }


class Case:
    """Random layers (d_out, d_in) with one gram, and the solvers that are timed on them."""

    def __init__(self, layers: list[Shape], device: str) -> None:
        self.gram = random_gram(layers[0][1], device)
        self.weights = [
            random_weight(*shape, device, seed) for seed, shape in enumerate(layers, 1)
        ]
        self.bare = [torch.empty_like(weight) for weight in self.weights]
        self._solved: list[Tensor] = []
        self._plain: list[Tensor] = []

    def ours(self) -> None:
        """Solve the layers by `admm_grad`, one after the other, with a shared factorisation."""
        gram = Gram.of(self.gram)
        self._solved = [admm_grad(weight, gram) for weight in self.weights]

    def method(self) -> None:
        """Solve them through METHODS, which checks the result and measures its error."""
        gram = Gram.of(self.gram)
        for weight in self.weights:
            METHODS["admm-grad"](weight, gram, sparsity=SPARSITY)

    def published(self) -> None:
        """Solve them by the published path."""
        self._plain = [published.solve(w, self.gram, SPARSITY) for w in self.weights]

    def floor(self) -> None:
        """Compute the bare matmuls of all layers and one factorisation."""
        lower = torch.linalg.cholesky(self.gram)
        inverse = torch.cholesky_inverse(lower)
        for weight, out in zip(self.weights, self.bare, strict=True):
            for _ in range(ITERATIONS + 1):
                torch.mm(weight, inverse, out=out)

    def difference(self) -> dict[str, float]:
        """Compare our errors with the published path's, see `agreement`."""
        solved = zip(self.weights, self._solved, self._plain, strict=True)
        return agreement([errors_of(*layer, self.gram) for layer in solved])


def errors_of(
    weight: Tensor, ours: Tensor, plain: Tensor, gram: Tensor
) -> tuple[float, float]:
    """Measure the relative errors of two solutions of a layer; weights are (d_out, d_in).

    Raises ValueError if the numbers of zeros differ.
    """
    own_zeros = int((ours == 0).sum())
    plain_zeros = int((plain == 0).sum())
    if own_zeros != plain_zeros:
        raise ValueError(
            f"our layer has {own_zeros} zeros and the published path's {plain_zeros}"
        )
    return relative_error(weight, ours, gram), relative_error(weight, plain, gram)


def agreement(errors: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Compare two paths' errors: the relative difference of their means, and a layer's largest.

    errors: (ours, published) of each layer. A mask that is chosen 15 times is not continuous in the
    inputs: rounding alone exchanges up to a thousandth of the weights, which a small layer shows
    and the mean does not. Raises ValueError if the means differ by more than TOLERANCE.
    """
    layers = [relative_difference(ours, plain) for ours, plain in errors]
    ours_sum = sum(ours for ours, _ in errors)
    plain_sum = sum(plain for _, plain in errors)
    mean = relative_difference(ours_sum, plain_sum)
    if mean > TOLERANCE:
        raise ValueError(
            f"our errors and the published path's differ by {mean:.2g} in the mean"
        )
    return {"mean": mean, "largest": max(layers)}


def relative_difference(one: float, other: float) -> float:
    """Difference of two errors, relative to the larger."""
    return abs(one - other) / max(one, other, 1e-30)
