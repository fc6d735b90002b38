"""What fits the machine that is here: parameters for a notebook, and the memory they take.

Nothing here changes a run by itself. A notebook's defaults run the embedded model on a CPU; for a
larger machine `defaults_for` names a larger model with what goes with it, and `choose` puts these
in the place of defaults when a reader asks for them. `check_room` compares what a notebook will
take with what is free, before anything is loaded. The figures are estimates (`helpers.machine.estimate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from helpers.errors import (
    BadParameter,
    OutOfMemory,
    UnknownModel,
    UnsupportedModel,
    check_choice,
)
from helpers.machine.estimate import (
    SIZES,
    Machine,
    estimate,
    machine_named,
    machine_names,
    shape_of,
    this_machine,
)
from helpers.machine.memory import Room, room
from helpers.paths import notebooks_dir
from helpers.runner import read_parameters_cell

SHARE = 0.8  # of a machine's memory that a suggestion may take: estimates are no promises
# how far a need may be above what is free: the embedded model takes 1.7 GB of RAM, not 3
SLACK = {"RAM": 1.5, "GPU memory": 1.0}
# what notebooks do that have no parameter for it, and as little evaluation as can be told
_FIXED = {
    "method": "admm-grad",
    "pattern": "unstructured",
    "options": {},
    "dtype": "float32",
    "evaluation": "none",
    "window": 0,
    "windows": 1,
}
COPIES = {"00_start_here": 2}  # models in memory at once, where it is not one
TWICE = ("02_admm_layer_solve", "03_mask_schedule")  # as many windows again are held out
TIMED = (
    "00_start_here",
    "04_prune_model",
    "05_zero_shot",
)  # the others take seconds beyond loading
_LAYERS = {"sequences": 32, "length": 1024}
_PRUNE = {"sequences": 64, "length": 2048, "window": 2048, "windows": 40}
_TASKS = {"sequences": 64, "length": 2048, "limit": 100, "batch": 8}


@dataclass(frozen=True)
class Preset:
    """A public model that needs no account, pinned by its commit, and parameters to go with it."""

    model: str
    revision: str
    dtype: str  # of notebooks that have the parameter; the others work in float32
    notebooks: Mapping[str, Mapping[str, Any]]

    def parameters(self, notebook: str) -> dict[str, Any]:
        """What a notebook's parameters become."""
        found = {"model": self.model, "revision": self.revision, **self.notebooks[notebook]}
        has_dtype = "dtype" in _defaults(notebook)
        return found | ({"dtype": self.dtype} if has_dtype else {})


_EVERY = {
    "00_start_here": {"sequences": 32, "length": 1024, "window": 1024, "windows": 12},
    "01_calibration_capture": _LAYERS,
    "02_admm_layer_solve": _LAYERS,
    "03_mask_schedule": _LAYERS,
    "04_prune_model": _PRUNE,
    "05_zero_shot": _TASKS,
}
# the largest first; models and commits are those of the run files of the plans t4 and paper
PRESETS = (
    Preset(
        "huggyllama/llama-7b",
        "8416d3fefb0cb3ff5775a7b13c1692d10ff1aa16",
        "float16",
        {
            "04_prune_model": _PRUNE | {"sequences": 128},
            "05_zero_shot": _TASKS | {"sequences": 128},
        },
    ),
    # trained in bfloat16, which a T4 does not have
    Preset(
        "HuggingFaceTB/SmolLM2-1.7B",
        "effd688a12921b4cc83e3312b6feb579f70f9c71",
        "bfloat16",
        _EVERY,
    ),
    Preset(
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        "fe8a4ea1ffedaf415f4da2f062534de366a451e6",
        "float16",
        _EVERY,
    ),
)
NOTEBOOKS = tuple(_EVERY)
# its comparison is with committed records of the embedded model, so no larger one is suggested
ALSO = "07_your_own_method"
KNOWN = ("dense", "magnitude", "wanda", "sparsegpt", "admm1", "admm-grad")


@dataclass(frozen=True)
class Needs:
    """What a notebook takes with some parameters, estimated.

    Bytes of the GPU (of RAM, on a machine without one), of RAM and of downloads; seconds of
    pruning and evaluation, None where they are not estimated.
    """

    memory: int
    host: int
    disk: int
    seconds: float | None


def defaults_for(notebook: str, machine: Machine | str | None = None) -> dict[str, Any]:
    """The parameters of a notebook that a machine has room for and that differ from its defaults.

    Args: notebook, such as "04_prune_model"; machine, as for `machine_of`. Empty for a machine
    without a GPU, or with too small a one: the notebook's own defaults are for it.
    Raises BadParameter for a notebook that loads no model and for an unknown machine.
    """
    check_choice("notebook", notebook, NOTEBOOKS)
    machine = machine_of(machine)
    for preset in PRESETS:
        if notebook in preset.notebooks and _fits(preset, notebook, machine):
            return preset.parameters(notebook)
    return {}


def machine_of(machine: Machine | str | None = None) -> Machine:
    """A machine: None and "auto" are this one, "cpu" and the names of `machine_named` others."""
    if isinstance(machine, Machine):
        return machine
    if machine in (None, "auto"):
        return this_machine()
    name = check_choice("machine", machine, ["auto", "cpu", *machine_names()])
    return machine_named("laptop" if name == "cpu" else name)


def _fits(preset: Preset, notebook: str, machine: Machine) -> bool:
    """Whether a machine has a GPU, its memory, and the dtype in its hardware."""
    if not machine.gpu:
        return False
    if preset.dtype == "bfloat16" and machine.forward["bfloat16"] <= machine.forward["float32"]:
        return False
    needs = needs_of(notebook, preset.parameters(notebook), machine)
    return needs.memory <= SHARE * machine.memory and needs.host <= SHARE * machine.host


def choose(preset: str, notebook: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A notebook's parameters after a preset: all those that it changes, with their values.

    Args: preset, "" for nothing, "auto" for this machine, or another name for `machine_of`;
    given, the parameters as they are (others may be among them). A value that is not the
    notebook's default is a reader's own, and stays.
    Raises BadParameter for an unknown preset, and for one beside a model that was chosen by hand.
    """
    if preset == "":
        return {}
    defaults, found = _defaults(notebook), defaults_for(notebook, preset)
    for name in ("model", "revision"):
        if found and given[name] != defaults[name]:
            raise BadParameter(
                f"preset = {preset!r} chooses the model, and {name} = {given[name]!r} is given as "
                'well: leave one of them as it was (preset = "")'
            )
    return {name: value for name, value in found.items() if given[name] == defaults[name]}


def needs_of(notebook: str, parameters: Mapping[str, Any], machine: Machine) -> Needs:
    """What a notebook takes on a machine; parameters that are not given are its defaults.

    A reader's own method is taken to need the memory of admm-grad, the most of those known.
    Raises BadParameter for another notebook; UnknownModel and UnsupportedModel where the model's
    shape is not known.
    """
    check_choice("notebook", notebook, [*NOTEBOOKS, ALSO])
    asked = _FIXED | _defaults(notebook) | dict(parameters)
    timed = notebook in TIMED and asked["method"] in KNOWN
    if asked["method"] not in KNOWN:
        asked["method"] = "admm-grad"
    if notebook in TWICE:
        asked["sequences"] *= 2
    found = estimate(asked, machine)
    copies = (COPIES.get(notebook, 1) - 1) * shape_of(asked["model"]).parameters
    copies *= SIZES[asked["dtype"]]
    return Needs(
        memory=found.memory_bytes + copies,
        host=found.host_bytes + (0 if machine.gpu else copies),
        disk=found.disk_bytes,
        seconds=found.total_seconds if timed else None,
    )


def check_room(
    notebook: str, parameters: Mapping[str, Any], *, free: Room | None = None
) -> dict[str, str]:
    """What a notebook will take beside what is free, in words; call it before a model is loaded.

    Args: parameters, the notebook's (others may be among them, such as `globals()`); free, by
    default what `room` finds. A model whose shape is not known is said to be so.
    Raises OutOfMemory, which says what to change, where it does not fit. RAM is estimated
    generously: a little too little of it is said to be tight.
    """
    free = free or room()
    defaults = _defaults(notebook)
    asked = {name: parameters[name] for name in defaults if name in parameters}
    on_gpu = free.gpu is not None and asked["device"] != "cpu"
    try:
        needs = needs_of(notebook, asked, _any_machine(on_gpu))
    except (UnknownModel, UnsupportedModel) as error:
        return {"needs": f"not known: {error}", **_in_words(free)}
    rows = [("RAM", needs.host, free.ram_free)]
    if on_gpu:
        rows.append(("GPU memory", needs.memory, free.gpu_free))
    for kind, need, left in rows:
        if need > left * SLACK[kind]:
            raise OutOfMemory(_too_much(kind, need, left, asked))
    needed = [f"{_gb(n)} of {kind}{' (tight)' if n > left else ''}" for kind, n, left in rows]
    return {"needs": ", ".join(needed)} | _in_words(free)


def _any_machine(gpu: bool) -> Machine:
    """A machine of that kind: what is taken does not depend on how fast it is."""
    return machine_named("t4" if gpu else "laptop")


def _too_much(kind: str, need: int, left: int, asked: Mapping[str, Any]) -> str:
    """What to say where something does not fit."""
    lower = [name for name in ("sequences", "length", "window", "batch") if name in asked]
    half = ', dtype "float16"' if asked.get("dtype") == "float32" and kind != "RAM" else ""
    return (
        f"{asked['model']} needs about {_gb(need)} of {kind} here and {_gb(left)} are free: choose "
        f"a smaller model{half} or lower {', '.join(lower)}; restarting the kernel frees what "
        "earlier cells hold"
    )


def _in_words(free: Room) -> dict[str, str]:
    """What is free."""
    words = {"free RAM": f"{_gb(free.ram_free)} of {_gb(free.ram_total)}"}
    if free.gpu is not None:
        words[f"free on {free.gpu}"] = f"{_gb(free.gpu_free)} of {_gb(free.gpu_total)}"
    return words


def suggestions(machine: Machine) -> list[dict[str, str]]:
    """A row for each notebook: the model that fits a machine, and what it takes there."""
    rows = []
    for notebook in NOTEBOOKS:
        found = defaults_for(notebook, machine)
        needs = needs_of(notebook, found, machine)
        minutes = "–" if needs.seconds is None else f"{max(1, round(needs.seconds / 60))} min"
        asked = _defaults(notebook) | found
        rows.append(
            {
                "notebook": notebook,
                "model": asked["model"] + ("" if found else " (as it is)"),
                "dtype": asked.get("dtype", _FIXED["dtype"]),
                "memory": _gb(needs.memory),
                "download": _gb(needs.disk),
                "about": minutes,
            }
        )
    return rows


def as_cell(parameters: Mapping[str, Any]) -> str:
    """Parameters as lines of a cell."""
    return "\n".join(f"{name} = {value!r}" for name, value in parameters.items())


def _defaults(notebook: str) -> dict[str, Any]:
    """The literals of a notebook's parameters cell."""
    return read_parameters_cell(notebooks_dir() / f"{notebook}.ipynb")[0]


def _gb(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.1f} GB"
