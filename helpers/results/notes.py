"""Every table of a plan with its note, and how they become files."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.paths import replace_file
from helpers.results.frame import Record, by_model, common_parameters, prune_runs, series_rows
from helpers.results.tables import (
    cost_table,
    mask_table,
    paired_table,
    perplexity_spread,
    perplexity_table,
    to_markdown,
    update_table,
    variant_table,
    zero_shot_runs,
    zero_shot_table,
)

# what "embedded" stands for
EMBEDDED = {"model": "SmolLM2-135M-Instruct", "evaluation": "Wikipedia text",
            "calibration": "C4 text"}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """One table as a reader sees it: which it is, a note, the numbers, and its Markdown."""

    about: str
    note: str
    frame: pd.DataFrame
    spread: pd.DataFrame | None = None

    @property
    def markdown(self) -> str:
        """Note and table in Markdown."""
        return f"{self.note}\n\n{to_markdown(self.frame, self.spread)}"


def setting(records: Iterable[Record]) -> str:
    """One line on the setting that most records of the pruning notebook share."""
    common = common_parameters(prune_runs(records))
    names = {
        what: f"{EMBEDDED[what]} (embedded)" if common.get(what) == "embedded" else common.get(what)
        for what in EMBEDDED
    }
    text = f"Model: {names['model']}."
    if names["evaluation"]:
        text += f" Perplexity on {names['evaluation']}"
        if "windows" in common and "window" in common:
            text += f", {common['windows'] or 'all'} windows of {common['window']} tokens"
        text += "."
    if names["calibration"]:
        text += f" Calibration on {names['calibration']}"
        if "sequences" in common and "length" in common:
            text += f", {common['sequences']} x {common['length']} tokens"
        text += "."
    return text


def _perplexity_note(records: list[Record]) -> str:
    seeds = perplexity_spread(records).notna().any(axis=None)
    return setting(records) + (" ± is half the range over seeds." if seeds else "")


def _cost_note(records: list[Record]) -> str:
    devices = sorted({record["device"] for record in prune_runs(records)})
    return (
        f"{setting(records)} Device: {'; '.join(devices)}. Means over unstructured runs. Solve "
        "holds the checks of a layer and the measuring of its error, which is all of it for "
        "methods that do not update weights; peak memory is the process's, evaluation included."
    )


def _variant_note(records: list[Record]) -> str:
    return (
        f"{setting(records)} Other options beside the defaults, same cell and same calibration "
        "seeds. The change is the mean over seeds, ± its standard error."
    )


def _items_note(records: list[Record]) -> str:
    """How many items of each task were asked, whether of all the same, and by which harness."""
    runs = zero_shot_runs(records).values()
    asked: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for run in runs:
        for task, series in run["series"]["zero_shot"].items():
            asked[task].add(tuple(series["items"]))
    counts = sorted({len(items) for found in asked.values() for items in found})
    amount = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    same = "" if all(len(found) == 1 for found in asked.values()) else "not "
    harness = sorted({run["versions"].get("lm-eval", "?") for run in runs})
    return f"{amount} items a task, {same}the same for every model; lm-eval {', '.join(harness)}."


def _update_note(records: list[Record]) -> str:
    blocks: dict[str, set[int]] = defaultdict(set)
    for record in records:
        if (record.get("series") or {}).get("update"):
            asked = record["parameters"]
            blocks[asked["layer"].rpartition(".")[2]].add(asked["block"])
    layers = "; ".join(
        f"{layer} of {'blocks' if len(found) > 1 else 'block'} {', '.join(map(str, sorted(found)))}"
        for layer, found in sorted(blocks.items())
    )
    targets = sorted({row["sparsity"] for row in series_rows(records, "update")})
    return (
        "Refitting the kept weights on one fixed mask by Wanda's score (budget per matrix): "
        f"{layers}; at {', '.join(f'{100 * target:.4g}' for target in targets)} %. Excess: the "
        "damped objective over its exact optimum. Adam and SGD count with the rate that is best "
        "for a problem after so many iterations, and only its own seconds count."
    )


ACCURACY = "{} ± one standard error. {}"
PAIRED = (
    "Paired differences in accuracy on the same items; bold where they exceed two standard errors. "
    "One in twenty would do so by chance."
)
MASK = "Relative error on {} text, % of the default's (geometric mean over layers)."
BY_LENGTH = "Accuracy normalised by the answers' length"
# name, which of several, the frame (or frame and spread, or None) and its note, both of records
TABLES: tuple[tuple[str, str, Callable[..., Any], Callable[[list[Record]], str]], ...] = (
    ("perplexity", "", lambda r: (perplexity_table(r), perplexity_spread(r)), _perplexity_note),
    ("cost", "", cost_table, _cost_note),
    ("variants", "", variant_table, _variant_note),
    ("zero_shot", "acc", zero_shot_table, lambda r: ACCURACY.format("Accuracy", _items_note(r))),
    (
        *("zero_shot", "acc_norm", partial(zero_shot_table, metric="acc_norm")),
        lambda r: ACCURACY.format(BY_LENGTH, _items_note(r)),
    ),
    ("zero_shot", "paired", paired_table, lambda _: PAIRED),
    ("weight_update", "", update_table, _update_note),
    ("mask", "calibration", mask_table, lambda _: MASK.format("calibration")),
    ("mask", "held-out", partial(mask_table, text="heldout"), lambda _: MASK.format("held-out")),
)


def sections(records: Iterable[Record]) -> dict[str, list[Section]]:
    """Every table that the records allow, by name; several models get a section each.

    Names: perplexity, cost, variants, zero_shot, weight_update, mask.
    """
    made: dict[str, list[Section]] = defaultdict(list)
    for model, runs in by_model(records).items():
        for name, which, make, note in TABLES:
            found = make(runs)
            frame, spread = found if isinstance(found, tuple) else (found, None)
            if frame is not None:
                made[name].append(Section(f"{model} {which}".strip(), note(runs), frame, spread))
    return dict(made)


def write_tables(records: Iterable[Record], folder: str | os.PathLike[str]) -> list[Path]:
    """Write every table of `sections` as NAME.md and NAME.csv and return the paths.

    The CSV of a table of several sections has them one below the other, with a first column.
    Raises RecordError if the folder cannot be written.
    """
    texts = {}
    for name, found in sections(records).items():
        texts[f"{name}.md"] = "\n".join(section.markdown for section in found)
        frame = found[0].frame
        if len(found) > 1:
            frame = pd.concat({s.about: s.frame for s in found}, names=["about"])
        texts[f"{name}.csv"] = frame.to_csv(lineterminator="\n")
    return [replace_file(Path(folder) / name, text) for name, text in sorted(texts.items())]
