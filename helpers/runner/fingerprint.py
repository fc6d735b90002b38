"""The fingerprint of a run: a hash of what decides its numbers. It says whether a run is done.

That is its parameters, the text files they name, the code of its notebook, the file of its method
if a reader added one (helpers/own), and all of the core: every module directly in helpers/, in
helpers/fast and in helpers/beyond. A change in the core makes every run stale, a change in another
folder (a wing) none. Comments, docstrings and layout do not count. Nor do package versions: a
record names them.
"""

from __future__ import annotations

import hashlib
import json

from helpers.errors import RecordError
from helpers.paths import TABLES_NOTEBOOK, code_hash, core_code, own_method_file, root, sha256_file
from helpers.records import read_record
from helpers.runner.parameters import code_cells
from helpers.runner.plan import Run

# cells that prepare Colab or let a reader explore
SHOW_TAGS = {"colab-setup", "explorer"}


def is_done(run: Run) -> bool:
    """Whether the run's record is there and was made by today's code and parameters.

    The record of a run that is to be timed says that it was.
    """
    try:
        record = read_record(run.record_path)
    except RecordError:
        return False
    as_asked = record.get("timed", False) or not run.timed
    return as_asked and record.get("fingerprint") == fingerprint(run)


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
    parts = [json.dumps(run.effective, sort_keys=True), json.dumps(core_code())]
    parts += [code_hash(source) for source in code] + [sha256_file(path) for path in files]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
