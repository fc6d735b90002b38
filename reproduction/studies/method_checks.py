"""Behavioural checks of a pruning method on a small random layer, for notebook 07."""

from typing import Any

import torch

from helpers.errors import HelpersError
from helpers.model.checks import random_layer
from helpers.paper.gram import gram_of
from helpers.paper.layer import LayerResult
from helpers.paper.methods import get_method


def check_method(name: str) -> dict[str, str]:
    """Check the behaviour of a registered method on a layer of 24 x 32 weights.

    Returns each requirement with the reason why the method fails it, "" where it passes: the
    checks of `register` hold for a result, a mask that is passed is used, the same arguments give
    the same result, and at sparsity 0 the weights stay. A HelpersError counts as failing; any other
    error is raised. Raises BadParameter for a method that does not exist.
    """
    method = get_method(name)
    # eight tokens an input, so only the dead input makes the gram singular
    dense, inputs = random_layer(24, 32, 256)
    inputs[:, 5] = 0  # one dead input, whose weights do not matter
    alive = torch.arange(32) != 5
    gram = gram_of(inputs)
    # every other column: a mask that no method would choose by itself
    half = (torch.arange(dense.numel()) % 2 == 0).reshape(dense.shape)

    def solve(**target: Any) -> LayerResult:
        # copies, so that what fails in one trial cannot spoil the next
        return method(dense.clone(), gram.clone(), **target)

    def uses_the_mask():
        if not torch.equal(solve(keep=half).keep, half):
            raise HelpersError("it returned a mask other than the one given")

    def repeats():
        if not torch.equal(solve(sparsity=0.5).weight, solve(sparsity=0.5).weight):
            raise HelpersError(
                "two runs differ: draw random numbers from a seeded generator"
            )

    def leaves_dense():
        # the tolerance is for a solver's rounding; a dead input's weights may change
        new = solve(sparsity=0.0).weight
        if not torch.allclose(new[:, alive], dense[:, alive], rtol=1e-2, atol=1e-2):
            raise HelpersError(
                "it changed weights at sparsity 0, where the dense ones are best"
            )

    trials = {
        # `register` has put checks around the method: they look at what comes back
        "an exact answer for unstructured 50 %": lambda: solve(sparsity=0.5),
        "an exact answer for 2:4": lambda: solve(pattern="2:4"),
        "an exact answer for 4:8": lambda: solve(pattern="4:8"),
        "a mask that is given is used": uses_the_mask,
        "the same answer twice": repeats,
        "at sparsity 0 the weights stay": leaves_dense,
    }
    problems = dict.fromkeys(trials, "")
    for what, trial in trials.items():
        try:
            trial()
        except HelpersError as error:
            problems[what] = str(error)
    return problems
