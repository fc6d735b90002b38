"""Share one budget of zeros out between the layers of a model, exact to the weight.

    sparsities = allocate(model, tokens, sparsity=0.6, rule="owl")
    prune_model(model, tokens, method="admm-grad", sparsity=sparsities)

The paper gives every layer the same sparsity, but layers differ in how much they can lose. A rule
decides which layers lose more, from calibration text alone:

    uniform    every layer the same: what the other rules have to beat
    owl        blocks with more outlying scores lose less (Yin et al. 2024, arXiv 2310.05175)
    icp        what q, k and v lose less, the last layer of the block loses more (Luo et al. 2025)
    measured   groups of layers are pruned one at a time, and the model's divergence is measured
    fisher     squared gradients say what the loss of the weights below a threshold would cost

A rule answers with a curve: the sparsity of every layer as a function of one number t, growing
with it. `share_out` looks for the t at which the zeros of all layers add up to the budget.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from helpers.beyond.distil import divergence_and_gradient
from helpers.beyond.survey import (
    Survey,
    gradients,
    layers_of,
    pruned_meanwhile,
    survey,
)
from helpers.capture import Progress, check_tokens, eval_mode, forward
from helpers.errors import (
    BadParameter,
    NonFinite,
    allowed,
    check_choice,
    check_real,
    check_whole,
)
from helpers.masks import Pattern, check_sparsity
from helpers.models import check_model, device_of, read_weight
from helpers.prune import check_dense
from helpers.replay import lack_of_memory_said

# t ↦ the sparsity that each layer would have: float64 (layers,), none falling as t grows
Curve = Callable[[float], Tensor]

FARTHEST = 700.0  # |t| at the ends of the search: exp(700) is still a float
HALVINGS = 100  # of the search; after about 60 there is no float between its ends
LEAST_SLOPE = 1e-12  # of the largest squared slope; smaller ones count as this one
LEVELS = 100  # of a layer's scores in "fisher": one for each per cent of its weights


def allocate(
    model: nn.Module,
    tokens: Tensor | None,
    *,
    sparsity: float,
    rule: str,
    spread: float | None = None,
    pattern: str | Pattern = "unstructured",
    progress: Progress | None = None,
    **options: object,
) -> dict[str, float]:
    """The sparsity of each layer, by its `layer_key`, for `prune_model(sparsity=...)`.

    The layers' zeros, round(value · weights) each, add up to round(sparsity · all weights). They
    still do after `prune_model` with a mask budget per "matrix": the methods of ADMM, sparsegpt,
    magnitude, and wanda with budget="matrix". (Its own default, "output", rounds in each row.)

    Args: tokens, int64 (sequences, length), calibration text, which "uniform" does not read;
    sparsity, of all layers together; rule, see the module's text; spread, how far a layer's value
    may lie from `sparsity`, to one weight, within [0, 1) (by default 0.08 for "owl", whose lambda
    it is, 0.25 for "icp", 0.15 for "measured", 0.3 for "fisher"); progress(done, total, name),
    called after each batch of text, trial or backward pass; options, those of the rule's function
    below.

    The model is left bit for bit as it was, also after an error. Memory beyond it, in bytes: 4 ·
    d_in for each layer, 4 · d_out · d_in for the scores of the largest layer, one batch of
    activations; "measured" also the weights of one group and the dense logits of its windows;
    "fisher" 1 for each weight, and the gradient of one layer at a time with the activations of one
    sequence.

    Raises BadParameter (N:M), BadParameter (no room for the zeros), BadParameter,
    UnsupportedModel, NonFinite.
    """
    counts, _ = _shared_out(model, tokens, sparsity, rule, spread, pattern, progress, options)
    return counts


@dataclass(frozen=True)
class Guide:
    """What the gradients of a dense model on calibration text say, for `prune_model`.

    sparsity: of each layer, by the rule "fisher". importance: of each output of each layer, float32
    (d_out,) with a mean of 1.
    """

    sparsity: dict[str, float]
    importance: dict[str, Tensor]


def guide(
    model: nn.Module,
    tokens: Tensor,
    *,
    sparsity: float,
    spread: float = 0.3,
    power: float = 0.5,
    pattern: str | Pattern = "unstructured",
    progress: Progress | None = None,
) -> Guide:
    """In which layers, and in which outputs of a layer, weights can be spared most cheaply.

        found = guide(model, tokens[:8], sparsity=0.6)
        prune_model(model, tokens, method=..., sparsity=found.sparsity, importance=found.importance)

    The methods treat all outputs of a layer as equally important. For the loss they are not: with
    g_ij the derivative of a sequence's loss by weight ij, output i has the squared slope
    r_i² = Σ g_ij²/‖x_j‖², a mean over inputs and a sum over sequences (if slopes and inputs are
    independent, that is K-FAC's factor of the outputs). If errors were small and independent of one
    another, scores should be multiplied by r. They are neither, and r from a few sequences is
    noisy, so it counts as r^`power`: 0.5 was the best of 0, 0.5 and 1 on held-out calibration text.

    Args, memory and errors as for `allocate` with the rule "fisher"; a few sequences are enough.
    """
    check_real("power", power)
    sparsities, seen = _shared_out(model, tokens, sparsity, "fisher", spread, pattern, progress, {})
    importance = {}
    for key, squares in seen.slopes.items():
        # an output that nothing depends on would get 0, which leaves it no order of its weights
        factor = squares.clamp(min=float(squares.max()) * LEAST_SLOPE or 1.0) ** (power / 2)
        importance[key] = factor / factor.mean()
    return Guide(sparsities, importance)


def _shared_out(
    model: nn.Module,
    tokens: Tensor | None,
    sparsity: float,
    rule: str,
    spread: float | None,
    pattern: str | Pattern,
    progress: Progress | None,
    options: dict[str, object],
) -> tuple[dict[str, float], Survey | None]:
    """What `allocate` returns, and what the rule has seen of the model."""
    function, usual = RULES[check_choice("rule", rule, RULES)]
    spread = usual if spread is None else check_real("spread", spread)
    check_options(rule, function, options)
    if Pattern.parse(pattern).grouped:
        raise BadParameter(
            f"pattern '{pattern}' gives every layer the same sparsity, so there is nothing to "
            'share out: leave allocate out, or use pattern "unstructured"'
        )
    sparsity = check_sparsity(sparsity)
    check_model(model)
    check_dense(model, allow_pruned=False)
    layers, blocks = layers_of(model)
    sizes = torch.tensor([layer.weight.numel() for layer in layers.values()], dtype=torch.float64)
    # zeros of each layer; one weight has to stay, as a sparsity of 1 is not allowed
    high = torch.minimum(sizes * min(1.0, sparsity + spread), sizes - 1)
    low = torch.minimum(sizes * max(0.0, sparsity - spread), high)
    total = round(sparsity * int(sizes.sum()))
    if total > high.sum() + 0.5:
        raise BadParameter(
            f"sparsity {sparsity!r} would leave no weight in some layer: give a smaller sparsity"
        )
    found = None
    # dropout off: its random zeros would enter the norms
    short = lack_of_memory_said("looking for where weights can be spared", "give shorter sequences")
    with eval_mode(model), short:
        if rule != "uniform":
            check_tokens(model, tokens)
            found = survey(model, tokens, layers, blocks, progress or (lambda *_step: None))
        curve = function(found, sparsity, spread, **options)
    counts = share_out(sizes, curve, total, low, high)
    # count/size is the nearest float, and size times that lies so near count that it rounds to it
    shares = {
        key: count / layer.weight.numel()
        for (key, layer), count in zip(layers.items(), counts, strict=True)
    }
    return shares, found


def check_options(rule: str, function: Callable[..., Curve], options: dict[str, object]) -> None:
    """Raise BadParameter if the rule takes no option of that name."""
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise BadParameter(
                f"rule {rule!r} has no option {option!r}: it takes {allowed(known) or 'none'}"
            )


# --- from a curve to whole numbers of zeros -----------------------------------------------------


def shifted(wishes: Tensor) -> Curve:
    """The curve of a rule that wants certain sparsities: all of them move by t."""
    return lambda t: wishes + t


def share_out(sizes: Tensor, curve: Curve, total: int, low: Tensor, high: Tensor) -> list[int]:
    """The zeros of each layer, `total` in all.

    Args: sizes, weights of each layer; low and high, the fewest and the most zeros of each; all
    float64 (layers,). A value differs from the curve's, kept between low and high, by less than 1.
    """

    def zeros(t: float) -> Tensor:
        return torch.maximum(torch.minimum(curve(t) * sizes, high), low)

    below, above = -FARTHEST, FARTHEST
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        below, above = (middle, above) if zeros(middle).sum() < total else (below, middle)
    # where a curve jumps, no t meets the budget: a mixture of the two sides of the jump does
    few, many = zeros(below), zeros(above)
    gap = float(many.sum() - few.sum())
    share = min(1.0, max(0.0, (total - float(few.sum())) / gap)) if gap > 0 else 0.0
    wanted = few + share * (many - few)
    # The largest remainder: all are rounded down, and the zeros that are then missing, fewer than
    # there are layers, go where rounding took most; of equal ones to the earlier
    counts = wanted.floor()
    order = (wanted - counts).argsort(descending=True, stable=True)
    order = order[(counts < sizes - 1)[order]]
    counts[order[: total - int(counts.sum())]] += 1
    return [int(count) for count in counts]


# --- the rules ----------------------------------------------------------------------------------
#
# rule(survey, sparsity, spread, *, options) -> Curve


def uniform(_seen: None, sparsity: float, spread: float) -> Curve:
    """The same for every layer, for which the model need not run."""
    return shifted(torch.tensor(sparsity, dtype=torch.float64))


def owl(seen: Survey, sparsity: float, spread: float, *, outliers: float = 5.0) -> Curve:
    """Blocks with more outliers lose less (Yin et al. 2024).

    A block's ratio is the share of its scores |W|·‖x‖ above `outliers` (M) times their mean over
    the block. The ratios are stretched to a width of 2 · spread, turned round and centred. As the
    paper says, and unlike its code, no block then leaves the range sparsity ± spread.
    """
    check_real("outliers", outliers, above=0)
    ratios = []
    for keys in seen.blocks:
        size = seen.size(keys)
        # the scores are made twice, so that a block's need not lie in memory together
        mean = sum(float(seen.score(key).sum(dtype=torch.float64)) for key in keys) / size
        ratios.append(sum(int((seen.score(key) > outliers * mean).sum()) for key in keys) / size)
    width = max(ratios) - min(ratios)
    stretch = 2 * spread / width if width > 0 else 0.0
    # t, which is the same for all, does the centring
    wishes = [sparsity - stretch * r for r, keys in zip(ratios, seen.blocks, strict=True)
              for _ in keys]  # fmt: skip
    return shifted(torch.tensor(wishes, dtype=torch.float64))


def icp(seen: Survey, sparsity: float, spread: float, *, less: float = 0.2) -> Curve:
    """In each block q, k and v lose less, and its last layer more (ICP, Luo et al. 2025).

    The layers that read a block's first input, which are q, k and v in most families, c_attn in
    GPT-2, and part of the MLP where that runs beside the attention, get (1 − less) · sparsity. The
    last layer to run, which is down, makes up for it as far as `spread` allows.
    """
    if check_real("less", less) > 1:
        raise BadParameter(f"less {less!r} is not allowed: give a number from 0 to 1")
    wishes = dict.fromkeys(seen.layers, sparsity)
    for keys in seen.blocks:
        last = max(keys, key=lambda key: seen.inputs[key])
        first = [key for key in keys if seen.inputs[key] == 0 and key != last]
        wishes |= dict.fromkeys(first, (1 - less) * sparsity)
        wishes[last] += less * sparsity * seen.size(first) / seen.size([last])
    return shifted(torch.tensor(list(wishes.values()), dtype=torch.float64))


def measured(
    seen: Survey, sparsity: float, spread: float, *, windows: int = 4, bands: int = 6
) -> Curve:
    """Make what pruning does to the model equal at the margin for all groups of layers.

    A group is the layers that read the same input of a block (see `Survey.inputs`), in one of
    `bands` equal parts of the depth. Each group alone is pruned to `sparsity`, by |W|·‖x‖ and
    without an update, and c is the divergence from the dense model's predictions on the first
    `windows` sequences: a forward pass for each group and window.

    Assumed: the divergences of groups add up, and each is proportional to the sum of the
    squared scores that fall, as if scores were Gaussian. The next weight to fall at sparsity s then
    costs c/n · q², with n weights in the group and erf(q/√2) = s. It is the same in all groups if
    s = erf(eᵗ · sqrt(n/c)/√2).
    """
    check_whole("windows", windows)
    bands = min(check_whole("bands", bands), len(seen.blocks))
    group_of = {
        key: (index * bands // len(seen.blocks), seen.inputs[key])
        for index, keys in enumerate(seen.blocks)
        for key in keys
    }
    groups = sorted(set(group_of.values()))
    rows = seen.tokens[:windows].split(1)
    dense = [forward(seen.model, row) for row in rows]
    cost: dict[tuple[int, int], float] = {}
    for done, group in enumerate(groups, 1):
        keys = [key for key in group_of if group_of[key] == group]
        with pruned_meanwhile(seen, keys, sparsity):
            pairs = zip(dense, rows, strict=True)
            cost[group] = sum(
                divergence_and_gradient(forward(seen.model, row), old)[0] for old, row in pairs
            )
        if not math.isfinite(cost[group]):
            raise NonFinite(f"the logits without part of {keys[0]} hold NaN: use dtype float32")
        # c/n: by the weight, so that a large group is not taken for a sensitive one
        cost[group] /= seen.size(keys)
        seen.progress(done, len(groups), "trials")
    # rounding may make a cost zero or negative: it then counts as a very small one
    largest = max(cost.values())
    costs = torch.tensor([cost[group_of[key]] for key in seen.layers], dtype=torch.float64)
    costs = (costs / largest).clamp(min=1e-12) if largest > 0 else torch.ones_like(costs)
    return lambda t: torch.erf((t - costs.log() / 2).exp() / math.sqrt(2))


def fisher(seen: Survey, sparsity: float, spread: float) -> Curve:
    """Make what the next weight costs, by its squared gradient, equal for all layers.

    Near the dense model the expected increase of the loss without weight w is proportional to
    g²·w², with g² the squared gradient of a sequence's loss, summed over sequences (the diagonal of
    the empirical Fisher matrix). The weights of a layer fall in the order of |W|·‖x‖; the cost is
    summed in each of LEVELS parts of that order. One backward pass for each sequence.
    """
    if seen.tokens.shape[1] < 2:
        raise BadParameter("rule 'fisher' needs sequences of 2 tokens or more: give longer text")
    levels = {key: levels_of(seen.score(key)) for key in seen.layers}
    costs = {key: torch.zeros(LEVELS, dtype=torch.float64) for key in seen.layers}

    def add(key: str, parameter: Tensor) -> None:
        gradient = parameter.grad.T if isinstance(seen.layers[key], Conv1D) else parameter.grad
        # float32 first: such products are below the smallest number of float16
        terms = (gradient.float() * read_weight(seen.layers[key]).float()).square_()
        sums = torch.bincount(levels[key].flatten(), terms.flatten().double(), LEVELS)
        costs[key] += sums.cpu()
        alive = seen.norms[key] > 0
        slopes = (gradient[:, alive].float() / seen.norms[key][alive]).square_().sum(1)
        slopes /= max(1, int(alive.sum()))
        seen.slopes[key] = seen.slopes.get(key, 0) + slopes
        # freed now: a full set of gradients, as large as the model, never exists
        parameter.grad = None

    with gradients(seen.model, {key: layer.weight for key, layer in seen.layers.items()}, add):
        for done, row in enumerate(seen.tokens.to(device_of(seen.model)), 1):
            logits = seen.model(input_ids=row[None], use_cache=False).logits[0, :-1].float()
            # the sum, not the mean: a constant factor is nothing to the answer, but a small
            # gradient vanishes in float16
            functional.cross_entropy(logits, row[1:], reduction="sum").backward()
            seen.progress(done, len(seen.tokens), "backward passes")
    margins = []
    for key in seen.layers:
        if not (costs[key].isfinite().all() and seen.slopes[key].isfinite().all()):
            raise NonFinite(f"gradients of layer {key} hold NaN or infinity: use dtype float32")
        # Of one weight in each part. The running maximum takes out the noise: a part is not
        # reached before those below it
        margin = np.maximum.accumulate(costs[key].numpy() / seen.size([key]))
        margins.append(np.log(np.maximum(margin, 1e-300)))
    # The middle of each part; between them the log of the cost is taken as a straight line
    middles = (np.arange(LEVELS) + 0.5) / LEVELS
    return lambda t: torch.tensor(
        [np.interp(t, margin, middles, left=0.0, right=1.0) for margin in margins],
        dtype=torch.float64,
    )


def levels_of(score: Tensor) -> Tensor:
    """In which of LEVELS equal parts of its order a score lies, uint8, smallest first."""
    order = score.flatten().argsort(stable=True)
    levels = torch.empty(order.shape, dtype=torch.uint8, device=score.device)
    places = torch.arange(len(order), device=score.device) * LEVELS // len(order)
    levels[order] = places.to(torch.uint8)
    return levels.view(score.shape)


# name → the rule and its usual spread
RULES: dict[str, tuple[Callable[..., Curve], float]] = {
    "uniform": (uniform, 0.0),
    "owl": (owl, 0.08),
    "icp": (icp, 0.25),
    "measured": (measured, 0.15),
    "fisher": (fisher, 0.3),
}
