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
SCORED = 0.85  # of the tokens of a pass: those with logits where choices are long, and a text twice
ALL_TOKENS = 400_000  # of the longest evaluation text


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
    """(bytes of a run's models and work on its device, bytes of what it loads through RAM).

    What a process takes before it has a model is not counted. A method that is not known here, such
    as one of the user's own, counts as admm-grad, which takes the most.
    Raises UnsupportedModel, and BadParameter for an unknown dtype or effort.
    """
    shape = Shape(parameters["model"])
    size = SIZES[check_choice("dtype", parameters.get("dtype", "float32"), SIZES)]
    model = size * shape.parameters
    if parameters.get("streamed"):  # a block at a time, the embedding, or else the head
        in_blocks = shape.block_weights + 2 * shape.width
        model = size * max(in_blocks, shape.vocab * shape.width)
    works = phases(shape, size, parameters).values()
    return max(models * model + work for models, work in works), model


def phases(
    shape: Shape, size: int, parameters: Parameters
) -> dict[str, tuple[int, int]]:
    """Of each phase of a run: (models that are in memory, bytes of work beside them).

    Text runs one sequence at a time: a larger batch is halved where memory runs out.
    """
    effort = parameters.get("effort")
    trains = bool(parameters.get("repair") or (effort and windows_of(effort, 0)))
    # notebook 08 keeps the dense model, and what pruning alone has made of it
    kept = "web_windows" in parameters
    scored = 1 + kept * (1 + trains)
    found = {"score": (scored, scoring_work(shape, size, parameters))}
    if parameters.get("method") not in ("dense", "magnitude"):
        found["prune"] = (1 + (kept or trains), block_work(shape, size, parameters))
    weights = shape.blocks * shape.block_weights
    length = parameters.get("length", 0)
    logits = length * shape.vocab
    # all blocks keep for a backward pass, of a token, k and v, four of ff and seven of width: it is
    # six, or eight where norms are trained or are in float32 beside float16
    graph = shape.blocks * length * (4 * shape.ff + 7 * shape.width + 2 * shape.kv)
    if effort or parameters.get("allocation") in ("guide", "fisher"):
        # a byte of each weight's rank, and while those of a layer are made 20 of each; four steps
        # from logits to their gradient
        layer = shape.width * shape.ff
        backward = graph * size + 16 * max(logits, layer)
        found["guide"] = (1, weights + max(20 * layer, backward))
    if trains:
        # a mask, Adam's two moments and the best values; then two models' logits with a slope, and
        # the graph, which is freed as gradients come
        forward = FLOAT * (graph + 3 * logits)
        found["repair"] = (2 + kept, 13 * weights + max(forward, FLOAT * weights))
    return found


def scoring_work(shape: Shape, size: int, parameters: Parameters) -> int:
    """Bytes to measure perplexity or to score tasks, without the model."""
    window = max(parameters.get("window", 0), parameters.get("second_window", 0))
    scored = 2 * window  # tokens with logits: of this window and of the one before
    mask = 0
    if "tasks" in parameters:
        lengths = [LONGEST.get(task, 300) for task in parameters["tasks"]]
        several = 128 * parameters["batch"]  # tokens of a pass (PASS of scoring)
        window = min(max(several, *lengths), shape.positions)
        scored = int(SCORED * min(several, window))
        mask = window**2
    logits = scored * shape.vocab
    # between two blocks of a streamed model wait the hidden states of all windows
    waiting = ALL_TOKENS * shape.width if window and parameters.get("streamed") else 0
    running = shape.activations(window) + mask
    return size * (waiting + max(logits, running))


def block_work(shape: Shape, size: int, parameters: Parameters) -> int:
    """Bytes to prune: of the parity gate, or of the text with a block's grams or a layer."""
    method = parameters.get("method", "admm-grad")
    length = parameters["length"]
    tokens = parameters["sequences"] * length
    text = tokens * shape.width * size
    # the model's own logits and the replayed ones
    gate = 2 * size * length * shape.vocab
    grams = [FLOAT * d_in**2 for d_in, _ in shape.inputs]
    if parameters.get("passes") == 1 or parameters.get("effort"):
        # text waits between two layers, and one input at a time is measured
        text += (tokens - length) * (shape.ff + 2 * shape.width) * size
        held = grams
    else:
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
    return max(gate, text + peak)


def gigabytes(size: float) -> str:
    """Bytes for people: one decimal below 10 GB, none above."""
    if size < 9.95e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e9:.0f} GB"
