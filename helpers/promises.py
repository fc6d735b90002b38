"""What a method promises beyond its answer's form, tried out on a small layer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from helpers.errors import HelpersError
from helpers.gram import gram_of
from helpers.methods import LayerResult, get_method

TARGETS = {"unstructured 50 %": (0.5, "unstructured"), "2:4": (None, "2:4"), "4:8": (None, "4:8")}


@dataclass(frozen=True)
class Promise:
    """One promise of a method, and why it is broken; `broken` is empty for one that is kept."""

    what: str
    broken: str

    @property
    def kept(self) -> bool:
        """Whether the method keeps it."""
        return not self.broken


def check_method(name: str) -> list[Promise]:
    """The promises of the method `name`, each tried on a layer of 24 outputs and 32 inputs.

    Beside what the registry checks of each answer: that a given mask is used, that the same
    question gets the same answer, and that a layer which loses no weight stays as it is. A method
    that raises a HelpersError breaks the promise that was being tried; another error is raised.
    Raises BadParameter.
    """
    method = get_method(name)
    source = torch.Generator().manual_seed(0)
    # eight tokens an input, so only the dead input makes the gram singular; the second factor
    # correlates the inputs, as real ones are
    inputs = torch.randn(256, 32, generator=source) @ torch.randn(32, 32, generator=source)
    inputs[:, 5] = 0  # one dead input, whose weights do not matter
    alive = torch.arange(32) != 5
    gram, dense = gram_of(inputs), torch.randn(24, 32, generator=source)
    # every other column: a mask that no method would choose by itself
    half = (torch.arange(dense.numel()) % 2 == 0).reshape(dense.shape)

    def ask(**target: Any) -> LayerResult:
        # copies, so that what breaks one promise cannot spoil the next
        return method(dense.clone(), gram.clone(), **target)

    def answers(sparsity: float | None, pattern: str) -> str:
        ask(sparsity=sparsity, pattern=pattern)  # the registry checks what comes back
        return ""

    def uses_the_mask() -> str:
        return (
            ""
            if torch.equal(ask(keep=half).keep, half)
            else "it returned a mask other than the one given"
        )

    def repeats() -> str:
        same = torch.equal(ask(sparsity=0.5).weight, ask(sparsity=0.5).weight)
        return "" if same else "two runs differ: draw random numbers from a seeded generator"

    def leaves_dense() -> str:
        # the tolerance is for a solver's rounding; a dead input's weights may change
        new = ask(sparsity=0.0).weight
        close = torch.allclose(new[:, alive], dense[:, alive], rtol=1e-2, atol=1e-2)
        changed = "it changed weights at sparsity 0, where the dense weights are the optimum"
        return "" if close else changed

    checks: dict[str, Callable[[], str]] = {
        f"an exact answer for {name}": functools.partial(answers, *target)
        for name, target in TARGETS.items()
    }
    checks["a mask that is given is used"] = uses_the_mask
    checks["the same answer twice"] = repeats
    checks["at sparsity 0 the weights stay"] = leaves_dense
    promises = []
    for what, broken in checks.items():
        try:
            promises.append(Promise(what, broken()))
        except HelpersError as error:
            promises.append(Promise(what, str(error)))
    return promises
