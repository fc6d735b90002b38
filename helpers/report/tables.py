"""Tables as pure functions of records, in the paper's shapes, with their notes, and as files.

A cell is the mean over seeds; `helpers.report.frame` says which records share a cell.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from helpers.data.tasks import TASK_TABLE, paired_difference
from helpers.paths import replace_file
from helpers.report import beyond, frame, published
from helpers.report.frame import (
    SECONDS,
    TASK_NAMES,
    USUAL,
    Record,
    about_model,
    caption,
    setting,
)

SOLVERS = {"none": "no update", "sparsegpt": "SparseGPT", "sgd": "SGD", "adam": "Adam",
           "cg": "conjugate gradients", "admm": "ADMM", "exact": "exact optimum"}  # fmt: skip
DEFAULT_MASK = "default"
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
    return (
        f"{value:.2f}"
        if size < 100
        else f"{value:.1f}"
        if size < 1000
        else f"{value:,.0f}"
    )


def to_markdown(table: pd.DataFrame, spread: pd.DataFrame | None = None) -> str:
    """The table in Markdown: names in words, numbers to the right, "± spread" where there is."""
    cells = table.map(format_number)
    if spread is not None:
        spread = spread.reindex(cells.index)  # rows such as chance have none
        cells += spread.map(
            lambda half: "" if pd.isna(half) else f" ± {format_number(half)}"
        )
    lines = [
        (table.index.name or "", *table.columns),
        (":--", *["--:"] * len(table.columns)),
    ]
    lines += cells.itertuples(name=None)
    texts = (" | ".join(map(str, line)) for line in lines)
    return "".join(f"| {frame.in_words(text)} |\n" for text in texts)


# ------------------------------------------------------------------ the pruning notebook


def perplexity_table(
    records: Iterable[Record],
) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """± is half of Student's 95 % interval over seeds of the calibration text, where there are
    several. The choice of evaluation windows is not in it: every cell has the same ones.

    Perplexity, methods by sparsity and pattern, and its `interval`. The dense model has its one
    number in every column. NaN: no run, or the spread of one seed. Runs on other windows than most,
    and variants, which `variant_table` has, are left out. None without records.
    """

    cells = frame.perplexity_cells(records)
    if cells.empty:
        return None
    rows = sorted(cells.index.unique("label"), key=frame.row_key)
    table, halves = (frame.by_target(cells[name], rows) for name in ("mean", "half"))
    dense = table.pop("dense") if "dense" in table else math.nan
    table = table if len(table.columns) else table.reindex(columns=["0 %"])
    table = table.apply(lambda column: column.fillna(dense))
    return table.rename_axis("method"), halves.reindex(columns=table.columns)


def cost_table(records: Iterable[Record]) -> pd.DataFrame | None:
    """Medians over runs; the seconds of runs that were not timed alone are an order of magnitude:
    they may have shared the machine. Solve holds the checks of a layer and the measuring of its
    error, which is all of it for methods without an update; peak memory is the process's,
    evaluation included.

    The paper's overhead table, without variants. Medians, since a run that shared the machine with
    something heavy is an outlier; "forward" holds the grams and the parity gate, "solve" the choice
    of the mask. None without records.
    """
    runs = frame.prune_frame(records)
    if runs.empty:
        return None
    runs = runs.assign(memory=[r["peak_memory_bytes"] / 1e9 for r in runs["record"]])
    groups = runs.groupby("label")
    table = (
        groups[SECONDS]
        .median()
        .rename(columns=lambda name: name.replace("_seconds", " (s)"))
    )
    table.insert(0, "runs", groups.size())
    table["peak memory (GB)"] = groups["memory"].max()
    return table.loc[sorted(table.index, key=frame.row_key)].rename_axis("method")


def variant_table(records: Iterable[Record]) -> pd.DataFrame | None:
    """Other options beside the defaults, same cell and same calibration seeds. The change is the
    mean over seeds, and ± half of Student's 95 % interval of it.

    The interval is NaN for one seed. Several
    records of one run count once, with their mean. A variant without a run of the defaults in its
    cell is left out; None if there is no other.
    """
    runs = frame.run_frame(records)
    cells = [
        record["parameters"] | {"options": None, "device": None}
        for record in runs["record"]
    ]
    runs["cell"] = [json.dumps(cell, sort_keys=True) for cell in cells]
    same = runs.groupby(
        ["cell", "label", "target", "variant"], sort=False, as_index=False
    )
    runs = same["perplexity"].mean()
    pairs = runs.query("variant").merge(
        runs.query("not variant"), on="cell", suffixes=("", "_")
    )
    if pairs.empty:
        return None
    pairs["change"] = 100 * (pairs["perplexity"] / pairs["perplexity_"] - 1)
    pairs = pairs.sort_values(
        "label", key=lambda labels: labels.map(frame.row_key), kind="stable"
    )
    table = pairs.groupby(["label", "target"], sort=False).agg(**{
        "seeds": ("change", "size"),
        "perplexity": ("perplexity", mean),
        "default": ("perplexity_", mean),
        "change (%)": ("change", mean),
        "± (%)": ("change", lambda changes: frame.interval(changes)[1]),
    })  # fmt: skip
    return table.rename_axis(index=["variant", "at"]).reset_index("at")


# ------------------------------------------------------------------ zero-shot


def answer_frame(records: Iterable[Record]) -> pd.DataFrame:
    """The answers of the runs of the zero-shot notebook, a row for each model, seed and task.

    Columns: model, its row in the tables; seed, 0 for the dense model; task, by the paper's name;
    items; right, by item whether the answer was; the accuracies and their standard errors; harness.
    In the order of the methods and of the paper's tasks; of several runs the most items count.
    """
    rows = []
    for run in frame.run_frame(records, frame.ZERO_SHOT_NOTEBOOK).itertuples():
        model = run.label if run.target == "dense" else f"{run.label}, {run.target}"
        key = (
            frame.row_key(run.label),
            model,
            0 if run.target == "dense" else run.seed,
        )
        for task, name in TASK_NAMES.items():
            if task not in run.record["series"]["zero_shot"]:
                continue
            answers = run.record["series"]["zero_shot"][task]
            metrics = {
                metric: run.record["metrics"].get(f"{task}_{metric}", {}).get("value")
                for metric in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")
            }
            rows.append(metrics | {
                "order": (*key, list(TASK_NAMES).index(task), len(answers["items"])),
                "model": model, "seed": key[-1], "task": name, "items": tuple(answers["items"]),
                "right": answers["acc"], "harness": run.record["versions"]["lm-eval"],
            })  # fmt: skip
    columns = ["model", "seed", "task", "items", "right", "acc", "acc_stderr", "acc_norm",
               "acc_norm_stderr", "harness", "order"]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns).sort_values("order")
    return table.drop_duplicates(
        ["model", "seed", "task"], keep="last", ignore_index=True
    )


def _by_task(
    answers: pd.DataFrame, rows: str, value: str, error: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Values and standard errors by row and task, with their mean over tasks in the last column.

    Seeds are given the same items, so the error from the items does not shrink: it is their mean.
    Tasks are taken as independent.
    """
    answers = answers.dropna(subset=value)
    cells = (
        answers.groupby([rows, "task"], sort=False)[[value, error]].mean().astype(float)
    )
    columns = [name for name in TASK_NAMES.values() if name in set(answers["task"])]
    values, errors = (
        cells[name].unstack().reindex(index=answers[rows].unique(), columns=columns)
        for name in (value, error)
    )
    counts = values.notna().sum(axis=1)
    values["mean"] = values.mean(axis=1)
    errors["mean"] = np.sqrt((errors**2).sum(axis=1)) / counts
    return values.rename_axis(columns=None), errors.rename_axis(columns=None)


def zero_shot_table(
    records: Iterable[Record], metric: str = "acc"
) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Accuracy in the paper's columns with a mean, ± one standard error; None without records.

    A row is the mean over seeds of the calibration text. `metric` is "acc" or, for tasks that have
    it, "acc_norm" (normalised by the answers' length).
    """
    answers = answer_frame(records)
    if answers[metric].isna().all():
        return None
    values, errors = _by_task(answers, "model", metric, f"{metric}_stderr")
    # a mean over fewer tasks than the other rows have could not be compared with theirs
    complete = values.notna().all(axis=1)
    for table in (values, errors):
        table["mean"] = table["mean"].where(complete)
    return values, errors


def paired_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Differences in acc between each two models on the same items of a task, with the same seed.

    Columns: pair ("second − first"), seed, task, difference, and its standard error.
    """
    rows = []
    for (_, first), (_, second) in combinations(answer_frame(records).iterrows(), 2):
        # dense, which comes first, is paired with every seed
        alike = first["model"] == "dense" or first["seed"] == second["seed"]
        same = first["task"] == second["task"] and first["items"] == second["items"]
        if same and alike and first["model"] != second["model"]:
            pair, seed = f"{second['model']} − {first['model']}", second["seed"]
            difference = paired_difference(second["right"], first["right"])
            rows.append((pair, seed, first["task"], *difference))
    return pd.DataFrame(rows, columns=["pair", "seed", "task", "difference", "error"])


def paired_table(records: Iterable[Record]) -> pd.DataFrame | None:
    """Paired differences in accuracy on the same items. ± is one standard error over items here;
    bold where they exceed two, which one in twenty would by chance. Means are over the tasks of a
    row.

    `paired_frame` as text, "difference ± standard error", means over seeds. None without a pair.
    """
    pairs = paired_frame(records)
    if pairs.empty:
        return None
    values, errors = _by_task(pairs, "pair", "difference", "error")
    texts = values.map("{:+.3f}".format) + " ± " + errors.map("{:.3f}".format)
    texts = texts.mask(values.abs() > 2 * errors, "**" + texts + "**").where(
        values.notna()
    )
    return texts.rename_axis("difference")


# ------------------------------------------------------------------ layer studies


def update_table(records: Iterable[Record]) -> pd.DataFrame | None:
    """Refitting the kept weights on one fixed mask by Wanda's score (budget per matrix). A problem
    is a layer at a sparsity. Excess: the damped objective over its exact optimum. Adam and SGD
    count with the rate that is best for a problem after so many iterations, and only its own
    seconds count.

    From series "update" of notebook 02. ADMM with other settings than its defaults is shown after
    20 iterations. None without such records.
    """
    rows = pd.DataFrame(frame.series_rows(records, "update"))
    if rows.empty:
        return None
    usual = (rows[list(USUAL)] == pd.Series(USUAL)).all(axis=1)
    rows = rows[(rows["solver"] != "admm") | usual | (rows["iterations"] == 20)]
    # None where a solver has no such thing
    setting_of = ["precondition", "damping", "rho", "iterations"]
    rows = rows.assign(rank=rows["solver"].map(list(SOLVERS).index))
    rows[setting_of] = rows[setting_of].astype(float)
    problems = rows.groupby(["rank", *setting_of, "record", "sparsity"], dropna=False)
    best = rows.loc[problems["excess"].idxmin().sort_index()]
    # the excess is of the damped objective: it says nothing of solvers of another one
    own = (best["solver"] == "none") | (best["damping"] == USUAL["damping"])
    best["excess"] = 100 * best["excess"].where(own)
    table = best.groupby(["rank", "solver", *setting_of], dropna=False).agg(**{
        "problems": ("error", "size"),
        "error": ("error", mean),
        "held-out": ("heldout", mean),
        "excess, mean (%)": ("excess", mean),
        "excess, worst (%)": ("excess", "max"),
        "seconds": ("seconds", mean),
    })  # fmt: skip
    table.insert(
        0, "iterations", table.index.get_level_values("iterations").astype("Int64")
    )
    labels = [_update_label(*key[1:-1]) for key in table.index]
    return table.set_axis(labels).rename_axis("update")


def _update_label(solver: str, precondition: float, damping: float, rho: float) -> str:
    """The name of a solver, with whatever is not its default; NaN stands for no setting."""
    details = [f"ρ = {rho:g}"] if solver == "admm" else []
    details += ["best rate"] if solver in ("adam", "sgd") else []
    if precondition in (0, 1) and precondition != (solver in ("admm", "cg")):
        details.append("preconditioned" if precondition else "not preconditioned")
    if damping >= 0 and solver != "sparsegpt" and damping != USUAL["damping"]:
        details.append(f"damping {damping:g}")
    return f"{SOLVERS[solver]} ({', '.join(details)})" if details else SOLVERS[solver]


def mask_table(records: Iterable[Record], text: str = "error") -> pd.DataFrame | None:
    """What mask steps, schedule and budget change: relative error, % of the default's on the same
    layer (geometric mean over layers).

    From series "ablation" of notebook 03. `text` is "error" (calibration) or "heldout". None
    without such records.
    """
    rules = pd.DataFrame(frame.series_rows(records, "ablation"))
    if rules.empty:
        return None
    rules["target"] = list(map(frame.target_name, rules["pattern"], rules["sparsity"]))
    kinds = rules["mask_steps"], rules["schedule"], rules["budget"]
    rules["variant"] = list(map(_mask_label, *kinds))
    problem = ["record", "block", "layer", "target"]
    wide = rules.pivot_table(index=problem, columns="variant", values=text)
    shares = wide.div(wide[DEFAULT_MASK], axis=0)
    table = np.exp(np.log(shares).groupby(level="target").mean()).T * 100
    columns = sorted(table.columns, key=frame.column_key)
    return table.loc[rules["variant"].unique(), columns].rename_axis("mask")


def _mask_label(mask_steps: int, schedule: str, budget: str) -> str:
    """The name of a rule for the mask: whatever is not the default."""
    steps = {15: "", 0: "one-shot mask (no steps)"}.get(
        mask_steps, f"{mask_steps} mask steps"
    )
    details = [steps] if steps else []
    details += [f"{schedule} schedule"] if schedule != "paper" else []
    details += [f"budget per {budget}"] if budget != "matrix" else []
    return ", ".join(details) or DEFAULT_MASK


# ------------------------------------------------------------------ notes, and all tables of a plan


class Section(NamedTuple):
    """One table as it is shown: which it is, a note, the numbers, and its Markdown."""

    about: str
    note: str
    frame: pd.DataFrame
    spread: pd.DataFrame | None = None

    @property
    def markdown(self) -> str:
        """Note and table in Markdown."""
        return f"{self.note}\n\n{to_markdown(self.frame, self.spread)}"


def _items_note(records: list[Record]) -> str:
    """How many items each task has, whether the same for every model, and by which harness."""
    answers = answer_frame(records)
    sizes = answers["items"].map(len)
    amount = " to ".join(map(str, sorted({min(sizes), max(sizes)})))
    same = "" if (answers.groupby("task")["items"].nunique() == 1).all() else "not "
    harness = ", ".join(sorted(set(answers["harness"])))
    return f"{amount} items a task, {same}the same for every model; lm-eval {harness}."


def chances(accuracy: pd.DataFrame) -> pd.Series:
    """What guessing scores on each task of a zero-shot table, and the mean."""
    known = {name: TASK_TABLE[task].chance for task, name in TASK_NAMES.items()}
    chance = pd.Series(known, name="chance").reindex(accuracy.columns)
    return chance.fillna({"mean": chance.mean()})


def _tables_of(runs: list[Record]) -> Iterator[tuple[Any, ...]]:
    """Name, which of several, note and table (and spread) of what one model's records allow.

    The table is None where they do not.
    """
    if pruned := frame.prune_runs(runs):
        where = setting(pruned)
        for number, alike in enumerate(frame.by_windows(pruned)):
            table, spread = perplexity_table(alike)
            note = f"{setting(alike)} {caption(perplexity_table)}"
            note += (
                ""
                if "dense" in table.index
                else " The dense model was not run on these."
            )
            yield (
                "perplexity",
                f"other windows {number}" if number else "",
                note,
                table,
                spread,
            )
        devices = "; ".join(sorted({record["device"] for record in pruned}))
        timed = sum(record.get("timed", False) for record in pruned)
        note = f"Device: {devices}. {timed} of {len(pruned)} runs were timed alone."
        yield "cost", "", f"{where} {note} {caption(cost_table)}", cost_table(pruned)
        yield "variants", "", f"{where} {caption(variant_table)}", variant_table(pruned)
        note = f"{where} {published.DIFFERENT}"
        yield "published_ratios", "", note, published.ratio_table(pruned)
    model = about_model(runs)
    for metric, how in ("acc", ""), ("acc_norm", " normalised by the answers' length"):
        if tables := zero_shot_table(runs, metric):
            note = f"{model} Accuracy{how} ± one standard error over items. {_items_note(runs)}"
            accuracy = pd.concat(
                [chances(tables[0]).to_frame().T, tables[0]]
            ).rename_axis("model")
            yield "zero_shot", metric, note, accuracy, tables[1]
    yield "zero_shot", "paired", f"{model} {caption(paired_table)}", paired_table(runs)
    yield "weight_update", "", f"{model} {caption(update_table)}", update_table(runs)
    for text, column in ("calibration", "error"), ("held-out", "heldout"):
        note = f"{model} On {text} text. {caption(mask_table)}"
        yield "mask", text, note, mask_table(runs, column)
    yield from (("beyond", *parts) for parts in beyond.tables_of(runs))


def sections(records: Iterable[Record]) -> dict[str, list[Section]]:
    """Every table that the records allow, by name; several models get a section each."""
    made: dict[str, list[Section]] = defaultdict(list)
    for model, runs in frame.by_model(records).items():
        for name, which, note, table, *spread in _tables_of(runs):
            if table is not None:
                made[name].append(
                    Section(f"{model} {which}".strip(), note, table, *spread)
                )
    return dict(made)


def write_tables(
    records: Iterable[Record], folder: str | os.PathLike[str]
) -> list[Path]:
    """Write every table of `sections` as NAME.md and return the paths.

    Raises FileError if the folder cannot be written.
    """
    return [
        replace_file(
            Path(folder) / f"{name}.md", "\n".join(part.markdown for part in parts)
        )
        for name, parts in sorted(sections(records).items())
    ]
