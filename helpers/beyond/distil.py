"""Distillation (the repair): train the kept weights to predict as the dense model does.

The paper minimises the error of each layer by itself. What is left lies between the layers: their
errors add up in the hidden states, and only the logits say which of them matter. `distil` trains
the kept weights of all layers together, on a fixed mask, to minimise

    KL(dense ‖ pruned) = Σ p log(p/q),    averaged over tokens,

with p and q the two models' distributions of the next token. Many small steps are worth more than
few large ones, so each step reads one window of text, and no window is read twice.

Models differ in the size of their weights, by a factor of five and more, and Adam moves a weight by
about its rate in each step for any size of the gradient. So rates are relative: a matrix or vector
moves by a share of the rms of its own values.
"""

import logging
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from helpers.beyond.training import DECAY, PARTS, rate_at, trained
from helpers.device import check_precision, products
from helpers.errors import BadParameter, NonFinite
from helpers.model.block_grams import explain_out_of_memory
from helpers.model.blocks import eval_mode, forward
from helpers.model.models import check_model, check_tokens, device_of
from helpers.model.prune import check_dense
from helpers.options import Count, Positive, one_of, validated
from helpers.progress import Progress, as_progress

LOG = logging.getLogger(__name__)
# of a window, whose distributions are compared together: so few stay in the processor's cache
POSITIONS = 8
# Looks at the held-out windows, after these shares of the steps; the second only if the first has
# found no better weights than those at the start
LOOKS = (0.25, 0.5, 1.0)
PATIENCE = 2  # looks without better weights, after which the repair is given up
# Adam's: far below any gradient, since gradients are the smaller the larger the weights are
EPSILON = 1e-15


@dataclass
class DistilReport:
    """The result of `distil`.

    losses: the divergence on the window of each step, before it; held_out: (step, divergence on the
    held-out windows), from step 0, where nothing is trained yet; kept: the step whose weights the
    model has now; warning: empty unless that is step 0; seconds: including the evaluation of
    held-out windows.
    """

    losses: list[float]
    held_out: list[tuple[int, float]]
    kept: int
    warning: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for a record."""
        return asdict(self)


@validated
def distil(
    model: nn.Module,
    dense: nn.Module,
    tokens: Tensor,
    *,
    parts: one_of(*PARTS) = "all",
    rate: Positive = 8.6e-4,
    vector_rate: Positive = 4e-4,
    held_out: Count = 4,
    precision: str = "float32",
    progress: Progress | bool = True,
) -> DistilReport:
    """Train the kept weights of a pruned model to predict what the dense model predicts, in place.

    Zeros stay zeros. Embedding and head stay as they are; vectors (norms, biases) are trained with
    the rest. Adam, with a warm-up and a cosine to zero.

    Args:
        model: the pruned one, in float32.
        dense: the same model before that, in float32.
        tokens: int64 (windows, length). The last `held_out` windows are never trained on, the
            others once each: their number sets the cost.
        parts: "all", or "norms" for the vectors alone, which needs next to no memory.
        rate, vector_rate: Adam's, for weights and vectors, as shares of the rms of each matrix
            (without its zeros) and each vector. What is zero as a whole stays so.
        precision: of the products, "float32" or "bfloat16".
        progress: True for a bar, False for none, or a function called after each step:
            progress(done, total, name).

    The held-out windows are looked at before, after a quarter of the steps, and at the end, in
    float32; the model ends with the best weights seen, after an error too, so it is never worse
    there than before. If it is no better after a quarter, and then after half, the repair is given
    up. A model that keeps its start is warned of, in the log and in the report.

    Memory beyond the two models, in bytes: 16 for each trained weight (gradient, two moments of
    Adam, the best values), 1 for its mask; two sets of logits and their gradient, 12 · length ·
    vocabulary; and the activations of one window.

    Raises BadParameter, NonFinite, OutOfMemory.
    """
    check_precision(precision, torch.float32)
    check_pair(model, dense, tokens, held_out)
    progress = as_progress(progress)
    started = time.perf_counter()
    text = tokens[:-held_out].to(device_of(model))
    unseen = tokens[-held_out:]
    advice = 'the pruned model is unchanged; give shorter windows, or parts="norms"'
    # dropout off: the teacher's own answers, and those that the pruned model is used for
    with (
        eval_mode(model),
        eval_mode(dense),
        explain_out_of_memory("repairing the model", advice),
        trained(model, parts) as (weights, vectors),
    ):
        # the rate of each parameter, as a share of its rms
        rates = dict.fromkeys(weights, rate) | dict.fromkeys(vectors, vector_rate)
        best = divergence(model, dense, unseen)
        looks = [(0, best)]
        kept = 0
        values = [p.detach().clone() for p in rates]
        groups = [{"params": [p], "lr": share * rms(p)} for p, share in rates.items()]
        # fused: one pass over the memory that a plain Adam reads and writes many times
        optimiser = torch.optim.Adam(groups, betas=DECAY, eps=EPSILON, fused=True)
        losses = []
        schedule = LambdaLR(optimiser, lambda done: rate_at(done + 1, len(text)))
        looked_at = {math.ceil(share * len(text)) for share in LOOKS}
        try:
            for step, window in enumerate(text.split(1), 1):
                losses.append(descend(model, dense, window, optimiser, precision))
                schedule.step()
                progress(step, len(text), f"step {step}")
                if step not in looked_at or (kept and step < len(text)):
                    continue
                now = divergence(model, dense, unseen)
                looks.append((step, now))
                if now < best:
                    best = now
                    kept = step
                    values = [p.detach().clone() for p in rates]
                elif len(looks) > PATIENCE:
                    break
        finally:
            # also after an error, or Ctrl-C: no model is left half trained
            if kept != len(text):
                restore(rates, values)
    warning = ""
    if not kept:
        step, last = looks[-1]
        warning = (
            f"the repair changed nothing: the divergence on held-out windows was {best:.3g} before "
            f"and {last:.3g} after {step} steps; give distil a smaller rate, or more windows"
        )
        LOG.warning(warning)
    return DistilReport(losses, looks, kept, warning, time.perf_counter() - started)


def check_pair(
    model: nn.Module, dense: nn.Module, tokens: Tensor, held_out: int
) -> None:
    """Raise BadParameter unless `dense` is a model like `model`, and the text is enough for a step.

    A wrong dense model would be learnt without an error.
    """
    check_model(model)
    check_model(dense)
    shapes, others = (
        {name: p.shape for name, p in each.named_parameters()}
        for each in (model, dense)
    )
    if model is dense or shapes != others:
        raise BadParameter(
            "model and dense are one model, or differ in their parameters: give the model that was "
            "pruned, and the dense one loaded a second time"
        )
    check_dense(dense, allow_pruned=False)
    check_tokens(model, tokens)
    if len(tokens) <= held_out:
        raise BadParameter(
            f"{len(tokens)} windows of text, of which {held_out} are held out, leave none to train "
            "on: give more text, or a smaller held_out"
        )


def restore(parameters: Iterable[nn.Parameter], values: Iterable[Tensor]) -> None:
    """Give parameters the values that were kept of them."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def rms(values: Tensor) -> float:
    """The root mean square of the values that are not zero, and 0 if there are none."""
    return float(values.detach().norm()) / math.sqrt(
        max(1, int(values.count_nonzero()))
    )


def descend(
    model: nn.Module,
    dense: nn.Module,
    window: Tensor,
    optimiser: torch.optim.Adam,
    precision: str,
) -> float:
    """One step on a window (1, length) of text; returns the divergence before it.

    Raises NonFinite.
    """
    # enable_grad, since the caller may have switched gradients off
    with torch.enable_grad(), products(precision, device_of(model)):
        target = forward(dense, window)
        logits = model(input_ids=window, use_cache=False).logits
        # the gradient is known in closed form, so the divergence itself needs no graph: autograd
        # would keep several more matrices of the size of the logits
        loss, slope = divergence_and_gradient(logits.detach(), target)
        if not math.isfinite(loss):
            raise NonFinite(
                "the divergence is NaN or infinite: check the weights of both models, or give a "
                "smaller rate, or precision float32"
            )
        logits.backward(slope)
    optimiser.step()
    optimiser.zero_grad()
    return loss


def divergence_and_gradient(logits: Tensor, target: Tensor) -> tuple[float, Tensor]:
    """KL(target ‖ logits), mean over tokens, and its gradient (softmax(logits) − p)/tokens.

    Both are (batch, length, vocabulary) logits, p = softmax(target). The gradient has the type of
    `logits`.
    """
    tokens = logits.shape[:-1].numel()
    slope = torch.empty_like(logits)
    total = logits.new_zeros((), dtype=torch.float64)
    parts = (x.flatten(0, -2).split(POSITIONS) for x in (logits, target, slope))
    # else vecdot, a product, would be done in bfloat16 too
    with products("exact", logits.device):
        for rows, wanted, out in zip(*parts, strict=True):
            log_q = torch.log_softmax(rows.float(), dim=-1)
            log_p = torch.log_softmax(wanted.float(), dim=-1)
            p = log_p.exp()
            # in place: what takes the time here is the memory, not the arithmetic
            total += torch.linalg.vecdot(p, log_p.sub_(log_q)).sum(dtype=torch.float64)
            out.copy_(log_q.exp_().sub_(p).div_(tokens))
    return float(total) / tokens, slope


def divergence(model: nn.Module, dense: nn.Module, tokens: Tensor) -> float:
    """KL(dense ‖ model) of the next token, in nats, mean over all tokens (windows, length)."""
    total = 0.0
    for window in tokens.split(1):
        total += divergence_and_gradient(
            forward(model, window), forward(dense, window)
        )[0]
    return total / len(tokens)
