"""The memory that a run takes, before a byte of its model is downloaded.

It is counted from the shapes of the model's layers, phase by phase; the largest phase is the peak.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from helpers.beyond.recipe import windows_of
from helpers.errors import UnsupportedModel
from helpers.options import check_choice

Parameters = Mapping[str, Any]  # of a notebook, by their names

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
FLOAT = 4  # bytes of a number of what a solver works in
# copies of a layer's weight that a method holds at once; admm-grad holds 4.5, and others no more
COPIES = {"wanda": 2.5, "sparsegpt": 2.5}
LONGEST = {"boolq": 1291, "sciq": 600}  # tokens of a task's longest item; else 300
CHOICE = 150  # tokens of a text whose logits are computed: its choice, and what it is padded to
ALL_TOKENS = 400_000  # of the longest evaluation text
# bytes a word of the vocabulary, for the losses of 128 positions; as measured
LOSSES = 128 * 6


class Shape:
    """The sizes of a Llama or Mistral: of a name in shapes.yaml, or of a folder.

    inputs: of a block, which has a Gram matrix for each: (d_in, the d_out of the layers it goes to)

    Raises UnsupportedModel for any other model.
    """

    def __init__(self, model: str | Path) -> None:
        from transformers import AutoConfig, LlamaConfig  # here: it takes seconds

        name = str(model)
        folder = Path(name).expanduser()
        known = yaml.safe_load(Path(__file__).with_name("shapes.yaml").read_bytes())
        config = None
        if name in known:
            config = LlamaConfig(**known[name])
        elif folder.is_dir():  # a name of the hub is not looked up
            # what is wrong will be said when it is loaded; TypeError: a list, for transformers 5.15
            with contextlib.suppress(OSError, ValueError, TypeError):
                config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if getattr(config, "model_type", None) not in ("llama", "mistral"):
            raise UnsupportedModel(
                f"the shape of model {name!r} is not known: give the folder of a Llama or Mistral, "
                f"or one of {', '.join(known)}"
            )
        self.blocks = config.num_hidden_layers
        self.positions = config.max_position_embeddings
        self.vocab = config.vocab_size
        self.width = width = config.hidden_size
        self.ff = ff = config.intermediate_size
        head = config.head_dim or width // config.num_attention_heads
        heads = head * config.num_attention_heads
        self.kv = kv = head * config.num_key_value_heads
        # those of q, k, v; of o; of gate, up; of down
        self.inputs = [
            (width, [heads, kv, kv]),
            (heads, [width]),
            (width, [ff, ff]),
            (ff, [width]),
        ]
        self.block_weights = sum(d_in * sum(outputs) for d_in, outputs in self.inputs)
        # layers and two norms a block; the last norm; embedding, and a head of its own or the same
        in_blocks = self.blocks * (self.block_weights + 2 * width)
        tables = 1 if config.tie_word_embeddings else 2
        self.parameters = in_blocks + width + tables * self.vocab * width

    def activations(self, tokens: int) -> int:
        """Numbers that a block holds while text runs through it: three of ff and six of width."""
        return tokens * (3 * self.ff + 6 * self.width)


def memory_needed(parameters: Parameters) -> tuple[int, int]:
    """(bytes of a run's model and work on its device, bytes of what it loads through RAM).

    What a process takes before it has a model is not counted. A method that is not known here, such
    as one of the user's own, counts as admm-grad, which takes the most.
    Raises UnsupportedModel, and BadParameter for an unknown dtype or effort.
    """
    shape = Shape(parameters["model"])
    size = SIZES[check_choice("dtype", parameters.get("dtype", "float32"), SIZES)]
    effort = parameters.get("effort")
    trains = parameters.get("repair") or (effort and windows_of(effort, 0))
    model = size * shape.parameters
    if parameters.get("streamed"):  # from file to file, a block at a time
        in_blocks = size * (shape.block_weights + 2 * shape.width)
        outside = size * shape.vocab * shape.width  # the embedding, or else the head
        model = max(in_blocks, outside)
    else:
        copies = 2 if trains else 1  # training needs the dense model too
        if parameters.get("web_windows"):
            copies = 3  # and a copy of the pruned one is kept
        in_blocks = outside = copies * model
    peak = outside + scoring_work(shape, size, parameters)
    if parameters.get("method", "admm-grad") not in ("dense", "magnitude"):
        length = parameters["length"]
        text = parameters["sequences"] * length * shape.width * size
        # the parity gate, which compares logits
        gate = (4 * length * shape.vocab + shape.activations(length)) * size
        work = text + block_work(shape, size, parameters)
        peak = max(peak, outside + max(text, gate), in_blocks + work)
    if trains:
        # a mask, a gradient, Adam's two moments and the best values; a window's logits
        peak += 17 * shape.blocks * shape.block_weights
        peak += 12 * parameters["length"] * shape.vocab
    return peak, model


def scoring_work(shape: Shape, size: int, parameters: Parameters) -> int:
    """Bytes to measure perplexity or to score tasks, without the model."""
    streamed = parameters.get("streamed")
    window = max(parameters.get("window", 0), parameters.get("second_window", 0))
    scored = window  # tokens whose logits are computed at once
    contexts = 0
    if "tasks" in parameters:
        batch = parameters["batch"]
        lengths = [LONGEST.get(task, 300) for task in parameters["tasks"]]
        scored = window = batch * min(max(lengths, default=0), shape.positions)
        # helpers.scoring keeps a context's keys and values, but not BoolQ's, whose choices are of
        # one token; twice, since a pass adds to a copy
        if not streamed:
            scored = min(window, batch * CHOICE)
            tokens = min(window, batch * LONGEST["sciq"])
            contexts = 2 * tokens * shape.blocks * 2 * shape.kv * size
    if not window:
        return 0
    # logits as the model gives them, in float32, and their logarithms; float32 needs no second copy
    copies = 2 * FLOAT
    if size != FLOAT:
        copies += size
    logits = (scored * copies + LOSSES) * shape.vocab
    # between two blocks of a streamed model wait the hidden states of all windows
    waiting = 0
    if streamed:
        waiting = ALL_TOKENS * shape.width * size
    return waiting + logits + contexts + shape.activations(window) * size


def block_work(shape: Shape, size: int, parameters: Parameters) -> int:
    """Bytes to measure a block's Gram matrices and to solve its layers, the larger of the two."""
    method = parameters.get("method", "admm-grad")
    length = parameters["length"]
    grams = [FLOAT * d_in**2 for d_in, _ in shape.inputs]
    if parameters.get("passes") == 1 or parameters.get("effort"):
        # text waits between two layers, and one input at a time is measured
        text = parameters["sequences"] * length * (shape.ff + 2 * shape.width) * size
        held = grams
    else:
        text = 0
        held = [sum(grams[index:]) for index in range(len(grams))]  # each till its end
    peak = max(held) + shape.activations(length) * size
    for index, (d_in, outputs) in enumerate(shape.inputs):
        layer = FLOAT * max(outputs) * d_in
        work = COPIES.get(method, 4.5) * layer
        if method != "wanda":  # one more copy of the gram to solve, four to factor it
            work = max(work + grams[index], 4 * grams[index])
        if size != FLOAT:
            work += layer
        peak = max(peak, held[index] + int(work))
    return text + peak


def gigabytes(size: float) -> str:
    """Bytes for people: one decimal below 10 GB, none above."""
    if size < 9.95e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e9:.0f} GB"
