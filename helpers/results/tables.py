"""Tables as pure functions of records, in the paper's shapes.

A cell is the mean over seeds. Records that differ in anything else (calibration size, model) from
what most records of the plan use get a row of their own, labelled with the difference, so that a
mean never mixes two settings. Runs of a method with other options than its defaults are variants,
shown beside the default in a table of their own.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers.errors import RecordError
from helpers.paths import replace_file
from helpers.tasks import mean_and_error, paired_difference

Record = Mapping[str, Any]

PRUNE_NOTEBOOK = "04_prune_model"
ZERO_SHOT_NOTEBOOK = "05_zero_shot"
METHOD_ORDER = ("dense", "magnitude", "wanda", "sparsegpt", "admm1", "admm-grad")
# these make the row and the column; the rest of the parameters is the setting
CELL = ("method", "sparsity", "pattern", "options", "device", "calibration_seed")
CALIBRATION = ("calibration", "sequences", "length")
TASK_NAMES = {
    "boolq": "BoolQ",
    "rte": "RTE",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "arc_easy": "ARC-e",
    "arc_challenge": "ARC-c",
    "openbookqa": "OBQA",
}
SOLVERS = {
    "none": "no update",
    "sparsegpt": "SparseGPT",
    "sgd": "SGD",
    "adam": "Adam",
    "cg": "conjugate gradients",
    "admm": "ADMM",
    "exact": "exact optimum",
}
USUAL = {"rho": 1.0, "precondition": True, "damping": 0.1}  # ADMM's defaults
DEFAULT_MASK = "default"
EMBEDDED = {
    "model": "SmolLM2-135M-Instruct",
    "evaluation": "Wikipedia text",
    "calibration": "C4 text",
}  # what "embedded" stands for
PRUNE_PARTS = ("forward", "gram", "solve", "selection")  # of the seconds of pruning
PARTS = (*PRUNE_PARTS, "prune", "evaluate")


def perplexity_table(records: Iterable[Record]) -> pd.DataFrame:
    """Perplexity, methods by sparsity: columns "50 %" … "2:4" …, first row the dense model.

    The dense row repeats its one number in every column, to be compared with. A cell without a run
    is NaN; variants are left to `variant_table`. Raises RecordError if no record holds a
    perplexity.
    """
    return _cells(records, lambda values: sum(values) / len(values))


def perplexity_spread(records: Iterable[Record]) -> pd.DataFrame:
    """Half of (max - min) over seeds for each cell of `perplexity_table`; NaN for one seed."""
    return _cells(
        records, lambda values: (max(values) - min(values)) / 2 if len(values) > 1 else float("nan")
    )


def cost_table(records: Iterable[Record]) -> pd.DataFrame:
    """What each method cost: the paper's overhead table, with every part of the seconds.

    Columns: runs; mean seconds of forward passes, grams, solves and selection of masks; of pruning
    in all, which holds a little more than its parts (the checks before the first block); of
    evaluation; and the largest peak memory of a process in GB, model and text included. "forward"
    holds the parity gate, "solve" the checks of a layer and the measuring of its error. N:M runs,
    whose selection is another, and variants are left out where a method has plain unstructured
    runs. A part that was not measured apart is NaN. Raises RecordError if no record is of the
    pruning notebook.
    """
    rows: dict[str, list[Record]] = defaultdict(list)
    for record, label in labelled(plain_runs(_prune_records(records))):
        rows[label].append(record)
    table = {}
    for label, group in rows.items():
        group = _if_any(group, lambda r: r["parameters"].get("pattern") == "unstructured")
        group = _if_any(group, lambda r: "selection_seconds" in r["metrics"])
        cells = {f"{part} (s)": _mean(group, f"{part}_seconds") for part in PARTS}
        table[label] = {"runs": len(group), **cells}
        table[label]["peak memory (GB)"] = max(r["peak_memory_bytes"] for r in group) / 1e9
    frame = pd.DataFrame.from_dict(table, orient="index").loc[sorted(table, key=_row_key)]
    return frame.rename_axis("method")


def _if_any(records: list[Record], wanted: Callable[[Record], bool]) -> list[Record]:
    """The records that are wanted, or all of them if none is."""
    return [record for record in records if wanted(record)] or records


def variant_table(records: Iterable[Record]) -> pd.DataFrame | None:
    """Runs with other options beside their method's defaults; None if there are none.

    One row for a variant: the cell it was run in, its perplexity (mean over its seeds), that of the
    defaults with the same seeds, the mean of the changes seed by seed in percent with its standard
    error (NaN for one seed), and both mean layer errors. A variant without a run of the defaults in
    its cell is left out.
    """
    runs = [r for r in records if _measures_perplexity(r)]
    plain = {_cell_key(record): record for record in runs if not _is_variant(record, runs)}
    rows: dict[tuple[str, str], list[tuple[Record, Record]]] = defaultdict(list)
    for record, label in labelled(runs):
        default = plain.get(_cell_key(record))
        if _is_variant(record, runs) and default is not None:
            rows[label, column_of(record) or ""].append((record, default))
    if not rows:
        return None
    table = [
        {"variant": label, "at": cell, "seeds": len(pairs), **_changes(pairs)}
        for (label, cell), pairs in sorted(rows.items(), key=lambda item: _row_key(item[0][0]))
    ]
    return pd.DataFrame(table).set_index("variant")


def _changes(pairs: list[tuple[Record, Record]]) -> dict[str, float]:
    """Perplexity and layer error of a variant beside the defaults, means over seeds."""
    values, defaults = zip(*pairs, strict=True)
    here, there = (
        [run["metrics"]["perplexity"]["value"] for run in side] for side in (values, defaults)
    )
    changes = [100 * (one / other - 1) for one, other in zip(here, there, strict=True)]
    change, error = mean_and_error(changes) if len(changes) > 1 else (changes[0], math.nan)
    return {
        "perplexity": sum(here) / len(here),
        "default": sum(there) / len(there),
        "change (%)": change,
        "± (%)": error,
        "layer error": _mean(list(values), "mean_layer_error"),
        "default's": _mean(list(defaults), "mean_layer_error"),
    }


def _cell_key(record: Record) -> str:
    """What a run and its variants share: all parameters but the options."""
    asked = {k: v for k, v in record["parameters"].items() if k not in ("options", "device")}
    return json.dumps(asked, sort_keys=True)


def plain_runs(records: list[Record]) -> list[Record]:
    """The records of the pruning notebook without variants (see `variant_table`)."""
    return [record for record in records if not _is_variant(record, records)]


def _is_variant(record: Record, records: Iterable[Record]) -> bool:
    """Whether a run has options while others of its method have none."""
    method = record["parameters"]["method"]
    return bool(record["parameters"].get("options")) and any(
        other["parameters"]["method"] == method and not other["parameters"].get("options")
        for other in records
    )


def column_of(record: Record) -> str | None:
    """The column of a pruned record: its pattern or its sparsity in percent; None if dense."""
    parameters = record["parameters"]
    if parameters.get("method") == "dense":
        return None
    return target_name(parameters.get("pattern", "unstructured"), parameters["sparsity"])


def target_name(pattern: str, sparsity: float) -> str:
    """A pattern as it is, unstructured pruning as its sparsity: "60 %"."""
    return f"{100 * sparsity:.4g} %" if pattern == "unstructured" else pattern


def to_markdown(frame: pd.DataFrame, spread: pd.DataFrame | None = None, missing: str = "–") -> str:
    """The frame as a Markdown table, numbers to the right, with "± spread" where there is one."""
    head = [frame.index.name or "", *map(str, frame.columns)]
    lines = [_row(head), _row([":--", *["--:"] * len(frame.columns)])]
    for place, label in enumerate(frame.index):  # by place, because labels may repeat
        cells = [str(label)]
        for column in frame.columns:
            text = format_number(frame[column].iloc[place], missing)
            half = None if spread is None else spread[column].iloc[place]
            if half is not None and not pd.isna(half):
                text += f" ± {format_number(half)}"
            cells.append(text)
        lines.append(_row(cells))
    return "\n".join(lines) + "\n"


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


def setting(records: Iterable[Record]) -> str:
    """One line on the setting that most records of the pruning notebook share."""
    common = _common(_prune_records(records))
    text = f"Model: {_named(common, 'model')}."
    if "evaluation" in common:
        text += f" Perplexity on {_named(common, 'evaluation')}"
        if "windows" in common and "window" in common:
            text += f", {common['windows'] or 'all'} windows of {common['window']} tokens"
        text += "."
    if "calibration" in common:
        text += f" Calibration on {_named(common, 'calibration')}"
        if "sequences" in common and "length" in common:
            text += f", {common['sequences']} x {common['length']} tokens"
        text += "."
    return text


def _named(common: Mapping[str, Any], what: str) -> str:
    """A model or text by its name, and what the embedded ones are."""
    name = str(common.get(what, "?"))
    return f"{EMBEDDED[what]} (embedded)" if name == "embedded" else name


@dataclass(frozen=True)
class Section:
    """One table as a reader sees it: which it is, a note, the numbers, and its Markdown."""

    about: str
    note: str
    frame: pd.DataFrame
    spread: pd.DataFrame | None = None

    @property
    def markdown(self) -> str:
        """Note and table in Markdown."""
        return f"{self.note}\n\n{to_markdown(self.frame, self.spread)}"


def sections(records: Iterable[Record]) -> dict[str, list[Section]]:
    """Every table that the records allow, by name; several models get a section each.

    Names: perplexity, cost, variants, zero_shot, weight_update, mask.
    """
    by_model: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_model[str(record["parameters"].get("model", ""))].append(record)
    made: dict[str, list[Section]] = defaultdict(list)
    for runs in by_model.values():
        for name, make in MAKERS.items():
            made[name] += make(runs)
    return {name: found for name, found in made.items() if found}


def write_tables(records: Iterable[Record], folder: str | os.PathLike[str]) -> list[Path]:
    """Write every table of `sections` as NAME.md and NAME.csv and return the paths.

    The CSV of a table of several sections has them one below the other, with a first column.
    Raises RecordError if the folder cannot be written.
    """
    texts = {}
    for name, found in sections(records).items():
        texts[f"{name}.md"] = "\n".join(section.markdown for section in found)
        frame = found[0].frame
        if len(found) > 1:
            frame = pd.concat({s.about: s.frame for s in found}, names=["about"])
        texts[f"{name}.csv"] = frame.to_csv(lineterminator="\n")
    return [replace_file(Path(folder) / name, text) for name, text in sorted(texts.items())]


def _model(records: list[Record]) -> str:
    """The model that the records of one model are of."""
    return str(records[0]["parameters"].get("model", ""))


def _perplexity_sections(records: list[Record]) -> list[Section]:
    """Setting and perplexity table of one model."""
    if not any(map(_measures_perplexity, records)):
        return []
    spread = perplexity_spread(records)
    seeds = " ± is half the range over seeds." if spread.notna().any(axis=None) else ""
    return [
        Section(_model(records), f"{setting(records)}{seeds}", perplexity_table(records), spread)
    ]


def _cost_sections(records: list[Record]) -> list[Section]:
    """Setting, devices and cost table of one model."""
    if not any(map(_measures_perplexity, records)):
        return []
    note = (
        f"{setting(records)} {_devices(records)} Means over unstructured runs. Solve holds the "
        "checks of a layer and the measuring of its error, which is all of it for methods that do "
        "not update weights; peak memory is the process's, evaluation included."
    )
    return [Section(_model(records), note, cost_table(records))]


def _variant_sections(records: list[Record]) -> list[Section]:
    """Variants beside the defaults."""
    frame = variant_table(records)
    note = (
        "Other options beside the defaults, same cell and same calibration seeds. The change is "
        "the mean over seeds, ± its standard error."
    )
    if frame is None:
        return []
    return [Section(_model(records), f"{setting(records)} {note}", frame)]


# ------------------------------------------------------------------ zero-shot


def zero_shot_table(
    records: Iterable[Record], metric: str = "acc"
) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Accuracy in the paper's columns with a mean, and standard errors; None without records.

    `metric` is "acc" or "acc_norm" (normalised by the answers' length; only some tasks have it).
    The standard error of the mean takes the tasks as independent.
    """
    values, errors = {}, {}
    for record, label in _zero_shot_records(records):
        metrics = record["metrics"]
        row = {t: metrics[f"{t}_{metric}"] for t in TASK_NAMES if f"{t}_{metric}" in metrics}
        if not row:
            continue
        pairs = {
            TASK_NAMES[t]: (cell["value"], metrics[f"{t}_{metric}_stderr"]["value"])
            for t, cell in row.items()
        }
        pairs["mean"] = mean_of_tasks(pairs.values())
        values[label] = {name: value for name, (value, _) in pairs.items()}
        errors[label] = {name: error for name, (_, error) in pairs.items()}
    if not values:
        return None
    columns = [
        c for c in (*TASK_NAMES.values(), "mean") if any(c in row for row in values.values())
    ]
    frames = (pd.DataFrame.from_dict(d, orient="index", columns=columns) for d in (values, errors))
    frame, spread = (frame.rename_axis("model") for frame in frames)
    return frame, spread


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
    runs = [(label, record["series"]["zero_shot"]) for record, label in _zero_shot_records(records)]
    rows = {}
    for index, (first, one) in enumerate(runs):
        for second, other in runs[index + 1 :]:
            pairs = {TASK_NAMES[t]: pair for t, pair in paired_tasks(other, one).items()}
            if pairs:
                cells = pairs | {"mean": mean_of_tasks(pairs.values())}
                rows[f"{second} − {first}"] = {n: _paired_cell(*c) for n, c in cells.items()}
    if not rows:
        return None
    columns = [c for c in (*TASK_NAMES.values(), "mean") if any(c in row for row in rows.values())]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("difference")


def _paired_cell(difference: float, error: float) -> str:
    text = f"{difference:+.3f} ± {error:.3f}"
    return f"**{text}**" if abs(difference) > 2 * error else text


def _zero_shot_records(records: Iterable[Record]) -> list[tuple[Record, str]]:
    """The records of the zero-shot notebook, each with its row, in the order of the methods."""
    found = [r for r in records if r["notebook"] == ZERO_SHOT_NOTEBOOK]
    rows = []
    seeds = {record["parameters"].get("calibration_seed") for record in found}
    for record, label in labelled(found):
        column = column_of(record)
        name = f"{label}, {column}" if column else label
        if len(seeds) > 1 and column:
            name += f", seed {record['parameters']['calibration_seed']}"
        rows.append((record, name))
    return sorted(rows, key=lambda pair: _row_key(pair[1].replace(",", " ", 1)))


def _zero_shot_sections(records: list[Record]) -> list[Section]:
    """Accuracies of one model, then which differences are more than chance."""
    made = []
    names = {"acc": "Accuracy", "acc_norm": "Accuracy normalised by the answers' length"}
    for metric, name in names.items():
        table = zero_shot_table(records, metric)
        if table:
            note = f"{name} ± one standard error. {_items_note(records)}"
            made.append(Section(f"{_model(records)} {metric}", note, *table))
    paired = paired_table(records)
    if paired is not None:
        note = (
            "Paired differences in accuracy on the same items; bold where they exceed two standard "
            "errors. One in twenty would do so by chance."
        )
        made.append(Section(f"{_model(records)} paired", note, paired))
    return made


def _items_note(records: Iterable[Record]) -> str:
    """How many items of each task were asked, whether of all the same, and by which harness."""
    runs = [record for record, _ in _zero_shot_records(records)]
    asked: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for task, series in run["series"]["zero_shot"].items():
            asked[task].add(json.dumps(series["items"]))
    counts = sorted({len(json.loads(text)) for items in asked.values() for text in items})
    amount = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    same = all(len(items) == 1 for items in asked.values())
    whom = "the same for every model" if same else "not the same for every model"
    harness = sorted({run["versions"].get("lm-eval", "?") for run in runs})
    return f"{amount} items a task, {whom}; lm-eval {', '.join(harness)}."


# ------------------------------------------------------------------ layer studies


def update_table(records: Iterable[Record]) -> pd.DataFrame | None:
    """Ways to refit the weights on one fixed mask (series "update" of notebook 02).

    Columns: problems (layers times sparsities) and, over them, mean relative error on calibration
    and on held-out text; mean and worst excess of the damped objective over its optimum, in percent
    (for solvers that minimise that objective); mean seconds. For Adam and SGD the best learning
    rate of each problem counts; ADMM with other settings than its defaults is shown after 20
    iterations. None without such records.
    """
    rows: dict[tuple[Any, ...], dict[Any, Mapping[str, Any]]] = defaultdict(dict)
    for number, record in enumerate(records):
        for row in filter(_is_shown, (record.get("series") or {}).get("update", ())):
            group, problem = _update_key(row), (number, row["sparsity"])
            best = rows[group].get(problem)
            if best is None or row["excess"] < best["excess"]:
                rows[group][problem] = row
    if not rows:
        return None
    table = [_update_row(rows[group]) for group in sorted(rows)]
    return pd.DataFrame(table).astype({"iterations": "Int64"}).set_index("update")


def _is_shown(row: Mapping[str, Any]) -> bool:
    """Other settings of ADMM than its defaults are compared after 20 iterations only."""
    usual = all(row[key] == value for key, value in USUAL.items())
    return row["solver"] != "admm" or usual or row["iterations"] == 20


def _update_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a row of `update_table`, in its order."""
    order = list(SOLVERS).index(row["solver"])
    precondition = row["precondition"]
    return (
        order,
        0 if precondition is None else 1 + bool(precondition),
        -1.0 if row["damping"] is None else row["damping"],
        row["rho"] or 0.0,
        row["iterations"] or 0,
    )


def _update_row(problems: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """One row of `update_table`."""
    rows = list(problems.values())
    frame = pd.DataFrame(rows)
    excess = 100 * frame["excess"] if _has_excess(rows[0]) else pd.Series([math.nan])
    return {
        "update": update_label(rows[0]),
        "iterations": rows[0]["iterations"],
        "problems": len(rows),
        "error": frame["error"].mean(),
        "held-out": frame["heldout"].mean(),
        "excess, mean (%)": excess.mean(),
        "excess, worst (%)": excess.max(),
        "seconds": frame["seconds"].mean(),
    }


def _has_excess(row: Mapping[str, Any]) -> bool:
    """Whether a row's solver minimises the objective whose excess is measured."""
    return row["solver"] == "none" or row["damping"] == USUAL["damping"]


def update_label(row: Mapping[str, Any]) -> str:
    """The name of a way to refit, with whatever is not its default."""
    details = []
    if row["solver"] == "admm":
        details.append(f"ρ = {row['rho']:g}")
    if row["solver"] in ("adam", "sgd"):
        details.append("best rate")
    usual = row["solver"] in ("admm", "cg")
    if row["precondition"] is not None and row["precondition"] != usual:
        details.append("preconditioned" if row["precondition"] else "not preconditioned")
    if (
        row["damping"] is not None
        and row["solver"] != "sparsegpt"
        and row["damping"] != USUAL["damping"]
    ):
        details.append(f"damping {row['damping']:g}")
    name = SOLVERS[row["solver"]]
    return f"{name} ({', '.join(details)})" if details else name


def mask_table(records: Iterable[Record], text: str = "error") -> pd.DataFrame | None:
    """What mask steps, schedule and budget change (series "ablation" of notebook 03).

    Relative error as a percentage of the default's (15 mask steps, the paper's schedule, budget per
    matrix) on the same layer: geometric mean over layers, a column for each target. `text` is
    "error" (calibration) or "heldout". None without such records.
    """
    rows = [
        row | {"record": number}
        for number, record in enumerate(records)
        for row in (record.get("series") or {}).get("ablation", ())
    ]
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    frame["target"] = list(map(target_name, frame["pattern"], frame["sparsity"]))
    frame["variant"] = [mask_label(row) for row in rows]
    problem = ["record", "block", "layer", "target"]
    wide = frame.pivot_table(index=problem, columns="variant", values=text)
    shares = wide.div(wide[DEFAULT_MASK], axis=0)
    table = np.exp(np.log(shares).groupby(level="target").mean()).T * 100
    order = list(dict.fromkeys(frame["variant"]))
    return table.loc[order, sorted(table.columns, key=_column_key)].rename_axis("mask")


def mask_label(row: Mapping[str, Any]) -> str:
    """The name of one way to choose the mask: whatever is not the default."""
    if row["mask_steps"] == 0:
        details = ["one-shot mask (no steps)"]
    else:
        details = [] if row["mask_steps"] == 15 else [f"{row['mask_steps']} mask steps"]
    if row["schedule"] != "paper":
        details.append(f"{row['schedule']} schedule")
    if row["budget"] != "matrix":
        details.append(f"budget per {row['budget']}")
    return ", ".join(details) or DEFAULT_MASK


def _update_sections(records: list[Record]) -> list[Section]:
    """The comparison of solvers on fixed masks."""
    frame = update_table(records)
    if frame is None:
        return []
    note = (
        "Refitting the kept weights on one fixed mask by Wanda's score (budget per matrix): "
        f"{_studied(records)}. Excess: the damped objective over its exact optimum. Adam and SGD "
        "count with the rate that is best for a problem after so many iterations, and only its own "
        "seconds count."
    )
    return [Section(_model(records), note, frame)]


def _studied(records: Iterable[Record]) -> str:
    """Which layers, of which blocks, at which sparsities an update study is about."""
    blocks: dict[str, set[int]] = defaultdict(set)
    targets: set[float] = set()
    for record in records:
        rows = (record.get("series") or {}).get("update", ())
        targets.update(row["sparsity"] for row in rows)
        if rows:
            asked = record["parameters"]
            blocks[asked.get("layer", "?").rpartition(".")[2]].add(asked.get("block", "?"))
    layers = "; ".join(
        f"{layer} of {'blocks' if len(found) > 1 else 'block'} {', '.join(map(str, sorted(found)))}"
        for layer, found in sorted(blocks.items())
    )
    return f"{layers}; at {', '.join(f'{100 * target:.4g}' for target in sorted(targets))} %"


def _mask_sections(records: list[Record]) -> list[Section]:
    """The ablation of the growing mask, on both texts."""
    made = []
    for text, name in (("error", "calibration"), ("heldout", "held-out")):
        frame = mask_table(records, text)
        if frame is not None:
            note = (
                f"Relative error on {name} text, % of the default's (geometric mean over layers)."
            )
            made.append(Section(f"{_model(records)} {name}", note, frame))
    return made


MAKERS: dict[str, Callable[[list[Record]], list[Section]]] = {
    "perplexity": _perplexity_sections,
    "cost": _cost_sections,
    "variants": _variant_sections,
    "zero_shot": _zero_shot_sections,
    "weight_update": _update_sections,
    "mask": _mask_sections,
}


# ------------------------------------------------------------------ records and rows


def _prune_records(records: Iterable[Record]) -> list[Record]:
    """The records of the pruning notebook; RecordError if there are none."""
    found = [record for record in records if _measures_perplexity(record)]
    if not found:
        raise RecordError(f"no record of {PRUNE_NOTEBOOK} with a perplexity: run that notebook")
    return found


def _measures_perplexity(record: Record) -> bool:
    """Whether a record is of the pruning notebook."""
    return record["notebook"] == PRUNE_NOTEBOOK and "perplexity" in record["metrics"]


def _cells(records: Iterable[Record], summary: Callable[[list[float]], float]) -> pd.DataFrame:
    """Methods by sparsity, each cell a summary of the perplexities of its runs."""
    values: dict[str, dict[str | None, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record, label in labelled(plain_runs(_prune_records(records))):
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


def common_setting(records: Iterable[Record]) -> list[Record]:
    """The records that differ from most in nothing but the cell: same model, texts and sizes."""
    found = list(records)
    common = _common(found)
    return [record for record in found if not _differences(record, common)]


def _label(record: Record, common: Mapping[str, Any]) -> str:
    """The row that a run belongs to."""
    parameters = record["parameters"]
    differences = dict(parameters.get("options") or {}) | _differences(record, common)
    details = ", ".join(f"{key}={value}" for key, value in sorted(differences.items()))
    return f"{parameters['method']} ({details})" if details else parameters["method"]


def _differences(record: Record, common: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a run that are not those of most runs."""
    # a run that read no calibration text is the same run whatever the calibration would be
    ignored = CELL if "calibration" in (record.get("data") or {}) else (*CELL, *CALIBRATION)
    return {
        key: value
        for key, value in record["parameters"].items()
        if key not in ignored and common.get(key) != value
    }


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
