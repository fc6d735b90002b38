"""The fingerprint of a run: a hash of what decides its numbers. It says whether a run is done.

That is its parameters, the text files they name, the code of its notebook, the file of its method
if a reader added one (helpers/own), and all of the core: every module directly in helpers/, in
helpers/fast and in helpers/beyond. A change in the core makes every run stale, a change in another
folder (a wing) none. Comments, docstrings and layout do not count. Nor do package versions: a
record names them.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
from pathlib import Path

from helpers.errors import RecordError
from helpers.paths import TABLES_NOTEBOOK, own_method_file, root, sha256_file
from helpers.records import read_record
from helpers.runner.parameters import code_cells
from helpers.runner.plan import Run

# folders of helpers/ that decide numbers, as the modules beside them do
CORE_FOLDERS = ("fast", "beyond")
# cells that prepare Colab or let a reader explore
SHOW_TAGS = {"colab-setup", "explorer"}


def is_done(run: Run) -> bool:
    """Whether the run's record is there and was made by today's code and parameters."""
    try:
        return read_record(run.record_path).get("fingerprint") == fingerprint(run)
    except RecordError:
        return False


def fingerprint(run: Run) -> str:
    """sha256 of all that decides the run's numbers: see the module's docstring.

    For the tables notebook that includes the records of all other runs.
    """
    code = [source for source, tags in code_cells(run.source_path) if not SHOW_TAGS & tags]
    own = own_method_file(str(run.effective.get("method", "")))
    if own.is_file():
        code.append(own.read_text(encoding="utf-8"))
    named = [root() / value for value in run.effective.values() if isinstance(value, str)]
    files = [path for path in named if path.suffix in (".txt", ".jsonl") and path.is_file()]
    if run.notebook == TABLES_NOTEBOOK:
        records = sorted(run.record_path.parent.glob("*.json"))
        files += [path for path in records if path != run.record_path]
    parts = [json.dumps(run.effective, sort_keys=True), core_hash(root()), *map(code_hash, code)]
    parts += [sha256_file(path) for path in files]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def core_hash(project: Path) -> str:
    """sha256 of the core of a project's helpers.

    Which files these are is asked of the folders at each call, so that no module drops out by
    being added, moved or renamed.
    """
    package = project / "helpers"
    # the package's own __init__ only says where names live
    paths = [path for path in package.glob("*.py") if path.name != "__init__.py"]
    paths += [path for folder in CORE_FOLDERS for path in (package / folder).rglob("*.py")]
    lines = [
        f"{path.relative_to(package).as_posix()} {code_hash(path.read_text(encoding='utf-8'))}"
        for path in sorted(paths)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@functools.lru_cache(maxsize=512)
def code_hash(source: str) -> str:
    """sha256 of Python source without comments, docstrings and layout; of other text as it is.

    The %magic lines of a notebook are blanked: they only set up Colab or the display.
    """
    for text in (source, re.sub(r"(?m)^([ \t]*)[%!].*$", r"\1pass", source)):
        try:
            tree = ast.parse(text)
            break
        except SyntaxError:
            continue
    else:
        return hashlib.sha256(source.encode()).hexdigest()
    for node in ast.walk(tree):
        match node:
            case ast.AST(body=[ast.Expr(value=ast.Constant(value=str())), *rest]):
                node.body = rest
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
