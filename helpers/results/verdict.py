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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from helpers.results.frame import TABLES_NOTEBOOK, Record, record_id
from helpers.results.tables import format_number

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
PRINTED_SERIES = ("update", "ablation", "zero_shot")  # those that tables are made of


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


@dataclass(frozen=True)
class Verdict:
    """Every comparison of a plan, and how many runs were compared, agree and have no reference."""

    comparisons: list[Comparison]
    compared: int
    reproduced: int
    without: int


def judge(
    records: Iterable[Record],
    reference: Iterable[Record],
    spread: Iterable[Record],
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> Verdict:
    """What was measured here beside the committed records of the same runs.

    A committed run that has no record here counts as compared and not reproduced; a record without
    a committed one of the same parameters counts as without.

    Args: records, those made here by today's code; reference, the committed ones of the runs asked
    for; spread, more committed records, which only say how far seeds spread; defaults, by notebook
    the parameters' defaults, for parameters that an older committed record lacks.
    """
    here = {record_id(r): r for r in records if r["notebook"] != TABLES_NOTEBOOK}
    committed = {record_id(r): r for r in reference if r["notebook"] != TABLES_NOTEBOOK}
    other = {
        name
        for name, record in here.items()
        if name in committed
        and not same_run(record, committed[name], (defaults or {}).get(record["notebook"]))
    }
    tolerances = Tolerances([*committed.values(), *spread])
    found = [
        compare(here.get(name), record, tolerances)
        for name, record in committed.items()
        if name not in other
    ]
    found = [comparisons for comparisons in found if comparisons]
    return Verdict(
        comparisons=[item for comparisons in found for item in comparisons],
        compared=len(found),
        reproduced=sum(all(item.within for item in comparisons) for comparisons in found),
        without=len(other | (here.keys() - committed.keys())),
    )


def same_run(record: Record, reference: Record, defaults: Mapping[str, Any] | None = None) -> bool:
    """Whether two records have the same notebook and parameters; the device may differ.

    A parameter that the notebook has gained since the reference was made counts there with the
    value in `defaults`.
    """
    asked = _asked(record)
    since = {key: value for key, value in (defaults or {}).items() if key in asked}
    return record["notebook"] == reference["notebook"] and asked == since | _asked(reference)


def _asked(record: Record) -> dict[str, Any]:
    """The parameters that define a run, wherever it runs."""
    return {key: value for key, value in record["parameters"].items() if key != "device"}


def compare(record: Record | None, reference: Record, tolerances: Tolerances) -> list[Comparison]:
    """The judged metrics of a reference record beside those of the run here (None: no record)."""
    here = {} if record is None else record["metrics"]
    return [
        Comparison(
            run=f"{reference['notebook']} {reference['name']}",
            metric=name,
            value=here[name]["value"] if name in here else None,
            reference=entry["value"],
            tolerance=tolerances.of(reference, name),
        )
        for name, entry in reference["metrics"].items()
        if entry["unit"] not in NOT_JUDGED
    ]


class Tolerances:
    """How far metrics spread over seeds, by run and metric."""

    def __init__(self, records: Iterable[Record]) -> None:
        records = list(records)
        self._dense = {
            _measured_on(record): record["metrics"]
            for record in records
            if record["parameters"].get("method") == "dense"
        }
        groups: dict[str, dict[str, Record]] = defaultdict(dict)
        for record in records:  # by all but the seeds, then by the seeds
            asked = _asked(record)
            seeds = json.dumps({k: asked.pop(k) for k in sorted(asked) if "seed" in k})
            groups[json.dumps([record["notebook"], asked], sort_keys=True)][seeds] = record
        # by metric, whether the spread is a share of the damage, and notebook or cell
        self._spreads: dict[tuple[Any, ...], float] = defaultdict(float)
        for group in groups.values():
            self._add(list(group.values()))

    def _add(self, group: list[Record]) -> None:
        """Take in the spread of every metric of records that differ in nothing but seeds."""
        for name in group[0]["metrics"]:
            found = [record for record in group if name in record["metrics"]]
            values = [record["metrics"][name]["value"] for record in found]
            damages = [self._damage(record, name) for record in found]
            spreads = {}
            if len(values) > 1 and sum(values) != 0:
                spreads[False] = _relative_range(values)
                if None not in damages and min(damages) >= LEAST_DAMAGE:
                    spreads[True] = _relative_range(damages)
            for of_damage, spread in spreads.items():
                for place in _groups_of(group[0]):
                    key = (name, of_damage, place)
                    self._spreads[key] = max(spread, self._spreads[key])

    def _damage(self, record: Record, name: str) -> float | None:
        """ln(perplexity / dense perplexity), at least 0; None if not a perplexity or not known."""
        dense = self._dense.get(_measured_on(record), {}).get(name)
        if not name.startswith("perplexity") or dense is None:
            return None
        return max(0.0, math.log(record["metrics"][name]["value"] / dense["value"]))

    def _spread(self, record: Record, name: str, of_damage: bool) -> float | None:
        """The largest spread of the run's own cell, else of its notebook; None without seeds."""
        found = (self._spreads.get((name, of_damage, group)) for group in _groups_of(record))
        return next((spread for spread in found if spread is not None), None)

    def of(self, reference: Record, metric: str) -> float:
        """The tolerance of a metric of a run, a fraction of its reference value."""
        entry = reference["metrics"][metric]
        if "tolerance" in entry:
            return float(entry["tolerance"])
        if metric in EXACT or isinstance(entry["value"], int):
            return 0.0
        spread, share = (self._spread(reference, metric, kind) for kind in (False, True))
        damage = self._damage(reference, metric)
        if damage is not None and share is not None:
            spread = math.expm1(share * damage)
        return UNKNOWN if spread is None else min(max(spread, FLOOR), CEILING)


def _relative_range(values: list[float]) -> float:
    return (max(values) - min(values)) / abs(sum(values) / len(values))


def _groups_of(record: Record) -> list[str]:
    """Where a run's spread is looked up: first its table cell, then its notebook."""
    cell = [record["notebook"], *(record["parameters"].get(key) for key in CELL)]
    return [json.dumps(cell), record["notebook"]]


def _measured_on(record: Record) -> str:
    """The model, text and windows of a record, and its notebook."""
    return json.dumps([record["notebook"], *(record["parameters"].get(k) for k in MEASURED_ON)])


def to_lines(comparisons: Iterable[Comparison]) -> list[str]:
    """The comparisons as aligned lines with a heading; the last column marks what is apart."""
    rows = [("run", "metric", "here", "reference", "apart", "allowed", "")]
    for item in comparisons:
        here = "missing" if item.value is None else f"{item.value:.5g}"
        apart = "" if item.difference is None else f"{100 * item.difference:+.2f} %"
        allowed = f"{100 * item.tolerance:.1f} %" if item.tolerance else "equal"
        mark = "" if item.within else "OUT"
        rows.append((item.run, item.metric, here, f"{item.reference:.5g}", apart, allowed, mark))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def equal_to_printed_digits(record: Record, reference: Record) -> list[str]:
    """What differs between two records of a run in what tables print, to the digits they print.

    Compared are metrics and the series that tables are made of; times and memory are not. A
    difference of at most ABSOLUTE in an excess, which is zero at the optimum, is rounding. One line
    for each value that differs or that only one of them has; [] if the tables would be equal.
    """
    here, there = dict(_printed(record)), dict(_printed(reference))
    differing = []
    for name in sorted(here.keys() | there.keys()):
        value, expected = here.get(name), there.get(name)
        rounding = name.endswith(".excess") and None not in (value, expected)
        if rounding and abs(value - expected) <= ABSOLUTE:
            continue
        texts = ["missing" if v is None else format_number(v) for v in (value, expected)]
        if texts[0] != texts[1]:
            differing.append(f"{record_id(reference)} {name}: {texts[0]}, reference {texts[1]}")
    return differing


def _printed(record: Record) -> Iterator[tuple[str, float | str]]:
    """The numbers and texts that tables print, by where they are in the record."""
    parts = {
        name: entry["value"]
        for name, entry in record["metrics"].items()
        if entry["unit"] not in NOT_JUDGED
    }
    parts |= {k: v for k, v in (record.get("series") or {}).items() if k in PRINTED_SERIES}

    def leaves(value: Any, where: str) -> Iterator[tuple[str, float | str]]:
        if isinstance(value, Mapping):
            for key, item in value.items():
                if key != "seconds":
                    yield from leaves(item, f"{where}.{key}")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from leaves(item, f"{where}[{index}]")
        elif value is not None:
            yield where, value

    for name, value in parts.items():
        yield from leaves(value, name)
