"""What a layer is to become, the problem that this sets, and a method's result for it.

A `Target` names a method and a sparsity or a pattern; an entry point such as
`helpers.model.prune.prune_model` makes one of its arguments, and the block loop carries it to the
method. The problem is then to minimise ‖XW − XŴ‖² over Ŵ that is zero outside a mask, which is
given or still to be chosen. `Layer.of` checks weight, gram, mask and target once; code that takes a
`Layer` trusts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from helpers.device import all_finite, check_matrix
from helpers.errors import NonFinite
from helpers.paper.gram import Gram
from helpers.paper.masks import Pattern, check_divides, check_keep, target_sparsity

# a fraction for all layers, one for each by its `layer_key`, or None where N:M implies it
Sparsity = float | Mapping[str, float] | None


@dataclass(frozen=True)
class Target:
    """How layers are to be pruned.

    method: a name in `METHODS`, or of a file in helpers/own. sparsity: the fraction of weights set
    to zero. options: those of the method, such as rho or damping.
    """

    method: str
    sparsity: Sparsity = None
    pattern: Pattern = Pattern()
    options: Mapping[str, Any] = field(default_factory=dict)

    def of_layer(self, key: str) -> Target:
        """The target of one layer of a model, which has one number as its sparsity."""
        if not isinstance(self.sparsity, Mapping):
            return self
        return replace(self, sparsity=self.sparsity[key])


@dataclass(frozen=True)
class Layer:
    """A layer to be pruned or refitted.

    weight: (d_out, d_in), any float type. gram: the Gram matrix of its inputs, (d_in, d_in), None
    for a method that reads none. sparsity, pattern: of the zeros in the end.
    """

    weight: Tensor
    gram: Gram | None
    sparsity: float
    pattern: Pattern

    @classmethod
    def of(
        cls,
        weight: Tensor,
        gram: Tensor | Gram | None,
        keep: Tensor | None = None,
        *,
        sparsity: float | None = None,
        pattern: str | Pattern = "unstructured",
    ) -> Layer:
        """Make a layer of parts that fit: a mask, or a sparsity and pattern to choose one by.

        keep: the mask, boolean like weight, True where a weight stays; None if it is to be chosen.
        A gram that is a `Gram` is checked only once, however many layers share it.
        Raises BadParameter, NonFinite, NotPositiveDefinite.
        """
        # first the weight, then what it is to become; last the gram, which takes longest to check
        check_matrix("weight", weight)
        if not all_finite(weight):
            raise NonFinite(
                "weight holds NaN or infinity: check the checkpoint it comes from"
            )
        pattern = Pattern.parse(pattern)
        if keep is None:
            sparsity = target_sparsity(sparsity, pattern)
        else:
            sparsity = check_keep(keep, weight.shape, sparsity, pattern)
        check_divides(pattern, weight.shape[1])
        if gram is not None:
            gram = Gram.of(gram).checked(weight.shape[1])
        return cls(weight, gram, sparsity, pattern)


@dataclass(frozen=True)
class LayerResult:
    """What a method returns for one layer.

    weight: (d_out, d_in), zero outside keep. keep: bool, True where a weight stays.
    damping: the ridge that was used, as a fraction of mean(diag), None if the method has none.
    error: ‖XW − XŴ‖²/‖XW‖² on the calibration gram. dead_inputs: the number of inputs that were
    zero on every calibration token. Both are filled in where a method is called through METHODS
    with a gram, and are None elsewhere: after `refit`, for example (see `relative_error`).
    """

    weight: Tensor
    keep: Tensor
    error: float | None = None
    damping: float | None = None
    dead_inputs: int | None = None
