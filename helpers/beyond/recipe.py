"""The recipe: prune layer by layer, then repair the model as a whole. One name and one knob.

    tokens = calibration_tokens("embedded", tokenizer, sequences=windows_of("balanced"), length=512)
    report = prune_model(model, tokens, method="best", budget="balanced", sparsity=0.6)

The layers are pruned on the first windows of the text and repaired on the others, which the
pruning has not seen. The budget says how many those are; nothing else is to be chosen. What the
steps are, and with which rates, was decided on held-out windows of the calibration text.
"""

from __future__ import annotations

import copy
import time
from typing import Any

from torch import Tensor, nn

from helpers.beyond.distil import distil
from helpers.capture import Progress
from helpers.errors import BadParameter, CalibrationTooShort, check_choice
from helpers.loop import PruneReport
from helpers.prune import RECIPES, check_dense, prune_model

# windows to train on, by budget: one step each
BUDGETS = {"fast": 8, "balanced": 64, "long": 240}
SEQUENCES = 32  # of the calibration text, for the layers
HELD_OUT = 4  # windows that say which weights are the best


def windows_of(budget: str, sequences: int = SEQUENCES) -> int:
    """The windows of text that a budget needs, `sequences` of them for the layers.

    Raises BadParameter.
    """
    return sequences + BUDGETS[check_choice("budget", budget, BUDGETS)] + HELD_OUT


def best(
    model: nn.Module,
    tokens: Tensor | None,
    *,
    budget: str = "balanced",
    base: str = "admm-grad",
    progress: Progress | None = None,
    precision: str = "auto",
    **arguments: Any,
) -> PruneReport:
    """Prune a dense model in place by a method of single layers and distil what is left.

    Args: tokens, int64 (windows, length), at least `windows_of(budget, 1)`: the last ones are for
    the repair (see `helpers.beyond.distil`), all before them for the layers; base, the method of
    the layers; precision, of the products in the repair; progress, called after each layer and
    each step; arguments, those of `prune_model` and of the base method.

    Memory: a second model beside what `prune_model` and `distil` need.
    Raises what these two raise.
    """
    if base in RECIPES:
        raise BadParameter(f"base {base!r} is a recipe itself: give a method of single layers")
    if arguments.get("allow_pruned"):
        raise BadParameter(
            "method 'best' needs the dense model to compare with: leave allow_pruned out"
        )
    needed = windows_of(budget, 1)
    if tokens is None or len(tokens) < needed:
        raise CalibrationTooShort(
            f"budget {budget!r} needs {needed} windows of text or more, better "
            f"{windows_of(budget)}: there are {0 if tokens is None else len(tokens)}"
        )
    started = time.perf_counter()
    check_dense(model, allow_pruned=False)
    dense = copy.deepcopy(model)
    text = tokens[-(BUDGETS[budget] + HELD_OUT) :]
    report = prune_model(
        model, tokens[: len(tokens) - len(text)], method=base, progress=progress, **arguments
    )
    repair = distil(model, dense, text, held_out=HELD_OUT, precision=precision, progress=progress)
    report.method, report.repair = "best", {"base": base, "budget": budget} | repair.to_dict()
    report.seconds |= {"distil": repair.seconds, "total": time.perf_counter() - started}
    return report
