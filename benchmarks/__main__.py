"""`python -m benchmarks [NAME ...] [--quick] [--out FOLDER] [--page]`.

A benchmark is a module of this package with `measure(quick: bool) -> dict`, named in `BENCHMARKS`,
and has a section in `report`. Benchmarks that are not named on the command line keep their entry in
the record. The page says which of them timed earlier code; --page writes it again from the record.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import TIMED, describe, timed_code
from helpers.paths import reference_dir, replace_file, results_dir

SCHEMA = 1
BENCHMARKS = tuple(TIMED)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the named benchmarks, and write record, page and figure after each."""
    options = parse(arguments)
    # fails before the measurement if the record cannot be added to
    record = read(options.out)
    if options.page:
        write(options.out, record)
        return
    machine = describe()  # once, because the first benchmark is a load to the second
    if machine["warning"]:
        print(f"warning: {machine['warning']}")
    for name in options.names or BENCHMARKS:
        print(f"{name}: running", flush=True)
        started = time.perf_counter()
        result = importlib.import_module(f"benchmarks.{name}").measure(options.quick)
        seconds = time.perf_counter() - started
        print(f"{name}: {seconds:.0f} s", flush=True)
        entry = {"machine": machine, "seconds": seconds, "quick": options.quick}
        entry |= {"code": timed_code(name), "result": result}
        write(options.out, merge(read(options.out), name, entry))
    print(f"written to {os.path.relpath(options.out)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; a quick run writes to results/scratch/bench by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--quick", action="store_true", help="a trial in a minute, on toy sizes"
    )
    parser.add_argument(
        "--page", action="store_true", help="measure nothing, write the page"
    )
    parser.add_argument("--out", type=Path, help="folder of record, page and figure")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(
            f"no benchmark {sorted(unknown)}: there are {', '.join(BENCHMARKS)}"
        )
    if options.out is None:
        quick = results_dir("scratch") / "bench"
        options.out = quick if options.quick else reference_dir("bench")
    return options


def merge(record: dict[str, Any], name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Replace one benchmark's entry in the record; benchmarks in the order of `BENCHMARKS`."""
    entries = {**record["benchmarks"], name: entry}
    return {
        **record,
        "benchmarks": {key: entries[key] for key in BENCHMARKS if key in entries},
    }


def read(folder: Path) -> dict[str, Any]:
    """Read the record in a folder, or make an empty one. Raises ValueError for another schema."""
    path = folder / "bench.json"
    if not path.is_file():
        return {"schema": SCHEMA, "benchmarks": {}}
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} has another schema than {SCHEMA}: delete it and measure again"
        )
    return record


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Write bench.json, and from it bench.md and the figure of `use`, use.png."""
    # imported after the measurement: they load pandas and matplotlib
    from benchmarks import figure, report

    text = to_json(rounded(record))
    record = json.loads(text)
    replace_file(folder / "bench.json", text + "\n")
    replace_file(folder / "bench.md", report.to_page(record))
    if use := record["benchmarks"].get("use"):
        replace_file(folder / "use.png", figure.use_figure(use["result"]))


def rounded(value: Any) -> Any:
    """Round every float to four significant digits, so that the record is short."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def to_json(value: Any, indent: int = 0) -> str:
    """Write JSON with each value on one line where it fits."""
    flat = json.dumps(value, allow_nan=False, ensure_ascii=False)
    if len(flat) + indent <= 120 or not isinstance(value, (dict, list)):
        return flat
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        lines = [
            f"{pad}{json.dumps(k)}: {to_json(v, indent + 1)}" for k, v in value.items()
        ]
    else:
        lines = [pad + to_json(item, indent + 1) for item in value]
    ends = "{}" if isinstance(value, dict) else "[]"
    return ends[0] + "\n" + ",\n".join(lines) + "\n" + " " * indent + ends[1]


if __name__ == "__main__":
    main()
