"""What this package has to remember of a model, carried by the model itself."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

# the attribute by which a model carries its state
STATE = "pruning_state"


@dataclass(frozen=True)
class PruningState:
    """Facts about a model that its weights do not show.

    identity: see `model_identity`, as `load_model` found it. reader: reads the weights of a model
    that is not in memory (`helpers.large.streaming`). interrupted: `prune_model` has changed a
    weight and has not finished. report: that of `prune_model`, once it has.
    """

    identity: dict | None = None
    reader: Any = None
    interrupted: bool = False
    report: Any = None


def state_of(model: nn.Module) -> PruningState:
    """The state of a model; that of a model which was loaded elsewhere is empty."""
    return getattr(model, STATE, PruningState())


def set_state(model: nn.Module, **changes: Any) -> None:
    """Change some fields of a model's state."""
    setattr(model, STATE, replace(state_of(model), **changes))
