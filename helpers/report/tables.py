"""Tables as pure functions of records, in the paper's shapes, with their notes, and as files.

A cell is the mean over seeds; `helpers.report.runs_table` says which records share a cell.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.data.tasks import TASK_TABLE
from helpers.paths import ZERO_SHOT_NOTEBOOK, replace_file
from helpers.report.beyond import beyond_tables
from helpers.report.labels import (
    TASK_NAMES,
    Table,
    WithSpread,
    column_key,
    row_key,
    target_name,
)
from helpers.report.paired import paired_difference
from helpers.report.published import RATIO_CAPTION, ratio_table
from helpers.report.records import Records
from helpers.report.runs_table import (
    PRUNE_NOTEBOOK,
    SECONDS,
    by_model,
    by_target,
    by_windows,
    confidence_interval,
    model_sentence,
    of_notebook,
    perplexity_cells,
    runs_table,
    series_table,
    setting_sentences,
)

# ------------------------------------------------------------------ the pruning notebook

PERPLEXITY_CAPTION = (
    "± is half of Student's 95 % interval over seeds of the calibration text, where there are "
    "three or more; cells of one column may have different seeds, and claims pair those that two "
    "methods share. The choice of evaluation windows is not in ±: every cell has the same ones."
)


def perplexity_table(records: Records) -> WithSpread:
    """Perplexity, methods by sparsity and pattern, and half of its confidence interval.

    The dense model has the same number in every column. NaN: no run, or the interval of one seed.
    Variants, and runs on other windows than most, are left out.
    """
    cells = perplexity_cells(records)
    means, halves = by_target(cells, sorted(cells.index.unique("label"), key=row_key))
    dense = means.pop("dense") if "dense" in means else math.nan
    if means.empty:
        means = means.reindex(columns=["0 %"])  # nothing but the dense model was run
    means = means.apply(lambda column: column.fillna(dense)).rename_axis("method")
    return means, halves


COST_CAPTION = (
    "Medians over runs; the seconds of runs that were not timed alone are an order of magnitude: "
    "they may have shared the machine. Solve holds the checks of a layer and the measuring of its "
    "error, which is all of it for methods without an update; peak memory is the process's, "
    "evaluation included."
)


def cost_table(records: Records) -> pd.DataFrame:
    """The paper's overhead table: seconds of each part by method, and peak memory.

    Medians, since a run that shared the machine with something heavy is an outlier. "forward" holds
    the Gram matrices and the parity gate, "solve" the choice of the mask. Without variants.
    """
    groups = runs_table(records).query("not variant").groupby("label")
    table = groups[SECONDS].median()
    table = table.rename(columns=lambda name: name.replace("_seconds", " (s)"))
    table.insert(0, "runs", groups.size())
    table["peak memory (GB)"] = groups["memory"].max()
    return table.loc[sorted(table.index, key=row_key)].rename_axis("method")


VARIANTS_CAPTION = (
    "Other options against the defaults, same cell and same calibration seeds. The change is the "
    "mean over seeds, and ± half of Student's 95 % interval of it, where there are three or more."
)


def variant_table(records: Records) -> WithSpread | None:
    """Perplexity with other options against the defaults on the same seeds, by variant and target.

    With half the interval of the change. Several records of one run count once, with their mean. A
    variant whose cell has no run of the defaults is left out; None if there is no other.
    """
    runs = runs_table(records)
    runs["cell"] = [
        json.dumps(
            record["parameters"] | {"options": None, "device": None}, sort_keys=True
        )
        for record in runs["record"]
    ]
    cells = runs.groupby(["cell", "label", "target", "variant"], sort=False)
    runs = cells["perplexity"].mean().reset_index()
    defaults = runs.query("not variant")[["cell", "perplexity"]]
    pairs = runs.query("variant").merge(defaults, on="cell", suffixes=("", "_default"))
    if pairs.empty:
        return None
    pairs["change"] = 100 * (pairs["perplexity"] / pairs["perplexity_default"] - 1)
    pairs = pairs.iloc[pairs["label"].map(row_key).argsort(kind="stable")]
    groups = pairs.groupby(["label", "target"], sort=False)
    table = groups[["perplexity", "perplexity_default", "change"]].mean()
    table.columns = ["perplexity", "default", "change (%)"]
    table.insert(0, "seeds", groups.size())
    table = table.rename_axis(index=["variant", "at"]).reset_index("at")
    halves = [confidence_interval(changes)[1] for _, changes in groups["change"]]
    return table, pd.DataFrame({"change (%)": halves}, table.index)


def pruning_tables(records: Records) -> Iterator[tuple[str, Table]]:
    """The tables of the pruning notebook, by name, of the records of one model."""
    runs = of_notebook(records, PRUNE_NOTEBOOK)
    if not runs:
        return
    for about, group in by_windows(runs).items():
        table, spread = perplexity_table(group)
        note = f"{setting_sentences(group)} {PERPLEXITY_CAPTION}"
        if "dense" not in table.index:
            note += " The dense model was not run on these."
        yield "perplexity", Table(about, note, table, spread)
    setting = setting_sentences(runs)
    devices = "; ".join(sorted({run["device"] for run in runs}))
    timed = runs_table(runs).query("not variant")["timed"]
    note = (
        f"{setting} Device: {devices}. {timed.sum()} of {len(timed)} runs were timed alone. "
        f"{COST_CAPTION}"
    )
    yield "cost", Table("", note, cost_table(runs))
    variants = variant_table(runs) or [None]
    yield "variants", Table("", f"{setting} {VARIANTS_CAPTION}", *variants)
    yield "published_ratios", Table("", f"{setting} {RATIO_CAPTION}", ratio_table(runs))


# ------------------------------------------------------------------ the zero-shot notebook

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
            row_key(row["label"]),
            row["model"],
            row["seed"],
            len(row["items"]),
        )
    )
    table = pd.DataFrame(rows, columns=[*key, "items", "right", "harness", *ACCURACIES])
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
    pairs = pairs.sort_values(["index_1", "index_2"])
    rows = map(paired_difference, pairs["right_2"], pairs["right_1"])
    table = pd.DataFrame(list(rows), pairs.index, ["difference", "error"])
    table["pair"] = pairs["model_2"] + " − " + pairs["model_1"]
    return table.join(pairs["task"]).join(pairs["seed_2"].rename("seed"))


def _by_task(rows: pd.DataFrame, row: str, value: str, error: str) -> WithSpread:
    """Values and standard errors by row and task, with their mean over tasks in the last column.

    All seeds have the same items, so the error from the items does not shrink: it is their mean.
    Tasks are taken as independent.
    """
    rows = rows.dropna(subset=value)
    wide = rows.pivot_table([value, error], row, "task", sort=False)
    wide = wide.rename_axis(columns=[None, None])
    tasks = [name for name in TASK_NAMES.values() if name in wide[value]]
    values = wide[value][tasks]
    errors = wide[error][tasks]
    errors["mean"] = np.sqrt((errors**2).sum(axis=1)) / values.count(axis=1)
    values["mean"] = values.mean(axis=1)
    return values, errors


def accuracy_table(records: Records, metric: str = "acc") -> WithSpread | None:
    """Accuracy and its standard error, in the paper's columns with a mean; None without records.

    A row is the mean over seeds of the calibration text. `metric` is "acc" or, for tasks that have
    it, "acc_norm" (normalised by the answers' length).
    """
    answers = answer_table(records)
    if answers[metric].isna().all():
        return None
    values, errors = _by_task(answers, "model", metric, f"{metric}_stderr")
    # a mean over fewer tasks than the other rows have could not be compared with theirs
    incomplete = values.isna().any(axis=1)
    for numbers in (values, errors):
        numbers.loc[incomplete, "mean"] = math.nan
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
    texts = values.map("{:+.3f}".format) + " ± " + errors.map("{:.3f}".format)
    texts = texts.mask(values.abs() > 2 * errors, "**" + texts + "**")
    return texts.where(values.notna()).rename_axis("difference")


def chance_accuracy(accuracy: pd.DataFrame) -> pd.DataFrame:
    """The row of what guessing scores on each task of an accuracy table, and the mean."""
    known = {name: TASK_TABLE[task].chance for task, name in TASK_NAMES.items()}
    chance = pd.DataFrame(known, ["chance"], accuracy.columns)
    return chance.assign(mean=chance.mean(axis=1))


def _items_note(records: Records) -> str:
    """How many items each task has, whether the same for every model, and by which harness."""
    answers = answer_table(records)
    sizes = answers["items"].map(len)
    amount = " to ".join(map(str, sorted({min(sizes), max(sizes)})))
    same = "the same"
    if (answers.groupby("task")["items"].nunique() > 1).any():
        same = "not the same"
    return (
        f"{amount} items a task, {same} for every model; "
        f"lm-eval {', '.join(sorted(set(answers['harness'])))}."
    )


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


# ------------------------------------------------------------------ the layer studies

SOLVERS = {
    "none": "no update",
    "sparsegpt": "SparseGPT",
    "sgd": "SGD",
    "adam": "Adam",
    "cg": "conjugate gradients",
    "admm": "ADMM",
    "exact": "exact optimum",
}
DAMPING = 0.1  # ADMM's default
DEFAULT_MASK = "default"

UPDATE_CAPTION = (
    "Refitting the kept weights on one fixed mask by Wanda's score (budget per matrix). A problem "
    "is a layer at a sparsity. Excess: the damped objective over its exact optimum. Adam and SGD "
    "count with the rate or momentum that is best for a problem after so many iterations, and only "
    "its own seconds count."
)


def update_table(records: Records) -> pd.DataFrame | None:
    """Errors and seconds of each solver, means over problems; None without the series "update".

    ADMM with other settings than its defaults has a row after 20 iterations only.
    """
    rows = series_table(records, "update")
    if rows.empty:
        return None
    rows = rows.query(
        "solver != 'admm' or iterations == 20"
        " or (rho == 1 and precondition == True and damping == @DAMPING)"
    ).copy()
    # None where a solver has no such setting
    settings = ["precondition", "damping", "rho", "iterations"]
    rows["rank"] = rows["solver"].map(list(SOLVERS).index)
    rows[settings] = rows[settings].astype(float)
    own = ["record", "layer", "sparsity"]
    problems = rows.groupby(["rank", *settings, *own], dropna=False)
    best = rows.loc[problems["excess"].idxmin().sort_index()]
    # the excess is of the damped objective: it says nothing of solvers of another one
    own = best.eval("solver == 'none' or damping == @DAMPING")
    best["excess"] = 100 * best["excess"].where(own)
    groups = best.groupby(["rank", "solver", *settings], dropna=False)
    table = groups[["error", "heldout", "excess", "seconds"]].mean()
    table.insert(0, "problems", groups.size())
    table.insert(4, "excess, worst (%)", groups["excess"].max())
    table = table.rename(columns={"heldout": "held-out", "excess": "excess, mean (%)"})
    iterations = table.index.get_level_values("iterations").astype("Int64")
    table.insert(0, "iterations", iterations)
    labels = [_update_label(*key[1:-1]) for key in table.index]
    return table.set_axis(labels).rename_axis("update")


def _update_label(solver: str, precondition: float, damping: float, rho: float) -> str:
    """The name of a solver with the settings that are not its defaults; NaN is no setting."""
    best = {"admm": f"ρ = {rho:g}", "adam": "best rate", "sgd": "best momentum"}
    details = [best[solver]] if solver in best else []
    if precondition == 1 and solver not in ("admm", "cg"):
        details.append("preconditioned")
    if precondition == 0 and solver in ("admm", "cg"):
        details.append("not preconditioned")
    if solver != "sparsegpt" and damping >= 0 and damping != DAMPING:
        details.append(f"damping {damping:g}")
    name = SOLVERS[solver]
    return f"{name} ({', '.join(details)})" if details else name


MASK_CAPTION = (
    "What mask steps, schedule and budget change: relative error, % of the default's on the same "
    "layer (geometric mean over layers)."
)


def mask_table(records: Records, text: str = "error") -> pd.DataFrame | None:
    """The error of each rule for the mask, in percent of the default's on the same layer.

    A geometric mean over layers, on calibration text ("error") or on held-out text ("heldout").
    None without the series "ablation".
    """
    rules = series_table(records, "ablation")
    if rules.empty:
        return None
    rules["target"] = list(map(target_name, rules["pattern"], rules["sparsity"]))
    rules["rule"] = list(
        map(_mask_label, rules["mask_steps"], rules["schedule"], rules["budget"])
    )
    errors = rules.pivot_table(text, ["record", "block", "layer", "target"], "rule")
    logs = np.log(errors.div(errors[DEFAULT_MASK], axis=0))
    table = 100 * np.exp(logs.groupby(level="target").mean()).T
    columns = sorted(table.columns, key=column_key)
    return table.loc[rules["rule"].unique(), columns].rename_axis("mask")


def _mask_label(mask_steps: int, schedule: str, budget: str) -> str:
    """The name of a rule for the mask: what is not the default."""
    details = []
    if mask_steps == 0:
        details.append("one-shot mask (no steps)")
    elif mask_steps != 15:
        details.append(f"{mask_steps} mask steps")
    if schedule != "paper":
        details.append(f"{schedule} schedule")
    if budget != "matrix":
        details.append(f"budget per {budget}")
    return ", ".join(details) or DEFAULT_MASK


def layer_tables(records: Records) -> Iterator[tuple[str, Table]]:
    """The tables of the layer studies, by name, of the records of one model."""
    model = model_sentence(records)
    note = f"{model} {UPDATE_CAPTION}"
    yield "weight_update", Table("", note, update_table(records))
    for text, column in ("calibration", "error"), ("held-out", "heldout"):
        note = f"{model} On {text} text. {MASK_CAPTION}"
        yield "mask", Table(text, note, mask_table(records, column))


# ------------------------------------------------------------------ all tables of a plan


def all_tables(records: Records) -> dict[str, list[Table]]:
    """Every table that the records allow, by name: a list, since each model has its own.

    `all_tables(records)["perplexity"][0].frame` is a DataFrame.
    """
    tables = defaultdict(list)
    for model, runs in by_model(records).items():
        for kind in (pruning_tables, zero_shot_tables, layer_tables, beyond_tables):
            for name, table in kind(runs):
                if table.frame is not None:
                    about = f"{model} {table.about}".strip()
                    tables[name].append(table._replace(about=about))
    return dict(tables)


def write_tables(records: Records, folder: str | Path) -> list[Path]:
    """Write every table of `all_tables` as NAME.md and return the paths.

    Raises FileError if the folder cannot be written.
    """
    return [
        replace_file(
            Path(folder) / f"{name}.md", "\n".join(table.markdown for table in tables)
        )
        for name, tables in sorted(all_tables(records).items())
    ]
