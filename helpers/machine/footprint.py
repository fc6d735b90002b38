"""How much memory `prune_checkpoint` takes, known before it starts.

Counted from the shapes of a model's blocks, phase by phase; the peak is the largest phase.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from helpers.errors import check_choice, check_whole
from helpers.machine.estimates import SIZES, shape_of
from helpers.replay import best_batch

FLOAT = 4  # bytes of what a solver works in
# copies that a method holds at once beside a layer and its gram: of the layer and of the gram
# while it solves, and of the gram while it factors
COPIES = {
    "magnitude": (2.5, 0, 0),
    "wanda": (2.5, 0, 0),
    "sparsegpt": (2.5, 1, 4),
    "admm1": (4.5, 1, 4),
    "admm-grad": (4.5, 1, 4),
}


@dataclass(frozen=True)
class Footprint:
    """Bytes that pruning a checkpoint takes beyond the process as it was before.

    block: the one in memory; grams: those of its inputs; stream: the activations between two
    blocks, 0 if they lie on disk; phases: what each phase takes in all, the stream included.
    """

    block: int
    grams: int
    stream: int
    phases: Mapping[str, int]

    @property
    def peak(self) -> int:
        """The largest phase."""
        return max(self.phases.values())

    @property
    def bare(self) -> int:
        """One block, its grams and the activations: what cannot be avoided."""
        return self.block + self.grams + self.stream


def checkpoint_memory(
    source: str | os.PathLike[str],
    *,
    sequences: int,
    length: int,
    method: str = "admm-grad",
    batch: int | None = None,
    dtype: str = "float32",
    activations: str = "memory",
) -> Footprint:
    """The memory that `prune_checkpoint` takes on a CPU, from the shapes of a Llama or Mistral.

    Args: source, a name of estimates.yaml or a folder with config.json; method, one of COPIES, of
    which admm-grad needs the most; the others as for `prune_checkpoint`.
    Raises UnknownModel, UnsupportedModel, BadParameter.
    """
    shape = shape_of(source)
    of_layer, of_gram, factoring = COPIES[check_choice("method", method, COPIES)]
    size = SIZES[check_choice("dtype", dtype, SIZES)]
    sequences, length = check_whole("sequences", sequences), check_whole("length", length)
    batch = best_batch("cpu", length) if batch is None else check_whole("batch", batch)
    tokens = min(batch, sequences) * length
    on_disk = check_choice("activations", activations, ("memory", "disk")) == "disk"
    stream = 0 if on_disk else sequences * length * shape.width * size
    block = (shape.block_weights + 2 * shape.width) * size
    inputs = [] if method == "magnitude" else shape.inputs  # the others need grams
    grams = FLOAT * sum(d_in**2 for d_in in inputs)
    table = shape.vocab * shape.width * size
    passes = tokens * (3 * shape.ff + 4 * shape.width) * size  # gate, up, their product
    logits = 3 * tokens * shape.vocab * size  # the gate compares two, and looks for NaN

    solving = []  # of each input; the layers are solved in turn, and a gram goes after its last
    for i, (d_in, d_out) in enumerate(zip(shape.inputs, shape.outputs, strict=True)):
        held = sum(later**2 for later in inputs[i:])
        copy = 0 if size == FLOAT else d_out * d_in
        most = max(of_gram * d_in**2 + of_layer * d_out * d_in, factoring * d_in**2)
        solving.append(int(FLOAT * (held + copy + most)))
    phases = {
        "gate": max(block + passes, table + logits),
        "embed": table + stream,
        "grams": stream + block + grams + passes,
        "solve": stream + block + max(solving),
        "rest": (1 if shape.tied else 2) * table,
    }
    return Footprint(block, grams, stream, phases)
