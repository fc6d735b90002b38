"""The verdict: what was measured here beside the committed record of the same run.

How close is close enough comes from the spread between seeds: rounding differs between kinds of
CPU and moves weights across a mask's edge, so that a rerun may end up as far away as another seed.
Records that differ in nothing but their seeds form a group, with a relative range
(max - min) / |mean|. A run's tolerance is the largest of the groups with its own method, sparsity
and pattern, else of all groups of its notebook, between FLOOR and CEILING; UNKNOWN without seeds.
The spread of a perplexity grows with the damage that pruning did, ln(perplexity / dense), and is
taken as a share of it where the dense model's perplexity is known. A metric that carries its own
"tolerance" uses that. Sparsity and whole numbers must be equal; times and memory are not judged.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from helpers.paths import TABLES_NOTEBOOK
from helpers.results.frame import Record, record_id
from helpers.results.tables import format_number

FLOOR = 0.02  # what rounding alone may do
CEILING = 0.15  # beyond this two methods could no longer be distinguished
UNKNOWN = 0.05
ABSOLUTE = 1e-6  # differences this small are rounding, whatever the value
NOT_JUDGED = ("s", "min", "h", "bytes", "MB", "MiB", "GB", "GiB")
CELL = ("method", "sparsity", "pattern")
# what two perplexities must have in common to be compared with one dense model
MEASURED_ON = ("model", "revision", "evaluation", "window", "windows", "dtype")
LEAST_DAMAGE = 0.1  # of seeds; a spread that is a share of less says nothing
PRINTED_SERIES = ("update", "ablation", "zero_shot")  # those that tables are made of


class Comparison(NamedTuple):
    """One metric of one run: here (None: not measured), in the reference, and how far apart."""

    run: str
    metric: str
    value: float | None
    reference: float
    tolerance: float  # a fraction of the reference; 0 means equal
    within: bool


class Verdict(NamedTuple):
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
    a committed one of the same parameters counts as without. `spread` are more committed records,
    which only say how far seeds spread; `defaults`, by notebook, is as in `same_run`.
    """
    here, committed = (
        {record_id(record): record for record in found if record["notebook"] != TABLES_NOTEBOOK}
        for found in (records, reference)
    )
    tolerances = Tolerances([*committed.values(), *spread])
    without, comparisons = here.keys() - committed.keys(), []
    for name, expected in committed.items():
        record = here.get(name, {"metrics": {}})
        since = (defaults or {}).get(expected["notebook"])
        if name in here and not same_run(record, expected, since):
            without.add(name)
            continue
        run = f"{expected['notebook']} {expected['name']}"
        for metric, entry in expected["metrics"].items():
            if entry["unit"] not in NOT_JUDGED:
                value = record["metrics"].get(metric, {}).get("value")
                there, tolerance = entry["value"], tolerances.of(expected, metric)
                allowed = max(tolerance * abs(there), ABSOLUTE)
                within = value is not None and abs(value - there) <= allowed
                comparisons.append(Comparison(run, metric, value, there, tolerance, within))
    compared = {item.run for item in comparisons}
    apart = {item.run for item in comparisons if not item.within}
    return Verdict(comparisons, len(compared), len(compared - apart), len(without))


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


def _among(record: Record, names: Iterable[str]) -> str:
    """The notebook of a record and some of its parameters, as a key."""
    return json.dumps([record["notebook"], *(record["parameters"].get(name) for name in names)])


class Tolerances:
    """How far metrics spread over seeds, by run and metric."""

    def __init__(self, records: Iterable[Record]) -> None:
        records = list(records)
        self._dense = {
            _among(record, MEASURED_ON): record["metrics"]
            for record in records
            if record["parameters"].get("method") == "dense"
        }
        groups: dict[str, dict[str, Record]] = defaultdict(dict)
        for record in records:  # by all but the seeds, then by the seeds
            asked = _asked(record)
            seeds = json.dumps({k: asked.pop(k) for k in sorted(asked) if "seed" in k})
            groups[json.dumps([record["notebook"], asked], sort_keys=True)][seeds] = record
        # by metric, whether the spread is a share of the damage, and cell or notebook
        self._spreads: dict[tuple[str, bool, str], float] = defaultdict(float)
        for first, *more in map(list, map(dict.values, groups.values())):
            for name in first["metrics"]:
                found = [record for record in (first, *more) if name in record["metrics"]]
                values = [record["metrics"][name]["value"] for record in found]
                damages = [self._damage(record, name) for record in found]
                usable = None not in damages and min(damages) >= LEAST_DAMAGE
                for of_damage, numbers in enumerate([values, damages] if usable else [values]):
                    if len(numbers) > 1 and sum(values) != 0:
                        spread = (max(numbers) - min(numbers)) / abs(sum(numbers) / len(numbers))
                        for key in self._keys(first, name, bool(of_damage)):
                            self._spreads[key] = max(spread, self._spreads[key])

    def _keys(self, record: Record, name: str, of_damage: bool) -> list[tuple[str, bool, str]]:
        """Where a spread is looked up: that of the run's own cell, then that of its notebook."""
        return [(name, of_damage, _among(record, names)) for names in (CELL, ())]

    def _damage(self, record: Record, name: str) -> float | None:
        """ln(perplexity / dense perplexity), at least 0; None if not a perplexity or not known."""
        dense = self._dense.get(_among(record, MEASURED_ON), {}).get(name)
        if not name.startswith("perplexity") or dense is None:
            return None
        return max(0.0, math.log(record["metrics"][name]["value"] / dense["value"]))

    def of(self, reference: Record, metric: str) -> float:
        """The tolerance of a metric of a run, a fraction of its reference value."""
        entry = reference["metrics"][metric]
        if "tolerance" in entry:
            return float(entry["tolerance"])
        if metric == "sparsity" or isinstance(entry["value"], int):
            return 0.0
        keys = (self._keys(reference, metric, of_damage) for of_damage in (False, True))
        spread, share = (self._spreads.get(own, self._spreads.get(all_)) for own, all_ in keys)
        damage = self._damage(reference, metric)
        if damage is not None and share is not None:
            spread = math.expm1(share * damage)
        return UNKNOWN if spread is None else min(max(spread, FLOOR), CEILING)


def to_lines(comparisons: Iterable[Comparison]) -> list[str]:
    """The comparisons as aligned lines with a heading; the last column marks what is apart."""
    rows = [("run", "metric", "here", "reference", "apart", "allowed", "")]
    for item in comparisons:
        here, apart = "missing" if item.value is None else f"{item.value:.5g}", ""
        if item.value is not None and item.reference:
            apart = f"{100 * (item.value - item.reference) / abs(item.reference):+.2f} %"
        allowed = f"{100 * item.tolerance:.1f} %" if item.tolerance else "equal"
        mark = "" if item.within else "OUT"
        rows.append((item.run, item.metric, here, f"{item.reference:.5g}", apart, allowed, mark))
    run, metric, *numbers = (max(map(len, column)) for column in zip(*rows, strict=True))
    line = f"{{:{run}}}  {{:{metric}}}" + "".join(f"  {{:>{width}}}" for width in numbers)
    return [line.format(*row).rstrip() for row in rows]


def equal_to_printed_digits(record: Record, reference: Record) -> list[str]:
    """What differs between two records of a run in what tables print, to the digits they print.

    One line for each value that differs or that only one of them has; times and memory are not
    compared. At most ABSOLUTE between two excesses, which are zero at the optimum, is rounding.
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
    metrics, series = record["metrics"].items(), (record.get("series") or {}).items()
    parts = [(name, m["value"]) for name, m in metrics if m["unit"] not in NOT_JUDGED]
    parts += [(name, value) for name, value in series if name in PRINTED_SERIES]
    while parts:
        where, value = parts.pop()
        if isinstance(value, Mapping):
            parts += [(f"{where}.{key}", v) for key, v in value.items() if key != "seconds"]
        elif isinstance(value, list):
            parts += [(f"{where}[{index}]", v) for index, v in enumerate(value)]
        elif value is not None:
            yield where, value
