"""Figures in words, from the records that they are drawn of: for those who do not see them.

Every figure that `helpers.results.plots.figures` draws has its words here: a title, how it is to be read,
and what it shows with numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import pandas as pd

from helpers.results.claims import ENOUGH, Findings, Problem, cost_to_reach
from helpers.errors import RecordError, allowed
from helpers.results.plots import (
    RACERS,
    block_errors,
    choose_layers,
    common_sparsity,
    prune_records,
)
from helpers.results.tables import (
    USUAL,
    column_of,
    cost_table,
    format_number,
    perplexity_table,
    target_name,
    variant_table,
    zero_shot_table,
)

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Words:
    """A figure in words: its title, how to read it, and what it shows."""

    title: str
    reading: str
    finding: str


def describe(name: str, records: Sequence[Record]) -> Words:
    """The words of a figure by its name in `helpers.results.plots.figures`, from the same records.

    Raises RecordError for a name that is not known, and where the records cannot have drawn it.
    """
    kind = kind_of(name)
    if kind not in DESCRIBERS:
        raise RecordError(f"figure {name!r} has no words: choose one of {allowed(DESCRIBERS)}")
    if kind != name:
        model = name.removeprefix(f"{kind}_")
        records = [record for record in records if _short_model(record) == model]
    return DESCRIBERS[kind](records)


def kind_of(name: str) -> str:
    """The kind of a figure: its name without the model, which is in it where there are several."""
    for kind in sorted(DESCRIBERS, key=len, reverse=True):
        if name == kind or name.startswith(f"{kind}_"):
            return kind
    return name


def _short_model(record: Record) -> str:
    """The model as `figures` names it."""
    return str(record["parameters"].get("model", "")).rsplit("/", 1)[-1].lower()


def _listed(parts: Iterable[str]) -> str:
    """Parts of a sentence: "a, b and c"."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _percent(value: float) -> str:
    return f"{100 * value:.4g} %"


# ------------------------------------------------------------------ records of 04_prune_model


def _perplexity(records: Sequence[Record]) -> Words:
    frame = perplexity_table(records)
    pruned = frame.drop(index="dense", errors="ignore")
    reading = (
        "Perplexity on a log scale. Left, against sparsity, a line a method; right, for N:M "
        "patterns. Whiskers span the seeds; the dashed line is the dense model."
    )
    parts = []
    for column in pruned.columns:
        cells = pruned[column].dropna()
        if len(cells):
            best, worst = cells.idxmin(), cells.idxmax()
            parts.append(
                f"at {column} {format_number(cells[best])} ({best}) "
                f"and {format_number(cells[worst])} ({worst})"
            )
    found = []
    if "dense" in frame.index:
        found.append(f"The dense model has {format_number(frame.loc['dense'].iloc[0])}.")
    if parts:
        found.append(f"Lowest and highest after pruning: {'; '.join(parts)}.")
    return Words("Perplexity after pruning", reading, " ".join(found))


def _layer_error(records: Sequence[Record]) -> Words:
    sparsity = common_sparsity(run for run, _ in prune_records(records))
    if sparsity is None:
        raise RecordError("no record has layer errors: draw no such figure")
    curves: dict[str, dict[int, float]] = {}
    for record, label in prune_records(records):
        errors = block_errors(record.get("layers") or [])
        if errors and column_of(record) == target_name("unstructured", sparsity):
            curves.setdefault(label, errors)
    means = {label: mean(errors.values()) for label, errors in curves.items()}
    best = min(means, key=means.get)
    worst_block = max(curves[best], key=curves[best].get)
    parts = [f"{label} {format_number(value)}" for label, value in means.items()]
    return Words(
        "Error by depth",
        f"Mean relative error of the layers of a block at {_percent(sparsity)}, a line a method; "
        "block 0 is next to the embedding.",
        f"Mean over blocks: {_listed(parts)}. The lowest, {best}, has its largest error in block "
        f"{worst_block} ({format_number(curves[best][worst_block])}).",
    )


def _cost(records: Sequence[Record]) -> Words:
    table = cost_table(records).drop(index="dense", errors="ignore")
    seconds = table["prune (s)"].dropna()
    parts = [f"{label} {format_number(value)} s" for label, value in seconds.items()]
    shared = (table["forward (s)"].fillna(0) + table["gram (s)"].fillna(0)).max()
    finding = f"To prune the whole model takes {_listed(parts)}." if parts else "No times recorded."
    if shared > 0:
        finding += f" Up to {format_number(shared)} s of it are forward passes and grams, "
        finding += "the same work for every method that sees text."
    return Words(
        "Where the time goes",
        "Mean seconds to prune the whole model, a bar a method, in parts: forward passes, grams, "
        "solving, choosing the mask.",
        finding,
    )


def _variants(records: Sequence[Record]) -> Words:
    table = variant_table(records)
    if table is None:
        raise RecordError("no record is of a variant: draw no such figure")
    parts = [
        f"{label} {row['change (%)']:+.1f} %"
        + ("" if math.isnan(row["± (%)"]) else f" ± {row['± (%)']:.1f}")
        + (" (one seed)" if row["seeds"] == 1 else "")
        for label, row in table.sort_values("change (%)").iterrows()
    ]
    return Words(
        "Changed options",
        "Change of perplexity against the defaults in percent, a bar an option; to the left is "
        "better. The line on a bar is one standard error of the mean over seeds.",
        f"From best to worst: {'; '.join(parts)}.",
    )


# ------------------------------------------------------------------ zero-shot


def _zero_shot(records: Sequence[Record]) -> Words:
    table = zero_shot_table(records)
    if table is None:
        raise RecordError("no record is of zero-shot tasks: draw no such figure")
    frame, errors = table
    parts = [
        f"{label} {frame.loc[label, 'mean']:.3f} ± {errors.loc[label, 'mean']:.3f}"
        for label in frame.sort_values("mean", ascending=False).index
    ]
    return Words(
        "Zero-shot accuracy",
        "Accuracy on each task and their mean, a bar a model, ± one standard error.",
        f"Mean over {len(frame.columns) - 1} tasks: {'; '.join(parts)}.",
    )


# ------------------------------------------------------------------ the update study


def _arrivals(problems: Sequence[Problem], solver: str) -> list[float]:
    """Iterations within which a solver, at its best rate, gets within 1 % of each optimum."""
    found = []
    for problem in problems:
        curves = [curve for curve in problem.curves if curve["solver"] == solver]
        if solver == "admm":
            curves = [c for c in problem.admm_curves(True) if c["rho"] == USUAL["rho"]]
        if curves:
            found.append(min(cost_to_reach(c, ENOUGH, "iterations") for c in curves))
    return found


def _race(problems: Sequence[Problem]) -> str:
    """Iterations that each solver needs in the median, in words."""
    parts = []
    for solver, name in RACERS.items():
        needed = _arrivals(problems, solver)
        if needed:
            middle = median(needed)
            amount = f"{middle:.2g}" if middle < math.inf else "more than were run"
            parts.append(f"{name} {amount}")
    amount = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    if not parts:
        return "No curves recorded."
    return (
        f"Iterations to come within 1 % of the optimum, median of {amount}, Adam and SGD at their "
        f"best rate: {_listed(parts)}."
    )


def _weight_update(records: Sequence[Record]) -> Words:
    studied = [record for record in records if "curves" in (record.get("series") or {})]
    chosen, sparsity = choose_layers(studied)
    problems = [p for p in Findings(chosen).problems() if p.rows[0]["sparsity"] == sparsity]
    layers = _listed(
        f"block {r['parameters']['block']} {r['parameters']['layer'].rpartition('.')[2]}"
        for r in chosen
    )
    return Words(
        "Solvers on one fixed mask",
        f"Relative error against iterations and against seconds, log axes, at {_percent(sparsity)}:"
        f" {layers}. The dashed line is the exact optimum, the star SparseGPT; thin lines are "
        "other learning rates.",
        _race(problems),
    )


def _weight_update_median(records: Sequence[Record]) -> Words:
    return Words(
        "Solvers over all layers",
        "Excess of the damped objective over its optimum, median over layers and sparsities, log "
        "axes. Left: ADMM and its rivals by iteration; middle: by time, in units of 20 iterations "
        "of ADMM; right: ADMM for each ρ, dashed without preconditioning. The dotted line is 1 %.",
        _race(Findings(records).problems()),
    )


# ------------------------------------------------------------------ series of 01, 02 and 03


def _series(records: Sequence[Record], name: str) -> Mapping[str, Any]:
    """The series that `figures` draws; RecordError if no record has it."""
    for record in records:
        if name in (record.get("series") or {}):
            return record["series"][name]
    raise RecordError(f"no record has the series {name!r}: draw no such figure")


def _summary(records: Sequence[Record]) -> Words:
    ordered = sorted(records, key=lambda record: record.get("name") != "default")
    solved, grown = (_series(ordered, name) for name in ("convergence", "schedule"))
    names = list(solved["error"])
    errors = solved["error"]["ρ = 1" if "ρ = 1" in names else names[0]]
    before, optimum = (limit(solved["references"].values()) for limit in (max, min))
    shares = [
        f"{100 * ratio['paper']:.0f} % ({pattern})"
        for pattern, ratio in grown["ratio"].items()
        if "paper" in ratio
    ]
    model = next(run["parameters"]["model"] for run, _ in prune_records(records))
    frame = perplexity_table(r for r in records if r["parameters"].get("model") == model)
    column = "60 %" if "60 %" in frame.columns else frame.columns[0]
    cells = [f"{label} {format_number(v)}" for label, v in frame[column].dropna().items()]
    return Words(
        "The method in three steps",
        "Left: error of one layer by iteration while ADMM refits it on a fixed mask. Middle: error "
        "with a mask that grows, as a share of the one-shot mask's. Right: perplexity on a log "
        "scale against sparsity, a line a method; the dashed line is the dense model.",
        f"Refitting takes a layer's error from {format_number(before)} to "
        f"{format_number(errors[-1])} (optimum {format_number(optimum)}); a growing mask takes it "
        f"to {_listed(shares)} of the one-shot mask's; the model's perplexity at {column}: "
        f"{'; '.join(cells)}.",
    )


def _convergence(records: Sequence[Record]) -> Words:
    series = _series(records, "convergence")
    last = {name: errors[-1] for name, errors in series["error"].items()}
    parts = [f"{format_number(value)} with {name}" for name, value in last.items()]
    ends = [f"{name}: {format_number(value)}" for name, value in series["references"].items()]
    beside = f" Beside it, {'; '.join(ends)}." if ends else ""
    return Words(
        "ADMM nears the optimum of a layer",
        f"{series['layer']} at {_percent(series['sparsity'])} on a fixed mask, a curve for each ρ, "
        "log axes. Left: relative error by iteration, other solvers as lines; right: distance of "
        "the weights to the exact least-squares optimum.",
        f"After {series['iterations'][-1]} iterations the relative error is "
        f"{_listed(parts)}.{beside}",
    )


def _schedule(records: Sequence[Record]) -> Words:
    series = _series(records, "schedule")
    parts = []
    for pattern, ratios in series["ratio"].items():
        shares = [f"{name} {100 * value:.0f} %" for name, value in ratios.items()]
        parts.append(f"{pattern}: {', '.join(shares)}")
    return Words(
        "Growing the mask",
        "Left: sparsity of the mask at each iteration, a line a schedule. Right: relative error as "
        "a share of the one-shot mask's, a group of bars a pattern.",
        f"Error against one-shot: {'; '.join(parts)}.",
    )


def _spectrum(records: Sequence[Record]) -> Words:
    series = _series(records, "spectrum")
    parts = []
    for name, values in series["eigenvalues"].items():
        ratio = values[0] / max(pd.Series(values).median(), 1e-300)
        norms = series["norms"][name]
        spread = max(norms) / max(pd.Series(norms).median(), 1e-300)
        parts.append(f"{name}: {format_number(ratio)} and {format_number(spread)}")
    return Words(
        "What a gram looks like",
        "Left: eigenvalues of XᵀX as a share of the largest; right: the norm of each input as a "
        "multiple of the median. Largest first, log axes, a line for each group of layers.",
        "The largest eigenvalue and the largest input norm, as multiples of their medians: "
        f"{'; '.join(parts)}.",
    )


DESCRIBERS: dict[str, Callable[[Sequence[Record]], Words]] = {
    "summary": _summary,
    "perplexity": _perplexity,
    "layer_error": _layer_error,
    "cost": _cost,
    "variants": _variants,
    "zero_shot": _zero_shot,
    "weight_update": _weight_update,
    "weight_update_median": _weight_update_median,
    "convergence": _convergence,
    "schedule": _schedule,
    "spectrum": _spectrum,
}
