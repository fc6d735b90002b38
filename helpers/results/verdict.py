"""The verdict: what was measured here beside the committed record of the same run.

How close is close enough comes from the spread between seeds. Rounding differs between kinds of
CPU and moves weights across a mask's edge, block after block, so that a rerun with the same seed
may end up as far away as one with another seed. Records that differ in nothing but their seeds
form a group; the tolerance of a metric is the group's relative range (max - min) / |mean|. A run
takes the largest of the groups with its own method, sparsity and pattern, else the largest of all
groups of its notebook, kept between FLOOR and CEILING; where no seeds were run it is UNKNOWN.

The spread of a perplexity grows with the damage that pruning did, ln(perplexity / dense). So it is
taken as a share of the damage, and a run is allowed that share of its own damage; where the dense
model's perplexity is not known it is relative like all others.

A metric that carries its own "tolerance" uses that. Sparsity and whole numbers must be equal; times
and memory belong to a machine and are not judged.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from helpers.runner import TABLES_NOTEBOOK, Run, is_done, record_id
from helpers.records import read_record

Record = Mapping[str, Any]

FLOOR = 0.02  # what rounding alone may do
CEILING = 0.15  # beyond this two methods could no longer be told apart
UNKNOWN = 0.05
ABSOLUTE = 1e-6  # differences this small are rounding, whatever the value
NOT_JUDGED = ("s", "min", "h", "bytes", "MB", "MiB", "GB", "GiB")
EXACT = ("sparsity",)
CELL = ("method", "sparsity", "pattern")
# what two perplexities must have in common to be compared with one dense model
MEASURED_ON = ("model", "revision", "evaluation", "window", "windows", "dtype")
LEAST_DAMAGE = 0.1  # of seeds; a spread that is a share of less says nothing


@dataclass(frozen=True)
class Comparison:
    """One metric of one run: here, in the reference, and how far apart they may be."""

    run: str
    metric: str
    value: float | None  # None: the run here has no such metric
    reference: float
    tolerance: float  # a fraction of the reference; 0 means equal

    @property
    def difference(self) -> float | None:
        """(value - reference) / |reference|; None where it has no meaning."""
        if self.value is None or self.reference == 0:
            return None
        return (self.value - self.reference) / abs(self.reference)

    @property
    def within(self) -> bool:
        """Whether the value is as close to the reference as the tolerance asks."""
        if self.value is None:
            return False
        gap = abs(self.value - self.reference)
        return gap <= max(self.tolerance * abs(self.reference), ABSOLUTE)


class Tolerances:
    """Relative ranges over seeds, looked up by run and metric."""

    def __init__(self, records: Iterable[Record]) -> None:
        records = list(records)
        self._dense = {
            _measured_on(record): record["metrics"]
            for record in records
            if record["parameters"].get("method") == "dense"
        }
        groups: dict[str, list[Record]] = defaultdict(list)
        for record in records:
            groups[_without_seeds(record)].append(record)
        # the last of a key: whether the spread is a share of the damage
        self._of_cell: dict[tuple[str, str, str, bool], float] = {}
        self._of_notebook: dict[tuple[str, str, bool], float] = {}
        for group in groups.values():
            if len({json.dumps(_seeds(record), sort_keys=True) for record in group}) > 1:
                self._add(group)

    def _add(self, group: list[Record]) -> None:
        """Take in the spread of every metric that all records of a group have."""
        first = group[0]
        for name in first["metrics"]:
            found = [record for record in group if name in record["metrics"]]
            values = [record["metrics"][name]["value"] for record in found]
            mean = sum(values) / len(values)
            if len(values) < 2 or mean == 0:
                continue
            self._keep(first, name, False, (max(values) - min(values)) / abs(mean))
            damages = [self._damage(record, name) for record in found]
            if None not in damages and min(damages) >= LEAST_DAMAGE:
                share = (max(damages) - min(damages)) / (sum(damages) / len(damages))
                self._keep(first, name, True, share)

    def _keep(self, record: Record, name: str, by_damage: bool, spread: float) -> None:
        """Remember a spread if it is the largest so far of its cell or notebook."""
        key = (record["notebook"], name, by_damage)
        self._of_notebook[key] = max(spread, self._of_notebook.get(key, 0.0))
        cell = (*key, _cell(record))
        self._of_cell[cell] = max(spread, self._of_cell.get(cell, 0.0))

    def _damage(self, record: Record, name: str) -> float | None:
        """ln(perplexity / dense perplexity), at least 0; None if not a perplexity or not known."""
        dense = self._dense.get(_measured_on(record), {}).get(name)
        if not name.startswith("perplexity") or dense is None:
            return None
        return max(0.0, math.log(record["metrics"][name]["value"] / dense["value"]))

    def _spread(self, record: Record, name: str, by_damage: bool) -> float | None:
        """The spread of the run's own cell, else of its notebook; None if no seeds were run."""
        key = (record["notebook"], name, by_damage)
        return self._of_cell.get((*key, _cell(record)), self._of_notebook.get(key))

    def of(self, reference: Record, metric: str) -> float:
        """The tolerance of a metric of a run, a fraction of its reference value."""
        entry = reference["metrics"][metric]
        if "tolerance" in entry:
            return float(entry["tolerance"])
        if metric in EXACT or isinstance(entry["value"], int):
            return 0.0
        spread, damage = self._spread(reference, metric, False), self._damage(reference, metric)
        share = self._spread(reference, metric, True)
        if damage is not None and share is not None:
            spread = math.expm1(share * damage)
        return UNKNOWN if spread is None else min(max(spread, FLOOR), CEILING)


def same_run(record: Record, reference: Record, defaults: Mapping[str, Any] | None = None) -> bool:
    """Whether two records have the same notebook and parameters; the device may differ.

    A parameter that the notebook has gained since the reference was made counts there with the
    value in `defaults`.
    """
    asked = _asked(record)
    since = {key: value for key, value in (defaults or {}).items() if key in asked}
    return record["notebook"] == reference["notebook"] and asked == since | _asked(reference)


def compare(record: Record | None, reference: Record, tolerances: Tolerances) -> list[Comparison]:
    """The judged metrics of a reference record beside those of the run here (None: no record)."""
    run = f"{reference['notebook']} {reference['name']}"
    here = {} if record is None else record["metrics"]
    return [
        Comparison(
            run=run,
            metric=name,
            value=here[name]["value"] if name in here else None,
            reference=entry["value"],
            tolerance=tolerances.of(reference, name),
        )
        for name, entry in reference["metrics"].items()
        if entry["unit"] not in NOT_JUDGED
    ]


@dataclass(frozen=True)
class Verdict:
    """Every comparison of a plan, and how many runs were compared, agree and have no reference."""

    comparisons: list[Comparison]
    compared: int
    reproduced: int
    without: int


def judge(runs: Iterable[Run], references: Iterable[Record], others: Iterable[Record]) -> Verdict:
    """What runs measured here beside the committed records of the same runs.

    A record of other code or parameters than today's counts as missing. `others` are records that
    only tell how far seeds spread. Raises RecordError for a record that cannot be used.
    """
    committed = {record_id(record): record for record in references}
    spread = Tolerances([*committed.values(), *others])
    comparisons, reproduced, compared, without = [], 0, 0, 0
    for run in runs:
        if run.notebook == TABLES_NOTEBOOK:
            continue  # it measures nothing of its own
        reference = committed.get(run.id)
        asked = {"notebook": run.notebook, "parameters": run.effective}
        if reference is None or not same_run(asked, reference, run.defaults):
            without += 1
            continue
        there = run.record_path.is_file()
        record = read_record(run.record_path) if there else None
        # what is of other code or parameters says nothing about these
        found = compare(record if there and is_done(run) else None, reference, spread)
        if found:
            comparisons += found
            compared += 1
            reproduced += all(item.within for item in found)
    return Verdict(comparisons, compared, reproduced, without)


def to_lines(comparisons: Iterable[Comparison]) -> list[str]:
    """The comparisons as aligned lines of text with a heading."""
    rows = to_rows(comparisons)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [_align(row, widths) for row in rows]


def to_rows(comparisons: Iterable[Comparison]) -> list[tuple[str, ...]]:
    """The comparisons as rows of text, a heading first; the last column marks what is apart."""
    rows = [("run", "metric", "here", "reference", "apart", "allowed", "")]
    for item in comparisons:
        rows.append(
            (
                item.run,
                item.metric,
                "missing" if item.value is None else f"{item.value:.5g}",
                f"{item.reference:.5g}",
                "" if item.difference is None else f"{100 * item.difference:+.2f} %",
                f"{100 * item.tolerance:.1f} %" if item.tolerance else "equal",
                "" if item.within else "OUT",
            )
        )
    return rows


def _align(row: tuple[str, ...], widths: list[int]) -> str:
    """One line: names to the left, numbers to the right."""
    cells = [
        text.ljust(width) if column in (0, 1, 6) else text.rjust(width)
        for column, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _asked(record: Record) -> dict[str, Any]:
    """The parameters that define a run, wherever it runs."""
    return {key: value for key, value in record["parameters"].items() if key != "device"}


def _seeds(record: Record) -> dict[str, Any]:
    """The parameters that are seeds."""
    return {key: value for key, value in record["parameters"].items() if "seed" in key}


def _without_seeds(record: Record) -> str:
    """What the records of one group have in common."""
    asked = {key: value for key, value in _asked(record).items() if "seed" not in key}
    return json.dumps([record["notebook"], asked], sort_keys=True)


def _measured_on(record: Record) -> str:
    """The model, text and windows of a record, and its notebook."""
    asked = record["parameters"]
    return json.dumps([record["notebook"], [asked.get(key) for key in MEASURED_ON]])


def _cell(record: Record) -> str:
    """The table cell that a record belongs to."""
    return json.dumps([record["parameters"].get(key) for key in CELL])
