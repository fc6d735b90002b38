"""The verdict: what was measured here, compared with the committed record of the same run.

It has two levels. *On the same kind of machine* (processor, device, threads, and versions of the
packages that compute) a run repeats itself, so its numbers must agree to SAME, those of each layer
too, and masks, tokens and answers must be equal. *On another machine* rounding differs. It moves
weights across a mask's edge, which a gradual mask and the blocks that follow amplify. In the first
blocks it is still tiny, and a broken solver shows there. So on another machine

- what reads no calibration text (the dense model, magnitude) may differ by ROUNDING, with equal
  masks;
- the error of each layer by what LAYERS says of its block, and the median over all by MEDIAN;
  in block 0 by GUIDED where gradients or OWL, which round too, have chosen the sparsities;
- a perplexity by a share of the damage ln(perplexity / dense), as a divergence, which is a damage:
  SHARES by method, SHARE for all others and for every run that is guided or trained;
- any other number by FLOOR or, if that is more, by the range over seeds where the plan has three or
  more committed ones of the same run; no number by more than CEILING.

The bounds come from pairs of records that differ in rounding alone (tests/two_processors.json): 44
runs of `laptop` and `second` and nine of earlier code on two kinds of processor, both x86. The
bounds were chosen after these pairs were seen, and no others test them. The largest differences
there are, of the damage, 0.85 % (Wanda), 0.14 % (ADMM1), 2.6 % (SparseGPT), 2.2 % (ADMM-Grad), 4.8
% (ALPS) and 5.5 % (the recipe); of a layer's error 0.10 % in block 0 (0.17 % with a guide), 0.8 %
in block 1, 5.3 % up to block 7 and 18 % after it; 1.3 % of the median and 1.2 % of the mean error.
54 of 700 answers turned under a gradual mask, and none of the dense model's. A third kind (AMD
EPYC, family 25) gives the digits of the second. What moves block 0 by less than LAYERS may pass on
another machine.

Zero-shot is judged by the items whose answer changed, not by accuracy. Tokens must be equal on any
machine. A metric that carries its own "tolerance" uses that. Sparsity and whole numbers must be
equal; times and memory are not judged. What a committed record lacks is not compared. A run with
another seed is another run: it has no reference.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from scipy import stats

from helpers.report.records import Record, Records, record_id
from helpers.report.runs_table import processor_of

SAME = 1e-3
ROUNDING = 1e-4
FLOOR = 0.02
CEILING = 0.15
FEWEST_SEEDS = 3
SHARE = 0.075
SHARES = {
    "wanda": 0.015,
    "admm1": 0.005,
    "sparsegpt": 0.04,
    "admm-grad": 0.04,
}
MEDIAN = 0.02
# by block, of a layer's error; each is for all blocks from there to the next
LAYERS = {0: 1.5e-3, 1: 2e-2, 2: 0.15, 8: 0.5}
GUIDED = LAYERS | {0: 5e-3}
# parameters by which a run is guided or trained
STEERED = ("allocation", "effort", "repair")
CLOSE = 2.0  # times a bound: another kind of processor may exceed it by so much
UNKNOWN = 0.05  # of a perplexity whose dense model is not known
TURNED = 0.10  # the chance that an item's answer turns on another machine
TURNED_BLIND = 0.01  # the same where no calibration text is read
RARE = 1e-3  # the chance that an honest run is apart in its answers
ABSOLUTE = 1e-6  # smaller differences are rounding, however small the value
ABSOLUTE_SAME = 1e-9  # the same on the same kind of machine
SUMMED = 1e-13  # of equal numbers: Python 3.12 adds floats more exactly than 3.11
NOT_JUDGED = ("s", "min", "h", "bytes", "MB", "MiB", "GB", "GiB")
# what two perplexities must have in common to be compared with one dense model
MEASURED_ON = ("model", "revision", "evaluation", "window", "windows", "dtype")
ROWS = ("update", "ablation")  # series that tables are made of
COMPUTING = ("torch", "transformers", "tokenizers", "numpy", "lm-eval")  # packages


class Comparison(NamedTuple):
    """One number or property of one run, here and in the reference, and its tolerance."""

    run: str
    what: str
    here: float | str
    reference: float | str
    apart: float | None  # the signed relative difference of two numbers, where finite
    allowed: str
    within: bool
    # not within, on another machine, and by less than CLOSE times the bound
    close: bool = False


class Verdict(NamedTuple):
    """Every comparison of a plan, and how many runs were compared, agree and so on."""

    comparisons: list[Comparison]
    compared: int  # committed runs, those without a record here among them
    reproduced: int
    missing: int  # not run here
    without: int  # run here, without a reference
    machines: dict[str, list[str]]  # by run: what differs between the two machines


def judge(records: Records, reference: Records, plan: Sequence[Record]) -> Verdict:
    """Compare the records made here with the committed records of the same runs (`same_run`).

    A committed run that has no record here counts as compared and not reproduced, a record without
    a committed one as without. `plan` are all committed records of the plan, for its seeds and
    dense models.
    """
    here = {record_id(record): record for record in records}
    committed = {record_id(record): record for record in reference}
    comparisons = []
    machines = {}
    for name, expected in committed.items():
        run = f"{expected['notebook']} {expected['name']}"
        parts = [("record", "missing", "", None, "", False)]
        if name in here:
            machines[run] = machine_differences(here[name], expected)
            parts = _compare(here[name], expected, plan, same=not machines[run])
        comparisons += [Comparison(run, *part) for part in parts]
    apart = {item.run for item in comparisons if not item.within}
    return Verdict(
        comparisons,
        compared=len(committed),
        reproduced=len(committed) - len(apart),
        missing=len(committed.keys() - here.keys()),
        without=len(here.keys() - committed.keys()),
        machines=machines,
    )


def same_run(record: Record, reference: Record, defaults: Mapping[str, Any]) -> bool:
    """Whether two records have the same notebook and parameters; the device may differ.

    A parameter that the notebook has gained since the reference was made counts there with the
    value in `defaults`.
    """
    here = _parameters(record)
    there = _parameters(reference)
    gained = {key: value for key, value in defaults.items() if key in here}
    return record["notebook"] == reference["notebook"] and here == gained | there


def machine_differences(record: Record, reference: Record) -> list[str]:
    """What may make two records round differently: empty on the same kind of machine.

    What one of them does not name is not compared, except the processor: an unknown one equals no
    other.
    """
    there = _machine(reference)
    return [
        f"{key} {here or 'unknown'} here, {there[key] or 'unknown'} there"
        for key, here in _machine(record).items()
        if (here != there[key] if here and there[key] else key == "processor")
    ]


def _machine(record: Record) -> dict[str, Any]:
    """What decides how a record was rounded; None or "" for what it does not name."""
    device, _, threads = record.get("device", "").partition(", ")
    machine = {
        "processor": processor_of(record),
        "device": device,
        "threads": threads.partition(" ")[0],
        "batch": _series(record).get("batch"),  # halved where memory ran out
    }
    for name in COMPUTING:
        # without the label of a build: 2.13.0+cpu is on a processor what 2.13.0 is
        machine[name] = record.get("versions", {}).get(name, "").partition("+")[0]
    return machine


# ------------------------------------------------------------------ tolerances


def tolerance_of(
    reference: Record, metric: str, plan: Sequence[Record]
) -> tuple[float, str]:
    """How far a metric may be apart on another machine, as a fraction of its value, and why.

    Args: plan, the committed records of the plan, with other seeds and the dense model.
    """
    parameters = reference["parameters"]
    # notebook 00 measures its dense model and magnitude too
    blind = _blind(reference) or metric.endswith(("_dense", "_magnitude"))
    if blind and parameters.get("dtype", "float32") == "float32":
        return ROUNDING, "rounding"
    share = SHARES.get(parameters.get("method", ""), SHARE)
    if any(parameters.get(name) for name in STEERED):
        share = SHARE
    if metric.startswith("divergence"):
        return share, "share of the damage"
    if metric.startswith("perplexity"):
        dense = _dense_perplexity(reference, metric, plan)
        if dense is None:
            return UNKNOWN, "bound"
        damage = math.log(reference["metrics"][metric]["value"] / dense)
        tolerance = max(ROUNDING, math.expm1(share * damage))
        return min(tolerance, CEILING), "share of the damage"
    seeds = {}
    for run in plan:
        if metric in run["metrics"] and _but_seeds(run) == _but_seeds(reference):
            # of several records of one seed the last counts
            seed = json.dumps(_parameters(run), sort_keys=True)
            seeds[seed] = run["metrics"][metric]["value"]
    values = seeds.values()
    if len(values) >= FEWEST_SEEDS and sum(values):
        spread = max(values) - min(values)
        spread /= abs(statistics.fmean(values))
        if spread > FLOOR:
            return min(spread, CEILING), f"{len(values)} seeds"
    return FLOOR, "bound"


def _dense_perplexity(
    reference: Record, metric: str, plan: Sequence[Record]
) -> float | None:
    """The dense model's perplexity on the text of a metric; None if no record has it."""
    text = metric.removesuffix("_layers")
    # of a run that measures it too, as those of notebooks 08 and 00 do
    for name in (f"{text}_dense", "perplexity_dense"):
        if name in reference["metrics"]:
            return reference["metrics"][name]["value"]
    alike = {"method": "dense"}
    alike |= {name: reference["parameters"].get(name) for name in MEASURED_ON}
    for record in plan:
        parameters = {name: record["parameters"].get(name) for name in alike}
        if parameters == alike and text in record["metrics"]:
            return record["metrics"][text]["value"]
    return None


def _parameters(record: Record) -> dict[str, Any]:
    """The parameters that define a run, on whichever device it runs."""
    return record["parameters"] | {"device": None}


def _series(record: Record) -> Mapping:
    return record.get("series") or {}


def _but_seeds(record: Record) -> tuple[str, dict[str, Any]]:
    """The notebook and all parameters but seeds."""
    parameters = _parameters(record)
    seeds = (key for key in parameters if "seed" in key)
    return record["notebook"], parameters | dict.fromkeys(seeds)


def _blind(record: Record) -> bool:
    """Whether a run is known to have read no calibration text."""
    return record["data"] is not None and "calibration" not in record["data"]


# ------------------------------------------------------------------ one run

Part = tuple[Any, ...]  # a `Comparison` without its run


def _compare(
    record: Record, reference: Record, plan: Sequence[Record], same: bool
) -> Iterator[Part]:
    """The comparisons of one run; `same`: on the same kind of machine."""
    yield from _metrics(record, reference, plan, same)
    yield from _tokens(record, reference)
    yield from _layers(record, reference, same)
    if same:
        yield from _rows(record, reference)
    yield from _answers(record, reference, same)


def _metrics(
    record: Record, reference: Record, plan: Sequence[Record], same: bool
) -> Iterator[Part]:
    by_item = "zero_shot" in _series(reference)
    for metric, entry in reference["metrics"].items():
        # accuracies, which carry a tolerance, are judged by their items
        if entry["unit"] not in NOT_JUDGED and not (by_item and "tolerance" in entry):
            tolerance, basis = _tolerance(reference, metric, plan, same)
            here = record["metrics"].get(metric, {}).get("value")
            yield _number(metric, here, entry["value"], tolerance, basis, same)


def _tolerance(
    reference: Record, metric: str, plan: Sequence[Record], same: bool
) -> tuple[float, str]:
    """How far a metric may be apart, as a fraction, and why; 0 where it must be equal."""
    entry = reference["metrics"][metric]
    if "tolerance" in entry:
        return float(entry["tolerance"]), "its own"
    if metric == "sparsity" or isinstance(entry["value"], int):
        return 0.0, ""
    if same and not _blind(reference):
        return SAME, "same machine"
    tolerance, basis = tolerance_of(reference, metric, plan)
    return min(tolerance, SAME) if same else tolerance, basis


def _tokens(record: Record, reference: Record) -> Iterator[Part]:
    here = record["data"] or {}
    for text, identity in (reference["data"] or {}).items():
        if isinstance(identity, Mapping) and "tokens" in identity:
            tokens = (here.get(text) or {}).get("tokens", "missing")
            expected = identity["tokens"]
            yield f"{text} tokens", tokens, expected, None, "equal", tokens == expected


def _layers(record: Record, reference: Record, same: bool) -> Iterator[Part]:
    here = {
        (layer["block"], layer["name"]): layer for layer in record.get("layers") or ()
    }
    parameters = reference["parameters"]
    bounds = LAYERS
    if parameters.get("allocation") or parameters.get("effort"):
        bounds = GUIDED
    if same:
        bounds = {0: SAME}
    groups = defaultdict(list)  # of differences, by the block where their bound begins
    masks = []
    for layer in reference.get("layers") or ():
        ours = here.get((layer["block"], layer["name"]), {})
        if layer["error"] is not None:
            first = max(block for block in bounds if block <= layer["block"])
            apart = _apart(ours.get("error"), layer["error"], ABSOLUTE_SAME)
            groups[first].append(apart)
        if layer.get("mask"):
            masks.append(ours.get("mask") != layer["mask"])
    for first, apart in sorted(groups.items()):
        what = f"layer error, furthest from block {first}"
        furthest = 1 + max(apart, key=abs)
        yield _number(what, furthest, 1.0, bounds[first], "bound", same)
    if groups and not same:
        median = 1 + statistics.median(chain(*groups.values()))
        yield _number("layer error, median", median, 1.0, MEDIAN, "bound", same)
    if masks and (same or _blind(reference)):
        yield _count("masks", masks)


def _rows(record: Record, reference: Record) -> Iterator[Part]:
    """The numbers and texts in the rows that tables are made of."""
    here = _row_values(record)
    there = _row_values(reference).items()
    if there:
        differing = [_differ(here.get(key), value) for key, value in there]
        yield _count("numbers in series", differing)


def _row_values(record: Record) -> dict[tuple, Any]:
    """The values of those rows, without seconds, by series, row and column."""
    values = {}
    for name in ROWS:
        for place, row in enumerate(_series(record).get(name) or ()):
            for column, value in row.items():
                if column != "seconds" and value is not None:
                    values[name, place, column] = value
    return values


def _answers(record: Record, reference: Record, same: bool) -> Iterator[Part]:
    """The items of zero-shot tasks: whether an answer was right, and where both know, which it was.

    On the same kind of machine also whether the choice by length-normalised likelihood was right.
    """
    here = _answers_by_item(record, same)
    there = _answers_by_item(reference, same).items()
    # an item that is not there differs, and so does one of which less is known
    differing = [
        not known.items() <= here.get(item, {}).items() for item, known in there
    ]
    turned = TURNED_BLIND if _blind(reference) else TURNED
    if differing:
        most = 0 if same else most_turned(len(differing), turned)
        yield _count("answers", differing, most)


def _answers_by_item(
    record: Record, normalised: bool
) -> dict[tuple[str, int], Mapping]:
    """What is known of the answer to each item of each task."""
    found = {}
    for task, score in _series(record).get("zero_shot", {}).items():
        kinds = {
            "right": score["acc"],
            "answer": record["series"]["answers"][task],
            "normalised": normalised and score.get("acc_norm"),
        }
        for place, item in enumerate(score["items"]):
            found[task, item] = {
                kind: some[place] for kind, some in kinds.items() if some
            }
    return found


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
    if tolerance:
        allowed = f"{100 * tolerance:.3g} % ({basis})"
        within = abs(apart) <= tolerance
    else:
        allowed = "equal"
        within = here is not None and math.isclose(here, there, rel_tol=SUMMED)
    close = not same and not within and abs(apart) < CLOSE * tolerance
    finite = apart if math.isfinite(apart) else None
    printed = "missing" if here in (None, math.inf) else here
    return what, printed, there, finite, allowed, within, close


def _count(what: str, differing: Sequence[bool], most: int = 0) -> Part:
    count = sum(differing)
    found = f"{count} of {len(differing)} differ"
    allowed = f"{most} of {len(differing)}" if most else "equal"
    return what, found, "", None, allowed, count <= most


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
