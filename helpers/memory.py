"""The memory that is free here, and an estimate of what a model takes: before it is downloaded.

    bytes = process + copies · parameters · (size of a weight) + text + logits

`process` and `copies` are fitted to the peaks in the committed records; the copies of pruning stand
here, those of the other notebooks beside the presets of `reproduction.machine`.

In a container the machine's own figure is not the limit: a process that takes more than its control
group allows is killed without a message, which a notebook shows as a dead kernel.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.errors import BadParameter, OutOfMemory, UnsupportedModel
from helpers.options import check_choice, did_you_mean

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# by controller, which is a folder ("" in version 2): the files that hold a group's limit and
# what is used, and the statistic of file cache in that, which the kernel gives back
FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
PROCESS_BYTES = 670_000_000  # Python, torch and the texts
# how often pruning a model and measuring its perplexity takes the bytes of the model (the model, a
# block's grams and what the solver works in)
COPIES = 1.3
# bytes for each weight in the blocks when the repair trains them: the dense model, a mask, the
# gradient, Adam's two moments, the best values, and what the backward pass keeps
REPAIR_BYTES = 24
# bytes for each weight of a block that is read from file: its grams and the solver's, in float32
STREAMED_BYTES = 16
ALL_TOKENS = 400_000  # of the longest evaluation text
PASS_TOKENS = 128  # of each text of a batch that is scored at once
# with CUDA: its libraries in RAM, its context on the GPU
CUDA_PROCESS_BYTES = 2_500_000_000
CUDA_CONTEXT_BYTES = 600_000_000
# how far an estimate of RAM may exceed what is free: the embedded model takes 1.9 GB, not 3
RAM_SLACK = 1.5


@dataclass(frozen=True)
class Memory:
    """Bytes of memory, free and in all: RAM, and of the first GPU (None without one)."""

    ram_free: int
    ram_total: int
    gpu: str | None = None
    gpu_free: int | None = None
    gpu_total: int | None = None


@dataclass(frozen=True)
class ModelSize:
    """How many weights a model has, how many blocks, and the width and rows of its embedding."""

    parameters: int
    blocks: int
    width: int
    vocabulary: int


KNOWN = {
    "tiny": ModelSize(1_591_456, 2, 32, 49_152),
    "embedded": ModelSize(134_515_008, 30, 576, 49_152),
    "embedded-gemma": ModelSize(268_098_176, 18, 640, 262_144),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ModelSize(134_515_008, 30, 576, 49_152),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ModelSize(1_100_048_384, 22, 2048, 32_000),
    "HuggingFaceTB/SmolLM2-1.7B": ModelSize(1_711_376_384, 24, 2048, 49_152),
    "huggyllama/llama-7b": ModelSize(6_738_415_616, 32, 4096, 32_000),
    "meta-llama/Llama-2-7b-hf": ModelSize(6_738_415_616, 32, 4096, 32_000),
    "meta-llama/Llama-2-13b-hf": ModelSize(13_015_864_320, 40, 5120, 32_000),
    "meta-llama/Llama-2-70b-hf": ModelSize(68_976_648_192, 80, 8192, 32_000),
}


def free_memory() -> Memory:
    """RAM and memory of the first GPU that are free now; loads torch to ask for the latter."""
    import torch

    if not torch.cuda.is_available():
        return Memory(*ram())
    return Memory(*ram(), torch.cuda.get_device_name(), *torch.cuda.mem_get_info())


def ram() -> tuple[int, int]:
    """(free, total) bytes of RAM that this process may use: the machine's or its container's."""
    import psutil  # here: `--help` works before anything is installed

    machine = psutil.virtual_memory()
    free = machine.available
    total = machine.total
    if not OWN_GROUPS.exists():
        return free, total
    for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in FILES.keys() & set(controllers.split(",")):
            limit_file, used_file, cache = FILES[controller]
            # in a container the path may be the host's, which does not exist here; a parent does
            group = GROUPS / controller / path.lstrip("/")
            for folder in (group, *group.parents):
                # no group; a limit of "max"
                with contextlib.suppress(OSError, ValueError):
                    limit = int((folder / limit_file).read_text())
                    used = int((folder / used_file).read_text())
                    rows = (folder / "memory.stat").read_text().splitlines()
                    used -= int(dict(row.split() for row in rows).get(cache, 0))
                    total = min(total, limit)
                    free = min(free, max(0, limit - used))
    return free, total


def check_model_name(model: str | Path) -> None:
    """Raise BadParameter for a name that is no model of `KNOWN`, no folder and no id of the hub."""
    text = str(model)
    if text in KNOWN or (text and Path(text).expanduser().is_dir()):
        return
    # whether the hub has a model of that name is seen when it is loaded
    if text.startswith((".", "/", "~")) or text.count("/") != 1:
        ours = [name for name in KNOWN if "/" not in name]
        raise BadParameter(
            f'model {text!r} is unknown: use "embedded" (SmolLM2-135M-Instruct), "embedded-gemma" '
            '(Gemma-3-270M), "tiny" (random weights), an existing folder or a hub id such as '
            f'"owner/name"{did_you_mean(text, ours)}'
        )


def model_size(model: str | Path) -> ModelSize:
    """The size of a model in `KNOWN`, or of a folder of safetensors with its config.json.

    Raises UnsupportedModel for any other.
    """
    if str(model) in KNOWN:
        return KNOWN[str(model)]
    from safetensors import SafetensorError, safe_open  # here: these take seconds
    from transformers import AutoConfig

    parameters = 0
    folder = Path(model).expanduser()
    # a name of the hub is not looked up; what is wrong is said when the model is loaded
    with contextlib.suppress(OSError, ValueError, TypeError, SafetensorError):
        for path in folder.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
                parameters += sum(map(math.prod, shapes))
        if parameters:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            config = config.get_text_config(decoder=True)
            return ModelSize(
                parameters,
                config.num_hidden_layers,
                config.hidden_size,
                config.vocab_size,
            )
    raise UnsupportedModel(
        f"the size of model {str(model)!r} is not known: give a folder with safetensors and "
        f"config.json, or one of {', '.join(KNOWN)}"
    )


def memory_needed(
    model: str | Path,
    *,
    gpu: bool = False,
    dtype: str = "float32",
    streamed: bool = False,
    sequences: int = 0,
    length: int = 0,
    window: int = 0,
    second_window: int = 0,
    windows: int = 0,
    batch: int = 0,
    effort: str = "",
    allocation: str = "",
    repair: str = "",
    copies: float = COPIES,
    **_others: Any,
) -> tuple[int, int]:
    """(bytes on the GPU, 0 without one; bytes of RAM) that a run takes at its peak.

    copies: of the notebook, see the module. All else are parameters of a notebook by their
    names; those that do not count are taken too. Every layer method counts alike.
    Raises UnsupportedModel for a model whose size is not known, BadParameter for a dtype.
    """
    known = model_size(model)
    size = SIZES[check_choice("dtype", dtype, SIZES)]
    whole = size * known.parameters
    text = sequences * length
    embedding = known.vocabulary * known.width
    if streamed:  # a block at a time, the embedding, or the head
        block = known.parameters // known.blocks
        loaded = size * max(block, embedding)
        work = max(STREAMED_BYTES * block, loaded)
        if window:  # the hidden states of all windows wait between two blocks
            text = max(text, windows * window or ALL_TOKENS)
    else:
        loaded = whole
        work = copies * whole
    if repair or effort not in ("", "fast"):
        work += REPAIR_BYTES * (known.parameters - embedding)
    elif effort or allocation in ("guide", "fisher"):
        work += whole  # of squared gradients, ranks, and the backward pass
    # the logits of a window and of the one before, or of a batch of texts
    scored = max(2 * window, 2 * second_window, PASS_TOKENS * batch)
    work += size * (text * known.width + scored * known.vocabulary)
    if gpu:
        return int(work) + CUDA_CONTEXT_BYTES, loaded + CUDA_PROCESS_BYTES
    return 0, int(work + PROCESS_BYTES)


def check_memory(
    model: str | Path, *, device: str = "auto", **parameters: Any
) -> dict[str, str]:
    """What a run will take and what is free, in words; call it before a model is loaded.

    parameters: as for `memory_needed`. For a model whose size is not known the words say so.
    Raises BadParameter for an unknown dtype and for what is no name of a model, and OutOfMemory,
    which says what to change, where the run does not fit; RAM is estimated generously, so a little
    too little is "tight".
    """
    check_model_name(model)
    free = free_memory()
    words = {"free RAM": f"{gigabytes(free.ram_free)} of {gigabytes(free.ram_total)}"}
    if free.gpu is not None:
        words[f"free on {free.gpu}"] = (
            f"{gigabytes(free.gpu_free)} of {gigabytes(free.gpu_total)}"
        )
    on_gpu = free.gpu is not None and device != "cpu"
    try:
        on_device, in_ram = memory_needed(model, gpu=on_gpu, **parameters)
    except UnsupportedModel:
        return {"needs": "not known for this model", **words}
    kinds = [("RAM", in_ram, free.ram_free, RAM_SLACK)]
    if on_gpu:
        kinds.append(("GPU memory", on_device, free.gpu_free, 1.0))
    needs = []
    for kind, need, left, slack in kinds:
        if need > left * slack:
            sizes = ("sequences", "length", "window", "batch")
            raise OutOfMemory(
                f"{model} needs about {gigabytes(need)} of {kind} here and {gigabytes(left)} are "
                "free: choose a smaller model or lower "
                f"{', '.join(name for name in sizes if name in parameters)}; restarting a "
                "notebook's kernel frees what its cells hold"
            )
        needs.append(f"{gigabytes(need)} of {kind}{' (tight)' if need > left else ''}")
    return {"needs": ", ".join(needs), **words}


def gigabytes(size: float) -> str:
    """Bytes for people: one decimal below 10 GB, none above."""
    if size < 9.95e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e9:.0f} GB"
