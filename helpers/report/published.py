"""Published numbers beside ours, shown only where they are about the same thing.

`helpers/report/papers/` holds two files with the same columns: published.csv, collected from other
papers and repositories, and paper.csv, for the paper's own tables. A number is shown beside a
record only if model, method, pattern, sparsity, metric and window all match. Ratios of perplexities
to SparseGPT's and to Wanda's in the same cell are compared across models, in a table that says so.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from helpers.errors import FileError, HelpersError
from helpers.masks import check_target
from helpers.paths import replace_file
from helpers.report.frame import (
    Record,
    by_model,
    column_key,
    perplexity_cells,
    prune_runs,
    row_key,
    target_name,
)
from helpers.report.tables import setting, to_markdown

FILES = ("published.csv", "paper.csv")
# how publications call the models of our run files
MODEL_NAMES = {
    "huggyllama/llama-7b": "LLaMA-7B",
    "meta-llama/Llama-2-7b-hf": "LLaMA-2-7B",
    "meta-llama/Llama-2-13b-hf": "LLaMA-2-13B",
    "meta-llama/Llama-2-70b-hf": "LLaMA-2-70B",
    "meta-llama/Meta-Llama-3-8B": "LLaMA-3-8B",
}
RIVALS = ("sparsegpt", "wanda")
DIFFERENT = (
    "Perplexity over SparseGPT's and over Wanda's in the same cell, here and as published: below 1 "
    "the method is better. **The models, texts and windows differ.** Pruning hurts a small model "
    "more, which moves its ratios away from 1."
)
ZERO_SHOT_METRIC = re.compile(r"(?!mean_)\w+_acc(_norm)?")


class Published(NamedTuple):
    """One published number: what it is about, its value, and where it was read."""

    model: str
    method: str
    pattern: str
    sparsity: float
    metric: str
    window: int  # tokens of an evaluation window, or of a calibration sequence; 0 for zero-shot
    value: float
    source: str


COLUMNS = Published._fields
KEY = list(COLUMNS[:6])  # what has to match for two numbers to be about the same thing


def read_published(folder: str | os.PathLike[str] | None = None) -> list[Published]:
    """The numbers of published.csv and paper.csv, in the order of the files.

    Raises FileError, naming file and line, for a missing file, other columns than COLUMNS, a
    number that is none, or the same number given twice by one source.
    """
    folder = Path(__file__).with_name("papers") if folder is None else Path(folder)
    found: dict[Published, Published] = {}
    for name in FILES:
        try:
            lines = csv.reader((folder / name).read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"{name} cannot be read: restore it from git") from error
        if tuple(header := next(lines, [])) != COLUMNS:
            raise FileError(f"{name} line 1 is {','.join(header)!r}: write {','.join(COLUMNS)}")
        for cells in filter(None, lines):
            where = f"{name} line {lines.line_num}"
            try:
                number = _parse([cell.strip() for cell in cells])
            except (ValueError, HelpersError) as error:
                raise FileError(
                    f"{where} is {','.join(cells)!r}: give {', '.join(COLUMNS)}; sparsity in "
                    "[0, 1), a whole window and a value, 0 or more, and a pattern such as 2:4"
                ) from error
            key = number._replace(value=0.0)
            if key in found:
                raise FileError(f"{where} repeats a number of the same source: delete one")
            found[key] = number
    return list(found.values())


def _parse(cells: list[str]) -> Published:
    """The number on one line; ValueError or HelpersError if it is none."""
    texts = dict(zip(COLUMNS, cells, strict=True))
    sparsity, window, value = float(texts["sparsity"]), int(texts["window"]), float(texts["value"])
    check_target(None if ":" in texts["pattern"] else sparsity, texts["pattern"])
    if not (all(cells) and 0 <= sparsity < 1 and window >= 0 and 0 <= value < math.inf):
        raise ValueError
    return Published(**texts | {"sparsity": round(sparsity, 6), "window": window, "value": value})


def published_table(
    records: Iterable[Record], published: Iterable[Published] | None = None
) -> pd.DataFrame | None:
    """Our value beside each published one of the same cell; None where nothing matches.

    A row for each published number and each of our records of its cell, with the calibration of
    our run. Records with options of the method, and those on a part of the evaluation text or of
    the tasks, are not about the same thing. `published` None reads the committed files.
    """
    theirs = read_published() if published is None else list(published)
    ours = [number for record in records for number in _ours(record)]
    found = pd.DataFrame(ours, columns=COLUMNS).merge(
        pd.DataFrame(theirs, columns=COLUMNS), on=KEY, suffixes=(" here", "")
    )
    names = {"source here": "calibration", "value here": "here", "value": "published"}
    found = found.rename(columns=names)[[*KEY, *names.values(), "source"]]
    found = found.sort_values(["model", "metric", "window"], kind="stable", ignore_index=True)
    return None if found.empty else found


def _ours(record: Record) -> Iterator[Published]:
    """What a record says in the terms of a publication; its calibration stands as the source."""
    given = record["parameters"]
    model = MODEL_NAMES.get(given.get("model"))
    if model is None or "method" not in given or given.get("options"):
        return
    dense = given["method"] == "dense"
    pattern = "unstructured" if dense else given["pattern"]
    sparsity = 0.0 if dense else round(check_target(given["sparsity"], pattern), 6)
    calibrated = "calibration" in (record.get("data") or {})
    text = f"{given['calibration']} {given['sequences']} x {given['length']}"
    measured = {}
    if given.get("evaluation") == "wikitext2" and given.get("windows") == 0:
        for name, window in (("", "window"), (f"_{given.get('second_window')}", "second_window")):
            measured[f"perplexity{name}"] = "wikitext2_ppl", given.get(window)
    if "V100" in record["device"]:
        measured["prune_seconds"] = "prune_seconds_v100", given["length"]
    if given.get("limit") == 0:
        measured |= {n: (n, 0) for n in record["metrics"] if ZERO_SHOT_METRIC.fullmatch(n)}
    for name, metric in record["metrics"].items():
        if name in measured:
            cell = (model, given["method"], pattern, sparsity, *measured[name], metric["value"])
            yield Published(*cell, text if calibrated else "none")


def published_markdown(records: Iterable[Record]) -> str:
    """The table as Markdown, or the sentence that there is nothing to compare with."""
    frame = published_table(records)
    if frame is None:
        return "No published figure is about the same model, method, pattern and window.\n"
    return to_markdown(frame.set_index("model"))


def ratio_table(
    records: Iterable[Record], published: Iterable[Published] | None = None
) -> pd.DataFrame | None:
    """Perplexities over SparseGPT's and over Wanda's in the same cell: ours, and published ones.

    The records are those of one model; a cell of ours is a mean over seeds. A row has the cell
    ("at", its name), the method, the model with the window, the two ratios (NaN without the rival)
    and the source. Magnitude pruning, with ratios in the hundreds, is left out. None without a
    rival of ours. `published` None reads the committed files.
    """
    found = list(records)
    theirs = pd.DataFrame(read_published() if published is None else published, columns=COLUMNS)
    theirs = theirs[theirs["metric"] == "wikitext2_ppl"]
    at = [target_name(*cell) for cell in zip(theirs["pattern"], theirs["sparsity"], strict=True)]
    model = theirs["model"] + ", window " + theirs["window"].map(str)
    source = theirs["source"].str.replace(r" \(as .+\)$", "", regex=True)  # another name
    theirs = theirs.assign(at=at, model=model, source=source)
    ours = perplexity_cells(found)["mean"].rename("value").rename_axis(["method", "at"])
    cells = pd.concat([ours.reset_index().assign(model="here", source="here"), theirs])
    rows = []
    for (at, model, source), cell in cells.groupby(["at", "model", "source"], sort=False):
        values = dict(zip(cell["method"], cell["value"], strict=True))
        for method in sorted(values.keys() - {"dense", "magnitude", "sparsegpt"}, key=row_key):
            ratios = [
                values[method] / values.get(rival, math.nan) if rival != method else math.nan
                for rival in RIVALS
            ]
            if not all(map(math.isnan, ratios)):
                rows.append((at, method, model, *ratios, source))
    table = pd.DataFrame(
        rows, columns=["at", "method", "model", *map("/ {}".format, RIVALS), "source"]
    )
    shared = table["at"].isin(table.loc[table["model"] == "here", "at"])
    table = table[shared].sort_values("at", key=lambda at: at.map(column_key), kind="stable")
    return None if table.empty else table.set_index("at")


def ratios_markdown(records: Iterable[Record]) -> str:
    """`ratio_table` of each model under a sentence on what differs; "" without one."""
    texts = []
    for runs in by_model(records).values():
        table = ratio_table(runs)
        if table is not None:
            texts.append(f"{setting(prune_runs(runs))} {DIFFERENT}\n\n{to_markdown(table)}")
    return "\n".join(texts)


def write_published(records: Iterable[Record], folder: str | os.PathLike[str]) -> list[Path]:
    """Write published.md, if a number matches, and published_ratios.md, if one can be compared.

    Returns the paths. Raises FileError if the folder cannot be written, and what
    `read_published` raises.
    """
    found, texts = list(records), {}
    if published_table(found) is not None:
        texts["published.md"] = published_markdown(found)
    if text := ratios_markdown(found):
        texts["published_ratios.md"] = text
    return [replace_file(Path(folder) / name, text) for name, text in texts.items()]
