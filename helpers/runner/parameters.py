"""The parameters of a notebook: what its one `parameters` cell offers, and what a run file may set.

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
from helpers.records import EXPONENT_WITHOUT_POINT, check_type

TYPE_NAMES = {"int": int, "float": float, "str": str, "bool": bool, "dict": dict, "list": list}
# parameters that no run file may set, and why
RESERVED = {
    "record_path": "is set by the runner; take the line out",
    "preset": "depends on the machine: name the parameters themselves",
}


def read_notebook(path: Path) -> dict[str, Any]:
    """The JSON of a notebook; RunError if it cannot be read or asks for what papermill ignores."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"notebook {path.name} cannot be read: restore it from git") from error
    if any("raises-exception" in tags_of(cell) for cell in cells):
        raise RunError(
            f"notebook {path.name} has a raises-exception tag, which papermill does not honour: "
            "catch the error in the cell"
        )
    return notebook


def tags_of(cell: Mapping[str, Any]) -> list[str]:
    """The tags of a cell."""
    return cell.get("metadata", {}).get("tags", [])


def source_of(cell: Mapping[str, Any]) -> str:
    """The text of a cell, which a notebook may hold as a list of lines."""
    return "".join(cell["source"])


def read_parameters_cell(path: Path) -> tuple[dict[str, Any], dict[str, set[type]]]:
    """Defaults of a notebook's parameters, and the types that each accepts.

    Raises RunError unless there is exactly one `parameters` cell of literals. A derived value there
    would keep the default's result, because papermill injects the parameters after that cell.
    """
    where = f"notebook {path.name}"
    cells = [cell for cell in read_notebook(path)["cells"] if "parameters" in tags_of(cell)]
    if len(cells) != 1:
        raise RunError(f"{where} has {len(cells)} parameters cells: it needs one")
    try:
        statements = ast.parse(source_of(cells[0])).body
    except SyntaxError as error:
        raise RunError(f"{where}: its parameters cell is not Python") from error
    defaults, types = {}, {}
    for statement in statements:
        name, value = _assignment(statement, where)
        defaults[name] = value
        types[name] = _types(value, getattr(statement, "annotation", None))
    return defaults, types


def _assignment(statement: ast.stmt, where: str) -> tuple[str, Any]:
    """Name and literal value of one line of a parameters cell."""
    where = f"{where}: {ast.unparse(statement)!r} in the parameters cell"
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets = [statement.target]
    if len(targets) != 1 or not isinstance(targets[0], ast.Name):
        raise RunError(f"{where} is not 'name = value'")
    try:
        value = ast.literal_eval(statement.value)
    except ValueError as error:
        raise RunError(
            f"{where} is derived, and would keep the default's value: move it to the cell after"
        ) from error
    if isinstance(value, (tuple, set, bytes, complex)):
        kind = type(value).__name__
        raise RunError(f"{where} is a {kind}, which papermill turns into text: use a list")
    return targets[0].id, value


def _types(value: Any, annotation: ast.expr | None) -> set[type]:
    """The types a parameter accepts: the annotation's, else the default's."""
    named = set()
    for node in ast.walk(annotation) if annotation is not None else ():
        if isinstance(node, ast.Name) and node.id in TYPE_NAMES:
            named.add(TYPE_NAMES[node.id])
        elif isinstance(node, ast.Constant) and node.value is None:
            named.add(NoneType)
    if named:
        return named | {type(value)}
    return {float, int, str, NoneType} if value is None else {type(value)}


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
        _check_nested(f"{where}: {name}", value)


def _check_nested(where: str, value: Any) -> None:
    """Raise RunError for values inside a list or mapping that papermill or YAML would change."""
    items = value.items() if isinstance(value, dict) else []
    items = [(where, item) for item in value] if isinstance(value, list) else items
    for key, item in items:
        place = where if isinstance(value, list) else f"{where}.{key}"
        if isinstance(item, str) and EXPONENT_WITHOUT_POINT.fullmatch(item):
            raise RunError(f"{place} = {item!r} is text: write it with a point, as in 1.0e-3")
        if not isinstance(item, (bool, int, float, str, dict, list, NoneType)):
            raise RunError(f"{place} is a {type(item).__name__}: put the text in quotes")
        _check_nested(place, item)
