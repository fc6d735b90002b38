"""Tables as pure functions of records: perplexity in the paper's shape, and what it cost.

A cell is the mean over seeds. Records that differ in anything else (method options, calibration
size, model) from what most records of the plan use get a row of their own, labelled with the
difference, so that a mean never mixes two settings.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.errors import RecordError
from helpers.paths import replace_file

Record = Mapping[str, Any]

PRUNE_NOTEBOOK = "04_prune_model"
METHOD_ORDER = ("dense", "magnitude", "wanda", "sparsegpt", "admm1", "admm-grad")
# these make the row and the column; the rest of the parameters is the setting
CELL = ("method", "sparsity", "pattern", "options", "device", "calibration_seed")
CALIBRATION = ("calibration", "sequences", "length")


def perplexity_table(records: Iterable[Record]) -> pd.DataFrame:
    """Perplexity, methods by sparsity: columns "50 %" … "2:4" …, first row the dense model.

    The dense row repeats its one number in every column, to be compared with. A cell without a run
    is NaN. Raises RecordError if no record holds a perplexity.
    """
    return _cells(records, lambda values: sum(values) / len(values))


def perplexity_spread(records: Iterable[Record]) -> pd.DataFrame:
    """Half of (max - min) over seeds for each cell of `perplexity_table`; NaN for one seed."""
    return _cells(
        records, lambda values: (max(values) - min(values)) / 2 if len(values) > 1 else float("nan")
    )


def cost_table(records: Iterable[Record]) -> pd.DataFrame:
    """What each method cost: runs, mean seconds to prune and to evaluate, peak memory in GB.

    Memory is the largest peak of the process, model and text included. Raises RecordError if no
    record is of the pruning notebook.
    """
    rows: dict[str, list[Record]] = defaultdict(list)
    for record, label in labelled(_prune_records(records)):
        rows[label].append(record)
    table = {
        label: {
            "runs": len(group),
            "prune (s)": _mean(group, "prune_seconds"),
            "evaluate (s)": _mean(group, "evaluate_seconds"),
            "peak memory (GB)": max(record["peak_memory_bytes"] for record in group) / 1e9,
        }
        for label, group in rows.items()
    }
    frame = pd.DataFrame.from_dict(table, orient="index").loc[sorted(table, key=_row_key)]
    return frame.rename_axis("method")


def column_of(record: Record) -> str | None:
    """The column of a pruned record: its pattern or its sparsity in percent; None if dense."""
    parameters = record["parameters"]
    if parameters.get("method") == "dense":
        return None
    pattern = parameters.get("pattern", "unstructured")
    return f"{100 * parameters['sparsity']:.4g} %" if pattern == "unstructured" else pattern


def to_markdown(frame: pd.DataFrame, spread: pd.DataFrame | None = None, missing: str = "–") -> str:
    """The frame as a Markdown table, numbers to the right, with "± spread" where there is one."""
    head = [frame.index.name or "", *map(str, frame.columns)]
    lines = [_row(head), _row([":--", *["--:"] * len(frame.columns)])]
    for label in frame.index:
        cells = [str(label)]
        for column in frame.columns:
            text = format_number(frame[column][label], missing)
            half = None if spread is None else spread[column][label]
            if half is not None and not pd.isna(half):
                text += f" ± {format_number(half)}"
            cells.append(text)
        lines.append(_row(cells))
    return "\n".join(lines) + "\n"


def format_number(value: float, missing: str = "–") -> str:
    """Counts as they are, others with two decimals below 100 and with fewer above."""
    if pd.isna(value):
        return missing
    if isinstance(value, Integral):
        return f"{value:,}"
    size = abs(value)
    if size >= 1e6:
        return f"{value:.1e}"
    return f"{value:.2f}" if size < 100 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"


def setting(records: Iterable[Record]) -> str:
    """One line on the setting that most records of the pruning notebook share."""
    common = _common(_prune_records(records))
    model = common.get("model", "?")
    text = f"Model: {model}."
    if "evaluation" in common:
        text += f" Perplexity on {common['evaluation']} text"
        if "windows" in common and "window" in common:
            text += f", {common['windows']} windows of {common['window']} tokens"
        text += "."
    if "calibration" in common:
        text += f" Calibration on {common['calibration']} text"
        if "sequences" in common and "length" in common:
            text += f", {common['sequences']} x {common['length']} tokens"
        text += "."
    return text


def write_tables(records: Iterable[Record], folder: str | os.PathLike[str]) -> list[Path]:
    """Write perplexity.{md,csv} and cost.{md,csv} into a folder and return their paths.

    Several models get a section each in the Markdown and a first column in the CSV. Raises
    RecordError if there is nothing to show or the folder cannot be written.
    """
    models: dict[str, list[Record]] = defaultdict(list)
    for record in _prune_records(records):
        models[str(record["parameters"].get("model", "?"))].append(record)
    frames = {
        "perplexity": {model: perplexity_table(runs) for model, runs in models.items()},
        "cost": {model: cost_table(runs) for model, runs in models.items()},
    }
    texts = {
        "perplexity.md": "\n".join(_perplexity_section(runs) for runs in models.values()),
        "cost.md": "\n".join(_cost_section(runs) for runs in models.values()),
    }
    for name, by_model in frames.items():
        frame = pd.concat(by_model, names=["model"]) if len(models) > 1 else [*by_model.values()][0]
        texts[f"{name}.csv"] = frame.to_csv(lineterminator="\n")
    return [replace_file(Path(folder) / name, text) for name, text in sorted(texts.items())]


def _perplexity_section(records: list[Record]) -> str:
    """Setting and perplexity table of one model in Markdown."""
    spread = perplexity_spread(records)
    seeds = " ± is half the range over seeds." if spread.notna().any(axis=None) else ""
    return f"{setting(records)}{seeds}\n\n{to_markdown(perplexity_table(records), spread)}"


def _cost_section(records: list[Record]) -> str:
    """Setting, devices and cost table of one model in Markdown."""
    return f"{setting(records)} {_devices(records)}\n\n{to_markdown(cost_table(records))}"


def _prune_records(records: Iterable[Record]) -> list[Record]:
    """The records of the pruning notebook; RecordError if there are none."""
    found = [
        record
        for record in records
        if record["notebook"] == PRUNE_NOTEBOOK and "perplexity" in record["metrics"]
    ]
    if not found:
        raise RecordError(f"no record of {PRUNE_NOTEBOOK} with a perplexity: run that notebook")
    return found


def _cells(records: Iterable[Record], summary: Callable[[list[float]], float]) -> pd.DataFrame:
    """Methods by sparsity, each cell a summary of the perplexities of its runs."""
    values: dict[str, dict[str | None, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record, label in labelled(_prune_records(records)):
        value = record["metrics"]["perplexity"]["value"]
        values[label][column_of(record)].append(value)
    columns = sorted({key for row in values.values() for key in row if key}, key=_column_key)
    columns = columns or ["0 %"]
    table = {}
    for label in sorted(values, key=_row_key):
        row = values[label]
        spots = {column: row.get(column) or row.get(None) for column in columns}
        table[label] = {
            column: summary(found) if found else float("nan") for column, found in spots.items()
        }
    return pd.DataFrame.from_dict(table, orient="index", columns=columns).rename_axis("method")


def labelled(records: list[Record]) -> list[tuple[Record, str]]:
    """Each record with its row: the method, and whatever sets it apart from most records."""
    common = _common(records)
    return [(record, _label(record, common)) for record in records]


def _label(record: Record, common: Mapping[str, Any]) -> str:
    """The row that a run belongs to."""
    parameters = record["parameters"]
    # a run that read no calibration text is the same run whatever the calibration would be
    ignored = CELL if "calibration" in (record.get("data") or {}) else (*CELL, *CALIBRATION)
    differences = dict(parameters.get("options") or {})
    differences |= {
        key: value
        for key, value in parameters.items()
        if key not in ignored and common.get(key) != value
    }
    details = ", ".join(f"{key}={value}" for key, value in sorted(differences.items()))
    return f"{parameters['method']} ({details})" if details else parameters["method"]


def _common(records: Iterable[Record]) -> dict[str, Any]:
    """The most frequent value of each parameter that is part of the setting."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for key, value in record["parameters"].items():
            if key not in CELL:
                counts[key][json.dumps(value, sort_keys=True)] += 1
    return {key: json.loads(count.most_common(1)[0][0]) for key, count in counts.items()}


def _mean(records: list[Record], metric: str) -> float:
    """Mean of a metric over the records that have it; NaN if none has."""
    values = [r["metrics"][metric]["value"] for r in records if metric in r["metrics"]]
    return sum(values) / len(values) if values else float("nan")


def _devices(records: Iterable[Record]) -> str:
    """Where the runs ran, since seconds mean nothing without it."""
    devices = sorted({record["device"] for record in _prune_records(records)})
    return f"Device: {'; '.join(devices)}."


def _row_key(label: str) -> tuple[int, str]:
    """Known methods in the paper's order, variants after their method, others at the end."""
    method = label.split(" ", 1)[0]
    known = method in METHOD_ORDER
    return (METHOD_ORDER.index(method) if known else len(METHOD_ORDER), label)


def _column_key(column: str) -> tuple[int, float, str]:
    """Sparsities in order, then patterns by the size of their groups."""
    if column.endswith(" %"):
        return (0, float(column[:-2]), column)
    return (1, float(column.split(":")[1]), column)


def _row(cells: Iterable[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
