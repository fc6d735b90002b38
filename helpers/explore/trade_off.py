"""Explorer of what ways to prune and repair gain for their time and memory, on recorded runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from helpers.errors import FileError
from helpers.explore.controls import Explorer, View, Worker, choice
from helpers.paths import reference_dir
from helpers.report import (
    cells_of,
    column_key,
    format_number,
    gain_table,
    in_words,
    read_records,
    trade_off_figure,
    usual_ways,
)

NUMBERS = [("perplexity on Wikipedia", "perplexity"), ("perplexity on web text", "web")]
COSTS = [("seconds / ADMM-Grad's", "times"), ("peak memory", "memory")]
HINT = (
    "Open markers are pruned layers alone, and a line leads to their repair. Lower and further "
    "left is better: what lies above and to the right of another point is not worth its cost."
)


def trade_off_explorer(
    records: Iterable[Mapping[str, Any]] | None = None, *, target: str = "60 %"
) -> Explorer:
    """Choose a target, a text and a cost; below the picture, what each way gains.

    Args: records, by default the committed ones of the plan full; target, where to begin.
    Raises FileError without runs of notebook 08, BadParameter for a target that was not run.
    """
    if records is None:
        records = read_records(reference_dir("full") / "records")
    ways = usual_ways(records)
    if ways.empty:
        raise FileError("no record of notebook 08: give those of a plan such as full")
    targets = sorted(set(ways["target"]), key=column_key)
    controls = {
        "target": choice(targets, target, "target"),
        "number": choice(NUMBERS, "perplexity", "text"),
        "against": choice(COSTS, "times", "cost"),
    }

    def draw(_worker: Worker, *, target: str, number: str, against: str) -> View:
        shown = ways[ways["target"] == target]
        means = cells_of(shown, number)["mean"].droplevel("target")
        text = {name: words for words, name in NUMBERS}[number]
        caption = f"{target}: lowest {text} {means.min():.1f}, {in_words(means.idxmin())}"
        table = gain_table(shown).map(format_number).to_html(border=0)
        return View(trade_off_figure(ways, target, number, against), caption, table)

    return Explorer(controls, draw, hint=HINT)
