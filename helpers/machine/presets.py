"""Presets of parameters that fit a GPU, and a check of the memory that a notebook takes.

A notebook's defaults run the embedded model on a CPU; a preset replaces them when a user asks for
one. What a notebook takes is estimated (`helpers.machine.estimates`).
"""

from pathlib import Path

import yaml

from helpers.errors import BadParameter, OutOfMemory, UnsupportedModel
from helpers.machine.estimates import Parameters, Shape, gigabytes, memory_needed
from helpers.machine.memory import Memory, free_memory
from helpers.options import check_choice

PRESETS = ("large", "t4")  # files of presets/, the largest first
# of a machine's memory that "auto" may take: estimates are no promises
AUTO_FRACTION = 0.8
# the notebook's process without the model: Python, torch and the texts; with CUDA also its
# libraries, and on the GPU its context
PROCESS_BYTES = 800_000_000
CUDA_PROCESS_BYTES = 2_500_000_000
CUDA_CONTEXT_BYTES = 600_000_000
HEAP = 1.1  # a process holds that much of what it uses: some of what it frees stays its own
# how far an estimate of RAM may exceed what is free: the embedded model takes 1.9 GB, not 3
RAM_SLACK = 1.5
# more bytes for each parameter of a model: the dense model; what was read back, and a copy in
# training with its gradient, Adam's moments and a mask
EXTRA_BYTES = {"00_start_here": 4, "09_use_it": 4 + 17}


def read_preset(preset: str) -> dict[str, Parameters]:
    """notebook → parameters of a preset. Raises BadParameter for an unknown name."""
    check_choice("preset", preset, ["auto", *PRESETS])
    path = Path(__file__).parent / "presets" / f"{preset}.yaml"
    rows = yaml.safe_load(path.read_bytes())
    return {name: row for name, row in rows.items() if not name.startswith(".")}


def preset_that_fits(memory: Memory) -> str:
    """The largest preset of which every notebook fits GPU and RAM; "" if none, or no GPU."""
    if memory.gpu is None:
        return ""
    for preset in PRESETS:
        shares = []
        for notebook, parameters in read_preset(preset).items():
            on_gpu, in_ram = notebook_memory(notebook, parameters, gpu=True)
            shares += [on_gpu / memory.gpu_total, in_ram / memory.ram_total]
        if max(shares) <= AUTO_FRACTION:
            return preset
    return ""


def notebook_memory(
    notebook: str, parameters: Parameters, *, gpu: bool
) -> tuple[int, int]:
    """(bytes on the GPU, 0 without one, and bytes of RAM) that a notebook takes.

    Raises what `memory_needed` raises.
    """
    on_device, in_ram = memory_needed(parameters)
    on_device += EXTRA_BYTES.get(notebook, 0) * Shape(parameters["model"]).parameters
    if gpu:
        return on_device + CUDA_CONTEXT_BYTES, in_ram + CUDA_PROCESS_BYTES
    return 0, PROCESS_BYTES + int(HEAP * on_device)


def choose(
    preset: str, notebook: str, given: Parameters, defaults: Parameters
) -> Parameters:
    """What a preset ("" for none, "auto" for what fits the GPU) changes of a notebook's parameters.

    A value in `given` that is not the default is the user's own, and stays.
    Raises BadParameter for an unknown preset, for one together with a model that was chosen by
    hand, and for a notebook that loads no model.
    """
    chosen = preset_that_fits(free_memory()) if preset == "auto" else preset
    if chosen == "":
        return {}
    rows = read_preset(chosen)
    row = rows[check_choice("notebook", notebook, rows)]
    for name in ("model", "revision"):
        if given[name] != defaults[name]:
            raise BadParameter(
                f"preset = {preset!r} chooses the model, and {name} = {given[name]!r} is given as "
                'well: leave one of them as it was (preset = "")'
            )
    return {name: value for name, value in row.items() if given[name] == defaults[name]}


def check_memory(notebook: str, parameters: Parameters) -> dict[str, str]:
    """What a notebook will take and what is free, in words; call it before a model is loaded.

    For a model whose shape is not known the words say so. Raises BadParameter for an unknown dtype
    or effort, and OutOfMemory, which says what to change, where the notebook does not fit; RAM is
    estimated generously, so a little too little is "tight".
    """
    free = free_memory()
    words = {"free RAM": f"{gigabytes(free.ram_free)} of {gigabytes(free.ram_total)}"}
    if free.gpu is not None:
        words[f"free on {free.gpu}"] = (
            f"{gigabytes(free.gpu_free)} of {gigabytes(free.gpu_total)}"
        )
    on_gpu = free.gpu is not None and parameters["device"] != "cpu"
    try:
        on_device, in_ram = notebook_memory(notebook, parameters, gpu=on_gpu)
    except UnsupportedModel as error:
        return {"needs": f"not known: {error}", **words}
    kinds = [("RAM", in_ram, free.ram_free, RAM_SLACK)]
    if on_gpu:
        kinds.append(("GPU memory", on_device, free.gpu_free, 1.0))
    needs = []
    for kind, need, left, slack in kinds:
        if need > left * slack:
            sizes = ("sequences", "length", "window", "batch")
            raise OutOfMemory(
                f"{parameters['model']} needs about {gigabytes(need)} of {kind} here and "
                f"{gigabytes(left)} are free: choose a smaller model or lower "
                f"{', '.join(name for name in sizes if name in parameters)}; restarting a "
                "notebook's kernel frees what its cells hold"
            )
        needs.append(f"{gigabytes(need)} of {kind}{' (tight)' if need > left else ''}")
    return {"needs": ", ".join(needs), **words}
