"""Published numbers beside ours, shown only where they are about the same thing.

`results/published/` holds two files with the same columns: published.csv, collected from other
papers and repositories, and paper.csv, for the paper's own tables. A number is shown beside a
record only if model, method, pattern, sparsity, metric and window all match.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.errors import BadPattern, RecordError
from helpers.masks import check_target
from helpers.paths import replace_file, root
from helpers.results.tables import to_markdown

Record = Mapping[str, Any]

FILES = ("published.csv", "paper.csv")
COLUMNS = ("model", "method", "pattern", "sparsity", "metric", "window", "value", "source")
# how publications call the models of our run files
MODEL_NAMES = {
    "huggyllama/llama-7b": "LLaMA-7B",
    "meta-llama/Llama-2-7b-hf": "LLaMA-2-7B",
    "meta-llama/Llama-2-13b-hf": "LLaMA-2-13B",
    "meta-llama/Llama-2-70b-hf": "LLaMA-2-70B",
    "meta-llama/Meta-Llama-3-8B": "LLaMA-3-8B",
}
PERPLEXITIES = {"wikitext2": "wikitext2_ppl"}
ZERO_SHOT_METRIC = re.compile(r"(?!mean_)\w+_acc(_norm)?")


@dataclass(frozen=True)
class Figure:
    """One published number: what it is about, its value, and where it was read.

    `window`: tokens of an evaluation window; for seconds, of a calibration sequence; 0 for
    zero-shot accuracies, which have none.
    """

    model: str
    method: str
    pattern: str
    sparsity: float
    metric: str
    window: int
    value: float
    source: str

    @property
    def key(self) -> tuple[str, str, str, float, str, int]:
        """What has to match for two numbers to be about the same thing."""
        sparsity = round(self.sparsity, 6)
        return self.model, self.method, self.pattern, sparsity, self.metric, self.window


def published_dir() -> Path:
    """Folder of the published numbers."""
    return root() / "results" / "published"


def read_published(folder: str | os.PathLike[str] | None = None) -> list[Figure]:
    """The figures of published.csv and paper.csv, in the order of the files.

    Raises RecordError, naming file and line, for a missing file, other columns than COLUMNS, a
    number that is none, or the same figure given twice by one source.
    """
    place = published_dir() if folder is None else Path(folder)
    figures: list[Figure] = []
    seen: set[tuple[Any, ...]] = set()
    for name in FILES:
        for where, figure in _read_file(place / name):
            if (figure.key, figure.source) in seen:
                raise RecordError(f"{where}: the same figure of this source is there: delete one")
            seen.add((figure.key, figure.source))
            figures.append(figure)
    return figures


def _read_file(path: Path) -> Iterator[tuple[str, Figure]]:
    """Each line of a file as a figure, with its place for a message."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path.name} cannot be read: restore it from git") from error
    lines = csv.reader(text.splitlines())
    header = next(lines, [])
    if tuple(header) != COLUMNS:
        raise RecordError(f"{path.name} line 1 is {','.join(header)!r}: write {','.join(COLUMNS)}")
    for cells in lines:
        if cells:
            where = f"{path.name} line {lines.line_num}"
            yield where, _figure(cells, where)


def _figure(cells: Sequence[str], where: str) -> Figure:
    """The figure on one line."""
    cells = [cell.strip() for cell in cells]
    if len(cells) != len(COLUMNS) or not all(cells):
        raise RecordError(f"{where} has {sum(map(bool, cells))} values: give {', '.join(COLUMNS)}")
    given = dict(zip(COLUMNS, cells, strict=True))
    sparsity, value = (_number(given[name], name, where) for name in ("sparsity", "value"))
    window = _number(given["window"], "window", where)
    if not 0 <= sparsity < 1 or window != int(window):
        raise RecordError(
            f"{where}: sparsity {given['sparsity']}, window {given['window']}: give a fraction in "
            "[0, 1) and a whole number"
        )
    try:
        check_target(None if ":" in given["pattern"] else sparsity, given["pattern"])
    except BadPattern as error:
        raise RecordError(f"{where}: {error}") from error
    numbers = {"sparsity": sparsity, "window": int(window), "value": value}
    return Figure(**(given | numbers))


def _number(text: str, name: str, where: str) -> float:
    """A finite number of at least 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise RecordError(f"{where}: {name} {text!r} is not allowed: give a number, 0 or more")
    return number


def published_table(
    records: Iterable[Record], published: Iterable[Figure] | None = None
) -> pd.DataFrame | None:
    """Our value beside each published one of the same cell; None where nothing matches.

    Columns: model, method, pattern, sparsity, metric, window, calibration (of our run), here,
    published, source. Each published figure of a cell is a row, for each of our records of that
    cell. Left out are records with options of the method, and those on a part of the evaluation
    text or of the tasks, because they are not about the same thing.
    `published` None reads the committed files, and raises what `read_published` raises.
    """
    figures = read_published() if published is None else list(published)
    rows = []
    for record in records:
        for ours in _figures_of(record):
            matching = (figure for figure in figures if figure.key == ours.key)
            rows += [_row(ours, figure) for figure in matching]
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    return frame.sort_values(["model", "metric", "window"], kind="stable", ignore_index=True)


def _row(ours: Figure, figure: Figure) -> dict[str, Any]:
    """One line of the table."""
    shared = {name: getattr(figure, name) for name in COLUMNS[:6]}
    return shared | {
        "calibration": ours.source,
        "here": ours.value,
        "published": figure.value,
        "source": figure.source,
    }


def _figures_of(record: Record) -> Iterator[Figure]:
    """What a record says in the terms of a publication; its calibration stands as the source."""
    given = record["parameters"]
    model = MODEL_NAMES.get(str(given.get("model")))
    if model is None or "method" not in given or given.get("options"):
        return
    dense = given["method"] == "dense"
    pattern = "unstructured" if dense else given["pattern"]
    sparsity = 0.0 if dense else check_target(given["sparsity"], pattern)
    calibrated = "calibration" in (record.get("data") or {})
    text = f"{given['calibration']} {given['sequences']} x {given['length']}"
    for metric, window, value in _measurements(record):
        cell = (model, given["method"], pattern, sparsity)
        yield Figure(*cell, metric, window, value, text if calibrated else "none")


def _measurements(record: Record) -> Iterator[tuple[str, int, float]]:
    """(metric, window, value) of a record, as published.csv names them."""
    given = record["parameters"]
    perplexity = PERPLEXITIES.get(given.get("evaluation")) if given.get("windows") == 0 else None
    for name, metric in record["metrics"].items():
        value = metric["value"]
        if perplexity and name == "perplexity":
            yield perplexity, given["window"], value
        elif perplexity and name == f"perplexity_{given.get('second_window')}":
            yield perplexity, given["second_window"], value
        elif ZERO_SHOT_METRIC.fullmatch(name) and given.get("limit") == 0:
            yield name, 0, value
        elif name == "prune_seconds" and "V100" in record["device"]:
            yield "prune_seconds_v100", given["length"], value


def published_markdown(records: Iterable[Record]) -> str:
    """The table as Markdown, or the sentence that there is nothing to compare with."""
    frame = published_table(records)
    if frame is None:
        return "No published figure is about the same model, method, pattern and window.\n"
    return to_markdown(frame.set_index("model"))


def write_published(records: Iterable[Record], folder: str | os.PathLike[str]) -> list[Path]:
    """Write published.md into a folder if a figure matches; the paths written.

    Raises RecordError if the folder cannot be written, and what `read_published` raises.
    """
    frame = published_table(records)
    if frame is None:
        return []
    text = to_markdown(frame.set_index("model"))
    return [replace_file(Path(folder) / "published.md", text)]
