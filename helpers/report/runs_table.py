"""Runs as rows of a table: which row, column and setting of the printed tables each belongs to.

Most runs of a plan share one setting (model, texts, sizes). A run with another setting is labelled
with the difference, so that no mean mixes two settings. A run of a method with options other than
its defaults is a variant, and is compared with the defaults in a table of its own.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from typing import Any

import pandas as pd
from scipy import stats

from helpers.report.labels import (
    WithSpread,
    column_key,
    method_name,
    target_name,
    with_options,
)
from helpers.report.records import Record, Records

PRUNE_NOTEBOOK = "04_prune_model"
# metrics of a pruning run, and the other columns of a table of runs
SECONDS = ["forward_seconds", "solve_seconds", "prune_seconds", "evaluate_seconds"]
NUMBERS = ["perplexity", *SECONDS]
FLAGS = ["variant", "usual", "timed"]
FEWEST = 3  # draws that have ±: of two it would be six times their distance
COLUMNS = [
    "record",
    "label",
    "target",
    "method",
    "options",
    "seed",
    "machine",
    "memory",
    *FLAGS,
    *NUMBERS,
]
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


def of_notebook(records: Records, notebook: str) -> list[Record]:
    """The records of a notebook."""
    return [record for record in records if record["notebook"] == notebook]


def by_model(records: Records) -> dict[str, list[Record]]:
    """The records of each model, without those that have none."""
    models = defaultdict(list)
    for record in records:
        if "model" in record["parameters"]:
            models[record["parameters"]["model"]].append(record)
    return dict(models)


def by_windows(records: Records) -> dict[str, list[Record]]:
    """The records of each set of evaluation windows, the largest group, named "", first.

    The others are "other windows 1" and so on: perplexities on different windows cannot be
    compared.
    """
    groups = defaultdict(list)
    for record in records:
        groups[tuple(map(record["parameters"].get, WINDOWS))].append(record)
    by_size = enumerate(sorted(groups.values(), key=len, reverse=True))
    return {f"other windows {place}" if place else "": runs for place, runs in by_size}


def with_series(records: Records, name: str) -> list[Record]:
    """The records that have the series of that name."""
    return [record for record in records if name in (record.get("series") or {})]


def series_table(records: Records, name: str) -> pd.DataFrame:
    """The rows of a series that is a list, of all records, each with the number of its "record".

    And with its "layer": rows of a study of one layer may not name it.
    """
    rows = []
    for number, record in enumerate(with_series(records, name)):
        own = {"layer": record["parameters"].get("layer"), "record": number}
        rows += [own | row for row in record["series"][name]]
    return pd.DataFrame(rows)


# ------------------------------------------------------------------ the setting they share


def common_parameters(records: Records) -> dict[str, Any]:
    """The most frequent value of each parameter that is part of the setting."""
    counts = defaultdict(Counter)
    for record in records:
        for key, value in record["parameters"].items():
            if key not in CELL:
                counts[key][json.dumps(value, sort_keys=True)] += 1
    return {key: json.loads(max(count, key=count.get)) for key, count in counts.items()}


def full_name(parameter: str, value: Any) -> Any:
    """The full name of an embedded model or text, any other value as it is."""
    return EMBEDDED[parameter].get(value, value)


def model_sentence(records: Records) -> str:
    """A sentence that names the model of these runs."""
    return f"Model: {full_name('model', common_parameters(records).get('model'))}."


def setting_sentences(records: Records) -> str:
    """The model, the texts and their sizes that most of these pruning runs share."""
    records = list(records)
    # a record made by hand may lack some of the parameters
    common = defaultdict(lambda: "?", common_parameters(records))
    start = ""
    for record in records:
        if "start_token" in (record["data"] or {}).get("evaluation", ()):
            start = ", after a start token"
    return (
        f"{model_sentence(records)} Perplexity on "
        f"{full_name('evaluation', common['evaluation'])}, {common['windows'] or 'all'} windows "
        f"of {common['window']} tokens{start}. Calibration on "
        f"{full_name('calibration', common['calibration'])}, {common['sequences']} x "
        f"{common['length']} tokens."
    )


# ------------------------------------------------------------------ rows, and means over seeds


def runs_table(
    records: Records,
    notebook: str = PRUNE_NOTEBOOK,
    cell: Set[str] = CELL,
) -> pd.DataFrame:
    """The runs of a notebook that prunes or scores, one row each, in the order of the records.

    Columns: record; label, the row of the printed tables: the method, with the options and the
    parts of the setting in which the run differs from most; target, the column: sparsity in
    percent, pattern, or "dense"; method; options, as JSON; seed; machine; memory, its peak in GB;
    variant, whether it has options while its method was run without too; usual, whether its
    setting is that of most runs; timed, whether it was timed alone; and the value of every
    metric, NaN where a record lacks it. COLUMNS are always there.
    """
    runs = of_notebook(records, notebook)
    common = common_parameters(runs)
    plain = {
        method_name(run["parameters"])
        for run in runs
        if not run["parameters"].get("options")
    }
    rows = []
    for run in runs:
        parameters = run["parameters"]
        method = method_name(parameters)
        options = parameters.get("options") or {}
        target = "dense"
        if method != "dense":
            pattern = parameters.get("pattern", "unstructured")
            target = target_name(pattern, parameters["sparsity"])
        setting = parameters.keys() - cell
        if "calibration" not in (run["data"] or {}):
            setting -= CALIBRATION  # it read no calibration text
        differing = {
            key: parameters[key] for key in setting if parameters[key] != common[key]
        }
        row = {name: metric["value"] for name, metric in run["metrics"].items()}
        row |= {
            "record": run,
            "label": with_options(method, options | differing),
            "target": target,
            "method": method,
            "options": json.dumps(options, sort_keys=True),
            "seed": parameters.get("calibration_seed", 0),
            "machine": (processor_of(run), run["device"]),
            "memory": run["peak_memory_bytes"] / 1e9,
            "variant": bool(options) and method in plain,
            "usual": not differing,
            "timed": run.get("timed", False),
        }
        rows.append(row)
    table = pd.DataFrame(rows)
    table = table.reindex(columns=table.columns.union(COLUMNS, sort=False))
    return table.astype(dict.fromkeys(FLAGS, bool) | dict.fromkeys(NUMBERS, float))


def processor_of(record: Record) -> str | None:
    """The processor on which a record was made; None where it does not say."""
    return (record.get("platform") or {}).get("processor")


def perplexity_runs(records: Records) -> pd.DataFrame:
    """The runs of notebook 04 on the windows that most of them share, without variants."""
    groups = by_windows(of_notebook(records, PRUNE_NOTEBOOK))
    return runs_table(groups.get("", [])).query("not variant")


def perplexity_cells(records: Records) -> pd.DataFrame:
    """`over_seeds` of the perplexities of `perplexity_runs`."""
    return over_seeds(perplexity_runs(records), "label", "perplexity")


def confidence_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of draws and half of Student's 95 % confidence interval of it, NaN below FEWEST.

    This is what ± means in every table, unless its caption says otherwise.
    """
    draws = pd.Series(values, dtype=float)
    if len(draws) < FEWEST:
        return draws.mean(), math.nan
    errors = stats.t.ppf(0.975, len(draws) - 1)  # in half an interval
    return draws.mean(), errors * draws.sem()


def over_seeds(runs: pd.DataFrame, row: str, number: str) -> pd.DataFrame:
    """A number by row and target: its "mean" over seeds, and "half" an interval.

    Several records of one seed count once, with their mean. See `confidence_interval`.
    """
    seeds = runs.groupby([row, "target", "seed"], sort=False)[number].mean()
    cells = seeds.dropna().groupby(level=[row, "target"])
    return cells.agg(
        mean="mean",
        half=lambda values: confidence_interval(values)[1],
    )


def by_target(cells: pd.DataFrame, rows: Sequence[str]) -> WithSpread:
    """The means of `over_seeds` and their half intervals, with a column for each target."""
    columns = sorted(cells.index.unique("target"), key=column_key)
    wide = cells.unstack("target").reindex(rows).rename_axis(columns=[None, None])
    return wide["mean"][columns], wide["half"][columns]
