"""Tables of the layer studies of notebooks 02 and 03: weight updates, and rules for the mask."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from helpers.report.labels import column_key, target_name
from helpers.report.markdown import Table
from helpers.report.records import Records
from helpers.report.runs_table import model_sentence, series_table

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
    "count with the rate that is best for a problem after so many iterations, and only its own "
    "seconds count."
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
    problems = rows.groupby(["rank", *settings, "record", "sparsity"], dropna=False)
    best = rows.loc[problems["excess"].idxmin().sort_index()]
    # the excess is of the damped objective: it says nothing of solvers of another one
    own = best.eval("solver == 'none' or damping == @DAMPING")
    best["excess"] = 100 * best["excess"].where(own)
    groups = best.groupby(["rank", "solver", *settings], dropna=False)
    table = groups[["error", "heldout", "excess", "seconds"]].mean()
    table.insert(0, "problems", groups.size())
    table.insert(4, "excess, worst (%)", groups["excess"].max())
    names = {"heldout": "held-out", "excess": "excess, mean (%)"}
    table = table.rename(columns=names)
    iterations = table.index.get_level_values("iterations").astype("Int64")
    table.insert(0, "iterations", iterations)
    labels = [_update_label(*key[1:-1]) for key in table.index]
    return table.set_axis(labels).rename_axis("update")


def _update_label(solver: str, precondition: float, damping: float, rho: float) -> str:
    """The name of a solver with the settings that are not its defaults; NaN is no setting."""
    details = []
    if solver == "admm":
        details.append(f"ρ = {rho:g}")
    if solver in ("adam", "sgd"):
        details.append("best rate")
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
    rules["rule"] = [
        _mask_label(rule.mask_steps, rule.schedule, rule.budget)
        for rule in rules.itertuples()
    ]
    problem = ["record", "block", "layer", "target"]
    errors = rules.pivot_table(index=problem, columns="rule", values=text)
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
