"""The paper's claims, each with a test on the records of a plan and a verdict.

A claim is a sentence, the words of its test with its tolerance, and a function of the records
that gives a verdict with the numbers behind it. Without the records that a test needs the verdict
is "not tested here"; with too few of them to tell (one seed, some of the sparsities, a handful of
layers) or within the noise it is "not decided here".
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from helpers.paths import replace_file
from helpers.results.published import MODEL_NAMES
from helpers.results.tables import (
    PRUNE_NOTEBOOK,
    PRUNE_PARTS,
    USUAL,
    ZERO_SHOT_NOTEBOOK,
    column_of,
    common_setting,
    format_number,
    mean_of_tasks,
    paired_tasks,
)
from helpers.tasks import mean_and_error

Record = Mapping[str, Any]
Row = Mapping[str, Any]

HOLDS, FAILS, OPEN, UNTESTED = (
    "holds",
    "does not hold",
    "not decided here",
    "not tested here",
)
SPARSITIES = ("50 %", "60 %", "70 %", "80 %")
PATTERNS = ("2:4", "4:8")
MOST = 0.9  # "on nearly all layers": the share of problems on which a claim must be true
FEWEST = 8  # layers; fewer say nothing about nearly all layers
TOLERATED = 0.25  # an overhead this much larger still counts as the same
ENOUGH = 0.01  # an objective this close to its optimum counts as having arrived
ROUNDING = 1e-6  # an excess smaller than this is the rounding of float32


@dataclass(frozen=True)
class Outcome:
    """A verdict (HOLDS, FAILS, OPEN or UNTESTED) and the numbers it rests on."""

    verdict: str
    numbers: str

    def __post_init__(self) -> None:
        """Give negative numbers the sign that is as wide as a plus."""
        object.__setattr__(self, "numbers", re.sub(r"(?<![\w.])-(?=\d)", "−", self.numbers))


@dataclass(frozen=True)
class Claim:
    """A sentence, the words of its test, and the test."""

    sentence: str
    test: str
    check: Callable[[Findings], Outcome]


@dataclass(frozen=True)
class Problem:
    """One layer at one sparsity in the update study: its rows, its curves, and the damping."""

    layer: tuple[Any, ...]
    rows: list[Row]
    curves: list[Row]
    damping: float

    def admm(self, iterations: int, **changes: Any) -> Row | None:
        """The row of ADMM with its defaults, or with `changes`, after so many iterations."""
        wanted = USUAL | {"damping": self.damping} | changes
        for row in self.rows:
            fits = all(row[key] == value for key, value in wanted.items())
            if row["solver"] == "admm" and row["iterations"] == iterations and fits:
                return row
        return None

    def admm_curves(self, precondition: bool) -> list[Row]:
        """ADMM's curves for every ρ, with the study's damping."""
        return [
            curve
            for curve in self.curves
            if (curve["solver"], curve["precondition"]) == ("admm", precondition)
            and curve["damping"] == self.damping
        ]


class Findings:
    """What the records of one model say, looked up the way the claims ask for it."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)
        pruned = [r for r in self.records if r["notebook"] == PRUNE_NOTEBOOK]
        self.pruned = common_setting(pruned)

    def runs(self, method: str, column: str, **options: Any) -> dict[int, Record]:
        """The runs of a method with just these options, by calibration seed."""
        return {
            record["parameters"]["calibration_seed"]: record
            for record in self.pruned
            if record["parameters"]["method"] == method
            and column_of(record) == column
            and (record["parameters"].get("options") or {}) == options
        }

    def perplexities(self, method: str, column: str, **options: Any) -> dict[int, float]:
        """Perplexity by calibration seed; {} if not run."""
        runs = self.runs(method, column, **options)
        return {seed: run["metrics"]["perplexity"]["value"] for seed, run in runs.items()}

    def spread(self) -> float | None:
        """The largest of the plain cells' half ranges over seeds, relative; None without seeds."""
        cells = {
            (run["parameters"]["method"], column_of(run))
            for run in self.pruned
            if not run["parameters"].get("options") and column_of(run)
        }
        values = [list(self.perplexities(*cell).values()) for cell in cells]
        halves = [(max(v) - min(v)) / 2 / mean(v) for v in values if len(v) > 1]
        return max(halves, default=None)

    def problems(self) -> list[Problem]:
        """One for each layer and sparsity of the update study."""
        found = []
        for record in self.records:
            series, asked = record.get("series") or {}, record["parameters"]
            for sparsity in sorted({row["sparsity"] for row in series.get("update", ())}):
                rows, curves = (
                    [row for row in series[part] if row["sparsity"] == sparsity]
                    for part in ("update", "curves")
                )
                layer = (asked.get("model"), asked.get("block"), asked.get("layer"))
                found.append(Problem(layer, rows, curves, asked.get("damping", USUAL["damping"])))
        return found

    def answers(self) -> list[dict[str, Mapping[str, Any]]]:
        """Zero-shot answers by method, for each sparsity or pattern and seed."""
        groups: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = defaultdict(dict)
        scored = [r for r in self.records if r["notebook"] == ZERO_SHOT_NOTEBOOK]
        for record in common_setting(scored):
            asked = record["parameters"]
            if not asked.get("options"):
                key = (column_of(record), asked.get("calibration_seed"))
                groups[key][asked["method"]] = record["series"]["zero_shot"]
        return [groups[key] for key in sorted(groups, key=str)]


# ------------------------------------------------------------------ the update on a fixed mask


def cost_to_reach(curve: Row, excess: float, unit: str) -> float:
    """The iterations or seconds in which a curve gets to an excess for the first time, or inf.

    Between two points the logarithm of the excess is taken as straight, so that a curve with few
    points is not charged up to its next one.
    """
    before = None
    for cost, reached in zip(curve[unit], curve["excess"], strict=True):
        if reached <= excess:
            if before is None or min(excess, reached) <= 0:
                return cost
            share = math.log(before[1] / excess) / math.log(before[1] / reached)
            return before[0] + share * (cost - before[0])
        before = (cost, reached)
    return math.inf


def _least(curves: Iterable[Row], excess: float, unit: str) -> float:
    """The least cost of any of the curves."""
    return min((cost_to_reach(curve, excess, unit) for curve in curves), default=math.inf)


def _mostly(problems: Sequence[Problem], true: int, numbers: str) -> Outcome:
    """The verdict on a claim about nearly all layers that is true on some of the problems."""
    layers = len({problem.layer for problem in problems})
    if layers < FEWEST:
        return Outcome(OPEN, f"{numbers}; {layers} of the {FEWEST} layers that would decide")
    return Outcome(HOLDS if true >= MOST * len(problems) else FAILS, numbers)


def _race(findings: Findings, solvers: Sequence[str], unit: str) -> Outcome:
    """How much more the best of `solvers` needs to get where ADMM is after 20 iterations."""
    problems, ratios, near = [], [], []
    for problem in findings.problems():
        target = problem.admm(20)
        # a rival that diverged at once has a curve without points
        rivals = [c for c in problem.curves if c["solver"] in solvers and c[unit]]
        if target is None or not rivals:
            continue
        spent = _least(rivals, max(target["excess"], ROUNDING), unit)
        # a rival that was stopped before ADMM's own cost has not been beaten
        if spent < math.inf or max(curve[unit][-1] for curve in rivals) >= target[unit]:
            problems.append(problem)
            ratios.append(spent / target[unit])
            usual = [c for c in problem.admm_curves(True) if c["rho"] == USUAL["rho"]]
            near.append((_least(usual, ENOUGH, unit), _least(rivals, ENOUGH, unit)))
    if not problems:
        return _untested("an update study (notebook 02)")
    slower, never = sum(r > 1 for r in ratios), ratios.count(math.inf)
    ours, theirs = (median(values) for values in zip(*near, strict=True))
    numbers = (
        f"the rival needs more on {slower} of {len(ratios)} problems, in the median "
        f"{_times(median(ratios))}{f' (on {never} it did not get there)' if never else ''}; to be "
        f"within 1 % of the optimum ADMM needs {ours:.2g} {unit}, the rival {theirs:.2g}"
    )
    return _mostly(problems, slower, numbers)


def _times(ratio: float) -> str:
    return "more than it was given" if ratio == math.inf else f"{ratio:.2g} times as many"


def _studied(findings: Findings) -> list[tuple[Problem, Row]]:
    """The problems of the update study with ADMM's row after 20 iterations."""
    found = [(problem, problem.admm(20)) for problem in findings.problems()]
    return [(problem, row) for problem, row in found if row is not None]


def _enough_iterations(findings: Findings) -> Outcome:
    studied = _studied(findings)
    if not studied:
        return _untested("an update study (notebook 02)")
    excess = [row["excess"] for _, row in studied]
    within = sum(value <= ENOUGH for value in excess)
    numbers = (
        f"excess after 20 iterations: median {_percent(median(excess))}, "
        f"worst {_percent(max(excess))}; within 1 % on {within} of {len(excess)} problems"
    )
    return _mostly([problem for problem, _ in studied], within, numbers)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _preconditioning_layer(findings: Findings) -> Outcome:
    problems, pairs = [], []
    for problem in findings.problems():
        curves = problem.admm_curves(True), problem.admm_curves(False)
        if all(curves):
            problems.append(problem)
            pairs.append([_least(found, ENOUGH, "iterations") for found in curves])
    if not problems:
        return _untested("an update study (notebook 02)")
    missed = sum(without > 20 for _, without in pairs)
    needed = sum(scaled <= 20 < without for scaled, without in pairs)
    scaled, unscaled = (median(values) for values in zip(*pairs, strict=True))
    more = sum(without > scaled for scaled, without in pairs)
    numbers = (
        f"without it 20 iterations miss 1 % on {missed} of {len(pairs)} problems; iterations to "
        f"1 %: median {scaled:.2g} with, {unscaled:.2g} without; more without on {more}"
    )
    return _mostly(problems, needed, numbers)


def _one_rho(findings: Findings) -> Outcome:
    problems, best, usual = [], [], []
    for problem in findings.problems():
        ends = {
            row["rho"]: row["excess"]
            for row in problem.rows
            if row["solver"] == "admm"
            and (row["iterations"], row["precondition"]) == (20, True)
            and row["damping"] == problem.damping
        }
        if len(ends) > 1 and USUAL["rho"] in ends:
            problems.append(problem)
            best.append(min(ends, key=ends.get))
            usual.append(ends[USUAL["rho"]])
    if not problems:
        return _untested("an update study (notebook 02)")
    shares = ", ".join(f"ρ = {rho:g} on {best.count(rho)}" for rho in sorted(set(best)))
    within = sum(value <= ENOUGH for value in usual)
    numbers = (
        f"excess after 20 iterations with ρ = 1: worst {_percent(max(usual))}, within 1 % on "
        f"{within} of {len(usual)} problems; nearest the optimum was {shares}"
    )
    return _mostly(problems, within, numbers)


def _better_update(findings: Findings) -> Outcome:
    problems, pairs = [], []
    for problem, ours in _studied(findings):
        theirs = [row for row in problem.rows if row["solver"] == "sparsegpt"]
        if theirs:
            problems.append(problem)
            pairs.append((ours, theirs[0]))
    if not pairs:
        return _untested("an update study (notebook 02)")
    better = sum(a["error"] < b["error"] for a, b in pairs)
    unseen = sum(a["heldout"] < b["heldout"] for a, b in pairs)
    ratio = median(a["error"] / b["error"] for a, b in pairs)
    numbers = (
        f"lower error on {better} of {len(pairs)} problems (median {100 * ratio:.0f} % of "
        f"SparseGPT's), on held-out text on {unseen}"
    )
    return _mostly(problems, better, numbers)


# ------------------------------------------------------------------ whole models


def _beats(
    findings: Findings,
    method: str,
    others: Sequence[str],
    needed: Sequence[str],
    wanted: Sequence[str] = (),
) -> Outcome:
    """Lower perplexity than each of `others` in all columns, by more than the spread over seeds.

    The columns of `needed` must be there; those of `wanted` count as far as they are.
    """
    noise, changes, shown, missing = findings.spread(), [], [], []
    for other in others:
        cells = []
        for column in (*needed, *wanted):
            ours, theirs = (findings.perplexities(name, column) for name in (method, other))
            seeds = sorted(set(ours) & set(theirs))
            if not seeds:
                missing += [f"{other} at {column}"] * (column in needed)
                continue
            here, there = (mean(values[seed] for seed in seeds) for values in (ours, theirs))
            changes.append(here / there - 1)
            cells.append(f"{column} {100 * changes[-1]:+.0f} %")
        shown += [f"against {other}: {', '.join(cells)}"] if cells else []
    if not changes:
        return _untested(f"runs of {method} and {' and '.join(others)}")
    numbers = "; ".join(shown) + _noise(noise)
    if noise is not None and any(change > noise for change in changes):
        return Outcome(FAILS, numbers)
    if missing:
        return Outcome(OPEN, f"{numbers}; not run: {', '.join(missing)}")
    sure = noise is not None and all(change < -noise for change in changes)
    return Outcome(HOLDS if sure else OPEN, numbers)


def _noise(spread: float | None) -> str:
    """The spread over seeds for the end of a text."""
    return "; no seeds to compare with" if spread is None else f" (seeds: ±{100 * spread:.1f} %)"


def _best_of_all(findings: Findings) -> Outcome:
    return _beats(findings, "admm-grad", ("sparsegpt", "wanda"), (*SPARSITIES, "2:4"))


def _gradual(findings: Findings) -> Outcome:
    return _beats(findings, "admm-grad", ("admm1",), SPARSITIES, PATTERNS)


def _more_iterations(findings: Findings) -> Outcome:
    options = {"iterations": 50}
    change = _change(findings, options)
    if change is None:
        return _no_run(options)
    if change.high < -ENOUGH:
        return Outcome(FAILS, change.shown)
    return Outcome(HOLDS if change.low >= -ENOUGH else OPEN, change.shown)


def _preconditioning_model(findings: Findings) -> Outcome:
    options = {"precondition": False}
    change = _change(findings, options)
    if change is None:
        return _no_run(options)
    if change.low > ENOUGH:
        return Outcome(HOLDS, change.shown)
    return Outcome(FAILS if change.high <= ENOUGH else OPEN, change.shown)


def _released(findings: Findings) -> Outcome:
    options = {"schedule": "released"}
    change = _change(findings, options)
    if change is None:
        return _no_run(options)
    if change.high < -ENOUGH:
        return Outcome(FAILS, f"it beats the paper's: {change.shown}")
    if change.low > ENOUGH:
        return Outcome(FAILS, f"it loses to the paper's: {change.shown}")
    equal = change.low >= -ENOUGH and change.high <= ENOUGH
    return Outcome(HOLDS if equal else OPEN, change.shown)


@dataclass(frozen=True)
class Change:
    """Relative change of perplexity by an option, paired by seed: mean, its error, and text."""

    middle: float
    error: float  # standard error; infinite for one seed, which cannot tell
    shown: str

    @property
    def low(self) -> float:
        """The change less two standard errors."""
        return self.middle - 2 * self.error

    @property
    def high(self) -> float:
        """The change plus two standard errors."""
        return self.middle + 2 * self.error


def _change(findings: Findings, options: dict[str, Any]) -> Change | None:
    """What an option does to ADMM-Grad at 60 %; None if it was not run."""
    pairs = _seed_pairs(findings, options)
    if not pairs:
        return None
    changed, plain = (mean(values) for values in zip(*pairs, strict=True))
    changes = [changed / plain - 1 for changed, plain in pairs]
    shown = f"{format_number(changed)} against {format_number(plain)}; by seed "
    shown += ", ".join(f"{100 * change:+.2f} %" for change in changes)
    if len(changes) < 2:
        return Change(changes[0], math.inf, f"{shown}; one seed cannot tell")
    middle, error = mean_and_error(changes)
    return Change(middle, error, f"{shown}; mean {100 * middle:+.2f} ± {100 * error:.2f} %")


def _no_run(options: dict[str, Any]) -> Outcome:
    name = ", ".join(f"{key}={value}" for key, value in options.items())
    return _untested(f"runs of admm-grad at 60 % with {name}")


def _seed_pairs(findings: Findings, options: dict[str, Any]) -> list[tuple[float, float]]:
    """Perplexity of ADMM-Grad at 60 % with other options and with the defaults, seed by seed."""
    changed = findings.perplexities("admm-grad", "60 %", **options)
    plain = findings.perplexities("admm-grad", "60 %")
    return [(changed[seed], plain[seed]) for seed in sorted(set(changed) & set(plain))]


def _overhead(findings: Findings) -> Outcome:
    """Forward passes and grams are the same work, so their median counts for both methods."""
    pairs = []
    for column in SPARSITIES:
        ours, theirs = (findings.runs(name, column) for name in ("admm-grad", "sparsegpt"))
        pairs += [(ours[seed], theirs[seed]) for seed in sorted(set(ours) & set(theirs))]
    timed = [pair for pair in pairs if _parts(pair[0]) == _parts(pair[1]) != set()]
    if not timed:
        return _untested("runs of admm-grad and sparsegpt, timed in parts")
    common = median(_seconds(run, "forward", "gram") for pair in timed for run in pair)
    ours, theirs = (
        mean(_seconds(pair[place], "solve", "selection") for pair in timed) for place in (0, 1)
    )
    ratio = (common + ours) / (common + theirs)
    numbers = (
        f"solving and selecting: admm-grad {ours:.0f} s, sparsegpt {theirs:.0f} s; with the "
        f"{common:.0f} s of forward passes and grams {ratio:.2f} times as long ({_where(timed)})"
    )
    return Outcome(HOLDS if ratio <= 1 + TOLERATED else FAILS, numbers)


def _parts(run: Record) -> set[str]:
    """The parts of a run's pruning that were timed: on a GPU gram and selection are in others."""
    return {name for name in PRUNE_PARTS if f"{name}_seconds" in run["metrics"]}


def _seconds(run: Record, *parts: str) -> float:
    """Seconds of some parts of a run's pruning, as far as they were timed apart."""
    timed = _parts(run) & set(parts)
    return sum(run["metrics"][f"{part}_seconds"]["value"] for part in timed)


def _where(pairs: Sequence[tuple[Record, Record]]) -> str:
    """The calibration that decides how much the passes weigh, and the device."""
    run = pairs[0][0]
    asked = run["parameters"]
    amount = f"{asked.get('sequences', '?')} x {asked.get('length', '?')} calibration tokens"
    return f"{amount}, {run.get('device', '?')}"


def _zero_shot_order(findings: Findings) -> Outcome:
    order = ("wanda", "sparsegpt", "admm-grad")
    for answers in findings.answers():
        if not set(order) <= set(answers):
            continue
        pairs = [
            paired_tasks(answers[higher], answers[lower]).values()
            for lower, higher in zip(order, order[1:], strict=False)
        ]
        if all(pairs):
            return _steps([mean_of_tasks(pair) for pair in pairs], order)
    return _untested("zero-shot runs of wanda, sparsegpt and admm-grad on the same items")


def _steps(steps: Sequence[tuple[float, float]], order: Sequence[str]) -> Outcome:
    """The verdict on an order, from the paired mean difference of each neighbour and its error."""
    steps_shown = ", ".join(
        f"{higher} − {lower} {difference:+.3f} ± {error:.3f}"
        for (difference, error), lower, higher in zip(steps, order, order[1:], strict=False)
    )
    shown = f"mean over tasks: {steps_shown} (paired standard error)"
    if any(difference < -2 * error for difference, error in steps):
        return Outcome(FAILS, shown)
    sure = all(difference > 2 * error for difference, error in steps)
    return Outcome(HOLDS if sure else OPEN, shown)


def _untested(needed: str) -> Outcome:
    return Outcome(UNTESTED, f"needs {needed}")


def _own_models(findings: Findings) -> Outcome:
    names = {str(record["parameters"].get("model")) for record in findings.records}
    if not names & set(MODEL_NAMES):
        return _untested("the plan `paper` on a GPU; published figures are in results/published")
    return _best_of_all(findings)


SAME_MASK = (
    f"one mask by Wanda's score, budget per matrix; a problem is a layer at a sparsity; true on "
    f"{100 * MOST:.0f} % of them and at least {FEWEST} layers"
)
PAIRED = "paired by seed; decided where the mean ± two standard errors is on one side of that"
SEEDS = "by more than half the largest range over seeds of any method, where seeds were run"
CLAIMS = (
    Claim(
        "ADMM beats gradient methods per iteration.",
        "The best of Adam and SGD with momentum, over learning rates and with or without "
        "preconditioning, needs more than 20 iterations to come as near to the optimum as 20 "
        f"iterations of ADMM ({SAME_MASK}).",
        lambda findings: _race(findings, ("adam", "sgd"), "iterations"),
    ),
    Claim(
        "ADMM beats gradient methods per second.",
        "The same with seconds, ADMM's factorisation included.",
        lambda findings: _race(findings, ("adam", "sgd"), "seconds"),
    ),
    Claim(
        "ADMM also beats conjugate gradients (not in the paper).",
        "The same with conjugate gradients on the support, in seconds.",
        lambda findings: _race(findings, ("cg",), "seconds"),
    ),
    Claim(
        "On one mask ADMM updates the weights better than SparseGPT.",
        f"Lower relative error on calibration text after 20 iterations ({SAME_MASK}).",
        _better_update,
    ),
    Claim(
        "20 iterations are enough for a layer.",
        f"The damped objective is within 1 % of its exact optimum ({SAME_MASK}).",
        _enough_iterations,
    ),
    Claim(
        "20 iterations are enough for a model.",
        f"50 iterations lower perplexity at 60 % by no more than 1 %, {PAIRED}.",
        _more_iterations,
    ),
    Claim(
        "Preconditioning (inputs of unit norm) matters for a layer.",
        "Without it, at the best ρ tried and with one scale for all inputs instead, 20 iterations "
        f"do not get within 1 % of the optimum, and with it they do ({SAME_MASK}).",
        _preconditioning_layer,
    ),
    Claim(
        "Preconditioning matters for a model.",
        f"Without it, at ρ = 1, perplexity at 60 % rises by more than 1 %, {PAIRED}.",
        _preconditioning_model,
    ),
    Claim(
        "One ρ = 1 fits every layer.",
        f"With it the damped objective is within 1 % of its exact optimum after 20 iterations, "
        f"while other values were tried ({SAME_MASK}).",
        _one_rho,
    ),
    Claim(
        "The gradual mask beats the one-shot mask at every sparsity.",
        f"Lower perplexity of ADMM-Grad than of ADMM1 at 50, 60, 70 and 80 % {SEEDS}; 2:4 and 4:8 "
        "count where they were run.",
        _gradual,
    ),
    Claim(
        "ADMM-Grad beats SparseGPT and Wanda at 50 to 80 % and at 2:4.",
        f"Lower perplexity at 50, 60, 70, 80 % and at 2:4 {SEEDS}.",
        _best_of_all,
    ),
    Claim(
        "ADMM-Grad takes about as long as SparseGPT.",
        "At most 1.25 times the seconds of SparseGPT, same cells and seeds; forward passes and "
        "grams, the same work for both, count with their median. More calibration text brings "
        "the ratio nearer to 1.",
        _overhead,
    ),
    Claim(
        "Zero-shot means keep the order Wanda, SparseGPT, ADMM-Grad.",
        "Each step up exceeds two standard errors of the paired difference; a step down by more "
        "than two refutes it; else it is not decided.",
        _zero_shot_order,
    ),
    Claim(
        "The released schedule equals the paper's.",
        f"Perplexity at 60 % changes by no more than 1 %, {PAIRED}.",
        _released,
    ),
    Claim(
        "ADMM-Grad wins on the paper's own models too.",
        "Claim 11 on the records of the plan `paper`, each model by itself.",
        _own_models,
    ),
)


def check_claims(records: Iterable[Record]) -> list[tuple[Claim, Outcome]]:
    """Every claim with its verdict on the records of one model."""
    findings = Findings(records)
    return [(claim, claim.check(findings)) for claim in CLAIMS]


def claims_markdown(records: Iterable[Record]) -> str:
    """The verdicts as Markdown: a table of claims and numbers, then the words of each test."""
    checked = check_claims(records)
    lines = ["| | claim | verdict | numbers |", "| --: | :-- | :-- | :-- |"]
    for number, (claim, outcome) in enumerate(checked, start=1):
        lines.append(f"| {number} | {claim.sentence} | **{outcome.verdict}** | {outcome.numbers} |")
    lines += ["", "How each was tested:", ""]
    lines += [f"{n}. {claim.test}" for n, (claim, _) in enumerate(checked, start=1)]
    return "\n".join(lines) + "\n"


def write_claims(records: Iterable[Record], folder: str | os.PathLike[str]) -> list[Path]:
    """Write claims.md into a folder, a section a model, and return its path.

    Raises RecordError if the folder cannot be written.
    """
    models: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if "model" in record["parameters"]:
            models[str(record["parameters"]["model"])].append(record)
    texts = [claims_markdown(runs) for runs in models.values()]
    if len(models) > 1:
        texts = [f"## {name}\n\n{text}" for name, text in zip(models, texts, strict=True)]
    return [replace_file(Path(folder) / "claims.md", "\n".join(texts))] if texts else []
