"""What a layer is to become: a method, a sparsity or a pattern, and the method's options.

An entry point such as `helpers.prune.prune_model` makes a `Target` of its arguments, and the block
loop carries it to the method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from helpers.masks import Pattern

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
