"""The benchmarks' record as a page of tables: a pure function of the record.

A benchmark without a reporter here gets a plain table of each list of rows in its result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from benchmarks import memory, model, solver
from helpers.results import format_number, to_markdown

Result = Mapping[str, Any]

HEAD = """# Speed and memory, as ratios within one run

Things to be compared ran alternately on the same machine. A cell is the median over the rounds,
with quartiles in brackets.
"""


def to_page(record: Mapping[str, Any]) -> str:
    """The whole record in Markdown, a section for each benchmark."""
    parts = [HEAD]
    for name, entry in record["benchmarks"].items():
        make = REPORTERS.get(name, plain_report)
        text = [f"## {name}"]
        if entry["quick"]:
            text.append("A quick trial on toy sizes: the numbers mean nothing.")
        text += [machine_line(entry["machine"], entry["seconds"]), *_older_rows(entry["result"])]
        parts.append("\n\n".join([*text, *make(entry["result"])]).rstrip() + "\n")
    return "\n".join(parts)


def machine_line(machine: Mapping[str, Any], seconds: float | None = None) -> str:
    """One line on where and when, and the warning if the machine was busy."""
    load, threads = machine["load"], machine["threads"]
    line = (
        f"{machine['cpu']}, {machine['cores']} cores, {threads} thread{'s' * (threads > 1)}; "
        f"{machine['gpu']}; torch {machine['torch']}; load average before the start "
        f"{'not known' if load is None else load}; commit {machine['commit']}; {machine['date']}"
    )
    if seconds is not None:
        line += f"; took {seconds:.0f} s"
    return line + "." + (f" **Warning: {machine['warning']}.**" if machine["warning"] else "")


def _older_rows(result: Result) -> list[str]:
    """A line for each row that a run of some cases only has left from before."""
    rows = [row for row in result.get("rows", []) if "machine" in row]
    return [f"{row['case']}: {machine_line(row['machine'])}" for row in rows]


def spread(found: Mapping[str, float] | None) -> str:
    """Median and quartiles as text; a dash for what was not measured."""
    if found is None:
        return "–"
    middle = format_number(found["median"])
    if found["repeats"] == 1:
        return middle
    return f"{middle} ({format_number(found['q1'])} to {format_number(found['q3'])})"


def extremes(found: Mapping[str, float] | None) -> str:
    """Smallest and largest as text."""
    if found is None:
        return "–"
    return f"{format_number(found['min'])} to {format_number(found['max'])}"


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table, the first column to the left."""
    frame = pd.DataFrame(rows)
    return to_markdown(frame.set_index(frame.columns[0])).rstrip()


def verdict(what: str, values: list[float], target: float, at_most: bool = True) -> str:
    """How many of the values reach a target."""
    met = sum(value <= target if at_most else value >= target for value in values)
    bound = "at most" if at_most else "at least"
    return f"{what}: target {bound} {target:g}, met in {met} of {len(values)}."


def _medians(rows: list[Result], key: str) -> list[float]:
    return [row[key]["median"] for row in rows if row[key] is not None]


def _differences(row: Result) -> dict[str, float | None]:
    found = row["difference"] or {"mean": None, "largest": None}
    return {"mean errors differ by": found["mean"], "a layer's by at most": found["largest"]}


def solver_report(result: Result) -> list[str]:
    """The solver over its floor, and where its time goes."""
    rows = result["rows"]
    made = [
        {
            "layers (outputs x inputs)": row["case"],
            "on": row["device"] if row["device"] != "cpu" else f"cpu, {row['threads']} thr.",
            "ours (s)": row["seconds"]["ours"]["median"],
            "floor (s)": row["seconds"]["floor"]["median"],
            "ours / floor": spread(row["ratio"]),
            "min to max": extremes(row["ratio"]),
            "rounds": row["ratio"]["repeats"],
            "with checks and error / floor": spread(row["method"]),
            "published path / floor": spread(row["published"]),
            **_differences(row),
        }
        for row in rows
    ]
    text = [
        "Floor: 21 products for each layer and one Cholesky inverse for the gram that the layers "
        "share, bare. Ours: `admm_grad`, 20 iterations, sparsity 0.6.",
        verdict("Ours / floor", _medians(rows, "ratio"), solver.TARGET),
        "Plans run with one thread a run. Selection of masks stays on one thread, so with more it "
        "weighs more, most of all in small layers; layers of one input are solved one after the "
        "other, not stacked.",
        table(made),
    ]
    if parts := result.get("parts"):
        shares = [
            {"part": name, "share (%)": 100 * share} for name, share in parts["shares"].items()
        ]
        text += [f"Where the time of a {parts['case']} layer goes on a CPU:", table(shares)]
    return text


def model_report(result: Result) -> list[str]:
    """Pruning over two forward passes and the solver; the published path; batches."""
    rows = result["rows"]
    return [
        "Ratio: `prune_model` over two bare forward passes and the solver. Neither the grams nor "
        "the gate (once a run: the arguments are recorded and the replay is compared with the "
        "model's logits) are in the denominator; the next columns leave them out above too.",
        verdict("Ratio", _medians(rows, "ratio"), model.TARGET),
        table([_floor_row(row) for row in rows]),
        verdict(
            "Published path / ours", _medians(rows, "published"), model.PUBLISHED_TARGET, False
        ),
        table([_published_row(row) for row in rows]),
        "Forward passes through the blocks by batch:",
        table([_batch_row(row) for row in result["forward"]]),
    ]


def _floor_row(row: Result) -> dict[str, Any]:
    return {
        "model": f"{row['case']}, {row['sequences']} x {row['length']} tokens",
        "on": row["device"],
        "prune_model (s)": row["seconds"]["ours"]["median"],
        "forward twice (s)": row["seconds"]["forward twice"]["median"],
        "solver (s)": row["seconds"]["solver"]["median"],
        "ratio": spread(row["ratio"]),
        "without grams": spread(row["without grams"]),
        "without gate": spread(row["without gate"]),
        "without both": spread(row["without grams and gate"]),
        "gram share": spread(row["gram share"]),
        "gate share": spread(row["gate share"]),
    }


def _published_row(row: Result) -> dict[str, Any]:
    return {
        "model": row["case"],
        "on": row["device"],
        "published path (s)": row["seconds"]["published"]["median"],
        "published path / ours": spread(row["published"]),
        "min to max": extremes(row["published"]),
        **_differences(row),
    }


def _batch_row(row: Result) -> dict[str, Any]:
    return {
        "model": row["case"],
        "on": row["device"],
        "batch": row["batch"],
        "tokens a second": spread(row["tokens a second"]),
        "speed relative to batch 1": spread(row["speed"]),
    }


def growth_report(result: Result) -> list[str]:
    """Fitted exponents beside theory's."""
    made = [
        {
            "cost": curve["name"],
            "grows with": curve["variable"],
            "sizes": f"{curve['sizes'][0]} to {curve['sizes'][-1]}",
            "seconds": f"{format_number(curve['seconds'][0]['min'])} to "
            f"{format_number(curve['seconds'][-1]['min'])}",
            "theory": curve["theory"],
            "fitted": f"{curve['fitted']:.2f}",
            "at the top": f"{curve['top']:.2f}",
        }
        for curve in result["curves"]
    ]
    return [
        "seconds ~ size^exponent, by least squares on logarithms of the fastest run at each size; "
        "at the top: between the two largest sizes. The parity gate, some forward passes a run, "
        "does not grow with the sequences.",
        table(made),
    ]


def memory_report(result: Result) -> list[str]:
    """Peaks under the limit beside their predictions."""
    rows = result["rows"]
    made = [_memory_row(row) for row in memory.rows_in_gigabytes(rows)]
    gaps = [abs(row["peak / predicted"] - 1) for row in rows]
    text = [
        "Peak: resident memory of `prune_checkpoint` beyond the process before it, in a process "
        "whose address space is limited. Predicted: `checkpoint_memory`.",
        verdict("Gap between peak and prediction", gaps, memory.TARGET),
        verdict(
            "Peak over one block, its grams and the activations",
            [row["peak / those"] for row in rows],
            memory.BARE_TARGET,
        ),
        "What is beyond those: for ADMM the factoring of the largest gram, four matrices of its "
        "size, for Wanda the score of the largest layer and its copy. The minutes are beside other "
        "work.",
        table(made),
    ]
    if result["left out"]:
        text.append(f"Left out (not enough disk, or no Linux): {', '.join(result['left out'])}.")
    return text


def _memory_row(row: Result) -> dict[str, Any]:
    return {
        "model": row["case"],
        "method": row["method"],
        "tokens": row["tokens"],
        "model (GB)": row["model"],
        "limit (GB)": row["limit"],
        "from_pretrained": "fits" if row["from_pretrained fits"] else "does not fit",
        "peak (GB)": row["peak"],
        "predicted (GB)": row["predicted"],
        "peak / predicted": row["peak / predicted"],
        "block + grams + activations (GB)": row["block + grams + activations"],
        "peak / those": row["peak / those"],
        "minutes": row["minutes"],
        "perplexity's peak (GB)": row["peak of perplexity"],
    }


def explorers_report(result: Result) -> list[str]:
    """Seconds of each answer, and how many are within their target."""
    rows = result["rows"]
    made = [
        {
            "explorer, control": row["case"],
            "layer": row["layer"],
            "seconds": spread(row["seconds"]),
            "min to max": extremes(row["seconds"]),
            "target": row["target"],
        }
        for row in rows
    ]
    shares = [row["seconds"]["median"] / row["target"] for row in rows]
    return [
        "From the change of a control to the new PNG, with the layer's gram already computed. All "
        "outputs are solved; every change but that of the iteration shown is a new solve.",
        verdict("Seconds over their target", shares, 1.0),
        table(made),
    ]


def plain_report(result: Result) -> list[str]:
    """A table of each list of rows; summaries as median and quartiles, other nesting left out."""
    text = []
    for name, rows in result.items():
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            text += [f"{name}:", table([_plain_row(row) for row in rows])]
    return text


def _plain_row(row: Result) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict) and "median" in value:
            cells[key] = spread(value)
        elif value is None or isinstance(value, (str, int, float)):
            cells[key] = value
    return cells


REPORTERS: dict[str, Callable[[Result], list[str]]] = {
    "solver": solver_report,
    "model": model_report,
    "growth": growth_report,
    "memory": memory_report,
    "explorers": explorers_report,
}
