"""The recipe: guide, prune, repair. One name and one knob.

    tokens = calibration_tokens("embedded", tokenizer, sequences=windows_of("balanced"), length=512)
    report = prune_model(model, tokens, method="best", budget="balanced", sparsity=0.6)

1. A backward pass for each of a few sequences says in which layers, and in which outputs of a
   layer, weights can be spared (`helpers.beyond.allocate.guide`).
2. A method of single layers, ADMM-Grad, chooses the masks accordingly and refits what is left. The
   text runs through each block once (`helpers.one_pass`).
3. The kept weights of all layers are fitted to the dense model's predictions, on text that the
   pruning has not seen (`helpers.beyond.distil`).

The budget says how much text each step reads; nothing else is to be chosen. The steps and their
rates were decided on held-out windows of the calibration text.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from helpers.beyond.allocate import guide
from helpers.beyond.distil import distil
from helpers.beyond.training import check_float32
from helpers.capture import Progress, check_tokens
from helpers.errors import BadParameter, check_choice
from helpers.loop import BlockHook, PruneReport
from helpers.masks import Pattern
from helpers.methods import RECIPES, check_options, get_method
from helpers.models import check_model, device_of, model_layers
from helpers.precision import PRECISIONS, precision_for
from helpers.prune import check_dense, check_request, prune_model


class Budget(NamedTuple):
    """What a recipe may spend: sequences for the guide, and windows to train on, one a step."""

    guide: int
    repair: int


BUDGETS = {"fast": Budget(2, 0), "balanced": Budget(4, 64), "long": Budget(8, 240)}
# the recipe's own options; all others are those of the base method
USUAL = {"base": "admm-grad", "budget": "balanced", "precision": "auto"}
SEQUENCES = 32  # of the calibration text, for the layers
HELD_OUT = 4  # windows that say which weights are the best


def windows_of(budget: str, sequences: int = SEQUENCES) -> int:
    """The windows of text that a budget needs, `sequences` of them for the layers.

    Raises BadParameter.
    """
    repair = BUDGETS[check_choice("budget", budget, BUDGETS)].repair
    return sequences + (repair + HELD_OUT if repair else 0)


def text_needed(method: str, sequences: int, options: Mapping[str, Any]) -> int:
    """The windows of calibration text that `prune_model` is to be given: `sequences` for the
    layers, none for a method that reads no text, and those of its repair too for a recipe.

    Raises BadParameter for an option that a method does not take.
    """
    if method in RECIPES:
        own = {name: options.get(name, usual) for name, usual in USUAL.items()}
        check_recipe(own, {name: options[name] for name in options if name not in own})
        return windows_of(own["budget"], sequences)
    check_options(method, options)
    return sequences if get_method(method).needs_calibration else 0


def check_recipe(own: Mapping[str, str], options: Mapping[str, Any]) -> None:
    """Raise if one of the recipe's own options, or an option of its base method, does not exist.

    Args: own, a value for each key of USUAL. Raises BadParameter.
    """
    base = own["base"]
    check_choice("budget", own["budget"], BUDGETS)
    check_choice("precision", own["precision"], PRECISIONS)
    if base in RECIPES:
        raise BadParameter(f"base {base!r} is a recipe itself: give a method of single layers")
    try:
        check_options(base, dict(options))
    except BadParameter as error:
        raise BadParameter(f"{error}; method 'best' itself takes {', '.join(USUAL)}") from error


def best(
    model: nn.Module,
    tokens: Tensor | None,
    *,
    sparsity: float | None = None,
    pattern: str | Pattern = "unstructured",
    passes: int = 1,
    budget: str = USUAL["budget"],
    base: str = USUAL["base"],
    precision: str = USUAL["precision"],
    batch: int | None = None,
    progress: Progress | None = None,
    importance: None = None,
    allow_pruned: bool = False,
    before_block: BlockHook | None = None,
    after_block: BlockHook | None = None,
    **options: Any,
) -> PruneReport:
    """Guide, prune and repair a dense model in place: see the module's text.

    Args: tokens, int64 (windows, length), at least `windows_of(budget, 1)`: the last ones are for
    the repair, all before them for the layers, and the first of these for the guide too; base, the
    method of the layers; passes, by default one; precision, of the products with the text, in all
    steps; progress, called after each step of each part; others, as for `prune_model`, and
    options, of the base method. Importance and the sparsity of each layer are found here, and the
    model has to be dense and, to be repaired, in float32. An N:M pattern needs no guide:
    it gives all layers and outputs the same sparsity. `budget` is the recipe's, so a method with an
    option of that name has its default (in Wanda a budget for each output, within which importance
    cannot matter).

    The report's `repair` says what was done; its seconds have "guide" and "distil" too.
    Memory: a second model beside what `prune_model` and `distil` need.
    Raises what `guide`, `prune_model` and `distil` raise.
    """
    if allow_pruned:
        raise BadParameter(
            "method 'best' needs the dense model to compare with: leave allow_pruned out"
        )
    if importance is not None or isinstance(sparsity, Mapping):
        raise BadParameter(
            "method 'best' finds importance and the sparsity of each layer itself: give one "
            "sparsity, and no importance"
        )
    check_recipe({"base": base, "budget": budget, "precision": precision}, options)
    check_model(model)
    check_dense(model, allow_pruned=False)
    if tokens is not None:
        check_tokens(model, tokens)
    needed = windows_of(budget, 1)
    if tokens is None or len(tokens) < needed:
        raise BadParameter(
            f"budget {budget!r} needs {needed} windows of text or more, better "
            f"{windows_of(budget)}: there are {0 if tokens is None else len(tokens)}"
        )
    started = time.perf_counter()
    spend = BUDGETS[budget]
    repair_windows = spend.repair + HELD_OUT if spend.repair else 0
    text, unseen = tokens.split([len(tokens) - repair_windows, repair_windows])
    target: dict[str, Any] = {"sparsity": sparsity, "pattern": pattern}
    hooks = {"before_block": before_block, "after_block": after_block}
    # all that the steps would refuse, before the first of them has taken its time
    check_request(model, text, base, batch, target | options, hooks, passes)
    own = next(model.parameters()).dtype
    precision = precision_for(own, precision, device_of(model))
    if spend.repair:
        check_float32(model, model_layers(model))
    guided = not Pattern.parse(pattern).grouped
    if guided:
        found = guide(model, text[: spend.guide], sparsity=sparsity, progress=progress)
        target |= {"sparsity": found.sparsity, "importance": found.importance}
    guide_seconds = time.perf_counter() - started
    dense = copy.deepcopy(model) if spend.repair else None
    how = {"passes": passes, "precision": precision, "batch": batch, "progress": progress}
    report = prune_model(model, text, method=base, **how, **hooks, **target, **options)
    report.seconds["guide"] = guide_seconds
    report.method = "best"
    report.repair = {"base": base, "budget": budget, "guide": spend.guide if guided else 0}
    if dense is not None:
        done = distil(
            model, dense, unseen, held_out=HELD_OUT, precision=precision, progress=progress
        )
        report.repair |= done.to_dict()
        report.seconds["distil"] = done.seconds
    report.seconds["total"] = time.perf_counter() - started
    return report
