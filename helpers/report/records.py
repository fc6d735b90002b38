"""A run's record: one JSON file with everything a table, a figure or a reader needs.

Tables and figures read records and nothing else, so what is not in a record does not exist:
parameters, metrics with units, seeds, identity of model and data, versions, wall seconds, peak
memory, device and git commit.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from helpers.errors import BadParameter, FileError, first_line
from helpers.paths import replace_file, results_dir, root

# raised when fields change their meaning: an older record is then refused, not misread
SCHEMA = 1
# a record's fields by their type in JSON; a record that lacks one is not used
FIELDS: dict[Any, tuple[str, ...]] = {
    int: ("schema", "peak_memory_bytes"),
    int | float: ("seconds",),
    str: ("notebook", "name", "device", "created"),
    dict: ("parameters", "metrics", "seeds", "versions", "platform"),
    dict | None: ("model", "data", "series", "git"),
    list | None: ("layers",),
}
# the packages that can change a number
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "lm-eval")
PACKAGES += ("numpy", "pandas")
# what decides a number; a change elsewhere in the tree does not make a record "dirty"
SOURCES = ("helpers", "notebooks", "runs", "pyproject.toml", "constraints.txt")
# notebook and name together are the name of a record's file, and must not lead to another folder
FILE_NAME = re.compile(r"\w[^/\\\x00-\x1f]{0,99}")
EXPONENT_WITHOUT_POINT = re.compile(r"([-+]?\d+)[eE]([-+]?\d+)")


def make_record(
    *,
    notebook: str,
    name: str,
    parameters: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, Any]],
    model: Mapping[str, Any] | None,
    data: Mapping[str, Any] | None,
    seeds: Mapping[str, int],
    seconds: float,
    device: str,
    peak_memory_bytes: int,
    series: Mapping[str, Any] | None = None,
    layers: Iterable[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The record of one run, ready for `write_record`.

    `metrics` maps a name to {"value": number, "unit": text}, unit "1" for a pure number; a third
    key "tolerance" (a fraction) overrides how closely a rerun must agree. `seconds` is wall time;
    `series` holds curves, `layers` a row per pruned layer; numpy and torch values become plain.
    The parameter `record_path` is left out: it says where this machine keeps the record.
    Raises FileError for NaN, infinity, a metric without unit, or what JSON cannot hold.
    """
    record = {
        "schema": SCHEMA,
        "notebook": notebook,
        "name": name,
        # the path would make two records of the same run differ
        "parameters": {key: value for key, value in parameters.items() if key != "record_path"},
        "metrics": {key: _metric(key, value) for key, value in metrics.items()},
        "model": model,
        "data": data,
        "seeds": seeds,
        "seconds": seconds,
        "device": device,
        "peak_memory_bytes": peak_memory_bytes,
        "series": series,
        "layers": None if layers is None else list(layers),
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
    return check_record({key: _plain(value, key) for key, value in record.items()})


def write_record(path: str | os.PathLike[str], record: Mapping[str, Any]) -> Path:
    """Write a record whole or not at all; "" puts it into results/scratch/records/.

    Raises FileError for a bad record and for a folder that cannot be written.
    """
    text = _to_json(check_record(_plain(record, "record")))
    if not os.fspath(path):
        folder = results_dir("scratch") / "records"
        path = folder / f"{record['notebook']}--{record['name']}.json"
    return replace_file(path, text)


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record in a file; FileError if it cannot be read, is not JSON or lacks a field."""

    def refuse(name: str) -> float:
        raise ValueError(f"it holds {name}")  # NaN and infinity are no JSON, but Python reads them

    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except OSError as error:
        raise FileError(f"cannot read record {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        reason = f"is not JSON ({first_line(error)})"
        raise FileError(f"record {path} {reason}: delete it and run again") from error
    return check_record(record, str(path))


def read_records(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All records of a folder, sorted by file name; none if the folder does not exist.

    Raises FileError if one of them cannot be used.
    """
    # sorted, as a file system lists names in any order
    return [read_record(path) for path in sorted(Path(folder).glob("*.json"))]


def check_record(record: Any, where: str = "record") -> dict[str, Any]:
    """Return the record if every field is there with its type, else raise FileError.

    Its notebook and name may be used in a file's name after that: no folder can be in them.
    """
    if not isinstance(record, dict):
        raise FileError(f"{where} is not a mapping: delete it and run again")
    for kind, fields in FIELDS.items():
        for field in fields:
            if field not in record:
                raise FileError(f"{where} lacks {field!r}: delete it and run again")
            if not isinstance(record[field], kind):
                value = f"{field} = {record[field]!r:.60}"
                raise FileError(f"{where} has {value}, of the wrong type: delete it and run again")
    for field in ("notebook", "name"):
        if not FILE_NAME.fullmatch(record[field]):
            raise FileError(
                f"{where} has {field} = {record[field]!r:.60}: give a short name without / and \\"
            )
    if record["schema"] != SCHEMA:
        raise FileError(f"{where} has schema {record['schema']}, not {SCHEMA}: run it again")
    for name, metric in record["metrics"].items():
        _metric(name, metric, where)
    return record


def check_parameters(**parameters: tuple[Any, ...]) -> None:
    """Check the types of a notebook's parameters: `check_parameters(rho=(rho, float), ...)`.

    Each keyword is (value, type, ...more allowed types); None stands for its own type. A bool is
    not an int, an int is accepted for a float, and a float must be finite. Raises BadParameter.
    """
    for name, (value, *allowed_types) in parameters.items():
        check_type(name, value, allowed_types)


def check_type(name: str, value: Any, allowed_types: Iterable[type | None]) -> None:
    """Raise BadParameter unless `value` is of one of the types (see `check_parameters`)."""
    types = {NoneType if kind is None else kind for kind in allowed_types}
    if isinstance(value, float) and not math.isfinite(value):
        raise BadParameter(f"{name} = {value} is not allowed: give a finite number")
    # type() and not isinstance, because True is an int to isinstance
    if type(value) in types or (type(value) is int and float in types):
        return
    if not isinstance(value, (bool, NoneType)) and isinstance(value, tuple(types)):
        return  # of a subclass, such as numpy's float64
    wanted = " or ".join(sorted("None" if kind is NoneType else kind.__name__ for kind in types))
    raise BadParameter(
        f"{name} = {value!r} is of type {type(value).__name__}: give {wanted}{_hint(value, types)}"
    )


def _hint(value: Any, types: set[type]) -> str:
    """What to write instead, for the two ways in which YAML changes a type unnoticed."""
    if isinstance(value, str) and types & {int, float}:
        # YAML 1.1 wants a point in a float: 1e-3 is text. It also reads 2:4 as 124, in base 60, and
        # an unquoted no as False
        if match := EXPONENT_WITHOUT_POINT.fullmatch(value.strip()):
            return f" (YAML reads {value} as text: write {match[1]}.0e{int(match[2]):+d})"
        try:
            float(value)
        except ValueError:
            return ""
        return f" (write {value.strip()} without quotes)"
    if str in types and not isinstance(value, (str, dict, list, NoneType)):
        return ' (YAML reads 2:4 and "no" as other types: put the text in quotes)'
    return ""


def _metric(name: str, metric: Any, where: str = "record") -> dict[str, Any]:
    """The metric with a plain value, if it has a finite number and a unit; else FileError."""
    if (
        not isinstance(metric, Mapping)
        or not {"value", "unit"} <= set(metric) <= {"value", "unit", "tolerance"}
        or not isinstance(metric["unit"], str)
    ):
        raise FileError(
            f'{where}: metric {name} is {metric!r:.60}; give value and unit ("1" for a ratio)'
        )
    value = _plain(metric["value"], f"metric {name}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FileError(f"{where}: metric {name} has value {value!r:.60}: give one finite number")
    return {**metric, "value": value}


def _plain(value: Any, where: str) -> Any:
    """The value in JSON's own types, scalars and arrays of numpy and torch included.

    Raises FileError for NaN, infinity and anything else that JSON cannot hold.
    """
    # a tensor or array becomes nested lists, a scalar a number of Python's own
    if hasattr(value, "tolist") and not isinstance(value, type):
        value = value.tolist()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            raise FileError(f"{where} is {value}: a record holds finite numbers only")
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    kind = type(value).__name__
    raise FileError(f"{where} is of type {kind}: give a number, text, list, mapping or None")


def _to_json(record: Mapping[str, Any]) -> str:
    """JSON with one field, and one layer, a line, so that a diff of two records can be read."""
    lines = []
    for key, value in record.items():
        # allow_nan=False raises where something not finite has come through all the same
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        if key == "layers" and value:
            rows = ",\n  ".join(json.dumps(row, allow_nan=False) for row in value)
            text = f"[\n  {rows}\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def processor() -> str:
    """The kind of processor: its kernels decide the last bits, and so which weights fall."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):  # there is such a file on Linux only
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        found = dict(re.findall(r"(?m)^(model name|cpu family|model)\s*: (.+)$", text))
    if "model name" not in found:
        return platform.processor() or platform.machine()
    # several kinds share one name, and differ in family or model
    return "{model name}, family {cpu family}, model {model}".format_map(
        {"cpu family": "?", "model": "?"} | found
    )


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
        command = ["git", "-C", str(root()), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root():
            return None  # the project was copied into another project's checkout
        # untracked files count too: a new module can change a number
        changes = git("status", "--porcelain", "--", *sources)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return None
