"""The paper's baselines on a fixed mask: gradient methods and conjugate gradients.

All of them minimise the objective of `helpers.paper.admm.refit`,
f(Ŵ) = tr((Ŵ − W) D (Ŵ − W)ᵀ) with Ŵ zero outside `keep`, D as in `damped_system`, and all start
from the masked weight. They work in place with one matrix product an iteration, as ADMM does, so
that seconds can be compared. A float64 weight is solved in float64, any other in float32.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from helpers.device import all_finite, products
from helpers.errors import NonFinite
from helpers.options import Count, NotNegative, Positive, Switch, one_of, validated
from helpers.paper.admm import Trace, damped_system
from helpers.paper.layer import Layer, LayerResult

# torch's defaults: decay of the mean and of the mean square, and what keeps the quotient finite
ADAM_DECAY = (0.9, 0.999)
ADAM_EPSILON = 1e-8
MOMENTUM = 0.9  # of "sgd", heavy ball, by default
POWER_STEPS = 100

# step(iteration, current, slope): move `current` against `slope`, both in place
Step = Callable[[int, Tensor, Tensor], None]


class MaskedLeastSquares:
    """A layer's least-squares problem on its mask, in the coordinates a solver works in.

    D, (d_in, d_in), is given in those; scale, (d_in,) or (), is the factor from weights to them.
    Raises what `helpers.paper.layer.Layer.of` raises.
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
        damping: float,
        precondition: bool,
    ) -> None:
        Layer.of(weight, gram, keep)
        self.keep = keep
        self.damping = damping
        # float16 weights are solved in float32: small steps would otherwise round to nothing
        kind = torch.promote_types(weight.dtype, torch.float32)
        self.D, self.scale = damped_system(
            gram.to(kind), damping, precondition=precondition
        )
        self.dense = weight.detach().to(kind) * self.scale
        with products("exact", self.D.device):
            self.target = self.dense @ self.D  # the gradient's constant part, once

    def gradient(self, current: Tensor, out: Tensor) -> Tensor:
        """2 (current − dense) D on the support and 0 elsewhere, written to `out`."""
        # −2 dense D + 2 current D: one product, and no matrix current − dense
        torch.addmm(self.target, current, self.D, beta=-2, alpha=2, out=out)
        # a gradient that is zero outside the mask leaves the pruned weights at zero
        return out.mul_(self.keep)

    def result(self, current: Tensor, solver: str, remedy: str) -> LayerResult:
        """The answer in the units of the original weight. Raises NonFinite if it diverged."""
        if not all_finite(current):
            raise NonFinite(f"{solver} diverged: give {remedy}")
        # back from s·Ŵ to Ŵ; column j is divided by s_j
        return LayerResult(current / self.scale, self.keep, damping=self.damping)


@validated
def gradient_refit(
    weight: Tensor,
    gram: Tensor,
    keep: Tensor,
    *,
    optimiser: one_of("adam", "sgd"),
    learning_rate: Positive,
    iterations: Count,
    damping: NotNegative = 0.1,
    momentum: NotNegative = MOMENTUM,
    precondition: Switch = False,
    trace: Trace | None = None,
) -> LayerResult:
    """Refit by full-batch gradient descent, 2 (Ŵ − W) D masked by `keep`, as AdaPrune does.

    Hubara et al., "Accelerated Sparse Neural Training", 2021, do this with Adam on a layer's
    outputs; the gradient over all calibration tokens needs nothing but the gram.

    Args:
        weight, gram, keep, iterations, damping, trace: as in `helpers.paper.admm.refit`.
        precondition: True to descend in inputs scaled to unit norm.
        learning_rate: relative, so that one suits every layer: for "adam" in units of the root mean
            square of the surviving weights, for "sgd" in units of 1/L with L the largest eigenvalue
            of 2 D.
        momentum: of "sgd", which stays finite with one below 1 and a learning rate below
            2 (1 + momentum).
    Raises BadParameter, and NonFinite if it diverged.
    """
    problem = MaskedLeastSquares(weight, gram, keep, damping, precondition)
    # the masked weight: what is left without any update
    current = problem.dense * keep
    with products("exact", current.device):
        if optimiser == "adam":
            # Adam's steps have the size of its rate for any slope, so it is measured in weights
            typical = (current.square().sum() / keep.sum().clamp(min=1)).sqrt().item()
            step = _adam(current, learning_rate * typical)
        else:
            # the gradient changes by at most L a unit of distance: a step of 1/L cannot overshoot
            step = _heavy_ball(current, learning_rate / _curvature(problem.D), momentum)
        slope = torch.empty_like(current)
        for iteration in range(1, iterations + 1):
            problem.gradient(current, out=slope)
            step(iteration, current, slope)
            if trace:
                trace(iteration, current / problem.scale, keep)
    return problem.result(current, optimiser, "a smaller learning rate or more damping")


def _adam(like: Tensor, rate: float) -> Step:
    """Adam's update (Kingma & Ba 2015) for weights shaped `like`, in place."""
    mean = torch.zeros_like(like)
    square = torch.zeros_like(like)
    root = torch.empty_like(like)
    first, second = ADAM_DECAY

    def step(iteration: int, current: Tensor, slope: Tensor):
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

    def step(_: int, current: Tensor, slope: Tensor):
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
    return 2 * vector.norm().item()


@validated
def conjugate_gradients(
    weight: Tensor,
    gram: Tensor,
    keep: Tensor,
    *,
    iterations: Count,
    damping: NotNegative = 0.1,
    precondition: Switch = True,
    start: Tensor | None = None,
    trace: Trace | None = None,
) -> LayerResult:
    """Refit by conjugate gradients (Hestenes & Stiefel 1952) on each output's own support.

    All outputs are solved together, each with its own step lengths. With `precondition` the inputs
    are scaled to unit norm, which is Jacobi's preconditioner. In exact arithmetic an output with k
    surviving weights is solved after k iterations. `start`, (d_out, d_in), is where it starts on
    the support, by default the masked weight.
    Arguments otherwise as in `helpers.paper.admm.refit`. Raises BadParameter, NonFinite.
    """
    problem = MaskedLeastSquares(weight, gram, keep, damping, precondition)
    current = problem.dense * keep
    if start is not None:
        current = start.to(current.dtype) * problem.scale * keep
    # Each output has a system A w = b of its own, with A = D on its support, and its own step
    # lengths. A is never formed: a product with D, masked, is a product with every output's A.
    # residual = b − A·current is half the negative gradient. Search directions are conjugate,
    # p A qᵀ = 0, so the minimum along one is not lost again by a step along a later one.
    with products("exact", current.device):
        residual = problem.gradient(current, out=torch.empty_like(current)).mul_(-0.5)
        search = residual.clone()
        image = torch.empty_like(current)
        size = _dot(residual, residual)
        for iteration in range(1, iterations + 1):
            # (d_out, d_in), row i: p A of output i, once its pruned columns are 0
            torch.mm(search, problem.D, out=image)
            image.mul_(problem.keep)
            # the minimum along the search direction
            length = _ratio(size, _dot(search, image))
            current.addcmul_(search, length)
            # b − A (x + α p) = residual − α A p: no second product with D
            residual.addcmul_(image, length, value=-1)
            before = size
            size = _dot(residual, residual)
            # the new residual, plus as much of the old direction as makes the two conjugate
            search.mul_(_ratio(size, before)).add_(residual)
            if trace:
                trace(iteration, current / problem.scale, keep)
    return problem.result(current, "conjugate gradients", "more damping")


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product of each output's row, shape (d_out, 1)."""
    return torch.linalg.vecdot(left, right).unsqueeze(1)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 for an output that has converged, where both are 0."""
    return torch.where(below > 0, above / below, 0)
