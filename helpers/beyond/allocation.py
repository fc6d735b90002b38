"""Non-uniform sparsity: distribute a global budget of zeros over the layers of a model.

    shares = owl(model, tokens, sparsity=0.6)
    prune_model(model, tokens, method="admm-grad", sparsity=shares)

The paper gives every layer the same sparsity, but layers differ in how much they can lose. Two
rules decide it from calibration text alone:

    owl      blocks with more outlying scores lose less (Yin et al. 2024, arXiv 2310.05175)
    guide    squared gradients (the diagonal of the Fisher matrix) estimate what pruning below a
             threshold costs, and which outputs of a layer matter most

A rule gives a curve: the sparsity of every layer as a function of one number t, growing with it.
`share_out` looks for the t at which the zeros of all layers add up to the budget, exact to the
weight. An N:M pattern gives every layer the same sparsity, so there is nothing to distribute.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from helpers.beyond.training import gradients_of
from helpers.errors import BadParameter, NonFinite
from helpers.model.block_grams import best_batch, explain_out_of_memory
from helpers.model.blocks import eval_mode, record_calls, watch_inputs
from helpers.model.checks import ignored_layers
from helpers.model.models import (
    check_model,
    check_tokens,
    check_weights,
    device_of,
    model_layers,
    read_weight,
)
from helpers.model.prune import check_dense
from helpers.options import NotNegative, Positive, check_choice, validated
from helpers.paper.gram import check_measured
from helpers.paper.masks import Pattern, check_sparsity, target_sparsity
from helpers.progress import Progress, as_progress

# t ↦ the sparsity that each layer would have: float64 (layers,), never decreasing in t
Curve = Callable[[float], Tensor]

# those of notebook 08; "" gives every layer the same, "fisher" is the guide without its importance
RULES = ("", "owl", "fisher", "guide")
FARTHEST = 700.0  # |t| at the ends of the search: exp(700) is still a float
HALVINGS = 100  # of the search; after about 60 there is no float between its ends
LEAST_SLOPE = 1e-12  # of the largest squared slope; smaller ones count as this one
LEVELS = 100  # of a layer's scores in `fisher`: one for each per cent of its weights
POWER = 0.5  # of an output's slope in its importance: see `guide`


def check_allocation(rule: str, sparsity: float | None, pattern: str) -> None:
    """Raise BadParameter unless notebook 08 can allocate by a rule of RULES.

    sparsity, pattern: as for `prune_model`.
    """
    check_choice("allocation", rule, RULES)
    target_sparsity(sparsity, pattern)
    if rule and Pattern.parse(pattern).grouped:
        raise BadParameter(
            f"allocation {rule!r} has no meaning with pattern '{pattern}', which gives every layer "
            'the same sparsity: set allocation = ""'
        )


@dataclass(frozen=True)
class Guide:
    """Sparsity and importance from the gradients of a dense model, for `prune_model`.

    sparsity: of each layer, by its `layer_key`. importance: of each output of each layer, float32
    (d_out,) with a mean of 1.
    """

    sparsity: dict[str, float]
    importance: dict[str, Tensor]


@validated
def guide(
    model: nn.Module,
    tokens: Tensor,
    *,
    sparsity: float,
    spread: NotNegative = 0.3,
    progress: Progress | bool = True,
    ignore: Collection[str] = (),
) -> Guide:
    """Per-layer sparsities and per-output importance from squared gradients.

        guided = guide(model, tokens[:8], sparsity=0.6)
        prune_model(model, tokens, method="admm-grad", sparsity=guided.sparsity,
                    importance=guided.importance)

    The sparsities are those of the rule `fisher`. The importance is for the masks: the methods
    treat all outputs of a layer as equally important, and for the loss they are not. With
    g_ij the derivative of a sequence's loss by weight ij, output i has the squared slope
    r_i² = Σ g_ij²/‖x_j‖², a mean over inputs and a sum over sequences (if slopes and inputs are
    independent, that is K-FAC's factor of the outputs). If errors were small and independent of one
    another, scores should be multiplied by r. They are neither, and r from a few sequences is
    noisy, so it counts as r^POWER: 0.5 was the best of 0, 0.5 and 1 on held-out calibration text.

    Args:
        tokens: int64 (sequences, length), calibration text. A few sequences are enough: each costs
            a backward pass.
        sparsity: of all layers together.
        spread: how far the sparsity of a layer may lie from that, to one weight.
        progress: True for a bar, False for none, or a function called after each batch of text and
            backward pass: progress(done, total, name).
        ignore: layers that stay dense, as for `prune_model`: they have no part in any of this.

    The layers' zeros, round(value · weights) each, add up to round(sparsity · all weights), and
    still do after `prune_model` with a mask budget per "matrix". The model is left bit for bit as
    it was, also after an error. Memory beyond it, in bytes: 4 · d_in for each layer, 13 · d_out ·
    d_in for the scores of the largest layer (21 on a GPU), 1 for each weight, and the gradient of
    one layer at a time with the activations of one sequence.

    Raises BadParameter, UnsupportedModel, NonFinite, OutOfMemory.
    """
    check_sparsity(sparsity)
    with surveyed(model, tokens, progress, ignore) as survey:
        curve, slopes = fisher(survey)
        shares = layer_sparsities(survey, curve, sparsity, spread)
    importance = {}
    for key, squares in slopes.items():
        # an output that nothing depends on would get 0, which leaves it no order of its weights
        least = float(squares.max()) * LEAST_SLOPE
        factor = squares.clamp(min=least if least > 0 else 1.0) ** (POWER / 2)
        importance[key] = factor / factor.mean()
    return Guide(shares, importance)


@validated
def owl(
    model: nn.Module,
    tokens: Tensor,
    *,
    sparsity: float,
    spread: NotNegative = 0.08,
    outliers: Positive = 5.0,
    progress: Progress | bool = True,
    ignore: Collection[str] = (),
) -> dict[str, float]:
    """Per-layer sparsities by outliers (OWL): blocks with more outlying scores lose less.

    A block's ratio is the share of its scores |W|·‖x‖ above `outliers` (M) times their mean over
    the block. The ratios are scaled to a width of 2 · `spread` (lambda), negated and centred. As
    the paper (Yin et al. 2024) says, and unlike its code, no block then leaves the range sparsity
    ± spread. It needs no gradients; arguments and errors otherwise as for `guide`.
    """
    check_sparsity(sparsity)
    with surveyed(model, tokens, progress, ignore) as survey:
        ratios = []  # of each layer that of its block
        for _, keys in itertools.groupby(
            survey.layers, lambda key: key.partition(".")[0]
        ):
            block = list(keys)
            ratios += [outlier_share(survey, block, outliers)] * len(block)
        width = max(ratios) - min(ratios)
        stretch = 2 * spread / width if width > 0 else 0.0
        wishes = sparsity - stretch * torch.tensor(ratios, dtype=torch.float64)
        # all of them move by t, which does the centring
        return layer_sparsities(survey, lambda t: wishes + t, sparsity, spread)


def outlier_share(survey: Survey, keys: list[str], outliers: float) -> float:
    """The share of a block's scores above `outliers` times their mean."""
    size = sum(survey.layers[key].weight.numel() for key in keys)
    # the scores are computed twice, so that a block's need not be in memory together
    sums = [float(survey.score(key).sum(dtype=torch.float64)) for key in keys]
    mean = sum(sums) / size
    above = [int((survey.score(key) > outliers * mean).sum()) for key in keys]
    return sum(above) / size


# --- what the dense model shows -----------------------------------------------------------------


@dataclass(frozen=True)
class Survey:
    """Statistics of the dense model's layers on the calibration text, by `layer_key`.

    norms: ‖x_j‖ of a layer's inputs over all tokens, float32 (d_in,).
    """

    model: nn.Module
    tokens: Tensor
    layers: dict[str, nn.Module]
    norms: dict[str, Tensor]
    progress: Progress

    def score(self, key: str) -> Tensor:
        """|W|·‖x‖, float32 (d_out, d_in): where the methods' first mask comes from."""
        return read_weight(self.layers[key]).float().abs() * self.norms[key]


@contextlib.contextmanager
def surveyed(
    model: nn.Module,
    tokens: Tensor,
    progress: Progress | bool = True,
    ignore: Collection[str] = (),
) -> Iterator[Survey]:
    """Context manager: the input norms of the dense model's layers, with dropout off meanwhile.

    Raises BadParameter, UnsupportedModel, NonFinite, OutOfMemory.
    """
    check_model(model)
    check_dense(model, allow_pruned=False)
    check_tokens(model, tokens)
    layers = model_layers(model, ignored_layers(model, ignore))
    for key, layer in layers.items():
        check_weights(f"block {key.replace('.', ' ', 1)}", layer)
    progress = as_progress(progress)
    # dropout off: its random zeros would enter the norms
    with (
        eval_mode(model),
        explain_out_of_memory("allocating sparsity", "give shorter sequences"),
    ):
        norms = input_norms(model, tokens, layers, progress)
        yield Survey(model, tokens, layers, norms, progress)


def input_norms(
    model: nn.Module, tokens: Tensor, layers: dict[str, nn.Module], progress: Progress
) -> dict[str, Tensor]:
    """‖x_j‖ of each layer's inputs over the text, float32 (d_in,), by `layer_key`."""
    squares = {}

    def add(key: str, inputs: Tensor):
        if not inputs.numel():  # an expert that no token of this batch has reached
            return
        # float32 first: in float16 the square of 256 is infinite already
        added = inputs.detach().flatten(0, -2).float().square().sum(0)
        squares[key] = squares.get(key, 0) + added

    batches = tokens.split(best_batch(device_of(model), tokens.shape[1]))
    with watch_inputs(layers, add):
        for done, rows in enumerate(batches, 1):
            record_calls(model, rows)  # ends after the last block: no logits are needed
            progress(done, len(batches), "calibration text")
    for key in layers:
        check_measured(squares.get(key), "layer", key)
    return {key: squares[key].sqrt() for key in layers}


def fisher(survey: Survey) -> tuple[Curve, dict[str, Tensor]]:
    """Sparsities at which pruning the next weight costs the same in all layers, and the slopes.

    Near the dense model the expected increase of the loss without weight w is proportional to
    g²·w², with g² the squared gradient of a sequence's loss, summed over sequences (the diagonal of
    the empirical Fisher matrix). The weights of a layer are pruned in order of |W|·‖x‖; the cost is
    summed in each of LEVELS parts of that order. The slopes are squared, of the loss by each output
    of each layer, float32 (d_out,). One backward pass for each sequence gives both. Raises
    BadParameter, NonFinite.
    """
    if survey.tokens.shape[1] < 2:
        raise BadParameter(
            "a guide needs sequences of 2 tokens or more: give longer text"
        )
    levels = {key: levels_of(survey.score(key)) for key in survey.layers}
    costs = {key: torch.zeros(LEVELS, dtype=torch.float64) for key in survey.layers}
    slopes = {}

    def add(key: str, parameter: Tensor):
        layer = survey.layers[key]
        norms = survey.norms[key]
        gradient = parameter.grad
        if isinstance(layer, Conv1D):
            gradient = gradient.T
        # float32 first: such products are below the smallest number of float16
        terms = (gradient.float() * read_weight(layer).float()).square_()
        # a GPU adds these as its threads come: two runs may differ in the last digits. It is
        # many times faster there, and where equal runs must be equal, the CPU does it
        at = "cpu" if torch.are_deterministic_algorithms_enabled() else terms.device
        terms = terms.to(at).flatten().double()
        sums = torch.bincount(levels[key].to(at).flatten(), terms, LEVELS)
        costs[key] += sums.cpu()
        alive = norms > 0
        squares = (gradient[:, alive].float() / norms[alive]).square_().sum(1)
        squares /= max(1, int(alive.sum()))
        slopes[key] = slopes.get(key, 0) + squares
        # freed now: a full set of gradients, as large as the model, never exists
        parameter.grad = None

    weights = {key: layer.weight for key, layer in survey.layers.items()}
    with (
        gradients_of(survey.model, list(weights.values())),
        torch.enable_grad(),
        contextlib.ExitStack() as stack,
    ):
        for key, weight in weights.items():
            hook = functools.partial(add, key)
            stack.enter_context(weight.register_post_accumulate_grad_hook(hook))
        for done, row in enumerate(survey.tokens.to(device_of(survey.model)), 1):
            logits = (
                survey.model(input_ids=row[None], use_cache=False)
                .logits[0, :-1]
                .float()
            )
            # the sum, not the mean: a constant factor is nothing to the answer, but a small
            # gradient vanishes in float16
            nn.functional.cross_entropy(logits, row[1:], reduction="sum").backward()
            survey.progress(done, len(survey.tokens), "backward passes")
    for key in weights:
        if not (costs[key].isfinite().all() and slopes[key].isfinite().all()):
            raise NonFinite(
                f"gradients of layer {key} hold NaN or infinity: use dtype float32"
            )
    curve = equal_costs([costs[k].numpy() / w.numel() for k, w in weights.items()])
    return curve, slopes


def equal_costs(costs: list[np.ndarray]) -> Curve:
    """Sparsities at which the next weight of every layer costs the same, by the log of that cost.

    costs: of each layer, of one weight in each of its LEVELS parts (times LEVELS).
    """
    # the running maximum takes out the noise: a part is not reached before those below it
    margins = [
        np.log(np.maximum(np.maximum.accumulate(cost), 1e-300)) for cost in costs
    ]
    # the middle of each part; between them the log of the cost is taken as a straight line
    middles = (np.arange(LEVELS) + 0.5) / LEVELS
    return lambda t: torch.tensor(
        [np.interp(t, margin, middles, left=0.0, right=1.0) for margin in margins],
        dtype=torch.float64,
    )


def levels_of(score: Tensor) -> Tensor:
    """Which of LEVELS equal parts of the sorted scores each score is in, uint8, smallest first.

    A stable sort says it: place i of n is in part i · LEVELS // n. Its places, int64, would be the
    largest thing in memory; the sorted scores are enough.
    """
    flat = score.flatten()
    # NumPy's, since torch's makes the places too
    ordered = (
        torch.from_numpy(np.sort(flat.numpy())) if flat.is_cpu else flat.sort().values
    )
    # the first place of each part from the second on, and the score there
    places = -(-len(flat) * torch.arange(1, LEVELS) // LEVELS)
    places = places[places < len(flat)].to(flat.device)
    edges = ordered[places]
    levels = torch.bucketize(flat, edges, right=True, out_int32=True).to(torch.uint8)
    # equal scores that lie on both sides of an edge go by their position; most edges have none
    for value in edges[ordered[places - 1] == edges].unique():
        start = int(torch.searchsorted(ordered, value))
        ties = (flat == value).nonzero().flatten()
        among = torch.arange(start, start + len(ties), device=flat.device)
        levels[ties] = (among * LEVELS // len(flat)).to(torch.uint8)
    return levels.view(score.shape)


# --- from a curve to whole numbers of zeros -----------------------------------------------------


def layer_sparsities(
    survey: Survey, curve: Curve, sparsity: float, spread: float
) -> dict[str, float]:
    """The sparsity of each layer by a curve, at most `spread` and one weight from `sparsity`.

    Raises BadParameter if there is no room for the zeros.
    """
    sizes = [layer.weight.numel() for layer in survey.layers.values()]
    weights = torch.tensor(sizes, dtype=torch.float64)
    # zeros of each layer; one weight has to stay, as a sparsity of 1 is not allowed
    high = torch.minimum(weights * min(1.0, sparsity + spread), weights - 1)
    low = torch.minimum(weights * max(0.0, sparsity - spread), high)
    total = round(sparsity * sum(sizes))
    if total > high.sum() + 0.5:
        raise BadParameter(
            f"sparsity {sparsity!r} would leave no weight in some layer: give a smaller sparsity"
        )
    counts = share_out(weights, curve, total, low, high)
    # count/size is the nearest float, and size times that lies so near count that it rounds to it
    return {
        key: count / size
        for key, count, size in zip(survey.layers, counts, sizes, strict=True)
    }


def share_out(
    sizes: Tensor, curve: Curve, total: int, low: Tensor, high: Tensor
) -> list[int]:
    """The number of zeros of each layer, `total` in all.

    Args:
        sizes: weights of each layer.
        low, high: the fewest and the most zeros of each layer.
    All float64 (layers,). A number differs from the curve's, clamped between low and high, by less
    than 1.
    """

    def zeros(t: float) -> Tensor:
        return torch.maximum(torch.minimum(curve(t) * sizes, high), low)

    below, above = -FARTHEST, FARTHEST
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        if zeros(middle).sum() < total:
            below = middle
        else:
            above = middle
    # where a curve jumps, no t gives that many: a mixture of the two sides of the jump does
    few, many = zeros(below), zeros(above)
    mixture = (total - few.sum()) / (many.sum() - few.sum())
    # without a jump the two are equal, and any mixture will do
    wanted = few + mixture.nan_to_num().clamp(0, 1) * (many - few)
    # The largest remainder: all are rounded down, and the zeros that are then missing, fewer than
    # there are layers, go where rounding took most; of equal ones to the earlier
    counts = wanted.floor()
    order = (wanted - counts).argsort(descending=True, stable=True)
    order = order[(counts < sizes - 1)[order]]
    counts[order[: total - int(counts.sum())]] += 1
    return counts.long().tolist()
