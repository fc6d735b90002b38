"""What the paper compares ADMM with on a fixed mask: gradient methods and conjugate gradients.

All of them minimise the objective of `helpers.admm.refit`,
f(Ŵ) = tr((Ŵ − W) D (Ŵ − W)ᵀ) with Ŵ zero outside `keep`, D as in `damped_system`, and all start
from the masked weight. They work in place with one matrix product an iteration, as ADMM does, so
that seconds can be compared. A float64 weight is solved in float64, any other in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from helpers.admm import Solution, Trace, damped_system
from helpers.device import all_finite, check_weight
from helpers.errors import (
    BadParameter,
    NonFinite,
    check_choice,
    check_real,
    check_switch,
    check_whole,
)
from helpers.gram import check_gram
from helpers.masks import check_keep

OPTIMISERS = ("adam", "sgd")
ADAM_DECAY, ADAM_EPSILON = (0.9, 0.999), 1e-8  # torch's defaults
POWER_STEPS = 100

# step(iteration, current, slope): move `current` against `slope`, both in place
Step = Callable[[int, Tensor, Tensor], None]


class MaskedLeastSquares:
    """A layer's least-squares problem on its mask, in the coordinates a solver works in.

    D, (d_in, d_in), is given in those; scale, (d_in,) or (), is the factor from weights to them.
    Raises BadParameter, NonFinite for arguments that `helpers.admm.refit` refuses too.
    """

    # With scale s the unknown is s·Ŵ and D becomes D/(s sᵀ): the same problem and optimum on other
    # axes. A gradient method needs more iterations the larger the ratio of D's largest to smallest
    # eigenvalue is, and where a few inputs are far larger than the rest, inputs of unit norm make
    # that ratio much smaller.

    def __init__(
        self,
        weight: Tensor,
        gram: Tensor,
        keep: Tensor,
        *,
        iterations: int,
        damping: float,
        precondition: bool,
    ) -> None:
        check_whole("iterations", iterations)
        self.damping = check_real("damping", damping)
        check_switch("precondition", precondition)
        check_weight(weight)
        check_gram(gram, weight.shape[1])
        check_keep(keep, weight.shape, None, "unstructured")
        # float16 weights are solved in float32: small steps would otherwise round to nothing
        kind = torch.promote_types(weight.dtype, torch.float32)
        self.keep = keep
        self.D, self.scale = damped_system(gram.to(kind), damping, precondition=precondition)
        self.dense = weight.detach().to(kind) * self.scale
        self.target = self.dense @ self.D  # the gradient's constant part, computed once

    def begin(self, start: Tensor | None = None) -> Tensor:
        """Where a solver starts, in its coordinates: `start` (d_out, d_in) on the support, or the
        masked weight. Raises BadParameter.
        """
        if start is None:
            return self.dense * self.keep
        if start.shape != self.dense.shape:
            raise BadParameter(
                f"start has shape {tuple(start.shape)}: give the weight's {tuple(self.dense.shape)}"
            )
        return start.to(self.dense.dtype) * self.scale * self.keep

    def gradient(self, current: Tensor, out: Tensor) -> Tensor:
        """2 (current − dense) D on the support and 0 elsewhere, written to `out`."""
        # −2 dense D + 2 current D: one product, and no matrix current − dense
        torch.addmm(self.target, current, self.D, beta=-2, alpha=2, out=out)
        # a gradient that is zero outside the mask leaves the pruned weights at zero
        return out.mul_(self.keep)

    def solution(self, current: Tensor, solver: str, remedy: str) -> Solution:
        """The answer in the units of the original weight. Raises NonFinite if it diverged."""
        if not all_finite(current):
            raise NonFinite(f"{solver} diverged: give {remedy}")
        # back from s·Ŵ to Ŵ; column j is divided by s_j
        return Solution(current / self.scale, self.keep, self.damping)


def gradient_refit(
    weight: Tensor,
    gram: Tensor,
    keep: Tensor,
    *,
    optimiser: str,
    learning_rate: float,
    iterations: int,
    damping: float = 0.1,
    precondition: bool = False,
    momentum: float = 0.9,
    trace: Trace | None = None,
) -> Solution:
    """Refit by full-batch gradient descent, 2 (Ŵ − W) D masked by `keep` (AdaPrune's way).

    Hubara et al., "Accelerated Sparse Neural Training", 2021, do this with Adam on a layer's
    outputs; the gradient over all calibration tokens needs nothing but the gram.

    Args: weight, gram, keep, damping, trace as in `helpers.admm.refit`; precondition, True to
    descend in inputs scaled to unit norm. learning_rate is relative, so that one suits every
    layer: for "adam" in units of the root mean square of the surviving weights, for "sgd" in units
    of 1/L with L the largest eigenvalue of 2 D. "sgd" has heavy-ball `momentum`, in [0, 1), and
    stays finite for a learning rate below 2 (1 + momentum); 0 is plain descent.
    Raises BadParameter, and NonFinite if it diverged.
    """
    check_choice("optimiser", optimiser, OPTIMISERS)
    check_real("learning_rate", learning_rate, above=0)
    if check_real("momentum", momentum) >= 1:
        raise BadParameter(f"momentum {momentum!r} is not allowed: give a number in [0, 1)")
    problem = MaskedLeastSquares(
        weight, gram, keep, iterations=iterations, damping=damping, precondition=precondition
    )
    # the masked weight: what is left without any update
    current = problem.dense * keep
    if optimiser == "adam":
        # Adam's steps have the size of its rate whatever the slope, so it is measured in weights
        typical = (current.square().sum() / keep.sum().clamp(min=1)).sqrt().item()
        step = _adam(current, learning_rate * typical)
    else:
        # the gradient changes by at most L a unit of distance, so a step of 1/L cannot overshoot
        step = _heavy_ball(current, learning_rate / _curvature(problem.D), momentum)
    slope = torch.empty_like(current)
    for iteration in range(1, iterations + 1):
        problem.gradient(current, out=slope)
        step(iteration, current, slope)
        if trace:
            trace(iteration, current / problem.scale, keep)
    return problem.solution(current, optimiser, "a smaller learning rate or more damping")


def _adam(like: Tensor, rate: float) -> Step:
    """Adam's update (Kingma & Ba 2015) for weights shaped `like`, in place."""
    mean, square, root = torch.zeros_like(like), torch.zeros_like(like), torch.empty_like(like)
    first, second = ADAM_DECAY

    def step(iteration: int, current: Tensor, slope: Tensor) -> None:
        mean.lerp_(slope, 1 - first)
        square.mul_(second).addcmul_(slope, slope, value=1 - second)
        # Both means start at 0 and are too small by 1 − β^t at first. With c = sqrt(1 − β₂^t),
        # (mean / (1 − β₁^t)) / (sqrt(square)/c + ε) = c/(1 − β₁^t) · mean / (sqrt(square) + c ε):
        # the corrections are numbers, and no pass over the matrix is spent on them
        correction = math.sqrt(1 - second**iteration)
        torch.sqrt(square, out=root)
        root.add_(ADAM_EPSILON * correction)
        current.addcdiv_(mean, root, value=-rate * correction / (1 - first**iteration))

    return step


def _heavy_ball(like: Tensor, rate: float, momentum: float) -> Step:
    """Descent with momentum (Polyak 1964) for weights shaped `like`, in place."""
    velocity = torch.zeros_like(like)

    def step(_: int, current: Tensor, slope: Tensor) -> None:
        # v ← momentum · v + slope; Ŵ ← Ŵ − rate · v
        velocity.mul_(momentum).add_(slope)
        current.sub_(velocity, alpha=rate)

    return step


def _curvature(D: Tensor) -> float:
    """Largest eigenvalue of 2 D, the most that the gradient changes a unit of distance."""
    generator = torch.Generator().manual_seed(0)
    # drawn on the CPU, so that every device starts from the same vector; a random one is orthogonal
    # to the wanted eigenvector with probability 0
    vector = torch.randn(len(D), generator=generator, dtype=D.dtype).to(D.device)
    # power iteration: a product with D stretches the part along the largest eigenvalue's
    # eigenvector most, so after some of them little else is left, and its length is the eigenvalue
    for _ in range(POWER_STEPS):
        vector = D @ (vector / vector.norm())
    largest = 2 * vector.norm().item()
    if largest > 0:
        return largest
    raise BadParameter(
        "gram is zero, so there is nothing to fit: give the gram of inputs that are not all zero"
    )


def conjugate_gradients(
    weight: Tensor,
    gram: Tensor,
    keep: Tensor,
    *,
    iterations: int,
    damping: float = 0.1,
    precondition: bool = True,
    start: Tensor | None = None,
    trace: Trace | None = None,
) -> Solution:
    """Refit by conjugate gradients (Hestenes & Stiefel 1952) on each output's own support.

    All outputs are solved together, each with its own step lengths. With `precondition` the inputs
    are scaled to unit norm, which is Jacobi's preconditioner. In exact arithmetic an output with k
    surviving weights is solved after k iterations. `start`, (d_out, d_in), is where it starts on
    the support, by default the masked weight.
    Arguments otherwise as in `helpers.admm.refit`. Raises BadParameter, NonFinite.
    """
    problem = MaskedLeastSquares(
        weight, gram, keep, iterations=iterations, damping=damping, precondition=precondition
    )
    current = problem.begin(start)
    conjugate_steps(problem, current, iterations, trace)
    return problem.solution(current, "conjugate gradients", "more damping")


def conjugate_steps(
    problem: MaskedLeastSquares, current: Tensor, iterations: int, trace: Trace | None = None
) -> None:
    """`iterations` of conjugate gradients from `current`, (d_out, d_in), which is changed in place.

    current: in the problem's coordinates, zero outside its mask.
    """
    # Each output has a system A w = b of its own, with A = D on its support, and its own step
    # lengths. A is never formed: a product with D, masked, is a product with every output's A.
    # residual = b − A·current is half the negative gradient. Search directions are conjugate,
    # p A qᵀ = 0, so the minimum along one is not lost again by a step along a later one.
    residual = problem.gradient(current, out=torch.empty_like(current)).mul_(-0.5)
    search, image = residual.clone(), torch.empty_like(current)
    size = _dot(residual, residual)
    for iteration in range(1, iterations + 1):
        # (d_out, d_in), row i: p A of output i, once its pruned columns are 0
        torch.mm(search, problem.D, out=image)
        image.mul_(problem.keep)
        length = _ratio(size, _dot(search, image))  # the minimum along the search direction
        current.addcmul_(search, length)
        # b − A (x + α p) = residual − α A p: no second product with D
        residual.addcmul_(image, length, value=-1)
        before, size = size, _dot(residual, residual)
        # the new residual, plus as much of the old direction as makes the two conjugate
        search.mul_(_ratio(size, before)).add_(residual)
        if trace:
            trace(iteration, current / problem.scale, problem.keep)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product of each output's row, shape (d_out, 1)."""
    return torch.linalg.vecdot(left, right).unsqueeze(1)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 for an output that has converged, where both are 0."""
    return torch.where(below > 0, above / below, torch.zeros_like(above))
