"""Ways to prune and to repair a model (notebook 08): their tables, and what they gain for the time.

A run gives two ways: its layers alone, measured before the repair, and the repaired model. So the
row of "admm-grad" comes from every run that starts with it, and the two are of the same seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from helpers.report import frame, style
from helpers.report.frame import Record

NOTEBOOK = "08_beyond_the_paper"
BASE = "admm-grad"  # with uniform sparsities and no options: what every way is compared with
TARGET = "60 %"  # of the figures
UNSEEN = ", unseen"  # in the name of a column
GUIDE = ", guide"  # in the name of a way whose zeros were shared out by the guide
# what makes a way, beside the method and its options; in the order of the notebook
PLAIN = {"allocation": "uniform", "guide_sequences": 4, "passes": 2, "block_steps": "",
         "repair": "", "repair_windows": 0, "precision": "float32"}  # fmt: skip
# "stem" is the way without its repair, and "windows" those of the repair, 0 without one
COLUMNS = ("way", "stem", "repair", "windows", "order", "method", "target", "seed", "machine",
           "usual")  # fmt: skip
NUMBERS = ("perplexity", "web", "dense", "dense_web", "error", "error_web", "seconds",
           "admm_seconds", "memory")  # fmt: skip


def way_name(asked: Mapping[str, Any], *, repaired: bool = True) -> str:
    """What was done, in the order in which it was done: "admm-grad, owl + refine + distil (64)".

    Args: asked, the parameters of a run; repaired, False for its layers alone.
    """
    asked = PLAIN | dict(asked)
    details = [f"{key}={value}" for key, value in sorted((asked.get("options") or {}).items())]
    name = asked["method"] + (f" ({', '.join(details)})" if details else "")
    if asked["allocation"] != "uniform":
        name += f", {asked['allocation']}"
    if asked["allocation"] == "guide" and asked["guide_sequences"] != PLAIN["guide_sequences"]:
        name += f" ({asked['guide_sequences']})"
    if asked["passes"] == 1:
        name += ", one pass"
    if asked["precision"] != PLAIN["precision"]:
        name += f", {asked['precision']}"
    if asked["block_steps"]:
        name += f" + {asked['block_steps']}"
    if repaired and asked["repair"]:
        trained = "" if asked["repair"] == "all" else f" {asked['repair']}"
        name += f" + distil{trained} ({asked['repair_windows']})"
    return name


def way_title(asked: Mapping[str, Any]) -> str:
    """What was done, and at which target."""
    target = frame.target_name(asked["pattern"], asked["sparsity"] or 0.0)
    return f"{way_name(asked)} at {target}"


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


def way_frame(records: Iterable[Record]) -> pd.DataFrame:
    """A row for the layers of each run of notebook 08, and one for the model once it is repaired.

    Columns: COLUMNS, with `usual` as in `run_frame`; NUMBERS, of which `seconds` are those of
    pruning and repair, `admm_seconds` those of ADMM-Grad's layers with two passes, in the same run
    if it prunes so, else the mean of such runs at its target on its kind of machine, of its seed if
    there are any; closed, the share of ln(perplexity / dense) of plain ADMM-Grad with the same seed
    and target that is gone, and closed_web, the same on web text; times, seconds / admm_seconds.
    NaN where something was not run. Raises FileError for a run without what makes its row and
    column.
    """
    runs = [record for record in records if record["notebook"] == NOTEBOOK]
    requests = [PLAIN | dict(frame.asked_of(record)) for record in runs]
    common = frame.common_parameters(runs)
    rows = []
    for record, asked in zip(runs, requests, strict=True):
        setting = common.keys() - {*frame.CELL, *PLAIN}
        apart = {key: asked.get(key) for key in setting if common[key] != asked.get(key)}
        named = asked | {"options": (asked.get("options") or {}) | apart}
        found = {name: metric["value"] for name, metric in record["metrics"].items()}
        stem = way_name(named, repaired=False)
        for repair in dict.fromkeys(("", asked["repair"])):
            end = "" if repair else "_layers"
            windows = asked["repair_windows"] if repair else 0
            spent = found["total_seconds"] - (0.0 if repair else found["repair_seconds"])
            own = named["method"] == BASE and not named["options"] and named["passes"] == 2
            own = own and named["precision"] == PLAIN["precision"]
            rows.append({
                "way": way_name(named, repaired=bool(repair)), "stem": stem, "repair": repair,
                "windows": windows, "method": asked["method"], "usual": not apart,
                "order": (frame.row_key(asked["method"]), stem.count(" + "), stem, repair, windows),
                "target": frame.target_name(asked["pattern"], asked["sparsity"] or 0.0),
                "seed": asked["calibration_seed"], "seconds": spent,
                "machine": f"{(record.get('platform') or {}).get('processor')}, {record['device']}",
                "perplexity": found.get(f"perplexity{end}"),
                "web": found.get(f"perplexity_web{end}"),
                "dense": found.get("perplexity_dense"),
                "dense_web": found.get("perplexity_web_dense"),
                # of the layers before the repair, which is after other weights
                "error": None if repair else found.get("mean_layer_error"),
                "error_web": None if repair else found.get("mean_layer_error_web"),
                "admm_seconds": found["prune_seconds"] if own else None,
                # the peak of a run is that of its repair, if it had one
                "memory": record["peak_memory_bytes"] / 1e9 if repair == asked["repair"] else None,
            })  # fmt: skip
    table = pd.DataFrame(rows, columns=[*COLUMNS, *NUMBERS])
    table = table.astype(dict.fromkeys(NUMBERS, float) | {"usual": bool})
    plain = table[table["way"] == BASE].set_index(["target", "seed"])[["perplexity", "web"]]
    # of the logarithms, so that several runs of ADMM-Grad with one seed close nothing on average
    plain = np.exp(np.log(plain).groupby(level=["target", "seed"]).mean())
    base = table[["target", "seed"]].join(plain, on=["target", "seed"]).where(table["usual"])
    for number, dense, closed in (
        ("perplexity", "dense", "closed"),
        ("web", "dense_web", "closed_web"),
    ):
        gap = np.log(base[number] / table[dense])
        table[closed] = np.log(base[number] / table[number]) / gap
    own = table["admm_seconds"]
    # of the same seed, since what a claim says of the ratio must hold for the noise in both
    for like in (["target", "machine", "seed"], ["target", "machine"]):
        own = own.fillna(table.groupby(like)["admm_seconds"].transform("mean"))
    return table.assign(admm_seconds=own, times=table["seconds"] / own)


def cells_of(ways: pd.DataFrame, number: str) -> pd.DataFrame:
    """A number by way and target: mean, min and max over seeds, and their count.

    A seed of several records counts once, with their mean.
    """
    seeds = ways.groupby(["way", "target", "seed"])[number].mean().dropna()
    cells = seeds.groupby(level=["way", "target"])
    return cells.agg(mean=pd.Series.mean, min="min", max="max", count="count")


def _by_target(ways: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """Values by way and target as a table, its rows and columns in order."""
    wide = values.unstack("target")
    order = ways.drop_duplicates("way").sort_values("order")["way"]
    columns = sorted(wide.columns, key=frame.column_key)
    return wide.reindex(index=list(order), columns=columns).rename_axis(index="way", columns=None)


def _means(
    ways: pd.DataFrame, number: str, scale: float = 1.0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A number by way and target, times `scale`: its mean over seeds, and half of its range."""
    cells = cells_of(ways, number)
    halves = ((cells["max"] - cells["min"]) / 2).where(cells["count"] > 1)
    return _by_target(ways, scale * cells["mean"]), _by_target(ways, scale * halves)


def perplexity_table(ways: pd.DataFrame, number: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Perplexity by way and target below that of the dense model, and half of the range over seeds.

    Args: number, "perplexity" or "web".
    """
    table, halves = _means(ways, number)
    dense = ways.loc[ways["usual"], {"perplexity": "dense", "web": "dense_web"}[number]].mean()
    first = pd.DataFrame(dense, index=["dense"], columns=table.columns)
    return pd.concat([first, table]).rename_axis("way"), halves


def error_table(ways: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The layers' mean error in percent by way and target, on the text that they were fitted to and
    on unseen text, and half of its range over seeds.
    """
    fitted = _means(ways[ways["error"].notna()], "error", 100)
    unseen = _means(ways[ways["error_web"].notna()], "error_web", 100)
    both = [one.join(other.add_suffix(UNSEEN)) for one, other in zip(fitted, unseen, strict=True)]
    order = [name for target in fitted[0] for name in (target, target + UNSEEN) if name in both[0]]
    return both[0][order], both[1][order]


def gain_table(ways: pd.DataFrame) -> pd.DataFrame:
    """What each way gains by target, in percent of the gap, and its seconds; its runs and memory.

    Gains and seconds are means over seeds.
    """
    gains, times = _means(ways, "closed", 100)[0], _means(ways, "times")[0]
    gains = gains.round(6) + 0.0  # ADMM-Grad's own is 0, not 1e-9 or −0
    columns = {}
    for target in gains:
        columns[f"{target}, closed (%)"] = gains[target]
        columns[f"{target}, seconds / ADMM-Grad's"] = times.get(target)
    groups = ways.groupby("way")
    columns |= {"runs": groups.size(), "peak memory (GB)": groups["memory"].max()}
    return gains.iloc[:, :0].assign(**columns)


def tables_of(records: Iterable[Record]) -> Iterator[tuple[Any, ...]]:
    """Which table, its note, itself and its spread, from the records of one model."""
    runs = [record for record in records if record["notebook"] == NOTEBOOK]
    ways = way_frame(runs)
    if ways.empty:
        return
    where = frame.setting(runs)
    spread = "Means over seeds of the calibration text, ± half their range."
    what = (
        "After a +: a step on whole blocks or on the whole model; distil (n) trains on n windows."
    )
    yield "", f"{where} {spread} {what}", *perplexity_table(ways, "perplexity")
    asked = frame.common_parameters(runs)
    web = asked["calibration"]
    web = frame.EMBEDDED["calibration"] if web == "embedded" else web
    note = (
        f"{frame.about_model(runs)} Perplexity on {web}, {asked['web_windows']} windows of "
        f"{asked['length']} tokens that no step has read. {spread}"
    )
    yield "web text", note, *perplexity_table(ways, "web")
    note = (
        f"{where} Closed: the share of ln(perplexity / dense) after plain ADMM-Grad (same seed and "
        "target) that the way removes. Seconds: pruning and repair over those of ADMM-Grad's "
        "layers with two passes, in the same run if it prunes so, else in runs on the same kind of "
        "machine, of the same seed if there are any. Both are means over seeds. Peak memory is the "
        "process's, with the evaluation, the dense model and a copy of the pruned one."
    )
    yield "gain", note, gain_table(ways)
    note = (
        f"{frame.about_model(runs)} Mean relative error of the layers in percent, as the method "
        f"left them, on the {asked['sequences']} x {asked['length']} tokens that they were fitted "
        f"to; unseen: on the web text above, with the inputs that layers get in the pruned model, "
        f"and against the dense model's weights even if a step has changed them before. {spread}"
    )
    yield "layer error", note, *error_table(ways)


def usual_ways(records: Iterable[Record]) -> pd.DataFrame:
    """`way_frame` of the first model's runs in the usual setting, in order."""
    runs = [record for record in records if record["notebook"] == NOTEBOOK]
    ways = way_frame(next(iter(frame.by_model(runs).values()), []))
    return ways.query("usual").sort_values("order")


def beyond_figure(records: Iterable[Record]) -> Figure | None:
    """Perplexity at 60 % against seconds of pruning and repair over those of ADMM-Grad, log axes:
    from each way to prune the layers, an open marker, a line leads to its repairs, with the windows
    that they were trained on; a dashed line is the dense model. Lower and further left is better.

    Points are means over seeds, whiskers the range, of the first model's runs in the usual setting;
    at the lowest target if there is none at 60 %. Steps with neither guide nor repair are in
    `steps_figure`. Without a run of plain ADMM-Grad the seconds themselves are shown. None without
    runs of notebook 08.
    """
    ways = usual_ways(records)
    if ways.empty:
        return None
    target = _shown_target(ways)
    compared = ways.loc[ways["target"] == target, "times"].notna().any()
    return trade_off_figure(ways, target, against="times" if compared else "seconds")


def _shown_target(ways: pd.DataFrame) -> str:
    """TARGET, or the least of those there are."""
    targets = sorted(set(ways["target"]), key=frame.column_key)
    return TARGET if TARGET in targets else targets[0]


def trade_off_figure(
    ways: pd.DataFrame, target: str, number: str = "perplexity", against: str = "times"
) -> Figure:
    """`beyond_figure` at any target.

    Args: ways, those of `usual_ways`; number, "perplexity" or "web"; against, "times", "seconds" or
    "memory", which a run knows of its last step only.
    """
    ways = ways[(ways["target"] == target) & ways[against].notna()]
    shown = ways.groupby("stem")["repair"].transform("any") | ways["stem"].str.contains(GUIDE)
    shown |= ways["way"].isin({*frame.METHOD_ORDER})
    ways = ways[shown] if shown.any() else ways
    points = cells_of(ways, number).droplevel("target")
    points["x"] = cells_of(ways, against).droplevel("target")["mean"]
    figure, ax = style.new_figure(size=(7.0, 4.6))
    for position, (stem, family) in enumerate(ways.groupby("stem", sort=False)):
        method = family["method"].iloc[0]
        # the colour says which method, and the marker what is done beside it
        color, marker = style.style_of(method)["color"], style.style_of("", position)["marker"]
        mark = {"color": color, "marker": marker, "markersize": 7}
        label, start = style.in_words(stem), points[points.index == stem]
        ax.plot(start["x"], start["mean"], **mark, linestyle="none", mfc="white", label=label)
        for repair, some in family[family["repair"] != ""].groupby("repair", sort=False):
            repaired = some.drop_duplicates("way")
            path = pd.concat([start, points.loc[repaired["way"]]])
            ax.plot(path["x"], path["mean"], color=color, linewidth=1, zorder=1)
            ax.vlines(path["x"], path["min"], path["max"], color=color, alpha=0.5)
            for way, windows in zip(repaired["way"], repaired["windows"], strict=True):
                place = (points.loc[way, "x"], points.loc[way, "mean"])
                ax.plot(*place, linestyle="none", **mark)
                text = f"{windows}" if repair == "all" else f"{repair} {windows}"
                # many end in one corner: without a guide the number goes below, "norms" to the left
                across, ha = (6, "left") if repair == "all" else (-6, "right")
                beside = (across, 4 if GUIDE in stem else -11)
                style.offset_text(ax, text, place, beside, ha=ha, fontsize=9, color=color)
    _finish_trade_off(ax, ways, target, number, against)
    return figure


def steps_figure(records: Iterable[Record]) -> Figure | None:
    """What each step closes of the gap that ADMM-Grad leaves at 60 %, without a repair: filled
    markers on Wikipedia, open ones on web text, at the right the seconds over those of ADMM-Grad.
    Further right is better; left of zero a step makes the model worse.

    Points are means over seeds, whiskers the range; as in `beyond_figure`. None without such runs.
    """
    ways = usual_ways(records)
    if ways.empty:
        return None
    target = _shown_target(ways)
    ways = ways[(ways["target"] == target) & (ways["repair"] == "") & (ways["way"] != BASE)]
    # not the paper's other methods, which are no steps; alps, in ADMM-Grad's place, is one
    ways = ways[~ways["method"].isin({*frame.METHOD_ORDER} - {BASE})]
    found = {name: cells_of(ways, name).droplevel("target") for name in ("closed", "closed_web")}
    order = list(found["closed"].sort_values("mean").index)
    if not order:
        return None
    times = cells_of(ways, "times").droplevel("target")["mean"].reindex(order)
    figure, ax = style.new_figure(size=(7.0, 1.2 + 0.3 * len(order)))
    looks = (("on Wikipedia", style.ADMM[0]), ("on web text", "white"))
    for cells, (label, fill) in zip(found.values(), looks, strict=True):
        rows = 100 * cells.reindex(order)[["mean", "min", "max"]]
        ax.hlines(range(len(order)), rows["min"], rows["max"], color=style.ADMM[0], alpha=0.5)
        look = {"linestyle": "none", "marker": "o", "color": style.ADMM[0], "mfc": fill}
        ax.plot(rows["mean"], range(len(order)), label=label, **look)
    ax.axvline(0, color=style.DENSE, linewidth=1)
    ax.set_yticks(range(len(order)), [style.in_words(way) for way in order])
    for row, way in enumerate(order):
        if not np.isnan(times[way]):
            text = f"{times[way]:#.2g}".removesuffix(".")  # 3.0, but 14
            style.offset_text(ax, f"{text} ×", (1, row), (4, -3), fontsize=9,
                              xycoords=("axes fraction", "data"))  # fmt: skip
    place = {"fontsize": 9, "loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 2}
    style.finish(ax, legend=place, xlabel=f"gap closed at {target} (%)")
    return figure


def _finish_trade_off(ax: Any, ways: pd.DataFrame, target: str, number: str, against: str) -> None:
    """The axes of a trade-off, and the line of the dense model."""
    xlabel = {"times": "seconds / ADMM-Grad's", "seconds": "seconds to prune and to repair",
              "memory": "peak memory (GB)"}[against]  # fmt: skip
    text = {"perplexity": "", "web": " on web text"}[number]
    style.finish(ax, log="xy", plain=True, wide=True, ylabel=f"perplexity{text} at {target}",
                 xlabel=f"{xlabel} (numbers: windows trained on)",
                 legend={"fontsize": 9, "loc": "lower center", "bbox_to_anchor": (0.5, 1),
                         "ncols": 2})  # fmt: skip
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.margins(x=0.08)
    dense = ways[{"perplexity": "dense", "web": "dense_web"}[number]].mean()
    if not np.isnan(dense):
        ax.set_ylim(bottom=dense / 1.15)
        ax.axhline(dense, color=style.DENSE, linestyle=(0, (4, 3)), linewidth=1.2)
        style.name_line(ax, f"dense {dense:.1f}", dense)
