"""The recipe in one call: allocate sparsity (the guide), prune, distil (the repair).

    tokens = calibration_tokens("embedded", tokenizer, sequences=windows_of("balanced"), length=512)
    report = prune_and_repair(model, tokens, sparsity=0.6, effort="balanced")

1. Gradients of the dense model on a few sequences give each layer its sparsity, and each output of
   a layer its importance (`helpers.beyond.allocation.guide`).
2. ADMM-Grad, or another layer method, chooses the masks accordingly and refits the kept weights.
   The text runs through each block once (`helpers.model.waiting_batches`).
3. The dense model is distilled into the kept weights of all layers, on text that the pruning has
   not seen (`helpers.beyond.distil`).

The effort is a preset for how much text each step reads; the other arguments need not be changed.
The steps and their rates were decided on held-out windows of the calibration text.
"""

import copy
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from helpers.beyond.allocation import guide
from helpers.beyond.distil import distil
from helpers.beyond.training import check_float32
from helpers.errors import BadParameter
from helpers.model.block_loop import Loop, PruneReport
from helpers.model.models import check_model, check_tokens
from helpers.model.prune import check_dense
from helpers.options import check_choice
from helpers.paper.masks import Pattern
from helpers.paper.methods import get_method
from helpers.progress import Progress, as_progress


class Effort(NamedTuple):
    """A budget preset: sequences for the guide, and windows of the repair, one for each step."""

    guide: int
    repair: int


EFFORTS = {"fast": Effort(2, 0), "balanced": Effort(4, 64), "long": Effort(8, 240)}
SEQUENCES = 32  # of the calibration text, for the layers
HELD_OUT = 4  # windows that say which weights are the best


def windows_of(effort: str, sequences: int = SEQUENCES) -> int:
    """How many windows of text an effort needs, with `sequences` of them for the layers.

    Raises BadParameter.
    """
    repair = EFFORTS[check_choice("effort", effort, EFFORTS)].repair
    return sequences + (repair + HELD_OUT if repair else 0)


def text_needed(method: str, effort: str, sequences: int) -> int:
    """How many windows of calibration text a run reads.

    With an effort those of `windows_of`; else `sequences`, or 0 where the method reads no text.
    Raises BadParameter.
    """
    if effort and method == "dense":
        raise BadParameter(
            f'effort {effort!r} has no meaning with method "dense": set effort = ""'
        )
    # an unknown method is refused here with an effort too: later the model has been loaded
    reads = method != "dense" and get_method(method).needs_calibration
    if effort:
        return windows_of(effort, sequences)
    return sequences if reads else 0


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
    """Guide, prune and repair a dense model in place.

    Args:
        tokens: int64 (windows, length), at least `windows_of(effort, 1)`. The last ones are for the
            repair, all before them for the layers, and the first of these for the guide too.
        sparsity: of all layers together; the guide finds that of each. An N:M pattern needs no
            guide: it gives all layers and outputs the same sparsity.
        effort: "fast", a short guide and no repair; "balanced"; or "long".
        method: the layer method.
        passes, precision, batch, options: as for `prune_model`; the repair has the same precision.
        progress: as for `prune_model`, called after each step of each part.
        ignore: as for `prune_model`; `sparsity` is then that of the other layers together. The
            repair trains the weights of all layers.

    The repair needs a model in float32. All arguments are checked before a weight changes.
    The report's `repair` says what was done; its seconds have "guide" and "distil" too.
    Memory: a second model, in addition to what `prune_model` and `distil` need.

    Raises what `guide`, `prune_model` and `distil` raise.
    """
    if "keep" in options:
        raise BadParameter(
            "prune_and_repair chooses its masks itself and takes no keep=: use prune_model"
        )
    needed = windows_of(effort, 1)
    budget = EFFORTS[effort]
    check_model(model)
    check_dense(model, allow_pruned=False)
    check_tokens(model, tokens)
    if len(tokens) < needed:
        raise BadParameter(
            f"effort {effort!r} needs {needed} windows of text or more, better "
            f"{windows_of(effort)}: there are {len(tokens)}"
        )
    started = time.perf_counter()
    progress = as_progress(progress)
    repair_windows = windows_of(effort, 0)
    text, repair_text = tokens.split([len(tokens) - repair_windows, repair_windows])
    # all that the steps would refuse, before the first of them has taken its time
    loop = Loop(
        model,
        text,
        method=method,
        options=options,
        sparsity=sparsity,
        pattern=pattern,
        passes=passes,
        precision=precision,
        batch=batch,
        progress=progress,
        ignore=ignore,
    )
    if budget.repair:
        check_float32(model)
    guided = not loop.target.pattern.grouped
    if guided:
        found = guide(
            model,
            text[: budget.guide],
            sparsity=sparsity,
            progress=progress,
            ignore=ignore,
        )
        loop.target = replace(loop.target, sparsity=found.sparsity)
        loop.importance = found.importance
    guide_seconds = time.perf_counter() - started
    dense = copy.deepcopy(model) if budget.repair else None
    report = loop.run()
    report.seconds["guide"] = guide_seconds
    report.repair = {"effort": effort, "guide": budget.guide if guided else 0}
    if dense is not None:
        repaired = distil(
            model,
            dense,
            repair_text,
            held_out=HELD_OUT,
            precision=precision,
            progress=progress,
        )
        report.repair |= repaired.to_dict()
        report.seconds["distil"] = repaired.seconds
    report.seconds["total"] = time.perf_counter() - started
    return report
