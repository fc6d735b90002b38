"""Records as tables, figures and claims select them: which row, column and setting a run has.

Most runs of a plan share one setting (model, texts, sizes). A run that differs from it in anything
but its cell is labelled with the difference, so that no mean mixes two settings. A run of a method
with other options than its defaults is a variant and is compared with the defaults on its own.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

Record = Mapping[str, Any]
Row = Mapping[str, Any]  # of a series

PRUNE_NOTEBOOK = "04_prune_model"
ZERO_SHOT_NOTEBOOK = "05_zero_shot"
METHOD_ORDER = ("dense", "magnitude", "wanda", "sparsegpt", "admm1", "admm-grad")
TASK_NAMES = {"boolq": "BoolQ", "rte": "RTE", "hellaswag": "HellaSwag", "winogrande": "WinoGrande",
              "arc_easy": "ARC-e", "arc_challenge": "ARC-c", "openbookqa": "OBQA"}  # fmt: skip
USUAL = {"rho": 1.0, "precondition": True, "damping": 0.1}  # ADMM's defaults
ENOUGH = 0.01  # an objective this close to its optimum counts as having arrived
PRUNE_PARTS = ("forward", "gram", "solve", "selection")  # of the seconds of pruning
SECONDS = [f"{part}_seconds" for part in (*PRUNE_PARTS, "prune", "evaluate")]
COLUMNS = ["record", "label", "target", "method", "pattern", "options", "seed", "variant", "usual",
           "perplexity", "mean_layer_error", *SECONDS]  # fmt: skip
# these make the row and the column; the rest of the parameters is the setting
CELL = ("method", "sparsity", "pattern", "options", "device", "calibration_seed")
CALIBRATION = ("calibration", "sequences", "length")


def record_id(record: Record) -> str:
    """The id of the run that a record is of: `<notebook>--<name>`."""
    return f"{record['notebook']}--{record['name']}"


def target_name(pattern: str, sparsity: float) -> str:
    """A pattern as it is, unstructured pruning as its sparsity: "60 %"."""
    return f"{100 * sparsity:.4g} %" if pattern == "unstructured" else pattern


def column_of(record: Record) -> str | None:
    """The column of a pruned record: its pattern or its sparsity in percent; None if dense."""
    parameters = record["parameters"]
    if parameters.get("method") == "dense":
        return None
    return target_name(parameters.get("pattern", "unstructured"), parameters["sparsity"])


def row_key(label: str) -> tuple[int, str]:
    """Sorts rows: methods in the paper's order, variants after their method, others at the end."""
    method = label.partition(" ")[0]
    known = method in METHOD_ORDER
    return (METHOD_ORDER.index(method) if known else len(METHOD_ORDER), label)


def column_key(column: str) -> tuple[int, float, str]:
    """Sorts columns: sparsities, then patterns by the size of their groups."""
    if column.endswith(" %"):
        return (0, float(column[:-2]), column)
    return (1, float(column.split(":")[1]), column)


def by_model(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each model; those that are of no model are left out."""
    models: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if "model" in record["parameters"]:
            models[str(record["parameters"]["model"])].append(record)
    return dict(models)


def plain_runs(records: Iterable[Record]) -> list[Record]:
    """The records without variants: runs with options, where their method was run without too."""
    pairs = [(r, r["parameters"]["method"], bool(r["parameters"].get("options"))) for r in records]
    plain = {method for _, method, changed in pairs if not changed}
    return [record for record, method, changed in pairs if not changed or method not in plain]


def common_parameters(records: Iterable[Record]) -> dict[str, Any]:
    """The most frequent value of each parameter that is part of the setting."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for key, value in record["parameters"].items():
            if key not in CELL:
                counts[key][json.dumps(value, sort_keys=True)] += 1
    return {key: json.loads(count.most_common(1)[0][0]) for key, count in counts.items()}


def _labels(records: list[Record]) -> Iterator[tuple[str, bool]]:
    """The row of each record, and whether it has the setting that most records have."""
    common = common_parameters(records)
    for record in records:
        asked = record["parameters"]
        # a run that read no calibration text is the same run whatever the calibration would be
        read = "calibration" in (record.get("data") or {})
        setting = asked.keys() - {*CELL, *(() if read else CALIBRATION)}
        differences = {key: asked[key] for key in setting if common.get(key) != asked[key]}
        details = sorted(((asked.get("options") or {}) | differences).items())
        text = ", ".join(f"{key}={value}" for key, value in details)
        yield f"{asked['method']} ({text})" if text else asked["method"], not differences


def labelled(records: Iterable[Record]) -> list[tuple[Record, str]]:
    """Each record with its row: the method, and whatever sets it apart from most records."""
    records = list(records)
    return [(record, label) for record, (label, _) in zip(records, _labels(records), strict=True)]


def prune_runs(records: Iterable[Record]) -> list[Record]:
    """The records of the pruning notebook."""
    return [record for record in records if record["notebook"] == PRUNE_NOTEBOOK]


def run_frame(records: Iterable[Record], notebook: str = PRUNE_NOTEBOOK) -> pd.DataFrame:
    """The runs of a notebook that prunes or scores, a row each in the order given.

    Columns: record; label and target, its row and column in the tables (target "dense" for the
    dense model); method; pattern; options, as JSON; seed; variant, whether `plain_runs` leaves it
    out; usual, whether its setting is that of most runs; and the value of every metric, NaN where
    a record lacks it. Some of them are always there.
    """
    runs = [record for record in records if record["notebook"] == notebook]
    plain = {id(record) for record in plain_runs(runs)}
    rows = []
    for record, (label, usual) in zip(runs, _labels(runs), strict=True):
        asked = record["parameters"]
        rows.append({name: metric["value"] for name, metric in record["metrics"].items()} | {
            "record": record,
            "label": label,
            "target": column_of(record) or "dense",
            "method": asked["method"],
            "pattern": asked.get("pattern"),
            "options": json.dumps(asked.get("options") or {}, sort_keys=True),
            "seed": asked.get("calibration_seed", 0),
            "variant": id(record) not in plain,
            "usual": usual,
        })  # fmt: skip
    columns = dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)])
    return pd.DataFrame(rows, columns=list(columns)).astype({"variant": bool, "usual": bool})


def prune_frame(records: Iterable[Record]) -> pd.DataFrame:
    """The runs of the pruning notebook without variants, as `run_frame` has them."""
    return run_frame(records).query("not variant")


def perplexity_cells(records: Iterable[Record]) -> pd.DataFrame:
    """Perplexity by label and target: mean, min and max over seeds, and count."""
    cells = prune_frame(records).groupby(["label", "target"])["perplexity"]
    return cells.agg(mean=pd.Series.mean, min="min", max="max", count="count")


def with_series(records: Iterable[Record], name: str) -> list[Record]:
    """The records that have the series of that name."""
    return [record for record in records if name in (record.get("series") or {})]


def series_of(records: Iterable[Record], name: str) -> Mapping[str, Any] | None:
    """The series of that name, of the record "default" if it has one, else of the first."""
    found = with_series(records, name)
    found.sort(key=lambda record: record.get("name") != "default")
    return found[0]["series"][name] if found else None


def series_rows(records: Iterable[Record], name: str) -> list[dict[str, Any]]:
    """The rows of a series that is a list, of all records, each with its "record" (a number)."""
    found = enumerate(with_series(records, name))
    return [row | {"record": number} for number, r in found for row in r["series"][name]]


def matching(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows of a series that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]
