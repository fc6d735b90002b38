"""The parameters of a notebook: the names, types and defaults that its `parameters` cell offers.

papermill takes an unknown name with a warning and a wrong type without one, and the number of the
default is then reported under another name. So every value is compared with the literals of that
cell before anything starts.
"""

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from helpers.errors import RunError

TYPE_NAMES = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "dict": dict,
    "list": list,
}
# what no run file may set: the runner sets the first, and the second depends on the machine. A
# record holds neither, but what a preset has chosen
NOT_RECORDED = ("record_path", "preset")


def effective(
    defaults: Mapping[str, Any], written: Mapping[str, Any]
) -> dict[str, Any]:
    """The parameters of a record: what somebody wrote, and the defaults of the others.

    An N:M pattern implies its sparsity. So one that is written takes the place of a default
    sparsity, and a sparsity that is written the place of a default N:M pattern. Where both are
    written both stay: only they can contradict each other.
    """
    values = {n: v for n, v in {**defaults, **written}.items() if n not in NOT_RECORDED}
    if {"sparsity", "pattern"} <= defaults.keys() and values[
        "pattern"
    ] != "unstructured":
        if "sparsity" not in written:
            values["sparsity"] = None
        elif "pattern" not in written and written["sparsity"] is not None:
            values["pattern"] = "unstructured"
    return values


def code_cells(path: Path) -> list[tuple[str, set[str]]]:
    """Source and tags of each code cell of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        ("".join(cell["source"]), set(cell["metadata"].get("tags", [])))
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def read_parameters_cell(path: Path) -> tuple[dict[str, Any], dict[str, set[type]]]:
    """Defaults of a notebook's parameters, and the types that each accepts.

    Raises RunError unless there is exactly one `parameters` cell of literals. A derived value there
    would keep the default's result, because papermill injects the parameters after that cell, and
    turns a tuple into text.
    """
    cells = [source for source, tags in code_cells(path) if "parameters" in tags]
    if len(cells) != 1:
        raise RunError(
            f"notebook {path.name} has {len(cells)} parameters cells: it needs one"
        )
    defaults, types = {}, {}
    for statement in ast.parse(cells[0]).body:
        try:
            (target,) = getattr(statement, "targets", None) or [statement.target]
            name, value = target.id, ast.literal_eval(statement.value)
            if isinstance(value, (tuple, set, bytes, complex)):
                raise ValueError("not in YAML")
        except (AttributeError, ValueError, TypeError) as error:
            raise RunError(
                f"notebook {path.name}: {ast.unparse(statement)!r} in the parameters cell is not "
                "'name = literal': move what is derived to the next cell, and use lists"
            ) from error
        # papermill's own reader misses the types of `float | None`
        annotation = list(
            ast.walk(getattr(statement, "annotation", None) or ast.Load())
        )
        named = {
            TYPE_NAMES.get(node.id) for node in annotation if isinstance(node, ast.Name)
        }
        if any(
            isinstance(node, ast.Constant) for node in annotation
        ):  # of types only None is one
            named.add(NoneType)
        defaults[name], types[name] = value, {type(value), *named} - {None}
    return defaults, types
