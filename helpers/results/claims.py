"""The paper's claims, each with a test on the records of a plan and a verdict.

A claim is a sentence, the words of its test with its tolerance, and a function of the records
that gives a verdict and the numbers it rests on. Without the records that a test needs the verdict
is "not tested here"; with too few of them to tell (one seed, some of the sparsities, a handful of
layers) or within the noise it is "not decided here".
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from helpers.paths import replace_file
from helpers.results import frame
from helpers.results.frame import ENOUGH, PRUNE_PARTS, USUAL, Record, Row, matching
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


class Outcome(NamedTuple):
    """A verdict (HOLDS, FAILS, OPEN or UNTESTED) and the numbers it rests on."""

    verdict: str
    numbers: str


class Claim(NamedTuple):
    """A sentence, the words of its test, and the test."""

    sentence: str
    test: str
    check: Callable[[Findings], Outcome]


class Findings:
    """The records of one model as the claims ask for them."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)
        # in the setting that most share; of two runs of a kind the later
        self.pruned, self.scored = (
            frame.run_frame(self.records, notebook)
            .query("usual")
            .drop_duplicates(["method", "target", "options", "seed"], keep="last")
            for notebook in (frame.PRUNE_NOTEBOOK, frame.ZERO_SHOT_NOTEBOOK)
        )
        self.problems = problem_frame(self.records)

    def paired(self, target: str, other: str, **options: Any) -> pd.DataFrame:
        """Runs of ADMM-Grad with options and of another method at a target, by seed.

        The columns of the other end in "_".
        """
        at = self.pruned[self.pruned["target"] == target].set_index("seed").sort_index()
        ours, theirs = (
            at[(at["method"] == method) & (at["options"] == json.dumps(asked))]
            for method, asked in (("admm-grad", options), (other, {}))
        )
        return ours.merge(theirs, left_index=True, right_index=True, suffixes=("", "_"))


def _untested(needed: str) -> Outcome:
    return Outcome(UNTESTED, f"needs {needed}")


def _between(
    found: Iterable[tuple[float, float]], least: float = -math.inf, most: float = math.inf
) -> str:
    """The verdict on values with errors: HOLDS if all are in these bounds, FAILS if one is outside.

    A value counts with its error on both sides; where that crosses a bound the verdict is OPEN.
    """
    ranges = [(value - error, value + error) for value, error in found]
    if any(high < least or low > most for low, high in ranges):
        return FAILS
    return HOLDS if all(least < low and high < most for low, high in ranges) else OPEN


# ------------------------------------------------------------------ the update on a fixed mask


def cost_to_reach(curves: Iterable[Row], excess: float, unit: str) -> float:
    """The least iterations or seconds in which any of the curves gets to an excess, or inf.

    Between two points the logarithm of the excess is taken as straight, so that a curve with few
    points is not charged up to its next one.
    """
    costs = [math.inf]
    for curve in curves:
        before = None
        for cost, reached in zip(curve[unit], curve["excess"], strict=True):
            if reached <= excess:
                if before and min(excess, reached) > 0:
                    start, high = before
                    share = math.log(high / excess) / math.log(high / reached)
                    cost = start + share * (cost - start)
                costs.append(cost)
                break
            before = (cost, reached)
    return min(costs)


# of ADMM with its defaults after 20 iterations; of SparseGPT; ADMM's iterations to within 1 % at
# the best ρ, with and without preconditioning; how many ρ were tried, and which was best
MEASURES = ("excess", "error", "heldout", "iterations", "seconds", "sparsegpt_error",
            "sparsegpt_heldout", "scaled", "unscaled", "rhos", "best_rho")  # fmt: skip


def problem_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row for a layer at a sparsity in the update study; what was not run is NaN.

    Columns: layer; MEASURES; usual, ADMM's curves with its defaults; curves, all of them. ADMM
    counts with the study's damping.
    """
    rows = []
    for record in records:
        series, asked = record.get("series") or {}, record["parameters"]
        admm = {"solver": "admm", "damping": asked.get("damping", USUAL["damping"])}
        for sparsity in sorted({row["sparsity"] for row in series.get("update", ())}):
            update, curves = (matching(series[s], sparsity=sparsity) for s in ("update", "curves"))
            ended = matching(update, **admm, precondition=True, iterations=20)
            ends = {row["rho"]: row for row in ended}
            row = {name: ends.get(USUAL["rho"], {}).get(name) for name in MEASURES[:5]}
            other = next(iter(matching(update, solver="sparsegpt")), {})
            row |= {f"sparsegpt_{name}": other.get(name) for name in ("error", "heldout")}
            scaled, unscaled = (matching(curves, **admm, precondition=p) for p in (True, False))
            if scaled and unscaled:
                row["scaled"] = cost_to_reach(scaled, ENOUGH, "iterations")
                row["unscaled"] = cost_to_reach(unscaled, ENOUGH, "iterations")
            best = min(ends, key=lambda rho, ends=ends: ends[rho]["excess"], default=None)
            row |= {"rhos": len(ends), "best_rho": best, "curves": curves}
            row |= {"layer": (asked.get("block"), asked["layer"])}
            rows.append(row | {"usual": matching(scaled, rho=USUAL["rho"])})
    columns = ["layer", *MEASURES, "usual", "curves"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(MEASURES, float))


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
    for problem in findings.problems.dropna(subset="excess").to_dict("records"):
        # a rival that diverged at once has a curve without points
        rivals = [c for c in problem["curves"] if c["solver"] in solvers and c[unit]]
        spent = cost_to_reach(rivals, max(problem["excess"], ROUNDING), unit)
        # a rival that was stopped before ADMM's own cost has not been beaten
        if spent < math.inf or any(curve[unit][-1] >= problem[unit] for curve in rivals):
            near = [cost_to_reach(curves, ENOUGH, unit) for curves in (problem["usual"], rivals)]
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


def _enough_iterations(findings: Findings) -> Outcome:
    solved = findings.problems.dropna(subset="excess")
    within = solved["excess"] <= ENOUGH
    numbers = (
        f"excess after 20 iterations: median {100 * solved['excess'].median():.2g} %, worst "
        f"{100 * solved['excess'].max():.2g} %; within 1 % on {within.sum()} of {len(solved)} "
        "problems"
    )
    return _on_nearly_all(solved, within, numbers)


def _preconditioning_layer(findings: Findings) -> Outcome:
    both = findings.problems.dropna(subset=["scaled", "unscaled"])
    scaled, unscaled = both["scaled"], both["unscaled"]
    numbers = (
        f"without it 20 iterations miss 1 % on {(unscaled > 20).sum()} of {len(both)} problems; "
        f"iterations to 1 %: median {scaled.median():.2g} with, {unscaled.median():.2g} without; "
        f"more without on {(unscaled > scaled).sum()}"
    )
    return _on_nearly_all(both, (scaled <= 20) & (unscaled > 20), numbers)


def _one_rho(findings: Findings) -> Outcome:
    tried = findings.problems.dropna(subset="excess").query("rhos > 1")
    nearest = tried["best_rho"].value_counts().sort_index()
    within = tried["excess"] <= ENOUGH
    numbers = (
        f"excess after 20 iterations with ρ = 1: worst {100 * tried['excess'].max():.2g} %, within "
        f"1 % on {within.sum()} of {len(tried)} problems; nearest the optimum was "
        f"{', '.join(f'ρ = {rho:g} on {count}' for rho, count in nearest.items())}"
    )
    return _on_nearly_all(tried, within, numbers)


def _better_update(findings: Findings) -> Outcome:
    both = findings.problems.dropna(subset=["error", "sparsegpt_error"])
    better = both["error"] < both["sparsegpt_error"]
    numbers = (
        f"lower error on {better.sum()} of {len(both)} problems (median "
        f"{100 * (both['error'] / both['sparsegpt_error']).median():.0f} % of SparseGPT's), on "
        f"held-out text on {(both['heldout'] < both['sparsegpt_heldout']).sum()}"
    )
    return _on_nearly_all(both, better, numbers)


# ------------------------------------------------------------------ whole models


def _beats(
    findings: Findings, others: Sequence[str], needed: Sequence[str], wanted: Sequence[str] = ()
) -> Outcome:
    """ADMM-Grad has lower perplexity than `others` in all columns, by more than seeds spread.

    The columns of `needed` must be there; those of `wanted` count as far as they are.
    """
    plain = findings.pruned.query("options == '{}' and method != 'dense'")
    cells = plain.groupby(["target", "method"])["perplexity"].agg(["min", "max", "mean", "count"])
    halves = (cells["max"] - cells["min"]) / 2 / cells["mean"]
    noise = halves[cells["count"] > 1].max()  # NaN without seeds
    changes, shown, missing = [], [], []
    for other in others:
        found = {}
        for column in (*needed, *wanted):
            both = findings.paired(column, other)[["perplexity", "perplexity_"]].mean()
            if both.notna().all():
                found[column] = both["perplexity"] / both["perplexity_"] - 1
        missing += [f"{other} at {column}" for column in needed if column not in found]
        changes += [(change, noise) for change in found.values()]
        if found:
            texts = ", ".join(f"{column} {100 * value:+.0f} %" for column, value in found.items())
            shown.append(f"against {other}: {texts}")
    if not changes:
        return _untested(f"runs of admm-grad and {' and '.join(others)}")
    seeds = "; no seeds to compare with" if pd.isna(noise) else f" (seeds: ±{100 * noise:.1f} %)"
    numbers = "; ".join(shown) + seeds
    verdict = _between(changes, most=0.0)
    if missing and verdict != FAILS:
        return Outcome(OPEN, f"{numbers}; not run: {', '.join(missing)}")
    return Outcome(verdict, numbers)


_best_of_all = partial(_beats, others=("sparsegpt", "wanda"), needed=(*SPARSITIES, "2:4"))


def _own_models(findings: Findings) -> Outcome:
    if not any(r["parameters"].get("model") in MODEL_NAMES for r in findings.records):
        return _untested("the plan `paper` on a GPU; published figures are in results/published")
    return _best_of_all(findings)


def _option(
    findings: Findings, least: float = -math.inf, most: float = math.inf, **options: Any
) -> Outcome:
    """Whether an option of ADMM-Grad changes perplexity at 60 % by a share in these bounds."""
    both = findings.paired("60 %", "admm-grad", **options)
    if both.empty:
        name = ", ".join(f"{key}={value}" for key, value in options.items())
        return _untested(f"runs of admm-grad at 60 % with {name}")
    here, there = both["perplexity"], both["perplexity_"]
    changes = list(here / there - 1)
    shown = f"{format_number(here.mean())} against {format_number(there.mean())}; by seed "
    shown += ", ".join(f"{100 * change:+.2f} %" for change in changes)
    if len(changes) == 1:
        return Outcome(OPEN, f"{shown}; one seed cannot tell")
    change, error = mean_and_error(changes)
    shown += f"; mean {100 * change:+.2f} ± {100 * error:.2f} %"
    return Outcome(_between([(change, 2 * error)], least, most), shown)


def _overhead(findings: Findings) -> Outcome:
    """Forward passes and grams are the same work, so their median counts for both methods."""
    both = pd.concat([findings.paired(column, "sparsegpt") for column in SPARSITIES])
    ours, theirs = (  # on a GPU gram and selection are not timed apart, and NaN
        both[[f"{part}_seconds{end}" for part in PRUNE_PARTS]].set_axis(PRUNE_PARTS, axis=1)
        for end in ("", "_")
    )
    alike = (ours.notna() == theirs.notna()).all(axis=1) & ours.notna().any(axis=1)
    if not alike.any():
        return _untested("runs of admm-grad and sparsegpt, timed in parts")
    ours, theirs, record = ours[alike], theirs[alike], both["record"][alike].iloc[0]
    common = pd.concat([ours, theirs])[["forward", "gram"]].sum(axis=1).median()
    own, other = (runs[["solve", "selection"]].sum(axis=1).mean() for runs in (ours, theirs))
    ratio = (common + own) / (common + other)
    asked = record["parameters"]
    # the calibration decides how much the passes weigh
    numbers = (
        f"solving and selecting: admm-grad {own:.0f} s, sparsegpt {other:.0f} s; with the "
        f"{common:.0f} s of forward passes and grams {ratio:.2f} times as long "
        f"({asked['sequences']} x {asked['length']} calibration tokens, {record['device']})"
    )
    return Outcome(HOLDS if ratio <= 1 + TOLERATED else FAILS, numbers)


def _zero_shot_order(findings: Findings) -> Outcome:
    """Each step of the order is a paired mean difference with its standard error."""
    for _, runs in findings.scored.query("options == '{}'").groupby(["target", "seed"]):
        answers = {run.method: run.record["series"]["zero_shot"] for run in runs.itertuples()}
        steps = {}
        for low, high in pairwise(("wanda", "sparsegpt", "admm-grad")):
            if pairs := paired_tasks(answers.get(high, {}), answers.get(low, {})):
                steps[f"{high} − {low}"] = mean_of_tasks(pairs.values())
        if len(steps) == 2:
            shown = [f"{name} {step:+.3f} ± {error:.3f}" for name, (step, error) in steps.items()]
            verdict = _between(((step, 2 * error) for step, error in steps.values()), least=0.0)
            numbers = f"mean over tasks: {', '.join(shown)} (paired standard error)"
            return Outcome(verdict, numbers)
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
        partial(_option, least=-ENOUGH, iterations=50),
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
        partial(_option, least=ENOUGH, precondition=False),
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
        partial(_option, least=-ENOUGH, most=ENOUGH, schedule="released"),
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
        verdict, numbers = claim.check(findings)
        numbers = re.sub(r"(?<![\w.])-(?=\d)", "−", numbers)  # as wide as a plus
        lines.append(f"| {number} | {claim.sentence} | **{verdict}** | {numbers} |")
    lines += ["", "How each was tested:", ""]
    lines += [f"{number}. {claim.test}" for number, claim in enumerate(CLAIMS, start=1)]
    return "\n".join(lines) + "\n"


def write_claims(records: Iterable[Record], folder: str | os.PathLike[str]) -> list[Path]:
    """Write claims.md into a folder, a section a model, and return its path.

    Raises RecordError if the folder cannot be written.
    """
    texts = {model: claims_markdown(runs) for model, runs in frame.by_model(records).items()}
    if len(texts) > 1:
        texts = {model: f"## {model}\n\n{text}" for model, text in texts.items()}
    path = Path(folder) / "claims.md"
    return [replace_file(path, "\n".join(texts.values()))] if texts else []
