"""What claims rest on: the values of a quantity in each calibration draw, or layer problem.

A quantity of a model is measured in pairs of runs of one calibration draw (a sample of the text),
one setting and one processor, on the same questions. A quantity of a layer is measured on problems:
a layer at a sparsity, on one mask.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from helpers.paths import ZERO_SHOT_NOTEBOOK, reference_dir, results_dir
from reproduction.pipelines import BASE, pipeline_table
from reproduction.pipelines import NOTEBOOK as PIPELINES
from reproduction.records import Record, Records, read_records, record_id
from reproduction.runs import (
    CELL,
    PRUNE_NOTEBOOK,
    as_change,
    confidence_interval,
    processor_of,
    runs_frame,
    with_series,
)
from reproduction.tables import DAMPING

RECIPE = f"{BASE} + recipe"
SEVEN = (  # the tasks of the paper's table, as the plan `paper` has them
    *("boolq", "rte", "hellaswag", "winogrande"),
    *("arc_easy", "arc_challenge", "openbookqa"),
)
PAIR = ["at", "draw", "setting", "machine", "questions"]  # what a pair shares
RUN = [
    *("record", "notebook", "label", *PAIR, "timed", "scale", "perplexity"),
    *(
        "mean_layer_error",
        "prune_seconds",
        "solve_seconds",
        "perplexity_dense",
        "seconds",
        "admm_seconds",
    ),
]
# notebook 02's, as in `reproduction.studies.updates`, whose torch takes seconds to import
RHOS = (0.1, 0.3, 1.0, 3.0, 10.0)
LIGHT_DAMPING = 0.01
ENOUGH = 0.01  # an objective this close to its optimum counts as having arrived
FLAT = 1.1  # a best learning rate at an end that is no better than this is not cut off
ROUNDING = 1e-6  # an excess smaller than this is the rounding of float32
Row = dict[str, Any]  # of a series


# ------------------------------------------------------------------ the quantities


class Quantity(NamedTuple):
    """What is measured, and how it is printed."""

    words: str
    number: str = "{:.2g}"
    scale: float = 1.0
    unit: str = ""
    notebook: str = ""  # whose runs it is measured on; "": on layer problems
    # columns of pairs of runs, where those of the other run end in "_": "value" and, of answers,
    # "error" and "shared"
    measure: Callable[[pd.DataFrame], dict[str, Any]] | None = None
    logarithm: bool = False  # the values are logarithms of ratios, printed as changes
    timed: bool = False  # seconds, which decide only in runs that were timed alone

    def show(self, value: float, half: float = math.nan) -> str:
        """A value, and ± half of its interval unless that is NaN: "−28.4 ± 3.0 %".

        Of a change whose ± would reach below −100 % the ends of its interval: "−98 % (−99 to −90)".
        """
        text = self.number.format(self.scale * value)
        if text.strip("+-0.") == "":
            text = text.lstrip("+-")  # zero has no sign
        if self.logarithm and half >= 1 + value:
            far = half / (1 + value)  # of the logarithm
            ends = (math.expm1(math.log1p(value) + side * far) for side in (-1, 1))
            text += f"{self.unit} ({' to '.join(map(self.show, ends))})"
            return text.replace("-", "−")
        if half >= 0:
            text += " ± " + self.number.replace("+", "").format(self.scale * half)
        return text.replace("-", "−").replace("inf", "∞") + self.unit


def _change(
    words: str, column: str, notebook: str = PRUNE_NOTEBOOK, timed: bool = False
) -> Quantity:
    """The change of a number from the other run of a pair to this one."""

    def measure(pairs: pd.DataFrame) -> dict[str, Any]:
        return {"value": np.log(pairs[column] / pairs[f"{column}_"])}

    return Quantity(words, "{:+.1f}", 100, " %", notebook, measure, True, timed)


def _closed(pairs: pd.DataFrame) -> dict[str, Any]:
    """The share of ln(perplexity / dense) of the other run that this one has no longer."""
    gap = np.log(pairs["perplexity_"] / pairs["perplexity_dense_"])
    return {"value": np.log(pairs["perplexity_"] / pairs["perplexity"]) / gap}


def _answers(pairs: pd.DataFrame, only: Sequence[str] = ()) -> dict[str, Any]:
    """The share of questions that one run answers rightly beyond that of the other, over tasks.

    With "error", its standard error over questions, and "shared", the same over the tasks of which
    another draw of the column answers some of these questions too. Tasks are taken as independent.
    only: some of the tasks.
    """
    asked = defaultdict(set)  # the draws that answer a question
    for at, draw, record in pairs[["at", "draw", "record"]].itertuples(index=False):
        for name, task in record["series"]["zero_shot"].items():
            for item in task["items"]:
                asked[at, name, item].add(draw)
    rows = []
    for pair in pairs.itertuples():
        tasks, others = (
            run["series"]["zero_shot"] for run in (pair.record, pair.record_)
        )
        steps = {
            name: np.subtract(task["acc"], others[name]["acc"])
            for name, task in tasks.items()
            if not only or name in only
        }
        errors = {name: stats.sem(step) for name, step in steps.items()}
        shared = [
            error
            for name, error in errors.items()
            if any(len(asked[pair.at, name, q]) > 1 for q in tasks[name]["items"])
        ]
        count = max(len(steps), 1)
        means = [step.mean() for step in steps.values()]
        luck = (np.linalg.norm(some) / count for some in ([*errors.values()], shared))
        rows.append((np.mean(means) if means else math.nan, *luck))
    columns = pd.DataFrame(rows, pairs.index, ["value", "error", "shared"], dtype=float)
    return dict(columns.items())


QUANTITIES = {
    # of pairs of runs
    "perplexity": _change("perplexity", "perplexity"),
    "repaired": _change("perplexity after the repair", "perplexity", PIPELINES),
    "seconds": _change("seconds", "prune_seconds", timed=True),
    "solving": _change("seconds of solving alone", "solve_seconds", timed=True),
    "layers": _change("mean error of the layers", "mean_layer_error"),
    "seven": Quantity(
        "share of right answers on the paper's 7 tasks",
        "{:+.3f}",
        notebook=ZERO_SHOT_NOTEBOOK,
        measure=lambda pairs: _answers(pairs, SEVEN),
    ),
    "answers": Quantity(
        "share of right answers on all tasks",
        "{:+.3f}",
        notebook=ZERO_SHOT_NOTEBOOK,
        measure=_answers,
    ),
    "lambada": Quantity(
        "share of right answers on LAMBADA",
        "{:+.3f}",
        notebook=ZERO_SHOT_NOTEBOOK,
        measure=lambda pairs: _answers(pairs, ["lambada_openai"]),
    ),
    "closed": Quantity(
        "share of ADMM-Grad's gap closed", "{:.1f}", 100, " %", PIPELINES, _closed
    ),
    "times": Quantity(
        "seconds",
        "{:.2f}",
        unit=" times ADMM-Grad's",
        notebook=PIPELINES,
        measure=lambda pairs: {"value": pairs["seconds"] / pairs["admm_seconds_"]},
        timed=True,
    ),
    # of layer problems
    "gradient iterations": Quantity("iterations of the best gradient method / ADMM's"),
    "gradient seconds": Quantity(
        "seconds of the best gradient method / ADMM's", "{:.3g}", timed=True
    ),
    "cg iterations": Quantity("iterations of conjugate gradients / ADMM's"),
    "cg seconds": Quantity("seconds of conjugate gradients / ADMM's", timed=True),
    "error": Quantity("ADMM's error / SparseGPT's"),
    "heldout": Quantity("the same on held-out text"),
    "error, damping": Quantity("the same with SparseGPT's damping, 0.01, in ADMM too"),
    "excess": Quantity("objective above its optimum", scale=100, unit=" %"),
    "unscaled": Quantity("iterations without preconditioning, at the best ρ"),
    "one rho": Quantity("iterations at ρ = 1 / at the best ρ"),
    "one rho, unscaled": Quantity("the same without preconditioning"),
} | {
    f"rho {rho:g}{name}": Quantity(f"iterations at ρ = {rho:g}{words}")
    for name, words in {"": "", ", unscaled": ", without preconditioning"}.items()
    for rho in RHOS
}


# logarithms of ratios of perplexities, which are means over windows
WINDOWED = ("perplexity", "repaired")


class Draws:
    """The runs and the layer problems of the records of one model."""

    def __init__(self, records: Records, full: Records | None = None) -> None:
        """full: records of the plan `full`, by default the committed ones."""
        records = list(records)
        self.own = self.all = _runs(records)
        if (self.own["label"] == RECIPE).any():
            # the plan `beyond` scores the recipe alone, with the questions of the plan `full`; the
            # runs of another model have another setting, and make no pair
            if full is None:
                full = read_records(reference_dir("full") / "records")
            self.all = pd.concat([self.own, _runs(list(full))])
        columns = ["quantity", "at", "timed", "scale", "layer", "ids", "value"]
        self.problems = pd.DataFrame(_problem_values(records), columns=columns)

    def of(self, quantity: str, of: str, against: str) -> pd.DataFrame:
        """The values of a quantity, a row for each pair of runs, or for each layer problem.

        of, against: the labels of the two runs of a pair. Columns: at, the column of the tables, ""
        for problems; value, NaN where nothing is known; timed, alone; scale; ids, of the records;
        of pairs also draw, error and shared, that of all questions and of those that draws share,
        and windows, the value in each evaluation window, None where it was not kept; of problems
        the layer.
        """
        notebook, measure = QUANTITIES[quantity].notebook, QUANTITIES[quantity].measure
        if not notebook:
            return self.problems[self.problems["quantity"] == quantity]
        ours, theirs = (
            runs[(runs["label"] == label) & (runs["notebook"] == notebook)]
            for runs, label in ((self.own, of), (self.all, against))
        )
        pairs = ours.merge(theirs, on=PAIR, suffixes=("", "_"))
        both = list(zip(pairs["record"], pairs["record_"], strict=True))
        pairs = pairs.assign(
            timed=pairs["timed"] & pairs["timed_"],
            ids=[tuple(map(record_id, pair)) for pair in both],
            windows=[
                by_window(*pair) if quantity in WINDOWED else None for pair in both
            ],
            error=0.0,
            shared=0.0,
        )
        return pairs.assign(**measure(pairs)).dropna(subset="value")

    def change(
        self, quantity: str, of: str, against: str, at: str
    ) -> tuple[float, float, int]:
        """A change in the pairs of one column, half of its 95 % interval, and the draws.

        Half is NaN below three draws.
        """
        pairs = self.of(quantity, of, against)
        # several records of one draw count once
        values = pairs[pairs["at"] == at].groupby("draw")["value"].mean()
        return *as_change(*confidence_interval(values)), len(values)


def against(
    method: str, rivals: Sequence[str], plan: str = "full", at: str = "60 %"
) -> pd.DataFrame:
    """The change of a method's perplexity from each rival's, a row a rival: for one of your own.

    Over pairs of one calibration sample, setting and processor, among this machine's records of a
    plan and the committed ones; ± is half of Student's 95 % interval, NaN below three pairs: the
    last column says what is missing.
    """
    folders = (results_dir(plan), reference_dir(plan))
    records = [run for folder in folders for run in read_records(folder / "records")]
    draws, rows = Draws(records), {}
    for rival in rivals:
        change, half, pairs = draws.change("perplexity", method, rival, at)
        rows[rival] = {"change (%)": 100 * change, "±": 100 * half, "pairs": pairs}
        rows[rival]["missing"] = _missing(draws, method, rival, at) if pairs < 3 else ""
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("against")


def _missing(draws: Draws, method: str, rival: str, at: str) -> str:
    """Why runs of two methods make fewer than three pairs, in words that fit into a column."""
    runs = draws.own[
        (draws.own["at"] == at) & (draws.own["notebook"] == PRUNE_NOTEBOOK)
    ]
    ours, theirs = (runs[runs["label"] == label] for label in (method, rival))
    for label, own in ((method, ours), (rival, theirs)):
        if own.empty:
            return f"no run of {label} at {at}"
    pairs = ours.merge(
        theirs, on=[name for name in PAIR if name != "machine"], suffixes=("", "_")
    )
    same = pairs["machine"] == pairs["machine_"]
    if not (elsewhere := set(pairs["draw"]) - set(pairs["draw"][same])):
        return "± takes three samples that both have"
    apart = pairs[pairs["draw"].isin(elsewhere)]
    processors = (apart[name].str[0] for name in ("machine", "machine_"))
    what = "processor" if np.not_equal(*processors).all() else "device"
    return f"{len(elsewhere)} of another {what}: run {rival} here"


def by_window(run: Record, other: Record) -> np.ndarray | None:
    """Differences of the mean loss, in nats per token, in each evaluation window of two runs.

    None where a record does not hold it.
    """
    losses = [
        ((record["series"] or {}).get("window_losses") or {}).get("perplexity")
        for record in (run, other)
    ]
    return np.subtract(*losses) if all(losses) else None


def _runs(records: list[Record]) -> pd.DataFrame:
    """The runs of notebooks 04 and 05 and the pipelines of 08, in the setting of most of each.

    Columns: RUN; label is that of the method with its options, or the pipeline.
    """
    tables = []
    for name in (PRUNE_NOTEBOOK, ZERO_SHOT_NOTEBOOK):
        table = runs_frame(records, name)
        tables.append(table.assign(draw=table["seed"].map(str)))
    pipelines = pipeline_table(records)
    if len(pipelines):
        draws = pipelines["draw"].map(str)
        tables.append(pipelines.assign(label=pipelines["pipeline"], draw=draws))
    runs = pd.concat(tables).query("usual")
    return runs.assign(
        at=runs["target"],
        notebook=runs["record"].map(lambda run: run["notebook"]),
        setting=runs["record"].map(_setting),
        questions=runs["record"].map(_questions),
        scale=runs["record"].map(_scale),
    ).reindex(columns=RUN)


def _setting(record: Record) -> str:
    """The parameters that the runs of a pair share; of pipelines those in one setting are left."""
    parameters = record["parameters"]
    keys = parameters.keys() - CELL if record["notebook"] != PIPELINES else ()
    return json.dumps({key: parameters[key] for key in keys}, sort_keys=True)


def _questions(record: Record) -> str:
    """The zero-shot questions of a run; "" without any."""
    tasks = (record["series"] or {}).get("zero_shot", {})
    return json.dumps(
        {name: task["items"] for name, task in tasks.items()}, sort_keys=True
    )


class Scale(NamedTuple):
    """How large a run is, in words; "" for what it lacks."""

    calibration: str  # "32 x 512 tokens"
    evaluation: str  # "12 windows of 1024 tokens", "10 tasks, 2,000 questions"
    processor: str

    def __str__(self) -> str:
        sizes = ", ".join(filter(None, self[:2]))
        return f"{sizes} on {self.processor}"


def _scale(record: Record) -> Scale:
    """How large a run is: its calibration text, what it was evaluated on, and the processor."""
    parameters = record["parameters"]
    calibration, evaluation = "", []
    if "sequences" in parameters:
        calibration = "{sequences} x {length} tokens".format_map(parameters)
    if parameters.get("windows"):
        evaluation.append("{windows} windows of {window} tokens".format_map(parameters))
    tasks = (record["series"] or {}).get("zero_shot", {}).values()
    if tasks:
        questions = sum(len(task["items"]) for task in tasks)
        many = "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"
        evaluation.append(f"{many}, {questions:,} questions")
    processor = processor_of(record) or "an unknown processor"
    return Scale(calibration, ", ".join(evaluation), processor)


# ------------------------------------------------------------------ layer problems


def _problem_values(records: Records) -> Iterator[Row]:
    """Each quantity of each layer and sparsity of the update study (notebook 02), where it was run.

    ADMM counts with the study's damping.
    """
    for record in with_series(records, "update"):
        parameters = record["parameters"]
        own = {"at": "", "timed": record.get("timed", False), "scale": _scale(record)}
        own["ids"] = (record_id(record),)
        # the rows of a study of one layer may not name it
        update, curves = (
            [{"layer": parameters["layer"]} | row for row in record["series"][name]]
            for name in ("update", "curves")
        )
        for layer, sparsity in sorted(
            {(row["layer"], row["sparsity"]) for row in update}
        ):
            problem = {"layer": layer, "sparsity": sparsity}
            values = _values_of_problem(
                _matching(update, **problem),
                _matching(curves, **problem),
                parameters.get("damping", DAMPING),
            )
            block = (parameters.get("block"), layer)
            for quantity, value in values.items():
                yield own | {"quantity": quantity, "layer": block, "value": value}


def _values_of_problem(
    update: list[Row], curves: list[Row], damping: float
) -> dict[str, float]:
    """The quantities of one problem; NaN where nothing is known, absent what was not run."""
    values = {}
    admm = _matching(curves, solver="admm", damping=damping)
    scaled, unscaled = (_matching(admm, precondition=on) for on in (True, False))
    ours = _matching(
        update,
        solver="admm",
        damping=damping,
        iterations=20,
        precondition=True,
        rho=1.0,
    )
    light = _matching(
        update, solver="admm", damping=LIGHT_DAMPING, iterations=20, rho=1.0
    )
    for done in ours:  # one, or none
        values["excess"] = done["excess"]
        for sparsegpt in _matching(update, solver="sparsegpt"):
            for text in ("error", "heldout"):
                values[text] = done[text] / sparsegpt[text]
            for other in light:
                values["error, damping"] = other["error"] / sparsegpt["error"]
        for rival, solvers in {"gradient": ("adam", "sgd"), "cg": ("cg",)}.items():
            own = [curve for curve in curves if curve["solver"] in solvers]
            for unit in ("iterations", "seconds"):
                values[f"{rival} {unit}"] = _race(own, done, unit)
    if unscaled:
        values["unscaled"] = cost_to_reach(unscaled, ENOUGH, "iterations")
    for name, own in {"one rho": scaled, "one rho, unscaled": unscaled}.items():
        if len({curve["rho"] for curve in own}) > 1:
            best = cost_to_reach(own, ENOUGH, "iterations")
            one = cost_to_reach(_matching(own, rho=1.0), ENOUGH, "iterations")
            # where no ρ gets there, ρ = 1 does not fit either
            values[name] = one / best if best < math.inf else math.inf
            for rho in RHOS:
                if at_rho := _matching(own, rho=rho):
                    each = name.replace("one rho", f"rho {rho:g}")
                    values[each] = cost_to_reach(at_rho, ENOUGH, "iterations")
    return {name: value for name, value in values.items() if value is not None}


def _matching(rows: Iterable[Row], **values: Any) -> list[Row]:
    """The rows of a series that have these values."""
    return [row for row in rows if values.items() <= row.items()]


def cost_to_reach(curves: Iterable[Row], excess: float, unit: str) -> float:
    """The least iterations or seconds in which any of the curves gets to an excess, or inf.

    Between two points the logarithm of the excess is taken as straight, so that a curve with few
    points is not charged up to its next one.
    """
    least = math.inf
    for curve in curves:
        before = None
        for cost, reached in zip(curve[unit], curve["excess"], strict=True):
            if reached <= excess:
                if before and min(excess, reached) > 0:
                    start, high = before
                    share = math.log(high / excess) / math.log(high / reached)
                    cost = start + share * (cost - start)
                least = min(least, cost)
                break
            before = (cost, reached)
    return least


def _race(curves: Sequence[Row], ours: Row, unit: str) -> float | None:
    """How many times ADMM's cost the rivals need to get where ADMM is; inf if they never do.

    None if they were stopped before ADMM's own cost, which does not beat them (one that diverged at
    once has no point). NaN if they need more, but a rate beyond those tried could have been better.
    """
    excess = max(ours["excess"], ROUNDING)
    spent = cost_to_reach(curves, excess, unit)
    longest = max((curve[unit][-1] for curve in curves if curve[unit]), default=0)
    if spent == math.inf and longest < ours[unit]:
        return None
    ratio = spent / ours[unit]
    if ratio > 1:
        for solver in {curve["solver"] for curve in curves}:
            if not _tuned(_matching(curves, solver=solver), excess, unit):
                return math.nan
    return ratio


def _tuned(curves: Sequence[Row], excess: float, unit: str) -> bool:
    """Whether no learning rate at an end of those tried is better than what lies between them."""
    rates = sorted({curve["learning_rate"] for curve in curves} - {None})
    between = [curve for curve in curves if curve["learning_rate"] in rates[1:-1]]
    best, inner = (cost_to_reach(some, excess, unit) for some in (curves, between))
    return not rates or inner <= FLAT * best
