"""Where the seconds of a step of the repair (distillation into the kept weights) go.

A step runs two models forward and one backward. What grows with the vocabulary, the heads and the
divergence of two sets of logits, is timed apart from the blocks.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.problems import random_llama, random_tokens
from benchmarks.solver import SPARSITY
from benchmarks.timing import once, ratio, summary
from helpers.beyond.distil import DECAY, EPSILON, descend, divergence_and_gradient
from helpers.beyond.training import trained
from helpers.device import PRECISIONS, products
from helpers.model.blocks import forward
from helpers.model.models import load_model
from helpers.model.prune import prune_model

MODELS = ("embedded", "embedded-gemma")
LENGTH = 512
# parts that grow with it
VOCABULARY = ("heads, forward", "divergence", "head, backward")
PARTS = ("blocks, forward", *VOCABULARY, "blocks, backward", "Adam")


def measure(quick: bool = False) -> dict[str, Any]:
    """Time whole steps and their parts, in turns, with each model and precision: a row for each."""
    rows = []
    for name in MODELS[:1] if quick else MODELS:
        if quick:
            name, dense = "random Llama, 2 blocks of 64", random_llama(2, 64, 128, 4)
        else:
            dense, _ = load_model(name, device="cpu")
        model = copy.deepcopy(dense)
        prune_model(model, method="magnitude", sparsity=SPARSITY, progress=False)
        window = random_tokens(dense, 1, 32 if quick else LENGTH)
        for precision in PRECISIONS:
            row = {"case": name, "precision": precision}
            row["words"] = dense.get_output_embeddings().weight.shape[0]
            rows.append(row | measure_step(model, dense, window, precision))
    return {"rows": rows}


def measure_step(
    model: nn.Module, dense: nn.Module, window: Tensor, precision: str, repeats: int = 2
) -> dict[str, Any]:
    """Time a step on a window (1, length) as a whole and in parts, after one to warm up.

    Raises ValueError if a model's logits are not its head's of its last hidden states.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ("step", *PARTS)}
    with trained(model) as parameters, products(precision, window.device):
        # a rate of 0: no step changes the next one
        optimiser = torch.optim.Adam(
            sum(parameters, []), lr=0.0, betas=DECAY, eps=EPSILON, fused=True
        )
        parts = Step(model, dense, window, optimiser)
        parts.check()
        step = functools.partial(descend, model, dense, window, optimiser, precision)
        step()
        for _ in range(repeats):
            seconds["step"].append(once(step))
            for name, part in parts.named().items():
                seconds[name].append(once(part))
    rounds = zip(*(seconds[name] for name in VOCABULARY), strict=True)
    seconds["vocabulary"] = [sum(values) for values in rounds]
    found = {name: summary(values) for name, values in seconds.items()}
    return {"seconds": found, "share": ratio(seconds, "vocabulary", *PARTS)}


class Step:
    """The parts of `helpers.beyond.distil.descend`, to be called in the order of `PARTS`."""

    def __init__(
        self,
        model: nn.Module,
        dense: nn.Module,
        window: Tensor,
        optimiser: torch.optim.Optimizer,
    ) -> None:
        self.models = dense, model
        self.window = window
        self.optimiser = optimiser

    def named(self) -> dict[str, Callable[[], None]]:
        """The parts by their names."""
        methods = (self.run_blocks, self.run_heads, self.compare, self.head_back,
                   self.blocks_back, self.descend)  # fmt: skip
        return dict(zip(PARTS, methods, strict=True))

    def check(self) -> None:
        """Raise ValueError if the parts' logits are not those of the models."""
        self.run_blocks()
        self.run_heads()
        if not torch.equal(self.target, forward(self.models[0], self.window)):
            raise ValueError("a model does more than its blocks and its head")

    def run_blocks(self) -> None:
        """Both models, without their heads."""
        dense, model = (each.base_model for each in self.models)
        with torch.no_grad():
            self.aim = dense(input_ids=self.window, use_cache=False)[0]
        with torch.enable_grad():
            self.stream = model(input_ids=self.window, use_cache=False)[0]
        # a graph of its own for the head
        self.leaf = self.stream.detach().requires_grad_()

    def run_heads(self) -> None:
        """Both heads."""
        dense, model = (each.get_output_embeddings() for each in self.models)
        with torch.no_grad():
            self.target = dense(self.aim)
        with torch.enable_grad():
            self.logits = model(self.leaf)

    def compare(self) -> None:
        """The divergence and its gradient."""
        _, self.slope = divergence_and_gradient(self.logits.detach(), self.target)

    def head_back(self) -> None:
        """From the logits to the last hidden states."""
        self.logits.backward(self.slope)

    def blocks_back(self) -> None:
        """From there to the weights."""
        self.stream.backward(self.leaf.grad)

    def descend(self) -> None:
        """Adam, and the masks."""
        self.optimiser.step()
        self.optimiser.zero_grad()
