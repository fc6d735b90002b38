"""Pipelines that prune and repair (notebook 08): their tables, and what they gain for the time.

A run gives two pipelines: its layers alone, measured before the repair, and the repaired model. So
the row of "admm-grad" comes from every run that starts with it, and the two are of the same seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers.report import frame, style
from helpers.report.frame import Record

NOTEBOOK = "08_beyond_the_paper"
BASE = "admm-grad"  # with one sparsity and no options: what every pipeline is compared with
TARGET = "60 %"  # of the figure
GUIDE = ", guide"  # in the name of a pipeline whose zeros were allocated by the guide
GUIDED = f"{BASE}{GUIDE}, one pass"  # as in the recipe
# what makes a pipeline, beside the method and its options
PLAIN = {"allocation": "", "guide_sequences": 4, "passes": 2, "repair": "", "repair_windows": 0,
         "precision": "float32"}  # fmt: skip
# "stem" is the pipeline without its repair, and "windows" those of the repair, 0 without one
COLUMNS = ("pipeline", "stem", "repair", "windows", "order", "method", "target", "seed", "machine",
           "usual")  # fmt: skip
NUMBERS = ("perplexity", "web", "dense", "dense_web", "seconds", "admm_seconds", "memory")


def pipeline_name(parameters: Mapping[str, Any], *, repaired: bool = True) -> str:
    """What was done, in the order in which it was done: "admm-grad, owl, one pass + distil (64)".

    Args: parameters, of a run; repaired, False for its layers alone.
    """
    given = PLAIN | dict(parameters)
    details = [f"{key}={value}" for key, value in sorted((given.get("options") or {}).items())]
    name = given["method"] + (f" ({', '.join(details)})" if details else "")
    if given["allocation"]:
        name += f", {given['allocation']}"
    if given["allocation"] == "guide" and given["guide_sequences"] != PLAIN["guide_sequences"]:
        name += f" ({given['guide_sequences']})"
    if given["passes"] == 1:
        name += ", one pass"
    if given["precision"] != PLAIN["precision"]:
        name += f", {given['precision']}"
    if repaired and given["repair"]:
        trained = "" if given["repair"] == "all" else f" {given['repair']}"
        name += f" + distil{trained} ({given['repair_windows']})"
    return name


def pipeline_title(parameters: Mapping[str, Any]) -> str:
    """What was done, and at which target."""
    target = frame.target_name(parameters["pattern"], parameters["sparsity"] or 0.0)
    return f"{pipeline_name(parameters)} at {target}"


def gap_table(perplexities: Mapping[str, float]) -> pd.DataFrame:
    """Perplexity of the dense, the pruned and the repaired model on both texts, and the share of
    ln(perplexity / dense) after the layers alone that is gone.

    Args: perplexities, named as a record's metrics.
    """
    rows = {"dense": "_dense", "layers alone": "_layers", "repaired": ""}
    texts = ("perplexity", "perplexity_web")
    table = pd.DataFrame(
        {text: {row: perplexities[text + end] for row, end in rows.items()} for text in texts}
    )
    logs = np.log(table)
    closed = (logs.loc["layers alone"] - logs) / (logs.loc["layers alone"] - logs.loc["dense"])
    return table.join(closed.add_suffix(", gap closed"))


def pipeline_frame(records: Iterable[Record]) -> pd.DataFrame:
    """A row for the layers of each run of notebook 08, and one for the model once it is repaired.

    Columns: COLUMNS, with `usual` as in `run_frame`; NUMBERS, of which `seconds` are those of
    pruning and repair, `admm_seconds` those of ADMM-Grad's layers with two passes, in the same run
    if it prunes so, else the mean of such runs at its target on its kind of machine, of its seed if
    there are any; closed, the share of ln(perplexity / dense) of plain ADMM-Grad with the same seed
    and target that is gone; times, seconds / admm_seconds. NaN where something was not run.
    """
    runs = [record for record in records if record["notebook"] == NOTEBOOK]
    parameters = [PLAIN | dict(record["parameters"]) for record in runs]
    common = frame.common_parameters(runs)
    setting = common.keys() - {*frame.CELL, *PLAIN}
    rows = []
    for record, given in zip(runs, parameters, strict=True):
        apart = {key: given.get(key) for key in setting if common[key] != given.get(key)}
        named = given | {"options": (given.get("options") or {}) | apart}
        metrics = {name: metric["value"] for name, metric in record["metrics"].items()}
        stem = pipeline_name(named, repaired=False)
        own = given["method"] == BASE and not named["options"] and given["passes"] == 2
        own = own and given["precision"] == PLAIN["precision"]
        for repair in dict.fromkeys(("", given["repair"])):
            end = "" if repair else "_layers"
            windows = given["repair_windows"] if repair else 0
            rows.append({
                "pipeline": pipeline_name(named, repaired=bool(repair)), "stem": stem,
                "repair": repair, "windows": windows,
                "order": (frame.row_key(given["method"]), stem, repair, windows),
                "method": given["method"], "usual": not apart,
                "target": frame.target_name(given["pattern"], given["sparsity"] or 0.0),
                "seed": given["calibration_seed"],
                "machine": f"{(record.get('platform') or {}).get('processor')}, {record['device']}",
                "perplexity": metrics.get(f"perplexity{end}"),
                "web": metrics.get(f"perplexity_web{end}"),
                "dense": metrics.get("perplexity_dense"),
                "dense_web": metrics.get("perplexity_web_dense"),
                "seconds": metrics["total_seconds"] - (0 if repair else metrics["repair_seconds"]),
                "admm_seconds": metrics["prune_seconds"] if own else None,
                # the peak of a run is that of its repair, if it had one
                "memory": record["peak_memory_bytes"] / 1e9 if repair == given["repair"] else None,
            })  # fmt: skip
    table = pd.DataFrame(rows, columns=[*COLUMNS, *NUMBERS])
    table = table.astype(dict.fromkeys(NUMBERS, float) | {"usual": bool})
    # of the logarithms, so that several runs of ADMM-Grad with one seed close nothing on average
    logs = np.log(table.set_index(["target", "seed"])["perplexity"])
    plain = logs[(table["pipeline"] == BASE).to_numpy()].groupby(level=["target", "seed"]).mean()
    base = table[["target", "seed"]].join(plain, on=["target", "seed"])["perplexity"]
    base = base.where(table["usual"])
    closed = (base - np.log(table["perplexity"])) / (base - np.log(table["dense"]))
    own = table["admm_seconds"]
    # of the same seed, since what a claim says of the ratio must hold for the noise in both
    for like in (["target", "machine", "seed"], ["target", "machine"]):
        own = own.fillna(table.groupby(like)["admm_seconds"].transform("mean"))
    return table.assign(closed=closed, admm_seconds=own, times=table["seconds"] / own)


def over_seeds(pipelines: pd.DataFrame, number: str, scale: float = 1.0) -> pd.DataFrame:
    """A number by pipeline and target, times `scale`: mean, min, max and half of their range.

    A seed of several records counts once, with their mean; half is NaN for one seed.
    """
    seeds = pipelines.groupby(["pipeline", "target", "seed"])[number].mean().dropna() * scale
    cells = seeds.groupby(level=["pipeline", "target"])
    cells = cells.agg(mean=pd.Series.mean, min="min", max="max", count="count")
    return cells.assign(half=((cells["max"] - cells["min"]) / 2).where(cells["count"] > 1))


def _by_target(pipelines: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """Values by pipeline and target as a table, its rows and columns in order."""
    wide = values.unstack("target")
    order = pipelines.drop_duplicates("pipeline").sort_values("order")["pipeline"]
    columns = sorted(wide.columns, key=frame.column_key)
    return wide.reindex(index=list(order), columns=columns).rename_axis(columns=None)


def perplexity_table(pipelines: pd.DataFrame, number: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means over seeds of the calibration text, ± half their range; distil (n) trains the whole
    model on n windows.

    Perplexity by pipeline and target below that of the dense model, and half of the range.
    Args: number, "perplexity" or "web".
    """
    cells = over_seeds(pipelines, number)
    table, halves = (_by_target(pipelines, cells[name]) for name in ("mean", "half"))
    column = {"perplexity": "dense", "web": "dense_web"}[number]
    dense = pipelines.loc[pipelines["usual"], column].mean()
    first = pd.DataFrame(dense, index=["dense"], columns=table.columns)
    return pd.concat([first, table]).rename_axis("pipeline"), halves


def gain_table(pipelines: pd.DataFrame) -> pd.DataFrame:
    """Closed: the share of ln(perplexity / dense) after plain ADMM-Grad (same seed and target) that
    the pipeline removes. Seconds: pruning and repair over those of ADMM-Grad's layers with two
    passes, in the same run if it prunes so, else in runs on the same kind of machine, of the same
    seed if there are any. Both are means over seeds. Peak memory is the process's, with the
    evaluation, the dense model and a copy of the pruned one.
    """
    gains = _by_target(pipelines, over_seeds(pipelines, "closed", 100)["mean"])
    times = _by_target(pipelines, over_seeds(pipelines, "times")["mean"])
    gains = gains.round(6) + 0.0  # ADMM-Grad's own is 0, not 1e-9 or −0
    columns = {}
    for target in gains:
        columns[f"{target}, closed (%)"] = gains[target]
        columns[f"{target}, seconds / ADMM-Grad's"] = times.get(target)
    groups = pipelines.groupby("pipeline")
    columns |= {"runs": groups.size(), "peak memory (GB)": groups["memory"].max()}
    return gains.iloc[:, :0].assign(**columns)


def tables_of(records: Iterable[Record]) -> Iterator[tuple[Any, ...]]:
    """Which table, its note, itself and its spread, from the records of one model."""
    runs = [record for record in records if record["notebook"] == NOTEBOOK]
    pipelines = pipeline_frame(runs)
    if pipelines.empty:
        return
    where, caption = frame.setting(runs), frame.caption(perplexity_table)
    yield "", f"{where} {caption}", *perplexity_table(pipelines, "perplexity")
    common = frame.common_parameters(runs)
    web = common["calibration"]
    web = frame.EMBEDDED["calibration"] if web == "embedded" else web
    note = (
        f"{frame.about_model(runs)} Perplexity on {web}, {common['web_windows']} windows of "
        f"{common['length']} tokens that nothing was fitted to. {caption}"
    )
    yield "web text", note, *perplexity_table(pipelines, "web")
    yield "gain", f"{where} {frame.caption(gain_table)}", gain_table(pipelines)


def beyond_figure(records: Iterable[Record]) -> Figure | None:
    """Perplexity at 60 % against seconds of pruning and repair over those of ADMM-Grad, log axes:
    from each pipeline without a repair, an open marker, a line leads to its repairs; a dashed line
    is the dense model. Lower and further left is better.

    Points are means over seeds, whiskers the range, of the first model's runs in the usual setting.
    None without runs of notebook 08 at 60 % beside plain ADMM-Grad.
    """
    runs = [record for record in records if record["notebook"] == NOTEBOOK]
    pipelines = pipeline_frame(next(iter(frame.by_model(runs).values()), []))
    pipelines = pipelines.query("usual and target == @TARGET").sort_values("order")
    pipelines = pipelines[pipelines["times"].notna()]
    if pipelines.empty:
        return None
    points = over_seeds(pipelines, "perplexity").droplevel("target")
    points["x"] = over_seeds(pipelines, "times").droplevel("target")["mean"]
    figure, ax = style.new_figure(size=(7.0, 4.8))
    for position, (stem, family) in enumerate(pipelines.groupby("stem", sort=False)):
        # the colour says which method, and the marker what is done beside it
        color = style.style_of(family["method"].iloc[0])["color"]
        mark = {"color": color, "marker": style.style_of("", position)["marker"], "markersize": 7}
        label, start = style.in_words(stem), points[points.index == stem]
        ax.plot(start["x"], start["mean"], **mark, linestyle="none", mfc="white", label=label)
        for _, repaired in family[family["repair"] != ""].groupby("repair", sort=False):
            path = pd.concat([start, points.loc[repaired["pipeline"].unique()]])
            ax.plot(path["x"], path["mean"], color=color, linewidth=1, zorder=1)
            ax.plot(path["x"][1:], path["mean"][1:], linestyle="none", **mark)
            ax.vlines(path["x"], path["min"], path["max"], color=color, alpha=0.5)
    style.draw_dense(ax, pipelines["dense"].mean())
    style.set_up(ax, log="xy", plain=True, ylabel=f"perplexity at {TARGET}",
                 xlabel="seconds / ADMM-Grad's; filled: repaired",
                 legend={"fontsize": 8.5, "loc": "lower center", "bbox_to_anchor": (0.5, 1),
                         "ncols": 2})  # fmt: skip
    style.plain_log(ax.xaxis)
    return figure
