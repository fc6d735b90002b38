"""A whole model's pruning over what it cannot avoid: two forward passes and the solver.

`prune_model` runs each block twice, for grams and with its new weights, and solves each layer.
Here both are also timed bare: the model's own blocks over the stream (hidden states) twice without
hooks, and the method on ready grams (Gram matrices).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import published
from benchmarks.problems import Snapshot, cut_model, random_llama, random_tokens
from benchmarks.solver import SPARSITY, agreement, errors_of
from benchmarks.timing import interleaved, ratio, summary
from helpers.data.corpora import calibration_tokens
from helpers.model.block_grams import layer_grams
from helpers.model.blocks import advance, check_parity, embed, record_calls, run_block
from helpers.model.models import find_blocks, find_layers, load_model, read_weight
from helpers.model.prune import prune_model
from helpers.paper.gram import Gram
from helpers.paper.methods import METHODS

TARGET, PUBLISHED_TARGET = 1.2, 2.0
METHOD = "admm-grad"
BATCH = 1  # prune_model's own default


def measure(quick: bool = False) -> dict[str, Any]:
    """Measure each model (a row, see `measure_model`), on the CPU and on a GPU if there is one.

    On a GPU also two blocks of LLaMA-7B's shapes.
    """
    repeats = 1 if quick else 3
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows = []
    for device in devices:
        for name, model, tokens in _problems(quick, device):
            rows.append(measure_model(name, model, tokens, repeats))
    return {"rows": rows}


def _problems(quick: bool, device: str) -> Any:
    """Yield (name, model, tokens), one after the other so that only one is in memory."""
    if quick:
        model = random_llama(2, 64, 128, 4, device=device)
        yield "random Llama, 2 blocks of 64", model, random_tokens(model, 8, 32)
        return
    model = random_llama(4, 512, 1408, 8, device=device)
    yield "random Llama, 4 blocks of 512", model, random_tokens(model, 16, 256)
    model = cut_model("embedded", 6, device)
    tokens = calibration_tokens(
        "embedded", load_model("embedded")[1], sequences=16, length=512
    )
    yield "embedded model, 6 blocks", model, tokens
    if device == "cuda":
        model = random_llama(2, 4096, 11008, 32, device=device, dtype="float16")
        yield (
            "random Llama, 2 blocks of 4096 (LLaMA-7B)",
            model,
            random_tokens(model, 128, 2048),
        )


def measure_model(
    name: str, model: nn.Module, tokens: Tensor, repeats: int
) -> dict[str, Any]:
    """Time `prune_model`, its floor in parts, its gate and the published path, alternating.

    tokens: (sequences, length). The model is left as it was. Raises ValueError if the published
    path's answer differs from ours.
    """
    bench = Bench(model, tokens)
    runs = {
        "ours": bench.ours,
        "forward twice": bench.forward_twice,
        "solver": bench.solver,
        "gate": bench.gate,
        "published": bench.published,
    }
    seconds = interleaved(
        runs, repeats, warm=False, before=bench.restore, device=bench.device
    )
    bench.restore()

    rounds = zip(seconds["ours"], seconds["gate"], strict=True)
    seconds["ours without gate"] = [ours - gate for ours, gate in rounds]
    return {
        "case": name,
        "device": str(bench.device.type),
        "sequences": len(tokens),
        "length": tokens.shape[1],
        "batch": BATCH,
        "seconds": {what: summary(values) for what, values in seconds.items()},
        "ratio": ratio(seconds, "ours", "forward twice", "solver"),
        "without gate": ratio(seconds, "ours without gate", "forward twice", "solver"),
        "gate share": ratio(seconds, "gate", "ours"),
        "published": ratio(seconds, "published", "ours"),
        "difference": bench.difference(),
    }


class Bench:
    """A model with its tokens (sequences, length), and what is timed on it."""

    def __init__(self, model: nn.Module, tokens: Tensor) -> None:
        self.model = model
        self.tokens = tokens
        self.device = next(model.parameters()).device
        self.restore = Snapshot(model).restore
        calls = record_calls(model, tokens[:BATCH])
        self.blocks = list(zip(find_blocks(model), calls, strict=True))
        self.stream = embed(model, tokens, BATCH)
        # the grams of every block's layers before anything is pruned
        self.grams: list[dict[str, Gram]] = []
        stream = self.stream.clone()
        for index, (block, call) in enumerate(self.blocks):
            self.grams.append(layer_grams(block, stream, call, BATCH))
            advance(block, stream, call, BATCH, f"block {index}")

    def ours(self) -> None:
        """Call `prune_model`, as a user does."""
        prune_model(
            self.model,
            self.tokens,
            method=METHOD,
            sparsity=SPARSITY,
            batch=BATCH,
            allow_pruned=True,  # it is dense again: `restore` has put the weights back
        )

    def forward_twice(self) -> None:
        """Run the stream through all blocks, twice, in batches and without hooks."""
        for _ in range(2):
            stream = self.stream.clone()
            for block, call in self.blocks:
                for rows in stream.split(BATCH):
                    rows.copy_(run_block(block, rows, call))

    def solver(self) -> None:
        """Run the method on every layer, from ready grams."""
        for (block, _), grams in zip(self.blocks, self.grams, strict=True):
            # new ones, which no earlier round has factored; layers with one input share one
            fresh = {id(gram): Gram.of(gram.matrix) for gram in grams.values()}
            for name, layer in find_layers(block).items():
                gram = fresh[id(grams[name])]
                METHODS[METHOD](read_weight(layer), gram, sparsity=SPARSITY)

    def gate(self) -> None:
        """Do what `prune_model` does once for a batch: record the arguments, check parity."""
        calls = record_calls(self.model, self.tokens[:BATCH])
        check_parity(self.model, calls, self.tokens[:BATCH].flip(1))

    def published(self) -> None:
        """Prune the whole model by the published path."""
        published.prune(self.model, self.tokens, SPARSITY)

    def difference(self) -> dict[str, float]:
        """Compare our errors with the published path's, see `benchmarks.solver.agreement`.

        Both solve each layer from the published path's weight and gram of two sequences: in deeper
        blocks, rounding alone would give the layers of two runs different inputs. Raises ValueError
        if they disagree.
        """
        errors: list[tuple[float, float]] = []

        def check(name: str, weight: Tensor, new: Tensor, gram: Tensor) -> None:
            weight = weight.float()
            ours = METHODS[METHOD](weight, gram, sparsity=SPARSITY).weight
            errors.append(errors_of(weight, ours, new, gram))

        published.prune(self.model, self.tokens[:2], SPARSITY, check)
        self.restore()
        return agreement(errors)
