"""Pipelines that allocate, prune and repair (notebook 08): their tables, and what they gain.

A run gives two pipelines: its pruned layers alone, measured before the repair (the distillation
into the kept weights), and the repaired model. So the row of "admm-grad" comes from every run that
starts with it, and both rows of a run are of the same seed.
"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from helpers.report.labels import (
    Parameters,
    Table,
    WithSpread,
    column_key,
    display_name,
    method_name,
    row_key,
    target_name,
    with_options,
)
from helpers.report.records import Records
from helpers.report.runs_table import (
    CELL,
    PRUNE_NOTEBOOK,
    by_target,
    by_windows,
    common_parameters,
    full_name,
    model_sentence,
    of_notebook,
    over_seeds,
    runs_table,
    setting_sentences,
)

NOTEBOOK = "08_beyond_the_paper"
BASE = (
    "admm-grad"  # two passes, no allocation and no options: what all is compared with
)
GUIDED = f"{BASE}, guide, one pass"  # as in the recipe
# the parameters that make a pipeline, with the method and its options
PIPELINE = {
    "allocation",
    "guide_sequences",
    "passes",
    "repair",
    "repair_windows",
    "precision",
}


def _allocation_and_passes(parameters: Parameters) -> str:
    """What a pipeline adds to the method, without the repair: ", guide (2), one pass"."""
    allocation = parameters.get("allocation")
    text = f", {allocation}" if allocation else ""
    sequences = parameters.get("guide_sequences", 4)
    if allocation == "guide" and sequences != 4:
        text += f" ({sequences})"
    if parameters.get("passes") == 1:
        text += ", one pass"
    precision = parameters.get("precision", "float32")
    return text if precision == "float32" else f"{text}, {precision}"


def _repair(parameters: Parameters) -> str:
    """The repair of a pipeline: " + distil (64)", "" without one."""
    parts = parameters.get("repair")
    if not parts:
        return ""
    name = "distil" if parts == "all" else f"distil {parts}"
    return f" + {name} ({parameters['repair_windows']})"


def pipeline_title(parameters: Parameters) -> str:
    """What a run of notebook 04, 05 or 08 does: "admm-grad, owl + distil (64) at 60 %"."""
    if parameters["method"] == "dense":
        return "dense"
    name = with_options(method_name(parameters), parameters.get("options") or {})
    target = target_name(parameters["pattern"], parameters["sparsity"] or 0.0)
    return (
        f"{name}{_allocation_and_passes(parameters)}{_repair(parameters)} at {target}"
    )


def run_title(run_id: str, parameters: Parameters) -> str:
    """A run of notebook 04 as "ADMM-Grad at 60 %, seed 1", one of another notebook by its id."""
    if not run_id.startswith(PRUNE_NOTEBOOK):
        return run_id
    title = (
        f"{display_name(pipeline_title(parameters))}, {parameters['model']}, "
        f"seed {parameters['calibration_seed']}"
    )
    return title.replace(", embedded,", ",").removesuffix(", seed 0")  # what is usual


def pipeline_table(records: Records) -> pd.DataFrame:
    """The pipelines of notebook 08: a row for the layers of each run, one for the repaired model.

    Columns: those of `runs_table`, where perplexity, perplexity_web and memory are those of the
    pipeline; pipeline, its name; order, of the rows in a table; seconds, those of the pipeline;
    times, the same as a multiple of those of ADMM-Grad's layers with two passes, in the same run
    if it prunes so, else the mean of such runs at its target on its kind of machine, of its seed if
    there are any; closed, the share of ln(perplexity / dense) of plain ADMM-Grad with the same draw
    and target that is gone. Of one draw may also be a run that reads more of its windows. NaN where
    something was not run, and once runs were timed alone in the seconds of those that were not.
    """
    runs = runs_table(records, NOTEBOOK, cell=CELL | PIPELINE)
    if runs.empty:
        return runs.assign(pipeline="", closed=math.nan, times=math.nan)
    parameters = runs["record"].str["parameters"]
    steps = parameters.map(_allocation_and_passes)
    runs["layers"] = runs["label"] + steps
    runs["repair"] = parameters.map(_repair)
    # the hash of all windows of a run; a record made by hand may lack it
    texts = runs["record"].str["data"].str["calibration"]
    runs["draw"] = texts.str["tokens"].fillna(runs["seed"])
    counted = runs["timed"] | (not runs["timed"].any())
    runs["seconds"] = runs["total_seconds"].where(counted)
    two_passes = (runs["label"] == BASE) & ~steps.str.contains("one pass|bfloat16")
    runs["admm_seconds"] = runs["prune_seconds"].where(counted & two_passes)
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
    base = logs.where((table["pipeline"] == BASE) & table["usual"])
    base = base.groupby([table["target"], table["draw"]]).transform("mean")
    table["closed"] = (base - logs) / (base - np.log(table["perplexity_dense"]))
    return table


def _names_in_order(pipelines: pd.DataFrame) -> list[str]:
    """The rows of a table of pipelines."""
    return list(pipelines.drop_duplicates("pipeline").sort_values("order")["pipeline"])


PERPLEXITY_CAPTION = (
    "Means over seeds of the calibration text; ± is half of Student's 95 % interval of them, where "
    "there are three or more; distil (n) trains the whole model on n windows."
)


def perplexity_table(pipelines: pd.DataFrame, number: str) -> WithSpread:
    """Perplexity by pipeline and target, with the dense model's first, and half its interval.

    Args: number, "perplexity" or "perplexity_web".
    """
    cells = over_seeds(pipelines, "pipeline", number)
    means, halves = by_target(cells, _names_in_order(pipelines))
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


def gain_table(pipelines: pd.DataFrame) -> WithSpread:
    """What each pipeline gains and costs at each target, and half the interval of each number.

    What was not run has no column.
    """
    # ADMM-Grad's own share is 0, not 1e-9 or −0
    pipelines = pipelines.assign(closed=(100 * pipelines["closed"]).round(6) + 0.0)
    numbers = {
        "closed": "closed (%)",
        "seconds": "seconds",
        "times": "seconds / ADMM-Grad's",
    }
    columns = {}
    halves = {}
    for target in sorted(pipelines["target"].unique(), key=column_key):
        runs = pipelines.query("target == @target")
        for number, name in numbers.items():
            cells = over_seeds(runs, "pipeline", number).droplevel("target")
            columns[f"{target}, {name}"] = cells["mean"]
            halves[f"{target}, {name}"] = cells["half"]
        groups = runs.groupby("pipeline")
        columns[f"{target}, memory (GB)"] = groups["memory"].max()
        columns[f"{target}, seeds"] = groups["seed"].nunique().astype("Int64")
    table = pd.DataFrame(columns).reindex(_names_in_order(pipelines))
    table = table.rename_axis("pipeline").dropna(axis=1, how="all")
    spread = pd.DataFrame(halves)
    return table, spread.where(spread > 0.001)  # what all is compared with has none


def beyond_tables(records: Records) -> Iterator[tuple[str, Table]]:
    """The tables of notebook 08, by name, of the records of one model."""
    for windows, runs in by_windows(of_notebook(records, NOTEBOOK)).items():
        end = f", {windows}" if windows else ""
        pipelines = pipeline_table(runs)
        setting = setting_sentences(runs)
        note = f"{setting} {PERPLEXITY_CAPTION}"
        yield "beyond", Table(windows, note, *perplexity_table(pipelines, "perplexity"))
        common = common_parameters(runs)
        note = (
            f"{model_sentence(runs)} Perplexity on "
            f"{full_name('calibration', common['calibration'])}, {common['web_windows']} windows "
            f"of {common['length']} tokens that nothing was fitted to, others for each seed. "
            f"{PERPLEXITY_CAPTION}"
        )
        web = perplexity_table(pipelines, "perplexity_web")
        yield "beyond", Table(f"web text{end}", note, *web)
        note = f"{setting} {GAIN_CAPTION}"
        yield "beyond", Table(f"gain{end}", note, *gain_table(pipelines))
