"""One frame of runs, a row each, on which tables, figures and claims stand.

Most runs of a plan share one setting (model, texts, sizes). A run with another setting is labelled
with the difference, so that no mean mixes two settings. A run of a method with options other than
its defaults is a variant, and is compared with the defaults in a table of its own.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from reproduction.labels import (
    PRUNE_NOTEBOOK,
    column_key,
    method_name,
    row_key,
    target_name,
    with_options,
)
from reproduction.records import Record

# the columns of `runs_frame` that are there even without runs
FACTS = [
    "record",  # itself
    "label",  # the row of the printed tables: method, options, and what differs in the setting
    "order",  # the place of the label in the tables
    "target",  # the column of the printed tables: "60 %", "2:4" or "dense"
    "method",  # with the recipe that its effort names
    "options",  # of the method, as JSON
    "seed",  # of the calibration text
    "draw",  # the hash of all windows of calibration text that were drawn
    "machine",  # processor and device
    "memory",  # the peak of the process in GB
    "variant",  # whether it has options while its method was run without too
    "usual",  # whether its setting is that of most runs
    "timed",  # whether it had the machine to itself
]
SECONDS = ["forward_seconds", "solve_seconds", "prune_seconds", "evaluate_seconds"]
NUMBERS = ["perplexity", *SECONDS]
FEWEST = 3  # draws that have ±: of two it would be six times their distance
# parameters that decide a run's row and column; the others are its setting
CELL = {
    "method",
    "effort",
    "sparsity",
    "pattern",
    "options",
    "device",
    "calibration_seed",
    "tasks",
    "limit",
    "task_part",
    # of a pipeline (notebook 08)
    "allocation",
    "guide_sequences",
    "passes",
    "repair",
    "repair_windows",
    "precision",
}
CALIBRATION = {"calibration", "sequences", "length"}
# what a perplexity is measured on
WINDOWS = ("evaluation", "windows", "window", "web_windows")
# the embedded models and texts
CONVERTED = "(embedded: a 4-bit file converted back, de-quantised)"
EMBEDDED = {
    "model": {
        "embedded": f"SmolLM2-135M-Instruct {CONVERTED}",
        "embedded-gemma": f"Gemma-3-270M {CONVERTED}",
    },
    "evaluation": {"embedded": "Wikipedia text (embedded)"},
    "calibration": {"embedded": "C4 text (embedded)"},
}


# ------------------------------------------------------------------ groups of records


def of_notebook(records: Iterable[Record], notebook: str) -> list[Record]:
    """The records of a notebook."""
    return [record for record in records if record["notebook"] == notebook]


def by_model(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each model, without those that have none."""
    models = defaultdict(list)
    for record in records:
        if "model" in record["parameters"]:
            models[record["parameters"]["model"]].append(record)
    return dict(models)


def by_windows(records: Iterable[Record]) -> list[list[Record]]:
    """The records of each set of evaluation windows, the largest group first.

    Perplexities on different windows cannot be compared.
    """
    groups = defaultdict(list)
    for record in records:
        groups[tuple(map(record["parameters"].get, WINDOWS))].append(record)
    return sorted(groups.values(), key=len, reverse=True)


def with_series(records: Iterable[Record], name: str) -> list[Record]:
    """The records that have the series of that name."""
    return [record for record in records if name in (record.get("series") or {})]


def series_frame(records: Iterable[Record], name: str) -> pd.DataFrame:
    """The rows of a series that is a list, of all records, each with the number of its "record".

    And with its "layer": rows of a study of one layer may not name it.
    """
    rows = []
    for number, record in enumerate(with_series(records, name)):
        own = {"layer": record["parameters"].get("layer"), "record": number}
        rows += [own | row for row in record["series"][name]]
    return pd.DataFrame(rows)


# ------------------------------------------------------------------ the setting they share


def common_parameters(records: Iterable[Record]) -> dict[str, Any]:
    """The most frequent value of each parameter, of equally frequent ones the first."""
    values = defaultdict(list)
    for record in records:
        for key, value in record["parameters"].items():
            values[key].append(value)
    # not by hash: a value may be a list
    return {key: max(given, key=given.count) for key, given in values.items()}


def full_name(parameter: str, value: Any) -> Any:
    """The full name of an embedded model or text, any other value as it is."""
    return EMBEDDED[parameter].get(value, value)


def model_sentence(records: Iterable[Record]) -> str:
    """A sentence that names the model of these runs."""
    return f"Model: {full_name('model', common_parameters(records).get('model'))}."


def setting_sentences(records: Sequence[Record]) -> str:
    """The model, the texts and their sizes that most of these pruning runs share."""
    common = common_parameters(records)
    start = ""
    for record in records:
        if "start_token" in (record["data"] or {}).get("evaluation", {}):
            start = ", after a start token"
    return (
        f"{model_sentence(records)} Perplexity on "
        f"{full_name('evaluation', common['evaluation'])}, {common['windows'] or 'all'} windows "
        f"of {common['window']} tokens{start}. Calibration on "
        f"{full_name('calibration', common['calibration'])}, {common['sequences']} x "
        f"{common['length']} tokens."
    )


# ------------------------------------------------------------------ the frame


def runs_frame(
    records: Iterable[Record], notebook: str = PRUNE_NOTEBOOK
) -> pd.DataFrame:
    """The runs of a notebook that prunes or scores, a row each, in the order of the records.

    Columns: those that FACTS explains, NUMBERS, and the value of every metric of a record under its
    name, NaN where a record lacks it.
    """
    runs = of_notebook(records, notebook)
    common = common_parameters(runs)
    rows = []
    for run in runs:
        parameters = run["parameters"]
        method = method_name(parameters)
        options = parameters.get("options") or {}
        target = "dense"
        if method != "dense":
            pattern = parameters.get("pattern", "unstructured")
            target = target_name(pattern, parameters["sparsity"])
        text = (run["data"] or {}).get("calibration")
        # what read no calibration text does not differ in it
        alike = CELL if text is not None else CELL | CALIBRATION
        differing = {
            key: value
            for key, value in parameters.items()
            if key not in alike and value != common[key]
        }
        label = with_options(method, options | differing)
        seed = parameters.get("calibration_seed", 0)
        row = {name: metric["value"] for name, metric in run["metrics"].items()}
        row |= {
            "record": run,
            "label": label,
            "target": target,
            "method": method,
            "options": json.dumps(options, sort_keys=True),
            "seed": seed,
            "draw": (text or {}).get("tokens", seed),
            "machine": (processor_of(run), run["device"]),
            "memory": run["peak_memory_bytes"] / 1e9,
            "usual": not differing,
            "timed": run.get("timed", False),
        }
        rows.append(row)
    frame = pd.DataFrame(rows)
    frame = frame.reindex(columns=frame.columns.union([*FACTS, *NUMBERS], sort=False))
    frame["order"] = frame["label"].map(sorted(set(frame["label"]), key=row_key).index)
    plain = frame["options"] == "{}"
    frame["variant"] = ~plain & frame["method"].isin(frame.loc[plain, "method"])
    flags = dict.fromkeys(["usual", "timed"], bool)
    return frame.astype(flags | dict.fromkeys(NUMBERS, float))


def processor_of(record: Record) -> str | None:
    """The processor on which a record was made; None where it does not say."""
    return (record.get("platform") or {}).get("processor")


def perplexity_runs(records: Iterable[Record]) -> pd.DataFrame:
    """The runs of notebook 04 on the windows that most of them share, without variants."""
    first, *_ = [*by_windows(of_notebook(records, PRUNE_NOTEBOOK)), []]
    return runs_frame(first).query("not variant")


# ------------------------------------------------------------------ means over seeds


def confidence_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of draws and half of Student's 95 % confidence interval of it, NaN below FEWEST.

    This is what ± means in every table, unless its caption says otherwise. NaN is no draw.
    """
    draws = pd.Series(values, dtype=float).dropna()
    if len(draws) < FEWEST:
        return draws.mean(), math.nan
    errors = stats.t.ppf(0.975, len(draws) - 1)  # in half an interval
    return draws.mean(), errors * draws.sem()


def as_change(mean: Any, half: Any) -> tuple[Any, Any]:
    """Mean and half an interval of logarithms of ratios as a change, and half of its own."""
    return np.expm1(mean), half * np.exp(mean)


def half_interval(values: Sequence[float]) -> float:
    """The second number of `confidence_interval`."""
    return confidence_interval(values)[1]


def over_seeds(
    runs: pd.DataFrame, row: str, number: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The mean over seeds of a number, by row and target, and half of its confidence interval.

    Several records of one seed count once, with their mean. Rows are in their "order", targets in
    that of `column_key`; a target without a number has no column.
    """
    draws = runs.groupby([row, "target", "seed"], as_index=False, sort=False)
    seeds = draws[number].mean()
    rows = runs.drop_duplicates(row).sort_values("order")[row]
    columns = sorted(seeds.dropna()["target"].unique(), key=column_key)
    means, halves = (
        seeds.pivot_table(number, row, "target", how)
        .reindex(index=rows, columns=columns)
        .rename_axis(columns=None)
        for how in ("mean", half_interval)
    )
    return means, halves
