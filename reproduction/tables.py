"""Tables as pure functions of records, in the paper's shapes, with their notes, and as files.

A cell is the mean over seeds; `reproduction.runs` says which records share a cell.
"""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.data.tasks import TASK_TABLE
from helpers.paths import ZERO_SHOT_NOTEBOOK, replace_file
from reproduction.cells import cells_like, ids_by, records_page
from reproduction.labels import TASK_NAMES, column_key, target_name
from reproduction.markdown import Table
from reproduction.pipelines import BASE, beyond_tables
from reproduction.published import RATIO_CAPTION, ratio_cells, ratio_table
from reproduction.records import Record, record_id, run_seconds
from reproduction.runs import (
    PRUNE_NOTEBOOK,
    SECONDS,
    as_change,
    by_model,
    by_windows,
    half_interval,
    model_sentence,
    of_notebook,
    over_seeds,
    perplexity_runs,
    processor_of,
    runs_frame,
    series_frame,
    setting_sentences,
    with_series,
)

# ------------------------------------------------------------------ the pruning notebook

PERPLEXITY_CAPTION = (
    "± is half of Student's 95 % interval of the mean over samples of the calibration text "
    "(seeds)"
)
NO_INTERVAL = "Too few samples of the calibration text (seeds) for ±"


def perplexity_table(records: Iterable[Record]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Perplexity, methods by sparsity and pattern, and half of its confidence interval.

    The dense model has the same number in every column. NaN: no run, or the interval of one seed.
    Variants, and runs on other windows than most, are left out.
    """
    means, halves = over_seeds(perplexity_runs(records), "label", "perplexity")
    if "dense" in means:
        dense = means.pop("dense")
        if means.empty:
            means["0 %"] = dense  # nothing but the dense model was run
        means = means.apply(lambda column: column.fillna(dense))
    return means.rename_axis("method"), halves


def samples_per_cell(runs: pd.DataFrame) -> pd.Series:
    """How many samples of the calibration text a row of a column has, of methods that read it."""
    reads = ["calibration" in (run["data"] or {}) for run in runs["record"]]
    return runs[reads].groupby(["target", "label"])["seed"].nunique()


def sample_counts(runs: pd.DataFrame) -> str:
    """How many samples of the calibration text each column has: "3 at 50 %, 5 at 60 %"."""
    counts = samples_per_cell(runs)
    if counts.empty:
        return "none"
    columns: dict[str, list[str]] = {}
    for at in sorted(counts.index.unique(0), key=column_key):
        own = sorted(set(counts[at]))
        words = f"{own[0]}" if len(own) == 1 else f"{own[0]} to {own[-1]}"
        columns.setdefault(words, []).append(at)
    if len(columns) == 1:
        return f"{next(iter(columns))} in each column"
    return "; ".join(f"{words} at {', '.join(at)}" for words, at in columns.items())


def window_spread(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """What the choice of evaluation windows adds to perplexities, where records keep their losses.

    Half of Student's 95 % interval over windows, as a share: of each perplexity, and of each of its
    ratios to ADMM-Grad's in the same column and draws, window by window, methods by target; and how
    many windows. Cells without losses, or of too few windows, are NaN or left out.
    """
    losses = {}
    for run in _with_losses(runs).itertuples():
        losses[run.label, run.target, run.seed] = run.losses
    frame = pd.DataFrame(losses).sort_index(axis=1)  # a row for each window
    halves = []
    for label, target in dict.fromkeys(key[:2] for key in frame):
        own, ratio = frame[label, target], math.nan
        if label != BASE and (BASE, target) in frame:
            # of the draws that both have
            steps = (own - frame[BASE, target]).dropna(axis=1, how="all")
            ratio = half_interval(steps.mean(axis=1))
        halves.append((label, target, half_interval(own.mean(axis=1)), ratio))
    table = pd.DataFrame(halves, columns=["method", "target", "alone", "ratio"])
    alone, ratios = (
        table.dropna(subset=name).pivot(index="method", columns="target", values=name)
        for name in ("alone", "ratio")
    )
    return alone, ratios, len(frame)


def _with_losses(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs whose records keep the loss of each evaluation window, with these."""
    series = [run["series"] or {} for run in runs["record"]]
    losses = [each.get("window_losses", {}).get("perplexity") for each in series]
    return runs.assign(losses=losses).dropna(subset="losses")


def window_table(runs: pd.DataFrame) -> Table | None:
    """± of each ratio of a perplexity to ADMM-Grad's over the evaluation windows, in percent."""
    _, ratios, windows = window_spread(runs)
    if ratios.empty:
        return None
    rows = [
        label for label in runs.sort_values("order")["label"] if label in ratios.index
    ]
    columns = sorted(ratios, key=column_key)
    table = 100 * ratios.reindex(dict.fromkeys(rows), columns=columns)
    ids = ids_by(_with_losses(runs), "label", "target")
    cells = cells_like(table, lambda row, column: ids[row, column] + ids[BASE, column])
    note = (
        "What other evaluation windows would move: half of Student's 95 % interval, in percent, of "
        "the ratio of a method's perplexity to ADMM-Grad's, window by window over the "
        f"{windows} windows. Made of the samples whose records keep the loss of each window. (The "
        "page of claims has the inverse, ADMM-Grad's perplexity to a rival's, so its ± is smaller "
        "where the rival's is higher.)"
    )
    return Table(note, table.rename_axis(columns=None), records=cells)


def window_sentence(runs: pd.DataFrame) -> str:
    """`window_spread` in words; "" where no record keeps its losses."""
    alone, ratios, windows = window_spread(runs)
    if alone.empty:
        return ""
    text = (
        f" All share the {windows} evaluation windows, whose choice is not in ±: half of a 95 % "
        f"interval over windows is {100 * np.nanmedian(alone):.0f} % of a perplexity"
    )
    if found := middle_and_ends(ratios):
        low, middle, high = found
        span = f" ({low} to {high} %)" if low != high else ""
        text += (
            f", and {middle} %{span} of its ratio to ADMM-Grad's, magnitude's not counted "
            f"{WINDOWS_FILE}"
        )
    return f"{text}. So compare within the table."


def middle_and_ends(ratios: pd.DataFrame) -> tuple[str, str, str] | None:
    """The least, the median and the largest of the ratios of `window_spread`, in percent.

    Without magnitude pruning: it leaves no usable model, so no comparison rests on its ratio. None
    where there is no other.
    """
    ratios = ratios.drop(index="magnitude", errors="ignore")
    if ratios.empty:
        return None
    found = np.nanquantile(ratios, (0, 0.5, 1), method="nearest")
    low, middle, high = (f"{100 * each:.0f}" for each in found)
    return low, middle, high


WINDOWS_FILE = "(windows.md)"  # what `window_sentence` refers to
COST_CAPTION = (
    "Medians over runs, of all sparsities. Where some of a method's runs were timed alone, only "
    "these count; the seconds of others are only rough, for they may have shared the machine. "
    "Solve holds the checks of a layer and the measuring of its error, which is all of it for "
    "methods without an update; peak memory is the process's, evaluation included."
)


def cost_table(records: Iterable[Record]) -> pd.DataFrame:
    """The paper's overhead table: seconds of each part by method, and peak memory.

    Medians, since a run that shared the machine with something heavy is an outlier. "forward" holds
    the Gram matrices and the parity gate, "solve" the choice of the mask. Of the runs of
    `cost_runs`; alone says of how many of them.
    """
    runs = cost_runs(records)
    groups = runs.groupby("label", sort=False)
    table = groups[SECONDS].median()
    table = table.rename(columns=lambda name: name.replace("_seconds", " (s)"))
    table.insert(0, "runs", groups.size())
    table.insert(1, "alone", groups["timed"].sum())
    table["peak memory (GB)"] = groups["memory"].max()
    return table.rename_axis("method")


def cost_runs(records: Iterable[Record]) -> pd.DataFrame:
    """The runs whose seconds count: those that were timed alone, of a label without any all.

    In the order of the methods, without variants.
    """
    runs = runs_frame(records).query("not variant").sort_values("order")
    alone = runs.groupby("label")["timed"].transform("any")
    return runs[runs["timed"] | ~alone]


VARIANTS_CAPTION = (
    "Other options against the defaults, same cell and same calibration seeds. The change is the "
    "mean over seeds, and ± half of Student's 95 % interval of it, where there are three or more."
)


def variant_table(records: Iterable[Record]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Perplexity with other options against the defaults on the same seeds, by variant and target.

    With half the interval of the change, which is that of the geometric mean, as in the claims.
    Several records of one run count once, with their mean. A variant whose cell has no run of the
    defaults is left out.
    """
    runs = _runs_of_cells(records)
    defaults = runs.query("not variant").groupby("cell")["perplexity"].mean()
    runs["default"] = runs["cell"].map(defaults)
    cells = runs.query("variant").groupby(["label", "target", "cell"], sort=False)
    pairs = cells[["perplexity", "default"]].mean().dropna()
    logs = np.log(pairs["perplexity"] / pairs["default"])
    groups = pairs.groupby(["label", "target"], sort=False)
    logs = logs.groupby(["label", "target"], sort=False)
    change, half = as_change(logs.mean(), logs.agg(half_interval))
    table = groups.mean().assign(**{"change (%)": 100 * change})
    table.insert(0, "seeds", groups.size())
    table = table.rename_axis(index=["variant", "at"]).reset_index("at")
    return table, (100 * half).to_frame("change (%)").set_axis(table.index)


def variant_cells(records: Iterable[Record], table: pd.DataFrame) -> pd.DataFrame:
    """The records of each cell of a `variant_table`: with the options, the defaults, or both."""
    runs = _runs_of_cells(records)
    defaults = ids_by(runs.query("not variant"), "cell")
    # without those that have no run of the defaults to be compared with
    runs = runs[runs["variant"] & runs["cell"].isin([cell for (cell,) in defaults])]
    own = ids_by(runs, "label", "target")
    cells = runs.groupby(["label", "target"])["cell"].unique()
    rows = []
    for row in zip(table.index, table["at"], strict=True):
        theirs = tuple(itertools.chain(*(defaults[cell,] for cell in cells[row])))
        rows.append([(), own[row], own[row], theirs, own[row] + theirs])
    return pd.DataFrame(rows, table.index, table.columns)


def _runs_of_cells(records: Iterable[Record]) -> pd.DataFrame:
    """The runs of the pruning notebook, in order, with the "cell" that options do not decide."""
    runs = runs_frame(records).sort_values("order", kind="stable")
    runs["cell"] = [
        json.dumps(parameters | {"options": None, "device": None}, sort_keys=True)
        for parameters in runs["record"].str["parameters"]
    ]
    return runs


def _perplexities(runs: list[Record]) -> Iterator[Table]:
    """The table of perplexity on each choice of windows, of runs of one model."""
    for group in by_windows(runs):
        table, spread = perplexity_table(group)
        caption = PERPLEXITY_CAPTION if spread.gt(0).any(axis=None) else NO_INTERVAL
        own = perplexity_runs(group)
        note = f"{setting_sentences(group)} {caption}: {sample_counts(own)}."
        note += window_sentence(own)
        if "dense" not in table.index:
            note += " The dense model was not run on these."
        ids = ids_by(own, "label", "target")
        cells = cells_like(
            table, lambda row, column, ids=ids: ids[row, column] or ids[row, "dense"]
        )
        yield Table(note, table, spread, cells)


def pruning_tables(records: Iterable[Record]) -> Iterator[tuple[str, Table]]:
    """The tables of the pruning notebook, by name, of the records of one model."""
    runs = of_notebook(records, PRUNE_NOTEBOOK)
    if not runs:
        return
    for table in _perplexities(runs):
        yield "perplexity", table
    if windows := window_table(perplexity_runs(runs)):
        yield "windows", windows
    setting = setting_sentences(runs)
    devices = "; ".join(sorted({run["device"] for run in runs}))
    note = f"{setting} Device: {devices}. {COST_CAPTION}"
    table = cost_table(runs)
    ids = ids_by(cost_runs(runs), "label")
    yield (
        "cost",
        Table(note, table, records=cells_like(table, lambda row, _: ids[row,])),
    )
    table, spread = variant_table(runs)
    cells = variant_cells(runs, table)
    yield "variants", Table(f"{setting} {VARIANTS_CAPTION}", table, spread, cells)
    table = ratio_table(runs)
    cells = ratio_cells(runs, table)
    note = f"{setting} {RATIO_CAPTION}"
    yield "published_ratios", Table(note, table, records=cells)


# ------------------------------------------------------------------ the zero-shot notebook

QUESTION = ["model", "seed", "task", "item"]


def answers_frame(records: Iterable[Record]) -> pd.DataFrame:
    """The answers of the zero-shot runs, a row for each model, seed, task and question.

    Columns: model, its row in the tables; seed, 0 for the dense model; task, by the paper's name;
    item, the question; acc and acc_norm, 1 where the answer is right, NaN where a task has no
    acc_norm. In the order of the methods; of several answers of a model to a question the last.
    """
    rows = []
    runs = runs_frame(records, ZERO_SHOT_NOTEBOOK)
    for run in runs.sort_values(["order", "target", "seed"]).itertuples():
        seed = run.seed if run.target != "dense" else 0
        model = (_scored_name(run.label, run.target), seed)
        for task, score in run.record["series"]["zero_shot"].items():
            normalised = score["acc_norm"] or itertools.repeat(math.nan)
            answers = zip(score["items"], score["acc"], normalised, strict=False)
            rows += [(*model, TASK_NAMES[task], *answer) for answer in answers]
    table = pd.DataFrame(rows, columns=[*QUESTION, "acc", "acc_norm"])
    return table.drop_duplicates(QUESTION, keep="last")


def _scored_name(label: str, target: str) -> str:
    """The row of a scored model: "admm-grad, 50 %"."""
    return label if target == "dense" else f"{label}, {target}"


def paired_differences(records: Iterable[Record]) -> pd.DataFrame:
    """Differences in acc between each two models on the questions of a task that both were asked.

    Of one seed; the dense model is paired with every seed. Columns: pair ("second − first"), seed,
    task, difference, and those of `_with_errors`.
    """
    answers = answers_frame(records)
    answers["rank"] = pd.factorize(answers["model"])[0]
    pairs = answers.merge(answers, on=["task", "item"], suffixes=("", "_1"))
    pairs = pairs.query("rank_1 < rank and (seed_1 == seed or model_1 == 'dense')")
    pairs = pairs.sort_values(["rank_1", "rank", "seed"])
    pairs["pair"] = pairs["model"] + " − " + pairs["model_1"]
    # two models mostly fail on the same, hard questions: their difference is known far better than
    # either accuracy
    pairs["difference"] = pairs["acc"] - pairs["acc_1"]
    return _with_errors(pairs, "pair", "difference")


def _with_errors(answers: pd.DataFrame, row: str, value: str) -> pd.DataFrame:
    """Means of a value by row, seed and task, with what the choice of items adds to them.

    error: standard error over items of a mean over the seeds. Where these were asked the same
    items, it is that of one seed; other items make it smaller. shared: whether any item was asked
    of two seeds.
    """
    groups = answers.groupby([row, "seed", "task"], sort=False)
    # sem is the sample deviation over √n, as in lm-eval
    cells = groups.agg(
        **{value: (value, "mean")}, error=(value, "sem"), size=("item", "size")
    )
    items = answers.groupby([row, "task"])["item"].agg(asked="size", distinct="nunique")
    cells = cells.reset_index().join(items, on=[row, "task"])
    cells["error"] *= np.sqrt(cells["size"] / cells["distinct"])
    cells["shared"] = cells["asked"] > cells["distinct"]
    return cells[[row, "seed", "task", value, "error", "shared"]]


def _by_task(
    cells: pd.DataFrame, row: str, value: str, error: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Values and standard errors by row and task, with their mean over tasks in the last column.

    Tasks are taken as independent.
    """
    values, errors = (
        cells.pivot_table(number, row, "task", sort=False)
        .reindex(columns=list(TASK_NAMES.values()))
        .dropna(axis=1, how="all")
        .rename_axis(columns=None)
        for number in (value, error)
    )
    errors["mean"] = np.sqrt((errors**2).sum(axis=1)) / values.count(axis=1)
    values["mean"] = values.mean(axis=1)
    # shares of so many questions are often half a printed digit: without its last bits, which
    # differ by the version of pandas, a mean is printed alike everywhere
    return values.round(12), errors


def accuracy_table(
    records: Iterable[Record], metric: str = "acc"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracy and its standard error, in the paper's columns with a mean.

    A row is the mean over seeds of the calibration text. `metric` is "acc" or, for tasks that have
    it, "acc_norm" (normalised by the answers' length).
    """
    answers = answers_frame(records).dropna(subset=metric)
    cells = _with_errors(answers, "model", metric)
    values, errors = _by_task(cells, "model", metric, "error")
    # a mean over fewer tasks than the other rows have could not be compared with theirs
    incomplete = values.isna().any(axis=1)
    for numbers in (values, errors):
        numbers.loc[incomplete, "mean"] = math.nan
    return values, errors


PAIRED_CAPTION = (
    "Paired differences in accuracy on the same items, means over calibration seeds. ± is one "
    "standard error over items here. Bold by the rule of the claims: three seeds at the least, and "
    "the difference exceeds Student's 95 % interval over seeds and, where seeds share items, two "
    "errors over items, added in quadrature; at most one cell in twenty would by chance. Means are "
    "over the tasks of a column."
)


def paired_table(records: Iterable[Record]) -> pd.DataFrame:
    """`paired_differences` as text, "difference ± standard error", means over seeds."""
    pairs = paired_differences(records)
    if pairs.empty:
        return pairs
    values, errors = _by_task(pairs, "pair", "difference", "error")
    draws = pairs.pivot_table("difference", ["pair", "seed"], "task", sort=False)
    draws["mean"] = draws.mean(axis=1)
    halves = draws.groupby("pair").agg(half_interval).reindex_like(values)
    # draws that ask other items have that luck in their interval
    pairs["error"] *= pairs["shared"]
    _, shared = _by_task(pairs, "pair", "difference", "error")
    texts = values.map("{:+.3f}".format) + " ± " + errors.map("{:.3f}".format)
    # as in claims.py: NaN, of too few seeds, is not exceeded
    decided = values.abs() > np.hypot(halves, 2 * shared)
    texts = texts.mask(decided, "**" + texts + "**")
    return texts.where(values.notna()).rename_axis("difference")


def chance_accuracy(accuracy: pd.DataFrame) -> pd.DataFrame:
    """The row of what guessing scores on each task of an accuracy table, and the mean."""
    known = {name: TASK_TABLE[task].chance for task, name in TASK_NAMES.items()}
    chance = pd.Series(known).reindex(accuracy.columns)
    return chance.fillna(chance.mean()).to_frame("chance").T


def _items_note(records: Iterable[Record]) -> str:
    """How many items a task has, whether the same for all, by which harness and processor."""
    answers = answers_frame(records)
    dense = answers["model"] == "dense"
    groups = (answers if dense.all() else answers[~dense]).groupby(
        ["model", "seed", "task"]
    )
    questions = groups["item"].agg(frozenset)
    sizes = questions.map(len)
    amount = " to ".join(map(str, sorted({sizes.min(), sizes.max()})))
    alike = (questions.groupby(["seed", "task"]).nunique() == 1).all()
    if dense.any():  # it answers what any seed of the others is asked
        every = questions.groupby("task").agg(lambda sets: frozenset().union(*sets))
        own = answers[dense].groupby("task")["item"].agg(frozenset)
        alike &= own.equals(every)
    draws = (
        " and seed, others for each seed as far as a task has them"
        if (questions.groupby("task").nunique() > 1).any() and alike
        else ""
    )
    same = "the same" if alike else "not the same"
    runs = of_notebook(records, ZERO_SHOT_NOTEBOOK)
    harness = ", ".join(sorted({run["versions"]["lm-eval"] for run in runs}))
    machines = " and ".join(sorted(set(filter(None, map(processor_of, runs)))))
    where = (
        f" Answered on {machines}: another processor turns some answers."
        if machines
        else ""
    )
    return f"{amount} items a task{draws}, {same} for every model; lm-eval {harness}.{where}"


def zero_shot_tables(records: Iterable[Record]) -> Iterator[tuple[str, Table]]:
    """The tables of the zero-shot notebook, by name, of the records of one model."""
    model = model_sentence(records)
    runs = runs_frame(records, ZERO_SHOT_NOTEBOOK)
    runs["model"] = list(map(_scored_name, runs["label"], runs["target"]))
    ids = {row: own for (row,), own in ids_by(runs, "model").items()}
    pairs = itertools.permutations(ids, 2)
    both = {f"{one} − {other}": ids[one] + ids[other] for one, other in pairs}

    def cells(frame: pd.DataFrame) -> pd.DataFrame:
        return cells_like(frame, lambda row, _: (ids | both).get(row, ()))

    for metric, how in ("acc", ""), ("acc_norm", " normalised by the answers' length"):
        table, errors = accuracy_table(records, metric)
        if not table.empty:
            table = pd.concat([chance_accuracy(table), table]).rename_axis("model")
            note = f"{model} Accuracy{how} ± one standard error over items, means over seeds."
            if metric == "acc" and len(ids) > 1:
                note += " Whether two models differ is told by the paired differences below."
            note += f" {_items_note(records)}"
            parts = (table, errors, cells(table))
            yield "zero_shot", Table(note, *map(_tasks_down, parts))
    table = paired_table(records)
    note = f"{model} {PAIRED_CAPTION}"
    yield (
        "zero_shot",
        Table(note, _tasks_down(table), records=_tasks_down(cells(table))),
    )


def _tasks_down(frame: pd.DataFrame) -> pd.DataFrame:
    """A table with a row for each task: there are more tasks than fit a page side by side."""
    return frame.T.rename_axis(index="task", columns=None)


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


def update_table(records: Iterable[Record]) -> pd.DataFrame:
    """Errors and seconds of each solver of the series "update", means over problems.

    ADMM with other settings than its defaults has a row after 20 iterations only.
    """
    rows = series_frame(records, "update")
    if rows.empty:
        return rows
    rows = rows.query(
        "solver != 'admm' or iterations == 20"
        " or (rho == 1 and precondition == True and damping == @DAMPING)"
    ).copy()
    # None where a solver has no such setting
    settings = ["precondition", "damping", "rho", "iterations"]
    rows[settings] = rows[settings].astype(float)
    rows["rank"] = rows["solver"].map(list(SOLVERS).index)
    rows = rows.sort_values(["rank", *settings])
    named = rows[["solver", "precondition", "damping", "rho"]]
    rows["update"] = [_update_label(*row) for row in named.itertuples(index=False)]
    row = ["update", "iterations"]
    problem = ["record", "layer", "sparsity"]
    groups = rows.groupby([*row, *problem], sort=False, dropna=False)
    best = rows.loc[groups["excess"].idxmin()]
    # the excess is of the damped objective: it says nothing of solvers of another one
    damped = best.eval("solver == 'none' or damping == @DAMPING")
    best["excess"] = 100 * best["excess"].where(damped)
    columns = {
        "problems": ("error", "size"),
        "error": ("error", "mean"),
        "held-out": ("heldout", "mean"),
        "excess, mean (%)": ("excess", "mean"),
        "excess, worst (%)": ("excess", "max"),
        "seconds": ("seconds", "mean"),
    }
    table = best.groupby(row, sort=False, dropna=False).agg(**columns)
    return table.reset_index("iterations").astype({"iterations": "Int64"})


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


def mask_table(records: Iterable[Record], text: str = "error") -> pd.DataFrame:
    """The error of each rule for the mask, in percent of the default's on the same layer.

    Of the series "ablation". A geometric mean over layers, on calibration text ("error") or on
    held-out text ("heldout").
    """
    rules = series_frame(records, "ablation")
    if rules.empty:
        return rules
    rules["target"] = list(map(target_name, rules["pattern"], rules["sparsity"]))
    named = rules[["mask_steps", "schedule", "budget"]]
    rules["rule"] = [_mask_label(*row) for row in named.itertuples(index=False)]
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


def layer_tables(records: Iterable[Record]) -> Iterator[tuple[str, Table]]:
    """The tables of the layer studies, by name, of the records of one model."""
    model = model_sentence(records)

    def cells(table: pd.DataFrame, series: str) -> pd.DataFrame:
        ids = tuple(map(record_id, with_series(records, series)))
        return cells_like(table, lambda *_: ids)

    note = f"{model} {UPDATE_CAPTION}"
    table = update_table(records)
    yield "weight_update", Table(note, table, records=cells(table, "update"))
    for text, column in ("calibration", "error"), ("held-out", "heldout"):
        note = f"{model} On {text} text. {MASK_CAPTION}"
        table = mask_table(records, column)
        yield "mask", Table(note, table, records=cells(table, "ablation"))


# ------------------------------------------------------------------ all tables of a plan


def all_tables(records: Iterable[Record]) -> dict[str, list[Table]]:
    """Every table that the records allow, by name: a list, since each model has its own.

    `all_tables(records)["perplexity"][0].frame` is a DataFrame, and `.records` one with the ids of
    the records that each of its cells is made of.
    """
    tables = defaultdict(list)
    for runs in by_model(records).values():
        for kind in (pruning_tables, zero_shot_tables, layer_tables, beyond_tables):
            for name, table in kind(runs):
                if not table.frame.empty:
                    tables[name].append(table)
    return dict(tables)


def perplexity_tables(records: Iterable[Record]) -> list[Table]:
    """The tables of perplexity alone, without making any other."""
    return [
        table
        for runs in by_model(records).values()
        for table in _perplexities(of_notebook(runs, PRUNE_NOTEBOOK))
        if not table.frame.empty
    ]


def runs_csv(records: Iterable[Record]) -> str:
    """A line for each run, for pandas: its parameters, what it measured, and where it ran."""
    rows = [
        {
            "run": record_id(run),
            "parameters": run["parameters"],
            "metrics": {name: each["value"] for name, each in run["metrics"].items()},
            "minutes": round(run_seconds(run) / 60, 2) if "seconds" in run else None,
            "timed": run.get("timed", False),
            "processor": processor_of(run),
            "commit": (run.get("git") or {}).get("commit"),
        }
        for run in records
    ]
    return pd.json_normalize(rows).dropna(axis=1, how="all").to_csv(index=False)


def write_tables(records: Iterable[Record], folder: str | Path) -> list[Path]:
    """Write all tables of `all_tables` as NAME.md, records.md and runs.csv; return the paths.

    Raises FileError if the folder cannot be written.
    """
    records = list(records)
    tables = all_tables(records)
    texts = {
        name: "\n".join(table.markdown for table in own)
        for name, own in sorted(tables.items())
    }
    if "perplexity" in texts:  # beside the file that it names, so a link leads there
        link = WINDOWS_FILE.replace("windows.md", "[windows](windows.md)")
        texts["perplexity"] = texts["perplexity"].replace(WINDOWS_FILE, link)
    if tables:
        perplexities = {
            record_id(run): run["metrics"]["perplexity"]["value"]
            for run in of_notebook(records, PRUNE_NOTEBOOK)
        }
        plans = {str(run.get("plan")) for run in records}
        plan = plans.pop() if len(plans) == 1 else "<plan>"
        texts["records"] = records_page(tables, perplexities, plan)
    files = {f"{name}.md": text for name, text in texts.items()}
    if tables:
        files["runs.csv"] = runs_csv(records)
    return [replace_file(Path(folder) / name, text) for name, text in files.items()]
