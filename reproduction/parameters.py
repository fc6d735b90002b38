"""The parameters of a notebook: the names, types and defaults that its `parameters` cell offers.

papermill takes an unknown name with a warning and a wrong type without one, and the number of the
default is then reported under another name. So every value is compared with the literals of that
cell before anything starts.
"""

import ast
import json
import re
from pathlib import Path
from types import NoneType
from typing import Any

from helpers.errors import RunError

# by the words of an annotation
TYPES = {kind.__name__: kind for kind in (int, float, str, bool, dict, list)}
TYPES["None"] = NoneType
# not set by run files and not in records: the runner sets the first, and the second depends on the
# machine (a record holds what it has chosen)
NOT_RECORDED = ("record_path", "preset")


def effective_parameters(
    defaults: dict[str, Any], written: dict[str, Any]
) -> dict[str, Any]:
    """The parameters of a record: the values that were written, and the defaults of the others.

    An N:M pattern implies its sparsity. So a pattern that is written replaces a default sparsity,
    and a sparsity that is written replaces a default N:M pattern. Where both are written both stay:
    only they can contradict each other.
    """
    values = defaults | written
    for name in NOT_RECORDED:
        values.pop(name, None)
    grouped = values.get("pattern", "unstructured") != "unstructured"
    if "sparsity" in defaults and grouped:
        if "sparsity" not in written:
            values["sparsity"] = None
        elif "pattern" not in written and written["sparsity"] is not None:
            values["pattern"] = "unstructured"
    return values


def code_cells(path: Path) -> list[tuple[str, set[str]]]:
    """Source and tags of each code cell of a notebook."""
    return [
        ("".join(cell["source"]), set(cell["metadata"].get("tags", [])))
        for cell in json.loads(path.read_bytes())["cells"]
        if cell["cell_type"] == "code"
    ]


def read_parameters_cell(path: Path) -> tuple[dict[str, Any], dict[str, set[type]]]:
    """Defaults of a notebook's parameters, and the types that each accepts.

    Raises RunError unless there is exactly one `parameters` cell, of literals. A derived value
    there would keep the default's result, because papermill injects the parameters after that cell,
    and turns a tuple into text.
    """
    cells = [source for source, tags in code_cells(path) if "parameters" in tags]
    if len(cells) != 1:
        raise RunError(
            f"notebook {path.name} has {len(cells)} parameters cells: it needs one"
        )
    defaults = {}
    types = {}
    for statement in ast.parse(cells[0]).body:
        try:
            name, value = read_literal(statement)
        except (ValueError, TypeError) as error:
            raise RunError(
                f"notebook {path.name}: {ast.unparse(statement)!r} in the parameters cell is not "
                "'name = literal': move what is derived to the next cell, and use lists"
            ) from error
        defaults[name] = value
        types[name] = {type(value)}
        # papermill's own reader misses the types of `float | None`
        if isinstance(statement, ast.AnnAssign):
            words = re.findall(r"\w+", ast.unparse(statement.annotation))
            types[name] |= {TYPES[word] for word in words if word in TYPES}
    return defaults, types


def read_literal(statement: ast.stmt) -> tuple[str, Any]:
    """Name and value of `name = literal`. Raises ValueError or TypeError for anything else."""
    match statement:
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=node)
            | ast.AnnAssign(target=ast.Name(id=name), value=node)
        ):
            value = ast.literal_eval(node)
            if not isinstance(value, (tuple, set, bytes, complex)):  # YAML has none
                return name, value
    raise ValueError
