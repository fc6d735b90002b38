"""The memory that a run takes, before a byte of its model is downloaded.

It is counted from the shapes of the model's layers, phase by phase; the largest phase is the peak.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from helpers.errors import UnsupportedModel
from helpers.options import check_choice

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
FLOAT = 4  # bytes of what a solver works in
# copies of a layer's weight that a method holds at once; the last is that of all other methods
COPIES = {"wanda": 2.5, "sparsegpt": 2.5, "admm-grad": 4.5}
LONGEST = {
    "boolq": 1291,
    "sciq": 600,
}  # tokens of the longest item; of all other tasks 300
CHOICE = 150  # tokens of a text whose logits are computed: its choice, and what it is padded to
ALL_TOKENS = 400_000  # of the longest evaluation text
LOSSES = (
    128 * 6
)  # bytes a word of the vocabulary, for the losses of 128 positions; as measured


class Shape:
    """The sizes of a Llama or Mistral: of a name in shapes.yaml, or of a folder.

    Raises UnsupportedModel for any other model.
    """

    def __init__(self, model: str | os.PathLike[str]) -> None:
        from transformers import (
            AutoConfig,
            LlamaConfig,
        )  # here, because it takes seconds

        name, config = os.fspath(model), None
        known = yaml.safe_load(
            (Path(__file__).parent / "shapes.yaml").read_text(encoding="utf-8")
        )
        if name in known:
            config = LlamaConfig(**known[name])
        elif (
            folder := Path(name).expanduser()
        ).is_dir():  # a name of the hub is not looked up
            # what is wrong will be said when it is loaded; TypeError: a list, for transformers 5.15
            with contextlib.suppress(OSError, ValueError, TypeError):
                config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if getattr(config, "model_type", None) not in ("llama", "mistral"):
            raise UnsupportedModel(
                f"the shape of model {name!r} is not known: give the folder of a Llama or Mistral, "
                f"or one of {', '.join(known)}"
            )
        self.blocks, self.positions = (
            config.num_hidden_layers,
            config.max_position_embeddings,
        )
        width, ff = self.width, self.ff = config.hidden_size, config.intermediate_size
        head = config.head_dim or width // config.num_attention_heads
        heads, kv = head * config.num_attention_heads, head * config.num_key_value_heads
        # of each input of a block, which has a gram: d_in, and d_out of the layers it goes to:
        # q, k, v; o; gate, up; down
        self.inputs = [
            (width, [heads, kv, kv]),
            (heads, [width]),
            (width, [ff, ff]),
            (ff, [width]),
        ]
        self.vocab, self.kv = config.vocab_size, kv
        self.block_weights = sum(d_in * sum(outputs) for d_in, outputs in self.inputs)
        # layers, two norms a block, the last norm, embedding and head
        tables = (1 if config.tie_word_embeddings else 2) * self.vocab * width
        self.parameters = (
            self.blocks * (self.block_weights + 2 * width) + width + tables
        )

    def activations(self, tokens: int) -> int:
        """Numbers that a block holds while text runs through it: three of ff and six of width."""
        return tokens * (3 * self.ff + 6 * self.width)


def memory_needed(parameters: Mapping[str, Any], *, gpu: bool) -> tuple[int, int]:
    """(bytes on the device, bytes of RAM) of a run's model and work; the same without a GPU.

    What a process takes before it has a model is not counted. A method that is not known here, such
    as one of the user's own, counts as admm-grad, which takes the most.
    Raises UnsupportedModel, and BadParameter for an unknown dtype.
    """
    shape = Shape(parameters["model"])
    size = SIZES[check_choice("dtype", parameters.get("dtype", "float32"), SIZES)]
    trains = parameters.get("repair") or parameters.get("effort", "") not in (
        "",
        "fast",
    )
    streamed = parameters.get("streamed", False)  # from file to file, a block at a time
    model = size * shape.parameters
    # beside what is pruned stay the dense model and a copy, or the dense model alone
    in_blocks = outside = model * (
        3 if parameters.get("web_windows") else 2 if trains else 1
    )
    if streamed:
        in_blocks = size * (shape.block_weights + 2 * shape.width)
        outside = size * shape.vocab * shape.width  # the embedding, or else the head
        model = max(in_blocks, outside)
    scored = window = max(
        parameters.get("window", 0), parameters.get("second_window", 0)
    )
    kept = 0  # keys and values of contexts, twice, since a pass adds to a copy
    if "tasks" in parameters:
        longest = max(
            (LONGEST.get(task, 300) for task in parameters["tasks"]), default=0
        )
        scored = window = parameters["batch"] * min(longest, shape.positions)
        if (
            not streamed
        ):  # by helpers.scoring, where BoolQ's choices of one token keep nothing
            scored = min(window, parameters["batch"] * CHOICE)
            context = min(window, parameters["batch"] * LONGEST["sciq"])
            kept = 2 * context * shape.blocks * 2 * shape.kv * size
    copies = (
        8 if size == FLOAT else size + 8
    )  # of the logits: in float32, and their logarithms
    # between two blocks of a streamed model wait all windows
    stream = ALL_TOKENS * shape.width * size if streamed and window else 0
    # of a window all logits, and more of the positions whose losses are computed together
    logits = (scored * copies + (LOSSES if window else 0)) * shape.vocab
    peak = outside + stream + logits + kept + shape.activations(window) * size
    if parameters.get("method", "admm-grad") not in ("dense", "magnitude"):
        length = parameters["length"]
        pruned = parameters["sequences"] * length * shape.width * size
        gate = 4 * length * shape.vocab * size + shape.activations(length) * size
        work = pruned + _block_work(shape, size, parameters)
        peak = max(peak, outside + max(pruned, gate), in_blocks + work)
        stream = max(stream, pruned)
    if (
        trains
    ):  # a mask, a gradient, Adam's two moments and the best values; a window's logits
        peak += (
            17 * shape.blocks * shape.block_weights
            + 12 * parameters["length"] * shape.vocab
        )
    return (peak, model) if gpu else (peak, peak)


def _block_work(shape: Shape, size: int, parameters: Mapping[str, Any]) -> int:
    """Bytes to measure a block's grams and to solve its layers, the larger of the two."""
    method, length = parameters.get("method", "admm-grad"), parameters["length"]
    text, running = 0, shape.activations(length) * size
    grams = [FLOAT * d_in**2 for d_in, _ in shape.inputs]
    one_pass = parameters.get("passes") == 1 or parameters.get("effort")
    if one_pass:  # text waits between two layers, and one input at a time is measured
        text = parameters["sequences"] * length * (shape.ff + 2 * shape.width) * size
    peak = (max(grams) if one_pass else sum(grams)) + running
    for index, (d_in, outputs) in enumerate(
        shape.inputs
    ):  # a gram goes after its last layer
        held = grams[index] if one_pass else sum(grams[index:])
        layer = FLOAT * max(outputs) * d_in
        work = COPIES.get(method, COPIES["admm-grad"]) * layer
        if method != "wanda":  # one more copy of the gram to solve, four to factor it
            work = max(work + grams[index], 4 * grams[index])
        peak = max(peak, held + (0 if size == FLOAT else layer) + int(work))
    return text + peak


def gigabytes(size: float) -> str:
    """Bytes for people: one decimal below 10 GB, none above."""
    return f"{size / 1e9:.1f} GB" if size < 9.95e9 else f"{size / 1e9:.0f} GB"
