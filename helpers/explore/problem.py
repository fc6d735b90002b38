"""A layer's problem, cut down until ADMM solves it as quickly as a slider moves."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from helpers.gram import Gram, relative_error
from helpers.layer import LayerResult
from helpers.methods import METHODS

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


class Solution(NamedTuple):
    """A layer solved by ADMM, with error and mask after each iteration."""

    result: LayerResult
    errors: list[float]
    keeps: list[Tensor]
    mask_steps: int


class LayerProblem:
    """The weight (outputs, d_in) of a layer and the Gram matrix of its inputs.

    Of a large layer only the first outputs are taken, as `MOST_MULTIPLICATIONS` allows, and `title`
    says so. They are solved as a layer of their own: a mask has one budget for a whole matrix, so
    the masks are not those of the whole layer.
    """

    def __init__(self, name: str, weight: Tensor, gram: Tensor) -> None:
        total, width = weight.shape
        outputs = min(total, max(LEAST_OUTPUTS, MOST_MULTIPLICATIONS // width**2))
        self.weight = weight[:outputs].detach().float()
        self.gram = Gram.of(gram)
        self.squared_norms = self._squared_norms(self.weight)  # ‖Xw‖² of each output
        self.title = name
        if outputs < total:
            self.title += f", first {outputs} of {total} outputs, solved alone"

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
        lost = self._squared_norms(self.weight - new)
        return torch.where(self.squared_norms > 0, lost / self.squared_norms, 0.0)

    def error(self, new: Tensor) -> float:
        """‖XW − XŴ‖² / ‖XW‖², of all outputs together."""
        return relative_error(self.weight, new, self.gram.matrix)

    def _squared_norms(self, rows: Tensor) -> Tensor:
        return (rows @ self.gram.matrix).mul_(rows).sum(1).clamp_(min=0)
