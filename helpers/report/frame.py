"""Records as tables, figures and claims select them: which row, column and setting a run has.

Most runs of a plan share one setting (model, texts, sizes). A run that differs from it in anything
but its cell is labelled with the difference, so that no mean mixes two settings. A run of a method
with other options than its defaults is a variant and is compared with the defaults on its own.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from scipy import stats

Record = Mapping[str, Any]
Row = Mapping[str, Any]  # of a series

PRUNE_NOTEBOOK = "04_prune_model"
ZERO_SHOT_NOTEBOOK = "05_zero_shot"
# names as people write them
NAMES = {
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "admm-grad": "ADMM-Grad",
    "adam": "Adam",
}
NAMES |= {
    n: n.upper() for n in ("admm", "admm1", "alps", "owl", "besa", "csr", "cg", "sgd")
}
METHOD_ORDER = ("dense", "magnitude", "wanda", "sparsegpt", "admm1", "admm-grad")
TASK_NAMES = {"boolq": "BoolQ", "rte": "RTE", "hellaswag": "HellaSwag", "winogrande": "WinoGrande",
              "arc_easy": "ARC-e", "arc_challenge": "ARC-c", "openbookqa": "OBQA",
              "piqa": "PIQA", "sciq": "SciQ", "lambada_openai": "LAMBADA (no breaks)"}  # fmt: skip
USUAL = {"rho": 1.0, "precondition": True, "damping": 0.1}  # ADMM's defaults
ENOUGH = 0.01  # an objective this close to its optimum counts as having arrived
SECONDS = [f"{part}_seconds" for part in ("forward", "solve", "prune", "evaluate")]
NUMBERS = ["perplexity", "mean_layer_error", *SECONDS]
FLAGS = ["variant", "usual", "timed"]
COLUMNS = ["record", "label", "target", "method", "pattern", "options", "seed"]
# what the names of embedded models and texts stand for
CONVERTED = "(embedded: a 4-bit file converted back, de-quantised)"
EMBEDDED = {"model": {"embedded": f"SmolLM2-135M-Instruct {CONVERTED}",
                      "embedded-gemma": f"Gemma-3-270M {CONVERTED}"},
            "evaluation": {"embedded": "Wikipedia text (embedded)"},
            "calibration": {"embedded": "C4 text (embedded)"}}  # fmt: skip
# these make the row and the columns; the rest of the parameters is the setting
CELL = ("method", "effort", "sparsity", "pattern", "options", "device", "calibration_seed",
        "tasks", "limit")  # fmt: skip
CALIBRATION = ("calibration", "sequences", "length")
WINDOWS = (
    "evaluation",
    "windows",
    "window",
    "web_windows",
)  # what a perplexity is measured on


def caption(function: Callable[..., Any], paragraph: int = 0) -> str:
    """A paragraph of a function's docstring in one line: what a page says of a table or a claim."""
    return " ".join(inspect.getdoc(function).split("\n\n")[paragraph].split())


def in_words(label: str) -> str:
    """A label as people write it: "ADMM-Grad, OWL" for "admm-grad, owl"."""
    label = re.sub(
        r"\b[a-z]\w*\.(?=[a-z])", "", label
    )  # self_attn.q_proj: the layer's own name
    label = re.sub(r"[\w-]+", lambda word: NAMES.get(word[0], word[0]), label)
    return re.sub(r"^(dense|magnitude)\b", lambda word: word[0].capitalize(), label)


def record_id(record: Record) -> str:
    """The id of the run that a record is of: `<notebook>--<name>`."""
    return f"{record['notebook']}--{record['name']}"


def target_name(pattern: str, sparsity: float) -> str:
    """A pattern as it is, unstructured pruning as its sparsity: "60 %"."""
    return f"{100 * sparsity:.4g} %" if pattern == "unstructured" else pattern


def row_key(label: str) -> tuple[int, str]:
    """Sorts rows: methods in the paper's order, variants after their method, others at the end."""
    method = label.partition(" ")[0]
    known = method in METHOD_ORDER
    return (METHOD_ORDER.index(method) if known else len(METHOD_ORDER), label)


def column_key(column: str) -> tuple[float, ...]:
    """Sorts columns: dense, then sparsities, then patterns by the size of their groups."""
    if ":" in column:
        kept, group = map(int, column.split(":"))
        return 2, group, kept
    return (0,) if column == "dense" else (1, float(column.split()[0]))


def by_model(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each model; those that are of no model are left out."""
    models: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if "model" in record["parameters"]:
            models[str(record["parameters"]["model"])].append(record)
    return dict(models)


def by_windows(records: Iterable[Record]) -> list[list[Record]]:
    """The records of each set of evaluation windows, the largest group first.

    Perplexities on different windows cannot be compared.
    """
    groups: dict[tuple, list[Record]] = defaultdict(list)
    for record in records:
        groups[tuple(record["parameters"].get(name) for name in WINDOWS)].append(record)
    return sorted(groups.values(), key=len, reverse=True)


def common_parameters(records: Iterable[Record]) -> dict[str, Any]:
    """The most frequent value of each parameter that is part of the setting."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for key, value in record["parameters"].items():
            if key not in CELL:
                counts[key][json.dumps(value, sort_keys=True)] += 1
    return {
        key: json.loads(count.most_common(1)[0][0]) for key, count in counts.items()
    }


def about_model(records: Iterable[Record]) -> str:
    """A sentence on the model that most of these runs share."""
    name = common_parameters(records).get("model")
    return f"Model: {EMBEDDED['model'].get(name, name)}."


def setting(records: Sequence[Record]) -> str:
    """One line on the setting that most of these runs of the pruning notebook share."""
    begun = any(
        "start_token" in (r.get("data") or {}).get("evaluation", ()) for r in records
    )
    # a record made by hand may lack some of the parameters
    common = defaultdict(lambda: "?", common_parameters(records))
    common |= {
        key: names.get(common[key], common[key]) for key, names in EMBEDDED.items()
    }
    common |= {
        "all": common["windows"] or "all",
        "begun": ", after a start token" if begun else "",
    }
    return (
        "Model: {model}. Perplexity on {evaluation}, {all} windows of {window} tokens{begun}. "
        "Calibration on {calibration}, {sequences} x {length} tokens."
    ).format_map(common)


def prune_runs(records: Iterable[Record]) -> list[Record]:
    """The records of the pruning notebook."""
    return [record for record in records if record["notebook"] == PRUNE_NOTEBOOK]


def method_name(parameters: Mapping[str, Any]) -> str:
    """The method of a run; with an effort the recipe was applied to it: "admm-grad + recipe"."""
    effort = parameters.get("effort")
    if not effort:
        return parameters["method"]
    return (
        f"{parameters['method']} + {'' if effort == 'balanced' else f'{effort} '}recipe"
    )


def in_brackets(name: str, options: Mapping[str, Any] | None) -> str:
    """A name with options: "admm-grad (iterations=50)"."""
    details = [f"{key}={value}" for key, value in sorted((options or {}).items())]
    return f"{name} ({', '.join(details)})" if details else name


def run_frame(
    records: Iterable[Record],
    notebook: str = PRUNE_NOTEBOOK,
    cell: Sequence[str] = CELL,
) -> pd.DataFrame:
    """The runs of a notebook that prunes or scores, a row each in the order given.

    Columns: record; label, its row in the tables: the method, and whatever sets it apart from most
    runs; target, its column: the pattern, the sparsity in percent, or "dense"; method; pattern;
    options, as JSON; seed; variant, whether it has options while its method was run without too;
    usual, whether its setting is that of most runs; timed, whether it was timed alone; and the
    value of every metric, NaN where a record lacks it; NUMBERS are always there.
    """
    runs = [record for record in records if record["notebook"] == notebook]
    common = common_parameters(runs)
    plain = {
        method_name(r["parameters"]) for r in runs if not r["parameters"].get("options")
    }
    rows = []
    for record in runs:
        given = record["parameters"]
        method, options = method_name(given), given.get("options") or {}
        pattern = given.get("pattern", "unstructured")
        # a run that read no calibration text is the same run whatever the calibration would be
        read = "calibration" in (record.get("data") or {})
        setting = given.keys() - {*cell, *(() if read else CALIBRATION)}
        apart = {key: given[key] for key in setting if common[key] != given[key]}
        rows.append({name: metric["value"] for name, metric in record["metrics"].items()} | {
            "record": record,
            "label": in_brackets(method, options | apart),
            "target": "dense" if method == "dense" else target_name(pattern, given["sparsity"]),
            "method": method,
            "pattern": pattern,
            "options": json.dumps(options, sort_keys=True),
            "seed": given.get("calibration_seed", 0),
            "variant": bool(options) and method in plain,
            "usual": not apart,
            "timed": record.get("timed", False),
        })  # fmt: skip
    table = pd.DataFrame(rows)
    table = table.reindex(
        columns=list(dict.fromkeys([*COLUMNS, *FLAGS, *NUMBERS, *table]))
    )
    return table.astype(dict.fromkeys(FLAGS, bool) | dict.fromkeys(NUMBERS, float))


def prune_frame(records: Iterable[Record]) -> pd.DataFrame:
    """The runs of the pruning notebook without variants, as `run_frame` has them."""
    return run_frame(records).query("not variant")


def perplexity_cells(records: Iterable[Record]) -> pd.DataFrame:
    """Perplexity by label and target (`over_seeds`), on the windows that most runs share."""
    most = next(iter(by_windows(prune_runs(records))), [])
    return over_seeds(prune_frame(most), "label", "perplexity")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of draws and half of Student's 95 % interval of it; NaN of one draw.

    What ± stands for in every table, unless its caption says otherwise.
    """
    draws = pd.Series(list(values), dtype=float)
    return draws.mean(), stats.t.ppf(0.975, len(draws) - 1) * draws.sem()


def over_seeds(runs: pd.DataFrame, row: str, number: str) -> pd.DataFrame:
    """A number by row and target: "mean" and "median" over seeds, and "half" of the `interval`.

    A seed of several records counts once, with their mean; half is NaN for one seed.
    """
    seeds = runs.groupby([row, "target", "seed"], sort=False)[number].mean().dropna()
    cells = seeds.groupby(level=[row, "target"])
    return cells.agg(
        mean="mean", median="median", half=lambda values: interval(values)[1]
    )


def by_target(values: pd.Series, rows: Iterable[str]) -> pd.DataFrame:
    """Values by row and target as a table with its rows in this order, and its columns in order."""
    wide = values.unstack("target")
    wide = wide.reindex(index=list(rows), columns=sorted(wide.columns, key=column_key))
    return wide.rename_axis(columns=None)


def with_series(records: Iterable[Record], name: str) -> list[Record]:
    """The records that have the series of that name."""
    return [record for record in records if name in (record.get("series") or {})]


def series_of(records: Iterable[Record], name: str) -> Mapping[str, Any] | None:
    """The series of that name, of the record "default" if it has one, else of the first."""
    having = with_series(records, name)
    first = min(
        having, key=lambda record: record.get("name") != "default", default=None
    )
    return first and first["series"][name]


def series_rows(records: Iterable[Record], name: str) -> list[dict[str, Any]]:
    """The rows of a series that is a list, of all records, each with its "record" (a number)."""
    having = enumerate(with_series(records, name))
    return [
        row | {"record": number} for number, r in having for row in r["series"][name]
    ]


def matching(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows of a series that have these values."""
    return [
        row for row in rows if all(row[name] == value for name, value in wanted.items())
    ]


def cost_to_reach(curves: Iterable[Row], excess: float, unit: str) -> float:
    """The least iterations or seconds in which any of the curves gets to an excess, or inf.

    Between two points the logarithm of the excess is taken as straight, so that a curve with few
    points is not charged up to its next one.
    """
    costs = [math.inf]
    for curve in curves:
        before = None
        for cost, reached in zip(curve[unit], curve["excess"], strict=True):
            if reached <= excess:
                if before and min(excess, reached) > 0:
                    start, high = before
                    share = math.log(high / excess) / math.log(high / reached)
                    cost = start + share * (cost - start)
                costs.append(cost)
                break
            before = (cost, reached)
    return min(costs)


# of ADMM with its defaults after 20 iterations; of SparseGPT; ADMM's iterations to within 1 % of
# the optimum at the best ρ, with and without preconditioning, and at ρ = 1; how many ρ were tried
MEASURES = ("excess", "error", "heldout", "iterations", "seconds", "sparsegpt_error",
            "sparsegpt_heldout", "scaled", "unscaled", "one_rho", "rhos")  # fmt: skip


def problem_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row for a layer at a sparsity in the update study; what was not run is NaN.

    Columns: layer; timed, whether the run was timed alone; MEASURES; curves, all of them. ADMM
    counts with the study's damping.
    """
    rows = []
    for record in records:
        series, given = record.get("series") or {}, record["parameters"]
        admm = {"solver": "admm", "damping": given.get("damping", USUAL["damping"])}
        for sparsity in sorted({row["sparsity"] for row in series.get("update", ())}):
            update, curves = (
                matching(series[s], sparsity=sparsity) for s in ("update", "curves")
            )
            ended = matching(
                update, **admm, precondition=True, iterations=20, rho=USUAL["rho"]
            )
            row = {name: ended[-1][name] if ended else None for name in MEASURES[:5]}
            other = next(iter(matching(update, solver="sparsegpt")), {})
            row |= {
                f"sparsegpt_{name}": other.get(name) for name in ("error", "heldout")
            }
            scaled, unscaled = (
                matching(curves, **admm, precondition=p) for p in (True, False)
            )
            usual = matching(scaled, rho=USUAL["rho"])
            for name, some in (
                ("scaled", scaled),
                ("unscaled", unscaled),
                ("one_rho", usual),
            ):
                row[name] = cost_to_reach(some, ENOUGH, "iterations") if some else None
            row |= {"rhos": len({curve["rho"] for curve in scaled})}
            row |= {"layer": (given.get("block"), given["layer"])}
            row |= {"timed": record.get("timed", False), "curves": curves}
            rows.append(row)
    columns = ["layer", "timed", *MEASURES, "curves"]
    types = {"timed": bool} | dict.fromkeys(MEASURES, float)
    return pd.DataFrame(rows, columns=columns).astype(types)
