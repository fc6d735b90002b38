"""How much memory `prune_checkpoint` takes, known before it starts.

Counted from the shapes of a model's blocks, phase by phase; the peak is the largest phase.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from helpers.errors import BadParameter, allowed, check_choice, check_whole
from helpers.machine.estimate import SIZES, Shape, shape_of
from helpers.replay import best_batch

FLOAT = 4  # bytes of what a solver works in
# matrices of a layer's size and of its gram's that a method holds at once beside the layer and
# its gram: while solving, and while it factors
_SOLVING = {
    "magnitude": (2.5, 0),
    "wanda": (2.5, 0),
    "sparsegpt": (2.5, 1),
    "admm1": (4.5, 1),
    "admm-grad": (4.5, 1),
}
_FACTORING = {"magnitude": 0, "wanda": 0, "sparsegpt": 4, "admm1": 4, "admm-grad": 4}


@dataclass(frozen=True)
class Footprint:
    """Bytes that pruning a checkpoint takes beyond the process as it was before.

    block: the one in memory; grams: those of its inputs; stream: all activations between two
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

    Args: source, a name of `helpers.machine.estimate.SHAPES` or a folder with config.json; the others as
    for `prune_checkpoint`. Raises UnknownModel, UnsupportedModel, BadParameter.
    """
    shape = shape_of(source)
    if method not in _SOLVING:
        raise BadParameter(
            f"the memory of method {method!r} is not known: it is for {allowed(_SOLVING)}; "
            "admm-grad needs the most of them"
        )
    size = SIZES[check_choice("dtype", dtype, SIZES)]
    for name, value in (("sequences", sequences), ("length", length), ("batch", batch)):
        if not (name == "batch" and value is None):
            check_whole(name, value)
    batch = min(batch or best_batch("cpu", length), sequences)
    stream = sequences * length * shape.width * size if activations == "memory" else 0
    block = (shape.block_weights + 2 * shape.width) * size
    grams = FLOAT * sum(d_in**2 for d_in in shape.inputs) if method != "magnitude" else 0
    table = shape.vocab * shape.width * size
    passes = batch * length * (3 * shape.ff + 4 * shape.width) * size  # gate, up, their product
    logits = 3 * batch * length * shape.vocab * size  # the gate compares two, and looks for NaN
    phases = {
        "gate": max(block + passes, table + logits),
        "embed": table + stream,
        "grams": stream + block + grams + passes,
        "solve": stream + block + _solve_bytes(shape, method, size),
        "rest": (1 if shape.tied else 2) * table,
    }
    return Footprint(block, grams, stream, phases)


def _solve_bytes(shape: Shape, method: str, size: int) -> int:
    """The largest moment of solving a block's layers in turn, each gram gone after its last."""
    layers, square = _SOLVING[method]
    largest = 0.0
    for place, (_, d_out, d_in) in enumerate(shape.layers):
        held = 0 if method == "magnitude" else _held_grams(shape, place)
        copy = 0 if size == FLOAT else d_out * d_in
        solving = square * d_in**2 + layers * d_out * d_in
        largest = max(largest, held + copy + max(solving, _FACTORING[method] * d_in**2))
    return int(FLOAT * largest)


def _held_grams(shape: Shape, place: int) -> int:
    """Numbers in the grams of a layer and those after it: q, k, v share one, and gate and up."""
    inputs = [0, 0, 0, 1, 2, 2, 3]
    return sum(shape.inputs[number] ** 2 for number in set(inputs[place:]))
