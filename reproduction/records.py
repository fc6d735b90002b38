"""A run's record: one JSON file with everything that a table or a figure needs.

Tables and figures read records and nothing else, so what is not in a record does not exist:
parameters, metrics with units, seeds, identity of model and data, versions, wall seconds, peak
memory, device and git commit.
"""

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, JsonValue

from helpers.errors import BadParameter, FileError, first_line
from helpers.paths import replace_file, results_dir, root

Record = Mapping[str, Any]
Records = Iterable[Record]
# the packages that can change a number
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "lm-eval",
    "numpy",
    "pandas",
    "pruning-reproduction",
)
# what decides a number; a change elsewhere in the tree does not make a record "dirty"
SOURCES = (
    "helpers",
    "reproduction",
    "notebooks",
    "runs",
    "pyproject.toml",
    "constraints.txt",
)
# notebook and name together are the name of a record's file, and must not lead to another folder
FileName = Annotated[str, Field(pattern=r"^\w[^/\\\x00-\x1f]{0,99}$")]


class Metric(pydantic.BaseModel, strict=True, extra="forbid", allow_inf_nan=False):
    """A number with its unit, "1" for a pure number."""

    value: float
    unit: str
    tolerance: float | None = None  # a fraction: how closely a rerun must agree


class RecordModel(pydantic.BaseModel, strict=True, extra="allow", allow_inf_nan=False):
    """The fields of a record; the runner adds some, such as its fingerprint."""

    __pydantic_extra__: dict[str, JsonValue]

    # raised when fields change their meaning: an older record is then refused, not misread
    schema_: Literal[1] = Field(alias="schema")
    notebook: FileName
    name: FileName
    parameters: dict[str, JsonValue]
    metrics: dict[str, Metric]
    model: dict[str, JsonValue] | None
    data: dict[str, JsonValue] | None
    seeds: dict[str, JsonValue]
    seconds: float
    device: str
    peak_memory_bytes: int
    series: dict[str, JsonValue] | None
    layers: list[JsonValue] | None
    versions: dict[str, JsonValue]
    git: dict[str, JsonValue] | None
    platform: dict[str, JsonValue]
    created: str


def make_record(**fields: Any) -> dict[str, Any]:
    """The record of one run, ready for `write_record`.

    fields: those of `RecordModel` from `notebook` to `layers`; the last two may be left out:
    `series`, curves and rows, and `layers`, a row for each pruned layer.

    Values of numpy and torch become plain. Raises FileError for a field that is missing, NaN,
    infinity, a metric without unit, or what JSON cannot hold.
    """
    fields = {"series": None, "layers": None} | fields
    fields |= {
        "schema": 1,
        "versions": _versions(),
        "git": git_state(),
        "platform": {  # no host name
            "system": platform.system(),
            "machine": platform.machine(),
            "processor": processor(),
            "cores": os.cpu_count() or 1,
        },
        # UTC, so that records of two machines can be put in order
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    order = [field.alias or name for name, field in RecordModel.model_fields.items()]
    return check_record(
        _plain({name: fields[name] for name in order if name in fields} | fields)
    )


def record_id(record: Record) -> str:
    """The id of the run that a record is of: `<notebook>--<name>`."""
    return f"{record['notebook']}--{record['name']}"


def write_record(path: str | Path, record: Record) -> Path:
    """Write a record whole or not at all; "" puts it into results/scratch/records/.

    Raises FileError for a bad record and for a folder that cannot be written.
    """
    text = _to_json(check_record(_plain(record)))
    if path == "":
        path = results_dir("scratch") / "records" / f"{record_id(record)}.json"
    return replace_file(path, text)


def read_record(path: str | Path) -> dict[str, Any]:
    """The record in a file; FileError if it cannot be read, is not JSON or lacks a field."""
    path = Path(path)
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise FileError(
            f"cannot read record {path}: {error.strerror or error}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise FileError(
            f"record {path} is not JSON ({first_line(error)}): delete it and run again"
        ) from error
    return check_record(record, str(path))


def read_records(folder: str | Path) -> list[dict[str, Any]]:
    """All records of a folder, sorted by file name; none if the folder does not exist.

    Raises FileError if one of them cannot be used.
    """
    # sorted, as a file system lists names in any order
    return [read_record(path) for path in sorted(Path(folder).glob("*.json"))]


def run_seconds(record: Record) -> float:
    """How long a run took, with the start of its kernel if the record says so."""
    return record.get("run_seconds", record["seconds"])


def check_record(record: Any, where: str = "record") -> dict[str, Any]:
    """Return the record if every field is there with its type, else raise FileError.

    Its notebook and name may be used in a file's name after that: no folder can be in them.
    """
    try:
        RecordModel.model_validate(record)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "all of it"
        given = (
            "is missing" if first["type"] == "missing" else f"= {first['input']!r:.60}"
        )
        raise FileError(
            f"{where}: {field} {given} ({first['msg']}): run again"
        ) from error
    return record


# what a parameter may be, in words
KINDS = {
    float: "a number such as 0.5",
    int: "a whole number",
    str: "text in quotes",
    bool: "True or False",
    list: "a list",
    dict: "a mapping of names to values",
    NoneType: "None",
}


def check_type(name: str, value: Any, types: Collection[type]) -> None:
    """Raise BadParameter unless a notebook's parameter has a value of one of the types.

    A bool is not an int, an int is accepted for a float, and a float must be finite.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise BadParameter(f"{name} = {value} is not allowed: give a finite number")
    # type() and not isinstance, because True is an int to isinstance
    if type(value) in types or (type(value) is int and float in types):
        return
    wanted = " or ".join(KINDS[kind] for kind in KINDS if kind in types)
    hint = ""
    if str in {type(value), *types}:
        # YAML 1.1 wants a point in a float; it reads 2:4 as 124, in base 60, and no as False
        hint = " (in YAML write 1.0e-3 for 1e-3, numbers without quotes, 2:4 and no in quotes)"
    raise BadParameter(
        f"{name} = {value!r} is of type {type(value).__name__}: give {wanted}{hint}"
    )


def _plain(value: Any) -> Any:
    """The value with JSON's own types for mappings, tuples, and what numpy and torch have."""
    if hasattr(value, "tolist") and not isinstance(value, type):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _to_json(record: Record) -> str:
    """JSON with one field, and one layer, a line, so that a diff of two records can be read."""
    # not pydantic's JSON: it writes 1e-5 where the committed records have 1e-05
    lines = []
    for key, value in record.items():
        text = json.dumps(value, ensure_ascii=False)
        if key == "layers" and value:
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def processor() -> str:
    """The kind of processor: its kernels decide the last bits, and so which weights are pruned."""
    known = {"cpu family": "?", "model": "?"}
    with contextlib.suppress(OSError):  # there is such a file on Linux only
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        known |= re.findall(r"(?m)^(model name|cpu family|model)\s*: (.+)$", text)
    if "model name" not in known:
        return platform.processor() or platform.machine()
    # several kinds share one name, and differ in family or model
    return "{model name}, family {cpu family}, model {model}".format_map(known)


def _versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        # a package that is not installed cannot have changed a number
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def git_state(sources: Iterable[str] = SOURCES) -> dict[str, Any] | None:
    """{"commit", "dirty"} of the project, or None outside a git checkout.

    "dirty" is True when one of `sources`, by default what decides numbers, differs from the commit.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=root(),
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout.strip()

    try:
        top, commit = git("rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).resolve() != root():
            return None  # the project was copied into another project's checkout
        # untracked files count too: a new module can change a number
        changes = git("status", "--porcelain", "--", *sources)
        return {"commit": commit, "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return None
