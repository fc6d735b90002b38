"""Tables as pure functions of records, in the paper's shapes.

A cell is the mean over seeds; `helpers.results.frame` says which records share a cell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd

from helpers.results.frame import (
    PRUNE_PARTS,
    TASK_NAMES,
    USUAL,
    ZERO_SHOT_NOTEBOOK,
    Record,
    column_key,
    mean,
    perplexity_cells,
    prune_frame,
    prune_runs,
    row_key,
    run_frame,
    series_rows,
    target_name,
)
from helpers.tasks import mean_and_error, paired_difference

SOLVERS = {"none": "no update", "sparsegpt": "SparseGPT", "sgd": "SGD", "adam": "Adam",
           "cg": "conjugate gradients", "admm": "ADMM", "exact": "exact optimum"}  # fmt: skip
DEFAULT_MASK = "default"


# ------------------------------------------------------------------ Markdown


def format_number(value: float | str, missing: str = "–") -> str:
    """Text and counts as they are, others with two decimals (from 1 to 100), or three digits."""
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return missing
    if isinstance(value, Integral):
        return f"{value:,}"
    size = abs(value)
    if size >= 1e6:
        return f"{value:.1e}"
    if 0 < size < 1:
        return f"{value:.3f}" if size >= 0.0995 else f"{value:.3g}"
    return f"{value:.2f}" if size < 100 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"


def to_markdown(frame: pd.DataFrame, spread: pd.DataFrame | None = None, missing: str = "–") -> str:
    """The frame as a Markdown table, numbers to the right, with "± spread" where there is one."""
    cells = frame.map(lambda value: format_number(value, missing))
    if spread is not None:
        cells += spread.map(lambda half: "" if pd.isna(half) else f" ± {format_number(half)}")
    lines = [(frame.index.name or "", *frame.columns), (":--", *["--:"] * len(frame.columns))]
    lines += cells.itertuples(name=None)
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


# ------------------------------------------------------------------ the pruning notebook


def _by_target(cells: pd.Series) -> pd.DataFrame | None:
    """Methods by sparsity, the dense model in every column; None without cells."""
    if cells.empty:
        return None
    wide = cells.unstack()
    dense = wide.pop("dense") if "dense" in wide else math.nan
    columns = sorted(wide.columns, key=column_key) or ["0 %"]
    wide = wide.reindex(index=sorted(wide.index, key=row_key), columns=columns)
    return wide.apply(lambda column: column.fillna(dense)).rename_axis(index="method", columns=None)


def perplexity_table(records: Iterable[Record]) -> pd.DataFrame | None:
    """Perplexity, methods by sparsity: columns "50 %" … "2:4" …, first row the dense model.

    The dense row repeats its one number in every column, to be compared with. A cell without a run
    is NaN; variants are left to `variant_table`. None without records of the pruning notebook.
    """
    return _by_target(perplexity_cells(records)["mean"])


def perplexity_spread(records: Iterable[Record]) -> pd.DataFrame | None:
    """Half of (max - min) over seeds for each cell of `perplexity_table`; NaN for one seed."""
    cells = perplexity_cells(records)
    return _by_target(((cells["max"] - cells["min"]) / 2).where(cells["count"] > 1))


def cost_table(records: Iterable[Record]) -> pd.DataFrame | None:
    """What each method cost: the paper's overhead table, with every part of the seconds.

    Columns: runs; mean seconds of forward passes, grams, solves and selection of masks; of pruning
    in all, which holds a little more than its parts (the checks before the first block); of
    evaluation; and the largest peak memory of a process in GB, model and text included. "forward"
    holds the parity gate, "solve" the checks of a layer and the measuring of its error. N:M runs,
    whose selection is another, and variants are left out where a method has plain unstructured
    runs. A part that was not measured apart is NaN. None without records of the pruning notebook.
    """
    runs = prune_frame(records)
    if runs.empty:
        return None
    seconds = [f"{part}_seconds" for part in (*PRUNE_PARTS, "prune", "evaluate")]
    runs = runs.reindex(columns=[*runs.columns.difference(seconds), *seconds])
    runs["memory"] = [record["peak_memory_bytes"] / 1e9 for record in runs["record"]]
    rows = {}
    for label, group in runs.groupby("label"):
        for wanted in ("pattern == 'unstructured'", "selection_seconds.notna()"):
            found = group.query(wanted)
            group = group if found.empty else found
        means = {name.replace("_seconds", " (s)"): mean(group[name]) for name in seconds}
        rows[label] = {"runs": len(group), **means, "peak memory (GB)": group["memory"].max()}
    frame = pd.DataFrame.from_dict(rows, orient="index").loc[sorted(rows, key=row_key)]
    return frame.rename_axis("method")


def variant_table(records: Iterable[Record]) -> pd.DataFrame | None:
    """Runs with other options beside their method's defaults; None if there are none.

    One row for a variant: the cell it was run in, its perplexity (mean over its seeds), that of the
    defaults with the same seeds, the mean of the changes seed by seed in percent with its standard
    error (NaN for one seed), and both mean layer errors. A variant without a run of the defaults in
    its cell is left out.
    """
    runs = run_frame(prune_runs(records))
    runs = runs.reindex(columns=runs.columns.union(["mean_layer_error"]))
    runs["cell"] = [_all_but_options(record) for record in runs["record"]]
    variant = runs["variant"].astype(bool)
    plain = runs[~variant].drop_duplicates("cell", keep="last")
    pairs = runs[variant].merge(plain, on="cell", suffixes=("", " of default"))
    table = []
    for (label, target), found in pairs.groupby(["label", "target"], sort=False):
        changes = list(100 * (found["perplexity"] / found["perplexity of default"] - 1))
        change, error = mean_and_error(changes) if len(changes) > 1 else (changes[0], math.nan)
        table.append({
            "variant": label,
            "at": target,
            "seeds": len(found),
            "perplexity": mean(found["perplexity"]),
            "default": mean(found["perplexity of default"]),
            "change (%)": change,
            "± (%)": error,
            "layer error": mean(found["mean_layer_error"]),
            "default's": mean(found["mean_layer_error of default"]),
        })  # fmt: skip
    table.sort(key=lambda row: row_key(row["variant"]))
    return pd.DataFrame(table).set_index("variant") if table else None


def _all_but_options(record: Record) -> str:
    """What a run and its variants share: all parameters but the options."""
    asked = {k: v for k, v in record["parameters"].items() if k not in ("options", "device")}
    return json.dumps(asked, sort_keys=True)


# ------------------------------------------------------------------ zero-shot


def zero_shot_runs(records: Iterable[Record]) -> dict[str, Record]:
    """The records of the zero-shot notebook by their row, in the order of the methods."""
    runs = run_frame([r for r in records if r["notebook"] == ZERO_SHOT_NOTEBOOK])
    rows = {}
    for run in runs.itertuples():
        seed = f", seed {run.seed}" if runs["seed"].nunique() > 1 else ""
        name = run.label if run.target == "dense" else f"{run.label}, {run.target}{seed}"
        rows[name] = run.record
    return dict(sorted(rows.items(), key=lambda row: row_key(row[0].replace(",", " ", 1))))


def _by_task(rows: Mapping[str, Mapping[str, Any]], name: str) -> pd.DataFrame | None:
    """Rows of {task: cell} as a frame with the paper's columns; None without rows."""
    columns = [c for c in (*TASK_NAMES.values(), "mean") if any(c in row for row in rows.values())]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return frame.rename_axis(name) if rows else None


def zero_shot_table(
    records: Iterable[Record], metric: str = "acc"
) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Accuracy in the paper's columns with a mean, and standard errors; None without records.

    `metric` is "acc" or "acc_norm" (normalised by the answers' length; only some tasks have it).
    The standard error of the mean takes the tasks as independent.
    """
    values, errors = {}, {}
    for label, record in zero_shot_runs(records).items():
        found = {name: entry["value"] for name, entry in record["metrics"].items()}
        pairs = {
            title: (found[f"{task}_{metric}"], found[f"{task}_{metric}_stderr"])
            for task, title in TASK_NAMES.items()
            if f"{task}_{metric}" in found
        }
        if pairs:
            pairs["mean"] = mean_of_tasks(pairs.values())
            values[label] = {title: value for title, (value, _) in pairs.items()}
            errors[label] = {title: error for title, (_, error) in pairs.items()}
    return (_by_task(values, "model"), _by_task(errors, "model")) if values else None


def mean_of_tasks(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Mean of (value, standard error) over tasks, which are taken as independent, and its error."""
    values, errors = zip(*pairs, strict=True)
    return sum(values) / len(values), math.hypot(*errors) / len(values)


def paired_tasks(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, tuple[float, float]]:
    """one − other in acc with its standard error, by task, on the tasks asked with the same items.

    Args: series "zero_shot" of two records.
    """
    return {
        task: paired_difference(one[task]["acc"], other[task]["acc"])
        for task in TASK_NAMES
        if task in one and task in other and one[task]["items"] == other[task]["items"]
    }


def paired_table(records: Iterable[Record]) -> pd.DataFrame | None:
    """Differences in acc between each two runs on the same items, with their standard errors.

    Text cells "difference ± standard error", in bold where the difference exceeds two of them.
    Runs of other items are not compared. None if there is no pair.
    """

    def cell(difference: float, error: float) -> str:
        text = f"{difference:+.3f} ± {error:.3f}"
        return f"**{text}**" if abs(difference) > 2 * error else text

    runs = [(label, r["series"]["zero_shot"]) for label, r in zero_shot_runs(records).items()]
    rows = {}
    for index, (first, one) in enumerate(runs):
        for second, other in runs[index + 1 :]:
            pairs = {TASK_NAMES[t]: pair for t, pair in paired_tasks(other, one).items()}
            if pairs:
                pairs["mean"] = mean_of_tasks(pairs.values())
                rows[f"{second} − {first}"] = {name: cell(*pair) for name, pair in pairs.items()}
    return _by_task(rows, "difference")


# ------------------------------------------------------------------ layer studies


def update_table(records: Iterable[Record]) -> pd.DataFrame | None:
    """Ways to refit the weights on one fixed mask (series "update" of notebook 02).

    Columns: problems (layers times sparsities) and, over them, mean relative error on calibration
    and on held-out text; mean and worst excess of the damped objective over its optimum, in percent
    (for solvers that minimise that objective); mean seconds. For Adam and SGD the best learning
    rate of each problem counts; ADMM with other settings than its defaults is shown after 20
    iterations. None without such records.
    """
    rows = pd.DataFrame(series_rows(records, "update"))
    if rows.empty:
        return None
    usual = (rows[list(USUAL)] == pd.Series(USUAL)).all(axis=1)
    rows = rows[(rows["solver"] != "admm") | usual | (rows["iterations"] == 20)]
    rows = rows.assign(rank=rows["solver"].map(list(SOLVERS).index))
    key = ["rank", "precondition", "damping", "rho", "iterations"]
    # None comes first: solvers that have no such setting
    rows[key] = rows[key].astype(object).where(rows[key].notna(), -1).astype(float)
    best = rows.loc[rows.groupby([*key, "record", "sparsity"])["excess"].idxmin().sort_index()]
    table = []
    for (_, precondition, damping, rho, iterations), found in best.groupby(key):
        solver = found["solver"].iloc[0]
        # the excess is of the damped objective: it says nothing of solvers of another one
        excess = 100 * found["excess"] if solver == "none" or damping == USUAL["damping"] else None
        table.append({
            "update": _update_label(solver, precondition, damping, rho),
            "iterations": None if iterations < 0 else int(iterations),
            "problems": len(found),
            "error": found["error"].mean(),
            "held-out": found["heldout"].mean(),
            "excess, mean (%)": math.nan if excess is None else excess.mean(),
            "excess, worst (%)": math.nan if excess is None else excess.max(),
            "seconds": found["seconds"].mean(),
        })  # fmt: skip
    return pd.DataFrame(table).astype({"iterations": "Int64"}).set_index("update")


def _update_label(solver: str, precondition: float, damping: float, rho: float) -> str:
    """The name of a way to refit, with whatever is not its default; -1 stands for no setting."""
    details = []
    if solver == "admm":
        details.append(f"ρ = {rho:g}")
    if solver in ("adam", "sgd"):
        details.append("best rate")
    if precondition >= 0 and precondition != (solver in ("admm", "cg")):
        details.append("preconditioned" if precondition else "not preconditioned")
    if damping >= 0 and solver != "sparsegpt" and damping != USUAL["damping"]:
        details.append(f"damping {damping:g}")
    return f"{SOLVERS[solver]} ({', '.join(details)})" if details else SOLVERS[solver]


def mask_table(records: Iterable[Record], text: str = "error") -> pd.DataFrame | None:
    """What mask steps, schedule and budget change (series "ablation" of notebook 03).

    Relative error as a percentage of the default's (15 mask steps, the paper's schedule, budget per
    matrix) on the same layer: geometric mean over layers, a column for each target. `text` is
    "error" (calibration) or "heldout". None without such records.
    """
    rows = series_rows(records, "ablation")
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    frame["target"] = list(map(target_name, frame["pattern"], frame["sparsity"]))
    frame["variant"] = list(map(_mask_label, rows))
    problem = ["record", "block", "layer", "target"]
    wide = frame.pivot_table(index=problem, columns="variant", values=text)
    shares = wide.div(wide[DEFAULT_MASK], axis=0)
    table = np.exp(np.log(shares).groupby(level="target").mean()).T * 100
    order = list(dict.fromkeys(frame["variant"]))
    return table.loc[order, sorted(table.columns, key=column_key)].rename_axis("mask")


def _mask_label(row: Mapping[str, Any]) -> str:
    """The name of one way to choose the mask: whatever is not the default."""
    details = [] if row["mask_steps"] == 15 else [f"{row['mask_steps']} mask steps"]
    if row["mask_steps"] == 0:
        details = ["one-shot mask (no steps)"]
    if row["schedule"] != "paper":
        details.append(f"{row['schedule']} schedule")
    if row["budget"] != "matrix":
        details.append(f"budget per {row['budget']}")
    return ", ".join(details) or DEFAULT_MASK
