"""The paper's claims, each with a test on the records of a plan and a verdict.

A claim is a sentence, the words of its test with its tolerance, and a function of the records
that gives a verdict with the numbers behind it. Without the records that a test needs the verdict
is "not tested here"; with too few of them to tell (one seed, some of the sparsities, a handful of
layers) or within the noise it is "not decided here".
"""

from __future__ import annotations

import functools
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
from helpers.results.frame import (
    PRUNE_NOTEBOOK,
    PRUNE_PARTS,
    USUAL,
    ZERO_SHOT_NOTEBOOK,
    Record,
    by_model,
    column_of,
    common_setting,
)
from helpers.results.published import MODEL_NAMES
from helpers.results.tables import format_number, mean_of_tasks, paired_tasks
from helpers.tasks import mean_and_error

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

    def after_20(self) -> dict[float, Row]:
        """The rows of preconditioned ADMM after 20 iterations, by ρ."""
        wanted = {"solver": "admm", "iterations": 20, "precondition": True, "damping": self.damping}
        return {r["rho"]: r for r in self.rows if all(r[k] == v for k, v in wanted.items())}

    def admm_curves(self, precondition: bool) -> list[Row]:
        """ADMM's curves for every ρ, with the study's damping."""
        wanted = {"solver": "admm", "precondition": precondition, "damping": self.damping}
        return [c for c in self.curves if all(c[k] == v for k, v in wanted.items())]


class Findings:
    """What the records of one model say, looked up the way the claims ask for it."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)
        self.pruned = common_setting(r for r in self.records if r["notebook"] == PRUNE_NOTEBOOK)
        self.problems = list(self._problems())
        # the problems on which ADMM with its defaults was run for 20 iterations, with that row
        found = ((problem, problem.after_20().get(USUAL["rho"])) for problem in self.problems)
        self.solved = [(problem, row) for problem, row in found if row]

    def _problems(self) -> Iterable[Problem]:
        for record in self.records:
            series, asked = record.get("series") or {}, record["parameters"]
            layer = (asked.get("model"), asked.get("block"), asked.get("layer"))
            damping = asked.get("damping", USUAL["damping"])
            for sparsity in sorted({row["sparsity"] for row in series.get("update", ())}):
                rows, curves = (
                    [row for row in series[part] if row["sparsity"] == sparsity]
                    for part in ("update", "curves")
                )
                yield Problem(layer, rows, curves, damping)

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
        cells = {(run["parameters"]["method"], column_of(run)) for run in self.pruned}
        values = [list(self.perplexities(*cell).values()) for cell in cells if cell[1]]
        return max(((max(v) - min(v)) / 2 / mean(v) for v in values if len(v) > 1), default=None)

    def answers(self) -> list[dict[str, Mapping[str, Any]]]:
        """Zero-shot answers by method, for each sparsity or pattern and seed."""
        groups: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = defaultdict(dict)
        for record in common_setting(
            r for r in self.records if r["notebook"] == ZERO_SHOT_NOTEBOOK
        ):
            asked = record["parameters"]
            if not asked.get("options"):
                key = (column_of(record), asked.get("calibration_seed"))
                groups[key][asked["method"]] = record["series"]["zero_shot"]
        return [groups[key] for key in sorted(groups, key=str)]


def _untested(needed: str) -> Outcome:
    return Outcome(UNTESTED, f"needs {needed}")


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


def _on_nearly_all(
    problems: Sequence[Problem], true: int, numbers: str, share: float = MOST
) -> Outcome:
    """The verdict on a claim about nearly all layers that is true on some of the problems."""
    layers = len({problem.layer for problem in problems})
    if layers < FEWEST:
        return Outcome(OPEN, f"{numbers}; {layers} of the {FEWEST} layers that would decide")
    return Outcome(HOLDS if true >= share * len(problems) else FAILS, numbers)


UNSTUDIED = _untested("an update study (notebook 02)")


def _race(findings: Findings, solvers: Sequence[str], unit: str) -> Outcome:
    """How much more the best of `solvers` needs to get where ADMM is after 20 iterations."""
    problems, ratios, near = [], [], []
    for problem, target in findings.solved:
        # a rival that diverged at once has a curve without points
        rivals = [c for c in problem.curves if c["solver"] in solvers and c[unit]]
        spent = _least(rivals, max(target["excess"], ROUNDING), unit)
        # a rival that was stopped before ADMM's own cost has not been beaten
        if spent < math.inf or any(curve[unit][-1] >= target[unit] for curve in rivals):
            problems.append(problem)
            ratios.append(spent / target[unit])
            usual = [c for c in problem.admm_curves(True) if c["rho"] == USUAL["rho"]]
            near.append((_least(usual, ENOUGH, unit), _least(rivals, ENOUGH, unit)))
    if not problems:
        return UNSTUDIED
    slower, never, middle = sum(r > 1 for r in ratios), ratios.count(math.inf), median(ratios)
    ours, theirs = map(median, zip(*near, strict=True))
    numbers = (
        f"the rival needs more on {slower} of {len(ratios)} problems, in the median "
        f"{'more than it was given' if middle == math.inf else f'{middle:.2g} times as many'}"
        f"{f' (on {never} it did not get there)' if never else ''}; to be "
        f"within 1 % of the optimum ADMM needs {ours:.2g} {unit}, the rival {theirs:.2g}"
    )
    return _on_nearly_all(problems, slower, numbers)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _enough_iterations(findings: Findings) -> Outcome:
    if not findings.solved:
        return UNSTUDIED
    problems, rows = zip(*findings.solved, strict=True)
    excess = [row["excess"] for row in rows]
    within = sum(value <= ENOUGH for value in excess)
    numbers = (
        f"excess after 20 iterations: median {_percent(median(excess))}, "
        f"worst {_percent(max(excess))}; within 1 % on {within} of {len(excess)} problems"
    )
    return _on_nearly_all(problems, within, numbers)


def _preconditioning_layer(findings: Findings) -> Outcome:
    problems, pairs = [], []
    for problem in findings.problems:
        curves = problem.admm_curves(True), problem.admm_curves(False)
        if all(curves):
            problems.append(problem)
            pairs.append([_least(found, ENOUGH, "iterations") for found in curves])
    if not problems:
        return UNSTUDIED
    missed = sum(without > 20 for _, without in pairs)
    needed = sum(scaled <= 20 < without for scaled, without in pairs)
    more = sum(without > scaled for scaled, without in pairs)
    scaled, unscaled = map(median, zip(*pairs, strict=True))
    numbers = (
        f"without it 20 iterations miss 1 % on {missed} of {len(pairs)} problems; iterations to "
        f"1 %: median {scaled:.2g} with, {unscaled:.2g} without; more without on {more}"
    )
    return _on_nearly_all(problems, needed, numbers)


def _one_rho(findings: Findings) -> Outcome:
    tried = [(p, row, p.after_20()) for p, row in findings.solved if len(p.after_20()) > 1]
    if not tried:
        return UNSTUDIED
    usual = [row["excess"] for _, row, _ in tried]
    best = [min(ends, key=lambda rho, ends=ends: ends[rho]["excess"]) for _, _, ends in tried]
    shares = ", ".join(f"ρ = {rho:g} on {best.count(rho)}" for rho in sorted(set(best)))
    within = sum(value <= ENOUGH for value in usual)
    numbers = (
        f"excess after 20 iterations with ρ = 1: worst {_percent(max(usual))}, within 1 % on "
        f"{within} of {len(usual)} problems; nearest the optimum was {shares}"
    )
    return _on_nearly_all([problem for problem, _, _ in tried], within, numbers)


def _better_update(findings: Findings) -> Outcome:
    problems, pairs = [], []
    for problem, ours in findings.solved:
        theirs = [row for row in problem.rows if row["solver"] == "sparsegpt"]
        if theirs:
            problems.append(problem)
            pairs.append((ours, theirs[0]))
    if not pairs:
        return UNSTUDIED
    better = sum(a["error"] < b["error"] for a, b in pairs)
    unseen = sum(a["heldout"] < b["heldout"] for a, b in pairs)
    ratio = median(a["error"] / b["error"] for a, b in pairs)
    numbers = (
        f"lower error on {better} of {len(pairs)} problems (median {100 * ratio:.0f} % of "
        f"SparseGPT's), on held-out text on {unseen}"
    )
    return _on_nearly_all(problems, better, numbers)


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
            if seeds:
                here, there = (mean(values[seed] for seed in seeds) for values in (ours, theirs))
                changes.append(here / there - 1)
                cells.append(f"{column} {100 * changes[-1]:+.0f} %")
            elif column in needed:
                missing.append(f"{other} at {column}")
        shown += [f"against {other}: {', '.join(cells)}"] if cells else []
    if not changes:
        return _untested(f"runs of {method} and {' and '.join(others)}")
    seeds = "; no seeds to compare with" if noise is None else f" (seeds: ±{100 * noise:.1f} %)"
    numbers = "; ".join(shown) + seeds
    if noise is not None and any(change > noise for change in changes):
        return Outcome(FAILS, numbers)
    if missing:
        return Outcome(OPEN, f"{numbers}; not run: {', '.join(missing)}")
    sure = noise is not None and all(change < -noise for change in changes)
    return Outcome(HOLDS if sure else OPEN, numbers)


def _best_of_all(findings: Findings) -> Outcome:
    return _beats(findings, "admm-grad", ("sparsegpt", "wanda"), (*SPARSITIES, "2:4"))


def _gradual(findings: Findings) -> Outcome:
    return _beats(findings, "admm-grad", ("admm1",), SPARSITIES, PATTERNS)


def _own_models(findings: Findings) -> Outcome:
    names = {str(record["parameters"].get("model")) for record in findings.records}
    if not names & set(MODEL_NAMES):
        return _untested("the plan `paper` on a GPU; published figures are in results/published")
    return _best_of_all(findings)


def _option(
    decide: Callable[[float, float], tuple[str, str]], findings: Findings, **options: Any
) -> Outcome:
    """What an option of ADMM-Grad does to perplexity at 60 %, paired by seed.

    `decide` gives the verdict, and words before the numbers, for the relative change less and plus
    two standard errors. One seed cannot tell: its standard error is infinite.
    """
    changed = findings.perplexities("admm-grad", "60 %", **options)
    plain = findings.perplexities("admm-grad", "60 %")
    pairs = [(changed[seed], plain[seed]) for seed in sorted(set(changed) & set(plain))]
    if not pairs:
        name = ", ".join(f"{key}={value}" for key, value in options.items())
        return _untested(f"runs of admm-grad at 60 % with {name}")
    here, there = (format_number(mean(values)) for values in zip(*pairs, strict=True))
    changes = [changed / plain - 1 for changed, plain in pairs]
    shown = f"{here} against {there}; by seed "
    shown += ", ".join(f"{100 * change:+.2f} %" for change in changes)
    if len(changes) > 1:
        middle, error = mean_and_error(changes)
        shown += f"; mean {100 * middle:+.2f} ± {100 * error:.2f} %"
    else:
        middle, error = changes[0], math.inf
        shown += "; one seed cannot tell"
    verdict, words = decide(middle - 2 * error, middle + 2 * error)
    return Outcome(verdict, words + shown)


def _lowers_little(low: float, high: float) -> tuple[str, str]:
    return FAILS if high < -ENOUGH else HOLDS if low >= -ENOUGH else OPEN, ""


def _raises(low: float, high: float) -> tuple[str, str]:
    return HOLDS if low > ENOUGH else FAILS if high <= ENOUGH else OPEN, ""


def _equals(low: float, high: float) -> tuple[str, str]:
    if high < -ENOUGH or low > ENOUGH:
        return FAILS, f"it {'beats' if high < 0 else 'loses to'} the paper's: "
    return HOLDS if low >= -ENOUGH and high <= ENOUGH else OPEN, ""


def _overhead(findings: Findings) -> Outcome:
    """Forward passes and grams are the same work, so their median counts for both methods."""

    def timed(run: Record) -> set[str]:
        # on a GPU gram and selection are not timed apart
        return {part for part in PRUNE_PARTS if f"{part}_seconds" in run["metrics"]}

    def seconds(run: Record, *parts: str) -> float:
        return sum(run["metrics"][f"{part}_seconds"]["value"] for part in timed(run) & set(parts))

    pairs = []
    for column in SPARSITIES:
        ours, theirs = (findings.runs(name, column) for name in ("admm-grad", "sparsegpt"))
        pairs += [(ours[seed], theirs[seed]) for seed in sorted(set(ours) & set(theirs))]
    pairs = [pair for pair in pairs if timed(pair[0]) == timed(pair[1]) != set()]
    if not pairs:
        return _untested("runs of admm-grad and sparsegpt, timed in parts")
    common = median(seconds(run, "forward", "gram") for pair in pairs for run in pair)
    ours, theirs = (
        mean(seconds(run, "solve", "selection") for run in runs)
        for runs in zip(*pairs, strict=True)
    )
    ratio = (common + ours) / (common + theirs)
    run, asked = pairs[0][0], pairs[0][0]["parameters"]
    # the calibration decides how much the passes weigh
    numbers = (
        f"solving and selecting: admm-grad {ours:.0f} s, sparsegpt {theirs:.0f} s; with the "
        f"{common:.0f} s of forward passes and grams {ratio:.2f} times as long "
        f"({asked.get('sequences', '?')} x {asked.get('length', '?')} calibration tokens, "
        f"{run.get('device', '?')})"
    )
    return Outcome(HOLDS if ratio <= 1 + TOLERATED else FAILS, numbers)


def _zero_shot_order(findings: Findings) -> Outcome:
    """Each step of the order is a paired mean difference with its standard error."""
    steps = (("wanda", "sparsegpt"), ("sparsegpt", "admm-grad"))
    for answers in findings.answers():
        if not {"wanda", "sparsegpt", "admm-grad"} <= set(answers):
            continue
        pairs = [paired_tasks(answers[high], answers[low]).values() for low, high in steps]
        if not all(pairs):
            continue
        found = [mean_of_tasks(pair) for pair in pairs]
        shown = ", ".join(
            f"{high} − {low} {difference:+.3f} ± {error:.3f}"
            for (low, high), (difference, error) in zip(steps, found, strict=True)
        )
        numbers = f"mean over tasks: {shown} (paired standard error)"
        if any(difference < -2 * error for difference, error in found):
            return Outcome(FAILS, numbers)
        sure = all(difference > 2 * error for difference, error in found)
        return Outcome(HOLDS if sure else OPEN, numbers)
    return _untested("zero-shot runs of wanda, sparsegpt and admm-grad on the same items")


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
        functools.partial(_race, solvers=("adam", "sgd"), unit="iterations"),
    ),
    Claim(
        "ADMM beats gradient methods per second.",
        "The same with seconds, ADMM's factorisation included.",
        functools.partial(_race, solvers=("adam", "sgd"), unit="seconds"),
    ),
    Claim(
        "ADMM also beats conjugate gradients (not in the paper).",
        "The same with conjugate gradients on the support, in seconds.",
        functools.partial(_race, solvers=("cg",), unit="seconds"),
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
        functools.partial(_option, _lowers_little, iterations=50),
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
        functools.partial(_option, _raises, precondition=False),
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
        functools.partial(_option, _equals, schedule="released"),
    ),
    Claim(
        "ADMM-Grad wins on the paper's own models too.",
        "Claim 11 on the records of the plan `paper`, each model by itself.",
        _own_models,
    ),
)


def claims_markdown(records: Iterable[Record]) -> str:
    """The verdicts on the records of one model: a table of claims, then the words of each test."""
    findings = Findings(records)
    lines = ["| | claim | verdict | numbers |", "| --: | :-- | :-- | :-- |"]
    for number, claim in enumerate(CLAIMS, start=1):
        outcome = claim.check(findings)
        lines.append(f"| {number} | {claim.sentence} | **{outcome.verdict}** | {outcome.numbers} |")
    lines += ["", "How each was tested:", ""]
    lines += [f"{number}. {claim.test}" for number, claim in enumerate(CLAIMS, start=1)]
    return "\n".join(lines) + "\n"


def write_claims(records: Iterable[Record], folder: str | os.PathLike[str]) -> list[Path]:
    """Write claims.md into a folder, a section a model, and return its path.

    Raises RecordError if the folder cannot be written.
    """
    texts = {model: claims_markdown(runs) for model, runs in by_model(records).items()}
    if len(texts) > 1:
        texts = {model: f"## {model}\n\n{text}" for model, text in texts.items()}
    path = Path(folder) / "claims.md"
    return [replace_file(path, "\n".join(texts.values()))] if texts else []
