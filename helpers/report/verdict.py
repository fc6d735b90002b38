"""The verdict: what was measured here beside the committed record of the same run.

It has two levels. *On the same kind of machine* (processor, device, threads, and versions of the
packages that compute) a run repeats itself, so its numbers must agree to SAME, those of each layer
too, and masks, tokens and answers must be equal. *On another machine* rounding differs. It moves
weights across a mask's edge, which a gradual mask and the blocks that follow amplify. In the first
blocks it is still tiny, and a broken solver shows there. So on another machine

- what reads no calibration text (the dense model, magnitude) may differ by ROUNDING, with equal
  masks;
- the error of each layer by what LAYERS says of its block, and the median over all by MEDIAN;
  in block 0 by GUIDED where a guide or OWL, which round too, has said what to prune;
- a perplexity by a share of the damage ln(perplexity / dense), as a divergence, which is a damage:
  SHARES by method, SHARE for all others and for whatever is guided or trained;
- any other number by FLOOR or, if that is more, by the range over seeds where the plan has three or
  more committed ones of the same run; no number by more than CEILING.

The bounds come from pairs of records that differ in rounding alone (tests/two_processors.json): 53
runs of `laptop` and `second` on two kinds of processor. The largest differences there are, of the
damage, 0.85 % (Wanda), 0.14 % (ADMM1), 2.6 % (SparseGPT), 2.2 % (ADMM-Grad), 4.8 % (ALPS) and 5.5 %
(the recipe); of a layer's error 0.10 % in block 0 (0.17 % with a guide), 0.8 % in block 1, 5.3 % up
to block 7 and 18 % after it; 1.3 % of the median and 1.2 % of the mean error. 54 of 700 answers
turned under a gradual mask, and none of the dense model's. A third kind (AMD EPYC, family 25) gives
the digits of the second. What moves block 0 by less than LAYERS may pass on another machine.

Zero-shot is judged by the items whose answer changed, not by accuracy. Tokens must be equal on any
machine. A metric that carries its own "tolerance" uses that. Sparsity and whole numbers must be
equal; times and memory are not judged. What a committed record lacks is not compared. A run with
another seed is another run: it has no reference.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from scipy import stats

from helpers.paths import TABLES_NOTEBOOK
from helpers.report.frame import Record, record_id
from helpers.report.tables import format_number, sections

SAME, ROUNDING = 1e-3, 1e-4
FLOOR, CEILING, FEWEST_SEEDS = 0.02, 0.15, 3
SHARE, MEDIAN = 0.075, 0.02
SHARES = {"wanda": 0.015, "admm1": 0.005, "sparsegpt": 0.04, "admm-grad": 0.04}
# by block, of a layer's error; each is for all blocks from there to the next
LAYERS = {0: 1.5e-3, 1: 2e-2, 2: 0.15, 8: 0.5}
GUIDED = LAYERS | {0: 5e-3}
STEERED = (
    "allocation",
    "effort",
    "repair",
)  # parameters by which a run is guided or trained
CLOSE = 2.0  # times a bound: another kind of processor may exceed it by so much
UNKNOWN = 0.05  # of a perplexity whose dense model is not known
TURNED = 0.10  # the chance that an item's answer turns on another machine
TURNED_BLIND = 0.01  # the same where no calibration text is read
RARE = 1e-3  # the chance that an honest run is apart in its answers
ABSOLUTE = 1e-6  # smaller differences are rounding, whatever the value
ABSOLUTE_SAME = 1e-9  # the same on the same kind of machine
SUMMED = 1e-13  # of equal numbers: Python 3.12 adds floats more exactly than 3.11
NOT_JUDGED = ("s", "min", "h", "bytes", "MB", "MiB", "GB", "GiB")
# what two perplexities must have in common to be compared with one dense model
MEASURED_ON = ("model", "revision", "evaluation", "window", "windows", "dtype")
ROWS = ("update", "ablation")  # series that tables are made of
COMPUTING = ("torch", "transformers", "tokenizers", "numpy", "lm-eval")  # packages


class Comparison(NamedTuple):
    """One number or property of one run: here and in the reference, and what was allowed."""

    run: str
    what: str
    here: float | str
    reference: float | str
    apart: (
        float | None
    )  # the relative difference of two numbers, with its sign, where finite
    allowed: str
    within: bool
    close: bool = (
        False  # not within, on another machine, and by less than CLOSE times the bound
    )


class Verdict(NamedTuple):
    """Every comparison of a plan, and how many runs were compared, agree and so on."""

    comparisons: list[Comparison]
    compared: int  # committed runs, those without a record here among them
    reproduced: int
    missing: int  # not run here
    without: int  # run here, without a reference
    machines: dict[str, list[str]]  # by run: what differs between the two machines


def judge(
    records: Iterable[Record], reference: Iterable[Record], plan: Iterable[Record]
) -> Verdict:
    """What was measured here beside the committed records of the same runs (see `same_run`).

    A committed run that has no record here counts as compared and not reproduced, a record without
    a committed one as without. `plan` are all committed records of the plan, for its seeds and
    dense models.
    """
    here, committed = (
        {
            record_id(record): record
            for record in some
            if record["notebook"] != TABLES_NOTEBOOK
        }
        for some in (records, reference)
    )
    plan = list(plan)
    comparisons, machines = [], {}
    for name, expected in committed.items():
        run = f"{expected['notebook']} {expected['name']}"
        if name in here:
            machines[run] = machine_differences(here[name], expected)
            parts = _compare(here[name], expected, plan, same=not machines[run])
            comparisons += [Comparison(run, *part) for part in parts]
        else:
            comparisons.append(
                Comparison(run, "record", "missing", "", None, "", False)
            )
    apart = {item.run for item in comparisons if not item.within}
    missing, without = (
        len(a.keys() - b.keys()) for a, b in ((committed, here), (here, committed))
    )
    reproduced = len(committed) - len(apart)
    return Verdict(comparisons, len(committed), reproduced, missing, without, machines)


def same_run(
    record: Record, reference: Record, defaults: Mapping[str, Any] | None = None
) -> bool:
    """Whether two records have the same notebook and parameters; the device may differ.

    A parameter that the notebook has gained since the reference was made counts there with the
    value in `defaults`.
    """
    here, there = _parameters(record), _parameters(reference)
    since = {key: value for key, value in (defaults or {}).items() if key in here}
    return record["notebook"] == reference["notebook"] and here == since | there


def machine_differences(record: Record, reference: Record) -> list[str]:
    """What may make two records round differently: empty on the same kind of machine.

    What one of them does not name is not compared, but for the processor: an unknown one equals no
    other.
    """

    def describe(of: Record) -> dict[str, Any]:
        device, _, threads = of.get("device", "").partition(", ")
        made = {
            "processor": (of.get("platform") or {}).get("processor"),
            "device": device,
        }
        made["threads"] = threads.partition(" ")[0]
        made["batch"] = (of.get("series") or {}).get(
            "batch"
        )  # halved where memory ran out
        # without the label of a build: 2.13.0+cpu is on a processor what 2.13.0 is
        versions = {
            name: text.partition("+")[0]
            for name, text in of.get("versions", {}).items()
        }
        return made | {name: versions.get(name) for name in COMPUTING}

    here, there = describe(record), describe(reference)
    return [
        f"{key} {here[key] or 'unknown'} here, {there[key] or 'unknown'} there"
        for key in here
        if (here[key] != there[key] if here[key] and there[key] else key == "processor")
    ]


def tolerance_of(
    reference: Record, metric: str, plan: Sequence[Record]
) -> tuple[float, str]:
    """How far a metric may be apart on another machine, as a fraction of its value, and why.

    Args: plan, the committed records of the plan, with other seeds and the dense model.
    """
    parameters = reference["parameters"]
    # notebook 00 has a perplexity of its dense model and one of magnitude, beside its method's
    blind = _blind(reference) or metric.endswith(("_dense", "_magnitude"))
    if blind and parameters.get("dtype", "float32") == "float32":
        return ROUNDING, "rounding"
    steered = any(parameters.get(name) for name in STEERED)
    share = SHARE if steered else SHARES.get(parameters.get("method", ""), SHARE)
    if metric.startswith("divergence"):
        return share, "share of the damage"
    if metric.startswith("perplexity"):
        value, text = (
            reference["metrics"][metric]["value"],
            metric.removesuffix("_layers"),
        )
        # of a run that measures it too, as those of notebooks 08 and 00 do
        dense = [
            reference["metrics"].get(name)
            for name in (f"{text}_dense", "perplexity_dense")
        ]
        dense += [
            run["metrics"].get(text) for run in plan if _is_dense_of(run, reference)
        ]
        known = [entry["value"] for entry in dense if entry]
        if not known:
            return UNKNOWN, "bound"
        tolerance = max(ROUNDING, math.expm1(share * math.log(value / known[0])))
        return min(tolerance, CEILING), "share of the damage"
    bounds = [(FLOOR, "bound")]
    # of several records of one seed the last counts
    seeds = {
        json.dumps(_parameters(record), sort_keys=True): record["metrics"][metric][
            "value"
        ]
        for record in plan
        if metric in record["metrics"] and _but_seeds(record) == _but_seeds(reference)
    }
    if len(seeds) >= FEWEST_SEEDS and sum(seeds.values()):
        spread = max(seeds.values()) - min(seeds.values())
        bounds.append(
            (spread / abs(statistics.fmean(seeds.values())), f"{len(seeds)} seeds")
        )
    tolerance, basis = max(bounds)
    return min(tolerance, CEILING), basis


def _is_dense_of(record: Record, reference: Record) -> bool:
    """Whether a run is of the dense model, measured on the same text."""
    here, there = record["parameters"], reference["parameters"]
    alike = all(here.get(name) == there.get(name) for name in MEASURED_ON)
    return alike and here.get("method") == "dense"


def _parameters(record: Record) -> dict[str, Any]:
    """The parameters that define a run, wherever it runs."""
    return {
        key: value for key, value in record["parameters"].items() if key != "device"
    }


def _but_seeds(record: Record) -> tuple[str, dict[str, Any]]:
    """The notebook and all parameters but seeds."""
    parameters = _parameters(record).items()
    return record["notebook"], {
        key: value for key, value in parameters if "seed" not in key
    }


def _blind(record: Record) -> bool:
    """Whether a run is known to have read no calibration text."""
    return record.get("data") is not None and "calibration" not in record["data"]


# ------------------------------------------------------------------ one run

Part = tuple[Any, ...]  # a `Comparison` without its run


def _compare(
    record: Record, reference: Record, plan: Sequence[Record], same: bool
) -> Iterator[Part]:
    """The comparisons of one run; `same`: on the same kind of machine."""
    yield from _metrics(record, reference, plan, same)
    for text, there in (reference.get("data") or {}).items():
        if isinstance(there, Mapping) and "tokens" in there:
            here = ((record.get("data") or {}).get(text) or {}).get("tokens", "missing")
            yield (
                f"{text} tokens",
                here,
                there["tokens"],
                None,
                "equal",
                here == there["tokens"],
            )
    yield from _layers(record, reference, same)
    if same:
        yield from _series(record, reference)
    yield from _answers(record, reference, same)


def _metrics(
    record: Record, reference: Record, plan: Sequence[Record], same: bool
) -> Iterator[Part]:
    by_item = "zero_shot" in (reference.get("series") or {})
    for metric, entry in reference["metrics"].items():
        # accuracies, which carry a tolerance, are judged by their items
        if entry["unit"] in NOT_JUDGED or (by_item and "tolerance" in entry):
            continue
        if "tolerance" in entry:
            tolerance, basis = float(entry["tolerance"]), "its own"
        elif metric == "sparsity" or isinstance(entry["value"], int):
            tolerance, basis = 0.0, ""
        elif same and not _blind(reference):
            tolerance, basis = SAME, "same machine"
        else:
            tolerance, basis = tolerance_of(reference, metric, plan)
            tolerance = min(tolerance, SAME) if same else tolerance
        here = record["metrics"].get(metric, {}).get("value")
        yield _number(metric, here, entry["value"], tolerance, basis, same)


def _layers(record: Record, reference: Record, same: bool) -> Iterator[Part]:
    here, there = (
        {(layer["block"], layer["name"]): layer for layer in run.get("layers") or ()}
        for run in (record, reference)
    )
    apart = [
        (
            block,
            _apart(
                here.get((block, name), {}).get("error"), layer["error"], ABSOLUTE_SAME
            ),
        )
        for (block, name), layer in there.items()
        if layer["error"] is not None
    ]
    parameters = reference["parameters"]
    guided = parameters.get("allocation") or parameters.get("effort")
    bounds = {0: SAME} if same else GUIDED if guided else LAYERS
    for first, bound in bounds.items():
        group = [
            value
            for block, value in apart
            if max(b for b in bounds if b <= block) == first
        ]
        if group:
            what, furthest = (
                f"layer error, furthest from block {first}",
                max(group, key=abs),
            )
            yield _number(what, 1 + furthest, 1.0, bound, "bound", same)
    if apart and not same:
        median = statistics.median(value for _, value in apart)
        yield _number("layer error, median", 1 + median, 1.0, MEDIAN, "bound", same)
    masks = {key: layer["mask"] for key, layer in there.items() if layer.get("mask")}
    if masks and (same or _blind(reference)):
        count = sum(
            here.get(key, {}).get("mask") != mask for key, mask in masks.items()
        )
        yield _count("masks", count, len(masks))


def _series(record: Record, reference: Record) -> Iterator[Part]:
    """The numbers and texts in the rows that tables are made of."""
    here, there = (
        {
            (name, place, column): value
            for name in ROWS
            for place, row in enumerate((run.get("series") or {}).get(name) or ())
            for column, value in row.items()
            if column != "seconds" and value is not None
        }
        for run in (record, reference)
    )
    if there:
        count = sum(_differ(here.get(key), value) for key, value in there.items())
        yield _count("numbers in series", count, len(there))


def _answers(record: Record, reference: Record, same: bool) -> Iterator[Part]:
    """The items of zero-shot tasks: whether an answer was right, and where both know, which it was.

    On the same kind of machine also whether the choice by length-normalised likelihood was right.
    """

    def by_item(run: Record) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
        series = run.get("series") or {}
        for task, score in series.get("zero_shot", {}).items():
            columns = {
                "right": score["acc"],
                "answer": series.get("answers", {}).get(task),
            }
            columns["normalised"] = score.get("acc_norm") if same else None
            for place, item in enumerate(score["items"]):
                yield (
                    (task, item),
                    {key: some[place] for key, some in columns.items() if some},
                )

    here, there = dict(by_item(record)), dict(by_item(reference))
    count = sum(
        any(here.get(item, {}).get(key) != value for key, value in known.items())
        for item, known in there.items()
    )
    if there:
        turned = TURNED_BLIND if _blind(reference) else TURNED
        most = 0 if same else most_turned(len(there), turned)
        yield _count("answers", count, len(there), most)


def most_turned(items: int, share: float) -> int:
    """How many answers may turn, each with chance `share`: RARE runs have more (binomial)."""
    return int(stats.binom.isf(RARE, items, share))


def _number(
    what: str,
    here: float | None,
    there: float,
    tolerance: float,
    basis: str,
    same: bool,
) -> Part:
    apart = _apart(here, there, ABSOLUTE_SAME if same else ABSOLUTE)
    equal = here is not None and math.isclose(here, there, rel_tol=SUMMED)
    within = abs(apart) <= tolerance if tolerance else equal
    allowed = f"{100 * tolerance:.3g} % ({basis})" if tolerance else "equal"
    finite = apart if math.isfinite(apart) else None
    close = not same and not within and abs(apart) < CLOSE * tolerance
    here = "missing" if here in (None, math.inf) else here
    return what, here, there, finite, allowed, within, close


def _count(what: str, count: int, total: int, most: int = 0) -> Part:
    allowed = f"{most} of {total}" if most else "equal"
    return what, f"{count} of {total} differ", "", None, allowed, count <= most


def _apart(here: float | None, there: float, tiny: float) -> float:
    """The relative difference of two numbers; infinite for a missing one, 0 for rounding."""
    if here is None:
        return math.inf
    if abs(here - there) <= tiny:
        return 0.0
    return (here - there) / abs(there) if there else math.inf


def _differ(here: Any, there: Any) -> bool:
    """Whether two values of a series differ on the same kind of machine."""
    if here is None or isinstance(here, str) or isinstance(there, str):
        return here != there
    return abs(_apart(here, there, ABSOLUTE_SAME)) > SAME


# ------------------------------------------------------------------ printed digits


def equal_to_printed_digits(record: Record, reference: Record) -> list[str]:
    """The lines that differ between what is printed of two records of a run: their numbers, and
    the tables that each alone would give, without seconds and memory.
    """
    here, there = _printed(record), _printed(reference)
    return [
        f"{record_id(reference)} {name}: {here.get(name, 'missing')}, reference "
        f"{there.get(name, 'missing')}"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]


def _printed(record: Record) -> dict[str, str]:
    """The numbers that tables and pages print, by where they stand, as text."""
    metrics = record["metrics"].items()
    texts = {
        name: format_number(m["value"])
        for name, m in metrics
        if m["unit"] not in NOT_JUDGED
    }
    for section in chain(*sections([record]).values()):
        table = section.frame.filter(regex=r"^(?!.*(second|\(s\)|memory))")
        # an excess is zero at the optimum: below this it is rounding
        table = table.round({name: 4 for name in table if name.startswith("excess")})
        for (row, column), value in table.stack().items():
            texts[f"{section.about} {row}, {column}"] = format_number(value)
    return texts
