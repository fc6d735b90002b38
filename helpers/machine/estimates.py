"""What a run needs, before a byte is downloaded: memory, disk and time.

Memory is counted from the shapes of a model's layers, phase by phase; the largest phase is the
peak. Time is floating-point operations over a machine's rate, and leaves out downloading.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import timeit
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import yaml

from helpers.data.tasks import TASK_TABLE
from helpers.errors import BadParameter, UnsupportedModel, check_choice, check_whole
from helpers.machine.memory import free_memory
from helpers.paths import cache_dir

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
FLOAT = 4  # bytes of what a solver works in
# the notebook's process without the model: Python, torch and the texts; with CUDA also its
# libraries, and on the GPU its context
PROCESS_BYTES, CUDA_PROCESS_BYTES, CUDA_CONTEXT_BYTES = int(0.7e9), int(2.5e9), int(0.6e9)
GRAM_SHARE = 5 / 8  # of a gram's products is computed: its upper triangle, in panels
# copies of a layer that `prune_checkpoint` holds at once while a method works on it
COPIES = {"magnitude": 2.5, "wanda": 2.5, "sparsegpt": 2.5, "admm1": 4.5, "admm-grad": 4.5}


@dataclass(frozen=True)
class Shape:
    """The architecture of a Llama model; estimates.yaml says what the fields mean."""

    blocks: int
    width: int
    ff: int
    kv_width: int
    vocab: int
    positions: int
    tied: bool = False
    gated: bool = False

    @property
    def inputs(self) -> list[tuple[int, list[int]]]:
        """Of each input of a block, which has a gram: d_in, and d_out of the layers it goes to."""
        width, ff, kv = self.width, self.ff, self.kv_width
        # to q, k, v; to o; to gate, up; to down
        return [(width, [width, kv, kv]), (width, [width]), (width, [ff, ff]), (ff, [width])]

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(d_out, d_in) of a block's layers: q, k, v, o, gate, up, down."""
        return [(d_out, d_in) for d_in, outputs in self.inputs for d_out in outputs]

    @property
    def gram_entries(self) -> int:
        """Numbers in the grams of one block."""
        return sum(d_in**2 for d_in, _ in self.inputs)

    @property
    def block_weights(self) -> int:
        """Weights in the linear layers of one block."""
        return sum(d_out * d_in for d_out, d_in in self.layers)

    @property
    def parameters(self) -> int:
        """All parameters: layers, two norms a block, the last norm, embedding and head."""
        tables = (1 if self.tied else 2) * self.vocab * self.width
        return self.blocks * (self.block_weights + 2 * self.width) + self.width + tables


@dataclass(frozen=True)
class Machine:
    """A machine, which need not be here: its rates, GPU and RAM."""

    name: str
    gpu: bool
    flops: Mapping[str, float]  # floating-point operations a second of a whole run, by dtype
    memory: int  # bytes of the GPU, without one of RAM
    ram: int
    note: str  # where the rates come from
    here: bool = False  # it is the machine that this process runs on


@dataclass(frozen=True)
class Estimate:
    """What one run needs."""

    memory_bytes: int  # peak on the device (of the process without a GPU), one sequence a pass
    host_bytes: int  # peak of RAM
    disk_bytes: int  # downloads and what is made of them
    seconds: float  # of pruning and evaluation


@dataclass(frozen=True)
class Footprint:
    """Bytes that pruning a checkpoint takes beyond the process as it was before."""

    block: int  # the one in memory
    grams: int  # those of its inputs
    stream: int  # the activations between two blocks, 0 if they lie on disk
    peak: int  # of the largest phase, the stream included

    @property
    def bare(self) -> int:
        """One block, its grams and the activations: what cannot be avoided."""
        return self.block + self.grams + self.stream


@functools.cache
def known() -> dict[str, Any]:
    """What estimates.yaml says of models, machines and texts."""
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def shape_of(model: str | os.PathLike[str]) -> Shape:
    """The shape of a model of estimates.yaml, or of a Llama or Mistral in a folder.

    Raises BadParameter, and UnsupportedModel for another family in a folder.
    """
    name, models = os.fspath(model), known()["models"]
    if name in models:
        return Shape(**models[name])
    try:
        text = (Path(name).expanduser() / "config.json").read_text(encoding="utf-8")
        config = dict(json.loads(text))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BadParameter(
            f"model {name!r} has no known shape: give a folder with config.json or one of "
            f"{', '.join(models)}"
        ) from error
    family, heads = config.get("model_type"), config.get("num_attention_heads", 1)
    head_width = config.get("head_dim") or config.get("hidden_size", 0) // heads
    if family not in ("llama", "mistral") or head_width * heads != config.get("hidden_size"):
        raise UnsupportedModel(
            f"model {name!r} of type {family!r} cannot be estimated: give a Llama or Mistral model"
        )
    return Shape(
        blocks=config["num_hidden_layers"],
        width=config["hidden_size"],
        ff=config["intermediate_size"],
        kv_width=head_width * (config.get("num_key_value_heads") or heads),
        vocab=config["vocab_size"],
        positions=config["max_position_embeddings"],
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def machine_named(name: str) -> Machine:
    """A machine of estimates.yaml, which need not be here. Raises BadParameter."""
    machines = known()["machines"]
    return Machine(name, **machines[check_choice("machine", name, machines)])


def this_machine() -> Machine:
    """This machine; large products are timed for about half a second a dtype."""
    import torch

    memory = free_memory()
    gpu, total = memory.gpu is not None, memory.ram_total
    # a whole run reaches this share of the rate of large products (on a GPU not measured)
    device, size, share = ("cuda", 4096, 0.6) if gpu else ("cpu", 1024, 0.85)

    def rate(dtype: str) -> float:
        square = torch.ones(size, size, device=device, dtype=getattr(torch, dtype))
        timer = timeit.Timer(lambda: (square @ square)[0, 0].item())  # item waits for a GPU
        timer.timeit(1)  # the first call sets up the library
        count, seconds = timer.autorange()
        return share * count * 2 * size**3 / seconds

    flops = {"float32": rate("float32")}
    # no CPU has instructions for float16 that torch uses, some have them for bfloat16
    flops |= {"float16": rate("float16") if gpu else flops["float32"] / 4}
    flops["bfloat16"] = rate("bfloat16")
    name, on_device = (memory.gpu, memory.gpu_total) if gpu else ("this CPU", total)
    return Machine(name, gpu, flops, on_device, total, "large products timed", here=True)


def estimate(parameters: Mapping[str, Any], machine: Machine) -> Estimate:
    """What a run that prunes a model and evaluates it needs on a machine.

    Args: parameters, those of notebook 00, 04, 05, 07 or 08. A method that is not known here, such
    as a reader's own, counts as admm-grad, the most expensive of those known.
    Raises BadParameter (other parameters, a dtype or task that is unknown), BadParameter and
    UnsupportedModel.
    """
    names = set(parameters)
    if not ({"model", "method", "sequences", "length"} <= names and names & {"windows", "tasks"}):
        raise BadParameter("only a run that prunes and evaluates a model can be estimated")
    memory, host = memory_needed(parameters, gpu=machine.gpu)
    parameters = in_steps(parameters)
    passes, products = flop(parameters)
    dtype, precision = parameters.get("dtype", "float32"), parameters.get("precision", "float32")
    rate = machine.flops[dtype]
    if dtype == "float32" and precision != "float32":
        lower = machine.flops["bfloat16"]
        # as `helpers.precision` decides
        rate = lower if precision == "bfloat16" or lower > rate / 0.8 else rate
    seconds = passes / rate + products / machine.flops["float32"]
    return Estimate(memory, host, sum(downloads(parameters).values()), seconds)


def in_steps(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe's parameters as those of the steps that it takes; others as they are."""
    if parameters.get("method", "dense") in ("dense", *COPIES):
        return parameters
    from helpers.beyond.recipe import BUDGETS, USUAL  # here, because they load torch
    from helpers.methods import RECIPES

    if parameters["method"] not in RECIPES:
        return parameters
    options = dict(parameters.get("options") or {})
    own = {name: options.pop(name, usual) for name, usual in USUAL.items()}
    spend = BUDGETS[check_choice("budget", own["budget"], BUDGETS)]
    grouped = parameters.get("pattern", "unstructured") != "unstructured"
    steps = {"method": own["base"], "options": options,
             "allocation": "uniform" if grouped else "guide", "guide_sequences": spend.guide,
             "repair": "all" if spend.repair else "", "repair_windows": spend.repair}  # fmt: skip
    return {"passes": 1, "precision": own["precision"]} | parameters | steps


def flop(parameters: Mapping[str, Any]) -> tuple[float, float]:
    """(operations of the model's passes, operations of grams and solvers, which are in float32).

    Two passes a block and calibration token, one for the grams and one with the pruned weights, or
    one that does both.
    """
    shape, method = shape_of(parameters["model"]), parameters["method"]

    def passes(tokens: int, context: int) -> float:  # attention looks at `context` tokens
        return tokens * shape.blocks * (2 * shape.block_weights + 4 * context * shape.width)

    head = 2 * shape.vocab * shape.width
    evaluation, texts = 0.0, known()["texts"]
    for task in parameters.get("tasks", []):
        tokens = known()["tasks"][task]["tokens"] * (parameters["limit"] or TASK_TABLE[task].size)
        evaluation += passes(tokens, 100) + tokens * head
    for window in (parameters.get("window", 0), parameters.get("second_window", 0)):
        if window:
            text = texts.get(parameters["evaluation"], texts["embedded"])  # a file is not opened
            tokens = window * (parameters["windows"] or text // window)
            evaluation += passes(tokens, window) + tokens * head
    if "repair_windows" in parameters:
        length = parameters["length"]
        # a step is a pass of each model and one backwards, which is worth two; looks at the
        # held-out windows are three, of both models, at four windows
        steps = 4 * parameters["repair_windows"] + 24 if parameters["repair"] else 0
        guiding = {"guide": "guide_sequences", "fisher": "sequences"}.get(parameters["allocation"])
        steps += 3 * parameters[guiding] if guiding else 0
        if "web_windows" in parameters:  # three models are evaluated, on calibration text too
            evaluation *= 3
            steps += 3 * parameters["web_windows"]
        evaluation += passes(steps * length, length) + steps * length * head
    if method in ("dense", "magnitude"):
        return evaluation, 0.0

    length = check_whole("length", parameters["length"])
    tokens = check_whole("sequences", parameters["sequences"]) * length
    product = 2 * sum(d_out * d_in**2 for d_out, d_in in shape.layers)  # of weights with grams
    if method == "wanda":
        solver = 0.0
    elif method == "sparsegpt":  # two factorisations and an inverse a layer, then the sweep
        solver = product / 2 + 4 / 3 * sum(d_in**3 for _, d_in in shape.layers)
    else:  # an inverse an input, a product before the first iteration and one in each
        iterations = (parameters.get("options") or {}).get("iterations", 20)
        solver = (iterations + 1) * product + sum(d_in**3 for d_in, _ in shape.inputs)
    grams = 2 * GRAM_SHARE * tokens * shape.gram_entries
    error = 2 * product  # the relative error in the report
    runs = parameters.get("passes", 2)
    return evaluation + runs * passes(tokens, length), shape.blocks * (grams + solver + error)


def memory_needed(parameters: Mapping[str, Any], *, gpu: bool) -> tuple[int, int]:
    """(peak bytes on the device, peak bytes of RAM); the same without a GPU.

    The peak beside the model is the largest of evaluation, embedding, parity gate, grams, solver.
    Raises what `estimate` raises.
    """
    parameters = in_steps(parameters)
    shape = shape_of(parameters["model"])
    size = SIZES[check_choice("dtype", parameters.get("dtype", "float32"), SIZES)]
    method = parameters.get("method", "admm-grad")

    def activations(tokens: int) -> int:  # one block holds three of ff and six of width
        return tokens * (3 * shape.ff + 6 * shape.width) * size

    tokens = max(parameters.get("window", 0), parameters.get("second_window", 0))
    if "tasks" in parameters:
        table, tasks = known()["tasks"], parameters["tasks"]
        longest = max((table[check_choice("task", t, table)]["longest"] for t in tasks), default=0)
        tokens = parameters["batch"] * min(longest, shape.positions)
    copies = 8 if size == 4 else size + 8  # logits, in float32, and their logarithms
    phases = [tokens * shape.vocab * copies + activations(tokens)]
    if method == "magnitude":
        phases.append(28 * shape.width * shape.ff)
    elif method != "dense":
        length = parameters["length"]
        stream = parameters["sequences"] * length * shape.width * size
        grams = stream + FLOAT * shape.gram_entries
        if parameters.get("passes") == 1:
            grams += waiting(shape, parameters["sequences"] * length) * size
        phases += [
            2 * stream,
            4 * length * shape.vocab * size + activations(length),
            grams + 4 * length * shape.ff + activations(length),
            grams + max(28 * d_out * d_in + 12 * d_in**2 for d_out, d_in in shape.layers),
        ]
    model = loaded = shape.parameters * size
    if "web_windows" in parameters:  # the dense model and a copy of the pruned one stay
        model *= 3
    elif parameters.get("repair"):
        model *= 2
    if parameters.get("repair"):  # a mask, a gradient, Adam's two moments, the best values; logits
        model += 17 * shape.blocks * shape.block_weights + 12 * parameters["length"] * shape.vocab
    if gpu:
        return model + max(phases) + CUDA_CONTEXT_BYTES, loaded + CUDA_PROCESS_BYTES
    return (model + max(phases) + PROCESS_BYTES,) * 2


def waiting(shape: Shape, tokens: int) -> int:
    """Numbers that a block holds between two layers, where text waits in one pass."""
    return tokens * (shape.ff + 2 * shape.width)


def checkpoint_memory(
    source: str | os.PathLike[str],
    *,
    sequences: int,
    length: int,
    passes: int = 2,
    method: str = "admm-grad",
    batch: int | None = None,
    dtype: str = "float32",
    activations: str = "memory",
) -> Footprint:
    """The memory that `prune_checkpoint` takes on a CPU, from the shapes of a Llama or Mistral.

    Args: source, a name of estimates.yaml or a folder with config.json; method, one of COPIES, of
    which admm-grad needs the most; passes, batch and the others as for `prune_checkpoint`.
    Raises BadParameter, UnsupportedModel, BadParameter.
    """
    from helpers.replay import best_batch  # here, because it loads torch

    shape = shape_of(source)
    copies = COPIES[check_choice("method", method, COPIES)]
    size = SIZES[check_choice("dtype", dtype, SIZES)]
    sequences, length = check_whole("sequences", sequences), check_whole("length", length)
    batch = best_batch("cpu", length) if batch is None else check_whole("batch", batch)
    tokens = min(batch, sequences) * length
    on_disk = check_choice("activations", activations, ("memory", "disk")) == "disk"
    stream = 0 if on_disk else sequences * length * shape.width * size
    text = waiting(shape, sequences * length) * size if passes == 1 else 0
    block = (shape.block_weights + 2 * shape.width) * size
    # one pass measures one input at a time
    entries = max(d_in**2 for d_in, _ in shape.inputs) if passes == 1 else shape.gram_entries
    grams = 0 if method == "magnitude" else FLOAT * entries
    table = shape.vocab * shape.width * size
    running = tokens * (3 * shape.ff + 4 * shape.width) * size  # gate, up, their product
    logits = 3 * tokens * shape.vocab * size  # the gate compares two, and looks for NaN

    solving, held = [], grams  # layers are solved in turn, and a gram goes after its last one
    for d_in, outputs in shape.inputs:
        layer, gram = FLOAT * max(outputs) * d_in, FLOAT * d_in**2
        work = copies * layer
        if method not in ("magnitude", "wanda"):
            work = max(work + gram, 4 * gram)  # one copy of the gram to solve, four to factor it
        held = gram if passes == 1 else held
        solving.append(held + (0 if size == FLOAT else layer) + int(work))
        held -= min(held, gram)
    phases = [
        max(block + running, table + logits),  # parity gate
        table + stream,  # embedding
        stream + block + text + grams + running,
        stream + block + text + max(solving),
        (1 if shape.tied else 2) * table,  # what lies outside the blocks
    ]
    return Footprint(block, grams, stream, max(phases))


def downloads(parameters: Mapping[str, Any]) -> dict[str, int]:
    """What a run downloads, with what is made of it: name → bytes. A local folder is not listed."""
    model = str(parameters["model"])  # the tiny one has the tokenizer of the embedded one
    names = ["embedded" if model == "tiny" else model, f"{parameters.get('evaluation')} text"]
    if parameters["method"] not in ("dense", "magnitude"):
        names.append(f"{parameters['calibration']} text")
    if "tasks" in parameters:
        names.append(f"{parameters['source']} tasks")
    # the hub's models are all stored in half precision
    sizes = {name: 2 * shape_of(name).parameters for name in known()["models"]}
    sizes |= known()["downloads"]
    return {name: sizes[name] for name in names if name in sizes}


def missing(parameters: Mapping[str, Any], machine: Machine) -> list[str]:
    """What a run lacks on a machine, a line each with what to do; nothing is fetched.

    Looked at: the hub token of a gated model, a GPU, memory, and disk if the machine is this one.
    Raises what `estimate` raises.
    """
    model, needs, lines = str(parameters["model"]), estimate(parameters, machine), []
    if shape_of(model).gated and not huggingface_hub.get_token():
        lines.append("gated, and no hub token is here: accept its licence, then `hf auth login`")
    dtype, device = parameters.get("dtype", "float32"), parameters.get("device")
    if not machine.gpu and (dtype != "float32" or "cuda" in str(device)):
        lines.append(f"{dtype} on {device} needs a GPU, {machine.name} has none")
    else:
        kinds = [("GPU memory", needs.memory_bytes, machine.memory)] if machine.gpu else []
        for kind, need, there in [*kinds, ("RAM", needs.host_bytes, machine.ram)]:
            if need > there:
                has = f"{machine.name} has {gigabytes(there)}: take a larger machine"
                lines.append(f"{gigabytes(need)} of {kind}, {has}")
    if machine.here:
        hub, need = Path(huggingface_hub.constants.HF_HUB_CACHE), 0
        for name, size in downloads(parameters).items():
            stored = known()["folders"].get(name, f"models--{name.replace('/', '--')}")
            folder = cache_dir() if name.startswith("embedded") else hub / stored
            files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
            need += max(0, size - sum(path.stat().st_size for path in files))
        folder = cache_dir() if model in ("embedded", "tiny") else hub
        free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
        if need > free:
            lines.append(f"{gigabytes(need)} of disk, {gigabytes(free)} are free: make space")
    return [f"{model}: {line}" for line in lines]


def gigabytes(size: float) -> str:
    """Bytes for people: one decimal below 10 GB, none above."""
    return f"{size / 1e9:.1f} GB" if size < 9.95e9 else f"{size / 1e9:.0f} GB"
