"""Pipelines that prune and repair (notebook 08): their tables, and what they gain for the time.

A run gives two pipelines: its layers alone, measured before the repair, and the repaired model. So
the row of "admm-grad" comes from every run that starts with it, and the two are of the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from helpers.report import frame
from helpers.report.frame import Record

NOTEBOOK = "08_beyond_the_paper"
BASE = "admm-grad"  # with one sparsity and no options: what every pipeline is compared with
GUIDED = f"{BASE}, guide, one pass"  # as in the recipe
# what makes a pipeline, beside the method and its options
PLAIN = {"allocation": "", "guide_sequences": 4, "passes": 2, "repair": "", "repair_windows": 0,
         "precision": "float32"}  # fmt: skip


def _steps(parameters: Mapping[str, Any]) -> str:
    """What was done beside the method, without the repair."""
    given = PLAIN | dict(parameters)
    text = f", {given['allocation']}" if given["allocation"] else ""
    if (
        given["allocation"] == "guide"
        and given["guide_sequences"] != PLAIN["guide_sequences"]
    ):
        text += f" ({given['guide_sequences']})"
    text += ", one pass" if given["passes"] == 1 else ""
    return text if given["precision"] == "float32" else f"{text}, {given['precision']}"


def _repair(parameters: Mapping[str, Any]) -> str:
    if not (parts := parameters.get("repair")):
        return ""
    return f" + distil{'' if parts == 'all' else f' {parts}'} ({parameters['repair_windows']})"


def pipeline_title(parameters: Mapping[str, Any]) -> str:
    """What a run of notebook 04, 05 or 08 does: "admm-grad, owl + distil (64) at 60 %"."""
    if parameters["method"] == "dense":
        return "dense"
    target = frame.target_name(parameters["pattern"], parameters["sparsity"] or 0.0)
    name = frame.in_brackets(frame.method_name(parameters), parameters.get("options"))
    return f"{name}{_steps(parameters)}{_repair(parameters)} at {target}"


def pipeline_frame(records: Iterable[Record]) -> pd.DataFrame:
    """A row for the layers of each run of notebook 08, and one for the model once it is repaired.

    Columns: those of `run_frame`, where perplexity, perplexity_web and seconds are those of the
    pipeline; pipeline; stem, without its repair; repair; order, of the rows in a table; machine;
    memory, the peak in GB; admm_seconds, of ADMM-Grad's layers with two passes, in the same run if
    it prunes so, else the mean of such runs at its target on its kind of machine, of its seed if
    there are any; times, seconds / admm_seconds; closed, the share of ln(perplexity / dense) of
    plain ADMM-Grad with the same seed and target that is gone. NaN where something was not run, and
    once runs were timed alone in the seconds of those that were not.
    """
    layers = frame.run_frame(records, NOTEBOOK, cell=(*frame.CELL, *PLAIN))
    if layers.empty:
        return layers.assign(pipeline="", closed=math.nan, times=math.nan)
    given = [record["parameters"] for record in layers["record"]]
    steps = pd.Series(map(_steps, given), layers.index)
    plain = (layers["label"] == BASE) & ~steps.str.contains("one pass|bfloat16")
    counted = layers["timed"] | (not layers["timed"].any())
    layers = layers.assign(
        stem=layers["label"] + steps,
        repair=list(map(_repair, given)),
        machine=[f"{(record.get('platform') or {}).get('processor')}, {record['device']}"
                 for record in layers["record"]],
        memory=[record["peak_memory_bytes"] / 1e9 for record in layers["record"]],
        admm_seconds=layers["prune_seconds"].where(plain & counted),
        seconds=layers["total_seconds"].where(counted),
    )  # fmt: skip
    whole = layers[layers["repair"] != ""]
    layers = layers.assign(
        # the peak of a run is that of its repair, if it had one
        memory=layers["memory"].where(layers["repair"] == ""), repair="",
        perplexity=layers["perplexity_layers"], perplexity_web=layers["perplexity_web_layers"],
        seconds=layers["seconds"] - layers["repair_seconds"],
    )  # fmt: skip
    table = pd.concat([layers, whole], ignore_index=True)
    # the shorter repair first: 8 windows before 64
    keys = table["method"].map(frame.row_key), table["stem"], table["repair"].str.len()
    order = list(zip(*keys, strict=True))
    table = table.assign(pipeline=table["stem"] + table["repair"], order=order)
    # of the logarithms, so that several runs of ADMM-Grad with one seed close nothing on average
    logs = np.log(table["perplexity"])
    base = logs.where((table["pipeline"] == BASE) & table["usual"])
    base = (
        base.groupby([table["target"], table["seed"]])
        .transform("mean")
        .where(table["usual"])
    )
    closed = (base - logs) / (base - np.log(table["perplexity_dense"]))
    own = table["admm_seconds"]
    # of the same seed, since what a claim says of the ratio must hold for the noise in both
    for like in (["target", "machine", "seed"], ["target", "machine"]):
        own = own.fillna(table.groupby(like)["admm_seconds"].transform("mean"))
    return table.assign(closed=closed, admm_seconds=own, times=table["seconds"] / own)


def _rows(pipelines: pd.DataFrame) -> list[str]:
    """The rows of a table, in order."""
    return list(pipelines.drop_duplicates("pipeline").sort_values("order")["pipeline"])


def perplexity_table(
    pipelines: pd.DataFrame, number: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means over seeds of the calibration text; ± is half of Student's 95 % interval of them;
    distil (n) trains the whole model on n windows.

    Perplexity by pipeline and target below that of the dense model, and its `interval`.
    Args: number, "perplexity" or "perplexity_web".
    """
    cells = frame.over_seeds(pipelines, "pipeline", number)
    table, halves = (
        frame.by_target(cells[name], _rows(pipelines)) for name in ("mean", "half")
    )
    dense = pipelines.loc[pipelines["usual"], f"{number}_dense"].mean()
    first = pd.DataFrame(dense, index=["dense"], columns=table.columns)
    return pd.concat([first, table]).rename_axis("pipeline"), halves


def gain_table(pipelines: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Closed: the share of ln(perplexity / dense) after plain ADMM-Grad (same seed and target) that
    the pipeline removes. Seconds: of pruning and repair, the median over seeds, and as a multiple
    of those of ADMM-Grad's layers with two passes, in the same run if it prunes so, else in runs on
    the same kind of machine, of the same seed if there are any. Once runs were timed alone, only
    theirs are shown; else they may have shared the machine. The others are means over seeds; ± is
    half of Student's 95 % interval. Peak memory is the process's, with the evaluation, the dense
    model and a copy of the pruned one.

    By pipeline and target, and the `interval` of each number. What was not run has no column.
    """
    # ADMM-Grad's own share is 0, not 1e-9 or −0
    pipelines = pipelines.assign(closed=(100 * pipelines["closed"]).round(6) + 0.0)
    shown = (("closed", "closed (%)", "mean"), ("seconds", "seconds", "median"),
             ("times", "seconds / ADMM-Grad's", "mean"))  # fmt: skip
    columns, halves = {}, {}
    for target in sorted(pipelines["target"].unique(), key=frame.column_key):
        runs = pipelines[pipelines["target"] == target]
        for number, name, middle in shown:
            cells = frame.over_seeds(runs, "pipeline", number).droplevel("target")
            columns[f"{target}, {name}"], halves[f"{target}, {name}"] = (
                cells[middle],
                cells["half"],
            )
    groups = pipelines.groupby("pipeline")
    columns |= {"runs": groups.size(), "peak memory (GB)": groups["memory"].max()}
    table = pd.DataFrame(columns).reindex(_rows(pipelines)).rename_axis("pipeline")
    table = table.dropna(axis=1, how="all")
    spread = pd.DataFrame(halves).reindex(table.index, columns=table.columns)
    return table, spread.where(spread > 0.001)  # what all is compared with has none


def tables_of(records: Iterable[Record]) -> Iterator[tuple[Any, ...]]:
    """Which table, its note, itself and its spread, from the records of one model."""
    groups = frame.by_windows(
        record for record in records if record["notebook"] == NOTEBOOK
    )
    caption = frame.caption(perplexity_table)
    for number, runs in enumerate(groups):
        end = f", other windows {number}" if number else ""
        pipelines, where = pipeline_frame(runs), frame.setting(runs)
        yield end[2:], f"{where} {caption}", *perplexity_table(pipelines, "perplexity")
        common = frame.common_parameters(runs)
        web = frame.EMBEDDED["calibration"].get(
            common["calibration"], common["calibration"]
        )
        note = (
            f"{frame.about_model(runs)} Perplexity on {web}, {common['web_windows']} windows of "
            f"{common['length']} tokens that nothing was fitted to, others for each seed. {caption}"
        )
        yield f"web text{end}", note, *perplexity_table(pipelines, "perplexity_web")
        yield (
            f"gain{end}",
            f"{where} {frame.caption(gain_table)}",
            *gain_table(pipelines),
        )
