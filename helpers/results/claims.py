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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import pandas as pd

from helpers.paths import replace_file
from helpers.results.findings import ENOUGH, Findings, least
from helpers.results.frame import PRUNE_PARTS, Record, by_model
from helpers.results.published import MODEL_NAMES
from helpers.results.tables import format_number, mean_of_tasks, paired_tasks
from helpers.tasks import mean_and_error

HOLDS, FAILS = "holds", "does not hold"
OPEN, UNTESTED = "not decided here", "not tested here"
SPARSITIES = ("50 %", "60 %", "70 %", "80 %")
PATTERNS = ("2:4", "4:8")
MOST = 0.9  # "on nearly all layers": the share of problems on which a claim must be true
FEWEST = 8  # layers; fewer say nothing about nearly all layers
TOLERATED = 0.25  # an overhead this much larger still counts as the same
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


def _untested(needed: str) -> Outcome:
    return Outcome(UNTESTED, f"needs {needed}")


# ------------------------------------------------------------------ the update on a fixed mask


def _on_nearly_all(problems: pd.DataFrame, true: pd.Series, numbers: str) -> Outcome:
    """The verdict on a claim about nearly all layers that is true on some of the problems."""
    if problems.empty:
        return _untested("an update study (notebook 02)")
    layers = problems["layer"].nunique()
    if layers < FEWEST:
        return Outcome(OPEN, f"{numbers}; {layers} of the {FEWEST} layers that would decide")
    return Outcome(HOLDS if true.sum() >= MOST * len(problems) else FAILS, numbers)


def _race(findings: Findings, solvers: Sequence[str], unit: str) -> Outcome:
    """How much more the best of `solvers` needs to get where ADMM is after 20 iterations."""
    rows = []
    for _, problem in findings.problems.dropna(subset="excess").iterrows():
        # a rival that diverged at once has a curve without points
        rivals = [c for c in problem["curves"] if c["solver"] in solvers and c[unit]]
        spent = least(rivals, max(problem["excess"], ROUNDING), unit)
        # a rival that was stopped before ADMM's own cost has not been beaten
        if spent < math.inf or any(curve[unit][-1] >= problem[unit] for curve in rivals):
            near = [least(curves, ENOUGH, unit) for curves in (problem["usual"], rivals)]
            rows.append((problem["layer"], spent / problem[unit], *near))
    race = pd.DataFrame(rows, columns=["layer", "ratio", "ours", "theirs"])
    slower, never = race["ratio"] > 1, (race["ratio"] == math.inf).sum()
    ratio, ours, theirs = race[["ratio", "ours", "theirs"]].astype(float).median()
    numbers = (
        f"the rival needs more on {slower.sum()} of {len(race)} problems, in the median "
        f"{'more than it was given' if ratio == math.inf else f'{ratio:.2g} times as many'}"
        f"{f' (on {never} it did not get there)' if never else ''}; to be "
        f"within 1 % of the optimum ADMM needs {ours:.2g} {unit}, the rival {theirs:.2g}"
    )
    return _on_nearly_all(race, slower, numbers)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _enough_iterations(findings: Findings) -> Outcome:
    solved = findings.problems.dropna(subset="excess")
    excess, within = solved["excess"].astype(float), solved["excess"] <= ENOUGH
    numbers = (
        f"excess after 20 iterations: median {_percent(excess.median())}, "
        f"worst {_percent(excess.max())}; within 1 % on {within.sum()} of {len(solved)} problems"
    )
    return _on_nearly_all(solved, within, numbers)


def _preconditioning_layer(findings: Findings) -> Outcome:
    both = findings.problems.dropna(subset=["scaled", "unscaled"])
    scaled, unscaled = both["scaled"].astype(float), both["unscaled"].astype(float)
    numbers = (
        f"without it 20 iterations miss 1 % on {(unscaled > 20).sum()} of {len(both)} problems; "
        f"iterations to 1 %: median {scaled.median():.2g} with, {unscaled.median():.2g} without; "
        f"more without on {(unscaled > scaled).sum()}"
    )
    return _on_nearly_all(both, (scaled <= 20) & (unscaled > 20), numbers)


def _one_rho(findings: Findings) -> Outcome:
    tried = findings.problems.dropna(subset="excess")
    tried = tried[tried["rhos"] > 1]
    nearest = tried["best_rho"].value_counts().sort_index()
    within = tried["excess"] <= ENOUGH
    numbers = (
        f"excess after 20 iterations with ρ = 1: worst {_percent(tried['excess'].max())}, within "
        f"1 % on {within.sum()} of {len(tried)} problems; nearest the optimum was "
        f"{', '.join(f'ρ = {rho:g} on {count}' for rho, count in nearest.items())}"
    )
    return _on_nearly_all(tried, within, numbers)


def _better_update(findings: Findings) -> Outcome:
    both = findings.problems.dropna(subset=["error", "sparsegpt_error"])
    better = both["error"] < both["sparsegpt_error"]
    unseen = (both["heldout"] < both["sparsegpt_heldout"]).sum()
    ratio = (both["error"] / both["sparsegpt_error"]).astype(float).median()
    numbers = (
        f"lower error on {better.sum()} of {len(both)} problems (median {100 * ratio:.0f} % of "
        f"SparseGPT's), on held-out text on {unseen}"
    )
    return _on_nearly_all(both, better, numbers)


# ------------------------------------------------------------------ whole models


def _beats(
    findings: Findings, others: Sequence[str], needed: Sequence[str], wanted: Sequence[str] = ()
) -> Outcome:
    """ADMM-Grad has lower perplexity than `others` in all columns, by more than seeds spread.

    The columns of `needed` must be there; those of `wanted` count as far as they are.
    """
    noise, changes, shown, missing = findings.spread(), [], [], []
    for other in others:
        pairs = findings.plain().reindex(columns=["admm-grad", other]).dropna()  # the same seeds
        ours, theirs = (pairs[name].groupby(level="target").mean() for name in pairs)
        change = (ours / theirs - 1).reindex([*needed, *wanted]).dropna()
        missing += [f"{other} at {column}" for column in needed if column not in change]
        changes += list(change)
        if len(change):
            cells = ", ".join(f"{column} {100 * value:+.0f} %" for column, value in change.items())
            shown.append(f"against {other}: {cells}")
    if not changes:
        return _untested(f"runs of admm-grad and {' and '.join(others)}")
    seeds = "; no seeds to compare with" if noise is None else f" (seeds: ±{100 * noise:.1f} %)"
    numbers = "; ".join(shown) + seeds
    if noise is not None and max(changes) > noise:
        return Outcome(FAILS, numbers)
    if missing:
        return Outcome(OPEN, f"{numbers}; not run: {', '.join(missing)}")
    return Outcome(HOLDS if noise is not None and max(changes) < -noise else OPEN, numbers)


_best_of_all = partial(_beats, others=("sparsegpt", "wanda"), needed=(*SPARSITIES, "2:4"))


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
    plain = findings.runs("admm-grad", "60 %")
    both = findings.paired(findings.runs("admm-grad", "60 %", **options), plain)
    if both.empty:
        name = ", ".join(f"{key}={value}" for key, value in options.items())
        return _untested(f"runs of admm-grad at 60 % with {name}")
    here, there = both["perplexity"], both["perplexity there"]
    changes = list(here / there - 1)
    shown = f"{format_number(here.mean())} against {format_number(there.mean())}; by seed "
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
        both = findings.paired(ours, theirs)
        pairs += zip(both["record"], both["record there"], strict=True)
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
        partial(_race, solvers=("adam", "sgd"), unit="iterations"),
    ),
    Claim(
        "ADMM beats gradient methods per second.",
        "The same with seconds, ADMM's factorisation included.",
        partial(_race, solvers=("adam", "sgd"), unit="seconds"),
    ),
    Claim(
        "ADMM also beats conjugate gradients (not in the paper).",
        "The same with conjugate gradients on the support, in seconds.",
        partial(_race, solvers=("cg",), unit="seconds"),
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
        partial(_option, _lowers_little, iterations=50),
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
        partial(_option, _raises, precondition=False),
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
        partial(_beats, others=("admm1",), needed=SPARSITIES, wanted=PATTERNS),
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
        partial(_option, _equals, schedule="released"),
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
