"""The text and the metrics of notebook 08, which runs the steps of the recipe one at a time."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from helpers.beyond.distil import DistilReport
from helpers.beyond.recipe import HELD_OUT
from helpers.data.corpora import calibration_tokens
from helpers.errors import BadParameter
from helpers.model.block_loop import PruneReport


class Windows(NamedTuple):
    """Windows of calibration text, int64 (windows, length) each; see `draw_windows`."""

    every: Tensor  # all that were drawn
    web: Tensor  # for evaluation
    layers: Tensor
    guide: Tensor  # the first of those for the layers
    repair: Tensor  # the last HELD_OUT of them are never trained on


def draw_windows(parameters: Mapping[str, Any], tokenizer: Any) -> Windows:
    """Draw all text of a run at once, so that its parts do not overlap as long as the text lasts.

    A longer repair sees what a shorter one has seen, in the same order, and more: it takes the
    first `repair_windows` of a pool that has one size in all runs, and holds out those after them.
    parameters: those of notebook 08.
    Raises BadParameter and what `calibration_tokens` raises.
    """
    layers = parameters["sequences"]
    guide = parameters["guide_sequences"]
    repair = parameters["repair_windows"]
    pool = parameters["pool"]
    if not 1 <= guide <= layers:
        raise BadParameter(
            f"guide_sequences {guide} are not among the {layers} sequences for the layers: give "
            f"1 to {layers}, or more sequences"
        )
    if repair < 1 or repair + HELD_OUT > pool:
        raise BadParameter(
            f"repair_windows {repair} do not fit a pool of {pool}, with the {HELD_OUT} held out: "
            f"give 1 to {pool - HELD_OUT}, or a larger pool"
        )
    sizes = [parameters["web_windows"], layers, pool]
    every = calibration_tokens(
        parameters["calibration"],
        tokenizer,
        sequences=sum(sizes),
        length=parameters["length"],
        seed=parameters["calibration_seed"],
        start_token=parameters["start_token"],
    )
    unseen, read, pooled = every.split(sizes)
    return Windows(every, unseen, read, read[:guide], pooled[: repair + HELD_OUT])


def pipeline_metrics(
    perplexities: Mapping[str, float],
    seconds: Mapping[str, float],
    report: PruneReport,
    repaired: DistilReport | None,
    peak_memory: int,
) -> dict[str, tuple[float, str]]:
    """The metrics of a run, each with its unit; "total_seconds" leaves out the evaluation."""
    total = sum(seconds[part] for part in ("allocate", "prune", "repair"))
    metrics = {name: (value, "1") for name, value in perplexities.items()}
    metrics |= {f"{part}_seconds": (value, "s") for part, value in seconds.items()}
    metrics |= {"total_seconds": (total, "s"), "sparsity": (report.sparsity, "1")}
    metrics["peak_memory"] = (peak_memory, "bytes")
    if report.error is not None:
        metrics["mean_layer_error"] = (report.error, "1")
    if repaired:
        looks = dict(repaired.held_out)
        metrics["divergence_before"] = (looks[0], "nats")
        metrics["divergence_after"] = (looks[repaired.kept], "nats")
    return metrics
