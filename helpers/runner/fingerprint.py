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
from helpers.paths import own_method_file, root
from helpers.records import read_record
from helpers.runner.parameters import read_notebook, source_of, tags_of
from helpers.runner.plan import TABLES_NOTEBOOK, Run

# folders of helpers/ that decide numbers, as the modules beside them do
CORE_FOLDERS = ("fast", "beyond")
# cells that prepare Colab or let a reader explore
SHOW_TAGS = {"colab-setup", "explorer"}


def is_done(run: Run) -> bool:
    """Whether the run's record is there and stands for today's code and parameters."""
    try:
        recorded = read_record(run.record_path).get("fingerprint")
    except RecordError:
        return False
    return recorded == fingerprint(run)


def fingerprint(run: Run) -> str:
    """sha256 of all that decides the run's numbers: see the module's docstring.

    For the tables notebook that includes the records of all other runs.
    """
    cells = [
        cell for cell in read_notebook(run.source_path)["cells"] if cell["cell_type"] == "code"
    ]
    code = [source_of(cell) for cell in cells if not SHOW_TAGS & set(tags_of(cell))]
    own = own_method_file(str(run.effective.get("method", "")))
    if own.is_file():
        code.append(own.read_text(encoding="utf-8"))
    parts = [json.dumps(run.effective, sort_keys=True), *map(normalised, code), core_hash(root())]
    named = [root() / value for value in run.effective.values() if isinstance(value, str) and value]
    files = [path for path in named if path.suffix in (".txt", ".jsonl") and path.is_file()]
    if run.notebook == TABLES_NOTEBOOK:
        records = sorted(run.record_path.parent.glob("*.json"))
        files += [path for path in records if path != run.record_path]
    parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
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
    stats = [(path, path.stat()) for path in sorted(paths)]
    return _hash_of(package, tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats))


@functools.lru_cache(maxsize=8)
def _hash_of(package: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    """The hash of files of a package, computed again when a time or a size has changed."""
    code = {
        path.relative_to(package).as_posix(): normalised(path.read_text(encoding="utf-8"))
        for path, *_ in files
    }
    return hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()


@functools.lru_cache(maxsize=512)
def normalised(source: str) -> str:
    """Python source without comments, docstrings and layout; other text as it is.

    The %magic lines of a notebook are blanked: they only set up Colab or the display.
    """
    for text in (source, re.sub(r"(?m)^([ \t]*)[%!].*$", r"\1pass", source)):
        try:
            tree = ast.parse(text)
            break
        except SyntaxError:
            continue
    else:
        return source
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                del body[0]
    return ast.dump(tree)
