"""Presets of parameters that fit a GPU, and a check of the memory that a notebook takes.

A notebook's defaults run the embedded model on a CPU; a preset replaces them when a user asks for
one. presets/ holds the presets and what each notebook takes (`helpers.memory` says how it counts).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from helpers import memory
from helpers.errors import BadParameter
from helpers.options import check_choice

PRESETS = ("large", "t4")  # files of presets/, the largest first


def read_preset(preset: str) -> dict[str, Any]:
    """A preset's rows, notebook → parameters, with `min_gpu_gb` and `min_ram_gb`.

    Raises BadParameter for an unknown name.
    """
    check_choice("preset", preset, ["auto", *PRESETS])
    return _read(preset)


def _read(name: str) -> dict[str, Any]:
    path = Path(__file__).parent / "presets" / f"{name}.yaml"
    rows = yaml.safe_load(path.read_bytes())
    return {key: row for key, row in rows.items() if not key.startswith(".")}


def preset_that_fits(free: memory.Memory) -> str:
    """The largest preset for which GPU and RAM are large enough; "" if none, or no GPU."""
    for preset in PRESETS if free.gpu else ():
        rows = read_preset(preset)
        if (
            free.gpu_total >= 1e9 * rows["min_gpu_gb"]
            and free.ram_total >= 1e9 * rows["min_ram_gb"]
        ):
            return preset
    return ""


def choose(
    preset: str,
    notebook: str,
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> dict[str, Any]:
    """What a preset ("" for none, "auto" for what fits the GPU) changes of a notebook's parameters.

    A value in `given` that is not the default is the user's own, and stays.
    Raises BadParameter for an unknown preset, for one together with a model that was chosen by
    hand, and for a notebook that loads no model.
    """
    chosen = preset
    if preset == "auto":
        chosen = preset_that_fits(memory.free_memory())
    if chosen == "":
        return {}
    rows = read_preset(chosen)
    row = rows[check_choice("notebook", notebook, [n for n in rows if n[0].isdigit()])]
    for name in ("model", "revision"):
        if given[name] != defaults[name]:
            raise BadParameter(
                f"preset = {preset!r} chooses the model, and {name} = {given[name]!r} is given as "
                'well: leave one of them as it was (preset = "")'
            )
    return {name: value for name, value in row.items() if given[name] == defaults[name]}


def check_memory(notebook: str, parameters: Mapping[str, Any]) -> dict[str, str]:
    """`helpers.memory.check_memory` of a notebook with these parameters."""
    return memory.check_memory(**notebook_line(notebook), **parameters)


def notebook_line(notebook: str) -> dict[str, float]:
    """The `copies` of a notebook, as in `helpers.memory`; {} if it takes those of pruning."""
    return _read("memory").get(notebook, {})
