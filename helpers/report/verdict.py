"""The verdict: what was measured here beside the committed record of the same run.

It has two levels. *On the same kind of machine* (processor, device, threads, and versions of the
packages that compute) a run repeats itself, so its numbers must agree to SAME, those of each layer
too, and masks, tokens and answers must be equal. *On another machine* rounding differs. It moves
weights across a mask's edge, which a growing mask and the blocks that follow amplify, so there a
number may differ by

- ROUNDING where no calibration text is read (the dense model, magnitude), with equal masks;
- the range over seeds, at least FLOOR and at most CEILING, where the plan has three or more
  committed seeds of the same run;
- else a stated bound: a perplexity SHARE of the damage ln(perplexity / dense), the median ratio of
  the layers' errors MEDIAN, any other number FLOOR. The bounds come from committed records that
  differ in rounding alone: `laptop` on two kinds of processor and `full` by two solvers. The
  largest differences there were 2.6 % of the damage, 1.0 % in the median ratio and 1.2 % in the
  mean error; 54 of 700 answers turned under a growing mask, and none of the dense model's.

Zero-shot is judged by the items whose answer changed, not by accuracy. Tokens must be equal on any
machine. A metric that carries its own "tolerance" uses that. Sparsity and whole numbers must be
equal; times and memory are not judged. What a committed record lacks is not compared. A run with
another seed is another run: it has no reference.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from helpers.paths import TABLES_NOTEBOOK
from helpers.report.frame import Record, record_id
from helpers.report.tables import format_number

SAME, ROUNDING = 1e-3, 1e-4
FLOOR, CEILING, FEWEST_SEEDS = 0.02, 0.15, 3
SHARE, MEDIAN = 0.04, 0.015
UNKNOWN = 0.05  # of a perplexity whose dense model is not known
TURNED = 0.10  # the chance that an item's answer turns on another machine
TURNED_BLIND = 0.01  # the same where no calibration text is read
RARE = 1e-3  # the chance that an honest run is apart in its answers
ABSOLUTE = 1e-6  # smaller differences are rounding, whatever the value
ABSOLUTE_SAME = 1e-9  # the same on the same kind of machine
NOT_JUDGED = ("s", "min", "h", "bytes", "MB", "MiB", "GB", "GiB")
# what two perplexities must have in common to be compared with one dense model
MEASURED_ON = ("model", "revision", "evaluation", "window", "windows", "dtype")
ROWS = ("update", "ablation")  # series that tables are made of
PRINTED_SERIES = (*ROWS, "zero_shot")
COMPUTING = ("torch", "transformers", "tokenizers", "numpy", "lm-eval")  # packages


class Comparison(NamedTuple):
    """One number or property of one run: here and in the reference, and what was allowed."""

    run: str
    what: str
    here: float | str
    reference: float | str
    apart: float | None  # the relative difference of two numbers, with its sign, where finite
    allowed: str
    within: bool


class Verdict(NamedTuple):
    """Every comparison of a plan, and how many runs were compared, agree and so on."""

    comparisons: list[Comparison]
    compared: int  # committed runs, those without a record here among them
    reproduced: int
    missing: int  # not run here
    without: int  # run here, without a reference
    machines: dict[str, list[str]]  # by run: what differs between the two machines
    lacking: Counter[str]  # what committed records lack, and in how many runs


def judge(
    records: Iterable[Record],
    reference: Iterable[Record],
    plan: Iterable[Record],
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> Verdict:
    """What was measured here beside the committed records of the same runs.

    A committed run that has no record here counts as compared and not reproduced; a record without
    a committed one of the same parameters counts as without. `plan` are all committed records of
    the plan, for its seeds and dense models; `defaults`, by notebook, is as in `same_run`.
    """
    here, committed = (
        {record_id(record): record for record in found if record["notebook"] != TABLES_NOTEBOOK}
        for found in (records, reference)
    )
    tolerances = Tolerances(plan)
    without, missing, comparisons, machines, lacking = 0, 0, [], {}, Counter()
    for name, expected in committed.items():
        run = _run(expected)
        if name not in here:
            missing += 1
            comparisons.append(Comparison(run, "record", "missing", "", None, "", False))
        elif same_run(here[name], expected, (defaults or {}).get(expected["notebook"])):
            machines[run] = machine_differences(here[name], expected)
            lacking.update(_lacking(expected))
            comparisons += _compare(here[name], expected, tolerances, not machines[run])
        else:
            without += 1
    apart = {item.run for item in comparisons if not item.within}
    compared = len(committed) - without
    without += len(here.keys() - committed.keys())
    reproduced = compared - len(apart)
    return Verdict(comparisons, compared, reproduced, missing, without, machines, lacking)


def same_run(record: Record, reference: Record, defaults: Mapping[str, Any] | None = None) -> bool:
    """Whether two records have the same notebook and parameters; the device may differ.

    A parameter that the notebook has gained since the reference was made counts there with the
    value in `defaults`.
    """
    asked = _asked(record)
    since = {key: value for key, value in (defaults or {}).items() if key in asked}
    return record["notebook"] == reference["notebook"] and asked == since | _asked(reference)


def machine_differences(record: Record, reference: Record) -> list[str]:
    """What may make two records round differently: empty on the same kind of machine.

    Where only one of them names its processor the other counts as unknown, which is another.
    """

    def describe(of: Record) -> dict[str, Any]:
        device, _, threads = of.get("device", "unknown").partition(", ")
        processor = (of.get("platform") or {}).get("processor")
        batch = (of.get("series") or {}).get("batch")  # halved where memory ran out
        versions = of.get("versions") or {}
        made = {"processor": processor, "device": device, "threads": threads.partition(" ")[0]}
        return made | {"batch": batch} | {name: versions.get(name) for name in COMPUTING}

    here, there = describe(record), describe(reference)
    if None in (here["batch"], there["batch"]):  # not every notebook always wrote it
        here["batch"] = there["batch"] = None
    apart = [key for key in here if here[key] != there[key]]
    return [
        f"{key} {here[key] or 'unknown'} here, {there[key] or 'unknown'} there" for key in apart
    ]


class Tolerances:
    """How far numbers may differ on another machine, from the committed records of a plan."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._dense: dict[str, Mapping[str, Any]] = {}
        # by run without its seeds, then by seeds: of several records of one seed the last counts
        self._seeds: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
        for record in records:
            if record["parameters"].get("method") == "dense":
                self._dense[_measured_on(record)] = record["metrics"]
            self._seeds[_but_seeds(record)][_seeds_of(record)] = record["metrics"]

    def of(self, reference: Record, metric: str) -> tuple[float, str]:
        """The tolerance of a metric, a fraction of its reference value, and where it comes from."""
        if _blind(reference) and reference["parameters"].get("dtype", "float32") == "float32":
            return ROUNDING, "rounding"
        value = reference["metrics"][metric]["value"]
        seeds = self._seeds[_but_seeds(reference)].values()
        found = [metrics[metric]["value"] for metrics in seeds if metric in metrics]
        if len(found) >= FEWEST_SEEDS and sum(found):
            spread = (max(found) - min(found)) / abs(statistics.fmean(found))
            return min(max(spread, FLOOR), CEILING), f"{len(found)} seeds"
        if not metric.startswith("perplexity"):
            return FLOOR, "bound"
        dense = self._dense.get(_measured_on(reference), {}).get(metric)
        if dense is None:
            return UNKNOWN, "bound"
        return max(FLOOR, math.expm1(SHARE * math.log(value / dense["value"]))), "bound"


def _asked(record: Record) -> dict[str, Any]:
    """The parameters that define a run, wherever it runs."""
    return {key: value for key, value in record["parameters"].items() if key != "device"}


def _but_seeds(record: Record) -> str:
    """The notebook and all parameters but seeds, as a key."""
    asked = {key: value for key, value in _asked(record).items() if "seed" not in key}
    return json.dumps([record["notebook"], asked], sort_keys=True)


def _seeds_of(record: Record) -> str:
    """The seeds of a run, as a key."""
    seeds = {key: value for key, value in _asked(record).items() if "seed" in key}
    return json.dumps(seeds, sort_keys=True)


def _measured_on(record: Record) -> str:
    """What a perplexity was measured on, as a key."""
    return json.dumps([record["parameters"].get(name) for name in MEASURED_ON])


def _blind(record: Record) -> bool:
    """Whether a run is known to have read no calibration text."""
    return record.get("data") is not None and "calibration" not in record["data"]


def _lacking(reference: Record) -> Iterator[str]:
    """What is compared, but not where the committed record is older than it."""
    if any(layer.get("mask") is None for layer in reference.get("layers") or ()):
        yield "masks"
    texts = [(reference.get("data") or {}).get(text) for text in ("calibration", "evaluation")]
    if any(text is not None and "tokens" not in text for text in texts):
        yield "tokens"
    series = reference.get("series") or {}
    if "zero_shot" in series and "answers" not in series:
        yield "answers"


# ------------------------------------------------------------------ one run


def _compare(
    record: Record, reference: Record, tolerances: Tolerances, same: bool
) -> Iterator[Comparison]:
    """The comparisons of one run; `same`: on the same kind of machine."""
    yield from _metrics(record, reference, tolerances, same)
    yield from _tokens(record, reference)
    yield from _layers(record, reference, same)
    if same:  # the rows that tables are made of
        here, there = (
            {name: value for name, value in _printed(found) if name.partition("[")[0] in ROWS}
            for found in (record, reference)
        )
        if there:
            count = sum(_differ(here.get(key), value) for key, value in there.items())
            yield _count(reference, "numbers in series", count, len(there))
    if there := _answers(reference, reference, same):
        here = _answers(record, reference, same)
        share = 0.0 if same else TURNED_BLIND if _blind(reference) else TURNED
        count = sum(here.get(key) != answer for key, answer in there.items())
        yield _count(reference, "answers", count, len(there), most_turned(len(there), share))


def _metrics(
    record: Record, reference: Record, tolerances: Tolerances, same: bool
) -> Iterator[Comparison]:
    by_item = "zero_shot" in (reference.get("series") or {})
    for metric, entry in reference["metrics"].items():
        # accuracies, which carry a tolerance, are judged by their items
        if entry["unit"] in NOT_JUDGED or (by_item and "tolerance" in entry):
            continue
        tolerance, basis = tolerances.of(reference, metric)
        if same and tolerance > SAME:
            tolerance, basis = SAME, "same machine"
        if "tolerance" in entry:
            tolerance, basis = float(entry["tolerance"]), "its own"
        elif metric == "sparsity" or isinstance(entry["value"], int):
            tolerance, basis = 0.0, ""
        here = record["metrics"].get(metric, {}).get("value")
        yield _number(reference, metric, here, entry["value"], tolerance, basis, same)


def _tokens(record: Record, reference: Record) -> Iterator[Comparison]:
    run, texts = _run(reference), record.get("data") or {}
    for text, there in (reference.get("data") or {}).items():
        if isinstance(there, Mapping) and "tokens" in there:
            here, wanted = (texts.get(text) or {}).get("tokens", "missing"), there["tokens"]
            yield Comparison(run, f"{text} tokens", here, wanted, None, "equal", here == wanted)


def _layers(record: Record, reference: Record, same: bool) -> Iterator[Comparison]:
    mine, theirs = (
        {(layer["block"], layer["name"]): layer for layer in found.get("layers") or ()}
        for found in (record, reference)
    )
    errors = [
        (mine.get(key, {}).get("error"), layer["error"])
        for key, layer in theirs.items()
        if layer["error"] is not None
    ]
    if errors and same:
        furthest = max((_apart(*pair, ABSOLUTE_SAME) for pair in errors), key=abs)
        what, basis = "layer error, furthest", "same machine"
        yield _number(reference, what, 1 + furthest, 1.0, SAME, basis, same)
    elif errors:
        ratios = [here / there for here, there in errors if here and there]
        median = statistics.median(ratios) if ratios else None
        yield _number(reference, "layer error, median ratio", median, 1.0, MEDIAN, "bound", same)
    masks = {key: layer["mask"] for key, layer in theirs.items() if layer.get("mask")}
    if masks and (same or _blind(reference)):
        count = sum(mine.get(key, {}).get("mask") != mask for key, mask in masks.items())
        yield _count(reference, "masks", count, len(masks))


def _run(record: Record) -> str:
    return f"{record['notebook']} {record['name']}"


def _number(
    reference: Record,
    what: str,
    here: float | None,
    there: float,
    tolerance: float,
    basis: str,
    same: bool,
) -> Comparison:
    apart = _apart(here, there, ABSOLUTE_SAME if same else ABSOLUTE)
    within = abs(apart) <= tolerance if tolerance else here == there
    allowed = f"{100 * tolerance:.3g} % ({basis})" if tolerance else "equal"
    shown = "missing" if here is None else here
    finite = apart if math.isfinite(apart) else None
    return Comparison(_run(reference), what, shown, there, finite, allowed, within)


def _count(reference: Record, what: str, count: int, total: int, most: int = 0) -> Comparison:
    shown, allowed = f"{count} of {total} differ", f"{most} of {total}" if most else "equal"
    return Comparison(_run(reference), what, shown, "", None, allowed, count <= most)


def _apart(here: float | None, there: float, tiny: float) -> float:
    """The relative difference of two numbers; infinite for a missing one, 0 for rounding."""
    if here is None:
        return math.inf
    if abs(here - there) <= tiny:
        return 0.0
    return (here - there) / abs(there) if there else math.inf


def _differ(here: float | str | None, there: float | str) -> bool:
    """Whether two values of a series differ on the same kind of machine."""
    if here is None or isinstance(here, str) or isinstance(there, str):
        return here != there
    return abs(_apart(here, there, ABSOLUTE_SAME)) > SAME


def _answers(record: Record, reference: Record, same: bool) -> dict[tuple[str, int], tuple]:
    """By task and item whether an answer of a run was right, and which it was.

    On the same kind of machine also whether the choice by length-normalised likelihood was right.
    Of both only what the reference has.
    """
    series, there = (found.get("series") or {} for found in (record, reference))
    found = {}
    for task, score in series.get("zero_shot", {}).items():
        columns = [score["acc"]]
        if all(task in side.get("answers", {}) for side in (series, there)):
            columns.append(series["answers"][task])
        norms = (
            side.get("zero_shot", {}).get(task, {}).get("acc_norm") for side in (series, there)
        )
        if same and all(norms):
            columns.append(score["acc_norm"])
        for item, *answer in zip(score["items"], *columns, strict=False):
            found[task, item] = tuple(answer)
    return found


def most_turned(items: int, share: float) -> int:
    """How many answers may turn, each with chance `share`: RARE runs have more (binomial)."""
    if not share:
        return 0
    left, most = 1.0, -1
    while left > RARE:
        most += 1
        ways = math.lgamma(items + 1) - math.lgamma(most + 1) - math.lgamma(items - most + 1)
        left -= math.exp(ways + most * math.log(share) + (items - most) * math.log1p(-share))
    return most


# ------------------------------------------------------------------ printed digits


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
