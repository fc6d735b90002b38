"""Pipelines that allocate, prune and repair (notebook 08): their tables, and what they gain.

A run gives two pipelines: its pruned layers alone, measured before the repair (the distillation
into the kept weights), and the repaired model. So the row of "admm-grad" comes from every run that
starts with it, and both rows of a run are of the same seed.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from reproduction.cells import Ids, cells_like, ids_by
from reproduction.labels import column_key, repair_name, row_key, steps_name
from reproduction.markdown import Table
from reproduction.records import Record, record_id
from reproduction.runs import (
    by_windows,
    common_parameters,
    full_name,
    model_sentence,
    of_notebook,
    over_seeds,
    runs_frame,
    setting_sentences,
)

NOTEBOOK = "08_beyond_the_paper"
# two passes, no allocation and no options: what all is compared with
BASE = "admm-grad"
GUIDED = f"{BASE}, guide, one pass"  # as in the recipe
REPAIRED = f"{GUIDED} + distil (64)"  # as the recipe does with the effort "balanced"
CLOSED, TIMES = "closed (%)", "seconds / ADMM-Grad's"  # columns


def pipeline_table(records: Iterable[Record]) -> pd.DataFrame:
    """The pipelines of notebook 08: a row for the layers of each run, one for the repaired model.

    Columns: those of `runs_frame`, where perplexity, perplexity_web and memory are those of the
    pipeline; pipeline, its name; order, of the rows in a table; seconds, those of the pipeline;
    times, the same as a multiple of those of ADMM-Grad's layers with two passes, in the same run
    if it prunes so, else the mean of such runs at its target on its kind of machine, of its seed if
    there are any; closed, the share of ln(perplexity / dense) of plain ADMM-Grad with the same draw
    and target that is gone. Of one draw may also be a run that reads more of its windows. NaN where
    something was not run, and once runs were timed alone in the seconds of those that were not.
    """
    runs = runs_frame(records, NOTEBOOK)
    if runs.empty:
        return runs.assign(pipeline="", closed=math.nan, times=math.nan)
    parameters = runs["record"].str["parameters"]
    runs["layers"] = runs["label"] + parameters.map(steps_name)
    runs["repair"] = parameters.map(repair_name)
    counted = runs["timed"] | (not runs["timed"].any())
    runs["seconds"] = runs["total_seconds"].where(counted)
    exact = parameters.str.get("precision").fillna("float32") == "float32"
    two_passes = (parameters.str.get("passes") != 1) & exact
    baseline = (runs["label"] == BASE) & two_passes
    runs["admm_seconds"] = runs["prune_seconds"].where(counted & baseline)
    repaired = runs.query("repair != ''")
    layers = runs.assign(
        repair="",
        perplexity=runs["perplexity_layers"],
        perplexity_web=runs["perplexity_web_layers"],
        seconds=runs["seconds"] - runs["repair_seconds"],
        # the peak of a run is that of its repair
        memory=runs["memory"].where(runs["repair"] == ""),
    )
    # the rows of a run one after the other
    table = pd.concat([layers, repaired]).sort_index(kind="stable", ignore_index=True)
    table["pipeline"] = table["layers"] + table["repair"]
    table["order"] = [
        # the shorter repair first: 8 windows before 64
        (row_key(row.method), row.layers, len(row.repair))
        for row in table.itertuples()
    ]
    # ADMM-Grad's seconds of the same seed if possible: a claim on the ratio must hold for the
    # noise of both
    own = table["admm_seconds"]
    for alike in (["target", "machine", "seed"], ["target", "machine"]):
        own = own.fillna(table.groupby(alike)["admm_seconds"].transform("mean"))
    table["times"] = table["seconds"] / own
    # means of logarithms, so that several runs of ADMM-Grad with one seed close nothing on average
    logs = np.log(table["perplexity"])
    base = logs.where(table["pipeline"] == BASE)
    base = base.groupby([table["target"], table["draw"]]).transform("mean")
    table["closed"] = (base - logs) / (base - np.log(table["perplexity_dense"]))
    return table


PERPLEXITY_CAPTION = (
    "Means over seeds of the calibration text; ± is half of Student's 95 % interval of them, where "
    "there are three or more; distil (n) trains the whole model on n windows."
)


def perplexity_table(
    pipelines: pd.DataFrame, number: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Perplexity by pipeline and target, with the dense model's first, and half its interval.

    Args: number, "perplexity" or "perplexity_web".
    """
    means, halves = over_seeds(pipelines, "pipeline", number)
    dense = pipelines.query("usual")[f"{number}_dense"].mean()
    first = pd.DataFrame(dense, index=["dense"], columns=means.columns)
    return pd.concat([first, means]).rename_axis("pipeline"), halves


GAIN_CAPTION = (
    "Closed: the share of ln(perplexity / dense) after plain ADMM-Grad (same draw and target) "
    "that the pipeline removes. Seconds: of pruning and repair, and as a multiple of those of "
    "ADMM-Grad's layers with two passes, in the same run if it prunes so, else in runs on the same "
    "kind of machine, of the same seed if there are any. Once runs were timed alone, only theirs "
    "are shown; else they may have shared the machine. Means over seeds; ± is half of Student's "
    "95 % interval, where there are three or more. Memory is the largest peak of a process, with "
    "the evaluation, the dense model and a copy of the pruned one."
)


def gain_table(pipelines: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What each pipeline gains and costs at each target, and half the interval of each number.

    What was not run has no column.
    """
    # ADMM-Grad's own share is 0, not 1e-9 or −0
    pipelines = pipelines.assign(closed=(100 * pipelines["closed"]).round(6) + 0.0)
    numbers = {
        CLOSED: "closed",
        "seconds": "seconds",
        TIMES: "times",
    }
    means = {}
    halves = {}
    for name, number in numbers.items():
        means[name], halves[name] = over_seeds(pipelines, "pipeline", number)
    rows = means["seconds"].index
    cells = pipelines.groupby(["pipeline", "target"])
    means["memory (GB)"] = cells["memory"].max().unstack()
    means["seeds"] = cells["seed"].nunique().astype("Int64").unstack()
    table = _by_target(means).reindex(rows).dropna(axis=1, how="all")
    spread = _by_target(halves)
    return table, spread.where(spread > 0.001)  # what all is compared with has none


def _by_target(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables with a column for each target side by side, all of one target together."""
    table = pd.concat(parts, axis=1)
    table = table[sorted(table, key=lambda column: column_key(column[1]))]
    return table.set_axis([f"{target}, {name}" for name, target in table], axis=1)


def pipeline_cells(pipelines: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The records of each cell of a table of pipelines: those of its row at the column's target.

    With those of ADMM-Grad that a share or a ratio is taken of.
    """
    own = ids_by(pipelines, "pipeline", "target")
    base = ids_by(pipelines[pipelines["pipeline"] == BASE], "target")
    timed = ids_by(pipelines.dropna(subset="admm_seconds"), "target")

    def ids(row: str, column: str) -> Ids:
        target, _, number = column.partition(", ")
        if row == "dense":
            return tuple(map(record_id, pipelines.query("usual")["record"]))
        others = {CLOSED: base, TIMES: timed}.get(number, {})
        return own[row, target] + others.get((target,), ()) if own[row, target] else ()

    return cells_like(table, ids)


def beyond_tables(records: Iterable[Record]) -> Iterator[tuple[str, Table]]:
    """The tables of notebook 08, by name, of the records of one model."""
    for runs in by_windows(of_notebook(records, NOTEBOOK)):
        pipelines = pipeline_table(runs)
        setting = setting_sentences(runs)
        common = common_parameters(runs)
        web = (
            f"{model_sentence(runs)} Perplexity on "
            f"{full_name('calibration', common['calibration'])}, {common['web_windows']} windows "
            f"of {common['length']} tokens that nothing was fitted to, others for each seed."
        )
        for note, (table, spread) in (
            (
                f"{setting} {PERPLEXITY_CAPTION}",
                perplexity_table(pipelines, "perplexity"),
            ),
            (
                f"{web} {PERPLEXITY_CAPTION}",
                perplexity_table(pipelines, "perplexity_web"),
            ),
            (f"{setting} {GAIN_CAPTION}", gain_table(pipelines)),
        ):
            cells = pipeline_cells(pipelines, table)
            yield "beyond", Table(note, table, spread, cells)
