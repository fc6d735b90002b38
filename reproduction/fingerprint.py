"""The fingerprint of a run: hashes of the code and files that decide its numbers.

A record carries the fingerprint of the code that made it. It is current if its parameters are
today's and each hash is today's too, or is proven to be of code that computes the same: `make same`
writes such pairs of hashes to results/reference/same.json.

    {"core": …, "notebook": …, "files": …}

- core, and for some runs scoring and large: the code in `helpers` that `PARTS` names;
- notebook: the cells of the run's notebook that compute something, not those that only draw, and
  reproduction/studies where they name it;
- own: the file of its method, if a user added one (helpers/own);
- files: the text files and the folder of a model that its parameters name and, for the tables
  notebook, all other records.

Comments, docstrings, layout and the text of errors do not count. Nor do package versions: a record
names them.
"""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers.code_hashes import (
    CORE,
    LARGE,
    SCORING,
    STUDIES,
    code_hash,
    file_hashes,
    hash_of,
)
from helpers.data.assets import MODELS
from helpers.errors import FileError
from helpers.paths import (
    TABLES_NOTEBOOK,
    ZERO_SHOT_NOTEBOOK,
    own_method_file,
    reference_dir,
    root,
    sha256_file,
    visible_files,
)
from reproduction.parameters import code_cells
from reproduction.plan import Run
from reproduction.records import read_record

# part of a fingerprint: its code, and the runs whose numbers that decides
PARTS = {
    "core": (CORE, lambda run: True),
    "scoring": (SCORING, lambda run: run.notebook == ZERO_SHOT_NOTEBOOK),
    # it writes the weights of such a run
    "large": (LARGE, lambda run: run.effective.get("streamed", False)),
}
# of cells that prepare Colab, let a user explore, or only draw
UNCOUNTED_TAGS = {"colab-setup", "explorer", "figure"}
TEXTS = (".txt", ".jsonl")
# of a model's folder
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")


def is_done(run: Run) -> bool:
    """Whether the run has a current record on this machine; if it is timed, a timed one."""
    try:
        record = read_record(run.record_path)
    except FileError:
        return False
    if run.timed and not record.get("timed"):
        return False
    return is_current(record, run, run.record_path.parent)


def is_current(record: Mapping[str, Any], run: Run, folder: Path) -> bool:
    """Whether a record has the run's parameters and is of today's code, or of code equal to it.

    folder: where the record lies, with those that the tables notebook reads. A parameter that the
    notebook has gained since counts with its default.
    """
    gained = {name: run.defaults[name] for name in run.effective}
    if gained | record["parameters"] != run.effective:
        return False
    recorded = record.get("fingerprint")
    today = fingerprint(run, folder)
    if not isinstance(recorded, Mapping) or recorded.keys() != today.keys():
        return False
    return all(recorded[part] in equal_hashes(code) for part, code in today.items())


def fingerprint(run: Run, folder: Path | None = None) -> dict[str, str]:
    """The hashes of what decides the run's numbers: see the module's docstring.

    folder: of the records that the tables notebook reads, by default of those made here.
    """
    parts = {
        name: hash_of(file_hashes(code))
        for name, (code, decides) in PARTS.items()
        if decides(run)
    }
    parts["notebook"] = notebook_hash(run.source_path)
    method = own_method_file(run.effective.get("method", ""))
    if method.is_file():
        parts["own"] = code_hash(method.read_text(encoding="utf-8"))
    files = named_files(run.effective)
    if run.notebook == TABLES_NOTEBOOK:
        records = (folder or run.record_path.parent).glob("*.json")
        files += sorted(p for p in records if not p.name.startswith(run.notebook))
    hashes = []
    for path in files:
        stat = path.stat()
        hashes.append(hash_of_file(path, stat.st_size, stat.st_mtime_ns))
    parts["files"] = hash_of(hashes)
    return parts


def named_files(parameters: Mapping[str, Any]) -> list[Path]:
    """The files on this machine that parameters name: texts, and those of a model's folder."""
    values = [value for value in parameters.values() if isinstance(value, str)]
    # a notebook's kernel starts in the project's root
    texts = [root() / Path(v).expanduser() for v in values if v.lower().endswith(TEXTS)]
    files = [path for path in texts if path.is_file()]
    model = parameters.get("model", "")
    if model not in ("", "tiny", *MODELS):
        folder = root() / Path(model).expanduser()
        for pattern in MODEL_FILES:
            files += visible_files(folder, pattern)
    return files


@functools.lru_cache(maxsize=1024)
def hash_of_file(path: Path, size: int, modified: int) -> str:
    """sha256 of a file, which is read again once its size or its time has changed."""
    return sha256_file(path)


def tree_hashes(project: Path) -> dict[str, str]:
    """The hashes of a checkout: of each of `PARTS`, and of each notebook by its name."""
    hashes = {
        name: hash_of(file_hashes(code, project)) for name, (code, _) in PARTS.items()
    }
    for path in sorted((project / "notebooks").glob("*.ipynb")):
        hashes[path.stem] = notebook_hash(path)
    return hashes


def notebook_hash(path: Path) -> str:
    """The hash of a notebook's computing cells, and of reproduction/studies where they name it."""
    cells = [source for source, tags in code_cells(path) if not UNCOUNTED_TAGS & tags]
    hashes: list[Any] = [code_hash(source) for source in cells]
    # in a comment, too: one record too many is made again, none too few
    if any(re.search(r"\bstudies\b", cell) for cell in cells):
        hashes.append(file_hashes(STUDIES, path.parent.parent))
    return hash_of(hashes)


# --- code that is proven to compute the same --------------------------------------------------


def equal_hashes(code: str) -> set[str]:
    """A hash, and those of all code that is proven to compute the same.

    Proofs chain: if A equals B and B equals C, then A equals C.
    """
    pairs = [set(pair) for proof in read_proofs() for pair in proof["equal"].values()]
    found = {code}
    for _ in pairs:  # each time at least one more, if there is any
        found.update(*(pair for pair in pairs if pair & found))
    return found


def read_proofs() -> list[dict[str, Any]]:
    """The proofs that `make same` has written, the oldest first."""
    path = proofs_path()
    return json.loads(path.read_bytes()) if path.is_file() else []


def proofs_path() -> Path:
    """The file of the proofs, which is committed next to the records."""
    return reference_dir("same.json")
