"""The fingerprint of a run: a hash of what decides its numbers. It says whether a run is done.

That is its parameters, the text files they name, the code of its notebook, the file of its method
if a user added one (helpers/own), and all of the core: every module directly in helpers/ and in
its folders `CORE_FOLDERS`, with the pins of what is downloaded. A change in the core makes every
run stale, a change in another folder (a wing) none. Comments, docstrings, layout and the text of
errors do not count. Nor do package versions: a record names them.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from helpers.errors import FileError
from helpers.paths import TABLES_NOTEBOOK, own_method_file, root, sha256_file
from helpers.report import read_record
from helpers.runner.parameters import code_cells
from helpers.runner.plan import Run

# folders of helpers/ that decide numbers, as the modules beside them do
CORE_FOLDERS = ("data", "fast", "beyond")
# cells that prepare Colab or let a user explore
SHOW_TAGS = {"colab-setup", "explorer"}


def is_done(run: Run) -> bool:
    """Whether the run's record is there and was made by today's code and parameters.

    The record of a run that is to be timed says that it was.
    """
    try:
        record = read_record(run.record_path)
    except FileError:
        return False
    alone = record.get("timed", False) or not run.timed
    return alone and record.get("fingerprint") == fingerprint(run)


def fingerprint(run: Run) -> str:
    """sha256 of all that decides the run's numbers: see the module's docstring.

    For the tables notebook that includes the records of all other notebooks.
    """
    code = [source for source, tags in code_cells(run.source_path) if not SHOW_TAGS & tags]
    own = own_method_file(str(run.effective.get("method", "")))
    if own.is_file():
        code.append(own.read_text(encoding="utf-8"))
    named = [root() / value for value in run.effective.values() if isinstance(value, str)]
    files = [path for path in named if path.suffix in (".txt", ".jsonl") and path.is_file()]
    if run.notebook == TABLES_NOTEBOOK:
        records = sorted(run.record_path.parent.glob("*.json"))
        files += [path for path in records if not path.name.startswith(run.notebook)]
    parts = [json.dumps(run.effective, sort_keys=True), json.dumps(core_code())]
    parts += [code_hash(source) for source in code] + [sha256_file(path) for path in files]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def core_code(*, wings: Iterable[str] = (), project: Path | None = None) -> dict[str, str]:
    """The `code_hash` of each module that decides numbers, by its path in helpers/.

    That is the core: the modules directly in helpers/ and those in `CORE_FOLDERS`, and pins.yaml.
    `wings` names further folders; project is the root of another project.
    """
    # asked of the folders at each call, so that no module can drop out by being moved or renamed
    package = (project or root()) / "helpers"
    paths = set(package.glob("[!_]*.py"))  # __init__ says where names live, __main__ what they ask
    paths.add(package / "data" / "pins.yaml")  # which texts, and which models
    for folder in (*CORE_FOLDERS, *wings):
        paths.update((package / folder).rglob("*.py"))
    return {
        path.relative_to(package).as_posix(): code_hash(path.read_text(encoding="utf-8"))
        for path in sorted(paths)
    }


@functools.lru_cache(maxsize=512)
def code_hash(source: str) -> str:
    """sha256 of Python source, what decides a number in it; of other text as it is.

    Left out are comments, docstrings, layout, and what a `raise` says. A cell with %magic lines, as
    that for Colab, is such other text.
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
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
