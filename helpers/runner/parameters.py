"""The parameters of a notebook: what its `parameters` cell offers, and what a run file may set.

papermill takes an unknown name with a warning and a wrong type without one, and the number of the
default is then reported under another name. So every value is compared with the literals of that
cell before anything starts.
"""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from helpers.errors import BadParameter, RunError, allowed
from helpers.report import EXPONENT_WITHOUT_POINT, check_type

TYPE_NAMES = {"int": int, "float": float, "str": str, "bool": bool, "dict": dict, "list": list}
# parameters that no run file may set, and why
RESERVED = {
    "record_path": "is set by the runner; take the line out",
    "preset": "depends on the machine: name the parameters themselves",
}


def code_cells(path: Path) -> list[tuple[str, set[str]]]:
    """Source and tags of each code cell of a notebook.

    Raises RunError if the notebook cannot be read or has a tag that papermill ignores.
    """
    try:
        cells = [
            ("".join(cell["source"]), set(cell["metadata"].get("tags", [])))
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == "code"
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"notebook {path.name} cannot be read: restore it from git") from error
    if any("raises-exception" in tags for _, tags in cells):
        raise RunError(
            f"notebook {path.name} has a raises-exception tag, which papermill does not honour: "
            "catch the error in the cell"
        )
    return cells


def read_parameters_cell(path: Path) -> tuple[dict[str, Any], dict[str, set[type]]]:
    """Defaults of a notebook's parameters, and the types that each accepts.

    Raises RunError unless there is exactly one `parameters` cell of literals. A derived value there
    would keep the default's result, because papermill injects the parameters after that cell.
    """
    cells = [source for source, tags in code_cells(path) if "parameters" in tags]
    if len(cells) != 1:
        raise RunError(f"notebook {path.name} has {len(cells)} parameters cells: it needs one")
    try:
        statements = ast.parse(cells[0]).body
    except (SyntaxError, ValueError, RecursionError) as error:  # ValueError: a NUL character
        raise RunError(f"notebook {path.name}: its parameters cell is not Python") from error
    defaults, types = {}, {}
    for statement in statements:
        where = f"notebook {path.name}: {ast.unparse(statement)!r} in the parameters cell"
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=expression):
                annotation = []
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as expression):
                annotation = list(ast.walk(statement.annotation))
            case _:
                raise RunError(f"{where} is not 'name = value'")
        try:
            value = ast.literal_eval(expression)
        except (ValueError, TypeError) as error:
            raise RunError(
                f"{where} is derived, and would keep the default's value: move it to the next cell"
            ) from error
        kind = type(value)
        if kind in (tuple, set, bytes, complex):
            raise RunError(
                f"{where} is a {kind.__name__}, which papermill turns into text: use a list"
            )
        named = {TYPE_NAMES.get(node.id) for node in annotation if isinstance(node, ast.Name)}
        if any(isinstance(node, ast.Constant) and node.value is None for node in annotation):
            named.add(NoneType)
        defaults[name] = value
        types[name] = {kind, *named} - {None}
        if types[name] == {NoneType}:
            types[name] |= {float, int, str}
    return defaults, types


def check_values(values: Mapping[str, Any], types: Mapping[str, set[type]], where: str) -> None:
    """Raise RunError, starting with `where`, for a name or a type that a notebook does not have."""
    if "record_path" not in types:
        raise RunError(f"{where}: its notebook has no record_path parameter: add one, default ''")
    for name, value in values.items():
        if name in RESERVED:
            raise RunError(f"{where}: {name} {RESERVED[name]}")
        if name not in types:
            near = difflib.get_close_matches(str(name), types, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {allowed(types)}"
            raise RunError(f"{where}: parameter {name!r} is not in the parameters cell; {hint}")
        try:
            check_type(f"{where}: {name}", value, types[name])
        except BadParameter as error:
            raise RunError(str(error)) from error
        if isinstance(value, (dict, list)):
            _check_nested(f"{where}: {name}", value)


def _check_nested(where: str, value: Any) -> None:
    """Raise RunError for a value inside a list or mapping that papermill or YAML would change."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_nested(f"{where}.{key}", item)
    elif isinstance(value, list):
        for item in value:
            _check_nested(where, item)
    elif isinstance(value, str) and EXPONENT_WITHOUT_POINT.fullmatch(value):
        raise RunError(f"{where} = {value!r} is text: write it with a point, as in 1.0e-3")
    elif not isinstance(value, (bool, int, float, str, NoneType)):
        raise RunError(f"{where} is a {type(value).__name__}: put the text in quotes")
