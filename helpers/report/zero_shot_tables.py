"""Tables of the zero-shot notebook: accuracy by task, and paired differences of models."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from helpers.data.tasks import TASK_TABLE, paired_difference
from helpers.report.labels import TASK_NAMES, row_key
from helpers.report.markdown import Table
from helpers.report.records import Records
from helpers.report.runs_table import ZERO_SHOT_NOTEBOOK, model_sentence, runs_table

ACCURACIES = ["acc", "acc_stderr", "acc_norm", "acc_norm_stderr"]


def answer_table(records: Records) -> pd.DataFrame:
    """The answers of the zero-shot runs, a row for each model, seed and task.

    Columns: model, its row in the tables; seed, 0 for the dense model; task, by the paper's name;
    items; right, whether the answer to each was; ACCURACIES; harness, lm-eval's version. In the
    order of the methods and of the paper's tasks; of several runs the one with most items counts.
    """
    key = ["model", "seed", "task"]
    rows = []
    for run in runs_table(records, ZERO_SHOT_NOTEBOOK).itertuples():
        is_dense = run.target == "dense"
        for task, score in run.record["series"]["zero_shot"].items():
            row = {
                "label": run.label,
                "model": run.label if is_dense else f"{run.label}, {run.target}",
                "seed": 0 if is_dense else run.seed,
                "task": TASK_NAMES[task],
                "items": tuple(score["items"]),
                "right": score["acc"],
                "harness": run.record["versions"]["lm-eval"],
            }
            for name in ACCURACIES:
                row[name] = getattr(run, f"{task}_{name}", math.nan)
            rows.append(row)
    # of several runs the one with most items is the last
    rows.sort(
        key=lambda row: (
            *(row_key(row["label"]), row["model"], row["seed"]),
            len(row["items"]),
        )
    )
    columns = [*key, "items", "right", "harness", *ACCURACIES]
    table = pd.DataFrame(rows, columns=columns)
    return table.drop_duplicates(key, keep="last", ignore_index=True)


def paired_differences(records: Records) -> pd.DataFrame:
    """Differences in acc between each two models on the same items of a task, with the same seed.

    Columns: pair ("second − first"), seed, task, difference, and its standard error.
    """
    answers = answer_table(records).reset_index()
    pairs = answers.merge(answers, on=["task", "items"], suffixes=("_1", "_2"))
    # the dense model, which comes first, is paired with every seed
    pairs = pairs.query(
        "index_1 < index_2 and model_1 != model_2"
        " and (seed_1 == seed_2 or model_1 == 'dense')"
    )
    rows = []
    for pair in pairs.sort_values(["index_1", "index_2"]).itertuples():
        difference, error = paired_difference(pair.right_2, pair.right_1)
        row = {
            "pair": f"{pair.model_2} − {pair.model_1}",
            "seed": pair.seed_2,
            "task": pair.task,
            "difference": difference,
            "error": error,
        }
        rows.append(row)
    return pd.DataFrame(rows, columns=["pair", "seed", "task", "difference", "error"])


def _by_task(
    rows: pd.DataFrame, row: str, value: str, error: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Values and standard errors by row and task, with their mean over tasks in the last column.

    All seeds have the same items, so the error from the items does not shrink: it is their mean.
    Tasks are taken as independent.
    """
    rows = rows.dropna(subset=value)
    means = rows.groupby([row, "task"], sort=False)[[value, error]].mean()
    wide = means.astype(float).unstack()
    wide = wide.reindex(index=rows[row].unique())
    known = set(rows["task"])
    tasks = [name for name in TASK_NAMES.values() if name in known]
    values = wide[value][tasks].rename_axis(columns=None)
    errors = wide[error][tasks].rename_axis(columns=None)
    counts = values.notna().sum(axis=1)
    values["mean"] = values.mean(axis=1)
    squares = (errors**2).sum(axis=1)
    errors["mean"] = np.sqrt(squares) / counts
    return values, errors


def accuracy_table(
    records: Records, metric: str = "acc"
) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Accuracy and its standard error, in the paper's columns with a mean; None without records.

    A row is the mean over seeds of the calibration text. `metric` is "acc" or, for tasks that have
    it, "acc_norm" (normalised by the answers' length).
    """
    answers = answer_table(records)
    if answers[metric].isna().all():
        return None
    values, errors = _by_task(answers, "model", metric, f"{metric}_stderr")
    # a mean over fewer tasks than the other rows have could not be compared with theirs
    complete = values.notna().all(axis=1)
    values["mean"] = values["mean"].where(complete)
    errors["mean"] = errors["mean"].where(complete)
    return values, errors


PAIRED_CAPTION = (
    "Paired differences in accuracy on the same items. ± is one standard error over items here; "
    "bold where they exceed two, which one in twenty would by chance. Means are over the tasks of "
    "a row."
)


def paired_table(records: Records) -> pd.DataFrame | None:
    """`paired_differences` as text, "difference ± standard error", means over seeds.

    None without a pair.
    """
    pairs = paired_differences(records)
    if pairs.empty:
        return None
    values, errors = _by_task(pairs, "pair", "difference", "error")
    texts = values.map("{:+.3f}".format)
    texts += " ± " + errors.map("{:.3f}".format)
    bold = values.abs() > 2 * errors
    texts = texts.mask(bold, "**" + texts + "**")
    return texts.where(values.notna()).rename_axis("difference")


def chance_accuracy(accuracy: pd.DataFrame) -> pd.DataFrame:
    """The row of what guessing scores on each task of an accuracy table, and the mean."""
    known = {}
    for task, name in TASK_NAMES.items():
        known[name] = TASK_TABLE[task].chance
    chance = pd.Series(known, name="chance")
    chance = chance.reindex(accuracy.columns)
    return chance.fillna({"mean": chance.mean()}).to_frame().T


def _items_note(records: Records) -> str:
    """How many items each task has, whether the same for every model, and by which harness."""
    answers = answer_table(records)
    sizes = answers["items"].map(len)
    amount = str(min(sizes))
    if min(sizes) < max(sizes):
        amount += f" to {max(sizes)}"
    same = "the same"
    if (answers.groupby("task")["items"].nunique() > 1).any():
        same = "not the same"
    harness = ", ".join(sorted(set(answers["harness"])))
    return f"{amount} items a task, {same} for every model; lm-eval {harness}."


def zero_shot_tables(records: Records) -> Iterator[tuple[str, Table]]:
    """The tables of the zero-shot notebook, by name, of the records of one model."""
    model = model_sentence(records)
    for metric, how in ("acc", ""), ("acc_norm", " normalised by the answers' length"):
        accuracies = accuracy_table(records, metric)
        if accuracies:
            table, errors = accuracies
            table = pd.concat([chance_accuracy(table), table]).rename_axis("model")
            note = f"{model} Accuracy{how} ± one standard error over items. {_items_note(records)}"
            yield "zero_shot", Table(metric, note, table, errors)
    note = f"{model} {PAIRED_CAPTION}"
    yield "zero_shot", Table("paired", note, paired_table(records))
