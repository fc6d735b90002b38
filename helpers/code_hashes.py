"""Hashes of Python code: what a record and a checkpoint say of the code that made them.

Comments, docstrings, layout and the text of errors do not count, and every Python gives the same
hash. `CORE` is what decides the numbers of every run, and the lists after it what decides those
of some (`reproduction.fingerprint` says of which).
"""

import ast
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.paths import root, visible_files

# Patterns of files from the project's root; "!" takes files out again
CORE = (
    "helpers/[!_]*.py",  # __init__ and __main__ decide no number
    "helpers/paper/**/*.py",
    "helpers/model/**/*.py",
    "helpers/data/**/*.py",
    "helpers/beyond/**/*.py",
    "helpers/data/pins.yaml",  # which texts and models are used
    "!helpers/model/token_trees.py",
)
SCORING = ("helpers/model/token_trees.py",)
LARGE = ("helpers/large/**/*.py",)
STUDIES = ("reproduction/studies/**/*.py",)


def core_code(project: Path | None = None) -> dict[str, str]:
    """The `file_hashes` of what decides the numbers of every run: see `CORE`."""
    return file_hashes(CORE, project)


def file_hashes(patterns: Iterable[str], project: Path | None = None) -> dict[str, str]:
    """The `code_hash` of each file that patterns fit, by its path in its package.

    project: the root of another checkout.
    """
    project = project or root()
    paths: set[Path] = set()
    # the folders are listed at each call, so that a moved or renamed module cannot drop out
    for pattern in patterns:
        found = visible_files(project, pattern.removeprefix("!"))
        paths = paths.difference(found) if pattern[0] == "!" else paths.union(found)
    return {
        "/".join(path.relative_to(project).parts[1:]): code_hash(
            path.read_text("utf-8")
        )
        for path in sorted(paths)
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
