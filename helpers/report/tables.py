"""Tables as pure functions of records, in the paper's shapes, with their notes, and as files.

A cell is the mean over seeds; `helpers.report.frame` says which records share a cell.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from numbers import Integral
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from helpers.data.tasks import TASK_TABLE, mean_and_error, paired_difference
from helpers.errors import FileError
from helpers.paths import replace_file
from helpers.report import beyond, frame
from helpers.report.frame import SECONDS, TASK_NAMES, USUAL, Record, about_model, setting

SOLVERS = {"none": "no update", "sparsegpt": "SparseGPT", "sgd": "SGD", "adam": "Adam",
           "cg": "conjugate gradients", "admm": "ADMM", "exact": "exact optimum"}  # fmt: skip
DEFAULT_MASK = "default"
# the 97.5 % quantile of Student's t by degrees of freedom; more than nine count as nine
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
mean = pd.Series.mean  # of a group, summed in the order of its rows


# ------------------------------------------------------------------ Markdown


def format_number(value: float | str) -> str:
    """Text and counts as they are, NaN as "–", else two decimals (1 to 100) or three digits."""
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "–"
    if isinstance(value, Integral):
        return f"{value:,}"
    size = abs(value)
    if size >= 1e6:
        return f"{value:.1e}"
    if 0 < size < 1:
        return f"{value:.3f}" if size >= 0.0995 else f"{value:.3g}"
    return f"{value:.2f}" if size < 100 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"


def to_markdown(table: pd.DataFrame, spread: pd.DataFrame | None = None) -> str:
    """The table in Markdown, numbers to the right, with "± spread" where there is one."""
    cells = table.map(format_number)
    if spread is not None:
        spread = spread.reindex(cells.index)  # rows such as chance have none
        cells += spread.map(lambda half: "" if pd.isna(half) else f" ± {format_number(half)}")
    lines = [(table.index.name or "", *table.columns), (":--", *["--:"] * len(table.columns))]
    lines += cells.itertuples(name=None)
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


# ------------------------------------------------------------------ the pruning notebook


def perplexity_table(records: Iterable[Record]) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Perplexity, methods by sparsity and pattern, and half of (max - min) over seeds.

    The dense model has its one number in every column. NaN: no run, or the spread of one seed.
    Variants are left to `variant_table`. None without records.
    """

    def by_target(values: pd.Series) -> pd.DataFrame:
        wide = values.unstack()
        dense = wide.pop("dense") if "dense" in wide else math.nan
        columns = sorted(wide.columns, key=frame.column_key) or ["0 %"]
        wide = wide.reindex(index=sorted(wide.index, key=frame.row_key), columns=columns)
        wide = wide.apply(lambda column: column.fillna(dense))
        return wide.rename_axis(index="method", columns=None)

    cells = frame.perplexity_cells(records)
    if cells.empty:
        return None
    halves = ((cells["max"] - cells["min"]) / 2).where(cells["count"] > 1)
    return by_target(cells["mean"]), by_target(halves)


def cost_runs(records: Iterable[Record]) -> pd.DataFrame:
    """The runs that cost is taken from: no variants, and no N:M runs where a method has others."""
    runs = frame.prune_frame(records)
    if runs.empty:
        return runs
    unstructured = runs["pattern"] == "unstructured"
    return runs[unstructured | ~unstructured.groupby(runs["label"]).transform("any")]


def cost_table(records: Iterable[Record]) -> pd.DataFrame | None:
    """What each method cost: the paper's overhead table, with every part of the seconds.

    Medians over `cost_runs`, since a run that shared the machine with something heavy is an
    outlier; "forward" holds the parity gate. A part that was not measured apart is NaN. None
    without records.
    """
    runs = cost_runs(records)
    if runs.empty:
        return None
    runs = runs.assign(memory=[r["peak_memory_bytes"] / 1e9 for r in runs["record"]])
    groups = runs.groupby("label")
    table = groups[SECONDS].median().rename(columns=lambda name: name.replace("_seconds", " (s)"))
    table.insert(0, "runs", groups.size())
    table["peak memory (GB)"] = groups["memory"].max()
    return table.loc[sorted(table.index, key=frame.row_key)].rename_axis("method")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of draws and half of Student's 95 % interval of it; NaN of one draw."""
    if len(values) == 1:
        return values[0], math.nan
    center, error = mean_and_error(values)
    return center, STUDENT[min(len(values) - 2, len(STUDENT) - 1)] * error


def variant_table(records: Iterable[Record]) -> pd.DataFrame | None:
    """Runs with other options beside their method's defaults in the same cell, seed by seed.

    Means over seeds, and half of the mean change's 95 % interval (NaN for one seed). Several
    records of one run count once, with their mean. A variant without a run of the defaults in its
    cell is left out; None if there is no other.
    """
    runs = frame.run_frame(records)
    asked = [record["parameters"] | {"options": None, "device": None} for record in runs["record"]]
    runs["cell"] = [json.dumps(parameters, sort_keys=True) for parameters in asked]
    same = runs.groupby(["cell", "label", "target", "variant"], sort=False, as_index=False)
    runs = same[["perplexity", "mean_layer_error"]].mean()
    pairs = runs.query("variant").merge(runs.query("not variant"), on="cell", suffixes=("", "_"))
    if pairs.empty:
        return None
    pairs["change"] = 100 * (pairs["perplexity"] / pairs["perplexity_"] - 1)
    pairs = pairs.sort_values("label", key=lambda labels: labels.map(frame.row_key), kind="stable")
    table = pairs.groupby(["label", "target"], sort=False).agg(**{
        "seeds": ("change", "size"),
        "perplexity": ("perplexity", mean),
        "default": ("perplexity_", mean),
        "change (%)": ("change", mean),
        "± (%)": ("change", lambda changes: interval(list(changes))[1]),
        "layer error": ("mean_layer_error", mean),
        "default's": ("mean_layer_error_", mean),
    })  # fmt: skip
    return table.rename_axis(index=["variant", "at"]).reset_index("at")


# ------------------------------------------------------------------ zero-shot


def zero_shot_runs(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """What the runs of the zero-shot notebook found by their row, in the order of the methods.

    A row has what its records have: "metrics", "series", "versions", and "seed" (None for dense).
    Runs of one model on several tasks share a row; a task counts with the most items it was run on.
    """
    runs = frame.run_frame(records, frame.ZERO_SHOT_NOTEBOOK)
    runs["items"] = [record["parameters"].get("limit") or math.inf for record in runs["record"]]
    rows: dict[str, dict[str, Any]] = {}
    for run in runs.sort_values("items", kind="stable").itertuples():
        seed = f", seed {run.seed}" if runs["seed"].nunique() > 1 else ""
        dense, record = run.target == "dense", run.record
        if "zero_shot" not in record["series"]:
            raise FileError(f"record {record['name']} holds no answers to questions: run it again")
        name = run.label if dense else f"{run.label}, {run.target}{seed}"
        row = rows.setdefault(name, {"metrics": {}, "series": {"zero_shot": {}}})
        row["metrics"] |= record["metrics"]
        row["series"]["zero_shot"] |= record["series"]["zero_shot"]
        row |= {"versions": record["versions"], "seed": None if dense else run.seed}
    return dict(sorted(rows.items(), key=lambda row: frame.row_key(row[0].replace(",", " ", 1))))


def _over_seeds(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows {row: {task: (value, standard error)}} that differ in their seed alone, as one.

    Seeds are asked the same items, so the error from the items does not shrink: it is their mean.
    """
    found: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for row, pairs in rows.items():
        for task, pair in pairs.items():
            found[re.sub(r", seed -?\d+", "", row)][task].append(pair)
    return {
        row: {task: tuple(np.mean(pairs, axis=0)) for task, pairs in tasks.items()}
        for row, tasks in found.items()
    }


def _by_task(rows: Mapping[str, Mapping[str, Any]], name: str) -> pd.DataFrame | None:
    """(value, standard error) in the paper's columns, with the mean over tasks; None without any.

    Args: rows, {row: {task: (value, standard error)}}; name, of the rows.
    """
    rows = {row: {**pairs, "mean": mean_of_tasks(pairs.values())}
            for row, pairs in rows.items() if pairs}  # fmt: skip
    columns = [task for task in (*TASK_NAMES, "mean") if any(task in row for row in rows.values())]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.rename(columns=TASK_NAMES).rename_axis(name) if rows else None


def zero_shot_table(
    records: Iterable[Record], metric: str = "acc"
) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Accuracy in the paper's columns with a mean, and standard errors; None without records.

    A row is the mean over seeds of the calibration text. `metric` is "acc" or, for tasks that have
    it, "acc_norm" (normalised by the answers' length).
    """
    rows: dict[str, dict[str, Any]] = {}
    for label, record in zero_shot_runs(records).items():
        names = {task: f"{task}_{metric}" for task in TASK_NAMES}
        found = {name: entry["value"] for name, entry in record["metrics"].items()}
        rows[label] = {t: (found[n], found[f"{n}_stderr"]) for t, n in names.items() if n in found}
    pairs = _by_task(_over_seeds(rows), "model")
    if pairs is None:
        return None
    # a mean over fewer tasks than the other rows have could not be compared with theirs
    pairs["mean"] = pairs["mean"].where(pairs.notna().all(axis=1))
    return tuple(pairs.map(itemgetter(part), na_action="ignore").astype(float) for part in (0, 1))


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
    Runs of the same items and seed are compared, as a mean over seeds. None if there is no pair.
    """

    def cell(pair: tuple[float, float]) -> str:
        text = "{:+.3f} ± {:.3f}".format(*pair)
        return f"**{text}**" if abs(pair[0]) > 2 * pair[1] else text

    pairs = combinations(zero_shot_runs(records).items(), 2)
    rows = {
        f"{second} − {first}": paired_tasks(b["series"]["zero_shot"], a["series"]["zero_shot"])
        for (first, a), (second, b) in pairs
        if a["seed"] in (None, b["seed"])  # dense, which comes first, has none
    }
    table = _by_task(_over_seeds(rows), "difference")
    return None if table is None else table.map(cell, na_action="ignore")


# ------------------------------------------------------------------ layer studies


def update_table(records: Iterable[Record]) -> pd.DataFrame | None:
    """Ways to refit the weights on one fixed mask (series "update" of notebook 02).

    Over problems (layers times sparsities): relative error on calibration and held-out text, and
    the excess of the damped objective over its optimum. For Adam and SGD the best learning rate of
    each problem counts; ADMM with other settings than its defaults is shown after 20 iterations.
    None without such records.
    """
    rows = pd.DataFrame(frame.series_rows(records, "update"))
    if rows.empty:
        return None
    usual = (rows[list(USUAL)] == pd.Series(USUAL)).all(axis=1)
    rows = rows[(rows["solver"] != "admm") | usual | (rows["iterations"] == 20)]
    way = ["precondition", "damping", "rho", "iterations"]  # None where a solver has no such thing
    rows = rows.assign(rank=rows["solver"].map(list(SOLVERS).index))
    rows[way] = rows[way].astype(float)
    problems = rows.groupby(["rank", *way, "record", "sparsity"], dropna=False)
    best = rows.loc[problems["excess"].idxmin().sort_index()]
    # the excess is of the damped objective: it says nothing of solvers of another one
    own = (best["solver"] == "none") | (best["damping"] == USUAL["damping"])
    best["excess"] = 100 * best["excess"].where(own)
    table = best.groupby(["rank", "solver", *way], dropna=False).agg(**{
        "problems": ("error", "size"),
        "error": ("error", mean),
        "held-out": ("heldout", mean),
        "excess, mean (%)": ("excess", mean),
        "excess, worst (%)": ("excess", "max"),
        "seconds": ("seconds", mean),
    })  # fmt: skip
    table.insert(0, "iterations", table.index.get_level_values("iterations").astype("Int64"))
    return table.set_axis([_update_label(*key[1:-1]) for key in table.index]).rename_axis("update")


def _update_label(solver: str, precondition: float, damping: float, rho: float) -> str:
    """The name of a way to refit, with whatever is not its default; NaN stands for no setting."""
    details = []
    if solver == "admm":
        details.append(f"ρ = {rho:g}")
    if solver in ("adam", "sgd"):
        details.append("best rate")
    if precondition in (0, 1) and precondition != (solver in ("admm", "cg")):
        details.append("preconditioned" if precondition else "not preconditioned")
    if damping >= 0 and solver != "sparsegpt" and damping != USUAL["damping"]:
        details.append(f"damping {damping:g}")
    return f"{SOLVERS[solver]} ({', '.join(details)})" if details else SOLVERS[solver]


def mask_table(records: Iterable[Record], text: str = "error") -> pd.DataFrame | None:
    """What mask steps, schedule and budget change (series "ablation" of notebook 03).

    Relative error as a percentage of the default's on the same layer: geometric mean over layers.
    `text` is "error" (calibration) or "heldout". None without such records.
    """
    ways = pd.DataFrame(frame.series_rows(records, "ablation"))
    if ways.empty:
        return None
    ways["target"] = list(map(frame.target_name, ways["pattern"], ways["sparsity"]))
    ways["variant"] = list(map(_mask_label, ways["mask_steps"], ways["schedule"], ways["budget"]))
    problem = ["record", "block", "layer", "target"]
    wide = ways.pivot_table(index=problem, columns="variant", values=text)
    shares = wide.div(wide[DEFAULT_MASK], axis=0)
    table = np.exp(np.log(shares).groupby(level="target").mean()).T * 100
    columns = sorted(table.columns, key=frame.column_key)
    return table.loc[ways["variant"].unique(), columns].rename_axis("mask")


def _mask_label(mask_steps: int, schedule: str, budget: str) -> str:
    """The name of one way to choose the mask: whatever is not the default."""
    steps = {15: "", 0: "one-shot mask (no steps)"}.get(mask_steps, f"{mask_steps} mask steps")
    details = [steps] if steps else []
    details += [f"{schedule} schedule"] if schedule != "paper" else []
    details += [f"budget per {budget}"] if budget != "matrix" else []
    return ", ".join(details) or DEFAULT_MASK


# ------------------------------------------------------------------ notes, and all tables of a plan


class Section(NamedTuple):
    """One table as a reader sees it: which it is, a note, the numbers, and its Markdown."""

    about: str
    note: str
    frame: pd.DataFrame
    spread: pd.DataFrame | None = None

    @property
    def markdown(self) -> str:
        """Note and table in Markdown."""
        return f"{self.note}\n\n{to_markdown(self.frame, self.spread)}"


def _items_note(records: list[Record]) -> str:
    """How many items of each task were asked, whether of all the same, and by which harness."""
    runs = zero_shot_runs(records).values()
    tasks = [task for run in runs for task in run["series"]["zero_shot"].items()]
    asked = {(name, tuple(series["items"])) for name, series in tasks}
    counts = sorted({len(items) for _, items in asked})
    amount = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    same = "" if len(asked) == len(dict(tasks)) else "not "
    asked_of = {(t, run["seed"]) for run in runs for t in run["series"]["zero_shot"]}
    counted = Counter(task for task, seed in asked_of if seed is not None)
    several = [name for task, name in TASK_NAMES.items() if counted[task] > 1]
    over = f"Means over seeds of the calibration text on {', '.join(several)}. " if several else ""
    harness = sorted({run["versions"]["lm-eval"] for run in runs})
    same = f"{amount} items a task, {same}the same for every model"
    return f"{over}{same}; lm-eval {', '.join(harness)}."


def _update_note(records: list[Record]) -> str:
    blocks: dict[str, set[int]] = defaultdict(set)
    for record in frame.with_series(records, "update"):
        asked = record["parameters"]
        blocks[asked["layer"].rpartition(".")[2]].add(asked["block"])
    layers = "; ".join(
        f"{layer} of {'blocks' if len(found) > 1 else 'block'} {', '.join(map(str, sorted(found)))}"
        for layer, found in sorted(blocks.items())
    )
    targets = sorted({row["sparsity"] for row in frame.series_rows(records, "update")})
    return (
        "Refitting the kept weights on one fixed mask by Wanda's score (budget per matrix): "
        f"{layers}; at {', '.join(f'{100 * target:.4g}' for target in targets)} %. Excess: the "
        "damped objective over its exact optimum. Adam and SGD count with the rate that is best "
        "for a problem after so many iterations, and only its own seconds count."
    )


def _with_chance(table: pd.DataFrame) -> pd.DataFrame:
    """A zero-shot table below a row of what guessing gives."""
    chance = pd.Series({TASK_NAMES[task]: TASK_TABLE[task].chance for task in TASK_NAMES})
    chance = chance.reindex(table.columns.drop("mean"))
    chance["mean"] = chance.mean()
    return pd.concat([chance.to_frame("chance").T, table]).rename_axis(table.index.name)


def _tables_of(runs: list[Record]) -> Iterator[tuple[Any, ...]]:
    """Name, which of several, note and table (and spread) of what one model's records allow.

    The table is None where they do not.
    """
    if pruned := frame.prune_runs(runs):
        where = setting(pruned)
        table, spread = perplexity_table(pruned)
        spreads = (
            " ± is half the range over seeds of the calibration text. The choice of evaluation "
            "windows is not in it: every cell has the same ones."
        )
        note = where + (spreads if spread.notna().any(axis=None) else "")
        yield "perplexity", "", note, table, spread
        devices = "; ".join(sorted({record["device"] for record in pruned}))
        timed = sum(record.get("timed", False) for record in pruned)
        note = (
            f"{where} Device: {devices}. Medians over unstructured runs; {timed} of {len(pruned)} "
            "runs were timed alone, the seconds of others are an order of magnitude: they may have "
            "shared the machine. Solve holds the checks of a layer and the measuring of its error, "
            "which is all of it for methods without an update; peak memory is the process's, "
            "evaluation included."
        )
        yield "cost", "", note, cost_table(pruned)
        note = (
            f"{where} Other options beside the defaults, same cell and same calibration seeds. "
            "The change is the mean over seeds, ± half of Student's 95 % interval."
        )
        yield "variants", "", note, variant_table(pruned)
    model = about_model(runs)
    for metric, how in ("acc", ""), ("acc_norm", " normalised by the answers' length"):
        if tables := zero_shot_table(runs, metric):
            note = f"{model} Accuracy{how} ± one standard error. {_items_note(runs)}"
            yield "zero_shot", metric, note, _with_chance(tables[0]), tables[1]
    note = (
        f"{model} Paired differences in accuracy on the same items; bold where they exceed two "
        "standard errors. One in twenty would do so by chance. Means are over the tasks of a row."
    )
    yield "zero_shot", "paired", note, paired_table(runs)
    yield "weight_update", "", f"{model} {_update_note(runs)}", update_table(runs)
    for text, column in ("calibration", "error"), ("held-out", "heldout"):
        how = "% of the default's (geometric mean over layers)"
        note = f"{model} Relative error on {text} text, {how}."
        yield "mask", text, note, mask_table(runs, column)
    yield from (("beyond", *parts) for parts in beyond.tables_of(runs))


def sections(records: Iterable[Record]) -> dict[str, list[Section]]:
    """Every table that the records allow, by name; several models get a section each."""
    made: dict[str, list[Section]] = defaultdict(list)
    for model, runs in frame.by_model(records).items():
        for name, which, note, table, *spread in _tables_of(runs):
            if table is not None:
                made[name].append(Section(f"{model} {which}".strip(), note, table, *spread))
    return dict(made)


def write_tables(records: Iterable[Record], folder: str | os.PathLike[str]) -> list[Path]:
    """Write every table of `sections` as NAME.md and NAME.csv and return the paths.

    The CSV of a table of several sections has them one below the other, with a first column.
    Raises FileError if the folder cannot be written.
    """
    texts = {}
    for name, found in sections(records).items():
        texts[f"{name}.md"] = "\n".join(section.markdown for section in found)
        table = found[0].frame
        if len(found) > 1:
            table = pd.concat({s.about: s.frame for s in found}, names=["about"])
        texts[f"{name}.csv"] = table.to_csv(lineterminator="\n")
    return [replace_file(Path(folder) / name, text) for name, text in sorted(texts.items())]
