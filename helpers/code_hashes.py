"""Hashes of Python code: what a record and a checkpoint say of the code that made them.

Comments, docstrings, layout and the text of errors do not count, and every Python gives the same
hash. The core is what decides numbers: the modules directly in helpers/ but for `SCORING`, its
folders `CORE_FOLDERS` and the pins of what is downloaded. The other folders are wings.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.paths import root, visible_files

# folders of helpers/ that decide numbers, like the modules directly in helpers/
CORE_FOLDERS = ("data", "model", "fast", "beyond")
# decides the numbers of zero-shot runs alone
SCORING = "model/token_trees.py"


def core_code(project: Path | None = None) -> dict[str, str]:
    """The `code_hash` of each file that decides numbers, by its path in helpers/.

    That is the core: the modules directly in helpers/ but for `SCORING`, those in `CORE_FOLDERS`,
    and pins.yaml.
    project: the root of another checkout.
    """
    folders = [f"{folder}/**/*.py" for folder in CORE_FOLDERS]
    # __init__ and __main__ decide no number; pins.yaml says which texts and models are used
    hashes = module_hashes(["[!_]*.py", "data/pins.yaml", *folders], project)
    del hashes[SCORING]
    return hashes


def wing_code(folder: str, project: Path | None = None) -> dict[str, str]:
    """The `code_hash` of each module in a folder of helpers/, by its path there."""
    return module_hashes([f"{folder}/**/*.py"], project)


def module_hashes(
    patterns: Iterable[str], project: Path | None = None
) -> dict[str, str]:
    """The `code_hash` of each file that a pattern fits, by its path in helpers/."""
    package = (project or root()) / "helpers"
    # the folders are listed at each call, so that a moved or renamed module cannot drop out
    paths = sorted({path for each in patterns for path in visible_files(package, each)})
    return {
        path.relative_to(package).as_posix(): code_hash(
            path.read_text(encoding="utf-8")
        )
        for path in paths
    }


def hash_of(value: Any) -> str:
    """16 hexadecimal digits that stand for a value of JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=512)
def code_hash(source: str) -> str:
    """sha256 of Python source, what decides a number in it; of other text as it is.

    Left out are comments, docstrings, layout, and what a `raise` says. A cell with %magic lines, as
    that for Colab, is such other text. Equal on every Python.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return hashlib.sha256(source.encode()).hexdigest()
    for node in ast.walk(tree):
        match node:
            case ast.AST(body=[ast.Expr(value=ast.Constant(value=str())), *rest]):
                node.body = rest
            case ast.Raise():  # that it raises counts, since what follows is then not run
                node.exc = node.cause = None
            case ast.JoinedStr():  # 3.12 ends the width of f"{x:{width}}" with an empty text
                node.values = [
                    part for part in node.values if getattr(part, "value", 1) != ""
                ]
    return hashlib.sha256(_written(tree).encode()).hexdigest()


def _written(node: object) -> str:
    """A syntax tree as text, without its empty fields.

    `ast.dump` writes some of them, and which depends on Python's version: 3.12 added type_params to
    each function, and 3.13 leaves empty lists out.
    """
    if isinstance(node, ast.AST):
        fields = [
            f"{name}={_written(value)}"
            for name, value in ast.iter_fields(node)
            if value not in (None, [])
        ]
        return f"{type(node).__name__}({', '.join(fields)})"
    if isinstance(node, list):
        return f"[{', '.join(map(_written, node))}]"
    return repr(node)
