"""The benchmarks' record as a page of tables: a pure function of the record."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from benchmarks import architecture, model, passes, repair, solver, zero_shot
from benchmarks.machine import timed_code
from reproduction.markdown import format_number, to_markdown, with_half
from reproduction.runs import confidence_interval

Result = Mapping[str, Any]
Columns = Mapping[str, str | Callable[[Result], Any]]

HEAD = """# Speed

Seconds depend on the machine, so what is compared took turns on one machine; the ratios count.
A cell is the median over the rounds, with the quartiles in brackets. The embedded model is a 4-bit
file converted back to float32.
"""


EARLIER = "**Of earlier code**: what is timed here was changed since."


def to_page(record: Mapping[str, Any]) -> str:
    """Write the whole record in Markdown, a section for each benchmark."""
    parts = [HEAD]
    for name, entry in record["benchmarks"].items():
        text = [f"## {name}"]
        if entry["quick"]:
            text.append("A quick trial on toy sizes: the numbers mean nothing.")
        text.append(_machine_line(entry["machine"], f"; took {entry['seconds']:.0f} s"))
        if entry["code"] != timed_code(name):
            text.append(EARLIER)
        parts.append(
            "\n\n".join([*text, *REPORTERS[name](entry["result"])]).rstrip() + "\n"
        )
    return "\n".join(parts)


def _machine_line(machine: Mapping[str, Any], end: str = "") -> str:
    """Describe machine and date in one line, with the warning if the machine was busy."""
    load, threads = machine["load"], machine["threads"]
    warning = f" **Warning: {machine['warning']}.**" if machine["warning"] else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {threads} thread{'s' * (threads > 1)}; "
        f"{machine['gpu']}; torch {machine['torch']}; load average before the start "
        f"{'not known' if load is None else load}; commit {machine['commit']}; "
        f"{machine['date']}{end}.{warning}"
    )


def _table(rows: list[Result], columns: Columns) -> str:
    """Make a Markdown table; columns map a heading to a key of the rows or a function of a row."""
    cells = [
        {
            head: _cell(what(row) if callable(what) else row[what])
            for head, what in columns.items()
        }
        for row in rows
    ]
    frame = pd.DataFrame(cells, columns=list(columns))
    return to_markdown(frame.set_index(frame.columns[0])).rstrip()


def _cell(value: Any) -> Any:
    """Format a summary as its median and quartiles; return anything else unchanged."""
    if not isinstance(value, dict):
        return value
    middle, *ends = (format_number(value[name]) for name in ("median", "q1", "q3"))
    return middle if value["repeats"] == 1 else f"{middle} ({' to '.join(ends)})"


def _extremes(key: str) -> Callable[[Result], str]:
    """Column with the minimum and maximum of a summary."""
    return lambda row: (
        f"{format_number(row[key]['min'])} to {format_number(row[key]['max'])}"
    )


def _seconds(name: str) -> Callable[[Result], float]:
    """Column with the median seconds of one timed run."""
    return lambda row: row["seconds"][name]["median"]


def _verdict(
    what: str, values: list[float], target: float, at_most: bool = True
) -> str:
    """Say how many of the values reach a target."""
    met = sum(value <= target if at_most else value >= target for value in values)
    bound = "at most" if at_most else "at least"
    return f"{what}: target {bound} {target:g}, met in {met} of {len(values)}."


def _medians(rows: list[Result], key: str) -> list[float]:
    return [row[key]["median"] for row in rows if row[key] is not None]


DIFFERENCES: Columns = {
    "mean errors differ by": lambda row: (
        row["difference"] and row["difference"]["mean"]
    ),
    "a layer's by at most": lambda row: (
        row["difference"] and row["difference"]["largest"]
    ),
}


def solver_report(result: Result) -> list[str]:
    """Section on the solver over its floor."""
    rows, ratios = result["rows"], _medians(result["rows"], "ratio")
    columns: Columns = {
        "layers (outputs x inputs)": "case",
        "on": lambda r: (
            r["device"] if r["device"] != "cpu" else f"cpu, {r['threads']} thr."
        ),
        "ours (s)": _seconds("ours"),
        "floor (s)": _seconds("floor"),
        "ours / floor": "ratio",
        "min to max": _extremes("ratio"),
        "rounds": lambda row: row["ratio"]["repeats"],
        "with checks and error / floor": "method",
        "published path / floor": "published",
    }
    return [
        "The floor is the work that the algorithm cannot avoid: 21 matmuls for each layer "
        "and one Cholesky inverse for the gram (Gram matrix) that the layers share. Ours is "
        "ADMM-Grad with 20 iterations at sparsity 0.6.",
        f"Ours / floor over all cases: {statistics.fmean(ratios):.2f} in the mean. "
        + _verdict("Each", ratios, solver.TARGET),
        "Plans use one thread for each run. The selection of masks uses one thread in any case, "
        "so it weighs more where there are more threads, above all in small layers. Layers that "
        "share an input are solved one after the other, not stacked.",
        _table(rows, {**columns, **DIFFERENCES}),
    ]


def model_report(result: Result) -> list[str]:
    """Section on pruning over two forward passes and the solver, and on the published path."""
    rows = result["rows"]
    floor: Columns = {
        "model": lambda r: f"{r['case']}, {r['sequences']} x {r['length']} tokens",
        "on": "device",
        "prune_model (s)": _seconds("ours"),
        "forward twice (s)": _seconds("forward twice"),
        "solver (s)": _seconds("solver"),
        "ratio": "ratio",
        "without gate": "without gate",
        "gate share": "gate share",
    }
    path: Columns = {
        "model": "case",
        "on": "device",
        "published path (s)": _seconds("published"),
        "published path / ours": "published",
        "min to max": _extremes("published"),
    }
    ratios = _medians(rows, "published")
    return [
        "The ratio is the time of `prune_model` over that of two plain forward passes and the "
        "solver. This leaves out the grams and the gate (once in each run, the replayed blocks "
        "are compared with the model's own logits); the last columns leave the gate out of the "
        "time of `prune_model` too, and give its share in it.",
        _verdict("Ratio", _medians(rows, "ratio"), model.TARGET),
        _table(rows, floor),
        _verdict(
            "Published path / ours", ratios, model.PUBLISHED_TARGET, at_most=False
        ),
        _table(rows, {**path, **DIFFERENCES}),
    ]


def passes_report(result: Result) -> list[str]:
    """Section on one pass over two, over Wanda, and on the published path over one pass."""
    rows = result["rows"]
    columns: Columns = {"model": "case", "on": "device"}
    columns |= {f"{name} (s)": _seconds(name) for name in (*passes.RUNS, "published")}
    columns |= {
        "one pass / two": "one over two",
        "one pass / wanda": "one over wanda",
        "bfloat16 / wanda": "lower over wanda",
        "published path / one pass": "published over one",
    }
    return [
        "With one pass the text waits inside a block while its layers are pruned, so that no "
        "matmul is computed twice. Only forward passes are in bfloat16, not the solver.",
        _verdict("ADMM-Grad with one pass / Wanda with two", _medians(rows, "one over wanda"),
                 passes.TARGET),
        _verdict("The same in bfloat16", _medians(rows, "lower over wanda"), passes.TARGET),
        _table(rows, columns),
    ]  # fmt: skip


def repair_report(result: Result) -> list[str]:
    """Section on the parts of a step of the repair."""
    columns: Columns = {"model": "case", "words": "words", "matmuls": "precision"}
    columns |= {f"{name} (s)": _seconds(name) for name in ("step", *repair.PARTS)}
    columns["share of the vocabulary"] = "share"
    return [
        f"A step on a window of {repair.LENGTH} tokens: the dense and the pruned model forward, "
        "the pruned one backward. The parts are timed one by one in a second step, and need not "
        "add up to the first; the share of the vocabulary is that of heads and divergence in them.",
        _table(result["rows"], columns),
    ]


def zero_shot_report(result: Result) -> list[str]:
    """Section on trees of tokens, over lm-eval's own model, task by task, and on batches."""
    rows = result["rows"]
    columns: Columns = {
        "task": "task",
        "items": "items",
        "lm-eval's (s)": _seconds("stock"),
        "ours (s)": _seconds("ours"),
        "ours / lm-eval's": "ratio",
        "log-likelihoods differ by at most": "difference",
        "items with another answer": "turned",
    }
    batches: Columns = {
        "threads": "threads",
        "batch": "batch",
        "tokens of a pass, at most": "tokens",
        "ours / lm-eval's": "ratio",
    }
    return [
        f"The embedded model on {result['device']}, with one thread, as plans run it, and batches "
        f"of {zero_shot.BATCH}, the function's default; the plans' runs have batches of 4, whose "
        "share stands in the last table. The targets are of the first. lm-eval's own model runs "
        "the context of an item again for each of its choices; here texts are trees, in which each "
        "shared beginning runs once (`helpers/model/token_trees.py`). BoolQ, RTE, WinoGrande and "
        "LAMBADA have one text to run for each context, and save only logits that are not needed.",
        _verdict(
            "Ours / lm-eval's over all tasks",
            _medians(rows[-1:], "ratio"),
            zero_shot.TARGET,
        ),
        _verdict("Of each task", _medians(rows[:-1], "ratio"), zero_shot.EACH),
        _table(rows, columns),
        f"All tasks together, fewer items and one round, by the batch, over lm-eval's own with "
        f"batches of {zero_shot.BATCH}:",
        _table(result["batches"], batches),
    ]


def use_report(result: Result) -> list[str]:
    """Section on bytes and tokens a second, by sparsity."""
    sizes = [{"sparsity": row["sparsity"], **row["share"]} for row in result["sizes"]]
    speeds = pd.DataFrame(result["speeds"])
    speeds["sparsity"] = [f"{100 * sparsity:.0f} %" for sparsity in speeds["sparsity"]]
    text = [
        f"Bytes over those of dense float16 ({result['sizes'][0]['dense']:,}), embedding included. "
        "A mask takes a bit for each weight, and with it only kept values are stored; zstd "
        "compresses the same bytes.",
        _table(sizes, {name: name for name in sizes[0]}),
        f"Tokens a second at batch 1 on {result['device']}, float32 unless stated. "
        "Prefill reads a text; generation writes one token after the other (OpenVINO: one token "
        "without a cache). Dense matmuls do not skip zeros.",
    ]
    for what in ("prefill", "generation"):
        table = speeds.pivot_table(
            index="products", columns="sparsity", values=what, sort=False
        )
        text += [
            f"{what.capitalize()}:",
            to_markdown(table.rename_axis(columns=None)).rstrip(),
        ]
    return text


def architecture_report(result: Result) -> list[str]:
    """Section on perplexity on both texts, share of the gap closed, and seconds, by sparsity."""
    runs = pd.DataFrame(result["runs"])
    seeds = runs["seed"].nunique()
    text = [
        f"A GPT-2 with {result['layers']:,} parameters in its blocks, trained here on "
        f"{result['tokens']:,} tokens of Wikipedia and of task texts, instead of the embedded "
        "Llama: the recipe was not tuned on it. Perplexity on Wikipedia articles that it "
        f"has not seen, and on C4 text; means of {seeds} calibration seeds, ± half of "
        "Student's 95 % interval. Closed: the share of ln(perplexity / dense) after ADMM-Grad "
        "with the same seed that is removed. Seconds are relative to ADMM-Grad with two passes and "
        "the same seed; medians.",
    ]
    dense = runs[runs["sparsity"] == 0]
    for sparsity, pruned in runs[runs["sparsity"] > 0].groupby("sparsity"):
        part = pd.concat([dense, pruned])
        seconds = part.pivot(index="seed", columns="pipeline", values="seconds")
        times = seconds.div(seconds["admm-grad"], axis=0).median()
        rows = []
        for pipeline, draws in part.groupby("pipeline", sort=False):
            row = {"pipeline": pipeline}
            for name in ("wiki", "web"):
                row[name] = _with_interval(draws[name])
                row[f"{name}, closed (%)"] = 100 * architecture.closed(
                    part, pipeline, name
                )
            rows.append(row | {"seconds / ADMM-Grad's": times[pipeline]})
        text += [
            f"{100 * sparsity:.0f} %:",
            _table(rows, {name: name for name in rows[0]}),
        ]
    return text


def _with_interval(values: pd.Series) -> str:
    """Mean ± half of Student's 95 % interval, as in every table of the project."""
    return with_half(*confidence_interval(values))


REPORTERS: dict[str, Callable[[Result], list[str]]] = {
    "solver": solver_report,
    "model": model_report,
    "passes": passes_report,
    "repair": repair_report,
    "zero_shot": zero_shot_report,
    "use": use_report,
    "architecture": architecture_report,
}
