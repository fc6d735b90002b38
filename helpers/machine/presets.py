"""Parameters that fit a GPU, and the memory that a notebook takes beside what is free.

A notebook's defaults run the embedded model on a CPU; a preset replaces them when a user asks for
one. What a notebook takes is estimated (`helpers.machine.estimates`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from helpers.errors import BadParameter, OutOfMemory, UnsupportedModel
from helpers.machine.estimates import Shape, gigabytes, memory_needed
from helpers.machine.memory import Memory, free_memory
from helpers.options import check_choice

PRESETS = ("large", "t4")  # files of presets/, the largest first
AUTO_FRACTION = (
    0.8  # of a machine's memory that "auto" may take: estimates are no promises
)
# the notebook's process without the model: Python, torch and the texts; with CUDA also its
# libraries, and on the GPU its context
PROCESS_BYTES, CUDA_PROCESS_BYTES, CUDA_CONTEXT_BYTES = (
    int(0.8e9),
    int(2.5e9),
    int(0.6e9),
)
# how far an estimate of RAM may exceed what is free: the embedded model takes 1.9 GB, not 3
RAM_SLACK = 1.5
# bytes for each parameter that a notebook holds beside the pruned model: the dense model; what was
# read back, and a copy in training with its gradient, Adam's moments and a mask
BESIDE = {"00_start_here": 4, "09_use_it": 4 + 17}


def read_preset(preset: str) -> dict[str, dict[str, Any]]:
    """notebook → parameters of a preset. Raises BadParameter for an unknown name."""
    check_choice("preset", preset, ["auto", *PRESETS])
    text = (Path(__file__).parent / "presets" / f"{preset}.yaml").read_text(
        encoding="utf-8"
    )
    return {
        name: row
        for name, row in yaml.safe_load(text).items()
        if not name.startswith(".")
    }


def preset_that_fits(memory: Memory) -> str:
    """The largest preset of which every notebook fits GPU and RAM; "" if none, or no GPU."""
    for preset in PRESETS if memory.gpu is not None else ():
        needs = [notebook_memory(*row, gpu=True) for row in read_preset(preset).items()]
        on_gpu, in_ram = map(max, zip(*needs, strict=True))
        if max(on_gpu / memory.gpu_total, in_ram / memory.ram_total) <= AUTO_FRACTION:
            return preset
    return ""


def notebook_memory(
    notebook: str, parameters: Mapping[str, Any], *, gpu: bool
) -> tuple[int, int]:
    """(bytes on the device, bytes of RAM) that a notebook takes; the same without a GPU.

    Raises what `memory_needed` raises.
    """
    on_device, in_ram = memory_needed(parameters, gpu=gpu)
    on_device += BESIDE.get(notebook, 0) * Shape(parameters["model"]).parameters
    if gpu:
        return on_device + CUDA_CONTEXT_BYTES, in_ram + CUDA_PROCESS_BYTES
    return (on_device + PROCESS_BYTES,) * 2


def choose(
    preset: str, notebook: str, given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """What a preset ("" for none, "auto" for what fits the GPU) changes of a notebook's parameters.

    A value in `given` that is not the default is the user's own, and stays.
    Raises BadParameter for an unknown preset, for one beside a model that was chosen by hand, and
    for a notebook that loads no model.
    """
    chosen = preset_that_fits(free_memory()) if preset == "auto" else preset
    if chosen == "":
        return {}
    table = read_preset(chosen)
    values = table[check_choice("notebook", notebook, table)]
    for name in ("model", "revision"):
        if given[name] != defaults[name]:
            raise BadParameter(
                f"preset = {preset!r} chooses the model, and {name} = {given[name]!r} is given as "
                'well: leave one of them as it was (preset = "")'
            )
    return {
        name: value for name, value in values.items() if given[name] == defaults[name]
    }


def check_memory(notebook: str, parameters: Mapping[str, Any]) -> dict[str, str]:
    """What a notebook will take beside what is free, in words; call it before a model is loaded.

    A model whose shape is not known is said to be so. Raises OutOfMemory, which says what to
    change, where it does not fit (RAM is estimated generously, so a little too little is "tight"),
    and BadParameter for an unknown dtype.
    """
    free = free_memory()
    words = {"free RAM": f"{gigabytes(free.ram_free)} of {gigabytes(free.ram_total)}"}
    if free.gpu is not None:
        total = gigabytes(free.gpu_total)
        words[f"free on {free.gpu}"] = f"{gigabytes(free.gpu_free)} of {total}"
    on_gpu = free.gpu is not None and parameters["device"] != "cpu"
    try:
        on_device, in_ram = notebook_memory(notebook, parameters, gpu=on_gpu)
    except UnsupportedModel as error:
        return {"needs": f"not known: {error}", **words}
    kinds = [("RAM", in_ram, free.ram_free, RAM_SLACK)]
    kinds += [("GPU memory", on_device, free.gpu_free, 1.0)] if on_gpu else []
    needs = []
    for kind, need, left, slack in kinds:
        needs.append(f"{gigabytes(need)} of {kind}{' (tight)' if need > left else ''}")
        if need > left * slack:
            names = [
                n for n in ("sequences", "length", "window", "batch") if n in parameters
            ]
            raise OutOfMemory(
                f"{parameters['model']} needs about {gigabytes(need)} of {kind} here and "
                f"{gigabytes(left)} are free: choose a smaller model or lower "
                f"{', '.join(names)}; restarting the kernel frees what earlier cells hold"
            )
    return {"needs": ", ".join(needs), **words}
