"""Does a method keep the promises that every layer method makes? Asked on small random layers.

The registry refuses a wrong answer whenever a method runs (see `helpers.methods`). Here a new
method is asked before it meets a model, on all patterns, and for what the registry cannot see
from one answer: that it uses a mask that it is given, answers the same twice, and leaves a layer
alone that loses no weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.errors import HelpersError
from helpers.gram import gram_of
from helpers.methods import Method, get_method

TARGETS = {"unstructured 50 %": (0.5, "unstructured"), "2:4": (None, "2:4"), "4:8": (None, "4:8")}
Check = Callable[[Method, Tensor, Tensor], str | None]


@dataclass(frozen=True)
class Promise:
    """One promise, and why it is broken; `broken` is empty for one that is kept."""

    what: str
    broken: str

    @property
    def kept(self) -> bool:
        """Whether the method keeps it."""
        return not self.broken


def check_method(name: str) -> list[Promise]:
    """The promises of the method `name`, each tried on a layer of 24 outputs and 32 inputs.

    A method that raises breaks the promise that was being tried, and its error is the reason;
    a bug in it other than a HelpersError is raised, with the place where it happened.
    Raises UnknownMethod.
    """
    method = get_method(name)
    return [Promise(what, _reason(check, method) or "") for what, check in _checks()]


def _reason(check: Check, method: Method) -> str | None:
    """Why the promise is broken, None if it is kept."""
    weight, gram = _layer()
    try:
        return check(method, weight, gram)
    except HelpersError as error:
        return str(error)


def _layer() -> tuple[Tensor, Tensor]:
    """A weight and the gram of correlated inputs, of which one is dead."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    inputs[:, 5] = 0
    return torch.randn(24, 32, generator=generator), gram_of(inputs)


def _checks() -> Iterator[tuple[str, Check]]:
    """What is promised, and how it is tried."""
    for target, (sparsity, pattern) in TARGETS.items():
        # the registry checks shape, mask, sparsity and zeros of the answer
        yield (
            f"an exact answer for {target}",
            functools.partial(_answers, sparsity=sparsity, pattern=pattern),
        )
    yield "a mask that is given is used", _uses_the_mask
    yield "weight and gram are left alone", _leaves_arguments
    yield "the same answer twice", _repeats
    yield "a layer that needs no pruning stays", _keeps_all


def _answers(
    method: Method, weight: Tensor, gram: Tensor, *, sparsity: float | None, pattern: str
) -> None:
    """A wrong answer raises."""
    method(weight, gram, sparsity=sparsity, pattern=pattern)


def _uses_the_mask(method: Method, weight: Tensor, gram: Tensor) -> str | None:
    """Every other weight is to stay."""
    keep = (torch.arange(weight.numel()) % 2 == 0).reshape(weight.shape)
    result = method(weight, gram, sparsity=None, keep=keep)
    return None if torch.equal(result.keep, keep) else "it returned another mask than keep="


def _leaves_arguments(method: Method, weight: Tensor, gram: Tensor) -> str | None:
    """They are the model's own weights: a method that works in place would prune twice."""
    before = weight.clone(), gram.clone()
    method(weight, gram, sparsity=0.5)
    changed = [
        name
        for name, now, old in zip(("weight", "gram"), (weight, gram), before, strict=True)
        if not torch.equal(now, old)
    ]
    return f"it changed {' and '.join(changed)} in place: work on a copy" if changed else None


def _repeats(method: Method, weight: Tensor, gram: Tensor) -> str | None:
    """A number that cannot be had again is no result."""
    first, second = (method(weight, gram, sparsity=0.5).weight for _ in range(2))
    same = torch.equal(first, second)
    return None if same else "two runs differ: draw random numbers from a generator with a seed"


def _keeps_all(method: Method, weight: Tensor, gram: Tensor) -> str | None:
    """At sparsity 0 the dense weights are the optimum, and there is nothing to update."""
    alive = torch.arange(weight.shape[1]) != 5  # the dead input's weights do not matter
    new = method(weight, gram, sparsity=0.0).weight
    close = torch.allclose(new[:, alive], weight[:, alive], rtol=1e-2, atol=1e-2)
    return None if close else "it changed weights at sparsity 0, where the dense ones are best"
