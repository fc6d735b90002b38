"""The recipe in one call: guide, prune, repair.

    tokens = calibration_tokens("embedded", tokenizer, sequences=windows_of("balanced"), length=512)
    report = prune_and_repair(model, tokens, sparsity=0.6, effort="balanced")

1. A backward pass for each of a few sequences says in which layers, and in which outputs of a
   layer, weights can be spared (`helpers.beyond.allocation.guide`).
2. ADMM-Grad, or another method of single layers, chooses the masks accordingly and refits what is
   left. The text runs through each block once (`helpers.waiting_batches`).
3. The kept weights of all layers are fitted to the dense model's predictions, on text that the
   pruning has not seen (`helpers.beyond.distil`).

The effort says how much text each step reads; the other arguments need not be changed. The steps
and their rates were decided on held-out windows of the calibration text.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Collection
from typing import Any, NamedTuple

from torch import Tensor, nn

from helpers.beyond.allocation import guide
from helpers.beyond.distil import distil
from helpers.beyond.training import check_float32
from helpers.errors import BadParameter
from helpers.loop import Loop, PruneReport, RunSettings
from helpers.masks import Pattern
from helpers.methods import get_method
from helpers.models import check_model, check_tokens
from helpers.options import check_choice
from helpers.progress import Progress, as_progress
from helpers.prune import check_dense, check_request, ignored_layers


class Effort(NamedTuple):
    """What the recipe may spend: sequences for the guide, and windows to train on, one a step."""

    guide: int
    repair: int


EFFORTS = {"fast": Effort(2, 0), "balanced": Effort(4, 64), "long": Effort(8, 240)}
SEQUENCES = 32  # of the calibration text, for the layers
HELD_OUT = 4  # windows that say which weights are the best


def windows_of(effort: str, sequences: int = SEQUENCES) -> int:
    """The windows of text that an effort needs, `sequences` of them for the layers.

    Raises BadParameter.
    """
    repair = EFFORTS[check_choice("effort", effort, EFFORTS)].repair
    return sequences + (repair + HELD_OUT if repair else 0)


def text_needed(method: str, effort: str, sequences: int) -> int:
    """The windows of calibration text that a run reads: `sequences` for the layers, none for a
    method that reads no text, and those of the repair too where there is an effort.

    Raises BadParameter.
    """
    if effort and method == "dense":
        raise BadParameter(
            f'effort {effort!r} is of a model that is pruned: give effort ""'
        )
    if effort:
        return windows_of(effort, sequences)
    return (
        sequences if method != "dense" and get_method(method).needs_calibration else 0
    )


def prune_and_repair(
    model: nn.Module,
    tokens: Tensor,
    *,
    sparsity: float | None = None,
    pattern: str | Pattern = "unstructured",
    effort: str = "balanced",
    method: str = "admm-grad",
    passes: int = 1,
    precision: str = "float32",
    batch: int | None = None,
    progress: Progress | bool = True,
    ignore: Collection[str] = (),
    **options: Any,
) -> PruneReport:
    """Guide, prune and repair a dense model in place: see the module's text.

    Args:
        tokens: int64 (windows, length), at least `windows_of(effort, 1)`. The last ones are for the
            repair, all before them for the layers, and the first of these for the guide too.
        sparsity: of all layers together; the guide finds that of each. An N:M pattern needs no
            guide: it gives all layers and outputs the same sparsity.
        effort: "fast", a short guide and no repair; "balanced"; or "long".
        method: of the layers.
        passes, precision, batch, options: as for `prune_model`; the precision is that of the repair
            too.
        progress: as for `prune_model`, called after each step of each part.
        ignore: as for `prune_model`; `sparsity` is then that of the other layers together. The
            repair trains the weights of all layers.

    To be repaired the model has to be in float32. Nothing changes before all of this is checked.
    The report's `repair` says what was done; its seconds have "guide" and "distil" too.
    Memory: a second model beside what `prune_model` and `distil` need.

    Raises what `guide`, `prune_model` and `distil` raise.
    """
    spend = EFFORTS[check_choice("effort", effort, EFFORTS)]
    check_model(model)
    check_dense(model, allow_pruned=False)
    check_tokens(model, tokens)
    if len(tokens) < (needed := windows_of(effort, 1)):
        raise BadParameter(
            f"effort {effort!r} needs {needed} windows of text or more, better "
            f"{windows_of(effort)}: there are {len(tokens)}"
        )
    started = time.perf_counter()
    repair_windows = windows_of(effort, 0)
    text, repair_text = tokens.split([len(tokens) - repair_windows, repair_windows])
    arguments = dict(options, sparsity=sparsity, pattern=pattern)
    progress, ignored = as_progress(progress), ignored_layers(model, ignore)
    settings = RunSettings(passes, precision, batch, progress, ignored=ignored)
    # all that the steps would refuse, before the first of them has taken its time
    check_request(model, text, method, arguments, settings)
    if spend.repair:
        check_float32(model)
    guided = not Pattern.parse(pattern).grouped
    if guided:
        asked = dict(sparsity=sparsity, progress=progress, ignored=ignored)
        spared = guide(model, text[: spend.guide], **asked)
        arguments["sparsity"] = spared.sparsity
        settings = dataclasses.replace(settings, importance=spared.importance)
    guide_seconds = time.perf_counter() - started
    dense = copy.deepcopy(model) if spend.repair else None
    report = Loop(model, method, arguments, settings).run(text)
    report.seconds["guide"] = guide_seconds
    report.repair = {"effort": effort, "guide": spend.guide if guided else 0}
    if dense is not None:
        training = {"held_out": HELD_OUT, "precision": precision, "progress": progress}
        repaired = distil(model, dense, repair_text, **training)
        report.repair |= repaired.to_dict()
        report.seconds["distil"] = repaired.seconds
    report.seconds["total"] = time.perf_counter() - started
    return report
