"""One run that prunes and repairs a model: what it is asked for, its text, and its metrics.

The steps themselves are `allocate`, `prune_model` with the hooks of `BlockSteps`, and `distil`.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from helpers.beyond.allocate import RULES, allocate, guide
from helpers.beyond.blocks import BlockStep, Compensate, Refine
from helpers.beyond.distil import DistilReport
from helpers.beyond.recipe import HELD_OUT
from helpers.beyond.survey import watched_inputs
from helpers.beyond.training import PARTS
from helpers.capture import Progress, capture, check_tokens, eval_mode
from helpers.data.corpora import calibration_tokens
from helpers.device import pick_dtype
from helpers.errors import BadParameter, check_choice, check_whole
from helpers.loop import PruneReport
from helpers.masks import Pattern, check_target
from helpers.methods import get_method
from helpers.models import device_of, model_layers, read_weight
from helpers.precision import PRECISIONS, precision_for
from helpers.prune import check_passes
from helpers.replay import best_batch

GUIDE = "guide"
BLOCK_STEPS = ("compensate", "refine", "compensate + refine")


def check_way(asked: Mapping[str, Any]) -> None:
    """Raise for what of a run's parameters can be refused before a model is loaded.

    Raises BadParameter.
    """
    get_method(asked["method"])
    check_target(asked["sparsity"], asked["pattern"])
    check_choice("allocation", asked["allocation"], (*RULES, GUIDE))
    for name, choices in (("block_steps", BLOCK_STEPS), ("repair", PARTS)):
        if asked[name] != "":  # which is to leave it out
            check_choice(name, asked[name], choices)
    if check_choice("precision", asked["precision"], PRECISIONS) != "auto":
        precision_for(pick_dtype(asked["dtype"], "cpu"), asked["precision"], torch.device("cpu"))
    check_passes(asked["passes"], after_block="refine" in asked["block_steps"])
    if (asked["block_steps"] or asked["repair"]) and asked["dtype"] != "float32":
        raise BadParameter(
            f"dtype {asked['dtype']!r} cannot be trained, small steps would round to nothing: give "
            '"float32", or block_steps "" and repair ""'
        )
    if asked["allocation"] != "uniform" and Pattern.parse(asked["pattern"]).grouped:
        raise BadParameter(
            f"pattern {asked['pattern']!r} gives every layer the same sparsity: set allocation to "
            '"uniform"'
        )
    if asked["repair"]:
        check_pool(asked["repair_windows"], asked["pool"])
    if asked["allocation"] != GUIDE:
        return
    if check_whole("guide_sequences", asked["guide_sequences"]) > asked["sequences"]:
        raise BadParameter(
            f"guide_sequences {asked['guide_sequences']} are more than the {asked['sequences']} "
            "sequences: give fewer, or more sequences"
        )


def check_pool(repair: int, pool: int) -> None:
    """Raise BadParameter unless a pool has the windows of a repair."""
    if repair < 1 or repair + HELD_OUT > pool:
        raise BadParameter(
            f"repair_windows {repair} do not fit a pool of {pool}, with the {HELD_OUT} held out: "
            f"give 1 to {pool - HELD_OUT}, or a larger pool"
        )


class Windows(NamedTuple):
    """Windows of calibration text, int64 (windows, length) each; see `draw_windows`."""

    every: Tensor  # all that were drawn
    web: Tensor  # for evaluation
    layers: Tensor
    repair: Tensor  # the last HELD_OUT of them are never trained on


def draw_windows(
    source: str | os.PathLike[str],
    tokenizer: Any,
    *,
    web: int,
    layers: int,
    repair: int,
    pool: int,
    length: int,
    seed: int,
) -> Windows:
    """Draw all text of a run at once, so that its parts do not overlap as long as the text lasts.

    A longer repair sees what a shorter one has seen, in the same order, and more: it takes the
    first `repair` windows of a pool that has one size in all runs, and holds out those after them.
    Raises BadParameter and what `calibration_tokens` raises.
    """
    check_pool(repair, pool)
    drawn = dict(sequences=web + layers + pool, length=length, seed=seed)
    every = calibration_tokens(source, tokenizer, **drawn)
    parts = every.split([web, layers, pool])
    return Windows(every, *parts[:2], parts[2][: repair + HELD_OUT])


def shared_out(
    model: nn.Module,
    tokens: Tensor,
    allocation: str,
    *,
    guided_by: int,
    progress: Progress,
    **target: Any,
) -> dict[str, Any]:
    """Where a model loses its weights, for `prune_model`: its `sparsity`, and `importance` if the
    allocation is "guide"; other allocations are the rules of `allocate`.

    Args: guided_by, the sequences that "guide" reads; target, the sparsity and pattern.
    Raises what `allocate` and `guide` raise.
    """
    if allocation == "uniform":
        return {"sparsity": target["sparsity"]}
    if allocation != GUIDE:
        return {"sparsity": allocate(model, tokens, rule=allocation, progress=progress, **target)}
    found = guide(model, tokens[:guided_by], progress=progress, **target)
    return {"sparsity": found.sparsity, "importance": found.importance}


class BlockSteps:
    """The steps of BLOCK_STEPS, or none for "", for one run of `prune_model`, which gets `hooks`.

    Compensate and refine follow one dense stream. Raises what `Refine` and `Compensate` raise.
    """

    def __init__(self, model: nn.Module, tokens: Tensor, names: str, precision: str) -> None:
        self.steps: dict[str, BlockStep] = {}
        self.hooks: dict[str, Any] = {}
        if "compensate" in names:
            step = self.steps["compensate"] = Compensate(model, tokens, precision=precision)
            self.hooks["before_block"] = step.before
        if "refine" in names:
            dense = self.steps["compensate"].dense if self.steps else None
            step = self.steps["refine"] = Refine(model, tokens, precision=precision, dense=dense)
            self.hooks = {"before_block": step.before, "after_block": step.after} | self.hooks

    def seconds(self, report: PruneReport, taken: float) -> dict[str, float]:
        """The seconds of the layers, in all ("prune") and by part, and of the steps ("block").

        Args: taken, since before the steps were made.
        """
        parts = dict(report.seconds)
        total = parts.pop("total")
        # the loop times its own parts: the rest is what the steps took
        own = sum(parts.values()) if self.steps else total
        return {"prune": own, "block": taken - own if self.steps else 0.0, **parts}

    def to_dict(self) -> dict[str, Any]:
        """What each step did, as plain values for a record."""
        return {name: step.to_dict() for name, step in self.steps.items()}


def layer_errors(
    model: nn.Module, dense: nn.Module, tokens: Tensor, *, progress: Progress | None = None
) -> dict[str, float]:
    """Relative error ‖XW − XŴ‖²/‖XW‖² of each layer on any text, by `layer_key`.

    X is the layer's input in the pruned model, and W its weight in the dense one. On the
    calibration text that is the error in the report of a run with one pass, unless a step has
    changed W before pruning. Args: tokens, int64 (windows, length). An expert that no token reaches
    is left out. Raises BadParameter for tokens that do not suit the model.
    """
    check_tokens(model, tokens)
    before, after = model_layers(dense), model_layers(model)
    sums = {key: [0.0, 0.0] for key in after}  # of ‖XW‖² and of ‖XW − XŴ‖²

    def see(key: str, given: Tensor) -> None:
        inputs, weight = given.flatten(0, -2).float(), read_weight(before[key]).float()
        change = weight - read_weight(after[key]).float()
        for place, matrix in enumerate((weight, change)):
            sums[key][place] += float((inputs @ matrix.T).square().sum())

    batches = tokens.split(best_batch(device_of(model), tokens.shape[1]))
    with eval_mode(model), watched_inputs(after, see):
        for done, rows in enumerate(batches, 1):
            capture(model, rows, head=False)  # ends after the last block
            if progress:
                progress(done, len(batches), "windows")
    return {key: lost / total for key, (total, lost) in sums.items() if total > 0}


def way_metrics(
    perplexities: Mapping[str, float],
    seconds: Mapping[str, float],
    report: PruneReport,
    repaired: DistilReport | None,
    unseen: Mapping[str, float],
) -> dict[str, tuple[float, str]]:
    """The metrics of a run, each with its unit; "total_seconds" leaves out the evaluation.

    Args: unseen, the `layer_errors` on text that nothing was fitted to.
    """
    metrics = {name: (value, "1") for name, value in perplexities.items()}
    metrics |= {f"{part}_seconds": (value, "s") for part, value in seconds.items()}
    total = sum(seconds[part] for part in ("allocate", "prune", "block", "repair"))
    metrics |= {"total_seconds": (total, "s"), "sparsity": (report.sparsity, "1")}
    if report.error is not None:
        metrics["mean_layer_error"] = (report.error, "1")
    if unseen:
        metrics["mean_layer_error_web"] = (statistics.fmean(unseen.values()), "1")
    if repaired:
        looks = dict(repaired.held_out)
        metrics["divergence_before"] = (looks[0], "nats")
        metrics["divergence_after"] = (looks[repaired.kept], "nats")
    return metrics
