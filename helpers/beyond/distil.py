"""Repair a pruned model as a whole: fit its predictions to those of the dense model.

The paper minimises the error of each layer by itself. What is left lies between the layers: their
errors add up in the stream, and only the logits say which of them matter. `distil` trains the kept
weights of all layers together, on a fixed mask, to minimise

    KL(dense ‖ pruned) = Σ p log(p/q),    averaged over tokens,

with p and q the two models' distributions of the next token. Many small steps are worth more than
few large ones, so each step reads one window of text, and no window is read twice.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from helpers.beyond.training import DECAY, PARTS, Trained, rate_at, trained
from helpers.capture import Progress, check_tokens, eval_mode, forward
from helpers.errors import BadParameter, Count, NonFinite, Positive, check_options, one_of
from helpers.models import check_model, device_of
from helpers.precision import check_precision, exactly, products
from helpers.prune import check_dense
from helpers.replay import explain_out_of_memory

POSITIONS = 8  # of a window, whose distributions are compared together: they stay in the cache
LOOKS = 2  # at the held-out windows, the last at the end


@dataclass
class DistilReport:
    """What `distil` did.

    steps: of one window each, with `tokens` tokens in all; precision: of the products; losses: the
    divergence on each step's window, before the step; held_out: (step, divergence on the held-out
    windows), from step 0, where nothing is trained yet; kept: the step whose weights the model has
    now; seconds: including the evaluation of held-out windows.
    """

    steps: int
    tokens: int
    precision: str
    losses: list[float]
    held_out: list[tuple[int, float]]
    kept: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for a record."""
        return dataclasses.asdict(self)


def distil(
    model: nn.Module,
    dense: nn.Module,
    tokens: Tensor,
    *,
    parts: one_of(*PARTS) = "all",
    rate: Positive = 2.5e-4,
    vector_rate: Positive = 1e-3,
    held_out: Count = 4,
    precision: str = "float32",
    progress: Progress | None = None,
) -> DistilReport:
    """Train the kept weights of a pruned model to predict what the dense model predicts, in place.

    Zeros stay zeros. Embedding and head stay as they are; vectors (norms, biases) are trained with
    the rest. Adam, with a warm-up and a cosine to zero.

    Args:
        model: the pruned one, in float32.
        dense: the same model before that, in float32.
        tokens: int64 (windows, length). The last `held_out` windows are never trained on, the
            others once, in turn: their number is the effort.
        parts: "all", or "norms" for the vectors alone, which needs next to no memory.
        rate, vector_rate: Adam's, for weights and vectors.
        precision: of the products, "float32" or "bfloat16".
        progress: called after each step.

    The held-out windows are looked at before, halfway and at the end, in float32; the model ends
    with the best weights seen, after an error too, so it is never worse there than before.

    Memory beyond the two models, in bytes: 16 for each trained weight (gradient, two moments of
    Adam, the best values), 1 for its mask; two sets of logits and their gradient, 12 · length ·
    vocabulary; and the activations of one window.

    Raises BadParameter, NonFinite, OutOfMemory.
    """
    rates = dict(rate=rate, vector_rate=vector_rate)
    check_options(distil, {"parts": parts, "held_out": held_out, **rates})
    check_precision(precision, torch.float32)
    check_pair(model, dense, tokens, held_out)
    started = time.perf_counter()
    text, unseen = tokens[:-held_out].to(device_of(model)), tokens[-held_out:]
    advice = 'the pruned model is there as it was; give shorter windows, or parts="norms"'
    # dropout off: the dense model is the teacher as it answers, and the pruned one is to answer so
    with (
        eval_mode(model),
        eval_mode(dense),
        explain_out_of_memory("repairing the model", advice),
        trained(model, parts) as parameters,
    ):
        best = divergence(model, dense, unseen)
        looks, kept, values = [(0, best)], 0, parameters.snapshot()
        losses, optimiser = [], adam(parameters, rate, vector_rate)
        schedule = LambdaLR(optimiser, lambda done: rate_at(done + 1, len(text)))
        try:
            for step, window in enumerate(text.split(1), 1):
                losses.append(descend(model, dense, window, optimiser, precision))
                schedule.step()
                if progress:
                    progress(step, len(text), f"step {step}")
                if step * LOOKS // len(text) == (step - 1) * LOOKS // len(text):
                    continue
                looks.append((step, divergence(model, dense, unseen)))
                if looks[-1][1] < best:
                    best, kept, values = looks[-1][1], step, parameters.snapshot()
        finally:
            # also after an error, or Ctrl-C: no model is left half trained
            if kept != len(text):
                parameters.restore(values)
    seconds = time.perf_counter() - started
    return DistilReport(len(text), text.numel(), precision, losses, looks, kept, seconds)


def check_pair(model: nn.Module, dense: nn.Module, tokens: Tensor, held_out: int) -> None:
    """Raise BadParameter unless one is the other before it was pruned, and the text leaves a step.

    A wrong dense model would be learnt without an error.
    """
    check_model(model)
    check_model(dense)
    shapes, others = ({n: p.shape for n, p in m.named_parameters()} for m in (model, dense))
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


def adam(parameters: Trained, rate: float, vector_rate: float) -> torch.optim.Adam:
    """Adam over the weights and the vectors, each with its rate."""
    groups = [
        {"params": parameters.weights, "lr": rate},
        {"params": parameters.vectors, "lr": vector_rate},
    ]
    # fused: one pass over the memory that a plain Adam reads and writes many times
    return torch.optim.Adam([g for g in groups if g["params"]], betas=DECAY, fused=True)


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
                "the divergence is NaN or infinite: give a smaller rate, or precision float32"
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
    slope, total = torch.empty_like(logits), logits.new_zeros((), dtype=torch.float64)
    parts = (x.flatten(0, -2).split(POSITIONS) for x in (logits, target, slope))
    with exactly(logits.device):  # else vecdot, a product, would be done in bfloat16 too
        for rows, wanted, out in zip(*parts, strict=True):
            log_q, log_p = (torch.log_softmax(x.float(), dim=-1) for x in (rows, wanted))
            p = log_p.exp()
            # in place: what takes the time here is the memory, not the arithmetic
            total += torch.linalg.vecdot(p, log_p.sub_(log_q)).sum(dtype=torch.float64)
            out.copy_(log_q.exp_().sub_(p).div_(tokens))
    return float(total) / tokens, slope


def divergence(model: nn.Module, dense: nn.Module, tokens: Tensor) -> float:
    """KL(dense ‖ model) of the next token, in nats, mean over all tokens (windows, length).

    Raises NonFinite.
    """
    total = 0.0
    for window in tokens.split(1):
        total += divergence_and_gradient(forward(model, window), forward(dense, window))[0]
    if not math.isfinite(total):
        raise NonFinite("the divergence from the dense model is NaN or infinite: check the weights")
    return total / len(tokens)
